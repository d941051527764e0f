"""Eight shapes of the rate at an equal budget: the same steps, and the same peak rates to choose from on validation images."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments.learning_rate.options import Options, data, label, rates, recipe
from jaxcnn import plots, runs, tables, training

LAST = ("train_loss", "eval_loss", "eval_error", "heldout_error")
"""The last row's figures of a run; `eval_*` is of the validation split, `heldout_error` of the test split."""


def recipes(options: Options) -> dict[str, jc.Recipe]:
    """Run's name -> recipe."""
    all_runs = {}
    for seed in range(options.seeds):
        for name in options.schedules.names:
            for rate in options.schedules.rates:
                steps = options.schedules.steps
                drops = (max(1, steps // 2), max(2, steps * 3 // 4)) if name == "step" else ()
                numbers: dict[str, Any] = {"schedule": name, "lr": rate, "drops": drops, "seed": seed, "steps": steps}
                numbers |= {"batch": options.batch, "every": max(1, steps // 20), "optimizer": "momentum"}
                numbers |= {"validation": options.validation, "report": "validation"}
                all_runs[f"{name}-rate{label(rate)}-seed{seed}"] = recipe(options, **numbers)
    return all_runs


def check(options: Options) -> None:
    """ArgumentError for a setting that cannot be meant."""
    rates("schedules.rates", options.schedules.rates)
    if not options.schedules.names:
        raise jc.ArgumentError(f"schedules.names is empty; write --schedules.names {' '.join(list(jc.SCHEDULES)[:3])}")
    there = data(options, options.validation)
    for run in recipes(options).values():
        runs.model_and_optimizer(run, len(there.classes))
        training.check_config(run, there, jc.strategy(options.strategy))


def heldout(steps: int, model: Any, state: jc.State, there: jc.Dataset) -> dict[str, float]:
    """After the last step, the error on the test split, which chooses nothing."""
    if state.step < steps:
        return {}
    return {"heldout_error": jc.evaluate(model, state, there.test, strategy=jc.strategy(devices=1)).error_percent}


def run(options: Options, stop: Any) -> bool:
    """Train what is missing; False when stopped on the way."""
    there, strategy = data(options, options.validation), jc.strategy(options.strategy)
    how: dict[str, Any] = {"strategy": strategy, "stop": stop, "measure": partial(heldout, options.schedules.steps)}
    return runs.sweep(recipes(options), there, options.out / "schedules", **how, brief=True) is not None


def best(all_runs: list[runs.Run]) -> tuple[float, list[runs.Run]]:
    """The peak rate with the lowest mean validation error of those whose every seed ended, and its runs."""
    by_rate: dict[float, list[runs.Run]] = {}
    for run in all_runs:
        by_rate.setdefault(run.recipe.lr, []).append(run)
    ended = {rate: group for rate, group in by_rate.items() if not any(run.divergence for run in group)} or by_rate

    def score(rate: float) -> tuple[float, float]:
        return tuple(np.mean([run.result[key] or np.inf for run in ended[rate]]) for key in ("eval_error", "eval_loss"))  # type: ignore[return-value]

    rate = min(ended, key=score)
    return rate, ended[rate]


def draw(options: Options) -> list[dict[str, Any]]:
    """`rates.png`, `curves.png` and the table, from the runs that are over."""
    out = options.out / "schedules"
    all_runs = runs.finished_runs(out)
    by_name = {name: [run for run in all_runs if run.recipe.schedule == name] for name in jc.SCHEDULES}
    chosen = {name: best(group) for name, group in by_name.items() if group}
    lines = []
    for name, (rate, group) in chosen.items():
        line = runs.aggregate_seeds(group, LAST)
        split = line.pop("eval_split")  # two splits in one table: each column says which
        named = {key.replace("eval", split).replace("heldout", "test"): value for key, value in line.items()}
        lines.append({"schedule": name, "rate": label(rate)} | named)
    setting = all_runs[0].recipe
    n = f"{setting.model} on {setting.dataset}, momentum 0.9, {setting.steps} steps of {setting.batch}"
    trials = f"peak rate the best of {len({run.recipe.lr for run in all_runs})} by validation error"
    tables.write_table(
        out, sorted(lines, key=lambda line: line["test_error"]), [f"{n}; {trials}; the test split chose nothing."]
    )
    _draw(chosen, n, out)
    return [
        {
            "what": f"test error (%), {line['schedule']}",
            "predicted": None,
            "measured": line["test_error"],
            "ratio": None,
        }
        for line in lines
    ]


def _draw(chosen: dict[str, tuple[float, list[runs.Run]]], n: str, out: Any) -> None:
    shapes, curves = [], []
    for name, (rate, group) in chosen.items():
        rows = [run.rows for run in group]
        steps = [row["step"] for row in rows[0]]
        shares = [row["rate"] / rate for row in rows[0]]
        shapes.append(plots.Panel(name, (plots.Line(steps, shares),), (), "step", "rate / peak"))
        lines = (
            plots.band(rows, "step", "train_loss", label="training loss"),
            plots.band(rows, "step", "eval_loss", label="validation loss"),
        )
        curves.append(plots.Panel(f"{name}, peak {label(rate)}", lines, (), "step", "loss (nats)", False, True))
    plots.save(plots.panels(shapes, columns=4, title="Shapes of the rate, as run"), out / "rates.png")
    plots.save(plots.panels(curves, columns=4, title=f"{n} (band: seeds)"), out / "curves.png")
