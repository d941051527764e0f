"""Layouts of weight files: layer names, and one rule for arrays.

The tables map this library's layers to those of torchvision, timm and other scripts.

PyTorch stores convolutions as [out, in, h, w] and dense layers as [out, in]. Here they are [h, w,
in, out] and [in, out]. The first dense layer after maps of h x w pixels takes them in the order
channel, row, column there, and row, column, channel here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from jaxcnn.models import VGG, AlexNet, CifarResNet, GoogLeNet, LeNet5, PreActResNet, ResNet
from jaxcnn.models import googlenet as inception
from jaxcnn.models import vgg as columns
from jaxcnn.weights._networks import Path

LayerNames = Mapping[str, str | tuple[str, ...]]
"""The file's name, or several candidates, for each of our layers.

The first name that the file has, with an array of the right shape, is taken.
"""


class Layout(NamedTuple):
    """Names of layers, and order of axes, in a family of files.

    Attributes:
      layers: the file's name of each of our layers, such as "layer1.0.conv1" for
        "stage1_block1.conv1". There may be several names to choose from. Layers that a network
        lacks are ignored. None is our own layout, with our names and our order of axes.
      grids: (h, w) of the maps that a dense layer takes, by our name of it.
      has_sliding_dense: whether dense layers slide over maps larger than their grid. Ours average
        such maps to the grid first.
      shortcut_padding: where shortcut A of this family adds channels of zeros: "end", "both"
        (sides), or None if files differ.
    """

    layers: LayerNames | None = None
    grids: Mapping[str, tuple[int, int]] = {}
    has_sliding_dense: bool = False
    shortcut_padding: str | None = None


class Leaf(NamedTuple):
    """An array of a file.

    Attributes:
      key: its name in the file.
      shape: its shape in this library.
      grid: (h, w) of the maps that a dense layer takes.
      torch: whether the file has PyTorch's order of axes.
    """

    key: str
    shape: tuple[int, ...]
    grid: tuple[int, int] = (1, 1)
    torch: bool = True

    def forms(self) -> list[tuple[int, ...]]:
        """Return the shapes that the array may have in the file.

        There are several because timm writes VGG's dense layers as convolutions.
        """
        if not self.torch or len(self.shape) not in (2, 4):
            return [self.shape]
        height, width = self.grid
        if len(self.shape) == 4:
            h, w, inputs, outputs = self.shape
            # A convolution over the whole map may be a dense layer there.
            dense = [(outputs, inputs * h * w)] if (h, w) == self.grid != (1, 1) else []
            return [(outputs, inputs, h, w), *dense]
        inputs, outputs = self.shape
        return [(outputs, inputs), (outputs, inputs // (height * width), height, width)]


# ---------------------------------------------------------------- arrays


def from_file_layout(array: np.ndarray, leaf: Leaf) -> np.ndarray:
    """Convert an array of the file to this library's order of axes.

    Args:
      array: of a shape in `leaf.forms()`.
      leaf: describes the array.

    Example:
      >>> from_file_layout(np.zeros((64, 3, 7, 7)), Leaf("conv1.weight", (7, 7, 3, 64))).shape
      (7, 7, 3, 64)
    """
    if not leaf.torch or array.ndim not in (2, 4):
        return array
    if len(leaf.shape) == 2 or array.ndim == 2:
        array = array.reshape(len(array), -1, *leaf.grid)
    return array.transpose(2, 3, 1, 0).reshape(leaf.shape)


def to_file_layout(array: np.ndarray, leaf: Leaf) -> np.ndarray:
    """Convert an array of shape `leaf.shape` to the first of `leaf.forms()`.

    This is the inverse of `from_file_layout`.
    """
    if not leaf.torch or array.ndim not in (2, 4):
        return array
    if array.ndim == 2:
        array = array.reshape(*leaf.grid, -1, array.shape[-1])
    return array.transpose(3, 2, 0, 1).reshape(leaf.forms()[0])


# ---------------------------------------------------------------- names

TORCH_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
"""PyTorch's names of a layer's arrays, by Flax's names."""


