"""Tiles: images and small tables side by side, with signs between them.

They show the steps of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxcnn.plots.image_grid import draw_color_bar
from jaxcnn.plots.style import (
    COLORS,
    DPI,
    LABEL,
    SMALL,
    TICK,
    TITLE,
    new_figure,
    plain_text_style,
    printable,
    text_width,
    wrap,
)


class Frame(NamedTuple):
    """A frame around cells of a tile.

    Attributes:
      row: first row of the frame, in cells.
      column: first column, in cells.
      height: rows.
      width: columns.
      color: color of the lines.
      inset: distance from the edge, in cells, so that adjacent frames stay distinct.
    """

    row: float
    column: float
    height: int
    width: int
    color: str = COLORS[1]
    inset: float = 0.04


class Tile(NamedTuple):
    """An image, or a table of numbers as colored cells.

    Attributes:
      pixels: values [h, w], or an RGB image [h, w, 3] in 0..1. A nan is left white.
      title: text above.
      note: small text below.
      fmt: format of the number in each cell, as in `format`. None has no numbers and no grid lines.
      cmap: color map of matplotlib. "Blues" is for tables, "RdBu_r" for numbers of both signs.
      limits: values with the outermost colors; None is the least and the greatest.
      frames: frames around cells.
      margin: number of rows and columns at each edge that are pale padding.
      share: height as a fraction of the row's.

    Example:
      >>> Tile(np.eye(3), "identity", fmt="g").pixels.shape
      (3, 3)
    """

    pixels: np.ndarray
    title: str = ""
    note: str = ""
    fmt: str | None = None
    cmap: str = "gray"
    limits: tuple[float, float] | None = None
    frames: Sequence[Frame] = ()
    margin: int = 0
    share: float = 1.0


PALE = (0.93, 0.93, 0.93, 1.0)
SIGN_WIDTH = 0.45
"""Minimal width of a sign between two tiles, in inches."""
BAR_WIDTH = 1.2
"""Width of a color bar with its numbers and its label, in inches."""
Row = Sequence[Tile | str]


def tiles(
    rows: Sequence[Row],
    *,
    title: str = "",
    heights: float | Sequence[float] = 2.2,
    bar: str = "",
    cmap: str = "inferno",
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw rows of tiles with signs such as "=" between them.

    Args:
      rows: from above. Rows with as many tiles of the same shape are aligned in columns.
      title: above the figure.
      heights: of the tiles of each row, in inches.
      bar: label, with its unit, of a color bar on the right; "" has no bar.
      cmap: color map of the bar.
      limits: of the bar.

    Raises:
      ValueError: there are no tiles, pixels have another shape, or the number of heights differs.

    Example:
      >>> ones, zeros = Tile(np.ones((2, 2)), "ones"), Tile(np.zeros((2, 2)), "zeros")
      >>> figure = tiles([[ones, "+", zeros]])
      >>> [axis.get_title() for axis in figure.axes]
      ['ones', '', 'zeros']
      >>> [text.get_text() for text in figure.axes[1].texts]
      ['+']
    """
    sizes = [heights] * len(rows) if isinstance(heights, (int, float)) else list(heights)
    _check(rows, sizes)
    natural = [[_width(cell, size) for cell in row] for row, size in zip(rows, sizes, strict=True)]
    width = max(map(sum, natural))
    # Every row is as wide as the figure.
    widths = [[cell * width / sum(row) for cell in row] for row in natural]
    text_heights = [max(map(_text_height, row, ws)) for row, ws in zip(rows, widths, strict=True)]
    # More than enough, since the widths decide.
    row_heights = [size + 0.25 + text for size, text in zip(sizes, text_heights, strict=True)]
    figure = new_figure(width + 0.3 + BAR_WIDTH * bool(bar), sum(row_heights), title=title)
    grid = figure.add_gridspec(len(rows), 1, height_ratios=row_heights)
    for i, (row, ws) in enumerate(zip(rows, widths, strict=True)):
        cells = grid[i].subgridspec(1, len(row), width_ratios=ws)
        for j, cell in enumerate(row):
            axis = figure.add_subplot(cells[j])
            if isinstance(cell, str):
                _draw_sign(axis, cell)
            else:
                _draw_tile(axis, cell, ws[j], sizes[i])
    if bar:
        scale = ScalarMappable(Normalize(*limits), colormaps[cmap])
        _draw_color_bar(figure, scale, bar)
    return figure


def _draw_color_bar(figure: Figure, scale: ScalarMappable, label: str) -> None:
    """Draw a color bar in a column that the layout of the tiles leaves free."""
    width, height = figure.get_size_inches()
    figure.get_layout_engine().set(rect=(0, 0, 1 - BAR_WIDTH / width, 1))  # type: ignore[union-attr]
    length = min(3.0, 0.6 * height)
    box = (1 - (BAR_WIDTH - 0.1) / width, 0.5 - length / height / 2, 0.16 / width, length / height)
    axis = figure.add_axes(box, label="<colorbar>")
    axis.set_in_layout(False)
    draw_color_bar(figure, scale, axis, label, height, inside=True)


