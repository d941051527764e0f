"""Checks and locks of a checkpoint folder, and closing it at exit."""

import contextlib
import errno
import fcntl
import functools
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
import time
import unicodedata
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from jaxcnn import arguments
from jaxcnn.checkpoint._integrity import CheckpointError, describe_error

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories that are not allowed in a path.

These are control characters, bytes that are not UTF-8, and separators of lines and paragraphs.
"""
_MAX_PATH = os.pathconf("/", "PC_PATH_MAX")
_MAX_INSIDE = 200
"""Bytes that a path inside a folder of checkpoints may add to that of the folder."""
_PLAIN = re.compile(r"/[A-Za-z0-9_. =+,@-][A-Za-z0-9_./ =+,@-]{0,999}", re.ASCII)
"""Paths that Orbax and TensorStore take literally.

They interpret `[1]`, `**`, a backslash or `gs:` as something else.
"""

log = logging.getLogger("jaxcnn.checkpoint")


# Paths.


def check_writable_path(folder: str | Path) -> Path:
    """Return `folder` as a path that can hold checkpoints.

    Raises:
        CheckpointError: the folder is invalid. It may be an address such as `gs://bucket/run`,
            which as a path would be a local folder named `gs:`. Or the path is near the system's
            limit, or has characters that would break a message of one line.
    """
    try:
        path = Path(folder)
        path_bytes = len(os.fsencode(path.absolute()))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the folder is {_format_folder(folder)}; expected a path. Write 'runs/a': "
            f"{describe_error(error)}"
        ) from None
    if not path.is_absolute() and _SCHEME.fullmatch(path.parts[0] if path.parts else ""):
        raise CheckpointError(
            f"the folder is {_format_folder(folder)}, an address; expected a local folder. Write "
            "'runs/a'"
        )
    if any(unicodedata.category(letter) in _UNWRITABLE for letter in str(path)):
        raise CheckpointError(
            f"the folder is {_format_folder(folder)}; expected a path without control characters. "
            "Write 'runs/a'"
        )
    if path_bytes > (limit := _MAX_PATH - _MAX_INSIDE):
        raise CheckpointError(
            f"the folder's path has {path_bytes} bytes; expected at most {limit}. Write a shorter "
            "path"
        )
    return path


def _format_folder(folder: object) -> str:
    """Return the value in quotes, cut at 200 characters."""
    return arguments.format_value(str(folder) if isinstance(folder, Path) else folder, 200)


def plain_alias(folder: Path) -> tuple[Path, Callable[[], None]]:
    """Return a path to `folder` that Orbax takes literally.

    Args:
        folder: absolute and existing.

    Returns:
        The path, and a function that removes it.

    Raises:
        CheckpointError: there is no such path, because the temporary folder's own name has special
            characters too.
    """
    if _PLAIN.fullmatch(str(folder)):
        return folder, lambda: None
    try:
        return _create_alias(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder} needs an alias, which cannot be made; rename the folder: "
            f"{describe_error(error)}"
        ) from None


def _create_alias(folder: Path) -> tuple[Path, Callable[[], None]]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    # On Linux, such a path disappears with the process, however that ends.
    path = Path(f"/proc/self/fd/{handle}")
    if path.is_dir():
        return path, functools.partial(os.close, handle)
    os.close(handle)
    temporary = Path(tempfile.mkdtemp(prefix="jaxcnn-"))
    remove = functools.partial(shutil.rmtree, temporary, ignore_errors=True)
    if not _PLAIN.fullmatch(str(temporary)):
        remove()
        raise CheckpointError(
            f"{folder} needs an alias, but the temporary folder {temporary.parent} has special "
            "characters too; expected letters, digits and dashes in one of them. "
            "Rename the folder, or set TMPDIR"
        )
    (temporary / "folder").symlink_to(folder, target_is_directory=True)
    return temporary / "folder", remove


# The lock.


class FolderInUseError(CheckpointError):
    """A folder that is locked already.

    Attributes:
        owner: the process and the host that have the lock, such as "process 12 on node3".
        by_this_process: whether that is this process.
    """

    def __init__(self, message: str, owner: str = "", by_this_process: bool = False):
        super().__init__(message)
        self.owner, self.by_this_process = owner, by_this_process


def lock_folder(folder: str | Path, timeout: float = 0.0) -> IO[str]:
    """Lock a folder for this process.

    The lock ends when the returned file is closed, or with the process, however that ends. It
    excludes only programs that call this function. Files in the folder are not protected.

    The lock is `flock`. Linux passes it on to NFS servers from version 2.6.12 on, so it holds
    between machines that share a folder. It does not where the folder is mounted with `nolock` or
    `local_lock=flock`. There, each machine would train the same runs.

    Args:
        folder: created if it is missing. Its file `lock` has the owner's process and host, and
            stays when the lock ends.
        timeout: seconds to wait for another process that has the lock.

    Returns:
        The open file that holds the lock, for a `with` block or `close`.

    Raises:
        FolderInUseError: the folder is in use. The message has the owner's process and host.
        CheckpointError: the folder cannot be created or written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, lock_folder(folder):
        ...     lock_folder(folder)
        Traceback (most recent call last):
        jaxcnn.checkpoint._lock.FolderInUseError: ... in use by process ...
    """
    folder = check_writable_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not in a `with` block, since the file stays open.
        lock = open(folder / "lock", "a+", encoding="ascii", errors="replace", opener=_open_regular)  # noqa: SIM115
    except OSError as error:
        raise CheckpointError(
            f"cannot write in {folder}, name another folder: {describe_error(error)}"
        ) from None
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            failure = _lock_failure(folder, lock, error)
            waits = isinstance(failure, FolderInUseError) and not failure.by_this_process
            if not waits or time.monotonic() >= deadline:
                lock.close()
                raise failure from None
        time.sleep(_POLL_SECONDS)
    _locks.add(lock)
    # On a full disk the lock holds without its owner's name.
    with contextlib.suppress(OSError):
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"{os.getpid()} on {socket.gethostname()}".encode())
    return lock


_POLL_SECONDS = 0.05
_locks: weakref.WeakSet[IO[str]] = weakref.WeakSet()
"""Locks of this process, some of them closed."""


def _lock_failure(folder: Path, lock: IO[str], error: OSError) -> CheckpointError:
    """Return the error for a lock that was not obtained."""
    if not isinstance(error, BlockingIOError):
        return CheckpointError(
            f"{folder} cannot be locked, wait or name another folder: {describe_error(error)}"
        )
    owner, status = f"process {_owner(lock)}", os.fstat(lock.fileno())
    if any(
        not other.closed and os.path.samestat(os.fstat(other.fileno()), status)
        for other in list(_locks)
    ):
        return FolderInUseError(
            f"{folder} is in use by {owner}, which is this process: "
            "an earlier Checkpoints object or run still has it open. Call close() on that object, "
            "or on what jaxcnn.train returned, or write `with Checkpoints(...) as saved:`",
            owner,
            by_this_process=True,
        )
    return FolderInUseError(
        f"{folder} cannot be locked, wait or name another folder: in use by {owner}", owner
    )


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file, but no link, pipe or device."""
    # The target of a link must not be emptied, and opening a pipe would wait for its other end.
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "expected a regular file, found a pipe or a device", path)
    return handle


