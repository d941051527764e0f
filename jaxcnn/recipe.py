"""Numbers of a training run, as a frozen value for JSON.

The defaults are the protocol of He et al. 2015 (arXiv:1512.03385), section 4.2, for CIFAR-10,
without its augmentation (`pad=4, flip=True`). It depends on the data which changes of an image keep
its class, so augmentation is off by default.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from jaxcnn.arguments import ArgumentError as ArgumentError
from jaxcnn.arguments import check_choice as check_choice
from jaxcnn.arguments import check_path
from jaxcnn.arguments import format_value as format_value


@dataclass(frozen=True)
class Recipe:
    """Numbers of one run.

    `dataclasses.replace` in a loop makes a sweep.

    Raises:
      ArgumentError: in the constructor, for an invalid value.

    Example:
      >>> from dataclasses import replace
      >>> recipe = Recipe(model="resnet20")
      >>> recipe.lr, replace(recipe, seed=1).seed
      (0.1, 1)
    """

    dataset: str = "cifar10"
    model: str = "resnet20"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Constructor options of the model.

    Such as `{"width": 8, "shortcut": "B", "dtype": "bfloat16"}`.
    """
    validation: int = 0
    """Number of training images held out.

    The paper chose its schedule on a 45k/5k split: 5000.
    """
    examples: int | None = None
    """Number of training images that `jaxcnn.subset` keeps.

    None is all that are not held out.
    """
    report: str = "test"
    """Split that is evaluated in every row.

    It is "test", or "validation" while a recipe is chosen.
    """

    loss: str = "cross-entropy"
    """Loss that is minimized.

    - "cross-entropy", for masks that of every pixel.
    - "squared": half the squared distance of the logits from the one-hot label.
    - "reconstruction": the squared distance of the output from the normalized image.
    """
    steps: int = 64_000
    batch: int = 128
    """Images in a step, over all devices."""
    order: str = "shuffled"
    """Order of the examples.

    It is "shuffled" again every epoch, or "sorted" by label, which shows why examples are shuffled.
    """
    optimizer: str = "momentum"
    """Name in `jaxcnn.OPTIMIZERS`."""
    method: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of the optimizer other than rate and momentum.

    Such as `{"b2": 0.99}` for Adam.
    """
    lr: float = 0.1
    """Learning rate."""
    schedule: str = "step"
    """Schedule of the rate, a name in `jaxcnn.SCHEDULES`."""
    stage_rates: Mapping[str, float] = field(default_factory=dict)
    """Factors of the steps of stages' parameters.

    They are such as `{"stem": 0, "stage1": 0.1}`. The default of each is 1. With 0 a stage is
    frozen: its parameters do not change, and its BN works as in test mode. `stem` are the
    parameters `stem` and `stem_...`.
    """
    drops: tuple[int, ...] = (32_000, 48_000)
    """Steps at which the "step" schedule multiplies the rate by `factor`.

    They are iterations, never epochs.
    """
    factor: float = 0.1
    warmup_lr: float | None = None
    """Rate until the training error first falls below `warmup_error`.

    The paper uses 0.01, at depth 110 only.
    """
    warmup_error: float = 0.8
    momentum: float = 0.9
    decay: float = 1e-4
    """L2 coefficient.

    `decay * w` is added to the gradient, so the penalty is decay/2 |w|^2.
    """
    decay_on: str = "kernels"
    """Parameters that are decayed.

    - "convs": kernels of convolutions.
    - "kernels": those of dense layers too.
    - "all": biases and BN too.
    """

    mean: str | tuple[float, ...] = "pixel"
    """Mean that is subtracted.

    - "pixel": the mean image of the training images.
    - "channel": their means of each channel.
    - "imagenet": ImageNet's means of each channel, which published weights expect.
    - "none".
    - Constants for images in 0..1, such as `(0.4914, 0.4822, 0.4465)`: a number for each channel,
      or one for all.
    """
    std: bool | tuple[float, ...] = False
    """Standard deviation that is divided by.

    True is that of each channel, or with mean="imagenet" ImageNet's. Constants are such as
    `(0.247, 0.243, 0.262)`. The paper divides by nothing.
    """
    crop: str = "shift"
    """Random crop.

    - "shift": by up to `pad` pixels.
    - "resized": a part of the image of another size and shape, resized to the whole (Szegedy et al.
      2014, arXiv:1409.4842, section 6). Networks are trained on ImageNet so.
    """
    least_area: float | None = None
    """Minimum fraction of the image's area with crop="resized".

    None is the paper's 0.08.
    """
    pad: int = 0
    """Pixels padded on each side before the random crop.

    There are 2 pad + 1 offsets an axis. 0 is no crop, 4 is the paper's.
    """
    fill: str = "mean"
    """Content of the padding.

    It is "mean" (zeros after the subtraction, the paper's), "black" or "reflect".
    """
    flip: bool = False
    """Mirror each image left to right with probability one half.

    The paper does so. Digits and letters lose their class.
    """

    precise_bn: int = 0
    """Training images over which BN's statistics are also averaged exactly.

    Rows have the results too. 0 is off.
    """
    train_error: str = "running"
    """Training figures of a row.

    They are "running" (of the augmented batches) or "clean" (of a pass in test mode).
    """
    every: int | None = None
    """Steps between rows, evaluations and checkpoints.

    None is one pass over the training images.
    """
    seed: int = 0

    def __post_init__(self):
        self._check_types()
        for name in ("mean", "std"):
            object.__setattr__(self, name, channel_constants(name, getattr(self, name)))
        object.__setattr__(self, "drops", tuple(self.drops))
        for name in ("options", "method", "stage_rates"):
            object.__setattr__(self, name, _freeze(dict(getattr(self, name))))
        for name, low in _INTEGERS.items():
            _check_integer(name, getattr(self, name), low)
        for name, (low, high) in _NUMBERS.items():
            _check_number(name, getattr(self, name), low, high)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if self.warmup_lr is not None:
            _check_number("warmup_lr", self.warmup_lr, 0, _HUGE)
        are_steps = all(type(step) is int and step >= 1 for step in self.drops)
        if not are_steps or sorted(set(self.drops)) != list(self.drops):
            raise ArgumentError(
                f"drops is {format_value(self.drops)}; "
                "expected increasing steps from 1 up: write drops=(32000, 48000)"
            )
        for stage, rate in self.stage_rates.items():
            _check_number(f"stage_rates of {stage}", rate, -_TINY, _HUGE)
        if self.least_area is not None:
            _check_number("least_area", self.least_area, 0, 1)
        self._check_combinations()

    def _check_combinations(self):
        if self.crop == "resized" and self.pad:
            raise ArgumentError(
                f"pad is {self.pad}, but crop is 'resized', which pads nothing; write pad=0"
            )
        if self.crop != "resized" and self.least_area is not None:
            raise ArgumentError(
                f"least_area is {self.least_area}, but crop is 'shift'; "
                "write crop='resized' and pad=0"
            )
        if self.report == "validation" and not self.validation:
            raise ArgumentError(
                "report is 'validation' but none is held out: write validation=100 as well"
            )

    def _check_types(self):
        for name in ("dataset", "model", "optimizer", "schedule"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ArgumentError(f"{name} is {format_value(value)}; expected a name in quotes")
        if not isinstance(self.flip, bool):
            raise ArgumentError(f"flip is {format_value(self.flip)}; expected True or False")
        if not isinstance(self.drops, (tuple, list)):
            raise ArgumentError(
                f"drops is {format_value(self.drops)}; "
                "expected steps in a tuple: write drops=(32000, 48000)"
            )
        for name, example in (
            ("options", '{"width": 8}'),
            ("method", '{"b2": 0.99}'),
            ("stage_rates", '{"stem": 0.1}'),
        ):
            value = getattr(self, name)
            if not _is_json_mapping(value):
                raise ArgumentError(
                    f"{name} is {format_value(value)}; "
                    f"expected plain values by name: write {example}"
                )

    def to_json(self) -> str:
        """Return the recipe as indented JSON, which `from_json` reads."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Return the recipe that `to_json` wrote.

        Raises:
          ArgumentError: the text is not JSON, or has a field that this version lacks. The message
            names the field.
        """
        try:
            values = json.loads(text)
        # Such as numbers of thousands of digits, or a thousand brackets.
        except (ValueError, RecursionError) as error:
            raise ArgumentError(
                f"the recipe is not JSON: {error}; write one with Recipe(...).to_json()"
            ) from None
        if not isinstance(values, dict):
            raise ArgumentError(
                f"the recipe is {type(values).__name__} in JSON; expected an object of fields"
            )
        names = {field.name for field in fields(cls)}
        for name in values:
            check_choice("recipe field", name, names)
        return cls(**values)

    @classmethod
    def load(cls, folder: str | Path) -> Recipe:
        """Return the recipe of a run's folder, to repeat the run.

        Raises:
          ArgumentError: `config.json` is missing or is not a recipe.
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


_MAX_FILE_BYTES = 1 << 20
_INTEGERS: dict[str, int | None] = {
    "validation": 0,
    "steps": 1,
    "batch": 1,
    "pad": 0,
    "precise_bn": 0,
    "seed": 0,
}
_INTEGERS |= {"every": None, "examples": None}
# The smallest positive float, and about the largest float32. A bound of -_TINY includes 0.
_TINY, _HUGE = math.ulp(0.0), 3e38
_NUMBERS = {
    "lr": (0, _HUGE),
    "factor": (0, 1),
    "momentum": (-_TINY, 0.9999),
    "decay": (-_TINY, _HUGE),
}
_NUMBERS["warmup_error"] = (0, 1)
_CHOICES = {
    "report": ("test", "validation"),
    "decay_on": ("convs", "kernels", "all"),
    "loss": ("cross-entropy", "squared", "reconstruction"),
    "order": ("shuffled", "sorted"),
    "crop": ("shift", "resized"),
    "fill": ("mean", "black", "reflect"),
    "train_error": ("running", "clean"),
}


_CONSTANTS = {
    "mean": ("at least 0", "(0.4914, 0.4822, 0.4465)"),
    "std": ("above 0", "(0.247, 0.243, 0.262)"),
}
MEANS = ("pixel", "channel", "imagenet", "none")
"""Names of means in `Recipe.mean`."""


def channel_constants(name: str, value: Any) -> Any:
    """Return a value as `Recipe` stores its `mean` or `std`.

    Args:
      name: "mean" or "std".
      value: for "mean" a name in `MEANS`, for "std" True or False. For both, a number or a sequence
        of numbers.

    Returns:
      Names and booleans unchanged, numbers as a tuple of floats.

    Raises:
      ArgumentError: it is anything else. Numbers above 1 are those of images in 0..255.

    Example:
      >>> channel_constants("mean", [0.5, 0.25, 0.125])
      (0.5, 0.25, 0.125)
    """
    if name == "std" and isinstance(value, bool):
        return value
    if name == "mean" and isinstance(value, str):
        return check_choice(name, value, MEANS)
    minimum, example = _CONSTANTS[name]
    names = "True, False" if name == "std" else ", ".join(map(repr, MEANS))
    numbers = value if isinstance(value, (tuple, list)) else (value,)
    are_real = [
        not isinstance(number, bool) and isinstance(number, (int, float)) for number in numbers
    ]
    low = 0.0 if name == "mean" else _TINY
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
        "a Recipe cannot be changed; expected a new one. "
        "Use dataclasses.replace(recipe, options={...})"
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


def verify_recipe(recipe: Any) -> None:
    """Check that `recipe` is a Recipe.

    Raises:
      ArgumentError: it is not.

    Example:
      >>> verify_recipe({"lr": 0.1})
      Traceback (most recent call last):
      jaxcnn.arguments.ArgumentError: recipe is a dict, {'lr': 0.1}; expected a Recipe. ...
    """
    if not isinstance(recipe, Recipe):
        raise ArgumentError(
            f"recipe is a {type(recipe).__name__}, {format_value(recipe, 40)}; expected a Recipe. "
            "Use jaxcnn.Recipe(...)."
        )


def file_name(name: str) -> str:
    """Return `name`, which must be valid for a run's folder.

    Raises:
      ArgumentError: it is not.

    Example:
      >>> file_name("resnet20-seed0")
      'resnet20-seed0'
    """
    is_text = isinstance(name, str) and name.isprintable() and not set(name) & set("/\\")
    # Bytes are counted, because file systems allow up to 255 of them.
    if not is_text or name[:1] in ("", ".", "~") or len(name.encode()) > 200:
        raise ArgumentError(
            f"run name is {format_value(name)}; "
            "expected a plain name for a folder: write 'resnet20-seed0', say"
        )
    return name


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
