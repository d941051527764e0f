"""Networks as flax.linen modules, and `create_model`, which makes one from its name.

Modules map float32 images [b, h, w, c] to float32 logits: [b, num_classes] of classifiers,
[b, h, w, num_classes] of segmentation networks. Detectors, pose networks and GANs have several
outputs, a dict. `train` is explicit, and `stages=True` returns the named intermediate maps as well.

- By name: `create_model`, `list_models`, `MODELS`, and `model_call`, its inverse.
- Classifiers: `MLP`, `ConvNet`, `LeNet5`, `LeNet1998`, `AlexNet`, `VGG`, `GoogLeNet`,
  `CifarResNet`, `PreActResNet`, `ResNet`.
- Dense prediction, an output for each pixel (`IMAGE_NETWORKS`): `UNet`, `PSPNet`,
  `DeepLabV3Plus`, `Autoencoder`.
- Others have modules of their own: `jaxcnn.models.ssd`, `.yolo`, `.faster_rcnn`, `.pose`, `.dcgan`,
  `.line_reader`.
- Of any network: `count_parameters`, and `select_output`, which makes a network of one output.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from jaxcnn._util import bare_name, tree_size
from jaxcnn.arguments import check_image_shape, check_integer
from jaxcnn.config import ArgumentError, check_choice, format_value
from jaxcnn.models import resnet, vgg
from jaxcnn.models.alexnet import AlexNet as AlexNet
from jaxcnn.models.autoencoder import Autoencoder as Autoencoder
from jaxcnn.models.calling import select_output as select_output
from jaxcnn.models.calling import variable_shapes
from jaxcnn.models.convnet import ConvNet as ConvNet
from jaxcnn.models.deeplab import DeepLabV3Plus as DeepLabV3Plus
from jaxcnn.models.googlenet import GoogLeNet as GoogLeNet
from jaxcnn.models.lenet import LeNet5 as LeNet5
from jaxcnn.models.lenet import LeNet1998 as LeNet1998
from jaxcnn.models.mlp import MLP as MLP
from jaxcnn.models.options import MODEL_OPTIONS, OPTIONS
from jaxcnn.models.pspnet import PSPNet as PSPNet
from jaxcnn.models.resnet import CifarResNet as CifarResNet
from jaxcnn.models.resnet import PreActResNet as PreActResNet
from jaxcnn.models.resnet import ResNet as ResNet
from jaxcnn.models.resnet import (
    cifar_preact_resnet,
    cifar_resnet,
    imagenet_preact_resnet,
    imagenet_resnet,
)
from jaxcnn.models.unet import UNet as UNet
from jaxcnn.models.vgg import VGG as VGG

MODELS: dict[str, Callable[..., nn.Module]] = {
    "perceptron": partial(MLP, hidden=()),
    "mlp": MLP,
    "cnn": partial(ConvNet, convolutions=1),
    "convnet": ConvNet,
    "lenet5": LeNet5,
    "lenet5-relu": partial(LeNet5, relu_max_pool=True),
    "lenet5-1998": LeNet1998,
    "autoencoder": Autoencoder,
    "unet": UNet,
    "pspnet": PSPNet,
    "deeplabv3plus": DeepLabV3Plus,
    "alexnet": AlexNet,
    "alexnet-groups": partial(AlexNet, towers=True),
    "googlenet": GoogLeNet,
    "googlenet-bn": partial(GoogLeNet, norm=True, dropout=0.2),
}
"""Networks: name -> constructor taking `num_classes` and options.

