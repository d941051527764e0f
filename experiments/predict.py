"""Predictions of a classifier of `experiments.finetune`, or of a run, for other images.

    python -m experiments.predict --run runs/finetune new.jpg other.png
    python -m experiments.predict --run runs/finetune --csv table.csv --skip-broken my_folder
    python -m experiments.predict --run runs/finetune --heat heat.png new.jpg    with a Grad-CAM map

A folder stands for all images in it and in its subfolders, sorted by their paths. The CSV has the
path, the likeliest class and the probability of every class, `p(NAME)`.

It prints the likeliest classes of each image with their probabilities, in seconds. A network is
confident with images of none of its classes as well: a probability is a share among the classes
that it was trained on.
"""

from __future__ import annotations

import csv
import io
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import tyro
from matplotlib.backend_bases import FigureCanvasBase

import jaxcnn as jc
from experiments._options import parse_options
from experiments.finetune.results import gradcam_heat
from jaxcnn import cli, plots, tables
from jaxcnn.classifier import Classifier, load_classifier
from jaxcnn.config import format_value
from jaxcnn.data import ImageError, image_files
from jaxcnn.data.image_io import format_broken
from jaxcnn.run_log import write_text

MAX_HEAT = 100
"""Most images of a figure."""


@dataclass(frozen=True)
class Options:
    """Images, and the network that classifies them."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files (JPEG, PNG, WebP, GIF, BMP, TIFF) and folders of them."""
    preset: Literal["predict"] = "predict"
    run: Path = Path("runs/finetune")
    """The --out of a finetune, or the folder of a classifier's run on a data set by name."""
    top: int = 3
    """Classes to print for each image."""
    skip_broken: bool = False
    """Name files that cannot be read and leave them out, instead of predicting none."""
    csv: Path | None = None
    """Table to write, with the class and all probabilities of each image; None is none."""
    heat: Path | None = None
    """Figure to write, with the evidence for each image's likeliest class; None is none."""


def lines(
    saved: Classifier, paths: Sequence[Path], shares: np.ndarray, top: int
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
        table.append({"image": str(path)} | cells)
    return table


def list_files(images: Sequence[Path]) -> list[Path]:
    """Return the files of the command line, with those in its folders.

    Raises:
      DataError: a folder has no images, or cannot be read.
    """
    return [file for path in images for file in (image_files(path) if path.is_dir() else [path])]


def csv_text(classes: Sequence[str], paths: Sequence[Path], shares: np.ndarray) -> str:
    """Return the predictions as a CSV with a header.

    A relative path that begins with a sign has `./` before it, as spreadsheets compute what begins
    with one. Bytes of a name that are not UTF-8 become escapes.

    Args:
      classes: names of classes.
      paths: n files.
      shares: probabilities, float [n, num_classes].

    Example:
      >>> print(csv_text(["a", "b"], [Path("=x,.jpg")], np.array([[0.25, 0.75]])))
      path,class,p(a),p(b)
      "./=x,.jpg",b,0.25,0.75
      <BLANKLINE>
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["path", "class", *(f"p({name})" for name in classes)])
    for path, share in zip(paths, shares, strict=True):
        text = str(path).encode("utf-8", "backslashreplace").decode()
        text = f"./{text}" if text[0] in "=+-@\t\r" else text
        writer.writerow([text, classes[share.argmax()], *(f"{value:.9g}" for value in share)])
    return buffer.getvalue()


def draw(
    saved: Classifier, paths: Sequence[Path], images: np.ndarray, shares: np.ndarray, out: Path
) -> None:
    """Write a figure of the images next to their Grad-CAM maps.

    Args:
      saved: the network.
      paths: n files.
      images: their content, as `Classifier.preprocess` returns it.
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
    label = "Grad-CAM (share of the image's maximum)"
    out.parent.mkdir(parents=True, exist_ok=True)
    plots.save(plots.image_grid(images, captions, heat=maps, heat_label=label, columns=3), out)
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


def check_csv(path: Path) -> Path:
    """Return the file that the CSV is written to; create nothing.

    Raises:
      ArgumentError: it has another suffix, or no such file can be written.
    """
    # Another suffix may be that of an image, which would be overwritten.
    if path.suffix.lower() != ".csv" or path.is_dir():
        raise jc.ArgumentError(
            f"csv is {format_value(str(path))}; expected a file: write --csv "
            f"{shlex.quote(str(path / 'table.csv' if path.is_dir() else path.with_suffix('.csv')))}"
        )
    cli.check_output_folder(path.parent, "--csv", "a file in a folder")
    if path.exists() and not os.access(path, os.W_OK):
        raise jc.ArgumentError(
            f"csv is {format_value(str(path))}, which cannot be written; expected a file: "
            "write --csv with another name"
        )
    return path


def main(args: list[str] | None = None) -> int:
    """Print the table; return the exit code."""
    with cli.cli_errors():
        options = parse_options({"predict": Options()}, args, description=__doc__)
        if not options.images:
            raise jc.ArgumentError(
                "no image is named; write python -m experiments.predict --run DIR image.jpg"
            )
        if options.top < 1:
            raise jc.ArgumentError(f"top is {options.top}; expected at least 1: write --top 3")
        heat = None if options.heat is None else check_figure(options.heat)
        table = None if options.csv is None else check_csv(options.csv)
        saved = load_classifier(options.run)
        files = list_files(options.images)
        if heat is not None and len(files) > MAX_HEAT:
            raise jc.ArgumentError(
                f"--heat draws {MAX_HEAT} images at most, and there are {len(files)}; name "
                "fewer, or leave out --heat"
            )
        result = saved.predict_files(files)
        if result.broken and not (options.skip_broken and result.paths):
            raise ImageError(result.broken, "fix or delete what is named, or write --skip-broken")
        if result.broken:
            print(f"skipped: {format_broken(result.broken)}", file=sys.stderr)
        paths, shares = result.paths, result.probabilities
        print(tables.compact_markdown(lines(saved, paths, shares, options.top)), end="")
        if table is not None:
            table.parent.mkdir(parents=True, exist_ok=True)
            write_text(table, csv_text(saved.classes, paths, shares))
            print(f"wrote {table}")
        if heat is not None:
            draw(saved, paths, saved.preprocess(paths), shares, heat)
    return 0


if __name__ == "__main__":
    sys.exit(main())
