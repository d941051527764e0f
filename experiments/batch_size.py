"""Online, mini-batch and full-batch learning, and the effect of sorted training data.

    python -m experiments.batch_size                  digits, no download: 1 minute 33 seconds on
                                                      two CPU cores
    python -m experiments.batch_size --preset mnist   LeNet-5 on 5120 images of MNIST: not measured
                                                      yet

This is the table of every course, measured: one loop, `runs.sweep`, and settings that differ in
their batch, order, rate and epochs. "At equal epochs" is the row after --common epochs. "At equal
time" is the last row within the training time of the shuffled setting that ends first. The time of
a row is its step times the setting's median seconds a step, over all rows but each run's first.
Compiling, testing and saving do not count. Training figures are of all the training images, in test
mode. Memory is what XLA allocates for a step besides state and data. `loss_std` is the spread of
the batch's loss from update to update within a row (median over the second half of the rows).

The gradient noise scale tr(Sigma) / |G|^2 (McCandlish et al. 2018, arXiv:1812.06162, eq. 2.9) is
the batch up to which a larger one pays. OUT/noise.json has it at the start and at the end of the
first mini-batch run.

Expected, quick (3 seeds; seconds are this machine's):

- seconds an epoch: 0.39 (online), 0.035 (mini-batch) and 0.012 (full batch); updates an epoch:
  1280, 40 and 1; memory: 0.025, 0.28 and 11 MiB;
- test images wrong after 10 epochs: 2.4% (online), 3.8% (mini-batch), 64% (full batch), 70% (sorted
  mini-batches) and 81% (sorted online);
- test images wrong after equal time (2.1 s): 3.4%, 2.2% and 6%;
- noise scale: 17 images at the start, 710 at the end.

Online training on sorted data classifies the images of the moment correctly, and has forgotten the
other classes. Full batch has no noise. At twice the rate (`--rates 0.01 0.1 0.2`) its loss still
jumps once in one seed, because 0.2 is about as much as the curvature allows.

It writes OUT/table.md, table.csv, curves.csv, curves.png, sorted.png, noise.json, memory.json and a
folder for every run. The same command resumes a study that was stopped.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn as jc
from experiments._common import (
    READ_TIMEOUT,
    FigureOptions,
    SeedOptions,
    run_all,
    run_study,
)
from jaxcnn import cli, plots, runs, tables
from jaxcnn.augment import normalize
from jaxcnn.run_log import read_json, write_text

SETTINGS = ("online", "mini-batch", "full-batch", "mini-batch-sorted", "online-sorted")
ROWS, SORTED_ROWS = 60, 10
"""Least number of rows of a shuffled run; rows an epoch of a sorted one, about one a class."""
DRAWS, DRAW = 1000, 8
"""Number of batches that the noise scale is measured with, and images of each."""
FIGURES = {"train_loss": "all_loss", "eval_loss": "eval_loss", "eval_error": "eval_error"}
"""Column of the table -> key of a run's rows."""
Groups = Mapping[str, Sequence[runs.Run]]
"""Runs of each setting."""


