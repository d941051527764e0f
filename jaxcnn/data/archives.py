"""Checksums, download and parsing of the data sets' original archives.

The archives are as their authors publish them. They are parsed in memory, and nothing is extracted.
`load_dataset` compares their SHA-256 first. The limits here also hold for forged archives.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import logging
import queue
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from jaxcnn._util import file_sha256
from jaxcnn.data.types import DataError, Split, one_line

# Bytes. The largest array in the archives, the training images of SVHN, has 225 MB.
_LIMIT = 1 << 28

log = logging.getLogger("jaxcnn.data")


class Source(NamedTuple):
    """One original archive.

    Attributes:
      url: address of the archive.
      filename: name of the file.
      size: bytes.
      sha256: SHA-256 in hexadecimal.
    """

    url: str
    filename: str
    size: int
    sha256: str


def registered_sources(name: str, filenames: tuple[str, ...]) -> list[Source]:
    """Return the entries of a data set's archives in the installed TFDS.

    TFDS is not imported.

    Args:
        name: of the data set.
        filenames: of its archives.

    Raises:
        DataError: TFDS is not installed, or does not register an archive.

    Example:
        >>> registered_sources("cifar10", ("cifar-10-binary.tar.gz",))[0].size
        170052171
    """
    package = importlib.util.find_spec("tensorflow_datasets")
    if package is None or package.origin is None:
        raise DataError(
            f"the archives of {name} are checked by tensorflow-datasets, which is not installed; "
            "expected it, or the arrays that a load on another machine left in its "
            "$JAXCNN_CACHE/data. Use pip install tensorflow-datasets"
        )
    home = Path(package.origin).parent
    tables = (home / "url_checksums" / f"{name}.txt", home / "datasets" / name / "checksums.tsv")
    lines = [
        line
        for table in tables
        if table.is_file()
        for line in table.read_text("utf-8").splitlines()
    ]
    # URL, size, SHA-256, file name.
    rows = [line.split("\t") for line in lines if line.count("\t") == 3]
    sources = {row[3]: Source(row[0], row[3], int(row[1]), row[2]) for row in rows}
    if missing := [filename for filename in filenames if filename not in sources]:
        raise DataError(
            f"the installed tensorflow-datasets registers no checksum of {', '.join(missing)} for "
            f"{name}"
        )
    return [sources[filename] for filename in filenames]


def verify(path: Path, source: Source) -> None:
    """Check size and SHA-256 of a file against the original archive.

    Raises:
        DataError: either differs.
    """
    if (size := path.stat().st_size) != source.size:
        raise DataError(
            f"{path} has {size} bytes; expected {source.size}: fetch {source.url} again"
        )
    digest = file_sha256(path)
    if digest != source.sha256:
        raise DataError(
            f"{path} has SHA-256 {digest}; expected {source.sha256}: fetch {source.url} again"
        )


def unreachable_reason(url: str, seconds: float = 3.0) -> str:
    """Return why a URL cannot be fetched now, or "".

    Args:
        url: address of a file.
        seconds: limit after which the function returns in any case.
    """
    # TFDS downloads with requests too, so that proxies and certificates are the same.
    import requests

    answer: queue.SimpleQueue[str] = queue.SimpleQueue()

    def request() -> None:
        try:
            with requests.get(url, stream=True, timeout=seconds) as response:
                answer.put("" if response.ok else f"the server answered {response.status_code}")
        except requests.RequestException as error:
            answer.put(f"no connection, {type(error).__name__}")

    # In a thread, since the time limit of a request does not include the name server.
    threading.Thread(target=request, daemon=True).start()
    try:
        return answer.get(timeout=seconds)
    except queue.Empty:
        return f"no answer within {seconds:g} s"


@contextmanager
def download(name: str, sources: list[Source], folder: Path) -> Iterator[list[Path]]:
    """Download archives into `folder`, where the next load finds them.

    If the folder cannot be written, they are in a temporary one until the end of the `with` block.

    Args:
        name: of the data set, for messages.
        sources: the archives.
        folder: created if it is missing.

    Raises:
        DataError: the server fails, or a file has another checksum than TFDS registers.
    """
    with (
        _writable_folder(folder) as target,
        tempfile.TemporaryDirectory(dir=target, prefix=".download-") as temporary,
    ):
        size = sum(source.size for source in sources) / 1e6
        log.warning("downloading %s (%.1f MB) from %s to %s", name, size, sources[0].url, target)
        try:
            files = _fetch(sources, Path(temporary))
        # NonMatchingChecksumError, DownloadError, those of requests, or a full disk.
        except Exception as error:
            # In the part that is cut, TFDS explains how to register another checksum.
            reason = one_line(error, 2000).partition(" To debug")[0]
            raise DataError(f"{name}: the download failed: {reason}") from error
        paths = [target / source.filename for source in sources]
        for path, source in zip(paths, sources, strict=True):
            files[source.filename].replace(path)
        yield paths


def _fetch(sources: list[Source], folder: Path) -> dict[str, Path]:
    """Download files with TFDS, which checks them; return paths by filename."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.utils import Size

    if not (sys.stderr and sys.stderr.isatty()):
        tfds.disable_progress_bar()
    infos = {
        source.url: UrlInfo(Size(source.size), source.sha256, source.filename) for source in sources
    }
    manager = tfds.download.DownloadManager(download_dir=folder, url_infos=infos)
    files = manager.download({source.filename: source.url for source in sources})
    return {filename: Path(path) for filename, path in files.items()}


