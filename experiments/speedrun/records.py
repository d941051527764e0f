"""What the runs leave: a line each in `runs.jsonl`, and from these the tables and the figure."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jaxcnn as jc
from experiments.speedrun.options import TARGET, Options
from jaxcnn import parallel, plots, tables
from jaxcnn.run_log import read_json, read_lines, write_text

Line = dict[str, Any]
"""Of a run: its seed, seconds, train_seconds, accuracy, train_loss, warm_up (seconds, of its process) and date."""
ENOUGH = 50
"""Runs that the task asks for."""
FREE = ("preset", "runs", "data_dir", "out", "plot_only")
"""Options in which two commands on one folder may differ."""
PACKAGES = ("jax", "jaxlib", "flax", "optax")


def machine(strategy: parallel.Strategy) -> dict[str, Any]:
    """Where runs are made, and with what."""
    there = parallel.describe(strategy)
    what = f"{there['device']}, {platform.machine()}, {os.cpu_count()} cores"
    versions = ", ".join([*(f"{name} {version(name)}" for name in PACKAGES), f"Python {platform.python_version()}"])
    return {
        "device": what,
        "versions": versions,
        "precision": there["matmul_precision"],
        "xla_flags": there["xla_flags"],
    }


def claim(options: Options, strategy: parallel.Strategy) -> None:
    """Write `config.json`. ArgumentError if OUT cannot be written, or holds runs of other options or another machine.

    Times of different machines do not belong in one mean.
    """
    path = options.out / "config.json"
    asked = {name: value for name, value in asdict(options).items() if name not in FREE} | machine(strategy)
    asked = json.loads(json.dumps(asked))  # tuples become lists, as they are there
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"cannot write in {options.out}: {error.strerror}"
        raise jc.ArgumentError(f"{why}; write --out with a folder of yours") from None
    there = read_json(path) if path.exists() else asked
    wrong = [f"{k} ({there.get(k)!r} there, {asked[k]!r} asked)" for k in asked if there.get(k) != asked[k]]
    if wrong:
        raise jc.ArgumentError(f"{options.out} holds runs of another kind: {', '.join(wrong)}; write another --out")
    write_text(path, json.dumps(asked, indent=2) + "\n")


def lines(out: Path) -> list[Line]:
    """The runs that OUT holds, by seed."""
    path = out / "runs.jsonl"
    try:
        return sorted(read_lines(path), key=lambda line: line["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise jc.ArgumentError(f"{path} is not what was written ({error}); write another --out, or delete it") from None


def add(out: Path, line: Line) -> None:
    """One run more in `runs.jsonl`; what JSON lacks (nan) becomes null."""
    finite = [loss if math.isfinite(loss) else None for loss in line["train_loss"]]
    every = [*lines(out), line | {"train_loss": finite}]
    write_text(out / "runs.jsonl", "".join(json.dumps(one, allow_nan=False) + "\n" for one in every))


def row(runs: Sequence[Line], config: Line) -> Line:
    """The row of the table: means over the runs, of which none is left out."""
    line: Line = {"dataset": config["dataset"], "n": len(runs)}
    for name in ("seconds", "train_seconds", "accuracy"):
        mean, std, ci95 = tables.seed_statistics([run[name] for run in runs])
        line |= {name: mean, f"{name}_std": std, f"{name}_ci95": ci95}
    target = TARGET.get(config["dataset"])
    reached = None if target is None else "yes" if line["accuracy"] >= target else "no"
    where = {name: config[name] for name in ("device", "versions")}
    return line | {"target": target, "reached": reached} | where | {"date": max(run["date"] for run in runs)[:10]}


def notes(runs: Sequence[Line], line: Line, config: Line) -> list[str]:
    """What stands below the table."""
    found = [run["accuracy"] for run in runs]
    said = [f"Accuracy: {line['accuracy']:.3f}%, n = {len(runs)}."]
    if len(runs) > 1:
        spread = f"standard deviation {line['accuracy_std']:.3f}, the mean's 95% interval ± {line['accuracy_ci95']:.3f}"
        said.append(f"Of the runs: {min(found):.2f} to {max(found):.2f}, {spread}.")
    if line["target"] and len(runs) < ENOUGH:
        said.append(f"The task asks for {line['target']:g}% in the mean of at least {ENOUGH} runs.")
    if lost := sum(run["train_loss"][-1] is None for run in runs):
        said.append(f"{lost} of the runs diverged.")
    images, warm = config["examples"] or "all", max(run["warm_up"] for run in runs)
    net = f"widths {' '.join(map(str, config['widths']))}, {config['dtype']}"
    return [
        " ".join(said),
        f"Training images: {images}; {config['epochs']:g} epochs of batches of {config['batch']}, {net}.",
        "Seconds of a run: start, whitening, training and test, from images that lie on the device as bytes; "
        f"compiling and warming up are apart ({warm:.1f} s at most). ± is the half width of the mean's 95% interval.",
    ]


def figure(runs: Sequence[Line], config: Line) -> Any:
    """Accuracy against seconds, a dot for each run, and the training loss by epoch."""
    target = TARGET.get(config["dataset"])
    dots = plots.Line([run["seconds"] for run in runs], [run["accuracy"] for run in runs], marker="o", width=0)
    marks = () if target is None else (plots.Mark(target, "y", f"{target:g}%"),)
    rows = [[{"epoch": i, "loss": loss} for i, loss in enumerate(run["train_loss"], 1)] for run in runs]
    loss = plots.band(rows, "epoch", "loss", color=plots.COLORS[0], marker="o")
    left = plots.Panel("each run", (dots,), marks, "seconds", "test accuracy (%)")
    right = plots.Panel("mean and range of all runs", (loss,), (), "epoch", "training loss (nats)")
    title = f"{config['dataset']}: {len(runs)} run{'s' * (len(runs) > 1)} on {config['device']}"
    return plots.panels([left, right], columns=2, share="none", title=title)


def draw(out: Path) -> None:
    """`table.md`, `table.csv` and `runs.png`; ArgumentError where no run is over."""
    runs = lines(out)
    if not runs:
        raise jc.ArgumentError(
            f"{out} holds no run; write --out with the folder of a speed run, or leave out --plot-only"
        )
    config = read_json(out / "config.json")
    line = row(runs, config)
    said = notes(runs, line, config)
    tables.write_table(out, [line], said)
    plots.save(figure(runs, config), out / "runs.png")
    print(tables.markdown([line]), *said, f"wrote {out}/table.md, table.csv and runs.png", sep="\n")
