"""Projections of the analytic model to ResNets on many devices.

By default they have 20 to 152 layers and 1 to 1,024 devices. The rows of the tables and the figures
are computed here. Nothing is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jaxcnn as jc
from experiments.scaling.analytic import (
    BATCH,
    GPU_FLOP_RATE,
    LINKS,
    CommunicationVolume,
    Link,
    NormScope,
    StepTime,
    communication_volume,
    multiply_adds,
    ring_bytes,
    step_time,
    steps_per_epoch,
    training_flop,
)
from jaxcnn import plots

NORM_SCOPES: tuple[NormScope, ...] = ("batch", "device")
MAX_SHARE = 0.1
"""Share of a step below which communication is considered cheap."""


class BatchPlan(NamedTuple):
    """Number of images on each device."""

    name: str
    per_device: bool
    """Whether each device has `BATCH` images. Otherwise all devices together have them."""

    def images(self, devices: int) -> int:
        """Return the images of one device, 0 if there are too few."""
        return BATCH if self.per_device else BATCH // devices

    def steps(self, devices: int) -> int:
        """Return the steps of an epoch of CIFAR-10."""
        return steps_per_epoch(BATCH * devices if self.per_device else BATCH)


PLANS = (BatchPlan(f"{BATCH} images in all", False), BatchPlan(f"{BATCH} images each", True))


@lru_cache
def resnet_volume(depth: int, norm: NormScope) -> CommunicationVolume:
    """Return a ResNet's communication volume under jit."""
    return communication_volume(jc.create_model(f"cifar-resnet{depth}", 10), norm=norm)


@lru_cache
def resnet_flop(depth: int) -> int:
    """Return a ResNet's FLOP for an image in training."""
    return training_flop(jc.create_model(f"cifar-resnet{depth}", 10))


