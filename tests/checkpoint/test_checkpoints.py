"""Whatever happens to a run or its disk, what comes back is bit for bit what was saved, or an error of one line."""

import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxcnn as jc
from jaxcnn.checkpoint import CheckpointError, Checkpoints

pytestmark = pytest.mark.quick_compilation

WIDE = 256  # enough for leaves in chunks of their own, which unlike the small ones carry no checksum of Orbax's


class State(NamedTuple):
    step: Any
    params: Any
    stats: Any
    opt: Any
    key: Any


def state_at(step: int, width: int = 8) -> State:
    """A state with every dtype and rank that a run has; all values depend on the step."""
    rng = np.random.default_rng(step)
    params = {
        "conv1": {"kernel": rng.standard_normal((3, 3, 3, width), np.float32)},
        "head": {
            "kernel": rng.standard_normal((width, 10)).astype(jnp.bfloat16),
            "scale": np.array(step, np.float32),
        },
    }
    stats = {
        "mean": rng.standard_normal(width, np.float32),
        "seen": np.array(True),
        "mask": rng.random(5) < 0.5,
    }
    tx = optax.chain(
        optax.add_decayed_weights(1e-4), optax.sgd(optax.constant_schedule(0.1), momentum=0.9)
    )
    opt = jax.tree.map(
        lambda leaf: np.asarray(leaf) + np.asarray(leaf.dtype.type(step)), tx.init(params)
    )
    key = np.array([step, 2**32 - 1 - step], np.uint32)
    return State(np.asarray(step, np.int32), params, stats, opt, key)


def bits(tree) -> list:
    leaves, structure = jax.tree.flatten(tree)
    return [structure, *((leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for leaf in leaves)]


def saved_at(folder: Path, *steps: int, width: int = 8) -> Path:
    with Checkpoints(folder) as saved:
        for step in steps:
            saved.save(state_at(step, width))
    return folder


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
def test_steps_on_the_way_stay_where_asked_for_and_each_is_found_again(tmp_path):
    with Checkpoints(tmp_path, keep_every=3) as saved:
        for step in range(1, 9):
            saved.save(state_at(step), metric=abs(step - 2))
    with Checkpoints(tmp_path) as saved:
        assert saved.steps() == [2, 3, 6, 7, 8]  # the best, the multiples of 3, the last two
        found = saved.restore(state_at(0), 3)
        assert found is not None
        assert bits(found) == bits(state_at(3))
        with pytest.raises(CheckpointError, match="has no step 4; write one of 2, 3, 6") as error:
            saved.restore(state_at(0), 4)
        one_line(error)
        newest = saved.restore(state_at(0))
    assert newest is not None
    assert int(newest.step) == 8


def test_a_damaged_step_that_was_asked_for_is_not_replaced_by_another(tmp_path):
    with Checkpoints(saved_at(tmp_path, 3, 6)) as saved:
        next(
            path
            for path in (tmp_path / "3").rglob("*")
            if path.is_file() and "manifest" in path.parts
        ).unlink()
        with pytest.raises(CheckpointError, match=r"damaged \[3\]"):
            saved.restore(state_at(0), 3)


def test_a_state_comes_back_bit_for_bit_with_its_types(tmp_path):
    with Checkpoints(tmp_path / "new" / "run") as saved:
        assert saved.restore(state_at(0)) is None
        assert saved.best(state_at(0)) is None
        saved.save(state_at(3))
        found = saved.restore(jax.eval_shape(lambda state: state, state_at(0)))
    assert found is not None
    assert bits(found) == bits(state_at(3))
    assert bits(found) != bits(state_at(4))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
    assert isinstance(found, State)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {
        "int32",
        "float32",
        "bfloat16",
        "uint32",
        "bool",
    }


def test_the_state_may_be_overwritten_while_it_is_saved(tmp_path):
    state = state_at(1, width=64)
    with Checkpoints(tmp_path) as saved:
        saved.save(state)
        state.params["conv1"]["kernel"][:] = 0.0
        assert bits(saved.restore(state)) == bits(state_at(1, width=64))


def test_eight_devices_to_one_and_back(tmp_path):
    everywhere = NamedSharding(
        Mesh(np.array(jax.devices()), "d", axis_types=(AxisType.Auto,)), PartitionSpec()
    )
    with Checkpoints(tmp_path) as saved:
        for step, place in [(1, everywhere), (2, jax.devices()[0]), (3, everywhere)]:
            state = jax.device_put(state_at(step), place)
            assert len(state.key.devices()) == (1 if step == 2 else 8)
            saved.save(state)
            assert bits(jax.device_put(saved.restore(state), place)) == bits(state_at(step))
    with Checkpoints(tmp_path) as saved:
        assert bits(saved.restore(jax.device_put(state_at(0), jax.devices()[0]))) == bits(
            state_at(3)
        )


def test_a_state_with_a_device_axis_is_refused(tmp_path):
    stacked = jax.tree.map(lambda leaf: np.stack([leaf] * 8), state_at(1))
    with (
        Checkpoints(tmp_path) as saved,
        pytest.raises(CheckpointError, match="unreplicate") as error,
    ):
        saved.save(stacked)
    assert "(8,)" in one_line(error)


@pytest.mark.slow
@pytest.mark.parametrize("reopen", [False, True])
def test_two_latest_and_the_best_are_kept(tmp_path, reopen):
    nan, saved = float("nan"), Checkpoints(tmp_path)
    for step, metric in enumerate([nan, 0.5, 0.2, jnp.float32(0.3), None, nan, 0.4, -float("inf")]):
        saved.save(state_at(step), metric)
        if reopen:
            saved.close()
            saved = Checkpoints(tmp_path)
    saved.wait()
    assert saved.steps() == [2, 6, 7]
    assert bits(saved.best(state_at(0))) == bits(state_at(2))
    assert bits(saved.restore(state_at(0))) == bits(state_at(7))
    saved.save(state_at(8), 0.1)
    saved.close()
    assert saved.steps() == [7, 8]


def test_without_metrics_the_two_latest_are_kept(tmp_path):
    with Checkpoints(tmp_path) as saved:
        for step in range(4):
            saved.save(state_at(step))
        saved.wait()
        assert saved.steps() == [2, 3]
        assert saved.best(state_at(0)) is None


def test_a_good_step_is_not_saved_twice(tmp_path):
    saved_at(tmp_path, 1)
    before = {item: item.stat().st_mtime_ns for item in (tmp_path / "1").rglob("*")}
    saved_at(tmp_path, 1)
    assert {item: item.stat().st_mtime_ns for item in (tmp_path / "1").rglob("*")} == before


def test_a_run_begun_again_does_not_mix_with_the_old_one(tmp_path):
    with Checkpoints(saved_at(tmp_path, 10, 20)) as saved:
        with pytest.raises(CheckpointError, match="at step 20, past 15") as error:
            saved.save(state_at(15))
        one_line(error)
        assert saved.steps() == [10, 20]


def flip(file: Path, rng: np.random.Generator) -> None:
    data = bytearray(file.read_bytes())
    data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
    file.write_bytes(data)


def cut(file: Path, rng: np.random.Generator) -> None:
    os.truncate(file, int(rng.integers(file.stat().st_size)))


def remove(file: Path, rng: np.random.Generator) -> None:
    file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "times"), [(flip, 4), (cut, 2), (remove, 1)])
