"""Devices and the strategies of running a step on them.

This is the only file that lists devices. A step is a pure function `(carry, fixed, index[b]) ->
carry`, and is run over batches on one device, several devices or several hosts. Where the data stay
on the host, each index comes with its examples. The strategies differ in what splits the batch:

- "jit": the batch is sharded over a mesh, and the step is unchanged. XLA adds the communication. It
  also runs on several hosts, after `jaxcnn.multihost.initialize`.
- "pmap": the step is mapped over this host's devices. It averages over the axis `AXIS` itself.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn import cpu, nvidia
from jaxcnn._util import PLAIN, hashable
from jaxcnn.arguments import ArgumentError, check_choice, check_integer, format_value

MAX_PROGRAMS = 32
"""Maximum number of cached results of `cached_program` functions.

These are some 16 networks with a program each for training and evaluation.
"""
AXIS = "batch"
"""Name of the axis over which "pmap" splits the batch."""
MAX_SCAN_STEPS = 500
"""Maximum number of steps in one call of a program.

It bounds the time until a run can be stopped and its divergence is noticed. That is some seconds on
a fast device.
"""
P = ParamSpec("P")
T = TypeVar("T")
MIN_REWRITE_VALUES = 1 << 24
"""Minimum number of values read by the steps of a rewritten program.

They are those of 5,461 images of 32x32x3. Below that, the compilation in every process takes more
time than it saves.
"""
MAX_CHUNK_BYTES = 1 << 28
"""Maximum bytes of streamed data in one call of a program.

