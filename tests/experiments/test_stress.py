"""Faults that land: kills in mid-save, signals at random moments, damaged files, full and vanished disks; nothing is lost."""

import csv
import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from scripts import refuses

from experiments import depth
from experiments.stress import damage, interrupts, kills
from experiments.stress.__main__ import main, signals_panel, table
from experiments.stress.options import PRESETS, ROOT, Options, wait_until
from experiments.stress.worker import is_intact, state_at
from jaxcnn.checkpoint import Checkpoints


def lines(out):
    with (out / "table.csv").open() as file:
        return {line["fault"]: line for line in csv.DictReader(file)}


def test_the_full_preset_has_the_counts_that_were_promised():
    full = PRESETS["full"]
    assert (full.kills, full.signals, full.flips) == (50, 20, 100)
    assert full.parts == ("kills", "signals", "damage")


@pytest.mark.slow
def test_kill_in_mid_save_loses_at_most_one_save(tmp_path):
    options = Options(kills=3, out=tmp_path)
    trials = [kills.trial(options, *key) for key in kills.plan(options)]
    assert [trial["broken"] for trial in trials] == [None] * 3
    assert sum(trial["landed"] for trial in trials) >= 1
    assert all(trial["restored"] and trial["saves_lost"] <= 1 for trial in trials)
    assert (
        trials[0]["begun"] < trials[1]["begun"] < trials[2]["begun"]
    )  # each went on from what the last had left


def test_what_a_kill_leaves_is_judged(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(state_at(7, 0.1))
    (tmp_path / "9.orbax-checkpoint-tmp").mkdir()
    seen = kills.inspect_folder(tmp_path, 0.1, [8])
    assert (seen["landed"], seen["restored"], seen["saves_lost"], seen["broken"]) == (
        True,
        True,
        2,
        "2 saves are lost",
    )
    assert kills.inspect_folder(tmp_path, 0.1, [8]) | {"broken": 0} == {
        "landed": False, "restored": True, "saves_lost": 1, "begun": 8, "broken": 0,
    }  # fmt: skip
    wrong = state_at(8, 0.1)
    wrong.params["layer0"][0] += 1
    assert not is_intact(wrong, 0.1)
    with Checkpoints(tmp_path) as saved:
        saved.save(wrong)
    assert (
        kills.inspect_folder(tmp_path, 0.1, [8])["broken"]
        == "what was restored is not what was saved"
    )
    shutil.rmtree(tmp_path)
    assert "nothing can be restored" in str(kills.inspect_folder(tmp_path, 0.1, [8])["broken"])


EVERY = 30
"""Steps from row to row of the shortened study."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of trials; their study has half of the steps, and a quarter of the images in each."""
    changed = ["--batch-size", "64", "--num-steps", str(4 * EVERY), "--eval-every", str(EVERY)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interrupts, "STEPS", 4 * EVERY)
        patch.setattr(interrupts, "STUDY", [*interrupts.STUDY, *changed, "--milestones", "60"])
        yield tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def stopped(home):
    """A trial of each signal: Ctrl-C, once and twice, in the first compilation, SIGTERM at a random step."""
    options = Options(out=home, seed=1)
    keys = [("Ctrl-C", 0), ("SIGTERM", 1), ("Ctrl-C twice", 0)]
    return {fault: interrupts.trial(options, fault, number) for fault, number in keys}


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "code"), [("Ctrl-C", 130), ("SIGTERM", 143)])
def test_a_signal_loses_no_step(stopped, fault, code):
    trial = stopped[fault]
    assert trial["broken"] is None
    assert trial["landed"]
    assert trial["restored"]
    assert (trial["code"], trial["steps_lost"]) == (code, 0)
    assert trial["at"] <= trial["saved"] < interrupts.STEPS
    assert (trial["at"] > 1) == (
        fault == "SIGTERM"
    )  # the other came before the first step had ended
    assert trial["saved"] >= 1


@pytest.mark.slow
def test_a_second_ctrl_c_ends_it_at_once(stopped):
    trial = stopped["Ctrl-C twice"]
    assert trial["broken"] is None
    assert trial["landed"]
    assert trial["restored"]  # by the same command, afterwards
    assert (trial["code"], trial["compiling"]) == (130, True)
    assert trial["seconds"] < interrupts.AT_ONCE


@pytest.mark.slow
def test_a_killed_study_ends_with_the_bits_of_one_that_never_stopped(home, tmp_path):
    """By -9, which no process answers."""
    signals = home / "signals"
    reference = interrupts.reference_run(signals)
    with interrupts.start_study(tmp_path, signals / "cache") as process:
        # The save at the second row begins when that at the first is on disk.
        assert wait_until(lambda: interrupts.recorded_steps(tmp_path)[-1:] > [2 * EVERY], process)
        process.kill()
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / interrupts.RUN / "result.json").exists()
    before = interrupts.recorded_steps(tmp_path)
    with interrupts.start_study(tmp_path, signals / "cache") as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    after = interrupts.recorded_steps(tmp_path)[len(before) :]
    assert after == list(range(after[0], interrupts.STEPS + 1))
    assert after[0] > EVERY
    assert interrupts.equal_ends(interrupts.final_state(tmp_path), reference["end"])


