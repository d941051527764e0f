"""`python -m experiments.inspect_run`: read a run, make the parts of the page, and write it with its figures."""

from __future__ import annotations

import importlib
import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import experiments.inspect_run as about
from experiments.inspect_run import page
from experiments.inspect_run.about import facts
from experiments.inspect_run.errors import BINS, judged
from experiments.inspect_run.options import FILE, PARTS, Options, check, folder
from experiments.inspect_run.reading import see
from experiments.inspect_run.seen import Section, Seen
from jaxcnn import cli, plots, tables
from jaxcnn.calibration import calibration
from jaxcnn.progress import Progress
from jaxcnn.run_log import write_text


def main(args: list[str] | None = None) -> int:
    """Write the page; returns the exit code."""
    with cli.cli_errors():
        options = cli.parse({"look": Options()}, args, about=about.__doc__)
        check(options)
        cli.enable_compilation_cache()
        seen = see(options)
        wanted = ["own"] * (seen.own is not None) + [part for part in PARTS if part in options.parts]
        sections = drawn(seen, wanted)
        out = folder(options)
        write(out, seen, sections)
        row = numbers(seen)
        tables.write_table(
            out, [row], [judged(seen), f"Calibration error: expected, over {BINS} bins of confidence, percent."]
        )
        print(f"{judged(seen)} Calibration error {row['calibration_error']:.1f}%.")
        print(f"wrote {out / FILE}, its figures beside it, table.md and table.csv")
    return 0


def drawn(seen: Seen, parts: Sequence[str]) -> list[Section]:
    """The sections, those that this network has."""
    sections = []
    with Progress(len(parts), every=math.inf) as progress:  # a line for each part, and no others
        for part in parts:
            began = time.monotonic()
            section = importlib.import_module(f"experiments.inspect_run.{part}").section(seen)
            progress.advance(1, part)
            progress.write(
                f"{part}: {time.monotonic() - began:.1f} s" + ("" if section else ", nothing of that kind here")
            )
            sections.append(section)
    return [section for section in sections if section is not None]


def write(out: Path, seen: Seen, sections: Sequence[Section]) -> None:
    """The figures, and the page that holds them."""
    pictures = [picture for section in sections for picture in section.pictures]
    names = [picture.name for picture in pictures]
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[a-z0-9-]+", name) for name in names):
        raise ValueError(f"pictures are named {names}; expected different names of small letters, digits and dashes")
    out.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        plots.save(picture.figure, out / f"{picture.name}.png")
    files = {name: (out / f"{name}.png").read_bytes() for name in names}
    recipe = seen.run.recipe
    write_text(
        out / FILE, page.page(f"What {recipe.model} has learnt from {recipe.dataset}", facts(seen), sections, files)
    )


def numbers(seen: Seen) -> dict[str, Any]:
    """The row of the table: errors in percent, of the images judged."""
    found = calibration(seen.shares, seen.labels, bins=BINS)
    recipe, n = seen.run.recipe, len(seen.labels)
    return {
        "run": seen.run.folder.name,
        "model": recipe.model,
        "dataset": recipe.dataset,
        "split": recipe.report,
        "step": int(seen.run.last.step),
        "n": n,
        "error": 100 * float((~seen.right).mean()),
        "confidence": 100 * float(seen.shares.max(1).mean()),
        "calibration_error": 100 * found.expected_calibration_error,
    }


if __name__ == "__main__":
    sys.exit(main())
