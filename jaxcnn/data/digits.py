"""The digits inside scikit-learn: 1,797 real images of 8x8 pixels, which need no download."""

from __future__ import annotations

import numpy as np

from jaxcnn.data.types import Split


def digits() -> tuple[Split, Split]:
    """Read scikit-learn's digits as 1,437 training and 360 test images, uint8 [n, 8, 8, 1].

    The grey levels 0..16 become round(level * 255 / 16), in integers: 17 values from 0 to 255, each level its own.
    The split is always the same: shuffled once with seed 0, sorted by class, every fifth image is for testing,
    so every class gives a fifth of its images, to within one.

    Example:
        >>> train, test = digits()
        >>> train.images.shape, test.images.shape
        ((1437, 8, 8, 1), (360, 8, 8, 1))

    References:
        Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1995 (its test part).
    """
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    images = ((levels.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    test = np.zeros(len(labels), bool)
    test[order[::5]] = True
    return Split(images[~test], labels[~test]), Split(images[test], labels[test])
