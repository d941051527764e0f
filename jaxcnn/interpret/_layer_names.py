"""Layers of a traced model: whole modules, and the operations between them.

The names of operations go from JAX's primitives back to the terms that papers use for layers.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxcnn.interpret._jaxpr import END, Op, Traced, scope

VariableNames = frozenset[tuple[str, ...]]
"""Collection, path and name of some variables."""
NO_VARIABLES: VariableNames = frozenset()
LayerName = tuple[str, str]
"""A label, which is part of the row's name, and the kind."""
SQUARES = ("square", "integer_pow")

# ---------------------------------------------------------------- rows


class Layer(NamedTuple):
    """A layer, with the variables that no layer before it uses."""

    name: str
    kind: str
    shape: tuple[int, ...]
    variables: VariableNames
    macs: int


class Dataflow(NamedTuple):
    """The producer and users of each value, so far."""

    producer: dict[Any, Op]
    """Operation that produced a value, by the value's id."""
    users: dict[Any, list[Op]]
    """Operations that read a value, by the value's id."""
    source: dict[Any, int]
    """Number of the last layer before a value, by its id.

    A value that does not depend on the image has none.
    """


class _Reader(NamedTuple):
    """State of `find_layers` while it reads the operations in order."""

    flow: Dataflow
    variables: dict[Any, VariableNames]
    """Variables that a value was computed from, by its id.

    Values that depend on the image are left out.
    """
    running: dict[str, list[tuple[Op, VariableNames]]]
    """Operations of each unfinished module, with their variables."""


def find_layers(traced: Traced) -> list[Layer]:
    """Return the layers of a model in the order of computation.

    The last rows are the parts that test mode leaves out.

    Example:
      >>> from jaxcnn.interpret._jaxpr import trace
      >>> from jaxcnn.models import create_model
      >>> layers = find_layers(trace(create_model("resnet8", 10), (32, 32, 3)))
      >>> [layer.name for layer in layers][:5]
      ['stem', 'stem_norm', 'relu', 'stage1_block1/conv1', 'stage1_block1/norm1']
    """
    variables = {value: frozenset([names]) for value, names in traced.variables.items()}
    reader = _Reader(_dataflow(traced), variables, {})
    rows: list[Layer] = []
    for number, op in enumerate(traced.ops, 1):
        used = NO_VARIABLES.union(*(reader.variables.get(v.id, NO_VARIABLES) for v in op.ins))
        row, source = _read_op(op, used, number, reader, traced.modules)
        if row is not None:
            rows.append(row)
        elif used and source is not None and rows and op.path not in traced.modules:
            # Such as a bias that is added to the row before.
            rows[-1] = rows[-1]._replace(variables=rows[-1].variables | used)
        for value in op.outs:
            reader.flow.producer[value.id] = op
            if source is None:
                reader.variables[value.id] = used
            else:
                reader.flow.source[value.id] = source
    return _unique_names(_assign_variables([*rows, *_unused_parts(traced, rows)]))


def _dataflow(traced: Traced) -> Dataflow:
    users = collections.defaultdict(list)
    for op in traced.ops:
        for value in op.ins:
            users[value.id].append(op)
    return Dataflow({}, users, {traced.image: 0})


def _read_op(
    op: Op, used: VariableNames, number: int, reader: _Reader, modules: dict[str, type]
) -> tuple[Layer | None, int | None]:
    """Return an operation's row, if any, and its result's source.

    The source is None for a result that does not depend on the image.
    """
    known_sources = reader.flow.source
    sources = {known_sources[value.id] for value in op.ins if value.id in known_sources}
    # A result of several layers is a source of its own.
    source = min(sources) if len(sources) == 1 else number if sources else None
    path = scope(str(op.params.get("name"))) if op.name == END else None
    if path in modules:
        row = _module_layer(path, modules[path], op, used, reader)
        return row, number if sources else None
    if op.path in modules:
        if sources:
            reader.running.setdefault(op.path, []).append((op, used))
        return None, source
    label, kind = (layer_name(op, reader.flow) if sources else None) or ("", "")
    row = None
    if label:
        row_name = f"{op.path}/{label}".lstrip("/")
        row = Layer(row_name, kind, op.outs[0].shape[1:], used, count_macs(op))
    return row, number if label in LAYER_STARTS else source


