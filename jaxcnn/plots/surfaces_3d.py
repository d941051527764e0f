"""Positive values on a plane as 3D surfaces on one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from jaxcnn.plots.contours import CMAP, Field, format_level, log_values
from jaxcnn.plots.style import LABEL, TICK, TITLE, new_figure, wrap

VIEW = {"elev": 32, "azim": -58}
MAX_TICKS = 6
"""Maximal number of ticks on the vertical axis."""


def surfaces_3d(
    fields: Sequence[Field],
    *,
    label: str,
    title: str = "",
    columns: int | None = None,
    max_level: float | None = None,
) -> Figure:
    """Draw every field as a surface, seen from the same side.

    The height is the logarithm of the values, with one scale for all fields.

    Args:
      fields: at least one, as for `contours`; paths and notes are left out.
      label: of the values, with their unit.
      title: above the figure.
      columns: surfaces to a row; None: up to two.
      max_level: values above are cut off. None is the greatest finite value of all fields.

    Raises:
      ValueError: as for `contours`.

    Example:
      >>> x = np.linspace(-1, 1, 11)
      >>> bowl = Field("bowl", x, x, 0.01 + x[:, None] ** 2 + x**2, "direction 1", "direction 2")
      >>> surfaces_3d([bowl], label="loss (nats)").axes[0].name
      '3d'
    """
    heights, levels = log_values(fields, max_level)
    columns = min(columns or 2, len(fields))
    rows, width = math.ceil(len(fields) / columns), 5.4
    figure = new_figure(columns * width, 0.86 * rows * width, title=title)
    # 3D axes do not report the size of their text, so that a layout engine cannot place them.
    figure.set_layout_engine("none")
    title_share = 0.4 / float(figure.get_size_inches()[1]) if title else 0.0
    for i, (field, height) in enumerate(zip(fields, heights, strict=True)):
        row, column = divmod(i, columns)
        row_share = (1 - title_share) / rows
        left = (column + 0.02) / columns
        bottom = 1 - title_share - (row + 0.98) * row_share
        box = (left, bottom, 0.88 / columns, 0.94 * row_share)
        axis: Any = figure.add_axes(box, projection="3d")
        _draw_surface(axis, field, height, np.log10(levels[[0, -1]]))
        _label_axes(axis, field, levels, label, width)
    return figure


def _draw_surface(axis: Any, field: Field, height: np.ndarray, zlim: np.ndarray) -> None:
    x, y = np.asarray(field.x, np.float64), np.asarray(field.y, np.float64)
    x, y = np.meshgrid(x, y, indexing="ij")
    z = np.clip(height, *zlim)
    style: dict[str, Any] = {
        "cmap": CMAP,
        "vmin": zlim[0],
        "vmax": zlim[1],
        "rstride": 1,
        "cstride": 1,
        "edgecolor": (0, 0, 0, 0.25),
        "linewidth": 0.4,
        "antialiased": True,
        "shade": False,
    }
    axis.plot_surface(x, y, z, **style)
    axis.set(xlim=_padded_limits(x), ylim=_padded_limits(y), zlim=zlim)
    axis.view_init(**VIEW)
    axis.set_box_aspect((1, 1, 0.8), zoom=0.84)


def _padded_limits(values: np.ndarray) -> tuple[float, float]:
    """Return limits with a margin.

    Without it the numbers of two axes would meet in a corner.
    """
    low, high = float(values.min()), float(values.max())
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def _label_axes(axis: Any, field: Field, levels: np.ndarray, label: str, width: float) -> None:
    axis.set_title(wrap(field.title, TITLE, width), fontsize=TITLE, y=0.98)
    axis.set_xlabel(field.xlabel, fontsize=LABEL - 1, labelpad=8)
    axis.set_ylabel(field.ylabel, fontsize=LABEL - 1, labelpad=8)
    axis.set_zlabel(label, fontsize=LABEL - 1, labelpad=10)
    axis.tick_params(labelsize=TICK, pad=2)
    axis.tick_params(axis="z", pad=5)
    axis.zaxis.set_major_locator(FixedLocator(_tick_positions(levels)))
    axis.zaxis.set_major_formatter(FuncFormatter(lambda v, _: format_level(10**v)))
    for horizontal in (axis.xaxis, axis.yaxis):
        horizontal.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        horizontal.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    for any_axis in (axis.xaxis, axis.yaxis, axis.zaxis):
        any_axis.set_pane_color((1, 1, 1, 0))


def _tick_positions(levels: np.ndarray) -> list[float]:
    """Return powers of ten among the levels.

    Where there are too few of them, it returns levels.
    """
    logs = np.log10(levels)
    powers = logs[np.isclose(logs, np.round(logs))]
    positions = powers if len(powers) > 2 else logs
    return positions[:: math.ceil(len(positions) / MAX_TICKS)].tolist()
