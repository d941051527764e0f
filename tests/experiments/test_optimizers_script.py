"""The comparison of optimisers as a user runs it: protocol, choice of the rate, table, figures, mistakes."""

import csv
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from scripts import on_one_device, refuses

import jaxcnn as jc
from experiments import optimizers
from jaxcnn import runs

METHODS, RATES, STEPS = ("sgd", "adam", "schedule-free"), ("0.01", "10000.0"), 6
TINY = [
    "--model",
    "mlp",
    "--hidden",
    "4",
    "--methods",
    *METHODS,
    "--rates",
    *RATES,
    "--num-steps",
    str(STEPS),
    "--eval-every",
    "2",
]
TINY += ["--batch-size", "32", "--tune-seeds", "2", "--num-seeds", "2", "--target", "99"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "optimizers"
    with on_one_device():
        assert optimizers.main([*TINY, "--out", str(out)]) == 0
    return out


def lines(out):
    with (out / "table.csv").open() as file:
        return {line["method"]: line for line in csv.DictReader(file)}


def made(
    method="sgd",
    lr=0.1,
    seed=0,
    *,
    error=50.0,
    loss: float | None = 1.0,
    errors=(),
    status="finished",
    speeds=(),
):
    """A run that is over, as if read from its folder; `errors` are those of its rows, `speeds` their images a second."""
    config = jc.override(
        jc.ExperimentConfig(), optimizer=method, learning_rate=lr, seed=seed, batch_size=10
    )
    reason = {} if status == "finished" else {"reason": "train_loss is inf"}
    result = (
        dict.fromkeys(optimizers.KEYS, loss)
        | {"status": status, "eval_error": error, "step": 1, "seconds": 1.0}
        | reason
    )
    rows = [{"step": 5 * i, "eval_error": e} for i, e in enumerate(errors, 1)]
    rows = rows or [{"images_per_second": speed} for speed in speeds]
    return runs.Run(config, result, rows)


@pytest.mark.slow
def test_the_study_leaves_tables_figures_and_runs(out):
    assert sorted(lines(out)) == sorted(METHODS)
    for name in ("sensitivity.png", "curves.png", "ranking.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG"), name
    trials = {
        f"{method}-{rate}-seed{seed}"
        for method in METHODS
        for rate in ("0.01", "10000")
        for seed in (1000, 1001)
    }
    assert {path.name for path in (out / "tune").iterdir()} == trials
    assert {path.name for path in (out / "final").iterdir()} == {
        f"{m}-seed{seed}" for m in METHODS for seed in (0, 1)
    }
    text = (out / "table.md").read_text()
    assert "mlp on digits, 6 steps of 32 images" in text
    assert "4 trials a method" in text
    assert "237 training images held out" in text
    assert "schedule-free: constant" in text


@pytest.mark.slow
def test_tuning_sees_the_validation_split_and_the_final_runs_the_test_split_from_other_seeds(out):
    tuning, final = (
        [jc.ExperimentConfig.load(folder) for folder in (out / stage).iterdir()]
        for stage in ("tune", "final")
    )
    assert {config.train.eval_split for config in tuning} == {"validation"}
    assert {config.train.eval_split for config in final} == {"test"}
    assert not {config.train.seed for config in tuning} & {config.train.seed for config in final}
    assert {config.num_validation for config in tuning + final} == {
        237
    }  # nobody trains on what chose the rates


def test_every_method_has_the_same_budget_and_setting():
    options = optimizers.Options()
    trials = optimizers.trial_configs(options)
    names = [config.optimizer.name for config in trials.values()]
    assert set(names) == set(jc.OPTIMIZERS)
    assert {names.count(name) for name in names} == {5}
    shared = {
        (
            config.model,
            config.train.num_steps,
            config.train.batch_size,
            config.train.augment,
            config.optimizer.momentum,
            config.num_validation,
        )
        for config in trials.values()
    }
    assert len(shared) == 1
    tuned = [config.optimizer for config in trials.values()]
    assert {tx.name for tx in tuned if tx.schedule != "cosine"} == {"schedule-free"}
    decoupled = {tx.name for tx in tuned if tx.weight_decay != options.weight_decay}
    assert decoupled == {"adamw", "lion", "lamb", "prodigy", "muon"}
    decays = {tx.weight_decay for tx in tuned if tx.name in decoupled}
    assert decays == {options.decoupled_decay}
    grid = [tx.learning_rate for tx in tuned if tx.name == "adam"]
    assert tuple(grid) == jc.OPTIMIZERS["adam"].grid


def test_presets_differ_in_data_and_network():
    config = next(iter(optimizers.trial_configs(optimizers.PRESETS["mnist"]).values()))
    assert (config.dataset, config.model, config.train.batch_size, config.num_validation) == (
        "mnist",
        "lenet5-relu",
        128,
        5000,
    )
    options = {model: optimizers.Options(model=model, hidden=4) for model in ("convnet", "mlp")}
    nets = {model: optimizers.config(of, "sgd").model_kwargs for model, of in options.items()}
    assert nets == {
        "convnet": {"hidden": 4, "dtype": "float32"},
        "mlp": {"hidden": [4, 4], "dtype": "float32"},
    }


@pytest.mark.slow
def test_diverged_trials_are_results_and_do_not_stop_the_study(out):
    for method in ("sgd", "schedule-free"):
        result = json.loads((out / "tune" / f"{method}-10000-seed1000" / "result.json").read_text())
        assert result["status"] == "diverged"
        assert lines(out)[method]["diverged_trials"] == "2 of 4"
        assert lines(out)[method]["best_learning_rate"] == "0.01"
        assert (
            f"{method} at 10000: mlp seed 1000 diverged at step 2" in (out / "table.md").read_text()
        )


@pytest.mark.slow
def test_the_tables_numbers_are_those_of_the_rows(out):
    for method, line in lines(out).items():
        rows = [jc.read_metrics(out / "final" / f"{method}-seed{seed}") for seed in (0, 1)]
        for key in optimizers.KEYS:
            last = [run[-1][key] for run in rows]
            assert float(line[key]) == pytest.approx(np.mean(last), abs=0.006), key
            # Student's t for one degree of freedom is 12.706
            half = 12.7062 * np.std(last, ddof=1) / 2**0.5
            assert float(line[f"{key}_ci95"]) == pytest.approx(half, abs=0.006), key
        times = [1000 * 32 / row["images_per_second"] for run in rows for row in run[1:]]
        assert float(line["ms_per_step"]) == pytest.approx(statistics.median(times), abs=0.006)
        assert line["steps_to_target"] == "2"
        assert line["best_at_grid_edge"] == "yes"
        assert line["seeds"] == "2"
    errors = [float(line["eval_error"]) for line in lines(out).values()]
    assert errors == sorted(errors)


def test_the_best_rate_has_the_least_validation_error_of_equals_the_least_loss():
    trials = [
        made(lr=0.1, error=9.0, loss=0.2),
        made(lr=0.3, error=5.0, loss=0.9),
        made(lr=1.0, error=5.0, loss=0.8),
    ]
    assert optimizers.best_rate(trials) == 1.0
    assert (
        optimizers.best_rate([*trials, made(lr=1.0, seed=1, error=7.0, loss=0.1)]) == 0.3
    )  # the mean over seeds counts
    line = optimizers.table_row("sgd", trials, [made(lr=1.0, error=2.0)], target=5)
    assert (line["best_learning_rate"], line["best_at_grid_edge"], line["diverged_trials"]) == (
        "1",
        "yes",
        "0 of 3",
    )
    inner = optimizers.table_row(
        "sgd", [*trials[1:], made(lr=3.0, error=8.0)], [made(lr=1.0)], target=5
    )
    assert (inner["best_learning_rate"], inner["best_at_grid_edge"]) == ("1", None)


@pytest.mark.parametrize("lost", [{"status": "diverged"}, {"loss": None}])
def test_a_rate_with_a_lost_trial_is_never_chosen(lost):
    trials = [
        made(lr=0.1, error=9.0),
        made(lr=0.3, error=1.0),
        made(lr=0.3, seed=1, error=1.0, **lost),
    ]
    assert optimizers.best_rate(trials) == 0.1
    assert optimizers.scores(trials)[0.3] is None


def test_a_method_that_never_trained_has_no_final_run_and_the_last_row():
    trials = {"adam": [made("adam", status="diverged")], "sgd": [made("sgd")]}
    rates = {name: optimizers.best_rate(all_runs) for name, all_runs in trials.items()}
    options = optimizers.Options(methods=("adam", "sgd"), num_seeds=1)
    assert list(optimizers.final_configs(options, rates)) == ["final/sgd-seed0"]
    first, last = optimizers.table_rows(trials, {"sgd": [made("sgd", errors=[50.0])]}, target=60)
    assert (first["method"], first["steps_to_target"], last["method"]) == ("sgd", 5.0, "adam")
    assert [
        last[key]
        for key in (
            "best_learning_rate",
            "best_at_grid_edge",
            "eval_error",
            "steps_to_target",
            "ms_per_step",
        )
    ] == [None] * 5
    panel = optimizers.ranking_panel(["sgd", "adam"], {"sgd": [made("sgd")]})
    assert [y for _, y in panel.crosses] == [1]
    figure = optimizers.sensitivity_figure(trials, "rates")
    assert next(text.get_text() for text in figure.axes[0].texts) == "×"
    assert figure.axes[1].get_ylabel() == "validation error (%)"


def test_every_method_has_a_row_and_only_the_first_have_panels():
    names = [f"method{i}" for i in range(optimizers.MAX_PANELS + 2)]
    trials = {name: [made(name, lr=0.1 * (i + 1), error=0.0)] for i, name in enumerate(names)}
    axis = optimizers.sensitivity_figure(trials, "rates").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == names
    assert len(axis.texts) == len(names)  # Each has one rate; all other cells are empty.
    panels = optimizers.training_panels({name: [made(name)] for name in names})
    assert len(panels) == optimizers.MAX_PANELS
    assert all(len(panel.lines) == len(names) for panel in panels)


def test_steps_to_the_target_are_of_the_first_row_below_it():
    slow, fast, never = (
        made(errors=[30.0, 5.1, 5.0]),
        made(errors=[5.0, 40.0, 3.0]),
        made(errors=[30.0, 20.0]),
    )
    assert optimizers.steps_to(5.0, [slow]) == 15
    assert optimizers.steps_to(5.0, [slow, fast]) == 10
    assert optimizers.steps_to(5.0, [slow, fast, never]) is None
    assert optimizers.steps_to(5.0, []) is None


def test_step_times_leave_out_the_first_rows_of_every_run():
    assert optimizers.step_time([made(speeds=[1, 1000, 500]), made(speeds=[1, 250])]) == 20.0
    assert optimizers.step_time([made(speeds=[1])]) is None


@pytest.mark.slow
def test_finished_runs_are_not_run_again_and_plot_only_trains_nothing(out, monkeypatch):
    monkeypatch.setattr("jaxcnn.runs.single.train", lambda *a, **k: pytest.fail("it trained"))
    before = (out / "table.csv").read_text()
    for name in ("table.csv", "curves.png"):
        (out / name).unlink()
    assert optimizers.main([*TINY, "--out", str(out)]) == 0
    assert (out / "table.csv").read_text() == before
    (out / "ranking.png").unlink()
    assert optimizers.main(["--plot-only", "--target", "99", "--out", str(out)]) == 0
    assert (out / "ranking.png").exists()
    assert (out / "table.csv").read_text() == before


MISTAKES = [
    (["--methods", "sgd", "adma"], "did you mean 'adam'"),
    (["--methods"], "methods is empty"),
    (["--rates", "nan"], "--rates is nan; expected a finite number"),
    (["--rates", "0.1", "inf"], "--rates is inf"),
    (["--rates", "0"], "learning_rate is 0"),
    (["--rates", "-0.1"], "-0.1"),
    (["--num-seeds", "0"], "num-seeds is 0"),
    (["--num-seeds", "1001"], "--num-seeds is 1001; expected a whole number of 1 to 1000"),
    (["--tune-seeds", "0"], "--tune-seeds is 0; expected a whole number of 1 to 1000"),
    (["--num-validation", "0"], "none is held out"),
    (["--num-validation", "1437"], "cannot hold out 1437 images"),
    (["--batch-size", "4096"], "--batch-size is 4096, more than the 1200 training images"),
    (["--batch-size", "100"], "8 devices cannot share equally"),
    (["--num-steps", "0"], "--num-steps is 0"),
    (["--eval-every", "0"], "--eval-every is 0"),
    (["--momentum", "1"], "momentum is 1"),
    (["--decoupled-decay", "-1"], "--weight-decay is -1"),
    (["--target", "nan"], "target is nan"),
    (["--schedule", "cosin"], "cosin"),
    (["--model", "lenet5", "--width", "4"], "option of lenet5"),
    (["--model", "covnet"], "convnet"),
    (["--dataset", "digitz"], "digits"),
    (["--preset", "fast"], "--preset is 'fast'"),
    (["--plot-only", "--out", "/nowhere"], "holds no finished run"),
    (["--out", "/proc/nothing"], "cannot write in /proc/nothing"),
]


@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_two(args, says, tmp_path, capsys, monkeypatch):
    args = args if "--out" in args else [*args, "--out", str(tmp_path / "out")]
    args = args if "--methods" in args else ["--methods", "adamw", *args]
    refuses(optimizers.main, args, says, capsys, monkeypatch)
    assert not list(Path(tmp_path).rglob("metrics.jsonl"))
