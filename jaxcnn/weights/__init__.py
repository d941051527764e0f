"""Weights that others have published, and ours for others: safetensors, and PyTorch's files without PyTorch.

`pretrained` gives the variables of a network from a file, `export` writes one. A file from a stranger runs nothing.
"""

from jaxcnn.weights.exporting import export as export
from jaxcnn.weights.loading import pretrained as pretrained
from jaxcnn.weights.reading import read as read
from jaxcnn.weights.reading import read_metadata as read_metadata
from jaxcnn.weights.types import WeightsError as WeightsError