def locate_leaves(
    layout: Layout, specs: Mapping[Path, Any], shapes: Mapping[str, tuple[int, ...]] = {}
) -> dict[Path, Leaf]:
    """Return the location in the file of each leaf.

    The leaves are those of a network's variables.

    Args:
      layout: one of `layouts`.
      specs: anything with a shape, by path.
      shapes: the file's, by name, to choose among several names of a layer. Without it the first is
        taken.

    Raises:
      KeyError: a layer is not in the table.
    """
    if layout.layers is None:
        counts = Counter(".".join(path[1:]) for path in specs)
        return {
            path: Leaf(_own_key(path, counts), tuple(spec.shape), torch=False)
            for path, spec in specs.items()
        }
    chosen: dict[str, str] = {}
    file_layers = {key.rpartition(".")[0] for key in shapes}
    located: dict[Path, Leaf] = {}
    # A kernel has the most specific shape, and chooses the name for the layer's other arrays.
    for path, spec in sorted(specs.items(), key=lambda item: -len(item[1].shape)):
        layer, name = ".".join(path[1:-1]), TORCH_NAMES.get(path[-1], path[-1])
        leaf = Leaf("", tuple(spec.shape), layout.grids.get(layer, (1, 1)))
        if (start := chosen.get(layer)) is None:
            names = layout.layers[layer]
            names = (names,) if isinstance(names, str) else names
            start = names[0]
            if len(names) > 1:
                start = _choose_name(names, name, leaf.forms(), shapes, file_layers)
            chosen[layer] = start
        located[path] = leaf._replace(key=f"{start}.{name}" if start else name)
    return {path: located[path] for path in specs}


def _own_key(path: Path, counts: Counter[str]) -> str:
    """Return a variable's name in our own layout.

    Names of parameters and of BN's averages are without their collection, unless both have it.
    """
    key = ".".join(path[1:])
    is_unique = path[0] == "batch_stats" and counts[key] == 1
    return key if path[0] == "params" or is_unique else f"{path[0]}:{key}"


def _choose_name(
    names: tuple[str, ...],
    name: str,
    forms: list[tuple[int, ...]],
    shapes: Any,
    file_layers: set[str],
) -> str:
    """Return the layer's name in the file.

    It is a name whose array has the right shape, else one that the file has, else the first. "*"
    stands for the only layer of that shape.
    """
    matches = [key for key in names if shapes.get(f"{key}.{name}") in forms]
    if not matches and "*" in names:
        same_shape = [
            key.removesuffix(f".{name}")
            for key, shape in shapes.items()
            if key.endswith(f".{name}") and shape in forms
        ]
        matches = same_shape if len(same_shape) == 1 else []
    return next(iter([*matches, *(key for key in names if key in file_layers)]), names[0])


def layouts(model: nn.Module) -> list[Layout]:
    """Return the layouts in which weights of a network may be stored.

    The first is the one that `export_weights` writes.
    """
    own, aux_grids = Layout(), {"aux1.dense": (4, 4), "aux2.dense": (4, 4)}
    if isinstance(model, ResNet):
        torchvision = Layout(_residual_names(model))
        has_torchvision = model.residual and model.shortcut == "B"
        return [torchvision, own] if has_torchvision else [own, torchvision]
    if isinstance(model, VGG) and model.size == 224:
        grids = {"dense1": (7, 7)}
        return [
            Layout(_vgg_names(model, _TORCHVISION_DENSE), grids),
            Layout(_vgg_names(model, _TIMM_DENSE), grids, has_sliding_dense=True),
            own,
        ]
    if isinstance(model, AlexNet) and not model.towers:
        return [Layout(_ALEXNET_NAMES, {"dense1": (6, 6)}), own]
    if isinstance(model, GoogLeNet) and model.norm:
        return [Layout(_googlenet_names(), aux_grids), own]
    return [own, *_other_layouts(model)]


def _other_layouts(model: nn.Module) -> list[Layout]:
    """Return the layouts of pre-activation networks and networks for small images."""
    if isinstance(model, CifarResNet):
        shortcut_a = [
            Layout(_martyn_names(model), shortcut_padding="end"),
            Layout(_resnext_script_names(model), shortcut_padding="end"),
        ]
        # These two families have shortcut A alone.
        has_shortcut_b = model.residual and model.shortcut == "B"
        shortcut_a = [] if has_shortcut_b else shortcut_a
        return [
            Layout(_residual_names(model)),
            *shortcut_a,
            Layout(_pytorchcv_names(model)),
        ]
    if isinstance(model, PreActResNet):
        return [Layout(_preactivation_names(model)), Layout(_pytorchcv_names(model))]
    if isinstance(model, LeNet5):
        return [Layout(_LENET_NAMES, {"c5": (5, 5)})]
    return [Layout(_small_vgg_names(model))] if isinstance(model, VGG) else []


# ---------------------------------------------------------------- tables: torchvision and timm

_TORCHVISION_DENSE = {"dense1": "classifier.0", "dense2": "classifier.3", "head": "classifier.6"}
_TIMM_DENSE = {"dense1": "pre_logits.fc1", "dense2": "pre_logits.fc2", "head": "head.fc"}


