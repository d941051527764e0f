"""Roofline of the machine, and costs of a training step.

The costs are operations, memory and memory traffic. The peaks are those of matrix products and of
copying, compiled by the same compiler.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.workload import (
    Workload,
    initial_state,
    should_rewrite_for_cpu,
    train_step,
)
from jaxcnn import parallel
from jaxcnn.interpret import summary

MATRIX_SIZES = {"cpu": (512, 1024, 2048), "gpu": (4096, 8192, 16384)}
"""Rows of the square matrices, by platform."""
COPY_BYTES = {"cpu": (1 << 29,), "gpu": (1 << 28, 1 << 30)}
"""Bytes of the copied arrays, by platform. No cache holds that many."""
REPEAT_SECONDS = 0.5
"""Approximate time for which each size is repeated."""
PASSES = 3
"""Passes of a training step.

They are the forward pass, the gradient of the inputs and the gradient of the weights. Each has as
many multiply-adds, a little less in the first layer, whose inputs need no gradient. There are twice
that many FLOP.
"""


class Peak(NamedTuple):
    """Roofs of the roofline, of all devices together."""

    gflops: float
    """Of the fastest matrix product, in 10^9 FLOP/s."""
    bandwidth: float
    """Of the fastest copy, in GB/s. Each byte is a read and a write."""


def measure_peak(strategy: parallel.Strategy, dtype: str) -> Peak:
    """Measure both peaks on one device, and scale them to all devices.

    Simulated devices that are parts of one CPU count as one.
    """
    platform = "cpu" if strategy.devices[0].platform == "cpu" else "gpu"
    num_devices = 1 if platform == "cpu" else len(strategy.devices)
    compilers = [None]
    if platform == "cpu" and parallel.cpu_options():
        compilers = [None, parallel.cpu_options()]
    gflops = max(
        matmul_gflops(n, dtype, options) for n in MATRIX_SIZES[platform] for options in compilers
    )
    bandwidth = max(map(copy_bandwidth, COPY_BYTES[platform]))
    return Peak(num_devices * gflops, num_devices * bandwidth)


def matmul_gflops(n: int, dtype: str, options: dict[str, str] | None = None) -> float:
    """Return 10^9 FLOP/s of a product of two matrices [n, n]."""
    a, b = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in range(2))
    program = jax.jit(jnp.matmul, compiler_options=options)
    return 2e-9 * n**3 / min_seconds(lambda: program(a, b))


def copy_bandwidth(size: int) -> float:
    """Return GB/s of adding 1 in place to `size` bytes of float32.

    Each byte is read once and written once.
    """
    # A list, because the array is donated and replaced in every call.
    buffer = [jnp.zeros(size // 4, jnp.float32)]
    program = jax.jit(lambda x: x + 1, donate_argnums=0)

    def increment() -> jax.Array:
        buffer[0] = program(buffer[0])
        return buffer[0]

    return 2e-9 * size / min_seconds(increment)


def min_seconds(call: Callable[[], Any]) -> float:
    """Return seconds of the fastest of several calls, at least three.

    The first call compiles and does not count.
    """
    jax.block_until_ready(call())
    seconds, deadline = [], time.perf_counter() + REPEAT_SECONDS
    while len(seconds) < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def training_flop(workload: Workload) -> int:
    """Return FLOP of training on one image.

    There are 6 for each multiply-add of the convolutions and matrix products.
    """
    return 2 * PASSES * summary(workload.model, workload.data.train.images.shape[1:]).macs


def compiled_cost(workload: Workload) -> dict[str, Any]:
    """Return memory and memory traffic of the step that `train` compiles.

    Args:
      workload: should have one batch alone, because the estimate of traffic counts the whole data
        set.

    Returns:
      Bytes on each device, or None where XLA does not report them:

      - `memory`: temporaries, arguments and results without the data set. Results in an argument's
        place count once.
      - `traffic`: XLA's estimate for the compiled program of bytes from and to memory. What fused
        operations pass on is left out.
    """
    strategy, split = workload.strategy, workload.data.train
    carry, fixed = strategy.replicate(initial_state(workload)), strategy.replicate(split)
    index = np.arange(workload.config.train.batch_size, dtype=np.int32)
    program = strategy.compile(
        train_step(workload), carry, fixed, index, should_rewrite_for_cpu(workload)
    )
    plan, cost = program.memory_analysis(), program.cost_analysis()
    memory = None
    if plan is not None:
        buffers = plan.argument_size_in_bytes + plan.output_size_in_bytes
        buffers -= plan.alias_size_in_bytes
        dataset_bytes = sum(array.nbytes for array in split)
        memory = int(plan.temp_size_in_bytes + buffers - dataset_bytes)
    return {"memory": memory, "traffic": (cost or {}).get("bytes accessed")}
