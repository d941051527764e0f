"""The confusion matrix: which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from jaxcnn.plots.style import LABEL, SMALL, TICK, extent, sheet, tidy
from jaxcnn.plots.text import plain, text_style

MAP = colormaps["Blues"]
MOST = 30
"""Classes up to which numbers are written in the cells."""


def confusion(counts: np.ndarray, classes: Sequence[str], *, title: str = "") -> Figure:
    """Cells coloured by the share of their row, the true class, with the number of images written in them.

    Args:
      counts: integers [k, k], of images of class row that were taken for class column.
      classes: k names, drawn as they are, without formulas.
      title: above the figure.

    Raises:
      ValueError: for shapes that differ.

    Example:
      >>> figure = confusion(np.array([[8, 2], [0, 10]]), ["cat", "dog"])
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['8', '2', '10']
    """
    k = len(classes)
    if np.shape(counts) != (k, k):
        raise ValueError(f"counts are {np.shape(counts)}; expected [classes, classes], which is {(k, k)}")
    total = counts.sum(1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros((k, k)), where=total > 0)
    written = k <= MOST
    classes = [plain(name) for name in classes]
    names = max(extent(name, TICK, plain=True) for name in classes)
    cell = max(0.3, extent(str(counts.max()), SMALL) + 0.16) if written else 6.0 / k
    figure = sheet(max(4.6, k * cell + names + 1.6), max(3.4, k * cell + names + 1.0), title=title)
    axis = figure.add_subplot()
    tidy(axis, "", width=k * cell)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    edges = np.arange(k + 1) - 0.5
    mesh = axis.pcolormesh(edges, edges, 100 * share, cmap=MAP, vmin=0, vmax=100, edgecolors="white", linewidth=written)
    axis.set_aspect("equal")
    axis.set_ylim(k - 0.5, -0.5)
    if written or k <= 100:
        size = TICK if written else 360 / k
        look: dict[str, Any] = text_style(*classes) | {"fontsize": size}
        axis.set_xticks(range(k), classes, rotation=90 if k > 6 or names > 1 else 0, **look)
        axis.set_yticks(range(k), classes, **look)
    axis.tick_params(length=0)
    axis.set_xlabel("taken for")
    axis.set_ylabel("true class")
    for (row, column), n in np.ndenumerate(counts if written else np.zeros((0, 0), int)):
        if n:
            ink = "white" if share[row, column] > 0.55 else "black"
            axis.text(column, row, str(n), ha="center", va="center", color=ink, fontsize=SMALL)
    bar = figure.colorbar(mesh, ax=axis, pad=0.02, shrink=0.8)
    bar.set_label("share of the true class (%)", fontsize=LABEL - 1)
    bar.ax.tick_params(labelsize=TICK)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure
