"""The settings, their presets, and what is refused before anything is compiled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jaxcnn as jc

TARGET = {"cifar10": 94.0}
"""Mean accuracy, percent, that the task asks for; other data sets have no such number."""


@dataclass(frozen=True)
class Options:
    """Every setting; `--preset` chooses the defaults. Those of cifar10 are the paper's."""

    preset: Literal["short", "digits", "cifar10"] = "cifar10"
    """cifar10: the task. short: the same on a CPU, within two minutes a run. digits: no download, a second a run."""
    dataset: str = "cifar10"
    """cifar10, cifar100, svhn_cropped, digits, ..."""
    runs: int = 50
    """Each from another seed; the task asks for at least 50."""
    seed: int = 0
    """Of the first run; the next is one more."""
    epochs: float = 9.9
    examples: int | None = None
    """Training images kept; None is all."""
    batch: int = 1024
    widths: tuple[int, ...] = (64, 256, 256)
    """Channels of each block; every block halves the image."""
    lr: float = 11.5
    """For 1024 images, momentum counted in: the rate on the mean loss is lr * batch / 1024 / (1 + 1 / (1 - momentum))."""
    momentum: float = 0.85
    decay: float = 0.0153
    """Of the weights, in the same units; it does not grow with the rate."""
    bias_rate: float = 64.0
    """Rate of BN's biases, as a multiple of --lr."""
    smoothing: float = 0.2
    """Share of a label that is spread over all classes."""
    whitening_epochs: float = 3.0
    """For which the whitening layer's bias is trained."""
    whitening_images: int = 5000
    """Training images whose patches are whitened."""
    translate: int = 2
    """Pixels that a training image is moved by at most, its border mirrored; 0 is none."""
    flip: bool = True
    """Mirror every image in every other epoch, and average over mirrored images in test."""
    views: Literal[0, 1, 2] = 2
    """Of a test image. 0: one. 1: and its mirror image. 2: and both moved by a pixel up left and down right."""
    test_batch: int = 2000
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of activations and products; parameters and BN's statistics are float32. Of little use to a CPU without bfloat16."""
    data_dir: Path | None = None
    """Where to look for data first."""
    out: Path = Path("runs/speedrun")
    plot_only: bool = False
    """Draw table and figure from the runs that OUT holds, and train nothing."""


_CIFAR10 = Options()
PRESETS = {
    "cifar10": _CIFAR10,
    "short": replace(
        _CIFAR10,
        preset="short",
        runs=2,
        epochs=2.0,
        batch=256,
        widths=(16, 64, 64),
        views=1,
        test_batch=500,
        out=Path("runs/speedrun-short"),
    ),
    "digits": replace(
        _CIFAR10,
        preset="digits",
        dataset="digits",
        runs=5,
        epochs=20.0,
        batch=64,
        widths=(16, 32),
        translate=1,
        flip=False,  # a mirrored digit is another one, or none
        test_batch=500,
        dtype="float32",
        out=Path("runs/speedrun-digits"),
    ),
}


def presets(platform: str) -> Mapping[str, Options]:
    """`PRESETS` with the default first: "short" where `platform` is a CPU.

    Example:
      >>> next(iter(presets("cpu"))), next(iter(presets("gpu")))
      ('short', 'cifar10')
    """
    first = "short" if platform == "cpu" else "cifar10"
    return {first: PRESETS[first], **PRESETS}


def check(options: Options) -> None:
    """ArgumentError for a setting that cannot be meant."""
    for name in ("runs", "batch", "test_batch", "whitening_images"):
        if getattr(options, name) < 1:
            raise jc.ArgumentError(f"{name} is {getattr(options, name)}; expected a whole number of at least 1")
    for name in ("lr", "epochs", "bias_rate"):
        if not 0 < getattr(options, name) < math.inf:
            raise jc.ArgumentError(f"{name} is {getattr(options, name)}; expected a finite number above 0")
    for name in ("momentum", "smoothing"):
        if not 0 <= getattr(options, name) < 1:
            raise jc.ArgumentError(f"{name} is {getattr(options, name)}; expected at least 0 and less than 1")
    for name in ("seed", "translate", "decay", "whitening_epochs"):
        if not 0 <= getattr(options, name) < math.inf:
            raise jc.ArgumentError(f"{name} is {getattr(options, name)}; expected a finite number of at least 0")
    if not options.widths or min(options.widths) < 1:
        raise jc.ArgumentError(
            f"widths is {options.widths}; expected channels of at least one block: write --widths 64 256"
        )


def fits(options: Options, data: jc.Dataset) -> None:
    """ArgumentError for settings that these images do not allow."""
    (n, height, width, _), blocks = data.train.images.shape, len(options.widths)
    if options.batch > n:
        raise jc.ArgumentError(
            f"batch is {options.batch}, more than the {n} training images; write --batch {min(128, n)}"
        )
    side = min(height, width)
    most = (side - 1).bit_length() - 1 if side > 1 else 0
    if (side - 1) >> blocks < 1:
        raise jc.ArgumentError(
            f"widths has {blocks} blocks, each of which halves the image, and {height} x {width} pixels allow {most}; "
            f"write --widths {' '.join(map(str, options.widths[:most])) or 'of fewer blocks'}"
        )
    if options.translate >= side:
        raise jc.ArgumentError(
            f"translate is {options.translate}; expected less than the {side} pixels of an image's side"
        )
