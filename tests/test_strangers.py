"""Files from strangers run nothing: a payload is first opened the unsafe way, which is seen to work, then by the library.

What a payload does is make the folder `marker`, or write into `outside`. Not promised: the folder of compiled programs
(JAX's persistent cache) holds machine code, is trusted, and must be the user's own.
"""

import gzip
import hashlib
import importlib
import io
import json
import math
import os
import pickle
import shutil
import struct
import sys
import tarfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from data_fakes import (
    assert_same,
    bare_machine,  # noqa: F401
    cifar_bytes,
    fake,
    field,
    write_archives,
    write_prepared,
    write_tfrecord,
)
from PIL import Image
from scipy.io import savemat

import jaxcnn as jc
from jaxcnn import runs
from jaxcnn.checkpoint import CheckpointError, Checkpoints
from jaxcnn.config import ArgumentError, ExperimentConfig
from jaxcnn.data import DATASETS, DataError, archives, cache, load_dataset
from jaxcnn.run_log import write_text

pytestmark = pytest.mark.usefixtures("bare_machine")


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture(autouse=True)
def room(tmp_path):
    """Where a payload leaves its mark, and what is outside its own folder; both are looked at when the test is over."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("mine")
    there = SimpleNamespace(
        path=tmp_path, marker=tmp_path / "marker", outside=outside, pickled=None
    )
    there.pickled = pickle.dumps(Evil(there.marker))
    yield there
    assert not there.marker.exists()
    assert untouched(outside)


def untouched(outside):
    return os.listdir(outside) == ["victim"] and (outside / "victim").read_text() == "mine"


def prove(room, unsafe):
    """`unsafe` opens a payload as one should not, and the payload acts."""
    unsafe()
    assert room.marker.exists()
    room.marker.rmdir()


def one_line(error):
    message = str(error)
    assert "\n" not in message
    assert len(message) < 1500
    return message


def refused(kind, call, *words):
    with pytest.raises(kind) as caught:
        call()
    message = one_line(caught.value)
    for word in words:
        assert word in message


# The decoded cache: its digests are no secret, so they are made to match.


def sign(place):
    about = json.loads((place / "dataset.json").read_text())
    for name, entry in about["files"].items():
        entry["sha256"] = hashlib.sha256((place / f"{name}.npy").read_bytes()).hexdigest()
    (place / "dataset.json").write_text(json.dumps(about))


@pytest.fixture
def kept():
    place = cache.dataset_folder("mnist")
    cache.write(place, "mnist", "here", DATASETS["mnist"].classes, *fake("mnist"))
    return place


def object_npy(room, file):
    np.save(file, np.array([Evil(room.marker)], object), allow_pickle=True)


def object_npz(room, file):
    np.savez(file, x=np.array([Evil(room.marker)], object))


def bare_pickle(room, file):
    file.write(room.pickled)


def object_field(room, file):
    np.save(
        file, np.array([(Evil(room.marker), 1)], [("x", object), ("y", int)]), allow_pickle=True
    )


def open_unsafely(path):
    loaded = np.load(path, allow_pickle=True)
    if isinstance(loaded, np.lib.npyio.NpzFile):
        with loaded:
            return loaded["x"]


@pytest.mark.parametrize("name", ["train_images", "test_labels"])
@pytest.mark.parametrize("payload", [object_npy, object_npz, bare_pickle, object_field])
def test_objects_in_the_cache(payload, name, room, kept):
    path = kept / f"{name}.npy"
    with path.open("wb") as file:
        payload(room, file)
    sign(kept)
    prove(room, lambda: open_unsafely(path))
    refused(DataError, lambda: cache.read(kept), "is damaged")
    refused(DataError, lambda: load_dataset("mnist"), "is damaged", "load_dataset('digits')")


def test_arrays_of_another_kind_in_the_cache(room, kept, caplog):
    """They are no objects, so NumPy reads them gladly; what they hold is checked by `load_dataset`."""
    for array in (
        np.zeros((20, 28, 28, 1)),
        np.zeros((20, 9), np.uint8),
        np.array("x"),
        np.zeros(20, "V999"),
    ):
        np.save(kept / "train_images.npy", array)
        sign(kept)
        refused(
            DataError, lambda: load_dataset("mnist"), "train images are", "load_dataset('digits')"
        )
    np.savez(kept / "train_images", x=np.zeros(3))
    (kept / "train_images.npz").rename(kept / "train_images.npy")
    sign(kept)
    refused(
        DataError, lambda: load_dataset("mnist"), "train_images.npy is an archive, not one array"
    )


def header(text):
    text = text.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**50},), }}\n"),
        header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**30},), }}\n"),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (-5,), }\n"),
        header("(" * 9000 + "\n"),
        header("__import__('os').mkdir('marker')\n"),
        b"",
    ],
    ids=["petabyte", "more than there is", "negative", "brackets", "code", "nothing"],
)
def test_headers_that_lie(data, kept, monkeypatch, room):
    monkeypatch.chdir(room.path)
    (kept / "test_images.npy").write_bytes(data)
    sign(kept)
    refused(DataError, lambda: cache.read(kept), "is damaged")


DEEP = "[" * 100_000
HOSTILE_JSON = {
    "deep": DEEP,
    "digits": "9" * 5000,
    "list": "[[1]]",
    "null": "null",
    "nan": '{"format": NaN}',
}
HOSTILE_JSON |= {"empty": "", "types": '{"format": 1, "files": [3]}', "binary": "\x00\x01"}


def test_hostile_json_is_hostile():
    with pytest.raises(RecursionError):
        json.loads(DEEP)
    with pytest.raises(ValueError, match="digits"):
        json.loads(HOSTILE_JSON["digits"])


@pytest.mark.parametrize("text", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
def test_hostile_index_of_the_cache(text, kept):
    (kept / "dataset.json").write_text(text)
    refused(DataError, lambda: cache.read(kept), "is damaged")


def test_a_pipe_or_a_device_in_the_cache(kept):
    """Opened, the pipe would wait for ever and the device never end."""
    for name in ("dataset.json", "train_labels.npy"):
        (kept / name).unlink()
        os.mkfifo(kept / name)
        refused(DataError, lambda name=name: cache.read(kept), f"{name} is no plain file")
        (kept / name).unlink()
        (kept / name).symlink_to("/dev/zero")
        refused(DataError, lambda name=name: cache.read(kept), f"{name} is no plain file")
        (kept / name).unlink()


def test_links_in_the_cache_are_read_and_never_written_through(room, kept, monkeypatch):
    """A link to a good array is as good as the array; one to a payload is refused; a rebuilt cache has no links."""
    payloads, path = room.path / "elsewhere", kept / "train_images.npy"
    payloads.mkdir()
    path.rename(payloads / "good.npy")
    path.symlink_to(payloads / "good.npy")
    assert_same([load_dataset("mnist").train], fake("mnist")[:1])
    with (payloads / "bad.npy").open("wb") as file:
        object_npy(room, file)
    before = (payloads / "bad.npy").read_bytes()
    path.unlink()
    path.symlink_to(payloads / "bad.npy")
    sign(kept)
    prove(room, lambda: open_unsafely(path))
    refused(DataError, lambda: load_dataset("mnist"), "is damaged")
    monkeypatch.setenv("TFDS_DATA_DIR", str(room.path / "tfds"))
    write_prepared(room.path / "tfds", "mnist", fake("mnist", 1))
    assert_same([load_dataset("mnist").train], fake("mnist", 1)[:1])
    assert not path.is_symlink()
    assert (payloads / "bad.npy").read_bytes() == before


# Original archives: parsed in memory, whatever their members are called.


def member(name, kind=tarfile.REGTYPE, data=b"", link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, str(link), len(data)
    return info, data


def climbing(room):
    return [member("../outside/climbed", data=b"x")]


def absolute(room):
    return [member(str(room.outside / "climbed"), data=b"x")]


def through_a_link(room):
    return [member("door", tarfile.SYMTYPE, link=room.outside), member("door/climbed", data=b"x")]


def over_a_link(room):
    return [
        member("door", tarfile.SYMTYPE, link=room.outside / "climbed"),
        member("door", data=b"x"),
    ]


def hard_link(room):
    return [
        member("same", tarfile.LNKTYPE, link="../outside/victim"),
        member("same", data=b"overwritten"),
    ]


def write_members(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))


def cifar_members():
    train, test = fake("cifar100")
    parts = {"train": train, "test": test}
    return [
        member(f"cifar-100-binary/{k}.bin", data=cifar_bytes(s, coarse=b"\x13"))
        for k, s in parts.items()
    ]


def extract_unsafely(room, path):
    scratch = room.path / "scratch"
    scratch.mkdir()
    with tarfile.open(path) as archive:
        archive.extractall(scratch, filter="fully_trusted")


@pytest.mark.parametrize("payload", [climbing, absolute, through_a_link, over_a_link, hard_link])
@pytest.mark.parametrize("complete", [True, False], ids=["beside good members", "alone"])
def test_archives_that_climb_out(payload, complete, room):
    path = room.path / "cifar-100-binary.tar.gz"
    write_members(path, payload(room) + (cifar_members() if complete else []))
    extract_unsafely(room, path)
    if not untouched(room.outside):
        (room.outside / "climbed").unlink(missing_ok=True)
        (room.outside / "victim").write_text("mine")
    else:
        assert (
            payload is hard_link
        )  # Python removes the link before it writes: a copy of the secret is the harm
        assert (room.path / "scratch/same").read_bytes() == b"overwritten"
    if complete:
        assert_same(archives.parse("cifar100", [path]), fake("cifar100"))
    else:
        refused(
            DataError,
            lambda: archives.parse("cifar100", [path]),
            "it lacks cifar-100-binary/train.bin",
        )


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_members_of_the_right_name_that_are_no_files(kind, room):
    """As a link they would give a stranger's archive the text of a file of the user's."""
    path, secret = room.path / "cifar-100-binary.tar.gz", room.outside / "victim"
    members = [
        member(f"cifar-100-binary/{part}.bin", kind, link=secret) for part in ("train", "test")
    ]
    write_members(path, members)
    if kind == tarfile.SYMTYPE:
        extract_unsafely(room, path)
        assert (room.path / "scratch/cifar-100-binary/train.bin").read_text() == "mine"
    refused(DataError, lambda: archives.parse("cifar100", [path]), "it lacks")


def bomb(start=b""):
    """300 MiB in 300 kB, as a .gz of many parts."""
    return gzip.compress(start) + gzip.compress(bytes(1 << 20)) * 300


@pytest.mark.slow
def test_gzip_bombs(room):
    paths = write_archives(room.path, "mnist", *fake("mnist"))
    paths[0].write_bytes(bomb())
    with gzip.open(paths[0]) as file:
        assert sum(len(part) for part in iter(lambda: file.read(1 << 24), b"")) == 300 << 20
    assert paths[0].stat().st_size < 1 << 20
    refused(DataError, lambda: archives.parse("mnist", paths), "it unpacks to more than")


def test_a_tar_whose_header_is_a_bomb(room):
    """An extended header is read before any member is looked at."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 299 << 20
    path = room.path / "cifar-100-binary.tar.gz"
    path.write_bytes(bomb(info.tobuf()))
    refused(DataError, lambda: archives.parse("cifar100", [path]), "it unpacks to more than")


