"""Whatever the files of a study hold, reading them ends, with a result or an error of one line of the library's own."""

import contextlib
import importlib
import json
import os
import random
import shutil
import threading
from pathlib import Path

import pytest

import jaxcnn as jc
from jaxcnn import run_log, runs
from jaxcnn.run_log import LogError, RunLog, read_json, read_lines, read_metrics

pytestmark = pytest.mark.quick_compilation

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
CASES = int(os.environ.get("JAXCNN_CASES", 0))
DRAWN = {
    "depth": "depth-digits",
    "depth_map": "depth-map",
    "batch_size": "batch-size-digits",
    "anomaly": "anomaly-digits",
    "mnist": "mnist-digits",
    "overfitting": "overfitting-digits",
    "optimizers": "optimizers-digits",
    "segmentation": "segmentation-digits",
    "detection": "detection",
    "keypoints": "keypoints",
    "search.__main__": "search-digits",
    "generation": "generation-digits",
    "text": "text-digits",
    "learning_rate.__main__": "learning-rate-digits",
    "signal_propagation.__main__": "signals-digits",
    "loss_landscape.__main__": "landscape-digits",
    "speedrun.__main__": "speedrun-short",
    "scaling.__main__": "scaling",  # without its arithmetic, which reads no records and takes half a minute
    "stress.soak": "soak",
    "finetune.transfer": "finetune-transfer",
}
"""Script -> its committed results."""
RECORDS = (".json", ".jsonl", ".npz")
WRONG = [
    None,
    True,
    -1,
    0,
    1e99,
    1e308,
    10**30,
    "text",
    "\x1b[31m",
    "",
    [],
    {},
    [None],
    {"a": []},
    [[1]],
    0.5,
]


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in RECORDS and path.is_file())


def change(value, rng):
    """One value of a JSON document, however deep, replaced or removed, or its key renamed."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
        return rng.choice(WRONG)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    what = rng.random()
    if what < 0.25:
        del value[key]
    elif what < 0.5:
        value[key] = rng.choice(WRONG)
    else:
        value[key] = change(value[key], rng)
    return value


def mutate(path, rng):
    """Damage a record; returns how."""
    data = path.read_bytes()
    how = rng.choice(
        [
            "cut",
            "flip",
            "value",
            "value",
            "value",
            "value",
            "constant",
            "bytes",
            "empty",
            "folder",
            "twice",
        ]
    )
    if how == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif how == "flip":
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :])
    elif how == "bytes":
        path.write_bytes(data + b'\n{"step": \xff\n')
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "twice":
        path.write_bytes(data + data)
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "constant":
        path.write_bytes(
            rng.choice(
                [
                    b"NaN",
                    b"[" * 10**5,
                    b"1" * 5000,
                    b"null",
                    b"[1]",
                    b'{"step": Infinity}',
                    b"[]",
                    b"{}",
                ]
            )
        )
    elif path.suffix == ".json":
        path.write_text(json.dumps(change(json.loads(data), rng)))
    elif path.suffix == ".jsonl":
        lines = data.decode().splitlines()
        for _ in range(rng.choice([1, 1, len(lines)])):
            at = rng.randrange(len(lines))
            lines[at] = json.dumps(change(json.loads(lines[at]), rng))
        path.write_text("\n".join(lines) + "\n")
    return how


def drawn(script, out, capsys):
    """Runs the script with --plot-only; asserts that it ends well, or with one line."""
    capsys.readouterr()
    code = exit_code(
        importlib.import_module(f"experiments.{script}").main, ["--plot-only", "--out", str(out)]
    )
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    if code == 2:
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1, said.err
    else:
        assert code in (0, 1)  # 1: a soak that grew


def exit_code(main, args):
    try:
        return main(args)
    except SystemExit as exit:
        return exit.code


def without_arithmetic(monkeypatch):
    scaling = importlib.import_module("experiments.scaling.__main__")
    for name in ("limit_rows", "network_rows", "growth_rows"):
        monkeypatch.setattr(scaling.projections, name, lambda *_: [{"a": 1}])
    for name in ("share_figure", "volume_figure"):
        monkeypatch.setattr(scaling.projections, name, lambda *_: None)
    monkeypatch.setattr("jaxcnn.plots.save", lambda *_: None)


@pytest.mark.slow
@pytest.mark.parametrize("script", DRAWN)
def test_damaged_records_are_drawn_or_refused_in_one_line(script, tmp_path, capsys, monkeypatch):
    if script == "scaling.__main__":
        without_arithmetic(monkeypatch)
    source = RESULTS / DRAWN[script]
    seed = int(os.environ.get("JAXCNN_SEED", 0))
    few = (
        1 if script.startswith(("learning_rate", "loss_landscape", "signal_propagation")) else 3
    )  # those draw for seconds
    for case in range(seed, seed + (CASES or few)):
        rng, out = random.Random(f"{script} {case}"), tmp_path / str(case)
        shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.png", "*.csv", "*.md"))
        path = rng.choice(files(out))
        how = mutate(path, rng)
        try:
            drawn(script, out, capsys)
        except BaseException as error:
            raise AssertionError(
                f"case {case} of {script}: {path.relative_to(out)}, {how}"
            ) from error
        shutil.rmtree(out)


@pytest.mark.parametrize("script", DRAWN)
def test_committed_records_are_all_read(script):
    """What is refused as damaged is nothing that a run has written."""
    for path in files(RESULTS / DRAWN[script]):
        if path.suffix == ".jsonl":
            assert read_metrics(path.parent) if path.name == "metrics.jsonl" else read_lines(path)
        elif path.suffix == ".json":
            read_json(path, object)


def unreadable(path, kind):
    """Puts something at `path` that is no file of text; returns whether the system can."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
            made.bind(path.name)
    else:
        path.symlink_to(kind)


