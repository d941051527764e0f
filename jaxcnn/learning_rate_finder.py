"""Learning-rate range test.

The rate rises at every step of a short run, and its losses are read (Smith 2017, arXiv:1506.01186,
section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxcnn import parallel
from jaxcnn._util import format_fields
from jaxcnn.arguments import check_callable, format_value
from jaxcnn.augment import Augmentation, needs_partner
from jaxcnn.config import ArgumentError, OptimizerConfig, TrainConfig, verify_config
from jaxcnn.data import Dataset
from jaxcnn.input_pipeline import input_pipeline, paired
from jaxcnn.losses import CrossEntropy, Loss, as_loss, guess_loss
from jaxcnn.models.calling import verify_model
from jaxcnn.optim import create_optimizer
from jaxcnn.state import init_state
from jaxcnn.training import epoch_order, make_train_step, step_kwargs
from jaxcnn.training_checks import check_augment, check_config, check_model

DIVERGENCE_FACTOR = 4.0
"""Ratio of a diverged loss to that of the first steps."""


class LRFinderResult(NamedTuple):
    """Result of a range test.

    Rates that it did not find are None.

    Attributes:
      rates: rates of the steps, rising, float64 [n].
      losses: loss before each step, float64 [n]. It is that of the step's batch, if there are
        batches.
      smooth: centered moving mean of `losses`, which therefore has no lag, float64 [n].
      suggested: rate to train at. There the smoothed loss falls most steeply against the logarithm
        of the rate, over half a decade.
      limit: estimate of the largest stable rate. It is the last rate at which the smoothed loss is
        nearer its lowest than its first (or the ceiling). Or it is the estimate from the growth of
        the divergence, if that is less (`_limit_from_growth`). It is None if the loss does not rise
        again. It is also None if the loss never falls below its first and the ceiling, as in a
        range that starts too high.
      diverged: first rate of a diverged loss, or None. Such a loss is not finite, or is
        `DIVERGENCE_FACTOR` times the first ones. The rate comes after the limit, because a
        divergence takes some steps.
    """

    rates: np.ndarray
    losses: np.ndarray
    smooth: np.ndarray
    suggested: float | None
    limit: float | None
    diverged: float | None

    def __repr__(self) -> str:
        return format_fields(self)


def range_test(
    step: Callable[[Any, float], tuple[Any, float]],
    carry: Any,
    *,
    low: float,
    high: float,
    num_steps: int = 100,
    window: int = 5,
    ceiling: float = math.inf,
) -> LRFinderResult:
    """Take steps at rising rates until the loss has diverged.

    The rates are from `low` to `high`, equally spaced in their logarithm.

    Args:
      step: (carry, rate) -> (carry, loss before the step).
      carry: state of `step`.
      low: the first rate.
      high: the last rate.
      num_steps: number of steps, at least 10.
      window: steps in the mean that smooths the losses.
      ceiling: such as the loss of guessing. Losses above it do not count in `suggested`. A network
        that is at first sure of wrong answers loses that at any rate, and has learned nothing yet.

    Raises:
      ArgumentError: unless 0 < low < high are finite and there are enough steps, or if `step`
        returns anything but a pair.

    Example:
      >>> # Curvature 8, which is stable below 2 / 8.
      >>> descend = lambda w, rate: (w - rate * 8 * w, 4 * w * w)
      >>> result = range_test(descend, 1.0, low=1e-3, high=10, window=1)
      >>> 0.125 < result.limit < 0.5
      True
    """
    check_callable("step", step, "lambda carry, rate: (carry, loss)", num_args=2)
    _check_range(low, high, num_steps)
    _check_smoothing(window, ceiling)
    rates, losses = np.geomspace(low, high, num_steps), []
    for rate in rates:
        carry, loss = _check_pair(step(carry, float(rate)))
        losses.append(loss)
        if _has_diverged(losses, window):
            break
    return read(rates[: len(losses)], losses, window, ceiling)


def _check_pair(result: Any) -> tuple[Any, float]:
    """Return what a step returned, with the loss as a float."""
    if not isinstance(result, tuple) or len(result) != 2 or np.shape(result[1]) != ():
        raise ArgumentError(
            f"step returned {format_value(result)}; "
            "expected the new carry and the loss, a number. Return (carry, loss)."
        )
    return result[0], float(result[1])


def _check_range(low, high, num_steps) -> None:
    are_numbers = all(
        isinstance(rate, (int, float, np.number)) and not isinstance(rate, bool)
        for rate in (low, high)
    )
    if not (are_numbers and 0 < low < high < math.inf):
        raise ArgumentError(
            f"rates go from {format_value(low)} to {format_value(high)}; "
            "expected 0 < low < high, finite: write low=1e-4, high=10"
        )
    if type(num_steps) is not int or num_steps < 10:
        raise ArgumentError(
            f"num_steps is {format_value(num_steps)}; "
            "expected a whole number of at least 10: write num_steps=100"
        )
    if not high / low > 1 + num_steps * 1e-12:
        raise ArgumentError(
            f"{num_steps} rates from {low} to {high} are not told apart; write low=1e-4, high=10"
        )


def _has_diverged(losses: Sequence[float], window: int) -> bool:
    """Check if the last loss has diverged.

    It is compared with the mean of the first losses before it.
    """
    *before, last = losses
    first = before[:window]
    if not math.isfinite(last):
        return True
    # Losses are divided before they are added, so that the sum cannot overflow. A multiple of
    # losses around 0 or below is meaningless.
    baseline = sum(loss / len(first) for loss in first)
    return baseline > 0 and last / DIVERGENCE_FACTOR > baseline


def read(
    rates: np.ndarray,
    losses: Sequence[float] | np.ndarray,
    window: int = 5,
    ceiling: float = math.inf,
) -> LRFinderResult:
    """Return the result of a range test from its losses.

    Args:
      rates: [n], positive, finite and rising.
      losses: [n], in the same order.
      window: as in `range_test`.
      ceiling: as in `range_test`.

    Raises:
      ArgumentError: an argument is invalid.
    """
    rates, raw = _check_rates_and_losses(rates, losses)
    _check_smoothing(window, ceiling)
    values = raw.tolist()
    # The baseline is of the first `window` losses, so the others before a loss are not needed.
    prefixes = [[*values[: min(i, window)], loss] for i, loss in enumerate(values)]
    diverging = (i for i, prefix in enumerate(prefixes) if _has_diverged(prefix, window))
    end = next(diverging, len(values))
    diverged = float(rates[end]) if end < len(raw) else None
    # The loss that diverged would raise the mean of its neighbors.
    stable = raw[:end]
    half = window // 2
    smooth = np.array([_mean(stable[max(0, i - half) : i + half + 1]) for i in range(len(stable))])
    suggested, limit = None, None
    if len(smooth):
        suggested, limit = _suggestion_and_limit(rates, raw, smooth, ceiling)
    smooth = np.concatenate([smooth, raw[end:]])
    return LRFinderResult(rates, raw, smooth, suggested, limit, diverged)


def _check_rates_and_losses(rates: Any, losses: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 [n].

    Raises:
      ArgumentError: they are not numbers of that shape, or the rates do not rise.
    """
    try:
        rates, losses = np.asarray(rates, np.float64), np.asarray(losses, np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"rates or losses hold no numbers: {error}; expected one of each per step"
        ) from None
    if rates.ndim != 1 or not len(rates) or rates.shape != losses.shape:
        raise ArgumentError(
            f"rates have shape {list(rates.shape)} and losses {list(losses.shape)}; "
            "expected as many of both, at least 1"
        )
    if not (np.isfinite(rates).all() and rates[0] > 0 and (np.diff(rates) > 0).all()):
        raise ArgumentError(
            "rates are not positive, finite and rising; "
            "write rates=np.geomspace(1e-5, 10, len(losses))"
        )
    return rates, losses


