"""Names of the data sets, with image shape, class names and archives."""

from __future__ import annotations

import difflib
import os
from typing import NamedTuple

from jaxcnn.data.types import DataError, short


class DatasetInfo(NamedTuple):
    """Image shape, class names and archives of one data set.

    Attributes:
      shape: (height, width, channels) of an image.
      classes: class names, in the order of the labels.
      archives: file names of the archives, train before test. Empty if the data set needs no
        download.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    archives: tuple[str, ...] = ()


_TEN = tuple("0123456789")
_CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# From fine_label_names.txt of the archive.
_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach "
    "couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster "
    "house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree "
    "motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear "
    "pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road "
    "rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar "
    "sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip "
    "turtle wardrobe whale willow_tree wolf woman worm"
)
_IDX = (
    *("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    *("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
)

DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo((8, 8, 1), _TEN),
    "mnist": DatasetInfo((28, 28, 1), _TEN, _IDX),
    "fashion_mnist": DatasetInfo((28, 28, 1), _FASHION, _IDX),
    "cifar10": DatasetInfo((32, 32, 3), _CIFAR10, ("cifar-10-binary.tar.gz",)),
    "cifar100": DatasetInfo((32, 32, 3), tuple(_CIFAR100.split()), ("cifar-100-binary.tar.gz",)),
    "svhn_cropped": DatasetInfo((32, 32, 3), _TEN, ("train_32x32.mat", "test_32x32.mat")),
}
"""Data sets by name, as `load_dataset` takes it."""


def dataset_info(name: str) -> DatasetInfo:
    """Return the information about a data set.

    Raises:
        DataError: the name is unknown. The message has the nearest name and the whole list.

    Example:
        >>> dataset_info("cifar10").classes[3]
        'cat'
    """
    if isinstance(name, str) and name in DATASETS:
        return DATASETS[name]
    # `image_folder` gives its data sets this name, and so do the configs of their runs.
    if isinstance(name, str) and name == "folder":
        raise DataError(
            "'folder' is for images of your own, which have no name; pass "
            "data=jaxcnn.image_folder(PATH, size=...)"
        )
    if isinstance(name, str) and name == "arrays":
        raise DataError(
            "'arrays' is for arrays of your own, which have no name; pass "
            "data=jaxcnn.dataset((images, labels), (test_images, test_labels))"
        )
    if isinstance(name, (str, os.PathLike)) and (os.sep in str(name) or os.path.isdir(name)):
        raise DataError(
            f"{short(str(name))!r} is a path; expected the name of a data set. For a folder with a "
            "subfolder of images for each class, pass data=jaxcnn.image_folder(PATH, size=...)."
        )
    # Cut first: the comparison of a name of megabytes would take too long.
    unknown = short(str(name))
    nearest = difflib.get_close_matches(unknown.lower(), DATASETS, n=1, cutoff=0.0)[0]
    raise DataError(
        f"no data set is named {unknown!r}; did you mean {nearest!r}? There are "
        f"{', '.join(DATASETS)}"
    )
