"""Rule for convolutions and their gradients.

It picks the form that is fastest on an x86 CPU. JAX's own run on a library for large matrices. It
is slow at the narrow layers of networks for small images. It is also slow at weight gradients,
which are convolutions with kernels as large as images. oneDNN is up to twice as fast at both.
`experiments/results/benchmark/tried.md` has the measurements, their method, and those of the
alternatives.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jaxcnn.cpu.onednn import DTYPES, NHWC, Geometry, available, convolution, proven
from jaxcnn.cpu.rewriting import Replacement

TRANSPOSED = (3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1)
"""Axes of JAX's weight gradient.

Channels replace the batch, and examples are summed over.
"""
MIN_CHANNELS = 6
"""Channels below which JAX's weight gradient is as fast or faster.

Within loops it is not: there it takes ten times as long and more.
"""
PART_BYTES = 2**21
"""Bytes of images and slopes in one part of a weight gradient.

They fit into one core's cache.
"""
MIN_IMAGES, MIN_POSITIONS = 16, 2**10
"""Minimum numbers of images and of positions in a part.

The first is the length of a vector. With fewer, the sums of the parts cost more than the parts.
"""


def rule(eqn: JaxprEqn, min_channels: int = MIN_CHANNELS) -> Replacement | None:
    """Return oneDNN's form of a two-dimensional convolution, or None.

    It is returned where it is faster, and only for a geometry that is `proven`.

    Args:
      eqn: an operation.
      min_channels: weight gradients of fewer channels are left as they are.
    """
    if eqn.primitive.name != "conv_general_dilated":
        return None
    params, avals = eqn.params, [v.aval for v in (*eqn.invars, *eqn.outvars)]
    x, slope, aval = cast(Any, avals)
    dtypes = {str(operand.dtype) for operand in cast(Any, avals)}
    groups = params["feature_group_count"] * params["batch_group_count"]
    if aval.ndim != 4 or groups != 1 or not aval.size:
        return None
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return None
    if "bfloat16" in dtypes and not available("bfloat16"):
        return None
    layouts = params["dimension_numbers"]
    out = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    if layouts.lhs_spec == layouts.out_spec == NHWC:
        if not proven(_image_geometry(params, x.shape, slope.shape)):
            return None
        return Replacement(partial(forward, params, out), materialize=(0,))
    no_gaps = params["window_strides"] == params["lhs_dilation"] == (1, 1)
    # For a slope of one position JAX's form is a product of matrices.
    dense = slope.shape[1:3] == (1, 1)
    if tuple(layouts) == TRANSPOSED and no_gaps and not dense and x.shape[3] >= min_channels:
        if x.shape[0] < 2 or not proven(_weight_geometry(params, x.shape, slope.shape)):
            return None
        return Replacement(partial(weight_gradient, params, out), materialize=(0, 1))
    return None


def crop_rule(eqn: JaxprEqn) -> Replacement | None:
    """Return a convolution with negative padding as one of cropped images, or None.

    `jaxcnn.cpu.crop_negative_padding` has the reason.
    """
    if (
        eqn.primitive.name != "conv_general_dilated"
        or min(map(min, eqn.params["padding"]), default=0) >= 0
    ):
        return None
    return Replacement(partial(crop_and_convolve, eqn.params))


def crop_and_convolve(params: dict[str, Any], x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Crop images by their negative padding, then convolve them.

    Args:
      params: of the operation.
      x: images.
      kernel: both have their axes as the operation's `dimension_numbers`.
    """
    gaps, start, stop, padding = [0] * x.ndim, [0] * x.ndim, list(x.shape), []
    axes, dilation = params["dimension_numbers"].lhs_spec[2:], list(params["lhs_dilation"])
    for number, (axis, sides) in enumerate(zip(axes, params["padding"], strict=True)):
        if min(sides) < 0:
            gaps[axis], dilation[number] = dilation[number] - 1, 1
        size = max(0, stop[axis] + (stop[axis] - 1) * gaps[axis])
        start[axis] = min(max(0, -sides[0]), size)
        stop[axis] = max(start[axis], size - max(0, -sides[1]))
        # If the image is smaller than its crop, the rest is taken off the padding of the other
        # side.
        missing = min(0, size + min(0, sides[0]) + min(0, sides[1]))
        padding.append(tuple(max(0, side + missing * (side > 0)) for side in sides))
    dilated = (
        jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, gap) for gap in gaps]) if any(gaps) else x
    )
    options = params | {"padding": tuple(padding), "lhs_dilation": tuple(dilation)}
    return jax.lax.conv_general_dilated_p.bind(
        jax.lax.slice(dilated, start, stop), kernel, **options
    )


