"""Pooling, one number for each window, and local response normalisation, which lets neighbouring channels compete."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcnn.ops.convolution import patches
from jaxcnn.ops.sizes import Padding


def max_pool(image: jax.Array, window: int, stride: int | None = None, padding: Padding = 0) -> jax.Array:
    """The greatest number of each window and channel: [h, w, c] -> [h', w', c].

    The gradient goes to the first of the greatest pixels, as in XLA and PyTorch. Its position is kept: a gradient that
    compares `image` with the maximum fails where XLA computes `image` again with other rounding.

    Args:
      image: [h, w, c].
      window: its side.
      stride: pixels from one window to the next; None is `window`, where none overlap.
      padding: see `Padding`; what is padded is never the greatest.

    Example:
      >>> max_pool(jnp.arange(16.0).reshape(4, 4, 1), 2)[..., 0].tolist()
      [[5.0, 7.0], [13.0, 15.0]]
    """
    windows = patches(image, (window, window), stride or window, padding, -jnp.inf)  # [h', w', window, window, c]
    pixels = windows.reshape(*windows.shape[:2], window**2, -1)
    return jnp.take_along_axis(pixels, pixels.argmax(2, keepdims=True), 2)[:, :, 0]


def average_pool(image: jax.Array, window: int, stride: int | None = None, padding: Padding = 0) -> jax.Array:
    """The mean of each window and channel, [h, w, c] -> [h', w', c]; zeros that were padded count.

    Example:
      >>> average_pool(jnp.arange(16.0).reshape(4, 4, 1), 2)[..., 0].tolist()
      [[2.5, 4.5], [10.5, 12.5]]
    """
    return patches(image, (window, window), stride or window, padding).mean((2, 3))


def local_response_norm(
    image: jax.Array, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Each channel over a power of what its neighbours do at the same pixel, [h, w, c] -> the same shape.

    out_i = image_i / (k + alpha sum_j image_j^2)^beta, j the `size` channels around i that there are, with the constants of
    Krizhevsky, Sutskever and Hinton 2012 ("ImageNet classification with deep convolutional neural networks", section 3.3).
    Caffe and PyTorch divide alpha by `size`.

    Example:
      >>> local_response_norm(jnp.ones((1, 1, 4)), size=3, k=0.0, alpha=1.0, beta=1.0)[0, 0].round(3).tolist()
      [0.5, 0.3330000042915344, 0.3330000042915344, 0.5]
    """
    channel = jnp.arange(image.shape[-1])
    near = jnp.abs(channel[:, None] - channel[None]) <= size // 2  # [c, c]
    squares = jnp.square(image) @ near.astype(image.dtype)
    return image / (k + alpha * squares) ** beta
