"""Options, and the config that follows from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

import jaxcnn as jc
from experiments._common import DeviceOptions, FigureOptions
from jaxcnn import runs, weights
from jaxcnn.config import channel_constants, check_choice
from jaxcnn.optim import in_stage
from jaxcnn.weights.hub import is_hub_name

HEADS = ("head", "aux1", "aux2")
"""Modules that are new for new classes."""


@dataclass(frozen=True)
class Options(DeviceOptions, FigureOptions):
    """Every setting; `--preset` chooses the defaults.

    `--images` alone selects the preset `own`.
    """

    preset: Literal["photographs", "cifar10", "own"] = "own"
    """photographs: squares of three photographs. cifar10: a folder of CIFAR-10. own: a folder of
    yours, --images."""
    images: Path | None = None
    """Folder with one directory for each class; None is what the preset writes."""
    model: str = "resnet18"
    """Network, a name in jaxcnn.MODELS."""
    width: int | None = None
    """Filters of the first stage, of networks with that option; None is the network's own."""
    weights: Path | None = None
    """Published weights, a file or a name such as hf:timm/resnet18.tv_in1k; None starts from random
    numbers."""
    subtract_mean: tuple[float, ...] | None = None
    """Channels' means to subtract, of images in 0..1; None is the weights' or ImageNet's."""
    divide_std: tuple[float, ...] | None = None
    """Channels' standard deviations to divide by; None likewise."""
    train: Literal["all", "head"] = "all"
    """Layers to train: all, or the last one."""
    freeze: tuple[str, ...] = ()
    """Stages that are not trained, such as stem stage1."""
    backbone_rate: float = 0.1
    """With --weights: factor on --learning-rate for all but the last layer."""
    size: int | None = None
    """Side of the network's square input, in pixels; None is the weights' or 224."""
    resize: int | None = None
    """Pixels of the shorter side before the middle is cut out; None has the weights' ratio, or 256
    / 224."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Filter of that resizing; None is the weights' or bilinear."""
    validation: float = 0.0
    """Share, in 0..1, of each class's training images to hold out, without a val directory."""
    test: float | None = None
    """Share, in 0..1, of each class's images for the test, without a test directory; None is 0.2,
    or 0 with a val directory."""
    skip_broken: bool = False
    """Skip images that cannot be read, instead of refusing the folder."""
    epochs: float = 10
    """Passes over the training images."""
    epoch: Literal["best", "last"] = "best"
    """Network to save: of the lowest validation error (the later of equals), or of the last
    step."""
    class_weight: Literal["none", "balanced"] = "none"
    """Weight of a class's losses; balanced is n / (classes * images of the class)."""
    batch_size: int = 32
    learning_rate: float = 0.01
    """Learning rate of the last layer; it falls to 0 as a cosine."""
    optimizer: str = "momentum"
    """Optimizer, a name in jaxcnn.OPTIMIZERS."""
    weight_decay: float = 1e-4
    crop: Literal["resized", "pad", "none"] = "resized"
    """Crop of training images: a resized part of any size and shape, one of the image padded by
    size / 8, or none."""
    min_area: float = 0.25
    """Smallest part that resized takes, as a share of the image. ImageNet's 0.08 is too little for
    a few hundred images."""
    flip: bool = True
    """Mirror every other training image: not for letters and signs."""
    eval_every: int | None = None
    seed: int = 0
    """Seed of the split, the new layers and the order."""
    worst: int = 12
    """Number of mistakes to show."""
    memory: int = 2 << 30
    """Bytes of decoded images above which batches are read from disk."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    data_dir: Path | None = None
    """Folder in which cifar10 is looked for first; None is the default folders alone."""
    out: Path = Path("runs/finetune")
    """Folder for tables, figures, weights and the run."""
    tensorboard: bool = False
    plot_only: bool = False
    """Draw from the weights in --out, and train nothing."""


PRESETS = {
    "photographs": Options(
        preset="photographs",
        model="resnet20",
        width=8,
        size=48,
        resize=48,
        epochs=6,
        learning_rate=0.1,
        out=Path("runs/finetune-photographs"),
    ),
    "cifar10": Options(
        preset="cifar10",
        model="resnet20",
        width=8,
        size=32,
        resize=32,
        epochs=20,
        learning_rate=0.1,
        min_area=0.4,
        out=Path("runs/finetune-cifar10"),
    ),
    "own": Options(),
}


def check(options: Options) -> None:
    """Check that the options fit together.

    It finds all mistakes that can be found before many images are read.

    Raises:
      ArgumentError: they do not.
    """
    if options.preset == "own" and options.images is None:
        raise jc.ArgumentError(
            "--images is missing; write --images with a folder that has a directory for each class"
        )
    if options.weights is None and (options.train == "head" or options.freeze):
        flag = "--train head" if options.train == "head" else "--freeze"
        raise jc.ArgumentError(
            f"{flag} would keep random numbers as they are; write --weights with a file as well"
        )
    jc.create_model(options.model, 2, **model_kwargs(options))
    check_choice("optimizer", options.optimizer, jc.OPTIMIZERS)
    if options.weights is not None:
        check_network(options)
        weights.read_metadata(options.weights)
    check_constants(options)
    if not options.epochs > 0:
        raise jc.ArgumentError(
            f"epochs is {options.epochs}; expected more than 0: write --epochs 10"
        )
    if options.worst < 0:
        raise jc.ArgumentError(f"worst is {options.worst}; expected at least 0: write --worst 12")


def check_network(options: Options) -> None:
    """Check that weights with a name on the hub are of the model.

    Raises:
      ArgumentError: they are of another one.
    """
    name = hub_name(options)
    network = weights.network_name(name) if name else None
    if network not in (None, options.model):
        raise jc.ArgumentError(
            f"model is {options.model!r}, and {name} is of {network!r}; expected "
            f"weights of the model. Write --model {network}."
        )


def check_constants(options: Options) -> None:
    """Check the user's means and standard deviations.

    Raises:
      ArgumentError: they are invalid, or one comes without the other.
    """
    names = ("subtract_mean", "divide_std")
    chosen = [name for name in names if getattr(options, name) is not None]
    for name in chosen:
        count = len(channel_constants(name, getattr(options, name)))
        if count not in (1, 3):
            raise jc.ArgumentError(
                f"{name} has {count} numbers, and images have 3 channels; expected 1 or 3. "
                f"Write --{name.replace('_', '-')} 0.5."
            )
    if len(chosen) == 1 and hub_name(options) is None:
        (other,) = set(names) - set(chosen)
        raise jc.ArgumentError(
            f"{chosen[0]} has constants and {other} has none; expected both, or neither. "
            f"Write --{other.replace('_', '-')} as well."
        )


def hub_name(options: Options) -> str | None:
    """Return the weights' name on the hub, or None for a file and for no weights."""
    return str(options.weights) if is_hub_name(options.weights) else None


