"""Studies in which every method is tuned first: the best rate of its trials, the table's row, and the figures.

A study has runs in two folders: trials at several rates, measured on the validation split, and final runs at the best of
them, measured on the test split. `Runs` are those of one folder, by method.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jaxcnn as jc
from jaxcnn import plots, runs, tables

SMALL = (2.15, 2.4)
"""A panel's width and height, inches: 23 of them in three rows fill a slide."""
KEYS = ("train_loss", "eval_loss", "train_error", "eval_error")
Runs = Mapping[str, Sequence[runs.Run]]
"""The runs of each method."""


def by(key: Callable[[runs.Run], Any], all_runs: Sequence[runs.Run]) -> dict[Any, list[runs.Run]]:
    """The runs of each value of `key`, in increasing order of it."""
    return {value: list(group) for value, group in itertools.groupby(sorted(all_runs, key=key), key=key)}


def methods(folder: Path) -> Runs:
    """The runs in a folder that are over, by method."""
    return by(lambda run: run.recipe.optimizer, runs.finished_runs(folder))


def scores(trials: Sequence[runs.Run]) -> dict[float, tuple[float, float] | None]:
    """Rate -> mean validation error and loss of a method's trials; None where one of them diverged."""

    def score(all_runs: list[runs.Run]) -> tuple[float, float] | None:
        error, loss = ([run.result[key] for run in all_runs] for key in ("eval_error", "eval_loss"))
        # A loss that is no number, and so None, can come after a last step whose own loss still was one.
        lost = any(run.divergence for run in all_runs) or None in loss
        return None if lost else (math.fsum(error) / len(all_runs), math.fsum(loss) / len(all_runs))

    return {rate: score(all_runs) for rate, all_runs in by(lambda run: run.recipe.lr, trials).items()}


def best(trials: Sequence[runs.Run]) -> float | None:
    """The rate of the least mean validation error, of equals that of the least loss; None if none trained."""
    good = {rate: score for rate, score in scores(trials).items() if score}
    return min(good, key=lambda rate: good[rate], default=None)


def steps_to(target: float, all_runs: Sequence[runs.Run]) -> float | None:
    """The mean over runs of the first row's step whose test error is at most `target`; None if a run has no such row."""
    first = [next((row["step"] for row in run.rows if row["eval_error"] <= target), math.inf) for run in all_runs]
    return None if math.inf in first else tables.seed_statistics(first).mean


def step_time(all_runs: Sequence[runs.Run]) -> float | None:
    """The median milliseconds of a step, over all rows but each run's first, whose time includes compilation."""
    times = [1000 * run.recipe.batch / row["images_per_second"] for run in all_runs for row in run.rows[1:]]
    return statistics.median(times) if times else None


def row(method: str, trials: Sequence[runs.Run], all_runs: Sequence[runs.Run], target: float) -> dict[str, Any]:
    """One row of the table: what tuning found, what the final runs did with it."""
    tried, rate = scores(trials), best(trials)
    line = {"method": method, "needs": " and ".join(jc.OPTIMIZERS[method].needs) or None}
    line |= {"best_lr": rate and f"{rate:g}", "edge": "yes" if rate in (min(tried), max(tried)) else None}
    line |= {"diverged_trials": f"{sum(run.divergence is not None for run in trials)} of {len(trials)}"}
    measured = runs.aggregate_seeds(all_runs, KEYS)
    del measured["seconds"]
    return line | measured | {"steps_to_target": steps_to(target, all_runs), "ms_per_step": step_time(all_runs)}


def table(trials: Runs, final: Runs, target: float) -> list[dict[str, Any]]:
    """The rows of all methods, the least test error first and those that diverged last."""
    lines = [row(method, trials[method], final.get(method, []), target) for method in trials]
    lines.sort(key=lambda line: (line["eval_error"] is None, line["eval_error"], line["eval_loss"]))
    return lines


def divergences(*stages: Runs) -> list[str]:
    """One sentence for every run that diverged."""
    all_runs = [run for stage in stages for group in stage.values() for run in group if run.divergence]
    return [f"{run.recipe.optimizer} at {run.recipe.lr:g}: {run.divergence}" for run in all_runs]