Two such chunks are in memory at a time.
"""
Step = Callable[[Any, Any, Any], Any]


class Strategy:
    """Placement of arrays on devices, and compilation of steps.

    `strategy` makes it.
    """

    def __init__(self, kind: str, devices: Sequence[Any]):
        self.kind = kind
        self.devices = tuple(devices)
        self.mesh = Mesh(np.array(self.devices), (AXIS,))

    def __repr__(self) -> str:
        platforms = [device.platform for device in self.devices]
        counts = [f"{platforms.count(name)} {name}" for name in sorted(set(platforms))]
        return f"Strategy({self.kind!r}, {', '.join(counts)})"

    @property
    def axis_name(self) -> str | None:
        """Name of the axis that a step must average over.

        It is None if XLA averages.
        """
        return AXIS if self.kind == "pmap" else None

    @cached_property
    def scans(self) -> bool:
        """Flag of strategies that scan over the batches inside one program.

        It is False on a CPU. A convolution's gradient inside a loop takes some 40 times as long
        there, because XLA does not use its fast kernels.
        """
        return self.devices[0].platform != "cpu"

    def check(self, batch_size: int, name: str = "batch_size") -> None:
        """Check that `batch_size` divides by the number of devices.

        Args:
          batch_size: images in a batch.
          name: its name in the message.

        Raises:
          ArgumentError: it does not. The message has the nearest batches that do.
        """
        count = len(self.devices)
        if batch_size % count:
            below, above = batch_size - batch_size % count, batch_size - batch_size % count + count
            nearest = f"{below} or {above}" if below else f"{above}"
            raise ArgumentError(
                f"{name} is {batch_size}, which {count} devices cannot share equally; "
                f"write {name}={nearest}"
            )

    def replicate(self, tree: Any) -> Any:
        """Return a tree of host arrays on every device."""
        if self.kind == "pmap":
            return jax.tree.map(self._stack, tree)
        return jax.tree.map(lambda x: self._place(np.asarray(x), PartitionSpec()), tree)

    def fetch(self, tree: Any) -> Any:
        """Return a tree of replicated arrays as NumPy arrays on the host."""
        if self.kind == "pmap":
            return jax.tree.map(
                lambda x: np.asarray(x.addressable_data(0)).reshape(x.shape[1:]), tree
            )
        return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)

    def chunks(self, order: np.ndarray, bytes_per_example: int = 0) -> Iterator[np.ndarray]:
        """Split an order into chunks, each for one call of a program.

        A chunk has at most `MAX_SCAN_STEPS` steps and `MAX_CHUNK_BYTES` bytes of examples. It has
        one step if the strategy does not scan.

        Args:
          order: int32 [steps, batch].
          bytes_per_example: of the data that each example of a step brings along; 0 if none.
        """
        max_steps = 1
        if self.scans:
            bytes_per_step = max(1, bytes_per_example * order.shape[1])
            max_steps = min(MAX_SCAN_STEPS, max(1, MAX_CHUNK_BYTES // bytes_per_step))
        yield from np.array_split(order, math.ceil(len(order) / max_steps))

    def should_rewrite_for_cpu(self, num_values: int) -> bool:
        """Check if steps finish sooner with `rewrite_for_cpu`.

        That is so on one x86 CPU, from `MIN_REWRITE_VALUES` values on. A rewritten program is
        compiled again in every process.

        Args:
          num_values: values that the steps read, images x pixels x channels.
        """
        is_one_cpu = (
            self.kind == "jit" and len(self.devices) == 1 and self.devices[0].platform == "cpu"
        )
        return is_one_cpu and num_values >= MIN_REWRITE_VALUES and cpu.available()

    def compiler_options(self) -> dict[str, str] | None:
        """Return the compiler options of the programs, or None.

        They are those of `cpu_options` on a CPU, and those of `jaxcnn.nvidia.options` on the NVIDIA
        GPUs of one host. "pmap" takes none. Flags of the user's own have precedence.
        """
        device = self.devices[0]
        if self.kind == "pmap":
            return None
        if device.platform == "cpu":
            return cpu_options()
        # Hosts must compile the same program, and a trial may fail on one of them.
        is_alone = jax.process_count() == 1
        return nvidia.options(device) if is_alone and nvidia.is_nvidia(device) else None

    def compile_steps(
        self, step: Step, rewrite_for_cpu: bool = False
    ) -> Callable[[Any, Any, Any], Any]:
        """Return a function that runs `step` over the rows of an order.

        Args:
          step: `(carry, fixed, index) -> carry`, a pure function.
          rewrite_for_cpu: rewrite the program by `jaxcnn.cpu.optimized`. The results are the same
            up to rounding. See `should_rewrite_for_cpu`.

        Returns:
          `run(carry, fixed, order) -> carry`. `carry` and `fixed` are as `replicate` returns them.
          The memory of `carry` is donated. `fixed` is anything that the step only reads, such as a
          whole data set. `order` is int32 [steps, batch] on the host, or a tree of arrays
          [steps, batch, ...].
        """
        program, place = self._program(step, rewrite_for_cpu)
        compiled = set()

        def run(carry: Any, fixed: Any, order: Any) -> Any:
            placed = jax.tree.map(place, order)
            # Programs of before `clear_program_cache` are compiled again.
            key = _num_clears, jax.tree.leaves(order)[0].shape
            if not rewrite_for_cpu or key in compiled:
                return self._wait_if_shared(program(carry, fixed, placed))
            compiled.add(key)
            with cpu.without_persistent_cache():
                return program(carry, fixed, placed)

        return run

    def memory(self, step: Step, carry: Any, fixed: Any, index: np.ndarray) -> int | None:
        """Return the bytes that one step takes on each device.

        They are XLA's plan for the program of `compile_steps`, known before anything runs. They
        cover activations and gradients, but neither arguments nor results.

        Args:
          step: as in `compile_steps`.
          carry: as in `compile_steps`, but its memory is not donated.
          fixed: as in `compile_steps`.
          index: int32 [batch], on the host.

        Returns:
          The bytes, or None if XLA does not report them.

        Example:
          >>> def step(total, x, index):
          ...     return total + (x[index] @ x[index].T).sum()
          >>> jit, x = strategy("jit", devices=1), np.ones((200, 10), np.float32)
          >>> indices = (np.arange(batch, dtype=np.int32) for batch in (20, 200))
          >>> small, large = (jit.memory(step, np.float32(0), x, index) for index in indices)
          >>> bool(small and large and small < large)
          True
        """
        plan = self.compile(step, carry, fixed, index).memory_analysis()
        return None if plan is None else int(plan.temp_size_in_bytes)

    def compile(
        self, step: Step, carry: Any, fixed: Any, index: np.ndarray, rewrite_for_cpu: bool = False
    ) -> jax.stages.Compiled:
        """Return one step as XLA compiles it.

        Its text and its memory can be read.

        Args:
          step: as in `compile_steps`.
          carry: as in `memory`.
          fixed: as in `compile_steps`.
          index: int32 [batch], on the host.
          rewrite_for_cpu: as in `compile_steps`.
        """
        program, place = self._program(step, rewrite_for_cpu)
        with cpu.without_persistent_cache() if rewrite_for_cpu else contextlib.nullcontext():
            return program.lower(carry, fixed, place(index[None])).compile()

    def _program(
        self, step: Step, rewrite_for_cpu: bool
    ) -> tuple[Any, Callable[[np.ndarray], Any]]:
        """Return the program of `compile_steps`, and the function that places an order."""

        def run(carry, fixed, order):
            if len(jax.tree.leaves(order)[0]) == 1:
                return step(carry, fixed, jax.tree.map(lambda x: x[0], order))
            return jax.lax.scan(lambda c, index: (step(c, fixed, index), None), carry, order)[0]

        is_cpu = self.devices[0].platform == "cpu"
        if is_cpu and not rewrite_for_cpu:
            run = cpu.crop_negative_padding(run)
        if self.kind == "pmap":
            return jax.pmap(run, AXIS, devices=self.devices, donate_argnums=0), self._split_batch
        replicated = NamedSharding(self.mesh, PartitionSpec())
        options = self.compiler_options()
        if rewrite_for_cpu:
            run, options = cpu.optimized(run), (options or {}) | cpu.OPTIONS
        jitted = jax.jit(run, donate_argnums=0, out_shardings=replicated, compiler_options=options)
        return jitted, lambda order: self._place(order, PartitionSpec(None, AXIS))

    def _wait_if_shared(self, carry: Any) -> Any:
        """Return `carry`, and wait for it if several devices share one CPU.

        Steps in flight take each other's threads there. If a collective has no thread left for one
        of the devices, XLA aborts the process.
        """
        is_shared = self.devices[0].platform == "cpu" and len(self.devices) > 1
        return jax.block_until_ready(carry) if is_shared else carry

    def _place(self, x: np.ndarray, spec: PartitionSpec) -> jax.Array:
        # By a callback, a host provides only what its own devices hold.
        sharding = NamedSharding(self.mesh, spec)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    def _stack(self, x: Any) -> jax.Array:
        x = np.asarray(x)
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        shape = (len(self.devices), *x.shape)
        return jax.make_array_from_callback(shape, sharding, lambda _: x[None])

    def _split_batch(self, order: np.ndarray) -> np.ndarray:
        steps, batch, *shape = order.shape
        count = len(self.devices)
        return order.reshape(steps, count, batch // count, *shape).swapaxes(0, 1)


_program_cache: dict[Any, Any] = {}
_num_clears = 0
"""Number of calls of `clear_program_cache`."""


def cached_program(make: Callable[P, T]) -> Callable[P, T]:
    """Cache the results of a function that makes compiled programs.

    The key is the function's arguments. All such functions share one cache of `MAX_PROGRAMS`
    results. At that bound all of them are dropped, because JAX's own caches hold programs too.

    A network's programs take 25 to 200 MiB, and hundreds of memory maps, of which Linux gives a
    process 65,530. Without a bound a study over many networks would run out of them.

    Example:
      >>> @cached_program
      ... def doubler(n):
      ...     return jax.jit(lambda x: n * x)
      >>> doubler(2) is doubler(2)
      True
    """

    @functools.wraps(make)
    def cached(*args: P.args, **kwargs: P.kwargs) -> T:
        key = (make, hashable(args), hashable(tuple(kwargs.items())))
        if key not in _program_cache:
            if len(_program_cache) >= MAX_PROGRAMS:
                clear_program_cache()
            _program_cache[key] = make(*args, **kwargs)
        return _program_cache[key]

    return cached


def clear_program_cache() -> None:
    """Drop every compiled program that is not in use.

    JAX's caches are cleared too, those of the caller's own functions among them. A program that is
    needed again is compiled again.
    """
    global _num_clears
    _num_clears += 1
    _program_cache.clear()
    # See "Surprises" in CONTRIBUTING.md.
    jax.clear_caches()


KINDS = ("auto", "jit", "pmap")
"""Kinds of strategies."""


def strategy(kind: str = "auto", devices: int | None = None) -> Strategy:
    """Return the strategy of a kind.

    Args:
      kind: "jit", "pmap", or "auto", which is "jit".
      devices: number of devices, the first ones of all; None is all of them.

    Raises:
      ArgumentError: the kind is unknown, there are fewer devices, or it is "pmap" on several hosts.

    Example:
      >>> strategy("jit", devices=1).axis_name is None
      True
    """
    check_choice("strategy", kind, KINDS)
    all_devices = jax.devices()
    if devices is not None and check_integer("devices", devices) > len(all_devices):
        raise ArgumentError(
            f"devices is {devices}, and JAX sees {len(all_devices)}; expected at most as many. "
            f"Write devices={len(all_devices)}"
        )
    if devices is not None and devices < len(all_devices) and jax.process_count() > 1:
        raise ArgumentError(
            f"devices is {devices}, but this job has several hosts, which use all of their "
            f"{len(all_devices)}; expected None. Leave out devices"
        )
    if kind == "pmap" and jax.process_count() > 1:
        raise ArgumentError(
            "strategy 'pmap' covers one host's devices and this job has several hosts; "
            "write jaxcnn.strategy('jit')"
        )
    return _cached_strategy("jit" if kind == "auto" else kind, tuple(all_devices[:devices]))


def check_strategy(strategy: Strategy | None) -> Strategy:
    """Return `strategy`, or for None "jit" over all devices.

    Raises:
      ArgumentError: it is anything else.

    Example:
      >>> check_strategy(None).kind
      'jit'
    """
    if strategy is None:
        return _cached_strategy("jit", tuple(jax.devices()))
    if not isinstance(strategy, Strategy):
        kind = strategy if isinstance(strategy, str) and strategy in KINDS else "jit"
        raise ArgumentError(
            f"strategy is {format_value(strategy)}; expected a Strategy. "
            f"Write strategy=jaxcnn.strategy({kind!r})."
        )
    return strategy


@lru_cache(maxsize=16)
def _cached_strategy(kind, devices):
    # Equal arguments give one object, so that what was compiled for it is used again.
    return Strategy(kind, devices)


def describe(strategy: Strategy) -> dict[str, Any]:
    """Return the description of devices and settings for a run's records.

    `compiler_options` are those of all programs. `jaxcnn.cpu` adds its own to those that it
    rewrites.
    """
    precision = jax.config.values["jax_default_matmul_precision"]
    return {
        "platform": strategy.devices[0].platform,
        "device": strategy.devices[0].device_kind,
        "devices": len(strategy.devices),
        "processes": jax.process_count(),
        "strategy": strategy.kind,
        "matmul_precision": precision or "default (on NVIDIA GPUs: TF32)",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "compiler_options": strategy.compiler_options() or {},
        "jaxcnn_plain": os.environ.get(PLAIN, ""),
    }


def padded_batches(n: int, batch_size: int, devices: int) -> np.ndarray:
    """Return every index below `n` once, in batches.

    Args:
      n: number of examples.
      batch_size: examples in a batch. It is rounded up to a multiple of `devices`, but is no
        larger than `n` needs.
      devices: number of devices.

    Returns:
      int32 [batches, batch'], with -1 where the last batch has no example.

    Example:
      >>> padded_batches(3, 2, 1).tolist()
      [[0, 1], [2, -1]]
    """
    batch_size = devices * math.ceil(min(batch_size, n) / devices)
    order = np.full(batch_size * math.ceil(n / batch_size), -1, np.int32)
    order[:n] = np.arange(n)
    return order.reshape(-1, batch_size)


@lru_cache(maxsize=1)
def cpu_options() -> dict[str, str] | None:
    """Return compiler options that make convolutions faster on this CPU, or None.

    jaxlib 0.10 sends convolutions to a library that runs most of them on one thread. The options
    keep only its reductions, which makes convolutions 1.5 to 2 times as fast. There are none if
    this jaxlib refuses the option, or if the user's XLA_FLAGS have it.
    """
    name = "xla_cpu_experimental_ynn_fusion_type"
    if name in os.environ.get("XLA_FLAGS", ""):
        return None
    options = {name: "LIBRARY_FUSION_TYPE_REDUCE"}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(np.float32(0)).compile()
    except Exception:
        return None
    return options
