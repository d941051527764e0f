"""Learning curves from the rows of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxcnn.plots.style import COLOURS

Rows = Sequence[Mapping[str, Any]]


def curves(panels: Mapping[str, Mapping[str, Sequence[Rows]]], *, dashed: str, solid: str, title: str = "") -> Figure:
    """Learning curves in the manner of figure 6 of He et al. 2015: panels side by side on the same axes.

    Args:
      panels: panel's title -> line's label -> one list of rows for each seed. A label has the same colour in all panels.
      dashed: the key of the thin dashed lines, such as "train_error".
      solid: the key of the bold lines, such as "eval_error".
      title: above the figure.

    A line is the mean over seeds and its band reaches from the least to the greatest. The legend names a key in words, an
    `eval_*` key by the split in the rows' `eval_split`.

    Example:
      >>> rows = [{"step": 1, "train_error": 9.0, "eval_error": 9.5}, {"step": 2, "train_error": 5.0, "eval_error": 6.0}]
      >>> figure = curves({"plain": {"20 layers": [rows]}}, dashed="train_error", solid="eval_error")
      >>> len(figure.axes)
      1
    """
    figure = Figure(figsize=(5.6 * len(panels), 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    colour = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    for axis, (name, lines) in zip(axes, panels.items(), strict=True):
        for label, seeds in lines.items():
            _line(axis, seeds, dashed, colour[label], linestyle="--", linewidth=1.1)
            _line(axis, seeds, solid, colour[label], linestyle="-", linewidth=2.2)
        axis.set_title(name, fontsize=14)
        axis.set_xlabel("iteration", fontsize=13)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=11)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(0, _top(panels, (dashed, solid)))
    axes[0].set_ylabel("error (%)", fontsize=13)
    handles = _handles(panels, colour, dashed, solid)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=11, frameon=False)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _top(panels, keys) -> float:
    """Where the axis ends: like the paper's, it leaves out a first descent that would press the ends of the lines flat."""
    rows = [rows for lines in panels.values() for seeds in lines.values() for rows in seeds if rows]
    every = [row[key] for run in rows for row in run for key in keys if row[key] is not None]
    ends = [run[-1][key] for run in rows for key in keys if run[-1][key] is not None]
    return min(1.05 * max(every, default=1), 2.5 * max(ends, default=math.inf)) or 1


def _handles(panels, colour, dashed, solid):
    """One legend for all panels, below them, where no line can run through it."""
    handles = [Line2D([], [], color=c, linewidth=2.2, label=label) for label, c in colour.items()]
    seeds = max(len(runs) for lines in panels.values() for runs in lines.values())
    note = f", mean and range of {seeds} seeds" if seeds > 1 else ""
    kinds: list[tuple[str, Any, float]] = [(solid, "-", 2.2), (dashed, "--", 1.1)]
    for key, style, width in kinds:
        text = _words(panels, key) + note
        handles.append(Line2D([], [], color="0.35", linestyle=style, linewidth=width, label=text))
    return handles


def _words(panels, key: str) -> str:
    """Return the key as words, with the split's name for "eval" where all rows agree on it."""
    rows = [row for lines in panels.values() for seeds in lines.values() for run in seeds for row in run]
    splits = {row.get("eval_split") for row in rows}
    split = splits.pop() if len(splits) == 1 else None
    if split and key.startswith("eval_"):
        key = split + key.removeprefix("eval")
    return key.replace("_", " ")


def _line(axis, seeds: Sequence[Rows], key: str, colour: str, **style: Any) -> None:
    by_step: dict[int, list[float]] = {}
    for rows in seeds:
        for row in rows:
            if row[key] is not None:
                by_step.setdefault(row["step"], []).append(row[key])
    steps = sorted(by_step)
    values = [by_step[step] for step in steps]
    axis.plot(steps, [np.mean(v) for v in values], color=colour, **style)
    if len(seeds) > 1:
        axis.fill_between(
            steps, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, linewidth=0
        )
