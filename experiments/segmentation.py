"""Semantic segmentation by U-Net, PSPNet and DeepLabv3+, and what skip connections are worth.

    python -m experiments.segmentation                  digits, no download: 2.5 minutes on two
                                                        CPU cores
    python -m experiments.segmentation --preset mnist   MNIST's digits: not yet measured

A scene is a digit cut out of one photograph on a background cut out of another, mirrored and at any
size. Its mask is exact to the pixel. A network classifies every pixel: background or digit
(`--name ink`), or background or one of ten digits (`--name digits`). Training scenes have training
digits and patches of the upper halves of the photographs. Test scenes have test digits and patches
of the lower halves.

The U-Net (Ronneberger et al. 2015, arXiv:1505.04597) halves the scene and doubles it again. Without
skip connections, all information on place must pass through its lowest level, which has an eighth
of the scene's side. PSPNet (Zhao et al. 2017, arXiv:1612.01105) and DeepLabv3+ (Chen et al. 2018,
arXiv:1802.02611) have residual stages of He et al. 2015. These end at half of the scene's side, and
the last stage is dilated instead. PSPNet pools their maps at four sizes, DeepLabv3+ convolves them
at three rates of dilation. DeepLabv3+ also has a decoder with the maps of the first stage.

Expected, quick (3 seeds): a mean intersection over union of 83.7 +- 3.0% for DeepLabv3+,
81.7 +- 1.0% for PSPNet and 80.8 +- 4.4% for the U-Net. Without skip connections the U-Net has
73.9 +- 4.1%. Paired by seed they are worth 6.9 +- 3.5 points.

It writes OUT/table.md, OUT/table.csv, OUT/curves.csv, OUT/curves.png, OUT/images.png and a folder
for every run.
The same command resumes a study that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

import jaxcnn as jc
from experiments._common import (
    DeviceOptions,
    DtypeName,
    FigureOptions,
    SeedOptions,
    check_each_once,
    check_new_runs,
    divergence_notes,
    grouped_runs,
    measured_rows,
    paired_sentence,
    restored_state,
    run_all,
    run_study,
    seed_pairs,
    sweep_options,
    write_results,
)
from experiments.scenes.masks import SIDE, compose
from experiments.scenes.parts import load_objects, photographs, scene_data
from jaxcnn import cli, metrics, plots, runs, tables
from jaxcnn.state import State

OUTPUT_STRIDE = 2
"""Size of a scene in sizes of the last maps of PSPNet and DeepLabv3+."""
RATES = (3, 6, 9)
"""Rates of DeepLabv3+ on maps of 16x16 pixels, the paper's share of its maps of 33x33."""
NetworkName = Literal["unet", "unet_no_skips", "pspnet", "deeplabv3plus"]


class Network(NamedTuple):
    """A network of the study."""

    title: str
    model: str
    """Key of `jaxcnn.MODELS`."""
    model_kwargs: Mapping[str, Any]
    """Options that belong to the network."""


NETWORKS: dict[str, Network] = {
    "unet": Network("U-Net", "unet", {"batch_norm": True, "skips": True}),
    "unet_no_skips": Network("U-Net without skips", "unet", {"batch_norm": True, "skips": False}),
    "pspnet": Network("PSPNet", "pspnet", {"output_stride": OUTPUT_STRIDE}),
    "deeplabv3plus": Network(
        "DeepLabv3+", "deeplabv3plus", {"output_stride": OUTPUT_STRIDE, "rates": list(RATES)}
    ),
}
"""Networks by their name in options and runs."""
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
    networks: tuple[NetworkName, ...] = ("unet", "unet_no_skips", "pspnet", "deeplabv3plus")
    """Networks to compare."""
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
    blocks: int = 1
    """Residual blocks of a stage of PSPNet and DeepLabv3+."""
    num_steps: int = 200
    batch_size: int = 24
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
    return scene_data(dataset_name(options), train, test, classes)


def dataset_name(options: Options) -> str:
    """Return the name of the data set of scenes, also in configs."""
    return f"{options.dataset}-scenes-{options.name}"


