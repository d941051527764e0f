"""The overfitting study as a user runs it: one change a setting, figures by their right names, the turn, the effect itself."""

import csv
import shutil
import signal

import numpy as np
import pytest
from scripts import refuses

import jaxcnn as jc
from experiments import overfitting
from jaxcnn import tables
from jaxcnn.config import as_dict

pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.quick_compilation]

NAMES = ["all", "few", "together"]
TINY = [
    "--settings",
    *NAMES,
    "--max-train-examples",
    "32",
    "--width",
    "2",
    "--hidden",
    "8",
    "--num-steps",
    "40",
    "--eval-every",
    "4",
]
TINY += ["--num-seeds", "2", "--learning-rate", "0.03"]
SPREAD = ("train_loss", "validation_loss", "loss_gap", "test_loss")
SPREAD += ("train_error", "validation_error", "error_gap", "test_error")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "overfitting"
    assert overfitting.main([*TINY, "--out", str(out)]) == 0
    return out


def table(out):
    with (out / "table.csv").open() as file:
        return {line["setting"]: line for line in csv.DictReader(file)}


@pytest.mark.slow
def test_the_study_leaves_tables_figures_and_runs(study):
    lines = table(study)
    assert list(lines) == ["all images", "few images", "early stopping", "all four together"]
    first = lines["few images"]
    assert list(first)[:3] == ["setting", "images", "seeds"]
    for key in (*SPREAD, "test_loss_change", "test_error_change"):
        assert {key, f"{key}_std", f"{key}_ci95"} <= set(first), key
    assert {line["seeds"] for line in lines.values()} == {"2"}
    assert {line["images"] for name, line in lines.items() if name != "all images"} == {"32"}
    assert lines["all images"]["images"] == "1000"
    for name in ("curves.png", "gap.png"):
        assert (study / name).read_bytes().startswith(b"\x89PNG")
    folders = {path.parent.name for path in study.glob("*/result.json")}
    assert folders == {f"{name}-seed{seed}" for name in NAMES for seed in (0, 1)}


@pytest.mark.slow
def test_the_table_for_readers_has_intervals_and_the_protocol(study):
    text = (study / "table.md").read_text()
    header = text.splitlines()[0]
    assert "validation_error |" in header
    assert "_std" not in header
    assert "_ci95" not in header
    few = table(study)["few images"]
    mean, half = float(few["validation_loss"]), float(few["validation_loss_ci95"])
    assert any(
        f"{mean:.{places}f} ± {half:.{places}f}" in text for places in (2, 3)
    )  # three digits
    for said in (
        "437 images for validation and 360 for the test",
        "the test split chose nothing",
        "one clean pass",
    ):
        assert said in text


