"""Parts of a data set: images held out for choosing a recipe, and fewer images to learn from."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxcnn.arguments import format_value
from jaxcnn.data.checking import verify_dataset
from jaxcnn.data.types import DataError, Dataset, Split, channel_statistics


def hold_out(data: Dataset, n: int, seed: int) -> Dataset:
    """Move `n` random training images to the validation split, as in the 45,000 / 5,000 split of CIFAR-10.

    Both parts keep their order, and mean and std are those of the images left for training.

    Args:
        data: a data set whose validation split is empty.
        n: how many images to move; 0 changes nothing.
        seed: of the choice; the same seed chooses the same images.

    Raises:
        DataError: n is not an integer in 0 .. len(train) - 1, seed is negative, images are already held out, or `data`
            is none that `verify` lets pass.

    Example:
        >>> from jaxcnn.data import load_dataset
        >>> data = hold_out(load_dataset("digits"), 200, seed=0)
        >>> len(data.train.labels), len(data.validation.labels), len(data.test.labels)
        (1237, 200, 360)

    References:
        He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2 (the 45k/5k split).
    """
    verify_dataset(data)
    total = len(data.train.labels)
    if not _whole(n) or not 0 <= n < total:
        raise DataError(
            f"cannot hold out {format_value(n)} images; expected an integer in 0..{total - 1}, fewer than are in train"
        )
    _seed(seed)
    if n == 0:
        return data
    if held := len(data.validation.labels):
        raise DataError(f"{held} images are held out already; hold out once, from the data set as load() gives it")
    held_out = np.zeros(total, bool)
    held_out[np.random.default_rng(seed).permutation(total)[:n]] = True
    validation, train = (Split(data.train.images[mask], data.train.labels[mask]) for mask in (held_out, ~held_out))
    mean, std = channel_statistics(train.images)
    return data._replace(train=train, validation=validation, mean=mean, std=std)


def subset(data: Dataset, n: int, seed: int) -> Dataset:
    """Keep `n` random training images, as many of each class as of any other (give or take one); for learning from few.

    Mean and std are those of the images kept; their order stays, and so do the other splits.

    Args:
        data: a data set.
        n: how many training images to keep.
        seed: of the choice; the same seed chooses the same images, and fewer are a part of more.

    Raises:
        DataError: n is not an integer in 1 .. len(train), seed is negative, a class has too few images for its share, or
            `data` is none that `verify` lets pass.

    Example:
        >>> from jaxcnn.data import load_dataset
        >>> few = subset(load_dataset("digits"), 30, seed=0)
        >>> np.bincount(few.train.labels).tolist()
        [3, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    """
    verify_dataset(data)
    labels, total = data.train.labels, len(data.train.labels)
    if not _whole(n) or not 1 <= n <= total:
        raise DataError(
            f"cannot keep {format_value(n)} training images; expected an integer in 1..{total}, the images there are"
        )
    _seed(seed)
    order = np.random.default_rng(seed).permutation(total)
    # The k-th image of each class comes before the k+1st of any: the first n are as even as can be.
    rank = np.empty(total, np.int64)
    for label in range(len(data.classes)):
        mine = order[labels[order] == label]
        rank[mine] = np.arange(len(mine))
    keep = np.sort(order[np.argsort(rank[order], kind="stable")][:n])
    if n < total and (short := np.bincount(labels[keep], minlength=len(data.classes)).min()) < n // len(data.classes):
        raise DataError(
            f"a class has only {short} images, fewer than its share of {n}; keep {short * len(data.classes)}"
        )
    train = Split(data.train.images[keep], labels[keep])
    mean, std = channel_statistics(train.images)
    return data._replace(train=train, mean=mean, std=std)


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _seed(seed: Any) -> None:
    if not _whole(seed) or seed < 0:
        raise DataError(f"seed is {format_value(seed)}; expected an integer >= 0: write seed=0")
