"""Text that is not the library's own, such as names of classes and files: drawn as it is, in fonts that have its characters."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from matplotlib import rcParams
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font

log = logging.getLogger("jaxcnn.plots")

_WITHOUT_OUTLINES = re.compile(r"emoji|color|last ?resort", re.IGNORECASE)


def plain(text: str) -> str:
    r"""The text with control characters written as escapes, and what no installed font has as U+FFFD, with a warning.

    Example:
      >>> plain("cost in $ \x1b[31m")
      'cost in $ \\x1b[31m'
    """
    text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    missing = _families(text)[1]
    return "".join("\N{REPLACEMENT CHARACTER}" if c in missing else c for c in text)


def text_style(*texts: str) -> dict[str, Any]:
    """What matplotlib's `Text` needs to draw plain texts: no mathtext, and fonts that have the characters.

    Example:
      >>> text_style("cat")
      {'parse_math': False, 'fontfamily': ['sans-serif']}
    """
    return {"parse_math": False, "fontfamily": list(_families("".join(texts))[0])}


def properties(text: str) -> FontProperties:
    """The same fonts for measuring a text."""
    return FontProperties(family=list(_families(text)[0]))


def _families(text: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """The font families for a text, the default first, and the characters that none of them has."""
    default = rcParams["font.family"]
    default = (default,) if isinstance(default, str) else tuple(default)
    uncommon = frozenset(c for c in text if ord(c) > 0x7E)
    if not uncommon:
        return default, frozenset()
    more, missing = _fallback(default, uncommon)
    return default + more, missing


@lru_cache(1000)
def _fallback(default: tuple[str, ...], characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Further families for characters, and those that no installed font has."""
    missing = characters
    for family in default:
        missing = missing - _covered(findfont(FontProperties(family=[family])))
    more: list[str] = []
    if missing:
        for font in sorted(fontManager.ttflist, key=_order):
            if has := missing & _covered(font.fname):
                more.append(font.name)
                missing = missing - has
            if not missing:
                break
    if missing:
        shown = "".join(sorted(missing)[:20])
        log.warning("no installed font has the characters %s; install one, such as Noto Sans CJK", shown)
    return tuple(more), missing


def _order(font: FontEntry) -> tuple[Any, ...]:
    """Upright sans-serif fonts of normal weight first."""
    return ("Sans" not in font.name, font.style != "normal", font.weight not in (400, "normal"), font.name, font.fname)


@lru_cache(None)
def _covered(path: str) -> frozenset[str]:
    """The characters of a font file; none of those that have pictures and not outlines, or cannot be read."""
    if _WITHOUT_OUTLINES.search(path):
        return frozenset()
    try:
        return frozenset(map(chr, get_font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()
