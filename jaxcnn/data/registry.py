"""What is known of each data set beforehand: image shape, class names in label order, names of its archives."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from jaxcnn.data.types import DataError, short


class DatasetInfo(NamedTuple):
    """The fixed facts of one data set."""

    shape: tuple[int, int, int]  # height, width, channels
    classes: tuple[str, ...]
    archives: tuple[str, ...] = ()  # file names, train before test; none for what needs no download


_TEN = tuple("0123456789")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_CIFAR100 = (  # fine_label_names.txt of the archive
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
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


def dataset_info(name: str) -> DatasetInfo:
    """Look a data set up; an unknown name is a DataError with the nearest name and the whole list.

    Example:
        >>> dataset_info("cifar10").classes[3]
        'cat'
    """
    if isinstance(name, str) and name in DATASETS:
        return DATASETS[name]
    # `jaxcnn.data.folder` gives its data sets this name, and so do the recipes of their runs.
    if isinstance(name, str) and name == "folder":
        raise DataError(
            "'folder' is pictures of your own, which have no name; pass data=jaxcnn.data.folder(PATH, size=...)"
        )
    found = short(str(name))  # a name of megabytes is not compared letter by letter
    near = difflib.get_close_matches(found.lower(), DATASETS, n=1, cutoff=0.0)[0]
    raise DataError(f"no data set is named {found!r}; did you mean {near!r}? There are {', '.join(DATASETS)}")
