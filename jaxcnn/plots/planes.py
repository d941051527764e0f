"""Positive values on a plane, such as a loss around a network: contours evenly spaced in the logarithm, and a path on them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import NullLocator

from jaxcnn.plots.style import LABEL, SMALL, TICK, sheet, tidy
from jaxcnn.plots.ticks import ticks

MAP, GAP = "viridis", "0.8"
LEVELS = 12
"""Contours at most."""
STEPS = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
"""Within a decade, from the finest."""
START: dict[str, Any] = {"marker": "o", "markersize": 10, "markerfacecolor": "white"}
END: dict[str, Any] = {"marker": "*", "markersize": 17, "markerfacecolor": "white"}
LINE: dict[str, Any] = {"color": "#D55E00", "linewidth": 2, "marker": "o", "markersize": 4}


class Field(NamedTuple):
    """Values on the points of a plane.

    Example:
      >>> Field("ResNet-20", [-1, 0, 1], [-1, 1], np.ones((3, 2))).path is None
      True
    """

    title: str
    x: Sequence[float] | np.ndarray
    """Numbers [m], rising."""
    y: Sequence[float] | np.ndarray
    """Numbers [m'], rising."""
    values: np.ndarray
    """float64 [m, m'], that at (x[i], y[j]) in row i. What is not finite is a gap."""
    xlabel: str = ""
    ylabel: str = ""
    path: np.ndarray | None = None
    """[t, 2], from a start to an end in the plane."""
    note: str = ""
    """A line in small letters below the title."""


def planes(
    shown: Sequence[Field],
    *,
    label: str,
    title: str = "",
    columns: int | None = None,
    most: float | None = None,
    share: bool = True,
) -> Figure:
    """Contours of every field side by side, of the same levels and colours in all, which a bar names.

    Args:
      shown: at least one; its values are positive (those that are not count as the least that are).
      label: of the values, with their unit: "training loss (nats)".
      title: above the figure.
      columns: panels to a row; None: up to four.
      most: the highest contour; above it all has one colour. None is the greatest finite value of all fields.
      share: whether the axes have the same limits in all panels and are labelled on the outer ones alone.

    Raises:
      ValueError: for no fields, values of another shape than x and y, or none that is finite and positive.

    Example:
      >>> x = np.linspace(-1, 1, 11)
      >>> bowl = Field("bowl", x, x, 0.01 + x[:, None] ** 2 + x**2, "first direction", "second direction")
      >>> len(planes([bowl], label="loss (nats)").axes)  # one of them is the bar
      2
    """
    heights, levels = logarithms(shown, most)
    columns = min(columns or 4, len(shown))
    rows, width, side = math.ceil(len(shown) / columns), min(4.6, max(3.1, 13 / columns)), len(shown) < 3 or columns < 3
    size = (columns * width + 0.9 * side, rows * (width + 0.1 + 0.3 * any(f.note for f in shown)) + 0.7 * (not side))
    figure = sheet(*size, title=title, handles=_handles(shown, heights))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel()
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    over = "max" if any(np.nanmax(height, initial=-np.inf) > np.log10(levels[-1]) for height in heights) else "neither"
    drawn: Any = None
    for i, (axis, field, height) in enumerate(zip(axes, shown, heights, strict=False)):
        drawn = _contours(axis, field, height, levels, over, width)
        _walk(axis, field)
        outer = (not share or i % columns == 0, not share or i + columns >= len(shown))
        axis.set(ylabel=field.ylabel if outer[0] else "", xlabel=field.xlabel if outer[1] else "")
        axis.tick_params(labelleft=outer[0], labelbottom=outer[1])
    _bar(figure, drawn, axes[: len(shown)], levels, label, side=side)
    return figure


def logarithms(shown: Sequence[Field], most: float | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    """log10 of each field's values, nan for what is not finite, and the levels (not their logarithms) that span them all.

    Raises:
      ValueError: as `planes`.

    Example:
      >>> logarithms([Field("", [0, 1], [0], np.array([[0.5], [20]]))])[1].tolist()
      [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    if not len(shown):
        raise ValueError("there are no fields; expected at least one")
    for field in shown:
        if np.shape(field.values) != (len(field.x), len(field.y)):
            raise ValueError(
                f"the values of {field.title!r} have shape {np.shape(field.values)}; "
                f"expected {(len(field.x), len(field.y))}, as many as x and y"
            )
    values = [np.where(np.isfinite(field.values), field.values, np.nan).astype(np.float64) for field in shown]
    positive = np.concatenate([part[part > 0] for part in values])
    if not positive.size:
        raise ValueError("no value of the fields is finite and positive; expected some, as a loss is")
    low, high = float(positive.min()), float(positive.max())
    with np.errstate(divide="ignore"):
        heights = [np.log10(np.maximum(part, low)) for part in values]
    return heights, _levels(low, high if most is None else max(low, min(high, most)))


def _levels(low: float, high: float) -> np.ndarray:
    """Round numbers from the last that is not above `low` to the first not below `high`, few enough to be told apart."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    for leading in STEPS:
        numbers = np.array([lead * 10.0**power for power, lead in itertools.product(decades, leading)])
        first = np.flatnonzero(numbers <= low * (1 + 1e-9))[-1]
        last = max(first + 1, np.flatnonzero(numbers >= high * (1 - 1e-9))[0])
        if last - first < LEVELS:
            return numbers[first : last + 1]
    numbers = numbers[first : last + 1]
    return numbers[:: math.ceil(len(numbers) / LEVELS)]


def _contours(axis: Axes, field: Field, height: np.ndarray, levels: np.ndarray, over: Any, width: float) -> Any:
    tidy(axis, field.title, width=width, pad=24 if field.note else 8)
    axis.grid(False)
    axis.set_facecolor(GAP)
    axis.set_box_aspect(1)
    if field.note:
        above: Any = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": SMALL + 1}
        axis.annotate(field.note, (0.5, 1), xycoords="axes fraction", **above)
    where = (np.asarray(field.x, np.float64), np.asarray(field.y, np.float64), np.ma.masked_invalid(height.T))
    drawn = axis.contourf(*where, np.log10(levels), cmap=MAP, extend=over)
    lines = axis.contour(*where, np.log10(levels), colors="white", linewidths=0.8, linestyles="solid")
    _tell(axis.clabel(lines, fmt=lambda v: number(10**v), fontsize=SMALL, inline=False), where)
    ticks(axis.xaxis, log=False, width=width)
    ticks(axis.yaxis, log=False, width=width)
    return drawn


def _tell(texts: Any, where: Any) -> None:
    """Numbers on contours that stand apart, away from the frame, which would cut them; the others are hidden."""
    kept: list[np.ndarray] = []
    for text in texts:
        text.set(color="black", path_effects=[Stroke(linewidth=2.2, foreground="white"), Normal()])
        place = np.array(
            [(at - np.mean(part)) / np.ptp(part) for at, part in zip(text.get_position(), where[:2], strict=True)]
        )
        shown = bool(abs(place).max() < 0.43) and all(np.hypot(*(place - other)) > 0.13 for other in kept)
        text.set_visible(shown)
        kept += [place] if shown else []


def number(value: float) -> str:
    """A level as it stands on its contour: short, and in powers of ten where that is shorter.

    Example:
      >>> [number(value) for value in (0.05, 2.0, 500.0, 2e4, 1e-5)]
      ['0.05', '2', '500', '2·$10^{4}$', '$10^{-5}$']
    """
    if value * (1 + 1e-9) >= 1e-3 and value < 9999:
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    power = math.floor(math.log10(value) + 1e-9)
    lead = f"{value / 10.0**power:.1g}"
    return f"$10^{{{power}}}$" if lead == "1" else f"{lead}·$10^{{{power}}}$"


def _walk(axis: Axes, field: Field) -> None:
    """The path, and its two ends over it."""
    if field.path is None:
        return
    path = np.asarray(field.path, np.float64)
    axis.plot(*path.T, path_effects=[Stroke(linewidth=3.6, foreground="white"), Normal()], zorder=4, **LINE)
    for at, kind in ((path[0], START), (path[-1], END)):
        axis.plot(*at[:, None], color="black", markeredgewidth=1.3, clip_on=False, zorder=5, **kind)


def _handles(shown: Sequence[Field], heights: Sequence[np.ndarray]) -> list[Any]:
    handles: list[Any] = []
    if any(field.path is not None for field in shown):
        handles.append(Line2D([], [], label="path", **LINE))
        for name, kind in (("start", START), ("end", END)):
            handles.append(Line2D([], [], label=name, color="black", linestyle="none", **kind))
    if any(np.isnan(height).any() for height in heights):
        handles.append(Patch(facecolor=GAP, label="not finite"))
    return handles


def _bar(figure: Figure, drawn: Any, axes: Any, levels: np.ndarray, label: str, *, side: bool) -> None:
    """The colours, named: at the side, or below a single row."""
    place: dict[str, Any] = {"location": "right", "aspect": 25} if side else {"location": "bottom", "aspect": 60}
    bar = figure.colorbar(drawn, ax=list(axes), pad=0.02, fraction=0.06, **place)
    bar.set_label(label, fontsize=LABEL)
    bar.set_ticks(np.log10(levels).tolist(), labels=[number(level) for level in levels])
    bar.ax.tick_params(labelsize=TICK)
    for axis in (bar.ax.xaxis, bar.ax.yaxis):
        axis.set_minor_locator(NullLocator())
