"""Scenes whose masks, boxes, key points, depth and text are exact."""

import numpy as np
import pytest

import jaxcnn as jc
from experiments.scenes import depth as depth_scenes
from experiments.scenes import figures, lines, masks, objects
from experiments.scenes.parts import photographs
from jaxcnn import boxes

pytestmark = pytest.mark.usefixtures("one_device")
PLAIN = np.stack([np.zeros((213, 213, 3), np.uint8), np.full((213, 213, 3), 255, np.uint8)])


@pytest.fixture(scope="module")
def digits():
    return jc.load_dataset("digits")


def test_a_scenes_mask_is_exact():
    """On plain textures the scene is its mask."""
    textures = np.stack([np.zeros((140, 140, 3), np.uint8), np.full((140, 140, 3), 255, np.uint8)])
    digit = np.zeros((8, 8), np.uint8)
    digit[2:6, 3:5] = 255
    rng = np.random.default_rng(0)
    for label in (0, 7):
        image, mask = masks.scene(digit, label, textures, rng)
        assert (image.shape, image.dtype, mask.shape, mask.dtype) == (
            (32, 32, 3),
            np.uint8,
            (32, 32),
            np.int32,
        )
        np.testing.assert_array_equal(
            image == 255, np.broadcast_to((mask == label + 1)[..., None], image.shape)
        )
        assert set(np.unique(mask)) == {0, label + 1}


