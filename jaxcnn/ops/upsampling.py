"""Making maps larger by a rule that nothing is learnt of."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def nearest(image: jax.Array, factor: int) -> jax.Array:
    """Every pixel factor x factor times, [h, w, c] -> [factor h, factor w, c].

    Example:
      >>> nearest(jnp.arange(2.0).reshape(1, 2, 1), 2)[..., 0].tolist()
      [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    """
    return image.repeat(factor, 0).repeat(factor, 1)


def bilinear(image: jax.Array, factor: int) -> jax.Array:
    """Between the four nearest pixels in proportion to their distance, [h, w, c] -> [factor h, factor w, c].

    Pixels are squares and their values lie in the middle, so that pixel i of the output lies at (i + 1/2) / factor - 1/2 of
    the input; past the outermost middles the outermost value holds. That is PyTorch's `align_corners=False`.

    Example:
      >>> bilinear(jnp.array([[[0.0], [1.0]]]), 2)[0, :, 0].tolist()
      [0.0, 0.25, 0.75, 1.0]
    """
    return _along(_along(image, factor).swapaxes(0, 1), factor).swapaxes(0, 1)


def _along(image: jax.Array, factor: int) -> jax.Array:
    """The first axis alone."""
    last = len(image) - 1
    at = ((jnp.arange(factor * len(image), dtype=image.dtype) + 0.5) / factor - 0.5).clip(0, last)
    before = jnp.floor(at).astype(jnp.int32)
    share = (at - before.astype(image.dtype))[:, None, None]
    return (1 - share) * image[before] + share * image[jnp.minimum(before + 1, last)]
