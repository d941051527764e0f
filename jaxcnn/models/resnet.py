"""Residual networks for photographs and for CIFAR.

Activation follows or precedes the weights. `CifarResNet` and `ResNet` are those of He et al. 2015
(arXiv:1512.03385), `PreActResNet` is that of He et al. 2016 (arXiv:1603.05027).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.config import ArgumentError, check_choice
from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import conv, max_pool, maybe_remat, stage
from jaxcnn.models.norm import BatchNorm

LAYERS: dict[int, tuple[tuple[int, ...], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
"""Networks of He et al. 2015, table 1, for photographs, by depth.

Each has the number of blocks in the four stages, and whether they are bottlenecks of three layers.
"""


# Shortcuts


def zero_pad_shortcut(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return shortcut "A": every stride-th pixel, and zeros in the new channels.

    It has no parameters. Channel i stays channel i.

    Args:
      x: [b, h, w, c].
      shape: of the result, [b, h/s, w/s, c'] with c' >= c.
    """
    stride = _stride(x, shape)
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, shape[-1] - x.shape[-1])))


def shortcut(
    kind: str, x: jax.Array, shape: tuple[int, ...], conv: Any, norm: Any, train: bool
) -> jax.Array:
    """Return a block's input in the shape of its output.

    The two are then added.

    Args:
      kind: where the shapes differ, "A" for `zero_pad_shortcut`, or "B" for a 1x1 convolution
        `project` that is followed by `project_norm`.
      x: the input, [b, h, w, c]. It is returned as it is where it has the `shape`.
      shape: of the output.
      conv: makes a convolution.
      norm: makes BN; None leaves `project_norm` out.
      train: the mode.
    """
    if x.shape == shape:
        return x
    if kind == "A":
        return zero_pad_shortcut(x, shape)
    x = conv(shape[-1], 1, _stride(x, shape), name="project")(x)
    return norm(name="project_norm")(x, train) if norm else x


def _stride(x, shape):
    return max(
        math.ceil(before / after) for before, after in zip(x.shape[1:3], shape[1:3], strict=True)
    )


def identity_norm(name: str) -> Any:
    """Return an identity that replaces BN in a network without it."""
    return lambda x, train: x


# Blocks


class Block(nn.Module):
    """Two 3x3 convolutions with BN and ReLU, plus the shortcut.

    This is figure 2 of He et al. 2015. The order is conv-BN-ReLU-conv-BN-(+ shortcut)-ReLU. With
    `shortcut` None it is two plain layers. `dilation` has the rates before and after the stride
    (see `residual_stages`).
    """

    filters: int
    stride: int
    shortcut: str | None
    conv: Any
    norm: Any
    dilation: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map [b, h, w, c] to [b, h/stride, w/stride, filters]."""
        before, after = self.dilation
        y = self.conv(self.filters, 3, self.stride, dilation=before, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y, train))
        y = self.conv(self.filters, 3, dilation=after, name="conv2")(y)
        y = self.norm(name="norm2")(y, train)
        if self.shortcut:
            y = y + shortcut(self.shortcut, x, y.shape, self.conv, self.norm, train)
        return nn.relu(y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with BN, plus the shortcut.

    This is figure 5, right, of He et al. 2015. ReLU stands between them and after the addition.
    Where a block halves the image, its first 1x1 does, as in the paper. With `stride_in_3x3` the
    3x3 does. `dilation` has the rates before and after the stride (see `residual_stages`).
    """

    filters: int
    stride: int
    shortcut: str
    conv: Any
    norm: Any
    stride_in_3x3: bool = False
    dilation: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map [b, h, w, c] to [b, h/stride, w/stride, 4 filters]."""
        first, second = (1, self.stride) if self.stride_in_3x3 else (self.stride, 1)
        rate = self.dilation[0 if self.stride_in_3x3 else 1]
        y = self.conv(self.filters, 1, first, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y, train))
        y = self.conv(self.filters, 3, second, dilation=rate, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y, train))
        y = self.conv(4 * self.filters, 1, name="conv3")(y)
        y = self.norm(name="norm3")(y, train)
        return nn.relu(y + shortcut(self.shortcut, x, y.shape, self.conv, self.norm, train))


class PreActBlock(nn.Module):
    """BN-ReLU-convolution twice, or in a bottleneck three times, plus the input.

    Nothing follows the addition (He et al. 2016, figure 4e). In the `first` block of a stage, whose
    input must change its shape, the shortcut begins after the first ReLU. An `active` input has
    had its BN and ReLU.
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
        """Map [b, h, w, c] to [b, h/stride, w/stride, filters].

        A bottleneck has 4 filters instead.
        """
        # (kernel size, multiple of `filters`) of each convolution.
        sizes = ((1, 1), (3, 1), (1, 4)) if self.bottleneck else ((3, 1), (3, 1))
        y = x if self.active else nn.relu(self.norm(name="norm1")(x, train))
        x = y if self.first else x
        for layer, (size, multiple) in enumerate(sizes, 1):
            if layer > 1:
                y = nn.relu(self.norm(name=f"norm{layer}")(y, train))
            stride = self.stride if layer == 1 else 1
            y = self.conv(self.filters * multiple, size, stride, name=f"conv{layer}")(y)
        return y + shortcut(self.shortcut, x, y.shape, self.conv, None, train)


