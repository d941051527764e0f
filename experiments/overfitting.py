"""Overfitting: a network that generalizes, one that overfits, and five remedies.

    python -m experiments.overfitting                   digits, no download: 2 minutes on two CPU
                                                        cores
    python -m experiments.overfitting --preset mnist    500 images of MNIST: 10 minutes there

The overfitting setting is `few`: few images, no augmentation, no decay. Every other setting has one
change: all images (`all`), random crops (`augmentation`), L2 decay (`weight-decay`), dropout before
the logits (Srivastava et al. 2014), BN (`batch-norm`; Ioffe and Szegedy 2015), or these four
`together`. All take as many steps. Early stopping (Prechelt 1998) has no runs of its own: it is
`few`, read where its validation loss turns (`jaxcnn.tables.turning_point`).

Expected, quick (5 seeds): no training error anywhere. With few images 14% of the validation images
are wrong, and their loss turns at epoch 42 (0.56, then up to 0.73). With all images 3.4% are wrong,
and the loss of 1 seed in 5 turns. The changes on the test split are against few images and paired
by seed. All four together lower the error by 3.7 +- 3.7 points and the loss by 0.25 +- 0.18 nats.
Decay (0.20 +- 0.19) and early stopping (0.09 +- 0.09) lower the loss only just beyond chance. No
single remedy changes the error beyond chance: -1.7 +- 2.9 (crops), -1.7 +- 1.9 (dropout),
+1.7 +- 1.7 (early stopping).

It writes OUT/table.md, OUT/table.csv, OUT/curves.csv, OUT/curves.png, OUT/gap.png and a folder for
every run. The same command resumes a study that was stopped. When all runs are finished, it only
draws.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from jaxcnn import cli, parallel, plots, runs, tables
from jaxcnn.config import check_choice, field_names

TITLES = {
    "all": "all images",
    "few": "few images",
    "augmentation": "augmentation",
    "weight-decay": "weight decay",
}
TITLES |= {
    "dropout": "dropout",
    "batch-norm": "batch norm",
    "early-stopping": "early stopping",
    "together": "all four together",
}
"""Setting -> its title in table and figures."""
TRAINED = tuple(name for name in TITLES if name != "early-stopping")
"""Settings that have runs."""
STRENGTHS = {"augmentation": "padding", "weight-decay": "weight_decay", "dropout": "dropout"}
"""Setting -> the option that is its remedy's strength."""
COLUMNS = [
    template.format(metric)
    for metric in ("loss", "error")
    for template in ("train_{}", "validation_{}", "{}_gap", "test_{}")
]
"""Figures of the table that are means over seeds."""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting of the study; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    """quick: digits. mnist: MNIST."""
    dataset: str = "digits"
    settings: tuple[str, ...] = TRAINED
    """Runs: all, few, augmentation, weight-decay, dropout, batch-norm or together. Early stopping
    comes with few."""
    max_train_examples: int = 100
    """Training images of every setting but all."""
    num_validation: int = 437
    """Training images to hold out, for curves and early stopping."""
    width: int = 8
    """Filters of the first convolution."""
    hidden: int = 64
    """Units of the dense layer."""
    num_seeds: int = 5
    num_steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 0.003
    optimizer: str = "adam"
    """Optimizer, a name in jaxcnn.OPTIMIZERS."""
    schedule: str = "constant"
    """Schedule of the rate, a name in jaxcnn.SCHEDULES."""
    padding: int = 1
    """Pixels of padding on each side before the random crop of augmentation."""
    # Of 0.001, 0.003, 0.01 and 0.03 the best final validation loss in both presets.
    weight_decay: float = 0.01
    """Coefficient of weight decay (L2), of the setting weight-decay."""
    dropout: float = 0.5
    """Share of the dense layer's outputs that dropout sets to 0; not searched."""
    eval_every: int | None = 20
    """Steps between evaluations, rows and checkpoints; None is an epoch, of other steps for all."""
    dtype: DtypeName = "float32"
    data_dir: Path | None = None
    out: Path = Path("runs/overfitting")
    tensorboard: bool = False
    plot_only: bool = False


