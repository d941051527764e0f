"""Small multiples: what was drawn in each panel, that equal labels look equal, and that no text lies over other text."""

from typing import Any

import numpy as np
import pytest
from figures import drawn, labels, overlapping
from matplotlib.colors import same_color

from jaxcnn import plots
from jaxcnn.plots import COLORS, Line, Mark, Panel, band
from jaxcnn.plots.style import DASHES

UNITS: dict[str, Any] = {"xlabel": "step", "ylabel": "loss (nats)"}


def test_a_line_has_gaps_where_there_is_no_number_and_a_lone_point_is_seen():
    (axis,) = plots.panels(
        [Panel("", [Line([1, 2, 3, 4, 5], [7.0, None, 5.0, 4.0, float("inf")])], **UNITS)]
    ).axes
    x, y = drawn(axis.lines[0])
    assert x == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(y, [7, np.nan, 5, 4, np.nan])
    assert (axis.lines[0].get_marker(), axis.lines[0].get_markevery()) == ("o", [0])
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step", "loss (nats)")


def test_a_label_looks_the_same_in_all_panels_and_in_the_legend():
    one = [Line([1], [1.0], label=label) for label in "abc"]
    figure = plots.panels([Panel("1", one), Panel("2", one[::-1]), Panel("3", one[2:])])
    assert labels(figure) == ["a", "b", "c"]
    for axis, order in zip(figure.axes, ([0, 1, 2], [2, 1, 0], [2]), strict=True):
        assert [line.get_color() for line in axis.lines] == [COLORS[i] for i in order]
    assert [handle.get_color() for handle in figure.legends[0].get_lines()] == list(COLORS[:3])
    assert not plots.panels([Panel("1", one)], legend=False).legends


def test_a_colour_that_was_asked_for_goes_to_no_other_label():
    lines = [
        Line([1], [1.0], label="a"),
        Line([1], [1.0], label="b", color=COLORS[0]),
        Line([1], [1.0], label="c"),
    ]
    first, second = plots.panels(
        [Panel("", lines), Panel("", [Line([1], [1.0], label="b"), Line([1], [1.0])])]
    ).axes
    assert [line.get_color() for line in first.lines] == [COLORS[1], COLORS[0], COLORS[2]]
    assert [line.get_color() for line in second.lines] == [COLORS[0], "0.35"]


def test_more_labels_than_colours_differ_in_their_dashes():
    lines = [
        Line([1, 2], [i, i], label=f"{i:02d}", dashed=dashed)
        for i in range(28)
        for dashed in (False, True)
    ]
    figure = plots.panels([Panel("", lines)], size=(9, 5))
    look = [
        (line.get_color(), str(vars(line)["_unscaled_dash_pattern"]))
        for line in figure.axes[0].lines
    ]
    assert len(set(look)) == 56 == 2 * len(COLORS) * len(DASHES)
    assert len(labels(figure)) == 28


def test_the_band_is_of_the_lines_colour_between_its_edges():
    line = Line([1, 2], [3.0, 4.0], [2.0, 3.5], [5.0, 6.0], label="a", color=COLORS[2])
    (axis,) = plots.panels(
        [Panel("", [line, Line([1, 2], [1.0, 1.0], low=[0.0, 0.0])])]
    ).axes  # one edge is no band
    (fill,) = axis.collections
    corners = np.asarray(fill.get_paths()[0].vertices)
    edges = [
        (corners[corners[:, 0] == x, 1].min(), corners[corners[:, 0] == x, 1].max()) for x in (1, 2)
    ]
    assert edges == [(2, 5), (3.5, 6)]
    assert same_color(tuple(np.asarray(fill.get_facecolor())[0, :3].tolist()), COLORS[2])


