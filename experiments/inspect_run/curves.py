"""Learning curves, and where training turns to overfitting if it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.inspect_run.seen import Picture, Section, Seen
from jaxcnn import plots, tables

Rows = Sequence[Mapping[str, Any]]
KEYS = ("train_loss", "eval_loss", "train_error", "eval_error")
MARGIN = 0.05
WINDOW = 3
CAPTION = "Loss and error in training and on the {split} images, at every row that the run wrote."


def section(seen: Seen) -> Section:
    """Loss and error against steps, in training and on the split that the rows report."""
    recipe = seen.run.recipe
    rows = known(seen.run.rows)
    if not rows:
        return Section("Learning curves", "The run wrote no rows.")
    turn = tables.turning_point(rows, window=WINDOW, margin=MARGIN)
    averaged = (
        "one clean pass" if recipe.train_error == "clean" else "a running mean over the batches that were trained on"
    )
    text = f"{told(rows, turn, recipe.report)}\n\nThe training figures are {averaged}. {ending(seen.run.rows)}".strip()
    figure = plots.panels(panels(rows, turn, recipe.report, recipe.loss), share="x", size=(5.0, 3.6))
    alt = f"Training and {recipe.report} loss and error against steps. {told(rows, turn, recipe.report)}"
    caption = CAPTION.format(split=recipe.report) + cut(rows)
    return Section("Learning curves", text, pictures=[Picture("curves", figure, alt, caption)])


def known(rows: Rows) -> list[dict[str, Any]]:
    """The rows with all of `KEYS`, None where one lacks a number.

    Example:
      >>> dataset_info([{"step": 1, "eval_loss": 2.0, "diverged": "nan"}])[0]["train_loss"] is None
      True
    """
    plain = [{key: row.get(key) for key in KEYS} for row in rows]
    numbers = [{k: v if isinstance(v, int | float) else None for k, v in row.items()} for row in plain]
    return [{"step": row["step"]} | found for row, found in zip(rows, numbers, strict=True)]


def told(rows: Rows, turn: Mapping[str, Any] | None, split: str) -> str:
    """Whether the run overfits, by the rule that decides, in words."""
    losses = numbers(rows, "eval_loss")
    rule = (
        f"a turn is called where the mean over {WINDOW} neighbouring rows is lowest, if it ends more than {100 * MARGIN:.0f}% "
        "above that (jaxcnn.tables.turning_point, after Prechelt 1998)"
    )
    if not losses:
        return f"No row has a {split} loss, so nothing can be said of overfitting."
    if turn is None:
        least = f"over {len(losses)} rows its lowest is {min(losses):.3g} and its last {losses[-1]:.3g}"
        return f"The {split} loss does not turn: {least}. The rule: {rule}."
    return (
        f"The {split} loss turns at step {turn['step']:,}, from {turn['eval_loss']:.3g} there to {losses[-1]:.3g} at the end"
        f"{meanwhile(rows, turn, split)}. The rule: {rule}."
    )


def meanwhile(rows: Rows, turn: Mapping[str, Any], split: str) -> str:
    """What the other curves do after the turn: only where the training loss goes on falling is it overfitting."""
    ends = {key: (turn[key], numbers(rows, key)[-1]) for key in KEYS if turn[key] is not None}
    said = [
        f"the {split} error goes from {a:.3g}% to {b:.3g}%" for a, b in [ends[k] for k in ("eval_error",) if k in ends]
    ]
    if "train_loss" in ends:
        a, b = ends["train_loss"]
        kind = "which is overfitting" if b < a else "so it is not overfitting"
        said.append(f"the training loss goes from {a:.3g} to {b:.3g}, {kind}")
    return f"; {' and '.join(said)}" if said else ""


def numbers(rows: Rows, key: str) -> list[float]:
    """What the rows know of `key`."""
    return [row[key] for row in rows if row[key] is not None]


def ending(rows: Rows) -> str:
    """How the run diverged, or nothing."""
    why = rows[-1].get("diverged")
    return f"It diverged at step {rows[-1]['step']:,}: {why}." if why else ""


def panels(rows: Rows, turn: Mapping[str, Any] | None, split: str, loss: str) -> list[plots.Panel]:
    """One of the losses and one of the errors."""
    marks = [] if turn is None else [plots.Mark(turn["step"], "x", "turn")]
    unit = "loss (nats)" if loss == "cross-entropy" else f"loss ({loss})"
    ends = limits(rows)
    log = ends is not None and turn is None and 10 * ends[0] < ends[1]  # a turn is seen better on a linear axis
    losses = plots.Panel("Loss", lines(rows, "loss", split), marks, "step", unit, ylog=log, ylim=ends)
    return [losses, plots.Panel("Error", lines(rows, "error", split), marks, "step", "error (%)")]


def lines(rows: Rows, what: str, split: str) -> list[plots.Line]:
    """Of training, dashed, and of `split`."""
    steps = [row["step"] for row in rows]
    kinds = {"training": f"train_{what}", split: f"eval_{what}"}
    return [
        plots.Line(steps, [row[key] for row in rows], label=name, dashed=name == "training")
        for name, key in kinds.items()
    ]


def limits(rows: Rows) -> tuple[float, float] | None:
    """Of the loss axis, which ends three times above the greatest training loss; None where there is nothing to draw.

    While BN's moving averages are young, an evaluation loss of millions would press all else flat.
    """
    train, every = numbers(rows, "train_loss"), [loss for key in KEYS[:2] for loss in numbers(rows, key)]
    if not every or min(every) == max(every):
        return None
    top = min(1.1 * max(every), 3 * max(train, default=max(every)))
    return (min(every) / 1.1, top) if top > min(every) > 0 else None


def cut(rows: Rows) -> str:
    """What the loss axis leaves out, in words."""
    ends, most = limits(rows), max(numbers(rows, "eval_loss"), default=0.0)
    return (
        f" Greater losses than the axis shows are cut off, the greatest {most:.3g}." if ends and most > ends[1] else ""
    )
