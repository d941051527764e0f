"""Layers that make maps smaller and larger: pooling, upsampling, transposed convolution."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.filters import ops
from jaxcnn import plots

MAP = np.array([[1, 3, 0, 2], [5, 2, 1, 9], [4, 4, 7, 0], [0, 8, 6, 3]], np.float32)
NUMBERS: dict[str, Any] = {"fmt": "g", "cmap": "Blues", "limits": (0, 16)}
TIMES = 8
"""How many times smaller the photograph becomes before it is made larger."""


def pooling(image: jax.Array) -> Any:
    """Maximum and mean of 2x2 squares in numbers, and of 8x8 squares on the photograph."""
    small = jnp.asarray(MAP)[..., None]
    pooled = {"maximum": ops.max_pool(small, 2), "mean": ops.average_pool(small, 2)}
    squares = [(0, 0), (0, 2), (2, 0), (2, 2)]
    frames = [plots.Frame(*at, 2, 2, colour) for at, colour in zip(squares, plots.COLORS, strict=False)]
    ones = [
        plots.Frame(at[0] // 2, at[1] // 2, 1, 1, colour) for at, colour in zip(squares, plots.COLORS, strict=False)
    ]
    above = [plots.Tile(MAP, "map", frames=frames, **NUMBERS)]
    above += [
        plots.Tile(np.asarray(out)[..., 0], f"{name} of 2 × 2", frames=ones, **NUMBERS) for name, out in pooled.items()
    ]
    below = [plots.Tile(np.asarray(image), "photograph")]
    for name, pool in (("maximum", ops.max_pool), ("mean", ops.average_pool)):
        below.append(plots.Tile(np.asarray(pool(image, TIMES)), f"{name} of {TIMES} × {TIMES}"))
    return plots.tiles([above, below], title="Pooling: the brightest of each square, or its mean", heights=[2.2, 3.4])


def smooth(window: int) -> jax.Array:
    """A kernel [window, window, 1, 1] of equal numbers that keeps the mean brightness at stride 2."""
    return jnp.full((window, window, 1, 1), 4 / window**2)


def stamped(image: jax.Array, window: int, padding: int) -> jax.Array:
    """A picture [h, w, c] twice as large, about, by a transposed convolution of each channel."""
    one = lambda channel: ops.transposed_convolution(channel[..., None], smooth(window), 2, padding)[..., 0]  # noqa: E731
    return jax.vmap(one, -1, -1)(image)


def upsampling(image: jax.Array) -> Any:
    """How many stamps fall on each pixel, above; what becomes of a small photograph, below."""
    ones, counts = jnp.ones((3, 3, 1)), []
    for window, padding in ((2, 0), (3, 0), (4, 1)):
        stamps = ops.transposed_convolution(ones, jnp.ones((window, window, 1, 1)), 2, padding)
        title = f"transposed, window {window}, stride 2"
        counts.append(
            plots.Tile(np.asarray(stamps)[..., 0], title, "stamps on each pixel", fmt="g", cmap="Blues", limits=(0, 8))
        )
    quarter = len(image) // 4
    small = ops.average_pool(image[quarter : 3 * quarter, quarter : 3 * quarter], 4)
    ways = {
        "nearest": lambda x: ops.nearest(x, 2),
        "bilinear": lambda x: ops.bilinear(x, 2),
        "transposed, window 2": lambda x: stamped(x, 2, 0),
        "transposed, window 3": lambda x: stamped(x, 3, 0),
        "transposed, window 4": lambda x: stamped(x, 4, 1),
    }
    twice = jax.jit(lambda pixels: {name: way(way(pixels)) for name, way in ways.items()})(small)
    made = [plots.Tile(np.asarray(twice[name]), f"{name}, twice") for name in ways]
    rows = [[plots.Tile(np.asarray(small), "photograph, small"), *made[:2]], counts, made[2:]]
    title = "Larger maps: where windows overlap unevenly, a chequered pattern"
    return plots.tiles(rows, title=title, heights=[2.9, 2.6, 2.9])
