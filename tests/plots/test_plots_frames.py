"""Probabilities along an image: lines, names at peaks, and what cannot be drawn."""

import numpy as np
import pytest

from jaxcnn import plots


def test_lines_are_the_probabilities_at_the_frames_centers():
    probabilities = np.array(
        [[0.0, 0.01, 0.99], [0.9, 0.01, 0.09], [0.6, 0.0, 0.4], [0.1, 0.0, 0.9], [0.7, 0.0, 0.3]]
    )
    names = ["7", "8", "blank"]
    image = np.full((4, 20, 3), 9, np.uint8)
    figure = plots.frame_probabilities(image, probabilities, names, title="a line")
    upper, lower = figure.axes
    np.testing.assert_array_equal(upper.images[0].get_array(), image)
    # Class 8 is nowhere probable.
    assert len(lower.lines) == 2
    for line, column in zip(lower.lines, (0, 2), strict=True):
        np.testing.assert_allclose(np.asarray(line.get_xdata()), [2, 6, 10, 14, 18])
        np.testing.assert_allclose(np.asarray(line.get_ydata()), probabilities[:, column])
    assert [(text.get_text(), *text.xy) for text in lower.texts] == [  # pyright: ignore
        ("7", 6.0, 0.9),
        ("7", 18.0, 0.7),
    ]
    assert upper.get_xlim() == lower.get_xlim() == (0, 20)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["7", "blank"]
    assert figure.get_suptitle() == "a line"


@pytest.mark.parametrize(
    ("image", "probabilities"), [((4, 8), (2, 3)), ((4, 8, 1), (2, 2)), ((4, 8, 1), (6,))]
)
def test_other_shapes_are_one_line(image, probabilities):
    with pytest.raises(ValueError, match=r"expected \[h, w, c\], \[t, k\] and k names") as error:
        plots.frame_probabilities(np.zeros(image), np.zeros(probabilities), ["0", "1", "blank"])
    assert "\n" not in str(error.value)
