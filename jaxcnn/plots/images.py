"""Pictures and small tables of numbers side by side, with signs between them: what a layer does, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxcnn.plots.style import COLOURS, LABEL, SMALL, TICK, TITLE, extent, sheet, wrap
from jaxcnn.plots.text import plain, text_style


class Frame(NamedTuple):
    """A frame around cells of a tile."""

    row: float
    column: float
    height: int
    width: int
    colour: str = COLOURS[1]
    inset: float = 0.04
    """In cells, so that frames side by side can be told apart."""


class Tile(NamedTuple):
    """A picture, or a table of numbers as coloured cells.

    Example:
      >>> Tile(np.eye(3), "identity", form="g").pixels.shape
      (3, 3)
    """

    pixels: np.ndarray
    """[h, w], coloured by value, nan left white; or [h, w, 3] in 0..1, a picture in its own colours."""
    title: str = ""
    note: str = ""
    """In small letters below."""
    form: str | None = None
    """How the number in each cell is written, as in `format`; None writes none and draws no lines between cells."""
    colours: str = "gray"
    """A colour map of matplotlib: "Blues" for tables, "RdBu_r" for numbers on both sides of 0."""
    limits: tuple[float, float] | None = None
    """The values with the outermost colours; None is the least and the greatest."""
    frames: Sequence[Frame] = ()
    margin: int = 0
    """So many rows and columns of cells all around are padding, and pale."""
    share: float = 1.0
    """Of the row's height."""


PALE = (0.93, 0.93, 0.93, 1.0)
SIGN = 0.45
"""The width of a sign between two tiles, in inches."""
Row = Sequence[Tile | str]


def tiles(rows: Sequence[Row], *, title: str = "", heights: float | Sequence[float] = 2.2) -> Figure:
    """Rows of tiles and, between them, signs such as "=" or an arrow.

    Args:
      rows: from above; those with as many tiles of the same shape stand in columns.
      title: above the figure.
      heights: of the tiles of each row, in inches.

    Raises:
      ValueError: for no tiles, pixels of another shape, or another number of heights.

    Example:
      >>> figure = tiles([[Tile(np.ones((2, 2)), "ones", form="g"), "+", Tile(np.zeros((2, 2)), "zeros", form="g")]])
      >>> [axis.get_title() for axis in figure.axes], [text.get_text() for text in figure.axes[1].texts]
      (['ones', '', 'zeros'], ['+'])
    """
    sizes = [heights] * len(rows) if isinstance(heights, (int, float)) else list(heights)
    _check(rows, sizes)
    given = [[_width(cell, high) for cell in row] for row, high in zip(rows, sizes, strict=True)]
    width = max(map(sum, given))
    widths = [[one * width / sum(row) for one in row] for row in given]  # every row is as wide as the figure
    above = [max(map(_lines, row, wide)) for row, wide in zip(rows, widths, strict=True)]
    high = [size + 0.25 + lines for size, lines in zip(sizes, above, strict=True)]  # more than enough: widths decide
    figure = sheet(width + 0.3, sum(high), title=title)
    grid = figure.add_gridspec(len(rows), 1, height_ratios=high)
    for i, (row, ws) in enumerate(zip(rows, widths, strict=True)):
        cells = grid[i].subgridspec(1, len(row), width_ratios=ws)
        for j, cell in enumerate(row):
            axis = figure.add_subplot(cells[j])
            _sign(axis, cell) if isinstance(cell, str) else _draw(axis, cell, ws[j], sizes[i])
    return figure


def _check(rows: Sequence[Row], heights: Sequence[float]) -> None:
    cells = [cell for row in rows for cell in row if isinstance(cell, Tile)]
    if not cells or len(heights) != len(rows) or not all(rows):
        raise ValueError(
            f"there are {len(cells)} tiles in {len(rows)} rows with {len(heights)} heights; expected a height each"
        )
    for tile in cells:
        shape = np.shape(tile.pixels)
        if len(shape) not in (2, 3) or 0 in shape or shape[2:] not in ((), (3,)):
            raise ValueError(f"the tile {tile.title!r} has pixels of shape {shape}; expected [h, w] or [h, w, 3]")


