"""Plain and residual networks for photographs: He et al. 2015 (arXiv:1512.03385), table 1, depths 18 to 152."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import conv, maybe_remat, stage
from jaxcnn.models.norm import BatchNorm
from jaxcnn.models.pooling import max_pool
from jaxcnn.models.resnet import Block, shortcut
from jaxcnn.recipe import ArgumentError, check_choice

LAYERS: dict[int, tuple[tuple[int, ...], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
"""depth -> blocks in each of the four stages, and whether they are bottlenecks of three layers (table 1)."""


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with BN; ReLU between them and after the addition (figure 5, right).

    Where a block halves the image, its first 1x1 does, as in the paper; with `stride_in_3x3` the 3x3 does.
    """

    filters: int
    stride: int
    shortcut: str
    conv: Any
    norm: Any
    stride_in_3x3: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, h/stride, w/stride, 4 filters]."""
        first, second = (1, self.stride) if self.stride_in_3x3 else (self.stride, 1)
        y = self.conv(self.filters, 1, first, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y, train))
        y = self.conv(self.filters, 3, second, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y, train))
        y = self.conv(4 * self.filters, 1, name="conv3")(y)
        y = self.norm(name="norm3")(y, train)
        return nn.relu(y + shortcut(self.shortcut, x, y.shape, self.conv, self.norm, train))


class ResNet(nn.Module):
    """7x7 convolution of stride 2, 3x3 max pooling of stride 2, four stages of blocks, global mean, a dense layer.

    Stages have `width`, 2, 4, 8 `width` filters (bottlenecks give out four times as many) on maps of h/4, h/8, h/16, h/32
    pixels. With 1000 classes depths 18, 34, 50, 101, 152 have 11,689,512, 21,797,672, 25,557,032, 44,549,160, 60,192,808
    parameters. Other people's versions:

    - v1 is the paper's: the first 1x1 of a bottleneck has stride 2 and skips three pixels in four. v1.5, the names that
      end so, has it in the 3x3: the same parameters, more multiply-adds (Goyal et al. 2017, arXiv:1706.02677, section
      5.1; torchvision and timm, so what their weights expect). Depths 18 and 34 have no bottlenecks and no versions.
    - The paper's table 2 has shortcut "A" in depths 18 and 34; published weights have "B".
    - Goyal et al. begin each block's last BN at gain 0; here, as in the paper, at 1. Flax's own BN has momentum 0.99, and
      its "SAME" padding is not symmetric at stride 2.
    - Plain networks are the same code without the addition (figure 3, middle): depth 34 has 21,623,848 parameters.

    Attributes:
      blocks: in each stage.
      classes: the number of logits.
      bottleneck: blocks of three layers in place of two.
      residual: whether blocks add their input to their output.
      stride_in_3x3: v1.5.
      width: filters of the first stage.
      shortcut: where shapes change, "B" (a 1x1 convolution and BN) or "A" (picked pixels and zeros).
      bn_group, bn_momentum, remat, kernel_init, dtype, axis: as in `CifarResNet`; the paper's initialisation is the default.

    Example:
      >>> model, image = imagenet_net(50, classes=1000), jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      25557032
    """

    blocks: Sequence[int]
    classes: int
    bottleneck: bool = False
    residual: bool = True
    stride_in_3x3: bool = False
    width: int = 64
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
        x, seen = make(self.width, 7, 2, name="stem")(x.astype(self.dtype)), {}
        x = stage(self, seen, "stem", nn.relu(norm(name="stem_norm")(x, train)))
        x = max_pool(x, 3, 2, padding=1)
        for number, blocks in enumerate(self.blocks):
            for block in range(blocks):
                stride = 2 if number and not block else 1
                name = f"stage{number + 1}_block{block + 1}"
                x = self._block(self.width * 2**number, stride, make, norm, name)(x, train)
            x = stage(self, seen, f"stage{number + 1}", x)
        x = stage(self, seen, "pool", x.astype(jnp.float32).mean((1, 2)))
        logits = nn.Dense(self.classes, kernel_init=initializer(self.kernel_init), name="head")(x)
        return (logits, seen) if stages else logits

    def _block(self, filters, stride, make, norm, name):
        kind = check_choice("shortcut", self.shortcut, "AB") if self.residual else None
        if not self.bottleneck:
            return maybe_remat(Block, self.remat)(filters, stride, kind, make, norm, name=name)
        if kind is None:
            raise ArgumentError(
                "a plain network of bottlenecks is in no paper; expected residual=True or bottleneck=False"
            )
        return maybe_remat(Bottleneck, self.remat)(filters, stride, kind, make, norm, self.stride_in_3x3, name=name)


def imagenet_net(depth: int, classes: int, **options: Any) -> ResNet:
    """The `ResNet` of `depth` layers, a key of `LAYERS`; 18 and 34 are plain networks with `residual=False`."""
    blocks, bottleneck = LAYERS[depth]
    return ResNet(blocks, classes, bottleneck, **options)
