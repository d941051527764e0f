"""One of N processes that train together: it says "ready", then does what each line of its input says.

The first of them compiles; each other waits for a line before it does, and finds the programs in the cache.

    python -m experiments.scaling.worker '{"processes": 1, "me": 0, "network": "resnet8", "width": 4, "batch": 32}'
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
from experiments.scaling.arithmetic import Norm
from experiments.scaling.compiled import Job, job, text
from experiments.scaling.wire import CHAIN, LARGE
from jaxcnn import cli, multihost


def main(settings: Mapping[str, Any]) -> None:
    """Join the others, compile, and answer each line `NAME TIMES` with the seconds that it took."""
    count, me = settings["processes"], settings["me"]
    if count > 1:
        multihost.initialize(f"127.0.0.1:{settings['port']}", count, me)
    jax.devices()  # in which all take part
    if me > 0 and not sys.stdin.readline():  # whoever started it is gone
        return
    cli.enable_compilation_cache()
    calls = works(settings)
    print("ready", flush=True)
    for line in sys.stdin:
        name, times = line.split()
        began = time.perf_counter()
        for _ in range(int(times)):
            calls[name]()
        print("took", time.perf_counter() - began, flush=True)


def works(settings: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """batch, device: a step of training, BN over the batch or within a device; small, large: nothing but all-reduces."""
    strategy, count = jc.strategy("jit"), settings["processes"]
    what = settings["network"], settings["width"], settings["batch"], strategy
    if count == 1:
        return {"batch": training(job(*what, "batch", 1), settings["batch"])}
    norms: tuple[Norm, ...] = ("batch", "device")
    calls = {norm: training(job(*what, norm, count), settings["batch"]) for norm in norms}
    return calls | {"small": reducing(strategy.mesh, 8, CHAIN), "large": reducing(strategy.mesh, LARGE, 1)}


def training(job: Job, batch: int) -> Callable[[], Any]:
    """A call makes one step of the job. It is compiled here."""
    text(job, batch)
    run, order, held = job.strategy.compile_steps(job.step), np.arange(batch, dtype=np.int32)[None], [job.carry]

    def call():
        held[0] = jax.block_until_ready(run(held[0], job.fixed, order))

    return call


def reducing(mesh: Any, size: int, times: int) -> Callable[[], Any]:
    """A call all-reduces one tensor of float32 [size] so many times, one after another."""
    axis = mesh.axis_names[0]

    def run(x):
        for _ in range(times):
            x = jax.lax.pmean(x, axis)
        return x

    whole = PartitionSpec()
    program = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False))
    x = jax.make_array_from_callback(
        (size,), jax.NamedSharding(mesh, whole), lambda part: np.ones(size, np.float32)[part]
    )
    return lambda: jax.block_until_ready(program(x))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
