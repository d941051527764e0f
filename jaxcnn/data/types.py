"""What a data set is: uint8 images, int32 labels, class names, and exact statistics of the training images."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class DataError(ValueError):
    """A data set cannot be had, or is not what it should be; the message is one line."""


def one_line(error: BaseException, most: int = 400) -> str:
    """Say an error in one line: the start of its text with the line breaks taken out, or its type where it has none."""
    return short(" ".join(str(error).split()), most) or type(error).__name__


def short(text: str, most: int = 80) -> str:
    """Cut a text that somebody else wrote, so that a message stays one that can be read.

    Example:
        >>> short("a" * 1_000_000, 5)
        'aaaaa...'
    """
    return text if len(text) <= most else text[:most] + "..."


def printable(text: str) -> str:
    r"""Write characters that a terminal would obey, or that are no text, as escapes.

    Example:
        >>> printable("cat \x1b[31m")
        'cat \\x1b[31m'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Split(NamedTuple):
    """Images and their labels, example by example."""

    images: np.ndarray  # uint8 [n, h, w, c]
    labels: np.ndarray  # int32 [n], 0 .. number of classes - 1; or masks [n, h, w], a class for each pixel


class Dataset(NamedTuple):
    """A data set with the statistics that normalise it; only training images enter the statistics."""

    name: str
    train: Split
    validation: Split  # n = 0 until `hold_out` moves images here
    test: Split
    classes: tuple[str, ...]
    mean: np.ndarray  # float32 [h, w, c]: the mean training image, in 0..1
    std: np.ndarray  # float32 [c]: the standard deviation of a channel over all pixels of the training images, in 0..1


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the mean image and the standard deviation of each channel, in 0..1, with integers and one division.

    The deviation is that of all the pixels of a channel about their common mean: 0.2470, 0.2435, 0.2616 for CIFAR-10.
    The widely copied 0.2023, 0.1994, 0.2010 is a different number, the mean over images of each image's own deviation.

    Args:
        images: uint8 [n, h, w, c], n > 0.

    Returns:
        mean: float32 [h, w, c]; std: float32 [c].

    Example:
        >>> mean, std = channel_statistics(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1))
        >>> mean.item(), std.item()
        (0.5, 0.5)
    """
    total = np.zeros(images.shape[1:], np.uint64)
    squares = np.zeros(images.shape[1:], np.uint64)
    for start in range(0, len(images), 1024):  # 1024 * 255**2 fits 32 bits
        part = images[start : start + 1024]
        total += part.sum(axis=0, dtype=np.uint32)
        squares += np.square(part, dtype=np.uint16).sum(axis=0, dtype=np.uint32)
    mean = total / (255.0 * len(images))
    pixels = images[..., 0].size
    sums = zip(total.sum(axis=(0, 1)).tolist(), squares.sum(axis=(0, 1)).tolist(), strict=True)
    # n * sum(x^2) - sum(x)^2 in Python's integers: nothing cancels, whatever n is
    std = [math.sqrt(pixels * square - value * value) / (255.0 * pixels) for value, square in sums]
    return mean.astype(np.float32), np.array(std, np.float32)


def check(what: str, split: Split, shape: tuple[int, int, int], classes: int) -> None:
    """Raise DataError unless `split` is uint8 [n, *shape] images, n > 0, and int32 labels [n] or [n, h, w] in 0..classes-1."""
    images, labels = split
    if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) == 0:
        raise DataError(f"{what} images are {images.dtype} {images.shape}; expected uint8 (n, *{shape}), n > 0")
    if labels.dtype != np.int32 or labels.shape not in ((len(images),), images.shape[:3]):
        raise DataError(f"{what} labels are {labels.dtype} {labels.shape}; expected int32 ({len(images)},)")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{what} labels span {labels.min()}..{labels.max()}; expected 0..{classes - 1}")


def assemble(name: str, train: Split, test: Split, shape: tuple[int, int, int], classes: tuple[str, ...]) -> Dataset:
    """Check both splits (DataError) and add the statistics; the validation split is empty."""
    check(f"{name}: train", train, shape, len(classes))
    check(f"{name}: test", test, shape, len(classes))
    empty = Split(np.zeros((0, *shape), np.uint8), np.zeros(0, np.int32))
    return Dataset(name, train, empty, test, classes, *channel_statistics(train.images))
