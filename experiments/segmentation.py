"""Which pixel belongs to the digit, and to which? A U-Net on scenes whose masks are exact, with and without skip connections.

    python -m experiments.segmentation                  digits, no download: 3 minutes on two busy CPU cores
    python -m experiments.segmentation --preset mnist   MNIST's digits: not yet measured

A scene is a digit cut out of one photograph on a background cut out of another, mirrored and at any size, and its mask is known
to the pixel. The U-Net (Ronneberger et al. 2015, arXiv:1505.04597) names the class of every pixel: background or digit
(`--name ink`), or which of ten digits (`--name digits`). Without skip connections all that it knows of place must pass through
its lowest level, which has an eighth of the scene's side. Scenes to train on have training digits and patches of the upper
halves of the photographs, scenes to test on test digits and patches of the lower halves.

Expected, quick (3 seeds): a mean intersection over union of 84.4 +- 4.6% with skip connections and 78.0 +- 2.2% without; paired
by seed they are worth 6.5 +- 2.7 points.

It writes OUT/table.md, OUT/table.csv, OUT/curves.png, OUT/pictures.png and a folder for every run, and goes on where it was
stopped.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

import jaxcnn as jc
from jaxcnn import cli, metrics, plots, runs, tables
from jaxcnn.data import channel_statistics
from jaxcnn.state import State, init_state

SIDE = 32
TITLES = {True: "with skip connections", False: "without"}
# fmt: off
COLOURS = np.array([
    [0, 0, 0], [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167],
    [255, 255, 255], [150, 150, 150], [120, 60, 20],
], np.uint8)
# fmt: on
"""Of background and digits: Okabe and Ito's, which the colour-blind tell apart, and three more."""


@dataclass(frozen=True)
class Options:
    """Every setting of the experiment; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    dataset: str = "digits"
    """digits, mnist or fashion_mnist: whose images stand in the scenes."""
    name: Literal["ink", "digits"] = "ink"
    """What the network says of a pixel: whether it is the digit's, or which digit's."""
    scenes: int = 3_000
    """To train on; a fifth as many to test."""
    seeds: int = 3
    width: int = 8
    depth: int = 3
    steps: int = 300
    batch: int = 32
    lr: float = 3e-3
    """Of Adam, with a cosine schedule to 0."""
    strategy: Literal["auto", "pmap", "jit"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    data_dir: Path | None = None
    """Where to look for data first."""
    out: Path = Path("runs/segmentation")
    plot_only: bool = False


PRESETS = {
    "quick": Options(),
    "mnist": Options(
        "mnist",
        dataset="mnist",
        name="digits",
        scenes=10_000,
        width=12,
        steps=2_000,
        out=Path("runs/segmentation-mnist"),
    ),
}


def photographs() -> tuple[np.ndarray, np.ndarray]:
    """Textures to train and to test on: the upper and the lower halves of two photographs, uint8 [2, h, w, 3]."""
    from sklearn.datasets import load_sample_images

    upper, lower = zip(
        *(np.array_split(np.asarray(image)[:426], 2) for image in load_sample_images().images), strict=True
    )
    return np.stack(upper), np.stack(lower)


def scene(
    digit: np.ndarray, label: int, textures: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One scene, uint8 [SIDE, SIDE, 3], and its mask, int32 [SIDE, SIDE]: 0 is background, a digit d is d + 1.

    Args:
      digit: uint8 [h, w], bright on dark.
      label: of the digit.
      textures: uint8 [2, h, w, 3], from which the background's and the digit's patches are cut.
      rng: draws size (5/8 to the whole of the scene), place and patches.
    """
    size = int(rng.integers(SIDE * 5 // 8, SIDE + 1))
    shape = np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)) > 127
    mask = np.zeros((SIDE, SIDE), bool)
    y, x = rng.integers(0, SIDE - size + 1, 2)
    mask[y : y + size, x : x + size] = shape
    ground, ink = (patch(texture, rng) for texture in textures)
    return np.where(mask[..., None], ink, ground), mask * np.int32(label + 1)


