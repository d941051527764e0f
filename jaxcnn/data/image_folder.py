"""Data sets from image folders with one directory for each class."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxcnn.arguments import format_value
from jaxcnn.data.checking import verify_dataset
from jaxcnn.data.image_cache import ReadOptions, load_cached_images
from jaxcnn.data.image_io import SUFFIXES, UNSUPPORTED_SUFFIXES, check_sizes
from jaxcnn.data.splits import SPLITS, ImageFile, SplitFractions, check_fractions
from jaxcnn.data.types import DataError, Dataset, Split, one_line, printable, short

SPLIT_DIRECTORIES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of the directory of each split, in upper or lower case."""
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")
"""Files that Windows, macOS and Synology systems create, in lower case."""

log = logging.getLogger("jaxcnn.data")


def image_folder(
    path: str | os.PathLike[str],
    size: int = 224,
    resize: int | None = None,
    *,
    interpolation: str = "bilinear",
    validation: float = 0.0,
    test: float | None = None,
    seed: int = 0,
    skip_broken: bool = False,
    memory: int = 2 << 30,
) -> Dataset:
    """Read a folder of images as a data set.

    The files are `<path>/<class>/...`, or `<path>/train/<class>/...` with `test` and `val` next to
    `train`. `load_image` describes how an image is read. Decoded images are stored in the library's
    cache, once for each path and set of options. They are read from there until a file in the
    folder changes its name, size or time.

    Args:
        path: of the folder. Classes are its directories, in alphabetical order. Images may lie
            deeper in them.
        size: side of the square images, in pixels.
        resize: length of the shorter side before the center is cropped; None is size * 256 / 224.
        interpolation: "bilinear" or "bicubic", both with antialiasing.
        validation: fraction of each class's training images to hold out, where there is no such
            directory. 0 holds out none.
        test: the same for the test split. A class gives at least one image, and the selection does
            not depend on other classes. None is 0.2, or 0 where there is a `val` directory. Then
            `data.validation` is the split to evaluate on.
        seed: of these random selections.
        skip_broken: skip files that cannot be read, with a warning, instead of raising an error.
        memory: bytes above which the images stay on disk, as np.memmap. `train`, `evaluate` and
            `predict` stream those.

    Returns:
        Dataset "folder": uint8 images [n, size, size, 3], labels in the order of `classes`.

    Raises:
        ImageError: some files are not images; the error lists all of them.
        DataError: the folder or an option is invalid.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for name, color in (("apple", "red"), ("lime", "green")):
        ...     (root / name).mkdir()
        ...     for i in range(5):
        ...         Image.new("RGB", (40 + i, 30), color).save(root / name / f"{i}.jpg")
        >>> data = image_folder(root, size=8)
        >>> data.classes, data.train.images.shape, data.test.labels.tolist()
        (('apple', 'lime'), (8, 8, 8, 3), [0, 1])
    """
    options: dict[str, Any] = {"validation": validation, "test": test, "seed": seed}
    options |= {"interpolation": interpolation, "skip_broken": skip_broken, "memory": memory}
    return image_folder_with_paths(path, size, resize, **options)[0]


def image_folder_with_paths(
    path: str | os.PathLike[str],
    size: int = 224,
    resize: int | None = None,
    *,
    interpolation: str = "bilinear",
    validation: float = 0.0,
    test: float | None = None,
    seed: int = 0,
    skip_broken: bool = False,
    memory: int = 2 << 30,
) -> tuple[Dataset, dict[str, tuple[str, ...]]]:
    """Read a folder of images as a data set and file paths.

    The arguments and errors are those of `image_folder`.

    Returns:
        The data set, and for "train", "validation" and "test" the paths of the files. They are in
        the order of the images, and relative to `path`.
    """
    root = _resolve_root(path)
    scale = check_sizes(size, resize, interpolation)
    fractions = check_fractions(validation, 0.2 if test is None else test, seed)
    if type(memory) is not int or memory < 0:
        raise DataError(
            f"memory is {format_value(memory)}; expected bytes, an integer >= 0: write memory=2 << "
            "30"
        )
    if not isinstance(skip_broken, bool):
        raise DataError(
            f"skip_broken is {format_value(skip_broken)}; expected True or False: write "
            "skip_broken=True"
        )
    classes, files = list_images(root)
    fractions = _with_test_fraction(root, fractions, {file.split for file in files}, test is None)
    cached = load_cached_images(
        ReadOptions(root, classes, files, scale, fractions, skip_broken, memory)
    )
    splits, paths, start = {}, {}, 0
    for split, n in zip(SPLITS, cached.counts, strict=True):
        splits[split] = Split(cached.images[start : start + n], cached.labels[start : start + n])
        paths[split] = cached.names[start : start + n]
        start += n
    mean, std = cached.mean, cached.std
    data = Dataset("folder", **splits, classes=classes, mean=mean, std=std, scale=scale)
    verify_dataset(data)
    return data, paths


