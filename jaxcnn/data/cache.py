"""Decoded data sets kept as `.npy` files: a second load takes a fraction of a second and imports no reader."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np

from jaxcnn.data.temporary import temporary_folder
from jaxcnn.data.types import DataError, Split, one_line

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_ABOUT = "dataset.json"
_FILES = (_ABOUT, *(f"{name}.npy" for name in _ARRAYS))
_FORMAT = 1

log = logging.getLogger("jaxcnn.data")


def folder(name: str, data_dir: Path | None = None) -> Path:
    """Name the folder that keeps `name`: `data/<name>` under $JAXCNN_CACHE, $XDG_CACHE_HOME/jaxcnn or ~/.cache/jaxcnn.

    What was read from a `data_dir` of the user's choice is kept apart, under `<name>-<digest of that path>`: it is
    neither hidden by what another source gave, nor given to those who did not ask for it.
    """
    suffix = f"-{hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:8]}" if data_dir else ""
    return root() / "data" / (name + suffix)


def root() -> Path:
    """Name the folder of all that is cached: $JAXCNN_CACHE, $XDG_CACHE_HOME/jaxcnn or ~/.cache/jaxcnn.

    Raises:
        DataError: it is below the home directory, and there is none (as in a container whose user has no entry).
    """
    base = os.environ.get("JAXCNN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jaxcnn")
    try:
        return Path(base).expanduser()
    except RuntimeError:
        raise DataError(
            f"the cache is to be {base}, but this user has no home directory; expected a folder that can be written. "
            "Set JAXCNN_CACHE=/tmp/jaxcnn, or another folder"
        ) from None


def read(place: Path) -> tuple[Split, Split] | None:
    """Read the train and test split kept in `place`, or None where there is no such folder.

    Every file is compared with its recorded SHA-256 (0.1 s for CIFAR-10). That finds damage, not malice: who can write
    here can write the digests too. So the files are parsed as plain arrays (nothing in them is run), and `load_dataset` checks
    what they hold. Links are followed: they are read like what they point to, and never written through (see `write`).

    Raises:
        DataError: the folder is there, but is damaged.
    """
    if not place.is_dir():
        return None
    try:
        if odd := [path.name for path in map(place.joinpath, _FILES) if path.exists() and not path.is_file()]:
            raise DataError(f"{odd[0]} is no plain file")  # a pipe or a device may never end
        about = json.loads((place / _ABOUT).read_text("utf-8"))
        if about["format"] != _FORMAT:
            raise DataError(f"its format is {about['format']!r}, not {_FORMAT}")
        for name in _ARRAYS:
            if _digest(place / f"{name}.npy") != about["files"][name]["sha256"]:
                raise DataError(f"{name}.npy has another SHA-256 than {_ABOUT} says")
        arrays = [_array(place / f"{name}.npy") for name in _ARRAYS]
    except Exception as error:  # of json and NumPy for bytes that they do not like: RecursionError, MemoryError as well
        raise DataError(f"the cache {place} is damaged: {one_line(error)}") from error
    return Split(*arrays[:2]), Split(*arrays[2:])


def write(place: Path, name: str, source: str, classes: tuple[str, ...], train: Split, test: Split) -> None:
    """Keep both splits in `place`, whole or not at all; a folder that cannot be written costs a note, not an error.

    The files are new ones in a new folder, which takes the place of the old: where that or a file in it was a link, the
    link goes, and what it pointed to stays as it was.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(place.parent, place.name) as temporary:
            new, old = temporary / "new", temporary / "old"
            new.mkdir()
            files = {}
            for key, array in zip(_ARRAYS, (*train, *test), strict=True):
                np.save(new / f"{key}.npy", array, allow_pickle=False)
                digest = _digest(new / f"{key}.npy")
                files[key] = {"shape": array.shape, "dtype": str(array.dtype), "sha256": digest}
            about = {"format": _FORMAT, "name": name, "source": source, "classes": classes, "files": files}
            (new / _ABOUT).write_text(json.dumps(about), "utf-8")
            if place.exists():  # a damaged one, or another process was quicker
                place.rename(old)
            new.rename(place)
    except OSError as error:
        log.warning("%s is not kept in %s (%s): the next load reads the source again", name, place, error.strerror)


def _array(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray):  # np.load opens zip archives as well
        raise DataError(f"{path.name} is an archive, not one array")
    return array


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
