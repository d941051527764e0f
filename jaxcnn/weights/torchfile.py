"""Files of `torch.save` in both formats, read without PyTorch: a zip archive (from 1.6 on), and a stream of pickles before.

Both are a pickle that says where each tensor lies (see `jaxcnn.weights.pickles`), and the numbers, storage by storage.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxcnn.recipe import format_value
from jaxcnn.weights.entries import state_dict
from jaxcnn.weights.notes import CURE
from jaxcnn.weights.pickles import LIMIT, load
from jaxcnn.weights.types import Storage, Tensor, WeightsError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_AT_ONCE = 1 << 22  # bytes of one look: the list of 50,000 members, where ResNet-152 has 1,000


def read_zip(path: Path, entry: str | None = None) -> dict[str, np.ndarray]:
    """The state dict in a zip archive of `torch.save`, name -> array of the file's own type; `entry` as in `state_dict`.

    Nothing in it may be compressed (torch compresses nothing): what it takes in memory is no more than its size.
    """
    with _Looks(path) as file, zipfile.ZipFile(file) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise WeightsError(f"it looks like a program of TorchScript (torch.jit.save), not like weights; {CURE}")
        if all(name.endswith(".npy") for name in archive.namelist()):
            raise WeightsError("it looks like arrays of NumPy (.npz); write them with safetensors.numpy.save_file")
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise WeightsError("it is a zip archive, but not one of torch.save; expected a file of weights")
        order = f"{roots[0]}byteorder"
        if order in archive.namelist() and _member(archive, order, 6) != b"little":
            raise WeightsError("it has big-endian numbers; write it again on a usual machine")
        storages: dict[str, Storage] = {}
        tree, _ = load(_member(archive, f"{roots[0]}data.pkl"), storages)
        tensors, left = state_dict(tree, path, entry), path.stat().st_size
        raw: dict[str, bytes] = {}
        for key in dict.fromkeys(each.storage.key for each in tensors.values()):
            raw[key] = _member(archive, f"{roots[0]}data/{key}", _bytes(storages[key], left))
            left -= len(raw[key])
    return _arrays(tensors, raw)


def read_legacy(path: Path, entry: str | None = None) -> dict[str, np.ndarray]:
    """The state dict in a file of `torch.save` before 1.6 (or with `_use_new_zipfile_serialization=False`)."""
    with path.open("rb") as file:
        if (_pickle(file), _pickle(file)) != (_MAGIC, _PROTOCOL):
            raise WeightsError("it is a pickle, but not one of torch.save; expected a file of weights")
        system = _pickle(file)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise WeightsError("it has big-endian numbers; write it again on a usual machine")
        storages: dict[str, Storage] = {}
        tensors = state_dict(_pickle(file, storages), path, entry)
        left, raw = path.stat().st_size, {}
        for key in _pickle(file):
            size = _bytes(storages[key], left)
            if struct.unpack("<q", file.read(8)) != (storages[key].size,):
                raise ValueError(f"storage {format_value(key)} is not as long as its tensors say")
            raw[key] = file.read(size)
            left -= size
    return _arrays(tensors, raw)


class _Looks(io.FileIO):
    """A file that refuses to be read in larger pieces than `_AT_ONCE`: an archive's list of members is read in one."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(_AT_ONCE + 1 if size is None or size < 0 else size) if (size or 0) <= _AT_ONCE else None
        if data is None or len(data) > _AT_ONCE:
            raise ValueError("its list of members is longer than that of any file of weights")
        return data


def _member(archive: zipfile.ZipFile, name: str, size: int | None = None) -> bytes:
    """A member of `size` bytes, or of at most that of a pickle; its checksum is compared."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(f"member {format_value(name)} is compressed or encrypted, which torch.save never does")
    if info.file_size > LIMIT if size is None else info.file_size != size:
        raise ValueError(
            f"member {format_value(name)} has {info.file_size} bytes; expected {size or f'at most {LIMIT}'}"
        )
    with archive.open(info) as file:
        data = b"".join(iter(lambda: file.read(_AT_ONCE), b""))
    if len(data) != info.file_size:
        raise ValueError(f"member {format_value(name)} is cut short")
    return data


def _pickle(file: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """The next pickle of a stream, which is left behind it."""
    start = file.tell()
    value, used = load(file.read(LIMIT), storages)
    file.seek(start + used, os.SEEK_SET)
    return value


def _bytes(storage: Storage, left: int) -> int:
    """How many bytes a storage has; ValueError, before any memory is taken, for more than the file can hold."""
    if (size := storage.size * storage.dtype.itemsize) > left:
        raise ValueError(f"storage {format_value(storage.key)} announces {size} bytes, which are not in the file")
    return size


def _arrays(tensors: Mapping[str, Tensor], raw: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """Views of the storages' bytes, each of which is as long as its tensors were promised."""
    return {name: _array(each, raw[each.storage.key]) for name, each in tensors.items()}


def _array(each: Tensor, raw: bytes) -> np.ndarray:
    size = each.storage.dtype.itemsize
    if len(raw) < (each.storage.first + each.storage.size) * size:  # NumPy takes no bytes at all for any number
        raise ValueError(f"storage {format_value(each.storage.key)} is cut short")
    offset = (each.storage.first + each.offset) * size if all(each.shape) else 0
    strides = [step * size if length > 1 else 0 for length, step in zip(each.shape, each.stride, strict=True)]
    return np.ndarray(each.shape, each.storage.dtype, raw, offset, strides)
