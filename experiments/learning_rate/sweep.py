"""Loss and error against the rate, for several batch sizes.

All runs have equal epochs. The rates span decades, and training breaks at the largest.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments._common import display_names, run_all
from experiments.learning_rate.options import Options, check_rates, config, data, label
from jaxcnn import plots, runs, tables
from jaxcnn.training_checks import check_config

GUESSING = 0.98
"""Loss of guessing, as a share of log(num_classes).

By the classes' own frequencies one guesses a little better than log(num_classes).
"""
Group = dict[float, runs.Run]
"""Runs of one batch size, by rate."""


def configs(options: Options) -> dict[str, jc.ExperimentConfig]:
    """Return the runs: name -> config."""
    n, sweep = len(data(options).train.labels), options.sweep
    all_runs = {}
    for batch in sweep.batches:
        steps = math.ceil(sweep.epochs * n / batch)
        for rate in sweep.rates:
            fields: dict[str, Any] = {
                "batch_size": batch,
                "num_steps": steps,
                "eval_every": math.ceil(steps / 10),
            }
            all_runs[f"batch{batch}-rate{label(rate)}"] = config(
                options, learning_rate=rate, optimizer=options.optimizer, **fields
            )
    return all_runs


def check(options: Options) -> None:
    """Check the part's settings.

    Raises:
      ArgumentError: for an invalid one.
    """
    check_rates("sweep.rates", options.sweep.rates)
    if not options.sweep.batches or options.sweep.epochs < 1:
        raise jc.ArgumentError(
            "sweep.batches is empty or sweep.epochs below 1; "
            "write --sweep.batches 16 64 --sweep.epochs 10"
        )
    for run_config in configs(options).values():
        runs.model_and_optimizer(run_config, data(options).num_classes)
        check_config(run_config.train, data(options), options.make_strategy())


def run(options: Options, stop: Any) -> bool:
    """Train the missing runs; return False if some are not finished."""
    out, strategy = options.out / "sweep", options.make_strategy()
    sweep_kwargs: dict[str, Any] = {
        "strategy": strategy,
        "tensorboard": options.tensorboard,
        "should_stop": stop,
        "quiet": True,
    }
    return run_all(configs(options), data(options), out, **sweep_kwargs)


def broken(group: Group, num_classes: int) -> set[float]:
    """Return the rates that are too large to train at.

    At these a run diverged, or the rate is above the best one and no better than guessing. A
    network whose units have died has a finite loss, that of guessing. A rate that is too small has
    such a loss too, but is below the best one.
    """
    losses = {rate: run.result["train_loss"] for rate, run in group.items() if not run.divergence}
    best = min(losses, key=losses.__getitem__, default=0.0)
    dead = {
        rate
        for rate, loss in losses.items()
        if rate > best and loss >= GUESSING * math.log(num_classes)
    }
    return dead | (set(group) - set(losses))


def stable(group: Group, num_classes: int) -> float | None:
    """Return the largest rate below the first that is too large.

    It is None if the smallest rate is too large.
    """
    least_broken = min(broken(group, num_classes), default=math.inf)
    return max((rate for rate in group if rate < least_broken), default=None)


def draw(options: Options) -> list[dict[str, Any]]:
    """Write the figures `curves` and `map`, and the tables of the finished runs.

    Returns:
      Lines of the common table.
    """
    out = options.out / "sweep"
    all_runs = runs.finished_runs(out)
    num_classes = len(jc.DATASETS[all_runs[0].config.dataset].classes)
    batches = sorted({run.config.train.batch_size for run in all_runs})
    by_batch = {
        batch: {
            run.config.optimizer.learning_rate: run
            for run in all_runs
            if run.config.train.batch_size == batch
        }
        for batch in batches
    }
    lines = [
        _line(run) | {"too_large": "yes" if rate in broken(group, num_classes) else "-"}
        for group in by_batch.values()
        for rate, run in sorted(group.items())
    ]
    first = all_runs[0].config
    protocol = (
        f"{first.model} on {first.dataset}, {first.optimizer.name}, "
        f"{first.train.num_steps * first.train.batch_size:,} images a run, 1 seed"
    )
    notes = [
        f"{protocol}; errors in percent, losses in nats, after the last step; "
        "too large: diverged, or no better than guessing."
    ]
    tables.write_table(out, lines, notes + [run.divergence for run in all_runs if run.divergence])
    split = runs.eval_split(all_runs)
    tables.write_curves(out, {run.name: run.rows for run in all_runs})
    title = display_names(protocol)
    _write_curves(options, by_batch, num_classes, split, f"Learning rates: {title}")
    limits = {batch: stable(group, num_classes) for batch, group in by_batch.items()}
    title = f"Error by learning rate and batch size: {title}"
    _write_map(options, by_batch, limits, num_classes, split, title)
    return [
        {
            "what": f"largest stable rate, batch {batch}",
            "predicted": None,
            "measured": limits[batch],
            "ratio": None,
        }
        for batch in limits
    ]


def _line(run: runs.Run) -> dict[str, Any]:
    """Return the table's row of a run."""
    keys = ("eval_split", "train_loss", "eval_loss", "train_error", "eval_error")
    line = {
        "batch_size": run.config.train.batch_size,
        "rate": label(run.config.optimizer.learning_rate),
    }
    return line | {key: run.result[key] for key in keys}


def _write_curves(
    options: Options, by_batch: dict[int, Group], num_classes: int, split: Any, title: str
) -> None:
    """Write the figure `curves`: loss and error against the rate, by batch size."""
    panels = []
    for key, name in (
        ("train_loss", "training loss (nats)"),
        ("eval_error", f"{split} error (%)"),
    ):
        lines, crosses = [], []
        for batch, group in by_batch.items():
            rates, broken_rates = sorted(group), broken(group, num_classes)
            values = [None if rate in broken_rates else group[rate].result[key] for rate in rates]
            crosses += [(rate, None) for rate in broken_rates]
            lines.append(plots.Line(rates, values, label=f"batch {batch}", marker="o"))
        panels.append(
            plots.Panel(
                "", tuple(lines), (), "learning rate", name, True, True, crosses=tuple(crosses)
            )
        )
    figure = plots.panels(panels, share="x", title=title)
    options.save(figure, options.out / "sweep" / "curves")


def _write_map(
    options: Options,
    by_batch: dict[int, Group],
    limits: dict[int, float | None],
    num_classes: int,
    split: Any,
    title: str,
) -> None:
    """Write the figure `map`: the error by batch and rate.

    The largest stable rates are marked.
    """
    rates = sorted({rate for group in by_batch.values() for rate in group})
    cells = [
        [group[rate].result["eval_error"] if rate in group else None for rate in rates]
        for group in by_batch.values()
    ]
    values = np.array(cells, np.float64)
    crosses = np.array(
        [[rate in broken(group, num_classes) for rate in rates] for group in by_batch.values()]
    )
    figure = plots.heatmap(
        np.where(crosses, np.nan, values),
        rows=[f"{batch}" for batch in by_batch],
        columns=[label(rate) for rate in rates],
        xlabel="learning rate",
        ylabel="batch size\n(images)",
        label=f"{split} error (%)",
        title=title,
        crosses=crosses,
        best="min",
        stairs=[
            -1 if (limit := limits[batch]) is None else rates.index(limit) for batch in by_batch
        ],
    )
    options.save(figure, options.out / "sweep" / "map")
