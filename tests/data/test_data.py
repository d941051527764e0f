"""The data sets as arrays: digits, statistics, held-out images, names; and the real data where there are some."""

import hashlib
import importlib.util
import os
import re
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxcnn.data import DATASETS, DataError, Dataset, Split, hold_out, load_dataset, loading, subset
from jaxcnn.data.types import assemble, channel_statistics


@pytest.fixture(autouse=True)
def _own_cache(request, tmp_path, monkeypatch):
    # Real data take long to decode, and other tests need them decoded too.
    if "real" not in request.keywords:
        monkeypatch.setenv("JAXCNN_CACHE", str(tmp_path / "cache"))


def numbered(train=40, test=8) -> Dataset:
    """A data set in which every image is told apart by its values."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (train + test, 4, 5, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(train + test)
    labels = np.arange(train + test, dtype=np.int32) % 3
    parts = Split(images[:train], labels[:train]), Split(images[train:], labels[train:])
    return assemble("numbered", *parts, (4, 5, 3), ("a", "b", "c"))


def test_digits_are_those_of_scikit_learn_split_by_class():
    data = load_dataset("digits")
    assert data.train.images.shape == (1437, 8, 8, 1)
    assert data.test.images.shape == (360, 8, 8, 1)
    assert data.validation.images.shape == (0, 8, 8, 1)
    assert (data.train.images.dtype, data.train.labels.dtype) == (np.uint8, np.int32)
    source: Any = load_digits()
    whole = np.bincount(source.target)
    assert np.abs(np.bincount(data.test.labels) - whole / 5).max() <= 1
    # the grey levels come back, and every original image is in exactly one split, with its label
    images = np.concatenate([data.train.images, data.test.images])
    labels = np.concatenate([data.train.labels, data.test.labels])
    levels = np.round(images / (255 / 16)).astype(int)
    assert (images == np.floor(levels * 255 / 16 + 0.5)).all()
    assert (images.min(), images.max(), len(np.unique(images))) == (0, 255, 17)
    found = sorted(
        (level.tobytes(), label) for level, label in zip(levels[..., 0], labels, strict=True)
    )
    pairs = zip(source.images.astype(int), source.target, strict=True)
    assert found == sorted((level.tobytes(), label) for level, label in pairs)


def test_digits_are_read_by_scikit_learn_where_its_file_is_elsewhere(monkeypatch):
    from_file = loading.digits()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for split, expected in zip(loading.digits(), from_file, strict=True):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(split.images, expected.images)
        np.testing.assert_array_equal(split.labels, expected.labels)


def test_digits_split_never_changes():
    train, test = load_dataset("digits").train, load_dataset("digits").test
    digest = hashlib.sha256(test.images.tobytes() + train.labels.tobytes()).hexdigest()
    assert digest[:16] == "1289554907d82b72"


def test_statistics_are_those_of_all_pixels():
    data = numbered()
    pixels = data.train.images / 255.0
    assert data.mean.shape == (4, 5, 3)
    assert (data.mean.dtype, data.std.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(data.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std(axis=(0, 1, 2)), rtol=1e-6)


def test_std_is_not_the_mean_of_the_images_own_deviations():
    # Each image is flat, so its own deviation is 0: the widely copied "std" of CIFAR-10 would be 0
    # here.
    images = np.repeat(np.array([0, 51, 204, 255], np.uint8), 12).reshape(4, 2, 2, 3)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, 0.5, rtol=1e-6)
    np.testing.assert_allclose(std, np.sqrt((0.25 + 0.09) / 2), rtol=1e-6)


def test_statistics_count_exactly_over_many_images():
    images = np.full(
        (3000, 1, 1, 1), 255, np.uint8
    )  # more than one chunk of the sum; 3000 * 255**2 is past 2**24
    images[-1] = 254
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, 1 - 1 / 3000 / 255, rtol=1e-7)
    np.testing.assert_allclose(std, np.sqrt(2999) / 3000 / 255, rtol=1e-6)


def test_hold_out_moves_images_and_recomputes_the_statistics():
    data = numbered()
    split = hold_out(data, 15, seed=1)
    train, held = split.train.images[:, 0, 0, 0], split.validation.images[:, 0, 0, 0]
    assert (len(train), len(held)) == (25, 15)
    assert sorted([*train, *held]) == list(range(40))
    for part in (split.train, split.validation):
        ids = part.images[:, 0, 0, 0]
        assert (np.diff(ids.astype(int)) > 0).all()  # in the order of the whole
        np.testing.assert_array_equal(part.images, data.train.images[ids])
        np.testing.assert_array_equal(part.labels, data.train.labels[ids])
    np.testing.assert_allclose(split.mean, (split.train.images / 255.0).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(
        split.std, (split.train.images / 255.0).std(axis=(0, 1, 2)), rtol=1e-6
    )
    assert split.test is data.test


def test_hold_out_is_seeded():
    chosen = [
        tuple(hold_out(numbered(), 15, seed).validation.images[:, 0, 0, 0].tolist())
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] != tuple(range(15))


def test_load_holds_out_what_it_is_asked_to():
    data, same = (
        load_dataset("digits", validation=137, seed=4),
        hold_out(load_dataset("digits"), 137, seed=4),
    )
    assert (len(data.train.labels), len(data.validation.labels), len(data.test.labels)) == (
        1300,
        137,
        360,
    )
    np.testing.assert_array_equal(data.validation.images, same.validation.images)


@pytest.mark.parametrize("n", [-1, 40, 41, 0.1, True])
def test_hold_out_refuses_a_wrong_number(n):
    with pytest.raises(
        DataError, match=rf"^cannot hold out {re.escape(repr(n))} images; expected .* 0\.\.39.*$"
    ):
        hold_out(numbered(), n, seed=0)


def test_hold_out_refuses_a_second_time_and_a_negative_seed():
    with pytest.raises(DataError, match=r"^5 images are held out already.*$"):
        hold_out(hold_out(numbered(), 5, 0), 5, 0)
    with pytest.raises(DataError, match=r"^seed is -1; expected"):
        hold_out(numbered(), 5, -1)
    data = numbered()
    assert hold_out(data, 0, 0) is data


@pytest.mark.parametrize("n", [3, 10, 20, 29, 39, 40])
def test_a_subset_has_even_classes_and_its_own_statistics(n):
    data = numbered()
    few = subset(data, n, seed=2)
    ids = few.train.images[:, 0, 0, 0].astype(int)
    assert len(ids) == len(few.train.labels) == n
    assert (np.diff(ids) > 0).all()  # in the order of the whole, each once
    np.testing.assert_array_equal(few.train.images, data.train.images[ids])
    np.testing.assert_array_equal(few.train.labels, data.train.labels[ids])
    assert np.ptp(np.bincount(few.train.labels, minlength=3)) <= 1
    np.testing.assert_allclose(few.mean, (few.train.images / 255.0).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(few.std, (few.train.images / 255.0).std(axis=(0, 1, 2)), rtol=1e-6)
    assert few.test is data.test
    assert few.validation is data.validation
    assert (few.name, few.classes) == (data.name, data.classes)


def test_subsets_are_seeded_and_nested():
    def ids(n, seed=0):
        return set(subset(numbered(), n, seed).train.images[:, 0, 0, 0].tolist())

    assert ids(12) == ids(12)
    assert len({frozenset(ids(12, seed)) for seed in range(5)}) == 5
    assert ids(12) != set(range(12))
    for n in range(1, 40):
        assert ids(n) < ids(n + 1)


def test_a_subset_of_what_is_not_held_out_leaves_that_alone():
    data = hold_out(numbered(), 10, seed=1)
    few = subset(data, 12, seed=0)
    assert few.validation is data.validation
    held, kept = (set(part.images[:, 0, 0, 0].tolist()) for part in (few.validation, few.train))
    assert not held & kept


@pytest.mark.parametrize("n", [0, -1, 41, 0.1, 3.0, True, "3", None])
def test_a_subset_refuses_a_wrong_number(n):
    with pytest.raises(
        DataError,
        match=rf"^cannot keep {re.escape(repr(n))} training images; expected .* 1\.\.40.*$",
    ):
        subset(numbered(), n, seed=0)


def test_a_subset_refuses_a_class_with_too_few_images():
    data = numbered()
    rare = np.where(np.arange(40) < 2, 2, np.arange(40) % 2).astype(
        np.int32
    )  # two images of class 2
    data = data._replace(train=Split(data.train.images, rare))
    assert np.bincount(subset(data, 6, 0).train.labels).tolist() == [2, 2, 2]
    with pytest.raises(
        DataError, match=r"^a class has only 2 images, fewer than its share of 9; keep 6$"
    ):
        subset(data, 9, 0)
    assert len(subset(data, 40, 0).train.labels) == 40


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 5, 3), np.float32), [0, 1], "train images are float32"),
        (
            np.zeros((2, 5, 4, 3), np.uint8),
            [0, 1],
            r"train images are uint8 \(2, 5, 4, 3\); expected .*4, 5, 3",
        ),
        (np.zeros((0, 4, 5, 3), np.uint8), [], "n > 0"),
        (np.zeros((2, 4, 5, 3), np.uint8), [0], r"train labels are int32 \(1,\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), [-1, 0], r"train labels span -1\.\.0; expected 0\.\.2"),
        (np.zeros((2, 4, 5, 3), np.uint8), [0, 3], r"train labels span 0\.\.3; expected 0\.\.2"),
    ],
)
def test_wrong_arrays_are_refused_in_one_line(images, labels, message):
    wrong = Split(images, np.array(labels, np.int32))
    with pytest.raises(DataError, match=rf"^.*{message}.*$"):
        assemble("x", wrong, numbered().test, (4, 5, 3), ("a", "b", "c"))


def test_unknown_name_gives_the_nearest_and_the_list():
    with pytest.raises(
        DataError,
        match=r"^'folder' is for images of your own.*data=jaxcnn\.image_folder\(PATH, size=\.\.\.\)$",
    ):
        load_dataset("folder")
    with pytest.raises(
        DataError, match=r"^no data set is named 'CIFAR-10'; did you mean 'cifar10'\?.*digits.*$"
    ):
        load_dataset("CIFAR-10")
    assert list(DATASETS) == [
        "digits",
        "mnist",
        "fashion_mnist",
        "cifar10",
        "cifar100",
        "svhn_cropped",
    ]


def test_class_names_are_in_label_order():
    counts = {name: len(facts.classes) for name, facts in DATASETS.items()}
    assert counts == dict.fromkeys(DATASETS, 10) | {"cifar100": 100}
    assert DATASETS["cifar10"].classes[:2] == ("airplane", "automobile")
    assert list(DATASETS["cifar100"].classes) == sorted(
        set(DATASETS["cifar100"].classes)
    )  # label order is alphabetical
    assert (DATASETS["fashion_mnist"].classes[0], DATASETS["fashion_mnist"].classes[9]) == (
        "T-shirt/top",
        "Ankle boot",
    )


@pytest.mark.slow
@pytest.mark.real
def test_real_cifar10():
    import tensorflow_datasets as tfds

    data = load_dataset("cifar10")
    assert (data.train.images.shape, data.test.images.shape) == (
        (50_000, 32, 32, 3),
        (10_000, 32, 32, 3),
    )
    assert set(np.bincount(data.train.labels)) == {5_000}
    assert set(np.bincount(data.test.labels)) == {1_000}
    np.testing.assert_allclose(data.mean.mean(axis=(0, 1)), [0.49140, 0.48216, 0.44653], atol=1e-4)
    np.testing.assert_allclose(data.std, [0.2470, 0.2435, 0.2616], atol=1e-4)
    theirs: Any = tfds.data_source(
        "cifar10", split="test", data_dir=os.environ["TFDS_DATA_DIR"], download=False
    )
    for i in (0, 1, 9_999):
        np.testing.assert_array_equal(data.test.images[i], theirs[i]["image"])
        assert data.test.labels[i] == theirs[i]["label"]


@pytest.mark.slow
@pytest.mark.real
def test_real_mnist():
    data = load_dataset("mnist", validation=10_000)
    assert [len(part.labels) for part in (data.train, data.validation, data.test)] == [
        50_000,
        10_000,
        10_000,
    ]
    data = load_dataset("mnist")
    np.testing.assert_allclose(data.mean.mean(), 0.1307, atol=1e-4)
    np.testing.assert_allclose(data.std, 0.3081, atol=1e-4)
