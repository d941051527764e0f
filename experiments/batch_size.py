"""One image, some or all of them before each update: online, mini-batch and full-batch learning, and what sorting does.

    python -m experiments.batch_size                  digits, no download: 1 minute 33 seconds on two CPU cores
    python -m experiments.batch_size --preset mnist   LeNet-5 on 5120 images of MNIST: not measured yet

The table of every course, measured: one loop, `runs.sweep`, and settings that differ in their batch, order, rate and epochs.
"At equal epochs" is the row after --common epochs; "at equal time" is the last row within the training time of the
shuffled setting that ends first. The time of a row is its step times the setting's median seconds a step, over all rows
but each run's first: compiling, testing and saving do not count. Training figures are of all the training images, in
test mode. Memory is what XLA takes for a step beside state and data. `loss_std` is the spread of the batch's loss from
update to update within a row (median over the second half of the rows).

The gradient noise scale tr(Sigma) / |G|^2 (McCandlish et al. 2018, arXiv:1812.06162, eq. 2.9) is the batch up to which
a larger one pays: in OUT/noise.json, at the start and at the end of the first mini-batch run.

Expected, quick (3 seeds; seconds are this machine's): 0.38, 0.035 and 0.011 s and 1280, 40 and 1 updates an epoch; 0.025,
0.28 and 11 MiB. After 10 epochs 2.4% (online), 3.8% (mini-batch), 63% (full batch), 70% (sorted mini-batches) and 81% (sorted
online) of the test images wrong; after equal time (2.1 s) about 5%, 2.2% and 6%. Noise scale: 17 images at the start, 710 at
the end. Online training on sorted data gets the images it is shown right, and has forgotten the other classes.
Full batch has no noise; at twice the rate (`--rates 0.01 0.1 0.2`) its loss still leaps once in one seed, for 0.2 is about
as much as the curvature allows.

It writes OUT/table.md, table.csv, curves.png, sorted.png, noise.json, memory.json and a folder for every run, and goes on
where it was stopped.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn as jc
from experiments import budget
from jaxcnn import cli, plots, runs, tables
from jaxcnn.augment import normalize
from jaxcnn.run_log import read_json, write_text

SETTINGS = ("online", "mini-batch", "full-batch", "mini-batch-sorted", "online-sorted")
ROWS, SORTED_ROWS = 60, 10
"""Rows of a shuffled run, at least; rows an epoch of a sorted one, about one a class."""
DRAWS, DRAW = 1000, 8
"""Batches that the noise scale is measured with, and their size."""


@dataclass(frozen=True)
class Options:
    """Every setting of the experiment; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    dataset: str = "digits"
    """digits, mnist, fashion_mnist, cifar10, ..."""
    model: str = "convnet"
    """A network without BN, which one image at a time would leave without a variance."""
    examples: int = 1280
    """Training images kept, as many of each class: a multiple of --batch, so that every epoch has whole batches."""
    batch: int = 32
    """Of the mini-batches."""
    seeds: int = 3
    rates: tuple[float, float, float] = (0.01, 0.1, 0.1)
    """Online, mini-batch, full batch. On digits with two seeds: online 0.02 is no better and at 0.05 the loss grows;
    mini-batches end with the same error from 0.03 to 0.2; full batch leaps once on its way at 0.2, and back at 0.4."""
    epochs: tuple[int, int, int] = (10, 60, 600)
    """Online, mini-batch, full batch."""
    common: int = 10
    """Epochs at which all settings are compared, and for which the sorted runs go on."""
    data_dir: Path | None = None
    """Where to look for data first."""
    out: Path = Path("runs/batch_size")
    plot_only: bool = False
    """Draw tables and figures from the runs that OUT holds, and train nothing."""


PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist",
        dataset="mnist",
        model="lenet5-relu",
        examples=5120,
        seeds=2,
        rates=(0.005, 0.2, 0.2),  # the best of 0.005 to 0.02 and of 0.05 to 0.2, one seed; the last was not searched
        epochs=(10, 40, 200),
        out=Path("runs/batch_size-mnist"),
    ),
}