@dataclass(frozen=True)
class Options(SeedOptions, FigureOptions):
    """Every setting of the experiment; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    """quick: digits. mnist: MNIST."""
    dataset: str = "digits"
    model: str = "convnet"
    """Network without BN, by name: a single image would leave BN without a variance."""
    max_train_examples: int = 1280
    """Training images, as many of each class; a multiple of --batch-size."""
    batch_size: int = 32
    """Images in a mini-batch."""
    num_seeds: int = 3
    # On digits with two seeds: online 0.02 is no better and at 0.05 the loss grows. Mini-batches
    # end with the same error from 0.03 to 0.2. The full batch jumps once on its way at 0.2, and
    # back at 0.4.
    rates: tuple[float, float, float] = (0.01, 0.1, 0.1)
    """Learning rates of online, mini-batch and full-batch learning."""
    epochs: tuple[int, int, int] = (10, 60, 600)
    """Epochs of online, mini-batch and full-batch learning."""
    common: int = 10
    """Epochs at which all settings are compared, and of the sorted runs."""
    data_dir: Path | None = None
    out: Path = Path("runs/batch_size")
    tensorboard: bool = False
    plot_only: bool = False
    """Draw tables and figures from the runs that OUT holds, and train nothing."""


PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist",
        dataset="mnist",
        model="lenet5-relu",
        max_train_examples=5120,
        num_seeds=2,
        # The best of 0.005 to 0.02 and of 0.05 to 0.2, one seed; the last was not searched.
        rates=(0.005, 0.2, 0.2),
        epochs=(10, 40, 200),
        out=Path("runs/batch_size-mnist"),
    ),
}


def configs(options: Options) -> dict[str, jc.ExperimentConfig]:
    """Return the study's runs: name -> config.

    One seed of every setting comes first.
    """
    check(options)
    sizes = (1, options.batch_size, options.max_train_examples)
    shuffled = list(zip(sizes, ("shuffled",) * 3, options.rates, options.epochs, strict=True))
    # Sorted full batches would be the same as shuffled ones.
    sorted_by_label = [(size, "sorted", rate, options.common) for size, _, rate, _ in shuffled[:2]]
    settings = [setting_config(options, *numbers) for numbers in (*shuffled, *sorted_by_label)]
    return {
        f"{setting(config)}-seed{seed}": jc.override(config, seed=seed)
        for seed in options.run_seeds()
        for config in settings
    }


def setting_config(
    options: Options, batch_size: int, order: str, learning_rate: float, epochs: int
) -> jc.ExperimentConfig:
    """Return the config of a setting.

    It is plain gradient descent at a constant rate, so that settings differ by their batch alone.
    """
    updates, common = (
        e * options.max_train_examples // batch_size for e in (epochs, options.common)
    )
    most = updates // (SORTED_ROWS * epochs if order == "sorted" else ROWS)
    return jc.ExperimentConfig(
        dataset=options.dataset,
        model=options.model,
        max_train_examples=options.max_train_examples,
        optimizer=jc.OptimizerConfig(
            "sgd",
            learning_rate=learning_rate,
            schedule="constant",
            momentum=0.0,
            weight_decay=0.0,
        ),
        train=jc.TrainConfig(
            num_steps=updates,
            batch_size=batch_size,
            # A divisor, so that a row falls on the common epoch.
            eval_every=max(k for k in range(1, max(1, most) + 1) if common % k == 0),
            order=order,
        ),
    )


def check(options: Options) -> None:
    """Check what no config checks.

    Raises:
      ArgumentError: for a number that is too small, or batches and epochs that do not fit.
    """
    for name, least in (
        ("common", 1),
        ("batch_size", 2),
        ("max_train_examples", 4),
    ):
        if getattr(options, name) < least:
            raise jc.ArgumentError(
                f"{name} is {getattr(options, name)}; expected a whole number of at least {least}"
            )
    n, size, common = options.max_train_examples, options.batch_size, options.common
    if size >= n or n % size:
        if n // size >= 2:
            near = f"--max-train-examples {n // size * size}"
        # The data may have no more images, so the batch is made smaller.
        elif n % 2 == 0:
            near = f"--batch-size {n // 2}"
        else:
            near = f"--max-train-examples {n - 1} --batch-size {n // 2}"
        raise jc.ArgumentError(
            f"max_train_examples is {n}; expected a multiple of --batch-size, and not --batch-size "
            f"itself: write {near}"
        )
    if min(options.epochs) < common:
        enough = " ".join(str(max(epochs, common)) for epochs in options.epochs)
        raise jc.ArgumentError(
            f"epochs is {options.epochs}, less than the common {common}: write --epochs {enough}"
        )


def evaluate_train(model: Any, state: jc.State, data: jc.Dataset) -> dict[str, float]:
    """Return loss and error of all the training images.

    The mean over a row's batches is another number: parameters change meanwhile.
    """
    sums = jc.evaluate(model, state, data.train, strategy=jc.strategy(devices=1))
    return {"all_loss": sums.mean_loss, "all_error": sums.error_percent}


def cached_json(path: Path, make: Callable[[], Mapping[str, Any]] = dict) -> Mapping[str, Any]:
    """Return the content of a JSON file, or make and write it.

    Args:
      path: of the file.
      make: called if the file is missing; an empty result is not written.
    """
    if path.exists():
        return read_json(path)
    if content := make():
        write_text(path, json.dumps(content, indent=2) + "\n")
    return content


def initialize(
    config: jc.ExperimentConfig, data: jc.Dataset
) -> tuple[Any, Any, jc.State, jc.Split]:
    """Return a run's model, optimizer, state at step 0 and training images."""
    subset = runs.subset_for(config, data)
    model, tx = runs.model_and_optimizer(config, data.num_classes)
    return model, tx, jc.init_state(model, tx, config.train, subset), subset.train


