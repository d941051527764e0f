"""Poses of several people from heat maps and part affinity fields.

Cao et al. 2017, "Realtime multi-person 2D pose estimation using part affinity fields"
(arXiv:1611.08050): the targets, a network, its loss, and the assembly of key points into people.

A point is (x, y) in pixels of the image, as in `jaxcnn.boxes`: the center of the first pixel is
(0.5, 0.5). A cell of a map of stride s covers s x s pixels, and the center of the first one is
(s / 2, s / 2).

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
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.arguments import (
    ArgumentError,
    check_image_size,
    check_integer,
    check_positive,
    check_share,
    format_value,
)
from jaxcnn.losses import Batch
from jaxcnn.models.autoencoder import upsample_nearest
from jaxcnn.models.detector import Detector, check_output_names, prediction_head
from jaxcnn.models.layers import conv, stage
from jaxcnn.models.norm import BatchNorm

Array = jax.Array | np.ndarray
"""An array of JAX or NumPy, or a traced one."""
HIDDEN_SHARE = 0.01
"""Height of a hidden key point's Gaussian from which its cells have no loss."""


@dataclass(frozen=True)
class Skeleton:
    """Names of joints, and the limbs that connect them as a tree.

    Attributes:
      joints: names, J of them.
      limbs: first and second joint of each of J - 1 limbs, as numbers. The first joint of the first
        limb is the root. The first joint of any other limb is the root, or the second joint of an
        earlier limb.

    Raises:
      ArgumentError: the limbs are not such a tree, or the joints' names are invalid.

    Example:
      >>> Skeleton(("neck", "head", "hip"), ((0, 1), (0, 2))).limbs
      ((0, 1), (0, 2))
    """

    joints: tuple[str, ...]
    limbs: tuple[tuple[int, int], ...]

    def __post_init__(self):
        is_text = isinstance(self.joints, (tuple, list)) and all(
            isinstance(name, str) for name in self.joints
        )
        if not is_text or len(self.joints) < 2 or len(set(self.joints)) < len(self.joints):
            raise ArgumentError(
                f"joints is {format_value(self.joints)}; expected at least two different names. "
                "Write joints=('head', 'neck')."
            )
        if not _is_tree(self.limbs, len(self.joints)):
            raise ArgumentError(
                f"limbs is {format_value(self.limbs)}; expected {len(self.joints) - 1} pairs of "
                "joints' numbers, from the root outwards, that reach each joint once. "
                "Write limbs=((0, 1), (1, 2))."
            )
        object.__setattr__(self, "joints", tuple(self.joints))
        object.__setattr__(self, "limbs", tuple((int(a), int(b)) for a, b in self.limbs))


def _check_skeleton(skeleton: Any, example: str = "skeleton=model.skeleton") -> None:
    if not isinstance(skeleton, Skeleton):
        raise ArgumentError(
            f"skeleton is {format_value(skeleton)}; expected a Skeleton. Write {example}."
        )


def _is_tree(limbs: Any, n: int) -> bool:
    if not isinstance(limbs, (tuple, list)) or len(limbs) != n - 1:
        return False
    reached: set[int] = set()
    for limb in limbs:
        if not isinstance(limb, (tuple, list)) or len(limb) != 2:
            return False
        if any(isinstance(i, bool) or not isinstance(i, (int, np.integer)) for i in limb):
            return False
        first, second = limb
        reached = reached or {first}
        if first not in reached or second in reached or not 0 <= second < n or not 0 <= first < n:
            return False
        reached.add(second)
    return True


# Targets


