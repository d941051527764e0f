"""Depth study: do more layers hurt plain networks and help residual ones?

He et al. 2015 (arXiv:1512.03385), section 4.2, figure 6.

    python -m experiments.depth                   digits, no download: 2.5 minutes on two CPU cores
    python -m experiments.depth --preset mnist    MNIST, narrow networks: 6 minutes there
    python -m experiments.depth --preset quarter  CIFAR-10, a quarter of the paper's steps, on a
                                                  CPU with bfloat16 units: 1 to 1.5 hours a run of
                                                  20 layers there, next to other work
    python -m experiments.depth --preset paper    CIFAR-10, as in the paper: 4 to 11 hours a run
                                                  there, about 300 hours for its 40 runs
    python -m experiments.depth --coordinator HOST:PORT --num-processes N --process-id I
                                                  on each of N hosts

Expected, quick, means of 4 seeds: training errors of about 4% (plain-20), 79% (plain-56), 1%
(ResNet-20) and 4% (ResNet-56). Expected, paper: the column `paper_test_error`.

It writes OUT/table.md, OUT/depth_effect.md (each also .csv), OUT/curves.csv, OUT/curves.png and a
folder for every run.

The same command resumes a study that was stopped. When all runs are finished, it only draws.
Started several times at once, each process takes runs that no other trains.
"""

from __future__ import annotations

import itertools
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jaxcnn as jc
from experiments._common import (
    DeviceOptions,
    DtypeName,
    FigureOptions,
    SeedOptions,
    display_names,
    print_hint,
    run_all,
)
from experiments._options import parse_options, print_milestones
from jaxcnn import cli, multihost, runs, tables
from jaxcnn.config import field_names

# fmt: off
PAPER = {
    # Figure 6, digitized.
    ("plain", 20): 9.7, ("plain", 32): 10.1, ("plain", 44): 11.4, ("plain", 56): 13.2,
    # Table 6; of 110 layers it is the mean of five runs, and 6.43 is the best.
    ("residual", 20): 8.75, ("residual", 32): 7.51, ("residual", 44): 7.17, ("residual", 56): 6.97,
    ("residual", 110): 6.61,
}
# fmt: on
"""Test errors on CIFAR-10, percent."""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting of the study; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist", "quarter", "paper"] = "quick"
    """quick: digits. mnist: 500 steps of narrow networks. quarter: CIFAR-10, 16,000 steps in
    bfloat16. paper: CIFAR-10 as published."""
    dataset: str = "digits"
    depths: tuple[int, ...] = (20, 56)
    """Layers of the networks, each 6 n + 2."""
    families: tuple[Literal["plain", "residual"], ...] = ("plain", "residual")
    """Networks without and with shortcuts."""
    num_seeds: int = 2
    num_steps: int = 300
    batch_size: int = 128
    width: int = 8
    shortcut: Literal["A", "B"] = "A"
    """Shortcut where sizes differ: A pads with zeros, B projects."""
    bn_group: int = 0
    """Images that BN averages over; 0 is the batch, 64 that of the paper's two GPUs."""
    kernel_init: str = "he"
    """Initial kernels, a name in jaxcnn.models.INITS."""
    learning_rate: float = 0.05
    milestones: tuple[int, ...] = (150, 225)
    """Steps at which the learning rate falls tenfold. By default they are in proportion to
    --num-steps."""
    warmup_depth: int = 110
    """Layers from which residual networks start at --warmup-lr; 0 is never."""
    warmup_lr: float = 0.01
    """Learning rate of that start, until the training error is below 80%."""
    optimizer: str = "momentum"
    """Optimizer, a name in jaxcnn.OPTIMIZERS: momentum, caffe, nesterov, sgd and others."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_mask: Literal["convs", "kernels", "all"] = "kernels"
    """Parameters that decay: kernels of convolutions, all kernels, or all."""
    ema_decay: float = 0.0
    """Decay, such as 0.999, of parameters' moving averages to evaluate at; 0 is off."""
    subtract_mean: Literal["pixel", "channel", "none"] = "pixel"
    """Mean to subtract from images: of each pixel, of each channel, or none."""
    divide_std: bool = False
    padding: int = 1
    """Pixels of padding on each side before the random crop; 0 is no crop."""
    pad_value: Literal["mean", "black", "reflect"] = "mean"
    """Content of the padding."""
    flip: bool = False
    num_validation: int = 0
    """Training images to hold out (the paper: 5000)."""
    eval_split: Literal["test", "validation"] = "test"
    """Images to evaluate."""
    recompute_batch_stats: int = 0
    """Training images for exact BN statistics, evaluated too; 0 is off."""
    train_metrics: Literal["running", "clean"] = "running"
    """Training error: running is of the augmented batches, clean of a pass in test mode."""
    eval_every: int | None = 25
    keep_every: int = 25
    """Steps between checkpoints to keep for other experiments (quick: 110 MB); 0 keeps none of
    them."""
    dtype: DtypeName = "float32"
    coordinator: str | None = None
    """HOST:PORT of process 0; None where Slurm, Open MPI or a TPU slice tells."""
    num_processes: int | None = None
    """Number of processes, each started with this command; likewise None."""
    process_id: int | None = None
    """Number of this process, from 0; likewise None."""
    data_dir: Path | None = None
    out: Path = Path("runs/depth")
    tensorboard: bool = False
    plot_only: bool = False


