"""Scenes of several digits, whose boxes and instances are known to the pixel."""

from __future__ import annotations

import numpy as np

import jaxcnn as jc
from experiments.scenes.parts import bounding_box, patch, resized_shape

MAX_OBJECTS = 3
"""Most digits of a scene with several."""


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
