"""Data sets of small images as plain arrays: `load("cifar10")` gives uint8 images, int32 labels and statistics."""

from jaxcnn.data.facts import DATASETS as DATASETS
from jaxcnn.data.loading import load as load
from jaxcnn.data.types import DataError as DataError
from jaxcnn.data.types import Dataset as Dataset
from jaxcnn.data.types import Split as Split
from jaxcnn.data.types import hold_out as hold_out
from jaxcnn.data.types import subset as subset
