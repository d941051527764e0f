"""YOLO, the detector that reads objects off one grid of cells.

Redmon et al. 2016, "You only look once" (arXiv:1506.02640): the first version's grid, its loss and
its detections.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.arguments import ArgumentError, check_image_size, check_integer, check_positive
from jaxcnn.boxes import Detections, iou, select_detections
from jaxcnn.losses import Batch
from jaxcnn.models.detector import (
    Detector,
    check_object_classes,
    check_object_labels,
    check_output_names,
    prediction_head,
)


class YOLO(Detector):
    """YOLO's grid on the residual stages of He et al. 2015, section 4.2.

    The image is a grid of cells. Each cell predicts the classes of the object whose center lies in
    it, and `boxes_per_cell` boxes with a confidence (section 2 of the paper). All outputs are
    linear. Here the head is a 1x1 convolution, so images may have any size. In the paper it is two
    dense layers, and the network before it is GoogLeNet's.

    Attributes:
      num_classes: number of classes, k.
      boxes_per_cell: B of the paper. Four stages have strides 2, 4, 8 and 8, so a cell is 8 pixels
        wide.

    The other attributes are those of `jaxcnn.models.detector.Detector`.

    Example:
      >>> model, image = YOLO(num_classes=10), jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
      >>> outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
      >>> {name: array.shape for name, array in outputs.items()}
      {'boxes': (1, 8, 8, 2, 4), 'classes': (1, 8, 8, 10), 'confidence': (1, 8, 8, 2)}
    """

    num_classes: int
    boxes_per_cell: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to the predictions of h / 8 by w / 8 cells.

        Returns:
          "boxes" float32 [b, rows, columns, B, 4]: the center (x, y) in units of the cell, from its
          upper left corner, and the square roots of width and height relative to the image.
          "confidence" float32 [b, rows, columns, B], and "classes" float32 [b, rows, columns, k].
          With `stages`, the maps by name too.
        """
        check_integer("boxes_per_cell", self.boxes_per_cell, example=2)
        maps, outputs = self.feature_maps(x, train, (2, 1, 2, 2, 1))
        size = 5 * self.boxes_per_cell + self.num_classes
        head = prediction_head(size, 1, dtype=self.dtype, name="head")
        cells = head(maps[-1]).astype(jnp.float32)
        grid, count = cells.shape[:3], self.boxes_per_cell
        result = {
            "boxes": cells[..., : 4 * count].reshape(*grid, count, 4),
            "confidence": cells[..., 4 * count : 5 * count],
            "classes": cells[..., 5 * count :],
        }
        return (result, outputs) if stages else result


def grid_boxes(boxes: jax.Array, image_shape: tuple[int, int]) -> jax.Array:
    """Return the predicted boxes of an image in pixels.

    Args:
      boxes: float32 [rows, columns, B, 4], as `YOLO` returns them.
      image_shape: height and width of the image, pixels.

    Returns:
      float32 [rows, columns, B, 4], (x1, y1, x2, y2) as in `jaxcnn.boxes`.

    Example:
      >>> boxes = jnp.zeros((2, 2, 1, 4)).at[1, 0, 0].set(jnp.array([0.5, 0.5, 0.5, 0.5]))
      >>> grid_boxes(boxes, (16, 16))[1, 0].tolist()
      [[2.0, 10.0, 6.0, 14.0]]
    """
    rows, columns = boxes.shape[:2]
    extent = jnp.array([image_shape[1], image_shape[0]], jnp.float32)
    corners = jnp.stack(jnp.meshgrid(jnp.arange(columns), jnp.arange(rows)), -1)
    cell = extent / jnp.array([columns, rows], jnp.float32)
    # [rows, columns, 1, 2]
    corners = corners.astype(jnp.float32)[:, :, None]
    center = (corners + boxes[..., :2]) * cell.reshape(1, 1, 1, 2)
    size = jnp.square(boxes[..., 2:]) * extent.reshape(1, 1, 1, 2)
    return jnp.concatenate([center - size / 2, center + size / 2], -1)


