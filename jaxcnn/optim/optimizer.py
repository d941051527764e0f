"""`create_optimizer`: a Recipe's method, decay, schedule and warm-up as one optax transformation."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import jax
import optax

from jaxcnn.optim import methods, schedules, stages
from jaxcnn.optim.rate import scale_by_scheduled_rate
from jaxcnn.recipe import ArgumentError, Recipe, check_choice, format_value, verify_recipe

_FIELDS = (
    "optimizer",
    "method",
    "momentum",
    "decay",
    "decay_on",
    "schedule",
    "factor",
    "warmup_lr",
    "warmup_error",
    "stage_rates",
)
_READ = {"step": ("drops",), "constant": ()}


def create_optimizer(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    """The recipe's optimiser: L2 into the gradient, the method, the rate with its schedule and warm-up.

    Recipes that differ in the rate or the seed alone have the same `update`, so a sweep over them compiles once.

    Raises:
      ArgumentError: for a name not in `OPTIMIZERS` or `SCHEDULES` (the nearest is named), or an option the method lacks.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = create_optimizer(Recipe(optimizer="sgd", lr=0.5, decay=0.0))
      >>> params = {"kernel": jnp.ones(())}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> float(updates["kernel"])
      -0.5
    """
    check(recipe)
    check_choice("schedule", recipe.schedule, schedules.SCHEDULES)
    read = (*_FIELDS, *_READ.get(recipe.schedule, ("steps",)))
    same: dict[str, Any] = {"drops": ()} | {name: getattr(recipe, name) for name in read}
    return optax.GradientTransformationExtraArgs(_whole(recipe).init, _update(Recipe(**same).to_json()))


@lru_cache(maxsize=256)
def _update(text):
    return _whole(Recipe.from_json(text)).update


def _whole(recipe):
    method = check(recipe)

    def at(rate: jax.Array) -> optax.GradientTransformation:
        made = method.make(recipe, rate, **recipe.method)
        return made if method.decays else optax.chain(methods.l2(recipe), made)

    whole = scale_by_scheduled_rate(
        at,
        recipe.lr,
        schedules.SCHEDULES[recipe.schedule](recipe),
        warmup_lr=recipe.warmup_lr,
        warmup_error=recipe.warmup_error,
        plateau=schedules.plateau(recipe),
    )
    return stages.scale_by_stage(whole, recipe.stage_rates)


def options(name: str) -> dict[str, Any]:
    """What `recipe.method` may set for the optimiser `name`, with the defaults.

    Example:
      >>> options("adam")
      {'b1': 0.9, 'b2': 0.999}
    """
    found = inspect.signature(methods.OPTIMIZERS[name].make).parameters.values()
    return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}


def check(recipe: Recipe) -> methods.OptimizerSpec:
    """The recipe's method; ArgumentError for a name or an option that does not exist, or a value out of bounds."""
    verify_recipe(recipe)
    known = options(check_choice("optimizer", recipe.optimizer, methods.OPTIMIZERS))
    if "test parameters" in methods.OPTIMIZERS[recipe.optimizer].needs and set(recipe.stage_rates.values()) - {0, 1}:
        raise ArgumentError(
            f"stage_rates is {format_value(recipe.stage_rates)}; {recipe.optimizer} averages its steps and takes rates of 0 "
            "and 1 only: write optimizer='momentum', say"
        )
    for name, value in recipe.method.items():
        if not known:
            raise ArgumentError(
                f"method of {recipe.optimizer} is {format_value(name)}; it has no numbers of its own: write method={{}}"
            )
        check_choice(f"method of {recipe.optimizer}", name, known)
        good, expected = _expected(recipe.optimizer, name, known[name])
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not good(value):
            raise ArgumentError(f"method {name} is {format_value(value)}; expected {expected}: write {known[name]}")
    return methods.OPTIMIZERS[recipe.optimizer]


def _expected(method, name, default):
    """(what an option must be, the same in words); beyond these bounds methods divide by 0 or never act."""
    if isinstance(default, int):
        return lambda value: isinstance(value, int) and value >= 1, "a whole number of at least 1"
    if (method, name) == ("schedule-free", "b1"):  # its average is recovered by dividing by b1
        return lambda value: 0 < value < 1, "a number above 0 and below 1"
    if name in ("b1", "b2", "beta", "decay"):
        return lambda value: 0 <= value < 1, "a number of at least 0 and below 1"
    if name in ("norm", "share", "d0"):
        return lambda value: value > 0, "a number above 0"
    return lambda value: value >= 0, "a number of at least 0"