@contextmanager
def _writable_folder(folder: Path) -> Iterator[Path]:
    """Yield `folder`, or a temporary one if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        with tempfile.TemporaryDirectory(prefix="jaxcnn-") as fallback:
            yield Path(fallback)
        return
    yield folder


# Parsing.


def parse(name: str, paths: list[Path]) -> tuple[Split, Split]:
    """Parse archives into the train and test split, in the authors' order.

    Args:
        name: "mnist", "fashion_mnist", "cifar10", "cifar100" or "svhn_cropped".
        paths: the archives, in the order of `DATASETS[name].archives`.

    Returns:
        The train and the test split.

    Raises:
        DataError: an archive is cut short or invalid.
    """
    try:
        return _PARSERS[name](paths)
    # tarfile, gzip, zlib, NumPy and SciPy raise errors of many types for invalid bytes.
    except Exception as error:
        raise DataError(
            f"{name}: {', '.join(map(str, paths))} cannot be parsed: {one_line(error)}"
        ) from error


def _read_bounded(file: IO[bytes]) -> bytes:
    data = file.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise ValueError(f"it unpacks to more than {_LIMIT} bytes")
    return data


def _read_members(path: Path, names: list[str]) -> list[bytes]:
    """Read members of a .tar.gz in the order of `names`.

    Links and folders are skipped. The archive is unpacked in memory first, so that one limit holds
    for all of it. Headers can announce gigabytes too.
    """
    members: dict[str, bytes] = {}
    with gzip.open(path) as file:
        unpacked = io.BytesIO(_read_bounded(cast(IO[bytes], file)))
    with tarfile.open(fileobj=unpacked) as archive:
        for member in archive:
            if member.name in names and member.isreg() and (file := archive.extractfile(member)):
                members[member.name] = _read_bounded(file)
    if missing := [name for name in names if name not in members]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return [members[name] for name in names]


def _parse_cifar_records(data: bytes, label_bytes: int) -> Split:
    """Parse records of labels and 3 x 32 x 32 pixels.

    The pixels are channel by channel. Of the `label_bytes` labels, the last is the finest, and is
    used.
    """
    rows = np.frombuffer(data, np.uint8).reshape(-1, label_bytes + 3072)
    images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(images), rows[:, label_bytes - 1].astype(np.int32))


def _parse_cifar10(paths: list[Path]) -> tuple[Split, Split]:
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    *train, test = _read_members(paths[0], [f"cifar-10-batches-bin/{name}" for name in names])
    return _parse_cifar_records(b"".join(train), 1), _parse_cifar_records(test, 1)


def _parse_cifar100(paths: list[Path]) -> tuple[Split, Split]:
    names = ["cifar-100-binary/train.bin", "cifar-100-binary/test.bin"]
    train, test = _read_members(paths[0], names)
    return _parse_cifar_records(train, 2), _parse_cifar_records(test, 2)


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """Read an idx file of bytes.

    It has 0, 0, 8 (the type, bytes), the rank, the sizes as big-endian 32-bit integers, and the
    data.
    """
    with gzip.open(path) as file:
        data = _read_bounded(cast(IO[bytes], file))
    if data[:4] != bytes([0, 0, 8, rank]):
        raise ValueError(
            f"{path.name} starts with {data[:4].hex()}; expected 0000080{rank}, an idx file of "
            f"{rank} axes"
        )
    sizes = np.frombuffer(data, ">u4", rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sizes.tolist())


def _parse_mnist(paths: list[Path]) -> tuple[Split, Split]:
    pairs = (paths[:2], paths[2:])
    train, test = (
        Split(_read_idx(x, 3)[..., None].copy(), _read_idx(y, 1).astype(np.int32)) for x, y in pairs
    )
    return train, test


def _parse_svhn(paths: list[Path]) -> tuple[Split, Split]:
    """Parse MATLAB files.

    X is uint8 [h, w, c, n]. y is [n, 1] in 1..10, where 10 is the digit 0.
    """
    from scipy.io import loadmat

    files = [loadmat(path, variable_names=("X", "y")) for path in paths]
    train, test = (
        Split(
            np.ascontiguousarray(np.moveaxis(file["X"], -1, 0)),
            file["y"].reshape(-1).astype(np.int32) % 10,
        )
        for file in files
    )
    return train, test


_PARSERS: dict[str, Callable[[list[Path]], tuple[Split, Split]]] = {
    "mnist": _parse_mnist,
    "fashion_mnist": _parse_mnist,
    "cifar10": _parse_cifar10,
    "cifar100": _parse_cifar100,
    "svhn_cropped": _parse_svhn,
}