def test_band_is_the_mean_and_the_range_of_the_seeds_that_have_a_number():
    seeds = [
        [{"s": 2, "e": 1.0}, {"s": 1, "e": 4.0}],
        [{"s": 1, "e": 8.0}, {"s": 2, "e": None}, {"s": 3, "e": None}],
    ]
    line = band(seeds, "s", "e", label="a", dashed=True)
    assert line == Line([1, 2], [6.0, 1.0], [4.0, 1.0], [8.0, 1.0], "a", dashed=True)
    assert band(seeds[1:], "s", "e") == Line([1], [8.0])
    with pytest.raises(KeyError, match="loss"):
        band(seeds, "s", "loss")


def test_behind_puts_the_others_first_lines_in_grey_behind_and_out_of_the_legend():
    panels = [
        Panel(n, [Line([1, 2], [i, i], [0, 0], [9, 9], label=n), Line([1, 2], [5, 5], label="x")])
        for i, n in enumerate("abc")
    ]
    figure = plots.panels(plots.with_background(panels))
    for i, axis in enumerate(figure.axes):
        assert [drawn(line)[1][0] for line in axis.lines] == [
            *(j for j in range(3) if j != i),
            i,
            5,
        ]
        assert [same_color(line.get_color(), "0.8") for line in axis.lines] == [
            True,
            True,
            False,
            False,
        ]
        assert len(axis.collections) == 1
        assert axis.lines[0].get_linewidth() < 1 < axis.lines[2].get_linewidth()
    assert labels(figure) == ["a", "x", "b", "c"]


def test_scales_and_limits():
    (axis,) = plots.panels(
        [Panel("", [Line([1, 10], [1.0, 0.1])], xlog=True, ylog=True, xlim=(1, 20), ylim=(0.01, 2))]
    ).axes
    assert (axis.get_xscale(), axis.get_yscale(), axis.get_xlim(), axis.get_ylim()) == (
        "log",
        "log",
        (1, 20),
        (0.01, 2),
    )


@pytest.mark.parametrize(
    ("share", "x", "y"), [("all", True, True), ("x", True, False), ("y", False, True)]
)
def test_shared_axes_have_one_scale_and_only_the_outer_ones_are_labelled(share, x, y):
    figure = plots.panels(
        [Panel(n, [Line([1, i], [1.0, i])], **UNITS) for i, n in enumerate("abcde", 2)], share=share
    )
    assert len(figure.axes) == 5  # in two rows of three
    assert (len({axis.get_xlim() for axis in figure.axes}) == 1) == x
    assert (len({axis.get_ylim() for axis in figure.axes}) == 1) == y
    assert [bool(axis.get_xlabel()) for axis in figure.axes] == (
        [False, False, True, True, True] if x else [True] * 5
    )
    assert [bool(axis.get_ylabel()) for axis in figure.axes] == (
        [True, False, False, True, False] if y else [True] * 5
    )
    figure.draw_without_rendering()
    numbered = [
        any(t.label1.get_visible() for t in axis.xaxis.get_major_ticks()) for axis in figure.axes
    ]
    assert numbered == [bool(axis.get_xlabel()) for axis in figure.axes]


def test_crosses_are_red_at_their_points_or_at_the_upper_edge():
    crosses = [(1, 5.0), (2, None), (3, float("nan"))]
    figure = plots.panels(
        [Panel("", [Line([1, 3], [1.0, 2.0], label="a")], crosses=crosses, ylim=(0, 9))]
    )
    (axis,) = figure.axes
    red = [line for line in axis.lines if line.get_marker() == "x"]
    at = [
        axis.transAxes.inverted().transform(line.get_transform().transform(line.get_xydata()))[0, 1]
        for line in red
    ]
    np.testing.assert_allclose(at, [5 / 9, 1, 1])
    assert [drawn(line)[0] for line in red] == [[1], [2], [3]]
    assert labels(figure) == ["a", "diverged"]