@pytest.mark.parametrize("sizes", [(2**16, 2**12, 2**12), (2**32 - 1,) * 3, (0, 2**31, 2**31)])
def test_an_idx_file_that_announces_a_terabyte(sizes, room):
    paths = write_archives(room.path, "mnist", *fake("mnist"))
    assert math.prod(sizes) not in range(1, 2**39)
    paths[0].write_bytes(
        gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", *sizes) + bytes(99))
    )
    refused(DataError, lambda: archives.parse("mnist", paths), "cannot be parsed")


def test_matlab_files_with_objects(room):
    paths = [room.path / name for name in DATASETS["svhn_cropped"].archives]
    cell = np.empty(2, object)
    cell[:] = ["__import__('os').mkdir('marker')", np.zeros(3)]
    labels = np.ones((2, 1), np.uint8)
    for x, y in (
        (cell, labels),
        ({"f": "@() system('mkdir marker')"}, labels),
        ("text", labels),
        (labels, cell),
    ):
        for path in paths:
            savemat(path, {"X": x, "y": y})
        try:
            splits = archives.parse("svhn_cropped", paths)
        except DataError:
            continue
        # Strange, and no harm: `load_dataset` checks the type and the shape of what comes.
        assert (splits[0].images.dtype, splits[0].images.shape[1:]) != (np.uint8, (32, 32, 3))
    paths[0].write_bytes(room.pickled)
    prove(room, lambda: np.load(paths[0], allow_pickle=True))
    refused(DataError, lambda: archives.parse("svhn_cropped", paths), "cannot be parsed")


