"""Command `python -m experiments.learning_rate`: train the selected parts, then draw."""

from __future__ import annotations

import sys
from types import ModuleType

import experiments.learning_rate as package
import jaxcnn as jc
from experiments._common import run_parts
from experiments._options import parse_options
from experiments.learning_rate import edge, finder, schedules, sweep, theory
from experiments.learning_rate.options import PRESETS, Options
from jaxcnn import cli, tables

PARTS: dict[str, ModuleType] = {
    "theory": theory,
    "sweep": sweep,
    "finder": finder,
    "schedules": schedules,
    "edge": edge,
}
"""Modules of the parts.

Each has `check(options)`, which is called before anything is trained, and `run(options, stop)`,
which returns True when the part is complete. Each has `draw(options)`, which writes the part's
table and figures and returns its lines of the common table.
"""


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw; return the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = parse_options(PRESETS, args, description=package.__doc__)
        parts = selected(options)
        cli.enable_compilation_cache()
        if not options.plot_only and not run_parts(parts, options, stop):
            return stop.exit_code
        # Parts that an earlier command has left here are drawn as well, so that the common table
        # keeps them.
        drawn = [
            name for name in PARTS if name in parts or (options.out / name / "table.csv").exists()
        ]
        with cli.record_errors(options.out):
            lines = [{"part": name} | line for name in drawn for line in PARTS[name].draw(options)]
        note = "Predicted by theory (-: theory has no number), and measured."
        tables.write_table(options.out, lines, [note])
        print(tables.compact_markdown(lines))
        print(
            f"wrote {options.out}/table.md, table.csv, and tables and figures in {', '.join(drawn)}"
        )
    return 0


def selected(options: Options) -> dict[str, ModuleType]:
    """Return the selected parts, in the order of `PARTS`.

    Raises:
      ArgumentError: for a mistake in any of them, before the first is run.
    """
    if not options.parts:
        raise jc.ArgumentError(
            f"parts is empty; expected some of {', '.join(PARTS)}: write --parts theory sweep"
        )
    options.run_seeds()
    parts = {name: PARTS[name] for name in PARTS if name in options.parts}
    for part in parts.values():
        if not options.plot_only:
            part.check(options)
    return parts


if __name__ == "__main__":
    sys.exit(main())
