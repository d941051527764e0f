"""Several hosts, as processes on loopback under JAX's own runtime: one run, one set of files, one end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxcnn as jc
from experiments import depth
from jaxcnn import multihost
from jaxcnn.checkpoint import lock_folder

ROOT = Path(depth.__file__).parent.parent
SCRIPT = """
import json, sys
import jax
port, count, me = map(int, sys.argv[1:])
from jaxcnn import multihost
if count > 1:
    multihost.initialize(f"127.0.0.1:{port}", count, me)
import jaxcnn as jc
assert jax.process_count() == count and len(jax.devices()) == 4
data = jc.load_dataset("digits")
config = jc.TrainConfig(
    batch_size=32, num_steps=4, eval_every=2, augment=jc.AugmentConfig(padding=1, flip=True)
)
model = jc.create_model("convnet", 10, width=4, hidden=16, dropout=0.5, batch_norm=True)
rows = [row for _, row in jc.train(model, jc.create_optimizer(jc.OptimizerConfig()), data, config)]
print(json.dumps([[row[k] for k in ("train_loss", "eval_loss", "eval_error", "grad_norm")] for row in rows]))
"""
STUDY = ["--depths", "8", "--families", "residual", "--width", "4", "--batch-size", "64"]
STUDY += ["--num-seeds", "1", "--learning-rate", "0.001", "--eval-every", "40"]
# The last 160 give the test time to kill it.
STUDY += ["--num-steps", "240", "--milestones", "120"]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(command, devices: int = 1, **env: str):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", **env}
    # Processes are compared with processes, so that all may compile quickly.
    env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True
    )


def losses(processes):
    """What each of `processes` processes, with four devices together, says of the same run."""
    port = free_port()
    running = [
        start(["-c", SCRIPT, str(port), str(processes), str(i)], 4 // processes)
        for i in range(processes)
    ]
    said = [process.communicate(timeout=180) for process in running]
    assert all(process.returncode == 0 for process in running), said[0][1][-2000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


@pytest.mark.slow
def test_two_processes_say_what_one_says():
    (alone,) = losses(1)
    first, second = losses(2)
    assert first == second
    for mine, theirs in zip(first, alone, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def job(out, *more):
    """The depth study as two processes; `more` has the options that only one of them is given."""
    port, ours = free_port(), ["-m", "experiments.depth", *STUDY]
    which = [
        ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", str(i)]
        for i in (0, 1)
    ]
    outs = [["--out", str(out)], ["--out", str(out) + "-of-the-other"]]
    extra = more or ([], [])
    return [start([*ours, *which[i], *outs[i], *extra[i]]) for i in (0, 1)]


def after_row(process, step):
    """Wait for the line of the row at `step`, and a little, so that a step is under way."""
    for line in process.stderr:
        if re.search(rf"step {step}/240", line):
            time.sleep(0.2)
            return
    pytest.fail(f"no row {step}")


def ended(processes, seconds=60):
    """Exit codes and what was said on stderr. None of them runs on after a failure."""
    try:
        said = [process.communicate(timeout=seconds)[1] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
            process.communicate()
        raise
    return [process.returncode for process in processes], said


@pytest.mark.slow
def test_a_job_is_stopped_loses_a_process_and_ends_on_one_host_with_the_numbers_of_one(tmp_path):
    out = tmp_path / "job"
    both = job(out)
    after_row(both[0], 40)
    both[1].send_signal(signal.SIGTERM)
    codes, said = ended(both)
    assert codes == [143, 143], said
    assert "resumes from here" in said[0]

    both = job(out)
    after_row(both[0], 80)
    both[1].kill()
    killed = time.monotonic()
    codes, said = ended(both)
    assert time.monotonic() - killed < 60
    assert codes == [1, -signal.SIGKILL]
    assert "error: another process of this job has ended, start all of them again" in said[0]
    assert "Traceback" not in said[0]

    alone = start(["-m", "experiments.depth", *STUDY, "--out", str(out)])
    codes, said = ended([alone], 120)
    assert codes == [0], said
    assert "step 40/240" not in said[0]  # it went on from the job's checkpoint

    whole = start(["-m", "experiments.depth", *STUDY, "--out", str(tmp_path / "whole")])
    assert ended([whole], 120)[0] == [0]
    assert not list(tmp_path.glob("*-of-the-other"))  # process 1 wrote nothing
    rows, expected = (
        jc.read_metrics(folder / "resnet8-seed0") for folder in (out, tmp_path / "whole")
    )
    assert [row["step"] for row in rows] == list(range(40, 241, 40))
    for mine, theirs in zip(rows, expected, strict=True):
        for name in (
            "train_loss",
            "eval_loss",
        ):  # at a low rate, so that rounding does not grow to more than that
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name
    layouts = json.loads((out / "resnet8-seed0" / "env.json").read_text())
    assert [(facts["processes"], facts["devices"]) for facts in layouts] == [(2, 2), (1, 1)]


@pytest.mark.slow
def test_a_mistake_of_the_first_and_different_options_end_all_with_one_line(tmp_path):
    both = job(tmp_path / "a", [], ["--num-seeds", "2"])
    codes, said = ended(both)
    assert codes == [2, 2], said
    assert all(
        "error: the processes of this job have different options or data" in text for text in said
    )
    (tmp_path / "file").write_text("")
    codes, said = ended(job(tmp_path / "file" / "in-the-way"))
    assert codes == [2, 2], said
    assert all(text.count("error: ") == 1 and "file is a file; write" in text for text in said)


@pytest.mark.slow
def test_a_job_leaves_the_runs_of_another_process_alone(tmp_path):
    """Process 0 alone sees the lock, and both go on to the next run."""
    out, more = tmp_path / "job", ["--num-seeds", "2", "--num-steps", "4", "--milestones", "2"]
    with lock_folder(out / "resnet8-seed0" / "checkpoints"):
        both = job(out, more, more)
        codes, said = ended(both, 400)
    assert codes == [0, 0], said
    owner = f"resnet8-seed0: process {os.getpid()} on {socket.gethostname()}"
    assert f"1 of 2 runs are finished; others are trained by {owner}\n" in said[0]
    assert "others are trained" not in said[1]
    assert (out / "resnet8-seed1" / "result.json").exists()
    assert not (out / "resnet8-seed0" / "metrics.jsonl").exists()
    # It is the last run, so this job draws.
    codes, said = ended(job(out, more, more), 400)
    assert codes == [0, 0], said
    assert (out / "table.csv").exists()


SLURM = """
import jax
from jaxcnn import multihost
multihost.initialize()
print(jax.process_count(), jax.process_index(), multihost.is_primary(), multihost.global_max(jax.process_index() + 3))
print(multihost.broadcast_from_primary(lambda: {"of": jax.process_index()}))
try:
    multihost.broadcast_from_primary(lambda: open("/nowhere/at/all"))
