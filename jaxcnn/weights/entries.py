"""Which part of a checkpoint holds the weights: a training script's file has an optimizer, averages and more next to them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcnn.recipe import format_value
from jaxcnn.weights.types import Tensor, WeightsError

log = logging.getLogger("jaxcnn.weights")
_USUAL = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "params", "weights", "module")
_USUAL += ("student", "teacher")
_AVERAGED = ("ema", "swa", "averag", "shadow")
_DEEPEST = 3  # dicts in dicts: {"checkpoint": {"model": {"net": ...}}}


def state_dict(tree: Any, file: Path, entry: str | None = None) -> dict[str, Tensor]:
    """Return the tensors by name, out of a checkpoint that may hold more than them.

    Args:
      tree: what the file's pickle holds.
      file: for messages.
      entry: the name of the entry to take, with dots for one in another ("checkpoint.model"); None takes the usual one,
        and logs a warning that names the others where there are several.

    Raises:
      WeightsError: there is none, or not that one, or it holds more than tensors.
    """
    entries = dict(_entries(tree))
    whole = entries.get("", {})
    if entry is None:
        found = entries[_usual(tree, entries, file)]
    elif not (found := entries.get(entry) or _within(whole, entry)):
        raise WeightsError(_no_entry(entry, [name for name in entries if name] or _first_parts(whole)))
    if odd := [key for key, value in found.items() if not (isinstance(value, Tensor) and isinstance(key, str))]:
        raise WeightsError(
            f"{format_value(odd[0])} in it is no tensor (nor are {len(odd) - 1} others); save model.state_dict()"
        )
    return found


def _usual(tree: Any, entries: dict[str, Any], file: Path) -> str:
    """The entry that holds the network itself; the others, if any, are named in a warning."""
    if not entries:
        expected = "expected names with tensors, or such a dict under " + " or ".join(map(repr, _USUAL[:3]))
        raise WeightsError(f"it holds no state dict; {expected}: torch.save(model.state_dict(), file)")
    whole = isinstance(tree, dict) and all(isinstance(value, Tensor) for value in tree.values())
    name = "" if whole else min(entries, key=_rank)
    others = [other for other in entries if other not in ("", name)]
    if others:
        log.warning(
            "%s holds several sets of weights: took %s; write entry=%s for another",
            file,
            format_value(name),
            " or entry=".join(format_value(other) for other in others[:4]),
        )
    return name


def _entries(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[Any, Any]]]:
    """The dicts with tensors in them, by name, the whole tree's being \"\"; those of optimizers are left out."""
    if type(tree) is not dict:
        return
    if any(isinstance(value, Tensor) for value in tree.values()):
        yield ".".join(path), tree
    for key, value in tree.items() if len(path) < _DEEPEST else ():
        if type(key) is str and "optim" not in key.lower():
            yield from _entries(value, (*path, key))


def _rank(name: str) -> tuple[bool, bool, int, int]:
    """Usual names come first, averages over training later, the whole tree (where not all are tensors) last."""
    parts = name.lower().split(".")
    usual = min(_USUAL.index(part) if part in _USUAL else len(_USUAL) for part in parts)
    return name == "", averaged(name), usual, len(parts)


def averaged(name: str) -> bool:
    """Return whether a name is that of an average over training."""
    return any(word in name.lower() for word in _AVERAGED)


def _within(flat: dict[Any, Any], entry: str) -> dict[str, Any]:
    """Those of a flat dict whose names begin with `entry` and a dot, without that."""
    start = f"{entry}."
    return {
        key.removeprefix(start): value for key, value in flat.items() if isinstance(key, str) and key.startswith(start)
    }


def part(arrays: dict[str, Any], entry: str | None) -> dict[str, Any]:
    """The arrays of a flat file whose names begin with `entry`; all of them for None. WeightsError if none does."""
    if entry is None:
        return arrays
    if found := _within(arrays, entry):
        return found
    raise WeightsError(_no_entry(entry, _first_parts(arrays)))


def _first_parts(flat: dict[Any, Any]) -> list[str]:
    return list(dict.fromkeys(str(key).split(".")[0] for key in flat))


def _no_entry(entry: str, names: list[str]) -> str:
    few = ", ".join(format_value(name) for name in names[:6]) or "none"
    return f"it has no entry {format_value(entry)}; expected one of {few}. Use entry=None for the usual one."
