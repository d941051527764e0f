"""Learning curves: what is drawn is the mean and the range of the rows, in the styles of the paper's figure 6."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import same_color
from PIL import Image

import jaxcnn
from jaxcnn.plots import COLORS, curves, save


def rows(train, test, steps=(10, 20, 30), split="test"):
    keys = ("step", "train_error", "eval_error")
    return [
        dict(zip(keys, row, strict=True)) | {"eval_split": split}
        for row in zip(steps, train, test, strict=True)
    ]


SEEDS = [
    rows([9.0, 5.0, 1.0], [9.5, 6.0, 4.0]),
    rows([7.0, 5.5, 3.0], [8.5, 7.0, 2.0]),
    rows([8.0, 3.0, 2.0], [9.0, 8.0, 3.0]),
]
ALONE = [rows([4.0, 3.0, 2.0], [6.0, 5.0, 4.0])]
PANELS = {
    "plain": {"20 layers": SEEDS, "56 layers": ALONE},
    "residual": {"56 layers": ALONE, "20 layers": ALONE},
}


def drawn(panels=PANELS):
    return curves(panels, dashed="train_error", solid="eval_error", title="Figure 6")


def values(key, seeds=SEEDS):
    return np.array([[row[key] for row in rows] for rows in seeds])


def points(line):
    """The steps and the values of a line."""
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


def bands(axis):
    """Each band's steps, least and greatest values."""
    found = []
    for band in axis.collections:
        assert isinstance(band, PolyCollection)
        corners = np.asarray(band.get_paths()[0].vertices)
        steps = sorted(set(corners[:, 0]))
        at = [corners[corners[:, 0] == step, 1] for step in steps]
        found.append((steps, [y.min() for y in at], [y.max() for y in at]))
    return found


def test_there_is_one_axis_a_panel_and_they_share_their_scale():
    figure = drawn()
    assert [axis.get_title() for axis in figure.axes] == ["plain", "residual"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert figure.axes[0].get_ylim()[0] == 0
    assert figure.get_suptitle() == "Figure 6"
    assert len(drawn({"one": {"20 layers": ALONE}}).axes) == 1


def test_training_is_dashed_and_thin_and_testing_solid_and_bold():
    lines = drawn().axes[0].lines
    assert [line.get_linestyle() for line in lines] == ["--", "-", "--", "-"]
    for line, key, seeds in zip(
        lines, ["train_error", "eval_error"] * 2, [SEEDS, SEEDS, ALONE, ALONE], strict=True
    ):
        steps, means = points(line)
        assert steps == [10, 20, 30]
        np.testing.assert_allclose(means, values(key, seeds).mean(0), rtol=1e-12)
    assert lines[1].get_linewidth() > 1.5 * lines[0].get_linewidth()


def test_a_label_has_one_colour_in_all_panels():
    plain, residual = drawn().axes
    twenty, fifty_six = COLORS[:2]
    for axis, colours in (
        (plain, [twenty, twenty, fifty_six, fifty_six]),
        (residual, [fifty_six] * 2 + [twenty] * 2),
    ):
        assert all(
            same_color(line.get_color(), colour)
            for line, colour in zip(axis.lines, colours, strict=True)
        )


def test_the_band_reaches_from_the_least_to_the_greatest_and_one_seed_has_none():
    plain, residual = drawn().axes
    assert not residual.collections
    for (steps, low, high), key in zip(bands(plain), ["train_error", "eval_error"], strict=True):
        assert steps == [10, 20, 30]
        np.testing.assert_array_equal(low, values(key).min(0))
        np.testing.assert_array_equal(high, values(key).max(0))


def test_rows_without_a_number_are_passed_over():
    diverged = rows([9.0, None, None], [None, 7.0, None])
    axis = drawn({"": {"20 layers": [diverged, ALONE[0][:2]]}}).axes[0]
    dashed, solid = axis.lines
    assert points(dashed) == ([10, 20], [6.5, 3.0])
    assert points(solid) == ([10, 20], [6.0, 6.0])
    assert bands(axis) == [([10, 20], [4.0, 3.0], [9.0, 3.0]), ([10, 20], [6.0, 5.0], [6.0, 7.0])]


def test_a_run_with_no_numbers_at_all_still_makes_a_figure():
    nothing = drawn({"": {"20 layers": [rows([None], [None], steps=(10,))]}})
    assert [points(line) for line in nothing.axes[0].lines] == [([], [])] * 2


@pytest.mark.parametrize(
    ("train", "test", "top"),
    [
        ([9.0, 5.0, 4.0], [8.0, 6.0, 5.0], 1.05 * 9),  # all of it
        (
            [90.0, 20.0, 4.0],
            [95.0, 20.0, 10.0],
            2.5 * 10,
        ),  # the first descent is left out, as in the paper's figure
        ([90.0, 20.0, None], [95.0, None, None], 1.05 * 95),  # nothing at the end to measure by
    ],
)
def test_the_axis_ends_where_the_ends_of_the_lines_can_be_told_apart(train, test, top):
    axis = drawn({"": {"20 layers": [rows(train, test)]}}).axes[0]
    assert axis.get_ylim() == pytest.approx((0, top))


def test_one_legend_names_the_lines_and_says_what_a_band_is():
    def said(panels):
        (legend,) = drawn(panels).legends
        return [text.get_text() for text in legend.get_texts()]

    note = ", mean and range of 3 seeds"
    assert said(PANELS) == ["20 layers", "56 layers", f"test error{note}", f"train error{note}"]
    assert said({"residual": PANELS["residual"]}) == [
        "56 layers",
        "20 layers",
        "test error",
        "train error",
    ]


@pytest.mark.parametrize(
    ("splits", "label"),
    [
        (("validation",), "validation error"),
        (("test", "validation"), "eval error"),
        ((None,), "eval error"),
    ],
)
def test_the_legend_names_the_split_that_all_rows_are_of(splits, label):
    seeds = [rows([4.0, 3.0, 2.0], [6.0, 5.0, 4.0], split=split) for split in splits]
    (legend,) = drawn({"one": {f"{i}": [seed] for i, seed in enumerate(seeds)}}).legends
    assert legend.get_texts()[-2].get_text() == label


def test_a_saved_figure_is_a_png_of_160_dots_an_inch(tmp_path):
    figure = drawn()
    save(figure, tmp_path / "figure6.png")
    with Image.open(tmp_path / "figure6.png") as image:
        assert image.format == "PNG"
        assert image.size == tuple(int(160 * inches) for inches in figure.get_size_inches())
        assert image.info["dpi"] == pytest.approx((160, 160), abs=0.01)


@pytest.mark.slow
def test_pyplot_and_its_windows_are_never_imported():
    program = "import sys, jaxcnn.plots as p; p.curves({'': {'': [[]]}}, dashed='a', solid='b'); print(*sys.modules)"
    root = Path(jaxcnn.__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root
    )
    loaded = ran.stdout.split()
    assert "matplotlib.figure" in loaded
    assert "matplotlib.pyplot" not in loaded
