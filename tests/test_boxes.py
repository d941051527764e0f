"""Boxes against plain NumPy: overlap, offsets, anchors, matching and suppression."""

import math
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import tried

from jaxcnn import boxes
from jaxcnn.arguments import ArgumentError

N, M, SIDE = 24, 5, 40


def random_boxes(rng, n, whole=True):
    """Boxes of whole pixels (which touch and coincide often) or of real numbers."""
    corners = rng.integers(0, SIDE, (2, n, 2)) if whole else rng.uniform(0, SIDE, (2, n, 2))
    low, high = np.minimum(*corners), np.maximum(*corners) + (1 if whole else 0.5)
    return np.concatenate([low, high], 1).astype(np.float32)


def overlap_of(a, b):
    """By the area of each rectangle, in float64 and one pair at a time."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = float(width) * float(height) if width > 0 and height > 0 else 0.0
    either = sum(float(x[2] - x[0]) * float(x[3] - x[1]) for x in (a, b)) - both
    return both / either


def overlaps_of(a, b):
    return np.array([[overlap_of(x, y) for y in b] for x in a])


def suppressed(box, scores, classes, threshold, max_outputs, min_score):
    """Greedy suppression as a loop."""
    kept = []
    for i in sorted(range(len(box)), key=lambda i: -scores[i]):
        rivals = [j for j in kept if classes is None or classes[j] == classes[i]]
        if scores[i] > min_score and all(overlap_of(box[i], box[j]) <= threshold for j in rivals):
            kept.append(i)
    return (kept + [-1] * max_outputs)[:max_outputs]


def matched(anchors, truth, valid, positive, negative):
    """SSD's two rules as loops over pairs."""
    overlaps = overlaps_of(anchors, truth)
    index = []
    for row in overlaps:
        best = max((j for j in range(len(truth)) if valid[j]), key=lambda j: row[j], default=None)
        overlap = -1.0 if best is None else row[best]
        index.append(best if overlap >= positive else -2 if overlap >= negative else -1)
    pairs = [(i, j) for i in range(len(anchors)) for j in range(len(truth)) if valid[j]]
    while pairs:
        i, j = max(pairs, key=lambda pair: overlaps[pair])
        if overlaps[i, j] > 0:
            index[i] = j
        pairs = [(a, b) for a, b in pairs if a != i and b != j]
    return index


def test_overlaps_are_those_of_counted_pixels():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 30), random_boxes(rng, 20)

    def pixels(box):
        image = np.zeros((SIDE + 1, SIDE + 1), bool)
        x1, y1, x2, y2 = box.astype(int)
        image[y1:y2, x1:x2] = True
        return image

    counted = [
        [(pixels(x) & pixels(y)).sum() / (pixels(x) | pixels(y)).sum() for y in b] for x in a
    ]
    np.testing.assert_allclose(boxes.iou(a, b), counted, rtol=1e-6)
    np.testing.assert_array_equal(boxes.areas(a), [pixels(x).sum() for x in a])


def test_boxes_without_area_overlap_nothing():
    empty = np.array([[3.0, 3.0, 3.0, 9.0], [5.0, 5.0, 2.0, 2.0]], np.float32)
    np.testing.assert_array_equal(boxes.areas(empty), [0, 0])
    np.testing.assert_array_equal(boxes.iou(empty, empty), np.zeros((2, 2)))
    gradient = jax.grad(lambda x: boxes.iou(x, x).sum())(jnp.asarray(empty))
    assert np.isfinite(gradient).all()


