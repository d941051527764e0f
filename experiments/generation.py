"""Image generation by a DCGAN, measured by a Frechet distance.

    python -m experiments.generation                    digits, no download: 2 minutes on two busy
                                                        CPU cores
    python -m experiments.generation --preset mnist     MNIST, one seed: 7 minutes there

A generator makes images of random codes, and a discriminator learns to tell them from real ones
(`jaxcnn.models.dcgan`). Each row of a run has the Frechet distance (Heusel et al. 2017,
arXiv:1706.08500, equation 6) of generated images to half of the training images. Its features are
the penultimate layer of a LeNet-5 that this script trains on the training images first. They are
not those of an Inception network, so the numbers are no FID. Other samples of the same size give
the scale: the other half of the training images (the floor), independent Gaussians for each pixel,
the mean image, and uniform noise.

Expected, quick (3 seeds): recognizable digits, and a distance of 3.3 +- 0.4, against 1.7 +- 1.3 of
real images, 23 of Gaussian pixels, 41 of noise and 201 of the mean image.

Expected, MNIST (3 seeds): 9.5 +- 1.0, against 0.3 of real images and 182 of Gaussian pixels.

It writes OUT/table.md, OUT/table.csv, OUT/curves.csv, OUT/curves.png, OUT/samples.png,
OUT/interpolation.png and a folder for every run. The same command resumes a study that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

import jaxcnn as jc
from experiments._common import (
    READ_TIMEOUT,
    DeviceOptions,
    DtypeName,
    FigureOptions,
    SeedOptions,
    display_names,
    first_converged,
    run_all,
    run_optimizer,
    run_study,
    sweep_options,
    write_results,
)
from jaxcnn import cli, metrics, plots, runs, tables
from jaxcnn.augment import normalize
from jaxcnn.data import channel_statistics
from jaxcnn.interpret.activations import stage_outputs
from jaxcnn.models.dcgan import DCGAN, PIXEL_RANGE, NonSaturatingLoss, generate
from jaxcnn.state import State, init_state
from jaxcnn.training_checks import check_config

SAMPLERS = {
    "frechet": "DCGAN",
    "frechet_gaussian": "Gaussian pixels",
    "frechet_mean": "mean image",
    "frechet_noise": "uniform noise",
    "frechet_floor": "real images",
}
"""Column of a row -> the images whose distance it is."""
FEATURES = "lenet5"
"""Name of the run whose network gives the features."""
PENULTIMATE = "f6"
"""Stage of LeNet-5 whose 84 values are the features."""
SIDE = 28
"""Height and width of LeNet-5's images, pixels."""
MAX_SAMPLES = 5_000
"""Greatest number of images on each side of a distance."""
BATCH = 500
"""Images that are generated, or given to LeNet-5, at a time."""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting of the experiment; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    """quick: digits. mnist: MNIST."""
    dataset: str = "digits"
    """Data set by name, with images whose sides are multiples of 4."""
    num_seeds: int = 3
    code: int = 32
    """Numbers in the code that an image is made of."""
    width: int = 32
    """Filters of the first and last maps of both networks."""
    num_steps: int = 3_000
    batch_size: int = 64
    learning_rate: float = 2e-4
    """Learning rate of Adam for both networks."""
    classifier_steps: int = 600
    """Training steps of the LeNet-5 that gives the features."""
    dtype: DtypeName = "float32"
    data_dir: Path | None = None
    out: Path = Path("runs/generation")
    tensorboard: bool = False
    plot_only: bool = False


PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist",
        dataset="mnist",
        num_seeds=1,
        code=64,
        num_steps=12_000,
        classifier_steps=1_500,
        out=Path("runs/generation-mnist"),
    ),
}


# ---------------------------------------------------------------- runs


