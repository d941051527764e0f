"""`python -m experiments.loss_landscape`: measure what is missing, then draw."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import experiments.loss_landscape as about
import jaxcnn as jc
from experiments._common import run_parts
from experiments._options import parse_options
from experiments.loss_landscape import line, measurements, path, plane, sharpness
from experiments.loss_landscape.options import PRESETS, Options, check_runs
from jaxcnn import cli, tables

PARTS: dict[str, ModuleType] = {"line": line, "plane": plane, "path": path, "sharpness": sharpness}
"""Name -> module of each part.

`check(options)` is called before anything is measured. `run(options, stop)` returns True when all
of it is measured. `draw(options)` writes the part's table and figures, and returns
columns of the common table by network.
"""


def main(args: list[str] | None = None) -> int:
    """Measure what is missing, draw, and return the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = parse_options(PRESETS, args, description=about.__doc__)
        parts = select_parts(options)
        cli.enable_compilation_cache()
        if not options.plot_only and not run_parts(parts, options, stop):
            return stop.exit_code
        with cli.record_errors(options.out):
            draw(options, parts)
    return 0


def select_parts(options: Options) -> dict[str, ModuleType]:
    """Return the requested parts, after checking each of them.

    Raises:
      ArgumentError: a part is invalid. None has been measured yet.
    """
    if not options.parts:
        raise jc.ArgumentError(
            f"parts is empty; expected some of {', '.join(PARTS)}: write --parts line plane"
        )
    if not options.plot_only:
        for name in options.parts:
            PARTS[name].check(options)
        check_runs(options)
    return {name: PARTS[name] for name in PARTS if name in options.parts}


def draw(options: Options, parts: dict[str, ModuleType]) -> None:
    """Write tables and figures of these parts.

    Parts that an earlier command has left are drawn as well.
    """
    part_names = [
        name for name in PARTS if name in parts or any((options.out / name).glob("*.npz"))
    ]
    columns = [PARTS[name].draw(options) for name in part_names]
    paths = {
        measurements.network_name(path.stem): path
        for name in part_names
        for path in (options.out / name).glob("*.npz")
    }
    rows = [
        _table_row(name, columns, measurements.read(paths[name]))
        for name in sorted(paths, key=measurements.natural_key)
    ]
    keys = dict.fromkeys(key for row in rows for key in row)
    table = [{key: row.get(key) for key in keys} for row in rows]
    first = measurements.read(next(iter(paths.values())))
    notes = [
        f"{measurements.setting_text(first)}. loss, train_error: of these images at the end; "
        "eval_error: of the run's last row (percent); losses at distances and areas: see line and "
        "plane; explained: percent of the path's variance in its plane."
    ]
    tables.write_table(options.out, table, notes)
    print(tables.compact_markdown(table))
    print(
        f"wrote {options.out}/table.md, table.csv, and tables and figures in "
        f"{', '.join(part_names)}"
    )


def _table_row(
    name: str, columns: list[dict[str, dict[str, Any]]], measurement: measurements.Measurement
) -> dict[str, Any]:
    row = {"network": name} | {
        key: value for part_columns in columns for key, value in part_columns.get(name, {}).items()
    }
    return row | {key: measurement.request["row"][key] for key in ("eval_error", "eval_split")}


if __name__ == "__main__":
    sys.exit(main())
