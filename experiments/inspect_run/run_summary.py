"""Run summary: facts, layers, and learning curves with the turn to overfitting."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.inspect_run.context import PageFigure, RunContext, Section
from jaxcnn import plots, tables
from jaxcnn.config import ExperimentConfig
from jaxcnn.interpret import summary
from jaxcnn.interpret.summary import LayerSummary
from jaxcnn.run_log import read_json


def layers_section(context: RunContext) -> Section:
    """Return the network's layers, with parameters and multiply-adds."""
    report = summary(context.run.model, context.images.shape[1:])
    fixed_text = (
        f" and {report.fixed:,} that training does not step (BN's moving averages)"
        if report.fixed
        else ""
    )
    text = (
        f"{report.params:,} trainable numbers{fixed_text}; {report.macs:,} multiply-adds for one "
        "image. Shapes are height × width × channels of the output for one image. There are "
        f"{len(report.rows)} rows."
    )
    return Section("The network, layer by layer", text, [_layer_row(row) for row in report.rows])


def _layer_row(row: LayerSummary) -> dict[str, Any]:
    """Return a row of the table.

    Example:
      >>> _layer_row(LayerSummary("c1", "Conv 5x5", (28, 28, 6), 156, 0, 117600))["multiply-adds"]
      '117,600'
    """
    output, kind = "×".join(map(str, row.shape)) or None, re.sub(r"(?<=\d)x(?=\d)", "×", row.kind)
    counts = {"parameters": row.params, "multiply-adds": row.macs}
    return {"layer": row.name, "kind": kind, "output": output} | {
        name: f"{count:,}" if count else None for name, count in counts.items()
    }


def run_facts(context: RunContext) -> dict[str, str]:
    """Return label -> text, for the head of the page."""
    run, config = context.run, context.run.config
    options = ", ".join(f"{name} {value}" for name, value in config.model_kwargs.items())
    size = "×".join(map(str, context.images.shape[1:]))
    splits = (
        f"{len(run.data.train.labels):,} training and "
        f"{len(getattr(run.data, config.train.eval_split).labels):,} {config.train.eval_split}"
    )
    return {
        "Run": str(run.folder),
        "Network": f"{config.model}: {options}" if options else config.model,
        "Data": f"{config.dataset}: {splits} images of {size}, {len(context.classes)} classes",
        "Training": _training_text(config),
        "Last row": _last_row_text(context),
        "Took": _machine_text(context),
        "Looked at": (
            f"the state of step {int(run.last.step):,}, by the first {len(context.labels):,} "
            f"{config.train.eval_split} images"
        ),
    }


def _training_text(config: ExperimentConfig) -> str:
    """Return the main numbers of the config.

    Example:
      >>> from jaxcnn import override
      >>> config = override(ExperimentConfig(), num_steps=300, milestones=(150, 225))
      >>> text = _training_text(override(config, learning_rate=0.05))
      >>> text.partition(" (")[0]
      '300 steps of 128 images by momentum at rate 0.05'
      >>> text.partition(" (")[2]
      'times 0.1 at steps 150, 225), decay 0.0001, seed 0'
    """
    decay_text = f" (schedule {config.optimizer.schedule})"
    if config.optimizer.schedule == "step":
        milestones = ", ".join(map(str, config.optimizer.milestones))
        decay_text = (
            f" (times {config.optimizer.gamma:g} at steps {milestones})" if milestones else ""
        )
    text = (
        f"{config.train.num_steps:,} steps of {config.train.batch_size} images by "
        f"{config.optimizer.name} at rate {config.optimizer.learning_rate:g}{decay_text}"
    )
    return f"{text}, decay {config.optimizer.weight_decay:g}, seed {config.train.seed}"


