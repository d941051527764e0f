"""Properties of a network that its weights depend on.

These are its variables, the name its weights are published under, a description of an unknown
network, and the padding of its shortcuts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxcnn.models import (
    MODELS,
    VGG,
    AlexNet,
    CifarResNet,
    GoogLeNet,
    LeNet5,
    PreActResNet,
    ResNet,
    resnet,
    vgg,
)
from jaxcnn.models.calling import variable_shapes
from jaxcnn.models.norm import intercept_calls

Path = tuple[str, ...]
"""Path of a leaf in the variables, as ("params", "stage1_block1", "conv1", "kernel")."""

# ---------------------------------------------------------------- variables


class Traced(NamedTuple):
    """Variables and layers of a network, from one abstract call.

    Attributes:
      specs: the shape of every leaf of the variables, by path.
      heads: the layers of logits (called "head"), by name.
      grids: (h, w) of the maps that a dense layer takes, by its name; None where it is unknown.
      transposed: names of transposed convolutions.
    """

    specs: dict[Path, jax.ShapeDtypeStruct]
    heads: dict[str, nn.Dense]
    grids: dict[str, tuple[int, int] | None]
    transposed: tuple[str, ...]


def trace(model: nn.Module, shape: tuple[int, ...]) -> Traced:
    """Trace a network's initialization for images of `shape` [h, w, c].

    The network may be of this library or any flax module. Nothing is computed.
    """
    dense: dict[str, nn.Dense] = {}
    grids: dict[str, tuple[int, int] | None] = {}
    transposed: list[str] = []
    map_shapes = [tuple(shape)]

    def record(call, args, kwargs, context):
        module, name = context.module, ".".join(context.module.path)
        if isinstance(module, nn.Dense):
            dense[name] = module
            if args and args[0].ndim == 2 and name not in grids:
                grids[name] = _grid(args[0].shape[-1], map_shapes[-1])
                map_shapes.append((1, 1, module.features))
        if isinstance(module, nn.ConvTranspose):
            transposed.append(name)
        result = call(*args, **kwargs)
        if getattr(result, "ndim", 0) == 4:
            map_shapes.append(result.shape[1:])
        return result

    with intercept_calls(record):
        image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        variables: Any = variable_shapes(model, image)
    heads = {name: layer for name, layer in dense.items() if name.split(".")[-1] == "head"}
    specs: Any = flatten_dict(variables)
    return Traced(dict(specs), heads, grids, tuple(transposed))


def _grid(features: int, map_shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return (h, w) of the maps that were flattened to `features`.

    Args:
      features: of the dense layer's input.
      map_shape: (h, w, c) of the last maps, which may have been pooled since.
    """
    height, width, channels = map_shape
    if features == channels:
        return (1, 1)
    pixels, remainder = divmod(features, channels)
    if remainder:
        return None
    if pixels == height * width:
        return (height, width)
    side = math.isqrt(pixels)
    return (side, side) if side * side == pixels and height == width else None


def default_image_shape(model: nn.Module) -> tuple[int, int, int]:
    """Return the usual shape [h, w, c] of a network's images."""
    if isinstance(model, LeNet5):
        return (28, 28, 1)
    is_small = (
        isinstance(model, CifarResNet)
        or (isinstance(model, PreActResNet) and model.small)
        or (isinstance(model, VGG) and model.size == 32)
    )
    return (32, 32, 3) if is_small else (224, 224, 3)


# ---------------------------------------------------------------- published names

_DISTINGUISHING_FIELDS = {
    ResNet: ("blocks", "bottleneck", "residual", "stride_in_3x3"),
    VGG: ("depth", "norm", "size"),
    AlexNet: ("towers",),
    GoogLeNet: ("norm",),
}
"""Fields in which networks of different names differ.

The others are options of a network of the same name.
"""


def published_name(model: nn.Module) -> str | None:
    """Return the key of `MODELS` that makes networks like `model`.

    It is None where nobody publishes weights of such networks.

    Example:
      >>> from jaxcnn.models import create_model
      >>> published_name(create_model("resnet50-v1.5", num_classes=3, width=8))
      'resnet50-v1.5'
    """
    names = [
        name
        for name, make in MODELS.items()
        if type(model) in _DISTINGUISHING_FIELDS
        and _identity(make(num_classes=2)) == _identity(model)
    ]
    # Bottleneck networks with unusual numbers of blocks still differ in their version.
    if not names and isinstance(model, ResNet) and model.bottleneck:
        return "resnet-v1.5" if model.stride_in_3x3 else "resnet"
    return names[0] if names else None


def _identity(model):
    fields = _DISTINGUISHING_FIELDS.get(type(model), ())
    return type(model), [getattr(model, name) for name in fields]


# ---------------------------------------------------------------- descriptions