def test_offsets_are_equation_2_and_decode_inverts_them():
    rng = np.random.default_rng(1)
    anchors, truth = random_boxes(rng, 50, whole=False), random_boxes(rng, 50, whole=False)
    rows = []
    for (ax1, ay1, ax2, ay2), (x1, y1, x2, y2) in zip(anchors, truth, strict=True):
        w, h = ax2 - ax1, ay2 - ay1
        rows.append(
            [
                ((x1 + x2) / 2 - (ax1 + ax2) / 2) / w / 0.1,
                ((y1 + y2) / 2 - (ay1 + ay2) / 2) / h / 0.1,
                math.log((x2 - x1) / w) / 0.2,
                math.log((y2 - y1) / h) / 0.2,
            ]
        )
    offsets = boxes.encode(truth, anchors)
    np.testing.assert_allclose(offsets, rows, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(boxes.decode(offsets, anchors), truth, rtol=1e-4, atol=1e-3)
    plain = boxes.encode(truth, anchors, (1.0, 1.0))
    np.testing.assert_allclose(plain, np.array(rows) * [0.1, 0.1, 0.2, 0.2], rtol=1e-4, atol=1e-5)


def test_decoded_sizes_are_bounded():
    huge = boxes.decode(jnp.full((1, 4), 1e6), jnp.array([[0.0, 0.0, 4.0, 4.0]]))
    assert np.isfinite(huge).all()
    assert float(huge[0, 2] - huge[0, 0]) == pytest.approx(4 * 62.5)


def test_anchors_are_at_every_cell_in_order():
    anchors = boxes.Anchors(strides=(8, 16), sizes=((8.0, 10.0), (16.0,)), ratios=(1.0, 0.25))
    expected = []
    for stride, sizes in ((8, (8, 10)), (16, (16,))):
        # 20 x 33 pixels: the last cells reach beyond the image.
        for row in range(math.ceil(20 / stride)):
            for column in range(math.ceil(33 / stride)):
                for size in sizes:
                    for ratio in (1, 0.25):
                        x, y = (column + 0.5) * stride, (row + 0.5) * stride
                        w, h = size / ratio**0.5, size * ratio**0.5
                        expected.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    found = anchors.boxes(20, 33)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected)
    assert anchors.per_cell == (4, 2)
    np.testing.assert_allclose(boxes.areas(found)[:4], [64, 64, 100, 100], rtol=1e-6)


def test_suppression_is_the_greedy_loop(cases):
    @jax.jit
    @jax.vmap
    def all_forms(box, scores, classes):
        return (
            boxes.non_max_suppression(box, scores, max_outputs=N + 3),
            boxes.non_max_suppression(box, scores, classes=classes, threshold=0.3, max_outputs=6),
            boxes.non_max_suppression(box, scores, threshold=0.0, max_outputs=N, min_score=0.5),
        )

    def one(random):
        rng = np.random.default_rng(random.getrandbits(32))
        # Few values, so that scores are often equal.
        scores = (rng.integers(0, 8, N) / 8).astype(np.float32)
        return random_boxes(rng, N, rng.random() < 0.5), scores, rng.integers(0, 3, N)

    def test(several):
        batch = [np.stack(arrays) for arrays in zip(*several, strict=True)]
        batch[2] = batch[2].astype(np.int32)
        found = all_forms(*batch)
        for i, (box, scores, classes) in enumerate(several):
            expected = (
                suppressed(box, scores, None, 0.5, N + 3, -math.inf),
                suppressed(box, scores, classes, 0.3, 6, -math.inf),
                suppressed(box, scores, None, 0.0, N, 0.5),
            )
            for form, rows in zip(found, expected, strict=True):
                assert form[i].tolist() == rows

    tried(test, one, cases(300), together=25)


def test_scores_that_are_not_numbers_are_left_out():
    box = np.array([[0, 0, 4, 4], [10, 0, 14, 4], [20, 0, 24, 4]], np.float32)
    scores = np.array([math.nan, 0.5, -math.inf], np.float32)
    assert boxes.non_max_suppression(box, scores, max_outputs=2).tolist() == [1, -1]


def test_anchors_are_matched_as_by_loops(cases):
    @jax.jit
    @jax.vmap
    def both(anchors, truth, valid):
        return (
            boxes.match_anchors(anchors, truth, valid),
            boxes.match_anchors(anchors, truth, valid, positive=0.6, negative=0.2),
        )

    def one(random):
        rng = np.random.default_rng(random.getrandbits(32))
        # Real numbers, so that no two overlaps are equal.
        return random_boxes(rng, N, False), random_boxes(rng, M, False), rng.random(M) < 0.7

    def test(several):
        found = both(*(np.stack(arrays) for arrays in zip(*several, strict=True)))
        for i, case in enumerate(several):
            anchors, truth, valid = case
            assert found[0][i].tolist() == matched(anchors, truth, valid, 0.5, 0.5)
            assert found[1][i].tolist() == matched(anchors, truth, valid, 0.6, 0.2)

    tried(test, one, cases(300), together=25)