def test_pickles_in_place_of_every_archive(room):
    prove(room, lambda: pickle.loads(room.pickled))
    for name in ("mnist", "cifar10", "cifar100", "svhn_cropped"):
        for at, path in enumerate(write_archives(room.path, name, *fake(name))):
            for data in (room.pickled, gzip.compress(room.pickled)):
                paths = write_archives(room.path, name, *fake(name))
                paths[at].write_bytes(data)
                refused(
                    DataError, lambda name=name, paths=paths: archives.parse(name, paths), str(path)
                )


# Directories prepared by TFDS


@pytest.fixture
def evil_module(room, monkeypatch):
    """A module that makes the marker when it is imported."""
    folder = room.path / "modules"
    folder.mkdir()
    (folder / "evil_module.py").write_text(
        f"import os\nos.mkdir({str(room.marker)!r})\nclass Thing: pass\n"
    )
    monkeypatch.syspath_prepend(folder)

    def forget():
        sys.modules.pop("evil_module", None)

    forget()
    yield forget
    forget()


def test_features_that_name_a_module(room, evil_module):
    import tensorflow_datasets as tfds

    folder = write_prepared(room.path / "tfds", "mnist", fake("mnist"), suffix="tfrecord")
    (folder / "features.json").write_text(
        json.dumps({"pythonClassName": "evil_module.Thing", "featuresDict": {}})
    )

    def unsafe():
        with pytest.raises(ValueError, match="Thing"):  # too late: it was imported to look for it
            tfds.features.FeatureConnector.from_config(folder)

    prove(room, unsafe)
    evil_module()
    (folder / "__init__.py").write_text("import evil_module")
    (folder / "mnist.py").write_text("import evil_module")
    data = load_dataset("mnist", room.path / "tfds")
    assert_same((data.train, data.test), fake("mnist"))
    assert "evil_module" not in sys.modules


