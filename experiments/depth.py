"""Does depth hurt a plain network and help a residual one? He et al. 2015 (arXiv:1512.03385), section 4.2, figure 6.

    python -m experiments.depth                   digits, no download
    python -m experiments.depth --preset paper    CIFAR-10, the paper's protocol

It writes OUT/table.md, OUT/table.csv, OUT/curves.png and a folder for every run. The same command goes on where it was
stopped, and does nothing but draw when everything is there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import jaxcnn as jc
from jaxcnn import command, plots, report, study
from jaxcnn.log import read_rows

# fmt: off
PAPER = {
    ("plain", 20): 9.7, ("plain", 32): 10.1, ("plain", 44): 11.4, ("plain", 56): 13.2,  # figure 6, digitised
    ("residual", 20): 8.75, ("residual", 32): 7.51, ("residual", 44): 7.17, ("residual", 56): 6.97,  # table 6
    ("residual", 110): 6.61,  # table 6: the mean of five runs; 6.43 is the best
}
# fmt: on
"""Test errors on CIFAR-10, percent."""


@dataclass(frozen=True)
class Options:
    """Every setting of the study; `--preset` chooses the defaults."""

    preset: Literal["quick", "paper"] = "quick"
    """quick: digits on any machine. paper: CIFAR-10 exactly as published."""
    dataset: str = "digits"
    """digits, mnist, fashion_mnist, cifar10, cifar100 or svhn_cropped."""
    depths: tuple[int, ...] = (20, 56)
    """Each 6 n + 2."""
    families: tuple[Literal["plain", "residual"], ...] = ("plain", "residual")
    seeds: int = 2
    """Runs of every network, from seeds 0, 1, ..."""
    steps: int = 250
    batch: int = 128
    width: int = 8
    """Filters of the first stage."""
    shortcut: Literal["A", "B"] = "A"
    bn_group: int = 0
    """Examples that BN averages over; 0 is the batch, 64 the paper's two GPUs."""
    kernel_init: str = "he"
    lr: float = 0.1
    drops: tuple[int, ...] = (125, 190)
    """Steps at which the rate falls tenfold."""
    warmup_depth: int = 110
    """From this depth on residual networks start at --warmup-lr; 0 is never."""
    warmup_lr: float = 0.01
    """Until the training error is below 80%."""
    optimizer: str = "momentum"
    """momentum, caffe, nesterov or sgd."""
    momentum: float = 0.9
    decay: float = 1e-4
    decay_on: Literal["convs", "kernels", "all"] = "kernels"
    mean: Literal["pixel", "channel", "none"] = "pixel"
    std: bool = False
    pad: int = 1
    """Pixels of padding before the random crop; 0 is no crop."""
    fill: Literal["mean", "black", "reflect"] = "mean"
    flip: bool = False
    validation: int = 0
    """Training images held out (the paper's split: 5000)."""
    report: Literal["test", "validation"] = "test"
    precise_bn: int = 0
    """Training images for exact BN statistics, tested beside the moving ones; 0 is off."""
    train_error: Literal["running", "clean"] = "running"
    every: int | None = 25
    """Steps between rows, tests and checkpoints; None is an epoch."""
    driver: Literal["auto", "pmap", "jit"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    data_dir: Path | None = None
    """Where to look for data first."""
    out: Path = Path("runs/depth")
    plot_only: bool = False
    """Draw table and figure from the runs that OUT holds, and train nothing."""


PRESETS = {
    "quick": Options(),
    "paper": Options(
        preset="paper",
        dataset="cifar10",
        depths=(20, 32, 44, 56),
        seeds=5,
        steps=64_000,
        width=16,
        drops=(32_000, 48_000),
        pad=4,
        flip=True,
        bn_group=64,
        every=None,
        out=Path("runs/depth-paper"),
    ),  # fmt: skip
}


def recipes(options: Options) -> dict[str, jc.Recipe]:
    """Run's name -> recipe, one seed of everything first, so that what exists is always a usable table."""
    for name in ("depths", "families"):
        if not getattr(options, name):
            raise jc.RecipeError(f"{name} is empty; write --{name} {'20 56' if name == 'depths' else 'plain residual'}")
    if options.seeds < 1:
        raise jc.RecipeError(f"seeds is {options.seeds}; expected at least 1: write --seeds 2")
    given = {f.name: getattr(options, f.name) for f in fields(jc.Recipe) if hasattr(options, f.name)} | {
        "warmup_lr": None
    }
    runs = {}
    for seed in range(options.seeds):
        for depth in options.depths:
            for family in options.families:
                name = f"{'plain' if family == 'plain' else 'resnet'}{depth}"
                recipe = jc.Recipe(**given, model=f"cifar-{name}", options=_net(options, family), seed=seed)
                if family == "residual" and 0 < options.warmup_depth <= depth:
                    recipe = replace(recipe, warmup_lr=options.warmup_lr)
                runs[f"{name}-seed{seed}"] = recipe
    return runs


def _net(options: Options, family: str) -> dict[str, Any]:
    net = {name: getattr(options, name) for name in ("width", "bn_group", "kernel_init", "dtype")}
    return net | ({"shortcut": options.shortcut} if family == "residual" else {})


@dataclass(frozen=True)
class Run:
    """A run that is over, as its folder tells it."""

    recipe: jc.Recipe
    result: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def network(self) -> tuple[str, int]:
        """Its family and depth."""
        family = "plain" if "plain" in self.recipe.model else "residual"
        return family, int(self.recipe.model.removeprefix("cifar-").removeprefix("plain").removeprefix("resnet"))


def collect(out: Path) -> dict[tuple[str, int], list[Run]]:
    """(family, depth) -> the runs under `out` that are over, in the order of the paper's table."""
    networks: dict[tuple[str, int], list[Run]] = {}
    for path in sorted(out.glob("*/result.json")):
        run = Run(jc.Recipe.load(path.parent), json.loads(path.read_text()), read_rows(path.parent))
        networks.setdefault(run.network, []).append(run)
    if not networks:
        raise jc.RecipeError(f"{out} holds no run that is over; write --out of a study, or leave out --plot-only")
    return dict(sorted(networks.items()))


def row(family: str, depth: int, runs: list[Run]) -> dict[str, Any]:
    """One row of the table: mean, standard deviation and 95% interval over the seeds that did not diverge."""
    good = [run.result for run in runs if run.result["status"] == "finished"]
    line: dict[str, Any] = {"family": family, "depth": depth, "params": runs[0].result["params"], "seeds": len(good)}
    for key in ("train_error", "test_error"):
        mean, std, ci95 = report.summarise([result[key] for result in good])
        line |= {key: mean, f"{key}_std": std, f"{key}_ci95": ci95}
    seconds = report.summarise([result["seconds"] for result in good]).mean
    published = PAPER.get((family, depth)) if runs[0].recipe.dataset == "cifar10" else None
    return line | {"seconds": seconds, "paper_test_error": published}


def draw(out: Path) -> None:
    """`table.md`, `table.csv` and `curves.png` from the runs under `out`."""
    networks = collect(out)
    recipe = next(iter(networks.values()))[0].recipe
    training = "test-mode pass" if recipe.train_error == "clean" else "running, augmented batches"
    notes = [
        f"{recipe.dataset}, {recipe.steps} steps of {recipe.batch}, width {recipe.options['width']}; errors in percent at the "
        f"last step (training error: {training}); std over seeds, ci95 the half width of the mean's 95% interval; "
        "seconds a run.",
        *(
            f"{run.recipe.model} seed {run.recipe.seed} diverged at step {run.result['step']}: {run.result['why']}."
            for runs in networks.values()
            for run in runs
            if run.result["status"] == "diverged"
        ),
    ]
    table = [row(*network, runs) for network, runs in networks.items()]
    report.write_table(out, table, notes)
    panels: dict[str, dict[str, list[Any]]] = {}
    for (family, depth), runs in networks.items():
        panels.setdefault(family, {})[f"{depth} layers"] = [run.rows for run in runs]
    figure = plots.curves(panels, dashed="train_error", solid="test_error", title=notes[0].split(";")[0])
    plots.save(figure, out / "curves.png")
    print(report.markdown([{k: v for k, v in line.items() if not k.endswith("_std")} for line in table]))
    print(f"wrote {out}/table.md, table.csv and curves.png")


def main(args: list[str] | None = None) -> int:
    """Train what is missing, then draw; returns the exit code."""
    with command.friendly(), command.Stop() as stop:
        options = command.parse(PRESETS, args, about=__doc__)
        if not options.plot_only:
            runs = recipes(options)
            command.cache_programs()
            data = jc.load(options.dataset, options.data_dir, validation=options.validation)
            driver = jc.driver(options.driver)
            if study.sweep(runs, data, options.out, driver=driver, stop=stop) is None:
                print("stopped and saved; the same command goes on from here", file=sys.stderr)
                return stop.exit_code
        draw(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
