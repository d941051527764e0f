"""BatchNorm against flax's, against itself group by group, and on many devices against one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.config import ArgumentError
from jaxcnn.models import create_model
from jaxcnn.models.norm import BatchNorm

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(1, 2, (16, 3, 5, 4)), jnp.float32)
WEIGHTS = jnp.asarray(RNG.normal(size=X.shape), jnp.float32)
VARIABLES = jax.tree.map(
    jnp.float32,
    {
        "params": {"scale": [0.5, 1.0, 2.0, -1.0], "bias": [0.0, 1.0, -2.0, 0.5]},
        "batch_stats": {"mean": [1.0, -1.0, 0.5, 0.0], "var": [1.0, 2.0, 0.5, 4.0]},
    },
    is_leaf=lambda leaf: isinstance(leaf, list),
)


def close(got, want, tolerance=1e-6):
    """Every leaf equal up to `tolerance` of its largest value."""
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * np.abs(w).max()),
        got,
        want,
    )


def trained(x, **options):
    """The output and the new moving averages of one training step."""
    y, new = BatchNorm(**options).apply(VARIABLES, x, True, mutable=["batch_stats"])
    return y, new["batch_stats"]


def mapped(x, devices, **options):
    """The same with the batch split over devices: outputs put together, and each device's moving averages."""
    step = jax.pmap(
        lambda x: trained(x, axis_name="batch", **options), "batch", devices=jax.devices()[:devices]
    )
    y, stats = step(x.reshape(devices, -1, *x.shape[1:]))
    return y.reshape(x.shape), stats


# Against flax.


@pytest.mark.slow
@pytest.mark.parametrize("part", [np.s_[:], np.s_[:, 0, 0]], ids=["maps", "vectors"])
@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_training_equals_flax_in_output_moving_averages_and_gradients(part, momentum):
    ours = BatchNorm(momentum=momentum)
    theirs = nn.BatchNorm(use_running_average=False, momentum=momentum, epsilon=1e-5)

    def run(layer, *train):
        @jax.jit
        def loss(params, x):
            y, new = layer.apply(VARIABLES | {"params": params}, x, *train, mutable=["batch_stats"])
            return (WEIGHTS[part] * y).sum(), (y, new["batch_stats"])

        return jax.grad(loss, (0, 1), has_aux=True)(VARIABLES["params"], X[part])

    close(run(ours, True), run(theirs))


def test_testing_equals_flax():
    close(
        BatchNorm().apply(VARIABLES, X, False),
        nn.BatchNorm(use_running_average=True, epsilon=1e-5).apply(VARIABLES, X),
    )


@pytest.mark.slow
def test_epsilon_is_added_to_the_variance():
    flat = jnp.full((4, 1), 3.0)
    variables = {
        "params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)},
        "batch_stats": {"mean": jnp.zeros(1), "var": jnp.zeros(1)},
    }
    y = BatchNorm(epsilon=0.25).apply(variables, flat, False)
    close(y, np.full((4, 1), 3 / 0.5))
    assert not np.any(
        BatchNorm().apply(variables, flat, True, mutable=["batch_stats"])[0]
    )  # a constant batch is 0, not NaN


def test_initialising_leaves_the_moving_averages_at_zero_and_one():
    stats = BatchNorm().init(jax.random.key(0), X, True)["batch_stats"]
    np.testing.assert_array_equal(stats["mean"], np.zeros(4))
    np.testing.assert_array_equal(stats["var"], np.ones(4))


def test_momentum_is_the_share_of_the_old_and_the_variance_the_biased_one():
    x, old = np.asarray(X, np.float64), VARIABLES["batch_stats"]
    _, new = trained(X, momentum=0.75)
    close(new["mean"], 0.75 * np.asarray(old["mean"]) + 0.25 * x.mean((0, 1, 2)))
    close(new["var"], 0.75 * np.asarray(old["var"]) + 0.25 * x.var((0, 1, 2), ddof=0))


