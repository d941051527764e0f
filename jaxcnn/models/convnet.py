"""The small convolutional network of courses, with each of its parts to switch: pooling, activation, BN, dropout."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import Dropout, conv3x3, pool_2x2, stage
from jaxcnn.models.mlp import activation
from jaxcnn.models.norm import BatchNorm
from jaxcnn.recipe import ArgumentError, check_choice

POOLS = {"max": jnp.max, "average": jnp.mean}
"""How a 2x2 square becomes one number, by name."""


def divisible(x: jax.Array, times: int, network: str) -> None:
    """ArgumentError unless the images [b, h, w, c] can be halved so many times.

    Example:
      >>> divisible(jnp.zeros((1, 30, 28, 1)), 2, "ConvNet")
      Traceback (most recent call last):
      jaxcnn.arguments.ArgumentError: ConvNet got images of 30x28 pixels, which it halves twice; expected multiples of 4
    """
    h, w = x.shape[1:3]
    often = {1: "once", 2: "twice"}.get(times, f"{times} times")
    if h % 2**times or w % 2**times or not h * w:
        raise ArgumentError(
            f"{network} got images of {h}x{w} pixels, which it halves {often}; expected multiples of {2**times}"
        )


class ConvNet(nn.Module):
    """Twice a 3x3 convolution, (BN,) an activation and 2x2 pooling; then a dense layer, dropout and the logits.

    The convolutions have `width` and 2 `width` filters. On images of 28x28x1, with 10 classes, the default has 26,698
    parameters, and with BN 26,722: the convolutions' biases, which BN would take off again, make way for offsets and gains.
    `build("cnn", 10)` is the smallest that is one, with a single convolution, as courses write it from scratch:
    convolution, ReLU, pooling, dense, ReLU, dense (50,618 parameters; other courses have other numbers of filters and units).

    Attributes:
      classes: the number of logits.
      width: filters of the first convolution.
      convolutions: how many, each followed by pooling; each has twice the filters of the one before.
      hidden: units of the dense layer.
      activation: a name in `mlp.ACTIVATIONS`.
      pooling: a name in `POOLS`.
      batch_norm: BN between each convolution and its activation.
      dropout: the share of the dense layer's outputs that training sets to 0; above 0, `train` needs a "dropout" stream.
      kernel_init: a name in `initializers.INITS`; None is the activation's own (see `mlp.ACTIVATIONS`).
      bn_group, bn_momentum, dtype, axis: as in `CifarResNet`.

    Raises:
      ArgumentError: when called, for an unknown name, or images that cannot be halved once for each convolution.

    Example:
      >>> model = ConvNet(classes=10)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> logits, stages = model.apply(variables, jnp.zeros((1, 28, 28, 1)), stages=True)
      >>> {name: maps.shape[1:] for name, maps in stages.items()}
      {'conv1': (28, 28, 8), 'conv2': (14, 14, 16), 'dense': (32,)}
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      26698
    """

    classes: int
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
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """float32 [b, h, w, c], h and w multiples of 4 -> float32 logits [b, classes]; `stages` adds a dict of outputs."""
        divisible(x, self.convolutions, "ConvNet")
        act, own = activation(self.activation)
        init, pool = self.kernel_init or own, POOLS[check_choice("pooling", self.pooling, POOLS)]
        x, seen = x.astype(self.dtype), {}
        for number in range(self.convolutions):
            name = f"conv{number + 1}"
            x = stage(self, seen, name, act(self._conv(x, self.width * 2**number, init, name, train)))
            x = pool_2x2(x, pool)
        x = x.reshape(len(x), -1)  # [b, h/4 * w/4 * 2 width] for two convolutions
        x = act(nn.Dense(self.hidden, dtype=self.dtype, kernel_init=initializer(init), name="dense")(x))
        x = stage(self, seen, "dense", Dropout(self.dropout, self.axis)(x, train))
        logits = nn.Dense(self.classes, kernel_init=initializer(init), name="head")(x.astype(jnp.float32))
        return (logits, seen) if stages else logits

    def _conv(self, x, filters, init, name, train):
        bias = not self.batch_norm
        x = conv3x3(filters, kernel_init=init, dtype=self.dtype, bias=bias, name=name)(x)
        if self.batch_norm:
            norm = BatchNorm(self.bn_group, self.axis, self.bn_momentum, dtype=self.dtype, name=f"{name}_norm")
            x = norm(x, train)
        return x