def _owner(lock: IO[str]) -> str:
    lock.seek(0)
    return " ".join(lock.read(200).split()) or "unknown"


def check_lock(folder: Path, lock: IO[str]) -> None:
    """Check that a folder is still the one that `lock_folder` locked.

    Raises:
        CheckpointError: the folder was deleted, moved or replaced.
    """
    # The garbage collector finalizes the objects of a cycle in any order, this file first, say.
    if lock.closed:
        return
    try:
        if os.path.samestat((folder / "lock").stat(), os.fstat(lock.fileno())):
            return
        reason = "its file lock is another run's"
    except OSError as error:
        reason = describe_error(error)
    raise CheckpointError(
        f"{folder} was deleted or moved while in use, put it back or start again: {reason}"
    )


# The end of the process.


_open: weakref.WeakSet[Any] = weakref.WeakSet()
"""Objects to close at the end of the process."""
interpreter_exiting = threading.Event()
"""Set when the interpreter ends. From then on no thread can be started."""


def close_at_exit(checkpoints: Any) -> None:
    """Close `checkpoints` at the end of the process, unless that happened before.

    Otherwise a save that still runs would be lost, or hang. Its thread pools end before `atexit`
    functions run.
    """
    _open.add(checkpoints)
    _register()


@functools.cache
def _register() -> None:
    # This private hook is the only one that precedes the end of the thread pools. The last
    # function to register runs first, so this one registers after Orbax. It registers only once,
    # since a function cannot be removed.
    getattr(threading, "_register_atexit", lambda _: None)(_close_all)


def _close_all() -> None:
    interpreter_exiting.set()
    for checkpoints in list(_open):
        try:
            checkpoints.close()
        except CheckpointError as error:
            log.error("the process ended before Checkpoints.close: %s", error)
