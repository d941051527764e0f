"""Calls of any flax.linen module: training flag, random streams, collections, outputs."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import errors
from jax.extend.core import Var

from jaxcnn._util import hashable, leaf_shapes, to_one_line
from jaxcnn.config import ArgumentError, format_value
from jaxcnn.data import Split
from jaxcnn.losses import (
    Batch,
    Loss,
    compute_loss,
    has_class_labels,
    is_library_loss,
    metric_dtypes,
)
from jaxcnn.models.norm import layers_over_axis

T = TypeVar("T")

TRAINING = ("train", "training", "is_training")
"""Names of a flag that is true in training mode."""
TESTING = ("deterministic", "use_running_average", "inference")
"""Names of a flag that is true in test mode."""

OTHER_STREAMS = 0x4F
"""Number folded into a step's key for streams other than "dropout"."""


def verify_model(model: Any) -> None:
    """Check that `model` is a flax.linen Module called with images only.

    Raises:
      ArgumentError: for anything else; the message shows the code to write.

    Example:
      >>> verify_model(nn.Dense)
      Traceback (most recent call last):
      jaxcnn.arguments.ArgumentError: model is the class Dense; expected a flax.linen Module. ...
    """
    if isinstance(model, nn.Module):
        flags = set_mode(model, False)[1]
        try:
            inspect.signature(type(model).__call__).bind(model, None, **flags)
        except TypeError as error:
            raise ArgumentError(
                f"{type(model).__name__}.__call__ cannot be called with images alone ({error}); "
                "expected __call__(self, images, train). Write a wrapper module that gives it the "
                "rest."
            ) from None
        return
    if isinstance(model, type):
        name = model.__name__
        is_linen = issubclass(model, nn.Module)
        correction = f"{name}(...), an instance" if is_linen else _to_linen(name)
        raise ArgumentError(
            f"model is the class {name}; expected a flax.linen Module. Write {correction}."
        )
    name = type(model).__name__
    if any(base.__module__.startswith("flax.nnx") for base in type(model).__mro__):
        raise ArgumentError(
            f"model is {name}, an nnx module; expected a flax.linen Module. Write "
            f"{_to_linen(name)}."
        )
    description = format_value(model) if isinstance(model, str) else f"of type {name}"
    correction = (
        f"jaxcnn.create_model({format_value(model)}, num_classes)"
        if isinstance(model, str)
        else "jaxcnn.create_model('resnet20', 10), say"
    )
    # A state, variables or an optimizer: the model is often the argument behind it.
    if hasattr(model, "params") or isinstance(model, Mapping) or hasattr(model, "update"):
        correction = "the model first, and this behind it"
    raise ArgumentError(
        f"model is {description}; expected a flax.linen Module. Write {correction}."
    )


def _to_linen(name):
    return f"flax.nnx.bridge.to_linen({name}, ...) with the arguments of {name}, without rngs"


def set_mode(model: nn.Module, train: bool) -> tuple[nn.Module, dict[str, bool]]:
    """Return the module and the keyword arguments for training or test mode.

    The flag is an argument of `__call__` or else a field of the module. A module without a flag is
    called with images only.

    Args:
      model: any flax.linen module.
      train: training mode, else test mode.

    Example:
      >>> class Net(nn.Module):
      ...     def __call__(self, x, deterministic):
      ...         return x
      >>> set_mode(Net(), train=True)[1]
      {'deterministic': False}
    """
    call: Any = type(model).__call__
    # A Sequential passes its keyword arguments to its first layer.
    if isinstance(model, nn.Sequential):
        first = model.layers[0] if model.layers else None
        return model, set_mode(first, train)[1] if isinstance(first, nn.Module) else {}
    if isinstance(model, SelectedOutput):
        inner, flags = set_mode(model.model, train)
        return (model if inner is model.model else model.clone(model=inner)), flags
    # A flax.nnx.bridge.ToLinen has the flags of the class that it wraps.
    wrapped = getattr(model, "nnx_class", None)
    if wrapped is not None:
        call = wrapped.__call__
    values = dict.fromkeys(TRAINING, train) | dict.fromkeys(TESTING, not train)
    parameters = inspect.signature(call).parameters
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    flags = {
        name: flag
        for name, flag in values.items()
        if name in parameters and parameters[name].kind in by_name
    }
    if flags:
        return model, flags
    if wrapped is not None:
        # Without a flag, an nnx module has its mode as an attribute of its layers.
        mode: Any = _call_in_training if train else _call_in_test
        return model, {"nnx_method": mode}
    fields: dict[str, Any] = {
        name: flag for name, flag in values.items() if name in type(model).__dataclass_fields__
    }
    if fields:
        return model.clone(**fields), {}
    accepts_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return model, {"train": train} if accepts_any else {}


