"""A model as a flat list of operations with their modules.

The model is traced with abstract values. Nothing is computed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from jaxcnn.models.calling import set_mode, variable_shapes, verify_model
from jaxcnn.models.norm import intercept_calls

END = "name"
"""Name of the operation that marks a module's output.

The operation is an identity.
"""
_SCOPE = "⟨{}⟩"
"""Format of a module's path in the scopes of its operations.

The brackets keep it apart from the names that flax and users choose.
"""


class Value(NamedTuple):
    """An input or output of an operation."""

    id: Any
    """Identity of the value; None for a number written in the program."""
    shape: tuple[int, ...]
    number: Any = None


class Op(NamedTuple):
    """An operation of a traced model."""

    name: str
    """Name of JAX's primitive, or of a function that is kept whole.

    Such functions are "relu" and "_resize".
    """
    params: dict[str, Any]
    ins: tuple[Value, ...]
    outs: tuple[Value, ...]
    path: str
    """Path of the module that it belongs to."""
    times: int
    """Number of executions; in the body of a `scan`, its length."""


class Traced(NamedTuple):
    """Operations, variables and modules of a traced model."""

    ops: tuple[Op, ...]
    image: Any
    """Identity of the image."""
    variables: dict[Any, tuple[str, ...]]
    """Collection, path and name of each variable, by its identity."""
    sizes: dict[tuple[str, ...], jax.ShapeDtypeStruct]
    """Shape and dtype of each variable, by the same names."""
    modules: dict[str, type]
    """Class of each module that calls no other, by its path."""


def trace(model: nn.Module, shape: tuple[int, ...]) -> Traced:
    """Trace `model` in test mode on one image.

    `shape` is [h, w, c].

    Example:
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, train=False):
      ...         return jax.numpy.tanh(nn.Dense(2)(x))
      >>> traced = trace(Net(), (4, 4, 3))
      >>> [op.name for op in traced.ops], traced.modules["Dense_0"].__name__
      (['dot_general', 'reshape', 'add', 'name', 'tanh', 'name'], 'Dense')
    """
    image = jax.ShapeDtypeStruct((1, *shape), "float32")
    verify_model(model)
    module, flags = set_mode(model, train=False)
    kwargs: dict[str, Any] = dict(flags)
    variables: Any = variable_shapes(model, image)
    classes: dict[str, type] = {}
    callers: set[str] = {""}
    with intercept_calls(_call_recorder(classes, callers)):
        closed = jax.make_jaxpr(lambda v, x: module.apply(v, x, **kwargs))(variables, image)
    leaves, _ = jax.tree.flatten_with_path(variables)
    names = [tuple(str(getattr(key, "key", key)) for key in path) for path, _ in leaves]
    ids = {variable: object() for variable in closed.jaxpr.invars}
    *variable_ids, image_id = ids.values()
    return Traced(
        ops=tuple(_flatten(closed.jaxpr, ids)),
        image=image_id,
        variables=dict(zip(variable_ids, names, strict=True)),
        sizes={name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)},
        modules={path: cls for path, cls in classes.items() if path not in callers},
    )


def _call_recorder(classes: dict[str, type], callers: set[str]) -> Any:
    """Return an interceptor that records which module calls which.

    It also puts a scope around the operations of each module, and a mark behind them.
    """
    running: list[str] = []

    def record(method, args, kwargs, context):
        path = "/".join(context.module.path)
        # The second condition is a method that calls another of the same module.
        if context.method_name == "setup" or running[-1:] == [path]:
            return method(*args, **kwargs)
        callers.update(running[-1:])
        classes[path] = type(context.module)
        running.append(path)
        with jax.named_scope(_SCOPE.format(path)):
            out = method(*args, **kwargs)
        running.pop()
        return _mark_end(out, path)

    return record


def _mark_end(out: Any, path: str) -> Any:
    """Return a module's output, with its path marked on the first array."""
    leaves, tree = jax.tree.flatten(out)
    first = next((i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)), None)
    if first is not None:
        leaves[first] = checkpoint_name(leaves[first], _SCOPE.format(path))
    return jax.tree.unflatten(tree, leaves)


def scope(text: str) -> str | None:
    """Return the path of the innermost module among nested scopes, or None.

    Example:
      >>> scope("⟨⟩/VGG/VGG._layer/⟨stage1_conv1⟩"), scope("vmap()")
      ('stage1_conv1', None)
    """
    paths = re.findall("⟨([^⟩]*)⟩", text)
    return paths[-1] if paths else None


def _flatten(jaxpr: Any, ids: dict[Any, Any], path: str = "", times: int = 1) -> Iterator[Op]:
    """Yield the operations of a program.

    Those of nested functions are in their place.
    """

    def value(v: Any) -> Value:
        if hasattr(v, "val"):
            return Value(None, v.aval.shape, v.val)
        return Value(ids.setdefault(v, object()), getattr(v.aval, "shape", ()))

    for eqn in jaxpr.eqns:
        inner_path = scope(str(eqn.source_info.name_stack))
        op_path = path if inner_path is None else inner_path
        name, body, repeats = _read_equation(eqn)
        ins = tuple(map(value, eqn.invars))
        if body is None:
            yield Op(name, eqn.params, ins, tuple(map(value, eqn.outvars)), op_path, times)
            continue
        # The first inputs may be read only by a condition, not by the body.
        body_ins = ins[len(ins) - len(body.invars) :]
        body_ids = {v: x.id or object() for v, x in zip(body.invars, body_ins, strict=True)}
        yield from _flatten(body, body_ids, op_path, times * repeats)
        out_ids = (
            object() if hasattr(v, "val") else body_ids.setdefault(v, object())
            for v in body.outvars
        )
        ids |= zip(eqn.outvars, out_ids, strict=True)


def _read_equation(eqn: Any) -> tuple[str, Any, int]:
    """Return the name, the nested program and its number of executions.

    The program is None for an operation that is kept whole.
    """
    kind, params = eqn.primitive.name, eqn.params
    bodies = [params.get(key) for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr")]
    bodies += list(params.get("branches", ()))[-1:]
    body = next(
        (getattr(b, "jaxpr", b) for b in bodies if hasattr(b, "jaxpr") or hasattr(b, "eqns")), None
    )
    if body is None:
        return kind, None, 1
    name = str(params.get("name") or _function_name(body))
    is_whole = kind.startswith("custom_") or name == "_resize" or hasattr(jax.nn, name)
    if is_whole and not any(
        e.primitive.name in ("conv_general_dilated", "dot_general") for e in body.eqns
    ):
        return name, None, 1
    # The products of a resize with interpolation weights are no layer's.
    if name == "_resize":
        return name, None, 1
    return name, body, params.get("length", 1) if kind == "scan" else 1


def _function_name(body: Any) -> str:
    """Return the name of the function that a program was traced from."""
    if len(body.eqns) == 1 and "name" in body.eqns[0].params:
        return body.eqns[0].params["name"]
    return getattr(getattr(body, "debug_info", None), "func_name", None) or "function"