def step_memory(
    configs: Iterable[jc.ExperimentConfig], data: jc.Dataset
) -> dict[str, float | None]:
    """Return the memory of a step: batch size -> MiB that XLA allocates.

    It is None where XLA does not report it.
    """
    strategy, sizes = jc.strategy(devices=1), {}
    for config in {config.train.batch_size: config for config in configs}.values():
        model, tx, state, train = initialize(config, data)
        step = jc.make_train_step(model, tx)
        index = np.arange(config.train.batch_size, dtype=np.int32)
        size = strategy.memory(step, strategy.replicate(state), strategy.replicate(train), index)
        sizes[str(config.train.batch_size)] = None if size is None else size / 2**20
    return sizes


def measure_noise(config: jc.ExperimentConfig, data: jc.Dataset, folder: Path) -> dict[str, Any]:
    """Measure the gradient noise scale at both ends of a run.

    Args:
      config: of the run.
      data: images are drawn from its training split with replacement.
      folder: of the run; without a checkpoint there, the end is the start.

    Returns:
      "start" and "end" -> the fields of `jaxcnn.noise_scale`, None for one that is not finite:
      there the noise hides the gradient. "draws" and "of" are batches and images of a batch, and
      "run" is the name of the run.
    """
    model, _, start, train = initialize(config, data)
    with jc.Checkpoints(folder / "checkpoints", timeout=READ_TIMEOUT) as checkpoints:
        states = {"start": start, "end": checkpoints.restore(start) or start}
    loss_gradient = jax.grad(jc.loss_fn(model))
    inputs = np.asarray(normalize(jnp.asarray(train.images), start.normalizer))

    def gradient(params, batch):
        return loss_gradient(params, start.model_state, *batch)

    report: dict[str, Any] = {"draws": DRAWS, "of": DRAW, "run": folder.name}
    draws = np.random.default_rng(0).integers(len(inputs), size=(DRAWS, DRAW))
    for name, state in states.items():
        batches = ((inputs[index], train.labels[index]) for index in draws)
        scale = jc.noise_scale(gradient, state.params, batches)
        report[name] = {k: v if math.isfinite(v) else None for k, v in scale._asdict().items()}
    return report


def noise_note(noise: Mapping[str, Any]) -> str:
    """Return one sentence on the noise scale."""
    draws = f"{noise['draws']} batches of {noise['of']} images"
    start, end = (
        f"{scale:.3g}" if (scale := noise[moment]["scale"]) else "too large to tell"
        for moment in ("start", "end")
    )
    return (
        f"Gradient noise scale, in images: {start} at the start, {end} at the end of "
        f"{noise.get('run', 'mini-batch-seed0')} ({draws})."
    )


def train(options: Options, stop: cli.GracefulShutdown) -> bool:
    """Train the missing runs, measure memory and noise; False if some are not finished."""
    all_runs = configs(options)
    cli.enable_compilation_cache()
    data = jc.load_dataset(options.dataset, options.data_dir)
    # One device: a batch of one image cannot be split.
    sweep_kwargs: dict[str, Any] = {
        "strategy": jc.strategy(devices=1),
        "should_stop": stop,
        "tensorboard": options.tensorboard,
        "measure": evaluate_train,
        "quiet": True,
    }
    out = options.out
    if not run_all(all_runs, data, out, **sweep_kwargs):
        return False
    cached_json(out / "memory.json", lambda: step_memory(all_runs.values(), data))
    name = f"mini-batch-seed{options.run_seeds()[0]}"
    cached_json(out / "noise.json", lambda: measure_noise(all_runs[name], data, out / name))
    return True