def _call_in_training(module: Any, *args: Any) -> Any:
    module.train()
    return module(*args)


def _call_in_test(module: Any, *args: Any) -> Any:
    module.eval()
    return module(*args)


class SelectedOutput(nn.Module):
    """A module with one of the outputs of another; see `select_output`."""

    model: nn.Module
    output: Any

    def setup(self) -> None:
        """Use the variables of the model under its own names."""
        nn.share_scope(self, self.model)

    def __call__(self, images: jax.Array, **flags: Any) -> Any:
        """Return the selected output of [b, h, w, c]."""
        outputs = self.model(images, **flags)
        if callable(self.output):
            return self.output(outputs)
        # Not a method of a dict, nor a property of an array.
        has_fields = not isinstance(outputs, (Mapping, jax.Array))
        is_name = isinstance(self.output, str)
        is_attribute = has_fields and is_name and hasattr(outputs, self.output)
        try:
            return getattr(outputs, self.output) if is_attribute else outputs[self.output]
        except (KeyError, IndexError, TypeError):
            raise ArgumentError(
                f"output is {format_value(self.output)}, and the model gives "
                f"{_describe_outputs(outputs)}; expected one of these. Write a key, an index, the "
                "name of a field or a function of the outputs."
            ) from None


def _describe_outputs(outputs: Any) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(outputs)
    return ", ".join(jax.tree_util.keystr(path) or "one array" for path, _ in leaves[:8])


def select_output(model: nn.Module, output: Any) -> nn.Module:
    """Return a module with the variables of `model` and one of its outputs.

    So a model with several outputs can be looked at or evaluated by the functions that take one
    array of logits. A state of `model` is one of the result.

    Args:
      model: any flax.linen module.
      output: key, index or field name of the output, or a function of all outputs.

    Raises:
      ArgumentError: `model` is not a module. An unknown output is refused when the result is used.

    Example:
      >>> class Heads(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return {"digit": nn.Dense(10)(x), "parity": nn.Dense(2)(x)}
      >>> parity = select_output(Heads(), "parity")
      >>> variables = Heads().init(jax.random.key(0), jnp.ones((1, 4)))
      >>> parity.apply(variables, jnp.ones((3, 4))).shape
      (3, 2)
    """
    verify_model(model)
    return SelectedOutput(model, output)


