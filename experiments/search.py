"""Search of hyperparameters: successive halving and Hyperband against random search.

    python -m experiments.search                   digits, no download: 102 seconds on two cores
    python -m experiments.search --preset mnist    MNIST: not yet measured

A configuration has a depth, a width, an optimizer, a learning rate and an augmentation, all drawn
at random. All methods have the same budget of training steps, that of Hyperband (Li et al. 2018,
arXiv:1603.06560, algorithm 1). Random search trains few configurations to the end. Successive
halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) starts many, and of eta of them the best one
continues, to eta times as many steps. Hyperband divides its budget over several such halvings, of
which the last stops nothing and is random search.
random-2x is random search with twice the budget.

Every configuration is one run of --num-steps steps, with a cosine schedule of that length. It
pauses at each rung and resumes from its checkpoint. So all errors at a rung are of networks with
the same schedule, and what continues is what was compared. At early rungs the rate is still high.

The methods of a seed draw the same sequence of configurations, and share the runs of equal ones. A
method is charged for all its steps. Configurations are compared by the validation error alone. The
choice of a method is that of the lowest validation error among those that it trained to the end.
Its test error is computed once, after the search.

Expected, quick (5 seeds): test errors of 5.2 +- 2.7% (random), 3.6 +- 2.2% (random-2x), 1.9 +- 0.6%
(halving) and 2.7 +- 1.0% (hyperband). Paired by seed, halving is 3.3 +- 3.1 points below random,
and hyperband 2.5 +- 3.1. A third of the seconds of training is compilation.

It writes OUT/table.md, OUT/table.csv, OUT/chosen.md, OUT/chosen.csv, OUT/budget.png,
OUT/brackets.png, OUT/space.png, OUT/search.json, OUT/trials.jsonl and a folder for every run.
The same command resumes a study that was stopped.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

import jaxcnn as jc
from experiments._common import (
    DeviceOptions,
    FigureOptions,
    SeedOptions,
    display_names,
    run_study,
)
from jaxcnn import cli, multihost, plots, runs, search, tables
from jaxcnn.checkpoint import FolderInUseError
from jaxcnn.config import as_dict
from jaxcnn.progress import Progress
from jaxcnn.run_log import LogError, read_json, read_lines, read_metrics, write_text
from jaxcnn.search import Bracket, Evaluation, LogUniform

MethodName = Literal["random", "random-2x", "halving", "hyperband"]
TITLES = {
    "random": "random search",
    "random-2x": "random search, twice the budget",
    "halving": "successive halving",
    "hyperband": "Hyperband",
}
"""Method -> its name in figures."""
TRIALS, SETTINGS = "trials.jsonl", "search.json"
"""Files of all runs and of the numbers of the search, from which tables and figures are made."""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting of the experiment; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    """quick: digits. mnist: MNIST."""
    methods: tuple[MethodName, ...] = ("random", "random-2x", "halving", "hyperband")
    """Methods to compare; random is always there, as the others are compared with it."""
    dataset: str = "digits"
    max_train_examples: int | None = None
    """Training images to use; None is all that are not held out."""
    num_validation: int = 500
    """Training images held out, by which configurations are compared."""
    num_seeds: int = 5
    num_steps: int = 270
    """Training steps of a configuration that is never stopped, R in the paper."""
    min_steps: int = 30
    """Steps before a configuration may be stopped, and between evaluations."""
    eta: int = 3
    """Of so many configurations one continues, to so many times as many steps."""
    convolutions: tuple[int, ...] = (1, 2)
    """Depths to choose from: convolutions of a network."""
    widths: tuple[int, ...] = (8, 16)
    """Widths to choose from: filters of the first convolution."""
    optimizers: tuple[str, ...] = ("momentum", "adam")
    """Optimizers to choose from."""
    paddings: tuple[int, ...] = (0, 1)
    """Augmentations to choose from: pixels by which training images are shifted at most."""
    lowest_rate: float = 1e-4
    """Lower end of the learning rates, which are uniform in their logarithm."""
    highest_rate: float = 1.0
    """Upper end of the learning rates."""
    batch_size: int = 32
    data_dir: Path | None = None
    out: Path = Path("runs/search")
    tensorboard: bool = False
    plot_only: bool = False


PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist",
        dataset="mnist",
        num_validation=10_000,
        num_steps=1_620,
        min_steps=60,
        batch_size=64,
        paddings=(0, 2),
        out=Path("runs/search-mnist"),
    ),
}


# ---------------------------------------------------------------- configurations and methods


def check(options: Options) -> None:
    """Check the options.

    Raises:
      ArgumentError: a number or a list of choices is invalid.
    """
    if options.min_steps > options.num_steps:
        raise jc.ArgumentError(
            f"min_steps is {options.min_steps}, more than the {options.num_steps} steps of a run; "
            f"write --min-steps {max(1, options.num_steps // 9)}"
        )
    # So that every rung is a step with a row.
    longest = make_plan(options).brackets[0]
    exact = options.min_steps * options.eta ** (len(longest) - 1)
    if options.num_steps != exact:
        raise jc.ArgumentError(
            f"num_steps is {options.num_steps}; expected min_steps, {options.min_steps}, times a "
            f"power of eta, {options.eta}: write --num-steps {exact}"
        )
    for name in ("methods", "convolutions", "widths", "optimizers", "paddings"):
        values = getattr(options, name)
        if len(set(values)) < len(values):
            raise jc.ArgumentError(
                f"{name} is {' '.join(map(str, values))}; expected each value once: "
                f"write --{name} {' '.join(map(str, dict.fromkeys(values)))}"
            )
        if not values:
            raise jc.ArgumentError(
                f"{name} is empty; expected at least one value: "
                f"write --{name} {getattr(PRESETS['quick'], name)[0]}"
            )
    if not 0 < options.lowest_rate < options.highest_rate < math.inf:
        raise jc.ArgumentError(
            f"lowest_rate is {options.lowest_rate:g} and --highest-rate {options.highest_rate:g}; "
            "expected the lower one first: write --lowest-rate 0.0001 --highest-rate 1"
        )
    if not options.num_validation:
        raise jc.ArgumentError(
            "num_validation is 0; expected images to select by: write --num-validation 500"
        )


class Plan(NamedTuple):
    """Numbers of a search that all methods share."""

    max_steps: int
    min_steps: int
    eta: int

    @property
    def kwargs(self) -> dict[str, int]:
        """Return the arguments of the functions of `jaxcnn.search`."""
        return {"max_steps": self.max_steps, "eta": self.eta, "min_steps": self.min_steps}

    @property
    def brackets(self) -> tuple[Bracket, ...]:
        """Return the brackets of Hyperband."""
        return search.hyperband_brackets(**self.kwargs)

    @property
    def budget(self) -> int:
        """Return the training steps of all brackets, the budget of every method."""
        return sum(map(search.total_steps, self.brackets))

    def num_configs(self, method: str) -> int:
        """Return the number of configurations of a method."""
        if method == "hyperband":
            return sum(rungs[0].num_configs for rungs in self.brackets)
        if method == "halving":
            return search.num_halving_configs(self.budget, **self.kwargs)
        return (1 + (method == "random-2x")) * self.budget // self.max_steps

    def cost(self, method: str) -> int:
        """Return the training steps of a method, within its budget."""
        if method == "hyperband":
            return self.budget
        n = self.num_configs(method)
        if method == "halving":
            return search.total_steps(
                search.halving_rungs(n, self.max_steps, self.eta, min_steps=self.min_steps)
            )
        return n * self.max_steps

    def search(
        self, method: str, configs: Sequence[Any], evaluate: Callable[[Any, int], float]
    ) -> list[Evaluation]:
        """Run a method on the first configurations of a sequence."""
        configs = configs[: self.num_configs(method)]
        if method in ("random", "random-2x"):
            return search.random_search(configs, evaluate, self.max_steps)
        halve = {"halving": search.successive_halving, "hyperband": search.hyperband}
        return halve[method](configs, evaluate, **self.kwargs)


def check_space(config: jc.ExperimentConfig, options: Options, data: jc.Dataset) -> None:
    """Check every network and optimizer of the space.

    A search draws only some of them at first.

    Args:
      config: any of the space.
      options: with the space.
      data: that the networks are trained on.

    Raises:
      ArgumentError: one cannot be made, or does not fit the images.
    """
    for optimizer in options.optimizers:
        jc.create_optimizer(jc.override(config, optimizer=optimizer).optimizer, options.num_steps)
    for convolutions in options.convolutions:
        for width in options.widths:
            kwargs = {"convolutions": convolutions, "width": width}
            model = jc.create_model(config.model, data.num_classes, **kwargs)
            jc.count_parameters(model, data.train.images.shape[1:])


def make_plan(options: Options) -> Plan:
    """Return the plan of the options."""
    return Plan(options.num_steps, options.min_steps, options.eta)


def method_names(options: Options) -> list[str]:
    """Return the methods of the options in the order of the table."""
    return [name for name in TITLES if name in (*options.methods, "random")]


def configs(options: Options, seed: int, count: int) -> list[jc.ExperimentConfig]:
    """Return the first random configurations of a seed.

    Args:
      options: with the space.
      seed: of the search and of all its runs.
      count: number of configurations. More of them start with the same ones.
    """
    space = {
        "convolutions": options.convolutions,
        "width": options.widths,
        "optimizer": options.optimizers,
        "learning_rate": LogUniform(options.lowest_rate, options.highest_rate),
        "padding": options.paddings,
    }
    base = jc.ExperimentConfig(
        dataset=options.dataset,
        model="convnet",
        num_validation=options.num_validation,
        max_train_examples=options.max_train_examples,
        optimizer=jc.OptimizerConfig(schedule="cosine", milestones=()),
        train=jc.TrainConfig(
            num_steps=options.num_steps,
            batch_size=options.batch_size,
            eval_every=options.min_steps,
            eval_split="validation",
            seed=seed,
        ),
    )
    rng, sampled = np.random.default_rng(seed), []
    for _ in range(count):
        values = search.sample(space, rng)
        model_kwargs = {name: values.pop(name) for name in ("convolutions", "width")}
        sampled.append(jc.override(base, model_kwargs=model_kwargs, **values))
    return sampled


# ---------------------------------------------------------------- training


def train(options: Options, stop: cli.GracefulShutdown) -> bool:
    """Search with all methods and seeds; return False if unfinished."""
    check(options)
    plan, methods, seeds = make_plan(options), method_names(options), options.run_seeds()
    count = max(map(plan.num_configs, methods))
    sampled = {seed: configs(options, seed, count) for seed in seeds}
    strategy = options.make_strategy()
    cli.enable_compilation_cache()
    data = jc.load_dataset(options.dataset, options.data_dir, validation=options.num_validation)
    check_space(sampled[seeds[0]][0], options, data)
    evaluate = runs.experiment_evaluator(
        data, options.out, should_stop=stop, strategy=strategy, tensorboard=options.tensorboard
    )
    has_all, searches = True, {}
    total = len(seeds) * sum(map(plan.cost, methods))
    with Progress(total, quiet=not multihost.is_primary()) as progress:
        for seed in seeds:
            for method in methods:
                title = f"{method}, seed {seed}"
                followed = _with_progress(evaluate, progress, title)
                try:
                    evaluations = plan.search(method, sampled[seed], followed)
                except runs.SearchStopped:
                    return False
                except FolderInUseError as error:
                    if error.by_this_process:
                        raise
                    # Another process trains for this search. Others may have work left.
                    has_all = False
                    continue
                searches[seed, method] = evaluations
                progress.write(_describe(title, evaluations, options.num_steps))
    if has_all:
        write_records(options, sampled, searches, data)
    return has_all


def _with_progress(
    evaluate: Callable[[Any, int], float], progress: Progress, title: str
) -> Callable[[Any, int], float]:
    """Return `evaluate` that reports the steps that it adds to each configuration."""
    trained: dict[str, int] = {}

    def evaluate_and_report(config: jc.ExperimentConfig, num_steps: int) -> float:
        error, name = evaluate(config, num_steps), runs.run_name(config)
        added = num_steps - trained.get(name, 0)
        trained[name] = num_steps
        progress.advance(added, f"{title}  {len(trained)} configurations")
        return error

    return evaluate_and_report


def _describe(title: str, evaluations: Sequence[Evaluation], max_steps: int) -> str:
    """Return a line about a search, with the error of the configuration that it chooses."""
    count, spent = len({each.index for each in evaluations}), evaluations[-1].spent
    error = choice(evaluations, max_steps).error
    return f"{title}  {count} configurations, {spent:,} steps, validation error {error:5.2f}%"


def choice(evaluations: Sequence[Evaluation], max_steps: int) -> Evaluation:
    """Return the evaluation of the configuration that a method chooses.

    It has the lowest validation error of those that were trained to the end of their schedule.
    """
    return search.best([each for each in evaluations if each.num_steps == max_steps])


def test_error(folder: Path, data: jc.Dataset) -> float | None:
    """Return the test error of a run in percent; None if it diverged."""
    if read_json(folder / "result.json")["status"] != "finished":
        return None
    trained = runs.load_trained_model(folder, data=data)
    return jc.evaluate(trained.model, trained.last, data.test).error_percent


def write_records(
    options: Options,
    sampled: Mapping[int, Sequence[jc.ExperimentConfig]],
    searches: Mapping[tuple[int, str], Sequence[Evaluation]],
    data: jc.Dataset,
) -> None:
    """Write the files that `draw` reads.

    Only the runs that a method chose get a test error.

    Args:
      options: of the study.
      sampled: configurations by seed.
      searches: evaluations by seed and method.
      data: with the test split.
    """
    used, chosen = set(), set()
    for (seed, _), evaluations in searches.items():
        used |= {(seed, each.index) for each in evaluations}
        chosen.add((seed, choice(evaluations, options.num_steps).index))
    lines = []
    for seed, index in sorted(used):
        config = sampled[seed][index]
        folder = options.out / runs.run_name(config)
        rows = read_metrics(folder)
        line = {
            "seed": seed,
            "index": index,
            "name": folder.name,
            "config": as_dict(config),
            "test_error": test_error(folder, data) if (seed, index) in chosen else None,
            # None where training has diverged.
            "rows": [
                [row["step"], None if "diverged" in row else row["eval_error"], row["seconds"]]
                for row in rows
            ],
        }
        lines.append(json.dumps(line, separators=(",", ":")) + "\n")
    methods = list(dict.fromkeys(method for _, method in searches))
    settings = {"methods": methods, **make_plan(options)._asdict()}
    if multihost.is_primary():
        write_text(options.out / TRIALS, "".join(lines))
        write_text(options.out / SETTINGS, json.dumps(settings, indent=2) + "\n")


# ---------------------------------------------------------------- reading


class Trial(NamedTuple):
    """A trained configuration, as `trials.jsonl` holds it."""

    config: jc.ExperimentConfig
    rows: list[list[Any]]
    """Step, validation error in percent (None: diverged) and seconds of each row."""
    test_error: float | None
    """In percent; None for a configuration that no method chose."""

    def error(self, num_steps: int) -> float:
        """Return the validation error after so many steps, in percent.

        It is nan if training has diverged.

        Raises:
          LogError: there is no such row.
        """
        for step, error, _ in self.rows:
            if step == num_steps or error is None:
                return math.nan if error is None else float(error)
        raise LogError(
            f"a trial of {TRIALS} has no row of step {num_steps}, which the search needs; "
            "delete that file and repeat the command"
        )


class Study(NamedTuple):
    """A finished study, its searches replayed from its trials."""

    plan: Plan
    trials: dict[int, list[Trial]]
    """By seed, in the order of sampling."""
    searches: dict[str, dict[int, list[Evaluation]]]
    """Evaluations by method and seed."""


def read_study(out: Path) -> Study:
    """Return the study of a folder.

    The searches are functions of the errors, so they are repeated from the recorded ones.

    Raises:
      ArgumentError: the folder has no finished study.
      LogError: a record is damaged.
    """
    if not (out / TRIALS).is_file() or not (out / SETTINGS).is_file():
        raise jc.ArgumentError(
            f"{out} holds no finished search; write --out with a study's folder, or leave out "
            "--plot-only"
        )
    settings = read_json(out / SETTINGS)
    plan = Plan(**{name: settings[name] for name in Plan._fields})
    trials: dict[int, list[Trial]] = {}
    indices: dict[int, list[Any]] = {}
    for line in read_lines(out / TRIALS, "trial"):
        trial = Trial(
            jc.ExperimentConfig.from_dict(line["config"]), line["rows"], line["test_error"]
        )
        trials.setdefault(int(line["seed"]), []).append(trial)
        indices.setdefault(int(line["seed"]), []).append(line["index"])
    methods = [name for name in TITLES if name in settings["methods"]]
    if not trials or "random" not in methods:
        raise LogError(
            f"{out} holds no trials, or no random search; delete {TRIALS} and repeat the command"
        )
    needed = max(map(plan.num_configs, methods))
    for seed, places in sorted(indices.items()):
        count = len(places)
        if count != needed or places != list(range(count)):
            plural, order = "s" * (count != 1), ", out of order" * (count == needed)
            raise LogError(
                f"{out / TRIALS} has {count} trial{plural} of seed {seed}{order}; expected the "
                f"first {needed} in their order; delete that file and repeat the command"
            )
    searches = {
        method: {
            seed: plan.search(method, group, Trial.error) for seed, group in sorted(trials.items())
        }
        for method in methods
    }
    return Study(plan, trials, searches)


# ---------------------------------------------------------------- tables


def chosen_trials(study: Study, method: str) -> dict[int, Trial]:
    """Return the trial that a method chose, by seed."""
    return {
        seed: study.trials[seed][choice(evaluations, study.plan.max_steps).index]
        for seed, evaluations in study.searches[method].items()
    }


def _statistics(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    """Return columns of the mean, the deviation and the interval."""
    # A choice that diverged has no error, and a mean must not leave it out.
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    complete = numbers if len(numbers) == len(values) else []
    mean, std, ci95 = tables.seed_statistics(complete)
    return {name: mean, f"{name}_std": std, f"{name}_ci95": ci95}


def _difference(error: float | None, other: float | None) -> float | None:
    return None if error is None or other is None else error - other


def table_rows(study: Study) -> list[dict[str, Any]]:
    """Return the table, a row for each method.

    It has means over seeds, and differences to random search, paired by seed.
    """
    end, lines = study.plan.max_steps, []
    errors = {
        method: {
            seed: (trial.error(end), trial.test_error)
            for seed, trial in chosen_trials(study, method).items()
        }
        for method in study.searches
    }
    for method, by_seed in errors.items():
        evaluations = next(iter(study.searches[method].values()))
        line: dict[str, Any] = {
            "method": method,
            "seeds": len(by_seed),
            "steps": evaluations[-1].spent,
            "configs": len({each.index for each in evaluations}),
            "trained_to_end": sum(each.num_steps == end for each in evaluations),
        }
        for place, split in enumerate(("validation", "test")):
            values = [pair[place] for pair in by_seed.values()]
            line |= _statistics(f"{split}_error", values)
        for place, split in enumerate(("validation", "test")):
            differences = [
                _difference(pair[place], errors["random"][seed][place])
                for seed, pair in by_seed.items()
            ]
            change = _statistics(f"{split}_minus_random", differences)
            line |= dict.fromkeys(change) if method == "random" else change
        lines.append(line)
    return lines


def chosen_rows(study: Study) -> list[dict[str, Any]]:
    """Return a row for the choice of each method and seed."""
    return [
        {
            "seed": seed,
            "method": method,
            "convolutions": trial.config.model_kwargs["convolutions"],
            "width": trial.config.model_kwargs["width"],
            "optimizer": trial.config.optimizer.name,
            "learning_rate": trial.config.optimizer.learning_rate,
            "padding": trial.config.train.augment.padding,
            # None as in the test error where training has diverged.
            "validation_error": _finite(trial.error(study.plan.max_steps)),
            "test_error": trial.test_error,
        }
        for seed in study.trials
        for method in study.searches
        for trial in [chosen_trials(study, method)[seed]]
    ]


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rank correlation.

    Equal values have their mean rank, and nan is the largest. It is nan where all values are equal.

    Example:
      >>> round(rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, float("nan")]), 6)
      1.0
    """

    def ranks(values: Sequence[float]) -> np.ndarray:
        array = np.array(values, np.float64)
        array[np.isnan(array)] = np.inf
        below, equal = array[:, None] > array, array[:, None] == array
        return below.sum(1) + equal.sum(1) / 2

    a_ranks, b_ranks = ranks(a), ranks(b)
    if not (np.ptp(a_ranks) and np.ptp(b_ranks)):
        return math.nan
    return float(np.corrcoef(a_ranks, b_ranks)[0, 1])