def draw(options: Options) -> None:
    """Write the table and the figures of the finished runs in `options.out`."""
    out = options.out
    all_runs = runs.finished_runs(out)
    converged = [
        run for run in all_runs if run.divergence is None and run.config.max_train_examples
    ]
    groups = {
        name: group
        for name in SETTINGS
        if (group := [run for run in converged if setting(run.config) == name])
    }
    ends = [timed(group)[0][-1] for name, group in groups.items() if not name.endswith("sorted")]
    if not ends:
        raise jc.ArgumentError(
            f"no shuffled run in {out} is over that did not diverge; "
            "write smaller --rates, another --out"
        )
    common = min(
        config.train.num_steps * config.train.batch_size / (config.max_train_examples or math.nan)
        for config in (run.config for run in converged)
    )
    limits = {"epoch": common, "time": min(end["time"] for end in ends)}
    memory = out / "memory.json"
    table = [table_row(name, group, limits, cached_json(memory)) for name, group in groups.items()]
    config = all_runs[0].config
    title = f"{config.dataset}, {config.max_train_examples} training images, {config.model}"
    noise = cached_json(out / "noise.json")
    notes = [
        f"{title}. Equal epochs: {limits['epoch']:g}; equal time: {limits['time']:.3g} s. "
        "Errors in percent, losses in nats; ± is the half width of the mean's 95% interval "
        "over seeds.",
        *([noise_note(noise)] if noise else []),
        *(run.divergence for run in all_runs if run.divergence),
    ]
    tables.write_table(out, table, notes)
    tables.write_curves(out, {run.name: run.rows for group in groups.values() for run in group})
    options.save(curves_figure(groups, limits, title), out / "curves")
    options.save(orders_figure(groups, limits["epoch"], title), out / "sorted")
    print(
        tables.compact_markdown(table),
        *notes,
        f"wrote {out}/table.md, table.csv, curves.csv, curves.{options.format} and "
        f"sorted.{options.format}",
        sep="\n",
    )


def setting(config: jc.ExperimentConfig) -> str:
    """Return the name of a config's setting, such as `mini-batch-sorted`."""
    names = {1: "online", config.max_train_examples: "full-batch"}
    name = names.get(config.train.batch_size, "mini-batch")
    return name if config.train.order == "shuffled" else f"{name}-sorted"


def timed(all_runs: Sequence[runs.Run]) -> list[list[dict[str, Any]]]:
    """Return the rows of a setting's runs with two more keys.

    They are `epoch` and `time`, the seconds of training up to the row.
    """
    config = all_runs[0].config
    batch_size, n = config.train.batch_size, config.max_train_examples
    # One pace for all seeds, so that rows of one step have one time. The first row of a run
    # includes compilation and counts only where there is no other.
    pace = statistics.median(
        batch_size / row["images_per_second"]
        for run in all_runs
        for row in run.rows[1:] or run.rows
    )
    new_columns = [
        [{"epoch": row["step"] * batch_size / n, "time": row["step"] * pace} for row in run.rows]
        for run in all_runs
    ]
    return [
        [row | columns for row, columns in zip(run.rows, run_columns, strict=True)]
        for run, run_columns in zip(all_runs, new_columns, strict=True)
    ]


def last_within(rows: Sequence[dict[str, Any]], key: str, limit: float) -> dict[str, Any]:
    """Return the last row whose `key` is at most the limit.

    If all rows exceed it, that is the first row.
    """
    within = (row for row in rows if row[key] <= limit * (1 + 1e-9))
    return max(within, key=lambda row: row["step"], default=rows[0])


