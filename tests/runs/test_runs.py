"""Runs in folders: stopped and continued, diverged and recorded, finished and left alone."""

import json
import os
import shutil
import sys

import jax
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn import runs
from jaxcnn.checkpoint import checkpoints, lock_folder
from jaxcnn.config import as_dict
from jaxcnn.state import state_shapes

pytestmark = pytest.mark.quick_compilation

CONFIG = jc.ExperimentConfig(
    dataset="digits",
    model="plain8",
    model_kwargs={"width": 4},
    optimizer=jc.OptimizerConfig(milestones=(8,)),
    train=jc.TrainConfig(
        num_steps=12,
        batch_size=64,
        eval_every=5,
        augment=jc.AugmentConfig(padding=1, flip=True),
    ),
)
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def data():
    return jc.load_dataset("digits")


@pytest.fixture(scope="module")
def strategy():
    return jc.strategy("jit", devices=1)


@pytest.fixture(scope="module")
def whole(data, strategy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, runs.run(CONFIG, data, folder, strategy=strategy)


def untimed(folder):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in jc.read_metrics(folder)]


@pytest.mark.slow
def test_a_finished_run_says_so_and_is_not_run_again(whole, data, strategy, monkeypatch):
    folder, result = whole
    assert result["status"] == "finished"
    assert result["params"] == jc.count_parameters(
        jc.create_model("plain8", 10, width=4), (8, 8, 1)
    )
    assert result["eval_error"] == jc.read_metrics(folder)[-1]["eval_error"]
    assert result["seconds"] == pytest.approx(
        sum(row["seconds"] for row in jc.read_metrics(folder))
    )
    monkeypatch.setattr("jaxcnn.runs.single.train", lambda *a, **k: pytest.fail("it trained again"))
    assert runs.run(CONFIG, data, folder, strategy=strategy) == result


def test_the_folder_is_enough_to_run_it_again(whole, data, strategy, tmp_path):
    config = jc.ExperimentConfig.load(whole[0])
    runs.run(config, jc.load_dataset(config.dataset), tmp_path, strategy=strategy)
    assert untimed(tmp_path) == untimed(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 5, 11])
def test_a_stopped_run_goes_on_in_mid_epoch(whole, data, strategy, tmp_path, at):
    steps = []
    stopped = runs.run(
        CONFIG,
        data,
        tmp_path,
        strategy=strategy,
        should_stop=lambda: steps[-1] >= at,
        on_step=lambda step, row: steps.append(step),
    )
    assert stopped is None
    assert max(steps) == at
    assert not (tmp_path / "result.json").exists()
    seen = []
    result = runs.run(
        CONFIG, data, tmp_path, strategy=strategy, on_step=lambda step, row: seen.append(step)
    )
    assert seen[0] == at  # no step is done twice
    assert untimed(tmp_path) == untimed(whole[0])
    assert result is not None
    assert result["eval_loss"] == whole[1]["eval_loss"]


def test_rows_past_the_checkpoint_are_made_again_not_twice(whole, data, strategy, tmp_path):
    """A run killed after writing a row and before saving its state."""
    runs.run(CONFIG, data, tmp_path, strategy=strategy, should_stop=lambda: True)
    jc.RunLog(tmp_path, CONFIG).write(step=5, train_loss=123.0)
    runs.run(CONFIG, data, tmp_path, strategy=strategy)
    assert untimed(tmp_path) == untimed(whole[0])


def test_a_run_whose_last_save_fails_is_not_over(whole, data, strategy, tmp_path, monkeypatch):
    verify = checkpoints.Checkpoints._verify

    def fails_at_the_end(self, step, leaves):
        if step == CONFIG.train.num_steps:
            raise OSError("the disk is full")
        verify(self, step, leaves)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "_verify", fails_at_the_end)
        with pytest.raises(jc.CheckpointError, match="the disk is full"):
            runs.run(CONFIG, data, tmp_path, strategy=strategy)
    assert not (tmp_path / "result.json").exists()
    assert runs.run(CONFIG, data, tmp_path, strategy=strategy)
    assert untimed(tmp_path) == untimed(whole[0])


