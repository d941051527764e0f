"""Best rates, table and figures of studies that tune every method.

Such a study has runs in two folders. Trials at several rates are measured on the validation split.
Final runs at the best rate are measured on the test split. `Runs` are those of one folder, by
method.
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

PANEL_SIZE = (2.15, 2.4)
"""Width and height of a panel, inches: 23 panels in three rows fill a slide."""
KEYS = ("train_loss", "eval_loss", "train_error", "eval_error")
"""Figures of a run's result that the table has."""
Runs = Mapping[str, Sequence[runs.Run]]
"""Runs of each method."""


def group_by(
    key: Callable[[runs.Run], Any], all_runs: Sequence[runs.Run]
) -> dict[Any, list[runs.Run]]:
    """Return the runs of each value of `key`, by increasing value."""
    ordered = sorted(all_runs, key=key)
    return {value: list(group) for value, group in itertools.groupby(ordered, key=key)}


def methods(folder: Path) -> Runs:
    """Return the finished runs in a folder, by method."""
    return group_by(lambda run: run.config.optimizer.name, runs.finished_runs(folder))


def scores(trials: Sequence[runs.Run]) -> dict[float, tuple[float, float] | None]:
    """Return the mean validation error and loss at each rate.

    Args:
      trials: runs of one method.

    Returns:
      Rate -> (error in percent, loss in nats), means over seeds; None if a seed diverged.
    """

    def score(all_runs: list[runs.Run]) -> tuple[float, float] | None:
        errors, losses = (
            [run.result[key] for run in all_runs] for key in ("eval_error", "eval_loss")
        )
        # The loss after the last step can be no number, and so None, although that step's own
        # loss was still one.
        has_diverged = any(run.divergence for run in all_runs) or None in losses
        if has_diverged:
            return None
        return math.fsum(errors) / len(all_runs), math.fsum(losses) / len(all_runs)

    by_rate = group_by(lambda run: run.config.optimizer.learning_rate, trials)
    return {rate: score(all_runs) for rate, all_runs in by_rate.items()}


def best(trials: Sequence[runs.Run]) -> float | None:
    """Return the rate with the least mean validation error.

    Of rates with equal errors, that with the least loss is returned; None if all diverged.
    """
    valid = {rate: score for rate, score in scores(trials).items() if score}
    return min(valid, key=lambda rate: valid[rate], default=None)


def steps_to(target: float, all_runs: Sequence[runs.Run]) -> float | None:
    """Return the mean over runs of the first step at the target.

    Args:
      target: test error in percent; a row is at the target if its error is at most this.
      all_runs: runs of one method.

    Returns:
      None if a run never reaches it, or if there are no runs.
    """
    steps = [
        next((row["step"] for row in run.rows if row["eval_error"] <= target), math.inf)
        for run in all_runs
    ]
    return None if math.inf in steps else tables.seed_statistics(steps).mean


def step_time(all_runs: Sequence[runs.Run]) -> float | None:
    """Return the median milliseconds of a step, or None.

    None means that there is no row to measure it by.
    The first row of each run is left out, because its time includes compilation.
    """
    times = [
        1000 * run.config.train.batch_size / row["images_per_second"]
        for run in all_runs
        for row in run.rows[1:]
    ]
    return statistics.median(times) if times else None


def row(
    method: str, trials: Sequence[runs.Run], all_runs: Sequence[runs.Run], target: float
) -> dict[str, Any]:
    """Return the table's row of a method.

    Args:
      method: name in `jaxcnn.OPTIMIZERS`.
      trials: its runs of tuning.
      all_runs: its final runs.
      target: test error in percent for `steps_to_target`.
    """
    rate_scores, rate = scores(trials), best(trials)
    line = {"method": method, "needs": " and ".join(jc.OPTIMIZERS[method].needs) or None}
    # At an edge of the grid, a rate beyond it could be better.
    at_edge = rate in (min(rate_scores), max(rate_scores))
    line |= {
        "best_learning_rate": rate and f"{rate:g}",
        "best_at_grid_edge": "yes" if at_edge else None,
    }
    num_diverged = sum(run.divergence is not None for run in trials)
    line |= {"diverged_trials": f"{num_diverged} of {len(trials)}"}
    statistics_over_seeds = runs.aggregate_seeds(all_runs, KEYS)
    del statistics_over_seeds["seconds"]
    return (
        line
        | statistics_over_seeds
        | {"steps_to_target": steps_to(target, all_runs), "ms_per_step": step_time(all_runs)}
    )


def table(trials: Runs, final: Runs, target: float) -> list[dict[str, Any]]:
    """Return the rows of all methods, by increasing test error.

    Methods that diverged are last.
    """
    lines = [row(method, trials[method], final.get(method, []), target) for method in trials]
    lines.sort(key=lambda line: (line["eval_error"] is None, line["eval_error"], line["eval_loss"]))
    return lines