_PAPER = Options(
    preset="paper",
    dataset="cifar10",
    depths=(20, 32, 44, 56),
    num_seeds=5,
    num_steps=64_000,
    width=16,
    learning_rate=0.1,
    milestones=(32_000, 48_000),
    padding=4,
    flip=True,
    bn_group=64,
    eval_every=None,
    # 20 epochs.
    keep_every=7_820,
    out=Path("runs/depth-paper"),
)
PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist",
        dataset="mnist",
        num_seeds=1,
        num_steps=500,
        milestones=(300, 425),
        eval_every=50,
        keep_every=50,
        out=Path("runs/depth-mnist"),
    ),
    "quarter": replace(
        _PAPER,
        preset="quarter",
        depths=(20, 56),
        num_seeds=3,
        num_steps=16_000,
        milestones=(8_000, 12_000),
        eval_every=1_000,
        keep_every=0,
        dtype="bfloat16",
        out=Path("runs/depth-quarter"),
    ),
    "paper": _PAPER,
}
MAKES = {
    "quick": "python -m experiments.depth",
    "mnist": "python -m experiments.depth --preset mnist",
    "cifar10": "python -m experiments.depth --preset paper",
}
"""Preset of a script that reads these runs -> the command that makes them."""


def configs(options: Options) -> dict[str, jc.ExperimentConfig]:
    """Return the study's runs: name -> config.

    One seed of every network comes first, so that a study that was stopped has a usable table.

    Raises:
      ArgumentError: for an option without values, another depth than 6 n + 2, or invalid seeds.
    """
    for name in ("depths", "families"):
        if not getattr(options, name):
            raise jc.ArgumentError(
                f"{name} is empty; "
                f"write --{name} {'20 56' if name == 'depths' else 'plain residual'}"
            )
    if invalid := [depth for depth in options.depths if depth < 8 or depth % 6 != 2]:
        near = max(1, (invalid[0] - 2) // 6)
        raise jc.ArgumentError(
            f"depths is {invalid[0]}; expected 6 n + 2 for whole n >= 1: "
            f"write --depths {6 * near + 2} {6 * near + 8}"
        )
    # Options and configs share the names of their fields.
    default = jc.ExperimentConfig()
    names = [name for name in field_names(default) if hasattr(options, name)]
    shared = {name: getattr(options, name) for name in names} | {"warmup_lr": None}
    base = jc.override(default, **shared)
    all_runs = {}
    for seed in options.run_seeds():
        for depth in options.depths:
            for family in options.families:
                name = f"{'plain' if family == 'plain' else 'resnet'}{depth}"
                config = jc.override(
                    base,
                    model=f"cifar-{name}",
                    model_kwargs=_model_kwargs(options, family),
                    seed=seed,
                )
                # Section 4.2: 0.1 is slightly too large for ResNet-110 to start converging.
                if family == "residual" and 0 < options.warmup_depth <= depth:
                    config = jc.override(config, warmup_lr=options.warmup_lr)
                all_runs[f"{name}-seed{seed}"] = config
    return all_runs


def _model_kwargs(options: Options, family: str) -> dict[str, Any]:
    """Return the keyword arguments of `jaxcnn.create_model` for a network of the family."""
    kwargs = {
        name: getattr(options, name) for name in ("width", "bn_group", "kernel_init", "dtype")
    }
    return kwargs | ({"shortcut": options.shortcut} if family == "residual" else {})


def network(run: runs.Run) -> tuple[str, int]:
    """Return the family and the depth of a run's network."""
    family = "plain" if "plain" in run.config.model else "residual"
    return family, int(re.sub(r"\D", "", run.config.model))


def row(family: str, depth: int, all_runs: list[runs.Run]) -> dict[str, Any]:
    """Return the table's row of a network, from its runs."""
    line = {
        "family": family,
        "depth": depth,
        "params": all_runs[0].result["params"],
    } | runs.aggregate_seeds(all_runs)
    on_cifar10 = all_runs[0].config.dataset == "cifar10"
    published = PAPER.get((family, depth)) if on_cifar10 else None
    return line | {"paper_test_error": published}


def depth_effect(all_runs: list[runs.Run]) -> list[dict[str, Any]]:
    """Return what depth adds to the errors of each family, in percentage points.

    It is the error of the deepest network minus that of the shallowest, at the last step. Runs of
    the same seed are paired, because they saw the same images in the same order. Runs that diverged
    are left out.

    Args:
      all_runs: finished runs of the study.

    Returns:
      A table's row for each family of two depths or more, with the columns `family`, `shallow`,
      `deep`, `seeds`, `train_error`, `eval_error`, and for both errors `_std` and `_ci95`. A
      positive error says that depth hurts.
    """
    by_network: dict[tuple[str, int], dict[int, runs.Run]] = {}
    for run in all_runs:
        if run.divergence is None:
            by_network.setdefault(network(run), {})[run.config.train.seed] = run
    lines = []
    for family in ("plain", "residual"):
        depths = sorted(depth for name, depth in by_network if name == family)
        if len(depths) < 2:
            continue
        shallow, deep = (by_network[family, depth] for depth in (depths[0], depths[-1]))
        seeds = sorted(shallow.keys() & deep.keys())
        line = {"family": family, "shallow": depths[0], "deep": depths[-1], "seeds": len(seeds)}
        for key in ("train_error", "eval_error"):
            pairs = [(shallow[seed].result[key], deep[seed].result[key]) for seed in seeds]
            missing = any(None in pair for pair in pairs)
            mean, std, ci95 = tables.seed_statistics(
                [] if missing else [high - low for low, high in pairs]
            )
            line |= {key: mean, f"{key}_std": std, f"{key}_ci95": ci95}
        lines.append(line)
    return lines


def draw(options: FigureOptions, out: Path) -> None:
    """Write the tables and the curves of the finished runs in `out`."""
    all_runs = sorted(runs.finished_runs(out), key=network)
    networks = {key: list(group) for key, group in itertools.groupby(all_runs, key=network)}
    table = [row(*key, group) for key, group in networks.items()]
    panels: dict[str, dict[str, list[Any]]] = {}
    for (family, depth), group in networks.items():
        panels.setdefault(family, {})[f"{depth} layers"] = [run.rows for run in group]
    config = all_runs[0].config
    training = (
        "one clean pass"
        if config.train.train_metrics == "clean"
        else "running mean over augmented batches"
    )
    protocol = (
        f"{config.dataset}, width {config.model_kwargs['width']}, "
        f"{config.train.num_steps} steps of {config.train.batch_size} images"
    )
    notes = [
        f"{protocol}. Errors in percent at the last step (training error: {training}); "
        "± is the half width of the mean's 95% interval; seconds a run.",
        *filter(None, (run.divergence for run in all_runs)),
    ]
    tables.write_table(out, table, notes)
    effects = depth_effect(all_runs)
    if effects:
        note = (
            f"{protocol}. Error of the deep network minus that of the shallow one at the last "
            "step, in percentage points, over pairs of runs of the same seed; positive: depth "
            "hurts. ± is the half width of the mean's 95% interval."
        )
        tables.write_table(out, effects, [note], name="depth_effect")
    title = display_names(f"Error by depth: {protocol}")
    # Imported here, as in FigureOptions.save.
    from jaxcnn import plots

    figure = plots.curves(panels, dashed="train_error", solid="eval_error", title=title)
    tables.write_curves(out, {run.name: run.rows for run in all_runs})
    options.save(figure, out / "curves")
    print(tables.compact_markdown(table))
    names = ["table.md", "table.csv", *(["depth_effect.md", "depth_effect.csv"] if effects else [])]
    print(f"wrote {out}/{', '.join(names)}, curves.csv and curves.{options.format}")


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw; return the exit code.

    Unlike `run_study`, it joins the other hosts first, and only the primary one prints and draws.
    """
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = parse_options(PRESETS, args, description=__doc__)
        multihost.initialize(options.coordinator, options.num_processes, options.process_id)
        if not options.plot_only:
            all_runs = configs(options)
            if multihost.is_primary():
                print_milestones(options, PRESETS[options.preset])
            cli.enable_compilation_cache()
            data = jc.load_dataset(
                options.dataset, options.data_dir, validation=options.num_validation
            )
            strategy = options.make_strategy()
            sweep_kwargs: dict[str, Any] = {
                "strategy": strategy,
                "should_stop": stop,
                "tensorboard": options.tensorboard,
                "keep_every": options.keep_every,
            }
            if not run_all(all_runs, data, options.out, **sweep_kwargs):
                print_hint(stop)
                return stop.exit_code
        with cli.record_errors(options.out):
            multihost.broadcast_from_primary(lambda: draw(options, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
