"""The loss of poses against loops in NumPy, the network, and the people that it sees."""

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
    PEOPLE,
    SIDE,
    SKELETON,
    STRIDE,
    affinity_fields,
    gaussians,
    random_labels,
)
from random_cases import tried

import jaxcnn as jc
from jaxcnn.keypoints import Skeleton, heat_maps, part_affinity_fields
from jaxcnn.losses import Batch
from jaxcnn.models.pose import PoseLoss, PoseNet, estimate_poses


def test_the_loss_is_equations_3_to_5_without_hidden_cells():
    rng = np.random.default_rng(1)
    labels = random_labels(rng, 2)
    outputs = {
        "heat_maps": rng.normal(size=(2, 2, CELLS, CELLS, JOINTS)).astype(np.float32),
        "fields": rng.normal(size=(2, 2, CELLS, CELLS, LIMBS, 2)).astype(np.float32),
    }
    loss = jax.jit(PoseLoss(SKELETON, sigma=3.0, limb_width=2.0))
    losses, metrics = loss(outputs, Batch(jnp.zeros((2, SIDE, SIDE, 3)), labels))
    for i in range(2):
        points, visible = labels["keypoints"][i], labels["visible"][i]
        heat = gaussians(points, visible, 3.0)
        hidden_heat = gaussians(points, ~visible, 3.0) > 0.01
        fields, hidden_fields = affinity_fields(points, visible, 2.0)
        assert hidden_heat.any()
        assert hidden_fields.any()
        total = 0.0
        for t in range(2):
            of_heat = of_fields = 0.0
            for row, column in np.ndindex(CELLS, CELLS):
                for j in range(JOINTS):
                    if not hidden_heat[row, column, j]:
                        error = outputs["heat_maps"][i, t, row, column, j] - heat[row, column, j]
                        of_heat += float(error) ** 2
                for c in range(LIMBS):
                    if not hidden_fields[row, column, c]:
                        error = outputs["fields"][i, t, row, column, c] - fields[row, column, c]
                        of_fields += float((error**2).sum())
            total += (of_heat + of_fields) / CELLS**2
        np.testing.assert_allclose(losses[i], total, rtol=1e-4)
        # The metrics are those of the last stage.
        np.testing.assert_allclose(metrics["heat_map_loss"][i], of_heat / CELLS**2, rtol=1e-4)
        np.testing.assert_allclose(metrics["field_loss"][i], of_fields / CELLS**2, rtol=1e-4)


def test_perfect_outputs_have_no_loss_and_hidden_points_no_gradient():
    rng = np.random.default_rng(2)
    labels = random_labels(rng, 1)
    points, visible = labels["keypoints"][0], labels["visible"][0]
    shape = (SIDE, SIDE)
    heat = heat_maps(points, visible, shape, stride=STRIDE, sigma=4.0)
    fields = part_affinity_fields(
        points, visible, SKELETON.limbs, shape, stride=STRIDE, limb_width=2.0
    )
    outputs = {"heat_maps": heat[None, None], "fields": fields[None, None]}
    batch = Batch(jnp.zeros((1, SIDE, SIDE, 3)), labels)
    loss = PoseLoss(SKELETON)
    assert float(jax.jit(loss)(outputs, batch)[0][0]) < 1e-10
    moved = jax.tree.map(lambda value: value + 1, outputs)
    gradient = jax.jit(jax.grad(lambda outputs: loss(outputs, batch)[0].sum()))(moved)
    hidden = gaussians(points, ~visible, 4.0) > 0.01
    assert 0 < hidden.mean() < 0.5
    np.testing.assert_array_equal(np.asarray(gradient["heat_maps"])[0, 0] == 0, hidden)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_labels_and_outputs_of_other_floats_are_cast(dtype):
    """As float32 of the same rounded values, under strict promotion."""
    labels = random_labels(np.random.default_rng(7), 2)
    rounded = jnp.asarray(labels["keypoints"]).astype(dtype)
    rng = np.random.default_rng(8)
    outputs = {
        "heat_maps": jnp.asarray(rng.random((2, 1, CELLS, CELLS, JOINTS)), dtype),
        "fields": jnp.asarray(rng.random((2, 1, CELLS, CELLS, LIMBS, 2)), dtype),
    }
    wide = jax.tree.map(lambda value: value.astype(jnp.float32), outputs)
    images = jnp.zeros((2, SIDE, SIDE, 3))
    loss = jax.jit(PoseLoss(SKELETON))
    losses, metrics = loss(outputs, Batch(images, labels | {"keypoints": rounded}))
    expected, _ = loss(wide, Batch(images, labels | {"keypoints": rounded.astype(jnp.float32)}))
    assert losses.dtype == metrics["field_loss"].dtype == jnp.float32
    np.testing.assert_array_equal(losses, expected)
    assert (losses > 0.1).all()


