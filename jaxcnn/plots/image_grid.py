"""Images in rows: with captions and heat maps, or many small ones as a mosaic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, hsv_to_rgb
from matplotlib.colors import to_rgb as to_color
from matplotlib.figure import Figure

from jaxcnn.arguments import format_value
from jaxcnn.plots.style import (
    LABEL,
    SMALL,
    TICK,
    new_figure,
    plain_text_style,
    printable,
    text_width,
    wrap,
)

HEAT_CMAP = colormaps["inferno"]
SIDE = 1.7
"""Side of an image, in inches."""


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend an image, in gray, with the colors of a heat map.

    The hotter a pixel, the more of the map's color it has.

    Args:
      image: uint8 [h, w, 3] or [h, w, 1].
      heat: float [h, w] in 0..1, such as `jaxcnn.interpret.gradcam` returns.

    Returns:
      uint8 [h, w, 3].

    Raises:
      ValueError: other shapes, an image of another dtype, or heat outside 0..1.

    Example:
      >>> overlay(np.full((1, 2, 3), 100, np.uint8), np.array([[0.0, 1.0]])).tolist()
      [[[100, 100, 100], [214, 216, 148]]]
    """
    if np.ndim(image) != 3 or image.shape[2] not in (1, 3) or heat.shape != image.shape[:2]:
        raise ValueError(
            f"image is {np.shape(image)} and heat {np.shape(heat)}; expected [h, w, 3] or "
            "[h, w, 1], and [h, w]"
        )
    if image.dtype != np.uint8:
        raise ValueError(
            f"image is {image.dtype}; expected uint8 in 0..255, as the data set has it. For values "
            "in 0..1 write (255 * image).astype(np.uint8)."
        )
    # Interpolation of float32 may round up from 1.
    if not ((heat >= 0) & (heat <= 1 + 1e-5)).all():
        fix = "heat / heat.max()" if np.isfinite(heat).all() else "np.nan_to_num(heat)"
        raise ValueError(
            f"heat spans {np.min(heat):.3g}..{np.max(heat):.3g}; expected 0..1. Write {fix}."
        )
    # Luminance of ITU-R BT.709.
    weights = np.array([0.2126, 0.7152, 0.0722]) if image.shape[2] == 3 else np.ones(1)
    gray = image.astype(np.float64) @ weights
    share = 0.75 * heat[..., None].astype(np.float64)
    mixed = (1 - share) * gray[..., None] + share * 255 * np.asarray(HEAT_CMAP(heat))[..., :3]
    return np.round(mixed).astype(np.uint8)


