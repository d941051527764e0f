"""Gradient transformations.

They are adapters of optax's methods, the scheduled learning rate, and rates by stage. Every method
has the form `update(gradient, state, params, **extra)`. `make_train_step` passes all of them the
same extra arguments: `value` (the batch's loss), `error` (0..1) and `grad_fn`, a second gradient on
the same batch at other parameters. Some methods train at one point and are evaluated at another
(see `eval_params`).
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from jaxcnn._util import leaf_shapes, to_one_line
from jaxcnn.config import ArgumentError, OptimizerConfig, format_value

# Adapters


def select_extra_args(
    tx: optax.GradientTransformationExtraArgs, *names: str
) -> optax.GradientTransformationExtraArgs:
    """Return `tx` with only the extra arguments `names`.

    It is for methods that refuse others.
    """

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        accepted = {name: extra[name] for name in names if name in extra}
        return tx.update(updates, state, params, **accepted)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def add_noise(eta: float, gamma: float, key: jax.Array) -> optax.GradientTransformation:
    """Return `optax.add_noise` whose state has the key as uint32 [2].

    Such a key can be copied, saved and compared like any other array.

    Args:
      eta: base variance of the noise.
      gamma: exponent of the variance's decay over the steps.
      key: raw key, uint32 [2].
    """
    inner: Any = optax.add_noise(eta, gamma, jax.random.wrap_key_data(key))

    def with_raw_key(state):
        return state._replace(rng_key=jax.random.key_data(state.rng_key))

    def update(updates: Any, state: Any, params: Any = None):
        typed = state._replace(rng_key=jax.random.wrap_key_data(jnp.asarray(state.rng_key)))
        updates, state = inner.update(updates, typed, params)
        return updates, with_raw_key(state)

    return optax.GradientTransformation(lambda params: with_raw_key(inner.init(params)), update)


def as_transformation(tx: Any) -> optax.GradientTransformationExtraArgs:
    """Return `tx` as a transformation with extra arguments.

    Any object with the two functions `init` and `update` is accepted, such as `optax.MultiSteps`.

    Raises:
      ArgumentError: for anything else, such as `optax.adam` without its call.

    Example:
      >>> as_transformation(optax.adam)
      Traceback (most recent call last):
      jaxcnn.arguments.ArgumentError: tx is the function adam; expected an optax transformation. ...
    """
    has_functions = callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))
    if has_functions and not isinstance(tx, type):
        if not isinstance(tx, optax.GradientTransformation):
            tx = optax.GradientTransformation(tx.init, tx.update)
        return _pass_accepted(optax.with_extra_args_support(tx))
    description, correction = f"of type {type(tx).__name__}", "optax.adam(1e-3), say"
    if callable(tx):
        name = getattr(tx, "__name__", type(tx).__name__)
        arguments = "config, num_steps" if name == "create_optimizer" else "1e-3"
        description, correction = f"the function {name}", f"{name}({arguments}), its result"
    elif isinstance(tx, OptimizerConfig):
        correction = "jaxcnn.create_optimizer(config, num_steps)"
    elif isinstance(tx, str):
        description = format_value(tx)
        config = f"jaxcnn.OptimizerConfig({description.lower()})"
        correction = f"jaxcnn.create_optimizer({config}, num_steps)"
    raise ArgumentError(
        f"tx is {description}; expected an optax transformation. Write {correction}."
    )


def _pass_accepted(tx: Any) -> optax.GradientTransformationExtraArgs:
    """Return `tx` with only the extra arguments that its update has parameters for.

    Most updates take any, but that of `optax.contrib.sam` takes `grad_fn` only.
    """
    try:
        parameters = inspect.signature(tx.update).parameters.values()
    # Some functions of C have no signature.
    except ValueError:
        return tx
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return tx
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return select_extra_args(tx, *names)


def init_optimizer(
    tx: optax.GradientTransformationExtraArgs, params: Any, *, only_shapes: bool = False
) -> Any:
    """Return the optimizer's state at step 0, as arrays that every step keeps the shapes of.

    What is missing at first, as the measurements of `optax.monitor`, becomes zeros.

    Args:
      tx: the optimizer.
      params: the parameters.
      only_shapes: return `jax.ShapeDtypeStruct`s, and compute nothing.

    Raises:
      ArgumentError: `tx.init` fails or returns other things than arrays, or a schedule of
        `optax.inject_hyperparams` is none.

    Example:
      >>> tx = optax.GradientTransformationExtraArgs(lambda params: "x", optax.identity().update)
      >>> init_optimizer(tx, {})
      Traceback (most recent call last):
      jaxcnn.arguments.ArgumentError: tx.init fails with TypeError: ...
    """
    # One program, because there are hundreds of parameters of dozens of shapes.
    # Optax's schedules mix counts with rates.
    with _optimizer_errors("init"), jax.numpy_dtype_promotion("standard"):
        opt_state = jax.eval_shape(tx.init, params) if only_shapes else jax.jit(tx.init)(params)
    for node in _injected(opt_state):
        for name, value in node.hyperparams.items():
            if value.dtype.kind == "b":
                raise ArgumentError(
                    f"tx injects {name}, a function, as if it were a schedule; expected numbers "
                    f"from it. Write optax.inject_hyperparams(..., static_args={name!r})."
                )
    if any(map(_is_vacant, jax.tree.leaves(opt_state, is_leaf=_is_vacant))):
        # An update that fails is reported where it is checked.
        with contextlib.suppress(ArgumentError):
            later = _next_state(tx, opt_state, params)
            known = dict(jax.tree_util.tree_leaves_with_path(opt_state))
            zeros = (lambda leaf: leaf) if only_shapes else _zeros
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: known[path] if path in known else zeros(leaf), later
            )
    return opt_state


def _zeros(leaf: Any) -> jax.Array:
    return jnp.zeros(leaf.shape, leaf.dtype)


def _is_vacant(node: Any) -> bool:
    """Check if a node of a state may have arrays later only."""
    return node is None or (isinstance(node, (dict, list)) and not node)


def update_optimizer(
    tx: optax.GradientTransformationExtraArgs,
    grads: Any,
    opt_state: Any,
    params: Any,
    **extra_args: Any,
) -> tuple[Any, Any]:
    """Return the updates and the optimizer's next state.

    Args:
      tx: the optimizer.
      grads: gradients of the parameters.
      opt_state: its state.
      params: the parameters.
      extra_args: as in `jaxcnn.make_train_step`.

    Raises:
      ArgumentError: while tracing, if `tx.update` fails, or its updates do not fit the parameters.
    """
    try:
        with _optimizer_errors("update"):
            updates, new_state = tx.update(grads, opt_state, params, **extra_args)
    except ArgumentError as error:
        cause = error.__cause__
        if cause is None or not _is_of_another(tx, opt_state, params):
            raise
        raise ArgumentError(
            f"tx.update fails with {type(cause).__name__}: {to_one_line(cause, 200)}, as the "
            "state's opt_state is of another optimizer; expected what tx.init returns. Write "
            "init_state(model, tx, config, data) with the optimizer of the step."
        ) from cause
    # Updates of another shape would be broadcast, as those that are averaged over examples are.
    if misfit := _first_misfit(updates, params):
        name, actual, expected = misfit
        raise ArgumentError(
            f"tx.update returns an update of shape {actual} for the parameter {name} of shape "
            f"{expected}; expected the same. Use a transformation of the batch's mean gradient."
        )
    return updates, new_state


def _is_of_another(tx: optax.GradientTransformationExtraArgs, opt_state: Any, params: Any) -> bool:
    """Check if a state is none that `tx.init` returns."""
    # The result only selects an error message. `train` has an `init` that cannot be called.
    with contextlib.suppress(Exception):
        expected = jax.eval_shape(tx.init, params)
        return jax.tree.structure(expected) != jax.tree.structure(opt_state)
    return False


def check_update(
    tx: optax.GradientTransformationExtraArgs,
    opt_state: Any,
    params: Any,
    axis_name: str | None = None,
) -> None:
    """Check that `tx.update` takes what a step has, and returns a state of the same shapes.

    Nothing is computed.

    Args:
      tx: the optimizer.
      opt_state: its state.
      params: the parameters.
      axis_name: the mapped axis that splits the batch, if any.

    Raises:
      ArgumentError: it does not.
    """
    new_state = _next_state(tx, opt_state, params, axis_name)
    if misfit := _first_misfit(opt_state, new_state):
        name, old, new = misfit
        raise ArgumentError(
            f"tx.update changes its state at {name or 'the top'} from shape {old} to {new}; "
            "expected the same at every step. Return a state of the shapes that tx.init returns."
        )


def _first_misfit(tree: Any, other: Any) -> tuple[str, Any, Any] | None:
    """Return the first path with another shape in `other`, and both shapes, or None."""
    shapes, others = leaf_shapes(tree), leaf_shapes(other)
    for name in sorted(shapes.keys() | others.keys()):
        if shapes.get(name) != others.get(name):
            return name, shapes.get(name, "none"), others.get(name, "none")
    return None


def _next_state(
    tx: optax.GradientTransformationExtraArgs,
    opt_state: Any,
    params: Any,
    axis_name: str | None = None,
) -> Any:
    """Return the shapes of the state after a step."""

    def value_fn(params: Any, error: Any = None, grad_fn: Any = None) -> Any:
        leaves = jax.tree.leaves(params)
        return sum((leaf.sum().astype(jnp.float32) for leaf in leaves), start=jnp.float32(0))

    def update(one: Any, opt_state: Any, params: Any) -> Any:
        # Numbers that the axis splits, as gradients are.
        grads = jax.tree.map(lambda leaf: leaf * one.astype(leaf.dtype), params)
        extra_args = {"value": one, "error": one, "grad": grads, "value_fn": value_fn}
        extra_args["grad_fn"] = lambda params, _: params
        with jax.numpy_dtype_promotion("standard"):
            return update_optimizer(tx, grads, opt_state, params, **extra_args)[1]

    if axis_name is None:
        return jax.eval_shape(update, jnp.float32(1), opt_state, params)
    mapped = jax.vmap(update, (0, None, None), axis_name=axis_name)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
        jax.eval_shape(mapped, jnp.ones(1, jnp.float32), opt_state, params),
    )


@contextlib.contextmanager
def _optimizer_errors(function: str) -> Iterator[None]:
    """Raise an ArgumentError for an error of the optimizer's `function`."""
    try:
        yield
    except ArgumentError:
        raise
    except Exception as error:
        expected = {
            "init": "a function of the parameters that returns arrays",
            "update": "one that needs no more than value, error, grad, value_fn and grad_fn",
        }
        raise ArgumentError(
            f"tx.{function} fails with {type(error).__name__}: {to_one_line(error, 300)}; "
            f"expected {expected[function]}. Use another transformation, or fix it."
        ) from error


