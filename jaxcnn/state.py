"""State of a run.

It consists of arrays only, so that saving, comparing, stacking and placing it are tree maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn import augment, metrics
from jaxcnn._util import format_arrays, format_lines, is_abstract, leaf_shapes
from jaxcnn.arguments import is_iterator
from jaxcnn.config import ArgumentError, TrainConfig, format_value, verify_config
from jaxcnn.data import Dataset, verify_inputs
from jaxcnn.losses import Loss, as_loss
from jaxcnn.models.calling import (
    init_variables,
    loss_metric_dtypes,
    variable_shapes,
    verify_model,
)
from jaxcnn.optim import as_transformation, check_stages, eval_params, trainable_params
from jaxcnn.optim.transforms import (
    check_averages,
    init_optimizer,
    needs_two_copies,
    refuses_other_params,
    replace_copies,
)

INIT, ORDER, AUGMENT, DROPOUT = range(4)
"""Streams of a run's random numbers, each folded into its key."""


class State(NamedTuple):
    """Arrays of a run at one step.

    The key never changes. A step draws its random numbers from `fold_in(state.rng, ..., step)`.

    Attributes:
      step: int32 []: number of steps taken.
      params: parameters that the optimizer moves, float32 leaves.
      model_state: the model's other collections, such as `{"batch_stats": ...}`.
      opt_state: state of the optimizer.
      rng: key of the seed, uint32 [2], or [4] of JAX's "rbg" generator.
      normalizer: constants that turn bytes into inputs. With them, a state can be evaluated on
        plain images.
      metrics: training sums since the last row. A run that was stopped between rows thereby has the
        rows of one that was not.
    """

    step: Any
    params: Any
    model_state: Any
    opt_state: Any
    rng: Any
    normalizer: augment.Normalizer
    metrics: metrics.Metrics

    def __repr__(self) -> str:
        collections = self.model_state.items() if isinstance(self.model_state, Mapping) else ()
        trees = {"params": self.params, **dict(collections), "opt_state": self.opt_state}
        lines = {
            "step": _format_step(self.step),
            **_describe_trees(trees),
            "normalizer": format_arrays(self.normalizer),
            "metrics": repr(self.metrics),
        }
        return format_lines("State", lines)


def _format_step(step: Any) -> str:
    is_number = not is_abstract(step) and np.shape(step) == ()
    return str(int(step)) if is_number else format_arrays(step)


