"""Optimisers against loops in NumPy, and the schedule against the paper's: when it drops, when its warm-up ends."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.config import ArgumentError, OptimizerConfig
from jaxcnn.optim import (
    create_optimizer,
    current_learning_rate,
    decay_mask,
    scale_by_scheduled_rate,
)

ONE = {"kernel": jnp.float32(1)}


def kernel(tree: Any):
    return np.asarray(tree["kernel"])


def steps(tx, grads, params, n, **extra):
    """The sizes of the first n steps under a constant gradient."""
    state, taken = tx.init(params), []
    for _ in range(n):
        updates, state = tx.update(grads, state, params, **extra)
        taken.append(-kernel(updates))
    return np.array(taken)


# The methods, as their authors write them: (velocity, gradient, rate, momentum) -> velocity, step.


def heavy_ball(v, g, lr, m):
    v = m * v + g
    return v, lr * v


def caffe(v, g, lr, m):
    v = m * v + lr * g
    return v, v


def nesterov(v, g, lr, m):
    v = m * v + g
    return v, lr * (g + m * v)


def sgd(v, g, lr, m):
    return v, lr * g


METHODS = {"momentum": heavy_ball, "caffe": caffe, "nesterov": nesterov, "sgd": sgd}
"""The others, and that none is missing, are in test_methods.py."""


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("name", METHODS)
def test_twelve_steps_with_drops_are_those_of_a_loop_in_numpy(name, decay):
    config = OptimizerConfig(
        name,
        learning_rate=0.1,
        milestones=(4, 9),
        gamma=0.3,
        momentum=0.8,
        weight_decay=decay,
    )
    curvature, w = np.array([0.5, 2.0, 6.0]), np.array([1.0, -2.0, 3.0])
    tx, params = create_optimizer(config), {"kernel": jnp.asarray(w, jnp.float32)}
    state, v = tx.init(params), np.zeros(3)
    for step in range(12):
        rate = 0.1 * 0.3 ** ((step >= 4) + (step >= 9))
        v, taken = METHODS[name](v, curvature * w + decay * w, rate, 0.8)
        updates, state = tx.update(
            {"kernel": jnp.float32(curvature) * kernel(params)}, state, params
        )
        params, w = optax.apply_updates(params, updates), w - taken
        np.testing.assert_allclose(kernel(params), w, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "after"), [("caffe", 0.254), ("momentum", 0.034)])
def test_caffe_momentum_keeps_the_old_rates_steps(name, after):
    config = OptimizerConfig(
        name,
        learning_rate=0.1,
        milestones=(3,),
        gamma=0.1,
        momentum=0.9,
        weight_decay=0.0,
    )
    taken = steps(create_optimizer(config), ONE, ONE, 4)
    np.testing.assert_allclose(
        taken[:3], [0.1, 0.19, 0.271], rtol=1e-6
    )  # the same until the rate drops
    assert round(float(taken[3]), 3) == after


def test_an_unknown_optimiser_is_refused_with_the_nearest_in_one_line():
    with pytest.raises(ArgumentError) as error:
        create_optimizer(OptimizerConfig("nestorov"))
    assert str(error.value).endswith("did you mean 'nesterov'?")
    assert "\n" not in str(error.value)


# L2.


def test_decay_is_the_gradient_of_half_its_square():
    config = OptimizerConfig("sgd", learning_rate=1.0, milestones=(), weight_decay=0.25)
    params = {"kernel": jnp.array([2.0, -4.0])}
    updates, _ = (tx := create_optimizer(config)).update(
        jax.tree.map(jnp.zeros_like, params), tx.init(params), params
    )
    penalty = jax.grad(lambda p: 0.25 / 2 * (p["kernel"] ** 2).sum())(params)
    np.testing.assert_array_equal(kernel(updates), -kernel(penalty))
    np.testing.assert_array_equal(kernel(updates), [-0.5, 1.0])  # neither doubled nor halved


@pytest.mark.parametrize(
    ("on", "decayed"),
    [
        ("convs", {"conv.kernel"}),
        ("kernels", {"conv.kernel", "dense.kernel"}),
        (
            "all",
            {"conv.kernel", "conv.bias", "dense.kernel", "dense.bias", "norm.scale", "norm.bias"},
        ),
    ],
)
def test_only_these_leaves_decay(on, decayed):
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 2)), "bias": jnp.ones(2)},
        "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    }
    tx = create_optimizer(OptimizerConfig(decay_mask=on))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for tree in (updates, decay_mask(params, on)):
        moved = {
            f"{path[0].key}.{path[1].key}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if np.any(leaf)
        }
        assert moved == decayed


# The rate.


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001), (63_999, 0.001)],
)
@pytest.mark.parametrize("name", ["momentum", "sgd"])
def test_the_rate_drops_at_exactly_these_iterations(name, step, rate):
    tx = create_optimizer(OptimizerConfig(name, weight_decay=0.0))
    state = optax.tree.set(tx.init(ONE), count=jnp.int32(step))
    updates, state = tx.update(ONE, state, ONE)
    np.testing.assert_allclose(kernel(updates), -rate, rtol=1e-6)
    assert current_learning_rate(state) == rate
    assert optax.tree.get(state, "count") == step + 1


def warmed(errors, **options):
    """The rates of steps whose batches have these errors."""
    tx = create_optimizer(OptimizerConfig("sgd", warmup_lr=0.01, weight_decay=0.0, **options))
    state, rates = tx.init(ONE), []
    update = jax.jit(lambda state, error: tx.update(ONE, state, ONE, error=error))
    for error in errors:
        updates, state = update(state, jnp.float32(error))
        rates.append(-float(kernel(updates)))
        assert current_learning_rate(state) == pytest.approx(rates[-1], rel=1e-6)
    return np.array(rates)


def test_warm_up_waits_for_the_running_error_and_jumps_once():
    # From 1 towards 0.7: the running error is 0.7 + 0.3 * 0.95^k, below 0.8 from k = 22 (ln 3 / -ln
    # 0.95 = 21.4) on.
    rates = warmed([0.7] * 40)
    np.testing.assert_allclose(rates, [0.01] * 21 + [0.1] * 19, rtol=1e-6)


def test_warm_up_is_over_for_good_even_if_the_error_rises():
    rates = warmed([0.0] * 5 + [1.0] * 100)  # 0.95^5 = 0.774 is below 0.8, 0.95^4 = 0.815 is not
    np.testing.assert_allclose(rates, [0.01] * 4 + [0.1] * 101, rtol=1e-6)


def test_warm_up_never_ends_while_the_error_stays_above():
    np.testing.assert_allclose(warmed([0.9] * 100), 0.01, rtol=1e-6)


def test_one_good_batch_does_not_end_the_warm_up():
    np.testing.assert_allclose(warmed([1.0] * 10 + [0.0] + [1.0] * 10), 0.01, rtol=1e-6)


def test_drops_count_from_the_first_step_with_a_warm_up_too():
    rates = warmed(
        [0.0] * 10, milestones=(3, 7), gamma=0.5
    )  # the drop at 3 passes during the warm-up
    np.testing.assert_allclose(rates, [0.01] * 4 + [0.05] * 3 + [0.025] * 3, rtol=1e-6)


def test_warm_up_without_the_error_says_what_to_write():
    tx = create_optimizer(OptimizerConfig(warmup_lr=0.01))
    with pytest.raises(ValueError, match=r"or tx.update\(..., error=...\)") as error:
        tx.update(ONE, tx.init(ONE), ONE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("warmup_lr", "first"), [(None, 0.1), (0.01, 0.01)])
def test_the_rate_is_known_before_the_first_step(warmup_lr, first):
    tx = create_optimizer(OptimizerConfig(warmup_lr=warmup_lr))
    assert current_learning_rate(tx.init(ONE)) == first


def test_the_rate_of_optax_is_read_where_it_is_kept():
    injected = optax.inject_hyperparams(optax.sgd)(
        learning_rate=lambda count: jnp.where(count < 1, 0.3, 0.15)
    )
    _, state = injected.update(ONE, injected.init(ONE), ONE)
    assert current_learning_rate(state) == 0.3
    _, state = injected.update(ONE, state, ONE)
    assert current_learning_rate(state) == 0.15
    assert current_learning_rate(optax.sgd(0.1, momentum=0.9).init(ONE)) is None


def test_the_rate_is_found_beside_parameters_of_that_name():
    params = {"rate": {"kernel": jnp.ones(2)}, "hyperparams": {"kernel": jnp.ones(2)}}
    assert current_learning_rate(create_optimizer(OptimizerConfig()).init(params)) == 0.1


def test_any_schedule_can_be_wrapped():
    tx = scale_by_scheduled_rate(optax.sgd, 0.5, optax.cosine_decay_schedule(1.0, 10))
    np.testing.assert_allclose(
        steps(tx, ONE, ONE, 10), (1 + np.cos(np.pi * np.arange(10) / 10)) / 4, atol=1e-6
    )