def _last_row_text(context: RunContext) -> str:
    """Return the errors of the newest row, and any divergence."""
    if not context.run.rows:
        return "none was written"
    row, split = context.run.rows[-1], context.run.config.train.eval_split
    values = {"training": row.get("train_error"), split: row.get("eval_error")}
    errors = [
        f"{name} error {value:.3g}%"
        for name, value in values.items()
        if isinstance(value, int | float)
    ]
    text = f"step {row['step']:,}: {', '.join(errors) or 'no errors'}"
    return f"{text}; diverged: {row['diverged']}" if row.get("diverged") else text


def _machine_text(context: RunContext) -> str:
    """Return the machine of the run, by env.json, and its time."""
    seconds = [
        row["seconds"] for row in context.run.rows if isinstance(row.get("seconds"), int | float)
    ]
    time_text = f"{sum(seconds):,.0f} s" if seconds else "time unknown"
    path = context.run.folder / "env.json"
    records = (
        [record for record in read_json(path, list) if isinstance(record, dict)]
        if path.is_file()
        else []
    )
    if not records:
        return f"{time_text}; the machine was not noted"
    packages = records[-1].get("packages")
    jax = packages.get("jax") if isinstance(packages, dict) else None
    machine_name = ", ".join(
        str(records[-1][name]) for name in ("device", "machine") if records[-1].get(name)
    )
    return (
        f"{time_text} on {records[-1].get('devices', '?')} × {machine_name or 'unknown'}, Python "
        f"{records[-1].get('python')}, JAX {jax}"
    )


Rows = Sequence[Mapping[str, Any]]
KEYS = ("train_loss", "eval_loss", "train_error", "eval_error")
"""Quantities of a row that are drawn."""
TURN_MARGIN = 0.05
"""Relative rise after the lowest loss that makes it a turn."""
TURN_WINDOW = 3
"""Number of neighboring rows whose mean decides."""
CAPTION = "Loss and error in training and on the {split} images, at every row that the run wrote."


def curves_section(context: RunContext) -> Section:
    """Return loss and error against steps, in training and evaluation."""
    config = context.run.config
    rows = _with_all_keys(context.run.rows)
    if not rows:
        return Section("Learning curves", "The run wrote no rows.")
    turn = tables.turning_point(rows, window=TURN_WINDOW, margin=TURN_MARGIN)
    averaging = (
        "one clean pass"
        if config.train.train_metrics == "clean"
        else "a running mean over the batches that were trained on"
    )
    text = (
        f"{_overfitting_text(rows, turn, config.train.eval_split)}\n\n"
        f"The training figures are {averaging}. {_divergence_text(context.run.rows)}"
    ).strip()
    figure = plots.panels(
        _panels(rows, turn, config.train.eval_split, config.loss), share="x", size=(5.0, 3.6)
    )
    alt = (
        f"Training and {config.train.eval_split} loss and error against steps. "
        f"{_overfitting_text(rows, turn, config.train.eval_split)}"
    )
    caption = CAPTION.format(split=config.train.eval_split) + _truncation_note(rows)
    return Section("Learning curves", text, figures=[PageFigure("curves", figure, alt, caption)])


def _with_all_keys(rows: Rows) -> list[dict[str, Any]]:
    """Return the rows with all of `KEYS`.

    A value that is not a number becomes None.

    Example:
      >>> rows = [{"step": 1, "eval_loss": 2.0, "diverged": "nan"}]
      >>> _with_all_keys(rows)[0]["train_loss"] is None
      True
    """
    selected = [{key: row.get(key) for key in KEYS} for row in rows]
    values = [
        {k: v if isinstance(v, int | float) else None for k, v in row.items()} for row in selected
    ]
    return [{"step": row["step"]} | numbers for row, numbers in zip(rows, values, strict=True)]


