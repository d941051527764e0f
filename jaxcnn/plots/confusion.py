"""The confusion matrix: true classes against predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from jaxcnn.plots.style import (
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
      counts: integers [k, k], of images of class row that were predicted as class column.
      classes: k names, drawn as they are, without formulas.
      title: above the figure.

    Raises:
      ValueError: shapes differ.

    Example:
      >>> figure = confusion(np.array([[8, 2], [0, 10]]), ["cat", "dog"])
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['8', '2', '10']
    """
    k = len(classes)
    if np.shape(counts) != (k, k):
        raise ValueError(
            f"counts are {np.shape(counts)}; expected [num_classes, num_classes], which is {(k, k)}"
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
    axis.set_xlabel("taken for")
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
