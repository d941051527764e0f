"""Planes and terrains of values: the levels, one scale for all, gaps, and paths with their ends."""

from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color

from jaxcnn.plots.contours import (
    GAP_COLOR,
    LINE,
    Field,
    contours,
    format_level,
    log_values,
    surfaces_3d,
)

X, Y = np.linspace(-1, 1, 9), np.linspace(-2, 2, 11)
BOWL = Field("bowl", X, Y, 0.02 + X[:, None] ** 2 + Y**2, "across (units)", "up (units)")
STEEP = Field("steep", X, Y, 3000 * BOWL.values, "across (units)", "up (units)")
HOLED = BOWL._replace(values=np.where(BOWL.values > 4, np.inf, BOWL.values))
PATH = np.array([[0.9, 1.5], [0.2, 0.7], [0.0, 0.0]])


def of(collection):
    """The levels of a contour set."""
    return 10 ** np.asarray(collection.levels)


def axes_of(figure) -> list[Any]:
    """Panels without the bar."""
    return [axis for axis in figure.axes if axis.get_title()]


def test_every_panel_has_the_same_round_levels_and_the_bar_names_them():
    figure = contours([BOWL, STEEP], label="loss (nats)")
    sets = [axis.collections for axis in axes_of(figure)]
    for filled, lines, *_ in sets:
        np.testing.assert_allclose(of(filled), of(lines))
        np.testing.assert_allclose(of(filled), of(sets[0][0]))
    levels = of(sets[0][0])
    assert levels[0] <= 0.02 < levels[1]
    assert levels[-2] < 3000 * 5.02 <= levels[-1]
    (bar,) = (axis for axis in figure.axes if not axis.get_title())
    assert bar.get_ylabel() == "loss (nats)"
    assert [text.get_text() for text in bar.get_yticklabels()] == [
        format_level(level) for level in levels
    ]


def test_contours_lie_where_the_values_are_theirs():
    """Of exp(x) the contours are upright lines at the logarithm of their level."""
    field = Field("", X, Y, np.exp(X)[:, None] * np.ones_like(Y))
    figure = contours([field._replace(title="e")], label="value")
    _, lines = axes_of(figure)[0].collections
    found = 0
    for level, path in zip(of(lines), lines.get_paths(), strict=True):
        for x in path.vertices[:, 0]:
            assert x == pytest.approx(np.log(level), abs=1e-6)
            found += 1
    assert found > 4


def test_above_the_highest_contour_all_is_one_colour():
    levels = of(axes_of(contours([STEEP], label="loss", max_level=100.0))[0].collections[0])
    assert levels[-1] == 100
    assert (
        log_values([STEEP], 1e-9)[1][-1] == 100
    )  # nothing is below 60: the least level spans one step


def test_a_path_and_its_two_ends_stand_on_the_plane():
    figure = contours([BOWL._replace(path=PATH), STEEP], label="loss")
    first, second = axes_of(figure)
    path, start, end = first.lines
    np.testing.assert_array_equal(np.stack(path.get_data(), 1), PATH)
    assert same_color(path.get_color(), LINE["color"])
    assert [float(v[0]) for v in (*start.get_data(), *end.get_data())] == [0.9, 1.5, 0, 0]
    assert start.get_marker() != end.get_marker()
    assert not second.lines
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["path", "start", "end"]


def test_what_is_not_finite_is_a_gap_and_said():
    figure = contours([HOLED], label="loss")
    (axis,) = axes_of(figure)
    assert same_color(axis.get_facecolor(), GAP_COLOR)
    drawn = np.concatenate([path.vertices for path in axis.collections[0].get_paths()])
    assert abs(drawn[:, 1]).max() < 2  # at the ends of y all values are infinite
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["not finite"]
    assert not contours([BOWL], label="loss").legends


def test_axes_are_labelled_on_the_outside_or_each_by_itself():
    shared = axes_of(contours([BOWL, STEEP], label="loss"))
    assert [axis.get_ylabel() for axis in shared] == ["up (units)", ""]
    apart = axes_of(contours([BOWL, STEEP], label="loss", share=False))
    assert [axis.get_ylabel() for axis in apart] == ["up (units)", "up (units)"]
    assert all(axis.get_xlabel() == "across (units)" for axis in shared + apart)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [2, 4])
def test_no_text_lies_over_other_text(columns):
    fields = [(BOWL, STEEP)[i % 2]._replace(path=PATH, note="steps 0 to 300") for i in range(4)]
    figure = contours(fields, label="training loss (nats)", title="Planes", columns=columns)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    axes: list[Any] = figure.axes
    texts = [t for axis in axes for t in (axis.title, axis.xaxis.label, axis.yaxis.label)]
    texts += [
        t.label1 for axis in axes for one in (axis.xaxis, axis.yaxis) for t in one._update_ticks()
    ]
    texts += [
        note
        for axis in axes_of(figure)
        for note in axis.texts
        if note.get_text().startswith("steps")
    ]
    found = [
        t.get_window_extent(renderer)
        for t in [*texts, *figure.texts]
        if t.get_text() and t.get_visible()
    ]
    found += [legend.get_window_extent(renderer) for legend in figure.legends]
    assert not [(a, b) for i, a in enumerate(found) for b in found[i + 1 :] if a.overlaps(b)]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in found)


def test_terrains_share_their_scale_and_are_as_high_as_the_logarithm():
    figure: Any = surfaces_3d([BOWL, STEEP], label="loss (nats)", title="Terrain")
    low, high = figure.axes[0].get_zlim(), figure.axes[1].get_zlim()
    assert low == high
    for axis, field in zip(figure.axes, (BOWL, STEEP), strict=True):
        logs = np.log10(field.values)
        assert axis.zz_dataLim.intervalx == pytest.approx([logs.min(), logs.max()])
        assert axis.get_zlabel() == "loss (nats)"
    FigureCanvasAgg(figure).draw()


def test_a_terrain_is_cut_off_where_asked_and_has_holes():
    axis: Any = surfaces_3d([STEEP], label="loss", max_level=1000.0).axes[0]
    assert axis.zz_dataLim.intervalx[1] == pytest.approx(3)
    figure: Any = surfaces_3d([HOLED], label="loss")
    FigureCanvasAgg(figure).draw()
    assert figure.axes[0].zz_dataLim.intervalx[1] < np.log10(4)


@pytest.mark.parametrize("draw", [contours, surfaces_3d])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "there are no fields"),
        ([BOWL._replace(values=BOWL.values.T)], r"have shape \(11, 9\); expected \(9, 11\)"),
        (
            [BOWL._replace(values=np.full((9, 11), np.nan))],
            "no value of the fields is finite and positive",
        ),
    ],
)
def test_mistakes_are_told(draw, fields, message):
    with pytest.raises(ValueError, match=message):
        draw(fields, label="loss")