def test_labels_of_float64_are_cast():
    labels = random_labels(np.random.default_rng(9), 1)
    images = jnp.zeros((1, SIDE, SIDE, 3))
    loss = jax.jit(PoseLoss(SKELETON))
    expected, _ = loss(OUTPUTS, Batch(images, labels))
    with jax.enable_x64(True):
        points = jnp.asarray(labels["keypoints"], jnp.float64)
        losses, _ = loss(OUTPUTS, Batch(images, labels | {"keypoints": points}))
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_limits_are_10_by_default_or_all_there_are():
    """Of 2 joints with 1, 4 or 10 candidates there are 2, 8 or 20 people at most."""
    skeleton = Skeleton(("head", "foot"), ((0, 1),))
    for side, count in ((1, 2), (2, 8), (4, 10)):
        outputs = {
            "heat_maps": jnp.zeros((1, 1, side, side, 2)),
            "fields": jnp.zeros((1, 1, side, side, 1, 2)),
        }
        estimate = partial(estimate_poses, skeleton=skeleton, image_shape=(2 * side, 2 * side))
        assert jax.eval_shape(estimate, outputs).scores.shape == (1, count, 2)


def unambiguous(random):
    """People side by side, of whom no two have a limb or a joint near each other."""
    rng = np.random.default_rng(random.getrandbits(32))
    count = int(rng.integers(1, PEOPLE + 1))
    points = np.full((PEOPLE, JOINTS, 2), -1000, np.float32)
    visible = np.zeros((PEOPLE, JOINTS), bool)
    for k in range(count):
        # A strip of 32 pixels each, of an image of 96; limbs of at least 8 pixels.
        x = 32 * k + rng.uniform(8, 24, JOINTS)
        y = np.array([11, 4, 19, 28]) + rng.uniform(-1, 1, JOINTS)
        points[k], visible[k] = np.stack([x, y], -1), True
    return points, visible, count


@pytest.mark.slow
def test_perfect_maps_give_perfect_people():
    """A property of random scenes without ambiguity: as many people, and each key point of each."""

    @jax.jit
    @jax.vmap
    def decoded(points, visible):
        heat = heat_maps(points, visible, (32, 96), stride=2, sigma=3.0)
        fields = part_affinity_fields(
            points, visible, SKELETON.limbs, (32, 96), stride=2, limb_width=2.0
        )
        outputs = {"heat_maps": heat[None, None], "fields": fields[None, None]}
        people = estimate_poses(outputs, SKELETON, (32, 96), max_people=5, max_peaks=5)
        return jax.tree.map(lambda value: value[0], people)

    def check(cases):
        points, visible, counts = (np.stack(arrays) for arrays in zip(*cases, strict=True))
        people = jax.tree.map(np.asarray, decoded(points, visible))
        for i in range(len(cases)):
            assert ((people.scores[i] > 0).any(-1)).sum() == counts[i]
            own = people.points[i, : counts[i]]
            own = own[np.argsort(own[:, 0, 0])]
            # Joints of others add little to a Gaussian that is 3 pixels wide.
            np.testing.assert_allclose(own, points[i, : counts[i]], atol=0.02)

    tried(check, unambiguous, 200, together=50)


@pytest.mark.quick_compilation
def test_shapes_stages_and_intermediate_supervision():
    model = PoseNet(SKELETON, width=4, refinements=2)
    image = jnp.zeros((2, 16, 24, 3))
    (outputs, stages), variables = jax.jit(partial(model.init_with_output, stages=True))(
        jax.random.key(0), image
    )
    assert outputs["heat_maps"].shape == (2, 3, 8, 12, JOINTS)
    assert outputs["fields"].shape == (2, 3, 8, 12, LIMBS, 2)
    assert set(stages) >= {"stage1", "stage3", "merged", "predict1", "predict3"}
    labels = random_labels(np.random.default_rng(0), 2)
    loss = PoseLoss(SKELETON)

    def first_stage(params):
        out: Any = model.apply({**variables, "params": params}, image)
        cut = {name: value[:, :1] for name, value in out.items()}
        return loss(cut, Batch(image, labels))[0].sum()

    gradient: Any = jax.jit(jax.grad(first_stage))(variables["params"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["predict2_heat_maps"]))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient["predict1_heat_maps"]))


