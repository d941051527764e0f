"""The networks of the benchmark in PyTorch, layer by layer. PyTorch is imported when one is asked for, not before."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import import_module
from typing import Any

from jaxcnn.models.resnet import LAYERS as IMAGENET_LAYERS
from jaxcnn.models.vgg import LAYERS as VGG_LAYERS


def pytorch() -> Any:
    """The module `torch`, which is no dependency."""
    return import_module("torch")


@lru_cache(maxsize=1)
def _residual() -> Any:
    """The class of a residual block, made where PyTorch is first asked for."""
    torch = pytorch()
    nn = torch.nn

    class Residual(nn.Module):
        """ReLU(body(x) + x), with x projected, or every other pixel of it and `more` channels of zeros."""

        def __init__(self, body: Any, project: Any = None, stride: int = 1, more: int = 0):
            super().__init__()
            self.body, self.project, self.stride, self.more = body, project, stride, more

        def forward(self, x: Any) -> Any:
            y = self.body(x)
            if self.project is not None:
                x = self.project(x)
            elif self.stride > 1:
                x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
            return torch.relu(x + y)

    return Residual


def _normed(i: int, o: int, size: int, stride: int = 1, relu: bool = True) -> list[Any]:
    nn = pytorch().nn

    layers = [nn.Conv2d(i, o, size, stride, size // 2, bias=False), nn.BatchNorm2d(o)]
    return [*layers, nn.ReLU()] if relu else layers


def cifar(depth: int, residual: bool) -> Any:
    """`jaxcnn.models.CifarResNet`, with shortcut A."""
    nn = pytorch().nn

    layers, i = _normed(3, 16, 3), 16
    for number in range(3):
        for block in range((depth - 2) // 6):
            o, stride = 16 * 2**number, 2 if number and not block else 1
            body = [*_normed(i, o, 3, stride), *_normed(o, o, 3, relu=not residual)]
            layers += [_residual()(nn.Sequential(*body), stride=stride, more=o - i)] if residual else body
            i = o
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 10))


def imagenet(depth: int) -> Any:
    """`jaxcnn.models.ResNet`, with shortcut B and, in bottlenecks, the stride in the first layer."""
    nn = pytorch().nn

    blocks, bottleneck = IMAGENET_LAYERS[depth]
    layers, i = [*_normed(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for number, count in enumerate(blocks):
        for block in range(count):
            f, stride = 64 * 2**number, 2 if number and not block else 1
            o = 4 * f if bottleneck else f
            last = [*_normed(f, f, 3), *_normed(f, o, 1, relu=False)] if bottleneck else _normed(f, f, 3, relu=False)
            body = nn.Sequential(*_normed(i, f, 1 if bottleneck else 3, stride), *last)
            project = nn.Sequential(*_normed(i, o, 1, stride, relu=False)) if i != o or stride > 1 else None
            layers.append(_residual()(body, project))
            i = o
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 1000))


def vgg(depth: int) -> Any:
    """`jaxcnn.models.VGG` for 32x32 pixels."""
    nn = pytorch().nn

    layers, i = [], 3
    for number, count in enumerate(VGG_LAYERS[depth]):
        for _ in range(count):
            o = min(64 * 2**number, 512)
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU()]
            i = o
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(i, 10))


def lenet() -> Any:
    """`jaxcnn.models.LeNet5` in its modern form."""
    nn = pytorch().nn

    maps = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Conv2d(16, 120, 5), nn.ReLU(), nn.Flatten(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*maps, *dense)


def counterpart(name: str) -> Any:
    """The network called `name`, a key of `NETWORKS`, as a torch.nn.Module of as many parameters: [b, c, h, w] -> logits."""
    if name == "lenet5-relu":
        return lenet()
    family, depth = re.sub(r"[\d-].*", "", name), int(re.findall(r"\d+", name)[0])
    if family == "vgg":
        return vgg(depth)
    return imagenet(depth) if depth in IMAGENET_LAYERS else cifar(depth, family == "resnet")
