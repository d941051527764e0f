"""SSD, the single-shot detector with anchors on several maps.

Liu et al. 2016, "SSD: single shot multibox detector" (arXiv:1512.02325): the network, its loss with
matching and hard negative mining, and its detections.

Example:
  Scenes of one square. Real ones need more images and steps, a wider network, and anchors of about
  the objects' sizes. Rows of class -1 pad images with fewer objects.

  >>> import numpy as np
  >>> import jaxcnn as jc
  >>> from jaxcnn.boxes import iou
  >>> from jaxcnn.metrics import average_precision
  >>> images = np.zeros((16, 16, 16, 3), np.uint8)
  >>> images[:, 4:12, 4:12] = 255
  >>> labels = {
  ...     "boxes": np.tile(np.float32([4, 4, 12, 12]), (16, 1, 1)),  # x1, y1, x2, y2
  ...     "classes": np.zeros((16, 1), np.int32),
  ... }
  >>> data = jc.dataset((images, labels), (images[:4], jax.tree.map(lambda x: x[:4], labels)))
  >>> model = SSD(num_classes=1, anchors=Anchors(strides=(8,), sizes=((8.0,),)), width=4)
  >>> tx = jc.create_optimizer(jc.OptimizerConfig("adam", learning_rate=0.01))
  >>> config = jc.TrainConfig(num_steps=2, batch_size=8)
  >>> for state, row in jc.train(model, tx, data, config, loss=SSDLoss(model.anchors)):
  ...     print(row["step"], row["eval_split"])
  2 test
  >>> outputs = jc.predict(model, state, data.test.images)
  >>> found = ssd_detections(outputs, model.anchors, (16, 16), max_outputs=5)
  >>> overlaps = jax.vmap(iou)(found.boxes, data.test.labels["boxes"])
  >>> classes = data.test.labels["classes"]
  >>> average_precision(overlaps, found.scores, found.classes, classes, num_classes=1).shape
  (10, 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxcnn.arguments import (
    ArgumentError,
    check_image_size,
    check_integer,
    check_positive,
    check_share,
)
from jaxcnn.boxes import (
    Anchors,
    Detections,
    decode,
    encode,
    match_anchors,
    select_detections,
)
from jaxcnn.losses import Batch
from jaxcnn.models.detector import (
    Detector,
    check_object_classes,
    check_object_labels,
    check_output_names,
    prediction_head,
)

DIGIT_ANCHORS = Anchors(
    strides=(4, 8, 16), sizes=((11.0, 14.0), (18.0, 21.0), (25.0,)), ratios=(1.4, 2.0)
)
"""Anchors for upright objects of 10 to 30 pixels on images of about 64x64."""


class SSD(Detector):
    """SSD on the residual stages of He et al. 2015, section 4.2.

    A 3x3 convolution on each of several maps predicts, for each anchor of a cell, the logits of
    background and of the classes, and the offsets of the box (figure 2 of the paper). A map of
    stride 2 s follows that of stride s by a residual stage; the paper's are those of VGG-16 and of
    further convolutions. The paper's L2 normalization of the first map (its section 3.1) is not
    here, as the stages end in BN.

    Attributes:
      num_classes: number of classes of objects, k. Background is one more.
      anchors: shapes of the anchors on each map. Strides are powers of 2 from 2, each twice the one
        before. The first stage has stride 2.

    The other attributes are those of `jaxcnn.models.detector.Detector`.

    Raises:
      ArgumentError: when called, for strides that the stages do not have.

    Example:
      >>> model, image = SSD(num_classes=10), jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
      >>> outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
      >>> outputs["logits"].shape, outputs["offsets"].shape
      ((1, 1312, 11), (1, 1312, 4))
    """

    num_classes: int
    anchors: Anchors = DIGIT_ANCHORS

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to logits and offsets of each anchor.

        Returns:
          {"logits": float32 [b, a, 1 + k], "offsets": float32 [b, a, 4]} for the a anchors of
          `anchors.boxes(h, w)`. Logit 0 is background. With `stages`, the maps by name too.
        """
        strides = check_strides(self.anchors.strides)
        maps, outputs = self.feature_maps(x, train, (2, 1) + (2,) * (strides[-1].bit_length() - 2))
        logits, offsets = [], []
        for stride, count in zip(strides, self.anchors.per_cell, strict=True):
            # Stage 1 has stride 2.
            features = maps[stride.bit_length() - 2]
            for name, size, heads in (
                ("logits", 1 + self.num_classes, logits),
                ("offsets", 4, offsets),
            ):
                make = prediction_head(count * size, 3, dtype=self.dtype, name=f"{name}{stride}")
                # Rows, columns, then the anchors of a cell, as in `Anchors.boxes`.
                heads.append(make(features).reshape(len(x), -1, size).astype(jnp.float32))
        result = {
            "logits": jnp.concatenate(logits, 1),
            "offsets": jnp.concatenate(offsets, 1),
        }
        return (result, outputs) if stages else result


