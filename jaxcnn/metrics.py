"""Sums: counts that add over examples, batches and devices; the one division comes at the end.

An example is what has an answer of its own: an image; where labels are masks, a pixel; where the image itself is the answer, a
value of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Metrics(NamedTuple):
    """Totals over examples. Two parts of a data set add up to the whole, whatever their sizes."""

    num_examples: jax.Array
    """int32 []: examples counted."""
    loss: jax.Array
    """float32 []: the sum of their losses (cross-entropies in nats, unless another of `LOSSES` was asked for)."""
    num_wrong: jax.Array
    """int32 []: how many were classified wrongly; logits that are not numbers are wrong. Of a reconstruction, values on the
    other side of 0 than the truth: after normalisation, of the mean."""
    grad_norm: jax.Array
    """float32 []: in training, the gradient's Euclidean norm at each example's step; else 0."""
    squared_loss: jax.Array
    """float32 []: in training, the square of the batch's mean loss at each example's step; else 0."""

    @property
    def mean_loss(self) -> float:
        """Of an example. (Of no examples, these means are ZeroDivisionError.)"""
        return float(self.loss) / int(self.num_examples)

    @property
    def error_percent(self) -> float:
        """Percent classified wrongly."""
        return 100 * int(self.num_wrong) / int(self.num_examples)

    @property
    def mean_grad_norm(self) -> float:
        """The gradient's norm, averaged over the steps."""
        return float(self.grad_norm) / int(self.num_examples)

    @property
    def loss_std(self) -> float:
        """The standard deviation over the steps of the batch's mean loss: how much training jumps about."""
        variance = float(self.squared_loss) / int(self.num_examples) - self.mean_loss**2
        return math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan


def zeros() -> Metrics:
    """Sums of nothing."""
    return Metrics(jnp.int32(0), jnp.float32(0), jnp.int32(0), jnp.float32(0), jnp.float32(0))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label], float32 [b], in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def squared(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Half the squared distance of the logits from the one-hot label, float32 [b] (Cohen et al. 2021, arXiv:2103.00065)."""
    return 0.5 * jnp.square(logits - jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)).sum(-1)


def reconstruction(outputs: jax.Array, images: jax.Array) -> jax.Array:
    """(output - image)^2, of the shape of both."""
    return jnp.square(outputs - images)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross-entropy": cross_entropy,
    "squared": squared,
    "reconstruction": reconstruction,
}
"""name -> (logits float32 [b, ..., classes], labels int32 [b, ...]) -> losses float32 [b, ...]; "reconstruction" takes
outputs and normalised images, both float32 [b, h, w, c]."""


def target(loss: str, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """What the outputs are compared with: the labels or, in a reconstruction, the inputs themselves."""
    return inputs if loss == "reconstruction" else labels


def mismatch(loss: str, outputs: tuple[int, ...], target: tuple[int, ...]) -> str | None:
    """Why outputs of one shape cannot be compared with a target of another, or None.

    Example:
      >>> mismatch("reconstruction", (2, 10), (2, 8, 8, 1))
      "the model gives (10,) for an image, and loss 'reconstruction' compares with (8, 8, 1): build an autoencoder, say"
    """
    dense = loss == "reconstruction"
    if (outputs if dense else outputs[:-1]) == target:
        return None
    given = f"the model gives {outputs[1:]} for an image"
    if dense:
        return f"{given}, and loss {loss!r} compares with {target[1:]}: build an autoencoder, say"
    place = ", ".join([*map(str, target[1:]), "classes"])
    mend = "build 'unet', say" if len(target) == 3 else "build a classifier"
    return f"{given}, and its label needs logits of ({place}): {mend}"


def count(logits: jax.Array, labels: jax.Array, real: jax.Array, loss: str = "cross-entropy") -> Metrics:
    """The sums of one batch.

    Args:
      logits: float32 [b, classes], or [b, h, w, classes], or outputs [b, h, w, c].
      labels: int32 [b], or [b, h, w], or images [b, h, w, c]: see `target`.
      real: bool [b]; False marks rows that only fill the batch up.
      loss: a name in `LOSSES`.

    Example:
      >>> sums = count(jnp.array([[9.0, 0.0], [9.0, 0.0]]), jnp.array([0, 1]), jnp.array([True, True]))
      >>> sums.error_percent
      50.0
    """
    losses = LOSSES[loss](logits, labels)
    if loss == "reconstruction":
        right = ((logits > 0) == (labels > 0)) & jnp.isfinite(logits)
    else:
        # argmax calls a row of NaN class 0, which would count as right for a tenth of the images.
        right = (logits.argmax(-1) == labels) & jnp.isfinite(logits).all(-1)
    real = jnp.broadcast_to(real.reshape(-1, *(1,) * (losses.ndim - 1)), losses.shape)
    return Metrics(
        real.sum(dtype=jnp.int32),
        jnp.where(real, losses, 0).sum(),
        (real & ~right).sum(dtype=jnp.int32),
        jnp.float32(0),
        jnp.float32(0),
    )


def add(a: Metrics, b: Metrics) -> Metrics:
    """The sums of both parts."""
    return jax.tree.map(jnp.add, a, b)


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How often class row was taken for class column, int64 [classes, classes]; both arguments are integers of one shape.

    Example:
      >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
      [[1, 1], [0, 1]]
    """
    pairs = labels.ravel().astype(np.int64) * classes + predicted.ravel()
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, float64 [classes] in 0..1, from what `confusion` counts; NaN for what is nowhere.

    Example:
      >>> iou(np.array([[2, 1], [1, 4]])).round(3).tolist()
      [0.5, 0.667]
    """
    both = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - both
    return np.divide(both, union, out=np.full(len(counts), np.nan), where=union > 0)
