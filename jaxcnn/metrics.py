"""Sums over examples that add over batches and devices, and their means.

The only division comes at the end. An example is what has a loss of its own. It is an image, or a
pixel where labels are masks, or a value of the image where the image itself is the target. Further
metrics of a classifier are computed from all of its predictions: confusion, IoU, calibration. So is
the average precision of a detector, and the character error rate of a reader.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn._util import format_fields, is_abstract
from jaxcnn.arguments import ArgumentError, check_integer, check_positive, format_value


class Metrics(NamedTuple):
    """Totals over examples.

    The totals of two parts of a data set add up to those of the whole, whatever their sizes.

    Attributes:
      num_examples: int32 []: number of examples.
      loss: float32 []: sum of their losses.
      sums: sums of the loss's metrics by name: int32 [] of bool metrics, float32 [] of others.
      grad_norm: float32 []: in training, sum of the gradient's Euclidean norm at each example's
        step. It is 0 elsewhere.
      squared_batch_loss: float32 []: in training, sum of the squared mean loss of each example's
        batch. It is 0 elsewhere.
    """

    num_examples: jax.Array
    loss: jax.Array
    sums: Any
    grad_norm: jax.Array
    squared_batch_loss: jax.Array

    @property
    def num_wrong(self) -> Any:
        """Number of examples with an error, int32 [].

        Raises:
            ArgumentError: the loss counts no errors. So does `error_percent`.
        """
        if "error" not in self.sums:
            names = ", ".join(self.sums) or "no metrics"
            raise ArgumentError(
                f"the loss counts no errors, but {names}; expected a metric 'error'. "
                "Use mean_loss or means()."
            )
        return self.sums["error"]

    @property
    def mean_loss(self) -> float:
        """Mean loss of an example.

        Raises:
            ZeroDivisionError: there are no examples. So do the other means.
        """
        return float(self.loss) / int(self.num_examples)

    @property
    def error_percent(self) -> float:
        """Percentage of wrong classifications."""
        return 100 * int(self.num_wrong) / int(self.num_examples)

    def __repr__(self) -> str:
        # Sums of a program that is traced, or of several runs, have no means.
        leaves = jax.tree.leaves(tuple(self), is_leaf=lambda leaf: leaf is None)
        if any(is_abstract(leaf) or np.shape(leaf) for leaf in leaves):
            return format_fields(self)
        texts = [f"num_examples={int(self.num_examples)}"]
        if int(self.num_examples):
            means = {f"mean_{name}": value for name, value in self.means().items()}
            if "error" in self.sums:
                means["error_percent"] = means.pop("mean_error")
            if float(self.grad_norm):
                means["mean_grad_norm"] = self.mean_grad_norm
            texts += [f"{name}={value:.4g}" for name, value in means.items()]
        return f"Metrics({', '.join(texts)})"

    def means(self) -> dict[str, float]:
        """Return the mean loss and the mean of each metric by name.

        Those of bool metrics are in percent.
        """
        count = int(self.num_examples)
        means = {
            name: 100 * int(value) / count if value.dtype.kind == "i" else float(value) / count
            for name, value in self.sums.items()
        }
        return {"loss": self.mean_loss} | means

    @property
    def mean_grad_norm(self) -> float:
        """Mean norm of the gradient over the steps."""
        return float(self.grad_norm) / int(self.num_examples)

    @property
    def loss_std(self) -> float:
        """Standard deviation of the batches' mean loss over the steps.

        It measures the noise of training.
        """
        variance = float(self.squared_batch_loss) / int(self.num_examples) - self.mean_loss**2
        return math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan


def zeros(dtypes: Iterable[tuple[str, str]] = (("error", "int32"),)) -> Metrics:
    """Return the sums over no examples.

    Args:
        dtypes: names of the loss's metrics and dtypes of their sums, as
            `jaxcnn.losses.metric_dtypes` returns them.
    """
    sums = {name: jnp.zeros((), dtype) for name, dtype in dtypes}
    return Metrics(jnp.int32(0), jnp.float32(0), sums, jnp.float32(0), jnp.float32(0))


def count(losses: jax.Array, values: Mapping[str, jax.Array], valid: jax.Array) -> Metrics:
    """Return the sums over one batch.

    Args:
        losses: float32 [b, ...], as a loss returns them.
        values: metrics by name, of the same shape: bool, integers or floats.
        valid: bool [b]; False marks rows that only pad the batch.

    Example:
        >>> losses, wrong = jnp.array([0.5, 2.5]), jnp.array([False, True])
        >>> sums = count(losses, {"error": wrong}, jnp.array([True, True]))
        >>> sums.mean_loss, sums.error_percent
        (1.5, 50.0)
    """
    valid = jnp.broadcast_to(valid.reshape(-1, *(1,) * (losses.ndim - 1)), losses.shape)
    sums = {
        name: (valid & value).sum(dtype=jnp.int32)
        if value.dtype == jnp.bool_
        else jnp.where(valid, value, jnp.zeros_like(value)).sum(dtype=jnp.float32)
        for name, value in values.items()
    }
    return Metrics(
        valid.sum(dtype=jnp.int32),
        jnp.where(valid, losses, 0).sum(),
        sums,
        jnp.float32(0),
        jnp.float32(0),
    )


def add(a: Metrics, b: Metrics) -> Metrics:
    """Add the sums of two parts."""
    return jax.tree.map(jnp.add, a, b)


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the predictions of each class for each label.

    Args:
        labels: integers of any shape.
        predicted: integers of the same shape.
        num_classes: the number of classes.

    Returns:
        int64 [num_classes, num_classes]: rows are labels, columns are predictions.

    Raises:
        ArgumentError: they are not arrays of integers from 0 to num_classes - 1, or their shapes
            differ.

    Example:
        >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    num_classes = check_integer("num_classes", num_classes, example=10)
    _check_class_numbers("labels", labels, num_classes)
    _check_class_numbers("predicted", predicted, num_classes)
    if labels.shape != predicted.shape:
        raise ArgumentError(
            f"labels are of shape {labels.shape} and predicted of shape {predicted.shape}; "
            "expected one prediction for each label. Write predicted=outputs.argmax(-1)."
        )
    pairs = np.ravel(labels).astype(np.int64) * num_classes + np.ravel(predicted).astype(np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _check_class_numbers(name: str, values: Any, num_classes: int) -> None:
    """Check that `values` is an array of numbers of classes.

    Raises:
        ArgumentError: it is not.
    """
    if not isinstance(values, (np.ndarray, np.generic, jax.Array)):
        raise ArgumentError(
            f"{name} is {format_value(values)}; expected an array of integers. "
            f"Write {name}=np.array([0, 1])."
        )
    # A comparison of an output and a threshold, of type bool, has two classes.
    if np.dtype(values.dtype).kind not in "iub":
        raise ArgumentError(
            f"{name} is an array of {values.dtype}; expected one of integers. "
            f"Write {name}=outputs.argmax(-1)."
        )
    if values.size and (values.min() < 0 or values.max() >= num_classes):
        raise ArgumentError(
            f"{name} span {int(values.min())}..{int(values.max())}; expected 0..{num_classes - 1}. "
            f"Leave out the others, or write num_classes={max(int(values.max()), 0) + 1} "
            "if none is below 0."
        )


def iou(counts: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class.

    Args:
        counts: as `confusion` returns them.

    Returns:
        float64 [num_classes] in 0..1; NaN for a class that is neither a label nor a prediction.

    Raises:
        ArgumentError: `counts` is not a square matrix of numbers from 0.

    Example:
        >>> iou(np.array([[2, 1], [1, 4]])).round(3).tolist()
        [0.5, 0.667]
    """
    is_matrix = isinstance(counts, (np.ndarray, jax.Array)) and counts.ndim == 2
    if (
        not is_matrix
        or counts.shape[0] != counts.shape[1]
        or np.dtype(counts.dtype).kind not in "iuf"
        or not (counts >= 0).all()
    ):
        raise ArgumentError(
            f"counts is {format_value(counts)}; expected a square matrix of numbers from 0. "
            "Write counts=confusion(labels, predicted, num_classes)."
        )
    intersection = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - intersection
    return np.divide(intersection, union, out=np.full(len(counts), np.nan), where=union > 0)


