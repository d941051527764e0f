"""What an operation between modules is called: from JAX's primitives back to what a paper calls a layer."""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxcnn.interpret import _layer_patterns
from jaxcnn.interpret._dataflow import Known, Name, by, made_by
from jaxcnn.interpret._jaxpr import Op


def macs(op: Op) -> int:
    """Multiply-adds of a convolution or a matrix product; 0 for anything else."""
    if op.name == "dot_general":
        (contracted, _), _ = op.params["dimension_numbers"]
        return op.times * math.prod(op.outs[0].shape) * math.prod(op.ins[0].shape[axis] for axis in contracted)
    if op.name != "conv_general_dilated":
        return 0
    spec, transposed = op.params["dimension_numbers"], math.prod(op.params["lhs_dilation"]) > 1
    shape, axes = (op.ins[0].shape, spec.lhs_spec) if transposed else (op.outs[0].shape, spec.out_spec)
    pixels = shape[axes[0]] * math.prod(shape[axis] for axis in axes[2:])
    return op.times * pixels * math.prod(op.ins[1].shape)  # the kernel holds inputs / groups, not inputs


def name(op: Op, known: Known) -> Name | None:
    """What an operation is; None for one that is a part of another, or only moves numbers.

    Activations of `jax.nn`, and functions with a derivative of their own, go by their names.
    """
    if op.name in _TABLE:
        return _TABLE[op.name](op, known)
    function = any(key in op.params for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"))
    same = any(value.id in known.source and value.shape == op.outs[0].shape for value in op.ins)
    return (op.name, _SPELT.get(op.name, op.name.replace("_", " ").capitalize())) if function and same else None


_SPELT = {"relu": "ReLU", "relu6": "ReLU6", "leaky_relu": "Leaky ReLU"}
_SPELT |= {word: word.upper() for word in ("elu", "selu", "celu", "gelu")} | {"silu": "SiLU"}


def _convolution(op: Op, known: Known) -> Name:
    spec, params = op.params["dimension_numbers"], op.params
    size = by([op.ins[1].shape[axis] for axis in spec.rhs_spec[2:]])
    channels, groups = op.ins[0].shape[spec.lhs_spec[1]], params["feature_group_count"]
    if math.prod(params["lhs_dilation"]) > 1:
        return "conv", f"Transposed conv {size} x{by(params['lhs_dilation'], True)}"
    words = f"Depthwise conv {size}" if 1 < groups == channels else f"Conv {size}"
    for sign, field in ((" /", "window_strides"), (", dilation ", "rhs_dilation")):
        words += sign + by(params[field], True) if math.prod(params[field]) > 1 else ""
    return "conv", words + (f", {groups} groups" if 1 < groups < channels else "")


def _product(op: Op, known: Known) -> Name:
    both = all(value.id in known.source for value in op.ins)
    return ("product", "Product") if both else ("dense", "Dense")


def _maximum(op: Op, known: Known) -> Name | None:
    zero = any(value.id is None and value.number == 0 for value in op.ins)
    return ("relu", "ReLU") if zero else None


def _joined(label: str) -> Callable[[Op, Known], Name | None]:
    """Two values of different layers meet; in x + x^3 they are parts of one function."""

    def joined(op: Op, known: Known) -> Name | None:
        if "pow" in (made_by(value.id, known) for value in op.ins):  # x times a power of its neighbours' squares
            return "lrn", "Local response norm"
        sources = {known.source[value.id] for value in op.ins if value.id in known.source}
        return (label, label.capitalize()) if len(sources) > 1 else None

    return joined


def _divided(op: Op, known: Known) -> Name | None:
    if op.ins[1].id not in known.source:
        return None
    above, below = (made_by(value.id, known) for value in op.ins)
    return ("softmax", "Softmax") if above == "exp" else ("lrn", "Local response norm") if below == "pow" else None


_TABLE: dict[str, Callable[[Op, Known], Name | None]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "max": _maximum,
    "tanh": lambda op, known: ("tanh", "Tanh"),
    "logistic": lambda op, known: ("sigmoid", "Sigmoid"),
    "add": _joined("add"),
    "mul": _joined("multiply"),
    "div": _divided,
    "concatenate": _layer_patterns.together,
    "stack": _layer_patterns.together,
    "max_pool_2x2": lambda op, known: ("max_pool", "Max pooling 2x2"),
    "reduce_max": _layer_patterns.largest,
    "reduce_sum": _layer_patterns.summed,
    "reduce_window_max": _layer_patterns.greatest_of_windows,
    "reduce_window_sum": _layer_patterns.sums_of_windows,
    "reshape": _layer_patterns.reshaped,
    "_resize": _layer_patterns.resized,
    "pad": _layer_patterns.padded,
    "slice": _layer_patterns.sliced,
}
BREAKS = {"conv", "dense", "product", "max_pool", "average_pool", "sum_pool", "upsample", "distance"}
BREAKS |= {"concatenate", "stack"}
"""Labels of what begins a new layer; what goes through an activation, or loses pixels, is still of the layer before."""
