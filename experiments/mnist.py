"""Ten networks on MNIST, from the perceptron to LeNet-5.

All have one config and one table, on MNIST and Fashion-MNIST.

    python -m experiments.mnist                     digits, no download: under 3 minutes on two CPU
                                                    cores
    python -m experiments.mnist --preset mnist      both data sets: about an hour each there
    python -m experiments.mnist --preset mnist --datasets mnist
                                                    one of them

The networks are the linear classifier, MLPs of two hidden layers with four activations, the
smallest convolutional network of courses (`cnn`), one with two convolutions (`convnet`), and three
forms of LeNet-5. These are 1998 as it is usually rebuilt, today's (ReLU and max pooling), and as
printed (LeCun et al. 1998; 0.95% wrong in its figure 9). All see the same images, crops and number
of steps. All but one have the same rate, which was chosen for LeNet-5. The printed form has an
output of distances and needs a smaller one.

The digits of the quick preset are 8x8 pixels, and LeNet-5 takes 28x28. So every pixel becomes 3x3,
with 2 pixels of black around the image. A checkpoint of it is a network for such enlarged images.

Expected on MNIST, percent of the test images wrong, mean of 3 seeds:

- LeNet-5: 0.87 +- 0.20 (1998, rebuilt) and 0.56 +- 0.20 (today's), so 99.1 and 99.4 right;
- as printed: 1.31 +- 0.23, which is worse than the paper's 0.95;
- the perceptron: 7.8; MLPs: from 3.0 (step) to 1.4 (ReLU);
- the small convolutional networks: 0.95 (`cnn`) and 0.82 (`convnet`).

On the digits one image is 0.28%, and most differences are within their intervals. Only the sigmoid
MLP is far behind (8.0), because 500 steps are not enough for it.

It writes OUT/table.md, OUT/table.csv, OUT/curves.csv, OUT/curves.png and OUT/DATASET/ with a folder
for every run.
The same command resumes a study that was stopped. When all runs are finished, it only draws.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import jaxcnn as jc
from experiments._common import (
    DeviceOptions,
    DtypeName,
    FigureOptions,
    SeedOptions,
    display_names,
    run_all,
    run_study,
)
from experiments._options import print_milestones
from jaxcnn import cli, plots, runs, tables
from jaxcnn.config import check_choice, field_names
from jaxcnn.data import channel_statistics
from jaxcnn.interpret import summary

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "perceptron": ("perceptron", {}),
    **{
        f"mlp-{name}": ("mlp", {"activation": name}) for name in ("step", "sigmoid", "tanh", "relu")
    },
    "cnn": ("cnn", {}),
    "convnet": ("convnet", {}),
    "lenet5": ("lenet5", {}),
    "lenet5-relu": ("lenet5-relu", {}),
    "lenet5-1998": ("lenet5-1998", {}),
}
"""Network's name -> arguments of `jaxcnn.create_model`: model and keyword arguments."""
DENSE = [name for name in NETWORKS if name.startswith(("perceptron", "mlp"))]
"""Networks without convolutions."""
SETS = ("digits", "mnist", "fashion_mnist")
SHAPE = (28, 28, 1)
"""Height, width and channels of the images."""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting of the experiment; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    """quick: digits. mnist: MNIST and Fashion-MNIST, 20 epochs."""
    datasets: tuple[Literal["digits", "mnist", "fashion_mnist"], ...] = ("digits",)
    """Data sets to train on."""
    networks: tuple[str, ...] = tuple(NETWORKS)
    """Networks: perceptron, mlp-step, mlp-sigmoid, mlp-tanh, mlp-relu, cnn, convnet, lenet5,
    lenet5-relu or lenet5-1998."""
    num_seeds: int = 3
    num_steps: int = 500
    batch_size: int = 64
    learning_rate: float = 0.05
    # Of 0.002, 0.005, 0.01, 0.02 the best on 5,000 validation images of MNIST, 4 epochs.
    lr_1998: float = 0.005
    """Learning rate of lenet5-1998, instead of --learning-rate."""
    milestones: tuple[int, ...] = (300, 400)
    """Steps at which the learning rate falls tenfold. By default they are in proportion to
    --num-steps."""
    weight_decay: float = 1e-4
    padding: int = 1
    """Pixels of padding on each side before the random crop; 0 is no crop."""
    eval_every: int | None = 50
    dtype: DtypeName = "float32"
    data_dir: Path | None = None
    out: Path = Path("runs/mnist-digits")
    tensorboard: bool = False
    plot_only: bool = False


