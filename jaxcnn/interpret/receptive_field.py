"""Receptive fields: the pixels that one position of a map depends on.

There is one rule for each operation. Nothing is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxcnn.arguments import check_image_shape
from jaxcnn.config import ArgumentError
from jaxcnn.interpret._outputs import outputs
from jaxcnn.models.calling import variable_shapes


class ReceptiveField(NamedTuple):
    """Receptive fields of all positions of a stage.

    Position (i, j) depends on `size[0]` rows of the image, from start[0] + i stride[0]. The same
    holds for columns with index 1.

    Attributes:
      size: height and width in pixels; padding around the image counts too.
      stride: pixels between the fields of neighboring positions.
      start: first row and column of the field of position (0, 0). Below 0 it is in the padding.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    start: tuple[int, int]

    def corner(self, place: tuple[int, int]) -> tuple[int, int]:
        """Return the first row and column that a position depends on."""
        return self.start[0] + place[0] * self.stride[0], self.start[1] + place[1] * self.stride[1]


def receptive_fields(model: nn.Module, shape: tuple[int, ...]) -> dict[str, ReceptiveField]:
    """Return the receptive field of every stage of maps; nothing is computed.

    The result follows from the indices that each operation reads, from the image to the stage. For
    a chain of layers of size k, stride s and padding p, each layer updates three numbers (Dumoulin
    and Visin 2016, arXiv:1603.07285, section 2.4). They begin with size 1, start 0 and j = 1. The
    size grows by (k - 1) j, the start falls by p j, and then j is multiplied by s.

    The field of joined branches is their union. It holds all pixels that a position can depend on.
    In a deep network the middle of the field counts for most (Luo et al. 2016, arXiv:1701.04128).
    Behind a transposed convolution the field is taken to be the whole image.

    Args:
      model: any network.
      shape: of the images, [h, w, c].

    Returns:
      The fields by stage, in the network's order.

    Raises:
      ArgumentError: the shape is not three whole numbers above 0, or the network does not accept
        such images.

    Example:
      >>> from jaxcnn.models import create_model
      >>> fields = receptive_fields(create_model("lenet5", 10), (28, 28, 1))
      >>> for name, field in fields.items():
      ...     print(name, field.size, field.stride, field.start)
      c1 (5, 5) (1, 1) (-2, -2)
      c3 (14, 14) (2, 2) (-2, -2)
      c5 (32, 32) (4, 4) (-2, -2)
    """
    shape = check_image_shape(shape)
    # A dict would come back from tracing in alphabetical order.
    names: list[str] = []

    def run(variables, image):
        maps = {name: x for name, x in outputs(model, variables, image).items() if x.ndim == 4}
        names.extend(maps)
        return list(maps.values())

    image = jax.ShapeDtypeStruct((1, *shape), "float32")
    variables = variable_shapes(model, image)
    program = jax.make_jaxpr(run)(variables, image).jaxpr
    # The image is the last input; the variables do not depend on it.
    variable_extents = [None] * (len(program.invars) - 1)
    rows, columns = (
        trace_extents(
            program,
            [*variable_extents, Extent(0, 1, tuple(int(a == axis) for a in range(4)))],
            shape[axis - 1],
        )
        for axis in (1, 2)
    )
    return {
        name: _field(row, column) for name, row, column in zip(names, rows, columns, strict=True)
    }


def _field(row: Extent | None, column: Extent | None) -> ReceptiveField:
    if row is None or column is None:
        raise ArgumentError("a stage does not come of the image; expected one that does")
    pairs = [(row.size, column.size), (row.steps[1], column.steps[2]), (row.start, column.start)]
    return ReceptiveField(*((int(down), int(right)) for down, right in pairs))


def receptive_patch(
    image: np.ndarray, field: ReceptiveField, place: tuple[int, int], fill: int = 128
) -> np.ndarray:
    """Return the part of an image that one position sees.

    It is [h', w', c].

    The dtype is that of the image. Pixels outside the image are set to `fill`. A field at least as
    high or wide as the image gives the image's whole height or width.

    Args:
      image: [h, w, c].
      field: of the stage.
      place: row and column in the map.
      fill: value of pixels outside the image.

    Example:
      >>> image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
      >>> field = ReceptiveField((3, 3), (1, 1), (-1, -1))
      >>> receptive_patch(image, field, (0, 1))[..., 0].tolist()
      [[128, 128, 128], [0, 1, 2], [4, 5, 6]]
    """
    corner = field.corner(place)
    # The image has a third axis, the channels.
    sides = list(zip(field.size, image.shape, strict=False))
    covers = [size >= side for size, side in sides]
    y, x = (0 if covered else first for covered, first in zip(covers, corner, strict=True))
    h, w = (side if covered else size for covered, (size, side) in zip(covers, sides, strict=True))
    out = np.full((h, w, image.shape[2]), fill, image.dtype)
    visible = image[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)]
    top, left = max(-y, 0), max(-x, 0)
    out[top : top + visible.shape[0], left : left + visible.shape[1]] = visible
    return out


