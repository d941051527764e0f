"""Networks as flax.linen modules, and `create_model`, which makes one from its name.

Every module maps float32 images [b, h, w, c] to float32 logits [b, classes]; `train` is explicit, and `stages=True`
hands out the named intermediate maps as well.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from jaxcnn.arguments import check_image_shape
from jaxcnn.models import imagenet, vgg
from jaxcnn.models.alexnet import AlexNet
from jaxcnn.models.autoencoder import Autoencoder
from jaxcnn.models.calling import initial_shapes
from jaxcnn.models.convnet import ConvNet
from jaxcnn.models.googlenet import GoogLeNet
from jaxcnn.models.imagenet import ResNet, imagenet_net
from jaxcnn.models.lenet import LeNet5
from jaxcnn.models.lenet1998 import LeNet1998
from jaxcnn.models.mlp import MLP
from jaxcnn.models.options import OPTIONS, OWN
from jaxcnn.models.preact import PreActResNet, cifar_preact, imagenet_preact
from jaxcnn.models.resnet import CifarResNet, cifar_resnet
from jaxcnn.models.unet import UNet
from jaxcnn.models.vgg import VGG
from jaxcnn.recipe import ArgumentError, check_choice, format_value

__all__ = [
    "MLP",
    "MODELS",
    "VGG",
    "AlexNet",
    "Autoencoder",
    "CifarResNet",
    "ConvNet",
    "GoogLeNet",
    "LeNet5",
    "LeNet1998",
    "PreActResNet",
    "ResNet",
    "UNet",
    "count_parameters",
    "create_model",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "perceptron": partial(MLP, hidden=()),
    "mlp": MLP,
    "cnn": partial(ConvNet, convolutions=1),
    "convnet": ConvNet,
    "lenet5": LeNet5,
    "lenet5-relu": partial(LeNet5, modern=True),
    "lenet5-1998": LeNet1998,
    "autoencoder": Autoencoder,
    "unet": UNet,
    "alexnet": AlexNet,
    "alexnet-groups": partial(AlexNet, towers=True),
    "googlenet": GoogLeNet,
    "googlenet-bn": partial(GoogLeNet, norm=True, dropout=0.2),
}
"""name -> constructor taking `classes` and options. `CIFAR` has the names of more."""
for _depth in vgg.LAYERS:
    for _size in (224, 32):
        _tail = "" if _size == 224 else "-32"
        MODELS[f"vgg{_depth}{_tail}"] = partial(VGG, _depth, size=_size)
        MODELS[f"vgg{_depth}-bn{_tail}"] = partial(VGG, _depth, norm=True, size=_size)
for _depth in (20, 32, 44, 56, 110, 1202):
    MODELS[f"plain{_depth}"] = partial(cifar_resnet, _depth, residual=False)
    MODELS[f"resnet{_depth}"] = partial(cifar_resnet, _depth, residual=True)
for _depth, (_, _bottleneck) in imagenet.LAYERS.items():
    MODELS[f"resnet{_depth}"] = partial(imagenet_net, _depth)
    MODELS[f"preresnet{_depth}"] = partial(imagenet_preact, _depth)
    if _bottleneck:
        MODELS[f"resnet{_depth}-v1.5"] = partial(imagenet_net, _depth, stride_in_3x3=True)
    else:
        MODELS[f"plain{_depth}"] = partial(imagenet_net, _depth, residual=False)
CIFAR: dict[str, Callable[..., nn.Module]] = {
    "plain": partial(cifar_resnet, residual=False),
    "resnet": partial(cifar_resnet, residual=True),
    "preresnet": cifar_preact,
}
"""family -> constructor taking a depth D. Any `cifar-resnetD`, `cifar-plainD` and `cifar-preresnetD` is a name; without the
prefix, any that is not in `MODELS`."""
for _depth in (20, 56, 110, 164, 1001):
    MODELS[f"cifar-preresnet{_depth}"] = partial(cifar_preact, _depth)


def create_model(name: str, /, classes: int, **options: Any) -> nn.Module:
    """The network called `name`, with `classes` logits.

    Args:
      name: a key of `MODELS`, or `plainD` / `resnetD` / `preresnetD` for any other D = 6 n + 2. `resnet50` and `resnet152`
        are the ImageNet networks: write `cifar-resnet50` for the one of He et al.'s section 4.2.
      classes: the number of logits, at least 2.
      options: fields of the module, such as `width=8`, `shortcut="B"`, `bn_group=64`, `dtype="bfloat16"`, and
        `name="backbone"`, what flax calls it inside another module.

    Raises:
      ArgumentError: for an unknown name or option (the nearest is named), or a depth that is not 6 n + 2.

    Example:
      >>> create_model("resnet20", classes=10, width=8).width
      8
    """
    if type(classes) is not int or classes < 2:
        raise ArgumentError(f"classes is {format_value(classes)}; expected a whole number of at least 2")
    model = _constructor(str(name))(classes=classes, parent=None)
    checks = OPTIONS | OWN.get(type(model), {})
    known = {f.name for f in fields(type(model))} & set(checks)
    if not getattr(model, "residual", True):
        known -= {"shortcut"}
    for option, value in options.items():
        options[option] = checks[check_choice(f"option of {name}", option, known)](option, value)
    around: Any = next(
        field.default for field in fields(type(model)) if field.name == "parent"
    )  # the module being set up, if any
    return model.clone(parent=around, **options)


def _constructor(name):
    if name in MODELS:
        return MODELS[name]
    found = re.fullmatch(r"(?:cifar-)?(plain|resnet|preresnet)([0-9]{1,5})", name)
    if not found:
        near = difflib.get_close_matches(name[:80], MODELS, n=3)
        hint = " or ".join(near) if near else "one of " + ", ".join(sorted(MODELS))
        raise ArgumentError(f"model is {format_value(name)}, which no network here is called; write {hint}")
    return partial(CIFAR[found.group(1)], int(found.group(2)))


def count_parameters(model: nn.Module, shape: tuple[int, ...]) -> int:
    """The number of trainable parameters of `model` for images of `shape` [h, w, c]; nothing is computed.

    Example:
      >>> count_parameters(create_model("resnet20", 10), (32, 32, 3))
      269722
    """
    image = jax.ShapeDtypeStruct((1, *check_image_shape(shape)), "float32")
    variables = initial_shapes(model, image)
    return sum(p.size for p in jax.tree.leaves(variables["params"]))
