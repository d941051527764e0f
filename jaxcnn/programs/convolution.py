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

from jaxcnn.programs.onednn import DTYPES, NHWC, convolution
from jaxcnn.programs.replacing import Instead

TRANSPOSED = (3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1)
"""How JAX writes a weight gradient: channels take the batch's place, and examples are what is summed over."""
NARROW = 6
"""Below these channels JAX's weight gradient is as fast or faster, but in loops, where it takes ten times as long and more."""
CACHED, FEWEST, SUMMED = 2**21, 16, 2**10
"""Bytes of images and slopes whose weight gradient is made at a time: as many as one core's cache holds. But at least so many
images, the numbers of a vector, and so many places, or the sums of the parts cost more than the parts."""


def rule(eqn: JaxprEqn, narrow: int = NARROW) -> Instead | None:
    """oneDNN in place of a two-dimensional convolution, where it is the faster; None elsewhere.

    Weight gradients of fewer channels than `narrow` are left alone.
    """
    if eqn.primitive.name != "conv_general_dilated":
        return None
    params, avals = eqn.params, [v.aval for v in (*eqn.invars, *eqn.outvars)]
    x, slope, aval = cast(Any, avals)
    dtypes = {str(each.dtype) for each in cast(Any, avals)}
    groups = params["feature_group_count"] * params["batch_group_count"]
    if aval.ndim != 4 or groups != 1 or not aval.size or len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return None
    layouts = params["dimension_numbers"]
    out = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    if layouts.lhs_spec == layouts.out_spec == NHWC:
        return Instead(partial(forward, params, out), settled=(0,))
    plain = params["window_strides"] == params["lhs_dilation"] == (1, 1)
    dense = slope.shape[1:3] == (1, 1)  # a slope of one place: JAX's is a product of matrices
    if tuple(layouts) == TRANSPOSED and plain and not dense and x.shape[3] >= narrow:
        return Instead(partial(weight_gradient, params, out), settled=(0, 1))
    return None


def forward(params: dict[str, Any], out: jax.ShapeDtypeStruct, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of images, or its gradient by them, which is one too: of the dilated slope, with the kernel turned."""
    x, padding = _spread(x, params["padding"], params["lhs_dilation"])
    layout = params["dimension_numbers"].rhs_spec
    return convolution(x, kernel, out, layout, padding, params["window_strides"], params["rhs_dilation"])


def weight_gradient(params: dict[str, Any], out: jax.ShapeDtypeStruct, x: jax.Array, slope: jax.Array) -> jax.Array:
    """[b, h, w, c] and the slope [b, h', w', f] -> [kh, kw, c, f], the sum over examples and places of their products.

    It is a convolution of one image of b channels, [2 h, w c / 2, b]: half the channels lie next to each row, half next to each
    column, and the kernel [h', w', b, f] has its rows 2 and its columns c / 2 apart. Its kw c / 2 columns of results make
    it quick; its 2 kh rows are what threads share alike.
    """
    (kh, kw, c, f), (down, across) = out.shape, params["rhs_dilation"]
    x, (rows, columns) = _spread(x, params["padding"], (1, 1))
    b, h, w, _ = x.shape
    high = 2 if c % 2 == 0 else 1
    wide = c // high

    def part(x, slope):
        n = len(x)
        image = x.reshape(n, h, w, high, wide).transpose(1, 3, 2, 4, 0).reshape(1, h * high, w * wide, n)
        shape = jax.ShapeDtypeStruct((1, kh * high, kw * wide, f), out.dtype)
        padding = [tuple(edge * step for edge in edges) for edges, step in ((rows, high), (columns, wide))]
        return convolution(image, slope, shape, (3, 0, 1, 2), padding, dilation=(down * high, across * wide))

    cached = 2 ** int(math.log2(CACHED * b / (x.nbytes + slope.nbytes)))
    size = max(cached, FEWEST, SUMMED // (h * w))
    parts = [part(x[i : i + size], slope[i : i + size]) for i in range(0, b, size)]
    total = sum(parts[1:], parts[0]).reshape(kh, high, kw, wide, f)
    return total.transpose(0, 2, 1, 3, 4).reshape(out.shape)


def _spread(x, padding, dilation) -> tuple[jax.Array, Any]:
    """Images as oneDNN takes them, without gaps or negative padding, and the padding that is left to it."""
    cut = [(min(before, 0), min(after, 0), step - 1) for (before, after), step in zip(padding, dilation, strict=True)]
    if any(any(each) for each in cut):
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *cut, (0, 0, 0)])
    return x, tuple((max(before, 0), max(after, 0)) for before, after in padding)
