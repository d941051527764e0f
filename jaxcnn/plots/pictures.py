"""Pictures in rows, each with what is to be said of it below, and beside it, if it is given, where the network looked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from jaxcnn.plots.style import SMALL, sheet, wrap
from jaxcnn.plots.text import plain, text_style

HEAT = colormaps["inferno"]
SIDE = 1.7
"""Of a picture, in inches."""


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture under a heat map: grey, and the more of the map's colour the hotter.

    Args:
      image: uint8 [h, w, 3].
      heat: float [h, w] in 0..1, such as `jaxcnn.interpret.gradcam` gives.

    Returns:
      uint8 [h, w, 3].

    Example:
      >>> overlay(np.full((1, 2, 3), 100, np.uint8), np.array([[0.0, 1.0]])).tolist()
      [[[100, 100, 100], [214, 216, 148]]]
    """
    grey = image.astype(np.float64) @ np.array([0.2126, 0.7152, 0.0722])  # ITU-R BT.709
    share = 0.75 * heat[..., None].astype(np.float64)
    mixed = (1 - share) * grey[..., None] + share * 255 * np.asarray(HEAT(heat))[..., :3]
    return np.round(mixed).astype(np.uint8)


def pictures(
    images: np.ndarray, captions: Sequence[str], *, heat: np.ndarray | None = None, columns: int = 4, title: str = ""
) -> Figure:
    r"""Pictures in rows, from the left, with captions below them.

    Args:
      images: uint8 [n, h, w, 3] or [n, h, w, 1], n > 0.
      captions: n texts, drawn as they are, without formulas; lines that are too long are broken.
      heat: float [n, h, w] in 0..1, drawn over a grey copy beside each; None for none.
      columns: how many to a row.
      title: above the figure.

    Raises:
      ValueError: for no images, or captions or heat of another number.

    Example:
      >>> figure = pictures(np.zeros((2, 8, 8, 3), np.uint8), ["a cat", "a dog"], heat=np.zeros((2, 8, 8)))
      >>> [axis.get_xlabel() for axis in figure.axes]
      ['a cat', '', 'a dog', '']
    """
    if not len(images) or len(captions) != len(images) or (heat is not None and len(heat) != len(images)):
        raise ValueError(
            f"there are {len(images)} images and {len(captions)} captions; expected as many of each, and some"
        )
    each = 1 if heat is None else 2
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width = columns * each * (SIDE + 0.08) + 0.2
    texts = [wrap(plain(text), SMALL, each * SIDE, plain=True) for text in captions]
    below = 1.45 * SMALL / 72 * max(text.count("\n") + 1 for text in texts)
    figure = sheet(width, rows * (SIDE + below + 0.12), title=title)
    cells = figure.add_gridspec(rows, columns * each)
    for i, image in enumerate(np.broadcast_to(images, (*images.shape[:3], 3))):
        row, column = divmod(i, columns)
        beside = [image] if heat is None else [image, overlay(image, heat[i])]
        for j, shown in enumerate(beside):
            axis = figure.add_subplot(cells[row, column * each + j])
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.imshow(shown, interpolation="nearest")
            if j == 0:
                axis.set_xlabel(texts[i], fontsize=SMALL, loc="left", **text_style(texts[i]))
    return figure
