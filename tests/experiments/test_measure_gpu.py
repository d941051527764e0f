"""`python -m experiments.measure_gpu`: limits, failures, stops and resumption of its processes, and what it takes home."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load
from scripts import refuses

import jaxcnn as jc
from experiments import depth, measure_gpu
from experiments.measure_gpu import Job, Options
from jaxcnn import runs

SAVES = """
import signal, sys, time
def end(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(60)
"""
IGNORES = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def never():
    return False


def job(code, name="a", seconds=30.0, env=None):
    return Job(name, "tests", ["-c", code], env or {}, seconds)


@pytest.fixture
def planned(monkeypatch):
    """Let the plan be these jobs, as on a machine with a GPU."""
    monkeypatch.setattr(measure_gpu, "default_backend", lambda: "gpu")
    return lambda *jobs: monkeypatch.setattr(measure_gpu, "plan", lambda options: list(jobs))


def wait_for(path, text):
    deadline = time.monotonic() + 30
    while not (path.exists() and text in path.read_text().splitlines()):
        assert time.monotonic() < deadline, text
        time.sleep(0.02)


class Clock:
    """The time, with `seconds` of it over at once when `count` processes have written "ready"."""

    sleep, strftime = staticmethod(time.sleep), staticmethod(time.strftime)

    def __init__(self, log, seconds, count=1):
        self.log, self.seconds, self.count = log, seconds, count

    def monotonic(self):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return time.monotonic() + self.seconds * (lines.count("ready") >= self.count)


def test_a_failure_does_not_stop_the_next_and_the_same_command_repeats_it_alone(planned, tmp_path):
    marks = f"open({str(tmp_path / 'marks')!r}, 'a')"
    planned(
        job("print('one\\n\\n')", "one"),
        job(f"import sys; {marks}.write('x'); sys.exit('it broke')", "two"),
        job("import os; os.abort()", "three"),
        job("import os; print(os.environ['SEEN'])", "four", env={"SEEN": "yes it is"}),
    )
    options = Options(out=tmp_path / "out")
    for _ in range(2):
        measure_gpu.run_all(options, never)
    records = measure_gpu.read_records(options.out)
    assert [records[name]["exit_code"] for name in ("one", "two", "three", "four")] == [
        0, 1, -signal.SIGABRT, 0,
    ]  # fmt: skip
    assert records["one"]["last_line"] == "one"
    assert records["two"]["last_line"] == "it broke"
    assert records["four"]["last_line"] == "yes it is"
    assert records["four"]["command"].startswith("SEEN='yes it is' python -c ")
    assert (tmp_path / "marks").read_text() == "xx"
    logs = {path.stem: path.read_text() for path in (options.out / "logs").iterdir()}
    assert logs["two"].splitlines().count("it broke") == logs["two"].count("[exit code 1 ") == 2
    assert logs["one"].count("[exit code 0") == 1


def test_another_command_is_run_again(planned, tmp_path):
    options = Options(out=tmp_path)
    for text in ("one", "two"):
        planned(job(f"print({text!r})"))
        measure_gpu.run_all(options, never)
        assert measure_gpu.read_records(tmp_path)["a"]["last_line"] == text


def test_at_its_limit_a_process_saves(tmp_path, monkeypatch):
    log = tmp_path / "logs/a.log"
    monkeypatch.setattr(measure_gpu, "time", Clock(log, 30.0))
    outcome = measure_gpu.run_job(job(SAVES, seconds=30.0), log, 20.0, never)
    assert (outcome.exit_code, outcome.ended_by) == (143, "its time limit")
    assert 30 <= outcome.seconds < 45
    assert "saved" in log.read_text().splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_process_that_does_not_end_is_killed_with_what_it_started(tmp_path, monkeypatch):
    log = tmp_path / "a.log"
    child = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {IGNORES!r}]); print(p.pid, flush=True)"
    monkeypatch.setattr(measure_gpu, "time", Clock(log, 30.0, count=2))
    outcome = measure_gpu.run_job(job(child + "\n" + IGNORES, seconds=30.0), log, 0.5, never)
    assert (outcome.exit_code, outcome.ended_by) == (-signal.SIGKILL, "its time limit")
    pid = next(int(line) for line in log.read_text().splitlines() if line.isdigit())
    deadline = time.monotonic() + 10
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        # Dead, and not yet taken over by its new parent.
        if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        assert time.monotonic() < deadline, "the child is still there"
        time.sleep(0.05)


def test_all_seconds_bound_the_jobs(planned, tmp_path, capsys, monkeypatch):
    planned(job(SAVES, "long", 60.0), job("print(1)", "late"))
    options = Options(out=tmp_path, seconds=33.0, grace=3.0)
    clock = Clock(tmp_path / "logs/long.log", 30.0)
    monkeypatch.setattr(measure_gpu, "time", clock)
    start = clock.monotonic()
    measure_gpu.run_all(options, never)
    assert 30 <= clock.monotonic() - start < 36
    records = measure_gpu.read_records(tmp_path)
    assert records["long"]["exit_code"] == 143
    assert "late" not in records
    assert "late: not started, as no time is left" in capsys.readouterr().out
    assert [row["ended_by"] for row in measure_gpu.summary(options)] == [
        "its time limit",
        "not started",
    ]


def test_ctrl_c_ends_the_job_under_way_politely_and_the_command_resumes(planned, tmp_path, capsys):
    marks = tmp_path / "marks"
    code = f"import os, sys\nif os.path.exists({str(marks)!r}): sys.exit(0)\n{SAVES}"
    planned(job("print(1)", "first"), job(code, "second"), job("print(3)", "third"))
    args, log = ["--out", str(tmp_path / "out")], tmp_path / "out/logs/second.log"

    def interrupt():
        wait_for(log, "ready")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert measure_gpu.main(args) == 130
    thread.join()
    records = measure_gpu.read_records(tmp_path / "out")
    assert records["second"]["ended_by"] == "the user"
    assert records["second"]["exit_code"] == 143
    assert "third" not in records
    assert "| second | 143 |" in (tmp_path / "out/summary.md").read_text()
    marks.touch()
    assert measure_gpu.main(args) == 0
    said = capsys.readouterr().out
    assert said.count("first: finished before") == 1
    assert measure_gpu.read_records(tmp_path / "out")["third"]["last_line"] == "3"


def test_without_a_gpu_one_line_says_so(tmp_path, monkeypatch, capsys):
    """Before any part is started; the backend is asked for in a process of its own."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(measure_gpu, "run_job", lambda *args: pytest.fail("a part was started"))
    says = "no GPU found (JAX's backend is cpu); expected an NVIDIA GPU"
    refuses(measure_gpu.main, ["--out", str(tmp_path / "out")], says, capsys, monkeypatch)
    assert not (tmp_path / "out").exists()


def test_a_rehearsal_says_that_it_is_on_the_cpu(planned, tmp_path, monkeypatch, capsys):
    planned(job("print(1)"))
    monkeypatch.setattr(measure_gpu, "default_backend", lambda: "cpu")
    assert measure_gpu.main(["--preset", "rehearsal", "--out", str(tmp_path)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "rehearsal on the CPU: its times say nothing about a GPU"


def test_finished_parts_are_collected_without_a_gpu(planned, tmp_path, monkeypatch):
    planned(job("print(1)"))
    assert measure_gpu.main(["--out", str(tmp_path)]) == 0
    monkeypatch.setattr(measure_gpu, "default_backend", lambda: "cpu")
    assert measure_gpu.main(["--out", str(tmp_path)]) == 0


def test_the_exit_code_says_if_all_have_ended_well(planned, tmp_path):
    planned(job("raise SystemExit(3)"))
    assert measure_gpu.main(["--out", str(tmp_path)]) == 1


@pytest.mark.parametrize("preset", list(measure_gpu.PRESETS))
def test_the_plan_is_public_commands_that_their_scripts_accept(preset, monkeypatch, tmp_path):
    """In the order of the plan; the tests are a file that exists."""
    from test_commands import _options

    jobs = measure_gpu.plan(measure_gpu.PRESETS[preset])
    assert [job.part for job in jobs] == [
        "device", "tests", "benchmark", "benchmark", "benchmark", "speedrun", "depth",
    ]  # fmt: skip
    assert (measure_gpu.ROOT / jobs[1].command[-1]).is_file()
    monkeypatch.chdir(tmp_path)
    for command in (job.command for job in jobs[2:]):
        for extra in ([], ["--plot-only"] if "benchmark" not in command[1] else []):
            name = command[1].removeprefix("experiments.")
            _options(name, [*command[2:], *extra], monkeypatch)


def test_the_depth_study_is_the_papers(tmp_path, monkeypatch):
    from test_commands import _options

    (study,) = measure_gpu.plan(Options(parts=("depth",)))
    monkeypatch.chdir(tmp_path)
    options = _options("depth", study.command[2:], monkeypatch)
    all_runs = depth.configs(options)
    assert list(all_runs) == ["plain20-seed0", "resnet20-seed0", "plain56-seed0", "resnet56-seed0"]
    config = all_runs["resnet56-seed0"]
    assert (config.train.num_steps, config.train.eval_every) == (64_000, 2_000)
    assert config.optimizer.milestones == (32_000, 48_000)
    assert config.model_kwargs["dtype"] == "bfloat16"
    paper = depth.configs(depth.PRESETS["paper"])["resnet56-seed0"]
    kwargs = {**config.model_kwargs, "dtype": "float32"}
    assert jc.override(config, eval_every=None, model_kwargs=kwargs) == paper


def tables_of(out, **rates):
    for graphs, rate in rates.items():
        folder = out / f"benchmark-{graphs}"
        folder.mkdir(parents=True)
        text = f"network,images_per_second\nresnet56,9e9\nresnet20,{rate}\n"
        (folder / "table.csv").write_text(text)


def test_the_fastest_graphs_are_used_and_stay(planned, tmp_path):
    options = Options(out=tmp_path)
    assert measure_gpu.fastest_graphs(options) == "xla"
    tables_of(tmp_path, chosen=300, xla=100, none=200)
    assert measure_gpu.fastest_graphs(options) == "xla"
    for graphs, code in (("chosen", 1), ("xla", 0), ("none", 0)):
        measure_gpu.write_record(tmp_path, f"benchmark-{graphs}", {"exit_code": code})
    assert measure_gpu.choose_graphs(options) == "none"
    code = "import os; print(repr(os.environ['XLA_FLAGS']))"
    planned(Job("depth", "depth", ["-c", code], {}, 30.0))
    measure_gpu.run_all(options, never)
    # The study has begun with the fastest of that time.
    measure_gpu.write_record(tmp_path, "benchmark-chosen", {"exit_code": 0})
    assert measure_gpu.fastest_graphs(options) == "chosen"
    assert measure_gpu.choose_graphs(options) == "none"
    last = measure_gpu.read_records(tmp_path)["depth"]["last_line"]
    assert last == f"'{os.environ['XLA_FLAGS']} --xla_gpu_enable_command_buffer='"
    rows = measure_gpu.benchmark_rows(options)
    assert [row["graphs"] for row in rows] == ["chosen", "chosen", "xla", "xla", "none", "none"]


def test_other_graphs_are_another_command(planned, tmp_path, capsys):
    planned(Job("depth", "depth", ["-c", "print(1)"], {}, 30.0))
    for graphs, is_repeated in (("xla", False), ("xla", True), ("none", False)):
        args: Any = {"out": tmp_path, "graphs": graphs}
        measure_gpu.run_all(Options(**args), never)
        assert ("finished before" in capsys.readouterr().out) == is_repeated


def test_a_job_without_time_fixes_no_graphs(planned, tmp_path):
    planned(Job("depth", "depth", ["-c", "print(1)"], {}, 1.0))
    measure_gpu.run_all(Options(out=tmp_path), never)
    assert measure_gpu.read_records(tmp_path) == {}


def test_relative_folders_are_those_of_the_user(planned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "import os, experiments; open('here', 'w').write(os.environ['PYTHONPATH'])"
    planned(job(code))
    assert measure_gpu.main(["--out", "a/b"]) == 0
    assert (tmp_path / "here").read_text().split(os.pathsep)[0] == str(measure_gpu.ROOT)
    assert {path.name for path in tmp_path.iterdir()} == {"here", "a"}
    home = tmp_path / "a/b"
    for name in ("summary.md", "summary.csv"):
        assert (home / "results" / name).read_text() == (home / name).read_text()


def test_what_does_not_fit_is_in_the_summary_that_comes_home(planned, tmp_path, monkeypatch):
    planned(job("print('x' * 10_000)"))
    monkeypatch.setattr(measure_gpu, "MAX_FILE_BYTES", 5_000)
    assert measure_gpu.main(["--out", str(tmp_path)]) == 0
    summary = (tmp_path / "results/summary.md").read_text()
    assert "logs/a.log (0.0 MiB) is not in records.zip" in summary


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the signal of a parent's end is Linux's")
def test_a_job_ends_with_its_parent(tmp_path):
    """As after a second Ctrl-C, which ends the parent at once."""
    code = f"""
from experiments import measure_gpu
job = measure_gpu.Job("a", "tests", ["-c", {SAVES!r}], {{}}, 60.0)
measure_gpu.plan = lambda options: [job]
measure_gpu.default_backend = lambda: "gpu"
raise SystemExit(measure_gpu.main(["--out", {str(tmp_path)!r}]))
"""
    log = tmp_path / "logs/a.log"
    env = os.environ | {"PYTHONPATH": str(measure_gpu.ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.DEVNULL)
    wait_for(log, "ready")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(log, "saved")


def test_an_error_leaves_no_process(tmp_path):
    calls = []

    def broken():
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("it broke")
        return False

    start = time.monotonic()
    with pytest.raises(RuntimeError, match="it broke"):
        measure_gpu.run_job(job(IGNORES), tmp_path / "a.log", 20.0, broken)
    assert time.monotonic() - start < 20


def test_a_study_alone_starts_in_a_new_folder(planned, tmp_path):
    planned(Job("depth", "depth", ["-c", "print(1)"], {}, 30.0))
    options = Options(out=tmp_path / "a/b")
    measure_gpu.run_all(options, never)
    assert measure_gpu.read_records(options.out)["depth"]["exit_code"] == 0


def test_an_archive_stays_small_and_names_what_it_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(measure_gpu, "MAX_FILE_BYTES", 50_000)
    noise = np.random.default_rng(0).bytes(30_000)
    files = [{"a": noise}, {"b": b"x", "bb": noise}, {"c": b"small"}]
    left_out = measure_gpu.write_zip(tmp_path / "x.zip", files)
    assert left_out == ["b (0.0 MiB) is not in x.zip"]
    assert (tmp_path / "x.zip").stat().st_size < 50_000
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "a": noise,
            "c": b"small",
        }
    # What was there before would be taken for today's.
    assert measure_gpu.write_zip(tmp_path / "x.zip", []) == []
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.slow
def test_what_comes_home_has_the_parameters_and_resumes_elsewhere(planned, tmp_path, one_device):
    """A study stopped in its second run: the first one's parameters, and the state of the second."""
    study = ["--dataset", "digits", "--depths", "8", "--num-seeds", "1", "--num-steps", "6"]
    study += ["--milestones", "3", "--eval-every", "2", "--keep-every", "0", "--width", "4"]
    here, there = tmp_path / "here", tmp_path / "there"
    options = Options(out=here)
    planned()
    data = jc.load_dataset("digits")
    all_runs = depth.configs(depth.cli.parse(depth.PRESETS, study))
    second = here / "depth/resnet8-seed0/metrics.jsonl"
    assert runs.sweep(all_runs, data, here / "depth", should_stop=second.exists) is None
    finished = {path.parent.name for path in here.glob("depth/*/result.json")}
    assert finished == {"plain8-seed0"}
    tables_of(here, chosen=1.5)
    (here / "logs").mkdir()
    (here / "logs/depth.log").write_text("x" * (2 << 20) + "end\n")
    assert measure_gpu.collect(options) == []
    results = {path.name: path for path in (here / "results").iterdir()}
    assert len(results) <= 8
    assert set(results) == {
        "benchmark.csv", "records.zip", "parameters.zip", "states.zip",
    }  # fmt: skip
    assert max(path.stat().st_size for path in results.values()) < 16 << 20
    rows = list(csv.DictReader(io.StringIO(results["benchmark.csv"].read_text())))
    assert rows[1] == {"graphs": "chosen", "network": "resnet20", "images_per_second": "1.5"}
    with zipfile.ZipFile(results["parameters.zip"]) as archive:
        assert archive.namelist() == ["plain8-seed0.safetensors"]
        arrays = load(archive.read("plain8-seed0.safetensors"))
    with jc.Checkpoints(here / "depth/plain8-seed0/checkpoints") as saved:
        bias = saved.variables("last")["params"]["head"]["bias"]
    np.testing.assert_array_equal(arrays["head.bias"], bias)
    with zipfile.ZipFile(results["records.zip"]) as archive:
        assert len(archive.read("logs/depth.log")) == 1 << 20
        assert archive.read("logs/depth.log").endswith(b"end\n")
        assert json.loads(archive.read("depth/plain8-seed0/result.json"))["step"] == 6
    for name in ("records.zip", "states.zip"):
        with zipfile.ZipFile(results[name]) as archive:
            archive.extractall(there)
    (state,) = there.glob("depth/resnet8-seed0/checkpoints/*")
    steps = []
    result = runs.run(
        all_runs["resnet8-seed0"],
        data,
        there / "depth/resnet8-seed0",
        on_step=lambda step, row: steps.append(step),
    )
    assert result is not None
    assert steps[0] == int(state.name) in (2, 3)
    assert steps[-1] == 6
    # The second machine has no parameters of the first run, and does not need them.
    assert measure_gpu.collect(Options(out=there)) == []
    assert not (there / "results/states.zip").exists()
    with zipfile.ZipFile(there / "results/parameters.zip") as archive:
        assert archive.namelist() == ["resnet8-seed0.safetensors"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--parts"], "parts"),
        (["--seconds", "1"], "seconds is 1; expected at least 5: write --seconds 60"),
        (
            ["--depth-seconds", "0"],
            "depth-seconds is 0; expected at least 5: write --depth-seconds 60",
        ),
        (["--grace", "-1"], "grace is -1; expected at least 0"),
        (["--num-steps", "0"], "--num-steps is 0; expected a whole number of 1"),
        (["--preset", "tiny"], "preset"),
        (["--graphs", "all"], "graphs"),
    ],
)
def test_mistakes_are_one_line(args, says, capsys, monkeypatch):
    monkeypatch.setattr(measure_gpu, "run_all", lambda *a: pytest.fail("it ran"))
    refuses(measure_gpu.main, args, says, capsys, monkeypatch)
