"""The learning-rate range test (Smith 2017, arXiv:1506.01186, section 3.3): raise the rate at every step, watch the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxcnn import metrics, parallel
from jaxcnn.data import Dataset
from jaxcnn.feed import feed
from jaxcnn.optim import optimizer
from jaxcnn.recipe import Recipe, RecipeError
from jaxcnn.state import start
from jaxcnn.train import check, make_step, order, step_options

BLOWN = 4.0
"""A loss this many times that of the first steps has diverged."""


class RangeTest(NamedTuple):
    """What a range test found; rates that it did not find are None."""

    rates: np.ndarray
    """float64 [n]: of the steps taken, rising."""
    losses: np.ndarray
    """float64 [n]: the loss before each step (of its batch, where there are batches)."""
    smooth: np.ndarray
    """float64 [n]: a centred mean of `losses`, so that it lags behind nothing."""
    suggested: float | None
    """Where the smoothed loss falls most steeply against the logarithm of the rate, over half a decade: a rate to train at."""
    limit: float | None
    """An estimate of the largest stable rate: the last at which the smoothed loss is nearer its lowest than its first (or the
    ceiling), or what the pace of the divergence says if that is less (`_pace`). None where the loss does not rise again."""
    diverged: float | None
    """The first rate whose loss is not finite or `BLOWN` times the first; None where none is. It comes after the limit, for it
    takes some steps to blow up."""


def range_test(
    step: Callable[[Any, float], tuple[Any, float]],
    carry: Any,
    *,
    low: float,
    high: float,
    steps: int = 100,
    window: int = 5,
    ceiling: float = math.inf,
) -> RangeTest:
    """Take `steps` steps at rates from `low` to `high`, equally spaced in their logarithm, until the loss has diverged.

    Args:
      step: (carry, rate) -> (carry, the loss before the step).
      carry: whatever `step` moves.
      low, high: the first and the last rate.
      steps: how many, at least 10.
      window: steps in the mean that smooths the losses.
      ceiling: the loss of guessing, say. What falls above it counts for nothing in `suggested`: a network that starts sure of
        wrong answers loses that at any rate, and has learnt nothing yet.

    Raises:
      RecipeError: unless 0 < low < high are finite and there are enough steps.

    Example:
      >>> descend = lambda w, rate: (w - rate * 8 * w, 4 * w * w)  # curvature 8: stable below 2 / 8
      >>> found = range_test(descend, 1.0, low=1e-3, high=10, window=1)
      >>> 0.125 < found.limit < 0.5
      True
    """
    _sensible(low, high, steps)
    rates, losses = np.geomspace(low, high, steps), []
    for rate in rates:
        carry, loss = step(carry, float(rate))
        losses.append(float(loss))
        if _blown(losses, window):
            break
    return read(rates[: len(losses)], losses, window, ceiling)


def _sensible(low, high, steps) -> None:
    if not (0 < low < high < math.inf):
        raise RecipeError(f"rates go from {low} to {high}; expected 0 < low < high, finite: write low=1e-4, high=10")
    if type(steps) is not int or steps < 10:
        raise RecipeError(f"steps is {steps!r}; expected a whole number of at least 10: write steps=100")


def _blown(losses: Sequence[float], window: int) -> bool:
    first = losses[:window]
    return not math.isfinite(losses[-1]) or losses[-1] > BLOWN * sum(first) / len(first)


def read(
    rates: np.ndarray, losses: Sequence[float] | np.ndarray, window: int = 5, ceiling: float = math.inf
) -> RangeTest:
    """What losses at rising rates say; `range_test` without the steps.

    Args:
      rates, losses: [n], in the order in which they were taken.
      window, ceiling: as in `range_test`.
    """
    raw = np.asarray(losses, np.float64)
    diverged = float(rates[-1]) if len(raw) > 1 and _blown(list(raw), window) else None
    kept = raw[:-1] if diverged is not None else raw  # the last loss would drag the mean of its neighbours up
    half = window // 2
    smooth = np.array([kept[max(0, i - half) : i + half + 1].mean() for i in range(len(kept))])
    falling = np.minimum(smooth[: smooth.argmin() + 1], ceiling)
    suggested = _steepest(np.log(rates[: len(falling)]), falling)
    # A loss may rise and fall again, under momentum even on a quadratic: what counts is where it leaves for good.
    near = np.flatnonzero(smooth <= (min(smooth[0], ceiling) + smooth.min()) / 2)
    left = diverged is not None or near[-1] < len(smooth) - 1
    limit = min(float(rates[near[-1]]), _pace(rates, raw) if diverged is not None else math.inf) if left else None
    return RangeTest(rates, raw, np.concatenate([smooth, raw[len(kept) :]]), suggested, limit, diverged)


def _steepest(logs, losses) -> float | None:
    """The middle of the half decade over which the loss falls most: over less, batches' noise decides."""
    reach = max(1, round(math.log(10) / 4 / (logs[1] - logs[0]))) if len(logs) > 1 else 1
    falls = losses[: -2 * reach] - losses[2 * reach :]
    return float(np.exp(logs[reach + falls.argmax()])) if len(falls) and falls.max() > 0 else None


