"""Calibration against a loop over images, cases known by hand, and SciPy's intervals; and the diagram of it."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from figures import labels, overlapping
from matplotlib.container import ErrorbarContainer
from scipy import stats

from jaxcnn.metrics import calibration
from jaxcnn.plots.evaluation import reliability


def drawn(n, classes=10, seed=0, sharp=2.0):
    """Random probabilities and labels."""
    rng = np.random.default_rng(seed)
    logits = sharp * rng.normal(size=(n, classes))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return shares, rng.integers(0, classes, n).astype(np.int32)


def reference(shares, labels, bins):
    """Guo et al. 2017, equation 3, image by image: the bin of confidence p is the least m with p <= (m + 1) / bins."""
    held = [[] for _ in range(bins)]
    for share, label in zip(shares, labels, strict=True):
        best = max(range(len(share)), key=lambda c: share[c])
        held[next(m for m in range(bins) if share[best] <= (m + 1) / bins)].append(
            (share[best], best == label)
        )
    means = [
        (math.fsum(p for p, _ in part) / len(part), sum(r for _, r in part) / len(part))
        if part
        else None
        for part in held
    ]
    error = math.fsum(
        len(p) * abs(m[1] - m[0]) for p, m in zip(held, means, strict=True) if m
    ) / len(labels)
    return [len(part) for part in held], means, error


@pytest.mark.parametrize(("n", "bins"), [(1, 15), (7, 4), (400, 15), (400, 10), (400, 1)])
def test_bins_are_those_of_a_loop_over_images(n, bins):
    shares, labels = drawn(n)
    found = calibration(shares, labels, bins=bins)
    counts, means, error = reference(shares, labels, bins)
    assert found.counts.tolist() == counts
    assert found.counts.dtype == np.int64
    assert found.expected_calibration_error == pytest.approx(error, abs=1e-12)
    for i, mean in enumerate(means):
        if mean is None:
            assert np.isnan(
                [found.confidence[i], found.accuracy[i], found.low[i], found.high[i]]
            ).all()
        else:
            assert (found.confidence[i], found.accuracy[i]) == pytest.approx(mean, abs=1e-12)
    assert found.edges.tolist() == [i / bins for i in range(bins + 1)]


def test_intervals_are_wilsons():
    shares, labels = drawn(400, sharp=1.0)
    found = calibration(shares, labels, bins=10)
    assert 0 in found.counts
    for n, share, low, high in zip(
        found.counts, found.accuracy, found.low, found.high, strict=True
    ):
        if n:
            expected = stats.binomtest(round(n * share), int(n)).proportion_ci(0.95, "wilson")
            assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_known_cases():
    """Always right and wholly sure: 0. Always wrong and wholly sure: 1. Sure by 0.8 and right 8 times in 10: 0."""
    sure, labels = np.eye(3)[[0, 1, 2]], np.array([0, 1, 2])
    assert calibration(sure, labels).expected_calibration_error == 0
    assert calibration(sure, (labels + 1) % 3).expected_calibration_error == 1
    shares = np.tile([0.8, 0.2], (10, 1))
    assert calibration(
        shares, np.array([0] * 8 + [1] * 2)
    ).expected_calibration_error == pytest.approx(0, abs=1e-15)
    assert calibration(
        shares, np.array([0] * 5 + [1] * 5)
    ).expected_calibration_error == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("p", "bin"), [(0.5, 4), (0.6, 5), (np.nextafter(0.6, 1), 6), (0.7, 6), (1.0, 9)]
)
def test_a_confidence_on_an_edge_belongs_below(p, bin):
    found = calibration(np.array([[p, 1 - p]]), np.array([0]), bins=10)
    assert found.counts.argmax() == bin


def test_float32_softmax_that_sums_a_little_above_one_is_taken():
    shares = np.array([[np.nextafter(np.float32(1), np.float32(2)), 0]], np.float32)
    assert calibration(shares, np.array([0])).counts[-1] == 1


def test_more_bins_find_no_less():
    """Merging bins lets differences cancel: with bins split in two the error can only grow."""
    shares, _ = drawn(300, seed=3)
    right = np.random.default_rng(4).random(300) < 0.5
    labels = np.where(right, shares.argmax(1), (shares.argmax(1) + 1) % 10)
    errors = [
        calibration(shares, labels, bins=bins).expected_calibration_error
        for bins in (1, 2, 4, 8, 16)
    ]
    assert all(more > less - 1e-12 for less, more in pairwise(errors))
    assert errors[-1] > 1.5 * errors[0]


MISTAKES: list[tuple[Any, Any, dict[str, Any], str]] = [
    (np.ones((2, 2)) / 2, np.zeros(3, int), {}, "shares are (2, 2) and labels (3,)"),
    (np.ones((0, 2)), np.zeros(0, int), {}, "n > 0"),
    (np.ones((2, 2)) / 2, np.array([0, 2]), {}, "labels span 0..2; expected 0..1"),
    (np.array([[2.0, -1.0]]), np.array([0]), {}, "take the softmax"),
    (np.array([[np.nan, np.nan]]), np.array([0]), {}, "take the softmax"),
    (np.array([[3.0, 1.0]]), np.array([0]), {}, "take the softmax"),
    (np.ones((1, 2)) / 2, np.array([0]), {"bins": 0}, "bins is 0"),
    (np.ones((1, 2)) / 2, np.array([0.5]), {}, "labels are of type float64; expected int"),
    (np.ones((1, 2)) / 2, ["cat"], {}, "labels are of type <U3; expected int"),
    (np.ones((2, 2)) / 2, [[0], [0, 1]], {}, "labels are of rows that differ"),
    ([["a", "b"]], np.array([0]), {}, "probabilities are of type <U1; expected float"),
    (np.ones((1, 2)) / 2 + 0j, np.array([0]), {}, "probabilities are of type complex128"),
    ([[0.5, 0.5], [1.0]], np.array([0, 0]), {}, "probabilities are of rows that differ"),
]


@pytest.mark.parametrize(("shares", "labels", "how", "says"), MISTAKES)
def test_mistakes_are_told(shares, labels, how, says):
    with pytest.raises(ValueError) as error:
        calibration(shares, labels, **how)
    assert says in str(error.value)


def test_the_diagram_shows_the_bins_and_their_counts():
    shares, true = drawn(500)
    found = calibration(shares, true, bins=10)
    figure = reliability(*found, title="random labels")
    upper, lower = figure.axes
    (bars,) = [c for c in upper.containers if isinstance(c, ErrorbarContainer)]
    there = found.counts > 0
    np.testing.assert_allclose(
        bars[0].get_xydata(), 100 * np.c_[found.confidence, found.accuracy][there]
    )
    ends = np.array([piece[:, 1] for piece in bars[2][0].get_segments()])  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(ends, 100 * np.c_[found.low, found.high][there], atol=1e-9)
    assert [patch.get_height() for patch in lower.patches] == found.counts.tolist()  # pyright: ignore[reportAttributeAccessIssue]
    assert [text.get_text() for text in lower.texts] == [str(n) for n in found.counts]
    assert labels(figure) == ["bin with 95% interval", "accuracy = confidence"]
    assert (upper.get_ylabel(), lower.get_xlabel(), lower.get_ylabel()) == (
        "accuracy (%)",
        "confidence (%)",
        "images",
    )
    assert not overlapping(figure)


def test_the_diagram_refuses_arrays_that_do_not_fit():
    found = calibration(*drawn(5), bins=4)
    with pytest.raises(ValueError, match="5 edges bound 4 bins"):
        reliability(*found._replace(counts=found.counts[:3]))
