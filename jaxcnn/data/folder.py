"""Your own pictures: a folder with one directory for each class, as a data set of squares."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from jaxcnn.arguments import format_value
from jaxcnn.data.checking import verify_dataset
from jaxcnn.data.folder_splits import ORDER, Choice, choice
from jaxcnn.data.image_cache import Plan, pictures_of
from jaxcnn.data.images import sides
from jaxcnn.data.listing import PARTS, listing
from jaxcnn.data.types import DataError, Dataset, Split, one_line

log = logging.getLogger("jaxcnn.data")


def image_folder(
    path: str | os.PathLike[str],
    size: int = 224,
    resize: int | None = None,
    *,
    validation: float = 0.0,
    test: float | None = None,
    seed: int = 0,
    skip_broken: bool = False,
    memory: int = 2 << 30,
) -> Dataset:
    """Read a folder of pictures, called `<path>/<class>/...`, or `<path>/train/<class>/...` with `test` and `val` beside it.

    Every picture is read as `picture` says. What is decoded is kept in the library's cache, once for a path and these options,
    and read from there until a file in the folder changes its name, size or time.

    Args:
      path: of the folder. Classes are its directories, in alphabetical order; the pictures may lie deeper in them.
      size: side of the squares, in pixels.
      resize: what the shorter side becomes before the middle is cut out; None is size * 256 / 224.
      validation: the share of each class's training pictures that is held out, where there is no such directory; 0 is none.
      test: likewise for testing. At least one picture a class, and the same whatever is in the other classes. None is 0.2, or
        0 where there is a `val` directory: then that is what to evaluate on, as `data.validation`.
      seed: of these choices.
      skip_broken: leave out what cannot be read, with a warning, instead of refusing the folder.
      memory: bytes above which the images stay on disk, as np.memmap: `train`, `evaluate` and `predict` stream those.

    Returns:
      Dataset "folder": uint8 images [n, size, size, 3], labels in the order of `classes`.

    Raises:
      PictureError: files that are no pictures, all of them at once.
      DataError: the folder, or an option, is not what it should be.

    Example:
      >>> import tempfile
      >>> from PIL import Image
      >>> root = Path(tempfile.mkdtemp())
      >>> for name, colour in (("apple", "red"), ("lime", "green")):
      ...     (root / name).mkdir()
      ...     for i in range(5):
      ...         Image.new("RGB", (40 + i, 30), colour).save(root / name / f"{i}.jpg")
      >>> data = image_folder(root, size=8)
      >>> data.classes, data.train.images.shape, data.test.labels.tolist()
      (('apple', 'lime'), (8, 8, 8, 3), [0, 1])
    """
    options: dict[str, Any] = {"validation": validation, "test": test, "seed": seed}
    return image_folder_with_paths(path, size, resize, **options, skip_broken=skip_broken, memory=memory)[0]


def image_folder_with_paths(
    path: str | os.PathLike[str],
    size: int = 224,
    resize: int | None = None,
    *,
    validation: float = 0.0,
    test: float | None = None,
    seed: int = 0,
    skip_broken: bool = False,
    memory: int = 2 << 30,
) -> tuple[Dataset, dict[str, tuple[str, ...]]]:
    """`folder`, and for "train", "validation" and "test" the files' names in the order of the images, as from `path` on."""
    root, scale, share = _root(path), sides(size, resize), choice(validation, 0.2 if test is None else test, seed)
    if type(memory) is not int or memory < 0:
        raise DataError(f"memory is {format_value(memory)}; expected bytes, an integer >= 0: write memory=2 << 30")
    if not isinstance(skip_broken, bool):
        raise DataError(f"skip_broken is {format_value(skip_broken)}; expected True or False: write skip_broken=True")
    classes, listed = listing(root)
    share = _taken(root, share, {one.part for one in listed}, test is None)
    kept = pictures_of(Plan(root, classes, listed, scale, share, skip_broken, memory))
    splits, names, first = {}, {}, 0
    for part, n in zip(ORDER, kept.counts, strict=True):
        splits[part] = Split(kept.images[first : first + n], kept.labels[first : first + n])
        names[part] = kept.names[first : first + n]
        first += n
    data = Dataset("folder", **splits, classes=classes, mean=kept.mean, std=kept.std)
    verify_dataset(data)
    return data, names


def _taken(root: Path, share: Choice, parts: set[str], by_default: bool) -> Choice:
    """The share to take for testing, where there are train and val but no test; what is done then is said."""
    if "validation" not in parts or "test" in parts or not share.test:
        return share
    name = next(path.name for path in root.iterdir() if path.name.lower() in PARTS["validation"])
    if by_default:
        log.warning(
            "%s has no test folder: evaluate on %s (the validation split); test=0.2 takes some of train", root, name
        )
        return share._replace(test=0.0)
    log.warning("%s has no test folder: %s of each class of train is taken for testing", root, share.test)
    return share


def _root(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser().resolve()
    except (TypeError, ValueError, RuntimeError, OSError) as error:  # no path, a NUL, no such ~user, links in a ring
        found = format_value(path)
        raise DataError(f"path is {found}; expected the path of a folder: {one_line(error)}") from None
