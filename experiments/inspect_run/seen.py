"""What every part of the page is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxcnn import runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Seen(NamedTuple):
    """A run, the images that it is asked about, and its answers."""

    run: runs.TrainedModel
    images: np.ndarray
    """uint8 [n, h, w, c]: the first n of the split that the recipe reports, test or validation."""
    labels: np.ndarray
    """int32 [n]."""
    shares: np.ndarray
    """float64 [n, classes]: the softmax of the logits."""
    stages: tuple[str, ...]
    """Those asked for whose output is maps [h', w', k] of more than one place, in the network's order."""
    own: np.ndarray | None
    """uint8 [h, w, c]: the user's own picture, brought to the network's input; None if there is none."""

    @property
    def said(self) -> np.ndarray:
        """int64 [n]: the likeliest class of each image."""
        return self.shares.argmax(1)

    @property
    def right(self) -> np.ndarray:
        """bool [n]."""
        return self.said == self.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return self.run.data.classes


class Picture(NamedTuple):
    """A figure on the page."""

    name: str
    """Of its file, without .png: lower case with dashes."""
    figure: Figure
    alt: str
    """What somebody should know of it who cannot see it."""
    text: str = ""
    """Plain text below it: how to read it, and what is to be seen."""


class Section(NamedTuple):
    """A part of the page."""

    title: str
    text: str = ""
    """Plain paragraphs with a blank line between them."""
    table: Sequence[Mapping[str, Any]] = ()
    """Rows, as `tables.markdown` takes them."""
    pictures: Sequence[Picture] = ()
