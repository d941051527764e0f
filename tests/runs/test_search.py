"""Successive halving and Hyperband: the paper's table, plain loops, the budget, and runs that pause and resume to the bit."""

import itertools
import json
import math
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxcnn as jc
from jaxcnn import runs
from jaxcnn.runs import search
from jaxcnn.runs.search import Evaluation, LogUniform, Rung, Uniform

pytestmark = pytest.mark.usefixtures("one_device")

TABLE_1 = [
    [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
    [(34, 3), (11, 9), (3, 27), (1, 81)],
    [(15, 9), (5, 27), (1, 81)],
    [(8, 27), (2, 81)],
    [(5, 81)],
]
"""Li et al. 2018, table 1: n_i and r_i of the brackets s = 4, ..., 0 for R = 81 and eta = 3."""


def plain_hyperband(evaluate, max_steps, eta, s_max):
    """Algorithm 1 of Li et al. 2018 as printed, in floating point; the (index, steps) that it trains, and all errors."""
    trained, first, total = [], 0, (s_max + 1) * max_steps
    for s in range(s_max, -1, -1):
        n = math.ceil(total / max_steps * eta**s / (s + 1) - 1e-9)
        r = max_steps * float(eta) ** -s
        survivors = list(range(first, first + n))
        first += n
        for i in range(s + 1):
            n_i, r_i = math.floor(n * float(eta) ** -i + 1e-9), r * eta**i
            losses = {index: evaluate(index, round(r_i)) for index in survivors}
            trained += [(index, round(r_i)) for index in survivors]
            ranked = sorted(survivors, key=lambda index: losses[index])
            survivors = sorted(ranked[: math.floor(n_i / eta + 1e-9)])
    return trained


def test_the_brackets_are_those_of_the_papers_table():
    assert [[tuple(rung) for rung in rungs] for rungs in search.hyperband_brackets(81)] == TABLE_1


def test_steps_below_the_minimum_are_the_unit_of_the_table():
    scaled = [[(n, 10 * r) for n, r in rungs] for rungs in TABLE_1]
    found = search.hyperband_brackets(810, min_steps=10)
    assert [[tuple(rung) for rung in rungs] for rungs in found] == scaled


@pytest.mark.parametrize(("eta", "power"), [(2, 10), (3, 5), (5, 3), (10, 3), (7, 8)])
def test_exact_powers_have_all_their_brackets(eta, power):
    """Logarithms in floating point are below the whole number for 243 = 3^5, 125 = 5^3 and 1000 = 10^3."""
    assert len(search.hyperband_brackets(eta**power, eta)) == power + 1
    assert len(search.hyperband_brackets(eta**power - 1, eta)) == power


@given(
    max_steps=st.integers(1, 3000),
    eta=st.integers(2, 6),
    min_steps=st.integers(1, 40),
    num_configs=st.integers(1, 400),
    budget=st.integers(1, 30_000),
)
def test_no_budget_is_exceeded(max_steps, eta, min_steps, num_configs, budget):
    max_steps = max(max_steps, min_steps)
    brackets = search.hyperband_brackets(max_steps, eta, min_steps=min_steps)
    halving = search.halving_rungs(num_configs, max_steps, eta, min_steps=min_steps)
    s_max = len(brackets) - 1
    assert min_steps * eta**s_max <= max_steps < min_steps * eta ** (s_max + 1)
    for s, rungs in enumerate(reversed(brackets)):
        assert len(rungs) == s + 1
        # Each configuration from scratch is at most a rung of n_i r_i <= R n / eta^s steps.
        assert all(
            rung.num_configs * rung.num_steps * eta**s <= max_steps * rungs[0].num_configs
            for rung in rungs
        )
        assert rungs[0].num_configs == math.ceil((s_max + 1) * eta**s / (s + 1))
    for rungs in (*brackets, halving):
        assert rungs[-1].num_steps == max_steps
        assert rungs[0].num_steps >= min_steps
        for before, after in itertools.pairwise(rungs):
            assert after.num_configs == before.num_configs // eta >= 1
            assert before.num_steps == after.num_steps // eta
    budget = max(budget, max_steps)
    n = search.num_halving_configs(budget, max_steps, eta, min_steps=min_steps)
    within = search.halving_rungs(n, max_steps, eta, min_steps=min_steps)
    assert search.total_steps(within) <= budget
    more = search.halving_rungs(n + 1, max_steps, eta, min_steps=min_steps)
    assert search.total_steps(more) > budget or len(more) < len(within)


@given(
    max_steps=st.integers(1, 90),
    eta=st.integers(2, 4),
    num_configs=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_what_is_spent_is_what_training_computes(max_steps, eta, num_configs, seed):
    """A fake trainer keeps the step of each configuration, and computes only the steps that are added."""
    steps, computed = dict.fromkeys(range(num_configs), 0), []

    def evaluate(index, num_steps):
        assert num_steps > steps[index]
        computed.append(num_steps - steps[index])
        steps[index] = num_steps
        return float(np.random.default_rng((seed, index, num_steps)).random())

    evaluations = search.successive_halving(range(num_configs), evaluate, max_steps, eta)
    assert [each.spent for each in evaluations] == np.cumsum(computed).tolist()
    rungs = search.halving_rungs(num_configs, max_steps, eta)
    assert evaluations[-1].spent == search.total_steps(rungs)
    for number, rung in enumerate(rungs):
        at_rung = [each for each in evaluations if each.rung == number]
        assert (len(at_rung), {each.num_steps for each in at_rung}) == (
            rung.num_configs,
            {rung.num_steps},
        )


def noisy(index, num_steps):
    """Some error, with many ties."""
    return float(np.random.default_rng((index, num_steps)).integers(0, 6))


@pytest.mark.parametrize(("eta", "s_max"), [(3, 3), (2, 4), (4, 2), (3, 0)])
def test_hyperband_trains_what_the_algorithm_as_printed_trains(eta, s_max):
    max_steps = eta**s_max
    expected = plain_hyperband(noisy, max_steps, eta, s_max)
    count = sum(rungs[0].num_configs for rungs in search.hyperband_brackets(max_steps, eta))
    evaluations = search.hyperband(range(count + 5), noisy, max_steps, eta)
    assert [(each.index, each.num_steps) for each in evaluations] == expected
    assert evaluations[-1].spent == sum(
        map(search.total_steps, search.hyperband_brackets(max_steps, eta))
    )
    assert search.best(evaluations).error == min(noisy(*each) for each in expected)


def test_of_equal_errors_the_first_ones_continue():
    evaluations = search.successive_halving(list("abcdefghi"), lambda config, num_steps: 1.0, 9)
    assert [each.index for each in evaluations] == [*range(9), 0, 1, 2, 0]
    # The second rung's order is that of the configurations, and not that of the first rung's errors.
    errors = {1: [3, 2, 1, 9, 9, 9, 9, 9, 9], 3: [5, 5, 5], 9: [0, 0, 0]}
    evaluations = search.successive_halving(range(9), lambda i, r: errors[r][i], 9)
    assert [each.index for each in evaluations] == [*range(9), 0, 1, 2, 0]


def test_what_diverged_is_the_worst_and_no_crash():
    errors = [math.nan, 5.0, math.nan, math.inf, 4.0, 3.0, math.nan, math.nan, math.nan]
    evaluations = search.successive_halving(range(9), lambda i, r: errors[i], 9)
    assert [each.index for each in evaluations[9:]] == [1, 4, 5, 5]
    assert search.best(evaluations).index == 5
    lost = search.successive_halving(range(9), lambda i, r: math.nan, 9)
    assert [each.index for each in lost[9:]] == [0, 1, 2, 0]
    assert math.isnan(search.best(lost).error)
    assert search.best(lost)[:4] == (0, 0, 2, 9)


@given(seed=st.integers(0, 10_000), num_configs=st.integers(1, 200), eta=st.integers(2, 5))
def test_where_early_ranks_are_late_ranks_the_true_best_wins(seed, num_configs, eta):
    limits = np.random.default_rng(seed).permutation(num_configs) / num_configs
    # Curves that never cross: all fall by the same amount.
    evaluations = search.successive_halving(
        range(num_configs), lambda i, r: limits[i] + 1 / r, eta**4, eta
    )
    winner = search.best(evaluations)
    assert (limits[winner.index], winner.num_steps) == (0, eta**4)


def test_where_the_best_starts_slowly_halving_loses_and_the_last_bracket_does_not():
    """The case against halving, section 5 of the papers: the best at the end is the worst at first."""
    count = sum(rungs[0].num_configs for rungs in search.hyperband_brackets(27))
    slow = count - 1

    def evaluate(index, num_steps):
        return 0.0 if index == slow and num_steps == 27 else 1 + (index == slow)

    halving = search.successive_halving(range(count), evaluate, 27)
    assert search.best(halving).error == 1
    assert search.best(search.hyperband(range(count), evaluate, 27)).index == slow


def test_random_search_is_a_plain_loop():
    evaluations = search.random_search(range(7), noisy, 11)
    expected = [Evaluation(i, 0, 0, 11, noisy(i, 11), 11 * (i + 1)) for i in range(7)]
    assert evaluations == expected


def test_samples_have_their_distributions():
    space = {
        "a": LogUniform(1e-4, 1.0),
        "b": Uniform(-2.0, 3.0),
        "c": ("x", "y", "z"),
        "d": [None, 4],
    }
    rng = np.random.default_rng(0)
    drawn = [search.sample(space, rng) for _ in range(20_000)]
    assert list(drawn[0]) == list(space)
    logs, numbers = np.log10([each["a"] for each in drawn]), np.array([each["b"] for each in drawn])
    for values, low, high in ((logs, -4, 0), (numbers, -2, 3)):
        assert low <= values.min()
        assert values.max() <= high
        # Kolmogorov's distance from the uniform distribution: 1.63 / sqrt(n) is exceeded with a probability of 1%.
        uniform = np.sort((values - low) / (high - low))
        distance = np.abs(uniform - (np.arange(len(uniform)) + 0.5) / len(uniform)).max()
        assert distance < 1.63 / math.sqrt(len(uniform))
    for name in "cd":
        counts = [sum(each[name] == value for each in drawn) for value in space[name]]
        expected = len(drawn) / len(counts)
        assert all(abs(count - expected) < 4 * math.sqrt(expected) for count in counts)
    again = np.random.default_rng(0)
    assert [search.sample(space, again) for _ in range(5)] == drawn[:5]


def test_numpy_numbers_and_any_sequence_are_distributions():
    """The values are those of plain floats and tuples, which JSON can hold."""
    space = {
        "a": untyped.Uniform(np.float32(0), np.float32(0.5)),
        "b": untyped.LogUniform(np.int64(1), np.float64(8)),
        "c": range(3, 9),
    }
    plain = {"a": Uniform(0.0, 0.5), "b": LogUniform(1.0, 8.0), "c": (3, 4, 5, 6, 7, 8)}
    for seed in range(20):
        drawn, expected = (
            search.sample(each, np.random.default_rng(seed)) for each in (space, plain)
        )
        assert drawn == expected
        assert [type(value) for value in drawn.values()] == [float, float, int]


@pytest.mark.parametrize(("max_steps", "eta", "min_steps"), [(9, 3, 1), (270, 3, 30), (64, 2, 1)])
def test_a_budget_may_have_any_number_of_digits(max_steps, eta, min_steps):
    """Against a plain search of all numbers, and beyond 2^63 against the budget itself."""
    most = len(search.hyperband_brackets(max_steps, eta, min_steps=min_steps))

    def cost(n):
        rungs = search.halving_rungs(n, max_steps, eta, min_steps=min_steps)
        return len(rungs), search.total_steps(rungs)

    for budget in (max_steps, 3 * max_steps, 7 * max_steps + 1):
        within = [n for n in range(1, budget + 1) if cost(n)[1] <= budget]
        longest = max(cost(n)[0] for n in within)
        expected = max(n for n in within if cost(n)[0] == longest)
        found = search.num_halving_configs(budget, max_steps, eta, min_steps=min_steps)
        assert found == expected
    budget = 10**30
    n = search.num_halving_configs(budget, max_steps, eta, min_steps=min_steps)
    assert cost(n)[1] <= budget < cost(n + 1)[1]
    assert cost(n)[0] == most


class Killed(BaseException):
    """What ends a process, in these tests."""


def test_a_recorded_search_that_is_killed_anywhere_has_the_same_results(tmp_path):
    calls = []

    def evaluate(config, num_steps):
        calls.append((config["seed"], num_steps))
        error = float(np.random.default_rng((config["seed"], num_steps)).normal())
        return math.nan if config["seed"] % 4 == 3 else error / 3

    configs = [{"seed": seed} for seed in range(22)]
    whole = search.hyperband(configs, evaluate, 9)
    once, path = list(calls), tmp_path / "a" / "evaluations.jsonl"
    calls.clear()

    def evaluate_once(config, num_steps):
        if len(calls) > number:
            raise Killed
        return evaluate(config, num_steps)

    for number in range(len(once) - 1):
        with pytest.raises(Killed):
            search.hyperband(configs, search.recorded(evaluate_once, path), 9)
        # A process that is killed while it writes may leave a torn line.
        if number == 3:
            path.write_bytes(path.read_bytes() + b'{"config": {"se')
    resumed = search.hyperband(configs, search.recorded(evaluate, path), 9)
    assert repr(resumed) == repr(whole)
    assert calls == once
    assert [json.loads(line)["num_steps"] for line in path.read_text().splitlines()] == [
        r for _, r in once
    ]
    again = search.hyperband(
        configs, search.recorded(lambda *args: pytest.fail("it is evaluated again"), path), 9
    )
    assert repr(again) == repr(whole)


def test_equal_dicts_in_another_order_are_one_configuration(tmp_path):
    calls, path = [], tmp_path / "evaluations.jsonl"
    one, two = {"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}

    def evaluate(config, num_steps):
        calls.append(config)
        return 0.5

    assert search.recorded(evaluate, path)(one, 3) == 0.5
    assert search.recorded(evaluate, path)(two, 3) == 0.5
    assert calls == [one]
    # The order of the first one is what the file has, as in files of before.
    assert path.read_text() == json.dumps({"config": one, "num_steps": 3, "error": 0.5}) + "\n"
    path.write_text(json.dumps({"num_steps": 9, "error": 0.25, "config": two}) + "\n")
    assert search.recorded(evaluate, path)(one, 9) == 0.25
    assert len(calls) == 1


@pytest.mark.parametrize("config", [{1: "x"}, {"a": [{None: 2}]}, ({"a": {2.5: 1}},)])
def test_keys_that_json_would_turn_into_text_are_refused(config, tmp_path):
    evaluate = search.recorded(noisy, tmp_path / "evaluations.jsonl")
    with pytest.raises(jc.ArgumentError, match=r"config has the key .*; expected text") as error:
        evaluate(config, 3)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [-math.inf, -1e101])
def test_an_error_that_no_record_can_hold_is_not_made_the_worst(error, tmp_path):
    evaluate = search.recorded(lambda config, num_steps: error, tmp_path / "evaluations.jsonl")
    with pytest.raises(jc.ArgumentError, match=r"evaluate returned -.*; expected") as raised:
        evaluate({"a": 1}, 3)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [math.inf, 1e200, math.nan])
def test_an_error_beyond_what_records_hold_is_the_worst_now_and_later(error, tmp_path):
    path = tmp_path / "evaluations.jsonl"
    for _ in range(2):
        assert math.isnan(search.recorded(lambda config, num_steps: error, path)({"a": 1}, 3))


# ---------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def data():
    return jc.load_dataset("digits", validation=200)


def tiny(**changes):
    train = jc.TrainConfig(num_steps=9, batch_size=8, eval_every=1, eval_split="validation")
    kwargs = {"width": 2, "hidden": 4}
    optimizer = jc.OptimizerConfig(schedule="cosine", milestones=())
    config = jc.ExperimentConfig("digits", "convnet", kwargs, 200, optimizer=optimizer, train=train)
    return jc.override(config, max_train_examples=64, **changes)


def rows(folder):
    """A run's rows without times."""
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}
        for row in jc.read_metrics(folder)
    ]