def _vgg_names(model: VGG, dense: Mapping[str, str]) -> dict[str, str]:
    """Return the names of VGG for images of 224x224.

    PyTorch numbers every layer of `features`: convolution, BN if any, ReLU, and each stage's
    pooling.
    """
    names, index = dict(dense), 0
    for stage, count in enumerate(columns.LAYERS[model.depth], 1):
        for layer in range(count):
            name = f"stage{stage}_conv{layer + 1}"
            names |= {name: f"features.{index}", f"{name}_norm": f"features.{index + 1}"}
            index += 3 if model.norm else 2
        index += 1
    return names


_ALEXNET_NAMES = {f"conv{i}": f"features.{index}" for i, index in enumerate((0, 3, 6, 8, 10), 1)}
_ALEXNET_NAMES |= {"dense1": "classifier.1", "dense2": "classifier.4", "head": "classifier.6"}
_BRANCHES = {"branch1": "branch1", "branch2_reduce": "branch2.0", "branch2": "branch2.1"}
_BRANCHES |= {"branch3_reduce": "branch3.0", "branch3": "branch3.1", "branch4": "branch4.1"}


def _googlenet_names() -> dict[str, str]:
    units = {f"conv{i}": f"conv{i}" for i in (1, 2, 3)}
    units |= {f"{aux}.conv": f"{aux}.conv" for aux in ("aux1", "aux2")}
    units |= {
        f"{module}.{branch}": f"{module}.{torch_branch}"
        for module in inception.TABLE
        for branch, torch_branch in _BRANCHES.items()
    }
    names = {unit: f"{torch_unit}.conv" for unit, torch_unit in units.items()}
    names |= {f"{unit}_norm": f"{torch_unit}.bn" for unit, torch_unit in units.items()}
    for aux in ("aux1", "aux2"):
        names |= {f"{aux}.dense": f"{aux}.fc1", f"{aux}.head": f"{aux}.fc2"}
    return names | {"head": "fc"}


# ---------------------------------------------------------------- tables: other networks

_HEADS = ("fc", "linear", "classifier", "fcOut", "output", "head", "head.fc", "fc_out", "logits")
_HEADS += ("dense",)
_PROJECTIONS = ("downsample.0", "shortcut.0", "shortcut.conv", "downsample.conv")
_PROJECTIONS += ("identity_conv.conv", "skip.0")
_PROJECTION_NORMS = ("downsample.1", "shortcut.1", "shortcut.bn", "downsample.bn")
_PROJECTION_NORMS += ("identity_conv.bn", "skip.1")
# A projection without BN needs no Sequential.
_LONE_PROJECTIONS = (*_PROJECTIONS, "downsample", "shortcut", "identity_conv", "project")


def _blocks(model: CifarResNet | ResNet | PreActResNet) -> list[tuple[str, int, int]]:
    """Return (our name, stage from 1, block from 0) of every block."""
    counts = [model.blocks] * 3 if isinstance(model, CifarResNet) else model.blocks
    return [
        (f"stage{stage}_block{block + 1}", stage, block)
        for stage, count in enumerate(counts, 1)
        for block in range(count)
    ]


def _residual_names(model: CifarResNet | ResNet) -> LayerNames:
    """Return the names of most scripts, torchvision's first.

    They are "layer1.0.conv1" and the like, with "fc" or "linear" at the end.
    """
    names: dict[str, str | tuple[str, ...]] = {
        "stem": ("conv1", "conv"),
        "stem_norm": ("bn1", "bn"),
        "head": _HEADS,
    }
    for name, stage, block in _blocks(model):
        torch_name = f"layer{stage}.{block}"
        names |= {f"{name}.conv{i}": f"{torch_name}.conv{i}" for i in (1, 2, 3)}
        names |= {f"{name}.norm{i}": f"{torch_name}.bn{i}" for i in (1, 2, 3)}
        names[f"{name}.project"] = tuple(f"{torch_name}.{part}" for part in _PROJECTIONS)
        names[f"{name}.project_norm"] = tuple(f"{torch_name}.{part}" for part in _PROJECTION_NORMS)
    return names


def _martyn_names(model: CifarResNet) -> LayerNames:
    """Return the names of a-martyn/resnet.

    They are "convIn", "stack1.0.conv1", "stack2a.conv1", "stack2b.0.conv1" and "fcOut".
    """
    names: dict[str, str | tuple[str, ...]] = {
        "stem": "convIn",
        "stem_norm": "bnIn",
        "head": "fcOut",
    }
    for name, stage, block in _blocks(model):
        later = f"stack{stage}b.{block - 1}" if block else f"stack{stage}a"
        torch_name = f"stack1.{block}" if stage == 1 else later
        names |= {f"{name}.conv{i}": f"{torch_name}.conv{i}" for i in (1, 2)}
        names |= {f"{name}.norm{i}": f"{torch_name}.bn{i}" for i in (1, 2)}
    return names


