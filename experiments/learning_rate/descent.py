"""Gradient descent on known losses, next to its closed form.

The gradient of 1/2 c w^2 is c w. So each step multiplies (w, velocity) by a 2x2 matrix, whose
eigenvalues determine the whole path. On any quadratic the eigenvectors of the Hessian are such
directions. Each has its own curvature c, and they do not mix.
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
    """Return the loss 1/2 sum c_i w_i^2, float32 [d] -> [].

    Raises:
      ArgumentError: `curvatures` are not d > 0 finite numbers.

    Example:
      >>> quadratic([1, 4])(jnp.ones(2)).item()
      2.5
    """
    c = _vector("curvatures", curvatures)
    return lambda w: (c * w * w).sum() / 2


def straight_line(
    x: Sequence[float] | np.ndarray = range(-2, 5), slope: float = 2.0, intercept: float = 1.0
) -> Loss:
    """Return the loss of fitting a line, float32 [2] -> [].

    It is 1/2 mean (w0 x + w1 - y)^2, where y = slope x + intercept. Its Hessian is
    [[mean x^2, mean x], [mean x, 1]] everywhere.

    Raises:
      ArgumentError: `x` is empty or not finite.

    Example:
      >>> curvatures(straight_line(), [0, 0]).round(3).tolist()
      [5.236, 0.764]
    """
    x = _vector("x", x)
    y = np.float32(slope) * x + np.float32(intercept)
    return lambda w: ((w[0] * x + w[1] - y) ** 2).mean() / 2


def curvatures(loss: Loss, at: Any) -> np.ndarray:
    """Return the eigenvalues of the loss's Hessian, largest first.

    The Hessian has d^2 numbers, so d should be small.

    Args:
      loss: float32 [d] -> [].
      at: the point, [d].

    Returns:
      float64 [d].
    """
    return np.linalg.eigvalsh(np.asarray(jax.hessian(loss)(_vector("at", at)), np.float64))[::-1]


def descend(
    loss: Loss,
    start: Any,
    rate: float,
    num_steps: int,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> jax.Array:
    """Run gradient descent by `optax.sgd`.

    Its momentum is the heavy ball v <- m v + g, w <- w - rate v, as in PyTorch.

    Args:
      loss: float32 [d] -> []. It is compiled once for each function object and number of steps,
        whatever the rate.
      start: [d].
      rate: above 0, in units of 1 / curvature.
      num_steps: number of steps, at least 1.
      momentum: in [0, 1).
      nesterov: step by g + m v instead (Sutskever et al. 2013, section 2).

    Returns:
      float32 [steps + 1, d], the start first. It is inf or nan once it overflows.

    Raises:
      ArgumentError: a number is out of range.

    Example:
      >>> descend(quadratic([1]), [1], 0.5, 3).tolist()
      [[1.0], [0.5], [0.25], [0.125]]
    """
    if type(num_steps) is not int or num_steps < 1:
        raise ArgumentError(
            f"num_steps is {format_value(num_steps)}; "
            "expected a whole number of at least 1: write num_steps=100"
        )
    scalars = np.float32(_check_positive("rate", rate)), np.float32(_check_momentum(momentum))
    return _descend(loss, _vector("start", start), *scalars, num_steps, bool(nesterov))


@partial(jax.jit, static_argnums=(0, 4, 5))
def _descend(loss, start, rate, momentum, num_steps, nesterov):
    # The rate is traced. As the optimizer is built in here, one program serves a whole sweep.
    tx = optax.sgd(rate, momentum, nesterov=nesterov)

    def step(carry: Any, _) -> Any:
        w, state = carry
        updates, state = tx.update(jax.grad(loss)(w), state, w)
        return (optax.apply_updates(w, updates), state), w

    (last, _), path = jax.lax.scan(step, (start, tx.init(start)), length=num_steps)
    return jnp.concatenate([path, last[None]])


def limit(curvature: float, momentum: float = 0.0, *, nesterov: bool = False) -> float:
    """Return the largest stable rate at a positive curvature.

    It is 2 (1 + m) / L at curvature L (Polyak 1964; Cohen et al. 2021, appendix B).

    With a = rate L, w obeys w'' = (1 + m - a) w' - m w. The roots solve
    z^2 - (1 + m - a) z + m = 0. Their product is m < 1, so they leave the unit disc only through
    z = -1 or z = 1. There, 2 + 2 m - a = 0 or a = 0.
    Nesterov's roots solve z^2 - (1 + m)(1 - a) z + m (1 - a) = 0.
    They leave the unit disc at a = (2 + 2 m) / (1 + 2 m).

    Example:
      >>> limit(10.0), limit(10.0, momentum=0.9)
      (0.2, 0.38)
    """
    curvature, m = _check_positive("curvature", curvature), _check_momentum(momentum)
    return 2 * (1 + m) / curvature / (1 + 2 * m if nesterov else 1)


def roots(
    curvature: float, rate: float, momentum: float = 0.0, *, nesterov: bool = False
) -> np.ndarray:
    """Return the factors by which each step multiplies an eigendirection.

    Returns:
      complex128 [2], the larger first. Without momentum they are (1 - rate c, 0).

    Example:
      >>> roots(1.0, 1.5).real.tolist()
      [-0.5, 0.0]
    """
    # a = rate * curvature, as in `limit`.
    a, m = _rate_times_curvature_and_momentum(curvature, rate, momentum)
    trace, determinant = ((1 + m) * (1 - a), m * (1 - a)) if nesterov else (1 + m - a, m)
    # The quadratic formula: NumPy's eigvals would split a double root.
    half = np.emath.sqrt(trace * trace - 4 * determinant) / 2
    pair = np.array([trace / 2 + half, trace / 2 - half], np.complex128)
    return pair[np.argsort(-abs(pair), stable=True)]


def closed_form_path(
    curvature: float,
    rate: float,
    num_steps: int,
    start: float,
    momentum: float = 0.0,
    *,
    nesterov: bool = False,
) -> np.ndarray:
    """Return the path of `descend` along an eigendirection, in closed form.

    It is start * (1 - rate c)^t without momentum. With momentum it is M^t (start, 0), where M
    advances (w, rate v) by one step. M is similar to [[1 + m - rate c, -m], [1, 0]].

    Returns:
      float64 [steps + 1].

    Example:
      >>> closed_form_path(1.0, 0.5, 3, 1.0).tolist()
      [1.0, 0.5, 0.25, 0.125]
    """
    a, m = _rate_times_curvature_and_momentum(curvature, rate, momentum)
    matrix = np.array([[1 - a * (1 + m), -m * m] if nesterov else [1 - a, -m], [a, m]])
    # A diverging path may overflow, as that of `descend` does.
    with np.errstate(over="ignore", invalid="ignore"):
        powers = [np.linalg.matrix_power(matrix, t) for t in range(num_steps + 1)]
        return np.array([power[0, 0] * start for power in powers])


def behavior(
    curvature: float, rate: float, momentum: float = 0.0, *, nesterov: bool = False
) -> str:
    """Return the behavior of an eigendirection.

    Returns:
      "monotone", "oscillating" (it overshoots, and shrinks) or "diverging".

    Example:
      >>> [behavior(1.0, rate) for rate in (0.5, 1.5, 2.5)]
      ['monotone', 'oscillating', 'diverging']
    """
    largest = roots(curvature, rate, momentum, nesterov=nesterov)[0]
    # At the limit itself it oscillates for ever, and rounding must not make that a divergence.
    if abs(largest) > 1 + 1e-12:
        return "diverging"
    return "oscillating" if largest.imag or largest.real < 0 else "monotone"


def measured_limit(
    loss: Loss,
    start: Any,
    *,
    low: float,
    high: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    num_steps: int = 1000,
    relative: float = 1e-3,
) -> float:
    """Measure the largest stable rate by bisection of the rate's logarithm.

    A run diverges if a loss is not finite. It also diverges if the highest loss of its last quarter
    is both a tenth above that of its second quarter and above a millionth of the first loss. In the
    first quarter momentum may make the loss rise before it falls. Below a millionth a rise may be
    rounding. At a fraction x above the limit the loss grows by at least exp(4 x) a step. So 1000
    steps resolve 0.01 %.

    Args:
      loss: float32 [d] -> [], a quadratic. Other losses may leave a place that repels them and
        settle in a flatter one.
      start: [d], away from the minimum in every direction.
      low: a stable rate.
      high: a rate that diverges.
      momentum: as in `descend`.
      nesterov: as in `descend`.
      num_steps: of each run, as in `descend`.
      relative: width of the final bracket, at least 1e-6 (float32).

    Returns:
      A stable rate between `low` and `high`.

    Raises:
      ArgumentError: `low` diverges, `high` does not, or as `descend`.

    Example:
      >>> round(measured_limit(quadratic([1, 10]), [1, 1], low=0.01, high=1.0), 3)
      0.2
    """
    if not relative >= 1e-6:
        raise ArgumentError(
            f"relative is {format_value(relative)}; "
            "expected at least 1e-6, what float32 resolves: write 1e-3"
        )
    diverges = partial(_diverges, loss, start, num_steps, momentum, nesterov)
    if diverges(low):
        raise ArgumentError(
            f"low is {format_value(low)}, which diverges; "
            "expected a stable rate: write a smaller one"
        )
    if not diverges(high):
        raise ArgumentError(
            f"high is {format_value(high)}, which does not diverge; "
            "expected a rate that does: write a larger one"
        )
    while high / low > 1 + relative:
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = (low, middle) if diverges(middle) else (middle, high)
    return low


def _diverges(loss, start, num_steps, momentum, nesterov, rate) -> bool:
    path = descend(loss, start, rate, num_steps, momentum=momentum, nesterov=nesterov)
    losses = np.asarray(jax.vmap(loss)(path), np.float64)
    second_quarter = losses[num_steps // 4 : num_steps // 2 + 1].max()
    last_quarter = losses[-1 - num_steps // 4 :].max()
    has_risen = bool(last_quarter > max(1.1 * second_quarter, 1e-6 * losses[0]))
    return not np.isfinite(losses).all() or has_risen


def _vector(name, values) -> np.ndarray:
    # Numbers beyond float32 become inf, which is refused.
    with np.errstate(over="ignore"):
        vector = np.asarray(values, np.float32)
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise ArgumentError(
            f"{name} is {format_value(values)}; "
            f"expected finite numbers in a row: write {name}=[1.0, 10.0]"
        )
    return vector


def _rate_times_curvature_and_momentum(curvature, rate, momentum) -> tuple[float, float]:
    if not math.isfinite(curvature):
        raise ArgumentError(
            f"curvature is {format_value(curvature)}; expected a finite number: write curvature=1.0"
        )
    return _check_positive("rate", rate) * float(curvature), _check_momentum(momentum)


def _check_positive(name, value) -> float:
    if 0 < float(value) <= 3e38:
        return float(value)
    raise ArgumentError(
        f"{name} is {format_value(value)}; expected a finite number above 0: write {name}=0.1"
    )


def _check_momentum(value) -> float:
    if 0 <= float(value) < 1:
        return float(value)
    raise ArgumentError(
        f"momentum is {format_value(value)}; expected at least 0 and below 1: write momentum=0.9"
    )