def test_a_damaged_file_is_named_and_the_step_before_it_used(tmp_path, caplog, damage, times):
    """Each file of the newest step in turn. Of them all only the record may be missing."""
    clean, rng, count = saved_at(tmp_path / "clean", 1, 2, width=WIDE), np.random.default_rng(0), 0
    for file in sorted(
        file.relative_to(clean) for file in (clean / "2").rglob("*") if file.is_file()
    ):
        for _ in range(times):
            folder = tmp_path / f"{count}"
            shutil.copytree(clean, folder)
            damage(folder / file, rng)
            caplog.clear()
            with Checkpoints(folder) as saved:
                found = bits(saved.restore(state_at(0, WIDE)))
            damaged = damage is not remove or file.name != "files.json"
            assert (folder / "2.damaged").is_dir() == damaged, file
            assert found == bits(state_at(1 if damaged else 2, WIDE)), file
            messages = [record.getMessage() for record in caplog.records]
            assert [
                f"{folder / '2'} is damaged ({file.relative_to('2')} " in message
                for message in messages
            ] == [True] * damaged
            assert "\n" not in "".join(messages)
            count += 1
            shutil.rmtree(folder)
    assert count >= 11 * times


@pytest.mark.parametrize("forge", ["record", "seal", "list", "not JSON"])
def test_a_forged_record_of_files_is_damage(tmp_path, caplog, forge):
    record = saved_at(tmp_path, 1, 2) / "2" / "files.json"
    body = json.loads(record.read_text())
    body["files"]["state/_METADATA"][0] += 1
    body = {"record": body, "seal": {**body, "seal": None}, "list": [], "not JSON": None}[forge]
    record.write_text("{" if body is None else json.dumps(body))
    with Checkpoints(tmp_path) as saved:
        assert bits(saved.restore(state_at(0))) == bits(state_at(1))
    assert "(files.json is not what was saved)" in caplog.text


