"""Figures of layers that resize maps.

They are pooling, upsampling and transposed convolution.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.filters import ops
from jaxcnn import plots

MAP = np.array([[1, 3, 0, 2], [5, 2, 1, 9], [4, 4, 7, 0], [0, 8, 6, 3]], np.float32)
"""Map that is pooled in numbers."""
NUMBER_STYLE: dict[str, Any] = {"fmt": "g", "cmap": "Blues", "limits": (0, 16)}
"""Style of tiles with numbers."""
SHRINK_FACTOR = 8
"""Factor by which the photograph is pooled."""


def pooling_figure(image: jax.Array) -> Any:
    """Return maximum and mean pooling, in numbers and on the photograph.

    The numbers are pooled by 2x2 squares, the photograph by 8x8.
    """
    small = jnp.asarray(MAP)[..., None]
    pooled = {"maximum": ops.max_pool(small, 2), "mean": ops.average_pool(small, 2)}
    squares = [(0, 0), (0, 2), (2, 0), (2, 2)]
    frames = [
        plots.Frame(*corner, 2, 2, color)
        for corner, color in zip(squares, plots.COLORS, strict=False)
    ]
    output_frames = [
        plots.Frame(corner[0] // 2, corner[1] // 2, 1, 1, color)
        for corner, color in zip(squares, plots.COLORS, strict=False)
    ]
    top_row = [plots.Tile(MAP, "map", frames=frames, **NUMBER_STYLE)]
    top_row += [
        plots.Tile(
            np.asarray(output)[..., 0], f"{name} of 2 × 2", frames=output_frames, **NUMBER_STYLE
        )
        for name, output in pooled.items()
    ]
    bottom_row = [plots.Tile(np.asarray(image), "photograph")]
    for name, pool in (("maximum", ops.max_pool), ("mean", ops.average_pool)):
        bottom_row.append(
            plots.Tile(
                np.asarray(pool(image, SHRINK_FACTOR)),
                f"{name} of {SHRINK_FACTOR} × {SHRINK_FACTOR}",
            )
        )
    return plots.tiles(
        [top_row, bottom_row],
        title="Pooling: the brightest of each square, or its mean",
        heights=[2.2, 3.4],
    )


def uniform_kernel(window: int) -> jax.Array:
    """Return a kernel [window, window, 1, 1] of equal numbers.

    At stride 2 it keeps the mean brightness.
    """
    return jnp.full((window, window, 1, 1), 4 / window**2)


def transposed_upsample(image: jax.Array, window: int, padding: int) -> jax.Array:
    """Return an image [h, w, c] of about twice the size.

    Each channel goes through a transposed convolution.
    """

    def upsample_channel(channel: jax.Array) -> jax.Array:
        kernel = uniform_kernel(window)
        return ops.transposed_convolution(channel[..., None], kernel, 2, padding)[..., 0]

    return jax.vmap(upsample_channel, -1, -1)(image)


def upsampling_figure(image: jax.Array) -> Any:
    """Return upsampled photographs, and how windows cover each pixel."""
    ones, counts = jnp.ones((3, 3, 1)), []
    for window, padding in ((2, 0), (3, 0), (4, 1)):
        counts_map = ops.transposed_convolution(ones, jnp.ones((window, window, 1, 1)), 2, padding)
        title = f"transposed, window {window}, stride 2"
        counts.append(
            plots.Tile(
                np.asarray(counts_map)[..., 0],
                title,
                "stamps on each pixel",
                fmt="g",
                cmap="Blues",
                limits=(0, 8),
            )
        )
    quarter = len(image) // 4
    small = ops.average_pool(image[quarter : 3 * quarter, quarter : 3 * quarter], 4)
    methods = {
        "nearest": lambda x: ops.nearest(x, 2),
        "bilinear": lambda x: ops.bilinear(x, 2),
        "transposed, window 2": lambda x: transposed_upsample(x, 2, 0),
        "transposed, window 3": lambda x: transposed_upsample(x, 3, 0),
        "transposed, window 4": lambda x: transposed_upsample(x, 4, 1),
    }
    results = jax.jit(
        lambda pixels: {name: method(method(pixels)) for name, method in methods.items()}
    )(small)
    tiles = [plots.Tile(np.asarray(results[name]), f"{name}, twice") for name in methods]
    rows = [[plots.Tile(np.asarray(small), "photograph, small"), *tiles[:2]], counts, tiles[2:]]
    title = "Larger maps: where windows overlap unevenly, a chequered pattern"
    return plots.tiles(rows, title=title, heights=[2.9, 2.6, 2.9])