def _resnext_script_names(model: CifarResNet) -> LayerNames:
    """Return the names of D-X-Y/ResNeXt-DenseNet and scripts derived from it.

    They are "conv_1_3x3", "stage_1.0.conv_a" and "classifier".
    """
    names: dict[str, str | tuple[str, ...]] = {
        "stem": "conv_1_3x3",
        "stem_norm": "bn_1",
        "head": "classifier",
    }
    for name, stage, block in _blocks(model):
        for number, letter in ((1, "a"), (2, "b")):
            names[f"{name}.conv{number}"] = f"stage_{stage}.{block}.conv_{letter}"
            names[f"{name}.norm{number}"] = f"stage_{stage}.{block}.bn_{letter}"
    return names


def _pytorchcv_names(model: CifarResNet | PreActResNet) -> LayerNames:
    """Return the names of osmr/imgclsmob (pytorchcv).

    They are "features.init_block", "features.stage1.unit1.body.conv1.conv" and "output".
    """
    first, last = "features.init_block", "features.post_activ.bn"
    names: dict[str, str | tuple[str, ...]] = {
        "stem": (first, f"{first}.conv"),
        "stem_norm": f"{first}.bn",
    }
    if isinstance(model, PreActResNet):
        names |= {"stem_norm": "features.stage1.unit1.body.conv1.bn", "norm": last}
    for name, stage, block in _blocks(model):
        torch_name = f"features.stage{stage}.unit{block + 1}"
        names |= {f"{name}.conv{i}": f"{torch_name}.body.conv{i}.conv" for i in (1, 2, 3)}
        names |= {f"{name}.norm{i}": f"{torch_name}.body.conv{i}.bn" for i in (1, 2, 3)}
        projection = f"{torch_name}.identity_conv"
        names[f"{name}.project"] = (f"{projection}.conv", projection)
        names[f"{name}.project_norm"] = f"{projection}.bn"
    return names | {"head": "output"}


def _preactivation_names(model: PreActResNet) -> LayerNames:
    """Return the usual names of pre-activation networks.

    They are "conv1", "layer1.0.bn1", "layer1.0.conv1" and so on, then "bn", and "fc" or "linear".
    BN between the stem and the first block is the network's own "bn1", or the first block's.
    """
    names: dict[str, str | tuple[str, ...]] = {"stem": ("conv1", "conv"), "head": _HEADS}
    names["stem_norm"] = ("bn1", "layer1.0.bn1")
    names["norm"] = (
        "bn", "bn_last", "norm", "bn_final", "final_bn", "bn2", "bn1", "bn4", "post_bn",
    )  # fmt: skip
    for name, stage, block in _blocks(model):
        torch_name = f"layer{stage}.{block}"
        names |= {f"{name}.conv{i}": f"{torch_name}.conv{i}" for i in (1, 2, 3)}
        names |= {f"{name}.norm{i}": f"{torch_name}.bn{i}" for i in (1, 2, 3)}
        names[f"{name}.project"] = tuple(f"{torch_name}.{part}" for part in _LONE_PROJECTIONS)
    return names


_LENET_NAMES: LayerNames = {
    "c1": ("conv1", "c1", "features.0", "*"),
    "c3": ("conv2", "c3", "features.3", "*"),
    "c5": ("conv3", "c5", "fc1", "*"),
    "f6": ("fc1", "f6", "fc2", "*"),
    "head": ("fc3", "fc2", "output", "f7", "fc", "linear", "classifier", "*"),
}
"""Names of LeNet-5, in any script by "*".

No two of its layers have the same shape.

C5 may be a dense layer after maps of 5x5.
"""


def _small_vgg_names(model: VGG) -> LayerNames:
    """Return the names of VGG with one dense layer.

    They are "features.0" and so on, numbered as torchvision's, and "classifier", "linear" or "fc".
    """
    heads = (*_HEADS, *(f"classifier.{i}" for i in range(7)))
    names: dict[str, str | tuple[str, ...]] = {"head": ("classifier", *heads)}
    index = 0
    for stage, count in enumerate(columns.LAYERS[model.depth], 1):
        for layer in range(count):
            name = f"stage{stage}_conv{layer + 1}"
            names[name] = (f"features.{index}", f"layers.{index}", f"feature.{index}", f"{index}")
            if model.norm:
                prefixes = ("features.", "layers.", "feature.", "")
                names[f"{name}_norm"] = tuple(f"{prefix}{index + 1}" for prefix in prefixes)
            index += 3 if model.norm else 2
        index += 1
    return names
