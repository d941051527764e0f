"""Measuring losses around many networks, point by point, so that it can be stopped and goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxcnn as jc
from experiments.loss_landscape import kept
from experiments.loss_landscape.options import Options, images, opened
from jaxcnn.loss_landscape import LandscapeValues, evaluate_along
from jaxcnn.progress import Progress

SAVED = 10.0
"""Seconds between two savings of what there is."""


class Job(NamedTuple):
    """One line or plane to be measured."""

    network: str
    path: Path
    asked: dict[str, Any]
    """Among its `settings`, `points` are measured in all and BN goes by `statistics`."""
    ways: Callable[[], tuple[list[Any], Mapping[str, np.ndarray]]]
    """The directions, and arrays by name: of them `x`, and `y` for a plane, are the steps."""
    total: int
    """Points."""


def sweep(options: Options, jobs: list[Job], stop: Any) -> bool:
    """Measure every job whose numbers are not there; False when stopped on the way."""
    weights = [job.total * jc.count_parameters(*_shape(options, job)) for job in jobs]
    with Progress(max(1, sum(weights))) as progress:
        for job, weight in zip(jobs, weights, strict=True):
            begun = kept.same(job.path, job.asked)
            if begun is not None and begun.over:
                progress.skip(weight)
                continue
            if not _measured(options, job, begun, progress, weight / job.total, stop):
                return False
    return True


def _shape(options: Options, job: Job) -> tuple[Any, tuple[int, ...]]:
    return opened(options, job.network).model, images(options, job.network).images.shape[1:]


def _measured(options, job, begun, progress, weight, stop) -> bool:
    """One job from where it is; False when stopped before its end."""
    ways, arrays = job.ways()
    so_far = (
        None
        if begun is None
        else LandscapeValues(begun.arrays["loss"], begun.arrays["error"], int(begun.arrays["done"]))
    )
    progress.skip(weight * (so_far.done if so_far else 0))
    saved = time.monotonic()

    def watch(values: LandscapeValues) -> None:
        nonlocal saved
        progress.advance(weight, f"{job.path.parent.name} {job.path.stem}  point {values.done}/{job.total}")
        if time.monotonic() - saved > SAVED:
            _save(job, arrays, values)
            saved = time.monotonic()

    seen, looked = opened(options, job.network), images(options, job.network)
    steps = [arrays[name] for name in ("x", "y")[: len(ways)]]
    how: dict[str, Any] = {"statistics": job.asked["settings"]["statistics"], "resume": so_far}
    how |= {
        "strategy": jc.strategy("jit", 1),
        "watch": watch,
        "stop": stop,
    }  # one device: nothing here is worth splitting
    values = evaluate_along(seen.model, seen.last, looked, ways, steps, **how)
    _save(job, arrays, values)
    return values.done == job.total


def _save(job: Job, arrays: Mapping[str, np.ndarray], values: LandscapeValues) -> None:
    measured = {"loss": values.loss, "error": values.error_percent, "done": np.array(values.done)}
    kept.write(job.path, kept.Kept(job.asked, {**arrays, **measured}))
