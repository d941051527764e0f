"""The loss along several random directions, filter-normalised, to both sides of the last state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

import jaxcnn as jc
from experiments.loss_landscape import kept
from experiments.loss_landscape.options import Options, asked, opened
from experiments.loss_landscape.sweep import Job, sweep
from jaxcnn import plots, tables
from jaxcnn.loss_landscape import cosine_similarity, random_direction


def check(options: Options) -> None:
    """ArgumentError for a setting that cannot be meant."""
    line = options.line
    if line.directions < 1:
        raise jc.ArgumentError(f"line.directions is {line.directions}; expected at least 1: write --line.directions 3")
    if line.points < 5 or line.points % 4 != 1:
        raise jc.ArgumentError(f"line.points is {line.points}; expected 4 n + 1, at least 5: write --line.points 21")
    reach("line", line.reach)


def reach(part: str, value: float) -> None:
    """ArgumentError unless it is a finite length."""
    if not 0 < value < float("inf"):
        raise jc.ArgumentError(f"{part}.reach is {value}; expected a finite length above 0: write --{part}.reach 1")


def random(options: Options, network: str, number: int) -> Any:
    """The network's direction of that number; the planes are of the first two."""
    key = jax.random.fold_in(jax.random.key(options.draw_seed), number)
    return random_direction(key, opened(options, network).last.params)


def jobs(options: Options) -> list[Job]:
    """A line for each network and direction, all networks' first one first."""
    line = options.line
    x = np.linspace(-line.reach, line.reach, line.points)

    def job(network: str, number: int) -> Job:
        settings = {key: value for key, value in asdict(line).items() if key != "directions"} | {"direction": number}
        path = options.out / "line" / f"{network}-direction{number}.npz"

        def ways():
            way = random(options, network, number)
            beside = cosine_similarity(way, random(options, network, 0)) if number else 1.0
            return [way], {"x": x, "cosine": np.array(beside)}

        return Job(network, path, asked(options, network, settings), ways, line.points)

    return [job(network, number) for number in range(line.directions) for network in options.networks]


def run(options: Options, stop: Any) -> bool:
    """Measure what is missing; False when stopped on the way."""
    return sweep(options, jobs(options), stop)


def draw(options: Options) -> dict[str, dict[str, Any]]:
    """`lines.png` and the table; returns columns of the common table for each network."""
    found = kept.every(options.out, "line")
    groups: dict[str, list[kept.Kept]] = {}
    for name, each in found.items():
        groups.setdefault(kept.network(name), []).append(each)
    rows = {name: row(group) for name, group in groups.items()}
    first = next(iter(found.values()))
    n = max(map(len, groups.values()))
    notes = [
        f"{kept.setting(first)}. Losses in nats at these distances (filter norms) from the end: the mean over {n} random "
        "directions and both sides of each, and the least and the greatest of these. "
        "cosine: the greatest, in size, between the first direction and another."
    ]
    tables.write_table(options.out / "line", [{"network": name} | row for name, row in rows.items()], notes)
    plots.save(_figure(groups, kept.setting(first)), options.out / "line" / "lines.png")
    return {name: {key: value for key, value in row.items() if key != "cosine"} for name, row in rows.items()}


def row(group: list[kept.Kept]) -> dict[str, Any]:
    """The losses in the middle, half way and at the ends."""
    losses = np.array([each.arrays["loss"] for each in group])  # [directions, m]
    errors, far = np.array([each.arrays["error"] for each in group]), float(group[0].arrays["x"][-1])
    middle, quarter = losses.shape[1] // 2, losses.shape[1] // 4
    line: dict[str, Any] = {"loss": float(losses[0, middle]), "train_error": float(errors[0, middle])}
    for share, at in ((0.5, [quarter, -1 - quarter]), (1.0, [0, -1])):
        there, name = losses[:, at], f"loss_at_{share * far:g}"
        line |= {name: float(there.mean()), f"{name}_range": f"{there.min():.3g} to {there.max():.3g}"}
    cosines = [abs(float(each.arrays["cosine"])) for each in group[1:]]
    return line | {"cosine": max(cosines) if cosines else None}


def _figure(groups: Mapping[str, list[kept.Kept]], what: str) -> Any:
    panels = []
    for key, ylabel in (("loss", "training loss (nats)"), ("error", "training error (%)")):
        lines = [_band(kept.title(name), group, key) for name, group in groups.items()]
        panels.append(plots.Panel("", lines, (), "distance (filter norms)", ylabel, ylog=key == "loss"))
    title = f"Along random directions, mean and range: {what}"
    return plots.panels(panels, columns=2, share="x", size=(5.6, 4.2), title=title)


def _band(label: str, group: list[kept.Kept], key: str) -> plots.Line:
    values = np.array([each.arrays[key] for each in group])
    with np.errstate(invalid="ignore"):
        return plots.Line(group[0].arrays["x"], values.mean(0), values.min(0), values.max(0), label=label)
