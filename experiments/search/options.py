"""Options of the experiment, their checks, and the configurations that they describe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

import jaxcnn as jc
from experiments._common import DeviceOptions, FigureOptions, SeedOptions
from experiments.search.plan import TITLES, Plan
from jaxcnn.search import LogUniform, sample

MethodName = Literal["random", "random-2x", "halving", "hyperband"]


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


def make_plan(options: Options) -> Plan:
    """Return the plan of the options."""
    return Plan(options.num_steps, options.min_steps, options.eta)


def method_names(options: Options) -> list[str]:
    """Return the methods of the options in the order of the table."""
    return [name for name in TITLES if name in (*options.methods, "random")]


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
        values = sample(space, rng)
        model_kwargs = {name: values.pop(name) for name in ("convolutions", "width")}
        sampled.append(jc.override(base, model_kwargs=model_kwargs, **values))
    return sampled


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
