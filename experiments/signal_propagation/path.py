"""Through training: the gradient's norm by layer and step."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.signal_propagation import measure
from experiments.signal_propagation.figures import StepMap, step_maps
from experiments.signal_propagation.options import Network, Options
from jaxcnn import plots, tables

check = measure.check_runs


def run(options: Options, stop: Any) -> bool:
    """Measure every saved state of every run.

    Returns:
      False if it was stopped on the way.
    """
    return measure.measure_runs(options, stop, "path", measure.layer_gradients, path=True)


def draw(options: Options) -> list[dict[str, Any]]:
    """Write `gradient.png` and the table.

    Returns:
      No rows for the common table.
    """
    folder = options.out / "path"
    networks = list(measure.read_all(folder).values())
    first_seeds = [
        item
        for item in networks
        if item[0]["net"]["seed"] == min(head["net"]["seed"] for head, _ in networks)
    ]
    head = first_seeds[0][0]
    title = f"{head['what']}: gradient norm by layer and step"
    panels = [
        _step_map(head, rows)
        for head, rows in sorted(first_seeds, key=lambda item: not item[0]["net"]["batch_norm"])
    ]
    # Networks with BN fill the first row, their counterparts the second.
    columns = sum(item[0]["net"]["batch_norm"] for item in first_seeds)
    plots.save(
        step_maps(panels, columns=columns, label="gradient norm", title=title),
        folder / "gradient.png",
    )
    table = [row for head, rows in networks for row in ratio_rows(head, rows)]
    images_text = f"{head['asked']['images']} training images"
    tables.write_table(
        folder,
        table,
        [f"{title}, on {images_text}: the first and the last 3x3 convolution, first by last."],
    )
    return []


def _step_map(head: measure.Row, rows: list[measure.Row]) -> StepMap:
    network = Network(**head["net"])
    steps, values = gradient_table(rows)
    return StepMap(
        f"{network.label}, {'with' if network.batch_norm else 'without'} BN",
        steps,
        values,
        head["diverged"],
    )


def gradient_table(rows: list[measure.Row]) -> tuple[list[int], np.ndarray]:
    """Return the steps, and the gradient's norm by layer and step.

    The norms are float64 [layers, steps], nan where they were not finite.
    """
    steps = sorted({row["step"] for row in rows})
    layers = max(row["index"] for row in rows)
    values = np.full((layers, len(steps)), np.nan)
    for row in rows:
        if row["gradient"] is not None:
            values[row["index"] - 1, steps.index(row["step"])] = row["gradient"]
    return steps, values


def ratio_rows(head: measure.Row, rows: list[measure.Row]) -> list[dict[str, Any]]:
    """Return a row for every step of a network."""
    network = Network(**head["net"])
    steps, values = gradient_table(rows)
    name = {
        "network": network.label,
        "bn": "yes" if network.batch_norm else "no",
        "seed": network.seed,
    }
    ends = zip(steps, values[0].tolist(), values[-1].tolist(), strict=True)
    return [
        name | {"step": step, "first": first, "last": last, "ratio": first / last if last else None}
        for step, first, last in ends
    ]
