"""SSD, YOLO and Faster R-CNN: losses and detections against loops in NumPy, shapes, and mistakes."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcnn as jc
from jaxcnn import boxes, provenance
from jaxcnn.arguments import ArgumentError
from jaxcnn.losses import Batch
from jaxcnn.metrics import average_precision
from jaxcnn.models.detector import Backbone
from jaxcnn.models.faster_rcnn import (
    FasterRCNN,
    FasterRCNNLoss,
    propose,
    rcnn_detections,
    rcnn_masks,
)
from jaxcnn.models.layers import NUDGES, conv
from jaxcnn.models.norm import BatchNorm
from jaxcnn.models.ssd import SSD, SSDLoss, ssd_detections
from jaxcnn.models.yolo import YOLO, YOLOLoss, grid_boxes, yolo_detections

SIDE, CLASSES, OBJECTS = 32, 3, 3
match, encode, overlaps_of = (
    jax.jit(function) for function in (boxes.match_anchors, boxes.encode, boxes.iou)
)
ANCHORS = boxes.Anchors(strides=(8, 16), sizes=((8.0, 12.0), (20.0,)), ratios=(1.0, 2.0))


def random_labels(rng, n):
    low = rng.uniform(0, SIDE - 12, (n, OBJECTS, 2))
    box = np.concatenate([low, low + rng.uniform(5, 12, (n, OBJECTS, 2))], -1).astype(np.float32)
    classes = rng.integers(0, CLASSES, (n, OBJECTS)).astype(np.int32)
    classes[:, -1] = -1
    box[:, -1] = 0
    # Of the last image nothing is left.
    classes[-1] = -1
    return {"boxes": box, "classes": classes}


def a_batch(rng, n=4):
    return Batch(jnp.zeros((n, SIDE, SIDE, 3)), random_labels(rng, n))


def smooth_l1(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def ssd_loss(logits, offsets, box, classes):
    """Equation 1 for one image, with loops. Matching and offsets have tests of their own."""
    anchors = ANCHORS.boxes(SIDE, SIDE)
    index = np.asarray(match(anchors, box, classes >= 0))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    matched = [i for i in range(len(anchors)) if index[i] >= 0]
    if not matched:
        return 0.0, 0.0
    background = [-log_p[i, 0] for i in range(len(anchors)) if index[i] < 0]
    of_class = -sum(log_p[i, 1 + classes[index[i]]] for i in matched)
    of_class += sum(sorted(background)[::-1][: 3 * len(matched)])
    of_boxes = 0.0
    for i in matched:
        target = np.asarray(encode(box[index[i]][None], anchors[i][None]))[0]
        of_boxes += sum(map(smooth_l1, offsets[i] - target))
    return of_class / len(matched), of_boxes / len(matched)


def test_the_loss_of_ssd_is_equation_1():
    rng = np.random.default_rng(0)
    batch, n = a_batch(rng), len(ANCHORS.boxes(SIDE, SIDE))
    logits = rng.normal(size=(4, n, 1 + CLASSES)).astype(np.float32)
    offsets = rng.normal(size=(4, n, 4)).astype(np.float32)
    loss = jax.jit(SSDLoss(ANCHORS, box_weight=2.0))
    losses, metrics = loss({"logits": logits, "offsets": offsets}, batch)
    for i in range(4):
        labels = batch.labels["boxes"][i], batch.labels["classes"][i]
        of_class, of_boxes = ssd_loss(logits[i], offsets[i], labels[0], labels[1])
        np.testing.assert_allclose(metrics["class_loss"][i], of_class, rtol=1e-5)
        np.testing.assert_allclose(metrics["box_loss"][i], of_boxes, rtol=1e-4)
        np.testing.assert_allclose(losses[i], of_class + 2 * of_boxes, rtol=1e-4)
    assert losses[-1] == 0
    assert losses[0] > 0


def yolo_loss(box, confidence, scores, true_boxes, true_classes):
    """Equation 3 for one image, with loops."""
    rows, columns, count = confidence.shape
    cell = SIDE / columns
    owner = {}
    for j in range(len(true_boxes)):
        if true_classes[j] >= 0:
            x, y = (true_boxes[j, :2] + true_boxes[j, 2:]) / 2
            owner.setdefault((int(y // cell), int(x // cell)), j)
    of_box = of_confidence = of_class = 0.0
    for row in range(rows):
        for column in range(columns):
            j = owner.get((row, column))
            responsible, overlap = None, 0.0
            if j is not None:
                x1, y1, x2, y2 = true_boxes[j]
                target = np.array(
                    [
                        (x1 + x2) / 2 / cell - column,
                        (y1 + y2) / 2 / cell - row,
                        math.sqrt((x2 - x1) / SIDE),
                        math.sqrt((y2 - y1) / SIDE),
                    ]
                )
                overlaps = []
                for x, y, w, h in box[row, column]:
                    center = np.array([(column + x) * cell, (row + y) * cell])
                    half = np.array([w * w, h * h]) * SIDE / 2
                    own = np.concatenate([center - half, center + half])[None]
                    overlaps.append(float(overlaps_of(own, true_boxes[j][None])[0, 0]))
                errors = [((one - target) ** 2).sum() for one in box[row, column]]
                responsible = int(np.argmax(overlaps) if max(overlaps) > 0 else np.argmin(errors))
                overlap = overlaps[responsible]
                of_box += 5 * errors[responsible]
                one_hot = np.eye(CLASSES)[true_classes[j]]
                of_class += ((scores[row, column] - one_hot) ** 2).sum()
            for b in range(count):
                if b == responsible:
                    of_confidence += (confidence[row, column, b] - overlap) ** 2
                else:
                    of_confidence += 0.5 * confidence[row, column, b] ** 2
    return of_box, of_confidence, of_class


def random_grid(rng, n):
    return {
        "boxes": rng.normal(0.4, 0.3, (n, 4, 4, 2, 4)).astype(np.float32),
        "confidence": rng.normal(size=(n, 4, 4, 2)).astype(np.float32),
        "classes": rng.normal(size=(n, 4, 4, CLASSES)).astype(np.float32),
    }


def test_the_loss_of_yolo_is_equation_3():
    rng = np.random.default_rng(1)
    batch, outputs = a_batch(rng), random_grid(rng, 4)
    # Two objects of a cell, of which the first counts; and boxes that overlap nothing.
    batch.labels["boxes"][0, 1] = batch.labels["boxes"][0, 0] + 0.5
    outputs["boxes"][1, ..., 2:] = 0.01
    losses, metrics = jax.jit(YOLOLoss())(outputs, batch)
    names = ("box_loss", "confidence_loss", "class_loss")
    for i in range(4):
        box, confidence, scores = (outputs[name][i] for name in ("boxes", "confidence", "classes"))
        labels = batch.labels["boxes"][i], batch.labels["classes"][i]
        terms = yolo_loss(box, confidence, scores, labels[0], labels[1])
        for name, term in zip(names, terms, strict=True):
            np.testing.assert_allclose(metrics[name][i], term, rtol=2e-4, err_msg=name)
        np.testing.assert_allclose(losses[i], sum(terms), rtol=2e-4)
    assert metrics["box_loss"][-1] == metrics["class_loss"][-1] == 0


def test_gradients_are_finite_also_without_objects():
    rng = np.random.default_rng(2)
    batch = a_batch(rng)
    n = len(ANCHORS.boxes(SIDE, SIDE))
    ssd = {"logits": jnp.zeros((4, n, 1 + CLASSES)), "offsets": jnp.zeros((4, n, 4))}
    grid = jax.tree.map(jnp.zeros_like, random_grid(rng, 4))
    rcnn = random_rcnn(rng, batch.labels)
    is_proposed = rcnn.pop("is_proposed")

    def rcnn_loss(outputs, batch):
        return FasterRCNNLoss(RCNN_ANCHORS)(outputs | {"is_proposed": is_proposed}, batch)

    for loss, outputs in ((SSDLoss(ANCHORS), ssd), (YOLOLoss(), grid), (rcnn_loss, rcnn)):
        gradient = jax.jit(jax.grad(lambda o, loss=loss: loss(o, batch)[0].sum()))(outputs)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        assert any(np.abs(leaf[0]).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_perfect_outputs_give_the_true_boxes():
    """Outputs made from the labels are decoded to them, and have no loss of boxes."""
    batch = a_batch(np.random.default_rng(3))
    true_boxes, classes = batch.labels["boxes"], batch.labels["classes"]
    anchors = ANCHORS.boxes(SIDE, SIDE)
    logits, offsets, grids = [], [], jax.tree.map(np.zeros_like, random_grid(np.random, 4))
    for i in range(4):
        index = np.asarray(match(anchors, true_boxes[i], classes[i] >= 0))
        truth = np.where((index >= 0)[:, None], true_boxes[i][index], anchors)
        offsets.append(encode(truth, anchors))
        targets = np.where(index >= 0, classes[i][index] + 1, 0)
        logits.append(20 * np.eye(1 + CLASSES)[targets])
        for j in range(OBJECTS):
            if classes[i, j] >= 0:
                size = np.sqrt((true_boxes[i, j, 2:] - true_boxes[i, j, :2]) / SIDE)
                center = (true_boxes[i, j, 2:] + true_boxes[i, j, :2]) / 2 / 8
                row, column = int(center[1]), int(center[0])
                grids["boxes"][i, row, column, 1] = [*(center % 1), *size]
                grids["confidence"][i, row, column, 1] = 1
                grids["classes"][i, row, column, classes[i, j]] = 1
    outputs = {"logits": np.stack(logits).astype(np.float32), "offsets": np.stack(offsets)}
    shape = (SIDE, SIDE)
    assert np.allclose(jax.jit(SSDLoss(ANCHORS))(outputs, batch)[1]["box_loss"], 0, atol=1e-6)
    assert np.allclose(jax.jit(YOLOLoss())(grids, batch)[0], 0, atol=1e-4)
    for found in (
        ssd_detections(outputs, ANCHORS, shape, max_outputs=5),
        yolo_detections(grids, shape, max_outputs=5),
    ):
        values = average_precision(
            jax.jit(jax.vmap(boxes.iou))(found.boxes, true_boxes),
            found.scores,
            found.classes,
            classes,
            num_classes=CLASSES,
            thresholds=(0.5, 0.95),
        )
        assert (values > 0.999).all()
        assert (np.asarray(found.scores)[-1] < 1e-6).all()


RCNN_ANCHORS = boxes.Anchors(strides=(4,), sizes=((8.0, 12.0),))


def huber_sum(difference):
    return sum(map(smooth_l1, difference))


def bernoulli_loss(logit, is_true):
    p = 1 / (1 + math.exp(-float(logit)))
    return -math.log(p if is_true else 1 - p)


def rcnn_terms(outputs, i, labels):
    """The four terms of an image, with loops over anchors and proposals."""
    anchors = RCNN_ANCHORS.boxes(SIDE, SIDE)
    box, classes = labels["boxes"][i], labels["classes"][i]
    index = np.asarray(match_rcnn(anchors, box, classes >= 0))
    of_object, of_background, of_anchor = [], [], []
    for a in range(len(anchors)):
        logit = outputs["objectness"][i, a]
        if index[a] >= 0:
            of_object.append(bernoulli_loss(logit, True))
            target = np.asarray(encode(box[index[a]][None], anchors[a][None]))[0]
            of_anchor.append(huber_sum(outputs["anchor_offsets"][i, a] - target))
        elif index[a] == -1:
            of_background.append(bernoulli_loss(logit, False))
    of_class, of_box = [], []
    for p in range(outputs["logits"].shape[1]):
        if not outputs["is_proposed"][i, p]:
            continue
        overlaps = [
            float(overlaps_of(outputs["proposals"][i, p][None], box[j][None])[0, 0])
            if classes[j] >= 0
            else -1.0
            for j in range(OBJECTS)
        ]
        j = int(np.argmax(overlaps))
        target = classes[j] + 1 if overlaps[j] >= 0.5 else 0
        logits = outputs["logits"][i, p].astype(np.float64)
        of_class.append(np.log(np.exp(logits).sum()) - logits[target])
        if target:
            offsets = np.asarray(encode(box[j][None], outputs["proposals"][i, p][None]))[0]
            of_box.append(huber_sum(outputs["offsets"][i, p, classes[j]] - offsets))
    mean = lambda values: sum(values) / max(len(values), 1)  # noqa: E731
    return {
        "anchor_class_loss": (mean(of_object) + mean(of_background)) / 2,
        "anchor_box_loss": mean(of_anchor),
        "class_loss": mean(of_class),
        "box_loss": sum(of_box) / len(of_class),
    }


match_rcnn = jax.jit(lambda *args: boxes.match_anchors(*args, positive=0.7, negative=0.3))


def random_rcnn(rng, labels, p=6):
    n, a = len(labels["boxes"]), len(RCNN_ANCHORS.boxes(SIDE, SIDE))
    proposals = rng.uniform(0, SIDE / 2, (n, p, 4)).astype(np.float32)
    proposals[..., 2:] += proposals[..., :2] + 1
    # Some overlap objects, by more than a half and by less.
    proposals[:, :2] = labels["boxes"][:, :2] + rng.uniform(-1, 1, (n, 2, 4))
    is_proposed = np.ones((n, p), bool)
    is_proposed[0, 1:] = is_proposed[-1, -1] = False
    proposals[~is_proposed] = 0
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "objectness": normal(n, a),
        "anchor_offsets": normal(n, a, 4),
        "proposals": proposals,
        "is_proposed": is_proposed,
        "logits": normal(n, p, 1 + CLASSES),
        "offsets": normal(n, p, CLASSES, 4),
    }


def test_the_loss_of_faster_rcnn_is_that_of_both_papers():
    rng = np.random.default_rng(4)
    batch = a_batch(rng)
    outputs = random_rcnn(rng, batch.labels)
    losses, terms = jax.jit(FasterRCNNLoss(RCNN_ANCHORS, box_weight=2.0))(outputs, batch)
    for i in range(4):
        expected = rcnn_terms(outputs, i, batch.labels)
        assert expected.keys() == terms.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(terms[name][i], value, rtol=2e-4, atol=1e-6, err_msg=name)
        total = sum(value * (2 if "box" in name else 1) for name, value in expected.items())
        np.testing.assert_allclose(losses[i], total, rtol=2e-4)
    assert float(terms["box_loss"][2]) > 0


def test_the_mask_of_a_proposal_is_compared_with_the_objects_pixels():
    """Masks are on a grid of whole pixels here, so the target is a cut-out of the instances."""
    rng = np.random.default_rng(5)
    instances = np.zeros((1, SIDE, SIDE), np.uint8)
    instances[0, 4:18, 6:20] = rng.integers(0, 2, (14, 14))
    labels = {
        "boxes": np.array([[[6, 4, 20, 18]]], np.float32),
        "classes": np.array([[2]], np.int32),
        "instances": instances,
    }
    outputs = random_rcnn(rng, {"boxes": np.repeat(labels["boxes"], 3, 1)})
    outputs["proposals"][0, :2] = [6, 4, 20, 18], [0, 0, 6, 6]
    outputs["is_proposed"][:] = [[True, True, False, False, False, False]]
    outputs["masks"] = rng.normal(size=(1, 6, 14, 14, CLASSES)).astype(np.float32)
    batch = Batch(jnp.zeros((1, SIDE, SIDE, 3)), labels)
    loss = jax.jit(lambda *args: FasterRCNNLoss(RCNN_ANCHORS)(*args)[1]["mask_loss"])
    target = instances[0, 4:18, 6:20]
    pixels = [
        bernoulli_loss(outputs["masks"][0, 0, y, x, 2], target[y, x] == 1)
        for y in range(14)
        for x in range(14)
    ]
    np.testing.assert_allclose(loss(outputs, batch)[0], np.mean(pixels), rtol=1e-4)
    # A perfect mask is pasted where the object is.
    outputs["masks"][0, 0, ..., 2] = np.where(target == 1, 9, -9)
    outputs["logits"][0] = [9, 0, 0, 0]
    outputs["logits"][0, 0] = [0, 0, 0, 9]
    outputs["offsets"][:] = 0
    found = rcnn_detections(outputs, (SIDE, SIDE), max_outputs=3)
    assert found.classes[0, 0] == 2
    assert found.sources[0, 0] == 0
    masks = rcnn_masks(outputs, found, (SIDE, SIDE))
    np.testing.assert_array_equal(masks[0, 0], instances[0] == 1)
    assert not np.asarray(masks)[0, np.asarray(found.sources)[0] < 0].any()


def test_proposals_are_the_best_anchors_without_near_copies():
    rng = np.random.default_rng(6)
    anchors = RCNN_ANCHORS.boxes(SIDE, SIDE)
    scores = rng.normal(size=(2, len(anchors))).astype(np.float32)
    offsets = rng.normal(size=(2, len(anchors), 4)).astype(np.float32)
    proposals, valid = propose(
        jnp.asarray(scores), jnp.asarray(offsets), RCNN_ANCHORS, (SIDE, SIDE), 20
    )
    decoded = jax.jit(jax.vmap(lambda x: boxes.clip(boxes.decode(x, anchors), SIDE, SIDE)))(offsets)
    for i in range(2):
        overlaps = np.asarray(overlaps_of(decoded[i], decoded[i]))
        kept = []
        for row in np.argsort(-scores[i])[:100]:
            if all(overlaps[row, other] <= 0.7 for other in kept):
                kept.append(row)
        kept = np.asarray(decoded[i])[kept[:20]]
        assert int(valid[i].sum()) == len(kept)
        np.testing.assert_allclose(proposals[i, : len(kept)], kept, rtol=1e-5, atol=1e-5)


def test_boxes_of_a_grid_are_in_pixels():
    box = np.zeros((2, 3, 1, 4), np.float32)
    box[1, 2, 0] = [0.25, 0.5, 0.5, 1.0]
    # Cells of 10 x 20 pixels; a quarter of 30, and 40 pixels.
    np.testing.assert_allclose(
        jax.jit(grid_boxes, static_argnums=1)(box, (40, 30))[1, 2, 0],
        [22.5 - 3.75, 10, 22.5 + 3.75, 50],
    )


@pytest.mark.parametrize("model", [SSD(CLASSES, ANCHORS, width=4), YOLO(CLASSES, width=4)])
def test_outputs_fit_the_anchors_and_cells_of_any_image(model):
    image = jax.ShapeDtypeStruct((2, 40, 56, 3), "float32")

    def run(key, x):
        return model.init_with_output(key, x, stages=True)

    (outputs, stages), variables = jax.eval_shape(run, jax.random.key(0), image)
    if isinstance(model, SSD):
        n = len(ANCHORS.boxes(40, 56))
        assert outputs["logits"].shape == (2, n, 1 + CLASSES)
        assert outputs["offsets"].shape == (2, n, 4)
    else:
        assert outputs["boxes"].shape == (2, 5, 7, 2, 4)
    assert list(stages) == sorted(f"stage{i}" for i in range(1, len(stages) + 1))
    # The backbone's parameters are those of the residual network for CIFAR, by name and shape.
    known = jax.eval_shape(jc.create_model("resnet8", 10, width=4).init, jax.random.key(0), image)[
        "params"
    ]
    own = variables["params"]["backbone"]
    for name in ("stem", "stem_norm", "stage1_block1", "stage2_block1", "stage3_block1"):
        assert jax.tree.map(jnp.shape, own[name]) == jax.tree.map(jnp.shape, known[name])


@pytest.mark.slow
def test_the_stages_are_those_of_the_network_for_cifar():
    """With its strides and its parameters, they compute the same maps."""
    image = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    network = jc.create_model("resnet8", 10, width=4)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.1, 0.2, leaf.shape).astype(np.float32),
        jax.eval_shape(network.init, jax.random.key(0), image),
    )
    _, stages = jax.jit(partial(network.apply, stages=True))(variables, image)
    make_conv = partial(conv, kernel_init="he", dtype="float32")
    make_norm = partial(BatchNorm, 0, None, 0.9, dtype="float32")
    trunk = Backbone((1, 1, 2, 2), 1, 4, make_conv, make_norm)
    body = {
        kind: {name: part for name, part in tree.items() if name != "head"}
        for kind, tree in variables.items()
    }
    for number, features in enumerate(
        jax.jit(trunk.apply, static_argnums=(2, 3))(body, image, False, lambda name, x: x), 1
    ):
        np.testing.assert_array_equal(features, stages[f"stage{number}"])


@pytest.mark.slow
@pytest.mark.quick_compilation
@pytest.mark.parametrize(
    "model", [SSD(CLASSES, ANCHORS, width=4), YOLO(CLASSES, width=4), FasterRCNN(CLASSES, width=4)]
)
def test_a_change_of_a_stage_reaches_the_stages_after_it(model):
    """Grad-CAM takes the gradient with respect to a change of a stage."""
    variables = jax.jit(model.init)(jax.random.key(0), IMAGE)

    @jax.jit
    def maps(change):
        nudges = {NUDGES: {"stage1": change}}
        return model.apply(variables | nudges, IMAGE, stages=True)[1]

    before = maps(jnp.float32(0))
    after = maps(jnp.float32(0.5))
    np.testing.assert_allclose(after["stage1"], before["stage1"] + 0.5, rtol=1e-6)
    for name in sorted(before)[1:]:
        assert float(abs(after[name] - before[name]).max()) > 1e-3, name


def test_the_records_have_the_anchors_of_a_loss():
    name, _ = provenance.loss_facts(SSDLoss(ANCHORS))
    assert '"strides": [8, 16]' in name
    assert name != provenance.loss_facts(SSDLoss())[0]


@pytest.mark.parametrize(
    "model",
    [
        SSD(CLASSES, ANCHORS, width=4, dtype="bfloat16"),
        YOLO(CLASSES, width=4, dtype="bfloat16"),
        FasterRCNN(CLASSES, RCNN_ANCHORS, width=4, masks=True, dtype="bfloat16"),
    ],
)
def test_outputs_are_float32_also_of_half_the_precision(model):
    image = jax.ShapeDtypeStruct((2, 40, 56, 3), "float32")
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(outputs)} <= {"float32", "bool"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_two_devices_train_as_one_does():
    """What they share is the backbone, which all detectors have."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 16, 16, 3), np.uint8), random_labels(rng, 8)
    data = jc.dataset((images, labels), (images, labels), num_classes=CLASSES)
    model, config = YOLO(CLASSES, width=2), jc.TrainConfig(num_steps=2, batch_size=8)
    tx = jc.create_optimizer(jc.OptimizerConfig("momentum", learning_rate=0.01))
    rows = []
    for strategy in (jc.strategy("jit", 1), jc.strategy("pmap", 2)):
        *_, (_, row) = jc.train(model, tx, data, config, loss=YOLOLoss(), strategy=strategy)
        rows.append(row)
    for name in ("train_loss", "eval_loss", "train_box_loss", "grad_norm"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-4)


