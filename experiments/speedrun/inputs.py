"""Inputs of the steps: the order of the images, and their views.

The order is one stream of shuffled passes over all images, split into batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.augment import random_crop
from jaxcnn.state import fold_in

FLIP_STREAM, CROP_STREAM = range(2)
"""Streams of randomness of the views."""


def batch_indices(seed: int, num_steps: int, batch_size: int, n: int) -> np.ndarray:
    """Return the images of every step, int32 [steps, batch].

    Each image occurs once an epoch, and no remainder is dropped. NumPy computes it, which needs no
    device and so does not wait for one.

    Args:
      seed: of the shuffles.
      num_steps: number of steps.
      batch_size: images a step.
      n: number of images.

    Example:
      >>> sorted(batch_indices(0, 3, 2, 6).ravel().tolist())
      [0, 1, 2, 3, 4, 5]
    """
    passes = np.tile(np.arange(n, dtype=np.int32), (math.ceil(num_steps * batch_size / n), 1))
    stream = np.random.default_rng(seed).permuted(passes, axis=1).ravel()
    return stream[: num_steps * batch_size].reshape(num_steps, batch_size)


def example_epochs(step: jax.Array, batch_size: int, n: int) -> jax.Array:
    """Return the epoch of each image of a step's batch, int32 [batch].

    A batch may contain the end of one epoch and the start of the next.

    Example:
      >>> example_epochs(jnp.int32(2), 4, 10).tolist()
      [0, 0, 1, 1]
    """
    return (step * batch_size + jnp.arange(batch_size)) // n


def epoch_end_steps(num_steps: int, batch_size: int, n: int) -> list[int]:
    """Return the steps at which epochs end, without the last one.

    `np.split` splits the losses there.

    Example:
      >>> epoch_end_steps(10, 2, 8)
      [4, 8]
    """
    epochs = math.ceil(num_steps * batch_size / n)
    ends = (math.ceil(epoch * n / batch_size) for epoch in range(1, epochs))
    return [step for step in ends if step < num_steps]


def is_mirrored(key: jax.Array, number: jax.Array, epoch: jax.Array) -> jax.Array:
    """Return whether an image is mirrored in an epoch.

    It is decided at random in the first epoch, and alternates afterwards (Jordan 2024, section
    3.6). Two epochs thus show every image both ways. Independent decisions do so for half of them
    only.

    Args:
      key: of the run.
      number: of the image, int32 [].
      epoch: int32 [].

    Returns:
      bool [].

    Example:
      >>> key = jax.random.PRNGKey(0)
      >>> a, b = (is_mirrored(key, jnp.int32(7), jnp.int32(epoch)) for epoch in (0, 1))
      >>> bool(a != b)
      True
    """
    return jax.random.bernoulli(fold_in(key, FLIP_STREAM, number)) ^ (epoch % 2 == 1)


def train_view(
    key: jax.Array,
    number: jax.Array,
    epoch: jax.Array,
    image: jax.Array,
    translate: int,
    flip: bool,
) -> jax.Array:
    """Return the view of an image in one epoch.

    It has the same shape and dtype.

    Args:
      key: of the run.
      number: of the image, int32 [].
      epoch: int32 [].
      image: [h, w, c].
      translate: largest shift along each axis, in pixels. The border is mirrored, so that no gap
        appears.
      flip: whether images are mirrored in every other epoch.
    """
    if flip:
        image = jnp.where(is_mirrored(key, number, epoch), image[:, ::-1], image)
    if not translate:
        return image
    return random_crop(fold_in(key, CROP_STREAM, number, epoch), image, translate, None)


def shift(images: jax.Array, down: int, right: int) -> jax.Array:
    """Shift images by at most one pixel along each axis.

    The border is mirrored.

    Args:
      images: [b, h, w, c], of any dtype.
      down: -1, 0 or 1.
      right: -1, 0 or 1.

    Example:
      >>> images = jnp.arange(3).reshape(1, 1, 3, 1) * jnp.ones((1, 3, 3, 1), int)
      >>> shift(images, 0, 1)[0, 0, :, 0].tolist()
      [1, 0, 1]
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def average_logits(
    logits: Callable[[jax.Array], jax.Array], images: jax.Array, views: int, flip: bool
) -> jax.Array:
    """Average the logits over views of the images (Jordan 2024, section 3.5).

    Args:
      logits: function from images [b, h, w, c] to logits [b, num_classes].
      images: [b, h, w, c].
      views: 0 is the image alone. 1 is the mean with its mirror image. 2 gives that mean half of
        the weight. The other half is for the same mean of the image shifted by a pixel up left and
        down right.
      flip: False leaves out the mirror images.

    Returns:
      [b, num_classes].
    """

    def mirror_average(images):
        if not (flip and views):
            return logits(images)
        return (logits(images) + logits(images[:, :, ::-1])) / 2

    if views < 2:
        return mirror_average(images)
    original = mirror_average(images) / 2
    up_left, down_right = (mirror_average(shift(images, i, i)) for i in (-1, 1))
    return original + (up_left + down_right) / 4
