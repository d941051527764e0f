"""The same runs against three measures of effort: epochs, updates and seconds; the table's rows and the figures of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jaxcnn as jc
from jaxcnn import plots, runs, tables

FIGURES = {"train_loss": "all_loss", "eval_loss": "eval_loss", "eval_error": "eval_error"}
"""The table's names of the rows' figures."""
Groups = Mapping[str, Sequence[runs.Run]]
"""The runs of each setting."""


def setting(recipe: jc.Recipe) -> str:
    """The name of a run's setting."""
    name = {1: "online", recipe.examples: "full-batch"}.get(recipe.batch, "mini-batch")
    return name if recipe.order == "shuffled" else f"{name}-sorted"


def timed(all_runs: Sequence[runs.Run]) -> list[list[dict[str, Any]]]:
    """The rows of a setting's runs, each with its `epoch` and the `time` of training up to it, in seconds."""
    batch, n = all_runs[0].recipe.batch, all_runs[0].recipe.examples
    # One pace for all seeds, so that rows of one step have one time.
    pace = statistics.median(batch / row["images_per_second"] for run in all_runs for row in run.rows[1:] or run.rows)
    more = [[{"epoch": row["step"] * batch / n, "time": row["step"] * pace} for row in run.rows] for run in all_runs]
    return [
        [row | new for row, new in zip(run.rows, news, strict=True)] for run, news in zip(all_runs, more, strict=True)
    ]


def last(rows: Sequence[dict[str, Any]], key: str, limit: float) -> dict[str, Any]:
    """The last row whose `key` does not exceed the limit, or the first where all do."""
    return max((row for row in rows if row[key] <= limit * (1 + 1e-9)), key=lambda row: row["step"], default=rows[0])


def line(
    name: str, all_runs: Sequence[runs.Run], limits: Mapping[str, float], memory: Mapping[str, Any]
) -> dict[str, Any]:
    """One row of the table. Sorted runs have no times: their rows of few steps are no measure, and they are over early."""
    recipe, rows = all_runs[0].recipe, timed(all_runs)
    updates = (recipe.examples or 0) // recipe.batch
    jumps = [statistics.median(row["loss_std"] for row in run[len(run) // 2 :]) for run in rows]
    cells: dict[str, Any] = {"setting": name, "batch": recipe.batch, "order": recipe.order, "lr": recipe.lr}
    fair, end = recipe.order == "shuffled", rows[0][-1]
    cells |= {"updates_per_epoch": updates, "seconds_per_epoch": end["time"] / end["epoch"] if fair else None}
    cells |= {
        "memory_mib": memory.get(str(recipe.batch)),
        "loss_std": tables.seed_statistics(jumps).mean,
        "seeds": len(all_runs),
    }
    cells |= {"eval_split": runs.eval_split(all_runs)}
    for key, limit in limits.items():
        chosen = [last(run, key, limit) for run in rows] if fair or key == "epoch" else []
        for column, figure in FIGURES.items():
            found = tables.seed_statistics([row[figure] for row in chosen])
            cells |= {f"{column}_at_{key}{k}": v for k, v in zip(("", "_std", "_ci95"), found, strict=True)}
    return cells


def curves(groups: Groups, limits: Mapping[str, float], title: str) -> Any:
    """The loss against three measures of effort, and how much it jumps from update to update."""
    shuffled = {name: timed(all_runs) for name, all_runs in groups.items() if not name.endswith("sorted")}
    axes = {"epoch": "epochs", "step": "updates", "time": "seconds of training"}
    panels = [(f"Loss against {label}", x, label, "all_loss", "training loss (nats)") for x, label in axes.items()]
    panels.append(("Jumps from update to update", "epoch", "epochs", "loss_std", "std of the batch's loss (nats)"))
    drawn = []
    for panel, x, xlabel, y, ylabel in panels:
        lines = [plots.band(rows, x, y, label=name) for name, rows in shuffled.items()]
        marks = [plots.Mark(limits[x], label="compared here")] if x in limits and y == "all_loss" else []
        drawn.append(plots.Panel(panel, lines, marks, xlabel, ylabel, xlog=True, ylog=True))
    return plots.panels(drawn, columns=2, share="none", title=title)


def orders(groups: Groups, epochs: float, title: str) -> Any:
    """Shuffled against sorted: the error on the images of the eval split, and on the batches as they come."""
    panels = []
    split = runs.eval_split([run for all_runs in groups.values() for run in all_runs])
    for key, label in (("eval_error", f"{split} error (%)"), ("train_error", "error on the batches (%)")):
        for name in ("mini-batch", "online"):
            pair = {"shuffled": groups.get(name), "sorted by label": groups.get(f"{name}-sorted")}
            lines = [
                plots.band(timed(all_runs), "epoch", key, label=order) for order, all_runs in pair.items() if all_runs
            ]
            panels.append(plots.Panel(name, lines, (), "epochs", label, ylim=(0, 100), xlim=(0, epochs)))
    return plots.panels(panels, columns=2, share="x", title=title)
