"""Analytic model of a training step on several devices.

It has bytes, operations and seconds. Shapes are enough; nothing is run. With L BN layers of c
channels, P parameters and C the sum of all c, one step all-reduces these float32 numbers:

                     BN over the batch          BN within a device
                     jit          pmap          jit          pmap
    gradient         P            P             P            P
    BN, forward      2 C          2 C           -            -         E[x], E[x^2] by channel
    BN, backward     -            2 C           -            -         derivatives by both
    BN, averages     -            2 C           2 C          2 C       moving mean and variance
    metrics          3            4             3            4         loss (twice), errors, pmap: n
    collectives      2 L + 2      2 L + 2       2            2

Under jit XLA sums over the examples of the whole batch. The derivatives by mean and variance are
the gradients of BN's bias and scale except for factors, so they are sent once. Every device has the
same averages already. Each BN waits for an all-reduce of its own, forward and backward. All others
are merged. The gradient is sent in two, one of which is the first layer's. The gradient of the head
is sent with that of the last BN.

The seconds are those of machines that were not available. Every number about them is an assumption
with its source. A step is its computation, then its all-reduces one after another, and nothing
overlaps. For BN that follows from the order of the data. For the gradient it holds in the programs
compiled here, which send most of it at the end of the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

StrategyKind = Literal["jit", "pmap"]
NormScope = Literal["batch", "device"]
"""Scope of BN's averages.

It is the whole batch, or each device's share of it (`bn_group`).
"""
CIFAR_SHAPE = (32, 32, 3)
NUM_TRAIN_IMAGES = 50_000
"""Training images of CIFAR-10."""
BATCH = 128


class CommunicationVolume(NamedTuple):
    """Tensors that one step all-reduces."""

    gradient: tuple[int, ...]
    """Numbers (float32) in each tensor."""
    bn: tuple[int, ...]
    """Of BN, forward, backward and for its moving averages."""
    metrics: tuple[int, ...]
    """Of the sums that the rows are computed from."""
    collectives: int
    """All-reduces, each of several tensors. Each waits for its result."""

    @property
    def tensors(self) -> tuple[int, ...]:
        """Numbers in each of all tensors."""
        return self.gradient + self.bn + self.metrics

    @property
    def bytes(self) -> int:
        """Bytes of all tensors, 4 for every number."""
        return 4 * sum(self.tensors)


def communication_volume(
    model: Any,
    shape: tuple[int, int, int] = CIFAR_SHAPE,
    kind: StrategyKind = "jit",
    norm: NormScope = "batch",
) -> CommunicationVolume:
    """Return what a step sends between two or more devices.

    The table at the top of this module has the formulas.

    Args:
      model: a `CifarResNet`, or a network whose only state is BN's.
      shape: height, width and channels of an image.
      kind: the strategy.
      norm: the scope of BN's averages.

    Example:
      >>> import jaxcnn as jc
      >>> volume = communication_volume(jc.create_model("resnet20", 10))
      >>> sum(volume.gradient), sum(volume.bn), volume.collectives
      (269722, 1376, 40)
    """
    variables = variable_shapes(model, shape)
    gradient = tuple(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    stats = jax.tree.leaves(variables["batch_stats"])
    # Every second leaf, since each BN has a mean and a variance of the same shape.
    channels = [c for leaf in stats for c in leaf.shape][::2]
    numbers_per_channel = {("batch", "jit"): 2, ("batch", "pmap"): 6}.get((norm, kind), 2)
    collectives = 2 * len(channels) + 2 if norm == "batch" else 2
    metrics = (1,) * (3 if kind == "jit" else 4)
    return CommunicationVolume(
        gradient, tuple(channels * numbers_per_channel), metrics, collectives
    )


def variable_shapes(model: Any, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the model's variables as shapes and dtypes."""
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return dict(jax.eval_shape(lambda x: model.lazy_init(jax.random.key(0), x, train=False), x))


def ring_bytes(size: int, devices: int) -> float:
    """Return the bytes that each device sends in a ring's all-reduce.

    A device sends N - 1 parts of size/N to sum, and as many to share. No algorithm can send fewer
    (Patarasuk and Yuan 2009, J. Parallel Distrib. Comput. 69, 117-124).

    Args:
      size: bytes that are all-reduced.
      devices: N.

    Example:
      >>> ring_bytes(1000, 1), ring_bytes(1000, 2), ring_bytes(1000, 1000)
      (0.0, 1000.0, 1998.0)
    """
    return 2 * (devices - 1) / devices * size


def steps_per_epoch(batch_size: int) -> int:
    """Return the steps of an epoch of CIFAR-10.

    Example:
      >>> steps_per_epoch(128)
      391
    """
    return math.ceil(NUM_TRAIN_IMAGES / batch_size)


