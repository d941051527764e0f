"""U-Net (Ronneberger, Fischer and Brox 2015, arXiv:1505.04597, figure 1).

It computes the logits of a class for every pixel.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.autoencoder import upsampling_layer
from jaxcnn.models.convnet import check_divisible
from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import conv3x3, pool_2x2, stage
from jaxcnn.models.norm import BatchNorm


class UNet(nn.Module):
    """U-Net: an encoder, a decoder, and skip connections at every size.

    The image is halved `depth` times by pooling and doubled as often. At every size the decoder's
    maps are concatenated with the encoder's. Every level is two 3x3 convolutions with ReLU. Filters
    double from level to level, from `width` to `width` 2^`depth`. With the defaults, which are the
    paper's, a gray image and 2 classes it has 31,030,658 parameters.

    It differs from the paper in its borders. There the convolutions have no padding, 572x572 pixels
    become 388x388, and the encoder's maps are cropped. Here a border of one pixel of zeros keeps
    every size, and the logits have the image's. `batch_norm` is not in the paper. The paper's
    dropout at the end of the encoder (its rate is not stated) is not here.

    Attributes:
      num_classes: number of logits of a pixel.
      width: filters of the first level.
      depth: number of halvings; height and width are multiples of 2^`depth`.
      up: the layer that doubles maps, one of `autoencoder.UPSAMPLINGS`. "transpose" is the paper's
        2x2 up-convolution.
      batch_norm: BN before every ReLU, instead of the convolutions' biases.
      skips: concatenate the encoder's maps. Without them everything passes through the bottom.
      bn_group, bn_momentum, kernel_init, dtype, axis_name: as in `CifarResNet`.

    Raises:
      ArgumentError: when called, for an unknown name, or images that cannot be halved `depth`
        times.

    Example:
      >>> model = UNet(num_classes=2, width=4, depth=2)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 24, 1)))
      >>> logits, stages = model.apply(variables, jnp.zeros((1, 16, 24, 1)), stages=True)
      >>> {name: stages[name].shape[1:] for name in ("down1", "down2", "bottom")}
      {'down1': (16, 24, 4), 'down2': (8, 12, 8), 'bottom': (4, 6, 16)}
      >>> {name: stages[name].shape[1:] for name in ("up2", "up1")}
      {'up2': (8, 12, 8), 'up1': (16, 24, 4)}
      >>> logits.shape
      (1, 16, 24, 2)
    """

    num_classes: int
    width: int = 64
    depth: int = 4
    up: str = "transpose"
    batch_norm: bool = False
    skips: bool = True
    bn_group: int = 0
    bn_momentum: float = 0.9
    kernel_init: str = "he"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to float32 logits [b, h, w, num_classes].

        With `stages`, return a dict of outputs too.
        """
        check_divisible(x, self.depth, "U-Net")
        x, outputs = x.astype(self.dtype), {}
        for level in range(1, self.depth + 1):
            x = stage(self, outputs, f"down{level}", self._level(x, level, f"down{level}", train))
            x = pool_2x2(x, jnp.max)
        x = stage(self, outputs, "bottom", self._level(x, self.depth + 1, "bottom", train))
        for level in range(self.depth, 0, -1):
            x = self._up(level)(x)
            if self.skips:
                # [b, h, w, 2 filters]
                x = jnp.concatenate([outputs[f"down{level}"], x], axis=-1)
            x = stage(self, outputs, f"up{level}", self._level(x, level, f"up{level}", train))
        head = nn.Conv(
            self.num_classes, (1, 1), kernel_init=initializer(self.kernel_init), name="head"
        )
        logits = head(x.astype(jnp.float32))
        return (logits, outputs) if stages else logits

    def _up(self, level):
        filters = self.width * 2 ** (level - 1)
        return upsampling_layer(
            filters,
            self.up,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name=f"up{level}_double",
        )

    def _level(self, x, level, name, train):
        """Apply the two convolutions of a level.

        They map [b, h, w, c] to [b, h, w, width 2^(level - 1)].
        """
        conv = partial(
            conv3x3, self.width * 2 ** (level - 1), kernel_init=self.kernel_init, dtype=self.dtype
        )
        for layer in ("conv1", "conv2"):
            x = conv(bias=not self.batch_norm, name=f"{name}_{layer}")(x)
            if self.batch_norm:
                norm = BatchNorm(
                    self.bn_group,
                    self.axis_name,
                    self.bn_momentum,
                    dtype=self.dtype,
                    name=f"{name}_{layer}_norm",
                )
                x = norm(x, train)
            x = nn.relu(x)
        return x
