"""The study of searches as a user runs it: budgets, choices, statistics, and what a killed one leaves."""

import csv
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scripts import refuses

import jaxcnn as jc
from experiments.search.__main__ import main
from experiments.search.figures import _lowest
from experiments.search.options import Options, configs
from experiments.search.plan import TITLES, Plan, choice
from experiments.search.results import (
    chosen_rows,
    compilation_seconds,
    notes,
    rank_correlation,
    table_rows,
)
from experiments.search.study import Study, Trial, _describe, read_study
from jaxcnn import cli, run_log, runs
from jaxcnn.config import as_dict
from jaxcnn.search import Evaluation

stats: Any = scipy_stats
pytestmark = pytest.mark.usefixtures("one_device")
TINY = ["--num-steps", "3", "--min-steps", "1", "--batch-size", "8", "--max-train-examples", "64"]
TINY += ["--convolutions", "1", "--widths", "2", "--optimizers", "momentum", "--paddings", "0"]
TINY += ["--num-validation", "100", "--methods", "halving", "hyperband"]
RECORDS = ["table.csv", "chosen.csv", "trials.jsonl", "search.json"]


@pytest.mark.parametrize("numbers", [(270, 30, 3), (81, 1, 3), (64, 1, 2), (256, 4, 4), (5, 5, 3)])
def test_every_method_is_within_its_budget(numbers):
    plan = Plan(*numbers)
    for method in TITLES:
        budget = plan.budget * (2 if method == "random-2x" else 1)
        configs = list(range(plan.num_configs(method)))
        evaluations = plan.search(method, configs, lambda config, num_steps: 1 / (1 + config))
        assert evaluations[-1].spent == plan.cost(method) <= budget
        # Another configuration would not fit.
        assert budget - plan.cost(method) < plan.max_steps
        assert {each.index for each in evaluations} == set(configs)


def test_methods_and_seeds_share_their_first_configurations():
    options = Options()
    few, many = (configs(options, 3, count) for count in (7, 31))
    assert many[:7] == few
    assert len({runs.run_name(config) for config in many}) == 31
    assert configs(options, 4, 1) != few[:1]
    for config in many:
        assert config.train.eval_split == "validation"
        assert (config.optimizer.schedule, config.train.num_steps) == ("cosine", 270)
        assert 1e-4 <= config.optimizer.learning_rate <= 1
    programs = {
        (*config.model_kwargs.values(), config.optimizer.name, config.train.augment.padding)
        for config in many
    }
    assert len(programs) <= 16


def test_rank_correlation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 8, 15).astype(float), rng.normal(size=15)
        expected = stats.spearmanr(a, b).statistic
        assert rank_correlation(a.tolist(), b.tolist()) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(rank_correlation([5.0, 5.0], [1.0, 2.0]))
    diverged = [1.0, math.nan, 2.0, math.nan]
    expected = stats.spearmanr([1, 9, 2, 9], [4, 3, 2, 1]).statistic
    assert rank_correlation(diverged, [4, 3, 2, 1]) == pytest.approx(expected)


def test_the_choice_is_made_among_those_that_were_trained_to_the_end():
    evaluations = [Evaluation(0, 0, 0, 3, 1.0, 3), Evaluation(1, 0, 0, 9, 2.0, 12)]
    evaluations += [Evaluation(2, 0, 0, 9, 2.0, 21), Evaluation(3, 0, 0, 9, math.nan, 30)]
    assert choice(evaluations, 9).index == 1


def test_the_line_of_a_search_has_the_error_of_the_choice():
    evaluations = [Evaluation(0, 0, 0, 3, 1.0, 3), Evaluation(1, 0, 0, 9, 2.0, 12)]
    line = _describe("halving, seed 0", evaluations, 9)
    assert line == "halving, seed 0  2 configurations, 12 steps, validation error  2.00%"


def made_study(errors):
    """A study of given final errors by seed and method, (validation, test)."""
    config = configs(Options(), 0, 1)[0]
    trials, searches = {}, {method: {} for method in errors[0]}
    for seed, by_method in enumerate(errors):
        trials[seed] = []
        for index, (method, (validation, test)) in enumerate(by_method.items()):
            trials[seed].append(Trial(config, [[270, validation, 1.0]], test))
            searches[method][seed] = [Evaluation(index, 0, 0, 270, float(validation), 270)]
    return Study(Plan(270, 30, 3), trials, searches)


