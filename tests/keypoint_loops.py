"""Labels of key points and the targets of their maps, with loops in NumPy."""

import math

import numpy as np

from jaxcnn.keypoints import Skeleton

SIDE, STRIDE, PEOPLE = 32, 2, 3
SKELETON = Skeleton(("neck", "head", "hip", "foot"), ((0, 1), (0, 2), (2, 3)))
JOINTS, LIMBS = len(SKELETON.joints), len(SKELETON.limbs)
CELLS = SIDE // STRIDE


def random_labels(rng, n):
    points = rng.uniform(0, SIDE, (n, PEOPLE, JOINTS, 2)).astype(np.float32)
    visible = rng.random((n, PEOPLE, JOINTS)) < 0.8
    points[:, -1], visible[:, -1] = -1000, False
    # A limb without length.
    points[0, 0, 1] = points[0, 0, 0]
    return {"keypoints": points, "visible": visible}


def gaussians(points, visible, sigma):
    """Equations 6 and 7, cell by cell."""
    result = np.zeros((CELLS, CELLS, JOINTS))
    for row, column, joint in np.ndindex(result.shape):
        cell = np.array([column + 0.5, row + 0.5]) * STRIDE
        for k in range(len(points)):
            if visible[k, joint]:
                distance = np.linalg.norm(cell - points[k, joint].astype(float))
                value = math.exp(-((distance / sigma) ** 2))
                result[row, column, joint] = max(result[row, column, joint], value)
    return result


def on_limb(cell, first, second, limb_width):
    """The unit vector of a limb at a cell on it, else None (equation 8)."""
    vector = second.astype(float) - first
    length = np.linalg.norm(vector)
    if length == 0:
        return None
    unit = vector / length
    along = unit @ (cell - first)
    across = np.array([unit[1], -unit[0]]) @ (cell - first)
    return unit if 0 <= along <= length and abs(across) <= limb_width else None


def affinity_fields(points, visible, limb_width):
    """Equations 8 and 9, cell by cell, and the cells of limbs with an end that is hidden."""
    result = np.zeros((CELLS, CELLS, LIMBS, 2))
    hidden = np.zeros((CELLS, CELLS, LIMBS), bool)
    for row, column, limb in np.ndindex(hidden.shape):
        cell = np.array([column + 0.5, row + 0.5]) * STRIDE
        first, second = SKELETON.limbs[limb]
        units = []
        for k in range(len(points)):
            unit = on_limb(cell, points[k, first], points[k, second], limb_width)
            if unit is not None and visible[k, first] and visible[k, second]:
                units.append(unit)
            elif unit is not None:
                hidden[row, column, limb] = True
        if units:
            result[row, column, limb] = np.mean(units, 0)
    return result, hidden
