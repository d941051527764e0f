"""Compiled programs against the analytic model: every all-reduce of the training step."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import jaxcnn as jc
from experiments.scaling.analytic import (
    CommunicationVolume,
    NormScope,
    StrategyKind,
    communication_volume,
)
from jaxcnn import parallel
from jaxcnn.progress import Progress
from jaxcnn.state import init_state
from jaxcnn.training import make_train_step, step_kwargs

_TENSOR = re.compile(r"(\w+)\[([\d,]*)\]")
_COLLECTIVE = re.compile(
    r" = (?P<out>.+?) (?P<name>all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+|"
    r"ragged-all-to-all)(?:-start)?\("
)


class Collective(NamedTuple):
    """Collective of a compiled program."""

    name: str
    tensors: tuple[int, ...]
    """Numbers in each tensor, all of them of 4 bytes."""


class Workload(NamedTuple):
    """Training step and its arguments on the devices."""

    strategy: parallel.Strategy
    step: Any
    carry: Any
    fixed: Any


def create_workload(
    name: str,
    width: int,
    batch_size: int,
    strategy: parallel.Strategy,
    norm: NormScope,
    devices: int,
) -> Workload:
    """Create a network's training step on the digits, as `train` does.

    Args:
      name: of the network.
      width: filters of its first stage.
      batch_size: images in a step, over all devices.
      strategy: the devices of the step.
      norm: the scope of BN's averages.
      devices: number of devices whose shares are BN's groups, where the scope is a device.
    """
    data = jc.load_dataset("digits")
    config = jc.TrainConfig(batch_size=batch_size, augment=jc.AugmentConfig(padding=1, flip=True))
    group = batch_size // devices if norm == "device" else 0
    model = jc.create_model(name, 10, width=width, bn_group=group)
    tx = jc.create_optimizer(jc.OptimizerConfig())
    carry = strategy.replicate(init_state(model, tx, config, data))
    step = make_train_step(model, tx, **step_kwargs(config), axis_name=strategy.axis_name)
    return Workload(strategy, step, carry, strategy.replicate(data.train))


def hlo_text(workload: Workload, batch_size: int) -> str:
    """Compile the step, and return its program in XLA's language (HLO)."""
    strategy, step, carry, fixed = workload
    return str(
        strategy.compile(step, carry, fixed, np.arange(batch_size, dtype=np.int32)).as_text()
    )


def parse_collectives(text: str) -> list[Collective]:
    """Return the collectives of a compiled program.

    Raises:
      NotImplementedError: a collective sends numbers that have not 4 bytes.

    Example:
      >>> parse_collectives("  %a = (f32[3,4]{1,0}, s32[]) all-reduce(%x, %y), channel_id=1")
      [Collective(name='all-reduce', tensors=(12, 1))]
    """
    matches = [match for line in text.splitlines() if (match := _COLLECTIVE.search(line))]
    return [
        Collective(match["name"], tuple(_size(*tensor) for tensor in _TENSOR.findall(match["out"])))
        for match in matches
    ]


def _size(dtype: str, shape: str) -> int:
    if dtype not in ("f32", "s32", "u32"):
        raise NotImplementedError(f"a collective sends {dtype}; expected numbers of 4 bytes")
    return math.prod(int(size) for size in shape.split(",") if size)


def analytic_volume(
    model: Any, kind: StrategyKind, norm: NormScope, devices: int
) -> CommunicationVolume:
    """Return the analytic communication volume, for any number of devices.

    On one device jit sends nothing. Pmap all-reduces with itself, and BN is within the device.
    """
    if devices > 1:
        return communication_volume(model, (8, 8, 1), kind, norm)
    if kind == "pmap":
        return communication_volume(model, (8, 8, 1), "pmap", "device")
    return CommunicationVolume((), (), (), 0)


def compare_program(
    name: str,
    width: int,
    kind: StrategyKind,
    norm: NormScope,
    devices: int,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Compare a compiled step with the analytic model.

    Args:
      name: of the network.
      width: filters of its first stage.
      kind: the strategy.
      norm: the scope of BN's averages.
      devices: number of devices.
      batch_size: images in a step, over all devices.

    Returns:
      A row of the table. "every_tensor_equal" is whether all collectives are all-reduces, and their
      number and the sizes of all tensors agree.
    """
    analytic = analytic_volume(jc.create_model(name, 10, width=width), kind, norm, devices)
    workload = create_workload(name, width, batch_size, jc.strategy(kind, devices), norm, devices)
    collectives = parse_collectives(hlo_text(workload, batch_size))
    tensors = [size for collective in collectives for size in collective.tensors]
    only_all_reduces = {collective.name for collective in collectives} <= {"all-reduce"}
    equal = sorted(tensors) == sorted(analytic.tensors) and only_all_reduces
    return {
        "network": name,
        "width": width,
        "strategy": kind,
        "bn": norm,
        "devices": devices,
        "bytes_on_paper": analytic.bytes,
        "bytes_in_program": 4 * sum(tensors),
        "collectives_on_paper": analytic.collectives,
        "collectives_in_program": len(collectives),
        "every_tensor_equal": equal and len(collectives) == analytic.collectives,
    }


def compare_programs(
    network: str, width: int, batch_size: int, devices: Sequence[int]
) -> list[dict[str, Any]]:
    """Compare all strategies, scopes of BN and numbers of devices.

    Args:
      network: its name.
      width: filters of its first stage.
      batch_size: images in a step, over all devices.
      devices: the numbers of devices.
    """
    kinds: tuple[StrategyKind, ...] = ("jit", "pmap")
    norms: tuple[NormScope, ...] = ("batch", "device")
    # On one device both scopes are the same.
    cases: list[tuple[StrategyKind, NormScope, int]] = [
        (kind, norm, n)
        for kind in kinds
        for norm in norms
        for n in devices
        if norm == "batch" or n > 1
    ]
    rows = []
    with Progress(len(cases)) as progress:
        for kind, norm, n in cases:
            rows.append(compare_program(network, width, kind, norm, n, batch_size))
            progress.advance(1, f"compiled: {kind}, BN over the {norm}, {n} devices")
    return rows
