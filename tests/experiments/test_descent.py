"""Gradient descent against its closed form: trajectories, behaviours and the rate at which each ends."""

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.learning_rate import descent
from experiments.learning_rate.descent import (
    behavior,
    closed_form_path,
    curvatures,
    descend,
    limit,
    measured_limit,
    quadratic,
    roots,
    straight_line,
)
from jaxcnn.config import ArgumentError

MOMENTA = [0.0, 0.5, 0.9]
LINE = straight_line()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", MOMENTA)
def test_a_few_steps_are_those_by_hand(momentum, nesterov):
    c, w, v, rate = np.array([1.0, 3.0]), np.array([1.0, -2.0]), np.zeros(2), 0.25
    path = [w]
    for _ in range(6):
        g = c * w
        v = momentum * v + g
        w = w - rate * (g + momentum * v if nesterov else v)
        path.append(w)
    got = descend(quadratic(c), path[0], rate, 6, momentum=momentum, nesterov=nesterov)
    assert (got.shape, got.dtype) == ((7, 2), jnp.float32)
    np.testing.assert_allclose(got, path, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("part", [0.25, 0.75, 1.2])
def test_long_trajectories_are_the_closed_form(part, momentum, nesterov):
    """In every direction, from slow to stiff, below the limit and above."""
    c, start = np.array([0.05, 1.0, 4.0]), np.array([1.0, -2.0, 0.5])
    rate, options = (
        part * limit(4.0, momentum, nesterov=nesterov),
        {"momentum": momentum, "nesterov": nesterov},
    )
    got = np.asarray(descend(quadratic(c), start, rate, 40, **options), np.float64)
    for i in range(3):
        want = closed_form_path(c[i], rate, 40, start[i], **options)
        # Rounding enters at every step and travels on as the path does: it counts beside the
        # largest so far.
        assert (abs(got[:, i] - want) <= 1e-5 * np.maximum.accumulate(abs(want))).all()


def test_the_closed_form_without_momentum_is_a_power_and_overflows_quietly():
    assert closed_form_path(2.0, 0.3, 50, -3.0) == pytest.approx(
        -3 * 0.4 ** np.arange(51), rel=1e-12
    )
    assert not np.isfinite(closed_form_path(1.0, 1e6, 100, 1.0)).all()
    assert not np.isfinite(descend(quadratic([1.0]), [1.0], 1e6, 100)).all()


@pytest.mark.parametrize(
    ("times", "says"), [(0.5, "monotone"), (1.5, "oscillating"), (2.5, "diverging")]
)
def test_the_three_behaviours_are_measured(times, says):
    c = 8.0
    path = np.asarray(descend(quadratic([c]), [1.0], times / c, 30))[:, 0]
    turns, shrinks = path[1:] * path[:-1] < 0, abs(path[1:]) < abs(path[:-1])
    measured = "monotone" if not turns.any() else "oscillating" if shrinks.all() else "diverging"
    assert turns.all() or not turns.any()
    assert shrinks.all() or not shrinks.any()
    assert behavior(c, times / c) == measured == says


@pytest.mark.slow
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", MOMENTA)
def test_behaviours_with_momentum_are_those_of_long_trajectories(momentum, nesterov):
    top, seen = limit(1.0, momentum, nesterov=nesterov), set()
    for part in [0.0005, 0.3, 0.7, 0.98, 1.02, 1.5]:
        path = closed_form_path(1.0, part * top, 2000, 1.0, momentum, nesterov=nesterov)
        grows = not np.isfinite(path).all() or abs(path[-100:]).max() > abs(path[:100]).max()
        measured = "diverging" if grows else "oscillating" if (path < 0).any() else "monotone"
        assert behavior(1.0, part * top, momentum, nesterov=nesterov) == measured
        seen.add(measured)
    assert seen == {"monotone", "oscillating", "diverging"}


def test_the_edges_of_each_behaviour():
    assert behavior(1.0, 1.0) == "monotone"  # there in one step
    assert (
        behavior(1.0, 0.25, 0.25) == "monotone"
    )  # critically damped: a = (1 - sqrt m)^2, a double root
    assert behavior(1.0, 0.26, 0.25) == "oscillating"
    for momentum in MOMENTA:
        assert behavior(10.0, limit(10.0, momentum), momentum) == "oscillating"  # for ever
        assert behavior(10.0, 1.0001 * limit(10.0, momentum), momentum) == "diverging"
    assert behavior(-1.0, 0.1) == "diverging"  # downhill for ever


@pytest.mark.parametrize("momentum", MOMENTA)
def test_roots_are_the_eigenvalues_of_the_companion_matrix(momentum):
    for a in [-0.3, 0.01, 0.3, 1.3, 2.9, 5.0]:
        companion = np.array([[1 + momentum - a, -momentum], [1, 0]])
        got = roots(a / 2, 2.0, momentum)
        np.testing.assert_allclose(np.poly(got), np.poly(companion), rtol=1e-12, atol=1e-12)
        assert abs(got[0]) >= abs(got[1])


@pytest.mark.slow
@pytest.mark.parametrize(("momentum", "nesterov"), [*((m, False) for m in MOMENTA), (0.9, True)])
def test_measured_limits_are_the_formulas(momentum, nesterov):
    assert limit(1.0, momentum) == 2 * (1 + momentum)
    losses = [(quadratic([7.0]), [1.0], 7.0), (quadratic([0.01, 3.0, 40.0]), [9.0, 1.0, 0.1], 40.0)]
    losses += [(LINE, [0.0, 0.0], 3 + math.sqrt(5))]
    for loss, start, top in losses:
        want = limit(top, momentum, nesterov=nesterov)
        got = measured_limit(
            loss, start, momentum=momentum, nesterov=nesterov, low=want / 30, high=want * 50
        )
        assert got == pytest.approx(want, rel=2e-3)


def test_a_limit_is_found_to_the_precision_asked_for_and_above_a_floor():
    loss = quadratic([1.0, 10.0])
    assert measured_limit(loss, [1, 1], low=0.1, high=0.9, relative=0.3) == pytest.approx(
        0.2, rel=0.3
    )
    assert measured_limit(
        loss, [1, 1], low=0.1, high=0.9, relative=1e-5, num_steps=20_000
    ) == pytest.approx(0.2, rel=3e-5)
    # The minimum need not be zero.
    assert measured_limit(lambda w: loss(w) + 5, [1, 1], low=0.01, high=0.9) == pytest.approx(
        0.2, rel=2e-3
    )


@pytest.mark.slow
def test_a_straight_line_is_learnt_and_its_curvatures_are_those_of_its_moments():
    np.testing.assert_allclose(descend(LINE, [0, 0], 0.3, 200)[-1], [2, 1], atol=1e-5)
    np.testing.assert_allclose(descend(LINE, [0, 0], 0.1, 400, momentum=0.9)[-1], [2, 1], atol=1e-5)
    np.testing.assert_allclose(
        curvatures(LINE, [5, -3]), [3 + math.sqrt(5), 3 - math.sqrt(5)], rtol=1e-6
    )
    x = np.array([-1.0, 0.5, 4])
    other = straight_line(x, slope=-1, intercept=3)
    assert other(jnp.array([-1.0, 3.0])) == 0
    assert other(jnp.zeros(2)).item() == pytest.approx(((3 - x) ** 2).mean() / 2)
    want = np.linalg.eigvalsh([[(x**2).mean(), x.mean()], [x.mean(), 1]])[::-1]
    np.testing.assert_allclose(curvatures(other, [0, 0]), want, rtol=1e-6)


def test_a_sweep_of_rates_and_momenta_compiles_once():
    traces, loss = [], quadratic([1.0, 2.0])

    def counted(w):
        traces.append(1)
        return loss(w)

    once = None
    for rate in (0.1, 0.2, 5):
        for momentum in (0, 0.5, 0.9):
            descend(counted, [1.0, 1.0], rate, 10, momentum=momentum)
            once = once or len(traces)
    assert len(traces) == once


def test_it_works_inside_a_jitted_program():
    """The losses are plain functions of JAX."""
    value, slope = jax.jit(jax.value_and_grad(LINE))(jnp.array([2.0, 2.0]))
    assert value == pytest.approx(0.5)
    np.testing.assert_allclose(slope, [1, 1], rtol=1e-6)


ONE = quadratic([1.0])
RATES = [math.nan, math.inf, 0.0, -0.1, 1e39]
BAD_MOMENTA = [-0.1, 1.0, math.nan]


@pytest.mark.parametrize("rate", RATES)
def test_impossible_rates_are_refused(rate):
    for call in (
        lambda: descend(ONE, [1], rate, 3),
        lambda: closed_form_path(1.0, rate, 3, 1.0),
        lambda: roots(1.0, rate),
        lambda: behavior(1.0, rate),
    ):
        with pytest.raises(
            ArgumentError, match=r"rate is .*; expected a finite number above 0: write rate=0.1"
        ):
            call()
    for call in (
        lambda: measured_limit(ONE, [1], low=rate, high=9.0),
        lambda: measured_limit(ONE, [1], low=0.1, high=rate),
    ):
        with pytest.raises(ArgumentError, match="expected a finite number above 0"):
            call()


@pytest.mark.parametrize("momentum", BAD_MOMENTA)
def test_impossible_momenta_are_refused(momentum):
    for call in (
        lambda: descend(ONE, [1], 0.1, 3, momentum=momentum),
        lambda: limit(1.0, momentum),
        lambda: behavior(1.0, 0.1, momentum),
        lambda: closed_form_path(1.0, 0.1, 3, 1.0, momentum),
        lambda: measured_limit(ONE, [1], low=0.1, high=9.0, momentum=momentum),
    ):
        with pytest.raises(ArgumentError, match=r"momentum is .*; expected at least 0 and below 1"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quadratic([]), "curvatures is"),
        (lambda: quadratic([1, math.nan]), "curvatures is"),
        (lambda: quadratic([[1.0]]), "curvatures is"),  # pyright: ignore
        (lambda: quadratic([1e300]), "curvatures is"),
        (lambda: straight_line([]), "x is"),
        (lambda: descend(ONE, 1.0, 0.1, 3), "start is 1.0; expected finite numbers in a row"),
        (lambda: descend(ONE, [1], 0.1, 0), "num_steps is 0; expected a whole number"),
        (lambda: limit(0.0), "curvature is 0.0; expected a finite number above 0"),
        (lambda: behavior(math.nan, 0.1), "curvature is nan; expected a finite number"),
        (lambda: measured_limit(ONE, [1], low=3.0, high=9.0), "low is 3.0, which diverges"),
        (
            lambda: measured_limit(ONE, [1], low=0.1, high=1.0),
            "high is 1.0, which does not diverge",
        ),
        (
            lambda: measured_limit(ONE, [1], low=0.1, high=9.0, relative=0),
            "relative is 0; expected at least 1e-6",
        ),
    ],
)
def test_errors_are_one_line_with_the_mend(call, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_examples_run():
    assert doctest.testmod(descent).failed == 0
