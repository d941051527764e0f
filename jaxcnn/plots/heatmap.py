"""Heat map: a table of numbers as colored cells.

It shows where training works, where it works best, and where it diverges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from jaxcnn.plots.style import (
    COLORS,
    LABEL,
    RED,
    SMALL,
    TICK,
    new_figure,
    set_ticks,
    style_axes,
    text_width,
)

CMAP = colormaps["viridis"]
MAX_HIGH_ROWS = 10
"""Rows up to which cells are high."""
HATCH: dict[str, Any] = {
    "facecolor": "0.9",
    "edgecolor": "0.7",
    "hatch": "////",
    "linewidth": 0,
}
FRAME: dict[str, Any] = {"fill": False, "edgecolor": COLORS[1], "linewidth": 3}
STEP: dict[str, Any] = {
    "color": "black",
    "linewidth": 4.5,
    "solid_joinstyle": "miter",
    "solid_capstyle": "butt",
}


def heatmap(
    values: Sequence[Sequence[float]] | np.ndarray,
    *,
    rows: Sequence[Any],
    columns: Sequence[Any],
    xlabel: str,
    ylabel: str,
    label: str,
    title: str = "",
    crosses: Sequence[Sequence[bool]] | np.ndarray | None = None,
    best: str | None = None,
    stairs: Sequence[int | None] | None = None,
    fmt: str = ".3g",
    log: bool = False,
) -> Figure:
    """Draw cells colored by their value, which is also written in them.

    Args:
      values: [r, c], row by row from above; nan leaves a cell empty.
      rows: r names, such as the optimizers.
      columns: c names, such as the learning rates.
      xlabel: of the columns.
      ylabel: of the rows.
      label: of the values, with their unit.
      title: above the figure.
      crosses: bool [r, c], True where training diverged. Such a cell is hatched, with an x in place
        of its value.
      best: "min" or "max" frames that cell of each row, the first of equals.
      stairs: for each row the last column (-1: none) at which training is stable. A thick line runs
        down behind these cells. None leaves a row out.
      fmt: format of a value, as in `format`.
      log: the colors are those of the logarithm. Values are then above 0.

    Raises:
      ValueError: shapes differ, `best` is invalid, or a value has no logarithm.

    Example:
      >>> names = {"rows": ["SGD"], "columns": [0.1, 1.0], "xlabel": "learning rate", "ylabel": ""}
      >>> marks = {"crosses": [[False, True]], "stairs": [0], "best": "min"}
      >>> figure = heatmap([[8.25, np.nan]], label="error (%)", **names, **marks)
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['8.25', '×']
    """
    table = np.asarray(values, np.float64)
    shape = (len(rows), len(columns))
    diverged = np.zeros(shape, bool) if crosses is None else np.asarray(crosses, bool)
    _check(table, diverged, shape, best, stairs)
    visible = np.where(diverged | ~np.isfinite(table), np.nan, table)
    if log and np.nanmin(visible, initial=np.inf) <= 0:
        raise ValueError("a value is 0 or negative; expected values above 0 for log=True")
    names_width = max(text_width(str(name), TICK) for name in rows)
    width = max(5.0, 2.1 + names_width + 0.85 * shape[1])
    handles = _legend(diverged, best, stairs)
    row_height = 0.55 if shape[0] <= MAX_HIGH_ROWS else 0.34
    figure = new_figure(width, 1.3 + row_height * shape[0], title=title, handles=handles)
    axis = figure.add_subplot()
    style_axes(axis, "", panel_width=width)
    _set_ticks(axis, rows, columns)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    _draw_cells(axis, visible, diverged, label, fmt, log)
    _frame_best(axis, visible, best)
    _draw_stairs(axis, stairs or [])
    return figure


def _check(table, diverged, shape, best, stairs) -> None:
    if table.shape != shape or diverged.shape != shape:
        raise ValueError(
            f"values are {table.shape} and crosses {diverged.shape}; expected [rows, columns], "
            f"which is {shape}"
        )
    if stairs is not None and len(stairs) != shape[0]:
        raise ValueError(
            f"there are {len(stairs)} stairs; expected one for each of {shape[0]} rows"
        )
    if best not in (None, "min", "max"):
        raise ValueError(f"best is {best!r}; expected 'min', 'max' or None")


def _set_ticks(axis: Axes, rows: Sequence[Any], columns: Sequence[Any]) -> None:
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_xticks(range(len(columns)), [str(name) for name in columns])
    axis.set_yticks(range(len(rows)), [str(name) for name in rows])
    axis.tick_params(length=0, labelsize=TICK)
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)


def _draw_cells(
    axis: Axes, visible: np.ndarray, diverged: np.ndarray, label: str, fmt: str, log: bool
) -> None:
    finite = visible[np.isfinite(visible)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.1, 1)
    norm = LogNorm(low, high if high > low else 1.1 * low) if log else Normalize(low, high)
    # pcolormesh leaves nan cells white; imshow would smooth the edges.
    edges = [np.arange(n + 1) - 0.5 for n in reversed(visible.shape)]
    masked = np.ma.masked_invalid(visible)
    mesh = axis.pcolormesh(*edges, masked, cmap=CMAP, norm=norm, edgecolors="white", linewidth=1)
    style: dict[str, Any] = {"ha": "center", "va": "center"}
    for (row, column), value in np.ndenumerate(visible):
        if diverged[row, column]:
            axis.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, **HATCH))
            axis.text(column, row, "×", color=RED, weight="bold", fontsize=LABEL + 5, **style)
        elif np.isfinite(value):
            color = _text_color(norm(value))
            axis.text(column, row, format(value, fmt), color=color, fontsize=SMALL + 2, **style)
    length = len(visible) if len(visible) <= MAX_HIGH_ROWS else 0.6 * len(visible)
    style = {"pad": 0.02, "aspect": max(18, 3 * length)}
    bar = axis.figure.colorbar(mesh, ax=axis, fraction=0.05, **style)
    bar.set_label(label, fontsize=LABEL, labelpad=8)
    bar.ax.tick_params(which="both", labelsize=TICK)
    if log:
        set_ticks(bar.ax.yaxis, log=True, panel_width=0.55 * len(visible))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def _text_color(fraction: float) -> str:
    """Return black for bright cells and white for dark ones.

    The criterion is luminance (ITU-R BT.709) at this fraction of the color map.
    """
    red, green, blue, _ = CMAP(float(fraction))
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"


def _frame_best(axis: Axes, visible: np.ndarray, best: str | None) -> None:
    for row, values in enumerate(visible):
        if best and np.isfinite(values).any():
            column = int(np.nanargmin(values) if best == "min" else np.nanargmax(values))
            corner = (column - 0.46, row - 0.46)
            axis.add_patch(Rectangle(corner, 0.92, 0.92, zorder=4, **FRAME))


def _draw_stairs(axis: Axes, stairs: Sequence[int | None]) -> None:
    """Draw a line down the right edges of the last stable cells.

    It has gaps at nan.
    """
    x = np.repeat([np.nan if column is None else column + 0.5 for column in stairs], 2)
    y = np.repeat(np.arange(len(stairs) + 1), 2)[1:-1] - 0.5
    if x.size:
        axis.plot(x, y, clip_on=False, zorder=3, **STEP)


def _legend(
    diverged: np.ndarray, best: str | None, stairs: Sequence[int | None] | None
) -> list[Any]:
    handles: list[Any] = [Patch(**FRAME, label="best of the row")] if best else []
    if diverged.any():
        handles.append(Patch(**HATCH, label="× diverged"))
    if stairs:
        handles.append(Line2D([], [], **STEP, label="training is stable to the left"))
    return handles
