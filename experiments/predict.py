"""Predictions of a classifier of `experiments.finetune` for other images.

    python -m experiments.predict --run runs/finetune new.jpg other.png
    python -m experiments.predict --run runs/finetune --heat heat.png new.jpg    with a Grad-CAM map

It prints the likeliest classes of each image with their probabilities, in seconds. A network is
confident with images of none of its classes as well: a probability is a share among the classes
that it was trained on.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import tyro
from matplotlib.backend_bases import FigureCanvasBase

import jaxcnn as jc
from experiments.finetune.classifier import Classifier, gradcam_heat, load_classifier, probabilities
from jaxcnn import cli, plots, tables
from jaxcnn.config import format_value
from jaxcnn.data import load_images


@dataclass(frozen=True)
class Options:
    """Images, and the network that classifies them."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Files: JPEG, PNG, WebP, GIF, BMP or TIFF."""
    preset: Literal["predict"] = "predict"
    run: Path = Path("runs/finetune")
    """The --out of a finetune."""
    top: int = 3
    """Number of classes to print for each image."""
    heat: Path | None = None
    """A figure to write: each image, and the evidence for its likeliest class."""


def lines(
    saved: Classifier, paths: tuple[Path, ...], shares: np.ndarray, top: int
) -> list[dict[str, Any]]:
    """Return a row for each image: its path, then the likeliest classes.

    Args:
      saved: the network.
      paths: n files.
      shares: probabilities, float [n, num_classes].
      top: number of classes.
    """
    table = []
    for path, share in zip(paths, shares, strict=True):
        # Stable, so that classes of equal probability are in the order of their numbers.
        best = np.argsort(-share, kind="stable")[:top]
        cells = {
            f"{i}.": f"{saved.classes[c]} {100 * share[c]:.1f}%" for i, c in enumerate(best, 1)
        }
        table.append({"picture": str(path)} | cells)
    return table


def draw(
    saved: Classifier, paths: tuple[Path, ...], images: np.ndarray, shares: np.ndarray, out: Path
) -> None:
    """Write a figure of the images next to their Grad-CAM maps.

    Args:
      saved: the network.
      paths: n files.
      images: their content, as `jaxcnn.data.load_images` returns it.
      shares: probabilities, float [n, num_classes].
      out: file of the figure.

    Raises:
      ArgumentError: if the network has no maps for Grad-CAM.
    """
    predictions = shares.argmax(1)
    maps = gradcam_heat(saved, images, predictions)
    if maps is None:
        raise jc.ArgumentError(
            f"{saved.name} keeps no maps for Grad-CAM to look at; leave out --heat"
        )
    captions = [
        f"{saved.classes[c]} ({100 * share[c]:.0f}%)\n{path.name}"
        for path, share, c in zip(paths, shares, predictions, strict=True)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    plots.save(plots.image_grid(images, captions, heat=maps, columns=3), out)
    print(f"wrote {out}")


def check_figure(path: Path) -> Path:
    """Return the file that a figure is written to; create nothing.

    Args:
      path: value of --heat. Without an extension it is a PNG.

    Raises:
      ArgumentError: the format is unknown, or no such file can be written.
    """
    if path.is_dir():
        raise jc.ArgumentError(
            f"heat is {format_value(str(path))}, a folder; expected a file: "
            f"write --heat {shlex.quote(str(path / 'heat.png'))}"
        )
    formats = set(FigureCanvasBase.get_supported_filetypes())
    if shutil.which(matplotlib.rcParams["pgf.texsystem"]) is None:
        formats -= {"pgf"}
    extension = path.suffix[1:].lower()
    if extension and extension not in formats:
        raise jc.ArgumentError(
            f"heat is {format_value(str(path))}; expected a file of {', '.join(sorted(formats))}: "
            f"write --heat {shlex.quote(str(path.with_suffix('.png')))}"
        )
    if not extension:
        path = path.with_name(f"{path.name.rstrip('.')}.png")
    cli.check_output_folder(path.parent, "--heat", "a file in a folder")
    if path.exists() and (path.is_dir() or not os.access(path, os.W_OK)):
        raise jc.ArgumentError(
            f"heat is {format_value(str(path))}, which cannot be written; expected a file: "
            "write --heat with another name"
        )
    return path


def main(args: list[str] | None = None) -> int:
    """Print the table; return the exit code."""
    with cli.cli_errors():
        options = cli.parse({"predict": Options()}, args, description=__doc__)
        if not options.images:
            raise jc.ArgumentError(
                "no picture is named; write python -m experiments.predict --run DIR picture.jpg"
            )
        if options.top < 1:
            raise jc.ArgumentError(f"top is {options.top}; expected at least 1: write --top 3")
        heat = None if options.heat is None else check_figure(options.heat)
        saved = load_classifier(options.run)
        images = load_images(
            options.images, saved.size, saved.resize, interpolation=saved.interpolation
        )
        shares = probabilities(saved, images)
        print(tables.compact_markdown(lines(saved, options.images, shares, options.top)), end="")
        if heat is not None:
            draw(saved, options.images, images, shares, heat)
    return 0


if __name__ == "__main__":
    sys.exit(main())