@pytest.mark.slow
@pytest.mark.quick_compilation
def test_faster_rcnn_learns_bright_squares(one):
    model = FasterRCNN(CLASSES, RCNN_ANCHORS, width=8, hidden=32)
    loss = FasterRCNNLoss(RCNN_ANCHORS)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (64, SIDE, SIDE, 3), np.uint8)
    labels = {"boxes": np.zeros((64, 2, 4), np.float32), "classes": np.full((64, 2), -1, np.int32)}
    for i in range(64):
        size, k = int(rng.integers(8, 14)), int(rng.integers(0, CLASSES))
        x, y = rng.integers(0, SIDE - size, 2)
        images[i, y : y + size, x : x + size, k] = 255
        labels["boxes"][i, 0] = x, y, x + size, y + size
        labels["classes"][i, 0] = k
    data = jc.dataset((images, labels), (images, labels), num_classes=CLASSES)
    config = jc.TrainConfig(num_steps=100, batch_size=8)
    tx = jc.create_optimizer(jc.OptimizerConfig("adam", learning_rate=3e-3, schedule="cosine"), 100)
    *_, (state, _) = jc.train(model, tx, data, config, loss=loss, strategy=one)
    found = rcnn_detections(jc.predict(model, state, images), (SIDE, SIDE))
    values = average_precision(
        jax.jit(jax.vmap(boxes.iou))(found.boxes, labels["boxes"]),
        found.scores,
        found.classes,
        labels["classes"],
        num_classes=CLASSES,
    )
    # An untrained network has less than 0.01.
    assert values[0].mean() > 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (SSD(CLASSES, ANCHORS, width=4), SSDLoss(ANCHORS)),
        (YOLO(CLASSES, width=4), YOLOLoss()),
        (FasterRCNN(CLASSES, width=4), FasterRCNNLoss()),
    ],
    ids=["ssd", "yolo", "faster_rcnn"],
)
@pytest.mark.parametrize("wrong", [CLASSES, -2])
def test_a_class_that_the_network_lacks_is_refused_before_training(model, loss, wrong):
    """It gave a loss that is not a number, after the compilation."""
    labels = jax.tree.map(np.array, random_labels(np.random.default_rng(0), 16))
    labels["classes"][5, 1] = wrong
    images = np.zeros((16, SIDE, SIDE, 3), np.uint8)
    right = jax.tree.map(lambda leaf: leaf[:4], labels)
    config, tx = jc.TrainConfig(num_steps=1, batch_size=4), optax.sgd(0.1)
    one: Any = {"loss": loss, "strategy": jc.strategy("jit", 1)}
    says = rf"labels\['classes'\]\[5\] have {wrong}; expected 0\.\.2, or -1 for padding"
    data = jc.dataset((images, labels), (images[:4], right))
    with pytest.raises(ArgumentError, match="^train " + says):
        jc.train(model, tx, data, config, **one)
    data = jc.dataset((images[:4], right), (images, labels))
    with pytest.raises(ArgumentError, match="^test " + says):
        jc.train(model, tx, data, config, **one)


