"""Loss surfaces: a loss on lines and planes through the space of parameters, around a network or along its training.

Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets" (arXiv:1712.09913).
"""

from jaxcnn.landscape.directions import cosine as cosine
from jaxcnn.landscape.directions import direction as direction
from jaxcnn.landscape.pca import Plane as Plane
from jaxcnn.landscape.pca import pca_plane as pca_plane
from jaxcnn.landscape.values import STATISTICS as STATISTICS
from jaxcnn.landscape.values import Values as Values
from jaxcnn.landscape.values import along as along
