"""`python -m experiments.speedrun`: make the runs that are missing, then draw."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import jax

import experiments.speedrun as about
import jaxcnn as jc
from experiments.speedrun import records
from experiments.speedrun.options import Options, check, fits, presets
from experiments.speedrun.training import runner
from jaxcnn import cli
from jaxcnn.progress import Progress


def runs(options: Options, stop: Callable[[], bool]) -> bool:
    """Make the runs that are missing, and warm up before the first of them; False if stopped on the way."""
    data, strategy = jc.load_dataset(options.dataset, options.data_dir), jc.strategy(devices=1)
    data = data if options.examples is None else jc.subset(data, options.examples, 0)
    fits(options, data)
    records.claim(options, strategy)
    there = {line["seed"] for line in records.lines(options.out)}
    missing = [seed for seed in range(options.seed, options.seed + options.runs) if seed not in there]
    if not missing:
        return True
    began, run = time.perf_counter(), runner(options, data, strategy, stop)
    if run(options.seed, warm=True) is None:
        return False
    warm = time.perf_counter() - began
    with Progress(len(missing), every=math.inf) as progress:
        progress.write(f"compiled and warm after {warm:.1f} s; {len(missing)} of {options.runs} runs to go")
        for seed in missing:
            if (done := run(seed)) is None:
                return False
            date = time.strftime("%Y-%m-%d %H:%M:%S")
            records.add(options.out, {"seed": seed} | done._asdict() | {"warm_up": warm, "date": date})
            progress.advance(1, "")
            progress.write(
                f"seed {seed}: {done.accuracy:.2f}% in {done.seconds:.2f} s ({done.train_seconds:.2f} s of training)"
            )
    return True


def main(args: list[str] | None = None) -> int:
    """Train what is missing, then draw; returns the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(presets(jax.default_backend()), args, about=about.__doc__)
        if not options.plot_only:
            check(options)
            cli.enable_compilation_cache()
            if not runs(options, stop):
                print("stopped; runs that were over are kept, and the same command makes the others", file=sys.stderr)
                return stop.exit_code
        with cli.reading(options.out):
            records.draw(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
