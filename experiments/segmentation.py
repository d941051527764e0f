"""Semantic segmentation by a U-Net, with and without skip connections.

    python -m experiments.segmentation                  digits, no download: 3 minutes on two busy
                                                        CPU cores
    python -m experiments.segmentation --preset mnist   MNIST's digits: not yet measured

A scene is a digit cut out of one photograph on a background cut out of another, mirrored and at any
size. Its mask is exact to the pixel. The U-Net (Ronneberger et al. 2015, arXiv:1505.04597)
classifies every pixel: background or digit (`--name ink`), or background or one of ten digits
(`--name digits`). Without skip connections, all information on place must pass through the lowest
level, which has an eighth of the scene's side. Training scenes have training digits and patches of
the upper halves of the photographs. Test scenes have test digits and patches of the lower halves.

Expected, quick (3 seeds): a mean intersection over union of 84.4 +- 4.6% with skip connections and
78.0 +- 2.2% without. Paired by seed they are worth 6.5 +- 2.7 points.

It writes OUT/table.md, OUT/table.csv, OUT/curves.csv, OUT/curves.png, OUT/images.png and a folder
for every run.
The same command resumes a study that was stopped.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import jaxcnn as jc
from experiments._common import (
    READ_TIMEOUT,
    DeviceOptions,
    DtypeName,
    FigureOptions,
    SeedOptions,
    run_all,
    run_study,
)
from experiments.scenes import load_objects, patch, photographs, resized_shape
from jaxcnn import cli, metrics, plots, runs, tables
from jaxcnn.data import channel_statistics
from jaxcnn.state import State, init_state

SIDE = 32
"""Height and width of a scene, pixels."""
TITLES = {True: "with skip connections", False: "without"}
"""Model's option `skips` -> its name in table and figures."""
# fmt: off
COLORS = np.array([
    [0, 0, 0], [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178],
    [213, 94, 0], [204, 121, 167], [255, 255, 255], [150, 150, 150], [120, 60, 20],
], np.uint8)
# fmt: on
"""Colors of background and digits, uint8 [11, 3].

The first eight are Okabe and Ito's, which color-blind people can tell apart; three more are added.
"""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting of the experiment; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    """quick: scenes of digits. mnist: scenes of MNIST."""
    dataset: str = "digits"
    """Source of the scenes' foregrounds: digits, mnist or fashion_mnist."""
    name: Literal["ink", "digits"] = "ink"
    """Classes of pixels: background and digit (ink), or background and ten digits."""
    scenes: int = 3_000
    """Training scenes; a fifth as many are test scenes."""
    num_seeds: int = 3
    width: int = 8
    depth: int = 3
    """Times that the U-Net halves the image."""
    num_steps: int = 300
    batch_size: int = 32
    learning_rate: float = 3e-3
    """Learning rate of Adam, which falls to 0 as a cosine."""
    dtype: DtypeName = "float32"
    data_dir: Path | None = None
    out: Path = Path("runs/segmentation")
    tensorboard: bool = False
    plot_only: bool = False


PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist",
        dataset="mnist",
        name="digits",
        scenes=10_000,
        width=12,
        num_steps=2_000,
        out=Path("runs/segmentation-mnist"),
    ),
}


def scene(
    digit: np.ndarray, label: int, textures: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a scene and its mask.

    Args:
      digit: uint8 [h, w], bright on dark.
      label: class of the digit.
      textures: uint8 [2, h, w, 3], from which the background's and the digit's patches are cut.
      rng: draws size (5/8 to the whole of the scene), place and patches.

    Returns:
      Scene uint8 [SIDE, SIDE, 3], and mask int32 [SIDE, SIDE]. In the mask 0 is background, and a
      digit d is d + 1.
    """
    size = int(rng.integers(SIDE * 5 // 8, SIDE + 1))
    shape = resized_shape(digit, size)
    mask = np.zeros((SIDE, SIDE), bool)
    y, x = rng.integers(0, SIDE - size + 1, 2)
    mask[y : y + size, x : x + size] = shape
    background, ink = (patch(texture, rng, SIDE) for texture in textures)
    return np.where(mask[..., None], ink, background), mask * np.int32(label + 1)


def compose(digits: jc.Split, n: int, textures: np.ndarray, seed: int) -> jc.Split:
    """Return `n` scenes of digits in a random order.

    Digits are repeated where there are fewer than `n`.

    Returns:
      Images uint8 [n, SIDE, SIDE, 3], and masks int32 [n, SIDE, SIDE] as labels.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.arange(n) % len(digits.labels))
    pairs = [scene(digits.images[i, ..., 0], int(digits.labels[i]), textures, rng) for i in order]
    images, masks = zip(*pairs, strict=True)
    return jc.Split(np.stack(images), np.stack(masks))


