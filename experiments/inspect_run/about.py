"""What the run is, and the network layer by layer."""

from __future__ import annotations

import re
from typing import Any

from experiments.inspect_run.seen import Section, Seen
from jaxcnn.interpret import summary
from jaxcnn.interpret.summary import LayerSummary
from jaxcnn.recipe import Recipe
from jaxcnn.run_log import read_json


def section(seen: Seen) -> Section:
    """The network's summary."""
    found = summary(seen.run.model, seen.images.shape[1:])
    fixed = f" and {found.fixed:,} that training does not step (BN's moving averages)" if found.fixed else ""
    text = (
        f"{found.params:,} trainable numbers{fixed}; "
        f"{found.macs:,} multiply-adds for one image. Shapes are height × width × channels of the output for one image. "
        f"There are {len(found.rows)} rows."
    )
    return Section("The network, layer by layer", text, [layer(row) for row in found.rows])


def layer(row: LayerSummary) -> dict[str, Any]:
    """A row of the table.

    Example:
      >>> layer(LayerSummary("c1", "Conv 5x5", (28, 28, 6), 156, 0, 117600))["multiply-adds"]
      '117,600'
    """
    size, kind = "×".join(map(str, row.shape)) or None, re.sub(r"(?<=\d)x(?=\d)", "×", row.kind)
    counts = {"parameters": row.params, "multiply-adds": row.macs}
    return {"layer": row.name, "kind": kind, "output": size} | {k: f"{v:,}" if v else None for k, v in counts.items()}


def facts(seen: Seen) -> dict[str, str]:
    """What -> words, for the head of the page."""
    run, recipe = seen.run, seen.run.recipe
    options = ", ".join(f"{name} {value}" for name, value in recipe.options.items())
    sizes = "×".join(map(str, seen.images.shape[1:]))
    splits = (
        f"{len(run.data.train.labels):,} training and {len(getattr(run.data, recipe.report).labels):,} {recipe.report}"
    )
    return {
        "Run": str(run.folder),
        "Network": f"{recipe.model}: {options}" if options else recipe.model,
        "Data": f"{recipe.dataset}: {splits} images of {sizes}, {len(seen.classes)} classes",
        "Training": training(recipe),
        "Last row": last_row(seen),
        "Took": machine(seen),
        "Looked at": f"the state of step {int(run.last.step):,}, by the first {len(seen.labels):,} {recipe.report} images",
    }


def training(recipe: Recipe) -> str:
    """The main numbers of the recipe.

    Example:
      >>> training(Recipe(steps=300, drops=(150, 225), lr=0.05))
      '300 steps of 128 images by momentum at rate 0.05 (times 0.1 at steps 150, 225), decay 0.0001, seed 0'
    """
    fall = f" (schedule {recipe.schedule})"
    if recipe.schedule == "step":
        steps = ", ".join(map(str, recipe.drops))
        fall = f" (times {recipe.factor:g} at steps {steps})" if steps else ""
    how = f"{recipe.steps:,} steps of {recipe.batch} images by {recipe.optimizer} at rate {recipe.lr:g}{fall}"
    return f"{how}, decay {recipe.decay:g}, seed {recipe.seed}"


def last_row(seen: Seen) -> str:
    """The errors of the newest row, where the rows have them, and how the run ended if it diverged."""
    if not seen.run.rows:
        return "none was written"
    row, report = seen.run.rows[-1], seen.run.recipe.report
    kinds = {"training": row.get("train_error"), report: row.get("eval_error")}
    errors = [f"{name} error {value:.3g}%" for name, value in kinds.items() if isinstance(value, int | float)]
    told = f"step {row['step']:,}: {', '.join(errors) or 'no errors'}"
    return f"{told}; diverged: {row['diverged']}" if row.get("diverged") else told


def machine(seen: Seen) -> str:
    """Where it was trained, by env.json, and how long that took."""
    spent = [row["seconds"] for row in seen.run.rows if isinstance(row.get("seconds"), int | float)]
    time = f"{sum(spent):,.0f} s" if spent else "time unknown"
    path = seen.run.folder / "env.json"
    known = [found for found in read_json(path, list) if isinstance(found, dict)] if path.is_file() else []
    if not known:
        return f"{time}; the machine was not noted"
    packages = known[-1].get("packages")
    jax = packages.get("jax") if isinstance(packages, dict) else None
    place = ", ".join(str(known[-1][name]) for name in ("device", "machine") if known[-1].get(name))
    return (
        f"{time} on {known[-1].get('devices', '?')} × {place or 'unknown'}, Python {known[-1].get('python')}, JAX {jax}"
    )
