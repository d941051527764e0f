"""The variables of a network by path and shape, without computing it: its own or anybody's flax module."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jaxcnn.models import VGG, CifarResNet, LeNet5, PreActResNet
from jaxcnn.models.calling import set_mode

Path = tuple[str, ...]


class Traced(NamedTuple):
    """What one abstract call of a network shows.

    Attributes:
      specs: the shape of every leaf of the variables, by path.
      heads: the layers of logits (called "head"), by name.
      grids: (h, w) of the maps that a dense layer takes, by its name; None where the maps cannot be told.
      transposed: names of transposed convolutions.
    """

    specs: dict[Path, jax.ShapeDtypeStruct]
    heads: dict[str, nn.Dense]
    grids: dict[str, tuple[int, int] | None]
    transposed: tuple[str, ...]


def trace(model: nn.Module, shape: tuple[int, ...]) -> Traced:
    """Return what a network's initialization makes for images of `shape` [h, w, c]; nothing is computed."""
    dense: dict[str, nn.Dense] = {}
    grids: dict[str, tuple[int, int] | None] = {}
    transposed: list[str] = []
    maps = [tuple(shape)]

    def note(call, args, kwargs, context):
        module, name = context.module, ".".join(context.module.path)
        if isinstance(module, nn.Dense):
            dense[name] = module
            if args and args[0].ndim == 2 and name not in grids:
                grids[name] = _grid(args[0].shape[-1], maps[-1])
                maps.append((1, 1, module.features))
        if isinstance(module, nn.ConvTranspose):
            transposed.append(name)
        result = call(*args, **kwargs)
        if getattr(result, "ndim", 0) == 4:
            maps.append(result.shape[1:])
        return result

    with nn.intercept_methods(note):
        image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        module, flags = set_mode(model, train=False)
        mode: dict[str, Any] = dict(flags)
        variables: Any = jax.eval_shape(lambda key, x: module.init(key, x, **mode), jax.random.key(0), image)
    heads = {name: layer for name, layer in dense.items() if name.split(".")[-1] == "head"}
    specs: Any = flatten_dict(variables)
    return Traced(dict(specs), heads, grids, tuple(transposed))


def usual_shape(model: nn.Module) -> tuple[int, int, int]:
    """Return the shape [h, w, c] of the images that a network is usually for."""
    if isinstance(model, LeNet5):
        return (28, 28, 1)
    small = isinstance(model, CifarResNet) or (isinstance(model, PreActResNet) and model.small)
    return (32, 32, 3) if small or (isinstance(model, VGG) and model.size == 32) else (224, 224, 3)


def _grid(features: int, last: tuple[int, ...]) -> tuple[int, int] | None:
    """The (h, w) of maps of shape `last`, perhaps pooled since, that were flattened to `features`."""
    height, width, channels = last
    if features == channels:
        return (1, 1)
    pixels, rest = divmod(features, channels)
    if rest:
        return None
    if pixels == height * width:
        return (height, width)
    side = math.isqrt(pixels)
    return (side, side) if side * side == pixels and height == width else None
