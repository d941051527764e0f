"""ResNets from 20 to 152 layers on 1 to 1,024 devices: tables and figures of the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jaxcnn as jc
from experiments.scaling.arithmetic import BATCH, Norm, Traffic, flops, multiply_adds, ring, steps, traffic
from experiments.scaling.machines import LINKS, RATE, Link, Step, step
from experiments.scaling.options import Options
from jaxcnn import plots

NORMS: tuple[Norm, ...] = ("batch", "device")
SHARE = 0.1
"""Of a step, on the wire: what is called little."""


class Plan(NamedTuple):
    """How many images each device has."""

    name: str
    each: bool
    """Whether `BATCH` is a device's, not the batch."""

    def images(self, devices: int) -> int:
        """Of one device in a step; 0 where the batch does not reach."""
        return BATCH if self.each else BATCH // devices

    def steps(self, devices: int) -> int:
        """Of an epoch of CIFAR-10."""
        return steps(BATCH * devices if self.each else BATCH)


PLANS = (Plan(f"{BATCH} images in all", False), Plan(f"{BATCH} images each", True))


@lru_cache
def sent(depth: int, norm: Norm) -> Traffic:
    """A ResNet's traffic under jit."""
    return traffic(jc.create_model(f"cifar-resnet{depth}", 10), norm=norm)


@lru_cache
def work(depth: int) -> int:
    """A ResNet's FLOP for an image in training."""
    return flops(jc.create_model(f"cifar-resnet{depth}", 10))


def counts(depths: Sequence[int]) -> list[dict[str, Any]]:
    """A line for each network: what does not depend on the devices. An epoch is 391 steps of 128."""
    lines = []
    for depth in depths:
        batch, device, epoch = sent(depth, "batch"), sent(depth, "device"), steps(BATCH)
        line: dict[str, Any] = {"network": f"ResNet-{depth}", "parameters": sum(batch.gradient)}
        line |= {"multiply_adds_per_image": multiply_adds(jc.create_model(f"cifar-resnet{depth}", 10))}
        line |= {"gradient_bytes_per_step": 4 * sum(batch.gradient), "bn_bytes_per_step": 4 * sum(batch.bn)}
        line |= {"bn_bytes_per_step_in_groups": 4 * sum(device.bn), "sums_bytes_per_step": 4 * sum(batch.sums)}
        line |= {"collectives": batch.collectives, "collectives_in_groups": device.collectives}
        line |= {"gradient_mb_per_epoch": 4e-6 * epoch * sum(batch.gradient)}
        lines.append(line | {"bn_mb_per_epoch": 4e-6 * epoch * sum(batch.bn)})
    return lines


def powers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**i for i in range(most.bit_length())]


def times(depth: int, norm: Norm, plan: Plan, link: Link, devices: int) -> Step | None:
    """A step's parts; None where devices would have no image."""
    found, images = sent(depth, norm), plan.images(devices)
    return step(link, devices, found.bytes, found.collectives, images * work(depth)) if images else None


def growth(options: Options) -> list[dict[str, Any]]:
    """A line for each network, plan, link, kind of BN and number of devices."""
    lines = []
    for depth in options.depths:
        for plan in PLANS:
            for norm in NORMS:
                for n in powers(options.most):
                    lines += [_line(depth, plan, norm, link, n) for link in LINKS if plan.images(n)]
    return lines


def _line(depth: int, plan: Plan, norm: Norm, link: Link, n: int) -> dict[str, Any]:
    found, parts = sent(depth, norm), times(depth, norm, plan, link, n)
    assert parts
    epoch = plan.steps(n)
    line: dict[str, Any] = {
        "network": f"ResNet-{depth}",
        "plan": plan.name,
        "bn": norm,
        "link": link.name,
        "devices": n,
    }
    line |= {
        "images_each": plan.images(n),
        "steps_per_epoch": epoch,
        "out_mb_per_epoch": 1e-6 * epoch * ring(found.bytes, n),
    }
    line |= {f"{name}_us": 1e6 * seconds for name, seconds in parts._asdict().items()}
    return line | {"wire_percent": 100 * parts.share}


