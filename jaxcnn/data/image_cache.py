"""Decoded pictures kept as one `.npy` file, which is read as an array or, where it is large, used from the disk."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcnn.data.cache import folder as cached
from jaxcnn.data.folder_splits import ORDER, Choice, parted, twins
from jaxcnn.data.images import ImageError, counted, darkness, decode
from jaxcnn.data.listing import Listed, foreign
from jaxcnn.data.temporary import remove_abandoned, reserved_array, temporary_folder
from jaxcnn.data.types import DataError, channel_statistics, one_line

_FORMAT = 1
_ABOUT, _IMAGES, _MEAN = "pictures.json", "images.npy", "mean.npy"

log = logging.getLogger("jaxcnn.data")


class Kept(NamedTuple):
    """Every picture of a folder, the parts one after another."""

    images: np.ndarray  # uint8 [n, size, size, 3], np.memmap where it is larger than `Plan.memory`
    labels: np.ndarray  # int32 [n]
    names: tuple[str, ...]
    counts: tuple[int, ...]  # of each of ORDER
    mean: np.ndarray  # float32 [size, size, 3], of the training part
    std: np.ndarray  # float32 [3]


class Plan(NamedTuple):
    """What is to be read, and how."""

    root: Path
    classes: tuple[str, ...]
    listed: list[Listed]
    scale: tuple[int, int]  # (size, resize)
    share: Choice
    skip_broken: bool
    memory: int


def pictures_of(plan: Plan) -> Kept:
    """What the cache keeps for this plan, or, if a file has changed or it keeps nothing, what is decoded now and kept.

    Raises:
      PictureError, DataError: as `folder`.
    """
    options = json.dumps([plan.classes, plan.scale, plan.share, plan.skip_broken])
    place = cached(f"folder-{hashlib.sha256(options.encode('utf-8', 'replace')).hexdigest()[:8]}", plan.root)
    stamp = _stamp(plan)
    try:
        found = _read(place, stamp, plan.memory)
    except Exception as error:  # of json and NumPy for bytes that they do not like
        log.warning("the cache %s is damaged: %s; reading the pictures again", place, one_line(error))
        found = None
    return found or _make(plan, place, stamp)


def _stamp(plan: Plan) -> str:
    """A digest of every file's name, part, size and time of change."""
    digest = hashlib.sha256()
    for one in plan.listed:
        try:
            there = os.stat(plan.root / one.name)
            about = (there.st_size, there.st_mtime_ns)
        except OSError:  # a link to nothing, which is told when it is read
            about = None
        digest.update(repr((one, about)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _read(place: Path, stamp: str, memory: int) -> Kept | None:
    """What `place` keeps, or None if that is of other files. The SHA-256 is compared only of what is read whole."""
    if not (place / _ABOUT).is_file():
        return None
    about = json.loads((place / _ABOUT).read_text("utf-8"))
    if (about["format"], about["stamp"]) != (_FORMAT, stamp):
        return None
    large = (place / _IMAGES).stat().st_size > memory
    if not large and _digest(place / _IMAGES) != about["sha256"]:
        raise DataError(f"{_IMAGES} has another SHA-256 than {_ABOUT} says")
    images = np.load(place / _IMAGES, mmap_mode="r" if large else None, allow_pickle=False)
    mean = np.load(place / _MEAN, allow_pickle=False)
    labels, counts = np.array(about["labels"], np.int32), tuple(about["counts"])
    if images.dtype != np.uint8 or images.shape != (sum(counts), *mean.shape) or labels.shape != (sum(counts),):
        raise DataError(f"{_IMAGES} is {images.dtype} {images.shape}, not what {_ABOUT} says")
    for line in about["warnings"]:
        log.warning("%s", line)
    return Kept(images, labels, tuple(about["names"]), counts, mean, np.array(about["std"], np.float32))


def _make(plan: Plan, place: Path, stamp: str) -> Kept:
    chosen = parted(plan.listed, plan.classes, plan.share)
    size = len(chosen) * plan.scale[0] ** 2 * 3
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(place.parent, place.name)  # they may hold the space that is wanted
        if (free := shutil.disk_usage(place.parent).free) < size + (1 << 20):
            raise OSError(0, f"{size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        with temporary_folder(place.parent, place.name) as temporary:
            found = _kept(plan, place, stamp, chosen, temporary)
        if isinstance(found, Kept):
            return found
        return _make(_without(plan, found), place, stamp)  # after the space of the first try is free again
    except OSError as error:
        if size > plan.memory:
            raise DataError(
                f"{len(chosen)} pictures ({size / 1e9:.1f} GB) cannot be kept in {place.parent}: {error.strerror}; "
                "set JAXCNN_CACHE to a folder of a larger disk, or ask for a smaller size"
            ) from None
        log.warning("%s is not kept in %s (%s): the next load decodes it again", plan.root, place, error.strerror)
    images = np.empty((len(chosen), plan.scale[0], plan.scale[0], 3), np.uint8)
    digests, broken, dark = _decoded(plan, chosen, images)
    if broken:
        return _make(_without(plan, broken), place, stamp)
    _warned(plan, chosen, digests, dark)
    return _whole(chosen, images)


def _kept(plan: Plan, place: Path, stamp: str, chosen: list[Listed], temporary: Path) -> Kept | dict[str, str]:
    """Decode onto the disk, and put that in `place` whole; or, if pictures are broken, say which and put nothing there."""
    (new := temporary / "new").mkdir()
    images = reserved_array(new / _IMAGES, (len(chosen), plan.scale[0], plan.scale[0], 3))
    digests, broken, dark = _decoded(plan, chosen, images)
    if broken:
        return broken
    images.flush()
    whole, told = _whole(chosen, images), _warned(plan, chosen, digests, dark)
    np.save(new / _MEAN, whole.mean, allow_pickle=False)
    about = {"format": _FORMAT, "source": str(plan.root), "stamp": stamp, "names": whole.names, "warnings": told}
    about |= {"labels": whole.labels.tolist(), "counts": whole.counts, "std": whole.std.tolist()}
    about |= {"sha256": _digest(new / _IMAGES)}
    (new / _ABOUT).write_text(json.dumps(about), "utf-8")
    large = (new / _IMAGES).stat().st_size > plan.memory
    # Opened before it has its name: from then on another process may put its own in this one's place.
    whole = whole._replace(images=np.load(new / _IMAGES, mmap_mode="r" if large else None, allow_pickle=False))
    _put(new, place, temporary)
    return whole


def _put(new: Path, place: Path, temporary: Path, tries: int = 10) -> None:
    """Rename `new` to `place`; what is there, of changed files or of a quicker process, moves into `temporary`."""
    for attempt in range(tries):
        try:
            if place.exists():
                place.rename(temporary / f"old{attempt}")
            new.rename(place)
            return
        except OSError as error:  # between the two, another process moved it away or put its own there
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST) or attempt == tries - 1:
                raise


def _decoded(
    plan: Plan, chosen: Sequence[Listed], images: np.ndarray
) -> tuple[list[str], dict[str, str], list[tuple[str, int]]]:
    """Fill `images`; each file's digest, what is broken (only if that is skipped), and what `darkness` is to warn of."""
    from tqdm import tqdm

    refused = {one.name: why for one in chosen if (why := foreign(one.name))}
    rows = [at for at, one in enumerate(chosen) if one.name not in refused]
    paths = [plan.root / chosen[at].name for at in rows]
    with tqdm(total=len(paths), desc=f"reading {plan.root.name}", unit="picture", disable=None, leave=False) as bar:
        digests, wrong, low = decode(paths, images, plan.scale, bar.update)
    broken = dict(sorted((refused | {chosen[rows[at]].name: reason for at, reason in wrong.items()}).items()))
    if broken and not plan.skip_broken:
        mend = "mend or delete what is named, or leave it out by skip_broken=True (--skip-broken)"
        raise ImageError([(str(plan.root / name), reason) for name, reason in broken.items()], mend)
    return digests, broken, [(chosen[rows[at]].name, highest) for at, highest in sorted(low.items())]


def _without(plan: Plan, broken: dict[str, str]) -> Plan:
    log.warning("%s: %s; skipped", plan.root, counted(list(broken.items())))
    return plan._replace(listed=[one for one in plan.listed if one.name not in broken])


def _warned(plan: Plan, chosen: Sequence[Listed], digests: Sequence[str], dark: Sequence[tuple[str, int]]) -> list[str]:
    lines = [*twins(chosen, digests), *([darkness(dark)] if dark else [])]
    told = [f"{plan.root}: {line}" for line in lines]
    for line in told:
        log.warning("%s", line)
    return told


def _whole(chosen: Sequence[Listed], images: np.ndarray) -> Kept:
    counts = tuple(sum(one.part == part for one in chosen) for part in ORDER)
    mean, std = channel_statistics(images[: counts[0]])
    names = tuple(one.name for one in chosen)
    return Kept(images, np.array([one.label for one in chosen], np.int32), names, counts, mean, std)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
