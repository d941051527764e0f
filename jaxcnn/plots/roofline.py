"""The roofline: performance of programs under the limits of a machine.

The limits are the machine's arithmetic and its memory bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from matplotlib.transforms import ScaledTranslation

from jaxcnn.plots.style import COLORS, SMALL, new_figure, style_axes, text_width, wrap

WIDTH, HEIGHT = 7.6, 5.0
"""Size of the figure in inches, without title and note."""
MARKERS = "os^D"
"""Markers, one for each repetition of the colors."""
NAME_OFFSET = 16
"""Distance from a dot to its name, in points."""
LINE_HEIGHT = 1.35 * SMALL / 72
"""Distance between two lines of names, in inches."""


def roofline(
    points: Mapping[str, tuple[float, float]],
    *,
    peak: float,
    bandwidth: float,
    title: str = "",
    note: str = "",
) -> Figure:
    """Draw programs as dots under the two roofs of a machine.

    The axes are operations a byte and operations a second. Both are logarithmic.

    Args:
      points: name -> (FLOP a byte of memory traffic, 10^9 FLOP/s).
      peak: of the machine's arithmetic, 10^9 FLOP/s: the flat roof.
      bandwidth: of its memory, GB/s. The sloping roof is `bandwidth` times FLOP a byte.
      title: above the axes.
      note: small text below, such as the name of the machine.

    Raises:
      ValueError: there are no points, or a number is not finite and above 0.

    Example:
      >>> points = {"resnet20": (5.0, 60.0), "vgg11-32": (20.0, 150.0)}
      >>> figure = roofline(points, peak=180.0, bandwidth=30.0)
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['copy: 30 GB/s', 'matrix product: 180 GFLOP/s', 'resnet20', 'vgg11-32']

    References:
      Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model for
      multicore architectures", Communications of the ACM 52(4), 65-76.
    """
    numbers = [peak, bandwidth, *(number for point in points.values() for number in point)]
    if not points or not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError("expected at least one point, and finite numbers above 0 alone")
    note = wrap(note, SMALL - 1, WIDTH - 0.4)
    note_height = 0.16 * (1 + note.count("\n")) * bool(note)
    figure = new_figure(WIDTH, HEIGHT + note_height, title=title)
    axis = figure.add_subplot()
    style_axes(axis, "", panel_width=WIDTH)
    xlabel = "arithmetic intensity (FLOP / byte)"
    axis.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="performance (GFLOP/s)")
    _set_limits(axis, points, peak, bandwidth)
    _draw_roofs(axis, peak, bandwidth)
    for i, (name, (x, y)) in enumerate(points.items()):
        style: dict[str, Any] = {
            "color": COLORS[i % len(COLORS)],
            "marker": MARKERS[i // len(COLORS) % len(MARKERS)],
        }
        axis.plot([x], [y], linestyle="", markersize=8, label=name, zorder=3, **style)
    _write_names(axis, points)
    if note:
        figure.supxlabel(note, fontsize=SMALL - 1, color="0.35")
    return figure


def _set_limits(
    axis: Axes, points: Mapping[str, tuple[float, float]], peak: float, bandwidth: float
) -> None:
    xs, ys = zip(*points.values(), strict=True)
    ridge = peak / bandwidth
    axis.set_xlim(min(*xs, ridge) / 3, max(*xs, ridge) * 8)
    axis.set_ylim(min(*ys, peak) / 3, max(*ys, peak) * 2)
    for axis_line in (axis.xaxis, axis.yaxis):
        axis_line.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis_line.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axis_line.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _draw_roofs(axis: Axes, peak: float, bandwidth: float) -> None:
    """Draw both roofs with their names."""
    (left, right), ridge = axis.get_xlim(), peak / bandwidth
    style: dict[str, Any] = {"color": "0.25", "linewidth": 1.8, "zorder": 2}
    axis.plot([left, ridge, right], [bandwidth * left, peak, peak], label="roofs", **style)
    text_style: dict[str, Any] = {"fontsize": SMALL, "color": "0.15"}
    low = max(left, axis.get_ylim()[0] / bandwidth)
    middle = math.sqrt(low * ridge)
    dpi_scale = axis.figure.dpi_scale_trans
    # The text follows the line, whatever the shape of the axes.
    sloping: dict[str, Any] = {
        "rotation": math.degrees(math.atan(bandwidth)),
        "rotation_mode": "anchor",
        "ha": "center",
        "transform_rotates_text": True,
        "transform": axis.transData + ScaledTranslation(-4 / 72, 4 / 72, dpi_scale),
    }
    axis.text(middle, bandwidth * middle, f"copy: {bandwidth:.3g} GB/s", **sloping, **text_style)
    flat: dict[str, Any] = {
        "ha": "right",
        "transform": axis.transData + ScaledTranslation(-4 / 72, 5 / 72, dpi_scale),
    }
    axis.text(right, peak, f"matrix product: {peak:.4g} GFLOP/s", **flat, **text_style)


def _write_names(axis: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write each name next to its dot.

    Names that would overlap are moved apart, and connected to their dots.
    """
    offset = NAME_OFFSET / 72
    dots = _positions_in_inches(axis, points)
    widths = {name: text_width(name, SMALL) + 0.15 for name in points}
    on_left = {name for name in points if _covers_dot(dots, name, widths[name])}
    edges = {
        name: dots[name][0] - offset - widths[name] if name in on_left else dots[name][0] + offset
        for name in points
    }
    boxes = {name: (edges[name], y, widths[name]) for name, (_, y) in dots.items()}
    heights = spread_labels(boxes, LINE_HEIGHT, list(dots.values()))
    for name, point in points.items():
        up, side = 72 * (heights[name] - dots[name][1]), -1 if name in on_left else 1
        style: dict[str, Any] = {
            "fontsize": SMALL,
            "va": "center",
            "textcoords": "offset points",
            "zorder": 4,
            "ha": "right" if name in on_left else "left",
        }
        if abs(up) > 3:
            style["arrowprops"] = {
                "arrowstyle": "-",
                "color": "0.6",
                "linewidth": 0.8,
                "shrinkA": 2,
                "shrinkB": 4,
                "relpos": (float(name in on_left), 0.5),
            }
        axis.annotate(name, point, (side * NAME_OFFSET, up), **style)