def divergences(*stages: Runs) -> list[str]:
    """Return one sentence for every run that diverged."""
    all_runs = [
        run for stage in stages for group in stage.values() for run in group if run.divergence
    ]
    return [
        f"{run.config.optimizer.name} at {run.config.optimizer.learning_rate:g}: {run.divergence}"
        for run in all_runs
    ]


def sensitivity(trials: Runs) -> list[plots.Panel]:
    """Return a panel for each method: validation error against the rate.

    The best rate is marked, and rates that diverged are crosses.
    """
    lines, markers, crosses = [], [], []
    for all_runs in trials.values():
        errors = {rate: score[0] for rate, score in scores(all_runs).items() if score}
        best_rates = [rate for rate in errors if rate == best(all_runs)]
        style: dict[str, Any] = {"label": "its best rate", "marker": "D", "color": plots.COLORS[1]}
        lines.append(
            plots.Line(list(errors), list(errors.values()), label="this method", marker="o")
        )
        markers.append(plots.Line(best_rates, [errors[rate] for rate in best_rates], **style))
        crosses.append([(rate, None) for rate, score in scores(all_runs).items() if score is None])
    axes: dict[str, Any] = {
        "xlabel": "learning rate",
        "ylabel": "error (%)",
        "xlog": True,
        "ylog": True,
    }
    panels = [
        plots.Panel(*panel, **axes)
        for panel in zip(trials, ([line] for line in lines), strict=True)
    ]
    # The markers are added after the background, which repeats every line of the other panels.
    columns = zip(plots.with_background(panels), markers, crosses, strict=True)
    return [
        panel._replace(lines=[*panel.lines, marker], crosses=panel_crosses)
        for panel, marker, panel_crosses in columns
    ]


def training(final: Runs) -> list[plots.Panel]:
    """Return a panel for each method: training loss at the best rate.

    The loss is drawn against the step. Bands are the range over the method's seeds.
    """
    panels = []
    for name, all_runs in final.items():
        rows = [run.rows for run in all_runs]
        label = "this method, mean and range of seeds"
        line = plots.band(rows, "step", "train_loss", label=label)
        title = f"{name}, {all_runs[0].config.optimizer.learning_rate:g}"
        panels.append(plots.Panel(title, [line], xlabel="step", ylabel="loss (nats)", ylog=True))
    return plots.with_background(panels)


def ranking(names: Sequence[str], final: Runs) -> plots.Panel:
    """Return a panel of the test errors by method.

    The first name is at the top. The panel has each seed, the mean and its 95% interval. Methods
    that diverged are crosses.
    """
    converged = {name: [run for run in final.get(name, []) if not run.divergence] for name in names}
    errors = {
        name: [run.result["eval_error"] for run in all_runs] for name, all_runs in converged.items()
    }
    # An error of 0 has no place on a logarithmic axis.
    positive = [error for values in errors.values() for error in values if error] or [100.0]
    low, high, lines = 0.7 * min(positive), 1.2 * max(positive), []
    for y, values in enumerate(errors.values()):
        mean, _, half_width = tables.seed_statistics(values)
        if mean is None:
            continue
        ends = [max(low, mean - (half_width or 0.0)), mean + (half_width or 0.0)]
        lines.append(
            plots.Line(ends, [y, y], label="95% interval of the mean", color=plots.COLORS[5])
        )
        lines += [plots.Line([x], [y], label="a seed", marker="|", color="0.2") for x in values]
        lines.append(
            plots.Line([mean], [y], label="mean of the seeds", marker="o", color=plots.COLORS[1])
        )
    crosses = [(high, y) for y, values in enumerate(errors.values()) if not values]
    limits: dict[str, Any] = {"xlim": (low, high), "ylim": (len(names) - 0.5, -0.5)}
    split = runs.eval_split([run for all_runs in final.values() for run in all_runs]) or "test"
    return plots.Panel("", lines, xlabel=f"{split} error (%)", xlog=True, crosses=crosses, **limits)


def write_figures(out: Path, title: str, names: Sequence[str], trials: Runs, final: Runs) -> None:
    """Write `sensitivity.png`, `curves.png` and `ranking.png`.

    Args:
      out: folder of the figures.
      title: start of each figure's title.
      names: methods in the figures' order.
      trials: runs of tuning.
      final: runs at the best rates.
    """
    trials, final = (
        {name: all_runs[name] for name in names if name in all_runs} for all_runs in (trials, final)
    )
    legend = "(grey: the other methods)"
    figure = plots.panels(
        sensitivity(trials),
        columns=8,
        size=PANEL_SIZE,
        title=f"{title}: validation error at each rate {legend}",
    )
    plots.save(figure, out / "sensitivity.png")
    figure = plots.panels(
        training(final),
        columns=8,
        size=PANEL_SIZE,
        title=f"{title}: training loss at the best rate {legend}",
    )
    plots.save(figure, out / "curves.png")
    figure = plots.panels([ranking(names, final)], title=title, size=(9.0, 1.2 + 0.28 * len(names)))
    figure.axes[0].set_yticks(range(len(names)), names)
    plots.save(figure, out / "ranking.png")
