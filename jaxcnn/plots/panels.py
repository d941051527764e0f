"""Small multiples: panels of lines on common axes, with one legend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox, ScaledTranslation

from jaxcnn.plots.style import (
    COLORS,
    DASHES,
    RED,
    SMALL,
    new_figure,
    set_ticks,
    style_axes,
    text_width,
)

Numbers = Sequence[float | None] | np.ndarray
MAX_VALUE = 1e100
"""Values that are not below this would overflow in matplotlib."""

# ---------------------------------------------------------------- content of a panel


class Line(NamedTuple):
    """A line of a panel.

    None, nan, infinity and values of 1e100 or more are gaps in `y`.

    Attributes:
      x: numbers [n].
      y: numbers [n].
      low: lower edge [n] of a band, which needs both edges. The band has the line's color.
      high: upper edge [n] of the band.
      label: text in the legend, once for all panels; "" has none.
      color: color; None takes the label's own, which `panels` assigns.
      dashed: draw a dashed line.
      marker: matplotlib's marker at every point, such as "o".
      width: line width in points.

    Example:
      >>> Line([1, 2, 3], [9.0, None, 4.0], label="SGD").label
      'SGD'
    """

    x: Numbers
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    label: str = ""
    color: str | None = None
    dashed: bool = False
    marker: str = ""
    width: float = 2.0


class Mark(NamedTuple):
    """A thin dotted line of reference, with its name next to it.

    Attributes:
      at: position on the axis.
      axis: axis of `at`: "x" is a vertical line, "y" a horizontal one.
      label: name of the line; "" has none.

    Example:
      >>> Mark(2 / 0.1, "y", "2/η").at
      20.0
    """

    at: float
    axis: str = "x"
    label: str = ""


class Panel(NamedTuple):
    """A set of axes with lines.

    Attributes:
      title: text above the axes.
      lines: lines to draw.
      marks: lines of reference.
      xlabel: label of the horizontal axis.
      ylabel: label of the vertical axis.
      xlog: logarithmic horizontal axis.
      ylog: logarithmic vertical axis.
      ylim: limits of the vertical axis; None follows the lines.
      xlim: limits of the horizontal axis; None follows the lines.
      crosses: trials that diverged, as (x, y). y None is the upper edge of the axes.

    Example:
      >>> lines = [Line([1, 2], [3.0, 2.0])]
      >>> Panel("Adam", lines, xlabel="step", ylabel="loss (nats)", ylog=True).marks
      ()
    """

    title: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    xlabel: str = ""
    ylabel: str = ""
    xlog: bool = False
    ylog: bool = False
    ylim: tuple[float, float] | None = None
    xlim: tuple[float, float] | None = None
    crosses: Sequence[tuple[float, float | None]] = ()


def band(runs: Sequence[Sequence[Mapping[str, Any]]], x: str, y: str, **style: Any) -> Line:
    """Return the mean over seeds as a line, with their range.

    Args:
      runs: each seed's rows. At an x that only some of the seeds have, the mean is theirs.
      x: the key of the horizontal numbers, such as "step".
      y: the key of the others. Rows where it is None are skipped; a nan makes a gap.
      **style: other fields of `Line`.

    Returns:
      A line with x in increasing order, and without a band for a single seed.

    Raises:
      KeyError: a row lacks the key.
      ValueError: an entry of `style` is no field of `Line`.

    Example:
      >>> runs = [[{"step": 1, "loss": 4.0}], [{"step": 1, "loss": 2.0}]]
      >>> band(runs, "step", "loss")[:4]
      ([1], [3.0], [2.0], [4.0])
    """
    by_x: dict[float, list[float]] = {}
    for run in runs:
        for row in run:
            if row[y] is not None:
                by_x.setdefault(row[x], []).append(row[y])
    xs = sorted(by_x)
    mean, low, high = ([float(f(by_x[key])) for key in xs] for f in (np.mean, np.min, np.max))
    line = Line(xs, mean, low, high) if len(runs) > 1 else Line(xs, mean)
    return line._replace(**style)


def with_background(panels: Sequence[Panel]) -> list[Panel]:
    """Return panels with the first lines of the others behind their own.

    These lines are thin and gray, for comparison.

    Example:
      >>> a = Panel("a", [Line([1], [2.0], label="a")])
      >>> b = Panel("b", [Line([1], [3.0], label="b")])
      >>> [(line.y, line.label) for line in with_background([a, b])[0].lines]
      [([3.0], ''), ([2.0], 'a')]
    """
    style: dict[str, Any] = {
        "low": None,
        "high": None,
        "label": "",
        "color": "0.8",
        "dashed": False,
        "marker": "",
    }
    gray = [[line._replace(width=0.9, **style) for line in panel.lines[:1]] for panel in panels]
    backgrounds = [
        [line for j, lines in enumerate(gray) if j != i for line in lines]
        for i in range(len(panels))
    ]
    return [
        panel._replace(lines=[*background, *panel.lines])
        for panel, background in zip(panels, backgrounds, strict=True)
    ]


# ---------------------------------------------------------------- figure


class _Style(NamedTuple):
    """Style of a label's lines in every panel."""

    color: str
    turn: int = 0
    """Repetition of the colors, which selects the dashes."""


