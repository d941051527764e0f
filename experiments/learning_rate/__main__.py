"""`python -m experiments.learning_rate`: train what is missing in every part asked for, then draw."""

from __future__ import annotations

import sys
from types import ModuleType

import experiments.learning_rate as about
import jaxcnn as jc
from experiments._common import run_parts
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
"""Each has `check(options)`, before anything is trained; `run(options, stop)`, True when all of it is there; and
`draw(options)`, which writes its table and figures and returns its lines of the common table."""


def main(args: list[str] | None = None) -> int:
    """Train what is missing, then draw; returns the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(PRESETS, args, about=about.__doc__)
        parts = chosen(options)
        cli.enable_compilation_cache()
        if not options.plot_only and not run_parts(parts, options, stop):
            return stop.exit_code
        # What other parts an earlier command has left here is drawn as well, so that the common table keeps it.
        drawn = [name for name in PARTS if name in parts or (options.out / name / "table.csv").exists()]
        with cli.reading(options.out):
            lines = [{"part": name} | line for name in drawn for line in PARTS[name].draw(options)]
        tables.write_table(options.out, lines, ["Predicted by theory (-: theory has no number), and measured."])
        print(tables.markdown(lines))
        print(f"wrote {options.out}/table.md, table.csv, and tables and figures in {', '.join(drawn)}")
    return 0


def chosen(options: Options) -> dict[str, ModuleType]:
    """The parts asked for; ArgumentError for a mistake in any of them, before the first is run."""
    if not options.parts:
        raise jc.ArgumentError(f"parts is empty; expected some of {', '.join(PARTS)}: write --parts theory sweep")
    if options.seeds < 1:
        raise jc.ArgumentError(f"seeds is {options.seeds}; expected at least 1: write --seeds 2")
    parts = {name: PARTS[name] for name in PARTS if name in options.parts}
    for part in parts.values():
        if not options.plot_only:
            part.check(options)
    return parts


if __name__ == "__main__":
    sys.exit(main())
