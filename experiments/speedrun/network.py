"""The network: whitened patches, blocks of two convolutions that begin as the identity, a maximum over what is left.

Jordan 2024 (arXiv:2404.00498), sections 3.1 to 3.3; the whitening layer is Page's (2019, "How to train your ResNet").
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.layers import pool_2x2
from jaxcnn.models.norm import BatchNorm

SIDE = 2
"""Of the patches that are whitened, in pixels."""
EPSILON = 5e-4
"""Added to the variances that whitening divides by, so that it does not blow up noise."""


def whitening(images: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """Kernels [2, 2, c, 8 c] that whiten 2x2 patches: the covariance of the first 4 c outputs over all patches is the identity.

    They are the eigenvectors of the patches' covariance, each over the square root of its variance plus `epsilon`; the
    other 4 c are the same with opposite sign, since an activation follows that treats signs unlike.

    Args:
      images: float32 [n, h, w, c], normalised.

    Example:
      >>> jax.eval_shape(whitening, jnp.zeros((100, 8, 8, 3))).shape
      (2, 2, 3, 24)
    """
    height, width, channels = images.shape[1:]
    corners = [(i, j) for i in range(SIDE) for j in range(SIDE)]
    shifted = [images[:, i : height - SIDE + 1 + i, j : width - SIDE + 1 + j] for i, j in corners]
    patches = jnp.stack(shifted, axis=3).reshape(-1, SIDE * SIDE * channels)
    patches = patches - patches.mean(0, keepdims=True)
    covariance = jnp.matmul(patches.T, patches, precision="highest") / len(patches)
    variances, vectors = jnp.linalg.eigh(covariance)
    filters = vectors / jnp.sqrt(variances + epsilon)[None]
    return jnp.concatenate([filters, -filters], axis=1).reshape(SIDE, SIDE, channels, -1)


def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Uniform within 1 / sqrt(fan in) of 0: what PyTorch gives convolutions and dense layers, and so the paper's networks."""
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def partial_identity(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """A kernel [size, size, a, b] whose first min(a, b) filters copy channels 0, 1, ... of the input; the others are `uniform`.

    Example:
      >>> jax.jit(partial_identity, static_argnums=1)(jax.random.key(0), (3, 3, 1, 2))[..., 0, 0].tolist()
      [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    size, _, channels, filters = shape
    copied = min(channels, filters)
    copies = jnp.zeros((size, size, channels, copied), dtype)
    copies = copies.at[size // 2, size // 2, jnp.arange(copied), jnp.arange(copied)].set(1)
    return jnp.concatenate([copies, uniform(key, shape, dtype)[..., copied:]], axis=-1)


class Net(nn.Module):
    """Logits of normalised images.

    Attributes:
      classes: how many.
      widths: channels of each block; a block halves the image.
      dtype: of activations; parameters, BN's moments and logits are float32.
    """

    classes: int
    widths: tuple[int, ...] = (64, 256, 256)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, kernel: jax.Array, train: bool = False) -> jax.Array:
        """float [b, h, w, c] and the whitening's kernel [2, 2, c, 8 c], which is never trained -> float32 [b, classes]."""
        bias = self.param("whitening_bias", nn.initializers.zeros, kernel.shape[-1:])
        x, kernel = images.astype(self.dtype), kernel.astype(self.dtype)
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = nn.gelu(x + bias.astype(self.dtype).reshape(1, 1, 1, -1), approximate=False)
        for i, width in enumerate(self.widths, 1):
            x = pool_2x2(self._conv(x, width, f"block{i}_conv1"), jnp.max)
            x = self._active(x, train, f"block{i}_norm1")
            x = self._active(self._conv(x, width, f"block{i}_conv2"), train, f"block{i}_norm2")
        x = x.max((1, 2)).astype(jnp.float32)
        return nn.Dense(self.classes, use_bias=False, kernel_init=uniform, name="head")(x) / 9

    def _conv(self, x, filters, name):
        options: dict[str, Any] = {
            "use_bias": False,
            "dtype": self.dtype,
            "kernel_init": partial_identity,
            "name": name,
        }
        return nn.Conv(filters, (3, 3), padding=1, **options)(x)

    def _active(self, x, train, name):
        x = BatchNorm(momentum=0.6, dtype=self.dtype, name=name)(x, train)
        return nn.gelu(x, approximate=False)
