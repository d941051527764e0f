"""Which of our parameters is which of torchvision's, timm's or others': a table of layers' names, and one rule for all arrays.

PyTorch keeps convolutions as [out, in, h, w] and dense layers as [out, in]; here they are [h, w, in, out] and [in, out]. The
first dense layer after maps of h x w pixels takes them in the order channel, row, column there, and row, column,
channel here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from jaxcnn.models import VGG, AlexNet, CifarResNet, GoogLeNet, LeNet5, PreActResNet, ResNet
from jaxcnn.models import googlenet as inception
from jaxcnn.models import vgg as columns
from jaxcnn.weights import cifar

Path = tuple[str, ...]
"""Of a leaf in the variables, such as ("params", "stage1_block1", "conv1", "kernel")."""


class Layout(NamedTuple):
    """How a family of files names its layers.

    Attributes:
      layers: our layer -> theirs, such as "stage1_block1.conv1" -> "layer1.0.conv1", or several names to choose from. Layers
        that a network lacks do no harm. None is our own layout: our names, and arrays as they are here.
      grids: our dense layer -> the (h, w) of the maps that it takes.
      slides: whether dense layers slide over maps larger than their grid, where ours average the maps to the grid first.
      padding: where shortcut A of this family adds channels of zeros: "end", "both" (sides), or None if files differ.
    """

    layers: Mapping[str, str | tuple[str, ...]] | None = None
    grids: Mapping[str, tuple[int, int]] = {}
    slides: bool = False
    padding: str | None = None


class Leaf(NamedTuple):
    """An array of a file: its name there, its shape here, and the pixels of the maps that a dense layer takes.

    `torch` is whether the file has PyTorch's order of axes.
    """

    key: str
    shape: tuple[int, ...]
    grid: tuple[int, int] = (1, 1)
    torch: bool = True

    def forms(self) -> list[tuple[int, ...]]:
        """The shapes that the file may have; timm writes VGG's dense layers as convolutions."""
        if not self.torch or len(self.shape) not in (2, 4):
            return [self.shape]
        height, width = self.grid
        if len(self.shape) == 4:
            h, w, inputs, outputs = self.shape
            whole = [(outputs, inputs * h * w)] if (h, w) == self.grid != (1, 1) else []
            return [(outputs, inputs, h, w), *whole]
        inputs, outputs = self.shape
        return [(outputs, inputs), (outputs, inputs // (height * width), height, width)]


def ours(array: np.ndarray, leaf: Leaf) -> np.ndarray:
    """An array of the file, in one of `leaf.forms()`, as it is here.

    Example:
      >>> ours(np.zeros((64, 3, 7, 7)), Leaf("conv1.weight", (7, 7, 3, 64))).shape
      (7, 7, 3, 64)
    """
    if not leaf.torch or array.ndim not in (2, 4):
        return array
    if len(leaf.shape) == 2 or array.ndim == 2:
        array = array.reshape(len(array), -1, *leaf.grid)
    return array.transpose(2, 3, 1, 0).reshape(leaf.shape)


def theirs(array: np.ndarray, leaf: Leaf) -> np.ndarray:
    """The inverse of `ours`: an array of shape `leaf.shape` in the first of `leaf.forms()`."""
    if not leaf.torch or array.ndim not in (2, 4):
        return array
    if array.ndim == 2:
        array = array.reshape(*leaf.grid, -1, array.shape[-1])
    return array.transpose(3, 2, 0, 1).reshape(leaf.forms()[0])


_TORCH = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def leaves(layout: Layout, specs: Mapping[Path, Any], shapes: Mapping[str, tuple[int, ...]] = {}) -> dict[Path, Leaf]:
    """Where the file has each leaf of a network's variables.

    Args:
      layout: one of `layouts`.
      specs: anything with a shape, by path.
      shapes: the file's, by name, to choose among several names of a layer; without it the first is taken.

    Raises:
      KeyError: for a layer that is not in the table.
    """
    if layout.layers is None:
        return {path: Leaf(".".join(path[1:]), tuple(spec.shape), torch=False) for path, spec in specs.items()}
    chosen: dict[str, str] = {}
    there = {key.rpartition(".")[0] for key in shapes}
    found: dict[Path, Leaf] = {}
    for path, spec in sorted(specs.items(), key=lambda item: -len(item[1].shape)):  # a kernel's shape tells the most
        layer, name = ".".join(path[1:-1]), _TORCH.get(path[-1], path[-1])
        leaf = Leaf("", tuple(spec.shape), layout.grids.get(layer, (1, 1)))
        if (start := chosen.get(layer)) is None:
            names = layout.layers[layer]
            names = (names,) if isinstance(names, str) else names
            start = names[0] if len(names) == 1 else _choice(names, name, leaf.forms(), shapes, there)
            chosen[layer] = start
        found[path] = leaf._replace(key=f"{start}.{name}" if start else name)
    return {path: found[path] for path in specs}


def _choice(names: tuple[str, ...], name: str, forms: list[tuple[int, ...]], shapes: Any, there: set[str]) -> str:
    """The layer's name in the file: one whose array has the right shape, else one that is there, else the first.

    "*" stands for the only layer of that shape.
    """
    fits = [key for key in names if shapes.get(f"{key}.{name}") in forms]
    if not fits and "*" in names:
        like = [
            key.removesuffix(f".{name}") for key, shape in shapes.items() if key.endswith(f".{name}") and shape in forms
        ]
        fits = like if len(like) == 1 else []
    return next(iter([*fits, *(key for key in names if key in there)]), names[0])


def layouts(model: nn.Module) -> list[Layout]:
    """The layouts in which weights of a network may come: the one that `export` writes, then others."""
    own, dense = Layout(), {"aux1.dense": (4, 4), "aux2.dense": (4, 4)}
    if isinstance(model, ResNet):
        torchvision = Layout(cifar.residual(model))
        return [torchvision, own] if model.residual and model.shortcut == "B" else [own, torchvision]
    if isinstance(model, VGG) and model.size == 224:
        sevens = {"dense1": (7, 7)}
        return [Layout(_vgg(model, _CLASSIFIER), sevens), Layout(_vgg(model, _TIMM), sevens, slides=True), own]
    if isinstance(model, AlexNet) and not model.towers:
        return [Layout(_ALEXNET, {"dense1": (6, 6)}), own]
    if isinstance(model, GoogLeNet) and model.norm:
        return [Layout(_googlenet(), dense), own]
    return [own, *_small(model)]


def _small(model: nn.Module) -> list[Layout]:
    """The layouts of networks for small images, and of networks with activation before weights."""
    if isinstance(model, CifarResNet):
        known = [Layout(cifar.martyn(model), padding="end"), Layout(cifar.lettered(model), padding="end")]
        known = [] if model.residual and model.shortcut == "B" else known  # they have shortcut A alone
        return [Layout(cifar.residual(model)), *known, Layout(cifar.units(model))]
    if isinstance(model, PreActResNet):
        return [Layout(cifar.preactivation(model)), Layout(cifar.units(model))]
    if isinstance(model, LeNet5):
        return [Layout(cifar.lenet(model), {"c5": (5, 5)})]
    return [Layout(cifar.vgg(model))] if isinstance(model, VGG) else []


_CLASSIFIER = {"dense1": "classifier.0", "dense2": "classifier.3", "head": "classifier.6"}
_TIMM = {"dense1": "pre_logits.fc1", "dense2": "pre_logits.fc2", "head": "head.fc"}


def _vgg(model: VGG, dense: Mapping[str, str]) -> dict[str, str]:
    """Torch numbers every layer of `features`: convolution, BN if any, ReLU, and each stage's pooling."""
    names, at = dict(dense), 0
    for stage, count in enumerate(columns.LAYERS[model.depth], 1):
        for layer in range(count):
            name = f"stage{stage}_conv{layer + 1}"
            names |= {name: f"features.{at}", f"{name}_norm": f"features.{at + 1}"}
            at += 3 if model.norm else 2
        at += 1
    return names


_ALEXNET = {f"conv{i}": f"features.{at}" for i, at in enumerate((0, 3, 6, 8, 10), 1)}
_ALEXNET |= {"dense1": "classifier.1", "dense2": "classifier.4", "head": "classifier.6"}
_BRANCHES = {"branch1": "branch1", "branch2_reduce": "branch2.0", "branch2": "branch2.1"}
_BRANCHES |= {"branch3_reduce": "branch3.0", "branch3": "branch3.1", "branch4": "branch4.1"}


def _googlenet() -> dict[str, str]:
    units = {f"conv{i}": f"conv{i}" for i in (1, 2, 3)} | {f"{aux}.conv": f"{aux}.conv" for aux in ("aux1", "aux2")}
    units |= {f"{module}.{a}": f"{module}.{b}" for module in inception.TABLE for a, b in _BRANCHES.items()}
    names = {a: f"{b}.conv" for a, b in units.items()} | {f"{a}_norm": f"{b}.bn" for a, b in units.items()}
    for aux in ("aux1", "aux2"):
        names |= {f"{aux}.dense": f"{aux}.fc1", f"{aux}.head": f"{aux}.fc2"}
    return names | {"head": "fc"}
