"""Which images a step sees, and in which epoch: one stream of shuffled passes over all of them, cut into batches."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np


def order(seed: int, total: int, batch: int, n: int) -> np.ndarray:
    """The images of every step, int32 [total, batch]: each is seen once an epoch, and no remainder is dropped.

    In NumPy, which needs no device and so keeps none waiting.

    Example:
      >>> sorted(epoch_order(0, 3, 2, 6).ravel().tolist())
      [0, 1, 2, 3, 4, 5]
    """
    epochs = np.tile(np.arange(n, dtype=np.int32), (math.ceil(total * batch / n), 1))
    return np.random.default_rng(seed).permuted(epochs, axis=1).ravel()[: total * batch].reshape(total, batch)


def epochs(step: jax.Array, batch: int, n: int) -> jax.Array:
    """The epoch of each image of a step's batch, int32 [batch]; a batch may hold the end of one and the start of the next.

    Example:
      >>> epochs(jnp.int32(2), 4, 10).tolist()
      [0, 0, 1, 1]
    """
    return (step * batch + jnp.arange(batch)) // n


def ends(total: int, batch: int, n: int) -> list[int]:
    """The steps at which epochs end, without the last one: where `np.split` cuts the losses.

    Example:
      >>> ends(10, 2, 8)
      [4, 8]
    """
    epochs = math.ceil(total * batch / n)
    return [step for epoch in range(1, epochs) if (step := math.ceil(epoch * n / batch)) < total]