# fmt: off
PRESETS = {
    "quick": Options(),
    # 20 epochs at batch 128, as in the paper.
    "mnist": Options(
        preset="mnist", datasets=("mnist", "fashion_mnist"), num_steps=9_380, batch_size=128,
        milestones=(5_600, 7_600), eval_every=None, out=Path("runs/mnist"),
    ),
}
# fmt: on


def check(options: Options) -> None:
    """Check what no config checks.

    Raises:
      ArgumentError: for no networks, no data sets, or invalid seeds.
    """
    for name, value in (("networks", options.networks), ("datasets", options.datasets)):
        if not value:
            usual = getattr(PRESETS["quick"], name)[:2]
            raise jc.ArgumentError(f"{name} is empty; write --{name} {' '.join(usual)}")
    options.run_seeds()


def configs(options: Options, dataset: str) -> dict[str, jc.ExperimentConfig]:
    """Return the runs of a data set: name -> config.

    One seed of every network comes first, so that a study that was stopped has a usable table.
    """
    # Options and configs share the names of their fields.
    default = jc.ExperimentConfig()
    names = [name for name in field_names(default) if hasattr(options, name)]
    shared = {name: getattr(options, name) for name in names}
    base = jc.override(default, **shared, dataset=dataset)
    all_runs = {}
    for seed in options.run_seeds():
        for name in options.networks:
            model, model_kwargs = NETWORKS[check_choice("network", name, NETWORKS)]
            all_runs[f"{name}-seed{seed}"] = jc.override(
                base,
                model=model,
                model_kwargs=model_kwargs | {"dtype": options.dtype},
                learning_rate=options.lr_1998 if model == "lenet5-1998" else options.learning_rate,
                seed=seed,
            )
    return all_runs


def network(config: jc.ExperimentConfig) -> str:
    """Return the name in `NETWORKS` of a config's network.

    For another network it is the model's name.
    """
    if config.model == "mlp":
        return f"mlp-{config.model_kwargs.get('activation', 'tanh')}"
    return config.model


def images(name: str, folder: Path | None) -> jc.Dataset:
    """Load a data set with images of 28x28 pixels.

    Images of digits are enlarged to that.
    """
    data = jc.load_dataset(name, folder)
    if name != "digits":
        return data
    border = ((0, 0), (2, 2), (2, 2), (0, 0))
    train, validation, test = (
        split._replace(images=np.pad(split.images.repeat(3, 1).repeat(3, 2), border))
        for split in (data.train, data.validation, data.test)
    )
    mean, std = channel_statistics(train.images)
    return data._replace(train=train, validation=validation, test=test, mean=mean, std=std)


def groups(out: Path) -> dict[str, dict[str, list[runs.Run]]]:
    """Return the finished runs in `out`: data set -> network -> runs.

    Data sets are in the order of `SETS`.

    Raises:
      ArgumentError: if there is none.
    """
    by_dataset: dict[str, dict[str, list[runs.Run]]] = {}
    for dataset in SETS:
        if any(out.glob(f"{dataset}/*/result.json")) or (out / dataset / "runs.jsonl").exists():
            for run in runs.finished_runs(out / dataset):
                if (name := network(run.config)) in NETWORKS:
                    by_dataset.setdefault(dataset, {}).setdefault(name, []).append(run)
    if not by_dataset:
        raise jc.ArgumentError(
            f"{out} holds no run of it that is over; write --out with its folder, or no --plot-only"
        )
    return by_dataset


def row(name: str, by_dataset: Mapping[str, Mapping[str, list[runs.Run]]]) -> dict[str, Any]:
    """Return the table's row of a network.

    Each data set has columns of its own: errors over seeds, and seconds a run.
    """
    model, model_kwargs = NETWORKS[name]
    model_summary = summary(jc.create_model(model, 10, **model_kwargs), SHAPE)
    line: dict[str, Any] = {
        "network": name,
        "params": model_summary.params,
        "macs": model_summary.macs,
    }
    line["eval_split"] = runs.eval_split(
        [run for networks in by_dataset.values() for run in networks.get(name, [])]
    )
    for dataset, networks in by_dataset.items():
        columns = runs.aggregate_seeds(networks.get(name, []))
        line[f"{dataset}_seeds"] = columns["seeds"]
        for key in ("train_error", "eval_error"):
            line |= {
                f"{dataset}_{key}{suffix}": columns[key + suffix]
                for suffix in ("", "_std", "_ci95")
            }
        line[f"{dataset}_seconds"] = columns["seconds"]
    return line


