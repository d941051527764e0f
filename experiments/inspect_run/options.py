"""Options of the page, and the checks that need no run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jaxcnn as jc
from jaxcnn import cli
from jaxcnn.config import check_choice

PARTS = ("about", "curves", "errors", "filters", "features", "channels", "heat")
"""Parts in the order of the page, as in `__main__.SECTIONS`."""
RUN = Path("runs/depth/resnet20-seed0")
"""Default run."""
FILE = "index.html"
"""Name of the page's file."""


@dataclass(frozen=True)
class Options:
    """Every setting of the page."""

    preset: Literal["look"] = "look"
    run: Path = RUN
    """Folder of one run, with config.json and checkpoints."""
    images: int | None = None
    """Number of images to evaluate, the first of the reported split.

    None is 500, or all if there are fewer.
    """
    image: Path | None = None
    """Image of your own to classify as well.

    It is a JPEG, PNG, WebP, GIF, BMP or TIFF.
    """
    stages: tuple[str, ...] = ()
    """Stages of the network whose maps are shown; none named is all."""
    parts: tuple[str, ...] = PARTS
    """Sections to make."""
    data_dir: Path | None = None
    """Folder where data are looked for first."""
    out: Path | None = None
    """Output folder; None is runs/look/<study>-<run>."""


def check(options: Options) -> None:
    """Check the options by themselves.

    Raises:
      ArgumentError: an option is invalid.
    """
    if options.images is not None and options.image is not None:
        raise jc.ArgumentError(
            "--images and --image exclude each other: write --image for your own picture, or "
            "--images 500"
        )
    if options.images is not None and options.images < 1:
        raise jc.ArgumentError(
            f"images is {options.images}; expected at least 1: write --images 500"
        )
    if not options.parts:
        raise jc.ArgumentError(f"parts is empty; write --parts with some of {' '.join(PARTS)}")
    for part in options.parts:
        check_choice("part", part, PARTS)
    _check_folder(output_folder(options))
    if options.run == RUN and not RUN.exists():
        raise jc.ArgumentError(
            f"{RUN} is not there: make it with python -m experiments.depth (2.5 minutes), or write "
            "--run with a run's folder"
        )


def _check_folder(out: Path) -> None:
    """Check that the folder can hold the page.

    Raises:
      ArgumentError: it cannot be made, or holds tables of another script.
    """
    cli.check_output_folder(out)
    names = [name for name in ("config.json", "table.csv") if (out / name).exists()]
    if names and not (out / FILE).exists():
        raise jc.ArgumentError(
            f"{out} has the {names[0]} of something else; write --out with a folder of its own"
        )


def output_folder(options: Options) -> Path:
    """Return where the page is written.

    Example:
      >>> output_folder(Options(run=Path("runs/mnist/lenet5-seed0"))).as_posix()
      'runs/look/mnist-lenet5-seed0'
    """
    run = options.run.resolve()
    return options.out or Path("runs/look", f"{run.parent.name}-{run.name}".lstrip("-"))