def _check_points(points: Any, visible: Any) -> tuple[jax.Array, jax.Array]:
    """Return points float32 [p, J, 2] and visibility bool [p, J].

    Raises:
      ArgumentError: they have another shape or type.
    """
    shape: Any = getattr(points, "shape", None)
    dtype: Any = getattr(points, "dtype", None)
    if (
        shape is None
        or len(shape) != 3
        or shape[-1] != 2
        or not jnp.issubdtype(dtype, jnp.floating)
    ):
        text = format_value(points) if shape is None else f"an array {dtype} {shape}"
        raise ArgumentError(
            f"points is {text}; expected key points (x, y), float [people, joints, 2]. "
            "Write points=jnp.zeros((1, 2, 2)), or jax.vmap for a batch."
        )
    own = getattr(visible, "shape", None)
    if own != shape[:2] or getattr(visible, "dtype", None) != jnp.bool_:
        text = format_value(visible) if own is None else f"an array {visible.dtype} {own}"
        raise ArgumentError(
            f"visible is {text}; expected bool of shape {shape[:2]}, one for each key point. "
            f"Write visible=jnp.ones({shape[:2]}, bool)."
        )
    return jnp.asarray(points).astype(jnp.float32), jnp.asarray(visible)


def _check_map(image_shape: Any, stride: Any) -> tuple[int, int, int]:
    """Return height and width of a map, and its stride.

    Raises:
      ArgumentError: the image has no whole number of cells.
    """
    height, width = check_image_size(image_shape)
    stride = check_integer("stride", stride, example=2)
    if height % stride or width % stride:
        raise ArgumentError(
            f"image_shape is {height}x{width}; expected multiples of stride {stride}. "
            f"Write image_shape=({-(-height // stride) * stride}, {-(-width // stride) * stride})."
        )
    return height // stride, width // stride, stride


def _check_limbs(limbs: Any, joints: int) -> tuple[tuple[int, int], ...]:
    """Return pairs of numbers of joints.

    Raises:
      ArgumentError: they are anything else.
    """
    pairs = limbs if isinstance(limbs, (tuple, list)) else ()
    is_pair = [
        isinstance(limb, (tuple, list))
        and len(limb) == 2
        and all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in limb)
        and all(0 <= i < joints for i in limb)
        for limb in pairs
    ]
    if not pairs or not all(is_pair):
        raise ArgumentError(
            f"limbs is {format_value(limbs)}; expected pairs of numbers of the {joints} joints. "
            "Write limbs=skeleton.limbs."
        )
    return tuple((int(a), int(b)) for a, b in pairs)


def cell_centers(height: int, width: int, stride: int) -> jax.Array:
    """Return the centers of a map's cells in pixels, float32 [height, width, 2].

    Example:
      >>> cell_centers(1, 2, 4).tolist()
      [[[2.0, 2.0], [6.0, 2.0]]]
    """
    x, y = (stride * (jnp.arange(n, dtype=jnp.float32) + 0.5) for n in (width, height))
    return jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None]), -1)


def heat_maps(
    points: Array, visible: Array, image_shape: tuple[int, int], *, stride: int, sigma: float
) -> jax.Array:
    """Return a map of Gaussians at the key points of each joint.

    At a cell p, a person's map is exp(-|p - x|^2 / sigma^2) (equation 6), and the map of all is the
    maximum over people (equation 7), so that close peaks stay apart.

    Args:
      points: key points x of p people, float [p, J, 2].
      visible: bool [p, J]; others leave no Gaussian.
      image_shape: height and width of the image, pixels.
      stride: side of a cell, pixels.
      sigma: width of the Gaussians, pixels.

    Returns:
      float32 [h, w, J] in 0..1.

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> points = jnp.array([[[3.0, 1.0]]])
      >>> heat = heat_maps(points, jnp.ones((1, 1), bool), (2, 4), stride=2, sigma=2.0)
      >>> heat.shape, float(heat[0, 1, 0]), round(float(heat[0, 0, 0]), 3)
      ((1, 2, 1), 1.0, 0.368)
    """
    points, visible = _check_points(points, visible)
    height, width, stride = _check_map(image_shape, stride)
    sigma = check_positive("sigma", sigma, example=4.0)
    return _heat_maps(points, visible, cell_centers(height, width, stride), sigma)


