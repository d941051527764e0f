"""The reading study: its measures, and as a user runs it."""

import csv
import json

import numpy as np
import pytest
from scripts import refuses

import jaxcnn as jc
from experiments import _common, text
from jaxcnn import runs
from jaxcnn.config import as_dict

pytestmark = pytest.mark.usefixtures("one_device")
TINY = ["--lines", "60", "--width", "2", "--num-steps", "6", "--batch-size", "8"]


@pytest.fixture(scope="module")
def digits():
    return jc.load_dataset("digits")


def test_the_figures_of_a_decoder_are_those_of_its_readings(monkeypatch, digits):
    """Two lines of one digit and one of two, of which the last is wrong in one digit."""
    labels = np.array([[3, -1], [4, -1], [1, 2]], np.int32)
    logits = np.full((3, 4, 11), -9.0, np.float32)
    for line, path in enumerate(([3, 10, 10, 10], [4, 4, 10, 10], [1, 10, 10, 7])):
        logits[line, np.arange(4), path] = 9
    monkeypatch.setattr(text.jc, "predict", lambda *args: logits)
    data = digits._replace(test=jc.Split(digits.test.images[:3], labels))
    columns = text.Measure((3,))(None, None, data)  # pyright: ignore
    for name in ("greedy", "beam3"):
        assert columns[f"{name}_cer"] == pytest.approx(25)
        assert columns[f"{name}_line_error"] == pytest.approx(100 / 3)
        assert (columns[f"{name}_line_error_1"], columns[f"{name}_line_error_2"]) == (0, 100)
    assert len(columns) == 8


def a_run(**result):
    return runs.Run(None, {"seconds": 1.0, "status": "finished"} | result, [])  # pyright: ignore


def test_decoders_that_all_runs_have_are_compared():
    first = a_run(greedy_cer=9.0, beam32_cer=8.0, beam4_cer=8.5, greedy_line_error=50.0)
    second = a_run(greedy_cer=7.0, beam32_cer=6.5, other_cer=1.0, greedy_line_error=40.0)
    assert text.measured_decoders([first, second]) == {
        "greedy": "greedy",
        "beam32": "beam search of 32",
    }
    assert list(text.measured_decoders([first])) == ["greedy", "beam4", "beam32"]
    assert text.measured_decoders([]) == {}
    assert text.left_out([first, second], text.measured_decoders([first, second])) == (
        " Left out, as some runs lack it: beam search of 4."
    )
    assert text.left_out([first], text.measured_decoders([first])) == ""
    row = text.of_decoder([first], "greedy", ("cer", "line_error_8"))[0].result
    assert (row["cer"], row["line_error_8"]) == (9.0, None)


def all_configs():
    return list(text.configs(text.Options()).values())


def test_changes_are_paired_by_seed():
    all_runs = [
        a_run(greedy_cer=9.0, beam8_cer=8.0, greedy_line_error=5.0, beam8_line_error=5.0),
        a_run(greedy_cer=7.0, beam8_cer=6.5, greedy_line_error=4.0, beam8_line_error=None),
    ]
    diverged = {"status": "diverged", "step": 3, "reason": "nan", "greedy_cer": 1.0}
    all_runs.append(a_run(**diverged, beam8_cer=99.0)._replace(config=all_configs()[0]))
    found = text.paired_changes(all_runs, {"greedy": "greedy", "beam8": "beam search of 8"})
    # -1 and -0.5, with Student's t of 12.706 at one degree of freedom.
    assert found == (
        " Paired by seed, beam search of 8 changes the character error rate by -0.75 +- 3.18 points."
    )


def write_run(out, name, *rows, **result):
    """A folder as a run leaves it, of the columns that a study reads."""
    (out / name).mkdir(parents=True)
    config = text.configs(text.Options())[name]
    (out / name / "config.json").write_text(json.dumps(as_dict(config)))
    lines = [json.dumps(row) + "\n" for row in rows]
    (out / name / "metrics.jsonl").write_text("".join(lines))
    if result:
        (out / name / "result.json").write_text(json.dumps(rows[-1] | result))


def measures(*widths, step=200, value=10.0):
    names = ["greedy", *(f"beam{width}" for width in widths)]
    quantities = ("cer", "line_error", "line_error_1")
    return {"step": step} | {f"{name}_{key}": value for name in names for key in quantities}