def _width(cell: Tile | str, height: float) -> float:
    if isinstance(cell, str):
        return max(SIGN, extent(cell, TITLE + 4) + 0.15)
    return cell.share * height * cell.pixels.shape[1] / cell.pixels.shape[0] + 0.25


def _lines(cell: Tile | str, width: float) -> float:
    """The height of the title and the note, in inches."""
    if isinstance(cell, str):
        return 0.0
    title, note = _texts(cell, width)
    return (
        1.35 * LABEL * (title.count("\n") + 1) * bool(title) + 1.4 * TICK * (note.count("\n") + 1) * bool(note)
    ) / 72


def _texts(tile: Tile, width: float) -> tuple[str, str]:
    return wrap(plain(tile.title), LABEL, width, plain=True), wrap(plain(tile.note), TICK, width, plain=True)


def _sign(axis: Axes, text: str) -> None:
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, fontsize=TITLE + 4, ha="center", va="center", transform=axis.transAxes)


def _draw(axis: Axes, tile: Tile, width: float, height: float) -> None:
    title, note = _texts(tile, width)
    axis.set_title(title, fontsize=LABEL, pad=5, **text_style(title))
    axis.set_xlabel(note, fontsize=TICK, labelpad=4, **text_style(note))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_aspect("equal")
    axis.set_anchor("C")
    if tile.pixels.ndim == 3:
        axis.imshow(np.clip(tile.pixels, 0, 1))
    else:
        _table(axis, tile, 72 * tile.share * height / tile.pixels.shape[0])
    for row, column, high, wide, colour, inset in tile.frames:
        style: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 3, "zorder": 4, "clip_on": False}
        corner = column - 0.5 + inset, row - 0.5 + inset
        axis.add_patch(Rectangle(corner, wide - 2 * inset, high - 2 * inset, **style))


def _table(axis: Axes, tile: Tile, cell: float) -> None:
    """The colours of [h, w] and, where asked for, lines and numbers in cells of so many points."""
    known = tile.pixels[np.isfinite(tile.pixels)]
    low, high = tile.limits or ((known.min(), known.max()) if known.size else (0.0, 1.0))
    norm = Normalize(low, high if high > low else low + 1)
    shown = colormaps[tile.colours](norm(np.ma.masked_invalid(tile.pixels)))
    rows, columns = tile.pixels.shape[:2]
    y, x = np.indices((rows, columns))
    border = np.minimum(np.minimum(y, rows - 1 - y), np.minimum(x, columns - 1 - x)) < tile.margin
    shown[border] = PALE
    axis.imshow(shown, interpolation="nearest" if tile.form is not None else "antialiased")
    if tile.form is not None:
        lines: dict[str, Any] = {"color": "0.6", "linewidth": 0.8, "clip_on": False}
        axis.vlines(np.arange(columns + 1) - 0.5, -0.5, rows - 0.5, **lines)
        axis.hlines(np.arange(rows + 1) - 0.5, -0.5, columns - 0.5, **lines)
        _numbers(axis, tile, shown, border, cell)


def _numbers(axis: Axes, tile: Tile, shown: np.ndarray, border: np.ndarray, cell: float) -> None:
    """What is written in the cells: letters that the longest has room for, dark on bright and bright on dark."""
    texts = [(*at, format(value, tile.form or "")) for at, value in np.ndenumerate(tile.pixels) if np.isfinite(value)]
    longest = max((extent(text, 10) for *_, text in texts), default=0.1)
    style: dict[str, Any] = {"fontsize": min(SMALL + 4, 0.62 * cell, 10 * 0.82 * cell / 72 / longest)}
    for y, x, text in texts:
        dark = shown[y, x, :3] @ (0.2126, 0.7152, 0.0722) < 0.45  # by luminance (ITU-R BT.709)
        colour = "0.55" if border[y, x] else "white" if dark else "black"
        axis.text(x, y, text, ha="center", va="center_baseline", color=colour, **style)
