"""Network of the speed run, and its views of images.

It whitens patches, has blocks of two convolutions, and ends with a global maximum. The convolutions
are initialized as the identity. The network is that of Jordan 2024 (arXiv:2404.00498), sections 3.1
to 3.3. The whitening layer is from Page (2019, "How to train your ResNet"). Training shows it
random views, and the test averages over several (sections 3.5 and 3.6).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.augment import random_crop
from jaxcnn.models.layers import pool_2x2
from jaxcnn.models.norm import BatchNorm
from jaxcnn.state import fold_in

PATCH_SIZE = 2
"""Height and width of the whitened patches, in pixels."""
WHITENING_EPSILON = 5e-4
"""Added to the variances in the whitening.

Without it noise would be amplified.
"""
FLIP_STREAM, CROP_STREAM = range(2)
"""Streams of randomness of the views."""


def whitening_kernel(images: jax.Array, epsilon: float = WHITENING_EPSILON) -> jax.Array:
    """Return kernels that whiten patches of 2x2 pixels.

    The covariance of the first 4 c outputs over all patches is the identity. These kernels are the
    eigenvectors of the patches' covariance. Each is divided by the square root of its variance plus
    `epsilon`. The other 4 c are the same with opposite sign, because the activation that follows is
    not symmetric.

    Args:
      images: float32 [n, h, w, c], normalized.
      epsilon: added to the variances.

    Returns:
      float32 [2, 2, c, 8 c].

    Example:
      >>> jax.eval_shape(whitening_kernel, jnp.zeros((100, 8, 8, 3))).shape
      (2, 2, 3, 24)
    """
    height, width, channels = images.shape[1:]
    h, w = height - PATCH_SIZE + 1, width - PATCH_SIZE + 1
    corners = [(i, j) for i in range(PATCH_SIZE) for j in range(PATCH_SIZE)]
    shifted = [images[:, i : h + i, j : w + j] for i, j in corners]
    patches = jnp.stack(shifted, axis=3).reshape(-1, PATCH_SIZE * PATCH_SIZE * channels)
    patches = patches - patches.mean(0, keepdims=True)
    covariance = jnp.matmul(patches.T, patches, precision="highest") / len(patches)
    variances, vectors = jnp.linalg.eigh(covariance)
    filters = vectors / jnp.sqrt(variances + epsilon)[None]
    kernel = jnp.concatenate([filters, -filters], axis=1)
    return kernel.reshape(PATCH_SIZE, PATCH_SIZE, channels, -1)


def torch_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initialize uniformly within 1 / sqrt(fan in) of 0.

    It is PyTorch's initializer of convolutions and dense layers, and so that of the paper.
    """
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def partial_identity(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initialize a kernel [size, size, a, b] that copies its input.

    The first min(a, b) filters copy channels 0, 1, ... of the input. The others are those of
    `torch_uniform`.

    Example:
      >>> init = jax.jit(partial_identity, static_argnums=1)
      >>> init(jax.random.key(0), (3, 3, 1, 2))[..., 0, 0].tolist()
      [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    size, _, channels, filters = shape
    copied = min(channels, filters)
    copies = jnp.zeros((size, size, channels, copied), dtype)
    copies = copies.at[size // 2, size // 2, jnp.arange(copied), jnp.arange(copied)].set(1)
    return jnp.concatenate([copies, torch_uniform(key, shape, dtype)[..., copied:]], axis=-1)


class Net(nn.Module):
    """Network from normalized images to logits.

    Attributes:
      num_classes: number of classes.
      widths: channels of each block. A block halves the image.
      dtype: of activations. Parameters, BN's running statistics and logits are float32.
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 256, 256)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, kernel: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits of images.

        Args:
          images: float [b, h, w, c], normalized.
          kernel: of the whitening, [2, 2, c, 8 c]. It is never trained.
          train: whether BN uses the moments of the batch.

        Returns:
          float32 [b, num_classes].
        """
        bias = self.param("whitening_bias", nn.initializers.zeros, kernel.shape[-1:])
        x, kernel = images.astype(self.dtype), kernel.astype(self.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)
        x = nn.gelu(x + bias.astype(self.dtype).reshape(1, 1, 1, -1), approximate=False)
        for i, width in enumerate(self.widths, 1):
            x = pool_2x2(self._conv(x, width, f"block{i}_conv1"), jnp.max)
            x = self._norm_gelu(x, train, f"block{i}_norm1")
            x = self._norm_gelu(self._conv(x, width, f"block{i}_conv2"), train, f"block{i}_norm2")
        x = x.max((1, 2)).astype(jnp.float32)
        head = nn.Dense(self.num_classes, use_bias=False, kernel_init=torch_uniform, name="head")
        # The paper scales the logits by 1/9.
        return head(x) / 9

    def _conv(self, x, filters, name):
        conv = nn.Conv(
            filters,
            (3, 3),
            padding=1,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=partial_identity,
            name=name,
        )
        return conv(x)

    def _norm_gelu(self, x, train, name):
        x = BatchNorm(momentum=0.6, dtype=self.dtype, name=name)(x, train)
        return nn.gelu(x, approximate=False)


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
