"""The learning rate: a method is a function of it, and `scale_by_scheduled_rate` says what it is at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class RateState(NamedTuple):
    """State of `scale_by_scheduled_rate`."""

    count: jax.Array
    """int32 []: steps taken."""
    lr: jax.Array
    """float32 []: what the schedule multiplies. It is state, so that one compiled step serves every rate of a sweep."""
    rate: jax.Array
    """float32 []: the rate of the last step."""
    error_rate: jax.Array
    """float32 []: the running training error, in 0..1."""
    warm: jax.Array
    """bool []: whether warm-up is over."""
    plateau: Any
    """State of the transformation that lowers the rate when the loss stays where it is, if there is one."""
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
    """`method(rate)` with rate = lr * schedule(step), after a warm-up that the training error ends.

    He et al. 2015, section 4.2: "we use 0.01 to warm up the training until the training error is below 80% (about 400
    iterations), and then go back to 0.1". It is a jump, and it happens once. One batch's error is noisy (3.5 points at
    128 images), so a running mean is compared.

    Args:
      method: rate (float32 [], traced) -> transformation; the tree of its state must not depend on the rate.
      lr: the rate at which the schedule is 1.
      schedule: step -> factor.
      warmup_lr: the rate until then; None is no warm-up.
      warmup_error: in 0..1; warm-up ends at the first step whose running error is below.
      memory: of the running error, which starts at 1.
      plateau: such as `optax.contrib.reduce_on_plateau`; its `scale` multiplies the rate, its `value` is the loss.

    The update takes as extra arguments what the parts ask for: `error`, the batch's training error in 0..1, for the warm-up;
    `value`, its loss, for a plateau and some methods.

    Example:
      >>> tx = scale_by_scheduled_rate(optax.sgd, 0.5, lambda step: 1.0)
      >>> updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
      >>> updates.tolist()
      [-0.5, -0.5]
    """
    plateau = plateau or optax.with_extra_args_support(optax.identity())

    def share(step: jax.Array) -> jax.Array:
        # Optax's schedules mix steps, truths and shares, which strict promotion refuses; floats count to 2^24 exactly.
        with jax.numpy_dtype_promotion("standard"):
            return jnp.asarray(schedule(step), jnp.float32)

    def init(params: Any) -> RateState:
        first = lr * share(jnp.float32(0)) if warmup_lr is None else warmup_lr
        lowering, inner = plateau.init(params), method(jnp.float32(lr)).init(params)
        warm = jnp.asarray(warmup_lr is None)
        return RateState(jnp.int32(0), jnp.float32(lr), jnp.float32(first), jnp.float32(1), warm, lowering, inner)

    def update(updates: Any, state: Any, params: Any = None, *, error: Any = None, value: Any = None, **extra: Any):
        rate = state.lr * share(state.count.astype(jnp.float32))
        warm, running = state.warm, state.error_rate
        if warmup_lr is not None:
            if error is None:
                raise ValueError("the warm-up waits for the training error: call tx.update(..., error=...)")
            running = memory * running + (1 - memory) * error
            warm = warm | (running < warmup_error)
            rate = jnp.where(warm, rate, warmup_lr)
        one, lowering = plateau.update(jnp.ones_like(rate), state.plateau, value=value)
        rate = rate * jnp.asarray(one, jnp.float32)
        tx = optax.with_extra_args_support(method(rate))
        updates, inner = tx.update(updates, state.method, params, value=value, error=error, **extra)
        return updates, RateState(state.count + 1, state.lr, rate, running, warm, lowering, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def current_learning_rate(opt_state: Any) -> float | None:
    """The learning rate of the last step, where the optimiser's state knows it (ours, or optax's injected ones).

    None where it does not, or where parts of the parameters have different rates.
    """

    def field(path: Any, _: Any) -> bool:  # of an optimiser's state, not a parameter that is called the same
        return isinstance(path[-1], optax.tree_utils.NamedTupleKey)

    found = [value for _, value in optax.tree.get_all_with_path(opt_state, "rate", filtering=field)]
    if not found:
        injected = optax.tree.get_all_with_path(opt_state, "hyperparams", filtering=field)
        found = [values["learning_rate"] for _, values in injected if "learning_rate" in values]
    rates = {float(f"{float(value):.7g}") for value in found if np.ndim(value) == 0}  # 0.1, not float32's 0.10000000149
    return rates.pop() if len(rates) == 1 else None
