"""Depth of every pixel from one image: the scale-invariant loss where no image shows the scale.

    python -m experiments.depth_map                       digits, no download: 166 seconds on
                                                          two cores
    python -m experiments.depth_map --scale known --out runs/depth_map-known
                                                          the same scenes in one scale
    python -m experiments.depth_map --preset mnist        MNIST's digits: not yet measured

A scene has two to five digits before a slanted wall, all cut out of photographs. The near ones hide
the far ones. Three cues are in the image: the digits' size falls as 1 / depth, haze lowers the
contrast with depth, and edges show what is in front. A camera sees the same image of a scene and of
its miniature. So with `--scale unknown` a random factor multiplies the depths of each scene, and no
network can know it. With `--scale known` it is 1.

A U-Net predicts log depth. The losses are those of Eigen et al. 2014 (arXiv:1406.2283, equation 4):
the squared error of log depth (λ = 0), their mix (λ = 0.5), and the scale-invariant error (λ = 1).
The baseline is the mean log depth of the training scenes at each pixel. Training scenes have
training digits and patches of the upper halves of the photographs. Test scenes have test digits and
patches of the lower halves.

Expected, quick (3 seeds): a scale-invariant error of 0.149 +- 0.026 with λ = 0 and 0.141 +- 0.019
with λ = 1. Paired by seed, the change is -5.6 +- 7.7%, so the loss does not help measurably.

It writes OUT/table.md, OUT/table.csv, OUT/curves.csv, OUT/curves.png, OUT/images.png,
OUT/baseline.json and a folder for every run. The same command resumes a study that was stopped.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
    run_optimizer,
    run_study,
    seed_pairs,
    sweep_options,
    write_results,
)
from experiments.scenes.depth import SIDE, compose
from experiments.scenes.parts import load_objects, photographs, scene_data
from jaxcnn import cli, metrics, plots, runs, tables
from jaxcnn.losses import ScaleInvariantError
from jaxcnn.models import UNet
from jaxcnn.run_log import LogError, read_json, write_text
from jaxcnn.state import State

SCALE_SPREAD = 0.3
"""Standard deviation of the logarithm of an unknown scale."""
LossName = Literal["squared", "mixed", "invariant"]
LOSSES: dict[str, tuple[str, ScaleInvariantError]] = {
    "squared": ("squared log error (λ = 0)", ScaleInvariantError(0.0)),
    "mixed": ("mixed (λ = 0.5)", ScaleInvariantError(0.5)),
    "invariant": ("scale-invariant (λ = 1)", ScaleInvariantError(1.0)),
}
"""Titles and losses by their name in options and runs."""
BASELINE = "mean of each pixel, no network"
KEYS = ("abs_rel", "rmse_log", "scale_invariant", "delta1", "scaled_abs_rel")
"""Columns of measures."""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting of the experiment; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    """quick: scenes of digits. mnist: scenes of MNIST."""
    losses: tuple[LossName, ...] = ("squared", "mixed", "invariant")
    """Losses to compare."""
    scale: Literal["unknown", "known"] = "unknown"
    """unknown: a factor that no image shows multiplies a scene's depths. known: it is 1."""
    dataset: str = "digits"
    """Source of the scenes' objects: digits, mnist or fashion_mnist."""
    scenes: int = 3_000
    """Training scenes; a fifth as many are test scenes."""
    width: int = 8
    depth: int = 3
    """Halvings of the U-Net."""
    num_steps: int = 300
    batch_size: int = 16
    learning_rate: float = 3e-3
    """Learning rate of Adam, which falls to 0 as a cosine."""
    dtype: DtypeName = "float32"
    data_dir: Path | None = None
    out: Path = Path("runs/depth_map")
    num_seeds: int = 3
    """Runs of each loss, from seeds 0, 1, ..."""
    tensorboard: bool = False
    plot_only: bool = False


PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist",
        dataset="mnist",
        scenes=20_000,
        width=16,
        num_steps=5_000,
        batch_size=32,
        num_seeds=1,
        out=Path("runs/depth_map-mnist"),
    ),
}


