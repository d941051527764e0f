"""Small multiples: panels of lines side by side on common axes, with one legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxcnn.plots.lines import Line, Numbers, Panel
from jaxcnn.plots.marks import cross, mark, name_marks
from jaxcnn.plots.style import COLOURS, DASHES, RED, sheet, tidy
from jaxcnn.plots.ticks import ticks

GREATEST = 1e100


class Look(NamedTuple):
    """How a label's lines look in every panel: the colour, and the turn of the colours that it came from."""

    colour: str
    turn: int = 0


def grid(
    panels: Sequence[Panel],
    *,
    columns: int | None = None,
    title: str = "",
    share: str = "all",
    legend: bool = True,
    size: tuple[float, float] | None = None,
) -> Figure:
    """Panels in rows (Tufte's small multiples): a label has the same colour in all of them, and one legend below names it.

    Args:
      panels: at least one.
      columns: how many to a row; None leaves few cells of the grid empty.
      title: above the figure.
      share: which axes have the same scale in all panels and are labelled on the outer ones alone: "all" both,
        "x", "y" or "none".
      legend: False leaves it out.
      size: of one panel, width and height in inches; None: together they are about as wide as a slide.

    From the eighth label on the colours come again with other dashes. Lines without a label or a colour are blue,
    or grey where others have labels. Crosses are in the legend as "diverged".

    Raises:
      ValueError: for no panels, an unknown `share`, a line whose x and y differ in length, or panels that cannot share
        an axis since one is logarithmic, or has limits or a label, that another has not.

    Example:
      >>> loss = Line([1, 10, 100], [2.3, 0.9, 0.2], label="training")
      >>> figure = grid([Panel(name, [loss], xlabel="step", ylabel="loss (nats)", xlog=True) for name in ("SGD", "Adam")])
      >>> [axis.get_title() for axis in figure.axes]
      ['SGD', 'Adam']
    """
    shared = _shared(panels, share)
    columns = min(columns or _columns(len(panels)), len(panels))
    width = size[0] if size else min(5.2, max(2.4, 13 / columns))
    height = size[1] if size else 0.4 + 0.68 * width
    looks = _looks(panels)
    rows = math.ceil(len(panels) / columns)
    figure = sheet(columns * width, rows * height, title=title, handles=_handles(panels, looks) if legend else ())
    cells = figure.add_gridspec(rows, columns)
    axes: list[Axes] = []
    for i, panel in enumerate(panels):
        same = {f"share{name}": axes[0] for name in shared if axes}
        axes.append(figure.add_subplot(cells[divmod(i, columns)], **same))
        _draw(axes[i], panel, looks, width)
        _outer(axes[i], panel, shared, left=i % columns == 0, bottom=i + columns >= len(panels))
    for axis, panel in zip(axes, panels, strict=True):  # by now all of them have given their part to the common limits
        name_marks(axis, panel.marks, (0.75 * width, 0.7 * height))
    return figure


def _shared(panels: Sequence[Panel], share: str) -> str:
    """The names of the axes that are shared, once it is certain that they can be."""
    names = {"all": "xy", "x": "x", "y": "y", "none": ""}
    if share not in names:
        raise ValueError(f"share is {share!r}; expected one of {', '.join(names)}")
    if not panels:
        raise ValueError("there are no panels; expected at least one")
    for line in (line for panel in panels for line in panel.lines):
        if len(line.x) != len(line.y):
            raise ValueError(f"the line {line.label!r} has {len(line.x)} x and {len(line.y)} y; expected as many")
    for name in names[share]:
        for field in (f"{name}log", f"{name}lim", f"{name}label"):
            kinds = {getattr(panel, field) for panel in panels}
            if len(kinds) > 1:
                raise ValueError(f"panels that share {name} differ in {field}: {kinds}; write share='none' or another")
    return names[share]


def _columns(n: int) -> int:
    """Wider than high, with the fewest empty cells."""
    return min(range(math.ceil(math.sqrt(n)), math.ceil(1.6 * math.sqrt(n)) + 1), key=lambda columns: -n % columns)


