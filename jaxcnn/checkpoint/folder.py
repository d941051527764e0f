"""The folder of a run's checkpoints: one owner at a time, and closed at the end of the process."""

import contextlib
import fcntl
import functools
import logging
import os
import socket
import threading
import weakref
from pathlib import Path
from typing import IO, Any

from jaxcnn.checkpoint.manifest import CheckpointError, line

log = logging.getLogger("jaxcnn.checkpoint")


def own(folder: str | Path) -> IO[str]:
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
        >>> with tempfile.TemporaryDirectory() as folder, own(folder):
        ...     own(folder)
        Traceback (most recent call last):
        jaxcnn.checkpoint.manifest.CheckpointError: ... in use by process ... on ...
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a+", opener=_itself)  # noqa: SIM115 - it stays open
    except OSError as error:
        raise CheckpointError(f"cannot write in {folder}, name another folder: {line(error)}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        with lock:
            why = f"in use by process {_owner(lock)}" if isinstance(error, BlockingIOError) else line(error)
        raise CheckpointError(f"{folder} cannot be locked, wait or name another folder: {why}") from None
    with contextlib.suppress(OSError):  # the disk is full: the lock holds without its owner's name
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"{os.getpid()} on {socket.gethostname()}".encode())
    return lock


def _itself(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)  # what a link there points to is not ours to empty


def _owner(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read().strip() or "unknown"


def still_own(folder: Path, lock: IO[str]) -> None:
    """`CheckpointError` if the folder was deleted, moved or replaced since `own` gave `lock`."""
    try:
        if os.path.samestat((folder / "lock").stat(), os.fstat(lock.fileno())):
            return
        why = "its file lock is another run's"
    except OSError as error:
        why = line(error)
    raise CheckpointError(f"{folder} was deleted or moved while in use, put it back or start again: {why}")


_open: weakref.WeakSet[Any] = weakref.WeakSet()


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
    for saved in list(_open):
        try:
            saved.close()
        except CheckpointError as error:
            log.error("the process ended before Checkpoints.close: %s", error)
