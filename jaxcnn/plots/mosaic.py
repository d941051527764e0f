"""Many small images in rows, with a thin gap between them: filters, feature maps, patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from jaxcnn.plots.style import LABEL, SMALL, TICK, extent, sheet, wrap
from jaxcnn.plots.text import plain, text_style

LABELS = 1.5
"""The width of the rows' labels at most, in inches."""


class Strip(NamedTuple):
    """A row of images, all drawn at the same size whatever their numbers of pixels.

    Example:
      >>> Strip([np.zeros((2, 2)), np.ones((3, 3))], "stem").limits is None
      True
    """

    images: Sequence[np.ndarray]
    """Each [h, w], coloured by value, or [h, w, 3] in 0..1 or uint8; a nan is left white."""
    label: str = ""
    """On the left."""
    captions: Sequence[str] = ()
    """Below each, in small letters; none, or as many as images."""
    colours: str = "viridis"
    """A colour map of matplotlib, for [h, w]: "RdBu_r" for numbers on both sides of 0."""
    limits: tuple[float, float] | None = None
    """The values with the outermost colours; None scales each image by its own least and greatest."""
    marks: Sequence[tuple[float, float] | None] = ()
    """Row and column of a pixel to mark in each image; none at all, or as many as images."""


def as_picture(image: np.ndarray) -> np.ndarray:
    """An image [h, w, c], uint8 or float in 0..1, in colours or greys: [h, w, 3]; of other channels than 1 or 3 the mean.

    Example:
      >>> as_picture(np.zeros((2, 2, 1))).shape, as_picture(np.zeros((2, 2, 4), np.uint8)).dtype
      ((2, 2, 3), dtype('uint8'))
    """
    if image.shape[-1] not in (1, 3):
        image = image.mean(-1, keepdims=True).astype(image.dtype)
    return np.broadcast_to(image, (*image.shape[:2], 3))


def mosaic(
    strips: Sequence[Strip],
    *,
    title: str = "",
    heads: Sequence[str] = (),
    note: str = "",
    bar: str = "",
    side: float = 0.85,
    gap: float = 0.05,
) -> Figure:
    """Rows of images from above, each from the left, with labels on the left and a note below: how they are scaled, say.

    Args:
      strips: the rows.
      title: above the figure.
      heads: above the columns.
      note: below, in lines as wide as the figure.
      bar: what the colours mean, with its unit, beside a colour bar of the first strip's colours and limits; "" draws none.
      side: of an image, in inches; those that are not square are as high as that.
      gap: between images, in inches.

    Raises:
      ValueError: for no images, others than the above, another number of captions or marks, or a bar without limits.

    Example:
      >>> figure = mosaic([Strip([np.eye(4), np.eye(4)], "stem"), Strip([np.eye(2)], "stage1")], heads=["0", "1"])
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['0', '1', 'stem', 'stage1']
    """
    _check(strips, bar)
    first = next(image for strip in strips for image in strip.images)
    wide = side * first.shape[1] / first.shape[0]
    texts = [extent(head, TICK) for head in heads]
    texts += [extent(plain(text), SMALL, plain=True) for strip in strips for text in strip.captions]
    cell = max(wide + gap, *(text + 0.1 for text in texts), 0.0)
    labels = [wrap(plain(strip.label), LABEL, LABELS, plain=True) for strip in strips]
    left = max(extent(line, LABEL, plain=True) for label in labels for line in label.split("\n")) + 0.12
    width = left + max(len(strip.images) for strip in strips) * cell
    below = [1.5 * SMALL / 72 * bool(strip.captions) for strip in strips]
    above = 1.6 * TICK / 72 * bool(heads)
    height = above + sum(side + gap + space for space in below)
    figure, axis = _page(width, height, title, note, bar, strips[0])
    for column, head in enumerate(heads):
        axis.text(left + (column + 0.5) * cell, above / 2, head, fontsize=TICK, ha="center", va="center")
    top = above
    for strip, label, space in zip(strips, labels, below, strict=True):
        axis.text(left - 0.12, top + side / 2, label, fontsize=LABEL, ha="right", va="center", **text_style(label))
        for column, image in enumerate(strip.images):
            x = left + (column + 0.5) * cell - wide / 2
            axis.imshow(_coloured(image, strip), extent=(x, x + wide, top + side, top), interpolation="nearest")
            if strip.marks and (mark := strip.marks[column]) is not None:
                high, broad = np.shape(image)[:2]
                place = x + (mark[1] + 0.5) / broad * wide, top + (mark[0] + 0.5) / high * side
                axis.plot(*place, "o", ms=7, mfc="none", mec="black", mew=3.2)
                axis.plot(*place, "o", ms=7, mfc="none", mec="white", mew=1.4)
        for column, text in enumerate(strip.captions):
            place = left + (column + 0.5) * cell, top + side + 0.02
            axis.text(*place, plain(text), fontsize=SMALL, ha="center", va="top", **text_style(text))
        top += side + gap + space
    axis.set(xlim=(0, width), ylim=(height, 0))  # imshow has moved them
    return figure


def _page(width: float, height: float, title: str, note: str, bar: str, strip: Strip) -> tuple[Figure, Axes]:
    """The figure and its one pair of axes, in inches from the upper left corner."""
    wide = max(width + 0.2, 4.0) + 0.95 * bool(bar)
    note = wrap(note, TICK, wide - 0.3)
    lines = 1.45 * TICK / 72 * (note.count("\n") + 1) * bool(note)
    figure = sheet(wide, height + lines + 0.2, title=title)
    if note:
        figure.supxlabel(note, fontsize=TICK, x=0.01, ha="left")
    axis = figure.add_subplot()
    axis.set_axis_off()
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
    if bar:
        low, high = strip.limits or (0.0, 1.0)
        scale = ScalarMappable(Normalize(low, high), colormaps[strip.colours])
        drawn = figure.colorbar(scale, ax=axis, shrink=min(1.0, 3.0 / height), aspect=14, pad=0.02)
        drawn.set_label(bar, fontsize=LABEL)
        drawn.ax.tick_params(labelsize=TICK)
    return figure, axis


def _coloured(image: np.ndarray, strip: Strip) -> np.ndarray:
    """[h, w, 3 or 4] in 0..1."""
    if image.ndim == 3:
        return image / 255 if image.dtype == np.uint8 else np.clip(image, 0, 1)
    known = image[np.isfinite(image)]
    low, high = strip.limits or ((known.min(), known.max()) if known.size else (0.0, 1.0))
    norm: Any = Normalize(low, high if high > low else low + 1)
    colours = colormaps[strip.colours].with_extremes(bad="white")
    return colours(norm(np.ma.masked_invalid(image)))


def _check(strips: Sequence[Strip], bar: str) -> None:
    shapes = [np.shape(image) for strip in strips for image in strip.images]
    wrong = [shape for shape in shapes if len(shape) not in (2, 3) or 0 in shape or shape[2:] not in ((), (3,))]
    if not shapes or wrong:
        raise ValueError(
            f"the images have shapes {wrong[:3]}; expected at least one, and each [h, w] or [h, w, 3], none empty"
        )
    for strip in strips:
        for what, some in (("captions", strip.captions), ("marks", strip.marks)):
            if len(some) not in (0, len(strip.images)):
                raise ValueError(
                    f"{strip.label!r} has {len(some)} {what}; expected none or {len(strip.images)}, one for each image"
                )
    if bar and strips[0].limits is None:
        raise ValueError("a colour bar needs limits; write Strip(..., limits=(low, high))")
