"""Eigenvalues against the dense Hessian's, and the noise scale against closed forms."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxcnn.config import ArgumentError
from jaxcnn.curvature import eigenvalues, hessian_vector, noise_scale, sharpness

RNG = np.random.default_rng(0)
KEY = jax.random.key(1)
LABELS = jnp.arange(12, dtype=jnp.int32) % 3
FLAT = jnp.asarray(RNG.normal(size=(12, 4)), jnp.float32)
IMAGES = jnp.asarray(RNG.normal(size=(12, 6, 6, 1)), jnp.float32)


def drawn(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def tanh_loss(params, x, labels):
    return cross_entropy(jnp.tanh(x @ params["a"]) @ params["b"], labels)


def conv_loss(params, images, labels):
    dims = ("NHWC", "HWIO", "NHWC")
    maps = jax.lax.conv_general_dilated(
        images, params["kernel"], (2, 2), "SAME", dimension_numbers=dims
    )
    return cross_entropy(jnp.tanh(maps).reshape(len(images), -1) @ params["dense"], labels)


NETWORKS = {
    "tanh": (tanh_loss, {"a": drawn(4, 5), "b": drawn(5, 3)}, FLAT),
    "conv": (conv_loss, {"kernel": drawn(3, 3, 1, 2), "dense": drawn(18, 3) / 3}, IMAGES),
}


def dense(loss, params, *args):
    """The whole Hessian, float64 [d, d]."""
    flat, unravel = ravel_pytree(params)
    hessian = np.asarray(jax.jit(jax.hessian(lambda w: loss(unravel(w), *args)))(flat), np.float64)
    return (hessian + hessian.T) / 2


def quadratic(spectrum):
    """The loss 1/2 w H w and H, of the spectrum given, in a random basis."""
    axes = np.linalg.qr(np.random.default_rng(5).normal(size=(len(spectrum),) * 2))[0]
    hessian = jnp.asarray(axes * np.asarray(spectrum, float) @ axes.T, jnp.float32)
    return lambda w: w @ hessian @ w / 2


def zeros(d):
    return jnp.zeros(d, jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_products_are_the_dense_hessians(name):
    loss, params, x = NETWORKS[name]
    vector = jax.tree.map(lambda leaf: drawn(*leaf.shape), params)
    got = jax.jit(partial(hessian_vector, loss))(params, vector, x, LABELS)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), got) == jax.tree.map(
        lambda a: (a.shape, a.dtype), params
    )
    flat = [np.asarray(ravel_pytree(tree)[0], np.float64) for tree in (vector, got)]
    np.testing.assert_allclose(
        flat[1], dense(loss, params, x, LABELS) @ flat[0], atol=2e-6 * abs(flat[1]).max()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_sharpness_of_a_network_is_its_hessians_largest_eigenvalue(name):
    loss, params, x = NETWORKS[name]
    truth = np.linalg.eigvalsh(dense(loss, params, x, LABELS))
    assert truth[0] < 0 < truth[-1]
    assert sharpness(loss, params, x, LABELS) == pytest.approx(truth[-1], rel=1e-5)
    assert sharpness(loss, params, x, LABELS, key=KEY, tolerance=1e-5) == pytest.approx(
        truth[-1], rel=3e-6
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_all_iterations_give_the_whole_spectrum_of_a_network(name):
    loss, params, x = NETWORKS[name]
    truth = np.linalg.eigvalsh(dense(loss, params, x, LABELS))
    values, bounds = eigenvalues(loss, params, x, LABELS, key=KEY, iterations=1000)
    assert values.dtype == bounds.dtype == np.float64
    assert (np.diff(values) >= 0).all()
    assert len(values) <= len(truth)
    # The softmax does not see what is added to all logits: those zeros are many, and any number of
    # them may be found.
    outer = abs(truth) > 1e-4 * truth[-1]
    found = values[abs(values) > 1e-4 * truth[-1]]
    np.testing.assert_allclose(found, truth[outer], atol=3e-6 * truth[-1])


def test_the_largest_is_the_most_positive_not_the_longest():
    assert sharpness(quadratic([-50, *np.linspace(-3, 3, 40), 7]), zeros(42)) == pytest.approx(
        7, rel=1e-5
    )
    assert sharpness(quadratic(-np.arange(1.0, 9.0)), zeros(8)) == pytest.approx(-1, rel=1e-4)


def test_a_chosen_spectrum_comes_back_and_each_bound_holds():
    spectrum = np.array([-4, -1, 0.5, 2, 3, 10.0])
    np.testing.assert_allclose(
        eigenvalues(quadratic(spectrum), zeros(6), key=KEY).values, spectrum, atol=1e-5
    )
    wide = np.append(np.linspace(-1, 1, 200) ** 3, 4)
    values, bounds = eigenvalues(quadratic(wide), zeros(201), key=KEY, iterations=12)
    away = abs(values[:, None] - wide[None]).min(1)
    assert len(values) == 12
    assert (away <= bounds + 1e-6).all()
    assert bounds[-1] < 1e-4 < 0.1 < bounds.max()  # the outlier is known best


def test_fewer_parameters_than_iterations_and_an_invariant_subspace_end_it():
    assert eigenvalues(lambda w: (w**2).sum(), zeros(1), key=KEY).values.tolist() == [2.0]
    linear = eigenvalues(lambda w: w.sum(), zeros(5), key=KEY)
    assert linear.values.tolist() == linear.bounds.tolist() == [0.0]
    assert sharpness(lambda w: w.sum(), zeros(5)) == 0
    scales = jnp.asarray(np.repeat([-2.0, 1, 4], 50), jnp.float32)
    values = eigenvalues(
        lambda w: (scales * w * w).sum() / 2, zeros(150), key=KEY, iterations=40
    ).values
    assert abs(values[:, None] - np.array([[-2.0, 1, 4]])).min(1).max() < 1e-5
    assert values[[0, -1]] == pytest.approx([-2, 4], rel=1e-6)


def test_one_compilation_serves_every_step_and_a_second_start():
    traces = []

    def loss(w, c):
        traces.append(1)
        return (c * w**4).sum()

    first = sharpness(loss, zeros(6) + 1, jnp.arange(6, dtype=jnp.float32))
    once = len(traces)
    second = sharpness(loss, zeros(6) + 2, 3 * jnp.arange(6, dtype=jnp.float32), key=KEY)
    eigenvalues(loss, zeros(6), zeros(6), key=KEY)
    assert len(traces) == once > 0
    assert (first, second) == pytest.approx((60, 720), rel=1e-5)  # 12 c w^2


def test_tolerance_and_most_bound_the_work():
    loss, calls = quadratic(np.linspace(0, 1, 300)), []

    def counted(w, tick):
        jax.debug.callback(lambda _: calls.append(1), tick)
        return loss(w)

    def work(**options):
        calls.clear()
        sharpness(counted, zeros(300), jnp.float32(0), **options)
        jax.effects_barrier()
        return len(calls)

    each = work(max_iterations=1)
    assert each >= 1
    assert work(max_iterations=5, tolerance=1e-9) == 5 * each
    assert work(tolerance=0.3) < work(tolerance=1e-2) < 100 * each


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_gives_nan_and_ends(bad):
    loss = partial(lambda c, w: c * (w**2).sum(), bad)
    assert math.isnan(sharpness(loss, zeros(4)))
    assert np.isnan(eigenvalues(loss, zeros(4), key=KEY).values).all()
    noise = noise_scale(lambda w, x: bad * (x.mean(0) + w), zeros(2), jnp.ones((3, 1, 2)))
    assert math.isnan(noise.scale)


POINTS, TARGETS = RNG.normal(size=(24, 3)), RNG.normal(size=24)
EACH = (POINTS @ [1, -2, 0.5] - TARGETS)[:, None] * POINTS  # each example's gradient at WEIGHTS
WEIGHTS = jnp.asarray([1, -2, 0.5], jnp.float32)


def linear(w, batch):
    x, y = batch
    return jax.grad(lambda w: ((x @ w - y) ** 2).mean() / 2)(w)


def batches(order, size):
    for rows in np.asarray(order).reshape(-1, size):
        yield jnp.asarray(POINTS[rows], jnp.float32), jnp.asarray(TARGETS[rows], jnp.float32)


def test_noise_of_single_examples_is_the_sample_covariance():
    got = noise_scale(linear, WEIGHTS, batches(range(24), 1))
    trace = np.trace(np.cov(EACH.T))
    squared = (EACH.mean(0) ** 2).sum() - trace / 24
    assert got == pytest.approx((trace / squared, squared, trace), rel=1e-5)


def test_both_estimates_are_unbiased():
    """Their means over every way of drawing two batches of two from three examples are the population's own."""
    draws = [
        noise_scale(linear, WEIGHTS, batches(rows, 2))
        for rows in itertools.product(range(3), repeat=4)
    ]
    mean = EACH[:3].mean(0)
    assert np.mean([d.squared_norm for d in draws]) == pytest.approx(mean @ mean, rel=1e-5)
    assert np.mean([d.trace for d in draws]) == pytest.approx(
        ((EACH[:3] - mean) ** 2).sum() / 3, rel=1e-5
    )
    drowned = [d for d in draws if d.squared_norm <= 0]
    assert drowned
    assert all(d.scale == math.inf for d in drowned)
    assert all(
        d.scale == pytest.approx(d.trace / d.squared_norm) for d in draws if d.squared_norm > 0
    )


