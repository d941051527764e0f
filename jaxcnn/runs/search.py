"""Search of hyperparameters: random search, successive halving and Hyperband.

A search is a function of configurations, of any type, and of `evaluate(config, num_steps)`. That
function trains a configuration up to a step in all, and returns its validation error there. A
configuration is first evaluated after few steps. The better ones continue to more steps: they are
not trained again, and cost only the steps that are added.

`experiment_evaluator` is such a function of `ExperimentConfig`s. Each config is one run of
`config.train.num_steps` steps, in a folder of its own, that pauses at the step and later resumes.
So a schedule of the learning rate is always that of the whole run, and the error at a step is a
point of the learning curve that the run would have without a pause. A schedule that ends at a rung
would have a rate of 0 there, and the same run could not continue to the next one.

Optuna is not used: its pruner of Hyperband stops trials asynchronously, so that its brackets are
not the paper's, and runs that pause and resume would still be needed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxcnn.arguments import (
    ArgumentError,
    check_callable,
    check_choice,
    check_integer,
    check_mapping,
    check_path,
    format_value,
)
from jaxcnn.config import ExperimentConfig, verify_config
from jaxcnn.data import Dataset
from jaxcnn.run_log import MAX_NUMBER, LogError, RunLog, read_lines, read_metrics, write_text
from jaxcnn.runs.single import build_pieces, run, subset_for, verify_data_of, with_loss
from jaxcnn.state import state_shapes

T = TypeVar("T")
Row = dict[str, Any]
Evaluate = Callable[[T, int], float]
"""Function of (config, num_steps) that returns the validation error after so many steps in all.

Errors are better when low. One that is not a number (training has diverged) is the worst. One of
-inf is refused.
"""
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
    floor(max_steps / eta^(k - i)) steps. There are as many halvings as leave one configuration and
    `min_steps` steps at the first rung.

    This is the inner loop of Hyperband. Jamieson and Talwalkar 2016 (arXiv:1502.07943, algorithm 1)
    have eta = 2, and divide a budget over the rungs.

    Args:
      num_configs: at the first rung.
      max_steps: of a configuration at the last rung, R in the paper.
      eta: of eta configurations one continues, to eta times as many steps.
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
      eta: of eta configurations one continues, to eta times as many steps.
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
    max_steps = check_integer("max_steps", max_steps, min_steps, example=81 * min_steps)
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

    Of all numbers with the most possible halvings, it is the largest one.

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
      evaluate: as in `Evaluate`.
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
      evaluate: as in `Evaluate`. It is called again for those that continue, with more steps.
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
      evaluate: as in `Evaluate`.
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
    remaining, spent, trained = list(range(len(configs))), 0, 0
    for number, (num_configs, num_steps) in enumerate(rungs):
        errors = []
        for index in remaining[:num_configs]:
            errors.append(_check_error(evaluate(configs[index], num_steps)))
            spent += num_steps - trained
            yield Evaluation(index, 0, number, num_steps, errors[-1], spent)
        # Sorting is stable, so of equal errors the first one is better.
        order = sorted(range(len(errors)), key=lambda place: _rank(errors[place]))
        remaining, trained = [remaining[place] for place in order], num_steps
        if number + 1 < len(rungs):
            # Those that continue keep the order of `configs`, which decides between equal errors.
            remaining = sorted(remaining[: rungs[number + 1].num_configs])


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
      ArgumentError: there are none.

    Example:
      >>> best(random_search([0.3, 0.1, 0.2], lambda rate, num_steps: rate, 10)).index
      1
    """
    if not isinstance(evaluations, (tuple, list)) or not all(
        isinstance(each, Evaluation) for each in evaluations
    ):
        evaluations = ()
    if not evaluations:
        raise ArgumentError(
            "evaluations has none; expected at least one. Write random_search(configs, ...)."
        )
    errors = [_rank(_check_error(each.error)) for each in evaluations]
    steps = [-check_integer("num_steps", each.num_steps) for each in evaluations]
    return evaluations[min(range(len(errors)), key=lambda place: (errors[place], steps[place]))]


# ---------------------------------------------------------------- evaluation by training


class SearchStopped(Exception):
    """Stop of a search by its user.

    The same command resumes it.
    """


