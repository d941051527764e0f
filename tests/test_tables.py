"""Surfaces, heat maps and bars: what was drawn."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from figures import drawn, labels, overlapping
from matplotlib.collections import QuadMesh
from matplotlib.colors import same_color
from matplotlib.contour import QuadContourSet
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation

from jaxcnn.plots import COLORS, Surface, bars, heatmap, optimizer_paths
from jaxcnn.plots.heatmap import FRAME
from jaxcnn.plots.optimizer_paths import last_exit_point


def bowl(w):
    assert w.ndim == 2
    return w[:, 0] ** 2 + 10 * w[:, 1] ** 2


def path(rate, num_steps=30):
    """Gradient descent on the bowl in closed form: w_t = (1 - rate * curvature)^t w_0."""
    return (
        np.array([-2.0, 1.0]) * (1 - rate * np.array([2.0, 20.0])) ** np.arange(num_steps)[:, None]
    )


def rectangles(axis):
    return [patch for patch in axis.patches if isinstance(patch, Rectangle)]


WINDOW = ((-3.0, 3.0), (-2.0, 2.0))


def surface(rate, **fields):
    return Surface(
        f"rate {rate}",
        bowl,
        path(rate),
        "$w_1$",
        "$w_2$",
        note=f"η = {rate}",
        minimum=(0, 0),
        **fields,
    )


def marked(axis):
    return {
        line.get_label(): drawn(line) for line in axis.lines if not line.get_label().startswith("_")
    }


def test_a_surface_shows_its_path_start_end_and_minimum():
    figure = optimizer_paths(
        [surface(0.02, window=WINDOW), surface(0.09, window=WINDOW)], title="bowl"
    )
    for axis, rate in zip(figure.axes, (0.02, 0.09), strict=True):
        walked = path(rate)
        np.testing.assert_array_equal(axis.lines[0].get_xydata(), walked)
        assert marked(axis) == {
            "start": ([-2], [1]),
            "end": ([walked[-1, 0]], [walked[-1, 1]]),
            "minimum": ([0], [0]),
        }
        assert axis.get_title() == f"rate {rate}"
        assert [text.get_text() for text in axis.texts] == [f"η = {rate}"]
    assert labels(figure)[:4] == ["path", "start", "end", "minimum"]
    assert not overlapping(figure)


def test_a_path_that_diverges_leaves_the_image_at_its_edge():
    (axis,) = optimizer_paths([surface(0.13, window=WINDOW)]).axes
    walked = path(0.13)  # w_2 is 1, -1.6, 2.56: out through the upper edge
    assert axis.get_ylim() == (-2, 2)
    share = (2 - walked[1, 1]) / (walked[2, 1] - walked[1, 1])
    x = walked[1, 0] + share * (walked[2, 0] - walked[1, 0])
    np.testing.assert_allclose(marked(axis)["leaves the panel"], [[x], [2]])
    assert "end" not in marked(axis)
    np.testing.assert_array_equal(axis.lines[0].get_xydata(), walked[:3])


@pytest.mark.slow
@pytest.mark.parametrize("last", [1e300, float("inf"), float("nan")])
def test_numbers_beyond_all_bounds_do_not_harm_the_image(last, tmp_path):
    wild = Surface("", bowl, [[-2.0, 1.0], [1.0, -1.0], [last, last]], "", "", window=WINDOW)
    figure = optimizer_paths([wild])
    figure.savefig(tmp_path / "figure.png")
    assert ("end" in marked(figure.axes[0])) == (last != 1e300)


def test_the_limits_fit_the_path_where_there_is_no_window():
    (axis,) = optimizer_paths([Surface("", bowl, [[0.0, 0.0], [10.0, 1.0]], "", "")]).axes
    assert (axis.get_xlim(), axis.get_ylim()) == ((-1, 11), (-0.1, 1.1))


def test_the_contours_are_evenly_spaced_in_the_logarithm_of_the_height_above_the_least():
    lifted = Surface(
        "", lambda w: bowl(w) - 7, [[-1.0, 1.0], [1.0, -1.0]], "", "", window=((-1, 1), (-1, 1))
    )
    (axis,) = optimizer_paths([lifted]).axes
    fill = next(c for c in axis.collections if isinstance(c, QuadContourSet))
    np.testing.assert_allclose(np.diff(np.log(np.array(fill.levels))), np.log(1e4) / 12)
    assert np.array(fill.levels)[-1] == pytest.approx(
        11
    )  # 1 + 10 in the corners, above 0 in the middle
    assert optimizer_paths([Surface("flat", lambda w: 0 * w[:, 0], [[0, 0], [1, 1]], "", "")]).axes


def test_leaving_counts_only_the_last_time_and_needs_a_start_within():
    box = ((-1.0, 1.0), (-1.0, 1.0))
    assert last_exit_point(
        np.array([[0, 0], [3, 0], [0.5, 0.5], [0.5, 4.5]]), box
    ) == pytest.approx([0.5, 1])
    assert last_exit_point(np.array([[0, 0], [3, 0], [0.5, 0.5]]), box) is None
    assert last_exit_point(np.array([[5, 5], [3, 0]]), box) is None


@pytest.mark.parametrize("bad", [[[0, 0, 0]], [], [[float("nan"), 0]]])
def test_a_path_is_pairs_of_numbers(bad):
    with pytest.raises(ValueError, match=r"expected \[t, 2\] from a finite start"):
        optimizer_paths([Surface("a", bowl, bad, "", "")])
    with pytest.raises(ValueError, match="no surfaces"):
        optimizer_paths([])


VALUES = np.array([[9.0, 8.25, 3.0], [7.0, np.nan, 6.0]])
NAMES: dict[str, Any] = {
    "rows": ["SGD", "Adam"],
    "columns": [0.1, 1, 10],
    "xlabel": "rate",
    "ylabel": "",
    "label": "error (%)",
}


def test_a_heat_map_writes_its_values_and_crosses_what_diverged():
    crosses = [[False, False, True], [False, False, False]]
    figure = heatmap(VALUES, crosses=crosses, best="min", stairs=[1, 2], title="rates", **NAMES)
    axis, bar = figure.axes
    assert {text.get_position(): text.get_text() for text in axis.texts} == {
        (0, 0): "9", (1, 0): "8.25", (2, 0): "×", (0, 1): "7", (2, 1): "6",
    }  # fmt: skip
    hatched = [patch.get_xy() for patch in rectangles(axis) if patch.get_hatch()]
    np.testing.assert_allclose(hatched, [(1.52, -0.48)])
    assert bar.get_ylabel() == "error (%)"
    assert [t.get_text() for t in axis.get_yticklabels()] == ["SGD", "Adam"]
    assert axis.yaxis_inverted()
    (mesh,) = (c for c in axis.collections if isinstance(c, QuadMesh))
    assert (mesh.norm.vmin, mesh.norm.vmax) == (
        6,
        9,
    )  # a diverged run's number does not stretch the colours
    assert not overlapping(figure)


@pytest.mark.parametrize(("best", "cells"), [("min", [1, 2]), ("max", [0, 0]), (None, [])])
def test_the_best_of_each_row_is_framed(best, cells):
    axis = heatmap(VALUES, crosses=np.array([[0, 0, 1], [0, 0, 0]]), best=best, **NAMES).axes[0]
    framed = [
        p
        for p in rectangles(axis)
        if not p.get_hatch() and same_color(p.get_edgecolor(), FRAME["edgecolor"])
    ]
    centres = [
        (round(p.get_x() + p.get_width() / 2), round(p.get_y() + p.get_height() / 2))
        for p in framed
    ]
    assert centres == [(column, row) for row, column in enumerate(cells)]


def test_the_stairs_go_down_the_right_edges_of_the_last_stable_cells():
    names: dict[str, Any] = NAMES | {"rows": list("abcd")}
    (line,) = heatmap(np.ones((4, 3)), stairs=[0, 2, None, -1], **names).axes[0].lines
    x, y = drawn(line)
    np.testing.assert_array_equal(x, [0.5, 0.5, 2.5, 2.5, np.nan, np.nan, -0.5, -0.5])
    assert y == [-0.5, 0.5, 0.5, 1.5, 1.5, 2.5, 2.5, 3.5]
    assert not heatmap(VALUES, **NAMES).axes[0].lines


def test_dark_cells_have_white_letters_and_a_map_without_numbers_is_drawn(tmp_path):
    names: dict[str, Any] = NAMES | {"rows": ["a"], "columns": [1, 2]}
    dark, bright = heatmap([[0.0, 1.0]], **names).axes[0].texts
    assert (dark.get_color(), bright.get_color()) == ("white", "black")
    heatmap(VALUES * np.nan, crosses=np.ones((2, 3)), best="min", **NAMES).savefig(
        tmp_path / "figure.png"
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rows": ["a"]}, r"values are \(2, 3\)"),
        ({"crosses": [[True]]}, r"crosses \(1, 1\)"),
        ({"stairs": [1]}, "1 stairs; expected one for each of 2 rows"),
        ({"best": "low"}, "best is 'low'"),
    ],
)
def test_a_heat_map_says_which_shapes_differ(more, words):
    with pytest.raises(ValueError, match=words):
        heatmap(VALUES, **NAMES | more)


def test_bars_stand_in_groups_with_their_values_above_their_errors():
    groups = {
        "none": {"training": 1.0, "test": 9.0},
        "weight decay": {"training": None, "test": 8.0, "gap": -2.0},
    }
    figure = bars(
        groups, ylabel="error (%)", errors={"none": {"test": 0.5}}, fmt=".1f", title="regularisers"
    )
    (axis,) = figure.axes
    colours = [
        COLORS.index(next(c for c in COLORS if same_color(c, bar.get_facecolor())))
        for bar in rectangles(axis)
    ]
    heights = [bar.get_height() for bar in rectangles(axis)]
    assert sorted(zip(colours, heights, strict=True)) == [(0, 1), (1, 8), (1, 9), (2, -2)]
    places = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in rectangles(axis))
    assert all(right <= left for (_, right), (left, _) in pairwise(places))
    assert {t.get_text(): t.xy[1] for t in axis.texts if isinstance(t, Annotation)} == {
        "1.0": 1,
        "9.0": 9.5,
        "8.0": 8,
        "-2.0": -2,
    }
    assert labels(figure) == ["training", "test", "gap"]
    assert axis.get_ylabel() == "error (%)"
    assert [t.get_text().split() for t in axis.get_xticklabels()] == [["none"], ["weight", "decay"]]
    assert not overlapping(figure)


@pytest.mark.slow
def test_many_bars_with_long_names_do_not_write_over_each_other():
    groups = {
        f"a regulariser with a long name {i}": {f"seed {j}": 88.888 - i for j in range(4)}
        for i in range(9)
    }
    assert not overlapping(bars(groups, ylabel="error (%)", fmt=".3f", title="many " * 60))
    with pytest.raises(ValueError, match="there are no bars"):
        bars({}, ylabel="")