@pytest.mark.slow
def test_a_run_that_pauses_at_each_rung_has_the_bits_of_one_that_does_not(data, tmp_path):
    config = tiny(learning_rate=0.05)
    runs.run(config, data, tmp_path / "whole")
    whole = rows(tmp_path / "whole")
    for step in (1, 3, 9):
        row = search.train_until(config, data, tmp_path / "paused", step)
        assert row is not None
        assert row["step"] == step
        # It has paused, and did not train on.
        assert rows(tmp_path / "paused") == whole[:step]
    # The rate of each step is the cosine of nine steps, also around a pause.
    rates = [0.025 * (1 + math.cos(math.pi * step / 9)) for step in range(9)]
    assert [row["rate"] for row in whole] == pytest.approx(rates, rel=1e-5)
    states = [
        runs.load_trained_model(tmp_path / name, data=data).last for name in ("whole", "paused")
    ]
    for name in ("step", "params", "opt_state"):
        one, two = (jax.tree.leaves(getattr(state, name)) for state in states)
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_real_search_that_is_stopped_has_the_same_bits(data, tmp_path):
    configs = [tiny(learning_rate=rate) for rate in (1e-3, 0.05, 0.3)]
    expected = search.successive_halving(
        configs, search.experiment_evaluator(data, tmp_path / "whole"), 9, min_steps=3
    )
    checks = 0

    def should_stop():
        nonlocal checks
        checks += 1
        return checks in stops

    stops, stopped = {2, 8, 14, 20}, 0
    while True:
        evaluate = search.experiment_evaluator(data, tmp_path / "own", should_stop=should_stop)
        try:
            found = search.successive_halving(configs, evaluate, 9, min_steps=3)
            break
        except search.SearchStopped:
            stopped += 1
    assert stopped >= 3
    assert repr(found) == repr(expected)
    for config in configs:
        name = search.run_name(config)
        assert rows(tmp_path / "own" / name) == rows(tmp_path / "whole" / name)


