"""Does a study of hundreds of short runs in one process keep its memory flat and its files closed? A soak.

    python -m experiments.stress.soak                   100 runs on digits, no download: some minutes on two CPU cores
    python -m experiments.stress.soak --preset full     400 runs: 19 minutes there, beside other work

Two series, in one process. `shared`: many seeds of four networks, so that a few programs serve all runs. `new`: every run is
of a network of its own, so that every run compiles. In both one run in ten diverges and one is stopped and goes on. After
every run, once garbage is collected, OUT/soak.jsonl gets a line: memory, file handles, threads, memory maps (Linux ends a
process that has more than 65,530), live arrays, Python's allocated blocks, callbacks kept for the process's end, the files of
the compile cache and of the run.

Expected: the memory of `shared` grows by less than 64 KiB a run, that of `new` is bounded, no handle or thread is left
behind; then the exit code is 0. Otherwise one line names what grew, and the exit code is 1.

It writes OUT/table.md, OUT/table.csv, OUT/soak.png and a folder for every run. A soak is of one process: one that was stopped
begins anew in another folder.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from scipy import stats

import jaxcnn as jc
from jaxcnn import cli, parallel, plots, runs, tables
from jaxcnn.progress import Progress
from jaxcnn.run_log import read_lines
from jaxcnn.training import check_config

Row = dict[str, Any]
SERIES = {"shared": "seeds of four networks", "new": "every run a new network"}
NETWORKS = (
    ("mlp", {"hidden": [16]}, "momentum"),
    ("mlp", {"hidden": [16]}, "adam"),
    ("mlp", {"hidden": [8, 8]}, "sam"),
    ("convnet", {"width": 2, "hidden": 8}, "momentum"),
)
WHAT = {
    "memory_mib": "resident memory (MiB)",
    "handles": "open file handles",
    "threads": "threads",
    "maps": "memory maps",
    "arrays": "live arrays",
    "blocks": "Python's memory blocks",
    "exits": "callbacks at exit",
    "programs": "files of the compile cache",
    "programs_mib": "compile cache (MiB)",
    "run_kib": "folder of the run (KiB)",
}
"""What is measured after every run."""
SLOPE = {"memory_mib": 64 / 1024, "blocks": 1000}
"""The most that `shared` may grow by a run in its second half, should the interval of its slope leave a doubt."""
RISE = {"memory_mib": 256, "handles": 0, "threads": 4, "maps": 3000, "arrays": 0, "exits": 0}
"""The most by which the maximum of the second half may exceed that of the first; pools of threads fill slowly."""


@dataclass(frozen=True)
class Options:
    """Every setting of the soak; `--preset` chooses the defaults."""

    preset: Literal["quick", "full"] = "quick"
    shared: int = 64
    """Runs that share four networks."""
    new: int = 36
    """Runs of a network each."""
    steps: int = 4
    """Of every run, with a row and a checkpoint at every other."""
    batch: int = 64
    strategy: Literal["auto", "pmap", "jit"] = "auto"
    out: Path = Path("runs/soak")
    plot_only: bool = False
    """Draw table and figure from the soak that OUT holds, and train nothing."""


PRESETS = {"quick": Options(), "full": Options(preset="full", shared=200, new=200, out=Path("runs/soak-full"))}


def kind(run: int) -> str:
    """What becomes of a run: "diverged", "continued" (stopped before its first row, on a CPU) or "whole"."""
    return {4: "diverged", 7: "continued"}.get(run % 10, "whole")


def recipe(series: str, run: int, options: Options) -> jc.Recipe:
    """The recipe of a run; its rate is not compiled, so one that diverges shares its network's programs."""
    model, net, optimizer = NETWORKS[run % len(NETWORKS)]
    if series == "new":
        net = {"width": 2, "hidden": 16 + run} if model == "convnet" else {"hidden": [16 + run]}
    common: dict[str, Any] = {"dataset": "digits", "drops": (), "pad": 1, "flip": False, "every": 2, "seed": run}
    lr = 1e30 if kind(run) == "diverged" else 0.01
    given = {"model": model, "options": net, "optimizer": optimizer, "lr": lr, "steps": options.steps}
    return jc.Recipe(**common, **given, batch=options.batch)


