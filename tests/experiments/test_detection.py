"""The detection study: its figures, and as a user runs it."""

import csv
import json

import numpy as np
import pytest
from scripts import refuses

import jaxcnn as jc
from experiments import _common, detection

pytestmark = pytest.mark.usefixtures("one_device")
TINY = ["--scenes", "40", "--width", "4", "--num-steps", "6", "--batch-size", "8"]


def test_a_detection_is_drawn_as_right_once():
    """The second one of an object is wrong, as is another class; low scores are left out.

    A missed object has a box without a label.
    """
    truth = [(np.array([0.0, 0, 10, 10]), 3), (np.array([20.0, 20, 30, 30]), 4)]
    found = np.array([[0, 0, 10, 9], [0, 1, 10, 10], [20, 20, 30, 30], [5, 5, 9, 9]], np.float32)
    drawn = detection._drawn_boxes(found, [0.9, 0.8, 0.7, 0.1], [3, 3, 5, 3], truth)
    assert [(box.label, box.dashed) for box in drawn] == [
        ("", True),
        ("5 0.70", True),
        ("3 0.80", True),
        ("3 0.90", False),
    ]


def test_masked_pixels_are_tinted():
    image = np.full((1, 2, 3), 100, np.uint8)
    masks = np.array([[[True, False]], [[True, False]]])
    assert detection.tinted(image, masks).tolist() == [[[50, 177, 110], [100, 100, 100]]]
    assert detection.tinted(image, masks[:0]).tolist() == image.tolist()


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_the_detection_study_leaves_table_figures_and_runs(tmp_path, capsys):
    out = tmp_path / "runs"
    args = [*TINY, "--num-seeds", "1", "--detectors", "mask_rcnn", "--out", str(out)]
    assert detection.main(args) == 0
    with (out / "table.csv").open() as file:
        lines = {line["detector"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["Mask R-CNN"]
    for line in lines.values():
        for name in ("map", "mask_map"):
            assert 0 <= float(line[name]) <= float(line[f"{name}50"]) <= 100
        assert int(line["multiply_adds"]) > int(line["params"]) > 1000
        assert float(line["scenes_per_second"]) > 0
    for name in ("curves.png", "images.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    assert len(before) == 1
    assert detection.main([*args, "--plot-only"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    # The table has the speeds of the file, which are read with care.
    speeds = json.loads((out / "speed.json").read_text())
    assert set(speeds) == {"mask_rcnn"}
    (out / "speed.json").write_text('{"mask_rcnn": 123.5}')
    assert detection.main([*args, "--plot-only"]) == 0
    with (out / "table.csv").open() as file:
        assert [line["scenes_per_second"] for line in csv.DictReader(file)] == ["123.5"]
    (out / "speed.json").write_text('{"mask_rcnn": "fast"}')
    with pytest.raises(SystemExit):
        detection.main([*args, "--plot-only"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert "speed.json has 'fast' for 'mask_rcnn'; expected scenes a second" in error


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--detectors", "ssd", "ssd"], "--detectors is ssd ssd; expected each detector once"),
        (["--scenes", "5"], "--batch-size is 16, more than the 5"),
        (["--learning-rate", "-1"], "learning-rate is -1.0"),
        (["--dataset", "digit"], "digits"),
        (["--width", "0"], "width is 0"),
        (["--scenes", "4"], "scenes is 4; expected a whole number of 5"),
    ],
)
def test_mistakes_about_detection(args, says, capsys, monkeypatch, tmp_path):
    args = ["--scenes", "40", *args, "--out", str(tmp_path / "new")]
    refuses(detection.main, args, says, capsys, monkeypatch)


def test_a_detector_of_an_earlier_command_is_measured_and_drawn_too(tmp_path, monkeypatch):
    """Speeds are compared, so all detectors of a folder take turns."""

    class Checkpoints:
        def __init__(self, folder, timeout):
            self.folder = folder

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def restore(self, like):
            return f"state of {self.folder.parent.name}"

    for name in ("yolo-seed0", "ssd-seed0"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        config = jc.ExperimentConfig(dataset="digits-scenes-boxes", model="package.Network")
        (tmp_path / name / "config.json").write_text(config.to_json())
    monkeypatch.setattr(detection.jc, "Checkpoints", Checkpoints)
    monkeypatch.setattr(detection, "build", lambda config, data: (config.model, None))
    monkeypatch.setattr(_common, "init_state", lambda *args, **kwargs: None)
    options = detection.Options(detectors=("ssd",), out=tmp_path)
    networks = detection.trained_networks(options, data=None)  # pyright: ignore
    assert networks == {
        "ssd": ("ssd", "state of ssd-seed0"),
        "yolo": ("yolo", "state of yolo-seed0"),
    }
