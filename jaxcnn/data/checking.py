"""Checks of a user's own arrays; an error names array and fix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxcnn.arguments import format_value
from jaxcnn.data.types import DataError, Dataset, Scale, Split, label_arrays

Shape = tuple[int, ...]

OWN_LOSS = (
    "a loss of your own where labels are not classes: loss=lambda outputs, batch: (losses, {})"
)
"""What to write for labels that the losses of the library do not take."""


def verify_dataset(data: Dataset, *, are_classes: bool | None = None) -> None:
    """Check all splits, class names and statistics of a data set.

    Only the training split must have images. Labels are read once (0.1 ms for 50,000). Pixels are
    read only to explain an error.

    Args:
        data: any value.
        are_classes: whether labels must be numbers of classes. Otherwise they are any arrays with
            an entry for each image. None requires classes if there are class names and the
            training labels look like classes (`look_like_classes`).

    Raises:
        DataError: one line that names the array and the fix.

    Example:
        >>> from jaxcnn.data import load_dataset
        >>> data = load_dataset("digits")
        >>> verify_dataset(data)
        >>> verify_dataset(data._replace(classes=("zero",)))
        Traceback (most recent call last):
        jaxcnn.data.types.DataError: classes is ('zero',); expected two names or more: write ...
    """
    if not isinstance(data, Dataset):
        raise DataError(
            f"data is a {type(data).__name__}; expected a jaxcnn.Dataset, as load_dataset() "
            "returns it"
        )
    _check_name(data.name)
    if data.scale is not None and not isinstance(data.scale, Scale):
        raise DataError(
            f"scale is {format_value(data.scale)}; expected None, or the scale that image_folder() "
            "returns. Write data._replace(scale=None)"
        )
    if are_classes is None:
        has_names = not isinstance(data.classes, tuple) or len(data.classes) > 0
        is_split = isinstance(data.train, Split)
        are_classes = has_names and (not is_split or look_like_classes(data.train.labels))
    if are_classes and isinstance(data.classes, (tuple, list)) and not data.classes:
        # Labels that are no classes have no names either; the reason is in the labels.
        verify_split("train", data.train)
    classes = _count_classes(data.classes) if are_classes else None
    _check_names_of(data.classes)
    verify_split("train", data.train, classes, are_classes=are_classes)
    shape = data.train.images.shape[1:]
    for name, split in (("validation", data.validation), ("test", data.test)):
        verify_split(name, split, classes, shape, may_be_empty=True, are_classes=are_classes)
    if not are_classes:
        _check_equal_kinds(data)
    labels = data.train.labels
    if are_classes and labels.dtype.kind != "f" and (labels == labels.flat[0]).all():
        raise DataError(
            f"train labels are all {labels.flat[0]}; expected two classes or more: shuffle before "
            "you cut, or write np.zeros(n, np.float32) for a loss that uses no labels"
        )
    _check_statistic("mean", data.mean, shape)
    _check_statistic("std", data.std, shape[-1:])


def verify_inputs(data: Any) -> None:
    """Check class names, training images and statistics of a data set.

    Labels are not read.

    Raises:
        DataError: `data` is no Dataset, or one of these is invalid.
    """
    if not isinstance(data, Dataset):
        raise DataError(
            f"data is a {type(data).__name__}; expected a jaxcnn.Dataset, as load_dataset() "
            "returns it"
        )
    if not isinstance(data.train, Split):
        raise DataError(
            f"train is a {type(data.train).__name__}; expected two arrays: write Split(images, "
            "labels)"
        )
    _check_name(data.name)
    verify_images("train images", data.train.images)
    _check_names_of(data.classes)
    for name, split in (("validation", data.validation), ("test", data.test)):
        if not isinstance(split, Split):
            raise DataError(
                f"{name} is a {type(split).__name__}; expected two arrays: write Split(images, "
                "labels)"
            )
    shape = data.train.images.shape[1:]
    _check_statistic("mean", data.mean, shape)
    _check_statistic("std", data.std, shape[-1:])


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise DataError(
            f"name is of type {type(name).__name__}; expected text: write name='fruit', say"
        )


def verify_split(
    name: str,
    split: Split,
    num_classes: int | None = None,
    shape: Shape | None = None,
    *,
    may_be_empty: bool = False,
    are_classes: bool = True,
) -> None:
    """Check the images and labels of one split.

    Args:
        name: of the split in the message, such as "train".
        split: images and labels.
        num_classes: the number of classes, if it is known.
        shape: (h, w, c) that the images must have, if it is known.
        may_be_empty: allow n = 0.
        are_classes: whether labels must be numbers of classes. Otherwise they are any arrays with
            an entry for each image.

    Raises:
        DataError: the images are not uint8 [n, h, w, c], or the labels are not int32 [n], or masks
            [n, h, w], in 0 .. num_classes - 1, or shares of the classes, float32 [n, num_classes].
    """
    if not isinstance(split, Split):
        fix = "data.test, say" if isinstance(split, Dataset) else "Split(images, labels)"
        raise DataError(f"{name} is a {type(split).__name__}; expected two arrays: write {fix}")
    verify_images(f"{name} images", split.images, shape, may_be_empty=may_be_empty)
    if are_classes:
        _check_labels(f"{name} labels", split.labels, split.images.shape[:3], num_classes)
    else:
        _check_arrays(name, split.labels, len(split.images))


def _check_equal_kinds(data: Dataset) -> None:
    """Check that the labels of all splits have the same names, shapes and dtypes."""
    kinds = {}
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        if name == "train" or len(split.images):
            kinds[name] = {
                path: (str(array.dtype), array.shape[1:])
                for path, array in label_arrays(split.labels)
            }
    for name, found in kinds.items():
        if found == kinds["train"]:
            continue
        path = min(
            path
            for path in found.keys() | kinds["train"].keys()
            if found.get(path) != kinds["train"].get(path)
        )
        ours, theirs = (
            f"{kind[0]} {kind[1]} for an image" if (kind := part.get(path)) else "missing"
            for part in (found, kinds["train"])
        )
        raise DataError(
            f"{name} {path} are {ours}, and those of train {theirs}; "
            "expected the same in all splits"
        )


def look_like_classes(labels: Any) -> bool:
    """Check if labels are one integer array [n] or [n, h, w] of more than 8 bits.

    `dataset` makes such arrays of classes. Floats, 8-bit integers and bools, arrays with other axes
    and trees of arrays are targets of another kind. A value that is no array may have been meant as
    classes, so that the message is about those.
    """
    if labels is None or isinstance(labels, (dict, tuple)):
        return False
    if not isinstance(labels, np.ndarray):
        return True
    is_small = labels.dtype.kind in "ub" and labels.dtype.itemsize == 1
    return labels.dtype.kind != "f" and not is_small and labels.ndim in (1, 3)


def _check_arrays(name: str, labels: Any, n: int) -> None:
    """Check that labels are arrays of numbers, or a tree of them, for n images."""
    if labels is None:
        raise DataError(
            f"{name} labels are None; expected an entry for each image: write "
            f"Split(images, np.zeros({n}, np.float32)) for a loss that uses none"
        )
    arrays = list(label_arrays(labels))
    if not arrays:
        raise DataError(
            f"{name} labels have no array; expected one with an entry for each image: "
            "write Split(images, {'box': boxes})"
        )
    for path, array in arrays:
        label = f"{name} {path}"
        _check_array(label, array, "float32")
        if isinstance(array, np.ma.MaskedArray):
            raise DataError(
                f"{label} are a masked array; expected all entries: write {path}.filled(0), "
                "and give the mask as another array"
            )
        if array.dtype.kind not in "fiub" or not array.dtype.isnative:
            raise DataError(
                f"{label} are {array.dtype}; expected bool, integers or floats: "
                f"write {path}.astype(np.float32)"
            )
        if array.dtype.itemsize > 4:
            raise DataError(
                f"{label} are {array.dtype}; expected numbers of at most 32 bits: "
                f"write {path}.astype(np.int32) for classes, or {path}.astype(np.float32)"
            )
        if array.shape[:1] != (n,):
            raise DataError(
                f"{label} have shape {array.shape}; expected ({n}, ...), an entry for each of the "
                f"{n} images"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            index = next(i for i, entry in enumerate(array) if not np.isfinite(entry).all())
            raise DataError(
                f"{label} have NaN or inf, the first in entry {index}; expected finite numbers: "
                "leave that image out, or mask the entry with a label of its own"
            )


def verify_images(
    name: str, images: Any, shape: Shape | None = None, *, may_be_empty: bool = False
) -> None:
    """Check that `images` is a NumPy array uint8 [n, h, w, c].

    Args:
        name: of the array in the message, such as "train images".
        images: any value.
        shape: (h, w, c) that the images must have, if it is known.
        may_be_empty: allow n = 0.

    Raises:
        DataError: `images` is anything else.
    """
    _check_array(name, images, "uint8")
    expected = "expected uint8 [n, h, w, c]"
    if fix := _layout_fix(images.shape):
        raise DataError(f"{name} have shape {images.shape}; {expected}: {fix}")
    if images.dtype != np.uint8:
        value_range, fix = _dtype_fix(images)
        raise DataError(f"{name} are {images.dtype}{value_range}; {expected} in 0..255: {fix}")
    if not len(images) and not may_be_empty:
        raise DataError(f"{name} are none at all; {expected}, n > 0: give at least one image")
    if shape is not None and images.shape[1:] != shape:
        raise DataError(
            f"{name} have shape {images.shape[1:]}; expected {shape}, as the train images: resize "
            "or crop them to that"
        )


def _check_array(name: str, value: Any, dtype: str) -> None:
    if not isinstance(value, np.ndarray):
        if isinstance(value, Dataset):
            code = "data.test.images, say"
        elif isinstance(value, Split):
            code = "split.images"
        elif isinstance(value, (list, tuple)):
            code = f"np.array(..., np.{dtype})"
        else:
            code = "np.asarray(...)"
        raise DataError(
            f"{name} are of type {type(value).__name__}; expected a NumPy array: write {code}"
        )
    if value.dtype.hasobject:
        raise DataError(
            f"{name} are an array of objects; expected {dtype}: make all of one shape, then "
            "np.stack them"
        )


def _layout_fix(shape: Shape) -> str:
    """Return code that makes a shape [n, h, w, c], or ""."""
    if len(shape) == 4:
        first, last = shape[1], shape[2:]
        # No image is 3 pixels high and 5 or more channels deep. An image may be one pixel high,
        # but not if the transposed one would be square.
        if (first == 3 and min(last) > 4) or (first == 1 and last[0] == last[1] > 4):
            return "channels come last, write images.transpose(0, 2, 3, 1)"
        return "" if min(shape[1:]) else "give images of at least one pixel"
    if len(shape) == 3:
        if shape[-1] in (1, 3):
            return "write images[None] for one image"
        return "write images[..., None] for gray ones"
    side = math.isqrt(shape[-1]) if shape else 0
    if len(shape) == 2 and side**2 == shape[1]:
        return f"write images.reshape(-1, {side}, {side}, 1)"
    return "reshape them"


def _dtype_fix(images: np.ndarray) -> tuple[str, str]:
    """Return the value range of images, and code that makes them uint8.

    The range is "" where it does not matter for the fix.
    """
    if images.dtype == bool:
        return "", "write images * np.uint8(255)"
    if images.dtype.kind not in "iuf" or not images.size:
        return "", "write images.astype(np.uint8)"
    low, high = float(images.min()), float(images.max())
    # One NaN or infinity makes this difference NaN or infinite.
    if not math.isfinite(high - low):
        index = next(i for i, image in enumerate(images) if not np.isfinite(image).all())
        return (
            f" with NaN pixels or inf, the first in image {index}",
            "fix that image, or leave it out",
        )
    value_range = f" in {low:.5g}..{high:.5g}"
    if low >= 0 and high <= 1 and images.dtype.kind == "f":
        return value_range, "write (images * 255).round().astype(np.uint8)"
    if low >= 0 and high <= 255:
        return value_range, "write images.round().astype(np.uint8)"
    if low < 0:
        return (
            value_range,
            "give them as they were before they were normalized; the config says what is "
            "subtracted",
        )
    return value_range, "scale them to 0..255, then write images.round().astype(np.uint8)"


def _check_labels(name: str, labels: Any, mask_shape: Shape, num_classes: int | None) -> None:
    """Check labels int32 [n], or masks of `mask_shape`, (n, h, w)."""
    if isinstance(labels, (dict, tuple)):
        raise DataError(
            f"{name} are a {type(labels).__name__} of {len(labels)}; expected int32 "
            f"({mask_shape[0]},), one class for each image: write a loss of your own for them, "
            "loss=lambda outputs, batch: (losses, {})"
        )
    _check_array(name, labels, "int32")
    n = mask_shape[0]
    if labels.dtype == np.float32 and labels.ndim == 2 and len(labels) == n:
        _check_shares(name, labels, num_classes, mask_shape)
        return
    if labels.shape not in ((n,), mask_shape):
        masks = f", or masks {mask_shape}, one for each pixel" if labels.ndim > 2 else ""
        raise DataError(
            f"{name} have shape {labels.shape}; expected ({n},), one for each image{masks}: "
            f"{_label_shape_fix(labels, mask_shape)}"
        )
    kind = labels.dtype.kind
    if kind in "iu" and n:
        _check_range(name, int(labels.min()), int(labels.max()), num_classes)
    if labels.dtype == np.int32:
        return
    fix = "write labels.astype(np.int32)"
    # NaN is a fraction here too, as it is not equal to itself.
    if kind == "f" and (fractions := labels[labels != np.floor(labels)]).size:
        number = f"{fractions[0]:.4g}"
        fix = f"{number} is the number of no class, so number them from 0, or write {OWN_LOSS}"
    elif kind in "US":
        fix = "write np.unique(labels, return_inverse=True)[1].astype(np.int32)"
    raise DataError(f"{name} are {labels.dtype}; expected int32: {fix}")


def _check_shares(
    name: str, labels: np.ndarray, num_classes: int | None, mask_shape: Shape
) -> None:
    """Check that labels are shares of the classes, with a sum of 1 in each row."""
    if num_classes is not None and labels.shape[1] != num_classes:
        raise DataError(
            f"{name} have shape {labels.shape}; expected ({len(labels)}, {num_classes}), a share "
            "of each class, or one class for each image: "
            f"{_label_shape_fix(labels, mask_shape)}"
        )
    # The comparison is false for NaN.
    valid = (labels >= 0).all(1) & (np.abs(labels.sum(1) - 1) < 1e-3)
    if not valid.all():
        # Numbers between 0 and 1 are rather targets of a regression than labels.
        are_labels = np.isin(labels, (0, 1)).all()
        own = "lambda outputs, batch: (jnp.square(outputs - batch.labels).mean(-1), {})"
        fix = "'binary-cross-entropy' for several labels of an image" if are_labels else own
        raise DataError(
            f"{name} are float32 {labels.shape}, but row {int(valid.argmin())} has no shares of "
            f"the classes; expected numbers from 0 with a sum of 1: write loss={fix}"
        )


def _label_shape_fix(labels: np.ndarray, mask_shape: Shape) -> str:
    """Return the code that makes labels [n], or masks of `mask_shape`."""
    n, h, w = mask_shape
    if labels.ndim == 4 and len(labels) == n:
        return "write labels.argmax(-1).astype(np.int32) if they are one-hot masks"
    if labels.shape == (n, w, h):
        return "write labels.transpose(0, 2, 1) if rows and columns are exchanged"
    if labels.ndim == 3 and len(labels) == n and min(labels.shape[1:]) > 1:
        rows, columns = labels.shape[1:]
        if h % rows or w % columns:
            return f"resize the masks to {h}x{w} pixels, as the images, without interpolation"
        return f"write labels.repeat({h // rows}, 1).repeat({w // columns}, 2)"
    if labels.shape == (n, 1):
        return "write labels[:, 0]"
    if labels.ndim == 2 and len(labels) == n:
        if labels.dtype.kind in "iu" and not np.isin(labels, (0, 1)).all():
            return "write loss='ctc' if they are sequences, padded with -1"
        if (labels.sum(1) != 1).any():
            return "write loss='binary-cross-entropy' for several labels of an image"
        return "write labels.argmax(1).astype(np.int32) if they are one-hot"
    return f"there are {n} images"


def _check_range(name: str, low: int, high: int, num_classes: int | None) -> None:
    """Check that labels span at most 0 .. num_classes - 1."""
    if low >= 0 and (num_classes is None or high < num_classes):
        return
    expected = (
        f"0..{num_classes - 1}, for there are {num_classes} classes"
        if num_classes
        else "0 and above"
    )
    one_based = low == 1 and high == num_classes
    fix = (
        "write labels - 1" if one_based else "number the classes from 0, and name all in `classes`"
    )
    raise DataError(f"{name} span {low}..{high}; expected {expected}: {fix}")


def _check_names_of(classes: Any) -> None:
    """Check that class names are text in a sequence, which may be empty."""
    valid = isinstance(classes, (tuple, list)) and all(isinstance(name, str) for name in classes)
    if not valid:
        raise DataError(
            f"classes is {format_value(classes)}; expected names: write ('cat', 'dog'), or () "
            "where labels are not classes"
        )


def _count_classes(classes: Any) -> int:
    """Check class names and return their number."""
    valid = isinstance(classes, (tuple, list)) and all(isinstance(name, str) for name in classes)
    if not valid or len(classes) < 2:
        raise class_names_error(classes, OWN_LOSS)
    return len(classes)


def class_names_error(classes: Any, alternative: str) -> DataError:
    """Return the error for what are not two names of classes or more.

    Args:
        classes: any value.
        alternative: what to write instead where there are no names.
    """
    is_empty = isinstance(classes, (tuple, list)) and not classes
    end = f", or {alternative}" if is_empty else ", say"
    return DataError(
        f"classes is {format_value(classes)}; expected two names or more: write ('cat', 'dog'){end}"
    )


def _check_statistic(name: str, value: Any, shape: Shape) -> None:
    """Check that a statistic is float32 of this shape, in 0..1."""
    fix = "write mean, std = jaxcnn.data.channel_statistics(train.images)"
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.shape != shape:
        actual = (
            f"{value.dtype} {value.shape}"
            if isinstance(value, np.ndarray)
            else f"a {type(value).__name__}"
        )
        raise DataError(f"{name} is {actual}; expected float32 {shape}, of the train images: {fix}")
    # The comparison is false for NaN.
    if not ((value >= 0) & (value <= 1)).all():
        raise DataError(
            f"{name} spans {value.min():.4g}..{value.max():.4g}; expected 0..1, of images / 255: "
            f"{fix}"
        )
