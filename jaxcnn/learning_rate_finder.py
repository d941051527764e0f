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
from jaxcnn.arguments import format_value
from jaxcnn.data import Dataset
from jaxcnn.input_pipeline import input_pipeline
from jaxcnn.models.calling import verify_model
from jaxcnn.optim import create_optimizer
from jaxcnn.recipe import ArgumentError, Recipe, verify_recipe
from jaxcnn.state import init_state
from jaxcnn.training import check_config, check_model, epoch_order, make_train_step, step_kwargs

BLOWN = 4.0
"""A loss this many times that of the first steps has diverged."""


class LRFinderResult(NamedTuple):
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
    ceiling), or what the pace of the divergence says if that is less (`_pace`). None where the loss does not rise again, and
    where it never falls below its first and the ceiling, as in a range that starts too high."""
    diverged: float | None
    """The first rate whose loss is not finite or `BLOWN` times the first ones; None where none is. It comes after the limit,
    for it takes some steps to blow up."""


def range_test(
    step: Callable[[Any, float], tuple[Any, float]],
    carry: Any,
    *,
    low: float,
    high: float,
    steps: int = 100,
    window: int = 5,
    ceiling: float = math.inf,
) -> LRFinderResult:
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
      ArgumentError: unless 0 < low < high are finite and there are enough steps.

    Example:
      >>> descend = lambda w, rate: (w - rate * 8 * w, 4 * w * w)  # curvature 8: stable below 2 / 8
      >>> found = range_test(descend, 1.0, low=1e-3, high=10, window=1)
      >>> 0.125 < found.limit < 0.5
      True
    """
    _sensible(low, high, steps)
    _smoothing(window, ceiling)
    rates, losses = np.geomspace(low, high, steps), []
    for rate in rates:
        carry, loss = step(carry, float(rate))
        losses.append(float(loss))
        if _blown(losses, window):
            break
    return read(rates[: len(losses)], losses, window, ceiling)


def _sensible(low, high, steps) -> None:
    numbers = all(isinstance(rate, (int, float, np.number)) and not isinstance(rate, bool) for rate in (low, high))
    if not (numbers and 0 < low < high < math.inf):
        raise ArgumentError(
            f"rates go from {format_value(low)} to {format_value(high)}; expected 0 < low < high, finite: "
            "write low=1e-4, high=10"
        )
    if type(steps) is not int or steps < 10:
        raise ArgumentError(f"steps is {format_value(steps)}; expected a whole number of at least 10: write steps=100")
    if not high / low > 1 + steps * 1e-12:
        raise ArgumentError(f"{steps} rates from {low} to {high} are not told apart; write low=1e-4, high=10")


def _blown(losses: Sequence[float], window: int) -> bool:
    """Return whether the last loss has diverged, against the mean of the first ones before it."""
    *before, last = losses
    first = before[:window]
    if not math.isfinite(last):
        return True
    # Divided before they are added, which cannot overflow. Of losses around 0 or below no multiple means anything.
    baseline = sum(loss / len(first) for loss in first)
    return baseline > 0 and last / BLOWN > baseline


def read(
    rates: np.ndarray, losses: Sequence[float] | np.ndarray, window: int = 5, ceiling: float = math.inf
) -> LRFinderResult:
    """What losses at rising rates say; `range_test` without the steps.

    Args:
      rates, losses: [n], in the order in which they were taken; the rates positive, finite and rising.
      window, ceiling: as in `range_test`.

    Raises:
      ArgumentError: for rates and losses that are none, or settings of another kind.
    """
    rates, raw = _numbers(rates, losses)
    _smoothing(window, ceiling)
    values = raw.tolist()
    # The baseline is of the first `window` losses, so the others before the one in question need not be passed.
    seen = [[*values[: min(i, window)], loss] for i, loss in enumerate(values)]
    end = next((i for i, losses in enumerate(seen) if _blown(losses, window)), len(values))
    diverged = float(rates[end]) if end < len(raw) else None
    kept = raw[:end]  # the loss that diverged would drag the mean of its neighbours up
    half = window // 2
    smooth = np.array([_mean(kept[max(0, i - half) : i + half + 1]) for i in range(len(kept))])
    suggested, limit = _told(rates, raw, smooth, ceiling) if len(smooth) else (None, None)
    return LRFinderResult(rates, raw, np.concatenate([smooth, raw[end:]]), suggested, limit, diverged)


