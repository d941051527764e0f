"""Divergence: training that has left all sense, noticed within a bounded number of steps and said in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxcnn.metrics import Metrics
from jaxcnn.parallel import Strategy

FACTOR = 10.0
"""A mean training loss this many times that of guessing, log(classes), is divergence, finite or not."""
EVERY = 250
"""A run is looked at after every step that this divides, and after every scan, beside its rows.

A look waits for the steps under way. On two cores of an Intel Xeon a step of `mlp` on digits (0.3 ms) so takes 1.04 times as
long, and with 50 in place of 250 1.25; `plain20` (19 ms) 1.00. (Medians of 9 runs each, in turn; jax 0.10.2, 2026-11-21.)
"""


def reason(row: Mapping[str, float], classes: int) -> str | None:
    """Why a row is that of a diverged run, or None: a loss or a gradient that is no number, or a loss beyond sense.

    One bad step is enough: a sum with a NaN in it stays NaN.

    Example:
      >>> reason({"train_loss": 1.0, "grad_norm": float("inf")}, classes=10)
      'grad_norm is inf'
      >>> reason({"train_loss": 24.0, "grad_norm": 1.0}, classes=10)
      'train_loss is 24, above 23'
    """
    for name in ("train_loss", "grad_norm", "eval_loss"):
        if not math.isfinite(row.get(name, 0.0)):
            return f"{name} is {row[name]}"
    limit = FACTOR * math.log(classes)
    return f"train_loss is {row['train_loss']:.3g}, above {limit:.3g}" if row["train_loss"] > limit else None


def nonfinite_parameter(params: Any) -> str | None:
    """The first of the parameters, arrays on the host, that hold what is no number; None if there is none.

    They are asked themselves: one may be lost at the last update, after which no loss was computed.

    Example:
      >>> nonfinite_parameter({"dense": {"bias": np.array([0.0, np.nan])}})
      "the parameters ['dense']['bias'] are not finite"
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(leaf.astype(np.float32)).all():
            return f"the parameters {jax.tree_util.keystr(path)} are not finite"
    return None


def find_divergence(state: Any, strategy: Strategy, classes: int) -> str | None:
    """Why the run whose `State` is on the devices has diverged since its last row, or None.

    Only the host works, on what the state holds anyway, so nothing is added to the step; and what it sees depends on
    the state alone, so that a run that was stopped ends as one that was not.
    """
    sums: Metrics = strategy.fetch(state.metrics)
    so_far = {"train_loss": sums.mean_loss, "grad_norm": sums.mean_grad_norm}
    return reason(so_far, classes) or nonfinite_parameter(strategy.fetch(state.params))
