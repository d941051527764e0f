"""State: a run as arrays alone, so that saving, comparing, stacking and placing it are tree maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn import augment, metrics
from jaxcnn.arguments import is_iterator
from jaxcnn.data import Dataset, verify_inputs
from jaxcnn.models.calling import init_variables, variable_shapes, verify_model
from jaxcnn.optim import as_transformation, eval_params
from jaxcnn.recipe import ArgumentError, Recipe, format_value, verify_recipe

INIT, ORDER, AUGMENT, DROPOUT = range(4)
"""The streams of randomness of a run, each its own `fold_in` of the run's key."""


class State(NamedTuple):
    """Everything a run is at one step. The key never changes: what is random at a step is `stream(key, ..., step)`."""

    step: Any
    """int32 []: steps taken."""
    params: Any
    """float32 leaves: what the optimiser moves."""
    model_state: Any
    """The model's other collections, such as `{"batch_stats": ...}`."""
    opt_state: Any
    """The optimiser's state."""
    rng: Any
    """uint32 [2]: the seed's key."""
    normalizer: augment.Normalizer
    """What turns bytes into inputs, so that a state can be asked about plain images."""
    metrics: metrics.Metrics
    """Training sums since the last row, so that a run stopped between rows reports as if it never was."""


def verify_state(state: Any) -> None:
    """Raise ArgumentError unless `state` is a State whose variables, step, key and normalizer are arrays of their kinds."""
    if isinstance(state, State):
        if wrong := _misfit(state):
            raise ArgumentError(f"the state's {wrong}. Write what train or init_state returns.")
        return
    if isinstance(state, Mapping):
        raise ArgumentError(
            "state is a dict of variables; expected a State, which also has what normalizes images. "
            "Write with_variables(init_state(model, create_optimizer(recipe), recipe, data), variables)."
        )
    raise ArgumentError(
        f"state is of type {type(state).__name__}; expected a State. Write what train or init_state returns."
    )


def _misfit(state: State) -> str:
    """What part of a state is of another kind, and what was expected; "" where all are right."""
    for name in ("params", "model_state"):
        tree = getattr(state, name)
        if not isinstance(tree, Mapping):
            return f"{name} is {format_value(tree)}; expected arrays by name"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None or is_iterator(x)):
            if not _is_array(leaf):
                return f"{name} has {format_value(leaf)} at {jax.tree_util.keystr(path)}; expected arrays of numbers"
    counted = type(state.step) is int or (_is_array(state.step) and state.step.dtype.kind in "iu")
    if not counted or np.shape(state.step) != ():
        return f"step is {format_value(state.step)}; expected an integer"
    if not _is_array(state.rng) or state.rng.dtype != np.uint32 or np.shape(state.rng) not in ((2,), (4,)):
        return f"rng is {format_value(state.rng)}; expected a key as jax.random.PRNGKey makes it"
    if name := next(
        (
            name
            for name in ("opt_state", "metrics")
            if not all(map(_is_array, jax.tree.leaves(getattr(state, name), is_leaf=is_iterator)))
        ),
        "",
    ):
        return f"{name} is {format_value(getattr(state, name))}; expected arrays"
    norm = state.normalizer
    arrays = isinstance(norm, augment.Normalizer) and all(_is_array(leaf) and leaf.dtype.kind == "f" for leaf in norm)
    if not arrays or np.ndim(norm.mean) != 3 or np.shape(norm.std) != np.shape(norm.mean)[2:]:
        return f"normalizer is {format_value(norm)}; expected a Normalizer of mean [h, w, c] and std [c]"
    return ""


def _is_array(leaf: Any) -> bool:
    array = isinstance(leaf, (np.ndarray, np.generic, jax.Array)) and not isinstance(leaf, np.ma.MaskedArray)
    return (
        array
        and (getattr(leaf.dtype, "kind", "?") in "fiub" or jnp.issubdtype(leaf.dtype, jnp.floating))
        and leaf.dtype.isnative
    )


def image_shape_of(model: Any, state: Any) -> tuple[int, ...]:
    """Return the shape [h, w, c] of the images that `state` is for; ArgumentError for what is no model or no state."""
    verify_model(model)
    verify_state(state)
    return np.shape(state.normalizer.mean)


