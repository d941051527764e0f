"""Maps of a quantity over steps and layers, in colours of one logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.plots.style import LABEL, SMALL, TICK, new_figure, style_axes

MAP = "viridis"
DECADES = 10
"""The colours reach over so many powers of ten at most; what is smaller has the darkest."""


class Map(NamedTuple):
    """One panel."""

    title: str
    steps: Sequence[int]
    """[t], in increasing order."""
    values: np.ndarray
    """float64 [layers, t], above 0; nan where there is none."""
    diverged: int | None = None
    """The step at which training ended so."""


def maps(panels: Sequence[Map], *, columns: int, label: str, title: str, size: tuple[float, float] = (3.3, 2.9)) -> Any:
    """Panels in rows with the layers of each from the bottom up, and one bar of colours for all.

    Example:
      >>> one = Map("plain-8", [0, 10, 20], np.ones((7, 3)))
      >>> figure = maps([one], columns=1, label="gradient norm", title="")
      >>> figure.axes[0].get_xlabel()
      'step'
    """
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(columns * size[0] + 1.0, rows * size[1], title=title)
    low, high = limits([panel.values for panel in panels])
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        mesh = _draw(axis, panel, size[0], low, high)
        axis.set_xlabel("step", fontsize=LABEL)
        axis.set_ylabel("layer", fontsize=LABEL)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    bar = figure.colorbar(mesh, ax=axes.tolist(), pad=0.02, aspect=28, extend="both")
    bar.set_label(label, fontsize=LABEL)
    bar.ax.tick_params(labelsize=TICK)
    return figure


def limits(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """What the colours reach from and to: all but a hundredth at each end, and `DECADES` at most below the greatest.

    Example:
      >>> limits([np.array([[1e-30, 1.0, 10.0]])])[0] >= 1e-7
      True
    """
    found = np.concatenate([part.ravel() for part in values])
    found = found[np.isfinite(found) & (found > 0)]
    if not found.size:
        return 0.1, 1.0
    low, high = np.quantile(found, (0.01, 0.99))
    return float(max(low, high / 10**DECADES)), float(max(high, 1.01 * low))


def _draw(axis: Any, panel: Map, width: float, low: float, high: float) -> Any:
    style_axes(axis, panel.title, width=width)
    axis.grid(False)
    centres = np.asarray(panel.steps, np.float64)
    middles = (centres[1:] + centres[:-1]) / 2
    first, last = (middles[:1], middles[-1:]) if middles.size else (centres + 1, centres - 1)
    across = np.concatenate([2 * centres[:1] - first, middles, 2 * centres[-1:] - last])
    up = np.arange(len(panel.values) + 1) + 0.5
    shown = np.ma.masked_invalid(np.maximum(panel.values, np.finfo(np.float64).tiny))
    mesh = axis.pcolormesh(across, up, shown, cmap=MAP, norm="log", rasterized=True)
    mesh.set_clim(low, high)
    if panel.diverged is not None:
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL + 1, "transform": axis.transAxes}
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        axis.text(0.5, 0.5, f"diverged at\nstep {panel.diverged}", color="#C00000", bbox=box, **style)
    return mesh