def _injected(opt_state: Any) -> Iterator[Any]:
    """Yield the nodes of `optax.inject_hyperparams`, at any depth."""

    def is_injected(node: Any) -> bool:
        return hasattr(node, "hyperparams") and hasattr(node, "inner_state")

    for node in filter(is_injected, jax.tree.leaves(opt_state, is_leaf=is_injected)):
        yield node
        yield from _injected(node.inner_state)


class LookaheadState(NamedTuple):
    """State of `lookahead`.

    Attributes:
      slow: slow parameters, at which the network is evaluated.
      inner: state of optax's transformation.
    """

    slow: Any
    inner: Any


def lookahead(
    fast: optax.GradientTransformation, period: int, share: float
) -> optax.GradientTransformation:
    """Return `optax.lookahead` with the slow parameters in its state.

    The network's parameters are then the fast ones only.

    Args:
      fast: the method that takes every step.
      period: number of steps between synchronizations.
      share: of the way to the fast parameters that the slow ones go then, in 0..1.
    """
    both = optax.lookahead(fast, period, share)

    def init(params: Any) -> LookaheadState:
        # A copy: parameters and state are donated together, and one buffer cannot be donated twice.
        slow = jax.tree.map(jnp.array, params)
        return LookaheadState(slow, both.init(optax.LookaheadParams.init_synced(params)))

    def update(updates: Any, state: Any, params: Any = None):
        pair: Any = optax.LookaheadParams(fast=params, slow=state.slow)
        steps: Any
        steps, inner = both.update(updates, state.inner, pair)
        return steps.fast, LookaheadState(optax.apply_updates(state.slow, steps.slow), inner)

    return optax.GradientTransformation(init, update)


