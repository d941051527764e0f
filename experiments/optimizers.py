"""Which variant of SGD trains a network best, when each gets the same number of trials for its rate?

    python -m experiments.optimizers                   digits, no download: 2 minutes on two CPU cores
    python -m experiments.optimizers --preset mnist    LeNet-5 on MNIST: 30 minutes there, beside other work

Every method of `jaxcnn.OPTIMIZERS` is tuned over five rates of its own, half a decade apart, on images held out of the
training set and seeds 1000, 1001, ...; its best rate is then run from seeds 0, 1, ... and measured on the test set, which
tuning never saw. Equal budgets of tuning are what such a comparison stands and falls with: Choi et al. 2019
(arXiv:1910.05446), Schmidt et al. 2021 (arXiv:2007.01547), whose protocol this is, small.

Expected, quick: test errors of 2.4 to 6%, and 95% intervals of 1 to 5 points to either side, most of which overlap: three
seeds and 360 test images rank the methods roughly at best. Their best rates are up to 300 times apart. muon fits the
training images best (a loss of 0.0006 nats; sgd 0.09). One image of validation decides some rates. MNIST: 1.26% (muon) to
3.08% (noisy), in `experiments/results/optimizers-mnist`.

It writes OUT/table.md, OUT/table.csv, OUT/sensitivity.png, OUT/curves.png, OUT/ranking.png and folders
OUT/tune/METHOD-RATE-seedK and OUT/final/METHOD-seedK. The same command goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import jaxcnn as jc
from experiments import hyperparameter_search as search
from jaxcnn import cli, runs, tables
from jaxcnn.recipe import check_choice

TUNING = 1000
"""The first seed of tuning, past all those of the final runs."""
L2_INSIDE = ("sam", "lars")
"""They add `decay * w` to the gradient themselves, so theirs is the coefficient of L2; the others that decay are decoupled."""
CONSTANT = ("schedule-free",)
"""Methods that are to do without a schedule: averaging takes its place (Defazio et al. 2024)."""


@dataclass(frozen=True)
class Options:
    """Every setting of the comparison; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    """quick: digits on any machine. mnist: LeNet-5 with ReLU."""
    dataset: str = "digits"
    """digits, mnist, fashion_mnist, cifar10, cifar100 or svhn_cropped."""
    model: str = "convnet"
    """Any name that `jaxcnn.create_model` knows."""
    width: int | None = None
    """Filters of the first layer, for models that have the option; None is the model's own."""
    hidden: int | None = None
    """Units of a dense layer (convnet), or of both of them (mlp)."""
    methods: tuple[str, ...] = tuple(jc.OPTIMIZERS)
    rates: tuple[float, ...] = ()
    """Tried for every method; nothing here is each method's own grid."""
    tune_seeds: int = 1
    """Trials of every rate, from seeds 1000, 1001, ..."""
    seeds: int = 3
    """Final runs of every method, from seeds 0, 1, ..."""
    steps: int = 200
    batch: int = 64
    schedule: Literal["constant", "cosine", "exponential", "one-cycle", "plateau", "restarts", "warmup"] = "cosine"
    """Of every method but schedule-free, whose rate is constant."""
    momentum: float = 0.9
    decay: float = 1e-4
    """L2, where decay is part of the gradient."""
    decoupled_decay: float = 1e-2
    """Of adamw, lamb, lion, muon and prodigy, which decay apart from the gradient, by the rate times this."""
    pad: int = 0
    """Pixels of padding before the random crop; 0 is no crop."""
    validation: int = 237
    """Training images held out for tuning; no run trains on them."""
    target: float = 5.0
    """Test error, percent, that `steps_to_target` waits for."""
    every: int | None = 25
    """Steps between rows, tests and checkpoints; None is an epoch."""
    strategy: Literal["auto", "pmap", "jit"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    data_dir: Path | None = None
    """Where to look for data first."""
    out: Path = Path("runs/optimizers")
    plot_only: bool = False
    """Draw tables and figures from the runs that OUT holds, and train nothing."""


PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist",
        dataset="mnist",
        model="lenet5-relu",
        steps=400,
        batch=128,
        every=100,
        validation=5000,
        target=2.0,
        out=Path("runs/optimizers-mnist"),
    ),
}


