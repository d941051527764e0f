"""Original archives: what TensorFlow Datasets registers of them, whether a file is the one, and the download."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import queue
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jaxcnn.data.types import DataError, one_line

log = logging.getLogger("jaxcnn.data")


class Source(NamedTuple):
    """One original archive."""

    url: str
    filename: str
    size: int  # bytes
    sha256: str


def registered(name: str, filenames: tuple[str, ...]) -> list[Source]:
    """Look up what the installed TFDS has registered of the archives of `name`, without importing it.

    Example:
        >>> registered("cifar10", ("cifar-10-binary.tar.gz",))[0].size
        170052171
    """
    package = importlib.util.find_spec("tensorflow_datasets")
    if package is None or package.origin is None:
        raise DataError("the checksums come with tensorflow-datasets: `pip install tensorflow-datasets`")
    home = Path(package.origin).parent
    tables = (home / "url_checksums" / f"{name}.txt", home / "datasets" / name / "checksums.tsv")
    lines = [line for table in tables if table.is_file() for line in table.read_text("utf-8").splitlines()]
    rows = [line.split("\t") for line in lines if line.count("\t") == 3]  # URL, size, SHA-256, file name
    sources = {row[3]: Source(row[0], row[3], int(row[1]), row[2]) for row in rows}
    if missing := [filename for filename in filenames if filename not in sources]:
        raise DataError(f"the installed tensorflow-datasets registers no checksum of {', '.join(missing)} for {name}")
    return [sources[filename] for filename in filenames]


def verify(path: Path, source: Source) -> None:
    """Raise DataError unless the file has the size and the SHA-256 of the original archive."""
    if (size := path.stat().st_size) != source.size:
        raise DataError(f"{path} has {size} bytes; expected {source.size}: fetch {source.url} again")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.sha256:
        raise DataError(f"{path} has SHA-256 {digest}; expected {source.sha256}: fetch {source.url} again")


def unreachable(url: str, seconds: float = 3.0) -> str:
    """Say why a URL cannot be fetched now, or "" when it can; the answer comes within `seconds`."""
    import requests  # what TFDS downloads with, so that proxies and certificates are the same

    answer: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=seconds) as response:
                answer.put("" if response.ok else f"the server answered {response.status_code}")
        except requests.RequestException as error:
            answer.put(f"no connection, {type(error).__name__}")

    threading.Thread(target=ask, daemon=True).start()  # no time limit reaches a name server that does not answer
    try:
        return answer.get(timeout=seconds)
    except queue.Empty:
        return f"no answer within {seconds:g} s"


@contextmanager
def downloaded(name: str, sources: list[Source], folder: Path) -> Iterator[list[Path]]:
    """Download archives into `folder`, where the next load finds them; where it cannot be written, for now only.

    Raises:
        DataError: the server fails, or a file has another checksum than TFDS has registered.
    """
    with _writable(folder) as place, tempfile.TemporaryDirectory(dir=place, prefix=".download-") as temporary:
        size = sum(source.size for source in sources) / 1e6
        log.warning("downloading %s (%.1f MB) from %s to %s", name, size, sources[0].url, place)
        try:
            fetched = _fetch(sources, Path(temporary))
        except Exception as error:  # NonMatchingChecksumError, DownloadError, those of requests, a full disk
            reason = one_line(error, 2000).partition(" To debug")[0]  # then TFDS says how to register another checksum
            raise DataError(f"{name}: the download failed: {reason}") from error
        paths = [place / source.filename for source in sources]
        for path, source in zip(paths, sources, strict=True):
            fetched[source.filename].replace(path)
        yield paths


def _fetch(sources: list[Source], folder: Path) -> dict[str, Path]:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.utils import Size

    if not (sys.stderr and sys.stderr.isatty()):
        tfds.disable_progress_bar()
    infos = {each.url: UrlInfo(Size(each.size), each.sha256, each.filename) for each in sources}
    manager = tfds.download.DownloadManager(download_dir=folder, url_infos=infos)
    fetched = manager.download({source.filename: source.url for source in sources})
    return {filename: Path(path) for filename, path in fetched.items()}


@contextmanager
def _writable(folder: Path) -> Iterator[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        with tempfile.TemporaryDirectory(prefix="jaxcnn-") as spare:
            yield Path(spare)
        return
    yield folder
