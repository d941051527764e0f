"""Numbers of several seeds as one row, and rows as a table in CSV and Markdown."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.special import stdtrit  # `scipy.stats` would be a fifth of a script's imports

from jaxcnn.data.types import printable
from jaxcnn.run_log import write_text


class SeedStatistics(NamedTuple):
    """A sample's mean, its standard deviation (n - 1) and the half width of the mean's 95% interval (Student's t).

    What the sample is too small for is None: the mean of nothing, the spread of one.
    """

    mean: float | None
    std: float | None
    ci95: float | None


def seed_statistics(values: Sequence[float]) -> SeedStatistics:
    """The summary of `values`.

    Example:
      >>> [round(x, 3) for x in seed_statistics([1.0, 2.0, 3.0])]
      [2.0, 1.0, 2.484]
    """
    n = len(values)
    if not n:
        return SeedStatistics(None, None, None)
    mean = math.fsum(values) / n
    if n == 1:
        return SeedStatistics(mean, None, None)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return SeedStatistics(mean, std, float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n))


def turning_point(
    rows: Sequence[Mapping[str, Any]], key: str = "eval_loss", window: int = 3, margin: float = 0.05
) -> Mapping[str, Any] | None:
    """The row after which a curve that should fall gets worse: where validation turns; None while it has not.

    That is the first row at which the mean of `key` over the `window` rows around it (fewer at the ends) is lowest. The curve
    has turned if that mean ends higher by more than the share `margin` of its lowest.

    Args:
      rows: in the order of their steps. Those in which `key` is None or no finite number are passed over.
      key: of what is better when low: a loss or an error.
      window: an odd number of rows; 1 takes the curve as it is.
      margin: 0 calls any rise a turn.

    Raises:
      KeyError: for a row without the key.
      ValueError: for a window that is not odd, or a margin below 0.

    Example:
      >>> rows = [{"step": i, "eval_loss": loss} for i, loss in enumerate([2.0, 1.0, 0.6, 0.5, 0.7, 0.9])]
      >>> turning_point(rows), turning_point(rows[:4])
      ({'step': 3, 'eval_loss': 0.5}, None)

    References:
      Prechelt 1998, "Early stopping - but when?" (`margin` is the threshold of his generalisation loss).
    """
    if window < 1 or window % 2 == 0 or not margin >= 0:
        raise ValueError(f"window is {window} and margin {margin}; expected an odd number of rows and at least 0")
    known = [row for row in rows if row[key] is not None and math.isfinite(row[key])]
    values, half = [row[key] for row in known], window // 2
    near = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    smooth = [math.fsum(part) / len(part) for part in near]
    if not smooth or smooth[-1] <= (1 + margin) * min(smooth):
        return None
    return known[smooth.index(min(smooth))]


def write_table(folder: Path, rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> None:
    """`table.csv`, with every column to 6 digits, and `table.md`, for reading (`markdown`), with notes below."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_text(folder / "table.csv", out.getvalue())
    write_text(folder / "table.md", markdown(rows) + "".join(f"\n{note}\n" for note in notes))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""The rows as a Markdown table, each made `compact`; None is a dash. Markup in texts is escaped.

    Example:
      >>> print(markdown([{"class": "a|b", "n": 3}]), end="")
      | class | n |
      | --- | --- |
      | a\|b | 3 |
    """
    short = [{escaped(key): escaped(value) for key, value in compact(row).items()} for row in rows]
    lines = [list(short[0]), ["---"] * len(short[0]), *(list(row.values()) for row in short)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def escaped(text: str) -> str:
    r"""A text as Markdown shows it as it is, on one line.

    Example:
      >>> escaped("$5 | *new*\n")
      '\\$5 \\| \\*new\\*\\\\n'
    """
    return re.sub(r"[\\`*<|$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", printable(text))


def compact(row: Mapping[str, Any]) -> dict[str, str]:
    """A row for reading: three digits, a mean and its interval in one cell, no standard deviations.

    Example:
      >>> compact({"loss": 0.51234, "loss_std": 0.1, "loss_ci95": 0.0212, "n": 3, "turn": None})
      {'loss': '0.512 ± 0.021', 'n': '3', 'turn': '-'}
    """
    beside = {f"{key}{part}" for key in row for part in ("_std", "_ci95")}
    return {key: _cell(value, row.get(f"{key}_ci95")) for key, value in row.items() if key not in beside}


def _cell(value, half):
    if value is None:
        return "-"
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    if half is None:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    places = 2 - math.floor(math.log10(abs(value))) if value else 2
    mean, spread = (f"{x:.{min(max(places, 0), 8)}f}" for x in (value, half))
    return f"{mean} ± {spread}"
