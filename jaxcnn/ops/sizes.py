"""The arithmetic of windows: how many fit into a line of pixels, and how much is padded at its ends."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Padding = int | str | tuple[int, int]
"""Pixels at both ends; or (before, after); or "valid", none; or "same", as many as make ceil(size / stride) windows."""


def borders(size: int, window: int, stride: int = 1, padding: Padding = 0) -> tuple[int, int]:
    """Pixels padded before and after a line of `size` pixels.

    "same" is TensorFlow's and flax's: an odd one goes to the end. At stride 2 and an even size it centres windows of 3
    on pixels 1, 3, 5; one pixel at both ends, which is PyTorch's padding=1 and the ResNet papers', on 0, 2, 4.

    Raises:
      ValueError: for another word, or a negative number.

    Example:
      >>> borders(32, 3, 2, "same"), borders(32, 3, 2, 1), borders(32, 3, 2, "valid")
      ((0, 1), (1, 1), (0, 0))
    """
    if padding == "same":
        missing = max((-(-size // stride) - 1) * stride + window - size, 0)
        return missing // 2, missing - missing // 2
    ends = (0, 0) if padding == "valid" else (padding, padding) if isinstance(padding, int) else padding
    if isinstance(ends, str) or len(ends) != 2 or min(ends) < 0:
        raise ValueError(f"padding is {padding!r}; expected 'same', 'valid', a number of pixels or (before, after)")
    return ends


def output_size(size: int, window: int, stride: int = 1, padding: Padding = 0) -> int:
    """How many windows fit into a line of `size` pixels: floor((size + before + after - window) / stride) + 1.

    Raises:
      ValueError: where none fits, or a number is below 1.

    Example:
      >>> output_size(32, 5), output_size(224, 7, stride=2, padding=3), output_size(55, 3, stride=2)
      (28, 112, 27)

    References:
      Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, relationship 6.
    """
    if min(size, window, stride) < 1:
        raise ValueError(f"size is {size}, window {window} and stride {stride}; expected whole numbers of at least 1")
    room = size + sum(borders(size, window, stride, padding)) - window
    if room < 0:
        raise ValueError(f"a window of {window} does not fit into {room + window} pixels, padding included; write more")
    return room // stride + 1


def transposed_size(size: int, window: int, stride: int = 1, padding: int = 0) -> int:
    """The pixels that a transposed convolution makes of `size`: (size - 1) stride + window - 2 padding.

    It is the smallest input of which the convolution with the same numbers makes `size` pixels.

    Example:
      >>> transposed_size(7, 4, stride=2, padding=1), output_size(14, 4, stride=2, padding=1)
      (14, 7)
    """
    return (size - 1) * stride + window - 2 * padding


def padded(image: jax.Array, window: tuple[int, int], stride: int, padding: Padding, value: float = 0.0) -> jax.Array:
    """`image` [h, w, c] with the borders of both axes, filled with `value`.

    Example:
      >>> padded(jnp.ones((1, 2, 1)), (3, 3), 1, 1)[..., 0].tolist()
      [[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    around = [borders(size, side, stride, padding) for size, side in zip(image.shape, window, strict=False)]
    return jnp.pad(image, (*around, (0, 0)), constant_values=value)
