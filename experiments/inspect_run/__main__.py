"""`python -m experiments.inspect_run`: read a run, and write its page and figures."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import experiments.inspect_run as about
from experiments._common import FigureOptions
from experiments._options import parse_options
from experiments.inspect_run.attribution import attribution_section
from experiments.inspect_run.channels import channels_section
from experiments.inspect_run.context import (
    FILE,
    PARTS,
    Options,
    RunContext,
    Section,
    check,
    load_context,
    output_folder,
)
from experiments.inspect_run.features import feature_maps_section, first_filters_section
from experiments.inspect_run.page import render_page
from experiments.inspect_run.predictions import (
    BINS,
    error_rate_text,
    errors_section,
    user_image_section,
)
from experiments.inspect_run.run_summary import curves_section, layers_section, run_facts
from jaxcnn import cli, plots, tables
from jaxcnn.metrics import calibration
from jaxcnn.progress import Progress
from jaxcnn.run_log import write_text

SECTIONS: Mapping[str, Callable[[RunContext], Section | None]] = {
    "own": user_image_section,
    "about": layers_section,
    "curves": curves_section,
    "errors": errors_section,
    "filters": first_filters_section,
    "features": feature_maps_section,
    "channels": channels_section,
    "heat": attribution_section,
}
"""Function that makes each part, or returns None where it is absent.

The part `own` is made whenever there is a user's image.
"""


def main(args: list[str] | None = None) -> int:
    """Write the page, and return the exit code."""
    with cli.cli_errors():
        options = parse_options({"look": Options()}, args, description=about.__doc__)
        check(options)
        cli.enable_compilation_cache()
        context = load_context(options)
        # The user's image comes first, whichever parts are requested.
        parts = ["own"] * (context.user_image is not None) + [
            part for part in PARTS if part in options.parts
        ]
        sections = make_sections(context, parts)
        out = output_folder(options)
        write_page(out, context, sections, options)
        row = table_row(context)
        tables.write_table(
            out,
            [row],
            [
                error_rate_text(context),
                f"Calibration error: expected, over {BINS} bins of confidence, percent.",
            ],
        )
        print(f"{error_rate_text(context)} Calibration error {row['calibration_error']:.1f}%.")
        print(f"wrote {out / FILE}, its figures beside it, table.md and table.csv")
    return 0


def make_sections(context: RunContext, parts: Sequence[str]) -> list[Section]:
    """Return the sections of these parts that the network has."""
    sections = []
    # An infinite interval leaves one line for each part.
    with Progress(len(parts), every=math.inf) as progress:
        for part in parts:
            start = time.monotonic()
            section = SECTIONS[part](context)
            progress.advance(1, part)
            progress.write(
                f"{part}: {time.monotonic() - start:.1f} s"
                + ("" if section else ", nothing of that kind here")
            )
            sections.append(section)
    return [section for section in sections if section is not None]


def write_page(
    out: Path,
    context: RunContext,
    sections: Sequence[Section],
    options: FigureOptions = FigureOptions(),  # noqa: B008
) -> None:
    """Write the figures, and the page that holds them."""
    figures = [figure for section in sections for figure in section.figures]
    names = [figure.name for figure in figures]
    # Names become file names, so they must be distinct and plain.
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[a-z0-9-]+", name) for name in names):
        raise ValueError(
            f"images are named {names}; expected different names of small letters, digits and "
            "dashes"
        )
    out.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        # The page holds PNGs.
        plots.save(figure.figure, out / f"{figure.name}.png")
        if options.format != "png":
            options.save(figure.figure, out / figure.name)
    files = {name: (out / f"{name}.png").read_bytes() for name in names}
    config = context.run.config
    write_text(
        out / FILE,
        render_page(
            f"What {config.model} has learned from {config.dataset}",
            run_facts(context),
            sections,
            files,
        ),
    )


def table_row(context: RunContext) -> dict[str, Any]:
    """Return the row of the table; errors are in percent."""
    report = calibration(context.probabilities, context.labels, bins=BINS)
    config, num_images = context.run.config, len(context.labels)
    return {
        "run": context.run.folder.name,
        "model": config.model,
        "dataset": config.dataset,
        "split": config.train.eval_split,
        "step": int(context.run.last.step),
        "n": num_images,
        "error": 100 * float((~context.is_correct).mean()),
        "confidence": 100 * float(context.probabilities.max(1).mean()),
        "calibration_error": 100 * report.expected_calibration_error,
    }


if __name__ == "__main__":
    sys.exit(main())