# fmt: off
PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist", dataset="mnist", max_train_examples=500, num_validation=2000, num_seeds=3,
        learning_rate=0.001, padding=2, eval_every=50, out=Path("runs/overfitting-mnist"),
    ),
}
# fmt: on


def configs(options: Options) -> dict[str, jc.ExperimentConfig]:
    """Return the study's runs: name -> config.

    One seed of every setting comes first, so that a study that was stopped has a usable table.

    Raises:
      ArgumentError: for no or unknown settings, invalid seeds, or a remedy of strength 0.
    """
    if not options.settings:
        raise jc.ArgumentError("settings is empty; write --settings all few")
    for name in options.settings:
        check_choice("setting", name, TRAINED)
        if name in STRENGTHS and not getattr(options, strength := STRENGTHS[name]):
            usual = getattr(PRESETS[options.preset], strength)
            raise jc.ArgumentError(
                f"{strength} is 0, so {name} would change nothing; "
                f"write {cli.flag_name(strength)} {usual}"
            )
    by_setting, seeds = variants(options), options.run_seeds()
    return {
        f"{name}-seed{seed}": jc.override(by_setting[name], seed=seed)
        for seed in seeds
        for name in options.settings
    }


def variants(options: Options) -> dict[str, jc.ExperimentConfig]:
    """Return the config of each setting.

    They are `few`, variants of it with one change, and one with all the remedies together.
    """
    # Options and configs share the names of their fields.
    default = jc.ExperimentConfig()
    names = [name for name in field_names(default) if hasattr(options, name)]
    shared = {name: getattr(options, name) for name in names}
    # The background of digits is black, and one mean for all pixels moves with them. So a crop is
    # a shift and nothing else.
    shared |= {"subtract_mean": "channel", "divide_std": True, "padding": 0, "pad_value": "black"}
    shared |= {"milestones": (), "weight_decay": 0.0}
    net = {name: getattr(options, name) for name in ("width", "hidden", "dtype")}
    few = jc.override(
        default,
        **shared,
        model="convnet",
        model_kwargs=net,
        eval_split="validation",
        train_metrics="clean",
    )
    dropout, norm = {"dropout": options.dropout}, {"batch_norm": True}
    changes: dict[str, dict[str, Any]] = {
        "all": {"max_train_examples": None},
        "few": {},
        "augmentation": {"padding": options.padding},
        "weight-decay": {"weight_decay": options.weight_decay},
        "dropout": {"model_kwargs": net | dropout},
        "batch-norm": {"model_kwargs": net | norm},
        "together": {
            "padding": options.padding,
            "weight_decay": options.weight_decay,
            "model_kwargs": net | dropout | norm,
        },
    }
    return {name: jc.override(few, **change) for name, change in changes.items()}


def setting(config: jc.ExperimentConfig) -> str:
    """Return the name in `TRAINED` of a config's setting."""
    net = config.model_kwargs
    remedies = {
        "augmentation": config.train.augment.padding,
        "weight-decay": config.optimizer.weight_decay,
        "dropout": net.get("dropout"),
    }
    active = [
        name for name, value in (remedies | {"batch-norm": net.get("batch_norm")}).items() if value
    ]
    if config.max_train_examples is None:
        return "all"
    return "together" if len(active) > 1 else active[0] if active else "few"


def heldout(strategy: parallel.Strategy) -> runs.Measure:
    """Return a function that measures a run on the test split.

    It makes more columns of a row: the number of training images and the figures of the test
    split. Nothing is chosen by these.
    """

    def measure(model: Any, state: jc.State, data: jc.Dataset) -> Mapping[str, Any]:
        sums = jc.evaluate(model, state, data.test, strategy=strategy)
        images = {"images": len(data.train.labels), "heldout_images": int(sums.num_examples)}
        return images | {"heldout_loss": sums.mean_loss, "heldout_error": sums.error_percent}

    return measure


