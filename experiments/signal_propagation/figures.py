"""The table's rows and the figures that parts have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.signal_propagation.measure import Row
from experiments.signal_propagation.networks import Net
from jaxcnn import plots

Measured = tuple[Row, list[Row]]
"""What a network's file holds: the head, and the rows of its layers."""
QUANTITIES = {
    "std": "std of responses",
    "gradient": "gradient norm",
    "rank": "effective rank",
}
"""Key of a row -> what the axis says."""
KINDS = ("plain, with BN", "residual, with BN", "plain, without BN", "residual, without BN")
DEPTHS = ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#000000")


def growth(rows: Sequence[Row]) -> float | None:
    """The mean factor (geometric) by which the gradient's norm grows from a convolution to the one before it."""
    first, last = rows[0]["gradient"], rows[-1]["gradient"]
    return (first / last) ** (1 / (len(rows) - 1)) if first and last and len(rows) > 1 else None


def positive(rows: Sequence[Row], key: str) -> list[float | None]:
    """A quantity by layer for a logarithmic axis, where a gradient of 0 is a gap."""
    return [row[key] or None for row in rows]


def line(head: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """One row of the table: the first and the last convolution of a network."""
    kind, first, last = Net(**head["net"]), rows[0], rows[-1]
    cells: dict[str, Any] = {"network": kind.label, "bn": "yes" if kind.batch_norm else "no", "seed": kind.seed}
    cells |= {"step": first["step"], "rate": head.get("rate")}
    for key in ("std", "gradient"):
        cells |= {f"{key}_first": first[key], f"{key}_last": last[key]}
    both = first["gradient"] and last["gradient"]
    cells |= {"gradient_ratio": first["gradient"] / last["gradient"] if both else None, "a_layer": growth(rows)}
    cells |= {"rank_first": first["rank"], "rank_last": last["rank"], "cosine_last": last["similarity"]}
    cells |= {key: head.get(key) for key in ("eval_error", "eval_split")}
    return cells | {"diverged_at": head.get("diverged")}


def notes(what: str) -> list[str]:
    """What the table's columns are."""
    return [
        f"{what}. First and last are 3x3 convolutions. std: of the response, after BN and before ReLU or addition, over "
        "images, places and channels; gradient: Euclidean norm of the training loss's gradient by the kernel, BN in training "
        "mode; ratio: first by last, and its geometric mean a layer; rank: the effective rank of the responses to the images "
        "(at most their number), not centred; cosine: the mean over pairs of images, 1 where all responses point the same "
        "way; error in percent."
    ]


def by_kind(found: Sequence[Measured], key: str, label: str, title: str) -> Any:
    """A quantity by layer, a panel for plain and residual networks with and without BN, a line for each depth."""
    depths = sorted({head["net"]["depth"] for head, _ in found})
    panels = []
    for kind in KINDS:
        lines = []
        for head, rows in found:
            net = Net(**head["net"])
            if net.kind != kind:
                continue
            x, name = [row["index"] for row in rows], f"{net.depth} layers"
            colour = DEPTHS[depths.index(net.depth) % len(DEPTHS)]
            if key == "std" and head.get("theory"):
                wide = {"label": "wide layers, in theory", "color": "0.6", "dashed": True, "width": 1.2}
                lines.insert(0, plots.Line(x, head["theory"], **wide))
            lines.append(plots.Line(x, positive(rows, key), label=name, color=colour, width=1.6))
        axes: dict[str, Any] = {"xlabel": "layer", "ylabel": label, "ylog": True}
        panels += [plots.Panel(kind, lines, **axes)] if lines else []
    return plots.panels(panels, columns=2, size=(5.0, 3.4), title=title)
