"""Key points of several people: heat maps, part affinity fields, peaks, and their assembly.

It is the geometry of Cao et al. 2017, "Realtime multi-person 2D pose estimation using part affinity
fields" (arXiv:1611.08050), without a network. All functions are pure and have fixed shapes. They
work under `jax.jit`, and for a batch under `jax.vmap`.

A point is (x, y) in pixels of the image, as in `jaxcnn.boxes`: the center of the first pixel is
(0.5, 0.5). A cell of a map of stride s covers s x s pixels, and the center of the first one is
(s / 2, s / 2).

Example:
  The maps of two people of two joints and a limb, and the people that are found on them.

  >>> skeleton = Skeleton(("head", "foot"), ((0, 1),))
  >>> points = jnp.array([[[4.0, 3.0], [4.0, 13.0]], [[12.0, 3.0], [12.0, 13.0]]])
  >>> visible = jnp.ones((2, 2), bool)
  >>> heat = heat_maps(points, visible, (16, 16), stride=2, sigma=2.0)
  >>> fields = part_affinity_fields(
  ...     points, visible, skeleton.limbs, (16, 16), stride=2, limb_width=2.0
  ... )
  >>> peaks = find_peaks(heat, stride=2, max_peaks=2)
  >>> affinities = line_integrals(fields, peaks.points, skeleton.limbs, stride=2)
  >>> people = assemble_people(peaks, affinities, skeleton, max_people=2)
  >>> people.points.round(1).tolist()
  [[[4.0, 3.0], [4.0, 13.0]], [[12.0, 3.0], [12.0, 13.0]]]
"""

from __future__ import annotations

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
    format_array,
    format_value,
)

# What help() shows. The checks are shared with `jaxcnn.models.pose` alone.
__all__ = [
    "Peaks",
    "People",
    "Skeleton",
    "assemble_people",
    "cell_centers",
    "find_peaks",
    "heat_maps",
    "hidden_limbs",
    "line_integrals",
    "match_greedily",
    "part_affinity_fields",
]

Array = jax.Array | np.ndarray
"""An array of JAX or NumPy, or a traced one."""


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
        joints = len(self.joints)
        if fault := _find_fault(self.limbs, joints):
            example = "((0, 1),)" if joints == 2 else f"tuple((0, i) for i in range(1, {joints}))"
            raise ArgumentError(
                f"limbs is {format_value(self.limbs)}, where {fault}; expected {joints - 1} pairs "
                "of joints' numbers, from the root outwards, that reach each joint once. "
                f"Write limbs={example}, for one with root 0."
            )
        object.__setattr__(self, "joints", tuple(self.joints))
        object.__setattr__(self, "limbs", _as_pairs(self.limbs, joints))


def _as_pairs(limbs: Any, joints: int) -> tuple[tuple[int, int], ...] | None:
    """Return limbs as pairs of numbers of joints, or None if they are anything else."""
    if not isinstance(limbs, (tuple, list)):
        return None
    for limb in limbs:
        if not isinstance(limb, (tuple, list)) or len(limb) != 2:
            return None
        if any(isinstance(i, bool) or not isinstance(i, (int, np.integer)) for i in limb):
            return None
        if not all(0 <= i < joints for i in limb):
            return None
    return tuple((int(first), int(second)) for first, second in limbs)


def _find_fault(limbs: Any, joints: int) -> str:
    """Return what keeps limbs from reaching each joint once from the root, or an empty text."""
    if not isinstance(limbs, (tuple, list)):
        return "there are no pairs"
    reached = set()
    for number, limb in enumerate(limbs):
        pairs = _as_pairs((limb,), joints)
        if pairs is None:
            return f"limbs[{number}] is no pair of numbers from 0 to {joints - 1}"
        first, second = pairs[0]
        if not number:
            reached.add(first)
        if first not in reached:
            return f"limbs[{number}] starts at joint {first}, which no limb before it reaches"
        if second in reached:
            return f"limbs[{number}] reaches joint {second} again"
        reached.add(second)
    missing = set(range(joints)) - reached
    return f"no limb reaches joint {min(missing)}" if missing else ""


