"""What a classifier gets right, as tables and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import jaxcnn as jc
from experiments.finetune.saved import Saved, heat, probabilities
from jaxcnn import metrics, plots, tables


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95% interval of a share, in percent (Wilson 1927).

    Example:
      >>> [round(x, 1) for x in wilson(9, 10)]
      [59.6, 98.2]
    """
    found = stats.binomtest(right, n).proportion_ci(0.95, "wilson")
    return 100 * found.low, 100 * found.high


def table(counts: np.ndarray, classes: Sequence[str], trained: np.ndarray, split: str) -> list[dict[str, Any]]:
    """A row for each class, the worst first, and one for all: pictures in train and in `split`, recall, precision (percent)."""
    lines = []
    for label, name in enumerate(classes):
        right, n, said = int(counts[label, label]), int(counts[label].sum()), int(counts[:, label].sum())
        others = np.where(np.arange(len(classes)) == label, 0, counts[label])
        lines.append(
            {
                "class": name,
                "train": int(trained[label]),
                split: n,
                "recall": 100 * right / n if n else None,
                "precision": 100 * right / said if said else None,
                "taken for": f"{classes[int(others.argmax())]} ({others.max()})" if others.max() else None,
            }
        )
    lines.sort(key=lambda line: (line["recall"] is None, line["recall"], line["class"]))
    share = 100 * float(np.trace(counts) / counts.sum())
    every = {"class": "all", "train": int(trained.sum()), split: int(counts.sum()), "recall": share}
    return [*lines, every | {"precision": share, "taken for": None}]


def note(counts: np.ndarray, trained: np.ndarray, recipe: jc.Recipe, weights: str | None) -> str:
    """The protocol, below the table."""
    right, n, most = int(np.trace(counts)), int(counts.sum()), int(trained.argmax())
    low, high = wilson(right, n)
    began = f"from {weights}" if weights else "from random numbers"
    slow = ", ".join(f"{stage} {rate:g}" for stage, rate in recipe.stage_rates.items())
    return (
        f"{recipe.model} {began}, {recipe.steps} steps of {recipe.batch} pictures by {recipe.optimizer} at rate {recipe.lr:g}"
        + (f" (times {slow})" if slow else "")
        + f". {right} of {n} {recipe.report} pictures are right: {100 * right / n:.1f}%, 95% interval {low:.1f} to {high:.1f} "
        f"(Wilson). Always saying the class with the most training pictures is right for {100 * counts[most].sum() / n:.1f}%. "
        "Recall and precision in percent, at the last step; in brackets how many were taken for that class."
    )


def worst(labels: np.ndarray, shares: np.ndarray, most: int, alike: int = 4) -> np.ndarray:
    """The indices of the mistakes, those that the network was most sure of first, at most `alike` of the same two classes.

    Example:
      >>> worst(np.array([0, 0, 1]), np.array([[0.4, 0.6], [0.1, 0.9], [0.2, 0.8]]), 5).tolist()
      [1, 0]
    """
    said = shares.argmax(1)
    wrong = np.flatnonzero(said != labels)
    ranked = wrong[np.argsort(-shares[wrong, said[wrong]], kind="stable")]
    seen: Counter[tuple[int, int]] = Counter()
    kept = []
    for i in ranked:
        seen[pair := (int(labels[i]), int(said[i]))] += 1
        if seen[pair] <= alike:
            kept.append(int(i))
    return np.array(kept[:most], np.int64)


def mistakes(saved: Saved, split: jc.Split, names: Sequence[str], shares: np.ndarray, most: int) -> Any:
    """The figure of the worst mistakes, with what speaks for the class that was said beside; None if there is none."""
    shown = worst(split.labels, shares, most)
    if not len(shown):
        return None
    said, images = shares.argmax(1)[shown], np.asarray(split.images[shown])
    captions = [
        f"{saved.classes[split.labels[i]]}, taken for {saved.classes[c]} ({100 * shares[i, c]:.0f}%)\n{names[i]}"
        for i, c in zip(shown, said, strict=True)
    ]
    looked = heat(saved, images, said)
    title = f"The surest of {(shares.argmax(1) != split.labels).sum()} mistakes"
    title += ", and where the network looked (Grad-CAM)" if looked is not None else ""
    return plots.image_grid(images, captions, heat=looked, columns=3, title=title)


def draw(
    out: Path, saved: Saved, data: jc.Dataset, names: Sequence[str], run: Any, *, weights: str | None, most: int
) -> None:
    """Tables and figures in OUT, and the table on the screen."""
    recipe, split = run.recipe, getattr(data, run.recipe.report)
    shares = probabilities(saved, split.images)
    counts = metrics.confusion(split.labels, shares.argmax(1), len(saved.classes))
    trained = np.bincount(data.train.labels, minlength=len(saved.classes))
    lines = table(counts, saved.classes, trained, recipe.report)
    said = [note(counts, trained, recipe, weights), *filter(None, [run.divergence])]
    tables.write_table(out, lines, said)
    title = f"{recipe.model}, {counts.sum()} {recipe.report} pictures"
    plots.save(plots.confusion(counts, saved.classes, title=title), out / "confusion.png")
    figure = plots.curves({title: {recipe.model: [run.rows]}}, dashed="train_error", solid="eval_error")
    plots.save(figure, out / "curves.png")
    figure = mistakes(saved, split, names, shares, most) if most else None
    (out / "mistakes.png").unlink(missing_ok=True)  # of another run
    if figure is not None:
        plots.save(figure, out / "mistakes.png")
    drawn = ", mistakes.png" if figure is not None else ""
    print(f"{tables.markdown(lines)}\n{said[0]}\n\nwrote {out}/table.md, table.csv, confusion.png, curves.png{drawn}")