def protocol(by_dataset: Mapping[str, Mapping[str, list[runs.Run]]]) -> str:
    """Return the note below the table."""
    all_runs = [
        run for networks in by_dataset.values() for group in networks.values() for run in group
    ]
    configs = {
        name: next(iter(networks.values()))[0].config for name, networks in by_dataset.items()
    }
    steps = ", ".join(
        f"{name} {config.train.num_steps} steps of {config.train.batch_size}"
        for name, config in configs.items()
    )
    # The printed form of LeNet-5 has a rate of its own, which comes last.
    rates = sorted(
        {
            (run.config.model == "lenet5-1998", run.config.optimizer.learning_rate)
            for run in all_runs
        }
    )
    rate = " and ".join(f"{lr:g}" + " (lenet5-1998)" * is_printed for is_printed, lr in rates)
    padding = all_runs[0].config.train.augment.padding
    enlarged = (
        " Digits are enlarged from 8x8 to 24x24 and padded to 28x28."
        if "digits" in by_dataset
        else ""
    )
    return (
        f"{steps} images, momentum at rate {rate}, crops of {padding} pixel. "
        "Errors in percent at the last step, mean over seeds and half width of its 95% interval "
        "(training error: running mean over augmented batches); seconds a run. Multiply-adds of "
        "one image; the zeros of lenet5-1998's C3 (150,000 of 240,000 are not) are counted."
        + enlarged
    )


def panels(by_dataset: Mapping[str, Mapping[str, list[runs.Run]]]) -> list[plots.Panel]:
    """Return panels of learning curves, by data set and kind of network.

    Dense networks come before convolutional ones. The curves are of the test error.
    """
    convolutional = [name for name in NETWORKS if name not in DENSE]
    curves = []
    for dataset, networks in by_dataset.items():
        for kind, names in (("dense", DENSE), ("convolutional", convolutional)):
            seeds = {
                name: [run.rows for run in networks[name]] for name in names if name in networks
            }
            lines = [
                plots.band(rows, "step", "eval_error", label=name) for name, rows in seeds.items()
            ]
            split = runs.eval_split([run for group in networks.values() for run in group])
            axes: dict[str, Any] = {
                "xlabel": "step",
                "ylabel": f"{split} error (%)",
                "ylog": True,
            }
            title = f"{display_names(dataset)}: {kind} networks"
            curves += [plots.Panel(title, lines, **axes)] if lines else []
    return curves


def train(options: Options, stop: cli.GracefulShutdown) -> bool:
    """Train the missing runs; return False if some are not finished."""
    check(options)
    all_runs = {name: configs(options, name) for name in options.datasets}
    print_milestones(options, PRESETS[options.preset])
    cli.enable_compilation_cache()
    # All data sets are loaded before any is trained on: a missing one is reported at once.
    datasets = {name: images(name, options.data_dir) for name in options.datasets}
    strategy, are_finished = options.make_strategy(), True
    for name, data in datasets.items():
        sweep_kwargs: dict[str, Any] = {
            "strategy": strategy,
            "should_stop": stop,
            "tensorboard": options.tensorboard,
            "quiet": True,
        }
        # Where others train the last runs of a data set, another one is left.
        are_finished &= run_all(all_runs[name], data, options.out / name, **sweep_kwargs)
        if stop():
            return False
    return are_finished


def draw(options: Options) -> None:
    """Write the tables and the curves of the finished runs in `options.out`."""
    out = options.out
    by_dataset = groups(out)
    trained = {name for networks in by_dataset.values() for name in networks}
    table = [row(name, by_dataset) for name in NETWORKS if name in trained]
    all_runs = [
        run for networks in by_dataset.values() for group in networks.values() for run in group
    ]
    divergences = filter(None, (run.divergence for run in all_runs))
    tables.write_table(out, table, [protocol(by_dataset), *divergences])
    split = runs.eval_split(all_runs) or "eval"
    title = f"{split.capitalize()} error by step, mean and range of seeds"
    figure = plots.panels(panels(by_dataset), columns=2, title=title, share="y")
    rows = {
        f"{dataset}/{run.name}": run.rows
        for dataset, networks in by_dataset.items()
        for group in networks.values()
        for run in group
    }
    tables.write_curves(out, rows)
    options.save(figure, out / "curves")
    written = f"{out}/table.md, table.csv, curves.csv and curves.{options.format}"
    print(f"{tables.compact_markdown(table)}\nwrote {written}")


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw; return the exit code."""
    return run_study(PRESETS, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
