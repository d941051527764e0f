"""What is taken for what, the mistakes that the network was surest of, and how much its certainty is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.finetune.results import wilson, worst
from experiments.inspect_run.seen import Picture, Section, Seen
from jaxcnn import metrics, plots
from jaxcnn.calibration import calibration
from jaxcnn.plots.reliability import reliability

BINS = 10
MOST = 10
"""Mistakes to show."""


def section(seen: Seen) -> Section:
    """Confusion matrix, mistakes and calibration of the images judged."""
    shown = worst(seen.labels, seen.shares, MOST, alike=MOST)
    kinds = [confused(seen), *mistakes(seen, shown), calibrated(seen)]
    return Section("Errors", f"{judged(seen)}\n\n{surest(seen, shown)}", table(seen, shown), kinds)


def judged(seen: Seen) -> str:
    """How many are wrong, and how certain that is."""
    n, right = len(seen.labels), int(seen.right.sum())
    low, high = wilson(n - right, n)
    return (
        f"{n - right} of the first {n:,} {seen.run.recipe.report} images are wrong: {100 * (n - right) / n:.2f}%, "
        f"95% interval {low:.2f} to {high:.2f}% (Wilson)."
    )


def surest(seen: Seen, shown: np.ndarray) -> str:
    """What the table below is."""
    wrong = int((~seen.right).sum())
    if not wrong:
        return f"There are no mistakes to show: all {len(seen.labels):,} images are right. --images N judges another number."
    if wrong == 1:
        return "The table has the only mistake; an image's number is its place in the split, from 0."
    which = f"{len(shown)} of the {wrong} mistakes" if wrong > len(shown) else f"the {wrong} mistakes"
    return f"The table has {which}, the surest first; an image's number is its place in the split, from 0."


def table(seen: Seen, shown: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    """A row for each mistake shown."""
    rows = []
    for i in map(int, shown):
        said, true = int(seen.said[i]), int(seen.labels[i])
        sure, other = (f"{100 * seen.shares[i, c]:.1f}" for c in (said, true))
        rows.append({"image": i, "taken for": seen.classes[said], "with probability (%)": sure})
        rows[-1] |= {"true class": seen.classes[true], "its probability (%)": other}
    return rows


def confused(seen: Seen) -> Picture:
    """The confusion matrix."""
    counts = metrics.confusion(seen.labels, seen.said, len(seen.classes))
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:3]
    pairs = [tuple(map(int, np.unravel_index(i, wrong.shape))) for i in order if wrong.flat[i]]
    often = "; ".join(
        f"{seen.classes[true]} taken for {seen.classes[said]} ({wrong[true, said]})" for true, said in pairs
    )
    most = f"The most frequent mistakes: {often}." if often else "No image is off the diagonal."
    alt = f"Confusion matrix: {np.trace(counts)} of {counts.sum()} images on the diagonal. {most}"
    text = f"Confusion matrix. A row is a true class, and its numbers say what those images were taken for. {most}"
    return Picture("confusion", plots.confusion(counts, seen.classes), alt, text)


def mistakes(seen: Seen, shown: np.ndarray) -> list[Picture]:
    """The images of the table; none if there is none."""
    if not len(shown):
        return []
    captions = [
        f"said {seen.classes[seen.said[i]]}, {100 * seen.shares[i, seen.said[i]]:.0f}%\n"
        f"is {seen.classes[seen.labels[i]]}, {100 * seen.shares[i, seen.labels[i]]:.0f}%"
        for i in shown
    ]
    figure = plots.image_grid(seen.images[shown], captions, columns=5)
    alt = f"{len(shown)} images that the network takes for another class. " + "; ".join(
        caption.replace("\n", " and ") for caption in captions
    )
    text = (
        "The surest mistakes, in the order of the table, with the probabilities of the class said and of the true one."
    )
    return [Picture("mistakes", figure, alt, text)]


def calibrated(seen: Seen) -> Picture:
    """The reliability diagram."""
    found = calibration(seen.shares, seen.labels, bins=BINS)
    sure, right = 100 * float(seen.shares.max(1).mean()), 100 * float(seen.right.mean())
    ece = 100 * found.expected_calibration_error
    mean, most = (100 * x for x in by_chance(seen.shares))
    beyond = "more than chance explains" if ece > most else "no more than chance explains"
    gap = (
        f"surer than right by {sure - right:.1f} points"
        if sure > right
        else f"less sure than right by {right - sure:.1f} points"
    )
    text = (
        f"Calibration: how often the network is right against how sure it is, in {BINS} bins of confidence, with 95% "
        f"intervals (Guo et al. 2017, arXiv:1706.04599). On average it is {gap}: confidence {sure:.1f}%, accuracy "
        f"{right:.1f}%. The expected calibration error is {ece:.1f}%. Were every confidence exactly right, "
        f"{len(seen.labels):,} images would still give {mean:.1f}% on average, and less than {most:.1f}% in 95 of 100 "
        f"samples: this is {beyond}."
    )
    alt = f"Reliability diagram: calibration error {ece:.1f}%, confidence {sure:.1f}%, accuracy {right:.1f}%."
    return Picture("calibration", reliability(*found), alt, text)


def by_chance(shares: np.ndarray, *, draws: int = 500, seed: int = 0) -> tuple[float, float]:
    """The calibration error of a network whose confidences are exactly right, from labels drawn by them.

    Returns:
      The mean over the draws and what 95% of them stay below, in 0..1 (Bröcker and Smith 2007's consistency resampling).

    Example:
      >>> by_chance(np.array([[1.0, 0.0]]))
      (0.0, 0.0)
    """
    sure, rng = shares.max(1), np.random.default_rng(seed)
    place = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    errors = []
    for _ in range(draws):
        off = np.bincount(place, (rng.random(len(sure)) < sure) - sure, BINS)
        errors.append(np.abs(off).sum() / len(sure))
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))