def test_complaints_about_signals():
    seen = {"saved": 100, "steps_lost": 0, "at": 99, "seconds": 0.1}
    on = list(range(101, interrupts.STEPS + 1))
    assert not any(interrupts._step_failures(seen, on).values())
    assert sum(interrupts._step_failures(seen, on[1:]).values()) == 1  # a step is skipped
    assert sum(interrupts._step_failures(seen, [100, *on]).values()) == 1  # a step is done twice
    assert sum(interrupts._step_failures(seen | {"at": 101}, on).values()) == 1
    assert sum(interrupts._step_failures(seen | {"steps_lost": 1}, on).values()) == 1
    assert not any(interrupts._end_failures(seen).values())
    assert all(interrupts._end_failures(seen | {"seconds": 1.5}).values())


def test_the_figure_has_the_share_of_trials_that_ended_within_a_time():
    trials = [{"fault": "SIGTERM", "seconds": seconds} for seconds in (3.0, 1.0, 2.0, 9.0)]
    panel = signals_panel([{"fault": "kill -9"}, *trials])
    assert panel is not None
    (line,) = panel.lines
    assert list(line.x) == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 9.0, 9.0]
    assert list(line.y) == [0, 25, 25, 50, 50, 75, 75, 100]
    assert line.label == "SIGTERM"
    assert signals_panel([{"fault": "kill -9"}]) is None


@pytest.mark.slow
def test_every_flip_and_cut_is_detected_and_the_file_named(tmp_path, capsys):
    assert main(["--parts", "damage", "--flips", "30", "--out", str(tmp_path)]) == 0
    files, found = len(damage._files(Options(out=tmp_path))), lines(tmp_path)
    assert files >= 10
    assert {fault: int(line["trials"]) for fault, line in found.items()} == {
        "byte flipped": 30, "file cut": files, "file emptied": files, "file removed": files,
    }  # fmt: skip
    for fault, line in found.items():
        less = fault == "file removed"  # of the record itself
        assert int(line["detected"]) == int(line["named"]) == int(line["trials"]) - less
        assert (line["restored"], line["broken"]) == (line["trials"], "0")
    assert "| byte flipped | 30 | 30 | 30 | 30 | 30 |" in (tmp_path / "table.md").read_text()
    assert "byte flipped" in capsys.readouterr().out


@pytest.mark.slow
def test_a_broken_promise_is_one_line_and_exit_code_one(tmp_path, capsys, monkeypatch):
    """Without the record of files, a flip in one that Orbax does not read goes unseen; and what is there is not made again."""
    monkeypatch.setattr("jaxcnn.checkpoint.checkpoints.check_files", lambda step: None)
    args = ["--parts", "damage", "--flips", "2", "--out", str(tmp_path)]
    assert main(args) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if "broke a promise" in line]
    assert len(error) == 1
    assert "byte flipped 0: _CHECKPOINT_METADATA: step 2 was used" in error[0]
    before = (tmp_path / "trials.jsonl").read_text()
    monkeypatch.setattr(damage, "trial", lambda *a: pytest.fail("it was made again"))
    assert main(args) == 1
    assert (tmp_path / "trials.jsonl").read_text() == before
    assert {json.loads(line)["fault"] for line in before.splitlines()} == set(damage.FAULTS)


def test_a_line_has_counts_and_the_worst(tmp_path):
    trials = [{"fault": "f", "landed": True, "seconds": 1.0, "broken": None}] * 2
    trials.append({"fault": "f", "landed": False, "seconds": 3.0, "broken": "so"})
    (line,) = table(trials)
    assert (line["trials"], line["landed"], line["seconds"], line["broken"]) == (3, 2, 3.0, 1)
    assert line["detected"] is line["steps_lost"] is None


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--kills", "0"], "kills is 0; expected at least 1"),
        (["--parts"], "parts is empty"),
        (["--megabytes", "nan"], "megabytes is nan"),
        (["--parts", "floods"], "floods"),
    ],
)
def test_mistakes_are_one_line(args, says, tmp_path, capsys, monkeypatch):
    refuses(main, [*args, "--out", str(tmp_path)], says, capsys, monkeypatch)


