"""Cache of decoded data sets as `.npy` files.

A second load takes a fraction of a second and imports no reader.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np

from jaxcnn._util import file_sha256
from jaxcnn.data.temporary import temporary_folder
from jaxcnn.data.types import DataError, Split, one_line

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_INDEX = "dataset.json"
_FILES = (_INDEX, *(f"{name}.npy" for name in _ARRAYS))
_FORMAT = 1

log = logging.getLogger("jaxcnn.data")


def dataset_folder(name: str, data_dir: Path | None = None) -> Path:
    """Return the cache folder of a data set, `<cache_root>/data/<name>`.

    Data from a user's own `data_dir` has a separate folder, `<name>-<digest of that path>`. So the
    default source does not hide it, and it is not returned to a load without that `data_dir`.

    Args:
        name: of the data set.
        data_dir: a folder of the user's choice.
    """
    suffix = (
        f"-{hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:8]}" if data_dir else ""
    )
    return cache_root() / "data" / (name + suffix)


def cache_root() -> Path:
    """Return the folder of all caches.

    It is $JAXCNN_CACHE, else $XDG_CACHE_HOME/jaxcnn, else ~/.cache/jaxcnn.

    Raises:
        DataError: it is below the home directory, and there is none. An example is a container
            whose user has no entry.
    """
    base = os.environ.get("JAXCNN_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jaxcnn"
    )
    try:
        return Path(base).expanduser()
    except RuntimeError:
        raise DataError(
            f"the cache is to be {base}, but this user has no home directory; "
            "expected a folder that can be written. Set JAXCNN_CACHE=/tmp/jaxcnn, or another folder"
        ) from None


def read(folder: Path) -> tuple[Split, Split] | None:
    """Read the train and test split in `folder`.

    Every file is compared with its recorded SHA-256 (0.1 s for CIFAR-10). That finds damage, not
    malice: a writer of the files can write the digests too. So files are parsed as plain arrays,
    nothing in them is run, and `load_dataset` checks the arrays. Links are followed for reading,
    but `write` never writes through one.

    Returns:
        The splits, or None if the folder does not exist.

    Raises:
        DataError: the folder exists, but is damaged.
    """
    if not folder.is_dir():
        return None
    try:
        # Reading a pipe or a device may never end.
        if special := [
            path.name
            for path in map(folder.joinpath, _FILES)
            if path.exists() and not path.is_file()
        ]:
            raise DataError(f"{special[0]} is no plain file")
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        if index["format"] != _FORMAT:
            raise DataError(f"its format is {index['format']!r}, not {_FORMAT}")
        for name in _ARRAYS:
            if file_sha256(folder / f"{name}.npy") != index["files"][name]["sha256"]:
                raise DataError(f"{name}.npy has another SHA-256 than {_INDEX} says")
        arrays = [_load_array(folder / f"{name}.npy") for name in _ARRAYS]
    # The json module and NumPy raise errors of many types for invalid bytes, among them
    # RecursionError and MemoryError.
    except Exception as error:
        raise DataError(f"the cache {folder} is damaged: {one_line(error)}") from error
    return Split(*arrays[:2]), Split(*arrays[2:])


def write(
    folder: Path, name: str, source: str, classes: tuple[str, ...], train: Split, test: Split
) -> None:
    """Write both splits to `folder`, completely or not at all.

    The files are written to a new folder, which then replaces the old one. A link in the old
    folder, or in its place, is replaced, and its target does not change. A folder that cannot be
    written causes a warning, not an error.

    Args:
        folder: as `dataset_folder` returns it.
        name: of the data set.
        source: path that the data was read from, for the record.
        classes: class names.
        train: training split.
        test: test split.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent, folder.name) as temporary:
            new, old = temporary / "new", temporary / "old"
            new.mkdir()
            files = {}
            for key, array in zip(_ARRAYS, (*train, *test), strict=True):
                np.save(new / f"{key}.npy", array, allow_pickle=False)
                digest = file_sha256(new / f"{key}.npy")
                files[key] = {"shape": array.shape, "dtype": str(array.dtype), "sha256": digest}
            index = {
                "format": _FORMAT,
                "name": name,
                "source": source,
                "classes": classes,
                "files": files,
            }
            (new / _INDEX).write_text(json.dumps(index), "utf-8")
            # A damaged one, or one from another process that was faster.
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
    except OSError as error:
        log.warning(
            "%s is not kept in %s (%s): the next load reads the source again",
            name,
            folder,
            error.strerror,
        )


def _load_array(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        array = np.load(file, allow_pickle=False)
    # np.load opens zip archives as well.
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path.name} is an archive, not one array")
    return array
