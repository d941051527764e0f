"""Figures of convolution: its steps, its matrix product, its windows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.filters import ops
from experiments.filters.classic import kernel_tile
from jaxcnn import plots

PICTURE = np.array(
    [[1, 1, 2, 8, 9], [1, 1, 2, 9, 8], [1, 2, 7, 9, 9], [2, 1, 8, 9, 8], [1, 2, 9, 8, 9]],
    np.float32,
)
"""Image with an edge for Sobel's filter.

It is dark on the left and bright on the right.
"""
NUMBER_STYLE: dict[str, Any] = {"fmt": ".0f", "cmap": "Blues", "limits": (0, 22)}
"""Style of tiles with positive numbers."""
SIGNED_STYLE: dict[str, Any] = {"fmt": ".0f", "cmap": "RdBu_r", "limits": (-60, 60)}
"""Style of tiles with signed numbers."""
SIZES = ((1, 0), (1, 1), (2, 0), (2, 1))
"""Stride and padding of the drawn windows of 3 on 5 pixels."""


def convolve(image: np.ndarray, *kernels: np.ndarray) -> np.ndarray:
    """Return the convolution of an image with 3x3 kernels.

    Args:
      image: [h, w].
      kernels: each [3, 3].

    Returns:
      [h - 2, w - 2, kernels].
    """
    stacked = np.stack(kernels, -1)[:, :, None]
    return np.asarray(ops.convolution(jnp.asarray(image)[..., None], jnp.asarray(stacked)))


def steps_figure(image: jax.Array) -> Any:
    """Return three of the positions of the kernel."""
    kernel = ops.FILTERS["Sobel x"]
    output = convolve(PICTURE, kernel)[..., 0]
    rows = []
    for y, x in ((0, 0), (0, 1), (2, 2)):
        patch = PICTURE[y : y + 3, x : x + 3]
        partial = np.where(np.arange(9).reshape(3, 3) <= 3 * y + x, output, np.nan)
        is_first = not rows
        row = [
            plots.Tile(
                PICTURE, "picture" * is_first, frames=[plots.Frame(y, x, 3, 3)], **NUMBER_STYLE
            ),
            "→",
            plots.Tile(patch, "patch" * is_first, **NUMBER_STYLE),
            "×",
            kernel_tile(kernel, "kernel" * is_first),
            "=",
            plots.Tile(patch * kernel, "products" * is_first, **SIGNED_STYLE),
            f"sum = {output[y, x]:\u2007>2.0f}  →",
            plots.Tile(
                partial, "output" * is_first, frames=[plots.Frame(y, x, 1, 1)], **SIGNED_STYLE
            ),
        ]
        rows.append(row)
    return plots.tiles(
        rows, title="Convolution: a patch times the kernel, added up, is one number", heights=1.75
    )


def product_figure(image: jax.Array) -> Any:
    """Return the patches as rows of a matrix, times kernels as columns."""
    kernels = [ops.FILTERS[name] for name in ("Sobel x", "Laplacian")]
    matrix = np.asarray(ops.patches(jnp.asarray(PICTURE)[..., None], (3, 3))).reshape(9, 9)
    columns = np.stack([kernel.ravel() for kernel in kernels], -1)  # [9, 2]
    output = convolve(PICTURE, *kernels)
    colors = plots.COLORS[1], plots.COLORS[2]
    image_frames = [plots.Frame(0, 0, 3, 3, colors[0]), plots.Frame(2, 2, 3, 3, colors[1])]
    row = [
        plots.Tile(PICTURE, "picture", frames=image_frames, share=0.6, **NUMBER_STYLE),
        "→",
        plots.Tile(
            matrix,
            "every patch is a row",
            frames=[plots.Frame(0, 0, 1, 9, colors[0]), plots.Frame(8, 0, 1, 9, colors[1])],
            **NUMBER_STYLE,
        ),
        "×",
        plots.Tile(columns, "kernels", fmt=".0f", cmap="RdBu_r", limits=(-6, 6)),
        "=",
        plots.Tile(
            output.reshape(9, 2),
            "product",
            frames=[plots.Frame(0, 0, 1, 2, colors[0]), plots.Frame(8, 0, 1, 2, colors[1])],
            **SIGNED_STYLE,
        ),
        "→",
        *(plots.Tile(output[..., i], f"map {i + 1}", share=0.4, **SIGNED_STYLE) for i in range(2)),
    ]
    return plots.tiles([row], title="Convolution as one matrix product (im2col)", heights=3.8)


def sizes_figure(image: jax.Array) -> Any:
    """Return the windows of 3 on 5 pixels, by stride and padding.

    Each panel has the first window, its neighbor and the last, and their number.
    """
    cells = []
    for stride, padding in SIZES:
        count = ops.output_size(5, 3, stride, padding)
        padded = np.pad(PICTURE, padding)
        kernel = jnp.asarray(ops.FILTERS["box blur"])[..., None, None]
        output = np.asarray(
            ops.convolution(jnp.asarray(PICTURE)[..., None], kernel, stride, padding)
        )[..., 0]
        last = stride * (count - 1)
        blue, orange, green = plots.COLORS[0], plots.COLORS[1], plots.COLORS[2]
        frames = [
            plots.Frame(0, 0, 3, 3, orange),
            plots.Frame(0, stride, 3, 3, blue, 0.12),
            plots.Frame(last, last, 3, 3, green),
        ]
        output_frames = [
            plots.Frame(0, 0, 1, 1, orange),
            plots.Frame(0, 1, 1, 1, blue),
            plots.Frame(count - 1, count - 1, 1, 1, green),
        ]
        formula = f"⌊(5 + 2·{padding} − 3) / {stride}⌋ + 1 = {count}"
        input_tile = plots.Tile(
            padded,
            f"stride {stride}, padding {padding}",
            frames=frames,
            margin=padding,
            **NUMBER_STYLE,
        )
        output_tile = plots.Tile(
            output,
            f"{count} × {count}",
            note=formula,
            fmt=".1f",
            cmap="Blues",
            limits=(0, 22),
            frames=output_frames,
        )
        cells.append([input_tile, "→", output_tile])
    rows = [[*cells[0], " ", *cells[1]], [*cells[2], " ", *cells[3]]]
    return plots.tiles(
        rows,
        title="Windows of 3 on 5 pixels (box blur): the first, its neighbour and the last",
        heights=2.5,
    )