DISKS = """
import os, subprocess, sys
from pathlib import Path
from experiments.stress.worker import State, is_intact, state_at
from jaxcnn.checkpoint import CheckpointError, Checkpoints

def mount(folder, *options):
    subprocess.run(["mount", *options, str(folder)], check=True)

def protect(folder):
    mount(folder, "--bind", str(folder))  # a disk on which a file is open is not made read-only as a whole
    mount(folder, "-o", "remount,ro,bind")

def fill(folder):
    try:
        with open(folder / "filler", "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError:
        pass

def crowd(folder):
    try:
        for i in range(1000):
            (folder / f"filler{i}").touch()
    except OSError:
        pass

FAULTS = {
    "full": ("size=2m", fill),
    "inodes": ("size=9m,nr_inodes=120", crowd),
    "read-only": ("size=9m", protect),
}

for fault, (size, strike) in FAULTS.items():
    disk = Path(sys.argv[1], fault)
    disk.mkdir()
    mount(disk, "-t", "tmpfs", "-o", size, "none")
    saved = Checkpoints(disk / "run")
    saved.save(state_at(1, 0.3))
    saved.wait()
    strike(disk)
    for last in saved.wait, saved.wait, saved.close:
        try:
            saved.save(state_at(2, 0.3))
            last()
            print(fault, "said nothing")
        except CheckpointError as error:
            print(fault, "told", str(error).count("\\n"), error)
    saved.close()
    try:
        with Checkpoints(disk / "run") as saved:
            print(fault, "opened", saved.restore(state_at(0, 0.3)).step)
    except CheckpointError as error:
        print(fault, "refused", error)
    if fault == "read-only":
        subprocess.run(["umount", str(disk)], check=True)
    for filler in disk.glob("filler*"):
        filler.unlink()
    with Checkpoints(disk / "run") as saved:
        found = saved.restore(state_at(0, 0.3))
        print(fault, "restored", found.step, is_intact(found, 0.3), saved.steps())
        saved.save(state_at(2, 0.3))
        saved.wait()
        print(fault, "went on", saved.steps())
"""


@pytest.fixture(scope="module")
def disks(tmp_path_factory):
    """What a process says whose real disk fills, runs out of inodes, or turns read-only, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("disks")
    alone = ["unshare", "--map-root-user", "--mount"]
    trial = "mount -t tmpfs -o size=1m none ."
    if (
        not shutil.which("unshare")
        or subprocess.run([*alone, "sh", "-c", trial], cwd=folder, capture_output=True).returncode
    ):
        pytest.skip(
            "needs a kernel that lets an ordinary user mount a tmpfs in a namespace of his own"
        )
    process = subprocess.run(
        [*alone, sys.executable, "-c", DISKS, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert process.stderr == ""  # no traceback, and nothing in the way of its end
    assert process.returncode == 0
    return process.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("full", "No space left"),
        ("inodes", "No space left"),
        ("read-only", "Read-only file system"),
    ],
)
def test_a_disk_that_cannot_be_written_is_told_in_one_line_and_harms_no_step(disks, fault, says):
    said = [line.removeprefix(f"{fault} ") for line in disks if line.startswith(f"{fault} ")]
    assert len(said) == 6, said
    for line in said[:3]:
        assert line.startswith("told 0 "), line
        assert "free or repair the disk" in line
        assert says in line
    assert said[3].startswith(
        "opened 1"
        if fault != "read-only"
        else f"refused cannot write in {said[0].split()[5].rstrip(',')}"
    ), said
    assert said[4:] == ["restored 1 True [1]", "went on [1, 2]"]


@pytest.mark.slow
def test_a_second_run_is_refused_and_a_deleted_folder_is_one_line(
    home, tmp_path, capsys, monkeypatch
):
    """The script itself: while one process trains a run another names it, and the folder is then deleted."""
    folder = tmp_path / "study"
    steps = ["--num-steps", "100000", "--eval-every", "150"]

    def saved():
        return {
            int(path.name) for path in folder.glob("*/checkpoints/[0-9]*") if path.name.isdigit()
        }

    with interrupts.start_study(folder, home / "signals" / "cache", *steps) as process:
        assert wait_until(saved, process, every=0.05)
        owner = f"resnet8-seed0: process {process.pid} on {socket.gethostname()}"
        monkeypatch.setattr("jaxcnn.runs.single.train", lambda *a, **k: pytest.fail("it trained"))
        assert depth.main([*interrupts.STUDY, *steps, "--out", str(folder)]) == 0
        held, hint = capsys.readouterr().err.splitlines()[-2:]
        assert held == f"0 of 1 runs are finished; others are trained by {owner}"
        assert "--plot-only" in hint
        assert process.poll() is None
        # Between two saves: one has just ended.
        before = saved()
        assert wait_until(lambda: saved() - before, process, every=0.01)
        shutil.move(folder, tmp_path / "away")
        began = time.monotonic()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 2, said
    assert time.monotonic() - began < 30
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(folder) in errors[0]
    assert not list(folder.glob("*/checkpoints/[0-9]*"))  # nobody's folder is not written to
    state, rows = interrupts.final_state(tmp_path / "away")
    assert state is not None
    assert int(state.step) in [row["step"] for row in rows]


def test_signals_are_those_of_the_system():
    assert {fault: (int(sign), code) for fault, (sign, code) in interrupts.FAULTS.items()} == {
        "Ctrl-C": (signal.SIGINT, 128 + signal.SIGINT),
        "SIGTERM": (signal.SIGTERM, 128 + signal.SIGTERM),
        "Ctrl-C twice": (signal.SIGINT, 128 + signal.SIGINT),
    }
