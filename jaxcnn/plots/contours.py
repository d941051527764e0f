"""Positive values on a plane, such as a loss, as contours and as 3D surfaces.

The contours are evenly spaced in the logarithm. A path may be drawn on them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from jaxcnn.plots.style import LABEL, SMALL, TICK, TITLE, new_figure, set_ticks, style_axes, wrap

CMAP, GAP_COLOR = "viridis", "0.8"
MAX_LEVELS = 12
"""Maximal number of contours."""
STEPS = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
"""Levels within a decade, the finest first."""
START: dict[str, Any] = {"marker": "o", "markersize": 10, "markerfacecolor": "white"}
END: dict[str, Any] = {"marker": "*", "markersize": 17, "markerfacecolor": "white"}
LINE: dict[str, Any] = {"color": "#D55E00", "linewidth": 2, "marker": "o", "markersize": 4}


class Field(NamedTuple):
    """Values on the points of a plane.

    Attributes:
      title: text above the plane.
      x: numbers [m], rising.
      y: numbers [m'], rising.
      values: values float64 [m, m'], with (x[i], y[j]) in row i. A value that is not finite is a
        gap.
      xlabel: label of the horizontal axis.
      ylabel: label of the vertical axis.
      path: points [t, 2] in the plane, from a start to an end.
      note: small line of text below the title.

    Example:
      >>> Field("ResNet-20", [-1, 0, 1], [-1, 1], np.ones((3, 2))).path is None
      True
    """

    title: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    values: np.ndarray
    xlabel: str = ""
    ylabel: str = ""
    path: np.ndarray | None = None
    note: str = ""


def contours(
    fields: Sequence[Field],
    *,
    label: str,
    title: str = "",
    columns: int | None = None,
    max_level: float | None = None,
    share: bool = True,
) -> Figure:
    """Draw contours of every field side by side.

    All fields have the same levels and colors, which a color bar names.

    Args:
      fields: at least one. Its values are positive; others count as the least positive value.
      label: of the values, with their unit: "training loss (nats)".
      title: above the figure.
      columns: panels to a row; None: up to four.
      max_level: the highest contour; above it there is one color. None is the greatest finite value
        of all fields.
      share: whether the axes have the same limits in all panels, and labels on the outer ones
        alone.

    Raises:
      ValueError: there are no fields, values have another shape than x and y, or no value is finite
        and positive.

    Example:
      >>> x = np.linspace(-1, 1, 11)
      >>> bowl = Field("bowl", x, x, 0.01 + x[:, None] ** 2 + x**2, "direction 1", "direction 2")
      >>> len(contours([bowl], label="loss (nats)").axes)  # one of them is the color bar
      2
    """
    heights, levels = log_values(fields, max_level)
    columns = min(columns or 4, len(fields))
    rows, width = math.ceil(len(fields) / columns), min(3.6, max(2.9, 12 / columns))
    at_side = len(fields) < 3 or columns < 3
    has_notes = any(field.note for field in fields)
    figure_width = columns * width + 0.9 * at_side
    figure_height = rows * (width + 0.1 + 0.3 * has_notes) + 0.7 * (not at_side)
    handles = _legend(fields, heights)
    figure = new_figure(figure_width, figure_height, title=title, handles=handles)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel()
    for axis in axes[len(fields) :]:
        axis.set_axis_off()
    top = np.log10(levels[-1])
    exceeds = any(np.nanmax(height, initial=-np.inf) > top for height in heights)
    extend = "max" if exceeds else "neither"
    filled: Any = None
    for i, (axis, field, height) in enumerate(zip(axes, fields, heights, strict=False)):
        filled = _draw_contours(axis, field, height, levels, extend, width)
        _draw_path(axis, field)
        is_left = not share or i % columns == 0
        is_bottom = not share or i + columns >= len(fields)
        x_label, y_label = (
            wrap(text, LABEL, 0.72 * width) for text in (field.xlabel, field.ylabel)
        )
        axis.set(ylabel=y_label if is_left else "", xlabel=x_label if is_bottom else "")
        axis.tick_params(labelleft=is_left, labelbottom=is_bottom)
    _draw_color_bar(figure, filled, axes[: len(fields)], levels, label, at_side=at_side)
    return figure


def log_values(
    fields: Sequence[Field], max_level: float | None = None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return log10 of each field's values, and the levels of all.

    The levels span all values.

    The levels are not logarithms. Values that are not finite are nan.

    Raises:
      ValueError: as for `contours`.

    Example:
      >>> log_values([Field("", [0, 1], [0], np.array([[0.5], [20]]))])[1].tolist()
      [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    if not len(fields):
        raise ValueError("there are no fields; expected at least one")
    for field in fields:
        if np.shape(field.values) != (len(field.x), len(field.y)):
            raise ValueError(
                f"the values of {field.title!r} have shape {np.shape(field.values)}; "
                f"expected {(len(field.x), len(field.y))}, as many as x and y"
            )
    values = [
        np.where(np.isfinite(field.values), field.values, np.nan).astype(np.float64)
        for field in fields
    ]
    positive = np.concatenate([array[array > 0] for array in values])
    if not positive.size:
        raise ValueError(
            "no value of the fields is finite and positive; expected some, as a loss is"
        )
    low, high = float(positive.min()), float(positive.max())
    with np.errstate(divide="ignore"):
        heights = [np.log10(np.maximum(array, low)) for array in values]
    return heights, _levels(low, high if max_level is None else max(low, min(high, max_level)))


def _levels(low: float, high: float) -> np.ndarray:
    """Return a few round numbers that span `low` to `high`.

    They begin with the last that is not above `low`, and end with the first not below `high`.
    """
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    for leading in STEPS:
        numbers = np.array(
            [lead * 10.0**power for power, lead in itertools.product(decades, leading)]
        )
        first = np.flatnonzero(numbers <= low * (1 + 1e-9))[-1]
        last = max(first + 1, np.flatnonzero(numbers >= high * (1 - 1e-9))[0])
        if last - first < MAX_LEVELS:
            return numbers[first : last + 1]
    numbers = numbers[first : last + 1]
    return numbers[:: math.ceil(len(numbers) / MAX_LEVELS)]


def _draw_contours(
    axis: Axes, field: Field, height: np.ndarray, levels: np.ndarray, extend: Any, width: float
) -> Any:
    style_axes(axis, field.title, panel_width=width, pad=24 if field.note else 8)
    axis.grid(False)
    axis.set_facecolor(GAP_COLOR)
    axis.set_box_aspect(1)
    if field.note:
        style: Any = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
        axis.annotate(field.note, (0.5, 1), xycoords="axes fraction", fontsize=SMALL + 1, **style)
    x, y = np.asarray(field.x, np.float64), np.asarray(field.y, np.float64)
    z = np.ma.masked_invalid(height.T)
    filled = axis.contourf(x, y, z, np.log10(levels), cmap=CMAP, extend=extend)
    style = {"colors": "white", "linewidths": 0.8, "linestyles": "solid"}
    lines = axis.contour(x, y, z, np.log10(levels), **style)
    labels = axis.clabel(lines, fmt=lambda v: format_level(10**v), fontsize=SMALL, inline=False)
    _select_labels(labels, (x, y), field.path)
    set_ticks(axis.xaxis, log=False, panel_width=width)
    set_ticks(axis.yaxis, log=False, panel_width=width)
    return filled


def _select_labels(
    labels: Any, coordinates: tuple[np.ndarray, np.ndarray], path: np.ndarray | None
) -> None:
    """Hide contour numbers that are close together, near the frame or under the path.

    The frame and the path would cut them.
    """
    selected: list[np.ndarray] = []
    low, high = ([f(axis) for axis in coordinates] for f in (np.min, np.max))
    taken = np.zeros((0, 2))
    if path is not None:
        ends = (np.asarray(path, np.float64) - (np.add(low, high) / 2)) / np.subtract(high, low)
        fractions = np.linspace(0, 1, 50)[:, None, None]
        taken = (ends[:-1] * (1 - fractions) + ends[1:] * fractions).reshape(-1, 2)
    for label in labels:
        label.set(color="black", path_effects=[Stroke(linewidth=2.2, foreground="white"), Normal()])
        position = np.array(
            [
                (value - (np.min(axis) + np.max(axis)) / 2) / np.ptp(axis)
                for value, axis in zip(label.get_position(), coordinates, strict=True)
            ]
        )
        is_inside = bool(abs(position).max() < 0.43)
        visible = is_inside and all(np.hypot(*(position - other)) > 0.13 for other in selected)
        visible &= not len(taken) or float(np.hypot(*(taken - position).T).min()) > 0.06
        label.set_visible(visible)
        selected += [position] if visible else []


def format_level(value: float) -> str:
    """Format a level, in powers of ten where that is shorter.

    Example:
      >>> [format_level(value) for value in (0.05, 2.0, 500.0, 2e4, 1e-5)]
      ['0.05', '2', '500', '2·$10^{4}$', '$10^{-5}$']
    """
    if value * (1 + 1e-9) >= 1e-3 and value < 9999:
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    power = math.floor(math.log10(value) + 1e-9)
    lead = f"{value / 10.0**power:.1g}"
    return f"$10^{{{power}}}$" if lead == "1" else f"{lead}·$10^{{{power}}}$"


def _draw_path(axis: Axes, field: Field) -> None:
    """Draw the path, and its two ends over it."""
    if field.path is None:
        return
    path = np.asarray(field.path, np.float64)
    outline = [Stroke(linewidth=3.6, foreground="white"), Normal()]
    axis.plot(*path.T, path_effects=outline, zorder=4, **LINE)
    for point, style in ((path[0], START), (path[-1], END)):
        axis.plot(
            *point[:, None], color="black", markeredgewidth=1.3, clip_on=False, zorder=5, **style
        )


def _legend(fields: Sequence[Field], heights: Sequence[np.ndarray]) -> list[Any]:
    handles: list[Any] = []
    if any(field.path is not None for field in fields):
        handles.append(Line2D([], [], label="path", **LINE))
        for name, style in (("start", START), ("end", END)):
            handles.append(Line2D([], [], label=name, color="black", linestyle="none", **style))
    if any(np.isnan(height).any() for height in heights):
        handles.append(Patch(facecolor=GAP_COLOR, label="not finite"))
    return handles


def _draw_color_bar(
    figure: Figure, filled: Any, axes: Any, levels: np.ndarray, label: str, *, at_side: bool
) -> None:
    """Draw the color bar, at the side or below a single row."""
    location: dict[str, Any] = {"location": "right", "aspect": 25}
    if not at_side:
        location = {"location": "bottom", "aspect": 60}
    bar = figure.colorbar(filled, ax=list(axes), pad=0.02, fraction=0.06, **location)
    bar.set_label(label, fontsize=LABEL)
    bar.set_ticks(np.log10(levels).tolist(), labels=[format_level(level) for level in levels])
    bar.ax.tick_params(labelsize=TICK)
    for axis in (bar.ax.xaxis, bar.ax.yaxis):
        axis.set_minor_locator(NullLocator())


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
    rows, width = math.ceil(len(fields) / columns), 4.3
    figure = new_figure(columns * width, 0.86 * rows * width, title=title)
    # 3D axes do not report the size of their text, so that a layout engine cannot place them.
    figure.set_layout_engine("none")
    title_height = 0.15 + 0.25 * (1 + figure.get_suptitle().count("\n")) if title else 0.0
    title_share = title_height / float(figure.get_size_inches()[1])
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
    axis.set_box_aspect((1, 1, 0.8), zoom=0.82)


def _padded_limits(values: np.ndarray) -> tuple[float, float]:
    """Return limits with a margin.

    Without it the numbers of two axes would meet in a corner.
    """
    low, high = float(values.min()), float(values.max())
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def _label_axes(axis: Any, field: Field, levels: np.ndarray, label: str, width: float) -> None:
    axis.set_title(wrap(field.title, TITLE, width), fontsize=TITLE, y=0.98)
    axis.set_xlabel(field.xlabel, fontsize=SMALL, labelpad=4)
    axis.set_ylabel(field.ylabel, fontsize=SMALL, labelpad=4)
    axis.set_zlabel(label, fontsize=SMALL, labelpad=5)
    axis.tick_params(labelsize=SMALL - 1, pad=0)
    axis.tick_params(axis="z", pad=2)
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
