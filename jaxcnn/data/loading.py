"""Loading of data sets by name, from the first available source."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path

import numpy as np

from jaxcnn.arguments import format_value
from jaxcnn.data import archives, cache, tfds
from jaxcnn.data.registry import DatasetInfo, dataset_info
from jaxcnn.data.splits import hold_out
from jaxcnn.data.types import DataError, Dataset, Split, assemble, check, one_line

log = logging.getLogger("jaxcnn.data")


def load_dataset(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, validation: int = 0, seed: int = 0
) -> Dataset:
    """Load a whole data set as arrays.

    `digits` comes with scikit-learn. The others come from the first of these sources that has them:

    1. the arrays that an earlier load decoded, in `$JAXCNN_CACHE/data/<name>/`. Without that
       variable, they are under `$XDG_CACHE_HOME/jaxcnn` or `~/.cache/jaxcnn`;
    2. a directory prepared by TensorFlow Datasets under `$TFDS_DATA_DIR` or
       `~/tensorflow_datasets`;
    3. the original archives, put by hand into the folder `manual/<name>` of one of those;
    4. a download into that folder, whose checksum TensorFlow Datasets has registered.

    A `data_dir` precedes all of them. It has a cache of its own, so that nothing hides its content.
    Delete the cache folder after you change data in place.

    Args:
        name: one of `DATASETS`.
        data_dir: a folder like `$TFDS_DATA_DIR`.
        validation: the number of training images to hold out (see `hold_out`).
        seed: of that random selection.

    Returns:
        Dataset: uint8 images [n, h, w, c], int32 labels [n]; mean and std of the training images in
        0..1.

    Raises:
        DataError: the name is unknown, there is no data (within 5 s where there is no network), or
            the data is damaged.

    Example:
        >>> data = load_dataset("digits")
        >>> data.train.images.shape, data.train.images.dtype, data.classes[-1]
        ((1437, 8, 8, 1), dtype('uint8'), '9')

    References:
        https://www.tensorflow.org/datasets/catalog/overview (the data sets, their checksums and
        layout).
    """
    info = dataset_info(name)
    # An empty text, as from an unset variable, is the default too.
    if isinstance(data_dir, str) and not data_dir:
        data_dir = None
    folder = None if data_dir is None else _resolve_data_dir(data_dir)
    train, test = digits() if name == "digits" else _load_splits(name, info, folder)
    return hold_out(assemble(name, train, test, info.shape, info.classes), validation, seed)


def digits() -> tuple[Split, Split]:
    """Read scikit-learn's digits: 1,437 training and 360 test images.

    They are real images, uint8 [n, 8, 8, 1], and need no download. The gray levels 0..16 become
    round(level * 255 / 16), in integers: 17 different values from 0 to 255. The split is always the
    same. Images are shuffled once with seed 0 and sorted by class, and every fifth is a test image.
    So every class gives a fifth of its images, to within one.

    Returns:
        The train and the test split.

    Example:
        >>> train, test = digits()
        >>> train.images.shape, test.images.shape
        ((1437, 8, 8, 1), (360, 8, 8, 1))

    References:
        Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1995
        (its test part).
    """
    levels, labels = _read_digits()
    # Adding 8 rounds the integer division to the nearest value.
    images = ((levels.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    test = np.zeros(len(labels), bool)
    test[order[::5]] = True
    return Split(images[~test], labels[~test]), Split(images[test], labels[test])


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the gray levels 0..16, [1797, 64], and the labels, [1797], in scikit-learn's order."""
    # Importing scikit-learn takes most of a second. Its file is read without that.
    spec = importlib.util.find_spec("sklearn")
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            table = np.loadtxt(file, np.uint8, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    return np.asarray(levels), np.asarray(labels)


def _resolve_data_dir(data_dir: str | os.PathLike[str]) -> Path:
    try:
        return Path(data_dir).expanduser().resolve()
    # Not a path, a NUL, no such ~user, or a cycle of links.
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        value = format_value(data_dir)
        raise DataError(
            f"data_dir is {value}; expected the path of a folder: {one_line(error)}"
        ) from None


def _load_splits(name: str, info: DatasetInfo, data_dir: Path | None) -> tuple[Split, Split]:
    """Load the splits from `data_dir`, the default folders, or a download."""
    roots = _roots()
    # The places that were searched, for the error.
    searched: list[str] = []
    if data_dir:
        folder = cache.dataset_folder(name, data_dir)
        if splits := _load_local(name, info, folder, [data_dir], searched):
            return splits
        log.warning("%s holds no %s: looking where load_dataset(%r) looks", data_dir, name, name)
    if splits := _load_local(name, info, cache.dataset_folder(name), roots, searched):
        return splits
    return _download(name, info, data_dir, data_dir or roots[0], searched)


def _roots() -> list[Path]:
    """Return the folders that TFDS would use.

    In a container without a home directory, this is a folder below the cache.
    """
    variable = os.environ.get("TFDS_DATA_DIR")
    home = os.path.expanduser("~/tensorflow_datasets")
    roots = [Path(os.path.expanduser(variable))] if variable else []
    if not home.startswith("~"):
        return [*roots, Path(home)]
    return roots or [cache.cache_root() / "tensorflow_datasets"]


def _load_local(
    name: str, info: DatasetInfo, cache_folder: Path, roots: list[Path], searched: list[str]
) -> tuple[Split, Split] | None:
    """Load splits from the cache, or from files under `roots`.

    Splits from files are cached. Places without the data set are appended to `searched`.
    """
    try:
        if splits := cache.read(cache_folder):
            _check_splits(str(cache_folder), info, splits)
            return splits
        searched.append(str(cache_folder))
    except DataError as error:
        log.warning("%s; reading the source again", error)
        searched.append(str(error))
    for root in roots:
        if folder := tfds.find(name, root):
            return _store(cache_folder, name, info, folder, tfds.read(folder, name, info))
        searched.append(str(root / name))
    for root in roots:
        folder = root / "manual" / name
        missing = [file for file in info.archives if not (folder / file).is_file()]
        if not missing:
            return _store(cache_folder, name, info, folder, _parse_manual(name, info, folder))
        is_partial = len(missing) < len(info.archives)
        searched.append(str(folder) + (f" (lacks {', '.join(missing)})" if is_partial else ""))
    return None


def _parse_manual(name: str, info: DatasetInfo, folder: Path) -> tuple[Split, Split]:
    """Verify and parse archives that were put into `folder` by hand."""
    sources = archives.registered_sources(name, info.archives)
    for source in sources:
        archives.verify(folder / source.filename, source)
    return archives.parse(name, [folder / source.filename for source in sources])


def _download(
    name: str, info: DatasetInfo, data_dir: Path | None, root: Path, searched: list[str]
) -> tuple[Split, Split]:
    sources = archives.registered_sources(name, info.archives)
    folder = root / "manual" / name
    if reason := archives.unreachable_reason(sources[0].url):
        size = sum(source.size for source in sources) / 1e6
        urls = ", ".join(source.url for source in sources)
        raise DataError(
            f"{name} is not in {', '.join(searched)}, and cannot be downloaded ({reason}): "
            f"put {urls} ({size:.1f} MB) into {folder} by hand, or use load_dataset('digits'), "
            "which needs no download"
        )
    with archives.download(name, sources, folder) as paths:
        splits = archives.parse(name, paths)
    return _store(cache.dataset_folder(name, data_dir), name, info, folder, splits)


def _store(
    cache_folder: Path, name: str, info: DatasetInfo, source: Path, splits: tuple[Split, Split]
) -> tuple[Split, Split]:
    """Check splits, write them to the cache, and return them."""
    _check_splits(str(source), info, splits)
    cache.write(cache_folder, name, str(source), info.classes, *splits)
    return splits


def _check_splits(source: str, info: DatasetInfo, splits: tuple[Split, Split]) -> None:
    for name, split in zip(("train", "test"), splits, strict=True):
        check(f"{source}: {name}", split, info.shape, len(info.classes))
