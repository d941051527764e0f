"""The maximum of 2x2 windows: its derivatives against theory, and against XLA's own where rounding could differ."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.filters import ops
from jaxcnn.models import create_model
from jaxcnn.models.layers import max_pool_2x2

RNG = np.random.default_rng(0)
REFERENCE = {"xla_disable_hlo_passes": "algsimp"}
"""Compiled so, XLA keeps one form of each value."""


def drawn(*shape, dtype="float32"):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def theirs(x):
    return nn.max_pool(x, (2, 2), (2, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(2, 6, 4, 3), (1, 7, 5, 2), (3, 2, 2, 1), (2, 1, 4, 3), (2, 4, 6, 0), (0, 4, 4, 2)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_flax_ties_included(shape, dtype):
    x = jnp.round(
        drawn(*shape, dtype=dtype)
    )  # integers: many windows hold their maximum several times
    y, back = jax.vjp(max_pool_2x2, x)
    slope = drawn(*y.shape, dtype=dtype)
    expected, their_back = jax.vjp(theirs, x) if x.size else (y, lambda slope: (jnp.zeros_like(x),))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(back(slope)[0], their_back(slope)[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_treated_as_by_jnp_max_differentiated_or_not(bad):
    for place in range(4):
        x = drawn(1, 2, 2, 1).at[0, place // 2, place % 2, 0].set(bad)
        expected = x.max((1, 2), keepdims=True)
        np.testing.assert_array_equal(max_pool_2x2(x), expected)
        np.testing.assert_array_equal(jax.vjp(max_pool_2x2, x)[0], expected)


@pytest.mark.slow
def test_forward_mode_second_derivatives_vmap_and_remat_agree():
    x, v, kernel = drawn(2, 6, 4, 3), drawn(2, 6, 4, 3), drawn(2, 3, 2, 3)

    def height(x):
        return (kernel * max_pool_2x2(jnp.tanh(x)) ** 2).sum()

    slope = jax.grad(height)(x)
    np.testing.assert_allclose(jax.jvp(height, (x,), (v,))[1], (slope * v).sum(), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(jax.checkpoint(height))(x), slope, rtol=1e-6)
    mapped = jax.vmap(jax.grad(lambda x, k: (k * max_pool_2x2(jnp.tanh(x)[None])[0] ** 2).sum()))(
        x, kernel
    )
    np.testing.assert_allclose(mapped, slope, rtol=1e-6)

    def plain(x):  # evaluated one operation at a time, where nothing is computed twice
        return (kernel * jnp.tanh(x).reshape(2, 3, 2, 2, 2, 3).max((2, 4)) ** 2).sum()

    along, expected = (jax.jvp(jax.grad(f), (x,), (v,))[1] for f in (height, plain))
    np.testing.assert_allclose(along, expected, atol=1e-6 * float(jnp.abs(expected).max()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "shape"),
    [({"width": 4, "bn_group": 3}, (15, 8, 8, 1)), ({"width": 8}, (12, 4, 16, 1))],
)
def test_no_window_loses_its_gradient_behind_batch_norm(options, shape):
    """With `jnp.max` some kernels' gradients are 7 to 75% off, since XLA computes BN twice with different rounding."""
    model, x = create_model("convnet", 10, batch_norm=True, **options), drawn(*shape)
    variables = dict(model.init(jax.random.key(0), x))
    params = variables.pop("params")

    def loss(params):
        logits, _ = model.apply(
            {"params": params, **variables}, x, train=True, mutable=list(variables)
        )
        return jnp.square(logits).mean()

    got = jax.jit(jax.grad(loss))(params)
    expected = jax.jit(jax.grad(loss), compiler_options=REFERENCE)(params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.slow
def test_the_pooling_of_the_operations_keeps_its_gradient_too():
    kernel, scale = drawn(3, 3, 1, 4), drawn(4)

    def height(kernel, image):
        y = jax.lax.conv_general_dilated(
            image[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        y = (y - y.mean((0, 1, 2), keepdims=True)) * jax.lax.rsqrt(
            y.var((0, 1, 2), keepdims=True) + 1e-5
        )
        return (ops.max_pool(jax.nn.relu(y[0] * scale[None, None]), 2) ** 2).sum()

    for side in (4, 8, 12):
        image = drawn(side, side + 4, 1)
        got = jax.jit(jax.grad(height))(kernel, image)
        expected = jax.jit(jax.grad(height), compiler_options=REFERENCE)(kernel, image)
        np.testing.assert_allclose(got, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_pmap_and_sharding_give_the_same_gradient():
    x = drawn(8, 4, 4, 2)
    slope = jax.grad(lambda x: (max_pool_2x2(x) ** 2).sum())
    expected = slope(x)
    np.testing.assert_array_equal(
        jax.pmap(slope)(x.reshape(4, 2, 4, 4, 2)).reshape(x.shape), expected
    )
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("batch"))
    np.testing.assert_array_equal(jax.jit(partial(slope), in_shardings=sharding)(x), expected)
