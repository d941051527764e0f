"""The states of runs, measured: what `end` and `path` do alike."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxcnn as jc
from experiments.signal_propagation import measure, without
from experiments.signal_propagation.networks import net, trained
from experiments.signal_propagation.options import Options, data
from jaxcnn import runs
from jaxcnn.run_log import read_json

Measure = Callable[[Any, jc.State, jc.Split, str], list[measure.Row]]


def check(options: Options) -> None:
    """ArgumentError if there are no runs to look at, or none without BN can be trained beside them."""
    trained(options)
    if options.counterparts:
        without.check(options)


def run(options: Options, stop: Any, part: str, rows: Measure, path: bool) -> bool:
    """Train the runs without BN that are missing, then measure every run that is not; False when stopped on the way."""
    if options.counterparts and not without.run(options, stop):
        return False
    for folder in [*trained(options), *without.folders(options)]:
        recipe = jc.Recipe.load(folder)
        steps = sorted(int(step.name) for step in (folder / "checkpoints").iterdir() if step.name.isdigit())
        asked = {"recipe": recipe.to_json(), "steps": steps, "images": options.images, "mode": options.mode}
        asked |= {"states": options.states} if path else {}
        kind = "" if recipe.options.get("batch_norm", True) else "-without"
        file = options.out / part / f"{folder.name}{kind}.jsonl"
        if measure.kept(file, asked):
            continue
        print(f"{part}: {file.stem}", file=sys.stderr)
        model, states, split = _opened(options, folder, recipe, bool(steps), path)
        chosen = spread(states, options.states)
        found = [row for state in chosen for row in rows(model, state, split, recipe.loss)]
        measure.keep(file, asked, about(recipe, folder), found)
        if stop():
            return False
    return True


def spread(states: list[Any], most: int) -> list[Any]:
    """At most so many of the states, evenly chosen, the first and the last among them.

    Example:
      >>> spread(list(range(13)), 7), spread([0, 1], 7)
      ([0, 2, 4, 6, 8, 10, 12], [0, 1])
    """
    count = min(len(states), most)
    return [states[round(i * (len(states) - 1) / max(1, count - 1))] for i in range(count)]


def _opened(
    options: Options, folder: Path, recipe: jc.Recipe, states: bool, path: bool
) -> tuple[Any, list[jc.State], jc.Split]:
    """Model, states and images of a run; one that diverged before its first checkpoint has its start alone."""
    there = runs.subset_for(recipe, data(recipe.dataset, options.data_dir, recipe.validation))
    split = jc.Split(*(array[: options.images] for array in there.train))
    if not states:
        model, tx = runs.model_and_optimizer(recipe, len(there.classes))
        return model, [jc.init_state(model, tx, recipe, there)], split
    run = runs.load_trained_model(folder, data=there, path=path)
    return run.model, list(run.states.values()), split


def about(recipe: jc.Recipe, folder: Path | None = None) -> measure.Row:
    """What a network's file says of it first."""
    kind = net(recipe)
    width = recipe.options.get("width", 16)
    told: measure.Row = {"net": kind._asdict() if kind else {}, "what": f"{recipe.dataset}, width {width}"}
    if folder is None:
        return told
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    diverged = result["step"] if result.get("status") == "diverged" else None
    told["what"] += f", {recipe.steps} steps of {recipe.batch} images"
    told |= {key: result.get(key) for key in ("eval_error", "eval_split")}
    return told | {"rate": recipe.lr, "diverged": diverged}
