"""Training of a study, its records, and their reading."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jaxcnn as jc
from experiments.search.options import (
    Options,
    check,
    check_space,
    configs,
    make_plan,
    method_names,
)
from experiments.search.plan import TITLES, Plan, choice
from jaxcnn import cli, multihost, runs
from jaxcnn.checkpoint import FolderInUseError
from jaxcnn.config import as_dict
from jaxcnn.progress import Progress
from jaxcnn.run_log import LogError, read_json, read_lines, read_metrics, write_text
from jaxcnn.search import Evaluation

TRIALS, SETTINGS = "trials.jsonl", "search.json"
"""Files of all runs and of the numbers of the search, from which tables and figures are made."""


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
    used = {(seed, each.index) for (seed, _), group in searches.items() for each in group}
    chosen = {
        (seed, choice(evaluations, options.num_steps).index)
        for (seed, _), evaluations in searches.items()
    }
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

    @property
    def config(self) -> jc.ExperimentConfig:
        """Return the config of a trial, of which all have the data and the numbers of steps."""
        return next(iter(self.trials.values()))[0].config

    @property
    def largest_random(self) -> str:
        """Return the random search with the most configurations."""
        return "random-2x" if "random-2x" in self.searches else "random"

    def chosen(self, method: str, seed: int) -> Trial:
        """Return the trial that a method chose."""
        return self.trials[seed][choice(self.searches[method][seed], self.plan.max_steps).index]


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
    lines: dict[int, list[dict[str, Any]]] = {}
    for line in read_lines(out / TRIALS, "trial"):
        lines.setdefault(int(line["seed"]), []).append(line)
    methods = [name for name in TITLES if name in settings["methods"]]
    if not lines or "random" not in methods:
        raise LogError(
            f"{out} holds no trials, or no random search; delete {TRIALS} and repeat the command"
        )
    needed = max(map(plan.num_configs, methods))
    for seed, group in sorted(lines.items()):
        count = len(group)
        if count != needed or [line["index"] for line in group] != list(range(count)):
            plural, order = "s" * (count != 1), ", out of order" * (count == needed)
            raise LogError(
                f"{out / TRIALS} has {count} trial{plural} of seed {seed}{order}; expected the "
                f"first {needed} in their order; delete that file and repeat the command"
            )
    trials = {
        seed: [
            Trial(jc.ExperimentConfig.from_dict(line["config"]), line["rows"], line["test_error"])
            for line in group
        ]
        for seed, group in sorted(lines.items())
    }
    searches = {
        method: {seed: plan.search(method, group, Trial.error) for seed, group in trials.items()}
        for method in methods
    }
    return Study(plan, trials, searches)
