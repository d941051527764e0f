"""The roofline: what programs reach, under what a machine's arithmetic and its memory allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from matplotlib.transforms import ScaledTranslation

from jaxcnn.plots.style import COLOURS, SMALL, extent, sheet, tidy, wrap

WIDTH, HEIGHT = 7.6, 5.0
"""Inches, without title and note."""
MARKERS = "os^D"
"""Of each turn of the colours."""
AWAY = 16
"""From a dot to its name, in points."""
APART = 1.35 * SMALL / 72
"""From one line of names to the next, in inches."""


def roofline(
    points: Mapping[str, tuple[float, float]], *, peak: float, bandwidth: float, title: str = "", note: str = ""
) -> Figure:
    """Programs as dots, by operations a byte and operations a second, under the two roofs; both axes are logarithmic.

    Args:
      points: name -> (FLOP a byte of memory traffic, 10^9 FLOP/s).
      peak: of the machine's arithmetic, 10^9 FLOP/s: the flat roof.
      bandwidth: of its memory, GB/s: the sloping one, `bandwidth` times FLOP a byte.
      title: above the axes.
      note: small, below them: which machine.

    Raises:
      ValueError: for no points, or a number that is not finite and above 0.

    Example:
      >>> figure = roofline({"resnet20": (5.0, 60.0), "vgg11-32": (20.0, 150.0)}, peak=180.0, bandwidth=30.0)
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['copy: 30 GB/s', 'matrix product: 180 GFLOP/s', 'resnet20', 'vgg11-32']

    References:
      Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model for multicore architectures",
      Communications of the ACM 52(4), 65-76.
    """
    numbers = [peak, bandwidth, *(number for point in points.values() for number in point)]
    if not points or not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError("expected at least one point, and finite numbers above 0 alone")
    note = wrap(note, SMALL - 1, WIDTH - 0.4)
    figure = sheet(WIDTH, HEIGHT + 0.16 * (1 + note.count("\n")) * bool(note), title=title)
    axis = figure.add_subplot()
    tidy(axis, "", width=WIDTH)
    axis.set(xscale="log", yscale="log", xlabel="FLOP a byte of memory traffic", ylabel="GFLOP/s")
    _limits(axis, points, peak, bandwidth)
    _roofs(axis, peak, bandwidth)
    for i, (name, (x, y)) in enumerate(points.items()):
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i // len(COLOURS) % len(MARKERS)],
        }
        axis.plot([x], [y], linestyle="", markersize=8, label=name, zorder=3, **style)
    _names(axis, points)
    if note:
        figure.supxlabel(note, fontsize=SMALL - 1, color="0.35")
    return figure


def _limits(axis: Axes, points: Mapping[str, tuple[float, float]], peak: float, bandwidth: float) -> None:
    xs, ys = zip(*points.values(), strict=True)
    ridge = peak / bandwidth
    axis.set_xlim(min(*xs, ridge) / 3, max(*xs, ridge) * 8)
    axis.set_ylim(min(*ys, peak) / 3, max(*ys, peak) * 2)
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_locator(LogLocator(subs=(1, 2, 5)))
        one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        one.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _roofs(axis: Axes, peak: float, bandwidth: float) -> None:
    """Both roofs, each solid where it binds and dotted beyond, with their names."""
    (left, right), ridge = axis.get_xlim(), peak / bandwidth
    style: dict[str, Any] = {"color": "0.25", "linewidth": 1.8, "zorder": 2}
    axis.plot([left, ridge, right], [bandwidth * left, peak, peak], label="roofs", **style)
    size: dict[str, Any] = {"fontsize": SMALL, "color": "0.15"}
    low = max(left, axis.get_ylim()[0] / bandwidth)
    middle = math.sqrt(low * ridge)
    turned: dict[str, Any] = {"rotation": math.degrees(math.atan(bandwidth)), "rotation_mode": "anchor", "ha": "center"}
    above = axis.transData + ScaledTranslation(-4 / 72, 4 / 72, axis.figure.dpi_scale_trans)
    turned |= {"transform_rotates_text": True, "transform": above}  # along the line, whatever the axes' shape
    axis.text(middle, bandwidth * middle, f"copy: {bandwidth:.3g} GB/s", **turned, **size)
    above = axis.transData + ScaledTranslation(-4 / 72, 5 / 72, axis.figure.dpi_scale_trans)
    axis.text(right, peak, f"matrix product: {peak:.4g} GFLOP/s", ha="right", transform=above, **size)


def _names(axis: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Each name beside its dot; those that would stand on each other are moved apart and joined to their dots."""
    at = _inches(axis, points)
    wide = {name: extent(name, SMALL) + 0.15 for name in points}
    left = {name for name in points if _covers(at, name, wide[name])}
    edges = {name: at[name][0] - AWAY / 72 - wide[name] if name in left else at[name][0] + AWAY / 72 for name in points}
    heights = apart({name: (edges[name], y, wide[name]) for name, (_, y) in at.items()}, APART, list(at.values()))
    for name, point in points.items():
        up, side = 72 * (heights[name] - at[name][1]), -1 if name in left else 1
        style: dict[str, Any] = {"fontsize": SMALL, "va": "center", "textcoords": "offset points", "zorder": 4}
        style["ha"] = "right" if name in left else "left"
        if abs(up) > 3:
            style["arrowprops"] = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.8, "shrinkA": 2, "shrinkB": 4}
            style["arrowprops"]["relpos"] = (float(name in left), 0.5)
        axis.annotate(name, point, (side * AWAY, up), **style)