def early_ranks(study: Study) -> dict[int, list[float]]:
    """Return the rank correlations of early errors with those at the end.

    The result maps the step of each rung to a list over seeds.

    They are over the configurations that the largest random search trained to the end, which no
    halving has selected.
    """
    method = "random-2x" if "random-2x" in study.searches else "random"
    correlations: dict[int, list[float]] = {}
    for seed, evaluations in study.searches[method].items():
        group = [study.trials[seed][each.index] for each in evaluations]
        late = [trial.error(study.plan.max_steps) for trial in group]
        for rung in study.plan.brackets[0][:-1]:
            early = [trial.error(rung.num_steps) for trial in group]
            correlation = rank_correlation(early, late)
            if not math.isnan(correlation):
                correlations.setdefault(rung.num_steps, []).append(correlation)
    return correlations


def compilation_seconds(study: Study) -> tuple[float, int, float]:
    """Return seconds of compilation, number of programs, and all seconds.

    Configurations that differ in nothing but the learning rate and the seed share a program. The
    slowest first row of a program has its compilation. The fastest one of the same network has
    none.
    """
    slowest: dict[Any, float] = {}
    fastest: dict[Any, float] = {}
    total = 0.0
    for trial in (trial for group in study.trials.values() for trial in group):
        config = trial.config
        shape = tuple(sorted(config.model_kwargs.items()))
        program = shape, config.optimizer.name, config.train.augment.padding
        first = trial.rows[0][2]
        slowest[program] = max(first, slowest.get(program, 0.0))
        fastest[shape] = min(first, fastest.get(shape, math.inf))
        total += math.fsum(row[2] for row in trial.rows)
    seconds = math.fsum(first - fastest[program[0]] for program, first in slowest.items())
    return seconds, len(slowest), total