def _check_smoothing(window: Any, ceiling: Any) -> None:
    if type(window) is not int or window < 1:
        raise ArgumentError(
            f"window is {format_value(window)}; "
            "expected a whole number of at least 1: write window=5"
        )
    is_number = isinstance(ceiling, (int, float, np.number)) and not isinstance(ceiling, bool)
    if not is_number or math.isnan(ceiling):
        raise ArgumentError(
            f"ceiling is {format_value(ceiling)}; expected a number: write ceiling=math.log(10)"
        )


def _mean(values: np.ndarray) -> float:
    """Return the mean; divide before the sum if the sum would overflow."""
    with np.errstate(over="ignore"):
        mean = values.mean()
    return float(mean if np.isfinite(mean) else (values / len(values)).sum())


def _suggestion_and_limit(rates, raw, smooth, ceiling) -> tuple[float | None, float | None]:
    """Return the suggested rate and the limit.

    `smooth` are the smoothed losses before the divergence.
    """
    # No loss lies below, and differences of infinities are not numbers.
    if ceiling == -math.inf:
        return None, None
    falling = np.minimum(smooth[: smooth.argmin() + 1], ceiling)
    suggested = _steepest_rate(np.log(rates[: len(falling)]), falling)
    highest, lowest = min(smooth[0], ceiling), smooth.min()
    # Nothing was learned at any rate, so that none is known to be stable.
    if not lowest < highest:
        return suggested, None
    # A loss may rise and fall again, with momentum even on a quadratic. So the last rate with a low
    # loss counts.
    low_indices = np.flatnonzero(smooth <= highest / 2 + lowest / 2)
    last_low = low_indices[-1]
    if len(smooth) == len(raw):
        return suggested, float(rates[last_low]) if last_low < len(smooth) - 1 else None
    end = len(smooth) + 1
    return suggested, min(float(rates[last_low]), _limit_from_growth(rates[:end], raw[:end]))


