"""Whether arrays of the user's own can be trained on; and if not, in one line what is wrong and what to write instead."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxcnn.arguments import format_value
from jaxcnn.data.types import DataError, Dataset, Split

Shape = tuple[int, ...]


def verify_dataset(data: Dataset) -> None:
    """Check a whole data set: its three splits, of which only the training one must have images, class names and statistics.

    Labels are passed over once (0.1 ms for 50,000); pixels are looked at only to explain an error.

    Raises:
        DataError: one line that names the array and the mend.

    Example:
        >>> from jaxcnn.data import load_dataset
        >>> data = load_dataset("digits")
        >>> verify_dataset(data)
        >>> verify_dataset(data._replace(classes=("zero",)))
        Traceback (most recent call last):
        jaxcnn.data.types.DataError: classes is ('zero',); expected two names or more: write ('cat', 'dog'), say
    """
    if not isinstance(data, Dataset):
        raise DataError(f"data is a {type(data).__name__}; expected a jaxcnn.Dataset, as load() gives it")
    _name(data.name)
    classes = _count(data.classes)
    verify_split("train", data.train, classes)
    shape = data.train.images.shape[1:]
    verify_split("validation", data.validation, classes, shape, may_be_empty=True)
    verify_split("test", data.test, classes, shape, may_be_empty=True)
    labels = data.train.labels
    if (labels == labels[0]).all():
        raise DataError(f"train labels are all {labels[0]}; expected two classes or more: shuffle before you cut")
    _statistic("mean", data.mean, shape)
    _statistic("std", data.std, shape[-1:])


def verify_inputs(data: Any) -> None:
    """Raise DataError unless `data` is a Dataset with class names, training images and statistics; labels are not looked at."""
    if not isinstance(data, Dataset):
        raise DataError(f"data is a {type(data).__name__}; expected a jaxcnn.Dataset, as load() gives it")
    if not isinstance(data.train, Split):
        raise DataError(f"train is a {type(data.train).__name__}; expected two arrays: write Split(images, labels)")
    _name(data.name)
    verify_images("train images", data.train.images)
    _count(data.classes)
    for what, split in (("validation", data.validation), ("test", data.test)):
        if not isinstance(split, Split):
            raise DataError(f"{what} is a {type(split).__name__}; expected two arrays: write Split(images, labels)")
    shape = data.train.images.shape[1:]
    _statistic("mean", data.mean, shape)
    _statistic("std", data.std, shape[-1:])


def _name(name: Any) -> None:
    if not isinstance(name, str):
        raise DataError(f"name is of type {type(name).__name__}; expected text: write name='fruit', say")


def verify_split(
    what: str, split: Split, classes: int | None = None, shape: Shape | None = None, *, may_be_empty: bool = False
) -> None:
    """Raise DataError unless `split` has uint8 images [n, h, w, c] and int32 labels [n], or masks [n, h, w], in 0..classes-1.

    Args:
        what: its name in the message, such as "train".
        split: images and labels.
        classes: how many there are, if it is known.
        shape: (h, w, c) that the images must have, if it is known.
        may_be_empty: whether n = 0 will do.
    """
    if not isinstance(split, Split):
        raise DataError(f"{what} is a {type(split).__name__}; expected two arrays: write Split(images, labels)")
    verify_images(f"{what} images", split.images, shape, may_be_empty=may_be_empty)
    _labels(f"{what} labels", split.labels, split.images.shape[:3], classes)


def verify_images(what: str, images: Any, shape: Shape | None = None, *, may_be_empty: bool = False) -> None:
    """Raise DataError unless `images` is a NumPy array uint8 [n, h, w, c]; as in `verify_split`."""
    _array(what, images, "uint8")
    expected = "expected uint8 [n, h, w, c]"
    if mend := _layout(images.shape):
        raise DataError(f"{what} have shape {images.shape}; {expected}: {mend}")
    if images.dtype != np.uint8:
        found, mend = _kind(images)
        raise DataError(f"{what} are {images.dtype}{found}; {expected} in 0..255: {mend}")
    if not len(images) and not may_be_empty:
        raise DataError(f"{what} are none at all; {expected}, n > 0: give at least one image")
    if shape is not None and images.shape[1:] != shape:
        raise DataError(
            f"{what} have shape {images.shape[1:]}; expected {shape}, as the train images: resize or crop them to that"
        )


def _array(what: str, value: Any, dtype: str) -> None:
    if not isinstance(value, np.ndarray):
        write = f"np.array(..., np.{dtype})" if isinstance(value, (list, tuple)) else "np.asarray(...)"
        raise DataError(f"{what} are of type {type(value).__name__}; expected a NumPy array: write {write}")
    if value.dtype.hasobject:
        raise DataError(f"{what} are an array of objects; expected {dtype}: make all of one shape, then np.stack them")


def _layout(shape: Shape) -> str:
    """What to write where a shape is not [n, h, w, c], or ""."""
    if len(shape) == 4:
        first, last = shape[1], shape[2:]
        # No image is 3 pixels high and 5 or more channels deep; one pixel high it may be, unless it would be square.
        if (first == 3 and min(last) > 4) or (first == 1 and last[0] == last[1] > 4):
            return "channels come last, write images.transpose(0, 2, 3, 1)"
        return "" if min(shape[1:]) else "give images of at least one pixel"
    if len(shape) == 3:
        return "write images[None] for one image" if shape[-1] in (1, 3) else "write images[..., None] for grey ones"
    side = math.isqrt(shape[-1]) if shape else 0
    if len(shape) == 2 and side**2 == shape[1]:
        return f"write images.reshape(-1, {side}, {side}, 1)"
    return "reshape them"


def _kind(images: np.ndarray) -> tuple[str, str]:
    """(what else is to say of images that are not bytes, what to write)."""
    if images.dtype == bool:
        return "", "write images * np.uint8(255)"
    if images.dtype.kind not in "iuf" or not images.size:
        return "", "write images.astype(np.uint8)"
    low, high = float(images.min()), float(images.max())
    if not math.isfinite(high - low):  # NaN or inf, if there is one
        bad = next(i for i, image in enumerate(images) if not np.isfinite(image).all())
        return f" with NaN pixels or inf, the first in image {bad}", "mend that image, or leave it out"
    found = f" in {low:.5g}..{high:.5g}"
    if low >= 0 and high <= 1 and images.dtype.kind == "f":
        return found, "write (images * 255).round().astype(np.uint8)"
    if low >= 0 and high <= 255:
        return found, "write images.round().astype(np.uint8)"
    if low < 0:
        return found, "give them as they were before they were normalised; the recipe says what is subtracted"
    return found, "scale them to 0..255, then write images.round().astype(np.uint8)"


def _labels(what: str, labels: Any, places: Shape, classes: int | None) -> None:
    """`places` is (n, h, w): there may be a label for each pixel."""
    _array(what, labels, "int32")
    n = places[0]
    if labels.shape not in ((n,), places):
        raise DataError(f"{what} have shape {labels.shape}; expected ({n},), one for each image: {_flat(labels, n)}")
    kind = labels.dtype.kind
    if kind in "iu" and n:
        _range(what, int(labels.min()), int(labels.max()), classes)
    if labels.dtype == np.int32:
        return
    mend = "write labels.astype(np.int32)"
    if kind == "f" and (wrong := labels[labels != np.floor(labels)]).size:  # NaN is not equal to itself
        mend = f"{wrong[0]:.4g} is the number of no class, so number them from 0"
    elif kind in "US":
        mend = "write np.unique(labels, return_inverse=True)[1].astype(np.int32)"
    raise DataError(f"{what} are {labels.dtype}; expected int32: {mend}")


def _flat(labels: np.ndarray, n: int) -> str:
    if labels.shape == (n, 1):
        return "write labels[:, 0]"
    if labels.ndim == 2 and len(labels) == n:
        return "write labels.argmax(1).astype(np.int32) if they are one-hot"
    return f"there are {n} images"


def _range(what: str, low: int, high: int, classes: int | None) -> None:
    if low >= 0 and (classes is None or high < classes):
        return
    expected = f"0..{classes - 1}, for there are {classes} classes" if classes else "0 and above"
    one_based = low == 1 and high == classes
    mend = "write labels - 1" if one_based else "number the classes from 0, and name all in `classes`"
    raise DataError(f"{what} span {low}..{high}; expected {expected}: {mend}")


def _count(classes: Any) -> int:
    names = isinstance(classes, (tuple, list)) and all(isinstance(name, str) for name in classes)
    if not names or len(classes) < 2:
        raise DataError(f"classes is {format_value(classes)}; expected two names or more: write ('cat', 'dog'), say")
    return len(classes)


def _statistic(what: str, value: Any, shape: Shape) -> None:
    mend = "write mean, std = jaxcnn.data.statistics(train.images)"
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.shape != shape:
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise DataError(f"{what} is {found}; expected float32 {shape}, of the train images: {mend}")
    if not ((value >= 0) & (value <= 1)).all():  # false for NaN
        raise DataError(f"{what} spans {value.min():.4g}..{value.max():.4g}; expected 0..1, of images / 255: {mend}")
