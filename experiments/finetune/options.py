"""What can be chosen, and the recipe that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jaxcnn as jc
from jaxcnn import runs, weights
from jaxcnn.optim import in_stage
from jaxcnn.recipe import check_choice

HEADS = ("head", "aux1", "aux2")
"""What is new for new classes."""


@dataclass(frozen=True)
class Options:
    """Every setting; `--preset` chooses the defaults, and `--images` alone means the preset `own`."""

    preset: Literal["photographs", "cifar10", "own"] = "own"
    images: Path | None = None
    """A folder with one directory for each class; the presets photographs and cifar10 write their own."""
    model: str = "resnet18"
    """A name in `jaxcnn.MODELS`."""
    width: int | None = None
    """Filters of the first stage, of the networks that have that option."""
    weights: Path | None = None
    """Published weights of the model; None starts from random numbers."""
    train: Literal["all", "head"] = "all"
    """`head` freezes everything but the last layer."""
    freeze: tuple[str, ...] = ()
    """Stages that stay as they are, such as stem stage1."""
    backbone_rate: float = 0.1
    """With weights: the rate of everything but the head, as a factor on `lr`."""
    size: int = 224
    """Side of the squares that the network sees, in pixels."""
    resize: int | None = None
    """What a picture's shorter side becomes before the middle is cut out; None is size * 256 / 224."""
    validation: float = 0.0
    """Share of each class's training pictures held out, where there is no val directory; they choose nothing here."""
    test: float | None = None
    """Likewise for the test, where there is no test directory; None is 0.2, or 0 if there is a val directory to test on."""
    skip_broken: bool = False
    """Leave out pictures that cannot be read, instead of refusing the folder."""
    epochs: float = 10
    batch: int = 32
    lr: float = 0.01
    """Of the head; falls to 0 as a cosine."""
    optimizer: str = "momentum"
    """A name in `jaxcnn.OPTIMIZERS`."""
    decay: float = 1e-4
    crop: Literal["resized", "shift", "none"] = "resized"
    """Of training pictures: a part of any size and shape, resized; a shift by `size` / 8; or none."""
    least_area: float = 0.25
    """The smallest part that `resized` takes. ImageNet is trained with 0.08, which a few hundred pictures do not bear."""
    flip: bool = True
    """Mirror every other training picture: not for letters and signs."""
    every: int | None = None
    """Steps between rows, tests and checkpoints; None is an epoch."""
    seed: int = 0
    """Of the split, the new layers and the order."""
    worst: int = 12
    """How many mistakes to show."""
    memory: int = 2 << 30
    """Bytes above which the decoded pictures are read from the disk, batch by batch."""
    strategy: Literal["auto", "pmap", "jit"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    data_dir: Path | None = None
    """Where preset cifar10 looks for its data first."""
    out: Path = Path("runs/finetune")
    plot_only: bool = False
    """Draw from the weights in OUT, and train nothing."""


# fmt: off
PRESETS = {
    "photographs": Options(
        preset="photographs", model="resnet20", width=8, size=48, resize=48, epochs=6, lr=0.1,
        out=Path("runs/finetune"),
    ),
    "cifar10": Options(
        preset="cifar10", model="resnet20", width=8, size=32, resize=32, epochs=20, lr=0.1, least_area=0.4,
        out=Path("runs/finetune-cifar10"),
    ),
    "own": Options(out=Path("runs/finetune-own")),
}
# fmt: on


def check(options: Options) -> None:
    """ArgumentError for options that do not fit together; all that can be told before many pictures are read."""
    if options.preset == "own" and options.images is None:
        raise jc.ArgumentError("--images is missing; write --images with a folder that has a directory for each class")
    if options.weights is None and (options.train == "head" or options.freeze):
        what = "--train head" if options.train == "head" else "--freeze"
        raise jc.ArgumentError(f"{what} would keep random numbers as they are; write --weights with a file as well")
    jc.create_model(options.model, 2, **network(options))
    check_choice("optimizer", options.optimizer, jc.OPTIMIZERS)
    if options.weights is not None:
        weights.read_metadata(options.weights)
    if not options.epochs > 0:
        raise jc.ArgumentError(f"epochs is {options.epochs}; expected more than 0: write --epochs 10")
    if options.worst < 0:
        raise jc.ArgumentError(f"worst is {options.worst}; expected at least 0: write --worst 12")


def network(options: Options) -> dict[str, Any]:
    """The options of the model's constructor."""
    chosen: dict[str, Any] = {"dtype": options.dtype} | ({} if options.width is None else {"width": options.width})
    if options.model == "googlenet-bn" and options.weights is not None:
        chosen["transform_input"] = True  # torchvision's published weights were made at means and deviations of 1/2
    return chosen


def recipe(options: Options, data: jc.Dataset) -> jc.Recipe:
    """The run's recipe, for as many pictures as there are."""
    n, held = len(data.train.labels), len(data.validation.labels)
    if not held and not len(data.test.labels):
        raise jc.ArgumentError("there are no pictures to test on; write --test 0.2")
    batch = min(options.batch, n)
    made = jc.Recipe(
        dataset=data.name,
        model=options.model,
        options=network(options),
        validation=held,
        report="test" if len(data.test.labels) else "validation",
        steps=max(1, round(options.epochs * n / batch)),
        batch=batch,
        optimizer=options.optimizer,
        lr=options.lr,
        schedule="cosine",
        decay=options.decay,
        mean="imagenet",  # as published weights expect; from random numbers any will do
        std=True,
        flip=options.flip,
        crop="resized" if options.crop == "resized" else "shift",
        least_area=options.least_area if options.crop == "resized" else None,
        pad=max(1, options.size // 8) if options.crop == "shift" else 0,
        every=options.every,
        seed=options.seed,
    )
    return replace(made, stage_rates=rates(options, made, len(data.classes)))


def rates(options: Options, made: jc.Recipe, classes: int) -> dict[str, float]:
    """Stage -> factor on its rate: the backbone slower than the head, what is frozen not at all."""
    if options.weights is None:
        return {}
    names = parameters(runs.model_and_optimizer(made, classes)[0], options.size)
    stages = dict.fromkeys(name.split("_")[0] for name in names)
    slow = 0.0 if options.train == "head" else options.backbone_rate
    found = {stage: slow for stage in stages if stage not in HEADS and slow != 1}
    for stage in options.freeze:
        if not any(in_stage(name, stage) for name in names):
            raise jc.ArgumentError(
                f"freeze has {stage!r}, of which {made.model} has nothing; it has {', '.join(stages)}"
            )
    return found | dict.fromkeys(options.freeze, 0.0)


def parameters(model: Any, size: int) -> list[str]:
    """Names of the parameters' first level; nothing is computed."""
    import jax

    image = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    return list(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
