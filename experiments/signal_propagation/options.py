"""The settings of all parts and their presets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import jaxcnn as jc

Part = Literal["start", "end", "path"]


@dataclass(frozen=True)
class Options:
    """Every setting; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist", "cifar10"] = "quick"
    parts: tuple[Part, ...] = ("start", "end", "path")
    runs: Path = Path("runs/depth")
    """Of end and path: the folder that the depth study left."""
    depths: tuple[int, ...] = ()
    """Of the runs; none given is all that are there."""
    seeds: int = 1
    """Runs of each network that are looked at, and networks of each kind at the start; the figures show the first."""
    images: int = 128
    """Training images (not augmented), one batch."""
    mode: Literal["train", "test"] = "train"
    """Of std and rank in end: BN by the moments of these images, or by its moving averages. Gradients are of training."""
    counterparts: bool = True
    """Train a run without BN beside each of the runs."""
    rates: tuple[float, ...] = (0.05, 0.005)
    """Without BN: those tried, the best of which is taken."""
    trial_steps: int = 30
    """The second half of these is what counts."""
    states: int = 6
    """Of path: as many of each run at most, evenly chosen."""
    keep_every: int = 25
    """Without BN: keep the states at multiples of this; the depth study's own is right."""
    start_depths: tuple[int, ...] = (20, 32, 44, 56, 110)
    """Of start, which trains nothing."""
    dataset: str = "digits"
    """Of start."""
    width: int = 8
    """Of start: filters of the first stage."""
    strategy: Literal["auto", "pmap", "jit"] = "auto"
    data_dir: Path | None = None
    """Where to look for data first."""
    out: Path = Path("runs/signals")
    plot_only: bool = False
    """Draw from what OUT holds; train and measure nothing."""


# fmt: off
PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist", dataset="mnist", runs=Path("runs/depth-mnist"), rates=(0.05, 0.005, 0.0005), trial_steps=100,
        keep_every=50, out=Path("runs/signals-mnist"),
    ),
    "cifar10": Options(
        preset="cifar10", dataset="cifar10", width=16, runs=Path("runs/depth-paper"), rates=(0.1, 0.01, 0.001),
        trial_steps=1000, keep_every=7_820, out=Path("runs/signals-cifar10"),
    ),
}
# fmt: on


@lru_cache(maxsize=4)
def data(name: str, data_dir: Path | None, validation: int) -> jc.Dataset:
    """The data set, with `validation` training images held out."""
    return jc.load_dataset(name, data_dir, validation=validation)
