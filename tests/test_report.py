"""Means and intervals against Student's t and the paper's, and tables as they are read back."""

import csv
import math

import numpy as np
import pytest
from scipy import stats

from jaxcnn.report import Summary, markdown, summarise, write_table

ROWS = [
    {"depth": 20, "error": 8.754, "ci95": None, "kind": "plain, option A"},
    {"depth": 56, "error": 6.0, "ci95": 0.125, "kind": "residual"},
]


def numbers(values):
    """The summary of a sample that is large enough for one."""
    found = [number for number in summarise(values.tolist()) if number is not None]
    assert len(found) == 3
    return found


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_the_interval_is_students(n):
    values = np.random.default_rng(n).normal(7, 0.16, n)
    mean, std, half = numbers(values)
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert std == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-12)


@pytest.mark.parametrize(("n", "quantile", "half"), [(3, 4.303, 0.40), (5, 2.776, 0.20)])
def test_three_seeds_leave_04_points_and_five_02_at_a_deviation_of_016(n, quantile, half):
    values = np.arange(n) - (n - 1) / 2
    values *= 0.16 / values.std(ddof=1)
    _, _, ci95 = numbers(values)
    assert ci95 == pytest.approx(quantile * 0.16 / math.sqrt(n), rel=2e-4)  # quantiles of the printed tables
    assert round(ci95, 2) == half


@pytest.mark.parametrize(
    ("values", "summary"), [([], (None, None, None)), ([7.5], (7.5, None, None)), ([3, 3], (3, 0, 0))]
)
def test_what_a_sample_is_too_small_for_is_none(values, summary):
    assert summarise(values) == Summary(*summary)


def test_tables_are_written_with_empty_cells_for_none(tmp_path):
    write_table(tmp_path, ROWS, notes=["3 seeds.", "One machine."])
    with (tmp_path / "table.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"depth": "20", "error": "8.75", "ci95": "", "kind": "plain, option A"},
            {"depth": "56", "error": "6.00", "ci95": "0.12", "kind": "residual"},
        ]
    assert (tmp_path / "table.md").read_text() == markdown(ROWS) + "\n3 seeds.\n\nOne machine.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.md"]


def test_markdown_has_a_rule_under_the_names_and_a_dash_for_none():
    assert markdown(ROWS) == (
        "| depth | error | ci95 | kind |\n"
        "| --- | --- | --- | --- |\n"
        "| 20 | 8.75 | - | plain, option A |\n"
        "| 56 | 6.00 | 0.12 | residual |\n"
    )
