"""The study of losses of depth: its baseline, and as a user runs it."""

import csv
import json
import math

import numpy as np
import pytest
from scripts import refuses

from experiments import depth_map
from jaxcnn import metrics

pytestmark = pytest.mark.usefixtures("one_device")
TINY = ["--scenes", "40", "--width", "4", "--num-steps", "6", "--batch-size", "8"]


def test_the_baseline_is_the_best_constant_of_each_pixel():
    """Of log depth's squared error: any other has a greater one."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 5, (7, 3, 3)).astype(np.float32)
    best = np.broadcast_to(depth_map.mean_depth(depth), depth.shape)
    least = metrics.depth_errors(best, depth).rmse_log
    for _ in range(20):
        other = best * np.exp(rng.normal(0, 0.1, (1, 3, 3)))
        assert metrics.depth_errors(other, depth).rmse_log > least


@pytest.mark.quick_compilation
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
