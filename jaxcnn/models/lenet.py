"""LeNet-5 as printed in 1998, as commonly built, and with ReLU.

The paper is LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document
recognition", section II.B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config import ArgumentError
from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import pool_2x2, stage


def scaled_tanh(x: jax.Array) -> jax.Array:
    """Return 1.7159 tanh(2 x / 3), elementwise.

    It is 1 at 1 and -1 at -1 (appendix A of the paper).
    """
    return 1.7159 * jnp.tanh(2 / 3 * x)


def pad_to_32(x: jax.Array) -> jax.Array:
    """Pad images of 28x28 to 32x32 with zeros, as in the paper.

    It adds 2 pixels on every side, and maps [b, 28 or 32, same, c] to [b, 32, 32, c].

    Raises:
      ArgumentError: for any other size.
    """
    if x.shape[1:3] not in ((28, 28), (32, 32)):
        raise ArgumentError(
            f"LeNet-5 got images of {x.shape[1]}x{x.shape[2]} pixels; expected 28x28 or 32x32"
        )
    margin = (32 - x.shape[1]) // 2
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


class LeNet5(nn.Module):
    """LeNet-5 as it is commonly built, with 61,706 parameters.

    It has two 5x5 convolutions with 2x2 pooling, a third that sees its whole input, and two dense
    layers. Images of 28x28 are padded to the paper's 32x32. The two forms have the same parameters:

    - `relu_max_pool=False`, 1998: scaled tanh and average pooling. It differs from the paper. Every
      C3 map sees all six S2 maps, pooling has no trainable gain, and the last layer is dense
      instead of radial basis functions. The printed form has 60,000 parameters (`LeNet1998`).
    - `relu_max_pool=True`: ReLU and max pooling, as it is taught today.

    Attributes:
      num_classes: number of logits.
      relu_max_pool: ReLU and max pooling in place of scaled tanh and average pooling.
      kernel_init: a name in `initializers.INITS`; None is "he" with ReLU, else "lecun".
      dtype: of activations; parameters and the layer of logits are float32.
      axis_name: the mapped axis that splits the batch, set by the strategies. No layer here looks
        past one example.

    Example:
      >>> model, image = LeNet5(num_classes=10), jnp.zeros((1, 28, 28, 1))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      61706
    """

    num_classes: int
    relu_max_pool: bool = False
    kernel_init: str | None = None
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, 28 or 32, same, c] to float32 logits [b, num_classes].

        With `stages`, return a dict of outputs too.
        """
        x = pad_to_32(x).astype(self.dtype)
        act, pool = (nn.relu, jnp.max) if self.relu_max_pool else (scaled_tanh, jnp.mean)
        init = initializer(self.kernel_init or ("he" if self.relu_max_pool else "lecun"))
        outputs: dict[str, jax.Array] = {}
        for name, filters in (("c1", 6), ("c3", 16), ("c5", 120)):
            conv = nn.Conv(
                filters, (5, 5), padding="VALID", dtype=self.dtype, kernel_init=init, name=name
            )
            x = stage(self, outputs, name, act(conv(x)))
            if name != "c5":
                # [b, 14, 14, 6], then [b, 5, 5, 16]
                x = pool_2x2(x, pool)
        # [b, 120]
        x = x.reshape(len(x), -1)
        dense = nn.Dense(84, dtype=self.dtype, kernel_init=init, name="f6")
        x = stage(self, outputs, "f6", act(dense(x)))
        logits = nn.Dense(self.num_classes, kernel_init=init, name="head")(x.astype(jnp.float32))
        return (logits, outputs) if stages else logits


# The printed form

THREE_MAPS = ("012", "123", "234", "345", "045", "015")
FOUR_MAPS = ("0123", "1234", "2345", "0345", "0145", "0125", "0134", "1245", "0235")
CONNECTIONS = (*THREE_MAPS, *FOUR_MAPS, "012345")
"""Maps of S2 that each map of C3 sees (table I).

There are 16 maps of C3, and 60 connections of 96.
"""
INPUT_MAPS, OUTPUT_MAPS = np.array(
    [(int(digit), output) for output, maps in enumerate(CONNECTIONS) for digit in maps]
).T
"""Input map and output map of each connection, int [60]."""
BITMAPS = """
..###.. ...#... .#####. ####### ....##. ####### ..####. ####### ..###.. .#####.
.#####. ..##... ##...## ....##. ...###. ##..... .##.... .....## .##.##. ##...##
##...## .###... #.....# ...##.. ..#.##. ##..... ##..... .....## ##...## ##...##
##...## #.##... .....## ..##... .##.##. ##..... ##..... ....##. ##...## ##...##
##...## ..##... .....## .####.. ##..##. ######. ##..... ....##. .##.##. ##...##
##...## ..##... ....##. ....##. ##..##. ##...## ######. ...##.. ..###.. .######
##...## ..##... ...##.. .....## ####### .....## ##...## ...##.. .##.##. .....##
##...## ..##... ..##... .....## ....##. .....## ##...## ..##... ##...## .....##
##...## ..##... .##.... .....## ....##. .....## ##...## ..##... ##...## .....##
##...## ..##... ##..... #.....# ....##. #.....# ##...## .##.... ##...## .....#.
.#####. ..##... ##..... ##...## ....##. ##...## .##.##. .##.... .##.##. ....##.
..###.. ######. ####### .#####. ....##. .#####. ..###.. .##.... ..###.. .####..
"""
"""Bitmaps of the ten digits, 0 to 9, of 7x12 pixels each.

They were drawn for this file in the manner of figure 3, and are not the paper's own pixels.
"""


