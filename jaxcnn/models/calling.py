"""How any flax.linen module is called: its training flag, its random streams, its collections and its outputs."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import errors

from jaxcnn import metrics
from jaxcnn.recipe import RecipeError, shown

TRAINING = ("train", "training", "is_training")
"""Names of a flag that is true in training."""
TESTING = ("deterministic", "use_running_average", "inference")
"""Names of a flag that is true in testing."""

OTHERS = 0x4F
"""Folded into a step's key for every stream that is not called "dropout"."""


def verify_model(model: Any) -> None:
    """Raise RecipeError unless `model` is a flax.linen Module that can be called with images alone.

    Example:
      >>> verify_model(nn.Dense)
      Traceback (most recent call last):
      jaxcnn.arguments.RecipeError: model is the class Dense; expected a flax.linen Module. Write Dense(...), an instance.
    """
    if isinstance(model, nn.Module):
        flags = switches(model, False)[1]
        try:
            inspect.signature(type(model).__call__).bind(model, None, **flags)
        except TypeError as error:
            raise RecipeError(
                f"{type(model).__name__}.__call__ cannot be called with images alone ({error}); expected "
                "__call__(self, images, train). Write a wrapper module that gives it the rest."
            ) from None
        return
    if isinstance(model, type):
        name = model.__name__
        mend = f"{name}(...), an instance" if issubclass(model, nn.Module) else _nnx(name)
        raise RecipeError(f"model is the class {name}; expected a flax.linen Module. Write {mend}.")
    name = type(model).__name__
    if any(base.__module__.startswith("flax.nnx") for base in type(model).__mro__):
        raise RecipeError(f"model is {name}, an nnx module; expected a flax.linen Module. Write {_nnx(name)}.")
    what = shown(model) if isinstance(model, str) else f"of type {name}"
    mend = f"jaxcnn.build({shown(model)}, classes)" if isinstance(model, str) else "jaxcnn.build('resnet20', 10), say"
    raise RecipeError(f"model is {what}; expected a flax.linen Module. Write {mend}.")


def _nnx(name):
    return f"flax.nnx.bridge.to_linen({name}, ...) with the arguments of {name}, without rngs"


def switches(model: nn.Module, train: bool) -> tuple[nn.Module, dict[str, bool]]:
    """The module and the keyword arguments that put it into training or test mode.

    The flag is an argument of `__call__` or else a field of the module; a module without one is called with images alone.

    Example:
      >>> class Net(nn.Module):
      ...     def __call__(self, x, deterministic):
      ...         return x
      >>> switches(Net(), train=True)[1]
      {'deterministic': False}
    """
    call: Any = type(model).__call__
    if isinstance(model, nn.Sequential):  # hands its keyword arguments to its first layer
        first = model.layers[0] if model.layers else None
        return model, switches(first, train)[1] if isinstance(first, nn.Module) else {}
    wrapped = getattr(model, "nnx_class", None)  # of flax.nnx.bridge.ToLinen
    if wrapped is not None:
        call = wrapped.__call__
    values = dict.fromkeys(TRAINING, train) | dict.fromkeys(TESTING, not train)
    taken = inspect.signature(call).parameters
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    flags = {name: on for name, on in values.items() if name in taken and taken[name].kind in by_name}
    if flags or wrapped is not None:
        return model, flags
    fields: dict[str, Any] = {name: on for name, on in values.items() if name in type(model).__dataclass_fields__}
    if fields:
        return model.clone(**fields), {}
    keywords = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
    return model, {"train": train} if keywords else {}


def call(
    model: nn.Module,
    variables: Mapping[str, Any],
    inputs: Any,
    *,
    train: bool,
    mutable: Sequence[str] | None = None,
    key: jax.Array | None = None,
) -> Any:
    """Apply `model` in training or test mode; floating outputs are float32.

    Args:
      variables: "params" and the model's other collections.
      inputs: float32 [b, h, w, c].
      train: the mode.
      mutable: collections whose new values are returned too, as in flax's `apply`.
      key: what is random in training is drawn from it, whatever the model calls its streams.

    Raises:
      RecipeError: while tracing, for a model that changes variables or draws random numbers in test mode.
    """
    try:
        return _called(model, variables, inputs, train, mutable, key)
    except (errors.ScopeParamNotFoundError, errors.ScopeParamShapeError, errors.ScopeCollectionNotFound) as error:
        raise foreign_variables(model, " ".join(str(error).split("(https")[0].split())) from error
    except (TypeError, AttributeError) as error:  # of arrays where Flax looks for a module's variables
        if not (name := _misplaced(model, variables, inputs)):
            raise
        raise foreign_variables(model, f"{name} differs") from error


