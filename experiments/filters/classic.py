"""Figures of classic filters and of local response normalization."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.filters import ops
from jaxcnn import plots

NUM_CHANNELS, LOUD_CHANNELS = 24, {5: 30.0, 6: 12.0, 16: 18.0}
"""Number of channels of the normalized pixel, and its loud channels.

The others have a value of 3.
"""


def kernel_tile(kernel: np.ndarray, title: str, **kwargs: Any) -> plots.Tile:
    """Return a tile with the kernel's numbers.

    Fractions are shown as numerators of their common denominator.
    """
    smallest = np.abs(kernel[kernel != 0]).min()
    values = kernel / smallest if smallest < 1 else kernel
    suffix = f" / {round(1 / smallest)}" if smallest < 1 else ""
    greatest = float(np.abs(values).max())
    return plots.Tile(
        values,
        title + suffix,
        fmt=".0f",
        cmap="RdBu_r",
        limits=(-1.6 * greatest, 1.6 * greatest),
        **kwargs,
    )


def filtered_image(name: str, image: jax.Array) -> np.ndarray:
    """Return a filtered image [h, w, 3] for display, in 0..1.

    For filters whose numbers add up to 0, only the brightness is filtered. There 0 is gray, and
    positive values are brighter.
    """
    kernel = ops.FILTERS[name]
    if abs(float(kernel.sum())) > 1e-3:
        return np.asarray(ops.apply_filter(image, kernel)).clip(0, 1)
    # Luminance (ITU-R BT.709).
    gray = image @ jnp.array([0.2126, 0.7152, 0.0722])
    edges = np.asarray(ops.apply_filter(gray[..., None], kernel))[..., 0]
    edges = 0.5 + 0.5 * edges / np.quantile(np.abs(edges), 0.995)
    return np.repeat(edges[..., None], 3, -1).clip(0, 1)


def filters_figure(image: jax.Array) -> Any:
    """Return each filter above its result on the middle of the photograph."""
    quarter = len(image) // 4
    # 3 pixels are too few to be seen in the whole photograph.
    middle = image[quarter : 3 * quarter, quarter : 3 * quarter]
    rows = []
    for names in (list(ops.FILTERS)[:4], list(ops.FILTERS)[4:]):
        rows.append([kernel_tile(ops.FILTERS[name], name) for name in names])
        rows.append([plots.Tile(filtered_image(name, middle)) for name in names])
    return plots.tiles(rows, title="Nine numbers make a filter", heights=[1.15, 3.0, 1.15, 3.0])


def lrn_figure(image: jax.Array) -> Any:
    """Return the channels of one pixel before and after normalization.

    A second panel has a larger alpha than AlexNet's, to make the effect visible.
    """
    inputs = np.full(NUM_CHANNELS, 3.0, np.float32)
    inputs[list(LOUD_CHANNELS)] = list(LOUD_CHANNELS.values())
    channels = list(range(1, NUM_CHANNELS + 1))
    panels = []
    for title, alpha in (("AlexNet's alpha, 0.0001", 1e-4), ("alpha 0.01, to see it", 1e-2)):
        normalized = ops.local_response_norm(jnp.asarray(inputs)[None, None], alpha=alpha)
        outputs = np.asarray(normalized)[0, 0]
        quiet = ops.local_response_norm(jnp.full((1, 1, NUM_CHANNELS), 3.0), alpha=alpha)
        quiet_output = np.asarray(quiet)[0, 0, NUM_CHANNELS // 2]
        lines = [
            plots.Line(channels, inputs / 3, label="before", color="0.6", marker="o"),
            plots.Line(
                channels, outputs / quiet_output, label="after", color=plots.COLORS[1], marker="o"
            ),
        ]
        panels.append(
            plots.Panel(title, lines, (), "channel", "response (quiet channels: 1)", ylim=(0, 10.5))
        )
    return plots.panels(
        panels,
        title="Local response normalisation: a loud channel quiets its neighbours",
        size=(5.6, 3.6),
    )
