"""Losses of two parameters from above, and the path that an optimiser takes down them, or off them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke

from jaxcnn.plots.paths import Surface, leaves, limits, walked, within
from jaxcnn.plots.style import COLOURS, RED, SMALL, sheet, tidy

LEVELS, DEPTH, POINTS, MAP = 13, 1e-4, 161, "Blues_r"
"""Contours from DEPTH of the range above the least loss to all of it, found on POINTS x POINTS losses."""

POINT: dict[str, Any] = {"color": "black", "linestyle": "none"}


class _Kind(NamedTuple):
    label: str
    style: dict[str, Any]


_START = _Kind("start", {"marker": "o", "markersize": 11, "markerfacecolor": "white"})
_END = _Kind("end", {"marker": "s", "markersize": 13, "markerfacecolor": COLOURS[1]})
_MINIMUM = _Kind("minimum", {"marker": "*", "markersize": 12, "markerfacecolor": "white"})
_OUT = {"marker": "X", "markersize": 12, "markerfacecolor": RED, "markeredgecolor": "white"}
_EXIT = _Kind("leaves the picture", _OUT)


def surfaces(shown: Sequence[Surface], *, title: str = "", columns: int | None = None) -> Figure:
    """Contours of each loss, evenly spaced in the logarithm of its height above the least, with the path on them.

    Args:
      shown: one panel each; a panel has its own limits and levels.
      title: above the figure.
      columns: panels to a row; None: up to four.

    Raises:
      ValueError: for no surfaces, a path that is not [t, 2] or does not start at finite numbers.

    Example:
      >>> down = np.array([[1.0, 1.0], [0.5, 0.1], [0.2, 0.0]])
      >>> figure = surfaces([Surface("GD", lambda w: (w**2).sum(-1), down, "$w_1$", "$w_2$", minimum=(0, 0))])
      >>> len(figure.axes)
      1
    """
    if not len(shown):
        raise ValueError("there are no surfaces; expected at least one")
    columns = min(columns or 4, len(shown))
    rows = math.ceil(len(shown) / columns)
    width = min(5.2, max(3.4, 13 / columns))
    drawn = [(surface, walked(surface)) for surface in shown]
    figure = sheet(columns * width, 0.95 * rows * width, title=title, handles=_handles(drawn))
    for i, (surface, path) in enumerate(drawn):
        axis = figure.add_subplot(rows, columns, i + 1)
        tidy(axis, surface.title, width=width, pad=29 if surface.note else 8)
        axis.grid(False)
        if surface.note:
            above: Any = {"xytext": (0, 10), "textcoords": "offset points", "ha": "center", "fontsize": SMALL + 1}
            axis.annotate(surface.note, (0.5, 1), xycoords="axes fraction", **above)
        _contours(axis, surface, path)
        _walk(axis, surface, path)
    return figure


def _contours(axis: Axes, surface: Surface, path: np.ndarray) -> None:
    xlim, ylim = limits(surface, path)
    x, y = np.linspace(*xlim, POINTS), np.linspace(*ylim, POINTS)
    points = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    loss = np.asarray(surface.loss(points), np.float64).reshape(POINTS, POINTS)
    loss = np.where(np.isfinite(loss), loss, loss[np.isfinite(loss)].max(initial=0.0))
    height = loss - loss.min()
    levels = np.geomspace(DEPTH, 1, LEVELS) * (height.max() or 1.0)
    norm = BoundaryNorm(levels, 256, extend="both")
    axis.contourf(x, y, height, levels, norm=norm, cmap=MAP, extend="both")
    if height.max():
        axis.contour(x, y, height, levels, colors="white", linewidths=0.5, alpha=0.5)
    axis.set(xlim=xlim, ylim=ylim, xlabel=surface.xlabel, ylabel=surface.ylabel)


def _walk(axis: Axes, surface: Surface, path: np.ndarray) -> None:
    box = limits(surface, path)
    out = leaves(path, box)
    if out is not None:  # what comes after is outside, but the lines between its points may cross the picture
        path = path[: int(np.flatnonzero(within(path, box))[-1]) + 2]
    centre, size = np.mean(box, 1), np.ptp(box, 1)
    near = np.clip(path, centre - 1e4 * size, centre + 1e4 * size)  # a renderer overflows where a path diverges
    outline = [Stroke(linewidth=3.6, foreground="white"), Normal()]
    axis.plot(*near.T, color=COLOURS[1], linewidth=2, marker="o", markersize=4, path_effects=outline)
    _put(axis, _START, near[0])
    _put(axis, _END if out is None else _EXIT, near[-1] if out is None else out)
    if surface.minimum is not None:  # over the end, which it is to be seen in
        _put(axis, _MINIMUM, surface.minimum)


def _put(axis: Axes, kind: _Kind, at: Any) -> None:
    """Mark a point [2], if it is in the picture."""
    if within(np.array([at]), (axis.get_xlim(), axis.get_ylim())).all():
        axis.plot(
            [at[0]], [at[1]], label=kind.label, markeredgewidth=1.3, clip_on=False, zorder=5, **POINT | kind.style
        )


def _handles(drawn: Sequence[tuple[Surface, np.ndarray]]) -> list[Any]:
    outs = [leaves(path, limits(surface, path)) is not None for surface, path in drawn]
    kinds = [_START]
    kinds += [_END] if not all(outs) else []
    kinds += [_EXIT] if any(outs) else []
    kinds += [_MINIMUM] if any(surface.minimum is not None for surface, _ in drawn) else []
    points = [Line2D([], [], label=k.label, **POINT | k.style) for k in kinds]
    path = Line2D([], [], color=COLOURS[1], linewidth=2, marker="o", markersize=4, label="path")
    ground = Patch(facecolor="#083d7e", label="loss (log scale): dark is low")
    return [path, *points, ground]
