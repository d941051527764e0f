"""What the network says of a picture of the user's own."""

from __future__ import annotations

import numpy as np

from experiments.inspect_run.reading import probabilities
from experiments.inspect_run.seen import Picture, Section, Seen
from jaxcnn import plots

MOST = 10
"""Classes to tell."""
FAR = 35
"""Points of brightness: MNIST's images are 74 from their negatives on average, and 99% of CIFAR-10's within 35 of the mean."""


def section(seen: Seen) -> Section | None:
    """What the network takes the picture for; None if there is none."""
    if seen.own is None:
        return None
    (shares,) = probabilities(seen.run, seen.own[None])
    order = np.argsort(-shares, kind="stable")[:MOST]
    table = [{"class": seen.classes[c], "probability (%)": f"{100 * shares[c]:.1f}"} for c in order]
    first = f"{seen.classes[order[0]]} ({100 * shares[order[0]]:.1f}%)"
    figure = plots.image_grid(seen.own[None], [first])
    figure.axes[0].spines[:].set(visible=True, color="0.7")  # a white picture has no edge of its own
    alt = f"Your picture at {seen.own.shape[0]} by {seen.own.shape[1]} pixels, taken for {first}."
    return Section(
        "Your picture", told(seen, seen.own, first), table, [Picture("own", figure, alt, "As the network sees it.")]
    )


def told(seen: Seen, image: np.ndarray, first: str) -> str:
    """The words above the table."""
    size, _, channels = image.shape
    grey = "turned grey by luminance, " if channels == 1 else ""
    mine, theirs = (100 * float(np.mean(x)) / 255 for x in (image, seen.run.data.train.images[:1000]))
    far = " These are far apart: the network may never have seen the like." if abs(mine - theirs) > FAR else ""
    return (
        f"Taken for {first}. A network is sure of itself with pictures of none of its classes as well: a probability is a "
        "share among the classes that it knows.\n\n"
        f"Its shorter side was resized to {size} pixels (bilinear, with antialiasing), and the middle square cut out; it was "
        f"{grey}set upright by its EXIF tag and not inverted. Its mean brightness is {mine:.0f}%, that of the training images "
        f"{theirs:.0f}%.{far}"
    )