def infos():
    def info(lengths, name="train", suffix="tfrecord"):
        test = {"name": "test", "shardLengths": ["7", "3"]}
        return {"fileFormat": suffix, "splits": [{"name": name, "shardLengths": lengths}, test]}

    yield "10^12 records", info([10**12, 13]), "records by dataset_info.json; prepare it again"
    yield "10^400 records", info([10**400, 13]), "records by dataset_info.json; prepare it again"
    yield "negative", info([-5, 25]), "-5 records by dataset_info.json"
    yield "infinite", json.dumps(info([1])).replace("[1]", "[1e999]"), "cannot be read"
    yield "no number", info(["__import__('os')"]), "cannot be read"
    yield "a million files", info([0] * 1_000_000), "lacks mnist-train.tfrecord-00000-of-1000000"
    yield "climbing split", info([7, 13], name="../../outside/train"), "lacks the train split"
    yield (
        "climbing format",
        info([7, 13], suffix="../../outside/victim"),
        "expected array_record or tfrecord",
    )
    yield "long format", info([7, 13], suffix="x" * 10**6), "expected array_record or tfrecord"
    for name, text in HOSTILE_JSON.items():
        yield name, text, "cannot be read"


@pytest.mark.parametrize(
    ("info", "says"), [row[1:] for row in infos()], ids=[row[0] for row in infos()]
)
def test_hostile_dataset_info(info, says, room):
    folder = write_prepared(room.path / "tfds", "mnist", fake("mnist"), suffix="tfrecord")
    (folder / "dataset_info.json").write_text(info if isinstance(info, str) else json.dumps(info))
    refused(DataError, lambda: load_dataset("mnist", room.path / "tfds"), says)