@pytest.mark.slow
def test_divergence_is_a_result_and_the_study_goes_on(data, strategy, tmp_path):
    all_runs = {
        "wild": jc.override(CONFIG, learning_rate=1e30, weight_decay=0.0),
        "tame": jc.override(CONFIG, num_steps=2),
    }
    results = runs.sweep(all_runs, data, tmp_path, strategy=strategy)
    assert results is not None
    assert (results["wild"]["status"], results["wild"]["step"]) == ("diverged", 5)
    assert jc.read_metrics(tmp_path / "wild")[-1]["diverged"] == results["wild"]["reason"]
    assert results["wild"]["reason"] in (
        "grad_norm is nan",
        "train_loss is nan",
        "grad_norm is inf",
    )
    assert results["tame"]["status"] == "finished"
    for path in tmp_path.rglob("*.json*"):
        if "checkpoints" not in path.parts:
            for text in (
                path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            ):
                json.loads(text, parse_constant=pytest.fail)
    wild, tame = (
        {run.config.optimizer.learning_rate: run for run in runs.finished_runs(tmp_path)}[1e30],
        runs.finished_runs(tmp_path)[0],
    )
    assert wild.divergence is not None
    assert "diverged at step 5" in wild.divergence
    assert runs.aggregate_seeds([wild, tame])["seeds"] == 1


def test_columns_over_seeds_name_their_split_and_never_average_two():
    """A later seed may be trained with another `eval_split` into the same study."""

    def run(eval_split, error, seed):
        config = jc.override(CONFIG, eval_split=eval_split, num_validation=300, seed=seed)
        figures = {"train_error": 1.0, "eval_error": error, "seconds": 1.0}
        figures |= {"eval_split": eval_split}
        return runs.Run(config, {"status": "finished"} | figures, [])

    for split in ("test", "validation"):
        line = runs.aggregate_seeds([run(split, 4.0, 0), run(split, 6.0, 1)])
        assert (line["eval_split"], line["eval_error"], line["seeds"]) == (split, 5.0, 2)
    mixed = [run("test", 4.0, 0), run("validation", 6.0, 1)]
    with pytest.raises(jc.ArgumentError, match="report test and validation; expected one split"):
        runs.aggregate_seeds(mixed)
    assert "eval_split" not in runs.aggregate_seeds(mixed, ("train_error",))
    assert runs.eval_split([]) is None


@pytest.mark.slow
def test_progress_and_result_name_the_split(strategy, tmp_path, capsys):
    config = jc.override(CONFIG, num_steps=2, eval_every=2, milestones=())
    config = jc.override(config, num_validation=300, eval_split="validation")
    results = runs.sweep(
        {"one": config}, jc.load_dataset("digits", validation=300), tmp_path, strategy=strategy
    )
    assert results is not None
    assert results["one"]["eval_split"] == "validation"
    assert not [key for key in results["one"] if "test" in key]
    assert f"  validation error {results['one']['eval_error']:5.2f}%" in capsys.readouterr().err