def _overfitting_text(rows: Rows, turn: Mapping[str, Any] | None, split: str) -> str:
    """Return a sentence on overfitting, with the rule that decides."""
    losses = _values(rows, "eval_loss")
    rule = (
        f"a turn is called where the mean over {TURN_WINDOW} neighbouring rows is lowest, if it "
        f"ends more than {100 * TURN_MARGIN:.0f}% above that (jaxcnn.tables.turning_point, after "
        "Prechelt 1998)"
    )
    if not losses:
        return f"No row has a {split} loss, so nothing can be said of overfitting."
    if turn is None:
        comparison = (
            f"over {len(losses)} rows its lowest is {min(losses):.3g} and its last {losses[-1]:.3g}"
        )
        return f"The {split} loss does not turn: {comparison}. The rule: {rule}."
    return (
        f"The {split} loss turns at step {turn['step']:,}, from {turn['eval_loss']:.3g} there to "
        f"{losses[-1]:.3g} at the end{_after_turn_text(rows, turn, split)}. The rule: {rule}."
    )


def _after_turn_text(rows: Rows, turn: Mapping[str, Any], split: str) -> str:
    """Return how the other curves change after the turn.

    It is overfitting only where the training loss keeps falling.
    """
    ends = {key: (turn[key], _values(rows, key)[-1]) for key in KEYS if turn[key] is not None}
    changes = [
        f"the {split} error goes from {first:.3g}% to {last:.3g}%"
        for first, last in [ends[key] for key in ("eval_error",) if key in ends]
    ]
    if "train_loss" in ends:
        first, last = ends["train_loss"]
        verdict = "which is overfitting" if last < first else "so it is not overfitting"
        changes.append(f"the training loss goes from {first:.3g} to {last:.3g}, {verdict}")
    return f"; {' and '.join(changes)}" if changes else ""


def _values(rows: Rows, key: str) -> list[float]:
    """Return the values of `key` that are not None."""
    return [row[key] for row in rows if row[key] is not None]


def _divergence_text(rows: Rows) -> str:
    """Return a sentence on where the run diverged, or an empty string."""
    reason = rows[-1].get("diverged")
    return f"It diverged at step {rows[-1]['step']:,}: {reason}." if reason else ""


def _panels(rows: Rows, turn: Mapping[str, Any] | None, split: str, loss: str) -> list[plots.Panel]:
    """Return a panel of the losses and one of the errors."""
    marks = [] if turn is None else [plots.Mark(turn["step"], "x", "turn")]
    unit = "loss (nats)" if loss == "cross-entropy" else f"loss ({loss})"
    limits = _loss_limits(rows)
    # A turn is easier to see on a linear axis.
    is_log = limits is not None and turn is None and 10 * limits[0] < limits[1]
    losses = plots.Panel(
        "Loss", _lines(rows, "loss", split), marks, "step", unit, ylog=is_log, ylim=limits
    )
    return [losses, plots.Panel("Error", _lines(rows, "error", split), marks, "step", "error (%)")]


def _lines(rows: Rows, quantity: str, split: str) -> list[plots.Line]:
    """Return the lines of training, dashed, and of `split`."""
    steps = [row["step"] for row in rows]
    keys = {"training": f"train_{quantity}", split: f"eval_{quantity}"}
    return [
        plots.Line(steps, [row[key] for row in rows], label=name, dashed=name == "training")
        for name, key in keys.items()
    ]


def _loss_limits(rows: Rows) -> tuple[float, float] | None:
    """Return the limits of the loss axis, or None without a range.

    The upper limit is three times the greatest training loss. While BN's moving averages are young,
    an evaluation loss of millions would flatten all other values.
    """
    train_losses = _values(rows, "train_loss")
    all_losses = [loss for key in KEYS[:2] for loss in _values(rows, key)]
    if not all_losses or min(all_losses) == max(all_losses):
        return None
    upper = min(1.1 * max(all_losses), 3 * max(train_losses, default=max(all_losses)))
    return (min(all_losses) / 1.1, upper) if upper > min(all_losses) > 0 else None


def _truncation_note(rows: Rows) -> str:
    """Return a sentence if the loss axis leaves values out."""
    limits, greatest = _loss_limits(rows), max(_values(rows, "eval_loss"), default=0.0)
    return (
        f" Greater losses than the axis shows are cut off, the greatest {greatest:.3g}."
        if limits and greatest > limits[1]
        else ""
    )
