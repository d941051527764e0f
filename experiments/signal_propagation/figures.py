"""Figures and table rows that the parts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.signal_propagation.measure import Row
from experiments.signal_propagation.options import Network
from jaxcnn import plots

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