def correct_keypoints(
    points: Any, true_points: Any, visible: Any, lengths: Any, *, alpha: float = 0.1
) -> np.ndarray:
    """Return which key points are right.

    One is right if its distance from the true one is at most `alpha` times the person's length.

    Args:
        points: predicted (x, y), float [n, J, 2]; NaN for one that was not found.
        true_points: float [n, J, 2].
        visible: bool [n, J]; others are not right.
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
        or not _is_real(lengths.dtype)
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
    """Return the percentage of correct key points (PCK) of each joint, as shares.

    Args:
        points: as in `correct_keypoints`.
        true_points: likewise.
        visible: likewise.
        lengths: likewise.
        alpha: likewise.

    Returns:
        float64 [J] in 0..1; NaN for a joint that is never visible. The mean is that over joints.

    Raises:
        ArgumentError: an argument is invalid.

    References:
        Yang and Ramanan 2013, "Articulated human detection with flexible mixtures of parts" (PCK).

    Example:
        >>> points, true_points = np.zeros((2, 1, 2)), np.array([[[3.0, 4.0]], [[0.0, 0.0]]])
        >>> visible = np.ones((2, 1), bool)
        >>> pck(points, true_points, visible, np.array([10.0, 10.0]), alpha=0.2).tolist()
        [0.5]
    """
    right = correct_keypoints(points, true_points, visible, lengths, alpha=alpha)
    counts = np.asarray(visible).sum(0)
    shares = np.full(len(counts), np.nan)
    return np.divide(right.sum(0), counts, out=shares, where=counts > 0)


def _is_real(dtype: Any) -> bool:
    # NumPy counts bfloat16 to neither, and time spans to the integers.
    is_number = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return bool(is_number) and not jnp.issubdtype(dtype, np.timedelta64)


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
        has_dtype = is_array and (values.dtype == np.bool_ if is_mask else _is_real(values.dtype))
        if not is_array or values.ndim != ndim or not has_dtype:
            found = f"an array {values.dtype} {values.shape}" if is_array else format_value(values)
            expected = "bool [n, joints]" if is_mask else "real numbers [n, joints, 2]"
            raise ArgumentError(
                f"{name} is {found}; expected {expected}. The order is points, true_points, "
                "visible."
            )
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
    points: Any, true_points: Any, visible: Any, areas: Any, *, sigma: float = 0.05
) -> jax.Array:
    """Return the object keypoint similarity (OKS) of all pairs of people of an image.

    It is COCO's: the mean over the visible key points of exp(-d^2 / (2 s^2 k^2)), with the distance
    d, the area s^2 of the true person, and k = 2 sigma. COCO has a sigma for each joint, here all
    are the same. It takes the place of the overlap in `average_precision`.

    Args:
        points: predicted (x, y) of d people, float [d, J, 2]; NaN for a joint that was not found,
            whose term is 0.
        true_points: of m people, float [m, J, 2].
        visible: bool [m, J].
        areas: float [m], square pixels.
        sigma: standard deviation of an annotator, in units of the root of the area.

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
    """
    sigma = check_positive("sigma", sigma, example=0.05)
    arrays: tuple[Any, ...] = points, true_points, visible, areas
    shapes: list[Any] = [getattr(array, "shape", ()) for array in arrays]
    d, joints = shapes[0][:2] if len(shapes[0]) == 3 else (0, 0)
    m = shapes[1][0] if shapes[1] else 0
    if shapes != [(d, joints, 2), (m, joints, 2), (m, joints), (m,)]:
        raise ArgumentError(
            f"points, true_points, visible and areas are of shapes {shapes}; expected "
            "(d, J, 2), (m, J, 2), (m, J) and (m,). Write jax.vmap for several images."
        )
    kinds = jnp.floating, jnp.floating, jnp.bool_, jnp.floating
    dtypes = [array.dtype for array in arrays]
    if not all(jnp.issubdtype(dtype, kind) for dtype, kind in zip(dtypes, kinds, strict=True)):
        raise ArgumentError(
            f"points, true_points, visible and areas are of {', '.join(map(str, dtypes))}; "
            "expected floating numbers, and bool for visible. Write points.astype('float32')."
        )
    points, true_points, areas = (
        jnp.asarray(array).astype(jnp.float32) for array in (points, true_points, areas)
    )
    counted = jnp.asarray(visible) & (areas > 0)[:, None]
    squared = jnp.square(points[:, None] - true_points[None]).sum(-1)
    scale = 2 * jnp.where(areas > 0, areas, 1.0) * (2 * sigma) ** 2
    terms = jnp.where(
        jnp.isfinite(squared) & counted[None], jnp.exp(-squared / scale[None, :, None]), 0.0
    )
    return terms.sum(-1) / jnp.maximum(counted.sum(-1), 1).astype(jnp.float32)[None]


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
        found = f"an array {values.dtype} {values.shape}" if is_array else format_value(values)
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


class DepthErrors(NamedTuple):
    """Errors of predicted depths y, of true depths y*.

    All but `scale_invariant` are over all pixels together.

    Attributes:
      abs_rel: absolute relative error, the mean of |y - y*| / y*.
      rmse: root of the mean squared error, in the unit of the depths.
      rmse_log: root of the mean squared error of log depth.
      scale_invariant: root of the mean over images of the scale-invariant error of log depth (Eigen
        et al. 2014, arXiv:1406.2283, equation 3). No factor on all depths of an image changes it.
      delta1: share of pixels with max(y / y*, y* / y) < 1.25, in 0..1.
      delta2: the same for 1.25^2.
      delta3: the same for 1.25^3.
    """

    abs_rel: float
    rmse: float
    rmse_log: float
    scale_invariant: float
    delta1: float
    delta2: float
    delta3: float


def depth_errors(predicted: Any, depth: Any, *, median_scaling: bool = False) -> DepthErrors:
    """Return errors of predicted depths.

    They are those of Eigen et al. 2014 (arXiv:1406.2283), table 1.

    Args:
        predicted: depths y, float [n, h, w], above 0.
        depth: true depths y*, float [n, h, w]. Pixels whose depth is not a finite number above 0
            have no truth and are left out.
        median_scaling: first multiply the depths of each image by the ratio of the true and the
            predicted median (Zhou et al. 2017, arXiv:1704.07813, section 4.1).

    Returns:
        `DepthErrors`.

    Raises:
        ArgumentError: shapes or types are others, no pixel has a true depth, or a prediction of one
            that has is not a finite number above 0.

    Example:
        >>> errors = depth_errors(np.array([[[2.0, 4.0]]]), np.array([[[1.0, 2.0]]]))
        >>> errors.abs_rel, errors.delta1, errors.scale_invariant
        (1.0, 0.0, 0.0)
        >>> depth_errors(
        ...     np.array([[[2.0, 4.0]]]), np.array([[[1.0, 2.0]]]), median_scaling=True
        ... ).abs_rel
        0.0
    """
    arrays = {"predicted": predicted, "depth": depth}
    for name, values in arrays.items():
        is_array = isinstance(values, (np.ndarray, jax.Array)) and not is_abstract(values)
        if not is_array or values.ndim != 3 or not jnp.issubdtype(values.dtype, jnp.floating):
            found = f"an array {values.dtype} {values.shape}" if is_array else format_value(values)
            raise ArgumentError(
                f"{name} is {found}; expected depths, float [n, h, w]. "
                f"Write {name}=depth.astype('float32')."
            )
    if predicted.shape != depth.shape:
        raise ArgumentError(
            f"predicted is of shape {predicted.shape} and depth {depth.shape}; expected the same. "
            "Write predicted=np.exp(log_depth[..., 0])."
        )
    own, truth = (np.asarray(values).astype(np.float64) for values in arrays.values())
    valid = np.isfinite(truth) & (truth > 0)
    if not valid.any():
        raise ArgumentError(
            "depth has no pixel with a true depth; expected a finite number above 0 in at least "
            "one. Write depth=np.ones((1, 4, 4), 'float32')."
        )
    if not (np.isfinite(own[valid]) & (own[valid] > 0)).all():
        raise ArgumentError(
            "predicted has values that are not depths; expected finite numbers above 0. "
            "Write predicted=np.exp(log_depth)."
        )
    if median_scaling:
        factors = [
            np.median(truth[i][valid[i]]) / np.median(own[i][valid[i]]) if valid[i].any() else 1.0
            for i in range(len(own))
        ]
        own = own * np.reshape(factors, (-1, 1, 1))
    safe_own, safe_truth = np.where(valid, own, 1.0), np.where(valid, truth, 1.0)
    difference = np.log(safe_own) - np.log(safe_truth)
    counts = valid.sum((1, 2))
    means = difference.sum((1, 2)) / np.maximum(counts, 1)
    centered = np.where(valid, difference - means[:, None, None], 0.0)
    invariant = np.square(centered).sum((1, 2))[counts > 0] / counts[counts > 0]
    y, y_true = own[valid], truth[valid]
    ratio = np.maximum(y / y_true, y_true / y)
    return DepthErrors(
        abs_rel=float(np.mean(np.abs(y - y_true) / y_true)),
        rmse=float(np.sqrt(np.mean(np.square(y - y_true)))),
        rmse_log=float(np.sqrt(np.mean(np.square(difference[valid])))),
        scale_invariant=float(np.sqrt(invariant.mean())),
        delta1=float(np.mean(ratio < 1.25)),
        delta2=float(np.mean(ratio < 1.25**2)),
        delta3=float(np.mean(ratio < 1.25**3)),
    )


def frechet_distance(features_a: Any, features_b: Any) -> float:
    """Compute the Frechet distance of two sets of features, as Gaussians.

    It is |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) with the means and the unbiased
    covariances of the sets. With the features of an Inception network it is known as FID. The value
    depends on the network and, since covariances are estimated, on the numbers of samples: compare
    only values of the same ones.

    No square root of a matrix is computed. The last trace is the sum of the singular values of
    R_a R_b^T, where R^T R are the covariances and R comes from the centered features by a QR
    decomposition. So it is accurate for singular covariances too.

    Args:
        features_a: numbers [n, d], n > 1, a row for each sample.
        features_b: numbers [m, d], m > 1.

    Returns:
        The squared distance, at least 0, in the squared unit of the features.

    Raises:
        ArgumentError: there are too few samples, the widths differ, features are no finite
            numbers or are traced, or the distance is above the greatest float.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(100, 3))
        >>> round(frechet_distance(features, features + np.array([[1.0, 2.0, 0.0]])), 6)
        5.0

    References:
        Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local Nash
        equilibrium" (arXiv:1706.08500), equation 6.
    """
    a = _to_features("features_a", features_a)
    b = _to_features("features_b", features_b)
    if a.shape[1] != b.shape[1]:
        raise ArgumentError(
            f"features_a have {a.shape[1]} columns and features_b {b.shape[1]}; expected as many. "
            "Use one layer of one network for both."
        )
    # Squares of large numbers overflow. A power of two changes no digit.
    exponent = math.frexp(max(float(np.abs(x).max()) for x in (a, b)))[1]
    a, b = np.ldexp(a, -exponent), np.ldexp(b, -exponent)
    root_a, root_b = (
        np.asarray(np.linalg.qr(x - x.mean(0, keepdims=True), mode="r")) / math.sqrt(len(x) - 1)
        for x in (a, b)
    )
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    between = np.square(a.mean(0) - b.mean(0)).sum()
    distance = between + np.square(root_a).sum() + np.square(root_b).sum() - 2 * overlap
    try:
        return math.ldexp(max(float(distance), 0.0), 2 * exponent)
    except OverflowError:
        raise ArgumentError(
            f"features are of the size of 2^{exponent}, so that the distance is above the greatest "
            "float; expected smaller ones. Divide both by one number."
        ) from None


def _to_features(name: str, values: Any) -> np.ndarray:
    """Return features of samples, float64 [n, d].

    Raises:
        ArgumentError: they are anything else, or of fewer than two samples.
    """
    is_array = isinstance(values, (np.ndarray, jax.Array)) and values.dtype != object
    # Of bfloat16, which is not NumPy's own type, the kind is "V". Types of keys have none.
    kind = getattr(values.dtype, "kind", "") if is_array else ""
    is_numeric = is_array and (kind in tuple("iuf") or values.dtype.name == "bfloat16")
    advice = "Write a row of numbers for each image, such as the outputs of a network's layer."
    if is_array and is_abstract(values):
        raise ArgumentError(
            f"{name} is traced, an array {values.dtype} {values.shape} without numbers; expected "
            "numbers. Call this outside jax.jit."
        )
    if (
        not is_numeric
        or isinstance(values, np.ma.MaskedArray)
        or values.ndim != 2
        or 0 in values.shape[1:]
    ):
        found = f"an array {values.dtype} {values.shape}" if is_array else format_value(values)
        raise ArgumentError(f"{name} is {found}; expected numbers [n, d]. {advice}")
    if len(values) < 2:
        raise ArgumentError(
            f"{name} has {len(values)} samples; expected at least 2, and many more than the "
            f"{values.shape[1]} columns. {advice}"
        )
    array = np.asarray(values).astype(np.float64)
    if not np.isfinite(array).all():
        raise ArgumentError(
            f"{name} has values that are not finite; expected finite ones. {advice}"
        )
    return array


class Calibration(NamedTuple):
    """Accuracy of a classifier in bins of confidence of equal width.

    Attributes:
      edges: float64 [bins + 1], 0 to 1. Bin i has the images with edges[i] < confidence <= edges[i
        + 1].
      counts: int64 [bins]: images in each bin. The fields below are NaN for empty bins.
      confidence: float64 [bins]: mean confidence, in 0..1.
      accuracy: float64 [bins]: fraction of correct images.
      low: float64 [bins]: lower end of the 95% interval of the accuracy (Wilson 1927).
      high: float64 [bins]: upper end of the interval.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Expected calibration error, 0..1.

        It is the mean of |accuracy - confidence| over bins, weighted by their numbers of images.
        """
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.counts * gaps) / self.counts.sum())


def calibration(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> Calibration:
    """Compute the numbers of a reliability diagram.

    A calibrated classifier with a confidence of 80% is correct for 8 of 10 images. An image's
    confidence is the probability of the predicted class.

    For few images, the expected calibration error is too large, since chance alone separates
    accuracy and confidence. More bins increase this bias.

    Args:
        probabilities: float [n, num_classes], n > 0, such as the softmax of logits.
        labels: int [n].
        bins: number of bins; the paper has 15.

    Returns:
        The number of images, the confidence and the accuracy of each bin.

    Raises:
        ValueError: the shapes do not match, a label is no integer or no class, the probabilities
            are invalid, or there are no bins.

    Example:
        >>> probabilities = np.array([[0.8, 0.2], [0.9, 0.1], [0.3, 0.7]])
        >>> result = calibration(probabilities, np.array([0, 1, 1]), bins=2)
        >>> result.counts.tolist(), result.accuracy.round(3).tolist()
        ([0, 3], [nan, 0.667])
        >>> round(result.expected_calibration_error, 3)
        0.133

    References:
        Guo et al. 2017, "On calibration of modern neural networks", section 2
        (https://arxiv.org/abs/1706.04599).
    """
    confidence, correct = _confidence(
        _to_array("probabilities", probabilities, "iubf", "float").astype(np.float64),
        _to_array("labels", labels, "iub", "int"),
    )
    if type(bins) is not int or bins < 1:
        raise ValueError(
            f"bins is {format_value(bins)}; expected a whole number of at least 1: write bins=15"
        )
    edges = np.arange(bins + 1) / bins
    index = np.maximum(np.searchsorted(edges, np.minimum(confidence, 1.0)) - 1, 0)
    counts, confidence_sums, hits = (
        np.bincount(index, weights, bins) for weights in (None, confidence, correct)
    )
    # 0 / 0 of empty bins is NaN.
    with np.errstate(invalid="ignore"):
        return Calibration(
            edges, counts, confidence_sums / counts, hits / counts, *_wilson(hits, counts)
        )


def _to_array(name: str, values: Any, kinds: str, expected: str) -> np.ndarray:
    """Return `values` as an array.

    Args:
        name: of the argument.
        values: an array or nested lists.
        kinds: NumPy's letters of the kinds of type that are allowed. No type is checked of an
            empty array.
        expected: the type, for the message.

    Raises:
        ValueError: it has another type, or rows of different lengths.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        array = None
    # Of bfloat16, which is not NumPy's own type, the kind is "V".
    is_float = array is not None and array.dtype.name in ("bfloat16", "float8_e4m3fn")
    if array is None or (
        array.size and array.dtype.kind not in kinds and not (is_float and "f" in kinds)
    ):
        found = "of rows that differ" if array is None else f"of type {array.dtype}"
        advice = {"float": "the softmax of logits", "int": "numbers of classes"}[expected]
        raise ValueError(f"{name} are {found}; expected {expected}: write {advice}")
    return array


def _confidence(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return confidence and correctness of each image.

    Returns:
        The greatest probability, and 1 where its class is the label, else 0; both float64 [n].
    """
    shape = probabilities.shape
    if probabilities.ndim != 2 or not probabilities.size or labels.shape != shape[:1]:
        raise ValueError(
            f"shares are {shape} and labels {labels.shape}; "
            "expected [n, num_classes] and [n], n > 0"
        )
    if labels.min() < 0 or labels.max() >= shape[1]:
        raise ValueError(f"labels span {labels.min()}..{labels.max()}; expected 0..{shape[1] - 1}")
    # The comparison is false for NaN.
    sums = probabilities.sum(1, keepdims=True)
    if not ((probabilities >= 0) & (np.abs(sums - 1) < 1e-3)).all():
        raise ValueError(
            "shares are no probabilities; expected numbers from 0 that sum to 1 in each row: take "
            "the softmax"
        )
    return probabilities.max(1), (probabilities.argmax(1) == labels).astype(np.float64)


def _wilson(hits: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95% interval of hits / n (Wilson 1927), or NaN."""
    z = NormalDist().inv_cdf(0.975)
    middle = (hits + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(hits * (n - hits) / n + z**2 / 4)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def edit_distance(predicted: Any, labels: Any) -> jax.Array:
    """Return the edit distances of pairs of sequences.

    It is the least number of insertions, deletions and substitutions that make one of the other
    (Levenshtein 1966).

    Args:
        predicted: integers [b, n], padded with -1 at the end.
        labels: integers [b, m], padded likewise.

    Returns:
        int32 [b].

    Raises:
        ArgumentError: they are no such arrays, of one b. Padding before a number is noticed where
            the arrays are not traced.

    Example:
        >>> edit_distance(np.array([[1, 2, 3], [4, -1, -1]]), np.array([[1, 3], [4, 4]])).tolist()
        [1, 1]
    """
    predicted = _check_sequences("predicted", predicted)
    labels = _check_sequences("labels", labels)
    if len(predicted) != len(labels):
        raise ArgumentError(
            f"predicted has {len(predicted)} sequences and labels {len(labels)}; expected as many. "
            f"Write predicted[:{len(labels)}] for those of the labels."
        )
    return _edit_distances(predicted, labels)


@jax.jit
def _edit_distances(predicted: jax.Array, labels: jax.Array) -> jax.Array:
    return jax.vmap(_edit_distance)(predicted, labels)


def _edit_distance(predicted: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the distance of one pair, by a row of the table for each number of `predicted`."""
    columns = jnp.arange(len(labels) + 1, dtype=jnp.int32)

    def step(row: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        differs = (labels != number).astype(jnp.int32)
        best = jnp.minimum(row[1:] + 1, row[:-1] + differs)
        best = jnp.concatenate([row[:1] + 1, best])
        # Insertions cost one a column: the least of best[i] + (j - i) over all i up to j.
        new = jax.lax.cummin(best - columns) + columns
        return jnp.where(number >= 0, new, row), None

    row, _ = jax.lax.scan(step, columns, predicted)
    return row[(labels >= 0).sum()]


def character_error_rate(predicted: Any, labels: Any) -> float:
    """Return the edit distances of all sequences, divided by the number of characters.

    Args:
        predicted: integers [b, n], padded with -1 at the end.
        labels: integers [b, m], padded likewise, of at least one character.

    Returns:
        A number from 0. It is above 1 where more characters are inserted than there are.

    Raises:
        ArgumentError: as for `edit_distance`, or the labels have no character, or an array is
            traced, as under `jax.jit`.

    Example:
        >>> labels = np.array([[1, 2, 3], [4, -1, -1]])
        >>> character_error_rate(np.array([[1, 3], [4, -1]]), labels)
        0.25
    """
    distances = edit_distance(predicted, labels)
    if is_abstract(distances) or is_abstract(labels):
        raise ArgumentError(
            "predicted or labels are traced, as under jax.jit; expected arrays with numbers. Write "
            "edit_distance(predicted, labels) under jax.jit, and the division outside of it."
        )
    count = int((np.asarray(labels) >= 0).sum())
    if not count:
        raise ArgumentError(
            "labels have no character; expected at least one. Write labels=np.array([[3, 1, -1]])."
        )
    return int(distances.sum()) / count


def _check_sequences(name: str, values: Any) -> jax.Array:
    """Return padded sequences as int32 [b, n].

    Raises:
        ArgumentError: they are anything else.
    """
    shape, dtype = getattr(values, "shape", ()), getattr(values, "dtype", None)
    is_integer = dtype is not None and jnp.issubdtype(dtype, jnp.integer)
    if not is_integer or len(shape) != 2 or 0 in shape:
        text = format_value(values) if dtype is None else f"an array {dtype} {tuple(shape)}"
        raise ArgumentError(
            f"{name} is {text}; expected integers [b, n], -1 for padding. "
            f"Write {name}=np.array([[3, 1, -1]])."
        )
    if not is_abstract(values):
        array = np.asarray(values)
        is_torn = ((array[:, :-1] < 0) & (array[:, 1:] >= 0)).any(1)
        if array.min() < -1 or is_torn.any():
            raise ArgumentError(
                f"{name} has padding before a number, or numbers below -1; expected sequences of "
                f"numbers from 0, then -1. Write {name}=np.array([[3, 1, -1]])."
            )
        # A number of 64 bits would become negative.
        if array.max() >= 2**31:
            raise ArgumentError(
                f"{name} goes up to {array.max()}; expected less than 2**31. Number the classes "
                "from 0."
            )
    return jnp.asarray(values).astype(jnp.int32)
