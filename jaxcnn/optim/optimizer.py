"""`optimizer`: a Recipe's method, decay, schedule and warm-up as one optax transformation."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import optax

from jaxcnn.optim import methods, schedules
from jaxcnn.optim.rate import at_rate
from jaxcnn.recipe import Recipe, one_of

_FIELDS = ("optimizer", "method", "momentum", "decay", "decay_on", "schedule", "factor", "warmup_lr", "warmup_error")
_READ = {"step": ("drops",), "constant": ()}


def optimizer(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    """The recipe's optimiser: L2 into the gradient, the method, the rate with its schedule and warm-up.

    Recipes that differ in the rate or the seed alone have the same `update`, so a sweep over them compiles once.

    Raises:
      RecipeError: for a name not in `OPTIMIZERS` or `SCHEDULES` (the nearest is named), or an option the method lacks.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = optimizer(Recipe(optimizer="sgd", lr=0.5, decay=0.0))
      >>> params = {"kernel": jnp.ones(())}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> float(updates["kernel"])
      -0.5
    """
    methods.check(recipe)
    one_of("schedule", recipe.schedule, schedules.SCHEDULES)
    read = (*_FIELDS, *_READ.get(recipe.schedule, ("steps",)))
    same: dict[str, Any] = {"drops": ()} | {name: getattr(recipe, name) for name in read}
    return optax.GradientTransformationExtraArgs(_whole(recipe).init, _update(Recipe(**same).to_json()))


@lru_cache(maxsize=256)
def _update(text):
    return _whole(Recipe.from_json(text)).update


def _whole(recipe):
    method = methods.check(recipe)

    def at(rate: jax.Array) -> optax.GradientTransformation:
        made = method.make(recipe, rate, **recipe.method)
        return made if method.decays else optax.chain(methods.l2(recipe), made)

    return at_rate(
        at,
        recipe.lr,
        schedules.SCHEDULES[recipe.schedule](recipe),
        warmup_lr=recipe.warmup_lr,
        warmup_error=recipe.warmup_error,
        plateau=schedules.plateau(recipe),
    )
