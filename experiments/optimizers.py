"""Comparison of optimizers, each tuned with the same number of trials.

    python -m experiments.optimizers                   digits, no download: 2 minutes on two CPU
                                                       cores
    python -m experiments.optimizers --preset mnist    LeNet-5 on MNIST: 30 minutes there, next to
                                                       other work

Every method of `jaxcnn.OPTIMIZERS` is tuned over five rates of its own, half a decade apart. Tuning
uses images held out of the training set and seeds 1000, 1001, ... Then the best rate is run from
seeds 0, 1, ... and measured on the test set, which tuning never used. Such a comparison depends on
equal budgets of tuning: Choi et al. 2019 (arXiv:1910.05446), Schmidt et al. 2021
(arXiv:2007.01547). This is the protocol of the latter, made small.

Expected, quick: test errors of 2.4 to 6%, and 95% intervals of 1 to 5 points to either side, most
of which overlap. Three seeds and 360 test images rank the methods roughly at best. Their best rates
are up to 300 times apart. muon fits the training images best (a loss of 0.0006 nats; sgd 0.09). One
image of validation decides some rates. MNIST: 1.26% (muon) to 3.08% (noisy), in
`experiments/results/optimizers-mnist`.

It writes OUT/table.md, OUT/table.csv, OUT/sensitivity.png, OUT/curves.png, OUT/ranking.png and
folders OUT/tune/METHOD-RATE-seedK and OUT/final/METHOD-seedK. The same command resumes a study that
was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jaxcnn as jc
from experiments import hyperparameter_search as search
from experiments._common import DtypeName, StrategyName, run_study
from jaxcnn import cli, runs, tables
from jaxcnn.config import check_choice, field_names

TUNING = 1000
"""First seed of tuning, beyond all those of the final runs."""
L2_INSIDE = ("sam", "lars")
"""Methods that add `weight_decay * w` to the gradient themselves.

