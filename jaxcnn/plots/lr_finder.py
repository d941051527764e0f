"""Range test of the learning rate: loss against rate, with the rates that it found."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxcnn.plots.panels import Line, Mark, Panel, panels
from jaxcnn.plots.style import COLORS


def lr_finder(result: Any, *, title: str = "") -> Figure:
    """Draw the result of a learning-rate range test.

    The batches' losses are gray and their moving mean is blue, against the rate on a logarithmic
    axis. Dotted lines mark the suggested rate and the limit, where the test found them, and a cross
    the rate at which the loss diverged. The axis ends at 1.6 times the first loss (Smith 2017,
    arXiv:1506.01186, section 3.3).

    Args:
      result: what `jaxcnn.lr_finder` returns: `rates`, `losses` and `smooth`, float [n], and
        `suggested`, `limit` and `diverged`, a rate or None.
      title: above the axes.

    Raises:
      ValueError: `result` is no such result.

    Example:
      >>> from jaxcnn.learning_rate_finder import range_test
      >>> descend = lambda w, rate: (w - rate * 8 * w, 4 * w * w)
      >>> result = range_test(descend, 1.0, low=1e-3, high=10, window=1)
      >>> lr_finder(result).axes[0].get_xscale()
      'log'
    """
    names = ("rates", "losses", "smooth", "suggested", "limit", "diverged")
    if not all(hasattr(result, name) for name in names):
        raise ValueError(
            f"result is of type {type(result).__name__}; expected what jaxcnn.lr_finder returns. "
            "Write lr_finder(jaxcnn.lr_finder(model, config, data, train_config))."
        )
    lines = (
        Line(result.rates, result.losses, label="loss of each batch", color="0.72", width=1.0),
        Line(result.rates, result.smooth, label="moving mean", color=COLORS[0], width=2.4),
    )
    marks = [
        Mark(rate, "x", f"{name} {rate:.2g}")
        for name, rate in (("suggested", result.suggested), ("limit", result.limit))
        if rate is not None
    ]
    crosses = () if result.diverged is None else ((result.diverged, None),)
    panel = Panel(
        title,
        lines,
        marks,
        "learning rate",
        "loss",
        xlog=True,
        ylim=_limits(np.asarray(result.losses, np.float64), np.asarray(result.smooth, np.float64)),
        crosses=crosses,
    )
    return panels([panel], size=(6.4, 4.0))


def _limits(losses: np.ndarray, smooth: np.ndarray) -> tuple[float, float] | None:
    """Return limits within which the descent fills the axes, however far the loss diverges.

    They are None if no loss is finite.
    """
    finite = losses[np.isfinite(losses)]
    first = next((float(value) for value in smooth if math.isfinite(value)), None)
    if first is None or not len(finite):
        return None
    lowest = float(finite.min())
    if lowest < 0:
        margin = 0.6 * max(first - lowest, abs(first), 1e-12)
        return lowest - 0.1 * margin, first + margin
    return 0.0, max(1.6 * first, 1.05 * lowest, 1e-12)