def forward(
    params: dict[str, Any], out: jax.ShapeDtypeStruct, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """Convolve images.

    The gradient with respect to images is such a convolution too. It convolves the dilated slope
    with the rotated kernel.

    Args:
      params: of the operation.
      out: shape and dtype of the result.
      x: [b, h, w, c].
      kernel: its axes as the operation's `dimension_numbers`.
    """
    geometry = _image_geometry(params, x.shape, kernel.shape)
    layout = params["dimension_numbers"].rhs_spec
    x = _dilate_and_pad(x, params["padding"], geometry.padding, params["lhs_dilation"])
    return convolution(x, kernel, out, layout, geometry.padding, geometry.stride, geometry.dilation)


def weight_gradient(
    params: dict[str, Any], out: jax.ShapeDtypeStruct, x: jax.Array, slope: jax.Array
) -> jax.Array:
    """Return the gradient with respect to the kernel, [kh, kw, c, f].

    It is the sum over examples and positions of products of images and slopes. It is computed as a
    convolution of one image of b channels, [2 h, w c / 2, b]. The channels are divided between the
    rows (2) and the columns (c / 2). The kernel [h', w', b, f] has its rows 2 and its columns
    c / 2 apart. Its kw c / 2 columns of results make it fast. Its 2 kh rows are divided among the
    threads evenly.

    Args:
      params: of the operation.
      out: shape and dtype of the result.
      x: images [b, h, w, c].
      slope: [b, h', w', f].
    """
    (kh, kw, c, f), b = out.shape, len(x)
    geometry, (high, wide) = _weight_geometry(params, x.shape, slope.shape), _channel_split(c)
    onednn_padding = [
        (before // step, after // step)
        for (before, after), step in zip(geometry.padding, (high, wide), strict=True)
    ]
    x = _dilate_and_pad(x, params["padding"], onednn_padding, (1, 1))
    h, w = x.shape[1:3]

    def part(x, slope):
        n = len(x)
        image = x.reshape(n, h, w, high, wide).transpose(1, 3, 2, 4, 0)
        image = image.reshape(1, h * high, w * wide, n)
        shape = jax.ShapeDtypeStruct((1, kh * high, kw * wide, f), out.dtype)
        return convolution(
            image, slope, shape, (3, 0, 1, 2), geometry.padding, dilation=geometry.dilation
        )

    images_in_cache = 2 ** int(math.log2(PART_BYTES * b / (x.nbytes + slope.nbytes)))
    size = max(images_in_cache, MIN_IMAGES, MIN_POSITIONS // (h * w))
    # A single remaining image belongs to the last part.
    starts = range(0, b - 1, size)
    ends = [*starts[1:], b]
    parts = [
        part(x[i:j], slope[i:j]).astype(jnp.float32) for i, j in zip(starts, ends, strict=True)
    ]
    total = sum(parts[1:], parts[0]).astype(out.dtype).reshape(kh, high, kw, wide, f)
    return total.transpose(0, 2, 1, 3, 4).reshape(out.shape)


def _image_geometry(params, x, kernel) -> Geometry:
    """Return oneDNN's arguments for a convolution of images."""
    layout, dilation = params["dimension_numbers"].rhs_spec, params["rhs_dilation"]
    size = kernel[layout[2]], kernel[layout[3]]
    (h, rows), (w, columns) = map(
        _axis_geometry, x[1:3], params["padding"], params["lhs_dilation"], size, dilation
    )
    return Geometry(x[3], (h, w), size, (rows, columns), params["window_strides"], dilation)


def _weight_geometry(params, x, slope) -> Geometry:
    """Return oneDNN's arguments for a weight gradient.

    Its channels are the batch. A part has two or more examples.
    """
    high, wide = _channel_split(x[3])
    (h, rows), (w, columns) = map(
        _axis_geometry, x[1:3], params["padding"], (1, 1), slope[1:3], params["rhs_dilation"]
    )
    padding = [
        (before * step, after * step) for (before, after), step in ((rows, high), (columns, wide))
    ]
    down, across = params["rhs_dilation"]
    dilation = (down * high, across * wide)
    return Geometry(x[0], (h * high, w * wide), slope[1:3], padding, (1, 1), dilation)


def _axis_geometry(n, sides, step, k, dilation) -> tuple[int, tuple[int, int]]:
    """Return the image's size and oneDNN's padding along one axis.

    The size includes gaps and the padding that is written. oneDNN adds all padding but negative
    padding and the pixels beyond the kernel's reach. The size is 0 if negative padding leaves no
    pixel.
    """
    size = (n - 1) * step + 1
    cropped, reach = size + min(sides[0], 0) + min(sides[1], 0), (k - 1) * dilation
    before, after = (min(max(side, 0), reach) for side in sides)
    written = max(size + sum(sides) - before - after, 0) if cropped > 0 else 0
    return written, (before, after)


def _channel_split(channels: int) -> tuple[int, int]:
    """Return the numbers of channels per row and per column."""
    high = 2 if channels % 2 == 0 else 1
    return high, channels // high


def _dilate_and_pad(x, padding, onednn_padding, dilation) -> jax.Array:
    """Write the gaps between pixels, and padding that oneDNN does not add."""
    sides = zip(padding, onednn_padding, dilation, strict=True)
    config = [(before - a, after - b, step - 1) for (before, after), (a, b), step in sides]
    if not any(map(any, config)):
        return x
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