class Extent(NamedTuple):
    """Pixels along one axis of the image that a value depends on.

    Index i of the value depends on `size` pixels, from start + sum(steps * i).

    Attributes:
      start: first pixel of index 0; below 0 it lies in the padding.
      size: number of pixels.
      steps: pixels from one index to the next, for each axis. It is 0 along channels.
    """

    start: int
    size: int
    steps: tuple[int, ...]


Extents = Sequence[Extent | None]
"""Extents of an operation's inputs.

None is a value that does not depend on the image.
"""


def trace_extents(jaxpr: Any, extents: Extents, pixels: int) -> list[Extent | None]:
    """Return the extents of a program's results along one image axis.

    An operation without a rule (a transposed convolution, a gather) is taken to depend on all
    `pixels`, which is an upper bound.

    Args:
      jaxpr: the program.
      extents: of its inputs.
      pixels: of the image along the axis.
    """
    env = dict(zip(jaxpr.invars, extents, strict=True))
    for eqn in jaxpr.eqns:
        ins = [None if hasattr(v, "val") else env.get(v) for v in eqn.invars]
        env |= zip(eqn.outvars, _output_extents(eqn, ins, pixels), strict=True)
    return [None if hasattr(v, "val") else env.get(v) for v in jaxpr.outvars]


