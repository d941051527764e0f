"""Loss along random directions, filter-normalized, to both sides of the last state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

import jaxcnn as jc
from experiments._common import display_names
from experiments.loss_landscape import measurements
from experiments.loss_landscape.measurements import Job, sweep
from experiments.loss_landscape.options import Options, load_model, measurement_request
from jaxcnn import plots, tables
from jaxcnn.loss_landscape import cosine_similarity, random_direction


def check(options: Options) -> None:
    """Check the settings of the part.

    Raises:
      ArgumentError: a setting is invalid.
    """
    line = options.line
    if line.directions < 1:
        raise jc.ArgumentError(
            f"line.directions is {line.directions}; expected at least 1: write --line.directions 3"
        )
    if line.points < 5 or line.points % 4 != 1:
        raise jc.ArgumentError(
            f"line.points is {line.points}; expected 4 n + 1, at least 5: write --line.points 21"
        )
    check_reach("line", line.reach)


def check_reach(part: str, value: float) -> None:
    """Check that a length is finite and above 0.

    Raises:
      ArgumentError: it is not.
    """
    if not 0 < value < float("inf"):
        raise jc.ArgumentError(
            f"{part}.reach is {value}; expected a finite length above 0: write --{part}.reach 1"
        )


def make_direction(options: Options, network: str, index: int) -> Any:
    """Return the network's random direction of that index.

    The planes are of the first two.
    """
    key = jax.random.fold_in(jax.random.key(options.draw_seed), index)
    return random_direction(key, load_model(options, network).last.params)


def jobs(options: Options) -> list[Job]:
    """Return a line for each network and direction.

    The first direction of all networks comes first.
    """
    line = options.line
    x = np.linspace(-line.reach, line.reach, line.points)

    def job(network: str, index: int) -> Job:
        # The number of directions is not part of a request: more can be added later.
        settings = {key: value for key, value in asdict(line).items() if key != "directions"}
        settings |= {"direction": index}
        path = options.out / "line" / f"{network}-direction{index}.npz"

        def make_directions():
            direction = make_direction(options, network, index)
            cosine = (
                cosine_similarity(direction, make_direction(options, network, 0)) if index else 1.0
            )
            return [direction], {"x": x, "cosine": np.array(cosine)}

        return Job(
            network,
            path,
            measurement_request(options, network, settings),
            make_directions,
            line.points,
        )

    return [job(network, index) for index in range(line.directions) for network in options.networks]


def run(options: Options, stop: Any) -> bool:
    """Measure what is missing.

    Returns:
      False if it was stopped on the way.
    """
    return sweep(options, jobs(options), stop)


def draw(options: Options) -> dict[str, dict[str, Any]]:
    """Write the figure `lines` and the table.

    Returns:
      Network -> its columns of the common table.
    """
    measured = measurements.read_complete(options.out, "line")
    groups: dict[str, list[measurements.Measurement]] = {}
    for name, measurement in measured.items():
        groups.setdefault(measurements.network_name(name), []).append(measurement)
    rows = {name: table_row(group) for name, group in groups.items()}
    first = next(iter(measured.values()))
    num_directions = max(map(len, groups.values()))
    notes = [
        f"{measurements.setting_text(first)}. Losses in nats at these distances (filter norms) "
        f"from the end: the mean over {num_directions} random directions and both sides of each, "
        "and the least and the greatest of these. cosine: the greatest, in size, between the "
        "first direction and another."
    ]
    tables.write_table(
        options.out / "line",
        [{"network": name} | row for name, row in rows.items()],
        notes,
    )
    options.save(_figure(groups, measurements.setting_text(first)), options.out / "line" / "lines")
    return {
        name: {key: value for key, value in row.items() if key != "cosine"}
        for name, row in rows.items()
    }


def table_row(group: list[measurements.Measurement]) -> dict[str, Any]:
    """Return the losses in the middle, half way and at the ends."""
    losses = np.array([measurement.arrays["loss"] for measurement in group])  # [directions, m]
    errors = np.array([measurement.arrays["error"] for measurement in group])
    reach = float(group[0].arrays["x"][-1])
    middle, quarter = losses.shape[1] // 2, losses.shape[1] // 4
    row: dict[str, Any] = {
        "loss": float(losses[0, middle]),
        "train_error": float(errors[0, middle]),
    }
    for fraction, indices in ((0.5, [quarter, -1 - quarter]), (1.0, [0, -1])):
        selected, name = losses[:, indices], f"loss_at_{fraction * reach:g}"
        row |= {
            name: float(selected.mean()),
            f"{name}_range": f"{selected.min():.3g} to {selected.max():.3g}",
        }
    cosines = [abs(float(measurement.arrays["cosine"])) for measurement in group[1:]]
    return row | {"cosine": max(cosines) if cosines else None}


def _figure(groups: Mapping[str, list[measurements.Measurement]], setting: str) -> Any:
    panels = []
    for key, ylabel in (("loss", "training loss (nats)"), ("error", "training error (%)")):
        lines = [
            _band(measurements.display_title(name), group, key) for name, group in groups.items()
        ]
        panels.append(
            plots.Panel("", lines, (), "distance (filter norms)", ylabel, ylog=key == "loss")
        )
    directions = max(map(len, groups.values()))
    title = f"Loss and error along random directions, mean and range of {directions}: {setting}"
    return plots.panels(panels, columns=2, share="x", size=(4.7, 3.5), title=display_names(title))


def _band(label: str, group: list[measurements.Measurement], key: str) -> plots.Line:
    values = np.array([measurement.arrays[key] for measurement in group])
    with np.errstate(invalid="ignore"):
        return plots.Line(
            group[0].arrays["x"],
            values.mean(0),
            values.min(0),
            values.max(0),
            label=label,
            dashed=label.startswith("plain"),
        )
