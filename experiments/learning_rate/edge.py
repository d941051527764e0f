"""Edge of stability of full-batch gradient descent.

Along the run the sharpness rises to 2 (1 + m) / rate and hovers there: Cohen et al. 2021
(arXiv:2103.00065), figures 1 and 5 and section 3. The setting is theirs: a tanh network, the
squared loss, no batches. On a quadratic, gradient descent diverges above that line. A network's
curvature decreases instead.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments._common import display_names, run_all
from experiments.learning_rate import descent
from experiments.learning_rate.options import Options, check_rates, config, data, label
from jaxcnn import plots, runs, tables
from jaxcnn.augment import normalize
from jaxcnn.training_checks import check_config


def configs(options: Options) -> dict[str, jc.ExperimentConfig]:
    """Return the runs: name -> config.

    Those of plain gradient descent come first, then those with momentum.
    """
    edge, dataset = options.edge, data(options)
    n = edge.max_train_examples or len(dataset.train.labels)
    all_runs = {}
    for momentum, rates in ((0.0, edge.rates), (edge.momentum, edge.momentum_rates)):
        for rate in rates:
            all_runs[f"momentum{label(momentum)}-rate{label(rate)}"] = config(
                options,
                model="mlp",
                model_kwargs={"hidden": list(edge.hidden), "activation": "tanh"},
                max_train_examples=edge.max_train_examples,
                optimizer="momentum" if momentum else "sgd",
                momentum=momentum,
                learning_rate=rate,
                loss="squared",
                num_steps=edge.num_steps,
                batch_size=n,
                eval_every=edge.eval_every,
            )
    return all_runs


def check(options: Options) -> None:
    """Check the part's settings.

    Raises:
      ArgumentError: for an invalid one.
    """
    check_rates("edge.rates", options.edge.rates)
    check_rates("edge.momentum-rates", options.edge.momentum_rates)
    if not options.edge.hidden:
        raise jc.ArgumentError(
            "edge.hidden is empty; a linear network has a fixed curvature: "
            "write --edge.hidden 64 64 64"
        )
    for run_config in configs(options).values():
        subset = runs.subset_for(run_config, data(options))
        runs.model_and_optimizer(run_config, subset.num_classes)
        check_config(run_config.train, subset, jc.strategy("jit", 1))


def measure_sharpness(model: Any, state: jc.State, dataset: jc.Dataset) -> dict[str, float]:
    """Return the largest eigenvalue of the full-batch Hessian."""
    inputs = normalize(dataset.train.images, state.normalizer)
    labels = dataset.train.labels
    loss = jc.loss_fn(model, "squared")
    return {"sharpness": jc.sharpness(loss, state.params, state.model_state, inputs, labels)}


def run(options: Options, stop: Any) -> bool:
    """Train the missing runs; return False if some are not finished.

    They use one device: nothing here is large enough to split.
    """
    dataset, out = data(options), options.out / "edge"
    sweep_kwargs: dict[str, Any] = {
        "strategy": jc.strategy("jit", 1),
        "should_stop": stop,
        "tensorboard": options.tensorboard,
        "measure": measure_sharpness,
        "quiet": True,
    }
    return run_all(configs(options), dataset, out, **sweep_kwargs)


def predicted_edge(run: runs.Run) -> float:
    """Return the predicted sharpness, 2 (1 + m) / rate."""
    return descent.limit(1.0, run.config.optimizer.momentum) / run.config.optimizer.learning_rate


def draw(options: Options) -> list[dict[str, Any]]:
    """Write the table and the figures of the finished runs.

    The figures are `edge` and `momentum`.

    Returns:
      Lines of the common table.
    """
    out = options.out / "edge"
    all_runs = sorted(
        runs.finished_runs(out),
        key=lambda run: (run.config.optimizer.momentum, run.config.optimizer.learning_rate),
    )
    lines = [_line(run) for run in all_runs]
    setting = all_runs[0].config
    protocol = (
        f"tanh network {setting.model_kwargs['hidden']} "
        f"on {setting.train.batch_size} images of {setting.dataset}"
    )
    notes = [
        f"{protocol}, squared loss, {setting.train.num_steps} full-batch steps, 1 seed. "
        "measured: the sharpness, median of the last quarter."
    ]
    tables.write_table(out, lines, notes + [run.divergence for run in all_runs if run.divergence])
    for momentum, group in itertools.groupby(
        all_runs, key=lambda run: run.config.optimizer.momentum
    ):
        name = f"momentum {momentum:g}" if momentum else "gradient descent"
        title = display_names(f"Sharpness and loss under {name}: {protocol}")
        figure = _sharpness_figure(list(group), title)
        options.save(figure, out / ("momentum" if momentum else "edge"))
    return [
        {"what": f"sharpness at rate {line['rate']}, momentum {line['momentum']}"}
        | {key: line[key] for key in ("predicted", "measured", "ratio")}
        for line in lines
    ]


def _line(run: runs.Run) -> dict[str, Any]:
    """Return the table's row of a run."""
    values = [row["sharpness"] for row in run.rows if row.get("sharpness") is not None]
    edge = predicted_edge(run)
    last_quarter = [] if run.divergence else values[-max(1, len(values) // 4) :]
    crossing_step = next(
        (row["step"] for row in run.rows if (row.get("sharpness") or 0) >= edge), None
    )
    line = {
        "momentum": label(run.config.optimizer.momentum),
        "rate": label(run.config.optimizer.learning_rate),
        "at_first_row": values[0] if values else None,
    }
    line |= {
        "crosses_at_step": crossing_step,
        "predicted": edge,
        "measured": float(np.median(last_quarter)) if last_quarter else None,
    }
    return line | {
        "ratio": line["measured"] / edge if last_quarter else None,
        "train_loss": run.result["train_loss"],
    }


def _sharpness_figure(all_runs: list[runs.Run], title: str) -> Any:
    """Return a figure of sharpness and loss, a column for each rate."""
    # The sharpness of a run that diverges would press the others flat.
    converged = [run for run in all_runs if not run.divergence] or all_runs
    ceiling = 1.15 * max(
        *map(predicted_edge, all_runs),
        *(row.get("sharpness") or 0 for run in converged for row in run.rows),
    )
    above, below = [], []
    for run in all_runs:
        steps = [row["step"] for row in run.rows]
        values = [row.get("sharpness") for row in run.rows]
        sharpness = plots.Line(steps, values, color=plots.COLORS[0])
        edge = plots.Mark(
            predicted_edge(run), "y", f"{2 * (1 + run.config.optimizer.momentum):g} / rate"
        )
        name = f"learning rate {label(run.config.optimizer.learning_rate)}"
        is_first = not above
        panel = plots.Panel(
            name,
            (sharpness,),
            (edge,),
            "step",
            "sharpness (largest\nHessian eigenvalue)" if is_first else "",
        )
        above.append(panel._replace(ylim=(0, ceiling)))
        loss = plots.Line(steps, [row["train_loss"] for row in run.rows], color=plots.COLORS[1])
        ylabel = "squared loss" if is_first else ""
        below.append(plots.Panel("", (loss,), (), "step", ylabel, ylog=True))
    columns = len(all_runs)
    size = (min(4.4, max(2.8, 10.5 / columns)), 2.9)
    return plots.panels(above + below, columns=columns, share="x", title=title, size=size)
