"""The reliability diagram: a classifier's accuracy against its confidence."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxcnn.plots.style import COLORS, SMALL, new_figure, style_axes

WIDTH = 6.0
"""Width of the figure, in inches."""
POINT_STYLE: dict[str, Any] = {
    "color": COLORS[0],
    "fmt": "o",
    "markersize": 7,
    "linewidth": 1.6,
    "capsize": 3,
    "clip_on": False,
}


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
    """Draw accuracy against confidence in bins, and a histogram below.

    The accuracy has its 95% interval. The histogram has the number of images in each bin. The
    arguments are the fields of the result of `jaxcnn.calibration.calibration`, in their order:
    `reliability(*result)`. In bins below the diagonal the network is more confident than accurate.

    Args:
      edges: of the bins, [bins + 1] in 0..1.
      counts: integers [bins].
      confidence: mean of each bin, [bins] in 0..1; NaN for empty bins, here and below.
      accuracy: [bins].
      low: [bins], lower ends of the accuracy's intervals.
      high: [bins], upper ends.
      title: above the figure.

    Raises:
      ValueError: the lengths of the arrays differ.

    Example:
      >>> bins = np.array([[np.nan, value] for value in (0.9, 0.8, 0.4, 1)])
      >>> figure = reliability(np.array([0, 0.5, 1]), np.array([0, 9]), *bins)
      >>> [axis.get_ylabel() for axis in figure.axes]
      ['accuracy (%)', 'images']

    References:
      Guo et al. 2017, figure 1 (https://arxiv.org/abs/1706.04599).
    """
    shapes = {np.shape(values) for values in (counts, confidence, accuracy, low, high)}
    if shapes != {(len(edges) - 1,)}:
        raise ValueError(
            f"{len(edges)} edges bound {len(edges) - 1} bins, but the other arrays are "
            f"{sorted(shapes)}"
        )
    figure = new_figure(WIDTH, 5.6, title=title, handles=_legend())
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    style_axes(upper, "", panel_width=WIDTH)
    style_axes(lower, "", panel_width=WIDTH)
    upper.plot([0, 100], [0, 100], color="0.35", linestyle="--", linewidth=1.2)
    is_filled = np.asarray(counts) > 0
    x, y, ends = (
        100 * np.asarray(values)[..., is_filled] for values in (confidence, accuracy, [low, high])
    )
    # Rounding may put an end beyond the accuracy, which `errorbar` refuses.
    upper.errorbar(x, y, np.maximum([y - ends[0], ends[1] - y], 0), **POINT_STYLE)
    upper.set(ylabel="accuracy (%)", xlim=(-2, 102), ylim=(-2, 104))
    _draw_histogram(lower, 100 * np.asarray(edges), np.asarray(counts))
    return figure


def _legend() -> list[Line2D]:
    points: dict[str, Any] = {"color": COLORS[0], "marker": "o", "linestyle": "-"}
    diagonal: dict[str, Any] = {"color": "0.35", "linestyle": "--", "linewidth": 1.2}
    return [
        Line2D([], [], label="bin with 95% interval", **points),
        Line2D([], [], label="as often right as sure", **diagonal),
    ]


def _draw_histogram(axis: Axes, edges: np.ndarray, counts: np.ndarray) -> None:
    """Draw bars, with their numbers if there are few bins."""
    style: dict[str, Any] = {"align": "edge", "color": COLORS[5], "edgecolor": "white"}
    axis.bar(edges[:-1], counts, np.diff(edges), **style)
    axis.set(xlabel="confidence (%)", ylabel="images")
    axis.margins(y=0.35)
    style = {"ha": "center", "va": "bottom", "fontsize": SMALL, "textcoords": "offset points"}
    if len(counts) <= 12:
        for center, n in zip((edges[:-1] + edges[1:]) / 2, counts, strict=True):
            axis.annotate(str(n), (center, n), xytext=(0, 2), **style)