def call(
    model: nn.Module,
    variables: Mapping[str, Any],
    inputs: Any,
    *,
    train: bool,
    mutable: Sequence[str] | None = None,
    key: jax.Array | None = None,
    axis_name: str | None = None,
) -> Any:
    """Apply `model` in training or test mode.

    Args:
      model: any flax.linen module.
      variables: "params" and the model's other collections.
      inputs: float32 [b, h, w, c].
      train: the mode.
      mutable: collections whose new values are returned too, as in flax's `apply`.
      key: key of the random numbers of training, whatever the model calls its streams.
      axis_name: the mapped axis that splits the batch, if any. Flax's BatchNorm and Dropout then
        work on the whole batch. Other random numbers differ between devices.

    Returns:
      The outputs, floating ones as float32. With `mutable`, a pair of them and the new collections.

    Raises:
      ArgumentError: while tracing, for a model that changes variables or draws random numbers in
        test mode, that returns no arrays, or for variables of another model.
    """
    try:
        if is_library_model(model):
            return _apply(model, variables, inputs, train, mutable, key)
        with layers_over_axis(axis_name, len(inputs)), _tracing_errors(model):
            return _apply(model, variables, inputs, train, mutable, key, axis_name)
    except (
        errors.ScopeParamNotFoundError,
        errors.ScopeParamShapeError,
        errors.ScopeCollectionNotFound,
    ) as error:
        reason = to_one_line(str(error).split("(https")[0])
        if _depends_on_batch(model, inputs):
            raise ArgumentError(
                f"{type(model).__name__} has parameters whose shapes depend on the number of images"
                f" ({reason}); expected the same for any number. Write x.reshape((len(x), -1)) in "
                "place of a fixed one."
            ) from error
        raise foreign_variables_error(model, reason) from error
    except (TypeError, AttributeError) as error:
        # An array where Flax looks for a module's variables raises these.
        if not (name := _first_mismatch(model, variables, inputs)):
            raise
        raise foreign_variables_error(model, f"{name} differs") from error


@contextlib.contextmanager
def _tracing_errors(model: nn.Module) -> Iterator[None]:
    """Raise one line for Python code that needs the value of a traced array.

    Raises:
      ArgumentError: the code is of such a kind.
    """
    try:
        yield
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        reason = to_one_line(str(error).split("\n")[0], 160)
        raise ArgumentError(
            f"{type(model).__name__} needs a value that is not known while JAX traces it "
            f"({reason}); expected none. Write jnp.where in place of if. Where nn.jit or nn.remat "
            "traces the flag of training, make it a field of the module."
        ) from error


def foreign_variables_error(model: nn.Module, reason: str) -> ArgumentError:
    """Return the error for variables of another model.

    Args:
      model: the model that they were given to.
      reason: the difference.
    """
    return ArgumentError(
        f"the variables are not of this {type(model).__name__} ({reason}); expected "
        "those that it was trained with. Build the model as it was, with the same options and "
        "size of images."
    )


def _depends_on_batch(model: nn.Module, inputs: Any) -> bool:
    """Check if the variables' shapes depend on the number of images."""
    # The result only selects an error message, so that no failure here may replace the error.
    with contextlib.suppress(Exception):
        images = [jax.ShapeDtypeStruct((n, *inputs.shape[1:]), "float32") for n in (1, len(inputs))]
        one, many = (leaf_shapes(variable_shapes(model, each)) for each in images)
        return one != many
    return False


def _first_mismatch(model: nn.Module, variables: Mapping[str, Any], inputs: Any) -> str:
    """Return the first variable that is missing or unknown, or ""."""
    # The result only completes an error message, so that no failure here may replace the error.
    with contextlib.suppress(Exception):
        shapes = variable_shapes(model, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype))
        trees = (shapes, {name: variables.get(name) for name in shapes})
        expected, actual = (
            {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)}
            for tree in trees
        )
        return min(expected ^ actual, default="")
    return ""


def _apply(model, variables, inputs, train, mutable, key, axis_name=None) -> Any:
    model, flags = set_mode(model, train)
    kwargs: dict[str, Any] = dict(flags)
    # Flax takes a stream that is not passed by its name from "params".
    rngs = None
    if key is not None:
        other = jax.random.fold_in(key, OTHER_STREAMS)
        if axis_name is not None:
            other = jax.random.fold_in(other, jax.lax.axis_index(axis_name))
        rngs = {"dropout": key, "params": other}
    try:
        result: Any = model.apply(variables, inputs, mutable=mutable or False, rngs=rngs, **kwargs)
    except (errors.InvalidRngError, errors.ModifyScopeVariableError) as error:
        if train:
            raise
        draws = isinstance(error, errors.InvalidRngError)
        fault = "draws random numbers" if draws else "changes its variables"
        raise ArgumentError(
            f"{type(model).__name__} {fault} in test mode; expected outputs of the images alone. "
            "Write __call__(self, images, train) and give its Dropout deterministic=not train, its "
            "BatchNorm use_running_average=not train."
        ) from error
    outputs, collections = result if mutable else (result, None)
    _check_arrays(model, outputs)
    outputs = _float32(outputs)
    return (outputs, nn.meta.unbox(collections)) if mutable else outputs


