"""Networks with published weights and their preprocessing, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from jaxcnn.arguments import ArgumentError, check_choice, check_image_shape, format_value
from jaxcnn.augment import Normalizer
from jaxcnn.data.image_io import INTERPOLATIONS
from jaxcnn.models import create_model
from jaxcnn.weights import hub
from jaxcnn.weights._errors import WeightsError
from jaxcnn.weights.load import load_weights


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of images that a network was trained with.

    Attributes:
      size: side of the square images, in pixels.
      mean: mean of each channel, for images in 0..1. The default is ImageNet's.
      std: standard deviation of each channel, for images in 0..1.
      interpolation: filter for resizing, "bilinear" or "bicubic".
      crop_fraction: side of the center that is cropped, as a fraction of the shorter side.

    Raises:
      ArgumentError: in the constructor, for an invalid value.

    Example:
      >>> from jaxcnn import TrainConfig
      >>> preprocessing = Preprocessing(64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
      >>> preprocessing.resize, TrainConfig(**preprocessing.train_options()).divide_std
      (73, (0.25, 0.25, 0.25))
    """

    size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop_fraction: float = 0.875

    def __post_init__(self):
        for name in ("mean", "std"):
            object.__setattr__(self, name, _channels(name, getattr(self, name)))
        if len(self.mean) != len(self.std):
            raise ArgumentError(
                f"mean has {len(self.mean)} numbers and std {len(self.std)}; expected a number for "
                "each channel in both. Use mean=(0.5, 0.5, 0.5) and std=(0.5, 0.5, 0.5)."
            )
        check_image_shape((self.size, self.size, len(self.mean)))
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        fraction = self.crop_fraction
        is_number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
        if not (is_number and 0.01 <= fraction <= 1):
            raise ArgumentError(
                f"crop_fraction is {format_value(fraction)}; expected a number in 0.01..1. "
                "Use crop_fraction=0.875."
            )

    @property
    def resize(self) -> int:
        """Length of the shorter side before the crop, in pixels, rounded down as in timm."""
        return math.floor(self.size / self.crop_fraction)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape [h, w, c] of the images."""
        return self.size, self.size, len(self.mean)

    def normalizer(self) -> Normalizer:
        """Return the constants that `normalize` and a `State` take.

        Example:
          >>> Preprocessing(8).normalizer().mean.shape
          (8, 8, 3)
        """
        # Arrays of NumPy, as those of a State on the host.
        mean: Any = np.broadcast_to(np.array(self.mean, np.float32), self.image_shape).copy()
        std: Any = np.array(self.std, np.float32)
        return Normalizer(mean, std)

    def train_options(self) -> dict[str, Any]:
        """Return the fields `subtract_mean` and `divide_std` of a `TrainConfig`."""
        return {"subtract_mean": self.mean, "divide_std": self.std}

    def image_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `image_folder` and `load_images`."""
        return {"size": self.size, "resize": self.resize, "interpolation": self.interpolation}


def _channels(name: str, value: Any) -> tuple[float, ...]:
    """Return a number for each channel.

    Raises:
      ArgumentError: it is anything else. Numbers above 1 are those of images in 0..255.
    """
    numbers = value if isinstance(value, (tuple, list)) and len(value) in (1, 3) else ()
    are_real = bool(numbers) and all(type(number) in (int, float) for number in numbers)
    lowest = math.ulp(0.0) if name == "std" else 0.0
    if are_real and all(lowest <= number <= 1 for number in numbers):
        return tuple(map(float, numbers))
    is_of_bytes = are_real and all(0 <= number <= 255 for number in numbers) and max(numbers) > 1
    hint = "Divide them by 255" if is_of_bytes else f"Use {name}=(0.5, 0.5, 0.5)"
    bounds = "above 0 and at most 1" if name == "std" else "in 0..1"
    raise ArgumentError(
        f"{name} is {format_value(value)}; expected a number {bounds} for each channel, one or "
        f"three. {hint}."
    )


class Pretrained(NamedTuple):
    """A network, its published weights and the preprocessing that they expect.

    Attributes:
      model: the module, which holds no arrays.
      variables: {"params": ..., "batch_stats": ...}, float32 arrays of NumPy.
      preprocessing: size and constants of its images.
    """

    model: nn.Module
    variables: dict[str, Any]
    preprocessing: Preprocessing


