"""PCK and object keypoint similarity against loops and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn.metrics import average_precision, correct_keypoints, keypoint_similarity, pck

RNG = np.random.default_rng(0)
TRUE = RNG.uniform(0, 50, (7, 5, 2)).astype(np.float32)
POINTS = (TRUE + RNG.normal(0, 3, TRUE.shape)).astype(np.float32)
POINTS[2] = np.nan
POINTS[3, 1] = np.nan
VISIBLE = RNG.random((7, 5)) < 0.7
VISIBLE[:, 4] = False
LENGTHS = RNG.uniform(20, 60, 7)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 1.0])
def test_pck_is_the_share_within_a_fraction_of_the_length(alpha):
    right = correct_keypoints(POINTS, TRUE, VISIBLE, LENGTHS, alpha=alpha)
    shares = pck(POINTS, TRUE, VISIBLE, LENGTHS, alpha=alpha)
    for joint in range(5):
        hits = count = 0
        for i in range(7):
            distance = math.dist(POINTS[i, joint].tolist(), TRUE[i, joint].tolist())
            is_right = bool(VISIBLE[i, joint]) and distance <= alpha * LENGTHS[i]
            assert right[i, joint] == is_right
            hits += is_right
            count += bool(VISIBLE[i, joint])
        assert (count == 0) == (joint == 4)
        np.testing.assert_equal(shares[joint], hits / count if count else math.nan)
    assert 0 < np.nanmean(shares) < 1


def test_pck_does_not_change_with_the_unit():
    """A power of 2 rounds nothing."""
    right = correct_keypoints(POINTS, TRUE, VISIBLE, LENGTHS)
    doubled = correct_keypoints(2 * POINTS, 2 * TRUE, VISIBLE, 2 * LENGTHS)
    np.testing.assert_array_equal(right, doubled)


def test_pck_takes_bfloat16():
    """Points, true points and lengths, of NumPy and of JAX: as the same rounded values in float64."""
    rounded = [jnp.asarray(array).astype(jnp.bfloat16) for array in (POINTS, TRUE, LENGTHS)]
    points, true, lengths = (np.asarray(array, np.float64) for array in rounded)
    expected = correct_keypoints(points, true, VISIBLE, lengths)
    assert 0 < expected.sum() < VISIBLE.sum()
    for convert in (np.asarray, jnp.asarray):
        points, true, lengths = (convert(array) for array in rounded)
        assert points.dtype == jnp.bfloat16
        found = correct_keypoints(points, true, VISIBLE, lengths)
        np.testing.assert_array_equal(found, expected)
        assert np.nanmax(pck(points, true, VISIBLE, lengths)) <= 1


def oks(points, true, visible, area, sigma):
    """COCO's definition for one pair, with loops."""
    terms = []
    for joint in range(len(true)):
        if visible[joint] and area > 0:
            d = math.dist(points[joint].tolist(), true[joint].tolist())
            terms.append(math.exp(-(d**2) / (2 * area * (2 * sigma) ** 2)) if d == d else 0.0)
    return sum(terms) / len(terms) if terms else 0.0


