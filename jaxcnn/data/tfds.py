"""Directories that TensorFlow Datasets prepared, `<root>/<name>/<version>/`, read without TensorFlow.

Both of its formats are read: array_record, whose reader verifies hashes itself, and TFRecord (see `tfrecord`).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from jaxcnn.data.registry import DatasetInfo
from jaxcnn.data.tfrecord import records
from jaxcnn.data.types import DataError, Split, one_line, short


def find(name: str, root: Path) -> Path | None:
    """Find the highest prepared version of `name` under `root`; None where there is none."""
    versions = [
        path.parent
        for path in (root / name).glob("*/dataset_info.json")
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9}){2}", path.parent.name) and path.is_file()
    ]
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def read(folder: Path, name: str, facts: DatasetInfo) -> tuple[Split, Split]:
    """Decode the train and test split of a prepared directory, in the order of its files.

    Args:
        folder: what `find` found.
        name: of the data set, as in the names of the files.
        facts: the shape and the classes that the records must have.

    Raises:
        DataError: a file is missing, damaged, or does not hold what `dataset_info.json` and `facts` say.
    """
    names = folder / "label.labels.txt"  # not written for classes that are mere numbers
    if names.is_file() and (found := tuple(names.read_text("utf-8", "replace").splitlines())) != facts.classes:
        raise DataError(f"{names} names the classes {short(str(found))}; expected {short(str(facts.classes))}")
    train, test = (_split(folder, name, split, facts) for split in ("train", "test"))
    return train, test


def _split(folder: Path, name: str, split: str, facts: DatasetInfo) -> Split:
    from tqdm import tqdm

    shards = _shards(folder, name, split)
    total = sum(count for _, count in shards)
    images, labels = np.empty((total, *facts.shape), np.uint8), np.empty(total, np.int32)
    progress = tqdm(_examples(shards, facts), f"decoding {name} {split}", total, disable=None, leave=False)
    for index, (image, label) in enumerate(progress):
        images[index], labels[index] = image, label
    return Split(images, labels)


def _shards(folder: Path, name: str, split: str) -> list[tuple[Path, int]]:
    """Read from `dataset_info.json` which files hold a split, and how many records each must hold."""
    try:
        info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
        counts = [int(n) for part in info["splits"] if part["name"] == split for n in part["shardLengths"]]
        suffix = info.get("fileFormat", "tfrecord")  # which old versions of TFDS do not write
    except Exception as error:  # it may be any JSON, or none, or a thousand brackets
        raise DataError(f"{folder / 'dataset_info.json'} cannot be read: {short(repr(error), 200)}") from error
    if suffix not in ("array_record", "tfrecord"):
        found = short(repr(suffix))
        raise DataError(f"{folder} is prepared as {found}; expected array_record or tfrecord, so prepare it as one")
    shards = []
    for index, count in enumerate(counts):
        file = folder / f"{name}-{split}.{suffix}-{index:05d}-of-{len(counts):05d}"
        if not file.is_file():
            raise DataError(f"{folder} lacks {file.name}; prepare it again, or delete it")
        size = file.stat().st_size
        if not 0 <= count <= size:  # said before memory is taken for so many
            raise DataError(
                f"{file} has {size} bytes, and {short(str(count))} records by dataset_info.json; prepare it again"
            )
        shards.append((file, count))
    if not shards:
        raise DataError(f"{folder} lacks the {split} split; prepare it again, or delete it")
    return shards


def _examples(shards: list[tuple[Path, int]], facts: DatasetInfo) -> Iterator[tuple[np.ndarray, np.int32]]:
    import tensorflow_datasets as tfds

    # Features of our own, so that a features.json cannot name modules to import.
    classes = tfds.features.ClassLabel(num_classes=len(facts.classes))
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=facts.shape), "label": classes})
    encoded = {"image": tfds.decode.SkipDecoding()}  # decoded here: one decoder, with or without OpenCV
    for file, count in shards:
        found = _records(file)
        if len(found) != count:
            raise DataError(f"{file} holds {len(found)} records; expected {count}, as dataset_info.json says")
        for index, record in enumerate(found):
            try:
                example = cast(dict[str, Any], features.deserialize_example_np(record, decoders=encoded))
                image, label = _pixels(example["image"], facts.shape), np.int32(example["label"])
            except Exception as error:  # whatever TFDS, protobuf and Pillow raise for bytes that they do not like
                what = f"record {index} of {file} is no labelled {facts.shape} image"
                raise DataError(f"{what}: {one_line(error)}") from error
            yield image, label


def _records(file: Path) -> list[bytes]:
    if ".tfrecord-" in file.name:
        return records(file)
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(file))
        try:
            return reader.read_all()
        finally:
            reader.close()
    except Exception as error:
        raise DataError(f"{file} is damaged: {one_line(error)}") from error


def _pixels(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image

    height, width, channels = shape
    with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
        mode = {1: "L", 3: "RGB"}[channels]
        if (image.size, image.mode) != ((width, height), mode):  # known before a pixel is decoded
            raise ValueError(f"it is {image.size[0]}x{image.size[1]} in mode {image.mode}, expected {mode}")
        return np.asarray(image).reshape(shape)
