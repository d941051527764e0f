"""Soak test: a study of hundreds of short runs in one process.

    python -m experiments.stress.soak                   100 runs on digits, no download: some
                                                        minutes on two CPU cores
    python -m experiments.stress.soak --preset full     400 runs: 19 minutes there, next to other
                                                        work

Memory must stay flat, and files must be closed. There are two series, in one process. `shared` has
many seeds of four networks, so that a few programs serve all runs. In `new` every run has a network
of its own, so that every run compiles. In both one run in ten diverges, and one is stopped and
resumed. After every run garbage is collected, and OUT/soak.jsonl gets a line with these:

- memory, file handles, threads, and memory maps (Linux ends a process that has more than 65,530);
- live arrays, Python's allocated blocks, callbacks kept for the process's end;
- the files of the compile cache and of the run.

Expected: the memory of `shared` grows by less than 64 KiB a run, that of `new` is bounded, and no
handle or thread is left behind. Then the exit code is 0. Otherwise one line names what grew, and
the exit code is 1.

It writes OUT/table.md, OUT/table.csv, OUT/soak.png and a folder for every run. A soak is of one
process: one that was stopped starts from scratch in another folder.
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
from experiments._common import DeviceOptions, FigureOptions
from experiments._options import parse_options
from jaxcnn import cli, parallel, plots, runs, tables
from jaxcnn.progress import Progress
from jaxcnn.run_log import read_lines
from jaxcnn.training_checks import check_config

Row = dict[str, Any]
"""A line of OUT/soak.jsonl or of the table."""
SERIES = {"shared": "seeds of four networks", "new": "every run a new network"}
"""Series -> its description in notes and figure."""
NETWORKS = (
    ("mlp", {"hidden": [16]}, "momentum"),
    ("mlp", {"hidden": [16]}, "adam"),
    ("mlp", {"hidden": [8, 8]}, "sam"),
    ("convnet", {"width": 2, "hidden": 8}, "momentum"),
)
"""Models, their keyword arguments and their optimizers."""
QUANTITIES = {
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
"""Measurements after every run: key -> name in the table."""
PANELS = {
    "memory_mib": ("Resident memory", "memory (MiB)", 1),
    "maps": ("Memory maps", "maps (thousands)", 1000),
    "blocks": ("Python's memory blocks", "blocks (thousands)", 1000),
    "handles": ("Open file handles", "handles", 1),
    "threads": ("Threads", "threads", 1),
    "programs": ("Files of the compile cache", "files", 1),
}
"""Measurements in the figure: key -> title, label of the axis, and unit."""
SLOPE = {"memory_mib": 64 / 1024, "blocks": 1000}
"""Largest growth of `shared` by a run, in its second half.

It is compared with the lower end of the slope's interval.
"""
RISE = {"memory_mib": 256, "handles": 0, "threads": 4, "maps": 3000, "arrays": 0, "exits": 0}
"""Largest rise from the maximum of the first half to that of the second.

