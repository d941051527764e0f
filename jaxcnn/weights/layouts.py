"""Which of our parameters is which of torchvision's, or timm's: a table of layers' names, and one rule for all arrays.

PyTorch keeps convolutions as [out, in, h, w] and dense layers as [out, in]; here they are [h, w, in, out] and [in, out]. The
first dense layer after maps of h x w pixels takes them in the order channel, row, column there, and row, column,
channel here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from jaxcnn.models import VGG, AlexNet, GoogLeNet, ResNet
from jaxcnn.models import googlenet as inception
from jaxcnn.models import vgg as columns

Path = tuple[str, ...]
"""Of a leaf in the variables, such as ("params", "stage1_block1", "conv1", "kernel")."""


class Layout(NamedTuple):
    """How a family of files names its layers.

    Attributes:
      layers: our layer -> theirs, such as "stage1_block1.conv1" -> "layer1.0.conv1". Layers that a network lacks do no harm.
        None is our own layout: our names, and arrays as they are here.
      grids: our dense layer -> the (h, w) of the maps that it takes.
    """

    layers: Mapping[str, str] | None = None
    grids: Mapping[str, tuple[int, int]] = {}


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
        if len(self.shape) == 4:
            return [(self.shape[3], self.shape[2], *self.shape[:2])]
        inputs, outputs = self.shape
        height, width = self.grid
        return [(outputs, inputs), (outputs, inputs // (height * width), height, width)]


def ours(array: np.ndarray, leaf: Leaf) -> np.ndarray:
    """An array of the file, in one of `leaf.forms()`, as it is here.

    Example:
      >>> ours(np.zeros((64, 3, 7, 7)), Leaf("conv1.weight", (7, 7, 3, 64))).shape
      (7, 7, 3, 64)
    """
    if not leaf.torch or array.ndim not in (2, 4):
        return array
    if len(leaf.shape) == 2:
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


def leaves(layout: Layout, specs: Mapping[Path, Any]) -> dict[Path, Leaf]:
    """Where the file has each leaf of a network's variables (anything with a shape); KeyError for a layer not in the table."""
    found = {}
    for path, spec in specs.items():
        layer, name = ".".join(path[1:-1]), path[-1]
        if layout.layers is None:
            found[path] = Leaf(".".join(path[1:]), tuple(spec.shape), torch=False)
        else:
            key = f"{layout.layers[layer]}.{_TORCH[name]}"
            found[path] = Leaf(key, tuple(spec.shape), layout.grids.get(layer, (1, 1)))
    return found


def layouts(model: nn.Module) -> list[Layout]:
    """The layouts in which weights of a network may come: the one that `export` writes, then others, our own the last."""
    published = []
    if isinstance(model, ResNet) and model.residual and model.shortcut == "B":
        published = [Layout(_resnet(model))]
    elif isinstance(model, VGG) and model.size == 224:
        published = [Layout(names, {"dense1": (7, 7)}) for names in (_vgg(model, _CLASSIFIER), _vgg(model, _TIMM))]
    elif isinstance(model, AlexNet) and not model.towers:
        published = [Layout(_ALEXNET, {"dense1": (6, 6)})]
    elif isinstance(model, GoogLeNet) and model.norm:
        published = [Layout(_googlenet(), {"aux1.dense": (4, 4), "aux2.dense": (4, 4)})]
    return [*published, Layout()]


def _resnet(model: ResNet) -> dict[str, str]:
    names = {"stem": "conv1", "stem_norm": "bn1", "head": "fc"}
    parts = {f"conv{i}": f"conv{i}" for i in (1, 2, 3)} | {f"norm{i}": f"bn{i}" for i in (1, 2, 3)}
    parts |= {"project": "downsample.0", "project_norm": "downsample.1"}
    for stage, blocks in enumerate(model.blocks, 1):
        for block in range(blocks):
            names |= {f"stage{stage}_block{block + 1}.{a}": f"layer{stage}.{block}.{b}" for a, b in parts.items()}
    return names


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