@pytest.mark.slow
def test_a_run_that_diverges_is_nan_at_every_later_rung(data, tmp_path):
    config = tiny(learning_rate=1e30)
    evaluate = search.experiment_evaluator(data, tmp_path)
    assert [math.isnan(evaluate(config, step)) for step in (3, 9, 9)] == [True] * 3
    (row,) = jc.read_metrics(tmp_path / search.run_name(config))
    assert "diverged" in row


@pytest.mark.slow
def test_runs_of_a_builder_and_a_loss_of_your_own_pause_too(data, tmp_path):
    def build(config, data):
        model = jc.create_model("convnet", data.num_classes, width=2, hidden=4)
        return model, optax.sgd(config.optimizer.learning_rate)

    pieces: dict[str, Any] = {"build": build, "loss": jc.create_loss("squared")}
    runs.run(tiny(), data, tmp_path / "whole", **pieces)
    for step in (3, 3, 9):
        row = search.train_until(tiny(), data, tmp_path / "paused", step, **pieces)
        assert row is not None
        assert row["step"] == step
    assert rows(tmp_path / "paused") == rows(tmp_path / "whole")
    # Another run is refused, also where nothing would be trained.
    with pytest.raises(jc.ArgumentError, match="paused holds a run of another config"):
        search.train_until(tiny(learning_rate=0.2), data, tmp_path / "paused", 3, **pieces)
    with pytest.raises(jc.ArgumentError, match="paused holds"):
        search.train_until(tiny(), data, tmp_path / "paused", 3)