def recipe(options: Options, method: str, **own: Any) -> jc.Recipe:
    """What every run of a method shares, and its `own` rate, seed and split."""
    decays = jc.OPTIMIZERS[method].decays and method not in L2_INSIDE
    net = {name: value for name in ("width", "hidden", "dtype") if (value := getattr(options, name)) is not None}
    if options.model == "mlp" and "hidden" in net:
        net["hidden"] = [options.hidden] * 2
    given: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(jc.Recipe) if hasattr(options, f.name)}
    given |= {"optimizer": method, "options": net, "drops": (), "flip": False}
    given |= {"schedule": "constant" if method in CONSTANT else options.schedule}
    given |= {"decay": options.decoupled_decay if decays else options.decay}
    return jc.Recipe(**given | own)


def check(options: Options) -> None:
    """ArgumentError for what no recipe would refuse."""
    if not options.methods:
        raise jc.ArgumentError("methods is empty; write --methods momentum adam")
    for method in options.methods:
        check_choice("method", method, jc.OPTIMIZERS)
    for name in ("seeds", "tune_seeds"):
        if not 1 <= getattr(options, name) <= TUNING:
            flag = name.replace("_", "-")
            raise jc.ArgumentError(f"{name} is {getattr(options, name)}; expected 1 to {TUNING}: write --{flag} 3")
    if not 0 <= options.target <= 100:
        raise jc.ArgumentError(f"target is {options.target}; expected an error of 0 to 100 percent: write --target 5")


def trials(options: Options) -> dict[str, jc.Recipe]:
    """Run's name -> recipe of tuning, measured on the validation split."""
    return {
        f"tune/{method}-{rate:g}-seed{seed}": recipe(options, method, lr=rate, seed=seed, report="validation")
        for seed in range(TUNING, TUNING + options.tune_seeds)
        for method in options.methods
        for rate in options.rates or jc.OPTIMIZERS[method].grid
    }


def finals(options: Options, rates: Mapping[str, float | None]) -> dict[str, jc.Recipe]:
    """Run's name -> recipe at each method's rate, measured on the test split; a method without a rate has no run."""
    return {
        f"final/{method}-seed{seed}": recipe(options, method, lr=rate, seed=seed)
        for seed in range(options.seeds)  # one of everything first: a method is timed at several moments
        for method in options.methods
        if (rate := rates[method]) is not None
    }


def notes(what: str, some: jc.Recipe, target: float, all_runs: search.Runs) -> list[str]:
    """What must be known to read the table."""
    counts = " or ".join(str(n) for n in sorted({len(group) for group in all_runs.values()}))
    return [
        f"{what}; the same batch, network and schedule for all ({some.schedule}; {CONSTANT[0]}: constant).",
        f"Tuning: {counts} trials a method, from seeds {TUNING}, ..., measured on {some.validation} training images held "
        "out. The rate of the least validation error then ran from fresh seeds and was measured on the test set. Edge: it is "
        "the first or the last rate tried, and the method could be better beyond.",
        "Losses in nats, errors in percent at the last step (training: running means); over the seeds that did not "
        "diverge, ± the half width of the mean's 95% interval: of seeds alone, not of tuning.",
        f"steps_to_target: of the first row, one every {some.every or 'epoch'}, with a test error of at most {target:g}%, mean "
        "over seeds; a dash where a seed has none. ms_per_step: the median over rows but the first of each run.",
    ]


def draw(out: Path, target: float) -> None:
    """Tables and figures from the runs under `out` that are over."""
    tuning, final = search.methods(out / "tune"), search.methods(out / "final")
    table = search.table(tuning, final, target)
    some = next(all_runs[0].recipe for all_runs in final.values())
    what = f"{some.model} on {some.dataset}, {some.steps} steps of {some.batch} images"
    tables.write_table(out, table, notes(what, some, target, tuning) + search.divergences(tuning, final))
    search.pictures(out, what, [line["method"] for line in table], tuning, final)
    print(tables.markdown(table))
    print(f"wrote {out}/table.md, table.csv, sensitivity.png, curves.png and ranking.png")


def main(args: list[str] | None = None) -> int:
    """Tune and train what is missing, then draw; returns the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(PRESETS, args, about=__doc__)
        if not options.plot_only:
            check(options)
            all_runs, strategy = trials(options), jc.strategy(options.strategy)
            cli.enable_compilation_cache()
            data = jc.load_dataset(options.dataset, options.data_dir, validation=options.validation)
            for stage in ("tune", "final"):
                if runs.sweep(all_runs, data, options.out, strategy=strategy, stop=stop, brief=True) is None:
                    print("stopped and saved; the same command goes on from here", file=sys.stderr)
                    return stop.exit_code
                if stage == "tune":
                    done = search.methods(options.out / stage)
                    all_runs = finals(options, {name: search.best(of) for name, of in done.items()})
        with cli.reading(options.out):
            draw(options.out, options.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