def _module_layer(path: str, cls: type, end: Op, used: VariableNames, reader: _Reader) -> Layer:
    """Return the row of a module that calls no other.

    Flax's convolutions and dense layers are named by their operation, other modules by their class.
    """
    operations = reader.running.pop(path, [])
    products = [op for op, _ in operations if count_macs(op)]
    kind = cls.__name__
    if len(products) == 1 and cls.__module__.startswith("flax."):
        _, kind = layer_name(products[0], reader.flow) or ("", kind)
    variables = used.union(*(names for _, names in operations))
    return Layer(path, kind, end.outs[0].shape[1:], variables, sum(map(count_macs, products)))


def _unused_parts(traced: Traced, rows: Sequence[Layer]) -> list[Layer]:
    """Return a row for each part of the model with unused variables."""
    used = NO_VARIABLES.union(*(row.variables for row in rows))
    unused = [names for names in traced.sizes if names not in used]
    parts: dict[str, VariableNames] = {}
    for names in unused:
        part = names[1] if len(names) > 2 else "(network)"
        parts[part] = parts.get(part, NO_VARIABLES) | {names}
    return [Layer(part, "not used in test mode", (), names, 0) for part, names in parts.items()]


def _assign_variables(rows: Sequence[Layer]) -> list[Layer]:
    """Assign each variable to the first row that uses it."""
    assigned: set[tuple[str, ...]] = set()
    result = []
    for row in rows:
        result.append(row._replace(variables=row.variables - assigned))
        assigned |= row.variables
    return result


def _unique_names(rows: Sequence[Layer]) -> list[Layer]:
    """Append _2, _3 and so on to repeated names."""
    counts: collections.Counter[str] = collections.Counter()
    result = []
    for row in rows:
        counts[row.name] += 1
        count = counts[row.name]
        result.append(row._replace(name=f"{row.name}_{count}") if count > 1 else row)
    return result


# ---------------------------------------------------------------- names of operations


def count_macs(op: Op) -> int:
    """Return the multiply-adds of a convolution or a matrix product, else 0."""
    if op.name == "dot_general":
        (contracted, _), _ = op.params["dimension_numbers"]
        inner = math.prod(op.ins[0].shape[axis] for axis in contracted)
        return op.times * math.prod(op.outs[0].shape) * inner
    if op.name != "conv_general_dilated":
        return 0
    spec = op.params["dimension_numbers"]
    is_transposed = math.prod(op.params["lhs_dilation"]) > 1
    shape, axes = (
        (op.ins[0].shape, spec.lhs_spec) if is_transposed else (op.outs[0].shape, spec.out_spec)
    )
    pixels = shape[axes[0]] * math.prod(shape[axis] for axis in axes[2:])
    # The kernel already has inputs / groups input channels, not all inputs.
    return op.times * pixels * math.prod(op.ins[1].shape)