def _output_extents(eqn: Any, ins: Extents, pixels: int) -> list[Extent | None]:
    if all(extent is None for extent in ins):
        return [None] * len(eqn.outvars)
    bodies = (eqn.params.get(key) for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"))
    body = next((getattr(b, "jaxpr", b) for b in bodies if b is not None), None)
    name, shapes = eqn.primitive.name, [v.aval.shape for v in eqn.outvars]
    if body is not None and name not in ("scan", "while"):
        return trace_extents(body, ins, pixels)
    extent = _RULES.get(name, _elementwise)(eqn, ins)
    return [Extent(0, pixels, (0,) * len(shape)) if extent is None else extent for shape in shapes]


def _windows(extent: Extent, axes: dict[int, tuple[int, int, int, int]]) -> Extent:
    """Return the extent of windows along some axes.

    Args:
      extent: of the values in the windows.
      axes: (indices in a window, distance between them, stride, padding before), by axis.
    """
    start, size, steps = extent.start, extent.size, list(extent.steps)
    for axis, (count, dilation, stride, before) in axes.items():
        start -= before * steps[axis]
        size += (count - 1) * dilation * steps[axis]
        steps[axis] *= stride
    return Extent(start, size, tuple(steps))


def _merge(extent: Extent, sizes: Sequence[int], axes: Sequence[int]) -> Extent:
    """Return the extent of all indices of some axes together.

    The axes remain, with a step of 0.
    """
    return _windows(extent, {axis: (sizes[axis], 1, 0, 0) for axis in axes})


def _select_axes(extent: Extent, axes: Sequence[int | None]) -> Extent:
    """Return the extent of selected axes; None is a new axis."""
    return extent._replace(steps=tuple(0 if axis is None else extent.steps[axis] for axis in axes))


def _union(extents: Extents) -> Extent | None:
    """Return the union of extents, or None where their steps differ."""
    present = [extent for extent in extents if extent is not None]
    if len({extent.steps for extent in present}) > 1:
        return None
    start = min(extent.start for extent in present)
    return Extent(
        start, max(extent.start + extent.size for extent in present) - start, present[0].steps
    )


def _elementwise(eqn: Any, ins: Extents) -> Extent | None:
    name = eqn.primitive.name
    # These keep the shape, but an output depends on other indices.
    is_mixing = name.startswith("cum") or name in ("sort", "rev", "fft", "scan", "while")
    shapes = {v.aval.shape for v, extent in zip(eqn.invars, ins, strict=True) if extent is not None}
    keeps_shape = shapes == {eqn.outvars[0].aval.shape} and len(eqn.outvars) == 1
    return _union(ins) if keeps_shape and not is_mixing else None


def _convolution(eqn: Any, ins: Extents) -> Extent | None:
    p, extent, spec = eqn.params, ins[0], eqn.params["dimension_numbers"]
    if extent is None or ins[1] is not None or math.prod(p["lhs_dilation"]) > 1:
        return None
    image, kernel = (v.aval.shape for v in eqn.invars)
    counts = [kernel[axis] for axis in spec.rhs_spec[2:]]
    before = [pair[0] for pair in p["padding"]]
    settings = zip(counts, p["rhs_dilation"], p["window_strides"], before, strict=True)
    extent = _windows(extent, dict(zip(spec.lhs_spec[2:], settings, strict=True)))
    extent = _merge(extent, image, spec.lhs_spec[1:2])
    source_axes = dict(zip(spec.out_spec, spec.lhs_spec, strict=True))
    return _select_axes(extent, [source_axes[axis] for axis in range(len(image))])


def _product(eqn: Any, ins: Extents) -> Extent | None:
    contracted, batch = eqn.params["dimension_numbers"]
    side = 0 if ins[0] is not None else 1
    extent, shapes = ins[side], [v.aval.shape for v in eqn.invars]
    if extent is None or ins[1 - side] is not None:
        return None
    extent = _merge(extent, shapes[side], contracted[side])
    free = [a for a in range(len(shapes[side])) if a not in (*contracted[side], *batch[side])]
    new = [None] * (len(shapes[1 - side]) - len(contracted[1 - side]) - len(batch[1 - side]))
    return _select_axes(extent, [*batch[side], *(free + new if side == 0 else new + free)])


def _reshape(eqn: Any, ins: Extents) -> Extent | None:
    """Return the extent after axes are split or merged.

    Merged axes keep a step where their indices are evenly spaced, else their step is 0.
    """
    before, after, extent = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, ins[0]
    if extent is None:
        return None
    steps: list[int] = []
    for group, parts in _groups(before, after):
        old = [extent.steps[axis] for axis in group]
        # The step of the innermost axis with more than one index.
        inner = next(
            (step for step, a in zip(old[::-1], group[::-1], strict=True) if before[a] > 1), 0
        )
        counts = [math.prod(before[a] for a in group[i + 1 :]) for i in range(len(group))]
        is_even = all(
            step == inner * count or before[a] == 1
            for step, count, a in zip(old, counts, group, strict=True)
        )
        extent = extent if is_even else _merge(extent, before, group)
        steps += [
            inner * is_even * math.prod(after[b] for b in parts[i + 1 :]) for i in range(len(parts))
        ]
    return extent._replace(steps=tuple(steps))


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return groups of axes that hold the same numbers after a reshape.

    Example:
      >>> _groups((2, 6, 3), (2, 3, 2, 3))
      [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(left), j + len(right)
        while (old := math.prod(before[a] for a in left)) != (
            new := math.prod(after[b] for b in right)
        ):
            if old < new:
                left, i = [*left, i], i + 1
            else:
                right, j = [*right, j], j + 1
        groups.append((left, right))
    return groups


def _reduction(eqn: Any, ins: Extents) -> Extent | None:
    if ins[0] is None:
        return None
    sizes, axes = eqn.invars[0].aval.shape, eqn.params["axes"]
    remaining = [a for a in range(len(sizes)) if a not in axes]
    return _select_axes(_merge(ins[0], sizes, axes), remaining)


def _pooling(eqn: Any, ins: Extents) -> Extent | None:
    p = eqn.params
    if ins[0] is None or math.prod(p["base_dilation"]) > 1:
        return None
    before = [pair[0] for pair in p["padding"]]
    settings = zip(
        p["window_dimensions"], p["window_dilation"], p["window_strides"], before, strict=True
    )
    return _windows(ins[0], dict(enumerate(settings)))


def _slice(eqn: Any, ins: Extents) -> Extent | None:
    first, strides = eqn.params["start_indices"], eqn.params["strides"]
    strides = strides or (1,) * len(first)
    axes = {a: (1, 1, s, -f) for a, (f, s) in enumerate(zip(first, strides, strict=True))}
    return ins[0] and _windows(ins[0], axes)


def _pad(eqn: Any, ins: Extents) -> Extent | None:
    edges = eqn.params["padding_config"]
    if ins[0] is None or any(interior for _, _, interior in edges):
        return None
    return _windows(ins[0], {axis: (1, 1, 1, low) for axis, (low, _, _) in enumerate(edges)})


def _broadcast(eqn: Any, ins: Extents) -> Extent | None:
    sizes, shape = eqn.invars[0].aval.shape, eqn.params["shape"]
    dims = eqn.params["broadcast_dimensions"]
    source_axes = {d: a for a, d in enumerate(dims) if sizes[a] == shape[d]}
    return ins[0] and _select_axes(ins[0], [source_axes.get(d) for d in range(len(shape))])


def _concatenation(eqn: Any, ins: Extents) -> Extent | None:
    axis = eqn.params["dimension"]
    return None if any(extent and extent.steps[axis] for extent in ins) else _union(ins)


def _squeeze(eqn: Any, ins: Extents) -> Extent | None:
    axes = [a for a in range(eqn.invars[0].aval.ndim) if a not in eqn.params["dimensions"]]
    return ins[0] and _select_axes(ins[0], axes)


_RULES: dict[str, Callable[[Any, Extents], Extent | None]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "reshape": _reshape,
    "slice": _slice,
    "pad": _pad,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenation,
    "squeeze": _squeeze,
    "transpose": lambda eqn, ins: ins[0] and _select_axes(ins[0], eqn.params["permutation"]),
}
_RULES |= dict.fromkeys(
    ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax"), _reduction
)
_RULES |= dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _pooling)
