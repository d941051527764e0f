"""Runs without BN beside those of the depth study: the same recipe, at the best of a few rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxcnn as jc
from experiments.signal_propagation.networks import counterpart, net, trained
from experiments.signal_propagation.options import Options, data
from jaxcnn import runs, training


def trials(options: Options) -> dict[str, jc.Recipe]:
    """Run's name -> recipe: one seed of each network at every rate."""
    seen, all_runs = set(), {}
    for folder, recipe in trained(options).items():
        kind = net(recipe)
        if kind and kind.label not in seen:
            seen.add(kind.label)
            short: dict[str, Any] = {"steps": options.trial_steps, "every": max(1, options.trial_steps // 2)}
            for rate in options.rates:
                all_runs[f"{folder.name}-rate{rate:g}"] = replace(counterpart(recipe, rate), **short)
    return all_runs


def check(options: Options) -> None:
    """ArgumentError for rates or steps that cannot be meant."""
    if not options.rates:
        raise jc.ArgumentError("rates is empty; write --rates 0.05 0.005, or --no-counterparts")
    for recipe in trials(options).values():
        there = runs.subset_for(recipe, _data(options, recipe))
        training.check_config(recipe, there, jc.strategy(options.strategy))


def run(options: Options, stop: Any) -> bool:
    """Find the rates, then train what is missing; False when stopped on the way."""
    recipes = trials(options)
    there, how = _data(options, next(iter(recipes.values()))), {"strategy": jc.strategy(options.strategy), "stop": stop}
    if runs.sweep(recipes, there, options.out / "trials", brief=True, **how) is None:
        return False
    best = rates(options.out / "trials")
    all_runs = {f.name: counterpart(recipe, best[_label(recipe)]) for f, recipe in trained(options).items()}
    keep: dict[str, Any] = {"keep_every": options.keep_every, "brief": True}
    return runs.sweep(all_runs, there, options.out / "without", **keep, **how) is not None


def rates(folder: Path) -> dict[str, float]:
    """Network -> its rate: of the trials that did not diverge that of the least training loss, or the smallest of all."""
    by: dict[str, list[runs.Run]] = {}
    for run in runs.finished_runs(folder):
        by.setdefault(_label(run.recipe), []).append(run)
    good = {name: [run for run in all_runs if run.divergence is None] for name, all_runs in by.items()}
    least = {name: min(all_runs, key=lambda run: run.recipe.lr) for name, all_runs in by.items()}
    best = {name: min(good[name], key=lambda run: run.result["train_loss"], default=least[name]) for name in by}
    return {name: run.recipe.lr for name, run in best.items()}


def told(folder: Path) -> list[str]:
    """How the rates were found, in a sentence; nothing where there was no trial."""
    try:
        all_runs = sorted(runs.finished_runs(folder), key=lambda run: -run.recipe.lr)
    except jc.ArgumentError:
        return []
    losses: dict[str, list[str]] = {}
    for run in all_runs:
        loss = "diverged" if run.divergence else f"{run.result['train_loss']:.4g}"
        losses.setdefault(_label(run.recipe), []).append(f"{run.recipe.lr:g}: {loss}")
    each = "; ".join(f"{name} {', '.join(found)}" for name, found in sorted(losses.items()))
    half, steps = all_runs[0].recipe.every, all_runs[0].recipe.steps
    return [f"Without BN the rate is that of the least training loss in the last {half} of {steps} steps: {each}."]


def folders(options: Options) -> list[Path]:
    """The runs without BN that are over, of the networks looked at."""
    places = [options.out / "without" / folder.name for folder in trained(options)]
    return [place for place in places if options.counterparts and (place / "result.json").exists()]


def _data(options: Options, recipe: jc.Recipe) -> jc.Dataset:
    return data(recipe.dataset, options.data_dir, recipe.validation)


def _label(recipe: jc.Recipe) -> str:
    kind = net(recipe)
    return kind.label if kind else recipe.model
