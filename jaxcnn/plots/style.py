"""What the figures share: colours, sizes of letters, the title above and the one legend below the axes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from jaxcnn.plots.text import properties

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, told apart by the colour-blind too."""
RED = "#C00000"
"""Of crosses, where training diverged. Their shape says it too."""
DASHES: Sequence[tuple[Any, Any]] = (
    ("-", "--"),
    ((0, (1, 1)), (0, (1, 3))),
    ((0, (5, 1.5, 1, 1.5)), (0, (5, 4, 1, 4))),
    ((0, (5, 1, 1, 1, 1, 1)), (0, (5, 4, 1, 2, 1, 4))),
)
"""Of each turn of the colours, the pattern of its solid and of its dashed lines."""
TITLE, LABEL, TICK, SMALL = 14, 13, 11, 10
"""Sizes of letters, in points: panel's title; axis label and legend; numbers at ticks; text inside the axes."""


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG at 160 dots an inch."""
    figure.savefig(path, dpi=160)


def sheet(width: float, height: float, *, title: str = "", handles: Sequence[Artist] = ()) -> Figure:
    """A figure with its title and its legend, which add to `height` and so take nothing from the axes; inches.

    Example:
      >>> sheet(4.0, 3.0, title="Depth").get_suptitle()
      'Depth'
    """
    title = wrap(title, TITLE + 1, width - 0.2)
    columns = _columns(width, handles)
    lines = 1.45 * math.ceil(len(handles) / columns) * LABEL + 1.4 * title.count("\n") * TITLE + 22 * bool(title)
    figure = Figure(figsize=(width, height + lines / 72))
    figure.set_layout_engine("constrained", w_pad=0.07, h_pad=0.07)
    if title:
        figure.suptitle(title, fontsize=TITLE + 1)
    if handles:
        place: Any = "outside lower center"
        style: dict[str, Any] = {"fontsize": LABEL - 1, "frameon": False, "handlelength": 2.6}
        figure.legend(handles=list(handles), loc=place, ncols=columns, **style)
    return figure


def _columns(width: float, handles: Sequence[Artist]) -> int:
    """As many columns of the legend as fit; matplotlib fills them one after another."""
    size = LABEL - 1
    widths = np.array([extent(str(handle.get_label()), size) + 5.6 * size / 72 for handle in handles])
    for n in range(len(handles), 1, -1):
        if sum(part.max() for part in np.array_split(widths, n)) <= width:
            return n
    return 1


def tidy(axis: Axes, title: str, *, width: float, pad: float = 8) -> None:
    """Letters of readable size, a pale grid behind everything and no frame above and on the right.

    Args:
      axis: what it is about.
      title: above it, broken into lines no wider than `width`.
      width: of the panel, in inches.
      pad: between the title and the axes, in points.
    """
    axis.set_title(wrap(title, TITLE, width - 0.15), fontsize=TITLE, pad=pad)
    axis.xaxis.label.set_fontsize(LABEL)
    axis.yaxis.label.set_fontsize(LABEL)
    axis.tick_params(labelsize=TICK)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def extent(text: str, size: float, *, plain: bool = False) -> float:
    """How wide one line of text is, in inches; `size` in points. A `plain` text has no formulas.

    Example:
      >>> extent("wide" * 2, 10) > 1.9 * extent("wide", 10)
      True
    """
    if not text.strip():
        return 0.0
    fonts = properties(text) if plain else None
    return (
        float(TextPath((0, 0), text.replace("$", r"\$") if plain else text, size=size, prop=fonts).get_extents().width)
        / 72
    )


def wrap(text: str, size: float, inches: float, *, plain: bool = False) -> str:
    r"""The text broken at spaces, but not at those within $formulas$, into lines no wider than `inches` where it can be.

    In a `plain` text a dollar sign is a dollar sign.

    Example:
      >>> wrap("sharpness and $2 / \\eta$", size=10, inches=1.0)
      'sharpness and\n$2 / \\eta$'
    """
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in re.findall(r"\S+" if plain else r"(?:\$[^$]*\$|\S)+", paragraph):
            longer = f"{line} {word}".strip()
            if line and extent(longer, size, plain=plain) > inches:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return "\n".join(lines)