def table_row(
    name: str,
    all_runs: Sequence[runs.Run],
    limits: Mapping[str, float],
    memory: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the table's row of a setting.

    Sorted runs have no times: their rows of few steps are no measure, and they finish early.

    Args:
      name: of the setting.
      all_runs: its runs, one a seed.
      limits: "epoch" and "time" -> the value at which settings are compared.
      memory: batch size -> MiB of a step.
    """
    config, rows = all_runs[0].config, timed(all_runs)
    updates = (config.max_train_examples or 0) // config.train.batch_size
    # Only the second half of the rows: the loss of early ones falls, which is a spread too.
    spreads = [statistics.median(row["loss_std"] for row in run[len(run) // 2 :]) for run in rows]
    cells: dict[str, Any] = {
        "setting": name,
        "batch_size": config.train.batch_size,
        "order": config.train.order,
        "learning_rate": config.optimizer.learning_rate,
    }
    is_timed, end = config.train.order == "shuffled", rows[0][-1]
    cells |= {
        "updates_per_epoch": updates,
        "seconds_per_epoch": end["time"] / end["epoch"] if is_timed else None,
    }
    cells |= {
        "memory_mib": memory.get(str(config.train.batch_size)),
        "loss_std": tables.seed_statistics(spreads).mean,
        "seeds": len(all_runs),
    }
    cells |= {"eval_split": runs.eval_split(all_runs)}
    for key, limit in limits.items():
        compared = (
            [last_within(run, key, limit) for run in rows] if is_timed or key == "epoch" else []
        )
        for column, figure in FIGURES.items():
            values = tables.seed_statistics([row[figure] for row in compared])
            cells |= {
                f"{column}_at_{key}{suffix}": value
                for suffix, value in zip(("", "_std", "_ci95"), values, strict=True)
            }
    return cells


def curves_figure(groups: Groups, limits: Mapping[str, float], title: str) -> Any:
    """Draw the loss against epochs, updates and seconds, and its spread."""
    shuffled = {
        name: timed(all_runs) for name, all_runs in groups.items() if not name.endswith("sorted")
    }
    axes = {"epoch": "epochs", "step": "updates", "time": "training time (s)"}
    specs = [
        (f"Loss against {name}", x, axes[x], "all_loss", "training loss (nats)")
        for x, name in (("epoch", "epochs"), ("step", "updates"), ("time", "time"))
    ]
    spread = ("loss_std", "std of the batch loss (nats)")
    specs.append(("Spread from update to update", "epoch", "epochs", *spread))
    panels = []
    for name, x, xlabel, y, ylabel in specs:
        lines = [
            plots.band(rows, x, y, label=setting_name) for setting_name, rows in shuffled.items()
        ]
        is_compared = x in limits and y == "all_loss"
        marks = [plots.Mark(limits[x])] if is_compared else []
        name += "; dotted: compared" * is_compared
        panels.append(plots.Panel(name, lines, marks, xlabel, ylabel, xlog=True, ylog=True))
    title = f"Batches of one, some or all images: {title}"
    return plots.panels(panels, columns=2, share="none", title=title, size=(4.6, 3.3))


def orders_figure(groups: Groups, epochs: float, title: str) -> Any:
    """Draw the errors of shuffled and of sorted runs.

    They are on the eval split, and on the batches during training.

    Args:
      groups: runs of each setting.
      epochs: right end of the axis.
      title: of the figure.
    """
    panels = []
    split = runs.eval_split([run for all_runs in groups.values() for run in all_runs])
    for key, label, images in (
        ("eval_error", f"{split} error (%)", f"{split} images"),
        ("train_error", "training error (%)", "training batches"),
    ):
        for name in ("mini-batch", "online"):
            pair = {"shuffled": groups.get(name), "sorted by label": groups.get(f"{name}-sorted")}
            lines = [
                plots.band(timed(all_runs), "epoch", key, label=order)
                for order, all_runs in pair.items()
                if all_runs
            ]
            panels.append(
                plots.Panel(
                    f"{name}: {images}",
                    lines,
                    (),
                    "epochs",
                    label,
                    ylim=(0, 100),
                    xlim=(0, epochs),
                )
            )
    title = f"Shuffled data and data sorted by label: {title}"
    return plots.panels(panels, columns=2, share="x", title=title, size=(4.6, 3.3))


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw; return the exit code."""
    return run_study(PRESETS, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