def probe(cache: Path, folder: Path) -> Row:
    """What this process holds: memory in MiB, and counts; files of `cache` and of the run's `folder` in MiB and KiB."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = {
        name: int(status[key].split()[0]) / 1024 for name, key in (("memory_mib", "VmRSS"), ("peak_mib", "VmHWM"))
    }
    live = jax.live_arrays()
    programs, files = sizes(cache), sizes(folder)
    return memory | {
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "maps": Path("/proc/self/maps").read_text().count("\n"),
        "arrays": len(live),
        "array_bytes": sum(array.nbytes for array in live),
        "blocks": sys.getallocatedblocks(),
        "exits": len(getattr(threading, "_threading_atexits", ())),
        "programs": len(programs),
        "programs_mib": sum(programs) / 2**20,
        "run_files": len(files),
        "run_kib": sum(files) / 2**10,
    }


def sizes(folder: Path) -> list[int]:
    """The bytes of every file in a folder and the folders in it."""
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def train(name: str, recipe: jc.Recipe, stopped: bool, stop: Callable[[], bool], **how: Any) -> bool:
    """One run as a study makes it, `stopped` as soon as it can be and continued; False if the user stopped it."""
    with contextlib.redirect_stderr(io.StringIO()):  # the soak has a bar of its own
        if stopped and runs.sweep({name: recipe}, **how, stop=lambda: True, brief=True) is not None:
            raise AssertionError(f"{name} was to be stopped, and ended")
        return runs.sweep({name: recipe}, **how, stop=stop, brief=True) is not None


def soak(options: Options, data: jc.Dataset, strategy: parallel.Strategy, stop: Callable[[], bool]) -> bool:
    """Make the runs and write OUT/soak.jsonl; False if the user stopped it."""
    out = options.out
    cache = Path(jax.config.values["jax_compilation_cache_dir"])
    order = [(series, run) for series in SERIES for run in range(getattr(options, series))]
    with Progress(len(order)) as progress, open(out / "soak.jsonl", "w") as lines:
        for series, run in order:
            name, began = f"{series}-{run:03}", time.perf_counter()
            how: dict[str, Any] = {"data": data, "out": out, "strategy": strategy}
            if not train(name, recipe(series, run, options), kind(run) == "continued", stop, **how):
                return False
            line = {"series": series, "run": run, "kind": kind(run), "seconds": time.perf_counter() - began}
            print(json.dumps(line | probe(cache, out / name)), file=lines, flush=True)
            progress.advance(1, name)
    return True


def slope(values: np.ndarray) -> tuple[float, float]:
    """The change a run by least squares over the second half, and half the width of its 95% interval."""
    half = values[len(values) // 2 :]
    x = np.arange(len(half)) - (len(half) - 1) / 2
    change = x @ half / (x @ x)
    rest, free = half - half.mean() - change * x, len(half) - 2
    error = math.sqrt(rest @ rest / free / (x @ x))
    return float(change), float(error * stats.t.ppf(0.975, free))


def row(series: str, key: str, values: np.ndarray) -> Row:
    """One row of the table: how a quantity went over a series, and whether it grew beyond what is allowed."""
    quarter, half = len(values) // 4, len(values) // 2
    change, ci95 = slope(values)
    rise = float(values[half:].max() - values[:half].max())
    steep = series == "shared" and change - ci95 > SLOPE.get(key, np.inf)
    line = {"series": series, "of": WHAT[key], "first_quarter": float(values[:quarter].mean())}
    line |= {"last_quarter": float(values[-quarter:].mean()), "slope": change, "slope_ci95": ci95, "rise": rise}
    grew = steep or rise > RISE.get(key, np.inf)
    judged = key in RISE or (key in SLOPE and series == "shared")
    return line | {"verdict": ("grows" if grew else "bounded") if judged else None}


def draw(out: Path) -> list[Row]:
    """`table.md`, `table.csv` and `soak.png` from OUT/soak.jsonl; returns the rows of what grew."""
    lines = read_lines(out / "soak.jsonl")
    if not lines:
        raise jc.ArgumentError(f"{out} holds no soak; write --out with a soak's folder, or leave out --plot-only")
    found = {name: [line for line in lines if line["series"] == name] for name in SERIES}
    found = {name: part for name, part in found.items() if part}
    table = [
        row(name, key, np.array([line[key] for line in part], float)) for name, part in found.items() for key in WHAT
    ]
    tables.write_table(out, table, [notes(found)])
    plots.save(figure(found), out / "soak.png")
    print(f"{tables.markdown(table)}\nwrote {out}/table.md, table.csv and soak.png")
    return [line for line in table if line["verdict"] == "grows"]


def notes(found: dict[str, list[Row]]) -> str:
    """The note below the table."""
    each = "; ".join(f"{name}: {len(part)} runs, {SERIES[name]}" for name, part in found.items())
    kinds = [line["kind"] for part in found.values() for line in part]
    return (
        f"{each}; {kinds.count('diverged')} diverged and {kinds.count('continued')} were stopped and continued. Means of the "
        "first and the last quarter. The slope is a run's, by least squares over the second half, with its 95% interval as if "
        "runs were independent; the rise is from the first half's maximum to the second's. Allowed: a slope of "
        f"{SLOPE['memory_mib'] * 1024:.0f} KiB and {SLOPE['blocks']} blocks in the shared series (its lower end), a rise of "
        f"{RISE['memory_mib']} MiB, {RISE['maps']} maps and {RISE['threads']} threads, and none of handles, arrays and "
        f"callbacks. The peak of memory was {max(line['peak_mib'] for part in found.values() for line in part):.0f} MiB."
    )


def figure(found: dict[str, list[Row]]) -> Any:
    """A panel for each of six quantities, a line for each series."""
    panels = []  # from 0, so that a small rise looks small
    for key in ("memory_mib", "maps", "blocks", "handles", "threads", "programs"):
        unit, many = (1000, ", thousands") if key in ("maps", "blocks") else (1, "")
        lines = [
            plots.Line(
                [line["run"] + 1 for line in part],
                [line[key] / unit for line in part],
                label=f"{name}: {SERIES[name]}",
                dashed=name == "new",
            )
            for name, part in found.items()
        ]
        top = 1.15 * max(line[key] for part in found.values() for line in part) / unit
        panels.append(plots.Panel(WHAT[key] + many, lines, xlabel="run", ylim=(0, top or 1)))
    return plots.panels(panels, columns=3, share="x", size=(4.0, 2.9))


def ready(options: Options) -> None:
    """ArgumentError for what cannot be soaked."""
    for name in SERIES:
        if (all_runs := getattr(options, name)) < 12:
            raise jc.ArgumentError(
                f"{name} is {all_runs}; expected at least 12 runs, for its halves: write --{name} 40"
            )
    if options.steps < 3:
        raise jc.ArgumentError(
            f"steps is {options.steps}; expected at least 3, so that a run can be stopped: write --steps 4"
        )
    if not Path("/proc/self/fd").exists():
        raise jc.ArgumentError("a soak reads /proc/self, which this system lacks; run it on Linux")
    if (options.out / "soak.jsonl").exists():
        raise jc.ArgumentError(
            f"{options.out} holds a soak, and one is of one process; write another --out, or --plot-only"
        )


def main(args: list[str] | None = None) -> int:
    """Soak, then draw; returns the exit code: 1 if something grew."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(PRESETS, args, about=__doc__)
        if not options.plot_only:
            ready(options)
            strategy, data = jc.strategy(options.strategy), jc.load_dataset("digits")
            check_config(recipe("shared", 0, options), data, strategy)
            runs.open_run_dir(recipe("shared", 0, options), options.out / "shared-000", strategy)
            cli.enable_compilation_cache(options.out / "programs")
            if not soak(options, data, strategy, stop):
                print("stopped; a soak is of one process: begin anew with another --out", file=sys.stderr)
                return stop.exit_code
        with cli.reading(options.out):
            grown = draw(options.out)
    if grown:
        each = ", ".join(f"{line['of']} ({line['series']})" for line in grown)
        print(
            f"leak: these grow beyond what is allowed: {each}; {options.out}/table.md has the numbers", file=sys.stderr
        )
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
