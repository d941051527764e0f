"""Gradient descent where the answer is known: a straight line's loss, and a quadratic of chosen curvatures.

The line is y = 2 x + 1 at x = -2 .. 4, fitted by half the mean squared error: a quadratic of (slope, intercept) with curvatures
3 +- sqrt(5). At rate r an eigendirection of curvature c is multiplied by 1 - r c at every step: below 1 / c it shrinks, up to
2 / c it overshoots and shrinks, above it grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.learning_rate import descent
from experiments.learning_rate.options import Options
from jaxcnn import plots, tables

SHARES = (0.4, 1.8, 2.04)
"""Rates shown, in units of 1 / L."""
MOMENTA = (0.0, 0.5, 0.9)
TITLES = {"monotone": "Below 1 / L", "oscillating": "Between 1 / L and 2 / L", "diverging": "Above 2 / L"}


@dataclass(frozen=True)
class Problem:
    """A loss of two parameters, 1/2 (w - minimum) H (w - minimum)."""

    name: str
    loss: Callable[[Any], Any]
    """float32 [2] -> float32 []: what is descended."""
    hessian: np.ndarray
    """float64 [2, 2], for the picture and the directions alone."""
    minimum: tuple[float, float]
    start: tuple[float, float]
    labels: tuple[str, str]
    window: tuple[tuple[float, float], tuple[float, float]]

    @cached_property
    def top(self) -> float:
        """L, the largest curvature, from the loss itself."""
        return float(descent.curvatures(self.loss, np.array(self.start, np.float32))[0])

    def path(self, rate: float, steps: int, momentum: float = 0.0) -> np.ndarray:
        """Gradient descent as run, [steps + 1, 2]."""
        return np.asarray(descent.descend(self.loss, np.array(self.start, np.float32), rate, steps, momentum=momentum))


def problems(options: Options) -> list[Problem]:
    """The straight line's loss and the quadratic."""
    x = np.arange(-2, 5)
    moments = np.array([[np.mean(x**2), np.mean(x)], [np.mean(x), 1.0]])
    line = descent.straight_line(x)
    c = options.theory.curvatures
    names = (f"w1, curvature {c[0]:g}", f"w2, curvature {c[1]:g}")
    return [
        Problem("line", line, moments, (2.0, 1.0), (-1.0, 4.0), ("slope", "intercept"), ((-1.6, 5.6), (-3.0, 5.0))),
        Problem(
            "quadratic", descent.quadratic(c), np.diag(c), (0.0, 0.0), (1.0, 1.0), names, ((-2.0, 2.0), (-0.5, 1.3))
        ),
    ]


def check(options: Options) -> None:
    """ArgumentError for curvatures that are not above 0."""
    for curvature in options.theory.curvatures:
        descent.limit(curvature)


def run(options: Options, stop: Any) -> bool:
    """There is nothing to train: drawing takes seconds."""
    return True


def draw(options: Options) -> list[dict[str, Any]]:
    """`line.png`, `quadratic.png`, `directions.png`, `limit.png` and the table of limits."""
    folder = options.out / "theory"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    line, quadratic = problems(options)
    for problem in (line, quadratic):
        _surface(problem, folder)
        lines += [_limit(problem, momentum) for momentum in MOMENTA]
    _directions(line, folder)
    _jump(line, folder)
    tables.write_table(
        folder, lines, ["Measured: bisection over the rate, 1000 steps a trial; predicted: 2 (1 + m) / L."]
    )
    return lines


def _limit(problem: Problem, momentum: float) -> dict[str, Any]:
    predicted, start = descent.limit(problem.top, momentum), np.array(problem.start, np.float32)
    # Where bisection starts has nothing of the prediction, which it would else find by halving a bracket around it.
    low, high = 1e-4 / problem.top, 1e2 / problem.top
    measured = descent.measured_limit(problem.loss, start, low=low, high=high, momentum=momentum)
    what = f"largest stable rate, {problem.name}, momentum {momentum:g}"
    return {"what": what, "predicted": predicted, "measured": measured, "ratio": measured / predicted}


def _surface(problem: Problem, folder: Path) -> None:
    """The path over the loss at three rates."""

    def height(w):
        error = w - np.array(problem.minimum)
        return 0.5 * np.einsum("ni,ij,nj->n", error, problem.hessian, error)

    shown = []
    for share in SHARES:
        path, word = problem.path(share / problem.top, 30), descent.behavior(problem.top, share / problem.top)
        note = f"rate {share:g} / L: {word}"
        shown.append(plots.Surface(TITLES[word], height, path, *problem.labels, note, problem.minimum, problem.window))
    what = "fitting y = 2 x + 1" if problem.name == "line" else "on a quadratic"
    plots.save(
        plots.optimizer_paths(shown, title=f"30 steps of gradient descent {what}"), folder / f"{problem.name}.png"
    )


def _directions(problem: Problem, folder: Path) -> None:
    """The distance from the minimum along the sharpest direction: run, beside the closed form."""
    sharpest, steps = np.linalg.eigh(problem.hessian)[1][:, -1], 20
    panels = []
    for momentum in (0.0, 0.9):
        for share in SHARES:
            rate = share * (1 + momentum) / problem.top
            path = problem.path(rate, steps, momentum).astype(np.float64)
            along = (path - np.array(problem.minimum)) @ sharpest
            theory = descent.closed_form_path(problem.top, rate, steps, along[0], momentum)
            lines = (
                plots.Line(range(steps + 1), theory, label="closed form", color=plots.COLORS[1], width=1.6),
                plots.Line(range(steps + 1), along, label="run", color=plots.COLORS[0], marker="o", width=0),
            )
            name = f"rate {share * (1 + momentum):.3g} / L" + (f", momentum {momentum:g}" if momentum else "")
            panels.append(plots.Panel(name, lines, xlabel="step", ylabel="distance from minimum"))
    title = "The line's loss along its sharpest direction, where L is the curvature"
    plots.save(plots.panels(panels, columns=3, share="x", title=title), folder / "directions.png")


def _jump(problem: Problem, folder: Path) -> None:
    """The loss after 100 steps against the rate, which jumps where theory says."""
    shares = np.linspace(0.02, 4.5, 180)
    lines, marks = [], []
    for momentum in MOMENTA:
        paths = [problem.path(share / problem.top, 100, momentum) for share in shares]
        ends = np.array([problem.loss(jnp.asarray(path[-1])) for path in paths], np.float64)
        lines.append(plots.Line(shares, np.maximum(ends, 1e-14), label=f"momentum {momentum:g}"))
        marks.append(plots.Mark(2 * (1 + momentum), "x", f"{2 * (1 + momentum):g} / L"))
    panel = plots.Panel("", lines, marks, "rate, in units of 1 / L", "loss after 100 steps", ylog=True)
    title = "Gradient descent on a line's loss is stable below 2 (1 + m) / L"
    plots.save(plots.panels([panel._replace(ylim=(1e-14, 1e6))], size=(8.5, 4.4), title=title), folder / "limit.png")
