"""Anomaly detection: an autoencoder, or a GAN, sees all classes but one.

    python -m experiments.anomaly                   digits, no download: 3 minutes on two busy CPU
                                                    cores
    python -m experiments.anomaly --scores anogan   AnoGAN there: 3 minutes more
    python -m experiments.anomaly --preset mnist    MNIST there: 5 minutes, one seed

For each class in turn the network (`jaxcnn.models.autoencoder`) is trained to reconstruct images of
the others. Then every image is scored by its squared error. The area under the ROC curve is the
chance that an image of the class held out scores higher than a test image of the others: 1 is
perfect, 0.5 is guessing. Two scores need no network. One is the squared distance to the best linear
code of as many numbers (principal components, of the same training images). The other is that to
the mean image.

`--scores anogan` adds the score of AnoGAN (Schlegl et al. 2017, arXiv:1703.05921) to the same
folder. A DCGAN is trained on the same images. The code of each image is searched by gradient
descent, and the loss that is left is the score (`experiments.latent_search`).

Expected, quick (3 seeds): a mean area of 0.96 over the ten classes, against 0.89 for principal
components and 0.64 for the mean image. It is more than both for each class, though for 1, 4, 6 and
9 the seeds' intervals reach below. The 8 is the class that is *nearest* the mean image (0.18), and
is detected all the same (0.93). AnoGAN has a mean area of 0.84.

Expected, MNIST (1 seed, a smaller network, 600 steps): the autoencoder's mean is 0.72, hardly above
principal components (0.71). A 1, held out, is reconstructed *better* than the trained classes
(0.21). So the error measures how simple an image is as much as how anomalous.

It writes OUT/table.md, OUT/table.csv, OUT/auc.png, OUT/images.png and a folder for every run. The
same command resumes a study that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
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
    display_names,
    run_all,
    run_optimizer,
    run_study,
)
from experiments.latent_search import NUM_STEPS, anomaly_scores
from jaxcnn import cli, plots, runs, tables
from jaxcnn.augment import normalize
from jaxcnn.data import channel_statistics
from jaxcnn.models.dcgan import DCGAN, PIXEL_RANGE, NonSaturatingLoss
from jaxcnn.state import State, init_state

SCORES = {
    "auc": "autoencoder",
    "auc_anogan": "AnoGAN",
    "auc_pca": "principal components",
    "auc_mean": "mean image",
}
"""Column -> the method of its score."""
ScoreName = Literal["autoencoder", "anogan"]
"""Values of `--scores`, the scores that need a network."""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting of the experiment; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    """quick: digits. mnist: MNIST, with wider networks."""
    dataset: str = "digits"
    """Data set by name, with images whose sides are multiples of 4."""
    held_out: tuple[int, ...] = tuple(range(10))
    """Classes to hold out, each in runs of its own."""
    scores: tuple[ScoreName, ...] = ("autoencoder",)
    """Scores to train networks for: autoencoder, anogan."""
    num_seeds: int = 3
    code: int = 8
    """Numbers in the code of an image, of every score that has one."""
    width: int = 16
    """Filters of the networks' first stage."""
    num_steps: int = 1_300
    """Training steps of the autoencoder; AnoGAN's networks have `gan_steps`."""
    gan_steps: int = 1_500
    """Training steps of AnoGAN's networks."""
    batch_size: int = 64
    learning_rate: float = 3e-3
    """Learning rate of the autoencoder's Adam, falling as a cosine; AnoGAN's is always 5e-4."""
    dtype: DtypeName = "float32"
    data_dir: Path | None = None
    out: Path = Path("runs/anomaly")
    tensorboard: bool = False
    plot_only: bool = False


GAN_RATE = 5e-4
"""Learning rate of Adam for AnoGAN's networks; 2e-4 in section 4 of DCGAN, with more filters."""
MAX_SEARCHES = 1_000
"""Greatest number of images of each kind whose codes AnoGAN searches; digits have fewer."""
MAX_NUMBERED_GROUPS = 6
"""Groups of bars up to which values are written on the bars."""
PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist",
        dataset="mnist",
        num_seeds=1,
        code=16,
        width=8,
        num_steps=600,
        batch_size=128,
        out=Path("runs/anomaly-mnist"),
    ),
}


