"""Integrity of a checkpoint: digests of its arrays and of its files.

The manifest of a step has the type, the shape and the SHA-256 of every leaf. A digest of its own
seals it.

The record of files has the size and the SHA-256 of each file of the step. It also covers the bytes
that Orbax never reads. It is compared before anything is read, and it names the file that is
damaged.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn._util import file_sha256, to_one_line
from jaxcnn.arguments import format_value, is_iterator

Leaves = dict[str, Any]
"""Path in the state, such as `.params['w']` -> array."""
FILES_RECORD = "files.json"
"""Name of the record of the files of a step."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or restored.

    Examples are an unusable folder, a save that failed, a checkpoint of another model, or a folder
    without a good checkpoint. The message is one line: the problem, what was expected, the fix.
    """


class Damaged(Exception):
    """A step that differs from what was saved; another may be good."""


def join_first(items: list[str], limit: int = 3) -> str:
    """Join the first of many items, with the number of the others."""
    return ", ".join(items[:limit]) + (
        f" and {len(items) - limit} more" if len(items) > limit else ""
    )


def describe_error(error: Exception) -> str:
    """Format type and text of an error as one short line."""
    return f"{type(error).__name__}: {to_one_line(error, 200)}"


# The leaves of a state.


def leaves_by_path(tree: Any) -> Leaves:
    """Return the leaves of a pytree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_iterator)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def copy_leaves(tree: Any) -> Leaves:
    """Copy the leaves of a pytree to host arrays, by their paths.

    Raises:
        CheckpointError: a leaf is not an array of numbers, or cannot be copied.
    """
    leaves = {}
    for path, leaf in leaves_by_path(tree).items():
        try:
            leaves[path] = np.array(leaf)
        # A typed key, lists of unequal length, or a donated array.
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} of the state is a {type(leaf).__name__} that cannot be copied; "
                f"expected an array: {describe_error(error)}. "
                "Use jax.random.key_data(key) for a key, and a state that was not donated"
            ) from None
        if leaves[path].dtype.kind in "OUSmM":
            raise CheckpointError(
                f"{path} of the state is {format_value(leaf)}; expected an array of numbers. Keep "
                "it outside the state"
            )
    return leaves


def step_of(state: Any) -> int:
    """Return the step of a state.

    Raises:
        CheckpointError: it is not a single integer of at least 0.
    """
    step: Any = getattr(state, "step", None)
    if np.shape(step):
        raise CheckpointError(
            f"state.step has shape {np.shape(step)}, expected []: unreplicate the state"
        )
    if np.asarray(step).dtype.kind not in "iu" or np.asarray(step) < 0:
        raise CheckpointError(
            f"state.step is {format_value(step)}; expected an integer of at least 0. "
            "Use jaxcnn.init_state, or step=np.int32(0)"
        )
    return int(np.asarray(step))


def leaves_like(like: Any) -> Leaves:
    """Return the leaves of a tree to restore into, by their paths.

    Raises:
        CheckpointError: there is no leaf, or one has no shape and dtype.
    """
    leaves = leaves_by_path(like)
    if not leaves:
        raise CheckpointError(
            f"like is {format_value(like)}; expected a tree of arrays. "
            "Use like=jaxcnn.init_state(model, tx, config, data)"
        )
    for path, leaf in leaves.items():
        if not (
            hasattr(leaf, "dtype") and hasattr(leaf, "shape") and isinstance(leaf.dtype, np.dtype)
        ):
            raise CheckpointError(
                f"{path} of like is {format_value(leaf)}; "
                "expected an array or jax.ShapeDtypeStruct. Use like=jaxcnn.init_state(...)"
            )
    return leaves


def leaf_specs(leaves: Leaves) -> dict[str, str]:
    """Return dtype and shape of each leaf, such as `float32[3, 2]`."""
    return {path: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in leaves.items()}


def leaf_digests(leaves: Leaves) -> dict[str, str]:
    """Return the SHA-256 of dtype, shape and bytes of each leaf."""
    specs = leaf_specs(leaves)
    return {
        path: hashlib.sha256(specs[path].encode() + leaf.tobytes()).hexdigest()
        for path, leaf in leaves.items()
    }


# The manifest.


def make_manifest(step: int, metric: float | None, leaves: Leaves) -> dict[str, Any]:
    """Return the manifest of a step, as values of JSON."""
    body = {
        "step": step,
        "metric": metric,
        "specs": leaf_specs(leaves),
        "digests": leaf_digests(leaves),
    }
    return body | {"seal": json_digest(body)}


def open_manifest(manifest: Any, step: int) -> dict[str, Any]:
    """Return the body of a manifest.

    Raises:
        Damaged: it is not what `make_manifest` returned for this step.
    """
    body = dict(manifest) if isinstance(manifest, dict) else {}
    if (
        body.pop("seal", None) != json_digest(body)
        or body.get("step") != step
        or not _is_complete(body)
    ):
        raise Damaged("its manifest is not what was saved")
    return body


def _is_complete(body: dict[str, Any]) -> bool:
    """Check that a manifest has all parts; a seal is no signature."""
    has_tables = all(isinstance(body.get(name), dict) for name in ("specs", "digests"))
    return (
        has_tables
        and isinstance(body.get("metric"), (float, type(None)))
        and body["specs"].keys() == body["digests"].keys()
    )