def _describe_trees(trees: Mapping[str, Any]) -> dict[str, str]:
    """Describe trees by the number of their arrays and of the values in them, and by dtypes."""
    leaves = {
        name: [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
        for name, tree in trees.items()
    }
    sizes = {name: sum(math.prod(np.shape(a)) for a in arrays) for name, arrays in leaves.items()}
    width = max(len(f"{size:,}") for size in sizes.values())
    texts = {}
    for name, arrays in leaves.items():
        dtypes = ", ".join(sorted({str(array.dtype) for array in arrays}))
        text = f"{sizes[name]:>{width},} value{'s' * (sizes[name] != 1)}"
        text += f" in {len(arrays):,} array{'s' * (len(arrays) != 1)}"
        texts[name] = f"{text}, {dtypes}" if dtypes else text
    return texts


Variables = Mapping[str, Any]
"""Variables of a network by collection: `{"params": ..., "batch_stats": ...}`."""


def as_state(
    model: Any,
    state: State | Variables,
    normalizer: augment.Normalizer | Dataset | None = None,
    images: Any = None,
) -> State:
    """Return a state, or plain variables as the state that evaluates them.

    Functions that evaluate a network convert their state here.

    Args:
      model: the network.
      state: a State, or variables, `{"params": ..., "batch_stats": ...}`.
      normalizer: constants that images are normalized by, for variables alone. They are a
        `Normalizer`, or a `Dataset`, whose mean image is subtracted as with `TrainConfig()`.
      images: array [n, h, w, c] whose shape constants of each channel [c] are for.

    Returns:
      A state at step 0 without an optimizer, or `state` itself.

    Raises:
      ArgumentError: `state` is neither, variables have no constants, a State has constants already,
        or they do not fit the images.

    Example:
      >>> from jaxcnn import create_model, load_dataset
      >>> model, data = create_model("mlp", 10), load_dataset("digits")
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
      >>> as_state(model, variables, normalizer=data).normalizer.mean.shape
      (8, 8, 1)
    """
    verify_model(model)
    if not isinstance(state, Mapping):
        verify_state(state)
        if normalizer is not None:
            raise ArgumentError(
                "the state has constants of normalization, and so has the call; expected one of "
                "them. Leave out normalizer, or write state._replace(normalizer=normalizer)."
            )
        return state
    if not isinstance(state.get("params"), Mapping):
        raise ArgumentError(
            f"variables have no params, but {', '.join(map(str, list(state)[:5])) or 'nothing'}; "
            "expected a State, or the collections of a network. Write {'params': params, ...}."
        )
    if isinstance(normalizer, Dataset):
        verify_inputs(normalizer)
        normalizer = normalizer_of(TrainConfig(), normalizer)
    elif normalizer is None:
        raise ArgumentError(
            "state is a dict of variables, which has no constants of normalization; expected them "
            "too, or a State. Write normalizer=data for the mean of a Dataset, or "
            "normalizer=jaxcnn.augment.IMAGENET_NORMALIZER."
        )
    model_state = {name: tree for name, tree in state.items() if name != "params"}
    result = State(
        np.int32(0),
        state["params"],
        model_state,
        (),
        np.zeros(2, np.uint32),
        _with_image_shape(normalizer, images),
        jax.tree.map(np.asarray, metrics.zeros()),
    )
    if fault := _first_fault(result):
        if fault.startswith("normalizer"):
            raise ArgumentError(
                f"{fault}. Write normalizer=data for those of a Dataset, or "
                "normalizer=jaxcnn.augment.IMAGENET_NORMALIZER."
            )
        raise ArgumentError(
            f"the variables' {fault}. Write what load_weights or model.init returns."
        )
    return result


def _with_image_shape(normalizer: Any, images: Any) -> Any:
    """Return constants of each channel as those of each pixel of some images."""
    shape = np.shape(images)[1:] if isinstance(images, np.ndarray) else ()
    parts = isinstance(normalizer, augment.Normalizer) and all(map(_is_array, normalizer))
    if not parts or len(shape) != 3:
        return normalizer
    mean, std = (np.asarray(part, np.float32) for part in normalizer)
    fits = mean.shape in ((1,), (shape[2],), (1, 1, shape[2])) and std.shape in ((1,), (shape[2],))
    if not fits:
        return normalizer
    return augment.Normalizer(
        np.broadcast_to(mean, shape),  # type: ignore[arg-type]
        np.broadcast_to(std, shape[2:]),  # type: ignore[arg-type]
    )


def verify_state(state: Any) -> None:
    """Check that `state` is a State with arrays of the right kinds.

    Raises:
      ArgumentError: it is not a State, or its variables, step, key or normalizer are invalid.
    """
    if isinstance(state, State):
        if fault := _first_fault(state):
            raise ArgumentError(f"the state's {fault}. Write what train or init_state returns.")
        return
    if isinstance(state, Mapping):
        raise ArgumentError(
            "state is a dict of variables; "
            "expected a State, which also has what normalizes images. "
            "Write with_variables(init_state(model, tx, config, data), variables)."
        )
    raise ArgumentError(
        f"state is of type {type(state).__name__}; expected a State. Write what train or "
        "init_state returns."
    )


def _first_fault(state: State) -> str:
    """Describe the first invalid part of a state, and what was expected.

    Returns:
      The description, or "" for a valid state.
    """
    for name in ("params", "model_state"):
        tree = getattr(state, name)
        if not isinstance(tree, Mapping):
            return f"{name} is {format_value(tree)}; expected arrays by name"
        leaves = jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda x: x is None or is_iterator(x)
        )
        for path, leaf in leaves:
            if not _is_array(leaf):
                location = jax.tree_util.keystr(path)
                return f"{name} has {format_value(leaf)} at {location}; expected arrays of numbers"
    is_integer = type(state.step) is int or (
        _is_array(state.step) and state.step.dtype.kind in "iu"
    )
    if not is_integer or np.shape(state.step) != ():
        return f"step is {format_value(state.step)}; expected an integer"
    is_key = _is_array(state.rng) and state.rng.dtype == np.uint32
    if not is_key or np.shape(state.rng) not in ((2,), (4,)):
        return f"rng is {format_value(state.rng)}; expected a key as jax.random.PRNGKey makes it"
    for name in ("opt_state", "metrics"):
        leaves = jax.tree.leaves(getattr(state, name), is_leaf=is_iterator)
        if not all(map(_is_array, leaves)):
            return f"{name} is {format_value(getattr(state, name))}; expected arrays"
    normalizer = state.normalizer
    are_floats = isinstance(normalizer, augment.Normalizer) and all(
        _is_array(leaf) and leaf.dtype.kind == "f" for leaf in normalizer
    )
    if (
        not are_floats
        or np.ndim(normalizer.mean) != 3
        or np.shape(normalizer.std) != np.shape(normalizer.mean)[2:]
    ):
        return (
            f"normalizer is {format_value(normalizer)}; "
            "expected a Normalizer of mean [h, w, c] and std [c]"
        )
    return ""