def network_rows(depths: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each network.

    Its columns do not depend on the devices. An epoch is 391 steps of 128 images.
    """
    rows = []
    for depth in depths:
        batch, device = resnet_volume(depth, "batch"), resnet_volume(depth, "device")
        epoch = steps_per_epoch(BATCH)
        model = jc.create_model(f"cifar-resnet{depth}", 10)
        row: dict[str, Any] = {
            "network": f"ResNet-{depth}",
            "parameters": sum(batch.gradient),
            "multiply_adds_per_image": multiply_adds(model),
            "gradient_bytes_per_step": 4 * sum(batch.gradient),
            "bn_bytes_per_step": 4 * sum(batch.bn),
            "bn_bytes_per_step_in_groups": 4 * sum(device.bn),
            "sums_bytes_per_step": 4 * sum(batch.metrics),
            "collectives": batch.collectives,
            "collectives_in_groups": device.collectives,
            "gradient_mb_per_epoch": 4e-6 * epoch * sum(batch.gradient),
            "bn_mb_per_epoch": 4e-6 * epoch * sum(batch.bn),
        }
        rows.append(row)
    return rows


def powers_of_two(maximum: int) -> list[int]:
    """Return 1, 2, 4, ... up to `maximum`."""
    return [2**i for i in range(maximum.bit_length())]


def resnet_step_time(
    depth: int, norm: NormScope, plan: BatchPlan, link: Link, devices: int
) -> StepTime | None:
    """Return the parts of a ResNet's step.

    None where devices would have no image.
    """
    volume, images = resnet_volume(depth, norm), plan.images(devices)
    if not images:
        return None
    flop = images * resnet_flop(depth)
    return step_time(link, devices, volume.bytes, volume.collectives, flop)


def growth_rows(depths: Sequence[int], max_devices: int) -> list[dict[str, Any]]:
    """Return the rows of the table "growth".

    There is one for each network, plan, scope of BN, number of devices and link.
    """
    return [
        _growth_row(depth, plan, norm, link, n)
        for depth in depths
        for plan in PLANS
        for norm in NORM_SCOPES
        for n in powers_of_two(max_devices)
        for link in LINKS
        if plan.images(n)
    ]


def _growth_row(depth: int, plan: BatchPlan, norm: NormScope, link: Link, n: int) -> dict[str, Any]:
    volume, time = resnet_volume(depth, norm), resnet_step_time(depth, norm, plan, link, n)
    assert time
    epoch = plan.steps(n)
    row: dict[str, Any] = {
        "network": f"ResNet-{depth}",
        "plan": plan.name,
        "bn": norm,
        "link": link.name,
        "devices": n,
        "images_each": plan.images(n),
        "steps_per_epoch": epoch,
        "out_mb_per_epoch": 1e-6 * epoch * ring_bytes(volume.bytes, n),
    }
    row |= {f"{name}_us": 1e6 * seconds for name, seconds in time._asdict().items()}
    return row | {"wire_percent": 100 * time.communication_share}


def limit_rows(depths: Sequence[int], max_devices: int) -> list[dict[str, Any]]:
    """Return the device limits as rows.

    There is one for each plan, scope of BN, link and network.
    """
    rows = []
    for plan in PLANS:
        for norm in NORM_SCOPES:
            for link in LINKS:
                for depth in depths:
                    row = {
                        "plan": plan.name,
                        "bn": norm,
                        "link": link.name,
                        "network": f"ResNet-{depth}",
                    }
                    rows.append(row | device_limit(depth, norm, plan, link, max_devices))
    return rows


def device_limit(
    depth: int, norm: NormScope, plan: BatchPlan, link: Link, max_devices: int
) -> dict[str, Any]:
    """Return the number of devices up to which communication is below `MAX_SHARE`.

    Args:
      depth: layers of the ResNet.
      norm: the scope of BN's averages.
      plan: the images on each device.
      link: between the devices.
      max_devices: the largest number of devices. Only powers of two are tried.

    Returns:
      Columns of the table. "beyond" is the first number of devices that reaches `MAX_SHARE`.
      "binds" is the larger part of communication there, "latency" or "bytes", and
      "wire_percent_there" the share. Where no number reaches it they are of the largest one.
    """
    times = {
        n: time
        for n in powers_of_two(max_devices)
        if (time := resnet_step_time(depth, norm, plan, link, n))
    }
    above = [n for n, time in times.items() if time.communication_share >= MAX_SHARE]
    last = max((n for n in times if not above or n < above[0]), default=1)
    time = times[above[0] if above else last]
    on_two = times.get(2)
    return {
        "devices_below_10_percent": last,
        "beyond": above[0] if above else None,
        "wire_percent_there": 100 * time.communication_share,
        "binds": "latency" if time.latency > time.transfer else "bytes",
        "wire_percent_on_2": 100 * on_two.communication_share if on_two else None,
    }


def share_figure(depths: Sequence[int], max_devices: int) -> Any:
    """Plot communication's share of a step against devices.

    There is a panel for each link and plan, and a color for each network: the smallest, the middle
    one and the largest, since the lines of all would lie over each other.
    """
    drawn_depths = sorted({depths[0], depths[len(depths) // 2], depths[-1]})
    panels = []
    for plan in PLANS:
        for link in LINKS:
            lines = [
                _share_line(depth, norm, plan, link, max_devices)
                for norm in NORM_SCOPES
                for depth in drawn_depths
            ]
            marks = [plots.Mark(100 * MAX_SHARE, "y", "10%")]
            panels.append(
                plots.Panel(
                    f"{link.name}, {plan.name}",
                    lines,
                    marks,
                    xlabel="devices",
                    ylabel="communication\n(% of a step)",
                    xlog=True,
                    ylog=True,
                    ylim=(0.5, 110),
                    xlim=(1.8, 1150),
                )
            )
    title = "Predicted share of communication: BN over the batch (solid), within a device (dashed)"
    return plots.panels(panels, columns=len(LINKS), title=title, size=(4.0, 2.8))


def _share_line(
    depth: int, norm: NormScope, plan: BatchPlan, link: Link, max_devices: int
) -> plots.Line:
    # One device does not communicate, and a share of 0 has no place on a logarithmic axis.
    shares = {
        n: 100 * time.communication_share
        for n in powers_of_two(max_devices)[1:]
        if (time := resnet_step_time(depth, norm, plan, link, n))
    }
    label, dashed = f"ResNet-{depth}", norm == "device"
    return plots.Line(list(shares), list(shares.values()), label=label, dashed=dashed, width=1.6)


def volume_figure(depths: Sequence[int]) -> Any:
    """Plot the bytes that are all-reduced in an epoch, by network.

    The gradient and BN are separate lines.
    """
    parts = {
        "gradient": lambda depth: resnet_volume(depth, "batch").gradient,
        "BN over the batch": lambda depth: resnet_volume(depth, "batch").bn,
        "BN within a device": lambda depth: resnet_volume(depth, "device").bn,
    }
    epoch = steps_per_epoch(BATCH)
    lines = [
        plots.Line(depths, [4e-6 * epoch * sum(part(d)) for d in depths], label=name, marker="o")
        for name, part in parts.items()
    ]
    panel = plots.Panel(
        "",
        lines,
        xlabel="layers",
        ylabel="all-reduced per epoch (MB)",
        ylog=True,
        xlim=(0, max(depths) + 10),
    )
    title = f"All-reduced in an epoch of CIFAR-10 ({epoch} steps of {BATCH})"
    return plots.panels([panel], title=title, size=(6.8, 4.0))


def assumption_notes() -> list[str]:
    """Return the assumptions of the tables that were not measured here."""
    rate = f"{GPU_FLOP_RATE / 1e12:.3g} TFLOP/s (7% of 790)"
    notes = [f"Assumed, not measured here: a GPU computes {rate}."]
    return notes + [
        f"{link.name}: {link.bandwidth / 1e9:g} GB/s, {1e6 * link.base:g} us and "
        f"{1e6 * link.hop:g} us a hop ({link.source})."
        for link in LINKS
    ]
