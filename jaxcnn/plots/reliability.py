"""The reliability diagram: how often a classifier is right against how sure it was."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxcnn.plots.style import COLOURS, SMALL, sheet, tidy

WIDTH = 6.0
"""In inches."""


def reliability(
    edges: np.ndarray,
    counts: np.ndarray,
    confidence: np.ndarray,
    accuracy: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    title: str = "",
) -> Figure:
    """Accuracy against confidence in bins, with its 95% interval, and below how many images each bin has.

    The arguments are the fields of what `jaxcnn.calibration.calibration` gives, in their order: `reliability(*found)`.
    Points below the diagonal are bins whose images the network was surer of than it was right.

    Args:
      edges: of the bins, [bins + 1] in 0..1.
      counts: integers [bins].
      confidence: mean of each bin, [bins] in 0..1, NaN for empty ones, as the following.
      accuracy: [bins].
      low: [bins], where the interval of the accuracy begins.
      high: [bins], where it ends.
      title: above the figure.

    Raises:
      ValueError: for arrays that do not fit each other.

    Example:
      >>> figure = reliability(*np.array([[0, 0.5, 1]]), np.array([0, 9]), *np.array([[np.nan, p] for p in (0.9, 0.8, 0.4, 1)]))
      >>> [axis.get_ylabel() for axis in figure.axes]
      ['accuracy (%)', 'images']

    References:
      Guo et al. 2017, figure 1 (https://arxiv.org/abs/1706.04599).
    """
    shapes = {np.shape(values) for values in (counts, confidence, accuracy, low, high)}
    if shapes != {(len(edges) - 1,)}:
        raise ValueError(f"{len(edges)} edges bound {len(edges) - 1} bins, but the other arrays are {sorted(shapes)}")
    figure = sheet(WIDTH, 5.6, title=title, handles=_handles())
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    tidy(upper, "", width=WIDTH)
    tidy(lower, "", width=WIDTH)
    upper.plot([0, 100], [0, 100], color="0.35", linestyle="--", linewidth=1.2)
    there = np.asarray(counts) > 0
    x, y, ends = (100 * np.asarray(values)[..., there] for values in (confidence, accuracy, [low, high]))
    upper.errorbar(x, y, np.maximum([y - ends[0], ends[1] - y], 0), **_points())  # 0: but for rounding they are
    upper.set(ylabel="accuracy (%)", xlim=(-2, 102), ylim=(-2, 104))
    _histogram(lower, 100 * np.asarray(edges), np.asarray(counts))
    return figure


def _points() -> dict[str, Any]:
    return {"color": COLOURS[0], "fmt": "o", "markersize": 7, "linewidth": 1.6, "capsize": 3, "clip_on": False}


def _handles() -> list[Line2D]:
    points = Line2D([], [], color=COLOURS[0], marker="o", linestyle="-", label="bin with 95% interval")
    return [points, Line2D([], [], color="0.35", linestyle="--", linewidth=1.2, label="as often right as sure")]


def _histogram(axis: Axes, edges: np.ndarray, counts: np.ndarray) -> None:
    """Bars with their numbers, where there is room for those."""
    axis.bar(edges[:-1], counts, np.diff(edges), align="edge", color=COLOURS[5], edgecolor="white")
    axis.set(xlabel="confidence (%)", ylabel="images")
    axis.margins(y=0.35)
    style: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": SMALL}
    if len(counts) <= 12:
        for middle, n in zip((edges[:-1] + edges[1:]) / 2, counts, strict=True):
            axis.annotate(str(n), (middle, n), xytext=(0, 2), textcoords="offset points", **style)
