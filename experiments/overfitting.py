"""What does overfitting look like, and what helps? A network that generalises, one that overfits, and five remedies.

    python -m experiments.overfitting                   digits, no download: 2 minutes on two CPU cores
    python -m experiments.overfitting --preset mnist    500 images of MNIST: 10 minutes there

Every setting is the overfitting one (`few`: so many images, no augmentation, no decay) with one change: all images (`all`),
random crops (`augmentation`), L2 decay (`weight-decay`), dropout before the logits (Srivastava et al. 2014), BN (`batch-norm`;
Ioffe and Szegedy 2015), or these four `together`. All take as many steps. Early stopping (Prechelt 1998) has no runs of its
own: it is `few`, read where its validation loss turns (`jaxcnn.tables.turning_point`).

Expected, quick (5 seeds): no training error anywhere. With few images 14% of the validation images are wrong and their loss
turns at epoch 42 (0.56, then up to 0.73); with all 3.4% are, and the loss of 1 seed in 5 turns. On the test split, against few
images and paired by seed, all four together lower the error by 3.7 +- 3.7 points and the loss by 0.25 +- 0.18 nats. Decay
(0.20 +- 0.19) and early stopping (0.09 +- 0.09) lower the loss only just beyond chance, and no single remedy's change of the
error is told from none: -1.7 +- 2.9 (crops), -1.7 +- 1.9 (dropout), +1.7 +- 1.7 (early stopping).

It writes OUT/table.md, OUT/table.csv, OUT/curves.png, OUT/gap.png and a folder for every run. The same command goes on
where it was stopped, and does nothing but draw when everything is there.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jaxcnn as jc
from jaxcnn import cli, parallel, plots, runs, tables
from jaxcnn.recipe import check_choice

TITLES = {"all": "all images", "few": "few images", "augmentation": "augmentation", "weight-decay": "weight decay"}
TITLES |= {
    "dropout": "dropout",
    "batch-norm": "batch norm",
    "early-stopping": "early stopping",
    "together": "all four together",
}
TRAINED = tuple(name for name in TITLES if name != "early-stopping")
STRENGTHS = {"augmentation": "pad", "weight-decay": "decay", "dropout": "dropout"}
COLUMNS = [
    part.format(what) for what in ("loss", "error") for part in ("train_{}", "validation_{}", "{}_gap", "test_{}")
]


@dataclass(frozen=True)
class Options:
    """Every setting of the study; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    dataset: str = "digits"
    """digits, mnist, fashion_mnist, cifar10, cifar100 or svhn_cropped."""
    settings: tuple[str, ...] = TRAINED
    """Any of all, few, augmentation, weight-decay, dropout, batch-norm, together; early stopping comes with few."""
    examples: int = 100
    """Training images of every setting but `all`."""
    validation: int = 437
    """Training images held out: they draw the curves and choose early stopping's row."""
    width: int = 8
    """Filters of the first convolution."""
    hidden: int = 64
    """Units of the dense layer."""
    seeds: int = 5
    """Runs of every setting, from seeds 0, 1, ..."""
    steps: int = 1000
    batch: int = 32
    lr: float = 0.003
    optimizer: str = "adam"
    """A name in `jaxcnn.OPTIMIZERS`."""
    schedule: str = "constant"
    """A name in `jaxcnn.SCHEDULES`."""
    pad: int = 1
    """Of `augmentation`: pixels of padding before the random crop."""
    decay: float = 0.01
    """Of `weight-decay`: the L2 coefficient. Of 0.001, 0.003, 0.01 and 0.03 the best final validation loss in both presets."""
    dropout: float = 0.5
    """Of `dropout`: the share of the dense layer's outputs that is set to 0; not searched."""
    every: int | None = 20
    """Steps between rows, tests and checkpoints; None is an epoch, another number of steps for `all`."""
    strategy: Literal["auto", "pmap", "jit"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    data_dir: Path | None = None
    """Where to look for data first."""
    out: Path = Path("runs/overfitting")
    plot_only: bool = False
    """Draw tables and figures from the runs that OUT holds, and train nothing."""


# fmt: off
PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist", dataset="mnist", examples=500, validation=2000, seeds=3, lr=0.001, pad=2, every=50,
        out=Path("runs/overfitting-mnist"),
    ),
}
# fmt: on


def recipes(options: Options) -> dict[str, jc.Recipe]:
    """Run's name -> recipe, one seed of everything first, so that what exists is always a usable table."""
    if not options.settings:
        raise jc.ArgumentError("settings is empty; write --settings all few")
    if options.seeds < 1:
        raise jc.ArgumentError(f"seeds is {options.seeds}; expected at least 1: write --seeds 5")
    for name in options.settings:
        check_choice("setting", name, TRAINED)
        if name in STRENGTHS and not getattr(options, strength := STRENGTHS[name]):
            usual = getattr(PRESETS[options.preset], strength)
            raise jc.ArgumentError(f"{strength} is 0, so {name} would change nothing; write --{strength} {usual}")
    made, seeds = variants(options), range(options.seeds)
    return {f"{name}-seed{seed}": replace(made[name], seed=seed) for seed in seeds for name in options.settings}


