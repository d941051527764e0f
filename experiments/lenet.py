"""LeNet-5 on MNIST: at least 99% right, in the form of 1998 and in today's (LeCun et al. 1998, table 4: 0.95% wrong).

    python -m experiments.lenet

Expected, 20 epochs: 0.87 +- 0.20% (1998) and 0.56 +- 0.20% (ReLU, max pooling) of the test images wrong, mean of 3 seeds
and its 95% interval; 4 minutes a run on one CPU core. It writes OUT/table.md,
OUT/table.csv, OUT/curves.png and a folder for every run, and goes on where it was stopped.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jaxcnn as jc
from jaxcnn import command, plots, report, study

FORMS = {"lenet5": "1998: tanh, average pooling", "lenet5-relu": "today: ReLU, max pooling"}


@dataclass(frozen=True)
class Options:
    """Every setting of the experiment."""

    preset: Literal["mnist"] = "mnist"
    dataset: str = "mnist"
    """mnist, fashion_mnist, or any set of 28x28 or 32x32 images."""
    models: tuple[Literal["lenet5", "lenet5-relu"], ...] = ("lenet5", "lenet5-relu")
    seeds: int = 3
    steps: int = 9_380
    """20 epochs of MNIST at batch 128, as in the paper."""
    batch: int = 128
    lr: float = 0.05
    drops: tuple[int, ...] = (5_600, 7_600)
    """Steps at which the rate falls tenfold."""
    decay: float = 1e-4
    pad: int = 1
    """Pixels of padding before the random crop; 0 is no crop."""
    every: int | None = None
    """Steps between rows, tests and checkpoints; None is an epoch."""
    driver: Literal["auto", "pmap", "jit"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    data_dir: Path | None = None
    """Where to look for data first."""
    out: Path = Path("runs/lenet")
    plot_only: bool = False


def recipes(options: Options) -> dict[str, jc.Recipe]:
    """Run's name -> recipe."""
    return {
        f"{model}-seed{seed}": jc.Recipe(
            dataset=options.dataset,
            model=model,
            options={"dtype": options.dtype},
            steps=options.steps,
            batch=options.batch,
            lr=options.lr,
            drops=options.drops,
            decay=options.decay,
            pad=options.pad,
            flip=False,
            every=options.every,
            seed=seed,
        )
        for seed in range(options.seeds)
        for model in options.models
    }


def draw(out: Path) -> None:
    """`table.md`, `table.csv` and `curves.png` from the runs under `out` that are over."""
    runs = sorted(study.finished(out), key=lambda run: run.recipe.model)
    forms = {model: list(group) for model, group in itertools.groupby(runs, key=lambda run: run.recipe.model)}
    table = [{"model": m, "params": g[0].result["params"]} | study.over_seeds(g) for m, g in forms.items()]
    recipe = runs[0].recipe
    what = f"{recipe.dataset}, {recipe.steps} steps of {recipe.batch} images"
    notes = [f"{what}. Errors in percent at the last step (training error: running mean over augmented batches)."]
    report.write_table(out, table, notes + [run.divergence for run in runs if run.divergence])
    panels = {FORMS[model]: {"LeNet-5": [run.rows for run in group]} for model, group in forms.items()}
    plots.save(plots.curves(panels, dashed="train_error", solid="test_error", title=what), out / "curves.png")
    print(report.markdown(table))
    print(f"wrote {out}/table.md, table.csv and curves.png")


def main(args: list[str] | None = None) -> int:
    """Train what is missing, then draw; returns the exit code."""
    with command.friendly(), command.Stop() as stop:
        options = command.parse({"mnist": Options()}, args, about=__doc__)
        if not options.plot_only:
            runs = recipes(options)
            command.cache_programs()
            data = jc.load(options.dataset, options.data_dir)
            if study.sweep(runs, data, options.out, driver=jc.driver(options.driver), stop=stop) is None:
                print("stopped and saved; the same command goes on from here", file=sys.stderr)
                return stop.exit_code
        draw(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
