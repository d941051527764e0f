"""Gradient transformations.

They are adapters of optax's methods, the scheduled learning rate, and rates by stage. Every method
has the form `update(gradient, state, params, **extra)`. `make_train_step` passes all of them the
same extra arguments: `value` (the batch's loss), `error` (0..1) and `grad_fn`, a second gradient on
the same batch at other parameters. Two methods train at one point and are evaluated at another (see
`eval_params`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from jaxcnn.config import ArgumentError, format_value

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
    if callable(tx):
        name = getattr(tx, "__name__", type(tx).__name__)
        description, correction = f"the function {name}", f"{name}(1e-3), its result"
    else:
        is_text = isinstance(tx, str)
        description = format_value(tx) if is_text else f"of type {type(tx).__name__}"
        correction = "optax.adam(1e-3), say"
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


class LookaheadState(NamedTuple):
    """State of `lookahead`."""

    slow: Any
    """Slow parameters, at which the network is evaluated."""
    inner: Any
    """State of optax's transformation."""


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


_AVERAGES = (LookaheadState, contrib.ScheduleFreeState)


def eval_params(opt_state: Any, params: Any) -> Any:
    """Return the parameters at which a network is evaluated.

    These are lookahead's slow ones, schedule-free's average, or `params` itself for any other
    method. In Defazio et al. 2024 (arXiv:2405.15682), eq. 1, gradients are taken at y, and the
    method returns x. A network with BN has moments of y. Those of x come from
    `recompute_batch_stats`.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, _AVERAGES))
    for state in nodes:
        if isinstance(state, LookaheadState):
            params = _replace_trained(params, state.slow)
        if isinstance(state, contrib.ScheduleFreeState):
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
        for name, field in (("slow", ".inner.steps_since_sync"), ("z", ".b1")):
            node = path.removesuffix(field)
            has_weights = name == "slow" or f"{node}.weight_sum" in opt_leaves
            if path.endswith(field) and has_weights:
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
        result |= leaves
    return result


def _is_inside(node: str, outer: str) -> bool:
    return node.startswith((f"{outer}.", f"{outer}["))


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
        lambda new, leaf: leaf if _is_masked(new) else new,
        trained,
        _like(params, trained),
        is_leaf=_is_masked,
    )
    return {**params, **new_params} if isinstance(params, Mapping) else new_params


# The learning rate


class RateState(NamedTuple):
    """State of `scale_by_scheduled_rate`."""

    count: jax.Array
    """Steps taken, int32 []."""
    lr: jax.Array
    """Rate that the schedule multiplies, float32 [].

    It is state, so that one compiled step serves every rate of a sweep.
    """
    rate: jax.Array
    """Rate of the last step, float32 []."""
    error_rate: jax.Array
    """Running training error in 0..1, float32 []."""
    warm: jax.Array
    """True if warm-up is finished, bool []."""
    plateau: Any
    """State of the transformation that lowers the rate, if any.

    It acts on a plateau of the loss.
    """
    method: Any
    """State of the method."""


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
    state, or where parts of the parameters have different rates.
    """

    # Accepts a field of an optimizer's state, not a parameter of the same name.
    def is_field(path: Any, _: Any) -> bool:
        return isinstance(path[-1], optax.tree_utils.NamedTupleKey)

    matches = optax.tree.get_all_with_path(opt_state, "rate", filtering=is_field)
    values = [value for _, value in matches]
    if not values:
        injected = optax.tree.get_all_with_path(opt_state, "hyperparams", filtering=is_field)
        values = [fields["learning_rate"] for _, fields in injected if "learning_rate" in fields]
    # Seven digits turn float32's 0.10000000149 into 0.1.
    rates = {float(f"{float(value):.7g}") for value in values if np.ndim(value) == 0}
    return rates.pop() if len(rates) == 1 else None


# Rates by stage


def in_stage(name: str, stage: str) -> bool:
    """Return whether the parameters called `name` belong to `stage`.

    They do if the name is `stage`, or `stage` followed by "_" and more.

    Example:
      >>> in_stage("stage1_block2", "stage1"), in_stage("stage10", "stage1")
      (True, False)
    """
    return name == stage or name.startswith(stage + "_")


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
    return {
        name: tree
        for name, tree in params.items()
        if not any(in_stage(name, stage) for stage in freeze)
    }


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
