"""Cache of the decoded images of a folder.

There is one `.npy` file for each folder and set of options. Small files are read as arrays, large
ones are memory-mapped.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcnn._util import file_sha256
from jaxcnn.data.cache import dataset_folder
from jaxcnn.data.image_io import (
    ImageError,
    darkness_warning,
    decode,
    format_broken,
    unsupported_reason,
)
from jaxcnn.data.splits import (
    SPLITS,
    ImageFile,
    SplitFractions,
    assign_splits,
    duplicate_warnings,
)
from jaxcnn.data.temporary import remove_abandoned, reserved_array, temporary_folder
from jaxcnn.data.types import DataError, Scale, channel_statistics, one_line

_FORMAT = 1
_INDEX, _IMAGES, _MEAN = "images.json", "images.npy", "mean.npy"

log = logging.getLogger("jaxcnn.data")


class CachedImages(NamedTuple):
    """All images of a folder, one split after another.

    Attributes:
      images: uint8 [n, size, size, 3]; np.memmap where it is larger than `ReadOptions.memory`.
      labels: int32 [n].
      names: paths of the n files, relative to the folder.
      counts: number of images in each of `SPLITS`.
      mean: float32 [size, size, 3]: mean training image.
      std: float32 [3]: standard deviation of each channel of the training images.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    counts: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray


class ReadOptions(NamedTuple):
    """Files of a folder, and the options to read them with.

    Attributes:
      root: the folder.
      classes: class names, in the order of the labels.
      files: all image files of the folder.
      scale: size, resize and interpolation as in `image_folder`.
      fractions: fractions of the training images for validation and testing.
      skip_broken: skip files that cannot be read, instead of raising an error.
      memory: bytes above which the images stay on disk.
    """

    root: Path
    classes: tuple[str, ...]
    files: list[ImageFile]
    scale: Scale
    fractions: SplitFractions
    skip_broken: bool
    memory: int


def load_cached_images(options: ReadOptions) -> CachedImages:
    """Load images from the cache, or decode them and store them there.

    They are decoded if the cache has none for these options, or if a file has changed.

    Raises:
        ImageError: some files are not images.
        DataError: the images fit neither the cache's disk nor `memory`, or a class is too small.
    """
    key = json.dumps([options.classes, options.scale, options.fractions, options.skip_broken])
    digest = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:8]
    folder = dataset_folder(f"folder-{digest}", options.root)
    stamp = _stamp(options)
    try:
        cached = _read(folder, stamp, options.memory)
    # The json module and NumPy raise errors of many types for invalid bytes.
    except Exception as error:
        log.warning(
            "the cache %s is damaged: %s; reading the images again", folder, one_line(error)
        )
        cached = None
    return cached or _create(options, folder, stamp)


