"""Loss and error against the rate, over decades and for several batch sizes, at equal epochs; where training breaks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments.learning_rate.options import Options, data, label, rates, recipe
from jaxcnn import plots, runs, tables, training

GUESSING = 0.98
"""Of log(classes): by the classes' own frequencies one guesses a little better than that."""


def recipes(options: Options) -> dict[str, jc.Recipe]:
    """Run's name -> recipe."""
    n, sweep = len(data(options).train.labels), options.sweep
    all_runs = {}
    for batch in sweep.batches:
        steps = math.ceil(sweep.epochs * n / batch)
        for rate in sweep.rates:
            numbers: dict[str, Any] = {"batch": batch, "steps": steps, "every": math.ceil(steps / 10)}
            all_runs[f"batch{batch}-rate{label(rate)}"] = recipe(
                options, lr=rate, optimizer=options.optimizer, **numbers
            )
    return all_runs


def check(options: Options) -> None:
    """ArgumentError for a setting that cannot be meant."""
    rates("sweep.rates", options.sweep.rates)
    if not options.sweep.batches or options.sweep.epochs < 1:
        raise jc.ArgumentError(
            "sweep.batches is empty or sweep.epochs below 1; write --sweep.batches 16 64 --sweep.epochs 10"
        )
    for run in recipes(options).values():
        runs.model_and_optimizer(run, len(data(options).classes))
        training.check_config(run, data(options), jc.strategy(options.strategy))


def run(options: Options, stop: Any) -> bool:
    """Train what is missing; False when stopped on the way."""
    out, strategy = options.out / "sweep", jc.strategy(options.strategy)
    return runs.sweep(recipes(options), data(options), out, strategy=strategy, stop=stop, brief=True) is not None


def broken(all_runs: dict[float, runs.Run], classes: int) -> set[float]:
    """The rates (keys of `runs`) too large to train at: diverged, or above the best rate and no better than guessing.

    A network whose units have died has a finite loss, that of guessing; a rate that is too small has it too, but lies below.
    """
    ended = {rate: run.result["train_loss"] for rate, run in all_runs.items() if not run.divergence}
    best = min(ended, key=ended.__getitem__, default=0.0)
    dead = {rate for rate, loss in ended.items() if rate > best and loss >= GUESSING * math.log(classes)}
    return dead | (set(all_runs) - set(ended))


def stable(all_runs: dict[float, runs.Run], classes: int) -> float | None:
    """The largest rate below the first that is too large; None if the smallest is."""
    least = min(broken(all_runs, classes), default=math.inf)
    return max((rate for rate in all_runs if rate < least), default=None)


def draw(options: Options) -> list[dict[str, Any]]:
    """`curves.png`, `map.png` and the table, from the runs that are over."""
    out = options.out / "sweep"
    all_runs = runs.finished_runs(out)
    classes = len(jc.DATASETS[all_runs[0].recipe.dataset].classes)
    batches = sorted({run.recipe.batch for run in all_runs})
    by_batch = {b: {run.recipe.lr: run for run in all_runs if run.recipe.batch == b} for b in batches}
    lines = [
        _line(run) | {"too_large": "yes" if rate in broken(group, classes) else "-"}
        for group in by_batch.values()
        for rate, run in sorted(group.items())
    ]
    first = all_runs[0].recipe
    n = f"{first.model} on {first.dataset}, {first.optimizer}, {first.steps * first.batch:,} images a run, 1 seed"
    notes = [
        f"{n}; errors in percent, losses in nats, after the last step; too large: diverged, or no better than guessing."
    ]
    tables.write_table(out, lines, notes + [run.divergence for run in all_runs if run.divergence])
    split = runs.eval_split(all_runs)
    _curves(by_batch, classes, split, n, out)
    limits = {b: stable(group, classes) for b, group in by_batch.items()}
    _map(by_batch, limits, classes, split, n, out)
    return [
        {"what": f"largest stable rate, batch {b}", "predicted": None, "measured": limits[b], "ratio": None}
        for b in limits
    ]


def _line(run: runs.Run) -> dict[str, Any]:
    keys = ("eval_split", "train_loss", "eval_loss", "train_error", "eval_error")
    return {"batch": run.recipe.batch, "rate": label(run.recipe.lr)} | {key: run.result[key] for key in keys}


def _curves(by_batch, classes, split, n, out) -> None:
    panels = []
    for key, name in (("train_loss", "training loss (nats)"), ("eval_error", f"{split} error (%)")):
        lines, crosses = [], []
        for batch, group in by_batch.items():
            rates, lost = sorted(group), broken(group, classes)
            values = [None if rate in lost else group[rate].result[key] for rate in rates]
            crosses += [(rate, None) for rate in lost]
            lines.append(plots.Line(rates, values, label=f"batch {batch}", marker="o"))
        panels.append(plots.Panel("", tuple(lines), (), "learning rate", name, True, True, crosses=tuple(crosses)))
    plots.save(plots.panels(panels, share="x", title=n), out / "curves.png")


def _map(by_batch, limits, classes, split, n, out) -> None:
    rates = sorted({rate for group in by_batch.values() for rate in group})
    cell = [[group[r].result["eval_error"] if r in group else None for r in rates] for group in by_batch.values()]
    values = np.array(cell, np.float64)
    crosses = np.array([[r in broken(group, classes) for r in rates] for group in by_batch.values()])
    figure = plots.heatmap(
        np.where(crosses, np.nan, values),
        rows=[f"{batch}" for batch in by_batch],
        columns=[label(rate) for rate in rates],
        xlabel="learning rate",
        ylabel="batch",
        label=f"{split} error (%)",
        title=n,
        crosses=crosses,
        best="min",
        stairs=[-1 if limits[b] is None else rates.index(limits[b]) for b in by_batch],
    )
    plots.save(figure, out / "map.png")