def test_a_mistake_in_the_last_config_costs_no_training(data, strategy, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxcnn.runs.single.train", lambda *a, **k: pytest.fail("it trained"))
    good = CONFIG
    for bad in (
        jc.override(CONFIG, model="plain9"),
        jc.override(CONFIG, batch_size=4000),
        jc.override(CONFIG, model_kwargs={"widht": 3}),
    ):
        with pytest.raises(jc.ArgumentError):
            runs.sweep({"good": good, "bad": bad}, data, tmp_path, strategy=strategy)
    jc.RunLog(tmp_path / "bad", jc.override(good, learning_rate=0.5))
    with pytest.raises(jc.ArgumentError, match="another config"):
        runs.sweep({"good": good, "bad": good}, data, tmp_path, strategy=strategy)


def test_a_study_has_one_owner_and_a_run_too(data, strategy, tmp_path):
    """flock is between open files, so that one process will do for two."""
    own_pid = f"in use by process {os.getpid()}"
    with lock_folder(tmp_path / "out"), pytest.raises(jc.CheckpointError, match=own_pid):
        runs.sweep({"a": CONFIG}, data, tmp_path / "out", strategy=strategy)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [
        "lock"
    ]  # the second changed nothing
    with (
        jc.Checkpoints(tmp_path / "run" / "checkpoints"),
        pytest.raises(jc.CheckpointError, match=own_pid),
    ):
        runs.run(CONFIG, data, tmp_path / "run", strategy=strategy)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("name", ["../climbs", "/absolute", "", "a//b", "a/../../b", "nul\0"])
def test_a_run_stays_in_the_folder_of_its_study(data, strategy, tmp_path, name):
    with pytest.raises(jc.ArgumentError, match="run name is"):
        runs.sweep({name: CONFIG}, data, tmp_path / "out", strategy=strategy)
    assert not list(tmp_path.iterdir())


def test_seeds_share_what_is_compiled():
    model, tx = runs.model_and_optimizer(CONFIG, 10)
    for same in (
        {"seed": 9},
        {"num_steps": 99},
        {"learning_rate": 0.3},
        {"eval_every": 1, "batch_size": 32},
    ):
        other, again = runs.model_and_optimizer(jc.override(CONFIG, **same), 10)
        assert (other, again.update) == (model, tx.update), same
    for change in (
        {"optimizer": "adam"},
        {"optimizer": "nesterov"},
        {"momentum": 0.8},
        {"weight_decay": 0.0},
        {"decay_mask": "all"},
        {"milestones": (9,)},
        {"gamma": 0.5},
        {"schedule": "constant"},
        {"warmup_lr": 0.01},
    ):
        assert runs.model_and_optimizer(jc.override(CONFIG, **change), 10)[1].update != tx.update, (
            change
        )
    assert runs.model_and_optimizer(jc.override(CONFIG, model_kwargs={"width": 8}), 10)[0] != model


def test_a_schedule_that_reads_the_number_of_steps_does_not_share_it():
    def update(**changes):
        return runs.model_and_optimizer(jc.override(CONFIG, **changes), 10)[1].update

    for schedule in ("exponential", "cosine", "one-cycle", "restarts", "warmup", "plateau"):
        assert update(schedule=schedule, num_steps=99) != update(schedule=schedule)
        # which only "step" reads
        assert update(schedule=schedule, milestones=(3,)) == update(schedule=schedule)
    adam = {"optimizer": "adam", "optimizer_kwargs": {"b2": 0.99}}
    assert update(**adam) == update(**adam) != update(optimizer="adam")


@pytest.mark.slow
def test_progress_counts_what_was_done_before_as_done(whole, data, strategy, tmp_path, capsys):
    runs.run(CONFIG, data, tmp_path / "a", strategy=strategy)
    assert runs.sweep(
        {"a": CONFIG, "b": jc.override(CONFIG, seed=1)}, data, tmp_path, strategy=strategy
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("100%")
    assert "b  step 12/12" in lines[-1]
    assert not any("a  step" in line for line in lines)
    assert lines[0].startswith(" 71%")  # a is half of the work, and b is at 5 of 12


def test_a_folder_without_runs_is_one_line(tmp_path):
    with pytest.raises(jc.ArgumentError, match="holds no finished run") as error:
        runs.finished_runs(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_packed_runs_are_the_runs_to_six_digits(data, strategy, tmp_path):
    all_runs = {
        "one": jc.override(CONFIG, num_steps=2, milestones=()),
        "two": jc.override(CONFIG, num_steps=2, learning_rate=1e30, weight_decay=0.0),
    }
    runs.sweep(all_runs, data, tmp_path / "out", strategy=strategy)
    assert runs.pack(tmp_path / "out", tmp_path / "kept") == 2
    for packed, run in zip(
        runs.finished_runs(tmp_path / "kept"), runs.finished_runs(tmp_path / "out"), strict=True
    ):
        assert packed.config == run.config
        assert packed.divergence == run.divergence
        for mine, theirs in zip(
            [packed.result, *packed.rows], [run.result, *run.rows], strict=True
        ):
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                assert value == (
                    pytest.approx(theirs[key], rel=1e-5)
                    if isinstance(value, float)
                    else theirs[key]
                )
    for line in (tmp_path / "kept" / "runs.jsonl").read_text().splitlines():
        packed = json.loads(line, parse_constant=pytest.fail)
        # none is left to the defaults of the reader
        assert fields(packed["config"]) == fields(as_dict(jc.ExperimentConfig()))


def fields(config):
    """The names of a config's values, those of the parts below their own."""
    parts = ("optimizer", "train", "augment")
    return {name: fields(config[name]) if name in parts else None for name in config}


def test_a_run_is_read_back_from_its_start_to_its_end(data, strategy, tmp_path):
    seen = {}
    runs.run(
        CONFIG,
        data,
        tmp_path,
        strategy=strategy,
        keep_every=5,
        measure=lambda model, state, data: seen.update({int(state.step): state}) or {},
    )
    run = runs.load_trained_model(tmp_path, path=True)
    assert list(run.states) == [0, 5, 10, 12]
    for step, state in seen.items():
        for mine, told in zip(
            jax.tree.leaves(run.states[step]), jax.tree.leaves(state), strict=True
        ):
            np.testing.assert_array_equal(mine, told)
    model, tx = runs.model_and_optimizer(CONFIG, 10)
    for mine, told in zip(
        jax.tree.leaves(run.first),
        jax.tree.leaves(jc.init_state(model, tx, CONFIG.train, data)),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, told)
    assert (
        jc.evaluate(run.model, run.last, run.data.test, strategy=strategy).error_percent
        == run.rows[-1]["eval_error"]
    )
    assert list(runs.load_trained_model(tmp_path, data=data).states) == [0, 12]


def test_a_sweep_of_nothing_is_one_line(tmp_path):
    with pytest.raises(jc.ArgumentError, match=r"^runs is empty; .* Write runs=\{'a': config\}$"):
        runs.sweep({}, jc.load_dataset("digits"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ([], "holds no run; write a run's folder"),
        (["config.json"], "has the records of a run, but no checkpoints"),
        (
            ["plain20-seed0/checkpoints/lock", "resnet20-seed0/checkpoints/lock"],
            "holds 2 runs; write one of them: ",
        ),
        (
            ["plain20-seed0/checkpoints/lock"],
            "holds a run in a subfolder; write .*plain20-seed0$",
        ),
    ],
)
def test_a_folder_that_is_no_run_says_what_to_write(tmp_path, made, says):
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(jc.ArgumentError, match=says) as error:
        runs.load_trained_model(tmp_path)
    assert "\n" not in str(error.value)


def test_a_run_without_a_step_yet_is_not_taken_for_a_trained_one(data, strategy, tmp_path):
    runs.run(CONFIG, data, tmp_path, strategy=strategy, should_stop=lambda: True)
    for step in (tmp_path / "checkpoints").iterdir():
        if step.is_dir():
            shutil.rmtree(step)
    with pytest.raises(jc.ArgumentError, match="has no checkpoint of a step yet"):
        runs.load_trained_model(tmp_path, data=data)


@pytest.mark.parametrize("width", [100_000, 8])
def test_a_config_of_another_width_is_compared_with_the_checkpoint_before_anything_is_allocated(
    whole, data, tmp_path, monkeypatch, width
):
    """At a width of 100,000 the network has 30 TB."""
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_kwargs": {"width": width}}))
    monkeypatch.setattr(
        sys.modules["jaxcnn.runs.single"],
        "init_state",
        lambda *a: pytest.fail("it allocated"),
    )
    for path in (False, True):
        with pytest.raises(jc.CheckpointError, match="is of another model") as error:
            runs.load_trained_model(folder, data=data, path=path)
        assert "\n" not in str(error.value)
        assert f"{width}]" in str(error.value)


def test_shapes_are_those_of_the_start(data):
    for changes in (
        {},
        {"optimizer": "adam"},
        {"optimizer": "lookahead", "subtract_mean": "none", "divide_std": True},
        {"model": "mlp", "model_kwargs": {}},
    ):
        config = jc.override(CONFIG, **changes)
        model, tx = runs.model_and_optimizer(config, 10)
        made, found = (
            jc.init_state(model, tx, config.train, data),
            state_shapes(model, tx, config.train, data),
        )
        assert jax.tree.structure(made) == jax.tree.structure(found)
        for mine, told in zip(jax.tree.leaves(made), jax.tree.leaves(found), strict=True):
            assert (mine.shape, mine.dtype) == (told.shape, told.dtype)


def test_a_refused_run_leaves_its_folder_free(data, strategy, tmp_path):
    """In a notebook a cell that was refused once is run again, by the same process."""
    jc.RunLog(tmp_path, jc.override(CONFIG, learning_rate=0.5))
    for _ in range(2):
        with pytest.raises(jc.ArgumentError, match="another config") as refused:
            runs.run(CONFIG, data, tmp_path, strategy=strategy)
        kept = refused  # as a notebook keeps the last traceback, and all that it refers to
    assert kept
    jc.Checkpoints(tmp_path / "checkpoints").close()