def residual_stages(
    x: jax.Array,
    train: bool,
    *,
    strides: tuple[int, ...],
    blocks: int | Sequence[int],
    width: int,
    make_block: Callable[[int, int, tuple[int, int], str], Any],
    record: Callable[[str, jax.Array], jax.Array],
    output_stride: int | None = None,
) -> list[jax.Array]:
    """Apply stages of blocks, each of twice the filters of the one before.

    It is called in a compact method, of which the blocks become submodules.

    With an `output_stride` the maps are reduced no further than that. Each later stride s becomes
    1, and the convolutions after its place are dilated by a further s. At every s-th pixel the
    result is then that of the network with strides, with the same parameters (Yu and Koltun 2015,
    arXiv:1511.07122; Chen et al. 2017, arXiv:1706.05587, section 3.1).

    Args:
      x: [b, h, w, c].
      train: passed to the blocks.
      strides: of the first block of each stage.
      blocks: number of blocks in a stage, or in each stage.
      width: filters of the first stage.
      make_block: returns the block of a number of filters, a stride, rates of dilation before and
        after the stride, and a name.
      record: maps a stage's name and output to that output, such as `stage` of a module.
      output_stride: greatest product of the strides; None keeps them all.

    Returns:
      The output of each stage.
    """
    maps, total, rate = [], 1, 1
    counts = [blocks] * len(strides) if isinstance(blocks, int) else blocks
    for number, (stride, count) in enumerate(zip(strides, counts, strict=True), 1):
        before = rate
        if output_stride is not None and total * stride > output_stride:
            rate, stride = rate * stride, 1
        total *= stride
        for block in range(1, count + 1):
            name, filters = f"stage{number}_block{block}", width * 2 ** (number - 1)
            is_first = block == 1
            dilation = (before if is_first else rate, rate)
            x = make_block(filters, stride if is_first else 1, dilation, name)(x, train)
        x = record(f"stage{number}", x)
        maps.append(x)
    return maps


# Networks


