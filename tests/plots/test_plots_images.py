"""Tiles: the colours and numbers in their cells, frames where they were put, and no text over other text."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color

from jaxcnn.plots import COLORS, Frame, Tile, tiles

TABLE = np.array([[0.0, 1.0, 2.0], [3.0, np.nan, 10.0]])


def written(axis):
    return {
        tuple(int(at) for at in reversed(text.get_position())): text.get_text()
        for text in axis.texts
    }


def test_numbers_stand_in_their_cells_and_nan_is_blank():
    (axis,) = tiles([[Tile(TABLE, "table", "below", fmt="g")]]).axes
    assert written(axis) == {(0, 0): "0", (0, 1): "1", (0, 2): "2", (1, 0): "3", (1, 2): "10"}
    assert (axis.get_title(), axis.get_xlabel()) == ("table", "below")
    pixels = np.asarray(axis.images[0].get_array())
    assert pixels[1, 1, 3] == 0  # no colour at all


def test_colours_go_from_the_lowest_to_the_greatest_or_as_asked():
    def grey(**more):
        return np.asarray(tiles([[Tile(TABLE, **more)]]).axes[0].images[0].get_array())[..., 0]

    np.testing.assert_allclose(grey()[[0, 1], [0, 2]], [0, 1])
    np.testing.assert_allclose(grey(limits=(-10, 10))[[0, 1], [0, 2]], [0.5, 1], atol=0.01)
    assert not tiles([[Tile(TABLE)]]).axes[0].texts
    np.testing.assert_allclose(grey(margin=1), 0.93)  # all of so small a table is padding


def test_numbers_are_dark_on_bright_and_bright_on_dark_and_pale_in_the_padding():
    table = np.pad(np.array([[0.0, 9.0]]), 1)
    (axis,) = tiles([[Tile(table, fmt="g", margin=1)]]).axes
    ink = {tuple(reversed(text.get_position())): text.get_color() for text in axis.texts}
    assert (ink[1, 1], ink[1, 2], ink[0, 0]) == ("white", "black", "0.55")


def test_an_image_keeps_its_colours():
    image = np.random.default_rng(0).uniform(-0.2, 1.2, (4, 5, 3))
    (axis,) = tiles([[Tile(image)]]).axes
    np.testing.assert_array_equal(np.asarray(axis.images[0].get_array()), image.clip(0, 1))


def test_frames_lie_around_their_cells():
    frames = [Frame(0, 1, 2, 2), Frame(1, 0, 1, 1, COLORS[2], inset=0)]
    (axis,) = tiles([[Tile(TABLE, frames=frames)]]).axes
    boxes = [patch.get_extents().transformed(axis.transData.inverted()) for patch in axis.patches]
    np.testing.assert_allclose(boxes[0].get_points(), [[0.54, 1.46], [2.46, -0.46]], atol=1e-6)
    np.testing.assert_allclose(boxes[1].get_points(), [[-0.5, 1.5], [0.5, 0.5]], atol=1e-6)
    assert [
        same_color(p.get_edgecolor(), c)
        for p, c in zip(axis.patches, (COLORS[1], COLORS[2]), strict=True)
    ] == [
        True,
        True,
    ]


def test_tiles_are_square_pixels_in_columns_and_no_text_lies_over_other_text():
    row = [
        Tile(TABLE, "one with a long title", fmt="g"),
        "→",
        Tile(TABLE, fmt=".2f"),
        "sum = 9",
        Tile(TABLE, "c", "note"),
    ]
    figure = tiles([row, row], title="two rows", heights=[1.2, 1.6])
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for axis in figure.axes:
        if axis.images:
            box = axis.get_window_extent(renderer)
            assert box.width / box.height == pytest.approx(3 / 2, rel=0.01)
    texts = [
        t for axis in figure.axes for t in (axis.title, axis.xaxis.label, *axis.texts)
    ] + figure.texts
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text()]
    assert not [
        (a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[i + 1 :] if one.overlaps(two)
    ]
    assert all(box.x0 >= 0 <= box.y0 and box.x1 <= figure.bbox.x1 for _, box in boxes)
    left = [
        [axis.get_window_extent(renderer).x0 for axis in figure.axes[i : i + 5 : 2]] for i in (0, 5)
    ]
    assert left[0] != left[1]  # heights differ, and so do the widths
    assert len({round(axis.get_window_extent(renderer).height) for axis in figure.axes[:5:2]}) == 1


@pytest.mark.parametrize(
    ("rows", "heights", "says"),
    [
        ([], 1, "0 tiles in 0 rows"),
        ([["="]], 1, "0 tiles in 1 rows"),
        ([[Tile(TABLE)]], [1, 2], "1 rows with 2 heights"),
        (
            [[Tile(np.zeros((2, 2, 4)), "four")]],
            1,
            r"'four' has pixels of shape \(2, 2, 4\); expected \[h, w\]",
        ),
    ],
)
def test_what_cannot_be_drawn(rows, heights, says):
    with pytest.raises(ValueError, match=says):
        tiles(rows, heights=heights)
