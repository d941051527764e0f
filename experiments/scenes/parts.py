"""What scenes of all kinds are made of: textures, shapes, and a data set of scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import jaxcnn as jc
from jaxcnn.config import check_choice
from jaxcnn.data import channel_statistics

OBJECTS = ("digits", "mnist", "fashion_mnist")
"""Data sets of bright objects on black."""


def load_objects(name: str, data_dir: Path | None) -> jc.Dataset:
    """Return the gray images that are cut out.

    Raises:
      ArgumentError: for a data set of other images.
    """
    check_choice("dataset", name, OBJECTS)
    return jc.load_dataset(name, data_dir)


def photographs() -> tuple[np.ndarray, np.ndarray]:
    """Return textures to train on and to test on.

    Returns:
      Upper and lower halves of two photographs, each uint8 [2, h, w, 3].
    """
    from sklearn.datasets import load_sample_images

    halves = (np.array_split(np.asarray(image)[:426], 2) for image in load_sample_images().images)
    upper, lower = zip(*halves, strict=True)
    return np.stack(upper), np.stack(lower)


def patch(
    texture: np.ndarray, rng: np.random.Generator, side: int, max_zoom: int = 4
) -> np.ndarray:
    """Return a random patch of a texture, uint8 [side, side, 3].

    It is a square of one to `max_zoom` times `side`, mirrored or not, and resized.

    Args:
      texture: uint8 [h, w, 3], at least as large as the largest square.
      rng: draws the square.
      side: height and width of the patch, pixels.
      max_zoom: side of the largest square, in sides of the patch.
    """
    length = int(rng.integers(side, max_zoom * side + 1))
    y, x = (int(rng.integers(0, limit - length + 1)) for limit in texture.shape[:2])
    square = texture[y : y + length, x : x + length][:, :: int(rng.choice([-1, 1]))]
    image = Image.fromarray(np.ascontiguousarray(square))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def resized_shape(digit: np.ndarray, size: int) -> np.ndarray:
    """Return the pixels of a digit at a size, bool [size, size], of which at least one is set.

    Args:
      digit: uint8 [h, w], bright on dark.
      size: height and width of the result, pixels.
    """
    resized = np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC))
    shape = resized > 127
    # Clothes of Fashion-MNIST may be dark, and thin lines vanish where they get smaller.
    return shape if shape.any() else resized >= resized.max() / 2


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the edges (x1, y1, x2, y2) of a mask's pixels, which are at least one.

    Args:
      mask: bool [h, w].

    Example:
      >>> bounding_box(np.eye(3, dtype=bool)[:, 1:])
      (0, 1, 2, 3)
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def scene_data(name: str, train: jc.Split, test: jc.Split, classes: tuple[str, ...]) -> jc.Dataset:
    """Return the data set of scenes, which has no validation scenes."""
    statistics = channel_statistics(train.images)
    return jc.Dataset(name, train, train.take(slice(0)), test, classes, *statistics)
