"""GoogLeNet as printed and with batch normalization.

The paper is Szegedy et al. 2014 (arXiv:1409.4842), table 1 and figure 3.
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
    average_pool,
    conv,
    conv_norm_relu,
    local_response_norm,
    max_pool,
    stage,
)
from jaxcnn.models.norm import BatchNorm

TABLE = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
"""Filters of each Inception module (table 1).

The order is: 1x1, before the 3x3, 3x3, before the 5x5, 5x5, after the pooling.
"""
AUX = {"inception4a": "aux1", "inception4d": "aux2"}
"""Inception modules with an auxiliary head, and the head's name (figure 3)."""


class Inception(nn.Module):
    """Inception module: 1x1, 3x3, 5x5 convolutions and 3x3 pooling of one input.

    The channels of the four branches are concatenated (figure 2b).

    Attributes:
      filters: a row of `TABLE`.
      make: as in `conv_norm_relu`.
    """

    filters: tuple[int, ...]
    make: tuple[Any, Any]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map [b, h, w, c] to the four branches' channels of the same size."""
        layer = partial(conv_norm_relu, self.make)
        filters1, reduce3, filters3, reduce5, filters5, filters_pool = self.filters
        input3 = layer(x, train, reduce3, 1, "branch2_reduce")
        input5 = layer(x, train, reduce5, 1, "branch3_reduce")
        branches = [
            layer(x, train, filters1, 1, "branch1"),
            layer(input3, train, filters3, 3, "branch2"),
            # With BN, torchvision's form, the kernel is 3x3.
            layer(input5, train, filters5, 3 if self.make[1] else 5, "branch3"),
            layer(max_pool(x, 3, 1, padding=1), train, filters_pool, 1, "branch4"),
        ]
        return jnp.concatenate(branches, -1)


class AuxiliaryHead(nn.Module):
    """Classifier on maps in the middle of the network.

    It sows its logits, float32 [b, num_classes], in the collection "aux". It averages over 5x5
    windows with stride 3 as printed, or to 4x4 with BN. 14x14 maps become 4x4 in both, of different
    windows.

    Attributes:
      make: as in `conv_norm_relu`.
      dense: constructor of a dense layer.
      num_classes: number of logits.
      axis_name: the mapped axis that splits the batch, if any.
    """

    make: tuple[Any, Any]
    dense: Any
    num_classes: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> None:
        """Sow the logits of maps [b, h, w, c].

        Without BN, h and w are at least 5.
        """
        if not self.make[1] and min(x.shape[1:3]) < 5:
            raise ArgumentError(
                f"GoogLeNet's auxiliary heads got maps of {x.shape[1]}x{x.shape[2]}, smaller than "
                "their 5x5 windows; write aux=False, or images of at least 79x79 pixels"
            )
        x = adaptive_average(x, 4) if self.make[1] else average_pool(x, 5, 3)
        x = conv_norm_relu(self.make, x, train, 128, 1, "conv")
        x = nn.relu(self.dense(1024, dtype=x.dtype, name="dense")(x.reshape(len(x), -1)))
        x = Dropout(0.7, self.axis_name)(x, train)
        logits = self.dense(self.num_classes, name="head")(x.astype(jnp.float32))
        if not self.is_initializing():
            self.sow("aux", "logits", logits)


