"""Where images come from, with small fakes: archives, TFDS directories, the cache, a server, and no network."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from jaxcnn.data import DATASETS, DataError, Split, archives, cache, download, load, prepared, tfrecord

NAMES = [name for name in DATASETS if name != "digits"]
REACH = download.unreachable


@pytest.fixture(autouse=True)
def _no_home_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("TFDS_DATA_DIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "unreachable", lambda url: "no network in this test")


# Fakes: no axis of the images is symmetric, every label occurs.


def fake(name, seed=0):
    """Random train and test images, 20 and 10 of them."""
    rng, facts = np.random.default_rng(seed), DATASETS[name]
    return [
        Split(
            rng.integers(0, 256, (n, *facts.shape), dtype=np.uint8), np.arange(n, dtype=np.int32) % len(facts.classes)
        )
        for n in (20, 10)
    ]


def write_idx(path, array):
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()))


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def cifar_bytes(split, coarse=b""):
    rows = zip(split.labels, split.images, strict=True)
    return b"".join(coarse + bytes([label]) + image.transpose(2, 0, 1).tobytes() for label, image in rows)


def write_archives(folder, name, train, test):
    """Write the original archives of `name`, as its authors lay them out."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / file for file in DATASETS[name].archives]
    if "mnist" in name:
        for path, array in zip(paths, (*train, *test), strict=True):
            write_idx(path, array[..., 0] if array.ndim == 4 else array)
    elif name == "cifar10":
        chunks = [Split(train.images[i : i + 4], train.labels[i : i + 4]) for i in range(0, 20, 4)]
        parts = {f"cifar-10-batches-bin/data_batch_{i + 1}.bin": cifar_bytes(chunks[i]) for i in (4, 3, 2, 1, 0)}
        write_tar(paths[0], parts | {"cifar-10-batches-bin/test_batch.bin": cifar_bytes(test), "x/readme": b"hello"})
    elif name == "cifar100":
        splits = {"train": train, "test": test}
        write_tar(paths[0], {f"cifar-100-binary/{k}.bin": cifar_bytes(s, coarse=b"\x13") for k, s in splits.items()})
    else:
        for path, split in zip(paths, (train, test), strict=True):
            labels = np.where(split.labels == 0, 10, split.labels).astype(np.uint8)[:, None]
            savemat(path, {"X": split.images.transpose(1, 2, 3, 0), "y": labels})
    return paths


def register(monkeypatch, folder, url="http://127.0.0.1:9/"):
    """Make the archives in `folder` the registered ones."""

    def registered(name, filenames):
        contents = [(file, (folder / file).read_bytes()) for file in filenames]
        return [download.Source(url + f, f, len(data), hashlib.sha256(data).hexdigest()) for f, data in contents]

    monkeypatch.setattr(download, "registered", registered)


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
    return field(1, b"".join(field(1, field(1, key) + field(2, value)) for key, value in features.items()))


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
    path.write_bytes(b"".join(length + masked(length) + record + masked(record) for length, record in parts))


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


@pytest.mark.parametrize("name", NAMES)
def test_archive_comes_back_as_it_was(name, tmp_path):
    splits = fake(name)
    assert_same(archives.parse(name, write_archives(tmp_path, name, *splits)), splits)


@pytest.mark.parametrize("name", NAMES)
def test_truncated_archive_is_one_line(name, tmp_path):
    paths = write_archives(tmp_path, name, *fake(name))
    paths[0].write_bytes(paths[0].read_bytes()[:-400])
    with pytest.raises(DataError, match=str(paths[0])) as caught:
        archives.parse(name, paths)
    one_line(caught)


def test_archive_that_lacks_a_member_or_links_it(tmp_path):
    path = tmp_path / "cifar-100-binary.tar.gz"
    write_tar(path, {"cifar-100-binary/train.bin": bytes(3074)})
    with pytest.raises(DataError, match=r"it lacks cifar-100-binary/test\.bin$"):
        archives.parse("cifar100", [path])
    with tarfile.open(path, "w:gz") as archive:
        for name in ("train", "test"):
            link = tarfile.TarInfo(f"cifar-100-binary/{name}.bin")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
    with pytest.raises(DataError, match="it lacks"):
        archives.parse("cifar100", [path])