# Arguments


def check_skeleton(skeleton: Any, example: str = "skeleton=model.skeleton") -> None:
    """Check that an argument is a skeleton.

    Raises:
      ArgumentError: it is anything else. The message has the example of what to write.
    """
    if not isinstance(skeleton, Skeleton):
        raise ArgumentError(
            f"skeleton is {format_value(skeleton)}; expected a Skeleton. Write {example}."
        )


def _check_floats(
    name: str,
    value: Any,
    shape: tuple[int | None, ...],
    expected: str,
    *,
    can_be_empty: bool = False,
) -> jax.Array:
    """Return an array of floating numbers.

    Args:
      name: of the argument.
      value: its value.
      shape: sizes of the axes; None is any.
      expected: end of the message.
      can_be_empty: a size may be 0.

    Raises:
      ArgumentError: it has another shape or type.
    """
    is_array = hasattr(value, "shape") and hasattr(value, "dtype")
    if (
        not is_array
        or len(value.shape) != len(shape)
        or any(n not in (None, size) for n, size in zip(shape, value.shape, strict=True))
        or (0 in value.shape and not can_be_empty)
        or not jnp.issubdtype(value.dtype, jnp.floating)
    ):
        raise ArgumentError(f"{name} is {format_array(value)}; expected {expected}")
    return jnp.asarray(value)


def _check_maps(name: str, maps: Any, shape: tuple[int | None, ...], axes: str) -> jax.Array:
    """Return maps of one image as float32.

    Raises:
      ArgumentError: they have another shape or type.
    """
    expected = (
        f"float32 {axes}. Leave out the axes of images and stages, or write jax.vmap for a batch."
    )
    return _check_floats(name, maps, shape, expected).astype(jnp.float32)


def _check_points(points: Any, visible: Any) -> tuple[jax.Array, jax.Array]:
    """Return points float32 [p, J, 2] and visibility bool [p, J].

    Raises:
      ArgumentError: they have another shape or type.
    """
    points = _check_floats(
        "points",
        points,
        (None, None, 2),
        "key points (x, y), float [people, joints, 2]. "
        "Write points.astype('float32'), or jax.vmap for a batch.",
        can_be_empty=True,
    )
    shape, own = points.shape[:2], getattr(visible, "shape", None)
    if own != shape or getattr(visible, "dtype", None) != jnp.bool_:
        # COCO numbers visibility 0, 1 and 2.
        example = "visible > 0" if own == shape else f"jnp.ones({shape}, bool)"
        raise ArgumentError(
            f"visible is {format_array(visible)}; expected bool of shape {shape}, one for "
            f"each key point. Write visible={example}."
        )
    return points.astype(jnp.float32), jnp.asarray(visible)


def _check_grid(image_shape: Any, stride: Any) -> tuple[int, int, int]:
    """Return height and width of a map in cells, and its stride.

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
      ArgumentError: they are anything else, or there are none.
    """
    pairs = _as_pairs(limbs, joints)
    if not pairs:
        raise ArgumentError(
            f"limbs is {format_value(limbs)}; expected pairs of numbers of the {joints} joints. "
            "Write limbs=skeleton.limbs."
        )
    return pairs


def check_limit(name: str, value: Any, most: int) -> int:
    """Return a number of things to keep; None is 10, or all of them if they are fewer.

    Raises:
      ArgumentError: it is not from 1 to `most`.
    """
    default = min(10, most)
    return default if value is None else check_integer(name, value, 1, most, example=default)