def test_every_object_gets_an_anchor_of_its_own():
    """Two objects share their best anchor; the worse one gets its second."""
    anchors = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [30, 30, 40, 40]], np.float32)
    truth = np.array([[0, 0, 9, 10], [1, 0, 10, 10], [0, 0, 0, 0]], np.float32)
    index = boxes.match_anchors(anchors, truth, np.array([True, True, False]))
    assert index.tolist() == [0, 1, -1]
    nothing = boxes.match_anchors(anchors, truth, np.zeros(3, bool), positive=0.0)
    assert nothing.tolist() == [-1, -1, -1]


def test_selected_detections_are_those_of_a_loop_over_pairs():
    rng = np.random.default_rng(3)
    box, scores = random_boxes(rng, N) - 5, rng.random((N, 3)).astype(np.float32)
    found = boxes.select_detections(
        box, scores, (30, 20), max_outputs=8, threshold=0.4, num_candidates=30
    )
    pairs = sorted(((scores[i, k], i, k) for i in range(N) for k in range(3)), reverse=True)[:30]
    clipped = np.clip(box, 0, [20, 30, 20, 30])
    kept = []
    for score, i, k in pairs:
        rivals = [clipped[j] for _, j, other in kept if other == k]
        if all(boxes.iou(clipped[i : i + 1], rival[None])[0, 0] <= 0.4 for rival in rivals):
            kept.append((score, i, k))
    kept = kept[:8]
    np.testing.assert_array_equal(found.scores, [score for score, _, _ in kept])
    assert found.sources.tolist() == [i for _, i, _ in kept]
    assert found.classes.tolist() == [k for _, _, k in kept]
    np.testing.assert_array_equal(found.boxes, [clipped[i] for _, i, _ in kept])
    # A box for each class.
    of_class = np.stack([box, box + 1, box - 2], 1)
    chosen = boxes.select_detections(of_class, scores, (100, 100), max_outputs=8)
    for row, k, b in zip(chosen.sources, chosen.classes, chosen.boxes, strict=True):
        np.testing.assert_array_equal(b, np.maximum(of_class[row, k], 0))


BOX = np.zeros((2, 4), np.float32)
TRUE = np.ones(2, bool)


def interpolated(values, y, x):
    """Bilinear interpolation at a point; outside, that of the nearest point inside."""
    y, x = (min(max(at, 0.0), n - 1.0) for at, n in zip((y, x), values.shape[:2], strict=True))
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, len(values) - 1), min(x0 + 1, values.shape[1] - 1)
    upper = values[y0, x0] * (1 - (x - x0)) + values[y0, x1] * (x - x0)
    lower = values[y1, x0] * (1 - (x - x0)) + values[y1, x1] * (x - x0)
    return upper * (1 - (y - y0)) + lower * (y - y0)


def test_aligned_features_are_means_of_interpolated_points():
    rng = np.random.default_rng(4)
    features = rng.normal(size=(7, 5, 3))
    # Beyond the image too.
    box = np.concatenate([random_boxes(rng, 6, False) - 6, [[3, 3, 3, 3]]]).astype(np.float32)
    for size, stride, samples in ((3, 4, 2), (2, 8, 3)):
        expected = np.zeros((7, size, size, 3))
        for r, (x1, y1, x2, y2) in enumerate(box.astype(float)):
            for i in range(size):
                for j in range(size):
                    points = [
                        interpolated(
                            features,
                            (y1 + (i + (a + 0.5) / samples) * (y2 - y1) / size) / stride - 0.5,
                            (x1 + (j + (b + 0.5) / samples) * (x2 - x1) / size) / stride - 0.5,
                        )
                        for a in range(samples)
                        for b in range(samples)
                    ]
                    expected[r, i, j] = np.mean(points, 0)
        align = jax.jit(partial(boxes.roi_align, size=size, stride=stride, samples=samples))
        found = align(features.astype(np.float32), box)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_pasted_masks_are_interpolated_at_the_centers_of_pixels():
    rng = np.random.default_rng(5)
    masks, box = rng.random((6, 4, 4)), random_boxes(rng, 6, False) - 4
    expected = np.zeros((6, 20, 30), bool)
    for m, (x1, y1, x2, y2) in enumerate(box.astype(float)):
        for row in range(20):
            for column in range(30):
                y, x = (row + 0.5 - y1) / (y2 - y1), (column + 0.5 - x1) / (x2 - x1)
                if 0 <= y <= 1 and 0 <= x <= 1:
                    value = interpolated(masks[m], 4 * y - 0.5, 4 * x - 0.5)
                    expected[m, row, column] = value >= 0.5
    paste = jax.jit(boxes.paste_masks, static_argnums=(2, 3))
    np.testing.assert_array_equal(paste(masks.astype(np.float32), box, 20, 30), expected)


