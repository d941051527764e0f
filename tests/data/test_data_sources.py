"""Original archives and prepared TFDS directories: what was written comes back, and damage is one line."""

import tarfile

import numpy as np
import pytest
from data_fakes import (
    NAMES,
    assert_same,
    bare_machine,  # noqa: F401
    fake,
    flip,
    one_line,
    slow_crc32c,
    write_archives,
    write_prepared,
    write_tar,
    write_tfrecord,
)

from jaxcnn.data import DATASETS, DataError, Split, archives, load_dataset, tfds

pytestmark = pytest.mark.usefixtures("bare_machine")


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
    data = load_dataset(name, tmp_path)
    assert_same((data.train, data.test), splits)


def test_the_highest_version_is_read(tmp_path):
    for seed, version in ((1, "3.0.9"), (2, "3.0.10"), (3, "2.9.11")):
        write_prepared(tmp_path, "mnist", fake("mnist", seed), version=version)
    (tmp_path / "mnist/9.0.0.incomplete").mkdir()
    found = tfds.find("mnist", tmp_path)
    assert found
    assert found == tmp_path / "mnist/3.0.10"
    assert_same(tfds.read(found, "mnist", DATASETS["mnist"]), fake("mnist", 2))


def test_every_flipped_bit_of_a_tfrecord_is_found(tmp_path):
    path = tmp_path / "x"
    write_tfrecord(path, [b"a record", b"", b"another one"])
    assert tfds.read_tfrecord(path) == [b"a record", b"", b"another one"]
    for at in range(path.stat().st_size):
        flip(path, at)
        with pytest.raises(DataError, match=str(path)) as caught:
            tfds.read_tfrecord(path)
        one_line(caught)
        flip(path, at)
    for size in (1, 11, 12, 23, path.stat().st_size - 1):
        (tmp_path / "y").write_bytes(path.read_bytes()[:size])
        with pytest.raises(DataError, match="is cut short or damaged"):
            tfds.read_tfrecord(tmp_path / "y")


def test_crc32c_agrees_with_the_definition():
    rng = np.random.default_rng(0)
    texts = [rng.bytes(n) for n in (0, 1, 3, 4, 50, 300)] + [b"123456789"]
    assert [int(crc) for crc in tfds.crc32c(texts)] == [slow_crc32c(text) for text in texts]
    assert slow_crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3720


def test_damaged_array_record_is_one_line(tmp_path):
    folder = write_prepared(tmp_path, "mnist", fake("mnist"))
    shard = folder / "mnist-train.array_record-00001-of-00002"
    flip(shard, 2000)
    with pytest.raises(DataError, match=f"^{shard} is damaged: .*$") as caught:
        load_dataset("mnist", tmp_path)
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
            load_dataset("mnist", tmp_path)
        one_line(caught)
    info.write_text(text)
    (folder / "label.labels.txt").write_text("a\nb")
    with pytest.raises(DataError, match=r"names the classes \('a', 'b'\)"):
        load_dataset("mnist", tmp_path)
    (folder / "label.labels.txt").unlink()
    (folder / "mnist-test.tfrecord-00000-of-00002").unlink()
    with pytest.raises(DataError, match=r"lacks mnist-test\.tfrecord-00000-of-00002"):
        load_dataset("mnist", tmp_path)


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
            load_dataset("mnist", tmp_path / root)
        one_line(caught)


# The cache
