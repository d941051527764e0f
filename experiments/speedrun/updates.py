"""How parameters move: the schedule, Nesterov's momentum by groups of parameters, the smoothed loss, lookahead.

Jordan 2024 (arXiv:2404.00498), sections 3.1 and 3.4; the numbers are those of its method for 94%.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.speedrun.options import Options

START, PEAK, END = 0.2, 0.23, 0.07
"""The rate rises from 20% to 100% over the first 23% of the steps and falls to 7%, both in straight lines."""
EVERY, PULL = 5, 0.95**5
"""Lookahead: steps between its updates, and how much of the slow parameters an update keeps at the end."""


def steps(options: Options, n: int) -> int:
    """Updates of a run on n images.

    Example:
      >>> steps(Options(), 50_000)
      484
    """
    return math.ceil(options.epochs * n / options.batch)


def triangle(total: int) -> optax.Schedule:
    """step -> the share of the highest rate."""
    corners = jnp.array([0.0, PEAK * total, total]), jnp.array([START, 1.0, END])
    return lambda step: jnp.interp(jnp.asarray(step, jnp.float32), *corners)


def kinds(params: Any) -> Any:
    """The tree of parameters with "kernel", "bias" (BN's), "scale" (BN's) or "whitening" (that layer's bias) for each."""

    def kind(path, _):
        name = path[-1].key
        return "whitening" if name == "whitening_bias" else name

    return jax.tree_util.tree_map_with_path(kind, params)


def optimizer(options: Options, n: int) -> optax.GradientTransformation:
    """Nesterov's momentum with a decay that the rate of a parameter does not multiply, only the schedule's share.

    BN's scales stay 1, its biases learn `bias_rate` times as fast, and the whitening's bias is left alone after
    `whitening_epochs`.
    """
    total, unit = steps(options, n), options.batch / 1024 / (1 + 1 / (1 - options.momentum))
    share = triangle(total)

    def group(scale: float = 1.0, last: float = math.inf) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale(options.lr * unit * scale),
            optax.add_decayed_weights(options.decay * unit),
            optax.trace(options.momentum, nesterov=True),
            optax.scale_by_schedule(lambda step: jnp.where(jnp.asarray(step) < last, -jnp.asarray(share(step)), 0.0)),
        )

    whitened = group(last=options.whitening_epochs * n / options.batch)
    groups: dict[Any, optax.GradientTransformation] = {
        "kernel": group(),
        "bias": group(options.bias_rate),
        "scale": optax.set_to_zero(),
        "whitening": whitened,
    }
    return optax.partition(groups, kinds)


def smoothed(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Cross-entropy [b] of logits [b, classes] with labels [b] of which the share `smoothing` is spread over all classes."""
    classes = logits.shape[-1]
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing))


def lookahead(slow: Any, fast: Any, step: jax.Array, total: int) -> tuple[Any, Any]:
    """(slow, fast) after `step` steps: at every fifth the slow ones come nearer, and the fast go on from there.

    An update keeps 0.95^5 (step / total)^3 of the slow ones: first none, so that they follow, at last 77%.
    """
    due = step % EVERY == 0
    keep = PULL * (step.astype(jnp.float32) / total) ** 3
    moved = jax.tree.map(lambda s, f: jnp.where(due, keep * s + (1 - keep) * f, s), slow, fast)
    return moved, jax.tree.map(lambda s, f: jnp.where(due, s, f), moved, fast)
