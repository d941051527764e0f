"""Means and intervals against Student's t and the paper's, and tables as they are read back."""

import csv
import math
import re

import numpy as np
import pytest
from scipy import stats

from jaxcnn.tables import (
    SeedStatistics,
    compact,
    compact_markdown,
    seed_statistics,
    turning_point,
    write_table,
)

ROWS = [
    {"depth": 20, "error": 8.754, "ci95": None, "kind": "plain, option A"},
    {"depth": 56, "error": 6.0, "ci95": 0.125, "kind": "residual"},
]


def numbers(values):
    """The summary of a sample that is large enough for one."""
    found = [number for number in seed_statistics(values.tolist()) if number is not None]
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
    assert ci95 == pytest.approx(
        quantile * 0.16 / math.sqrt(n), rel=2e-4
    )  # quantiles of the printed tables
    assert round(ci95, 2) == half


@pytest.mark.parametrize(
    ("values", "summary"),
    [([], (None, None, None)), ([7.5], (7.5, None, None)), ([3, 3], (3, 0, 0))],
)
def test_what_a_sample_is_too_small_for_is_none(values, summary):
    assert seed_statistics(values) == SeedStatistics(*summary)


def test_tables_are_written_in_full_and_for_reading(tmp_path):
    write_table(tmp_path, ROWS, notes=["3 seeds.", "One machine."])
    with (tmp_path / "table.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"depth": "20", "error": "8.754", "ci95": "", "kind": "plain, option A"},
            {"depth": "56", "error": "6", "ci95": "0.125", "kind": "residual"},
        ]
    assert (tmp_path / "table.md").read_text() == compact_markdown(
        ROWS
    ) + "\n3 seeds.\n\nOne machine.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.md"]


def test_markdown_has_a_rule_under_the_names_and_a_dash_for_none():
    assert compact_markdown(ROWS) == (
        "| depth | error | ci95 | kind |\n"
        "| --- | --- | --- | --- |\n"
        "| 20 | 8.75 | - | plain, option A |\n"
        "| 56 | 6 | 0.125 | residual |\n"
    )


@pytest.mark.parametrize(
    ("mean", "half", "cell"),
    [
        (75.6671, 6.1543, "75.7 ± 6.2"),
        (4.476, 2.981, "4.48 ± 2.98"),
        (0.000612, 0.00021, "0.000612 ± 0.000210"),
        (1437.4, None, "1437"),
        (0.0, 0.0, "0.00 ± 0.00"),
        (-0.5, None, "-0.5"),
        (math.inf, None, "inf"),
        (None, None, "-"),
    ],
)
def test_a_cell_has_three_digits_and_its_interval_as_many_places(mean, half, cell):
    row = {"error": mean, "error_std": 1.0, "error_ci95": half, "loss_std": 0.25}
    assert compact(row) == {"error": cell, "loss_std": "0.25"}  # a std of its own is a column


def turn(values, **how):
    """The step of the turning point of a curve with a row every 10 steps, or None."""
    rows = [
        {"step": 10 * (i + 1), "eval_loss": value, "eval_error": 1.0}
        for i, value in enumerate(values)
    ]
    found = turning_point(rows, **how)
    assert found is None or found in rows
    return found and found["step"]


CURVES = [
    ("falling", [5, 4, 3, 2, 1], None),
    ("rising from the start", [1, 2, 3, 4, 5], 10),
    ("u", [5, 3, 2, 1, 2, 3, 5], 40),
    ("flat", [1, 1, 1, 1], None),
    ("flat at zero", [0, 0, 0], None),
    ("falls, then stays", [5, 3, 1, 1, 1, 1], None),
    ("risen within the margin", [3.0, 1.0, 1.0, 1.0, 1.04, 1.04, 1.04], None),
    ("risen beyond it", [3.0, 1.0, 1.0, 1.0, 1.06, 1.06, 1.06], 30),
    ("risen, then lower than ever", [3, 2, 4, 4, 1, 0.5, 0.4], None),
    ("one row", [1], None),
    ("none", [], None),
    ("gaps", [5, None, 3, 1, 3, math.nan, 5, math.inf], 40),
    ("nothing but gaps", [None, None], None),
]


@pytest.mark.parametrize(("values", "step"), [c[1:] for c in CURVES], ids=[c[0] for c in CURVES])
def test_a_curve_turns_where_its_moving_mean_is_lowest(values, step):
    assert turn(values) == step


def test_a_single_low_row_is_not_the_turning_point_of_a_noisy_curve():
    steps = np.arange(40)
    values = 1 + ((steps - 15) / 20) ** 2 + np.random.default_rng(0).normal(0, 0.03, 40)
    values[30] = values.min() - 0.1  # luck
    assert turn(values.tolist(), window=1) == 310
    assert turn(values.tolist(), window=7) in range(130, 200, 10)
    smooth = [
        values[max(0, i - 3) : i + 4].mean() for i in range(40)
    ]  # as written in the docstring, by NumPy
    assert turn(values.tolist(), window=7) == 10 * (int(np.argmin(smooth)) + 1)


def test_the_margin_is_a_share_of_the_lowest_and_the_key_is_free():
    assert turn([4.0, 2.0, 2.0, 2.0, 2.15, 2.15, 2.15], margin=0.08) is None
    assert turn([4.0, 2.0, 2.0, 2.0, 2.15, 2.15, 2.15], margin=0.07) == 30
    assert turn([3, 1, 3], key="eval_error") is None
    with pytest.raises(KeyError):
        turn([3, 1, 3], key="no such")


@pytest.mark.parametrize(
    "how", [{"window": 2}, {"window": 0}, {"window": -1}, {"margin": -0.1}, {"margin": math.nan}]
)
def test_windows_have_a_middle_and_margins_are_shares(how):
    with pytest.raises(ValueError, match="expected an odd number of rows and at least 0"):
        turn([3, 1, 3], **how)


def test_names_do_not_break_a_table():
    name = "a|b $x$ *c* `d` <e> \\ \x1b[31m\n _f_ g_h"
    lines = compact_markdown([{"class|es": name, "n": 1}]).splitlines()
    assert len(lines) == 3
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert [len(row) for row in cells] == [2, 2, 2]
    assert cells[0][0].strip() == r"class\|es"
    assert cells[2][0].strip() == r"a\|b \$x\$ \*c\* \`d\` \<e> \\ \\x1b[31m\\n \_f\_ g_h"