def without(data: jc.Dataset, label: int) -> jc.Dataset:
    """Return a data set without the images of a class.

    The other classes are renumbered.
    """

    def others(split: jc.Split) -> jc.Split:
        keep = split.labels != label
        labels = split.labels - (split.labels > label)
        return jc.Split(split.images[keep], labels[keep].astype(np.int32))

    train, names = others(data.train), data.classes[:label] + data.classes[label + 1 :]
    mean, std = channel_statistics(train.images)
    name = f"{data.name}-without-{label}"
    return jc.Dataset(name, train, others(data.validation), others(data.test), names, mean, std)


def configs(options: Options, data: jc.Dataset, label: int) -> dict[str, jc.ExperimentConfig]:
    """Return the runs that hold out a class: name -> config.

    The number of training images is the same for all classes, so that their runs share one
    program.
    """
    fewest = int(np.bincount(data.train.labels).min())
    return {
        f"without-{label}-seed{seed}": jc.ExperimentConfig(
            dataset=f"{data.name}-without-{label}",
            model="autoencoder",
            model_kwargs={"width": options.width, "code": options.code, "dtype": options.dtype},
            max_train_examples=fewest * (data.num_classes - 1),
            loss="reconstruction",
            optimizer=jc.OptimizerConfig(
                "adam", learning_rate=options.learning_rate, schedule="cosine", weight_decay=0.0
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


def gan_configs(options: Options, data: jc.Dataset, label: int) -> dict[str, jc.ExperimentConfig]:
    """Return the runs of AnoGAN's networks that hold out a class: name -> config.

    They have the images, the batches and the number of values in a code of the autoencoders.
    """
    # Beta1 is that of section 4 of DCGAN. There is one row, because the search takes about as long
    # as training.
    optimizer = jc.OptimizerConfig(
        "adam",
        learning_rate=GAN_RATE,
        schedule="constant",
        weight_decay=0.0,
        optimizer_kwargs={"b1": 0.5},
    )
    changes: dict[str, Any] = {
        "num_steps": options.gan_steps,
        "eval_every": options.gan_steps,
        "subtract_mean": PIXEL_RANGE,
        "divide_std": PIXEL_RANGE,
    }
    return {
        f"anogan-{name}": jc.override(config, model="dcgan", optimizer=optimizer, **changes)
        for name, config in configs(options, data, label).items()
    }


def build_gan(config: jc.ExperimentConfig, data: jc.Dataset) -> tuple[Any, Any]:
    """Return the GAN and the optimizer of a run."""
    return DCGAN(**config.model_kwargs), run_optimizer(config)


def errors(model: Any, state: State, images: np.ndarray) -> np.ndarray:
    """Return the mean squared error of each image's reconstruction.

    Returns:
      float32 [n], in the units of normalized pixels.
    """
    outputs = jc.predict(model, state, images)
    inputs = np.asarray(normalize(images, state.normalizer))
    return np.square(outputs - inputs).mean((1, 2, 3))


def linear(train: np.ndarray, code: int, images: np.ndarray) -> np.ndarray:
    """Return the distance of each image to a linear code.

    Args:
      train: images that principal components are computed of, uint8 [m, h, w, c].
      code: number of principal components; 0 is the mean image alone.
      images: uint8 [n, h, w, c].

    Returns:
      Mean squared distances, float [n].
    """
    from sklearn.decomposition import PCA

    flat_train, flat = (x.reshape(len(x), -1).astype(np.float32) / 255 for x in (train, images))
    if not code:
        return np.square(flat - flat_train.mean(0)).mean(1)
    pca = PCA(code, random_state=0).fit(flat_train)
    return np.square(flat - pca.inverse_transform(pca.transform(flat))).mean(1)


def auc(normal: np.ndarray, strange: np.ndarray) -> float:
    """Return the area under the ROC curve; a tie counts half.

    It is the share of pairs in which the strange score is above the normal one.

    Example:
      >>> auc(np.array([1.0, 2.0]), np.array([1.5, 3.0]))
      0.75
    """
    from sklearn.metrics import roc_auc_score

    truth = np.concatenate([np.zeros(len(normal)), np.ones(len(strange))])
    return float(roc_auc_score(truth, np.concatenate([normal, strange])))


def area_measure(
    data: jc.Dataset, label: int, code: int
) -> Callable[[Any, State, jc.Dataset], Mapping[str, float]]:
    """Return a function that measures the areas of the three scores.

    They are more columns of a row.

    Args:
      data: with all classes.
      label: of the class held out. The network was not trained on any of its images, so those of
        both splits are scored.
      code: number of principal components.
    """
    splits = (data.train, data.test)
    strange = np.concatenate([split.images[split.labels == label] for split in splits])
    # The scores that need no network are the same for every row.
    linear_areas: dict[str, float] = {}

    def measure(model: Any, state: State, remaining: jc.Dataset) -> Mapping[str, float]:
        normal = remaining.test.images
        if not linear_areas:
            for name, numbers in (("auc_pca", code), ("auc_mean", 0)):
                scores = linear(remaining.train.images, numbers, np.concatenate([normal, strange]))
                linear_areas[name] = auc(scores[: len(normal)], scores[len(normal) :])
        area = auc(errors(model, state, normal), errors(model, state, strange))
        return {"auc": area} | linear_areas

    return measure


def anogan_measure(
    data: jc.Dataset, label: int
) -> Callable[[Any, State, jc.Dataset], Mapping[str, float]]:
    """Return a function that measures the area of AnoGAN's score.

    It scores the images that `area_measure` scores, but at most `MAX_SEARCHES` of each kind.
    """
    splits = (data.train, data.test)
    strange = np.concatenate([split.images[split.labels == label] for split in splits])
    strange = _at_most(strange, MAX_SEARCHES)

    def measure(model: Any, state: State, remaining: jc.Dataset) -> Mapping[str, float]:
        normal = _at_most(remaining.test.images, MAX_SEARCHES)
        scores = anomaly_scores(model, state, np.concatenate([normal, strange]))
        return {"auc_anogan": auc(scores[: len(normal)], scores[len(normal) :])}

    return measure


def _at_most(images: np.ndarray, n: int) -> np.ndarray:
    """Return n of the images, drawn without replacement, or all of them."""
    if len(images) <= n:
        return images
    return images[np.random.default_rng(0).permutation(len(images))[:n]]


def sweep(options: Options, data: jc.Dataset, stop: cli.GracefulShutdown) -> bool:
    """Train the missing runs, class by class; return False if some are not finished."""
    strategy, are_finished = options.make_strategy(), True
    for label in options.held_out:
        remaining = without(data, label)
        common: dict[str, Any] = {
            "strategy": strategy,
            "should_stop": stop,
            "tensorboard": options.tensorboard,
            "quiet": True,
        }
        # Where others train the last runs of a class, another one is left.
        if "autoencoder" in options.scores:
            measure = area_measure(data, label, options.code)
            all_runs = configs(options, data, label)
            are_finished &= run_all(all_runs, remaining, options.out, measure=measure, **common)
        if "anogan" in options.scores and not stop():
            pieces: dict[str, Any] = {"build": build_gan, "loss": NonSaturatingLoss()}
            pieces |= {"measure": anogan_measure(data, label)}
            all_runs = gan_configs(options, data, label)
            are_finished &= run_all(all_runs, remaining, options.out, **pieces, **common)
        if stop():
            return False
    return are_finished


def _line(group: list[runs.Run], gans: list[runs.Run], has_gans: bool) -> dict[str, Any]:
    """Return the columns of a class held out, from its runs.

    The scores that need no network are the same for every seed.

    Args:
      group: runs of the autoencoder.
      gans: runs of AnoGAN.
      has_gans: whether the table has AnoGAN's columns.
    """
    line = runs.aggregate_seeds(group, ("auc",))
    seconds = line.pop("seconds")
    if has_gans:
        columns = runs.aggregate_seeds(gans, ("auc_anogan",))
        line |= {"anogan_seeds": columns["seeds"]}
        line |= {name: value for name, value in columns.items() if name.startswith("auc_anogan")}
    result = next((run.result for run in group if run.divergence is None), {})
    line |= {key: result.get(key) for key in ("auc_pca", "auc_mean")}
    line |= {"seconds": seconds}
    return line | ({"anogan_seconds": columns["seconds"]} if has_gans else {})


def write_reconstructions(options: Options, data: jc.Dataset, label: int) -> None:
    """Write OUT/images: images next to their reconstructions.

    They are of the class held out and of the others, and of the first seed that did not diverge.
    """
    diverged = {run.name for run in runs.finished_runs(options.out) if run.divergence}
    trained = [
        (name, config)
        for name, config in configs(options, data, label).items()
        if name not in diverged and (options.out / name / "checkpoints").is_dir()
    ]
    if not trained:
        return
    name, config = trained[0]
    remaining = jc.subset(without(data, label), config.max_train_examples or 0, seed=0)
    model, tx = runs.model_and_optimizer(config, remaining.num_classes)
    with jc.Checkpoints(options.out / name / "checkpoints", timeout=READ_TIMEOUT) as checkpoints:
        state = checkpoints.restore(init_state(model, tx, config.train, remaining))
    if state is None:
        return
    held_out = data.test.images[data.test.labels == label][:4]
    kinds = {f"held-out class {data.classes[label]}": held_out}
    kinds["a trained class"] = remaining.test.images[:4]
    images, captions = [], []
    for kind, originals in kinds.items():
        mean, std = np.asarray(state.normalizer.mean), np.asarray(state.normalizer.std)
        pixels = jc.predict(model, state, originals) * std + mean
        outputs = np.clip(255 * pixels, 0, 255).astype(np.uint8)
        image_errors = errors(model, state, originals)
        for image, output, error in zip(originals, outputs, image_errors, strict=True):
            images += [image, output]
            captions += [kind, f"reconstruction, error {error:.2f}"]
    title = display_names(f"{data.name}: images and their reconstructions")
    title = title[0].upper() + title[1:]
    figure = plots.image_grid(np.stack(images), captions, columns=8, title=title)
    options.save(figure, options.out / "images")


def check(options: Options, data: jc.Dataset) -> None:
    """Check the classes held out, before anything is trained.

    Raises:
      ArgumentError: for no classes, or one that the data set lacks.
    """
    invalid = [label for label in options.held_out if not 0 <= label < data.num_classes]
    if invalid or not options.held_out:
        value = f"{invalid[0]}" if invalid else "empty"
        raise jc.ArgumentError(
            f"held_out is {value}; expected classes of {data.name}, 0..{data.num_classes - 1}"
        )
    if len(set(options.scores)) < len(options.scores) or not options.scores:
        raise jc.ArgumentError(
            f"scores is {' '.join(options.scores) or 'empty'}; expected each score once, and at "
            "least one: write --scores autoencoder anogan"
        )


def train(options: Options, stop: cli.GracefulShutdown) -> bool:
    """Train the missing runs and draw reconstructions; return False if some are not finished."""
    cli.enable_compilation_cache()
    data = jc.load_dataset(options.dataset, options.data_dir)
    check(options, data)
    if not sweep(options, data, stop):
        return False
    write_reconstructions(options, data, options.held_out[0])
    return True


def draw(options: Options) -> None:
    """Write the table and the bars of the finished runs in `options.out`."""
    out = options.out
    all_runs = runs.finished_runs(out)
    parts = {run.name: held_out_class(out, run) for run in all_runs}
    labels = sorted({label for _, label in parts.values()})
    names = sorted({name for name, _ in parts.values()})
    if len(names) > 1:
        raise jc.ArgumentError(
            f"{out} has runs of {' and '.join(names)}; expected those of one data set. "
            "Write --out with a folder of its own for each."
        )
    gans = [run for run in all_runs if run.name.startswith("anogan-")]
    autoencoders = [run for run in all_runs if run not in gans]
    table: list[dict[str, Any]] = [
        {"held out": str(label)}
        | _line(_without(autoencoders, label), _without(gans, label), bool(gans))
        for label in labels
    ]
    scores = {key: title for key, title in SCORES.items() if key in table[0]}
    mean_line: dict[str, Any] = dict.fromkeys(table[0]) | {"held out": "mean"}
    for key in (*scores, "seconds", *(["anogan_seconds"] if gans else [])):
        values = [line[key] for line in table]
        # Columns compare only where their means are over the same classes, which is all of them.
        mean_line |= {key: None if None in values else sum(values) / len(values)}
    lines = [*table, mean_line]
    name = names[0]
    counts = _listed(run.config.max_train_examples for run in all_runs)
    code = _listed(run.config.model_kwargs["code"] for run in all_runs)
    protocol = f"{name}: {counts} training images of the other classes, "
    protocol += ", ".join(
        f"{_listed(run.config.train.num_steps for run in group)} steps of "
        f"{_listed(run.config.train.batch_size for run in group)}{suffix}"
        for group, suffix in (
            (autoencoders, ""),
            (gans, f" and {NUM_STEPS} of each search (AnoGAN)"),
        )
        if group
    )
    protocol += (
        f", codes of {code} numbers. Areas under the ROC curve, mean over seeds and its 95% "
        "interval."
    )
    divergences = filter(None, (run.divergence for run in all_runs))
    tables.write_table(out, lines, [protocol, *divergences])
    written = f"{out}/table.md and table.csv"
    if any(line[key] is not None for line in table for key in scores):
        options.save(_bars(lines, scores, name), out / "auc")
        written = f"{out}/table.md, table.csv and auc.{options.format}"
    print(f"{tables.compact_markdown(lines)}\nwrote {written}")


def held_out_class(out: Path, run: runs.Run) -> tuple[str, int]:
    """Return the data set and the class held out of a run.

    Raises:
      ArgumentError: the run is of another experiment.
    """
    name, separator, label = run.config.dataset.rpartition("-without-")
    if not separator or not label.isdecimal() or "code" not in run.config.model_kwargs:
        raise jc.ArgumentError(
            f"{out} has a run called {run.name!r}, which holds out no class; expected those of "
            "this experiment. Write --out with a folder of this experiment."
        )
    return name, int(label)


def _listed(values: Iterable[Any]) -> str:
    """Return the distinct values of a setting, such as "200 or 300"."""
    return " or ".join(str(value) for value in sorted(set(values)))


def _bars(lines: list[dict[str, Any]], scores: Mapping[str, str], name: str) -> Any:
    """Return the figure of areas by class and score."""
    heights = {
        line["held out"]: {title: line[key] for key, title in scores.items()} for line in lines
    }
    half_widths = {
        line["held out"]: {
            title: line[f"{key}_ci95"]
            for key, title in scores.items()
            if line.get(f"{key}_ci95") is not None
        }
        for line in lines
    }
    half_widths = {label: widths for label, widths in half_widths.items() if widths}
    count = {3: "three", 4: "four"}[len(scores)]
    title = display_names(f"{name}: detection of a held-out class by {count} scores")
    title = title[0].upper() + title[1:]
    return plots.bars(
        heights,
        xlabel="held-out class",
        ylabel="area under the ROC curve",
        title=title,
        errors=half_widths,
        error_label="95% interval",
        reference=(0.5, "guessing"),
        # Thirty values would make the figure twice as wide; the table has them.
        fmt=None if len(heights) > MAX_NUMBERED_GROUPS else ".2f",
    )


def _without(group: list[runs.Run], label: int) -> list[runs.Run]:
    """Return the runs that hold out a class."""
    return [run for run in group if run.config.dataset.endswith(f"-without-{label}")]


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw; return the exit code."""
    return run_study(PRESETS, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
