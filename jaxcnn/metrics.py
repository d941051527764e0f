"""Sums over examples that add over batches and devices, and their means.

The only division comes at the end. An example is what has an answer of its own. It is an image, or
a pixel where labels are masks, or a value of the image where the image itself is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.arguments import ArgumentError, check_integer, format_value


class Metrics(NamedTuple):
    """Totals over examples.

    The totals of two parts of a data set add up to those of the whole, whatever their sizes.
    """

    num_examples: jax.Array
    """int32 []: number of examples."""
    loss: jax.Array
    """float32 []: sum of their losses.

    They are cross-entropies in nats, or another of `LOSSES`.
    """
    num_wrong: jax.Array
    """int32 []: number of wrong classifications; logits that are not numbers are wrong.

    Of a reconstruction, these are the values on the other side of 0 than the true value. After
    normalization, 0 is the mean.
    """
    grad_norm: jax.Array
    """float32 []: in training, sum of the gradient's Euclidean norm at each example's step.

    It is 0 elsewhere.
    """
    squared_loss: jax.Array
    """float32 []: in training, sum of the squared mean loss of each example's batch.

    It is 0 elsewhere.
    """

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

    @property
    def mean_grad_norm(self) -> float:
        """Mean norm of the gradient over the steps."""
        return float(self.grad_norm) / int(self.num_examples)

    @property
    def loss_std(self) -> float:
        """Standard deviation of the batches' mean loss over the steps.

        It measures the noise of training.
        """
        variance = float(self.squared_loss) / int(self.num_examples) - self.mean_loss**2
        return math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan


def zeros() -> Metrics:
    """Return the sums over no examples."""
    return Metrics(jnp.int32(0), jnp.float32(0), jnp.int32(0), jnp.float32(0), jnp.float32(0))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return -log softmax(logits)[label], float32 [b], in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def squared_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return half the squared distance of logits and one-hot labels.

    Returns:
        float32 [b].

    References:
        Cohen et al. 2021, arXiv:2103.00065.
    """
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return 0.5 * jnp.square(logits - one_hot).sum(-1)


def reconstruction_error(outputs: jax.Array, images: jax.Array) -> jax.Array:
    """Return (output - image)^2, of the shape of both."""
    return jnp.square(outputs - images)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross-entropy": cross_entropy,
    "squared": squared_error,
    "reconstruction": reconstruction_error,
}
"""Losses by name.

Each maps logits float32 [b, ..., num_classes] and labels int32 [b, ...] to losses float32 [b, ...].
"reconstruction" takes outputs and normalized images, both float32 [b, h, w, c].
"""


