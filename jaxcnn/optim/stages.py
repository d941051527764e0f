"""Rates by stage: the steps of some stages scaled, those of frozen ones left out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcnn.recipe import ArgumentError


def in_stage(name: str, stage: str) -> bool:
    """Whether the parameters called `name` are of `stage`: they are called the same, or `stage` and more after a "_".

    Example:
      >>> in_stage("stage1_block2", "stage1"), in_stage("stage10", "stage1")
      (True, False)
    """
    return name == stage or name.startswith(stage + "_")


def frozen_stages(rates: Mapping[str, float]) -> tuple[str, ...]:
    """The stages whose rate is 0."""
    return tuple(stage for stage, rate in rates.items() if rate == 0)


def check(params: Any, rates: Iterable[str]) -> None:
    """ArgumentError unless every stage in `rates` has parameters; it names those there are."""
    stages = list(dict.fromkeys(name.split("_")[0] for name in params))
    for stage in rates:
        if not any(in_stage(name, stage) for name in params):
            raise ArgumentError(
                f"stage_rates has {stage!r}, of which the model has no parameters; it has {', '.join(stages)}"
            )


def stop_gradients(params: Any, stages: Collection[str]) -> Any:
    """`params` with those of `stages` as constants, so that no gradient is computed for them, nor for what lies before."""

    def hold(name, part):
        return jax.lax.stop_gradient(part) if any(in_stage(name, stage) for stage in stages) else part

    return {name: hold(name, part) for name, part in params.items()} if stages else params


def scale_by_stage(
    tx: optax.GradientTransformationExtraArgs, rates: Mapping[str, float]
) -> optax.GradientTransformationExtraArgs:
    """`tx` with the steps of each stage multiplied by its rate. Frozen stages bring no gradient and take no step.

    Example:
      >>> tx = scale_by_stage(optax.with_extra_args_support(optax.sgd(1.0)), {"stem": 0, "head": 0.5})
      >>> params = {"stem": jnp.ones(()), "stage1": jnp.ones(()), "head": jnp.ones(())}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> {name: float(step) for name, step in updates.items()}
      {'head': -0.5, 'stage1': -1.0, 'stem': 0.0}
    """
    if not rates:
        return tx

    def init(params: Any) -> Any:
        check(params, rates)
        return tx.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        updates = _times(updates, dict.fromkeys(frozen_stages(rates), 0.0))
        updates, state = tx.update(updates, state, params, **extra)
        return _times(updates, rates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _times(tree: Any, rates: Mapping[str, float]) -> Any:
    def scale(name, part):
        for rate in (rate for stage, rate in rates.items() if in_stage(name, stage)):
            part = jax.tree.map(lambda x, rate=rate: x * rate if rate else jnp.zeros_like(x), part)
        return part

    return {name: scale(name, part) for name, part in tree.items()}