def check_strides(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return strides of maps that residual stages have.

    Raises:
      ArgumentError: one is no power of 2 from 2, or they do not ascend.
    """
    if any(s < 2 or s & (s - 1) for s in strides) or list(strides) != sorted(set(strides)):
        raise ArgumentError(
            f"strides is {strides}; expected ascending powers of 2 from 2. "
            "Write strides=(4, 8, 16)."
        )
    return strides


@dataclass(frozen=True)
class SSDLoss:
    """SSD's loss: cross-entropy with hard negatives, and smooth L1 of the matched boxes.

    It is that of equation 1, for each image: the sum over matched anchors and mined background
    anchors, divided by the number of matched ones, and 0 for an image without any. (The paper's
    division is by the number in the batch.) Offsets are in units of `jaxcnn.boxes.VARIANCES`, as in
    the paper's published code and not in its equation 2. Of the background anchors the ones of the
    greatest loss are taken (section 2.2, "Hard negative mining").

    Labels are a dict with `boxes` float32 [b, m, 4], each (x1, y1, x2, y2) in pixels as in
    `jaxcnn.boxes`, and `classes` int32 [b, m], where -1 marks rows that only pad. Boxes as (x, y,
    width, height) or in 0..1 are not noticed. `train` and `evaluate` refuse a class of k or more.
    Elsewhere its loss is not a number. The metrics are `class_loss` and `box_loss`, its two terms.

    Attributes:
      anchors: those of the network.
      positive: least overlap of a matched anchor (`jaxcnn.boxes.match_anchors`).
      negatives: mined background anchors for each matched one.
      box_weight: alpha, the weight of the boxes' term.

    Raises:
      ArgumentError: in the constructor for an invalid value; while tracing, for other outputs or
        labels.

    Example:
      >>> anchors = Anchors(strides=(8,), sizes=((8.0,),))
      >>> outputs = {"logits": jnp.zeros((1, 4, 2)), "offsets": jnp.zeros((1, 4, 4))}
      >>> labels = {"boxes": jnp.array([[[0.0, 0.0, 8.0, 8.0]]]), "classes": jnp.array([[0]])}
      >>> batch = Batch(jnp.zeros((1, 16, 16, 3)), labels)
      >>> losses, metrics = SSDLoss(anchors)(outputs, batch)
      >>> round(float(losses[0] / jnp.log(2.0)), 4), metrics["box_loss"].tolist()
      (4.0, [0.0])
    """

    anchors: Anchors = DIGIT_ANCHORS
    positive: float = 0.5
    negatives: int = 3
    box_weight: float = 1.0

    def __post_init__(self):
        check_share("positive", self.positive, 0.5)
        check_integer("negatives", self.negatives, example=3)
        check_positive("box_weight", self.box_weight, example=1.0)

    def __call__(self, outputs: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the losses float32 [b], and both terms [b]."""
        check_output_names(outputs, ("logits", "offsets"), "SSD")
        check_object_labels(batch)
        anchors = jnp.asarray(self.anchors.boxes(*batch.inputs.shape[1:3]))
        if outputs["offsets"].shape[1:] != anchors.shape:
            raise ArgumentError(
                f"the model gives offsets of shape {outputs['offsets'].shape[1:]} for an image "
                f"with {len(anchors)} anchors; expected the same anchors. "
                "Write SSDLoss(model.anchors)."
            )
        of_image = partial(self._of_image, anchors)
        labels = batch.labels
        class_loss, box_loss = jax.vmap(of_image)(
            outputs["logits"], outputs["offsets"], labels["boxes"], labels["classes"]
        )
        losses = class_loss + self.box_weight * box_loss
        return losses, {"class_loss": class_loss, "box_loss": box_loss}

    def check_labels(self, labels: Any, outputs: Any, name: str = "") -> None:
        """Check that the network has all classes of the labels (see `jaxcnn.losses`)."""
        check_object_classes(labels, outputs["logits"].shape[-1] - 1, name)

    def _of_image(self, anchors, logits, offsets, boxes, classes):
        index = match_anchors(anchors, boxes, classes >= 0, positive=self.positive)
        matched = index >= 0
        count = matched.sum()
        targets = jnp.where(matched, classes[index] + 1, 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        # The rank of each background anchor, from the greatest loss.
        hardness = jnp.where(matched, -jnp.inf, losses)
        rank = jnp.argsort(jnp.argsort(-hardness, stable=True), stable=True)
        mined = ~matched & (rank < self.negatives * count)
        class_loss = jnp.where(matched | mined, losses, 0.0).sum()
        # Other anchors get a target too, because the logarithm of a size of 0 is not finite.
        truth = encode(jnp.where(matched[:, None], boxes[index], anchors), anchors)
        distances = optax.huber_loss(offsets, truth).sum(-1)
        box_loss = jnp.where(matched, distances, 0.0).sum()
        number = jnp.maximum(count, 1).astype(losses.dtype)
        return class_loss / number, box_loss / number


def ssd_detections(
    outputs: dict[str, jax.Array],
    anchors: Anchors,
    image_shape: tuple[int, int],
    *,
    max_outputs: int = 100,
    threshold: float = 0.45,
) -> Detections:
    """Return the objects that SSD detects.

    Args:
      outputs: those of `SSD` for b images.
      anchors: those of the network.
      image_shape: height and width of the images, pixels.
      max_outputs: objects of an image.
      threshold: greatest overlap of two objects of a class.

    Returns:
      `Detections` with a first axis of b.

    Raises:
      ArgumentError: the outputs are not of these anchors.

    Example:
      >>> anchors = Anchors(strides=(8,), sizes=((8.0,),))
      >>> logits = jnp.zeros((1, 4, 3)).at[0, 3, 2].set(9.0)
      >>> outputs = {"logits": logits, "offsets": jnp.zeros((1, 4, 4))}
      >>> found = ssd_detections(outputs, anchors, (16, 16), max_outputs=1)
      >>> found.boxes.tolist(), found.classes.tolist()
      ([[[8.0, 8.0, 16.0, 16.0]]], [[1]])
    """
    check_output_names(outputs, ("logits", "offsets"), "SSD")
    image_shape = check_image_size(image_shape)
    count = len(anchors.boxes(*image_shape))
    if outputs["offsets"].shape[1:] != (count, 4):
        raise ArgumentError(
            f"offsets are of shape {outputs['offsets'].shape[1:]} for images with {count} anchors; "
            "expected the network's anchors and image size. Write anchors=model.anchors."
        )
    return _ssd_detections(outputs, anchors, image_shape, max_outputs, threshold)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _ssd_detections(outputs, anchors, image_shape, max_outputs, threshold):
    boxes = jnp.asarray(anchors.boxes(*image_shape))

    def of_image(logits, offsets):
        scores = jax.nn.softmax(logits)[:, 1:]
        return select_detections(
            decode(offsets, boxes),
            scores,
            image_shape,
            max_outputs=max_outputs,
            threshold=threshold,
        )

    return jax.vmap(of_image)(outputs["logits"], outputs["offsets"])
