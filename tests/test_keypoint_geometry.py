"""Heat maps, part affinity fields, peaks and the assembly of people, against loops in NumPy."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from keypoint_loops import (
    CELLS,
    JOINTS,
    LIMBS,
    SIDE,
    SKELETON,
    STRIDE,
    affinity_fields,
    gaussians,
    random_labels,
)

import jaxcnn as jc
from jaxcnn.keypoints import (
    Peaks,
    Skeleton,
    assemble_people,
    find_peaks,
    heat_maps,
    hidden_limbs,
    line_integrals,
    match_greedily,
    part_affinity_fields,
)


def test_targets_are_equations_6_to_9():
    rng = np.random.default_rng(0)
    labels = random_labels(rng, 3)
    for points, visible in zip(labels["keypoints"], labels["visible"], strict=True):
        heat = heat_maps(points, visible, (SIDE, SIDE), stride=STRIDE, sigma=3.0)
        np.testing.assert_allclose(heat, gaussians(points, visible, 3.0), rtol=1e-4, atol=1e-6)
        fields = part_affinity_fields(
            points, visible, SKELETON.limbs, (SIDE, SIDE), stride=STRIDE, limb_width=2.0
        )
        expected, expected_hidden = affinity_fields(points, visible, 2.0)
        np.testing.assert_allclose(fields, expected, atol=1e-5)
        hidden = hidden_limbs(
            points, visible, SKELETON.limbs, (SIDE, SIDE), stride=STRIDE, limb_width=2.0
        )
        np.testing.assert_array_equal(hidden, expected_hidden)
        assert expected_hidden.any()
        lengths = np.linalg.norm(fields, axis=-1)
        assert lengths.max() <= 1 + 1e-6
        assert (lengths > 0.99).any()


def test_numbers_of_joints_are_integers_of_numpy_too():
    labels = random_labels(np.random.default_rng(10), 1)
    points, visible = labels["keypoints"][0], labels["visible"][0]
    limbs: Any = tuple((np.int64(a), np.int32(b)) for a, b in SKELETON.limbs)
    shape = (SIDE, SIDE)
    fields, same = (
        part_affinity_fields(points, visible, pairs, shape, stride=STRIDE, limb_width=2.0)
        for pairs in (limbs, SKELETON.limbs)
    )
    np.testing.assert_array_equal(fields, same)
    candidates = points.transpose(1, 0, 2)
    integrals, same = (
        line_integrals(fields, candidates, pairs, stride=STRIDE)
        for pairs in (limbs, SKELETON.limbs)
    )
    np.testing.assert_array_equal(integrals, same)
    assert np.asarray(integrals).max() > 0.5


def test_limits_are_10_by_default_or_all_there_are():
    """Of 2 joints with 2 or 8 candidates there are 4 or 16 people at most."""
    skeleton = Skeleton(("head", "foot"), ((0, 1),))
    assemble = partial(assemble_people, skeleton=skeleton)
    for k, count in ((2, 4), (8, 10)):
        peaks = Peaks(jnp.zeros((2, k, 2)), jnp.ones((2, k)))
        people = jax.eval_shape(assemble, peaks, jnp.zeros((1, k, k)))
        assert people.points.shape == (count, 2, 2)
    for side, cells in ((2, 4), (4, 10)):
        peaks = jax.eval_shape(partial(find_peaks, stride=2), jnp.zeros((side, side, 1)))
        assert peaks.scores.shape == (1, cells)


def peaks_of(heat, threshold, max_peaks):
    """Local maxima of one map with loops: (height, x, y), highest first."""
    height, width = heat.shape
    found = []
    for row, column in np.ndindex(height, width):
        value = heat[row, column]
        if value < threshold:
            continue
        place = row * width + column
        is_peak = True
        for r in range(max(row - 1, 0), min(row + 2, height)):
            for c in range(max(column - 1, 0), min(column + 2, width)):
                other = r * width + c
                if other != place and not (
                    value > heat[r, c] if other < place else value >= heat[r, c]
                ):
                    is_peak = False
        if not is_peak:
            continue
        point = []
        for index, size, before, after in (
            (column, width, heat[row, max(column - 1, 0)], heat[row, min(column + 1, width - 1)]),
            (row, height, heat[max(row - 1, 0), column], heat[min(row + 1, height - 1), column]),
        ):
            shift = 0.0
            if 0 < index < size - 1:
                low, middle, high = (math.log(max(v, 1e-6)) for v in (before, value, after))
                if 2 * middle - low - high > 0:
                    shift = (high - low) / (2 * (2 * middle - low - high))
            point.append(STRIDE * (index + 0.5 + min(max(shift, -0.5), 0.5)))
        found.append((float(value), *point))
    found.sort(key=lambda peak: -peak[0])
    return found[:max_peaks]


def test_peaks_are_those_of_loops():
    rng = np.random.default_rng(3)
    heat = rng.random((CELLS, CELLS, 3)).astype(np.float32)
    # Plateaus, negative values, and a map without a peak.
    heat[..., 1] = np.round(heat[..., 1] * 4) / 4 - 0.1
    heat[..., 2] = 0.05
    points, scores = find_peaks(heat, stride=STRIDE, max_peaks=12, threshold=0.3)
    for joint in range(3):
        expected = peaks_of(heat[..., joint].astype(float), 0.3, 12)
        assert len(expected) == (12, 12, 0)[joint]
        np.testing.assert_allclose(scores[joint][: len(expected)], [p[0] for p in expected])
        assert not scores[joint][len(expected) :].any()
        if expected:
            # Peaks of equal height are in reading order.
            np.testing.assert_allclose(points[joint], [p[1:] for p in expected], atol=1e-3)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 5.0])
def test_the_refined_peak_of_a_gaussian_is_its_center(sigma):
    """On a grid of centers within a cell, those between cells too, where neighbors are equal."""
    offsets = np.linspace(-1, 1, 9)
    points = np.array([[15 + x, 13 + y] for x in offsets for y in offsets], np.float32)

    def decoded(point):
        heat = heat_maps(
            point[None, None], jnp.ones((1, 1), bool), (SIDE, SIDE), stride=STRIDE, sigma=sigma
        )
        return find_peaks(heat, stride=STRIDE, max_peaks=3)

    found = jax.jit(jax.vmap(decoded))(points)
    assert ((found.scores > 0).sum(-1) == 1).all()
    np.testing.assert_allclose(found.points[:, 0, 0], points, atol=2e-3)


def test_the_refined_peak_of_a_narrow_gaussian_is_within_half_a_cell():
    """Its logarithms are cut at 1e-6, so that both neighbors are equal: the point is the center."""
    points = np.array([[[15.5, 13.0]]], np.float32)
    heat = heat_maps(points, np.ones((1, 1), bool), (SIDE, SIDE), stride=STRIDE, sigma=0.3)
    found = find_peaks(heat, stride=STRIDE, max_peaks=1, threshold=0.01)
    np.testing.assert_allclose(found.points[0, 0], [15, 13], atol=1e-6)


def test_line_integrals_are_equation_10():
    """Against loops with bilinear interpolation, also for lines that leave the map."""
    rng = np.random.default_rng(4)
    fields = rng.normal(size=(CELLS, CELLS, LIMBS, 2)).astype(np.float32)
    points = rng.uniform(-3, SIDE + 3, (JOINTS, 4, 2)).astype(np.float32)
    points[1, 2] = points[0, 1]
    found = line_integrals(fields, points, SKELETON.limbs, stride=STRIDE, samples=7)

    def at(limb, point):
        x, y = (min(max(v / STRIDE - 0.5, 0), CELLS - 1) for v in point)
        left, top = int(x), int(y)
        right, low = min(left + 1, CELLS - 1), min(top + 1, CELLS - 1)
        upper = (1 - x + left) * fields[top, left, limb] + (x - left) * fields[top, right, limb]
        lower = (1 - x + left) * fields[low, left, limb] + (x - left) * fields[low, right, limb]
        return (1 - y + top) * upper + (y - top) * lower

    for limb, (a, b) in enumerate(SKELETON.limbs):
        for i, j in np.ndindex(4, 4):
            first, second = points[a, i].astype(float), points[b, j].astype(float)
            length = np.linalg.norm(second - first)
            unit = (second - first) / length if length else np.zeros(2)
            line = [at(limb, (1 - u) * first + u * second) @ unit for u in np.linspace(0, 1, 7)]
            np.testing.assert_allclose(found[limb, i, j], np.mean(line), atol=1e-5)


def greedy(affinity, minimum):
    """All pairs by falling affinity, each taken if both of its candidates are free."""
    partner = [-1] * len(affinity)
    pairs = sorted(np.ndindex(*affinity.shape), key=lambda pair: -affinity[pair])
    for row, column in pairs:
        if affinity[row, column] > minimum and partner[row] < 0 and column not in partner:
            partner[row] = column
    return partner


def test_matching_is_greedy():
    rng = np.random.default_rng(5)
    cases = rng.normal(size=(200, 4, 6)).astype(np.float32)
    # Ties.
    cases[100:] = np.round(cases[100:])
    cases[::7, 1] = -np.inf
    found = np.asarray(jax.vmap(partial(match_greedily, minimum=0.2))(cases))
    for case, partners in zip(cases, found, strict=True):
        assert partners.tolist() == greedy(case, 0.2)
    assert (found == -1).any(1).mean() > 0.1


def assembled(peaks, affinities, min_affinity, min_joints):
    """People as sets of connected candidates, found by merging sets."""
    points, scores = (np.asarray(value) for value in peaks)
    k = scores.shape[1]
    people = [{(j, i)} for j in range(JOINTS) for i in range(k) if scores[j, i] > 0]
    for limb, (a, b) in enumerate(SKELETON.limbs):
        own = np.array(affinities[limb])
        own[scores[a] <= 0] = -np.inf
        own[:, scores[b] <= 0] = -np.inf
        for i, j in enumerate(greedy(own, min_affinity)):
            if j >= 0:
                first, second = (
                    next(group for group in people if node in group) for node in ((a, i), (b, j))
                )
                people.remove(second)
                first |= second
    people = [group for group in people if len(group) >= min_joints]
    people.sort(key=lambda group: -sum(scores[node] for node in group))
    return [{j: points[j, i].tolist() for j, i in group} for group in people]


def test_people_are_the_candidates_that_matches_connect():
    rng = np.random.default_rng(6)
    k, sizes = 4, set()
    for _ in range(30):
        scores = -np.sort(-rng.random((JOINTS, k)), axis=1).astype(np.float32)
        scores[rng.random((JOINTS, k)) < 0.2] = 0
        peaks = Peaks(rng.uniform(0, 32, (JOINTS, k, 2)).astype(np.float32), scores)
        affinities = rng.normal(size=(LIMBS, k, k)).astype(np.float32)
        found = assemble_people(peaks, affinities, SKELETON, max_people=6, min_joints=2)
        expected = assembled(peaks, affinities, 0.2, 2)
        people = [
            {j: points[j].tolist() for j in range(JOINTS) if own[j] > 0}
            for points, own in zip(*map(np.asarray, found), strict=True)
        ]
        assert [person for person in people if person] == expected[:6]
        assert np.isnan(np.asarray(found.points)[np.asarray(found.scores) == 0]).all()
        sizes |= {len(person) for person in expected}
    assert sizes == {2, 3, 4}


def test_crossing_people_are_apart_by_fields_and_not_by_distance():
    """Two limbs that cross: the far ends are nearer to the other's."""
    skeleton = Skeleton(("first", "second"), ((0, 1),))
    points = np.array([[[6, 8], [26, 16]], [[6, 16], [26, 8]]], np.float32)
    visible, shape = np.ones((2, 2), bool), (32, 32)
    heat = heat_maps(points, visible, shape, stride=2, sigma=3.0)
    fields = part_affinity_fields(points, visible, skeleton.limbs, shape, stride=2, limb_width=2.0)
    peaks = find_peaks(heat, stride=2, max_peaks=2)
    distances = jnp.linalg.norm(peaks.points[0][:, None] - peaks.points[1][None], axis=-1)
    integrals = line_integrals(fields, peaks.points, skeleton.limbs, stride=2)
    swapped = np.stack([[points[0, 0], points[1, 1]], [points[1, 0], points[0, 1]]])
    for affinities, expected in ((integrals, points), (100 - distances[None], swapped)):
        people = assemble_people(peaks, affinities, skeleton, max_people=2)
        own = np.asarray(people.points)[np.argsort(people.points[:, 0, 1])]
        np.testing.assert_allclose(own, expected, atol=0.1)


