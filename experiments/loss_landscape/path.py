"""The way that training took, in the plane of its first two principal components (section 7.2)."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments.loss_landscape import kept
from experiments.loss_landscape.options import Options, asked, data, folder
from experiments.loss_landscape.sweep import Job, sweep
from jaxcnn import plots, runs, tables
from jaxcnn.loss_landscape import pca_plane

STATES = 4
"""At least, for a path: the start, the end and two between them. Fewer make a plane of any two directions."""


def check(options: Options) -> None:
    """ArgumentError for a setting that cannot be meant."""
    way = options.path
    if way.points < 3:
        raise jc.ArgumentError(f"path.points is {way.points}; expected at least 3: write --path.points 13")
    if not 0 <= way.margin < float("inf"):
        raise jc.ArgumentError(f"path.margin is {way.margin}; expected a share of at least 0: write --path.margin 0.25")
    if way.first < 0:
        raise jc.ArgumentError(f"path.first is {way.first}; expected a step of at least 0: write --path.first 0")


def steps(options: Options, network: str) -> list[int]:
    """Of the states that the run has kept, and its start, from `--path.first` on."""
    with jc.Checkpoints(folder(options, network) / "checkpoints") as saved:
        return [step for step in sorted({0, *saved.steps()}) if step >= options.path.first]


def run(options: Options, stop: Any) -> bool:
    """Measure what is missing; False when stopped on the way. A run without states on the way is told and left out."""
    todo = []
    for network in options.networks:
        there = steps(options, network)
        if len(there) < STATES:
            print(
                f"path: {folder(options, network)} has {len(there)} states from step {options.path.first} on, and a path takes "
                f"{STATES}; left out (python -m experiments.depth --keep-every 25 keeps them)",
                file=sys.stderr,
            )
            continue
        settings = asdict(options.path) | {"steps": there}
        path = options.out / "path" / f"{network}.npz"
        ways = _ways(options, network)
        todo.append(Job(network, path, asked(options, network, settings), ways, options.path.points**2))
    return sweep(options, todo, stop)


def _ways(options: Options, network: str) -> Any:
    """The plane, found when it is asked for: it takes all states."""

    def ways():
        run = runs.load_trained_model(folder(options, network), data=data(options, network), path=True)
        plane = pca_plane([state for step, state in run.states.items() if step >= options.path.first])
        grid = dict(zip("xy", map(_grid(options), plane.path.T), strict=True))
        return list(plane.directions), grid | {"path": plane.path, "explained": plane.explained}

    return ways


def _grid(options: Options) -> Any:
    def around(values: np.ndarray) -> np.ndarray:
        more = options.path.margin * np.ptp(values)
        return np.linspace(values.min() - more, values.max() + more, options.path.points)

    return around


def draw(options: Options) -> dict[str, dict[str, Any]]:
    """`path.png` and the table; returns columns of the common table for each network."""
    if not any((options.out / "path").glob("*.npz")):
        return {}
    found = kept.every(options.out, "path")
    what, first = kept.setting(next(iter(found.values()))), next(iter(found.values())).asked["settings"]
    how: dict[str, Any] = {"label": "training loss (nats)", "share": False, "columns": 2}
    title = f"The path of training in its principal plane: {what}"
    plots.save(
        plots.contours([_field(name, each) for name, each in found.items()], title=title, **how),
        options.out / "path" / "path.png",
    )
    rows = {name: row(each) for name, each in found.items()}
    bn = {"images": "the images' own moments", "moving": "the last state's moving averages"}[first["statistics"]]
    notes = [
        f"{what}; states {first['steps']}. Shares of the path's variance along its first two principal components, in percent; "
        f"distances are Euclidean, of all parameters. In the plane BN goes by {bn}."
    ]
    tables.write_table(options.out / "path", [{"network": name} | row for name, row in rows.items()], notes)
    return {name: {"explained": row["explained"]} for name, row in rows.items()}


def row(each: kept.Kept) -> dict[str, Any]:
    """How flat the path is, and how long."""
    shares, path = 100 * each.arrays["explained"], each.arrays["path"]
    line = {"states": len(path), "explained": float(shares.sum())}
    line |= {f"explained_{i + 1}": float(share) for i, share in enumerate(shares)}
    return line | {"start_to_end": float(np.hypot(*path[0])), "first_step": float(np.hypot(*(path[1] - path[0])))}


def _field(name: str, each: kept.Kept) -> plots.Field:
    x, y, loss, path = (each.arrays[key] for key in ("x", "y", "loss", "path"))
    shares = (_percent(100 * share) for share in each.arrays["explained"])
    x_label, y_label = [f"PC {i + 1}: distance ({share} of variance)" for i, share in enumerate(shares)]
    there = each.asked["settings"]["steps"]
    return plots.Field(
        kept.title(name), x, y, loss, x_label, y_label, path, f"steps {there[0]} to {there[-1]}, {len(there)} states"
    )


def _percent(share: float) -> str:
    """With as many digits as keep what is not all from looking so."""
    return f"{share:.3g}%" if share < 99.5 else f"{share:.6g}%"
