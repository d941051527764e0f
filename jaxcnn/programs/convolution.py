"""Convolutions of a program, and of its gradient, by the form that is fastest on an x86 CPU.

JAX's own run on a library that is good at large matrices, not at the narrow layers of networks for small images, nor at weight
gradients, which are convolutions with kernels as large as images. oneDNN is up to twice as fast at both.
`experiments/results/benchmark/tried.md` has the figures, how they were taken, and those of what was left.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jaxcnn.programs.onednn import DTYPES, NHWC, Geometry, available, convolution, proven
from jaxcnn.programs.replacing import Instead

TRANSPOSED = (3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1)
"""How JAX writes a weight gradient: channels take the batch's place, and examples are what is summed over."""
NARROW = 6
"""Below these channels JAX's weight gradient is as fast or faster, but in loops, where it takes ten times as long and more."""
CACHED, FEWEST, SUMMED = 2**21, 16, 2**10
"""Bytes of images and slopes whose weight gradient is made at a time: as many as one core's cache holds. But at least so many
images, the numbers of a vector, and so many places, or the sums of the parts cost more than the parts."""


def rule(eqn: JaxprEqn, narrow: int = NARROW) -> Instead | None:
    """Give oneDNN's form of a two-dimensional convolution, or None.

    It is given where it is the faster, and only for a geometry that is `proven`. Weight gradients of fewer channels than
    `narrow` are left alone.
    """
    if eqn.primitive.name != "conv_general_dilated":
        return None
    params, avals = eqn.params, [v.aval for v in (*eqn.invars, *eqn.outvars)]
    x, slope, aval = cast(Any, avals)
    dtypes = {str(each.dtype) for each in cast(Any, avals)}
    groups = params["feature_group_count"] * params["batch_group_count"]
    if aval.ndim != 4 or groups != 1 or not aval.size or len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return None
    if "bfloat16" in dtypes and not available("bfloat16"):
        return None
    layouts = params["dimension_numbers"]
    out = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    if layouts.lhs_spec == layouts.out_spec == NHWC:
        if not proven(_of_images(params, x.shape, slope.shape)):
            return None
        return Instead(partial(forward, params, out), settled=(0,))
    plain = params["window_strides"] == params["lhs_dilation"] == (1, 1)
    dense = slope.shape[1:3] == (1, 1)  # a slope of one place: JAX's is a product of matrices
    if tuple(layouts) == TRANSPOSED and plain and not dense and x.shape[3] >= narrow:
        if x.shape[0] < 2 or not proven(_of_weights(params, x.shape, slope.shape)):
            return None
        return Instead(partial(weight_gradient, params, out), settled=(0, 1))
    return None


def cropping(eqn: JaxprEqn) -> Instead | None:
    """Give a convolution with negative padding as one of cropped images, or None for any other operation.

    The results are the same by definition. XLA for CPUs of jaxlib 0.10 reads beyond the image for some of them, and the
    results are then arbitrary; that of 0.12 does not. Gradients by images have such padding where a convolution is padded
    by its kernel's size or more.
    """
    if eqn.primitive.name != "conv_general_dilated" or min(map(min, eqn.params["padding"]), default=0) >= 0:
        return None
    return Instead(partial(cropped, eqn.params))


