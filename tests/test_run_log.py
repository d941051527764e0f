"""Records: valid JSON always, whole files only, and a folder that knows whose it is."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn.run_log import LogError, read_json, read_metrics, write_text

CONFIG = jc.override(
    jc.ExperimentConfig(), model="resnet20", model_kwargs={"width": 8}, milestones=(5, 9)
)


def test_a_folder_is_enough_to_have_the_config_back(tmp_path):
    jc.RunLog(tmp_path / "run", CONFIG, {"device": "cpu"})
    assert jc.ExperimentConfig.load(tmp_path / "run") == CONFIG
    (facts,) = json.loads((tmp_path / "run" / "env.json").read_text())
    assert facts["device"] == "cpu"
    assert facts["packages"]["jax"]


def test_what_is_no_number_becomes_null(tmp_path):
    log = jc.RunLog(tmp_path, CONFIG)
    log.write(
        step=1,
        n=np.int32(3),
        a=float("nan"),
        b=jnp.float32(jnp.inf),
        c=np.float32(0.5),
        d=None,
        e=[1.0, float("-inf")],
    )
    text = log.path.read_text()
    plain = {"step": 1, "n": 3, "a": None, "b": None, "c": 0.5, "d": None, "e": [1.0, None]}
    assert json.loads(text, parse_constant=pytest.fail) == plain


def test_another_configs_folder_is_refused_and_the_fields_are_named(tmp_path):
    jc.RunLog(tmp_path, CONFIG)
    with pytest.raises(
        jc.ArgumentError,
        match=r"another config: learning_rate \(0.1 there, 0.2 here\), seed \(0 there, 7",
    ) as error:
        jc.RunLog(tmp_path, jc.override(CONFIG, learning_rate=0.2, seed=7))
    assert "\n" not in str(error.value)
    assert jc.ExperimentConfig.load(tmp_path) == CONFIG


def test_a_row_made_again_replaces_itself_and_what_followed(tmp_path):
    log = jc.RunLog(tmp_path, CONFIG)
    for step in (10, 20, 30):
        log.write(step=step, loss=1.0)
    again = jc.RunLog(tmp_path, CONFIG)
    again.write(step=20, loss=2.0)
    assert again.rows() == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}]


def test_a_torn_last_line_is_passed_over_and_mended(tmp_path):
    log = jc.RunLog(tmp_path, CONFIG)
    log.write(step=10)
    with log.path.open("a") as file:
        file.write('{"step": 20, "tra')
    assert jc.read_metrics(tmp_path) == [{"step": 10}]
    jc.RunLog(tmp_path, CONFIG).write(step=20)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [10, 20]


def test_a_torn_line_in_the_middle_is_damage_and_said(tmp_path):
    log = jc.RunLog(tmp_path, CONFIG)
    log.path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(LogError, match=r"line 2, is no row of a run.*delete that line"):
        log.rows()


def test_going_on_elsewhere_is_recorded(tmp_path):
    for device in ("cpu", "cpu", "gpu"):
        jc.RunLog(tmp_path, CONFIG, {"device": device})
    assert [facts["device"] for facts in json.loads((tmp_path / "env.json").read_text())] == [
        "cpu",
        "gpu",
    ]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        jc.ArgumentError, match=r"cannot write in .*file/run: Not a directory"
    ) as error:
        jc.RunLog(tmp_path / "file" / "run", CONFIG)
    assert "\n" not in str(error.value)


def test_a_result_marks_the_end(tmp_path):
    log = jc.RunLog(tmp_path, CONFIG)
    assert log.result() is None
    assert log.finish(status="finished", loss=float("nan")) == {"status": "finished", "loss": None}
    assert jc.RunLog(tmp_path, CONFIG).result() == {"status": "finished", "loss": None}


def test_a_link_in_a_strangers_folder_leads_nothing_elsewhere(tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.write_text('{"step": 0}\n')
    folder.mkdir()
    (folder / "config.json.part").symlink_to(elsewhere)
    write_text(folder / "config.json", "new")
    assert (folder / "config.json").read_text() == "new"
    (folder / "metrics.jsonl").symlink_to(elsewhere)
    (folder / "config.json").unlink()
    with pytest.raises(LogError, match="cannot write"):
        jc.RunLog(folder, CONFIG).write(step=1, train_loss=0.0)
    assert elsewhere.read_text() == '{"step": 0}\n'


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "nothing", "\xff", ""])
def test_what_is_no_json_is_one_line_that_names_the_file(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(LogError, match=r"result\.json cannot be read") as error:
        read_json(path)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_gone_is_one_line(tmp_path):
    log = jc.RunLog(tmp_path / "run", CONFIG)
    shutil.rmtree(tmp_path / "run")
    for write in (lambda: log.write(step=1), lambda: log.finish(status="finished")):
        with pytest.raises(
            LogError, match="No such file or directory; fix that and give the same command"
        ) as error:
            write()
        assert "\n" not in str(error.value)


def test_rows_of_no_folder_are_an_error_and_of_a_new_run_none(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name, problem in (
        ("gone", "does not exist"),
        ("file", "is no folder"),
        ("link", "is no folder"),
    ):
        with pytest.raises(LogError, match=f"{name} {problem}; expected a run's folder") as error:
            jc.read_metrics(tmp_path / name)
        assert "\n" not in str(error.value)
    log = jc.RunLog(tmp_path / "run", CONFIG)
    assert log.rows() == jc.read_metrics(log.folder) == []
    shutil.rmtree(log.folder)
    with pytest.raises(LogError, match="does not exist"):
        log.rows()


def test_a_closed_log_writes_no_more_and_can_be_read(tmp_path):
    with jc.RunLog(tmp_path, CONFIG) as log:
        log.write(step=1)
    log.close()
    for write in (lambda: log.write(step=2), lambda: log.finish(status="finished")):
        with pytest.raises(LogError, match=r"is closed; expected an open one\. Use a new RunLog"):
            write()
    assert log.rows() == [{"step": 1}]
    assert log.result() is None
    jc.RunLog(tmp_path, CONFIG).write(step=2)
    assert [row["step"] for row in jc.read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("folder", ["gs://bucket/run", "a\nb", "a\0b", "\ud800"])
def test_an_address_and_what_is_no_path_are_refused_and_no_folder_is_made(
    tmp_path, monkeypatch, folder
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(jc.ArgumentError, match=r"expected a (local folder|path)") as error:
        jc.RunLog(folder, CONFIG)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_folder_of_several_runs_is_no_run(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 3}\n')
    with pytest.raises(
        LogError, match=r"the folder of 2 runs; expected that of one\. Write .*/a\.$"
    ):
        read_metrics(tmp_path)
    assert read_metrics(tmp_path / "a") == [{"step": 3}]
