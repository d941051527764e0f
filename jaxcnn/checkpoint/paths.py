"""Paths of folders: those that cannot be used, and an alias for those that Orbax would misread."""

import functools
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

from jaxcnn import arguments
from jaxcnn.checkpoint.manifest import CheckpointError, line

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories: control characters, bytes that are not UTF-8, and separators of lines and paragraphs."""
_LONGEST = os.pathconf("/", "PC_PATH_MAX")
_INSIDE = 200
"""Bytes that a path inside a folder of checkpoints may add to that of the folder."""
_PLAIN = re.compile(r"/[A-Za-z0-9_. =+,@-][A-Za-z0-9_./ =+,@-]{0,999}", re.ASCII)
"""Paths that Orbax and TensorStore take literally. They read `[1]`, `**`, a backslash or `gs:` as something else."""


def check_writable_path(folder: str | Path) -> Path:
    """Return `folder` as a path, or raise CheckpointError if nothing can be kept there.

    Refused are addresses such as `gs://bucket/run`, which as a path would be a local folder named `gs:`, paths near the
    system's limit, and characters that would break a message of one line.
    """
    try:
        path = Path(folder)
        path_bytes = len(os.fsencode(path.absolute()))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the folder is {shown(folder)}; expected a path. Write 'runs/a': {line(error)}"
        ) from None
    if not path.is_absolute() and _SCHEME.fullmatch(path.parts[0] if path.parts else ""):
        raise CheckpointError(f"the folder is {shown(folder)}, an address; expected a local folder. Write 'runs/a'")
    if any(unicodedata.category(letter) in _UNWRITABLE for letter in str(path)):
        raise CheckpointError(
            f"the folder is {shown(folder)}; expected a path without control characters. Write 'runs/a'"
        )
    if path_bytes > (most := _LONGEST - _INSIDE):
        raise CheckpointError(
            f"the folder's path has {path_bytes} bytes; expected at most {most}. Write a shorter path"
        )
    return path


def shown(folder: object) -> str:
    """Return the value in quotes, cut at 200 characters."""
    return arguments.format_value(str(folder) if isinstance(folder, Path) else folder, 200)


def plain_alias(folder: Path) -> tuple[Path, Callable[[], None]]:
    """Return a path to `folder` that Orbax takes literally, and a function that removes it.

    Args:
        folder: absolute, and there.

    Raises:
        CheckpointError: no such path can be made, because the temporary folder's own name is of the same kind.
    """
    if _PLAIN.fullmatch(str(folder)):
        return folder, lambda: None
    try:
        return _alias(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder} needs an alias, which cannot be made; rename the folder: {line(error)}"
        ) from None


def _alias(folder: Path) -> tuple[Path, Callable[[], None]]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    path = Path(f"/proc/self/fd/{handle}")  # Linux: gone with the process, however that ends
    if path.is_dir():
        return path, functools.partial(os.close, handle)
    os.close(handle)
    made = Path(tempfile.mkdtemp(prefix="jaxcnn-"))
    remove = functools.partial(shutil.rmtree, made, ignore_errors=True)
    if not _PLAIN.fullmatch(str(made)):
        remove()
        raise CheckpointError(
            f"{folder} needs an alias, but the temporary folder {made.parent} has special characters too; "
            "expected letters, digits and dashes in one of them. Rename the folder, or set TMPDIR"
        )
    (made / "folder").symlink_to(folder, target_is_directory=True)
    return made / "folder", remove
