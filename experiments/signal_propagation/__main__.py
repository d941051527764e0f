"""`python -m experiments.signal_propagation`: train and measure what is missing in every part asked for, then draw."""

from __future__ import annotations

import sys
from types import ModuleType

import experiments.signal_propagation as about
import jaxcnn as jc
from experiments.parts import done
from experiments.signal_propagation import end, path, start
from experiments.signal_propagation.options import PRESETS, Options
from jaxcnn import cli, tables

PARTS: dict[str, ModuleType] = {"start": start, "end": end, "path": path}
"""Each has `check(options)`, before anything is trained; `run(options, stop)`, True when all of it is there; and
`draw(options)`, which writes its table and figures and returns its lines of the common table."""


def main(args: list[str] | None = None) -> int:
    """Train and measure what is missing, then draw; returns the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(PRESETS, args, about=about.__doc__)
        parts = chosen(options)
        cli.enable_compilation_cache()
        if not options.plot_only and not done(parts, options, stop):
            return stop.exit_code
        # What other parts an earlier command has left here is drawn as well, so that the common table keeps it.
        there = {name for name in PARTS if any((options.out / name).glob("*.jsonl"))}
        made = set(parts) if not options.plot_only or not there else set()
        drawn = [name for name in PARTS if name in made | there]
        with cli.reading(options.out):
            lines = [{"part": name} | line for name in drawn for line in PARTS[name].draw(options)]
        if lines:
            tables.write_table(options.out, lines, ["Columns are explained below the tables of start and end."])
            print(tables.markdown(lines))
        print(f"wrote {options.out}/table.md, table.csv, and tables and figures in {', '.join(drawn)}")
    return 0


def chosen(options: Options) -> dict[str, ModuleType]:
    """The parts asked for; ArgumentError for a mistake in any of them, before the first is run."""
    if not options.parts:
        raise jc.ArgumentError(f"parts is empty; expected some of {', '.join(PARTS)}: write --parts start end")
    for name, least in {"seeds": 1, "images": 2, "states": 2}.items():
        if getattr(options, name) < least:
            raise jc.ArgumentError(
                f"{name} is {getattr(options, name)}; expected at least {least}: write --{name} {least}"
            )
    parts = {name: PARTS[name] for name in PARTS if name in options.parts}
    for part in parts.values():
        if not options.plot_only:
            part.check(options)
    return parts


if __name__ == "__main__":
    sys.exit(main())