def notes(study: Study) -> list[str]:
    """Return the notes below the table."""
    config, plan = next(iter(study.trials.values()))[0].config, study.plan
    seconds, programs, total = compilation_seconds(study)
    ranks = ", ".join(
        f"{statistics.fmean(values):.2f} after {step} steps ({min(values):.2f} to "
        f"{max(values):.2f})"
        for step, values in early_ranks(study).items()
    )
    return [
        f"{config.model} on {config.dataset}, at most {plan.max_steps} steps of "
        f"{config.train.batch_size} images, cosine schedule of {plan.max_steps} steps. "
        f"{config.num_validation} training images are held out for validation.",
        f"Budget: {plan.budget} steps, those of Hyperband with eta {plan.eta} and at least "
        f"{plan.min_steps} steps; random-2x has twice as many. configs: sampled. trained_to_end: "
        f"of these, trained for {plan.max_steps} steps.",
        "Errors in percent after the last step, of the configuration with the lowest validation "
        "error among those trained to the end. ± is the half width of the 95% interval of the "
        "mean over seeds of the search. minus_random: paired differences to random, which has the "
        "same first configurations.",
        f"Rank correlation with the final validation error, over the configurations of the largest "
        f"random search, mean and range over seeds: {ranks or 'none'}.",
        f"Compilation of {programs} program{'s' * (programs != 1)} took {seconds:.0f} of "
        f"{total:.0f} seconds of training and evaluation.",
    ]


