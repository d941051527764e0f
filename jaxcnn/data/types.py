"""Data sets as uint8 images, int32 labels, class names and exact statistics."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jaxcnn._util import format_arrays, format_fields, format_lines


class DataError(ValueError):
    """A missing or invalid data set; the message is one line."""


def one_line(error: BaseException, max_length: int = 400) -> str:
    """Format an error as one line.

    The line is the text of the error, or its type if it has no text.

    Args:
        error: any exception. Line breaks in its text become spaces.
        max_length: characters after which the text is cut.
    """
    return short(" ".join(str(error).split()), max_length) or type(error).__name__


def short(text: str, max_length: int = 80) -> str:
    """Cut a text of unknown length, so that a message stays readable.

    Example:
        >>> short("a" * 1_000_000, 5)
        'aaaaa...'
    """
    return text if len(text) <= max_length else text[:max_length] + "..."


def printable(text: str) -> str:
    r"""Replace terminal control characters and invalid text by escape sequences.

    Example:
        >>> printable("cat \x1b[31m")
        'cat \\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def map_labels(function: Callable[[Any], Any], labels: Any) -> Any:
    """Return labels with a function applied to each of their arrays."""
    if isinstance(labels, dict):
        return {name: map_labels(function, part) for name, part in labels.items()}
    if isinstance(labels, tuple):
        parts = [map_labels(function, part) for part in labels]
        return type(labels)(*parts) if hasattr(labels, "_fields") else tuple(parts)
    return function(labels)


def label_arrays(labels: Any, path: str = "labels") -> Iterator[tuple[str, Any]]:
    """Yield the arrays of labels, each with the expression that selects it.

    Example:
        >>> [path for path, _ in label_arrays({"box": 0, "heads": (1, 2)})]
        ["labels['box']", "labels['heads'][0]", "labels['heads'][1]"]
    """
    if isinstance(labels, dict):
        for name, part in sorted(labels.items(), key=lambda item: str(item[0])):
            yield from label_arrays(part, f"{path}[{name!r}]")
    elif isinstance(labels, tuple):
        for i, part in enumerate(labels):
            yield from label_arrays(part, f"{path}[{i}]")
    else:
        yield path, labels


def place_names(labels: Any) -> list[str]:
    """Return the keys of a dict of labels that by convention are places in the image.

    They are "boxes" (`jaxcnn.boxes`) and "keypoints" (`jaxcnn.keypoints`).

    Example:
        >>> place_names({"boxes": 0, "classes": 0})
        ['boxes']
    """
    return [key for key in ("boxes", "keypoints") if isinstance(labels, dict) and key in labels]


class Split(NamedTuple):
    """Images and labels of one split, in the same order.

    Attributes:
      images: uint8 [n, h, w, c].
      labels: labels of the images.

        - int32 [n], in 0 .. number of classes - 1.
        - Masks int32 [n, h, w], with a class for each pixel.
        - Shares of the classes, float32 [n, number of classes], with a sum of 1 for each image.
        - For other losses than those of classes, an array of numbers [n, ...], or a dict or tuple
          of such arrays (boxes, several heads).
    """

    images: np.ndarray
    labels: Any

    def __repr__(self) -> str:
        return format_fields(self)

    def take(self, index: Any) -> Split:
        """Return the examples of an index or a mask, as NumPy indexes arrays.

        Example:
            >>> split = Split(np.zeros((3, 1, 1, 1), np.uint8), {"x": np.arange(3)})
            >>> split.take(np.array([2, 0])).labels
            {'x': array([2, 0])}
        """
        return Split(self.images[index], map_labels(lambda array: array[index], self.labels))


class Scale(NamedTuple):
    """Resizing and cropping of images.

    Attributes:
        size: side of the square that is cropped, in pixels.
        resize: length of the shorter side before the crop.
        interpolation: "bilinear" or "bicubic".
    """

    size: int
    resize: int
    interpolation: str = "bilinear"


