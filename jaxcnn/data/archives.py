"""The original archives of the data sets, as their authors publish them, parsed in memory: nothing is extracted.

`load_dataset` compares their SHA-256 first; what is here holds for archives that pretend all the same.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import numpy as np

from jaxcnn.data.types import DataError, Split, one_line

_LIMIT = 1 << 28  # bytes: the largest array in them, the training images of SVHN, has 225 MB


def parse(name: str, paths: list[Path]) -> tuple[Split, Split]:
    """Parse the archives of data set `name` into its train and test split, in the authors' order.

    Args:
        name: "mnist", "fashion_mnist", "cifar10", "cifar100" or "svhn_cropped".
        paths: the archives, in the order of `DATASETS[name].archives`.

    Raises:
        DataError: an archive is cut short, or does not hold what it should.
    """
    try:
        return _PARSERS[name](paths)
    except Exception as error:  # whatever tarfile, gzip, zlib, NumPy and SciPy raise for bytes that they do not like
        raise DataError(f"{name}: {', '.join(map(str, paths))} cannot be parsed: {one_line(error)}") from error


def _read(file: IO[bytes]) -> bytes:
    data = file.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise ValueError(f"it unpacks to more than {_LIMIT} bytes")
    return data


def _members(path: Path, names: list[str]) -> list[bytes]:
    """Read members of a .tar.gz in the order of `names`; links and folders are passed by.

    It is unpacked in memory first, so that one limit holds for all of it: headers can announce gigabytes too.
    """
    found: dict[str, bytes] = {}
    with gzip.open(path) as file:
        whole = io.BytesIO(_read(cast(IO[bytes], file)))
    with tarfile.open(fileobj=whole) as archive:
        for member in archive:
            if member.name in names and member.isreg() and (file := archive.extractfile(member)):
                found[member.name] = _read(file)
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return [found[name] for name in names]


def _cifar(data: bytes, label_bytes: int) -> Split:
    """Split records of `label_bytes` labels (the last is the finest) and 3 x 32 x 32 pixels, channel by channel."""
    rows = np.frombuffer(data, np.uint8).reshape(-1, label_bytes + 3072)
    images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(images), rows[:, label_bytes - 1].astype(np.int32))


def _cifar10(paths: list[Path]) -> tuple[Split, Split]:
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    *train, test = _members(paths[0], [f"cifar-10-batches-bin/{name}" for name in names])
    return _cifar(b"".join(train), 1), _cifar(test, 1)


def _cifar100(paths: list[Path]) -> tuple[Split, Split]:
    train, test = _members(paths[0], ["cifar-100-binary/train.bin", "cifar-100-binary/test.bin"])
    return _cifar(train, 2), _cifar(test, 2)


def _idx(path: Path, rank: int) -> np.ndarray:
    """Read an idx file of bytes: 0, 0, 8 (bytes), rank, then the sizes as big-endian 32-bit integers, then the data."""
    with gzip.open(path) as file:
        data = _read(cast(IO[bytes], file))
    if data[:4] != bytes([0, 0, 8, rank]):
        raise ValueError(
            f"{path.name} starts with {data[:4].hex()}; expected 0000080{rank}, an idx file of {rank} axes"
        )
    sizes = np.frombuffer(data, ">u4", rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sizes.tolist())


def _mnist(paths: list[Path]) -> tuple[Split, Split]:
    pairs = (paths[:2], paths[2:])
    train, test = (Split(_idx(x, 3)[..., None].copy(), _idx(y, 1).astype(np.int32)) for x, y in pairs)
    return train, test


def _svhn(paths: list[Path]) -> tuple[Split, Split]:
    """Read MATLAB files: X is uint8 [h, w, c, n], y is [n, 1] in 1..10 where 10 means the digit 0."""
    from scipy.io import loadmat

    files = [loadmat(path, variable_names=("X", "y")) for path in paths]
    train, test = (
        Split(np.ascontiguousarray(np.moveaxis(file["X"], -1, 0)), file["y"].reshape(-1).astype(np.int32) % 10)
        for file in files
    )
    return train, test


_PARSERS: dict[str, Callable[[list[Path]], tuple[Split, Split]]] = {
    "mnist": _mnist,
    "fashion_mnist": _mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn_cropped": _svhn,
}
