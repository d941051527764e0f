"""Command `python -m experiments.benchmark`: measure networks and print their rows."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import experiments.benchmark as package
import jaxcnn as jc
from experiments._common import DeviceOptions, FigureOptions
from experiments._options import parse_options
from experiments.benchmark import pytorch, report, timing
from experiments.benchmark.workload import (
    IMAGENET,
    NETWORKS,
    Workload,
    create_workload,
    training_flop,
)
from jaxcnn import cli, parallel
from jaxcnn.config import check_choice
from jaxcnn.progress import Progress

Form = Literal["eager", "channels_last", "compile", "max-autotune"]
BATCH = 128
"""Images a step."""
LARGE_IMAGE_BATCH = 16
"""Images of 224x224 pixels a step on a CPU."""


@dataclass(frozen=True)
class Options(DeviceOptions, FigureOptions):
    """Options of the benchmark; `--preset` selects the defaults."""

    preset: Literal["quick", "full"] = "quick"
    """quick: four networks. full: all networks, more rounds."""
    networks: tuple[str, ...] = ("lenet5-relu", "resnet20", "plain20", "vgg11-32")
    """Networks to measure: lenet5-relu, plain20, plain56, plain110, resnet20, resnet56, resnet110,
    vgg11-32, vgg16-32, resnet18 or resnet50."""
    batch_size: int | None = None
    """Images a step, over all devices; None is 128, or 16 of 224 pixels on a CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 5
    """Rounds of measurements. Each measures everything once, in turns."""
    seconds: float = 1.0
    """Approximate seconds of one measurement, and at least one step."""
    steps: int | None = None
    """Training steps of one measurement. The slow start in new processes and XLA's memory plans are
    then left out. None is as many as --seconds allows."""
    torch: bool = True
    """Measure PyTorch too, where it is installed."""
    forms: tuple[Form, ...] = ("eager", "channels_last", "compile")
    """Forms of PyTorch. compile is channels_last too. max-autotune takes minutes to compile."""
    out: Path = Path("runs/benchmark")
    """Folder for tables and figures."""


PRESETS = {
    "quick": Options(),
    "full": Options(
        preset="full",
        networks=tuple(NETWORKS),
        rounds=7,
        seconds=2.0,
        out=Path("runs/benchmark-full"),
    ),
}
NOTES = (
    "images_per_second is that of `train`, and q25 and q75 are its quartiles over the rounds. "
    "overhead is the time that `train` adds to the bare jitted step; it contains what `train` does "
    "once a row, which has steps_a_round steps here. inputs is the share of a step's time that "
    "making its inputs takes alone.",
    "peak is the fastest matrix product in the same dtype and copy the fastest copy, measured at "
    "the start of the run. FLOP are 6 for each multiply-add. traffic and planned memory are XLA's "
    "plans for one device, the data set left out.",
    "first_step: from everything imported and loaded to the end of the first step, in a process of "
    "its own, with an empty cache of programs (cold) and again (warm); imports: from the command "
    "to there. peak_mib is what a device says it used.",
    "PyTorch trains the same layers with the same batch, threads and optimizer, in turns with "
    "`train`. Its inputs are floats in memory, while `train` gathers, crops and flips images. "
    "over_pytorch is the median over the rounds of the ratio to the fastest of its forms.",
)
"""Notes below the table. The last one is for tables with PyTorch's columns."""


def check_options(options: Options, strategy: parallel.Strategy) -> None:
    """Check the options before anything is compiled.

    Raises:
      ArgumentError: an option is invalid.
    """
    for name, example in (("networks", "resnet20 vgg11-32"), ("forms", "eager channels_last")):
        if not getattr(options, name):
            raise jc.ArgumentError(f"{name} is empty; write --{name} {example}")
    for name in options.networks:
        check_choice("network", name, NETWORKS)
    if options.rounds < 1:
        raise jc.ArgumentError(f"rounds is {options.rounds}; expected at least 1: write --rounds 5")
    if not 0 < options.seconds < math.inf:
        raise jc.ArgumentError(
            f"seconds is {options.seconds}; expected a finite number above 0: write --seconds 1"
        )
    if options.batch_size is not None and options.batch_size < 1:
        raise jc.ArgumentError(
            f"batch_size is {options.batch_size}; expected at least 1: write --batch-size 128"
        )
    if options.steps is not None and not 1 <= options.steps <= timing.MAX_STEPS:
        raise jc.ArgumentError(
            f"steps is {options.steps}; expected 1 to {timing.MAX_STEPS}: write --steps 100"
        )
    for name in options.networks:
        strategy.check(batch_size(options, name, strategy))


def batch_size(options: Options, name: str, strategy: parallel.Strategy) -> int:
    """Return the images a step of a network."""
    if options.batch_size is not None:
        return options.batch_size
    is_cpu = strategy.devices[0].platform == "cpu"
    return LARGE_IMAGE_BATCH if NETWORKS[name] == IMAGENET and is_cpu else BATCH