@partial(jax.jit, static_argnums=3)
def _heat_maps(points, visible, cells, sigma):
    # [p, h, w, J]
    distances = jnp.square(cells[None, :, :, None] - points[:, None, None]).sum(-1)
    values = jnp.where(visible[:, None, None], jnp.exp(-distances / sigma**2), 0.0)
    return values.max(0, initial=0.0)


def part_affinity_fields(
    points: Array,
    visible: Array,
    limbs: tuple[tuple[int, int], ...],
    image_shape: tuple[int, int],
    *,
    stride: int,
    limb_width: float,
) -> jax.Array:
    """Return fields of unit vectors along the limbs.

    At a cell on a person's limb the field is the unit vector from its first to its second joint,
    elsewhere 0 (equation 8). A cell is on the limb if its projection is between both joints and its
    distance from their line is at most `limb_width`. The field of all is the mean over the people
    whose limb is there (equation 9).

    Args:
      points: key points of p people, float [p, J, 2].
      visible: bool [p, J]; a limb with another end leaves no field.
      limbs: pairs of joints' numbers, as in `Skeleton`.
      image_shape: height and width of the image, pixels.
      stride: side of a cell, pixels.
      limb_width: greatest distance from the line, pixels.

    Returns:
      float32 [h, w, len(limbs), 2], (x, y).

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> points, visible = jnp.array([[[1.0, 1.0], [3.0, 1.0]]]), jnp.ones((1, 2), bool)
      >>> part_affinity_fields(
      ...     points, visible, ((0, 1),), (4, 4), stride=2, limb_width=1.0
      ... ).tolist()
      [[[[1.0, 0.0]], [[1.0, 0.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]]
    """
    points, visible = _check_points(points, visible)
    limbs = _check_limbs(limbs, points.shape[1])
    height, width, stride = _check_map(image_shape, stride)
    limb_width = check_positive("limb_width", limb_width, example=2.0)
    return _part_affinity_fields(
        points, visible, limbs, cell_centers(height, width, stride), limb_width
    )


@partial(jax.jit, static_argnums=(2, 4))
def _part_affinity_fields(points, visible, limbs, cells, limb_width):
    on_limb, unit = _on_limbs(points, limbs, cells, limb_width)
    return _fields(on_limb & _have_ends(visible, limbs), unit)


def _have_ends(visible, limbs):
    """Return whose limbs have two visible ends, bool [p, 1, 1, L]."""
    first, second = (visible[:, jnp.array([limb[end] for limb in limbs])] for end in (0, 1))
    return (first & second)[:, None, None]


def _on_limbs(points, limbs, cells, limb_width):
    """Return the cells on each person's limbs, bool [p, h, w, L], and unit vectors [p, L, 2]."""
    first, second = (points[:, jnp.array([limb[end] for limb in limbs])] for end in (0, 1))
    vector = second - first
    length = jnp.sqrt(jnp.square(vector).sum(-1))
    # A limb without length has no direction.
    unit = vector / jnp.where(length > 0, length, 1.0)[..., None]
    offset = cells[None, :, :, None] - first[:, None, None]
    along = (offset * unit[:, None, None]).sum(-1)
    across = offset[..., 0] * unit[:, None, None, :, 1] - offset[..., 1] * unit[:, None, None, :, 0]
    is_between = (along >= 0) & (along <= length[:, None, None])
    has_length = (length > 0)[:, None, None]
    return is_between & (jnp.abs(across) <= limb_width) & has_length, unit


def _fields(on_limb, unit):
    """Return the mean of the unit vectors, [h, w, L, 2]."""
    total = jnp.where(on_limb[..., None], unit[:, None, None], 0.0).sum(0)
    return total / jnp.maximum(on_limb.sum(0), 1).astype(total.dtype)[..., None]


