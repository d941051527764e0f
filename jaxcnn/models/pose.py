"""Poses of several people from heat maps and part affinity fields.

Cao et al. 2017, "Realtime multi-person 2D pose estimation using part affinity fields"
(arXiv:1611.08050): a network, its loss, and the people on its outputs. The targets and the assembly
of key points into people are in `jaxcnn.keypoints`.

Example:
  Scenes of one person of two joints and a limb. Real ones need more images and steps.

  >>> import numpy as np
  >>> import jaxcnn as jc
  >>> skeleton = Skeleton(("head", "foot"), ((0, 1),))
  >>> images = np.zeros((16, 16, 16, 3), np.uint8)
  >>> images[:, 2:14, 7:9] = 255
  >>> labels = {
  ...     "keypoints": np.tile(np.float32([[8, 3], [8, 13]]), (16, 1, 1, 1)),  # x, y
  ...     "visible": np.ones((16, 1, 2), bool),
  ... }
  >>> data = jc.dataset((images, labels), (images[:4], jax.tree.map(lambda x: x[:4], labels)))
  >>> model = PoseNet(skeleton, width=4)
  >>> tx = jc.create_optimizer(jc.OptimizerConfig("adam", learning_rate=0.01))
  >>> config = jc.TrainConfig(num_steps=2, batch_size=8)
  >>> for state, row in jc.train(model, tx, data, config, loss=PoseLoss(skeleton)):
  ...     print(row["step"], row["eval_split"])
  2 test
  >>> outputs = jc.predict(model, state, data.test.images)
  >>> people = estimate_poses(outputs, skeleton, (16, 16), max_people=2)
  >>> people.points.shape, people.scores.shape
  ((4, 2, 2, 2), (4, 2, 2))
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.arguments import (
    ArgumentError,
    check_image_size,
    check_integer,
    check_positive,
    check_share,
    format_value,
)
from jaxcnn.keypoints import (
    People,
    Skeleton,
    assemble_people,
    check_limit,
    check_min_affinity,
    check_skeleton,
    find_peaks,
    heat_maps,
    hidden_limbs,
    line_integrals,
    part_affinity_fields,
)
from jaxcnn.losses import Batch
from jaxcnn.models.autoencoder import upsample_nearest
from jaxcnn.models.detector import Detector, check_output_names, prediction_head
from jaxcnn.models.layers import conv, stage
from jaxcnn.models.norm import BatchNorm

_STRIDE = 2
"""Pixels of a cell of the maps of `PoseNet`."""
HIDDEN_HEIGHT = 0.01
"""Height of a hidden key point's Gaussian above which its cells have no loss."""