def test_equal_batches_have_no_noise():
    got = noise_scale(linear, WEIGHTS, batches([1, 2, 1, 2, 1, 2], 2))
    assert got.scale == pytest.approx(0, abs=1e-12)
    assert got.squared_norm == pytest.approx((EACH[1:3].mean(0) ** 2).sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sharpness(jnp.sum, zeros(2), tolerance=0),
            "tolerance is 0; expected a finite number above 0",
        ),
        (lambda: sharpness(jnp.sum, zeros(2), tolerance=math.nan), "tolerance is nan"),
        (
            lambda: sharpness(jnp.sum, zeros(2), max_iterations=0),
            "max_iterations is 0; expected a whole number of at least 1",
        ),
        (lambda: eigenvalues(jnp.sum, zeros(2), key=KEY, iterations=2.5), "iterations is 2.5"),  # pyright: ignore
        (lambda: sharpness(jnp.sum, {"w": jnp.arange(3)}), "params holds int32; expected float32"),
        (lambda: sharpness(jnp.sum, [1.0]), "params holds float; expected float32"),
        (lambda: sharpness(jnp.sum, {}), "params holds nothing"),
        (lambda: sharpness(jnp.sum, zeros(0)), "params holds nothing"),
        (lambda: noise_scale(linear, WEIGHTS, []), "batches holds 0; expected at least two"),
        (
            lambda: noise_scale(linear, WEIGHTS, batches([0, 1], 2)),
            "batches holds 1; expected at least two",
        ),
        (
            lambda: noise_scale(jnp.add, zeros(()), [zeros(2), zeros(3)]),
            "batches hold 2 and 3 examples",
        ),
    ],
)
def test_errors_are_one_line_with_the_mend(call, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
