r"""Timing of training steps, of the start of training, and of the machine's peaks.

    python -m experiments.benchmark.timing \
        '{"name": "resnet20", "batch_size": 128, "dtype": "float32", "strategy": "jit",
          "devices": 1, "began": 0, "plan": true}'

The command measures the seconds to the first step in its own process, and prints them as JSON.

The functions `time_*` return `run(k) -> seconds` of k steps: of `train`, of the bare jitted step,
and of the part of a step that makes its inputs. The first call compiles, and must not be counted.

The roofline's peaks are those of matrix products and of copying, compiled by the same compiler.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn as jc
from experiments.benchmark.workload import (
    Workload,
    compiled_cost,
    create_workload,
    initial_state,
    should_rewrite_for_cpu,
    train_step,
)
from jaxcnn import cli, parallel
from jaxcnn.augment import augment, normalize
from jaxcnn.input_pipeline import gather_batch, input_pipeline
from jaxcnn.state import AUGMENT, fold_in

MAX_STEPS = 391
"""Largest number of steps of one measurement.

It is the number between two rows of CIFAR-10.
"""
TimedRun = Callable[[int], float]
"""Function of a number of steps that runs them and returns seconds."""
MATRIX_SIZES = {"cpu": (512, 1024, 2048), "gpu": (4096, 8192, 16384)}
"""Rows of the square matrices, by platform."""
COPY_BYTES = {"cpu": (1 << 29,), "gpu": (1 << 28, 1 << 30)}
"""Bytes of the copied arrays, by platform. No cache holds that many."""
REPEAT_SECONDS = 0.5
"""Approximate time for which each size is repeated."""


def time_train(workload: Workload, num_steps: int) -> TimedRun:
    """Return the timer of `train`, by the rate in its rows.

    A row's clock covers everything that `train` does between two rows:

    - the order of examples and every call,
    - the check for divergence,
    - fetching the state to the host at the end.

    It does not cover the test that follows. The run is as long as by default and is left
    unfinished, because a short one may be compiled differently.

    Args:
      workload: passed to `train`.
      num_steps: between two rows. Each call must be of as many.
    """
    config = jc.override(workload.config.train, eval_every=num_steps)
    pieces = workload.model, workload.tx, workload.data, config
    rows = jc.train(*pieces, strategy=workload.strategy, progress=False)

    def run(k: int) -> float:
        assert k == num_steps, "each call is of num_steps steps"
        row = next(rows)[1] or {}
        return config.batch_size * k / row["images_per_second"]

    return run


def time_bare_step(workload: Workload) -> TimedRun:
    """Return the timer of the bare jitted step on one batch.

    It is the step of `train`, with nothing around it. Its clock stops when the last result is
    ready.
    """
    step = train_step(workload)
    return time_steps(workload, step, initial_state(workload), should_rewrite_for_cpu(workload))


def time_inputs(workload: Workload) -> TimedRun:
    """Return the timer of making a step's inputs alone.

    Bytes are gathered, converted to floats, cropped and flipped as in training. Then they are
    summed, so that the compiler does not remove the work.

    It is timed as a program of its own. The difference between two steps, one of them on ready
    inputs, is smaller than their noise. Inside the whole step some of it may overlap or be fused
    with the first layer. The result is therefore an upper estimate.
    """
    step, state = input_step(workload), initial_state(workload)
    return time_steps(workload, step, (jnp.int32(0), state.normalizer, jnp.float32(0)))


def input_step(workload: Workload) -> Any:
    """Return a step that makes a training step's inputs and sums them.

    Its carry is (steps taken, `jaxcnn.augment.Normalizer`, sum of all inputs so far). Its arguments
    are (carry, split, index), and it returns the carry after one more step.
    """
    config = workload.config.train.augment
    key = initial_state(workload).rng

    def step(carry: Any, split: Any, index: Any) -> Any:
        count, normalizer, total = carry
        numbers, images, _ = gather_batch(split, index)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(fold_in(key, AUGMENT, count), numbers)
        augment_batch = jax.vmap(augment, (0, 0, None, None))
        inputs = augment_batch(keys, normalize(images, normalizer), normalizer, config)
        batch_sum = inputs.sum()
        if workload.strategy.axis_name:
            batch_sum = jax.lax.psum(batch_sum, workload.strategy.axis_name)
        return count + 1, normalizer, total + batch_sum

    return step


def time_steps(
    workload: Workload, step: Any, carry: Any, rewrite_for_cpu: bool = False
) -> TimedRun:
    """Return the timer of a step on one batch of random examples.

    Its clock stops when the last result is ready.

    Args:
      workload: has the devices and the data.
      step: a pure step, as `Strategy.compile_steps` takes it.
      carry: the first one, on the host.
      rewrite_for_cpu: as in `Strategy.compile_steps`.
    """
    strategy, n = workload.strategy, len(workload.data.train.labels)
    program = strategy.compile_steps(step, rewrite_for_cpu)
    # A list, because the carry is donated and replaced in every call.
    state = [strategy.replicate(carry)]
    train = input_pipeline(workload.data.train, strategy)
    index = (
        np.random.default_rng(0).permutation(n)[: workload.config.train.batch_size].astype(np.int32)
    )

    def run(k: int) -> float:
        chunks = list(train.chunks(np.repeat(index[None], k, 0)))
        start = time.perf_counter()
        for chunk in chunks:
            state[0] = program(state[0], train.split, chunk)
        jax.block_until_ready(state[0])
        return time.perf_counter() - start

    return run


def steps_for_duration(step_seconds: float, seconds: float) -> int:
    """Return the number of steps that take about `seconds`.

    It is at least 1 and at most `MAX_STEPS`.

    Example:
      >>> steps_for_duration(0.3, 1.0), steps_for_duration(5.0, 1.0)
      (3, 1)
    """
    return min(MAX_STEPS, max(1, round(seconds / step_seconds)))


def time_alternately(
    runs: Mapping[str, TimedRun],
    num_steps: int,
    rounds: int,
    settle: Mapping[str, TimedRun] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, list[float]] | None:
    """Time every run once in every round, in turns.

    A first round is not counted.

    Args:
      runs: timers by name.
      num_steps: of each call.
      rounds: number of rounds.
      settle: timers by name that are called for one step just before, without being counted. State
        of caches and threads that another run left then does not count against the next one.
      should_stop: called after every round.

    Returns:
      Seconds of each round, by name. None once `should_stop` returns true.

    Example:
      >>> time_alternately({"a": lambda k: 2.0 * k, "b": lambda k: 1.0}, num_steps=3, rounds=2)
      {'a': [6.0, 6.0], 'b': [1.0, 1.0]}
    """
    timings: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            if settle and turn:
                settle[name](1)
            seconds = run(num_steps)
            if turn:
                timings[name].append(seconds)
        if should_stop():
            return None
    return timings


def measure_startup(**settings: Any) -> dict[str, Any]:
    """Measure the start of training in new processes.

    The first process has an empty cache of programs, and the second has it full.

    Args:
      settings: name, batch_size, dtype, strategy (its kind) and devices.

    Returns:
      Columns of the table: seconds of imports, of initialization and to the first step, cold and
      warm, and the peak of memory in use in MiB. Two entries are not for the table: `later_step_s`,
      seconds of a later step, and `plan`, XLA's plan (`compiled_cost`).
    """
    with tempfile.TemporaryDirectory(prefix="jaxcnn-programs-") as cache:
        cold, warm = (
            _run_startup_process(settings | {"plan": is_second}, cache)
            for is_second in (False, True)
        )
    return {
        "imports_s": warm["imports"],
        "initialise_s": cold["initialise"],
        "first_step_cold_s": cold["first"],
        "first_step_warm_s": warm["first"],
        "peak_mib": warm["peak"],
        "later_step_s": warm["later"],
        "plan": warm["plan"],
    }


def _run_startup_process(settings: Mapping[str, Any], cache: str) -> dict[str, Any]:
    # The process must find room on a GPU of which this one has taken its share.
    variables = {"JAXCNN_CACHE": cache, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    # This variable would take precedence over `JAXCNN_CACHE`.
    inherited = {key: v for key, v in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    argument = json.dumps({"began": time.time()} | dict(settings))
    command = [sys.executable, "-m", "experiments.benchmark.timing", argument]
    # A session of its own: Ctrl-C is for this process, which then ends between two measurements.
    process = subprocess.run(
        command,
        env=inherited | variables,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        start_new_session=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


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


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Initialize and take the first step, as `train` does.

    That is one step, or a scan of two where steps are scanned. The clock starts when everything is
    imported, the devices are initialized and the data are in memory.

    Args:
      settings: as in `measure_startup`, with "began", the seconds since the epoch at which the
        command started, and "plan", whether to report XLA's plan.

    Returns:
      Seconds ("imports", "initialise", "first", "later"), MiB ("peak") and "plan".
    """
    cli.enable_compilation_cache()
    strategy = jc.strategy(settings["strategy"], settings["devices"])
    workload = create_workload(
        settings["name"], settings["batch_size"], settings["dtype"], strategy
    )
    start_time, start = time.time(), time.perf_counter()
    state = initial_state(workload)
    initialized = time.perf_counter()
    program = strategy.compile_steps(train_step(workload), should_rewrite_for_cpu(workload))
    carry = strategy.replicate(state)
    train = input_pipeline(workload.data.train, strategy)
    steps = 2 if strategy.scans else 1
    order = np.tile(np.arange(settings["batch_size"], dtype=np.int32), (steps, 1))
    timings, ready = [], time.perf_counter() - start
    for _ in range(4):
        before = time.perf_counter()
        chunk = next(iter(train.chunks(order)))
        carry = jax.block_until_ready(program(carry, train.split, chunk))
        timings.append(time.perf_counter() - before)
    return {
        "imports": start_time - settings["began"],
        "initialise": initialized - start,
        "first": ready + timings[0],
        "later": min(timings[1:]) / steps,
        "peak": _peak_memory(strategy),
        "plan": compiled_cost(workload) if settings["plan"] else None,
    }


def _peak_memory(strategy: parallel.Strategy) -> float | None:
    """Return the peak of memory in use on a device, in MiB.

    None where no device reports it.
    """
    stats = [device.memory_stats() or {} for device in strategy.devices]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    return max(peaks) / 2**20 if peaks else None


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
