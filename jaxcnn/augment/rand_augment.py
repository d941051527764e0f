"""RandAugment's geometric operations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from jaxcnn.arguments import ArgumentError, check_integer, format_value
from jaxcnn.augment.functions import Augmentation, check_moves_no_mask

OPERATIONS = ("identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y")
"""Operations that `rand_augment` chooses from."""
MAX_MAGNITUDE = 10.0
"""Magnitude of the largest strength in the paper; larger ones go beyond it."""
_MAX_DEGREES, _MAX_SHEAR, _MAX_SHIFT = 30.0, 0.3, 150 / 331


@dataclass(frozen=True)
class _RandAugment:
    """Random geometric operations. See `rand_augment`."""

    num_ops: int
    magnitude: float

    def __call__(self, rng, image, target) -> tuple[Any, Any]:
        check_moves_no_mask("rand_augment", image, target)
        for key in jax.random.split(rng, self.num_ops):
            operation_key, sign_key = jax.random.split(key)
            operation = jax.random.randint(operation_key, (), 0, len(OPERATIONS))
            sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0).astype(jnp.float32)
            strength = sign * (self.magnitude / MAX_MAGNITUDE)
            image = warp(image, affine_maps(*image.shape[:2], strength)[operation])
        return image, target


def rand_augment(num_ops: int = 2, magnitude: float = 9.0) -> Augmentation:
    """Return the geometric part of RandAugment as an augmentation.

    `num_ops` operations are drawn from `OPERATIONS` with equal chances, and applied one after
    another (Cubuk et al. 2019, arXiv:1909.13719, section 3). Each has the strength `magnitude` / 10
    of its largest one, with a random sign. The largest ones are AutoAugment's: 30 degrees, a shear
    of 0.3, and a shift by 150/331 of the side (arXiv:1805.09501, table 6). The operations on colors
    are left out, as they are defined on bytes.

    Pixels from outside the image are 0, the mean color. Resampling is bilinear, where the paper's
    code takes the nearest pixel. Shears leave the upper left corner where it is, as there.

    Args:
      num_ops: operations on an image, at least 1. The paper has 1 to 3.
      magnitude: strength, 0 to 30. 10 is the largest strength of AutoAugment.

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> function = rand_augment(num_ops=2, magnitude=5)
      >>> image, target = function(jax.random.key(0), jnp.ones((8, 8, 1)), 3)
      >>> image.shape, target
      ((8, 8, 1), 3)
    """
    num_ops = check_integer("num_ops", num_ops, 1, 20, example=2)
    is_number = isinstance(magnitude, (int, float)) and not isinstance(magnitude, bool)
    if not is_number or not 0 <= magnitude <= 3 * MAX_MAGNITUDE:
        raise ArgumentError(
            f"magnitude is {format_value(magnitude)}; expected a number from 0 to 30. "
            "Write magnitude=9."
        )
    return _RandAugment(num_ops, float(magnitude))


def affine_maps(height: int, width: int, strength: Any) -> jax.Array:
    """Return the maps of `OPERATIONS` from pixels of the result to pixels of the image.

    Args:
      height: of the image.
      width: of the image.
      strength: share of the largest strength, with its sign, float32 [].

    Returns:
      float32 [6, 2, 3]. The pixel (y, x) of a result is the image at `map @ (y, x, 1)`.
    """
    zero, one = jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32)
    angle, shear = strength * math.radians(_MAX_DEGREES), strength * _MAX_SHEAR
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y, x = (height - 1) / 2, (width - 1) / 2
    maps = [
        [[one, zero, zero], [zero, one, zero]],
        # The center stays: center + rotation @ (pixel - center).
        [[cos, -sin, y - cos * y + sin * x], [sin, cos, x - sin * y - cos * x]],
        [[one, zero, zero], [shear, one, zero]],
        [[one, shear, zero], [zero, one, zero]],
        [[one, zero, zero], [zero, one, strength * (_MAX_SHIFT * width)]],
        [[one, zero, strength * (_MAX_SHIFT * height)], [zero, one, zero]],
    ]
    return jnp.stack([jnp.stack([jnp.stack(row) for row in rows]) for rows in maps])


def warp(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Resample an image [h, w, c] by an affine map, with zeros outside.

    Args:
      image: float32.
      matrix: float32 [2, 3]. The pixel (y, x) of the result is the image at `matrix @ (y, x, 1)`.

    Example:
      >>> shift = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
      >>> warp(jnp.arange(3.0).reshape(1, 3, 1), shift).ravel().tolist()
      [1.0, 2.0, 0.0]
    """
    height, width = image.shape[:2]
    y, x = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32), indexing="ij"
    )
    rows, columns = (row[0] * y + row[1] * x + row[2] for row in matrix)

    def resample(channel):
        return map_coordinates(channel, [rows, columns], order=1, mode="constant", cval=0.0)

    return jax.vmap(resample, -1, -1)(image)
