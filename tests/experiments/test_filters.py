"""The script of the filters: every figure is there, shows what scipy computes, and mistakes are one line."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scripts import refuses

from experiments import filters
from experiments.filters import __main__ as script
from experiments.filters import figures, ops

IMAGE = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)


@pytest.fixture
def drawn(monkeypatch):
    """The tiles that a part lays out, in place of a figure."""
    seen = []
    monkeypatch.setattr("jaxcnn.plots.tiles", lambda rows, **given: seen.extend(rows))
    return seen


@pytest.mark.slow
def test_figures_of_an_image_of_the_users_own(tmp_path, capsys):
    Image.fromarray(IMAGE).save(tmp_path / "mine.png")
    given = ["--image", str(tmp_path / "mine.png"), "--size", "64", "--out", str(tmp_path / "out")]
    assert script.main([*given, "--figures", "im2col", "lrn"]) == 0
    assert capsys.readouterr().out == f"wrote im2col.png, lrn.png to {tmp_path / 'out'}\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["im2col.png", "lrn.png"]


def test_the_script_says_what_every_figure_is():
    assert [
        line.split(".png")[0] for line in (filters.__doc__ or "").splitlines() if ".png " in line
    ] == list(script.FIGURES)


@pytest.mark.slow
def test_each_filter_stands_above_what_it_makes(drawn):
    image = jnp.asarray(IMAGE[:64, :64], jnp.float32) / 255
    figures.filters_figure(image)
    found = {
        kernel.title.split(" / ")[0]: tile.pixels
        for i in (0, 2)
        for kernel, tile in zip(*drawn[i : i + 2], strict=True)
    }
    assert list(found) == list(ops.FILTERS)
    np.testing.assert_array_equal(found["identity"], image[21:42, 21:42])
    assert all(
        pixels.shape == (21, 21, 3) and 0 <= pixels.min() <= pixels.max() <= 1
        for pixels in found.values()
    )


def test_the_photograph_is_there_without_a_download():
    image = np.asarray(script.load_photograph(script.Options(size=64)))
    assert (image.shape, image.dtype) == ((64, 64, 3), np.float32)
    assert 0 <= image.min() < 0.2 < 0.8 < image.max() <= 1


def test_a_step_is_the_patch_times_the_kernel_and_its_sum(drawn):
    figures.steps_figure(jnp.zeros(()))
    expected = ndimage.correlate(figures.SMALL_IMAGE, ops.FILTERS["Sobel x"])[1:-1, 1:-1]
    for tile, _, patch, _, kernel, _, products, text, output in drawn:
        y, x = int(tile.frames[0].row), int(tile.frames[0].column)
        np.testing.assert_array_equal(patch.pixels, figures.SMALL_IMAGE[y : y + 3, x : x + 3])
        np.testing.assert_array_equal(products.pixels, patch.pixels * kernel.pixels)
        assert (
            int(text.split("=")[1].strip(" →\u2007"))
            == products.pixels.sum()
            == expected[y, x]
            == output.pixels[y, x]
        )
        known = np.isfinite(output.pixels)
        assert known.sum() == 3 * y + x + 1
        np.testing.assert_array_equal(output.pixels[known], expected[known])


def test_the_matrix_product_is_one(drawn):
    figures.product_figure(jnp.zeros(()))
    ((tile, _, matrix, _, kernels, _, result, _, first, second),) = drawn
    np.testing.assert_array_equal(matrix.pixels @ kernels.pixels, result.pixels)
    np.testing.assert_array_equal(
        first.pixels, ndimage.correlate(tile.pixels, ops.FILTERS["Sobel x"])[1:-1, 1:-1]
    )
    np.testing.assert_array_equal(second.pixels, ndimage.laplace(tile.pixels)[1:-1, 1:-1])


@pytest.mark.slow
def test_sizes_are_those_that_their_note_says(drawn):
    figures.sizes_figure(jnp.zeros(()))
    pairs = [(row[i], row[i + 2]) for row in drawn for i in (0, 4)]
    assert [made.pixels.shape[0] for _, made in pairs] == [3, 5, 2, 3]
    for given, made in pairs:
        assert made.note.endswith(f"= {len(made.pixels)}")
        for window, cell in zip(given.frames, made.frames, strict=True):
            y, x = int(window.row), int(window.column)
            mean = given.pixels[y : y + 3, x : x + 3].mean()
            assert made.pixels[cell.row, cell.column] == pytest.approx(mean, rel=1e-6)


@pytest.mark.slow
def test_pooling_and_upsampling_show_what_their_titles_say(drawn):
    image = jnp.asarray(IMAGE[:64, :64], jnp.float32) / 255
    figures.pooling_figure(image)
    (numbers, photographs) = drawn
    np.testing.assert_array_equal(numbers[1].pixels, [[5, 9], [8, 7]])
    np.testing.assert_array_equal(numbers[2].pixels, [[2.75, 3], [4, 4]])
    np.testing.assert_array_equal(photographs[1].pixels, image.reshape(8, 8, 8, 8, 3).max((1, 3)))
    drawn.clear()
    figures.upsampling_figure(image)
    (small, nearest, bilinear), stamps, (two, three, four) = drawn
    np.testing.assert_array_equal(nearest.pixels, small.pixels.repeat(4, 0).repeat(4, 1))
    np.testing.assert_allclose(
        two.pixels, nearest.pixels, atol=1e-6
    )  # windows that do not overlap repeat the pixel
    assert [tile.pixels.max() for tile in stamps] == [1, 4, 4]
    inner = lambda tile: tile.pixels[8:24, 8:24]  # noqa: E731
    rough = [np.abs(np.diff(inner(tile), axis=0)).mean() for tile in (bilinear, three, four)]
    assert rough[1] > 3 * max(rough[0], rough[2])  # the chequered pattern
    assert small.pixels.mean() == pytest.approx(two.pixels.mean(), abs=1e-5)


@pytest.mark.slow
def test_edges_are_grey_where_nothing_is_and_bright_to_the_brighter_side():
    step = (jnp.arange(8) >= 4).astype(jnp.float32)[None, :, None].repeat(8, 0).repeat(3, 2)
    shown = figures.filtered_image("Sobel x", step)
    assert (shown[:, [0, 7]] == 0.5).all()
    assert (shown[:, 3:5] == 1).all()
    np.testing.assert_allclose(
        figures.filtered_image("box blur", step)[4, 3:5, 0], [1 / 3, 2 / 3], atol=1e-6
    )


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    refuses(
        script.main, ["--size", "100"], "size is 100; expected a multiple of 8", capsys, monkeypatch
    )
    refuses(script.main, ["--figures", "poolin"], "did you mean 'pooling'?", capsys, monkeypatch)
    (tmp_path / "x.jpg").write_bytes(b"no image")
    given = ["--image", str(tmp_path / "x.jpg"), "--out", str(tmp_path / "out")]
    refuses(script.main, given, "x.jpg", capsys, monkeypatch)
    assert not (tmp_path / "out").exists()
    for out in ("x.jpg", "x.jpg/figures"):
        given = ["--out", str(tmp_path / out)]
        says = "x.jpg is a file; write --out with a folder"
        refuses(script.main, given, says, capsys, monkeypatch)
    refuses(
        script.main,
        ["--out", "/proc/figures"],
        "cannot write in /proc/figures: No such file or directory; write --out",
        capsys,
        monkeypatch,
    )


def test_a_folder_in_the_place_of_a_figure_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "pooling.png").mkdir()
    args = ["--figures", "pooling", "--size", "64", "--out", str(tmp_path)]
    refuses(script.main, args, "pooling.png: Is a directory; fix that", capsys, monkeypatch)
