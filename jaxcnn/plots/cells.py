"""A table of numbers as coloured cells: where training works, where best, and where it diverges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from jaxcnn.plots.style import COLOURS, LABEL, RED, SMALL, TICK, extent, sheet, tidy

MAP = colormaps["viridis"]
HATCH: dict[str, Any] = {"facecolor": "0.9", "edgecolor": "0.7", "hatch": "////", "linewidth": 0}
FRAME: dict[str, Any] = {"fill": False, "edgecolor": COLOURS[1], "linewidth": 3}
STEP: dict[str, Any] = {"color": "black", "linewidth": 4.5, "solid_joinstyle": "miter", "solid_capstyle": "butt"}


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
    form: str = ".3g",
) -> Figure:
    """Cells coloured by their value, which is also written in them.

    Args:
      values: [r, c], row by row from above; nan leaves a cell empty.
      rows: r names, such as the optimisers.
      columns: c names, such as the learning rates.
      xlabel: of the columns.
      ylabel: of the rows.
      label: of the values, with their unit.
      title: above the figure.
      crosses: bool [r, c], True where training diverged: a hatched cell with an x in place of its value.
      best: "min" or "max" frames that cell of each row, the first of equals.
      stairs: for each row the last column (-1: none) at which training is stable; a thick line goes down behind them.
        None leaves a row out.
      form: how a value is written, as in `format`.

    Raises:
      ValueError: for shapes that differ, or another `best`.

    Example:
      >>> names = {"rows": ["SGD"], "columns": [0.1, 1.0], "xlabel": "learning rate", "ylabel": "", "label": "error (%)"}
      >>> figure = heatmap([[8.25, np.nan]], crosses=[[False, True]], stairs=[0], best="min", **names)
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['8.25', '×']
    """
    table = np.asarray(values, np.float64)
    shape = (len(rows), len(columns))
    out = np.zeros(shape, bool) if crosses is None else np.asarray(crosses, bool)
    _check(table, out, shape, best, stairs)
    shown = np.where(out | ~np.isfinite(table), np.nan, table)
    names = max(extent(str(name), TICK) for name in rows)
    width = max(5.0, 2.1 + names + 0.85 * shape[1])
    figure = sheet(width, 1.3 + 0.55 * shape[0], title=title, handles=_handles(out, best, stairs))
    axis = figure.add_subplot()
    tidy(axis, "", width=width)
    _ticks(axis, rows, columns)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    _cells(axis, shown, out, label, form)
    _best(axis, shown, best)
    _stairs(axis, stairs or [])
    return figure


def _check(table, out, shape, best, stairs) -> None:
    if table.shape != shape or out.shape != shape:
        raise ValueError(
            f"values are {table.shape} and crosses {out.shape}; expected [rows, columns], which is {shape}"
        )
    if stairs is not None and len(stairs) != shape[0]:
        raise ValueError(f"there are {len(stairs)} stairs; expected one for each of {shape[0]} rows")
    if best not in (None, "min", "max"):
        raise ValueError(f"best is {best!r}; expected 'min', 'max' or None")


def _ticks(axis: Axes, rows: Sequence[Any], columns: Sequence[Any]) -> None:
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_xticks(range(len(columns)), [str(name) for name in columns])
    axis.set_yticks(range(len(rows)), [str(name) for name in rows])
    axis.tick_params(length=0, labelsize=TICK)
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)


def _cells(axis: Axes, shown: np.ndarray, out: np.ndarray, label: str, form: str) -> None:
    known = shown[np.isfinite(shown)]
    norm = Normalize(*((known.min(), known.max()) if known.size else (0, 1)))
    # pcolormesh leaves nan cells white; imshow would smooth the edges.
    edges = [np.arange(n + 1) - 0.5 for n in reversed(shown.shape)]
    mesh = axis.pcolormesh(*edges, np.ma.masked_invalid(shown), cmap=MAP, norm=norm, edgecolors="white", linewidth=1)
    style: dict[str, Any] = {"ha": "center", "va": "center"}
    for (row, column), value in np.ndenumerate(shown):
        if out[row, column]:
            axis.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, **HATCH))
            axis.text(column, row, "×", color=RED, weight="bold", fontsize=LABEL + 5, **style)
        elif np.isfinite(value):
            axis.text(column, row, format(value, form), color=_ink(norm(value)), fontsize=SMALL + 2, **style)
    bar = axis.figure.colorbar(mesh, ax=axis, pad=0.02, aspect=18)
    bar.set_label(label, fontsize=LABEL)
    bar.ax.tick_params(labelsize=TICK)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def _ink(place: float) -> str:
    """Black on bright cells, white on dark ones: by their luminance (ITU-R BT.709)."""
    red, green, blue, _ = MAP(float(place))
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"


def _best(axis: Axes, shown: np.ndarray, best: str | None) -> None:
    for row, line in enumerate(shown):
        if best and np.isfinite(line).any():
            column = int(np.nanargmin(line) if best == "min" else np.nanargmax(line))
            axis.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, zorder=4, **FRAME))


def _stairs(axis: Axes, stairs: Sequence[int | None]) -> None:
    """Down the right edges of the last stable cells; nan lifts the pen."""
    at = np.repeat([np.nan if column is None else column + 0.5 for column in stairs], 2)
    down = np.repeat(np.arange(len(stairs) + 1), 2)[1:-1] - 0.5
    if at.size:
        axis.plot(at, down, clip_on=False, zorder=3, **STEP)


def _handles(out: np.ndarray, best: str | None, stairs: Sequence[int | None] | None) -> list[Any]:
    handles: list[Any] = [Patch(**FRAME, label="best of the row")] if best else []
    if out.any():
        handles.append(Patch(**HATCH, label="× diverged"))
    if stairs:
        handles.append(Line2D([], [], **STEP, label="training is stable to the left"))
    return handles
