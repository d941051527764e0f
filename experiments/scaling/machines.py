"""Seconds of a step on machines that are not here: every number of this file is an assumption, and says where it is from.

A step is its computing, then its all-reduces one after another; nothing overlaps. For BN that is so by the order of the data;
for the gradient it is so in the compiled programs here, which send most of it at the end of the step.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from experiments.scaling.arithmetic import ring

RATE = 790e12 * 0.07
"""FLOP/s of one GPU: an H200's bf16 matrix products reach 790e12 (measured elsewhere; NVIDIA's data sheet: 989e12), and of that
7% is assumed. A ResNet on 32x32 images does some 45 FLOP for each byte of activations, which at 4.3 TB/s is 23% of the rate;
with some 200 kernels a step for ResNet-20, about a third of that is left. It is taken for any number of images on a device,
though kernels are too small for it where they are few: computing then takes longer than said, and the wire a smaller share."""


class Link(NamedTuple):
    """What joins the devices."""

    name: str
    bandwidth: float
    """Bytes a second out of each device."""
    base: float
    """Seconds of every all-reduce, however few the devices."""
    hop: float
    """Seconds of each message that another waits for."""
    source: str


_NCCL = "base and hop: NCCL's own cost model, src/graph/tuning.cc at 01afd20, tree with protocol LL, "
LINKS = (
    Link("NVLink", 450e9, 4.4e-6, 0.52e-6, "450 GB/s one way: NVIDIA's data sheet of the H200; " + _NCCL + "NVLINK"),
    Link("100 Gb/s RDMA", 12.5e9, 4.4e-6, 5.0e-6, "line rate; " + _NCCL + "NET"),
    Link(
        "10 Gb/s TCP", 1.25e9, 4.4e-6, 30e-6, "line rate; hop: assumed, two passes of an operating system at 15 us each"
    ),
)


def latency(link: Link, devices: int) -> float:
    """Seconds of an all-reduce of almost nothing: up and down a tree, 2 log2 N messages one after another."""
    return link.base + 2 * math.ceil(math.log2(devices)) * link.hop if devices > 1 else 0.0


class Step(NamedTuple):
    """The parts of a step, in seconds."""

    compute: float
    latency: float
    transfer: float

    @property
    def share(self) -> float:
        """Of the step, on the wire: 0 to 1."""
        return (self.latency + self.transfer) / sum(self)


def step(link: Link, devices: int, size: int, collectives: int, flops: float, rate: float = RATE) -> Step:
    """One step's parts: latency a 2 log2 N and transfer 2 (N - 1) / N b, the cost of Rabenseifner's all-reduce.

    Args:
      link: between the devices.
      devices: N.
      size: bytes that are all-reduced.
      collectives: how many all-reduces they come in.
      flops: of each device.
      rate: FLOP/s of each device.

    Example:
      >>> step(Link("", 1e9, 0.0, 1e-6, ""), 4, size=1000, collectives=2, flops=1e3, rate=1e9)
      Step(compute=1e-06, latency=8e-06, transfer=1.5e-06)

    References:
      Thakur, Rabenseifner and Gropp 2005, Int. J. High Perform. Comput. Appl. 19, 49-66, section 4.
    """
    return Step(flops / rate, collectives * latency(link, devices), ring(size, devices) / link.bandwidth)
