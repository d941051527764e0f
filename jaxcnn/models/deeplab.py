"""DeepLabv3+ (Chen, Zhu, Papandreou, Schroff and Adam 2018, arXiv:1802.02611, figure 2).

It computes the logits of a class for every pixel, from atrous convolutions of several rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.layers import adaptive_average, conv_norm_relu, resize_bilinear, stage
from jaxcnn.models.segmentation import SegmentationNetwork, check_sizes, pixel_logits


class DeepLabV3Plus(SegmentationNetwork):
    """DeepLabv3+: residual stages, atrous spatial pyramid pooling and a decoder.

    The pyramid (ASPP; Chen et al. 2017, arXiv:1706.05587, section 3.3) has five branches: a 1x1
    convolution, three atrous 3x3 convolutions, and the mean of the image with a 1x1 convolution.
    They are concatenated and reduced by a 1x1 convolution. The decoder upsamples the result
    bilinearly to the size of the first stage's maps, a quarter of the image. It is concatenated
    with these, reduced to 48 channels. Two 3x3 convolutions follow, then the classifier, whose
    logits are upsampled to the size of the image. Every convolution but the classifier has BN and
    ReLU. With the default backbone and 21 classes it has 40,352,181 parameters.

    The last stage of ResNet-50 is dilated, so that the maps are a sixteenth of the image (section
    3.1). With `output_stride=8`, Chen et al. 2017 (section 3.3) double the rates:
    `rates=(12, 24, 36)`. Images have any size. Bilinear upsampling has the centers of half pixels.
    The authors' code aligns the corners of images of 16 n + 1 pixels instead, has dropout (0.1)
    after the pyramid, and other rates in the last stage. The paper's Xception, with separable
    convolutions in pyramid and decoder, is not here.

    For small images, `backbone="resnet8"` has the stages of `CifarResNet`. The first stage's maps
    are then as large as the image. Rates should be below the size of the last maps: a kernel that
    reaches beyond them is a 1x1 (Chen et al. 2017, figure 4).

    Attributes:
      num_classes: number of logits of a pixel.
      backbone: name of the residual network whose stages are used: "resnet50", "resnet101-v1.5",
        or "resnet8" or "resnet20" for small images.
      output_stride: ratio of the image's size to that of the last map, a power of two up to 32.
        Later strides become dilation. Above the product of the backbone's strides it changes
        nothing.
      width: filters of the backbone's stem. Pyramid and decoder have 4 times as many, 256 by
        default, and the first stage's maps are reduced to 3/4 of it, 48.
      rates: dilation of the atrous convolutions, pixels of the last maps, different ones.
      bn_group, bn_momentum, kernel_init, dtype, axis_name: as in `CifarResNet`.

    Raises:
      ArgumentError: when called, for an unknown backbone, invalid rates, or an output stride that
        is no power of two or below that of the stem.

    Example:
      >>> model = DeepLabV3Plus(2, "resnet8", output_stride=2, width=4, rates=(2, 4, 6))
      >>> image = jax.ShapeDtypeStruct((1, 32, 48, 3), "float32")
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> logits, stages = jax.eval_shape(
      ...     lambda v, x: model.apply(v, x, stages=True), variables, image)
      >>> {name: maps.shape[1:] for name, maps in stages.items()}
      ... # doctest: +NORMALIZE_WHITESPACE
      {'aspp': (16, 24, 16), 'decoder': (32, 48, 16), 'stage1': (32, 48, 4),
       'stage2': (16, 24, 8), 'stage3': (16, 24, 16), 'stem': (32, 48, 4)}
      >>> logits.shape
      (1, 32, 48, 2)
    """

    output_stride: int = 16
    rates: Sequence[int] = (6, 12, 18)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to float32 logits [b, h, w, num_classes].

        With `stages`, return a dict of outputs too.
        """
        rates = check_sizes("rates", self.rates, "[6, 12, 18]")
        _, height, width, _ = x.shape
        image_shape = height, width
        layer = partial(conv_norm_relu, self.make_layers())
        outputs: dict[str, jax.Array] = {}
        low, *_, x = self.feature_maps(x, train, outputs)
        x = stage(self, outputs, "aspp", self._pyramid(layer, x, train, rates))
        x = stage(self, outputs, "decoder", self._decode(layer, x, low, train))
        logits = pixel_logits(x, self.num_classes, image_shape, self.kernel_init)
        return (logits, outputs) if stages else logits

    def _pyramid(self, layer, x, train, rates):
        """Map [b, h, w, c] to [b, h, w, 4 width]."""
        filters, (_, h, w, _) = 4 * self.width, x.shape
        branches = [layer(x, train, filters, 1, "aspp_conv")]
        for number, rate in enumerate(rates, 1):
            branches.append(layer(x, train, filters, 3, f"aspp_atrous{number}", dilation=rate))
        mean = layer(adaptive_average(x, 1), train, filters, 1, "aspp_pool")
        branches.append(resize_bilinear(mean, h, w))
        return layer(jnp.concatenate(branches, -1), train, filters, 1, "aspp_project")

    def _decode(self, layer, x, low, train):
        """Map [b, h, w, 4 width] and low-level maps [b, h', w', c] to [b, h', w', 4 width]."""
        low = layer(low, train, max(1, 3 * self.width // 4), 1, "decoder_low")
        x = jnp.concatenate([resize_bilinear(x, *low.shape[1:3]), low], -1)
        for name in ("decoder_conv1", "decoder_conv2"):
            x = layer(x, train, 4 * self.width, 3, name)
        return x
