"""Losses measured around many networks, point by point, and their files.

A measurement can be stopped, and resumes. There is a file for each network, with arrays and their
request.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxcnn as jc
from experiments.loss_landscape.options import Options, load_model, loss_images
from jaxcnn.loss_landscape import LandscapeValues, evaluate_along
from jaxcnn.progress import Progress
from jaxcnn.run_log import LogError, read_bytes

SAVE_INTERVAL = 10.0
"""Seconds between two saves of the measured points."""


class Measurement(NamedTuple):
    """Contents of a file."""

    request: dict[str, Any]
    """Run and settings that were measured, as JSON has them."""
    arrays: dict[str, np.ndarray]
    """Name -> array."""

    @property
    def config(self) -> jc.ExperimentConfig:
        """Return the config of the run."""
        return jc.ExperimentConfig.from_json(self.request["config"])

    @property
    def is_complete(self) -> bool:
        """Return whether all points have been measured."""
        return "done" not in self.arrays or int(self.arrays["done"]) == self.arrays["loss"].size


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
            partial = read_matching(job.path, job.request)
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
    write(job.path, Measurement(job.request, {**arrays, **losses}))


def write(path: Path, measurement: Measurement) -> None:
    """Write the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer, part_path = io.BytesIO(), path.with_name(f"{path.name}.part")
    np.savez(
        buffer,
        allow_pickle=False,
        request=np.array(json.dumps(measurement.request)),
        **measurement.arrays,
    )
    # A link with that name would write the bytes elsewhere.
    part_path.unlink(missing_ok=True)
    with open(part_path, "xb") as file:
        file.write(buffer.getvalue())
    os.replace(part_path, path)


def read(path: Path) -> Measurement:
    """Return the contents of a file.

    Raises:
      ArgumentError: the file is not one of these.
    """
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return Measurement(dict(json.loads(str(arrays.pop("request")))), arrays)
    except LogError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        MemoryError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        problem = " ".join(str(error).split())[:200]
        raise jc.ArgumentError(
            f"{path} cannot be read: {problem}; delete it, and it is measured again"
        ) from None


def read_matching(path: Path, request: dict[str, Any]) -> Measurement | None:
    """Return the contents of the file that answers a request, or None.

    It is None if there is no file, or if it answers another request.
    """
    # A round trip through JSON makes lists of tuples, as in the file.
    measurement = read(path) if path.exists() else None
    return (
        measurement
        if measurement is not None and measurement.request == json.loads(json.dumps(request))
        else None
    )


def read_complete(out: Path, part: str) -> dict[str, Measurement]:
    """Return name of the file -> complete measurement of a part.

    Plain networks come first, then by depth.

    Raises:
      ArgumentError: nothing is complete.
    """
    measurements = {
        path.stem: read(path)
        for path in sorted((out / part).glob("*.npz"), key=lambda path: natural_key(path.stem))
    }
    complete = {
        name: measurement for name, measurement in measurements.items() if measurement.is_complete
    }
    if not complete:
        raise jc.ArgumentError(
            f"{out / part} holds nothing that was measured to its end; leave out --plot-only"
        )
    return complete


def natural_key(name: str) -> list[Any]:
    """Return a key that sorts 56 before 110."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def network_name(name: str) -> str:
    """Return the network's name from that of its file.

    Example:
      >>> network_name("lenet5-relu-direction2"), network_name("plain20")
      ('lenet5-relu', 'plain20')
    """
    return re.sub(r"-direction\d+$", "", name)


def display_title(name: str) -> str:
    """Return the network's name as the papers write it.

    Example:
      >>> display_title("plain20"), display_title("resnet56")
      ('plain-20', 'ResNet-56')
    """
    return re.sub(r"(\D)(\d)", r"\1-\2", name.replace("resnet", "ResNet"), count=1)


def setting_text(measurement: Measurement) -> str:
    """Return one line on what was trained and measured."""
    config, settings = measurement.config, measurement.request["settings"]
    width = f", width {config.model_kwargs['width']}" if "width" in config.model_kwargs else ""
    return (
        f"{config.dataset}{width}, step {measurement.request['row']['step']}, {settings['images']} "
        "training images"
    )