def compose_all(options: Options) -> jc.Dataset:
    """Return the data set of scenes, the same for the same options.

    The unit of their depths is the geometric mean of the training scenes' depths. So a network that
    begins with outputs of about 0 begins at their mean, whatever its loss.
    """
    digits = load_objects(options.dataset, options.data_dir)
    upper, lower = photographs()
    spread = SCALE_SPREAD if options.scale == "unknown" else 0.0
    train = compose(digits.train, options.scenes, upper, 0, scale_spread=spread)
    test = compose(digits.test, options.scenes // 5, lower, 1, scale_spread=spread)
    unit = np.exp(np.log(train.labels.astype(np.float64)).mean()).astype(np.float32)
    train, test = (jc.Split(split.images, split.labels / unit) for split in (train, test))
    return scene_data(dataset_name(options), train, test, ("depth",))


def dataset_name(options: Options) -> str:
    """Return the name of the data set of scenes, also in configs."""
    return f"{options.dataset}-scenes-depth-{options.scale}-scale"


def configs(options: Options, loss: str) -> dict[str, jc.ExperimentConfig]:
    """Return the runs of a loss: name -> config."""
    return {
        f"{loss}-seed{seed}": jc.ExperimentConfig(
            dataset=dataset_name(options),
            max_train_examples=options.scenes,
            model="unet",
            model_kwargs={
                "width": options.width,
                "depth": options.depth,
                # Transposed convolutions leave a checkerboard on smooth depth.
                "up": "upsample",
                "batch_norm": True,
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
    }


def build(config: jc.ExperimentConfig, data: jc.Dataset) -> tuple[Any, Any]:
    """Return the network and the optimizer of a run."""
    # One output for each pixel, its log depth.
    model = UNet(num_classes=1, **config.model_kwargs)
    return model, run_optimizer(config)


def predicted_depth(model: Any, state: State, images: np.ndarray) -> np.ndarray:
    """Return the depths of scenes, float32 [n, SIDE, SIDE]."""
    return np.exp(np.asarray(jc.predict(model, state, images, batch_size=100))[..., 0])


def columns(predicted: np.ndarray, depth: np.ndarray) -> dict[str, float]:
    """Return the measures of depths, with `delta1` in percent.

    `scaled_abs_rel` is the absolute relative error after scaling by the median.
    """
    errors = metrics.depth_errors(predicted, depth)
    scaled = metrics.depth_errors(predicted, depth, median_scaling=True)
    return {
        "abs_rel": errors.abs_rel,
        "rmse_log": errors.rmse_log,
        "scale_invariant": errors.scale_invariant,
        "delta1": 100 * errors.delta1,
        "scaled_abs_rel": scaled.abs_rel,
    }


def measure(model: Any, state: State, data: jc.Dataset) -> Mapping[str, float]:
    """Return the measures on the test scenes, more columns of a row."""
    return columns(predicted_depth(model, state, data.test.images), data.test.labels)


def mean_depth(depth: np.ndarray) -> np.ndarray:
    """Return the depth with the mean of the logarithms at each pixel.

    It has the least squared error of log depth of all predictions that ignore the image.

    Args:
      depth: float [n, h, w].

    Returns:
      float64 [h, w].
    """
    return np.exp(np.log(depth.astype(np.float64)).mean(0))


def write_baseline(out: Path, data: jc.Dataset) -> None:
    """Write OUT/baseline.json, the measures of `mean_depth` on the test scenes."""
    truth = data.test.labels
    predicted = np.broadcast_to(mean_depth(data.train.labels), truth.shape)
    write_text(out / "baseline.json", json.dumps(columns(predicted, truth), indent=2) + "\n")


def read_baseline(out: Path) -> dict[str, float]:
    """Return the contents of OUT/baseline.json; {} where there is none.

    Raises:
      LogError: it is damaged.
    """
    path = out / "baseline.json"
    if not path.exists():
        return {}
    values = read_json(path)
    for key in KEYS:
        value = values.get(key)
        if not isinstance(value, float) or not 0 <= value < math.inf:
            raise LogError(
                f"{path} has {value!r} for {key!r}; expected a number of at least 0. Delete the "
                "file and repeat the command"
            )
    return {key: values[key] for key in KEYS}


def write_predictions(options: Options, data: jc.Dataset, n: int = 6) -> None:
    """Write OUT/images: test scenes, true depths and those of each loss's first run."""
    images, truth = data.test.images[:n], data.test.labels[:n]
    predictions = {}
    for name in options.losses:
        run, config = next(iter(configs(options, name).items()))
        model, tx = build(config, data)
        loss = LOSSES[name][1]
        state = restored_state(options.out / run, (model, tx), config.train, data, loss)
        if state is None:
            return
        predictions[name] = predicted_depth(model, state, images)

    def shown(depth: np.ndarray) -> list[np.ndarray]:
        """Return depths in units of the median of the scene's true depth."""
        return list(depth / np.median(depth, axis=(1, 2), keepdims=True))

    true_ratios = shown(truth)
    style: dict[str, Any] = {"cmap": "magma_r"}
    style["limits"] = float(np.min(true_ratios)), float(np.max(true_ratios))
    strips = [
        plots.Strip(list(images), "scene", **style),
        plots.Strip(true_ratios, "true depth", **style),
    ]
    strips += [plots.Strip(shown(depth), LOSSES[n][0], **style) for n, depth in predictions.items()]
    figure = plots.mosaic(
        strips,
        title="Test scenes, true depth and predicted depth",
        note="Each depth map is divided by its median, as the scale of a scene is not in its "
        "image. Dark is far.",
        bar="depth / median depth",
        side=1.1,
    )
    options.save(figure, options.out / "images")


def train(options: Options, stop: cli.GracefulShutdown) -> bool:
    """Train the missing runs and draw predictions; return False if some are not finished."""
    check_each_once("losses", options.losses, "loss", "squared mixed")
    all_configs = {name: configs(options, name) for name in options.losses}
    for new_runs in all_configs.values():
        check_new_runs(new_runs, options.out)
    cli.enable_compilation_cache()
    data = compose_all(options)
    for name, loss_configs in all_configs.items():
        sweep_kwargs = sweep_options(options, stop)
        sweep_kwargs |= {"measure": measure, "build": build, "loss": LOSSES[name][1]}
        if not run_all(loss_configs, data, options.out, **sweep_kwargs):
            return False
    write_baseline(options.out, data)
    write_predictions(options, data)
    return True


def paired_change(groups: Mapping[str, list[runs.Run]], key: str, unit: str) -> str:
    """Return one sentence on the effect of the scale-invariant loss, paired by seed.

    Runs that diverged are left out. It is empty where there are not two seeds of it and of the
    squared error.
    """
    pairs = seed_pairs(groups.get("invariant", []), groups.get("squared", []), key)
    # An error of 0 has no percentage.
    if not all(a is not None and b for a, b in pairs):
        return ""
    changes = [100 * (a / b - 1) for a, b in pairs]
    return paired_sentence(f"λ = 1 changes {unit}", changes, "% of that of λ = 0")


def draw(options: Options) -> None:
    """Write the table and the curves of the finished runs in `options.out`."""
    groups = grouped_runs(options.out, LOSSES)
    all_runs = [run for group in groups.values() for run in group]
    table: list[dict[str, Any]] = [
        {"loss": LOSSES[name][0], "params": group[0].result["params"]}
        | runs.aggregate_seeds(group, KEYS)
        for name, group in groups.items()
    ]
    if baseline := read_baseline(options.out):
        table.insert(0, dict.fromkeys(table[0]) | {"loss": BASELINE} | baseline)
    config = all_runs[0].config
    protocol = (
        f"{config.dataset}, {config.train.num_steps} steps of {config.train.batch_size} scenes of "
        f"{SIDE}x{SIDE}, measures on the test scenes at the last step. abs_rel: mean of "
        "|y - y*| / y*. rmse_log and scale_invariant: roots of the mean squared error of log depth "
        "and of its scale-invariant form (Eigen et al. 2014, equation 3). delta1: percent of "
        "pixels within a factor of 1.25. scaled_abs_rel: abs_rel after each depth map is scaled "
        "to the true median."
    )
    protocol += paired_change(groups, "scale_invariant", "the scale-invariant error")
    notes = divergence_notes(all_runs)
    panels = [
        plots.Panel(
            title,
            [
                plots.band(
                    [measured_rows(run) for run in group], "step", key, label=LOSSES[name][0]
                )
                for name, group in groups.items()
            ],
            marks=[plots.Mark(baseline[key], "y", "mean of each pixel")] if baseline else (),
            xlabel="step",
            ylabel=label,
        )
        for key, title, label in (
            ("scale_invariant", "without the scale", "scale-invariant RMSE of log depth"),
            ("rmse_log", "with the scale", "RMSE of log depth"),
        )
    ]
    title = "Depth of test scenes: mean and range of seeds"
    figure = plots.panels(panels, title=title, share="none")
    written = write_results(options, table, [protocol, *notes], all_runs, figure)
    print("\n".join([tables.compact_markdown(table), *notes, written]))


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw; return the exit code."""
    return run_study(PRESETS, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
