"""The Frechet distance against the matrix square root of SciPy, closed forms, and its symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jaxcnn as jc
from jaxcnn.metrics import frechet_distance


def features(n, d, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=(1, d))


@pytest.mark.parametrize("d", [1, 2, 7, 30])
def test_it_is_equation_6_with_the_square_root_of_scipy(d):
    a, b = features(200, d, 0), features(130, d, 1)
    covariances = [np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    assert np.abs(np.imag(root)).max() < 1e-6
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * np.real(root))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_of_diagonal_gaussians_it_is_the_distance_of_means_and_deviations():
    """Samples with exactly these moments: two at each side of the mean, on each axis."""
    deviations = np.array([[1.0, 2.0, 0.5], [3.0, 0.0, 0.25]])
    means = np.array([[0.0, 1.0, -1.0], [2.0, 1.0, 4.0]])
    samples = []
    for deviation, mean in zip(deviations, means, strict=True):
        axes = np.diag(deviation) * np.sqrt((6 - 1) / 2)
        samples.append(np.concatenate([mean + axes, mean - axes]))
    expected = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(*samples) == pytest.approx(expected, rel=1e-12)


def test_it_is_symmetric_and_zero_for_equal_sets():
    a, b = features(60, 20, 0), features(50, 20, 1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    scale = np.square(a).sum() / len(a)
    assert 0 <= frechet_distance(a, a) < 1e-12 * scale
    assert 0 <= frechet_distance(a, a[::-1]) < 1e-12 * scale


def test_singular_covariances_lose_no_digits():
    """Fewer samples than columns; the square root of the product's eigenvalues has half the digits."""
    a, b = features(10, 40, 0), features(12, 40, 1)
    assert frechet_distance(a, a) < 1e-12 * np.square(a).sum()
    # In the space that the samples span, the covariances are regular.
    joint = np.concatenate([a - a.mean(0), b - b.mean(0), (a.mean(0) - b.mean(0))[None]])
    _, _, basis = np.linalg.svd(joint, full_matrices=False)
    small = [x @ basis[:21].T for x in (a, b)]
    roots = []
    for x in small:
        values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
        roots.append(vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T)
    middle = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    expected = np.square(small[0].mean(0) - small[1].mean(0)).sum()
    expected += sum(np.trace(root @ root) for root in roots) - 2 * middle
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)


def test_moves_add_the_squared_distance_and_turns_change_nothing():
    a, b = features(80, 5, 0), features(90, 5, 1)
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))
    moved = frechet_distance(a @ turn + 3.0, b @ turn + 3.0)
    assert moved == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(2 * a, 2 * b) == pytest.approx(4 * frechet_distance(a, b), rel=1e-9)
    shift = np.arange(5.0)[None]
    assert frechet_distance(a, a + shift) == pytest.approx(np.square(shift).sum(), rel=1e-9)


def test_arrays_of_other_types_are_taken():
    a, b = features(40, 3, 0).astype(np.float32), features(40, 3, 1).astype(np.float32)
    expected = frechet_distance(a, b)
    assert frechet_distance(jnp.asarray(a), b) == expected
    whole = np.round(a * 10).astype(np.int32)
    assert frechet_distance(whole, whole + 1) == pytest.approx(3.0, rel=1e-9)


@pytest.mark.parametrize("power", [-160, -40, 40, 150])
def test_it_scales_with_the_square_of_the_features_however_large(power):
    a, b = features(40, 3, 0), features(30, 3, 1)
    expected = frechet_distance(a, b)
    scaled = frechet_distance(a * 10.0**power, b * 10.0**power)
    # Below 1e-308 numbers have fewer digits.
    assert scaled / 10.0**power / 10.0**power == pytest.approx(expected, rel=1e-2)
    assert scaled > 0


def test_a_distance_above_the_greatest_float_is_one_line():
    a, b = features(40, 3, 0), features(30, 3, 1)
    for large in (1e160, 1e307):
        with pytest.raises(jc.ArgumentError, match="distance is above the greatest float"):
            frechet_distance(np.clip(a, -1, 1) * large, -np.clip(b, -1, 1) * large)
    # Equal sets are 0 apart, but for rounding of values near the greatest.
    assert frechet_distance(np.full((3, 2), 1e307), np.full((4, 2), 1e307)) == 0


def test_traced_features_are_one_line():
    with pytest.raises(jc.ArgumentError, match="features_b is traced") as error:
        jax.jit(lambda x: frechet_distance(np.zeros((5, 4)), x))(np.zeros((5, 4), np.float32))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((np.zeros((1, 3)), np.zeros((5, 3))), "features_a has 1 samples; expected at least 2"),
        ((np.zeros((5, 3)), np.zeros((0, 3))), "features_b has 0 samples"),
        ((np.zeros((5, 3)), np.zeros((5, 4))), "features_a have 3 columns and features_b 4"),
        (
            (np.zeros(5), np.zeros((5, 4))),
            r"features_a is an array float64 \(5,\); expected numbers",
        ),
        ((np.zeros((5, 2, 2)), np.zeros((5, 4))), "features_a is an array"),
        ((np.zeros((5, 0)), np.zeros((5, 0))), "features_a is an array"),
        (([[1.0]], np.zeros((5, 4))), "features_a is "),
        ((np.zeros((5, 4)), None), "features_b is None"),
        ((jax.random.split(jax.random.key(0), (5, 4)), np.zeros((5, 4))), "an array key<fry>"),
        ((np.zeros((5, 4)), np.zeros((5, 4), bool)), "features_b is an array bool"),
        ((np.zeros((5, 4)), np.full((5, 4), np.nan)), "features_b has values that are not finite"),
        ((np.zeros((5, 4)), np.zeros((5, 4), complex)), "features_b is an array complex"),
    ],
)
def test_mistakes_are_one_line(args, says):
    with pytest.raises(jc.ArgumentError, match=says) as error:
        frechet_distance(*args)
    assert "\n" not in str(error.value)
