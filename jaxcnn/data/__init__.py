"""Data sets of images as arrays: uint8 images, their labels, and statistics.

`load_dataset` loads a data set by name, such as "cifar10", `image_folder` reads a folder of images,
and `dataset` takes arrays.

- Types: `Dataset`, `Split`. `DATASETS` describes the data sets by name.
- Errors: `DataError`, `ImageError`.
- Parts: `subset`, `hold_out`.
- Files: `image_folder_with_paths`, `image_files`, `load_image`, `load_images`. `resize_image` does
  the same with an array.
- Statistics: `channel_statistics`.
- Checks: `verify_dataset`, `verify_split`, `verify_images`, `verify_inputs`.
"""

from jaxcnn.data.arrays import dataset as dataset
from jaxcnn.data.checking import verify_dataset as verify_dataset
from jaxcnn.data.checking import verify_images as verify_images
from jaxcnn.data.checking import verify_inputs as verify_inputs
from jaxcnn.data.checking import verify_split as verify_split
from jaxcnn.data.image_folder import image_files as image_files
from jaxcnn.data.image_folder import image_folder as image_folder
from jaxcnn.data.image_folder import image_folder_with_paths as image_folder_with_paths
from jaxcnn.data.image_io import ImageError as ImageError
from jaxcnn.data.image_io import load_image as load_image
from jaxcnn.data.image_io import load_images as load_images
from jaxcnn.data.image_io import resize_image as resize_image
from jaxcnn.data.loading import load_dataset as load_dataset
from jaxcnn.data.registry import DATASETS as DATASETS
from jaxcnn.data.splits import hold_out as hold_out
from jaxcnn.data.splits import subset as subset
from jaxcnn.data.types import DataError as DataError
from jaxcnn.data.types import Dataset as Dataset
from jaxcnn.data.types import Split as Split
from jaxcnn.data.types import channel_statistics as channel_statistics
