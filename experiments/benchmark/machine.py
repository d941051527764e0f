"""The machine: what it is, and the most that it does of matrix products and of copying, by the same compiler."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn import parallel
from jaxcnn.provenance import cores, processor

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
FLAGS = ("XLA_FLAGS", "GLIBC_TUNABLES")
SIZES = {"cpu": (512, 1024, 2048), "gpu": (4096, 8192, 16384)}
"""Of square matrices."""
COPIED = {"cpu": (1 << 29,), "gpu": (1 << 28, 1 << 30)}
"""Bytes: more than any cache holds."""
SECONDS = 0.5
"""About so long is each size repeated."""


class Peak(NamedTuple):
    """The roofs of the roofline, of all devices together."""

    gflops: float
    """Of the fastest matrix product, in 10^9 FLOP/s."""
    bandwidth: float
    """GB/s of the fastest copy, a read and a write of each byte."""


def peak(strategy: parallel.Strategy, dtype: str) -> Peak:
    """Both, measured now on one device; devices that are not parts of one CPU count that many times."""
    kind = "cpu" if strategy.devices[0].platform == "cpu" else "gpu"
    times = 1 if kind == "cpu" else len(strategy.devices)
    options = [None, parallel.cpu_options()] if kind == "cpu" and parallel.cpu_options() else [None]
    products = max(product(n, dtype, how) for n in SIZES[kind] for how in options)
    return Peak(times * products, times * max(map(copy, COPIED[kind])))


def product(n: int, dtype: str, options: dict[str, str] | None = None) -> float:
    """10^9 FLOP/s of a product of two matrices [n, n]."""
    a, b = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in range(2))
    program = jax.jit(jnp.matmul, compiler_options=options)
    return 2e-9 * n**3 / fastest(lambda: program(a, b))


def copy(size: int) -> float:
    """GB/s of adding 1 to `size` bytes of float32 in their place: each is read and written once."""
    held = [jnp.zeros(size // 4, jnp.float32)]
    program = jax.jit(lambda x: x + 1, donate_argnums=0)

    def once() -> jax.Array:
        held[0] = program(held[0])
        return held[0]

    return 2e-9 * size / fastest(once)


def fastest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of several calls, at least three; the first compiles and does not count."""
    jax.block_until_ready(call())
    took, until = [], time.perf_counter() + SECONDS
    while len(took) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        jax.block_until_ready(call())
        took.append(time.perf_counter() - began)
    return min(took)


def described(strategy: parallel.Strategy) -> str:
    """One line for every file: device, cores, versions, what the environment sets, date."""
    device = strategy.devices[0]
    name = processor() if device.platform == "cpu" else device.device_kind
    many = f"{len(strategy.devices)} devices, " if len(strategy.devices) > 1 else ""
    versions = [f"{one} {found}" for one in PACKAGES if (found := _version(one))]
    flags = [f"{one}={os.environ[one]}" for one in FLAGS if os.environ.get(one)]
    python = f"Python {platform.python_version()}"
    return "; ".join([f"{name}, {many}{cores()} cores", ", ".join([python, *versions]), *flags, str(date.today())])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
