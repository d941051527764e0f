"""Plain and residual networks for 32x32 images: He et al. 2015 (arXiv:1512.03385), section 4.2, as one class and a switch."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import conv, maybe_remat, stage
from jaxcnn.models.norm import BatchNorm
from jaxcnn.recipe import ArgumentError, check_choice


def zero_pad_shortcut(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Shortcut "A": every other pixel, and zeros for the channels that are new; no parameters.

    [b, h, w, c] -> `shape`, [b, h/s, w/s, c'] with c' >= c: channel i stays channel i.
    """
    stride = _stride(x, shape)
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, shape[-1] - x.shape[-1])))


def shortcut(kind: str, x: jax.Array, shape: tuple[int, ...], conv: Any, norm: Any, train: bool) -> jax.Array:
    """A block's input [b, h, w, c] in the `shape` of its output, to be added to that: `x` itself wherever it fits.

    Elsewhere `kind` "A" picks (see `picked`), and "B" convolves: a 1x1 `project`, then `project_norm` unless `norm` is None.
    """
    if x.shape == shape:
        return x
    if kind == "A":
        return zero_pad_shortcut(x, shape)
    x = conv(shape[-1], 1, _stride(x, shape), name="project")(x)
    return norm(name="project_norm")(x, train) if norm else x


def _stride(x, shape):
    return max(math.ceil(before / after) for before, after in zip(x.shape[1:3], shape[1:3], strict=True))


def unchanged(name: str) -> Any:
    """What stands in BN's place in a network without it."""
    return lambda x, train: x


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
        y = self.conv(self.filters, 3, self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y, train))
        y = self.conv(self.filters, 3, name="conv2")(y)
        y = self.norm(name="norm2")(y, train)
        if self.shortcut:
            y = y + shortcut(self.shortcut, x, y.shape, self.conv, self.norm, train)
        return nn.relu(y)


class CifarResNet(nn.Module):
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
      batch_norm: whether there is BN; without it (not in the paper) convolutions have biases, of which there are as many as BN
        has shifts. The variance of a residual network's signal then grows at every block, 2.4-fold where layers are wide
        and nothing is padded.
      remat: keep the blocks' inputs alone for the gradient and compute the rest again: less memory, more time (`remembered`).
      kernel_init: a name in `initializers.INITS`.
      dtype: of activations; parameters and BN's moments are float32.
      axis: the mapped axis that splits the batch, set by the strategies.

    Example:
      >>> model, image = CifarResNet(blocks=3, classes=10), jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> _, stages = jax.eval_shape(partial(model.apply, stages=True), variables, image)
      >>> {name: maps.shape[1:] for name, maps in stages.items()}
      {'pool': (64,), 'stage1': (32, 32, 16), 'stage2': (16, 16, 32), 'stage3': (8, 8, 64), 'stem': (32, 32, 16)}
    """

    blocks: int
    classes: int
    residual: bool = True
    width: int = 16
    shortcut: str = "A"
    bn_group: int = 0
    bn_momentum: float = 0.9
    batch_norm: bool = True
    remat: bool = False
    kernel_init: str = "he"
    dtype: Any = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """float32 [b, h, w, c] -> float32 logits [b, classes]; with `stages`, also a dict of each stage's output."""
        make = partial(conv, kernel_init=self.kernel_init, dtype=self.dtype, bias=not self.batch_norm)
        norm = partial(BatchNorm, self.bn_group, self.axis, self.bn_momentum, dtype=self.dtype)
        norm = norm if self.batch_norm else unchanged
        kind = check_choice("shortcut", self.shortcut, "AB") if self.residual else None
        block_of = maybe_remat(Block, self.remat)
        x = make(self.width, 3, name="stem")(x.astype(self.dtype))
        x = nn.relu(norm(name="stem_norm")(x, train))
        seen: dict[str, jax.Array] = {}
        x = stage(self, seen, "stem", x)
        for number in range(3):
            for block in range(self.blocks):
                stride = 2 if number and not block else 1
                name = f"stage{number + 1}_block{block + 1}"
                x = block_of(self.width * 2**number, stride, kind, make, norm, name=name)(x, train)
            x = stage(self, seen, f"stage{number + 1}", x)
        x = stage(self, seen, "pool", x.astype(jnp.float32).mean((1, 2)))
        logits = nn.Dense(self.classes, kernel_init=initializer(self.kernel_init), name="head")(x)
        return (logits, seen) if stages else logits


def cifar_resnet(depth: int, classes: int, **options: Any) -> CifarResNet:
    """The `CifarResNet` of `depth` layers (convolutions and the dense layer); ArgumentError unless `depth` is 6 n + 2."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        below = max(8, depth - (depth - 2) % 6)
        raise ArgumentError(f"depth is {depth}; expected 6 n + 2 for a whole n >= 1: write {below} or {below + 6}")
    return CifarResNet(blocks, classes, **options)
