"""Which pixels of the image each value within a network can depend on, rule by rule; nothing is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Reach(NamedTuple):
    """Pixels along one axis of the image, as seen from index i of a value: the `size` from start + sum(steps * i) on."""

    start: int
    """Below 0 where padding is seen."""
    size: int
    steps: tuple[int, ...]
    """For each of the value's axes, how far the next index looks ahead; 0 along channels."""


Reaches = Sequence[Reach | None]
"""Of an operation's inputs; None is what does not come of the image."""


def along(jaxpr: Any, reaches: Reaches, pixels: int) -> list[Reach | None]:
    """What a program's results reach along one axis of an image of so many pixels, given what its inputs reach.

    An operation without a rule here (a transposed convolution, a gather) is taken to see all `pixels`: an upper bound.
    """
    known = dict(zip(jaxpr.invars, reaches, strict=True))
    for eqn in jaxpr.eqns:
        ins = [None if hasattr(v, "val") else known.get(v) for v in eqn.invars]
        known |= zip(eqn.outvars, _outs(eqn, ins, pixels), strict=True)
    return [None if hasattr(v, "val") else known.get(v) for v in jaxpr.outvars]


def _outs(eqn: Any, ins: Reaches, pixels: int) -> list[Reach | None]:
    if all(reach is None for reach in ins):
        return [None] * len(eqn.outvars)
    bodies = (eqn.params.get(key) for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"))
    body = next((getattr(b, "jaxpr", b) for b in bodies if b is not None), None)
    name, shapes = eqn.primitive.name, [v.aval.shape for v in eqn.outvars]
    if body is not None and name not in ("scan", "while"):
        return along(body, ins, pixels)
    made = _RULES.get(name, _pointwise)(eqn, ins)
    return [Reach(0, pixels, (0,) * len(shape)) if made is None else made for shape in shapes]


def _windows(reach: Reach, axes: dict[int, tuple[int, int, int, int]]) -> Reach:
    """Windows along some axes: (indices in a window, distance between those, stride, padding before)."""
    start, size, steps = reach.start, reach.size, list(reach.steps)
    for axis, (count, dilation, stride, before) in axes.items():
        start -= before * steps[axis]
        size += (count - 1) * dilation * steps[axis]
        steps[axis] *= stride
    return Reach(start, size, tuple(steps))


def _together(reach: Reach, sizes: Sequence[int], axes: Sequence[int]) -> Reach:
    """All indices of some axes at once; the axes stay, and lead nowhere."""
    return _windows(reach, {axis: (sizes[axis], 1, 0, 0) for axis in axes})


def _chosen(reach: Reach, axes: Sequence[int | None]) -> Reach:
    """The axes of the result are these of the value; None is a new one."""
    return reach._replace(steps=tuple(0 if axis is None else reach.steps[axis] for axis in axes))


def _joined(reaches: Reaches) -> Reach | None:
    """What several values of one shape reach together; None where their steps differ."""
    there = [reach for reach in reaches if reach is not None]
    if len({reach.steps for reach in there}) > 1:
        return None
    start = min(reach.start for reach in there)
    return Reach(start, max(reach.start + reach.size for reach in there) - start, there[0].steps)


def _pointwise(eqn: Any, ins: Reaches) -> Reach | None:
    mixing = eqn.primitive.name.startswith("cum") or eqn.primitive.name in ("sort", "rev", "fft", "scan", "while")
    shapes = {v.aval.shape for v, reach in zip(eqn.invars, ins, strict=True) if reach is not None}
    fits = shapes == {eqn.outvars[0].aval.shape} and len(eqn.outvars) == 1
    return _joined(ins) if fits and not mixing else None


def _convolution(eqn: Any, ins: Reaches) -> Reach | None:
    p, reach, spec = eqn.params, ins[0], eqn.params["dimension_numbers"]
    if reach is None or ins[1] is not None or math.prod(p["lhs_dilation"]) > 1:
        return None
    image, kernel = (v.aval.shape for v in eqn.invars)
    counts = [kernel[axis] for axis in spec.rhs_spec[2:]]
    before = [pair[0] for pair in p["padding"]]
    settings = zip(counts, p["rhs_dilation"], p["window_strides"], before, strict=True)
    reach = _windows(reach, dict(zip(spec.lhs_spec[2:], settings, strict=True)))
    reach = _together(reach, image, spec.lhs_spec[1:2])
    places = dict(zip(spec.out_spec, spec.lhs_spec, strict=True))
    return _chosen(reach, [places[axis] for axis in range(len(image))])


def _product(eqn: Any, ins: Reaches) -> Reach | None:
    contracted, batch = eqn.params["dimension_numbers"]
    side = 0 if ins[0] is not None else 1
    reach, shapes = ins[side], [v.aval.shape for v in eqn.invars]
    if reach is None or ins[1 - side] is not None:
        return None
    reach = _together(reach, shapes[side], contracted[side])
    own = [a for a in range(len(shapes[side])) if a not in (*contracted[side], *batch[side])]
    others = [None] * (len(shapes[1 - side]) - len(contracted[1 - side]) - len(batch[1 - side]))
    return _chosen(reach, [*batch[side], *(own + others if side == 0 else others + own)])


def _reshaped(eqn: Any, ins: Reaches) -> Reach | None:
    """Axes that are split, or merged where their indices go on evenly; merged others lead nowhere."""
    before, after, reach = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, ins[0]
    if reach is None:
        return None
    steps: list[int] = []
    for group, parts in _groups(before, after):
        own = [reach.steps[axis] for axis in group]
        inner = next((step for step, axis in zip(own[::-1], group[::-1], strict=True) if before[axis] > 1), 0)
        counts = [math.prod(before[a] for a in group[i + 1 :]) for i in range(len(group))]
        even = all(step == inner * count or before[a] == 1 for step, count, a in zip(own, counts, group, strict=True))
        reach = reach if even else _together(reach, before, group)
        steps += [inner * even * math.prod(after[b] for b in parts[i + 1 :]) for i in range(len(parts))]
    return reach._replace(steps=tuple(steps))


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes before and after a reshape that hold the same numbers.

    Example:
      >>> _groups((2, 6, 3), (2, 3, 2, 3))
      [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(left), j + len(right)
        while (had := math.prod(before[a] for a in left)) != (has := math.prod(after[b] for b in right)):
            if had < has:
                left, i = [*left, i], i + 1
            else:
                right, j = [*right, j], j + 1
        groups.append((left, right))
    return groups


def _reduced(eqn: Any, ins: Reaches) -> Reach | None:
    if ins[0] is None:
        return None
    sizes, axes = eqn.invars[0].aval.shape, eqn.params["axes"]
    return _chosen(_together(ins[0], sizes, axes), [a for a in range(len(sizes)) if a not in axes])


def _pooled(eqn: Any, ins: Reaches) -> Reach | None:
    p = eqn.params
    if ins[0] is None or math.prod(p["base_dilation"]) > 1:
        return None
    before = [pair[0] for pair in p["padding"]]
    settings = zip(p["window_dimensions"], p["window_dilation"], p["window_strides"], before, strict=True)
    return _windows(ins[0], dict(enumerate(settings)))


def _sliced(eqn: Any, ins: Reaches) -> Reach | None:
    first, strides = eqn.params["start_indices"], eqn.params["strides"]
    strides = strides or (1,) * len(first)
    return ins[0] and _windows(ins[0], {a: (1, 1, s, -f) for a, (f, s) in enumerate(zip(first, strides, strict=True))})


def _padded(eqn: Any, ins: Reaches) -> Reach | None:
    edges = eqn.params["padding_config"]
    if ins[0] is None or any(inside for _, _, inside in edges):
        return None
    return _windows(ins[0], {axis: (1, 1, 1, low) for axis, (low, _, _) in enumerate(edges)})


def _broadcast(eqn: Any, ins: Reaches) -> Reach | None:
    sizes, made, dims = eqn.invars[0].aval.shape, eqn.params["shape"], eqn.params["broadcast_dimensions"]
    kept = {d: a for a, d in enumerate(dims) if sizes[a] == made[d]}
    return ins[0] and _chosen(ins[0], [kept.get(d) for d in range(len(made))])


def _concatenated(eqn: Any, ins: Reaches) -> Reach | None:
    axis = eqn.params["dimension"]
    return None if any(reach and reach.steps[axis] for reach in ins) else _joined(ins)


def _squeezed(eqn: Any, ins: Reaches) -> Reach | None:
    left = [a for a in range(eqn.invars[0].aval.ndim) if a not in eqn.params["dimensions"]]
    return ins[0] and _chosen(ins[0], left)


_RULES: dict[str, Callable[[Any, Reaches], Reach | None]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "reshape": _reshaped,
    "slice": _sliced,
    "pad": _padded,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenated,
    "squeeze": _squeezed,
    "transpose": lambda eqn, ins: ins[0] and _chosen(ins[0], eqn.params["permutation"]),
}
_RULES |= dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax"), _reduced)
_RULES |= dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _pooled)
