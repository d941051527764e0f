"""Contours of losses of two parameters, with an optimizer's path.

The path leads down the loss, or out of the figure where it diverges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke

from jaxcnn.plots.style import COLORS, RED, SMALL, new_figure, style_axes

NUM_LEVELS, MIN_LEVEL, POINTS, CMAP = 13, 1e-4, 161, "Blues_r"
"""Constants of the contours.

There are NUM_LEVELS contours, from MIN_LEVEL of the range above the least loss to all of it. They
are computed from POINTS x POINTS losses.
"""

POINT: dict[str, Any] = {"color": "black", "linestyle": "none"}

Limits = tuple[tuple[float, float], tuple[float, float]]


class Surface(NamedTuple):
    """A loss of two parameters and a path on it.

    Attributes:
      title: text above the surface.
      loss: function float64 [n, 2] -> [n]. A value that is not finite counts as the greatest.
      path: parameters step by step, [t, 2]. The path ends at the first row that is not finite.
      xlabel: label of the first parameter.
      ylabel: label of the second.
      note: small line of text below the title.
      minimum: point to mark as the minimum, or None.
      window: maximal limits ((x0, x1), (y0, y1)); None shows all of the path.

    Example:
      >>> path = np.array([[1.0, 1.0], [0.5, 0.5]])
      >>> bowl = Surface("GD", lambda w: (w**2).sum(-1), path, "$w_1$", "$w_2$")
      >>> float(bowl.loss(bowl.path)[1])
      0.5
    """

    title: str
    loss: Callable[[np.ndarray], np.ndarray]
    path: np.ndarray | Sequence[Sequence[float]]
    xlabel: str
    ylabel: str
    note: str = ""
    minimum: tuple[float, float] | None = None
    window: Limits | None = None


class _Marker(NamedTuple):
    label: str
    style: dict[str, Any]


_START = _Marker("start", {"marker": "o", "markersize": 11, "markerfacecolor": "white"})
_END = _Marker("end", {"marker": "s", "markersize": 13, "markerfacecolor": COLORS[1]})
_MINIMUM = _Marker("minimum", {"marker": "*", "markersize": 12, "markerfacecolor": "white"})
_EXIT = _Marker(
    "leaves the panel",
    {"marker": "X", "markersize": 12, "markerfacecolor": RED, "markeredgecolor": "white"},
)


def optimizer_paths(
    surfaces: Sequence[Surface], *, title: str = "", columns: int | None = None
) -> Figure:
    """Draw contours of each loss, with the optimizer's path on them.

    The contours are evenly spaced in the logarithm of the height above the least loss.

    Args:
      surfaces: one for each panel; a panel has its own limits and levels.
      title: above the figure.
      columns: panels to a row; None: up to four.

    Raises:
      ValueError: there are no surfaces, or a path is not [t, 2] or does not start at finite
        numbers.

    Example:
      >>> path = np.array([[1.0, 1.0], [0.5, 0.1], [0.2, 0.0]])
      >>> bowl = Surface("GD", lambda w: (w**2).sum(-1), path, "$w_1$", "$w_2$", minimum=(0, 0))
      >>> len(optimizer_paths([bowl]).axes)
      1
    """
    if not len(surfaces):
        raise ValueError("there are no surfaces; expected at least one")
    columns = min(columns or 4, len(surfaces))
    rows = math.ceil(len(surfaces) / columns)
    width = min(5.2, max(3.4, 13 / columns))
    pairs = [(surface, finite_path(surface)) for surface in surfaces]
    handles = _legend(pairs)
    figure = new_figure(columns * width, 0.95 * rows * width, title=title, handles=handles)
    for i, (surface, path) in enumerate(pairs):
        axis = figure.add_subplot(rows, columns, i + 1)
        style_axes(axis, surface.title, panel_width=width, pad=29 if surface.note else 8)
        axis.grid(False)
        if surface.note:
            style: Any = {"xytext": (0, 10), "textcoords": "offset points", "ha": "center"}
            axis.annotate(
                surface.note, (0.5, 1), xycoords="axes fraction", fontsize=SMALL + 1, **style
            )
        _draw_contours(axis, surface, path)
        _draw_path(axis, surface, path)
    return figure


# ---------------------------------------------------------------- paths and limits


def finite_path(surface: Surface) -> np.ndarray:
    """Return the finite part of the path, float64 [t, 2].

    Raises:
      ValueError: the path has another shape, or its start is not finite.

    Example:
      >>> finite_path(Surface("", np.sum, [[0, 0], [1, 2], [float("nan"), 3]], "", "")).tolist()
      [[0.0, 0.0], [1.0, 2.0]]
    """
    path = np.asarray(surface.path, np.float64)
    has_shape = path.ndim == 2 and path.shape[1] == 2 and len(path)
    if not has_shape or not np.isfinite(path[0]).all():
        raise ValueError(
            f"the path of {surface.title!r} has shape {path.shape}; expected [t, 2] from a finite "
            "start"
        )
    is_finite = np.isfinite(path).all(1)
    return path if is_finite.all() else path[: int(is_finite.argmin())]


def plot_limits(surface: Surface, path: np.ndarray) -> Limits:
    """Return the box of the path and the minimum, with a margin.

    The path is [t, 2].

    It is cut to the window.

    Example:
      >>> window = ((-1, 20), (-1, 20))
      >>> bowl = Surface("", lambda w: (w**2).sum(-1), [[0, 0], [10, 999]], "", "", window=window)
      >>> plot_limits(bowl, np.array(bowl.path))
      ((-1.0, 11.0), (-1.0, 20.0))
    """
    points = path if surface.minimum is None else np.concatenate([path, [surface.minimum]])
    low, high = points.min(0), points.max(0)
    margin = np.where(high > low, 0.1 * (high - low), 1.0)
    low, high = low - margin, high + margin
    if surface.window is not None:
        least, most = np.transpose(np.asarray(surface.window, np.float64))
        low, high = np.clip(low, least, most), np.clip(high, least, most)
        # If all of the path is outside, the box is the window.
        low, high = np.where(high > low, low, least), np.where(high > low, high, most)
    (x0, y0), (x1, y1) = low.tolist(), high.tolist()
    return (x0, x1), (y0, y1)


def is_within(path: np.ndarray, box: Limits) -> np.ndarray:
    """Return which points [t, 2] are in the box, bool [t]."""
    low, high = np.transpose(np.asarray(box, np.float64))
    return ((path >= low) & (path <= high)).all(1)


def last_exit_point(path: np.ndarray, box: Limits) -> np.ndarray | None:
    """Return the point [2] at which the path last leaves the box.

    The path is [t, 2].

    It is None where the path ends within the box, or was never inside.

    Example:
      >>> last_exit_point(np.array([[0.0, 0.0], [4.0, 2.0]]), ((-1, 1), (-1, 1)))
      array([1. , 0.5])
    """
    low, high = np.transpose(np.asarray(box, np.float64))
    inside = is_within(path, box)
    if inside[-1] or not inside.any():
        return None
    last = int(np.flatnonzero(inside)[-1])
    start, step = path[last], path[last + 1] - path[last]
    is_moving = step != 0
    edge = np.where(step > 0, high, low)
    fraction = ((edge - start)[is_moving] / step[is_moving]).min()
    return np.clip(start + step * fraction, low, high)


# ---------------------------------------------------------------- drawing


def _draw_contours(axis: Axes, surface: Surface, path: np.ndarray) -> None:
    xlim, ylim = plot_limits(surface, path)
    x, y = np.linspace(*xlim, POINTS), np.linspace(*ylim, POINTS)
    points = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    loss = np.asarray(surface.loss(points), np.float64).reshape(POINTS, POINTS)
    loss = np.where(np.isfinite(loss), loss, loss[np.isfinite(loss)].max(initial=0.0))
    height = loss - loss.min()
    levels = np.geomspace(MIN_LEVEL, 1, NUM_LEVELS) * (height.max() or 1.0)
    norm = BoundaryNorm(levels, 256, extend="both")
    axis.contourf(x, y, height, levels, norm=norm, cmap=CMAP, extend="both")
    if height.max():
        axis.contour(x, y, height, levels, colors="white", linewidths=0.5, alpha=0.5)
    axis.set(xlim=xlim, ylim=ylim, xlabel=surface.xlabel, ylabel=surface.ylabel)


def _draw_path(axis: Axes, surface: Surface, path: np.ndarray) -> None:
    box = plot_limits(surface, path)
    exit_at = last_exit_point(path, box)
    if exit_at is not None:
        # Later points are outside, but the lines between them may cross the panel.
        path = path[: int(np.flatnonzero(is_within(path, box))[-1]) + 2]
    center, size = np.mean(box, 1), np.ptp(box, 1)
    # A renderer overflows where a path diverges.
    clipped = np.clip(path, center - 1e4 * size, center + 1e4 * size)
    outline = [Stroke(linewidth=3.6, foreground="white"), Normal()]
    style: dict[str, Any] = {"color": COLORS[1], "linewidth": 2, "marker": "o", "markersize": 4}
    axis.plot(*clipped.T, path_effects=outline, **style)
    _draw_marker(axis, _START, clipped[0])
    if exit_at is None:
        _draw_marker(axis, _END, clipped[-1])
    else:
        _draw_marker(axis, _EXIT, exit_at)
    # Over the end, so that it is visible within it.
    if surface.minimum is not None:
        _draw_marker(axis, _MINIMUM, surface.minimum)


def _draw_marker(axis: Axes, marker: _Marker, point: Any) -> None:
    """Draw a marker at a point [2] within the limits."""
    if is_within(np.array([point]), (axis.get_xlim(), axis.get_ylim())).all():
        style = POINT | marker.style | {"markeredgewidth": 1.3, "clip_on": False, "zorder": 5}
        axis.plot([point[0]], [point[1]], label=marker.label, **style)


def _legend(pairs: Sequence[tuple[Surface, np.ndarray]]) -> list[Any]:
    leaves = [
        last_exit_point(path, plot_limits(surface, path)) is not None for surface, path in pairs
    ]
    markers = [_START]
    markers += [_END] if not all(leaves) else []
    markers += [_EXIT] if any(leaves) else []
    markers += [_MINIMUM] if any(surface.minimum is not None for surface, _ in pairs) else []
    points = [Line2D([], [], label=m.label, **POINT | m.style) for m in markers]
    path = Line2D([], [], color=COLORS[1], linewidth=2, marker="o", markersize=4, label="path")
    ground = Patch(facecolor="#083d7e", label="loss (log scale): dark is low")
    return [path, *points, ground]
