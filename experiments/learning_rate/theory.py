"""Gradient descent where theory is exact: a line's loss and a quadratic.

The line is y = 2 x + 1 at x = -2 .. 4, fitted by half the mean squared error. That is a quadratic
of (slope, intercept) with curvatures 3 +- sqrt(5). At rate r, each step multiplies an
eigendirection of curvature c by 1 - r c. Below 1 / c it shrinks, up to 2 / c it overshoots and
shrinks, and above that it grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.learning_rate import descent
from experiments.learning_rate.options import Options
from jaxcnn import plots, tables

SHARES = (0.4, 1.8, 2.04)
"""Rates in the figures, in units of 1 / L."""
MOMENTA = (0.0, 0.5, 0.9)
"""Momenta of the table."""
TITLES = {
    "monotone": "Below 1 / L",
    "oscillating": "Between 1 / L and 2 / L",
    "diverging": "Above 2 / L",
}
"""Behavior of gradient descent -> title of its panel."""


@dataclass(frozen=True)
class Problem:
    """A quadratic loss of two parameters.

    It is 1/2 (w - minimum) H (w - minimum).
    """

    name: str
    loss: Callable[[Any], Any]
    """float32 [2] -> float32 []; gradient descent minimizes it."""
    hessian: np.ndarray
    """float64 [2, 2], for the surface and the directions alone."""
    minimum: tuple[float, float]
    start: tuple[float, float]
    labels: tuple[str, str]
    """Names of the parameters."""
    window: tuple[tuple[float, float], tuple[float, float]]
    """Limits of the surface's axes."""

    @cached_property
    def top(self) -> float:
        """L, the largest curvature, computed from the loss itself."""
        return float(descent.curvatures(self.loss, np.array(self.start, np.float32))[0])

    def path(self, rate: float, num_steps: int, momentum: float = 0.0) -> np.ndarray:
        """Run gradient descent; return the parameters, [steps + 1, 2]."""
        start = np.array(self.start, np.float32)
        return np.asarray(descent.descend(self.loss, start, rate, num_steps, momentum=momentum))


def problems(options: Options) -> list[Problem]:
    """Return the straight line's loss and the quadratic."""
    x = np.arange(-2, 5)
    # The second derivatives of half the mean of (slope x + intercept - y)^2.
    moments = np.array([[np.mean(x**2), np.mean(x)], [np.mean(x), 1.0]])
    line = descent.straight_line(x)
    c = options.theory.curvatures
    names = (f"w1, curvature {c[0]:g}", f"w2, curvature {c[1]:g}")
    return [
        Problem(
            name="line",
            loss=line,
            hessian=moments,
            minimum=(2.0, 1.0),
            start=(-1.0, 4.0),
            labels=("slope", "intercept"),
            window=((-1.6, 5.6), (-3.0, 5.0)),
        ),
        Problem(
            name="quadratic",
            loss=descent.quadratic(c),
            hessian=np.diag(c),
            minimum=(0.0, 0.0),
            start=(1.0, 1.0),
            labels=names,
            window=((-2.0, 2.0), (-0.5, 1.3)),
        ),
    ]


def check(options: Options) -> None:
    """Check the part's settings.

    Raises:
      ArgumentError: for a curvature that is not above 0.
    """
    for curvature in options.theory.curvatures:
        descent.limit(curvature)


def run(options: Options, stop: Any) -> bool:
    """Return True: there is nothing to train, and drawing takes seconds."""
    return True


def draw(options: Options) -> list[dict[str, Any]]:
    """Write the figures and the table of limits.

    The figures are `line`, `quadratic`, `directions` and `limit`.

    Returns:
      Lines of the common table.
    """
    folder = options.out / "theory"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    line, quadratic = problems(options)
    for problem in (line, quadratic):
        options.save(_surface_figure(problem), folder / problem.name)
        lines += [_limit(problem, momentum) for momentum in MOMENTA]
    options.save(_directions_figure(line), folder / "directions")
    options.save(_limit_figure(line), folder / "limit")
    note = "Measured: bisection over the rate, 1000 steps a trial; predicted: 2 (1 + m) / L."
    tables.write_table(folder, lines, [note])
    return lines