# ---------------------------------------------------------------- figures


def floor(study: Study) -> float:
    """Return the error that is drawn in place of 0, in percent.

    It is that of half a validation image.
    """
    return 50 / next(iter(study.trials.values()))[0].config.num_validation


def budget_panel(study: Study) -> plots.Panel:
    """Return the lowest validation error so far against the steps spent."""
    plan, lines = study.plan, []
    # Twice the budget continues the same search.
    hidden = "random" if "random-2x" in study.searches else ""
    for method, by_seed in study.searches.items():
        if method == hidden:
            continue
        rows = []
        for evaluations in by_seed.values():
            grid = range(plan.min_steps, evaluations[-1].spent + 1, plan.min_steps)
            rows.append([{"step": step, "error": _lowest(evaluations, step)} for step in grid])
        # A mean over seeds starts where all of them have an error.
        valid = [
            [row for row in seed_rows if all(_at(other, row["step"]) for other in rows)]
            for seed_rows in rows
        ]
        title = TITLES["random" if method == "random-2x" else method]
        lines.append(plots.band(valid, "step", "error", label=title))
    marks = [plots.Mark(plan.budget, "x", "budget")] if hidden else []
    return plots.Panel(
        "",
        lines,
        marks,
        xlabel="training steps spent",
        ylabel="lowest validation error so far (%)",
        ylog=True,
    )


