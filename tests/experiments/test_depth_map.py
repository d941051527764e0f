"""Scenes with a known depth, and the study of losses of depth as a user runs it."""

import csv
import json
import math

import numpy as np
import pytest
from scripts import refuses

import jaxcnn as jc
from experiments import depth_map
from experiments.scenes import photographs
from jaxcnn import metrics

pytestmark = pytest.mark.usefixtures("one_device")
TINY = ["--scenes", "40", "--width", "4", "--num-steps", "6", "--batch-size", "8"]


@pytest.fixture(scope="module")
def digits():
    return jc.load_dataset("digits")


def test_haze_and_size_of_a_scene_are_those_of_its_depth(digits):
    """On a black wall with white digits, each pixel has one of two colors that its depth gives."""
    textures = np.stack([np.zeros((213, 213, 3), np.uint8), np.full((213, 213, 3), 255, np.uint8)])
    rng = np.random.default_rng(0)
    for _ in range(20):
        image, depth = depth_map.scene(digits.train.images[:4, ..., 0], textures, rng)
        assert (image.shape, image.dtype) == ((48, 48, 3), np.uint8)
        assert (depth.shape, depth.dtype) == ((48, 48), np.float32)
        is_digit = depth < (depth_map.FAR + depth_map.WALL[0]) / 2
        t = np.exp(-depth_map.HAZE * depth)
        expected = 255 * t * is_digit + depth_map.AIRLIGHT * (1 - t)
        assert np.abs(image - expected[..., None]).max() < 0.51
        assert depth[is_digit].min() >= depth_map.NEAR
        assert depth[~is_digit].min() >= depth_map.WALL[0] - 1e-5
        assert depth.max() <= depth_map.WALL[1] + 1e-5
        for own in np.unique(depth[is_digit]):
            rows, columns = np.nonzero(depth == own)
            size = round(depth_map.FOCAL_LENGTH / own)
            assert max(np.ptp(rows), np.ptp(columns)) + 1 <= size
    assert len(np.unique(depth[is_digit])) > 1


def test_a_near_digit_hides_a_far_one():
    """A full square: where two overlap, the depth is the lesser one."""
    textures = np.zeros((2, 213, 213, 3), np.uint8)
    square = np.full((2, 8, 8), 255, np.uint8)
    rng = np.random.default_rng(1)
    for _ in range(20):
        _, depth = depth_map.scene(square, textures, rng)
        near = depth.min()
        rows, columns = np.nonzero(depth == near)
        size = round(depth_map.FOCAL_LENGTH / near)
        # The nearest one is whole.
        assert len(rows) == size**2 == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_a_wall_is_a_plane():
    """Its inverse depth has no second differences."""
    rng = np.random.default_rng(0)
    walls = [depth_map.wall_depth(rng) for _ in range(50)]
    for wall in walls:
        inverse = 1 / wall
        for axis in (0, 1):
            assert np.abs(np.diff(inverse, 2, axis=axis)).max() < 1e-12
        assert depth_map.WALL[0] - 1e-9 <= wall.min() <= wall.max() <= depth_map.WALL[1] + 1e-9
    assert max(np.ptp(wall) for wall in walls) > 2


def test_an_unknown_scale_is_in_the_labels_and_not_in_the_images(digits):
    upper, _ = photographs()
    known, unknown = (
        depth_map.compose(digits.train, 40, upper, 3, scale_spread=spread) for spread in (0.0, 0.3)
    )
    np.testing.assert_array_equal(known.images, unknown.images)
    factors = unknown.labels / known.labels
    np.testing.assert_allclose(np.ptp(factors, axis=(1, 2)), 0, atol=1e-5)
    logs = np.log(factors[:, 0, 0])
    assert 0.2 < logs.std() < 0.4
    assert abs(logs.mean()) < 0.15


def test_the_baseline_is_the_best_constant_of_each_pixel():
    """Of log depth's squared error: any other has a greater one."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 5, (7, 3, 3)).astype(np.float32)
    best = np.broadcast_to(depth_map.mean_depth(depth), depth.shape)
    least = metrics.depth_errors(best, depth).rmse_log
    for _ in range(20):
        other = best * np.exp(rng.normal(0, 0.1, (1, 3, 3)))
        assert metrics.depth_errors(other, depth).rmse_log > least


@pytest.mark.slow
def test_the_depth_study_leaves_table_figures_and_runs(tmp_path, capsys):
    out = tmp_path / "runs"
    args = [*TINY, "--num-seeds", "2", "--losses", "squared", "invariant", "--out", str(out)]
    assert depth_map.main(args) == 0
    with (out / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    titles = [depth_map.BASELINE] + [depth_map.LOSSES[n][0] for n in ("squared", "invariant")]
    assert [line["loss"] for line in lines] == titles
    for line in lines:
        assert 0 < float(line["scale_invariant"]) <= float(line["rmse_log"])
        assert 0 <= float(line["delta1"]) <= 100
        assert 0 < float(line["scaled_abs_rel"]) < math.inf
    assert "Paired by seed" in (out / "table.md").read_text()
    for name in ("curves.png", "images.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    assert len(before) == 4
    assert depth_map.main([*args, "--plot-only"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    (out / "baseline.json").write_text(json.dumps({"abs_rel": "far"}))
    with pytest.raises(SystemExit):
        depth_map.main([*args, "--plot-only"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert "baseline.json has 'far' for 'abs_rel'; expected a number" in error


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--losses", "mixed", "mixed"], "--losses is mixed mixed; expected each loss once"),
        (["--scenes", "5"], "--batch-size is 16, more than the 5"),
        (["--depth", "5"], "48x48"),
        (["--learning-rate", "-1"], "learning-rate is -1.0"),
        (["--scale", "some"], "scale"),
        (["--width", "0"], "width is 0"),
    ],
)
def test_mistakes_about_depth(args, says, capsys, monkeypatch, tmp_path):
    args = ["--scenes", "40", *args, "--out", str(tmp_path / "new")]
    refuses(depth_map.main, args, says, capsys, monkeypatch)