def output_codes(num_classes: int) -> np.ndarray:
    """Return the fixed centers of the output units.

    A center is F6's target for a class. Up to ten classes have the digits' `BITMAPS`, whatever the
    classes are. Any two of these differ in at least 15 of 84 pixels. More classes have random
    signs, always the same ones. ("Chosen at random with equal probabilities for -1 and +1" is the
    paper's other proposal.)

    Returns:
      -1 or 1, float32 [classes, 84].

    Example:
      >>> seven = output_codes(10)[7].reshape(12, 7)
      >>> for row in seven[:3]:
      ...     print("".join(" #"[int(pixel > 0)] for pixel in row))
      #######
           ##
           ##
    """
    if num_classes > 10:
        signs = np.array([-1, 1], np.float32)
        return np.random.default_rng(1998).choice(signs, (num_classes, 84))
    rows = [line.split() for line in BITMAPS.split("\n")[1:-1]]
    is_ink = [
        [pixel == "#" for row in rows for pixel in row[digit]] for digit in range(num_classes)
    ]
    return np.where(is_ink, 1, -1).astype(np.float32)


def fan_in_uniform(fan_in: Sequence[int] | int) -> Any:
    """Return the paper's initializer, uniform between -2.4/F and 2.4/F (appendix A).

    Args:
      fan_in: F, the number of inputs of the unit that a weight leads to, for all units or for each.
    """

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        bound = jnp.broadcast_to(2.4 / jnp.asarray(fan_in, dtype), shape[-1:])
        bound = bound.reshape((1,) * (len(shape) - 1) + (-1,))
        return jax.random.uniform(key, shape, dtype, -1, 1) * bound

    return draw


class Subsampling(nn.Module):
    """Trainable 2x2 subsampling with scaled tanh (layers S2 and S4).

    Every map has a trainable gain and offset, which act on the sum of each 2x2 window.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [b, h, w, c] to [b, h/2, w/2, c]."""
        gain = self.param("gain", fan_in_uniform(4), x.shape[-1:]).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:]).astype(self.dtype)
        return scaled_tanh(pool_2x2(x, jnp.sum) * gain[None, None, None] + bias[None, None, None])


class SparseConv(nn.Module):
    """5x5 convolution whose maps each see some of the input's (layer C3).

    It has a 5x5 plane for every connection of `CONNECTIONS`.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [b, h, w, 6] to [b, h - 4, w - 4, 16].

        It is computed as a dense convolution in which 36 of 96 planes are 0.
        """
        fan_in = 25 * np.bincount(OUTPUT_MAPS)[OUTPUT_MAPS]
        # [h, w, 1, connections]
        planes = self.param("kernel", fan_in_uniform(fan_in.tolist()), (5, 5, 1, len(OUTPUT_MAPS)))
        bias = self.param("bias", nn.initializers.zeros, (len(CONNECTIONS),))
        kernel = jnp.zeros((5, 5, 6, len(CONNECTIONS)))
        kernel = kernel.at[:, :, INPUT_MAPS, OUTPUT_MAPS].set(planes[:, :, 0])
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + bias.astype(self.dtype)[None, None, None]


class LeNet1998(nn.Module):
    """LeNet-5 as printed, with 60,000 trainable parameters, as the paper counts them.

    It has all the parts that later versions leave out: C1 156, S2 12, C3 1,516 (the sparse
    `CONNECTIONS`), S4 32, C5 48,120, F6 10,164. Scaled tanh follows every layer up to F6, the
    subsampling ones too. The output units are radial basis functions. A class's logit is minus the
    squared distance of F6 from its fixed code, so that the greatest logit is the nearest code.

    The cross-entropy of these logits is the paper's equation 9 without its constant e^-j. It is
    the distance from the right code, plus the log of the sum over classes of e^-distance. The
    constant keeps codes that are far already from being pushed further. Equation 8 is the distance
    only. F6's square is a part of every distance and cancels. With fixed codes the output is
    therefore a linear layer whose weights are twice the codes. Gradients are large, and learning
    rates are below those of `LeNet5`.

    Other differences from the paper: offsets start at 0. The network is trained as the config says,
    not by the stochastic diagonal Levenberg-Marquardt method of appendix C. `output_codes` are not
    the paper's pixels.

    Attributes:
      num_classes: number of logits.
      dtype: of activations; parameters and distances are float32.
      axis_name: the mapped axis that splits the batch, set by the strategies. No layer here looks
        past one example.

    Example:
      >>> model, image = LeNet1998(num_classes=10), jnp.zeros((1, 28, 28, 1))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      60000
    """

    num_classes: int
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, 28 or 32, same, c] to float32 logits [b, num_classes].

        With `stages`, return a dict of outputs too.
        """
        x, outputs = pad_to_32(x).astype(self.dtype), {}
        for name in ("c1", "s2", "c3", "s4", "c5", "f6"):
            x = stage(self, outputs, name, self._layer(name, x))
        differences = x.astype(jnp.float32)[:, None] - output_codes(self.num_classes)[None]
        # [b, num_classes]
        distances = jnp.square(differences).sum(-1)
        return (-distances, outputs) if stages else -distances

    def _layer(self, name, x):
        if name[0] == "s":
            return Subsampling(self.dtype, name=name)(x)
        if name == "c3":
            return scaled_tanh(SparseConv(self.dtype, name=name)(x))
        if name == "f6":
            # [b, 120]
            x = x.reshape(len(x), -1)
            init = fan_in_uniform(x.shape[-1])
            return scaled_tanh(nn.Dense(84, dtype=self.dtype, kernel_init=init, name=name)(x))
        filters, init = {"c1": 6, "c5": 120}[name], fan_in_uniform(25 * x.shape[-1])
        conv = nn.Conv(
            filters, (5, 5), padding="VALID", dtype=self.dtype, kernel_init=init, name=name
        )
        return scaled_tanh(conv(x))
