"""What a file of weights looks like, for messages: its kind of network, and the call of `create_model` that makes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxcnn.models import resnet, vgg


def looks_like(arrays: Mapping[str, Any]) -> str:
    """Return a few words for the network that arrays in PyTorch's layout belong to, or "" where they show none known.

    Example:
      >>> import numpy as np
      >>> kernels = {f"c{i}.weight": np.zeros((16, 16, 3, 3)) for i in range(19)}
      >>> looks_like(kernels | {"fc.weight": np.zeros((10, 16))})
      "a network of 20 layers for 32x32 images: build('resnet20', 10) or build('plain20', 10)"
    """
    shapes = {key: array.shape for key, array in arrays.items() if array.dtype.kind != "i"}
    kernels = [shape for shape in shapes.values() if len(shape) == 4]
    dense = [shape for shape in shapes.values() if len(shape) == 2]
    convolutions = [shape for shape in kernels if shape[-1] > 1]
    if not kernels or not dense:
        return ""
    classes, first = dense[-1][0], next((shape for shape in kernels if shape[1] in (1, 3)), kernels[0])
    projections = len(kernels) - len(convolutions)
    norm = any(key.endswith("running_var") for key in shapes)
    if len(convolutions) in [sum(counts) for counts in vgg.LAYERS.values()] and {s[0] for s in kernels} >= {
        64,
        128,
        256,
        512,
    }:
        return _vgg(len(convolutions), norm, classes, dense)
    if first[-1] == 7:
        return _imagenet(len(kernels), first[0], classes)
    if first[-1] == 5 and len(kernels) + len(dense) == 5:
        return f"LeNet-5: build('lenet5-relu', {classes}) or build('lenet5', {classes})"
    if first[-1] == 3 and len(dense) == 1 and (len(convolutions) - 1) % 6 == 0 and projections in (0, 2):
        return _cifar(len(convolutions) + 1, first[0], projections, classes)
    return ""


def _vgg(count: int, norm: bool, classes: int, dense: list[tuple[int, ...]]) -> str:
    depth = next(depth for depth, counts in vgg.LAYERS.items() if sum(counts) == count)
    tail = ("-bn" if norm else "") + ("-32" if len(dense) == 1 else "")
    if len(dense) > 1 and dense[0][1] == 512:
        return f"VGG-{depth} with hidden layers of {dense[0][0]} for small images, which no network here has"
    return f"VGG-{depth}: build('vgg{depth}{tail}', {classes})"


def _imagenet(count: int, width: int, classes: int) -> str:
    options = f", width={width}" if width != 64 else ""
    for depth, (blocks, bottleneck) in resnet.LAYERS.items():
        layers = 1 + sum(blocks) * (3 if bottleneck else 2)
        if count in (layers, layers + 3, layers + 4):
            return f"ResNet-{depth}: build('resnet{depth}{'-v1.5' if bottleneck else ''}', {classes}{options})"
    return ""


def _cifar(depth: int, width: int, projections: int, classes: int) -> str:
    options = f", width={width}" if width != 16 else ""
    if projections:
        return f"a residual network for 32x32 images: build('cifar-resnet{depth}', {classes}{options}, shortcut='B')"
    names = " or ".join(f"build('{name}{depth}', {classes}{options})" for name in ("resnet", "plain"))
    return f"a network of {depth} layers for 32x32 images: {names}"
