"""Depth study: do more layers hurt plain networks and help residual ones?

He et al. 2015 (arXiv:1512.03385), section 4.2, figure 6.

    python -m experiments.depth                   digits, no download: 2.5 minutes on two CPU cores
    python -m experiments.depth --preset mnist    MNIST, narrow networks: 6 minutes there
    python -m experiments.depth --preset quarter  CIFAR-10, a quarter of the paper's steps, on a
                                                  CPU with bfloat16 units: 25 to 70 minutes a run
                                                  there, about 10 hours for its 12 runs
    python -m experiments.depth --preset paper    CIFAR-10, as in the paper: 4 to 11 hours a run
                                                  there, about 300 hours for its 40 runs
    python -m experiments.depth --coordinator HOST:PORT --num-processes N --process-id I
                                                  on each of N hosts

Expected, quick, means of 4 seeds: training errors of about 4% (plain-20), 79% (plain-56), 1%
(ResNet-20) and 4% (ResNet-56). Expected, paper: the column `paper_test_error`.

It writes OUT/table.md, OUT/table.csv, OUT/curves.csv, OUT/curves.png and a folder for every run.

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
from jaxcnn import cli, multihost, plots, runs, tables
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
    """quick: digits on any machine. mnist: 500 steps of narrow networks. quarter: CIFAR-10, 16,000
    steps in bfloat16. paper: CIFAR-10 exactly as published."""
    dataset: str = "digits"
    """digits, mnist, fashion_mnist, cifar10, cifar100 or svhn_cropped."""
    depths: tuple[int, ...] = (20, 56)
    """Each 6 n + 2."""
    families: tuple[Literal["plain", "residual"], ...] = ("plain", "residual")
    num_seeds: int = 2
    num_steps: int = 300
    batch_size: int = 128
    width: int = 8
    """Filters of the first stage."""
    shortcut: Literal["A", "B"] = "A"
    bn_group: int = 0
    """Examples that BN averages over; 0 is the batch, 64 the paper's two GPUs."""
    kernel_init: str = "he"
    learning_rate: float = 0.05
    milestones: tuple[int, ...] = (150, 225)
    """Steps at which the rate falls tenfold."""
    warmup_depth: int = 110
    """From this depth on residual networks start at --warmup-lr; 0 is never."""
    warmup_lr: float = 0.01
    """Until the training error is below 80%."""
    optimizer: str = "momentum"
    """momentum, caffe, nesterov or sgd."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_mask: Literal["convs", "kernels", "all"] = "kernels"
    ema_decay: float = 0.0
    """Evaluate at a moving average of the parameters, with a decay such as 0.999; 0 is off."""
    subtract_mean: Literal["pixel", "channel", "none"] = "pixel"
    divide_std: bool = False
    padding: int = 1
    """Pixels of padding before the random crop; 0 is no crop."""
    pad_value: Literal["mean", "black", "reflect"] = "mean"
    flip: bool = False
    num_validation: int = 0
    """Training images held out (the paper's split: 5000)."""
    eval_split: Literal["test", "validation"] = "test"
    recompute_batch_stats: int = 0
    """Training images for exact BN statistics, tested next to the moving ones; 0 is off."""
    train_metrics: Literal["running", "clean"] = "running"
    eval_every: int | None = 25
    """Steps between rows, tests and checkpoints; None is an epoch."""
    keep_every: int = 25
    """Keep the checkpoints at multiples of this (quick: 110 MB); 0 keeps none of them.

    They are for signal_propagation and loss_landscape."""
    dtype: DtypeName = "float32"
    coordinator: str | None = None
    """On several hosts: HOST:PORT of process 0. Under Slurm, Open MPI and on TPU slices none of the
    three is needed."""
    num_processes: int | None = None
    """On several hosts: the number of processes, each started with this command."""
    process_id: int | None = None
    """On several hosts: the number of this process, from 0."""
    data_dir: Path | None = None
    """Folder that is searched for data first."""
    out: Path = Path("runs/depth")
    tensorboard: bool = False
    """Write event files for TensorBoard next to the rows of every run."""
    plot_only: bool = False
    """Draw table and figure from the runs that OUT holds, and train nothing."""


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


def draw(options: FigureOptions, out: Path) -> None:
    """Write `table.md`, `table.csv`, `curves.csv` and the curves of the finished runs in `out`."""
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
    title = display_names(f"Error by depth: {protocol}")
    figure = plots.curves(panels, dashed="train_error", solid="eval_error", title=title)
    tables.write_curves(out, {run.name: run.rows for run in all_runs})
    options.save(figure, out / "curves")
    print(tables.compact_markdown(table))
    print(f"wrote {out}/table.md, table.csv, curves.csv and curves.{options.format}")


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw; return the exit code.

    Unlike `run_study`, it joins the other hosts first, and only the primary one prints and draws.
    """
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(PRESETS, args, description=__doc__)
        multihost.initialize(options.coordinator, options.num_processes, options.process_id)
        if not options.plot_only:
            all_runs = configs(options)
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