def test_overlaps_of_masks_count_pixels():
    rng = np.random.default_rng(6)
    a, b = rng.random((4, 9, 7)) < 0.4, rng.random((3, 9, 7)) < 0.4
    a[0] = b[0] = False
    found = jax.jit(boxes.mask_iou)(a, b)
    for i in range(4):
        for j in range(3):
            either = (a[i] | b[j]).sum()
            assert found[i, j] == pytest.approx((a[i] & b[j]).sum() / max(either, 1))


def level_with(**fields: Any) -> boxes.Anchors:
    return boxes.Anchors(**{"strides": (4,), "sizes": ((8.0,),), "ratios": (1.0,)} | fields)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: boxes.areas(np.zeros(4)), r"boxes is an array float64 \(4,\); expected boxes"),
        (lambda: boxes.areas(cast(Any, [[0, 0, 1, 1]])), "boxes is .*; expected boxes"),
        (lambda: boxes.iou(BOX, BOX.astype(bool)), "others is an array bool"),
        (lambda: boxes.areas(BOX.astype("m8[s]")), r"boxes is an array timedelta64\[s\] \(2, 4\)"),
        (lambda: boxes.clip(BOX, 0, 4), "height is 0"),
        (lambda: boxes.encode(BOX, BOX[:1]), "boxes has 2 rows and anchors 1"),
        (
            lambda: boxes.decode(BOX, BOX, cast(Any, (0.1,))),
            "variances is .*; expected two numbers",
        ),
        (lambda: boxes.decode(BOX, BOX, (0.1, -1.0)), "variances is -1.0"),
        (lambda: boxes.match_anchors(BOX, BOX, TRUE[:1]), r"valid is an array bool \(1,\)"),
        (lambda: boxes.match_anchors(BOX, BOX, TRUE, positive=2), "positive is 2"),
        (lambda: boxes.match_anchors(BOX, BOX, TRUE, negative=0.7), "negative is 0.7, more than"),
        (lambda: boxes.match_anchors(BOX, BOX[:0], TRUE[:0]), "2 anchors and 0 boxes"),
        (lambda: boxes.non_max_suppression(BOX, BOX[:, 0].astype(int)), "scores is an array int64"),
        (lambda: boxes.non_max_suppression(BOX, BOX[:, 0], threshold=-1), "threshold is -1"),
        (lambda: boxes.non_max_suppression(BOX, BOX[:, 0], max_outputs=0), "max_outputs is 0"),
        (
            lambda: boxes.non_max_suppression(BOX, BOX[:, 0], min_score=cast(Any, "x")),
            "min_score is 'x'",
        ),
        (lambda: boxes.non_max_suppression(BOX, BOX[:, 0], classes=BOX[:, 0]), "classes is an"),
        (lambda: boxes.select_detections(BOX, BOX[:1], (4, 4)), r"boxes are \(2, 4\) and scores"),
        (lambda: boxes.roi_align(BOX, BOX, size=2, stride=4), "features are an array float32"),
        (lambda: boxes.roi_align(BOX[None], BOX, size=0, stride=4), "size is 0"),
        (lambda: boxes.paste_masks(BOX, BOX, 4, 4), r"masks are of shape \(2, 4\) for 2 boxes"),
        (lambda: boxes.mask_iou(BOX[None], BOX[None]), "masks are float32"),
        (lambda: level_with(strides=(4, 8)), "strides has 2 maps and sizes 1"),
        (lambda: level_with(sizes=((0.0,),)), "sizes is 0.0"),
        (lambda: level_with(ratios=()), "expected tuples"),
        (lambda: level_with(strides=(0,)), "strides is 0"),
        (lambda: level_with().boxes(0, 4), "height is 0"),
    ],
)
def test_mistakes(call, says):
    with pytest.raises(ArgumentError, match=says) as error:
        call()
    assert "\n" not in str(error.value)