OUTPUTS = {"logits": jnp.zeros((1, 48, 4)), "offsets": jnp.zeros((1, 48, 4))}
LABELS = {"boxes": jnp.zeros((1, 2, 4)), "classes": jnp.zeros((1, 2), jnp.int32)}
BARE = {"boxes": jnp.zeros((1, 2)), "classes": LABELS["classes"]}
IMAGE = jnp.zeros((1, SIDE, SIDE, 3))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: SSDLoss(ANCHORS)(jnp.zeros((1, 3)), Batch(IMAGE, LABELS)), "outputs are Arr"),
        (lambda: SSDLoss(ANCHORS)(OUTPUTS, Batch(IMAGE, jnp.zeros(1))), "labels have no keys; exp"),
        (lambda: SSDLoss(ANCHORS)(OUTPUTS, Batch(IMAGE, BARE)), r"boxes of shape \(2,\) and"),
        (lambda: SSDLoss(ANCHORS)(OUTPUTS, Batch(IMAGE, LABELS)), r"with 72 anchors; expected"),
        (lambda: SSDLoss(ANCHORS, negatives=0), "negatives is 0"),
        (lambda: SSDLoss(ANCHORS, positive=-1), "positive is -1"),
        (lambda: YOLOLoss()(OUTPUTS, Batch(IMAGE, LABELS)), "outputs are logits, offsets"),
        (lambda: YOLOLoss(box_weight=0), "box_weight is 0"),
        (lambda: FasterRCNNLoss()(OUTPUTS, Batch(IMAGE, LABELS)), "outputs are logits, offs"),
        (lambda: FasterRCNNLoss(box_weight=-1), "box_weight is -1"),
        (lambda: FasterRCNN(3, ANCHORS).init(jax.random.key(0), IMAGE), r"strides is \(8, 16\)"),
        (
            lambda: SSD(3, boxes.Anchors((6,), ((8.0,),))).init(jax.random.key(0), IMAGE),
            r"strides is \(6,\)",
        ),
        (
            lambda: SSD(3, boxes.Anchors((8, 4), ((8.0,), (8.0,)))).init(jax.random.key(0), IMAGE),
            "ascending powers of 2",
        ),
    ],
)
def test_mistakes(call, says):
    with pytest.raises(ArgumentError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


RAW_OUTPUTS = {
    "ssd": {"logits": jnp.zeros((1, 4, 3)), "offsets": jnp.zeros((1, 4, 4))},
    "yolo": {
        "boxes": jnp.ones((1, 2, 2, 1, 4)),
        "confidence": jnp.ones((1, 2, 2, 1)),
        "classes": jnp.ones((1, 2, 2, 3)),
    },
    "rcnn": {
        "proposals": jnp.array([[[1.0, 2.0, 9.0, 10.0]]]),
        "is_proposed": jnp.array([[True]]),
        "logits": jnp.zeros((1, 1, 3)),
        "offsets": jnp.zeros((1, 1, 2, 4)),
    },
}
DETECT = {
    "ssd": lambda outputs, shape: ssd_detections(
        outputs, boxes.Anchors(strides=(8,), sizes=((8.0,),)), shape
    ),
    "yolo": yolo_detections,
    "rcnn": rcnn_detections,
}


@pytest.mark.parametrize("name", DETECT)
def test_mistakes_about_outputs_and_sizes_are_one_line(name):
    detect, outputs = DETECT[name], RAW_OUTPUTS[name]
    for shape in ((16, 16), [16, 16], (np.int64(16), 16)):
        assert detect(outputs, shape).boxes.shape == (1, 100, 4)
    for shape in ((16, 16, 3), 16, None, (16.5, 16), (0, 16)):
        with pytest.raises(ArgumentError, match=r"image_shape.*Write image_shape="):
            detect(outputs, shape)
    for wrong in ({}, outputs["logits" if name != "yolo" else "boxes"], {"features": 1}):
        with pytest.raises(ArgumentError, match=r"outputs are .*; expected .*Use the outputs of"):
            detect(wrong, (16, 16))


def test_mistakes_about_anchors_masks_and_classes_are_one_line():
    with pytest.raises(ArgumentError, match=r"\(4, 4\) for images with 16 anchors"):
        DETECT["ssd"](RAW_OUTPUTS["ssd"], (32, 32))
    found = rcnn_detections(RAW_OUTPUTS["rcnn"], (16, 16), max_outputs=1)
    with pytest.raises(ArgumentError, match="expected proposals, masks"):
        rcnn_masks(RAW_OUTPUTS["rcnn"], found, (16, 16))
    labels = {"boxes": jnp.ones((1, 1, 4)), "classes": jnp.zeros((1, 1))}
    loss = SSDLoss(boxes.Anchors(strides=(8,), sizes=((8.0,),)))
    with pytest.raises(ArgumentError, match="dtype float32; expected integers"):
        loss(RAW_OUTPUTS["ssd"], Batch(jnp.zeros((1, 16, 16, 3)), labels))
    with pytest.raises(ArgumentError, match=r"positive is 1\.5"):
        SSDLoss(positive=1.5)
    with pytest.raises(ArgumentError, match="boxes_per_cell is 0"):
        YOLO(3, boxes_per_cell=0).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def test_no_boxes_are_no_detections():
    for n, k in ((0, 2), (3, 0)):
        found = boxes.select_detections(jnp.zeros((n, 4)), jnp.zeros((n, k)), (16, 16))
        assert found.boxes.shape == (100, 4)
        assert (np.asarray(found.classes) == -1).all()