def create_pretrained(
    name: str, /, num_classes: int | None = None, *, seed: int = 0, **options: Any
) -> Pretrained:
    """Return a network of the Hugging Face Hub with its weights.

    The repository's `config.json`, as timm writes it, names the architecture and has the
    preprocessing. Flax modules hold no arrays, so the weights are a value of their own.
    `predict` and `evaluate` take them with `normalizer=preprocessing.normalizer()`.
    `train(..., variables=variables)` starts from them. The config has their constants by
    `override(config, **preprocessing.train_options())`.

    Args:
      name: such as "timm/resnet18.tv_in1k", with `hf:` before it or not, and optionally with
        `@revision` and `:file`.
      num_classes: number of logits; None is that of the weights. For another number the layer of
        logits is initialized, and a warning is logged.
      seed: of that layer.
      options: other fields of the module, as for `create_model`.

    Raises:
      WeightsError: the weights cannot be downloaded or read, or are of a network that this library
        lacks.
      ArgumentError: for an invalid option.

    References:
      https://huggingface.co/docs/timm/hf_hub
    """
    if not isinstance(name, str):
        raise WeightsError(
            f"name is {format_value(name)}; expected a repository. Write 'timm/resnet18.tv_in1k'."
        )
    if "/" not in name:
        raise WeightsError(
            f"name is {format_value(name)}, without an owner; expected a repository on the hub, "
            "owner/name. Write 'timm/resnet18.tv_in1k'."
        )
    full_name = name if hub.is_hub_name(name) else f"{hub.PREFIX}{name}"
    config, parts = _timm_config(full_name)
    model_name = _model_name(full_name, config)
    preprocessing = _preprocessing(full_name, config)
    if num_classes is None:
        num_classes = _num_classes(full_name, config)
    model = create_model(model_name, num_classes, **options)
    variables = load_weights(model, str(parts), preprocessing.image_shape, seed)
    return Pretrained(model, variables, preprocessing)


def load_preprocessing(name: str) -> Preprocessing:
    """Return the preprocessing of weights on the hub.

    Args:
      name: such as "hf:timm/resnet18.tv_in1k". Only its `config.json` is downloaded.

    Raises:
      WeightsError: it cannot be downloaded, or has no preprocessing as timm writes it.
    """
    config, _ = _timm_config(name)
    return _preprocessing(name, config)


# ---------------------------------------------------------------- timm's config


def _timm_config(name: str) -> tuple[Mapping[str, Any], hub.HubName]:
    """Return the config, and the name at the commit of the config.

    So the weights are of the same commit, also where the main branch moves in between.

    Raises:
      WeightsError: there is no config of timm.
    """
    parts = hub.parse_hub_name(name)
    config, commit = hub.fetch_config(parts, required=True)
    if config is None:
        raise WeightsError(
            f"{name} has no config.json, which names the architecture; expected a repository of "
            f"timm. Write load_weights(create_model(...), {str(parts)!r})."
        )
    if not isinstance(config.get("architecture"), str):
        raise WeightsError(
            f"config.json of {name} names no architecture; expected a repository of timm. "
            f"Write load_weights(create_model(...), {str(parts)!r})."
        )
    return config, parts if commit is None else parts._replace(revision=commit)


def _model_name(name: str, config: Mapping[str, Any]) -> str:
    """Return our name of the config's network.

    Raises:
      WeightsError: this library lacks it.
    """
    architecture = config["architecture"]
    model_name = hub.network_of(config)
    if model_name is None:
        raise WeightsError(
            f"{name} is of {format_value(architecture)}, which no network here is; "
            f"expected one of {', '.join(hub.ARCHITECTURES)}. Write 'timm/resnet18.tv_in1k', say."
        )
    if config.get("model_args"):
        raise WeightsError(
            f"{name} is of {format_value(architecture)} changed by model_args "
            f"{format_value(config['model_args'])}, which no network here is; expected none. "
            "Write 'timm/resnet18.tv_in1k', say."
        )
    return model_name


def _num_classes(name: str, config: Mapping[str, Any]) -> int:
    for values in (config, config.get("pretrained_cfg")):
        count = values.get("num_classes") if isinstance(values, Mapping) else None
        if type(count) is int and count >= 2:
            return count
    raise WeightsError(
        f"config.json of {name} has no num_classes of at least 2; expected the number of logits. "
        "Write num_classes=1000."
    )


def _preprocessing(name: str, config: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing of timm's `pretrained_cfg`.

    Older configs have its fields at their top.

    Raises:
      WeightsError: a field is missing or invalid.
    """
    fields = config.get("pretrained_cfg", config)
    try:
        channels, height, width = fields["input_size"]
        if height != width or fields.get("crop_mode", "center") != "center":
            crop = f"{height}x{width} by crop_mode {format_value(fields.get('crop_mode'))}"
            raise ValueError(f"its images are {crop}")
        preprocessing = Preprocessing(
            size=height,
            mean=tuple(fields["mean"]),
            std=tuple(fields["std"]),
            interpolation=fields["interpolation"],
            crop_fraction=fields["crop_pct"],
        )
        if len(preprocessing.mean) != channels:
            raise ValueError(f"{len(preprocessing.mean)} means for {channels} channels")
    # ArgumentErrors are ValueErrors.
    except (KeyError, TypeError, ValueError) as error:
        problem = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise WeightsError(
            f"the preprocessing in config.json of {name} cannot be used: {problem:.300}; "
            "expected square images, and the input_size, mean, std, interpolation and crop_pct of "
            "timm. Write load_weights(create_model(...), 'hf:...'), and Preprocessing(...)."
        ) from None
    return preprocessing
