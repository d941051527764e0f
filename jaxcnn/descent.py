"""What the step size does, on losses whose answer is known: gradient descent beside its closed form.

The gradient of 1/2 c w^2 is c w, so that each step multiplies (w, velocity) by one 2x2 matrix, whose eigenvalues tell all.
On any quadratic the eigenvectors of the Hessian are such directions, each with its own curvature c, and do not mix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.arguments import ArgumentError, format_value

Loss = Callable[[jax.Array], jax.Array]


def quadratic(curvatures: Sequence[float] | np.ndarray) -> Loss:
    """The loss float32 [d] -> [], 1/2 sum c_i w_i^2; ArgumentError unless `curvatures` are d > 0 finite numbers.

    Example:
      >>> quadratic([1, 4])(jnp.ones(2)).item()
      2.5
    """
    c = _row("curvatures", curvatures)
    return lambda w: (c * w * w).sum() / 2


def straight_line(x: Sequence[float] | np.ndarray = range(-2, 5), slope: float = 2.0, intercept: float = 1.0) -> Loss:
    """The loss float32 [2] -> [] of fitting a line: 1/2 mean (w0 x + w1 - y)^2, where y = slope x + intercept.

    Its Hessian is [[mean x^2, mean x], [mean x, 1]] everywhere. ArgumentError where `x` is empty or not finite.

    Example:
      >>> curvatures(straight_line(), [0, 0]).round(3).tolist()
      [5.236, 0.764]
    """
    at = _row("x", x)
    y = np.float32(slope) * at + np.float32(intercept)
    return lambda w: ((w[0] * at + w[1] - y) ** 2).mean() / 2


def curvatures(loss: Loss, at: Any) -> np.ndarray:
    """Eigenvalues of the loss's Hessian at `at` [d], largest first, float64 [d]. Of d^2 numbers: for small d."""
    return np.linalg.eigvalsh(np.asarray(jax.hessian(loss)(_row("at", at)), np.float64))[::-1]


def descend(
    loss: Loss, start: Any, rate: float, steps: int, *, momentum: float = 0.0, nesterov: bool = False
) -> jax.Array:
    """Gradient descent by `optax.sgd` (heavy ball v <- m v + g, w <- w - rate v, as PyTorch has it).

    Args:
      loss: float32 [d] -> []. It is compiled once for each function object and number of steps, whatever the rate.
      start, steps: [d], and how many to take from it, at least 1.
      rate, momentum: above 0, in units of 1 / curvature; in [0, 1).
      nesterov: step by g + m v instead (Sutskever et al. 2013, section 2).

    Returns:
      float32 [steps + 1, d], the start first; inf or nan once it overflows. ArgumentError for numbers out of range.

    Example:
      >>> descend(quadratic([1]), [1], 0.5, 3).tolist()
      [[1.0], [0.5], [0.25], [0.125]]
    """
    if type(steps) is not int or steps < 1:
        raise ArgumentError(f"steps is {format_value(steps)}; expected a whole number of at least 1: write steps=100")
    numbers = np.float32(_above_zero("rate", rate)), np.float32(_momentum(momentum))
    return _descend(loss, _row("start", start), *numbers, steps, bool(nesterov))


@partial(jax.jit, static_argnums=(0, 4, 5))
def _descend(loss, start, rate, momentum, steps, nesterov):
    # The rate is traced: built in here, the optimiser serves a whole sweep from one program.
    tx = optax.sgd(rate, momentum, nesterov=nesterov)

    def step(carry: Any, _) -> Any:
        w, state = carry
        updates, state = tx.update(jax.grad(loss)(w), state, w)
        return (optax.apply_updates(w, updates), state), w

    (last, _), path = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    return jnp.concatenate([path, last[None]])


def limit(curvature: float, momentum: float = 0.0, *, nesterov: bool = False) -> float:
    """The largest stable rate at a positive curvature L: 2 (1 + m) / L (Polyak 1964; Cohen et al. 2021, appendix B).

    With a = rate L, w obeys w'' = (1 + m - a) w' - m w, whose roots solve z^2 - (1 + m - a) z + m = 0. Their product is
    m < 1, so they leave the unit disc only through z = -1 (where 2 + 2 m - a = 0) or z = 1 (where a = 0). Nesterov's,
    z^2 - (1 + m)(1 - a) z + m (1 - a) = 0, leave it at a = (2 + 2 m) / (1 + 2 m).

    Example:
      >>> limit(10.0), limit(10.0, momentum=0.9)
      (0.2, 0.38)
    """
    curvature, m = _above_zero("curvature", curvature), _momentum(momentum)
    return 2 * (1 + m) / curvature / (1 + 2 * m if nesterov else 1)


def roots(curvature: float, rate: float, momentum: float = 0.0, *, nesterov: bool = False) -> np.ndarray:
    """What each step multiplies an eigendirection by: complex128 [2], the larger first; (1 - rate c, 0) without momentum.

    Example:
      >>> roots(1.0, 1.5).real.tolist()
      [-0.5, 0.0]
    """
    # The quadratic formula, from the trace and the determinant: numpy's eigvals would split a double root.
    a, m = _numbers(curvature, rate, momentum)  # a = rate * curvature, here as in `limit`
    trace, determinant = ((1 + m) * (1 - a), m * (1 - a)) if nesterov else (1 + m - a, m)
    half = np.emath.sqrt(trace * trace - 4 * determinant) / 2
    both = np.array([trace / 2 + half, trace / 2 - half], np.complex128)
    return both[np.argsort(-abs(both), stable=True)]