def compose_all(options: Options) -> jc.Dataset:
    """Return the data set of scenes, the same for the same options."""
    digits = load_objects(options.dataset, options.data_dir)
    upper, lower = photographs()
    train = compose(digits.train, options.scenes, upper, 0)
    test = compose(digits.test, options.scenes // 5, lower, 1)
    classes = ("background", *digits.classes)
    if options.name == "ink":
        splits = (train, test)
        train, test = (jc.Split(split.images, np.minimum(split.labels, 1)) for split in splits)
        classes = ("background", "digit")
    empty = jc.Split(train.images[:0], train.labels[:0])
    statistics = channel_statistics(train.images)
    return jc.Dataset(dataset_name(options), train, empty, test, classes, *statistics)


def dataset_name(options: Options) -> str:
    """Return the name of the data set of scenes, also in configs."""
    return f"{options.dataset}-scenes-{options.name}"


def configs(options: Options) -> dict[str, jc.ExperimentConfig]:
    """Return the study's runs: name -> config."""
    return {
        f"{'skips' if skips else 'none'}-seed{seed}": jc.ExperimentConfig(
            dataset=dataset_name(options),
            model="unet",
            model_kwargs={
                "width": options.width,
                "depth": options.depth,
                "batch_norm": True,
                "skips": skips,
                "dtype": options.dtype,
            },
            optimizer=jc.OptimizerConfig(
                "adam", learning_rate=options.learning_rate, schedule="cosine"
            ),
            train=jc.TrainConfig(
                num_steps=options.num_steps,
                batch_size=options.batch_size,
                eval_every=-(-options.num_steps // 5),
                subtract_mean="channel",
                divide_std=True,
                seed=seed,
            ),
        )
        for seed in options.run_seeds()
        for skips in TITLES
    }


def measure(model: Any, state: State, data: jc.Dataset) -> Mapping[str, float]:
    """Return the intersection over union on the test scenes, in percent.

    They are more columns of a row: the mean over classes, and that of the background.
    """
    predictions = jc.predict(model, state, data.test.images, batch_size=100).argmax(-1)
    confusion = metrics.confusion(data.test.labels, predictions, data.num_classes)
    ious = metrics.iou(confusion)
    return {"mean_iou": 100 * float(np.nanmean(ious)), "background_iou": 100 * float(ious[0])}


def paired_change(forms: Mapping[bool, list[runs.Run]]) -> str:
    """Return one sentence on the effect of skip connections, paired by seed.

    It is empty where there are not two seeds of both.
    """
    with_skips, without = (
        {run.config.train.seed: run.result["mean_iou"] for run in forms.get(key, [])}
        for key in TITLES
    )
    change = tables.seed_statistics(
        [with_skips[seed] - without[seed] for seed in with_skips.keys() & without.keys()]
    )
    if change.ci95 is None:
        return ""
    return (
        " Paired by seed, skip connections change the mean over classes by "
        f"{change.mean:+.1f} +- {change.ci95:.1f} points."
    )


def write_predictions(options: Options, data: jc.Dataset, n: int = 6) -> None:
    """Write OUT/images: test scenes, their masks, and both networks' predictions."""
    columns = [("scene", data.test.images[:n]), ("true mask", COLORS[data.test.labels[:n]])]
    # The first seed of both networks.
    for name, config in list(configs(options).items())[:2]:
        model, tx = runs.model_and_optimizer(config, data.num_classes)
        folder = options.out / name / "checkpoints"
        with jc.Checkpoints(folder, timeout=READ_TIMEOUT) as checkpoints:
            state = checkpoints.restore(init_state(model, tx, config.train, data))
        if state is None:
            return
        predictions = jc.predict(model, state, data.test.images[:n]).argmax(-1)
        columns.append((f"U-Net {TITLES[config.model_kwargs['skips']]}", COLORS[predictions]))
    strips = [plots.Strip(list(images), label) for label, images in columns]
    meaning = (
        "Orange pixels are digit, black ones background."
        if options.name == "ink"
        else "Every class of digits has a color; black is background."
    )
    title = "Test scenes, true masks and predicted masks"
    figure = plots.mosaic(strips, title=title, note=meaning, side=1.1)
    options.save(figure, options.out / "images")


def train(options: Options, stop: cli.GracefulShutdown) -> bool:
    """Train the missing runs and draw predictions; return False if some are not finished."""
    all_runs = configs(options)
    cli.enable_compilation_cache()
    data = compose_all(options)
    sweep_kwargs: dict[str, Any] = {
        "strategy": options.make_strategy(),
        "tensorboard": options.tensorboard,
        "should_stop": stop,
        "measure": measure,
    }
    if not run_all(all_runs, data, options.out, **sweep_kwargs):
        return False
    write_predictions(options, data)
    return True


def draw(options: Options) -> None:
    """Write the table and the curves of the finished runs in `options.out`."""

    def skips(run: runs.Run) -> bool:
        return run.config.model_kwargs["skips"]

    out = options.out
    all_runs = sorted(runs.finished_runs(out), key=skips, reverse=True)
    forms = {key: list(group) for key, group in itertools.groupby(all_runs, key=skips)}
    keys = ("mean_iou", "background_iou", "eval_error")
    table = [
        {"U-Net": TITLES[key], "params": group[0].result["params"]}
        | runs.aggregate_seeds(group, keys)
        for key, group in forms.items()
    ]
    config = all_runs[0].config
    protocol = (
        f"{config.dataset}, {config.train.num_steps} steps of {config.train.batch_size} scenes "
        f"of {SIDE}x{SIDE}. Intersection over union, "
        "mean over classes, and errors of pixels, in percent of the test scenes at the last step."
    )
    protocol += paired_change(forms)
    divergences = filter(None, (run.divergence for run in all_runs))
    tables.write_table(out, table, [protocol, *divergences])
    lines = [
        plots.band([run.rows for run in group], "step", "mean_iou", label=TITLES[key])
        for key, group in forms.items()
    ]
    title = "U-Net on test scenes: mean and range of seeds"
    panel = plots.Panel("", lines, xlabel="step", ylabel="mean IoU (%)")
    tables.write_curves(out, {run.name: run.rows for run in all_runs})
    options.save(plots.panels([panel], title=title, size=(6.0, 3.9)), out / "curves")
    written = f"{out}/table.md, table.csv, curves.csv and curves.{options.format}"
    print(f"{tables.compact_markdown(table)}\nwrote {written}")


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw; return the exit code."""
    return run_study(PRESETS, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