def _covers_dot(dots: Mapping[str, tuple[float, float]], name: str, width: float) -> bool:
    """Return whether a name right of its dot would cover another dot.

    It is then placed on the left.
    """
    x, y = dots[name]
    start, stop = x + NAME_OFFSET / 72, x + NAME_OFFSET / 72 + width
    return any(
        start < dot_x < stop and abs(dot_y - y) < LINE_HEIGHT for dot_x, dot_y in dots.values()
    )


def _positions_in_inches(
    axis: Axes, points: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Return approximate positions of the dots in the axes.

    The layout that decides them comes later.
    """
    log_limits = [np.log10(limits) for limits in (axis.get_xlim(), axis.get_ylim())]
    axes_size = (WIDTH - 1.1, HEIGHT - 0.8)
    return {
        name: tuple(  # type: ignore[misc]
            size * (math.log10(value) - low) / (high - low)
            for value, size, (low, high) in zip(point, axes_size, log_limits, strict=True)
        )
        for name, point in points.items()
    }


def spread_labels(
    boxes: Mapping[str, tuple[float, float, float]],
    distance: float,
    dots: Sequence[tuple[float, float]] = (),
) -> dict[str, float]:
    """Return heights at which names do not overlap.

    Names that share a column are at least `distance` apart, and each is as near its own height as
    that allows.

    Args:
      boxes: name -> (left edge, height, width).
      distance: between two lines, and between a line and a dot, in the same unit.
      dots: (x, height) of dots that names avoid, and that do not move.

    Example:
      >>> spread_labels({"a": (0.0, 1.0, 2.0), "b": (1.0, 1.0, 2.0), "c": (5.0, 1.0, 1.0)}, 0.5)
      {'a': 0.75, 'b': 1.25, 'c': 1.0}
    """
    # The names of dots begin with a character that no label has.
    fixed = {f"\0{i}": (x, y, 1e-9) for i, (x, y) in enumerate(dots)}
    items = {**boxes, **fixed}
    heights = {name: box[1] for name, box in sorted(items.items(), key=lambda item: item[1][1])}
    spans = {name: (left, left + width) for name, (left, _, width) in items.items()}
    for _ in range(200):
        has_moved = False
        names = list(heights)
        for i, low in enumerate(names):
            for high in names[i + 1 :]:
                is_shared = spans[low][0] < spans[high][1] and spans[high][0] < spans[low][1]
                missing = distance - (heights[high] - heights[low])
                movable = (low in boxes) + (high in boxes)
                if is_shared and movable and missing > 1e-9:
                    heights[low] -= (low in boxes) * missing / movable
                    heights[high] += (high in boxes) * missing / movable
                    has_moved = True
        if not has_moved:
            break
    return {name: heights[name] for name in heights if name in boxes}
