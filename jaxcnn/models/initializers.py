"""Kernel initializers by name, drawn by few compiled programs.

Compiling a program for every kernel shape takes longer than drawing all the numbers.
"""

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

from jaxcnn.config import check_choice

DISTRIBUTIONS: dict[str, Callable[..., jax.Array]] = {
    "normal": jax.random.normal,
    "truncated_normal": functools.partial(jax.random.truncated_normal, lower=-2.0, upper=2.0),
    "uniform": functools.partial(jax.random.uniform, minval=-1.0),
}
"""Distributions of unscaled draws by name.

Each is a function of a key, `shape` and `dtype`.
"""
TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of N(0, 1) truncated at -2 and 2."""
MIN_DRAW, MAX_DRAW = 1 << 14, 1 << 22
"""Shortest and longest draw that kernels of several shapes share."""


@dataclass(frozen=True)
class VarianceScaling:
    """Flax's `variance_scaling` initializer with one program for many shapes.

    The programs are shared when it is called outside `jit`. JAX numbers the random bits of a
    draw by position, so a shorter draw is the beginning of a longer one. The compiled lengths
    are powers of 4. The numbers are those of `flax.linen.initializers.variance_scaling` to 2
    units in the last place. JAX 0.12 turns the same bits into normal numbers with different
    roundings in programs of different lengths.

    Attributes:
      scale: variance of a number times its fan.
      mode: the fan, one of "fan_in", "fan_out" and "fan_avg" (their mean).
      distribution: a name in `DISTRIBUTIONS`.

    Example:
      >>> kernel = INITS["he"](jax.random.key(0), (3, 3, 16, 32))
      >>> kernel.shape, bool(abs(kernel.std() - (2 / (9 * 16)) ** 0.5) < 0.003)
      ((3, 3, 16, 32), True)
    """

    scale: float
    mode: str
    distribution: str

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
    ) -> jax.Array:
        """Return a kernel [..., c_in, c_out] of `dtype`.

        Args:
          key: a JAX key, new-style or raw uint32.
          shape: of the kernel.
          dtype: of the kernel.
        """
        numbers = _shared_draw(key, self.distribution, shape, dtype)
        if numbers is None:
            arguments: Any = (self.scale, self.mode, self.distribution)
            return nn.initializers.variance_scaling(*arguments)(key, shape, dtype)
        return jnp.asarray(numbers * self._deviation(shape))

    def _deviation(self, shape: tuple[int, ...]) -> np.float32:
        """Return the factor of the unscaled numbers, rounded where JAX rounds."""
        positions = math.prod(shape[:-2])
        fans = {"fan_in": positions * shape[-2], "fan_out": positions * shape[-1]}
        variance = np.float32(self.scale / fans.get(self.mode, sum(fans.values()) / 2))
        if self.distribution == "uniform":
            return np.sqrt(np.float32(3) * variance)
        return np.sqrt(variance) / np.float32(
            TRUNCATED_STD if self.distribution == "truncated_normal" else 1
        )


@dataclass(frozen=True)
class Normal:
    """Flax's `normal` initializer with the programs of `VarianceScaling`.

    Attributes:
      std: standard deviation.

    Example:
      >>> kernel = Normal(0.01)(jax.random.key(0), (3, 3, 16, 32))
      >>> kernel.shape, bool(abs(kernel.std() - 0.01) < 2e-4)
      ((3, 3, 16, 32), True)
    """

    std: float

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
    ) -> jax.Array:
        """Return an array of `shape` and `dtype`."""
        numbers = _shared_draw(key, "normal", shape, dtype)
        if numbers is None:
            return nn.initializers.normal(self.std)(key, shape, dtype)
        return jnp.asarray(numbers * np.float32(self.std))


def _shared_draw(
    key: jax.Array, distribution: str, shape: tuple[int, ...], dtype: Any
) -> np.ndarray | None:
    """Return unscaled numbers of `shape`.

    None where the shared programs do not apply, and Flax compiles one of its own.
    """
    size = math.prod(shape)
    if size > MAX_DRAW or jnp.dtype(dtype) != jnp.float32 or not _prefix_stable(key):
        return None
    length = MIN_DRAW
    while length < size:
        length *= 4
    return np.asarray(_draw(key, distribution, length))[:size].reshape(shape)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key, distribution, length):
    return DISTRIBUTIONS[distribution](key, shape=(length,), dtype=jnp.float32)


def _prefix_stable(key: jax.Array) -> bool:
    """Check that the beginning of a draw does not depend on its length."""
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
"""Kernel initializers by name.

"he" is N(0, 2/fan_in), not truncated (He et al. 2015, arXiv:1502.01852, eq. 10).
"""


def initializer(name: str) -> VarianceScaling:
    """Return the kernel initializer called `name`.

    Raises:
      ArgumentError: for an unknown name; the message has the nearest one.
    """
    return INITS[check_choice("kernel_init", name, INITS)]