`CIFAR_FAMILIES` has the names of more.
"""
for _depth in vgg.LAYERS:
    for _size in (224, 32):
        _suffix = "" if _size == 224 else "-32"
        MODELS[f"vgg{_depth}{_suffix}"] = partial(VGG, _depth, size=_size)
        MODELS[f"vgg{_depth}-bn{_suffix}"] = partial(VGG, _depth, norm=True, size=_size)
for _depth in (20, 32, 44, 56, 110, 1202):
    MODELS[f"plain{_depth}"] = partial(cifar_resnet, _depth, residual=False)
    MODELS[f"resnet{_depth}"] = partial(cifar_resnet, _depth, residual=True)
for _depth, (_, _bottleneck) in resnet.LAYERS.items():
    MODELS[f"resnet{_depth}"] = partial(imagenet_resnet, _depth)
    MODELS[f"preresnet{_depth}"] = partial(imagenet_preact_resnet, _depth)
    if _bottleneck:
        MODELS[f"resnet{_depth}-v1.5"] = partial(imagenet_resnet, _depth, stride_in_3x3=True)
    else:
        MODELS[f"plain{_depth}"] = partial(imagenet_resnet, _depth, residual=False)
IMAGE_NETWORKS = (Autoencoder, UNet, PSPNet, DeepLabV3Plus)
"""Networks whose outputs are [b, h, w, c]. Those of all others are logits [b, num_classes]."""
CIFAR_FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "plain": partial(cifar_resnet, residual=False),
    "resnet": partial(cifar_resnet, residual=True),
    "preresnet": cifar_preact_resnet,
}
"""Families for CIFAR: name -> constructor taking a depth D.

Any `cifar-resnetD`, `cifar-plainD` and `cifar-preresnetD` is a name of a network. Without the
prefix, any that is not in `MODELS` is a name too.
"""
SEPARATE_MODELS = {
    "ssd": "jaxcnn.models.ssd.SSD(num_classes, anchors)",
    "yolo": "jaxcnn.models.yolo.YOLO(num_classes)",
    "fasterrcnn": "jaxcnn.models.faster_rcnn.FasterRCNN(num_classes)",
    "maskrcnn": "jaxcnn.models.faster_rcnn.FasterRCNN(num_classes, masks=True)",
    "posenet": "jaxcnn.models.pose.PoseNet(skeleton)",
    "linereader": "jaxcnn.models.line_reader.LineReader(num_classes)",
    "dcgan": "jaxcnn.models.dcgan.DCGAN()",
}
"""Names of networks that `create_model` does not make -> what to write instead."""
for _depth in (20, 56, 110, 164, 1001):
    MODELS[f"cifar-preresnet{_depth}"] = partial(cifar_preact_resnet, _depth)


def create_model(name: str, /, num_classes: int, **options: Any) -> nn.Module:
    """Return the network called `name`, with `num_classes` logits.

    Args:
      name: a key of `MODELS`, or `plainD` / `resnetD` / `preresnetD` for any other D = 6 n + 2.
        `resnet50` and `resnet152` are the ImageNet networks. Write `cifar-resnet50` for that of
        He et al. 2015, section 4.2.
      num_classes: number of logits, at least 1. One is for a loss of your own, as in regression:
        classification needs two or more.
      options: fields of the module, such as `width=8`, `shortcut="B"`, `bn_group=64`,
        `dtype="bfloat16"`. `name="backbone"` is flax's name of the module inside another module.

    Raises:
      ArgumentError: for an unknown name or option (the message has the nearest), or a depth that
        is not 6 n + 2.

    Example:
      >>> create_model("resnet20", num_classes=10, width=8).width
      8
    """
    num_classes = check_integer("num_classes", num_classes, example=10)
    if "pretrained" in options:
        raise ArgumentError(
            f"pretrained is {format_value(options['pretrained'])}, but a module holds no weights; "
            "expected them as a value of their own. Write model, variables, preprocessing = "
            "jaxcnn.create_pretrained('timm/resnet18.tv_in1k', num_classes)."
        )
    # Inside another module's setup only the final clone may be registered as a submodule.
    model = _constructor(str(name))(num_classes=num_classes, parent=None)
    checks = OPTIONS | MODEL_OPTIONS.get(type(model), {})
    valid = {f.name for f in fields(type(model))} & set(checks)
    if not getattr(model, "residual", True):
        valid -= {"shortcut"}
    for option, value in options.items():
        options[option] = checks[check_choice(f"option of {name}", option, valid)](option, value)
    # The field's default is the module that is being set up, if any.
    parent: Any = next(field.default for field in fields(type(model)) if field.name == "parent")
    return model.clone(parent=parent, **options)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of networks that match a pattern, in alphabetical order.

    They are those of `MODELS`. `create_model` also takes `cifar-resnetD` and its siblings for any
    depth D.

    Args:
      pattern: with `*` for any characters, `?` for one and `[...]` for one of several, as in
        `fnmatch`. Capitals count. Where nothing matches, the list is empty.

    Raises:
      ArgumentError: the pattern is not a text.

    Example:
      >>> list_models("resnet?[04]")
      ['resnet20', 'resnet34', 'resnet44', 'resnet50']
    """
    if not isinstance(pattern, str):
        raise ArgumentError(
            f"pattern is {format_value(pattern)}; expected a text. Write pattern='resnet*'."
        )

    return sorted(fnmatch.filter(MODELS, pattern))


