"""Figures and table rows that the parts share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.signal_propagation.measure import Row
from experiments.signal_propagation.options import Network
from jaxcnn import plots
from jaxcnn.plots.style import LABEL, SMALL, TICK, new_figure, style_axes

NetworkRows = tuple[Row, list[Row]]
"""Head of a network's file, and the rows of its layers."""
QUANTITIES = {
    "std": "std of responses",
    "gradient": "gradient norm",
    "rank": "effective rank",
}
"""Key of a row -> label of the axis."""
KINDS = ("plain, with BN", "residual, with BN", "plain, without BN", "residual, without BN")
"""Panels in their order: the values of `Network.kind`."""
DEPTH_COLORS = ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#000000")
"""Colors of lines, in the order of depths."""


def gradient_growth(rows: Sequence[Row]) -> float | None:
    """Return the growth of the gradient's norm per layer.

    It is the geometric mean of the factor from a convolution to the one before it.
    """
    first, last = rows[0]["gradient"], rows[-1]["gradient"]
    return (first / last) ** (1 / (len(rows) - 1)) if first and last and len(rows) > 1 else None


def nonzero_values(rows: Sequence[Row], key: str) -> list[float | None]:
    """Return a quantity by layer for a logarithmic axis.

    A value of 0 becomes None, a gap.
    """
    return [row[key] or None for row in rows]


def table_row(head: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """Return a row of the table: a network's first and last convolution."""
    network, first, last = Network(**head["net"]), rows[0], rows[-1]
    row: dict[str, Any] = {
        "network": network.label,
        "bn": "yes" if network.batch_norm else "no",
        "seed": network.seed,
    }
    row |= {"step": first["step"], "rate": head.get("rate")}
    for key in ("std", "gradient"):
        row |= {f"{key}_first": first[key], f"{key}_last": last[key]}
    both_nonzero = first["gradient"] and last["gradient"]
    row |= {
        "gradient_ratio": first["gradient"] / last["gradient"] if both_nonzero else None,
        "a_layer": gradient_growth(rows),
    }
    row |= {
        "rank_first": first["rank"],
        "rank_last": last["rank"],
        "cosine_last": last["similarity"],
    }
    row |= {key: head.get(key) for key in ("eval_error", "eval_split")}
    return row | {"diverged_at": head.get("diverged")}


def column_notes(setting: str) -> list[str]:
    """Return the explanation of the table's columns."""
    return [
        f"{setting}. First and last are 3x3 convolutions. std: of the response, after BN and "
        "before ReLU or addition, over images, places and channels; gradient: Euclidean norm of "
        "the training loss's gradient by the kernel, BN in training mode; ratio: first by last, "
        "and its geometric mean a layer; rank: the effective rank of the responses to the images "
        "(at most their number), not centred; cosine: the mean over pairs of images, 1 where all "
        "responses point the same way; error in percent."
    ]


def layer_panels(networks: Sequence[NetworkRows], key: str, label: str, title: str) -> Any:
    """Return a quantity by layer, a panel for each kind of network.

    The kinds are plain and residual networks with and without BN. Each depth has a line.
    """
    depths = sorted({head["net"]["depth"] for head, _ in networks})
    panels = []
    for kind in KINDS:
        lines = []
        for head, rows in networks:
            network = Network(**head["net"])
            if network.kind != kind:
                continue
            x, name = [row["index"] for row in rows], f"{network.depth} layers"
            color = DEPTH_COLORS[depths.index(network.depth) % len(DEPTH_COLORS)]
            if key == "std" and head.get("theory"):
                style = {
                    "label": "wide layers, in theory",
                    "color": "0.6",
                    "dashed": True,
                    "width": 1.2,
                }
                # The theory lies behind the measurements.
                lines.insert(0, plots.Line(x, head["theory"], **style))
            lines.append(
                plots.Line(x, nonzero_values(rows, key), label=name, color=color, width=1.6)
            )
        axes: dict[str, Any] = {"xlabel": "layer", "ylabel": label, "ylog": True}
        panels += [plots.Panel(kind, lines, **axes)] if lines else []
    return plots.panels(panels, columns=2, size=(5.0, 3.4), title=title)


COLORMAP = "viridis"
DECADES = 10
"""Most powers of ten that the colors span.

Smaller values have the darkest color.
"""


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
    size: tuple[float, float] = (3.3, 2.9),
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
    style_axes(axis, panel.title, width=width)
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
