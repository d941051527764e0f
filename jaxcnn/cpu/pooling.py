"""Rule for the gradient of overlapping max pooling.

Its operations use all threads. JAX's own gradient runs on one thread, window by window.
"""

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

MAX_WINDOW = 64
"""Maximum number of pixels of a window.

Each has operations of its own in the program.
"""


def rule(eqn: JaxprEqn) -> Replacement | None:
    """Return `max_pool_gradient` for the gradient of max pooling, or None.

    It is the gradient of a maximum over windows of images [b, h, w, c]. Negative padding, strides
    over images or channels, empty arrays, and windows of more than `MAX_WINDOW` pixels are left as
    they are.
    """
    if eqn.primitive.name != "select_and_scatter_add":
        return None
    params, avals = eqn.params, cast(Any, [v.aval for v in eqn.invars])
    window, strides = params["window_dimensions"], params["window_strides"]
    padding = params["padding"]
    if len(window) != 4 or params["select_prim"].name != "ge":
        return None
    if {str(aval.dtype) for aval in avals} != {"float32"}:
        return None
    is_spatial = all(
        (window[axis], strides[axis], *padding[axis]) == (1, 1, 0, 0) for axis in (0, 3)
    )
    no_crop = all(edge >= 0 for sides in padding for edge in sides)
    if not is_spatial or not no_crop or math.prod(window) > MAX_WINDOW:
        return None
    if not all(aval.size for aval in avals):
        return None
    gradient = partial(max_pool_gradient, window[1:3], strides[1:3], padding[1:3])
    return Replacement(gradient, materialize=(0, 1))


def max_pool_gradient(
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[Sequence[int]],
    slope: jax.Array,
    x: jax.Array,
) -> jax.Array:
    """Return the gradient of max pooling with respect to its input.

    The slope of every window is added where that window has its maximum, the first of equal ones.
    The numbers are JAX's to the bit. Pixels at the same phase of the strides, such as those of even
    rows and odd columns, are computed together. Each is a sum over the windows that contain it, in
    their order. In a window that leaves the image, pixels that are all -inf get no slope.

    Args:
      window: (height, width).
      strides: down and across.
      padding: rows before and after, columns before and after; at least 0.
      slope: float32 [b, h', w', c], of the maxima.
      x: float32 [b, h, w, c], the input of the pooling.

    Returns:
      float32 [b, h, w, c].
    """
    (down, across), (rows, columns) = strides, slope.shape[1:3]
    (b, h, w, c), ((top, bottom), (left, right)) = x.shape, padding
    high, wide = -(-(h + top + bottom) // down), -(-(w + left + right) // across)
    offsets = list(itertools.product(*map(range, window)))
    x_padded = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    position = materialize(_argmax(x_padded, offsets, strides, slope.shape))

    def phase(row, column):
        total = jnp.zeros((b, high, wide, c), x.dtype)
        # The first of the windows that contain a pixel has it at the largest offset.
        for i, j in reversed(offsets):
            if (i % down, j % across) == (row, column):
                part = jnp.where(position == offsets.index((i, j)), slope, 0)
                r, s = i // down, j // across
                margins = ((0, 0), (r, high - r - rows), (s, wide - s - columns), (0, 0))
                total += jnp.pad(part, margins)
        return total

    phases = [jnp.stack([phase(r, s) for s in range(across)], 3) for r in range(down)]
    pixels = jnp.stack(phases, 2)
    return pixels.reshape(b, high * down, wide * across, c)[:, top : top + h, left : left + w]


def _argmax(x, offsets, strides, shape) -> jax.Array:
    """Return the index of each maximum's offset, int16 [b, h', w', c]."""
    (down, across), (_, rows, columns, _) = strides, shape
    views = [
        x[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * across + 1 : across]
        for i, j in offsets
    ]
    best, index = views[0], jnp.zeros(shape, jnp.int16)
    for number, view in enumerate(views[1:], 1):
        # Not view > best, which treats NaN otherwise than the operation's "ge".
        is_greater = ~(best >= view)
        best = jnp.where(is_greater, view, best)
        index = jnp.where(is_greater, jnp.int16(number), index)
    return index
