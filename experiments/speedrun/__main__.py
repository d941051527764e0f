"""Command `python -m experiments.speedrun`: train the missing runs, then draw."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import jax

import experiments.speedrun as package
import jaxcnn as jc
from experiments.speedrun import records
from experiments.speedrun.options import Options, check_dataset, check_options, presets_for
from experiments.speedrun.training import make_runner
from jaxcnn import cli
from jaxcnn.progress import Progress


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
    records.open_run_dir(options, strategy)
    finished = {record["seed"] for record in records.read_runs(options.out)}
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
            records.append_run(options.out, record)
            progress.advance(1, "")
            progress.write(
                f"seed {seed}: {result.accuracy:.2f}% in {result.seconds:.2f} s "
                f"({result.train_seconds:.2f} s of training)"
            )
    return True


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw, and return the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(presets_for(jax.default_backend()), args, description=package.__doc__)
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
            records.draw(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
