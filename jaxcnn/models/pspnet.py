"""PSPNet (Zhao, Shi, Qi, Wang and Jia 2017, arXiv:1612.01105, figure 3).

It computes the logits of a class for every pixel, from maps that are pooled at several sizes.
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


class AuxiliaryHead(nn.Module):
    """Segmentation head on maps in the middle of the network.

    It is a 3x3 convolution, BN, ReLU and a classifier. It sows its logits, float32 [b, height,
    width, num_classes], in the collection "aux".

    Attributes:
      make: as in `conv_norm_relu`.
      filters: of the 3x3 convolution.
      num_classes: number of logits of a pixel.
      kernel_init: a name in `initializers.INITS`.
    """

    make: tuple[Any, Any]
    filters: int
    num_classes: int
    kernel_init: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, image_shape: tuple[int, int]) -> None:
        """Sow the logits of maps [b, h, w, c] at the size of the image."""
        x = conv_norm_relu(self.make, x, train, self.filters, 3, "conv")
        logits = pixel_logits(x, self.num_classes, image_shape, self.kernel_init)
        if not self.is_initializing():
            self.sow("aux", "logits", logits)


class PSPNet(SegmentationNetwork):
    """PSPNet: residual stages, pyramid pooling and a 3x3 convolution.

    The last maps are averaged over 1x1, 2x2, 3x3 and 6x6 windows that cover the image
    (`layers.adaptive_average`). A 1x1 convolution reduces each to a quarter of the channels. They
    are upsampled bilinearly and concatenated with the maps. A 3x3 convolution follows, then the
    classifier, whose logits are upsampled to the size of the image. With the default backbone and
    21 classes it has 46,592,597 parameters, and 48,957,802 with the auxiliary head.

    The last two stages of ResNet-50 are dilated, so that the maps are an eighth of the image
    (section 3.3). Images have any size. Bilinear upsampling has the centers of half pixels. The
    authors' code aligns the corners of images of 8 n + 1 pixels instead. It also has dropout (0.1)
    before the classifiers, and three 3x3 convolutions for the stem, neither of which is in the
    paper.

    For small images, `backbone="resnet8"` has the stages of `CifarResNet`, whose maps are a
    quarter of the image unless `output_stride` is 1 or 2. The pyramid and both heads are the same.

    Attributes:
      num_classes: number of logits of a pixel.
      backbone: name of the residual network whose stages are used: "resnet50", "resnet101-v1.5",
        or "resnet8" or "resnet20" for small images.
      output_stride: ratio of the image's size to that of the last map, a power of two up to 32.
        Later strides become dilation. Above the product of the backbone's strides it changes
        nothing.
      width: filters of the backbone's stem. The 3x3 convolutions of the two heads have 8 and 4
        times as many, 512 and 256 by default.
      pools: numbers of windows along each side, different ones.
      aux: the auxiliary head on the last stage but one (section 4). It has parameters, runs in
        training only, and sows its logits in "aux".
      aux_weight: weight of the auxiliary head's loss (section 5.2). `jaxcnn.train` applies it.
      bn_group, bn_momentum, kernel_init, dtype, axis_name: as in `CifarResNet`.

    Raises:
      ArgumentError: when called, for an unknown backbone, invalid pools, or an output stride that
        is no power of two or below that of the stem.

    Example:
      >>> model = PSPNet(num_classes=2, backbone="resnet8", output_stride=2, width=4)
      >>> image = jax.ShapeDtypeStruct((1, 32, 48, 3), "float32")
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> logits, stages = jax.eval_shape(
      ...     lambda v, x: model.apply(v, x, stages=True), variables, image)
      >>> {name: maps.shape[1:] for name, maps in stages.items()}
      ... # doctest: +NORMALIZE_WHITESPACE
      {'fusion': (16, 24, 32), 'pyramid': (16, 24, 32), 'stage1': (32, 48, 4),
       'stage2': (16, 24, 8), 'stage3': (16, 24, 16), 'stem': (32, 48, 4)}
      >>> logits.shape
      (1, 32, 48, 2)
    """

    pools: Sequence[int] = (1, 2, 3, 6)
    aux: bool = True
    aux_weight: float = 0.4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to float32 logits [b, h, w, num_classes].

        With `stages`, return a dict of outputs too.
        """
        pools = check_sizes("pools", self.pools, "[1, 2, 3, 6]")
        _, height, width, _ = x.shape
        image_shape = height, width
        layer = partial(conv_norm_relu, self.make_layers())
        outputs: dict[str, jax.Array] = {}
        *_, before, x = self.feature_maps(x, train, outputs)
        if self.aux and (train or self.is_initializing()):
            make, filters = self.make_layers(), 4 * self.width
            head = AuxiliaryHead(make, filters, self.num_classes, self.kernel_init, name="aux_head")
            head(before, train, image_shape)
        x = stage(self, outputs, "pyramid", self._pyramid(layer, x, train, pools))
        x = stage(self, outputs, "fusion", layer(x, train, 8 * self.width, 3, "fusion"))
        logits = pixel_logits(x, self.num_classes, image_shape, self.kernel_init)
        return (logits, outputs) if stages else logits

    def _pyramid(self, layer, x, train, pools):
        """Map [b, h, w, c] to [b, h, w, 2 c], for pools whose number divides c."""
        _, h, w, channels = x.shape
        filters = max(1, channels // len(pools))
        levels = [x]
        for pool in pools:
            y = layer(adaptive_average(x, pool), train, filters, 1, f"pyramid_pool{pool}")
            levels.append(resize_bilinear(y, h, w))
        return jnp.concatenate(levels, -1)
