"""Data sets of small images as plain arrays: `load("cifar10")` gives uint8 images, int32 labels and statistics."""

from jaxcnn.data.checking import verify as verify
from jaxcnn.data.checking import verify_images as verify_images
from jaxcnn.data.checking import verify_inputs as verify_inputs
from jaxcnn.data.checking import verify_split as verify_split
from jaxcnn.data.facts import DATASETS as DATASETS
from jaxcnn.data.folder import folder as folder
from jaxcnn.data.folder import named_folder as named_folder
from jaxcnn.data.loading import load as load
from jaxcnn.data.parts import hold_out as hold_out
from jaxcnn.data.parts import subset as subset
from jaxcnn.data.pictures import PictureError as PictureError
from jaxcnn.data.pictures import picture as picture
from jaxcnn.data.pictures import pictures as pictures
from jaxcnn.data.types import DataError as DataError
from jaxcnn.data.types import Dataset as Dataset
from jaxcnn.data.types import Split as Split
from jaxcnn.data.types import statistics as statistics
