"""Images in rows with captions, optionally with heat maps next to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from jaxcnn.plots.style import SMALL, new_figure, plain_text_style, printable, wrap

HEAT_CMAP = colormaps["inferno"]
SIDE = 1.7
"""Side of an image, in inches."""


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blend an image, in gray, with the colors of a heat map.

    The hotter a pixel, the more of the map's color it has.

    Args:
      image: uint8 [h, w, 3].
      heat: float [h, w] in 0..1, such as `jaxcnn.interpret.gradcam` returns.

    Returns:
      uint8 [h, w, 3].

    Example:
      >>> overlay(np.full((1, 2, 3), 100, np.uint8), np.array([[0.0, 1.0]])).tolist()
      [[[100, 100, 100], [214, 216, 148]]]
    """
    # Luminance of ITU-R BT.709.
    gray = image.astype(np.float64) @ np.array([0.2126, 0.7152, 0.0722])
    share = 0.75 * heat[..., None].astype(np.float64)
    mixed = (1 - share) * gray[..., None] + share * 255 * np.asarray(HEAT_CMAP(heat))[..., :3]
    return np.round(mixed).astype(np.uint8)


def image_grid(
    images: np.ndarray,
    captions: Sequence[str],
    *,
    heat: np.ndarray | None = None,
    columns: int = 4,
    title: str = "",
) -> Figure:
    r"""Draw images in rows, from the left, with captions below them.

    Args:
      images: uint8 [n, h, w, 3] or [n, h, w, 1], n > 0.
      captions: n texts, drawn as they are, without formulas; lines that are too long are broken.
      heat: float [n, h, w] in 0..1, drawn over a gray copy next to each image; None for none.
      columns: images to a row.
      title: above the figure.

    Raises:
      ValueError: there are no images, or captions or heat differ in number.

    Example:
      >>> images, heat = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8))
      >>> figure = image_grid(images, ["a cat", "a dog"], heat=heat)
      >>> [axis.get_xlabel() for axis in figure.axes]
      ['a cat', '', 'a dog', '']
    """
    n = len(images)
    if not n or len(captions) != n or (heat is not None and len(heat) != n):
        raise ValueError(
            f"there are {n} images and {len(captions)} captions; expected as many of each, and some"
        )
    cells_per_image = 1 if heat is None else 2
    columns = min(columns, n)
    rows = -(-n // columns)
    width = columns * cells_per_image * (SIDE + 0.08) + 0.2
    caption_width = cells_per_image * SIDE
    texts = [wrap(printable(text), SMALL, caption_width, plain=True) for text in captions]
    caption_height = 1.45 * SMALL / 72 * max(text.count("\n") + 1 for text in texts)
    figure = new_figure(width, rows * (SIDE + caption_height + 0.12), title=title)
    cells = figure.add_gridspec(rows, columns * cells_per_image)
    for i, image in enumerate(np.broadcast_to(images, (*images.shape[:3], 3))):
        row, column = divmod(i, columns)
        pair = [image] if heat is None else [image, overlay(image, heat[i])]
        for j, pixels in enumerate(pair):
            axis = figure.add_subplot(cells[row, column * cells_per_image + j])
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.imshow(pixels, interpolation="nearest")
            if j == 0:
                style = plain_text_style(texts[i])
                axis.set_xlabel(texts[i], fontsize=SMALL, loc="left", **style)
    return figure