def _limit(problem: Problem, momentum: float) -> dict[str, Any]:
    """Return the table's row of a problem's largest stable rate."""
    predicted = descent.limit(problem.top, momentum)
    start = np.array(problem.start, np.float32)
    # The ends of bisection do not depend on the prediction. A bracket around the prediction would
    # be halved at it.
    low, high = 1e-4 / problem.top, 1e2 / problem.top
    measured = descent.measured_limit(problem.loss, start, low=low, high=high, momentum=momentum)
    title = f"largest stable rate, {problem.name}, momentum {momentum:g}"
    ratio = measured / predicted
    return {"what": title, "predicted": predicted, "measured": measured, "ratio": ratio}


def _surface_figure(problem: Problem) -> Any:
    """Return a figure of the paths over the loss at three rates."""

    def height(w):
        error = w - np.array(problem.minimum)
        return 0.5 * np.einsum("ni,ij,nj->n", error, problem.hessian, error)

    surfaces = []
    for share in SHARES:
        path = problem.path(share / problem.top, 30)
        word = descent.behavior(problem.top, share / problem.top)
        note = f"rate {share:g} / L: {word}"
        surfaces.append(
            plots.Surface(
                TITLES[word], height, path, *problem.labels, note, problem.minimum, problem.window
            )
        )
    subject = "fitting y = 2 x + 1" if problem.name == "line" else "on a quadratic"
    return plots.optimizer_paths(surfaces, title=f"30 steps of gradient descent {subject}")


def _directions_figure(problem: Problem) -> Any:
    """Return a figure of the distance from the minimum along the sharpest direction.

    It is measured on a run and computed by the closed form.
    """
    sharpest, steps = np.linalg.eigh(problem.hessian)[1][:, -1], 20
    panels = []
    for momentum in (0.0, 0.9):
        for share in SHARES:
            rate = share * (1 + momentum) / problem.top
            path = problem.path(rate, steps, momentum).astype(np.float64)
            distance = (path - np.array(problem.minimum)) @ sharpest
            theory = descent.closed_form_path(problem.top, rate, steps, distance[0], momentum)
            lines = (
                plots.Line(
                    range(steps + 1), theory, label="closed form", color=plots.COLORS[1], width=1.6
                ),
                plots.Line(
                    range(steps + 1),
                    distance,
                    label="run",
                    color=plots.COLORS[0],
                    marker="o",
                    width=0,
                ),
            )
            name = f"rate {share * (1 + momentum):.3g} / L"
            name += f", momentum {momentum:g}" if momentum else ""
            panels.append(plots.Panel(name, lines, xlabel="step", ylabel="distance from minimum"))
    title = "The line's loss along its sharpest direction, where L is the curvature"
    return plots.panels(panels, columns=3, share="x", title=title)


def _limit_figure(problem: Problem) -> Any:
    """Return a figure of the loss after 100 steps against the rate.

    It jumps at the predicted limits.
    """
    shares = np.linspace(0.02, 4.5, 180)
    lines, marks = [], []
    for momentum in MOMENTA:
        paths = [problem.path(share / problem.top, 100, momentum) for share in shares]
        losses = np.array([problem.loss(jnp.asarray(path[-1])) for path in paths], np.float64)
        # A loss of 0 has no place on a logarithmic axis.
        heights = np.maximum(losses, 1e-14)
        lines.append(plots.Line(shares, heights, label=f"momentum {momentum:g}"))
        marks.append(plots.Mark(2 * (1 + momentum), "x", f"{2 * (1 + momentum):g} / L"))
    panel = plots.Panel(
        "", lines, marks, "rate, in units of 1 / L", "loss after 100 steps", ylog=True
    )
    title = "Gradient descent on a line's loss is stable below 2 (1 + m) / L"
    return plots.panels([panel._replace(ylim=(1e-14, 1e6))], size=(8.5, 4.4), title=title)
