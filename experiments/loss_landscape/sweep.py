"""Measurement of losses around many networks, point by point.

It can be stopped, and resumes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxcnn as jc
from experiments.loss_landscape import measurements
from experiments.loss_landscape.options import Options, load_model, loss_images
from jaxcnn.loss_landscape import LandscapeValues, evaluate_along
from jaxcnn.progress import Progress

SAVE_INTERVAL = 10.0
"""Seconds between two saves of the measured points."""


class Job(NamedTuple):
    """Line or plane to measure."""

    network: str
    path: Path
    request: dict[str, Any]
    """Request of the measurement.

    Its `settings` have the number of `points` and the BN `statistics`.
    """
    make_directions: Callable[[], tuple[list[Any], Mapping[str, np.ndarray]]]
    """Function that returns the directions, and arrays by name.

    Of the arrays, `x`, and `y` for a plane, are the steps.
    """
    num_points: int
    """Number of points."""


def sweep(options: Options, jobs: list[Job], stop: Any) -> bool:
    """Measure every job that is not complete.

    Returns:
      False if it was stopped on the way.
    """
    # Time is about proportional to points and parameters.
    costs = [job.num_points * jc.count_parameters(*_model_and_shape(options, job)) for job in jobs]
    with Progress(max(1, sum(costs))) as progress:
        for job, cost in zip(jobs, costs, strict=True):
            partial = measurements.read_matching(job.path, job.request)
            if partial is not None and partial.is_complete:
                progress.skip(cost)
                continue
            if not _measure(options, job, partial, progress, cost / job.num_points, stop):
                return False
    return True


def _model_and_shape(options: Options, job: Job) -> tuple[Any, tuple[int, ...]]:
    model = load_model(options, job.network).model
    return model, loss_images(options, job.network).images.shape[1:]


def _measure(options, job, partial, progress, point_cost, stop) -> bool:
    """Measure one job from where it was stopped.

    Returns:
      False if it was stopped before its end.
    """
    directions, arrays = job.make_directions()
    resume = (
        None
        if partial is None
        else LandscapeValues(
            partial.arrays["loss"], partial.arrays["error"], int(partial.arrays["done"])
        )
    )
    progress.skip(point_cost * (resume.done if resume else 0))
    save_time = time.monotonic()

    def watch(values: LandscapeValues) -> None:
        nonlocal save_time
        progress.advance(
            point_cost,
            f"{job.path.parent.name} {job.path.stem}  point {values.done}/{job.num_points}",
        )
        if time.monotonic() - save_time > SAVE_INTERVAL:
            _save(job, arrays, values)
            save_time = time.monotonic()

    trained, split = load_model(options, job.network), loss_images(options, job.network)
    steps = [arrays[name] for name in ("x", "y")[: len(directions)]]
    kwargs: dict[str, Any] = {"statistics": job.request["settings"]["statistics"], "resume": resume}
    # One device: nothing here is worth splitting.
    kwargs |= {
        "strategy": jc.strategy("jit", 1),
        "watch": watch,
        "should_stop": stop,
    }
    values = evaluate_along(trained.model, trained.last, split, directions, steps, **kwargs)
    _save(job, arrays, values)
    return values.done == job.num_points


def _save(job: Job, arrays: Mapping[str, np.ndarray], values: LandscapeValues) -> None:
    losses = {"loss": values.loss, "error": values.error_percent, "done": np.array(values.done)}
    measurements.write(job.path, measurements.Measurement(job.request, {**arrays, **losses}))
