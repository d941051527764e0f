"""Networks as flax.linen modules, and `build`, which makes one from its name.

Every module maps float32 images [b, h, w, c] to float32 logits [b, classes]; `train` is explicit, and `stages=True`
hands out the named intermediate maps as well.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxcnn.models.convnet import POOLS, ConvNet
from jaxcnn.models.layers import INITS
from jaxcnn.models.lenet import LeNet5
from jaxcnn.models.mlp import ACTIVATIONS, MLP
from jaxcnn.models.resnet import CifarNet, cifar_net
from jaxcnn.models.vgg import LAYERS, VGG
from jaxcnn.recipe import RecipeError, one_of, shown

__all__ = ["MLP", "MODELS", "VGG", "CifarNet", "ConvNet", "LeNet5", "build", "parameters"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "convnet": ConvNet,
    "lenet5": LeNet5,
    "lenet5-relu": partial(LeNet5, modern=True),
}
"""name -> constructor taking `classes` and options. Any `resnetD` and `plainD` with D = 6 n + 2 is a name as well."""
for _depth in LAYERS:
    for _size in (224, 32):
        _tail = "" if _size == 224 else "-32"
        MODELS[f"vgg{_depth}{_tail}"] = partial(VGG, _depth, size=_size)
        MODELS[f"vgg{_depth}-bn{_tail}"] = partial(VGG, _depth, norm=True, size=_size)
for _depth in (20, 32, 44, 56, 110, 1202):
    MODELS[f"plain{_depth}"] = partial(cifar_net, _depth, residual=False)
    MODELS[f"resnet{_depth}"] = partial(cifar_net, _depth, residual=True)


def build(name: str, classes: int, **options: Any) -> nn.Module:
    """The network called `name`, with `classes` logits.

    Args:
      name: a key of `MODELS`, or `plainD` / `resnetD` for any D = 6 n + 2. ResNet-50 and ResNet-152 are also
        the ImageNet networks' names: write `cifar-resnet50` for the one of section 4.2.
      classes: the number of logits, at least 2.
      options: fields of the module, such as `width=8`, `shortcut="B"`, `bn_group=64`, `dtype="bfloat16"`.

    Raises:
      RecipeError: for an unknown name or option (the nearest is named), or a depth that is not 6 n + 2.

    Example:
      >>> build("resnet20", classes=10, width=8).width
      8
    """
    if type(classes) is not int or classes < 2:
        raise RecipeError(f"classes is {shown(classes)}; expected a whole number of at least 2")
    model = _constructor(str(name))(classes=classes)
    checks = _OPTIONS | _OWN.get(type(model), {})
    known = {f.name for f in fields(type(model))} & set(checks)
    if not getattr(model, "residual", True):
        known -= {"shortcut"}
    for option, value in options.items():
        options[option] = checks[one_of(f"option of {name}", option, known)](option, value)
    return model.clone(**options)


def _whole(least: int) -> Callable[[str, Any], int]:
    def check(option: str, value: Any) -> int:
        if type(value) is not int or value < least:
            raise RecipeError(f"{option} is {shown(value)}; expected a whole number of at least {least}")
        return value

    return check


def _units(option: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or any(type(units) is not int or units < 1 for units in value):
        raise RecipeError(f"{option} is {shown(value)}; expected a list of whole numbers of at least 1: write [64, 64]")
    return tuple(value)


def _share(usual: float) -> Callable[[str, Any], float]:
    def check(option: str, value: Any) -> float:
        if not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise RecipeError(f"{option} is {shown(value)}; expected at least 0 and below 1: write {usual}")
        return value

    return check


def _switch(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RecipeError(f"{option} is {shown(value)}; expected True or False")
    return value


def _dtype(option: str, value: Any) -> str:
    with suppress(TypeError):  # what is no type is refused under the name it has
        value = value if isinstance(value, str) else np.dtype(value).name
    return one_of(option, value, ("float32", "bfloat16"))


_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "width": _whole(1),
    "bn_group": _whole(0),
    "bn_momentum": _share(0.9),
    "batch_norm": _switch,
    "dropout": _share(0.5),
    "activation": lambda option, value: one_of(option, str(value), ACTIVATIONS),
    "pooling": lambda option, value: one_of(option, str(value), POOLS),
    "shortcut": lambda option, value: one_of(option, str(value), "AB"),
    "kernel_init": lambda option, value: one_of(option, str(value), INITS),
    "dtype": _dtype,
}
"""What `build` takes beside the name, with the check of each; a network takes those that it has a field for."""
_OWN: dict[type, dict[str, Callable[[str, Any], Any]]] = {MLP: {"hidden": _units}, ConvNet: {"hidden": _whole(1)}}
"""Options that mean different things to different networks."""


def _constructor(name):
    if name in MODELS:
        return MODELS[name]
    found = re.fullmatch(r"(cifar-)?(plain|resnet)([0-9]{1,5})", name)
    if not found:
        near = difflib.get_close_matches(name[:80], MODELS, n=3)
        hint = " or ".join(near) if near else "one of " + ", ".join(sorted(MODELS))
        raise RecipeError(f"model is {shown(name)}, which no network here is called; write {hint}")
    prefix, family, depth = found.group(1), found.group(2), int(found.group(3))
    if not prefix and name in ("resnet50", "resnet152"):
        raise RecipeError(f"model {name!r} names the ImageNet network; for He et al.'s CIFAR form write 'cifar-{name}'")
    return partial(cifar_net, depth, residual=family == "resnet")


def parameters(model: nn.Module, shape: tuple[int, ...]) -> int:
    """The number of trainable parameters of `model` for images of `shape` [h, w, c]; nothing is computed.

    Example:
      >>> parameters(build("resnet20", 10), (32, 32, 3))
      269722
    """
    image = jax.ShapeDtypeStruct((1, *shape), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return sum(p.size for p in jax.tree.leaves(variables["params"]))
