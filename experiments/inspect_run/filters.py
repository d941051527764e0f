"""The filters that the image meets first, before and after training, and what has changed in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.inspect_run.seen import Picture, Section, Seen
from jaxcnn.interpret.activations import first_kernels
from jaxcnn.plots.mosaic import Strip, mosaic
from jaxcnn.recipe import ArgumentError

COLUMNS, MOST = 8, 64
"""Filters in a row (twice as many where there are over 32), and filters shown at most."""
CUT = 0.25
"""Frequencies up to this are low, in cycles a pixel; the highest along an axis is 0.5."""
READ = (
    "Above at the start, below after training, the same filters one under the other. {colours} Each filter is scaled by its "
    "own greatest weight: compare shapes, and sizes in the table."
)


def section(seen: Seen) -> Section | None:
    """Both sets side by side; None for a network without a convolution that sees the image."""
    try:
        before, after = (first_kernels(seen.run.model, state) for state in (seen.run.first, seen.run.last))
    except ArgumentError:
        return None
    (h, w, c, k), steps = after.shape, int(seen.run.last.step)
    text = (
        f"The first convolution has {k} filters of {h}x{w} pixels and {c} channel{'s' * (c > 1)}. {told(before, after)}"
    )
    rows = [{"filters": "at the start", **measured(before)}, {"filters": f"at step {steps:,}", **measured(after)}]
    colours = (
        "Grey is 0, and each colour the weights of that colour."
        if c == 3
        else ("" if c == 1 else "Of the channels the mean is drawn. ") + "White is 0, red above, blue below."
    )
    alt = f"{min(k, MOST)} filters of {h}x{w} pixels at the start and after training. {told(before, after)}"
    drawn = figure(before, after)
    return Section("First filters", text, rows, [Picture("filters", drawn, alt, READ.format(colours=colours) + cut(k))])


def told(before: np.ndarray, after: np.ndarray) -> str:
    """How far training has moved them, in words."""
    same = likeness(before, after)
    return (
        f"Training has moved them: the correlation of a filter with its own start is {np.median(same):.2f} at the median, from "
        f"{same.min():.2f} to {same.max():.2f} (1 is unchanged, 0 nothing left of it)."
    )


def likeness(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The cosine of each filter [h, w, c, k] with what it was, [k]; 0 where one of the two is 0."""
    a, b = (kernels.reshape(-1, kernels.shape[-1]).astype(np.float64) for kernels in (before, after))
    norms = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return (a * b).sum(0) / np.where(norms > 0, norms, 1)


def measured(kernels: np.ndarray) -> dict[str, Any]:
    """Norms, and which share of all squared weights is of low frequency, and (of three colours) grey."""
    norms = np.linalg.norm(kernels.reshape(-1, kernels.shape[-1]), axis=0)
    row = {
        "norm, median": f"{np.median(norms):.3g}",
        "norm, least to greatest": f"{norms.min():.2g} to {norms.max():.2g}",
        f"energy up to {CUT} cycles/pixel": f"{100 * low(kernels):.0f}%",
    }
    total = np.square(kernels).sum()
    grey = kernels.shape[2] * np.square(kernels.mean(2)).sum() / total if total else 0.0
    return row | ({"energy that is grey": f"{100 * grey:.0f}%"} if kernels.shape[2] == 3 else {})


def low(kernels: np.ndarray, points: int = 64) -> float:
    """The share of energy at frequencies up to `CUT`, over filters [h, w, c, k]; of noise it is pi/16, about 0.20.

    Example:
      >>> noise = np.random.default_rng(0).normal(size=(3, 3, 3, 1000))
      >>> round(low(noise), 2), round(low(np.ones((7, 7, 1, 1))), 2)
      (0.19, 0.92)
    """
    power = np.square(np.abs(np.fft.fft2(kernels, (points, points), axes=(0, 1)))).sum((2, 3))
    f = np.fft.fftfreq(points)
    return float(power[np.hypot(f[:, None], f[None]) <= CUT].sum() / max(power.sum(), np.finfo(float).tiny))


def cut(k: int) -> str:
    """That not all are drawn, if so."""
    return f" The first {MOST} of {k} are drawn." if k > MOST else ""


def figure(before: np.ndarray, after: np.ndarray) -> Any:
    """Rows in pairs."""
    count = min(after.shape[-1], MOST)
    columns = COLUMNS if count <= 32 else 2 * COLUMNS
    strips = []
    for first in range(0, count, columns):
        some = range(first, min(first + columns, count))
        of = f" {first}-{some[-1]}" if count > columns else ""
        strips += [strip(kernels, some, label + of) for kernels, label in ((before, "before"), (after, "after"))]
    return mosaic(
        strips, side=0.95 if columns == COLUMNS else 0.55, gap=0.07, title="First filters before and after training"
    )


def strip(kernels: np.ndarray, some: range, label: str) -> Strip:
    """Some filters, each by its own greatest weight."""
    chosen = [kernels[..., i] / max(float(np.abs(kernels[..., i]).max()), 1e-12) for i in some]
    if kernels.shape[2] == 3:
        return Strip([0.5 + 0.5 * kernel for kernel in chosen], label)
    return Strip([kernel.mean(2) for kernel in chosen], label, cmap="RdBu_r", limits=(-1.0, 1.0))
