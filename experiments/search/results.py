"""Tables of a study and the notes below them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from scipy import stats

from experiments.search.study import Study
from jaxcnn import tables


def table_rows(study: Study) -> list[dict[str, Any]]:
    """Return the table, a row for each method.

    It has means over seeds, and differences to random search, paired by seed.
    """
    chosen = {(row["method"], row["seed"]): row for row in chosen_rows(study)}
    lines = []
    for method, by_seed in study.searches.items():
        evaluations = next(iter(by_seed.values()))
        line: dict[str, Any] = {
            "method": method,
            "seeds": len(by_seed),
            "steps": evaluations[-1].spent,
            "configs": len({each.index for each in evaluations}),
            "trained_to_end": sum(each.num_steps == study.plan.max_steps for each in evaluations),
        }
        for name in ("validation_error", "test_error"):
            line |= _statistics(name, [chosen[method, seed][name] for seed in by_seed])
        for split in ("validation", "test"):
            differences = [
                _difference(*(chosen[each, seed][f"{split}_error"] for each in (method, "random")))
                for seed in by_seed
            ]
            change = _statistics(f"{split}_minus_random", differences)
            line |= dict.fromkeys(change) if method == "random" else change
        lines.append(line)
    return lines


def _statistics(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    """Return columns of the mean, the deviation and the interval."""
    # A choice that diverged has no error, and a mean must not leave it out.
    numbers = [value for value in values if value is not None]
    mean, std, ci95 = tables.seed_statistics(numbers if len(numbers) == len(values) else [])
    return {name: mean, f"{name}_std": std, f"{name}_ci95": ci95}


def _difference(error: float | None, other: float | None) -> float | None:
    return None if error is None or other is None else error - other


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
        for trial in [study.chosen(method, seed)]
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
    ranks = [stats.rankdata(np.nan_to_num(values, nan=np.inf)) for values in (a, b)]
    if not all(map(np.ptp, ranks)):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def early_ranks(study: Study) -> dict[int, list[float]]:
    """Return the rank correlations of early errors with those at the end.

    The result maps the step of each rung to a list over seeds.

    They are over the configurations that the largest random search trained to the end, which no
    halving has selected.
    """
    correlations: dict[int, list[float]] = {}
    for seed, evaluations in study.searches[study.largest_random].items():
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
    for trial in chain.from_iterable(study.trials.values()):
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
    config, plan = study.config, study.plan
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