class CifarResNet(nn.Module):
    """Plain or residual network for 32x32 images.

    It is that of He et al. 2015, section 4.2, of depth 6 n + 2. It has a 3x3 convolution, three
    stages of n blocks, a global mean and a dense layer. Stages have `width`, 2 `width`, 4 `width`
    filters on maps of h, h/2, h/4 pixels. Plain and residual networks with shortcut "A" have the
    same parameters. At 32x32x3, width 16 and 10 classes depth 20 has 269,722 and depth 56 has
    853,018.

    Attributes:
      blocks: n, the number of blocks in a stage.
      num_classes: number of logits.
      residual: whether blocks add their input to their output.
      width: filters of the first stage.
      shortcut: at the two places where the shape changes, "A" (every second pixel and zeros; the
        paper's) or "B" (a 1x1 convolution and BN, 2,752 parameters more at any depth).
      bn_group: number of examples that BN averages over; 0 is the whole batch.
      bn_momentum: of BN's moving averages.
      batch_norm: whether there is BN. Without it (not in the paper) convolutions have biases, as
        many as BN has shifts. The variance of a residual network's signal then grows at every
        block, 2.4-fold where layers are wide and nothing is padded.
      remat: keep only the blocks' inputs for the gradient and compute the rest again, with less
        memory and more time (see `maybe_remat`).
      kernel_init: a name in `initializers.INITS`.
      dtype: of activations; parameters and BN's running statistics are float32.
      axis_name: the mapped axis that splits the batch, set by the strategies.

    Example:
      >>> model = CifarResNet(blocks=3, num_classes=10)
      >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> _, stages = jax.eval_shape(partial(model.apply, stages=True), variables, image)
      >>> stages["stem"].shape, stages["stage3"].shape, stages["pool"].shape
      ((1, 32, 32, 16), (1, 8, 8, 64), (1, 64))
      >>> list(stages)
      ['pool', 'stage1', 'stage2', 'stage3', 'stem']
    """

    blocks: int
    num_classes: int
    residual: bool = True
    width: int = 16
    shortcut: str = "A"
    bn_group: int = 0
    bn_momentum: float = 0.9
    batch_norm: bool = True
    remat: bool = False
    kernel_init: str = "he"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to float32 logits [b, num_classes].

        With `stages`, return the dict of each stage's output too.
        """
        make_conv = partial(
            conv, kernel_init=self.kernel_init, dtype=self.dtype, bias=not self.batch_norm
        )
        make_norm = partial(
            BatchNorm, self.bn_group, self.axis_name, self.bn_momentum, dtype=self.dtype
        )
        make_norm = make_norm if self.batch_norm else identity_norm
        kind = check_choice("shortcut", self.shortcut, "AB") if self.residual else None
        make_block = maybe_remat(Block, self.remat)
        x = make_conv(self.width, 3, name="stem")(x.astype(self.dtype))
        x = nn.relu(make_norm(name="stem_norm")(x, train))
        outputs: dict[str, jax.Array] = {}
        x = stage(self, outputs, "stem", x)
        (*_, x) = residual_stages(
            x,
            train,
            strides=(1, 2, 2),
            blocks=self.blocks,
            width=self.width,
            make_block=lambda filters, stride, dilation, name: make_block(
                filters, stride, kind, make_conv, make_norm, dilation, name=name
            ),
            record=partial(stage, self, outputs),
        )
        x = stage(self, outputs, "pool", x.astype(jnp.float32).mean((1, 2)))
        logits = nn.Dense(self.num_classes, kernel_init=initializer(self.kernel_init), name="head")(
            x
        )
        return (logits, outputs) if stages else logits


class ResNet(nn.Module):
    """Plain or residual network for photographs, of depths 18 to 152.

    It is that of He et al. 2015, table 1. It has a 7x7 convolution of stride 2, 3x3 max pooling of
    stride 2, four stages of blocks, a
    global mean and a dense layer. Stages have `width`, 2, 4, 8 `width` filters on maps of h/4,
    h/8, h/16, h/32 pixels. Bottlenecks return four times as many channels. With 1000 classes
    depths 18, 34, 50, 101, 152 have 11,689,512, 21,797,672, 25,557,032, 44,549,160, 60,192,808
    parameters. Other people's versions:

    - v1 is the paper's: the first 1x1 of a bottleneck has stride 2 and skips three pixels in four.
      v1.5, the names that end so, has the stride in the 3x3. It has the same parameters and more
      multiply-adds (Goyal et al. 2017, arXiv:1706.02677, section 5.1). It is the version of
      torchvision and timm, so their weights expect it. Depths 18 and 34 have no bottlenecks and no
      versions.
    - The paper's table 2 has shortcut "A" in depths 18 and 34; published weights have "B".
    - Goyal et al. begin each block's last BN at gain 0; here, as in the paper, at 1. Flax's own BN
      has momentum 0.99, and its "SAME" padding is not symmetric at stride 2.
    - Plain networks are the same code without the addition (figure 3, middle). Depth 34 has
      21,623,848 parameters.

    Attributes:
      blocks: number of blocks in each stage.
      num_classes: number of logits.
      bottleneck: blocks of three layers instead of two.
      residual: whether blocks add their input to their output.
      stride_in_3x3: v1.5.
      width: filters of the first stage.
      shortcut: where shapes change, "B" (a 1x1 convolution and BN) or "A" (every second pixel and
        zeros).
      bn_group, bn_momentum, remat, kernel_init, dtype, axis_name: as in `CifarResNet`. The paper's
        initialization is the default.

    Example:
      >>> model = imagenet_resnet(50, num_classes=1000)
      >>> image = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      25557032
    """

    blocks: Sequence[int]
    num_classes: int
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
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to float32 logits [b, num_classes].

        Images have any size. With `stages`, return a dict of outputs too.
        """
        make_conv = partial(conv, kernel_init=self.kernel_init, dtype=self.dtype)
        make_norm = partial(
            BatchNorm, self.bn_group, self.axis_name, self.bn_momentum, dtype=self.dtype
        )
        x, outputs = make_conv(self.width, 7, 2, name="stem")(x.astype(self.dtype)), {}
        x = stage(self, outputs, "stem", nn.relu(make_norm(name="stem_norm")(x, train)))
        x = max_pool(x, 3, 2, padding=1)
        (*_, x) = residual_stages(
            x,
            train,
            strides=tuple(2 if number else 1 for number in range(len(self.blocks))),
            blocks=self.blocks,
            width=self.width,
            make_block=partial(self._block, make_conv, make_norm),
            record=partial(stage, self, outputs),
        )
        x = stage(self, outputs, "pool", x.astype(jnp.float32).mean((1, 2)))
        logits = nn.Dense(self.num_classes, kernel_init=initializer(self.kernel_init), name="head")(
            x
        )
        return (logits, outputs) if stages else logits

    def _block(self, make_conv, make_norm, filters, stride, dilation, name):
        kind = check_choice("shortcut", self.shortcut, "AB") if self.residual else None
        if not self.bottleneck:
            make_block = maybe_remat(Block, self.remat)
            return make_block(filters, stride, kind, make_conv, make_norm, dilation, name=name)
        if kind is None:
            raise ArgumentError(
                "a plain network of bottlenecks is in no paper; expected residual=True or "
                "bottleneck=False"
            )
        make_block = maybe_remat(Bottleneck, self.remat)
        return make_block(
            filters, stride, kind, make_conv, make_norm, self.stride_in_3x3, dilation, name=name
        )


