"""Does it help a classifier of a few pictures to begin with a network that has seen others?

    python -m experiments.finetune.transfer

A network learns CIFAR-10's six animals. Then the four vehicles are learnt from a few pictures each: from that network, all of
it or the last layer alone, and from random numbers, with the same steps and rate. Which pictures these are changes with the
seed. It writes OUT/table.md, table.csv, errors.png, the network of the animals (OUT/animals/weights.safetensors) and a folder
for each run, and goes on where it was stopped. 20 minutes on two busy CPU cores.

Expected (3 seeds): no help that is told from chance. With 10 pictures of each vehicle 56.7 +- 5.8% of the test pictures are
wrong from random numbers and 59.1 +- 15.2% from the animals; with 100, 46.8 +- 4.9% and 42.9 +- 8.4%. The last layer alone is
worse with 100 (57.7 +- 1.6%). The network of the animals is wrong for 48.0% of them after its 1,200 steps, so this is no
measure of what networks give that were trained on ImageNet.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

import jaxcnn as jc
from experiments.finetune.options import HEADS, parameters
from experiments.finetune.saved import save
from experiments.finetune.watch import Watch
from jaxcnn import cli, plots, runs, tables
from jaxcnn.checkpoint import Checkpoints, lock_folder
from jaxcnn.data import channel_statistics
from jaxcnn.progress import Progress
from jaxcnn.run_log import read_lines
from jaxcnn.state import with_variables
from jaxcnn.weights import load_weights

ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
VEHICLES = ("airplane", "automobile", "ship", "truck")
STARTS = {"scratch": "from random numbers", "head": "animals, last layer", "all": "animals, all layers"}


@dataclass(frozen=True)
class Options:
    """Every setting of the study."""

    preset: Literal["cifar10"] = "cifar10"
    model: str = "resnet20"
    width: int = 8
    """Filters of its first stage."""
    animals: int = 1000
    """Pictures of each animal to begin with."""
    first_steps: int = 1200
    """Steps of learning the animals."""
    pictures: tuple[int, ...] = (10, 100)
    """Pictures of each vehicle to learn from."""
    held: int = 250
    """Pictures of each class to test on."""
    seeds: int = 3
    steps: int = 150
    batch: int = 32
    lr: float = 0.05
    """Of all layers; falls to 0 as a cosine. Not searched."""
    strategy: Literal["auto", "pmap", "jit"] = "auto"
    data_dir: Path | None = None
    """Where to look for data first."""
    out: Path = Path("runs/transfer")
    plot_only: bool = False


def part(data: jc.Dataset, names: tuple[str, ...], train: int, held: int) -> jc.Dataset:
    """The classes `names` of a data set, with the first `train` and `held` pictures of each."""

    def some(split: jc.Split, n: int) -> jc.Split:
        at = [np.flatnonzero(split.labels == data.classes.index(name))[:n] for name in names]
        labels = np.repeat(np.arange(len(names), dtype=np.int32), [len(one) for one in at])
        return jc.Split(split.images[np.concatenate(at)], labels)

    kept = some(data.train, train)
    mean, std = channel_statistics(kept.images)
    return data._replace(train=kept, test=some(data.test, held), classes=names, mean=mean, std=std)


def base(options: Options) -> jc.Recipe:
    """What all runs share."""
    return jc.Recipe(
        dataset="cifar10", model=options.model, options={"width": options.width}, schedule="cosine", lr=options.lr,
        steps=options.steps, batch=options.batch, every=options.steps, mean="imagenet", std=True,
        pad=4, flip=True,
    )  # fmt: skip


def recipes(options: Options) -> dict[str, tuple[jc.Recipe, int]]:
    """Run's name -> its recipe, and pictures of each class."""
    shared = base(options)
    made = runs.model_and_optimizer(shared, len(VEHICLES))[0]
    stages = dict.fromkeys(name.split("_")[0] for name in parameters(made, 32))
    frozen = {stage: 0.0 for stage in stages if stage not in HEADS}
    rates = {"scratch": {}, "head": frozen, "all": {}}
    return {
        f"{start}-{n}-seed{seed}": (replace(shared, stage_rates=rates[start], seed=seed), n)
        for seed, n, start in itertools.product(range(options.seeds), options.pictures, STARTS)
    }


