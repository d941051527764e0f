"""Initialisers of kernels by name, drawn by few programs: compiling one for every shape takes longer than all their numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcnn.recipe import check_choice

DRAWS: dict[str, Callable[..., jax.Array]] = {
    "normal": jax.random.normal,
    "truncated_normal": functools.partial(jax.random.truncated_normal, lower=-2.0, upper=2.0),
    "uniform": functools.partial(jax.random.uniform, minval=-1.0),
}
CUT = 0.87962566103423978
"""The standard deviation of N(0, 1) cut off at -2 and 2."""
SMALLEST, LARGEST = 1 << 14, 1 << 22
"""Numbers of the shortest and the longest draw that kernels of several shapes share."""


@dataclass(frozen=True)
class VarianceScaling:
    """`flax.linen.initializers.variance_scaling`, with one program for many shapes when it is called outside `jit`.

    JAX numbers the random bits of a draw by position, so a shorter draw is the beginning of a longer one; the lengths compiled
    for are powers of 4. The numbers are those of Flax to 2 units in the last place: JAX 0.12 turns the same bits into normal
    numbers with different roundings in programs of different lengths.

    Attributes:
      scale: the variance of a number times its fan.
      mode: which fan: "fan_in", "fan_out" or "fan_avg", their mean.
      distribution: a name in `DRAWS`.

    Example:
      >>> kernel = INITS["he"](jax.random.key(0), (3, 3, 16, 32))
      >>> kernel.shape, bool(abs(kernel.std() - (2 / (9 * 16)) ** 0.5) < 0.003)
      ((3, 3, 16, 32), True)
    """

    scale: float
    mode: str
    distribution: str

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        """A kernel [..., c_in, c_out] of `dtype`, from a key of JAX's of either form."""
        size = math.prod(shape)
        if size > LARGEST or jnp.dtype(dtype) != jnp.float32 or not _numbered(key):
            plain = nn.initializers.variance_scaling(self.scale, self.mode, self.distribution)  # pyright: ignore[reportArgumentType]
            return plain(key, shape, dtype)
        length = SMALLEST
        while length < size:
            length *= 4
        numbers = np.asarray(_drawn(key, self.distribution, length))[:size]
        return jnp.asarray(numbers.reshape(shape) * self._deviation(shape))

    def _deviation(self, shape: tuple[int, ...]) -> np.float32:
        """What the numbers are multiplied by, rounded where JAX rounds."""
        positions = math.prod(shape[:-2])
        fans = {"fan_in": positions * shape[-2], "fan_out": positions * shape[-1]}
        variance = np.float32(self.scale / fans.get(self.mode, sum(fans.values()) / 2))
        if self.distribution == "uniform":
            return np.sqrt(np.float32(3) * variance)
        return np.sqrt(variance) / np.float32(CUT if self.distribution == "truncated_normal" else 1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _drawn(key, distribution, length):
    return DRAWS[distribution](key, shape=(length,), dtype=jnp.float32)


def _numbered(key: jax.Array) -> bool:
    """Whether a draw's beginning is known not to depend on its length."""
    if isinstance(key, Tracer) or not jax.config.values["jax_threefry_partitionable"]:
        return False
    return str(jax.random.key_impl(key)) == "threefry2x32"


INITS = {
    "he": VarianceScaling(2.0, "fan_in", "normal"),
    "he_truncated": VarianceScaling(2.0, "fan_in", "truncated_normal"),
    "he_fan_out": VarianceScaling(2.0, "fan_out", "normal"),
    "lecun": VarianceScaling(1.0, "fan_in", "normal"),
    "glorot_uniform": VarianceScaling(1.0, "fan_avg", "uniform"),
}
"""Kernel initialisers by name. "he" is N(0, 2/fan_in), not truncated (He et al. 2015, arXiv:1502.01852, eq. 10)."""


def initializer(name: str) -> VarianceScaling:
    """The kernel initialiser called `name`; ArgumentError names the nearest one."""
    return INITS[check_choice("kernel_init", name, INITS)]
