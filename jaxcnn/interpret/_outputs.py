"""Outputs inside a network, by name: the stages that the library's networks hand out, or any module of another by its path."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxcnn.models.calling import call, set_mode, verify_model
from jaxcnn.models.layers import NUDGES
from jaxcnn.recipe import ArgumentError


def has_stages(model: nn.Module) -> bool:
    """Whether a model hands out its stages, called with `stages=True`.

    Example:
      >>> from jaxcnn import create_model
      >>> has_stages(create_model("resnet8", 10)), has_stages(nn.Dense(3))
      (True, False)
    """
    return "stages" in inspect.signature(type(model).__call__).parameters


def stage_shapes(model: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The names of `model`'s stages and the shape of each for one image of `shape` [h, w, c]; nothing is computed.

    A module that does not take `stages=True` has the outputs of its submodules instead, named by their paths, in the order in
    which they are computed. What is no submodule, as `nn.relu`, is not among them. The second call of one has "#2" behind it.

    Example:
      >>> from jaxcnn import create_model
      >>> stage_shapes(create_model("resnet8", 10), (32, 32, 3))
      {'stem': (32, 32, 16), 'stage1': (32, 32, 16), 'stage2': (16, 16, 32), 'stage3': (8, 8, 64), 'pool': (64,)}
      >>> stage_shapes(nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.Conv(8, (3, 3), strides=2)]), (8, 8, 1))
      {'layers_0': (8, 8, 4), 'layers_2': (4, 4, 8)}
    """
    names: list[str] = []  # a dict would come back from tracing in the order of the alphabet

    def run(image):
        module, flags = set_mode(model, train=False)
        given: dict[str, Any] = dict(flags)
        variables = module.init(jax.random.key(0), image, **given)
        seen = outputs(model, variables, image)
        names.extend(seen)
        return list(seen.values())

    verify_model(model)
    made = jax.eval_shape(run, jax.ShapeDtypeStruct((1, *shape), "float32"))
    return {name: found.shape[1:] for name, found in zip(names, made, strict=True)}


def called(model: nn.Module) -> str:
    """What the names in `stages` are of."""
    return "stage" if has_stages(model) else "module"


def outputs(model: nn.Module, variables: Mapping[str, Any], inputs: jax.Array) -> dict[str, jax.Array]:
    """Every output that has a name, for normalised images [b, h, w, c] in test mode, for use while tracing."""
    if has_stages(model):
        found: Any = model.apply(variables, inputs, train=False, stages=True)
        return dict(found[1])
    names: list[tuple[str, tuple[str, ...], int]] = []

    def note(path, out, name, count):
        names.append((name, path, count))
        return out

    with nn.intercept_methods(_each(note)):
        module, flags = set_mode(model, train=False)
        given: dict[str, Any] = dict(flags)
        _, kept = module.apply(variables, inputs, **given, capture_intermediates=True, mutable=["intermediates"])
    seen = {}
    for name, path, count in names:
        inside: Any = kept["intermediates"]
        for part in (*path, "__call__"):
            inside = inside.get(part, {})
        # A module in `nn.scan` or `nn.vmap` has outputs of another shape than its calls, or keeps none.
        if isinstance(inside, tuple) and len(inside) > count and inside[count].shape[:1] == inputs.shape[:1]:
            seen[name] = inside[count]
    return seen


def nudged(model: nn.Module, variables: Mapping[str, Any], inputs: jax.Array, name: str, nudge: jax.Array) -> jax.Array:
    """The network's result with `nudge` added to the output called `name`, by which gradients there are found.

    Raises:
      ArgumentError: for a module in `nn.jit`, `nn.scan` or the like, that is not called anew.
    """
    if has_stages(model):
        return model.apply({**variables, NUDGES: {name: nudge}}, inputs, train=False)  # type: ignore[return-value]
    added = []

    def add(path, out, called, count):
        if called != name:
            return out
        added.append(called)
        return out + nudge

    with nn.intercept_methods(_each(add)):
        result: Any = call(model, variables, inputs, train=False)
    if len(added) != 1:
        raise ArgumentError(
            f"{name} is inside nn.jit, nn.scan or the like; expected a module that is called once by itself"
        )
    return result


def _each(act: Any) -> Any:
    """An interceptor: `act(path, output, name, count)` gives the output of every submodule's `__call__` that is an array."""
    calls: Counter[tuple[str, ...]] = Counter()

    def intercept(call, args, kwargs, context):
        out = call(*args, **kwargs)
        path = context.module.path
        if context.method_name != "__call__" or not path:
            return out
        count = calls[path]
        calls[path] += 1
        name = "/".join(path) + (f"#{count + 1}" if count else "")
        return act(path, out, name, count) if isinstance(out, jax.Array) and out.ndim > 1 else out

    return intercept