def _pace(rates, losses) -> float:
    """The largest stable rate, 2 / L, from the last step of a divergence.

    On a quadratic the sharpest direction has by then outgrown the others, and a step at rate r multiplies its loss by
    (1 - r L)^2. The lowest loss comes too late there: while that direction was stable, it shrank to nothing, and it takes
    many unstable steps to be seen again. (With momentum m the limit is 2 (1 + m) / L, and this is at most a third off.)
    """
    growth = losses[-1] / losses[-2]
    return float(2 * rates[-2] / (1 + math.sqrt(growth))) if 1 < growth < math.inf else math.inf


def lr_range_test(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    low: float = 1e-5,
    high: float = 10.0,
    steps: int = 100,
    driver: parallel.Driver | None = None,
) -> RangeTest:
    """The range test of the recipe's optimiser on a network from its initialisation; numbers, no plot.

    Args:
      model: the network.
      data: the training part is used.
      recipe: optimiser, batch, augmentation and seed; its rate, schedule and length are not used.
      low, high, steps: as in `range_test`.
      driver: where to run.

    Raises:
      RecipeError: before anything is compiled, as `fit` and `range_test` do.

    Example:
      >>> from jaxcnn import build, load
      >>> recipe = Recipe(dataset="digits", model="mlp", optimizer="sgd", pad=0, flip=False)
      >>> found = lr_range_test(build("mlp", 10), load("digits"), recipe, steps=40)
      >>> found.suggested < found.limit
      True
    """
    _sensible(low, high, steps)
    driver = driver or parallel.driver()
    recipe = replace(recipe, schedule="constant", lr=low, warmup_lr=None)
    check(recipe, data, driver)
    tx = optimizer(recipe)
    run = driver.fold(make_step(model, tx, **step_options(recipe), axis=driver.axis))
    fed, state = feed(data.train, driver), start(model, tx, recipe, data)
    batches = iter(order(state.key, 0, steps, recipe.batch, len(data.train.labels)))

    def step(placed, rate):
        opt = placed.opt._replace(
            lr=driver.replicate(jnp.float32(rate))
        )  # the rate is state: nothing is compiled again
        placed = placed._replace(opt=opt, sums=driver.replicate(metrics.zeros()))
        piece = next(fed.pieces(next(batches)[None]))
        placed = run(placed, fed.fixed, piece)
        return placed, driver.fetch(placed.sums).mean_loss

    guessing = math.log(len(data.classes)) if recipe.loss == "cross-entropy" else math.inf
    return range_test(step, driver.replicate(state), low=low, high=high, steps=steps, ceiling=guessing)
