"""LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II.B)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import pool_2x2, stage
from jaxcnn.recipe import ArgumentError


def scaled_tanh(x: jax.Array) -> jax.Array:
    """1.7159 tanh(2 x / 3), elementwise: f(1) = 1 and f(-1) = -1 (appendix A of the paper)."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


def padded(x: jax.Array) -> jax.Array:
    """Images of 28x28 with 2 pixels of zeros around, as the paper has them; [b, 28 or 32, same, c] -> [b, 32, 32, c].

    Raises:
      ArgumentError: for any other size.
    """
    if x.shape[1:3] not in ((28, 28), (32, 32)):
        raise ArgumentError(f"LeNet-5 got images of {x.shape[1]}x{x.shape[2]} pixels; expected 28x28 or 32x32")
    margin = (32 - x.shape[1]) // 2
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


class LeNet5(nn.Module):
    """Two 5x5 convolutions with 2x2 pooling, a third that sees its whole input, two dense layers: 61,706 parameters.

    Images of 28x28 are padded to the paper's 32x32. The two forms have the same parameters:

    - `modern=False`, 1998: scaled tanh and average pooling. From the paper as printed it differs in that every
      C3 map sees all six S2 maps, pooling has no trainable gain, and the last layer is dense instead of
      radial basis functions (the printed form has 60,000 parameters: `LeNet1998`).
    - `modern=True`: ReLU and max pooling, as it is taught today.

    Example:
      >>> variables = LeNet5(classes=10).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
      61706
    """

    classes: int
    modern: bool = False
    kernel_init: str | None = None
    dtype: Any = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """float32 [b, 28 or 32, same, c] -> float32 logits [b, classes]; with `stages`, also a dict of outputs."""
        x = padded(x).astype(self.dtype)
        act, pool = (nn.relu, jnp.max) if self.modern else (scaled_tanh, jnp.mean)
        init = initializer(self.kernel_init or ("he" if self.modern else "lecun"))
        seen: dict[str, jax.Array] = {}
        for name, filters in (("c1", 6), ("c3", 16), ("c5", 120)):
            x = act(nn.Conv(filters, (5, 5), padding="VALID", dtype=self.dtype, kernel_init=init, name=name)(x))
            x = stage(self, seen, name, x)
            if name != "c5":
                x = pool_2x2(x, pool)  # [b, 14, 14, 6], then [b, 5, 5, 16]
        x = x.reshape(len(x), -1)  # [b, 120]
        x = stage(self, seen, "f6", act(nn.Dense(84, dtype=self.dtype, kernel_init=init, name="f6")(x)))
        logits = nn.Dense(self.classes, kernel_init=init, name="head")(x.astype(jnp.float32))
        return (logits, seen) if stages else logits
