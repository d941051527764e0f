"""Search of hyperparameters: random search, successive halving and Hyperband.

A search is a function of configurations, of any type, and of `evaluate(config, num_steps)`. That
function trains a configuration up to a step in all, and returns its validation error there. Errors
are better when low. One that is not a number (training has diverged) is the worst. One of -inf is
refused. A configuration is first evaluated after few steps. The better ones continue to more steps:
they are not trained again, and cost only the steps that are added.

`jaxcnn.runs.experiment_evaluator` is such a function of `ExperimentConfig`s. It trains each in a
folder, as a run that pauses and resumes.

Optuna is not used: its pruner of Hyperband stops trials asynchronously, so that its brackets are
not the paper's, and runs that pause and resume would still be needed.

An objective of your own that trains with `jaxcnn.train` needs a `run_dir` for each configuration:
more steps then continue the run. Fewer steps than it has are an error, so a new search needs new
folders, or `recorded`. The rate has to be constant, or a schedule that does not depend on
`num_steps`: each rung has another `num_steps`.

Example:
  >>> import tempfile
  >>> import jaxcnn as jc
  >>> images, labels = np.zeros((16, 4, 4, 1), np.uint8), np.arange(16, dtype=np.int32) % 2
  >>> images[1::2] = 255
  >>> part = images[:4], labels[:4]
  >>> data = jc.dataset((images, labels), part, validation=part)
  >>> model, folder = jc.create_model("mlp", num_classes=2), Path(tempfile.mkdtemp())
  >>> def evaluate(config, num_steps):
  ...     rate = config["learning_rate"]
  ...     tx = jc.create_optimizer(jc.OptimizerConfig("sgd", learning_rate=rate))
  ...     train_config = jc.TrainConfig(
  ...         num_steps=num_steps, batch_size=8, eval_split="validation"
  ...     )
  ...     rows = jc.train(model, tx, data, train_config, run_dir=folder / str(rate))
  ...     return [row["eval_error"] for _, row in rows][-1]
  >>> configs = [{"learning_rate": rate} for rate in (0.1, 0.01, 0.001)]
  >>> evaluations = successive_halving(configs, evaluate, 6)
  >>> [each.num_steps for each in evaluations], evaluations[-1].spent
  ([2, 2, 2, 6], 10)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxcnn.arguments import (
    ArgumentError,
    check_callable,
    check_integer,
    check_mapping,
    check_path,
    format_value,
)
from jaxcnn.run_log import MAX_NUMBER, LogError, read_lines, write_text

# What help() shows.
__all__ = [
    "Bracket",
    "Distribution",
    "Evaluate",
    "Evaluation",
    "LogUniform",
    "Rung",
    "Uniform",
    "best",
    "halving_rungs",
    "hyperband",
    "hyperband_brackets",
    "num_halving_configs",
    "random_search",
    "recorded",
    "sample",
    "successive_halving",
    "total_steps",
]

T = TypeVar("T")
Evaluate = Callable[[T, int], float]
"""Function of (config, num_steps), as at the top of this module."""
_EVALUATE_EXAMPLE = "lambda config, num_steps: error"


# ---------------------------------------------------------------- spaces


class LogUniform(NamedTuple):
    """Distribution of a positive number whose logarithm is uniform.

    Attributes:
      low: lower end, above 0.
      high: upper end.

    Example:
      >>> LogUniform(1e-4, 1.0).low
      0.0001
    """

    low: float
    high: float


class Uniform(NamedTuple):
    """Uniform distribution of a number.

    Attributes:
      low: lower end.
      high: upper end.

    Example:
      >>> Uniform(0.0, 0.5).high
      0.5
    """

    low: float
    high: float


Distribution = LogUniform | Uniform | Sequence[Any]
"""Distribution of a value.