def _check(rows: Sequence[Row], heights: Sequence[float]) -> None:
    cells = [cell for row in rows for cell in row if isinstance(cell, Tile)]
    if not cells or len(heights) != len(rows) or not all(rows):
        raise ValueError(
            f"there are {len(cells)} tiles in {len(rows)} rows with {len(heights)} heights; "
            "expected a height each"
        )
    for tile in cells:
        shape = np.shape(tile.pixels)
        if len(shape) not in (2, 3) or 0 in shape or shape[2:] not in ((), (3,)):
            raise ValueError(
                f"the tile {tile.title!r} has pixels of shape {shape}; expected [h, w] or [h, w, 3]"
            )


def _width(cell: Tile | str, height: float) -> float:
    if isinstance(cell, str):
        return max(SIGN_WIDTH, text_width(cell, TITLE + 4) + 0.15)
    return cell.share * height * cell.pixels.shape[1] / cell.pixels.shape[0] + 0.25


def _text_height(cell: Tile | str, width: float) -> float:
    """Return the height of the title and the note, in inches."""
    if isinstance(cell, str):
        return 0.0
    title, note = _texts(cell, width)
    title_points = 1.35 * LABEL * (title.count("\n") + 1) * bool(title)
    return (title_points + 1.4 * TICK * (note.count("\n") + 1) * bool(note)) / 72


def _texts(tile: Tile, width: float) -> tuple[str, str]:
    title = wrap(printable(tile.title), LABEL, width, plain=True)
    return title, wrap(printable(tile.note), TICK, width, plain=True)


def _draw_sign(axis: Axes, text: str) -> None:
    axis.set_axis_off()
    style: dict[str, Any] = {"ha": "center", "va": "center", "transform": axis.transAxes}
    axis.text(0.5, 0.5, text, fontsize=TITLE + 4, **style)


def _draw_tile(axis: Axes, tile: Tile, width: float, height: float) -> None:
    title, note = _texts(tile, width)
    axis.set_title(title, fontsize=LABEL, pad=5, **plain_text_style(title))
    axis.set_xlabel(note, fontsize=TICK, labelpad=4, **plain_text_style(note))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_aspect("equal")
    axis.set_anchor("C")
    if tile.pixels.ndim == 3:
        pixel = DPI * tile.share * height / len(tile.pixels)
        # Matplotlib's smoothing would blur pixels that are meant to be seen.
        style: Any = {"interpolation": "nearest" if pixel > 1 else "antialiased"}
        axis.imshow(np.clip(tile.pixels, 0, 1), **style)
    else:
        _draw_table(axis, tile, 72 * tile.share * height / tile.pixels.shape[0])
    for frame in tile.frames:
        inset = frame.inset
        corner = frame.column - 0.5 + inset, frame.row - 0.5 + inset
        style = {
            "fill": False,
            "edgecolor": frame.color,
            "linewidth": 3,
            "zorder": 4,
            "clip_on": False,
        }
        size = frame.width - 2 * inset, frame.height - 2 * inset
        axis.add_patch(Rectangle(corner, *size, **style))


def _draw_table(axis: Axes, tile: Tile, cell: float) -> None:
    """Draw the colors of a table.

    It has lines and numbers if the tile has a format.

    Args:
      axis: to draw on.
      tile: with pixels [h, w].
      cell: side of a cell, in points.
    """
    finite = tile.pixels[np.isfinite(tile.pixels)]
    low, high = tile.limits or ((finite.min(), finite.max()) if finite.size else (0.0, 1.0))
    norm = Normalize(low, high if high > low else low + 1)
    colors = colormaps[tile.cmap](norm(np.ma.masked_invalid(tile.pixels)))
    rows, columns = tile.pixels.shape[:2]
    y, x = np.indices((rows, columns))
    distance = np.minimum(np.minimum(y, rows - 1 - y), np.minimum(x, columns - 1 - x))
    is_margin = distance < tile.margin
    colors[is_margin] = PALE
    axis.imshow(colors, interpolation="nearest" if tile.fmt is not None else "antialiased")
    if tile.fmt is not None:
        style: dict[str, Any] = {"color": "0.6", "linewidth": 0.8, "clip_on": False}
        axis.vlines(np.arange(columns + 1) - 0.5, -0.5, rows - 0.5, **style)
        axis.hlines(np.arange(rows + 1) - 0.5, -0.5, columns - 0.5, **style)
        _write_numbers(axis, tile, colors, is_margin, cell)


def _write_numbers(
    axis: Axes, tile: Tile, colors: np.ndarray, is_margin: np.ndarray, cell: float
) -> None:
    """Write the numbers in the cells.

    The font has a size at which the longest number fits. It is dark on bright cells and bright on
    dark ones.
    """
    texts = [
        (*index, format(value, tile.fmt or ""))
        for index, value in np.ndenumerate(tile.pixels)
        if np.isfinite(value)
    ]
    longest = max((text_width(text, 10) for *_, text in texts), default=0.1)
    size = min(SMALL + 4, 0.62 * cell, 10 * 0.82 * cell / 72 / longest)
    style: dict[str, Any] = {"fontsize": size, "ha": "center", "va": "center_baseline"}
    for y, x, text in texts:
        # Luminance of ITU-R BT.709.
        is_dark = colors[y, x, :3] @ (0.2126, 0.7152, 0.0722) < 0.45
        color = "0.55" if is_margin[y, x] else "white" if is_dark else "black"
        axis.text(x, y, text, color=color, **style)
