"""Whether a classifier is as often right as it is sure (Guo et al. 2017, arXiv:1706.04599)."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from jaxcnn.arguments import format_value


class Calibration(NamedTuple):
    """How often a classifier is right, by how sure of it it was: bins of confidence of equal width."""

    edges: np.ndarray
    """float64 [bins + 1], 0 to 1: bin i has the images with edges[i] < confidence <= edges[i + 1]."""
    counts: np.ndarray
    """int64 [bins]: images in each. Where there are none, what follows is NaN."""
    confidence: np.ndarray
    """float64 [bins]: the mean of theirs, in 0..1."""
    accuracy: np.ndarray
    """float64 [bins]: the share of them that is right."""
    low: np.ndarray
    """float64 [bins]: where the 95% interval of that share begins (Wilson 1927)."""
    high: np.ndarray
    """float64 [bins]: where it ends."""

    @property
    def expected_calibration_error(self) -> float:
        """The expected calibration error, 0..1: |accuracy - confidence| of the bins, weighted by their images."""
        return float(np.nansum(self.counts * np.abs(self.accuracy - self.confidence)) / self.counts.sum())


def calibration(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> Calibration:
    """Whether a classifier that is sure by 80% is right 8 times in 10: the numbers of a reliability diagram.

    An image's confidence is the probability of the class that it is taken for. From few images the expected calibration error
    comes out too large, for chance alone parts accuracy and confidence; more bins make that worse.

    Args:
      shares: float [n, classes], n > 0, probabilities such as the softmax of logits.
      labels: int [n].
      bins: their number; the paper has 15.

    Raises:
      ValueError: for other shapes, labels of no class, what are no probabilities, or no bins.

    Example:
      >>> found = calibration(np.array([[0.8, 0.2], [0.9, 0.1], [0.3, 0.7]]), np.array([0, 1, 1]), bins=2)
      >>> found.counts.tolist(), found.accuracy.round(3).tolist(), round(found.expected_calibration_error, 3)
      ([0, 3], [nan, 0.667], 0.133)

    References:
      Guo et al. 2017, "On calibration of modern neural networks", section 2 (https://arxiv.org/abs/1706.04599).
    """
    sure, right = _confidence(np.asarray(probabilities, np.float64), np.asarray(labels))
    if type(bins) is not int or bins < 1:
        raise ValueError(f"bins is {format_value(bins)}; expected a whole number of at least 1: write bins=15")
    edges = np.arange(bins + 1) / bins
    place = np.maximum(np.searchsorted(edges, np.minimum(sure, 1.0)) - 1, 0)
    counts, said, hits = (np.bincount(place, weights, bins) for weights in (None, sure, right))
    with np.errstate(invalid="ignore"):  # 0 / 0 of empty bins
        return Calibration(edges, counts, said / counts, hits / counts, *_wilson(hits, counts))


def _confidence(shares: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The greatest share of each image, and whether it is that of its label, both float64 [n]."""
    if shares.ndim != 2 or not shares.size or labels.shape != shares.shape[:1]:
        raise ValueError(f"shares are {shares.shape} and labels {labels.shape}; expected [n, classes] and [n], n > 0")
    if labels.min() < 0 or labels.max() >= shares.shape[1]:
        raise ValueError(f"labels span {labels.min()}..{labels.max()}; expected 0..{shares.shape[1] - 1}")
    if not ((shares >= 0) & (np.abs(shares.sum(1, keepdims=True) - 1) < 1e-3)).all():  # false for NaN
        raise ValueError(
            "shares are no probabilities; expected numbers from 0 that sum to 1 in each row: take the softmax"
        )
    return shares.max(1), (shares.argmax(1) == labels).astype(np.float64)


def _wilson(hits: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = NormalDist().inv_cdf(0.975)
    middle = (hits + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(hits * (n - hits) / n + z**2 / 4)  # NaN where n is 0
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)
