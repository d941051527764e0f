"""Options of all parts, their presets, and the runs that are measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jaxcnn as jc
from experiments._common import FigureOptions
from experiments.depth import MAKES
from jaxcnn.run_log import read_metrics
from jaxcnn.runs import TrainedModel, load_trained_model, subset_for

Part = Literal["line", "plane", "path", "sharpness"]


@dataclass(frozen=True)
class LineOptions:
    """Losses along random directions, to both sides."""

    directions: int = 3
    """Number of random directions."""
    points: int = 21
    """Points of each line, 4 n + 1."""
    reach: float = 1.0
    """Length to each side, in filter norms."""
    statistics: Literal["moving", "images"] = "moving"
    """BN statistics: the last state's moving averages, or the images'."""


@dataclass(frozen=True)
class PlaneOptions:
    """Losses on the plane of the first two of these directions."""

    points: int = 15
    """Points to a side, odd."""
    reach: float = 1.0
    """Length to each side, in filter norms."""
    statistics: Literal["moving", "images"] = "moving"
    """BN statistics, as of line."""
    multiple: float = 2.0
    """Multiple of the middle's loss. The table has the share of the plane below it."""
    most: float = 1000.0
    """Highest contour and mountain in the figures, in nats."""


@dataclass(frozen=True)
class PathOptions:
    """Path of training in its own plane."""

    points: int = 13
    """Points to a side."""
    first: int = 0
    """First step; states before it are left out."""
    margin: float = 0.25
    """Margin around the path, as a share of its extent."""
    statistics: Literal["moving", "images"] = "images"
    """BN statistics, as of line."""


@dataclass(frozen=True)
class SharpnessOptions:
    """Largest eigenvalue of the Hessian."""

    tolerance: float = 0.03
    """Tolerance; the relative error is about its square."""
    most: int = 50
    """Most products with the Hessian."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Every setting; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist", "cifar10"] = "quick"
    """quick: the depth study's runs on digits. mnist and cifar10: those of these data sets."""
    parts: tuple[Part, ...] = ("line", "plane", "path", "sharpness")
    """Parts to measure."""
    runs: Path = Path("runs/depth")
    """Folder of a depth study."""
    networks: tuple[str, ...] = ("plain20", "plain56", "resnet20", "resnet56")
    """Networks of the study to measure."""
    seed: int = 0
    """Seed of the runs: NETWORK-seedSEED is measured."""
    images: int = 200
    """Training images for losses and sharpness."""
    draw_seed: int = 0
    """Seed of the images and the directions."""
    line: LineOptions = field(default_factory=LineOptions)
    plane: PlaneOptions = field(default_factory=PlaneOptions)
    path: PathOptions = field(default_factory=PathOptions)
    sharpness: SharpnessOptions = field(default_factory=SharpnessOptions)
    data_dir: Path | None = None
    out: Path = Path("runs/landscape")
    """Folder for tables, figures and arrays."""
    plot_only: bool = False
    """Draw from what --out holds, and measure nothing."""


_MNIST = Options(
    preset="mnist",
    runs=Path("runs/depth-mnist"),
    out=Path("runs/landscape-mnist"),
)
PRESETS = {
    "quick": Options(),
    "mnist": _MNIST,
    "cifar10": replace(
        _MNIST,
        preset="cifar10",
        runs=Path("runs/depth-paper"),
        images=128,
        line=LineOptions(directions=2, points=13),
        plane=PlaneOptions(points=9),
        out=Path("runs/landscape-cifar10"),
    ),
}


def run_folder(options: Options, network: str) -> Path:
    """Return the folder of a network's run."""
    return options.runs / f"{network}-seed{options.seed}"


def check_runs(options: Options) -> None:
    """Check that the runs exist and have enough images.

    Raises:
      ArgumentError: a run is missing, or has fewer images than requested.
    """
    if not options.networks:
        raise jc.ArgumentError("networks is empty; write --networks plain20 resnet20")
    for network in options.networks:
        path = run_folder(options, network)
        if not (path / "config.json").is_file() or not (path / "checkpoints").is_dir():
            available = sorted(folder.parent.name for folder in options.runs.glob("*/checkpoints"))
            hint = f" (there: {', '.join(available[:8])})" if available else ""
            raise jc.ArgumentError(
                f"there is no run with checkpoints in {path}{hint}; make it: "
                f"{MAKES[options.preset]} --out {options.runs}, or write --runs with another "
                "study's folder"
            )
        if not read_metrics(path):
            raise jc.ArgumentError(
                f"the run in {path} has no row yet; let it train on, or write other --networks"
            )
    for network in options.networks:
        loss_images(options, network)


@lru_cache(maxsize=4)
def _load_data(name: str, validation: int, data_dir: Path | None) -> jc.Dataset:
    return jc.load_dataset(name, data_dir, validation=validation)


def load_data(options: Options, network: str) -> jc.Dataset:
    """Return the data set of the network's run."""
    config = jc.ExperimentConfig.load(run_folder(options, network))
    return _load_data(config.dataset, config.num_validation, options.data_dir)


@lru_cache(maxsize=8)
def loss_images(options: Options, network: str) -> jc.Split:
    """Return the training images of the losses, as many of each class.

    They are uint8 [n, h, w, c], not augmented.
    """
    dataset = subset_for(
        jc.ExperimentConfig.load(run_folder(options, network)), load_data(options, network)
    )
    return jc.subset(dataset, options.images, seed=options.draw_seed).train


@lru_cache(maxsize=8)
def load_model(options: Options, network: str) -> TrainedModel:
    """Return the network at its start and its end."""
    return load_trained_model(run_folder(options, network), data=load_data(options, network))


def measurement_request(options: Options, network: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies a measurement: the run and the settings.

    The run is described by its records.
    """
    row = read_metrics(run_folder(options, network))[-1]
    row_values = {
        key: row.get(key)
        for key in ("step", "train_loss", "train_error", "eval_error", "eval_split")
    }
    config = jc.ExperimentConfig.load(run_folder(options, network))
    common = {"images": options.images, "draw_seed": options.draw_seed}
    classes = load_data(options, network).num_classes
    return {
        "config": config.to_json(),
        "classes": classes,
        "row": row_values,
        "settings": common | settings,
    }
