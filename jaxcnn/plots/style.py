"""Shared style of the figures: colors, text, ticks, title and legend."""

from __future__ import annotations

import io
import logging
import math
import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogFormatterMathtext, LogLocator, MaxNLocator
from PIL import Image

from jaxcnn._util import write_atomically

log = logging.getLogger("jaxcnn.plots")

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colors, which color-blind readers can distinguish too."""
RED = "#C00000"
"""Color of crosses, where training diverged; their shape shows it too."""
DASHES: Sequence[tuple[Any, Any]] = (
    ("-", "--"),
    ((0, (1, 1)), (0, (1, 3))),
    ((0, (5, 1.5, 1, 1.5)), (0, (5, 4, 1, 4))),
    ((0, (5, 1, 1, 1, 1, 1)), (0, (5, 4, 1, 2, 1, 4))),
)
"""Patterns of (solid, dashed) lines, for each repetition of the colors."""
TITLE, LABEL, TICK, SMALL = 14, 13, 11, 10
"""Font sizes, in points.

They are for a panel's title, for axis label and legend, for numbers at ticks, and for text inside
the axes.
"""

# ---------------------------------------------------------------- figures


DPI, SHOWN_DPI = 160, 80
"""Dots of a PNG to an inch of a figure, and those of a notebook that shows it, half as many."""
MAX_PALETTE_ERROR = 2.5
"""Mean error of a PNG's colors, of 255, from which a palette is visible."""
COLOR_STEP = 5
"""Step of the colors of a PNG without a palette, of 255. The error is at most 2."""