def test_archive_may_not_unpack_to_more_than_the_limit(tmp_path, monkeypatch):
    paths = write_archives(tmp_path, "mnist", *fake("mnist"))
    monkeypatch.setattr(archives, "_LIMIT", 1000)
    with pytest.raises(DataError, match="more than 1000 bytes"):
        archives.parse("mnist", paths)


def test_idx_of_another_kind_is_refused(tmp_path):
    paths = write_archives(tmp_path, "mnist", *fake("mnist"))
    with pytest.raises(DataError, match="starts with 00000801; expected 00000803"):
        archives.parse("mnist", [paths[1], *paths[1:]])


# Directories that TFDS prepared


@pytest.mark.parametrize("suffix", ["array_record", "tfrecord"])
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_prepared_directory_comes_back_as_it_was(name, suffix, tmp_path):
    splits = fake(name)
    write_prepared(tmp_path, name, splits, suffix=suffix)
    data = load(name, tmp_path)
    assert_same((data.train, data.test), splits)


def test_the_highest_version_is_read(tmp_path):
    for seed, version in ((1, "3.0.9"), (2, "3.0.10"), (3, "2.9.11")):
        write_prepared(tmp_path, "mnist", fake("mnist", seed), version=version)
    (tmp_path / "mnist/9.0.0.incomplete").mkdir()
    found = prepared.find("mnist", tmp_path)
    assert found
    assert found == tmp_path / "mnist/3.0.10"
    assert_same(prepared.read(found, "mnist", DATASETS["mnist"]), fake("mnist", 2))


def test_every_flipped_bit_of_a_tfrecord_is_found(tmp_path):
    path = tmp_path / "x"
    write_tfrecord(path, [b"a record", b"", b"another one"])
    assert tfrecord.records(path) == [b"a record", b"", b"another one"]
    for at in range(path.stat().st_size):
        flip(path, at)
        with pytest.raises(DataError, match=str(path)) as caught:
            tfrecord.records(path)
        one_line(caught)
        flip(path, at)
    for size in (1, 11, 12, 23, path.stat().st_size - 1):
        (tmp_path / "y").write_bytes(path.read_bytes()[:size])
        with pytest.raises(DataError, match="is cut short or damaged"):
            tfrecord.records(tmp_path / "y")


def test_crc32c_agrees_with_the_definition():
    rng = np.random.default_rng(0)
    texts = [rng.bytes(n) for n in (0, 1, 3, 4, 50, 300)] + [b"123456789"]
    assert [int(crc) for crc in tfrecord.crc32c(texts)] == [slow_crc32c(text) for text in texts]
    assert slow_crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3720


def test_damaged_array_record_is_one_line(tmp_path):
    folder = write_prepared(tmp_path, "mnist", fake("mnist"))
    shard = folder / "mnist-train.array_record-00001-of-00002"
    flip(shard, 2000)
    with pytest.raises(DataError, match=f"^{shard} is damaged: .*$") as caught:
        load("mnist", tmp_path)
    one_line(caught)


def test_prepared_directory_that_contradicts_itself(tmp_path):
    folder = write_prepared(tmp_path, "mnist", fake("mnist"), suffix="tfrecord")
    info, text = folder / "dataset_info.json", (folder / "dataset_info.json").read_text()
    cases = {
        text.replace('"7"', '"8"'): "holds 7 records; expected 8",
        text.replace("tfrecord", "riegeli"): "'riegeli'; expected array_record or tfrecord",
        text.replace('"test"', '"other"'): "lacks the test split",
        text[:-5]: "cannot be read",
    }
    for wrong, message in cases.items():
        info.write_text(wrong)
        with pytest.raises(DataError, match=message) as caught:
            load("mnist", tmp_path)
        one_line(caught)
    info.write_text(text)
    (folder / "label.labels.txt").write_text("a\nb")
    with pytest.raises(DataError, match=r"names the classes \('a', 'b'\)"):
        load("mnist", tmp_path)
    (folder / "label.labels.txt").unlink()
    (folder / "mnist-test.tfrecord-00000-of-00002").unlink()
    with pytest.raises(DataError, match=r"lacks mnist-test\.tfrecord-00000-of-00002"):
        load("mnist", tmp_path)