def _plain(what: str, tree: Any) -> None:
    """Raise ArgumentError for typed random keys, which neither a checkpoint nor a comparison takes."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(getattr(leaf, "dtype", np.dtype(int)), jax.dtypes.prng_key):
            name = jax.tree_util.keystr(path)
            raise ArgumentError(
                f"{name} of the {what} is a typed random key; expected arrays of numbers. Write jax.random.PRNGKey(0)."
            )


def fold_in(key: jax.Array, *path: Any) -> jax.Array:
    """The key at the end of `path`, integers folded in one after another: `fold_in(state.rng, ORDER, epoch)`."""
    for part in path:
        key = jax.random.fold_in(key, part)
    return key


def eval_state(state: State) -> State:
    """The state as it is judged: with the parameters that its optimiser means for use, where they are not those it moves.

    Lookahead and schedule-free train at one point and return another (`jaxcnn.optim.test_params`); for every other optimiser
    this is `state` itself. The result is for measuring and predicting: it holds no optimiser's state to train on with.
    """
    params = eval_params(state.opt_state, state.params)
    return state if params is state.params else state._replace(params=params, opt_state=())


def init_state(
    model: nn.Module, tx: optax.GradientTransformation | optax.MultiSteps, recipe: Recipe, data: Dataset
) -> State:
    """The state at step 0, as host arrays: parameters from the seed's INIT stream, the normaliser from `data`.

    Args:
      model: maps float32 [b, h, w, c] to logits; in test mode, as `jaxcnn.models.calling` finds it.
      tx: the optimiser.
      recipe: gives the seed and what is subtracted.
      data: gives the image's shape and the means; nothing is computed on its images.

    Example:
      >>> from jaxcnn import create_model, load_dataset, create_optimizer
      >>> recipe = Recipe(dataset="digits", model="plain8")
      >>> state = init_state(create_model("plain8", 10), create_optimizer(recipe), recipe, load_dataset("digits"))
      >>> int(state.step), state.normalizer.mean.shape
      (0, (8, 8, 1))
    """
    verify_recipe(recipe)
    verify_inputs(data)
    key = jax.random.PRNGKey(recipe.seed)
    image = jax.ShapeDtypeStruct((2, *data.train.images.shape[1:]), jnp.float32)
    tx = as_transformation(tx)
    variables = init_variables(model, fold_in(key, INIT), image)
    params = variables.pop("params")
    opt = jax.jit(tx.init)(params)  # one program: there are hundreds of parameters of dozens of shapes
    norm = augment.make_normalizer(data.mean, data.std, subtract=recipe.mean, divide=recipe.std)
    state = State(jnp.int32(0), params, variables, opt, key, norm, metrics.zeros())
    _plain("model's variables", (params, variables))
    _plain("optimizer's state", opt)
    if all(
        leaf.dtype != np.float64 for leaf in jax.tree.leaves(params)
    ):  # with JAX_ENABLE_X64, optax's constants are wider
        opt = jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf, opt)
        state = state._replace(opt_state=opt)
    return jax.tree.map(lambda leaf: np.asarray(jnp.asarray(leaf)), state)


def state_shapes(
    model: nn.Module, tx: optax.GradientTransformation | optax.MultiSteps, recipe: Recipe, data: Dataset
) -> State:
    """Return the state of `init_state` as `jax.ShapeDtypeStruct`s; nothing of the network's size is allocated.

    Example:
      >>> from jaxcnn import create_model, load_dataset, create_optimizer
      >>> recipe = Recipe(dataset="digits", model="plain8")
      >>> model = create_model("plain8", 10, width=100_000)
      >>> shapes = state_shapes(model, create_optimizer(recipe), recipe, load_dataset("digits"))
      >>> shapes.params["head"]["kernel"].shape
      (400000, 10)
    """
    verify_recipe(recipe)
    verify_inputs(data)
    image = jax.ShapeDtypeStruct((2, *data.train.images.shape[1:]), jnp.float32)
    key = jax.eval_shape(jax.random.PRNGKey, 0)
    variables = variable_shapes(model, image)
    params = variables.pop("params")
    norm = augment.make_normalizer(data.mean, data.std, subtract=recipe.mean, divide=recipe.std)
    step, opt, sums = jnp.int32(0), jax.eval_shape(as_transformation(tx).init, params), metrics.zeros()
    state = State(step, params, variables, opt, key, norm, sums)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), state)


def with_variables(state: State, variables: Mapping[str, Any] | State) -> State:
    """`state` with the parameters and statistics of `variables`, such as `jaxcnn.load_weights` gives, or of another state.

    For the start of a run: the optimiser's state stays, which for lookahead and schedule-free would hold other parameters.

    Args:
      state: of the same model.
      variables: {"params": ...} and the model's other collections, float32 arrays.

    Raises:
      ArgumentError: unless the names and shapes are the state's; it tells how many are not, and the first.

    Example:
      >>> from dataclasses import replace
      >>> from jaxcnn import create_model, load_dataset, create_optimizer
      >>> model, recipe, data = create_model("plain8", 10), Recipe(dataset="digits", model="plain8"), load_dataset("digits")
      >>> one, two = (init_state(model, create_optimizer(recipe), replace(recipe, seed=seed), data) for seed in (0, 1))
      >>> both = with_variables(one, {"params": two.params, **two.model_state})
      >>> bool((both.params["head"]["kernel"] == two.params["head"]["kernel"]).all())
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
    if eval_params(state.opt_state, state.params) is not state.params:
        raise ArgumentError(
            "the optimiser keeps parameters of its own beside the model's; write optimizer='momentum', say"
        )
    mine = {"params": state.params, **state.model_state}
    here, there = (_shapes(tree) for tree in (mine, dict(variables)))
    if wrong := sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name)):
        name = wrong[0]
        raise ArgumentError(
            f"{len(wrong)} of the variables do not fit the model; the first, {name}, is {there.get(name, 'missing')} and the "
            f"model's is {here.get(name, 'missing')}: build the network that they belong to"
        )
    new = jax.tree.map(lambda old, array: np.asarray(array, old.dtype), mine, dict(variables))
    return state._replace(params=new.pop("params"), model_state=new)


def _shapes(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_iterator)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}
