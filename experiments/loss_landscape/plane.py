"""Loss on the plane of two random directions, filter-normalized.

Its figures are contours and mountains.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments._common import display_names
from experiments.loss_landscape import measurements
from experiments.loss_landscape.line import check_reach, make_direction
from experiments.loss_landscape.measurements import Job, sweep
from experiments.loss_landscape.options import Options, measurement_request
from jaxcnn import plots, tables
from jaxcnn.loss_landscape import cosine_similarity


def check(options: Options) -> None:
    """Check the settings of the part.

    Raises:
      ArgumentError: a setting is invalid.
    """
    plane = options.plane
    if plane.points < 3 or plane.points % 2 == 0:
        raise jc.ArgumentError(
            f"plane.points is {plane.points}; expected an odd number of at least 3: write "
            "--plane.points 15"
        )
    if not plane.multiple > 1:
        raise jc.ArgumentError(
            f"plane.multiple is {plane.multiple}; expected more than 1: write --plane.multiple 2"
        )
    if not plane.most > 0:
        raise jc.ArgumentError(
            f"plane.most is {plane.most}; expected a loss above 0: write --plane.most 1000"
        )
    check_reach("plane", plane.reach)


def run(options: Options, stop: Any) -> bool:
    """Measure what is missing.

    Returns:
      False if it was stopped on the way.
    """
    plane = options.plane
    x = np.linspace(-plane.reach, plane.reach, plane.points)

    def job(network: str) -> Job:
        def make_directions():
            directions = [make_direction(options, network, index) for index in (0, 1)]
            return directions, {"x": x, "y": x, "cosine": np.array(cosine_similarity(*directions))}

        # These two only affect table and figures.
        settings = {
            key: value for key, value in asdict(plane).items() if key not in ("multiple", "most")
        }
        path = options.out / "plane" / f"{network}.npz"
        return Job(
            network,
            path,
            measurement_request(options, network, settings),
            make_directions,
            plane.points**2,
        )

    return sweep(options, [job(network) for network in options.networks], stop)


def draw(options: Options) -> dict[str, dict[str, Any]]:
    """Write the figures `planes` and `terrain`, and the table.

    Returns:
      Network -> its columns of the common table.
    """
    measured = measurements.read_complete(options.out, "plane")
    fields = [_field(name, measurement) for name, measurement in measured.items()]
    setting = measurements.setting_text(next(iter(measured.values())))
    style: dict[str, Any] = {
        "label": "training loss (nats)",
        "title": display_names(f"Loss on a plane of two random directions: {setting}"),
    }
    style["max_level"] = options.plane.most
    options.save(plots.contours(fields, **style), options.out / "plane" / "planes")
    options.save(plots.surfaces_3d(fields, **style), options.out / "plane" / "terrain")
    rows = {
        name: table_row(measurement, options.plane.multiple)
        for name, measurement in measured.items()
    }
    notes = [
        f"{setting}. Shares of the plane (percent of its points) where the loss is below "
        f"{options.plane.multiple:g} times that in the middle, and below that of guessing, "
        "ln(classes). cosine: between the two directions."
    ]
    tables.write_table(
        options.out / "plane",
        [{"network": name} | row for name, row in rows.items()],
        notes,
    )
    return {
        name: {key: value for key, value in row.items() if key.startswith("area")}
        for name, row in rows.items()
    }


def _field(name: str, measurement: measurements.Measurement) -> plots.Field:
    x, y, loss = (measurement.arrays[key] for key in ("x", "y", "loss"))
    return plots.Field(
        measurements.display_title(name),
        x,
        y,
        loss,
        "direction 1 (filter norms)",
        "direction 2 (filter norms)",
    )


def table_row(measurement: measurements.Measurement, multiple: float) -> dict[str, Any]:
    """Return the share of low loss, in percent, and the maximum."""
    loss = measurement.arrays["loss"]
    middle = float(loss[loss.shape[0] // 2, loss.shape[1] // 2])
    levels = {
        f"area_below_{multiple:g}x": multiple * middle,
        "area_below_guessing": math.log(int(measurement.request["classes"])),
    }
    areas = {name: 100 * float((loss < level).mean()) for name, level in levels.items()}
    greatest = float(np.where(np.isfinite(loss), loss, -np.inf).max())
    return (
        {"loss": middle}
        | areas
        | {"greatest": greatest, "cosine": float(measurement.arrays["cosine"])}
    )