def _constructor(name):
    if name in MODELS:
        return MODELS[name]
    # With a size or version behind it, such as SSD300 or YOLOv3.
    if module := SEPARATE_MODELS.get(re.sub("v?[0-9]+$", "", bare_name(name))):
        raise ArgumentError(
            f"model is {format_value(name)}, which has arguments and a loss of its own; "
            f"expected one of MODELS. Write {module}."
        )
    match = re.fullmatch(r"(?:cifar-)?(plain|resnet|preresnet)([0-9]{1,5})", name)
    if not match:
        # Hubs write an owner before the name: timm/resnet18.
        short = name.rpartition("/")[2][:80].lower()
        same = [known for known in MODELS if bare_name(known) == bare_name(short)]
        nearest = same or difflib.get_close_matches(short, MODELS, n=3, cutoff=0.65)
        hint = " or ".join(nearest) if nearest else "one of " + ", ".join(sorted(MODELS))
        raise ArgumentError(
            f"model is {format_value(name)}, which no network here is called; write {hint}"
        )
    return partial(CIFAR_FAMILIES[match.group(1)], int(match.group(2)))


def model_call(model: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Return the name and the options, without `num_classes`, for `create_model` to make `model`.

    Returns:
      The call with the fewest options, or None for a module that is not the library's.

    Example:
      >>> model_call(create_model("resnet20", 10, width=8))
      ('resnet20', {'width': 8})
    """
    names = list(MODELS)
    if isinstance(model, (CifarResNet, PreActResNet)):
        names += [f"{family}{depth}" for family in CIFAR_FAMILIES for depth in range(8, 1203, 6)]
        names += [f"cifar-{name}" for name in names if name.startswith(tuple(CIFAR_FAMILIES))]
    calls = []
    for name in names:
        with suppress(ArgumentError, AttributeError, TypeError):
            constructor: Any = _constructor(name)
            default = constructor(num_classes=model.num_classes, parent=None)  # type: ignore[attr-defined]
            if type(default) is not type(model):
                continue
            options = {
                field.name: getattr(model, field.name)
                for field in fields(type(model))
                if field.name not in ("parent", "name")
                and getattr(model, field.name) != getattr(default, field.name)
            }
            # An option that a name stands for is left to another name.
            if options.keys() & getattr(constructor, "keywords", {}).keys():
                continue
            if create_model(name, model.num_classes, **options) == model:  # type: ignore[attr-defined]
                calls.append((name, options))
    return min(calls, key=lambda call: len(call[1]), default=None)


def count_parameters(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the number of trainable parameters of `model`, without computing any.

    Args:
      model: a network.
      shape: of an image, [h, w, c].

    Example:
      >>> count_parameters(create_model("resnet20", 10), (32, 32, 3))
      269722
    """
    image = jax.ShapeDtypeStruct((1, *check_image_shape(shape)), "float32")
    variables = variable_shapes(model, image)
    return tree_size(variables["params"])