class PoseNet(Detector):
    """Heat maps and part affinity fields on the residual stages of He et al. 2015.

    Three stages of strides 2, 4 and 8 are merged from the coarsest to the finest, as in a feature
    pyramid (Lin et al. 2017, arXiv:1612.03144, figure 3). On the merged map F, the first stage of
    prediction computes heat maps S and fields L. Each refinement computes them again from F, S and
    L (equations 1 and 2 of Cao et al.). The paper has 6 stages on VGG-19, and two branches of
    convolutions. Here both branches share a stage's 3x3 convolutions.

    Attributes:
      skeleton: joints and limbs.
      refinements: number of stages of prediction after the first.

    The other attributes are those of `jaxcnn.models.detector.Detector`.

    Raises:
      ArgumentError: in the constructor, for an invalid skeleton or `refinements`. When called, for
        images whose sides are not multiples of 8.

    Example:
      >>> model = PoseNet(Skeleton(("head", "neck", "hip"), ((0, 1), (1, 2))))
      >>> image = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
      >>> outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
      >>> outputs["heat_maps"].shape, outputs["fields"].shape
      ((1, 2, 32, 32, 3), (1, 2, 32, 32, 2, 2))
    """

    skeleton: Skeleton
    refinements: int = 1

    def __post_init__(self):
        check_skeleton(self.skeleton, "PoseNet(Skeleton(('head', 'foot'), ((0, 1),)))")
        self.refinements = check_integer("refinements", self.refinements, 0, example=1)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to heat maps and fields of each stage of prediction.

        Returns:
          {"heat_maps": float32 [b, t, h / 2, w / 2, J], "fields": float32 [b, t, h / 2, w / 2, L,
          2]} for t = 1 + `refinements` stages of prediction, of which the last is the best. With
          `stages`, the maps by name too.
        """
        if x.shape[1] % 8 or x.shape[2] % 8 or not x.shape[1] * x.shape[2]:
            raise ArgumentError(
                f"PoseNet got images of {x.shape[1]}x{x.shape[2]} pixels; expected multiples of 8. "
                "Write images of 64x64."
            )
        maps, outputs = self.feature_maps(x, train, (2, 1, 2, 2))
        features = self._merge(maps)
        features = stage(self, outputs, "merged", self._convolve(features, train, "merged"))
        joints, limbs = len(self.skeleton.joints), len(self.skeleton.limbs)
        head = partial(prediction_head, size=1, dtype=self.dtype)
        heat, fields, inputs = [], [], features
        for number in range(1 + self.refinements):
            name = f"predict{number + 1}"
            layer = inputs
            for i in range(1 + (number > 0)):
                layer = self._convolve(layer, train, f"{name}_conv{i + 1}")
            layer = stage(self, outputs, name, layer)
            heat.append(head(joints, name=f"{name}_heat_maps")(layer))
            fields.append(head(2 * limbs, name=f"{name}_fields")(layer))
            # [b, h / 2, w / 2, features + J + 2 L]
            inputs = jnp.concatenate([features, heat[-1], fields[-1]], -1)
        all_fields = jnp.stack(fields, 1).astype(jnp.float32)
        result = {
            "heat_maps": jnp.stack(heat, 1).astype(jnp.float32),
            "fields": all_fields.reshape(*all_fields.shape[:-1], limbs, 2),
        }
        return (result, outputs) if stages else result

    def _merge(self, maps):
        """Return the sum of all maps at the size of the finest, of 2 `width` channels."""
        merged = None
        for number in (3, 2, 1):
            lateral = conv(
                2 * self.width,
                1,
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=f"lateral{number}",
            )(maps[number - 1])
            merged = lateral if merged is None else lateral + upsample_nearest(merged)
        return merged

    def _convolve(self, x, train, name):
        x = conv(2 * self.width, 3, kernel_init=self.kernel_init, dtype=self.dtype, name=name)(x)
        norm = BatchNorm(
            self.bn_group,
            self.axis_name,
            self.bn_momentum,
            dtype=self.dtype,
            name=f"{name}_norm",
        )
        return nn.relu(norm(x, train))


@dataclass(frozen=True)
class PoseLoss:
    """Squared errors of heat maps and part affinity fields, of all stages of prediction.

    It is that of equations 3 to 5, for each image, with the mean over cells in place of the sum.
    Outputs are those of `PoseNet`. Labels are a dict of `keypoints`, float32 [b, p, J, 2], and
    `visible`, bool [b, p, J]. Other floating dtypes are cast to float32. Targets are computed from
    the labels, at the stride of the outputs.

    Cells of a key point that is not visible have no loss in its joint's map: W = 0 in equation 3,
    where its Gaussian is above 0.01. Nor have cells of a limb with an end that is not visible, in
    its field. Rows that pad images with fewer people have `visible` False and key points far
    outside the image, such as -1000.

    Attributes:
      skeleton: joints and limbs, those of the network.
      sigma: width of the Gaussians, pixels.
      limb_width: greatest distance of a cell on a limb from its line, pixels.

    Raises:
      ArgumentError: in the constructor, for an invalid value. When called, for outputs or labels of
        other shapes.

    Example:
      >>> skeleton = Skeleton(("head", "foot"), ((0, 1),))
      >>> labels = {"keypoints": jnp.zeros((1, 1, 2, 2)), "visible": jnp.zeros((1, 1, 2), bool)}
      >>> fields = jnp.zeros((1, 1, 8, 8, 1, 2))
      >>> outputs = {"heat_maps": jnp.ones((1, 1, 8, 8, 2)), "fields": fields}
      >>> losses, _ = PoseLoss(skeleton, sigma=1.0)(outputs, Batch(jnp.zeros((1, 8, 8, 3)), labels))
      >>> losses.tolist()  # 4 of the 64 cells are masked in both maps
      [1.875]
    """

    skeleton: Skeleton
    sigma: float = 4.0
    limb_width: float = 2.0

    def __post_init__(self):
        check_skeleton(self.skeleton, "PoseLoss(model.skeleton)")
        for name, example in (("sigma", 4.0), ("limb_width", 2.0)):
            value = check_positive(name, getattr(self, name), example=example)
            object.__setattr__(self, name, value)

    def __call__(self, outputs: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the losses float32 [b], and both terms of the last stage [b]."""
        image_shape = tuple(getattr(batch.inputs, "shape", ())[1:3])
        _, _, stride = _check_outputs(outputs, self.skeleton, image_shape)
        labels = check_pose_labels(batch.labels, self.skeleton)
        n, count = len(outputs["heat_maps"]), len(labels["keypoints"])
        if n != count:
            raise ArgumentError(
                f"there are outputs of {n} images and labels of {count}; expected as many. "
                "Use the outputs of the images of the batch."
            )
        of_image = partial(self._of_image, image_shape, stride)
        heat, fields = jax.vmap(of_image)(
            jnp.asarray(outputs["heat_maps"]).astype(jnp.float32),
            jnp.asarray(outputs["fields"]).astype(jnp.float32),
            labels["keypoints"],
            labels["visible"],
        )
        losses = (heat + fields).sum(1)
        return losses, {"heat_map_loss": heat[:, -1], "field_loss": fields[:, -1]}

    def _of_image(self, image_shape, stride, heat, fields, points, visible):
        """Return both terms of each stage of prediction, float32 [t]."""
        grid = {"image_shape": image_shape, "stride": stride}
        target = heat_maps(points, visible, **grid, sigma=self.sigma)
        is_hidden = heat_maps(points, ~visible, **grid, sigma=self.sigma) > HIDDEN_HEIGHT
        errors = jnp.square(heat - target[None])
        of_heat = jnp.where(is_hidden[None], 0.0, errors).sum(-1).mean((1, 2))
        limbs = grid | {"limbs": self.skeleton.limbs, "limb_width": self.limb_width}
        target = part_affinity_fields(points, visible, **limbs)
        is_hidden = hidden_limbs(points, visible, **limbs)
        errors = jnp.square(fields - target[None]).sum(-1)
        of_fields = jnp.where(is_hidden[None], 0.0, errors).sum(-1).mean((1, 2))
        return of_heat, of_fields