def layer_name(op: Op, flow: Dataflow) -> LayerName | None:
    """Return the label and kind of an operation.

    Activations of `jax.nn`, and functions with a derivative of their own, keep their names. The
    result is None for an operation that is a part of another, or that only moves numbers.
    """
    if op.name in _TABLE:
        return _TABLE[op.name](op, flow)
    is_function = any(key in op.params for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"))
    is_elementwise = any(v.id in flow.source and v.shape == op.outs[0].shape for v in op.ins)
    if not (is_function and is_elementwise):
        return None
    return op.name, _SPELLING.get(op.name, op.name.replace("_", " ").capitalize())


_SPELLING = {"relu": "ReLU", "relu6": "ReLU6", "leaky_relu": "Leaky ReLU"}
_SPELLING |= {word: word.upper() for word in ("elu", "selu", "celu", "gelu")} | {"silu": "SiLU"}


def _convolution(op: Op, flow: Dataflow) -> LayerName:
    spec, params = op.params["dimension_numbers"], op.params
    size = format_sizes([op.ins[1].shape[axis] for axis in spec.rhs_spec[2:]])
    channels, groups = op.ins[0].shape[spec.lhs_spec[1]], params["feature_group_count"]
    if math.prod(params["lhs_dilation"]) > 1:
        factor = format_sizes(params["lhs_dilation"], short=True)
        return "conv", f"Transposed conv {size} x{factor}"
    kind = f"Depthwise conv {size}" if 1 < groups == channels else f"Conv {size}"
    for sign, key in ((" /", "window_strides"), (", dilation ", "rhs_dilation")):
        kind += sign + format_sizes(params[key], short=True) if math.prod(params[key]) > 1 else ""
    return "conv", kind + (f", {groups} groups" if 1 < groups < channels else "")


def _product(op: Op, flow: Dataflow) -> LayerName:
    if all(value.id in flow.source for value in op.ins):
        return "product", "Product"
    return "dense", "Dense"


def _maximum(op: Op, flow: Dataflow) -> LayerName | None:
    has_zero = any(value.id is None and value.number == 0 for value in op.ins)
    return ("relu", "ReLU") if has_zero else None


def _joining(label: str) -> Callable[[Op, Dataflow], LayerName | None]:
    """Return the rule for an operation that joins values of different layers.

    In x + x^3 both values are of one layer, and the operation is a part of one function.
    """

    def rule(op: Op, flow: Dataflow) -> LayerName | None:
        # x times a power of its neighbors' squares.
        if "pow" in (producer_name(value.id, flow) for value in op.ins):
            return "lrn", "Local response norm"
        sources = {flow.source[value.id] for value in op.ins if value.id in flow.source}
        return (label, label.capitalize()) if len(sources) > 1 else None

    return rule


def _division(op: Op, flow: Dataflow) -> LayerName | None:
    if op.ins[1].id not in flow.source:
        return None
    numerator, denominator = (producer_name(value.id, flow) for value in op.ins)
    if numerator == "exp":
        return "softmax", "Softmax"
    return ("lrn", "Local response norm") if denominator == "pow" else None


# ---------------------------------------------------------------- operations that resize maps


def _reduce_max(op: Op, flow: Dataflow) -> LayerName | None:
    return _pooling_by_reduction("max", op, flow)


def _reduce_sum(op: Op, flow: Dataflow) -> LayerName | None:
    """Return average pooling, or squared distances of radial basis functions.

    The distances are from centers that are trained or constant.
    """
    value, axes = op.ins[0], tuple(op.params["axes"])
    square = flow.producer.get(value.id)
    if square and square.name in SQUARES and axes == (len(value.shape) - 1,):
        difference = flow.producer.get(square.ins[0].id)
        is_distance = (
            difference
            and difference.name == "sub"
            and any(v.id not in flow.source for v in difference.ins)
        )
        return ("distance", "Squared distance") if is_distance else None
    return _pooling_by_reduction(sum_or_average(op, flow), op, flow)


def _pooling_by_reduction(statistic: str, op: Op, flow: Dataflow) -> LayerName | None:
    """Return pooling of disjoint windows, or of the whole map.

    Such windows are written as a reshape to [b, h, 2, w, 2, c].
    """
    shape, axes = op.ins[0].shape, tuple(op.params["axes"])
    is_reshaped = producer_name(op.ins[0].id, flow) == "reshape"
    if len(shape) == 6 and axes == (2, 4) and is_reshaped:
        return f"{statistic}_pool", f"{statistic.capitalize()} pooling {shape[2]}x{shape[4]}"
    if len(shape) == 4 and axes == (1, 2):
        return f"{statistic}_pool", f"Global {statistic} pooling"
    return None


def _reduce_window_max(op: Op, flow: Dataflow) -> LayerName | None:
    return _window_pooling("max", op)


def _reduce_window_sum(op: Op, flow: Dataflow) -> LayerName | None:
    return _window_pooling(sum_or_average(op, flow), op)


def _window_pooling(statistic: str, op: Op) -> LayerName | None:
    sizes, strides = op.params["window_dimensions"], op.params["window_strides"]
    # A window over channels is a part of local response normalization.
    if sizes[-1] > 1:
        return None
    is_dense = sizes[1:-1] == strides[1:-1]
    step = "" if is_dense else f" /{format_sizes(strides[1:-1], short=True)}"
    size = format_sizes(sizes[1:-1])
    return f"{statistic}_pool", f"{statistic.capitalize()} pooling {size}{step}"


def _concatenation(op: Op, flow: Dataflow) -> LayerName | None:
    """Return the joining of branches, or adaptive pooling.

    Adaptive pooling concatenates a mean for each window.
    """
    skipped = ("broadcast_in_dim", "reshape", "div", "mul")
    if all(producer_name(value.id, flow, skipped) == "reduce_sum" for value in op.ins):
        rows_only = all(user.name == "slice" for user in flow.users.get(op.outs[0].id, ()))
        return None if rows_only else ("average_pool", "Adaptive average pooling")
    joins_branches = sum(value.id in flow.source for value in op.ins) > 1
    return (op.name, op.name.capitalize()) if joins_branches else None


def _reshape(op: Op, flow: Dataflow) -> LayerName | None:
    """Return flattening, or upsampling by pixels that a broadcast has repeated."""
    shape, out = op.ins[0].shape, op.outs[0].shape
    producer = flow.producer.get(op.ins[0].id)
    if producer and producer.name == "broadcast_in_dim" and len(out) == 4:
        before = producer.ins[0].shape
        # [b, h, 1, w, 1, c]
        before = before[:1] + before[1:6:2] if len(before) == 6 else before
        if len(before) == 4 and math.prod(before) < math.prod(out):
            return "upsample", f"Upsampling {out[1] // before[1]}x{out[2] // before[2]}"
    is_flattening = len(shape) > len(out) == 2 and shape[0] == out[0]
    return ("flatten", "Flatten") if is_flattening else None


def _resize(op: Op, flow: Dataflow) -> LayerName:
    """Return the name of `jax.image.resize`."""
    return "upsample", f"Resize to {format_sizes(op.outs[0].shape[1:3])}"


def _pad(op: Op, flow: Dataflow) -> LayerName | None:
    """Return padding, unless it is of the squares in local response normalization."""
    largest = max(max(low, high) for low, high, _ in op.params["padding_config"])
    is_padding = largest > 0 and producer_name(op.ins[0].id, flow) not in SQUARES
    return ("padding", "Padding") if is_padding else None


def _slice(op: Op, flow: Dataflow) -> LayerName | None:
    """Return subsampling by strides, as in `x[:, ::2, ::2]`."""
    strides = (op.params["strides"] or (1,))[1:-1]
    if math.prod(strides) <= 1:
        return None
    return "pick", f"Pixels picked /{format_sizes(strides, short=True)}"


_TABLE: dict[str, Callable[[Op, Dataflow], LayerName | None]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "max": _maximum,
    "tanh": lambda op, flow: ("tanh", "Tanh"),
    "logistic": lambda op, flow: ("sigmoid", "Sigmoid"),
    "add": _joining("add"),
    "mul": _joining("multiply"),
    "div": _division,
    "concatenate": _concatenation,
    "stack": _concatenation,
    "max_pool_2x2": lambda op, flow: ("max_pool", "Max pooling 2x2"),
    "reduce_max": _reduce_max,
    "reduce_sum": _reduce_sum,
    "reduce_window_max": _reduce_window_max,
    "reduce_window_sum": _reduce_window_sum,
    "reshape": _reshape,
    "_resize": _resize,
    "pad": _pad,
    "slice": _slice,
}
"""Rules by the name of an operation."""
LAYER_STARTS = {"conv", "dense", "product", "max_pool", "average_pool", "sum_pool", "upsample"}
LAYER_STARTS |= {"distance", "concatenate", "stack"}
"""Labels of operations that start a new layer.

A value that passes an activation, or loses pixels, still belongs to the layer before.
"""

# ---------------------------------------------------------------- dataflow


def producer_name(value: Any, flow: Dataflow, skipped: Sequence[str] = ()) -> str | None:
    """Return the name of the operation that produced a value.

    `value` is the value's id.

    Operations in `skipped` are followed to their first input.
    """
    op = flow.producer.get(value)
    if op and op.name in skipped:
        return producer_name(op.ins[0].id, flow, skipped)
    return op and op.name


def sum_or_average(op: Op, flow: Dataflow) -> str:
    """Return "average" for a sum divided by a number, else "sum"."""
    users = flow.users.get(op.outs[0].id, [])
    is_divided = any(user.name in ("div", "mul") and user.ins[1].shape == () for user in users)
    return "average" if is_divided else "sum"


def format_sizes(sizes: Sequence[int], short: bool = False) -> str:
    """Format sizes for reading; `short` writes equal ones once.

    Example:
      >>> format_sizes((3, 3)), format_sizes((2, 2), short=True), format_sizes((2, 1), short=True)
      ('3x3', '2', '2x1')
    """
    is_square = short and len(set(sizes)) == 1
    return str(sizes[0]) if is_square else "x".join(map(str, sizes))