def _check_arrays(model: nn.Module, outputs: Any) -> None:
    """Check that a model's outputs are arrays.

    Raises:
      ArgumentError: they are not.
    """
    leaves = jax.tree.leaves(outputs)
    strange = [leaf for leaf in leaves if not isinstance(leaf, (jax.Array, np.ndarray, int, float))]
    if strange or not leaves:
        description = f"a {type(strange[0]).__name__}" if strange else "nothing"
        raise ArgumentError(
            f"{type(model).__name__} returns {description}; expected arrays, or a tuple, dict, "
            "NamedTuple or flax.struct.dataclass of arrays. Return the outputs so."
        )


def _float32(outputs):
    is_floating = isinstance(outputs, jax.Array) and jnp.issubdtype(outputs.dtype, jnp.floating)
    return outputs.astype(jnp.float32) if is_floating else outputs


def init_variables(model: nn.Module, key: jax.Array, image: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """Initialize the model's parameters and the collections that it reads again.

    Collections that a model only writes (`sow`) are left out. In a state, they would grow with
    every step.

    Args:
      model: any flax.linen module.
      key: the parameters are drawn from it.
      image: shape and dtype of a batch of images, [b, h, w, c].

    Raises:
      ArgumentError: for a model without parameters, or whose variables depend on the values of
        images.
    """
    verify_model(model)
    module, flags = set_mode(model, False)
    kwargs: dict[str, Any] = dict(flags)

    def lazy_init(*excluded: str) -> dict[str, Any]:
        # Only the initializers run. Tracing them is quick, while compiling `model.init` takes
        # longer than compiling a step.
        mutable: Any = nn.DenyList(["intermediates", *excluded])
        rngs = _init_rngs(module, key)
        return _unboxed(module.lazy_init(rngs, image, mutable=mutable, **kwargs))

    try:
        with _tracing_errors(model):
            variables = lazy_init()
        for name in _written_only(model, variables, image):
            del variables[name]
    except errors.LazyInitError:
        # The error may come from a sown value, which depends on the images.
        try:
            shapes = variable_shapes(model, image, include_written_only=True)
            variables = lazy_init(*_written_only(model, shapes, image))
        except errors.LazyInitError:
            raise _depends_on_values(model) from None
    if not (is_library_model(model) or _flax_refuses_values()):
        # Images of other values must give the same variables.
        values: Any = np.random.default_rng(0).standard_normal(image.shape, image.dtype)
        mutable: Any = nn.DenyList(["intermediates"])
        rngs = _init_rngs(module, key)
        from_values = _unboxed(module.init(rngs, values, mutable=mutable, **kwargs))
        if not _equal(variables, {name: from_values[name] for name in variables}):
            raise _depends_on_values(model)
    if not jax.tree.leaves(variables.get("params")):
        raise ArgumentError(
            f"{type(model).__name__} has no parameters; expected some to train. Write nn.Dense, "
            "say."
        )
    _check_parameters(model, variables["params"])
    return variables


def _init_rngs(module: nn.Module, key: jax.Array) -> Any:
    """Return the streams of initialization.

    An nnx module makes all of its streams then, whatever their names.
    """
    if not hasattr(module, "nnx_class"):
        return key
    return {"params": key, "default": jax.random.fold_in(key, OTHER_STREAMS)}


def _unboxed(variables: Any) -> dict[str, Any]:
    """Return plain arrays for those in boxes with metadata, such as names of axes.

    Devices hold whole arrays here, so the names are not used.
    """
    return dict(nn.meta.unbox(variables))


def _check_parameters(model: nn.Module, params: Any) -> None:
    """Check that parameters are real floating numbers.

    Raises:
      ArgumentError: they are integers, which have no gradient, or complex numbers, which Optax
        would step along the conjugate of the descent direction.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        correction = (
            "Make its real and its imaginary part a parameter each."
            if is_complex
            else "Write self.variable('constants', name, function), a collection of its own."
        )
        raise ArgumentError(
            f"{type(model).__name__} has a parameter {jax.tree_util.keystr(path)} of "
            f"{leaf.dtype}; expected floating numbers. {correction}"
        )


def _depends_on_values(model: nn.Module) -> ArgumentError:
    return ArgumentError(
        f"{type(model).__name__} initializes its variables from the values of images; expected "
        "initializers of a shape alone. Write self.param(name, initializer, shape)."
    )


@functools.lru_cache(maxsize=1)
def _flax_refuses_values() -> bool:
    """Check that `lazy_init` raises for variables that depend on values of inputs.

    From 0.12.12 on, Flax takes zeros instead.
    """

    class Mean(nn.Module):
        @nn.compact
        def __call__(self, x):
            return self.param("mean", lambda _: x.mean())

    try:
        Mean().lazy_init(jax.random.PRNGKey(0), jax.ShapeDtypeStruct((1,), jnp.float32))
    except errors.LazyInitError:
        return True
    return False


def is_library_model(model: nn.Module) -> bool:
    """Return whether `model` is one of this library's, which are tested."""
    return type(model).__module__.startswith("jaxcnn.models.")


def _equal(tree: Any, other_tree: Any) -> bool:
    def leaves_equal(a: Any, b: Any) -> bool:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")

    return jax.tree.all(jax.tree.map(leaves_equal, tree, other_tree))


def variable_shapes(
    model: nn.Module, image: jax.ShapeDtypeStruct, *, include_written_only: bool = False
) -> dict[str, Any]:
    """Return the shapes of `init_variables`, without allocating anything.

    Args:
      model: any flax.linen module.
      image: shape and dtype of a batch of images, [b, h, w, c].
      include_written_only: return collections that the model only writes (`sow`) too.
    """
    verify_model(model)
    module, flags = set_mode(model, False)
    kwargs: dict[str, Any] = dict(flags)

    def initialize(x: Any) -> dict[str, Any]:
        rngs = _init_rngs(module, jax.random.PRNGKey(0))
        return _unboxed(module.init(rngs, x, **kwargs))

    with _tracing_errors(model):
        shapes: Any = jax.eval_shape(initialize, image)
    excluded = () if include_written_only else _written_only(model, shapes, image)
    return {name: tree for name, tree in shapes.items() if name not in excluded}


def _written_only(model, shapes, image) -> list[str]:
    """Return the collections that the model writes and does not read."""
    candidates = [name for name in shapes if name not in ("params", "batch_stats")]
    return [name for name in candidates if _works_without(name, model, shapes, image)]


def _works_without(name, model, shapes, image) -> bool:
    remaining = {collection: tree for collection, tree in shapes.items() if collection != name}
    key = jax.random.PRNGKey(0)
    try:
        for mode in (False, True):
            jax.eval_shape(
                lambda v, x, train=mode: _apply(model, v, x, train, list(v), key), remaining, image
            )
    except (errors.ScopeVariableNotFoundError, errors.ScopeCollectionNotFound):
        return False
    return True


def check_normalizer(model: nn.Module, normalizer: Any) -> None:
    """Check the constants of images, if the model has a method `check_normalizer` for it.

    Args:
      model: any flax.linen module.
      normalizer: mean and standard deviation that images are normalized by.

    Raises:
      ArgumentError: the model refuses them.

    Example:
      >>> check_normalizer(nn.Dense(2), None)
    """
    check = getattr(model, "check_normalizer", None)
    if check is not None:
        check(normalizer)


def check_outputs(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: jax.ShapeDtypeStruct,
    labels: Any,
    loss: Loss,
    num_classes: int | None = None,
    *,
    train: bool = False,
    axis_name: str | None = None,
) -> tuple[Any, Any, dict[str, Any]]:
    """Check that the model's outputs fit the labels, and return the shapes of what is computed.

    Only shapes are traced; nothing is computed.

    Args:
      model: the network.
      variables: its "params" and other collections.
      images: the shape of a batch, [b, h, w, c].
      labels: the shapes of its labels, [b, ...] each.
      loss: the loss.
      num_classes: the expected number of outputs, if the labels are classes.
      train: the mode to check.
      axis_name: the mapped axis that training averages over, if any.

    Returns:
      The shapes and dtypes of the outputs, of the losses and of the metrics.

    Raises:
      ArgumentError: if the outputs do not fit the labels.
    """
    mutable = [*(name for name in variables if name != "params"), "aux"] if train else None

    def outputs_and_aux(variables, inputs):
        key = jax.random.PRNGKey(0) if train else None
        result = call(
            model,
            variables,
            inputs,
            train=train,
            mutable=mutable,
            key=key,
            axis_name=axis_name,
        )
        return (result[0], result[1].get("aux", {})) if train else (result, {})

    if axis_name:
        # The batch of one device, under the mapped axis that the model averages over.
        mapped = jax.vmap(outputs_and_aux, (None, 0), axis_name=axis_name, axis_size=1)
        per_device = jax.ShapeDtypeStruct((1, *images.shape), images.dtype)
        outputs, aux = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
            jax.eval_shape(mapped, variables, per_device),
        )
    else:
        outputs, aux = jax.eval_shape(outputs_and_aux, variables, images)
    losses, values = jax.eval_shape(partial(compute_loss, loss), outputs, Batch(images, labels))
    if not train:
        _check_pairs(losses, (outputs, images, labels))
    for head in sown_values(aux):
        jax.eval_shape(partial(compute_loss, loss), head, Batch(images, labels))
    if num_classes is not None and has_class_labels(loss) and outputs.shape[-1] != num_classes:
        raise ArgumentError(
            f"the model gives {outputs.shape[-1]} outputs and the data has {num_classes} classes; "
            f"expected as many. Build the model with {num_classes} outputs."
        )
    return outputs, losses, values


