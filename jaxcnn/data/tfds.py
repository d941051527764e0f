"""Directories that TensorFlow Datasets prepared, read without TensorFlow.

They are `<root>/<name>/<version>/`, in either of two formats. The reader of array_record checks
hashes itself. TFRecord has the framing of TensorFlow's `lib/io/record_writer.h`: each record has
these parts, and both checksums are verified here.

    length of the data, 8 bytes, little-endian
    masked CRC-32C of those 8 bytes, 4 bytes
    data
    masked CRC-32C of the data, 4 bytes
"""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from jaxcnn.data.registry import DatasetInfo
from jaxcnn.data.types import DataError, Split, one_line, short

# Bytes. A record is one small image, and 4096 of the longest are checked in 268 MB.
_MAX_RECORD = 1 << 16


def find(name: str, root: Path) -> Path | None:
    """Return the directory of the highest prepared version, or None.

    Args:
        name: of the data set.
        root: a folder like `$TFDS_DATA_DIR`.
    """
    versions = [
        path.parent
        for path in (root / name).glob("*/dataset_info.json")
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9}){2}", path.parent.name) and path.is_file()
    ]
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def read(folder: Path, name: str, info: DatasetInfo) -> tuple[Split, Split]:
    """Decode the splits of a prepared directory, in file order.

    Args:
        folder: as `find` returns it.
        name: of the data set, as in the names of the files.
        info: the shape and the classes that the records must have.

    Returns:
        The train and the test split.

    Raises:
        DataError: a file is missing, damaged, or differs from `dataset_info.json` or `info`.
    """
    # TFDS does not write this file for classes that are only numbers.
    path = folder / "label.labels.txt"
    if (
        path.is_file()
        and (classes := tuple(path.read_text("utf-8", "replace").splitlines())) != info.classes
    ):
        raise DataError(
            f"{path} names the classes {short(str(classes))}; expected {short(str(info.classes))}"
        )
    train, test = (_read_split(folder, name, split, info) for split in ("train", "test"))
    return train, test


def _read_split(folder: Path, name: str, split: str, info: DatasetInfo) -> Split:
    from tqdm import tqdm

    shards = _shards(folder, name, split)
    total = sum(count for _, count in shards)
    images, labels = np.empty((total, *info.shape), np.uint8), np.empty(total, np.int32)
    progress = tqdm(
        _examples(shards, info), f"decoding {name} {split}", total, disable=None, leave=False
    )
    for index, (image, label) in enumerate(progress):
        images[index], labels[index] = image, label
    return Split(images, labels)


def _shards(folder: Path, name: str, split: str) -> list[tuple[Path, int]]:
    """Return the files of a split and their numbers of records.

    Both are from `dataset_info.json`.
    """
    try:
        info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
        counts = [
            int(n) for part in info["splits"] if part["name"] == split for n in part["shardLengths"]
        ]
        # Old versions of TFDS do not write the format.
        suffix = info.get("fileFormat", "tfrecord")
    # The file may be any JSON, or none, or a thousand brackets.
    except Exception as error:
        raise DataError(
            f"{folder / 'dataset_info.json'} cannot be read: {short(repr(error), 200)}"
        ) from error
    if suffix not in ("array_record", "tfrecord"):
        unknown = short(repr(suffix))
        raise DataError(
            f"{folder} is prepared as {unknown}; expected array_record or tfrecord, so prepare it "
            "as one"
        )
    shards = []
    for index, count in enumerate(counts):
        file = folder / f"{name}-{split}.{suffix}-{index:05d}-of-{len(counts):05d}"
        if not file.is_file():
            raise DataError(f"{folder} lacks {file.name}; prepare it again, or delete it")
        size = file.stat().st_size
        # Checked before memory is allocated for so many.
        if not 0 <= count <= size:
            raise DataError(
                f"{file} has {size} bytes, and {short(str(count))} records by dataset_info.json; "
                "prepare it again"
            )
        shards.append((file, count))
    if not shards:
        raise DataError(f"{folder} lacks the {split} split; prepare it again, or delete it")
    return shards