def test_differences_are_paired_by_seed():
    """Against scipy's paired t interval."""
    rng = np.random.default_rng(1)
    random, halving = rng.normal(5, 2, (4, 2)), rng.normal(4, 1, (4, 2))
    study = made_study(
        [
            {"random": tuple(a), "halving": tuple(b)}
            for a, b in zip(random.tolist(), halving.tolist(), strict=True)
        ]
    )
    lines = {line["method"]: line for line in table_rows(study)}
    for place, split in enumerate(("validation", "test")):
        assert lines["halving"][f"{split}_error"] == pytest.approx(halving[:, place].mean())
        interval = stats.ttest_rel(halving[:, place], random[:, place]).confidence_interval(0.95)
        mean, ci95 = (lines["halving"][f"{split}_minus_random{end}"] for end in ("", "_ci95"))
        assert (mean - ci95, mean + ci95) == pytest.approx((interval.low, interval.high))
        assert lines["random"][f"{split}_minus_random"] is None


def test_a_seed_whose_choice_diverged_has_no_mean():
    study = made_study([{"random": (5.0, 4.0)}, {"random": (math.nan, None)}])
    (line,) = table_rows(study)
    assert line["validation_error"] is None
    assert line["test_error"] is None
    # The table of choices has one form for both errors, too.
    assert [(line["validation_error"], line["test_error"]) for line in chosen_rows(study)] == [(5.0, 4.0), (None, None)]  # fmt: skip


def test_one_program_is_not_plural():
    rows = [[step, 5.0, 1.0] for step in (30, 90, 270)]
    trial = Trial(configs(Options(), 0, 1)[0], rows, 4.0)
    searches = {"random": {0: [Evaluation(0, 0, 0, 270, 5.0, 270)]}}
    study = Study(Plan(270, 30, 3), {0: [trial]}, searches)
    assert "Compilation of 1 program took" in notes(study)[-1]


def test_the_lowest_error_so_far_is_that_of_a_plain_loop():
    errors = [(30, math.nan), (60, 50.0), (120, 60.0), (270, 20.0)]
    evaluations = [Evaluation(0, 0, 0, 1, error, spent) for spent, error in errors]
    found = [_lowest(evaluations, spent) for spent in (29, 30, 60, 119, 120, 269, 270, 999)]
    assert found == [None, None, 50.0, 50.0, 50.0, 50.0, 20.0, 20.0]


def test_compilation_is_the_first_row_of_each_program_and_no_other():
    one, two = (configs(Options(), seed, 1)[0] for seed in (0, 1))
    two = jc.override(one, padding=1 - one.train.augment.padding)
    rows = [(one, 3.0), (one, 0.2), (two, 2.5), (two, 0.1), (one, 0.3)]
    trials = [Trial(config, [[30, 1.0, first], [60, 1.0, 0.5]], None) for config, first in rows]
    study = Study(Plan(270, 30, 3), {0: trials}, {})
    seconds, programs, total = compilation_seconds(study)
    assert (programs, total) == (2, pytest.approx(8.6))
    assert seconds == pytest.approx(3.0 - 0.1 + 2.5 - 0.1)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("search") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jc, "evaluate", counted(jc.evaluate))
        assert main([*TINY, "--num-seeds", "1", "--out", str(out)]) == 0
        calls = list(jc.evaluate.calls)
    return out, calls


def counted(function):
    def call(*args, **kwargs):
        call.calls.append(args)
        return function(*args, **kwargs)

    call.calls = []
    return call


