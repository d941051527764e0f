"""Images with captions and heat, and the confusion matrix: what was drawn, and that no text lies over other text."""

import io
from typing import Any

import numpy as np
import pytest
from figures import overlapping
from matplotlib.collections import QuadMesh

from jaxcnn.plots import Tile, confusion, image_grid, overlay, style, tiles
from jaxcnn.plots.image_grid import Box, Strip, Stroke, direction_colors, mosaic


def images(n=5):
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def shown(axis):
    (image,) = axis.images
    return image.get_array()


def test_images_are_in_their_order_with_their_captions_and_heat():
    heat = np.random.default_rng(1).random((5, 8, 8))
    captions = [
        f"apple, taken for a lime ({i}%)\nsome/long/name/of/a/file/{i}.jpg" for i in range(5)
    ]
    figure = image_grid(images(), captions, heat=heat, columns=2, title="The surest of 5 mistakes")
    axes = [axis for axis in figure.axes if axis.images]
    assert len(axes) == 10
    for i in range(5):
        np.testing.assert_array_equal(shown(axes[2 * i]), images()[i])
        np.testing.assert_array_equal(shown(axes[2 * i + 1]), overlay(images()[i], heat[i]))
        assert axes[2 * i].get_xlabel().replace("\n", "").replace(" ", "") == captions[i].replace(
            "\n", ""
        ).replace(" ", "")
    assert not overlapping(figure)
    assert len([axis for axis in image_grid(images(), captions).axes if axis.images]) == 5


def test_images_without_captions_leave_no_room_for_any():
    bare, captioned = image_grid(images()), image_grid(images(), list("abcde"))
    assert [axis.get_xlabel() for axis in bare.axes] == [""] * 5
    for axis, image in zip(bare.axes, images(), strict=True):
        np.testing.assert_array_equal(shown(axis), image)
    assert bare.get_figheight() < captioned.get_figheight()
    assert len(image_grid(images(), heat=np.zeros((5, 8, 8))).axes) == 11  # and the color bar


NAMES = ["a $ b^{ $", "$x$", "50% \\ off|now", "\x1b[31mred", "é ü ß Ω"]


def test_names_are_drawn_as_they_are():
    """No formulas, no control characters, and no warnings, which are errors here."""
    figure = image_grid(images(), NAMES)
    drawn = [axis.get_xlabel() for axis in figure.axes]
    assert [text.replace("\n", " ") for text in drawn] == [*NAMES[:3], "\\x1b[31mred", NAMES[4]]
    figure.savefig(io.BytesIO())
    matrix = confusion(np.eye(5, dtype=int), NAMES)
    assert [text.get_text() for text in matrix.axes[0].get_yticklabels()] == [
        *NAMES[:3],
        "\\x1b[31mred",
        NAMES[4],
    ]
    matrix.savefig(io.BytesIO())
    tile = Tile(np.zeros((4, 4)), title="$a$ {", note="$^")
    tiles([[tile]]).savefig(io.BytesIO())
    mosaic([Strip([np.eye(4)], "$^ $", captions=["$_$"])]).savefig(io.BytesIO())


def test_other_scripts_use_the_fonts_that_are_there(monkeypatch, caplog):
    """Of a character that DejaVu Sans lacks, and another font or none has."""
    style._fallback_families.cache_clear()
    default = style._covered(style.findfont(style.FontProperties(family=["DejaVu Sans"])))
    monkeypatch.setattr(
        style,
        "_covered",
        lambda path: default | ({"猫"} if path.endswith("DejaVuSerif.ttf") else set()),
    )
    assert style.plain_text_style("猫 a")["fontfamily"] == ["sans-serif", "DejaVu Serif"]
    assert style.printable("猫 a") == "猫 a"
    assert style.printable("犬 a") == "\N{REPLACEMENT CHARACTER} a"
    assert "no installed font has the characters 犬" in caplog.text
    figure = confusion(np.eye(2, dtype=int), ["犬", "b"])
    figure.savefig(io.BytesIO())
    style._fallback_families.cache_clear()


