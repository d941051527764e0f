"""Sums add up to the whole whatever the parts, and count only real rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.arguments import ArgumentError
from jaxcnn.losses import Batch, CrossEntropy
from jaxcnn.metrics import Metrics, add, confusion, count, iou, zeros

RNG = np.random.default_rng(0)
LABELS = np.arange(10) % 4
LOGITS = RNG.normal(size=(10, 4)).astype(np.float32)
LOGITS[np.arange(7), LABELS[:7]] += 9  # the first seven are right,
LOGITS[np.arange(7, 10), LABELS[7:]] -= 9  # the last three wrong


def counted(logits, labels, real=None):
    real = np.ones(len(labels), bool) if real is None else np.asarray(real)
    return summed(jnp.asarray(logits), jnp.asarray(labels, jnp.int32), jnp.asarray(real))


def summed(logits, labels, real):
    return count(*CrossEntropy()(logits, Batch(logits, labels)), real)


def cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]


@pytest.mark.slow
def test_batches_of_any_size_add_up_to_the_whole_set():
    total, parts = zeros(), [slice(0, 7), slice(7, 9), slice(9, 10)]
    for part in parts:
        total = add(total, counted(LOGITS[part], LABELS[part]))
    losses = cross_entropy(LOGITS, LABELS)
    assert (total.num_examples, total.num_wrong, total.error_percent) == (10, 3, 30.0)
    assert total.mean_loss == pytest.approx(losses.mean(), rel=1e-6)
    means = [counted(LOGITS[part], LABELS[part]) for part in parts]
    assert np.mean([m.error_percent for m in means]) == pytest.approx(
        200 / 3
    )  # what the mean of batch means would say
    assert np.mean([m.mean_loss for m in means]) > 1.5 * losses.mean()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [np.s_[:], 0, 3])
def test_logits_that_are_not_numbers_are_wrong(bad, where):
    logits = np.array([[9.0, 0, 0, 0]], np.float32)
    logits[:, where] = bad
    assert counted(logits, [0]).error_percent == 100


def test_filling_rows_do_not_count_whatever_they_hold():
    filled = np.concatenate([LOGITS, np.full((2, 4), np.nan, np.float32)])
    for label in (0, 3, -1):
        got = counted(filled, [*LABELS, label, label], [True] * 10 + [False] * 2)
        assert jax.tree.map(float, got) == jax.tree.map(float, counted(LOGITS, LABELS))


def test_counts_are_whole_numbers_and_the_loss_float32():
    types = Metrics(jnp.int32, jnp.float32, {"error": jnp.int32}, jnp.float32, jnp.float32)
    for sums in (counted(LOGITS, LABELS), zeros()):
        assert jax.tree.map(lambda leaf: leaf.dtype.type, sums) == jax.tree.map(
            lambda kind: np.dtype(kind).type, types
        )


@pytest.mark.slow
def test_a_uniform_guess_costs_the_logarithm_of_the_classes():
    assert counted(np.zeros((3, 10), np.float32), [0, 4, 9]).mean_loss == pytest.approx(
        np.log(10), rel=1e-6
    )


def test_norms_average_over_examples():
    a, b = (
        Metrics(jnp.int32(n), jnp.float32(0), {}, jnp.float32(n * norm), jnp.float32(0))
        for n, norm in ((6, 2.0), (2, 10.0))
    )
    assert add(a, b).mean_grad_norm == 4.0


def steps(losses, n=32):
    """The sums of training steps of n examples with these mean losses."""
    total = zeros(())
    for loss in np.asarray(losses, np.float32):
        total = add(total, Metrics(jnp.int32(n), n * loss, {}, jnp.float32(0), n * loss**2))
    return total


def test_the_deviation_of_the_loss_is_that_of_the_steps():
    losses = RNG.uniform(0.5, 2.5, 50)
    assert steps(losses).loss_std == pytest.approx(losses.std(), rel=1e-4)
    assert steps(losses, n=1).loss_std == pytest.approx(
        losses.std(), rel=1e-4
    )  # of steps, whatever their batch


def test_steps_of_one_loss_have_no_deviation_and_rounding_does_not_make_it_imaginary():
    for loss in RNG.uniform(0.1, 5, 50):
        assert (
            0 <= steps([loss] * 7).loss_std <= loss * 1e-3
        )  # the root of float32's 1e-7, three times over


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_deviation_of_losses_that_are_no_numbers_is_none(bad):
    assert np.isnan(steps([1.0, bad]).loss_std)


def test_counting_is_the_same_under_jit():
    plain, jitted = (
        counted(LOGITS, LABELS),
        jax.jit(summed)(LOGITS, jnp.asarray(LABELS, jnp.int32), np.ones(10, bool)),
    )
    assert (plain.num_examples, plain.num_wrong) == (jitted.num_examples, jitted.num_wrong)
    np.testing.assert_allclose(plain.loss, jitted.loss, rtol=1e-6)


@pytest.mark.parametrize(
    "kind", [np.int64, np.int32, np.uint8, np.uint64, np.bool_, jnp.int32, jnp.uint8]
)
def test_confusions_are_those_of_a_loop_over_pairs(kind):
    labels, predicted = RNG.integers(0, 2, (2, 5, 6))
    expected = np.zeros((2, 2), int)
    for pair in zip(labels.ravel(), predicted.ravel(), strict=True):
        expected[pair] += 1
    cast: Any = jnp.asarray if kind in (jnp.int32, jnp.uint8) else np.asarray
    found = confusion(cast(labels, kind), cast(predicted, kind), 2)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int64
    empty = np.zeros(0, int)
    np.testing.assert_array_equal(confusion(empty, empty, 2), np.zeros((2, 2)))


PAIR = np.array([0, 1])
CONFUSION_MISTAKES: list[tuple[Any, Any, Any, str]] = [
    (PAIR, np.array([2, 0]), 2, "predicted span 0..2; expected 0..1"),
    (PAIR + 1, np.array([-1, 0]), 3, "predicted span -1..0; expected 0..2"),
    (PAIR - 1, PAIR, 2, "labels span -1..0"),
    (PAIR, np.array([9, 0]), 2, "predicted span 0..9"),
    (PAIR, PAIR[:1], 2, "labels are of shape (2,) and predicted of shape (1,)"),
    ([0, 1], PAIR, 2, "labels is [0, 1]; expected an array of integers. Write labels=np.array("),
    (PAIR, [0, 1], 2, "predicted is [0, 1]"),
    (PAIR, PAIR / 2, 2, "predicted is an array of float64; expected one of integers"),
    (PAIR / 2, PAIR, 2, "labels is an array of float64"),
    (np.array(["a", "b"]), PAIR, 2, "labels is an array of <U1"),
    (PAIR, PAIR, 2.0, "classes is 2.0; expected a whole number of at least 1"),
    (PAIR, PAIR, 0, "classes is 0"),
]


@pytest.mark.parametrize(("labels", "predicted", "classes", "message"), CONFUSION_MISTAKES)
def test_confusions_refuse_what_they_cannot_count(labels, predicted, classes, message):
    with pytest.raises(ArgumentError) as error:
        confusion(labels, predicted, classes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "counts", [[[1, 0], [0, 1]], np.ones((2, 3)), np.ones(4), -np.eye(2), np.array([["a"]]), None]
)
def test_iou_refuses_what_is_no_confusion(counts):
    with pytest.raises(ArgumentError, match="expected a square matrix of numbers from 0") as error:
        iou(counts)
    assert "\n" not in str(error.value)
