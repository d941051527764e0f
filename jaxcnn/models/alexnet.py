"""AlexNet (Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural networks"), twice."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import Dropout, conv, stage
from jaxcnn.models.pooling import adaptive_average, local_response_norm, max_pool
from jaxcnn.recipe import ArgumentError

TOWERS = ((96, 1), (256, 2), (384, 1), (384, 2), (256, 2))
"""Filters and groups of the five convolutions of 2012 (figure 2, both GPUs together)."""
TOWER = ((64, 1), (192, 1), (384, 1), (256, 1), (256, 1))
"""Filters of the one tower of 2014, in one group each."""


class AlexNet(nn.Module):
    """Convolutions of 11x11 (stride 4), 5x5 and thrice 3x3, overlapping 3x3 pooling of stride 2, three dense layers.

    The two forms are two networks. With 1000 classes:

    - `towers=False`: one tower, 61,100,840 parameters (Krizhevsky 2014, arXiv:1404.5997, footnote 1), as torchvision has
      it and published weights expect: 256 filters in the fourth layer where the paper has 384, no LRN, the maps averaged to
      6x6 whatever the image, dropout on the inputs of both hidden dense layers.
    - `towers=True`: 2012, 60,965,224 parameters: layers 2, 4, 5 in two groups, one for each GPU, LRN after the ReLU of layers
      1 and 2 and before pooling (Caffe's copy swaps the two), dropout on the outputs of the hidden dense layers. The paper says
      224 pixels where its arithmetic needs 227: images of 224 are padded by 2 zeros above and left, 1 below and right.

    The papers draw kernels from N(0, 0.01^2), with biases of 1 in layers 2, 4, 5 and the hidden dense ones; here as
    `kernel_init` says, with biases of 0.

    Attributes:
      classes: the number of logits.
      towers: the form of 2012.
      dropout: the share of inputs, or outputs, that training sets to 0; above 0, `train` needs a "dropout" stream.
      kernel_init, dtype, axis: as in `CifarResNet`.

    Raises:
      ArgumentError: when called, for images smaller than 63 pixels, or with `towers` of a size but 224 and 227.

    Example:
      >>> image = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
      >>> variables = jax.eval_shape(AlexNet(1000).init, jax.random.key(0), image)
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      61100840
    """

    classes: int
    towers: bool = False
    dropout: float = 0.5
    kernel_init: str = "he"
    dtype: Any = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """float32 [b, h, w, c] -> float32 logits [b, classes]; with `stages`, also a dict of outputs."""
        x, seen = self._padded(x).astype(self.dtype), {}
        make = partial(conv, kernel_init=self.kernel_init, dtype=self.dtype, bias=True)
        for number, (filters, groups) in enumerate(TOWERS if self.towers else TOWER, 1):
            size, stride, padding = {1: (11, 4, 0), 2: (5, 1, 2)}.get(number, (3, 1, 1))
            name = f"conv{number}"
            x = nn.relu(make(filters, size, stride, padding=padding, groups=groups, name=name)(x))
            x = stage(self, seen, name, x)
            if self.towers and number < 3:
                x = local_response_norm(x)
            x = max_pool(x, 3, 2) if number in (1, 2, 5) else x
        x = adaptive_average(x, 6).reshape(len(x), -1)  # [b, 6 * 6 * 256]; towers have 6x6 already
        for name in ("dense1", "dense2"):
            x = stage(self, seen, name, self._dense(x, name, train))
        logits = nn.Dense(self.classes, kernel_init=initializer(self.kernel_init), name="head")(x.astype(jnp.float32))
        return (logits, seen) if stages else logits

    def _dense(self, x, name, train):
        drop = Dropout(self.dropout, self.axis)
        x = x if self.towers else drop(x, train)
        x = nn.relu(nn.Dense(4096, dtype=self.dtype, kernel_init=initializer(self.kernel_init), name=name)(x))
        return drop(x, train) if self.towers else x

    def _padded(self, x):
        h, w = x.shape[1:3]
        if self.towers and (h, w) not in ((224, 224), (227, 227)):
            raise ArgumentError(
                f"AlexNet of 2012 got images of {h}x{w} pixels; expected 224x224 or 227x227, or write alexnet, from 63x63 on"
            )
        if min(h, w) < 63:
            raise ArgumentError(f"AlexNet got images of {h}x{w} pixels; expected at least 63x63: its maps would vanish")
        before, after = (0, 0) if h == 227 and self.towers else (2, 1) if self.towers else (2, 2)
        return jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
