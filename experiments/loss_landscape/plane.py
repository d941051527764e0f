"""The loss on the plane of two random directions, filter-normalised: contours, and mountains."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments.loss_landscape import kept
from experiments.loss_landscape.line import random, reach
from experiments.loss_landscape.options import Options, asked
from experiments.loss_landscape.sweep import Job, sweep
from jaxcnn import plots, tables
from jaxcnn.loss_landscape import cosine_similarity


def check(options: Options) -> None:
    """ArgumentError for a setting that cannot be meant."""
    plane = options.plane
    if plane.points < 3 or plane.points % 2 == 0:
        raise jc.ArgumentError(
            f"plane.points is {plane.points}; expected an odd number of at least 3: write --plane.points 15"
        )
    if not plane.multiple > 1:
        raise jc.ArgumentError(f"plane.multiple is {plane.multiple}; expected more than 1: write --plane.multiple 2")
    if not plane.most > 0:
        raise jc.ArgumentError(f"plane.most is {plane.most}; expected a loss above 0: write --plane.most 1000")
    reach("plane", plane.reach)


def run(options: Options, stop: Any) -> bool:
    """Measure what is missing; False when stopped on the way."""
    plane = options.plane
    x = np.linspace(-plane.reach, plane.reach, plane.points)

    def job(network: str) -> Job:
        def ways():
            pair = [random(options, network, number) for number in (0, 1)]
            return pair, {"x": x, "y": x, "cosine": np.array(cosine_similarity(*pair))}

        settings = {key: value for key, value in asdict(plane).items() if key not in ("multiple", "most")}
        path = options.out / "plane" / f"{network}.npz"
        return Job(network, path, asked(options, network, settings), ways, plane.points**2)

    return sweep(options, [job(network) for network in options.networks], stop)


def draw(options: Options) -> dict[str, dict[str, Any]]:
    """`planes.png`, `terrain.png` and the table; returns columns of the common table for each network."""
    found = kept.every(options.out, "plane")
    fields = [_field(name, each) for name, each in found.items()]
    what = kept.setting(next(iter(found.values())))
    how: dict[str, Any] = {"label": "training loss (nats)", "title": f"Planes of two random directions: {what}"}
    how["max_level"] = options.plane.most
    plots.save(plots.contours(fields, **how), options.out / "plane" / "planes.png")
    plots.save(plots.surfaces_3d(fields, **how), options.out / "plane" / "terrain.png")
    rows = {name: row(each, options.plane.multiple) for name, each in found.items()}
    notes = [
        f"{what}. Shares of the plane (percent of its points) where the loss is below {options.plane.multiple:g} times that in "
        "the middle, and below that of guessing, ln(classes). cosine: between the two directions."
    ]
    tables.write_table(options.out / "plane", [{"network": name} | row for name, row in rows.items()], notes)
    return {name: {key: value for key, value in row.items() if key.startswith("area")} for name, row in rows.items()}


def _field(name: str, each: kept.Kept) -> plots.Field:
    x, y, loss = (each.arrays[key] for key in ("x", "y", "loss"))
    return plots.Field(kept.title(name), x, y, loss, "direction 1 (filter norms)", "direction 2 (filter norms)")


def row(each: kept.Kept, multiple: float) -> dict[str, Any]:
    """How much of the plane is low, in percent, and how high it goes."""
    loss = each.arrays["loss"]
    middle, classes = float(loss[loss.shape[0] // 2, loss.shape[1] // 2]), int(each.asked["classes"])
    shares = {f"area_below_{multiple:g}x": multiple * middle, "area_below_guessing": math.log(classes)}
    line = {name: 100 * float((loss < level).mean()) for name, level in shares.items()}
    greatest = float(np.where(np.isfinite(loss), loss, -np.inf).max())
    return {"loss": middle} | line | {"greatest": greatest, "cosine": float(each.arrays["cosine"])}