def _steepest_rate(log_rates, losses) -> float | None:
    """Return the middle of the half decade with the steepest fall.

    Over less, the noise of the batches would decide.
    """
    half = 1
    if len(log_rates) > 1:
        half = max(1, round(math.log(10) / 4 / (log_rates[1] - log_rates[0])))
    # Halved, so that no difference overflows.
    falls = losses[: -2 * half] / 2 - losses[2 * half :] / 2
    if not len(falls) or not falls.max() > 0:
        return None
    return float(np.exp(log_rates[half + falls.argmax()]))


def _limit_from_growth(rates, losses) -> float:
    """Return the largest stable rate from the last step of a divergence.

    It is 2 / L. On a quadratic the sharpest direction has by then outgrown the others. A step at
    rate r multiplies its loss by (1 - r L)^2. The lowest loss comes too late there. While that
    direction was stable, it shrank to nothing, and many unstable steps pass until it shows again.
    (With momentum m the limit is 2 (1 + m) / L, and the error of this estimate is at most a third.)
    """
    before, last = float(losses[-2]), float(losses[-1])
    growth = last / before if before > 0 else math.inf
    return 2 * float(rates[-2]) / (1 + math.sqrt(growth)) if 1 < growth < math.inf else math.inf


def lr_finder(
    model: nn.Module,
    optimizer: OptimizerConfig,
    data: Dataset,
    config: TrainConfig,
    *,
    low: float = 1e-5,
    high: float = 10.0,
    num_steps: int = 100,
    loss: str | Loss = "cross-entropy",
    augment: Augmentation | None = None,
    strategy: parallel.Strategy | None = None,
) -> LRFinderResult:
    """Run the range test of an optimizer on a new network.

    Args:
      model: the network, which is initialized.
      optimizer: its rate and schedule are not used.
      data: only the training part is used.
      config: its length is not used.
      low: as in `range_test`.
      high: as in `range_test`.
      num_steps: as in `range_test`.
      loss: as in `train`.
      augment: as in `train`.
      strategy: devices, all by default.

    Raises:
      ArgumentError: before anything is compiled, as `train` and `range_test` do.

    Example:
      >>> from jaxcnn import create_model, load_dataset
      >>> optimizer, data = OptimizerConfig("sgd"), load_dataset("digits")
      >>> result = lr_finder(create_model("mlp", 10), optimizer, data, TrainConfig(), num_steps=40)
      >>> result.suggested < result.limit
      True
    """
    _check_range(low, high, num_steps)
    strategy = parallel.check_strategy(strategy)
    verify_model(model)
    verify_config(optimizer, OptimizerConfig, "optimizer")
    verify_config(config, TrainConfig)
    # An average of the parameters has no part in it: only training losses are read.
    optimizer = replace(
        optimizer, schedule="constant", learning_rate=low, warmup_lr=None, ema_decay=0.0
    )
    loss = as_loss(loss)
    check_config(config, data, strategy, loss)
    check_augment(augment, config, data, loss)
    tx = create_optimizer(optimizer, seed=config.seed)
    state = init_state(model, tx, config, data, loss=loss)
    check_model(model, state, data, config, strategy, loss, augment)
    train_step = make_train_step(
        model, tx, loss=loss, **step_kwargs(config, augment), axis_name=strategy.axis_name
    )
    run = strategy.compile_steps(train_step)
    pipeline = input_pipeline(data.train, strategy)
    if needs_partner(augment):
        pipeline = paired(pipeline)
    batches = iter(epoch_order(state.rng, 0, num_steps, config.batch_size, len(data.train.images)))

    def step(placed, rate):
        # The rate is state, so nothing is compiled again.
        opt_state = placed.opt_state._replace(lr=strategy.replicate(jnp.float32(rate)))
        placed = placed._replace(opt_state=opt_state, metrics=strategy.replicate(state.metrics))
        chunk = next(pipeline.chunks(next(batches)[None]))
        placed = run(placed, pipeline.split, chunk)
        return placed, strategy.fetch(placed.metrics).mean_loss

    guess = guess_loss(loss, data.num_classes) if type(loss) is CrossEntropy else None
    ceiling = math.inf if guess is None else guess
    return range_test(
        step, strategy.replicate(state), low=low, high=high, num_steps=num_steps, ceiling=ceiling
    )
