"""Learning curves: what is drawn is the mean and the range of the rows, in the styles of the paper's figure 6."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from figures import overlapping
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import same_color
from PIL import Image

import jaxcnn
from jaxcnn import plots
from jaxcnn.learning_rate_finder import range_test, read
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


def test_the_legend_of_one_panel_is_within_the_figure():
    lines = dict.fromkeys(("ResNet-8", "own module", "another network"), ALONE)
    figure = drawn({"digits": lines})
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (legend,) = figure.legends
    box = legend.get_window_extent(renderer)
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


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
    """Of a run of 30 rows; one row less, and the whole of it is drawn."""
    for n, expected in ((30, top), (29, 1.05 * max(train + test, key=lambda x: x or 0))):
        train, test = ([part[0], *[part[1]] * (n - 2), part[-1]] for part in (train, test))
        axis = drawn({"": {"20 layers": [rows(train, test, steps=range(n))]}}).axes[0]
        assert axis.get_ylim() == pytest.approx((0, expected))


def test_a_short_run_is_drawn_whole_next_to_a_long_one():
    long = rows([95.0, *[20.0] * 28, 4.0], [90.0, *[20.0] * 28, 10.0], steps=range(30))
    short = rows([60.0, 5.0], [50.0, 6.0], steps=(0, 29))
    axis = drawn({"": {"20 layers": [long], "56 layers": [short]}}).axes[0]
    assert axis.get_ylim() == pytest.approx((0, 1.05 * 60))


@pytest.mark.parametrize(
    ("keys", "label"),
    [
        (("train_error", "eval_error"), "error (%)"),
        (("train_loss", "eval_loss"), "loss"),
        (("eval_error", "precise_eval_error"), "error (%)"),
        (("train_box_overlap", "eval_box_overlap"), "box overlap"),
        (("train_loss", "eval_error"), "loss, error (%)"),
        (("grad_norm", "loss_std"), "grad norm, loss std"),
    ],
)
def test_the_axis_is_labelled_by_the_keys(keys, label):
    run = [{"step": step, "eval_split": "test"} | dict.fromkeys(keys, 2.0) for step in (1, 2)]
    axis = curves({"": {"own": [run]}}, dashed=keys[0], solid=keys[1]).axes[0]
    assert axis.get_ylabel() == label


def test_negative_values_are_not_cut_off():
    run = rows([2.0, -1.0, -3.0], [1.0, 0.0, -2.0])
    low, high = drawn({"": {"own": [run]}}).axes[0].get_ylim()
    assert low < -3
    assert 2 < high < 3


def test_values_that_are_not_finite_are_gaps():
    run = rows([2.0, float("nan"), 1.0], [float("inf"), 3.0, 2.0])
    axis = drawn({"": {"own": [run]}}).axes[0]
    assert [points(line) for line in axis.lines] == [
        ([10, 30], [2.0, 1.0]),
        ([20, 30], [3.0, 2.0]),
    ]
    assert axis.get_ylim() == pytest.approx((0, 1.05 * 3))


def test_one_legend_names_the_lines_and_says_what_a_band_is():
    def said(panels):
        (legend,) = drawn(panels).legends
        return [text.get_text() for text in legend.get_texts()]

    note = " (mean, range of 3 seeds)"
    assert said(PANELS) == ["20 layers", "56 layers", f"test error{note}", f"training error{note}"]
    assert said({"residual": PANELS["residual"]}) == [
        "56 layers",
        "20 layers",
        "test error",
        "training error",
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


def every_figure():
    """One of each function's figures."""
    images = np.zeros((2, 4, 4, 3), np.uint8)
    descend = lambda w, rate: (w - rate * 8 * w, 4 * w * w)  # noqa: E731
    result = range_test(descend, 1.0, low=1e-3, high=10, window=1)
    return {
        "curves": drawn(),
        "image_grid": plots.image_grid(images),
        "mosaic": plots.mosaic([plots.Strip([np.zeros((2, 2))], "stem")]),
        "panels": plots.panels([plots.Panel("", [plots.Line([1, 2], [3.0, 2.0])])]),
        "lr_finder": plots.lr_finder(result),
        "confusion": plots.confusion(np.eye(2, dtype=int), ("a", "b")),
    }


@pytest.mark.parametrize("name", every_figure())
def test_a_notebook_shows_every_figure_as_an_image(name):
    figure = every_figure()[name]
    content, shown = figure._repr_png_()  # pyright: ignore[reportAttributeAccessIssue]
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("RGB")))) > 1
        assert abs(image.size[0] - 2 * shown["width"]) <= 2
        assert abs(image.size[1] - 2 * shown["height"]) <= 2


def test_ipython_takes_the_image_of_a_figure():
    formatters = pytest.importorskip("IPython.core.formatters")
    data, metadata = formatters.DisplayFormatter().format(drawn(), include={"image/png"})
    assert data["image/png"].startswith(b"\x89PNG")
    assert set(metadata["image/png"]) == {"width", "height"}


# The range test of the learning rate


def quadratic_result(**options):
    """Of a parabola of curvature 8, which diverges above 2 / 8."""
    descend = lambda w, rate: (w - rate * 8 * w, 4 * w * w)  # noqa: E731
    return range_test(descend, 1.0, low=1e-3, high=10, window=1, **options)


def test_the_range_test_is_drawn_with_the_rates_that_it_found():
    result = quadratic_result()
    figure = plots.lr_finder(result, title="a parabola")
    (axis,) = figure.axes
    assert (axis.get_title(), axis.get_xscale()) == ("a parabola", "log")
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("learning rate", "loss")
    raw, smooth, suggested, limit, cross = axis.lines
    for line, expected in ((raw, result.losses), (smooth, result.smooth)):
        np.testing.assert_array_equal(line.get_xdata(), result.rates)
        np.testing.assert_array_equal(line.get_ydata(), expected)
    for line, rate in ((suggested, result.suggested), (limit, result.limit)):
        assert set(np.asarray(line.get_xdata()).tolist()) == {rate}
    assert np.asarray(cross.get_xdata()).tolist() == [result.diverged]
    names = [text.get_text() for text in axis.texts]
    assert names == [f"suggested {result.suggested:.2g}", f"limit {result.limit:.2g}"]
    # The descent fills the axes, although the loss grows to many times the first.
    assert axis.get_ylim() == pytest.approx((0, 1.6 * result.smooth[0]))
    assert not overlapping(figure)


def test_what_the_range_test_did_not_find_is_not_drawn():
    rates = np.geomspace(1e-3, 1e-2, 12)
    flat = plots.lr_finder(read(rates, [2.0] * 12))
    assert len(flat.axes[0].lines) == 2
    assert not flat.axes[0].texts
    nothing = plots.lr_finder(read(rates, [float("nan")] * 12))
    nothing.savefig(io.BytesIO())
    negative = plots.lr_finder(read(rates, np.linspace(1.0, -4.0, 12)))
    low, high = negative.axes[0].get_ylim()
    assert low < -4
    assert high > 1


@pytest.mark.parametrize("result", [None, 3, {"rates": []}, (1, 2)])
def test_what_is_no_result_of_a_range_test_is_one_line(result):
    with pytest.raises(ValueError, match=r"expected what jaxcnn\.lr_finder returns") as caught:
        plots.lr_finder(result)
    assert "\n" not in str(caught.value)


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