def ends(work):
    """What `work` raises, or None; fails if it does not end."""
    raised = []

    def target():
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for ever"
    return raised[0] if raised else None


KINDS = ["pipe", "folder", "sparse", "socket", "/dev/zero", "/dev/full", "nowhere"]
CONFIG = jc.override(
    jc.ExperimentConfig(), model="plain8", model_kwargs={"width": 2}, num_steps=4, milestones=()
)


@pytest.fixture
def run(tmp_path):
    """The folder of a run that is over."""
    made = RunLog(tmp_path / "study" / "a", CONFIG)
    made.write(step=4, seconds=1.0, train_error=1.0)
    made.finish(status="finished", step=4, params=10, seconds=1.0, train_error=1.0)
    return tmp_path / "study" / "a"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["metrics.jsonl", "env.json", "config.json", "result.json"])
def test_what_is_no_file_is_one_line_and_is_not_waited_for(run, name, kind):
    unreadable(run / name, kind)
    reads = [lambda: RunLog(run, CONFIG).result()]
    reads += [lambda: runs.finished_runs(run.parent)] if name != "env.json" else []
    for read in reads:
        error = ends(read)
        if error is None:
            assert (kind, name) in [("nowhere", "config.json"), ("nowhere", "env.json")], (
                kind,
                name,
            )
            continue
        if (kind, name) == ("nowhere", "result.json") and "holds no finished run" in str(error):
            continue
        assert isinstance(error, (LogError, jc.ArgumentError)), error
        assert "\n" not in str(error)
        assert name in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_runs_that_are_no_file_are_one_line(tmp_path, kind):
    unreadable(tmp_path / "runs.jsonl", kind)
    error = ends(lambda: runs.finished_runs(tmp_path))
    assert isinstance(error, LogError)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "torn",
    [
        b'{"step": 8, "a": "\xff',
        b"\xff",
        b"\x00\x00\x00",
        b'{"step": 8}\xe2\x82',
        b'{"step": \n',
        b"\n",
    ],
)
def test_a_torn_last_line_of_any_bytes_is_passed_over_and_mended(run, torn):
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    before = read_metrics(run)
    assert [row["step"] for row in before] == [4]
    RunLog(run, CONFIG).write(step=8)
    assert [row["step"] for row in read_metrics(run)] == [4, 8]
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 1, "a": NaN}', b'{"step": 1, "a": 1e999}', b'{"step": -1}', b'{"step": 1.5}', b'{"step": true}',
        b'{"step": null}', b"null", b"3", b"[]", b'"step"', b"{}", b'{"step": 1, "a": "\\u001b[31m"}',
        b'{"step": 1' + b"0" * 120 + b"}", b"\xff",
        b"[" * 100_000, b"1" * 5000, b"",
    ],
)  # fmt: skip
def test_a_line_that_no_run_writes_is_named_with_its_number(run, line):
    path = run / "metrics.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(
        LogError, match=r"metrics\.jsonl, line 1, is no row of a run: .*delete that line"
    ) as error:
        read_metrics(run)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600 + len(str(path))


@pytest.mark.parametrize(
    "change",
    [
        {"status": "over"}, {"status": None}, {"status": []}, {"step": None}, {"step": "4"}, {"step": True}, {"params": None},
        {"params": [1]}, {"seconds": None}, {"seconds": "1"}, {"seconds": -1}, {"status": "diverged"},
        {"status": "diverged", "reason": 3},
    ],
)  # fmt: skip
def test_a_result_that_no_run_leaves_is_named(run, change):
    result = json.loads((run / "result.json").read_text()) | change
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(
        LogError, match=r"study/a holds no result of a run: .*delete that run"
    ) as error:
        runs.finished_runs(run.parent)
    assert "\n" not in str(error.value)


def test_a_figure_that_was_no_number_has_no_mean(run):
    made = runs.finished_runs(run.parent)
    lost = made[0]._replace(result=made[0].result | {"train_error": None})
    assert runs.aggregate_seeds([made[0], lost], ["train_error"])["train_error"] is None
    assert runs.aggregate_seeds(made, ["train_error"])["train_error"] == 1.0


def test_errors_that_are_not_of_records_keep_their_kind():
    with (
        pytest.raises(
            LogError, match=r"runs/a holds records that cannot be used: KeyError 'b'; expected"
        ) as error,
        run_log.record_errors("runs/a"),
    ):
        {"a": 1}["b"]
    assert isinstance(error.value.__cause__, KeyError)
    for kind in (jc.ArgumentError, jc.DataError, jc.CheckpointError):
        with pytest.raises(kind, match=r"^as it is$"), run_log.record_errors("runs/a"):
            raise kind("as it is")
    with pytest.raises(AssertionError), run_log.record_errors("runs/a"):
        raise AssertionError
