"""The folder of a run's checkpoints: one owner at a time, and closed at the end of the process."""

import contextlib
import errno
import fcntl
import functools
import logging
import os
import socket
import stat
import threading
import weakref
from pathlib import Path
from typing import IO, Any

from jaxcnn.checkpoint.manifest import CheckpointError, line
from jaxcnn.checkpoint.paths import check_writable_path

log = logging.getLogger("jaxcnn.checkpoint")


def lock_folder(folder: str | Path) -> IO[str]:
    """Take a folder for this process alone, until what is returned is closed or the process ends, in whatever way.

    Only programs that ask are kept out: nothing in the folder is protected from others.

    Args:
        folder: made if it is missing. Its file `lock` tells the owner's process and host, and stays when it ends.

    Returns:
        The open file that holds the lock, for a `with` block or `close`.

    Raises:
        CheckpointError: the folder cannot be made or written, or is in use; the message has the owner's process and host.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, lock_folder(folder):
        ...     lock_folder(folder)
        Traceback (most recent call last):
        jaxcnn.checkpoint.manifest.CheckpointError: ... in use by process ... on ..., which is this process...
    """
    folder = check_writable_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a+", encoding="ascii", errors="replace", opener=_itself)  # noqa: SIM115 - it stays open
    except OSError as error:
        raise CheckpointError(f"cannot write in {folder}, name another folder: {line(error)}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        with lock:
            raise CheckpointError(_locked(folder, lock, error)) from None
    _locks.add(lock)
    with contextlib.suppress(OSError):  # the disk is full: the lock holds without its owner's name
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"{os.getpid()} on {socket.gethostname()}".encode())
    return lock


_locks: weakref.WeakSet[IO[str]] = weakref.WeakSet()
"""The locks that this process has taken; some are closed by now."""


def _locked(folder: Path, lock: IO[str], error: OSError) -> str:
    """Return the message for a lock that was not obtained."""
    if not isinstance(error, BlockingIOError):
        return f"{folder} cannot be locked, wait or name another folder: {line(error)}"
    owner, wanted = f"in use by process {_owner(lock)}", os.fstat(lock.fileno())
    if any(not held.closed and os.path.samestat(os.fstat(held.fileno()), wanted) for held in list(_locks)):
        return (
            f"{folder} is {owner}, which is this process: an earlier Checkpoints object or run still has it open. "
            "Call close() on that object, or write `with Checkpoints(...) as saved:`"
        )
    return f"{folder} cannot be locked, wait or name another folder: {owner}"


def _itself(path: str, flags: int) -> int:
    # What a link there points to is not ours to empty, and opening a pipe would wait for its other end.
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "expected a regular file, found a pipe or a device", path)
    return handle


def _owner(lock: IO[str]) -> str:
    lock.seek(0)
    return " ".join(lock.read(200).split()) or "unknown"


def check_lock(folder: Path, lock: IO[str]) -> None:
    """`CheckpointError` if the folder was deleted, moved or replaced since `own` gave `lock`."""
    try:
        if os.path.samestat((folder / "lock").stat(), os.fstat(lock.fileno())):
            return
        why = "its file lock is another run's"
    except OSError as error:
        why = line(error)
    raise CheckpointError(f"{folder} was deleted or moved while in use, put it back or start again: {why}")


_open: weakref.WeakSet[Any] = weakref.WeakSet()
ending = threading.Event()
"""Set once the interpreter ends: no thread can be started from then on."""


def close_at_exit(saved: Any) -> None:
    """A save still running when the interpreter ends is lost, or hangs: its thread pools end before `atexit` runs."""
    _open.add(saved)
    _register()


@functools.cache
def _register() -> None:
    # Private, but the only hook that precedes the end of the pools: the last to register, so after Orbax, is run first.
    # Once for all, since nothing takes a callback back.
    getattr(threading, "_register_atexit", lambda _: None)(_close_all)


def _close_all() -> None:
    ending.set()
    for saved in list(_open):
        try:
            saved.close()
        except CheckpointError as error:
            log.error("the process ended before Checkpoints.close: %s", error)
