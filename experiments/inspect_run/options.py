"""What can be chosen, and what of it can be told to be a mistake before the run is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jaxcnn as jc
from jaxcnn.recipe import check_choice

PARTS = ("about", "curves", "errors", "filters", "features", "channels", "heat")
"""In the order of the page; each is a module here, with a function `section`."""
RUN = Path("runs/depth/resnet20-seed0")
FILE = "index.html"


@dataclass(frozen=True)
class Options:
    """Every setting of the page."""

    preset: Literal["look"] = "look"
    run: Path = RUN
    """The folder of one run, with config.json and checkpoints."""
    images: int | None = None
    """Judge the first so many images of the split that the run reports; None is 500, or all if there are fewer."""
    image: Path | None = None
    """A picture of one's own to ask about as well: JPEG, PNG, WebP, GIF, BMP or TIFF."""
    stages: tuple[str, ...] = ()
    """Of the network, to show maps of; none named is all."""
    parts: tuple[str, ...] = PARTS
    """Sections to make."""
    data_dir: Path | None = None
    """Where to look for data first."""
    out: Path | None = None
    """A folder; None is runs/look/<study>-<run>."""


def check(options: Options) -> None:
    """ArgumentError for what is wrong with the options by themselves."""
    if options.images is not None and options.image is not None:
        raise jc.ArgumentError(
            "--images and --image exclude each other: write --image for your own picture, or --images 500"
        )
    if options.images is not None and options.images < 1:
        raise jc.ArgumentError(f"images is {options.images}; expected at least 1: write --images 500")
    if not options.parts:
        raise jc.ArgumentError(f"parts is empty; write --parts with some of {' '.join(PARTS)}")
    for part in options.parts:
        check_choice("part", part, PARTS)
    _own(folder(options))
    if options.run == RUN and not RUN.exists():
        raise jc.ArgumentError(
            f"{RUN} is not there: make it with python -m experiments.depth (2.5 minutes), or write --run with a run's folder"
        )


def _own(out: Path) -> None:
    """ArgumentError for a folder that cannot be made, or whose tables are another script's."""
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir():
        raise jc.ArgumentError(f"{there} is a file; write --out with a folder")
    taken = [name for name in ("config.json", "table.csv") if (out / name).exists()]
    if taken and not (out / FILE).exists():
        raise jc.ArgumentError(f"{out} has the {taken[0]} of something else; write --out with a folder of its own")


def folder(options: Options) -> Path:
    """Where the page goes.

    Example:
      >>> image_folder(Options(run=Path("runs/mnist/lenet5-seed0"))).as_posix()
      'runs/look/mnist-lenet5-seed0'
    """
    run = options.run.resolve()
    return options.out or Path("runs/look", f"{run.parent.name}-{run.name}".lstrip("-"))
