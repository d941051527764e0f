"""Weights that others have published, and ours for others: safetensors, and PyTorch's files without PyTorch.

`load_weights` gives the variables of a network from a file, `export` writes one. A file from a stranger runs nothing.
"""

from jaxcnn.weights.exporting import export_weights as export_weights
from jaxcnn.weights.loading import load_weights as load_weights
from jaxcnn.weights.reading import read_metadata as read_metadata
from jaxcnn.weights.reading import read_weights as read_weights
from jaxcnn.weights.types import WeightsError as WeightsError