A sequence is a choice of its values, all with the same probability. A text is not one.
"""


def sample(space: Mapping[str, Distribution], rng: np.random.Generator) -> dict[str, Any]:
    """Return a random configuration of a space.

    Args:
      space: distributions by name. They are drawn in this order, independently.
      rng: NumPy's generator, which is advanced. The same seed gives the same configurations.

    Raises:
      ArgumentError: a distribution or the generator is invalid.

    Example:
      >>> space = {"width": (8, 16), "learning_rate": LogUniform(1e-3, 1.0)}
      >>> config = sample(space, np.random.default_rng(0))
      >>> config["width"], round(config["learning_rate"], 4)
      (16, 0.0064)
    """
    space = check_mapping("space", space, "{'width': (8, 16)}")
    if not isinstance(rng, np.random.Generator):
        raise ArgumentError(
            f"rng is {format_value(rng)}; expected a generator of NumPy. "
            "Write rng=numpy.random.default_rng(0)."
        )
    for name, distribution in space.items():
        _check_distribution(name, distribution)
    return {name: _draw(distribution, rng) for name, distribution in space.items()}


def _check_distribution(name: str, distribution: Any) -> None:
    if isinstance(distribution, (LogUniform, Uniform)):
        low, high = map(_to_float, distribution)
        minimum = 0.0 if isinstance(distribution, LogUniform) else -math.inf
        # NumPy's generator needs a finite range, too. A comparison with nan is false.
        if not (minimum < low < high and math.isfinite(high - low)):
            kind = type(distribution).__name__
            above = " above 0" if kind == "LogUniform" else ""
            raise ArgumentError(
                f"{name} of the space is {format_value(distribution)}; expected finite "
                f"numbers{above}, low below high, and a finite range. Write {kind}(0.001, 1.0)."
            )
    elif not _length(distribution):
        raise ArgumentError(
            f"{name} of the space is {format_value(distribution)}; expected a tuple of choices, "
            "Uniform or LogUniform. Write (8, 16)."
        )


def _to_float(value: Any) -> float:
    """Return a finite number as a float, and nan for anything else."""
    is_real = isinstance(value, (int, float, np.integer, np.floating))
    try:
        number = float(value) if is_real and not isinstance(value, bool) else math.nan
    # An integer beyond the range of float64.
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _length(value: Any) -> int:
    """Return the number of values of a sequence.

    It is 0 for a text, for anything else, and for a range that has too many values to index.
    """
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray, memoryview)):
        return 0
    try:
        return len(value)
    except OverflowError:
        return 0


def _draw(distribution: Any, rng: np.random.Generator) -> Any:
    if isinstance(distribution, (LogUniform, Uniform)):
        low, high = map(float, distribution)
        if isinstance(distribution, Uniform):
            return float(rng.uniform(low, high))
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
        # The logarithm's rounding may leave the interval.
        return min(max(value, low), high)
    return distribution[int(rng.integers(len(distribution)))]


# ---------------------------------------------------------------- rungs and brackets


class Rung(NamedTuple):
    """A round of successive halving.

    Attributes:
      num_configs: configurations that are trained up to this rung.
      num_steps: training steps of each, all earlier rungs included.
    """

    num_configs: int
    num_steps: int


Bracket = tuple[Rung, ...]
"""Rungs of one successive halving, the first one first."""


def halving_rungs(num_configs: int, max_steps: int, eta: int = 3, *, min_steps: int = 1) -> Bracket:
    """Return the rungs of one successive halving.

    At rung i there are floor(num_configs / eta^i) configurations. With k halvings, each has
    floor(max_steps / eta^(k - i)) steps. There are as many halvings as leave at least one
    configuration at the last rung, and at least `min_steps` steps at the first.

    This is the inner loop of Hyperband. Jamieson and Talwalkar 2016 (arXiv:1502.07943, algorithm 1)
    have eta = 2, and divide a budget over the rungs.

    Args:
      num_configs: at the first rung.
      max_steps: of a configuration at the last rung, R in the paper.
      eta: at each rung 1 of eta configurations continues, to eta times as many steps.
      min_steps: minimum of steps of the first rung.

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> [tuple(rung) for rung in halving_rungs(9, 90, min_steps=10)]
      [(9, 10), (3, 30), (1, 90)]
    """
    num_configs = check_integer("num_configs", num_configs, example=9)
    max_steps, eta, min_steps = _check_steps(max_steps, eta, min_steps)
    halvings = min(_floor_log(max_steps // min_steps, eta), _floor_log(num_configs, eta))
    return _rungs(num_configs, max_steps, eta, halvings)


def hyperband_brackets(max_steps: int, eta: int = 3, *, min_steps: int = 1) -> tuple[Bracket, ...]:
    """Return the brackets of Hyperband.

    Bracket s = s_max, ..., 0 has s halvings and ceil((s_max + 1) eta^s / (s + 1)) configurations.
    s_max is floor(log_eta(max_steps / min_steps)). The first bracket stops most configurations
    early, the last one is random search. Steps are rounded down to whole ones.

    Args:
      max_steps: of a configuration, R in the paper.
      eta: at each rung 1 of eta configurations continues, to eta times as many steps.
      min_steps: minimum of steps of a configuration, the unit of R in the paper.

    Raises:
      ArgumentError: an argument is invalid.

    References:
      Li et al. 2018 (arXiv:1603.06560), algorithm 1 and table 1.

    Example:
      >>> [[tuple(rung) for rung in bracket] for bracket in hyperband_brackets(9)]
      [[(9, 1), (3, 3), (1, 9)], [(5, 3), (1, 9)], [(3, 9)]]
    """
    max_steps, eta, min_steps = _check_steps(max_steps, eta, min_steps)
    s_max = _floor_log(max_steps // min_steps, eta)
    return tuple(
        # Upside-down floor division is the ceiling, without rounding.
        _rungs(-(-(s_max + 1) * eta**s // (s + 1)), max_steps, eta, s)
        for s in range(s_max, -1, -1)
    )


def _check_steps(max_steps: Any, eta: Any, min_steps: Any) -> tuple[int, int, int]:
    min_steps = check_integer("min_steps", min_steps)
    max_steps = check_integer("max_steps", max_steps, example=81)
    if max_steps < min_steps:
        raise ArgumentError(
            f"max_steps is {max_steps}; expected a whole number of at least {min_steps}, which is "
            f"min_steps. Write min_steps={max_steps}."
        )
    return max_steps, check_integer("eta", eta, 2, example=3), min_steps


def _floor_log(number: int, base: int) -> int:
    """Return the largest k with base^k <= number, exactly."""
    k = 0
    while base ** (k + 1) <= number:
        k += 1
    return k


def _rungs(num_configs: int, max_steps: int, eta: int, halvings: int) -> Bracket:
    return tuple(
        Rung(num_configs // eta**i, max_steps // eta ** (halvings - i)) for i in range(halvings + 1)
    )


def total_steps(rungs: Sequence[Rung]) -> int:
    """Return the training steps of a bracket, whose survivors continue.

    Args:
      rungs: of the bracket, such as those of `halving_rungs`.

    Raises:
      ArgumentError: they are no rungs.

    Example:
      >>> total_steps(halving_rungs(9, 9)), 9 * 1 + 3 * (3 - 1) + 1 * (9 - 3)
      (21, 21)
    """
    is_sequence = isinstance(rungs, (tuple, list))
    if not is_sequence or not all(isinstance(rung, Rung) for rung in rungs):
        raise ArgumentError(
            f"rungs is {format_value(rungs)}; expected those of a bracket. "
            "Write rungs=halving_rungs(9, 81)."
        )
    for rung in rungs:
        for name, value in rung._asdict().items():
            check_integer(name, value)
    before = [0, *(rung.num_steps for rung in rungs)]
    return sum(
        rung.num_configs * (rung.num_steps - start)
        for rung, start in zip(rungs, before, strict=False)
    )


def num_halving_configs(budget: int, max_steps: int, eta: int = 3, *, min_steps: int = 1) -> int:
    """Return the largest number of configurations whose halving is within a budget.

    More halvings come first: among the numbers whose halving is within the budget, those with the
    most halvings are kept, and the largest of them is returned.

    Args:
      budget: training steps of all configurations together.
      max_steps: as in `halving_rungs`.
      eta: likewise.
      min_steps: likewise.

    Raises:
      ArgumentError: the budget is less than one configuration's `max_steps`.

    Example:
      >>> num_halving_configs(69, 9), total_steps(halving_rungs(31, 9))
      (31, 69)
    """
    max_steps, eta, min_steps = _check_steps(max_steps, eta, min_steps)
    budget = check_integer("budget", budget, max_steps)
    most = _floor_log(max_steps // min_steps, eta)
    for halvings in range(most, -1, -1):

        def cost(n: int, halvings: int = halvings) -> int:
            return total_steps(_rungs(n, max_steps, eta, halvings))

        # The first rung alone costs no more than all of them.
        upper = budget // (max_steps // eta**halvings)
        # With more configurations there would be one more halving.
        if halvings < most:
            upper = min(upper, eta ** (halvings + 1) - 1)
        # `bisect` does not search ranges of 2^63 numbers.
        fits, exceeds = eta**halvings - 1, upper + 1
        while exceeds - fits > 1:
            middle = (fits + exceeds) // 2
            fits, exceeds = (middle, exceeds) if cost(middle) <= budget else (fits, middle)
        if fits >= eta**halvings:
            return fits
    raise AssertionError("one configuration of max_steps is within the budget")


# ---------------------------------------------------------------- searches


class Evaluation(NamedTuple):
    """A configuration's error at a rung.

    Attributes:
      index: place of the configuration in the sequence of all.
      bracket: number of the bracket, from 0 on.
      rung: number of the rung in its bracket, from 0 on.
      num_steps: training steps of the configuration, in all.
      error: validation error; nan if training has diverged.
      spent: training steps of the search after this evaluation, of all configurations.
    """

    index: int
    bracket: int
    rung: int
    num_steps: int
    error: float
    spent: int


def random_search(configs: Sequence[T], evaluate: Evaluate[T], max_steps: int) -> list[Evaluation]:
    """Evaluate all configurations after `max_steps` steps.

    Args:
      configs: random configurations, such as those of `sample`.
      evaluate: function (config, num_steps) -> validation error.
      max_steps: of each configuration.

    Raises:
      ArgumentError: an argument is invalid, or `evaluate` returns no number.

    Example:
      >>> evaluations = random_search([0.3, 0.1], lambda rate, num_steps: rate, 10)
      >>> [(each.error, each.spent) for each in evaluations]
      [(0.3, 10), (0.1, 20)]
    """
    configs = _check_configs(configs, 1)
    max_steps = check_integer("max_steps", max_steps, example=81)
    return list(_halve(configs, evaluate, (Rung(len(configs), max_steps),)))


def successive_halving(
    configs: Sequence[T],
    evaluate: Evaluate[T],
    max_steps: int,
    eta: int = 3,
    *,
    min_steps: int = 1,
) -> list[Evaluation]:
    """Evaluate all configurations after few steps, and continue with the best.

    Of n configurations at a rung the floor(n / eta) with the lowest errors continue. Of equal
    errors the first one in `configs` is better. A configuration that diverged is the worst, and is
    charged in full.

    Args:
      configs: random configurations, such as those of `sample`.
      evaluate: function (config, num_steps) -> validation error. It is called again, with
        more steps, for those that continue.
      max_steps: as in `halving_rungs`.
      eta: likewise.
      min_steps: likewise.

    Returns:
      The evaluations in their order.

    Raises:
      ArgumentError: an argument is invalid, or `evaluate` returns no number.

    References:
      Jamieson and Talwalkar 2016 (arXiv:1502.07943), algorithm 1. Li et al. 2018
      (arXiv:1603.06560), algorithm 1, lines 4 to 9.

    Example:
      >>> def evaluate(rate, num_steps):
      ...     return abs(rate - 0.1) + 1 / num_steps
      >>> evaluations = successive_halving([1.0, 0.3, 0.03], evaluate, 9)
      >>> [(each.index, each.num_steps, each.spent) for each in evaluations]
      [(0, 3, 3), (1, 3, 6), (2, 3, 9), (2, 9, 15)]
    """
    configs = _check_configs(configs, 1)
    rungs = halving_rungs(len(configs), max_steps, eta, min_steps=min_steps)
    return list(_halve(configs, evaluate, rungs))


def hyperband(
    configs: Sequence[T],
    evaluate: Evaluate[T],
    max_steps: int,
    eta: int = 3,
    *,
    min_steps: int = 1,
) -> list[Evaluation]:
    """Run the successive halvings of all brackets of Hyperband.

    Each bracket has configurations of its own, the next ones of `configs`.

    Args:
      configs: at least as many random configurations as `hyperband_brackets` has at its first
        rungs. Others are not used.
      evaluate: function (config, num_steps) -> validation error.
      max_steps: as in `hyperband_brackets`.
      eta: likewise.
      min_steps: likewise.

    Returns:
      The evaluations in their order, from the bracket with the most configurations on.

    Raises:
      ArgumentError: an argument is invalid, or `evaluate` returns no number.

    References:
      Li et al. 2018 (arXiv:1603.06560), algorithm 1.

    Example:
      >>> evaluations = hyperband(range(17), lambda index, num_steps: 1 / (1 + index), 9)
      >>> best(evaluations).index, evaluations[-1].spent
      (16, 69)
    """
    brackets = hyperband_brackets(max_steps, eta, min_steps=min_steps)
    configs = _check_configs(configs, sum(rungs[0].num_configs for rungs in brackets))
    evaluations, first = [], 0
    for number, rungs in enumerate(brackets):
        last = first + rungs[0].num_configs
        spent = evaluations[-1].spent if evaluations else 0
        bracket = _halve(configs[first:last], evaluate, rungs)
        evaluations += [
            each._replace(index=first + each.index, bracket=number, spent=spent + each.spent)
            for each in bracket
        ]
        first = last
    return evaluations


def _check_configs(configs: Any, minimum: int) -> Sequence[Any]:
    if _length(configs) < minimum:
        raise ArgumentError(
            f"configs is {format_value(configs)}; expected at least {minimum} of them in a "
            "sequence. Write configs=[sample(space, rng) for _ in "
            f"range({minimum})]."
        )
    return configs


def _halve(configs: Sequence[T], evaluate: Evaluate[T], rungs: Bracket) -> Iterator[Evaluation]:
    check_callable("evaluate", evaluate, _EVALUATE_EXAMPLE, num_args=2)
    errors: dict[int, float] = {}
    remaining, spent, trained = list(range(len(configs))), 0, 0
    for number, (num_configs, num_steps) in enumerate(rungs):
        if number:
            # Sorting is stable and all rungs have the order of `configs`. So of equal errors the
            # first one in `configs` is better.
            ranked = sorted(remaining, key=lambda index: _rank(errors[index]))
            remaining = sorted(ranked[:num_configs])
        for index in remaining:
            errors[index] = _check_error(evaluate(configs[index], num_steps))
            spent += num_steps - trained
            yield Evaluation(index, 0, number, num_steps, errors[index], spent)
        trained = num_steps


def _check_error(error: Any) -> float:
    try:
        if isinstance(error, (str, bytes, bool)) or np.ndim(error):
            raise TypeError
        value = float(error)
    # An integer beyond the range of float64 overflows.
    except (TypeError, ValueError, OverflowError):
        raise ArgumentError(
            f"evaluate returned {format_value(error)}; expected a number, the validation error. "
            "Write return error."
        ) from None
    # It would be the best of all, and no error is so low.
    if value == -math.inf:
        raise ArgumentError(
            f"evaluate returned {format_value(error)}; expected a number above -inf. "
            "Write return math.nan where training has diverged."
        )
    return value


def _rank(error: float) -> float:
    return math.inf if math.isnan(error) else error


def best(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the evaluation with the lowest error.

    Of equal errors it is that with the most steps, and of these the first one. It is what Hyperband
    returns, the smallest error seen so far.

    Args:
      evaluations: at least one. Select those with the last rung's steps to choose among
        configurations that have completed their schedule.

    Raises:
      ArgumentError: there are none, or they are no `Evaluation`s.

    Example:
      >>> best(random_search([0.3, 0.1, 0.2], lambda rate, num_steps: rate, 10)).index
      1
    """
    advice = "Write evaluations=random_search(configs, evaluate, 81)."
    if not isinstance(evaluations, (tuple, list)) or not all(
        isinstance(each, Evaluation) for each in evaluations
    ):
        raise ArgumentError(
            f"evaluations is {format_value(evaluations)}; expected a list of `Evaluation`s, as a "
            f"search returns it. {advice}"
        )
    if not evaluations:
        raise ArgumentError(f"evaluations has none; expected at least one. {advice}")
    errors = [_rank(_check_error(each.error)) for each in evaluations]
    steps = [-check_integer("num_steps", each.num_steps) for each in evaluations]
    return evaluations[min(range(len(errors)), key=lambda place: (errors[place], steps[place]))]


