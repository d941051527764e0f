"""Temporary folders that outlive no process for long, and files whose space on the disk is reserved before it is used."""

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
except ImportError:  # not on Windows, where abandoned folders are told by their age alone
    fcntl = None

_LOCK = ".lock"
_DAY = 24 * 3600
_CHUNK = 1 << 20
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Make `<parent>/.<name>-<random>`, and remove it in the end; also remove those that killed processes left.

    A lock, which the kernel releases with the process however it ends, tells a folder in use from an abandoned one.

    Raises:
      OSError: it cannot be made.
    """
    remove_abandoned(parent, name)
    path, lock = _locked(parent, name)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _locked(parent: Path, name: str) -> tuple[Path, int]:
    """A new folder and its open lock. Another process may take it for abandoned before it is locked: then once more."""
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
    """Lock an open file; False if another process has it, or the file system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def remove_abandoned(parent: Path, name: str) -> None:
    """Remove the temporary folders in `parent` that no process uses: any with a free lock, and of `name` those a day old."""
    for path in parent.glob(".*-*"):
        try:
            if path.is_symlink() or not path.is_dir():
                continue
            if (path / _LOCK).is_file() and fcntl is not None:
                _remove_unlocked(path)
            elif path.name.startswith(f".{name}-") and _age(path) > _DAY:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # another process removed it first, or it is another user's
            continue


def _remove_unlocked(path: Path) -> None:
    lock = os.open(path / _LOCK, os.O_RDWR)
    try:
        if _lock(lock, wait=False):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


def _age(path: Path) -> float:
    """Seconds since anything in a folder was last changed."""
    return time.time() - max(one.stat().st_mtime for one in (path, *path.rglob("*")))


def reserved_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new uint8 `.npy` file as a writable memory map, with all of its space reserved.

    A sparse file would end the process with SIGBUS, without a message, at the first page for which the disk has no space.

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
        np.lib.format.write_array_header_2_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.flush()
        _reserve(file.fileno(), file.tell(), size)
    return np.lib.format.open_memmap(path, "r+")


def _reserve(file: int, start: int, size: int) -> None:
    """Reserve `size` bytes of an open file from `init_state` on: by the file system, or by writing zeros where it cannot."""
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
    os.fsync(file)  # some file systems find only now that the disk is full
