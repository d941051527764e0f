"""`python -m experiments.benchmark`: measure one network after another, and print its line when it is there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import experiments.benchmark as about
import jaxcnn as jc
from experiments.benchmark import costs, first, machine, pace, pytorch, rows
from experiments.benchmark.networks import Job, job
from experiments.benchmark.options import PRESETS, Options, batch, check
from jaxcnn import cli, parallel
from jaxcnn.progress import Progress

NOTES = (
    "images_per_second is of `train`, q25 and q75 its quartiles over the rounds; overhead is fit's time over that of the bare "
    "jitted step, with what fit does once a row, which is of steps_a_round steps here; inputs is the share of the step's time "
    "which making inputs takes alone.",
    "peak is the fastest matrix product in the same dtype and copy the fastest copy, measured at the start of the run. FLOP "
    "are 6 for each multiply-add. traffic and planned memory are XLA's plans for one device, the data set left out.",
    "first_step: from everything imported and loaded to the end of the first step, in a process of its own, with an empty "
    "cache of programs (cold) and again (warm); imports: from the command to there. peak_mib is what a device says it used.",
    "PyTorch: the same layers, batch, threads and optimiser, in turns with fit, on floats that lie ready (fit gathers, crops "
    "and flips its own); over_pytorch is the median of the rounds' ratios to the best of its forms.",
)


def main(args: list[str] | None = None) -> int:
    """Measure what is asked for; returns the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(PRESETS, args, about=about.__doc__)
        strategy = jc.strategy(options.strategy, options.devices)
        check(options, strategy)
        options.out.mkdir(parents=True, exist_ok=True)
        cli.enable_compilation_cache()
        why = pytorch.absent(strategy.devices[0].platform, len(strategy.devices)) if options.torch else None
        machine_line = machine.described(strategy)
        print("\n".join(filter(None, (machine_line, why))))
        peak = machine.peak(strategy, options.dtype)
        print(f"{options.dtype}: matrix product {peak.gflops:.4g} GFLOP/s, copy {peak.bandwidth:.4g} GB/s")
        return table(options, strategy, peak, machine_line, bool(options.torch and not why), stop)


def table(
    options: Options,
    strategy: parallel.Strategy,
    peak: machine.Peak,
    machine_line: str,
    torch: bool,
    stop: cli.GracefulShutdown,
) -> int:
    """Measure all networks; the exit code. What is there is written after each."""
    columns = [name for name in rows.PRINTED if torch or name not in ("over_pytorch", "best_form")]
    print(rows.printed(None, columns))
    found, notes = [], list(NOTES[: None if torch else -1])
    with Progress(len(options.networks) * (options.rounds + 3)) as progress:
        for name in options.networks:
            row, failed = measured(options, name, strategy, peak, torch, told(progress, name, stop))
            if row is None:
                return stop.exit_code
            found.append(row)
            notes += failed
            print("\n".join([*failed, rows.printed(row, columns)]), flush=True)
            rows.write(options.out, found, peak, machine_line, notes)
    print(f"wrote table.md, table.csv and roofline.png in {options.out}")
    return 0


def told(progress: Progress, name: str, stop: cli.GracefulShutdown) -> Callable[[str], bool]:
    """A function that moves the progress on, saying what comes next, and tells whether somebody asked to stop."""

    def advance(what: str) -> bool:
        progress.advance(1, f"{name}: {what}")
        return stop()

    return advance


def measured(
    options: Options,
    name: str,
    strategy: parallel.Strategy,
    peak: machine.Peak,
    torch: bool,
    each: Callable[[str], bool],
) -> tuple[dict[str, Any] | None, list[str]]:
    """The network's row, None if somebody asked to stop; and a line for each form of PyTorch that failed."""
    size = batch(options, name, strategy)
    settings = {"batch": size, "dtype": options.dtype, "strategy": strategy.kind, "devices": len(strategy.devices)}
    began = first.measure(name=name, **settings)
    if each("compiling"):
        return None, []
    steps, plan = pace.suited(began.pop("later_step_s"), options.seconds), began.pop("plan")
    given = job(name, size, options.dtype, strategy, steps)
    shape = given.data.train.images.shape[1:]
    params = jc.count_parameters(given.model, shape)
    head: dict[str, Any] = {"network": name, "image": "x".join(map(str, shape))} | settings
    head |= {"device": strategy.devices[0].device_kind, "parameters": params}
    counts = rows.Counts(size, steps, len(strategy.devices), costs.flop(given), plan["memory"], plan["traffic"])
    forms, failed = beside(given, options, params) if torch else ({}, [])
    took = None if each("warming up") else timed(given, forms, steps, options.rounds, lambda: each("measuring"))
    parallel.clear_program_cache()
    return (head | rows.line(took, counts, peak) | began if took else None), failed


def beside(given: Job, options: Options, params: int) -> tuple[dict[str, pace.Run], list[str]]:
    """PyTorch's forms of the network, and a line for each that failed."""
    device = "cpu" if given.strategy.devices[0].platform == "cpu" else "cuda"
    return pytorch.runs(given.recipe.model, given.recipe.batch, options.dtype, options.forms, device, params)


def timed(
    given: Job, forms: dict[str, pace.Run], steps: int, rounds: int, each: Callable[[], bool]
) -> dict[str, list[float]] | None:
    """Seconds of all rounds; None if somebody asked to stop."""
    bare = pace.bare(given)
    works = {"fit": pace.fitted(given, steps), "bare": bare, "inputs": pace.inputs(given)} | forms
    alone = steps if given.strategy.scans else 1  # a scan of another length would be another program
    settle = {name: (lambda _, run=run: run(alone)) for name, run in (works | {"fit": bare}).items()}
    return pace.alternate(works, steps, rounds, settle, each)


if __name__ == "__main__":
    sys.exit(main())