def test_marks_are_dotted_lines_named_inside_the_axes_away_from_each_other_and_from_the_curve():
    curve = Line([0, 5, 10], [1.0, 20.0, 20.0])
    marks = [
        Mark(20, "y", "2/η"),
        Mark(19.5, "y", "1.95/η"),
        Mark(4, "x", "decay"),
        Mark(99, "y", "beyond"),
        Mark(7),
    ]
    figure = plots.panels([Panel("", [curve], marks=marks, ylim=(0, 21))])
    (axis,) = figure.axes
    assert [line.get_linestyle() for line in axis.lines] == ["-"] + [":"] * 5
    assert drawn(axis.lines[1])[1] == [20, 20]
    assert drawn(axis.lines[3])[0] == [4, 4]
    assert sorted(text.get_text() for text in axis.texts) == ["1.95/η", "2/η", "decay"]
    assert not overlapping(figure)
    x = np.linspace(0, 10, 500)
    points = axis.transData.transform(np.stack([x, np.interp(x, [0, 5, 10], [1, 20, 20])], 1))
    for text in axis.texts:
        box = text.get_window_extent()
        assert axis.bbox.x0 <= box.x0 < box.x1 <= axis.bbox.x1
        assert axis.bbox.y0 <= box.y0 < box.y1 <= axis.bbox.y1
        assert not box.count_contains(points), text.get_text()


@pytest.mark.slow
@pytest.mark.parametrize("ylog", [False, True])
def test_no_text_lies_over_other_text(ylog):
    names = [f"optimiser {i} with a long name" for i in range(22)]
    lines = [
        band(
            [[{"s": s, "l": 2.0 / (s / 9e3 + 1)} for s in range(0, 30_001, 3000)]],
            "s",
            "l",
            label=n,
        )
        for n in names
    ]
    panels = [
        Panel(n, [x], **UNITS, ylog=ylog, crosses=[(9e3, None)])
        for n, x in zip(names, lines, strict=True)
    ]
    assert not overlapping(plots.panels(panels, title="training loss of the optimisers " * 9))
    assert not overlapping(plots.panels([Panel("together", lines, **UNITS, xlog=False, ylog=ylog)]))


def test_a_legend_takes_nothing_from_the_panels():
    many = Panel("", [Line([1, 2], [i, i], label=f"label {i}") for i in range(20)], **UNITS)
    heights = []
    for figure in (plots.panels([many]), plots.panels([many], legend=False)):
        figure.draw_without_rendering()
        heights.append(figure.axes[0].get_position().height * figure.get_figheight())
    assert heights[0] == pytest.approx(heights[1], rel=0.05)


def test_a_run_that_blows_up_can_still_be_drawn(tmp_path):
    huge = Line(range(5), [1.0, 1e30, 1e300, 1.7e308, float("nan")], label="a")
    every: list[dict[str, Any]] = [
        {"ylim": (0, 5)},
        {"ylog": True},
        {"ylim": (0.1, 10), "ylog": True},
    ]
    for limits in every:
        plots.panels([Panel("", [huge], **limits)]).savefig(tmp_path / "figure.png")
    plots.panels([Panel("", [Line([], []), Line([1, 2], [None, None])])]).savefig(
        tmp_path / "figure.png"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("panels", "share", "words"),
    [
        ([], "all", "no panels"),
        ([Panel("", [])], "both", "share is 'both'; expected one of all"),
        ([Panel("", [Line([1, 2], [1.0], label="a")])], "all", "'a' has 2 x and 1 y"),
        ([Panel("", [], ylog=True), Panel("", [])], "all", "differ in ylog"),
        ([Panel("", [], xlabel="epoch"), Panel("", [], xlabel="step")], "x", "differ in xlabel"),
        ([Panel("", [], marks=[Mark(1, "z")])], "all", "a mark's axis is 'z'"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(panels, share, words):
    with pytest.raises(ValueError, match=words) as said:
        plots.panels(panels, share=share)
    assert "\n" not in str(said.value)
    if "differ" in words:
        assert plots.panels(panels, share="none").axes


def test_epochs_have_whole_numbers_and_rates_have_not():
    panels = [Panel("", (Line(x, [1.0] * len(x)),), (), "x", "y") for x in ([1, 2], [1, 2.5])]
    figure = plots.panels(panels, columns=2, share="none")
    figure.canvas.draw()
    found = [[tick % 1 == 0 for tick in axis.get_xticks()] for axis in figure.axes]
    assert all(found[0])
    assert not all(found[1])
