"""Options of `create_model`, and checks of their values."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from jaxcnn.arguments import check_integer, is_integer
from jaxcnn.config import ArgumentError, check_choice, format_value
from jaxcnn.models.autoencoder import UPSAMPLINGS
from jaxcnn.models.convnet import POOLINGS, ConvNet
from jaxcnn.models.deeplab import DeepLabV3Plus
from jaxcnn.models.initializers import INITS
from jaxcnn.models.mlp import ACTIVATIONS, MLP
from jaxcnn.models.pspnet import PSPNet
from jaxcnn.models.segmentation import check_output_stride, check_sizes, parse_backbone
from jaxcnn.models.unet import UNet


def _integer(minimum: int) -> Callable[[str, Any], int]:
    return lambda option, value: check_integer(option, value, minimum)


def _units(option: str, value: Any) -> tuple[int, ...]:
    is_list = isinstance(value, (list, tuple))
    if not is_list or not all(is_integer(units) and units >= 1 for units in value):
        raise ArgumentError(
            f"{option} is {format_value(value)}; expected a list of whole numbers of at least 1: "
            "write [64, 64]"
        )
    return tuple(map(int, value))


def _sizes(example: str) -> Callable[[str, Any], tuple[int, ...]]:
    return lambda option, value: check_sizes(option, value, example)


def _backbone(option: str, value: Any) -> str:
    parse_backbone(value)
    return str(value)


def _loss_weight(option: str, value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < float("inf"):
        raise ArgumentError(
            f"{option} is {format_value(value)}; expected a finite number above 0: write "
            f"{option}=0.4, or aux=False for none"
        )
    return float(value)


def _share(example: float) -> Callable[[str, Any], float]:
    def check(option: str, value: Any) -> float:
        if not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ArgumentError(
                f"{option} is {format_value(value)}; expected at least 0 and below 1: write "
                f"{example}"
            )
        return value

    return check


def _boolean(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ArgumentError(f"{option} is {format_value(value)}; expected True or False")
    return value


def _dtype(option: str, value: Any) -> str:
    # A value that is no dtype is refused below, as it is.
    with suppress(TypeError):
        value = value if isinstance(value, str) else np.dtype(value).name
    return check_choice(option, value, ("float32", "bfloat16"))


def _name(option: str, value: Any) -> str:
    if not isinstance(value, str) or not value or "/" in value:
        raise ArgumentError(
            f"{option} is {format_value(value)}; expected a text without '/'. Write "
            f"{option}='backbone'."
        )
    return value


OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "width": _integer(1),
    "bn_group": _integer(0),
    "bn_momentum": _share(0.9),
    "batch_norm": _boolean,
    "stem_norm": _boolean,
    "remat": _boolean,
    "skips": _boolean,
    "dropout": _share(0.5),
    "activation": lambda option, value: check_choice(option, str(value), ACTIVATIONS),
    "pooling": lambda option, value: check_choice(option, str(value), POOLINGS),
    "shortcut": lambda option, value: check_choice(option, str(value), "AB"),
    "up": lambda option, value: check_choice(option, str(value), UPSAMPLINGS),
    "code": _integer(1),
    "convolutions": _integer(1),
    "aux": _boolean,
    "aux_weight": _loss_weight,
    "backbone": _backbone,
    "output_stride": lambda _, value: check_output_stride(value),
    "transform_input": _boolean,
    "kernel_init": lambda option, value: check_choice(option, str(value), INITS),
    "dtype": _dtype,
    "name": _name,
}
"""Options of all networks: name -> check.

A check returns the value or raises ArgumentError. A network takes the options that it has a field
for.
"""
MODEL_OPTIONS: dict[type, dict[str, Callable[[str, Any], Any]]] = {
    MLP: {"hidden": _units},
    ConvNet: {"hidden": _integer(1)},
    UNet: {"depth": _integer(1)},
    PSPNet: {"pools": _sizes("[1, 2, 3, 6]")},
    DeepLabV3Plus: {"rates": _sizes("[6, 12, 18]")},
}
"""Options whose meaning depends on the network, with their checks."""
