"""Results of a classifier, as tables and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import jaxcnn as jc
from experiments._common import FigureOptions
from experiments.finetune.options import reported_split
from jaxcnn import metrics, plots, tables
from jaxcnn.classifier import WEIGHTS_FILE, Classifier
from jaxcnn.weights import read_metadata


def wilson_interval(num_correct: int, n: int) -> tuple[float, float]:
    """Return the 95% interval of a share, in percent (Wilson 1927).

    Example:
      >>> [round(float(x), 1) for x in wilson_interval(9, 10)]
      [59.6, 98.2]
    """
    interval = stats.binomtest(num_correct, n).proportion_ci(0.95, "wilson")
    return 100 * interval.low, 100 * interval.high


def class_table(
    counts: np.ndarray, classes: Sequence[str], train_counts: np.ndarray, split: str
) -> list[dict[str, Any]]:
    """Return a row for each class, the worst first, and a total.

    A row has the number of images in train and in `split`, recall and precision in percent.
    """
    rows = []
    for label, name in enumerate(classes):
        num_correct = int(counts[label, label])
        n = int(counts[label].sum())
        num_predicted = int(counts[:, label].sum())
        mistakes = np.where(np.arange(len(classes)) == label, 0, counts[label])
        rows.append(
            {
                "class": name,
                "train": int(train_counts[label]),
                split: n,
                "recall": 100 * num_correct / n if n else None,
                "precision": 100 * num_correct / num_predicted if num_predicted else None,
                "taken for": f"{classes[int(mistakes.argmax())]} ({mistakes.max()})"
                if mistakes.max()
                else None,
            }
        )
    rows.sort(key=lambda row: (row["recall"] is None, row["recall"], row["class"]))
    accuracy = 100 * float(np.trace(counts) / counts.sum())
    total = {
        "class": "all",
        "train": int(train_counts.sum()),
        split: int(counts.sum()),
        "recall": accuracy,
    }
    return [*rows, total | {"precision": accuracy, "taken for": None}]


def selection_note(step: int, rows: Sequence[Mapping[str, Any]], split: str) -> str:
    """Return how the step of a classifier was chosen by its validation error.

    Args:
      step: of the classifier.
      rows: of its run.
      split: of the table.
    """
    row = next((row for row in rows if row["step"] == step), None)
    error = "" if row is None or row["eval_error"] is None else f", {row['eval_error']:.1f}%"
    note = f"at step {step}, of {len(rows)} evaluations the one with the lowest validation error"
    note += error
    if split == "validation":
        return f"{note} (on these images, so that others are less often right)"
    return f"{note}; the {split} images chose nothing, and were counted once"


def protocol_note(
    counts: np.ndarray,
    train_counts: np.ndarray,
    config: jc.ExperimentConfig,
    weights: str | None,
    split: str,
    selection: str = "at the last step",
) -> str:
    """Return the protocol, the note below the table."""
    num_correct, n, majority = int(np.trace(counts)), int(counts.sum()), int(train_counts.argmax())
    lower, upper = wilson_interval(num_correct, n)
    source = f"from {weights}" if weights else "from random numbers"
    rates = dict(config.optimizer.lr_multipliers) | dict.fromkeys(config.train.freeze, 0.0)
    rates_text = ", ".join(f"{stage} {rate:g}" for stage, rate in rates.items())
    return (
        f"{config.model} {source}, {config.train.num_steps} steps of {config.train.batch_size} "
        f"images by {config.optimizer.name} at rate {config.optimizer.learning_rate:g}"
        + (f" (times {rates_text})" if rates_text else "")
        + (", classes weighted by their rarity" if config.loss_kwargs.get("class_weights") else "")
        + f". {num_correct} of {n} {split} images are right: "
        f"{100 * num_correct / n:.1f}%, 95% interval {lower:.1f} to {upper:.1f} "
        "(Wilson). Always saying the class with the most training images is right for "
        f"{100 * counts[majority].sum() / n:.1f}%. Recall and precision in percent, "
        f"{selection}; in brackets how many were taken for that class."
    )


def worst_mistakes(
    labels: np.ndarray, probabilities: np.ndarray, max_count: int, max_per_pair: int = 4
) -> np.ndarray:
    """Return the indices of the most confident mistakes, in that order.

    Args:
      labels: int [n].
      probabilities: float [n, num_classes].
      max_count: most indices.
      max_per_pair: most mistakes of the same two classes.

    Example:
      >>> probabilities = np.array([[0.4, 0.6], [0.1, 0.9], [0.2, 0.8]])
      >>> worst_mistakes(np.array([0, 0, 1]), probabilities, 5).tolist()
      [1, 0]
    """
    predicted = probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != labels)
    ranked = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")]
    pair_counts: Counter[tuple[int, int]] = Counter()
    # Many mistakes of one pair of classes would hide the others.
    selected = []
    for i in ranked:
        pair_counts[pair := (int(labels[i]), int(predicted[i]))] += 1
        if pair_counts[pair] <= max_per_pair:
            selected.append(int(i))
    return np.array(selected[:max_count], np.int64)


def gradcam_heat(
    classifier: Classifier, images: np.ndarray, classes: np.ndarray
) -> np.ndarray | None:
    """Return Grad-CAM of `classes` at image size, float32 [n, h, w].

    It is None for a network without maps.
    """
    from jaxcnn.interpret import gradcam

    try:
        return np.asarray(gradcam(classifier.model, classifier.state, images, classes))
    except jc.ArgumentError:
        return None


def mistakes_figure(
    classifier: Classifier,
    split: jc.Split,
    names: Sequence[str],
    probabilities: np.ndarray,
    max_count: int,
) -> Any:
    """Return the worst mistakes next to their Grad-CAM, or None.

    Grad-CAM is of the predicted class.
    """
    indices = worst_mistakes(split.labels, probabilities, max_count)
    if not len(indices):
        return None
    predicted, images = probabilities.argmax(1)[indices], np.asarray(split.images[indices])
    captions = [
        f"{classifier.classes[split.labels[i]]}, predicted {classifier.classes[label]} "
        f"({100 * probabilities[i, label]:.0f}%)\n{names[i]}"
        for i, label in zip(indices, predicted, strict=True)
    ]
    heat = gradcam_heat(classifier, images, predicted)
    title = f"Most confident of {(probabilities.argmax(1) != split.labels).sum()} mistakes"
    title += ", with Grad-CAM of the predicted class" if heat is not None else ""
    label = "Grad-CAM (share of the image's maximum)"
    return plots.image_grid(images, captions, heat=heat, heat_label=label, columns=3, title=title)


def write_results(
    out: Path,
    classifier: Classifier,
    data: jc.Dataset,
    names: Sequence[str],
    run: Any,
    *,
    weights: str | None,
    max_mistakes: int,
    figures: FigureOptions,
) -> None:
    """Write tables and figures to OUT, and print the table."""
    config, split_name = run.config, reported_split(data)
    split = getattr(data, split_name)
    class_probabilities = classifier.probabilities(split.images)
    counts = metrics.confusion(split.labels, class_probabilities.argmax(1), len(classifier.classes))
    train_counts = np.bincount(data.train.labels, minlength=len(classifier.classes))
    rows = class_table(counts, classifier.classes, train_counts, split_name)
    selection = "at the last step"
    if read_metadata(out / WEIGHTS_FILE).get("epoch") == "best":
        selection = selection_note(int(classifier.state.step), run.rows, split_name)
    note = protocol_note(counts, train_counts, config, weights, split_name, selection)
    notes = [note, *filter(None, [run.divergence])]
    tables.write_table(out, rows, notes)
    title = f"{config.model}, {counts.sum()} {split_name} images"
    figures.save(plots.confusion(counts, classifier.classes, title=title), out / "confusion")
    # The curves may be of the validation images that chose the step.
    eval_split = config.train.eval_split
    title = f"{config.model}, {len(getattr(data, eval_split).labels)} {eval_split} images"
    figure = plots.curves(
        {title: {config.model: [run.rows]}}, dashed="train_error", solid="eval_error"
    )
    tables.write_curves(out, {run.name or out.name: run.rows})
    figures.save(figure, out / "curves")
    figure = (
        mistakes_figure(classifier, split, names, class_probabilities, max_mistakes)
        if max_mistakes
        else None
    )
    # It may be of another run.
    (out / f"mistakes.{figures.format}").unlink(missing_ok=True)
    if figure is not None:
        figures.save(figure, out / "mistakes")
    names = ["confusion", "curves"] + ["mistakes"] * (figure is not None)
    print(
        f"{tables.compact_markdown(rows)}\n{notes[0]}\n\n"
        f"wrote {out}/table.md, table.csv, curves.csv, "
        + ", ".join(f"{name}.{figures.format}" for name in names)
    )