def _with_test_fraction(
    root: Path, fractions: SplitFractions, directories: set[str], is_default: bool
) -> SplitFractions:
    """Adjust the test fraction to the directories of splits.

    Where there are train and val, but no test, the default fraction becomes 0, and an explicit one
    stays. A warning reports either.
    """
    if "validation" not in directories or "test" in directories or not fractions.test:
        return fractions
    name = next(
        path.name for path in root.iterdir() if path.name.lower() in SPLIT_DIRECTORIES["validation"]
    )
    if is_default:
        log.warning(
            "%s has no test folder: evaluate on %s (the validation split); test=0.2 takes some of "
            "train",
            root,
            name,
        )
        return fractions._replace(test=0.0)
    log.warning(
        "%s has no test folder: %s of each class of train is taken for testing",
        root,
        fractions.test,
    )
    return fractions


def _resolve_root(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser().resolve()
    # Not a path, a NUL, no such ~user, or a cycle of links.
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        value = format_value(path)
        raise DataError(
            f"path is {value}; expected the path of a folder: {one_line(error)}"
        ) from None


# The files of a folder. Nothing below opens a file.


def list_images(root: Path) -> tuple[tuple[str, ...], list[ImageFile]]:
    """List the classes and the image files of a folder.

    Hidden files and files of operating systems are skipped. A warning names other files that are
    not images.

    Returns:
        The class names, sorted, and all image files. Their order does not depend on the operating
        system.

    Raises:
        DataError: there is no such folder, it has fewer than two class directories, two splits have
            different classes, or a class has no image.
    """
    try:
        if not root.is_dir():
            raise DataError(
                f"{root} is {'a file' if root.exists() else 'not there'}; expected a folder with "
                f"a subfolder of images for each class, such as {root / 'apple/1.jpg'}"
            )
        return _list_files(root)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}; fix that") from None


def _list_files(root: Path) -> tuple[tuple[str, ...], list[ImageFile]]:
    split_folders, skipped = find_split_folders(root), []
    classes = _class_names(root, split_folders)
    files: list[ImageFile] = []
    for split, folder in split_folders.items():
        for path in _entries(folder):
            if not path.is_dir():
                skipped.append(path)
                continue
            for file in _walk(path):
                if _is_image_name(file):
                    files.append(
                        ImageFile(
                            file.relative_to(root).as_posix(),
                            split,
                            classes.index(_class_name(path)),
                        )
                    )
                else:
                    skipped.append(file)
    if len(split_folders) > 1 or "" not in split_folders:
        skipped += [path for path in _entries(root) if path not in split_folders.values()]
    _warn_of_skipped(root, skipped)
    _check_class_sizes(root, classes, files, "train" if "train" in split_folders else "")
    return classes, sorted(files)


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """List the image files in a folder and its subfolders, sorted by their paths.

    Files are told by their names, as in `image_folder`. Hidden ones are left out, and a warning
    names others. Images of formats that are not read are listed, so that reading them is an error.

    Raises:
        DataError: there is no such folder, it cannot be read, or has no image.
    """
    root = Path(folder)
    try:
        if not root.is_dir():
            raise DataError(f"{root} is no folder; expected a folder of images")
        files = sorted(_walk(root), key=lambda path: path.as_posix())
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}; fix that") from None
    images = [file for file in files if _is_image_name(file)]
    _warn_of_skipped(root, [file for file in files if not _is_image_name(file)])
    if not images:
        raise DataError(
            f"{root} has no image in it; expected some ({', '.join(s[1:] for s in SUFFIXES)})"
        )
    return images


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES + UNSUPPORTED_SUFFIXES