def _check_outputs(outputs: Any, skeleton: Skeleton, image_shape: Any) -> tuple[int, int, int]:
    """Return height, width and stride of the maps.

    Raises:
      ArgumentError: they are not those of a `PoseNet` of this skeleton for such images.
    """
    check_output_names(outputs, ("heat_maps", "fields"), "PoseNet")
    height, width = check_image_size(image_shape)
    for name in ("heat_maps", "fields"):
        dtype = getattr(outputs[name], "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            text = format_value(outputs[name]) if dtype is None else f"an array of {dtype}"
            raise ArgumentError(
                f"the output {name} is {text}; expected an array of float32. "
                "Use the outputs of PoseNet."
            )
    heat, fields = (tuple(outputs[name].shape) for name in ("heat_maps", "fields"))
    joints, limbs = len(skeleton.joints), len(skeleton.limbs)
    if len(heat) == 4:
        raise ArgumentError(
            f"heat maps are of shape {heat}, those of one image; expected a first axis of images. "
            "Write outputs=jax.tree.map(lambda x: x[None], outputs)."
        )
    if len(heat) != 5 or heat[-1] != joints or fields != (*heat[:4], limbs, 2):
        raise ArgumentError(
            f"heat maps are of shape {heat[1:]} and fields {fields[1:]} for an image, with "
            f"{joints} joints and {limbs} limbs; expected (t, h, w, {joints}) and (t, h, w, "
            f"{limbs}, 2). Write skeleton=model.skeleton."
        )
    if not heat[1]:
        raise ArgumentError(
            "heat maps and fields have no stage of prediction; expected at least one. "
            "Use the outputs of PoseNet."
        )
    stride = height // heat[2] if heat[2] else 0
    if not stride or (heat[2] * stride, heat[3] * stride) != (height, width):
        raise ArgumentError(
            f"maps are of {heat[2]}x{heat[3]} cells for images of {height}x{width} pixels; "
            "expected square cells of whole pixels. Use the images' own height and width."
        )
    return heat[2], heat[3], stride


def check_pose_labels(labels: Any, skeleton: Skeleton) -> dict[str, jax.Array]:
    """Return key points of people float32 [b, p, J, 2] and visibility bool [b, p, J].

    Args:
      labels: a dict of `keypoints` and `visible`.
      skeleton: whose joints they have.

    Raises:
      ArgumentError: they are anything else.
    """
    # COCO has integers: its visibility is 0, 1 or 2.
    example = "Write labels={'keypoints': points.astype('float32'), 'visible': visible > 0}."
    if not isinstance(labels, dict) or not {"keypoints", "visible"} <= set(labels):
        keys = ", ".join(map(str, labels)) if isinstance(labels, dict) else ""
        names = f"the keys {keys}" if keys else "no keys"
        raise ArgumentError(f"labels have {names}; expected keypoints and visible. {example}")
    for name in ("keypoints", "visible"):
        if not hasattr(labels[name], "shape") or not hasattr(labels[name], "dtype"):
            raise ArgumentError(
                f"labels have {name} {format_value(labels[name])}; expected an array. {example}"
            )
    points, visible = (tuple(labels[name].shape) for name in ("keypoints", "visible"))
    joints = len(skeleton.joints)
    if len(points) != 4 or points[2:] != (joints, 2) or visible != points[:3] or not points[1]:
        raise ArgumentError(
            f"labels have keypoints of shape {points[1:]} and visible of shape {visible[1:]} for "
            f"an image; expected (p, {joints}, 2) and (p, {joints}) with p > 0. {example}"
        )
    if labels["visible"].dtype != jnp.bool_ or not jnp.issubdtype(
        labels["keypoints"].dtype, jnp.floating
    ):
        raise ArgumentError(
            f"labels have keypoints of {labels['keypoints'].dtype} and visible of "
            f"{labels['visible'].dtype}; expected float32 and bool. {example}"
        )
    return {
        "keypoints": jnp.asarray(labels["keypoints"]).astype(jnp.float32),
        "visible": jnp.asarray(labels["visible"]),
    }


def estimate_poses(
    outputs: dict[str, jax.Array],
    skeleton: Skeleton,
    image_shape: tuple[int, int],
    *,
    max_people: int | None = None,
    max_peaks: int | None = None,
    threshold: float = 0.1,
    samples: int = 10,
    min_affinity: float = 0.2,
    min_joints: int = 2,
) -> People:
    """Return the people that a network sees in images.

    It is `find_peaks`, `line_integrals` and `assemble_people` of the last stage of prediction.

    Args:
      outputs: those of `PoseNet` for b images.
      skeleton: that of the network.
      image_shape: height and width of the images, pixels. It is twice that of the maps.
      max_people: people of an image, m. None is 10, or the number of candidates if it is less.
      max_peaks: candidates of a joint. None is 10, or the number of cells if it is less.
      threshold: least height of a peak.
      samples: points of a line integral.
      min_affinity: line integral that a limb exceeds.
      min_joints: least number of joints of a person, at most the number of the skeleton's joints.

    Returns:
      `People` with a first axis of b.

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> skeleton = Skeleton(("head", "foot"), ((0, 1),))
      >>> points, visible = jnp.array([[[8.0, 3.0], [8.0, 13.0]]]), jnp.ones((1, 2), bool)
      >>> heat = heat_maps(points, visible, (16, 16), stride=2, sigma=3.0)
      >>> fields = part_affinity_fields(
      ...     points, visible, skeleton.limbs, (16, 16), stride=2, limb_width=2.0
      ... )
      >>> outputs = {"heat_maps": heat[None, None], "fields": fields[None, None]}
      >>> people = estimate_poses(outputs, skeleton, (16, 16), max_people=1, min_joints=2)
      >>> people.points.round(2).tolist()
      [[[[8.0, 3.0], [8.0, 13.0]]]]
    """
    check_skeleton(skeleton)
    height, width, stride = _check_outputs(outputs, skeleton, image_shape)
    # The size of resized images, or of the maps, would silently scale all people.
    if stride != _STRIDE:
        raise ArgumentError(
            f"image_shape is {height * stride}x{width * stride} for maps of {height}x{width} "
            f"cells; expected {_STRIDE} pixels for a cell, as PoseNet has. "
            f"Write image_shape=({_STRIDE * height}, {_STRIDE * width}), and scale the points."
        )
    joints = len(skeleton.joints)
    max_peaks = check_limit("max_peaks", max_peaks, height * width)
    max_people = check_limit("max_people", max_people, joints * max_peaks)
    min_joints = check_integer("min_joints", min_joints, 1, joints, example=1)
    samples = check_integer("samples", samples, 2, example=10)
    threshold = check_share("threshold", threshold, 0.1)
    threshold = check_positive("threshold", threshold, example=0.1)
    min_affinity = check_min_affinity(min_affinity)
    return _estimate_poses(
        jnp.asarray(outputs["heat_maps"]),
        jnp.asarray(outputs["fields"]),
        skeleton,
        stride,
        max_people,
        max_peaks,
        threshold,
        samples,
        min_affinity,
        min_joints,
    )


@partial(jax.jit, static_argnums=tuple(range(2, 10)))
def _estimate_poses(
    heat,
    fields,
    skeleton,
    stride,
    max_people,
    max_peaks,
    threshold,
    samples,
    min_affinity,
    min_joints,
):
    def of_image(heat, fields):
        peaks = find_peaks(heat, stride=stride, max_peaks=max_peaks, threshold=threshold)
        affinities = line_integrals(
            fields, peaks.points, skeleton.limbs, stride=stride, samples=samples
        )
        return assemble_people(
            peaks,
            affinities,
            skeleton,
            min_affinity=min_affinity,
            max_people=max_people,
            min_joints=min_joints,
        )

    return jax.vmap(of_image)(heat[:, -1].astype(jnp.float32), fields[:, -1].astype(jnp.float32))
