"""Measures of key points of people: PCK and OKS."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn._util import is_abstract
from jaxcnn.arguments import ArgumentError, check_positive, format_array, format_value, is_real


def correct_keypoints(
    points: Any, true_points: Any, visible: Any, lengths: Any, *, alpha: float = 0.1
) -> np.ndarray:
    """Return which key points are correct.

    One is correct if its distance from the true one is at most `alpha` times the person's length.

    Args:
        points: predicted (x, y), float [n, J, 2]; NaN for one that was not found.
        true_points: float [n, J, 2].
        visible: bool [n, J]; the result is False where it is False.
        lengths: float [n], the reference lengths of the people, above 0. In Yang and Ramanan 2013
            it is the longer side of the person's bounding box.
        alpha: fraction of that length, above 0.

    Returns:
        bool [n, J].

    Raises:
        ArgumentError: an argument is invalid.

    Example:
        >>> points, true_points = np.zeros((1, 2, 2)), np.array([[[1.0, 0.0], [0.0, 5.0]]])
        >>> visible, lengths = np.ones((1, 2), bool), np.array([20.0])
        >>> correct_keypoints(points, true_points, visible, lengths).tolist()
        [[True, False]]
    """
    points, true_points, visible = _check_keypoints(points, true_points, visible)
    alpha = check_positive("alpha", alpha, example=0.1)
    is_array = isinstance(lengths, (np.ndarray, jax.Array)) and not is_abstract(lengths)
    if (
        not is_array
        or lengths.shape != points.shape[:1]
        or not is_real(lengths.dtype)
        or not _are_lengths(np.asarray(lengths, np.float64))
    ):
        raise ArgumentError(
            f"lengths is {format_value(lengths)} for {len(points)} people; expected a finite "
            "number above 0 for each. Write lengths=sides.max(-1), of their bounding boxes."
        )
    distances = np.sqrt(np.square(points - true_points).sum(-1))
    # The comparison is false for NaN.
    return visible & (distances <= alpha * np.asarray(lengths, np.float64)[:, None])


def pck(
    points: Any, true_points: Any, visible: Any, lengths: Any, *, alpha: float = 0.1
) -> np.ndarray:
    """Return the share of correct key points (PCK) of each joint, in 0..1.

    Args:
        points: as in `correct_keypoints`.
        true_points: likewise.
        visible: likewise.
        lengths: likewise.
        alpha: likewise.

    Returns:
        float64 [J]; NaN for a joint that is never visible. PCK as one number is `np.nanmean` of it.

    Raises:
        ArgumentError: an argument is invalid.

    References:
        Yang and Ramanan 2013, "Articulated human detection with flexible mixtures of parts" (PCK).

    Example:
        >>> points, true_points = np.zeros((2, 1, 2)), np.array([[[3.0, 4.0]], [[0.0, 0.0]]])
        >>> visible = np.ones((2, 1), bool)
        >>> pck(points, true_points, visible, np.array([10.0, 10.0]), alpha=0.2).tolist()
        [0.5]

        For the people of an image that `jaxcnn.keypoints.assemble_people` or `estimate_poses`
        found, each true person first gets the most similar one, or NaN if there is none:

        >>> from jaxcnn.keypoints import match_greedily
        >>> found = np.array([[[9.0, 9.0]], [[0.0, 1.0]], [[np.nan, np.nan]]], np.float32)
        >>> true_points = np.array([[[0.0, 0.0]], [[9.0, 9.0]]], np.float32)
        >>> areas = np.array([100.0, 100.0], np.float32)
        >>> similarity = keypoint_similarity(found, true_points, visible, areas)
        >>> partner = np.asarray(match_greedily(similarity.T, 0.0))  # [m], -1 for none
        >>> partner.tolist()
        [1, 0]
        >>> matched = np.where(partner[:, None, None] >= 0, found[partner], np.nan)
        >>> pck(matched, true_points, visible, np.array([10.0, 10.0])).tolist()
        [1.0]
    """
    correct = correct_keypoints(points, true_points, visible, lengths, alpha=alpha)
    counts = np.asarray(visible).sum(0)
    shares = np.full(len(counts), np.nan)
    return np.divide(correct.sum(0), counts, out=shares, where=counts > 0)


def _are_lengths(values: np.ndarray) -> bool:
    return bool((np.isfinite(values) & (values > 0)).all())


def _check_keypoints(
    points: Any, true_points: Any, visible: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points and true points float64 [n, J, 2], and visibility bool [n, J].

    Raises:
        ArgumentError: they have another shape or type.
    """
    for name, values in (("points", points), ("true_points", true_points), ("visible", visible)):
        is_array = isinstance(values, (np.ndarray, jax.Array)) and not is_abstract(values)
        is_mask = name == "visible"
        ndim = 2 if is_mask else 3
        has_dtype = is_array and (values.dtype == np.bool_ if is_mask else is_real(values.dtype))
        if not is_array or values.ndim != ndim or not has_dtype:
            found = format_array(values) if is_array else format_value(values)
            expected = "bool [n, joints]" if is_mask else "real numbers [n, joints, 2]"
            is_number = is_mask and is_array and values.ndim == ndim
            fix = (
                "Write visible > 0." if is_number else "The order is points, true_points, visible."
            )
            raise ArgumentError(f"{name} is {found}; expected {expected}. {fix}")
    if (
        points.shape[-1] != 2
        or true_points.shape != points.shape
        or visible.shape != points.shape[:2]
    ):
        raise ArgumentError(
            f"points are of shape {points.shape}, true_points {true_points.shape} and visible "
            f"{visible.shape}; expected [n, joints, 2] twice, and [n, joints]. "
            "Write a row of NaN for a person that was not found."
        )
    true = np.asarray(true_points, np.float64)
    mask = np.asarray(visible)
    if not np.isfinite(true[mask]).all():
        raise ArgumentError(
            "true_points has visible ones that are not finite; expected finite numbers. "
            "Write visible=False for them."
        )
    return np.asarray(points, np.float64), true, mask