def test_bfloat16_results_come_from_float32_moments():
    offset = (X / 16 + 100).astype(
        jnp.bfloat16
    )  # sums of 240 such numbers lose all digits in bfloat16
    y, new = trained(offset, dtype=jnp.bfloat16)
    whole, expected = trained(offset.astype(jnp.float32))
    close(new, expected)
    assert (y.dtype, whole.dtype) == (jnp.bfloat16, jnp.float32)


# Groups.


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_a_group_is_normalised_as_if_it_were_alone(group):
    y, stats = trained(X, group=group)
    parts = [trained(part) for part in np.split(np.asarray(X), len(X) // group)]
    close(y, np.concatenate([part for part, _ in parts]))
    close(stats, jax.tree.map(lambda *leaves: np.mean(leaves, 0), *(stats for _, stats in parts)))


def test_groups_differ_from_the_whole_batch():
    assert np.abs(trained(X, group=4)[0] - trained(X)[0]).max() > 0.1
    np.testing.assert_array_equal(trained(X, group=16)[0], trained(X)[0])


@pytest.mark.slow
def test_bn_group_and_momentum_of_a_network_reach_every_layer():
    images = jnp.asarray(RNG.normal(size=(8, 8, 8, 3)), jnp.float32)
    whole, grouped = (
        create_model("resnet8", 10, width=2, shortcut="B", **o)
        for o in ({}, {"bn_group": 4, "bn_momentum": 0.25})
    )
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape), leaf.dtype),
        jax.eval_shape(whole.init, jax.random.key(0), images),
    )
    step = jax.jit(
        lambda model, x: model.apply(variables, x, True, mutable=["batch_stats"]), static_argnums=0
    )
    logits, new = step(grouped, images)
    (one, a), (two, b) = step(whole, images[:4]), step(whole, images[4:])
    close(logits, np.concatenate([one, two]), 1e-5)
    # From the same start, momentum 0.25 moves 0.75 / 0.1 times as far as 0.9.
    before = {"batch_stats": variables["batch_stats"]}
    close(new, jax.tree.map(lambda old, a, b: old + 7.5 * ((a + b) / 2 - old), before, a, b), 1e-5)


# Many devices.


@pytest.mark.slow
@pytest.mark.parametrize("group", [0, 1, 2, 4, 8, 16])
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_under_pmap_give_the_result_of_one(devices, group):
    expected, moved = trained(X, group=group)
    y, stats = mapped(X, devices, group=group)
    close(y, expected)
    for device in range(devices):
        close(jax.tree.map(lambda leaf, i=device: leaf[i], stats), moved)


@pytest.mark.slow
@pytest.mark.parametrize("group", [0, 2, 8])
def test_gradients_under_pmap_are_those_of_one_device(group):
    def loss(x, weights, **options):
        y, _ = BatchNorm(group, **options).apply(VARIABLES, x, True, mutable=["batch_stats"])
        return (weights * y).sum()

    share = jax.pmap(
        jax.grad(lambda x, w: loss(x, w, axis_name="batch")), "batch", devices=jax.devices()[:4]
    )
    shares = share(X.reshape(4, -1, *X.shape[1:]), WEIGHTS.reshape(4, -1, *X.shape[1:]))
    close(shares.reshape(X.shape), jax.grad(loss)(X, WEIGHTS))


@pytest.mark.parametrize(
    ("devices", "batch", "group"),
    [(1, 16, 3), (1, 16, 32), (2, 16, 3), (2, 16, 5), (4, 24, 4), (4, 24, 8), (8, 16, 32)],
)
def test_a_group_that_does_not_divide_is_refused_in_one_line(devices, batch, group):
    x = jnp.ones((batch, 2))
    ones = {
        "params": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "batch_stats": {"mean": jnp.ones(2), "var": jnp.ones(2)},
    }
    layer = BatchNorm(group, "batch")
    step = jax.pmap(
        lambda x: layer.apply(ones, x, True, mutable=["batch_stats"]),
        "batch",
        devices=jax.devices()[:devices],
    )
    with pytest.raises(ArgumentError) as error:
        step(x.reshape(devices, -1, 2))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(
        f"bn_group is {group}, which does not divide the batch of {batch} on {devices}"
    )
