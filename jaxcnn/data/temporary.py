"""Temporary folders, and files whose disk space is reserved before use.

Folders of processes that were killed are removed later.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

try:
    import fcntl
# Windows has no such module. There, only the age of a folder shows that it is abandoned.
except ImportError:
    fcntl = None

_LOCK = ".lock"
_DAY = 24 * 3600
_CHUNK = 1 << 20
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of a file system that cannot reserve space."""


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Create `<parent>/.<name>-<random>`, and remove it at the end.

    Folders that killed processes left behind are removed first. A lock marks a folder as in use.
    The kernel releases it with the process, however that ends.

    Raises:
        OSError: the folder cannot be created.
    """
    remove_abandoned(parent, name)
    path, lock = _create_locked(parent, name)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _create_locked(parent: Path, name: str) -> tuple[Path, int]:
    """Create a folder, and return it with its open lock.

    Another process may treat the folder as abandoned before it is locked. Then another is created.
    """
    while True:
        path = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}-"))
        try:
            lock = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        except FileNotFoundError:
            continue
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
            raise
        _lock(lock)
        if (path / _LOCK).exists():
            return path, lock
        os.close(lock)


def _lock(file: int, wait: bool = True) -> bool:
    """Lock an open file, and return True if that succeeded.

    It fails if another process holds the lock, or if the file system has no locks.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def remove_abandoned(parent: Path, name: str) -> None:
    """Remove the temporary folders in `parent` that no process uses.

    These are all folders with a free lock. Where there is no lock, they are the folders of `name`
    that are older than a day.
    """
    for path in parent.glob(".*-*"):
        try:
            if path.is_symlink() or not path.is_dir():
                continue
            if (path / _LOCK).is_file() and fcntl is not None:
                _remove_unlocked(path)
            elif path.name.startswith(f".{name}-") and _age(path) > _DAY:
                shutil.rmtree(path, ignore_errors=True)
        # Another process removed it first, or it belongs to another user.
        except OSError:
            continue


def _remove_unlocked(path: Path) -> None:
    lock = os.open(path / _LOCK, os.O_RDWR)
    try:
        if _lock(lock, wait=False):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


def _age(path: Path) -> float:
    """Return the seconds since the last change in a folder."""
    return time.time() - max(entry.stat().st_mtime for entry in (path, *path.rglob("*")))


def reserved_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Create a uint8 `.npy` file with reserved disk space.

    In a sparse file, the first page without disk space would end the process with SIGBUS, without a
    message.

    Returns:
        The file as a writable memory map.

    Raises:
        OSError: there is not enough space (ENOSPC, EDQUOT).

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images = reserved_array(Path(folder, "images.npy"), (2, 3))
        ...     images.shape, images.dtype.name, Path(folder, "images.npy").stat().st_size
        ((2, 3), 'uint8', 134)
    """
    size = int(np.prod(shape, dtype=np.int64))
    with path.open("wb") as file:
        np.lib.format.write_array_header_2_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        file.flush()
        _reserve(file.fileno(), file.tell(), size)
    return np.lib.format.open_memmap(path, "r+")


def _reserve(file: int, start: int, size: int) -> None:
    """Reserve `size` bytes of an open file from `start` on.

    The file system reserves them. Where it cannot, zeros are written.
    """
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(file, start, size)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        else:
            return
    zeros = bytes(min(size, _CHUNK))
    os.lseek(file, start, os.SEEK_SET)
    while size > 0:
        size -= os.write(file, zeros[:size])
    # Some file systems detect a full disk only here.
    os.fsync(file)