def _lowest(evaluations: Sequence[Evaluation], spent: int) -> float | None:
    """Return the lowest error within so many steps, or None."""
    errors = [each.error for each in evaluations if each.spent <= spent]
    return min((error for error in errors if not math.isnan(error)), default=None)


def _at(rows: Sequence[Mapping[str, Any]], step: int) -> bool:
    return any(row["step"] == step and row["error"] is not None for row in rows)


def stop_style(step: int, plan: Plan) -> dict[str, Any]:
    """Return the style of configurations trained for so many steps."""
    steps = [rung.num_steps for rung in plan.brackets[0]]
    if step == plan.max_steps:
        return {"label": f"trained to the end ({step} steps)", "color": "#D55E00", "width": 2.0}
    colors = ["0.72", "#56B4E9", "#0072B2", "#009E73"]
    color = colors[steps.index(step) % len(colors)]
    return {"label": f"stopped after {step} steps", "color": color, "width": 1.2}


def last_evaluations(evaluations: Sequence[Evaluation]) -> dict[int, Evaluation]:
    """Return the last evaluation of each configuration, by its index."""
    return {each.index: each for each in evaluations}


def bracket_panels(study: Study, seed: int) -> list[plots.Panel]:
    """Return a panel of learning curves for each bracket of a seed."""
    low, panels = floor(study), []
    for method in (name for name in ("halving", "hyperband") if name in study.searches):
        evaluations = study.searches[method][seed]
        for number in sorted({each.bracket for each in evaluations}):
            bracket = [each for each in evaluations if each.bracket == number]
            ends = sorted(last_evaluations(bracket).values(), key=lambda each: each.num_steps)
            lines, crosses = [], []
            for each in ends:
                rows = study.trials[seed][each.index].rows
                shown = [row for row in rows if row[0] <= each.num_steps]
                errors = [None if row[1] is None else max(low, row[1]) for row in shown]
                style = stop_style(each.num_steps, study.plan)
                lines.append(plots.Line([row[0] for row in shown], errors, **style))
                if math.isnan(each.error):
                    crosses.append((shown[-1][0], None))
            steps = sorted({each.num_steps for each in bracket}, reverse=True)
            counts = " → ".join(
                str(sum(each.num_steps == step for each in bracket)) for step in steps[::-1]
            )
            name = "halving" if method == "halving" else f"Hyperband, bracket {len(steps) - 1}"
            panels.append(
                plots.Panel(
                    f"{name}: {counts}",
                    lines,
                    [plots.Mark(step) for step in steps[1:]],
                    xlabel="step",
                    ylabel="validation error (%)",
                    xlog=True,
                    ylog=True,
                    crosses=crosses,
                )
            )
    return panels


