"""Options of all parts, their presets, and the networks that are measured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jaxcnn as jc
from experiments._common import DeviceOptions, FigureOptions, SeedOptions
from experiments.depth import MAKES

Part = Literal["start", "end", "path"]


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist", "cifar10"] = "quick"
    """quick: the depth study's runs on digits. mnist and cifar10: those of these data sets."""
    parts: tuple[Part, ...] = ("start", "end", "path")
    """Parts to measure."""
    runs: Path = Path("runs/depth")
    """Folder of a depth study, for end and path."""
    depths: tuple[int, ...] = ()
    """Layers of the runs; none is all that are there."""
    num_seeds: int = 1
    """Runs, or untrained networks, of each kind. Figures show the first."""
    images: int = 128
    """Training images, not augmented, in one batch."""
    mode: Literal["train", "test"] = "train"
    """BN in end, for std and rank: by the moments of these images, or by its moving averages.
    Gradients are in training mode."""
    counterparts: bool = True
    """Train a run without BN next to each of the runs."""
    rates: tuple[float, ...] = (0.05, 0.005)
    """Learning rates to try without BN; the best is used."""
    trial_steps: int = 30
    """Steps of a trial; the loss of the second half decides."""
    states: int = 6
    """Most states of each run in path, evenly spaced."""
    keep_every: int = 25
    """Steps between states to keep, of runs without BN; best the depth study's own value."""
    start_depths: tuple[int, ...] = (20, 32, 44, 56, 110)
    """Layers of start's networks, which are not trained."""
    dataset: str = "digits"
    """Data set of start."""
    width: int = 8
    """Filters of the first stage in start."""
    data_dir: Path | None = None
    out: Path = Path("runs/signals")
    plot_only: bool = False
    """Draw from what --out holds; train and measure nothing."""


PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist",
        dataset="mnist",
        runs=Path("runs/depth-mnist"),
        rates=(0.05, 0.005, 0.0005),
        trial_steps=100,
        keep_every=50,
        out=Path("runs/signals-mnist"),
    ),
    "cifar10": Options(
        preset="cifar10",
        dataset="cifar10",
        width=16,
        runs=Path("runs/depth-paper"),
        rates=(0.1, 0.01, 0.001),
        trial_steps=1000,
        keep_every=7_820,
        out=Path("runs/signals-cifar10"),
    ),
}


@lru_cache(maxsize=4)
def load_data(name: str, data_dir: Path | None, validation: int) -> jc.Dataset:
    """Return the data set, with `validation` training images held out."""
    return jc.load_dataset(name, data_dir, validation=validation)


class Network(NamedTuple):
    """Plain or residual network, ordered as in legends."""

    residual: bool
    depth: int
    batch_norm: bool
    seed: int

    @property
    def label(self) -> str:
        """Return its name in the paper."""
        return f"{'ResNet' if self.residual else 'plain'}-{self.depth}"

    @property
    def kind(self) -> str:
        """Return what networks of all depths have in common."""
        return (
            f"{'residual' if self.residual else 'plain'}, "
            f"{'with' if self.batch_norm else 'without'} BN"
        )


def parse_network(config: jc.ExperimentConfig) -> Network | None:
    """Return the network of a config, or None for another architecture.

    It is a plain or residual network of section 4.2 of He et al. 2015.
    """
    match = re.fullmatch(r"(?:cifar-)?(plain|resnet)(\d+)", config.model)
    if not match or not hasattr(jc.create_model(config.model, 2), "blocks"):
        return None
    return Network(
        match[1] == "resnet",
        int(match[2]),
        config.model_kwargs.get("batch_norm", True),
        config.train.seed,
    )


def untrained_configs(options: Options) -> dict[str, jc.ExperimentConfig]:
    """Return name -> config of every network to measure before training."""
    configs = {}
    for depth in options.start_depths:
        for family in ("plain", "resnet"):
            for batch_norm in (True, False):
                for seed in options.run_seeds():
                    name = f"{family}{depth}{'' if batch_norm else '-without'}-seed{seed}"
                    augment = jc.AugmentConfig(padding=4, flip=True)
                    configs[name] = jc.ExperimentConfig(
                        dataset=options.dataset,
                        model=f"cifar-{family}{depth}",
                        model_kwargs={"width": options.width, "batch_norm": batch_norm},
                        train=jc.TrainConfig(augment=augment, seed=seed),
                    )
    return configs


def run_configs(options: Options) -> dict[Path, jc.ExperimentConfig]:
    """Return folder -> config of every run to measure.

    These are the requested depths and seeds, or the first seeds that there are.

    Raises:
      ArgumentError: there is none. The message has the command that makes them.
    """
    command = f"{MAKES[options.preset]} --out {options.runs}"
    folders = [
        path.parent
        for path in options.runs.glob("*/config.json")
        if (path.parent / "checkpoints").is_dir()
    ]
    configs = {folder: jc.ExperimentConfig.load(folder) for folder in folders}
    networks = {
        folder: network
        for folder, config in configs.items()
        if (network := parse_network(config)) and network.batch_norm
    }
    if not networks:
        raise jc.ArgumentError(
            f"{options.runs} holds no run of a plain or residual network; make them: {command}"
        )
    depths = sorted({network.depth for network in networks.values()})
    for depth in set(options.depths) - set(depths):
        available = ", ".join(map(str, depths))
        raise jc.ArgumentError(
            f"{options.runs} has depths {available}, not {depth}; make it: {command} --depths "
            f"{depth}"
        )
    for seed in set(options.seeds) - {network.seed for network in networks.values()}:
        raise jc.ArgumentError(
            f"{options.runs} has no run of seed {seed}; make it: {command} --seeds {seed}"
        )
    seeds: dict[Any, list[int]] = {}
    for network in sorted(networks.values()):
        seeds.setdefault(network.label, []).append(network.seed)
    return {
        folder: configs[folder]
        for folder, network in sorted(networks.items(), key=lambda item: item[1])
        if network.depth in (options.depths or depths)
        and network.seed in (options.seeds or seeds[network.label][: options.num_seeds])
    }


def without_batch_norm(config: jc.ExperimentConfig, rate: float) -> jc.ExperimentConfig:
    """Return the config of the same run without BN, at another rate.

    The rate holds from the first step on.
    """
    return jc.override(
        config,
        model_kwargs=dict(config.model_kwargs) | {"batch_norm": False},
        learning_rate=rate,
        warmup_lr=None,
        recompute_batch_stats=0,
    )
