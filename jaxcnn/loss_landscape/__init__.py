"""Loss surfaces: a loss on lines and planes through the space of parameters, around a network or along its training.

Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets" (arXiv:1712.09913).
"""

from jaxcnn.loss_landscape.directions import cosine_similarity as cosine_similarity
from jaxcnn.loss_landscape.directions import random_direction as random_direction
from jaxcnn.loss_landscape.pca import PCAPlane as PCAPlane
from jaxcnn.loss_landscape.pca import pca_plane as pca_plane
from jaxcnn.loss_landscape.values import STATISTICS as STATISTICS
from jaxcnn.loss_landscape.values import LandscapeValues as LandscapeValues
from jaxcnn.loss_landscape.values import evaluate_along as evaluate_along
