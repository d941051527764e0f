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
    ("image", "probabilities", "names"),
    [
        ((4, 8), (2, 3), 3),
        ((4, 8, 1), (2, 2), 3),
        ((4, 8, 1), (6,), 3),
        ((4, 8, 2), (2, 3), 3),
        ((4, 8, 4), (2, 3), 3),
        ((4, 0, 1), (2, 3), 3),
        ((0, 8, 1), (2, 3), 3),
        ((4, 8, 1), (0, 3), 3),
        ((4, 8, 1), (2, 0), 0),
    ],
)
def test_other_shapes_are_one_line(image, probabilities, names):
    says = r"expected \[h, w, 1\] or \[h, w, 3\], \[t, k\] and k names, none of them empty"
    with pytest.raises(ValueError, match=says) as error:
        plots.frame_probabilities(
            np.zeros(image, np.uint8), np.zeros(probabilities), ["0", "1", "blank"][:names]
        )
    assert "\n" not in str(error.value)


def test_names_that_are_no_texts_are_one_line():
    with pytest.raises(ValueError, match=r"names are \[0, 1\]; expected texts") as error:
        plots.frame_probabilities(np.zeros((4, 8, 1)), np.zeros((2, 2)), [0, 1])  # pyright: ignore
    assert "\n" not in str(error.value)
