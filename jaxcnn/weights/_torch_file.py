"""Files of `torch.save` in both formats, read without PyTorch.

From PyTorch 1.6 on a file is a zip archive, before it was a stream of pickles. Both have a pickle
that locates each tensor (see `jaxcnn.weights._torch_pickle`), and the numbers, storage by storage.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxcnn.config import format_value
from jaxcnn.weights._errors import NoEntriesError, WeightsError
from jaxcnn.weights._torch_pickle import (
    MAX_PICKLE_BYTES,
    REMEDY,
    Storage,
    Tensor,
    load_pickle,
)

log = logging.getLogger("jaxcnn.weights")
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_READ_BYTES = 1 << 22
"""Maximal size of one read.

It is enough for a list of 50,000 members, where ResNet-152 has 1,000.
"""


def read_zip(path: Path, entry: str | None = None) -> dict[str, np.ndarray]:
    """Return the state dict in a zip archive of `torch.save`.

    Arrays have the file's own type. Nothing in the archive may be compressed (torch compresses
    nothing), so that it takes no more memory than its size.

    Args:
      path: of the file.
      entry: as in `state_dict`.
    """
    with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise WeightsError(
                "it looks like a program of TorchScript (torch.jit.save), not like weights; "
                f"{REMEDY}"
            )
        if all(name.endswith(".npy") for name in archive.namelist()):
            raise WeightsError(
                "it looks like arrays of NumPy (.npz); write them with safetensors.numpy.save_file"
            )
        names = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise WeightsError(
                "it is a zip archive, but not one of torch.save; expected a file of weights"
            )
        order = f"{roots[0]}byteorder"
        if order in archive.namelist() and _read_member(archive, order, 6) != b"little":
            raise WeightsError("it has big-endian numbers; write it again on a usual machine")
        storages: dict[str, Storage] = {}
        tree, _ = load_pickle(_read_member(archive, f"{roots[0]}data.pkl"), storages)
        tensors, remaining = state_dict(tree, path, entry), path.stat().st_size
        raw: dict[str, bytes] = {}
        for key in dict.fromkeys(tensor.storage.key for tensor in tensors.values()):
            size = _num_bytes(storages[key], remaining)
            raw[key] = _read_member(archive, f"{roots[0]}data/{key}", size)
            remaining -= len(raw[key])
    return _arrays(tensors, raw)


def read_legacy(path: Path, entry: str | None = None) -> dict[str, np.ndarray]:
    """Return the state dict in a file of `torch.save` before 1.6.

    Later versions write it with `_use_new_zipfile_serialization=False`.
    """
    with path.open("rb") as file:
        if (_next_pickle(file), _next_pickle(file)) != (_MAGIC, _PROTOCOL):
            raise WeightsError(
                "it is a pickle, but not one of torch.save; expected a file of weights"
            )
        system = _next_pickle(file)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise WeightsError("it has big-endian numbers; write it again on a usual machine")
        storages: dict[str, Storage] = {}
        tensors = state_dict(_next_pickle(file, storages), path, entry)
        remaining, raw = path.stat().st_size, {}
        for key in _next_pickle(file):
            size = _num_bytes(storages[key], remaining)
            if struct.unpack("<q", file.read(8)) != (storages[key].size,):
                raise ValueError(f"storage {format_value(key)} is not as long as its tensors say")
            raw[key] = file.read(size)
            remaining -= size
    return _arrays(tensors, raw)


class _BoundedFile(io.FileIO):
    """A file that refuses a read of more than `_MAX_READ_BYTES`.

    An archive's list of members is read at once, however long the file says it is.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        data = None
        if (size or 0) <= _MAX_READ_BYTES:
            data = super().read(_MAX_READ_BYTES + 1 if size is None or size < 0 else size)
        if data is None or len(data) > _MAX_READ_BYTES:
            raise ValueError("its list of members is longer than that of any file of weights")
        return data


def _read_member(archive: zipfile.ZipFile, name: str, size: int | None = None) -> bytes:
    """Read a member of `size` bytes, and compare its checksum.

    None for `size` is at most that of a pickle.
    """
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(
            f"member {format_value(name)} is compressed or encrypted, which torch.save never does"
        )
    if info.file_size > MAX_PICKLE_BYTES if size is None else info.file_size != size:
        raise ValueError(
            f"member {format_value(name)} has {info.file_size} bytes; expected "
            f"{size or f'at most {MAX_PICKLE_BYTES}'}"
        )
    with archive.open(info) as file:
        data = b"".join(iter(lambda: file.read(_MAX_READ_BYTES), b""))
    if len(data) != info.file_size:
        raise ValueError(f"member {format_value(name)} is cut short")
    return data


