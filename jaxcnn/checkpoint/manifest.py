"""What a checkpoint says of itself: the type, the shape and the SHA-256 of every leaf, sealed by a digest of its own."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn.arguments import format_value, is_iterator

Leaves = dict[str, Any]  # path in the state, such as `.params['w']` -> array


class CheckpointError(ValueError):
    """A folder that cannot be used, a save that failed, a checkpoint of another model, or none left that is good.

    The message is one line: what was wrong, what was expected, what to do.
    """


class Damaged(Exception):
    """A step is not what was saved; another one may be."""


def flat(tree: Any) -> Leaves:
    """The leaves of a pytree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_iterator)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def copied(tree: Any) -> Leaves:
    """Copy the leaves of a pytree to host arrays, by their paths; CheckpointError for what is no array of numbers."""
    leaves = {}
    for path, leaf in flat(tree).items():
        try:
            leaves[path] = np.array(leaf)
        except (TypeError, ValueError, RuntimeError) as error:  # a typed key, lists of unequal length, a donated array
            raise CheckpointError(
                f"{path} of the state is a {type(leaf).__name__} that cannot be copied; expected an array: {line(error)}. "
                "Use jax.random.key_data(key) for a key, and a state that was not donated"
            ) from None
        if leaves[path].dtype.kind in "OUSmM":
            raise CheckpointError(
                f"{path} of the state is {format_value(leaf)}; expected an array of numbers. Keep it outside the state"
            )
    return leaves


def step_of(state: Any) -> int:
    """Return the step of a state; CheckpointError if it is no single integer of at least 0."""
    step: Any = getattr(state, "step", None)
    if np.shape(step):
        raise CheckpointError(f"state.step has shape {np.shape(step)}, expected []: unreplicate the state")
    if np.asarray(step).dtype.kind not in "iu" or np.asarray(step) < 0:
        raise CheckpointError(
            f"state.step is {format_value(step)}; expected an integer of at least 0. Use jaxcnn.start, or step=np.int32(0)"
        )
    return int(np.asarray(step))


def expected(like: Any) -> Leaves:
    """Return the leaves of a tree to restore into; CheckpointError if one has no shape and type."""
    leaves = flat(like)
    for path, leaf in leaves.items():
        if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape") and isinstance(leaf.dtype, np.dtype)):
            raise CheckpointError(
                f"{path} of like is {format_value(leaf)}; expected an array or jax.ShapeDtypeStruct. Use like=jaxcnn.start(...)"
            )
    return leaves


def specs(leaves: Leaves) -> dict[str, str]:
    """The type and the shape of each leaf, such as `float32[3, 2]`."""
    return {path: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in leaves.items()}


def digests(leaves: Leaves) -> dict[str, str]:
    """The SHA-256 of the type, the shape and the bytes of each leaf."""
    heads = specs(leaves)
    return {path: hashlib.sha256(heads[path].encode() + leaf.tobytes()).hexdigest() for path, leaf in leaves.items()}


def sealed(step: int, metric: float | None, leaves: Leaves) -> dict[str, Any]:
    """The manifest of a step, as JSON takes it."""
    body = {"step": step, "metric": metric, "specs": specs(leaves), "digests": digests(leaves)}
    return body | {"seal": seal(body)}


def opened(manifest: Any, step: int) -> dict[str, Any]:
    """What `sealed` sealed, or `Damaged` if it is not that."""
    body = dict(manifest) if isinstance(manifest, dict) else {}
    if body.pop("seal", None) != seal(body) or body.get("step") != step or not _whole(body):
        raise Damaged("its manifest is not what was saved")
    return body


def _whole(body: dict[str, Any]) -> bool:
    """Whether a manifest has what `sealed` writes: a seal is no signature."""
    tables = all(isinstance(body.get(name), dict) for name in ("specs", "digests"))
    return (
        tables
        and isinstance(body.get("metric"), (float, type(None)))
        and body["specs"].keys() == body["digests"].keys()
    )


def seal(body: dict[str, Any]) -> str:
    """The SHA-256 of a record as JSON."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def same_model(step: Path, found: dict[str, str], expected: dict[str, str]) -> None:
    """`CheckpointError`, naming the first few leaves, unless the specs of a step are those that are expected."""
    paths = [path for path in expected | found if found.get(path) != expected.get(path)]
    if paths:
        each = [f"{path} is {found.get(path, 'missing')}, expected {expected.get(path, 'none')}" for path in paths]
        found_few = few([text[:200] for text in each])
        raise CheckpointError(f"{step} is of another model, build that one or name another folder: {found_few}")


def few(items: list[str], most: int = 3) -> str:
    """The first of many items, in one line."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def line(error: Exception) -> str:
    """An error of another library's in one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