def recipes(options: Options) -> dict[str, jc.Recipe]:
    """Run's name -> recipe, one seed of everything first."""
    check(options)
    batches = (1, options.batch, options.examples)
    fair = list(zip(batches, ("shuffled",) * 3, options.rates, options.epochs, strict=True))
    unfair = [(batch, "sorted", lr, options.common) for batch, _, lr, _ in fair[:2]]
    settings = [one(options, *numbers) for numbers in (*fair, *unfair)]
    return {
        f"{budget.setting(recipe)}-seed{seed}": replace(recipe, seed=seed)
        for seed in range(options.seeds)
        for recipe in settings
    }


def one(options: Options, batch: int, order: str, lr: float, epochs: int) -> jc.Recipe:
    """A setting: plain gradient descent at a constant rate, so that nothing but the batch is at work."""
    updates, common = (e * options.examples // batch for e in (epochs, options.common))
    most = updates // (SORTED_ROWS * epochs if order == "sorted" else ROWS)
    return jc.Recipe(
        dataset=options.dataset,
        model=options.model,
        examples=options.examples,
        steps=updates,
        every=max(k for k in range(1, max(1, most) + 1) if common % k == 0),  # so that a row falls on the common epoch
        batch=batch,
        order=order,
        optimizer="sgd",
        lr=lr,
        schedule="constant",
        momentum=0.0,
        decay=0.0,
        pad=0,
        flip=False,
    )


def check(options: Options) -> None:
    """ArgumentError for what no Recipe would refuse."""
    for name, least in (("seeds", 1), ("common", 1), ("batch", 2), ("examples", 4)):
        if getattr(options, name) < least:
            raise jc.ArgumentError(f"{name} is {getattr(options, name)}; expected a whole number of at least {least}")
    n, batch, common = options.examples, options.batch, options.common
    if batch >= n or n % batch:
        near = f"and not --batch itself: write --examples {max(2, n // batch) * batch}"
        raise jc.ArgumentError(f"examples is {n}; expected a multiple of --batch, {near}")
    if min(options.epochs) < common:
        enough = " ".join(str(max(epochs, common)) for epochs in options.epochs)
        raise jc.ArgumentError(f"epochs is {options.epochs}, less than the common {common}: write --epochs {enough}")


def whole(model: Any, state: jc.State, data: jc.Dataset) -> dict[str, float]:
    """Loss and error of all the training images, which a mean over a row's batches is not: parameters move meanwhile."""
    sums = jc.evaluate(model, state, data.train, strategy=jc.strategy(devices=1))
    return {"all_loss": sums.mean_loss, "all_error": sums.error_percent}


def kept(path: Path, make: Callable[[], Mapping[str, Any]] = dict) -> Mapping[str, Any]:
    """What a JSON file holds; where it is missing, what `make` gives, which is written to it."""
    if path.exists():
        return read_json(path)
    if made := make():
        write_text(path, json.dumps(made, indent=2) + "\n")
    return made


def begin(recipe: jc.Recipe, data: jc.Dataset) -> tuple[Any, Any, jc.State, jc.Split]:
    """Model, optimiser, state at step 0 and training images of a run."""
    few, (model, tx) = runs.subset_for(recipe, data), runs.model_and_optimizer(recipe, len(data.classes))
    return model, tx, jc.init_state(model, tx, recipe, few), few.train


def memory(recipes: Iterable[jc.Recipe], data: jc.Dataset) -> dict[str, float | None]:
    """Batch -> MiB that XLA takes for a step."""
    strategy, sizes = jc.strategy(devices=1), {}
    for recipe in {recipe.batch: recipe for recipe in recipes}.values():
        model, tx, state, train = begin(recipe, data)
        step, index = jc.make_train_step(model, tx, pad=0, flip=False), np.arange(recipe.batch, dtype=np.int32)
        size = strategy.memory(step, strategy.replicate(state), strategy.replicate(train), index)
        sizes[str(recipe.batch)] = None if size is None else size / 2**20
    return sizes


def noise(recipe: jc.Recipe, data: jc.Dataset, folder: Path) -> dict[str, Any]:
    """The noise scale at the start and at the end of a run, from images drawn with replacement; None if it is drowned."""
    model, _, start, train = begin(recipe, data)
    with jc.Checkpoints(folder / "checkpoints") as saved:
        states = {"start": start, "end": saved.restore(start) or start}
    slope, inputs = jax.grad(jc.loss_fn(model)), np.asarray(normalize(jnp.asarray(train.images), start.normalizer))

    def gradient(params, batch):
        return slope(params, start.model_state, *batch)

    found: dict[str, Any] = {"draws": DRAWS, "of": DRAW}
    draws = np.random.default_rng(0).integers(len(inputs), size=(DRAWS, DRAW))
    for name, state in states.items():
        batches = ((inputs[index], train.labels[index]) for index in draws)
        measured = jc.noise_scale(gradient, state.params, batches)
        found[name] = {k: v if math.isfinite(v) else None for k, v in measured._asdict().items()}
    return found


def noted(noise: Mapping[str, Any]) -> str:
    """One sentence on the noise scale."""
    draws = f"{noise['draws']} batches of {noise['of']} images"
    start, end = (f"{s:.3g}" if (s := noise[at]["scale"]) else "too large to tell" for at in ("start", "end"))
    return f"Gradient noise scale, in images: {start} at the start, {end} at the end of mini-batch-seed0 ({draws})."


def draw(out: Path) -> None:
    """Tables and figures from the runs under `out` that are over."""
    all_runs = runs.finished_runs(out)
    good = [run for run in all_runs if run.divergence is None and run.recipe.examples]
    groups = {
        name: group for name in SETTINGS if (group := [run for run in good if budget.setting(run.recipe) == name])
    }
    ends = [budget.timed(group)[0][-1] for name, group in groups.items() if not name.endswith("sorted")]
    if not ends:
        raise jc.ArgumentError(
            f"no shuffled run in {out} is over that did not diverge; write smaller --rates, another --out"
        )
    common = min(run.recipe.steps * run.recipe.batch / (run.recipe.examples or math.nan) for run in good)
    limits = {"epoch": common, "time": min(end["time"] for end in ends)}
    table = [budget.line(name, group, limits, kept(out / "memory.json")) for name, group in groups.items()]
    recipe = all_runs[0].recipe
    what = f"{recipe.dataset}, {recipe.examples} training images, {recipe.model}"
    notes = [
        f"{what}. Equal epochs: {limits['epoch']:g}; equal time: {limits['time']:.3g} s. Errors in percent, losses in "
        "nats; ± is the half width of the mean's 95% interval over seeds.",
        *([noted(noise)] if (noise := kept(out / "noise.json")) else []),
        *(run.divergence for run in all_runs if run.divergence),
    ]
    tables.write_table(out, table, notes)
    plots.save(budget.curves(groups, limits, what), out / "curves.png")
    plots.save(budget.orders(groups, limits["epoch"], what), out / "sorted.png")
    print(tables.markdown(table), *notes, f"wrote {out}/table.md, table.csv, curves.png and sorted.png", sep="\n")


def main(args: list[str] | None = None) -> int:
    """Train what is missing, then draw; returns the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(PRESETS, args, about=__doc__)
        out = options.out
        if not options.plot_only:
            all_runs = recipes(options)
            cli.enable_compilation_cache()
            data = jc.load_dataset(options.dataset, options.data_dir)
            strategy = jc.strategy(devices=1)  # a batch of one image cannot be shared
            if runs.sweep(all_runs, data, out, strategy=strategy, stop=stop, measure=whole, brief=True) is None:
                print("stopped and saved; the same command goes on from here", file=sys.stderr)
                return stop.exit_code
            kept(out / "memory.json", lambda: memory(all_runs.values(), data))
            kept(out / "noise.json", lambda: noise(all_runs["mini-batch-seed0"], data, out / "mini-batch-seed0"))
        with cli.reading(out):
            draw(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
