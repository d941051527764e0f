"""Transfer from other classes, where images are few.

    python -m experiments.finetune.transfer

A network is trained on CIFAR-10's six animals. Then it is trained on the four vehicles, with a few
images each. It starts from that network, with all layers or the last layer trained, or from random
numbers. Steps and rate are the same. The seed selects the images.

The script writes OUT/table.md, table.csv and errors.png, the network of the animals
(OUT/animals/weights.safetensors), and a folder for each run. The same command resumes where it was
stopped. 20 minutes on two busy CPU cores.

Expected (3 seeds): no help that is distinct from chance. With 10 images of each vehicle, 56.7 +-
5.8% of the test images are wrong from random numbers and 59.1 +- 15.2% from the animals. With 100,
they are 46.8 +- 4.9% and 42.9 +- 8.4%. The last layer alone is worse with 100 (57.7 +- 1.6%).

The network of the animals is wrong for 48.0% of them after its 1,200 steps. This is therefore no
measure of networks that were trained on ImageNet.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import jaxcnn as jc
from experiments._common import (
    READ_TIMEOUT,
    DeviceOptions,
    FigureOptions,
    SeedOptions,
    StepProgress,
    run_study,
)
from experiments.finetune.options import HEADS, parameter_names
from jaxcnn import cli, plots, runs, tables
from jaxcnn.checkpoint import Checkpoints, FolderInUseError
from jaxcnn.classifier import save_classifier
from jaxcnn.data import channel_statistics
from jaxcnn.progress import Progress
from jaxcnn.run_log import read_lines
from jaxcnn.state import with_variables
from jaxcnn.weights import load_weights

ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
VEHICLES = ("airplane", "automobile", "ship", "truck")
STARTS = {
    "scratch": "from random numbers",
    "head": "animals, last layer",
    "all": "animals, all layers",
}
"""Start of a run -> its text in the table."""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting of the study."""

    preset: Literal["cifar10"] = "cifar10"
    model: str = "resnet20"
    """Network, a name in jaxcnn.MODELS."""
    width: int = 8
    animals: int = 1000
    """Images of each animal."""
    first_steps: int = 1200
    """Training steps on the animals."""
    images: tuple[int, ...] = (10, 100)
    """Numbers of training images of each vehicle."""
    held: int = 250
    """Test images of each class."""
    num_seeds: int = 3
    num_steps: int = 150
    """Training steps on the vehicles."""
    batch_size: int = 32
    learning_rate: float = 0.05
    """Learning rate of all layers; it falls to 0 as a cosine.

    It was not searched.
    """
    data_dir: Path | None = None
    out: Path = Path("runs/transfer")
    plot_only: bool = False


def class_subset(
    data: jc.Dataset, names: tuple[str, ...], num_train: int, num_test: int
) -> jc.Dataset:
    """Return some classes of a data set, and their first images.

    Args:
      data: the data set.
      names: of the classes.
      num_train: training images of each class.
      num_test: test images of each class.
    """

    def take(split: jc.Split, n: int) -> jc.Split:
        indices = [np.flatnonzero(split.labels == data.classes.index(name))[:n] for name in names]
        labels = np.repeat(
            np.arange(len(names), dtype=np.int32), [len(class_indices) for class_indices in indices]
        )
        return jc.Split(split.images[np.concatenate(indices)], labels)

    train_split = take(data.train, num_train)
    mean, std = channel_statistics(train_split.images)
    return data._replace(
        train=train_split, test=take(data.test, num_test), classes=names, mean=mean, std=std
    )


def base_config(options: Options) -> jc.ExperimentConfig:
    """Return the config that all runs share."""
    return jc.ExperimentConfig(
        dataset="cifar10",
        model=options.model,
        model_kwargs={"width": options.width},
        optimizer=jc.OptimizerConfig(learning_rate=options.learning_rate, schedule="cosine"),
        train=jc.TrainConfig(
            num_steps=options.num_steps,
            batch_size=options.batch_size,
            eval_every=options.num_steps,
            augment=jc.AugmentConfig(padding=4, flip=True),
            subtract_mean="imagenet",
            divide_std=True,
        ),
    )


def run_configs(options: Options) -> dict[str, tuple[jc.ExperimentConfig, int]]:
    """Return name of a run -> config, and images per class."""
    shared = base_config(options)
    model = runs.model_and_optimizer(shared, len(VEHICLES))[0]
    stages = dict.fromkeys(name.split("_")[0] for name in parameter_names(model, 32))
    backbone = tuple(stage for stage in stages if stage not in HEADS)
    freeze = {"scratch": (), "head": backbone, "all": ()}
    return {
        f"{start}-{n}-seed{seed}": (jc.override(shared, freeze=freeze[start], seed=seed), n)
        for seed, n, start in itertools.product(options.run_seeds(), options.images, STARTS)
    }


