"""Views of images: training images mirrored in every other epoch and moved, test images seen several times."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcnn.augment import random_crop
from jaxcnn.state import fold_in

FLIP, MOVE = range(2)
"""Streams of randomness of the views."""


def mirrored(key: jax.Array, number: jax.Array, epoch: jax.Array) -> jax.Array:
    """Whether image `number` is mirrored in `epoch`: at random in the first, then in turns (Jordan 2024, section 3.6).

    So two epochs show every image both ways, which coin tosses do for half of them only.

    Args:
      key: of the run.
      number, epoch: int32 [].

    Returns:
      bool [].

    Example:
      >>> key = jax.random.PRNGKey(0)
      >>> one, two = (mirrored(key, jnp.int32(7), jnp.int32(epoch)) for epoch in (0, 1))
      >>> bool(one != two)
      True
    """
    return jax.random.bernoulli(fold_in(key, FLIP, number)) ^ (epoch % 2 == 1)


def training(
    key: jax.Array, number: jax.Array, epoch: jax.Array, image: jax.Array, translate: int, flip: bool
) -> jax.Array:
    """The view of an image [h, w, c] in one epoch, of the same shape and dtype.

    It is moved by up to `translate` pixels along each axis, its border mirrored where it would leave a gap.
    """
    if flip:
        image = jnp.where(mirrored(key, number, epoch), image[:, ::-1], image)
    return random_crop(fold_in(key, MOVE, number, epoch), image, translate, None) if translate else image


def moved(images: jax.Array, down: int, right: int) -> jax.Array:
    """[b, h, w, c] moved by one pixel or none along each axis, the border mirrored.

    Example:
      >>> moved(jnp.arange(3).reshape(1, 1, 3, 1) * jnp.ones((1, 3, 3, 1), int), 0, 1)[0, 0, :, 0].tolist()
      [1, 0, 1]
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def averaged(logits: Callable[[jax.Array], jax.Array], images: jax.Array, views: int, flip: bool) -> jax.Array:
    """Logits [b, classes] averaged over views of the images [b, h, w, c] (Jordan 2024, section 3.5).

    Args:
      logits: images -> logits.
      views: 0 is the image alone; 1 the mean with its mirror image; with 2 that mean counts a half, and the mean of what
        1 gives for the image moved by a pixel up left and down right the other half.
      flip: False leaves the mirror images out.
    """

    def both(images):
        return (logits(images) + logits(images[:, :, ::-1])) / 2 if flip and views else logits(images)

    if views < 2:
        return both(images)
    return both(images) / 2 + (both(moved(images, -1, -1)) + both(moved(images, 1, 1))) / 4
