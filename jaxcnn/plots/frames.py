"""Probabilities of classes along an image, such as those of a reader trained by CTC."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxcnn.arguments import format_value
from jaxcnn.plots.style import COLORS, DASHES, LABEL, new_figure, plain_text_style, style_axes

WIDTH = 9.0
"""Of the figure, in inches."""
MIN_PEAK = 0.05
"""Least greatest probability of a class with a line of its own."""


def frame_probabilities(
    image: np.ndarray, probabilities: np.ndarray, names: Sequence[str], *, title: str = ""
) -> Figure:
    """Draw the probabilities of each frame below the image that they are of.

    Each class has a line over the frames' centers, in pixels of the image. Its peaks of at least a
    half have its name. The last class is the blank, a dashed gray line. Classes that are nowhere
    probable are left out.

    Args:
      image: uint8 [h, w, 1] or [h, w, 3].
      probabilities: float [t, k] of t frames of equal width.
      names: of the k classes.
      title: above the figure.

    Raises:
      ValueError: they are of other shapes or empty, or a name is no text.

    Example:
      >>> probabilities = np.array([[0.1, 0.9], [0.8, 0.2], [0.1, 0.9]])
      >>> image = np.zeros((4, 12, 1), np.uint8)
      >>> figure = frame_probabilities(image, probabilities, ["7", "blank"])
      >>> [text.get_text() for text in figure.axes[1].texts]
      ['7']
    """
    image, probabilities = np.asarray(image), np.asarray(probabilities)
    is_image = image.ndim == 3 and image.size and image.shape[2] in (1, 3)
    is_named = probabilities.ndim == 2 and probabilities.shape[1] == len(names)
    if not (is_image and is_named and probabilities.size):
        raise ValueError(
            f"the image is of shape {image.shape}, the probabilities {probabilities.shape}, with "
            f"{len(names)} names; expected [h, w, 1] or [h, w, 3], [t, k] and k names, none of "
            "them empty"
        )
    if not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"names are {format_value(list(names))}; expected texts. Write "
            "[str(name) for name in names]."
        )
    height, width = image.shape[:2]
    image_height = (WIDTH - 0.8) * height / width
    shown = [i for i in range(len(names) - 1) if probabilities[:, i].max() >= MIN_PEAK]
    styles = {i: (COLORS[n % 6], DASHES[n // 6 % len(DASHES)][0]) for n, i in enumerate(shown)}
    styles[len(names) - 1] = ("0.6", "--")
    handles = [
        Line2D([], [], color=color, linestyle=dash, linewidth=2.2, label=names[i])
        for i, (color, dash) in styles.items()
    ]
    figure = new_figure(WIDTH, image_height + 2.4, title=title, handles=handles)
    grid = figure.add_gridspec(2, 1, height_ratios=(image_height, 2.4))
    upper = figure.add_subplot(grid[0])
    lower = figure.add_subplot(grid[1], sharex=upper)
    upper.imshow(
        np.broadcast_to(image, (height, width, 3)),
        extent=(0, width, height, 0),
        aspect="auto",
        interpolation="nearest",
    )
    upper.set_axis_off()
    style_axes(lower, "", panel_width=WIDTH)
    centers = (np.arange(len(probabilities)) + 0.5) * width / len(probabilities)
    for i, (color, dash) in styles.items():
        values = probabilities[:, i]
        zorder = 2 if i in shown else 1
        lower.plot(centers, values, linestyle=dash, color=color, linewidth=2.2, zorder=zorder)
        for frame in _peaks(values) if i in shown else ():
            text = plain_text_style(names[i])
            lower.annotate(
                names[i],
                (centers[frame], values[frame]),
                (0, 3),
                textcoords="offset points",
                color=color,
                fontsize=LABEL,
                ha="center",
                **text,
            )
    lower.set(xlim=(0, width), ylim=(0, 1.16), xlabel="column of the image (pixels)")
    lower.set_ylabel("probability")
    lower.set_yticks([0, 0.5, 1])
    return figure


def _peaks(values: np.ndarray) -> list[int]:
    """Return the frame of the greatest value of each run of values of at least a half."""
    runs = np.split(np.arange(len(values)), np.flatnonzero(np.diff(values >= 0.5)) + 1)
    return [int(run[values[run].argmax()]) for run in runs if values[run[0]] >= 0.5]
