"""Can a network find what it has never seen? An autoencoder learns all classes but one; that one should come back worse.

    python -m experiments.anomaly                   digits, no download: 3 minutes on two busy CPU cores
    python -m experiments.anomaly --preset mnist    MNIST there: 5 minutes, one seed

For each class in turn the network (`jaxcnn.models.autoencoder`) is trained to give back images of the others, and then every
image is scored by its squared error. The area under the ROC curve is the chance that an image of the class held out scores
higher than a test image of the others: 1 is perfect, 0.5 is guessing. Two scores need no network: the squared distance to the
best linear code of as many numbers (principal components, of the same training images), and that to the mean image.

Expected, quick (3 seeds): a mean area of 0.96 over the ten classes, against 0.89 for principal components and 0.64 for the mean
image, and more than both for each class, though for 1, 6 and 9 the seeds' intervals reach below. The 8 is the class that is
*nearest* the mean image (0.18), and is found all the same (0.93). On MNIST (1 seed, a smaller network, 600 steps) the
autoencoder's mean is 0.72, hardly above principal components (0.71), and a 1 that was never seen comes back *better* than what
was learnt (0.21): the error says how simple an image is as much as how strange.

It writes OUT/table.md, OUT/table.csv, OUT/auc.png, OUT/pictures.png and a folder for every run, and goes on where it was
stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import jaxcnn as jc
from jaxcnn import cli, plots, runs, tables
from jaxcnn.augment import normalize
from jaxcnn.data import channel_statistics
from jaxcnn.state import State, init_state

SCORES = {"auc": "autoencoder", "auc_pca": "principal components", "auc_mean": "mean image"}
"""Column -> what scores an image there."""


@dataclass(frozen=True)
class Options:
    """Every setting of the experiment; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    dataset: str = "digits"
    """digits, mnist, fashion_mnist, cifar10: any set whose images' sides are multiples of 4."""
    held_out: tuple[int, ...] = tuple(range(10))
    """Classes that are held out, each in runs of its own."""
    seeds: int = 3
    code: int = 8
    """Numbers that an image passes through."""
    width: int = 16
    steps: int = 1_300
    batch: int = 64
    lr: float = 3e-3
    """Of Adam, with a cosine schedule to 0."""
    strategy: Literal["auto", "pmap", "jit"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    data_dir: Path | None = None
    """Where to look for data first."""
    out: Path = Path("runs/anomaly")
    plot_only: bool = False


PRESETS = {
    "quick": Options(),
    "mnist": Options(
        "mnist", dataset="mnist", seeds=1, code=16, width=8, steps=600, batch=128, out=Path("runs/anomaly-mnist")
    ),
}


def without(data: jc.Dataset, label: int) -> jc.Dataset:
    """`data` with no image of the class `label` in training or test, and the other classes numbered anew."""

    def others(split: jc.Split) -> jc.Split:
        keep = split.labels != label
        return jc.Split(split.images[keep], (split.labels - (split.labels > label))[keep].astype(np.int32))

    train, names = others(data.train), data.classes[:label] + data.classes[label + 1 :]
    mean, std = channel_statistics(train.images)
    return jc.Dataset(
        f"{data.name}-without-{label}", train, others(data.validation), others(data.test), names, mean, std
    )


def recipes(options: Options, data: jc.Dataset, label: int) -> dict[str, jc.Recipe]:
    """Run's name -> recipe. All classes leave the same number of training images, so that they share one program."""
    fewest = int(np.bincount(data.train.labels).min())
    return {
        f"without-{label}-seed{seed}": jc.Recipe(
            dataset=f"{data.name}-without-{label}",
            model="autoencoder",
            options={"width": options.width, "code": options.code, "dtype": options.dtype},
            loss="reconstruction",
            examples=fewest * (len(data.classes) - 1),
            steps=options.steps,
            batch=options.batch,
            optimizer="adam",
            lr=options.lr,
            schedule="cosine",
            decay=0.0,
            mean="channel",
            std=True,
            pad=0,
            flip=False,
            every=-(-options.steps // 4),
            seed=seed,
        )
        for seed in range(options.seeds)
    }


def errors(model: Any, state: State, images: np.ndarray) -> np.ndarray:
    """The mean squared error of each image's reconstruction, float32 [n], in the units of normalised pixels."""
    outputs, inputs = jc.predict(model, state, images), np.asarray(normalize(images, state.normalizer))
    return np.square(outputs - inputs).mean((1, 2, 3))


def linear(train: np.ndarray, code: int, images: np.ndarray) -> np.ndarray:
    """The mean squared distance of each image to the span of the first `code` principal components of `train`, float [n]."""
    from sklearn.decomposition import PCA

    flat, asked = (x.reshape(len(x), -1).astype(np.float32) / 255 for x in (train, images))
    if not code:
        return np.square(asked - flat.mean(0)).mean(1)
    fitted = PCA(code, random_state=0).fit(flat)
    return np.square(asked - fitted.inverse_transform(fitted.transform(asked))).mean(1)


def auc(normal: np.ndarray, strange: np.ndarray) -> float:
    """The area under the ROC curve: how often a strange score is above a normal one, ties counted half.

    Example:
      >>> auc(np.array([1.0, 2.0]), np.array([1.5, 3.0]))
      0.75
    """
    from sklearn.metrics import roc_auc_score

    truth = np.concatenate([np.zeros(len(normal)), np.ones(len(strange))])
    return float(roc_auc_score(truth, np.concatenate([normal, strange])))


def judge(data: jc.Dataset, label: int, code: int) -> Callable[[Any, State, jc.Dataset], Mapping[str, float]]:
    """More columns for a row: the areas of the three scores. Every image of the class held out is new to the network."""
    strange = np.concatenate([split.images[split.labels == label] for split in (data.train, data.test)])
    known: dict[str, float] = {}

    def measure(model: Any, state: State, rest: jc.Dataset) -> Mapping[str, float]:
        normal = rest.test.images
        if not known:
            for name, numbers in (("auc_pca", code), ("auc_mean", 0)):
                scores = linear(rest.train.images, numbers, np.concatenate([normal, strange]))
                known[name] = auc(scores[: len(normal)], scores[len(normal) :])
        return {"auc": auc(errors(model, state, normal), errors(model, state, strange))} | known

    return measure


def sweep(options: Options, data: jc.Dataset, stop: cli.GracefulShutdown) -> bool:
    """Run what is missing, class by class; whether it was not stopped."""
    for label in options.held_out:
        all_runs, rest = recipes(options, data, label), without(data, label)
        measure = judge(data, label, options.code)
        strategy = jc.strategy(options.strategy)
        if runs.sweep(all_runs, rest, options.out, strategy=strategy, stop=stop, measure=measure, brief=True) is None:
            return False
    return True


def draw(out: Path) -> None:
    """The table and the bars, from the runs under `out` that are over."""
    all_runs = runs.finished_runs(out)
    held = sorted({int(run.recipe.dataset.rsplit("-", 1)[1]) for run in all_runs})
    groups = {str(k): [run for run in all_runs if run.recipe.dataset.endswith(f"-without-{k}")] for k in held}
    table: list[dict[str, Any]] = [{"held out": k} | _line(group) for k, group in groups.items()]
    whole: dict[str, Any] = dict.fromkeys(table[0]) | {"held out": "mean"}
    for key in (*SCORES, "seconds"):
        known = [float(line[key]) for line in table if line[key] is not None]
        whole |= {key: sum(known) / len(known) if known else None}
    recipe = all_runs[0].recipe
    name, code = recipe.dataset.rsplit("-without-", 1)[0], recipe.options["code"]
    protocol = (
        f"{name}: {recipe.examples} training images of the other classes, {recipe.steps} steps of {recipe.batch}, "
    )
    protocol += f"codes of {code} numbers. Areas under the ROC curve, mean over seeds and its 95% interval."
    tables.write_table(out, [*table, whole], [protocol])
    shown = {line["held out"]: {title: line[key] for key, title in SCORES.items()} for line in [*table, whole]}
    bars = {line["held out"]: {SCORES["auc"]: line["auc_ci95"]} for line in [*table, whole] if line["auc_ci95"]}
    title = f"{name}: is the class held out found by its reconstruction error?"
    figure = plots.bars(shown, ylabel="area under the ROC curve", title=title, errors=bars, fmt=".2f")
    plots.save(figure, out / "auc.png")
    print(f"{tables.markdown([*table, whole])}\nwrote {out}/table.md, table.csv and auc.png")


def _line(group: list[runs.Run]) -> dict[str, Any]:
    """Columns of the class that all runs of `group` held out; what needs no network is the same for every seed."""
    line = runs.aggregate_seeds(group, ("auc",))
    seconds = line.pop("seconds")
    return line | {key: group[0].result.get(key) for key in SCORES if key != "auc"} | {"seconds": seconds}


def picture(options: Options, data: jc.Dataset, label: int) -> None:
    """OUT/pictures.png: images of the class held out and of others, as they are and as they come back."""
    name, recipe = next(iter(recipes(options, data, label).items()))
    rest = jc.subset(without(data, label), recipe.examples or 0, seed=0)
    model, tx = runs.model_and_optimizer(recipe, len(rest.classes))
    with jc.Checkpoints(options.out / name / "checkpoints") as saved:
        state = saved.restore(init_state(model, tx, recipe, rest))
    if state is None:
        return
    kinds = {f"class {data.classes[label]}, never seen": data.test.images[data.test.labels == label][:4]}
    kinds["a class that was learnt"] = rest.test.images[:4]
    images, captions = [], []
    for kind, some in kinds.items():
        inputs = jc.predict(model, state, some) * np.asarray(state.normalizer.std) + np.asarray(state.normalizer.mean)
        back = np.clip(255 * inputs, 0, 255).astype(np.uint8)
        for image, again, error in zip(some, back, errors(model, state, some), strict=True):
            images += [image, again]
            captions += [kind, f"as it comes back: error {error:.2f}"]
    title = "What the code cannot hold comes back wrong"
    plots.save(plots.image_grid(np.stack(images), captions, columns=8, title=title), options.out / "pictures.png")


def main(args: list[str] | None = None) -> int:
    """Train what is missing, then draw; returns the exit code."""
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(PRESETS, args, about=__doc__)
        if not options.plot_only:
            cli.enable_compilation_cache()
            data = jc.load_dataset(options.dataset, options.data_dir)
            check(options, data)
            if not sweep(options, data, stop):
                print("stopped and saved; the same command goes on from here", file=sys.stderr)
                return stop.exit_code
            picture(options, data, options.held_out[0])
        with cli.reading(options.out):
            draw(options.out)
    return 0


def check(options: Options, data: jc.Dataset) -> None:
    """ArgumentError for classes that are not there, before anything is trained."""
    wrong = [label for label in options.held_out if not 0 <= label < len(data.classes)]
    if wrong or not options.held_out:
        found = f"{wrong[0]}" if wrong else "empty"
        raise jc.ArgumentError(f"held_out is {found}; expected classes of {data.name}, 0..{len(data.classes) - 1}")


if __name__ == "__main__":
    sys.exit(main())
