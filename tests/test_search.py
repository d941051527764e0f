"""Successive halving and Hyperband: the paper's table, plain loops, the budget, and records of what was evaluated."""

import itertools
import json
import math
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxcnn as jc
from jaxcnn import search
from jaxcnn.run_log import LogError
from jaxcnn.search import Evaluation, LogUniform, Rung, Uniform

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
    (lambda: untyped.best([0.1, 0.2]), r"evaluations is \[0.1, 0.2\]; expected a list of `Evaluation`s"),
    (lambda: untyped.successive_halving(CONFIGS, noisy, 10, min_steps=20), "at least 20, which is min_steps. Write min_steps=10"),
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


def test_a_folder_is_refused_before_an_evaluation(tmp_path):
    with pytest.raises(jc.ArgumentError, match=r"a folder; expected a file\. Write path='.*jsonl'"):
        search.recorded(noisy, f"{tmp_path}/")


def test_a_whole_line_without_an_error_is_told_not_skipped(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    path.write_text('{"config": {"a": 1}, "num_steps": 2}\n')
    with pytest.raises(LogError, match="line 1, is no evaluation: expected config, num"):
        search.recorded(noisy, path)


def test_a_rung_is_a_pair():
    assert Rung(9, 1) == (9, 1)
