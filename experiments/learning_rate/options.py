"""Settings of all parts, their presets, and functions that the parts share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jaxcnn as jc
from experiments._common import DeviceOptions, FigureOptions, SeedOptions

Part = Literal["theory", "sweep", "finder", "schedules", "edge"]


@dataclass(frozen=True)
class Theory:
    """Gradient descent on quadratics."""

    curvatures: tuple[float, float] = (20.0, 1.0)
    """Curvatures of the quadratic that is shown next to the straight line's loss."""


@dataclass(frozen=True)
class Sweep:
    """Rate against batch."""

    rates: tuple[float, ...] = (0.001, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
    """Learning rates of the runs."""
    batches: tuple[int, ...] = (16, 64, 256)
    """Batch sizes of the runs, in images."""
    epochs: int = 10
    """Epochs of every run, for all batches."""


@dataclass(frozen=True)
class Finder:
    """The range test."""

    optimizers: tuple[str, ...] = ("sgd", "momentum", "adam")
    """Optimizers, names in jaxcnn.OPTIMIZERS."""
    low: float = 1e-5
    """First learning rate."""
    high: float = 100.0
    """Last learning rate."""
    num_steps: int = 150
    """Steps from the first rate to the last."""


@dataclass(frozen=True)
class Schedules:
    """Shapes of the rate."""

    names: tuple[str, ...] = tuple(jc.SCHEDULES)
    """Schedules, names in jaxcnn.SCHEDULES."""
    rates: tuple[float, ...] = (0.02, 0.06, 0.2)
    """Peak rates to choose from by validation images, for every schedule."""
    num_steps: int = 200
    """Training steps of a run."""


@dataclass(frozen=True)
class Edge:
    """Full-batch gradient descent on the squared loss of a tanh network."""

    rates: tuple[float, ...] = (0.2, 0.25, 0.35)
    """Learning rates of gradient descent."""
    momentum_rates: tuple[float, ...] = (0.25, 0.3, 0.4)
    """Learning rates of gradient descent with momentum."""
    momentum: float = 0.9
    """Momentum of these."""
    num_steps: int = 2000
    """Training steps of a run."""
    eval_every: int = 40
    """Steps between measurements of the sharpness."""
    hidden: tuple[int, ...] = (64, 64, 64)
    """Units of each hidden layer."""
    max_train_examples: int | None = None
    """Training images; None is all."""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist", "cifar10"] = "quick"
    """quick: digits. mnist and cifar10: those data sets."""
    parts: tuple[Part, ...] = ("theory", "sweep", "finder", "schedules", "edge")
    """Parts to run."""
    dataset: str = "digits"
    model: str = "convnet"
    """Network of sweep, finder and schedules; the edge has its own."""
    batch_size: int = 64
    """Images a step, of finder and schedules."""
    optimizer: str = "sgd"
    """Optimizer of the sweep."""
    num_seeds: int = 2
    """Runs of every rate of schedules, from seeds 0, 1, ..."""
    num_validation: int = 237
    """Training images that schedules holds out, to choose each one's rate."""
    theory: Theory = field(default_factory=Theory)
    sweep: Sweep = field(default_factory=Sweep)
    finder: Finder = field(default_factory=Finder)
    schedules: Schedules = field(default_factory=Schedules)
    edge: Edge = field(default_factory=Edge)
    data_dir: Path | None = None
    out: Path = Path("runs/learning-rate")
    tensorboard: bool = False
    plot_only: bool = False
    """Draw from what --out holds, and train nothing."""


_MNIST = Options(
    preset="mnist",
    dataset="mnist",
    model="lenet5-relu",
    batch_size=128,
    num_validation=5000,
    parts=("sweep", "finder", "schedules"),
    sweep=Sweep(rates=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), batches=(32, 128, 512), epochs=1),
    schedules=Schedules(num_steps=300),
    out=Path("runs/learning-rate-mnist"),
)
PRESETS = {
    "quick": Options(),
    "mnist": _MNIST,
    "cifar10": replace(
        _MNIST,
        preset="cifar10",
        dataset="cifar10",
        model="resnet20",
        parts=("finder",),
        finder=Finder(optimizers=("momentum", "adam"), low=1e-4, high=10.0, num_steps=300),
        out=Path("runs/learning-rate-cifar10"),
    ),
}


def config(options: Options, /, **overrides: Any) -> jc.ExperimentConfig:
    """Return the config of a run, with `overrides` of its fields.

    There is no augmentation and no decay, so that nothing but the rate has an effect.
    """
    base = jc.ExperimentConfig(
        dataset=options.dataset,
        model=options.model,
        optimizer=jc.OptimizerConfig(schedule="constant", milestones=(), weight_decay=0.0),
    )
    return jc.override(base, **overrides)


@lru_cache(maxsize=4)
def data(options: Options, validation: int = 0) -> jc.Dataset:
    """Return the data set, with `validation` training images held out."""
    return jc.load_dataset(options.dataset, options.data_dir, validation=validation)


def check_rates(name: str, rates: Sequence[float]) -> None:
    """Check that there are rates, finite and above 0.

    Args:
      name: of the option, for the message.
      rates: its values.

    Raises:
      ArgumentError: if they are not.
    """
    if not rates:
        raise jc.ArgumentError(f"{name} is empty; write --{name} 0.01 0.1 1")
    for rate in rates:
        if not 0 < rate < math.inf:
            raise jc.ArgumentError(
                f"{name} has {rate}; expected finite rates above 0: write --{name} 0.01 0.1 1"
            )


def label(rate: float) -> str:
    """Return a rate as in names of runs and legends."""
    return f"{rate:g}"
