"""Layers written out as short functions of one example [h, w, c].

They are for reading and for figures. Each equals the library's layer in its values and gradients,
and is slower. `jax.vmap` maps them over a batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Padding = int | str | tuple[int, int]
"""Padding of an axis.

It is pixels at both ends, or (before, after), or "valid" or "same". "valid" is none. "same" is as
many as make ceil(size / stride) windows.
"""

FILTERS: dict[str, np.ndarray] = {
    "identity": np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32),
    "box blur": np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1]], np.float32) / 9,
    "Gaussian blur": np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32) / 16,
    "sharpen": np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], np.float32),
    "Sobel x": np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32),
    "Sobel y": np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]], np.float32),
    "Laplacian": np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32),
    "emboss": np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32),
}
"""Filters of image processing by name, float32 [3, 3].

Filters with the sum 1 preserve the brightness. Those with the sum 0 are 0 on every even surface.
Sobel x finds vertical edges. It is positive where the image gets brighter to the right.
"""


# ---------------------------------------------------------------- sizes


def padding_widths(
    size: int, window: int, stride: int = 1, padding: Padding = 0
) -> tuple[int, int]:
    """Return the pixels padded before and after a line of `size` pixels.

    "same" is that of TensorFlow and flax: an odd pixel goes to the end. At stride 2 and an even
    size it centers windows of 3 on pixels 1, 3, 5. One pixel at both ends centers them on 0, 2, 4,
    as PyTorch's padding=1 and the ResNet papers do.

    Raises:
      ValueError: `padding` is another word, or a number is negative.

    Example:
      >>> padding_widths(32, 3, 2, "same"), padding_widths(32, 3, 2, 1)
      ((0, 1), (1, 1))
      >>> padding_widths(32, 3, 2, "valid")
      (0, 0)
    """
    if padding == "same":
        missing = max((-(-size // stride) - 1) * stride + window - size, 0)
        return missing // 2, missing - missing // 2
    if padding == "valid":
        return 0, 0
    widths = (padding, padding) if isinstance(padding, int) else padding
    if isinstance(widths, str) or len(widths) != 2 or min(widths) < 0:
        raise ValueError(
            f"padding is {padding!r}; "
            "expected 'same', 'valid', a number of pixels or (before, after)"
        )
    return widths


def output_size(size: int, window: int, stride: int = 1, padding: Padding = 0) -> int:
    """Return the number of windows in a line of `size` pixels.

    It is floor((size + before + after - window) / stride) + 1.

    Raises:
      ValueError: no window fits, or a number is below 1.

    Example:
      >>> output_size(32, 5), output_size(224, 7, stride=2, padding=3), output_size(55, 3, stride=2)
      (28, 112, 27)

    References:
      Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning",
      arXiv:1603.07285, relationship 6.
    """
    if min(size, window, stride) < 1:
        raise ValueError(
            f"size is {size}, window {window} and stride {stride}; "
            "expected whole numbers of at least 1"
        )
    room = size + sum(padding_widths(size, window, stride, padding)) - window
    if room < 0:
        raise ValueError(
            f"a window of {window} does not fit into {room + window} pixels, padding included; "
            "write more"
        )
    return room // stride + 1


def transposed_size(size: int, window: int, stride: int = 1, padding: int = 0) -> int:
    """Return the pixels that a transposed convolution makes of `size` pixels.

    It is (size - 1) stride + window - 2 padding. The convolution with the same numbers makes `size`
    pixels of it, and of no smaller input.

    Example:
      >>> transposed_size(7, 4, stride=2, padding=1), output_size(14, 4, stride=2, padding=1)
      (14, 7)
    """
    return (size - 1) * stride + window - 2 * padding


def pad(
    image: jax.Array, window: tuple[int, int], stride: int, padding: Padding, value: float = 0.0
) -> jax.Array:
    """Pad both axes of `image` [h, w, c] with `value`.

    Example:
      >>> pad(jnp.ones((1, 2, 1)), (3, 3), 1, 1)[..., 0].tolist()
      [[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    widths = [
        padding_widths(size, side, stride, padding)
        for size, side in zip(image.shape, window, strict=False)
    ]
    return jnp.pad(image, (*widths, (0, 0)), constant_values=value)


# ---------------------------------------------------------------- convolution


def convolution_by_loops(
    image: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = 0
) -> jax.Array:
    """Compute a convolution one number at a time.

    out[y, x, f] = sum over i, j, c of image[stride y + i, stride x + j, c] kernel[i, j, c, f]

    As in every library of networks it is a cross-correlation: the kernel is not flipped. It is
    slow, because each number is an operation of its own.

    Args:
      image: [h, w, c].
      kernel: [window, window, c, filters].
      stride: pixels from one window to the next.
      padding: zeros around the image, see `Padding`.

    Returns:
      [h', w', filters], where h' is the `output_size` of h.

    Raises:
      ValueError: the channels of the image are not the kernel's.

    Example:
      >>> image = jnp.arange(9.0).reshape(3, 3, 1)
      >>> convolution_by_loops(image, jnp.ones((2, 2, 1, 1)))[..., 0].tolist()
      [[8.0, 12.0], [20.0, 24.0]]
    """
    _check_shapes(image, kernel, 2)
    height, width, _, filters = kernel.shape
    rows, columns = (
        output_size(size, side, stride, padding)
        for size, side in zip(image.shape, (height, width), strict=False)
    )
    image = pad(image, (height, width), stride, padding)
    out = []
    for y in range(rows):
        for x in range(columns):
            patch = image[y * stride : y * stride + height, x * stride : x * stride + width]
            for f in range(filters):
                out.append((patch * kernel[..., f]).sum())
    return jnp.stack(out).reshape(rows, columns, filters)


def patches(
    image: jax.Array,
    window: tuple[int, int],
    stride: int = 1,
    padding: Padding = 0,
    value: float = 0.0,
) -> jax.Array:
    """Return every window of an image (im2col).

    Reshaped to [h' w', window window c], it is the matrix that turns a convolution into a product.
    Most pixels are in several windows, so its gradient adds up those of all windows (col2im).

    Args:
      image: [h, w, c].
      window: height and width.
      stride: pixels from one window to the next.
      padding: see `Padding`.
      value: of the padding.

    Returns:
      [h', w', window, window, c].

    Example:
      >>> patches(jnp.arange(9.0).reshape(3, 3, 1), (2, 2)).reshape(4, 4).tolist()
      [[0.0, 1.0, 3.0, 4.0], [1.0, 2.0, 4.0, 5.0], [3.0, 4.0, 6.0, 7.0], [4.0, 5.0, 7.0, 8.0]]
    """
    rows, columns = (
        output_size(size, side, stride, padding)
        for size, side in zip(image.shape, window, strict=False)
    )
    image = pad(image, window, stride, padding, value)
    # [h', window] and [w', window]
    y = stride * jnp.arange(rows)[:, None] + jnp.arange(window[0])[None]
    x = stride * jnp.arange(columns)[:, None] + jnp.arange(window[1])[None]
    return image[y[:, None, :, None], x[None, :, None, :]]


def convolution(
    image: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = 0
) -> jax.Array:
    """Compute a convolution as one matrix product (im2col).

    Libraries computed it so first (Chellapilla, Puri and Simard 2006). It is fast, because machines
    are best at matrix products. The patches take window window / stride^2 times the image's memory.

    Args:
      image: [h, w, c].
      kernel: [window, window, c, filters].
      stride: pixels from one window to the next.
      padding: zeros around the image, see `Padding`.

    Returns:
      [h', w', filters].

    Raises:
      ValueError: the channels of the image are not the kernel's.

    Example:
      >>> image = jnp.arange(9.0).reshape(3, 3, 1)
      >>> convolution(image, jnp.ones((3, 3, 1, 2)), padding=1).shape
      (3, 3, 2)
    """
    _check_shapes(image, kernel, 2)
    columns = patches(image, (kernel.shape[0], kernel.shape[1]), stride, padding)
    # [h' w', filters]
    matrix = columns.reshape(-1, kernel[..., 0].size) @ kernel.reshape(-1, kernel.shape[-1])
    return matrix.reshape(*columns.shape[:2], -1)


def transposed_convolution(
    image: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0
) -> jax.Array:
    """Compute a transposed convolution.

    It is the gradient of `convolution` with respect to its image, as a layer. It makes maps larger.
    stride - 1 zeros are put between the pixels, and zeros around them. Then the kernel, rotated by
    180 degrees and with its channels exchanged, is applied with stride 1.

    In other words, every pixel stamps the kernel, times its value, on the output. Stamps that
    overlap add up. Where the window is not a multiple of the stride, some pixels get more stamps
    than their neighbors. That is the checkerboard pattern of Odena, Dumoulin and Olah 2016
    (doi:10.23915/distill.00003).

    Args:
      image: [h, w, filters].
      kernel: [window, window, c, filters], of the convolution, so the output has c channels.
      stride: about how many times larger the maps become.
      padding: pixels cut off on every side, below the window's.

    Returns:
      [h', w', c], where h' is the `transposed_size` of h.

    Raises:
      ValueError: the channels of the image are not the kernel's filters.

    Example:
      >>> stamps = transposed_convolution(jnp.ones((2, 2, 1)), jnp.ones((3, 3, 1, 1)), stride=2)
      >>> stamps[..., 0].astype(int).tolist()
      [[1, 1, 2, 1, 1], [1, 1, 2, 1, 1], [2, 2, 4, 2, 2], [1, 1, 2, 1, 1], [1, 1, 2, 1, 1]]
    """
    _check_shapes(image, kernel, 3)
    height, width = kernel.shape[:2]
    rows, columns = ((size - 1) * stride + 1 for size in image.shape[:2])
    dilated = jnp.zeros((rows, columns, image.shape[2]), image.dtype)
    dilated = dilated.at[::stride, ::stride].set(image)
    widths = [(side - 1 - padding, side - 1 - padding) for side in (height, width)]
    # [window, window, filters, c]
    rotated = kernel[::-1, ::-1].swapaxes(2, 3)
    return convolution(jnp.pad(dilated, (*widths, (0, 0))), rotated)


def apply_filter(image: jax.Array, kernel: jax.Array | np.ndarray) -> jax.Array:
    """Apply a kernel to every channel by itself.

    Args:
      image: [h, w, c]. Its edge is repeated around it.
      kernel: [window, window], with an odd window.

    Returns:
      [h, w, c].

    Example:
      >>> ramp = jnp.arange(5.0)[None, :, None] * jnp.ones((3, 1, 1))
      >>> apply_filter(ramp, FILTERS["Sobel x"])[1, :, 0].tolist()
      [4.0, 8.0, 8.0, 8.0, 4.0]
    """
    height, width = kernel.shape
    widths = ((height // 2, height // 2), (width // 2, width // 2), (0, 0))
    extended = jnp.pad(image, widths, "edge")
    # [window, window, 1, 1]
    weights = jnp.asarray(kernel, image.dtype)[..., None, None]
    return jax.vmap(lambda channel: convolution(channel[..., None], weights)[..., 0], -1, -1)(
        extended
    )


def _check_shapes(image: jax.Array, kernel: jax.Array, axis: int) -> None:
    if image.ndim != 3 or kernel.ndim != 4 or image.shape[2] != kernel.shape[axis]:
        expected = "[window, window, c, filters] and "
        expected += "[h, w, c]" if axis == 2 else "[h, w, filters]"
        raise ValueError(f"kernel is {kernel.shape} and image {image.shape}; expected {expected}")


# ---------------------------------------------------------------- pooling and normalization


def max_pool(
    image: jax.Array, window: int, stride: int | None = None, padding: Padding = 0
) -> jax.Array:
    """Return the maximum of each window and channel.

    The gradient goes to the first of the largest pixels, as in XLA and PyTorch.

    Args:
      image: [h, w, c].
      window: its side.
      stride: pixels from one window to the next. None is `window`, where none overlap.
      padding: see `Padding`. The padding is never the maximum.

    Returns:
      [h', w', c].

    Example:
      >>> max_pool(jnp.arange(16.0).reshape(4, 4, 1), 2)[..., 0].tolist()
      [[5.0, 7.0], [13.0, 15.0]]
    """
    # [h', w', window, window, c]
    windows = patches(image, (window, window), stride or window, padding, -jnp.inf)
    pixels = windows.reshape(*windows.shape[:2], window**2, -1)
    # The position is stored. A gradient that compares `image` with the maximum would fail where XLA
    # computes `image` again with other rounding.
    return jnp.take_along_axis(pixels, pixels.argmax(2, keepdims=True), 2)[:, :, 0]


def average_pool(
    image: jax.Array, window: int, stride: int | None = None, padding: Padding = 0
) -> jax.Array:
    """Return the mean of each window and channel.

    [h, w, c] becomes [h', w', c]. The zeros of the padding count.

    Example:
      >>> average_pool(jnp.arange(16.0).reshape(4, 4, 1), 2)[..., 0].tolist()
      [[2.5, 4.5], [10.5, 12.5]]
    """
    return patches(image, (window, window), stride or window, padding).mean((2, 3))


def local_response_norm(
    image: jax.Array, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Divide each channel by a power of its neighbors' squares.

    The neighbors are channels at the same pixel.

    out_i = image_i / (k + alpha sum_j image_j^2)^beta, where j are the `size` channels around i
    that exist. The default constants are those of the paper. Caffe and PyTorch divide alpha by
    `size`.

    Args:
      image: [h, w, c].
      size: number of channels in the sum.
      k: constant of the formula.
      alpha: constant of the formula.
      beta: constant of the formula.

    Returns:
      [h, w, c].

    Example:
      >>> normalized = local_response_norm(jnp.ones((1, 1, 4)), size=3, k=0.0, alpha=1.0, beta=1.0)
      >>> normalized[0, 0].round(3).tolist()
      [0.5, 0.3330000042915344, 0.3330000042915344, 0.5]

    References:
      Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural
      networks", section 3.3.
    """
    channel = jnp.arange(image.shape[-1])
    # [c, c]
    is_neighbor = jnp.abs(channel[:, None] - channel[None]) <= size // 2
    squares = jnp.square(image) @ is_neighbor.astype(image.dtype)
    return image / (k + alpha * squares) ** beta


# ---------------------------------------------------------------- upsampling


def nearest(image: jax.Array, factor: int) -> jax.Array:
    """Repeat every pixel factor x factor times.

    [h, w, c] becomes [factor h, factor w, c].

    Example:
      >>> nearest(jnp.arange(2.0).reshape(1, 2, 1), 2)[..., 0].tolist()
      [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    """
    return image.repeat(factor, 0).repeat(factor, 1)


def bilinear(image: jax.Array, factor: int) -> jax.Array:
    """Interpolate bilinearly, [h, w, c] -> [factor h, factor w, c].

    Each output pixel lies between the four nearest input pixels, and weights them by distance.
    Pixels are squares with their value in the middle. So pixel i of the output lies at
    (i + 1/2) / factor - 1/2 of the input. Beyond the outermost middles the outermost value holds.
    That is PyTorch's `align_corners=False`.

    Example:
      >>> bilinear(jnp.array([[[0.0], [1.0]]]), 2)[0, :, 0].tolist()
      [0.0, 0.25, 0.75, 1.0]
    """
    return _interpolate_rows(_interpolate_rows(image, factor).swapaxes(0, 1), factor).swapaxes(0, 1)


def _interpolate_rows(image: jax.Array, factor: int) -> jax.Array:
    last = len(image) - 1
    steps = jnp.arange(factor * len(image), dtype=image.dtype)
    position = ((steps + 0.5) / factor - 0.5).clip(0, last)
    before = jnp.floor(position).astype(jnp.int32)
    weight = (position - before.astype(image.dtype))[:, None, None]
    return (1 - weight) * image[before] + weight * image[jnp.minimum(before + 1, last)]
