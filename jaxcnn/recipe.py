"""Recipe: every number of a training run, in one frozen, JSON-able value that refuses impossible numbers at once.

The defaults are the protocol of He et al. 2015 (arXiv:1512.03385), section 4.2, for CIFAR-10, without its augmentation:
which changes of an image keep its class depends on the data, so they are off unless asked for (`pad=4, flip=True` there).
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
    """The numbers of one run. Sweeps are `dataclasses.replace` in a loop.

    Raises:
      ArgumentError: in the constructor, for any value that could not be trained with.

    Example:
      >>> from dataclasses import replace
      >>> recipe = Recipe(model="resnet20")
      >>> recipe.lr, replace(recipe, seed=1).seed
      (0.1, 1)
    """

    dataset: str = "cifar10"
    model: str = "resnet20"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Constructor options of the model, such as `{"width": 8, "shortcut": "B", "dtype": "bfloat16"}`."""
    validation: int = 0
    """Training images held out. The paper chose its schedule on a 45k/5k split: 5000."""
    examples: int | None = None
    """Training images kept by `jaxcnn.subset`; None is all that are not held out."""
    report: str = "test"
    """The split measured in every row: "test", or "validation" while choosing a recipe."""

    loss: str = "cross-entropy"
    """What is minimised: "cross-entropy" (where labels are masks, of every pixel); "squared", half the squared distance of the
    logits from the one-hot label; or "reconstruction", the squared distance of the output from the normalised image."""
    steps: int = 64_000
    batch: int = 128
    """Images a step, over all devices."""
    order: str = "shuffled"
    """Of the examples: "shuffled" anew every epoch, or "sorted" by label, which shows why one shuffles."""
    optimizer: str = "momentum"
    """A name in `jaxcnn.OPTIMIZERS`."""
    method: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of the optimiser beside rate and momentum, such as `{"b2": 0.99}` for Adam."""
    lr: float = 0.1
    schedule: str = "step"
    """What becomes of the rate: a name in `jaxcnn.SCHEDULES`."""
    stage_rates: Mapping[str, float] = field(default_factory=dict)
    """Factor on the steps of a stage's parameters, such as `{"stem": 0, "stage1": 0.1}`; 1 where none is given. 0 freezes
    the stage: its parameters stay, and its BN works as in test. `stem` is the parameters `stem` and `stem_...`."""
    drops: tuple[int, ...] = (32_000, 48_000)
    """Steps at which the "step" schedule multiplies the rate by `factor`: iterations, never epochs."""
    factor: float = 0.1
    warmup_lr: float | None = None
    """Rate until the training error first falls below `warmup_error`; the paper uses 0.01 at depth 110 only."""
    warmup_error: float = 0.8
    momentum: float = 0.9
    decay: float = 1e-4
    """L2 coefficient: `decay * w` joins the gradient (so the penalty is decay/2 |w|^2)."""
    decay_on: str = "kernels"
    """What is decayed: "convs" (convolution kernels), "kernels" (and dense ones) or "all" (biases, BN too)."""

    mean: str | tuple[float, ...] = "pixel"
    """What is subtracted: the training "pixel" mean image, the "channel" means, "imagenet"'s channel means (as published
    weights expect), "none", or constants of your own for images in 0..1, such as `(0.4914, 0.4822, 0.4465)`: one number for
    each channel, or one for all."""
    std: bool | tuple[float, ...] = False
    """What is divided by: True for the channels' standard deviation (with mean="imagenet", ImageNet's), or constants of your
    own, such as `(0.247, 0.243, 0.262)`. The paper divides by nothing."""
    crop: str = "shift"
    """The random crop: "shift" by up to `pad` pixels, or "resized", a part of the image at another size and shape, resized
    to the whole (Szegedy et al. 2014, arXiv:1409.4842, section 6), as networks are trained on ImageNet."""
    least_area: float | None = None
    """With crop="resized", the smallest part of the image's area; None is the paper's 0.08."""
    pad: int = 0
    """Pixels padded on each side before the random crop (2 pad + 1 offsets an axis); 0 is no crop, 4 the paper's."""
    fill: str = "mean"
    """What the padding holds: "mean" (zeros after subtraction, the paper's), "black" or "reflect"."""
    flip: bool = False
    """Mirror each image left to right with probability one half, as the paper does; digits and letters lose their class."""

    precise_bn: int = 0
    """Training images over which BN's test statistics are also averaged exactly (and reported beside); 0 is off."""
    train_error: str = "running"
    """Training figures of a row: "running" (augmented batches as trained on) or "clean" (a test-mode pass)."""
    every: int | None = None
    """Steps between rows, evaluations and checkpoints; None is one pass over the training images."""
    seed: int = 0

    def __post_init__(self):
        self._types()
        for name in ("mean", "std"):
            object.__setattr__(self, name, channel_constants(name, getattr(self, name)))
        object.__setattr__(self, "drops", tuple(self.drops))
        for name in ("options", "method", "stage_rates"):
            object.__setattr__(self, name, _frozen(dict(getattr(self, name))))
        for name, low in _INTEGERS.items():
            _integer(name, getattr(self, name), low)
        for name, (low, high) in _NUMBERS.items():
            _number(name, getattr(self, name), low, high)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if self.warmup_lr is not None:
            _number("warmup_lr", self.warmup_lr, 0, _HUGE)
        if any(type(d) is not int or d < 1 for d in self.drops) or sorted(set(self.drops)) != list(self.drops):
            found = format_value(self.drops)
            raise ArgumentError(f"drops is {found}; expected increasing steps from 1 up: write drops=(32000, 48000)")
        for stage, rate in self.stage_rates.items():
            _number(f"stage_rates of {stage}", rate, -_TINY, _HUGE)
        if self.least_area is not None:
            _number("least_area", self.least_area, 0, 1)
        self._fits()

    def _fits(self):
        """Settings that speak of each other."""
        if self.crop == "resized" and self.pad:
            raise ArgumentError(f"pad is {self.pad}, but crop is 'resized', which pads nothing; write pad=0")
        if self.crop != "resized" and self.least_area is not None:
            raise ArgumentError(f"least_area is {self.least_area}, but crop is 'shift'; write crop='resized' and pad=0")
        if self.report == "validation" and not self.validation:
            raise ArgumentError("report is 'validation' but none is held out: write validation=5000 as well")

    def _types(self):
        for name in ("dataset", "model", "optimizer", "schedule"):
            if not isinstance(getattr(self, name), str):
                raise ArgumentError(f"{name} is {format_value(getattr(self, name))}; expected a name in quotes")
        if not isinstance(self.flip, bool):
            raise ArgumentError(f"flip is {format_value(self.flip)}; expected True or False")
        if not isinstance(self.drops, (tuple, list)):
            raise ArgumentError(
                f"drops is {format_value(self.drops)}; expected steps in a tuple: write drops=(32000, 48000)"
            )
        for name, like in (("options", '{"width": 8}'), ("method", '{"b2": 0.99}'), ("stage_rates", '{"stem": 0.1}')):
            if not _plain(getattr(self, name)):
                there = format_value(getattr(self, name))
                raise ArgumentError(f"{name} is {there}; expected plain values by name: write {like}")

    def to_json(self) -> str:
        """The recipe as indented JSON; `from_json` gives it back."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that `to_json` wrote; ArgumentError names a field this version does not know."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, a thousand brackets
            raise ArgumentError(f"the recipe is not JSON: {error}; write one with Recipe(...).to_json()") from None
        if not isinstance(values, dict):
            raise ArgumentError(f"the recipe is {type(values).__name__} in JSON; expected an object of fields")
        known = {f.name for f in fields(cls)}
        for name in values:
            check_choice("recipe field", name, known)
        return cls(**values)

    @classmethod
    def load(cls, folder: str | Path) -> Recipe:
        """The recipe of a run folder, so that the run can be made again; ArgumentError if `config.json` is none."""
        path = check_path("folder", folder) / "config.json"
        if not path.is_file():  # nothing, or a pipe or a device, which may never end
            raise ArgumentError(f"{path} is no file; expected the folder of a run, which has one")
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise ArgumentError(f"it has {path.stat().st_size} bytes, expected at most {_LARGEST_FILE}")
            return cls.from_json(path.read_text("utf-8"))
        except (OSError, ValueError) as error:  # among them ArgumentError and bytes that are no text
            raise ArgumentError(f"{path} cannot be read: {error}") from None


_LARGEST_FILE = 1 << 20
_INTEGERS: dict[str, int | None] = {"validation": 0, "steps": 1, "batch": 1, "pad": 0, "precise_bn": 0, "seed": 0}
_INTEGERS |= {"every": None, "examples": None}
_TINY, _HUGE = math.ulp(0.0), 3e38  # the least step below 0, and what float32 can hold
_NUMBERS = {"lr": (0, _HUGE), "factor": (0, 1), "momentum": (-_TINY, 0.9999), "decay": (-_TINY, _HUGE)}
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


_CONSTANTS = {"mean": ("at least 0", "(0.4914, 0.4822, 0.4465)"), "std": ("above 0", "(0.247, 0.243, 0.262)")}
MEANS = ("pixel", "channel", "imagenet", "none")
"""The names that `Recipe.mean` takes."""


def channel_constants(name: str, value: Any) -> Any:
    """Return a name, a switch or constants as `Recipe` stores its `mean` or `std`.

    Args:
      name: "mean" or "std".
      value: for "mean" a name in `MEANS`, for "std" True or False; for both a number or a sequence of numbers.

    Returns:
      The name or switch unchanged, numbers as a tuple of floats.

    Raises:
      ArgumentError: for anything else. Numbers beyond 1 are those of images in 0..255.

    Example:
      >>> channel_constants("mean", [0.5, 0.25, 0.125])
      (0.5, 0.25, 0.125)
    """
    if name == "std" and isinstance(value, bool):
        return value
    if name == "mean" and isinstance(value, str):
        return check_choice(name, value, MEANS)
    least, example = _CONSTANTS[name]
    names = "True, False" if name == "std" else ", ".join(map(repr, MEANS))
    numbers = value if isinstance(value, (tuple, list)) else (value,)
    real = [not isinstance(each, bool) and isinstance(each, (int, float)) for each in numbers]
    low = 0.0 if name == "mean" else _TINY
    if not real or not all(real) or not all(low <= each <= 1 for each in numbers):
        large = all(real) and all(0 <= each <= 255 for each in numbers) and max(numbers, default=0) > 1
        hint = "Divide them by 255" if large else f"Use {name}={example}"
        raise ArgumentError(
            f"{name} is {format_value(value)}; expected {names} or numbers {least} and at most 1, one for each channel. {hint}."
        )
    return tuple(float(each) for each in numbers)


def _refuse(self, *args: Any, **kwargs: Any) -> Any:
    raise TypeError("a Recipe cannot be changed; expected a new one. Use dataclasses.replace(recipe, options={...})")


class FrozenDict(dict):
    """A dict that refuses changes; `copy()` returns a plain dict."""

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:  # pickle and copy would otherwise set the items one by one
        return FrozenDict, (dict(self),)


class FrozenList(list):
    """A list that refuses changes; `copy()` returns a plain list."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = extend = insert = pop = remove = clear = _refuse
    sort = reverse = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenList, (list(self),)


