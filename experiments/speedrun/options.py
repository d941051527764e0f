"""Options of the speed run, their presets and their checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jaxcnn as jc
from experiments._common import FigureOptions

TARGET_ACCURACY = {"cifar10": 94.0}
"""Mean accuracy in percent that the task requires, by data set. Other data sets have none."""


@dataclass(frozen=True)
class Options(FigureOptions):
    """Options of the speed run; `--preset` selects the defaults.

    The defaults of cifar10 are the paper's.
    """

    preset: Literal["short", "digits", "cifar10"] = "cifar10"
    """cifar10: the task. short: the same on a CPU, within two minutes a run. digits: no download, a
    second a run."""
    dataset: str = "cifar10"
    runs: int = 50
    """Number of runs, each from another seed. The task requires at least 50."""
    seed: int = 0
    """Seed of the first run. The next is one more."""
    epochs: float = 9.9
    """Passes over the training images."""
    max_train_examples: int | None = None
    """Training images; None is all."""
    batch_size: int = 1024
    """Images a step."""
    widths: tuple[int, ...] = (64, 256, 256)
    """Channels of each block. Every block halves the image."""
    # The rate on the mean loss is
    # learning_rate * batch_size / 1024 / (1 + 1 / (1 - momentum)).
    learning_rate: float = 11.5
    """Learning rate for the summed loss of 1024 images, with momentum included."""
    momentum: float = 0.85
    weight_decay: float = 0.0153
    """Coefficient of weight decay, in the same units. It does not grow with the rate."""
    bias_rate: float = 64.0
    """Learning rate of BN's biases, as a multiple of --learning-rate."""
    smoothing: float = 0.2
    """Share of a label, in 0..1, that is spread over all classes."""
    whitening_epochs: float = 3.0
    """Epochs for which the whitening layer's bias is trained."""
    whitening_images: int = 5000
    """Training images whose patches are whitened."""
    translate: int = 2
    """Largest shift of a training image, in pixels, with its border mirrored; 0 is none."""
    flip: bool = True
    """Mirror every image in every other epoch. The test averages over mirrored images."""
    views: Literal[0, 1, 2] = 2
    """Views of a test image. 0: one. 1: its mirror image too. 2: both shifted by a pixel too."""
    test_batch: int = 2000
    """Test images in a batch."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Numbers of activations and products. Parameters and BN's statistics are float32. bfloat16 is
    of little use on a CPU without units for it."""
    data_dir: Path | None = None
    out: Path = Path("runs/speedrun")
    plot_only: bool = False


_CIFAR10 = Options()
PRESETS = {
    "cifar10": _CIFAR10,
    "short": replace(
        _CIFAR10,
        preset="short",
        runs=2,
        epochs=2.0,
        batch_size=256,
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
        batch_size=64,
        widths=(16, 32),
        translate=1,
        # A mirrored digit is another one, or none.
        flip=False,
        test_batch=500,
        dtype="float32",
        out=Path("runs/speedrun-digits"),
    ),
}


def presets_for(platform: str) -> Mapping[str, Options]:
    """Return `PRESETS` with the platform's default first.

    That is "short" on a CPU and "cifar10" elsewhere.

    Example:
      >>> next(iter(presets_for("cpu"))), next(iter(presets_for("gpu")))
      ('short', 'cifar10')
    """
    first = "short" if platform == "cpu" else "cifar10"
    return {first: PRESETS[first], **PRESETS}


def check_options(options: Options) -> None:
    """Check the options before anything is compiled.

    Raises:
      ArgumentError: an option is invalid.
    """
    for name in ("runs", "batch_size", "test_batch", "whitening_images"):
        if getattr(options, name) < 1:
            raise jc.ArgumentError(
                f"{name} is {getattr(options, name)}; expected a whole number of at least 1"
            )
    for name in ("learning_rate", "epochs", "bias_rate"):
        if not 0 < getattr(options, name) < math.inf:
            raise jc.ArgumentError(
                f"{name} is {getattr(options, name)}; expected a finite number above 0"
            )
    for name in ("momentum", "smoothing"):
        if not 0 <= getattr(options, name) < 1:
            raise jc.ArgumentError(
                f"{name} is {getattr(options, name)}; expected at least 0 and less than 1"
            )
    for name in ("seed", "translate", "weight_decay", "whitening_epochs"):
        if not 0 <= getattr(options, name) < math.inf:
            raise jc.ArgumentError(
                f"{name} is {getattr(options, name)}; expected a finite number of at least 0"
            )
    if not options.widths or min(options.widths) < 1:
        raise jc.ArgumentError(
            f"widths is {options.widths}; expected channels of at least one block: "
            "write --widths 64 256"
        )


def check_dataset(options: Options, data: jc.Dataset) -> None:
    """Check the options against the number and the size of the images.

    Raises:
      ArgumentError: an option is invalid for these images.
    """
    (n, height, width, _), blocks = data.train.images.shape, len(options.widths)
    if options.batch_size > n:
        raise jc.ArgumentError(
            f"batch_size is {options.batch_size}, more than the {n} training images; "
            f"write --batch-size {min(128, n)}"
        )
    # The whitening takes one pixel of a side, and each block leaves half of it, rounded down.
    side = min(height, width)
    max_blocks = (side - 1).bit_length() - 1 if side > 1 else 0
    if (side - 1) >> blocks < 1:
        widths = " ".join(map(str, options.widths[:max_blocks])) or "of fewer blocks"
        raise jc.ArgumentError(
            f"widths has {blocks} blocks, each of which halves the image, "
            f"and {height} x {width} pixels allow {max_blocks}; write --widths {widths}"
        )
    if options.translate >= side:
        raise jc.ArgumentError(
            f"translate is {options.translate}; "
            f"expected less than the {side} pixels of an image's side"
        )
