"""Groups of bars with their values on top."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from jaxcnn.plots.style import COLORS, SMALL, TICK, new_figure, style_axes, text_width, wrap

Groups = Mapping[str, Mapping[str, float | None]]
GAP = 0.5
"""Space between two groups, in bars."""
BAR_WIDTH = 0.24
"""Width of a bar without its value, in inches."""
REFERENCE: dict[str, Any] = {"color": "0.25", "linestyle": ":", "linewidth": 1.6}
ERROR_BAR: dict[str, Any] = {"color": "0.2", "linewidth": 1.3}


def bars(
    groups: Groups,
    *,
    ylabel: str,
    title: str = "",
    xlabel: str = "",
    errors: Groups | None = None,
    error_label: str = "",
    reference: tuple[float, str] | None = None,
    fmt: str | None = ".3g",
) -> Figure:
    """Draw a group of bars for each label, one for each series.

    A series has the same color in all groups.

    Args:
      groups: label -> series -> value; None and nan leave a bar's place empty.
      ylabel: of the values, with their unit.
      title: above the figure.
      xlabel: what the groups' labels are.
      errors: label -> series -> half the length of an error bar, in the unit of the value. A
        missing one has no error bar.
      error_label: of the error bars in the legend, such as "95% interval"; "" leaves them out.
      reference: value and name of a dotted horizontal line, such as that of guessing.
      fmt: format of a value, as in `format`. None writes no values on top, which makes the figure
        narrower.

    Raises:
      ValueError: there are no groups or no series.

    Example:
      >>> groups = {"none": {"train": 0.1, "test": 9.0}, "dropout": {"train": 2.0, "test": 8.0}}
      >>> figure = bars(groups, ylabel="error (%)")
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['0.1', '2', '9', '8']
    """
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    if not series:
        raise ValueError("there are no bars; expected label -> series -> value")
    values = [value for group in groups.values() for value in group.values() if _is_finite(value)]
    bar_width = BAR_WIDTH
    if fmt is not None:
        widest = max(text_width(format(value, fmt), SMALL) for value in values)
        # In inches, so that the values of neighbors do not overlap.
        bar_width = max(0.42, widest + 0.1)
    group_width = bar_width * (len(series) + GAP)
    width = max(5.2, 1.1 + group_width * len(groups))
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(series)}
    handles: list[Any] = [Patch(facecolor=color, label=name) for name, color in colors.items()]
    if errors and error_label:
        style: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 14}
        handles.append(Line2D([], [], label=error_label, **ERROR_BAR | style, markeredgewidth=1.3))
    if reference is not None:
        handles.append(Line2D([], [], label=reference[1], **REFERENCE))
    figure = new_figure(width, 4.2, title=title, handles=handles)
    axis = figure.add_subplot()
    style_axes(axis, "", panel_width=width)
    axis.grid(False, axis="x")
    axis.set_ylabel(ylabel)
    axis.set_xlabel(xlabel)
    label_width = (width - 1.1) / len(groups) - 0.1
    axis.set_xticks(range(len(groups)), [wrap(label, TICK, label_width) for label in groups])
    for i, name in enumerate(series):
        shift = (i - (len(series) - 1) / 2) / (len(series) + GAP)
        _draw_series(axis, groups, errors or {}, name, colors[name], shift, fmt)
    axis.axhline(0, color="0.2", linewidth=0.8)
    if reference is not None:
        axis.axhline(reference[0], **REFERENCE)
    axis.set_xlim(-0.5, len(groups) - 0.5)
    axis.margins(y=0.1)
    return figure


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _draw_series(
    axis: Axes,
    groups: Groups,
    errors: Groups,
    name: str,
    color: str,
    shift: float,
    fmt: str | None,
) -> None:
    """Draw the bars of one series, `shift` from their groups' centers.

    The unit is the width of a group and its gap.
    """
    width = 1 / (len({key for group in groups.values() for key in group}) + GAP)
    for i, (label, group) in enumerate(groups.items()):
        value, error = group.get(name), errors.get(label, {}).get(name)
        if value is None or not _is_finite(value):
            continue
        half = error if error is not None and _is_finite(error) else 0.0
        axis.bar(i + shift, value, 0.94 * width, color=color)
        if half:
            axis.errorbar(i + shift, value, half, capsize=3, **ERROR_BAR)
        if fmt is None:
            continue
        sign = -1 if value < 0 else 1
        style: dict[str, Any] = {
            "ha": "center",
            "va": "bottom" if sign > 0 else "top",
            "fontsize": SMALL,
        }
        tip = (i + shift, value + sign * half)
        offset = (0, 3 * sign)
        axis.annotate(format(value, fmt), tip, xytext=offset, textcoords="offset points", **style)
