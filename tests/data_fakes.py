"""Small fakes of data sets: archives, TFDS directories in both formats, and a machine with no home and no network."""

import gzip
import hashlib
import io
import json
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from jaxcnn.data import DATASETS, Split, archives

NAMES = [name for name in DATASETS if name != "digits"]
REACH = archives.unreachable_reason


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    """A machine without a home, a prepared data set or a network; `REACH` is the check of the real one."""
    monkeypatch.setenv("JAXCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (
        "TFDS_DATA_DIR",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(archives, "unreachable_reason", lambda url: "no network in this test")


# Fakes: no axis of the images is symmetric, every label occurs.


def fake(name, seed=0):
    """Random train and test images, 20 and 10 of them."""
    rng, facts = np.random.default_rng(seed), DATASETS[name]
    return [
        Split(
            rng.integers(0, 256, (n, *facts.shape), dtype=np.uint8),
            np.arange(n, dtype=np.int32) % len(facts.classes),
        )
        for n in (20, 10)
    ]


def write_idx(path, array):
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(
        gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())
    )


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def cifar_bytes(split, coarse=b""):
    rows = zip(split.labels, split.images, strict=True)
    return b"".join(
        coarse + bytes([label]) + image.transpose(2, 0, 1).tobytes() for label, image in rows
    )


def write_archives(folder, name, train, test):
    """Write the original archives of `name`, as its authors lay them out."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / file for file in DATASETS[name].archives]
    if "mnist" in name:
        for path, array in zip(paths, (*train, *test), strict=True):
            write_idx(path, array[..., 0] if array.ndim == 4 else array)
    elif name == "cifar10":
        chunks = [Split(train.images[i : i + 4], train.labels[i : i + 4]) for i in range(0, 20, 4)]
        parts = {
            f"cifar-10-batches-bin/data_batch_{i + 1}.bin": cifar_bytes(chunks[i])
            for i in (4, 3, 2, 1, 0)
        }
        write_tar(
            paths[0],
            parts
            | {"cifar-10-batches-bin/test_batch.bin": cifar_bytes(test), "x/readme": b"hello"},
        )
    elif name == "cifar100":
        splits = {"train": train, "test": test}
        write_tar(
            paths[0],
            {
                f"cifar-100-binary/{k}.bin": cifar_bytes(s, coarse=b"\x13")
                for k, s in splits.items()
            },
        )
    else:
        for path, split in zip(paths, (train, test), strict=True):
            labels = np.where(split.labels == 0, 10, split.labels).astype(np.uint8)[:, None]
            savemat(path, {"X": split.images.transpose(1, 2, 3, 0), "y": labels})
    return paths


def register(monkeypatch, folder, url="http://127.0.0.1:9/"):
    """Make the archives in `folder` the registered ones."""

    def registered(name, filenames):
        contents = [(file, (folder / file).read_bytes()) for file in filenames]
        return [
            archives.Source(url + f, f, len(data), hashlib.sha256(data).hexdigest())
            for f, data in contents
        ]

    monkeypatch.setattr(archives, "registered_sources", registered)


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def field(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def example(image, label):
    """A tf.train.Example, written out by hand: a map from names to lists of bytes or integers."""
    png = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, "PNG")
    features = {
        b"id": field(1, field(1, b"train_0")),
        b"image": field(1, field(1, png.getvalue())),
        b"label": field(3, field(1, varint(int(label)))),
    }
    return field(
        1, b"".join(field(1, field(1, key) + field(2, value)) for key, value in features.items())
    )


def slow_crc32c(data):
    """Bit by bit, as the polynomial division says."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def write_tfrecord(path, records):
    def masked(data):
        crc = slow_crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    lengths = [struct.pack("<Q", len(record)) for record in records]
    parts = zip(lengths, records, strict=True)
    path.write_bytes(
        b"".join(length + masked(length) + record + masked(record) for length, record in parts)
    )


def write_array_record(path, records):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_prepared(root, name, splits, suffix="array_record", version="3.0.2"):
    """Prepare a directory as TFDS does: two shards of each split."""
    folder = root / name / version
    folder.mkdir(parents=True)
    parts = []
    for part, split in zip(("train", "test"), splits, strict=True):
        records = [example(*pair) for pair in zip(*split, strict=True)]
        shards = [records[:7], records[7:]]
        parts.append({"name": part, "shardLengths": [str(len(shard)) for shard in shards]})
        for i, shard in enumerate(shards):
            path = folder / f"{name}-{part}.{suffix}-{i:05d}-of-00002"
            (write_array_record if suffix == "array_record" else write_tfrecord)(path, shard)
    (folder / "dataset_info.json").write_text(json.dumps({"fileFormat": suffix, "splits": parts}))
    return folder


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert (ours.images.dtype, ours.labels.dtype) == (np.uint8, np.int32)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


# Original archives