def configs(options: Options) -> dict[str, jc.ExperimentConfig]:
    """Return the runs of the GAN: name -> config."""
    return {
        f"dcgan-seed{seed}": jc.ExperimentConfig(
            dataset=options.dataset,
            model="dcgan",
            model_kwargs={"code": options.code, "width": options.width, "dtype": options.dtype},
            # Section 4 of DCGAN.
            optimizer=jc.OptimizerConfig(
                "adam",
                learning_rate=options.learning_rate,
                schedule="constant",
                weight_decay=0.0,
                optimizer_kwargs={"b1": 0.5},
            ),
            train=jc.TrainConfig(
                num_steps=options.num_steps,
                batch_size=options.batch_size,
                eval_every=eval_every(options),
                subtract_mean=PIXEL_RANGE,
                divide_std=PIXEL_RANGE,
                seed=seed,
            ),
        )
        for seed in options.run_seeds()
    }


def eval_every(options: Options) -> int:
    """Return the steps between two rows of a GAN."""
    return -(-options.num_steps // 12)


def build(config: jc.ExperimentConfig, data: jc.Dataset) -> tuple[Any, Any]:
    """Return the GAN and the optimizer of a run."""
    return DCGAN(**config.model_kwargs), run_optimizer(config)


def classifier_config(options: Options, name: str) -> jc.ExperimentConfig:
    """Return the config of LeNet-5 on a data set of enlarged images."""
    return jc.ExperimentConfig(
        dataset=name,
        model="lenet5",
        optimizer=jc.OptimizerConfig("adam", learning_rate=2e-3, schedule="cosine"),
        train=jc.TrainConfig(
            num_steps=options.classifier_steps,
            batch_size=64,
            eval_every=options.classifier_steps,
            subtract_mean="channel",
            divide_std=True,
        ),
    )


def enlarged(images: np.ndarray) -> np.ndarray:
    """Return images as LeNet-5 takes them.

    Each pixel becomes a square, with a border of black around the image.

    Args:
      images: uint8 [n, h, w, c].

    Returns:
      uint8 [n, 28, 28, c], or the images themselves if they have a side of 28 or more.

    Example:
      >>> enlarged(np.ones((2, 8, 8, 1), np.uint8))[0, :, 14, 0].sum()
      np.uint64(24)
    """
    side = images.shape[1]
    if side >= SIDE:
        return images
    factor = SIDE // side
    margin = (SIDE - factor * side) // 2
    border = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    return np.pad(images.repeat(factor, 1).repeat(factor, 2), border)


def enlarged_data(data: jc.Dataset) -> jc.Dataset:
    """Return the data set of the images as LeNet-5 takes them."""
    train, validation, test = (
        split._replace(images=enlarged(split.images))
        for split in (data.train, data.validation, data.test)
    )
    mean, std = channel_statistics(train.images)
    name = f"{data.name}-{train.images.shape[1]}x{train.images.shape[2]}"
    return data._replace(
        name=name, train=train, validation=validation, test=test, mean=mean, std=std
    )


# ---------------------------------------------------------------- measurement

Features = Callable[[np.ndarray], np.ndarray]
"""Function of images uint8 [n, h, w, c] that returns features, float32 [n, d]."""


def trained_features(out: Path, data: jc.Dataset) -> Features:
    """Return the function of LeNet-5's penultimate layer.

    Args:
      out: folder of the study, which has its run.
      data: the data set, as it was loaded.
    """
    trained = runs.load_trained_model(out / FEATURES, data=enlarged_data(data))
    model, state = trained.model, trained.last

    @jax.jit
    def of_batch(images):
        return stage_outputs(model, state, normalize(images, state.normalizer))[PENULTIMATE]

    def of_images(images: np.ndarray) -> np.ndarray:
        parts = [
            np.asarray(of_batch(enlarged(images[i : i + BATCH])))
            for i in range(0, len(images), BATCH)
        ]
        return np.concatenate(parts)

    return of_images


def random_codes(model: DCGAN, seed: int, n: int) -> np.ndarray:
    """Return codes of N(0, 1), float32 [n, z]."""
    return np.random.default_rng(seed).normal(size=(n, model.code)).astype(np.float32)


def reference_images(images: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return samples that need no network, by column, and the real images to compare with.

    Args:
      images: training images, uint8 [n, h, w, c].
      rng: of the halves and of the samples.

    Returns:
      Arrays uint8 [n // 2, h, w, c], at most `MAX_SAMPLES` images: "real", and for each other
      column of `SAMPLERS` its images.
    """
    order = rng.permutation(len(images))
    n = min(len(images) // 2, MAX_SAMPLES)
    mean, std = images.mean(0), images.std(0)
    shape = (n, *images.shape[1:])
    gaussian = np.clip(np.round(rng.normal(mean, std, shape)), 0, 255)
    return {
        "real": images[order[:n]],
        "frechet_floor": images[order[n : 2 * n]],
        "frechet_gaussian": gaussian.astype(np.uint8),
        "frechet_mean": np.broadcast_to(np.round(mean), shape).astype(np.uint8),
        "frechet_noise": rng.integers(0, 256, shape, np.uint8),
    }


def frechet_measure(features: Features) -> Callable[[Any, State, jc.Dataset], Mapping[str, float]]:
    """Return a function that measures the Frechet distances of a GAN and of other samplers.

    They are more columns of a row. Halves of the real images, codes and the samples of the other
    samplers are drawn from the run's seed, and are the same in every row.
    """
    cached: dict[int, tuple[np.ndarray, dict[str, float]]] = {}

    def measure(model: Any, state: State, data: jc.Dataset) -> Mapping[str, float]:
        seed = int(state.rng[-1])
        if seed not in cached:
            images = reference_images(data.train.images, np.random.default_rng(seed))
            real = features(images.pop("real"))
            cached[seed] = (
                real,
                {
                    name: metrics.frechet_distance(features(samples), real)
                    for name, samples in images.items()
                },
            )
        real, distances = cached[seed]
        samples = generated(model, state, random_codes(model, seed, len(real)))
        return {"frechet": metrics.frechet_distance(features(samples), real)} | distances

    return measure


def generated(model: DCGAN, state: State, codes: np.ndarray) -> np.ndarray:
    """Return the images of codes, uint8 [n, h, w, c], in batches."""
    # The last batch is as large as the others, so that one program serves all.
    padded = np.concatenate([codes, np.zeros((-len(codes) % BATCH, model.code), np.float32)])
    parts = [generate(model, state, padded[i : i + BATCH]) for i in range(0, len(padded), BATCH)]
    return np.concatenate(parts)[: len(codes)]


# ---------------------------------------------------------------- images


def great_circle(start: np.ndarray, end: np.ndarray, n: int) -> np.ndarray:
    """Return codes on the great circle between two codes, with the length between theirs.

    Codes of N(0, 1) in many dimensions have nearly the same length. Those on the straight line
    between two are shorter than any that the generator was trained on (White 2016,
    arXiv:1609.04468).

    Args:
      start: float [z].
      end: float [z].
      n: number of codes, both ends among them.

    Returns:
      float32 [n, z].

    Example:
      >>> codes = great_circle(np.array([1.0, 0.0]), np.array([0.0, 2.0]), 3)
      >>> codes.astype(float).round(2).tolist()
      [[1.0, 0.0], [1.06, 1.06], [0.0, 2.0]]
    """
    lengths = np.linalg.norm(start), np.linalg.norm(end)
    angle = np.arccos(np.clip(start @ end / (lengths[0] * lengths[1]), -1, 1))
    share = np.linspace(0, 1, n)[:, None]
    direction = np.sin((1 - share) * angle) * start / lengths[0]
    direction = direction + np.sin(share * angle) * end / lengths[1]
    length = (1 - share) * lengths[0] + share * lengths[1]
    return (length * direction / np.sin(angle)).astype(np.float32)


def nearest_images(images: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Return for each sample the image at the least squared distance of pixels.

    Args:
      images: uint8 [m, h, w, c].
      samples: uint8 [n, h, w, c].

    Returns:
      uint8 [n, h, w, c].
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    rows = samples.reshape(len(samples), -1).astype(np.float32)
    squares = np.square(flat).sum(1)
    return images[np.argmin(squares[None] - 2 * rows @ flat.T, axis=1)]


def states_of(options: Options, data: jc.Dataset) -> tuple[DCGAN, dict[int, State]]:
    """Return the GAN of the first seed that did not diverge, and its states by step.

    There are no states if all seeds diverged.
    """
    found = first_converged(configs(options), options.out)
    if found is None:
        return DCGAN(), {}
    name, config = found
    model, tx = build(config, data)
    start = init_state(model, tx, config.train, data, loss=NonSaturatingLoss())
    folder = options.out / name / "checkpoints"
    states = {0: start}
    with jc.Checkpoints(folder, timeout=READ_TIMEOUT) as checkpoints:
        for step in checkpoints.steps():
            state = checkpoints.restore(start, step)
            states |= {} if state is None else {step: state}
    return model, states


def write_samples(options: Options, data: jc.Dataset, n: int = 14) -> None:
    """Write OUT/samples: images of the same codes along training, and OUT/interpolation."""
    model, states = states_of(options, data)
    if not states:
        return
    steps = sorted(states)
    # About five states, closer at the start, and the last.
    shown = sorted({steps[min(i, len(steps) - 1)] for i in (0, 1, 2, 4, 8)} | {steps[-1]})
    codes = random_codes(model, 0, n)
    images = {step: generate(model, states[step], codes) for step in shown}
    strips = [_strip(images[step], f"step {step:,}") for step in shown]
    last = images[shown[-1]]
    strips.append(_strip(nearest_images(data.train.images, last), "nearest real image"))
    title = f"{display_names(options.dataset)}: generated images along training"
    note = (
        "Each column has one code. The last row has the training image that is nearest to the row "
        "above it in pixels."
    )
    figure = plots.mosaic(strips, title=title[0].upper() + title[1:], note=note, side=0.6)
    options.save(figure, options.out / "samples")
    ends = random_codes(model, 1, 12)
    paths = [great_circle(ends[2 * i], ends[2 * i + 1], 13) for i in range(len(ends) // 2)]
    state = states[steps[-1]]
    strips = [_strip(generate(model, state, path), "") for path in paths]
    title = f"{display_names(options.dataset)}: images between two codes"
    figure = plots.mosaic(
        strips,
        title=title[0].upper() + title[1:],
        note="Each row goes from one random code to another on a great circle.",
        side=0.6,
    )
    options.save(figure, options.out / "interpolation")


def _strip(images: np.ndarray, label: str) -> plots.Strip:
    return plots.Strip([plots.to_rgb(image) for image in images], label)


# ---------------------------------------------------------------- study


def check(options: Options, data: jc.Dataset) -> None:
    """Check the images, before anything is trained.

    Raises:
      ArgumentError: LeNet-5 or the GAN cannot take them, or the GAN cannot be trained so.
    """
    h, w = data.train.images.shape[1:3]
    if h != w or h % 4 or not 4 <= h <= 32:
        raise jc.ArgumentError(
            f"dataset is {options.dataset}, with images of {h}x{w} pixels; expected a square of 4, "
            "8, ... or 32. Write --dataset mnist."
        )
    # The classifier is trained first, and mistakes about the GAN must not wait for it.
    for config in configs(options).values():
        check_config(config.train, data, options.make_strategy(), NonSaturatingLoss())


def train(options: Options, stop: cli.GracefulShutdown) -> bool:
    """Train the missing runs and draw images; return False if some are not finished."""
    gan_configs = configs(options)
    cli.enable_compilation_cache()
    data = jc.load_dataset(options.dataset, options.data_dir)
    check(options, data)
    common = sweep_options(options, stop)
    classified = enlarged_data(data)
    classifier = {FEATURES: classifier_config(options, classified.name)}
    study = classifier | gan_configs
    if not run_all(classifier, classified, options.out, study, **common):
        return False
    sweep_kwargs = common | {
        "measure": frechet_measure(trained_features(options.out, data)),
        "build": build,
        "loss": NonSaturatingLoss(),
        "keep_every": eval_every(options),
        "quiet": True,
    }
    if not run_all(gan_configs, data, options.out, study, **sweep_kwargs):
        return False
    write_samples(options, data)
    return True


def draw(options: Options) -> None:
    """Write the table and the curves of the finished runs in `options.out`."""
    out = options.out
    finished = runs.finished_runs(out)
    group = [run for run in finished if run.name != FEATURES]
    classifiers = [run for run in finished if run.name == FEATURES]
    if not group or not classifiers:
        missing = "GAN" if classifiers else f"run {FEATURES}"
        raise jc.ArgumentError(
            f"{out} has no finished {missing}; expected both. "
            "Leave out --plot-only, or write --out with a folder of this experiment."
        )
    statistics = runs.aggregate_seeds(group, tuple(SAMPLERS))
    table = [
        {
            "images": title,
            "seeds": statistics["seeds"],
            "frechet": statistics[key],
            "frechet_ci95": statistics[f"{key}_ci95"],
        }
        for key, title in SAMPLERS.items()
    ]
    config, error = group[0].config, classifiers[0].result.get("eval_error")
    error = "not known" if error is None else f"{error:.2f}%"
    protocol = (
        f"{config.dataset}: {config.train.num_steps} steps of {config.train.batch_size} images, "
        f"codes of {config.model_kwargs['code']} numbers. Frechet distance to half of the training "
        f"images (at most {MAX_SAMPLES:,}), of as many images, in features of a LeNet-5 whose test "
        f"error is {error}. Mean over seeds, which choose the "
        "halves too, and its 95% interval."
    )
    divergences = filter(None, (run.divergence for run in finished))
    has_distances = any(row.get("frechet") is not None for run in group for row in run.rows)
    figure = curves(group, statistics["frechet_floor"]) if has_distances else None
    written = write_results(options, table, [protocol, *divergences], group, figure)
    print(f"{tables.compact_markdown(table)}\n{written}")


def curves(group: list[runs.Run], floor: float | None) -> Any:
    """Return the figure of losses and Frechet distance against step.

    Args:
      group: runs of the GAN.
      floor: distance of real images; None where it is not known.
    """
    # The row of a divergence has no distance.
    rows = [[row for row in run.rows if row.get("frechet") is not None] for run in group]
    losses = [
        plots.band(rows, "step", f"train_{player}_loss", label=player)
        for player in ("discriminator", "generator")
    ]
    # Where the discriminator cannot tell the images apart.
    marks = [plots.Mark(float(np.log(4)), "y", "log 4 (discriminator at D = 1/2)")]
    marks += [plots.Mark(float(np.log(2)), "y", "log 2 (generator at D = 1/2)")]
    floors = [] if floor is None else [plots.Mark(floor, "y", "real images")]
    distance = plots.band(rows, "step", "frechet", label="DCGAN")
    panels = [
        plots.Panel("Losses", losses, marks, xlabel="step", ylabel="training loss (nats)"),
        plots.Panel(
            "Distance", [distance], floors, xlabel="step", ylabel="Frechet distance", ylog=True
        ),
    ]
    name = display_names(group[0].config.dataset)
    seeds = ": mean and range of seeds" if len(group) > 1 else ""
    return plots.panels(panels, title=f"DCGAN on {name}{seeds}", share="none")


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw; return the exit code."""
    return run_study(PRESETS, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
