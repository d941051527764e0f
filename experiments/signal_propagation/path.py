"""Through training: the gradient's norm by layer and step."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.signal_propagation import measure, reading
from experiments.signal_propagation.networks import Net
from experiments.signal_propagation.options import Options
from experiments.signal_propagation.picture import Map, maps
from jaxcnn import plots, tables

check = reading.check


def run(options: Options, stop: Any) -> bool:
    """Measure every state of every run; False when stopped on the way."""
    return reading.run(options, stop, "path", measure.gradients, path=True)


def draw(options: Options) -> list[dict[str, Any]]:
    """`gradient.png` and the table, from what is measured; nothing for the common table."""
    folder = options.out / "path"
    found = list(measure.everything(folder).values())
    firsts = [one for one in found if one[0]["net"]["seed"] == min(head["net"]["seed"] for head, _ in found)]
    head = firsts[0][0]
    title = f"{head['what']}: gradient norm by layer and step"
    panels = [_map(head, rows) for head, rows in sorted(firsts, key=lambda one: not one[0]["net"]["batch_norm"])]
    columns = sum(one[0]["net"]["batch_norm"] for one in firsts)
    plots.save(maps(panels, columns=columns, label="gradient norm", title=title), folder / "gradient.png")
    lines = [line for head, rows in found for line in ratios(head, rows)]
    images = f"{head['asked']['images']} training images"
    tables.write_table(folder, lines, [f"{title}, on {images}: the first and the last 3x3 convolution, first by last."])
    return []


def _map(head: measure.Row, rows: list[measure.Row]) -> Map:
    kind = Net(**head["net"])
    steps, values = table(rows)
    return Map(f"{kind.label}, {'with' if kind.batch_norm else 'without'} BN", steps, values, head["diverged"])


def table(rows: list[measure.Row]) -> tuple[list[int], np.ndarray]:
    """The steps, and the gradient's norm, float64 [layers, steps], nan where it was not finite."""
    steps = sorted({row["step"] for row in rows})
    layers = max(row["index"] for row in rows)
    values = np.full((layers, len(steps)), np.nan)
    for row in rows:
        if row["gradient"] is not None:
            values[row["index"] - 1, steps.index(row["step"])] = row["gradient"]
    return steps, values


def ratios(head: measure.Row, rows: list[measure.Row]) -> list[dict[str, Any]]:
    """A line for every step of a network."""
    kind = Net(**head["net"])
    steps, values = table(rows)
    name = {"network": kind.label, "bn": "yes" if kind.batch_norm else "no", "seed": kind.seed}
    ends = zip(steps, values[0].tolist(), values[-1].tolist(), strict=True)
    return [name | {"step": step, "first": a, "last": b, "ratio": a / b if b else None} for step, a, b in ends]
