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

Expected of digits with `--tune-seeds 2 --num-seeds 6`: test errors of 2.2% (radam) to 5.0% (sgd),
and 95% intervals of 0.7 to 1.9 points to either side, most of which overlap. Six seeds and 360 test
images rank the methods roughly at best, and the three of the preset less. Their best rates are up
to 100 times apart. muon fits the training images best (a loss of 0.0009 nats; sgd 0.09). MNIST:
1.26% (muon) to 3.08% (noisy), in `experiments/results/optimizers-mnist`.

It writes OUT/table.md, OUT/table.csv, OUT/curves.csv, OUT/sensitivity.png, OUT/curves.png,
OUT/ranking.png and folders OUT/tune/METHOD-RATE-seedK and OUT/final/METHOD-seedK. The same command
resumes a study that was stopped.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import jaxcnn as jc
from experiments._common import (
    DeviceOptions,
    DtypeName,
    FigureOptions,
    SeedOptions,
    display_names,
    run_all,
    run_study,
)
from jaxcnn import cli, plots, runs, tables
from jaxcnn.config import check_choice, field_names

TUNING = 1000
"""First seed of tuning, beyond all those of the final runs."""
L2_INSIDE = ("sam", "lars")
"""Methods that add `weight_decay * w` to the gradient themselves.

Their coefficient is that of L2. The decay of the other methods with one is decoupled.
"""
CONSTANT = ("schedule-free",)
"""Methods without a schedule: averaging takes its place (Defazio et al. 2024)."""
MAX_PANELS = 12
"""Methods that have a panel of the figure `curves`."""
KEYS = ("train_loss", "eval_loss", "train_error", "eval_error")
"""Figures of a run's result that the table has."""
MethodRuns = Mapping[str, Sequence[runs.Run]]
"""Runs of each method."""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting of the comparison; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    """quick: digits. mnist: LeNet-5 with ReLU on MNIST."""
    dataset: str = "digits"
    model: str = "convnet"
    """Network, a name in jaxcnn.MODELS."""
    width: int | None = None
    """Filters of the first layer, of models with that option; None is the model's own."""
    hidden: int | None = None
    """Units of a dense layer (convnet) or of both (mlp); None is the model's own."""
    methods: tuple[str, ...] = tuple(jc.OPTIMIZERS)
    """Optimizers to compare, names in jaxcnn.OPTIMIZERS."""
    rates: tuple[float, ...] = ()
    """Learning rates to try for every method; none is each method's own grid."""
    tune_seeds: int = 1
    """Trials of every rate, from seeds 1000, 1001, ..."""
    num_seeds: int = 3
    num_steps: int = 200
    batch_size: int = 64
    schedule: Literal[
        "constant", "cosine", "exponential", "one-cycle", "plateau", "restarts", "warmup"
    ] = "cosine"
    """Schedule of every method's rate but schedule-free's, which is constant."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    """Coefficient of weight decay (L2), where it is part of the gradient."""
    decoupled_decay: float = 1e-2
    """Coefficient of adamw, lamb, lion, muon and prodigy, which decay by the rate times this."""
    padding: int = 0
    """Pixels of padding on each side before the random crop; 0 is no crop."""
    num_validation: int = 237
    """Training images to hold out for tuning; no run trains on them."""
    target: float = 5.0
    """Test error, in percent, at which steps_to_target is measured."""
    eval_every: int | None = 25
    dtype: DtypeName = "float32"
    data_dir: Path | None = None
    out: Path = Path("runs/optimizers")
    tensorboard: bool = False
    plot_only: bool = False


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
    for name in ("num_seeds", "tune_seeds"):
        if not 1 <= getattr(options, name) <= TUNING:
            flag = name.replace("_", "-")
            raise jc.ArgumentError(
                f"{name} is {getattr(options, name)}; expected 1 to {TUNING}: write --{flag} 3"
            )
    # The final runs are from other seeds than those that chose their rates.
    for seed in options.run_seeds():
        if seed >= TUNING:
            raise jc.ArgumentError(
                f"seeds has {seed}; expected seeds below {TUNING}, the first of tuning: "
                "write --seeds 0 1 2"
            )
    if not 0 <= options.target <= 100:
        raise jc.ArgumentError(
            f"target is {options.target}; expected an error of 0 to 100 percent: write --target 5"
        )


def trial_configs(options: Options) -> dict[str, jc.ExperimentConfig]:
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


def final_configs(
    options: Options, rates: Mapping[str, float | None]
) -> dict[str, jc.ExperimentConfig]:
    """Return the final runs: name -> config.

    They are measured on the test split.

    Args:
      options: settings of the comparison.
      rates: method -> its best rate; a method whose rate is None has no run.
    """
    # One seed of everything comes first, so that a method is timed at several moments.
    return {
        f"final/{method}-seed{seed}": config(options, method, learning_rate=rate, seed=seed)
        for seed in options.run_seeds()
        for method in options.methods
        if (rate := rates[method]) is not None
    }


def notes(title: str, config: jc.ExperimentConfig, target: float, trials: MethodRuns) -> list[str]:
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
    """Tune all methods, then train at the best rates; False if some are not finished."""
    check(options)
    all_runs, strategy = trial_configs(options), options.make_strategy()
    cli.enable_compilation_cache()
    data = jc.load_dataset(options.dataset, options.data_dir, validation=options.num_validation)
    sweep_kwargs: dict[str, Any] = {
        "strategy": strategy,
        "tensorboard": options.tensorboard,
        "should_stop": stop,
        "quiet": True,
    }
    for stage in ("tune", "final"):
        if not run_all(all_runs, data, options.out, **sweep_kwargs):
            return False
        if stage == "tune":
            tuning = runs_by_method(options.out / stage)
            rates = {name: best_rate(group) for name, group in tuning.items()}
            all_runs = final_configs(options, rates)
    return True


def draw(options: Options) -> None:
    """Write the table and the figures of the finished runs in `options.out`."""
    out, target = options.out, options.target
    tuning, final = runs_by_method(out / "tune"), runs_by_method(out / "final")
    table = table_rows(tuning, final, target)
    config = next(all_runs[0].config for all_runs in final.values())
    size = f"{config.train.num_steps} steps of {config.train.batch_size} images"
    title = f"{config.model} on {config.dataset}, {size}"
    tables.write_table(
        out, table, [*notes(title, config, target, tuning), *divergence_notes(tuning, final)]
    )
    write_figures(options, title, [line["method"] for line in table], tuning, final)
    print(tables.compact_markdown(table))
    names = [f"{name}.{options.format}" for name in ("sensitivity", "curves")]
    print(
        f"wrote {out}/table.md, table.csv, curves.csv, {', '.join(names)} and "
        f"ranking.{options.format}"
    )


def group_by(
    key: Callable[[runs.Run], Any], all_runs: Sequence[runs.Run]
) -> dict[Any, list[runs.Run]]:
    """Return the runs of each value of `key`, by increasing value."""
    ordered = sorted(all_runs, key=key)
    return {value: list(group) for value, group in itertools.groupby(ordered, key=key)}


def runs_by_method(folder: Path) -> MethodRuns:
    """Return the finished runs in a folder, by method."""
    return group_by(lambda run: run.config.optimizer.name, runs.finished_runs(folder))


def scores(trials: Sequence[runs.Run]) -> dict[float, tuple[float, float] | None]:
    """Return the mean validation error and loss at each rate.

    Args:
      trials: runs of one method.

    Returns:
      Rate -> (error in percent, loss in nats), means over seeds; None if a seed diverged.
    """

    def score(all_runs: list[runs.Run]) -> tuple[float, float] | None:
        errors, losses = (
            [run.result[key] for run in all_runs] for key in ("eval_error", "eval_loss")
        )
        # The loss after the last step can be no number, and so None, although that step's own
        # loss was still one.
        has_diverged = any(run.divergence for run in all_runs) or None in losses
        if has_diverged:
            return None
        return math.fsum(errors) / len(all_runs), math.fsum(losses) / len(all_runs)

    by_rate = group_by(lambda run: run.config.optimizer.learning_rate, trials)
    return {rate: score(all_runs) for rate, all_runs in by_rate.items()}


def best_rate(trials: Sequence[runs.Run]) -> float | None:
    """Return the rate with the least mean validation error.

    Of rates with equal errors, that with the least loss is returned; None if all diverged.
    """
    valid = {rate: score for rate, score in scores(trials).items() if score}
    return min(valid, key=lambda rate: valid[rate], default=None)


def steps_to(target: float, all_runs: Sequence[runs.Run]) -> float | None:
    """Return the mean over runs of the first step at the target.

    Args:
      target: test error in percent; a row is at the target if its error is at most this.
      all_runs: runs of one method.

    Returns:
      None if a run never reaches it, or if there are no runs.
    """
    steps = [
        next((row["step"] for row in run.rows if row["eval_error"] <= target), math.inf)
        for run in all_runs
    ]
    return None if math.inf in steps else tables.seed_statistics(steps).mean


def step_time(all_runs: Sequence[runs.Run]) -> float | None:
    """Return the median milliseconds of a step, or None.

    None means that there is no row to measure it by.
    The first row of each run is left out, because its time includes compilation.
    """
    times = [
        1000 * run.config.train.batch_size / row["images_per_second"]
        for run in all_runs
        for row in run.rows[1:]
    ]
    return statistics.median(times) if times else None


def table_row(
    method: str, trials: Sequence[runs.Run], all_runs: Sequence[runs.Run], target: float
) -> dict[str, Any]:
    """Return the table's row of a method.

    Args:
      method: name in `jaxcnn.OPTIMIZERS`.
      trials: its runs of tuning.
      all_runs: its final runs.
      target: test error in percent for `steps_to_target`.
    """
    rate_scores, rate = scores(trials), best_rate(trials)
    line = {"method": method, "needs": " and ".join(jc.OPTIMIZERS[method].needs) or None}
    # At an edge of the grid, a rate beyond it could be better.
    at_edge = rate in (min(rate_scores), max(rate_scores))
    line |= {
        "best_learning_rate": rate and f"{rate:g}",
        "best_at_grid_edge": "yes" if at_edge else None,
    }
    num_diverged = sum(run.divergence is not None for run in trials)
    line |= {"diverged_trials": f"{num_diverged} of {len(trials)}"}
    statistics_over_seeds = runs.aggregate_seeds(all_runs, KEYS)
    del statistics_over_seeds["seconds"]
    return (
        line
        | statistics_over_seeds
        | {"steps_to_target": steps_to(target, all_runs), "ms_per_step": step_time(all_runs)}
    )


def table_rows(trials: MethodRuns, final: MethodRuns, target: float) -> list[dict[str, Any]]:
    """Return the rows of all methods, by increasing test error.

    Methods that diverged are last.
    """
    lines = [table_row(method, trials[method], final.get(method, []), target) for method in trials]
    lines.sort(key=lambda line: (line["eval_error"] is None, line["eval_error"], line["eval_loss"]))
    return lines


def divergence_notes(*stages: MethodRuns) -> list[str]:
    """Return one sentence for every run that diverged."""
    all_runs = [
        run for stage in stages for group in stage.values() for run in group if run.divergence
    ]
    return [
        f"{run.config.optimizer.name} at {run.config.optimizer.learning_rate:g}: {run.divergence}"
        for run in all_runs
    ]


def sensitivity_figure(trials: MethodRuns, title: str) -> Any:
    """Return a heat map of the validation error by method and rate.

    The best rate of each method is framed, and trials that diverged are crosses. The cells of
    rates that a method has no trials at are empty.
    """
    by_method = {name: scores(all_runs) for name, all_runs in trials.items()}
    rates = sorted({rate for method_scores in by_method.values() for rate in method_scores})
    rows = [[method_scores.get(rate) for rate in rates] for method_scores in by_method.values()]
    # An error of 0 has no logarithm: it has the color of a tenth of a percent.
    values = [[np.nan if score is None else max(score[0], 0.1) for score in row] for row in rows]
    diverged = [
        [rate in method_scores and method_scores[rate] is None for rate in rates]
        for method_scores in by_method.values()
    ]
    return plots.heatmap(
        values,
        rows=list(by_method),
        columns=[f"{rate:g}" for rate in rates],
        xlabel="learning rate",
        ylabel="optimizer",
        label="validation error (%)",
        title=title,
        crosses=diverged,
        best="min",
        log=True,
    )


def training_panels(final: MethodRuns) -> list[plots.Panel]:
    """Return a panel for each of the first `MAX_PANELS` methods: training loss at the best rate.

    The loss is drawn against the step. Bands are the range over the method's seeds. The curves of
    all other methods are behind it in gray.
    """
    panels = []
    for name, all_runs in final.items():
        rows = [run.rows for run in all_runs]
        label = "this method, mean and range of seeds"
        line = plots.band(rows, "step", "train_loss", label=label)
        title = f"{name}, rate {all_runs[0].config.optimizer.learning_rate:g}"
        panels.append(plots.Panel(title, [line], xlabel="step", ylabel="loss (nats)", ylog=True))
    return plots.with_background(panels)[:MAX_PANELS]


def ranking_panel(names: Sequence[str], final: MethodRuns) -> plots.Panel:
    """Return a panel of the test errors by method.

    The first name is at the top. The panel has each seed, the mean and its 95% interval. Methods
    that diverged are crosses.
    """
    converged = {name: [run for run in final.get(name, []) if not run.divergence] for name in names}
    errors = {
        name: [run.result["eval_error"] for run in all_runs] for name, all_runs in converged.items()
    }
    # An error of 0 has no place on a logarithmic axis.
    positive = [error for values in errors.values() for error in values if error] or [100.0]
    low, high, lines = 0.7 * min(positive), 1.2 * max(positive), []
    for y, values in enumerate(errors.values()):
        mean, _, half_width = tables.seed_statistics(values)
        if mean is None:
            continue
        ends = [max(low, mean - (half_width or 0.0)), mean + (half_width or 0.0)]
        lines.append(
            plots.Line(ends, [y, y], label="95% interval of the mean", color=plots.COLORS[5])
        )
        lines += [plots.Line([x], [y], label="a seed", marker="|", color="0.2") for x in values]
        lines.append(
            plots.Line([mean], [y], label="mean of the seeds", marker="o", color=plots.COLORS[1])
        )
    crosses = [(high, y) for y, values in enumerate(errors.values()) if not values]
    limits: dict[str, Any] = {"xlim": (low, high), "ylim": (len(names) - 0.5, -0.5)}
    split = runs.eval_split([run for all_runs in final.values() for run in all_runs]) or "test"
    return plots.Panel("", lines, xlabel=f"{split} error (%)", xlog=True, crosses=crosses, **limits)


def write_figures(
    options: Options, title: str, names: Sequence[str], trials: MethodRuns, final: MethodRuns
) -> None:
    """Write the figures `sensitivity`, `curves` and `ranking`, and `curves.csv`.

    Args:
      options: with the folder and the format of the figures.
      title: start of each figure's title.
      names: methods in the figures' order.
      trials: runs of tuning.
      final: runs at the best rates.
    """
    out = options.out
    trials, final = (
        {name: all_runs[name] for name in names if name in all_runs} for all_runs in (trials, final)
    )
    title = display_names(title)
    figure = sensitivity_figure(trials, f"Validation error at each learning rate: {title}")
    options.save(figure, out / "sensitivity")
    first = f" of the best {MAX_PANELS}" if len(final) > MAX_PANELS else ""
    figure = plots.panels(
        training_panels(final),
        columns=4,
        size=(2.5, 2.0),
        title=f"Training loss{first} (gray: all other methods): {title}",
    )
    tables.write_curves(out, {run.name: run.rows for group in final.values() for run in group})
    options.save(figure, out / "curves")
    figure = plots.panels(
        [ranking_panel(names, final)],
        title=f"Test error at the best rate: {title}",
        size=(8.8, 1.2 + 0.26 * len(names)),
    )
    figure.axes[0].set_yticks(range(len(names)), names)
    figure.axes[0].set_ylabel("optimizer")
    options.save(figure, out / "ranking")


def main(args: list[str] | None = None) -> int:
    """Tune and train the missing runs, then draw; return the exit code."""
    return run_study(PRESETS, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