def test_grey_images_are_grey():
    grey = images()[..., :1]
    np.testing.assert_array_equal(
        shown(image_grid(grey, list("abcde")).axes[0]), np.repeat(grey[0], 3, -1)
    )


def test_no_heat_leaves_the_grey_image_and_the_hottest_place_the_maps_colour():
    image = images(1)[0]
    grey = np.round(image @ np.array([0.2126, 0.7152, 0.0722]))
    np.testing.assert_array_equal(
        overlay(image, np.zeros((8, 8))), np.repeat(grey[..., None], 3, -1)
    )
    heat = np.zeros((8, 8))
    heat[2, 3] = 1
    changed = overlay(image, heat) != overlay(image, np.zeros((8, 8)))
    assert changed[2, 3].any()
    assert changed.any(-1).sum() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": images(0), "captions": []},
        {"images": images(), "captions": ["a"]},
        {"images": images(), "heat": np.zeros((4, 8, 8))},
    ],
)
def test_images_and_captions_are_as_many(wrong):
    with pytest.raises(
        ValueError, match="expected as many of each, or no captions, and at least one image"
    ):
        image_grid(**wrong)


def test_a_gray_image_is_overlaid_as_its_three_equal_channels_are():
    image, heat = images()[0][..., :1], np.linspace(0, 1, 64).reshape(8, 8)
    np.testing.assert_array_equal(overlay(image, heat), overlay(np.repeat(image, 3, -1), heat))
    for shape in ((8, 8), (8, 8, 2), (4, 8, 3)):
        with pytest.raises(
            ValueError, match=r"image is .* and heat \(8, 8\); expected \[h, w, 3\]"
        ):
            overlay(np.zeros(shape, np.uint8), heat)


@pytest.mark.parametrize("classes", [(), ("cat", "dog")])
def test_a_confusion_matrix_needs_a_name_for_each_class(classes):
    message = (
        rf"counts are \(3, 3\) and classes has {len(classes)} names; expected .* a name for each"
    )
    with pytest.raises(ValueError, match=message):
        confusion(np.eye(3, dtype=int), classes)


def test_the_confusion_matrix_is_of_shares_of_the_true_class():
    counts = np.array([[8, 2, 0], [0, 0, 0], [1, 1, 2]])
    figure = confusion(counts, ["cat", "a dog", "the owl"], title="resnet20, 14 test images")
    axis = figure.axes[0]
    (mesh,) = (part for part in axis.collections if isinstance(part, QuadMesh))
    np.testing.assert_allclose(
        np.asarray(mesh.get_array()).reshape(3, 3), [[80, 20, 0], [0, 0, 0], [25, 25, 50]]
    )
    found = {tuple(map(int, text.get_position()))[::-1]: text.get_text() for text in axis.texts}
    assert found == {(0, 0): "8", (0, 1): "2", (2, 0): "1", (2, 1): "1", (2, 2): "2"}
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted class", "true class")
    assert axis.get_ylim() == (2.5, -0.5)  # the first class above
    assert not overlapping(figure)


def test_many_classes_have_colours_alone():
    figure = confusion(np.eye(60, dtype=int) * 7, [f"class {i}" for i in range(60)])
    assert not figure.axes[0].texts
    assert max(figure.get_size_inches()) < 10
    with pytest.raises(ValueError, match="expected \\[num_classes, num_classes\\]"):
        confusion(np.eye(3), ["a"])


