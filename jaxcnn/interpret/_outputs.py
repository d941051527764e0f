"""Named outputs inside a network.

The library's networks return their stages by name. For any other network, the outputs of its
modules are named by their paths.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxcnn.arguments import check_image_shape
from jaxcnn.config import ArgumentError
from jaxcnn.models.calling import call, set_mode, variable_shapes, verify_model
from jaxcnn.models.layers import NUDGES
from jaxcnn.models.norm import intercept_calls


def has_stages(model: nn.Module) -> bool:
    """Return whether a model accepts `stages=True` and then returns its stages.

    Example:
      >>> from jaxcnn import create_model
      >>> has_stages(create_model("resnet8", 10)), has_stages(nn.Dense(3))
      (True, False)
    """
    return "stages" in inspect.signature(type(model).__call__).parameters


def stage_shapes(model: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each stage's output for one image.

    Nothing is computed.

    A module that does not accept `stages=True` has the outputs of its submodules instead. They are
    named by their paths, in the order of computation. A function that is no submodule, such as
    `nn.relu`, is not among them. The second call of a submodule has the suffix "#2".

    Args:
      model: any network.
      shape: of one image, [h, w, c].

    Raises:
      ArgumentError: the shape is not three whole numbers above 0.

    Example:
      >>> from jaxcnn import create_model
      >>> stage_shapes(create_model("resnet8", 10), (32, 32, 3))  # doctest: +NORMALIZE_WHITESPACE
      {'stem': (32, 32, 16), 'stage1': (32, 32, 16), 'stage2': (16, 16, 32), 'stage3': (8, 8, 64),
       'pool': (64,)}
      >>> layers = [nn.Conv(4, (3, 3)), nn.relu, nn.Conv(8, (3, 3), strides=2)]
      >>> stage_shapes(nn.Sequential(layers), (8, 8, 1))
      {'layers_0': (8, 8, 4), 'layers_2': (4, 4, 8)}
    """
    # A dict would come back from tracing in alphabetical order.
    names: list[str] = []

    def run(variables, image):
        named = outputs(model, variables, image)
        names.extend(named)
        return list(named.values())

    verify_model(model)
    shape = check_image_shape(shape)
    image = jax.ShapeDtypeStruct((1, *shape), "float32")
    arrays = jax.eval_shape(run, variable_shapes(model, image), image)
    return {name: array.shape[1:] for name, array in zip(names, arrays, strict=True)}


def output_kind(model: nn.Module) -> str:
    """Return the noun for the model's named outputs, "stage" or "module"."""
    return "stage" if has_stages(model) else "module"


def outputs(
    model: nn.Module, variables: Mapping[str, Any], inputs: jax.Array
) -> dict[str, jax.Array]:
    """Return every named output in test mode, for use while tracing.

    Args:
      model: any network.
      variables: {"params": ...} and its other collections.
      inputs: normalized images [b, h, w, c].
    """
    if has_stages(model):
        module, flags = set_mode(model, train=False)
        options: dict[str, Any] = {**flags, "stages": True}
        result: Any = module.apply(variables, inputs, **options)
        return dict(result[1])
    calls: list[tuple[str, tuple[str, ...], int]] = []

    def record(path, out, name, count):
        calls.append((name, path, count))
        return out

    with intercept_calls(_output_interceptor(record)):
        module, flags = set_mode(model, train=False)
        kwargs: dict[str, Any] = dict(flags)
        _, collections = module.apply(
            variables, inputs, **kwargs, capture_intermediates=True, mutable=["intermediates"]
        )
    named = {}
    for name, path, count in calls:
        node: Any = collections["intermediates"]
        for part in (*path, "__call__"):
            node = node.get(part, {})
        # A module in `nn.scan` or `nn.vmap` has outputs of another shape than its calls, or none.
        if not (isinstance(node, tuple) and len(node) > count):
            continue
        if node[count].shape[:1] == inputs.shape[:1]:
            named[name] = node[count]
    return named


def perturbed_output(
    model: nn.Module,
    variables: Mapping[str, Any],
    inputs: jax.Array,
    name: str,
    perturbation: jax.Array,
) -> jax.Array:
    """Return the network's result with `perturbation` added to the output `name`.

    Its gradient by the perturbation, at 0, is the gradient by that output.

    Raises:
      ArgumentError: the module is in `nn.jit`, `nn.scan` or the like, which does not call it again.
    """
    if has_stages(model):
        variables = {**variables, NUDGES: {name: perturbation}}
        return call(model, variables, inputs, train=False)
    perturbed = []

    def add(path, out, output_name, count):
        if output_name != name:
            return out
        perturbed.append(output_name)
        return out + perturbation

    with intercept_calls(_output_interceptor(add)):
        result: Any = call(model, variables, inputs, train=False)
    if len(perturbed) != 1:
        raise ArgumentError(
            f"{name} is inside nn.jit, nn.scan or the like; expected a module that is called once "
            "by itself"
        )
    return result


def _output_interceptor(transform: Any) -> Any:
    """Return an interceptor that applies `transform` to every submodule's output.

    `transform(path, output, name, count)` returns the output of a submodule's `__call__`. It is
    called only for an output that is an array of 2 or more axes.
    """
    calls: Counter[tuple[str, ...]] = Counter()

    def intercept(call, args, kwargs, context):
        out = call(*args, **kwargs)
        path = context.module.path
        if context.method_name != "__call__" or not path:
            return out
        count = calls[path]
        calls[path] += 1
        name = "/".join(path) + (f"#{count + 1}" if count else "")
        if isinstance(out, jax.Array) and out.ndim > 1:
            return transform(path, out, name, count)
        return out

    return intercept
