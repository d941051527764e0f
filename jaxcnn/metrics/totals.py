"""Sums over examples that add over batches and devices, and their means.

The only division comes at the end. An example is what has a loss of its own. It is an image, or a
pixel where labels are masks, or a value of the image where the image itself is the target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn._util import format_fields, is_abstract
from jaxcnn.arguments import ArgumentError


class Metrics(NamedTuple):
    """Totals over examples.

    The totals of two parts of a data set add up to those of the whole, whatever their sizes.

    Attributes:
      num_examples: int32 []: number of examples.
      loss: float32 []: sum of their losses.
      sums: sums of the loss's metrics by name: int32 [] of bool metrics, float32 [] of others.
      grad_norm: float32 []: in training, sum over steps of the gradient's Euclidean norm, times the
        number of examples in the batch. It is 0 elsewhere.
      squared_batch_loss: float32 []: in training, sum over batches of the squared mean loss, times
        the number of examples. It is 0 elsewhere.
    """

    num_examples: jax.Array
    loss: jax.Array
    sums: Any
    grad_norm: jax.Array
    squared_batch_loss: jax.Array

    @property
    def num_wrong(self) -> Any:
        """Number of examples with an error, int32 [].

        Raises:
            ArgumentError: the loss counts no errors. So does `error_percent`.
        """
        if "error" not in self.sums:
            names = f", but {', '.join(self.sums)}" if self.sums else ""
            raise ArgumentError(
                f"the loss counts no errors{names}; expected a metric 'error'. "
                "Use mean_loss or means()."
            )
        return self.sums["error"]

    @property
    def mean_loss(self) -> float:
        """Mean loss of an example.

        Raises:
            ZeroDivisionError: there are no examples. So do the other means.
        """
        return float(self.loss) / int(self.num_examples)

    @property
    def error_percent(self) -> float:
        """Percentage of wrong classifications."""
        return 100 * int(self.num_wrong) / int(self.num_examples)

    def __repr__(self) -> str:
        # Sums of a program that is traced, or of several runs, have no means.
        leaves = jax.tree.leaves(tuple(self), is_leaf=lambda leaf: leaf is None)
        if any(is_abstract(leaf) or np.shape(leaf) for leaf in leaves):
            return format_fields(self)
        texts = [f"num_examples={int(self.num_examples)}"]
        if int(self.num_examples):
            means = {f"mean_{name}": value for name, value in self.means().items()}
            if "error" in self.sums:
                means["error_percent"] = means.pop("mean_error")
            if float(self.grad_norm):
                means["mean_grad_norm"] = self.mean_grad_norm
            texts += [f"{name}={value:.4g}" for name, value in means.items()]
        return f"Metrics({', '.join(texts)})"

    def means(self) -> dict[str, float]:
        """Return the mean loss and the mean of each metric by name.

        Those of bool metrics are in percent.
        """
        count = int(self.num_examples)
        means = {
            name: 100 * int(value) / count if value.dtype.kind == "i" else float(value) / count
            for name, value in self.sums.items()
        }
        return {"loss": self.mean_loss} | means

    @property
    def mean_grad_norm(self) -> float:
        """Mean norm of the gradient over the steps."""
        return float(self.grad_norm) / int(self.num_examples)

    @property
    def loss_std(self) -> float:
        """Standard deviation of the batches' mean loss over the steps.

        It measures the noise of training.
        """
        variance = float(self.squared_batch_loss) / int(self.num_examples) - self.mean_loss**2
        return math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan


def zeros(dtypes: Iterable[tuple[str, str]] = (("error", "int32"),)) -> Metrics:
    """Return the sums over no examples.

    Args:
        dtypes: names of the loss's metrics and dtypes of their sums, as
            `jaxcnn.losses.metric_dtypes` returns them.
    """
    sums = {name: jnp.zeros((), dtype) for name, dtype in dtypes}
    return Metrics(jnp.int32(0), jnp.float32(0), sums, jnp.float32(0), jnp.float32(0))


def count(losses: jax.Array, values: Mapping[str, jax.Array], valid: jax.Array) -> Metrics:
    """Return the sums over one batch.

    Args:
        losses: float32 [b, ...], as a loss returns them.
        values: metrics by name, of the same shape: bool, integers or floats.
        valid: bool [b]; False marks rows that only pad the batch.

    Example:
        >>> losses, wrong = jnp.array([0.5, 2.5]), jnp.array([False, True])
        >>> sums = count(losses, {"error": wrong}, jnp.array([True, True]))
        >>> sums.mean_loss, sums.error_percent
        (1.5, 50.0)
    """
    valid = jnp.broadcast_to(valid.reshape(-1, *(1,) * (losses.ndim - 1)), losses.shape)
    sums = {
        name: (valid & value).sum(dtype=jnp.int32)
        if value.dtype == jnp.bool_
        else jnp.where(valid, value, jnp.zeros_like(value)).sum(dtype=jnp.float32)
        for name, value in values.items()
    }
    return Metrics(
        valid.sum(dtype=jnp.int32),
        jnp.where(valid, losses, 0).sum(),
        sums,
        jnp.float32(0),
        jnp.float32(0),
    )


def add(a: Metrics, b: Metrics) -> Metrics:
    """Add the sums of two parts."""
    return jax.tree.map(jnp.add, a, b)