def _next_pickle(file: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Return the next pickle of a stream, and advance the stream."""
    start = file.tell()
    value, size = load_pickle(file.read(MAX_PICKLE_BYTES), storages)
    file.seek(start + size, os.SEEK_SET)
    return value


def _num_bytes(storage: Storage, remaining: int) -> int:
    """Return the size of a storage in bytes.

    Raises:
      ValueError: it is more than the file can hold. No memory has been allocated for it yet.
    """
    if (size := storage.size * storage.dtype.itemsize) > remaining:
        raise ValueError(
            f"storage {format_value(storage.key)} announces {size} bytes, which are not in the file"
        )
    return size


def _arrays(tensors: Mapping[str, Tensor], raw: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """Return views of the storages' bytes."""
    return {name: _array(tensor, raw[tensor.storage.key]) for name, tensor in tensors.items()}


def _array(tensor: Tensor, raw: bytes) -> np.ndarray:
    storage = tensor.storage
    size = storage.dtype.itemsize
    # NumPy accepts an empty buffer for any number of elements.
    if len(raw) < (storage.first + storage.size) * size:
        raise ValueError(f"storage {format_value(storage.key)} is cut short")
    offset = (storage.first + tensor.offset) * size if all(tensor.shape) else 0
    strides = [
        step * size if length > 1 else 0
        for length, step in zip(tensor.shape, tensor.stride, strict=True)
    ]
    return np.ndarray(tensor.shape, storage.dtype, raw, offset, strides)


# ---------------------------------------------------------------- entries of a checkpoint

_USUAL_NAMES = ("state_dict", "model_state_dict", "model", "model_state", "net", "network")
_USUAL_NAMES += ("params", "weights", "module", "student", "teacher")
_AVERAGE_WORDS = ("ema", "swa", "averag", "shadow")
_MAX_DEPTH = 3
"""Maximal depth of nested dicts, as {"checkpoint": {"model": {"net": ...}}}."""


def state_dict(tree: Any, file: Path, entry: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name.

    A training script's checkpoint has an optimizer, averages and more next to the weights.

    Args:
      tree: the content of the file's pickle.
      file: for messages.
      entry: name of the entry to take, with dots for a nested one ("checkpoint.model"). None takes
        the usual one. It logs a warning that names the others where there are several.

    Raises:
      WeightsError: the entry does not exist, or holds more than tensors.
    """
    entries = dict(_entries(tree))
    whole = entries.get("", {})
    if entry is None:
        tensors = entries[_usual_entry(tree, entries, file)]
    elif not (tensors := entries.get(entry) or _with_prefix(whole, entry)):
        if names := [name for name in entries if name]:
            raise WeightsError(_no_entry_message(entry, names))
        raise NoEntriesError(_no_entry_message(entry, _first_parts(whole)))
    invalid = [
        key
        for key, value in tensors.items()
        if not (isinstance(value, Tensor) and isinstance(key, str))
    ]
    if invalid:
        raise WeightsError(
            f"{format_value(invalid[0])} in it is no tensor (nor are {len(invalid) - 1} others); "
            "save model.state_dict()"
        )
    return tensors


def _usual_entry(tree: Any, entries: dict[str, Any], file: Path) -> str:
    """Return the name of the entry with the network itself.

    A warning names the other entries, if any.
    """
    if not entries:
        names = " or ".join(map(repr, _USUAL_NAMES[:3]))
        raise WeightsError(
            "it holds no state dict; "
            f"expected names with tensors, or such a dict under {names}: "
            "torch.save(model.state_dict(), file)"
        )
    has_tensors_only = isinstance(tree, dict) and all(
        isinstance(value, Tensor) for value in tree.values()
    )
    name = "" if has_tensors_only else min(entries, key=_rank)
    unused = [entry for entry in entries if entry not in ("", name)]
    if unused:
        log.warning(
            "%s holds several sets of weights: took %s; write entry=%s for another",
            file,
            format_value(name),
            " or entry=".join(format_value(entry) for entry in unused[:4]),
        )
    return name


def _entries(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield the dicts that contain tensors, by name.

    The name of the whole tree is "". Dicts of optimizers are left out.
    """
    if type(tree) is not dict:
        return
    if any(isinstance(value, Tensor) for value in tree.values()):
        yield ".".join(path), tree
    for key, value in tree.items() if len(path) < _MAX_DEPTH else ():
        if type(key) is str and "optim" not in key.lower():
            yield from _entries(value, (*path, key))


def _rank(name: str) -> tuple[bool, bool, int, int]:
    """Return a sort key of an entry.

    Usual names come first, then averages over training. The whole tree, where not all of it are
    tensors, comes last.
    """
    parts = name.lower().split(".")
    position = min(
        _USUAL_NAMES.index(part) if part in _USUAL_NAMES else len(_USUAL_NAMES) for part in parts
    )
    return name == "", is_average(name), position, len(parts)


def is_average(name: str) -> bool:
    """Return whether a name is that of an average over training."""
    return any(word in name.lower() for word in _AVERAGE_WORDS)


def select_entry(arrays: dict[str, Any], entry: str | None) -> dict[str, Any]:
    """Return the arrays whose names begin with `entry`.

    None returns all of them.

    Raises:
      WeightsError: no name begins with it.
    """
    if entry is None:
        return arrays
    if selected := _with_prefix(arrays, entry):
        return selected
    raise NoEntriesError(_no_entry_message(entry, _first_parts(arrays)))


def _with_prefix(flat: dict[Any, Any], entry: str) -> dict[str, Any]:
    """Return the items whose names begin with `entry` and a dot.

    The prefix is removed from their names.
    """
    prefix = f"{entry}."
    return {
        key.removeprefix(prefix): value
        for key, value in flat.items()
        if isinstance(key, str) and key.startswith(prefix)
    }


def _first_parts(flat: dict[Any, Any]) -> list[str]:
    return list(dict.fromkeys(str(key).split(".")[0] for key in flat))


def _no_entry_message(entry: str, names: list[str]) -> str:
    expected = ", ".join(format_value(name) for name in names[:6]) or "none"
    return (
        f"it has no entry {format_value(entry)}; expected one of {expected}. "
        "Use entry=None for the usual one."
    )