It is above 0 for threads because pools of threads fill slowly.
"""


@dataclass(frozen=True)
class Options(DeviceOptions, FigureOptions):
    """Every setting of the soak; `--preset` chooses the defaults."""

    preset: Literal["quick", "full"] = "quick"
    """quick: 100 runs. full: 400 runs."""
    shared: int = 64
    """Runs that share four networks."""
    new: int = 36
    """Runs with a network each."""
    num_steps: int = 4
    """Steps of every run, with a row and a checkpoint at every other one."""
    batch_size: int = 64
    out: Path = Path("runs/soak")
    plot_only: bool = False


PRESETS = {
    "quick": Options(),
    "full": Options(preset="full", shared=200, new=200, out=Path("runs/soak-full")),
}


def kind(run: int) -> str:
    """Return the kind of a run by its number.

    It is "diverged", "continued" or "whole". A continued run is stopped before its first row, on
    a CPU.
    """
    return {4: "diverged", 7: "continued"}.get(run % 10, "whole")


def config(series: str, run: int, options: Options) -> jc.ExperimentConfig:
    """Return the config of a run.

    Its rate is not compiled, so a run that diverges shares its network's programs.
    """
    model, model_kwargs, optimizer = NETWORKS[run % len(NETWORKS)]
    if series == "new":
        model_kwargs = (
            {"width": 2, "hidden": 16 + run} if model == "convnet" else {"hidden": [16 + run]}
        )
    return jc.ExperimentConfig(
        dataset="digits",
        model=model,
        model_kwargs=model_kwargs,
        optimizer=jc.OptimizerConfig(
            optimizer,
            learning_rate=1e30 if kind(run) == "diverged" else 0.01,
            milestones=(),
        ),
        train=jc.TrainConfig(
            num_steps=options.num_steps,
            batch_size=options.batch_size,
            eval_every=2,
            augment=jc.AugmentConfig(padding=1),
            seed=run,
        ),
    )


def probe(cache: Path, folder: Path) -> Row:
    """Measure this process: memory in MiB, and counts.

    Args:
      cache: folder of the compile cache, measured in MiB.
      folder: of the run, measured in KiB.
    """
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    memory = {
        name: int(status[key].split()[0]) / 1024
        for name, key in (("memory_mib", "VmRSS"), ("peak_mib", "VmHWM"))
    }
    arrays = jax.live_arrays()
    programs, files = file_sizes(cache), file_sizes(folder)
    return memory | {
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "maps": Path("/proc/self/maps").read_text().count("\n"),
        "arrays": len(arrays),
        "array_bytes": sum(array.nbytes for array in arrays),
        "blocks": sys.getallocatedblocks(),
        "exits": len(getattr(threading, "_threading_atexits", ())),
        "programs": len(programs),
        "programs_mib": sum(programs) / 2**20,
        "run_files": len(files),
        "run_kib": sum(files) / 2**10,
    }


def file_sizes(folder: Path) -> list[int]:
    """Return the bytes of every file in a folder and its subfolders."""
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def train(
    name: str,
    config: jc.ExperimentConfig,
    is_continued: bool,
    stop: Callable[[], bool],
    **sweep_kwargs: Any,
) -> bool:
    """Make a run as a study does; return False if stopped.

    Args:
      name: of the run.
      config: of the run.
      is_continued: True to stop it as soon as possible, and to resume it.
      stop: returns True to stop the run.
      sweep_kwargs: other arguments of `jaxcnn.runs.sweep`.
    """
    # The soak has a progress bar of its own.
    with contextlib.redirect_stderr(io.StringIO()):
        if (
            is_continued
            and runs.sweep({name: config}, **sweep_kwargs, should_stop=lambda: True, quiet=True)
            is not None
        ):
            raise AssertionError(f"{name} was to be stopped, and ended")
        return runs.sweep({name: config}, **sweep_kwargs, should_stop=stop, quiet=True) is not None


def soak(
    options: Options, data: jc.Dataset, strategy: parallel.Strategy, stop: Callable[[], bool]
) -> bool:
    """Make the runs and write OUT/soak.jsonl; False if the user stopped it."""
    out = options.out
    cache = Path(jax.config.values["jax_compilation_cache_dir"])
    order = [(series, run) for series in SERIES for run in range(getattr(options, series))]
    with Progress(len(order)) as progress, open(out / "soak.jsonl", "w") as lines:
        for series, run in order:
            name, start = f"{series}-{run:03}", time.perf_counter()
            sweep_kwargs: dict[str, Any] = {"data": data, "out": out, "strategy": strategy}
            is_continued = kind(run) == "continued"
            if not train(name, config(series, run, options), is_continued, stop, **sweep_kwargs):
                return False
            seconds = time.perf_counter() - start
            line = {"series": series, "run": run, "kind": kind(run), "seconds": seconds}
            print(json.dumps(line | probe(cache, out / name)), file=lines, flush=True)
            progress.advance(1, name)
    return True


def slope(values: np.ndarray) -> tuple[float, float]:
    """Return the slope over the second half, by least squares.

    Args:
      values: float [n], one a run.

    Returns:
      Change a run, and half the width of its 95% interval.
    """
    half = values[len(values) // 2 :]
    x = np.arange(len(half)) - (len(half) - 1) / 2
    change = x @ half / (x @ x)
    residuals, free = half - half.mean() - change * x, len(half) - 2
    error = math.sqrt(residuals @ residuals / free / (x @ x))
    return float(change), float(error * stats.t.ppf(0.975, free))


def row(series: str, key: str, values: np.ndarray) -> Row:
    """Return the table's row of a quantity in a series.

    Args:
      series: name in `SERIES`.
      key: of the quantity in `QUANTITIES`.
      values: float [n], one a run.

    Returns:
      Means, slope and rise. The verdict is "grows" beyond `SLOPE` or `RISE`, else "bounded"; None
      for a quantity without a limit.
    """
    quarter, half = len(values) // 4, len(values) // 2
    change, ci95 = slope(values)
    rise = float(values[half:].max() - values[:half].max())
    is_steep = series == "shared" and change - ci95 > SLOPE.get(key, np.inf)
    line = {
        "series": series,
        "of": QUANTITIES[key],
        "first_quarter": float(values[:quarter].mean()),
    }
    line |= {
        "last_quarter": float(values[-quarter:].mean()),
        "slope": change,
        "slope_ci95": ci95,
        "rise": rise,
    }
    grows = is_steep or rise > RISE.get(key, np.inf)
    has_limit = key in RISE or (key in SLOPE and series == "shared")
    return line | {"verdict": ("grows" if grows else "bounded") if has_limit else None}


def draw(options: FigureOptions, out: Path) -> list[Row]:
    """Write `table.md`, `table.csv` and the figure `soak` from OUT/soak.jsonl.

    Returns:
      Rows of the quantities that grow.

    Raises:
      ArgumentError: if the folder holds no soak.
    """
    lines = read_lines(out / "soak.jsonl")
    if not lines:
        raise jc.ArgumentError(
            f"{out} holds no soak; write --out with a soak's folder, or leave out --plot-only"
        )
    by_series = {name: [line for line in lines if line["series"] == name] for name in SERIES}
    by_series = {name: series_lines for name, series_lines in by_series.items() if series_lines}
    table = [
        row(name, key, np.array([line[key] for line in series_lines], float))
        for name, series_lines in by_series.items()
        for key in QUANTITIES
    ]
    tables.write_table(out, table, [notes(by_series)])
    options.save(figure(by_series), out / "soak")
    written = f"{out}/table.md, table.csv and soak.{options.format}"
    print(f"{tables.compact_markdown(table)}\nwrote {written}")
    return [line for line in table if line["verdict"] == "grows"]


def notes(by_series: dict[str, list[Row]]) -> str:
    """Return the note below the table."""
    counts = "; ".join(
        f"{name}: {len(lines)} runs, {SERIES[name]}" for name, lines in by_series.items()
    )
    kinds = [line["kind"] for lines in by_series.values() for line in lines]
    peak = max(line["peak_mib"] for lines in by_series.values() for line in lines)
    return (
        f"{counts}; {kinds.count('diverged')} diverged and {kinds.count('continued')} were stopped "
        "and continued. Means of the first and the last quarter. The slope is a run's, by least "
        "squares over the second half, with its 95% interval as if runs were independent; the rise "
        "is from the first half's maximum to the second's. Allowed: a slope of "
        f"{SLOPE['memory_mib'] * 1024:.0f} KiB and {SLOPE['blocks']} blocks in the shared series "
        f"(its lower end), a rise of {RISE['memory_mib']} MiB, {RISE['maps']} maps and "
        f"{RISE['threads']} threads, and none of handles, arrays and callbacks. The peak of memory "
        f"was {peak:.0f} MiB."
    )


def figure(by_series: dict[str, list[Row]]) -> Any:
    """Draw a panel for each of six quantities, with both series."""
    panels = []
    for key, (title, ylabel, unit) in PANELS.items():
        lines = [
            plots.Line(
                [line["run"] + 1 for line in series_lines],
                [line[key] / unit for line in series_lines],
                label=SERIES[name],
                dashed=name == "new",
            )
            for name, series_lines in by_series.items()
        ]
        top = 1.15 * max(line[key] for rows in by_series.values() for line in rows) / unit
        # From 0, so that a small rise looks small.
        panels.append(plots.Panel(title, lines, (), "run", ylabel, ylim=(0, top or 1)))
    title = "Resources of one process after each of its runs"
    return plots.panels(panels, columns=3, share="x", size=(3.7, 2.7), title=title)


def check(options: Options) -> None:
    """Check the settings, the system and the folder.

    Raises:
      ArgumentError: for too few runs or steps, another system than Linux, or a folder with a soak.
    """
    for name in SERIES:
        if (num_runs := getattr(options, name)) < 12:
            raise jc.ArgumentError(
                f"{name} is {num_runs}; expected at least 12 runs, for its halves: "
                f"write --{name} 40"
            )
    if options.num_steps < 3:
        raise jc.ArgumentError(
            f"num_steps is {options.num_steps}; expected at least 3, so that a run can be stopped: "
            "write --num-steps 4"
        )
    if not Path("/proc/self/fd").exists():
        raise jc.ArgumentError("a soak reads /proc/self, which this system lacks; run it on Linux")
    if (options.out / "soak.jsonl").exists():
        raise jc.ArgumentError(
            f"{options.out} holds a soak, and one is of one process; "
            "write another --out, or --plot-only"
        )


def main(args: list[str] | None = None) -> int:
    """Soak, then draw.

    Returns:
      The exit code: 1 if something grows.
    """
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = parse_options(PRESETS, args, description=__doc__)
        if not options.plot_only:
            check(options)
            strategy, data = options.make_strategy(), jc.load_dataset("digits")
            # All configs are alike, so one is checked before the first run.
            check_config(config("shared", 0, options).train, data, strategy)
            runs.open_run_dir(config("shared", 0, options), options.out / "shared-000", strategy)
            cli.enable_compilation_cache(options.out / "programs")
            if not soak(options, data, strategy, stop):
                print(
                    "stopped; a soak is of one process: start from scratch with another --out",
                    file=sys.stderr,
                )
                return stop.exit_code
        with cli.record_errors(options.out):
            grown = draw(options, options.out)
    if grown:
        names = ", ".join(f"{line['of']} ({line['series']})" for line in grown)
        print(
            f"leak: these grow beyond what is allowed: {names}; "
            f"{options.out}/table.md has the numbers",
            file=sys.stderr,
        )
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