def predicted(
    curvature: float, rate: float, steps: int, start: float, momentum: float = 0.0, *, nesterov: bool = False
) -> np.ndarray:
    """`descend` along one eigendirection, in closed form: float64 [steps + 1], start * (1 - rate c)^t without momentum.

    With it, M^t (start, 0), where M takes (w, rate v) one step on. (It is similar to [[1 + m - rate c, -m], [1, 0]].)

    Example:
      >>> predicted(1.0, 0.5, 3, 1.0).tolist()
      [1.0, 0.5, 0.25, 0.125]
    """
    a, m = _numbers(curvature, rate, momentum)
    matrix = np.array([[1 - a * (1 + m), -m * m] if nesterov else [1 - a, -m], [a, m]])
    with np.errstate(over="ignore", invalid="ignore"):  # a diverging path may overflow, as descend's does
        return np.array([np.linalg.matrix_power(matrix, t)[0, 0] * start for t in range(steps + 1)])


def behaviour(curvature: float, rate: float, momentum: float = 0.0, *, nesterov: bool = False) -> str:
    """How an eigendirection moves: "monotone", "oscillating" (it overshoots, and shrinks) or "diverging".

    Example:
      >>> [behaviour(1.0, rate) for rate in (0.5, 1.5, 2.5)]
      ['monotone', 'oscillating', 'diverging']
    """
    first = roots(curvature, rate, momentum, nesterov=nesterov)[0]
    if abs(first) > 1 + 1e-12:  # rounding must not tip the limit itself, where it goes on for ever
        return "diverging"
    return "oscillating" if first.imag or first.real < 0 else "monotone"


def measured_limit(
    loss: Loss, start: Any, *, low: float, high: float, momentum: float = 0.0, nesterov: bool = False,
    steps: int = 1000, relative: float = 1e-3,
) -> float:  # fmt: skip
    """The largest rate between `low` and `high` that does not diverge, found by running: bisection of log rate.

    A run diverges if a loss is not finite, or if the last quarter's highest is a tenth above the second quarter's (in
    the first, momentum may make it rise before it falls) and above a millionth of the first (less may be rounding).
    At a fraction x above the limit the loss grows by exp(4 x) a step at least: 1000 steps tell 0.01 %.

    Args:
      loss: float32 [d] -> [], a quadratic; others may leave a place that repels them and settle in a flatter one.
      start: [d], away from the minimum in every direction.
      low, high: rates of which the first is stable and the second diverges.
      momentum, nesterov, steps: of each run, as in `descend`.
      relative: width of the final bracket, at least 1e-6 (float32).

    Raises:
      ArgumentError: if `low` diverges, if `high` does not, or as `descend`.

    Example:
      >>> round(measured_limit(quadratic([1, 10]), [1, 1], low=0.01, high=1.0), 3)
      0.2
    """
    if not relative >= 1e-6:
        raise ArgumentError(
            f"relative is {format_value(relative)}; expected at least 1e-6, what float32 resolves: write 1e-3"
        )
    diverges = partial(_diverges, loss, start, steps, momentum, nesterov)
    if diverges(low):
        raise ArgumentError(f"low is {format_value(low)}, which diverges; expected a stable rate: write a smaller one")
    if not diverges(high):
        raise ArgumentError(
            f"high is {format_value(high)}, which does not diverge; expected a rate that does: write a larger one"
        )
    while high / low > 1 + relative:
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = (low, middle) if diverges(middle) else (middle, high)
    return low


def _diverges(loss, start, steps, momentum, nesterov, rate) -> bool:
    path = descend(loss, start, rate, steps, momentum=momentum, nesterov=nesterov)
    heights = np.asarray(jax.vmap(loss)(path), np.float64)
    early, late = heights[steps // 4 : steps // 2 + 1].max(), heights[-1 - steps // 4 :].max()
    return not np.isfinite(heights).all() or bool(late > max(1.1 * early, 1e-6 * heights[0]))


def _row(name, values) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is refused
        row = np.asarray(values, np.float32)
    if row.ndim != 1 or not row.size or not np.isfinite(row).all():
        raise ArgumentError(
            f"{name} is {format_value(values)}; expected finite numbers in a row: write {name}=[1.0, 10.0]"
        )
    return row


def _numbers(curvature, rate, momentum) -> tuple[float, float]:
    if not math.isfinite(curvature):
        raise ArgumentError(f"curvature is {format_value(curvature)}; expected a finite number: write curvature=1.0")
    return _above_zero("rate", rate) * float(curvature), _momentum(momentum)


def _above_zero(name, value) -> float:
    if 0 < float(value) <= 3e38:
        return float(value)
    raise ArgumentError(f"{name} is {format_value(value)}; expected a finite number above 0: write {name}=0.1")


def _momentum(value) -> float:
    if 0 <= float(value) < 1:
        return float(value)
    raise ArgumentError(f"momentum is {format_value(value)}; expected at least 0 and below 1: write momentum=0.9")
