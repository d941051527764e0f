"""The folder of a run's checkpoints: one owner at a time, closed at the end of the process, and quiet about failures."""

import fcntl
import functools
import logging
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import IO, Any

from jaxcnn.checkpoint.manifest import CheckpointError, line

log = logging.getLogger("jaxcnn.checkpoint")


def own(folder: Path) -> IO[str]:
    """A file that holds the lock on `folder` while it is open, so that the lock ends with the process in any case."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a+")  # noqa: SIM115 - it stays open
    except OSError as error:
        raise CheckpointError(f"{folder} cannot keep checkpoints, name another folder: {line(error)}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        with lock:
            owner = f"in use by process {lock.read()}" if isinstance(error, BlockingIOError) else line(error)
        raise CheckpointError(f"{folder} cannot be locked, wait or name another folder: {owner}") from None
    lock.truncate(0)
    print(os.getpid(), end="", file=lock, flush=True)
    return lock


def close_at_exit(saved: Any) -> None:
    """A save still running when the interpreter ends is lost, or hangs: its thread pools end before `atexit` runs."""
    reference = weakref.ref(saved)

    def close() -> None:
        try:
            if (alive := reference()) is not None:
                alive.close()
        except CheckpointError as error:
            log.error("%s", error)

    # Private, but the only hook that precedes the end of the pools: the last to register, so after Orbax, is run first.
    getattr(threading, "_register_atexit", lambda _: None)(close)


@functools.cache
def hush() -> None:
    """Drop what Orbax prints of a failure beside raising it, since it is told here in one line.

    That is a log entry with a traceback, and one more for every leaf still under way: the first to fail closes the
    event loop under the others.
    """
    for name in "absl", "asyncio":
        logging.getLogger(name).addFilter(_not_orbax)
    hook = sys.unraisablehook

    def without_closed_loop(failure: Any) -> None:
        if str(failure.exc_value) != "Event loop is closed":
            hook(failure)

    sys.unraisablehook = without_closed_loop


def _not_orbax(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "orbax" not in record.pathname and not any(word in message for word in ("tensorstore", "OCDBT", "orbax"))