def sensitivity(trials: Runs) -> list[plots.Panel]:
    """Validation error against the rate, a panel for each method; the rate chosen is marked."""
    lines, chosen, lost = [], [], []
    for all_runs in trials.values():
        good = {rate: score[0] for rate, score in scores(all_runs).items() if score}
        at = [rate for rate in good if rate == best(all_runs)]
        mark: dict[str, Any] = {"label": "its best rate", "marker": "D", "color": plots.COLORS[1]}
        lines.append(plots.Line(list(good), list(good.values()), label="this method", marker="o"))
        chosen.append(plots.Line(at, [good[rate] for rate in at], **mark))
        lost.append([(rate, None) for rate, score in scores(all_runs).items() if score is None])
    axes: dict[str, Any] = {"xlabel": "learning rate", "ylabel": "error (%)", "xlog": True, "ylog": True}
    plain = [plots.Panel(*panel, **axes) for panel in zip(trials, ([line] for line in lines), strict=True)]
    parts = zip(plots.with_background(plain), chosen, lost, strict=True)
    return [panel._replace(lines=[*panel.lines, mark], crosses=crosses) for panel, mark, crosses in parts]


def training(final: Runs) -> list[plots.Panel]:
    """Training loss against the step at the best rate, a panel for each method; bands reach over its seeds."""
    panels = []
    for name, all_runs in final.items():
        line = plots.band(
            [run.rows for run in all_runs], "step", "train_loss", label="this method, mean and range of seeds"
        )
        title = f"{name}, {all_runs[0].recipe.lr:g}"
        panels.append(plots.Panel(title, [line], xlabel="step", ylabel="loss (nats)", ylog=True))
    return plots.with_background(panels)


def ranking(names: Sequence[str], final: Runs) -> plots.Panel:
    """Test error by method, from above: each seed, the mean and its 95% interval; crosses are methods that diverged."""
    kept = {name: [run for run in final.get(name, []) if not run.divergence] for name in names}
    errors = {name: [run.result["eval_error"] for run in all_runs] for name, all_runs in kept.items()}
    known = [error for of in errors.values() for error in of if error] or [100.0]
    low, high, lines = 0.7 * min(known), 1.2 * max(known), []
    for y, values in enumerate(errors.values()):
        mean, _, half = tables.seed_statistics(values)
        if mean is None:
            continue
        ends = [max(low, mean - (half or 0.0)), mean + (half or 0.0)]
        lines.append(plots.Line(ends, [y, y], label="95% interval of the mean", color=plots.COLORS[5]))
        lines += [plots.Line([x], [y], label="a seed", marker="|", color="0.2") for x in values]
        lines.append(plots.Line([mean], [y], label="mean of the seeds", marker="o", color=plots.COLORS[1]))
    lost = [(high, y) for y, values in enumerate(errors.values()) if not values]
    limits: dict[str, Any] = {"xlim": (low, high), "ylim": (len(names) - 0.5, -0.5)}
    split = runs.eval_split([run for all_runs in final.values() for run in all_runs]) or "test"
    return plots.Panel("", lines, xlabel=f"{split} error (%)", xlog=True, crosses=lost, **limits)


def pictures(out: Path, what: str, names: Sequence[str], trials: Runs, final: Runs) -> None:
    """`sensitivity.png`, `curves.png` and `ranking.png`, with the methods in the order of `names`."""
    trials, final = ({name: all_runs[name] for name in names if name in all_runs} for all_runs in (trials, final))
    grey = "(grey: the other methods)"
    figure = plots.panels(
        sensitivity(trials), columns=8, size=SMALL, title=f"{what}: validation error at each rate {grey}"
    )
    plots.save(figure, out / "sensitivity.png")
    figure = plots.panels(
        training(final), columns=8, size=SMALL, title=f"{what}: training loss at the best rate {grey}"
    )
    plots.save(figure, out / "curves.png")
    figure = plots.panels([ranking(names, final)], title=what, size=(9.0, 1.2 + 0.28 * len(names)))
    figure.axes[0].set_yticks(range(len(names)), names)
    plots.save(figure, out / "ranking.png")