def cropped(params: dict[str, Any], x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution with the pixels taken off that negative padding is for."""
    gaps, start, stop, padding = [0] * x.ndim, [0] * x.ndim, list(x.shape), []
    axes, dilation = params["dimension_numbers"].lhs_spec[2:], list(params["lhs_dilation"])
    for number, (axis, sides) in enumerate(zip(axes, params["padding"], strict=True)):
        if min(sides) < 0:
            gaps[axis], dilation[number] = dilation[number] - 1, 1
        size = max(0, stop[axis] + (stop[axis] - 1) * gaps[axis])
        start[axis] = min(max(0, -sides[0]), size)
        stop[axis] = max(start[axis], size - max(0, -sides[1]))
        # Where nothing is left of the image, what is to be taken off still is taken off the padding of the other side.
        missing = min(0, size + min(0, sides[0]) + min(0, sides[1]))
        padding.append(tuple(max(0, side + missing * (side > 0)) for side in sides))
    spread = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, gap) for gap in gaps]) if any(gaps) else x
    options = params | {"padding": tuple(padding), "lhs_dilation": tuple(dilation)}
    return jax.lax.conv_general_dilated_p.bind(jax.lax.slice(spread, start, stop), kernel, **options)


def forward(params: dict[str, Any], out: jax.ShapeDtypeStruct, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of images, or its gradient by them, which is one too: of the dilated slope, with the kernel turned."""
    geometry, layout = _of_images(params, x.shape, kernel.shape), params["dimension_numbers"].rhs_spec
    x = _spread(x, params["padding"], geometry.padding, params["lhs_dilation"])
    return convolution(x, kernel, out, layout, geometry.padding, geometry.stride, geometry.dilation)


def weight_gradient(params: dict[str, Any], out: jax.ShapeDtypeStruct, x: jax.Array, slope: jax.Array) -> jax.Array:
    """[b, h, w, c] and the slope [b, h', w', f] -> [kh, kw, c, f], the sum over examples and places of their products.

    It is a convolution of one image of b channels, [2 h, w c / 2, b]: half the channels lie next to each row, half next to each
    column, and the kernel [h', w', b, f] has its rows 2 and its columns c / 2 apart. Its kw c / 2 columns of results make
    it quick; its 2 kh rows are what threads share alike.
    """
    (kh, kw, c, f), b = out.shape, len(x)
    geometry, (high, wide) = _of_weights(params, x.shape, slope.shape), _beside(c)
    left = [
        (before // step, after // step) for (before, after), step in zip(geometry.padding, (high, wide), strict=True)
    ]
    x = _spread(x, params["padding"], left, (1, 1))
    h, w = x.shape[1:3]

    def part(x, slope):
        n = len(x)
        image = x.reshape(n, h, w, high, wide).transpose(1, 3, 2, 4, 0).reshape(1, h * high, w * wide, n)
        shape = jax.ShapeDtypeStruct((1, kh * high, kw * wide, f), out.dtype)
        return convolution(image, slope, shape, (3, 0, 1, 2), geometry.padding, dilation=geometry.dilation)

    cached = 2 ** int(math.log2(CACHED * b / (x.nbytes + slope.nbytes)))
    size = max(cached, FEWEST, SUMMED // (h * w))
    starts = range(0, b - 1, size)  # one image that is left over belongs to the last part
    ends = [*starts[1:], b]
    parts = [part(x[i:j], slope[i:j]).astype(jnp.float32) for i, j in zip(starts, ends, strict=True)]
    total = sum(parts[1:], parts[0]).astype(out.dtype).reshape(kh, high, kw, wide, f)
    return total.transpose(0, 2, 1, 3, 4).reshape(out.shape)


def _of_images(params, x, kernel) -> Geometry:
    """What oneDNN is given for a convolution of images."""
    layout, dilation = params["dimension_numbers"].rhs_spec, params["rhs_dilation"]
    size = kernel[layout[2]], kernel[layout[3]]
    (h, rows), (w, columns) = map(_split, x[1:3], params["padding"], params["lhs_dilation"], size, dilation)
    return Geometry(x[3], (h, w), size, (rows, columns), params["window_strides"], dilation)


def _of_weights(params, x, slope) -> Geometry:
    """What oneDNN is given for a weight gradient: its channels are the batch, of which a part has two or more examples."""
    high, wide = _beside(x[3])
    (h, rows), (w, columns) = map(_split, x[1:3], params["padding"], (1, 1), slope[1:3], params["rhs_dilation"])
    padding = [(before * step, after * step) for (before, after), step in ((rows, high), (columns, wide))]
    down, across = params["rhs_dilation"]
    return Geometry(x[0], (h * high, w * wide), slope[1:3], padding, (1, 1), (down * high, across * wide))


def _split(n, sides, step, k, apart) -> tuple[int, tuple[int, int]]:
    """Of one axis: the image's size with gaps and what is written of its padding, and the padding that is left to oneDNN.

    All but negative padding, and what exceeds the kernel, is left. The size is 0 if negative padding leaves nothing.
    """
    cut, most = (n - 1) * step + 1 + min(sides[0], 0) + min(sides[1], 0), (k - 1) * apart
    before, after = (min(max(side, 0), most) for side in sides)
    return max((n - 1) * step + 1 + sum(sides) - before - after, 0) if cut > 0 else 0, (before, after)


def _beside(channels: int) -> tuple[int, int]:
    """How many channels lie beside each row, and beside each column."""
    high = 2 if channels % 2 == 0 else 1
    return high, channels // high


def _spread(x, padding, left, dilation) -> jax.Array:
    """Images with gaps between their pixels and all their padding but that which is `left` to oneDNN."""
    sides = zip(padding, left, dilation, strict=True)
    config = [(before - a, after - b, step - 1) for (before, after), (a, b), step in sides]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)]) if any(map(any, config)) else x
