"""Small functions for text, digests, files and keys of caches."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

PLAIN = "JAXCNN_PLAIN"
"""Environment variable that leaves programs as JAX compiles them."""


def bare_name(name: str) -> str:
    """Return the letters and digits of a name in lower case, to compare spellings.

    Example:
      >>> bare_name("Faster R-CNN")
      'fasterrcnn'
    """
    return re.sub(r"[\W_]", "", name.lower())


@contextlib.contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Pause Python's garbage collector in a short block that makes many objects and keeps them.

    Tracing is such a block: `experiments/results/benchmark/tried.md` has what the pause saves.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def leaf_shapes(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a tree's arrays by their paths.

    Args:
      tree: of arrays, numbers or `jax.ShapeDtypeStruct`s.
      is_leaf: as in `jax.tree.leaves`.

    Example:
      >>> leaf_shapes({"dense": {"bias": np.zeros(3)}})
      {"['dense']['bias']": (3,)}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


def to_one_line(value: Any, max_length: int | None = None) -> str:
    r"""Format a value, such as an error, on one line.

    Args:
      value: any object.
      max_length: characters after which the text is cut; None is no limit.

    Example:
      >>> to_one_line(ValueError("first\n  second"), 9)
      'first sec'
    """
    return " ".join(str(value).split())[:max_length]


def is_abstract(leaf: Any) -> bool:
    """Check if a leaf has no number: it is traced, a shape, or not an array."""
    is_array = isinstance(leaf, (np.ndarray, np.generic, jax.Array))
    return isinstance(leaf, Tracer) or not is_array


def format_arrays(value: Any) -> str:
    """Return a tree of arrays as their dtypes and shapes, on one line.

    Example:
      >>> format_arrays({"box": np.zeros((8, 4), np.float32), "class": np.int32(3)})
      "{'box': float32[8, 4], 'class': int32[]}"
    """
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Mapping):
        items = [f"{name!r}: {format_arrays(item)}" for name, item in value.items()]
        return f"{{{', '.join(items)}}}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return format_fields(value)
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(map(format_arrays, value))})"
    return repr(value)


def format_fields(value: Any) -> str:
    """Return a named tuple as its class and its fields, with arrays as in `format_arrays`."""
    fields = [f"{name}={format_arrays(getattr(value, name))}" for name in value._fields]
    return f"{type(value).__name__}({', '.join(fields)})"


def format_lines(title: str, lines: Mapping[str, str]) -> str:
    """Return a title, and indented lines of a name and a text.

    Example:
      >>> print(format_lines("Dataset digits", {"train": "1,437 images", "classes": "10"}))
      Dataset digits
        train    1,437 images
        classes  10
    """
    width = max(map(len, lines))
    return "\n".join([title, *(f"  {name:{width}}  {text}" for name, text in lines.items())])


def tree_size(tree: Any) -> int:
    """Return the number of values in a tree, such as the parameters of a network.

    Args:
      tree: arrays, or `jax.ShapeDtypeStruct`s, which `optax.tree.size` does not count.

    Example:
      >>> tree_size({"w": np.ones((2, 3)), "b": jax.ShapeDtypeStruct((3,), "float32")})
      9
    """
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all.

    Several processes may write it at once: one of the contents stays.

    Raises:
      OSError: it cannot be written.
    """
    # Of each process its own. An existing file or link of that name would be an error.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


class _Identity:
    """Wrapper of a value that equals only the same object.

    It keeps the value alive, so that no other object gets its id.
    """

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def hashable(value: Any) -> Any:
    """Return `value`, or a hashable form of its contents.

    The latter is for values such as a module with a list.

    Example:
      >>> narrow, wide = {"widths": [4, 8]}, {"widths": [4, 9]}
      >>> hashable(narrow) == hashable(dict(narrow)) != hashable(wide)
      True
    """
    try:
        hash(value)
    except TypeError:
        pass
    else:
        return value
    kind = type(value)
    if isinstance(value, Mapping):
        return kind, tuple((name, hashable(item)) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return kind, tuple(hashable(item) for item in value)
    if isinstance(value, set):
        return kind, frozenset(value)
    is_array = isinstance(value, (np.ndarray, jax.Array))
    if is_array and getattr(value.dtype, "kind", "") in tuple("fiubcSU"):
        return kind, str(value.dtype), value.shape, np.asarray(value).tobytes()
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.compare]
        return kind, tuple((name, hashable(getattr(value, name))) for name in fields)
    return _Identity(value)