# As a run with --learning-rate 1e30 leaves it.
DIVERGED = {
    "step": 1,
    "rate": 1e30,
    "train_loss": 59.860595703125,
    "train_error": 100.0,
    "eval_loss": None,
    "eval_error": 100.0,
    "eval_split": "test",
    "grad_norm": 34.68146514892578,
    "seconds": 3.85,
    "diverged": "eval_loss is nan",
}
DIVERGED_RESULT = {"status": "diverged", "reason": "eval_loss is nan", "params": 3109}


def test_a_diverged_seed_leaves_the_table_of_the_others(tmp_path):
    for seed, value in ((0, 10.0), (2, 20.0)):
        finished = {"status": "finished", "params": 9, "seconds": 1.0}
        write_run(tmp_path, f"reader-seed{seed}", measures(2, value=value), **finished)
    write_run(tmp_path, "reader-seed1", DIVERGED, **DIVERGED_RESULT)
    assert text.main(["--out", str(tmp_path), "--plot-only"]) == 0
    with (tmp_path / "table.csv").open() as file:
        lines = {line["decoder"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["greedy", "beam search of 2"]
    for line in lines.values():
        assert (float(line["cer"]), line["seeds"]) == (15, "2")
    notes = (tmp_path / "table.md").read_text()
    assert "seed 1 diverged at step 1: eval_loss is nan." in notes
    # The readings are those of a run that can read.
    opened = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "build", lambda config, data: opened.append(config) or (None, None))
        patch.setattr(_common, "init_state", lambda *args, **kwargs: np.zeros(1))
        (tmp_path / "reader-seed0" / "result.json").write_text(
            json.dumps(DIVERGED | DIVERGED_RESULT)
        )
        assert text.trained_network(text.Options(out=tmp_path), None) is None  # pyright: ignore
    assert [config.train.seed for config in opened] == [2]


def test_a_study_of_which_every_run_diverged_is_one_line(tmp_path, capsys, monkeypatch):
    write_run(tmp_path, "reader-seed0", DIVERGED, **DIVERGED_RESULT)
    says = "seed 0 diverged at step 1: eval_loss is nan. So did every run; write another --out and"
    refuses(text.main, ["--out", str(tmp_path), "--plot-only"], says, capsys, monkeypatch)


def test_other_beam_widths_than_those_of_the_rows_are_one_line(tmp_path, capsys, monkeypatch):
    finished = {"status": "finished", "params": 9, "seconds": 1.0}
    write_run(tmp_path, "reader-seed0", measures(2, 8), **finished)
    # One that was stopped.
    write_run(tmp_path, "reader-seed1", measures(2, 8, 32, step=100), measures(2))
    write_run(tmp_path, "reader-seed2", DIVERGED, **DIVERGED_RESULT)
    says = (
        f"rows of reader-seed0, reader-seed1 in {tmp_path} lack a beam search of 8, 32; "
        "expected all of --beam-widths. Write --beam-widths 2, or --out with another folder."
    )
    refuses(text.main, ["--out", str(tmp_path)], says, capsys, monkeypatch)
    text.check_widths(text.Options(out=tmp_path, beam_widths=(2,)))
    text.check_widths(text.Options(out=tmp_path / "new"))


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_the_reading_study_leaves_table_figures_and_runs(tmp_path):
    out = tmp_path / "runs"
    args = [*TINY, "--num-seeds", "2", "--beam-widths", "3", "--out", str(out)]
    assert text.main(args) == 0
    with (out / "table.csv").open() as file:
        lines = {line["decoder"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["greedy", "beam search of 3"]
    for line in lines.values():
        assert float(line["cer"]) > 0
        assert 0 <= float(line["line_error"]) <= 100
        assert line["seeds"] == "2"
    for name in ("curves.png", "lines.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert (out / "probabilities.png").exists()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    assert len(before) == 2
    assert text.main([*args, "--plot-only"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--beam-widths", "2", "2"], "--beam-widths is 2 2; expected each width once"),
        (["--beam-widths", "0"], "beam-widths is 0"),
        (["--learning-rate", "-1"], "learning-rate is -1.0"),
        (["--dataset", "digit"], "digits"),
        (["--width", "0"], "width is 0"),
        (["--lines", "4"], "lines is 4; expected a whole number of 5"),
    ],
)
def test_mistakes_about_reading(args, says, capsys, monkeypatch, tmp_path):
    args = ["--lines", "40", *args, "--out", str(tmp_path / "new")]
    refuses(text.main, args, says, capsys, monkeypatch)
