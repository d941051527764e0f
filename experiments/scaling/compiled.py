"""The arithmetic against XLA: every all-reduce of the compiled training step, tensor by tensor."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import numpy as np

import jaxcnn as jc
from experiments.scaling.arithmetic import Kind, Norm, Traffic, traffic
from experiments.scaling.options import Options
from jaxcnn import parallel
from jaxcnn.progress import Progress
from jaxcnn.state import init_state
from jaxcnn.training import make_train_step

_TENSOR = re.compile(r"(\w+)\[([\d,]*)\]")
_COLLECTIVE = re.compile(
    r" = (?P<out>.+?) (?P<name>all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+|ragged-all-to-all)(?:-start)?\("
)


class Collective(NamedTuple):
    """One of a compiled program."""

    name: str
    tensors: tuple[int, ...]
    """Numbers in each, all of them of 4 bytes."""


class Job(NamedTuple):
    """A step with what it is given on the devices."""

    strategy: parallel.Strategy
    step: Any
    carry: Any
    fixed: Any


def job(name: str, width: int, batch: int, strategy: parallel.Strategy, norm: Norm, devices: int) -> Job:
    """The training step of `name` on the digits, as `train` makes it; BN's groups are the shares of `devices` devices."""
    data, recipe = jc.load_dataset("digits"), jc.Recipe(dataset="digits", model=name, batch=batch, pad=1, flip=True)
    model = jc.create_model(name, 10, width=width, bn_group=batch // devices if norm == "device" else 0)
    tx = jc.create_optimizer(recipe)
    carry = strategy.replicate(init_state(model, tx, recipe, data))
    return Job(
        strategy,
        make_train_step(model, tx, pad=1, flip=True, axis=strategy.axis),
        carry,
        strategy.replicate(data.train),
    )


def text(job: Job, batch: int) -> str:
    """The compiled program of a job's step, in XLA's language (HLO)."""
    return str(job.strategy.compile(job.step, job.carry, job.fixed, np.arange(batch, dtype=np.int32)).as_text())


def collectives(text: str) -> list[Collective]:
    """What a compiled program sends.

    Example:
      >>> collectives("  %a = (f32[3,4]{1,0}, s32[]) all-reduce(%x, %y), channel_id=1")
      [Collective(name='all-reduce', tensors=(12, 1))]
    """
    found = [match for line in text.splitlines() if (match := _COLLECTIVE.search(line))]
    return [
        Collective(match["name"], tuple(_numbers(*one) for one in _TENSOR.findall(match["out"]))) for match in found
    ]


def _numbers(dtype: str, shape: str) -> int:
    if dtype not in ("f32", "s32", "u32"):
        raise NotImplementedError(f"a collective sends {dtype}; expected numbers of 4 bytes")
    return math.prod(int(size) for size in shape.split(",") if size)


def expected(model: Any, kind: Kind, norm: Norm, devices: int) -> Traffic:
    """The arithmetic's answer; on one device jit sends nothing, and pmap all-reduces with itself, BN being within a device."""
    if devices > 1:
        return traffic(model, (8, 8, 1), kind, norm)
    return traffic(model, (8, 8, 1), "pmap", "device") if kind == "pmap" else Traffic((), (), (), 0)


def compare(name: str, width: int, kind: Kind, norm: Norm, devices: int, batch: int = 32) -> dict[str, Any]:
    """A line of the table: paper and program, and whether every tensor agrees."""
    paper = expected(jc.create_model(name, 10, width=width), kind, norm, devices)
    found = collectives(text(job(name, width, batch, jc.strategy(kind, devices), norm, devices), batch))
    tensors = [size for one in found for size in one.tensors]
    line: dict[str, Any] = {"network": name, "width": width, "strategy": kind, "bn": norm, "devices": devices}
    line |= {"bytes_on_paper": paper.bytes, "bytes_in_program": 4 * sum(tensors)}
    line |= {"collectives_on_paper": paper.collectives, "collectives_in_program": len(found)}
    same = sorted(tensors) == sorted(paper.tensors) and {one.name for one in found} <= {"all-reduce"}
    return line | {"every_tensor_equal": same and len(found) == paper.collectives}


def run(options: Options) -> list[dict[str, Any]]:
    """A line for each network, strategy, kind of BN and number of devices."""
    kinds: tuple[Kind, ...] = ("jit", "pmap")
    norms: tuple[Norm, ...] = ("batch", "device")
    cases: list[tuple[Kind, Norm, int]] = [
        (k, norm, n) for k in kinds for norm in norms for n in options.devices if norm == "batch" or n > 1
    ]
    lines = []
    with Progress(len(cases)) as progress:
        for kind, norm, n in cases:
            lines.append(compare(options.network, options.width, kind, norm, n, options.batch))
            progress.advance(1, f"compiled: {kind}, BN over the {norm}, {n} devices")
    return lines
