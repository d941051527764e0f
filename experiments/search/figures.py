"""Figures of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from experiments.search.plan import TITLES, Plan
from experiments.search.study import Study
from jaxcnn import plots
from jaxcnn.search import Evaluation


def budget_panel(study: Study) -> plots.Panel:
    """Return the lowest validation error so far against the steps spent."""
    plan, largest, lines = study.plan, study.largest_random, []
    for method, by_seed in study.searches.items():
        # Twice the budget continues the same search.
        if method == "random" != largest:
            continue
        rows: list[list[dict[str, Any]]] = [[] for _ in by_seed]
        spent = next(iter(by_seed.values()))[-1].spent
        for step in range(plan.min_steps, spent + 1, plan.min_steps):
            errors = [_lowest(evaluations, step) for evaluations in by_seed.values()]
            # A mean over seeds starts where all of them have an error.
            if None not in errors:
                for seed_rows, error in zip(rows, errors, strict=True):
                    seed_rows.append({"step": step, "error": error})
        title = TITLES["random" if method == largest else method]
        lines.append(plots.band(rows, "step", "error", label=title))
    marks = [] if largest == "random" else [plots.Mark(plan.budget, "x", "budget")]
    return plots.Panel(
        "",
        lines,
        marks,
        xlabel="training steps spent",
        ylabel="lowest validation error so far (%)",
        ylog=True,
    )


def _lowest(evaluations: Sequence[Evaluation], spent: int) -> float | None:
    """Return the lowest error within so many steps, or None."""
    errors = [each.error for each in evaluations if each.spent <= spent]
    return min((error for error in errors if not math.isnan(error)), default=None)


def floor(study: Study) -> float:
    """Return the error that is drawn in place of 0, in percent.

    It is that of half a validation image.
    """
    return 50 / study.config.num_validation


def stop_style(step: int, plan: Plan) -> dict[str, Any]:
    """Return the style of configurations trained for so many steps."""
    steps = [rung.num_steps for rung in plan.brackets[0]]
    if step == plan.max_steps:
        return {"label": f"trained to the end ({step} steps)", "color": "#D55E00", "width": 2.0}
    colors = ["0.72", "#56B4E9", "#0072B2", "#009E73"]
    color = colors[steps.index(step) % len(colors)]
    return {"label": f"stopped after {step} steps", "color": color, "width": 1.2}


def last_evaluations(evaluations: Sequence[Evaluation]) -> dict[int, Evaluation]:
    """Return the last evaluation of each configuration, by its index."""
    return {each.index: each for each in evaluations}


def bracket_panels(study: Study, seed: int) -> list[plots.Panel]:
    """Return a panel of learning curves for each bracket of a seed."""
    low, panels = floor(study), []
    for method in (name for name in ("halving", "hyperband") if name in study.searches):
        evaluations = study.searches[method][seed]
        for number in sorted({each.bracket for each in evaluations}):
            bracket = [each for each in evaluations if each.bracket == number]
            ends = sorted(last_evaluations(bracket).values(), key=lambda each: each.num_steps)
            lines, crosses = [], []
            for each in ends:
                rows = study.trials[seed][each.index].rows
                shown = [row for row in rows if row[0] <= each.num_steps]
                errors = [None if row[1] is None else max(low, row[1]) for row in shown]
                style = stop_style(each.num_steps, study.plan)
                lines.append(plots.Line([row[0] for row in shown], errors, **style))
                if math.isnan(each.error):
                    crosses.append((shown[-1][0], None))
            steps = sorted({each.num_steps for each in bracket}, reverse=True)
            counts = " → ".join(
                str(sum(each.num_steps == step for each in bracket)) for step in steps[::-1]
            )
            name = "halving" if method == "halving" else f"Hyperband, bracket {len(steps) - 1}"
            panels.append(
                plots.Panel(
                    f"{name}: {counts}",
                    lines,
                    [plots.Mark(step) for step in steps[1:]],
                    xlabel="step",
                    ylabel="validation error (%)",
                    xlog=True,
                    ylog=True,
                    crosses=crosses,
                )
            )
    return panels


def space_panels(study: Study) -> list[plots.Panel]:
    """Return the configurations of successive halving: last error against learning rate.

    There is a panel for each optimizer, with the configurations of all seeds.
    """
    method = "halving" if "halving" in study.searches else "hyperband"
    points: dict[str, list[tuple[float, Evaluation]]] = {}
    for seed, evaluations in study.searches[method].items():
        for each in last_evaluations(evaluations).values():
            optimizer = study.trials[seed][each.index].config.optimizer
            points.setdefault(optimizer.name, []).append((optimizer.learning_rate, each))
    panels = []
    for name, group in sorted(points.items()):
        lines = []
        for step in sorted({each.num_steps for _, each in group}):
            ends = [(rate, each) for rate, each in group if each.num_steps == step]
            style = stop_style(step, study.plan)
            lines += [
                plots.Line([rate], [max(floor(study), each.error)], marker="o", **style)
                for rate, each in ends
                if not math.isnan(each.error)
            ]
        crosses = [(rate, None) for rate, each in group if math.isnan(each.error)]
        panels.append(
            plots.Panel(
                name,
                lines,
                xlabel="learning rate",
                ylabel="last validation error (%)",
                xlog=True,
                ylog=True,
                crosses=crosses,
            )
        )
    return panels
