"""A model as a flat list of what it does to an image, each operation with the module it stands in; nothing is computed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from jaxcnn.models.calling import set_mode, verify_model

END = "name"
"""The operation, an identity, that marks where a module's output is ready."""
_SCOPE = "⟨{}⟩"
"""How a module's path stands in the scopes of its operations: apart from the names that flax and users give."""


class Value(NamedTuple):
    """An input or output of an operation."""

    id: Any
    """None where it is a number written in the program."""
    shape: tuple[int, ...]
    number: Any = None


class Op(NamedTuple):
    """One operation."""

    name: str
    """Of JAX's primitive, or of the function where a whole one is known by its name: "relu", "_resize"."""
    params: dict[str, Any]
    ins: tuple[Value, ...]
    outs: tuple[Value, ...]
    path: str
    """Of the module it stands in."""
    times: int
    """How often it is done: in the body of a `scan`, as many times as that."""


class Traced(NamedTuple):
    """What a model does."""

    ops: tuple[Op, ...]
    image: Any
    """The id of the image."""
    variables: dict[Any, tuple[str, ...]]
    """id -> collection, path and name of each variable."""
    sizes: dict[tuple[str, ...], jax.ShapeDtypeStruct]
    """The same names -> shape and dtype."""
    modules: dict[str, type]
    """path -> class, of the modules that call no other."""


def trace(model: nn.Module, shape: tuple[int, ...]) -> Traced:
    """`model` in test mode on one image of `shape` [h, w, c].

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
    mode: dict[str, Any] = dict(flags)
    variables: Any = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, **mode), image)
    classes: dict[str, type] = {}
    callers: set[str] = {""}
    with nn.intercept_methods(_noting(classes, callers)):
        closed = jax.make_jaxpr(lambda v, x: module.apply(v, x, **mode))(variables, image)
    leaves, _ = jax.tree.flatten_with_path(variables)
    names = [tuple(str(key.key) for key in path) for path, _ in leaves]
    ids = {variable: object() for variable in closed.jaxpr.invars}
    *given, picture = ids.values()
    modules = {path: kind for path, kind in classes.items() if path not in callers}
    sizes = {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}
    return Traced(tuple(_flat(closed.jaxpr, ids)), picture, dict(zip(given, names, strict=True)), sizes, modules)


def _noting(classes: dict[str, type], callers: set[str]) -> Any:
    """Writes down which module calls which, and leaves a scope around, and a mark behind, what each does."""
    running: list[str] = []

    def note(method, args, kwargs, context):
        path = "/".join(context.module.path)
        if context.method_name == "setup" or running[-1:] == [path]:  # a method that calls its own
            return method(*args, **kwargs)
        callers.update(running[-1:])
        classes[path] = type(context.module)
        running.append(path)
        with jax.named_scope(_SCOPE.format(path)):
            out = method(*args, **kwargs)
        running.pop()
        return _marked(out, path)

    return note


def _marked(out: Any, path: str) -> Any:
    leaves, tree = jax.tree.flatten(out)
    first = next((i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)), None)
    if first is not None:
        leaves[first] = checkpoint_name(leaves[first], _SCOPE.format(path))
    return jax.tree.unflatten(tree, leaves)


def scope(text: str) -> str | None:
    """The path of the innermost module among nested scopes; None where there is none.

    Example:
      >>> scope("⟨⟩/VGG/VGG._layer/⟨stage1_conv1⟩"), scope("vmap()")
      ('stage1_conv1', None)
    """
    found = re.findall("⟨([^⟩]*)⟩", text)
    return found[-1] if found else None


def _flat(jaxpr: Any, ids: dict[Any, Any], path: str = "", times: int = 1) -> Iterator[Op]:
    """Its operations, those of functions within it in their place."""

    def value(v: Any) -> Value:
        if hasattr(v, "val"):
            return Value(None, v.aval.shape, v.val)
        return Value(ids.setdefault(v, object()), getattr(v.aval, "shape", ()))

    for eqn in jaxpr.eqns:
        inside = scope(str(eqn.source_info.name_stack))
        here = path if inside is None else inside
        name, inner, often = _inner(eqn)
        ins = tuple(map(value, eqn.invars))
        if inner is None:
            yield Op(name, eqn.params, ins, tuple(map(value, eqn.outvars)), here, times)
            continue
        given = ins[len(ins) - len(inner.invars) :]  # before them comes what only a condition reads
        within = {v: known.id or object() for v, known in zip(inner.invars, given, strict=True)}
        yield from _flat(inner, within, here, times * often)
        made = (object() if hasattr(v, "val") else within.setdefault(v, object()) for v in inner.outvars)
        ids |= zip(eqn.outvars, made, strict=True)


def _inner(eqn: Any) -> tuple[str, Any, int]:
    """The name of an operation; the program within it, None for one that is read as a whole; how often that is done."""
    kind, params = eqn.primitive.name, eqn.params
    bodies = [params.get(key) for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr")]
    bodies += list(params.get("branches", ()))[-1:]
    body = next((getattr(b, "jaxpr", b) for b in bodies if hasattr(b, "jaxpr") or hasattr(b, "eqns")), None)
    if body is None:
        return kind, None, 1
    name = str(params.get("name") or _called(body))
    whole = kind.startswith("custom_") or name == "_resize" or hasattr(jax.nn, name)
    if whole and not any(e.primitive.name in ("conv_general_dilated", "dot_general") for e in body.eqns):
        return name, None, 1
    if name == "_resize":  # its products with weights of the distance are no layer's
        return name, None, 1
    return name, body, params.get("length", 1) if kind == "scan" else 1


def _called(body: Any) -> str:
    """The name of the function that a program was traced from."""
    if len(body.eqns) == 1 and "name" in body.eqns[0].params:
        return body.eqns[0].params["name"]
    return getattr(getattr(body, "debug_info", None), "func_name", None) or "function"
