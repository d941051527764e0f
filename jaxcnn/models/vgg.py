"""VGG-11/13/16/19 (Simonyan and Zisserman 2014).

They are columns A, B, D, E of table 1 (arXiv:1409.1556).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.config import ArgumentError, check_choice
from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import Dropout, adaptive_average, conv3x3, pool_2x2, stage
from jaxcnn.models.norm import BatchNorm

LAYERS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Number of 3x3 convolutions in each of the five stages, by depth.

Stages have 64, 128, 256, 512, 512 filters.
"""


class VGG(nn.Module):
    """Five stages of 3x3 convolutions and max pooling, then dense layers.

    The convolutions have biases, and the pooling is 2x2. At size 224 and 1000 classes depth 16 has
    138,357,544 parameters (with BN 138,365,992). The paper draws kernels from N(0, 0.01), and
    begins the deeper networks with the layers of a trained depth 11 (section 3.1).

    Attributes:
      depth: 11, 13, 16 or 19.
      num_classes: number of logits.
      norm: BN after every convolution (not in the paper; as published weights have it).
      size: 224 or 32. 224 has two dense layers of 4096 and dropout 0.5. It averages the maps of
        images of other sizes, from 32 on, to 7x7, as torchvision does. The paper makes convolutions
        of the dense layers instead (section 3.2). 32 has only the dense layer of logits.
      bn_group, bn_momentum, kernel_init, dtype, axis_name: as in `CifarResNet`.

    Example:
      >>> image = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
      >>> shapes = jax.eval_shape(VGG(16, 1000).init, jax.random.key(0), image)
      >>> sum(p.size for p in jax.tree.leaves(shapes["params"]))
      138357544
    """

    depth: int
    num_classes: int
    norm: bool = False
    size: int = 224
    bn_group: int = 0
    bn_momentum: float = 0.9
    kernel_init: str = "he"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to float32 logits [b, num_classes].

        With `stages`, return a dict of outputs too.
        """
        self._check(*x.shape[1:3])
        x, outputs = x.astype(self.dtype), {}
        depth = int(check_choice("VGG depth", str(self.depth), map(str, LAYERS)))
        for number, layers in enumerate(LAYERS[depth]):
            filters = min(64 * 2**number, 512)
            for layer in range(layers):
                x = self._layer(x, filters, f"stage{number + 1}_conv{layer + 1}", train)
            x = stage(self, outputs, f"stage{number + 1}", x)
            x = pool_2x2(x, jnp.max)
        # [b, 7 * 7 * 512] or [b, 512]
        x = adaptive_average(x, 7 if self.size == 224 else 1).reshape(len(x), -1)
        for name in ("dense1", "dense2") if self.size == 224 else ():
            init = initializer(self.kernel_init)
            x = nn.relu(nn.Dense(4096, dtype=self.dtype, kernel_init=init, name=name)(x))
            x = stage(self, outputs, name, Dropout(0.5, self.axis_name)(x, train))
        head = nn.Dense(self.num_classes, kernel_init=initializer(self.kernel_init), name="head")
        logits = head(x.astype(jnp.float32))
        return (logits, outputs) if stages else logits

    def _check(self, h, w):
        is_valid = min(h, w) >= 32 if self.size == 224 else (self.size, h, w) == (32, 32, 32)
        if not is_valid:
            raise ArgumentError(
                f"VGG of size {self.size} got images of {h}x{w} pixels; expected 32x32 (name "
                "vgg16-32) or 224x224 (name vgg16, which takes any from 32x32 on)"
            )

    def _layer(self, x, filters, name, train):
        x = conv3x3(filters, kernel_init=self.kernel_init, dtype=self.dtype, bias=True, name=name)(
            x
        )
        if self.norm:
            norm = BatchNorm(
                self.bn_group,
                self.axis_name,
                self.bn_momentum,
                dtype=self.dtype,
                name=f"{name}_norm",
            )
            x = norm(x, train)
        return nn.relu(x)