def test_a_step_whose_process_died_before_it_recorded_the_files_is_good(tmp_path, caplog):
    (saved_at(tmp_path, 1, 2) / "2" / "files.json").rename(tmp_path / "2" / "files.json.part")
    with Checkpoints(tmp_path) as saved:
        assert bits(saved.restore(state_at(0))) == bits(state_at(2))
        saved.save(state_at(3))
    assert [(tmp_path / step / "files.json").exists() for step in "23"] == [False, True]
    assert caplog.text == ""


def test_a_record_tells_the_bytes_of_every_file(tmp_path):
    step = saved_at(tmp_path, 1) / "1"
    files = {
        path.relative_to(step).as_posix(): path.read_bytes()
        for path in step.rglob("*")
        if path.is_file()
    }
    record = json.loads(files.pop("files.json"))["files"]
    assert record == {
        name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in files.items()
    }


def test_a_flip_that_orbax_restores_without_a_word_is_caught(tmp_path, caplog):
    """By the digests of the values, where there is no record of the files."""
    (saved_at(tmp_path, 1, 2, width=WIDE) / "2" / "files.json").unlink()
    data = max(
        (item for item in (tmp_path / "2").rglob("*") if item.is_file()),
        key=lambda item: item.stat().st_size,
    )
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with Checkpoints(tmp_path) as saved:
        assert bits(saved.restore(state_at(0, WIDE))) == bits(state_at(1, WIDE))
    assert "['conv1']['kernel'] differ" in caplog.text


@pytest.mark.parametrize("metric", [None, 0.5])
def test_an_empty_newer_step_is_passed_over_and_set_aside(tmp_path, caplog, metric):
    with Checkpoints(tmp_path) as saved:
        saved.save(state_at(1), metric)
    (tmp_path / "2").mkdir()
    with Checkpoints(tmp_path) as saved:
        assert bits(saved.restore(state_at(0))) == bits(state_at(1))
        assert saved.steps() == [1]
    assert str(tmp_path / "2") in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("forge", ["gone", "digest", "another step"])
@pytest.mark.parametrize("record", [True, False])
def test_a_manifest_that_is_not_the_steps_own_is_damage(tmp_path, forge, record):
    manifest = saved_at(tmp_path, 1, 2) / "2" / "manifest"
    if not record:
        for step in "12":
            (tmp_path / step / "files.json").unlink()
    if forge == "gone":
        shutil.rmtree(manifest)
    elif forge == "digest":
        (file,) = (item for item in manifest.iterdir() if item.read_text().startswith('{"'))
        body = json.loads(file.read_text())
        body["specs"][".key"] = (
            "uint32[4]"  # valid, but unsealed: not to be taken for another model
        )
        file.write_text(json.dumps(body))
    else:
        shutil.rmtree(tmp_path / "2")
        shutil.copytree(tmp_path / "1", tmp_path / "2")
    with Checkpoints(tmp_path) as saved:
        assert bits(saved.restore(state_at(0))) == bits(state_at(1))
        assert saved.steps() == [1]


def test_no_good_step_is_an_error_and_nothing_is_moved(tmp_path):
    saved_at(tmp_path, 1, 2)
    for step in "12":
        shutil.rmtree(tmp_path / step / "state")
    for _ in range(2):  # a second start is not to find an empty folder and begin again
        with (
            Checkpoints(tmp_path) as saved,
            pytest.raises(CheckpointError, match="damaged") as error,
        ):
            saved.restore(state_at(0))
        assert str(tmp_path) in one_line(error)
    assert saved.steps() == [1, 2]


@pytest.mark.parametrize("resume", [True, False])
def test_a_damaged_step_is_saved_again(tmp_path, resume):
    shutil.rmtree(saved_at(tmp_path, 1, 2) / "2" / "state" / "d")
    with Checkpoints(tmp_path) as saved:
        if resume:
            assert bits(saved.restore(state_at(0))) == bits(state_at(1))
        saved.save(state_at(2))
    with Checkpoints(tmp_path) as saved:
        assert bits(saved.restore(state_at(0))) == bits(state_at(2))
        assert saved.steps() == [1, 2]


