"""Before training: every depth, plain and residual, with and without BN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments.signal_propagation import figures, measure, reading, theory
from experiments.signal_propagation.networks import Net, fresh
from experiments.signal_propagation.options import Options, data
from jaxcnn import plots, runs, tables
from jaxcnn.augment import normalize
from jaxcnn.progress import Progress


def check(options: Options) -> None:
    """ArgumentError for networks that there cannot be."""
    if not options.start_depths:
        raise jc.ArgumentError("start-depths is empty; write --start-depths 20 56")
    there = data(options.dataset, options.data_dir, 0)
    for recipe in fresh(options).values():
        jc.create_model(recipe.model, len(there.classes), **recipe.options)


def run(options: Options, stop: Any) -> bool:
    """Measure every network that is not there yet; False when stopped on the way."""
    there, recipes = data(options.dataset, options.data_dir, 0), fresh(options)
    with Progress(sum(_depth(recipe) for recipe in recipes.values())) as progress:
        for name, recipe in recipes.items():
            asked = {"recipe": recipe.to_json(), "images": options.images}
            file = options.out / "start" / f"{name}.jsonl"
            if not measure.kept(file, asked):
                split = jc.Split(*(array[: options.images] for array in there.train))
                model, tx = runs.model_and_optimizer(recipe, len(there.classes))
                state = jc.init_state(model, tx, recipe, there)
                about = reading.about(recipe) | {"theory": _theory(recipe, state, split.images)}
                measure.keep(file, asked, about, measure.signals(model, state, split, recipe.loss, train=True))
            progress.advance(_depth(recipe), f"start: {name}")
            if stop():
                return False
    return True


def _depth(recipe: jc.Recipe) -> int:
    return int("".join(filter(str.isdigit, recipe.model)))


def _theory(recipe: jc.Recipe, state: jc.State, images: np.ndarray) -> list[float] | None:
    """The std of every response in wide layers without BN; with BN it is 1."""
    if recipe.options["batch_norm"]:
        return None
    inputs = np.asarray(normalize(images[:16], state.normalizer))
    squares = theory.mean_squares(inputs, _depth(recipe), "resnet" in recipe.model, samples=250)
    return np.sqrt(squares).tolist()


def draw(options: Options) -> list[dict[str, Any]]:
    """`std.png`, `gradient.png`, `rank.png` and the table, from what is measured."""
    folder = options.out / "start"
    found = measure.everything(folder)
    shown = [one for one in found.values() if one[0]["net"]["seed"] == 0]
    head = shown[0][0]
    n = f"Before training: {head['what']}, {head['asked']['images']} images"
    for key, label in figures.QUANTITIES.items():
        plots.save(figures.by_kind(shown, key, label, n), folder / f"{key}.png")
    lines = [figures.line(head, rows) for head, rows in found.values()]
    tables.write_table(folder, lines, [*figures.notes(n), *said(list(found.values()))])
    return lines


def said(found: list[tuple[measure.Row, list[measure.Row]]]) -> list[str]:
    """What the numbers say of what theory says, a sentence each."""
    sentences = []
    off = [abs(row["std"] - 1) for head, rows in found if head["net"]["batch_norm"] for row in rows if row["std"]]
    if off:
        sentences.append(f"With BN every response has std 1: the largest distance from it is {max(off):.1g}.")
    for head, rows in found:
        kind = Net(**head["net"])
        if kind.seed or kind.depth != max(head["net"]["depth"] for head, _ in found):
            continue
        first, last = rows[0], rows[-1]
        if kind.batch_norm:
            growth = figures.growth(rows)
            sentences.append(
                f"{kind.label} with BN: from the last convolution to the first the gradient's norm grows "
                f"{_times(first['gradient'], last['gradient'])}-fold, {growth:.3f} a layer (wide plain networks, "
                f"in theory: {theory.GROWTH:.3f})."
                if growth
                else f"{kind.label} with BN: its gradient is not finite."
            )
        else:
            sentences.append(
                f"{kind.label} without BN: the std of responses goes from {_number(first['std'])} to "
                f"{_number(last['std'])} (wide layers, in theory: {head['theory'][0]:.2g} to {head['theory'][-1]:.2g}), "
                f"and the mean cosine of two images' responses ends at {_number(last['similarity'], '.4f')}."
            )
    return sentences


def _number(value: float | None, form: str = ".2g") -> str:
    return "no finite number" if value is None else format(value, form)


def _times(a: float | None, b: float | None) -> str:
    return f"{a / b:.3g}" if a and b and math.isfinite(a / b) else "?"