def test_a_run_is_only_evaluated_where_it_has_a_row_of_the_validation_split(data, tmp_path):
    config = jc.override(tiny(), eval_every=2)
    with pytest.raises(
        jc.ArgumentError, match=r"num_steps is 3, .*eval_every is 2.*Write eval_every=3"
    ):
        search.train_until(config, data, tmp_path / "a", 3)
    with pytest.raises(
        jc.ArgumentError, match=r"num_steps is 10; expected a whole number from 1 to 9"
    ):
        search.train_until(config, data, tmp_path / "a", 10)
    evaluate = search.experiment_evaluator(data, tmp_path)
    with pytest.raises(
        jc.ArgumentError, match=r"eval_split is 'test'; a search selects by the valid"
    ):
        evaluate(jc.override(config, eval_split="test"), 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"metric": "eval_eror"}, r"metric is 'eval_eror'; expected one of .*mean 'eval_error'\?"),
        ({"metric": "eval_heat", "loss": jc.create_loss("squared")}, "metric is 'eval_heat'; expect"),
        ({"metric": "precise_eval_error"}, "metric is 'precise_eval_error'; expected one of"),
        ({"name": lambda config: None}, "name returned None; expected the name of a folder"),
        ({"name": lambda config: "../../x"}, r"name returned '../../x'; expected .*Write return"),
        ({"name": lambda config: ".."}, "name returned '..'; expected"),
        ({"name": lambda config: "a/b"}, "name returned 'a/b'; expected"),
        ({"name": lambda config: ""}, "name returned ''; expected"),
        ({"name": lambda config: "x" * 256}, "name returned 'xxx.*; expected"),
    ],
)  # fmt: skip
def test_a_metric_or_a_name_that_is_wrong_is_refused_before_training(
    data, tmp_path, monkeypatch, kwargs, says
):
    monkeypatch.setattr("jaxcnn.runs.single.train", lambda *a, **k: pytest.fail("it trained"))
    evaluate = search.experiment_evaluator(data, tmp_path / "out", **kwargs)
    with pytest.raises(jc.ArgumentError, match=says) as error:
        evaluate(tiny(), 3)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_metrics_that_are_known_before_training_are_those_of_the_rows(data, tmp_path):
    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            flat = images.reshape(len(images), -1)
            return nn.Dense(10)(nn.BatchNorm(use_running_average=not train)(flat))

    def build(config, data):
        return Normalized(), optax.sgd(config.optimizer.learning_rate)

    config = jc.override(tiny(), recompute_batch_stats=64, num_steps=2)
    runs.run(config, data, tmp_path / "a", build=build)
    row = jc.read_metrics(tmp_path / "a")[0]
    assert set(search._metric_names(config, data, {"build": build})) == row.keys() - {
        "step",
        "eval_split",
    }
    evaluate = search.experiment_evaluator(
        data, tmp_path, metric="precise_eval_loss", name=lambda config: "a", build=build
    )
    assert evaluate(config, 1) == row["precise_eval_loss"]