def _check_pairs(losses: Any, arrays: Any) -> None:
    """Check that a loss did not broadcast [b, 1] and [b] to a number for each pair of images.

    A second axis of the batch's size comes from one of the arrays, or from broadcasting. In test
    mode the batch is checked at a size that other axes hardly have.

    Raises:
      ArgumentError: it did.
    """
    sizes = {leaf.shape[1] for leaf in jax.tree.leaves(arrays) if len(leaf.shape) > 1}
    if losses.shape[:1] == losses.shape[1:2] and losses.shape[0] not in sizes:
        outputs, _, labels = arrays
        shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (outputs, labels)]
        found, given = (" and ".join(map(str, part)) for part in shapes)
        raise ArgumentError(
            f"the losses have shape {losses.shape}, one for each pair of images, from outputs "
            f"{found} and labels {given}; expected ({losses.shape[0]},), one for each image. "
            "Write outputs[:, 0] for outputs [b, 1]."
        )


def activation_bytes(model: nn.Module, variables: Mapping[str, Any], shape: tuple[int, ...]) -> int:
    """Return the bytes of an image's activations in test mode, at their peak.

    They are those of the operations in their order, each with its inputs and outputs. The plan of a
    compiler differs: it fuses some operations, and keeps other arrays longer. Nothing is computed.

    Args:
      model: the network.
      variables: its "params" and other collections.
      shape: of an image, (h, w, c).

    Example:
      >>> variables = nn.Dense(6).init(jax.random.key(0), jnp.zeros((1, 3, 3, 2)))
      >>> activation_bytes(nn.Dense(6), variables, (3, 3, 2)) >= 4 * 3 * 3 * 6
      True
    """

    def peak(batch_size: int) -> int:
        images = jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32)
        run = jax.make_jaxpr(lambda variables, x: call(model, variables, x, train=False))
        return _peak_bytes(run(variables, images).jaxpr)

    # The difference is without what is computed from the parameters alone.
    return max(0, peak(2) - peak(1))


