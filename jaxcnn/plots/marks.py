"""Lines of reference with their names, and the crosses of diverged trials."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox, ScaledTranslation

from jaxcnn.plots.lines import Mark
from jaxcnn.plots.style import RED, SMALL, extent

AWAY = 3
"""From a line to its name, in points."""
NAME: dict[str, Any] = {"fontsize": SMALL, "color": "0.15", "clip_on": True, "in_layout": False, "zorder": 3}
NAME["bbox"] = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}


class _Place(NamedTuple):
    """Somewhere a name can stand: at the lower or upper `end` of its line, after or before it."""

    end: float
    after: bool
    box: Bbox
    """In shares of the axes."""


def mark(axis: Axes, one: Mark) -> None:
    """Draw the dotted line.

    Raises:
      ValueError: for an `axis` of the mark that is neither "x" nor "y".
    """
    if one.axis not in ("x", "y"):
        raise ValueError(f"a mark's axis is {one.axis!r}; expected 'x' or 'y'")
    draw = axis.axvline if one.axis == "x" else axis.axhline
    draw(one.at, color="0.25", linestyle=":", linewidth=1.4, zorder=2.5)


def name_marks(axis: Axes, marks: Sequence[Mark], size: tuple[float, float]) -> None:
    """Write the marks' labels beside their lines, inside the axes, each where the fewest other things are.

    Args:
      axis: with everything else drawn and its limits final.
      marks: those outside the limits stay without a name.
      size: of the axes, width and height in inches, roughly: the layout comes later.
    """
    corner = axis.get_xlim()[0], axis.get_ylim()[0]  # asked for, they end the scaling that the transforms depend on
    inside = axis.transData + axis.transAxes.inverted()
    paths = [line.get_path().transformed(line.get_transform() + axis.transAxes.inverted()) for line in axis.lines]
    taken: list[Bbox] = []
    for one in (one for one in marks if one.label):
        across = "xy".index(one.axis)
        at = inside.transform([one.at if i == across else corner[i] for i in (0, 1)])[across]
        if 0 <= at <= 1:
            place = min(_places(one, at, size), key=lambda place: _cost(place.box, taken, paths))
            taken.append(place.box)
            _write(axis, one, place)


def _places(one: Mark, at: float, size: tuple[float, float]) -> list[_Place]:
    """The first is right of a vertical line at its top, or above a horizontal one at its right."""
    across = "xy".index(one.axis)
    thick = (1.3 * SMALL + AWAY) / 72 / size[across]
    long = extent(one.label, SMALL) / size[1 - across]
    places = []
    for after, end in itertools.product((True, False), (0.96, 0.03)):
        low, high = (at + 1e-6, at + thick) if after else (at - thick, at - 1e-6)
        start, stop = (end - long, end) if end > 0.5 else (end, end + long)
        corners = [low, start, high, stop] if across == 0 else [start, low, stop, high]
        places.append(_Place(end, after, Bbox.from_extents(*corners)))
    return places


def _cost(box: Bbox, taken: Sequence[Bbox], paths: Sequence[Any]) -> float:
    """Leaving the axes is worse than writing over a name, and that is worse than writing over a line."""
    outside = box.x0 < 0 or box.y0 < 0 or box.x1 > 1 or box.y1 > 1
    return 100 * outside + 50 * sum(map(box.overlaps, taken)) + sum(_crosses(path, box) for path in paths)


def _crosses(path: Any, box: Bbox) -> bool:
    """Whether a line runs through the box, told by close points on it."""
    points = np.asarray(path.vertices)
    share = np.linspace(0, 1, 24)[:, None, None]
    dense = (points[:-1] * (1 - share) + points[1:] * share).reshape(-1, 2)
    return bool(((dense > box.min) & (dense < box.max)).all(1).any())


def _write(axis: Axes, one: Mark, place: _Place) -> None:
    shift = (AWAY if place.after else -AWAY) / 72
    scale = axis.figure.dpi_scale_trans
    upper = place.end > 0.5
    if one.axis == "x":
        style: dict[str, Any] = {"ha": "left" if place.after else "right", "va": "top" if upper else "bottom"}
        where = axis.get_xaxis_transform() + ScaledTranslation(shift, 0, scale)
        axis.text(one.at, place.end, one.label, rotation=90, transform=where, **style, **NAME)
    else:
        style = {"ha": "right" if upper else "left", "va": "bottom" if place.after else "top"}
        where = axis.get_yaxis_transform() + ScaledTranslation(0, shift, scale)
        axis.text(place.end, one.at, one.label, transform=where, **style, **NAME)


def cross(axis: Axes, x: float, y: float | None) -> None:
    """A red x at a point, or where `y` is None (or no number) at the upper edge of the axes, whatever their limits."""
    edge = y is None or not math.isfinite(y)
    style: dict[str, Any] = {"color": RED, "markersize": 8, "markeredgewidth": 2, "zorder": 4}
    style["transform"] = axis.get_xaxis_transform() if edge else axis.transData
    axis.plot([x], [1.0 if y is None or edge else y], "x", clip_on=not edge, **style)
