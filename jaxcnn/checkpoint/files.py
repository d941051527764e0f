"""What the files of a step were: the size and the SHA-256 of each, in one sealed file beside them.

The digests of the leaves vouch for the values. These also cover the bytes that Orbax never reads, are compared before
anything is read, and name the file that is damaged.
"""

import hashlib
import json
import os
from pathlib import Path

from jaxcnn.checkpoint.manifest import Damaged, few, line, seal

NAME = "files.json"


def seal_files(step: Path) -> None:
    """Write the record of all files of a committed step, whole or not at all."""
    body = {"files": {file: [(step / file).stat().st_size, _digest(step / file)] for file in _files(step)}}
    part = step / f"{NAME}.part"
    with part.open("w") as file:
        json.dump(body | {"seal": seal(body)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())  # a record that a power failure has emptied would condemn a good step
    os.replace(part, step / NAME)


def check_files(step: Path) -> None:
    """`Damaged`, naming the files, unless all are as `seal_files` saw them.

    A step without a record passes: it is older, or its process was killed before it wrote one.
    """
    record = step / NAME
    if not record.exists():
        return
    try:
        body = json.loads(record.read_bytes())
        found = body.pop("seal") == seal(body) and {
            file: (size, digest) for file, (size, digest) in body["files"].items()
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        found = None
    if not found:
        raise Damaged(f"{NAME} is not what was saved")
    there = _files(step)  # only these are opened: a record may name any file of the machine
    wrong = [
        said
        for file, (size, digest) in found.items()
        if (said := _wrong(step / file, file, size, digest) if file in there else f"{file[:200]} is missing")
    ]
    if wrong:
        raise Damaged(few(wrong))


def _wrong(path: Path, name: str, size: int, digest: str) -> str | None:
    try:
        if (now := path.stat().st_size) != size:
            return f"{name} has {now} bytes, saved with {size}"
        return None if _digest(path) == digest else f"{name} is not what was saved"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {line(error)}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(step: Path) -> list[str]:
    return sorted(path.relative_to(step).as_posix() for path in step.rglob("*") if path.is_file() and path.name != NAME)