def describe_network(arrays: Mapping[str, Any]) -> str:
    """Return a short description of the network that arrays belong to.

    The description is for messages. It has the call of `create_model` that makes the network, and
    is "" where the network is unknown.

    Args:
      arrays: in PyTorch's layout, by name.

    Example:
      >>> import numpy as np
      >>> kernels = {f"c{i}.weight": np.zeros((16, 16, 3, 3)) for i in range(19)}
      >>> describe_network(kernels | {"fc.weight": np.zeros((10, 16))})
      "a network of 20 layers for 32x32 images: create_model('resnet20', 10) or ..."
    """
    shapes = {key: array.shape for key, array in arrays.items() if array.dtype.kind != "i"}
    kernels = [shape for shape in shapes.values() if len(shape) == 4]
    dense = [shape for shape in shapes.values() if len(shape) == 2]
    convolutions = [shape for shape in kernels if shape[-1] > 1]
    if not kernels or not dense:
        return ""
    classes = dense[-1][0]
    first = next((shape for shape in kernels if shape[1] in (1, 3)), kernels[0])
    projections = len(kernels) - len(convolutions)
    norm = any(key.endswith("running_var") for key in shapes)
    vgg_counts = [sum(counts) for counts in vgg.LAYERS.values()]
    if len(convolutions) in vgg_counts and {s[0] for s in kernels} >= {64, 128, 256, 512}:
        return _describe_vgg(len(convolutions), norm, classes, dense)
    if first[-1] == 7:
        return _describe_imagenet(len(kernels), first[0], classes)
    if first[-1] == 5 and len(kernels) + len(dense) == 5:
        return (
            f"LeNet-5: create_model('lenet5-relu', {classes}) or create_model('lenet5', {classes})"
        )
    is_cifar_depth = (len(convolutions) - 1) % 6 == 0 and projections in (0, 2)
    if first[-1] == 3 and len(dense) == 1 and is_cifar_depth:
        return _describe_cifar(len(convolutions) + 1, first[0], projections, classes)
    return ""


def _describe_vgg(count: int, norm: bool, num_classes: int, dense: list[tuple[int, ...]]) -> str:
    depth = next(depth for depth, counts in vgg.LAYERS.items() if sum(counts) == count)
    suffix = ("-bn" if norm else "") + ("-32" if len(dense) == 1 else "")
    if len(dense) > 1 and dense[0][1] == 512:
        return (
            f"VGG-{depth} with hidden layers of {dense[0][0]} for small images, "
            "which no network here has"
        )
    return f"VGG-{depth}: create_model('vgg{depth}{suffix}', {num_classes})"


def _describe_imagenet(count: int, width: int, num_classes: int) -> str:
    options = f", width={width}" if width != 64 else ""
    for depth, (blocks, bottleneck) in resnet.LAYERS.items():
        layers = 1 + sum(blocks) * (3 if bottleneck else 2)
        if count in (layers, layers + 3, layers + 4):
            suffix = "-v1.5" if bottleneck else ""
            return f"ResNet-{depth}: create_model('resnet{depth}{suffix}', {num_classes}{options})"
    return ""


def _describe_cifar(depth: int, width: int, projections: int, num_classes: int) -> str:
    options = f", width={width}" if width != 16 else ""
    if projections:
        return (
            "a residual network for 32x32 images: "
            f"create_model('cifar-resnet{depth}', {num_classes}{options}, shortcut='B')"
        )
    calls = [
        f"create_model('{name}{depth}', {num_classes}{options})" for name in ("resnet", "plain")
    ]
    return f"a network of {depth} layers for 32x32 images: {' or '.join(calls)}"


# ---------------------------------------------------------------- padding of shortcut A

PADDINGS = ("end", "both")


def pads_channels(model: nn.Module) -> bool:
    """Return whether the network pads channels with zeros (shortcut A)."""
    if isinstance(model, (CifarResNet, ResNet)) and not model.residual:
        return False
    return isinstance(model, (CifarResNet, ResNet, PreActResNet)) and model.shortcut == "A"


def reorder_channels(model: nn.Module, arrays: Mapping[Path, np.ndarray]) -> dict[Path, np.ndarray]:
    """Convert weights for zeros on both sides to zeros at the end.

    In the file, channel i of a stage is channel i + n of the next, with n channels of zeros before
    and behind. Here channel i stays channel i. The network is the same when every array along the
    shortcuts has its channels in our order. Channels within a block keep their order.

    Args:
      model: a `CifarResNet`, `ResNet` or `PreActResNet` with shortcut "A".
      arrays: its variables by path, in this library's order of axes.
    """
    # The BN of a pre-activation block acts on the shortcut's channels, not on the block's.
    is_preact = isinstance(model, PreActResNet)
    kernels = {
        ".".join(path[1:-1]): array for path, array in arrays.items() if path[-1] == "kernel"
    }
    blocks = sorted(
        {
            tuple(map(int, numbers))
            for name in kernels
            for numbers in re.findall(r"^stage(\d+)_block(\d+)", name)
        }
    )
    order = np.arange(kernels["stem"].shape[-1])
    # The orders of a layer's input and output channels, by its name.
    orders: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for stage, block in blocks:
        name = f"stage{stage}_block{block}"
        last = 3 if f"{name}.conv3" in kernels else 2
        after = _extend_order(order, kernels[f"{name}.conv{last}"].shape[-1])
        inner = np.arange(kernels[f"{name}.conv1"].shape[-1])
        orders[f"{name}.conv1"] = (order, inner)
        orders[f"{name}.conv{last}"] = (np.arange(kernels[f"{name}.conv{last}"].shape[-2]), after)
        norm = f"{name}.norm1" if is_preact else f"{name}.norm{last}"
        orders[norm] = (order, order if is_preact else after)
        order = after
    orders |= {"norm": (order, order), "head": (order, np.arange(kernels["head"].shape[-1]))}
    result = dict(arrays)
    for path, array in arrays.items():
        if pair := orders.get(".".join(path[1:-1])):
            inputs, outputs = pair
            is_kernel = path[-1] == "kernel"
            result[path] = array[..., inputs, :][..., outputs] if is_kernel else array[outputs]
    return result


def _extend_order(order: np.ndarray, width: int) -> np.ndarray:
    """Return the order of `width` channels whose middle ones have `order`.

    The old channels come first, then the new ones.
    """
    if width == len(order):
        return order
    old = order + (width - len(order)) // 2
    return np.concatenate([old, np.setdiff1d(np.arange(width), old)])