@dataclass(frozen=True)
class YOLOLoss:
    """YOLO's sum of squared errors, equation 3 of the paper.

    The cell of an object's center predicts it. Of that cell's boxes, the one that overlaps the
    object most is responsible: its place, the square roots of its size and its confidence count.
    Where none overlaps, it is the nearest in these numbers, as in the authors' code. The confidence
    of a responsible box is compared with its overlap, as section 2 defines it, that of all others
    with 0. A cell learns one object, the first of the labels, as one cell can predict one class.

    Labels are those of `SSDLoss`. The metrics are the three sums: `box_loss` (with its weight),
    `confidence_loss` and `class_loss`.

    Attributes:
      box_weight: lambda_coord of the paper.
      background_weight: lambda_noobj of the paper.

    Raises:
      ArgumentError: in the constructor for an invalid value; while tracing, for other outputs or
        labels.

    Example:
      >>> outputs = {"boxes": jnp.zeros((1, 2, 2, 1, 4)), "confidence": jnp.zeros((1, 2, 2, 1))}
      >>> outputs["classes"] = jnp.zeros((1, 2, 2, 3))
      >>> labels = {"boxes": jnp.array([[[2.0, 10.0, 6.0, 14.0]]]), "classes": jnp.array([[2]])}
      >>> losses, _ = YOLOLoss()(outputs, Batch(jnp.zeros((1, 16, 16, 3)), labels))
      >>> losses.tolist()
      [6.0]
    """

    box_weight: float = 5.0
    background_weight: float = 0.5

    def __post_init__(self):
        check_positive("box_weight", self.box_weight, example=5.0)
        check_positive("background_weight", self.background_weight, example=0.5)

    def __call__(self, outputs: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the losses float32 [b], and the three terms [b]."""
        check_output_names(outputs, ("boxes", "confidence", "classes"), "YOLO")
        check_object_labels(batch)
        if outputs["boxes"].ndim != 5:
            raise ArgumentError(
                f"the model gives boxes of shape {outputs['boxes'].shape}; expected those of "
                "cells, [b, rows, columns, B, 4]. Train a jaxcnn.models.yolo.YOLO with this loss."
            )
        of_image = partial(self._of_image, tuple(batch.inputs.shape[1:3]))
        labels = batch.labels
        terms = jax.vmap(of_image)(
            outputs["boxes"],
            outputs["confidence"],
            outputs["classes"],
            labels["boxes"],
            labels["classes"],
        )
        names = ("box_loss", "confidence_loss", "class_loss")
        return terms[0] + terms[1] + terms[2], dict(zip(names, terms, strict=True))

    def check_labels(self, labels: Any, outputs: Any, name: str = "") -> None:
        """Check that the network has all classes of the labels (see `jaxcnn.losses`)."""
        check_object_classes(labels, outputs["classes"].shape[-1], name)

    def _of_image(self, image_shape, boxes, confidence, scores, true_boxes, true_classes):
        rows, columns, count = confidence.shape
        height, width = image_shape
        m = len(true_boxes)
        # Centers in units of cells, [m, 2]
        extent = jnp.array([[width, height]], jnp.float32)
        cells = jnp.array([[columns, rows]], jnp.float32)
        center = (true_boxes[:, :2] + true_boxes[:, 2:]) / 2 / extent * cells
        corner = jnp.clip(jnp.floor(center), 0.0, cells - 1)
        roots = jnp.sqrt(jnp.maximum(true_boxes[:, 2:] - true_boxes[:, :2], 0.0) / extent)
        # The first object of each cell, [rows * columns]; m where there is none.
        flat = (corner[:, 1] * columns + corner[:, 0]).astype(jnp.int32)
        flat = jnp.where(true_classes >= 0, flat, rows * columns)
        owner = jnp.full(rows * columns, m, jnp.int32)
        owner = owner.at[flat].min(jnp.arange(m, dtype=jnp.int32), mode="drop")
        has_object = owner < m
        index = jnp.minimum(owner, m - 1)
        # Targets and predictions of each cell, [cells, 4] and [cells, B, 4]
        target = jnp.concatenate([center - corner, roots], 1)[index]
        predicted = boxes.reshape(-1, count, 4)
        in_pixels = grid_boxes(boxes, image_shape).reshape(-1, count, 4)
        overlap = jax.vmap(lambda own, truth: iou(own, truth[None])[:, 0])(
            in_pixels, true_boxes[index]
        )
        overlap = jax.lax.stop_gradient(overlap)
        errors = jnp.square(predicted - target[:, None]).sum(-1)
        has_overlap = (overlap > 0).any(1, keepdims=True)
        best = jnp.where(has_overlap, overlap, -jax.lax.stop_gradient(errors)).argmax(1)
        responsible = (jnp.arange(count)[None] == best[:, None]) & has_object[:, None]
        confidence = confidence.reshape(-1, count)
        zero = jnp.zeros_like(confidence)
        box_loss = self.box_weight * jnp.where(responsible, errors, zero).sum()
        weights = jnp.where(responsible, 1.0, self.background_weight)
        distance = confidence - jnp.where(responsible, overlap, zero)
        confidence_loss = (weights * jnp.square(distance)).sum()
        one_hot = jax.nn.one_hot(true_classes[index], scores.shape[-1], dtype=scores.dtype)
        wrong = jnp.square(scores.reshape(one_hot.shape) - one_hot).sum(-1)
        return box_loss, confidence_loss, jnp.where(has_object, wrong, 0.0).sum()


def yolo_detections(
    outputs: dict[str, jax.Array],
    image_shape: tuple[int, int],
    *,
    max_outputs: int = 100,
    threshold: float = 0.45,
) -> Detections:
    """Return the objects that YOLO detects.

    The score of a box and a class is the product of the box's confidence and the cell's value for
    the class, each cut off to 0..1 (equation 1 of the paper).

    Args:
      outputs: those of `YOLO` for b images.
      image_shape: height and width of the images, pixels.
      max_outputs: objects of an image.
      threshold: greatest overlap of two objects of a class.

    Returns:
      `Detections` with a first axis of b.

    Example:
      >>> outputs = {"boxes": jnp.full((1, 2, 2, 1, 4), 0.5)}
      >>> outputs["confidence"] = jnp.zeros((1, 2, 2, 1)).at[0, 1, 0].set(0.5)
      >>> outputs["classes"] = jnp.ones((1, 2, 2, 1))
      >>> found = yolo_detections(outputs, (16, 16), max_outputs=2)
      >>> found.boxes[0, 0].tolist(), found.scores.tolist()
      ([2.0, 10.0, 6.0, 14.0], [[0.5, 0.0]])
    """
    check_output_names(outputs, ("boxes", "confidence", "classes"), "YOLO")
    image_shape = check_image_size(image_shape)
    return _yolo_detections(outputs, image_shape, max_outputs, threshold)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _yolo_detections(outputs, image_shape, max_outputs, threshold):
    def of_image(boxes, confidence, classes):
        k = classes.shape[-1]
        shares = jnp.clip(confidence, 0.0, 1.0)[..., None] * jnp.clip(classes, 0.0, 1.0)[:, :, None]
        return select_detections(
            grid_boxes(boxes, image_shape).reshape(-1, 4),
            shares.reshape(-1, k),
            image_shape,
            max_outputs=max_outputs,
            threshold=threshold,
        )

    return jax.vmap(of_image)(outputs["boxes"], outputs["confidence"], outputs["classes"])