def limits(options: Options) -> list[dict[str, Any]]:
    """A line for each plan, kind of BN, link and network: up to how many devices the wire is below `SHARE`, and what binds."""
    lines = []
    for plan in PLANS:
        for norm in NORMS:
            for link in LINKS:
                for depth in options.depths:
                    line = {"plan": plan.name, "bn": norm, "link": link.name, "network": f"ResNet-{depth}"}
                    lines.append(line | limit(depth, norm, plan, link, options.most))
    return lines


def limit(depth: int, norm: Norm, plan: Plan, link: Link, most: int) -> dict[str, Any]:
    """The last of 1, 2, 4, ... devices before the wire has `SHARE`, and the first step that is over it."""
    known = {n: parts for n in powers(most) if (parts := times(depth, norm, plan, link, n))}
    over = [n for n, parts in known.items() if parts.share >= SHARE]
    last = max((n for n in known if not over or n < over[0]), default=1)
    parts = known[over[0] if over else last]
    binds = "latency" if parts.latency > parts.transfer else "bytes"
    two = known.get(2)
    return {
        "devices_below_10_percent": last,
        "beyond": over[0] if over else None,
        "wire_percent_there": 100 * parts.share,
        "binds": binds,
        "wire_percent_on_2": 100 * two.share if two else None,
    }


def share(options: Options) -> Any:
    """The wire's share of a step against devices: a panel for each link and plan, a colour for each network."""
    panels = []
    for plan in PLANS:
        for link in LINKS:
            lines = [_curve(depth, norm, plan, link, options.most) for norm in NORMS for depth in options.depths]
            marks = [plots.Mark(100 * SHARE, "y", "10%")]
            axes: dict[str, Any] = {
                "xlabel": "devices",
                "ylabel": "on the wire (% of a step)",
                "xlog": True,
                "ylog": True,
            }
            panels.append(
                plots.Panel(f"{link.name}, {plan.name}", lines, marks, **axes, ylim=(0.5, 110), xlim=(1.8, 1150))
            )
    title = "Share of the step on the wire: BN over the batch (solid), BN within a device (dashed)"
    return plots.panels(panels, columns=len(LINKS), title=title)


def _curve(depth: int, norm: Norm, plan: Plan, link: Link, most: int) -> plots.Line:
    known = {n: parts for n in powers(most)[1:] if (parts := times(depth, norm, plan, link, n))}
    values = [100 * parts.share for parts in known.values()]
    return plots.Line(list(known), values, label=f"ResNet-{depth}", dashed=norm == "device", width=1.6)


def volume(options: Options) -> Any:
    """Bytes that are all-reduced in an epoch, by network: gradient and BN apart."""
    parts = {
        "gradient": lambda depth: sent(depth, "batch").gradient,
        "BN over the batch": lambda depth: sent(depth, "batch").bn,
    }
    parts["BN within a device"] = lambda depth: sent(depth, "device").bn
    lines = [
        plots.Line(options.depths, [4e-6 * steps(BATCH) * sum(part(d)) for d in options.depths], label=name, marker="o")
        for name, part in parts.items()
    ]
    panel = plots.Panel(
        "", lines, (), "layers", "all-reduced in an epoch (MB)", ylog=True, xlim=(0, max(options.depths) + 10)
    )
    return plots.panels([panel], title="An epoch of CIFAR-10: 391 steps of 128 images", size=(6.4, 4.2))


def assumed() -> list[str]:
    """What of the tables nobody has measured here."""
    said = [f"Assumed, not measured here: a GPU computes {RATE / 1e12:.3g} TFLOP/s (7% of 790)."]
    return said + [
        f"{x.name}: {x.bandwidth / 1e9:g} GB/s, {1e6 * x.base:g} us and {1e6 * x.hop:g} us a hop ({x.source})."
        for x in LINKS
    ]
