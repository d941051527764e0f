"""Average precision against the steps of pycocotools, written as loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import tried

from jaxcnn import boxes
from jaxcnn.arguments import ArgumentError
from jaxcnn.metrics import IOU_THRESHOLDS, average_precision

IMAGES, DETECTIONS, OBJECTS, CLASSES = 6, 12, 4, 3


def coco(ious, scores, classes, true_classes, num_classes, thresholds, max_detections):
    """`COCOeval` for one area range without crowds: evaluateImg, then accumulate."""
    table = np.full((len(thresholds), num_classes), np.nan)
    for k in range(num_classes):
        num_objects = int((true_classes == k).sum())
        if not num_objects:
            continue
        for t, threshold in enumerate(thresholds):
            all_scores, all_hits = [], []
            for image in range(len(ious)):
                own = [d for d in range(len(scores[image])) if classes[image, d] == k]
                own.sort(key=lambda d, image=image: -scores[image, d])
                taken = set()
                for d in own[:max_detections]:
                    best, match = min(threshold, 1 - 1e-10), None
                    for g in range(len(true_classes[image])):
                        if true_classes[image, g] != k or g in taken or ious[image, d, g] < best:
                            continue
                        best, match = ious[image, d, g], g
                    taken.add(match)
                    all_scores.append(scores[image, d])
                    all_hits.append(match is not None)
            order = np.argsort(-np.array(all_scores, np.float64), kind="mergesort")
            hits = np.array(all_hits, float)[order]
            right, wrong = np.cumsum(hits), np.cumsum(1 - hits)
            recall = right / num_objects
            precision = (right / (right + wrong + np.spacing(1))).tolist()
            for i in range(len(precision) - 1, 0, -1):
                precision[i - 1] = max(precision[i - 1], precision[i])
            read = np.zeros(101)
            for r, place in enumerate(np.searchsorted(recall, np.linspace(0, 1, 101), side="left")):
                if place < len(precision):
                    read[r] = precision[place]
            table[t, k] = read.mean()
    return table


def random_case(random):
    """Detections, some of them next to objects, with equal scores and overlaps at thresholds."""
    rng = np.random.default_rng(random.getrandbits(32))
    # Twentieths lie on the thresholds.
    ious = np.where(
        rng.random((IMAGES, DETECTIONS, OBJECTS)) < 0.5,
        rng.random((IMAGES, DETECTIONS, OBJECTS)),
        rng.integers(0, 21, (IMAGES, DETECTIONS, OBJECTS)) / 20,
    )
    levels = int(rng.integers(2, 30))
    scores = rng.integers(0, levels, (IMAGES, DETECTIONS)) / levels
    classes = rng.integers(-1, CLASSES, (IMAGES, DETECTIONS))
    true_classes = rng.integers(-1, int(rng.integers(1, CLASSES + 1)), (IMAGES, OBJECTS))
    return ious, scores, classes, true_classes


def test_it_is_that_of_pycocotools_steps(cases):
    def test(several):
        for case in several:
            for thresholds, limit in ((IOU_THRESHOLDS, 100), ((0.5, 0.75), 2)):
                found = average_precision(
                    *case, num_classes=CLASSES, thresholds=thresholds, max_detections=limit
                )
                ious, scores, classes, true_classes = case
                expected = coco(ious, scores, classes, true_classes, CLASSES, thresholds, limit)
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    tried(test, random_case, cases(120), together=20)


def test_perfect_and_wrong_detections():
    truth = np.array([[[0, 0, 8, 8], [10, 10, 30, 30]]], np.float32)
    ious = jax.vmap(boxes.iou)(truth, truth)
    scores, classes = np.array([[0.4, 0.9]]), np.array([[0, 1]])
    perfect = average_precision(ious, scores, classes, classes, num_classes=3)
    assert perfect.shape == (10, 3)
    np.testing.assert_array_equal(perfect[:, :2], np.ones((10, 2)))
    assert np.isnan(perfect[:, 2]).all()
    swapped = average_precision(ious, scores, classes[:, ::-1], classes, num_classes=2)
    np.testing.assert_array_equal(swapped, np.zeros((10, 2)))


def test_a_second_detection_of_an_object_is_wrong():
    """The better one is right, and the precision at full recall is counted before the second."""
    ious, classes = np.array([[[0.9], [0.95]]]), np.zeros((1, 2), int)
    for scores, expected in (([0.9, 0.1], 1.0), ([0.1, 0.9], 1.0)):
        values = average_precision(
            ious, np.array([scores]), classes, classes[:, :1], num_classes=1, thresholds=(0.5,)
        )
        assert values.tolist() == [[expected]]
    # At 0.92 the first one by score is wrong, so that the precision is a half.
    values = average_precision(
        ious, np.array([[0.9, 0.1]]), classes, classes[:, :1], num_classes=1, thresholds=(0.92,)
    )
    assert values.tolist() == [[0.5]]


def test_pycocotools_agrees_where_it_is_installed(tmp_path):
    coco_module = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(0)
    n, d, m = 8, 10, 4

    def some(count):
        low = rng.uniform(0, 40, (n, count, 2))
        return np.concatenate([low, low + rng.uniform(4, 20, (n, count, 2))], -1)

    truth = some(m)
    found = np.concatenate([truth + rng.normal(0, 1.5, truth.shape), some(d - m)], 1)
    scores, classes = rng.random((n, d)), rng.integers(0, CLASSES, (n, d))
    true_classes = rng.integers(0, CLASSES, (n, m))
    ours = average_precision(
        jax.vmap(boxes.iou)(found.astype(np.float32), truth.astype(np.float32)),
        scores,
        classes,
        true_classes,
        num_classes=CLASSES,
    )

    def entries(box, labels):
        for i in range(n):
            for (x1, y1, x2, y2), label, j in zip(box[i], labels[i], range(99), strict=False):
                area = float((x2 - x1) * (y2 - y1))
                place = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
                yield {"image_id": i, "category_id": int(label), "bbox": place, "area": area}, i, j

    reference = coco_module.COCO()
    annotations = [
        entry | {"id": 1 + number, "iscrowd": 0}
        for number, (entry, _, _) in enumerate(entries(truth, true_classes))
    ]
    reference.dataset = {
        "images": [{"id": i} for i in range(n)],
        "categories": [{"id": k} for k in range(CLASSES)],
        "annotations": annotations,
    }
    reference.createIndex()
    results = [
        entry | {"score": float(scores[i, j]), "id": 1 + number}
        for number, (entry, i, j) in enumerate(entries(found, classes))
    ]
    detected = coco_module.COCO()
    detected.dataset = reference.dataset | {"annotations": results}
    detected.createIndex()
    run = evaluation.COCOeval(reference, detected, "bbox")
    run.evaluate()
    run.accumulate()
    # [thresholds, recalls, classes, areas, limits]
    np.testing.assert_allclose(ours, run.eval["precision"][:, :, :, 0, 2].mean(1), atol=1e-6)


IOUS, SCORES, KINDS = np.zeros((1, 2, 3)), np.zeros((1, 2)), np.zeros((1, 2), int)
TRUE = np.zeros((1, 3), int)


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((IOUS[0], SCORES, KINDS, TRUE), {}, "ious is an array float64"),
        ((IOUS.tolist(), SCORES, KINDS, TRUE), {}, "ious is "),
        ((IOUS, SCORES[:, :1], KINDS, TRUE), {}, r"expected floating numbers of shape \[1, 2\]"),
        ((IOUS, SCORES, SCORES, TRUE), {}, "classes is an array float64"),
        ((IOUS, SCORES, KINDS, KINDS), {}, "true_classes is an array int64"),
        ((IOUS, SCORES, KINDS + 4, TRUE), {}, "classes span 4..4; expected -1..3"),
        ((IOUS, SCORES, KINDS, TRUE - 2), {}, "true_classes span -2..-2"),
        ((IOUS, SCORES * np.nan, KINDS, TRUE), {}, "scores has values that are not finite"),
        ((IOUS[:0], SCORES[:0], KINDS[:0], TRUE[:0]), {}, "at least one image"),
        ((IOUS, SCORES, KINDS, TRUE), {"thresholds": (0.7, 0.5)}, "thresholds is"),
        ((IOUS, SCORES, KINDS, TRUE), {"thresholds": ()}, "thresholds is"),
        ((IOUS, SCORES, KINDS, TRUE), {"thresholds": "x"}, "thresholds is"),
        ((IOUS, SCORES, KINDS, TRUE), {"max_detections": 0}, "max_detections is 0"),
        ((IOUS, SCORES, KINDS, TRUE), {"num_classes": 1.5}, "num_classes is 1.5"),
    ],
)
def test_mistakes(args, kwargs, says):
    with pytest.raises(ArgumentError, match=says) as error:
        average_precision(*args, **{"num_classes": 4} | kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("level", range(len(IOU_THRESHOLDS)))
@pytest.mark.parametrize("of", ["boxes", "masks"])
def test_an_overlap_of_exactly_a_threshold_reaches_it(of, level):
    """Overlaps of float32 are rounded: 7 / 10 is less than 0.7 in float64."""
    height = 10 + level
    if of == "boxes":
        truth = jnp.array([[[0.0, 0.0, 10.0, 20.0]]])
        ious = jax.vmap(boxes.iou)(jnp.array([[[0.0, 0.0, 10.0, float(height)]]]), truth)
    else:
        truth = np.ones((1, 1, 10, 20), bool)
        found = np.zeros_like(truth)
        found[..., :height] = True
        ious = jax.vmap(boxes.mask_iou)(jnp.asarray(found), jnp.asarray(truth))
    classes = np.array([[0]])
    assert ious.dtype == "float32"
    values = average_precision(ious, np.array([[0.9]]), classes, classes, num_classes=1)
    reached = [height / 20 >= threshold - 1e-9 for threshold in IOU_THRESHOLDS]
    assert values[:, 0].tolist() == [float(is_right) for is_right in reached]