def with_preprocessing(options: Options) -> Options:
    """Return the options with the preprocessing of weights that have a name on the hub.

    What the user has chosen stays. Weights of a file leave the options as they are.

    Raises:
      WeightsError: the preprocessing cannot be downloaded, or is not one of this library's.
      ArgumentError: the repository has none, and the user has not chosen the constants.
    """
    name = hub_name(options)
    if name is None:
        return options
    if weights.network_name(name) is None:
        if options.subtract_mean and options.divide_std:
            return options
        raise jc.ArgumentError(
            f"{name} does not say how its images were normalized; expected constants. "
            "Write --subtract-mean 0.485 0.456 0.406 --divide-std 0.229 0.224 0.225, if they are "
            "ImageNet's."
        )
    source = weights.load_preprocessing(name)
    size = source.size if options.size is None else options.size
    return replace(
        options,
        size=size,
        resize=replace(source, size=size).resize if options.resize is None else options.resize,
        interpolation=options.interpolation or source.interpolation,
        subtract_mean=options.subtract_mean or source.mean,
        divide_std=options.divide_std or source.std,
    )


def input_size(options: Options) -> int:
    """Return the side of the network's input, in pixels."""
    return 224 if options.size is None else options.size


def model_kwargs(options: Options) -> dict[str, Any]:
    """Return the options of the model's constructor."""
    kwargs: dict[str, Any] = {"dtype": options.dtype} | (
        {} if options.width is None else {"width": options.width}
    )
    if options.model == "googlenet-bn" and options.weights is not None:
        # torchvision's published weights were made at means and deviations of 1/2.
        kwargs["transform_input"] = True
    return kwargs


