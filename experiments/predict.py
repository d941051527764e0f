"""What a classifier of `experiments.finetune` says of other pictures.

    python -m experiments.predict --run runs/finetune new.jpg other.png
    python -m experiments.predict --run runs/finetune --heat heat.png new.jpg      and where it looks (Grad-CAM)

For each picture the classes that it holds likeliest, with their probabilities; in seconds. A network is sure of itself with
pictures of none of its classes as well: a probability is a share among the classes that it knows.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

import jaxcnn as jc
from experiments.finetune.classifier import Classifier, gradcam_heat, load_classifier, probabilities
from jaxcnn import cli, plots, tables
from jaxcnn.data import load_images


@dataclass(frozen=True)
class Options:
    """What to ask, and about what."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Files: JPEG, PNG, WebP, GIF, BMP or TIFF."""
    preset: Literal["predict"] = "predict"
    run: Path = Path("runs/finetune")
    """The --out of a finetune."""
    top: int = 3
    """How many classes to tell for each picture."""
    heat: Path | None = None
    """A figure to write: each picture, and what speaks for its likeliest class."""


def lines(saved: Classifier, paths: tuple[Path, ...], shares: np.ndarray, top: int) -> list[dict[str, Any]]:
    """A row for each picture: its name, then the likeliest classes."""
    found = []
    for path, share in zip(paths, shares, strict=True):
        best = np.argsort(-share, kind="stable")[:top]
        said = {f"{i}.": f"{saved.classes[c]} {100 * share[c]:.1f}%" for i, c in enumerate(best, 1)}
        found.append({"picture": str(path)} | said)
    return found


def main(args: list[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    with cli.cli_errors():
        options = cli.parse({"predict": Options()}, args, about=__doc__)
        if not options.images:
            raise jc.ArgumentError("no picture is named; write python -m experiments.predict --run DIR picture.jpg")
        if options.top < 1:
            raise jc.ArgumentError(f"top is {options.top}; expected at least 1: write --top 3")
        saved = load_classifier(options.run)
        images = load_images(options.images, saved.size, saved.resize)
        shares = probabilities(saved, images)
        print(tables.markdown(lines(saved, options.images, shares, options.top)), end="")
        if options.heat is not None:
            draw(saved, options.images, images, shares, options.heat)
    return 0


def draw(saved: Classifier, paths: tuple[Path, ...], images: np.ndarray, shares: np.ndarray, out: Path) -> None:
    """The pictures with their heat beside."""
    said = shares.argmax(1)
    looked = gradcam_heat(saved, images, said)
    if looked is None:
        raise jc.ArgumentError(f"{saved.name} keeps no maps for Grad-CAM to look at; leave out --heat")
    captions = [
        f"{saved.classes[c]} ({100 * share[c]:.0f}%)\n{path.name}"
        for path, share, c in zip(paths, shares, said, strict=True)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    plots.save(plots.image_grid(images, captions, heat=looked, columns=3), out)
    print(f"wrote {out}")


if __name__ == "__main__":
    sys.exit(main())
