"""Seconds to the first step, measured in a process of its own: once with an empty cache of programs, and once with it full.

    python -m experiments.benchmark.first \\
        '{"name": "resnet20", "batch": 128, "dtype": "float32", "strategy": "jit", "devices": 1,
          "began": 0, "plan": true}'
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import jaxcnn as jc
from experiments.benchmark import costs
from experiments.benchmark.networks import job
from experiments.benchmark.pace import initial, tuned, whole_step
from jaxcnn import cli, parallel
from jaxcnn.input_pipeline import input_pipeline


def measure(**settings: Any) -> dict[str, Any]:
    """What a new process tells: columns of the table, and what the rest of the measurement needs to know.

    Args:
      settings: name, batch, dtype, strategy (its kind) and devices.

    Returns:
      Seconds before anything begins, of initialisation and to the first step, cold and warm; MiB in use at most;
      and, not for the table, `later_step_s`, seconds of a later step, and `plan`, what XLA plans (`costs.planned`).
    """
    with tempfile.TemporaryDirectory(prefix="jaxcnn-programs-") as cache:
        cold, warm = (_process(settings | {"plan": second}, cache) for second in (False, True))
    return {
        "imports_s": warm["imports"],
        "initialise_s": cold["initialise"],
        "first_step_cold_s": cold["first"],
        "first_step_warm_s": warm["first"],
        "peak_mib": warm["peak"],
        "later_step_s": warm["later"],
        "plan": warm["plan"],
    }


def _process(settings: Mapping[str, Any], cache: str) -> dict[str, Any]:
    # The other process must find room on a GPU of which this one has taken its share.
    own = {"JAXCNN_CACHE": cache, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    there = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    told = [sys.executable, "-m", "experiments.benchmark.first", json.dumps({"began": time.time()} | dict(settings))]
    # A session of its own: Ctrl-C is for the one who started it, who then ends between two measurements.
    done = subprocess.run(told, env=there | own, stdout=subprocess.PIPE, text=True, check=True, start_new_session=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Initialise and take the first step, as `train` does: one step, or where steps are scanned a scan of two.

    The clock starts when everything is imported, the devices are there and the data are in memory.
    """
    cli.enable_compilation_cache()
    strategy = jc.strategy(settings["strategy"], settings["devices"])
    given = job(settings["name"], settings["batch"], settings["dtype"], strategy)
    began, clock = time.time(), time.perf_counter()
    state = initial(given)
    made = time.perf_counter()
    run, placed = strategy.compile_steps(whole_step(given), tuned(given)), strategy.replicate(state)
    train = input_pipeline(given.data.train, strategy)
    steps = 2 if strategy.scans else 1
    order = np.tile(np.arange(settings["batch"], dtype=np.int32), (steps, 1))
    took, ready = [], time.perf_counter() - clock
    for _ in range(4):
        before = time.perf_counter()
        placed = jax.block_until_ready(run(placed, train.split, next(iter(train.chunks(order)))))
        took.append(time.perf_counter() - before)
    seconds = {"imports": began - settings["began"], "initialise": made - clock, "first": ready + took[0]}
    told = seconds | {"later": min(took[1:]) / steps, "peak": _peak(strategy)}
    return told | {"plan": costs.planned(given) if settings["plan"] else None}


def _peak(strategy: parallel.Strategy) -> float | None:
    """MiB that were in use at most on a device, where it tells."""
    stats = [device.memory_stats() or {} for device in strategy.devices]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    return max(peaks) / 2**20 if peaks else None


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