def patch(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square of the texture of up to four times the scene's side, mirrored or not, at the scene's size."""
    side = int(rng.integers(SIDE, 4 * SIDE + 1))
    y, x = (int(rng.integers(0, length - side + 1)) for length in texture.shape[:2])
    cut = Image.fromarray(np.ascontiguousarray(texture[y : y + side, x : x + side][:, :: int(rng.choice([-1, 1]))]))
    return np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def compose(digits: jc.Split, n: int, textures: np.ndarray, seed: int) -> jc.Split:
    """`n` scenes, of digits in a random order, again and again: uint8 [n, SIDE, SIDE, 3], int32 [n, SIDE, SIDE]."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.arange(n) % len(digits.labels))
    made = [scene(digits.images[i, ..., 0], int(digits.labels[i]), textures, rng) for i in order]
    images, masks = zip(*made, strict=True)
    return jc.Split(np.stack(images), np.stack(masks))


def compose_all(options: Options) -> jc.Dataset:
    """The data set of scenes: the same for the same options."""
    digits = jc.load_dataset(options.dataset, options.data_dir)
    upper, lower = photographs()
    train, test = compose(digits.train, options.scenes, upper, 0), compose(digits.test, options.scenes // 5, lower, 1)
    classes = ("background", *digits.classes)
    if options.name == "ink":
        train, test = (jc.Split(split.images, np.minimum(split.labels, 1)) for split in (train, test))
        classes = ("background", "digit")
    empty = jc.Split(train.images[:0], train.labels[:0])
    return jc.Dataset(scenes(options), train, empty, test, classes, *channel_statistics(train.images))


def scenes(options: Options) -> str:
    """The name of the data set, in recipes too."""
    return f"{options.dataset}-scenes-{options.name}"


def recipes(options: Options) -> dict[str, jc.Recipe]:
    """Run's name -> recipe."""
    return {
        f"{'skips' if skips else 'none'}-seed{seed}": jc.Recipe(
            dataset=scenes(options),
            model="unet",
            options={
                "width": options.width,
                "depth": options.depth,
                "batch_norm": True,
                "skips": skips,
                "dtype": options.dtype,
            },
            steps=options.steps,
            batch=options.batch,
            optimizer="adam",
            lr=options.lr,
            schedule="cosine",
            mean="channel",
            std=True,
            pad=0,
            flip=False,
            every=-(-options.steps // 5),
            seed=seed,
        )
        for seed in range(options.seeds)
        for skips in TITLES
    }


def measure(model: Any, state: State, data: jc.Dataset) -> Mapping[str, float]:
    """More columns of a row: the mean over classes of intersection over union, in percent, and that of the background alone."""
    predicted = jc.predict(model, state, data.test.images, batch=100).argmax(-1)
    shares = metrics.iou(metrics.confusion(data.test.labels, predicted, len(data.classes)))
    return {"mean_iou": 100 * float(np.nanmean(shares)), "background_iou": 100 * float(shares[0])}


def draw(out: Path) -> None:
    """The table and the curves, from the runs under `out` that are over."""

    def skips(run: runs.Run) -> bool:
        return run.recipe.options["skips"]

    all_runs = sorted(runs.finished_runs(out), key=skips, reverse=True)
    forms = {key: list(group) for key, group in itertools.groupby(all_runs, key=skips)}
    keys = ("mean_iou", "background_iou", "eval_error")
    table = [
        {"U-Net": TITLES[key], "params": group[0].result["params"]} | runs.aggregate_seeds(group, keys)
        for key, group in forms.items()
    ]
    recipe = all_runs[0].recipe
    protocol = (
        f"{recipe.dataset}, {recipe.steps} steps of {recipe.batch} scenes of {SIDE}x{SIDE}. Intersection over union, "
    )
    protocol += "mean over classes, and errors of pixels, in percent of the test scenes at the last step."
    protocol += paired(forms)
    tables.write_table(out, table, [protocol, *filter(None, (run.divergence for run in all_runs))])
    lines = [
        plots.band([run.rows for run in group], "step", "mean_iou", label=TITLES[key]) for key, group in forms.items()
    ]
    figure = plots.panels([plots.Panel(recipe.dataset, lines, xlabel="step", ylabel="mean IoU, test scenes (%)")])
    plots.save(figure, out / "curves.png")
    print(f"{tables.markdown(table)}\nwrote {out}/table.md, table.csv and curves.png")


def paired(forms: Mapping[bool, list[runs.Run]]) -> str:
    """What the skip connections change, seed by seed, in one sentence; nothing where there are not two seeds of both."""
    with_them, without = ({run.recipe.seed: run.result["mean_iou"] for run in forms.get(key, [])} for key in TITLES)
    change = tables.seed_statistics([with_them[seed] - without[seed] for seed in with_them.keys() & without.keys()])
    if change.ci95 is None:
        return ""
    return f" Paired by seed, skip connections change the mean over classes by {change.mean:+.1f} +- {change.ci95:.1f} points."


def picture(options: Options, data: jc.Dataset, n: int = 6) -> None:
    """OUT/pictures.png: test scenes, their masks, and what both networks make of them."""
    columns = [("scene", data.test.images[:n]), ("its mask", COLOURS[data.test.labels[:n]])]
    for name, recipe in list(recipes(options).items())[:2]:
        model, tx = runs.model_and_optimizer(recipe, len(data.classes))
        with jc.Checkpoints(options.out / name / "checkpoints") as saved:
            state = saved.restore(init_state(model, tx, recipe, data))
        if state is None:
            return
        said = jc.predict(model, state, data.test.images[:n]).argmax(-1)
        columns.append((f"U-Net {TITLES[recipe.options['skips']]}", COLOURS[said]))
    images = np.stack([images for _, images in columns]).reshape(-1, SIDE, SIDE, 3)
    captions = [title if i == 0 else "" for title, _ in columns for i in range(n)]
    title = "Test scenes: " + ("what is digit" if options.name == "ink" else "a colour for every digit")
    plots.save(plots.image_grid(images, captions, columns=n, title=title), options.out / "pictures.png")


def main(args: list[str] | None = None) -> int:
    """Train what is missing, then draw; returns the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(PRESETS, args, about=__doc__)
        if not options.plot_only:
            all_runs = recipes(options)
            cli.enable_compilation_cache()
            data = compose_all(options)
            strategy = jc.strategy(options.strategy)
            if runs.sweep(all_runs, data, options.out, strategy=strategy, stop=stop, measure=measure) is None:
                print("stopped and saved; the same command goes on from here", file=sys.stderr)
                return stop.exit_code
            picture(options, data)
        with cli.reading(options.out):
            draw(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