def variants(options: Options) -> dict[str, jc.Recipe]:
    """Setting -> recipe: `few` and what is one change away from it, and all the remedies together."""
    shared = ("dataset", "validation", "examples", "steps", "batch", "lr", "optimizer", "schedule", "every")
    given: dict[str, Any] = {name: getattr(options, name) for name in shared}
    # Black is what digits stand on, and one mean for all pixels moves with them: a crop is a shift and nothing else.
    given |= {"drops": (), "decay": 0.0, "pad": 0, "flip": False, "mean": "channel", "std": True, "fill": "black"}
    net = {name: getattr(options, name) for name in ("width", "hidden", "dtype")}
    few = jc.Recipe(**given, model="convnet", options=net, report="validation", train_error="clean")
    dropout, norm = {"dropout": options.dropout}, {"batch_norm": True}
    return {
        "all": replace(few, examples=None),
        "few": few,
        "augmentation": replace(few, pad=options.pad),
        "weight-decay": replace(few, decay=options.decay),
        "dropout": replace(few, options=net | dropout),
        "batch-norm": replace(few, options=net | norm),
        "together": replace(few, pad=options.pad, decay=options.decay, options=net | dropout | norm),
    }


def setting(recipe: jc.Recipe) -> str:
    """Which of `TRAINED` a recipe is."""
    net = recipe.options
    used = {"augmentation": recipe.pad, "weight-decay": recipe.decay, "dropout": net.get("dropout")}
    on = [name for name, value in (used | {"batch-norm": net.get("batch_norm")}).items() if value]
    return "all" if recipe.examples is None else "together" if len(on) > 1 else on[0] if on else "few"


def heldout(strategy: parallel.Strategy) -> runs.Measure:
    """More columns of a row: the images trained on, and the figures of the test split, on which nothing is chosen."""

    def measure(model: Any, state: jc.State, data: jc.Dataset) -> Mapping[str, Any]:
        sums = jc.evaluate(model, state, data.test, strategy=strategy)
        images = {"images": len(data.train.labels), "heldout_images": int(sums.num_examples)}
        return images | {"heldout_loss": sums.mean_loss, "heldout_error": sums.error_percent}

    return measure


def read(run: runs.Run, stop: bool = False) -> runs.Run:
    """The run with its figures by their right names, of the last row or, to `stop` early, of the turning point."""
    turn = tables.turning_point(run.rows)
    rows = [row for row in run.rows if not (stop and turn) or row["step"] <= turn["step"]]
    last, result = rows[-1], dict(run.result)
    for what in ("loss", "error"):
        train, validation = last[f"train_{what}"], last[f"eval_{what}"]
        result |= {f"train_{what}": train, f"validation_{what}": validation}
        result |= {f"{what}_gap": validation - train, f"test_{what}": last[f"heldout_{what}"]}
    result |= {"seconds": math.fsum(row["seconds"] for row in rows), "turn_step": turn and turn["step"]}
    return run._replace(result=result, rows=rows)


def groups(all_runs: list[runs.Run]) -> dict[str, list[runs.Run]]:
    """Setting -> its runs, early stopping's among them, those that diverged left out."""
    found: dict[str, list[runs.Run]] = {name: [] for name in TITLES}
    for run in (run for run in all_runs if run.divergence is None):
        found[setting(run.recipe)].append(read(run))
        if setting(run.recipe) == "few":
            found["early-stopping"].append(read(run, stop=True))
    if not any(found.values()):
        raise jc.ArgumentError(f"{all_runs[0].divergence} So did every run; write another --out and a smaller --lr")
    return {name: group for name, group in found.items() if group}


def row(name: str, all_runs: list[runs.Run], few: list[runs.Run]) -> dict[str, Any]:
    """One row of the table; what changes against `few` is paired by seed."""
    line = {"setting": TITLES[name], "images": all_runs[0].result["images"]} | runs.aggregate_seeds(all_runs, COLUMNS)
    base = {run.recipe.seed: run.result for run in few}
    for key in ("test_loss", "test_error"):
        pairs = [run.result[key] - base[run.recipe.seed][key] for run in all_runs if run.recipe.seed in base]
        line |= dict(
            zip((f"{key}_change{part}" for part in ("", "_std", "_ci95")), tables.seed_statistics(pairs), strict=True)
        )
    turns = [float(run.result["turn_step"]) for run in all_runs if run.result["turn_step"]]
    turn = tables.seed_statistics(turns).mean
    epoch = turn and turn * all_runs[0].recipe.batch / line["images"]
    return line | {"turned": len(turns), "turn_step": turn, "turn_epoch": epoch}