class PreActResNet(nn.Module):
    """Residual network with activation before weights (He et al. 2016).

    It has a convolution, BN and ReLU, stages of blocks that add their results to their inputs,
    BN, ReLU, a global mean and a dense layer. The image's path from end to end meets additions
    only, except where stages begin. There it meets one more ReLU and a change of shape: `project`,
    a 1x1 convolution without BN (shortcut "B"), or every second pixel and zeros ("A"). The first
    block acts on the output of the stem's ReLU. The last is followed by `norm` and a ReLU (the
    paper's appendix; the authors' code in Lua).

    For photographs (`small=False`) the rest is that of `ResNet`. With 1000 classes depths 18, 34,
    50, 101, 152 have 11,687,720, 21,795,880, 25,549,352, 44,541,480, 60,185,128 parameters. Copies
    that normalize once more between the stem's pooling and the first block have 128 more. Others
    give bottlenecks their stride in the 3x3, or BN to `project`.

    For CIFAR (`small=True`) the stem is 3x3 and nothing is pooled. Depth 6 n + 2 has the parameters
    of its `CifarResNet`. Depths 164 and 1001, 9 n + 2, are bottlenecks with shortcut "B" (the
    paper's table 4), of 1,703,258 and 10,327,706 parameters.

    Attributes:
      blocks: number of blocks in each stage.
      num_classes: number of logits.
      bottleneck: blocks of three layers instead of two.
      small: the form for CIFAR.
      width: filters of the stem.
      stem_norm: whether BN and ReLU stand between the stem and the first block, as in the paper.
        Without them the first block begins with its own, and adds the stem's output before BN
        (most copies in PyTorch). The number of parameters is the same.
      shortcut, bn_group, bn_momentum, remat, kernel_init, dtype, axis_name: as in `ResNet`.

    Example:
      >>> model = cifar_preact_resnet(164, num_classes=10)
      >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      1703258
    """

    blocks: Sequence[int]
    num_classes: int
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
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to float32 logits [b, num_classes].

        Images have any size. With `stages`, return a dict of outputs too.
        """
        make_conv = partial(conv, kernel_init=self.kernel_init, dtype=self.dtype)
        make_norm = partial(
            BatchNorm, self.bn_group, self.axis_name, self.bn_momentum, dtype=self.dtype
        )
        size, stride = (3, 1) if self.small else (7, 2)
        x, outputs = make_conv(self.width, size, stride, name="stem")(x.astype(self.dtype)), {}
        x = nn.relu(make_norm(name="stem_norm")(x, train)) if self.stem_norm else x
        x = stage(self, outputs, "stem", x)
        x = x if self.small else max_pool(x, 3, 2, padding=1)
        for number, blocks in enumerate(self.blocks):
            for block in range(blocks):
                name = f"stage{number + 1}_block{block + 1}"
                x = self._block(number, block, make_conv, make_norm, name)(x, train)
            x = stage(self, outputs, f"stage{number + 1}", x)
        x = stage(self, outputs, "norm", nn.relu(make_norm(name="norm")(x, train)))
        x = stage(self, outputs, "pool", x.astype(jnp.float32).mean((1, 2)))
        logits = nn.Dense(self.num_classes, kernel_init=initializer(self.kernel_init), name="head")(
            x
        )
        return (logits, outputs) if stages else logits

    def _block(self, number, block, make_conv, make_norm, name):
        kind, first = check_choice("shortcut", self.shortcut, "AB"), block == 0
        stride, active = 2 if number and first else 1, first and not number and self.stem_norm
        if not number and not self.stem_norm:
            # An identity shortcut adds the value before BN.
            first = first and self.bottleneck
        filters = self.width * 2**number
        make_block = maybe_remat(PreActBlock, self.remat)
        return make_block(
            filters, stride, self.bottleneck, first, active, kind, make_conv, make_norm, name=name
        )


# Networks by depth


def cifar_resnet(depth: int, num_classes: int, **options: Any) -> CifarResNet:
    """Return the `CifarResNet` of `depth` layers, convolutions and the dense layer.

    Raises:
      ArgumentError: unless `depth` is 6 n + 2.
    """
    blocks, remainder = divmod(depth - 2, 6)
    if remainder or blocks < 1:
        below = max(8, depth - (depth - 2) % 6)
        raise ArgumentError(
            f"depth is {depth}; expected 6 n + 2 for a whole n >= 1: write {below} or {below + 6}"
        )
    return CifarResNet(blocks, num_classes, **options)


def imagenet_resnet(depth: int, num_classes: int, **options: Any) -> ResNet:
    """Return the `ResNet` of `depth` layers, a key of `LAYERS`.

    With `residual=False`, 18 and 34 are plain networks.
    """
    blocks, bottleneck = LAYERS[depth]
    return ResNet(blocks, num_classes, bottleneck, **options)


def imagenet_preact_resnet(depth: int, num_classes: int, **options: Any) -> PreActResNet:
    """Return the `PreActResNet` of `depth` layers for photographs, a key of `LAYERS`."""
    blocks, bottleneck = LAYERS[depth]
    return PreActResNet(blocks, num_classes, bottleneck, **options)


def cifar_preact_resnet(depth: int, num_classes: int, **options: Any) -> PreActResNet:
    """Return the `PreActResNet` of `depth` layers for CIFAR.

    A depth of 6 n + 2 has blocks of two layers. Any other, and the paper's 164, has the
    bottlenecks of 9 n + 2.

    Raises:
      ArgumentError: for another depth.
    """
    bottleneck = depth == 164 or (depth - 2) % 6 != 0
    layers = 9 if bottleneck else 6
    if depth < 8 or (depth - 2) % layers:
        below = max(8, depth - (depth - 2) % 6)
        raise ArgumentError(
            f"depth is {depth}; expected 6 n + 2 or 9 n + 2 for a whole n >= 1: write {below} or "
            f"{below + 6}"
        )
    options = {"shortcut": "B" if bottleneck else "A", "width": 16, "small": True} | options
    return PreActResNet(((depth - 2) // layers,) * 3, num_classes, bottleneck, **options)