def space_panels(study: Study) -> list[plots.Panel]:
    """Return the configurations of successive halving: last error against learning rate.

    There is a panel for each optimizer, with the configurations of all seeds.
    """
    method = "halving" if "halving" in study.searches else "hyperband"
    points: dict[str, list[tuple[float, Evaluation]]] = {}
    for seed, evaluations in study.searches[method].items():
        for each in last_evaluations(evaluations).values():
            optimizer = study.trials[seed][each.index].config.optimizer
            points.setdefault(optimizer.name, []).append((optimizer.learning_rate, each))
    panels = []
    for name, group in sorted(points.items()):
        lines = []
        for step in sorted({each.num_steps for _, each in group}):
            ends = [(rate, each) for rate, each in group if each.num_steps == step]
            style = stop_style(step, study.plan)
            lines += [
                plots.Line([rate], [max(floor(study), each.error)], marker="o", **style)
                for rate, each in ends
                if not math.isnan(each.error)
            ]
        crosses = [(rate, None) for rate, each in group if math.isnan(each.error)]
        panels.append(
            plots.Panel(
                name,
                lines,
                xlabel="learning rate",
                ylabel="last validation error (%)",
                xlog=True,
                ylog=True,
                crosses=crosses,
            )
        )
    return panels


def draw(options: Options) -> None:
    """Write the tables and the figures of the finished study in `options.out`."""
    out, study = options.out, read_study(options.out)
    table = table_rows(study)
    tables.write_table(out, table, notes(study))
    tables.write_table(out, chosen_rows(study), name="chosen")
    config = next(iter(study.trials.values()))[0].config
    data = display_names(config.dataset)
    count = len(study.trials)
    over = f"mean and range over {count} seeds" if count > 1 else "1 seed"
    title = f"Search on {data}: {over}"
    options.save(plots.panels([budget_panel(study)], title=title, size=(7.0, 4.2)), out / "budget")
    seed = min(study.trials)
    written = ["budget"]
    if {"halving", "hyperband"} & study.searches.keys():
        figure = plots.panels(
            bracket_panels(study, seed),
            columns=2,
            size=(4.3, 3.0),
            title=f"Learning curves on {data}, by the rung that stopped them (seed {seed})",
        )
        options.save(figure, out / "brackets")
        figure = plots.panels(
            space_panels(study),
            size=(4.3, 3.4),
            title=f"Configurations on {data} when they were stopped, all seeds",
        )
        options.save(figure, out / "space")
        written += ["brackets", "space"]
    print(tables.compact_markdown(table))
    names = ", ".join(f"{name}.{options.format}" for name in written)
    print(f"wrote {out}/table.md, table.csv, chosen.md, chosen.csv and {names}")


def main(args: list[str] | None = None) -> int:
    """Search with all methods, then draw; return the exit code."""
    return run_study(PRESETS, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
