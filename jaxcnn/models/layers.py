"""What flax.linen lacks for these studies: BatchNorm over a stated group of examples, and Dropout that no layout changes.

Both take `axis`, the name of the mapped axis when the batch is split by `jax.pmap`; under `jit` and sharding it is None.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from jaxcnn.models.batchnorm import Shared, standardised
from jaxcnn.models.initializers import initializer
from jaxcnn.models.pooling import max_pool_2x2, windows_2x2
from jaxcnn.recipe import ArgumentError


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
    """A square convolution, [b, h, w, c] -> [b, (h + 2 p - size) // stride + 1, (w + 2 p - size) // stride + 1, filters].

    As many zeros p on every side, `padding` or else (size - 1) / 2: at stride 2 the windows of odd size centre on pixels
    0, 2, 4, as `x[:, ::2, ::2]` picks them, and as PyTorch has it. Flax's "SAME" would centre 3x3 ones on 1, 3, 5.
    With `groups`, filters i of each group see that group's c / groups channels alone.
    """
    around = (size - 1) // 2 if padding is None else padding
    return nn.Conv(
        filters,
        (size, size),
        stride,
        ((around, around), (around, around)),
        feature_group_count=groups,
        use_bias=bias,
        dtype=dtype,
        kernel_init=initializer(kernel_init),
        name=name,
    )


def conv3x3(filters: int, stride: int = 1, **options: Any) -> nn.Conv:
    """`conv` of size 3 with one pixel of zeros around, [b, h, w, c] -> [b, ceil(h/stride), ceil(w/stride), filters]."""
    return conv(filters, 3, stride, **options)


def pool_2x2(x: jax.Array, reduce: Any) -> jax.Array:
    """Disjoint 2x2 pooling, [b, h, w, c] -> [b, h // 2, w // 2, c], by `jnp.max` or `jnp.mean`; an odd last line is dropped."""
    return max_pool_2x2(x) if reduce is jnp.max else reduce(windows_2x2(x), axis=(2, 4))


def maybe_remat(block: Any, remat: bool) -> Any:
    """The class `block`, called with an input and `train`; with `remat`, its gradient computes what is inside it once more.

    Training then keeps the inputs of blocks alone (Chen et al. 2016, arXiv:1604.06174, section 4), the same numbers up to
    rounding for at most a third more work, one more forward pass.
    """
    if not remat:
        return block
    again = nn.remat(nn.jit(block, static_argnums=(2,)), static_argnums=(2,))

    def make(*args: Any, **fields: Any) -> Any:
        def call(x: jax.Array, train: bool) -> jax.Array:
            with set_xla_metadata(inlineable="false"):  # on a CPU, XLA would find what is computed twice, and keep it
                return module(x, train)

        module = again(*args, **fields)
        return call

    return make


NUDGES = "nudges"
"""The collection in which `apply` takes what to add to stages; no network makes or keeps one."""


def stage(module: nn.Module, seen: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    """`x`, noted in `seen` as the stage called `name`; where the caller gives `{"nudges": {name: array}}`, that is added.

    A gradient with respect to a stage (Grad-CAM's, say) is the gradient with respect to a nudge of zeros.

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
    seen[name] = x
    return x


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167) over groups of consecutive examples.

    Attributes:
      group: examples that share one mean and variance; 0 is the whole batch, over all devices. He et al. 2015
        train a batch of 128 on two GPUs, which is `group=64`.
      axis: the mapped axis that splits the batch, if any. The result is that of one device, whatever the split.
      momentum: of the moving averages: `new = momentum * old + (1 - momentum) * batch` (PyTorch's is 1 - momentum).
      epsilon: added to the variance.
      dtype: of the result; moments are float32 always, and the variance is the biased one.
    """

    group: int = 0
    axis: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, ..., c] -> the same shape, in `dtype`."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        moving_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        moving_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if not train:
            gain = jax.lax.rsqrt(moving_var.value + self.epsilon) * scale
            ones = (1,) * (x.ndim - 1)
            y = (x.astype(jnp.float32) - moving_mean.value.reshape(*ones, -1)) * gain.reshape(*ones, -1)
            return (y + bias.reshape(*ones, -1)).astype(self.dtype)
        groups, shared = self._layout(len(x))
        done: Any = standardised(x.reshape(groups, -1, *x.shape[1:]), scale, bias, self.epsilon, shared)
        y, mean, var = done
        if not self.is_initializing():
            self._move(moving_mean, mean)
            self._move(moving_var, var)
        return y.reshape(x.shape).astype(self.dtype)

    def _layout(self, local: int) -> tuple[int, Shared | None]:
        """How many groups lie on this device, and which devices share one (None: no exchange)."""
        devices = jax.lax.axis_size(self.axis) if self.axis else 1
        group = self.group or local * devices
        if local * devices % group or max(group, local) % min(group, local):
            raise ArgumentError(
                f"bn_group is {group}, which does not divide the batch of {local * devices} on {devices} device(s) evenly; "
                "write a divisor of the batch that divides, or is a multiple of, each device's share"
            )
        if group <= local:
            return local // group, None
        span = group // local
        return 1, (str(self.axis), tuple(tuple(range(i, i + span)) for i in range(0, devices, span)))

    def _move(self, moving, groups):
        batch = groups.mean(0)
        if self.axis:
            batch = jax.lax.pmean(batch, self.axis)
        moving.value = self.momentum * moving.value + (1 - self.momentum) * batch


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose mask belongs to the example's place in the batch, not to its device.

    Needs a "dropout" stream in `rngs` when `train` is True.
    """

    rate: float = 0.5
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, ...] -> the same shape; kept values are divided by `1 - rate`."""
        if not train or self.rate == 0:
            return x
        first = jax.lax.axis_index(self.axis) * len(x) if self.axis else 0
        key = self.make_rng("dropout")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(len(x)))
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))