def recorded(evaluate: Evaluate[Any], path: str | Path) -> Evaluate[Any]:
    r"""Return a function like `evaluate` that stores its results in a file.

    A search that is stopped and started again calls `evaluate` only for what is missing, and so has
    the same results. One process at a time may use the file.

    Args:
      evaluate: as in `Evaluate`, of configurations that JSON can hold, such as those of `sample`.
        Keys of dicts are text, and their order does not matter.
      path: of a file of JSON lines. It is written after every call.

    Raises:
      ArgumentError: an argument is invalid, or, when called, a configuration is.
      LogError: the file cannot be read or written.

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

    lines = read_lines(path, "evaluation", is_valid, skip_unfinished=True)
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


def run_name(config: ExperimentConfig) -> str:
    """Return a name for the run of a config.

    It ends with a digest of all fields.

    Example:
      >>> run_name(ExperimentConfig(model="convnet")).rpartition("-")[0]
      'convnet-momentum-lr0.1-seed0'
    """
    verify_config(config, ExperimentConfig)
    digest = hashlib.sha256(config.to_json().encode()).hexdigest()[:8]
    optimizer = config.optimizer
    return (
        f"{config.model}-{optimizer.name}-lr{optimizer.learning_rate:.3g}-"
        f"seed{config.train.seed}-{digest}"
    )


def train_until(
    config: ExperimentConfig,
    data: Dataset,
    folder: str | Path,
    num_steps: int,
    *,
    should_stop: Callable[[], Any] = lambda: False,
    on_step: Callable[[int, Mapping[str, Any] | None], None] = lambda step, row: None,
    **kwargs: Any,
) -> Row | None:
    """Train a run up to a step, and return its row there.

    The run is that of `config.train.num_steps` steps, with the schedule of so many steps. It
    pauses, and a later call with more steps resumes it from its checkpoint. Its rows have the bits
    of a run without a pause. A call for a step that the run has reached trains nothing.

    Args:
      config: the run's.
      data: as in `jaxcnn.runs.run`.
      folder: of the run.
      num_steps: a step that has a row: a multiple of `config.train.eval_every`, or the last step.
      should_stop: called after every step. When it returns true, the state is saved and training
        ends before the step.
      on_step: as in `jaxcnn.runs.run`.
      **kwargs: other arguments of `jaxcnn.runs.run`.

    Returns:
      The row. That of a run that has diverged is its last one, which has `diverged`, the reason.
      None if `should_stop` ended the training before.

    Raises:
      ArgumentError: an argument is invalid, or the folder has another run.
      FolderInUseError: another process trains there, or this one.

    Example:
      >>> import tempfile
      >>> from jaxcnn import TrainConfig, load_dataset
      >>> train = TrainConfig(num_steps=4, eval_every=2)
      >>> config = ExperimentConfig(dataset="digits", model="mlp", train=train)
      >>> data, folder = load_dataset("digits"), tempfile.mkdtemp()
      >>> [train_until(config, data, folder, step)["step"] for step in (2, 4, 2)]
      [2, 4, 2]
    """
    verify_config(config, ExperimentConfig)
    last, every = config.train.num_steps, config.train.eval_every
    num_steps = check_integer("num_steps", num_steps, 1, last, example=last)
    if num_steps < last and (every is None or num_steps % every):
        raise ArgumentError(
            f"num_steps is {num_steps}, a step without a row, as eval_every is {every}; expected a "
            f"multiple of it. Write eval_every={num_steps}, or num_steps={last}."
        )
    folder, position = check_path("folder", folder), 0
    if num_steps < last and (folder / "metrics.jsonl").exists():
        _check_folder(folder, config, data, kwargs)
        if (row := _row_of(folder, num_steps)) is not None:
            return row

    def follow(step: int, row: Mapping[str, Any] | None) -> None:
        nonlocal position
        position = step
        on_step(step, row)

    def has_arrived() -> bool:
        return position >= num_steps or bool(should_stop())

    run(config, data, folder, should_stop=has_arrived, on_step=follow, **kwargs)
    return _row_of(folder, num_steps)


def _check_folder(
    folder: Path, config: ExperimentConfig, data: Dataset, kwargs: Mapping[str, Any]
) -> None:
    """Check that a folder holds the run of a config.

    Raises:
      ArgumentError: it holds another one.
    """
    verify_data_of(config, data)
    build, (config, _) = kwargs.get("build"), with_loss(config, kwargs.get("loss"))
    data, pieces = subset_for(config, data), {}
    if build is not None:
        model, tx = build_pieces(config, data, build)
        pieces = {"model": model, "tx": tx, "build": build}
    RunLog.reserve(folder, config, data=data, **pieces)


def _row_of(folder: Path, num_steps: int) -> Row | None:
    """Return the row of a step, or of an earlier divergence, or None."""
    for row in read_metrics(folder):
        if row["step"] == num_steps or "diverged" in row:
            return row
    return None


_NOT_NUMBERS = ("eval_split", "diverged", "interrupted")
"""Keys of rows whose values are no numbers."""


def _metric_names(
    config: ExperimentConfig, data: Dataset, kwargs: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the keys of the numbers in the rows of a run; nothing is trained."""
    config, loss = with_loss(config, kwargs.get("loss"))
    verify_data_of(config, data)
    data = subset_for(config, data)
    model, tx = build_pieces(config, data, kwargs.get("build"))
    sums = state_shapes(model, tx, config.train, data, loss=loss).metrics.sums
    prefixes = ["eval_", "train_", *["precise_eval_"] * bool(config.train.recompute_batch_stats)]
    names = [f"{prefix}{name}" for prefix in prefixes for name in ("loss", *sums)]
    return (*names, "grad_norm", "loss_std", "rate", "seconds", "images_per_second")