def keypoint_similarity(
    points: Any, true_points: Any, visible: Any, areas: Any, *, sigma: Any = 0.05
) -> jax.Array:
    """Return the object keypoint similarity (OKS) of all pairs of people of an image.

    It is COCO's: the mean over the visible key points of exp(-d^2 / (2 s^2 k^2)), with the distance
    d, the area s^2 of the true person, and k = 2 sigma. It takes the place of the overlap in
    `average_precision`.

    Args:
        points: predicted (x, y) of d people, float [d, J, 2]; NaN for a joint that was not found,
            whose term is 0.
        true_points: of m people, float [m, J, 2].
        visible: bool [m, J].
        areas: float [m], square pixels.
        sigma: standard deviation of an annotator, in units of the root of the area: a number for
            all joints, or as in COCO one for each, float [J].

    Returns:
        float32 [d, m] in 0..1; 0 for a person without a visible key point, or without area.

    Raises:
        ArgumentError: an argument is invalid.

    References:
        Lin et al. 2014 (arXiv:1405.0312), with the definition of
        https://cocodataset.org/#keypoints-eval.

    Example:
        >>> points = jnp.array([[[0.0, 0.0], [jnp.nan, jnp.nan]]])
        >>> true_points, visible = jnp.zeros((1, 2, 2)), jnp.ones((1, 2), bool)
        >>> keypoint_similarity(points, true_points, visible, jnp.array([100.0])).tolist()
        [[0.5]]

        The average precision of the `People` of n images. Rows that pad have the class -1:

        >>> from jaxcnn.keypoints import People
        >>> from jaxcnn.metrics import average_precision
        >>> people = People(jnp.zeros((1, 2, 2, 2)), jnp.array([[[0.9, 0.8], [0.0, 0.0]]]))
        >>> similarity = jax.vmap(keypoint_similarity)(
        ...     people.points, true_points[None], visible[None], jnp.array([[100.0]])
        ... )
        >>> classes = np.where((people.scores > 0).any(-1), 0, -1)
        >>> true_classes = np.where(visible[None].any(-1), 0, -1)
        >>> average_precision(
        ...     similarity, people.scores.mean(-1), classes, true_classes, num_classes=1
        ... ).mean().tolist()
        1.0
    """
    arrays: tuple[Any, ...] = points, true_points, visible, areas
    shapes: list[Any] = [getattr(array, "shape", ()) for array in arrays]
    d, joints = shapes[0][:2] if len(shapes[0]) == 3 else (0, 0)
    m = shapes[1][0] if shapes[1] else 0
    if shapes != [(d, joints, 2), (m, joints, 2), (m, joints), (m,)]:
        raise ArgumentError(
            f"points, true_points, visible and areas are of shapes {shapes}; expected "
            "(d, J, 2), (m, J, 2), (m, J) and (m,). Write jax.vmap for several images."
        )
    sigma = _check_sigma(sigma, joints)
    kinds = jnp.floating, jnp.floating, jnp.bool_, jnp.floating
    dtypes = [array.dtype for array in arrays]
    if not all(jnp.issubdtype(dtype, kind) for dtype, kind in zip(dtypes, kinds, strict=True)):
        raise ArgumentError(
            f"points, true_points, visible and areas are of {', '.join(map(str, dtypes))}; "
            "expected floating numbers, and bool for visible. Write points.astype('float32') and "
            "visible > 0."
        )
    points, true_points, areas = (
        jnp.asarray(array).astype(jnp.float32) for array in (points, true_points, areas)
    )
    counted = jnp.asarray(visible) & (areas > 0)[:, None]
    squared = jnp.square(points[:, None] - true_points[None]).sum(-1)
    # [m, 1 or J]
    scale = 2 * jnp.where(areas > 0, areas, 1.0)[:, None] * (2 * sigma) ** 2
    terms = jnp.where(jnp.isfinite(squared) & counted[None], jnp.exp(-squared / scale[None]), 0.0)
    return terms.sum(-1) / jnp.maximum(counted.sum(-1), 1).astype(jnp.float32)[None]


def _check_sigma(sigma: Any, joints: int) -> Any:
    """Return a positive number, or one for each joint, float32 [1, J].

    Raises:
        ArgumentError: it is anything else.
    """
    if not isinstance(sigma, (np.ndarray, jax.Array)) or not sigma.ndim:
        return check_positive("sigma", sigma, example=0.05)
    is_valid = sigma.shape == (joints,) and is_real(sigma.dtype)
    if not is_valid or not (is_abstract(sigma) or _are_lengths(np.asarray(sigma, np.float64))):
        raise ArgumentError(
            f"sigma is {format_value(sigma)}; expected one finite number above 0, or {joints}, one "
            f"for each joint. Write sigma=np.full({joints}, 0.05)."
        )
    return jnp.asarray(sigma).astype(jnp.float32)[None]
