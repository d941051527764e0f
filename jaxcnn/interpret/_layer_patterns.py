"""Operations that change the size of a map: pooling in the ways it is written, upsampling, padding, flattening."""

from __future__ import annotations

import math

from jaxcnn.interpret._dataflow import SQUARES, Known, Name, averaged, by, made_by
from jaxcnn.interpret._jaxpr import Op


def largest(op: Op, known: Known) -> Name | None:
    """`reduce_max`."""
    return _over_map("max", op, known)


def summed(op: Op, known: Known) -> Name | None:
    """`reduce_sum`: average pooling, or the distances of radial basis functions from what was learnt or given."""
    value, axes = op.ins[0], tuple(op.params["axes"])
    made = known.maker.get(value.id)
    if made and made.name in SQUARES and axes == (len(value.shape) - 1,):
        away = known.maker.get(made.ins[0].id)
        fixed = away and away.name == "sub" and any(v.id not in known.source for v in away.ins)
        return ("distance", "Squared distance") if fixed else None
    return _over_map(averaged(op, known), op, known)


def _over_map(what: str, op: Op, known: Known) -> Name | None:
    """Windows that do not overlap, written as a reshape to [b, h, 2, w, 2, c], or the whole map."""
    shape, axes = op.ins[0].shape, tuple(op.params["axes"])
    if len(shape) == 6 and axes == (2, 4) and made_by(op.ins[0].id, known) == "reshape":
        return f"{what}_pool", f"{what.capitalize()} pooling {shape[2]}x{shape[4]}"
    if len(shape) == 4 and axes == (1, 2):
        return f"{what}_pool", f"Global {what} pooling"
    return None


def greatest_of_windows(op: Op, known: Known) -> Name | None:
    """`reduce_window_max`."""
    return _window("max", op)


def sums_of_windows(op: Op, known: Known) -> Name | None:
    """`reduce_window_sum`."""
    return _window(averaged(op, known), op)


def _window(what: str, op: Op) -> Name | None:
    sizes, strides = op.params["window_dimensions"], op.params["window_strides"]
    if sizes[-1] > 1:  # over channels: a part of local response normalisation
        return None
    step = "" if sizes[1:-1] == strides[1:-1] else f" /{by(strides[1:-1], True)}"
    return f"{what}_pool", f"{what.capitalize()} pooling {by(sizes[1:-1])}{step}"


def together(op: Op, known: Known) -> Name | None:
    """`concatenate` and `stack`: branches side by side, or adaptive pooling, which has a mean for each window."""
    means = ("broadcast_in_dim", "reshape", "div", "mul")
    if all(made_by(value.id, known, means) == "reduce_sum" for value in op.ins):
        rows_only = all(user.name == "slice" for user in known.users.get(op.outs[0].id, ()))
        return None if rows_only else ("average_pool", "Adaptive average pooling")
    several = sum(value.id in known.source for value in op.ins) > 1
    return (op.name, op.name.capitalize()) if several else None


def reshaped(op: Op, known: Known) -> Name | None:
    """Flattening, or pixels that a broadcast has repeated before."""
    value, out = op.ins[0].shape, op.outs[0].shape
    made = known.maker.get(op.ins[0].id)
    if made and made.name == "broadcast_in_dim" and len(out) == 4:
        before = made.ins[0].shape
        before = before[:1] + before[1:6:2] if len(before) == 6 else before  # [b, h, 1, w, 1, c]
        if len(before) == 4 and math.prod(before) < math.prod(out):
            return "upsample", f"Upsampling {out[1] // before[1]}x{out[2] // before[2]}"
    return ("flatten", "Flatten") if len(value) > len(out) == 2 and value[0] == out[0] else None


def resized(op: Op, known: Known) -> Name:
    """`jax.image.resize`."""
    return "upsample", f"Resize to {by(op.outs[0].shape[1:3])}"


def padded(op: Op, known: Known) -> Name | None:
    """`pad`, but not of the squares in local response normalisation."""
    most = max(max(low, high) for low, high, _ in op.params["padding_config"])
    return ("padding", "Padding") if most > 0 and made_by(op.ins[0].id, known) not in SQUARES else None


def sliced(op: Op, known: Known) -> Name | None:
    """Every other pixel, as `x[:, ::2, ::2]` has it."""
    strides = (op.params["strides"] or (1,))[1:-1]
    return ("pick", f"Pixels picked /{by(strides, True)}") if math.prod(strides) > 1 else None
