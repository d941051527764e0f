"""The settings of all parts, their presets, and the runs that are looked at."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jaxcnn as jc
from experiments.depth import MAKES
from jaxcnn.run_log import read_metrics
from jaxcnn.runs import TrainedModel, load_trained_model, subset_for

Part = Literal["line", "plane", "path", "sharpness"]


@dataclass(frozen=True)
class Line:
    """Losses along random directions, to both sides."""

    directions: int = 3
    points: int = 21
    """Of each line, 4 n + 1: the middle, and a quarter and three quarters of the way, are among them."""
    reach: float = 1.0
    """To both sides, in filter norms."""
    statistics: Literal["moving", "images"] = "moving"
    """What BN goes by: the last state's moving averages, or the images."""


@dataclass(frozen=True)
class Plane:
    """Losses on the plane of the first two of these directions."""

    points: int = 15
    """To a side, odd."""
    reach: float = 1.0
    statistics: Literal["moving", "images"] = "moving"
    multiple: float = 2.0
    """The table has the share of the plane where the loss is below this many times the loss in the middle."""
    most: float = 1000.0
    """The highest contour and mountain in the figures, in nats."""


@dataclass(frozen=True)
class Way:
    """The path of training in its own plane."""

    points: int = 13
    """To a side."""
    first: int = 0
    """States before this step are left out."""
    margin: float = 0.25
    """Around the path, as a share of its extent."""
    statistics: Literal["moving", "images"] = "images"


@dataclass(frozen=True)
class Sharpness:
    """The Hessian's largest eigenvalue."""

    tolerance: float = 0.03
    """Its relative error is about the square of this."""
    most: int = 50
    """Products with the Hessian at most."""


@dataclass(frozen=True)
class Options:
    """Every setting; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist", "cifar10"] = "quick"
    parts: tuple[Part, ...] = ("line", "plane", "path", "sharpness")
    runs: Path = Path("runs/depth")
    """The folder of a depth study."""
    networks: tuple[str, ...] = ("plain20", "plain56", "resnet20", "resnet56")
    seed: int = 0
    """Of the runs: NETWORK-seedSEED is looked at."""
    images: int = 200
    """Training images that losses are of, and the sharpness."""
    draw_seed: int = 0
    """Of the images and the directions."""
    line: Line = field(default_factory=Line)
    plane: Plane = field(default_factory=Plane)
    path: Way = field(default_factory=Way)
    sharpness: Sharpness = field(default_factory=Sharpness)
    data_dir: Path | None = None
    """Where to look for data first."""
    out: Path = Path("runs/landscape")
    plot_only: bool = False
    """Draw from what OUT holds, and measure nothing."""


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
        line=Line(directions=2, points=13),
        plane=Plane(points=9),
        out=Path("runs/landscape-cifar10"),
    ),
}


def folder(options: Options, network: str) -> Path:
    """Where the run of a network is."""
    return options.runs / f"{network}-seed{options.seed}"


def check(options: Options) -> None:
    """ArgumentError for networks whose runs are missing, or more images than there are."""
    if not options.networks:
        raise jc.ArgumentError("networks is empty; write --networks plain20 resnet20")
    for network in options.networks:
        path = folder(options, network)
        if not (path / "config.json").is_file() or not (path / "checkpoints").is_dir():
            there = sorted(found.parent.name for found in options.runs.glob("*/checkpoints"))
            beside = f" (there: {', '.join(there[:8])})" if there else ""
            raise jc.ArgumentError(
                f"there is no run with checkpoints in {path}{beside}; make it: "
                f"{MAKES[options.preset]} --out {options.runs}, or write --runs with another study's folder"
            )
        if not read_metrics(path):
            raise jc.ArgumentError(f"the run in {path} has no row yet; let it train on, or write other --networks")
    for network in options.networks:
        images(options, network)


@lru_cache(maxsize=4)
def _data(name: str, validation: int, data_dir: Path | None) -> jc.Dataset:
    return jc.load_dataset(name, data_dir, validation=validation)


def data(options: Options, network: str) -> jc.Dataset:
    """What the network was trained on."""
    recipe = jc.Recipe.load(folder(options, network))
    return _data(recipe.dataset, recipe.validation, options.data_dir)


@lru_cache(maxsize=8)
def images(options: Options, network: str) -> jc.Split:
    """The training images that losses are of, as many of each class: uint8 [n, h, w, c]; not augmented."""
    there = subset_for(jc.Recipe.load(folder(options, network)), data(options, network))
    return jc.subset(there, options.images, seed=options.draw_seed).train


@lru_cache(maxsize=8)
def opened(options: Options, network: str) -> TrainedModel:
    """The network at its start and its end."""
    return load_trained_model(folder(options, network), data=data(options, network))


def asked(options: Options, network: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What makes a measurement this one: the run, as its records tell it, and the settings."""
    row = read_metrics(folder(options, network))[-1]
    told = {key: row.get(key) for key in ("step", "train_loss", "train_error", "eval_error", "eval_split")}
    recipe = jc.Recipe.load(folder(options, network))
    common = {"images": options.images, "draw_seed": options.draw_seed}
    classes = len(data(options, network).classes)
    return {"recipe": recipe.to_json(), "classes": classes, "row": told, "settings": common | settings}