def multiply_adds(model: Any, shape: tuple[int, int, int] = CIFAR_SHAPE) -> int:
    """Return the multiply-adds of one image in the forward pass.

    They are those of convolutions and dense layers: every product with a parameter, padding
    included.

    Example:
      >>> import jaxcnn as jc
      >>> multiply_adds(jc.create_model("resnet20", 10))
      40551040
    """
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    traced = jax.make_jaxpr(lambda v, x: model.apply(v, x))(variable_shapes(model, shape), x)
    return sum(_equation_multiply_adds(equation) for equation in _equations(traced.jaxpr))


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            # The program of a jitted function.
            if hasattr(parameter, "jaxpr"):
                yield from _equations(parameter.jaxpr)


def _equation_multiply_adds(equation: Any) -> int:
    name, (out,) = equation.primitive.name, equation.outvars[:1]
    if name == "conv_general_dilated":
        # [height, width, input channels, filters]
        kernel_shape = equation.invars[1].aval.shape
        return math.prod(out.aval.shape) * math.prod(kernel_shape[:-1])
    if name == "dot_general":
        ((contracted, _), _) = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return math.prod(out.aval.shape) * math.prod(shape[i] for i in contracted)
    return 0


def training_flop(model: Any, shape: tuple[int, int, int] = CIFAR_SHAPE) -> int:
    """Return the floating-point operations of one image in training.

    Each multiply-add is a product and a sum. There are one forward pass and two backward passes, by
    the inputs and by the parameters.
    """
    return 6 * multiply_adds(model, shape)


GPU_FLOP_RATE = 790e12 * 0.07
"""FLOP/s of one GPU.

An H200's bf16 matrix products reach 790e12 (measured elsewhere; NVIDIA's data sheet: 989e12). Of
that 7% is assumed. A ResNet on 32x32 images has some 45 FLOP for each byte of activations, which at
4.3 TB/s is 23% of the rate. With some 200 kernels a step for ResNet-20, about a third of that
remains.

The same rate is used for any number of images on a device. Where they are few, kernels are too
small for it. Computation then takes longer than predicted, and communication has a smaller share.
"""


class Link(NamedTuple):
    """Link between the devices."""

    name: str
    bandwidth: float
    """Bytes a second out of each device."""
    base: float
    """Seconds of every all-reduce, independent of the number of devices."""
    hop: float
    """Seconds of each message that another waits for."""
    source: str


_NCCL = (
    "base and hop: NCCL's own cost model, src/graph/tuning.cc at 01afd20, tree with protocol LL, "
)
LINKS = (
    Link(
        "NVLink",
        450e9,
        4.4e-6,
        0.52e-6,
        "450 GB/s one way: NVIDIA's data sheet of the H200; " + _NCCL + "NVLINK",
    ),
    Link("100 Gb/s RDMA", 12.5e9, 4.4e-6, 5.0e-6, "line rate; " + _NCCL + "NET"),
    Link(
        "10 Gb/s TCP",
        1.25e9,
        4.4e-6,
        30e-6,
        "line rate; hop: assumed, two passes of an operating system at 15 us each",
    ),
)


def all_reduce_latency(link: Link, devices: int) -> float:
    """Return the seconds of an all-reduce of almost no data.

    It goes up and down a tree, which is 2 log2 N messages one after another.
    """
    return link.base + 2 * math.ceil(math.log2(devices)) * link.hop if devices > 1 else 0.0


class StepTime(NamedTuple):
    """Parts of a step, in seconds."""

    compute: float
    latency: float
    transfer: float

    @property
    def communication_share(self) -> float:
        """Share of the step that communication takes, 0 to 1."""
        return (self.latency + self.transfer) / sum(self)


def step_time(
    link: Link,
    devices: int,
    size: int,
    collectives: int,
    flops: float,
    rate: float = GPU_FLOP_RATE,
) -> StepTime:
    """Return the parts of one step.

    The latency a 2 log2 N and the transfer 2 (N - 1) / N b are the cost of Rabenseifner's
    all-reduce.

    Args:
      link: between the devices.
      devices: N.
      size: b, the bytes that are all-reduced.
      collectives: number of all-reduces.
      flops: floating-point operations of each device.
      rate: FLOP/s of each device.

    Example:
      >>> step_time(Link("", 1e9, 0.0, 1e-6, ""), 4, size=1000, collectives=2, flops=1e3, rate=1e9)
      StepTime(compute=1e-06, latency=8e-06, transfer=1.5e-06)

    References:
      Thakur, Rabenseifner and Gropp 2005, Int. J. High Perform. Comput. Appl. 19, 49-66, section 4.
    """
    latency = collectives * all_reduce_latency(link, devices)
    return StepTime(flops / rate, latency, ring_bytes(size, devices) / link.bandwidth)