def _is_array(leaf: Any) -> bool:
    types = (np.ndarray, np.generic, jax.Array)
    if not isinstance(leaf, types) or isinstance(leaf, np.ma.MaskedArray):
        return False
    is_numeric = getattr(leaf.dtype, "kind", "?") in "fiub"
    # The kind of bfloat16 is none of these.
    is_numeric = is_numeric or jnp.issubdtype(leaf.dtype, jnp.floating)
    return is_numeric and leaf.dtype.isnative


def image_shape_of(model: Any, state: Any) -> tuple[int, ...]:
    """Return the shape [h, w, c] of the images of `state`.

    Raises:
      ArgumentError: `model` is not a model, or `state` not a state.
    """
    verify_model(model)
    verify_state(state)
    return np.shape(state.normalizer.mean)


def _check_raw_keys(description: str, tree: Any, correction: str) -> None:
    """Check that a tree has no typed random keys.

    Neither a checkpoint nor a comparison takes them.

    Raises:
      ArgumentError: a leaf is a typed random key.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(getattr(leaf, "dtype", np.dtype(int)), jax.dtypes.prng_key):
            name = jax.tree_util.keystr(path)
            raise ArgumentError(
                f"{name} of the {description} is a typed random key; expected arrays of numbers. "
                f"{correction}"
            )


def fold_in(key: jax.Array, *path: Any) -> jax.Array:
    """Fold integers into a key, one after another.

    Example:
      >>> key, epoch = jax.random.PRNGKey(0), 3
      >>> expected = jax.random.fold_in(jax.random.fold_in(key, ORDER), epoch)
      >>> fold_in(key, ORDER, epoch).tolist() == expected.tolist()
      True
    """
    for number in path:
        key = jax.random.fold_in(key, number)
    return key


def eval_state(state: State) -> State:
    """Return the state for evaluation and prediction.

    `with_ema`, lookahead and schedule-free train at one point and return another
    (`jaxcnn.optim.eval_params`). The result has the point that they return, and no optimizer's
    state to train on with. For every other optimizer it is `state` itself.
    """
    params = eval_params(state.opt_state, state.params)
    return state if params is state.params else state._replace(params=params, opt_state=())


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation | optax.MultiSteps,
    config: TrainConfig,
    data: Dataset,
    *,
    loss: str | Loss = "cross-entropy",
) -> State:
    """Return the state at step 0, as arrays on the host.

    Parameters are drawn from the seed's INIT stream.

    Args:
      model: maps float32 [b, h, w, c] to logits, in test mode as `jaxcnn.models.calling` sets it.
      tx: the optimizer.
      config: its seed, its normalization and its frozen stages are used.
      data: means and standard deviations are used, and the shapes and dtypes of its images and
        labels, but not their values.
      loss: that of `train` or `make_train_step`, whose metrics the state sums up.

    Raises:
      ArgumentError: an argument is invalid, or the variables or the optimizer's state have typed
        random keys.

    Example:
      >>> from jaxcnn import OptimizerConfig, create_model, create_optimizer, load_dataset
      >>> model, tx = create_model("plain8", 10), create_optimizer(OptimizerConfig())
      >>> state = init_state(model, tx, TrainConfig(), load_dataset("digits"))
      >>> int(state.step), state.normalizer.mean.shape
      (0, (8, 8, 1))
    """
    verify_config(config, TrainConfig)
    verify_inputs(data)
    key = jax.random.PRNGKey(config.seed)
    image = jax.ShapeDtypeStruct((2, *data.train.images.shape[1:]), jnp.float32)
    tx = as_transformation(tx)
    variables = init_variables(model, fold_in(key, INIT), image)
    params = variables.pop("params")
    check_stages("freeze", params, config.freeze)
    opt_state = init_optimizer(tx, trainable_params(params, config.freeze))
    if needs_two_copies(opt_state):
        raise ArgumentError(
            "tx has optax.lookahead, which trains two copies of the parameters; expected one copy. "
            "Use jaxcnn.optim.transforms.lookahead(fast, period, share)."
        )
    check_averages(opt_state)
    normalizer = normalizer_of(config, data)
    dtypes = loss_metric_dtypes(model, {"params": params, **variables}, data.train, as_loss(loss))
    sums = metrics.zeros(dtypes)
    state = State(jnp.int32(0), params, variables, opt_state, key, normalizer, sums)
    _check_raw_keys("model's variables", (params, variables), "Write jax.random.PRNGKey(0).")
    correction = (
        "Keep jax.random.key_data(key) in it. In place of optax.add_noise, write "
        "jaxcnn.optim.transforms.add_noise(0.01, 0.55, jax.random.PRNGKey(0))."
    )
    _check_raw_keys("optimizer's state", opt_state, correction)
    # With JAX_ENABLE_X64, optax's constants are wider than the parameters.
    if all(leaf.dtype != np.float64 for leaf in jax.tree.leaves(params)):
        opt_state = jax.tree.map(
            lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf, opt_state
        )
        state = state._replace(opt_state=opt_state)
    return jax.tree.map(lambda leaf: np.asarray(jnp.asarray(leaf)), state)


def normalizer_of(config: TrainConfig, data: Dataset) -> augment.Normalizer:
    """Return the mean and the standard deviation that a run normalizes images by.

    Args:
      config: of the run.
      data: that it is trained on.

    Raises:
      ArgumentError: the config's constants do not fit the images' channels.

    Example:
      >>> from jaxcnn import load_dataset
      >>> normalizer_of(TrainConfig(), load_dataset("digits")).mean.shape
      (8, 8, 1)
    """
    return augment.make_normalizer(
        data.mean, data.std, subtract=config.subtract_mean, divide=config.divide_std
    )


def state_shapes(
    model: nn.Module,
    tx: optax.GradientTransformation | optax.MultiSteps,
    config: TrainConfig,
    data: Dataset,
    *,
    loss: str | Loss = "cross-entropy",
) -> State:
    """Return the state of `init_state` as `jax.ShapeDtypeStruct`s.

    Nothing of the network's size is allocated.

    Example:
      >>> from jaxcnn import create_model, load_dataset
      >>> model = create_model("plain8", 10, width=100_000)
      >>> shapes = state_shapes(model, optax.sgd(0.1), TrainConfig(), load_dataset("digits"))
      >>> shapes.params["head"]["kernel"].shape
      (400000, 10)
    """
    verify_config(config, TrainConfig)
    verify_inputs(data)
    image = jax.ShapeDtypeStruct((2, *data.train.images.shape[1:]), jnp.float32)
    key = jax.eval_shape(jax.random.PRNGKey, 0)
    variables = variable_shapes(model, image)
    params = variables.pop("params")
    normalizer = jax.eval_shape(partial(normalizer_of, config, data))
    trained = trainable_params(params, config.freeze)
    opt_state = init_optimizer(as_transformation(tx), trained, only_shapes=True)
    dtypes = loss_metric_dtypes(model, {"params": params, **variables}, data.train, as_loss(loss))
    sums = jax.eval_shape(partial(metrics.zeros, dtypes))
    state = State(jnp.int32(0), params, variables, opt_state, key, normalizer, sums)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), state)


def with_variables(state: State, variables: Mapping[str, Any] | State) -> State:
    """Return `state` with the parameters and statistics of `variables`.

    They are those of `jaxcnn.load_weights`, say, or of another state. It is for the start of a run,
    because the optimizer's state stays. At step 0, copies of the parameters in it are replaced too,
    such as the average of `jaxcnn.optim.with_ema`. Lookahead and schedule-free are refused.

    Args:
      state: of the same model.
      variables: {"params": ...} and the model's other collections, float32 arrays.

    Raises:
      ArgumentError: names or shapes are not the state's, or the optimizer has parameters of its
        own. The message has the number of the variables that do not fit, and the first of them.

    Example:
      >>> from jaxcnn import create_model, load_dataset
      >>> model, data, tx = create_model("plain8", 10), load_dataset("digits"), optax.sgd(0.1)
      >>> state = init_state(model, tx, TrainConfig(), data)
      >>> source = init_state(model, tx, TrainConfig(seed=1), data)
      >>> copy = with_variables(state, {"params": source.params, **source.model_state})
      >>> bool((copy.params["head"]["kernel"] == source.params["head"]["kernel"]).all())
      True
    """
    verify_state(state)
    if isinstance(variables, State):
        variables = {"params": variables.params, **variables.model_state}
    if not isinstance(variables, Mapping):
        raise ArgumentError(
            f"variables are of type {type(variables).__name__}; expected a dict of collections. "
            "Write {'params': ..., 'batch_stats': ...}."
        )
    if refuses_other_params(state.opt_state, is_start=int(state.step) == 0):
        raise ArgumentError(
            "the optimizer keeps parameters of its own next to the model's; "
            "write optimizer='momentum', say"
        )
    old = {"params": state.params, **state.model_state}
    expected, actual = (leaf_shapes(tree, is_iterator) for tree in (old, dict(variables)))
    if "params" not in variables and variables.keys() & state.params.keys():
        raise ArgumentError(
            f"variables have no params, but {', '.join(map(str, list(variables)[:5]))}; expected "
            f"{', '.join(old)}. Write {{'params': params, ...}}."
        )
    names = expected.keys() | actual.keys()
    if misfits := sorted(name for name in names if expected.get(name) != actual.get(name)):
        name = misfits[0]
        raise ArgumentError(
            f"{len(misfits)} of the variables do not fit the model; the first, {name}, "
            f"is {actual.get(name, 'missing')} and the model's is {expected.get(name, 'missing')}: "
            "build the network that they belong to"
        )
    new = jax.tree.map(lambda leaf, array: np.asarray(array, leaf.dtype), old, dict(variables))
    params, opt_state = new.pop("params"), state.opt_state
    if int(state.step) == 0:
        opt_state = replace_copies(opt_state, state.params, params)
    return state._replace(params=params, model_state=new, opt_state=opt_state)
