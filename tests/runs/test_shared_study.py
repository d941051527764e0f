"""Studies that several processes share: every run is trained once, by one of them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxcnn as jc
from experiments import depth
from jaxcnn import runs
from jaxcnn.checkpoint import FolderInUseError, lock_folder
from jaxcnn.runs import sweeps

pytestmark = pytest.mark.quick_compilation

ROOT = Path(depth.__file__).parent.parent
SEEDS = range(4)
SCRIPT = """
import sys, time
import jaxcnn as jc
from jaxcnn import runs

out, seconds, rate = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
base = jc.ExperimentConfig(
    dataset="digits",
    model="mlp",
    model_kwargs={"hidden": [16]},
    optimizer=jc.OptimizerConfig(learning_rate=rate, milestones=()),
    train=jc.TrainConfig(num_steps=20, eval_every=5, batch_size=32),
)

def measure(model, state, data):
    time.sleep(seconds)
    return {}

configs = {f"mlp-seed{seed}": jc.override(base, seed=seed) for seed in range(4)}
data, strategy = jc.load_dataset("digits"), jc.strategy("jit", 1)
try:
    results = runs.sweep(configs, data, out, measure=measure, strategy=strategy)
except jc.ArgumentError as error:
    sys.exit(f"refused: {error}")
print(" ".join(results))
"""
CONFIG = jc.ExperimentConfig(
    dataset="digits",
    model="mlp",
    model_kwargs={"hidden": [16]},
    optimizer=jc.OptimizerConfig(milestones=()),
    train=jc.TrainConfig(num_steps=4, eval_every=2, batch_size=32),
)


def start(out, seconds, rate=0.1):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "XLA_FLAGS": ""}
    # Processes are compared with processes, so that all may compile quickly.
    env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", SCRIPT, str(out), str(seconds), str(rate)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)


def ended(process):
    """The names of the results, and the lines of stderr."""
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return out.split(), said.splitlines()


def trained(lines):
    """Name and step of each row that a process reports, in order.

    Lines without errors are progress between rows, on a busy machine.
    """
    return re.findall(r"  (mlp-seed\d)  step (\d+)/20  train error", "\n".join(lines))


def rows(folder):
    """Rows of every run without their times."""
    times = ("seconds", "images_per_second")
    return {
        seed: [
            {key: value for key, value in row.items() if key not in times}
            for row in jc.read_metrics(folder / f"mlp-seed{seed}")
        ]
        for seed in SEEDS
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    names, _ = ended(start(out, 0))
    assert names == [f"mlp-seed{seed}" for seed in SEEDS]
    return rows(out)


@pytest.mark.slow
def test_two_processes_train_every_run_once_with_the_rows_of_one(alone, tmp_path):
    both = [start(tmp_path, 0.3) for _ in range(2)]
    ends = [ended(process) for process in both]
    reported = [trained(lines) for _, lines in ends]
    # Both trained some, and no row was made twice.
    assert all(reported)
    everything = sorted(reported[0] + reported[1])
    assert everything == sorted(
        (f"mlp-seed{seed}", str(step)) for seed in SEEDS for step in (5, 10, 15, 20)
    )
    assert rows(tmp_path) == alone
    for seed in SEEDS:
        folder = tmp_path / f"mlp-seed{seed}"
        assert len(json.loads((folder / "env.json").read_text())) == 1
    # At least the last to end has every result. What another lacks is named with its owner.
    counts = sorted(len(names) for names, _ in ends)
    assert counts[-1] == 4
    for (names, lines), other in zip(ends, both[::-1], strict=True):
        if len(names) < 4:
            (line,) = [line for line in lines if "others are trained by" in line]
            owner = f"process {other.pid} on {socket.gethostname()}"
            assert re.fullmatch(rf"\d of 4 runs are finished; .* mlp-seed\d: {owner}", line)


@pytest.mark.slow
def test_the_run_of_a_killed_process_is_taken_over(alone, tmp_path):
    first = start(tmp_path, 1.0)
    assert first.stderr is not None
    for line in first.stderr:
        if "mlp-seed0  step 10/20" in line:
            break
    second = start(tmp_path, 0.2)
    wait_for(tmp_path / "mlp-seed1" / "metrics.jsonl")
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    names, lines = ended(second)
    assert names == [f"mlp-seed{seed}" for seed in SEEDS]
    # It went on from the checkpoint of the other.
    assert ("mlp-seed0", "5") not in trained(lines)
    assert rows(tmp_path) == alone


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


@pytest.mark.slow
def test_of_two_processes_with_other_configs_one_is_refused(tmp_path):
    both = [start(tmp_path, 0, rate) for rate in (0.1, 0.2)]
    ends = [process.communicate(timeout=120) for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 1], ends
    refused = ends[codes.index(1)][1]
    assert "holds a run of another config: learning_rate" in refused
    assert not trained(refused.splitlines())


@pytest.mark.slow
def test_runs_of_others_are_skipped_and_named(tmp_path, monkeypatch, capsys):
    """A lock of this process stands for that of another."""
    data, strategy = jc.load_dataset("digits"), jc.strategy("jit", 1)
    configs = {f"mlp-seed{seed}": jc.override(CONFIG, seed=seed) for seed in range(2)}
    with lock_folder(tmp_path / "mlp-seed0" / "checkpoints"):
        with pytest.raises(FolderInUseError, match=r"which is this process: .* Call close"):
            runs.sweep(configs, data, tmp_path, strategy=strategy)
        monkeypatch.setattr("jaxcnn.checkpoint._lock._locks", set())
        results = runs.sweep(configs, data, tmp_path, strategy=strategy)
        assert results is not None
        assert list(results) == ["mlp-seed1"]
        me = f"process {os.getpid()} on {socket.gethostname()}"
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"1 of 2 runs are finished; others are trained by mlp-seed0: {me}"
        )
    results = runs.sweep(configs, data, tmp_path, strategy=strategy)
    assert results is not None
    assert list(results) == ["mlp-seed0", "mlp-seed1"]


def test_a_script_ends_without_error_where_others_train(tmp_path, monkeypatch, capsys):
    args = ["--depths", "8", "--families", "plain", "--width", "4", "--num-steps", "2"]
    args += ["--batch-size", "32", "--seeds", "3", "--devices", "1", "--out", str(tmp_path)]
    with lock_folder(tmp_path / "plain8-seed3" / "checkpoints"):
        monkeypatch.setattr("jaxcnn.checkpoint._lock._locks", set())
        assert depth.main(args) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[-2].startswith("0 of 1 runs are finished; others are trained by plain8-seed3: ")
    assert "--plot-only" in said[-1]
    assert not (tmp_path / "table.csv").exists()


def test_a_finished_run_is_read_and_not_written(tmp_path):
    data, strategy = jc.load_dataset("digits"), jc.strategy("jit", 1)
    first = runs.sweep({"a": CONFIG}, data, tmp_path, strategy=strategy)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.json*")}
    # Another machine would add its facts to env.json.
    assert runs.sweep({"a": CONFIG}, data, tmp_path, strategy=jc.strategy("jit", 2)) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.json*")} == before


def test_another_process_may_train_while_a_folder_is_reserved(tmp_path):
    jc.RunLog.reserve(tmp_path, CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "run.json"]
    # As the other process leaves it in the middle of a row.
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    jc.RunLog.reserve(tmp_path, CONFIG)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"st'
    with pytest.raises(jc.ArgumentError, match="another config: learning_rate"):
        jc.RunLog.reserve(tmp_path, jc.override(CONFIG, learning_rate=0.7))


def test_progress_counts_runs_that_others_finish_meanwhile(tmp_path, monkeypatch, capsys):
    data, strategy = jc.load_dataset("digits"), jc.strategy("jit", 1)
    configs = {f"mlp-seed{seed}": jc.override(CONFIG, seed=seed) for seed in range(2)}
    runs.sweep({"mlp-seed1": configs["mlp-seed1"]}, data, tmp_path / "other", strategy=strategy)
    monkeypatch.setattr(sweeps, "COUNT_SECONDS", 0.0)
    capsys.readouterr()

    def measure(model, state, data):
        # The other process ends its run while this one is at its first row.
        if not (tmp_path / "out" / "mlp-seed1" / "result.json").exists():
            shutil.rmtree(tmp_path / "out" / "mlp-seed1")
            shutil.copytree(tmp_path / "other" / "mlp-seed1", tmp_path / "out" / "mlp-seed1")
        return {}

    results = runs.sweep(configs, data, tmp_path / "out", strategy=strategy, measure=measure)
    assert results is not None
    said = capsys.readouterr().err.splitlines()
    assert [line[:4] for line in said] == [" 75%", "100%"]


@pytest.mark.slow
def test_a_lock_is_waited_for(tmp_path):
    code = (
        "import sys, time; from jaxcnn.checkpoint import lock_folder\n"
        "with lock_folder(sys.argv[1]): print('locked', flush=True); time.sleep(1)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(FolderInUseError) as error:
            lock_folder(tmp_path)
        assert error.value.owner == f"process {process.pid} on {socket.gethostname()}"
        assert not error.value.by_this_process
        lock_folder(tmp_path, timeout=30).close()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(FolderInUseError) as error:
            jc.Checkpoints(tmp_path)
        assert f"process {process.pid}" in str(error.value)
        jc.Checkpoints(tmp_path, timeout=30).close()
    with lock_folder(tmp_path):
        began = time.monotonic()
        with pytest.raises(FolderInUseError) as error:
            lock_folder(tmp_path, timeout=30)
        # It would wait for itself.
        assert time.monotonic() - began < 5
        assert error.value.by_this_process
