"""Gradient descent where the answer is known: the line y = 2 x + 1 at x = -2 .. 4, fitted by half the mean squared error.

The loss is a quadratic of (slope, intercept) with curvatures 3 +- sqrt(5). At rate r an eigendirection of curvature c is
multiplied by 1 - r c at every step: below 1 / c it shrinks, up to 2 / c it overshoots and shrinks, above it grows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.learning_rate.options import Options
from jaxcnn import descent, plots, report

SHARES = (0.4, 1.8, 2.04)
"""Rates shown, in units of 1 / L."""
MOMENTA = (0.0, 0.5, 0.9)
START = np.array([-1.0, 4.0], np.float32)
X = np.arange(-2, 5)


def check(options: Options) -> None:
    """Nothing of this part can be set wrongly."""


def run(options: Options, stop: Any) -> bool:
    """There is nothing to train: drawing takes a second."""
    return True


def draw(options: Options) -> list[dict[str, Any]]:
    """`surface.png`, `directions.png`, `limit.png` and the table of limits."""
    folder = options.out / "theory"
    folder.mkdir(parents=True, exist_ok=True)
    loss = descent.straight_line(X)
    curvatures = descent.curvatures(loss, START)
    _surface(loss, curvatures[0], folder)
    _directions(loss, curvatures, folder)
    _limit(loss, curvatures[0], folder)
    lines = []
    for momentum in MOMENTA:
        predicted = descent.limit(curvatures[0], momentum)
        measured = descent.measured_limit(loss, START, low=predicted / 30, high=predicted * 30, momentum=momentum)
        what = "largest stable rate of the line" + (f", momentum {momentum:g}" if momentum else "")
        lines.append({"what": what, "predicted": predicted, "measured": measured, "ratio": measured / predicted})
    report.write_table(
        folder, lines, ["Measured: bisection over the rate, 1000 steps a trial; predicted: 2 (1 + m) / L."]
    )
    return lines


def _surface(loss, top: float, folder: Path) -> None:
    """The path of (slope, intercept) over the loss, at three rates."""
    moments = np.array([[np.mean(X**2), np.mean(X)], [np.mean(X), 1.0]])

    def height(w):
        error = w - np.array([2.0, 1.0])
        return 0.5 * np.einsum("ni,ij,nj->n", error, moments, error)

    shown = []
    for share in SHARES:
        path = np.asarray(descent.descend(loss, START, share / top, 30))
        word = descent.behaviour(top, share / top)
        window = ((-1.6, 5.6), (-3.0, 5.0))
        note = f"rate {share:g} / L: {word}"
        shown.append(plots.Surface(_titles(word), height, path, "slope", "intercept", note, (2.0, 1.0), window))
    plots.save(plots.surfaces(shown, title="30 steps of gradient descent fitting y = 2 x + 1"), folder / "surface.png")


def _titles(word: str) -> str:
    return {"monotone": "Below 1 / L", "oscillating": "Between 1 / L and 2 / L", "diverging": "Above 2 / L"}[word]


def _directions(loss, curvatures, folder: Path) -> None:
    """The distance from the minimum along the sharpest direction: run, beside the closed form."""
    _, vectors = np.linalg.eigh(np.array([[np.mean(X**2), np.mean(X)], [np.mean(X), 1.0]]))
    sharpest, top, steps = vectors[:, -1], curvatures[0], 20
    panels = []
    for momentum in (0.0, 0.9):
        for share in SHARES:
            rate = share * (1 + momentum) / top
            path = np.asarray(descent.descend(loss, START, rate, steps, momentum=momentum), np.float64)
            along = (path - np.array([2.0, 1.0])) @ sharpest
            theory = descent.predicted(top, rate, steps, along[0], momentum)
            t = np.arange(steps + 1)
            lines = (
                plots.Line(t, theory, label="closed form", colour=plots.COLOURS[1], width=1.6),
                plots.Line(t, along, label="run", colour=plots.COLOURS[0], marker="o", width=0),
            )
            name = f"rate {share * (1 + momentum):.3g} / L" + (f", momentum {momentum:g}" if momentum else "")
            panels.append(plots.Panel(name, lines, xlabel="step", ylabel="distance from minimum"))
    title = "Along the sharpest direction, where L is the curvature"
    plots.save(plots.grid(panels, columns=3, share="x", title=title), folder / "directions.png")


def _limit(loss, top: float, folder: Path) -> None:
    """The loss after 100 steps against the rate, which jumps where theory says."""
    shares = np.linspace(0.02, 4.5, 180)
    lines, marks = [], []
    for momentum in MOMENTA:
        ends = [loss(descent.descend(loss, START, share / top, 100, momentum=momentum)[-1]) for share in shares]
        lines.append(plots.Line(shares, np.maximum(np.array(ends, np.float64), 1e-14), label=f"momentum {momentum:g}"))
        marks.append(plots.Mark(2 * (1 + momentum), "x", f"{2 * (1 + momentum):g} / L"))
    panel = plots.Panel("", tuple(lines), tuple(marks), "rate, in units of 1 / L", "loss after 100 steps", False, True)
    panel = panel._replace(ylim=(1e-14, 1e6))
    title = "Gradient descent on a line's loss is stable below 2 (1 + m) / L"
    plots.save(plots.grid([panel], size=(8.5, 4.4), title=title), folder / "limit.png")
