"""Boxes and masks of objects: overlap, anchors, matching, suppression, RoIAlign.

A box is (x1, y1, x2, y2) in pixels: left, upper, right and lower edge. A pixel in column 3 reaches
from x = 3 to x = 4, so the box of columns 3 to 5 has x1 = 3 and x2 = 6. All functions are pure and
have fixed shapes. They work under `jax.jit`, and for a batch under `jax.vmap`.

Example:
  >>> anchors = Anchors(strides=(8,), sizes=((8.0,),), ratios=(1.0,)).boxes(16, 16)
  >>> truth = jnp.array([[1.0, 0.0, 9.0, 8.0]])
  >>> index = match_anchors(jnp.asarray(anchors), truth, jnp.array([True]))
  >>> index.tolist()
  [0, -1, -1, -1]
  >>> offsets = encode(truth, jnp.asarray(anchors[:1]))
  >>> offsets.round(3).tolist()
  [[1.25, 0.0, 0.0, 0.0]]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.arguments import (
    ArgumentError,
    check_image_size,
    check_integer,
    check_positive,
    check_share,
    format_array,
    format_value,
    is_real,
)

Array = jax.Array | np.ndarray
"""An array of JAX or NumPy, or a traced one."""
VARIANCES = (0.1, 0.2)
"""Units of the offsets of a box's center and of the logarithm of its size.

