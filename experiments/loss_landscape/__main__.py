"""`python -m experiments.loss_landscape`: measure what is missing in every part asked for, then draw."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import experiments.loss_landscape as about
import jaxcnn as jc
from experiments.loss_landscape import kept, line, path, plane, sharpness
from experiments.loss_landscape.options import PRESETS, Options
from experiments.loss_landscape.options import check as check_runs
from experiments.parts import done
from jaxcnn import cli, tables

PARTS: dict[str, ModuleType] = {"line": line, "plane": plane, "path": path, "sharpness": sharpness}
"""Each has `check(options)`, before anything is measured; `run(options, stop)`, True when all of it is there; and
`draw(options)`, which writes its table and figures and returns columns of the common table by network."""


def main(args: list[str] | None = None) -> int:
    """Measure what is missing, then draw; returns the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(PRESETS, args, about=about.__doc__)
        parts = chosen(options)
        cli.enable_compilation_cache()
        if not options.plot_only and not done(parts, options, stop):
            return stop.exit_code
        with cli.reading(options.out):
            draw(options, parts)
    return 0


def chosen(options: Options) -> dict[str, ModuleType]:
    """The parts asked for; ArgumentError for a mistake in any of them, before the first is measured."""
    if not options.parts:
        raise jc.ArgumentError(f"parts is empty; expected some of {', '.join(PARTS)}: write --parts line plane")
    if not options.plot_only:
        for name in options.parts:
            PARTS[name].check(options)
        check_runs(options)
    return {name: PARTS[name] for name in PARTS if name in options.parts}


def draw(options: Options, parts: dict[str, ModuleType]) -> None:
    """The tables and figures of these parts, and of those that an earlier command has left."""
    drawn = [name for name in PARTS if name in parts or any((options.out / name).glob("*.npz"))]
    columns = [PARTS[name].draw(options) for name in drawn]
    found = {kept.network(each.stem): each for name in drawn for each in (options.out / name).glob("*.npz")}
    rows = [_row(name, columns, kept.read(found[name])) for name in sorted(found, key=kept.order)]
    everything = dict.fromkeys(key for row in rows for key in row)
    table = [{key: row.get(key) for key in everything} for row in rows]
    first = kept.read(next(iter(found.values())))
    notes = [
        f"{kept.setting(first)}. loss, train_error: of these images at the end; eval_error: of the run's last row (percent); "
        "losses at distances and areas: see line and plane; explained: percent of the path's variance in its plane."
    ]
    tables.write_table(options.out, table, notes)
    print(tables.markdown(table))
    print(f"wrote {options.out}/table.md, table.csv, and tables and figures in {', '.join(drawn)}")


def _row(name: str, columns: list[dict[str, dict[str, Any]]], there: kept.Kept) -> dict[str, Any]:
    line = {"network": name} | {key: value for part in columns for key, value in part.get(name, {}).items()}
    return line | {key: there.asked["row"][key] for key in ("eval_error", "eval_split")}


if __name__ == "__main__":
    sys.exit(main())
