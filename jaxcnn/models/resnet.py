"""Plain and residual networks for 32x32 images: He et al. 2015 (arXiv:1512.03385), section 4.2, as one class and a switch."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.layers import BatchNorm, conv3x3, initializer, stage
from jaxcnn.recipe import RecipeError, one_of


def picked(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Shortcut "A": every other pixel, and zeros for the channels that are new; no parameters.

    [b, h, w, c] -> `shape`, [b, h/s, w/s, c'] with c' >= c: channel i stays channel i.
    """
    stride = math.ceil(x.shape[1] / shape[1])
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, shape[-1] - x.shape[-1])))


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN-(+ shortcut)-ReLU (figure 2 of the paper); `shortcut` None makes it two plain layers."""

    filters: int
    stride: int
    shortcut: str | None
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, h/stride, w/stride, filters]."""
        y = self.conv(self.filters, self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y, train))
        y = self.conv(self.filters, name="conv2")(y)
        y = self.norm(name="norm2")(y, train)
        if self.shortcut:
            y = y + self._shortcut(x, y.shape, train)
        return nn.relu(y)

    def _shortcut(self, x, shape, train):
        if x.shape == shape:
            return x
        if self.shortcut == "A":
            return picked(x, shape)
        init, dtype = self.conv.keywords["kernel_init"], self.conv.keywords["dtype"]
        project = nn.Conv(
            self.filters,
            (1, 1),
            self.stride,
            use_bias=False,
            dtype=dtype,
            kernel_init=initializer(init),
            name="project",
        )
        return self.norm(name="norm3")(project(x), train)


class CifarNet(nn.Module):
    """The plain or residual network of depth 6 n + 2: a 3x3 convolution, three stages of n blocks, pooling, a dense layer.

    Stages have `width`, 2 `width`, 4 `width` filters on maps of h, h/2, h/4 pixels. Plain and residual networks with
    shortcut "A" have the same parameters; at 32x32x3, width 16 and 10 classes depth 20 has 269,722 and depth 56 853,018.

    Attributes:
      blocks: n, the blocks in a stage.
      classes: the number of logits.
      residual: whether blocks add their input to their output.
      width: filters of the first stage.
      shortcut: at the two places where the shape changes: "A" (picked pixels and zeros; the paper's) or "B" (a 1x1
        convolution and BN: 2,752 parameters more at any depth).
      bn_group: examples that BN averages over; 0 is the whole batch.
      bn_momentum: of BN's moving averages.
      kernel_init: a name in `layers.INITS`.
      dtype: of activations; parameters and BN's moments are float32.
      axis: the mapped axis that splits the batch, set by the drivers.

    Example:
      >>> model = CifarNet(blocks=3, classes=10)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> logits, stages = model.apply(variables, jnp.zeros((1, 32, 32, 3)), stages=True)
      >>> {name: maps.shape[1:] for name, maps in stages.items()}
      {'stem': (32, 32, 16), 'stage1': (32, 32, 16), 'stage2': (16, 16, 32), 'stage3': (8, 8, 64), 'pool': (64,)}
    """

    blocks: int
    classes: int
    residual: bool = True
    width: int = 16
    shortcut: str = "A"
    bn_group: int = 0
    bn_momentum: float = 0.9
    kernel_init: str = "he"
    dtype: Any = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """float32 [b, h, w, c] -> float32 logits [b, classes]; with `stages`, also a dict of each stage's output."""
        conv = partial(conv3x3, kernel_init=self.kernel_init, dtype=self.dtype)
        norm = partial(BatchNorm, self.bn_group, self.axis, self.bn_momentum, dtype=self.dtype)
        shortcut = one_of("shortcut", self.shortcut, "AB") if self.residual else None
        x = conv(self.width, name="stem")(x.astype(self.dtype))
        x = nn.relu(norm(name="stem_norm")(x, train))
        seen: dict[str, jax.Array] = {}
        x = stage(self, seen, "stem", x)
        for number in range(3):
            for block in range(self.blocks):
                stride = 2 if number and not block else 1
                name = f"stage{number + 1}_block{block + 1}"
                x = Block(self.width * 2**number, stride, shortcut, conv, norm, name=name)(x, train)
            x = stage(self, seen, f"stage{number + 1}", x)
        x = stage(self, seen, "pool", x.astype(jnp.float32).mean((1, 2)))
        logits = nn.Dense(self.classes, kernel_init=initializer(self.kernel_init), name="head")(x)
        return (logits, seen) if stages else logits


def cifar_net(depth: int, classes: int, **options: Any) -> CifarNet:
    """The `CifarNet` of `depth` layers (convolutions and the dense layer); RecipeError unless `depth` is 6 n + 2."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        below = max(8, depth - (depth - 2) % 6)
        raise RecipeError(f"depth is {depth}; expected 6 n + 2 for a whole n >= 1: write {below} or {below + 6}")
    return CifarNet(blocks, classes, **options)