def _check_folder_name(name: Any) -> str:
    try:
        # A path of several names, or "..", may be outside the folder of all runs.
        is_valid = name == check_path("name", name).name != ".."
    except ArgumentError:
        is_valid = False
    if not is_valid:
        raise ArgumentError(
            f"name returned {format_value(name)}; expected the name of a folder, without a path. "
            "Write return run_name(config)."
        )
    return name


def experiment_evaluator(
    data: Dataset,
    out: str | Path,
    *,
    metric: str = "eval_error",
    name: Callable[[ExperimentConfig], str] = run_name,
    should_stop: Callable[[], Any] = lambda: False,
    **kwargs: Any,
) -> Evaluate[ExperimentConfig]:
    """Return an `evaluate` that trains each config in its own folder.

    `train_until` trains. So a search can be stopped at any moment, and the same search then
    continues with the same results. Searches that share configs share their runs.

    Args:
      data: as in `jaxcnn.runs.run`, with a validation split.
      out: folder of the runs' folders.
      metric: key of a number in a row, which is better when low.
      name: function of a config that returns the name of its folder in `out`, without a path.
      should_stop: called after every step. When it returns true, the search ends.
      **kwargs: other arguments of `train_until`.

    Returns:
      `evaluate(config, num_steps)`. It returns nan for a run that has diverged. It raises
      `SearchStopped` when `should_stop` has ended the training.

    Raises:
      ArgumentError: an argument is invalid. When called, also for a config that is evaluated on the
        test split, by which nothing may be selected.

    Example:
      >>> import tempfile
      >>> from jaxcnn import TrainConfig, load_dataset, override
      >>> data = load_dataset("digits", validation=300)
      >>> train = TrainConfig(num_steps=6, eval_every=2, eval_split="validation")
      >>> config = ExperimentConfig("digits", "mlp", num_validation=300, train=train)
      >>> configs = [override(config, learning_rate=rate) for rate in (0.001, 0.01, 0.1)]
      >>> evaluate = experiment_evaluator(data, tempfile.mkdtemp())
      >>> evaluations = successive_halving(configs, evaluate, 6, min_steps=2)
      >>> [(each.index, each.num_steps) for each in evaluations]
      [(0, 2), (1, 2), (2, 2), (2, 6)]
    """
    if not isinstance(data, Dataset):
        raise ArgumentError(
            f"data is {format_value(data)}; expected a Dataset. Write jaxcnn.load_dataset(...)."
        )
    out = check_path("out", out)
    if not isinstance(metric, str) or metric in _NOT_NUMBERS:
        raise ArgumentError(
            f"metric is {format_value(metric)}; expected the key of a number in a row. "
            "Write metric='eval_error'."
        )
    for key, function, example in (
        ("name", name, "run_name"),
        ("should_stop", should_stop, "stop"),
    ):
        check_callable(key, function, example, num_args=int(key == "name"))
    # What `measure` adds to a row is known only after training.
    is_checked = "measure" in kwargs

    def evaluate(config: ExperimentConfig, num_steps: int) -> float:
        nonlocal is_checked
        verify_config(config, ExperimentConfig)
        if config.train.eval_split != "validation":
            raise ArgumentError(
                f"eval_split is {config.train.eval_split!r}; a search selects by the validation "
                "split. Write eval_split='validation'."
            )
        if not is_checked:
            check_choice("metric", metric, _metric_names(config, data, kwargs))
            is_checked = True
        folder = out / _check_folder_name(name(config))
        row = train_until(config, data, folder, num_steps, should_stop=should_stop, **kwargs)
        if row is None:
            raise SearchStopped(f"{folder} was stopped before step {num_steps}")
        if "diverged" in row:
            return math.nan
        # Another config may have another loss.
        check_choice("metric", metric, (key for key in row if key not in _NOT_NUMBERS))
        return math.nan if row[metric] is None else float(row[metric])

    return evaluate
