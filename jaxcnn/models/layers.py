"""Layers that the networks share: convolutions, 2x2 pooling, rematerialization, stages, dropout.

`Dropout` has an `axis_name`, the name of the mapped axis where `jax.pmap` splits the batch. Under
`jit` and sharding it is None.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from jaxcnn.models.initializers import initializer
from jaxcnn.models.pooling import max_pool_2x2, windows_2x2


def conv(
    filters: int,
    size: int,
    stride: int = 1,
    *,
    kernel_init: str,
    dtype: Any,
    bias: bool = False,
    padding: int | None = None,
    groups: int = 1,
    name: str | None = None,
) -> nn.Conv:
    """Return a square convolution with symmetric zero padding.

    It maps [b, h, w, c] to [b, (h + 2 p - size) // stride + 1, (w + 2 p - size) // stride + 1,
    filters], with p zeros on every side. At stride 2 the windows of odd size center on pixels
    0, 2, 4, as `x[:, ::2, ::2]` picks them, and as in PyTorch. Flax's "SAME" would center 3x3
    windows on 1, 3, 5.

    Args:
      filters: number of output channels.
      size: height and width of the kernel.
      stride: of the windows, in both axes.
      kernel_init: a name in `initializers.INITS`.
      dtype: of the computation.
      bias: add a bias to each output channel.
      padding: p; None is (size - 1) // 2.
      groups: the filters of each group see that group's c / groups channels only.
      name: of the submodule.
    """
    border = (size - 1) // 2 if padding is None else padding
    return nn.Conv(
        filters,
        (size, size),
        stride,
        ((border, border), (border, border)),
        feature_group_count=groups,
        use_bias=bias,
        dtype=dtype,
        kernel_init=initializer(kernel_init),
        name=name,
    )


def conv3x3(filters: int, stride: int = 1, **options: Any) -> nn.Conv:
    """Return a `conv` of size 3.

    One pixel of zeros on every side maps [b, h, w, c] to [b, ceil(h/stride), ceil(w/stride),
    filters].
    """
    return conv(filters, 3, stride, **options)


def pool_2x2(x: jax.Array, reduce: Any) -> jax.Array:
    """Pool the disjoint 2x2 windows of images to [b, h // 2, w // 2, c].

    Args:
      x: [b, h, w, c]; an odd last row or column is dropped.
      reduce: `jnp.max`, `jnp.mean` or another reduction that takes `axis`.
    """
    return max_pool_2x2(x) if reduce is jnp.max else reduce(windows_2x2(x), axis=(2, 4))


def maybe_remat(block: Any, remat: bool) -> Any:
    """Return `block`, rematerialized in the gradient if `remat`.

    With `remat`, training keeps only the inputs of blocks, and the gradient computes their inside
    again (Chen et al. 2016, arXiv:1604.06174, section 4). The numbers are the same up to
    rounding. The work grows by at most a third, one more forward pass.

    Args:
      block: a module class whose instances are called with an input and `train`.
      remat: whether to rematerialize.
    """
    if not remat:
        return block
    remat_block = nn.remat(nn.jit(block, static_argnums=(2,)), static_argnums=(2,))

    def make(*args: Any, **fields: Any) -> Any:
        def call(x: jax.Array, train: bool) -> jax.Array:
            # On a CPU, XLA would otherwise find the repeated computation and keep its result.
            with set_xla_metadata(inlineable="false"):
                return module(x, train)

        module = remat_block(*args, **fields)
        return call

    return make


NUDGES = "nudges"
"""Collection of arrays that `apply` adds to stages.

No network makes or keeps one.
"""


def stage(module: nn.Module, outputs: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    """Record `x` as the stage called `name`, and return it.

    Where the caller passes the collection `{"nudges": {name: array}}`, the array is added first.
    The gradient with respect to a stage (Grad-CAM's, for example) is the gradient with respect to
    a nudge of zeros.

    Args:
      module: the network that is being applied.
      outputs: the dict that receives the stage's output.
      name: of the stage.
      x: the output of the stage.

    Example:
      >>> class Twice(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return 2 * stage(self, {}, "first", x)
      >>> Twice().apply({"nudges": {"first": jnp.float32(0.5)}}, jnp.float32(1)).item()
      3.0
    """
    if module.has_variable(NUDGES, name):
        x = x + module.get_variable(NUDGES, name)
    outputs[name] = x
    return x


class Dropout(nn.Module):
    """Dropout whose mask depends on an example's place in the batch.

    The mask (Srivastava et al. 2014) does not depend on the example's device, so that no layout
    of devices changes it. It needs a "dropout" stream in `rngs` when `train` is True.

    Attributes:
      rate: the share of values that are set to 0.
      axis_name: the mapped axis that splits the batch, if any.
    """

    rate: float = 0.5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Drop values of [b, ...], and divide the others by `1 - rate`."""
        if not train or self.rate == 0:
            return x
        first = jax.lax.axis_index(self.axis_name) * len(x) if self.axis_name else 0
        key = self.make_rng("dropout")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(len(x)))
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))