def test_a_damaged_best_gives_the_next_best(tmp_path):
    with Checkpoints(tmp_path) as saved:
        for step, metric in [(1, 0.1), (2, 0.3), (3, 0.2)]:
            saved.save(state_at(step), metric)
    shutil.rmtree(tmp_path / "1" / "state" / "d")
    with Checkpoints(tmp_path) as saved:
        assert bits(saved.best(state_at(0))) == bits(state_at(3))


def test_another_model_is_an_error_that_names_the_leaves(tmp_path):
    saved_at(tmp_path, 1)
    wide, state = state_at(0, width=16), state_at(0)
    half = state._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params))
    more, fewer = state._replace(stats=state.stats | {"new": state.key}), state._replace(stats={})
    for like, message in [
        (
            wide,
            r".params\['conv1'\]\['kernel'\] is float32\[3, 3, 3, 8\], expected float32\[3, 3, 3, 16\]",
        ),
        (
            half,
            r".params\['conv1'\]\['kernel'\] is float32\[3, 3, 3, 8\], expected bfloat16\[3, 3, 3, 8\]",
        ),
        (more, r".stats\['new'\] is missing, expected uint32\[2\]"),
        (fewer, r".stats\['mean'\] is float32\[8\], expected none"),
    ]:
        with Checkpoints(tmp_path) as saved, pytest.raises(CheckpointError, match=message) as error:
            saved.restore(like)
        assert len(one_line(error)) < 600
    assert saved.steps() == [1]


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in [tmp_path / "file", tmp_path / "file" / "run"]:
        with pytest.raises(CheckpointError, match="another folder") as error:
            Checkpoints(folder)
        assert str(folder) in one_line(error)


@pytest.mark.slow
def test_a_failed_save_is_told_at_the_next_call_and_the_steps_stay(tmp_path):
    """A limit on the size of a file stands for a disk that fills."""
    code = """
import resource
with Checkpoints(folder) as saved:
    saved.save(state_at(1))
    saved.wait()
    for last in [saved.wait, lambda: saved.save(state_at(3)), saved.close]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, -1))
        saved.save(state_at(2, width=4000))
        try:
            last()
        except CheckpointError as error:
            assert "\\n" not in str(error)
            print("told", saved.steps())
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
"""
    process = start(tmp_path, code)
    assert process.communicate(timeout=60) == ("told [1]\n" * 3, "")
    with Checkpoints(tmp_path) as saved:
        assert bits(saved.restore(state_at(0))) == bits(state_at(1))
        saved.save(state_at(2))
    assert saved.steps() == [1, 2]


def test_a_closed_event_loop_of_the_users_is_still_reported(tmp_path):
    """Only what no object names is hidden: the calls of TensorStore's threads."""
    code = """
class Own:
    def __del__(self):
        raise RuntimeError("Event loop is closed")
Checkpoints(folder).close()
Own()
"""
    out, said = start(tmp_path, code).communicate(timeout=60)
    assert out == ""
    assert "Own.__del__" in said
    assert said.endswith("RuntimeError: Event loop is closed\n")


@pytest.mark.parametrize("after", ["deleted", "moved", "another's"])
@pytest.mark.parametrize("saving", [False, True])
def test_a_folder_that_goes_away_under_a_run_is_one_line(tmp_path, after, saving):
    folder = tmp_path / "run"
    saved = Checkpoints(folder)
    saved.save(state_at(1, width=4000))
    if not saving:
        saved.wait()
    shutil.rmtree(folder, ignore_errors=True) if after == "deleted" else folder.rename(
        tmp_path / "away"
    )
    if after == "another's":
        other = Checkpoints(folder)
    for call in (
        lambda: saved.save(state_at(2)),
        saved.wait,
        lambda: saved.restore(state_at(0)),
        saved.close,
    ):
        with pytest.raises(
            CheckpointError, match="was deleted or moved while in use, put it back or start again"
        ) as error:
            call()
        assert str(folder) in one_line(error)
    saved.close()
    assert not list(folder.glob("2*"))
    if after == "another's":
        other.save(state_at(5))
        other.close()
        assert saved.steps() == [5]
    if after == "moved" and not saving:
        assert saved_at(tmp_path / "away", 2).is_dir()


def test_a_closed_one_refuses(tmp_path):
    with Checkpoints(tmp_path) as saved:
        pass
    saved.close()
    with pytest.raises(CheckpointError, match="closed") as error:
        saved.save(state_at(1))
    one_line(error)


