"""The settings of all parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jaxcnn as jc

Part = Literal["arithmetic", "compiled", "wire"]


@dataclass(frozen=True)
class Options:
    """Every setting; there is one preset."""

    preset: Literal["quick"] = "quick"
    parts: tuple[Part, ...] = ("arithmetic", "compiled", "wire")
    """Which to do again; what the others left in OUT is kept."""
    depths: tuple[int, ...] = (20, 32, 56, 110, 152)
    """Of the ResNets on paper, each 6 n + 2."""
    most: int = 1024
    """Devices on paper: 1, 2, 4, ... up to this power of two."""
    network: str = "resnet8"
    """What is compiled and run."""
    width: int = 4
    """Filters of its first stage."""
    batch: int = 32
    """Images in a step of it, over all devices."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Simulated ones when it is compiled, processes when it is run: divisors of the batch."""
    steps: int = 10
    """Between two readings of the clock."""
    rounds: int = 5
    """Readings of everything, in turn."""
    out: Path = Path("runs/scaling")
    plot_only: bool = False
    """Draw tables and figures from what OUT holds, and measure nothing."""


def check(options: Options) -> None:
    """ArgumentError for a mistake, before anything is compiled."""
    for name, usual in (("parts", "arithmetic compiled wire"), ("depths", "20 56"), ("devices", "1 2 4 8")):
        if not getattr(options, name):
            raise jc.ArgumentError(f"{name} is empty; write --{name} {usual}")
    for name, usual in (("steps", 10), ("rounds", 5), ("batch", 32), ("most", 1024)):
        if getattr(options, name) < 1:
            raise jc.ArgumentError(f"{name} is {getattr(options, name)}; expected at least 1: write --{name} {usual}")
    for count in options.devices:
        if count < 1 or options.batch % count:
            raise jc.ArgumentError(
                f"devices has {count}, which does not divide the batch of {options.batch}; write --devices 1 2 4 8"
            )
    for depth in options.depths:
        jc.create_model(f"cifar-resnet{depth}", 10)
    jc.create_model(options.network, 10, width=options.width)
