"""Seconds and counts as a line of the table; the tables and the figure of all lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmark.machine import Peak
from jaxcnn import plots, tables
from jaxcnn.plots.roofline import roofline
from jaxcnn.run_log import write_text

Seconds = Mapping[str, Sequence[float]]
"""name of what was timed -> seconds of each round; "fit", "bare", "inputs", and forms of PyTorch."""
PRINTED = {
    "network": ("network", "{}", 12),
    "images_per_second": ("images/s", "{:.4g}", 9),
    "overhead_percent": ("over bare", "{:+.1f}%", 10),
    "inputs_percent": ("inputs", "{:.1f}%", 7),
    "gflops": ("GFLOP/s", "{:.4g}", 8),
    "peak_percent": ("of peak", "{:.1f}%", 8),
    "roof_percent": ("of roof", "{:.1f}%", 8),
    "initialise_s": ("init s", "{:.2f}", 7),
    "first_step_cold_s": ("cold s", "{:.2f}", 7),
    "first_step_warm_s": ("warm s", "{:.2f}", 7),
    "planned_mib": ("MiB", "{:.4g}", 7),
    "over_pytorch": ("/ PyTorch", "{:.2f}", 10),
    "best_form": ("its best form", "{}", 14),
}
"""column -> its heading, form and width in what is printed; the files have all columns."""


class Counts(NamedTuple):
    """What a step is, by arithmetic and by the compiler."""

    batch: int
    """Images, over all devices."""
    steps: int
    """Of each measurement."""
    devices: int
    flop: int
    """Of one image."""
    memory: int | None
    """Bytes on each device, as planned."""
    traffic: float | None
    """Bytes a step on each device, as planned."""


class Spread(NamedTuple):
    """A median and its quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The median and the quartiles of `values`, linear between them.

    Example:
      >>> spread([3.0, 1.0, 2.0])
      Spread(median=2.0, low=1.5, high=2.5)
    """
    return Spread(*(float(np.quantile(values, q)) for q in (0.5, 0.25, 0.75)))


def line(took: Seconds, counts: Counts, peak: Peak) -> dict[str, Any]:
    """What follows from the seconds of the rounds: paces, shares and, where it was timed, the ratio to PyTorch.

    Ratios are taken within a round, whose measurements lie side by side, and their median is shown.
    """
    images = counts.batch * counts.steps
    pace, bare = (spread([images / s for s in took[name]]) for name in ("fit", "bare"))
    overhead = spread([100 * (a / b - 1) for a, b in _pairs(took, "fit", "bare")])
    made = spread([100 * a / b for a, b in _pairs(took, "inputs", "bare")])
    row: dict[str, Any] = {"images_per_second": pace.median, "q25": pace.low, "q75": pace.high}
    row |= {"rounds": len(took["fit"]), "steps_a_round": counts.steps, "bare_images_per_second": bare.median}
    row |= {"overhead_percent": overhead.median, "overhead_q25": overhead.low, "overhead_q75": overhead.high}
    row |= {"inputs_percent": made.median}
    return row | _roofs(pace.median, counts, peak) | _beside(took, images)


def _pairs(took: Seconds, one: str, other: str) -> list[tuple[float, float]]:
    return list(zip(took[one], took[other], strict=True))


def _roofs(pace: float, counts: Counts, peak: Peak) -> dict[str, Any]:
    """Where the network stands under the roofs: the most is the peak, or the bandwidth times FLOP a byte if that is less."""
    gflops, moved = 1e-9 * counts.flop * pace, counts.traffic
    row: dict[str, Any] = {"gflop_an_image": 1e-9 * counts.flop, "gflops": gflops}
    row |= {
        "peak_gflops": peak.gflops,
        "peak_percent": 100 * gflops / peak.gflops,
        "copy_gb_per_second": peak.bandwidth,
    }
    row |= {"traffic_mib": moved / 2**20 if moved else None, "flop_a_byte": None, "roof_percent": None}
    row |= {"planned_mib": counts.memory / 2**20 if counts.memory else None}
    if moved:
        intensity = counts.flop * counts.batch / counts.devices / moved
        most = min(peak.gflops, peak.bandwidth * intensity)
        row |= {"flop_a_byte": intensity, "roof_percent": 100 * gflops / most}
    return row


def _beside(took: Seconds, images: int) -> dict[str, Any]:
    """PyTorch's columns, of the forms that were timed; the best is the one that most rounds' ratios favour."""
    forms = [name for name in took if name not in ("fit", "bare", "inputs")]
    if not forms:
        return {}
    ratios = {form: spread([b / a for a, b in _pairs(took, "fit", form)]) for form in forms}
    best = min(forms, key=lambda form: ratios[form].median)
    row: dict[str, Any] = {"over_pytorch": ratios[best].median, "over_pytorch_q25": ratios[best].low}
    row |= {"over_pytorch_q75": ratios[best].high, "best_form": best}
    return row | {f"pytorch_{form}": spread([images / s for s in took[form]]).median for form in forms}


def printed(row: Mapping[str, Any] | None, columns: Sequence[str]) -> str:
    """A row as a line of the aligned table; None gives the headings. What is None in the row is a dash."""
    cells = []
    for name in columns:
        heading, form, width = PRINTED[name]
        value = heading if row is None else "-" if row.get(name) is None else form.format(row[name])
        cells.append(f"{value:<{width}}" if name in ("network", "best_form") else f"{value:>{width}}")
    return " ".join(cells).rstrip()


def write(out: Path, rows: Sequence[Mapping[str, Any]], peak: Peak, machine: str, notes: Sequence[str]) -> None:
    """`table.csv`, `table.md` and `roofline.png` of all rows so far; each says on which machine."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    whole = [{name: row.get(name) for name in columns} for row in rows]
    tables.write_table(out, [row | {"machine": machine} for row in whole])
    said = "".join(f"\n{note}\n" for note in (*notes, machine))
    write_text(out / "table.md", tables.markdown(whole) + said)
    dots = {row["network"]: (row["flop_a_byte"], row["gflops"]) for row in rows if row["flop_a_byte"]}
    if dots:
        title = f"Training in {rows[0]['dtype']}, under the machine's own roofs"
        figure = roofline(dots, peak=peak.gflops, bandwidth=peak.bandwidth, title=title, note=machine)
        plots.save(figure, out / "roofline.png")