def panels(
    panels: Sequence[Panel],
    *,
    columns: int | None = None,
    title: str = "",
    share: str = "all",
    legend: bool = True,
    size: tuple[float, float] | None = None,
) -> Figure:
    """Draw panels in rows, as Tufte's small multiples.

    A label has the same color in all panels, and one legend below names it. From the eighth label
    on the colors repeat with other dashes. Lines without a label or a color are blue, or gray where
    other lines have labels. Crosses are in the legend as "diverged".

    Args:
      panels: at least one.
      columns: panels to a row; None leaves few cells of the grid empty.
      title: above the figure.
      share: axes that have the same scale in all panels, and labels on the outer panels alone:
        "all" (both), "x", "y" or "none".
      legend: False leaves it out.
      size: width and height of one panel in inches. None makes the figure about as wide as a slide.

    Raises:
      ValueError: there are no panels, `share` is unknown, or a line's x and y differ in length.
        Also where panels cannot share an axis, because they differ in scale, limits or label.

    Example:
      >>> loss = Line([1, 10, 100], [2.3, 0.9, 0.2], label="training")
      >>> axes = {"xlabel": "step", "ylabel": "loss (nats)", "xlog": True}
      >>> figure = panels([Panel(name, [loss], **axes) for name in ("SGD", "Adam")])
      >>> [axis.get_title() for axis in figure.axes]
      ['SGD', 'Adam']
    """
    shared = _shared_axes(panels, share)
    columns = min(columns or _num_columns(len(panels)), len(panels))
    width = size[0] if size else min(5.2, max(2.4, 13 / columns))
    height = size[1] if size else 0.4 + 0.68 * width
    styles = _label_styles(panels)
    rows = math.ceil(len(panels) / columns)
    handles = _legend(panels, styles) if legend else ()
    figure = new_figure(columns * width, rows * height, title=title, handles=handles)
    cells = figure.add_gridspec(rows, columns)
    axes: list[Axes] = []
    for i, panel in enumerate(panels):
        sharing = {f"share{name}": axes[0] for name in shared if axes}
        axes.append(figure.add_subplot(cells[divmod(i, columns)], **sharing))
        _draw_panel(axes[i], panel, styles, width)
        is_left, is_bottom = i % columns == 0, i + columns >= len(panels)
        _label_axes(axes[i], panel, shared, left=is_left, bottom=is_bottom)
    # The common limits are final only when all panels are drawn.
    for axis, panel in zip(axes, panels, strict=True):
        _name_marks(axis, panel.marks, (0.75 * width, 0.7 * height))
    return figure


def _shared_axes(panels: Sequence[Panel], share: str) -> str:
    """Return the names of the shared axes, after a check."""
    names = {"all": "xy", "x": "x", "y": "y", "none": ""}
    if share not in names:
        raise ValueError(f"share is {share!r}; expected one of {', '.join(names)}")
    if not panels:
        raise ValueError("there are no panels; expected at least one")
    for line in (line for panel in panels for line in panel.lines):
        if len(line.x) != len(line.y):
            raise ValueError(
                f"the line {line.label!r} has {len(line.x)} x and {len(line.y)} y; expected as many"
            )
    for name in names[share]:
        for field in (f"{name}log", f"{name}lim", f"{name}label"):
            values = {getattr(panel, field) for panel in panels}
            if len(values) > 1:
                raise ValueError(
                    f"panels that share {name} differ in {field}: {values}; write share='none' or "
                    "another"
                )
    return names[share]


def _num_columns(n: int) -> int:
    """Return the number of columns with the fewest empty cells.

    The grid is wider than high.
    """
    root = math.sqrt(n)
    candidates = range(math.ceil(root), math.ceil(1.6 * root) + 1)
    return min(candidates, key=lambda columns: -n % columns)