def test_strange_names_of_versions_and_classes(room):
    folder = write_prepared(room.path / "tfds", "mnist", fake("mnist"), suffix="tfrecord")
    for version in ("9" * 5000 + ".0.0", "9.0.0\n", "²9.0.0"):
        if len(version) < 200:
            (folder.parent / version).mkdir()
            (folder.parent / version / "dataset_info.json").write_text("{}")
    (folder.parent / "99.0.0").mkdir()
    os.mkfifo(folder.parent / "99.0.0/dataset_info.json")
    assert_same([load_dataset("mnist", room.path / "tfds").train], fake("mnist")[:1])
    shutil.rmtree(cache.dataset_folder("mnist", room.path / "tfds"))
    (folder / "label.labels.txt").write_bytes(b"\xff\xfe" * 10**6)
    refused(DataError, lambda: load_dataset("mnist", room.path / "tfds"), "names the classes")


def png(width, height):
    """A PNG of one bit a pixel: 81 million black ones in 10 kB."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height), 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def record(encoded, label=b"\x05"):
    features = {b"image": field(1, field(1, encoded)), b"label": field(3, field(1, label))}
    return field(
        1, b"".join(field(1, field(1, key) + field(2, value)) for key, value in features.items())
    )


def one_record(room, data):
    folder = write_prepared(room.path / "tfds", "mnist", fake("mnist"), suffix="tfrecord")
    path = folder / "mnist-train.tfrecord-00000-of-00002"
    write_tfrecord(path, [data])
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"][0] = "1"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return lambda: load_dataset("mnist", room.path / "tfds")


def test_an_image_bomb(room):
    encoded = png(9000, 9000)
    assert len(encoded) < 20_000
    with Image.open(io.BytesIO(encoded)) as image:
        assert np.asarray(image).size == 81_000_000  # Pillow decodes it without a word
    decoded = []
    load_bomb = one_record(room, record(encoded))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", lambda self: decoded.append(self))
        refused(DataError, load_bomb, "it is 9000x9000 in mode 1, expected L")
    assert decoded == []


@pytest.mark.parametrize(
    "encoded", [b"", b"GIF89a" + bytes(50), b"%!PS (os) run", b"<svg/>", b"\x89PNG\r\n\x1a\n"]
)
def test_images_of_other_kinds_reach_no_other_decoder(encoded, room):
    refused(DataError, one_record(room, record(encoded)), "record 0 of", "is no labelled")


def test_pickles_as_records(room):
    prove(room, lambda: pickle.loads(room.pickled))
    for data in (room.pickled, record(room.pickled)):
        refused(DataError, one_record(room, data), "record 0 of", "is no labelled")
        shutil.rmtree(room.path / "tfds")


def test_a_record_too_long_for_an_image(room):
    """Records are checked side by side, so one of a gigabyte would take the memory of thousands."""
    load_it = one_record(room, b"")
    path = next(room.path.glob("tfds/mnist/*/mnist-train.tfrecord-00000*"))
    for length in (1 << 17, 1 << 62):
        path.write_bytes(struct.pack("<Q", length) + bytes(8 + (1 << 17)))
        refused(
            DataError,
            load_it,
            "a small image has at most" if length == 1 << 17 else "cut short or damaged",
        )


@pytest.mark.parametrize("data", ["pickle", "zeros", "nothing"])
def test_files_that_are_no_array_record(data, room):
    folder = write_prepared(room.path / "tfds", "mnist", fake("mnist"))
    contents = {"pickle": room.pickled * 99, "zeros": bytes(1 << 17), "nothing": b""}[data]
    (folder / "mnist-train.array_record-00000-of-00002").write_bytes(contents)
    refused(
        DataError,
        lambda: load_dataset("mnist", room.path / "tfds"),
        "mnist-train.array_record-00000-of-00002",
    )


# Checkpoints


class Tiny(NamedTuple):
    step: Any
    params: Any


TINY = Tiny(np.int32(1), {"w": np.arange(3, dtype=np.float32)})


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    with Checkpoints(folder) as saved:
        saved.save(TINY, 0.5)
    return folder


def files(folder):
    return sorted(
        str(path.relative_to(folder)) for path in (folder / "1").rglob("*") if path.is_file()
    )


def seal(body):
    """A seal is no signature: anybody can make one."""
    return body | {"seal": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}


def tampered(room, good, name, text):
    """A copy of a checkpoint with other contents of one file, and without the record of what its files were."""
    folder = room.path / f"copy of {name}".replace("/", " ")
    shutil.copytree(good, folder)
    (folder / "1/files.json").unlink(missing_ok=True)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def restored(folder):
    """None for the state that was saved, or one line that says why it is not to be had."""
    try:
        with Checkpoints(folder) as saved:
            found = saved.restore(TINY)
    except CheckpointError as error:
        return one_line(error)
    assert found is not None
    assert (int(found.step), found.params["w"].tolist()) == (1, [0, 1, 2])
    return None


def test_pickles_in_place_of_every_file_of_a_checkpoint(room, good):
    prove(room, lambda: pickle.loads(room.pickled))
    said = {name: restored(tampered(room, good, name, room.pickled)) for name in files(good)}
    assert said["1/manifest/metadata"]
    assert said["1/state/_METADATA"]
    assert said["1/state/manifest.ocdbt"]


def renamed(value):
    """JSON in which every text is the name of the stranger's class."""
    if isinstance(value, dict):
        return {key: renamed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [renamed(part) for part in value]
    return "evil_module.Thing" if isinstance(value, str) else value


def test_metadata_of_a_checkpoint_that_names_a_module(room, good, evil_module):
    prove(room, lambda: importlib.import_module("evil_module"))
    evil_module()
    told = [name for name in files(good) if name.endswith(("METADATA", "metadata"))]
    assert len(told) == 3
    for name in told:
        changed = json.dumps(renamed(json.loads((good / name).read_text())))
        assert "evil_module.Thing" in changed
        restored(tampered(room, good, name, changed))
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("text", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
def test_hostile_json_in_a_checkpoint(text, room, good):
    for name in [
        *(name for name in files(good) if name.endswith(("METADATA", "metadata"))),
        "1/files.json",
    ]:
        restored(tampered(room, good, name, text))


MANIFESTS = {
    "specs": {"specs": 5},
    "list": {"specs": ["w"]},
    "digests": {"digests": None},
    "metric": {"metric": "best"},
    "metric in digits": {"metric": 10**4000},
    "lacks": {"specs": {}, "digests": {}},
    "long": {"specs": {"x" * 10**6: "y" * 10**6}},
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_manifests_that_are_sealed_nonsense(change, room, good):
    body = json.loads((good / "1/manifest/metadata").read_text())
    body.pop("seal")
    assert seal(body) == json.loads((good / "1/manifest/metadata").read_text())  # the seal is known
    assert (
        restored(tampered(room, good, "1/manifest/metadata", json.dumps(seal(body | change))))
        or "metric" in change
    )


RECORDS = {
    "no table": {"files": [1]},
    "no pair": {"files": {"_CHECKPOINT_METADATA": 1}},
    "none": {},
    "a device": {"files": {"/dev/zero": [0, "0"]}},
    "outside": {"files": {"../../../outside/victim": [4, "0"]}},
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_records_of_files_that_are_sealed_nonsense(record, room, good, monkeypatch):
    """Nothing outside the step is read, were it without end."""
    folder, digest = (
        tampered(room, good, "1/files.json", json.dumps(seal(record))),
        hashlib.file_digest,
    )

    def guarded(file, kind):
        if folder not in Path(file.name).resolve().parents:
            pytest.fail(f"{file.name} was read")
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", guarded)
    assert restored(folder)


# Folders of runs

CONFIG = ExperimentConfig(
    dataset="digits",
    model="mlp",
    model_kwargs={"hidden": [4]},
    optimizer=jc.OptimizerConfig(milestones=()),
    train=jc.TrainConfig(num_steps=1, batch_size=64),
)
TEXTS = {name: text for name, text in HOSTILE_JSON.items() if name not in ("types", "nan")} | {
    "yaml": "!!python/object/apply:os.mkdir [marker]\n",
    "not a number": '{"optimizer": {"learning_rate": NaN}}',
    "infinite": '{"optimizer": {"learning_rate": 1e999}}',
    "type": '{"optimizer": {"milestones": {"a": 1}}}',
    "long name": json.dumps({"x" * 10**6: 1}),
    "long model": json.dumps({"model": ["x" * 10**6]}),
    "nested options": '{"model_kwargs": {"a": ' + "[" * 900 + "]" * 900 + "}}",
    "class": '{"model_kwargs": {"__class__": 3}, "__class__": 3}',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_hostile_configs(text, room, monkeypatch):
    monkeypatch.chdir(room.path)
    (room.path / "config.json").write_text(text)
    refused(ArgumentError, lambda: ExperimentConfig.load(room.path), str(room.path / "config.json"))


def test_a_config_that_is_a_pipe_or_no_text(room):
    path = room.path / "config.json"
    path.write_bytes(b"\xff\xfe\x00")
    refused(ArgumentError, lambda: ExperimentConfig.load(room.path), "cannot be read")
    path.unlink()
    os.mkfifo(path)
    refused(ArgumentError, lambda: ExperimentConfig.load(room.path), "is no file")


ROWS = {
    "deep": DEEP,
    "digits": "9" * 5000,
    "list": "[1]",
    "null": "null",
    "pickle": "\x80\x04.",
    "words": '{"step": "x"}',
}


@pytest.mark.parametrize("text", ROWS.values(), ids=ROWS)
def test_hostile_records_of_a_run(text, room):
    run = room.path / "runs/a"
    jc.RunLog(run, CONFIG).write(step=1, train_loss=1.0)
    (run / "metrics.jsonl").write_text(f"{text}\n{text}\n")
    (run / "result.json").write_text("{}")
    refused(ValueError, lambda: runs.finished_runs(run.parent), "metrics.jsonl")
    refused(ValueError, lambda: jc.RunLog(run, CONFIG), "metrics.jsonl")
    (run / "metrics.jsonl").unlink()
    (run / "result.json").write_text(text)
    if text not in (ROWS["list"], ROWS["null"], ROWS["words"]):
        refused(ValueError, lambda: runs.finished_runs(run.parent), "result.json")
    (run / "env.json").write_text(text)
    if text != ROWS["list"]:
        refused(ValueError, lambda: jc.RunLog(run, CONFIG), "env.json")


@pytest.mark.parametrize("text", ROWS.values(), ids=ROWS)
def test_hostile_packed_runs(text, room):
    (room.path / "runs.jsonl").write_text(f"{text}\n")
    refused(ValueError, lambda: runs.finished_runs(room.path), "runs.jsonl")


def test_links_that_wait_for_what_is_written(room):
    """In a stranger's folder every name that a run writes to is a link to a file of the user's."""
    path = room.path / "config.json"
    path.with_name("config.json.part").symlink_to(room.outside / "victim")
    write_text(path, "text")
    assert path.read_text() == "text"
    path.unlink()
    path.symlink_to(room.outside / "victim")
    write_text(path, "text")
    assert path.read_text() == "text"
    run = room.path / "run"
    run.mkdir()
    for name in ("config.json", "env.json", "metrics.jsonl", "result.json"):
        (run / f"{name}.part").symlink_to(room.outside / "victim")
    (run / ".probe").symlink_to(room.outside / "made")
    (run / "metrics.jsonl").symlink_to(room.outside / "rows")
    try:
        log = jc.RunLog(run, CONFIG)
        log.write(step=1)
        log.finish(status="finished")
    except ValueError as error:
        one_line(error)


def test_a_lock_that_is_a_link(room):
    folder = room.path / "checkpoints"
    folder.mkdir()
    (folder / "lock").symlink_to(room.outside / "victim")
    refused(CheckpointError, lambda: Checkpoints(folder), "cannot")


def test_links_prove_harmful_where_they_are_followed(room):
    """What `open(path, "w")` does with such a link."""
    link = room.path / "config.json.part"
    link.symlink_to(room.outside / "victim")
    Path(link).write_text("overwritten")
    assert not untouched(room.outside)
    (room.outside / "victim").write_text("mine")
