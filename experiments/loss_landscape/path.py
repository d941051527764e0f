"""Path of training in the plane of its first two principal components.

The method is that of section 7.2 of Li et al. 2018 (arXiv:1712.09913).
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments._common import display_names
from experiments.loss_landscape import measurements
from experiments.loss_landscape.measurements import Job, sweep
from experiments.loss_landscape.options import Options, load_data, measurement_request, run_folder
from jaxcnn import plots, runs, tables
from jaxcnn.loss_landscape import pca_plane

MIN_STATES = 4
"""Fewest states of a path: the start, the end, two others.

With fewer, any two directions make a plane.
"""


def check(options: Options) -> None:
    """Check the settings of the part.

    Raises:
      ArgumentError: a setting is invalid.
    """
    path_options = options.path
    if path_options.points < 3:
        raise jc.ArgumentError(
            f"path.points is {path_options.points}; expected at least 3: write --path.points 13"
        )
    if not 0 <= path_options.margin < float("inf"):
        raise jc.ArgumentError(
            f"path.margin is {path_options.margin}; expected a share of at least 0: write "
            "--path.margin 0.25"
        )
    if path_options.first < 0:
        raise jc.ArgumentError(
            f"path.first is {path_options.first}; expected a step of at least 0: write "
            "--path.first 0"
        )


def saved_steps(options: Options, network: str) -> list[int]:
    """Return the steps of the saved states and the start.

    Steps before `--path.first` are left out.
    """
    with jc.Checkpoints(run_folder(options, network) / "checkpoints") as checkpoints:
        return [step for step in sorted({0, *checkpoints.steps()}) if step >= options.path.first]


def run(options: Options, stop: Any) -> bool:
    """Measure what is missing.

    A run without states on the way is reported and skipped.

    Returns:
      False if it was stopped on the way.
    """
    jobs = []
    for network in options.networks:
        state_steps = saved_steps(options, network)
        if len(state_steps) < MIN_STATES:
            print(
                f"path: {run_folder(options, network)} has {len(state_steps)} states from step "
                f"{options.path.first} on, and a path takes {MIN_STATES}; left out (python -m "
                "experiments.depth --keep-every 25 keeps them)",
                file=sys.stderr,
            )
            continue
        settings = asdict(options.path) | {"steps": state_steps}
        path = options.out / "path" / f"{network}.npz"
        make_directions = _plane_maker(options, network)
        jobs.append(
            Job(
                network,
                path,
                measurement_request(options, network, settings),
                make_directions,
                options.path.points**2,
            )
        )
    return sweep(options, jobs, stop)


def _plane_maker(options: Options, network: str) -> Any:
    """Return a function that computes the plane.

    It is called late, as it loads all states.
    """

    def make_directions():
        run = runs.load_trained_model(
            run_folder(options, network), data=load_data(options, network), path=True
        )
        plane = pca_plane(
            [state for step, state in run.states.items() if step >= options.path.first]
        )
        grid = dict(zip("xy", map(_grid_maker(options), plane.path.T), strict=True))
        return list(plane.directions), grid | {"path": plane.path, "explained": plane.explained}

    return make_directions


def _grid_maker(options: Options) -> Any:
    """Return a function from a path's coordinates to a grid's."""

    def grid(values: np.ndarray) -> np.ndarray:
        margin = options.path.margin * np.ptp(values)
        return np.linspace(values.min() - margin, values.max() + margin, options.path.points)

    return grid


def draw(options: Options) -> dict[str, dict[str, Any]]:
    """Write the figure `path` and the table.

    Returns:
      Network -> its columns of the common table.
    """
    if not any((options.out / "path").glob("*.npz")):
        return {}
    measured = measurements.read_complete(options.out, "path")
    setting = measurements.setting_text(next(iter(measured.values())))
    settings = next(iter(measured.values())).request["settings"]
    style: dict[str, Any] = {"label": "training loss (nats)", "share": False, "columns": 2}
    title = display_names(f"The path of training in its principal plane: {setting}")
    options.save(
        plots.contours(
            [_field(name, measurement) for name, measurement in measured.items()],
            title=title,
            **style,
        ),
        options.out / "path" / "path",
    )
    rows = {name: table_row(measurement) for name, measurement in measured.items()}
    bn_text = {"images": "the images' own moments", "moving": "the last state's moving averages"}[
        settings["statistics"]
    ]
    notes = [
        f"{setting}; states {settings['steps']}. Shares of the path's variance along its first two "
        "principal components, in percent; distances are Euclidean, of all parameters. In the "
        f"plane BN goes by {bn_text}."
    ]
    tables.write_table(
        options.out / "path",
        [{"network": name} | row for name, row in rows.items()],
        notes,
    )
    return {name: {"explained": row["explained"]} for name, row in rows.items()}


def table_row(measurement: measurements.Measurement) -> dict[str, Any]:
    """Return how flat the path is, and how long."""
    shares, path = 100 * measurement.arrays["explained"], measurement.arrays["path"]
    row = {"states": len(path), "explained": float(shares.sum())}
    row |= {f"explained_{i + 1}": float(share) for i, share in enumerate(shares)}
    return row | {
        "start_to_end": float(np.hypot(*path[0])),
        "first_step": float(np.hypot(*(path[1] - path[0]))),
    }


def _field(name: str, measurement: measurements.Measurement) -> plots.Field:
    x, y, loss, path = (measurement.arrays[key] for key in ("x", "y", "loss", "path"))
    shares = (_percent(100 * share) for share in measurement.arrays["explained"])
    x_label, y_label = [
        f"PC {i + 1}, L2 distance\n({share} of variance)" for i, share in enumerate(shares)
    ]
    state_steps = measurement.request["settings"]["steps"]
    return plots.Field(
        measurements.display_title(name),
        x,
        y,
        loss,
        x_label,
        y_label,
        path,
        f"steps {state_steps[0]} to {state_steps[-1]}, {len(state_steps)} states",
    )


def _percent(share: float) -> str:
    """Return a percentage that reads 100 only if it is all."""
    return f"{share:.3g}%" if share < 99.5 else f"{share:.6g}%"