class NotebookFigure(Figure):
    """A figure that notebooks show as an image.

    Only pyplot's figures show themselves, and pyplot keeps every figure of the process.

    Example:
      >>> image, size = NotebookFigure(figsize=(2, 1))._repr_png_()
      >>> image[1:4], size
      (b'PNG', {'width': 160, 'height': 80})
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return the PNG and the size in pixels to show it at, for IPython's display."""
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=DPI)
        width, height = self.get_size_inches()
        size = {"width": round(SHOWN_DPI * width), "height": round(SHOWN_DPI * height)}
        return content.getvalue(), size


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure, such as a PNG at 160 dots an inch.

    Equal figures have equal bytes, as no date is written. A PNG is small: it has a palette of 256
    colors where that is not visible, else colors in steps of 5 of 255.

    Args:
      figure: to write.
      path: of the file, whose suffix is the format: png, svg or pdf. Without one it is a PNG.
    """
    path = Path(path)
    if not path.suffix:
        path = path.with_name(f"{path.name}.png")
    kind = path.suffix[1:].lower()
    kwargs: dict[str, Any] = {
        "svg": {"metadata": {"Date": None}},
        "pdf": {"metadata": {"CreationDate": None}},
    }.get(kind, {})
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "jaxcnn"}):
        figure.savefig(buffer, format=kind, dpi=DPI, **kwargs)
    content = small_png(buffer.getvalue()) if kind == "png" else buffer.getvalue()
    # Two processes that finish a study at once may both draw it.
    write_atomically(path, content)


def small_png(content: bytes) -> bytes:
    """Return a PNG with fewer colors, in a third to three quarters of the bytes.

    It has a palette of 256 colors if they differ by at most `MAX_PALETTE_ERROR` on average, over
    the pixels that are not white. Photographs need more colors. Theirs are rounded to multiples of
    `COLOR_STEP`. A PNG with transparent pixels stays as it is.
    """
    image = Image.open(io.BytesIO(content))
    dpi = image.info.get("dpi")
    if "A" in image.getbands() and image.getchannel("A").getextrema()[0] != 255:
        return content
    image = image.convert("RGB")
    colors = np.asarray(image)
    is_drawn = (colors < 255).any(-1)
    palette = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    differences = np.abs(
        np.asarray(palette.convert("RGB"))[is_drawn].astype(int) - colors[is_drawn]
    )
    if differences.size and differences.max(-1).mean() > MAX_PALETTE_ERROR:
        # 255 is such a multiple, so white stays.
        rounded = np.round(colors / COLOR_STEP) * COLOR_STEP
        palette = Image.fromarray(rounded.astype(np.uint8))
    buffer = io.BytesIO()
    # Pillow's own strategy is for photographs: lines and text take a tenth more.
    strategy = zlib.Z_DEFAULT_STRATEGY
    palette.save(buffer, "png", dpi=dpi, compress_level=9, compress_type=strategy)
    return buffer.getvalue()


def new_figure(
    width: float, height: float, *, title: str = "", handles: Sequence[Artist] = ()
) -> Figure:
    """Return a figure with its title and its legend.

    Both add to `height`, and so take nothing from the axes. Sizes are in inches.

    Example:
      >>> new_figure(4.0, 3.0, title="Depth").get_suptitle()
      'Depth'
    """
    title = wrap(title, TITLE + 1, width - 0.2)
    columns = legend_columns(width, handles)
    legend_points = 1.45 * math.ceil(len(handles) / columns) * LABEL
    points = legend_points + 1.4 * title.count("\n") * TITLE + 22 * bool(title)
    figure = NotebookFigure(figsize=(width, height + points / 72))
    figure.set_layout_engine("constrained", w_pad=0.07, h_pad=0.07)
    if title:
        figure.suptitle(title, fontsize=TITLE + 1)
    if handles:
        location: Any = "outside lower center"
        style: dict[str, Any] = {"fontsize": LABEL - 1, "frameon": False, "handlelength": 2.6}
        figure.legend(handles=list(handles), loc=location, ncols=columns, **style)
    return figure


def legend_columns(width: float, handles: Sequence[Artist]) -> int:
    """Return the largest number of the legend's columns that fit.

    Matplotlib fills the columns one after another.
    """
    size = LABEL - 1
    widths = np.array(
        [text_width(str(handle.get_label()), size) + 5.6 * size / 72 for handle in handles]
    )
    for n in range(len(handles), 1, -1):
        if sum(part.max() for part in np.array_split(widths, n)) <= width:
            return n
    return 1


def style_axes(axis: Axes, title: str, *, panel_width: float, pad: float = 8) -> None:
    """Set font sizes, a pale grid and an open frame.

    The frame has no lines above and on the right.

    Args:
      axis: the axes to change.
      title: above it, broken into lines no wider than the panel.
      panel_width: in inches.
      pad: between the title and the axes, in points.
    """
    axis.set_title(wrap(title, TITLE, panel_width - 0.15), fontsize=TITLE, pad=pad)
    axis.xaxis.label.set_fontsize(LABEL)
    axis.yaxis.label.set_fontsize(LABEL)
    axis.tick_params(which="both", labelsize=TICK)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


# ---------------------------------------------------------------- sizes of text


def text_width(text: str, size: float, *, plain: bool = False) -> float:
    """Return the width of one line of text, in inches.

    Args:
      text: one line.
      size: of the font, in points.
      plain: the text has no formulas.

    Example:
      >>> text_width("wide" * 2, 10) > 1.9 * text_width("wide", 10)
      True
    """
    if not text.strip():
        return 0.0
    fonts = font_properties(text) if plain else None
    text = text.replace("$", r"\$") if plain else text
    return _outline_width(TextPath((0, 0), text, size=size, prop=fonts)) / 72


def _outline_width(outline: Outline) -> float:
    """Return the width of an outline, as `outline.get_extents().width`.

    Matplotlib looks at curve after curve, and a figure has thousands: over a third of its time.
    """
    if outline.codes is None or (np.asarray(outline.codes) == Outline.CURVE4).any():
        return float(outline.get_extents().width)
    x, codes = np.asarray(outline.vertices)[:, 0], np.asarray(outline.codes)
    # A quadratic curve has two entries: its control point and its end.
    control = np.flatnonzero(codes == Outline.CURVE3)[::2]
    start, middle, end = x[control - 1], x[control], x[control + 1]
    # It turns where its derivative is zero, at a share of its way from 0 to 1.
    turns = (start - middle) * (end - middle) > 0
    start, middle, end = start[turns], middle[turns], end[turns]
    share = (start - middle) / (start - 2 * middle + end)
    turn = (1 - share) ** 2 * start + 2 * (1 - share) * share * middle + share**2 * end
    ends = x[np.isin(codes, [Outline.MOVETO, Outline.LINETO])]
    points = np.concatenate([ends, x[control + 1], turn])
    return float(np.ptp(points)) if len(points) else 0.0


def wrap(text: str, size: float, inches: float, *, plain: bool = False) -> str:
    r"""Break text into lines no wider than `inches`, where possible.

    Lines break at spaces, but not at those within $formulas$. In a `plain` text a dollar sign is a
    dollar sign.

    Example:
      >>> wrap("sharpness and $2 / \\eta$", size=10, inches=1.0)
      'sharpness and\n$2 / \\eta$'
    """
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in re.findall(r"\S+" if plain else r"(?:\$[^$]*\$|\S)+", paragraph):
            longer = f"{line} {word}".strip()
            if line and text_width(longer, size, plain=plain) > inches:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return "\n".join(lines)


# ---------------------------------------------------------------- plain text, as names of files

_WITHOUT_OUTLINES = re.compile(r"emoji|color|last ?resort", re.IGNORECASE)


def printable(text: str) -> str:
    r"""Replace control characters by escapes, and unavailable characters by U+FFFD.

    A warning names the characters that no installed font has. Text of users, such as names of
    classes and files, is drawn like this.

    Example:
      >>> printable("cost in $ \x1b[31m")
      'cost in $ \\x1b[31m'
    """
    text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    missing = _families(text)[1]
    return "".join("\N{REPLACEMENT CHARACTER}" if c in missing else c for c in text)


def plain_text_style(*texts: str) -> dict[str, Any]:
    """Return arguments of matplotlib's `Text` for plain texts.

    They turn off mathtext, and select fonts that have the characters.

    Example:
      >>> plain_text_style("cat")
      {'parse_math': False, 'fontfamily': ['sans-serif']}
    """
    return {"parse_math": False, "fontfamily": list(_families("".join(texts))[0])}


def font_properties(text: str) -> FontProperties:
    """Return the fonts of `plain_text_style`, for measuring a text."""
    return FontProperties(family=list(_families(text)[0]))


def _families(text: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the font families for a text, and its missing characters.

    The default family comes first.
    """
    default = rcParams["font.family"]
    default = (default,) if isinstance(default, str) else tuple(default)
    uncommon = frozenset(c for c in text if ord(c) > 0x7E)
    if not uncommon:
        return default, frozenset()
    fallback, missing = _fallback_families(default, uncommon)
    return default + fallback, missing


