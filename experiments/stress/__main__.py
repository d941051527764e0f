"""Command `python -m experiments.stress`: make the missing trials, then count."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import experiments.stress as package
from experiments._options import parse_options
from experiments.stress import damage, interrupts, kills
from experiments.stress.options import PRESETS, Options, Trial, check
from jaxcnn import cli, plots, tables
from jaxcnn.checkpoint import lock_folder
from jaxcnn.progress import Progress
from jaxcnn.run_log import read_lines

PARTS: dict[str, ModuleType] = {"kills": kills, "signals": interrupts, "damage": damage}
"""Modules of the parts.

Each has `plan(options)`, which returns its trials as (fault, number), and
`trial(options, fault, number)`, which makes one. `SECONDS` is the duration of one.
"""
COUNTED = ("landed", "restored", "detected", "named")
"""Keys of trials that the table counts."""
WORST = ("saves_lost", "steps_lost", "seconds")
"""Keys of trials whose maximum the table has."""


def main(args: list[str] | None = None) -> int:
    """Make the missing trials, then write the table.

    Returns:
      The exit code: 1 if a promise was broken.
    """
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = parse_options(PRESETS, args, description=package.__doc__)
        check(options)
        with lock_folder(options.out):
            trials = run_trials(options, stop)
        if trials is None:
            print("stopped; the same command resumes from here", file=sys.stderr)
            return stop.exit_code
    lines = table(trials)
    notes = [
        "Trials whose promises held are not under broken. landed: the fault struck what it was "
        "aimed at, for kill -9 by the unfinished save that was found; restored: a state came back "
        "bit for bit; saves_lost, steps_lost and seconds (from the last signal to the end): the "
        "worst trial. A removed files.json is the one damage that need not be detected."
    ]
    tables.write_table(options.out, lines, notes)
    print(tables.compact_markdown(lines))
    names = "table.md, table.csv"
    if panel := signals_panel(trials):
        title = "Time from the last signal to the end of the process"
        plots.save(plots.panels([panel], size=(6.0, 3.2), title=title), options.out / "signals.png")
        names += ", signals.png"
    print(f"wrote {options.out}/{names} and trials.jsonl")
    broken = [trial for trial in trials if trial["broken"]]
    if broken:
        first = broken[0]
        message = f"{first['fault']} {first['number']}: {first['broken']}"
        print(
            f"{len(broken)} of {len(trials)} trials broke a promise, first {message}",
            file=sys.stderr,
        )
    return int(bool(broken))


def run_trials(options: Options, stop: Any) -> list[Trial] | None:
    """Return every trial, or None if stopped.

    Trials in OUT are not repeated.
    """
    file = options.out / "trials.jsonl"
    finished = {(trial["fault"], trial["number"]): trial for trial in read(file)}
    todo = [
        (part, *key)
        for name, part in PARTS.items()
        if name in options.parts
        for key in part.plan(options)
    ]
    with Progress(sum(part.SECONDS for part, *_ in todo)) as progress:
        for part, fault, number in todo:
            if (fault, number) in finished:
                progress.skip(part.SECONDS)
                continue
            report = {"fault": fault, "number": number} | part.trial(options, fault, number)
            with file.open("a") as out:
                out.write(json.dumps(report) + "\n")
            finished[fault, number] = report
            progress.advance(part.SECONDS, f"{fault} {number}")
            if stop():
                return None
    return [finished[fault, number] for _, fault, number in todo]


def read(file: Path) -> list[Trial]:
    """Return the trials in a file."""
    return read_lines(file, "trial")


def table(trials: list[Trial]) -> list[dict[str, Any]]:
    """Return a row for each fault, with counts and worst values.

    A value is None where a fault has no such figure.
    """
    lines = []
    for fault in dict.fromkeys(trial["fault"] for trial in trials):
        group = [trial for trial in trials if trial["fault"] == fault]
        line: dict[str, Any] = {"fault": fault, "trials": len(group)}
        line |= {
            key: sum(trial[key] for trial in group) if key in group[0] else None for key in COUNTED
        }
        line |= {
            key: max(trial[key] for trial in group) if key in group[0] else None for key in WORST
        }
        lines.append(line | {"broken": sum(trial["broken"] is not None for trial in group)})
    return lines


def signals_panel(trials: list[Trial]) -> plots.Panel | None:
    """Return the share of trials that ended within a time, or None without trials of signals."""
    times: dict[str, list[float]] = {}
    for trial in trials:
        if "seconds" in trial:
            times.setdefault(trial["fault"], []).append(trial["seconds"])
    # Steps: each trial adds its share at its time.
    lines = [
        plots.Line(
            [time for time in sorted(values) for _ in range(2)],
            [100 * (i + j) / len(values) for i in range(len(values)) for j in range(2)],
            label=fault,
        )
        for fault, values in times.items()
    ]
    axes: dict[str, Any] = {"xlabel": "seconds", "ylabel": "ended (% of trials)", "xlog": True}
    return plots.Panel("", lines, ylim=(0, 102), **axes) if lines else None


if __name__ == "__main__":
    sys.exit(main())
