"""AlexNet in its two forms, of 2012 and of 2014.

The first is Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional
neural networks". The second is Krizhevsky 2014 (arXiv:1404.5997).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.config import ArgumentError
from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import (
    Dropout,
    adaptive_average,
    conv,
    local_response_norm,
    max_pool,
    stage,
)

TWO_TOWERS = ((96, 1), (256, 2), (384, 1), (384, 2), (256, 2))
"""Filters and groups of the convolutions of 2012 (figure 2).

The filters are those of both GPUs together.
"""
ONE_TOWER = ((64, 1), (192, 1), (384, 1), (256, 1), (256, 1))
"""Filters and groups of the convolutions of 2014, one tower."""


class AlexNet(nn.Module):
    """AlexNet: five convolutions with overlapping pooling, then three dense layers.

    The convolutions are 11x11 (stride 4), 5x5 and three times 3x3. The pooling is 3x3 of stride 2.
    The two forms are two networks. With 1000 classes:

    - `towers=False`: one tower, 61,100,840 parameters (Krizhevsky 2014, arXiv:1404.5997,
      footnote 1), as torchvision has it and published weights expect. The fourth layer has 256
      filters where the paper has 384. There is no LRN. The maps are averaged to 6x6 whatever the
      image. Dropout acts on the inputs of both hidden dense layers.
    - `towers=True`: 2012, 60,965,224 parameters. Layers 2, 4, 5 are in two groups, one for each
      GPU. LRN follows the ReLU of layers 1 and 2 and precedes pooling (Caffe's copy swaps the two).
      Dropout acts on the outputs of the hidden dense layers. The paper says 224 pixels where its
      arithmetic needs 227. Images of 224 are padded by 2 zeros above and left, 1 below and right.

    The papers draw kernels from N(0, 0.01^2), with biases of 1 in layers 2, 4, 5 and the hidden
    dense ones. Here `kernel_init` draws the kernels, and biases are 0.

    Attributes:
      num_classes: number of logits.
      towers: the form of 2012.
      dropout: the share of inputs, or outputs, that training sets to 0. Above 0, `train=True`
        needs a "dropout" stream.
      kernel_init, dtype, axis_name: as in `CifarResNet`.

    Raises:
      ArgumentError: when called, for images smaller than 63 pixels, or with `towers` of a size
        other than 224 and 227.

    Example:
      >>> image = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
      >>> variables = jax.eval_shape(AlexNet(1000).init, jax.random.key(0), image)
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      61100840
    """

    num_classes: int
    towers: bool = False
    dropout: float = 0.5
    kernel_init: str = "he"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to float32 logits [b, num_classes].

        With `stages`, return a dict of outputs too.
        """
        x, outputs = self._pad(x).astype(self.dtype), {}
        make_conv = partial(conv, kernel_init=self.kernel_init, dtype=self.dtype, bias=True)
        table = TWO_TOWERS if self.towers else ONE_TOWER
        for number, (filters, groups) in enumerate(table, 1):
            size, stride, padding = {1: (11, 4, 0), 2: (5, 1, 2)}.get(number, (3, 1, 1))
            name = f"conv{number}"
            layer = make_conv(filters, size, stride, padding=padding, groups=groups, name=name)
            x = nn.relu(layer(x))
            x = stage(self, outputs, name, x)
            if self.towers and number < 3:
                x = local_response_norm(x)
            x = max_pool(x, 3, 2) if number in (1, 2, 5) else x
        # [b, 6 * 6 * 256]; the maps of two towers are 6x6 before it
        x = adaptive_average(x, 6).reshape(len(x), -1)
        for name in ("dense1", "dense2"):
            x = stage(self, outputs, name, self._dense(x, name, train))
        head = nn.Dense(self.num_classes, kernel_init=initializer(self.kernel_init), name="head")
        logits = head(x.astype(jnp.float32))
        return (logits, outputs) if stages else logits

    def _dense(self, x, name, train):
        dropout = Dropout(self.dropout, self.axis_name)
        x = x if self.towers else dropout(x, train)
        init = initializer(self.kernel_init)
        x = nn.relu(nn.Dense(4096, dtype=self.dtype, kernel_init=init, name=name)(x))
        return dropout(x, train) if self.towers else x

    def _pad(self, x):
        h, w = x.shape[1:3]
        if self.towers and (h, w) not in ((224, 224), (227, 227)):
            raise ArgumentError(
                f"AlexNet of 2012 got images of {h}x{w} pixels; expected 224x224 or 227x227, or "
                "write alexnet, from 63x63 on"
            )
        if min(h, w) < 63:
            raise ArgumentError(
                f"AlexNet got images of {h}x{w} pixels; expected at least 63x63: its maps would "
                "vanish"
            )
        # The 2012 form of 224 pixels is padded to 227, and the 2014 form by 2 on every side.
        before, after = (0, 0) if h == 227 and self.towers else (2, 1) if self.towers else (2, 2)
        return jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
