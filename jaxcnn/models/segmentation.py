"""What the segmentation networks on residual stages have in common: backbone and layers."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.arguments import is_integer
from jaxcnn.config import ArgumentError, format_value
from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import conv, max_pool, resize_bilinear, stage
from jaxcnn.models.norm import BatchNorm
from jaxcnn.models.resnet import LAYERS, Block, Bottleneck, residual_stages


class BackboneSpec(NamedTuple):
    """Stages of a residual network, as its name describes them.

    Attributes:
      blocks: number of blocks in each stage.
      bottleneck: blocks of three layers instead of two.
      stride_in_3x3: v1.5 (see `jaxcnn.models.resnet.ResNet`).
      small: the form for CIFAR: a 3x3 stem without pooling, and three stages.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    stride_in_3x3: bool
    small: bool


def parse_backbone(name: Any) -> BackboneSpec:
    """Return the stages of the residual network called `name`.

    Args:
      name: "resnet18", 34, 50, 101 or 152 of photographs, the latter three also with "-v1.5", or
        "resnetD" of CIFAR for another D = 6 n + 2. "cifar-resnetD" is always that of CIFAR.

    Raises:
      ArgumentError: no residual network here is called so.

    Example:
      >>> parse_backbone("resnet50").blocks, parse_backbone("resnet20").blocks
      ((3, 4, 6, 3), (3, 3, 3))
    """
    match = re.fullmatch(r"(cifar-)?resnet([0-9]{1,4})(-v1\.5)?", str(name))
    if match:
        is_cifar, depth, is_v1_5 = bool(match[1]), int(match[2]), bool(match[3])
        if not is_cifar and depth in LAYERS and (LAYERS[depth][1] or not is_v1_5):
            return BackboneSpec(*LAYERS[depth], is_v1_5, small=False)
        if depth >= 8 and depth % 6 == 2 and not is_v1_5:
            return BackboneSpec(((depth - 2) // 6,) * 3, False, False, small=True)
    raise ArgumentError(
        f"backbone is {format_value(name)}; expected a residual network: write resnet50 for "
        "photographs, or resnet8 for small images"
    )


def check_output_stride(value: Any) -> int:
    """Return an output stride as an int.

    Raises:
      ArgumentError: it is no power of two from 1 to 32.

    Example:
      >>> check_output_stride(12)
      Traceback (most recent call last):
      jaxcnn.arguments.ArgumentError: output_stride is 12; expected 1, 2, 4, 8, 16 or 32: ...
    """
    if not is_integer(value) or value not in (1, 2, 4, 8, 16, 32):
        raise ArgumentError(
            f"output_stride is {format_value(value)}; expected 1, 2, 4, 8, 16 or 32: write "
            "output_stride=8"
        )
    return int(value)


def check_sizes(name: str, value: Any, example: str) -> tuple[int, ...]:
    """Return a list of different whole numbers of at least 1 as a tuple.

    Args:
      name: of the option.
      value: its value.
      example: a valid value, for the message.

    Raises:
      ArgumentError: it is something else, or empty.

    Example:
      >>> check_sizes("pools", [1, 2], "[1, 2, 3, 6]")
      (1, 2)
    """
    is_list = isinstance(value, (list, tuple))
    is_right = is_list and all(is_integer(number) and number > 0 for number in value)
    if not is_right or not 0 < len(value) == len(set(value)):
        raise ArgumentError(
            f"{name} is {format_value(value)}; expected a list of different whole numbers of at "
            f"least 1: write {example}"
        )
    return tuple(int(number) for number in value)


class SegmentationNetwork(nn.Module):
    """Base class of networks that classify pixels from the maps of residual stages.

    Attributes:
      num_classes: number of logits of a pixel.
      backbone: name of the residual network whose stages are used, as in `parse_backbone`.
      output_stride: ratio of the image's size to that of the last map, a power of two up to 32.
        Later strides become dilation. Above the product of the backbone's strides it changes
        nothing.
      width: filters of the backbone's stem; those of all other layers are in proportion.
      bn_group, bn_momentum, kernel_init, dtype, axis_name: as in `CifarResNet`.
    """

    num_classes: int
    backbone: str = "resnet50"
    output_stride: int = 8
    width: int = 64
    bn_group: int = 0
    bn_momentum: float = 0.9
    kernel_init: str = "he"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def feature_maps(
        self, x: jax.Array, train: bool, outputs: dict[str, jax.Array]
    ) -> list[jax.Array]:
        """Return the maps of the residual stages, and record them in `outputs`.

        Call it once, in a compact method, of which the layers become submodules. They have the
        names that they have in `ResNet` and `CifarResNet`.

        Args:
          x: images, float32 [b, h, w, c].
          train: use and update the statistics of the batch.
          outputs: receives the output of each stage.

        Raises:
          ArgumentError: the backbone is unknown, or its stem alone has a larger stride. Or the
            output stride is no power of two.
        """
        spec, output_stride = parse_backbone(self.backbone), check_output_stride(self.output_stride)
        stem_stride = 1 if spec.small else 4
        if output_stride < stem_stride:
            raise ArgumentError(
                f"output_stride is {output_stride}; expected at least {stem_stride}, the "
                f"stride of the stem of {self.backbone}: write output_stride={2 * stem_stride}"
            )
        make_conv, make_norm = self.make_layers()
        size, stride = (3, 1) if spec.small else (7, 2)
        x = make_conv(self.width, size, stride, name="stem")(x.astype(self.dtype))
        x = stage(self, outputs, "stem", nn.relu(make_norm(name="stem_norm")(x, train)))
        x = x if spec.small else max_pool(x, 3, 2, padding=1)
        kind = "A" if spec.small else "B"

        def make_block(filters, stride, dilation, name):
            fields: dict[str, Any] = {"dilation": dilation, "name": name}
            if spec.bottleneck:
                fields["stride_in_3x3"] = spec.stride_in_3x3
            block: Any = Bottleneck if spec.bottleneck else Block
            return block(filters, stride, kind, make_conv, make_norm, **fields)

        return residual_stages(
            x,
            train,
            strides=(1, *(2,) * (len(spec.blocks) - 1)),
            blocks=spec.blocks,
            width=self.width,
            make_block=make_block,
            record=partial(stage, self, outputs),
            output_stride=output_stride // stem_stride,
        )

    def make_layers(self) -> tuple[Any, Any]:
        """Return the constructors of a convolution and of BN, as `conv_norm_relu` takes them."""
        make_norm = partial(
            BatchNorm, self.bn_group, self.axis_name, self.bn_momentum, dtype=self.dtype
        )
        return partial(conv, kernel_init=self.kernel_init, dtype=self.dtype), make_norm


def pixel_logits(
    x: jax.Array, num_classes: int, image_shape: tuple[int, int], kernel_init: str
) -> jax.Array:
    """Classify maps by the 1x1 convolution `head`, and upsample the logits bilinearly.

    Args:
      x: [b, h, w, c].
      num_classes: number of logits of a pixel.
      image_shape: (height, width) of the image.
      kernel_init: a name in `initializers.INITS`.

    Returns:
      float32 [b, height, width, num_classes].
    """
    head = nn.Conv(num_classes, (1, 1), kernel_init=initializer(kernel_init), name="head")
    return resize_bilinear(head(x.astype(jnp.float32)), *image_shape)