def test_prepared_images_of_another_size_or_labels_out_of_range(tmp_path):
    train, test = fake("mnist")
    for root, wrong, message in (
        ("a", Split(test.images[:, :14], test.labels), "is no labelled .* it is 28x14 in mode L"),
        ("b", Split(np.repeat(test.images, 3, -1), test.labels), "mode RGB, expected L"),
        ("c", Split(test.images, test.labels + 1), r"test labels span 1\.\.10; expected 0\.\.9"),
        ("d", Split(test.images, test.labels.astype(np.int64) + 2**40), "is no labelled"),
    ):
        write_prepared(tmp_path / root, "mnist", (train, wrong))
        with pytest.raises(DataError, match=message) as caught:
            load("mnist", tmp_path / root)
        one_line(caught)


# The cache


def test_cache_is_read_without_the_source_and_without_its_readers(tmp_path, monkeypatch):
    splits = fake("cifar10")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    write_prepared(tmp_path / "tfds", "cifar10", splits)
    first = load("cifar10")
    shutil.rmtree(tmp_path / "tfds")
    again = load("cifar10")
    assert_same((again.train, again.test), splits)
    np.testing.assert_array_equal(first.mean, again.mean)
    about = json.loads((tmp_path / "cache/data/cifar10/dataset.json").read_text())
    assert about["name"] == "cifar10"
    assert about["source"] == str(tmp_path / "tfds/cifar10/3.0.2")
    assert about["files"]["train_images"]["shape"] == [20, 32, 32, 3]
    code = (
        "import sys, jaxcnn.data; print(len(jaxcnn.data.load('cifar10').train.labels),"
        "{'tensorflow', 'tensorflow_datasets', 'array_record', 'sklearn'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split("\n")[0] == "20 set()"


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    assert cache.folder("mnist") == tmp_path / "cache/data/mnist"
    monkeypatch.delenv("JAXCNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder("mnist") == tmp_path / "xdg/jaxcnn/data/mnist"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder("mnist") == tmp_path / "home/.cache/jaxcnn/data/mnist"


def damage_bytes(place):
    flip(place / "train_images.npy", 5000)


def damage_labels(place):
    flip(place / "test_labels.npy", 130)


def damage_missing(place):
    (place / "test_images.npy").unlink()


def damage_json(place):
    (place / "dataset.json").write_text("[]")


def damage_truncated(place):
    path = place / "train_images.npy"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [damage_bytes, damage_labels, damage_missing, damage_json, damage_truncated])
def test_damaged_cache_is_rebuilt_with_a_message(damage, tmp_path, monkeypatch, caplog):
    splits = fake("mnist")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    write_prepared(tmp_path / "tfds", "mnist", splits)
    load("mnist")
    place = tmp_path / "cache/data/mnist"
    damage(place)
    assert not caplog.messages
    data = load("mnist")
    assert_same((data.train, data.test), splits)
    (message,) = caplog.messages
    assert str(place) in message
    assert "is damaged" in message
    load("mnist")
    assert len(caplog.messages) == 1  # it is whole again
    damage(place)
    shutil.rmtree(tmp_path / "tfds")
    with pytest.raises(DataError, match=f"the cache {place} is damaged") as caught:
        load("mnist")
    one_line(caught)


class _Payload:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_cache_runs_no_pickle(tmp_path):
    place = cache.folder("mnist")
    cache.write(place, "mnist", "here", DATASETS["mnist"].classes, *fake("mnist"))
    evil = np.array([_Payload()], dtype=object)
    for write in (lambda file: np.save(file, evil, allow_pickle=True), lambda file: pickle.dump(_Payload(), file)):
        with (place / "train_images.npy").open("wb") as file:
            write(file)
        about = json.loads((place / "dataset.json").read_text())
        about["files"]["train_images"]["sha256"] = hashlib.sha256((place / "train_images.npy").read_bytes()).hexdigest()
        (place / "dataset.json").write_text(json.dumps(about))
        with pytest.raises(DataError, match=r"is damaged: .*pickle"):
            cache.read(place)


def test_cache_that_cannot_be_written_costs_a_note(tmp_path, monkeypatch, caplog):
    splits = fake("mnist")
    write_prepared(tmp_path / "tfds", "mnist", splits)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("JAXCNN_CACHE", str(tmp_path / "file"))
    data = load("mnist", tmp_path / "tfds")
    assert_same((data.train, data.test), splits)
    (message,) = caplog.messages
    assert "mnist is not kept in" in message


def test_cache_is_written_whole_or_not_at_all(tmp_path, monkeypatch, caplog):
    write_prepared(tmp_path / "tfds", "mnist", fake("mnist"))
    save, calls = np.save, []

    def full(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        save(*args, **options)

    monkeypatch.setattr(np, "save", full)
    load("mnist", tmp_path / "tfds")
    assert len(calls) == 3
    assert "No space left on device" in caplog.text
    assert list((tmp_path / "cache/data").iterdir()) == []


def test_own_data_dir_is_neither_hidden_nor_shared(tmp_path, monkeypatch, caplog):
    usual, own = fake("mnist", 1), fake("mnist", 2)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "usual"))
    write_prepared(tmp_path / "usual", "mnist", usual)
    write_prepared(tmp_path / "own", "mnist", own)
    for _ in range(2):  # without and with caches
        assert_same([load("mnist").train], usual[:1])
        assert_same([load("mnist", tmp_path / "own").train], own[:1])
    assert not caplog.messages
    assert_same([load("mnist", tmp_path / "empty").train], usual[:1])
    assert caplog.messages == [f"{tmp_path / 'empty'} holds no mnist: looking where load('mnist') looks"]
    write_prepared(tmp_path / "empty", "mnist", own)
    assert_same([load("mnist", tmp_path / "empty").train], own[:1])


