"""Which files of a folder are pictures of which class and part; nothing is opened here."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxcnn.arguments import format_value
from jaxcnn.data.types import DataError, printable, short

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
OTHERS = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".psd", ".svg")
"""Pictures too, but not read here: to pass them over would lose what the user means to have."""
PARTS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}
"""A part -> what its folder may be called, in letters of either case."""
_LITTER = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # of Windows, macOS and Synology

log = logging.getLogger("jaxcnn.data")


class Listed(NamedTuple):
    """One picture in a folder."""

    name: str  # its path from the folder on, with "/"
    part: str  # "train", "validation", "test", or "" where the folder has no parts
    label: int


def listing(root: Path) -> tuple[tuple[str, ...], list[Listed]]:
    """Class names, sorted, and every picture under `root`, in an order that does not depend on the operating system.

    Hidden files and what operating systems leave behind are skipped; other files are named in a warning.

    Raises:
      DataError: no such folder, no folders of classes, fewer than two, different ones in two parts, or a class of no picture.
    """
    try:
        if not root.is_dir():
            raise DataError(f"{root} is {'a file' if root.exists() else 'not there'}; expected a folder of pictures")
        return _listed(root)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}; mend that") from None


def _listed(root: Path) -> tuple[tuple[str, ...], list[Listed]]:
    parts, odd = _parts(root), []
    classes = _classes(root, parts)
    found: list[Listed] = []
    for part, folder in parts.items():
        for path in _entries(folder):
            if not path.is_dir():
                odd.append(path)
                continue
            for file in _files(path):
                kind = file.suffix.lower()
                if kind in SUFFIXES or kind in OTHERS:
                    found.append(Listed(file.relative_to(root).as_posix(), part, classes.index(_name(path))))
                else:
                    odd.append(file)
    if len(parts) > 1 or "" not in parts:
        odd += [path for path in _entries(root) if path not in parts.values()]
    _tell(root, odd)
    _every_class(root, classes, found, "train" if "train" in parts else "")
    return classes, sorted(found)


def _parts(root: Path) -> dict[str, Path]:
    """Part -> folder; {"": root} where the folders of `root` are the classes, one of which may be called train."""
    folders = [path for path in _entries(root) if path.is_dir()]
    named = {part: [path for path in folders if path.name.lower() in names] for part, names in PARTS.items()}
    there = [path for paths in named.values() for path in paths]
    if not there:
        return {"": root}
    others = [path for path in folders if path not in there and _has_picture(path)]
    if others and not any(map(_subfolders, named["train"])):
        return {"": root}
    for part, paths in named.items():
        if len(paths) > 1:
            both = " and ".join(path.name for path in paths)
            raise DataError(f"{root} has {both}, two folders for {part}; expected one: delete or rename the other")
    if named["train"]:
        if others:
            _one_reading(root, named["train"][0], named["test"] + named["validation"], others)
        return {part: paths[0] for part, paths in named.items() if paths}
    if folders and len(there) == len(folders):
        names = " and ".join(path.name for path in folders)
        raise DataError(f"{root} has {names}, but no train; expected train/CLASS/... beside it, or CLASS/... alone")
    return {"": root}


def _one_reading(root: Path, train: Path, parts: Sequence[Path], others: Sequence[Path]) -> None:
    """DataError if `train` may as well be a class, for no part beside it has the same folders."""
    inside = _subfolders(train)
    if any(_subfolders(part) == inside for part in parts):
        return
    beside, classes = (short(", ".join(sorted(names)), 120) for names in ({path.name for path in others}, inside))
    raise DataError(
        f"{root} can be read in two ways: {train.name} is a class beside {beside}, or holds the classes {classes}: rename "
        f"{train.name}, or move {beside} elsewhere"
    )


def _subfolders(folder: Path) -> set[str]:
    return {path.name for path in _entries(folder) if path.is_dir()}


def _has_picture(folder: Path) -> bool:
    return any(file.suffix.lower() in SUFFIXES + OTHERS for file in _files(folder))


def _classes(root: Path, parts: dict[str, Path]) -> tuple[str, ...]:
    """Names of the classes, the same in every part."""
    found = {part: sorted(_name(path) for path in _entries(at) if path.is_dir()) for part, at in parts.items()}
    classes = found.get("train", found.get("", []))
    if len(set(classes)) < 2:
        there = f"one folder of a class, {classes[0]}" if classes else "no folders of classes"
        root = parts.get("train", root)
        raise DataError(f"{root} has {there}; expected two or more, each with its pictures: {root}/apple/1.jpg, say")
    for part, names in found.items():
        for one, lacks in ((set(names) - set(classes), "train"), (set(classes) - set(names), part)):
            if one:
                shown = short(", ".join(sorted(one)), 120)
                raise DataError(f"{root}: {lacks} lacks the classes {shown}; expected the same in train and {part}")
    return tuple(classes)


def _name(path: Path) -> str:
    """A class's name; macOS writes an accent as a letter of its own (NFD), others do not."""
    name = unicodedata.normalize("NFC", path.name)
    if not name.isprintable():  # among them names that are no UTF-8
        raise DataError(f"a class is called {format_value(name)}, which cannot be printed; rename its folder")
    return name


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name[0] != "." and path.name.lower() not in _LITTER]


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files in a folder and the folders in it. Links are followed, but not to a folder on the way there."""
    here = folder.resolve()
    if here in above:
        log.warning("%s leads back to %s, and is passed over", folder, here)
        return
    for path in _entries(folder):
        if path.is_dir():
            yield from _files(path, (*above, here))
        else:
            yield path


def _tell(root: Path, odd: Sequence[Path]) -> None:
    if odd:
        names = [printable(path.relative_to(root).as_posix()) + "/" * path.is_dir() for path in sorted(odd)]
        more = ", ..." if len(names) > 3 else ""
        log.warning("%s: passed over, for no picture's name: %d, %s%s", root, len(odd), ", ".join(names[:3]), more)


def _every_class(root: Path, classes: tuple[str, ...], found: Iterable[Listed], part: str) -> None:
    count = Counter(one.label for one in found if one.part == part)
    if empty := [name for label, name in enumerate(classes) if not count[label]]:
        names, folder = short(", ".join(empty), 120), root / part if part else root
        kinds = ", ".join(kind[1:] for kind in SUFFIXES)
        raise DataError(f"{folder}: no picture in {names}; expected some ({kinds}): add them, or delete the folder")


def foreign(name: str) -> str | None:
    """Why a picture is not read, told by its name; None if it is."""
    kind = os.path.splitext(name)[1].lower()
    return f"{kind[1:]} is not read here; convert it to JPEG" if kind in OTHERS else None
