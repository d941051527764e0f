"""Scenes of stick figures, whose key points are known, and whether they are hidden."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

import jaxcnn as jc
from experiments.scenes.parts import patch
from jaxcnn.keypoints import Skeleton

SIDE = 64
"""Height and width of a scene, pixels."""
HEIGHTS = (34.0, 52.0)
"""Least and greatest height of a standing figure, pixels."""
MAX_FIGURES = 3
MIN_SEPARATION = 7.0
"""Least distance of two figures' necks and of their hips, pixels."""
ABSENT = -1000.0
"""Coordinates of key points that only pad."""
# fmt: off
SKELETON = Skeleton(
    ("neck", "head", "hip", "left elbow", "left hand", "right elbow", "right hand",
     "left knee", "left foot", "right knee", "right foot"),
    ((0, 1), (0, 2), (0, 3), (3, 4), (0, 5), (5, 6), (2, 7), (7, 8), (2, 9), (9, 10)),
)
# fmt: on
"""Joints and limbs of a figure that faces away: its left is the image's left."""
LENGTHS = (0.17, 0.28, 0.17, 0.16, 0.17, 0.16, 0.23, 0.23, 0.23, 0.23)
"""Lengths of the limbs, in heights of the figure."""
LIMB_THICKNESS, HEAD_RADIUS = 0.075, 0.085
"""In heights of the figure."""


def figure_points(rng: np.random.Generator) -> np.ndarray:
    """Return the joints of a figure in its own coordinates, float64 [J, 2].

    The neck is the origin, and the unit is the figure's height. Elbows and knees are on their own
    side, so that left and right are known from the image.
    """
    lean = rng.uniform(-0.25, 0.25)
    # Angles from straight down, to the image's right.
    angles = [math.pi + lean + rng.uniform(-0.3, 0.3), lean]
    for side in (-1, 1):
        arm = rng.uniform(0.25, 1.9)
        angles += [side * arm + lean, side * (arm + rng.uniform(-0.6, 1.5)) + lean]
    for side in (-1, 1):
        leg = rng.uniform(0.08, 0.65)
        angles += [side * leg, side * (leg + rng.uniform(-0.6, 0.1))]
    points = np.zeros((len(SKELETON.joints), 2))
    for (first, second), length, angle in zip(SKELETON.limbs, LENGTHS, angles, strict=True):
        points[second] = points[first] + length * np.array([math.sin(angle), math.cos(angle)])
    return points


def figure_mask(points: np.ndarray, height: float, scale: int = 4) -> np.ndarray:
    """Return the pixels of a figure, bool [SIDE, SIDE].

    Limbs are thick lines with round ends, and the head is a disc.

    Args:
      points: float [J, 2], pixels.
      height: of the figure, pixels.
      scale: lines are drawn on an image of so many times the side, and then averaged.
    """
    image = Image.new("L", (scale * SIDE, scale * SIDE))
    draw = ImageDraw.Draw(image)
    radii = np.full(len(points), max(LIMB_THICKNESS * height, 2.5) / 2)
    for first, second in SKELETON.limbs:
        line = [tuple(scale * points[joint]) for joint in (first, second)]
        draw.line(line, fill=255, width=round(2 * scale * radii[first]))
    radii[SKELETON.joints.index("head")] = HEAD_RADIUS * height
    for (x, y), radius in zip(points, radii, strict=True):
        edges = [scale * (x - radius), scale * (y - radius)]
        draw.ellipse([*edges, scale * (x + radius), scale * (y + radius)], fill=255)
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    mask = np.asarray(small) > 127
    # The pixel of a key point is always the figure's own.
    columns, rows = points.astype(int).T
    mask[rows, columns] = True
    return mask


def scene(
    textures: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a scene of one to `MAX_FIGURES` figures, and its truth.

    A figure that has no place after 20 trials is left out. The first always has one. Later figures
    hide earlier ones.

    Args:
      textures: uint8 [2, h, w, 3]: of the background, and of the figures.
      rng: draws number, angles, sizes, places and patches.

    Returns:
      Scene uint8 [SIDE, SIDE, 3]; key points float32 [MAX_FIGURES, J, 2], `ABSENT` where there is
      no figure; and visibility bool [MAX_FIGURES, J], whether the key point's pixel is of its
      figure.
    """
    image = patch(textures[0], rng, SIDE, 3)
    owner = np.zeros((SIDE, SIDE), np.uint8)
    count = int(rng.integers(1, MAX_FIGURES + 1))
    points = np.full((MAX_FIGURES, len(SKELETON.joints), 2), ABSENT, np.float32)
    visible = np.zeros(points.shape[:2], bool)
    central = [SKELETON.joints.index(name) for name in ("neck", "hip")]
    row = 0
    for _ in range(count):
        height = float(rng.uniform(*HEIGHTS))
        own = height * figure_points(rng)
        # The head's disc, or a limb's half, is inside the image.
        margin = HEAD_RADIUS * height
        low, high = margin - own.min(0), SIDE - margin - own.max(0)
        for _ in range(20):
            placed = (own + rng.uniform(low, np.maximum(low, high))).astype(np.float32)
            distances = np.linalg.norm((points[:row] - placed)[:, central], axis=-1)
            if (distances > MIN_SEPARATION).all():
                mask = figure_mask(placed, height)
                image = np.where(mask[..., None], patch(textures[1], rng, SIDE, 3), image)
                owner[mask] = row + 1
                points[row] = placed
                row += 1
                break
    for i in range(row):
        columns, rows = points[i].astype(int).T
        visible[i] = owner[rows, columns] == i + 1
    return image, points, visible


def compose(n: int, textures: np.ndarray, seed: int) -> jc.Split:
    """Return `n` scenes.

    Returns:
      Images uint8 [n, SIDE, SIDE, 3], and as labels a dict of `keypoints` and `visible` as in
      `scene`, each with a first axis of n.
    """
    rng = np.random.default_rng(seed)
    scenes = [scene(textures, rng) for _ in range(n)]
    images, points, visible = (np.stack(arrays) for arrays in zip(*scenes, strict=True))
    return jc.Split(images, {"keypoints": points, "visible": visible})
