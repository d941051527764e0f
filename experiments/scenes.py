"""Scenes with an exact truth: digits cut out of one photograph, on another.

Their shape, place and class are known to the pixel. `experiments.segmentation` and
`experiments.detection` train on them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import jaxcnn as jc
from jaxcnn.config import check_choice

OBJECTS = ("digits", "mnist", "fashion_mnist")
"""Data sets of bright objects on black."""
MAX_OBJECTS = 3
"""Most digits of a scene with several."""


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


def scene_of_several(
    digits: jc.Split,
    index: np.ndarray,
    textures: np.ndarray,
    rng: np.random.Generator,
    side: int,
    sizes: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return a scene of several digits whose boxes do not overlap, and its truth.

    A digit that has no free place after 20 trials is left out. The first always has one.

    Args:
      digits: images [n, h, w, 1] and their classes.
      index: the digits of the scene, at most `MAX_OBJECTS`.
      textures: uint8 [2, h, w, 3]: of the background, and of the digits.
      rng: draws sizes, places and patches.
      side: height and width of the scene, pixels.
      sizes: least and greatest side of the square that a digit is resized to.

    Returns:
      The scene uint8 [side, side, 3]; the boxes float32 [MAX_OBJECTS, 4] around the digits' pixels,
      as in `jaxcnn.boxes`; the classes int32 [MAX_OBJECTS], with -1 where there is no digit; and
      the instances uint8 [side, side], 0 for background and i + 1 for the digit in row i.
    """
    image = patch(textures[0], rng, side, 3)
    boxes, classes = np.zeros((MAX_OBJECTS, 4), np.float32), np.full(MAX_OBJECTS, -1, np.int32)
    instances = np.zeros((side, side), np.uint8)
    row = 0
    for i in index:
        size = int(rng.integers(sizes[0], sizes[1] + 1))
        shape = resized_shape(digits.images[i, ..., 0], size)
        ink = patch(textures[1], rng, side, 3)
        x1, y1, x2, y2 = bounding_box(shape)
        shape = shape[y1:y2, x1:x2]
        height, width = shape.shape
        for _ in range(20):
            y, x = (int(rng.integers(0, side - length + 1)) for length in shape.shape)
            box = slice(y, y + height), slice(x, x + width)
            if not any(_overlap(boxes[j], (x, y, x + width, y + height)) for j in range(row)):
                image = image.copy()
                image[box][shape] = ink[box][shape]
                instances[box][shape] = row + 1
                boxes[row] = x, y, x + width, y + height
                classes[row] = digits.labels[i]
                row += 1
                break
    return image, boxes, classes, instances


def _overlap(a, b) -> bool:
    return bool(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


def compose_several(
    digits: jc.Split,
    n: int,
    textures: np.ndarray,
    seed: int,
    side: int,
    sizes: tuple[int, int],
) -> jc.Split:
    """Return `n` scenes, each with one to `MAX_OBJECTS` digits drawn at random.

    Returns:
      Images uint8 [n, side, side, 3], and as labels a dict of `boxes`, `classes` and `instances`
      as in `scene_of_several`, each with a first axis of n.
    """
    rng = np.random.default_rng(seed)
    scenes = []
    for _ in range(n):
        index = rng.integers(0, len(digits.labels), int(rng.integers(1, MAX_OBJECTS + 1)))
        scenes.append(scene_of_several(digits, index, textures, rng, side, sizes))
    images, boxes, classes, instances = (np.stack(arrays) for arrays in zip(*scenes, strict=True))
    return jc.Split(images, {"boxes": boxes, "classes": classes, "instances": instances})
