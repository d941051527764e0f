"""COCO's average precision of a detector."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.arguments import ArgumentError, check_integer, format_array, format_value

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""Overlaps from which a detection is right, over which COCO averages: 0.5, 0.55, ..., 0.95."""
_RECALLS = np.linspace(0, 1, 101)
"""Recalls at which COCO reads the precision."""


def average_precision(
    ious: Any,
    scores: Any,
    classes: Any,
    true_classes: Any,
    *,
    num_classes: int,
    thresholds: tuple[float, ...] = IOU_THRESHOLDS,
    max_detections: int = 100,
) -> np.ndarray:
    """Return COCO's average precision of detections, for each overlap and class.

    Detections are visited by falling score. One is right if an object of its image and class, which
    no better detection has taken, overlaps it by the threshold or more. It takes the object of the
    greatest overlap. The precision at a recall is the greatest at that recall or a higher one, and
    0 beyond the highest. Its mean over the recalls 0, 0.01, ..., 1 is the average precision. There
    are no crowds, and objects of all sizes count.

    The overlaps are those of boxes or of masks. Several images, classes and thresholds are counted
    in one compiled program. Its decisions are those of pycocotools on the same overlaps, its sums
    are float32. An overlap reaches a threshold if it is at least the threshold in its own dtype.

    Args:
        ious: float [n, d, m], intersection over union of n images' detections and objects.
        scores: float [n, d] of the detections.
        classes: integers [n, d]; -1 marks rows that only pad the detections.
        true_classes: integers [n, m] of the objects; -1 marks padding.
        num_classes: the number of classes, k.
        thresholds: least overlaps of a right detection, ascending.
        max_detections: the best detections of an image and class that count.

    Returns:
        float64 [len(thresholds), k] in 0..1; NaN for a class without objects. `np.nanmean` of it is
        the mAP, and of its first row the mAP at an overlap of 0.5.

    Raises:
        ArgumentError: an argument is invalid.

    Example:
        >>> ious = np.array([[[0.8, 0.0], [0.0, 0.6]]])
        >>> classes = np.array([[0, 0]])
        >>> values = average_precision(
        ...     ious, np.array([[0.9, 0.7]]), classes, classes, num_classes=1
        ... )
        >>> values[:4, 0].round(3).tolist()
        [1.0, 1.0, 1.0, 0.505]

    References:
        Lin et al. 2014, "Microsoft COCO" (arXiv:1405.0312), with the definition of
        https://cocodataset.org/#detection-eval and of its code, pycocotools.
    """
    num_classes = check_integer("num_classes", num_classes, example=10)
    max_detections = check_integer("max_detections", max_detections, example=100)
    dtype = getattr(ious, "dtype", None)
    ious = _to_detections("ious", ious, "f", 3)
    n, d, m = ious.shape
    scores = _to_detections("scores", scores, "f", 2, (n, d))
    classes = _to_detections("classes", classes, "iu", 2, (n, d))
    true_classes = _to_detections("true_classes", true_classes, "iu", 2, (n, m))
    if not n or not d or not m:
        raise ArgumentError(
            f"ious are of shape {ious.shape}; expected at least one image, detection and object. "
            "Write classes of -1 where there is none."
        )
    for name, values in (("classes", classes), ("true_classes", true_classes)):
        if values.min() < -1 or values.max() >= num_classes:
            raise ArgumentError(
                f"{name} span {int(values.min())}..{int(values.max())}; expected "
                f"-1..{num_classes - 1}. Write num_classes={max(int(values.max()), 0) + 1}, and -1 "
                "for padding."
            )
    if ious.min() < 0 or ious.max() > 1 + 1e-6:
        raise ArgumentError(
            f"ious span {ious.min():.4g}..{ious.max():.4g}; expected overlaps in 0..1, not boxes. "
            "Write jax.vmap(jaxcnn.boxes.iou)(boxes, true_boxes)."
        )
    levels = _check_thresholds(thresholds)
    # The comparisons are made in float64, as pycocotools makes them: how many thresholds an
    # overlap reaches, and how many right detections of a class make each recall. Thresholds are
    # rounded as the overlaps were: 7 / 10 in float32 is less than 0.7 in float64, and reaches it.
    rounded = np.minimum(levels, 1 - 1e-10).astype(dtype).astype(np.float64)
    reached = np.searchsorted(rounded, ious, side="right").astype(np.int32)
    numbers = np.bincount(true_classes[true_classes >= 0], minlength=num_classes)
    recalls = [np.arange(number + 1) / max(number, 1) for number in numbers]
    needed = np.stack([np.searchsorted(recall, _RECALLS) for recall in recalls])
    values = _average_precision(
        reached,
        ious.astype(np.float32),
        scores.astype(np.float32),
        classes.astype(np.int32),
        true_classes.astype(np.int32),
        needed.astype(np.int32),
        len(levels),
        max_detections,
    )
    return np.where(numbers[None] > 0, np.asarray(values, np.float64), np.nan)


