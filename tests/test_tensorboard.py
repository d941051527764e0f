"""TensorBoard's event files have the numbers of a run's rows, each step once; they are read by a reader of our own."""

import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

import jaxcnn as jc
from jaxcnn import runs

pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.quick_compilation]
CONFIG = jc.TrainConfig(num_steps=12, eval_every=3, batch_size=16)
train: Any = jc.train


# ------------------------------------------------------------------ the reader


def crc32c(content):
    """Castagnoli's checksum, bit by bit (RFC 3720, appendix B.4)."""
    value = 0xFFFFFFFF
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def masked(content):
    """TFRecord's form of it."""
    value = crc32c(content)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path):
    content = Path(path).read_bytes()
    while content:
        length, length_checksum = struct.unpack("<QI", content[:12])
        body, rest = content[12 : 12 + length], content[12 + length :]
        assert length_checksum == masked(content[:8])
        assert struct.unpack("<I", rest[:4]) == (masked(body),)
        yield body
        content = rest[4:]


def fields(message):
    """Yield the (number, value) of a protocol buffer's fields."""
    position = 0

    def varint():
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            value |= (byte & 127) << shift
            position, shift = position + 1, shift + 7
            if byte < 128:
                return value

    while position < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        part = message[position : position + size]
        position += size
        value = struct.unpack("<d" if size == 8 else "<f", part)[0] if kind in (1, 5) else part
        yield number, value


def scalars(folder):
    """The [(step, {tag: value})] of all files of a folder: event.proto and summary.proto by their field numbers."""
    steps = []
    for path in sorted(Path(folder).glob("*tfevents*")):
        for body in records(path):
            event = dict(fields(body))
            if 5 not in event:
                continue
            values = [dict(fields(value)) for number, value in fields(event[5]) if number == 1]
            steps.append((event.get(2, 0), {v[1].decode(): v.get(2, 0.0) for v in values}))
    return steps


def numbers_of(rows):
    """What the event files of these rows should hold."""

    def numbers(row):
        return {
            key: struct.unpack("<f", struct.pack("<f", value))[0]
            for key, value in row.items()
            if key not in ("step", "eval_split") and value is not None
        }

    return [(row["step"], numbers(row)) for row in rows]


def test_the_checksum_is_that_of_the_standard():
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"123456789") == 0xE3069283


# ------------------------------------------------------------------ runs


def test_a_run_has_its_rows_numbers(model, tx, data, tmp_path):
    list(train(model, tx, data, CONFIG, run_dir=tmp_path, tensorboard=True))
    (path,) = (tmp_path / "tensorboard").iterdir()
    first = dict(fields(next(records(path))))
    assert first[3] == b"brain.Event:2"
    rows = jc.read_metrics(tmp_path)
    assert [step for step, _ in scalars(path.parent)] == [3, 6, 9, 12]
    assert scalars(path.parent) == numbers_of(rows)
    assert {"rate", "train_loss", "eval_error", "grad_norm"} <= scalars(path.parent)[0][1].keys()


@pytest.mark.parametrize("step", [6, 7])
def test_a_resumed_run_has_each_step_once(step, model, tx, data, tmp_path):
    options = {"run_dir": tmp_path, "tensorboard": True}
    list(train(model, tx, data, CONFIG, should_stop=lambda at: at == step, **options))
    before = scalars(tmp_path / "tensorboard")
    (path,) = (tmp_path / "tensorboard").iterdir()
    content = path.read_bytes()
    list(train(model, tx, data, CONFIG, **options))
    # One file, which is continued: its events are those of the first part, then new ones.
    assert list((tmp_path / "tensorboard").iterdir()) == [path]
    assert path.read_bytes().startswith(content)
    steps = [dict(fields(body)).get(2, 0) for body in records(path)]
    assert steps == [0, 3, 6, 9, 12]
    after = scalars(tmp_path / "tensorboard")
    assert [at for at, _ in after] == [3, 6, 9, 12]
    assert after[: len(before)] == before
    assert after == numbers_of(jc.read_metrics(tmp_path))


def test_a_run_that_lost_checkpoints_repeats_its_rows_and_keeps_their_times(tmp_path):
    log = jc.RunLog(tmp_path, jc.ExperimentConfig(), tensorboard=True)
    for step in (1, 2, 3):
        log.write(step=step, eval_loss=float(step))
    (old,) = (tmp_path / "tensorboard").iterdir()
    times = [dict(fields(body))[1] for body in records(old)][1:]
    log = jc.RunLog(tmp_path, jc.ExperimentConfig(), tensorboard=True)
    log.write(step=2, eval_loss=20.0)
    log.write(step=4, eval_loss=4.0)
    assert scalars(tmp_path / "tensorboard") == [
        (1, {"eval_loss": 1.0}),
        (2, {"eval_loss": 20.0}),
        (4, {"eval_loss": 4.0}),
    ]
    emptied, new = sorted((tmp_path / "tensorboard").iterdir())
    assert (emptied, emptied.read_bytes()) == (old, b"")
    events = [dict(fields(body)) for body in records(new)]
    # An open TensorBoard drops what it has read from the old file: a session that starts at step 0.
    assert dict(fields(events[1][7])) == {1: 1}
    assert events[1].get(2, 0) == 0
    assert events[2][1] == times[0]


