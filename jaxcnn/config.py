"""Configuration of a run, as frozen dataclasses that convert to JSON and back.

`ExperimentConfig` names the data set and the model, and holds an `OptimizerConfig` and a
`TrainConfig`. The library's functions take the part that they use, so no fact is passed twice.

The defaults are the protocol of He et al. 2015 (arXiv:1512.03385), section 4.2, for CIFAR-10,
without its augmentation (`AugmentConfig(padding=4, flip=True)`). It depends on the data which
changes of an image keep its class, so augmentation is off by default.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from jaxcnn.arguments import ArgumentError as ArgumentError
from jaxcnn.arguments import check_boolean, check_path
from jaxcnn.arguments import check_choice as check_choice
from jaxcnn.arguments import format_value as format_value


def _default(field: dataclasses.Field) -> Any:
    make: Any = field.default_factory
    return field.default if make is dataclasses.MISSING else make()


class _Config:
    """Conversion to JSON and back, for nested dataclasses."""

    def __repr__(self) -> str:
        """Return the call with the fields that differ from their defaults.

        `to_json` has all fields. Texts of more than 100 characters have a line for each field.
        """
        name = type(self).__name__
        texts = [
            f"{field.name}={text}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            # As text, so that 1 is not True, and 0.0 not -0.0.
            if (text := repr(getattr(self, field.name))) != repr(_default(field))
        ]
        line = f"{name}({', '.join(texts)})"
        if len(line) <= 100:
            return line
        lines = [f"  {text},\n".replace("\n", "\n  ").removesuffix("  ") for text in texts]
        return f"{name}(\n{''.join(lines)})"

    def to_json(self) -> str:
        """Return the config as indented JSON, which `from_json` reads."""
        return json.dumps(as_dict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the config that `to_json` wrote.

        Raises:
          ArgumentError: the text is not JSON, or has a field that this version lacks. The message
            names the field.
        """
        try:
            values = json.loads(text)
        # Such as numbers of thousands of digits, or a thousand brackets.
        except (ValueError, RecursionError) as error:
            raise ArgumentError(
                f"the config is not JSON: {error}; write one with {cls.__name__}(...).to_json()"
            ) from None
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the config of nested plain values, as `json.loads` returns them.

        Args:
          values: by field. Missing fields have their defaults.

        Raises:
          ArgumentError: a value is invalid, or a field does not exist.

        Example:
          >>> ExperimentConfig.from_dict({"model": "lenet", "train": {"seed": 1}}).train.seed
          1
        """
        if not isinstance(values, Mapping):
            raise ArgumentError(
                f"{cls.__name__} is {format_value(values)} in JSON; expected an object of fields"
            )
        names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        kwargs = {}
        for name, value in values.items():
            check_choice(f"{cls.__name__} field", name, names)
            section = _SECTIONS.get(cls.__name__, {}).get(name)
            kwargs[name] = section.from_dict(value) if section else value
        return cls(**kwargs)


@dataclass(frozen=True, repr=False)
class AugmentConfig(_Config):
    """Distribution of augmented images, by default the image itself.

    Attributes:
      padding: pixels padded on each side before the random crop. There are 2 padding + 1 offsets an
        axis. 0 is no crop, 4 is the paper's.
      flip: mirror each image left to right with probability one half. The paper does so. Digits and
        letters lose their class.
      pad_value: content of the padding: "mean" (zeros after the subtraction, the paper's),
        "black" or "reflect".
      crop: kind of the random crop.

        - "pad": of the padded image, at the image's size.
        - "resized": a part of the image of another size and shape, resized to the whole (Szegedy et
          al. 2014, arXiv:1409.4842, section 6). Networks are trained on ImageNet so.

      min_area: minimum fraction of the image's area with crop="resized". None is the paper's 0.08.

    Raises:
      ArgumentError: in the constructor, for an invalid value.

    Example:
      >>> AugmentConfig(padding=4, flip=True).pad_value
      'mean'
    """

    padding: int = 0
    flip: bool = False
    pad_value: str = "mean"
    crop: str = "pad"
    min_area: float | None = None

    def __post_init__(self):
        _unwrap_numpy(self)
        _check_integer("padding", self.padding, 0)
        check_boolean("flip", self.flip)
        check_choice("pad_value", self.pad_value, ("mean", "black", "reflect"))
        check_choice("crop", self.crop, ("pad", "resized"))
        if self.min_area is not None:
            _check_number("min_area", self.min_area, 0, 1)
        if self.crop == "resized" and self.padding:
            raise ArgumentError(
                f"padding is {self.padding}, but crop is 'resized', which pads nothing; "
                "write padding=0"
            )
        if self.crop != "resized" and self.min_area is not None:
            raise ArgumentError(
                f"min_area is {self.min_area}, but crop is 'pad'; "
                "write crop='resized' and padding=0"
            )


@dataclass(frozen=True, repr=False)
class OptimizerConfig(_Config):
    """Optimizer, its numbers and its learning-rate schedule.

    Attributes:
      name: name in `jaxcnn.OPTIMIZERS`.
      learning_rate: rate before the schedule lowers it.
      schedule: schedule of the rate, a name in `jaxcnn.SCHEDULES`.
      milestones: steps at which the "step" schedule multiplies the rate by `gamma`. They are
        iterations, never epochs. Those at the last step or beyond it change nothing.
      gamma: factor of the rate at each milestone.
      warmup_lr: rate until the training error first falls below `warmup_error`. The paper uses
        0.01, at depth 110 only.
      warmup_error: training error that ends the warm-up, in 0..1.
      momentum: share of the last update that is kept.
      weight_decay: L2 coefficient. `weight_decay * w` is added to the gradient, so the penalty is
        weight_decay/2 |w|^2.
      decay_mask: parameters that are decayed.

        - "convs": kernels of convolutions.
        - "kernels": those of dense layers too.
        - "all": biases and BN too.

      lr_multipliers: factors of the updates of stages' parameters, by stage, such as
        `{"stem": 0.01, "stage1": 0.1}`. The default of each is 1. `stem` are the parameters `stem`
        and `stem_...`. `TrainConfig.freeze` freezes a stage.
      optimizer_kwargs: numbers of the optimizer other than rate and momentum, such as
        `{"b2": 0.99}` for Adam.
      ema_decay: decay of the parameters' moving average, at which the network is evaluated. It is
        that of `jaxcnn.optim.with_ema`, such as 0.999. 0 is no average.

    Raises:
      ArgumentError: in the constructor, for an invalid value.

    Example:
      >>> OptimizerConfig("adam", learning_rate=1e-3, optimizer_kwargs={"b2": 0.99}).momentum
      0.9
    """

    name: str = "momentum"
    learning_rate: float = 0.1
    schedule: str = "step"
    milestones: tuple[int, ...] = (32_000, 48_000)
    gamma: float = 0.1
    warmup_lr: float | None = None
    warmup_error: float = 0.8
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_mask: str = "kernels"
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)
    optimizer_kwargs: Mapping[str, Any] = field(default_factory=dict)
    ema_decay: float = 0.0

    def __post_init__(self):
        _unwrap_numpy(self)
        _check_names(self, ("name", "schedule"))
        if not isinstance(self.milestones, (tuple, list)):
            raise ArgumentError(
                f"milestones is {format_value(self.milestones)}; "
                "expected steps in a tuple: write milestones=(32000, 48000)"
            )
        _freeze_mapping(self, "optimizer_kwargs", '{"b2": 0.99}')
        _freeze_mapping(self, "lr_multipliers", '{"stem": 0.1}')
        _set(self, "milestones", tuple(self.milestones))
        _check_number("learning_rate", self.learning_rate, 0, _HUGE)
        _check_number("gamma", self.gamma, 0, 1)
        _check_number("momentum", self.momentum, -_TINY, 0.9999)
        _check_number("weight_decay", self.weight_decay, -_TINY, _HUGE)
        _check_number("warmup_error", self.warmup_error, 0, 1)
        _check_number("ema_decay", self.ema_decay, -_TINY, 0.999999)
        check_choice("decay_mask", self.decay_mask, ("convs", "kernels", "all"))
        if self.warmup_lr is not None:
            _check_number("warmup_lr", self.warmup_lr, 0, _HUGE)
        are_steps = all(type(step) is int and step >= 1 for step in self.milestones)
        if not are_steps or sorted(set(self.milestones)) != list(self.milestones):
            raise ArgumentError(
                f"milestones is {format_value(self.milestones)}; "
                "expected increasing steps from 1 up: write milestones=(32000, 48000)"
            )
        for stage, multiplier in self.lr_multipliers.items():
            if type(multiplier) in (int, float) and multiplier == 0:
                raise ArgumentError(
                    f"lr_multipliers of {stage} is 0; expected a number above 0. "
                    f"Freeze the stage: TrainConfig(freeze=({stage!r},))."
                )
            _check_number(f"lr_multipliers of {stage}", multiplier, 0, _HUGE)


@dataclass(frozen=True, repr=False)
class TrainConfig(_Config):
    """Numbers of training other than the optimizer's.

    Attributes:
      num_steps: steps of the whole run.
      batch_size: images in a step, over all devices.
      eval_every: steps between rows, evaluations and checkpoints. None is one pass over the
        training images.
      eval_split: split that is evaluated in every row: "test", or "validation" while a config is
        chosen.
      augment: random changes of the training images.
      subtract_mean: mean that is subtracted from images.

        - "pixel": the mean image of the training images.
        - "channel": their means of each channel.
        - "imagenet": ImageNet's means of each channel, which published weights expect.
        - "none".
        - Constants for images in 0..1, such as `(0.4914, 0.4822, 0.4465)`: a number for each
          channel, or one for all.

      divide_std: standard deviation that images are divided by. True is that of each channel, or
        with subtract_mean="imagenet" ImageNet's. Constants are such as `(0.247, 0.243, 0.262)`. The
        paper divides by nothing.
      order: order of the examples: "shuffled" again every epoch, or "sorted" by label, which shows
        why examples are shuffled.
      freeze: stages whose parameters do not change, and whose BN works as in test mode, such as
        `("stem", "stage1")`. `stem` are the parameters `stem` and `stem_...`. The optimizer has no
        state for them.
      recompute_batch_stats: training images over which BN's statistics are also averaged exactly.
        Rows have the results too. 0 is off.
      train_metrics: training figures of a row: "running" (of the augmented batches) or
        "clean" (of a pass in test mode).
      seed: seed of the parameters, of the order of the examples and of the augmentation.

    Raises:
      ArgumentError: in the constructor, for an invalid value.

    Example:
      >>> config = TrainConfig(num_steps=60, augment=AugmentConfig(padding=1))
      >>> override(config, padding=2, seed=1).augment.padding
      2
    """

    num_steps: int = 64_000
    batch_size: int = 128
    eval_every: int | None = None
    eval_split: str = "test"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    subtract_mean: str | tuple[float, ...] = "pixel"
    divide_std: bool | tuple[float, ...] = False
    order: str = "shuffled"
    freeze: tuple[str, ...] = ()
    recompute_batch_stats: int = 0
    train_metrics: str = "running"
    seed: int = 0

    def __post_init__(self):
        _unwrap_numpy(self)
        _check_integer("num_steps", self.num_steps, 1)
        _check_integer("batch_size", self.batch_size, 1)
        _check_integer("eval_every", self.eval_every, None)
        _check_integer("recompute_batch_stats", self.recompute_batch_stats, 0)
        _check_integer("seed", self.seed, 0)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        _check_section("augment", self.augment, AugmentConfig)
        for name in ("subtract_mean", "divide_std"):
            _set(self, name, channel_constants(name, getattr(self, name)))
        check_freeze(self.freeze)
        _set(self, "freeze", tuple(self.freeze))


@dataclass(frozen=True, repr=False)
class ExperimentConfig(_Config):
    """Config of a run: data, model, optimizer and training.

    `override` in a loop makes a sweep.

    Attributes:
      dataset: name in `jaxcnn.DATASETS`, or of an own data set.
      model: name that `jaxcnn.create_model` takes, or of an own model.
      model_kwargs: keyword arguments of `jaxcnn.create_model`, such as
        `{"width": 8, "shortcut": "B", "dtype": "bfloat16"}`.
      num_validation: number of training images held out. The paper chose its schedule on a 45k/5k
        split: 5000.
      max_train_examples: number of training images that `jaxcnn.subset` keeps. None is all that are
        not held out.
      loss: name in `jaxcnn.LOSSES`.

        - "cross-entropy", for masks that of every pixel.
        - "squared": half the squared distance of the logits from the one-hot label.
        - "binary-cross-entropy": that of each of an image's labels.
        - "reconstruction": the squared distance of the output from the normalized image.

      loss_kwargs: keyword arguments of `jaxcnn.create_loss`, such as `{"label_smoothing": 0.1}`.
      augmentation: description of a function that augments in place of `train.augment`, in records.
        None is `train.augment`. A function itself is an argument of `jaxcnn.train`.
      optimizer: the optimizer and its schedule.
      train: numbers of training other than the optimizer's.

    Raises:
      ArgumentError: in the constructor, for an invalid value.

    Example:
      >>> config = ExperimentConfig(model="resnet20", train=TrainConfig(num_steps=60))
      >>> config.optimizer.learning_rate, override(config, seed=1).train.seed
      (0.1, 1)
    """

    dataset: str = "cifar10"
    model: str = "resnet20"
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_validation: int = 0
    max_train_examples: int | None = None
    loss: str = "cross-entropy"
    loss_kwargs: Mapping[str, Any] = field(default_factory=dict)
    augmentation: str | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        _unwrap_numpy(self)
        _check_names(self, ("dataset", "model", "loss"))
        _freeze_mapping(self, "model_kwargs", '{"width": 8}')
        _freeze_mapping(self, "loss_kwargs", '{"label_smoothing": 0.1}')
        if self.augmentation is not None:
            _check_names(self, ("augmentation",))
        _check_integer("num_validation", self.num_validation, 0)
        _check_integer("max_train_examples", self.max_train_examples, None)
        _check_section("optimizer", self.optimizer, OptimizerConfig)
        _check_section("train", self.train, TrainConfig)
        if self.train.eval_split == "validation" and not self.num_validation:
            raise ArgumentError(
                "eval_split is 'validation' but none is held out: write num_validation=100 as well"
            )

    @classmethod
    def load(cls, folder: str | Path) -> ExperimentConfig:
        """Return the config of a run's folder, to repeat the run.

        Raises:
          ArgumentError: `config.json` is missing or is not a config.
        """
        path = check_path("folder", folder) / "config.json"
        # A pipe or a device may have no end.
        if not path.is_file():
            raise ArgumentError(f"{path} is no file; expected the folder of a run, which has one")
        try:
            num_bytes = path.stat().st_size
            if num_bytes > _MAX_FILE_BYTES:
                raise ArgumentError(f"it has {num_bytes} bytes, expected at most {_MAX_FILE_BYTES}")
            return cls.from_json(path.read_text("utf-8"))
        # ValueErrors are ArgumentErrors, and those of bytes that are not text.
        except (OSError, ValueError) as error:
            raise ArgumentError(f"{path} cannot be read: {error}") from None


_SECTIONS: dict[str, dict[str, Any]] = {
    "ExperimentConfig": {"optimizer": OptimizerConfig, "train": TrainConfig},
    "TrainConfig": {"augment": AugmentConfig},
}
"""Class -> its fields that are configs -> their classes."""
_PATHS: dict[tuple[type, type], str] = {
    (ExperimentConfig, OptimizerConfig): "config.optimizer",
    (ExperimentConfig, TrainConfig): "config.train",
    (ExperimentConfig, AugmentConfig): "config.train.augment",
    (TrainConfig, AugmentConfig): "config.augment",
}
"""Class of a config, class of a part -> the part."""
ConfigT = TypeVar("ConfigT", AugmentConfig, OptimizerConfig, TrainConfig, ExperimentConfig)


def override(config: ConfigT, **changes: Any) -> ConfigT:
    """Return a config with fields of any depth changed.

    Args:
      config: any of the four.
      changes: values by the name of a field, wherever it is. `optimizer="adam"` is short for
        `name="adam"`.

    Raises:
      ArgumentError: there is no such field (the message has the nearest), or a value is invalid.

    Example:
      >>> config = override(ExperimentConfig(), learning_rate=0.3, padding=4, seed=1)
      >>> config.optimizer.learning_rate, config.train.augment.padding, config.train.seed
      (0.3, 4, 1)
    """
    if not isinstance(config, _Config):
        raise ArgumentError(
            f"config is {format_value(config)}; expected a config. Use jaxcnn.ExperimentConfig()."
        )
    names = field_names(config)
    if "name" in names and isinstance(changes.get("optimizer"), str):
        if "name" in changes:
            raise ArgumentError("optimizer and name are the same field; expected one of them")
        changes["name"] = changes.pop("optimizer")
    for name in changes:
        if "." in name and (last := name.rpartition(".")[2]) in names:
            raise ArgumentError(
                f"{type(config).__name__} field is {name!r}; expected the name alone, wherever the "
                f"field is. Write override(config, {last}=...)."
            )
        check_choice(f"{type(config).__name__} field", name, names)
    own = {field.name for field in dataclasses.fields(config)}
    kwargs = {name: value for name, value in changes.items() if name in own}
    for section, kind in _SECTIONS.get(type(config).__name__, {}).items():
        names = field_names(getattr(config, section))
        if inner := {n: v for n, v in changes.items() if n not in own and n in names}:
            part = kwargs.get(section, getattr(config, section))
            _check_section(section, part, kind)
            kwargs[section] = override(part, **inner)
    return dataclasses.replace(config, **kwargs)


def field_names(config: Any) -> set[str]:
    """Return the names of a config's fields, at every depth.

    Example:
      >>> sorted(field_names(TrainConfig()) - field_names(AugmentConfig()))[:3]
      ['augment', 'batch_size', 'divide_std']
    """
    names = {field.name for field in dataclasses.fields(config)}
    sections = _SECTIONS.get(type(config).__name__, {})
    return names.union(*(field_names(getattr(config, name)) for name in sections))


_LATER_FIELDS: dict[str, dict[str, Any]] = {
    "ExperimentConfig": {"augmentation": None},
    "OptimizerConfig": {"ema_decay": 0.0},
}
"""Class -> its fields that the first records lack -> their defaults."""


def as_dict(config: Any, *, all_fields: bool = False) -> dict[str, Any]:
    """Return a config as nested plain values, which `from_dict` takes.

    Args:
      config: any of the four.
      all_fields: with the fields that came later, also at their defaults. They are left out of
        records there, so that the same run has the same record in every version.

    Example:
      >>> as_dict(ExperimentConfig())["train"]["augment"]["padding"]
      0
    """
    values = json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))
    if not all_fields:
        _leave_out_later_defaults(config, values)
    return values


def _leave_out_later_defaults(config: Any, values: dict[str, Any]) -> None:
    kind = type(config).__name__
    for name, default in _LATER_FIELDS.get(kind, {}).items():
        if values[name] == default:
            del values[name]
    for section in _SECTIONS.get(kind, {}):
        _leave_out_later_defaults(getattr(config, section), values[section])


_MAX_FILE_BYTES = 1 << 20
# The smallest positive float, and about the largest float32. A bound of -_TINY includes 0.
_TINY, _HUGE = math.ulp(0.0), 3e38
_CHOICES = {
    "eval_split": ("test", "validation"),
    "order": ("shuffled", "sorted"),
    "train_metrics": ("running", "clean"),
}


_CONSTANTS = {
    "subtract_mean": ("at least 0", "(0.4914, 0.4822, 0.4465)"),
    "divide_std": ("above 0", "(0.247, 0.243, 0.262)"),
}
MEANS = ("pixel", "channel", "imagenet", "none")
"""Names of means in `TrainConfig.subtract_mean`."""


def channel_constants(name: str, value: Any) -> Any:
    """Return a value as `TrainConfig` stores its `subtract_mean` or `divide_std`.

    Args:
      name: "subtract_mean" or "divide_std".
      value: for "subtract_mean" a name in `MEANS`, for "divide_std" True or False. For both, a
        number or a sequence of numbers.

    Returns:
      Names and booleans unchanged, numbers as a tuple of floats.

    Raises:
      ArgumentError: it is anything else. Numbers above 1 are those of images in 0..255.

    Example:
      >>> channel_constants("subtract_mean", [0.5, 0.25, 0.125])
      (0.5, 0.25, 0.125)
    """
    if name == "divide_std" and isinstance(value, bool):
        return value
    if name == "subtract_mean" and isinstance(value, str):
        return check_choice(name, value, MEANS)
    minimum, example = _CONSTANTS[name]
    names = "True, False" if name == "divide_std" else ", ".join(map(repr, MEANS))
    numbers = value if isinstance(value, (tuple, list)) else (value,)
    are_real = [
        not isinstance(number, bool) and isinstance(number, (int, float)) for number in numbers
    ]
    low = 0.0 if name == "subtract_mean" else _TINY
    if not are_real or not all(are_real) or not all(low <= number <= 1 for number in numbers):
        is_of_bytes = (
            all(are_real)
            and all(0 <= number <= 255 for number in numbers)
            and max(numbers, default=0) > 1
        )
        hint = "Divide them by 255" if is_of_bytes else f"Use {name}={example}"
        raise ArgumentError(
            f"{name} is {format_value(value)}; "
            f"expected {names} or numbers {minimum} and at most 1, "
            f"one for each channel. {hint}."
        )
    return tuple(float(number) for number in numbers)


def _refuse(self, *args: Any, **kwargs: Any) -> Any:
    raise TypeError(
        "a config cannot be changed; expected a new one. Use override(config, model_kwargs={...})"
    )


class FrozenDict(dict):
    """A dict that cannot be changed; `copy()` returns a plain dict."""

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    # Else pickle and copy would set the items one by one.
    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


class FrozenList(list):
    """A list that cannot be changed; `copy()` returns a plain list."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = extend = insert = pop = _refuse
    remove = clear = sort = reverse = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenList, (list(self),)


def _freeze(value: Any) -> Any:
    """Copy mappings and lists to equal frozen ones, at every depth."""
    if isinstance(value, Mapping):
        return FrozenDict({name: _freeze(item) for name, item in value.items()})
    return FrozenList(map(_freeze, value)) if isinstance(value, list) else value


def check_freeze(freeze: Any) -> None:
    """Check that `freeze` is a sequence of names of stages.

    Raises:
      ArgumentError: it is not.
    """
    is_sequence = isinstance(freeze, (tuple, list))
    if not is_sequence or not all(isinstance(stage, str) for stage in freeze):
        raise ArgumentError(
            f"freeze is {format_value(freeze)}; "
            "expected names of stages in a tuple: write freeze=('stem',)"
        )


def verify_config(config: Any, kind: type, name: str = "config") -> None:
    """Check that `config` is of the class `kind`.

    Raises:
      ArgumentError: it is not.

    Example:
      >>> verify_config({"seed": 1}, TrainConfig)
      Traceback (most recent call last):
      jaxcnn.arguments.ArgumentError: config is a dict, {'seed': 1}; expected a TrainConfig. ...
    """
    if isinstance(config, kind):
        return
    expression = _PATHS.get((type(config), kind), f"jaxcnn.{kind.__name__}(...)")
    raise ArgumentError(
        f"{name} is {_with_article(type(config).__name__)}, {format_value(config, 40)}; "
        f"expected {_with_article(kind.__name__)}. Use {expression}."
    )


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOaeio' else 'a'} {noun}"


def _set(config: Any, name: str, value: Any) -> None:
    """Set a field of a frozen dataclass, in its `__post_init__`."""
    object.__setattr__(config, name, value)


def _check_section(name, value, kind):
    if not isinstance(value, kind):
        hint = ""
        if kind is AugmentConfig and (callable(value) or isinstance(value, str)):
            hint = ", and jaxcnn.train(..., augment=function) for any other augmentation"
        raise ArgumentError(
            f"{name} is {format_value(value, 60)}; expected {kind.__name__}(...). "
            f"Use {name}=jaxcnn.{kind.__name__}(){hint}."
        )


def _unwrap_numpy(config):
    """Make Python's numbers of NumPy's in fields and tuples, as JSON needs them."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if isinstance(value, tuple):
            value = tuple(map(_to_python, value))
        elif isinstance(value, list):
            value = list(map(_to_python, value))
        _set(config, item.name, _to_python(value))


def _to_python(value):
    return value.item() if isinstance(value, np.generic) else value


def _check_names(config, names):
    for name in names:
        if not isinstance(value := getattr(config, name), str):
            raise ArgumentError(f"{name} is {format_value(value)}; expected a name in quotes")


def _freeze_mapping(config, name, example):
    value = getattr(config, name)
    if not _is_json_mapping(value):
        raise ArgumentError(
            f"{name} is {format_value(value)}; expected plain values by name: write {example}"
        )
    _set(config, name, _freeze(dict(value)))


def _is_json_mapping(value: Any) -> bool:
    """Check if a value is a mapping for JSON, with limited nesting."""
    try:
        text = json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    num_brackets = text.count("[") + text.count("{")
    return all(isinstance(name, str) for name in dict(value)) and num_brackets < 100


def _check_integer(name, value, low):
    if low is None and value is None:
        return
    low = 1 if low is None else low
    if type(value) is not int or value < low:
        raise ArgumentError(
            f"{name} is {format_value(value)}; expected a whole number of at least {low}"
        )
    # JAX's keys repeat there, so another seed would be the same run.
    if value >= 2**32:
        raise ArgumentError(f"{name} is {format_value(value)}; expected a whole number below 2^32")


def _check_number(name, value, low, high):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and low < value <= high):
        upper = "" if high == _HUGE else f" and at most {high:g}"
        lower = "of at least 0" if low < 0 else "above 0"
        raise ArgumentError(
            f"{name} is {format_value(value)}; expected a finite number {lower}{upper}"
        )
