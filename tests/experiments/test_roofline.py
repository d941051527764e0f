"""The roofline: its roofs and dots stand where the numbers say, and its names do not stand on each other."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from jaxcnn.plots.roofline import roofline, spread_labels

CLOSE = {f"net{i}": (9.0 + 0.01 * i, 50.0 + 0.1 * i) for i in range(9)}


def roofs(figure):
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "roofs"]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def words(annotation):
    """The box of the words alone, without the line to the dot."""
    return Text.get_window_extent(annotation)


def test_the_roof_is_the_lesser_of_the_copy_and_the_product():
    x, y = roofs(roofline({"a": (1.0, 5.0), "b": (50.0, 60.0)}, peak=100.0, bandwidth=10.0))
    np.testing.assert_allclose(y, np.minimum(100.0, 10.0 * x))
    assert x[1] == 10.0  # where they meet
    assert x[0] < 1.0
    assert x[-1] > 50.0


def test_every_network_is_a_dot_with_its_name():
    figure = roofline(CLOSE, peak=100.0, bandwidth=10.0, title="Roofs", note="a machine")
    dots = {line.get_label(): line for line in figure.axes[0].lines if line.get_label() != "roofs"}
    assert {
        name: (np.asarray(line.get_xdata())[0], np.asarray(line.get_ydata())[0])
        for name, line in dots.items()
    } == CLOSE
    assert len({(line.get_color(), line.get_marker()) for line in dots.values()}) == len(CLOSE)
    assert [text.get_text() for text in figure.axes[0].texts][2:] == list(CLOSE)
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")
    assert (figure.get_suptitle(), figure.get_supxlabel()) == ("Roofs", "a machine")


def test_names_do_not_overlap_and_stay_in_the_axes():
    figure = roofline(CLOSE, peak=100.0, bandwidth=10.0)
    FigureCanvasAgg(figure).draw()
    axis = figure.axes[0]
    edges = [
        (box.x0, box.y0, box.x1, box.y1)
        for box in (axis.get_window_extent(), *map(words, axis.texts[2:]))
    ]
    (left, low, right, high), *names = edges
    assert len(names) == len(CLOSE)
    for i, (x0, y0, x1, y1) in enumerate(names):
        assert left < x0 < x1 < right
        assert low < y0 < y1 < high
        assert not [
            b for b in names[i + 1 :] if x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1
        ]


def test_names_are_moved_no_further_than_they_must():
    assert spread_labels({"a": (0.0, 1.0, 1.0), "b": (2.0, 1.0, 1.0)}, 0.5) == {"a": 1.0, "b": 1.0}
    found = spread_labels(dict.fromkeys("abc", (0.0, 3.0, 1.0)), 0.5)
    np.testing.assert_allclose(sorted(found.values()), [2.5, 3.0, 3.5], atol=1e-6)


def test_names_stand_off_dots_which_stay():
    found = spread_labels(
        {"a": (0.0, 1.0, 1.0), "b": (0.0, 1.2, 1.0), "c": (2.0, 1.0, 1.0)}, 0.5, dots=[(0.5, 1.1)]
    )
    assert found == pytest.approx({"a": 0.6, "b": 1.6, "c": 1.0})


@pytest.mark.parametrize("points", [{}, {"a": (1.0, 0.0)}, {"a": (float("nan"), 1.0)}])
def test_what_cannot_be_drawn_is_refused(points):
    with pytest.raises(ValueError, match="expected at least one point"):
        roofline(points, peak=100.0, bandwidth=10.0)
