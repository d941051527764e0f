"""On paper: what a step of training sends between devices, and what it computes. Shapes are enough; nothing is run.

With L BN layers of c channels, P parameters and C the sum of all c, one step all-reduces these float32 numbers:

                     BN over the batch          BN within a device
                     jit          pmap          jit          pmap
    gradient         P            P             P            P
    BN, forward      2 C          2 C           -            -         E[x] and E[x^2] of every channel
    BN, backward     -            2 C           -            -         the loss's derivative by them
    BN, averages     -            2 C           2 C          2 C       the moving mean and variance
    sums             3            4             3            4         loss (twice), wrong, and under pmap n
    collectives      2 L + 2      2 L + 2       2            2

Under jit XLA sums over the whole batch's examples: the derivatives by mean and variance are the gradients of BN's bias and
scale but for factors, so they are sent once, and every device has the same averages already. Each BN waits for an all-reduce
of its own, forward and backward; all else is merged: the gradient goes in two, of which one is the first layer's, and the
head's goes with the last BN's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

Kind = Literal["jit", "pmap"]
Norm = Literal["batch", "device"]
"""What BN averages over: the whole batch, or each device's share of it (`bn_group`)."""
CIFAR = (32, 32, 3)
IMAGES = 50_000
"""Training images of CIFAR-10."""
BATCH = 128


class Traffic(NamedTuple):
    """What one step all-reduces."""

    gradient: tuple[int, ...]
    """Numbers (float32) in each tensor."""
    bn: tuple[int, ...]
    """Of BN, forward, backward and for its moving averages."""
    sums: tuple[int, ...]
    """Of what is counted for the rows."""
    collectives: int
    """All-reduces, each of several tensors: what waits for the wire."""

    @property
    def tensors(self) -> tuple[int, ...]:
        """All of them."""
        return self.gradient + self.bn + self.sums

    @property
    def bytes(self) -> int:
        """4 for every number."""
        return 4 * sum(self.tensors)


def traffic(model: Any, image: tuple[int, int, int] = CIFAR, kind: Kind = "jit", norm: Norm = "batch") -> Traffic:
    """What a step of `model` sends between two or more devices, by the table above.

    Args:
      model: a `CifarResNet`, or a network whose only state is BN's.
      image: height, width and channels.
      kind: the strategy.
      norm: what BN averages over.

    Example:
      >>> import jaxcnn as jc
      >>> sent = traffic(jc.create_model("resnet20", 10))
      >>> sum(sent.gradient), sum(sent.bn), sent.collectives
      (269722, 1376, 40)
    """
    variables = shapes(model, image)
    gradient = tuple(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    channels = [c for leaf in jax.tree.leaves(variables["batch_stats"]) for c in leaf.shape][::2]  # mean and var
    each = {("batch", "jit"): 2, ("batch", "pmap"): 6}.get((norm, kind), 2)
    collectives = 2 * len(channels) + 2 if norm == "batch" else 2
    return Traffic(gradient, tuple(channels * each), (1,) * (3 if kind == "jit" else 4), collectives)


def shapes(model: Any, image: tuple[int, int, int]) -> dict[str, Any]:
    """The model's variables as shapes and dtypes."""
    x = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    return dict(jax.eval_shape(lambda x: model.lazy_init(jax.random.key(0), x, train=False), x))


def ring(size: int, devices: int) -> float:
    """Bytes that each device sends in a ring's all-reduce of `size` bytes: N - 1 parts of size/N to sum, and again to share.

    It is the least that any algorithm can do (Patarasuk and Yuan 2009, J. Parallel Distrib. Comput. 69, 117-124).

    Example:
      >>> ring(1000, 1), ring(1000, 2), ring(1000, 1000)
      (0.0, 1000.0, 1998.0)
    """
    return 2 * (devices - 1) / devices * size


def steps(batch: int) -> int:
    """Of an epoch of CIFAR-10.

    Example:
      >>> steps(128)
      391
    """
    return math.ceil(IMAGES / batch)


def multiply_adds(model: Any, image: tuple[int, int, int] = CIFAR) -> int:
    """Of one image, forward, in convolutions and dense layers: every product with a parameter, padding included.

    Example:
      >>> import jaxcnn as jc
      >>> multiply_adds(jc.create_model("resnet20", 10))
      40551040
    """
    x = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    traced = jax.make_jaxpr(lambda v, x: model.apply(v, x))(shapes(model, image), x)
    return sum(_products(equation) for equation in _equations(traced.jaxpr))


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in equation.params.values():
            if hasattr(inner, "jaxpr"):  # a jitted function's
                yield from _equations(inner.jaxpr)


def _products(equation: Any) -> int:
    name, (out,) = equation.primitive.name, equation.outvars[:1]
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape  # height, width, channels in, filters
        return math.prod(out.aval.shape) * math.prod(kernel[:-1])
    if name == "dot_general":
        ((contracted, _), _) = equation.params["dimension_numbers"]
        return math.prod(out.aval.shape) * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    return 0


def flops(model: Any, image: tuple[int, int, int] = CIFAR) -> int:
    """Floating-point operations of one image in training: a product and a sum for each multiply-add, forward and two times
    backward (by the inputs and by the parameters)."""
    return 6 * multiply_adds(model, image)
