"""The scale-invariant loss and the errors of depths, against loops of Eigen et al. 2014 in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn.losses import Batch, ScaleInvariantError, compute_loss
from jaxcnn.metrics import depth_errors

RNG = np.random.default_rng(0)
DEPTH = RNG.uniform(1, 9, (4, 5, 6)).astype(np.float32)
# Pixels without a true depth, in every form; the last image has none with one.
DEPTH[0, 0, :4] = 0, -1, np.nan, np.inf
DEPTH[1, 2] = 0
DEPTH[3] = np.nan
OUTPUTS = (np.log(RNG.uniform(1, 9, DEPTH.shape)) + 0.3).astype(np.float32)


def differences(outputs, depth):
    """d_i of the valid pixels of an image, in float64."""
    return [
        float(o) - math.log(float(d))
        for o, d in zip(outputs.ravel(), depth.ravel(), strict=True)
        if np.isfinite(d) and d > 0
    ]


def equation_1(d):
    """Mean of (d_i + alpha)^2, where alpha is the best shift of the predictions."""
    alpha = sum(-x for x in d) / len(d)
    return sum((x + alpha) ** 2 for x in d) / len(d)


def equation_2(d):
    """All pairs of pixels."""
    return sum((x - y) ** 2 for x in d for y in d) / (2 * len(d) ** 2)


def equation_3(d):
    return sum(x * x for x in d) / len(d) - sum(x * y for x in d for y in d) / len(d) ** 2


def equation_4(d, weight):
    return sum(x * x for x in d) / len(d) - weight * sum(d) ** 2 / len(d) ** 2


def values(loss, outputs: np.ndarray = OUTPUTS, depth: np.ndarray = DEPTH):
    batch = Batch(jnp.zeros((len(depth), 1)), jnp.asarray(depth))
    losses, metrics = compute_loss(loss, jnp.asarray(outputs), batch)
    return np.asarray(losses), {name: np.asarray(value) for name, value in metrics.items()}


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("channel", [False, True])
def test_the_loss_is_equation_4_of_the_valid_pixels(weight, channel):
    outputs = OUTPUTS[..., None] if channel else OUTPUTS
    losses, metrics = values(ScaleInvariantError(weight), outputs)
    for i in range(3):
        d = differences(OUTPUTS[i], DEPTH[i])
        assert len(d) == (26, 24, 30)[i]
        np.testing.assert_allclose(losses[i], equation_4(d, weight), rtol=1e-5)
        np.testing.assert_allclose(metrics["squared_log_error"][i], equation_4(d, 0), rtol=1e-5)
        for equation in (equation_1, equation_2, equation_3):
            np.testing.assert_allclose(metrics["scale_invariant_error"][i], equation(d), rtol=1e-5)
    assert losses[3] == 0


def test_a_factor_on_all_depths_of_an_image_does_not_change_the_loss_of_weight_1():
    """Sums of these differences have no rounding, so that the equality is exact."""
    d = RNG.choice([-0.5, 0.25, 1.0, 0.0], (2, 4, 4)).astype(np.float32)
    ones = np.ones_like(d)
    shifts = np.array([[[8.0]], [[-2.0]]], np.float32)
    plain, shifted = (values(ScaleInvariantError(1), x, ones)[0] for x in (d, d + shifts))
    np.testing.assert_array_equal(plain, shifted)
    assert (plain > 0.05).all()
    for i, shift in enumerate(shifts.ravel()):
        loss = values(ScaleInvariantError(0), d + shifts, ones)[0][i]
        np.testing.assert_allclose(loss, np.square(d[i] + shift).mean(), rtol=1e-6)
    # Far off, the terms of equation 3 are about 64^2 each, and would cancel in float32.
    far = values(ScaleInvariantError(1), OUTPUTS + np.float32(64), DEPTH)[0]
    np.testing.assert_allclose(far, values(ScaleInvariantError(1))[0], rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("labels_too", [False, True])
def test_sums_are_of_float32_whatever_the_dtype(dtype, labels_too):
    """An image of 90,000 pixels, more than float16 can count: d is 1 - log 2 everywhere."""
    outputs = jnp.ones((1, 300, 300), dtype)
    depth = jnp.full((1, 300, 300), 2.0, dtype if labels_too else "float32")
    losses, metrics = ScaleInvariantError(0.5)(outputs, Batch(jnp.zeros((1, 1)), depth))
    d = 1 - math.log(2)
    np.testing.assert_allclose(losses, [0.5 * d**2], rtol=1e-5)
    np.testing.assert_allclose(metrics["squared_log_error"], [d**2], rtol=1e-5)
    assert losses.dtype == jnp.float32
    assert {value.dtype for value in metrics.values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_gradients_are_those_of_equation_4_and_0_without_truth(weight):
    batch = Batch(jnp.zeros((4, 1)), jnp.asarray(DEPTH))
    mean = lambda outputs: ScaleInvariantError(weight)(outputs, batch)[0].sum()  # noqa: E731
    gradient = np.asarray(jax.jit(jax.grad(mean))(jnp.asarray(OUTPUTS)))
    assert np.isfinite(gradient).all()
    for i in range(4):
        valid = np.isfinite(DEPTH[i]) & (DEPTH[i] > 0)
        d = OUTPUTS[i].astype(np.float64)[valid] - np.log(DEPTH[i][valid].astype(np.float64))
        expected = 2 * d / max(len(d), 1) - 2 * weight * d.sum() / max(len(d), 1) ** 2
        np.testing.assert_allclose(gradient[i][valid], expected, rtol=1e-4, atol=1e-7)
        assert not gradient[i][~valid].any()
    if weight == 1:
        # The scale is not determined: all outputs of an image can move together.
        np.testing.assert_allclose(gradient.sum((1, 2)), 0, atol=1e-6)


def test_values_of_pixels_without_truth_do_not_count():
    other = np.where(np.isfinite(DEPTH) & (DEPTH > 0), OUTPUTS, 7).astype(np.float32)
    np.testing.assert_array_equal(
        values(ScaleInvariantError())[0], values(ScaleInvariantError(), other)[0]
    )


@pytest.mark.parametrize("scaled", [False, True])
def test_errors_of_depths_are_those_of_loops(scaled):
    predicted = np.exp(OUTPUTS)
    errors = depth_errors(predicted, DEPTH, median_scaling=scaled)
    relative, squared, logs, ratios, invariant = [], [], [], [], []
    for i in range(3):
        valid = np.isfinite(DEPTH[i]) & (DEPTH[i] > 0)
        y, truth = predicted[i][valid].tolist(), DEPTH[i][valid].tolist()
        factor = np.median(truth) / np.median(y) if scaled else 1.0
        d = []
        for own, true in zip(y, truth, strict=True):
            own *= factor
            relative.append(abs(own - true) / true)
            squared.append((own - true) ** 2)
            d.append(math.log(own / true))
            ratios.append(max(own / true, true / own))
        logs += d
        invariant.append(equation_2(d))
    expected = {
        "abs_rel": np.mean(relative),
        "rmse": np.sqrt(np.mean(squared)),
        "rmse_log": np.sqrt(np.mean(np.square(logs))),
        "scale_invariant": np.sqrt(np.mean(invariant)),
        "delta1": np.mean(np.array(ratios) < 1.25),
        "delta2": np.mean(np.array(ratios) < 1.25**2),
        "delta3": np.mean(np.array(ratios) < 1.25**3),
    }
    assert set(expected) == set(errors._fields)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(errors, name), value, rtol=1e-6)
    assert 0 < errors.delta1 < errors.delta2 < errors.delta3 < 1


def test_a_constant_factor_has_the_errors_of_the_factor():
    errors = depth_errors(1.5 * DEPTH[2:3], DEPTH[2:3])
    np.testing.assert_allclose(errors.abs_rel, 0.5, rtol=1e-6)
    np.testing.assert_allclose(errors.rmse_log, math.log(1.5), rtol=1e-6)
    assert errors.scale_invariant < 1e-6
    assert (errors.delta1, errors.delta2) == (0, 1)
    assert depth_errors(1.5 * DEPTH[2:3], DEPTH[2:3], median_scaling=True).abs_rel < 1e-6


GOOD = np.ones((1, 2, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ScaleInvariantError(1.5), "scale_invariance is 1.5; expected .*0..1"),
        (lambda: ScaleInvariantError("a"), "scale_invariance is 'a'"),  # pyright: ignore
        (lambda: values(ScaleInvariantError(), np.zeros((4, 5, 6, 2))), "one log depth for each"),
        (lambda: values(ScaleInvariantError(), np.zeros((4, 6, 5))), r"the model gives \(6, 5\)"),
        (lambda: values(ScaleInvariantError(), OUTPUTS, np.ones((4, 5), int)), "labels are .*int"),
        (lambda: values(ScaleInvariantError(), OUTPUTS, DEPTH[..., None]), "labels are"),
        (lambda: depth_errors(GOOD[0], GOOD[0]), "predicted is an array float32"),
        (lambda: depth_errors(GOOD, [[1.0]]), "depth is"),
        (lambda: depth_errors(GOOD, GOOD[:, :1]), "expected the same"),
        (lambda: depth_errors(-GOOD, GOOD), "predicted has values that are not depths"),
        (lambda: depth_errors(GOOD, 0 * GOOD), "no pixel with a true depth"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(jc.ArgumentError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