@lru_cache(1000)
def _fallback_families(
    default: tuple[str, ...], characters: frozenset[str]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return further families for characters, and those that no installed font has."""
    missing = characters
    for family in default:
        missing = missing - _covered(findfont(FontProperties(family=[family])))
    families: list[str] = []
    if missing:
        for font in sorted(fontManager.ttflist, key=_font_order):
            if covered := missing & _covered(font.fname):
                families.append(font.name)
                missing = missing - covered
            if not missing:
                break
    if missing:
        examples = "".join(sorted(missing)[:20])
        log.warning(
            "no installed font has the characters %s; install one, such as Noto Sans CJK", examples
        )
    return tuple(families), missing


def _font_order(font: FontEntry) -> tuple[Any, ...]:
    """Return a sort key with upright sans-serif fonts of normal weight first."""
    is_bold = font.weight not in (400, "normal")
    return ("Sans" not in font.name, font.style != "normal", is_bold, font.name, font.fname)


@lru_cache(None)
def _covered(path: str) -> frozenset[str]:
    """Return the characters of a font file.

    There are none for a font with bitmaps instead of outlines, or one that cannot be read.
    """
    if _WITHOUT_OUTLINES.search(path):
        return frozenset()
    try:
        return frozenset(map(chr, get_font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


# ---------------------------------------------------------------- ticks

MIN_POWERS = 3
"""Powers of ten on an axis, of which fewer are too few numbers."""
MINOR_NUMBERS: Sequence[tuple[float, tuple[int, ...]]] = (
    (0.35, (1, 2, 3, 4, 5, 6, 7, 8, 9)),
    (0.8, (1, 2, 3, 5)),
    (1.5, (1, 2, 5)),
    (math.inf, (1, 3)),
)
"""Length of an axis in decades, and the leading digits that have numbers on a shorter one."""


def set_ticks(axis: Axis, *, log: bool, panel_width: float, whole: bool = False) -> None:
    """Set the ticks of an axis, as many as fit, and a logarithmic scale.

    A linear horizontal axis has the numbers of `tick_label`. A logarithmic one has powers of ten,
    or plain numbers where there are fewer than `MIN_POWERS` of them.

    Args:
      axis: the axis to change, horizontal or vertical.
      log: make it logarithmic; else its scale stays as it is, linear by default.
      panel_width: in inches. It bounds the number of ticks of both axes.
      whole: ticks at whole numbers alone, as for epochs. A logarithmic axis ignores it.
    """
    if log:
        name = axis.axis_name  # pyright: ignore[reportAttributeAccessIssue]
        axis.axes.set(**{f"{name}scale": "log"})
        powers = LogFormatterMathtext()
        powers.set_axis(axis)
        axis.set_major_locator(LogLocator(numticks=max(3, int(1.6 * panel_width))))
        axis.set_major_formatter(
            FuncFormatter(lambda v, _: f"{v:g}" if _has_few_powers(axis) else powers(v))
        )
        axis.set_minor_formatter(
            FuncFormatter(
                lambda v, _: minor_label(v, _decades(axis)) if _has_few_powers(axis) else ""
            )
        )
        return
    count = min(6, max(3, int(1.3 * panel_width)))
    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10], integer=whole))
    if axis.axis_name == "x":  # pyright: ignore[reportAttributeAccessIssue]
        axis.set_major_formatter(
            FuncFormatter(lambda v, _: tick_label(v, max(map(abs, axis.get_view_interval()))))
        )


def _decades(axis: Axis) -> float:
    low, high = sorted(axis.get_view_interval())
    return math.log10(high / low) if low > 0 else math.inf


def _has_few_powers(axis: Axis) -> bool:
    """Return whether powers of ten alone are too few numbers, and plain ones are short."""
    low, high = sorted(axis.get_view_interval())
    if low <= 0:
        return False
    powers = math.floor(math.log10(high) + 1e-9) - math.ceil(math.log10(low) - 1e-9) + 1
    return powers < MIN_POWERS and low >= 1e-4 and high < 1e5


def minor_label(value: float, decades: float) -> str:
    """Return the number at a tick between powers of ten.

    It is "" where there would be too many numbers.

    Args:
      value: at the tick.
      decades: length of the axis.

    Example:
      >>> [minor_label(value, 1.0) for value in (0.2, 0.3, 0.5, 0.6)]
      ['0.2', '', '0.5', '']
      >>> minor_label(0.3, 2.0), minor_label(0.2, 2.0), minor_label(0.6, 0.2)
      ('0.3', '', '0.6')
    """
    leading = round(value / 10 ** math.floor(math.log10(value) + 1e-9), 6)
    labeled = next(digits for length, digits in MINOR_NUMBERS if decades < length)
    return f"{value:.6g}" if leading in labeled else ""


def tick_label(value: float, greatest: float) -> str:
    """Return the number at a tick.

    On an axis that reaches ten thousand it is in thousands, since 20k takes half the width of
    20000.

    Example:
      >>> tick_label(2500, 20_000), tick_label(0, 20_000), tick_label(2500, 5000)
      ('2.5k', '0', '2500')
    """
    return f"{value / 1000:g}k" if greatest >= 10_000 and value else f"{value:.6g}"