def image_grid(
    images: np.ndarray,
    captions: Sequence[str] = (),
    *,
    heat: np.ndarray | None = None,
    heat_label: str = "heat (share of the maximum)",
    columns: int = 4,
    title: str = "",
) -> Figure:
    r"""Draw images in rows, from the left, with captions below them.

    Args:
      images: uint8 [n, h, w, 3] or [n, h, w, 1], n > 0.
      captions: n texts, drawn as they are, without formulas; lines that are too long are broken.
        Without any, the images alone are drawn.
      heat: float [n, h, w] in 0..1, drawn over a gray copy next to each image; None for none.
      heat_label: of the color bar of the heat.
      columns: images to a row.
      title: above the figure.

    Raises:
      ValueError: there are no images, or captions or heat differ in number.

    Example:
      >>> images, heat = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8))
      >>> figure = image_grid(images, ["a cat", "a dog"], heat=heat)
      >>> [axis.get_xlabel() for axis in figure.axes[:4]]
      ['a cat', '', 'a dog', '']
    """
    n = len(images)
    if not n or len(captions) not in (0, n) or (heat is not None and len(heat) != n):
        heats = "" if heat is None else f" and {len(heat)} maps of heat"
        raise ValueError(
            f"there are {n} images, {len(captions)} captions{heats}; expected as many of each, or "
            "no captions, and at least one image"
        )
    cells_per_image = 1 if heat is None else 2
    columns = min(columns, n)
    rows = -(-n // columns)
    width = columns * cells_per_image * (SIDE + 0.08) + 0.2
    caption_width = cells_per_image * SIDE
    texts = [wrap(printable(text), SMALL, caption_width, plain=True) for text in captions]
    caption_height = 1.45 * SMALL / 72 * max((text.count("\n") + 1 for text in texts), default=0)
    height = rows * (SIDE + caption_height + 0.12)
    figure = new_figure(width + 0.9 * (heat is not None), height, title=title)
    cells = figure.add_gridspec(rows, columns * cells_per_image)
    for i, image in enumerate(np.broadcast_to(images, (*images.shape[:3], 3))):
        row, column = divmod(i, columns)
        pair = [image] if heat is None else [image, overlay(image, heat[i])]
        for j, pixels in enumerate(pair):
            axis = figure.add_subplot(cells[row, column * cells_per_image + j])
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.imshow(pixels, interpolation="nearest")
            if j == 0 and texts:
                style = plain_text_style(texts[i])
                axis.set_xlabel(texts[i], fontsize=SMALL, loc="left", **style)
    if heat is not None:
        scale = ScalarMappable(Normalize(0, 1), HEAT_CMAP)
        draw_color_bar(figure, scale, list(figure.axes), heat_label, height)
    return figure


def draw_color_bar(
    figure: Figure,
    scale: ScalarMappable,
    axes: Axes | list[Axes],
    label: str,
    height: float,
    *,
    inside: bool = False,
) -> None:
    """Draw a color bar right of some axes, at most three inches high.

    Args:
      figure: of the axes.
      scale: limits and colors.
      axes: the axes that make room for it.
      label: with the unit.
      height: of the axes together, in inches.
      inside: draw it inside the axes, which are one, and fill them.
    """
    place: dict[str, Any] = {"cax": axes}
    if not inside:
        place = {"ax": axes, "shrink": min(1.0, 3.0 / height), "aspect": 14, "pad": 0.02}
    bar = figure.colorbar(scale, **place)
    size = LABEL if height > 2 else TICK
    bar.set_label(wrap(label, size, 0.9 * height), fontsize=size)
    bar.ax.tick_params(labelsize=TICK)


MAX_LABEL_WIDTH = 1.5
"""Maximal width of the rows' labels, in inches."""


class Box(NamedTuple):
    """A rectangle to draw on an image.

    Attributes:
      edges: left, upper, right and lower edge, in pixels of the image (see `jaxcnn.boxes`).
      label: small text above its upper left corner.
      color: color of matplotlib, of the lines and of the text's background.
      dashed: draw dashed lines.
      below: write the label below the lower edge, where it does not cover others.
    """

    edges: tuple[float, float, float, float]
    label: str = ""
    color: str = "white"
    dashed: bool = False
    below: bool = False


class Stroke(NamedTuple):
    """A line through points of an image, such as the limb of a person.

    Attributes:
      points: (x, y) in pixels of the image: the center of the first pixel is (0.5, 0.5).
      color: color of matplotlib.
      dots: draw a dot at each point.
      dashed: draw a dashed line.
    """

    points: Sequence[tuple[float, float]]
    color: str = "white"
    dots: bool = False
    dashed: bool = False


class Strip(NamedTuple):
    """A row of images, all drawn at the same size.

    Their numbers of pixels may differ.

    Attributes:
      images: values [h, w], or RGB images [h, w, 3] in 0..1 or uint8. A nan is left white.
      label: text on the left.
      captions: small text below each image; none, or as many as images.
      cmap: color map of matplotlib, for images [h, w]. "RdBu_r" is for numbers of both signs.
      limits: values with the outermost colors; None takes each image's range.
      marks: row and column of a pixel to mark in each image. There are none at all, or as many as
        images.
      boxes: boxes to draw on each image; none at all, or a list for each.
      strokes: lines to draw on each image; none at all, or a list for each.

    Example:
      >>> Strip([np.zeros((2, 2)), np.ones((3, 3))], "stem").limits is None
      True
    """

    images: Sequence[np.ndarray]
    label: str = ""
    captions: Sequence[str] = ()
    cmap: str = "viridis"
    limits: tuple[float, float] | None = None
    marks: Sequence[tuple[float, float] | None] = ()
    boxes: Sequence[Sequence[Box]] = ()
    strokes: Sequence[Sequence[Stroke]] = ()


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Return an image as RGB [h, w, 3].

    Channels are averaged unless there are 1 or 3 of them.

    Args:
      image: [h, w, c], uint8 or float in 0..1.

    Example:
      >>> to_rgb(np.zeros((2, 2, 1))).shape, to_rgb(np.zeros((2, 2, 4), np.uint8)).dtype
      ((2, 2, 3), dtype('uint8'))
    """
    if image.shape[-1] not in (1, 3):
        image = image.mean(-1, keepdims=True).astype(image.dtype)
    return np.broadcast_to(image, (*image.shape[:2], 3))


def direction_colors(vectors: np.ndarray) -> np.ndarray:
    """Return the colors of vectors: hue is direction, brightness is length.

    Args:
      vectors: float [h, w, 2], (x, y); lengths above 1 are as bright as 1.

    Returns:
      float64 [h, w, 3] in 0..1. Right is red. A vector with a nan is white.

    Raises:
      ValueError: `vectors` has another shape.

    Example:
      >>> direction_colors(np.array([[[1.0, 0.0], [-0.5, 0.0]]])).tolist()
      [[[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]]
    """
    if np.ndim(vectors) != 3 or np.shape(vectors)[-1] != 2:
        raise ValueError(
            f"vectors is of shape {np.shape(vectors)}; expected (h, w, 2). "
            "Write np.stack([x, y], -1)."
        )
    values = np.asarray(vectors, np.float64)
    is_missing = np.isnan(values).any(-1, keepdims=True)
    x, y = np.moveaxis(np.where(is_missing, 0.0, values), -1, 0)
    hue = np.arctan2(y, x) / (2 * np.pi) % 1
    colors = hsv_to_rgb(np.stack([hue, np.ones_like(hue), np.minimum(np.hypot(x, y), 1)], -1))
    return np.where(is_missing, 1.0, colors)


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
    """Draw rows of images, with labels on the left.

    Args:
      strips: the rows, from above; each begins at the left.
      title: above the figure.
      heads: titles of the columns.
      note: below, in lines as wide as the figure; it may say how images are scaled.
      bar: label, with its unit, of a color bar for the first strip's colors and limits; "" has no
        bar.
      side: of an image, in inches; images that are not square have this height.
      gap: between images, in inches.

    Raises:
      ValueError: there are no images, an image has another shape, captions, marks, boxes or strokes
        differ in number, boxes or strokes are not in a list for each image, or there is a bar
        without limits.

    Example:
      >>> strips = [Strip([np.eye(4), np.eye(4)], "stem"), Strip([np.eye(2)], "stage1")]
      >>> figure = mosaic(strips, heads=["0", "1"])
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['0', '1', 'stem', 'stage1']
    """
    _check(strips, bar)
    first = next(image for strip in strips for image in strip.images)
    image_width = side * first.shape[1] / first.shape[0]
    captions = [printable(text) for strip in strips for text in strip.captions]
    text_widths = [text_width(head, TICK) for head in heads]
    text_widths += [text_width(text, SMALL, plain=True) for text in captions]
    cell = max(image_width + gap, *(width + 0.1 for width in text_widths), 0.0)
    labels = [wrap(printable(strip.label), LABEL, MAX_LABEL_WIDTH, plain=True) for strip in strips]
    lines = [line for label in labels for line in label.split("\n")]
    left = max(text_width(line, LABEL, plain=True) for line in lines) + 0.12
    width = left + max(len(strip.images) for strip in strips) * cell
    caption_heights = [1.5 * SMALL / 72 * bool(strip.captions) for strip in strips]
    head_height = 1.6 * TICK / 72 * bool(heads)
    height = head_height + sum(side + gap + space for space in caption_heights)
    figure, axis = _new_page(width, height, title, note, bar, strips[0])
    center: dict[str, Any] = {"ha": "center", "va": "center"}
    for column, head in enumerate(heads):
        x = left + (column + 0.5) * cell
        axis.text(x, head_height / 2, head, fontsize=TICK, **center)
    top = head_height
    for strip, label, space in zip(strips, labels, caption_heights, strict=True):
        style = plain_text_style(label) | {"fontsize": LABEL, "ha": "right", "va": "center"}
        axis.text(left - 0.12, top + side / 2, label, **style)
        for column, image in enumerate(strip.images):
            x = left + (column + 0.5) * cell - image_width / 2
            extent = (x, x + image_width, top + side, top)
            axis.imshow(_to_colors(image, strip), extent=extent, interpolation="nearest")
            if strip.marks and (mark := strip.marks[column]) is not None:
                rows, columns = np.shape(image)[:2]
                mark_x = x + (mark[1] + 0.5) / columns * image_width
                mark_y = top + (mark[0] + 0.5) / rows * side
                axis.plot(mark_x, mark_y, "o", ms=7, mfc="none", mec="black", mew=3.2)
                axis.plot(mark_x, mark_y, "o", ms=7, mfc="none", mec="white", mew=1.4)
            for box in strip.boxes[column] if strip.boxes else ():
                _draw_box(axis, box, (x, top), side / np.shape(image)[0])
            for stroke in strip.strokes[column] if strip.strokes else ():
                _draw_stroke(axis, stroke, (x, top), side / np.shape(image)[0])
        for column, text in enumerate(strip.captions):
            x = left + (column + 0.5) * cell
            style = plain_text_style(text) | {"fontsize": SMALL, "ha": "center", "va": "top"}
            axis.text(x, top + side + 0.02, printable(text), **style)
        top += side + gap + space
    # imshow has changed the limits.
    axis.set(xlim=(0, width), ylim=(height, 0))
    return figure


def _draw_box(axis: Axes, box: Box, corner: tuple[float, float], scale: float) -> None:
    """Draw a box on an image.

    Args:
      axis: in inches, downwards.
      box: in pixels.
      corner: the upper left corner of the image, in inches.
      scale: inches for each pixel.
    """
    x1, x2 = (corner[0] + scale * edge for edge in box.edges[::2])
    y1, y2 = (corner[1] + scale * edge for edge in box.edges[1::2])
    style: dict[str, Any] = {"solid_joinstyle": "miter", "dash_joinstyle": "miter"}
    line = "--" if box.dashed else "-"
    xs, ys = (x1, x2, x2, x1, x1), (y1, y1, y2, y2, y1)
    # A dark line around it shows it on bright images too.
    axis.plot(xs, ys, "-", color="black", lw=2.6, alpha=0.45, **style)
    axis.plot(xs, ys, line, color=box.color, lw=1.5, **style)
    if box.label:
        text = plain_text_style(box.label) | {"fontsize": SMALL - 3, "ha": "left", "va": "bottom"}
        background = {"facecolor": box.color, "edgecolor": "none", "pad": 0.8}
        ink = "black" if sum(to_color(box.color)[:3]) > 1.5 else "white"
        # Inside the image where there is no room above.
        y = y2 if box.below else max(y1, corner[1] + 0.13)
        text |= {"va": "top"} if box.below else {}
        axis.text(x1, y, printable(box.label), color=ink, bbox=background, **text)


def _draw_stroke(axis: Axes, stroke: Stroke, corner: tuple[float, float], scale: float) -> None:
    """Draw a line on an image.

    Args:
      axis: in inches, downwards.
      stroke: in pixels.
      corner: the upper left corner of the image, in inches.
      scale: inches for each pixel.
    """
    xs, ys = ([corner[i] + scale * point[i] for point in stroke.points] for i in (0, 1))
    style: dict[str, Any] = {"solid_capstyle": "round", "dash_capstyle": "butt"}
    line = "--" if stroke.dashed else "-"
    # A dark line around it shows it on bright images too.
    axis.plot(xs, ys, "-", color="black", lw=3.0, alpha=0.45, **style)
    axis.plot(xs, ys, line, color=stroke.color, lw=1.7, **style)
    if stroke.dots:
        axis.plot(xs, ys, "o", ms=3.6, mfc=stroke.color, mec="black", mew=0.5)


def _new_page(
    width: float, height: float, title: str, note: str, bar: str, strip: Strip
) -> tuple[Figure, Axes]:
    """Return the figure and its single axes.

    The axes are in inches from the upper left corner.
    """
    figure_width = max(width + 0.2, 4.0) + 0.95 * bool(bar)
    note = wrap(note, TICK, figure_width - 0.3)
    note_height = 1.45 * TICK / 72 * (note.count("\n") + 1) * bool(note)
    figure = new_figure(figure_width, height + note_height + 0.2, title=title)
    if note:
        figure.supxlabel(note, fontsize=TICK, x=0.01, ha="left")
    axis = figure.add_subplot()
    axis.set_axis_off()
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
    if bar:
        low, high = strip.limits or (0.0, 1.0)
        scale = ScalarMappable(Normalize(low, high), colormaps[strip.cmap])
        draw_color_bar(figure, scale, axis, bar, height)
    return figure, axis


def _to_colors(image: np.ndarray, strip: Strip) -> np.ndarray:
    """Return the colors [h, w, 3 or 4] of an image, in 0..1."""
    if image.ndim == 3:
        return image / 255 if image.dtype == np.uint8 else np.clip(image, 0, 1)
    finite = image[np.isfinite(image)]
    low, high = strip.limits or ((finite.min(), finite.max()) if finite.size else (0.0, 1.0))
    norm: Any = Normalize(low, high if high > low else low + 1)
    cmap = colormaps[strip.cmap].with_extremes(bad="white")
    return cmap(norm(np.ma.masked_invalid(image)))


def _check(strips: Sequence[Strip], bar: str) -> None:
    shapes = [np.shape(image) for strip in strips for image in strip.images]
    invalid = [
        shape
        for shape in shapes
        if len(shape) not in (2, 3) or 0 in shape or shape[2:] not in ((), (3,))
    ]
    if not shapes or invalid:
        raise ValueError(
            f"the images have shapes {invalid[:3]}; expected at least one, and each [h, w] or [h, "
            "w, 3], none empty"
        )
    for strip in strips:
        n = len(strip.images)
        for field, items in (
            ("captions", strip.captions),
            ("marks", strip.marks),
            ("boxes", strip.boxes),
            ("strokes", strip.strokes),
        ):
            if len(items) not in (0, n):
                raise ValueError(
                    f"{strip.label!r} has {len(items)} {field}; expected none or {n}, one for each "
                    "image"
                )
        for field, items, kind in (
            ("boxes", strip.boxes, Box),
            ("strokes", strip.strokes, Stroke),
        ):
            for own in items:
                # A box and a stroke are sequences too.
                is_list = isinstance(own, Sequence) and not isinstance(own, kind)
                if not is_list or not all(isinstance(item, kind) for item in own):
                    raise ValueError(
                        f"{field} of {strip.label!r} have {format_value(own)} for an image; "
                        f"expected a list of {kind.__name__}. "
                        f"Write Strip(..., {field}=[[{kind.__name__}(...)], ...])."
                    )
    if bar and strips[0].limits is None:
        raise ValueError("a color bar needs limits; write Strip(..., limits=(low, high))")
