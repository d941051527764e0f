"""Normalization, crops and flips of images on the device.

The augmentations are functions of one image; `jax.vmap` applies them to a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn._util import format_fields
from jaxcnn.config import ArgumentError, AugmentConfig, channel_constants


class Normalizer(NamedTuple):
    """Constants of normalization.

    Bytes x become inputs (x / 255 - mean) / std.

    Attributes:
      mean: mean image in 0..1 that is subtracted, float32 [h, w, c].
      std: standard deviations to divide by, float32 [c].
    """

    mean: jax.Array
    std: jax.Array

    def __repr__(self) -> str:
        return format_fields(self)


IMAGENET_NORMALIZER = Normalizer(
    np.float32([0.485, 0.456, 0.406]),  # type: ignore[arg-type]
    np.float32([0.229, 0.224, 0.225]),  # type: ignore[arg-type]
)
"""Means and standard deviations of ImageNet's channels, in 0..1.

The published weights of torchvision and timm expect them.
"""


def make_normalizer(
    mean: np.ndarray,
    std: np.ndarray,
    *,
    subtract: str | float | Sequence[float] = "pixel",
    divide: bool | float | Sequence[float] = False,
) -> Normalizer:
    """Return the `Normalizer` of a data set's statistics.

    He et al. 2015, section 4.2, subtract the per-pixel mean and do not divide. (The first BN
    cancels any scale of the whole input, so 0..1 and 0..255 train alike.)

    Args:
      mean: per-pixel mean in 0..1, float32 [h, w, c], of the training images only.
      std: standard deviation of each channel in 0..1, float32 [c], of the training images only.
      subtract: "pixel" for the mean image, "channel" for its mean over pixels, "imagenet" for that
        of `IMAGENET_NORMALIZER`, "none", or constants for images in 0..1, a number for each channel
        or one for all.
      divide: whether to divide by `std`, or with "imagenet" by ImageNet's; or constants, a number
        for each channel or one for all.

    Raises:
      ArgumentError: for "imagenet" on images of other than 3 channels, or constants of another
        number of channels.

    Example:
      >>> image, std = np.zeros((2, 2, 3), "float32"), np.ones(3, "float32")
      >>> make_normalizer(image, std, subtract=(0.5, 0.25, 0.125), divide=0.5).mean[1, 1].tolist()
      [0.5, 0.25, 0.125]
    """
    pixel, scale = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    subtract, divide = (
        channel_constants("subtract_mean", subtract),
        channel_constants("divide_std", divide),
    )
    if isinstance(subtract, tuple):
        center = jnp.broadcast_to(
            _constants("subtract_mean", subtract, pixel.shape[-1]), pixel.shape
        )
    else:
        channel = jnp.broadcast_to(pixel.mean((0, 1)), pixel.shape)
        choices = {"pixel": pixel, "channel": channel, "none": 0 * pixel}
        if subtract == "imagenet":
            if pixel.shape[-1] != 3:
                raise ArgumentError(
                    "subtract_mean is 'imagenet', of 3 channels, but images have "
                    f"{pixel.shape[-1]}; "
                    "write subtract_mean='channel'"
                )
            choices["imagenet"] = jnp.broadcast_to(IMAGENET_NORMALIZER.mean, pixel.shape)
            scale = jnp.asarray(IMAGENET_NORMALIZER.std)
        center = choices[str(subtract)]
    if isinstance(divide, tuple):
        channels = pixel.shape[-1]
        return Normalizer(
            center, jnp.broadcast_to(_constants("divide_std", divide, channels), (channels,))
        )
    return Normalizer(center, scale if divide else jnp.ones_like(scale))


def _constants(name: str, values: tuple[float, ...], channels: int) -> Any:
    """Return the user's constants as float32 [1] or [channels].

    Raises:
      ArgumentError: for another number of constants.
    """
    if len(values) not in (1, channels):
        example = f"({', '.join(['0.5'] * channels)}{',' * (channels == 1)})"
        raise ArgumentError(
            f"{name} has {len(values)} numbers, but images have {channels} "
            f"channel{'s' * (channels > 1)}; expected one for each channel, or one for all. "
            f"Use {name}={example}, with your numbers."
        )
    return jnp.asarray(values, jnp.float32)


def normalize(images: jax.Array | np.ndarray, normalizer: Normalizer) -> jax.Array:
    """Normalize uint8 [..., h, w, c] to float32 of the same shape.

    Example:
      >>> normalizer = Normalizer(jnp.full((1, 1, 1), 0.5), jnp.ones(1))
      >>> normalize(jnp.full((1, 1, 1), 255, jnp.uint8), normalizer).item()
      0.5
    """
    x = jnp.asarray(images).astype(jnp.float32) / 255
    leading = (1,) * (x.ndim - 3)
    mean = normalizer.mean.reshape(*leading, *normalizer.mean.shape)
    return (x - mean) / normalizer.std.reshape(*leading, 1, 1, -1)


def random_crop(
    key: jax.Array, image: jax.Array, padding: int, pad_value: jax.Array | None
) -> jax.Array:
    """Crop a padded image to its own size at a random offset.

    The (2 padding + 1)^2 offsets are equally likely.

    Args:
      key: of this image.
      image: [h, w, c].
      padding: pixels added on each side; 4 gives the paper's 9 offsets per axis.
      pad_value: [c], the padding's value; None reflects the image instead.

    Returns:
      [h, w, c].
    """
    widths = ((padding, padding), (padding, padding), (0, 0))
    if pad_value is None:
        padded_image = jnp.pad(image, widths, mode="reflect")
    else:
        # The image minus the value is padded with zeros.
        value = pad_value.reshape(1, 1, -1)
        padded_image = jnp.pad(image - value, widths) + value
    y, x = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded_image, (y, x, jnp.zeros_like(y)), image.shape)


def random_resized_crop(key: jax.Array, image: jax.Array, min_area: float = 0.08) -> jax.Array:
    """Crop a random part of an image and resize it.

    The result has the image's size. This is the "Inception crop" (Szegedy et al. 2014,
    arXiv:1409.4842, section 6). The part's share of the area is uniform in `min_area`..1. The
    logarithm of its sides' ratio is uniform in log 3/4..log 4/3. Its place is uniform. A side
    longer than the image's is cut to it, where other implementations draw again. The resizing is
    bilinear, with antialiasing.

    Args:
      key: of this image.
      image: float [h, w, c].
      min_area: above 0, at most 1.

    Returns:
      [h, w, c].
    """
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, (), jnp.float32, minval=min_area, maxval=1.0)
    # The square root of the sides' ratio, log-uniform in sqrt(3/4)..sqrt(4/3).
    half_log = jax.random.uniform(ratio_key, (), jnp.float32, minval=-0.5, maxval=0.5)
    root = jnp.exp(half_log * math.log(4 / 3))
    size = jnp.array(image.shape[:2], jnp.float32)
    part = jnp.minimum(jnp.sqrt(area * size.prod()) * jnp.stack([1 / root, root]), size)
    corner = jax.random.uniform(place_key, (2,), jnp.float32) * (size - part)
    zoom = size / part
    return jax.image.scale_and_translate(image, image.shape, (0, 1), zoom, -corner * zoom, "linear")


def random_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirror [h, w, c] left to right with probability one half."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def augment(
    key: jax.Array, image: jax.Array, normalizer: Normalizer, config: AugmentConfig
) -> jax.Array:
    """Augment one normalized image, [h, w, c] -> the same shape.

    Padding follows the subtraction of the mean, so that zeros are the mean color (the protocol of
    He et al. 2015). `pad_value="black"` pads with the normalized value of a black pixel
    instead, and "reflect" mirrors the image.

    Args:
      key: of this image.
      image: normalized, float32 [h, w, c].
      normalizer: constants that the image was normalized by.
      config: the distribution of crops and flips.
    """
    crop_key, flip_key = jax.random.split(key)
    if config.crop == "resized":
        image = random_resized_crop(crop_key, image, config.min_area or 0.08)
    elif config.padding:
        black = -normalizer.mean.mean((0, 1)) / normalizer.std
        pad_value = {"mean": jnp.zeros_like(black), "black": black, "reflect": None}[
            config.pad_value
        ]
        image = random_crop(crop_key, image, config.padding, pad_value)
    return random_flip(flip_key, image) if config.flip else image
