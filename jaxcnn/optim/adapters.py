"""Optax methods that ask for more than a gradient, brought to the form `update(gradient, state, params, **extra)`.

`make_train_step` offers every method the same extra arguments: `value` (the batch's loss), `error` (0..1) and `grad_fn`, a
second gradient on the same batch at other parameters. Two methods train at one point and are judged at another: `eval_params`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxcnn.recipe import ArgumentError, format_value


def only(tx: optax.GradientTransformationExtraArgs, *names: str) -> optax.GradientTransformationExtraArgs:
    """`tx` given only the extra arguments `names`, for a method that refuses others."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        return tx.update(updates, state, params, **{name: extra[name] for name in names})

    return optax.GradientTransformationExtraArgs(tx.init, update)


def noise(eta: float, gamma: float, key: jax.Array) -> optax.GradientTransformation:
    """`optax.add_noise` whose state keeps the key as uint32 [2], an array like any other to copy, save and compare."""
    inner: Any = optax.add_noise(eta, gamma, jax.random.wrap_key_data(key))

    def plain(state):
        return state._replace(rng_key=jax.random.key_data(state.rng_key))

    def update(updates: Any, state: Any, params: Any = None):
        typed = state._replace(rng_key=jax.random.wrap_key_data(jnp.asarray(state.rng_key)))
        updates, state = inner.update(updates, typed, params)
        return updates, plain(state)

    return optax.GradientTransformation(lambda params: plain(inner.init(params)), update)


def as_transformation(tx: Any) -> optax.GradientTransformationExtraArgs:
    """Return `tx` as a transformation with extra arguments; also what only has its two functions, as `optax.MultiSteps`.

    Raises:
      ArgumentError: for anything else, such as `optax.adam` without its call.

    Example:
      >>> as_transformation(optax.adam)
      Traceback (most recent call last):
      jaxcnn.arguments.ArgumentError: tx is the function adam; expected an optax transformation. Write adam(1e-3), its result.
    """
    if callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None)) and not isinstance(tx, type):
        plain = isinstance(tx, optax.GradientTransformation)
        return optax.with_extra_args_support(tx if plain else optax.GradientTransformation(tx.init, tx.update))
    if callable(tx):
        name = getattr(tx, "__name__", type(tx).__name__)
        what, mend = f"the function {name}", f"{name}(1e-3), its result"
    else:
        what, mend = (
            format_value(tx) if isinstance(tx, str) else f"of type {type(tx).__name__}",
            "optax.adam(1e-3), say",
        )
    raise ArgumentError(f"tx is {what}; expected an optax transformation. Write {mend}.")


class LookaheadState(NamedTuple):
    """State of `lookahead`."""

    slow: Any
    """The slow parameters, at which the network is judged."""
    inner: Any
    """Optax's own state."""


def lookahead(fast: optax.GradientTransformation, period: int, share: float) -> optax.GradientTransformation:
    """`optax.lookahead` whose slow parameters live in its state, so that the network's are the fast ones alone.

    Args:
      fast: the method that takes every step.
      period: steps between synchronisations.
      share: of the way to the fast parameters that the slow ones go then, in 0..1.
    """
    both = optax.lookahead(fast, period, share)

    def init(params: Any) -> LookaheadState:
        # A copy: parameters and state are donated together, and one buffer cannot be given away twice.
        return LookaheadState(jax.tree.map(jnp.array, params), both.init(optax.LookaheadParams.init_synced(params)))

    def update(updates: Any, state: Any, params: Any = None):
        pair: Any = optax.LookaheadParams(fast=params, slow=state.slow)
        moves: Any
        moves, inner = both.update(updates, state.inner, pair)
        return moves.fast, LookaheadState(optax.apply_updates(state.slow, moves.slow), inner)

    return optax.GradientTransformation(init, update)


def prodigy(rate: jax.Array, d0: float, decay: float, decays: Callable[[Any], Any]) -> optax.GradientTransformation:
    """`optax.contrib.prodigy` that decays only where `decays(params)` is true, and waits where optax's divides 0 by 0.

    Its estimate is a quotient of sums over the steps weighted by the rate: with the rate 0 of a warm-up's first step, or
    no gradient yet, both are 0. The estimate then stays as it was.
    """
    plain: Any
    decayed: Any
    plain, decayed = (contrib.prodigy(rate, estim_lr0=d0, weight_decay=each) for each in (0.0, decay))

    def update(updates: Any, state: Any, params: Any = None):
        moves, _ = plain.update(updates, state, params)
        shrinks, new = decayed.update(updates, state, params)
        moves = jax.tree.map(lambda on, a, b: a if on else b, decays(params), shrinks, moves)
        waits = optax.tree.norm(new.grad_sum) == 0
        moves = jax.tree.map(lambda move: jnp.where(waits, 0, move), moves)
        return moves, new._replace(estim_lr=jnp.where(waits, state.estim_lr, new.estim_lr))

    # Copies: optax's state is the parameters themselves, and one buffer cannot be given away twice.
    return optax.GradientTransformation(lambda params: plain.init(jax.tree.map(jnp.array, params)), update)


_AVERAGES = (LookaheadState, contrib.ScheduleFreeState)


def eval_params(opt_state: Any, params: Any) -> Any:
    """The parameters at which a network is judged: lookahead's slow ones, schedule-free's average, else `params` itself.

    Defazio et al. 2024 (arXiv:2405.15682), eq. 1: gradients are taken at y, and x is what the method returns. A network with
    BN has moments of y; those of x come from `recompute_batch_stats`.
    """
    for state in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, _AVERAGES)):
        if isinstance(state, LookaheadState):
            return state.slow
        if isinstance(state, contrib.ScheduleFreeState):
            return contrib.schedule_free_eval_params(state, params)
    return params


eval_params.__test__ = False  # pytest collects functions of such names
