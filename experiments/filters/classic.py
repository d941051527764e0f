"""The filters of image processing on a photograph, and local response normalisation on one pixel's channels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.filters import ops
from jaxcnn import plots

CHANNELS, LOUD = 24, {5: 30.0, 6: 12.0, 16: 18.0}
"""Of the pixel that is normalised: how many, and those that stand out of a murmur of 3."""


def kernel_tile(kernel: np.ndarray, title: str, **more: Any) -> plots.Tile:
    """Its numbers; fractions as what they are of the common denominator."""
    least = np.abs(kernel[kernel != 0]).min()
    shown = kernel / least if least < 1 else kernel
    over = f" / {round(1 / least)}" if least < 1 else ""
    most = float(np.abs(shown).max())
    return plots.Tile(shown, title + over, fmt=".0f", cmap="RdBu_r", limits=(-1.6 * most, 1.6 * most), **more)


def shown(name: str, image: jax.Array) -> np.ndarray:
    """What a filter makes of a picture [h, w, 3], as one can look at it; in 0..1.

    The brightness alone for filters whose numbers add up to 0: 0 is grey, and what is positive brighter.
    """
    kernel = ops.FILTERS[name]
    if abs(float(kernel.sum())) > 1e-3:
        return np.asarray(ops.apply_filter(image, kernel)).clip(0, 1)
    grey = image @ jnp.array([0.2126, 0.7152, 0.0722])  # luminance (ITU-R BT.709)
    edges = np.asarray(ops.apply_filter(grey[..., None], kernel))[..., 0]
    edges = 0.5 + 0.5 * edges / np.quantile(np.abs(edges), 0.995)
    return np.repeat(edges[..., None], 3, -1).clip(0, 1)


def filters(image: jax.Array) -> Any:
    """Each filter above what it makes of the middle of the photograph."""
    quarter = len(image) // 4
    middle = image[quarter : 3 * quarter, quarter : 3 * quarter]  # 3 pixels are too few to be seen in all of it
    rows = []
    for names in (list(ops.FILTERS)[:4], list(ops.FILTERS)[4:]):
        rows.append([kernel_tile(ops.FILTERS[name], name) for name in names])
        rows.append([plots.Tile(shown(name, middle)) for name in names])
    return plots.tiles(rows, title="Nine numbers make a filter", heights=[1.15, 3.0, 1.15, 3.0])


def competition(image: jax.Array) -> Any:
    """The channels of one pixel before and after; stronger constants than AlexNet's, so that one can see it."""
    before = np.full(CHANNELS, 3.0, np.float32)
    before[list(LOUD)] = list(LOUD.values())
    channels = list(range(1, CHANNELS + 1))
    panels = []
    for title, alpha in (("AlexNet's alpha, 0.0001", 1e-4), ("alpha 0.01, to see it", 1e-2)):
        after = np.asarray(ops.local_response_norm(jnp.asarray(before)[None, None], alpha=alpha))[0, 0]
        quiet = np.asarray(ops.local_response_norm(jnp.full((1, 1, CHANNELS), 3.0), alpha=alpha))[0, 0, CHANNELS // 2]
        lines = [
            plots.Line(channels, before / 3, label="before", color="0.6", marker="o"),
            plots.Line(channels, after / quiet, label="after", color=plots.COLORS[1], marker="o"),
        ]
        panels.append(plots.Panel(title, lines, (), "channel", "response (quiet channels: 1)", ylim=(0, 10.5)))
    return plots.panels(
        panels, title="Local response normalisation: a loud channel quiets its neighbours", size=(5.6, 3.6)
    )
