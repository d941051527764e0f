"""The name under which `create_model` makes a network that others publish weights of."""

from __future__ import annotations

import flax.linen as nn

from jaxcnn.models import MODELS, VGG, AlexNet, GoogLeNet, ResNet

_TELLING = {
    ResNet: ("blocks", "bottleneck", "residual", "stride_in_3x3"),
    VGG: ("depth", "norm", "size"),
    AlexNet: ("towers",),
    GoogLeNet: ("norm",),
}
"""The fields in which the names differ; the others are options of a network of the same name."""


def published_name(model: nn.Module) -> str | None:
    """The key of `MODELS` that makes networks like `model`, or None where nobody publishes weights of such.

    Example:
      >>> from jaxcnn.models import create_model
      >>> published_name(create_model("resnet50-v1.5", classes=3, width=8))
      'resnet50-v1.5'
    """
    names = [
        name for name, make in MODELS.items() if type(model) in _TELLING and _told(make(classes=2)) == _told(model)
    ]
    if not names and isinstance(model, ResNet) and model.bottleneck:  # of other numbers of blocks
        return "resnet-v1.5" if model.stride_in_3x3 else "resnet"
    return names[0] if names else None


def _told(model):
    return type(model), [getattr(model, name) for name in _TELLING.get(type(model), ())]
