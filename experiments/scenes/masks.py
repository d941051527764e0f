"""Scenes of one digit, whose pixels are known."""

from __future__ import annotations

import numpy as np

import jaxcnn as jc
from experiments.scenes.parts import patch, resized_shape

SIDE = 32
"""Height and width of a scene, pixels."""


def scene(
    digit: np.ndarray, label: int, textures: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a scene and its mask.

    Args:
      digit: uint8 [h, w], bright on dark.
      label: class of the digit.
      textures: uint8 [2, h, w, 3], from which the background's and the digit's patches are cut.
      rng: draws size (5/8 to the whole of the scene), place and patches.

    Returns:
      Scene uint8 [SIDE, SIDE, 3], and mask int32 [SIDE, SIDE]. In the mask 0 is background, and a
      digit d is d + 1.
    """
    size = int(rng.integers(SIDE * 5 // 8, SIDE + 1))
    shape = resized_shape(digit, size)
    mask = np.zeros((SIDE, SIDE), bool)
    y, x = rng.integers(0, SIDE - size + 1, 2)
    mask[y : y + size, x : x + size] = shape
    background, ink = (patch(texture, rng, SIDE) for texture in textures)
    return np.where(mask[..., None], ink, background), mask * np.int32(label + 1)


def compose(digits: jc.Split, n: int, textures: np.ndarray, seed: int) -> jc.Split:
    """Return `n` scenes of digits in a random order.

    Digits are repeated where there are fewer than `n`.

    Returns:
      Images uint8 [n, SIDE, SIDE, 3], and masks int32 [n, SIDE, SIDE] as labels.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.arange(n) % len(digits.labels))
    pairs = [scene(digits.images[i, ..., 0], int(digits.labels[i]), textures, rng) for i in order]
    images, masks = zip(*pairs, strict=True)
    return jc.Split(np.stack(images), np.stack(masks))
