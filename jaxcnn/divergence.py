"""Divergence of training, noticed within a bounded number of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxcnn.metrics import Metrics
from jaxcnn.parallel import Strategy

LOSS_FACTOR = 10.0
"""Ratio of a diverged mean training loss to that of guessing, such as log(num_classes).

A loss above it is divergence, finite or not.
"""
CHECK_EVERY = 250
"""Steps between two checks of a run.

A run is also checked after every scan, and at its rows. A check waits for the steps under way. On
two cores of an Intel Xeon a step of `mlp` on digits (0.3 ms) thereby takes 1.04 times as long, and
with 50 instead of 250 1.25 times. The factor of `plain20` (19 ms) is 1.00. (Medians of 9 runs each,
interleaved; jax 0.10.2, 2026-11-21.)
"""


def reason(row: Mapping[str, float], guess: float | None) -> str | None:
    """Return the reason why a row shows divergence, or None.

    The reason is a loss or a gradient that is not finite, or a training loss above `LOSS_FACTOR`
    times that of guessing. One bad step is enough, because a sum with a NaN in it stays NaN.

    Args:
      row: metrics of a run, with "train_loss".
      guess: loss of guessing, such as `jaxcnn.losses.guess_loss` returns it. None sets no limit to
        the loss.

    Example:
      >>> reason({"train_loss": 1.0, "grad_norm": float("inf")}, guess=math.log(10))
      'grad_norm is inf'
      >>> reason({"train_loss": 24.0, "grad_norm": 1.0}, guess=math.log(10))
      'train_loss is 24, above 23'
    """
    for name in ("train_loss", "grad_norm", "eval_loss"):
        if not math.isfinite(row.get(name, 0.0)):
            return f"{name} is {row[name]}"
    if guess is None:
        return None
    limit = LOSS_FACTOR * guess
    if row["train_loss"] <= limit:
        return None
    return f"train_loss is {row['train_loss']:.3g}, above {limit:.3g}"


def nonfinite_parameter(params: Any) -> str | None:
    """Return a message about the first non-finite parameters, or None.

    The parameters are checked themselves because the last update may break them, after which no
    loss is computed.

    Args:
      params: a tree of arrays on the host.

    Example:
      >>> nonfinite_parameter({"dense": {"bias": np.array([0.0, np.nan])}})
      "the parameters ['dense']['bias'] are not finite"
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(leaf.astype(np.float32)).all():
            return f"the parameters {jax.tree_util.keystr(path)} are not finite"
    return None


def find_divergence(state: Any, strategy: Strategy, guess: float | None) -> str | None:
    """Return the reason why a run has diverged, or None.

    The check covers the steps since its last row.

    Only the host works, on values that the state has anyway, so nothing is added to the step. The
    result depends on the state only, so that a run that was stopped ends as one that was not.

    Args:
      state: `State` of the run, on the devices.
      strategy: the strategy that placed it there.
      guess: as in `reason`.
    """
    metrics: Metrics = strategy.fetch(state.metrics)
    row = {"train_loss": metrics.mean_loss, "grad_norm": metrics.mean_grad_norm}
    return reason(row, guess) or nonfinite_parameter(strategy.fetch(state.params))
