"""Small functions for text, digests and files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any


def to_one_line(value: Any, max_length: int | None = None) -> str:
    r"""Format a value, such as an error, on one line.

    Args:
      value: any object.
      max_length: characters after which the text is cut; None is no limit.

    Example:
      >>> to_one_line(ValueError("first\n  second"), 9)
      'first sec'
    """
    return " ".join(str(value).split())[:max_length]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all.

    Raises:
      OSError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.part")
    # A link of that name would redirect the content.
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:
        file.write(content)
    os.replace(temporary, path)
