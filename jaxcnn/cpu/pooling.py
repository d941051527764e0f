"""The gradient of overlapping max pooling in operations that use all threads: JAX's own runs on one, window by window."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jaxcnn.cpu.rewriting import Replacement, materialize

WIDEST = 64
"""Most pixels of a window: each has operations of its own in the program."""


def rule(eqn: JaxprEqn) -> Replacement | None:
    """Give `scattered` in place of the gradient of a maximum over windows of images [b, h, w, c], or None.

    Left alone are negative padding, strides over images or channels, empty arrays, and windows of over `WIDEST` pixels.
    """
    if eqn.primitive.name != "select_and_scatter_add":
        return None
    params, avals = eqn.params, cast(Any, [v.aval for v in eqn.invars])
    window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
    if len(window) != 4 or params["select_prim"].name != "ge" or {str(aval.dtype) for aval in avals} != {"float32"}:
        return None
    alone = all((window[axis], strides[axis], *padding[axis]) == (1, 1, 0, 0) for axis in (0, 3))
    padded = all(edge >= 0 for sides in padding for edge in sides)
    if not alone or not padded or math.prod(window) > WIDEST or not all(aval.size for aval in avals):
        return None
    return Replacement(partial(scattered, window[1:3], strides[1:3], padding[1:3]), materialize=(0, 1))


def scattered(
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[Sequence[int]],
    slope: jax.Array,
    x: jax.Array,
) -> jax.Array:
    """The slope of every window, added where that window has its maximum, the first of equal ones: JAX's numbers to the bit.

    Pixels that lie alike in the pattern of strides, such as those of even rows and odd columns, are made together: each is a
    sum over the windows that hold it, in their order. Of a window that leaves the image, pixels that are all -inf get nothing.

    Args:
      window: (height, width).
      strides: down and across.
      padding: rows before and after, columns before and after; at least 0.
      slope: float32 [b, h', w', c], of the maxima.
      x: float32 [b, h, w, c], what they are of.

    Returns:
      float32 [b, h, w, c].
    """
    (down, across), (rows, columns) = strides, slope.shape[1:3]
    (b, h, w, c), ((top, bottom), (left, right)) = x.shape, padding
    high, wide = -(-(h + top + bottom) // down), -(-(w + left + right) // across)
    offsets = list(itertools.product(*map(range, window)))
    at = materialize(
        _maxima(jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf), offsets, strides, slope.shape)
    )

    def alike(row, column):
        total = jnp.zeros((b, high, wide, c), x.dtype)
        for i, j in reversed(offsets):  # of the windows that hold a pixel, the first has it at the largest offset
            if (i % down, j % across) == (row, column):
                part = jnp.where(at == offsets.index((i, j)), slope, 0)
                r, s = i // down, j // across
                total += jnp.pad(part, ((0, 0), (r, high - r - rows), (s, wide - s - columns), (0, 0)))
        return total

    pixels = jnp.stack([jnp.stack([alike(r, s) for s in range(across)], 3) for r in range(down)], 2)
    return pixels.reshape(b, high * down, wide * across, c)[:, top : top + h, left : left + w]


def _maxima(x, offsets, strides, shape) -> jax.Array:
    """int16 [b, h', w', c]: which of the offsets holds the maximum of each window."""
    (down, across), (_, rows, columns, _) = strides, shape
    views = [
        x[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * across + 1 : across] for i, j in offsets
    ]
    best, at = views[0], jnp.zeros(shape, jnp.int16)
    for number, view in enumerate(views[1:], 1):
        more = ~(best >= view)
        best, at = jnp.where(more, view, best), jnp.where(more, jnp.int16(number), at)
    return at
