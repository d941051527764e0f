"""Runs without BN next to those of the depth study.

They have the same config, at the best of a few rates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jaxcnn as jc
from experiments._common import run_all
from experiments.signal_propagation.options import (
    Options,
    load_data,
    parse_network,
    run_configs,
    without_batch_norm,
)
from jaxcnn import runs
from jaxcnn.training_checks import check_config


def trial_configs(options: Options) -> dict[str, jc.ExperimentConfig]:
    """Return name of a run -> config, for all trials.

    Each network is tried with one seed at every rate.
    """
    labels, configs = set(), {}
    for folder, config in run_configs(options).items():
        network = parse_network(config)
        if network and network.label not in labels:
            labels.add(network.label)
            for rate in options.rates:
                configs[f"{folder.name}-rate{rate:g}"] = jc.override(
                    without_batch_norm(config, rate),
                    num_steps=options.trial_steps,
                    eval_every=max(1, options.trial_steps // 2),
                )
    return configs


def check(options: Options) -> None:
    """Check the rates and the steps of the trials.

    Raises:
      ArgumentError: one of them is invalid.
    """
    if not options.rates:
        raise jc.ArgumentError("rates is empty; write --rates 0.05 0.005, or --no-counterparts")
    for config in trial_configs(options).values():
        dataset = runs.subset_for(config, _load_data(options, config))
        check_config(config.train, dataset, options.make_strategy())


def run(options: Options, stop: Any) -> bool:
    """Find the rates, then train the missing runs.

    Returns:
      False if some of them are not finished.
    """
    configs = trial_configs(options)
    dataset = _load_data(options, next(iter(configs.values())))
    kwargs = {"strategy": options.make_strategy(), "should_stop": stop}
    if not run_all(configs, dataset, options.out / "trials", quiet=True, **kwargs):
        return False
    rates = best_rates(options.out / "trials")
    final_configs = {
        folder.name: without_batch_norm(config, rates[_network_name(config)])
        for folder, config in run_configs(options).items()
    }
    sweep_kwargs: dict[str, Any] = {"keep_every": options.keep_every, "quiet": True}
    return run_all(final_configs, dataset, options.out / "without", **sweep_kwargs, **kwargs)


def best_rates(folder: Path) -> dict[str, float]:
    """Return network -> its best rate.

    It is that of the least training loss, among trials that did not diverge. If all diverged, it is
    the smallest.
    """
    by_network: dict[str, list[runs.Run]] = {}
    for run in runs.finished_runs(folder):
        by_network.setdefault(_network_name(run.config), []).append(run)
    converged = {
        name: [run for run in network_runs if run.divergence is None]
        for name, network_runs in by_network.items()
    }
    smallest = {
        name: min(network_runs, key=lambda run: run.config.optimizer.learning_rate)
        for name, network_runs in by_network.items()
    }
    # Where all trials diverged, the smallest rate is the most careful choice.
    best = {
        name: min(converged[name], key=lambda run: run.result["train_loss"], default=smallest[name])
        for name in by_network
    }
    return {name: run.config.optimizer.learning_rate for name, run in best.items()}


def rate_note(folder: Path) -> list[str]:
    """Return a sentence on the choice of rates, if there were trials."""
    try:
        trial_runs = sorted(
            runs.finished_runs(folder), key=lambda run: -run.config.optimizer.learning_rate
        )
    except jc.ArgumentError:
        return []
    losses: dict[str, list[str]] = {}
    for run in trial_runs:
        loss = "diverged" if run.divergence else f"{run.result['train_loss']:.4g}"
        losses.setdefault(_network_name(run.config), []).append(
            f"{run.config.optimizer.learning_rate:g}: {loss}"
        )
    losses_text = "; ".join(f"{name} {', '.join(texts)}" for name, texts in sorted(losses.items()))
    half, steps = trial_runs[0].config.train.eval_every, trial_runs[0].config.train.num_steps
    return [
        f"Without BN the rate is that of the least training loss in the last {half} of {steps} "
        f"steps: {losses_text}."
    ]


def finished_folders(options: Options) -> list[Path]:
    """Return the finished runs without BN of the measured networks."""
    paths = [options.out / "without" / folder.name for folder in run_configs(options)]
    return [path for path in paths if options.counterparts and (path / "result.json").exists()]


def _load_data(options: Options, config: jc.ExperimentConfig) -> jc.Dataset:
    return load_data(config.dataset, options.data_dir, config.num_validation)


def _network_name(config: jc.ExperimentConfig) -> str:
    network = parse_network(config)
    return network.label if network else config.model
