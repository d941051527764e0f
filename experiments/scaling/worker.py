r"""Worker process, one of N that train together.

    python -m experiments.scaling.worker \
        '{"processes": 1, "process_id": 0, "network": "resnet8", "width": 4, "batch_size": 32}'

It follows the lines of its input. It prints "ready" when it has compiled. Each line `WORK TIMES` of
its input repeats a work so many times, and it prints "took" and the seconds. The first process
compiles. Each other one waits for a line before it compiles, and finds the programs in the cache.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

import jaxcnn as jc
from experiments.scaling.analytic import NormScope
from experiments.scaling.compiled import Workload, create_workload, hlo_text
from experiments.scaling.traffic import CHAIN_LENGTH, LARGE_SIZE
from jaxcnn import cli, multihost


def main(settings: Mapping[str, Any]) -> None:
    """Join the other processes, compile, and answer the lines of the input.

    Args:
      settings: processes, process_id, network, width, batch_size and, for several processes, port.
    """
    processes, process_id = settings["processes"], settings["process_id"]
    if processes > 1:
        multihost.initialize(f"127.0.0.1:{settings['port']}", processes, process_id)
    # All processes take part in the first listing of devices.
    jax.devices()
    # An empty line is the end of the input: the process that started this one has ended.
    if process_id > 0 and not sys.stdin.readline():
        return
    cli.enable_compilation_cache()
    works = create_works(settings)
    print("ready", flush=True)
    for line in sys.stdin:
        work, times = line.split()
        start = time.perf_counter()
        for _ in range(int(times)):
            works[work]()
        print("took", time.perf_counter() - start, flush=True)


def create_works(settings: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """Return the works by name.

    "batch" and "device" are a step of training with BN over the batch or within a device. "small"
    and "large" are all-reduces alone. A single process has "batch" alone.
    """
    strategy, processes = jc.strategy("jit"), settings["processes"]
    network, width = settings["network"], settings["width"]
    batch_size = settings["batch_size"]
    if processes == 1:
        workload = create_workload(network, width, batch_size, strategy, "batch", 1)
        return {"batch": training_work(workload, batch_size)}
    norms: tuple[NormScope, ...] = ("batch", "device")
    works = {
        norm: training_work(
            create_workload(network, width, batch_size, strategy, norm, processes), batch_size
        )
        for norm in norms
    }
    return works | {
        "small": all_reduce_work(strategy.mesh, 8, CHAIN_LENGTH),
        "large": all_reduce_work(strategy.mesh, LARGE_SIZE, 1),
    }


def training_work(workload: Workload, batch_size: int) -> Callable[[], Any]:
    """Compile a step, and return a function that makes one step."""
    # Compiles now, so that the first call finds the program in the cache.
    hlo_text(workload, batch_size)
    program = workload.strategy.compile_steps(workload.step)
    order = np.arange(batch_size, dtype=np.int32)[None]
    # A list, because the carry is donated and replaced in every call.
    state = [workload.carry]

    def call():
        state[0] = jax.block_until_ready(program(state[0], workload.fixed, order))

    return call


def all_reduce_work(mesh: Any, size: int, times: int) -> Callable[[], Any]:
    """Return a function that all-reduces one tensor repeatedly.

    Args:
      mesh: of all devices.
      size: numbers in the tensor, float32 [size].
      times: all-reduces, one after another.
    """
    axis = mesh.axis_names[0]

    def run(x):
        for _ in range(times):
            x = jax.lax.pmean(x, axis)
        return x

    replicated = PartitionSpec()
    program = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False)
    )
    sharding = jax.NamedSharding(mesh, replicated)
    x = jax.make_array_from_callback(
        (size,), sharding, lambda part: np.ones(size, np.float32)[part]
    )
    return lambda: jax.block_until_ready(program(x))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
