"""Variables of a step without its model: a tree from the paths of leaves, and the best row."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxcnn.checkpoint._integrity import Damaged, Leaves
from jaxcnn.optim import eval_leaves

_SPEC = re.compile(r"(\w+)\[([\d, ]*)\]", re.ASCII)
_MAX_RATIO = 1000
"""Bytes of arrays for each byte on disk, above which a manifest is not believed.

Zeros are compressed, but a state has parameters as well.
"""
_MAX_LOG_BYTES = 1 << 30
FIGURES = ("eval_error", "eval_loss")
"""Figures of a row that can choose the best step; the first that a row has counts."""


def shapes_of(specs: Mapping[str, str], num_bytes: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of a manifest's leaves.

    Args:
        specs: as `leaf_specs` returns them.
        num_bytes: of the step on disk.

    Raises:
        Damaged: a spec is invalid, or the arrays cannot be in files of that size.

    Example:
        >>> shapes_of({".w": "float32[3, 2]"}, 1000)
        {'.w': ShapeDtypeStruct(shape=(3, 2), dtype=float32)}
    """
    shapes = {}
    for path, spec in specs.items():
        match = _SPEC.fullmatch(spec) if isinstance(spec, str) else None
        try:
            assert match is not None
            shape = tuple(int(size) for size in match[2].split(", ") if size)
            shapes[path] = jax.ShapeDtypeStruct(shape, jax.numpy.dtype(match[1]))
        except (AssertionError, TypeError, ValueError):
            raise Damaged("its manifest has arrays of an unknown kind") from None
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes.values())
    if total > _MAX_RATIO * num_bytes:
        raise Damaged(f"its manifest announces {total} bytes, and the files have {num_bytes}")
    return shapes


def variables_of(leaves: Leaves) -> dict[str, Any]:
    """Return the variables at which a state is evaluated, as nested dicts.

    Args:
        leaves: all arrays of a state by path, such as `.params['head']['bias']`.

    Returns:
        `{"params": ...}` and the model's other collections.
    """

    def below(prefix: str) -> Leaves:
        return {
            path.removeprefix(prefix): leaf
            for path, leaf in leaves.items()
            if path.startswith(prefix)
        }

    params = {path: leaf for path, leaf in below(".params").items() if path.startswith("[")}
    evaluated = eval_leaves(below(".opt_state"), params)
    return {
        "params": tree_of({f".params{path}": leaf for path, leaf in evaluated.items()}, ".params"),
        **tree_of(leaves, ".model_state"),
    }


def tree_of(leaves: Leaves, prefix: str) -> Any:
    """Return the part of a state below a path, as nested dicts.

    Args:
        leaves: path -> array.
        prefix: such as `.params`.

    Raises:
        Damaged: a path is none of a leaf's.

    Example:
        >>> tree_of({".params['head']['bias']": 1, ".step": 7}, ".params")
        {'head': {'bias': 1}}
    """
    tree: dict[Any, Any] = {}
    for path, leaf in leaves.items():
        if not path.startswith(f"{prefix}["):
            continue
        node, (*parents, name) = tree, _keys(path.removeprefix(prefix))
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise Damaged("its manifest has an array inside of another")
        node[name] = leaf
    return tree


def _keys(path: str) -> list[Any]:
    """Return the keys in a path such as `['head']['bias']`."""
    keys: list[Any] = []
    try:
        node: Any = ast.parse(f"state{path}", mode="eval").body
        while not isinstance(node, ast.Name):
            is_field = isinstance(node, ast.Attribute)
            keys.append(node.attr if is_field else ast.literal_eval(node.slice))
            node = node.value
        hash(tuple(keys))
    # Anything can stand in a stranger's manifest.
    except (AttributeError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        raise Damaged("its manifest has a path that is none of an array") from None
    return keys[::-1]


# The rows next to a folder of checkpoints.


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a `metrics.jsonl` that have a step and did not diverge.

    A file that is missing or unreadable has none, and lines that are no rows are skipped. A later
    row of a step replaces the one before.
    """
    rows: dict[int, dict[str, Any]] = {}
    try:
        # Reading a pipe or a device may never end.
        if not path.is_file() or path.stat().st_size > _MAX_LOG_BYTES:
            return []
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("step")) is int and "diverged" not in row:
            rows[row["step"]] = row
    return list(rows.values())


def best_step(rows: Sequence[Mapping[str, Any]], figures: Iterable[str]) -> tuple[int, str] | None:
    """Return the step of the best row, and the figure that decides.

    It is the lowest. Of equal ones, the lower `eval_loss` decides, then the later step.

    Args:
        rows: of a run.
        figures: names of figures, of which the first that the rows have counts.

    Example:
        >>> rows = [{"step": 1, "eval_error": 9.0}, {"step": 2, "eval_error": 8.0}]
        >>> best_step(rows, FIGURES)
        (2, 'eval_error')
    """
    for figure in figures:
        finite = [row for row in rows if _is_finite(row.get(figure))]
        if finite:
            best = min(finite, key=lambda row: (row[figure], _loss(row), -row["step"]))
            return best["step"], figure
    return None


def _loss(row: Mapping[str, Any]) -> float:
    loss: Any = row.get("eval_loss")
    return loss if _is_finite(loss) else math.inf


def _is_finite(value: Any) -> bool:
    # JSON's integers have no bound, and those of a float have.
    return isinstance(value, (int, float)) and abs(value) < 1e300