# Archives put there by hand, and downloads


def test_archives_by_hand_are_found_by_data_set(tmp_path, monkeypatch):
    for name, seed in (("mnist", 1), ("fashion_mnist", 2)):
        folder = tmp_path / "home/tensorflow_datasets/manual" / name
        write_archives(folder, name, *fake(name, seed))
        register(monkeypatch, folder)
        data = load(name)
        assert_same((data.train, data.test), fake(name, seed))


def test_archive_by_hand_with_wrong_bytes(tmp_path, monkeypatch):
    good, manual = tmp_path / "good", tmp_path / "own/manual/cifar10"
    write_archives(good, "cifar10", *fake("cifar10"))
    register(monkeypatch, good)
    shutil.copytree(good, manual)
    path = manual / "cifar-10-binary.tar.gz"
    size = path.stat().st_size
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    flip(path, size // 2)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=f"^{path} has SHA-256 {found}; expected {digest}.*$"):
        load("cifar10", tmp_path / "own")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=f"^{path} has 1000 bytes; expected {size}.*$"):
        load("cifar10", tmp_path / "own")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of the folder `served`; the download may reach it."""
    monkeypatch.setattr(download, "unreachable", REACH)
    served = tmp_path / "served"
    served.mkdir()
    handler = functools.partial(_Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield served, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["mnist", "svhn_cropped"])
def test_download_is_kept_for_the_next_time(name, server, tmp_path, monkeypatch):
    served, url = server
    splits = fake(name)
    write_archives(served, name, *splits)
    register(monkeypatch, served, url)
    data = load(name, tmp_path / "own")
    assert_same((data.train, data.test), splits)
    assert sorted(path.name for path in (tmp_path / "own/manual" / name).iterdir()) == sorted(DATASETS[name].archives)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(download, "unreachable", None)  # not even asked
    data = load(name, tmp_path / "own")
    assert_same((data.train, data.test), splits)


def test_download_without_a_folder_to_keep_it(server, tmp_path, monkeypatch):
    served, url = server
    splits = fake("mnist")
    write_archives(served, "mnist", *splits)
    register(monkeypatch, served, url)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file"))
    data = load("mnist")
    assert_same((data.train, data.test), splits)


def test_download_with_wrong_checksum_is_refused_and_removed(server, tmp_path, monkeypatch):
    served, url = server
    write_archives(served, "cifar100", *fake("cifar100"))
    register(monkeypatch, served, url)
    expected = download.registered("cifar100", DATASETS["cifar100"].archives)
    monkeypatch.setattr(download, "registered", lambda name, files: expected)
    flip(served / expected[0].filename, 100)
    with pytest.raises(DataError, match=r"^cifar100: the download failed: .*wrong checksum") as caught:
        load("cifar100", tmp_path / "own")
    found = hashlib.sha256((served / expected[0].filename).read_bytes()).hexdigest()
    message = one_line(caught)
    assert expected[0].sha256 in message
    assert found in message
    assert list((tmp_path / "own/manual/cifar100").iterdir()) == []
    assert not (tmp_path / "cache").exists()


def test_missing_page_is_told(server, tmp_path, monkeypatch):
    source = download.Source(server[1] + "gone.tar.gz", "gone.tar.gz", 5, "0")
    monkeypatch.setattr(download, "registered", lambda name, files: [source])
    with pytest.raises(DataError, match="the server answered 404"):
        load("cifar10")


def test_registered_archives_are_those_of_tfds():
    from tensorflow_datasets.core.download.checksums import get_all_url_infos

    infos = get_all_url_infos()
    for name in NAMES:
        sources = download.registered(name, DATASETS[name].archives)
        assert tuple(source.filename for source in sources) == DATASETS[name].archives
        for source in sources:
            assert source.url.endswith("/" + source.filename)
            assert len(source.sha256) == 64
            if name != "svhn_cropped":  # registered with its builder, not in the common table
                assert (infos[source.url].size, infos[source.url].checksum) == (source.size, source.sha256)
    with pytest.raises(DataError, match=r"registers no checksum of x\.zip for mnist"):
        download.registered("mnist", ("x.zip",))


@pytest.mark.parametrize("network", ["refused", "silent name server"])
def test_without_data_and_network_one_error_says_all(network, tmp_path, monkeypatch):
    over = threading.Event()
    asked = []

    def refused(*args, **options):
        asked.append(args[0])
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    def silent(*args, **options):
        asked.append(args[0])
        over.wait(20)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refused if network == "refused" else silent)
    monkeypatch.setattr(download, "unreachable", REACH)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    (tmp_path / "own/manual/svhn_cropped").mkdir(parents=True)
    (tmp_path / "own/manual/svhn_cropped/test_32x32.mat").write_bytes(b"")
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        load("svhn_cropped", tmp_path / "own")
    seconds = time.monotonic() - start
    over.set()
    assert asked == ["ufldl.stanford.edu"]
    assert seconds < 5
    message = one_line(caught)
    home = tmp_path / "home/tensorflow_datasets"
    places = [
        root / part for root in (tmp_path / "own", tmp_path / "tfds", home) for part in ("svhn_cropped", "manual/")
    ]
    for text in (
        *map(str, places),
        str(tmp_path / "cache/data/svhn_cropped"),
        "own/manual/svhn_cropped (lacks train_32x32.mat)",
        "http://ufldl.stanford.edu/housenumbers/train_32x32.mat, http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        "246.3 MB",
        f"into {tmp_path / 'own/manual/svhn_cropped'} by hand",
        "load('digits')",
        "no answer within 3 s" if network != "refused" else "no connection",
    ):
        assert text in message