def _stamp(options: ReadOptions) -> str:
    """Return a digest of all files: names, splits, labels, sizes, times."""
    digest = hashlib.sha256()
    for file in options.files:
        try:
            status = os.stat(options.root / file.name)
            size_and_time = (status.st_size, status.st_mtime_ns)
        # A dangling link. An error reports it when the file is read.
        except OSError:
            size_and_time = None
        digest.update(f"{(*file, size_and_time)!r}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _read(folder: Path, stamp: str, memory: int) -> CachedImages | None:
    """Read the images in `folder`, or return None if they are outdated.

    The SHA-256 is compared only where the images are read whole.
    """
    if not (folder / _INDEX).is_file():
        return None
    index = json.loads((folder / _INDEX).read_text("utf-8"))
    if (index["format"], index["stamp"]) != (_FORMAT, stamp):
        return None
    is_large = (folder / _IMAGES).stat().st_size > memory
    if not is_large and file_sha256(folder / _IMAGES) != index["sha256"]:
        raise DataError(f"{_IMAGES} has another SHA-256 than {_INDEX} says")
    images = np.load(folder / _IMAGES, mmap_mode="r" if is_large else None, allow_pickle=False)
    mean = np.load(folder / _MEAN, allow_pickle=False)
    labels, counts = np.array(index["labels"], np.int32), tuple(index["counts"])
    if (
        images.dtype != np.uint8
        or images.shape != (sum(counts), *mean.shape)
        or labels.shape != (sum(counts),)
    ):
        raise DataError(f"{_IMAGES} is {images.dtype} {images.shape}, not what {_INDEX} says")
    for message in index["warnings"]:
        log.warning("%s", message)
    std = np.array(index["std"], np.float32)
    return CachedImages(images, labels, tuple(index["names"]), counts, mean, std)


def _create(options: ReadOptions, folder: Path, stamp: str) -> CachedImages:
    """Decode all images, and store them in `folder` if they fit there.

    Where they do not fit, they are returned in memory, or an error is raised if they are large.
    """
    files = assign_splits(options.files, options.classes, options.fractions)
    num_bytes = len(files) * options.scale[0] ** 2 * 3
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Abandoned folders may hold the space that is needed.
        remove_abandoned(folder.parent, folder.name)
        if (free := shutil.disk_usage(folder.parent).free) < num_bytes + (1 << 20):
            raise OSError(0, f"{num_bytes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        with temporary_folder(folder.parent, folder.name) as temporary:
            result = _decode_to_disk(options, folder, stamp, files, temporary)
        if isinstance(result, CachedImages):
            return result
        # Only after the temporary folder is gone, so that its space is free again.
        return _create(_without_broken(options, result), folder, stamp)
    except OSError as error:
        if num_bytes > options.memory:
            raise DataError(
                f"{len(files)} images ({num_bytes / 1e9:.1f} GB) cannot be kept in "
                f"{folder.parent}: {error.strerror}; "
                "set JAXCNN_CACHE to a folder of a larger disk, or ask for a smaller size"
            ) from None
        log.warning(
            "%s is not kept in %s (%s): the next load decodes it again",
            options.root,
            folder,
            error.strerror,
        )
    images = np.empty((len(files), options.scale[0], options.scale[0], 3), np.uint8)
    digests, broken, dark = _decode_files(options, files, images)
    if broken:
        return _create(_without_broken(options, broken), folder, stamp)
    _log_warnings(options, files, digests, dark)
    return _with_statistics(files, images)


def _decode_to_disk(
    options: ReadOptions, folder: Path, stamp: str, files: list[ImageFile], temporary: Path
) -> CachedImages | dict[str, str]:
    """Decode images to disk, and move the finished result to `folder`.

    If files are broken, nothing is moved, and their names and reasons are returned.
    """
    (new := temporary / "new").mkdir()
    images = reserved_array(new / _IMAGES, (len(files), options.scale[0], options.scale[0], 3))
    digests, broken, dark = _decode_files(options, files, images)
    if broken:
        return broken
    images.flush()
    with ThreadPoolExecutor(1, "jaxcnn-sha256") as pool:
        sha256 = pool.submit(file_sha256, new / _IMAGES)
        result = _with_statistics(files, images)
    messages = _log_warnings(options, files, digests, dark)
    np.save(new / _MEAN, result.mean, allow_pickle=False)
    index = {
        "format": _FORMAT,
        "source": str(options.root),
        "stamp": stamp,
        "names": result.names,
        "warnings": messages,
    }
    index |= {
        "labels": result.labels.tolist(),
        "counts": result.counts,
        "std": result.std.tolist(),
    }
    index |= {"sha256": sha256.result()}
    (new / _INDEX).write_text(json.dumps(index), "utf-8")
    is_large = (new / _IMAGES).stat().st_size > options.memory
    # Opened before the folder gets its final name. From then on, another process may replace it.
    result = result._replace(
        images=np.load(new / _IMAGES, mmap_mode="r" if is_large else None, allow_pickle=False)
    )
    _move_into_place(new, folder, temporary)
    return result


def _move_into_place(new: Path, folder: Path, temporary: Path, attempts: int = 10) -> None:
    """Rename `new` to `folder`, and move an existing `folder` into `temporary`.

    The existing one is of changed files, or of another process that was faster.
    """
    for attempt in range(attempts):
        try:
            if folder.exists():
                folder.rename(temporary / f"old{attempt}")
            new.rename(folder)
            return
        # Another process moved or replaced `folder` between these two lines.
        except OSError as error:
            if (
                error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)
                or attempt == attempts - 1
            ):
                raise


def _decode_files(
    options: ReadOptions, files: Sequence[ImageFile], images: np.ndarray
) -> tuple[list[str], dict[str, str], list[tuple[str, int]]]:
    """Decode files into `images`.

    Returns:
        digests: SHA-256 of each file.
        broken: name -> reason of broken files, where these are skipped.
        dark: (name, highest level) of images for `darkness_warning`.

    Raises:
        ImageError: files are broken, and are not to be skipped.
    """
    from tqdm import tqdm

    unsupported = {file.name: reason for file in files if (reason := unsupported_reason(file.name))}
    rows = [row for row, file in enumerate(files) if file.name not in unsupported]
    paths = [options.root / files[row].name for row in rows]
    with tqdm(
        total=len(paths),
        desc=f"reading {options.root.name}",
        unit="image",
        disable=None,
        leave=False,
    ) as bar:
        digests, undecodable, dark = decode(paths, images, options.scale, bar.update)
    reasons = unsupported | {
        files[rows[index]].name: reason for index, reason in undecodable.items()
    }
    broken = dict(sorted(reasons.items()))
    if broken and not options.skip_broken:
        fix = "fix or delete what is named, or leave it out by skip_broken=True (--skip-broken)"
        raise ImageError(
            [(str(options.root / name), reason) for name, reason in broken.items()], fix
        )
    dark_files = [(files[rows[index]].name, level) for index, level in sorted(dark.items())]
    return digests, broken, dark_files


def _without_broken(options: ReadOptions, broken: dict[str, str]) -> ReadOptions:
    log.warning("%s: %s; skipped", options.root, format_broken(list(broken.items())))
    return options._replace(files=[file for file in options.files if file.name not in broken])


def _log_warnings(
    options: ReadOptions,
    files: Sequence[ImageFile],
    digests: Sequence[str],
    dark: Sequence[tuple[str, int]],
) -> list[str]:
    """Log and return warnings about duplicates and dark images."""
    warnings = [
        *duplicate_warnings(files, digests),
        *([darkness_warning(dark)] if dark else []),
    ]
    messages = [f"{options.root}: {warning}" for warning in warnings]
    for message in messages:
        log.warning("%s", message)
    return messages


def _with_statistics(files: Sequence[ImageFile], images: np.ndarray) -> CachedImages:
    counts = tuple(sum(file.split == split for file in files) for split in SPLITS)
    mean, std = channel_statistics(images[: counts[0]])
    names = tuple(file.name for file in files)
    labels = np.array([file.label for file in files], np.int32)
    return CachedImages(images, labels, names, counts, mean, std)
