"""Table and figures that compare runs at equal epochs, updates and seconds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jaxcnn as jc
from jaxcnn import plots, runs, tables

FIGURES = {"train_loss": "all_loss", "eval_loss": "eval_loss", "eval_error": "eval_error"}
"""Column of the table -> key of a run's rows."""
Groups = Mapping[str, Sequence[runs.Run]]
"""Runs of each setting."""


def setting(config: jc.ExperimentConfig) -> str:
    """Return the name of a config's setting, such as `mini-batch-sorted`."""
    names = {1: "online", config.max_train_examples: "full-batch"}
    name = names.get(config.train.batch_size, "mini-batch")
    return name if config.train.order == "shuffled" else f"{name}-sorted"


def timed(all_runs: Sequence[runs.Run]) -> list[list[dict[str, Any]]]:
    """Return the rows of a setting's runs with two more keys.

    They are `epoch` and `time`, the seconds of training up to the row.
    """
    config = all_runs[0].config
    batch_size, n = config.train.batch_size, config.max_train_examples
    # One pace for all seeds, so that rows of one step have one time. The first row of a run
    # includes compilation and counts only where there is no other.
    pace = statistics.median(
        batch_size / row["images_per_second"]
        for run in all_runs
        for row in run.rows[1:] or run.rows
    )
    new_columns = [
        [{"epoch": row["step"] * batch_size / n, "time": row["step"] * pace} for row in run.rows]
        for run in all_runs
    ]
    return [
        [row | columns for row, columns in zip(run.rows, run_columns, strict=True)]
        for run, run_columns in zip(all_runs, new_columns, strict=True)
    ]


def last_within(rows: Sequence[dict[str, Any]], key: str, limit: float) -> dict[str, Any]:
    """Return the last row whose `key` is at most the limit.

    If all rows exceed it, that is the first row.
    """
    within = (row for row in rows if row[key] <= limit * (1 + 1e-9))
    return max(within, key=lambda row: row["step"], default=rows[0])


def table_row(
    name: str,
    all_runs: Sequence[runs.Run],
    limits: Mapping[str, float],
    memory: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the table's row of a setting.

    Sorted runs have no times: their rows of few steps are no measure, and they finish early.

    Args:
      name: of the setting.
      all_runs: its runs, one a seed.
      limits: "epoch" and "time" -> the value at which settings are compared.
      memory: batch size -> MiB of a step.
    """
    config, rows = all_runs[0].config, timed(all_runs)
    updates = (config.max_train_examples or 0) // config.train.batch_size
    # Only the second half of the rows: the loss of early ones falls, which is a spread too.
    spreads = [statistics.median(row["loss_std"] for row in run[len(run) // 2 :]) for run in rows]
    cells: dict[str, Any] = {
        "setting": name,
        "batch_size": config.train.batch_size,
        "order": config.train.order,
        "learning_rate": config.optimizer.learning_rate,
    }
    is_timed, end = config.train.order == "shuffled", rows[0][-1]
    cells |= {
        "updates_per_epoch": updates,
        "seconds_per_epoch": end["time"] / end["epoch"] if is_timed else None,
    }
    cells |= {
        "memory_mib": memory.get(str(config.train.batch_size)),
        "loss_std": tables.seed_statistics(spreads).mean,
        "seeds": len(all_runs),
    }
    cells |= {"eval_split": runs.eval_split(all_runs)}
    for key, limit in limits.items():
        compared = (
            [last_within(run, key, limit) for run in rows] if is_timed or key == "epoch" else []
        )
        for column, figure in FIGURES.items():
            values = tables.seed_statistics([row[figure] for row in compared])
            cells |= {
                f"{column}_at_{key}{suffix}": value
                for suffix, value in zip(("", "_std", "_ci95"), values, strict=True)
            }
    return cells


def curves(groups: Groups, limits: Mapping[str, float], title: str) -> Any:
    """Draw the loss against epochs, updates and seconds, and its spread."""
    shuffled = {
        name: timed(all_runs) for name, all_runs in groups.items() if not name.endswith("sorted")
    }
    axes = {"epoch": "epochs", "step": "updates", "time": "seconds of training"}
    specs = [
        (f"Loss against {label}", x, label, "all_loss", "training loss (nats)")
        for x, label in axes.items()
    ]
    specs.append(
        (
            "Jumps from update to update",
            "epoch",
            "epochs",
            "loss_std",
            "std of the batch's loss (nats)",
        )
    )
    panels = []
    for name, x, xlabel, y, ylabel in specs:
        lines = [
            plots.band(rows, x, y, label=setting_name) for setting_name, rows in shuffled.items()
        ]
        marks = (
            [plots.Mark(limits[x], label="compared here")]
            if x in limits and y == "all_loss"
            else []
        )
        panels.append(plots.Panel(name, lines, marks, xlabel, ylabel, xlog=True, ylog=True))
    return plots.panels(panels, columns=2, share="none", title=title)


def orders(groups: Groups, epochs: float, title: str) -> Any:
    """Draw the errors of shuffled and of sorted runs.

    They are on the eval split, and on the batches during training.

    Args:
      groups: runs of each setting.
      epochs: right end of the axis.
      title: of the figure.
    """
    panels = []
    split = runs.eval_split([run for all_runs in groups.values() for run in all_runs])
    for key, label in (
        ("eval_error", f"{split} error (%)"),
        ("train_error", "error on the batches (%)"),
    ):
        for name in ("mini-batch", "online"):
            pair = {"shuffled": groups.get(name), "sorted by label": groups.get(f"{name}-sorted")}
            lines = [
                plots.band(timed(all_runs), "epoch", key, label=order)
                for order, all_runs in pair.items()
                if all_runs
            ]
            panels.append(
                plots.Panel(name, lines, (), "epochs", label, ylim=(0, 100), xlim=(0, epochs))
            )
    return plots.panels(panels, columns=2, share="x", title=title)
