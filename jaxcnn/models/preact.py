"""Residual networks with activation before weights: He et al. 2016 (arXiv:1603.05027), for photographs and for CIFAR."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.imagenet import LAYERS
from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import conv, maybe_remat, stage
from jaxcnn.models.norm import BatchNorm
from jaxcnn.models.pooling import max_pool
from jaxcnn.models.resnet import shortcut
from jaxcnn.recipe import ArgumentError, check_choice


class PreActBlock(nn.Module):
    """BN-ReLU-convolution twice, or as a bottleneck three times, plus the input; nothing follows the addition (figure 4e).

    In the `first` block of a stage, whose input must change its shape, the shortcut begins after the first ReLU. An `active`
    input has had its BN and ReLU.
    """

    filters: int
    stride: int
    bottleneck: bool
    first: bool
    active: bool
    shortcut: str
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, h/stride, w/stride, filters, or as a bottleneck 4 filters]."""
        sizes = ((1, 1), (3, 1), (1, 4)) if self.bottleneck else ((3, 1), (3, 1))
        y = x if self.active else nn.relu(self.norm(name="norm1")(x, train))
        x = y if self.first else x
        for layer, (size, times) in enumerate(sizes, 1):
            if layer > 1:
                y = nn.relu(self.norm(name=f"norm{layer}")(y, train))
            y = self.conv(self.filters * times, size, self.stride if layer == 1 else 1, name=f"conv{layer}")(y)
        return y + shortcut(self.shortcut, x, y.shape, self.conv, None, train)


class PreActResNet(nn.Module):
    """A convolution, BN and ReLU, stages of blocks that add what they compute to what they get, BN, ReLU, mean, dense.

    The image's path from end to end meets additions and, where stages begin, one more ReLU and a change of shape: `project`, a
    1x1 convolution without BN (shortcut "B"), or picked pixels ("A"). The first block acts on what the stem's ReLU
    gives, and the last is followed by `norm` and a ReLU (the paper's appendix; the authors' code in Lua).

    For photographs (`small=False`) all else is `ResNet`'s, and with 1000 classes depths 18, 34, 50, 101, 152 have 11,687,720,
    21,795,880, 25,549,352, 44,541,480, 60,185,128 parameters. Copies that normalise once more between the stem's pooling and
    the first block have 128 more; others give bottlenecks their stride in the 3x3, or BN to `project`.

    For CIFAR (`small=True`) the stem is 3x3 and nothing is pooled: depth 6 n + 2 has the parameters of its `CifarResNet`;
    164 and 1001, 9 n + 2, are bottlenecks with shortcut "B" (the paper's table 4): 1,703,258 and 10,327,706.

    Attributes:
      blocks: in each stage.
      classes: the number of logits.
      bottleneck: blocks of three layers in place of two.
      small: the form for CIFAR.
      width: filters of the stem.
      stem_norm: whether BN and ReLU stand between the stem and the first block, as in the paper. Without them the first block
        begins with its own, and adds the stem's output before BN (most copies in PyTorch): as many parameters.
      shortcut, bn_group, bn_momentum, remat, kernel_init, dtype, axis: as in `ResNet`.

    Example:
      >>> model, image = cifar_preact(164, classes=10), jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      1703258
    """

    blocks: Sequence[int]
    classes: int
    bottleneck: bool = False
    small: bool = False
    width: int = 64
    stem_norm: bool = True
    shortcut: str = "B"
    bn_group: int = 0
    bn_momentum: float = 0.9
    remat: bool = False
    kernel_init: str = "he"
    dtype: Any = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """float32 [b, h, w, c], of any size -> float32 logits [b, classes]; with `stages`, also a dict of outputs."""
        make = partial(conv, kernel_init=self.kernel_init, dtype=self.dtype)
        norm = partial(BatchNorm, self.bn_group, self.axis, self.bn_momentum, dtype=self.dtype)
        size, step = (3, 1) if self.small else (7, 2)
        x, seen = make(self.width, size, step, name="stem")(x.astype(self.dtype)), {}
        x = nn.relu(norm(name="stem_norm")(x, train)) if self.stem_norm else x
        x = stage(self, seen, "stem", x)
        x = x if self.small else max_pool(x, 3, 2, padding=1)
        for number, blocks in enumerate(self.blocks):
            for block in range(blocks):
                name = f"stage{number + 1}_block{block + 1}"
                x = self._block(number, block, make, norm, name)(x, train)
            x = stage(self, seen, f"stage{number + 1}", x)
        x = stage(self, seen, "norm", nn.relu(norm(name="norm")(x, train)))
        x = stage(self, seen, "pool", x.astype(jnp.float32).mean((1, 2)))
        logits = nn.Dense(self.classes, kernel_init=initializer(self.kernel_init), name="head")(x)
        return (logits, seen) if stages else logits

    def _block(self, number, block, make, norm, name):
        kind, first = check_choice("shortcut", self.shortcut, "AB"), block == 0
        stride, active = 2 if number and first else 1, first and not number and self.stem_norm
        if not number and not self.stem_norm:
            first = first and self.bottleneck  # an identity adds what comes before BN
        filters = self.width * 2**number
        block_of = maybe_remat(PreActBlock, self.remat)
        return block_of(filters, stride, self.bottleneck, first, active, kind, make, norm, name=name)


def imagenet_preact(depth: int, classes: int, **options: Any) -> PreActResNet:
    """The `PreActResNet` of `depth` layers for photographs; `depth` is a key of `imagenet.LAYERS`."""
    blocks, bottleneck = LAYERS[depth]
    return PreActResNet(blocks, classes, bottleneck, **options)


def cifar_preact(depth: int, classes: int, **options: Any) -> PreActResNet:
    """The `PreActResNet` of `depth` layers for CIFAR: 6 n + 2; else, and at the paper's 164, the bottlenecks of 9 n + 2.

    Raises:
      ArgumentError: for another depth.
    """
    bottleneck = depth == 164 or (depth - 2) % 6 != 0
    layers = 9 if bottleneck else 6
    if depth < 8 or (depth - 2) % layers:
        below = max(8, depth - (depth - 2) % 6)
        raise ArgumentError(
            f"depth is {depth}; expected 6 n + 2 or 9 n + 2 for a whole n >= 1: write {below} or {below + 6}"
        )
    options = {"shortcut": "B" if bottleneck else "A", "width": 16, "small": True} | options
    return PreActResNet(((depth - 2) // layers,) * 3, classes, bottleneck, **options)
