"""Convolution three ways: one number at a time, as one matrix product, and turned around.

As in every library of networks it is a cross-correlation: the kernel is not flipped.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcnn.ops.sizes import Padding, output_size, padded


def convolution_by_loops(image: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = 0) -> jax.Array:
    """Each output number is a patch times a kernel, added up, as one writes it at the blackboard.

    out[y, x, f] = sum over i, j, c of image[stride y + i, stride x + j, c] kernel[i, j, c, f]

    Args:
      image: [h, w, c].
      kernel: [window, window, c, filters].
      stride: pixels from one window to the next.
      padding: zeros around, see `Padding`.

    Returns:
      [h', w', filters], h' the `output_size` of h. Slow: each number is an operation of its own.

    Raises:
      ValueError: for an image of other channels than the kernel's.

    Example:
      >>> image = jnp.arange(9.0).reshape(3, 3, 1)
      >>> convolution_by_loops(image, jnp.ones((2, 2, 1, 1)))[..., 0].tolist()
      [[8.0, 12.0], [20.0, 24.0]]
    """
    _matching(image, kernel, 2)
    high, wide, _, filters = kernel.shape
    rows, columns = (output_size(n, k, stride, padding) for n, k in zip(image.shape, (high, wide), strict=False))
    image = padded(image, (high, wide), stride, padding)
    out = []
    for y in range(rows):
        for x in range(columns):
            patch = image[y * stride : y * stride + high, x * stride : x * stride + wide]
            for f in range(filters):
                out.append((patch * kernel[..., f]).sum())
    return jnp.stack(out).reshape(rows, columns, filters)


def patches(
    image: jax.Array, window: tuple[int, int], stride: int = 1, padding: Padding = 0, value: float = 0.0
) -> jax.Array:
    """Every window of an image (im2col): [h, w, c] -> [h', w', window, window, c].

    Reshaped to [h' w', window window c] it is the matrix that turns a convolution into a product. Most pixels stand in it
    several times; so its gradient adds up what all their windows say (col2im).

    Example:
      >>> patches(jnp.arange(9.0).reshape(3, 3, 1), (2, 2)).reshape(4, 4).tolist()
      [[0.0, 1.0, 3.0, 4.0], [1.0, 2.0, 4.0, 5.0], [3.0, 4.0, 6.0, 7.0], [4.0, 5.0, 7.0, 8.0]]
    """
    rows, columns = (output_size(n, k, stride, padding) for n, k in zip(image.shape, window, strict=False))
    image = padded(image, window, stride, padding, value)
    y = stride * jnp.arange(rows)[:, None] + jnp.arange(window[0])[None]  # [h', window]
    x = stride * jnp.arange(columns)[:, None] + jnp.arange(window[1])[None]  # [w', window]
    return image[y[:, None, :, None], x[None, :, None, :]]


def convolution(image: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = 0) -> jax.Array:
    """Convolution as one matrix product (im2col): [h, w, c], [window, window, c, filters] -> [h', w', filters].

    That is how libraries computed it first (Chellapilla, Puri and Simard 2006), and why it is fast: the patches take
    window window / stride^2 times the image's memory, and matrix products are what machines do best.

    Example:
      >>> image = jnp.arange(9.0).reshape(3, 3, 1)
      >>> convolution(image, jnp.ones((3, 3, 1, 2)), padding=1).shape
      (3, 3, 2)
    """
    _matching(image, kernel, 2)
    columns = patches(image, (kernel.shape[0], kernel.shape[1]), stride, padding)
    matrix = columns.reshape(-1, kernel[..., 0].size) @ kernel.reshape(-1, kernel.shape[-1])  # [h' w', filters]
    return matrix.reshape(*columns.shape[:2], -1)


def transposed_convolution(image: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
    """The gradient of `convolution` with respect to its image, as a layer: it makes maps larger.

    Zeros are put between the pixels, stride - 1 of them, and around; then the kernel, turned by half a turn and with its
    channels exchanged, goes over that with stride 1. Seen from the input, every pixel stamps the kernel, times its value,
    on the output, and stamps that overlap add up. Where the window is no multiple of the stride some pixels get more
    stamps than their neighbours: a chequered pattern (Odena, Dumoulin and Olah 2016, doi:10.23915/distill.00003).

    Args:
      image: [h, w, filters].
      kernel: [window, window, c, filters], of the convolution that is turned around: c channels are made.
      stride: how many times larger the maps become, about.
      padding: pixels cut off on every side, below the window's.

    Returns:
      [h', w', c], h' the `transposed_size` of h.

    Example:
      >>> stamps = transposed_convolution(jnp.ones((2, 2, 1)), jnp.ones((3, 3, 1, 1)), stride=2)
      >>> stamps[..., 0].astype(int).tolist()
      [[1, 1, 2, 1, 1], [1, 1, 2, 1, 1], [2, 2, 4, 2, 2], [1, 1, 2, 1, 1], [1, 1, 2, 1, 1]]
    """
    _matching(image, kernel, 3)
    high, wide = kernel.shape[:2]
    rows, columns = ((size - 1) * stride + 1 for size in image.shape[:2])
    apart = jnp.zeros((rows, columns, image.shape[2]), image.dtype).at[::stride, ::stride].set(image)
    around = [(side - 1 - padding, side - 1 - padding) for side in (high, wide)]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)  # [window, window, filters, c]
    return convolution(jnp.pad(apart, (*around, (0, 0))), turned)


def _matching(image: jax.Array, kernel: jax.Array, axis: int) -> None:
    if image.ndim != 3 or kernel.ndim != 4 or image.shape[2] != kernel.shape[axis]:
        expected = "[window, window, c, filters] and " + ("[h, w, c]" if axis == 2 else "[h, w, filters]")
        raise ValueError(f"kernel is {kernel.shape} and image {image.shape}; expected {expected}")
