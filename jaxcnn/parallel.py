"""Devices: the only file that knows how many there are. A step is folded over batches on one device, many, or many hosts.

A step is a pure function `(carry, fixed, index[b]) -> carry`; where the data stay on the host, each index comes with its
examples. The strategies differ in who splits the batch:

- "jit": the batch is sharded over a mesh and the step is left as it is; XLA adds the communication. Also on many hosts,
  after `jaxcnn.multihost.initialize`.
- "pmap": the step is mapped over this host's devices and itself averages over the axis named `AXIS`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn import cpu
from jaxcnn.arguments import ArgumentError, check_choice, check_integer, format_value

MAX_PROGRAMS = 32
"""Kept results of `compiled` functions at most: some 16 networks with what trains and what tests each."""
AXIS = "batch"
MAX_SCAN_STEPS = 500
"""Steps in one program at most, so that a run can be stopped and its divergence be seen; some seconds on a fast device."""
P = ParamSpec("P")
T = TypeVar("T")
MIN_OPTIMIZED_VALUES = 1 << 24
"""Values that a program must read to be worth compiling anew in every process: 5,461 images of 32x32x3."""
MAX_CHUNK_BYTES = 1 << 28
"""What a program is given at most of data that are streamed to it: two such parts are in memory at a time."""
Step = Callable[[Any, Any, Any], Any]


class Strategy:
    """Where arrays live and how a step is run; made by `strategy`."""

    def __init__(self, kind: str, devices: Sequence[Any]):
        self.kind = kind
        self.devices = tuple(devices)
        self.mesh = Mesh(np.array(self.devices), (AXIS,))

    @property
    def axis(self) -> str | None:
        """The axis that a step must average over, or None where XLA does it."""
        return AXIS if self.kind == "pmap" else None

    @cached_property
    def scans(self) -> bool:
        """Whether batches are scanned inside one program. On a CPU they are not: a convolution's gradient inside a
        loop is some 40 times slower there (XLA leaves its fast kernels)."""
        return self.devices[0].platform != "cpu"

    def check(self, batch: int) -> None:
        """ArgumentError unless `batch` divides by the devices."""
        count = len(self.devices)
        if batch % count:
            below, above = batch - batch % count, batch - batch % count + count
            near = f"{below} or {above}" if below else f"{above}"
            raise ArgumentError(f"batch is {batch}, which {count} devices cannot share equally; write batch={near}")

    def replicate(self, tree: Any) -> Any:
        """Host arrays -> the same on every device."""
        if self.kind == "pmap":
            return jax.tree.map(self._stack, tree)
        return jax.tree.map(lambda x: self._place(np.asarray(x), PartitionSpec()), tree)

    def fetch(self, tree: Any) -> Any:
        """Arrays on every device -> one copy, as numpy arrays on the host."""
        if self.kind == "pmap":
            return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)).reshape(x.shape[1:]), tree)
        return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)

    def chunks(self, order: np.ndarray, size: int = 0) -> Iterator[np.ndarray]:
        """Split an order, int32 [steps, batch], into scans of at most `MAX_SCAN_STEPS` steps, or into single steps.

        `size` is the bytes that travel with each example of a step, if any: a piece then takes at most `MAX_CHUNK_BYTES`.
        """
        most = min(MAX_SCAN_STEPS, max(1, MAX_CHUNK_BYTES // max(1, size * order.shape[1]))) if self.scans else 1
        yield from np.array_split(order, math.ceil(len(order) / most))

    def should_optimize(self, values: int) -> bool:
        """Whether a fold that reads so many values (images x pixels x channels) is done sooner if it is `tuned`.

        That is on one x86 CPU, and from `MIN_OPTIMIZED_VALUES` values on: a tuned program is compiled anew in every process.
        """
        alone = self.kind == "jit" and len(self.devices) == 1 and self.devices[0].platform == "cpu"
        return alone and values >= MIN_OPTIMIZED_VALUES and cpu.available()

    def compile_steps(self, step: Step, tuned: bool = False) -> Callable[[Any, Any, Any], Any]:
        """`run(carry, fixed, order) -> carry`: `step` over the rows of `order`, int32 [steps, batch] on the host.

        `carry` and `fixed` are as `replicate` gives them; the memory of `carry` is given away. `fixed` is anything the
        step only reads, such as a whole data set. `order` may be a tree of arrays [steps, batch, ...]. `tuned` is what
        `should_optimize` says: convolutions by `jaxcnn.cpu`, the same up to rounding.
        """

        program, place = self._program(step, tuned)
        compiled = set()

        def run(carry: Any, fixed: Any, order: Any) -> Any:
            nonlocal program
            placed = jax.tree.map(place, order)
            if jax.tree.leaves(order)[0].shape in compiled:
                return self._settled(program(carry, fixed, placed))
            compiled.add(jax.tree.leaves(order)[0].shape)
            if tuned:
                with cpu.without_persistent_cache():
                    return program(carry, fixed, placed)
            # The call finds what `trace` traced in JAX's cache; programs of `pmap` have none.
            trace = getattr(program, "trace", jax.make_jaxpr(program))
            if self.devices[0].platform == "cpu" and cpu.has_negative_padding(trace(carry, fixed, placed).jaxpr):
                program, _ = self._program(cpu.crop_negative_padding(step), tuned)
            return self._settled(program(carry, fixed, placed))

        return run

    def memory(self, step: Step, carry: Any, fixed: Any, index: np.ndarray) -> int | None:
        """Bytes that one step takes on each device beside its arguments and its result: activations and gradients.

        It is XLA's plan for what `fold` compiles, known before anything runs; None where XLA does not tell.

        Args:
          step, carry, fixed: as in `fold`; the memory of `carry` is left alone.
          index: int32 [batch], on the host.

        Example:
          >>> def step(total, x, index):
          ...     return total + (x[index] @ x[index].T).sum()
          >>> alone, x = strategy("jit", devices=1), np.ones((200, 10), np.float32)
          >>> few, many = (alone.memory(step, np.float32(0), x, np.arange(b, dtype=np.int32)) for b in (20, 200))
          >>> bool(few and many and few < many)
          True
        """
        plan = self.compile(step, carry, fixed, index).memory_analysis()
        return None if plan is None else int(plan.temp_size_in_bytes)

    def compile(
        self, step: Step, carry: Any, fixed: Any, index: np.ndarray, tuned: bool = False
    ) -> jax.stages.Compiled:
        """One step as XLA compiles it for `fold`, to be read: its text, its memory. Arguments as in `memory` and `fold`."""
        program, place = self._program(step, tuned)
        with cpu.without_persistent_cache() if tuned else contextlib.nullcontext():
            return program.lower(carry, fixed, place(index[None])).compile()

    def _program(self, step: Step, tuned: bool) -> tuple[Any, Callable[[np.ndarray], Any]]:
        """What is compiled for `fold`, and what brings an order to the devices."""

        def run(carry, fixed, order):
            if len(jax.tree.leaves(order)[0]) == 1:
                return step(carry, fixed, jax.tree.map(lambda x: x[0], order))
            return jax.lax.scan(lambda c, index: (step(c, fixed, index), None), carry, order)[0]

        if self.kind == "pmap":
            return jax.pmap(run, AXIS, devices=self.devices, donate_argnums=0), self._share
        whole = NamedSharding(self.mesh, PartitionSpec())
        options = cpu_options() if self.devices[0].platform == "cpu" else None
        if tuned:
            run, options = cpu.optimized(run), (options or {}) | cpu.OPTIONS
        jitted = jax.jit(run, donate_argnums=0, out_shardings=whole, compiler_options=options)
        return jitted, lambda order: self._place(order, PartitionSpec(None, AXIS))

    def _settled(self, carry: Any) -> Any:
        """`carry`, waited for where several devices share one CPU: steps in flight there take each other's threads
        until a collective finds no thread for some device, and XLA aborts the process."""
        crowded = self.devices[0].platform == "cpu" and len(self.devices) > 1
        return jax.block_until_ready(carry) if crowded else carry

    def _place(self, x: np.ndarray, spec: PartitionSpec) -> jax.Array:
        # A callback, so that a host provides only what its own devices hold.
        return jax.make_array_from_callback(x.shape, NamedSharding(self.mesh, spec), lambda part: x[part])

    def _stack(self, x: Any) -> jax.Array:
        x = np.asarray(x)
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.make_array_from_callback((len(self.devices), *x.shape), sharding, lambda part: x[None])

    def _share(self, order: np.ndarray) -> np.ndarray:
        steps, batch, *rest = order.shape
        return order.reshape(steps, len(self.devices), batch // len(self.devices), *rest).swapaxes(0, 1)


_kept: dict[Any, Any] = {}


def cached_program(make: Callable[P, T]) -> Callable[P, T]:
    """Make a function that gives out compiled programs remember them, by its arguments, within one bound for all of them.

    A network's programs take 25 to 200 MiB and hundreds of memory maps, of which Linux gives a process 65,530: a study over
    many networks would die of them. JAX's own caches hold programs too, so at the bound all are dropped, not only the oldest.

    Example:
      >>> @cached_program
      ... def doubler(n):
      ...     return jax.jit(lambda x: n * x)
      >>> doubler(2) is doubler(2)
      True
    """

    @functools.wraps(make)
    def remembered(*args: P.args, **kwargs: P.kwargs) -> T:
        key = (make, hashable(args), hashable(tuple(kwargs.items())))
        if key not in _kept:
            if len(_kept) >= MAX_PROGRAMS:
                clear_program_cache()
            _kept[key] = make(*args, **kwargs)
        return _kept[key]

    return remembered


class _Same:
    """A value that equals itself alone; it is kept alive, so that no other gets its identity."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def hashable(value: Any) -> Any:
    """Return `value`, or what stands for its contents where it cannot be hashed, such as a module with a list.

    Example:
      >>> hashable({"widths": [4, 8]}) == hashable({"widths": [4, 8]}) != hashable({"widths": [4, 9]})
      True
    """
    try:
        hash(value)
    except TypeError:
        pass
    else:
        return value
    kind = type(value)
    if isinstance(value, Mapping):
        return kind, tuple((name, hashable(part)) for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return kind, tuple(hashable(part) for part in value)
    if isinstance(value, set):
        return kind, frozenset(value)
    if isinstance(value, (np.ndarray, jax.Array)) and getattr(value.dtype, "kind", "") in tuple("fiubcSU"):
        return kind, str(value.dtype), value.shape, np.asarray(value).tobytes()
    if dataclasses.is_dataclass(value):
        return kind, tuple((f.name, hashable(getattr(value, f.name))) for f in dataclasses.fields(value) if f.compare)
    return _Same(value)


def clear_program_cache() -> None:
    """Drop every compiled program that is not in use, here and in JAX; what is needed again is compiled again."""
    _kept.clear()
    jax.clear_caches()


def strategy(kind: str = "auto", devices: int | None = None) -> Strategy:
    """The strategy of that kind over the first `devices` devices (all by default); "auto" is "jit".

    Raises:
      ArgumentError: for another kind, more devices than there are, or "pmap" on several hosts.

    Example:
      >>> strategy("jit", devices=1).axis is None
      True
    """
    check_choice("strategy", kind, ("auto", "jit", "pmap"))
    there = jax.devices()
    if devices is not None and check_integer("devices", devices) > len(there):
        raise ArgumentError(f"devices is {devices}; expected 1 to {len(there)}, which is how many this machine shows")
    if kind == "pmap" and jax.process_count() > 1:
        raise ArgumentError(
            "strategy 'pmap' covers one host's devices and this job has several hosts; write strategy='jit'"
        )
    return _driver("jit" if kind == "auto" else kind, tuple(there[:devices]))


def check_strategy(strategy: Strategy | None) -> Strategy:
    """Return `strategy`, or "jit" over all devices for None; ArgumentError for anything else.

    Example:
      >>> check_strategy(None).kind
      'jit'
    """
    if strategy is None:
        return _driver("jit", tuple(jax.devices()))
    if not isinstance(strategy, Strategy):
        raise ArgumentError(
            f"strategy is {format_value(strategy)}; expected a Strategy. Write strategy=jaxcnn.strategy('jit')."
        )
    return strategy


@lru_cache(maxsize=16)
def _driver(kind, devices):
    # One object for equal arguments, so that what was compiled for it is found again.
    return Strategy(kind, devices)


def describe(strategy: Strategy) -> dict[str, Any]:
    """What the records say of where a run ran."""
    return {
        "platform": strategy.devices[0].platform,
        "device": strategy.devices[0].device_kind,
        "devices": len(strategy.devices),
        "processes": jax.process_count(),
        "strategy": strategy.kind,
        "matmul_precision": jax.config.values["jax_default_matmul_precision"] or "default (on NVIDIA GPUs: TF32)",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "jaxcnn_plain": os.environ.get("JAXCNN_PLAIN", ""),
    }


def padded_batches(n: int, batch: int, devices: int) -> np.ndarray:
    """Every index below `n` once, as int32 [batches, batch'], with -1 where the last batch has no example.

    batch' is `batch` rounded up to a multiple of `devices`, and no larger than `n` needs.

    Example:
      >>> padded_batches(3, 2, 1).tolist()
      [[0, 1], [2, -1]]
    """
    batch = devices * math.ceil(min(batch, n) / devices)
    order = np.full(batch * math.ceil(n / batch), -1, np.int32)
    order[:n] = np.arange(n)
    return order.reshape(-1, batch)


@lru_cache(maxsize=1)
def cpu_options() -> dict[str, str] | None:
    """Compiler options that make convolutions faster on this CPU, or None.

    jaxlib 0.10 sends convolutions to a library that runs most of them on one thread; keeping only its reductions makes
    them 1.5 to 2 times as fast. Where this jaxlib refuses the option, or the user's XLA_FLAGS speak of it, it is left out.
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
