"""`load_dataset`: where the images of a data set come from, in which order, and the one error when they come from nowhere."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from jaxcnn.arguments import format_value
from jaxcnn.data import archives, cache, download, tfds
from jaxcnn.data.digits import digits
from jaxcnn.data.registry import DatasetInfo, dataset_info
from jaxcnn.data.splits import hold_out
from jaxcnn.data.types import DataError, Dataset, Split, assemble, check, one_line

log = logging.getLogger("jaxcnn.data")


def load_dataset(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, validation: int = 0, seed: int = 0
) -> Dataset:
    """Load a data set whole, as arrays.

    `digits` comes with scikit-learn. The others come from the first of these that holds them:

    1. the arrays that an earlier load decoded, in `$JAXCNN_CACHE/data/<name>/` (without that variable, under
       `$XDG_CACHE_HOME/jaxcnn` or `~/.cache/jaxcnn`);
    2. a directory prepared by TensorFlow Datasets under `$TFDS_DATA_DIR` or `~/tensorflow_datasets`;
    3. the original archives, put by hand into the folder `manual/<name>` of one of those;
    4. a download into that folder, whose checksum TensorFlow Datasets has registered.

    A `data_dir` goes before all of them, with a cache of its own, so nothing hides what it holds. Delete the cache
    folder after changing data in place.

    Args:
        name: one of `DATASETS`.
        data_dir: a folder like `$TFDS_DATA_DIR`.
        validation: how many training images to hold out (see `hold_out`).
        seed: of that choice.

    Returns:
        Dataset: uint8 images [n, h, w, c], int32 labels [n]; mean and std of the training images in 0..1.

    Raises:
        DataError: no such name, no data (within 5 s where there is no network), or damaged data.

    Example:
        >>> data = load_dataset("digits")
        >>> data.train.images.shape, data.train.images.dtype, data.classes[-1]
        ((1437, 8, 8, 1), dtype('uint8'), '9')

    References:
        https://www.tensorflow.org/datasets/catalog/overview (the data sets, their checksums and layout).
    """
    facts = dataset_info(name)
    folder = None if data_dir is None or (isinstance(data_dir, str) and not data_dir) else _folder(data_dir)
    train, test = digits() if name == "digits" else _obtain(name, facts, folder)
    return hold_out(assemble(name, train, test, facts.shape, facts.classes), validation, seed)


def _folder(data_dir: str | os.PathLike[str]) -> Path:
    try:
        return Path(data_dir).expanduser().resolve()
    except (TypeError, ValueError, RuntimeError, OSError) as error:  # no path, a NUL, no such ~user, links in a ring
        found = format_value(data_dir)
        raise DataError(f"data_dir is {found}; expected the path of a folder: {one_line(error)}") from None


def _obtain(name: str, facts: DatasetInfo, data_dir: Path | None) -> tuple[Split, Split]:
    roots = _roots()
    looked: list[str] = []
    if data_dir:
        if found := _find(name, facts, cache.folder(name, data_dir), [data_dir], looked):
            return found
        log.warning("%s holds no %s: looking where load(%r) looks", data_dir, name, name)
    if found := _find(name, facts, cache.folder(name), roots, looked):
        return found
    return _download(name, facts, data_dir, data_dir or roots[0], looked)


def _roots() -> list[Path]:
    """Name the folders that TFDS would use; in a container without a home directory, one below the cache."""
    named, home = os.environ.get("TFDS_DATA_DIR"), os.path.expanduser("~/tensorflow_datasets")
    roots = [Path(os.path.expanduser(named))] if named else []
    if not home.startswith("~"):
        return [*roots, Path(home)]
    return roots or [cache.root() / "tensorflow_datasets"]


def _find(
    name: str, facts: DatasetInfo, kept: Path, roots: list[Path], looked: list[str]
) -> tuple[Split, Split] | None:
    """Try the cache `kept`, then what is under `roots`, and keep that; note in `looked` what is not there."""
    try:
        if found := cache.read(kept):
            _check(str(kept), facts, found)
            return found
        looked.append(str(kept))
    except DataError as error:
        log.warning("%s; reading the source again", error)
        looked.append(str(error))
    for root in roots:
        if folder := tfds.find(name, root):
            return _keep(kept, name, facts, folder, tfds.read(folder, name, facts))
        looked.append(str(root / name))
    for root in roots:
        folder = root / "manual" / name
        missing = [file for file in facts.archives if not (folder / file).is_file()]
        if not missing:
            return _keep(kept, name, facts, folder, _by_hand(name, facts, folder))
        looked.append(str(folder) + (f" (lacks {', '.join(missing)})" if len(missing) < len(facts.archives) else ""))
    return None


def _by_hand(name: str, facts: DatasetInfo, folder: Path) -> tuple[Split, Split]:
    sources = download.registered(name, facts.archives)
    for source in sources:
        download.verify(folder / source.filename, source)
    return archives.parse(name, [folder / source.filename for source in sources])


def _download(
    name: str, facts: DatasetInfo, data_dir: Path | None, root: Path, looked: list[str]
) -> tuple[Split, Split]:
    sources = download.registered(name, facts.archives)
    folder = root / "manual" / name
    if reason := download.unreachable(sources[0].url):
        size = sum(source.size for source in sources) / 1e6
        urls = ", ".join(source.url for source in sources)
        raise DataError(
            f"{name} is not in {', '.join(looked)}, and cannot be downloaded ({reason}): put {urls} ({size:.1f} MB) "
            f"into {folder} by hand, or use load('digits'), which needs no download"
        )
    with download.downloaded(name, sources, folder) as paths:
        splits = archives.parse(name, paths)
    return _keep(cache.folder(name, data_dir), name, facts, folder, splits)


def _keep(kept: Path, name: str, facts: DatasetInfo, source: Path, splits: tuple[Split, Split]) -> tuple[Split, Split]:
    _check(str(source), facts, splits)
    cache.write(kept, name, str(source), facts.classes, *splits)
    return splits


def _check(source: str, facts: DatasetInfo, splits: tuple[Split, Split]) -> None:
    for part, split in zip(("train", "test"), splits, strict=True):
        check(f"{source}: {part}", split, facts.shape, len(facts.classes))
