"""Positive values on a plane as mountains: several side by side, on one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from jaxcnn.plots.planes import MAP, Field, logarithms, number
from jaxcnn.plots.style import LABEL, TICK, TITLE, sheet, wrap

VIEW = {"elev": 32, "azim": -58}
MARKS = 6
"""Numbers on the upright axis at most."""


def terrain(
    shown: Sequence[Field],
    *,
    label: str,
    title: str = "",
    columns: int | None = None,
    most: float | None = None,
) -> Figure:
    """Every field as a surface seen from the same side, as high as the logarithm of its values; one scale for all.

    Args:
      shown: at least one, as `planes` takes them; paths and notes are left out.
      label: of the values, with their unit.
      title: above the figure.
      columns: surfaces to a row; None: up to two.
      most: values above are cut off there. None is the greatest finite value of all fields.

    Raises:
      ValueError: as `planes`.

    Example:
      >>> x = np.linspace(-1, 1, 11)
      >>> bowl = Field("bowl", x, x, 0.01 + x[:, None] ** 2 + x**2, "first direction", "second direction")
      >>> terrain([bowl], label="loss (nats)").axes[0].name
      '3d'
    """
    heights, levels = logarithms(shown, most)
    columns = min(columns or 2, len(shown))
    rows, width = math.ceil(len(shown) / columns), 5.4
    # These axes know nothing of the room that their letters take, so that no layout engine is asked.
    figure = sheet(columns * width, 0.86 * rows * width, title=title)
    figure.set_layout_engine("none")
    head = 0.4 / float(figure.get_size_inches()[1]) if title else 0.0
    for i, (field, height) in enumerate(zip(shown, heights, strict=True)):
        row, column = divmod(i, columns)
        tall = (1 - head) / rows
        box = ((column + 0.02) / columns, 1 - head - (row + 0.98) * tall, 0.88 / columns, 0.94 * tall)
        axis: Any = figure.add_axes(box, projection="3d")
        _surface(axis, field, height, np.log10(levels[[0, -1]]))
        _letters(axis, field, levels, label, width)
    return figure


def _surface(axis: Any, field: Field, height: np.ndarray, ends: np.ndarray) -> None:
    x, y = np.meshgrid(np.asarray(field.x, np.float64), np.asarray(field.y, np.float64), indexing="ij")
    z = np.clip(height, *ends)
    style: dict[str, Any] = {"cmap": MAP, "vmin": ends[0], "vmax": ends[1], "rstride": 1, "cstride": 1}
    axis.plot_surface(x, y, z, edgecolor=(0, 0, 0, 0.25), linewidth=0.4, antialiased=True, shade=False, **style)
    limits = {f"{name}lim": _wider(part) for name, part in (("x", x), ("y", y))}
    axis.set(**limits, zlim=ends)
    axis.view_init(**VIEW)
    axis.set_box_aspect((1, 1, 0.8), zoom=0.84)


def _wider(values: np.ndarray) -> tuple[float, float]:
    """Limits a little apart from the values, so that the numbers of two axes do not meet in a corner."""
    low, high = float(values.min()), float(values.max())
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def _letters(axis: Any, field: Field, levels: np.ndarray, label: str, width: float) -> None:
    axis.set_title(wrap(field.title, TITLE, width), fontsize=TITLE, y=0.98)
    axis.set_xlabel(field.xlabel, fontsize=LABEL - 1, labelpad=8)
    axis.set_ylabel(field.ylabel, fontsize=LABEL - 1, labelpad=8)
    axis.set_zlabel(label, fontsize=LABEL - 1, labelpad=10)
    axis.tick_params(labelsize=TICK, pad=2)
    axis.tick_params(axis="z", pad=5)
    axis.zaxis.set_major_locator(FixedLocator(_marks(levels)))
    axis.zaxis.set_major_formatter(FuncFormatter(lambda v, _: number(10**v)))
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        one.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    for one in (axis.xaxis, axis.yaxis, axis.zaxis):
        one.set_pane_color((1, 1, 1, 0))


def _marks(levels: np.ndarray) -> list[float]:
    """The powers of ten among the levels, thinned out; where there are too few of them, levels."""
    logs = np.log10(levels)
    whole = logs[np.isclose(logs, np.round(logs))]
    kept = whole if len(whole) > 2 else logs
    return kept[:: math.ceil(len(kept) / MARKS)].tolist()
