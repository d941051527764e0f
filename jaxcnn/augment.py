"""Images on the device: bytes to floats, and the random crop and flip, said for one image; `jax.vmap` does the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.recipe import ArgumentError, channel_constants


class Normalizer(NamedTuple):
    """What turns bytes into inputs: x / 255 - mean, divided by std."""

    mean: jax.Array
    """float32 [h, w, c]: subtracted, in 0..1."""
    std: jax.Array
    """float32 [c]: divided by."""


IMAGENET_NORMALIZER = Normalizer(np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225]))  # type: ignore[arg-type]
"""Means and standard deviations of ImageNet's channels, in 0..1, that the published weights of torchvision and timm expect."""


def make_normalizer(
    mean: np.ndarray,
    std: np.ndarray,
    *,
    subtract: str | float | Sequence[float] = "pixel",
    divide: bool | float | Sequence[float] = False,
) -> Normalizer:
    """The `Normalizer` of a data set's per-pixel `mean` [h, w, c] and channel `std` [c], both in 0..1.

    He et al. 2015, section 4.2, subtract the per-pixel mean and divide by nothing. (The first BN undoes any scale of
    the whole input, so 0..1 and 0..255 train alike.)

    Args:
      mean: float32 [h, w, c], of the training images only.
      std: float32 [c], likewise.
      subtract: "pixel" for the mean image, "channel" for its mean over pixels, "imagenet" for `IMAGENET_NORMALIZER`'s, "none",
        or constants for images in 0..1: a number for each channel, or one for all.
      divide: whether to divide by `std`, or with "imagenet" by ImageNet's; or constants, likewise.

    Raises:
      ArgumentError: for "imagenet" on images of other than 3 channels, or constants of another number of channels.

    Example:
      >>> image, std = np.zeros((2, 2, 3), "float32"), np.ones(3, "float32")
      >>> make_normalizer(image, std, subtract=(0.5, 0.25, 0.125), divide=0.5).mean[1, 1].tolist()
      [0.5, 0.25, 0.125]
    """
    pixel, scale = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    subtract, divide = channel_constants("mean", subtract), channel_constants("std", divide)
    if isinstance(subtract, tuple):
        center = jnp.broadcast_to(_constants("mean", subtract, pixel.shape[-1]), pixel.shape)
    else:
        choices = {"pixel": pixel, "channel": jnp.broadcast_to(pixel.mean((0, 1)), pixel.shape), "none": 0 * pixel}
        if subtract == "imagenet":
            if pixel.shape[-1] != 3:
                raise ArgumentError(
                    f"mean is 'imagenet', of 3 channels, but images have {pixel.shape[-1]}; write mean='channel'"
                )
            choices["imagenet"], scale = (
                jnp.broadcast_to(IMAGENET_NORMALIZER.mean, pixel.shape),
                jnp.asarray(IMAGENET_NORMALIZER.std),
            )
        center = choices[str(subtract)]
    if isinstance(divide, tuple):
        return Normalizer(center, jnp.broadcast_to(_constants("std", divide, pixel.shape[-1]), (pixel.shape[-1],)))
    return Normalizer(center, scale if divide else jnp.ones_like(scale))


def _constants(name: str, values: tuple[float, ...], channels: int) -> Any:
    """The user's constants as float32 [1] or [channels]; ArgumentError for another number of them."""
    if len(values) not in (1, channels):
        right = f"({', '.join(['0.5'] * channels)}{',' * (channels == 1)})"
        raise ArgumentError(
            f"{name} has {len(values)} numbers, but images have {channels} channel{'s' * (channels > 1)}; expected one for "
            f"each channel, or one for all. Use {name}={right}, with your numbers."
        )
    return jnp.asarray(values, jnp.float32)


def normalize(images: jax.Array | np.ndarray, normalizer: Normalizer) -> jax.Array:
    """uint8 [..., h, w, c] -> float32 of the same shape.

    Example:
      >>> normalize(jnp.full((1, 1, 1), 255, jnp.uint8), Normalizer(jnp.full((1, 1, 1), 0.5), jnp.ones(1))).item()
      0.5
    """
    x = jnp.asarray(images).astype(jnp.float32) / 255
    lead = (1,) * (x.ndim - 3)
    return (x - normalizer.mean.reshape(*lead, *normalizer.mean.shape)) / normalizer.std.reshape(*lead, 1, 1, -1)


def random_crop(key: jax.Array, image: jax.Array, pad: int, fill: jax.Array | None) -> jax.Array:
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


def random_resized_crop(key: jax.Array, image: jax.Array, least: float = 0.08) -> jax.Array:
    """A part of [h, w, c] at another size and shape, resized to the whole: the "Inception crop"; the shape stays.

    Its share of the area is uniform in `least`..1 and the logarithm of its sides' ratio in log 3/4..log 4/3 (Szegedy et al.
    2014, arXiv:1409.4842, section 6); its place is uniform. A side that would stick out is cut to the image's, where others
    draw again. Bilinear, with antialiasing.

    Args:
      key: of this image.
      image: float [h, w, c].
      least: above 0, at most 1.
    """
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, (), jnp.float32, minval=least, maxval=1.0)
    root = jnp.exp(jax.random.uniform(ratio_key, (), jnp.float32, minval=-0.5, maxval=0.5) * math.log(4 / 3))
    whole = jnp.array(image.shape[:2], jnp.float32)
    part = jnp.minimum(jnp.sqrt(area * whole.prod()) * jnp.stack([1 / root, root]), whole)
    corner = jax.random.uniform(place_key, (2,), jnp.float32) * (whole - part)
    zoom = whole / part
    return jax.image.scale_and_translate(image, image.shape, (0, 1), zoom, -corner * zoom, "linear")


def random_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """[h, w, c], mirrored left to right with probability one half."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


class AugmentConfig(NamedTuple):
    """How a training view of an image is drawn, by default as it is; the names are the `Recipe`'s."""

    pad: int = 0
    fill: str = "mean"
    flip: bool = False
    crop: str = "shift"
    least_area: float | None = None


def augment(key: jax.Array, image: jax.Array, normalizer: Normalizer, config: AugmentConfig) -> jax.Array:
    """One training view of one normalised image, [h, w, c] -> the same shape.

    Padding comes after the mean is subtracted, so that zeros stand for the mean colour (the paper's protocol);
    `fill="black"` holds what a black pixel became instead, and "reflect" mirrors the image.
    """
    crop_key, flip_key = jax.random.split(key)
    if config.crop == "resized":
        image = random_resized_crop(crop_key, image, config.least_area or 0.08)
    elif config.pad:
        black = -normalizer.mean.mean((0, 1)) / normalizer.std
        fill = {"mean": jnp.zeros_like(black), "black": black, "reflect": None}[config.fill]
        image = random_crop(crop_key, image, config.pad, fill)
    return random_flip(flip_key, image) if config.flip else image
