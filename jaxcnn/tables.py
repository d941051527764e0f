"""Statistics over seeds, and tables in CSV and Markdown."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn.data.types import printable
from jaxcnn.run_log import write_text


class SeedStatistics(NamedTuple):
    """Statistics of a sample.

    What the sample is too small for is None, such as the mean of no values or the deviation of one.

    Attributes:
      mean: mean of the values.
      std: standard deviation (n - 1).
      ci95: half width of the mean's 95% interval (Student's t).
    """

    mean: float | None
    std: float | None
    ci95: float | None


def seed_statistics(values: Sequence[float]) -> SeedStatistics:
    """Return the statistics of `values`.

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
    # Here because it takes a tenth of the time of `import jaxcnn`, and `scipy.stats` far more.
    from scipy.special import stdtrit

    return SeedStatistics(mean, std, float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n))


def turning_point(
    rows: Sequence[Mapping[str, Any]],
    key: str = "eval_loss",
    window: int = 3,
    margin: float = 0.05,
) -> Mapping[str, Any] | None:
    """Return the row after which a curve that should fall rises.

    For a validation loss, it is the start of overfitting. It is the first row with the lowest mean
    of `key` over `window` rows around it (fewer at the ends). The curve has turned if the last such
    mean is higher than the lowest by more than the fraction `margin`.

    Args:
      rows: in the order of their steps. Those in which `key` is None or not finite are skipped.
      key: a loss or an error, which is better when low.
      window: an odd number of rows; 1 does not smooth the curve.
      margin: 0 counts any rise as a turn.

    Returns:
      The row, or None if the curve has not turned.

    Raises:
      KeyError: a row has no such key.
      ValueError: the window is not odd, or the margin is below 0.

    Example:
      >>> losses = [2.0, 1.0, 0.6, 0.5, 0.7, 0.9]
      >>> rows = [{"step": i, "eval_loss": loss} for i, loss in enumerate(losses)]
      >>> turning_point(rows), turning_point(rows[:4])
      ({'step': 3, 'eval_loss': 0.5}, None)

    References:
      Prechelt 1998, "Early stopping - but when?" (`margin` is the threshold of his generalization
      loss).
    """
    if window < 1 or window % 2 == 0 or not margin >= 0:
        raise ValueError(
            f"window is {window} and margin {margin}; expected an odd number of rows and at least 0"
        )
    finite_rows = [row for row in rows if row[key] is not None and math.isfinite(row[key])]
    values, half = [row[key] for row in finite_rows], window // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    smooth = [math.fsum(part) / len(part) for part in windows]
    if not smooth or smooth[-1] <= (1 + margin) * min(smooth):
        return None
    return finite_rows[smooth.index(min(smooth))]


def write_table(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
    name: str = "table",
) -> None:
    """Write `{name}.csv` and `{name}.md` in a folder.

    The former has every column to 6 digits. The latter is for reading (see `compact_markdown`),
    with notes below.
    """
    write_text(folder / f"{name}.csv", _csv_text(list(rows[0]), rows))
    write_text(
        folder / f"{name}.md", compact_markdown(rows) + "".join(f"\n{note}\n" for note in notes)
    )


def write_curves(folder: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    r"""Write `curves.csv`, the rows of runs that a figure draws.

    Its columns are `run`, `step` and every key with numbers, to 6 digits. What a row lacks is
    empty.

    Args:
      folder: of the file.
      runs: rows by the name of their run.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> write_curves(folder, {"a": [{"step": 1, "loss": 0.5, "eval_split": "test"}]})
      >>> (folder / "curves.csv").read_text()
      'run,step,loss\na,1,0.5\n'
    """
    rows = [row for run_rows in runs.values() for row in run_rows]
    keys = {key for row in rows for key, value in row.items() if _is_number(value)}
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key in keys]
    lines = [{"run": name} | dict(row) for name, run_rows in runs.items() for row in run_rows]
    names = ["run", "step", *(key for key in columns if key != "step")]
    write_text(folder / "curves.csv", _csv_text(names, lines))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a header, floats to 6 digits."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return buffer.getvalue()


def compact_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""Return the rows as a Markdown table without standard deviations.

    Each row is made `compact`: columns `*_std` are left out, and `*_ci95` joins the cell of its
    mean. None is a dash. Markup in texts is escaped. `write_table` writes every column to a CSV.

    Example:
      >>> print(compact_markdown([{"class": "a|b", "n": 3}]), end="")
      | class | n |
      | --- | --- |
      | a\|b | 3 |
    """
    cells = [
        {escape_markdown(key): escape_markdown(value) for key, value in compact(row).items()}
        for row in rows
    ]
    header = list(cells[0])
    lines = [header, ["---"] * len(header), *(list(row.values()) for row in cells)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def escape_markdown(text: str) -> str:
    r"""Escape a text for Markdown, on one line.

    Example:
      >>> escape_markdown("$5 | *new*\n")
      '\\$5 \\| \\*new\\*\\\\n'
    """
    return re.sub(r"[\\`*<|$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", printable(text))


def compact(row: Mapping[str, Any]) -> dict[str, str]:
    """Format a row for reading.

    Numbers have three digits. A mean and its interval share a cell, and standard deviations are
    left out.

    Example:
      >>> compact({"loss": 0.51234, "loss_std": 0.1, "loss_ci95": 0.0212, "n": 3, "turn": None})
      {'loss': '0.512 ± 0.021', 'n': '3', 'turn': '-'}
    """
    spreads = {f"{key}{suffix}" for key in row for suffix in ("_std", "_ci95")}
    return {
        key: _format_cell(value, row.get(f"{key}_ci95"))
        for key, value in row.items()
        if key not in spreads
    }


def _format_cell(value, half_width):
    if value is None:
        return "-"
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    if half_width is None:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    decimals = 2 - math.floor(math.log10(abs(value))) if value else 2
    mean, spread = (f"{x:.{min(max(decimals, 0), 8)}f}" for x in (value, half_width))
    return f"{mean} ± {spread}"
