"""The study of poses: its measures of people, and as a user runs it."""

import csv

import numpy as np
import pytest
from scripts import refuses

from experiments import keypoints
from experiments.scenes import figures
from jaxcnn.keypoints import People

pytestmark = pytest.mark.usefixtures("one_device")
TINY = ["--scenes", "40", "--width", "4", "--num-steps", "6", "--batch-size", "8"]
PLAIN = np.stack([np.zeros((213, 213, 3), np.uint8), np.full((213, 213, 3), 255, np.uint8)])


@pytest.fixture(scope="module")
def labels():
    return figures.compose(60, PLAIN, 5).labels


def padded(labels, points, scores):
    """`People` of as many rows as a network gives."""
    extra = keypoints.MAX_PEOPLE - points.shape[1]
    wide = np.pad(points, ((0, 0), (0, extra), (0, 0), (0, 0)), constant_values=np.nan)
    return People(wide, np.pad(scores, ((0, 0), (0, extra), (0, 0))))


def test_measures_of_the_true_people_are_perfect(labels):
    """In another order too. A person without one joint is not whole; without any, all are wrong."""
    points = labels["keypoints"][:, ::-1].copy()
    is_there = points[..., 0, 0] != figures.ABSENT
    points[~is_there] = np.nan
    scores = np.where(is_there[..., None], 0.5, 0.0) * np.ones(points.shape[:3])
    found = keypoints.columns(padded(labels, points, scores.astype(np.float32)), labels)
    assert found == dict.fromkeys(keypoints.MEASURES, 100.0)
    head = figures.SKELETON.joints.index("head")
    without = points.copy()
    without[:, :, head] = np.nan
    found = keypoints.columns(padded(labels, without, scores.astype(np.float32)), labels)
    number = len(figures.SKELETON.joints)
    np.testing.assert_allclose(found["pck"], 100 * (number - 1) / number)
    # Only those whose head is hidden are whole.
    visible = labels["visible"]
    is_person = visible.any(-1)
    np.testing.assert_allclose(found["whole"], 100 * (~visible[is_person][:, head]).mean())
    nothing = padded(labels, points * np.nan, 0 * scores.astype(np.float32))
    assert keypoints.columns(nothing, labels) == dict.fromkeys(keypoints.MEASURES, 0.0)


def by_hand():
    """One figure of two scenes' labels: 40 x 20 pixels around all key points, hidden ones too."""
    points = np.full((1, figures.MAX_FIGURES, len(figures.SKELETON.joints), 2), 20, np.float32)
    points[:, 1:] = figures.ABSENT
    points[0, 0, :4] = [[10, 15], [50, 20], [30, 35], [20, 25]]
    visible = np.zeros(points.shape[:3], bool)
    visible[:, 0] = True
    # The right edge is that of a hidden key point.
    visible[0, 0, 1] = False
    return {"keypoints": points, "visible": visible}


def test_lengths_and_areas_are_those_of_the_figures_boxes():
    """x from 10 to 50 and y from 15 to 35, and the same on its side."""
    labels = by_hand()
    turned = labels | {"keypoints": labels["keypoints"][..., ::-1]}
    for own in (labels, turned):
        lengths, areas = keypoints.boxes_of(own)
        np.testing.assert_array_equal(lengths, [[40, 0, 0]])
        np.testing.assert_array_equal(areas, [[800, 0, 0]])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("share", "percent"), [(0.09, 100.0), (0.11, 0.0)])
def test_a_key_point_is_right_within_a_tenth_of_the_longer_side(share, percent, axis):
    """In both directions: 40 pixels is the longer side, although the figure is 20 high."""
    labels = by_hand()
    points = labels["keypoints"][:, :1].copy()
    points[..., axis] += share * 40
    scores = np.ones(points.shape[:3], np.float32)
    found = keypoints.columns(padded(labels, points, scores), labels)
    assert (found["pck"], found["whole"], found["whole1"]) == (percent, percent, percent)


def test_swapped_hands_of_two_people_are_not_right(labels):
    """The key points are all there, but of two people with the other's hand none is whole."""
    two = np.flatnonzero(labels["visible"].any(-1).sum(1) == 2)
    points = labels["keypoints"][two, :2].copy()
    hand = figures.SKELETON.joints.index("left hand")
    far = np.linalg.norm(points[:, 0, hand] - points[:, 1, hand], axis=-1) > 8
    seen = labels["visible"][two, :2, hand].all(-1)
    points[:, :, hand] = points[:, ::-1, hand]
    index = two[far & seen]
    assert len(index) > 3
    subset = {name: value[index] for name, value in labels.items()}
    ones = np.ones((len(index), 2, len(figures.SKELETON.joints)), np.float32)
    found = keypoints.columns(padded(subset, points[far & seen], ones), subset)
    assert found["whole"] == found["whole2"] == 0
    assert 85 < found["pck"] < 95
    assert np.isnan(found["whole3"])


def test_people_are_assigned_by_similarity():
    """The best pair first: the second true person gets what is left."""
    similarity = np.array([[[0.9, 0.8], [0.7, 0.0], [0.0, 0.0]]], np.float32)
    assert keypoints.assign(similarity).tolist() == [[0, -1]]
    assert keypoints.assign(similarity[:, ::-1]).tolist() == [[2, -1]]


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_the_study_of_poses_leaves_table_figures_and_runs(tmp_path, capsys):
    out = tmp_path / "runs"
    args = [*TINY, "--num-seeds", "2", "--out", str(out)]
    assert keypoints.main(args) == 0
    with (out / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    titles = list(keypoints.ASSOCIATIONS.values())
    titles += [f"{title}, {name}" for name in keypoints.TARGETS.values() for title in titles]
    assert [line["association"] for line in lines] == titles
    for line in lines:
        assert all(0 <= float(line[key]) <= 100 for key in keypoints.MEASURES)
    # Without errors of a network, one person is assembled whole, and fields are the better way.
    for fields, distance in (lines[2:4], lines[4:]):
        assert float(fields["whole1"]) == 100
        assert float(fields["whole"]) > float(distance["whole"]) > 0
    assert float(lines[4]["whole"]) >= float(lines[2]["whole"])
    assert "Paired by seed" in (out / "table.md").read_text()
    for name in ("curves.png", "people.png", "maps.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    assert len(before) == 2
    assert keypoints.main([*args, "--plot-only"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    (out / "limits.json").write_text('{"fields_visible": {"pck": "all"}}')
    with pytest.raises(SystemExit):
        keypoints.main([*args, "--plot-only"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert "limits.json has 'all' for 'pck' of fields_visible; expected percent" in error


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--scenes", "5"], "--batch-size is 16, more than the 5"),
        (["--learning-rate", "-1"], "learning-rate is -1.0"),
        (["--width", "0"], "width is 0"),
        (["--refinements", "-1"], "refinements is -1"),
        (["--scenes", "4"], "scenes is 4; expected a whole number of 5"),
    ],
)
def test_mistakes_about_poses(args, says, capsys, monkeypatch, tmp_path):
    args = ["--scenes", "40", *args, "--out", str(tmp_path / "new")]
    refuses(keypoints.main, args, says, capsys, monkeypatch)
