"""Eight shapes of the rate at an equal budget.

All have the same steps, and the same peak rates to choose from on validation images.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments._common import display_names, run_all
from experiments.learning_rate.options import Options, check_rates, config, data, label
from jaxcnn import plots, runs, tables
from jaxcnn.training_checks import check_config

LAST = ("train_loss", "eval_loss", "eval_error", "heldout_error")
"""Figures of a run's last row.

`eval_*` is of the validation split, `heldout_error` of the test split.
"""


def configs(options: Options) -> dict[str, jc.ExperimentConfig]:
    """Return the runs: name -> config."""
    all_runs = {}
    for seed in options.run_seeds():
        for name in options.schedules.names:
            for rate in options.schedules.rates:
                steps = options.schedules.num_steps
                milestones = (max(1, steps // 2), max(2, steps * 3 // 4))
                all_runs[f"{name}-rate{label(rate)}-seed{seed}"] = config(
                    options,
                    optimizer="momentum",
                    schedule=name,
                    learning_rate=rate,
                    milestones=milestones if name == "step" else (),
                    num_steps=steps,
                    batch_size=options.batch_size,
                    eval_every=max(1, steps // 20),
                    num_validation=options.num_validation,
                    eval_split="validation",
                    seed=seed,
                )
    return all_runs


def check(options: Options) -> None:
    """Check the part's settings.

    Raises:
      ArgumentError: for an invalid one.
    """
    check_rates("schedules.rates", options.schedules.rates)
    if not options.schedules.names:
        raise jc.ArgumentError(
            f"schedules.names is empty; write --schedules.names {' '.join(list(jc.SCHEDULES)[:3])}"
        )
    dataset = data(options, options.num_validation)
    for run_config in configs(options).values():
        runs.model_and_optimizer(run_config, dataset.num_classes)
        check_config(run_config.train, dataset, options.make_strategy())


def heldout(num_steps: int, model: Any, state: jc.State, dataset: jc.Dataset) -> dict[str, float]:
    """Return the error on the test split after the last step.

    Before step `num_steps` nothing is returned. The test split chooses nothing.
    """
    if state.step < num_steps:
        return {}
    sums = jc.evaluate(model, state, dataset.test, strategy=jc.strategy(devices=1))
    return {"heldout_error": sums.error_percent}


def run(options: Options, stop: Any) -> bool:
    """Train the missing runs; return False if some are not finished."""
    dataset, strategy = data(options, options.num_validation), options.make_strategy()
    sweep_kwargs: dict[str, Any] = {
        "strategy": strategy,
        "should_stop": stop,
        "tensorboard": options.tensorboard,
        "measure": partial(heldout, options.schedules.num_steps),
        "quiet": True,
    }
    out = options.out / "schedules"
    return run_all(configs(options), dataset, out, **sweep_kwargs)


def best(all_runs: list[runs.Run]) -> tuple[float, list[runs.Run]]:
    """Return the peak rate of the lowest mean validation error, with runs.

    Rates at which a seed diverged are left out, unless there is no other.
    """
    by_rate: dict[float, list[runs.Run]] = {}
    for run in all_runs:
        by_rate.setdefault(run.config.optimizer.learning_rate, []).append(run)
    candidates = {
        rate: group for rate, group in by_rate.items() if not any(run.divergence for run in group)
    } or by_rate

    def score(rate: float) -> tuple[float, float]:
        group, keys = candidates[rate], ("eval_error", "eval_loss")
        return tuple(np.mean([run.result[key] or np.inf for run in group]) for key in keys)  # type: ignore[return-value]

    rate = min(candidates, key=score)
    return rate, candidates[rate]


def draw(options: Options) -> list[dict[str, Any]]:
    """Write the figures `rates` and `curves`, and the tables of the finished runs.

    Returns:
      Lines of the common table.
    """
    out = options.out / "schedules"
    all_runs = runs.finished_runs(out)
    by_name = {
        name: [run for run in all_runs if run.config.optimizer.schedule == name]
        for name in jc.SCHEDULES
    }
    best_runs = {name: best(group) for name, group in by_name.items() if group}
    lines = []
    for name, (rate, group) in best_runs.items():
        line = runs.aggregate_seeds(group, LAST)
        # The table has columns of two splits, so each name says which.
        split = line.pop("eval_split")
        columns = {
            key.replace("eval", split).replace("heldout", "test"): value
            for key, value in line.items()
        }
        lines.append({"schedule": name, "rate": label(rate)} | columns)
    setting = all_runs[0].config
    protocol = (
        f"{setting.model} on {setting.dataset}, momentum 0.9, "
        f"{setting.train.num_steps} steps of {setting.train.batch_size}"
    )
    num_rates = len({run.config.optimizer.learning_rate for run in all_runs})
    trials = f"peak rate the best of {num_rates} by validation error"
    tables.write_table(
        out,
        sorted(lines, key=lambda line: line["test_error"]),
        [f"{protocol}; {trials}; the test split chose nothing."],
    )
    _write_figures(options, best_runs, protocol)
    return [
        {
            "what": f"test error (%), {line['schedule']}",
            "predicted": None,
            "measured": line["test_error"],
            "ratio": None,
        }
        for line in lines
    ]


def _write_figures(
    options: Options, best_runs: dict[str, tuple[float, list[runs.Run]]], protocol: str
) -> None:
    """Write the figures `rates` and `curves`, with a panel for each schedule."""
    shapes, curves, drawn = [], [], {}
    for name, (rate, group) in best_runs.items():
        rows = [run.rows for run in group]
        drawn |= {run.name: run.rows for run in group}
        steps = [row["step"] for row in rows[0]]
        shares = [row["rate"] / rate for row in rows[0]]
        shapes.append(
            plots.Panel(name, (plots.Line(steps, shares),), (), "step", "rate / peak rate")
        )
        lines = (
            plots.band(rows, "step", "train_loss", label="training loss"),
            plots.band(rows, "step", "eval_loss", label="validation loss"),
        )
        title = f"{name}, peak {label(rate)}"
        curves.append(plots.Panel(title, lines, (), "step", "loss (nats)", False, True))
    figure = plots.panels(shapes, columns=4, title="Learning rate of each schedule, as run")
    options.save(figure, options.out / "schedules" / "rates")
    title = display_names(f"Loss under each schedule, mean and range of seeds: {protocol}")
    figure = plots.panels(curves, columns=4, title=title)
    tables.write_curves(options.out / "schedules", drawn)
    options.save(figure, options.out / "schedules" / "curves")