def test_boxes_are_drawn_at_their_pixels_with_readable_labels():
    boxes = [
        [Box((2, 4, 6, 8), "cat 0.9", "#0072B2"), Box((0, 0, 8, 8), "dog", "white", dashed=True)],
        [],
    ]
    figure = mosaic(
        [Strip([*images(2)], "truth"), Strip([*images(2)], "found", boxes=boxes)], side=1.0
    )
    (axis,) = figure.axes
    extent = axis.images[2].get_extent()
    corner, scale = (extent[0], extent[3]), 1.0 / 8
    lines = [line for line in axis.lines if line.get_color() != "black"]
    assert [line.get_linestyle() for line in lines] == ["-", "--"]
    x, y = (np.asarray(values) for values in lines[0].get_data())
    np.testing.assert_allclose([x.min(), x.max()], corner[0] + scale * np.array([2, 6]))
    np.testing.assert_allclose([y.min(), y.max()], corner[1] + scale * np.array([4, 8]))
    colors = {text.get_text(): text.get_color() for text in axis.texts}
    assert (colors["cat 0.9"], colors["dog"]) == ("white", "black")
    # A label of a box at the upper border lies inside the image.
    dog = next(text for text in axis.texts if text.get_text() == "dog")
    assert dog.get_position()[1] > corner[1]


def test_boxes_of_a_strip_are_as_many_as_its_images():
    with pytest.raises(ValueError, match=r"'a' has 1 boxes; expected none or 2"):
        mosaic([Strip([*images(2)], "a", boxes=[[]])])


def test_strokes_run_through_their_points():
    """Points are in pixels from the upper left corner, as the edges of boxes are."""
    strokes = [[Stroke([(0, 0), (8, 4), (2, 6)], "#0072B2", dots=True), Stroke([(1, 1), (2, 2)])]]
    figure = mosaic([Strip([*images(1)], "limbs", strokes=strokes)], side=2.0)
    (axis,) = figure.axes
    extent = axis.images[0].get_extent()
    corner, scale = np.array([extent[0], extent[3]]), 2.0 / 8
    # The dark line behind, the line, and its dots.
    own = [line for line in axis.lines if np.size(line.get_xdata()) == 3]
    assert [line.get_color() for line in own[:2]] == ["black", "#0072B2"]
    assert [line.get_marker() for line in own] == ["None", "None", "o"]
    for line in own:
        np.testing.assert_allclose(
            np.stack(line.get_data(), -1), corner + scale * np.array([[0, 0], [8, 4], [2, 6]])
        )
    assert len(axis.lines) == 5
    with pytest.raises(ValueError, match=r"'a' has 2 strokes; expected none or 1"):
        mosaic([Strip([*images(1)], "a", strokes=[[], []])])


def test_colors_of_directions():
    """Opposite directions have opposite hues, and the length is the brightness up to 1."""
    vectors = np.array([[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.5, 0.0], [0.0, 9.0]]])
    colors = direction_colors(vectors)[0]
    np.testing.assert_allclose(
        colors, [[1, 0, 0], [0, 1, 1], [0, 0, 0], [0.5, 0, 0], [0.5, 1, 0]], atol=1e-12
    )


def test_vectors_with_nan_are_white_and_other_shapes_refused():
    vectors = np.array([[[np.nan, 0.0], [1.0, np.nan], [1.0, 0.0]]])
    np.testing.assert_array_equal(direction_colors(vectors), [[[1, 1, 1], [1, 1, 1], [1, 0, 0]]])
    for shape in ((3, 3, 3), (3, 2), ()):
        with pytest.raises(ValueError, match=r"vectors is of shape .*; expected \(h, w, 2\)"):
            direction_colors(np.zeros(shape))


@pytest.mark.parametrize("kind", ["strokes", "boxes"])
def test_strokes_and_boxes_are_in_a_list_for_each_image(kind):
    one: Any = {"strokes": Stroke([(0, 0), (1, 1)]), "boxes": Box((0, 0, 1, 1))}[kind]
    name = type(one).__name__
    for items in ([one, one], [[one], [(0, 0)]], [[one], None]):
        with pytest.raises(ValueError, match=f"{kind} of 'a' have .*expected a list of {name}"):
            mosaic([Strip([*images(2)], "a")._replace(**{kind: items})])
    figure = mosaic([Strip([*images(2)], "a")._replace(**{kind: [(one,), []]})])
    assert len(figure.axes[0].lines) == 2
