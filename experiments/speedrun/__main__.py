"""Command `python -m experiments.speedrun`: train the missing runs, then draw.

Each run is a line of `runs.jsonl`. The table and the figure are computed from these records.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import experiments.speedrun as package
import jaxcnn as jc
from experiments._common import FigureOptions, display_names
from experiments._options import parse_options
from experiments.speedrun.options import (
    TARGET_ACCURACY,
    Options,
    check_dataset,
    check_options,
    presets_for,
)
from experiments.speedrun.training import make_runner
from jaxcnn import cli, parallel, plots, tables
from jaxcnn.progress import Progress
from jaxcnn.run_log import read_json, read_lines, write_text

Record = dict[str, Any]
"""Record of a run: seed, seconds, train_seconds, accuracy, train_loss, warm_up and date.

The value of warm_up is the seconds of its process's warm-up.
"""
REQUIRED_RUNS = 50
"""Smallest number of runs that the task requires."""
UNCHECKED_OPTIONS = ("preset", "runs", "data_dir", "out", "plot_only")
"""Options in which two commands on one folder may differ."""
PACKAGES = ("jax", "jaxlib", "flax", "optax")


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw, and return the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = parse_options(
            presets_for(jax.default_backend()), args, description=package.__doc__
        )
        if not options.plot_only:
            check_options(options)
            cli.enable_compilation_cache()
            if not train_missing_runs(options, stop):
                print(
                    "stopped; runs that were over are kept, and the same command makes the others",
                    file=sys.stderr,
                )
                return stop.exit_code
        with cli.record_errors(options.out):
            draw(options, options.out)
    return 0


def train_missing_runs(options: Options, should_stop: Callable[[], bool]) -> bool:
    """Train the runs that are missing in OUT.

    A warm-up comes before the first of them.

    Args:
      options: of the speed run.
      should_stop: called before each step, or before each scan of steps.

    Returns:
      False if `should_stop` ended it.
    """
    data = jc.load_dataset(options.dataset, options.data_dir)
    strategy = jc.strategy(devices=1)
    if options.max_train_examples is not None:
        data = jc.subset(data, options.max_train_examples, 0)
    check_dataset(options, data)
    open_run_dir(options, strategy)
    finished = {record["seed"] for record in read_runs(options.out)}
    seeds = range(options.seed, options.seed + options.runs)
    missing = [seed for seed in seeds if seed not in finished]
    if not missing:
        return True
    start = time.perf_counter()
    run = make_runner(options, data, strategy, should_stop)
    if run(options.seed, warm_up=True) is None:
        return False
    warm_up = time.perf_counter() - start
    # Each run prints a line of its own, so that periodic lines are not needed.
    with Progress(len(missing), every=math.inf) as progress:
        progress.write(
            f"compiled and warm after {warm_up:.1f} s; {len(missing)} of {options.runs} runs to go"
        )
        for seed in missing:
            result = run(seed)
            if result is None:
                return False
            date = time.strftime("%Y-%m-%d %H:%M:%S")
            record = {"seed": seed} | result._asdict() | {"warm_up": warm_up, "date": date}
            append_run(options.out, record)
            progress.advance(1, "")
            progress.write(
                f"seed {seed}: {result.accuracy:.2f}% in {result.seconds:.2f} s "
                f"({result.train_seconds:.2f} s of training)"
            )
    return True


def open_run_dir(options: Options, strategy: parallel.Strategy) -> None:
    """Write `config.json` in OUT, after a comparison with one that is there.

    Times of different machines do not belong in one mean.

    Raises:
      ArgumentError: OUT is not writable, or has runs of other options or another machine.
    """
    path = options.out / "config.json"
    config = {k: v for k, v in asdict(options).items() if k not in UNCHECKED_OPTIONS}
    config |= machine_config(strategy)
    # Tuples become lists, as in the file.
    config = json.loads(json.dumps(config))
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot write in {options.out}: {error.strerror}"
        raise jc.ArgumentError(f"{reason}; write --out with a folder of yours") from None
    stored = read_json(path) if path.exists() else config
    differences = [
        f"{key} ({stored.get(key)!r} there, {config[key]!r} asked)"
        for key in config
        if stored.get(key) != config[key]
    ]
    if differences:
        raise jc.ArgumentError(
            f"{options.out} holds runs of another kind: {', '.join(differences)}; "
            "write another --out"
        )
    write_text(path, json.dumps(config, indent=2) + "\n")


def machine_config(strategy: parallel.Strategy) -> dict[str, Any]:
    """Return the machine and the packages that make the runs."""
    description = parallel.describe(strategy)
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    versions.append(f"Python {platform.python_version()}")
    return {
        "device": f"{description['device']}, {platform.machine()}, {os.cpu_count()} cores",
        "versions": ", ".join(versions),
        "precision": description["matmul_precision"],
        "xla_flags": description["xla_flags"],
    }


def read_runs(out: Path) -> list[Record]:
    """Read the runs in OUT, sorted by seed.

    Raises:
      ArgumentError: the file is damaged.
    """
    path = out / "runs.jsonl"
    try:
        return sorted(read_lines(path), key=lambda record: record["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise jc.ArgumentError(
            f"{path} is not what was written ({error}); write another --out, or delete it"
        ) from None


def append_run(out: Path, record: Record) -> None:
    """Append a run to `runs.jsonl`.

    JSON has no nan, so losses that are not finite become null.
    """
    losses = [loss if math.isfinite(loss) else None for loss in record["train_loss"]]
    records = [*read_runs(out), record | {"train_loss": losses}]
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in records)
    write_text(out / "runs.jsonl", text)


def draw(options: FigureOptions, out: Path) -> None:
    """Write `table.md`, `table.csv` and the figure `runs`, and print the table.

    Raises:
      ArgumentError: OUT has no finished run.
    """
    runs = read_runs(out)
    if not runs:
        raise jc.ArgumentError(
            f"{out} holds no run; write --out with the folder of a speed run, "
            "or leave out --plot-only"
        )
    config = read_json(out / "config.json")
    row = summary_row(runs, config)
    notes = table_notes(runs, row, config)
    tables.write_table(out, [row], notes)
    options.save(runs_figure(runs, config), out / "runs")
    written = f"wrote {out}/table.md, table.csv and runs.{options.format}"
    print(tables.compact_markdown([row]), *notes, written, sep="\n")


def summary_row(runs: Sequence[Record], config: Record) -> Record:
    """Return the row of the table: means over all runs, without exception."""
    row: Record = {"dataset": config["dataset"], "n": len(runs)}
    for name in ("seconds", "train_seconds", "accuracy"):
        mean, std, ci95 = tables.seed_statistics([run[name] for run in runs])
        row |= {name: mean, f"{name}_std": std, f"{name}_ci95": ci95}
    target = TARGET_ACCURACY.get(config["dataset"])
    reached = None
    if target is not None:
        reached = "yes" if row["accuracy"] >= target else "no"
    return row | {
        "target": target,
        "reached": reached,
        "device": config["device"],
        "versions": config["versions"],
        "date": max(run["date"] for run in runs)[:10],
    }


def table_notes(runs: Sequence[Record], row: Record, config: Record) -> list[str]:
    """Return the notes below the table.

    Args:
      runs: all runs.
      row: of `summary_row`.
      config: of `config.json`.
    """
    accuracies = [run["accuracy"] for run in runs]
    sentences = [f"Accuracy: {row['accuracy']:.3f}%, n = {len(runs)}."]
    if len(runs) > 1:
        sentences.append(
            f"Of the runs: {min(accuracies):.2f} to {max(accuracies):.2f}, "
            f"standard deviation {row['accuracy_std']:.3f}, "
            f"the mean's 95% interval ± {row['accuracy_ci95']:.3f}."
        )
    if row["target"] and len(runs) < REQUIRED_RUNS:
        sentences.append(
            f"The task asks for {row['target']:g}% in the mean of at least {REQUIRED_RUNS} runs."
        )
    if diverged := sum(run["train_loss"][-1] is None for run in runs):
        sentences.append(f"{diverged} of the runs diverged.")
    images, warm_up = config["max_train_examples"] or "all", max(run["warm_up"] for run in runs)
    network = f"widths {' '.join(map(str, config['widths']))}, {config['dtype']}"
    return [
        " ".join(sentences),
        f"Training images: {images}; {config['epochs']:g} epochs of batches of "
        f"{config['batch_size']}, "
        f"{network}.",
        "Seconds of a run: start, whitening, training and test, from images that lie on the device "
        f"as bytes; compiling and warming up are apart ({warm_up:.1f} s at most). "
        "± is the half width of the mean's 95% interval.",
    ]


def runs_figure(runs: Sequence[Record], config: Record) -> Any:
    """Plot accuracy against seconds and the training loss by epoch.

    Each run is a dot in the first panel. The second has the mean and the range of all runs.
    """
    target = TARGET_ACCURACY.get(config["dataset"])
    seconds, accuracies = [run["seconds"] for run in runs], [run["accuracy"] for run in runs]
    dots = plots.Line(seconds, accuracies, marker="o", width=0)
    marks = () if target is None else (plots.Mark(target, "y", f"{target:g}%"),)
    rows = [
        [{"epoch": i, "loss": loss} for i, loss in enumerate(run["train_loss"], 1)] for run in runs
    ]
    loss = plots.band(rows, "epoch", "loss", color=plots.COLORS[0], marker="o")
    left = plots.Panel("Each run", (dots,), marks, "time of the run (s)", "test accuracy (%)")
    # From 0, so that runs of nearly the same time lie close together.
    left = left._replace(xlim=(0, 1.15 * max(seconds)))
    name = "Mean and range of all runs" if len(runs) > 1 else "The run"
    right = plots.Panel(name, (loss,), (), "epoch", "training loss (nats)")
    plural = "s" * (len(runs) > 1)
    title = f"Speedrun on {config['dataset']}: {len(runs)} run{plural} on {config['device']}"
    title = display_names(title)
    return plots.panels([left, right], columns=2, share="none", title=title)


if __name__ == "__main__":
    sys.exit(main())