def foreign_variables(model: nn.Module, why: str) -> RecipeError:
    """Return the error for variables that are not of `model`, with the difference."""
    return RecipeError(
        f"the variables are not of this {type(model).__name__} ({why}); expected "
        "those that it was trained with. Build the model as it was, with the same options and size of images."
    )


def _misplaced(model: nn.Module, variables: Mapping[str, Any], inputs: Any) -> str:
    """The first of the model's variables that is missing or that it does not have, or ""."""
    with contextlib.suppress(Exception):
        shapes = initial_shapes(model, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype))
        trees = (shapes, {name: variables.get(name) for name in shapes})
        mine, given = (
            {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)} for tree in trees
        )
        return min(mine ^ given, default="")
    return ""


def _called(model, variables, inputs, train, mutable, key) -> Any:
    model, flags = switches(model, train)
    extra: dict[str, Any] = dict(flags)
    # Flax takes a stream that is not given by its name from "params".
    rngs = None if key is None else {"dropout": key, "params": jax.random.fold_in(key, OTHERS)}
    try:
        result: Any = model.apply(variables, inputs, mutable=mutable or False, rngs=rngs, **extra)
    except (errors.InvalidRngError, errors.ModifyScopeVariableError) as error:
        if train:
            raise
        what = "draws random numbers" if isinstance(error, errors.InvalidRngError) else "changes its variables"
        raise RecipeError(
            f"{type(model).__name__} {what} in test mode; expected outputs of the images alone. Write "
            "__call__(self, images, train) and give its Dropout deterministic=not train, its BatchNorm "
            "use_running_average=not train."
        ) from error
    return (_float32(result[0]), result[1]) if mutable else _float32(result)


def _float32(outputs):
    narrow = isinstance(outputs, jax.Array) and jnp.issubdtype(outputs.dtype, jnp.floating)
    return outputs.astype(jnp.float32) if narrow else outputs