def _peak_bytes(jaxpr: Any) -> int:
    """Return the most bytes of intermediate values that a program needs at once."""
    last_use = {}
    for number, equation in enumerate(jaxpr.eqns):
        for value in equation.invars:
            if isinstance(value, Var):
                last_use[value] = number
    for value in jaxpr.outvars:
        if isinstance(value, Var):
            last_use[value] = len(jaxpr.eqns)
    live: dict[Any, int] = {}
    most = 0
    for number, equation in enumerate(jaxpr.eqns):
        inner = max((_peak_bytes(part) for part in _inner_programs(equation)), default=0)
        outputs = {value: _num_bytes(value.aval) for value in equation.outvars}
        live |= outputs
        most = max(most, sum(live.values()) + max(0, inner - sum(outputs.values())))
        for value in [*equation.invars, *equation.outvars]:
            if isinstance(value, Var) and last_use.get(value, -1) <= number:
                live.pop(value, None)
    return most


def _inner_programs(equation: Any) -> list[Any]:
    """Return the programs in an operation's parameters, as of a nested jit."""
    flat = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "jaxpr")
    )
    parts = [getattr(leaf, "jaxpr", leaf) for leaf in flat]
    return [part for part in parts if hasattr(part, "eqns")]


def _num_bytes(aval: Any) -> int:
    size = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return math.prod(getattr(aval, "shape", ())) * size


