"""Scenes of digits before a wall, whose depth is known at each pixel."""

from __future__ import annotations

import math

import numpy as np

import jaxcnn as jc
from experiments.scenes.parts import patch, resized_shape

SIDE = 48
"""Height and width of a scene, pixels."""
FOCAL_LENGTH = 64.0
"""Focal length in pixels: a digit of 1 m has `FOCAL_LENGTH` / depth pixels."""
NEAR, FAR = 2.0, 5.0
"""Least and greatest depth of a digit, in meters where the scale is 1."""
WALL = (6.0, 10.0)
"""Least and greatest depth of the wall's corners."""
HAZE = 0.15
"""Scattering coefficient of the haze, 1 / m, where the scale is 1."""
AIRLIGHT = 215.0
"""Gray value of the haze itself."""
MAX_LAYERS = 5
"""Most digits of a scene."""


def wall_depth(rng: np.random.Generator) -> np.ndarray:
    """Return the depths of a slanted wall, float64 [SIDE, SIDE].

    The inverse depth of a plane is linear in the coordinates of the image. The corners have depths
    within `WALL`.
    """
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) - 0.5
    nearest, farthest = 1 / WALL[0], 1 / WALL[1]
    slope = rng.uniform(-1, 1, 2)
    # Corners reach half the slopes.
    slope *= rng.uniform(0, nearest - farthest) / np.abs(slope).sum()
    reach = np.abs(slope).sum() / 2
    middle = rng.uniform(farthest + reach, nearest - reach)
    return 1 / (middle + slope[0] * y + slope[1] * x)


def scene(
    digits: np.ndarray, textures: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a scene and its depth, in the scale 1.

    Args:
      digits: uint8 [m, h, w], bright on dark.
      textures: uint8 [2, h, w, 3]: of the wall, and of the digits.
      rng: draws depths, places and patches.

    Returns:
      Scene uint8 [SIDE, SIDE, 3], and depth in meters, float32 [SIDE, SIDE].
    """
    image = patch(textures[0], rng, SIDE).astype(np.float64)
    depth = wall_depth(rng)
    # The far ones first, so that the near ones hide them.
    depths = np.sort(rng.uniform(NEAR, FAR, len(digits)))[::-1]
    for digit, own_depth in zip(digits, depths, strict=True):
        size = round(FOCAL_LENGTH / own_depth)
        shape = resized_shape(digit, size)
        ink = patch(textures[1], rng, size)
        y, x = rng.integers(0, SIDE - size + 1, 2)
        box = slice(y, y + size), slice(x, x + size)
        image[box][shape] = ink[shape]
        depth[box][shape] = own_depth
    return hazy(image, depth), depth.astype(np.float32)


def hazy(image: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return an image seen through haze, uint8 [h, w, 3].

    It is J t + A (1 - t) with t = exp(-β depth) (He, Sun and Tang 2009, "Single image haze removal
    using dark channel prior", equations 1 and 2).

    Args:
      image: float [h, w, 3] in 0..255, J.
      depth: float [h, w].
    """
    transmission = np.exp(-HAZE * depth)[..., None]
    mixed = image * transmission + AIRLIGHT * (1 - transmission)
    return np.round(mixed).astype(np.uint8)


def compose(
    digits: jc.Split, n: int, textures: np.ndarray, seed: int, *, scale_spread: float
) -> jc.Split:
    """Return `n` scenes, each with two to `MAX_LAYERS` digits drawn at random.

    Args:
      digits: images [m, h, w, 1], of which digits are drawn.
      n: number of scenes.
      textures: as in `scene`.
      seed: of all draws; the images do not depend on the spread.
      scale_spread: standard deviation of the logarithm of each scene's scale.

    Returns:
      Images uint8 [n, SIDE, SIDE, 3], and depths float32 [n, SIDE, SIDE] as labels.
    """
    rng = np.random.default_rng(seed)
    images, depths = [], []
    for _ in range(n):
        index = rng.integers(0, len(digits.labels), int(rng.integers(2, MAX_LAYERS + 1)))
        image, depth = scene(digits.images[index, ..., 0], textures, rng)
        images.append(image)
        depths.append(depth * np.float32(math.exp(scale_spread * rng.standard_normal())))
    return jc.Split(np.stack(images), np.stack(depths))
