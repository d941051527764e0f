"""What a reader of any figure needs: axes with names and units, scales for colors, no text over other text."""

import re
from typing import Any

import numpy as np
import pytest
from figures import labels, overlapping
from matplotlib.collections import QuadMesh
from matplotlib.textpath import TextPath

from jaxcnn import plots
from jaxcnn.plots.roofline import roofline
from jaxcnn.plots.style import new_figure, set_ticks, text_width

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
GRID = np.linspace(-1, 1, 21)
BOWL = 0.01 + GRID[:, None] ** 2 + GRID**2
PATH = np.array([[0.9, 0.8], [0.4, -0.2], [0.1, 0.1], [0.0, 0.0]])
ROWS = [
    {"step": step, "train_error": 50 / step, "eval_error": 60 / step, "eval_split": "test"}
    for step in range(1, 40)
]


def panels():
    line = plots.Line([1, 10, 100], [90.0, 20.0, 2.5], label="SGD", marker="o")
    axes = {"xlabel": "step", "ylabel": "error (%)", "ylog": True}
    return plots.panels(
        [plots.Panel(f"network {i}", [line], **axes) for i in range(5)], title="Error by step"
    )


def bars(**more):
    groups = {f"class {i}": {"network": 0.9, "mean image": 0.5 + 0.01 * i} for i in range(9)}
    errors = {label: {"network": 0.05} for label in groups}
    given = {"xlabel": "held-out class", "error_label": "95% interval", "reference": (0.5, "guess")}
    return plots.bars(groups, ylabel="area (share)", errors=errors, **(given | more))


def heatmap():
    values = np.geomspace(0.5, 90, 60).reshape(12, 5)
    names = {"rows": [f"method {i}" for i in range(12)], "columns": [0.001, 0.01, 0.1, 1, 10]}
    axes: dict[str, Any] = {"xlabel": "learning rate", "ylabel": "optimizer", "label": "error (%)"}
    return plots.heatmap(values, **names, **axes, log=True, best="min", title="Error by rate")


def contours():
    fields = [
        plots.Field(f"network {i}", GRID, GRID, BOWL, "PC 1 (90% of it)", "PC 2 (L2)", PATH, "note")
        for i in range(4)
    ]
    return plots.contours(fields, label="loss (nats)", columns=2, share=False, title="Paths")


def image_grid():
    captions = [f"cat, predicted dog ({i}%)" for i in range(6)]
    heat = RNG.random((6, 8, 8))
    return plots.image_grid(IMAGES, captions, heat=heat, columns=3, title="Mistakes")


def tiles():
    row = [plots.Tile(image / 255, f"image {i}", "a note") for i, image in enumerate(IMAGES)]
    return plots.tiles([row, row], heights=1.5, bar="attribution (share)", title="Attribution")


FIGURES = {
    "panels": panels,
    "bars": bars,
    "bars without numbers": lambda: bars(fmt=None),
    "heatmap": heatmap,
    "contours": contours,
    "curves": lambda: plots.curves(
        {"plain": {"20 layers": [ROWS, ROWS]}, "residual": {"20 layers": [ROWS, ROWS]}},
        dashed="train_error",
        solid="eval_error",
        title="Error by depth: digits, width 8, 300 steps of 128 images",
    ),
    "image_grid": image_grid,
    "tiles": tiles,
    "mosaic": lambda: plots.mosaic(
        [plots.Strip([np.eye(4)] * 6, "a row", limits=(0, 1))], bar="weight (share)", note="Weights"
    ),
    "confusion": lambda: plots.confusion(np.eye(3, dtype=int) * 9, ["cat", "dog", "owl"]),
    "roofline": lambda: roofline({"resnet20": (5.0, 60.0)}, peak=180.0, bandwidth=30.0),
}
WITH_COLORS = ("heatmap", "contours", "image_grid", "tiles", "mosaic", "confusion")


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_lies_over_other_text_or_leaves_the_figure(name):
    assert not overlapping(FIGURES[name]())


