"""Images on the device: bytes to floats, and the random crop and flip, said for one image; `jax.vmap` does the batch."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.recipe import one_of


class Norm(NamedTuple):
    """What turns bytes into inputs: x / 255 - mean, divided by std."""

    mean: jax.Array
    """float32 [h, w, c]: subtracted, in 0..1."""
    std: jax.Array
    """float32 [c]: divided by."""


def norm(mean: np.ndarray, std: np.ndarray, *, subtract: str = "pixel", divide: bool = False) -> Norm:
    """The `Norm` of a data set's per-pixel `mean` [h, w, c] and channel `std` [c], both in 0..1.

    He et al. 2015, section 4.2, subtract the per-pixel mean and divide by nothing. (The first BN undoes any scale of
    the whole input, so 0..1 and 0..255 train alike.)

    Args:
      mean: float32 [h, w, c], of the training images only.
      std: float32 [c], likewise.
      subtract: "pixel" for the mean image, "channel" for its mean over pixels, "none".
      divide: whether to divide by `std`.
    """
    pixel, scale = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    choices = {"pixel": pixel, "channel": jnp.broadcast_to(pixel.mean((0, 1)), pixel.shape), "none": 0 * pixel}
    return Norm(choices[one_of("mean", subtract, choices)], scale if divide else jnp.ones_like(scale))


def normalise(images: jax.Array | np.ndarray, norm: Norm) -> jax.Array:
    """uint8 [..., h, w, c] -> float32 of the same shape.

    Example:
      >>> normalise(jnp.full((1, 1, 1), 255, jnp.uint8), Norm(jnp.full((1, 1, 1), 0.5), jnp.ones(1))).item()
      0.5
    """
    x = jnp.asarray(images).astype(jnp.float32) / 255
    lead = (1,) * (x.ndim - 3)
    return (x - norm.mean.reshape(*lead, *norm.mean.shape)) / norm.std.reshape(*lead, 1, 1, -1)


def crop(key: jax.Array, image: jax.Array, pad: int, fill: jax.Array | None) -> jax.Array:
    """A crop of [h, w, c] at one of (2 pad + 1)^2 offsets of the padded image, equally likely; the shape stays.

    Args:
      key: of this image.
      image: [h, w, c].
      pad: pixels added on each side; 4 gives the paper's 9 offsets an axis.
      fill: [c], what the padding holds; None reflects the image instead.
    """
    around = ((pad, pad), (pad, pad), (0, 0))
    if fill is None:
        padded = jnp.pad(image, around, mode="reflect")
    else:
        padded = jnp.pad(image - fill.reshape(1, 1, -1), around) + fill.reshape(1, 1, -1)
    y, x = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (y, x, jnp.zeros_like(y)), image.shape)


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """[h, w, c], mirrored left to right with probability one half."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def augment(key: jax.Array, image: jax.Array, norm: Norm, *, pad: int, fill: str, mirror: bool) -> jax.Array:
    """One training view of one normalised image, [h, w, c] -> the same shape.

    Padding comes after the mean is subtracted, so that zeros stand for the mean colour (the paper's protocol);
    `fill="black"` holds what a black pixel became instead, and "reflect" mirrors the image.
    """
    crop_key, flip_key = jax.random.split(key)
    if pad:
        black = -norm.mean.mean((0, 1)) / norm.std
        image = crop(crop_key, image, pad, {"mean": jnp.zeros_like(black), "black": black, "reflect": None}[fill])
    return flip(flip_key, image) if mirror else image
