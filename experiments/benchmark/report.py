"""Columns of a network from its timings, and the report."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments._common import FigureOptions
from experiments.benchmark.timing import Peak
from jaxcnn import parallel, tables
from jaxcnn.plots.roofline import roofline
from jaxcnn.provenance import cores, processor
from jaxcnn.run_log import write_text

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
ENVIRONMENT_VARIABLES = ("XLA_FLAGS", "GLIBC_TUNABLES")
Timings = Mapping[str, Sequence[float]]
"""Seconds of each round, by the name of the run.

The names are "train", "bare", "inputs" and those of PyTorch's forms.
"""
PRINTED_COLUMNS = {
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
"""Heading, format and width of the columns that are printed. The files have all columns."""


class StepCounts(NamedTuple):
    """Sizes of a step, by arithmetic and by the compiler."""

    batch_size: int
    """Images a step, over all devices."""
    num_steps: int
    """Steps of each measurement."""
    devices: int
    flop: int
    """Of one image."""
    memory: int | None
    """Bytes on each device, as planned."""
    traffic: float | None
    """Bytes a step on each device, as planned."""


class Quartiles(NamedTuple):
    """A median and its quartiles."""

    median: float
    low: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the median and the quartiles of `values`, interpolated linearly.

    Example:
      >>> quartiles([3.0, 1.0, 2.0])
      Quartiles(median=2.0, low=1.5, high=2.5)
    """
    return Quartiles(*(float(np.quantile(values, q)) for q in (0.5, 0.25, 0.75)))


def timing_columns(timings: Timings, counts: StepCounts, peak: Peak) -> dict[str, Any]:
    """Return rates, shares and, where PyTorch was timed, the ratio to it.

    Ratios are taken within a round, whose measurements are next to each other in time. Their median
    is reported.
    """
    images = counts.batch_size * counts.num_steps
    train_rate, bare_rate = (
        quartiles([images / seconds for seconds in timings[name]]) for name in ("train", "bare")
    )
    overhead = quartiles([100 * (a / b - 1) for a, b in _pairs(timings, "train", "bare")])
    inputs = quartiles([100 * a / b for a, b in _pairs(timings, "inputs", "bare")])
    row: dict[str, Any] = {
        "images_per_second": train_rate.median,
        "q25": train_rate.low,
        "q75": train_rate.high,
        "rounds": len(timings["train"]),
        "steps_a_round": counts.num_steps,
        "bare_images_per_second": bare_rate.median,
        "overhead_percent": overhead.median,
        "overhead_q25": overhead.low,
        "overhead_q75": overhead.high,
        "inputs_percent": inputs.median,
    }
    roofline_columns = _roofline_columns(train_rate.median, counts, peak)
    return row | roofline_columns | _pytorch_columns(timings, images)


def _pairs(timings: Timings, a: str, b: str) -> list[tuple[float, float]]:
    return list(zip(timings[a], timings[b], strict=True))


def _roofline_columns(images_per_second: float, counts: StepCounts, peak: Peak) -> dict[str, Any]:
    """Return the network's position under the roofs.

    The attainable rate is the peak, or the bandwidth times FLOP a byte if that is less.
    """
    gflops, traffic = 1e-9 * counts.flop * images_per_second, counts.traffic
    row: dict[str, Any] = {
        "gflop_an_image": 1e-9 * counts.flop,
        "gflops": gflops,
        "peak_gflops": peak.gflops,
        "peak_percent": 100 * gflops / peak.gflops,
        "copy_gb_per_second": peak.bandwidth,
        "traffic_mib": traffic / 2**20 if traffic else None,
        "flop_a_byte": None,
        "roof_percent": None,
        "planned_mib": counts.memory / 2**20 if counts.memory else None,
    }
    if traffic:
        intensity = counts.flop * counts.batch_size / counts.devices / traffic
        attainable = min(peak.gflops, peak.bandwidth * intensity)
        row |= {"flop_a_byte": intensity, "roof_percent": 100 * gflops / attainable}
    return row


def _pytorch_columns(timings: Timings, images: int) -> dict[str, Any]:
    """Return the columns of PyTorch's forms that were timed.

    The best form is the one with the smallest median ratio.
    """
    forms = [name for name in timings if name not in ("train", "bare", "inputs")]
    if not forms:
        return {}
    ratios = {form: quartiles([b / a for a, b in _pairs(timings, "train", form)]) for form in forms}
    best = min(forms, key=lambda form: ratios[form].median)
    row: dict[str, Any] = {
        "over_pytorch": ratios[best].median,
        "over_pytorch_q25": ratios[best].low,
        "over_pytorch_q75": ratios[best].high,
        "best_form": best,
    }
    for form in forms:
        row[f"pytorch_{form}"] = quartiles([images / s for s in timings[form]]).median
    return row


def format_row(row: Mapping[str, Any] | None, columns: Sequence[str]) -> str:
    """Return a row as a line of the aligned table.

    Args:
      row: values by column. None gives the headings. A value of None is a dash.
      columns: keys of `PRINTED_COLUMNS`.
    """
    cells = []
    for name in columns:
        heading, template, width = PRINTED_COLUMNS[name]
        if row is None:
            cell = heading
        elif row.get(name) is None:
            cell = "-"
        else:
            cell = template.format(row[name])
        alignment = "<" if name in ("network", "best_form") else ">"
        cells.append(f"{cell:{alignment}{width}}")
    return " ".join(cells).rstrip()


def write_report(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    peak: Peak,
    machine: str,
    notes: Sequence[str],
    figures: FigureOptions,
) -> None:
    """Write `table.csv`, `table.md` and the figure `roofline` of all rows so far.

    Args:
      out: the folder.
      rows: a row for each network. Columns that a row lacks are None.
      peak: the roofs.
      machine: the line of `describe_machine`, which each file contains.
      notes: lines below the table.
      figures: with the format of the figure.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    complete = [{name: row.get(name) for name in columns} for row in rows]
    tables.write_table(out, [row | {"machine": machine} for row in complete])
    footer = "".join(f"\n{note}\n" for note in (*notes, machine))
    write_text(out / "table.md", tables.compact_markdown(complete) + footer)
    points = {
        row["network"]: (row["flop_a_byte"], row["gflops"]) for row in rows if row["flop_a_byte"]
    }
    if points:
        title = f"Training in {rows[0]['dtype']} under the roofline of the machine"
        # The processor and the date; the tables have the versions too.
        note = "; ".join(dict.fromkeys((machine.split("; ")[0], machine.split("; ")[-1])))
        figure = roofline(
            points, peak=peak.gflops, bandwidth=peak.bandwidth, title=title, note=note
        )
        figures.save(figure, out / "roofline")


def describe_machine(strategy: parallel.Strategy) -> str:
    """Return one line for every file.

    It has device, cores, versions, what the environment sets, and the date.
    """
    device = strategy.devices[0]
    name = processor() if device.platform == "cpu" else device.device_kind
    count = f"{len(strategy.devices)} devices, " if len(strategy.devices) > 1 else ""
    versions = [f"{package} {number}" for package in PACKAGES if (number := _version(package))]
    variables = [f"{key}={os.environ[key]}" for key in ENVIRONMENT_VARIABLES if os.environ.get(key)]
    packages = ", ".join([f"Python {platform.python_version()}", *versions])
    hardware = f"{name}, {count}{cores()} cores"
    return "; ".join([hardware, packages, *variables, str(date.today())])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
