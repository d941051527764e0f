"""The library's own cache: read first, verified, rebuilt when damaged, never executed."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from data_fakes import (
    assert_same,
    bare_machine,  # noqa: F401
    fake,
    flip,
    one_line,
    write_prepared,
)

from jaxcnn.data import DATASETS, DataError, cache, load_dataset

pytestmark = pytest.mark.usefixtures("bare_machine")


@pytest.mark.slow
def test_cache_is_read_without_the_source_and_without_its_readers(tmp_path, monkeypatch):
    splits = fake("cifar10")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    write_prepared(tmp_path / "tfds", "cifar10", splits)
    first = load_dataset("cifar10")
    shutil.rmtree(tmp_path / "tfds")
    again = load_dataset("cifar10")
    assert_same((again.train, again.test), splits)
    np.testing.assert_array_equal(first.mean, again.mean)
    about = json.loads((tmp_path / "cache/data/cifar10/dataset.json").read_text())
    assert about["name"] == "cifar10"
    assert about["source"] == str(tmp_path / "tfds/cifar10/3.0.2")
    assert about["files"]["train_images"]["shape"] == [20, 32, 32, 3]
    code = (
        "import sys, jaxcnn.data; print(len(jaxcnn.data.load_dataset('cifar10').train.labels),"
        "{'tensorflow', 'tensorflow_datasets', 'array_record', 'sklearn'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.split("\n")[0] == "20 set()"


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    assert cache.dataset_folder("mnist") == tmp_path / "cache/data/mnist"
    monkeypatch.delenv("JAXCNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.dataset_folder("mnist") == tmp_path / "xdg/jaxcnn/data/mnist"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.dataset_folder("mnist") == tmp_path / "home/.cache/jaxcnn/data/mnist"


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


@pytest.mark.parametrize(
    "damage", [damage_bytes, damage_labels, damage_missing, damage_json, damage_truncated]
)
def test_damaged_cache_is_rebuilt_with_a_message(damage, tmp_path, monkeypatch, caplog):
    splits = fake("mnist")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    write_prepared(tmp_path / "tfds", "mnist", splits)
    load_dataset("mnist")
    place = tmp_path / "cache/data/mnist"
    damage(place)
    assert not caplog.messages
    data = load_dataset("mnist")
    assert_same((data.train, data.test), splits)
    (message,) = caplog.messages
    assert str(place) in message
    assert "is damaged" in message
    load_dataset("mnist")
    assert len(caplog.messages) == 1  # it is whole again
    damage(place)
    shutil.rmtree(tmp_path / "tfds")
    with pytest.raises(DataError, match=f"the cache {place} is damaged") as caught:
        load_dataset("mnist")
    one_line(caught)


class _Payload:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_cache_runs_no_pickle(tmp_path):
    place = cache.dataset_folder("mnist")
    cache.write(place, "mnist", "here", DATASETS["mnist"].classes, *fake("mnist"))
    evil = np.array([_Payload()], dtype=object)
    for write in (
        lambda file: np.save(file, evil, allow_pickle=True),
        lambda file: pickle.dump(_Payload(), file),
    ):
        with (place / "train_images.npy").open("wb") as file:
            write(file)
        about = json.loads((place / "dataset.json").read_text())
        about["files"]["train_images"]["sha256"] = hashlib.sha256(
            (place / "train_images.npy").read_bytes()
        ).hexdigest()
        (place / "dataset.json").write_text(json.dumps(about))
        with pytest.raises(DataError, match=r"is damaged: .*pickle"):
            cache.read(place)


def test_cache_that_cannot_be_written_costs_a_note(tmp_path, monkeypatch, caplog):
    splits = fake("mnist")
    write_prepared(tmp_path / "tfds", "mnist", splits)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("JAXCNN_CACHE", str(tmp_path / "file"))
    data = load_dataset("mnist", tmp_path / "tfds")
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
    load_dataset("mnist", tmp_path / "tfds")
    assert len(calls) == 3
    assert "No space left on device" in caplog.text
    assert list((tmp_path / "cache/data").iterdir()) == []


def test_own_data_dir_is_neither_hidden_nor_shared(tmp_path, monkeypatch, caplog):
    usual, own = fake("mnist", 1), fake("mnist", 2)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "usual"))
    write_prepared(tmp_path / "usual", "mnist", usual)
    write_prepared(tmp_path / "own", "mnist", own)
    for _ in range(2):  # without and with caches
        assert_same([load_dataset("mnist").train], usual[:1])
        assert_same([load_dataset("mnist", tmp_path / "own").train], own[:1])
    assert not caplog.messages
    assert_same([load_dataset("mnist", tmp_path / "empty").train], usual[:1])
    assert caplog.messages == [
        f"{tmp_path / 'empty'} holds no mnist: looking where load_dataset('mnist') looks"
    ]
    write_prepared(tmp_path / "empty", "mnist", own)
    assert_same([load_dataset("mnist", tmp_path / "empty").train], own[:1])


# Archives put there by hand, and downloads