def start(folder: Path, code: str) -> subprocess.Popen[str]:
    """A fresh process with this module, jaxcnn and `folder` at hand."""
    names = "Checkpoints, CheckpointError, state_at"
    head = f"from pathlib import Path\nfrom test_checkpoints import {names}\nfolder = Path({str(folder)!r})\n"
    here = Path(__file__).parent
    path = os.pathsep.join(
        [str(here), *map(str, here.parents[:2]), os.environ.get("PYTHONPATH", "")]
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + code],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_folder_has_one_owner_until_it_closes_or_dies(tmp_path):
    host = socket.gethostname()
    here = f"in use by process {os.getpid()} on {host}, which is this process: .*Call close"
    with Checkpoints(tmp_path), pytest.raises(CheckpointError, match=here):
        Checkpoints(tmp_path)
    with start(
        tmp_path,
        "saved = Checkpoints(folder)\nprint('ready', flush=True)\nimport time\ntime.sleep(60)",
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        with pytest.raises(
            CheckpointError, match=f"in use by process {owner.pid} on {host}$"
        ) as error:
            Checkpoints(tmp_path)
        one_line(error)
        owner.kill()
    Checkpoints(tmp_path).close()


@pytest.mark.slow
def test_a_save_still_running_at_the_end_of_the_process_is_finished_or_told(tmp_path):
    """From Python 3.12 on no thread can be begun by then, and Orbax needs some to finish."""
    process = start(
        tmp_path,
        "saved = Checkpoints(folder)\nfor step in 1, 2, 3: saved.save(state_at(step, width=4000))",
    )
    out, said = process.communicate(timeout=60)
    last = 3 if not said else 2
    if sys.version_info < (3, 12):
        assert last == 3
    assert out == ""
    assert said == "" or (
        said.count("\n") == 1 and f"ended before Checkpoints.close: a save in {tmp_path}" in said
    ), said
    with Checkpoints(tmp_path) as saved:
        assert saved.steps() == [last - 1, last]
        assert bits(saved.restore(state_at(0, width=4000))) == bits(state_at(last, width=4000))


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.05])
def test_kill_during_a_save_leaves_a_good_step(tmp_path, delay):
    code = """
with Checkpoints(folder) as saved:
    states = [state_at(step, width=4000) for step in range(1, 200)]
    for state in states:
        saved.save(state)
        print(int(state.step), flush=True)
    print("finished")
"""
    with start(tmp_path, code) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "3\n":
            assert process.poll() is None
        time.sleep(delay)
        process.kill()
        last = int((["3", *process.stdout.read().split()])[-1])
    assert process.returncode == -signal.SIGKILL
    with Checkpoints(tmp_path) as saved:
        found = saved.restore(state_at(0, width=4000))
        assert found is not None
        assert last - 1 <= found.step <= last + 1
        assert bits(found) == bits(state_at(int(found.step), width=4000))
    assert not list(tmp_path.glob("*tmp*"))


def test_nothing_is_printed_and_nothing_logged(tmp_path, capfd, caplog):
    with caplog.at_level(logging.WARNING), Checkpoints(tmp_path) as saved:
        saved.save(state_at(1), 0.5)
        saved.restore(state_at(1))
        saved.save(state_at(2))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_objects_of_a_cycle_are_finalized_in_any_order(tmp_path):
    """The lock's file first: closing afterwards is no error that the collector would print."""
    saved = Checkpoints(tmp_path / "a")
    saved.save(state_at(1))
    saved._lock.close()
    saved.close()
    with Checkpoints(tmp_path / "a") as again:
        assert again.steps() == [1]


def test_a_state_of_another_loss_or_none_at_all_is_told_as_such(tmp_path):
    """The model is right, so it is not what the messages name."""
    data, model, tx = jc.load_dataset("digits"), jc.create_model("mlp", 10), optax.sgd(0.1)

    def distance(outputs, batch):
        return jnp.square(outputs).sum(-1), {"distance": jnp.abs(outputs).sum(-1)}

    state = jc.init_state(model, tx, jc.TrainConfig(), data, loss=distance)
    other = jc.init_state(model, tx, jc.TrainConfig(), data)
    with Checkpoints(tmp_path) as saved:
        saved.save(state)
        with pytest.raises(CheckpointError, match=r"sums up distance, and like error; .*loss=loss"):
            saved.restore(other)
        for nothing in (None, {}):
            with pytest.raises(CheckpointError, match=r"like is .*; expected a tree.*init_state"):
                saved.restore(nothing)
        restored = saved.restore(state)
    assert restored is not None