def selects_best(options: Options, data: jc.Dataset) -> bool:
    """Return whether validation images choose the network that is saved."""
    return options.epoch == "best" and len(data.validation.labels) > 0


def reported_split(data: jc.Dataset) -> str:
    """Return the split of the tables: test, or validation where there is no test."""
    return "test" if len(data.test.labels) else "validation"


def balanced_weights(labels: np.ndarray, num_classes: int) -> list[float]:
    """Return n / (num_classes * count) for each class, as scikit-learn's "balanced".

    Args:
      labels: int [n].
      num_classes: number of classes, of which each has an image.

    Example:
      >>> balanced_weights(np.array([0, 0, 0, 1]), 2)
      [0.6666666666666666, 2.0]
    """
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise jc.ArgumentError(
            "a class has no training image to weight; write --class-weight none, or add some"
        )
    return (len(labels) / (num_classes * counts)).tolist()


def make_config(options: Options, data: jc.Dataset) -> jc.ExperimentConfig:
    """Return the run's config for the available images."""
    num_images, num_validation = len(data.train.labels), len(data.validation.labels)
    if not num_validation and not len(data.test.labels):
        raise jc.ArgumentError("there are no images to test on; write --test 0.2")
    batch_size = min(options.batch_size, num_images)
    loss_kwargs = {}
    if options.class_weight == "balanced":
        loss_kwargs["class_weights"] = balanced_weights(data.train.labels, data.num_classes)
    config = jc.ExperimentConfig(
        dataset=data.name,
        loss_kwargs=loss_kwargs,
        model=options.model,
        model_kwargs=model_kwargs(options),
        num_validation=num_validation,
        optimizer=jc.OptimizerConfig(
            options.optimizer,
            learning_rate=options.learning_rate,
            schedule="cosine",
            weight_decay=options.weight_decay,
        ),
        train=jc.TrainConfig(
            num_steps=max(1, round(options.epochs * num_images / batch_size)),
            batch_size=batch_size,
            eval_every=options.eval_every,
            eval_split="validation" if selects_best(options, data) else reported_split(data),
            augment=jc.AugmentConfig(
                padding=max(1, input_size(options) // 8) if options.crop == "pad" else 0,
                flip=options.flip,
                crop="resized" if options.crop == "resized" else "pad",
                min_area=options.min_area if options.crop == "resized" else None,
            ),
            # As published weights expect. From random numbers any will do.
            subtract_mean=options.subtract_mean or "imagenet",
            divide_std=options.divide_std or True,
            seed=options.seed,
        ),
    )
    freeze, lr_multipliers = stages(options, config, data.num_classes)
    return jc.override(config, freeze=freeze, lr_multipliers=lr_multipliers)


def stages(
    options: Options, config: jc.ExperimentConfig, num_classes: int
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Return the frozen stages, and stage -> factor on its rate.

    The backbone is slower than the head.
    """
    if options.weights is None:
        return (), {}
    names = parameter_names(runs.model_and_optimizer(config, num_classes)[0], input_size(options))
    # The first part of a module's name is its stage.
    all_stages = dict.fromkeys(name.split("_")[0] for name in names)
    for stage in options.freeze:
        if not any(in_stage(name, stage) for name in names):
            raise jc.ArgumentError(
                f"freeze has {stage!r}, of which {config.model} has nothing; it has "
                f"{', '.join(all_stages)}"
            )
    backbone = [stage for stage in all_stages if stage not in HEADS]
    is_frozen = options.train == "head" or options.backbone_rate == 0
    freeze = dict.fromkeys([*(backbone if is_frozen else ()), *options.freeze])
    if options.backbone_rate == 1:
        return tuple(freeze), {}
    trained = [name for name in names if not any(in_stage(name, stage) for stage in freeze)]
    slow = [stage for stage in backbone if any(in_stage(name, stage) for name in trained)]
    return tuple(freeze), dict.fromkeys(slow, options.backbone_rate)


def parameter_names(model: Any, size: int) -> list[str]:
    """Return the names of the first level of parameters.

    Nothing is computed.
    """
    import jax

    image = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    return list(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