def train_missing(options: Options, data: jc.Dataset, progress: Progress, stop: Any) -> bool:
    """Train every missing run.

    Returns:
      False if it was stopped, or other processes train some of the runs.
    """
    animals = class_subset(data, ANIMALS, options.animals, options.held)
    first_config = jc.override(
        base_config(options),
        num_steps=options.first_steps,
        eval_every=max(1, options.first_steps // 10),
    )
    kwargs: dict[str, Any] = {"strategy": options.make_strategy(), "should_stop": stop}
    kwargs["on_step"] = StepProgress(progress, first_config.train.num_steps)
    if not _run(first_config, animals, options.out / "animals", **kwargs):
        return False
    weights_file = export_animals(options, first_config, animals)
    vehicles = class_subset(data, VEHICLES, max(options.images), options.held)
    model = runs.model_and_optimizer(base_config(options), len(VEHICLES))[0]
    variables = load_weights(model, weights_file, (32, 32, 3))
    is_complete = True
    for name, (config, n) in run_configs(options).items():
        subset = jc.subset(vehicles, n * len(VEHICLES), seed=config.train.seed)
        initialize = (
            (lambda state: state)
            if name.startswith("scratch")
            else (lambda state: with_variables(state, variables))
        )
        kwargs["on_step"] = StepProgress(progress, config.train.num_steps, f"{name}  ")
        kwargs["prepare_state"] = initialize
        is_finished = _run(config, subset, options.out / name, **kwargs)
        if not is_finished and stop():
            return False
        is_complete = is_complete and is_finished
    return is_complete


def _run(config: jc.ExperimentConfig, data: jc.Dataset, folder: Path, **kwargs: Any) -> bool:
    """Train a run, as `jaxcnn.runs.run` does.

    Returns:
      False if it was stopped, or another process trains it.
    """
    try:
        return runs.run(config, data, folder, **kwargs) is not None
    except FolderInUseError as error:
        if error.by_this_process:
            raise
        return False


def train(options: Options, stop: cli.GracefulShutdown) -> bool:
    """Train the missing runs, as `run_study` expects."""
    cli.enable_compilation_cache()
    data = jc.load_dataset("cifar10", options.data_dir)
    total = options.first_steps + options.num_steps * len(run_configs(options))
    with Progress(total) as progress:
        return train_missing(options, data, progress, stop)


def export_animals(options: Options, config: jc.ExperimentConfig, data: jc.Dataset) -> Path:
    """Write the animals' network to OUT/animals/weights.safetensors."""
    folder = options.out / "animals"
    if not (folder / "weights.safetensors").is_file():
        model, tx = runs.model_and_optimizer(config, data.num_classes)
        with Checkpoints(folder / "checkpoints", timeout=READ_TIMEOUT) as checkpoints:
            state = checkpoints.restore(jc.init_state(model, tx, config.train, data))
        assert state is not None, folder
        save_classifier(folder, config, model, state, data.classes, 32, 32)
    return folder / "weights.safetensors"


def draw(options: Options) -> None:
    """Write the table and figure from the finished runs in OUT."""
    groups: dict[tuple[int, str], list[runs.Run]] = {}
    for name, run in runs_by_name(options.out).items():
        start, n, _ = name.rsplit("-", 2)
        groups.setdefault((int(n), start), []).append(run)
    order = sorted(groups, key=lambda key: (key[0], list(STARTS).index(key[1])))
    table = [
        {"start": STARTS[start], "images": n} | runs.aggregate_seeds(groups[n, start])
        for n, start in order
    ]
    tables.write_table(options.out, table, [protocol_note(groups[order[0]][0].config)])
    title = "Classifying vehicles, from weights trained on animals or not"
    figure = plots.bars(
        bar_heights(table, "eval_error"),
        errors=bar_heights(table, "eval_error_ci95"),
        xlabel="training images of each class",
        ylabel=f"{table[0]['eval_split']} error (%)",
        error_label="95% interval of the mean",
        title=title,
        fmt=".1f",
    )
    options.save(figure, options.out / "errors")
    print(
        f"{tables.compact_markdown(table)}\nwrote {options.out}/table.md, table.csv and "
        f"errors.{options.format}"
    )


def bar_heights(table: list[dict[str, Any]], key: str) -> dict[str, dict[str, float]]:
    """Return bars: images -> start -> a column of the table."""
    bars: dict[str, dict[str, float]] = {}
    for row in table:
        bars.setdefault(f"{row['images']}", {})[row["start"]] = row[key]
    return bars


def protocol_note(config: jc.ExperimentConfig) -> str:
    """Return the note below the table."""
    return (
        f"CIFAR-10's {len(VEHICLES)} vehicles, {config.model} of width "
        f"{config.model_kwargs['width']}, {config.train.num_steps} steps of "
        f"{config.train.batch_size} images at rate {config.optimizer.learning_rate:g} "
        "(cosine, not searched). `images` of each class, others for each seed. Errors in percent "
        "at the last "
        "step, with the half width of the mean's 95% interval over seeds."
    )


def runs_by_name(out: Path) -> dict[str, runs.Run]:
    """Return name -> run, without the animals'."""
    all_runs, packed = runs.finished_runs(out), out / "runs.jsonl"
    names = {path.parent.name for path in out.glob("*/result.json")}
    if packed.is_file():
        names |= {line["name"] for line in read_lines(packed)}
    return {
        name: run for name, run in zip(sorted(names), all_runs, strict=True) if name != "animals"
    }


def main(args: list[str] | None = None) -> int:
    """Train what is missing, draw, and return the exit code."""
    return run_study({"cifar10": Options()}, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