def _covers(at: Mapping[str, tuple[float, float]], name: str, width: float) -> bool:
    """Whether a name right of its dot would lie on another dot: it then stands on the left."""
    x, y = at[name]
    begin, end = x + AWAY / 72, x + AWAY / 72 + width
    return any(begin < there < end and abs(height - y) < APART for there, height in at.values())


def _inches(axis: Axes, points: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Where the dots will lie in the axes, roughly: the layout comes later."""
    corners = [np.log10(limits) for limits in (axis.get_xlim(), axis.get_ylim())]
    room = (WIDTH - 1.1, HEIGHT - 0.8)
    return {
        name: tuple(  # type: ignore[misc]
            size * (math.log10(value) - low) / (high - low)
            for value, size, (low, high) in zip(point, room, corners, strict=True)
        )
        for name, point in points.items()
    }


def apart(
    places: Mapping[str, tuple[float, float, float]], least: float, dots: Sequence[tuple[float, float]] = ()
) -> dict[str, float]:
    """Heights at which names stand at least `least` apart wherever they share a column, each as near its own as that allows.

    Args:
      places: name -> (left edge, height, width).
      least: between two lines, and between a line and a dot, in the same unit.
      dots: (x, height) of what names stand off and cannot move.

    Example:
      >>> apart({"a": (0.0, 1.0, 2.0), "b": (1.0, 1.0, 2.0), "c": (5.0, 1.0, 1.0)}, 0.5)
      {'a': 0.75, 'b': 1.25, 'c': 1.0}
    """
    everything = {**places, **{f"\0{i}": (x, y, 1e-9) for i, (x, y) in enumerate(dots)}}
    heights = {name: place[1] for name, place in sorted(everything.items(), key=lambda item: item[1][1])}
    spans = {name: (left, left + width) for name, (left, _, width) in everything.items()}
    for _ in range(200):
        moved = False
        names = list(heights)
        for i, low in enumerate(names):
            for high in names[i + 1 :]:
                shared = spans[low][0] < spans[high][1] and spans[high][0] < spans[low][1]
                lack = least - (heights[high] - heights[low])
                free = (low in places) + (high in places)
                if shared and free and lack > 1e-9:
                    heights[low] -= (low in places) * lack / free
                    heights[high] += (high in places) * lack / free
                    moved = True
        if not moved:
            break
    return {name: heights[name] for name in heights if name in places}