def test_masks_are_the_same_for_a_seed_and_use_every_digit(digits):
    upper, lower = photographs()
    assert not np.array_equal(upper, lower)
    few = jc.Split(digits.train.images[:20], digits.train.labels[:20])
    one, two, other = (masks.compose(few, 40, upper, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.images, two.images)
    assert not np.array_equal(one.images, other.images)
    shown = sorted(int(mask.max()) - 1 for mask in one.labels)
    assert shown == sorted(np.repeat(few.labels, 2).tolist())


def test_boxes_and_instances_are_those_of_the_digits_pixels(digits):
    """On plain textures the scene is its instances, and each box is as small as it can be."""
    split = objects.compose_several(digits.train, 30, PLAIN, 0, 48, (14, 28))
    box, classes, instances = (split.labels[name] for name in ("boxes", "classes", "instances"))
    assert (split.images.shape, split.images.dtype) == ((30, 48, 48, 3), np.uint8)
    assert (box.dtype, classes.dtype, instances.dtype) == (np.float32, np.int32, np.uint8)
    np.testing.assert_array_equal(split.images == 255, np.repeat(instances[..., None] > 0, 3, -1))
    counts = (classes >= 0).sum(1)
    assert set(counts) == {1, 2, 3}
    for i in range(30):
        assert instances[i].max() == counts[i]
        for j in range(counts[i]):
            rows, columns = np.nonzero(instances[i] == j + 1)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box[i, j].tolist() == edges
        assert not box[i, counts[i] :].any()
        overlaps = np.array(boxes.iou(box[i, : counts[i]], box[i, : counts[i]]))
        np.testing.assert_array_equal(overlaps, np.eye(counts[i]))


def test_scenes_of_objects_are_the_same_for_a_seed(digits):
    upper, _ = photographs()
    one, two, other = (
        objects.compose_several(digits.train, 5, upper, seed, 48, (14, 28)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.images, two.images)
    assert not np.array_equal(one.images, other.images)


@pytest.mark.parametrize("highest", [0, 90, 255])
def test_an_object_of_a_scene_has_a_pixel(highest):
    """Some of Fashion-MNIST are darker than half, and some lines vanish where they get small."""
    rng = np.random.default_rng(0)
    digit = np.zeros((1, 28, 28, 1), np.uint8)
    digit[0, 3:25, 14] = highest
    digits = jc.Split(digit, np.array([2], np.int32))
    textures = rng.integers(0, 256, (2, 200, 200, 3), np.uint8)
    _, boxes, classes, instances = objects.scene_of_several(
        digits, np.array([0]), textures, rng, 48, (8, 14)
    )
    assert classes[0] == 2
    x1, y1, x2, y2 = boxes[0].astype(int)
    assert (instances[y1:y2, x1:x2] == 1).any()
    assert (instances == 1).sum() == (instances[y1:y2, x1:x2] == 1).sum()


def test_limbs_have_their_lengths_and_sides():
    """Elbows are on their own side of the neck, and knees of the hip, in the body's frame."""
    rng = np.random.default_rng(0)
    names = figures.SKELETON.joints
    for _ in range(200):
        points = figures.figure_points(rng)
        for (a, b), length in zip(figures.SKELETON.limbs, figures.LENGTHS, strict=True):
            np.testing.assert_allclose(np.linalg.norm(points[a] - points[b]), length)
        joint = dict(zip(names, points, strict=True))
        for center, part in (("neck", "elbow"), ("hip", "knee")):
            axis = joint["hip"] - joint["neck"] if part == "elbow" else np.array([0.0, 1.0])
            for side, sign in (("left", 1), ("right", -1)):
                limb = joint[f"{side} {part}"] - joint[center]
                assert sign * (axis[0] * limb[1] - axis[1] * limb[0]) > 0, (side, part)


def test_visible_key_points_are_on_their_figure():
    """On plain textures each one is white, and each figure's pixels are near its limbs."""
    rng = np.random.default_rng(0)
    counts, hidden = set(), 0
    for _ in range(60):
        image, points, visible = figures.scene(PLAIN, rng)
        assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
        assert (points.dtype, visible.dtype) == (np.float32, bool)
        is_there = points[:, 0, 0] != figures.ABSENT
        counts.add(int(is_there.sum()))
        assert is_there.tolist() == sorted(is_there, reverse=True)
        assert (points[~is_there] == figures.ABSENT).all()
        assert not visible[~is_there].any()
        # The last one hides others and is not hidden.
        assert visible[is_there][-1].all()
        hidden += int((~visible[is_there]).sum())
        inside = points[is_there].astype(int)
        assert inside.min() >= 0
        assert inside.max() < 64
        assert (image[inside[..., 1], inside[..., 0]] == 255).all()
        # Each white pixel is at most a head's radius from a limb.
        rows, columns = np.nonzero(image[..., 0])
        pixels = np.stack([columns, rows], -1) + 0.5
        nearest = np.full(len(pixels), np.inf)
        for own in points[is_there].astype(float):
            for a, b in figures.SKELETON.limbs:
                vector = own[b] - own[a]
                share = np.clip((pixels - own[a]) @ vector / (vector @ vector), 0, 1)
                distance = np.linalg.norm(pixels - own[a] - share[:, None] * vector, axis=-1)
                nearest = np.minimum(nearest, distance)
        assert nearest.max() < figures.HEAD_RADIUS * figures.HEIGHTS[1] + 0.8
    assert counts == {1, 2, 3}
    assert hidden > 20


def test_scenes_of_figures_are_the_same_for_a_seed():
    upper, _ = photographs()
    one, two, other = (figures.compose(4, upper, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.labels["keypoints"], two.labels["keypoints"])
    assert not np.array_equal(one.images, other.images)


def test_haze_and_size_of_a_scene_are_those_of_its_depth(digits):
    """On a black wall with white digits, each pixel has one of two colors that its depth gives."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        image, depth = depth_scenes.scene(digits.train.images[:4, ..., 0], PLAIN, rng)
        assert (image.shape, image.dtype) == ((48, 48, 3), np.uint8)
        assert (depth.shape, depth.dtype) == ((48, 48), np.float32)
        is_digit = depth < (depth_scenes.FAR + depth_scenes.WALL[0]) / 2
        t = np.exp(-depth_scenes.HAZE * depth)
        expected = 255 * t * is_digit + depth_scenes.AIRLIGHT * (1 - t)
        assert np.abs(image - expected[..., None]).max() < 0.51
        assert depth[is_digit].min() >= depth_scenes.NEAR
        assert depth[~is_digit].min() >= depth_scenes.WALL[0] - 1e-5
        assert depth.max() <= depth_scenes.WALL[1] + 1e-5
        for own in np.unique(depth[is_digit]):
            rows, columns = np.nonzero(depth == own)
            size = round(depth_scenes.FOCAL_LENGTH / own)
            assert max(np.ptp(rows), np.ptp(columns)) + 1 <= size
    assert len(np.unique(depth[is_digit])) > 1


def test_a_near_digit_hides_a_far_one():
    """A full square: where two overlap, the depth is the lesser one."""
    textures = np.zeros((2, 213, 213, 3), np.uint8)
    square = np.full((2, 8, 8), 255, np.uint8)
    rng = np.random.default_rng(1)
    for _ in range(20):
        _, depth = depth_scenes.scene(square, textures, rng)
        near = depth.min()
        rows, columns = np.nonzero(depth == near)
        size = round(depth_scenes.FOCAL_LENGTH / near)
        # The nearest one is whole.
        assert len(rows) == size**2 == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_a_wall_is_a_plane():
    """Its inverse depth has no second differences."""
    rng = np.random.default_rng(0)
    walls = [depth_scenes.wall_depth(rng) for _ in range(50)]
    for wall in walls:
        inverse = 1 / wall
        for axis in (0, 1):
            assert np.abs(np.diff(inverse, 2, axis=axis)).max() < 1e-12
        assert (
            depth_scenes.WALL[0] - 1e-9 <= wall.min() <= wall.max() <= depth_scenes.WALL[1] + 1e-9
        )
    assert max(np.ptp(wall) for wall in walls) > 2


def test_an_unknown_scale_is_in_the_labels_and_not_in_the_images(digits):
    upper, _ = photographs()
    known, unknown = (
        depth_scenes.compose(digits.train, 40, upper, 3, scale_spread=spread)
        for spread in (0.0, 0.3)
    )
    np.testing.assert_array_equal(known.images, unknown.images)
    factors = unknown.labels / known.labels
    np.testing.assert_allclose(np.ptp(factors, axis=(1, 2)), 0, atol=1e-5)
    logs = np.log(factors[:, 0, 0])
    assert 0.2 < logs.std() < 0.4
    assert abs(logs.mean()) < 0.15


def test_lines_have_their_digits_from_the_left(digits):
    """Shapes do not reach beyond the line, and are those of the digits at some size."""
    rng = np.random.default_rng(0)
    for count in (1, 4, 8):
        for _ in range(10):
            index = rng.integers(0, 100, count)
            placed = lines.placed_shapes(digits.train, index, rng)
            assert len(placed) == count
            previous = 0
            for row, column, shape in placed:
                height, width = shape.shape
                # The box is tight: ink is in its outer rows and columns.
                for edge in (shape[0], shape[-1], shape[:, 0], shape[:, -1]):
                    assert edge.any()
                assert 0 <= row <= lines.HEIGHT - height
                assert previous + lines.GAPS[0] <= column <= lines.WIDTH - width
                previous = column + width


def test_images_are_ink_on_a_background_that_is_lighter(digits):
    """Textures of one value show which pixels are ink."""
    textures = np.stack([np.full((213, 640, 3), 255, np.uint8), np.zeros((213, 640, 3), np.uint8)])
    split = lines.compose_lines(digits.train, 40, textures, 0)
    assert (split.images.shape, split.images.dtype) == ((40, 32, 128, 3), np.uint8)
    assert (split.labels.shape, split.labels.dtype) == ((40, 8), np.int32)
    counts = (split.labels >= 0).sum(1)
    assert set(counts) <= set(range(1, 9))
    assert len(set(counts)) > 4
    for image, row, count in zip(split.images, split.labels, counts, strict=True):
        assert (row[:count] >= 0).all()
        assert (row[count:] == -1).all()
        is_ink = (image <= lines.MAX_INK).all(-1)
        assert ((image >= lines.MIN_BACKGROUND).all(-1) | is_ink).all()
        assert is_ink.any()
        # One digit has one run of columns; gaps of more digits may be closed.
        starts = np.diff(np.pad(is_ink.any(0), 1).astype(int)) == 1
        assert 1 <= starts.sum() <= 2 * count


def test_lines_are_the_same_for_a_seed(digits):
    upper, _ = photographs()
    one, two, other = (lines.compose_lines(digits.train, 5, upper, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.labels, two.labels)
    assert not np.array_equal(one.images, other.images)