def sown_values(collection: Any) -> list[Any]:
    """Return the values that a model sowed, each as a whole.

    Flax stores them in tuples. A value may be a tree itself.
    """
    stored = jax.tree.leaves(collection, is_leaf=lambda node: isinstance(node, tuple))
    values = []
    for node in stored:
        values += node if isinstance(node, tuple) else [node]
    return values


_check_results: dict[Any, Any] = {}


def check_once(key: tuple[Any, ...], variables: Any, check: Callable[[], T]) -> T:
    """Return `check()`, cached by `key` and the shapes of `variables`.

    The checks trace a network, which takes up to seconds.
    """
    leaves, tree = jax.tree.flatten(variables)
    shapes = tuple((np.shape(leaf), str(leaf.dtype)) for leaf in leaves)
    full_key = (hashable(key), tree, shapes)
    if full_key not in _check_results:
        result = check()
        if len(_check_results) >= 64:
            del _check_results[next(iter(_check_results))]
        _check_results[full_key] = result
    return _check_results[full_key]


def loss_metric_dtypes(
    model: nn.Module, variables: Mapping[str, Any], split: Split, loss: Loss
) -> tuple[tuple[str, str], ...]:
    """Return the names of a loss's metrics and the dtypes of their sums.

    Args:
      model: the network.
      variables: its "params" and other collections.
      split: images and labels, of which only the shapes are used.
      loss: the loss.

    Raises:
      ArgumentError: the outputs do not fit the labels. It is not raised for losses of the library,
        whose metrics are known.
    """
    if is_library_loss(loss):
        return (("error", "int32"),)
    # `_check_pairs` needs a batch size that no other axis has.
    images, labels = batch_shapes(split, 97)

    def trace() -> tuple[tuple[str, str], ...]:
        return metric_dtypes(check_outputs(model, variables, images, labels, loss)[2])

    return check_once(("metrics", model, images, labels, loss), variables, trace)


def batch_shapes(split: Split, n: int) -> tuple[jax.ShapeDtypeStruct, Any]:
    """Return the shapes of n inputs of a split, and of their labels."""
    images = jax.ShapeDtypeStruct((n, *split.images.shape[1:]), jnp.float32)
    labels = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct((n, *array.shape[1:]), array.dtype), split.labels
    )
    return images, labels