def _frozen(value: Any) -> Any:
    """Return mappings and lists as copies that refuse changes, at every depth, equal to the originals."""
    if isinstance(value, Mapping):
        return FrozenDict({name: _frozen(each) for name, each in value.items()})
    return FrozenList(map(_frozen, value)) if isinstance(value, list) else value


def verify_recipe(recipe: Any) -> None:
    """Raise ArgumentError unless `recipe` is a Recipe.

    Example:
      >>> verify_recipe({"lr": 0.1})
      Traceback (most recent call last):
      jaxcnn.arguments.ArgumentError: recipe is a dict, {'lr': 0.1}; expected a Recipe. Use jaxcnn.Recipe(...).
    """
    if not isinstance(recipe, Recipe):
        raise ArgumentError(
            f"recipe is a {type(recipe).__name__}, {format_value(recipe, 40)}; expected a Recipe. Use jaxcnn.Recipe(...)."
        )


def file_name(name: str) -> str:
    """`name`, or an ArgumentError if no folder in the folder of a study can be called so.

    Example:
      >>> file_name("resnet20-seed0")
      'resnet20-seed0'
    """
    plain = isinstance(name, str) and name.isprintable() and not set(name) & set("/\\")
    if not plain or name[:1] in ("", ".", "~") or len(name.encode()) > 200:  # bytes: file systems take up to 255
        raise ArgumentError(
            f"run name is {format_value(name)}; expected a plain name for a folder: write 'resnet20-seed0', say"
        )
    return name


def _plain(value: Any) -> bool:
    """Whether `value` is a mapping from names to what JSON can hold, and not nested without end."""
    try:
        text = json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return all(isinstance(name, str) for name in dict(value)) and text.count("[") + text.count("{") < 100


def _integer(name, value, low):
    if low is None and value is None:
        return
    low = 1 if low is None else low
    if type(value) is not int or value < low:
        raise ArgumentError(f"{name} is {format_value(value)}; expected a whole number of at least {low}")
    if value >= 2**32:  # where keys of JAX begin again, and another seed would be the same run
        raise ArgumentError(f"{name} is {format_value(value)}; expected a whole number below 2^32")


def _number(name, value, low, high):
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and low < value <= high
    if not good:
        upper = "" if high == _HUGE else f" and at most {high:g}"
        bound = "of at least 0" if low < 0 else "above 0"
        raise ArgumentError(f"{name} is {format_value(value)}; expected a finite number {bound}{upper}")