def with_figures(run: runs.Run, stop_early: bool = False) -> runs.Run:
    """Return a run whose result has the figures of `COLUMNS`.

    Args:
      run: finished and not diverged.
      stop_early: True to take them from the turning point, and to drop the rows after it. By
        default, or where the loss does not turn, they are those of the last row.
    """
    turn = tables.turning_point(run.rows)
    rows = [row for row in run.rows if not (stop_early and turn) or row["step"] <= turn["step"]]
    last, result = rows[-1], dict(run.result)
    for metric in ("loss", "error"):
        train, validation = last[f"train_{metric}"], last[f"eval_{metric}"]
        result |= {f"train_{metric}": train, f"validation_{metric}": validation}
        result |= {f"{metric}_gap": validation - train, f"test_{metric}": last[f"heldout_{metric}"]}
    result |= {
        "seconds": math.fsum(row["seconds"] for row in rows),
        "turn_step": turn and turn["step"],
    }
    return run._replace(result=result, rows=rows)


def groups(all_runs: list[runs.Run]) -> dict[str, list[runs.Run]]:
    """Return the runs of each setting, early stopping's among them.

    Runs that diverged are left out.

    Raises:
      ArgumentError: if all diverged.
    """
    by_setting: dict[str, list[runs.Run]] = {name: [] for name in TITLES}
    for run in (run for run in all_runs if run.divergence is None):
        by_setting[setting(run.config)].append(with_figures(run))
        if setting(run.config) == "few":
            by_setting["early-stopping"].append(with_figures(run, stop_early=True))
    if not any(by_setting.values()):
        raise jc.ArgumentError(
            f"{all_runs[0].divergence} So did every run; write another --out and a smaller "
            "--learning-rate"
        )
    return {name: group for name, group in by_setting.items() if group}


def row(name: str, all_runs: list[runs.Run], few: list[runs.Run]) -> dict[str, Any]:
    """Return the table's row of a setting.

    Changes against `few` are paired by seed.
    """
    line = {"setting": TITLES[name], "images": all_runs[0].result["images"]}
    line = line | runs.aggregate_seeds(all_runs, COLUMNS)
    baseline = {run.config.train.seed: run.result for run in few}
    for key in ("test_loss", "test_error"):
        changes = [
            run.result[key] - baseline[run.config.train.seed][key]
            for run in all_runs
            if run.config.train.seed in baseline
        ]
        names = (f"{key}_change{suffix}" for suffix in ("", "_std", "_ci95"))
        line |= dict(zip(names, tables.seed_statistics(changes), strict=True))
    turns = [float(run.result["turn_step"]) for run in all_runs if run.result["turn_step"]]
    turn = tables.seed_statistics(turns).mean
    epoch = turn and turn * all_runs[0].config.train.batch_size / line["images"]
    return line | {"turned": len(turns), "turn_step": turn, "turn_epoch": epoch}


def protocol(run: runs.Run) -> str:
    """Return the note below the table."""
    config, optimizer, net = run.config, run.config.optimizer, run.config.model_kwargs
    return (
        f"{config.dataset}, convnet of width {net['width']} with {net['hidden']} hidden units, "
        f"{config.train.num_steps} steps of {config.train.batch_size} images by {optimizer.name} "
        f"at rate {optimizer.learning_rate:g} ({optimizer.schedule}), "
        f"{config.num_validation} images for validation and "
        f"{run.result['heldout_images']} for the test. Losses in nats, errors in percent, at the "
        "last step, with the half width of the mean's 95% interval over seeds; training figures "
        "are one clean pass, without crops and dropout; a gap is validation minus training; a "
        "change is against few images and paired by seed; seconds a run. Validation turns (in "
        "`turned` of the seeds) where its mean loss over 3 rows is lowest, if that ends 5% higher. "
        "Early stopping is few images, read there or at the last step. Validation chose that row "
        "and the strength of the decay; crops and dropout were not searched, and the test split "
        "chose nothing."
    )


