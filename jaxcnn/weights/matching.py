"""Which layout, and which prefix of names, a file has: those with which most of a network's arrays are in it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path as File
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.checkpoint._integrity import join_first
from jaxcnn.recipe import format_value
from jaxcnn.weights.entries import averaged
from jaxcnn.weights.layouts import Layout, Leaf, Path, leaves

log = logging.getLogger("jaxcnn.weights")


class Match(NamedTuple):
    """A file as a network reads it.

    Attributes:
      layout: the nearest of the network's.
      leaves: where the file has each leaf of the variables, by path.
      arrays: the file's, without the prefix that all of the network's names have there.
    """

    layout: Layout
    leaves: dict[Path, Leaf]
    arrays: dict[str, np.ndarray]


def match(
    file: str | File, specs: Mapping[Path, Any], arrays: Mapping[str, np.ndarray], layouts: Sequence[Layout]
) -> Match:
    """Return the layout and prefix with the most names in the file.

    Arrays outside the prefix are skipped with a warning, which says how to choose where there are several networks.
    """
    best, hits = Match(layouts[0], leaves(layouts[0], specs), dict(arrays)), 0
    start, others = "", []
    for layout in layouts:
        for prefix in _prefixes(arrays, len(specs)):
            inside = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
            found = leaves(layout, specs, {key: array.shape for key, array in inside.items()})
            count = sum(leaf.key in inside for leaf in found.values())
            if count > hits:
                best, hits, start, others = Match(layout, found, inside), count, prefix, []
            elif count == hits and layout is best.layout and count:
                others.append(prefix)
    outside = [key for key in arrays if not key.startswith(start)]
    if others:
        more = " or entry=".join(format_value(other.removesuffix(".")) for other in others[:4])
        log.warning(
            "%s holds several networks: took %s; write entry=%s for another", file, format_value(start[:-1]), more
        )
    elif outside:
        names = join_first([format_value(key) for key in outside])
        log.warning("%s: took the arrays called %s..., and skipped %d others (%s)", file, start, len(outside), names)
    return best


def _prefixes(arrays: Mapping[str, Any], needed: int) -> list[str]:
    """No prefix, and those that half as many names have as the network has arrays; averages over training last."""
    counts: Counter[str] = Counter()
    for key in arrays:
        parts = key.split(".")[:6]
        counts.update(".".join(parts[:end]) + "." for end in range(1, len(parts)))
    common = [prefix for prefix, count in counts.items() if 2 * count >= needed]
    return ["", *sorted(common, key=averaged)]
