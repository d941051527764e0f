"""The settings of the benchmark, the networks it knows, and what is wrong with settings before anything is compiled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jaxcnn as jc
from jaxcnn import parallel
from jaxcnn.recipe import check_choice

Form = Literal["eager", "channels_last", "compile", "max-autotune"]
Shape = tuple[int, int, int]

CIFAR, IMAGENET = (32, 32, 3), (224, 224, 3)
NETWORKS: dict[str, Shape] = {"lenet5-relu": (28, 28, 1)}
"""name -> shape of an image [h, w, c]; 1000 classes at 224x224, 10 elsewhere."""
NETWORKS |= {f"{family}{depth}": CIFAR for depth in (20, 56, 110) for family in ("plain", "resnet")}
NETWORKS |= {"vgg11-32": CIFAR, "vgg16-32": CIFAR, "resnet18": IMAGENET, "resnet50": IMAGENET}
BATCH, SMALL = 128, 16
"""Images a step; the second is of 224x224 pixels on a CPU."""


@dataclass(frozen=True)
class Options:
    """Every setting; `--preset` chooses the defaults."""

    preset: Literal["quick", "full"] = "quick"
    """full: all networks, more rounds."""
    networks: tuple[str, ...] = ("lenet5-relu", "resnet20", "plain20", "vgg11-32")
    """Of lenet5-relu, plain20, plain56, plain110, resnet20, resnet56, resnet110, vgg11-32, vgg16-32, resnet18, resnet50."""
    batch: int | None = None
    """Images a step, over all devices; None is 128, and 16 of 224x224 pixels on a CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations."""
    strategy: Literal["auto", "jit", "pmap"] = "auto"
    devices: int | None = None
    """None is all."""
    rounds: int = 5
    """In each everything is measured once, in turns."""
    seconds: float = 1.0
    """About so long is one measurement; of a network slower than that it is one step."""
    torch: bool = True
    """Measure PyTorch too, where it is installed."""
    forms: tuple[Form, ...] = ("eager", "channels_last", "compile")
    """Of PyTorch. compile is in channels_last, and on a GPU with CUDA graphs; max-autotune takes minutes to compile."""
    out: Path = Path("runs/benchmark")


PRESETS = {
    "quick": Options(),
    "full": Options(preset="full", networks=tuple(NETWORKS), rounds=7, seconds=2.0, out=Path("runs/benchmark-full")),
}


def check(options: Options, strategy: parallel.Strategy) -> None:
    """ArgumentError for a mistake, before anything is compiled."""
    for name, usual in (("networks", "resnet20 vgg11-32"), ("forms", "eager channels_last")):
        if not getattr(options, name):
            raise jc.ArgumentError(f"{name} is empty; write --{name} {usual}")
    for name in options.networks:
        check_choice("network", name, NETWORKS)
    if options.rounds < 1:
        raise jc.ArgumentError(f"rounds is {options.rounds}; expected at least 1: write --rounds 5")
    if not 0 < options.seconds < math.inf:
        raise jc.ArgumentError(f"seconds is {options.seconds}; expected a finite number above 0: write --seconds 1")
    if options.batch is not None and options.batch < 1:
        raise jc.ArgumentError(f"batch is {options.batch}; expected at least 1: write --batch 128")
    for name in options.networks:
        strategy.check(batch(options, name, strategy))


def batch(options: Options, name: str, strategy: parallel.Strategy) -> int:
    """Images a step of this network."""
    if options.batch is not None:
        return options.batch
    return SMALL if NETWORKS[name] == IMAGENET and strategy.devices[0].platform == "cpu" else BATCH
