"""TFRecord files without TensorFlow: the framing of TensorFlow's `lib/io/record_writer.h`, its checksums verified.

A record is its length (8 bytes, little-endian), the masked CRC-32C of those 8 bytes (4), the data, and the masked
CRC-32C of the data (4).
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from jaxcnn.data.types import DataError

_LIMIT = 1 << 16  # bytes: a record is one small image; 4096 of the longest are checked in 268 MB


def records(path: Path) -> list[bytes]:
    """Read every record of one file.

    Raises:
        DataError: the file is cut short, a checksum is wrong, or a record is longer than 64 KiB.
    """
    data = path.read_bytes()
    spans, at = [], 0
    while at < len(data):
        length = struct.unpack_from("<Q", data, at)[0] if at + 12 <= len(data) else len(data)
        if at + length + 16 > len(data):
            raise DataError(f"{path} is cut short or damaged: the record at byte {at} runs past the end, {len(data)}")
        if length > _LIMIT:
            raise DataError(f"{path} has a record of {length} bytes at byte {at}; a small image has at most {_LIMIT}")
        spans.append((at, length))
        at += length + 16
    _verify(path, data, [(at, at + 8) for at, _ in spans])
    _verify(path, data, [(at + 12, at + 12 + length) for at, length in spans])
    return [data[at + 12 : at + 12 + length] for at, length in spans]


def _verify(path: Path, data: bytes, spans: list[tuple[int, int]], batch: int = 4096) -> None:
    for first in range(0, len(spans), batch):
        part = spans[first : first + batch]
        crc = crc32c([data[start:stop] for start, stop in part])
        found = (crc >> 15 | crc << 17) + np.uint32(0xA282EAD8)  # TensorFlow stores this mask of the CRC
        stored = np.array([struct.unpack_from("<I", data, stop)[0] for _, stop in part], np.uint32)
        if (found != stored).any():
            at = part[int(np.argmax(found != stored))][0]
            raise DataError(f"{path} is damaged: the checksum of the record part at byte {at} is wrong")


def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> 1 ^ (table & 1) * np.uint32(0x82F63B78)  # Castagnoli's polynomial, bits reversed
    return table


def crc32c(texts: list[bytes]) -> np.ndarray:
    """CRC-32C of each text, uint32 [n]: the loop is over the bytes of a text, all texts side by side.

    Example:
        >>> hex(crc32c([b"123456789"])[0])
        '0xe3069283'
    """
    lengths = np.array([len(text) for text in texts])
    columns = np.zeros((lengths.max(), len(texts)), np.uint8)
    for index, text in enumerate(texts):
        columns[: len(text), index] = np.frombuffer(text, np.uint8)
    table, crc = _table(), np.full(len(texts), 0xFFFFFFFF, np.uint32)
    for at, column in enumerate(columns):
        crc = np.where(at < lengths, table[(crc ^ column) & 0xFF] ^ crc >> 8, crc)
    return ~crc
