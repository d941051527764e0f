"""Prediction for an image of the user's own."""

from __future__ import annotations

import numpy as np

from experiments.inspect_run.context import PageFigure, RunContext, Section, probabilities
from jaxcnn import plots

MAX_CLASSES = 10
"""Number of classes to list."""
BRIGHTNESS_GAP = 35
"""Points of brightness above which a warning is given.

MNIST's images are 74 from their negatives on average. Of CIFAR-10's, 99% are within 35 of the mean.
"""


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
        f"Your picture at {context.user_image.shape[0]} by {context.user_image.shape[1]} pixels, "
        f"taken for {prediction}."
    )
    return Section(
        "Your picture",
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
        f"Taken for {prediction}. A network is sure of itself with pictures of none of its classes "
        "as well: a probability is a share among the classes that it knows.\n\n"
        f"Its shorter side was resized to {size} pixels (bilinear, with antialiasing), and the "
        f"middle square cut out; it was {gray}set upright by its EXIF tag and not inverted. Its "
        f"mean brightness is {brightness:.0f}%, that of the training images "
        f"{training_brightness:.0f}%.{warning}"
    )
