"""Small convolutional network of courses.

Each of its parts can be switched: pooling, activation, BN, dropout.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.config import ArgumentError, check_choice
from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import Dropout, conv3x3, pool_2x2, stage
from jaxcnn.models.mlp import activation
from jaxcnn.models.norm import BatchNorm

POOLINGS = {"max": jnp.max, "average": jnp.mean}
"""Reductions of a 2x2 window to one number, by name."""


def check_divisible(x: jax.Array, times: int, network: str) -> None:
    """Check that images can be halved `times` times.

    Args:
      x: images [b, h, w, c].
      times: number of halvings.
      network: name of the network in the error message.

    Raises:
      ArgumentError: for images whose height or width is 0 or not a multiple of 2^times.

    Example:
      >>> check_divisible(jnp.zeros((1, 30, 28, 1)), 2, "ConvNet")
      Traceback (most recent call last):
      jaxcnn.arguments.ArgumentError: ConvNet got images of 30x28 pixels, which it halves twice; ...
    """
    h, w = x.shape[1:3]
    count = {1: "once", 2: "twice"}.get(times, f"{times} times")
    if h % 2**times or w % 2**times or not h * w:
        raise ArgumentError(
            f"{network} got images of {h}x{w} pixels, which it halves {count}; expected multiples "
            f"of {2**times}"
        )


class ConvNet(nn.Module):
    """Stages of convolution and pooling, by default two, then two dense layers.

    A stage is a 3x3 convolution, (BN,) an activation and 2x2 pooling. Dropout follows the first
    dense layer, and the second computes the logits. The default's convolutions have `width` and
    2 `width` filters. On images of 28x28x1, with 10 classes, it has 26,698 parameters. With BN it
    has 26,722. The convolutions' biases, which BN would subtract again, are then replaced by BN's
    offsets and gains.

    `create_model("cnn", 10)` is the shallowest form, with a single convolution, as courses write it
    from scratch: convolution, ReLU, pooling, dense, ReLU, dense. It has 50,618 parameters, more
    than the default, as its dense layer sees larger maps. Other courses have other numbers of
    filters and units.

    Attributes:
      num_classes: number of logits.
      width: filters of the first convolution.
      convolutions: number of convolutions, each followed by pooling. Each has twice the filters of
        the one before.
      hidden: units of the first dense layer.
      activation: a name in `mlp.ACTIVATIONS`, after each convolution and the first dense layer.
      pooling: a name in `POOLINGS`.
      batch_norm: BN between each convolution and its activation.
      dropout: the share of the first dense layer's outputs that training sets to 0. Above 0,
        `train=True` needs a "dropout" stream.
      kernel_init: a name in `initializers.INITS`; None is the activation's own (see
        `mlp.ACTIVATIONS`).
      bn_group, bn_momentum, dtype, axis_name: as in `CifarResNet`.

    Raises:
      ArgumentError: when called, for an unknown name, or images that cannot be halved once for each
        convolution.

    Example:
      >>> model = ConvNet(num_classes=10)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> logits, stages = model.apply(variables, jnp.zeros((1, 28, 28, 1)), stages=True)
      >>> {name: maps.shape[1:] for name, maps in stages.items()}
      {'conv1': (28, 28, 8), 'conv2': (14, 14, 16), 'dense': (32,)}
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      26698
    """

    num_classes: int
    width: int = 8
    convolutions: int = 2
    hidden: int = 32
    activation: str = "relu"
    pooling: str = "max"
    batch_norm: bool = False
    dropout: float = 0.0
    bn_group: int = 0
    bn_momentum: float = 0.9
    kernel_init: str | None = None
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to float32 logits [b, num_classes].

        With two convolutions h and w are multiples of 4. With `stages`, return a dict of outputs
        too.
        """
        check_divisible(x, self.convolutions, "ConvNet")
        act, default_init = activation(self.activation)
        init = self.kernel_init or default_init
        pool = POOLINGS[check_choice("pooling", self.pooling, POOLINGS)]
        x, outputs = x.astype(self.dtype), {}
        for number in range(self.convolutions):
            name = f"conv{number + 1}"
            maps = self._conv(x, self.width * 2**number, init, name, train)
            x = stage(self, outputs, name, act(maps))
            x = pool_2x2(x, pool)
        # [b, h/4 * w/4 * 2 width] for two convolutions
        x = x.reshape(len(x), -1)
        dense = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=initializer(init), name="dense")
        x = act(dense(x))
        x = stage(self, outputs, "dense", Dropout(self.dropout, self.axis_name)(x, train))
        head = nn.Dense(self.num_classes, kernel_init=initializer(init), name="head")
        logits = head(x.astype(jnp.float32))
        return (logits, outputs) if stages else logits

    def _conv(self, x, filters, init, name, train):
        bias = not self.batch_norm
        x = conv3x3(filters, kernel_init=init, dtype=self.dtype, bias=bias, name=name)(x)
        if self.batch_norm:
            norm = BatchNorm(
                self.bn_group,
                self.axis_name,
                self.bn_momentum,
                dtype=self.dtype,
                name=f"{name}_norm",
            )
            x = norm(x, train)
        return x
