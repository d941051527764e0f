"""How others name the layers of networks for 32x32 images, and of networks with activation before weights.

Values are one name or several: the first that the file has, with an array of the right shape, is taken.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxcnn.models import VGG, CifarResNet, LeNet5, PreActResNet, ResNet
from jaxcnn.models import vgg as columns

Names = Mapping[str, str | tuple[str, ...]]
"""Our layer -> theirs."""

_HEADS = ("fc", "linear", "classifier", "fcOut", "output", "head", "head.fc", "fc_out", "logits", "dense")
_PROJECT = ("downsample.0", "shortcut.0", "shortcut.conv", "downsample.conv", "identity_conv.conv", "skip.0")
_PROJECT_NORM = ("downsample.1", "shortcut.1", "shortcut.bn", "downsample.bn", "identity_conv.bn", "skip.1")
_ALONE = (*_PROJECT, "downsample", "shortcut", "identity_conv", "project")  # without BN it needs no Sequential


def residual(model: CifarResNet | ResNet) -> Names:
    """The names that most scripts follow, torchvision's first: "layer1.0.conv1", and "fc" or "linear" at the end."""
    names: dict[str, str | tuple[str, ...]] = {"stem": ("conv1", "conv"), "stem_norm": ("bn1", "bn"), "head": _HEADS}
    for ours, stage, block in _blocks(model):
        theirs = f"layer{stage}.{block}"
        names |= {f"{ours}.conv{i}": f"{theirs}.conv{i}" for i in (1, 2, 3)}
        names |= {f"{ours}.norm{i}": f"{theirs}.bn{i}" for i in (1, 2, 3)}
        names[f"{ours}.project"] = tuple(f"{theirs}.{name}" for name in _PROJECT)
        names[f"{ours}.project_norm"] = tuple(f"{theirs}.{name}" for name in _PROJECT_NORM)
    return names


def martyn(model: CifarResNet) -> Names:
    """a-martyn/resnet: "convIn", "stack1.0.conv1", "stack2a.conv1", "stack2b.0.conv1", "fcOut"."""
    names: dict[str, str | tuple[str, ...]] = {"stem": "convIn", "stem_norm": "bnIn", "head": "fcOut"}
    for ours, stage, block in _blocks(model):
        later = f"stack{stage}b.{block - 1}" if block else f"stack{stage}a"
        theirs = f"stack1.{block}" if stage == 1 else later
        names |= {f"{ours}.conv{i}": f"{theirs}.conv{i}" for i in (1, 2)}
        names |= {f"{ours}.norm{i}": f"{theirs}.bn{i}" for i in (1, 2)}
    return names


def lettered(model: CifarResNet) -> Names:
    """D-X-Y/ResNeXt-DenseNet and what follows it: "conv_1_3x3", "stage_1.0.conv_a", "classifier"."""
    names: dict[str, str | tuple[str, ...]] = {"stem": "conv_1_3x3", "stem_norm": "bn_1", "head": "classifier"}
    for ours, stage, block in _blocks(model):
        for number, letter in ((1, "a"), (2, "b")):
            names[f"{ours}.conv{number}"] = f"stage_{stage}.{block}.conv_{letter}"
            names[f"{ours}.norm{number}"] = f"stage_{stage}.{block}.bn_{letter}"
    return names


def units(model: CifarResNet | PreActResNet) -> Names:
    """osmr/imgclsmob (pytorchcv): "features.init_block", "features.stage1.unit1.body.conv1.conv", "output"."""
    before = isinstance(model, PreActResNet)
    start, end = "features.init_block", "features.post_activ.bn"
    names: dict[str, str | tuple[str, ...]] = {"stem": (start, f"{start}.conv"), "stem_norm": f"{start}.bn"}
    if before:
        names |= {"stem_norm": "features.stage1.unit1.body.conv1.bn", "norm": end}
    for ours, stage, block in _blocks(model):
        theirs = f"features.stage{stage}.unit{block + 1}"
        names |= {f"{ours}.conv{i}": f"{theirs}.body.conv{i}.conv" for i in (1, 2, 3)}
        names |= {f"{ours}.norm{i}": f"{theirs}.body.conv{i}.bn" for i in (1, 2, 3)}
        names[f"{ours}.project"] = (f"{theirs}.identity_conv.conv", f"{theirs}.identity_conv")
        names[f"{ours}.project_norm"] = f"{theirs}.identity_conv.bn"
    return names | {"head": "output"}


def preactivation(model: PreActResNet) -> Names:
    """ "conv1", "layer1.0.bn1", "layer1.0.conv1", ..., "bn", "fc" or "linear".

    BN between the stem and the first block is the network's own "bn1", or the first block's.
    """
    names: dict[str, str | tuple[str, ...]] = {"stem": ("conv1", "conv"), "head": _HEADS}
    names["stem_norm"] = ("bn1", "layer1.0.bn1")
    names["norm"] = ("bn", "bn_last", "norm", "bn_final", "final_bn", "bn2", "bn1", "bn4", "post_bn")
    for ours, stage, block in _blocks(model):
        theirs = f"layer{stage}.{block}"
        names |= {f"{ours}.conv{i}": f"{theirs}.conv{i}" for i in (1, 2, 3)}
        names |= {f"{ours}.norm{i}": f"{theirs}.bn{i}" for i in (1, 2, 3)}
        names[f"{ours}.project"] = tuple(f"{theirs}.{name}" for name in _ALONE)
    return names


def lenet(model: LeNet5) -> Names:
    """LeNet-5 by any names: no two of its layers have the same shape. C5 may be a dense layer after 5x5 maps."""
    return {
        "c1": ("conv1", "c1", "features.0", "*"),
        "c3": ("conv2", "c3", "features.3", "*"),
        "c5": ("conv3", "c5", "fc1", "*"),
        "f6": ("fc1", "f6", "fc2", "*"),
        "head": ("fc3", "fc2", "output", "f7", "fc", "linear", "classifier", "*"),
    }


def vgg(model: VGG) -> Names:
    """ "features.0", numbered as torchvision's, and one dense layer: "classifier", "linear", "fc", ...."""
    heads = (*_HEADS, *(f"classifier.{i}" for i in range(7)))
    names: dict[str, str | tuple[str, ...]] = {"head": ("classifier", *heads)}
    at = 0
    for stage, count in enumerate(columns.LAYERS[model.depth], 1):
        for layer in range(count):
            name = f"stage{stage}_conv{layer + 1}"
            names[name] = (f"features.{at}", f"layers.{at}", f"feature.{at}", f"{at}")
            if model.norm:
                names[f"{name}_norm"] = tuple(f"{start}{at + 1}" for start in ("features.", "layers.", "feature.", ""))
            at += 3 if model.norm else 2
        at += 1
    return names


def _blocks(model: CifarResNet | ResNet | PreActResNet) -> list[tuple[str, int, int]]:
    """(our name, stage from 1, block from 0) of every block."""
    counts = [model.blocks] * 3 if isinstance(model, CifarResNet) else model.blocks
    return [
        (f"stage{stage}_block{block + 1}", stage, block)
        for stage, count in enumerate(counts, 1)
        for block in range(count)
    ]
