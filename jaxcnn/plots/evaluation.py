"""Evaluation of a classifier: confusion matrix and reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxcnn.plots.style import (
    COLORS,
    LABEL,
    SMALL,
    TICK,
    new_figure,
    plain_text_style,
    printable,
    style_axes,
    text_width,
)

CMAP = colormaps["Blues"]
MAX_NUMBERED_CLASSES = 30
"""Number of classes up to which counts are written in the cells."""


def confusion(counts: np.ndarray, classes: Sequence[str], *, title: str = "") -> Figure:
    """Draw cells colored by the share of their row, the true class.

    The number of images is written in them.

    Args:
      counts: integers [k, k], as `jaxcnn.metrics.confusion` returns them: images of class row that
        were predicted as class column.
      classes: k names, drawn as they are, without formulas.
      title: above the figure.

    Raises:
      ValueError: shapes differ, or a count is no number from 0.

    Example:
      >>> figure = confusion(np.array([[8, 2], [0, 10]]), ["cat", "dog"])
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['8', '2', '10']
    """
    if isinstance(classes, str):
        raise ValueError(
            f"classes is the text {classes!r}; expected a name for each class. "
            "Write classes=data.classes."
        )
    counts, classes = np.asarray(counts), [str(name) for name in classes]
    k = len(classes)
    if not k or counts.shape != (k, k):
        raise ValueError(
            f"counts are {counts.shape} and classes has {k} names; expected [num_classes, "
            "num_classes] and a name for each class"
        )
    if counts.dtype.kind not in "iu" or counts.min() < 0:
        raise ValueError(
            f"counts are {counts.dtype} from {counts.min()}; expected whole numbers from 0. "
            "Write counts=jaxcnn.metrics.confusion(labels, predicted, num_classes)."
        )
    total = counts.sum(1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros((k, k)), where=total > 0)
    has_numbers = k <= MAX_NUMBERED_CLASSES
    classes = [printable(name) for name in classes]
    names_width = max(text_width(name, TICK, plain=True) for name in classes)
    number_width = text_width(str(counts.max()), SMALL) + 0.16
    cell = max(0.3, number_width) if has_numbers else 6.0 / k
    width, height = k * cell + names_width + 1.6, k * cell + names_width + 1.0
    figure = new_figure(max(4.6, width), max(3.4, height), title=title)
    axis = figure.add_subplot()
    style_axes(axis, "", panel_width=k * cell)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    edges = np.arange(k + 1) - 0.5
    style: dict[str, Any] = {"edgecolors": "white", "linewidth": has_numbers}
    mesh = axis.pcolormesh(edges, edges, 100 * share, cmap=CMAP, vmin=0, vmax=100, **style)
    axis.set_aspect("equal")
    axis.set_ylim(k - 0.5, -0.5)
    if has_numbers or k <= 100:
        size = TICK if has_numbers else 360 / k
        style = plain_text_style(*classes) | {"fontsize": size}
        axis.set_xticks(range(k), classes, rotation=90 if k > 6 or names_width > 1 else 0, **style)
        axis.set_yticks(range(k), classes, **style)
    axis.tick_params(length=0)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    for (row, column), n in np.ndenumerate(counts if has_numbers else np.zeros((0, 0), int)):
        if n:
            color = "white" if share[row, column] > 0.55 else "black"
            axis.text(column, row, str(n), ha="center", va="center", color=color, fontsize=SMALL)
    bar = figure.colorbar(mesh, ax=axis, pad=0.02, shrink=0.8)
    bar.set_label("share of the true class (%)", fontsize=LABEL - 1)
    bar.ax.tick_params(labelsize=TICK)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


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
    arguments are the fields of the result of `jaxcnn.metrics.calibration`, in their order:
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
        Line2D([], [], label="accuracy = confidence", **diagonal),
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
