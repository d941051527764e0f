"""Ticks whose numbers stand apart, even in a small panel."""

from __future__ import annotations

import math

from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogFormatterMathtext, LogLocator, MaxNLocator

SHORT, SHORTER = 1.5, 0.35
"""In decades: below the first, powers of ten alone are too few numbers; below the second, so are 1, 2 and 5 times them."""


def ticks(axis: Axis, *, log: bool, width: float, whole: bool = False) -> None:
    """Make an axis linear or logarithmic, with ticks as many as a panel of `width` inches has room for.

    With `whole` a linear axis has them at whole numbers alone, as for epochs.
    """
    if log:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # pyright: ignore[reportAttributeAccessIssue]
        powers = LogFormatterMathtext()
        powers.set_axis(axis)
        axis.set_major_locator(LogLocator(numticks=max(3, int(1.6 * width))))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if _decades(axis) < SHORT else powers(v)))
        axis.set_minor_formatter(FuncFormatter(lambda v, _: between(v, _decades(axis))))
        return
    axis.set_major_locator(MaxNLocator(min(6, max(3, int(1.3 * width))), steps=[1, 2, 2.5, 5, 10], integer=whole))
    if axis.axis_name == "x":  # pyright: ignore[reportAttributeAccessIssue]
        axis.set_major_formatter(FuncFormatter(lambda v, _: thousands(v, max(map(abs, axis.get_view_interval())))))


def _decades(axis: Axis) -> float:
    low, high = sorted(axis.get_view_interval())
    return math.log10(high / low) if low > 0 else math.inf


def between(value: float, decades: float) -> str:
    """The number at a tick between powers of ten, on an axis of so many decades; "" where it would be one too many.

    Example:
      >>> [between(value, 1.0) for value in (0.2, 0.3, 0.5, 0.6)], between(0.2, 3.0), between(0.6, 0.2)
      (['0.2', '', '0.5', ''], '', '0.6')
    """
    if decades >= SHORT:
        return ""
    leading = round(value / 10 ** math.floor(math.log10(value) + 1e-9), 6)
    return f"{value:.6g}" if decades < SHORTER or leading in (1, 2, 5) else ""


def thousands(value: float, greatest: float) -> str:
    """The number at a tick; on an axis that reaches ten thousand in thousands, since 20k takes half the room of 20000.

    Example:
      >>> thousands(2500, 20_000), thousands(0, 20_000), thousands(2500, 5000)
      ('2.5k', '0', '2500')
    """
    return f"{value / 1000:g}k" if greatest >= 10_000 and value else f"{value:.6g}"
