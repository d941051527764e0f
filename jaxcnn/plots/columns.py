"""Groups of bars with their values on top."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxcnn.plots.style import COLOURS, SMALL, TICK, extent, sheet, tidy, wrap

Groups = Mapping[str, Mapping[str, float | None]]
GAP = 0.5
"""Between two groups, in bars."""


def bars(groups: Groups, *, ylabel: str, title: str = "", errors: Groups | None = None, form: str = ".3g") -> Figure:
    """Grouped bars: a group for each label, and in it a bar for each series, of the same colour in all groups.

    Args:
      groups: label -> series -> value; None and nan leave a bar's place empty.
      ylabel: of the values, with their unit.
      title: above the figure.
      errors: label -> series -> half the length of an error bar, in the unit of the value; what is missing has none.
      form: how a value is written, as in `format`.

    Raises:
      ValueError: for no groups or no series.

    Example:
      >>> figure = bars({"none": {"training": 0.1, "test": 9.0}, "dropout": {"training": 2.0, "test": 8.0}}, ylabel="error (%)")
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['0.1', '2', '9', '8']
    """
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    if not series:
        raise ValueError("there are no bars; expected label -> series -> value")
    widest = max(extent(format(v, form), SMALL) for group in groups.values() for v in group.values() if _real(v))
    bar = max(0.42, widest + 0.1)  # inches, so that neighbours' values stand apart
    group = bar * (len(series) + GAP)
    width = max(5.2, 1.1 + group * len(groups))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(series)}
    handles = [Patch(facecolor=colour, label=name) for name, colour in colours.items()]
    figure = sheet(width, 4.2, title=title, handles=handles)
    axis = figure.add_subplot()
    tidy(axis, "", width=width)
    axis.grid(False, axis="x")
    axis.set_ylabel(ylabel)
    room = (width - 1.1) / len(groups) - 0.1
    axis.set_xticks(range(len(groups)), [wrap(label, TICK, room) for label in groups])
    for i, name in enumerate(series):
        _series(
            axis, groups, errors or {}, name, colours[name], (i - (len(series) - 1) / 2) / (len(series) + GAP), form
        )
    axis.axhline(0, color="0.2", linewidth=0.8)
    axis.set_xlim(-0.5, len(groups) - 0.5)
    axis.margins(y=0.1)
    return figure


def _real(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _series(axis: Axes, groups: Groups, errors: Groups, name: str, colour: str, shift: float, form: str) -> None:
    """The bars of one series, `shift` from the middles of their groups; the width of a group and its gap is 1."""
    bar = 1 / (len({name for group in groups.values() for name in group}) + GAP)
    for i, (label, group) in enumerate(groups.items()):
        value, error = group.get(name), errors.get(label, {}).get(name)
        if value is None or not _real(value):
            continue
        half = error if error is not None and _real(error) else 0.0
        axis.bar(i + shift, value, 0.94 * bar, color=colour)
        if half:
            axis.errorbar(i + shift, value, half, color="0.2", linewidth=1.3, capsize=3)
        sign = -1 if value < 0 else 1
        style: dict[str, Any] = {"ha": "center", "va": "bottom" if sign > 0 else "top", "fontsize": SMALL}
        top = (i + shift, value + sign * half)
        axis.annotate(format(value, form), top, xytext=(0, 3 * sign), textcoords="offset points", **style)