@pytest.mark.slow
def test_the_study_leaves_tables_figures_and_paused_runs(study):
    out, calls = study
    with (out / "table.csv").open() as file:
        lines = {line["method"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["random", "halving", "hyperband"]
    for line in lines.values():
        assert 0 <= float(line["validation_error"]) <= 100
        assert 0 <= float(line["test_error"]) <= 100
    for name in ("budget.png", "brackets.png", "space.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    trials = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    ends = [trial["rows"][-1][0] for trial in trials]
    assert set(ends) == {1, 3}
    # Those that paused are not finished, and have computed no step more.
    for trial in trials:
        is_finished = trial["rows"][-1][0] == 3
        assert (out / trial["name"] / "result.json").exists() == is_finished
    # The test split is evaluated for the chosen ones alone.
    with (out / "chosen.csv").open() as file:
        chosen = list(csv.DictReader(file))
    tested = [trial for trial in trials if trial["test_error"] is not None]
    assert len(calls) == len(tested) == len({line["learning_rate"] for line in chosen})
    for line in chosen:
        (trial,) = [t for t in tested if t["config"]["optimizer"]["learning_rate"] == pytest.approx(float(line["learning_rate"]), rel=1e-5)]  # fmt: skip
        finished = runs.load_trained_model(out / trial["name"])
        split = jc.load_dataset("digits", validation=100).test
        error = jc.evaluate(finished.model, finished.last, split).error_percent
        assert float(line["test_error"]) == pytest.approx(error, rel=1e-5)


@pytest.mark.slow
def test_a_study_that_is_stopped_leaves_the_same_tables(study, tmp_path, monkeypatch):
    expected, _ = study
    stops = itertools.count(1)

    class Stopping(cli.GracefulShutdown):
        """Stops at every fifth question, and stays so."""

        is_stopped = False

        def __call__(self):
            self.is_stopped = self.is_stopped or next(stops) % 5 == 0
            return self.is_stopped

    args = [*TINY, "--num-seeds", "1", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(cli, "GracefulShutdown", Stopping)
        for _ in range(2):
            main(args)
            assert not (tmp_path / "table.csv").exists()
    assert main(args) == 0
    for name in RECORDS:
        one, two = ((out / name).read_text() for out in (expected, tmp_path))
        assert without_seconds(one) == without_seconds(two)
    before = {name: (tmp_path / name).read_bytes() for name in [*RECORDS, "table.md"]}
    assert main(args) == 0
    assert main([*args, "--plot-only"]) == 0
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def without_seconds(text):
    """The text of a record without the seconds of rows."""
    if not text.startswith('{"seed"'):
        return text
    lines = [json.loads(line) for line in text.splitlines()]
    return [line | {"rows": [row[:2] for row in line["rows"]]} for line in lines]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--num-steps", "300"], "--num-steps is 300; expected min_steps, 30, times a power of eta, 3: write --num-steps 270"),
        (["--min-steps", "271"], "--min-steps is 271, more than the 270 steps of a run; write --min-steps 30"),
        (["--widths", "8", "8"], "--widths is 8 8; expected each value once: write --widths 8"),
        (["--lowest-rate", "2"], "--lowest-rate is 2 and --highest-rate 1; expected the lower one first"),
        (["--num-validation", "0"], "--num-validation is 0"),
        (["--eta", "1"], "--eta is 1"),
        (["--optimizers", "adan"], "did you mean 'adam'"),
        (["--convolutions", "4"], "8x8"),
        (["--plot-only"], "holds no finished search"),
    ],
)  # fmt: skip
def test_mistakes_about_the_search(args, says, capsys, monkeypatch, tmp_path):
    refuses(main, [*args, "--out", str(tmp_path / "new")], says, capsys, monkeypatch)


def write_study(out, change):
    """A made study on disk, whose lines of trials `change` has changed."""
    plan, config = Plan(9, 1, 3), configs(Options(), 0, 1)[0]
    needed = max(map(plan.num_configs, ("random", "halving")))
    lines = [
        {"seed": seed, "index": index, "config": as_dict(config), "test_error": None,
         "rows": [[step, float(index), 1.0] for step in (1, 3, 9)]}
        for seed in (0, 1)
        for index in range(needed)
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in change(lines))
    (out / "trials.jsonl").write_text(text)
    settings = {"methods": ["random", "halving"], **plan._asdict()}
    (out / "search.json").write_text(json.dumps(settings))
    return needed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: lines[:-1], "30 trials of seed 1; expected the first 31 in their order"),
        (lambda lines: lines[1:], "30 trials of seed 0; expected"),
        (lambda lines: [*lines[:31], lines[31]], "1 trial of seed 1; expected"),
        (lambda lines: [*lines, *lines], "62 trials of seed 0; expected"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "31 trials of seed 0, out of order; exp"),
    ],
)
def test_a_record_that_is_cut_is_named(change, says, tmp_path):
    assert write_study(tmp_path, list) == 31
    study = read_study(tmp_path)
    assert [len(trials) for trials in study.trials.values()] == [31, 31]
    write_study(tmp_path, change)
    with pytest.raises(run_log.LogError, match=says) as error:
        read_study(tmp_path)
    assert "\n" not in str(error.value)
    assert "trials.jsonl" in str(error.value)


def test_a_record_without_a_row_that_the_search_needs_is_named():
    trial = Trial(configs(Options(), 0, 1)[0], [[30, 50.0, 1.0]], None)
    assert trial.error(30) == 50
    with pytest.raises(run_log.LogError, match=r"no row of step 90, which the search needs"):
        trial.error(90)