def needs_two_copies(opt_state: Any) -> bool:
    """Check if a state is that of `optax.lookahead` itself."""
    kinds = (LookaheadState, optax.LookaheadState)
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
    return any(isinstance(node, optax.LookaheadState) for node in nodes)


def prodigy(
    rate: jax.Array, d0: float, decay: float, decays: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """Return `optax.contrib.prodigy` with a decay mask, safe for a rate of 0.

    Its estimate is a quotient of sums over the steps weighted by the rate. With the rate 0 of a
    warm-up's first step, or without any gradient yet, both sums are 0, and optax divides 0 by 0.
    Here the parameters and the estimate then stay as they were.

    Args:
      rate: float32 [], multiplies the estimate.
      d0: the first estimate.
      decay: weight decay.
      decays: params -> tree of booleans, true for the leaves that decay.
    """
    plain: Any
    decayed: Any
    plain, decayed = (
        contrib.prodigy(rate, estim_lr0=d0, weight_decay=strength) for strength in (0.0, decay)
    )

    def update(updates: Any, state: Any, params: Any = None):
        plain_steps, _ = plain.update(updates, state, params)
        decayed_steps, new = decayed.update(updates, state, params)
        steps = jax.tree.map(
            lambda on, decayed_step, plain_step: decayed_step if on else plain_step,
            decays(params),
            decayed_steps,
            plain_steps,
        )
        waits = optax.tree.norm(new.grad_sum) == 0
        steps = jax.tree.map(lambda step: jnp.where(waits, 0, step), steps)
        return steps, new._replace(estim_lr=jnp.where(waits, state.estim_lr, new.estim_lr))

    # Copies: optax's state is the parameters themselves, and one buffer cannot be donated twice.
    return optax.GradientTransformation(
        lambda params: plain.init(jax.tree.map(jnp.array, params)), update
    )


# Averages of the parameters


class EmaState(NamedTuple):
    """State of `with_ema`.

    Attributes:
      average: average of the parameters, at which the network is evaluated. Its leaves are float32,
        or wider where the parameters are.
      count: steps taken, int32 [].
      inner: state of the transformation that takes the steps.
    """

    average: Any
    count: jax.Array
    inner: Any


def with_ema(
    tx: optax.GradientTransformation | optax.MultiSteps, decay: float = 0.999, debias: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Return `tx` with an exponential moving average of the parameters.

    Training goes on with the parameters of `tx`. `jaxcnn.evaluate`, `jaxcnn.predict`, the rows of
    `jaxcnn.train`, its best checkpoint and `jaxcnn.export_weights` use the average:

        average = decay average + (1 - decay) params

    With `debias`, it starts at 0 and is divided by 1 - decay^t after t steps, as Adam's moments are
    (Kingma and Ba 2015, arXiv:1412.6980, section 3) and as `optax.ema` does for updates. It is then
    the mean of the parameters after steps 1 to t, weighted by decay^(t - step). Without it, the
    average starts at the initial parameters, as a mean teacher does (Tarvainen and Valpola 2017,
    arXiv:1703.01780, section 2). Averages of this kind go back to Polyak and Juditsky 1992, who
    weigh all steps alike.

    The average is of what the whole optimizer makes of the parameters, so `with_ema` is outermost:
    a transformation that comes after it in a chain would change the parameters behind it. Only
    `optax.MultiSteps` may be around it. The average then counts updates, not batches.

    A network with BN has moments of the parameters that are trained. Those of the average come from
    `jaxcnn.recompute_batch_stats`.

    Args:
      tx: the optimizer.
      decay: in 0..1, both excluded. The average covers about 1 / (1 - decay) steps.
      debias: let the first steps have their full weight.

    Raises:
      ArgumentError: an argument is invalid, or `tx` is evaluated at parameters of its own, as
        lookahead and schedule-free are.

    Example:
      >>> tx = with_ema(optax.sgd(1.0), decay=0.5)
      >>> params, state = jnp.zeros(()), tx.init(jnp.zeros(()))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.ones(()), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> float(params), round(float(eval_params(state, params)), 6)
      (-2.0, -1.666667)
    """
    inner = as_transformation(tx)
    is_number = isinstance(decay, (int, float)) and not isinstance(decay, bool)
    if not is_number or not 0 < decay < 1:
        raise ArgumentError(
            f"decay is {format_value(decay)}; expected a number above 0 and below 1. "
            "Write decay=0.999."
        )
    if not isinstance(debias, bool):
        raise ArgumentError(
            f"debias is {format_value(debias)}; expected True or False. Write debias=True."
        )

    def init(params: Any) -> EmaState:
        inner_state = inner.init(params)
        check_averages((EmaState(None, jnp.int32(0), inner_state),))
        # A copy: parameters and state are donated together, and one buffer cannot be donated twice.
        average = jax.tree.map(lambda leaf: jnp.array(leaf, _average_dtype(leaf)), params)
        return EmaState(average, jnp.int32(0), inner_state)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        if params is None:
            raise ArgumentError(
                "with_ema averages the parameters, and there are none; expected them. "
                "Write tx.update(updates, state, params)."
            )
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        new_params = optax.apply_updates(params, updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        weight = jnp.float32(1 - decay)
        if debias:
            # The debiased average is itself a moving one, of this weight: 1 at the first step.
            biased = -jnp.expm1(count.astype(jnp.float32) * math.log(decay))
            weight = jnp.where(count == 1, jnp.float32(1), weight / biased)

        def move(average: jax.Array, leaf: jax.Array) -> jax.Array:
            difference = leaf.astype(average.dtype) - average
            return average + weight.astype(average.dtype) * difference

        average = jax.tree.map(move, state.average, new_params)
        return updates, EmaState(average, count, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _average_dtype(leaf: Any) -> Any:
    """Return the dtype of a parameter's average.

    In bfloat16 it would not move: a step of it is below the last place.
    """
    dtype = jnp.result_type(leaf)
    is_wide = jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize >= 4
    return dtype if is_wide else jnp.float32


def _is_average(node: Any) -> bool:
    """Check if a node of an optimizer's state has other parameters to evaluate at."""
    if isinstance(node, contrib.SAMState):
        return node.cache is not None
    return isinstance(node, (LookaheadState, contrib.ScheduleFreeState, EmaState))


def check_averages(opt_state: Any) -> None:
    """Check that no method with parameters of its own is inside another.

    Raises:
      ArgumentError: one is. It would not be clear where the network is evaluated.
    """
    for node in filter(_is_average, jax.tree.leaves(opt_state, is_leaf=_is_average)):
        for other in jax.tree.leaves(tuple(node), is_leaf=_is_average):
            if _is_average(other):
                outer, inner = (_METHODS[type(method)] for method in (node, other))
                raise ArgumentError(
                    f"tx has {inner} inside {outer}, and both are evaluated at parameters of their "
                    "own; expected one of them. Leave one out."
                )


_METHODS = {
    EmaState: "with_ema",
    LookaheadState: "lookahead",
    contrib.SAMState: "sam without opaque_mode",
    contrib.ScheduleFreeState: "schedule_free",
}


def eval_params(opt_state: Any, params: Any) -> Any:
    """Return the parameters at which a network is evaluated.

    These are the average of `with_ema`, lookahead's slow ones, schedule-free's average, the
    unperturbed ones of `optax.contrib.sam` without `opaque_mode`, or `params` itself for any
    other method. In Defazio et al. 2024 (arXiv:2405.15682), eq. 1, gradients are taken at y, and
    the method returns x. A network with BN has moments of y. Those of x come from
    `recompute_batch_stats`.
    """
    for state in filter(_is_average, jax.tree.leaves(opt_state, is_leaf=_is_average)):
        if isinstance(state, LookaheadState):
            params = _replace_trained(params, state.slow)
        elif isinstance(state, EmaState):
            params = _replace_trained(params, state.average)
        elif isinstance(state, contrib.SAMState):
            own = _like(params, state.cache)
            is_aside = state.steps_since_sync > 0
            cached = jax.tree.map(
                lambda cache, leaf, is_aside=is_aside: (
                    cache if _is_masked(cache) else jnp.where(is_aside, cache, leaf)
                ),
                state.cache,
                own,
                is_leaf=_is_masked,
            )
            params = _replace_trained(params, cached)
        else:
            own_params = jax.tree.map(
                lambda z, leaf: z if _is_masked(z) else leaf,
                state.z,
                _like(params, state.z),
                is_leaf=_is_masked,
            )
            averages = contrib.schedule_free_eval_params(state, own_params)
            params = _replace_trained(params, averages)
    return params


def eval_leaves(opt_leaves: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `eval_params` returns, from leaves by their paths.

    A checkpoint has no types of an optimizer's state. The names of their fields tell them.

    Args:
      opt_leaves: arrays of the optimizer's state by path, such as ".slow['head']['bias']".
      params: parameters by path, such as "['head']['bias']".

    Example:
      >>> opt_leaves = {".slow['w']": 1.0, ".inner.steps_since_sync": 0, ".inner.fast_state": 0}
      >>> eval_leaves(opt_leaves, {"['w']": 3.0, "['frozen']": 5.0})
      {"['w']": 1.0, "['frozen']": 5.0}
    """
    result, averages = dict(params), {}
    for path in opt_leaves:
        for name, (field, others) in _AVERAGE_FIELDS.items():
            node = path.removesuffix(field)
            has_others = all(
                any(leaf.startswith(f"{node}.{other}") for leaf in opt_leaves) for other in others
            )
            if path.endswith(field) and has_others:
                averages[node] = name
    for node, name in averages.items():
        # An average within another one is the outer one's own.
        if any(node != outer and _is_inside(node, outer) for outer in averages):
            continue
        prefix = f"{node}.{name}"
        leaves = {
            path.removeprefix(prefix): leaf
            for path, leaf in opt_leaves.items()
            if path.startswith(f"{prefix}[") and path.removeprefix(prefix) in params
        }
        if name == "z":
            fields = dict.fromkeys(contrib.ScheduleFreeState._fields)
            fields |= {"b1": opt_leaves[f"{node}.b1"], "z": leaves}
            own_params = {path: params[path] for path in leaves}
            state: Any = contrib.ScheduleFreeState(**fields)  # pyright: ignore[reportArgumentType]
            leaves = contrib.schedule_free_eval_params(state, own_params)
            leaves = {path: np.asarray(leaf) for path, leaf in leaves.items()}  # pyright: ignore[reportAttributeAccessIssue]
        if name == "average":
            leaves = {path: leaf.astype(params[path].dtype) for path, leaf in leaves.items()}
        # SAM is evaluated at the cache only while its parameters are aside.
        if name != "cache" or opt_leaves[f"{node}.steps_since_sync"] > 0:
            result |= leaves
    return result


_AVERAGE_FIELDS = {
    "slow": (".inner.steps_since_sync", ()),
    "z": (".b1", ("weight_sum",)),
    "average": (".count", ("average",)),
    "cache": (".steps_since_sync", ("cache",)),
}
"""Field with parameters to evaluate -> a scalar field of the same state, and other fields."""


def _is_inside(node: str, outer: str) -> bool:
    return node.startswith((f"{outer}.", f"{outer}["))


def refuses_other_params(opt_state: Any, *, is_start: bool) -> bool:
    """Check if an optimizer's state does not go with other parameters of the network.

    It has parameters of its own. Before the first step, `replace_copies` replaces an average.

    Args:
      opt_state: of any optimizer.
      is_start: it has taken no step.
    """
    nodes = filter(_is_average, jax.tree.leaves(opt_state, is_leaf=_is_average))
    return any(not (is_start and isinstance(node, (EmaState, contrib.SAMState))) for node in nodes)


def replace_copies(opt_state: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> Any:
    """Return an optimizer's state at step 0 with its copies of the parameters replaced.

    Averages start at the parameters, and methods such as Prodigy measure the distance from them.

    Args:
      opt_state: of an optimizer that has taken no step.
      old: the parameters that it was initialized with.
      new: other parameters, which replace their copies.

    Example:
      >>> old, new = {"bias": jnp.ones(2)}, {"bias": jnp.full(2, 3.0)}
      >>> replace_copies(with_ema(optax.adam(0.1)).init(old), old, new).average["bias"].tolist()
      [3.0, 3.0]
    """

    def is_copy(node: Any) -> bool:
        # A copy lacks the stages that are frozen.
        if not isinstance(node, Mapping) or not node or not node.keys() <= old.keys():
            return False
        # Nor has it the leaves of other partitions, which are masked.
        leaves, structure = jax.tree.flatten(dict(node), is_leaf=_is_masked)
        try:
            like = structure.flatten_up_to({name: old[name] for name in node})
        except ValueError:
            return False
        pairs = [(a, b) for a, b in zip(leaves, like, strict=True) if not _is_masked(a)]
        # Moments start at 0, where parameters may be 0 too.
        return all(np.array_equal(a, b) for a, b in pairs) and any(np.any(a) for a, _ in pairs)

    def replace(node: Any) -> Any:
        if not is_copy(node):
            return node
        like = {name: new[name] for name in node}
        return jax.tree.map(
            lambda a, b: a if _is_masked(a) else np.asarray(b, a.dtype),
            node,
            like,
            is_leaf=_is_masked,
        )

    return jax.tree.map(replace, opt_state, is_leaf=is_copy)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _like(params: Any, trained: Any) -> Any:
    """Return `params` without those of frozen stages, which `trained` lacks."""
    return {name: params[name] for name in trained} if isinstance(params, Mapping) else params


def _replace_trained(params: Any, trained: Any) -> Any:
    """Return `params` with the leaves of `trained`.

    It lacks frozen stages and the leaves of other partitions.
    """
    new_params = jax.tree.map(
        lambda new, leaf: (
            leaf if _is_masked(new) else new if new.dtype == leaf.dtype else new.astype(leaf.dtype)
        ),
        trained,
        _like(params, trained),
        is_leaf=_is_masked,
    )
    return {**params, **new_params} if isinstance(params, Mapping) else new_params


# The learning rate


class RateState(NamedTuple):
    """State of `scale_by_scheduled_rate`.

    Attributes:
      count: steps taken, int32 [].
      lr: rate that the schedule multiplies, float32 []. It is state, so that one compiled step
        serves every rate of a sweep.
      rate: rate of the last step, float32 [].
      error_rate: running training error in 0..1, float32 [].
      warm: True if warm-up is finished, bool [].
      plateau: state of the transformation that lowers the rate, if any. It acts on a plateau of the
        loss.
      method: state of the method.
    """

    count: jax.Array
    lr: jax.Array
    rate: jax.Array
    error_rate: jax.Array
    warm: jax.Array
    plateau: Any
    method: Any


def scale_by_scheduled_rate(
    method: Callable[[jax.Array], optax.GradientTransformation],
    lr: float,
    schedule: optax.Schedule,
    *,
    warmup_lr: float | None = None,
    warmup_error: float = 0.8,
    memory: float = 0.95,
    plateau: optax.GradientTransformationExtraArgs | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return `method(rate)` with a scheduled rate, after a warm-up by training error.

    The rate is lr * schedule(step). He et al. 2015, section 4.2: "we use 0.01 to warm up the
    training until the training error is below 80% (about 400 iterations), and then go back to 0.1".
    It is a jump, and it happens once. One batch's error is noisy (3.5 points at 128 images), so a
    running mean is compared.

    The update takes extra arguments where a part needs them: `error`, the batch's training error
    in 0..1, for the warm-up, and `value`, its loss, for a plateau and some methods.

    Args:
      method: rate (float32 [], traced) -> transformation. The tree of its state must not depend on
        the rate.
      lr: the rate at which the schedule is 1.
      schedule: step -> factor.
      warmup_lr: the rate until the end of warm-up; None is no warm-up.
      warmup_error: in 0..1; warm-up ends at the first step whose running error is below.
      memory: of the running error, which starts at 1.
      plateau: such as `optax.contrib.reduce_on_plateau`. Its `scale` multiplies the rate, its
        `value` is the loss.

    Raises:
      ValueError: when updated in a warm-up without `error`.

    Example:
      >>> tx = scale_by_scheduled_rate(optax.sgd, 0.5, lambda step: 1.0)
      >>> updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
      >>> updates.tolist()
      [-0.5, -0.5]
    """
    plateau = plateau or optax.with_extra_args_support(optax.identity())

    def share(step: jax.Array) -> jax.Array:
        # Optax's schedules mix integers, booleans and floats, which strict promotion refuses.
        # Float32 counts steps exactly up to 2^24.
        with jax.numpy_dtype_promotion("standard"):
            return jnp.asarray(schedule(step), jnp.float32)

    def init(params: Any) -> RateState:
        first = lr * share(jnp.float32(0)) if warmup_lr is None else warmup_lr
        plateau_state, method_state = plateau.init(params), method(jnp.float32(lr)).init(params)
        return RateState(
            jnp.int32(0),
            jnp.float32(lr),
            jnp.float32(first),
            jnp.float32(1),
            jnp.asarray(warmup_lr is None),
            plateau_state,
            method_state,
        )

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        error: Any = None,
        value: Any = None,
        **extra: Any,
    ):
        rate = state.lr * share(state.count.astype(jnp.float32))
        warm, running = state.warm, state.error_rate
        if warmup_lr is not None:
            if error is None:
                raise ValueError(
                    "the warm-up waits for the training error, and there is none; expected a loss "
                    "with a bool metric 'error'. Use warmup_lr=None, or tx.update(..., error=...)."
                )
            running = memory * running + (1 - memory) * error
            warm = warm | (running < warmup_error)
            rate = jnp.where(warm, rate, warmup_lr)
        # Scaling an update of 1 gives the plateau's factor.
        factor, plateau_state = plateau.update(jnp.ones_like(rate), state.plateau, value=value)
        rate = rate * jnp.asarray(factor, jnp.float32)
        tx = optax.with_extra_args_support(method(rate))
        updates, method_state = tx.update(
            updates, state.method, params, value=value, error=error, **extra
        )
        return updates, RateState(
            state.count + 1, state.lr, rate, running, warm, plateau_state, method_state
        )

    return optax.GradientTransformationExtraArgs(init, update)


def current_learning_rate(opt_state: Any) -> float | None:
    """Return the learning rate of the last step, or None.

    The state is ours, or has optax's injected hyperparameters. The result is None for another
    state, or where parts of the parameters have different rates, or one that is not in the state.
    """

    # Accepts a field of an optimizer's state, not a parameter of the same name.
    def is_field(path: Any, _: Any) -> bool:
        return isinstance(path[-1], optax.tree_utils.NamedTupleKey)

    if _has_part_without_rate(opt_state):
        return None
    matches = optax.tree.get_all_with_path(opt_state, "rate", filtering=is_field)
    values = [value for _, value in matches]
    if not values:
        injected = optax.tree.get_all_with_path(opt_state, "hyperparams", filtering=is_field)
        values = [fields["learning_rate"] for _, fields in injected if "learning_rate" in fields]
        # The factor of `optax.contrib.reduce_on_plateau` scales what the injected rate has made.
        plateaus = optax.tree.get_all_with_path(opt_state, "plateau_count", filtering=is_field)
        if plateaus:
            scales = optax.tree.get_all_with_path(opt_state, "scale", filtering=is_field)
            values = [value * math.prod(float(scale) for _, scale in scales) for value in values]
    # Seven digits turn float32's 0.10000000149 into 0.1.
    rates = {float(f"{float(value):.7g}") for value in values if np.ndim(value) == 0}
    return rates.pop() if len(rates) == 1 else None


def _has_rate(node: Any) -> bool:
    return isinstance(node, RateState) or "learning_rate" in getattr(node, "hyperparams", ())


def _has_part_without_rate(opt_state: Any) -> bool:
    """Check if a part of the parameters has a rate that its state does not tell.

    Parts are those of `optax.partition`, unless a rate is around it, as around Muon's own. A part
    without a state is that of `optax.set_to_zero`, which has no rate.
    """
    partition = optax.transforms.PartitionState

    def is_end(node: Any) -> bool:
        return isinstance(node, partition) or _has_rate(node)

    for node in jax.tree.leaves(opt_state, is_leaf=is_end):
        if not isinstance(node, partition):
            continue
        for part in node.inner_states.values():
            part = getattr(part, "inner_state", part)
            nodes = jax.tree.leaves(part, is_leaf=_has_rate)
            if not isinstance(part, optax.EmptyState) and not any(map(_has_rate, nodes)):
                return True
    return False


# Rates by stage


def in_stage(name: str, stage: str) -> bool:
    """Return whether the parameters called `name` belong to `stage`.

    They do if the name is `stage`, or `stage` followed by "_" and more.

    Example:
      >>> in_stage("stage1_block2", "stage1"), in_stage("stage10", "stage1")
      (True, False)
    """
    return name == stage or name.startswith(stage + "_")


def in_any_stage(name: str, stages: Iterable[str]) -> bool:
    """Return whether the parameters called `name` belong to one of `stages`.

    Example:
      >>> in_any_stage("stage1_block2", ("stem", "stage1"))
      True
    """
    return any(in_stage(name, stage) for stage in stages)


def check_stages(argument: str, params: Any, names: Iterable[str]) -> None:
    """Check that every stage in `names` has parameters.

    Args:
      argument: where the names come from, for the message.
      params: parameters of a network.
      names: of stages.

    Raises:
      ArgumentError: for a stage without parameters; the message lists the model's stages.
    """
    stages = list(dict.fromkeys(name.split("_")[0] for name in params))
    for stage in names:
        if not any(in_stage(name, stage) for name in params):
            raise ArgumentError(
                f"{argument} has {stage!r}, of which the model has no parameters; "
                f"expected some of {', '.join(stages)}"
            )


def trainable_params(params: Any, freeze: Collection[str]) -> Any:
    """Return `params` without those of the frozen stages.

    Example:
      >>> trainable_params({"stem": 1, "stem_norm": 2, "stage1": 3}, ("stem",))
      {'stage1': 3}
    """
    if not freeze:
        return params
    return {name: tree for name, tree in params.items() if not in_any_stage(name, freeze)}


def scale_by_stage(
    tx: optax.GradientTransformationExtraArgs, multipliers: Mapping[str, float]
) -> optax.GradientTransformationExtraArgs:
    """Return `tx` with the updates of each stage multiplied by a factor.

    Args:
      tx: a transformation.
      multipliers: stage -> factor of its updates.

    Example:
      >>> sgd = optax.with_extra_args_support(optax.sgd(1.0))
      >>> tx = scale_by_stage(sgd, {"stem": 0.25, "head": 0.5})
      >>> params = {"stem": jnp.ones(()), "stage1": jnp.ones(()), "head": jnp.ones(())}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> {name: float(step) for name, step in updates.items()}
      {'head': -0.5, 'stage1': -1.0, 'stem': -0.25}
    """
    if not multipliers:
        return tx

    def init(params: Any) -> Any:
        check_stages("lr_multipliers", params, multipliers)
        return tx.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        updates, state = tx.update(updates, state, params, **extra)
        return _scale_stages(updates, multipliers), state

    return optax.GradientTransformationExtraArgs(init, update)


def _scale_stages(tree: Any, multipliers: Mapping[str, float]) -> Any:
    def scale(name, subtree):
        for stage, factor in multipliers.items():
            if in_stage(name, stage):
                subtree = jax.tree.map(lambda x, factor=factor: x * factor, subtree)
        return subtree

    return {name: scale(name, subtree) for name, subtree in tree.items()}