def json_digest(body: dict[str, Any]) -> str:
    """Return the SHA-256 of a record as JSON."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def check_same_model(step: Path, saved: dict[str, str], expected: dict[str, str]) -> None:
    """Check that the leaves of a step have the expected specs.

    Args:
        step: folder of the step, for the message.
        saved: `leaf_specs` of the step.
        expected: `leaf_specs` of the tree to restore into.

    Raises:
        CheckpointError: they differ. The message names the first few leaves.
    """
    differing = [path for path in expected | saved if saved.get(path) != expected.get(path)]
    paths = [path for path in differing if not path.startswith(".metrics.sums")]
    if differing and not paths:
        ours, theirs = (_metric_names(specs) for specs in (saved, expected))
        raise CheckpointError(
            f"{step} sums up {ours}, and like {theirs}; expected the metrics of one loss. Write "
            "like=jaxcnn.init_state(model, tx, config, data, loss=loss) with the loss of the run"
        )
    if paths:
        differences = [
            f"{path} is {saved.get(path, 'missing')}, expected {expected.get(path, 'none')}"
            for path in paths
        ]
        of_optimizer = all(path.startswith(".opt_state") for path in paths)
        part = "optimizer" if of_optimizer else "model"
        first = join_first([text[:200] for text in differences])
        raise CheckpointError(
            f"{step} is of another {part}, build that one or name another folder: {first}"
        )


def _metric_names(specs: dict[str, str]) -> str:
    names = [path.split("'")[1] for path in specs if path.startswith(".metrics.sums['")]
    return join_first(names) if names else "no metrics"


# The record of files.


def seal_files(step: Path) -> None:
    """Write the record of all files of a committed step.

    It is written completely or not at all.
    """
    body = {
        "files": {
            name: [(step / name).stat().st_size, file_sha256(step / name)] for name in _files(step)
        }
    }
    temporary = step / f"{FILES_RECORD}.part"
    with temporary.open("w") as file:
        json.dump(body | {"seal": json_digest(body)}, file, indent=1)
        file.flush()
        # An empty record, as after a power failure, would make a good step damaged.
        os.fsync(file.fileno())
    os.replace(temporary, step / FILES_RECORD)


def check_files(step: Path) -> None:
    """Check that all files are as `seal_files` recorded them.

    A step without a record passes. It is older, or its process was killed before it wrote one.

    Raises:
        Damaged: a file differs; the message names the files.
    """
    path = step / FILES_RECORD
    if not path.exists():
        return
    try:
        body = json.loads(path.read_bytes())
        record = body.pop("seal") == json_digest(body) and {
            name: (size, digest) for name, (size, digest) in body["files"].items()
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        record = None
    if not record:
        raise Damaged(f"{FILES_RECORD} is not what was saved")
    # Only these are opened, since a record may name any file of the machine.
    present = _files(step)
    problems = [
        problem
        for name, (size, digest) in record.items()
        if (
            problem := _file_problem(step / name, name, size, digest)
            if name in present
            else f"{name[:200]} is missing"
        )
    ]
    if problems:
        raise Damaged(join_first(problems))


def _file_problem(path: Path, name: str, size: int, digest: str) -> str | None:
    """Return the difference of a file from its record, or None."""
    try:
        if (current_size := path.stat().st_size) != size:
            return f"{name} has {current_size} bytes, saved with {size}"
        return None if file_sha256(path) == digest else f"{name} is not what was saved"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {describe_error(error)}"


def _files(step: Path) -> list[str]:
    """Return the sorted paths of a step's files, without the record itself."""
    return sorted(
        path.relative_to(step).as_posix()
        for path in step.rglob("*")
        if path.is_file() and path.name != FILES_RECORD
    )


# Reading without Orbax, at a fifth of the cost of restoring.


def is_bitwise_equal(state: Path, leaves: Leaves) -> bool:
    """Check that the files in `state` hold the bits of every leaf.

    Returns:
        False if a leaf differs or cannot be read. False also stands for an unknown layout, as of
        another version of Orbax. Restore the step then.
    """
    try:
        saved = _read_arrays(state, list(leaves))
    # TensorStore raises ValueError and others. Another layout of Orbax may raise anything.
    except Exception:
        return False
    return all(
        saved[path].dtype == leaf.dtype
        and saved[path].shape == leaf.shape
        and saved[path].tobytes() == leaf.tobytes()
        for path, leaf in leaves.items()
    )


def _read_arrays(state: Path, paths: list[str]) -> dict[str, Any]:
    """Read the arrays named `paths` from an OCDBT database of Zarr arrays."""
    # Imported here, since `import jaxcnn` does not need it.
    import tensorstore

    # No cache, so that the files are read again. One context serves all leaves.
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{state}/"}}
    futures = [
        tensorstore.open(
            {"driver": "zarr", "kvstore": database | {"path": f"{path}/"}},
            context=context,
            open=True,
            read=True,
        )
        for path in paths
    ]
    pending = [future.result().read() for future in futures]
    return {path: array.result() for path, array in zip(paths, pending, strict=True)}