def check_min_affinity(minimum: Any) -> float:
    """Return the affinity that a pair exceeds.

    Raises:
      ArgumentError: it is not a finite number.
    """
    is_number = isinstance(minimum, (int, float, np.floating)) and not isinstance(minimum, bool)
    if not is_number or not np.isfinite(minimum):
        raise ArgumentError(
            f"the least affinity is {format_value(minimum)}; expected a finite number. Write 0.2."
        )
    return float(minimum)


# Targets


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
    height, width, stride = _check_grid(image_shape, stride)
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
    return _part_affinity_fields(
        *_check_limb_arguments(points, visible, limbs, image_shape, stride, limb_width)
    )


@partial(jax.jit, static_argnums=(2, 4))
def _part_affinity_fields(points, visible, limbs, cells, limb_width):
    on_limb, unit = _on_limbs(points, limbs, cells, limb_width)
    on_limb &= _have_ends(visible, limbs)
    total = jnp.where(on_limb[..., None], unit[:, None, None], 0.0).sum(0)
    return total / jnp.maximum(on_limb.sum(0), 1).astype(total.dtype)[..., None]


def hidden_limbs(
    points: Array,
    visible: Array,
    limbs: tuple[tuple[int, int], ...],
    image_shape: tuple[int, int],
    *,
    stride: int,
    limb_width: float,
) -> jax.Array:
    """Return the cells on limbs with an end that is not visible.

    The fields there are unknown, so a loss leaves these cells out. The arguments and errors
    are those of `part_affinity_fields`, but points that are not visible are used.

    Returns:
      bool [h, w, len(limbs)].

    Example:
      >>> points, visible = jnp.array([[[1.0, 1.0], [3.0, 1.0]]]), jnp.array([[True, False]])
      >>> hidden_limbs(points, visible, ((0, 1),), (4, 4), stride=2, limb_width=1.0).tolist()
      [[[True], [True]], [[False], [False]]]
    """
    return _hidden_limbs(
        *_check_limb_arguments(points, visible, limbs, image_shape, stride, limb_width)
    )


@partial(jax.jit, static_argnums=(2, 4))
def _hidden_limbs(points, visible, limbs, cells, limb_width):
    on_limb, _ = _on_limbs(points, limbs, cells, limb_width)
    return (on_limb & ~_have_ends(visible, limbs)).any(0)


def _check_limb_arguments(points, visible, limbs, image_shape, stride, limb_width):
    """Return points, visibility, limbs, centers of cells and the limbs' width.

    Raises:
      ArgumentError: an argument is invalid.
    """
    points, visible = _check_points(points, visible)
    limbs = _check_limbs(limbs, points.shape[1])
    height, width, stride = _check_grid(image_shape, stride)
    limb_width = check_positive("limb_width", limb_width, example=2.0)
    return points, visible, limbs, cell_centers(height, width, stride), limb_width


def _ends(limbs):
    """Return the numbers of the limbs' first and of their second joints, int32 [L] each."""
    return jnp.array([limb[0] for limb in limbs]), jnp.array([limb[1] for limb in limbs])


def _have_ends(visible, limbs):
    """Return whose limbs have two visible ends, bool [p, 1, 1, L]."""
    first, second = _ends(limbs)
    return (visible[:, first] & visible[:, second])[:, None, None]


def _on_limbs(points, limbs, cells, limb_width):
    """Return the cells on each person's limbs, bool [p, h, w, L], and unit vectors [p, L, 2]."""
    first, second = (points[:, joints] for joints in _ends(limbs))
    length, unit = _lengths_and_units(second - first)
    offset = cells[None, :, :, None] - first[:, None, None]
    along = (offset * unit[:, None, None]).sum(-1)
    across = offset[..., 0] * unit[:, None, None, :, 1] - offset[..., 1] * unit[:, None, None, :, 0]
    is_between = (along >= 0) & (along <= length[:, None, None])
    has_length = (length > 0)[:, None, None]
    return is_between & (jnp.abs(across) <= limb_width) & has_length, unit