@pytest.mark.parametrize(
    "name", [name for name in FIGURES if name not in ("image_grid", "tiles", "mosaic")]
)
def test_numbers_at_an_axis_have_a_name_and_a_unit_next_to_them(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    for axis in figure.axes:
        for way, label in (("x", axis.get_xlabel()), ("y", axis.get_ylabel())):
            ticks = getattr(axis, f"get_{way}ticklabels")()
            shown = [tick for tick in ticks if tick.get_visible() and tick.get_text()]
            has_numbers = shown and axis.xaxis.get_visible()
            is_outer = (
                axis.get_subplotspec() is None
                or getattr(axis.get_subplotspec(), {"x": "is_last_row", "y": "is_first_col"}[way])()
            )
            if has_numbers and is_outer and not axis.get_label().startswith("<colorbar>"):
                assert label, (name, way)
            if re.search("error|loss|area|GFLOP", label):
                assert re.search(r"\(.+\)", label), label


@pytest.mark.parametrize("name", WITH_COLORS)
def test_colors_have_a_scale_with_a_unit(name):
    figure = FIGURES[name]()
    bars = [axis for axis in figure.axes if axis.get_label() == "<colorbar>"]
    assert len(bars) == 1
    assert re.search(r"\(.+\)", bars[0].get_xlabel() or bars[0].get_ylabel())


def test_figures_without_heat_have_no_scale():
    for figure in (plots.image_grid(IMAGES), plots.tiles([[plots.Tile(np.eye(2))]])):
        assert not [axis for axis in figure.axes if axis.get_label() == "<colorbar>"]


def test_the_heat_is_named_as_asked():
    figure = plots.image_grid(IMAGES, heat=np.zeros((6, 8, 8)), heat_label="Grad-CAM (share)")
    assert figure.axes[-1].get_ylabel() == "Grad-CAM (share)"


def test_bars_name_their_intervals_and_their_reference_and_are_narrow_without_numbers():
    with_numbers, bare = bars(), bars(fmt=None)
    assert labels(bare) == ["network", "mean image", "95% interval", "guess"]
    assert bare.axes[0].get_xlabel() == "held-out class"
    assert not bare.axes[0].texts
    assert len(with_numbers.axes[0].texts) == 18
    assert bare.get_figwidth() < 0.7 * with_numbers.get_figwidth()
    lines = [
        np.asarray(line.get_ydata())[0]
        for line in bare.axes[0].lines
        if line.get_linestyle() == ":"
    ]
    assert lines == [0.5]
    assert "guess" not in labels(bars(reference=None))
    assert "95% interval" not in labels(plots.bars({"a": {"b": 1.0}}, ylabel="error (%)"))


def test_equal_ratios_are_equal_steps_of_color_where_the_scale_is_logarithmic():
    names = {"rows": ["a"], "columns": [1, 2, 3], "xlabel": "", "ylabel": "", "label": "loss"}

    def shares(**more):
        axis = plots.heatmap([[1.0, 10.0, 100.0]], **names, **more).axes[0]
        (mesh,) = (part for part in axis.collections if isinstance(part, QuadMesh))
        return np.asarray(mesh.norm(np.asarray(mesh.get_array()))).ravel()

    np.testing.assert_allclose(shares(log=True), [0, 0.5, 1])
    np.testing.assert_allclose(shares(), [0, 9 / 99, 1])
    with pytest.raises(ValueError, match="0 or negative"):
        plots.heatmap([[1.0, 0.0, 2.0]], **names, log=True)
    plots.heatmap([[2.0, 2.0, np.nan]], **names, log=True).draw_without_rendering()


def test_numbers_on_contours_keep_off_the_path():
    def visible(path):
        figure = plots.contours([plots.Field("", GRID, GRID, BOWL, path=path)], label="loss (nats)")
        return [text.get_position() for text in figure.axes[0].texts if text.get_visible()]

    free = np.array(visible(None))
    through = np.array([free[0], [0.0, 0.0]])  # A path over the first of the numbers.
    kept = visible(through)
    assert kept
    assert not any(np.allclose(free[0], position) for position in kept)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((1.2, 3.3), ["2", "3"]),
        ((1.5, 70.0), ["3", "10", "30"]),
        ((0.01, 0.2), ["0.01", "0.02", "0.05", "0.1", "0.2"]),
        ((1.0, 1000.0), ["$\\mathdefault{10^{0}}$", "$\\mathdefault{10^{3}}$"]),
    ],
)
def test_a_logarithmic_axis_has_at_least_two_numbers(limits, expected):
    figure = new_figure(4, 3)
    axis = figure.add_subplot()
    axis.plot([0, 1], limits)
    set_ticks(axis.yaxis, log=True, panel_width=4)
    axis.set_ylim(limits)
    figure.draw_without_rendering()
    ticks = [*axis.yaxis.get_major_ticks(), *axis.yaxis.get_minor_ticks()]
    low, high = (limits[0] * (1 - 1e-9), limits[1] * (1 + 1e-9))
    shown = [
        t.label1.get_text()
        for t in sorted(ticks, key=lambda t: t.get_loc())
        if low <= t.get_loc() <= high
    ]
    assert set(expected) <= {text for text in shown if text}
    assert len([text for text in shown if text]) >= 2


@pytest.mark.parametrize(
    "text",
    [
        "Error by step, 3 seeds & 95% interval",
        r"$\sqrt{2 / \eta}$ of $x_{10}^2$",
        "OQSJ8@{}()",
        "-",
        ".",
    ],
)
@pytest.mark.parametrize("size", [6.5, 12])
def test_the_width_of_a_text_is_matplotlib_s(text, size):
    expected = TextPath((0, 0), text, size=size).get_extents().width / 72
    assert text_width(text, size) == pytest.approx(expected, rel=1e-12)