def find_split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split, or {"": root}.

    The latter is the result where the folders of `root` are the classes. One of these may be called
    train.
    """
    folders = [path for path in _entries(root) if path.is_dir()]
    by_split = {
        split: [path for path in folders if path.name.lower() in names]
        for split, names in SPLIT_DIRECTORIES.items()
    }
    split_folders = [path for paths in by_split.values() for path in paths]
    if not split_folders:
        return {"": root}
    others = [path for path in folders if path not in split_folders and _has_image(path)]
    # A train folder without folders of classes is itself a class.
    if others and not any(map(_subfolders, by_split["train"])):
        return {"": root}
    for split, paths in by_split.items():
        if len(paths) > 1:
            both = " and ".join(path.name for path in paths)
            raise DataError(
                f"{root} has {both}, two folders for {split}; expected one: delete or rename the "
                "other"
            )
    if by_split["train"]:
        if others:
            _check_unambiguous(
                root, by_split["train"][0], by_split["test"] + by_split["validation"], others
            )
        return {split: paths[0] for split, paths in by_split.items() if paths}
    if folders and len(split_folders) == len(folders):
        names = " and ".join(path.name for path in folders)
        raise DataError(
            f"{root} has {names}, but no train; expected train/CLASS/... beside it, or CLASS/... "
            "alone"
        )
    return {"": root}


def _check_unambiguous(
    root: Path, train: Path, split_folders: Sequence[Path], others: Sequence[Path]
) -> None:
    """Check that `train` cannot be a class as well.

    It is a split if another split has the same folders inside.

    Raises:
        DataError: no other split has them.
    """
    class_names = _subfolders(train)
    if any(_subfolders(folder) == class_names for folder in split_folders):
        return
    siblings, classes = (
        short(", ".join(sorted(names)), 120)
        for names in ({path.name for path in others}, class_names)
    )
    raise DataError(
        f"{root} can be read in two ways: {train.name} is a class beside {siblings}, "
        f"or holds the classes {classes}: rename {train.name}, or move {siblings} elsewhere"
    )


def _subfolders(folder: Path) -> set[str]:
    return {path.name for path in _entries(folder) if path.is_dir()}


def _has_image(folder: Path) -> bool:
    return any(map(_is_image_name, _walk(folder)))


def _class_names(root: Path, split_folders: dict[str, Path]) -> tuple[str, ...]:
    """Return sorted class names; check that all splits have the same."""
    by_split = {
        split: sorted(_class_name(path) for path in _entries(folder) if path.is_dir())
        for split, folder in split_folders.items()
    }
    classes = by_split.get("train", by_split.get("", []))
    if len(set(classes)) < 2:
        count = f"one folder of a class, {classes[0]}" if classes else "no folders of classes"
        root = split_folders.get("train", root)
        is_class = not classes and any(map(_is_image_name, _entries(root)))
        # A class was given in place of the folder of all classes.
        fix = f"write its parent, {root.parent}" if is_class else f"write {root}/apple/1.jpg, say"
        raise DataError(f"{root} has {count}; expected two or more, each with its images: {fix}")
    for split, names in by_split.items():
        for missing, place in (
            (set(names) - set(classes), "train"),
            (set(classes) - set(names), split),
        ):
            if missing:
                listed = short(", ".join(sorted(missing)), 120)
                raise DataError(
                    f"{root}: {place} lacks the classes {listed}; expected the same in train and "
                    f"{split}"
                )
    return tuple(classes)


def _class_name(path: Path) -> str:
    """Return the name of a class directory in Unicode form NFC.

    macOS stores an accent as a separate character (NFD). Other systems do not.
    """
    name = unicodedata.normalize("NFC", path.name)
    # Among these are names that are not UTF-8.
    if not name.isprintable():
        raise DataError(
            f"a class is called {format_value(name)}, which cannot be printed; rename its folder"
        )
    return name


def _entries(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.name[0] != "." and path.name.lower() not in _SYSTEM_FILES
    ]


def _walk(folder: Path, ancestors: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders.

    Links are followed, except those to an ancestor, which would not end.
    """
    resolved = folder.resolve()
    if resolved in ancestors:
        log.warning("%s leads back to %s, and is passed over", folder, resolved)
        return
    for path in _entries(folder):
        if path.is_dir():
            yield from _walk(path, (*ancestors, resolved))
        else:
            yield path


def _warn_of_skipped(root: Path, skipped: Sequence[Path]) -> None:
    if skipped:
        names = [
            printable(path.relative_to(root).as_posix()) + "/" * path.is_dir()
            for path in sorted(skipped)
        ]
        ellipsis = ", ..." if len(names) > 3 else ""
        log.warning(
            "%s: %d skipped, whose names are not those of images: %s%s",
            root,
            len(skipped),
            ", ".join(names[:3]),
            ellipsis,
        )


def _check_class_sizes(
    root: Path, classes: tuple[str, ...], files: Iterable[ImageFile], split: str
) -> None:
    """Check that every class has an image in `split`."""
    count = Counter(file.label for file in files if file.split == split)
    if empty := [name for label, name in enumerate(classes) if not count[label]]:
        names, folder = short(", ".join(empty), 120), root / split if split else root
        suffixes = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise DataError(
            f"{folder}: no image in {names}; expected some ({suffixes}): add them, or delete the "
            "folder"
        )
