"""Shortcut A of others: where they add the channels of zeros, and how their channels become ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import flax.linen as nn
import numpy as np

from jaxcnn.models import CifarResNet, PreActResNet, ResNet
from jaxcnn.weights.layouts import Path

PADDINGS = ("end", "both")


def pads_channels(model: nn.Module) -> bool:
    """Return whether the network has shortcut A, which adds channels of zeros."""
    if isinstance(model, (CifarResNet, ResNet)) and not model.residual:
        return False
    return isinstance(model, (CifarResNet, ResNet, PreActResNet)) and model.shortcut == "A"


def reordered(model: nn.Module, arrays: Mapping[Path, np.ndarray]) -> dict[Path, np.ndarray]:
    """Return weights for zeros behind the old channels, from weights for zeros on both sides of them.

    Channel i of a stage is channel i + n of the next there, with n channels of zeros before and behind. Here channel i stays
    channel i. The network is the same when every array along the shortcuts has its channels in our order; what is
    computed within a block keeps its own.

    Args:
      model: a `CifarResNet`, `ResNet` or `PreActResNet` with shortcut "A".
      arrays: its variables by path, in this library's order of axes.
    """
    before = isinstance(model, PreActResNet)  # a block's BN acts on what the shortcut carries, not on what joins it
    kernels = {".".join(path[1:-1]): array for path, array in arrays.items() if path[-1] == "kernel"}
    blocks = sorted(
        {tuple(map(int, found)) for name in kernels for found in re.findall(r"^stage(\d+)_block(\d+)", name)}
    )
    order = np.arange(kernels["stem"].shape[-1])
    places: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # a layer's name -> the orders before and behind it
    for stage, block in blocks:
        name = f"stage{stage}_block{block}"
        last = 3 if f"{name}.conv3" in kernels else 2
        after = _continued(order, kernels[f"{name}.conv{last}"].shape[-1])
        plain = np.arange(kernels[f"{name}.conv1"].shape[-1])
        places[f"{name}.conv1"] = (order, plain)
        places[f"{name}.conv{last}"] = (np.arange(kernels[f"{name}.conv{last}"].shape[-2]), after)
        places[f"{name}.norm1" if before else f"{name}.norm{last}"] = (order, order if before else after)
        order = after
    places |= {"norm": (order, order), "head": (order, np.arange(kernels["head"].shape[-1]))}
    result = dict(arrays)
    for path, array in arrays.items():
        if place := places.get(".".join(path[1:-1])):
            result[path] = array[..., place[0], :][..., place[1]] if path[-1] == "kernel" else array[place[1]]
    return result


def _continued(order: np.ndarray, width: int) -> np.ndarray:
    """The order of `width` channels whose middle ones are those of `order`: first these, then the new ones."""
    if width == len(order):
        return order
    old = order + (width - len(order)) // 2
    return np.concatenate([old, np.setdiff1d(np.arange(width), old)])