def initial(model: nn.Module, key: jax.Array, image: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """The model's variables: parameters drawn from `key` and the collections that it reads again.

    What a model only reports (`sow`) is none of them: in a state, such reports would grow with every step.

    Raises:
      RecipeError: for a model without parameters, or whose variables depend on the values of images.
    """
    verify_model(model)
    module, flags = switches(model, False)
    extra: dict[str, Any] = dict(flags)

    def drawn(*left_out: str) -> dict[str, Any]:
        # Only the initializers run: tracing them is quick, while compiling `model.init` takes longer than compiling a step.
        kept: Any = nn.DenyList(["intermediates", *left_out])
        return dict(module.lazy_init(key, image, mutable=kept, **extra))

    try:
        variables = drawn()
        for name in _reports(model, variables, image):
            del variables[name]
    except errors.LazyInitError:  # of a report's value, perhaps
        try:
            variables = drawn(*_reports(model, initial_shapes(model, image, reports=True), image))
        except errors.LazyInitError:
            raise _depends_on_values(model) from None
    if not (in_library(model) or _flax_refuses_values()):
        values: Any = np.random.default_rng(0).standard_normal(image.shape, image.dtype)
        kept: Any = nn.DenyList(["intermediates"])
        others = dict(module.init(key, values, mutable=kept, **extra))
        if not _equal(variables, {name: others[name] for name in variables}):
            raise _depends_on_values(model)
    if not jax.tree.leaves(variables.get("params")):
        raise RecipeError(f"{type(model).__name__} has no parameters; expected some to train. Write nn.Dense, say.")
    return variables


def _depends_on_values(model: nn.Module) -> RecipeError:
    return RecipeError(
        f"{type(model).__name__} initializes its variables from the values of images; expected initializers of a "
        "shape alone. Write self.param(name, initializer, shape)."
    )


@functools.lru_cache(maxsize=1)
def _flax_refuses_values() -> bool:
    """Whether `lazy_init` raises for variables that depend on values of inputs; from 0.12.12 on, Flax takes zeros instead."""

    class Mean(nn.Module):
        @nn.compact
        def __call__(self, x):
            return self.param("mean", lambda _: x.mean())

    try:
        Mean().lazy_init(jax.random.PRNGKey(0), jax.ShapeDtypeStruct((1,), jnp.float32))
    except errors.LazyInitError:
        return True
    return False


def in_library(model: nn.Module) -> bool:
    """Whether `model` is one of this library's, each of which is tested to do what its fields say."""
    return type(model).__module__.startswith("jaxcnn.models.")


def _equal(one: Any, other: Any) -> bool:
    def same(a: Any, b: Any) -> bool:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")

    return jax.tree.all(jax.tree.map(same, one, other))


def initial_shapes(model: nn.Module, image: jax.ShapeDtypeStruct, *, reports: bool = False) -> dict[str, Any]:
    """The shapes of `initial`, without allocating anything; with `reports`, of what the model only reports too."""
    verify_model(model)
    module, flags = switches(model, False)
    extra: dict[str, Any] = dict(flags)
    shapes: Any = dict(jax.eval_shape(lambda x: module.init(jax.random.PRNGKey(0), x, **extra), image))
    left_out = () if reports else _reports(model, shapes, image)
    return {name: part for name, part in shapes.items() if name not in left_out}


def _reports(model, shapes, image) -> list[str]:
    others = [name for name in shapes if name not in ("params", "batch_stats")]
    return [name for name in others if _works_without(name, model, shapes, image)]


def _works_without(name, model, shapes, image) -> bool:
    rest = {other: part for other, part in shapes.items() if other != name}
    key = jax.random.PRNGKey(0)
    try:
        for train in (False, True):
            jax.eval_shape(lambda v, x, on=train: _called(model, v, x, on, list(v), key), rest, image)
    except (errors.ScopeVariableNotFoundError, errors.ScopeCollectionNotFound):
        return False
    return True


def compared(
    outputs: Any, inputs: Any, labels: Any, loss: str, classes: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """The outputs and what `loss` compares them with; RecipeError, while tracing, if they do not fit.

    Args:
      outputs: what the model gives, or its shapes.
      inputs: images float32 [b, h, w, c].
      labels: int32 [b] or [b, h, w].
      loss: a name in `jaxcnn.metrics.LOSSES`.
      classes: the number of outputs that there must be, if it is known.
    """
    target = metrics.target(loss, inputs, labels)
    one_array(outputs)
    n = target.shape[0]
    if outputs.ndim < 2 or outputs.shape[0] != n:
        raise RecipeError(
            f"the model gives outputs of shape {outputs.shape} for {n} images; expected the images first, ({n}, ...). "
            "Keep the first axis of the images in __call__."
        )
    if why := metrics.mismatch(loss, outputs.shape, target.shape):
        raise RecipeError(why)
    if classes is not None and loss != "reconstruction" and outputs.shape[-1] != classes:
        raise RecipeError(
            f"the model gives {outputs.shape[-1]} outputs and the data has {classes} classes; expected as many. Build the "
            f"model with {classes} outputs."
        )
    return outputs, target


def one_array(outputs: Any) -> None:
    """Raise RecipeError unless `outputs` is one array (or its shape) of floating numbers."""
    if not hasattr(outputs, "dtype") or not hasattr(outputs, "shape"):
        number = f" of {len(outputs)}" if isinstance(outputs, (tuple, list, Mapping)) else ""
        raise RecipeError(
            f"the model gives a {type(outputs).__name__}{number}; expected one array of outputs. Write a wrapper module whose "
            "__call__ returns the array to train on."
        )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise RecipeError(
            f"the model gives outputs of {outputs.dtype}; expected floating numbers, such as logits. Leave argmax and casts "
            "out of __call__."
        )


def check_outputs(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: jax.ShapeDtypeStruct,
    labels: jax.ShapeDtypeStruct,
    loss: str,
    classes: int | None = None,
    *,
    train: bool = False,
    axis: str | None = None,
) -> tuple[int, ...]:
    """The shape of the model's outputs, found without computing; RecipeError if they do not fit the labels.

    Args:
      model, variables: the network and its "params" and other collections.
      images, labels: the shapes of a batch, [b, h, w, c] and [b] or [b, h, w].
      loss, classes: as in `compared`.
      train: the mode that is looked at.
      axis: the mapped axis that training averages over, if any.
    """
    mutable = [*(name for name in variables if name != "params"), "aux"] if train else None

    def outputs(variables, inputs):
        key = jax.random.PRNGKey(0) if train else None
        found = call(model, variables, inputs, train=train, mutable=mutable, key=key)
        return (found[0], found[1].get("aux", {})) if train else (found, {})

    if axis:  # a batch on one device
        inner = jax.vmap(outputs, (None, 0), axis_name=axis, axis_size=1)
        one = jax.ShapeDtypeStruct((1, *images.shape), images.dtype)
        found = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), jax.eval_shape(inner, variables, one)
        )
    else:
        found = jax.eval_shape(outputs, variables, images)
    for each in (found[0], *jax.tree.leaves(found[1])):
        compared(each, images, labels, loss, classes)
    return found[0].shape
