"""Measures of a classifier's predictions: confusion, IoU, calibration."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcnn.arguments import ArgumentError, check_integer, format_value


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the predictions of each class for each label.

    The labels come first, as in scikit-learn's `confusion_matrix`; the other functions of
    `jaxcnn.metrics` take predictions first.

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


class Calibration(NamedTuple):
    """Accuracy of a classifier in bins of confidence of equal width.

    Attributes:
      edges: float64 [bins + 1], 0 to 1. Bin i has the images with edges[i] < confidence <= edges[i
        + 1].
      counts: int64 [bins]: images in each bin. The fields below are NaN for empty bins.
      confidence: float64 [bins]: mean confidence, in 0..1.
      accuracy: float64 [bins]: fraction of correct images.
      low: float64 [bins]: lower end of the 95% interval of the accuracy (Wilson 1927).
      high: float64 [bins]: upper end of the interval.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Expected calibration error, 0..1.

        It is the mean of |accuracy - confidence| over bins, weighted by their numbers of images.
        """
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.counts * gaps) / self.counts.sum())


def calibration(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> Calibration:
    """Compute the numbers of a reliability diagram.

    A calibrated classifier with a confidence of 80% is correct for 8 of 10 images. An image's
    confidence is the probability of the predicted class.

    For few images, the expected calibration error is too large, since chance alone separates
    accuracy and confidence. More bins increase this bias.

    Args:
        probabilities: float [n, num_classes], n > 0, such as the softmax of logits.
        labels: int [n].
        bins: number of bins; the paper has 15.

    Returns:
        The number of images, the confidence and the accuracy of each bin.

    Raises:
        ArgumentError: the shapes do not match, a label is no integer or no class, the probabilities
            are invalid, or there are no bins.

    Example:
        >>> probabilities = np.array([[0.8, 0.2], [0.9, 0.1], [0.3, 0.7]])
        >>> result = calibration(probabilities, np.array([0, 1, 1]), bins=2)
        >>> result.counts.tolist(), result.accuracy.round(3).tolist()
        ([0, 3], [nan, 0.667])
        >>> round(result.expected_calibration_error, 3)
        0.133

    References:
        Guo et al. 2017, "On calibration of modern neural networks", section 2
        (https://arxiv.org/abs/1706.04599).
    """
    confidence, correct = _confidence(
        _to_array("probabilities", probabilities, "iubf", "float").astype(np.float64),
        _to_array("labels", labels, "iub", "int"),
    )
    if type(bins) is not int or bins < 1:
        raise ArgumentError(
            f"bins is {format_value(bins)}; expected a whole number of at least 1: write bins=15"
        )
    edges = np.arange(bins + 1) / bins
    index = np.maximum(np.searchsorted(edges, np.minimum(confidence, 1.0)) - 1, 0)
    counts, confidence_sums, hits = (
        np.bincount(index, weights, bins) for weights in (None, confidence, correct)
    )
    # 0 / 0 of empty bins is NaN.
    with np.errstate(invalid="ignore"):
        return Calibration(
            edges, counts, confidence_sums / counts, hits / counts, *_wilson(hits, counts)
        )


def _to_array(name: str, values: Any, kinds: str, expected: str) -> np.ndarray:
    """Return `values` as an array.

    Args:
        name: of the argument.
        values: an array or nested lists.
        kinds: NumPy's letters of the kinds of type that are allowed. No type is checked of an
            empty array.
        expected: the type, for the message.

    Raises:
        ArgumentError: it has another type, or rows of different lengths.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        array = None
    # Of bfloat16, which is not NumPy's own type, the kind is "V".
    is_float = array is not None and array.dtype.name in ("bfloat16", "float8_e4m3fn")
    if array is None or (
        array.size and array.dtype.kind not in kinds and not (is_float and "f" in kinds)
    ):
        found = "of rows that differ" if array is None else f"of type {array.dtype}"
        advice = {"float": "the softmax of logits", "int": "numbers of classes"}[expected]
        raise ArgumentError(f"{name} are {found}; expected {expected}: write {advice}")
    return array


def _confidence(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return confidence and correctness of each image.

    Returns:
        The greatest probability, and 1 where its class is the label, else 0; both float64 [n].
    """
    shape = probabilities.shape
    if probabilities.ndim != 2 or not probabilities.size or labels.shape != shape[:1]:
        raise ArgumentError(
            f"shares are {shape} and labels {labels.shape}; "
            "expected [n, num_classes] and [n], n > 0"
        )
    if labels.min() < 0 or labels.max() >= shape[1]:
        raise ArgumentError(
            f"labels span {labels.min()}..{labels.max()}; expected 0..{shape[1] - 1}"
        )
    # The comparison is false for NaN.
    sums = probabilities.sum(1, keepdims=True)
    if not ((probabilities >= 0) & (np.abs(sums - 1) < 1e-3)).all():
        raise ArgumentError(
            "shares are no probabilities; expected numbers from 0 that sum to 1 in each row: take "
            "the softmax"
        )
    return probabilities.max(1), (probabilities.argmax(1) == labels).astype(np.float64)


def _wilson(hits: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95% interval of hits / n (Wilson 1927), or NaN."""
    z = NormalDist().inv_cdf(0.975)
    middle = (hits + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(hits * (n - hits) / n + z**2 / 4)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)