def configs(options: Options, network: str) -> dict[str, jc.ExperimentConfig]:
    """Return the runs of a network: name -> config."""
    spec = NETWORKS[network]
    model_kwargs: dict[str, Any] = {"width": options.width, "dtype": options.dtype}
    if spec.model == "unet":
        model_kwargs["depth"] = options.depth
    else:
        model_kwargs["backbone"] = f"cifar-resnet{6 * options.blocks + 2}"
    return {
        f"{network}-seed{seed}": jc.ExperimentConfig(
            dataset=dataset_name(options),
            max_train_examples=options.scenes,
            model=spec.model,
            model_kwargs={**model_kwargs, **spec.model_kwargs},
            optimizer=jc.OptimizerConfig(
                "adam", learning_rate=options.learning_rate, schedule="cosine"
            ),
            train=jc.TrainConfig(
                num_steps=options.num_steps,
                batch_size=options.batch_size,
                eval_every=-(-options.num_steps // 4),
                subtract_mean="channel",
                divide_std=True,
                seed=seed,
            ),
        )
        for seed in options.run_seeds()
    }


def network_of(config: jc.ExperimentConfig) -> str | None:
    """Return the name of the network that a run has, or None for one of another study."""
    for name, network in NETWORKS.items():
        has_skips = network.model_kwargs.get("skips")
        if (config.model, config.model_kwargs.get("skips")) == (network.model, has_skips):
            return name
    return None


def measure(model: Any, state: State, data: jc.Dataset) -> Mapping[str, float]:
    """Return the intersection over union on the test scenes, in percent.

    They are more columns of a row: the mean over classes, and that of the background.
    """
    predictions = jc.predict(model, state, data.test.images, batch_size=100).argmax(-1)
    confusion = metrics.confusion(data.test.labels, predictions, data.num_classes)
    ious = metrics.iou(confusion)
    return {"mean_iou": 100 * float(np.nanmean(ious)), "background_iou": 100 * float(ious[0])}


def paired_change(groups: Mapping[str, list[runs.Run]]) -> str:
    """Return one sentence on the effect of a U-Net's skip connections, paired by seed.

    Runs that diverged are left out. It is empty where there are not two seeds of both.
    """
    pairs = seed_pairs(groups.get("unet", []), groups.get("unet_no_skips", []), "mean_iou")
    changes = [a - b for a, b in pairs if a is not None and b is not None]
    return paired_sentence("skip connections change the mean over classes", changes)


def trained_networks(options: Options, data: jc.Dataset) -> dict[str, tuple[Any, State]]:
    """Return the network and the last state of each network's first run.

    A network without a checkpoint is left out. One that an earlier command trained is there.
    """
    networks = {}
    for network in NETWORKS:
        name = next(iter(configs(options, network)))
        folder = options.out / name
        if not (folder / "checkpoints").is_dir():
            continue
        # Of an earlier command, whose network may have another width.
        config = jc.ExperimentConfig.load(folder)
        model, tx = runs.model_and_optimizer(config, data.num_classes)
        state = restored_state(folder, (model, tx), config.train, data)
        if state is not None:
            networks[network] = model, state
    return networks


def write_predictions(
    options: Options, networks: Mapping[str, tuple[Any, State]], data: jc.Dataset, n: int = 6
) -> None:
    """Write OUT/images: test scenes, their masks, and the masks of each network's first run."""
    columns = [("scene", data.test.images[:n]), ("true mask", COLORS[data.test.labels[:n]])]
    for network, (model, state) in networks.items():
        predictions = jc.predict(model, state, data.test.images[:n]).argmax(-1)
        columns.append((NETWORKS[network].title, COLORS[predictions]))
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
    check_each_once("networks", options.networks, "network", "unet pspnet")
    all_runs: dict[str, jc.ExperimentConfig] = {}
    for network in options.networks:
        all_runs |= configs(options, network)
    check_new_runs(all_runs, options.out)
    cli.enable_compilation_cache()
    data = compose_all(options)
    if not run_all(all_runs, data, options.out, measure=measure, **sweep_options(options, stop)):
        return False
    write_predictions(options, trained_networks(options, data), data)
    return True


def multiply_adds(config: jc.ExperimentConfig) -> int:
    """Return the multiply-adds of a run's network for one scene."""
    num_classes = 2 if config.dataset.endswith("-ink") else 11
    model = jc.create_model(config.model, num_classes, **config.model_kwargs)
    return jc.summary(model, (SIDE, SIDE, 3)).macs


def draw(options: Options) -> None:
    """Write the table and the curves of the finished runs in `options.out`."""
    groups = grouped_runs(options.out, NETWORKS, lambda run: network_of(run.config))
    keys = ("mean_iou", "background_iou", "eval_error")
    table = [
        {
            "network": NETWORKS[name].title,
            "params": group[0].result["params"],
            "multiply_adds": multiply_adds(group[0].config),
        }
        | runs.aggregate_seeds(group, keys)
        for name, group in groups.items()
    ]
    all_runs = [run for group in groups.values() for run in group]
    config = all_runs[0].config
    protocol = (
        f"{config.dataset}, {config.train.num_steps} steps of {config.train.batch_size} scenes "
        f"of {SIDE}x{SIDE}. Intersection over union, mean over classes and that of the "
        "background, and errors of pixels, in percent of the test scenes at the last step. "
        "Multiply-adds are of one scene. Parameters include PSPNet's auxiliary head."
    )
    protocol += paired_change(groups)
    notes = divergence_notes(all_runs)
    lines = [
        plots.band(
            [measured_rows(run) for run in group], "step", "mean_iou", label=NETWORKS[name].title
        )
        for name, group in groups.items()
    ]
    title = "Segmentation of test scenes: mean and range of seeds"
    panel = plots.Panel("", lines, xlabel="step", ylabel="mean IoU (%)")
    figure = plots.panels([panel], title=title, size=(6.0, 3.9))
    written = write_results(options, table, [protocol, *notes], all_runs, figure)
    print("\n".join([tables.compact_markdown(table), *notes, written]))


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw; return the exit code."""
    return run_study(PRESETS, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