class GoogLeNet(nn.Module):
    """GoogLeNet: three convolutions, nine Inception modules, a mean, a dense layer.

    The pooling between them rounds up. The two forms, with 1000 classes:

    - `norm=False`, the paper's: 6,998,552 parameters, 13,378,280 with the auxiliary heads. It has
      biases, LRN after the first pooling and before the second, and 40% dropout. LRN has AlexNet's
      constants, for the paper states none.
    - `norm=True`, torchvision's, for its weights: 6,624,904 and 13,004,888 parameters. It has BN
      (epsilon 0.001) instead of biases and LRN, 2x2 for the last pooling, and 20% dropout. It has
      3x3 convolutions where the 5x5 should be, a mistake copied from TensorFlow's version. They
      stay because the weights need them. The form is not BN-Inception (Ioffe and Szegedy 2015,
      arXiv:1502.03167).

    The paper does not state its initialization; torchvision draws from a truncated N(0, 0.01^2).

    Attributes:
      num_classes: number of logits.
      norm: torchvision's form.
      aux: the two auxiliary heads. They have parameters, run in training only, and sow their logits
        in "aux". The training step adds 0.3 times the loss of each (section 5).
      dropout: the share of the mean's channels that training sets to 0. Above 0, `train=True`
        needs a "dropout" stream. The auxiliary heads have their own 70%.
      transform_input: convert images normalized by ImageNet's means and standard deviations to
        (x - 0.5) / 0.5, which torchvision's weights expect.
      bn_group, bn_momentum, kernel_init, dtype, axis_name: as in `CifarResNet`.

    Raises:
      ArgumentError: when called, for images smaller than 32 pixels, or than 79 with `aux` and
        without `norm`.

    Example:
      >>> image = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
      >>> variables = jax.eval_shape(GoogLeNet(1000).init, jax.random.key(0), image)
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      6998552
    """

    num_classes: int
    norm: bool = False
    aux: bool = False
    dropout: float = 0.4
    transform_input: bool = False
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
        if min(x.shape[1:3]) < 32:
            raise ArgumentError(
                f"GoogLeNet got images of {x.shape[1]}x{x.shape[2]} pixels; expected at least 32x32"
            )
        make, outputs = self._make(), {}
        dense = partial(nn.Dense, kernel_init=initializer(self.kernel_init))
        x = self._stem(make, _imagenet_to_half(x) if self.transform_input else x, outputs, train)
        for name, filters in TABLE.items():
            if name in ("inception4a", "inception5a"):
                # torchvision's last pooling is 2x2.
                size = 2 if self.norm and name == "inception5a" else 3
                x = max_pool(x, size, 2, ceil=True)
            x = stage(self, outputs, name, Inception(filters, make, name=name)(x, train))
            if self.aux and name in AUX and (train or self.is_initializing()):
                AuxiliaryHead(make, dense, self.num_classes, self.axis_name, name=AUX[name])(
                    x, train
                )
        x = stage(self, outputs, "pool", x.astype(jnp.float32).mean((1, 2)))
        logits = dense(self.num_classes, name="head")(
            Dropout(self.dropout, self.axis_name)(x, train)
        )
        return (logits, outputs) if stages else logits

    def _make(self):
        """Return the constructors of a convolution and of BN (or None)."""
        options = {"momentum": self.bn_momentum, "epsilon": 1e-3, "dtype": self.dtype}
        norm = partial(BatchNorm, self.bn_group, self.axis_name, **options) if self.norm else None
        return partial(conv, kernel_init=self.kernel_init, dtype=self.dtype), norm

    def _stem(self, make, x, outputs, train):
        """Map [b, h, w, c] to [b, h/8, w/8, 192]."""
        lrn = (lambda x: x) if self.norm else local_response_norm
        x = conv_norm_relu(make, x.astype(self.dtype), train, 64, 7, "conv1", stride=2)
        x = stage(self, outputs, "conv1", x)
        x = lrn(max_pool(x, 3, 2, ceil=True))
        x = stage(self, outputs, "conv2", conv_norm_relu(make, x, train, 64, 1, "conv2"))
        x = stage(self, outputs, "conv3", conv_norm_relu(make, x, train, 192, 3, "conv3"))
        return max_pool(lrn(x), 3, 2, ceil=True)


def _imagenet_to_half(x):
    """Convert ImageNet's normalization to (x - 0.5) / 0.5."""
    constants = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = (jnp.asarray(values, x.dtype)[None, None, None] for values in constants)
    return (x * std + mean - 0.5) / 0.5
