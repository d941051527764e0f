"""Optimisers by name, and the paper's schedule, as one optax transformation made from a Recipe.

A method is a table entry: a function of the recipe's numbers giving the transformations before and after the rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcnn.recipe import Recipe, one_of


def _heavy_ball(recipe: Recipe):
    return optax.trace(recipe.momentum), optax.identity()


def _nesterov(recipe: Recipe):
    return optax.trace(recipe.momentum, nesterov=True), optax.identity()


def _caffe(recipe: Recipe):
    return optax.identity(), optax.trace(recipe.momentum)


def _sgd(recipe: Recipe):
    return optax.identity(), optax.identity()


Parts = tuple[optax.GradientTransformation, optax.GradientTransformation]
OPTIMIZERS: dict[str, Callable[[Recipe], Parts]] = {
    "momentum": _heavy_ball,
    "caffe": _caffe,
    "nesterov": _nesterov,
    "sgd": _sgd,
}
"""name -> (what comes before the rate, what comes after it).

"momentum" is heavy ball as optax and PyTorch have it: v = m v + g, w -= lr v. "caffe" is the form of the paper's own code:
v = m v + lr g, w -= v. They differ after every change of the rate: the second still carries steps of the old one.
"""


class RateState(NamedTuple):
    """State of `scale_by_rate`."""

    count: jax.Array
    """int32 []: steps taken."""
    rate: jax.Array
    """float32 []: the rate of the last step."""
    error: jax.Array
    """float32 []: the running training error, in 0..1."""
    warm: jax.Array
    """bool []: whether warm-up is over."""


def scale_by_rate(
    schedule: optax.Schedule, warmup_lr: float | None = None, warmup_error: float = 0.8, memory: float = 0.95
) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the rate: `schedule(step)`, after a warm-up that the training error ends.

    He et al. 2015, section 4.2: "we use 0.01 to warm up the training until the training error is below 80% (about 400
    iterations), and then go back to 0.1". It is a jump, and it happens once. One batch's error is noisy (3.5 points at
    128 images), so a running mean is compared.

    Args:
      schedule: step -> rate.
      warmup_lr: the rate until then; None is no warm-up.
      warmup_error: in 0..1; warm-up ends at the first step whose running error is below.
      memory: of the running error, which starts at 1.

    The update takes `error`, the batch's training error in 0..1, as an extra argument when there is a warm-up.
    """

    def init(params: Any) -> RateState:
        del params
        first = schedule(0) if warmup_lr is None else warmup_lr
        return RateState(jnp.int32(0), jnp.float32(first), jnp.float32(1), jnp.asarray(warmup_lr is None))

    def update(updates: Any, state: Any, params: Any = None, *, error: Any = None, **extra: Any):
        del params, extra
        # Optax's step schedule mixes integers with floats, which strict promotion refuses; floats count to 2^24 exactly.
        rate = jnp.asarray(schedule(state.count.astype(jnp.float32)), jnp.float32)
        warm, running = state.warm, state.error
        if warmup_lr is not None:
            if error is None:
                raise ValueError("the warm-up waits for the training error: call tx.update(..., error=...)")
            running = memory * running + (1 - memory) * error
            warm = warm | (running < warmup_error)
            rate = jnp.where(warm, rate, warmup_lr)
        scaled = jax.tree.map(lambda u: -rate.astype(u.dtype) * u, updates)
        return scaled, RateState(state.count + 1, rate, running, warm)

    return optax.GradientTransformationExtraArgs(init, update)


def decay_mask(params: Any, on: str) -> Any:
    """Which leaves of `params` decay: "convs" ([h, w, i, o] kernels), "kernels" (dense ones too) or "all".

    Returns a tree of booleans like `params`.
    """

    def decays(path, leaf):
        kernel = path[-1].key == "kernel"
        return {"convs": kernel and leaf.ndim == 4, "kernels": kernel, "all": True}[on]

    return jax.tree_util.tree_map_with_path(decays, params)


def optimizer(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    """The recipe's optimiser: L2 into the gradient, the method, the rate with its drops and warm-up.

    Raises:
      RecipeError: for a name that is not in `OPTIMIZERS`; the nearest is named.

    Example:
      >>> tx = optimizer(Recipe(optimizer="sgd", lr=0.5, decay=0.0))
      >>> params = {"kernel": jnp.ones(())}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> float(updates["kernel"])
      -0.5
    """
    before, after = OPTIMIZERS[one_of("optimizer", recipe.optimizer, OPTIMIZERS)](recipe)
    schedule = optax.piecewise_constant_schedule(recipe.lr, dict.fromkeys(recipe.drops, recipe.factor))
    decay = optax.add_decayed_weights(recipe.decay, lambda params: decay_mask(params, recipe.decay_on))
    rate = scale_by_rate(schedule, recipe.warmup_lr, recipe.warmup_error)
    return optax.chain(decay, before, rate, after)


def rate_of(opt_state: Any) -> float | None:
    """The learning rate of the last step, where the optimiser's state knows it (ours, or optax's injected one)."""

    def field(path: Any, _: Any) -> bool:  # of an optimiser's state, not a parameter that is called the same
        return isinstance(path[-1], optax.tree_utils.NamedTupleKey)

    rate = optax.tree.get(opt_state, "rate", filtering=field)
    if rate is None:
        injected = optax.tree.get(opt_state, "hyperparams", filtering=field) or {}
        rate = injected.get("learning_rate")
    return None if rate is None else float(f"{float(rate):.7g}")  # 0.1, not float32's 0.10000000149
