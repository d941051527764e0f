"""`python -m experiments.benchmark.images`: its folder, its table, and mistakes."""

import csv
import hashlib
import os

import numpy as np
import pytest
from PIL import Image
from scripts import refuses

import jaxcnn as jc
from experiments.benchmark import images

SMALL = ["--count", "100", "--size", "16", "--batch-size", "8", "--num-batches", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jpegs")
    assert sum(images.make_folder(folder, 100)) == 100
    return folder


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.jpg"))
    }


def test_the_folder_has_as_many_different_photographs_of_each_class(folder):
    data = jc.image_folder(folder, 8)
    labels = np.concatenate([data.train.labels, data.test.labels])
    assert np.bincount(labels).tolist() == [10] * images.CLASSES
    assert len(set(digests(folder).values())) == 100
    sides = set()
    for path in folder.rglob("*.jpg"):
        with Image.open(path) as image:
            sides |= set(image.size)
    low, high = images.SIDES
    assert low <= min(sides) < low + 20
    assert high - 20 < max(sides) <= high


def test_a_folder_that_was_stopped_is_completed_to_the_same_bytes(folder, tmp_path):
    made = images.make_folder(tmp_path, 100)
    for _ in range(7):
        next(made)
    made.close()
    (tmp_path / "class3" / "000003.jpg").unlink(missing_ok=True)
    list(images.make_folder(tmp_path, 100))
    assert digests(tmp_path) == digests(folder)


def test_feeding_reads_the_images_of_the_index_either_way(tmp_path, monkeypatch):
    array = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(10, 4, 4, 3))
    reads = []
    monkeypatch.setattr(images.input_pipeline, "read_ahead", lambda _, rows: reads.append(rows))
    index = np.array([[3, 1], [2, 9]], np.int32)
    for read_ahead in (False, True):
        assert images.time_feeding(array, index, read_ahead, jc.strategy("jit", 1)) > 0
    assert np.concatenate(reads).tolist() == index.tolist()


def test_steps_wait_only_for_images_that_come_too_late(tmp_path, monkeypatch):
    """A clock that reading and working move on: 3 chunks of 4 images that take 5 seconds to read."""
    array = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(12, 4, 4, 3))
    now = [0.0]

    def chunks(order):
        for rows in order[:, None]:
            now[0] += 5
            yield rows, None

    fed = images.input_pipeline.InputPipeline(None, chunks)
    monkeypatch.setattr(images.input_pipeline, "input_pipeline", lambda split, strategy: fed)
    monkeypatch.setattr(images.time, "perf_counter", lambda: now[0])
    slept = []
    monkeypatch.setattr(images.time, "sleep", slept.append)
    index = np.arange(12, dtype=np.int32).reshape(3, 4)
    strategy = jc.strategy("jit", 1)
    assert images.time_feeding(array, index, True, strategy) == 15
    assert images.time_feeding(array, index, True, strategy, 2) == 10
    assert slept == [0, 0, 0, 2, 2, 2]


@pytest.mark.slow
def test_the_command_writes_a_row_for_each_measurement(folder, tmp_path, capsys):
    assert (
        images.main([*SMALL, "--images", str(folder), "--rounds", "1", "--out", str(tmp_path)]) == 0
    )
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    cores = len(os.sched_getaffinity(0))
    assert {int(row["cores"]) for row in rows if row["measurement"] == "decode"} >= {1, cores}
    for name in ("feed", "wait"):
        feeds = {(row["cached"], row["read_ahead"]) for row in rows if row["measurement"] == name}
        assert feeds == {(a, b) for a in ("True", "False") for b in ("True", "False")}
    for row in rows:
        n, seconds = int(row["images"]), float(row["seconds"])
        assert n == (16 if row["measurement"] in ("feed", "wait") else 100)
        if row["measurement"] == "wait":
            seconds += n / images.STEP_RATE
        assert float(row["images_per_second"]) == pytest.approx(n / seconds, rel=1e-3)
        rate = float(row["images_per_second"]) * 16 * 16 * 3 / 1e6
        assert float(row["mb_per_second"]) == pytest.approx(rate, rel=1e-3)
    # The cache of the measurement is gone.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.md"]
    assert "wrote table.md and table.csv" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--count", "5"], "--count is 5; expected a whole number of 100"),
        (["--num-batches", "0"], "--num-batches is 0; expected a whole number of 1"),
        (["--images", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(args, says, tmp_path, capsys, monkeypatch):
    refuses(images.main, [*args, "--out", str(tmp_path)], says, capsys, monkeypatch)
