"""A name map of the user's own: the file's names of layers as ours."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping

import numpy as np

from jaxcnn.recipe import format_value
from jaxcnn.weights.types import WeightsError

Names = Mapping[str, str | None] | Callable[[str], str | None]
"""The file's layer -> ours (None skips it), or a function of each whole name, such as "conv1.weight" -> "stem.weight"."""

_TORCH = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def renamed(arrays: Mapping[str, np.ndarray], names: Names, layers: Collection[str]) -> dict[str, np.ndarray]:
    """Return the arrays under the names that `names` gives them; a mapping leaves those of other layers as they are.

    Args:
      arrays: the file's, by name.
      names: the longest entry of a mapping that a name begins with (up to a dot) is replaced.
      layers: ours, such as "stem" and "stage1_block1.conv1".

    Raises:
      WeightsError: an entry is in no name of the file, leads to no layer here, or two arrays get one name.
    """
    if isinstance(names, Mapping):
        _check(names, arrays, layers)
        rename: Callable[[str], str | None] = lambda key: _replaced(key, names)  # noqa: E731
    elif callable(names):
        rename = names
    else:
        raise WeightsError(
            f"names is {format_value(names)}; expected a dict or a function. Use names={{'conv1': 'stem'}}."
        )
    result: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        new = rename(key)
        if new is None:
            continue
        if not isinstance(new, str):
            raise WeightsError(
                f"names gives {format_value(new)} for {format_value(key)}; expected a name, or None to skip it"
            )
        new = _in_torchs_order(key, new)
        if new in result:
            raise WeightsError(
                f"names gives {format_value(new)} to two arrays, the second is {format_value(key)}; expected one for each"
            )
        result[new] = array
    return result


def _replaced(key: str, names: Mapping[str, str | None]) -> str | None:
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        start = ".".join(parts[:end])
        if start in names:
            new = names[start]
            return None if new is None else ".".join([*filter(None, [new]), *parts[end:]])
    return key


def _in_torchs_order(key: str, new: str) -> str:
    """ "head.kernel" for what was "fc.weight" is "head.weight": the array has PyTorch's order of axes, whatever its name."""
    start, _, leaf = new.rpartition(".")
    if key.rpartition(".")[2] in _TORCH.values() and leaf in _TORCH:
        return f"{start}.{_TORCH[leaf]}"
    return new


def _check(names: Mapping[str, str | None], arrays: Mapping[str, np.ndarray], layers: Collection[str]) -> None:
    for theirs, ours in names.items():
        if not isinstance(theirs, str) or not (ours is None or isinstance(ours, str)):
            raise WeightsError(
                f"names maps {format_value(theirs)} to {format_value(ours)}; expected names. Use names={{'conv1': 'stem'}}."
            )
        if not any(key == theirs or key.startswith(f"{theirs}.") for key in arrays):
            known = list(dict.fromkeys(key.rpartition(".")[0] for key in arrays))
            raise WeightsError(
                f"names has {format_value(theirs)}, which no array in the file is called; {_near(theirs, known)}"
            )
        if ours and not any(
            layer == ours or layer.startswith(f"{ours}.") or ours.startswith(f"{layer}.") for layer in layers
        ):
            raise WeightsError(
                f"names maps {format_value(theirs)} to {format_value(ours)}, no layer of the network; {_near(ours, layers)}"
            )


def _near(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3) or list(known)[:3]
    return "expected a layer such as " + ", ".join(format_value(each) for each in near)
