"""Held-out splits, training subsets, and splits of an image folder."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.arguments import format_value, is_integer
from jaxcnn.data.checking import look_like_classes, verify_dataset
from jaxcnn.data.types import DataError, Dataset, channel_statistics, printable

SPLITS = ("train", "validation", "test")
"""Names of the splits of a `Dataset`, in order."""


def hold_out(data: Dataset, n: int, seed: int) -> Dataset:
    """Move `n` random training images to the validation split.

    An example is the 45,000 / 5,000 split of CIFAR-10. Both parts keep their order. The mean and
    the standard deviation become those of the remaining training images.

    Args:
        data: a data set whose validation split is empty.
        n: the number of images to move; 0 changes nothing.
        seed: of the random selection; the same seed selects the same images.

    Returns:
        The data set with new training and validation splits and new statistics.

    Raises:
        DataError: n is not an integer in 0 .. len(train) - 1, seed is negative, images are already
            held out, or `data` fails `verify_dataset`.

    Example:
        >>> from jaxcnn.data import load_dataset
        >>> data = hold_out(load_dataset("digits"), 200, seed=0)
        >>> len(data.train.labels), len(data.validation.labels), len(data.test.labels)
        (1237, 200, 360)

    References:
        He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2 (the 45k/5k
        split).
    """
    verify_dataset(data)
    total = len(data.train.images)
    if not is_integer(n) or not 0 <= n < total:
        raise DataError(
            f"cannot hold out {format_value(n)} images; expected an integer in 0..{total - 1}, "
            "fewer than are in train"
        )
    _check_seed(seed)
    if n == 0:
        return data
    if num_validation := len(data.validation.images):
        raise DataError(
            f"{num_validation} images are held out already; hold out once, from the data set as "
            "load_dataset() returns it"
        )
    selected = np.zeros(total, bool)
    selected[np.random.default_rng(seed).permutation(total)[:n]] = True
    validation, train = data.train.take(selected), data.train.take(~selected)
    mean, std = channel_statistics(train.images)
    return data._replace(train=train, validation=validation, mean=mean, std=std)


def subset(data: Dataset, n: int, seed: int) -> Dataset:
    """Select `n` random training images, balanced over the classes.

    The numbers of images of any two classes differ by at most one. If the labels are masks or no
    classes, the images are random. The images keep their order, and the other splits do not change.
    The mean and the standard deviation become those of the subset.

    Args:
        data: a data set.
        n: the number of training images to select.
        seed: of the random selection. The same seed selects the same images, and a smaller subset
            is part of a larger one.

    Returns:
        The data set with a new training split and new statistics.

    Raises:
        DataError: n is not an integer in 1 .. len(train), seed is negative, a class has too few
            images for its share, or `data` fails `verify_dataset`.

    Example:
        >>> from jaxcnn.data import load_dataset
        >>> small = subset(load_dataset("digits"), 30, seed=0)
        >>> np.bincount(small.train.labels).tolist()
        [3, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    """
    verify_dataset(data)
    labels, total = data.train.labels, len(data.train.images)
    if not is_integer(n) or not 1 <= n <= total:
        raise DataError(
            f"cannot keep {format_value(n)} training images; expected an integer in 1..{total}, "
            "the images there are"
        )
    _check_seed(seed)
    order = np.random.default_rng(seed).permutation(total)
    if not data.num_classes or not look_like_classes(labels) or labels.ndim > 1:
        return _with_train(data, np.sort(order[:n]))
    # The k-th image of each class precedes the (k+1)-th of any class, so that every prefix of the
    # sorted order is as balanced as possible.
    rank = np.empty(total, np.int64)
    for label in range(data.num_classes):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    indices = np.sort(order[np.argsort(rank[order], kind="stable")][:n])
    if (
        n < total
        and (smallest := np.bincount(labels[indices], minlength=data.num_classes).min())
        < n // data.num_classes
    ):
        raise DataError(
            f"a class has only {smallest} images, fewer than its share of {n}; keep "
            f"{smallest * data.num_classes}"
        )
    return _with_train(data, indices)


def _with_train(data: Dataset, indices: np.ndarray) -> Dataset:
    train = data.train.take(indices)
    mean, std = channel_statistics(train.images)
    return data._replace(train=train, mean=mean, std=std)


def _check_seed(seed: Any) -> None:
    if not is_integer(seed) or seed < 0:
        raise DataError(f"seed is {format_value(seed)}; expected an integer >= 0: write seed=0")


# Splits of an image folder: by directories, or by a seeded selection within each class.


class ImageFile(NamedTuple):
    """An image file in a folder.

    Attributes:
      name: path of the file relative to the folder, with "/".
      split: one of `SPLITS`, or "" where the folder has no directories of splits.
      label: index of the class.
    """

    name: str
    split: str
    label: int


class SplitFractions(NamedTuple):
    """Fractions of each class's training images for splits without a directory.

    Attributes:
      validation: fraction for validation, in 0..1.
      test: fraction for testing, in 0..1.
      seed: seed of the draw.
    """

    validation: float
    test: float
    seed: int


def check_fractions(validation: Any, test: Any, seed: Any) -> SplitFractions:
    """Check the options that split an image folder.

    Raises:
        DataError: a fraction or the seed is out of range, or no training images would remain.
    """
    for name, value in (("validation", validation), ("test", test)):
        valid = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
        if not valid:
            expected = "expected a share of each class, at least 0 and below 1"
            raise DataError(f"{name} is {format_value(value)}; {expected}: write {name}=0.2")
    if validation + test >= 1:
        raise DataError(
            f"validation and test are {validation} and {test}, which leaves nothing; expected less "
            "than 1"
        )
    if type(seed) is not int or seed < 0:
        raise DataError(f"seed is {format_value(seed)}; expected an integer >= 0: write seed=0")
    return SplitFractions(float(validation), float(test), seed)


def assign_splits(
    files: Sequence[ImageFile], classes: Sequence[str], fractions: SplitFractions
) -> list[ImageFile]:
    """Assign a split to every file, and sort by split and name.

    A fraction is not used where the folder has a directory for that split. Files are selected in
    the order of the SHA-256 of the seed and their name. So an added or removed file moves few
    others.

    Raises:
        DataError: a class has too few images for one in each split.
    """
    directories = {file.split for file in files}
    missing = {
        split: getattr(fractions, split)
        for split in ("test", "validation")
        if split not in directories
    }
    by_label: dict[int, list[ImageFile]] = defaultdict(list)
    for file in files:
        if file.split in ("", "train"):
            by_label[file.label].append(file._replace(split="train"))
    assigned = [file for file in files if file.split not in ("", "train")]
    too_small = {}
    for label in range(len(classes)):
        remaining = sorted(by_label[label], key=lambda file: _hash_rank(fractions.seed, file.name))
        counts = {
            split: max(1, round(fraction * len(remaining)))
            for split, fraction in missing.items()
            if fraction
        }
        if len(remaining) <= sum(counts.values()):
            too_small[classes[label]] = len(remaining), 1 + len(counts)
        for split, count in counts.items():
            assigned += [file._replace(split=split) for file in remaining[:count]]
            remaining = remaining[count:]
        assigned += remaining
    if too_small:
        name, (n, minimum) = next(iter(too_small.items()))
        others = (
            f", and {len(too_small) - 1} more classes have too few" if len(too_small) > 1 else ""
        )
        raise DataError(
            f"class {name} has {n} image{'s' * (n != 1)} to train on{others}; "
            f"expected at least {minimum}, to give one to each part: "
            "add some, or leave the class out"
        )
    return sorted(assigned, key=lambda file: (SPLITS.index(file.split), file.name))


def _hash_rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).hexdigest()


def duplicate_warnings(files: Sequence[ImageFile], digests: Sequence[str]) -> list[str]:
    """Return warnings about equal files in two splits or in two classes.

    Args:
        files: n image files.
        digests: the SHA-256 of each file.
    """
    by_digest: dict[str, list[ImageFile]] = defaultdict(list)
    for file, digest in zip(files, digests, strict=True):
        by_digest[digest].append(file)
    messages = []
    for place, field, reason in (
        (
            "in two parts",
            "split",
            "the network trains on what it is tested with",
        ),
        ("in two classes", "label", "one of them is wrong"),
    ):
        duplicates = [
            group
            for group in by_digest.values()
            if len({getattr(file, field) for file in group}) > 1
        ]
        if duplicates:
            names = " and ".join(printable(file.name) for file in duplicates[0][:3])
            count = f"{len(duplicates)} image{'s are' if len(duplicates) > 1 else ' is'}"
            messages.append(f"{count} {place} with the same bytes, the first {names}: {reason}")
    return messages
