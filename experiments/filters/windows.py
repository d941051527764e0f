"""Convolution step by step, as a matrix product, and the windows that stride and padding leave."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.filters import ops
from experiments.filters.classic import kernel_tile
from jaxcnn import plots

PICTURE = np.array([[1, 1, 2, 8, 9], [1, 1, 2, 9, 8], [1, 2, 7, 9, 9], [2, 1, 8, 9, 8], [1, 2, 9, 8, 9]], np.float32)
"""Dark on the left and bright on the right: an edge for Sobel's filter."""
NUMBERS: dict[str, Any] = {"fmt": ".0f", "cmap": "Blues", "limits": (0, 22)}
SIGNED: dict[str, Any] = {"fmt": ".0f", "cmap": "RdBu_r", "limits": (-60, 60)}
SIZES = ((1, 0), (1, 1), (2, 0), (2, 1))
"""Stride and padding of the windows of 3 on 5 pixels that are drawn."""


def convolved(picture: np.ndarray, *kernels: np.ndarray) -> np.ndarray:
    """[h, w] and kernels [3, 3] -> [h - 2, w - 2, kernels]."""
    stacked = np.stack(kernels, -1)[:, :, None]
    return np.asarray(ops.convolution(jnp.asarray(picture)[..., None], jnp.asarray(stacked)))


def steps(image: jax.Array) -> Any:
    """Three of the places where the kernel lies."""
    kernel = ops.FILTERS["Sobel x"]
    full = convolved(PICTURE, kernel)[..., 0]
    rows = []
    for y, x in ((0, 0), (0, 1), (2, 2)):
        patch = PICTURE[y : y + 3, x : x + 3]
        upto = np.where(np.arange(9).reshape(3, 3) <= 3 * y + x, full, np.nan)
        first = not rows
        row = [
            plots.Tile(PICTURE, "picture" * first, frames=[plots.Frame(y, x, 3, 3)], **NUMBERS),
            "→",
            plots.Tile(patch, "patch" * first, **NUMBERS),
            "×",
            kernel_tile(kernel, "kernel" * first),
            "=",
            plots.Tile(patch * kernel, "products" * first, **SIGNED),
            f"sum = {full[y, x]:\u2007>2.0f}  →",
            plots.Tile(upto, "output" * first, frames=[plots.Frame(y, x, 1, 1)], **SIGNED),
        ]
        rows.append(row)
    return plots.tiles(rows, title="Convolution: a patch times the kernel, added up, is one number", heights=1.75)


def product(image: jax.Array) -> Any:
    """The patches as rows of a matrix, two kernels as columns of another."""
    kernels = [ops.FILTERS[name] for name in ("Sobel x", "Laplacian")]
    matrix = np.asarray(ops.patches(jnp.asarray(PICTURE)[..., None], (3, 3))).reshape(9, 9)
    columns = np.stack([kernel.ravel() for kernel in kernels], -1)  # [9, 2]
    out = convolved(PICTURE, *kernels)
    colours = plots.COLORS[1], plots.COLORS[2]
    windows = [plots.Frame(0, 0, 3, 3, colours[0]), plots.Frame(2, 2, 3, 3, colours[1])]
    row = [
        plots.Tile(PICTURE, "picture", frames=windows, share=0.6, **NUMBERS),
        "→",
        plots.Tile(
            matrix,
            "every patch is a row",
            frames=[plots.Frame(0, 0, 1, 9, colours[0]), plots.Frame(8, 0, 1, 9, colours[1])],
            **NUMBERS,
        ),
        "×",
        plots.Tile(columns, "kernels", fmt=".0f", cmap="RdBu_r", limits=(-6, 6)),
        "=",
        plots.Tile(
            out.reshape(9, 2),
            "product",
            frames=[plots.Frame(0, 0, 1, 2, colours[0]), plots.Frame(8, 0, 1, 2, colours[1])],
            **SIGNED,
        ),
        "→",
        *(plots.Tile(out[..., i], f"map {i + 1}", share=0.4, **SIGNED) for i in range(2)),
    ]
    return plots.tiles([row], title="Convolution as one matrix product (im2col)", heights=3.8)


def sizes(image: jax.Array) -> Any:
    """5 pixels, windows of 3: the first window of each row of windows, and the number of them."""
    cells = []
    for stride, padding in SIZES:
        count = ops.output_size(5, 3, stride, padding)
        around = np.pad(PICTURE, padding)
        kernel = jnp.asarray(ops.FILTERS["box blur"])[..., None, None]
        out = np.asarray(ops.convolution(jnp.asarray(PICTURE)[..., None], kernel, stride, padding))[..., 0]
        last = stride * (count - 1)
        blue, orange, green = plots.COLORS[0], plots.COLORS[1], plots.COLORS[2]
        frames = [
            plots.Frame(0, 0, 3, 3, orange),
            plots.Frame(0, stride, 3, 3, blue, 0.12),
            plots.Frame(last, last, 3, 3, green),
        ]
        places = [
            plots.Frame(0, 0, 1, 1, orange),
            plots.Frame(0, 1, 1, 1, blue),
            plots.Frame(count - 1, count - 1, 1, 1, green),
        ]
        sums = f"⌊(5 + 2·{padding} − 3) / {stride}⌋ + 1 = {count}"
        given = plots.Tile(around, f"stride {stride}, padding {padding}", frames=frames, margin=padding, **NUMBERS)
        made = plots.Tile(out, f"{count} × {count}", note=sums, fmt=".1f", cmap="Blues", limits=(0, 22), frames=places)
        cells.append([given, "→", made])
    rows = [[*cells[0], " ", *cells[1]], [*cells[2], " ", *cells[3]]]
    return plots.tiles(
        rows, title="Windows of 3 on 5 pixels (box blur): the first, its neighbour and the last", heights=2.5
    )
