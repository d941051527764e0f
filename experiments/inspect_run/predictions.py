"""Predictions: errors of the evaluated images, and the class of the user's image.

The errors are the confusion matrix, the most confident mistakes, and calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.finetune.results import wilson_interval, worst_mistakes
from experiments.inspect_run.context import PageFigure, RunContext, Section, probabilities
from jaxcnn import metrics, plots
from jaxcnn.metrics import calibration
from jaxcnn.plots.evaluation import reliability

BINS = 10
"""Number of bins of confidence."""
MAX_MISTAKES = 10
"""Number of mistakes to show."""
MAX_CLASSES = 10
"""Number of classes to list."""
BRIGHTNESS_GAP = 35
"""Points of brightness above which a warning is given.

MNIST's images are 74 from their negatives on average. Of CIFAR-10's, 99% are within 35 of the mean.
"""


def errors_section(context: RunContext) -> Section:
    """Return confusion matrix, mistakes and calibration of the evaluated images."""
    indices = worst_mistakes(
        context.labels, context.probabilities, MAX_MISTAKES, max_per_pair=MAX_MISTAKES
    )
    figures = [
        _confusion_figure(context),
        *_mistakes_figures(context, indices),
        _calibration_figure(context),
    ]
    return Section(
        "Errors",
        f"{error_rate_text(context)}\n\n{_table_caption(context, indices)}",
        _mistakes_table(context, indices),
        figures,
    )


def error_rate_text(context: RunContext) -> str:
    """Return how many images are wrong, with a 95% interval."""
    n, num_correct = len(context.labels), int(context.is_correct.sum())
    lower, upper = wilson_interval(n - num_correct, n)
    return (
        f"{n - num_correct} of the first {n:,} {context.run.config.train.eval_split} images "
        "are wrong: "
        f"{100 * (n - num_correct) / n:.2f}%, 95% interval {lower:.2f} to {upper:.2f}% (Wilson)."
    )


def _table_caption(context: RunContext, indices: np.ndarray) -> str:
    """Return a sentence on the table of mistakes."""
    num_wrong = int((~context.is_correct).sum())
    if not num_wrong:
        return (
            f"There are no mistakes to show: all {len(context.labels):,} images are right. "
            "--images N judges another number."
        )
    if num_wrong == 1:
        return (
            "The table has the only mistake; an image's number is its place in the split, from 0."
        )
    subset = (
        f"{len(indices)} of the {num_wrong} mistakes"
        if num_wrong > len(indices)
        else f"the {num_wrong} mistakes"
    )
    return (
        f"The table has {subset}, the most confident first; an image's number is its place in the "
        "split, from 0."
    )


def _mistakes_table(
    context: RunContext, indices: Sequence[int] | np.ndarray
) -> list[dict[str, Any]]:
    """Return a row for each mistake shown."""
    rows = []
    for i in map(int, indices):
        predicted, label = int(context.predictions[i]), int(context.labels[i])
        confidence, true_probability = (
            f"{100 * context.probabilities[i, c]:.1f}" for c in (predicted, label)
        )
        rows.append(
            {
                "image": i,
                "taken for": context.classes[predicted],
                "with probability (%)": confidence,
            }
        )
        rows[-1] |= {"true class": context.classes[label], "its probability (%)": true_probability}
    return rows


def _confusion_figure(context: RunContext) -> PageFigure:
    """Return the confusion matrix."""
    counts = metrics.confusion(context.labels, context.predictions, len(context.classes))
    wrong = counts - np.diag(np.diag(counts))
    # The three most frequent pairs of different classes.
    order = np.argsort(-wrong, axis=None, kind="stable")[:3]
    pairs = [tuple(map(int, np.unravel_index(i, wrong.shape))) for i in order if wrong.flat[i]]
    pairs_text = "; ".join(
        f"{context.classes[label]}, predicted {context.classes[predicted]} "
        f"({wrong[label, predicted]})"
        for label, predicted in pairs
    )
    summary = (
        f"The most frequent mistakes: {pairs_text}."
        if pairs_text
        else "No image is off the diagonal."
    )
    alt = (
        f"Confusion matrix: {np.trace(counts)} of {counts.sum()} images on the diagonal. {summary}"
    )
    text = (
        "Confusion matrix. A row is a label, and its numbers are the predictions for its images. "
        f"{summary}"
    )
    return PageFigure("confusion", plots.confusion(counts, context.classes), alt, text)


def _mistakes_figures(context: RunContext, indices: np.ndarray) -> list[PageFigure]:
    """Return the images of the table, or nothing without mistakes."""
    if not len(indices):
        return []
    captions = [
        f"predicted {context.classes[context.predictions[i]]}, "
        f"{100 * context.probabilities[i, context.predictions[i]]:.0f}%\n"
        f"label {context.classes[context.labels[i]]}, "
        f"{100 * context.probabilities[i, context.labels[i]]:.0f}%"
        for i in indices
    ]
    figure = plots.image_grid(context.images[indices], captions, columns=5)
    alt = f"{len(indices)} images that the network takes for another class. " + "; ".join(
        caption.replace("\n", " and ") for caption in captions
    )
    text = (
        "The most confident mistakes, in the order of the table, with the probabilities of the "
        "predicted class and of the label."
    )
    return [PageFigure("mistakes", figure, alt, text)]


def _calibration_figure(context: RunContext) -> PageFigure:
    """Return the reliability diagram."""
    report = calibration(context.probabilities, context.labels, bins=BINS)
    confidence = 100 * float(context.probabilities.max(1).mean())
    accuracy = 100 * float(context.is_correct.mean())
    ece = 100 * report.expected_calibration_error
    mean, greatest = (100 * x for x in chance_calibration_error(context.probabilities))
    verdict = "more than chance explains" if ece > greatest else "no more than chance explains"
    gap_text = (
        f"surer than right by {confidence - accuracy:.1f} points"
        if confidence > accuracy
        else f"less sure than right by {accuracy - confidence:.1f} points"
    )
    text = (
        f"Calibration: how often the network is right against how sure it is, in {BINS} bins of "
        "confidence, with 95% intervals (Guo et al. 2017, arXiv:1706.04599). On average it is "
        f"{gap_text}: confidence {confidence:.1f}%, accuracy {accuracy:.1f}%. The expected "
        f"calibration error is {ece:.1f}%. Were every confidence exactly right, "
        f"{len(context.labels):,} images would still give {mean:.1f}% on average, and less than "
        f"{greatest:.1f}% in 95 of 100 samples: this is {verdict}."
    )
    alt = (
        f"Reliability diagram: calibration error {ece:.1f}%, confidence {confidence:.1f}%, "
        f"accuracy {accuracy:.1f}%."
    )
    return PageFigure("calibration", reliability(*report), alt, text)


def chance_calibration_error(
    probabilities: np.ndarray, *, draws: int = 500, seed: int = 0
) -> tuple[float, float]:
    """Return the calibration error of a perfectly calibrated network.

    Labels are drawn by its confidences (consistency resampling, Bröcker and Smith 2007).

    Args:
      probabilities: float [n, num_classes].
      draws: number of samples of n labels.
      seed: of the samples.

    Returns:
      The mean over the draws, and what 95% of them stay below, in 0..1.

    Example:
      >>> chance_calibration_error(np.array([[1.0, 0.0]]))
      (0.0, 0.0)
    """
    confidence, rng = probabilities.max(1), np.random.default_rng(seed)
    # Bins are open below and closed above, as in `calibration`.
    bin_index = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    errors = []
    for _ in range(draws):
        # Sum of (correct - confidence) in each bin, for labels drawn by the confidences.
        gaps = np.bincount(bin_index, (rng.random(len(confidence)) < confidence) - confidence, BINS)
        errors.append(np.abs(gaps).sum() / len(confidence))
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


def user_image_section(context: RunContext) -> Section | None:
    """Return the prediction for the user's image, or None without one."""
    if context.user_image is None:
        return None
    (class_probabilities,) = probabilities(context.run, context.user_image[None])
    order = np.argsort(-class_probabilities, kind="stable")[:MAX_CLASSES]
    table = [
        {
            "class": context.classes[label],
            "probability (%)": f"{100 * class_probabilities[label]:.1f}",
        }
        for label in order
    ]
    prediction = f"{context.classes[order[0]]} ({100 * class_probabilities[order[0]]:.1f}%)"
    figure = plots.image_grid(context.user_image[None], [prediction])
    # A white image has no visible edge of its own.
    figure.axes[0].spines[:].set(visible=True, color="0.7")
    alt = (
        f"Your image at {context.user_image.shape[0]} by {context.user_image.shape[1]} pixels, "
        f"taken for {prediction}."
    )
    return Section(
        "Your image",
        _prediction_text(context, context.user_image, prediction),
        table,
        [PageFigure("own", figure, alt, "As the network sees it.")],
    )


def _prediction_text(context: RunContext, image: np.ndarray, prediction: str) -> str:
    """Return the text above the table."""
    size, _, channels = image.shape
    gray = "turned grey by luminance, " if channels == 1 else ""
    brightness, training_brightness = (
        100 * float(np.mean(pixels)) / 255
        for pixels in (image, context.run.data.train.images[:1000])
    )
    warning = (
        " These are far apart: the network may never have seen the like."
        if abs(brightness - training_brightness) > BRIGHTNESS_GAP
        else ""
    )
    return (
        f"Taken for {prediction}. A network is sure of itself with images of none of its classes "
        "as well: a probability is a share among the classes that it knows.\n\n"
        f"Its shorter side was resized to {size} pixels (bilinear, with antialiasing), and the "
        f"middle square cut out; it was {gray}set upright by its EXIF tag and not inverted. Its "
        f"mean brightness is {brightness:.0f}%, that of the training images "
        f"{training_brightness:.0f}%.{warning}"
    )