except (OSError, multihost.MultihostError) as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_in_a_cluster_no_option_is_needed():
    port = free_port() % 4096
    both = []
    for i in (0, 1):
        env = {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
        env |= {
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_PROCID": str(i),
            "SLURM_LOCALID": "0",
        }
        both.append(start(["-c", SLURM], 1, **env))
    said = [process.communicate(timeout=60) for process in both]
    lines = [[line for line in out.splitlines() if "Gloo" not in line] for out, _ in said]
    assert [process.returncode for process in both] == [0, 0], said
    assert lines[0][0] == "2 0 True 4"
    assert lines[1][0] == "2 1 False 4"
    assert lines[0][1] == lines[1][1] == "{'of': 0}"
    assert lines[0][2].startswith("FileNotFoundError")
    assert lines[1][2].startswith("MultihostError [Errno 2]")


@pytest.mark.slow
def test_a_process_that_finds_no_other_ends_with_one_line():
    code = "from jaxcnn import multihost; multihost.CONNECT_TIMEOUT = 2; multihost.initialize('127.0.0.1:{}', 2, {})"
    port = free_port()
    for me in (0, 1):  # the first waits for the second, the second for the first
        process = start(["-c", code.format(port, me)])
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2
        assert said.splitlines()[-1].startswith(
            f"error: the processes did not find each other at 127.0.0.1:{port}"
        )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("10.0.0.1:9876", None, 0), "num_processes is not given.*write num_processes=2"),
        (("10.0.0.1:9876", 2, None), "process_id is not given.*write process_id=0"),
        ((None, 2, 0), "coordinator is not given.*write coordinator="),
        (("10.0.0.1", 2, 0), "expected HOST:PORT"),
        (("10.0.0.1:99999", 2, 0), "expected HOST:PORT"),
        (("10.0.0.1:9876", 2, 2), "process_id is 2; expected 0 to 1"),
        (("10.0.0.1:9876", 0, 0), "num_processes is 0"),
    ],
)
def test_mistakes_are_one_line_and_nobody_is_waited_for(given, says):
    with pytest.raises(jc.ArgumentError, match=says) as error:
        multihost.initialize(*given)
    assert "\n" not in str(error.value)


def test_a_port_in_use_is_one_line():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(jc.ArgumentError, match="write another one"):
            multihost.initialize(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0)


def test_one_process_tells_itself():
    """No special case: the same calls, and what is told is the thing itself."""
    state = {"a": np.arange(3.0)}
    assert multihost.broadcast_from_primary(lambda: state) is state
    assert multihost.broadcast_arrays_from_primary(lambda: state, state) is state
    assert (
        multihost.is_multihost(),
        multihost.is_primary(),
        multihost.global_max(7),
        multihost.all_equal("x"),
    ) == (
        False,
        True,
        7,
        True,
    )


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_a_lost_peer_is_one_line_whatever_the_type_of_the_error(monkeypatch, capsys, kind):
    left = []
    monkeypatch.setattr(multihost, "is_multihost", lambda: True)
    monkeypatch.setattr(multihost.os, "_exit", left.append)
    with pytest.raises(kind), multihost.abort_all_on_error():
        raise kind("all-reduce failed: [pair.cc:538] Read error: Connection reset by peer")
    assert left[0] == 1
    assert capsys.readouterr().err.startswith("error: another process of this job has ended")