def main(args: list[str] | None = None) -> int:
    """Measure the networks of the command line, and return the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = parse_options(PRESETS, args, description=package.__doc__)
        strategy = options.make_strategy()
        check_options(options, strategy)
        options.out.mkdir(parents=True, exist_ok=True)
        cli.enable_compilation_cache()
        reason = None
        if options.torch:
            platform = strategy.devices[0].platform
            reason = pytorch.unavailable_reason(platform, len(strategy.devices))
        machine = report.describe_machine(strategy)
        print("\n".join(filter(None, (machine, reason))))
        peak = timing.measure_peak(strategy, options.dtype)
        print(
            f"{options.dtype}: matrix product {peak.gflops:.4g} GFLOP/s, "
            f"copy {peak.bandwidth:.4g} GB/s"
        )
        with_pytorch = bool(options.torch and not reason)
        return measure_networks(options, strategy, peak, machine, with_pytorch, stop)


def measure_networks(
    options: Options,
    strategy: parallel.Strategy,
    peak: timing.Peak,
    machine: str,
    with_pytorch: bool,
    stop: cli.GracefulShutdown,
) -> int:
    """Measure all networks, and write the report after each.

    Args:
      options: of the command line.
      strategy: the devices.
      peak: the roofs.
      machine: the line of `describe_machine`.
      with_pytorch: whether PyTorch is measured too.
      stop: true once the user interrupts.

    Returns:
      The exit code.
    """
    pytorch_columns = ("over_pytorch", "best_form")
    columns = [c for c in report.PRINTED_COLUMNS if with_pytorch or c not in pytorch_columns]
    print(report.format_row(None, columns))
    rows, notes = [], list(NOTES[: None if with_pytorch else -1])
    # A network advances by its compilation, its warm-up, the round that does not count and the
    # rounds.
    with Progress(len(options.networks) * (options.rounds + 3)) as progress:
        for name in options.networks:
            advance = _progress_callback(progress, name, stop)
            row, failures = measure_network(options, name, strategy, peak, with_pytorch, advance)
            if row is None:
                return stop.exit_code
            rows.append(row)
            notes += failures
            print("\n".join([*failures, report.format_row(row, columns)]), flush=True)
            report.write_report(options.out, rows, peak, machine, notes, options)
    print(f"wrote table.md, table.csv and roofline.{options.format} in {options.out}")
    return 0


def _progress_callback(
    progress: Progress, name: str, stop: cli.GracefulShutdown
) -> Callable[[str], bool]:
    """Return a function that advances the progress to a named phase.

    It returns whether the user interrupted.
    """

    def advance(phase: str) -> bool:
        progress.advance(1, f"{name}: {phase}")
        return stop()

    return advance


def measure_network(
    options: Options,
    name: str,
    strategy: parallel.Strategy,
    peak: timing.Peak,
    with_pytorch: bool,
    advance: Callable[[str], bool],
) -> tuple[dict[str, Any] | None, list[str]]:
    """Measure one network.

    Args:
      options: of the command line.
      name: a key of `NETWORKS`.
      strategy: the devices.
      peak: the roofs.
      with_pytorch: whether PyTorch is measured too.
      advance: called with the name of each phase. It returns whether to stop.

    Returns:
      The network's row, or None if the user interrupted, and a line for each form of PyTorch that
      failed.
    """
    size = batch_size(options, name, strategy)
    settings = {
        "batch_size": size,
        "dtype": options.dtype,
        "strategy": strategy.kind,
        "devices": len(strategy.devices),
    }
    startup: dict[str, Any] = {}
    plan: dict[str, Any] = {"memory": None, "traffic": None}
    steps = options.steps
    if steps is None:
        startup = timing.measure_startup(name=name, **settings)
        steps = timing.steps_for_duration(startup.pop("later_step_s"), options.seconds)
        plan = startup.pop("plan")
    if advance("compiling"):
        return None, []
    workload = create_workload(name, size, options.dtype, strategy, steps)
    shape = workload.data.train.images.shape[1:]
    parameters = jc.count_parameters(workload.model, shape)
    row: dict[str, Any] = {"network": name, "image": "x".join(map(str, shape))} | settings
    row |= {"device": strategy.devices[0].device_kind, "parameters": parameters}
    counts = report.StepCounts(
        batch_size=size,
        num_steps=steps,
        devices=len(strategy.devices),
        flop=training_flop(workload),
        memory=plan["memory"],
        traffic=plan["traffic"],
    )
    forms, failures = {}, []
    if with_pytorch:
        forms, failures = _time_pytorch(workload, options, parameters)
    timings = None
    if not advance("warming up"):
        timings = measure_rounds(
            workload, forms, steps, options.rounds, lambda: advance("measuring")
        )
    # The next network's programs need the memory.
    parallel.clear_program_cache()
    if timings is None:
        return None, failures
    return row | report.timing_columns(timings, counts, peak) | startup, failures


def _time_pytorch(
    workload: Workload, options: Options, parameters: int
) -> tuple[dict[str, timing.TimedRun], list[str]]:
    """Return the timers of PyTorch's forms, and a line for each failure."""
    device = "cpu" if workload.strategy.devices[0].platform == "cpu" else "cuda"
    config = workload.config
    return pytorch.time_forms(
        config.model, config.train.batch_size, options.dtype, options.forms, device, parameters
    )


def measure_rounds(
    workload: Workload,
    forms: dict[str, timing.TimedRun],
    num_steps: int,
    rounds: int,
    should_stop: Callable[[], bool],
) -> dict[str, list[float]] | None:
    """Return the seconds of all rounds, by the name of the run.

    None if the user interrupted.
    """
    bare = timing.time_bare_step(workload)
    runs = {
        "train": timing.time_train(workload, num_steps),
        "bare": bare,
        "inputs": timing.time_inputs(workload),
    }
    runs |= forms
    # A scan of another length would be another program.
    settle_steps = num_steps if workload.strategy.scans else 1
    settle = {
        name: (lambda _, run=run: run(settle_steps))
        for name, run in (runs | {"train": bare}).items()
    }
    return timing.time_alternately(runs, num_steps, rounds, settle, should_stop)


if __name__ == "__main__":
    sys.exit(main())