def target(loss: str, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the target of the outputs.

    It is the labels, or the inputs themselves in a reconstruction.
    """
    return inputs if loss == "reconstruction" else labels


def mismatch(loss: str, outputs: tuple[int, ...], target: tuple[int, ...]) -> str | None:
    """Return why outputs and target cannot be compared, or None.

    Args:
        loss: a name in `LOSSES`.
        outputs: shape of the outputs.
        target: shape of the target.

    Example:
        >>> mismatch("reconstruction", (2, 10), (2, 8, 8, 1))
        "the model gives (10,) for an image, and loss 'reconstruction' compares with (8, 8, 1): ..."
    """
    is_reconstruction = loss == "reconstruction"
    if (outputs if is_reconstruction else outputs[:-1]) == target:
        return None
    problem = f"the model gives {outputs[1:]} for an image"
    if is_reconstruction:
        return f"{problem}, and loss {loss!r} compares with {target[1:]}: build an autoencoder, say"
    shape = ", ".join([*map(str, target[1:]), "classes"])
    fix = "build 'unet', say" if len(target) == 3 else "build a classifier"
    return f"{problem}, and its label needs logits of ({shape}): {fix}"


def count(
    logits: jax.Array, labels: jax.Array, valid: jax.Array, loss: str = "cross-entropy"
) -> Metrics:
    """Return the sums over one batch.

    Args:
        logits: float32 [b, num_classes], or [b, h, w, num_classes], or outputs [b, h, w, c].
        labels: int32 [b], or [b, h, w], or images [b, h, w, c]: see `target`.
        valid: bool [b]; False marks rows that only pad the batch.
        loss: a name in `LOSSES`.

    Example:
        >>> logits = jnp.array([[9.0, 0.0], [9.0, 0.0]])
        >>> sums = count(logits, jnp.array([0, 1]), jnp.array([True, True]))
        >>> sums.error_percent
        50.0
    """
    losses = LOSSES[loss](logits, labels)
    if loss == "reconstruction":
        correct = ((logits > 0) == (labels > 0)) & jnp.isfinite(logits)
    else:
        # argmax returns class 0 for a row of NaN, which would be correct for a tenth of the images.
        correct = (logits.argmax(-1) == labels) & jnp.isfinite(logits).all(-1)
    valid = jnp.broadcast_to(valid.reshape(-1, *(1,) * (losses.ndim - 1)), losses.shape)
    return Metrics(
        valid.sum(dtype=jnp.int32),
        jnp.where(valid, losses, 0).sum(),
        (valid & ~correct).sum(dtype=jnp.int32),
        jnp.float32(0),
        jnp.float32(0),
    )


def add(a: Metrics, b: Metrics) -> Metrics:
    """Add the sums of two parts."""
    return jax.tree.map(jnp.add, a, b)


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the predictions of each class for each label.

    Args:
        labels: integers of any shape.
        predicted: integers of the same shape.
        num_classes: the number of classes.

    Returns:
        int64 [num_classes, num_classes]: rows are labels, columns are predictions.

    Raises:
        ArgumentError: they are not arrays of integers from 0 to num_classes - 1, or their shapes
            differ.

    Example:
        >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    num_classes = check_integer("num_classes", num_classes, example=10)
    _check_class_numbers("labels", labels, num_classes)
    _check_class_numbers("predicted", predicted, num_classes)
    if labels.shape != predicted.shape:
        raise ArgumentError(
            f"labels are of shape {labels.shape} and predicted of shape {predicted.shape}; "
            "expected one prediction for each label. Write predicted=outputs.argmax(-1)."
        )
    pairs = np.ravel(labels).astype(np.int64) * num_classes + np.ravel(predicted).astype(np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _check_class_numbers(name: str, values: Any, num_classes: int) -> None:
    """Check that `values` is an array of numbers of classes.

    Raises:
        ArgumentError: it is not.
    """
    if not isinstance(values, (np.ndarray, np.generic, jax.Array)):
        raise ArgumentError(
            f"{name} is {format_value(values)}; expected an array of integers. "
            f"Write {name}=np.array([0, 1])."
        )
    # A comparison of an output and a threshold, of type bool, has two classes.
    if np.dtype(values.dtype).kind not in "iub":
        raise ArgumentError(
            f"{name} is an array of {values.dtype}; expected one of integers. "
            f"Write {name}=outputs.argmax(-1)."
        )
    if values.size and (values.min() < 0 or values.max() >= num_classes):
        raise ArgumentError(
            f"{name} span {int(values.min())}..{int(values.max())}; expected 0..{num_classes - 1}. "
            f"Leave out the others, or write num_classes={max(int(values.max()), 0) + 1} "
            "if none is below 0."
        )


def iou(counts: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class.

    Args:
        counts: as `confusion` returns them.

    Returns:
        float64 [num_classes] in 0..1; NaN for a class that is neither a label nor a prediction.

    Raises:
        ArgumentError: `counts` is not a square matrix of numbers from 0.

    Example:
        >>> iou(np.array([[2, 1], [1, 4]])).round(3).tolist()
        [0.5, 0.667]
    """
    is_matrix = isinstance(counts, (np.ndarray, jax.Array)) and counts.ndim == 2
    if (
        not is_matrix
        or counts.shape[0] != counts.shape[1]
        or np.dtype(counts.dtype).kind not in "iuf"
        or not (counts >= 0).all()
    ):
        raise ArgumentError(
            f"counts is {format_value(counts)}; expected a square matrix of numbers from 0. "
            "Write counts=confusion(labels, predicted, num_classes)."
        )
    intersection = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - intersection
    return np.divide(intersection, union, out=np.full(len(counts), np.nan), where=union > 0)