CONFIGS, untyped = [0.1] * 30, cast(Any, search)
MISTAKES = [
    (lambda: untyped.hyperband_brackets(0), "max_steps is 0; expected a whole number of at least 1"),
    (lambda: untyped.hyperband_brackets(9, 1), "eta is 1; expected a whole number of at least 2"),
    (lambda: untyped.hyperband_brackets(9, 2.5), "eta is 2.5"),
    (lambda: untyped.hyperband_brackets(9, min_steps=10), "max_steps is 9; expected .* at least 10"),
    (lambda: untyped.halving_rungs(0, 9), "num_configs is 0"),
    (lambda: untyped.num_halving_configs(8, 9), "budget is 8; expected a whole number of at least 9"),
    (lambda: untyped.random_search([], noisy, 9), "configs is .*; expected at least 1"),
    (lambda: untyped.random_search("", noisy, 9), "configs is ''; expected"),
    (lambda: untyped.hyperband(CONFIGS[:16], noisy, 9), "configs is .*; expected at least 17 of them"),
    (lambda: untyped.successive_halving(CONFIGS, None, 9), "evaluate is None; expected a function"),
    (lambda: untyped.successive_halving(CONFIGS, lambda x: x, 9), "evaluate is .*2 arguments"),
    (lambda: untyped.successive_halving(CONFIGS, lambda x, r: None, 9), "evaluate returned None; exp"),
    (lambda: untyped.successive_halving(CONFIGS, lambda x, r: "0.1", 9), "evaluate returned '0.1'"),
    (lambda: untyped.successive_halving(CONFIGS, lambda x, r: 10**400, 9), "evaluate returned 1000.*; expected a number"),
    (lambda: untyped.successive_halving(CONFIGS, lambda x, r: -math.inf, 9), "evaluate returned -inf; expected a number above -inf"),
    (lambda: untyped.random_search(range(10**30), noisy, 9), "configs is range.*; expected at least 1"),
    (lambda: untyped.total_steps([(9, 1)]), r"rungs is \[\(9, 1\)\]; expected those of a bracket"),
    (lambda: untyped.total_steps([untyped.Rung(9, "1")]), "num_steps is '1'"),
    (lambda: untyped.best([untyped.Evaluation(0, 0, 0, 1, "x", 1)]), "'x'; expected a number"),
    (lambda: untyped.best([]), "evaluations has none"),
    (lambda: untyped.sample({"a": LogUniform(0, 1)}, np.random.default_rng()), "a of the space .* above 0"),
    (lambda: untyped.sample({"a": Uniform(1, 1)}, np.random.default_rng()), "a of the space .*low below high"),
    (lambda: untyped.sample({"a": LogUniform(1, 10**400)}, np.random.default_rng()), "a of the space .*finite numbers above 0"),
    (lambda: untyped.sample({"a": Uniform(-1.7e308, 1.7e308)}, np.random.default_rng()), "a of the space .*a finite range"),
    (lambda: untyped.sample({"a": Uniform(0, math.nan)}, np.random.default_rng()), "a of the space .*finite numbers"),
    (lambda: untyped.sample({"a": Uniform(False, True)}, np.random.default_rng()), "a of the space .*finite numbers"),
    (lambda: untyped.sample({"a": "xyz"}, np.random.default_rng()), "a of the space is 'xyz'; expected a tuple"),
    (lambda: untyped.sample({"a": range(10**30)}, np.random.default_rng()), r"a of the space is range\(.*; expected a tuple"),
    (lambda: untyped.sample({"a": ()}, np.random.default_rng()), r"a of the space is \(\); expected a tuple"),
    (lambda: untyped.sample({"a": (1,)}, 0), "rng is 0; expected a generator of NumPy"),
    (lambda: untyped.sample([1], np.random.default_rng()), "space is .*; expected values by name"),
    (lambda: untyped.recorded(noisy, ""), "path is ''; expected a path"),
    (lambda: untyped.experiment_evaluator(None, "a"), "data is None; expected a Dataset"),
    (lambda: untyped.experiment_evaluator(jc.load_dataset("digits"), "a", metric=[3]), r"metric is \[3\]; expected the key of a number"),
    (lambda: untyped.experiment_evaluator(jc.load_dataset("digits"), "a", metric="eval_split"), "metric is 'eval_split'; expected the key of a number"),
    (lambda: untyped.experiment_evaluator(jc.load_dataset("digits"), "a", name="x"), "name is 'x'; expected a function"),
    (lambda: untyped.run_name(3), "config is an int, 3; expected an ExperimentConfig"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "says"), MISTAKES)
def test_mistakes_are_one_line(call, says):
    with pytest.raises(jc.ArgumentError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


def test_configurations_that_no_record_can_hold_are_refused(tmp_path):
    evaluate = search.recorded(noisy, tmp_path / "evaluations.jsonl")
    with pytest.raises(jc.ArgumentError, match=r"config is .*; expected values that JSON can hold"):
        evaluate(object(), 3)


def test_a_rung_is_a_pair():
    assert Rung(9, 1) == (9, 1)