@pytest.mark.parametrize("damage", ["cut", "lost", "doubled", "foreign"])
def test_what_a_kill_left_is_made_whole(damage, tmp_path):
    log = jc.RunLog(tmp_path, jc.ExperimentConfig(), tensorboard=True)
    for step in (1, 2, 3):
        log.write(step=step, eval_loss=float(step))
    (path,) = (tmp_path / "tensorboard").iterdir()
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-5])
    elif damage == "lost":
        path.unlink()
    elif damage == "doubled":
        path.with_name(path.name + ".1").write_bytes(content)
    else:
        path.write_bytes(b"no event file at all" * 9)
    log = jc.RunLog(tmp_path, jc.ExperimentConfig(), tensorboard=True)
    log.write(step=4, eval_loss=4.0)
    expected = [(step, {"eval_loss": float(step)}) for step in (1, 2, 3, 4)]
    assert scalars(tmp_path / "tensorboard") == expected


def test_rows_before_it_was_asked_for_are_there_too(model, tx, data, tmp_path):
    list(train(model, tx, data, CONFIG, run_dir=tmp_path))
    assert not (tmp_path / "tensorboard").exists()
    list(train(model, tx, data, CONFIG, run_dir=tmp_path, tensorboard=True))
    assert scalars(tmp_path / "tensorboard") == numbers_of(jc.read_metrics(tmp_path))


def test_only_finite_numbers_are_written(tmp_path):
    log = jc.RunLog(tmp_path, jc.ExperimentConfig(), tensorboard=True)
    log.write(step=1, loss=float("nan"), name="a", flag=True, list=[1.0], large=1e300, count=3)
    log.write(step=2, none=None)
    assert scalars(tmp_path / "tensorboard") == [(1, {"count": 3.0}), (2, {})]


def test_a_study_has_a_folder_for_each_run(data, tmp_path):
    config = jc.ExperimentConfig(dataset="digits", model="mlp", train=CONFIG)
    config = jc.override(config, max_train_examples=128, optimizer="adam", learning_rate=0.01)
    configs = {f"seed{seed}": jc.override(config, seed=seed) for seed in (0, 1)}
    runs.sweep(configs, data, tmp_path, tensorboard=True, quiet=True)
    for name in configs:
        rows = jc.read_metrics(tmp_path / name)
        assert scalars(tmp_path / name / "tensorboard") == numbers_of(rows)


@pytest.mark.slow
def test_the_flag_of_the_depth_study(tmp_path):
    from experiments import depth

    args = "--depths 8 --families plain --num-seeds 1 --num-steps 2 --eval-every 1 --width 2 --tensorboard"
    assert depth.main([*args.split(), "--out", str(tmp_path)]) == 0
    rows = jc.read_metrics(tmp_path / "plain8-seed0")
    assert scalars(tmp_path / "plain8-seed0" / "tensorboard") == numbers_of(rows)


# ------------------------------------------------------------------ mistakes


@pytest.fixture
def without_package(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)


def test_without_the_package_nothing_is_written(without_package, model, tx, data, tmp_path):
    folder = tmp_path / "run"
    config = jc.ExperimentConfig(dataset="digits", model="mlp", train=CONFIG)
    config = jc.override(config, max_train_examples=128)
    for call in (
        lambda: train(model, tx, data, CONFIG, run_dir=folder, tensorboard=True),
        lambda: jc.RunLog(folder, config, tensorboard=True),
        lambda: runs.run(config, data, folder, tensorboard=True),
        lambda: runs.sweep({"a": config}, data, folder, tensorboard=True),
    ):
        with pytest.raises(jc.ArgumentError) as error:
            call()
        assert "pip install 'jaxcnn[tensorboard]'" in str(error.value)
        assert "\n" not in str(error.value)
        assert not folder.exists()


def test_it_needs_a_folder(model, tx, data):
    message = r"tensorboard is True, but run_dir is None; .* Write run_dir='runs/a'\."
    with pytest.raises(jc.ArgumentError, match=message):
        train(model, tx, data, CONFIG, tensorboard=True)


def test_a_disk_that_refuses_is_one_line_and_leaves_nothing_open(tmp_path):
    from jaxcnn.run_log import LogError

    log = jc.RunLog(tmp_path, jc.ExperimentConfig(), tensorboard=True)
    log.write(step=1, eval_loss=1.0)
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.unlink()
    path.mkdir()
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    with pytest.raises(LogError, match=r"cannot write .*tfevents"):
        log.write(step=2, eval_loss=2.0)
    after = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    assert len(after) == len(before)
