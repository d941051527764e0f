"""Numbers of several seeds as one row, and rows as a table in CSV and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from jaxcnn.log import write_text


class Summary(NamedTuple):
    """A sample's mean, its standard deviation (n - 1) and the half width of the mean's 95% interval (Student's t).

    What the sample is too small for is None: the mean of nothing, the spread of one.
    """

    mean: float | None
    std: float | None
    ci95: float | None


def summarise(values: Sequence[float]) -> Summary:
    """The summary of `values`.

    Example:
      >>> [round(x, 3) for x in summarise([1.0, 2.0, 3.0])]
      [2.0, 1.0, 2.484]
    """
    n = len(values)
    if not n:
        return Summary(None, None, None)
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(mean, None, None)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return Summary(mean, std, float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n))


def write_table(folder: Path, rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> None:
    """`table.csv` and `table.md` in `folder`: the keys of the rows are the columns; notes follow the Markdown table."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _cell(v, "") for k, v in row.items()} for row in rows)
    write_text(folder / "table.csv", out.getvalue())
    write_text(folder / "table.md", markdown(rows) + "".join(f"\n{note}\n" for note in notes))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table; None is a dash."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(v, "-") for v in row.values()] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(value, nothing):
    if value is None:
        return nothing
    return f"{value:.2f}" if isinstance(value, float) else str(value)
