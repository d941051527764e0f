"""What a panel of lines holds, and how the rows of runs become lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Numbers = Sequence[float | None] | np.ndarray


class Line(NamedTuple):
    """One line of a panel; None, nan, infinity and what is beyond 1e100 are gaps in `y`.

    Example:
      >>> Line([1, 2, 3], [9.0, None, 4.0], label="SGD").label
      'SGD'
    """

    x: Numbers
    """Numbers [n]."""
    y: Numbers
    """Numbers [n]."""
    low: Numbers | None = None
    """The lower edge [n] of a band of the line's colour; it takes both edges."""
    high: Numbers | None = None
    """Its upper edge [n]."""
    label: str = ""
    """In the legend, once for all panels; "" keeps the line out of it."""
    colour: str | None = None
    """None: the label's own, given out by `grid`."""
    dashed: bool = False
    marker: str = ""
    """Matplotlib's mark at every point, such as "o"."""
    width: float = 2.0
    """In points."""


class Mark(NamedTuple):
    """A thin dotted line of reference across the panel, named beside it.

    Example:
      >>> Mark(2 / 0.1, "y", "2/η").at
      20.0
    """

    at: float
    axis: str = "x"
    """"x": a vertical line there; "y": a horizontal one."""
    label: str = ""


class Panel(NamedTuple):
    """One set of axes.

    Example:
      >>> Panel("Adam", [Line([1, 2], [3.0, 2.0])], xlabel="step", ylabel="loss (nats)", ylog=True).marks
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
    """Trials that diverged, as (x, y); y None is the upper edge of the axes."""


def band(runs: Sequence[Sequence[Mapping[str, Any]]], x: str, y: str, **style: Any) -> Line:
    """The mean over seeds as a line, and from the least to the greatest of them as its band.

    Args:
      runs: each seed's rows. At an x that only some of the seeds have, the mean is theirs.
      x: the key of the horizontal numbers, such as "step".
      y: the key of the others. Rows where it is None are passed over; a nan makes a gap.
      style: other fields of `Line`.

    Returns:
      A line with x in increasing order, and without a band where there is but one seed.

    Raises:
      KeyError: for a row without the key.
      ValueError: for a `style` that is no field of `Line`.

    Example:
      >>> band([[{"step": 1, "loss": 4.0}], [{"step": 1, "loss": 2.0}]], "step", "loss")[:4]
      ([1], [3.0], [2.0], [4.0])
    """
    at: dict[float, list[float]] = {}
    for run in runs:
        for row in run:
            if row[y] is not None:
                at.setdefault(row[x], []).append(row[y])
    steps = sorted(at)
    mean, low, high = ([float(f(at[step])) for step in steps] for f in (np.mean, np.min, np.max))
    line = Line(steps, mean, low, high) if len(runs) > 1 else Line(steps, mean)
    return line._replace(**style)


def behind(panels: Sequence[Panel]) -> list[Panel]:
    """The panels, each with the first line of every other one behind its own, thin and grey: what it is to be compared with.

    Example:
      >>> a, b = Panel("a", [Line([1], [2.0], label="a")]), Panel("b", [Line([1], [3.0], label="b")])
      >>> [(line.y, line.label) for line in behind([a, b])[0].lines]
      [([3.0], ''), ([2.0], 'a')]
    """
    plain: dict[str, Any] = {"low": None, "high": None, "label": "", "colour": "0.8", "dashed": False, "marker": ""}
    grey = [[line._replace(width=0.9, **plain) for line in panel.lines[:1]] for panel in panels]
    others = [[line for j, lines in enumerate(grey) if j != i for line in lines] for i in range(len(panels))]
    return [panel._replace(lines=[*other, *panel.lines]) for panel, other in zip(panels, others, strict=True)]