POINTS = jnp.zeros((1, JOINTS, 2))
VISIBLE = jnp.ones((1, JOINTS), bool)
PEAKS = Peaks(jnp.zeros((JOINTS, 2, 2)), jnp.ones((JOINTS, 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Skeleton(("a", "a"), ((0, 1),)), "joints is .*two different names"),
        (lambda: Skeleton(("a", "b", "c"), ((0, 1), (0, 1))), "limbs is"),
        (lambda: Skeleton(("a", "b", "c"), ((0, 1), (1, 3))), "limbs is"),
        (lambda: Skeleton(("a", "b", "c", "d"), ((0, 1), (2, 3), (1, 2))), "from the root"),
        (lambda: Skeleton(("a", "b"), ()), "expected 1 pairs"),
        (lambda: Skeleton(("a", "b"), ()), r"Write limbs=\(\(0, 1\),\)"),
        (lambda: Skeleton(("a", "b", "c"), ((0, 1), (1, 0))), r"limbs\[1\] reaches joint 0 again"),
        (
            lambda: Skeleton(("a", "b", "c"), ((0, 1), (2, 1))),
            r"limbs\[1\] starts at joint 2, which no limb before it reaches",
        ),
        (
            lambda: Skeleton(("a", "b", "c"), ((1, 2), (2, 3))),
            r"limbs\[1\] is no pair of numbers from 0 to 2",
        ),
        (lambda: Skeleton(("a", "b", "c"), ((0, 1),)), "no limb reaches joint 2"),
        (lambda: Skeleton(("a", "b"), 1), "there are no pairs"),  # pyright: ignore
        (
            lambda: heat_maps(POINTS, VISIBLE.astype(int), (8, 8), stride=2, sigma=1.0),
            "Write visible=visible > 0",
        ),
        (
            lambda: assemble_people(jnp.zeros((LIMBS, 2, 2)), PEAKS, SKELETON),  # pyright: ignore
            "peaks is an array .*expected Peaks. The order is peaks, affinities, skeleton",
        ),
        (lambda: heat_maps(POINTS[0], VISIBLE, (8, 8), stride=2, sigma=1.0), "points is"),
        (lambda: heat_maps(POINTS, VISIBLE[:, 1:], (8, 8), stride=2, sigma=1.0), "visible is"),
        (lambda: heat_maps(POINTS, VISIBLE, (9, 8), stride=2, sigma=1.0), "multiples of stride 2"),
        (
            lambda: part_affinity_fields(
                POINTS, VISIBLE, ((0, 9),), (8, 8), stride=2, limb_width=1.0
            ),
            "limbs is",
        ),
        (lambda: find_peaks(jnp.zeros((8, 8)), stride=2), "heat is"),
        (lambda: find_peaks(jnp.zeros((2, 2, 1)), stride=2, max_peaks=5), "Write max_peaks=4"),
        (lambda: find_peaks(jnp.zeros((8, 8, 1)), stride=2, threshold=0.0), "threshold is 0.0"),
        (
            lambda: line_integrals(jnp.zeros((8, 8, 2, 2)), PEAKS.points, SKELETON.limbs, stride=2),
            "there are 3 limbs, but the fields have 2; expected a field for each limb",
        ),
        (lambda: match_greedily(jnp.zeros(3), 0.1), "affinity is"),
        (lambda: match_greedily(jnp.zeros((3, 3)), math.nan), "least affinity is nan"),
        (
            lambda: assemble_people(PEAKS, jnp.zeros((LIMBS, 2, 3)), SKELETON),
            "peaks and affinities are of shapes",
        ),
        (
            lambda: assemble_people(PEAKS, jnp.zeros((LIMBS, 2, 2)), SKELETON, max_people=9),
            "max_people is 9; expected a whole number from 1 to 8. Write max_people=8",
        ),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(jc.ArgumentError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