def _examples(
    shards: list[tuple[Path, int]], info: DatasetInfo
) -> Iterator[tuple[np.ndarray, np.int32]]:
    """Yield the image and the label of each record."""
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise _missing(shards[0][0], "tensorflow-datasets", error) from None
    # The features are built here, so that a features.json cannot name modules to import.
    classes = tfds.features.ClassLabel(num_classes=len(info.classes))
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=info.shape), "label": classes}
    )
    # Images are decoded here, so that there is one decoder, with or without OpenCV.
    decoders = {"image": tfds.decode.SkipDecoding()}
    for file, count in shards:
        records = _read_records(file)
        if len(records) != count:
            raise DataError(
                f"{file} holds {len(records)} records; expected {count}, as dataset_info.json says"
            )
        for index, record in enumerate(records):
            try:
                example = cast(
                    dict[str, Any], features.deserialize_example_np(record, decoders=decoders)
                )
                image = _decode_image(example["image"], info.shape)
                label = np.int32(example["label"])
            # TFDS, protobuf and Pillow raise errors of many types for invalid bytes.
            except Exception as error:
                problem = f"record {index} of {file} is no labelled {info.shape} image"
                raise DataError(f"{problem}: {one_line(error)}") from error
            yield image, label


def _missing(file: Path, package: str, error: ModuleNotFoundError) -> DataError:
    return DataError(
        f"{file} cannot be read: {error}; expected {package}, or the arrays that a load on another "
        f"machine left in its $JAXCNN_CACHE/data. Use pip install {package}"
    )


def _read_records(file: Path) -> list[bytes]:
    if ".tfrecord-" in file.name:
        return read_tfrecord(file)
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ModuleNotFoundError as error:
        raise _missing(file, "array-record", error) from None
    try:
        reader = ArrayRecordReader(str(file))
        try:
            return reader.read_all()
        finally:
            reader.close()
    except Exception as error:
        raise DataError(f"{file} is damaged: {one_line(error)}") from error


def _decode_image(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image

    height, width, channels = shape
    with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
        mode = {1: "L", 3: "RGB"}[channels]
        # The header has both, so that no pixel is decoded before this check.
        if (image.size, image.mode) != ((width, height), mode):
            raise ValueError(
                f"it is {image.size[0]}x{image.size[1]} in mode {image.mode}, expected {mode}"
            )
        return np.asarray(image).reshape(shape)


# TFRecord.


def read_tfrecord(path: Path) -> list[bytes]:
    """Read all records of a TFRecord file.

    Raises:
        DataError: the file is cut short, a checksum is wrong, or a record is longer than 64 KiB.
    """
    data = path.read_bytes()
    spans, at = [], 0
    while at < len(data):
        length = struct.unpack_from("<Q", data, at)[0] if at + 12 <= len(data) else len(data)
        if at + length + 16 > len(data):
            raise DataError(
                f"{path} is cut short or damaged: the record at byte {at} runs past the end, "
                f"{len(data)}"
            )
        if length > _MAX_RECORD:
            raise DataError(
                f"{path} has a record of {length} bytes at byte {at}; a small image has at most "
                f"{_MAX_RECORD}"
            )
        spans.append((at, length))
        at += length + 16
    _verify_checksums(path, data, [(at, at + 8) for at, _ in spans])
    _verify_checksums(path, data, [(at + 12, at + 12 + length) for at, length in spans])
    return [data[at + 12 : at + 12 + length] for at, length in spans]


def _verify_checksums(
    path: Path, data: bytes, spans: list[tuple[int, int]], batch: int = 4096
) -> None:
    """Check the checksum that follows each span (start, stop) of `data`."""
    for first in range(0, len(spans), batch):
        part = spans[first : first + batch]
        crc = crc32c([data[start:stop] for start, stop in part])
        # TensorFlow stores this mask of the CRC.
        masked = (crc >> 15 | crc << 17) + np.uint32(0xA282EAD8)
        stored = np.array([struct.unpack_from("<I", data, stop)[0] for _, stop in part], np.uint32)
        if (masked != stored).any():
            at = part[int(np.argmax(masked != stored))][0]
            raise DataError(
                f"{path} is damaged: the checksum of the record part at byte {at} is wrong"
            )


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        # Castagnoli's polynomial, with reversed bits.
        table = table >> 1 ^ (table & 1) * np.uint32(0x82F63B78)
    return table


def crc32c(texts: list[bytes]) -> np.ndarray:
    """Compute the CRC-32C of each text, uint32 [n].

    The loop is over the bytes of a text, and all texts are processed at once.

    Example:
        >>> hex(crc32c([b"123456789"])[0])
        '0xe3069283'
    """
    lengths = np.array([len(text) for text in texts])
    columns = np.zeros((lengths.max(), len(texts)), np.uint8)
    for index, text in enumerate(texts):
        columns[: len(text), index] = np.frombuffer(text, np.uint8)
    table, crc = _crc_table(), np.full(len(texts), 0xFFFFFFFF, np.uint32)
    for at, column in enumerate(columns):
        crc = np.where(at < lengths, table[(crc ^ column) & 0xFF] ^ crc >> 8, crc)
    return ~crc