def _lengths_and_units(vectors):
    """Return the lengths of vectors [..., 2], and unit vectors; 0 for one without length."""
    lengths = jnp.sqrt(jnp.square(vectors).sum(-1))
    return lengths, vectors / jnp.where(lengths > 0, lengths, 1.0)[..., None]


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
    """People of an image. Those of several have another axis in front.

    They are sorted by the sum of their scores. A row whose scores are all 0 only pads.

    Attributes:
      points: float32 [m, J, 2]: (x, y) in pixels, NaN for a joint that was not found.
      scores: float32 [m, J]: height of each joint's peak, 0 where there is none.
    """

    points: Array
    scores: Array


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
    heat = _check_maps("heat", heat, (None, None, None), "[h, w, J]")
    stride = check_integer("stride", stride, example=2)
    max_peaks = check_limit("max_peaks", max_peaks, heat.shape[0] * heat.shape[1])
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
    fields = _check_maps("fields", fields, (None, None, None, 2), "[h, w, limbs, 2]")
    points = _check_floats(
        "points",
        points,
        (None, None, 2),
        "candidates (x, y), float [joints, k, 2]. Write points=find_peaks(heat, stride=2).points.",
        can_be_empty=True,
    )
    limbs = _check_limbs(limbs, len(points))
    if len(limbs) != fields.shape[2]:
        raise ArgumentError(
            f"there are {len(limbs)} limbs, but the fields have {fields.shape[2]}; expected a "
            "field for each limb. Write limbs=model.skeleton.limbs."
        )
    stride = check_integer("stride", stride, example=2)
    samples = check_integer("samples", samples, 2, example=10)
    return _line_integrals(fields, points.astype(jnp.float32), limbs, stride, samples)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _line_integrals(fields, points, limbs, stride, samples):
    first, second = (points[joints] for joints in _ends(limbs))
    # [L, k, k, 2]
    vector = second[:, None] - first[:, :, None]
    _, unit = _lengths_and_units(vector)
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
    affinity = _check_floats(
        "affinity",
        affinity,
        (None, None),
        "float [k, m] of all pairs. Write jax.vmap for several limbs.",
    )
    return _match_greedily(affinity, check_min_affinity(minimum))


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
    check_skeleton(skeleton)
    joints, limbs = len(skeleton.joints), len(skeleton.limbs)
    if not isinstance(peaks, Peaks):
        raise ArgumentError(
            f"peaks is {format_array(peaks)}; expected Peaks. The order is peaks, affinities, "
            "skeleton. Write peaks=find_peaks(heat, stride=2)."
        )
    arrays: dict[str, Any] = peaks._asdict() | {"affinities": affinities}
    shapes = [getattr(value, "shape", None) for value in arrays.values()]
    k = shapes[0][1] if shapes[0] is not None and len(shapes[0]) == 3 else 0
    if shapes != [(joints, k, 2), (joints, k), (limbs, k, k)] or not k:
        raise ArgumentError(
            f"peaks and affinities are of shapes {shapes}; expected points ({joints}, k, 2), "
            f"scores ({joints}, k) and affinities ({limbs}, k, k). "
            "Write peaks=find_peaks(heat, stride=2)."
        )
    for name, value in arrays.items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ArgumentError(
                f"{name} are of {value.dtype}; expected floating numbers. "
                f"Write {name}.astype('float32')."
            )
    min_affinity = check_min_affinity(min_affinity)
    max_people = check_limit("max_people", max_people, joints * k)
    min_joints = check_integer("min_joints", min_joints, 1, joints, example=1)
    peaks = Peaks(*(jnp.asarray(value).astype(jnp.float32) for value in peaks))
    affinities = jnp.asarray(affinities).astype(jnp.float32)
    return _assemble(peaks, affinities, skeleton, min_affinity, max_people, min_joints)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _assemble(peaks, affinities, skeleton, min_affinity, max_people, min_joints):
    joints, k = peaks.scores.shape
    first, second = _ends(skeleton.limbs)
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
