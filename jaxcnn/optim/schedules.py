"""Schedules of the learning rate by name.

They are functions of an `OptimizerConfig` and a number of steps. A schedule maps a step to a factor
of `learning_rate`, so that the rate's size and its shape are separate.
"""

from __future__ import annotations

from collections.abc import Callable

import optax

from jaxcnn.config import OptimizerConfig

END_FACTOR = 0.01
"""Factor of the rate at the end of the exponential schedule."""
WARMUP_SHARE = 0.1
"""Share of the steps in which the "warmup" schedule rises."""
CYCLES = 3
"""Number of cycles of warm restarts.

Each is twice as long as the one before.
"""
WINDOWS, PATIENCE = 40, 3
"""Windows of the plateau schedule in a run, and windows of patience.

The loss is averaged over 1/40 of the steps. After 3 such means without a better one the rate falls.
"""


def _restarts(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    first = num_steps / (2**CYCLES - 1)
    ends = [round(first * (2 ** (k + 1) - 1)) for k in range(CYCLES)]
    cycles = [
        optax.cosine_decay_schedule(1.0, max(1, end - start))
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return optax.join_schedules(cycles, ends[:-1])


def _one_cycle(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    # Below 4 steps the rise of optax's schedule has no length.
    if num_steps <= 3:
        return optax.constant_schedule(1.0)
    return optax.cosine_onecycle_schedule(num_steps, 1.0)


NEED_NO_LENGTH = ("constant", "step")
"""Schedules that do not depend on the number of steps."""
SCHEDULES: dict[str, Callable[[OptimizerConfig, int], optax.Schedule]] = {
    "constant": lambda config, num_steps: optax.constant_schedule(1.0),
    "step": lambda config, num_steps: optax.piecewise_constant_schedule(
        1.0, dict.fromkeys(config.milestones, config.gamma)
    ),
    "exponential": lambda config, num_steps: optax.exponential_decay(1.0, num_steps, END_FACTOR),
    "cosine": lambda config, num_steps: optax.cosine_decay_schedule(1.0, num_steps),
    "one-cycle": _one_cycle,
    "restarts": _restarts,
    "warmup": lambda config, num_steps: optax.warmup_constant_schedule(
        0.0, 1.0, max(1, round(WARMUP_SHARE * num_steps))
    ),
    "plateau": lambda config, num_steps: optax.constant_schedule(1.0),
}
"""Schedules: name -> (config, number of steps) -> (step -> factor).

- "step": times `gamma` at each of `milestones`, the form of He et al. 2015. No other schedule reads
  `milestones`.
- "exponential": down to 1% at the last step.
- "cosine": down to 0 at the last step (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, one
  cycle).
- "one-cycle": up from 1/25 over 30% of the steps, down to nearly 0 (Smith and Topin 2017,
  arXiv:1708.07120).
- "restarts": three cosine cycles, each twice as long as the one before (SGDR, arXiv:1608.03983).
- "warmup": linear over the first tenth of the steps, then constant (Goyal et al. 2017,
  arXiv:1706.02677, section 2.2).
- "plateau": times `gamma` whenever the training loss has stopped falling (see `plateau`).
"""


def plateau(
    config: OptimizerConfig, num_steps: int
) -> optax.GradientTransformationExtraArgs | None:
    """Return the transformation that lowers the rate of the "plateau" schedule.

    It is None for the other schedules, and for a `gamma` of 1.
    """
    if config.schedule != "plateau" or config.gamma == 1:
        return None
    window = max(1, num_steps // WINDOWS)
    return optax.contrib.reduce_on_plateau(
        config.gamma, patience=PATIENCE, rtol=1e-3, accumulation_size=window
    )