# Network and loss


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
        _check_skeleton(self.skeleton)
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
        heat, fields, inputs = [], [], features
        for number in range(1 + self.refinements):
            name = f"predict{number + 1}"
            layer = inputs
            for i in range(1 + (number > 0)):
                layer = self._convolve(layer, train, f"{name}_conv{i + 1}")
            layer = stage(self, outputs, name, layer)
            head = partial(prediction_head, size=1, dtype=self.dtype)
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
        _check_skeleton(self.skeleton, "PoseLoss(model.skeleton)")
        for name, example in (("sigma", 4.0), ("limb_width", 2.0)):
            value = check_positive(name, getattr(self, name), example=example)
            object.__setattr__(self, name, value)

    def __call__(self, outputs: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the losses float32 [b], and both terms of the last stage [b]."""
        image_shape = tuple(getattr(batch.inputs, "shape", ())[1:3])
        height, width, stride = _check_outputs(outputs, self.skeleton, image_shape)
        labels = check_pose_labels(batch.labels, self.skeleton)
        n, count = len(outputs["heat_maps"]), len(labels["keypoints"])
        if n != count:
            raise ArgumentError(
                f"there are outputs of {n} images and labels of {count}; expected as many. "
                "Use the outputs of the images of the batch."
            )
        of_image = partial(self._of_image, cell_centers(height, width, stride))
        heat, fields = jax.vmap(of_image)(
            jnp.asarray(outputs["heat_maps"]).astype(jnp.float32),
            jnp.asarray(outputs["fields"]).astype(jnp.float32),
            labels["keypoints"],
            labels["visible"],
        )
        losses = (heat + fields).sum(1)
        return losses, {"heat_map_loss": heat[:, -1], "field_loss": fields[:, -1]}

    def _of_image(self, cells, heat, fields, points, visible):
        """Return both terms of each stage of prediction, float32 [t]."""
        limbs = self.skeleton.limbs
        is_hidden = _heat_maps(points, ~visible, cells, self.sigma) > HIDDEN_SHARE
        errors = jnp.square(heat - _heat_maps(points, visible, cells, self.sigma)[None])
        of_heat = jnp.where(is_hidden[None], 0.0, errors).sum(-1).mean((1, 2))
        on_limb, unit = _on_limbs(points, limbs, cells, self.limb_width)
        has_ends = _have_ends(visible, limbs)
        is_hidden = (on_limb & ~has_ends).any(0)
        errors = jnp.square(fields - _fields(on_limb & has_ends, unit)[None]).sum(-1)
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
    example = "Write labels={'keypoints': points, 'visible': visible}."
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


# Decoding


class Peaks(NamedTuple):
    """Candidates for the joints of an image, the highest first.

    Attributes:
      points: float32 [J, k, 2]: (x, y) in pixels.
      scores: float32 [J, k]: height of the peak, 0 for rows that only pad.
    """

    points: Array
    scores: Array


class People(NamedTuple):
    """People of an image, or with a first axis more those of several.

    They are sorted by the sum of their scores. Rows without any only pad.

    Attributes:
      points: float32 [m, J, 2]: (x, y) in pixels, NaN for a joint that was not found.
      scores: float32 [m, J]: height of each joint's peak, 0 where there is none.
    """

    points: Array
    scores: Array


def _check_maps(name: str, maps: Any, ndim: int, axes: str) -> jax.Array:
    shape: Any = getattr(maps, "shape", ())
    dtype: Any = getattr(maps, "dtype", None)
    is_map = len(shape) == ndim and 0 not in shape
    # Fields have two components.
    is_map = is_map and (ndim < 4 or shape[-1] == 2)
    if not is_map or not jnp.issubdtype(dtype, jnp.floating):
        text = format_value(maps) if dtype is None else f"an array {dtype} {shape}"
        raise ArgumentError(
            f"{name} is {text}; expected float32 {axes}. "
            "Leave out the axes of images and stages, or write jax.vmap for a batch."
        )
    return jnp.asarray(maps).astype(jnp.float32)


def _check_limit(name: str, value: Any, most: int) -> int:
    """Return a number of things to keep; None is 10, or all of them if they are fewer.

    Raises:
      ArgumentError: it is not from 1 to `most`.
    """
    default = min(10, most)
    return default if value is None else check_integer(name, value, 1, most, example=default)


def find_peaks(
    heat: Array, *, stride: int, max_peaks: int | None = None, threshold: float = 0.1
) -> Peaks:
    """Return the local maxima of heat maps, between cells.

    A cell is a peak if no neighbor of eight is higher; of equal neighbors, the first in reading
    order is one. Along each axis, the peak of the parabola through the logarithms of a cell and its
    two neighbors is the point. It is exact for a Gaussian whose values there are at least 1e-6.
    With a height of 1, a sigma of half a cell is enough. Logarithms are cut at 1e-6, so that the
    points of narrower ones are wrong by up to half a cell. Cells at the border keep their center on
    that axis.

    Args:
      heat: float [h, w, J].
      stride: side of a cell, pixels.
      max_peaks: the highest ones of a joint that are returned, k. None is 10, or the number of
        cells if it is less.
      threshold: least height of a peak, above 0.

    Returns:
      `Peaks`.

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> points = jnp.array([[[5.5, 6.25]]])
      >>> heat = heat_maps(points, jnp.ones((1, 1), bool), (16, 16), stride=2, sigma=3.0)
      >>> peaks = find_peaks(heat, stride=2, max_peaks=2)
      >>> np.asarray(peaks.points)[0, 0].round(3).tolist()
      [5.5, 6.25]
      >>> (peaks.scores > 0).tolist()
      [[True, False]]
    """
    heat = _check_maps("heat", heat, 3, "[h, w, J]")
    stride = check_integer("stride", stride, example=2)
    max_peaks = _check_limit("max_peaks", max_peaks, heat.shape[0] * heat.shape[1])
    threshold = check_positive("threshold", threshold, example=0.1)
    return _find_peaks(heat, stride, max_peaks, threshold)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _find_peaks(heat, stride, max_peaks, threshold):
    height, width, joints = heat.shape
    padded = jnp.pad(heat, ((1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)

    def neighbor(dy, dx):
        return padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    earlier = [neighbor(dy, dx) for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1))]
    later = [neighbor(dy, dx) for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1))]
    is_peak = heat >= threshold
    for other in earlier:
        is_peak &= heat > other
    for other in later:
        is_peak &= heat >= other
    center = jnp.log(jnp.maximum(heat, 1e-6))
    offsets = []
    for before, after in (
        (neighbor(0, -1), neighbor(0, 1)),
        (neighbor(-1, 0), neighbor(1, 0)),
    ):
        low, high = (jnp.log(jnp.maximum(value, 1e-6)) for value in (before, after))
        curvature = 2 * center - low - high
        shift = (high - low) / (2 * jnp.where(curvature > 0, curvature, 1.0))
        is_inside = jnp.isfinite(before) & jnp.isfinite(after) & (curvature > 0)
        offsets.append(jnp.where(is_inside, jnp.clip(shift, -0.5, 0.5), 0.0))
    points = cell_centers(height, width, stride)[:, :, None] + stride * jnp.stack(offsets, -1)
    scores = jnp.where(is_peak, heat, 0.0).reshape(-1, joints).T
    best, index = jax.lax.top_k(scores, max_peaks)
    points = points.reshape(-1, joints, 2).transpose(1, 0, 2)
    return Peaks(jnp.take_along_axis(points, index[..., None], 1), best)


def line_integrals(
    fields: Array,
    points: Array,
    limbs: tuple[tuple[int, int], ...],
    *,
    stride: int,
    samples: int = 10,
) -> jax.Array:
    """Return how well a field runs along the line between two candidates, for all pairs.

    It is the mean, over evenly spaced points of the line with both ends, of the field's component
    along the line (equations 10 and 11). Between cells, the field is interpolated bilinearly.

    Args:
      fields: float [h, w, L, 2].
      points: candidates of each joint, float [J, k, 2], as in `Peaks`.
      limbs: L pairs of joints' numbers.
      stride: side of a cell, pixels.
      samples: points of a line, at least 2.

    Returns:
      float32 [L, k, k]: of candidate i of the first joint and candidate j of the second.

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> points, visible = jnp.array([[[1.0, 5.0], [9.0, 5.0]]]), jnp.ones((1, 2), bool)
      >>> limbs = ((0, 1),)
      >>> fields = part_affinity_fields(points, visible, limbs, (10, 10), stride=2, limb_width=2.0)
      >>> candidates = jnp.stack([points[0, :1], points[0, 1:]])
      >>> line_integrals(fields, candidates, limbs, stride=2).tolist()
      [[[1.0]]]
    """
    fields = _check_maps("fields", fields, 4, "[h, w, limbs, 2]")
    shape: Any = getattr(points, "shape", None)
    dtype: Any = getattr(points, "dtype", None)
    if (
        shape is None
        or len(shape) != 3
        or shape[-1] != 2
        or not jnp.issubdtype(dtype, jnp.floating)
    ):
        text = format_value(points) if shape is None else f"an array {dtype} {shape}"
        raise ArgumentError(
            f"points is {text}; expected candidates (x, y), float [joints, k, 2]. "
            "Write points=find_peaks(heat, stride=2).points."
        )
    limbs = _check_limbs(limbs, shape[0])
    if len(limbs) != fields.shape[2]:
        raise ArgumentError(
            f"there are {len(limbs)} limbs, but the fields have {fields.shape[2]}; expected a "
            "field for each limb. Write limbs=model.skeleton.limbs."
        )
    stride = check_integer("stride", stride, example=2)
    samples = check_integer("samples", samples, 2, example=10)
    return _line_integrals(fields, jnp.asarray(points).astype(jnp.float32), limbs, stride, samples)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _line_integrals(fields, points, limbs, stride, samples):
    first, second = (points[jnp.array([limb[end] for limb in limbs])] for end in (0, 1))
    # [L, k, k, 2]
    vector = second[:, None] - first[:, :, None]
    length = jnp.sqrt(jnp.square(vector).sum(-1, keepdims=True))
    unit = vector / jnp.where(length > 0, length, 1.0)
    shares = jnp.linspace(0.0, 1.0, samples, dtype=jnp.float32).reshape(-1, 1, 1, 1, 1)
    # [samples, L, k, k, 2]
    places = (first[None, :, :, None] + shares * vector[None]) / stride - 0.5
    height, width = fields.shape[:2]
    x = jnp.clip(places[..., 0], 0.0, width - 1.0)
    y = jnp.clip(places[..., 1], 0.0, height - 1.0)
    left, top = (jnp.floor(value).astype(jnp.int32) for value in (x, y))
    limb = jnp.arange(len(limbs)).reshape(1, -1, 1, 1)
    total = jnp.zeros_like(x)
    for dy in (0, 1):
        for dx in (0, 1):
            weight_x = jnp.abs(1.0 - dx - (x - left.astype(x.dtype)))
            weight_y = jnp.abs(1.0 - dy - (y - top.astype(y.dtype)))
            rows, columns = jnp.minimum(top + dy, height - 1), jnp.minimum(left + dx, width - 1)
            along = (fields[rows, columns, limb] * unit[None]).sum(-1)
            total += weight_x * weight_y * along
    return total.mean(0)


def match_greedily(affinity: Array, minimum: float) -> jax.Array:
    """Return pairs of candidates of two joints, the best one first.

    The pair of the greatest affinity is taken, then the greatest of the candidates that are left,
    and so on while it is above a minimum. Of equal ones, the first in reading order is taken. The
    paper matches each limb by the Hungarian algorithm (section 2.4), its published code greedily.

    Args:
      affinity: float [k, m] of all pairs.
      minimum: affinity that a pair exceeds.

    Returns:
      int32 [k], the partner of each candidate of the first joint, -1 for none.

    Raises:
      ArgumentError: the affinities are not a matrix of numbers, or the minimum is invalid.

    Example:
      >>> match_greedily(jnp.array([[0.9, 0.8], [0.7, 0.1]]), 0.2).tolist()
      [0, -1]
    """
    shape: Any = getattr(affinity, "shape", None)
    dtype: Any = getattr(affinity, "dtype", None)
    if shape is None or len(shape) != 2 or 0 in shape or not jnp.issubdtype(dtype, jnp.floating):
        text = format_value(affinity) if shape is None else f"an array {dtype} {shape}"
        raise ArgumentError(
            f"affinity is {text}; expected float [k, m] of all pairs. Write jax.vmap for several "
            "limbs."
        )
    return _match_greedily(jnp.asarray(affinity), _check_affinity(minimum))


def _check_affinity(minimum: Any) -> float:
    is_number = isinstance(minimum, (int, float, np.floating)) and not isinstance(minimum, bool)
    if not is_number or not np.isfinite(minimum):
        raise ArgumentError(
            f"the least affinity is {format_value(minimum)}; expected a finite number. Write 0.2."
        )
    return float(minimum)


@partial(jax.jit, static_argnums=1)
def _match_greedily(affinity, minimum):
    k, m = affinity.shape

    def take_best(carry, _):
        affinity, partner = carry
        best = jnp.argmax(affinity)
        row, column = best // m, best % m
        is_match = affinity[row, column] > minimum
        partner = partner.at[row].set(jnp.where(is_match, column, partner[row]).astype(jnp.int32))
        affinity = affinity.at[row].set(jnp.where(is_match, -jnp.inf, affinity[row]))
        affinity = affinity.at[:, column].set(jnp.where(is_match, -jnp.inf, affinity[:, column]))
        return (affinity, partner), None

    start = affinity, jnp.full(k, -1, jnp.int32)
    return jax.lax.scan(take_best, start, None, length=min(k, m))[0][1]


def assemble_people(
    peaks: Peaks,
    affinities: Array,
    skeleton: Skeleton,
    *,
    min_affinity: float = 0.2,
    max_people: int | None = None,
    min_joints: int = 2,
) -> People:
    """Return people: candidates that limbs connect.

    For each limb, candidates of its two joints are matched by `match_greedily`. All candidates that
    matches connect are a person (section 2.4). As the limbs are a tree, and a match is one to one,
    a person has at most one candidate of a joint.

    Args:
      peaks: candidates.
      affinities: float [L, k, k] of all pairs, such as `line_integrals` returns.
      skeleton: joints and limbs.
      min_affinity: affinity that a pair exceeds.
      max_people: people that are returned, m. None is 10, or the number of candidates if it is
        less.
      min_joints: least number of joints of a person.

    Returns:
      `People`, those with the greatest sums of scores.

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> skeleton = Skeleton(("head", "foot"), ((0, 1),))
      >>> points = jnp.array([[[2.0, 1.0], [6.0, 1.0]], [[6.0, 9.0], [2.0, 9.0]]])
      >>> affinities = jnp.array([[[0.1, 0.9], [0.8, 0.1]]])
      >>> people = assemble_people(Peaks(points, jnp.ones((2, 2))), affinities, skeleton,
      ...                          max_people=2, min_joints=2)
      >>> people.points.tolist()
      [[[2.0, 1.0], [2.0, 9.0]], [[6.0, 1.0], [6.0, 9.0]]]
    """
    _check_skeleton(skeleton)
    joints, limbs = len(skeleton.joints), len(skeleton.limbs)
    points, scores = (
        (getattr(peaks, name, None) if isinstance(peaks, Peaks) else None)
        for name in ("points", "scores")
    )
    shapes = [getattr(value, "shape", None) for value in (points, scores, affinities)]
    k = shapes[0][1] if shapes[0] is not None and len(shapes[0]) == 3 else 0
    if shapes != [(joints, k, 2), (joints, k), (limbs, k, k)] or not k:
        raise ArgumentError(
            f"peaks and affinities are of shapes {shapes}; expected points ({joints}, k, 2), "
            f"scores ({joints}, k) and affinities ({limbs}, k, k). "
            "Write peaks=find_peaks(heat, stride=2)."
        )
    for name, value in (("points", points), ("scores", scores), ("affinities", affinities)):
        if not jnp.issubdtype(value.dtype, jnp.floating):  # pyright: ignore
            raise ArgumentError(f"{name} are of {value.dtype}; expected floating numbers.")  # pyright: ignore
    min_affinity = _check_affinity(min_affinity)
    max_people = _check_limit("max_people", max_people, joints * k)
    min_joints = check_integer("min_joints", min_joints, 1, joints, example=1)
    peaks = Peaks(*(jnp.asarray(value).astype(jnp.float32) for value in peaks))
    affinities = jnp.asarray(affinities).astype(jnp.float32)
    return _assemble(peaks, affinities, skeleton, min_affinity, max_people, min_joints)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _assemble(peaks, affinities, skeleton, min_affinity, max_people, min_joints):
    joints, k = peaks.scores.shape
    first, second = (jnp.array([limb[end] for limb in skeleton.limbs]) for end in (0, 1))
    is_found = peaks.scores > 0
    is_pair = is_found[first][:, :, None] & is_found[second][:, None]
    affinities = jnp.where(is_pair, affinities, -jnp.inf)
    partners = jax.vmap(lambda matrix: _match_greedily(matrix, min_affinity))(affinities)
    # The person of a candidate is the candidate nearest to the root that limbs connect it with.
    person = jnp.arange(joints * k).reshape(joints, k)
    for limb, (a, b) in enumerate(skeleton.limbs):
        # Partner k is beyond the row and is dropped.
        partner = jnp.where(partners[limb] >= 0, partners[limb], k)
        person = person.at[b, partner].set(person[a], mode="drop")
    joint = jnp.broadcast_to(jnp.arange(joints)[:, None], (joints, k))
    target = jnp.where(is_found, person, joints * k)
    scores = jnp.zeros((joints * k, joints), jnp.float32)
    scores = scores.at[target, joint].set(peaks.scores, mode="drop")
    points = jnp.full((joints * k, joints, 2), jnp.nan, jnp.float32)
    points = points.at[target, joint].set(peaks.points, mode="drop")
    is_person = (scores > 0).sum(1) >= min_joints
    total = jnp.where(is_person, scores.sum(1), 0.0)
    best, index = jax.lax.top_k(total, max_people)
    is_kept = (best > 0)[:, None]
    return People(
        jnp.where(is_kept[..., None], points[index], jnp.nan),
        jnp.where(is_kept, scores[index], 0.0),
    )


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
      image_shape: height and width of the images, pixels.
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
      >>> np.asarray(people.points).round(2).tolist()
      [[[[8.0, 3.0], [8.0, 13.0]]]]
    """
    _check_skeleton(skeleton)
    height, width, stride = _check_outputs(outputs, skeleton, image_shape)
    joints = len(skeleton.joints)
    max_peaks = _check_limit("max_peaks", max_peaks, height * width)
    max_people = _check_limit("max_people", max_people, joints * max_peaks)
    min_joints = check_integer("min_joints", min_joints, 1, joints, example=1)
    samples = check_integer("samples", samples, 2, example=10)
    threshold = check_share("threshold", threshold, 0.1)
    threshold = check_positive("threshold", threshold, example=0.1)
    min_affinity = _check_affinity(min_affinity)
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
        peaks = _find_peaks(heat, stride, max_peaks, threshold)
        affinities = _line_integrals(fields, peaks.points, skeleton.limbs, stride, samples)
        return _assemble(peaks, affinities, skeleton, min_affinity, max_people, min_joints)

    return jax.vmap(of_image)(heat[:, -1].astype(jnp.float32), fields[:, -1].astype(jnp.float32))