def learn(options: Options, data: jc.Dataset, progress: Progress, stop: Any) -> bool:
    """Every run that is missing; False if it was stopped."""
    animals = part(data, ANIMALS, options.animals, options.held)
    first = replace(base(options), steps=options.first_steps, every=max(1, options.first_steps // 10))
    more: dict[str, Any] = {"strategy": jc.strategy(options.strategy), "stop": stop}
    if runs.run(first, animals, options.out / "animals", watch=Watch(progress, first.steps), **more) is None:
        return False
    file = keep(options, first, animals)
    vehicles = part(data, VEHICLES, max(options.pictures), options.held)
    known = load_weights(runs.model_and_optimizer(base(options), len(VEHICLES))[0], file, (32, 32, 3))
    for name, (recipe, n) in recipes(options).items():
        few = jc.subset(vehicles, n * len(VEHICLES), seed=recipe.seed)
        begin = (lambda state: state) if name.startswith("scratch") else (lambda state: with_variables(state, known))
        watch = Watch(progress, recipe.steps, f"{name}  ")
        if runs.run(recipe, few, options.out / name, watch=watch, begin=begin, **more) is None:
            return False
    return True


def keep(options: Options, recipe: jc.Recipe, data: jc.Dataset) -> Path:
    """The animals' network as OUT/animals/weights.safetensors."""
    folder = options.out / "animals"
    if not (folder / "weights.safetensors").is_file():
        model, tx = runs.model_and_optimizer(recipe, len(data.classes))
        with Checkpoints(folder / "checkpoints") as saved:
            state = saved.restore(jc.init_state(model, tx, recipe, data))
        assert state is not None, folder
        save(folder, recipe, model, state, data.classes, 32, 32)
    return folder / "weights.safetensors"


def draw(options: Options) -> None:
    """Table and figure from the runs in OUT that are over."""
    groups: dict[tuple[int, str], list[runs.Run]] = {}
    for name, run in named(options.out).items():
        start, n, _ = name.rsplit("-", 2)
        groups.setdefault((int(n), start), []).append(run)
    order = sorted(groups, key=lambda key: (key[0], list(STARTS).index(key[1])))
    table = [{"begins": STARTS[start], "pictures": n} | runs.aggregate_seeds(groups[n, start]) for n, start in order]
    tables.write_table(options.out, table, [protocol(groups[order[0]][0].recipe)])
    title = "Vehicles, by a network that begins with animals"
    figure = plots.bars(
        heights(table, "eval_error"),
        errors=heights(table, "eval_error_ci95"),
        ylabel=f"{table[0]['eval_split']} error (%)",
        title=title,
        fmt=".1f",
    )
    plots.save(figure, options.out / "errors.png")
    print(f"{tables.markdown(table)}\nwrote {options.out}/table.md, table.csv and errors.png")


def heights(table: list[dict[str, Any]], key: str) -> dict[str, dict[str, float]]:
    """Bars: pictures -> how it begins -> a column of the table."""
    found: dict[str, dict[str, float]] = {}
    for line in table:
        found.setdefault(f"{line['pictures']} pictures a class", {})[line["begins"]] = line[key]
    return found


def protocol(recipe: jc.Recipe) -> str:
    """The note below the table."""
    return (
        f"CIFAR-10's {len(VEHICLES)} vehicles, {recipe.model} of width {recipe.options['width']}, {recipe.steps} steps of "
        f"{recipe.batch} pictures at rate {recipe.lr:g} (cosine, not searched). `pictures` of each class, others for each "
        "seed. Errors in percent at the last step, with the half width of the mean's 95% interval over seeds."
    )


def named(out: Path) -> dict[str, runs.Run]:
    """Run's name -> run, without the animals'."""
    all_runs, packed = runs.finished_runs(out), out / "runs.jsonl"
    names = {path.parent.name for path in out.glob("*/result.json")}
    if packed.is_file():
        names |= {line["name"] for line in read_lines(packed)}
    return {name: run for name, run in zip(sorted(names), all_runs, strict=True) if name != "animals"}


def main(args: list[str] | None = None) -> int:
    """Train what is missing, then draw; returns the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse({"cifar10": Options()}, args, about=__doc__)
        if not options.plot_only:
            cli.enable_compilation_cache()
            data = jc.load_dataset("cifar10", options.data_dir)
            total = options.first_steps + options.steps * len(recipes(options))
            with lock_folder(options.out), Progress(total) as progress:
                done = learn(options, data, progress, stop)
            if not done:
                print("stopped and saved; the same command goes on from here", file=sys.stderr)
                return stop.exit_code
        with cli.reading(options.out):
            draw(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
