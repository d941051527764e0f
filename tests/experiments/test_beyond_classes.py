"""Anomalies by reconstruction error, and segmentation: their parts, and both scripts as a user runs them."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from scripts import refuses

import jaxcnn as jc
from experiments import anomaly, segmentation
from jaxcnn import metrics

pytestmark = pytest.mark.usefixtures("one_device")
TINY = [
    "--held-out",
    "1",
    "8",
    "--num-seeds",
    "2",
    "--num-steps",
    "8",
    "--width",
    "4",
    "--code",
    "3",
]
SCENES = [
    "--scenes",
    "60",
    "--width",
    "2",
    "--depth",
    "1",
    "--num-seeds",
    "1",
    "--num-steps",
    "6",
    "--batch-size",
    "8",
]


@pytest.fixture(scope="module")
def digits():
    return jc.load_dataset("digits")


def test_the_class_held_out_is_gone_and_the_others_keep_their_images(digits):
    rest = anomaly.without(digits, 3)
    assert len(rest.train.labels) == (digits.train.labels != 3).sum()
    assert rest.classes == ("0", "1", "2", "4", "5", "6", "7", "8", "9")
    for part, split in (("train", rest.train), ("test", rest.test)):
        there = getattr(digits, part)
        np.testing.assert_array_equal(split.images, there.images[there.labels != 3])
        names = [digits.classes[k] for k in there.labels[there.labels != 3]]
        assert [rest.classes[k] for k in split.labels] == names
    np.testing.assert_allclose(rest.mean, rest.train.images.mean(0) / 255, rtol=1e-5)


def test_linear_codes_are_those_of_the_singular_vectors(digits):
    images = digits.train.images[:300]
    flat = images.reshape(300, -1) / 255
    centre = flat.mean(0)
    _, _, vectors = np.linalg.svd(flat - centre, full_matrices=False)
    asked = digits.test.images[:50].reshape(50, -1) / 255 - centre
    rest = asked - asked @ vectors[:5].T @ vectors[:5]
    np.testing.assert_allclose(
        anomaly.linear(images, 5, digits.test.images[:50]), np.square(rest).mean(1), rtol=1e-3
    )
    np.testing.assert_allclose(
        anomaly.linear(images, 0, digits.test.images[:50]), np.square(asked).mean(1), rtol=1e-4
    )


def test_the_area_counts_pairs():
    rng = np.random.default_rng(0)
    normal, strange = rng.integers(0, 5, 40), rng.integers(1, 6, 30)
    pairs = np.sign(strange[:, None] - normal[None])
    assert anomaly.auc(normal, strange) == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())


@pytest.fixture(scope="module")
def anomalies(tmp_path_factory):
    out = tmp_path_factory.mktemp("anomaly") / "runs"
    assert anomaly.main([*TINY, "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_anomalies_leave_a_table_figures_and_runs(anomalies, capsys):
    with (anomalies / "table.csv").open() as file:
        lines = {line["held out"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["1", "8", "mean"]
    for key in ("auc", "auc_pca", "auc_mean"):
        values = [float(lines[name][key]) for name in lines]
        assert values[2] == pytest.approx((values[0] + values[1]) / 2, rel=1e-4)
        assert all(0 <= value <= 1 for value in values)
    assert (lines["1"]["seeds"], lines["mean"]["seeds"]) == ("2", "")
    assert {"auc_std", "auc_ci95"} <= set(lines["1"])
    assert "auc_pca_std" not in lines["1"]  # the same for every seed
    for name in ("auc.png", "images.png"):
        assert (anomalies / name).read_bytes().startswith(b"\x89PNG")
    before = {path: path.stat().st_mtime_ns for path in anomalies.glob("*/metrics.jsonl")}
    assert len(before) == 4
    assert anomaly.main([*TINY, "--out", str(anomalies), "--plot-only"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in anomalies.glob("*/metrics.jsonl")}
    assert "9 training" not in capsys.readouterr().err


@pytest.mark.slow
def test_anogan_is_a_column_beside_the_autoencoder(anomalies, tmp_path, capsys):
    """Runs of an earlier command are drawn too, and are not trained again."""
    out = tmp_path / "runs"
    shutil.copytree(anomalies, out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    args = ["--held-out", "8", "--num-seeds", "2", "--scores", "anogan", "--gan-steps", "3"]
    args += ["--width", "4", "--code", "3", "--out", str(out)]
    assert anomaly.main(args) == 0
    names = {path.parent.name for path in out.glob("*/metrics.jsonl")}
    assert {name for name in names if name.startswith("anogan")} == {
        "anogan-without-8-seed0",
        "anogan-without-8-seed1",
    }
    after = {path: path.stat().st_mtime_ns for path in before}
    assert before == after
    with (out / "table.csv").open() as file:
        lines = {line["held out"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["1", "8", "mean"]
    assert lines["1"]["auc_anogan"] == ""
    assert 0 < float(lines["8"]["auc_anogan"]) < 1
    # A mean over fewer classes than the others' is none.
    assert lines["mean"]["auc_anogan"] == lines["mean"]["anogan_seconds"] == ""
    assert "8 steps of 64, 3 steps of 64 and 200 of each search" in (out / "table.md").read_text()
    assert (lines["8"]["anogan_seeds"], lines["8"]["seeds"]) == ("2", "2")
    with (anomalies / "table.csv").open() as file:
        old = {line["held out"]: line for line in csv.DictReader(file)}
    assert "auc_anogan" not in old["1"]
    for name in ("1", "8"):
        assert {key: lines[name][key] for key in old[name]} == old[name]


@pytest.mark.slow
def test_diverged_anomalies_are_in_the_table_and_stop_no_drawing(tmp_path):
    out = tmp_path / "runs"
    args = ["--num-seeds", "1", "--width", "4", "--code", "3", "--out", str(out)]
    diverging = [*args, "--held-out", "1", "--num-steps", "8", "--learning-rate", "1e38"]
    assert anomaly.main(diverging) == 0
    assert "seed 0 diverged at step" in (out / "table.md").read_text()
    assert not list(out.glob("*.png"))
    # Another class, trained otherwise: both settings are named, and there is no mean.
    assert anomaly.main([*args, "--held-out", "8", "--num-steps", "6"]) == 0
    text = (out / "table.md").read_text()
    assert "6 or 8 steps of 64" in text
    assert "seed 0 diverged at step" in text
    with (out / "table.csv").open() as file:
        lines = {line["held out"]: line for line in csv.DictReader(file)}
    assert [lines[name]["auc"] != "" for name in ("1", "8", "mean")] == [False, True, False]
    for name in ("auc.png", "images.png"):
        assert (out / name).is_file()


def test_anomalies_refuse_the_folder_of_another_study(tmp_path, capsys, monkeypatch):
    results = Path(anomaly.__file__).parent / "results"
    shutil.copy(results / "generation-digits" / "runs.jsonl", tmp_path)
    args = ["--plot-only", "--out", str(tmp_path)]
    refuses(anomaly.main, args, "which holds out no class; expected", capsys, monkeypatch)


def test_more_linear_numbers_reconstruct_strangers_no_worse(digits):
    few, more = (
        anomaly.linear(digits.train.images[:200], n, digits.test.images[:20]) for n in (2, 8)
    )
    assert (more <= few + 1e-6).all()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--held-out", "10"], "--held-out is 10; expected classes of digits, 0..9"),
        (["--code", "0"], "--code is 0; expected a whole number of 1 to "),
        (["--learning-rate", "-1"], "--learning-rate is -1.0"),
        (["--dataset", "digit"], "digits"),
        (["--scores", "anogan", "anogan"], "--scores is anogan anogan; expected each score once"),
        (["--gan-steps", "0"], "--gan-steps is 0"),
    ],
)
def test_mistakes_about_anomalies(args, says, capsys, monkeypatch, tmp_path):
    refuses(anomaly.main, [*args, "--out", str(tmp_path / "new")], says, capsys, monkeypatch)
    assert not (tmp_path / "new").exists()


def test_intersection_over_union_is_that_of_the_sets():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, (2, 5, 6, 6))
    found = metrics.iou(metrics.confusion(labels, predicted, 5))
    for k in range(4):
        both, either = (
            ((labels == k) & (predicted == k)).sum(),
            ((labels == k) | (predicted == k)).sum(),
        )
        assert found[k] == pytest.approx(both / either)
    assert np.isnan(found[4])


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_the_segmentation_study_leaves_table_figures_and_runs(tmp_path):
    out = tmp_path / "runs"
    args = [*SCENES, "--out", str(out)]
    assert segmentation.main([*args, "--networks", "pspnet"]) == 0
    assert segmentation.main([*args, "--networks", "unet", "unet_no_skips"]) == 0
    with (out / "table.csv").open() as file:
        lines = {line["network"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["U-Net", "U-Net without skips", "PSPNet"]
    for key in ("params", "multiply_adds"):
        assert int(lines["U-Net without skips"][key]) < int(lines["U-Net"][key])
    assert all(0 <= float(line["mean_iou"]) <= 100 for line in lines.values())
    for name in ("curves.png", "images.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    # The figure has the network of the earlier command too.
    options = segmentation.Options(scenes=60, width=2, depth=1, num_steps=6, batch_size=8, out=out)
    networks = segmentation.trained_networks(options, segmentation.compose_all(options))
    assert list(networks) == ["unet", "unet_no_skips", "pspnet"]
    # Runs of the study when it had U-Nets alone had other names.
    (out / "unet-seed0").rename(out / "skips-seed0")
    assert segmentation.main([*args, "--plot-only"]) == 0
    with (out / "table.csv").open() as file:
        assert {line["network"]: line for line in csv.DictReader(file)} == lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--depth", "6"], "32x32"),
        (["--networks", "unet", "unet"], "--networks is unet unet; expected each network once"),
        (["--networks", "segnet"], "segnet"),
        (["--blocks", "0"], "blocks is 0"),
        (["--width", "0"], "width is 0"),
        (["--scenes", "5"], "--batch-size is 24, more than the 5"),
    ],
)
def test_mistakes_about_segmentation(args, says, capsys, monkeypatch, tmp_path):
    refuses(segmentation.main, [*args, "--out", str(tmp_path / "new")], says, capsys, monkeypatch)
