"""Learning curves from the rows of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxcnn.plots.style import (
    COLORS,
    LABEL,
    TICK,
    TITLE,
    NotebookFigure,
    legend_columns,
    wrap,
)

Rows = Sequence[Mapping[str, Any]]
SHORT_RUN = 30
"""Rows below which no part of a run is cut off: a first row may be a third of what there is."""
FEW_POINTS = 3
"""Number of rows up to which a line has a marker at each."""
_UNITS = {"error": "error (%)"}
"""Labels of quantities that have a unit."""
_PREFIXES = ("precise_", "train_", "eval_", "validation_", "test_")


def curves(
    panels: Mapping[str, Mapping[str, Sequence[Rows]]],
    *,
    dashed: str,
    solid: str,
    title: str = "",
) -> Figure:
    """Draw learning curves in panels side by side on the same axes.

    The style is that of figure 6 of He et al. 2015. A line is the mean over seeds, and its band
    reaches from the least to the greatest. The legend has the keys as words, with the rows'
    `eval_split` for "eval" in a key `eval_*`. The axis has the quantity of the keys: "error (%)",
    "loss", or the name of another metric. A value that is not finite is a gap.

    Like the paper's, the axis cuts off a first descent of more than 2.5 times the last values. Of
    runs with fewer than 30 rows nothing is cut off.

    Args:
      panels: panel's title -> line's label -> one list of rows for each seed. A label has the same
        color in all panels.
      dashed: the key of the thin dashed lines, such as "train_error".
      solid: the key of the bold lines, such as "eval_error".
      title: above the figure.

    Example:
      >>> errors = [(1, 9.0, 9.5), (2, 5.0, 6.0)]
      >>> rows = [{"step": i, "train_error": a, "eval_error": b} for i, a, b in errors]
      >>> lines = {"20 layers": [rows]}
      >>> figure = curves({"plain": lines}, dashed="train_error", solid="eval_error")
      >>> len(figure.axes)
      1
    """
    figure = NotebookFigure(figsize=(5.6 * len(panels), 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    colors = {label: COLORS[i % len(COLORS)] for i, label in enumerate(labels)}
    for axis, (name, lines) in zip(axes, panels.items(), strict=True):
        for label, seeds in lines.items():
            _draw_line(axis, seeds, dashed, colors[label], linestyle="--", linewidth=1.1)
            _draw_line(axis, seeds, solid, colors[label], linestyle="-", linewidth=2.2)
        axis.set_title(name, fontsize=TITLE)
        axis.set_xlabel("iteration", fontsize=LABEL)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=TICK)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(*_limits(panels, (dashed, solid)))
    axes[0].set_ylabel(_axis_label(dashed, solid), fontsize=LABEL)
    handles = _legend(panels, colors, dashed, solid)
    # Below the panels, where no line can run through it.
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=legend_columns(5.6 * len(panels), handles),
        fontsize=LABEL - 1,
        frameon=False,
    )
    if title:
        figure.suptitle(wrap(title, TITLE + 1, 5.6 * len(panels) - 0.2), fontsize=TITLE + 1)
    return figure


def _limits(panels, keys) -> tuple[float, float]:
    """Return the limits of the vertical axis.

    The upper one cuts off a first descent that would flatten the ends of long lines. The lower one
    is 0, unless a value is negative, as losses of the user's own may be.
    """
    runs = [rows for lines in panels.values() for seeds in lines.values() for rows in seeds if rows]
    values = [value for run in runs for value in _finite(run, keys)]
    lowest, highest = min(values, default=0.0), max(values, default=1.0)
    ends = [value for run in runs for value in _finite(run[-1:], keys)]
    short = [value for run in runs if len(run) < SHORT_RUN for value in _finite(run, keys)]
    uncut = max(2.5 * max(ends, default=math.inf), 1.05 * max(short, default=-math.inf))
    upper = min(1.05 * highest, uncut)
    if lowest >= 0:
        return 0.0, upper or 1.0
    margin = 0.05 * (max(upper, 0.0) - lowest)
    return lowest - margin, max(upper, 0.0) + margin


def _finite(rows: Rows, keys: Sequence[str]) -> list[float]:
    """Return the finite values of some keys."""
    values = [row[key] for row in rows for key in keys if row[key] is not None]
    return [value for value in values if math.isfinite(value)]


def _axis_label(*keys: str) -> str:
    """Return the quantity of the keys, as the axis names it.

    Example:
      >>> _axis_label("train_error", "eval_error"), _axis_label("train_loss", "eval_loss")
      ('error (%)', 'loss')
    """
    labels = []
    for key in keys:
        for prefix in _PREFIXES:
            key = key.removeprefix(prefix)
        labels.append(_UNITS.get(key, key.replace("_", " ")))
    return ", ".join(dict.fromkeys(labels))


def _legend(panels, colors, dashed, solid):
    """Return the handles of one legend for all panels."""
    handles = [
        Line2D([], [], color=color, linewidth=2.2, label=label) for label, color in colors.items()
    ]
    seeds = max(len(runs) for lines in panels.values() for runs in lines.values())
    note = f" (mean, range of {seeds} seeds)" if seeds > 1 else ""
    kinds: list[tuple[str, Any, float]] = [(solid, "-", 2.2), (dashed, "--", 1.1)]
    for key, style, width in kinds:
        text = _key_as_words(panels, key) + note
        handles.append(Line2D([], [], color="0.35", linestyle=style, linewidth=width, label=text))
    return handles


def _key_as_words(panels, key: str) -> str:
    """Return the key as words, such as "training error".

    The split's name replaces "eval" where all rows agree on it.
    """
    rows = [
        row for lines in panels.values() for runs in lines.values() for run in runs for row in run
    ]
    splits = {row.get("eval_split") for row in rows}
    split = splits.pop() if len(splits) == 1 else None
    if split and key.startswith("eval_"):
        key = split + key.removeprefix("eval")
    if key.startswith("train_"):
        key = "training" + key.removeprefix("train")
    return key.replace("_", " ")


def _draw_line(axis, seeds: Sequence[Rows], key: str, color: str, **style: Any) -> None:
    by_step: dict[int, list[float]] = {}
    for rows in seeds:
        for row in rows:
            if row[key] is not None and math.isfinite(row[key]):
                by_step.setdefault(row["step"], []).append(row[key])
    steps = sorted(by_step)
    values = [by_step[step] for step in steps]
    marker = "o" if len(steps) <= FEW_POINTS else ""
    axis.plot(
        steps, [np.mean(v) for v in values], color=color, marker=marker, markersize=4, **style
    )
    if len(seeds) > 1:
        low, high = [min(v) for v in values], [max(v) for v in values]
        axis.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