POINTS = jnp.zeros((1, JOINTS, 2))
VISIBLE = jnp.ones((1, JOINTS), bool)
OUTPUTS = {
    "heat_maps": jnp.zeros((1, 1, CELLS, CELLS, JOINTS)),
    "fields": jnp.zeros((1, 1, CELLS, CELLS, LIMBS, 2)),
}
IMAGES = jnp.zeros((1, SIDE, SIDE, 3))
LABELS: dict[str, Any] = {"keypoints": POINTS[None], "visible": VISIBLE[None]}
NO_STAGES = jax.tree.map(lambda value: value[:, :0], OUTPUTS)
SMALL = jax.tree.map(lambda value: value[:, :, :2, :2], OUTPUTS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PoseLoss("body"), "skeleton is 'body'"),  # pyright: ignore
        (lambda: PoseLoss(SKELETON, sigma=0), "sigma is 0"),
        (lambda: PoseLoss(SKELETON)(OUTPUTS, Batch(IMAGES, jnp.zeros(1))), "labels have no keys"),
        (
            lambda: PoseLoss(SKELETON)(
                OUTPUTS, Batch(IMAGES, {"keypoints": POINTS, "visible": VISIBLE})
            ),
            "labels have keypoints of shape",
        ),
        (
            lambda: PoseLoss(SKELETON)(
                OUTPUTS, Batch(IMAGES, {"keypoints": POINTS[None], "visible": POINTS[None, ..., 0]})
            ),
            "expected float32 and bool",
        ),
        (
            lambda: PoseLoss(SKELETON)(OUTPUTS, Batch(IMAGES[:, :31], {})),
            "cells for images of 31x32",
        ),
        (
            lambda: estimate_poses(SMALL, SKELETON, (4, 4), max_peaks=10),
            "max_peaks is 10; expected a whole number from 1 to 4. Write max_peaks=4",
        ),
        (lambda: PoseNet("x"), "skeleton is 'x'; expected a Skeleton"),  # pyright: ignore
        (lambda: PoseNet(5), r"Write PoseNet\(Skeleton\(\("),  # pyright: ignore
        (
            lambda: estimate_poses(OUTPUTS, SKELETON, (CELLS, CELLS)),
            r"expected 2 pixels for a cell, .* Write image_shape=\(32, 32\)",
        ),
        (
            lambda: estimate_poses(jax.tree.map(lambda x: x[0], OUTPUTS), SKELETON, (SIDE, SIDE)),
            r"one image; .*Write outputs=jax.tree.map\(lambda x: x\[None\], outputs\)",
        ),
        (
            lambda: PoseLoss(SKELETON)(
                OUTPUTS, Batch(IMAGES, LABELS | {"visible": VISIBLE[None].astype(int)})
            ),
            "expected float32 and bool.*'visible': visible > 0",
        ),
        (lambda: PoseNet(SKELETON, refinements=-1), "refinements is -1; expected .* at least 0"),
        (lambda: PoseNet(SKELETON, refinements=1.5), "refinements is 1.5"),  # pyright: ignore
        (lambda: estimate_poses(NO_STAGES, SKELETON, (SIDE, SIDE)), "no stage of prediction"),
        (
            lambda: PoseLoss(SKELETON)(NO_STAGES, Batch(IMAGES, LABELS)),
            "no stage of prediction; expected at least one",
        ),
        (
            lambda: estimate_poses(OUTPUTS | {"fields": [[0.0]]}, SKELETON, (SIDE, SIDE)),  # pyright: ignore
            r"the output fields is \[\[0.0\]\]; expected an array",
        ),
        (
            lambda: PoseLoss(SKELETON)(
                OUTPUTS | {"heat_maps": OUTPUTS["heat_maps"].astype(int)}, Batch(IMAGES, LABELS)
            ),
            "the output heat_maps is an array of int32; expected an array of float32",
        ),
        (
            lambda: PoseLoss(SKELETON)(OUTPUTS, Batch(IMAGES, LABELS | {"keypoints": [[1.0]]})),
            r"labels have keypoints \[\[1.0\]\]; expected an array",
        ),
        (
            lambda: PoseLoss(SKELETON)(OUTPUTS, Batch(IMAGES, LABELS | {"visible": [True]})),
            r"labels have visible \[True\]; expected an array",
        ),
        (
            lambda: PoseLoss(SKELETON)(
                OUTPUTS, Batch(IMAGES, jax.tree.map(lambda x: jnp.concatenate([x, x]), LABELS))
            ),
            "outputs of 1 images and labels of 2",
        ),
        (lambda: estimate_poses({}, SKELETON, (SIDE, SIDE)), "expected heat_maps, fields"),
        (lambda: estimate_poses(OUTPUTS, SKELETON, (30, 32)), "expected square cells"),
        (lambda: estimate_poses(OUTPUTS, SKELETON, (SIDE, SIDE), min_joints=5), "min_joints is 5"),
        (
            lambda: jax.eval_shape(
                PoseNet(SKELETON).init,
                jax.random.key(0),
                jax.ShapeDtypeStruct((1, 12, 16, 3), "float32"),
            ),
            "expected multiples of 8",
        ),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(jc.ArgumentError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
