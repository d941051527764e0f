"""`python -m experiments.signal_propagation`: train and measure what is missing, then draw."""

from __future__ import annotations

import sys
from types import ModuleType

import experiments.signal_propagation as about
import jaxcnn as jc
from experiments._common import run_parts
from experiments._options import parse_options
from experiments.signal_propagation import end, path, start
from experiments.signal_propagation.options import PRESETS, Options
from jaxcnn import cli, tables

PARTS: dict[str, ModuleType] = {"start": start, "end": end, "path": path}
"""Name -> module of each part.

`check(options)` is called before anything is trained. `run(options, stop)` returns True when all
of it is measured. `draw(options)` writes the part's table and figures, and returns
its rows of the common table.
"""


def main(args: list[str] | None = None) -> int:
    """Train and measure what is missing, draw, and return the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = parse_options(PRESETS, args, description=about.__doc__)
        parts = select_parts(options)
        cli.enable_compilation_cache()
        if not options.plot_only and not run_parts(parts, options, stop):
            return stop.exit_code
        # Parts that an earlier command has left here are drawn as well, so that the common table
        # keeps them.
        existing = {name for name in PARTS if any((options.out / name).glob("*.jsonl"))}
        requested = set(parts) if not options.plot_only or not existing else set()
        part_names = [name for name in PARTS if name in requested | existing]
        with cli.record_errors(options.out):
            rows = [
                {"part": name} | row for name in part_names for row in PARTS[name].draw(options)
            ]
        if rows:
            tables.write_table(
                options.out, rows, ["Columns are explained below the tables of start and end."]
            )
            print(tables.compact_markdown(rows))
        print(
            f"wrote {options.out}/table.md, table.csv, and tables and figures in "
            f"{', '.join(part_names)}"
        )
    return 0


def select_parts(options: Options) -> dict[str, ModuleType]:
    """Return the requested parts, after checking each of them.

    Raises:
      ArgumentError: a part is invalid. None has been run yet.
    """
    if not options.parts:
        raise jc.ArgumentError(
            f"parts is empty; expected some of {', '.join(PARTS)}: write --parts start end"
        )
    options.run_seeds()
    for name, minimum in {"images": 2, "states": 2}.items():
        if getattr(options, name) < minimum:
            raise jc.ArgumentError(
                f"{name} is {getattr(options, name)}; expected at least {minimum}: write --{name} "
                f"{minimum}"
            )
    parts = {name: PARTS[name] for name in PARTS if name in options.parts}
    for part in parts.values():
        if not options.plot_only:
            part.check(options)
    return parts


if __name__ == "__main__":
    sys.exit(main())