def panel(name: str, all_runs: list[runs.Run], few: list[runs.Run]) -> plots.Panel:
    """Return the panel of a setting's learning curves.

    The validation curve of `few` is behind them in gray. The turning point is marked where most of
    the seeds turn.
    """
    line, is_early = row(name, all_runs, few), name == "early-stopping"
    rows = [run.rows for run in (few if is_early else all_runs)]
    if is_early and line["turned"]:
        # All seeds are cut at the mean step: a mean of those not stopped yet would jump.
        rows = [
            [row for row in seed_rows if row["step"] <= line["turn_step"]] for seed_rows in rows
        ]
    lines = [
        plots.band(rows, "step", "eval_loss", label="validation"),
        plots.band(rows, "step", "train_loss", label="training", dashed=True),
    ]
    if few and name != "few":
        gray_line = plots.band(
            [run.rows for run in few],
            "step",
            "eval_loss",
            label="validation, few images",
            color="0.65",
        )
        lines.insert(0, gray_line._replace(low=None, high=None, width=1.3))
    # A longer text would hide the curves.
    text = f"epoch {line['turn_epoch'] or 0:.0f}"
    most_turn = 2 * line["turned"] > line["seeds"]
    marks = [plots.Mark(line["turn_step"], "x", text)] if most_turn else []
    title = TITLES[name] + (f": {line['images']}" if name in ("all", "few") else "")
    return plots.Panel(title, lines, marks, xlabel="step", ylabel="loss (nats)")


def write_figures(
    options: Options, by_setting: Mapping[str, list[runs.Run]], table: list[dict[str, Any]]
) -> None:
    """Write the figures `curves` and `gap`, and `curves.csv`."""
    out = options.out
    config = next(iter(by_setting.values()))[0].config
    seeds = max(line["seeds"] for line in table)
    title = display_names(
        f"{config.dataset}, {config.train.num_steps} steps of {config.train.batch_size} images; "
    )
    title += f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    # Without a limit, the high losses of the first steps would flatten the curves.
    top = 2 * max(line["validation_loss"] for line in table)
    panels = [
        panel(name, all_runs, by_setting.get("few", []))._replace(ylim=(0, top))
        for name, all_runs in by_setting.items()
    ]
    range_text = " and their range" * (seeds > 1)
    figure = plots.panels(
        panels,
        title=f"Loss, and where validation turns (dotted): {title}{range_text}",
        size=(3.1, 2.9),
    )
    rows = {run.name: run.rows for all_runs in by_setting.values() for run in all_runs}
    tables.write_curves(out, rows)
    options.save(figure, out / "curves")
    columns = {"training": "train_error", "validation": "validation_error", "test": "test_error"}
    heights, half_widths = (
        {
            line["setting"]: {label: line[key + suffix] for label, key in columns.items()}
            for line in table
        }
        for suffix in ("", "_ci95")
    )
    figure = plots.bars(
        heights,
        ylabel="error (%)",
        errors=half_widths,
        error_label="95% interval of the mean",
        title=f"Error at the last step: {title}",
        fmt=".1f",
    )
    options.save(figure, out / "gap")


def train(options: Options, stop: cli.GracefulShutdown) -> bool:
    """Train the missing runs; return False if some are not finished."""
    all_runs = configs(options)
    cli.enable_compilation_cache()
    data = jc.load_dataset(options.dataset, options.data_dir, validation=options.num_validation)
    strategy = options.make_strategy()
    sweep_kwargs: dict[str, Any] = {
        "strategy": strategy,
        "should_stop": stop,
        "tensorboard": options.tensorboard,
        "measure": heldout(strategy),
        "quiet": True,
    }
    return run_all(all_runs, data, options.out, **sweep_kwargs)


def draw(options: Options) -> None:
    """Write the table and the figures of the finished runs in `options.out`."""
    out = options.out
    all_runs = runs.finished_runs(out)
    by_setting = groups(all_runs)
    table = [row(name, group, by_setting.get("few", [])) for name, group in by_setting.items()]
    divergences = filter(None, (run.divergence for run in all_runs))
    notes = [protocol(next(iter(by_setting.values()))[0]), *divergences]
    tables.write_table(out, table, notes)
    write_figures(options, by_setting, table)
    print(
        f"{tables.compact_markdown(table)}\nwrote {out}/table.md, table.csv, curves.csv, "
        f"curves.{options.format} and gap.{options.format}"
    )


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw; return the exit code."""
    return run_study(PRESETS, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