def _label_styles(panels: Sequence[Panel]) -> dict[str, _Style]:
    """Return each label's style.

    Colors set on a line are not assigned to other labels.
    """
    lines = [line for panel in panels for line in panel.lines if line.label]
    fixed = {line.label: line.color for line in reversed(lines) if line.color}
    free = [color for color in COLORS if color not in fixed.values()] or list(COLORS)
    unstyled = dict.fromkeys(line.label for line in lines if line.label not in fixed)
    assigned = {
        label: _Style(free[i % len(free)], i // len(free) % len(DASHES))
        for i, label in enumerate(unstyled)
    }
    return {line.label: assigned.get(line.label) or _Style(fixed[line.label]) for line in lines}


def _line_style(line: Line, styles: Mapping[str, _Style]) -> dict:
    style = styles.get(line.label) or _Style("0.35" if styles else COLORS[0])
    return {
        "color": line.color or style.color,
        "linestyle": DASHES[style.turn][line.dashed],
        "linewidth": line.width,
        "marker": line.marker,
    }


def _legend(panels: Sequence[Panel], styles: Mapping[str, _Style]) -> list[Line2D]:
    lines = {line.label: line for panel in reversed(panels) for line in reversed(panel.lines)}
    handles = [
        Line2D([], [], label=label, markersize=5, **_line_style(lines[label], styles))
        for label in styles
    ]
    if any(panel.crosses for panel in panels):
        style: dict[str, Any] = {"linestyle": "none", "marker": "x", "markeredgewidth": 2}
        handles.append(Line2D([], [], label="diverged", color=RED, **style))
    return handles


def plottable(values: Numbers) -> np.ndarray:
    """Return float64 [n], with nan for gaps.

    A gap is a value that is no number, or so great that matplotlib would overflow (training has
    diverged).

    Example:
      >>> plottable([1, None, float("inf"), 1e300])
      array([ 1., nan, nan, nan])
    """
    array = np.array([np.nan if value is None else value for value in values], np.float64)
    return np.where(np.abs(array) < MAX_VALUE, array, np.nan)


def _draw_panel(axis: Axes, panel: Panel, styles: Mapping[str, _Style], width: float) -> None:
    # The padding keeps the title clear of crosses on the upper edge.
    style_axes(axis, panel.title, panel_width=width, pad=12)
    is_whole = all(_is_whole(line.x) for line in panel.lines)
    set_ticks(axis.xaxis, log=panel.xlog, panel_width=width, whole=is_whole)
    set_ticks(axis.yaxis, log=panel.ylog, panel_width=width)
    for line in panel.lines:
        x, y = plottable(line.x), plottable(line.y)
        style = _line_style(line, styles)
        if not line.marker:
            # A point between two gaps would be invisible without a marker.
            gap = np.isnan(np.concatenate([[np.nan], y, [np.nan]]))
            isolated = np.flatnonzero(gap[:-2] & ~gap[1:-1] & gap[2:]).tolist()
            style |= {"marker": "o", "markevery": isolated}
        axis.plot(x, y, markersize=5, **style)
        if line.low is not None and line.high is not None:
            fill = {"color": style["color"], "alpha": 0.18, "linewidth": 0, "zorder": 1.5}
            axis.fill_between(x, plottable(line.low), plottable(line.high), **fill)
    for mark in panel.marks:
        _draw_mark(axis, mark)
    for x, y in panel.crosses:
        _draw_cross(axis, x, y)
    axis.set(**{f"{name}lim": limits for name in "xy" if (limits := getattr(panel, f"{name}lim"))})


def _is_whole(values: Numbers) -> bool:
    array = plottable(values)
    return bool((array[~np.isnan(array)] % 1 == 0).all())


def _label_axes(axis: Axes, panel: Panel, shared: str, *, left: bool, bottom: bool) -> None:
    """Set labels and numbers of the axes.

    Shared axes have them on the outer panels alone.
    """
    if bottom or "x" not in shared:
        axis.set_xlabel(panel.xlabel)
    else:
        axis.tick_params(axis="x", which="both", labelbottom=False)
    if left or "y" not in shared:
        axis.set_ylabel(panel.ylabel)
    else:
        axis.tick_params(axis="y", which="both", labelleft=False)


# ---------------------------------------------------------------- marks and crosses

NAME_OFFSET = 3
"""Distance from a line to its name, in points."""
NAME_STYLE: dict[str, Any] = {
    "fontsize": SMALL,
    "color": "0.15",
    "clip_on": True,
    "in_layout": False,
    "zorder": 3,
    "bbox": {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
}


class _Position(NamedTuple):
    """A candidate for the position of a name."""

    end: float
    """End of the line, lower or upper, as a fraction."""
    after: bool
    """Whether the name is right of or above its line."""
    box: Bbox
    """Bounding box, in fractions of the axes."""


def _draw_mark(axis: Axes, mark: Mark) -> None:
    """Draw the dotted line.

    Raises:
      ValueError: the `axis` of the mark is neither "x" nor "y".
    """
    if mark.axis not in ("x", "y"):
        raise ValueError(f"a mark's axis is {mark.axis!r}; expected 'x' or 'y'")
    draw = axis.axvline if mark.axis == "x" else axis.axhline
    draw(mark.at, color="0.25", linestyle=":", linewidth=1.4, zorder=2.5)


def _name_marks(axis: Axes, marks: Sequence[Mark], size: tuple[float, float]) -> None:
    """Write the marks' labels next to their lines.

    Each label is inside the axes, at the position with the least overlap.

    Args:
      axis: with everything else drawn and its limits final.
      marks: those outside the limits stay without a name.
      size: approximate width and height of the axes in inches, since the layout comes later.
    """
    # Reading the limits completes the scaling that the transforms depend on.
    corner = axis.get_xlim()[0], axis.get_ylim()[0]
    to_fractions = axis.transData + axis.transAxes.inverted()
    paths = [
        line.get_path().transformed(line.get_transform() + axis.transAxes.inverted())
        for line in axis.lines
    ]
    occupied: list[Bbox] = []
    for mark in (mark for mark in marks if mark.label):
        across = "xy".index(mark.axis)
        point = [mark.at if i == across else corner[i] for i in (0, 1)]
        fraction = to_fractions.transform(point)[across]
        if 0 <= fraction <= 1:
            candidates = _positions(mark, fraction, size)
            position = min(candidates, key=lambda p: _overlap_cost(p.box, occupied, paths))
            occupied.append(position.box)
            _write_name(axis, mark, position)


def _positions(mark: Mark, fraction: float, size: tuple[float, float]) -> list[_Position]:
    """Return the positions for a name, the preferred one first.

    That is right of a vertical line at its top, or above a horizontal one at its right.
    """
    across = "xy".index(mark.axis)
    thickness = (1.3 * SMALL + NAME_OFFSET) / 72 / size[across]
    length = text_width(mark.label, SMALL) / size[1 - across]
    positions = []
    for after, end in itertools.product((True, False), (0.96, 0.03)):
        if after:
            low, high = fraction + 1e-6, fraction + thickness
        else:
            low, high = fraction - thickness, fraction - 1e-6
        start, stop = (end - length, end) if end > 0.5 else (end, end + length)
        corners = [low, start, high, stop] if across == 0 else [start, low, stop, high]
        positions.append(_Position(end, after, Bbox.from_extents(*corners)))
    return positions


def _overlap_cost(box: Bbox, occupied: Sequence[Bbox], paths: Sequence[Any]) -> float:
    """Return the cost of a position.

    Leaving the axes is worse than covering a name, and that is worse than covering a line.
    """
    is_outside = box.x0 < 0 or box.y0 < 0 or box.x1 > 1 or box.y1 > 1
    covered_lines = sum(_passes_through(path, box) for path in paths)
    return 100 * is_outside + 50 * sum(map(box.overlaps, occupied)) + covered_lines


def _passes_through(path: Any, box: Bbox) -> bool:
    """Return whether a line passes through the box.

    It is checked at closely spaced points of the line.
    """
    points = np.asarray(path.vertices)
    fraction = np.linspace(0, 1, 24)[:, None, None]
    dense = (points[:-1] * (1 - fraction) + points[1:] * fraction).reshape(-1, 2)
    return bool(((dense > box.min) & (dense < box.max)).all(1).any())


def _write_name(axis: Axes, mark: Mark, position: _Position) -> None:
    shift = (NAME_OFFSET if position.after else -NAME_OFFSET) / 72
    scale = axis.figure.dpi_scale_trans
    is_upper = position.end > 0.5
    if mark.axis == "x":
        style: dict[str, Any] = {
            "ha": "left" if position.after else "right",
            "va": "top" if is_upper else "bottom",
        }
        transform = axis.get_xaxis_transform() + ScaledTranslation(shift, 0, scale)
        style |= {"rotation": 90, "transform": transform} | NAME_STYLE
        axis.text(mark.at, position.end, mark.label, **style)
    else:
        style = {
            "ha": "right" if is_upper else "left",
            "va": "bottom" if position.after else "top",
        }
        transform = axis.get_yaxis_transform() + ScaledTranslation(0, shift, scale)
        axis.text(position.end, mark.at, mark.label, transform=transform, **style, **NAME_STYLE)


def _draw_cross(axis: Axes, x: float, y: float | None) -> None:
    """Draw a red x at a point.

    Where `y` is None or no number, it is at the upper edge of the axes, whatever their limits.
    """
    at_edge = y is None or not math.isfinite(y)
    style: dict[str, Any] = {"color": RED, "markersize": 8, "markeredgewidth": 2, "zorder": 4}
    style["transform"] = axis.get_xaxis_transform() if at_edge else axis.transData
    axis.plot([x], [1.0 if y is None or at_edge else y], "x", clip_on=not at_edge, **style)
