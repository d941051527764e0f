"""LeNet-5 as printed: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition", II.B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.models.layers import pool_2x2, stage
from jaxcnn.models.lenet import padded, scaled_tanh

THREE = ("012", "123", "234", "345", "045", "015")
FOUR = ("0123", "1234", "2345", "0345", "0145", "0125", "0134", "1245", "0235")
TABLE = (*THREE, *FOUR, "012345")
"""Table I: the maps of S2 that each of the 16 maps of C3 sees: 60 connections of 96."""
INPUTS, OUTPUTS = np.array([(int(seen), made) for made, maps in enumerate(TABLE) for seen in maps]).T
"""Of each connection the map it comes from and the map it goes to, int [60]."""
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
"""The ten digits, 7x12 pixels each, 0 to 9: drawn for this file in the manner of figure 3, and not the paper's own pixels."""


def codes(classes: int) -> np.ndarray:
    """The fixed centres of the output units, -1 or 1, float32 [classes, 84]: what F6 should say for each class.

    Up to ten classes have the digits' `BITMAPS` (any two differ in at least 15 of 84 pixels), whatever the classes are.
    More have random signs, always the same ones ("chosen at random with equal probabilities for -1 and +1" is the paper's
    other proposal).

    Example:
      >>> print("\\n".join("".join(" #"[int(pixel > 0)] for pixel in row) for row in codes(10)[7].reshape(12, 7)[:3]))
      #######
           ##
           ##
    """
    if classes > 10:
        return np.random.default_rng(1998).choice(np.array([-1, 1], np.float32), (classes, 84))
    rows = [line.split() for line in BITMAPS.split("\n")[1:-1]]
    drawn = [[pixel == "#" for row in rows for pixel in row[digit]] for digit in range(classes)]
    return np.where(drawn, 1, -1).astype(np.float32)


def spread(inputs: Sequence[int] | int) -> Any:
    """The paper's initialiser (appendix A): uniform between -2.4/F and 2.4/F, F the inputs of the unit a weight leads to."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        bound = jnp.broadcast_to(2.4 / jnp.asarray(inputs, dtype), shape[-1:]).reshape((1,) * (len(shape) - 1) + (-1,))
        return jax.random.uniform(key, shape, dtype, -1, 1) * bound

    return draw


class Subsampling(nn.Module):
    """A trainable gain and offset for every map, on the sum of each 2x2 square, then scaled tanh (layers S2 and S4)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, h/2, w/2, c]."""
        gain = self.param("gain", spread(4), x.shape[-1:]).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:]).astype(self.dtype)
        return scaled_tanh(pool_2x2(x, jnp.sum) * gain[None, None, None] + bias[None, None, None])


class Sparse(nn.Module):
    """The 5x5 convolution whose maps see some of the input's each (layer C3): a 5x5 plane for every connection of `TABLE`."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, 6] -> [b, h - 4, w - 4, 16]; computed as a dense convolution in which 36 of 96 planes are 0."""
        fan_in = 25 * np.bincount(OUTPUTS)[OUTPUTS]
        planes = self.param("kernel", spread(fan_in.tolist()), (5, 5, 1, len(OUTPUTS)))  # [h, w, 1, connections]
        bias = self.param("bias", nn.initializers.zeros, (len(TABLE),))
        kernel = jnp.zeros((5, 5, 6, len(TABLE))).at[:, :, INPUTS, OUTPUTS].set(planes[:, :, 0])
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + bias.astype(self.dtype)[None, None, None]


class LeNet1998(nn.Module):
    """LeNet-5 with all that later versions leave out: 60,000 trainable parameters, as the paper counts them.

    C1 156, S2 12, C3 1,516 (the sparse `TABLE`), S4 32, C5 48,120, F6 10,164. Scaled tanh follows every layer up to F6, the
    subsampling ones too. The output units are radial basis functions: a class's logit is minus the squared distance of F6 from
    its fixed code, so that the greatest logit is the nearest code.

    The cross-entropy of these logits is the paper's equation 9 without its constant e^-j: the distance from the right code,
    plus the log of the sum over classes of e^-distance. (The constant keeps codes that are far already from being pushed
    further; equation 8 is the distance alone.) F6's square is a part of every distance and falls out, so that with fixed codes
    the output is a linear layer whose weights are twice the codes. Gradients are large: rates are below those of `LeNet5`.

    Other differences from the paper: offsets start at 0; the network is trained as the recipe says, not by the stochastic
    diagonal Levenberg-Marquardt method of appendix C; `codes` are not the paper's pixels.

    Attributes:
      classes: the number of logits.
      dtype: of activations; parameters and distances are float32.
      axis: the mapped axis that splits the batch, set by the strategies; no layer here looks past one example.

    Example:
      >>> variables = LeNet1998(classes=10).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      60000
    """

    classes: int
    dtype: Any = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """float32 [b, 28 or 32, same, c] -> float32 logits [b, classes]; with `stages`, also a dict of outputs."""
        x, seen = padded(x).astype(self.dtype), {}
        for name in ("c1", "s2", "c3", "s4", "c5", "f6"):
            x = stage(self, seen, name, self._layer(name, x))
        distances = jnp.square(x.astype(jnp.float32)[:, None] - codes(self.classes)[None]).sum(-1)  # [b, classes]
        return (-distances, seen) if stages else -distances

    def _layer(self, name, x):
        if name[0] == "s":
            return Subsampling(self.dtype, name=name)(x)
        if name == "c3":
            return scaled_tanh(Sparse(self.dtype, name=name)(x))
        if name == "f6":
            x = x.reshape(len(x), -1)  # [b, 120]
            return scaled_tanh(nn.Dense(84, dtype=self.dtype, kernel_init=spread(x.shape[-1]), name=name)(x))
        filters, init = {"c1": 6, "c5": 120}[name], spread(25 * x.shape[-1])
        return scaled_tanh(nn.Conv(filters, (5, 5), padding="VALID", dtype=self.dtype, kernel_init=init, name=name)(x))