They are those of SSD's published code (Liu et al. 2016).
"""
NEGATIVE = -1
"""Index of an anchor that is background."""
IGNORED = -2
"""Index of an anchor that is neither an object nor background."""


# Arguments


def _check_boxes(name: str, boxes: Any) -> jax.Array:
    """Return boxes as float32 [n, 4].

    Raises:
      ArgumentError: they are no array of numbers of that shape.
    """
    shape, dtype = getattr(boxes, "shape", None), getattr(boxes, "dtype", None)
    if shape is None or dtype is None or len(shape) != 2 or shape[1] != 4 or not is_real(dtype):
        raise ArgumentError(
            f"{name} is {format_array(boxes)}; expected boxes (x1, y1, x2, y2) of shape [n, 4]. "
            f"Write {name}=jnp.array([[0.0, 0.0, 8.0, 8.0]]), or jax.vmap for a batch."
        )
    return jnp.asarray(boxes).astype(jnp.float32)


def _check_row(name: str, values: Any, n: int, kind: Any, expected: str) -> jax.Array:
    """Return an array [n] with a value for each box.

    Raises:
      ArgumentError: it has another shape or type.
    """
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", None)
    if shape != (n,) or dtype is None or not jnp.issubdtype(dtype, kind):
        raise ArgumentError(
            f"{name} is {format_array(values)} for {n} boxes; expected {expected} for each. "
            f"Write {name}=jnp.zeros({n}, {jnp.dtype(_EXAMPLES[kind]).name!r})."
        )
    return jnp.asarray(values)


_EXAMPLES = {jnp.floating: "float32", jnp.integer: "int32", jnp.bool_: "bool"}


# Geometry


def areas(boxes: Array) -> jax.Array:
    """Return the areas of boxes, in square pixels.

    Args:
      boxes: [n, 4].

    Returns:
      float32 [n]; 0 where a right edge is left of the left edge, or a lower one above the upper.

    Raises:
      ArgumentError: the boxes have another shape.

    Example:
      >>> areas(jnp.array([[0, 0, 2, 3], [4, 4, 1, 5]])).tolist()
      [6.0, 0.0]
    """
    boxes = _check_boxes("boxes", boxes)
    sides = jnp.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
    return sides[:, 0] * sides[:, 1]


def iou(boxes: Array, others: Array) -> jax.Array:
    """Return the intersection over union of all pairs of boxes.

    Args:
      boxes: [n, 4].
      others: [m, 4].

    Returns:
      float32 [n, m] in 0..1; 0 for two boxes without area.

    Raises:
      ArgumentError: the boxes have another shape.

    Example:
      >>> iou(jnp.array([[0, 0, 2, 2]]), jnp.array([[0, 0, 2, 2], [1, 0, 3, 2]])).round(3).tolist()
      [[1.0, 0.3330000042915344]]
    """
    boxes, others = _check_boxes("boxes", boxes), _check_boxes("others", others)
    # [n, m, 2]
    upper_left = jnp.maximum(boxes[:, None, :2], others[None, :, :2])
    lower_right = jnp.minimum(boxes[:, None, 2:], others[None, :, 2:])
    sides = jnp.maximum(lower_right - upper_left, 0.0)
    intersection = sides[..., 0] * sides[..., 1]
    union = areas(boxes)[:, None] + areas(others)[None] - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1.0), 0.0)


def clip(boxes: Array, height: int, width: int) -> jax.Array:
    """Return boxes cut off at the borders of an image.

    Args:
      boxes: [n, 4].
      height: of the image, pixels.
      width: of the image, pixels.

    Returns:
      float32 [n, 4].

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> clip(jnp.array([[-2.0, 1.0, 9.0, 5.0]]), 4, 8).tolist()
      [[0.0, 1.0, 8.0, 4.0]]
    """
    boxes = _check_boxes("boxes", boxes)
    height = check_integer("height", height, example=64)
    width = check_integer("width", width, example=64)
    limits = jnp.array([[width, height, width, height]], jnp.float32)
    return jnp.clip(boxes, jnp.zeros_like(limits), limits)


def _centers_and_sizes(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]


def _check_pairs(name: str, values: Any, anchors: Any) -> tuple[jax.Array, jax.Array]:
    pair = _check_boxes(name, values), _check_boxes("anchors", anchors)
    if pair[0].shape != pair[1].shape:
        raise ArgumentError(
            f"{name} has {len(values)} rows and anchors {len(anchors)}; expected as many. "
            f"Write {name}={name}[index] for those of the anchors."
        )
    return pair


def _check_variances(variances: Any) -> tuple[float, float]:
    if not isinstance(variances, (tuple, list)) or len(variances) != 2:
        raise ArgumentError(
            f"variances is {format_value(variances)}; expected two numbers above 0. "
            f"Write variances={VARIANCES}."
        )
    center, size = (check_positive("variances", v, example=VARIANCES) for v in variances)
    return center, size


def encode(boxes: Array, anchors: Array, variances: tuple[float, float] = VARIANCES) -> jax.Array:
    """Return the offsets that turn anchors into boxes.

    For an anchor of center (cx, cy), width w and height h they are (cx' - cx) / w, (cy' - cy) / h,
    log(w' / w) and log(h' / h), each divided by its variance.

    Args:
      boxes: [n, 4], each with an area.
      anchors: [n, 4], one for each box.
      variances: units of the centers' and of the sizes' offsets. (1.0, 1.0) is the form of the
        paper.

    Returns:
      float32 [n, 4].

    Raises:
      ArgumentError: an argument is invalid.

    References:
      Liu et al. 2016, "SSD: single shot multibox detector", equation 2 (arXiv:1512.02325).

    Example:
      >>> anchors = jnp.array([[0.0, 0.0, 10.0, 10.0]])
      >>> encode(jnp.array([[1.0, 0.0, 11.0, 10.0]]), anchors).round(3).tolist()
      [[1.0, 0.0, 0.0, 0.0]]
    """
    boxes, anchors = _check_pairs("boxes", boxes, anchors)
    center_unit, size_unit = _check_variances(variances)
    center, size = _centers_and_sizes(boxes)
    anchor_center, anchor_size = _centers_and_sizes(anchors)
    shift = (center - anchor_center) / anchor_size / center_unit
    growth = jnp.log(size / anchor_size) / size_unit
    return jnp.concatenate([shift, growth], axis=1)


def decode(offsets: Array, anchors: Array, variances: tuple[float, float] = VARIANCES) -> jax.Array:
    """Return the boxes that offsets make of anchors; it inverts `encode`.

    Sizes grow at most 62.5-fold, as in Detectron, so that an untrained network cannot overflow.

    Args:
      offsets: [n, 4], as `encode` returns them.
      anchors: [n, 4].
      variances: as in `encode`.

    Returns:
      float32 [n, 4].

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> decode(jnp.array([[1.0, 0.0, 0.0, 0.0]]), jnp.array([[0.0, 0.0, 10.0, 10.0]])).tolist()
      [[1.0, 0.0, 11.0, 10.0]]
    """
    offsets, anchors = _check_pairs("offsets", offsets, anchors)
    center_unit, size_unit = _check_variances(variances)
    anchor_center, anchor_size = _centers_and_sizes(anchors)
    center = anchor_center + offsets[:, :2] * center_unit * anchor_size
    size = anchor_size * jnp.exp(jnp.minimum(offsets[:, 2:] * size_unit, _MAX_LOG_GROWTH))
    return jnp.concatenate([center - size / 2, center + size / 2], axis=1)


_MAX_LOG_GROWTH = math.log(1000 / 16)


# Anchors


@dataclass(frozen=True)
class Anchors:
    """Anchor boxes on the maps of a detector: every size and ratio at every cell.

    A map of stride s has a cell for every s pixels, ceil(h / s) by ceil(w / s) of them. An anchor
    of size a and ratio r has its center in the middle of the cell, the area a^2 and r times as much
    height as width.

    Attributes:
      strides: pixels between the cells of each map.
      sizes: for each map, the square roots of the anchors' areas, in pixels.
      ratios: heights of the anchors relative to their widths.

    Raises:
      ArgumentError: in the constructor, for an invalid value.

    References:
      Liu et al. 2016, section 2.2 (arXiv:1512.02325); Ren et al. 2015, section 3.1.1
      (arXiv:1506.01497).

    Example:
      >>> anchors = Anchors(strides=(4, 8), sizes=((8.0,), (16.0, 20.0)), ratios=(1.0, 4.0))
      >>> anchors.boxes(8, 8).shape, anchors.per_cell
      ((12, 4), (2, 4))
      >>> anchors.boxes(8, 8)[:2].tolist()
      [[-2.0, -2.0, 6.0, 6.0], [0.0, -6.0, 4.0, 10.0]]
    """

    strides: tuple[int, ...]
    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        example = "Write Anchors(strides=(4, 8), sizes=((8.0,), (16.0,)))."
        fields = (self.strides, self.sizes, self.ratios)
        if not all(isinstance(value, tuple) and value for value in fields) or not all(
            isinstance(level, tuple) and level for level in self.sizes
        ):
            raise ArgumentError(
                f"anchors are {format_value(fields)}; expected tuples of strides, of sizes for "
                f"each stride, and of ratios. {example}"
            )
        if len(self.strides) != len(self.sizes):
            raise ArgumentError(
                f"strides has {len(self.strides)} maps and sizes {len(self.sizes)}; "
                f"expected as many. {example}"
            )
        for stride in self.strides:
            check_integer("strides", stride, example="(4, 8)")
        for name, values in (("sizes", sum(self.sizes, ())), ("ratios", self.ratios)):
            for value in values:
                check_positive(name, value, example="((8.0,),)" if name == "sizes" else "(1.0,)")

    @property
    def per_cell(self) -> tuple[int, ...]:
        """Number of anchors at a cell of each map."""
        return tuple(len(sizes) * len(self.ratios) for sizes in self.sizes)

    def boxes(self, height: int, width: int) -> np.ndarray:
        """Return the anchors of an image, ordered by map, row, column, size and ratio.

        Args:
          height: of the image, pixels.
          width: of the image, pixels.

        Returns:
          float32 [a, 4]. Anchors may reach beyond the image.

        Raises:
          ArgumentError: a side is no integer of at least 1.
        """
        height = check_integer("height", height, example=64)
        width = check_integer("width", width, example=64)
        levels = []
        for stride, sizes in zip(self.strides, self.sizes, strict=True):
            shapes = [
                (size / math.sqrt(ratio), size * math.sqrt(ratio))
                for size in sizes
                for ratio in self.ratios
            ]
            y, x = ((np.arange(-(-side // stride)) + 0.5) * stride for side in (height, width))
            # [rows, columns, 1, 2] and [1, 1, anchors, 2], both (x, y)
            center = np.stack(np.meshgrid(x, y), -1)[:, :, None]
            half = np.array(shapes)[None, None] / 2
            levels.append(np.concatenate([center - half, center + half], -1).reshape(-1, 4))
        return np.concatenate(levels).astype(np.float32)


# Matching


def match_anchors(
    anchors: Array,
    boxes: Array,
    valid: Array,
    *,
    positive: float = 0.5,
    negative: float | None = None,
) -> jax.Array:
    """Return the object that each anchor is trained to detect.

    First every object gets an anchor of its own: of all pairs, the one of the greatest overlap is
    matched, then the greatest of the others, and so on. An object that overlaps no anchor gets
    none. Every other anchor gets the object of its greatest overlap, if that is at least
    `positive`.

    Args:
      anchors: [a, 4].
      boxes: [m, 4] of the objects, m > 0.
      valid: bool [m]; False marks rows that only pad the objects.
      positive: least intersection over union of an anchor and its object.
      negative: overlap below which an anchor is background. Between the two it is ignored. None is
        `positive`.

    Returns:
      int32 [a]: the row of the object, `NEGATIVE` (-1) for background, `IGNORED` (-2) for neither.

    Raises:
      ArgumentError: an argument is invalid.

    References:
      Liu et al. 2016, section 2.2, "Matching strategy" (arXiv:1512.02325). With 0.7 and 0.3 it is
      the rule of Ren et al. 2015, section 3.1.2 (arXiv:1506.01497).

    Example:
      >>> anchors = jnp.array([[0.0, 0.0, 8.0, 8.0], [1.0, 0.0, 9.0, 8.0], [20.0, 0.0, 28.0, 8.0]])
      >>> boxes = jnp.array([[0.0, 0.0, 8.0, 8.0], [24.0, 0.0, 32.0, 8.0]])
      >>> match_anchors(anchors, boxes, jnp.array([True, True])).tolist()
      [0, 0, 1]
    """
    anchors, boxes = _check_boxes("anchors", anchors), _check_boxes("boxes", boxes)
    valid = _check_row("valid", valid, len(boxes), jnp.bool_, "a bool")
    positive = check_share("positive", positive, 0.5)
    negative = positive if negative is None else check_share("negative", negative, 0.3)
    if negative > positive:
        raise ArgumentError(
            f"negative is {negative}, more than positive, {positive}; expected at most that. "
            f"Write negative={positive}."
        )
    if not len(boxes) or not len(anchors):
        raise ArgumentError(
            f"there are {len(anchors)} anchors and {len(boxes)} boxes; expected at least one of "
            "each. Write a row of zeros and valid=jnp.array([False]) for an image without objects."
        )
    overlaps = jnp.where(valid[None], iou(anchors, boxes), -1.0)
    best = overlaps.max(1)
    index = jnp.where(best >= negative, IGNORED, NEGATIVE)
    index = jnp.where(best >= positive, overlaps.argmax(1), index).astype(jnp.int32)

    def match_one(_, carry):
        index, remaining = carry
        row, column = jnp.unravel_index(remaining.argmax(), remaining.shape)
        overlap = remaining[row, column]
        matched = jnp.where(overlap > 0, column.astype(jnp.int32), index[row])
        remaining = remaining.at[row].set(-1.0).at[:, column].set(-1.0)
        return index.at[row].set(matched), remaining

    return jax.lax.fori_loop(0, len(boxes), match_one, (index, overlaps))[0]


# Suppression


def non_max_suppression(
    boxes: Array,
    scores: Array,
    *,
    classes: Array | None = None,
    threshold: float = 0.5,
    max_outputs: int = 100,
    min_score: float = -math.inf,
) -> jax.Array:
    """Return the best boxes, without those that overlap a better one.

    Boxes are visited from the highest score. A box is kept if its intersection over union with
    every kept box is at most `threshold`. Equal scores are visited in the order of their rows. The
    time grows with n^2, so take the best few hundred boxes first.

    Args:
      boxes: [n, 4].
      scores: float [n]. One that is not a number is left out.
      classes: integers [n]; boxes of different classes do not suppress each other. None is one
        class.
      threshold: greatest overlap of two kept boxes, 0..1.
      max_outputs: length of the result.
      min_score: boxes of this score or less are left out.

    Returns:
      int32 [max_outputs]: rows of the kept boxes by falling score, then -1.

    Raises:
      ArgumentError: an argument is invalid.

    References:
      Girshick et al. 2014, section 2.2 (arXiv:1311.2524).

    Example:
      >>> boxes = jnp.array([[0.0, 0.0, 8.0, 8.0], [1.0, 0.0, 9.0, 8.0], [20.0, 0.0, 28.0, 8.0]])
      >>> scores = jnp.array([0.9, 0.8, 0.7])
      >>> non_max_suppression(boxes, scores, max_outputs=3).tolist()
      [0, 2, -1]
      >>> classes = jnp.array([0, 1, 0])
      >>> non_max_suppression(boxes, scores, classes=classes, max_outputs=3).tolist()
      [0, 1, 2]
    """
    boxes = _check_boxes("boxes", boxes)
    n = len(boxes)
    scores = _check_row("scores", scores, n, jnp.floating, "a floating number")
    threshold = check_share("threshold", threshold, 0.5)
    max_outputs = check_integer("max_outputs", max_outputs, example=100)
    if not isinstance(min_score, (int, float)) or isinstance(min_score, bool):
        raise ArgumentError(
            f"min_score is {format_value(min_score)}; expected a number. Write min_score=0.01."
        )
    if not n:
        return jnp.full(max_outputs, -1, jnp.int32)
    if classes is not None:
        classes = _check_row("classes", classes, n, jnp.integer, "an integer")
    # The comparison is false for NaN.
    valid = scores > jnp.asarray(min_score, scores.dtype)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    overlaps = iou(boxes[order], boxes[order]) > threshold
    if classes is not None:
        overlaps &= classes[order][:, None] == classes[order][None]
    is_better = jnp.tri(n, k=-1, dtype=bool)

    def visit(i, keep):
        return keep.at[i].set(keep[i] & ~(keep & overlaps[i] & is_better[i]).any())

    keep = jax.lax.fori_loop(0, n, visit, valid[order])
    position = jnp.where(keep, jnp.cumsum(keep) - 1, max_outputs)
    outputs = jnp.full(max_outputs, -1, jnp.int32)
    return outputs.at[position].set(order.astype(jnp.int32), mode="drop")


class Detections(NamedTuple):
    """Detected objects of an image, or with a first axis more those of several, best first.

    Attributes:
      boxes: float32 [m, 4], inside the image.
      scores: float32 [m] in 0..1; 0 where there are fewer than m objects.
      classes: int32 [m]; -1 where there are fewer than m objects.
      sources: int32 [m]: the rows of the boxes that the objects were selected from, or -1.
    """

    boxes: Any
    scores: Any
    classes: Any
    sources: Any


def select_detections(
    boxes: Array,
    scores: Array,
    image_shape: tuple[int, int],
    *,
    max_outputs: int = 100,
    threshold: float = 0.45,
    num_candidates: int = 200,
) -> Detections:
    """Return the detected objects of an image, from a detector's boxes and scores.

    Of all pairs of box and class, the `num_candidates` of the highest scores are taken. Their
    boxes are cut off at the image. Non-maximum suppression within each class follows.

    Args:
      boxes: [n, 4] for all classes, or [n, k, 4] with a box for each class.
      scores: float [n, k] in 0..1 for each class.
      image_shape: height and width of the image, pixels.
      max_outputs: length of the result.
      threshold: greatest overlap of two objects of a class.
      num_candidates: pairs that are compared.

    Returns:
      `Detections` with m = `max_outputs`.

    Raises:
      ArgumentError: an argument is invalid.

    References:
      Liu et al. 2016, section 3.7, whose threshold is the default and whose 200 are the candidates
      here (arXiv:1512.02325).

    Example:
      >>> boxes = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 1.0, 8.0, 9.0]])
      >>> scores = jnp.array([[0.1, 0.9], [0.3, 0.6]])
      >>> found = select_detections(boxes, scores, (16, 16), max_outputs=3)
      >>> found.classes.tolist(), found.sources.tolist()
      ([1, 0, -1], [0, 1, -1])
    """
    shape, box_shape = (getattr(array, "shape", None) for array in (scores, boxes))
    if shape is None or len(shape) != 2 or box_shape not in ((shape[0], 4), (*shape, 4)):
        raise ArgumentError(
            f"boxes are {box_shape} and scores {shape}; expected [n, 4] or [n, k, 4], and [n, k]. "
            "Write jax.vmap(...) for a batch."
        )
    image_shape = check_image_size(image_shape)
    threshold = check_share("threshold", threshold, 0.45)
    max_outputs = check_integer("max_outputs", max_outputs, example=100)
    num_candidates = check_integer("num_candidates", num_candidates, example=200)
    if not all(shape):
        row = jnp.full(max_outputs, -1, jnp.int32)
        return Detections(jnp.zeros((max_outputs, 4)), jnp.zeros(max_outputs), row, row)
    return _select_detections(boxes, scores, image_shape, max_outputs, threshold, num_candidates)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _select_detections(boxes, scores, image_shape, max_outputs, threshold, num_candidates):
    n, k = scores.shape
    # [n k], box by box
    best, pairs = jax.lax.top_k(scores.reshape(-1), min(num_candidates, n * k))
    rows, classes = pairs // k, pairs % k
    selected = boxes[rows, classes] if boxes.ndim == 3 else boxes[rows]
    selected = clip(selected, *image_shape)
    kept = non_max_suppression(
        selected,
        best,
        classes=classes,
        threshold=threshold,
        max_outputs=max_outputs,
        min_score=0.0,
    )
    is_object = kept >= 0
    return Detections(
        jnp.where(is_object[:, None], selected[kept], 0.0),
        jnp.where(is_object, best[kept], 0.0),
        jnp.where(is_object, classes[kept], -1),
        jnp.where(is_object, rows[kept], -1),
    )


# Regions


def _interpolation(points: jax.Array, n: int) -> jax.Array:
    """Return weights of linear interpolation between n equidistant values.

    Args:
      points: float32 [..., p], where value i is at i. Points outside take the nearest value.
      n: number of values.

    Returns:
      float32 [..., p, n].
    """
    points = jnp.clip(points, 0.0, n - 1.0)[..., None]
    places = jnp.arange(n, dtype=jnp.float32).reshape((1,) * (points.ndim - 1) + (n,))
    return jnp.maximum(1.0 - jnp.abs(points - places), 0.0)


def roi_align(
    features: Array, boxes: Array, *, size: int, stride: int, samples: int = 2
) -> jax.Array:
    """Return the features inside boxes, each resampled to a square of bins.

    A box is divided into size x size bins, without rounding. A bin is the mean of
    samples x samples points, each interpolated bilinearly. The features of cell i belong to the
    cell's center, the pixel (i + 0.5) stride. Points beyond the outermost centers take the value
    there. The weights of rows and columns are separate, so it is computed as matrix products.

    Args:
      features: floating [h, w, c] of an image.
      boxes: [n, 4], in pixels of the image.
      size: bins of a side.
      stride: pixels of the image for each cell of the features.
      samples: points of a bin in each direction.

    Returns:
      [n, size, size, c] in the dtype of the features.

    Raises:
      ArgumentError: an argument is invalid.

    References:
      He et al. 2017, "Mask R-CNN", section 3 (arXiv:1703.06870). The half cell is that of the
      authors' later code, Detectron2.

    Example:
      >>> features = jnp.arange(4.0).reshape(1, 4, 1) * jnp.ones((4, 1, 1))
      >>> box = jnp.array([[8.0, 8.0, 24.0, 24.0]])
      >>> roi_align(features, box, size=2, stride=8)[0, :, :, 0].tolist()
      [[1.0, 2.0], [1.0, 2.0]]
    """
    shape, dtype = getattr(features, "shape", ()), getattr(features, "dtype", None)
    if dtype is None or len(shape) != 3 or 0 in shape or not jnp.issubdtype(dtype, jnp.floating):
        raise ArgumentError(
            f"features are {format_array(features)}; expected floating numbers of shape [h, w, c]. "
            "Write jax.vmap(...) for a batch."
        )
    boxes = _check_boxes("boxes", boxes)
    size = check_integer("size", size, example=7)
    stride = check_integer("stride", stride, example=8)
    samples = check_integer("samples", samples, example=2)
    # Centers of the sampled parts, as shares of a side
    shares = (jnp.arange(size * samples, dtype=jnp.float32) + 0.5) / (size * samples)

    def weights(low, high, n):
        """Return the weights of n cells in each bin, [boxes, size, n]."""
        points = low[:, None] + (high - low)[:, None] * shares[None]
        cells = _interpolation(points / stride - 0.5, n)
        return cells.reshape(-1, size, samples, n).mean(2).astype(dtype)

    rows = weights(boxes[:, 1], boxes[:, 3], shape[0])
    columns = weights(boxes[:, 0], boxes[:, 2], shape[1])
    return jnp.einsum("nph,hwc,nqw->npqc", rows, features, columns)


def paste_masks(masks: Array, boxes: Array, height: int, width: int) -> jax.Array:
    """Return the masks of boxes as masks of the image.

    It inverts `roi_align`: the probability of a pixel whose center lies in the box is interpolated
    bilinearly, and outside the box there is no object.

    Args:
      masks: float32 [n, s, s] in 0..1, of bins of the boxes.
      boxes: [n, 4].
      height: of the image, pixels.
      width: of the image, pixels.

    Returns:
      bool [n, height, width], where the probability is at least 0.5.

    Raises:
      ArgumentError: an argument is invalid.

    References:
      He et al. 2017, section 3.1, "Inference" (arXiv:1703.06870).

    Example:
      >>> pasted = paste_masks(jnp.ones((1, 2, 2)), jnp.array([[1.0, 0.0, 3.0, 1.0]]), 2, 4)
      >>> pasted[0].astype(int).tolist()
      [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    boxes = _check_boxes("boxes", boxes)
    height = check_integer("height", height, example=64)
    width = check_integer("width", width, example=64)
    shape = getattr(masks, "shape", None)
    is_square = shape is not None and len(shape) == 3 and shape[1] == shape[2] > 0
    if shape is None or not is_square or len(masks) != len(boxes):
        raise ArgumentError(
            f"masks are of shape {shape} for {len(boxes)} boxes; expected [{len(boxes)}, s, s]. "
            "Write masks[jnp.arange(n), :, :, classes] for those of the predicted classes."
        )
    bins = shape[1]

    def weights(low, high, side):
        """Return the weights of the bins for each pixel, [boxes, side, bins]."""
        centers = jnp.arange(side, dtype=jnp.float32)[None] + 0.5
        shares = (centers - low[:, None]) / jnp.maximum(high - low, 1e-6)[:, None]
        inside = (shares >= 0) & (shares <= 1)
        return jnp.where(inside[..., None], _interpolation(shares * bins - 0.5, bins), 0.0)

    rows = weights(boxes[:, 1], boxes[:, 3], height)
    columns = weights(boxes[:, 0], boxes[:, 2], width)
    return jnp.einsum("nhp,npq,nwq->nhw", rows, masks.astype(jnp.float32), columns) >= 0.5


def mask_iou(masks: Array, others: Array) -> jax.Array:
    """Return the intersection over union of all pairs of masks.

    Args:
      masks: bool [n, h, w].
      others: bool [m, h, w].

    Returns:
      float32 [n, m] in 0..1; 0 for two empty masks.

    Raises:
      ArgumentError: they are not masks of one size.

    Example:
      >>> mask_iou(jnp.array([[[True, True]]]), jnp.array([[[True, False]]])).tolist()
      [[0.5]]
    """
    shapes = [getattr(array, "shape", ()) for array in (masks, others)]
    kinds = [getattr(array, "dtype", None) for array in (masks, others)]
    if (
        {len(shape) for shape in shapes} != {3}
        or shapes[0][1:] != shapes[1][1:]
        or {str(kind) for kind in kinds} != {"bool"}
    ):
        raise ArgumentError(
            f"masks are {kinds[0]} {shapes[0]} and others {kinds[1]} {shapes[1]}; expected bool "
            "[n, h, w] and [m, h, w]. Write instances[None] == numbers[:, None, None]."
        )
    flat, other_flat = (
        jnp.asarray(array).reshape(len(array), -1).astype(jnp.float32) for array in (masks, others)
    )
    intersection = flat @ other_flat.T
    union = flat.sum(1)[:, None] + other_flat.sum(1)[None] - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1.0), 0.0)
