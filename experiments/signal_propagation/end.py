"""After training: figure 7 of the paper, gradient and rank."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from experiments._common import display_names
from experiments.signal_propagation import measure, no_batch_norm
from experiments.signal_propagation.measure import NetworkRows
from experiments.signal_propagation.options import Network, Options
from jaxcnn import plots, tables

check = measure.check_runs
MAX_LINEAR_RATIO = 5
"""Greatest ratio of maximum to median on a linear axis."""


def run(options: Options, stop: Any) -> bool:
    """Measure the start and the end of every run.

    Returns:
      False if it was stopped on the way.
    """
    measure_state = partial(measure.layer_signals, train=options.mode == "train")
    return measure.measure_runs(options, stop, "end", measure_state, path=False)


def draw(options: Options) -> list[dict[str, Any]]:
    """Write the figures `std`, `gradient` and `rank`, and the table.

    Returns:
      Rows of the common table.
    """
    folder = options.out / "end"
    networks = list(measure.read_all(folder).values())
    ends = [(head, last_rows(rows)) for head, rows in networks]
    first_seeds = [
        item
        for item in networks
        if item[0]["net"]["seed"] == min(head["net"]["seed"] for head, _ in networks)
    ]
    first_seeds.sort(key=lambda item: not item[0]["net"]["batch_norm"])
    request = networks[0][0]["request"]
    bn_text = "their own moments" if request["mode"] == "train" else "moving averages"
    setting = networks[0][0]["what"]
    images_text = f"measured on {request['images']} training images, responses with BN by {bn_text}"
    options.save(
        responses_figure(
            [(head, last_rows(rows)) for head, rows in first_seeds],
            display_names(f"After training: {setting}"),
        ),
        folder / "std",
    )
    for key in ("gradient", "rank"):
        title = display_names(f"Before and after training: {setting}")
        options.save(change_figure(first_seeds, key, title), folder / key)
    table = [measure.table_row(head, rows) for head, rows in ends]
    tables.write_table(
        folder,
        table,
        [
            *measure.column_notes(f"{setting}; {images_text}"),
            *findings(ends),
            *no_batch_norm.rate_note(options.out / "trials"),
        ],
    )
    return table


def last_rows(rows: Sequence[measure.Row]) -> list[measure.Row]:
    """Return the rows of the newest step."""
    newest = max(row["step"] for row in rows)
    return [row for row in rows if row["step"] == newest]


def responses_figure(networks: Sequence[NetworkRows], title: str) -> Any:
    """Return figure 7: the std of responses by layer.

    Layers are in order above, and ranked below. Networks without BN are on the right, on axes of
    their own.
    """
    panels = []
    for ranked in (False, True):
        for batch_norm in (True, False):
            lines = [
                _line(head, rows, ranked)
                for head, rows in networks
                if head["net"]["batch_norm"] == batch_norm
            ]
            name = (
                f"{'with' if batch_norm else 'without'} BN, "
                f"{'ranked by magnitude' if ranked else 'in order'}"
            )
            xlabel = "rank of the layer" if ranked else "layer"
            axes: dict[str, Any] = {"xlabel": xlabel, "ylabel": measure.QUANTITIES["std"]}
            panels += [plots.Panel(name, lines, **axes, **_axis_scale(lines))] if lines else []
    return plots.panels(panels, columns=2, share="none", size=(5.4, 3.4), title=title)


def _axis_scale(lines: Sequence[plots.Line]) -> dict[str, Any]:
    """Return limits from 0, as in the paper, or a logarithmic axis.

    The axis is logarithmic where the largest value would flatten the others.
    """
    values = [value for line in lines for value in line.y if value]
    if values and max(values) < MAX_LINEAR_RATIO * float(np.median(values)):
        return {"ylim": (0, 1.08 * max(values))}
    return {"ylog": True}


def _line(head: measure.Row, rows: Sequence[measure.Row], ranked: bool) -> plots.Line:
    network, values = Network(**head["net"]), measure.nonzero_values(rows, "std")
    values = sorted(values, key=lambda value: -(value or 0)) if ranked else values
    return plots.Line(
        range(1, len(values) + 1), values, label=network.label, dashed=not network.residual
    )


def change_figure(networks: Sequence[NetworkRows], key: str, title: str) -> Any:
    """Return a quantity by layer before and after training.

    Each network has a panel.
    """
    panels = []
    for name in dict.fromkeys(Network(**head["net"]).label for head, _ in networks):
        lines = []
        for head, rows in (item for item in networks if Network(**item[0]["net"]).label == name):
            batch_norm = head["net"]["batch_norm"]
            for part_rows, is_start in (
                (rows[: len(last_rows(rows))], True),
                (last_rows(rows), False),
            ):
                label = (
                    f"{'with' if batch_norm else 'without'} BN, "
                    f"{'before' if is_start else 'after'} training"
                )
                style: dict[str, Any] = {
                    "dashed": is_start,
                    "color": plots.COLORS[0 if batch_norm else 1],
                }
                x, y = [row["index"] for row in part_rows], measure.nonzero_values(part_rows, key)
                lines.append(plots.Line(x, y, label=label, **style))
        panels.append(plots.Panel(name, lines, (), "layer", measure.QUANTITIES[key], ylog=True))
    return plots.panels(panels, columns=2, share="y", size=(5.0, 3.2), title=title)


def findings(ends: Sequence[NetworkRows]) -> list[str]:
    """Return sentences that compare the responses with the paper's claims.

    Runs that diverged are listed as well.
    """
    heads = [(Network(**head["net"]), head) for head, _ in ends]
    divergences = [
        f"{network.label} without BN diverged at step {head['diverged']}."
        for network, head in heads
        if head["diverged"]
    ]
    by_depth: dict[bool, dict[int, list[float]]] = {True: {}, False: {}}
    for head, rows in ends:
        network, stds = Network(**head["net"]), [row["std"] for row in rows]
        if network.batch_norm and None not in stds:
            by_depth[network.residual].setdefault(network.depth, []).append(float(np.mean(stds)))
    means = {
        residual: {depth: float(np.mean(stds)) for depth, stds in part.items()}
        for residual, part in by_depth.items()
    }
    return [*_compare_means(means[False], means[True]), *divergences]


def _compare_means(plain: dict[int, float], residual: dict[int, float]) -> list[str]:
    depths = sorted(plain.keys() & residual.keys())
    sentences = [
        f"Mean std of responses at depth {depth}: plain {plain[depth]:.3f}, residual "
        f"{residual[depth]:.3f}; smaller in the residual network, as in the paper: "
        f"{'yes' if residual[depth] < plain[depth] else 'no'}."
        for depth in depths
    ]
    if len(residual) > 1:
        shallow, deep = min(residual), max(residual)
        sentences.append(
            f"Smaller in the deeper residual network, as in the paper ({residual[deep]:.3f} at "
            f"depth {deep}, {residual[shallow]:.3f} at depth {shallow}): "
            f"{'yes' if residual[deep] < residual[shallow] else 'no'}."
        )
    return sentences
