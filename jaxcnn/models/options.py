"""The options that `create_model` takes beside a network's name, each with the check of its value."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from jaxcnn.models.autoencoder import UPS
from jaxcnn.models.convnet import POOLS, ConvNet
from jaxcnn.models.initializers import INITS
from jaxcnn.models.mlp import ACTIVATIONS, MLP
from jaxcnn.models.unet import UNet
from jaxcnn.recipe import ArgumentError, check_choice, format_value


def _whole(least: int) -> Callable[[str, Any], int]:
    def check(option: str, value: Any) -> int:
        if type(value) is not int or value < least:
            raise ArgumentError(f"{option} is {format_value(value)}; expected a whole number of at least {least}")
        return value

    return check


def _units(option: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or any(type(units) is not int or units < 1 for units in value):
        raise ArgumentError(
            f"{option} is {format_value(value)}; expected a list of whole numbers of at least 1: write [64, 64]"
        )
    return tuple(value)


def _share(usual: float) -> Callable[[str, Any], float]:
    def check(option: str, value: Any) -> float:
        if not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ArgumentError(f"{option} is {format_value(value)}; expected at least 0 and below 1: write {usual}")
        return value

    return check


def _switch(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ArgumentError(f"{option} is {format_value(value)}; expected True or False")
    return value


def _dtype(option: str, value: Any) -> str:
    with suppress(TypeError):  # what is no type is refused under the name it has
        value = value if isinstance(value, str) else np.dtype(value).name
    return check_choice(option, value, ("float32", "bfloat16"))


def _name(option: str, value: Any) -> str:
    if not isinstance(value, str) or not value or "/" in value:
        raise ArgumentError(
            f"{option} is {format_value(value)}; expected a text without '/'. Write {option}='backbone'."
        )
    return value


OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "width": _whole(1),
    "bn_group": _whole(0),
    "bn_momentum": _share(0.9),
    "batch_norm": _switch,
    "stem_norm": _switch,
    "remat": _switch,
    "skips": _switch,
    "dropout": _share(0.5),
    "activation": lambda option, value: check_choice(option, str(value), ACTIVATIONS),
    "pooling": lambda option, value: check_choice(option, str(value), POOLS),
    "shortcut": lambda option, value: check_choice(option, str(value), "AB"),
    "up": lambda option, value: check_choice(option, str(value), UPS),
    "code": _whole(1),
    "convolutions": _whole(1),
    "aux": _switch,
    "transform_input": _switch,
    "kernel_init": lambda option, value: check_choice(option, str(value), INITS),
    "dtype": _dtype,
    "name": _name,
}
"""What `create_model` takes beside the name, with the check of each; a network takes those that it has a field for."""
OWN: dict[type, dict[str, Callable[[str, Any], Any]]] = {
    MLP: {"hidden": _units},
    ConvNet: {"hidden": _whole(1)},
    UNet: {"depth": _whole(1)},
}
"""Options that mean different things to different networks."""
