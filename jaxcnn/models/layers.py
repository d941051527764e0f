"""Layers that the networks share: convolutions, pooling, rematerialization, stages, dropout.

`Dropout` has an `axis_name`, the name of the mapped axis where `jax.pmap` splits the batch. Under
`jit` and sharding it is None.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from jaxcnn.models.initializers import initializer


def conv(
    filters: int,
    size: int,
    stride: int = 1,
    *,
    kernel_init: str,
    dtype: Any,
    bias: bool = False,
    padding: int | None = None,
    groups: int = 1,
    dilation: int = 1,
    name: str | None = None,
) -> nn.Conv:
    """Return a square convolution with symmetric zero padding.

    It maps [b, h, w, c] to [b, (h + 2 p - s) // stride + 1, (w + 2 p - s) // stride + 1, filters],
    with p zeros on every side and windows of s = (size - 1) `dilation` + 1 pixels. At stride 2 the
    windows of odd size center on pixels 0, 2, 4, as `x[:, ::2, ::2]` picks them, and as in PyTorch.
    Flax's "SAME" would center 3x3 windows on 1, 3, 5.

    Args:
      filters: number of output channels.
      size: height and width of the kernel.
      stride: of the windows, in both axes.
      kernel_init: a name in `initializers.INITS`.
      dtype: of the computation.
      bias: add a bias to each output channel.
      padding: p; None is (s - 1) // 2, which keeps the size at stride 1 for odd s.
      groups: the filters of each group see that group's c / groups channels only.
      dilation: distance of the weights on the map, pixels. Above 1 it is an atrous convolution.
      name: of the submodule.
    """
    border = (size - 1) * dilation // 2 if padding is None else padding
    return nn.Conv(
        filters,
        (size, size),
        stride,
        ((border, border), (border, border)),
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=bias,
        dtype=dtype,
        kernel_init=initializer(kernel_init),
        name=name,
    )


def conv3x3(filters: int, stride: int = 1, **options: Any) -> nn.Conv:
    """Return a `conv` of size 3.

    One pixel of zeros on every side maps [b, h, w, c] to [b, ceil(h/stride), ceil(w/stride),
    filters].
    """
    return conv(filters, 3, stride, **options)


def conv_norm_relu(
    make: tuple[Any, Any],
    x: jax.Array,
    train: bool,
    filters: int,
    size: int,
    name: str,
    stride: int = 1,
    dilation: int = 1,
) -> jax.Array:
    """Apply a convolution, BN if there is any, and ReLU.

    It maps [b, h, w, c] to [b, ceil(h/stride), ceil(w/stride), filters].

    Args:
      make: constructors of a convolution and of BN, or None for no BN.
      x: [b, h, w, c].
      train: the mode.
      filters: number of output channels.
      size: height and width of the kernel, odd.
      name: of the convolution. That of BN has "_norm" at its end.
      stride: of the windows.
      dilation: of the kernel.
    """
    make_conv, make_norm = make
    kwargs = {"stride": stride, "dilation": dilation, "bias": make_norm is None}
    x = make_conv(filters, size, **kwargs, name=name)(x)
    return nn.relu(make_norm(name=f"{name}_norm")(x, train) if make_norm else x)


def pool_2x2(x: jax.Array, reduce: Any) -> jax.Array:
    """Pool the disjoint 2x2 windows of images to [b, h // 2, w // 2, c].

    Args:
      x: [b, h, w, c]; an odd last row or column is dropped.
      reduce: `jnp.max`, `jnp.mean` or another reduction that takes `axis`.
    """
    return max_pool_2x2(x) if reduce is jnp.max else reduce(windows_2x2(x), axis=(2, 4))


def maybe_remat(block: Any, remat: bool) -> Any:
    """Return `block`, rematerialized in the gradient if `remat`.

    With `remat`, training keeps only the inputs of blocks, and the gradient computes their inside
    again (Chen et al. 2016, arXiv:1604.06174, section 4). The numbers are the same up to
    rounding. The work grows by at most a third, one more forward pass.

    Args:
      block: a module class whose instances are called with an input and `train`.
      remat: whether to rematerialize.
    """
    if not remat:
        return block
    remat_block = nn.remat(nn.jit(block, static_argnums=(2,)), static_argnums=(2,))

    def make(*args: Any, **fields: Any) -> Any:
        def call(x: jax.Array, train: bool) -> jax.Array:
            # On a CPU, XLA would otherwise find the repeated computation and keep its result.
            with set_xla_metadata(inlineable="false"):
                return module(x, train)

        module = remat_block(*args, **fields)
        return call

    return make


NUDGES = "nudges"
"""Collection of arrays that `apply` adds to stages.

No network makes or keeps one.
"""


def stage(module: nn.Module, outputs: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    """Record `x` as the stage called `name`, and return it.

    Where the caller passes the collection `{"nudges": {name: array}}`, the array is added first.
    The gradient with respect to a stage (Grad-CAM's, for example) is the gradient with respect to
    a nudge of zeros.

    Args:
      module: the network that is being applied.
      outputs: the dict that receives the stage's output.
      name: of the stage.
      x: the output of the stage.

    Example:
      >>> class Twice(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return 2 * stage(self, {}, "first", x)
      >>> Twice().apply({"nudges": {"first": jnp.float32(0.5)}}, jnp.float32(1)).item()
      3.0
    """
    if module.has_variable(NUDGES, name):
        x = x + module.get_variable(NUDGES, name)
    outputs[name] = x
    return x


class Dropout(nn.Module):
    """Dropout whose mask depends on an example's place in the batch.

    The mask (Srivastava et al. 2014) does not depend on the example's device, so that no layout
    of devices changes it. It needs a "dropout" stream in `rngs` when `train` is True.

    Attributes:
      rate: the share of values that are set to 0.
      axis_name: the mapped axis that splits the batch, if any.
    """

    rate: float = 0.5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Drop values of [b, ...], and divide the others by `1 - rate`."""
        if not train or self.rate == 0:
            return x
        first = jax.lax.axis_index(self.axis_name) * len(x) if self.axis_name else 0
        key = self.make_rng("dropout")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(len(x)))
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))


def max_pool(
    x: jax.Array, size: int, stride: int, padding: int = 0, ceil: bool = False
) -> jax.Array:
    """Return the maximum of each size x size window.

    It maps [b, h, w, c] to [b, h', w', c] with h' = (h + 2 padding - size) // stride + 1. The
    padding is -inf, which is never the maximum.

    Args:
      x: [b, h, w, c].
      size: height and width of a window.
      stride: between windows, in both axes.
      padding: pixels added on every side.
      ceil: round the division up where the last window still begins inside the image (Caffe's
        rule and PyTorch's `ceil_mode`). That window is then smaller.

    Example:
      >>> line = jnp.arange(6.0).reshape(1, 6, 1, 1) * jnp.ones((1, 6, 6, 1))
      >>> [max_pool(line, 3, 2, ceil=ceil)[0, :, 0, 0].tolist() for ceil in (False, True)]
      [[2.0, 4.0], [2.0, 4.0, 5.0]]
    """
    borders: Any = [
        (padding, padding + _ceil_padding(side, size, stride, padding) * ceil)
        for side in x.shape[1:3]
    ]
    return nn.max_pool(x, (size, size), (stride, stride), borders)


@jax.custom_jvp
def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Return the maximum of disjoint 2x2 windows.

    It maps [b, h, w, c] to [b, h // 2, w // 2, c]. An odd last row or column is dropped. The
    derivative goes to the first of the greatest pixels of a window, row by row, as in PyTorch and
    in `flax.linen.max_pool`. It is 10 times as fast as the latter's on a CPU, where XLA scatters
    the gradient window by window.

    The derivative keeps the position of the maximum. The derivative of `jnp.max` would compare
    the input with its maximum instead. XLA often computes an input such as BatchNorm's output
    twice, with different rounding. Then no pixel equals the maximum, and the window loses its
    gradient.

    Example:
      >>> max_pool_2x2(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, ..., 0].tolist()
      [[5.0, 7.0], [13.0, 15.0]]
    """
    return windows_2x2(x).max((2, 4))


@max_pool_2x2.defjvp
def _max_pool_2x2_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    # A CPU computes both once and writes them to memory, in a loop of their own that no other
    # loop can repeat in part.
    greatest, position = jax.lax.platform_dependent(x, cpu=_materialized, default=_max_and_position)
    offset = np.arange(4, dtype=np.int8).reshape(1, 1, 2, 1, 2, 1)
    selected = position[:, :, None, :, None] == offset
    zero = jnp.zeros((), tangent.dtype)
    return greatest, jnp.where(selected, windows_2x2(tangent), zero).sum((2, 4))


def _materialized(x):
    with set_xla_metadata(inlineable="false"):
        return _max_and_position(x)


@jax.jit
def _max_and_position(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the maximum of each 2x2 window, and its first position.

    The position is int8, 2 row + column.
    """
    # Not `jnp.where`: its calls would not be inlined either, and XLA fuses nothing across them.
    windows, select = windows_2x2(x), jax.lax.select
    left, right = windows[:, :, :, :, 0], windows[:, :, :, :, 1]
    is_right = _greater(right, left)
    row = select(is_right, right, left)
    is_lower = _greater(row[:, :, 1], row[:, :, 0])
    column = is_right.astype(jnp.int8)
    position = select(is_lower, column[:, :, 1] + jnp.int8(2), column[:, :, 0])
    return select(is_lower, row[:, :, 1], row[:, :, 0]), position


def _greater(x, y):
    # A NaN is the maximum, as it is for `jnp.max`.
    return (x > y) | jnp.isnan(x)


def windows_2x2(x: jax.Array) -> jax.Array:
    """Return the disjoint 2x2 windows of images.

    They are [b, h // 2, 2, w // 2, 2, c] of [b, h, w, c].
    """
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)


def _ceil_padding(side, size, stride, padding):
    """Return the number of pixels that the last window rounded up lacks."""
    windows = -(-(side + 2 * padding - size) // stride) + 1
    windows -= (windows - 1) * stride >= side + padding
    return max(0, (windows - 1) * stride + size - side - 2 * padding)


def average_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Return the mean of each size x size window that fits.

    It maps [b, h, w, c] to [b, (h - size) // stride + 1, (w - size) // stride + 1, c].

    Example:
      >>> x = jnp.arange(6.0).reshape(1, 1, 6, 1) * jnp.ones((1, 3, 6, 1))
      >>> average_pool(x, 3, 2)[0, 0, :, 0].tolist()
      [1.0, 3.0]
    """
    # Not nn.avg_pool, which divides by an integer. That is an error where promotion is strict.
    total = nn.pooling.pool(x, 0.0, jax.lax.add, (size, size), (stride, stride), "VALID")
    return total / size**2


def adaptive_average(x: jax.Array, size: int) -> jax.Array:
    """Return means over size x size windows, whatever the image.

    It maps [b, h, w, c] to [b, size, size, c]. Window i covers pixels floor(i h / size) to
    ceil((i + 1) h / size), as in PyTorch's `adaptive_avg_pool2d`. Windows lie next to each other
    where `size` divides h, and overlap by one pixel elsewhere. Pixels are repeated where the image
    is smaller than `size`.

    Example:
      >>> adaptive_average(jnp.arange(5.0).reshape(1, 1, 5, 1), 2)[0, :, :, 0].tolist()
      [[1.0, 3.0], [1.0, 3.0]]
    """
    for axis in (1, 2):
        side = x.shape[axis]
        if side != size:
            edges = [(i * side // size, -(-(i + 1) * side // size)) for i in range(size)]
            means = [
                jax.lax.slice_in_dim(x, start, stop, axis=axis).mean(axis) for start, stop in edges
            ]
            x = jnp.stack(means, axis)
    return x


def resize_bilinear(x: jax.Array, height: int, width: int) -> jax.Array:
    """Interpolate maps linearly in both axes, with the centers of half pixels.

    It maps [b, h, w, c] to [b, height, width, c]. The center of pixel i of the result lies at
    (i + 1/2) h / height - 1/2 of the map, as in PyTorch's `interpolate(..., mode="bilinear",
    align_corners=False)`. Beyond the outer centers the map is continued by its border.

    Example:
      >>> resize_bilinear(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), 1, 4)[0, 0, :, 0].tolist()
      [0.0, 0.25, 0.75, 1.0]
    """
    # A map that is larger than the result is interpolated too, as PyTorch does it.
    shape = (len(x), height, width, x.shape[-1])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


def local_response_norm(
    x: jax.Array, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Divide each channel by a power of its neighbors' sum of squares.

    It maps [b, h, w, c] to the same shape and dtype. The result is
    x_i / (k + alpha (x_{i - size // 2}^2 + ... + x_{i + size // 2}^2))^beta, where channels outside
    count 0. Formula and default constants are those of Krizhevsky, Sutskever and Hinton 2012,
    "ImageNet classification with deep convolutional neural networks", section 3.3. PyTorch and
    Caffe divide alpha by `size`, so theirs is this with alpha / size. Their default k is 1.

    Example:
      >>> x = jnp.ones((1, 1, 1, 3))
      >>> local_response_norm(x, size=3, k=0.0, alpha=1.0, beta=1.0).ravel().tolist()
      [0.5, 0.3333333432674408, 0.5]
    """
    channels, reach = x.shape[-1], size // 2
    squares = jnp.pad(jnp.square(x.astype(jnp.float32)), ((0, 0), (0, 0), (0, 0), (reach, reach)))
    # Starts from the first term, not from 0, so that no integer enters the sum.
    total = sum((squares[..., i : i + channels] for i in range(1, size)), squares[..., :channels])
    return (x.astype(jnp.float32) * (k + alpha * total) ** -beta).astype(x.dtype)