Their coefficient is that of L2. The decay of the other methods with one is decoupled.
"""
CONSTANT = ("schedule-free",)
"""Methods without a schedule: averaging takes its place (Defazio et al. 2024)."""


@dataclass(frozen=True)
class Options:
    """Every setting of the comparison; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    """quick: digits on any machine. mnist: LeNet-5 with ReLU."""
    dataset: str = "digits"
    """digits, mnist, fashion_mnist, cifar10, cifar100 or svhn_cropped."""
    model: str = "convnet"
    """Any model of `jaxcnn.create_model`."""
    width: int | None = None
    """Filters of the first layer, for models that have the option; None is the model's own."""
    hidden: int | None = None
    """Units of a dense layer (convnet), or of both of them (mlp)."""
    methods: tuple[str, ...] = tuple(jc.OPTIMIZERS)
    rates: tuple[float, ...] = ()
    """Tried for every method; empty is each method's own grid."""
    tune_seeds: int = 1
    """Trials of every rate, from seeds 1000, 1001, ..."""
    seeds: int = 3
    """Final runs of every method, from seeds 0, 1, ..."""
    num_steps: int = 200
    batch_size: int = 64
    schedule: Literal[
        "constant", "cosine", "exponential", "one-cycle", "plateau", "restarts", "warmup"
    ] = "cosine"
    """Schedule of every method but schedule-free, whose rate is constant."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    """L2, where decay is part of the gradient."""
    decoupled_decay: float = 1e-2
    """Coefficient of adamw, lamb, lion, muon and prodigy, which decay apart from the gradient, by
    the rate times this."""
    padding: int = 0
    """Pixels of padding before the random crop; 0 is no crop."""
    num_validation: int = 237
    """Training images held out for tuning; no run trains on them."""
    target: float = 5.0
    """Test error, percent, at which `steps_to_target` is measured."""
    eval_every: int | None = 25
    """Steps between rows, tests and checkpoints; None is an epoch."""
    strategy: StrategyName = "auto"
    dtype: DtypeName = "float32"
    data_dir: Path | None = None
    """Folder that is searched for data first."""
    out: Path = Path("runs/optimizers")
    plot_only: bool = False
    """Draw tables and figures from the runs that OUT holds, and train nothing."""


PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist",
        dataset="mnist",
        model="lenet5-relu",
        num_steps=400,
        batch_size=128,
        eval_every=100,
        num_validation=5000,
        target=2.0,
        out=Path("runs/optimizers-mnist"),
    ),
}


def config(options: Options, method: str, **overrides: Any) -> jc.ExperimentConfig:
    """Return the config of a method.

    `overrides` are other fields of it, such as rate, seed and split.
    """
    is_decoupled = jc.OPTIMIZERS[method].decays and method not in L2_INSIDE
    model_kwargs = {
        name: value
        for name in ("width", "hidden", "dtype")
        if (value := getattr(options, name)) is not None
    }
    if options.model == "mlp" and "hidden" in model_kwargs:
        model_kwargs["hidden"] = [options.hidden] * 2
    # Options and configs share the names of their fields.
    default = jc.ExperimentConfig()
    names = [name for name in field_names(default) if hasattr(options, name)]
    shared = {name: getattr(options, name) for name in names}
    shared |= {"optimizer": method, "model_kwargs": model_kwargs, "milestones": ()}
    shared |= {"schedule": "constant" if method in CONSTANT else options.schedule}
    shared |= {"weight_decay": options.decoupled_decay if is_decoupled else options.weight_decay}
    return jc.override(default, **shared | overrides)


def check(options: Options) -> None:
    """Check what no config checks.

    Raises:
      ArgumentError: for an unknown method or none, a number of seeds outside 1 to `TUNING`, or a
        target that is no error in percent.
    """
    if not options.methods:
        raise jc.ArgumentError("methods is empty; write --methods momentum adam")
    for method in options.methods:
        check_choice("method", method, jc.OPTIMIZERS)
    for name in ("seeds", "tune_seeds"):
        if not 1 <= getattr(options, name) <= TUNING:
            flag = name.replace("_", "-")
            raise jc.ArgumentError(
                f"{name} is {getattr(options, name)}; expected 1 to {TUNING}: write --{flag} 3"
            )
    if not 0 <= options.target <= 100:
        raise jc.ArgumentError(
            f"target is {options.target}; expected an error of 0 to 100 percent: write --target 5"
        )


def trials(options: Options) -> dict[str, jc.ExperimentConfig]:
    """Return the runs of tuning: name -> config.

    They are measured on the validation split.
    """
    return {
        f"tune/{method}-{rate:g}-seed{seed}": config(
            options, method, learning_rate=rate, seed=seed, eval_split="validation"
        )
        for seed in range(TUNING, TUNING + options.tune_seeds)
        for method in options.methods
        for rate in options.rates or jc.OPTIMIZERS[method].grid
    }


def finals(options: Options, rates: Mapping[str, float | None]) -> dict[str, jc.ExperimentConfig]:
    """Return the final runs: name -> config.

    They are measured on the test split.

    Args:
      options: settings of the comparison.
      rates: method -> its best rate; a method whose rate is None has no run.
    """
    # One seed of everything comes first, so that a method is timed at several moments.
    return {
        f"final/{method}-seed{seed}": config(options, method, learning_rate=rate, seed=seed)
        for seed in range(options.seeds)
        for method in options.methods
        if (rate := rates[method]) is not None
    }


def notes(title: str, config: jc.ExperimentConfig, target: float, trials: search.Runs) -> list[str]:
    """Return the notes below the table.

    Args:
      title: model, data set and number of steps.
      config: that of any final run.
      target: test error in percent, as in `Options`.
      trials: runs of tuning, by method.
    """
    counts = " or ".join(str(n) for n in sorted({len(group) for group in trials.values()}))
    return [
        f"{title}; the same batch, network and schedule for all "
        f"({config.optimizer.schedule}; {CONSTANT[0]}: constant).",
        f"Tuning: {counts} trials a method, from seeds {TUNING}, ..., measured on "
        f"{config.num_validation} training images held out. The rate of the least validation error "
        "then ran from fresh seeds and was measured on the test set. Edge: it is the first or the "
        "last rate tried, and the method could be better beyond.",
        "Losses in nats, errors in percent at the last step (training: running means); over the "
        "seeds that did not diverge, ± the half width of the mean's 95% interval: of seeds alone, "
        "not of tuning.",
        f"steps_to_target: of the first row, one every {config.train.eval_every or 'epoch'}, with "
        f"a test error of at most {target:g}%, mean over seeds; a dash where a seed has none. "
        "ms_per_step: the median over rows but the first of each run.",
    ]


def train(options: Options, stop: cli.GracefulShutdown) -> bool:
    """Tune all methods, then train at the best rates; False if stopped."""
    check(options)
    all_runs, strategy = trials(options), jc.strategy(options.strategy)
    cli.enable_compilation_cache()
    data = jc.load_dataset(options.dataset, options.data_dir, validation=options.num_validation)
    sweep_kwargs: dict[str, Any] = {"strategy": strategy, "should_stop": stop, "quiet": True}
    for stage in ("tune", "final"):
        if runs.sweep(all_runs, data, options.out, **sweep_kwargs) is None:
            return False
        if stage == "tune":
            tuning = search.methods(options.out / stage)
            rates = {name: search.best(group) for name, group in tuning.items()}
            all_runs = finals(options, rates)
    return True


def draw(options: Options) -> None:
    """Write the table and the figures of the finished runs in `options.out`."""
    out, target = options.out, options.target
    tuning, final = search.methods(out / "tune"), search.methods(out / "final")
    table = search.table(tuning, final, target)
    config = next(all_runs[0].config for all_runs in final.values())
    size = f"{config.train.num_steps} steps of {config.train.batch_size} images"
    title = f"{config.model} on {config.dataset}, {size}"
    divergences = search.divergences(tuning, final)
    tables.write_table(out, table, notes(title, config, target, tuning) + divergences)
    search.write_figures(out, title, [line["method"] for line in table], tuning, final)
    print(tables.compact_markdown(table))
    print(f"wrote {out}/table.md, table.csv, sensitivity.png, curves.png and ranking.png")


def main(args: list[str] | None = None) -> int:
    """Tune and train the missing runs, then draw; return the exit code."""
    return run_study(PRESETS, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