class Dataset(NamedTuple):
    """Three splits, with class names and the statistics that normalize the images.

    Only the training images enter the statistics.

    Attributes:
      name: name of the data set.
      train: training images and labels.
      validation: held-out training images. It has n = 0 until `hold_out` moves images to it.
      test: test images and labels.
      classes: class names, in the order of the labels.
      mean: float32 [h, w, c]: the mean training image, in 0..1.
      std: float32 [c]: standard deviation of each channel over all training pixels, in 0..1.
      scale: resizing by `image_folder`, which a run records. None is that of other data.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    scale: Scale | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def __repr__(self) -> str:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        try:
            width = max(len(f"{len(split.images):,}") for split in parts.values())
            lines = {name: _describe_split(split, width) for name, split in parts.items()}
            lines["classes"] = f"{len(self.classes)}: {shorten_names(self.classes)}"
            pixels = np.asarray(self.mean, np.float64).mean((0, 1))
            lines |= {"mean": _describe_numbers(pixels), "std": _describe_numbers(self.std)}
            return format_lines(f"Dataset {printable(short(str(self.name)))}", lines)
        # One that is not valid is shown too, as in the message about it.
        except Exception:
            return format_fields(self)


def _describe_split(split: Split, width: int) -> str:
    images, labels = split
    text = f"{len(images):>{width},} images"
    if not len(images):
        return text
    return f"{text}  {format_arrays(images)}  labels {format_arrays(labels)}"


def shorten_names(names: Sequence[Any]) -> str:
    """Return names on one line, at most six of them.

    Example:
        >>> shorten_names("abcdefgh")
        'a, b, c, d, ..., h'
    """
    texts = [printable(short(str(name), 20)) for name in names]
    return ", ".join(texts if len(texts) <= 6 else [*texts[:4], "...", texts[-1]])


def _describe_numbers(values: Any) -> str:
    texts = [f"{value:.4g}" for value in np.asarray(values).ravel()]
    return " ".join(texts if len(texts) <= 6 else [*texts[:4], "...", texts[-1]])


_STATISTICS_BYTES = 1 << 24
"""Bytes of images that are summed at a time, so that they stay in a core's cache."""


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean image and the standard deviation of each channel.

    Both are in 0..1. Sums are exact integers, and one division follows. The deviation is that of
    all pixels of a channel about their common mean. For CIFAR-10 it is 0.2470, 0.2435, 0.2616. The
    widely copied 0.2023, 0.1994, 0.2010 is the mean over images of each image's own deviation.

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
    # The sums of one chunk fit 32 bits: 1024 * 255**2 < 2**32.
    step = min(1024, max(1, _STATISTICS_BYTES // max(1, images[:1].nbytes)))

    def add(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        part_total, part_squares = np.zeros_like(total), np.zeros_like(squares)
        for first in range(start, stop, step):
            chunk = images[first : min(first + step, stop)]
            part_total += chunk.sum(axis=0, dtype=np.uint32)
            part_squares += np.square(chunk, dtype=np.uint16).sum(axis=0, dtype=np.uint32)
        return part_total, part_squares

    # Each thread holds a chunk and its own sums, whatever the number of images.
    count = min(8, os.cpu_count() or 1)
    bounds = np.linspace(0, len(images), count + 1).astype(int).tolist()
    with ThreadPoolExecutor(count, "jaxcnn-statistics") as pool:
        for part_total, part_squares in pool.map(add, bounds[:-1], bounds[1:]):
            total += part_total
            squares += part_squares
    mean = total / (255.0 * len(images))
    pixels = images[..., 0].size
    sums = zip(total.sum(axis=(0, 1)).tolist(), squares.sum(axis=(0, 1)).tolist(), strict=True)
    # n * sum(x^2) - sum(x)^2 in Python's integers, so that nothing cancels for any n.
    std = [math.sqrt(pixels * square - value * value) / (255.0 * pixels) for value, square in sums]
    return mean.astype(np.float32), np.array(std, np.float32)


def check(name: str, split: Split, shape: tuple[int, int, int], num_classes: int) -> None:
    """Check types, shapes and label range of a loaded split.

    Args:
        name: of the split, as messages show it.
        split: images and labels.
        shape: (h, w, c) that the images must have.
        num_classes: the number of classes.

    Raises:
        DataError: the images are not uint8 [n, *shape] with n > 0. Or the labels are not int32 [n]
            or [n, h, w] in 0..num_classes-1.
    """
    images, labels = split
    if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) == 0:
        raise DataError(
            f"{name} images are {images.dtype} {images.shape}; expected uint8 (n, *{shape}), n > 0"
        )
    if labels.dtype != np.int32 or labels.shape not in ((len(images),), images.shape[:3]):
        raise DataError(
            f"{name} labels are {labels.dtype} {labels.shape}; expected int32 ({len(images)},)"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"{name} labels span {labels.min()}..{labels.max()}; expected 0..{num_classes - 1}"
        )


def assemble(
    name: str, train: Split, test: Split, shape: tuple[int, int, int], classes: tuple[str, ...]
) -> Dataset:
    """Check both splits and add the statistics and an empty validation split.

    Raises:
        DataError: a split fails `check`.
    """
    check(f"{name}: train", train, shape, len(classes))
    check(f"{name}: test", test, shape, len(classes))
    empty = Split(np.zeros((0, *shape), np.uint8), np.zeros(0, np.int32))
    return Dataset(name, train, empty, test, classes, *channel_statistics(train.images))