def _numbers(rates: Any, losses: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 [n]; ArgumentError if they are not that, or the rates do not rise."""
    try:
        rates, losses = np.asarray(rates, np.float64), np.asarray(losses, np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"rates or losses hold no numbers: {error}; expected one of each per step") from None
    if rates.ndim != 1 or not len(rates) or rates.shape != losses.shape:
        raise ArgumentError(
            f"rates have shape {list(rates.shape)} and losses {list(losses.shape)}; expected as many of both, at least 1"
        )
    if not (np.isfinite(rates).all() and rates[0] > 0 and (np.diff(rates) > 0).all()):
        raise ArgumentError(
            "rates are not positive, finite and rising; write rates=np.geomspace(1e-5, 10, len(losses))"
        )
    return rates, losses


def _smoothing(window: Any, ceiling: Any) -> None:
    if type(window) is not int or window < 1:
        raise ArgumentError(f"window is {format_value(window)}; expected a whole number of at least 1: write window=5")
    if isinstance(ceiling, bool) or not isinstance(ceiling, (int, float, np.number)) or math.isnan(ceiling):
        raise ArgumentError(f"ceiling is {format_value(ceiling)}; expected a number: write ceiling=math.log(10)")


def _mean(values: np.ndarray) -> float:
    """Return the mean, divided before adding where the sum would overflow."""
    with np.errstate(over="ignore"):
        mean = values.mean()
    return float(mean if np.isfinite(mean) else (values / len(values)).sum())


def _told(rates, raw, smooth, ceiling) -> tuple[float | None, float | None]:
    """Return the suggestion and the limit of the losses before the divergence."""
    falling = np.minimum(smooth[: smooth.argmin() + 1], ceiling)
    suggested = _steepest(np.log(rates[: len(falling)]), falling)
    top, least = min(smooth[0], ceiling), smooth.min()
    if not least < top:
        return suggested, None  # nothing was learnt at any rate, so that none is known to be stable
    # A loss may rise and fall again, under momentum even on a quadratic: what counts is where it leaves for good.
    near = np.flatnonzero(smooth <= top / 2 + least / 2)
    if len(smooth) == len(raw):
        return suggested, float(rates[near[-1]]) if near[-1] < len(smooth) - 1 else None
    end = len(smooth) + 1
    return suggested, min(float(rates[near[-1]]), _pace(rates[:end], raw[:end]))


def _steepest(logs, losses) -> float | None:
    """The middle of the half decade over which the loss falls most: over less, batches' noise decides."""
    reach = max(1, round(math.log(10) / 4 / (logs[1] - logs[0]))) if len(logs) > 1 else 1
    falls = losses[: -2 * reach] / 2 - losses[2 * reach :] / 2  # halved, so that no difference overflows
    return float(np.exp(logs[reach + falls.argmax()])) if len(falls) and falls.max() > 0 else None


def _pace(rates, losses) -> float:
    """The largest stable rate, 2 / L, from the last step of a divergence.

    On a quadratic the sharpest direction has by then outgrown the others, and a step at rate r multiplies its loss by
    (1 - r L)^2. The lowest loss comes too late there: while that direction was stable, it shrank to nothing, and it takes
    many unstable steps to be seen again. (With momentum m the limit is 2 (1 + m) / L, and this is at most a third off.)
    """
    before, last = float(losses[-2]), float(losses[-1])
    growth = last / before if before > 0 else math.inf
    return 2 * float(rates[-2]) / (1 + math.sqrt(growth)) if 1 < growth < math.inf else math.inf


def lr_finder(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    low: float = 1e-5,
    high: float = 10.0,
    steps: int = 100,
    strategy: parallel.Strategy | None = None,
) -> LRFinderResult:
    """The range test of the recipe's optimiser on a network from its initialisation; numbers, no plot.

    Args:
      model: the network.
      data: the training part is used.
      recipe: optimiser, batch, augmentation and seed; its rate, schedule and length are not used.
      low, high, steps: as in `range_test`.
      strategy: where to run.

    Raises:
      ArgumentError: before anything is compiled, as `train` and `range_test` do.

    Example:
      >>> from jaxcnn import create_model, load_dataset
      >>> recipe = Recipe(dataset="digits", model="mlp", optimizer="sgd", pad=0, flip=False)
      >>> found = lr_finder(create_model("mlp", 10), load_dataset("digits"), recipe, steps=40)
      >>> found.suggested < found.limit
      True
    """
    _sensible(low, high, steps)
    strategy = parallel.check_strategy(strategy)
    verify_model(model)
    verify_recipe(recipe)
    recipe = replace(recipe, schedule="constant", lr=low, warmup_lr=None)
    check_config(recipe, data, strategy)
    tx = create_optimizer(recipe)
    state = init_state(model, tx, recipe, data)
    check_model(model, state, data, recipe, strategy)
    run, fed = (
        strategy.compile_steps(make_train_step(model, tx, **step_kwargs(recipe), axis=strategy.axis)),
        input_pipeline(data.train, strategy),
    )
    batches = iter(epoch_order(state.rng, 0, steps, recipe.batch, len(data.train.labels)))

    def step(placed, rate):
        opt = placed.opt_state._replace(
            lr=strategy.replicate(jnp.float32(rate))
        )  # the rate is state: nothing is compiled again
        placed = placed._replace(opt_state=opt, metrics=strategy.replicate(metrics.zeros()))
        piece = next(fed.chunks(next(batches)[None]))
        placed = run(placed, fed.split, piece)
        return placed, strategy.fetch(placed.metrics).mean_loss

    guessing = math.log(len(data.classes)) if recipe.loss == "cross-entropy" else math.inf
    return range_test(step, strategy.replicate(state), low=low, high=high, steps=steps, ceiling=guessing)
