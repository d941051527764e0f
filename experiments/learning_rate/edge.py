"""The edge of stability: along full-batch gradient descent the sharpness rises to 2 (1 + m) / rate and hovers there.

Cohen et al. 2021 (arXiv:2103.00065), figures 1 and 5 and section 3: a tanh network, the squared loss, no batches. Theory for a
quadratic would have it diverge above that line; the network's curvature yields instead.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments.learning_rate import descent
from experiments.learning_rate.options import Options, data, label, rates, recipe
from jaxcnn import plots, runs, tables, training
from jaxcnn.augment import normalize


def recipes(options: Options) -> dict[str, jc.Recipe]:
    """Run's name -> recipe: plain gradient descent, then with momentum."""
    edge, there = options.edge, data(options)
    n = edge.examples or len(there.train.labels)
    all_runs = {}
    for momentum, values in ((0.0, edge.rates), (edge.momentum, edge.momentum_rates)):
        for rate in values:
            numbers: dict[str, Any] = {"model": "mlp", "options": {"hidden": list(edge.hidden), "activation": "tanh"}}
            numbers |= {
                "loss": "squared",
                "batch": n,
                "examples": edge.examples,
                "steps": edge.steps,
                "every": edge.every,
            }
            numbers |= {"optimizer": "momentum" if momentum else "sgd", "momentum": momentum, "lr": rate}
            all_runs[f"momentum{label(momentum)}-rate{label(rate)}"] = recipe(options, **numbers)
    return all_runs


def check(options: Options) -> None:
    """ArgumentError for a setting that cannot be meant."""
    rates("edge.rates", options.edge.rates)
    rates("edge.momentum-rates", options.edge.momentum_rates)
    if not options.edge.hidden:
        raise jc.ArgumentError(
            "edge.hidden is empty; a linear network has a fixed curvature: write --edge.hidden 64 64 64"
        )
    for run in recipes(options).values():
        there = runs.subset_for(run, data(options))
        runs.model_and_optimizer(run, len(there.classes))
        training.check_config(run, there, jc.strategy("jit", 1))


def sharp(model: Any, state: jc.State, there: jc.Dataset) -> dict[str, float]:
    """The largest eigenvalue of the full-batch Hessian."""
    inputs = normalize(there.train.images, state.normalizer)
    loss = jc.loss_fn(model, "squared")
    return {"sharpness": jc.sharpness(loss, state.params, state.model_state, inputs, there.train.labels)}


def run(options: Options, stop: Any) -> bool:
    """Train what is missing; False when stopped on the way. One device: nothing here is worth splitting."""
    there, out, strategy = data(options), options.out / "edge", jc.strategy("jit", 1)
    all_runs = recipes(options)
    return runs.sweep(all_runs, there, out, strategy=strategy, stop=stop, measure=sharp, brief=True) is not None


def line_of(run: runs.Run) -> float:
    """Where theory has the edge: 2 (1 + m) / rate."""
    return descent.limit(1.0, run.recipe.momentum) / run.recipe.lr


def draw(options: Options) -> list[dict[str, Any]]:
    """`edge.png` and the table, from the runs that are over."""
    out = options.out / "edge"
    all_runs = sorted(runs.finished_runs(out), key=lambda run: (run.recipe.momentum, run.recipe.lr))
    lines = [_line(run) for run in all_runs]
    setting = all_runs[0].recipe
    n = f"tanh network {setting.options['hidden']} on {setting.batch} images of {setting.dataset}"
    notes = [
        f"{n}, squared loss, {setting.steps} full-batch steps, 1 seed. measured: the sharpness, median of the last quarter."
    ]
    tables.write_table(out, lines, notes + [run.divergence for run in all_runs if run.divergence])
    for momentum, group in itertools.groupby(all_runs, key=lambda run: run.recipe.momentum):
        name = f"momentum {momentum:g}" if momentum else "gradient descent"
        _figure(list(group), f"{name}: {n}", out / ("momentum.png" if momentum else "edge.png"))
    return [
        {"what": f"sharpness at rate {line['rate']}, momentum {line['momentum']}"}
        | {key: line[key] for key in ("predicted", "measured", "ratio")}
        for line in lines
    ]


def _line(run: runs.Run) -> dict[str, Any]:
    seen = [row["sharpness"] for row in run.rows if row.get("sharpness") is not None]
    edge, last = line_of(run), [] if run.divergence else seen[-max(1, len(seen) // 4) :]
    crossed = next((row["step"] for row in run.rows if (row.get("sharpness") or 0) >= edge), None)
    line = {
        "momentum": label(run.recipe.momentum),
        "rate": label(run.recipe.lr),
        "at_first_row": seen[0] if seen else None,
    }
    line |= {"crosses_at_step": crossed, "predicted": edge, "measured": float(np.median(last)) if last else None}
    return line | {"ratio": line["measured"] / edge if last else None, "train_loss": run.result["train_loss"]}


def _figure(all_runs: list[runs.Run], title: str, path: Any) -> None:
    """Sharpness above, loss below, a column for each rate."""
    ended = [run for run in all_runs if not run.divergence] or all_runs
    ceiling = 1.15 * max(*map(line_of, all_runs), *(row.get("sharpness") or 0 for run in ended for row in run.rows))
    above, below = [], []
    for run in all_runs:
        steps = [row["step"] for row in run.rows]
        values = [row.get("sharpness") for row in run.rows]
        sharpness = plots.Line(steps, values, color=plots.COLORS[0])
        edge = plots.Mark(line_of(run), "y", f"{2 * (1 + run.recipe.momentum):g} / rate")
        panel = plots.Panel(f"rate {label(run.recipe.lr)}", (sharpness,), (edge,), "step", "sharpness")
        above.append(panel._replace(ylim=(0, ceiling)))
        loss = plots.Line(steps, [row["train_loss"] for row in run.rows], color=plots.COLORS[1])
        below.append(plots.Panel("", (loss,), (), "step", "loss", ylog=True))
    plots.save(plots.panels(above + below, columns=len(all_runs), share="x", title=title), path)