def _check_thresholds(thresholds: Any) -> np.ndarray:
    """Return ascending overlaps in 0..1, float64.

    Raises:
        ArgumentError: they are anything else.
    """
    values = np.asarray(thresholds, object).ravel()
    is_number = [isinstance(value, (int, float, np.floating)) for value in values]
    levels = np.array(values, np.float64) if len(values) and all(is_number) else np.array([-1.0])
    if not ((levels > 0) & (levels <= 1)).all() or (np.diff(levels) <= 0).any():
        raise ArgumentError(
            f"thresholds is {format_value(thresholds)}; expected ascending numbers above 0, at "
            "most 1. Write thresholds=(0.5, 0.75)."
        )
    return levels


def _to_detections(
    name: str, values: Any, kinds: str, ndim: int, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """Return an array of numbers of detections or objects.

    Raises:
        ArgumentError: it has another shape or type, or is not finite.
    """
    is_array = isinstance(values, (np.ndarray, jax.Array))
    expected = {"f": "floating numbers", "iu": "integers"}[kinds]
    axes = shape or tuple("ndm"[:ndim])
    text = ", ".join(map(str, axes))
    if (
        not is_array
        or values.ndim != ndim
        or np.dtype(values.dtype).kind not in kinds
        or (shape is not None and values.shape != shape)
    ):
        found = format_array(values) if is_array else format_value(values)
        raise ArgumentError(
            f"{name} is {found}; expected {expected} of shape [{text}]. "
            "The order is ious, scores, classes, true_classes. Write "
            "jax.vmap(jaxcnn.boxes.iou)(boxes, true_boxes) for the overlaps of boxes."
        )
    array = np.asarray(values)
    if kinds == "f" and not np.isfinite(array).all():
        raise ArgumentError(
            f"{name} has values that are not finite; expected finite ones. "
            "Write classes of -1 and finite scores for padding."
        )
    return array.astype(np.float64) if kinds == "f" else array.astype(np.int64)


@partial(jax.jit, static_argnums=(6, 7))
def _average_precision(
    reached, ious, scores, classes, true_classes, needed, num_thresholds, max_detections
):
    """Return the average precision, float32 [thresholds, classes].

    Args:
        reached: int32 [n, d, m], the number of thresholds that an overlap reaches.
        ious: float32 [n, d, m], to choose among objects.
        scores: float32 [n, d].
        classes: int32 [n, d].
        true_classes: int32 [n, m].
        needed: int32 [classes, 101], the number of right detections at each recall.
        num_thresholds: how many there are.
        max_detections: of an image and class.
    """
    level = jnp.arange(num_thresholds)

    def match_image(reached, ious, scores, classes, true_classes):
        """Return classes, scores and hits bool [d, thresholds] of an image, best first."""
        order = jnp.argsort(-scores, stable=True)
        reached, ious, scores, classes = reached[order], ious[order], scores[order], classes[order]
        is_same = (classes[:, None] == classes[None]) & jnp.tri(len(classes), dtype=bool)
        classes = jnp.where(is_same.sum(1) <= max_detections, classes, -1)

        def match_one(taken, detection):
            reached, ious, own = detection
            fits = (own >= 0) & (true_classes == own)
            # [thresholds, m]
            is_free = fits[None] & (reached[None] > level[:, None]) & ~taken
            overlap = jnp.where(is_free, ious[None], -1.0)
            # The last of equal ones, as in pycocotools.
            best = overlap.shape[1] - 1 - overlap[:, ::-1].argmax(1)
            hit = is_free.any(1)
            chosen = jnp.arange(overlap.shape[1])[None] == best[:, None]
            return taken | (chosen & hit[:, None]), hit

        taken = jnp.zeros((num_thresholds, len(true_classes)), bool)
        return classes, scores, jax.lax.scan(match_one, taken, (reached, ious, classes))[1]

    classes, scores, hits = jax.vmap(match_image)(reached, ious, scores, classes, true_classes)
    order = jnp.argsort(-scores.reshape(-1), stable=True)
    classes = classes.reshape(-1)[order]
    hits = hits.reshape(-1, num_thresholds)[order].T

    def of_class(pair):
        number, needed = pair
        is_own = (classes == number)[None]
        right = jnp.cumsum(hits & is_own, axis=1)
        all_detections = jnp.cumsum(is_own, axis=1)
        precision = right.astype(jnp.float32) / jnp.maximum(all_detections, 1).astype(jnp.float32)
        # The greatest at this recall or a higher one.
        envelope = jax.lax.cummax(precision, axis=1, reverse=True)

        def at_recalls(right, envelope):
            index = jnp.searchsorted(right, needed)
            values = envelope[jnp.minimum(index, len(right) - 1)]
            return jnp.where(index < len(right), values, 0.0).mean()

        return jax.vmap(at_recalls)(right, envelope)

    return jax.lax.map(of_class, (jnp.arange(len(needed)), needed)).T
