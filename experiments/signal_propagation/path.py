"""Through training: the gradient's norm by layer and step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments._common import display_names
from experiments.signal_propagation import measure
from experiments.signal_propagation.options import Network, Options
from jaxcnn import tables
from jaxcnn.plots.style import LABEL, SMALL, TICK, new_figure, style_axes

check = measure.check_runs
COLORMAP = "viridis"
DECADES = 10
"""Most powers of ten that the colors span.

Smaller values have the darkest color.
"""


def run(options: Options, stop: Any) -> bool:
    """Measure every saved state of every run.

    Returns:
      False if it was stopped on the way.
    """
    return measure.measure_runs(options, stop, "path", measure.layer_gradients, path=True)


def draw(options: Options) -> list[dict[str, Any]]:
    """Write the figure `gradient` and the table.

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
    if columns == len(first_seeds):
        columns = math.ceil(columns / 2)
    figure_title = display_names(f"Gradient norm by layer and step: {head['what']}")
    options.save(
        step_maps(
            panels, columns=columns, label=measure.QUANTITIES["gradient"], title=figure_title
        ),
        folder / "gradient",
    )
    table = [row for head, rows in networks for row in ratio_rows(head, rows)]
    images_text = f"{head['request']['images']} training images"
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


class StepMap(NamedTuple):
    """Panel of a quantity by layer and step."""

    title: str
    steps: Sequence[int]
    """Steps [t], in increasing order."""
    values: np.ndarray
    """Values, float64 [layers, t], above 0; nan where there is none."""
    diverged: int | None = None
    """Step at which training diverged."""


def step_maps(
    panels: Sequence[StepMap],
    *,
    columns: int,
    label: str,
    title: str,
    size: tuple[float, float] = (2.9, 2.5),
) -> Any:
    """Return panels in rows, with one color bar for all.

    The layers of a panel go from the bottom up.

    Example:
      >>> panel = StepMap("plain-8", [0, 10, 20], np.ones((7, 3)))
      >>> figure = step_maps([panel], columns=1, label="gradient norm", title="")
      >>> figure.axes[0].get_xlabel()
      'step'
    """
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(columns * size[0] + 1.0, rows * size[1], title=title)
    lower, upper = color_limits([panel.values for panel in panels])
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        mesh = _draw_map(axis, panel, size[0], lower, upper)
        axis.set_xlabel("step", fontsize=LABEL)
        axis.set_ylabel("layer", fontsize=LABEL)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    colorbar = figure.colorbar(mesh, ax=axes.tolist(), pad=0.02, aspect=28, extend="both")
    colorbar.set_label(label, fontsize=LABEL)
    colorbar.ax.tick_params(labelsize=TICK)
    return figure


def color_limits(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the range of the colors.

    It leaves out a hundredth of the values at each end. It spans at most `DECADES` below the
    greatest.

    Example:
      >>> color_limits([np.array([[1e-30, 1.0, 10.0]])])[0] >= 1e-7
      True
    """
    finite = np.concatenate([array.ravel() for array in values])
    finite = finite[np.isfinite(finite) & (finite > 0)]
    if not finite.size:
        return 0.1, 1.0
    lower, upper = np.quantile(finite, (0.01, 0.99))
    return float(max(lower, upper / 10**DECADES)), float(max(upper, 1.01 * lower))


def _draw_map(axis: Any, panel: StepMap, width: float, lower: float, upper: float) -> Any:
    style_axes(axis, panel.title, panel_width=width)
    axis.grid(False)
    centers = np.asarray(panel.steps, np.float64)
    edges = (centers[1:] + centers[:-1]) / 2
    first, last = (edges[:1], edges[-1:]) if edges.size else (centers + 1, centers - 1)
    x_edges = np.concatenate([2 * centers[:1] - first, edges, 2 * centers[-1:] - last])
    y_edges = np.arange(len(panel.values) + 1) + 0.5
    masked = np.ma.masked_invalid(np.maximum(panel.values, np.finfo(np.float64).tiny))
    mesh = axis.pcolormesh(x_edges, y_edges, masked, cmap=COLORMAP, norm="log", rasterized=True)
    mesh.set_clim(lower, upper)
    if panel.diverged is not None:
        text_style: dict[str, Any] = {
            "ha": "center",
            "va": "center",
            "fontsize": SMALL + 1,
            "transform": axis.transAxes,
        }
        background = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        axis.text(
            0.5,
            0.5,
            f"diverged at\nstep {panel.diverged}",
            color="#C00000",
            bbox=background,
            **text_style,
        )
    return mesh