# ---------------------------------------------------------------- records


def recorded(evaluate: Evaluate[Any], path: str | Path) -> Evaluate[Any]:
    r"""Return a function like `evaluate` that stores its results in a file.

    A search that is stopped and started again calls `evaluate` only for what is missing, and so has
    the same results. One process at a time may use the file.

    The file knows nothing of `evaluate` itself. After a change of the function, or of its data,
    write another path: otherwise the errors of the old one are returned.

    Args:
      evaluate: function (config, num_steps) -> validation error. JSON can hold the
        configurations, such as those of `sample`. Keys of dicts are text, and their order does not
        matter.
      path: of a file of JSON lines. It is written after every call.

    Raises:
      ArgumentError: an argument is invalid, or, when called, a configuration is.
      LogError: the file cannot be read or written, or has a line that is no evaluation. A last
        line that is no whole JSON is skipped, as a killed process leaves it.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "evaluations.jsonl")
      >>> evaluate = recorded(lambda config, num_steps: config["rate"] / num_steps, path)
      >>> evaluate({"rate": 0.5}, 2)
      0.25
      >>> path.read_text()
      '{"config": {"rate": 0.5}, "num_steps": 2, "error": 0.25}\n'
    """
    check_callable("evaluate", evaluate, _EVALUATE_EXAMPLE, num_args=2)
    path = check_path("path", path, example="'runs/search/evaluations.jsonl'")
    if path.is_dir():
        raise ArgumentError(
            f"path is {str(path)!r}, a folder; expected a file. "
            f"Write path={str(path / 'evaluations.jsonl')!r}."
        )

    def key(config: Any, num_steps: int) -> str:
        try:
            _check_keys(config)
            return json.dumps([config, num_steps], allow_nan=False, sort_keys=True)
        except ArgumentError:
            raise
        except (TypeError, ValueError, RecursionError):
            raise ArgumentError(
                f"config is {format_value(config)}; expected values that JSON can hold. "
                "Write config={'learning_rate': 0.1}."
            ) from None

    def is_valid(line: dict[str, Any]) -> bool:
        error = line.get("error", "")
        return {"config", "num_steps"} <= line.keys() and (
            error is None or (isinstance(error, (int, float)) and not isinstance(error, bool))
        )

    lines = read_lines(path, "evaluation", skip_unfinished=True)
    # Only a cut line is unfinished. A whole one that lacks something is a mistake to be told.
    for number, line in enumerate(lines, 1):
        if not is_valid(line):
            raise LogError(
                f"{path}, line {number}, is no evaluation: expected config, num_steps and error; "
                "delete that line"
            )
    errors = {key(line["config"], line["num_steps"]): line["error"] for line in lines}

    def evaluate_once(config: Any, num_steps: int) -> float:
        name = key(config, check_integer("num_steps", num_steps))
        if name not in errors:
            value = _check_error(evaluate(config, num_steps))
            if value < -MAX_NUMBER:
                raise ArgumentError(
                    f"evaluate returned {value}; expected at least {-MAX_NUMBER:g}, as records "
                    "have no lower numbers. Write return error."
                )
            # JSON has no nan. No infinity either, which ranks the same, and records have no number
            # above the limit.
            errors[name] = value if value <= MAX_NUMBER else None
            lines.append({"config": config, "num_steps": num_steps, "error": errors[name]})
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LogError(
                    f"{path.parent} cannot be created: {error.strerror}; write another path"
                ) from None
            write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        return math.nan if errors[name] is None else errors[name]

    return evaluate_once


def _check_keys(config: Any) -> None:
    """Check the keys of all dicts in a configuration.

    JSON would turn other keys into text, so that 1 and "1" would be the same.

    Raises:
      ArgumentError: a key is no text.
    """
    if isinstance(config, dict):
        for key, value in config.items():
            if not isinstance(key, str):
                raise ArgumentError(
                    f"config has the key {format_value(key)}; expected text. "
                    f"Write {format_value(str(key))}."
                )
            _check_keys(value)
    elif isinstance(config, (tuple, list)):
        for value in config:
            _check_keys(value)