def protocol(run: runs.Run) -> str:
    """The note below the table."""
    recipe, net = run.recipe, run.recipe.options
    return (
        f"{recipe.dataset}, convnet of width {net['width']} with {net['hidden']} hidden units, {recipe.steps} steps of "
        f"{recipe.batch} images by {recipe.optimizer} at rate {recipe.lr:g} ({recipe.schedule}), {recipe.validation} images "
        f"for validation and {run.result['heldout_images']} for the test. Losses in nats, errors in percent, at the last step, "
        "with the half width of the mean's 95% interval over seeds; training figures are one clean pass, without crops and "
        "dropout; a gap is validation minus training; a change is against few images and paired by seed; seconds a run. "
        "Validation turns (in `turned` of the seeds) where its mean loss over 3 rows is lowest, if that ends 5% higher. Early "
        "stopping is few images, read there or at the last step. Validation chose that row and the strength of the decay; "
        "crops and dropout were not searched, and the test split chose nothing."
    )


def panel(name: str, all_runs: list[runs.Run], few: list[runs.Run]) -> plots.Panel:
    """The learning curves of a setting, before the validation curve of `few` in grey; marked where most of its seeds turn."""
    line, early = row(name, all_runs, few), name == "early-stopping"
    rows = [run.rows for run in (few if early else all_runs)]
    if early and line["turned"]:  # on average: a mean of the seeds not stopped yet would jump
        rows = [[row for row in seed if row["step"] <= line["turn_step"]] for seed in rows]
    lines = [
        plots.band(rows, "step", "eval_loss", label="validation"),
        plots.band(rows, "step", "train_loss", label="training", dashed=True),
    ]
    if few and name != "few":
        grey = plots.band([run.rows for run in few], "step", "eval_loss", label="validation, few images", color="0.65")
        lines.insert(0, grey._replace(low=None, high=None, width=1.3))
    text = f"{'stops' if early else 'turns'} at epoch {line['turn_epoch'] or 0:.0f}"
    marks = [plots.Mark(line["turn_step"], "x", text)] if 2 * line["turned"] > line["seeds"] else []
    title = TITLES[name] + (f": {line['images']}" if name in ("all", "few") else "")
    return plots.Panel(title, lines, marks, xlabel="step", ylabel="loss (nats)")


def figures(found: Mapping[str, list[runs.Run]], table: list[dict[str, Any]], out: Path) -> None:
    """`curves.png` and `gap.png`."""
    recipe, seeds = next(iter(found.values()))[0].recipe, max(line["seeds"] for line in table)
    what = f"{recipe.dataset}, {recipe.steps} steps of {recipe.batch} images; "
    what += f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    top = 2 * max(line["validation_loss"] for line in table)  # the first descent would press the rest flat
    panels = [panel(name, all_runs, found.get("few", []))._replace(ylim=(0, top)) for name, all_runs in found.items()]
    plots.save(
        plots.panels(panels, title=what + " and their range" * (seeds > 1), size=(3.25, 3.1)), out / "curves.png"
    )
    shown = {"training": "train_error", "validation": "validation_error", "test": "test_error"}
    heights, halves = (
        {line["setting"]: {label: line[key + part] for label, key in shown.items()} for line in table}
        for part in ("", "_ci95")
    )
    title = what + " and its 95% interval" * (seeds > 1)
    plots.save(plots.bars(heights, ylabel="error (%)", errors=halves, title=title, fmt=".1f"), out / "gap.png")


def draw(out: Path) -> None:
    """`table.md`, `table.csv`, `curves.png` and `gap.png` from the runs under `out` that are over."""
    all_runs = runs.finished_runs(out)
    found = groups(all_runs)
    table = [row(name, group, found.get("few", [])) for name, group in found.items()]
    notes = [protocol(next(iter(found.values()))[0]), *filter(None, (run.divergence for run in all_runs))]
    tables.write_table(out, table, notes)
    figures(found, table, out)
    print(f"{tables.markdown(table)}\nwrote {out}/table.md, table.csv, curves.png and gap.png")


def main(args: list[str] | None = None) -> int:
    """Train what is missing, then draw; returns the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(PRESETS, args, about=__doc__)
        if not options.plot_only:
            all_runs = recipes(options)
            cli.enable_compilation_cache()
            data = jc.load_dataset(options.dataset, options.data_dir, validation=options.validation)
            strategy = jc.strategy(options.strategy)
            more: dict[str, Any] = {"strategy": strategy, "stop": stop, "measure": heldout(strategy), "brief": True}
            if runs.sweep(all_runs, data, options.out, **more) is None:
                print("stopped and saved; the same command goes on from here", file=sys.stderr)
                return stop.exit_code
        with cli.reading(options.out):
            draw(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
