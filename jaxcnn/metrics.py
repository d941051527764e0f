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

from jaxcnn.arguments import ArgumentError, check_integer, format_value


class Metrics(NamedTuple):
    """Totals over examples.

    The totals of two parts of a data set add up to those of the whole, whatever their sizes.
    """

    num_examples: jax.Array
    """int32 []: number of examples."""
    loss: jax.Array
    """float32 []: sum of their losses."""
    sums: Any
    """Sums of the loss's metrics by name: int32 [] of bool metrics, float32 [] of others."""
    grad_norm: jax.Array
    """float32 []: in training, sum of the gradient's Euclidean norm at each example's step.

    It is 0 elsewhere.
    """
    squared_batch_loss: jax.Array
    """float32 []: in training, sum of the squared mean loss of each example's batch.

    It is 0 elsewhere.
    """

    @property
    def num_wrong(self) -> Any:
        """Number of examples with an error, int32 [].

        Raises:
            ArgumentError: the loss counts no errors. So does `error_percent`.
        """
        if "error" not in self.sums:
            names = ", ".join(self.sums) or "no metrics"
            raise ArgumentError(
                f"the loss counts no errors, but {names}; expected a metric 'error'. "
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