def test_keypoint_similarity_is_cocos():
    areas = RNG.uniform(300, 900, 7).astype(np.float32)
    areas[5] = 0
    visible = VISIBLE.copy()
    visible[6] = False
    found = np.asarray(jax.jit(keypoint_similarity)(POINTS[:4], TRUE, visible, areas))
    expected = [
        [oks(p, *one, 0.05) for one in zip(TRUE, visible, areas, strict=True)] for p in POINTS[:4]
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert found.shape == (4, 7)
    assert found[0, 0] > 0.1
    assert not found[2].any()
    assert not found[:, 5:].any()


def test_a_distance_of_the_standard_deviation_has_the_similarity_of_a_half_power():
    """d = s k gives exp(-1/2), for any area."""
    true = jnp.zeros((1, 1, 2))
    for area in (100.0, 2500.0):
        d = math.sqrt(area) * 2 * 0.05
        points = jnp.array([[[d, 0.0]]])
        value = keypoint_similarity(points, true, jnp.ones((1, 1), bool), jnp.array([area]))
        np.testing.assert_allclose(value, [[math.exp(-0.5)]], rtol=1e-6)


def test_it_takes_the_place_of_the_overlap_in_average_precision():
    """Two people found exactly and one invented, with the least score: all recalls have precision 1."""
    points = np.concatenate([TRUE[:2], TRUE[:1] + 30])[None]
    areas = np.full((1, 2), 900, np.float32)
    visible = np.ones((1, 2, 5), bool)
    similarity = jax.vmap(keypoint_similarity)(points, TRUE[None, :2], visible, areas)
    classes, true_classes = np.zeros((1, 3), int), np.zeros((1, 2), int)
    for scores, is_perfect in (([0.9, 0.8, 0.1], True), ([0.3, 0.2, 0.9], False)):
        values = average_precision(
            similarity, np.array([scores]), classes, true_classes, num_classes=1
        )
        assert (values == 1).all() == is_perfect


def test_each_joint_may_have_its_own_sigma_as_in_coco():
    sigmas = np.array([0.026, 0.025, 0.035, 0.079, 0.107])
    true, areas = TRUE[:2], np.array([900.0, 400.0], np.float32)
    visible = np.array([[True] * 5, [True, False, True, True, False]])
    found = keypoint_similarity(POINTS, true, visible, areas, sigma=sigmas)
    for i, j in np.ndindex(len(POINTS), 2):
        d2 = ((POINTS[i].astype(np.float64) - true[j]) ** 2).sum(-1)
        terms = np.exp(-d2 / (2 * areas[j] * (2 * sigmas) ** 2))[visible[j]]
        np.testing.assert_allclose(found[i, j], np.nan_to_num(terms).mean(), rtol=1e-4, atol=1e-7)
    same = keypoint_similarity(POINTS, true, visible, areas, sigma=np.full(5, 0.05))
    np.testing.assert_allclose(same, keypoint_similarity(POINTS, true, visible, areas), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pck(POINTS[0], TRUE, VISIBLE, LENGTHS), "points is an array"),
        (lambda: pck(POINTS.astype(complex), TRUE, VISIBLE, LENGTHS), "complex128 .*real numbers"),
        (lambda: pck(POINTS, TRUE, VISIBLE, LENGTHS.astype("m8[s]")), "lengths is"),
        (lambda: pck(POINTS, TRUE[:3], VISIBLE, LENGTHS), "true_points"),
        (lambda: pck(POINTS, TRUE, VISIBLE.astype(int), LENGTHS), "visible is .*bool"),
        (lambda: pck(POINTS, TRUE, VISIBLE, LENGTHS[:2]), "lengths is"),
        (lambda: pck(POINTS, TRUE, VISIBLE, 0 * LENGTHS), "lengths is"),
        (lambda: pck(POINTS, TRUE, VISIBLE, LENGTHS, alpha=0), "alpha is 0"),
        (lambda: pck(POINTS, TRUE * np.nan, VISIBLE, LENGTHS), "not finite"),
        (lambda: keypoint_similarity(POINTS, TRUE, VISIBLE, LENGTHS[:1]), "are of shapes"),
        (lambda: keypoint_similarity(POINTS, TRUE, VISIBLE * 1, LENGTHS), "bool for visible"),
        (lambda: keypoint_similarity(POINTS, TRUE, VISIBLE, LENGTHS, sigma=-1), "sigma is -1"),
        (
            lambda: keypoint_similarity(POINTS, TRUE, VISIBLE, LENGTHS, sigma=np.ones(2)),
            r"sigma is .*or 5, one for each joint. Write sigma=np.full\(5, 0.05\)",
        ),
        (
            lambda: keypoint_similarity(POINTS, TRUE, VISIBLE, LENGTHS, sigma=np.zeros(5)),
            "sigma is .*above 0",
        ),
        (lambda: pck(POINTS, TRUE, VISIBLE * 2, LENGTHS), "Write visible > 0"),
        (lambda: keypoint_similarity(None, TRUE, VISIBLE, LENGTHS), "are of shapes"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(jc.ArgumentError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