def _looks(panels: Sequence[Panel]) -> dict[str, Look]:
    """Each label's; colours asked for are not given to others."""
    lines = [line for panel in panels for line in panel.lines if line.label]
    asked = {line.label: line.colour for line in reversed(lines) if line.colour}
    free = [colour for colour in COLOURS if colour not in asked.values()] or list(COLOURS)
    left = dict.fromkeys(line.label for line in lines if line.label not in asked)
    given = {label: Look(free[i % len(free)], i // len(free) % len(DASHES)) for i, label in enumerate(left)}
    return {line.label: given.get(line.label) or Look(asked[line.label]) for line in lines}


def _style(line: Line, looks: Mapping[str, Look]) -> dict:
    look = looks.get(line.label) or Look("0.35" if looks else COLOURS[0])
    dashes = DASHES[look.turn][line.dashed]
    return {"color": line.colour or look.colour, "linestyle": dashes, "linewidth": line.width, "marker": line.marker}


def _handles(panels: Sequence[Panel], looks: Mapping[str, Look]) -> list[Line2D]:
    lines = {line.label: line for panel in reversed(panels) for line in reversed(panel.lines)}
    handles = [Line2D([], [], label=label, markersize=5, **_style(lines[label], looks)) for label in looks]
    if any(panel.crosses for panel in panels):
        handles.append(Line2D([], [], label="diverged", color=RED, linestyle="none", marker="x", markeredgewidth=2))
    return handles


def numbers(values: Numbers) -> np.ndarray:
    """float64 [n], nan for what is no number, or so great that matplotlib would overflow: training has diverged.

    Example:
      >>> numbers([1, None, float("inf"), 1e300])
      array([ 1., nan, nan, nan])
    """
    found = np.array([np.nan if value is None else value for value in values], np.float64)
    return np.where(np.abs(found) < GREATEST, found, np.nan)


def _draw(axis: Axes, panel: Panel, looks: Mapping[str, Look], width: float) -> None:
    tidy(axis, panel.title, width=width, pad=12)  # clear of crosses on the upper edge
    ticks(axis.xaxis, log=panel.xlog, width=width, whole=all(_whole(line.x) for line in panel.lines))
    ticks(axis.yaxis, log=panel.ylog, width=width)
    for line in panel.lines:
        x, y = numbers(line.x), numbers(line.y)
        style = _style(line, looks)
        if not line.marker:  # a point between two gaps would not be seen
            gap = np.isnan(np.concatenate([[np.nan], y, [np.nan]]))
            style |= {"marker": "o", "markevery": np.flatnonzero(gap[:-2] & ~gap[1:-1] & gap[2:]).tolist()}
        axis.plot(x, y, markersize=5, **style)
        if line.low is not None and line.high is not None:
            fill = {"color": style["color"], "alpha": 0.18, "linewidth": 0, "zorder": 1.5}
            axis.fill_between(x, numbers(line.low), numbers(line.high), **fill)
    for one in panel.marks:
        mark(axis, one)
    for x, y in panel.crosses:
        cross(axis, x, y)
    axis.set(**{f"{name}lim": limits for name in "xy" if (limits := getattr(panel, f"{name}lim"))})


def _whole(values: Numbers) -> bool:
    found = numbers(values)
    return bool((found[~np.isnan(found)] % 1 == 0).all())


def _outer(axis: Axes, panel: Panel, shared: str, *, left: bool, bottom: bool) -> None:
    """Labels and numbers, on shared axes only where no other panel stands between them and the edge."""
    if bottom or "x" not in shared:
        axis.set_xlabel(panel.xlabel)
    else:
        axis.tick_params(axis="x", which="both", labelbottom=False)
    if left or "y" not in shared:
        axis.set_ylabel(panel.ylabel)
    else:
        axis.tick_params(axis="y", which="both", labelleft=False)