CHANGES = {
    "all": {"max_train_examples": (100, None)},
    "few": {},
    "augmentation": {"train.augment.padding": (0, 1)},
    "weight-decay": {"optimizer.weight_decay": (0.0, 0.01)},
    "dropout": {"model_kwargs.dropout": (None, 0.5)},
    "batch-norm": {"model_kwargs.batch_norm": (None, True)},
}
CHANGES["together"] = {
    key: value for name in list(CHANGES)[2:] for key, value in CHANGES[name].items()
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_is_one_change(name):
    made = overfitting.configs(overfitting.Options())
    few, other = flat(made["few-seed1"]), flat(made[f"{name}-seed1"])
    differ = {key for key in few | other if few.get(key) != other.get(key)}
    assert {key: (few.get(key), other.get(key)) for key in differ} == CHANGES[name]
    assert overfitting.setting(made[f"{name}-seed1"]) == name
    assert (few["train.train_metrics"], few["train.eval_split"]) == ("clean", "validation")
    assert (few["train.augment.flip"], few["optimizer.schedule"]) == (False, "constant")


def flat(config):
    """The config's values by their dotted names."""

    def items(values, prefix):
        for name, value in values.items():
            if isinstance(value, dict):
                yield from items(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(items(as_dict(config), ""))


@pytest.mark.slow
def test_the_tables_numbers_are_those_of_the_last_rows_by_their_right_names(study):
    for name in NAMES:
        line = table(study)[overfitting.TITLES[name]]
        ends = [jc.read_metrics(study / f"{name}-seed{seed}")[-1] for seed in (0, 1)]
        for what in ("loss", "error"):
            train, validation, test = (
                [end[f"{part}_{what}"] for end in ends] for part in ("train", "eval", "heldout")
            )
            assert float(line[f"train_{what}"]) == pytest.approx(np.mean(train), abs=1e-4)
            assert float(line[f"validation_{what}"]) == pytest.approx(np.mean(validation), abs=1e-4)
            assert float(line[f"test_{what}"]) == pytest.approx(np.mean(test), abs=1e-4)
            gaps = np.subtract(validation, train)
            assert float(line[f"{what}_gap"]) == pytest.approx(np.mean(gaps), abs=1e-4)
            # Student's t for one degree of freedom is 12.706
            half = 12.7062 * np.std(gaps, ddof=1) / 2**0.5
            assert float(line[f"{what}_gap_ci95"]) == pytest.approx(half, abs=1e-3)


@pytest.mark.slow
def test_changes_are_against_few_images_paired_by_seed(study):
    def ends(name):
        return np.array(
            [jc.read_metrics(study / f"{name}-seed{seed}")[-1]["heldout_loss"] for seed in (0, 1)]
        )

    for name in ("all", "together"):
        change, line = ends(name) - ends("few"), table(study)[overfitting.TITLES[name]]
        assert float(line["test_loss_change"]) == pytest.approx(change.mean(), abs=1e-4)
        assert float(line["test_loss_change_std"]) == pytest.approx(change.std(ddof=1), abs=1e-4)
    assert float(table(study)["few images"]["test_loss_change"]) == 0


@pytest.mark.slow
def test_early_stopping_is_few_images_read_at_the_turning_point(study):
    runs = [jc.read_metrics(study / f"few-seed{seed}") for seed in (0, 1)]
    turns = [tables.turning_point(rows) for rows in runs]
    assert any(turns), "the case shows nothing: no seed turns"
    rows = [turn or rows[-1] for turn, rows in zip(turns, runs, strict=True)]
    line = table(study)["early stopping"]
    for ours, theirs in (("train", "train"), ("validation", "eval"), ("test", "heldout")):
        for what in ("loss", "error"):
            expected = np.mean([row[f"{theirs}_{what}"] for row in rows])
            assert float(line[f"{ours}_{what}"]) == pytest.approx(expected, abs=1e-4)
    steps = [turn["step"] for turn in turns if turn]
    assert int(line["turned"]) == len(steps)
    assert float(line["turn_step"]) == pytest.approx(np.mean(steps))
    assert float(line["turn_epoch"]) == pytest.approx(np.mean(steps))  # 32 images, 32 a step
    assert float(line["validation_loss"]) < float(table(study)["few images"]["validation_loss"])


@pytest.mark.slow
def test_held_out_figures_are_those_of_the_last_state_on_the_test_split(study):
    folder = study / "together-seed1"
    config, data = jc.ExperimentConfig.load(folder), jc.load_dataset("digits", validation=437)
    model = jc.create_model("convnet", 10, **config.model_kwargs)
    few = jc.subset(data, 32, seed=0)
    with jc.Checkpoints(folder / "checkpoints") as saved:
        state = saved.restore(
            jc.init_state(model, jc.create_optimizer(config.optimizer), config.train, few)
        )
    assert state is not None
    last = jc.read_metrics(folder)[-1]
    assert int(state.step) == last["step"] == 40
    for split, name in ((data.test, "heldout"), (data.validation, "eval"), (few.train, "train")):
        sums = jc.evaluate(model, state, split)
        assert last[f"{name}_loss"] == pytest.approx(sums.mean_loss, rel=1e-6)
        assert last[f"{name}_error"] == pytest.approx(sums.error_percent)
    assert (last["images"], last["heldout_images"]) == (32, 360)


@pytest.mark.slow
def test_curves_mark_the_turn_and_stop_early(study):
    found = overfitting.groups(overfitting.runs.finished_runs(study))
    few, early = (
        overfitting.panel(name, found[name], found["few"]) for name in ("few", "early-stopping")
    )
    turn = float(table(study)["few images"]["turn_step"])
    assert [(mark.at, mark.axis, mark.label) for mark in few.marks] == [
        (turn, "x", f"epoch {turn:.0f}")
    ]
    assert early.marks[0].label == f"epoch {turn:.0f}"
    validation = next(line for line in early.lines if line.label == "validation")
    assert list(validation.x) == [x for x in few.lines[0].x if x is not None and x <= turn]
    assert [line.dashed for line in few.lines] == [False, True]


@pytest.mark.slow
def test_what_is_there_is_not_run_again_and_plot_only_trains_nothing(study, tmp_path, monkeypatch):
    shutil.copytree(study, tmp_path / "out")
    before = table(study)
    for name in ("table.csv", "curves.png", "gap.png"):
        (tmp_path / "out" / name).unlink()
    monkeypatch.setattr("jaxcnn.runs.single.train", lambda *a, **k: pytest.fail("it trained"))
    assert overfitting.main([*TINY, "--out", str(tmp_path / "out")]) == 0
    assert table(tmp_path / "out") == before
    shutil.rmtree(tmp_path / "out" / "few-seed1")
    assert overfitting.main(["--plot-only", "--out", str(tmp_path / "out")]) == 0
    left = table(tmp_path / "out")
    assert left["few images"]["seeds"] == "1"
    assert left["few images"]["validation_loss_ci95"] == ""
    for folder in ("all-seed0", "all-seed1", "few-seed0"):
        shutil.rmtree(tmp_path / "out" / folder)
    assert (
        overfitting.main(["--plot-only", "--out", str(tmp_path / "out")]) == 0
    )  # without `few` there is no change
    assert [(name, line["test_loss_change"]) for name, line in table(tmp_path / "out").items()] == [
        ("all four together", "")
    ]


@pytest.mark.slow
def test_a_stopped_study_goes_on_to_the_same_rows(study, tmp_path, monkeypatch, capsys):
    asked = []

    class Stopping(overfitting.cli.GracefulShutdown):
        def __call__(self):
            asked.append(self)
            if len(asked) == 7:
                signal.raise_signal(signal.SIGINT)
            return super().__call__()

    args = [*TINY, "--settings", "together", "--num-seeds", "1", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr("jaxcnn.cli.GracefulShutdown", Stopping)
        assert overfitting.main(args) == 130
    assert "resumes from here" in capsys.readouterr().err
    assert not (tmp_path / "together-seed0" / "result.json").exists()
    assert overfitting.main(args) == 0
    rows, whole = (
        [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
            for row in jc.read_metrics(path)
        ]
        for path in (tmp_path / "together-seed0", study / "together-seed0")
    )
    assert rows == whole


@pytest.mark.slow
def test_few_images_open_a_gap_that_all_images_do_not(tmp_path):
    """The effect on a case smaller than the quick preset."""
    args = [
        "--settings",
        "all",
        "few",
        "--num-steps",
        "200",
        "--eval-every",
        "50",
        "--num-seeds",
        "1",
        "--hidden",
        "32",
    ]
    assert overfitting.main([*args, "--out", str(tmp_path)]) == 0
    few, every = table(tmp_path)["few images"], table(tmp_path)["all images"]
    assert float(few["train_error"]) == 0
    assert float(few["loss_gap"]) > float(every["loss_gap"]) + 0.2
    assert float(few["error_gap"]) > float(every["error_gap"]) + 4
    assert float(few["test_error"]) > float(every["test_error"]) + 4


@pytest.mark.slow
def test_diverged_runs_are_left_out_and_told(study, tmp_path, capsys):
    shutil.copytree(study / "few-seed0", tmp_path / "few-seed0")
    args = [
        *TINY,
        "--settings",
        "all",
        "--num-seeds",
        "1",
        "--optimizer",
        "sgd",
        "--learning-rate",
        "1e30",
        "--out",
        str(tmp_path),
    ]
    assert overfitting.main(args) == 0
    assert list(table(tmp_path)) == ["few images", "early stopping"]
    assert "seed 0 diverged at step 4" in (tmp_path / "table.md").read_text()
    shutil.rmtree(tmp_path / "few-seed0")
    with pytest.raises(SystemExit) as exit:
        overfitting.main(["--plot-only", "--out", str(tmp_path)])
    assert exit.value.code == 2
    assert "So did every run" in capsys.readouterr().err


MISTAKES = [
    (["--settings", "dropuot"], "setting is 'dropuot'; expected one of"),
    (["--settings", "dropuot"], "did you mean 'dropout'?"),
    (["--settings"], "settings is empty; write --settings all few"),
    (["--num-seeds", "0"], "--num-seeds is 0; expected a whole number of 1 to 1000"),
    (
        ["--max-train-examples", "5000"],
        "cannot keep 5000 training images; expected an integer in 1..1000",
    ),
    (["--max-train-examples", "0"], "--max-train-examples is 0"),
    (["--max-train-examples", "16"], "--batch-size is 32, more than the 16 training images"),
    (["--num-validation", "0"], "eval_split is 'validation' but none is held out"),
    (["--num-validation", "1437"], "1437"),
    (["--dropout", "1"], "dropout is 1.0; expected at least 0 and below 1"),
    (["--dropout", "-0.5"], "dropout is -0.5; expected at least 0 and below 1"),
    (["--dropout", "nan"], "--dropout is nan; expected a finite number"),
    (["--dropout", "0"], "dropout is 0, so dropout would change nothing; write --dropout 0.5"),
    (
        ["--weight-decay", "0"],
        "--weight-decay is 0, so weight-decay would change nothing; write --weight-decay 0.01",
    ),
    (["--weight-decay", "-1"], "--weight-decay is -1.0; expected a finite number of at least 0"),
    (["--padding", "0"], "padding is 0, so augmentation would change nothing; write --padding 1"),
    (["--learning-rate", "nan"], "--learning-rate is nan; expected a finite number"),
    (["--learning-rate", "inf"], "--learning-rate is inf"),
    (["--learning-rate", "0"], "--learning-rate is 0.0"),
    (["--learning-rate", "-0.1"], "--learning-rate is -0.1"),
    (["--num-steps", "0"], "--num-steps is 0"),
    (["--eval-every", "0"], "--eval-every is 0"),
    (["--width", "0"], "width is 0"),
    (["--hidden", "0"], "hidden is 0"),
    (["--optimizer", "adma"], "optimizer is 'adma'"),
    (["--schedule", "constnat"], "did you mean 'constant'?"),
    (["--dataset", "digit"], "digits"),
    (["--preset", "quik"], "did you mean 'quick'?"),
    (["--plot-only", "--out", "/nowhere"], "/nowhere holds no finished run"),
]


@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_two(args, says, tmp_path, capsys, monkeypatch):
    args = args if "--out" in args else [*args, "--out", str(tmp_path / "out")]
    refuses(overfitting.main, args, says, capsys, monkeypatch)


def test_presets_are_told_apart_by_their_folders_and_take_equal_steps():
    assert overfitting.PRESETS["quick"].out != overfitting.PRESETS["mnist"].out
    for options in overfitting.PRESETS.values():
        made = overfitting.configs(options)
        assert {
            (
                config.train.num_steps,
                config.train.batch_size,
                config.optimizer.learning_rate,
                config.optimizer.name,
                config.optimizer.schedule,
            )
            for config in made.values()
        } == {
            (
                options.num_steps,
                options.batch_size,
                options.learning_rate,
                options.optimizer,
                "constant",
            )
        }
        assert list(made)[:7] == [f"{name}-seed0" for name in CHANGES]
