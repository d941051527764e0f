"""Faster R-CNN, the detector in two stages, and Mask R-CNN, which adds a mask of each object.

Ren et al. 2015, "Faster R-CNN" (arXiv:1506.01497), with the RoIAlign and the masks of He et al.
2017, "Mask R-CNN" (arXiv:1703.06870): the network, its loss and its detections.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxcnn.arguments import ArgumentError, check_image_size, check_positive
from jaxcnn.boxes import (
    Anchors,
    Detections,
    clip,
    decode,
    encode,
    iou,
    match_anchors,
    non_max_suppression,
    paste_masks,
    roi_align,
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
from jaxcnn.models.initializers import Normal, initializer
from jaxcnn.models.layers import conv3x3

DIGIT_ANCHORS = Anchors(strides=(4,), sizes=((12.0, 17.0, 23.0),), ratios=(1.4, 2.0))
"""Anchors for upright objects of 10 to 30 pixels."""
STRIDE = 4
"""Pixels of the image for each cell of the features."""
ROI_SIZE, MASK_SIZE = 5, 14
"""Bins of a side of a proposal for the box's head, and those of a predicted mask."""
NUM_CANDIDATES, PROPOSAL_THRESHOLD = 100, 0.7
"""Anchors of the highest scores that become proposals, and the overlap of two of them."""


class FasterRCNN(Detector):
    """Faster R-CNN on the residual stages of He et al. 2015, section 4.2.

    The region proposal network predicts for each anchor whether it is an object, and its offsets
    (section 3.1 of Ren et al.). The best anchors, moved by their offsets and without those that
    overlap a better one by 0.7, are the proposals. RoIAlign reads the features of each, and two
    dense layers predict its class and, for each class, offsets. With `masks`, a 3x3 convolution and
    a doubling predict a mask for each class. Figure 4 of Mask R-CNN has four such convolutions.

    It is the paper's in small: a map of stride 4, and 16 proposals in place of 2,000 in training
    and 300 in a test. The network proposes the same in both modes, and takes no gradient through
    the proposals' places, as in the paper. The authors' code adds the true boxes to the proposals
    of training. Here a network sees images alone, so there are none.

    Attributes:
      num_classes: number of classes, k.
      anchors: on one map of stride 4. Three stages have strides 2, 4 and 4.
      proposals: their number, p.
      masks: predict masks too.
      hidden: units of the dense layers.

    The other attributes are those of `jaxcnn.models.detector.Detector`.

    Raises:
      ArgumentError: when called, for anchors of another stride.

    Example:
      >>> model, image = FasterRCNN(10, masks=True), jax.ShapeDtypeStruct((1, 48, 48, 3), "float32")
      >>> outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
      >>> for name in ("objectness", "proposals", "logits", "offsets", "masks"):
      ...     print(name, outputs[name].shape)
      objectness (1, 864)
      proposals (1, 16, 4)
      logits (1, 16, 11)
      offsets (1, 16, 10, 4)
      masks (1, 16, 14, 14, 10)
    """

    num_classes: int
    anchors: Anchors = DIGIT_ANCHORS
    proposals: int = 16
    masks: bool = False
    hidden: int = 128

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to the predictions of both stages.

        Returns:
          For the a anchors: "objectness" float32 [b, a], logits, and "anchor_offsets" float32
          [b, a, 4]. For the p proposals: "proposals" float32 [b, p, 4] in pixels and "is_proposed"
          bool [b, p], False where there are fewer; "logits" float32 [b, p, 1 + k], 0 is background;
          "offsets" float32 [b, p, k, 4]; and "masks" float32 [b, p, 14, 14, k], logits. With
          `stages`, the maps by name too.
        """
        if self.anchors.strides != (STRIDE,):
            raise ArgumentError(
                f"strides is {self.anchors.strides}; expected ({STRIDE},), as of the features. "
                f"Write Anchors(strides=({STRIDE},), sizes=((12.0, 18.0),))."
            )
        maps, outputs = self.feature_maps(x, train, (2, 1, 2, 1))
        features = maps[-1]
        make_conv = partial(conv3x3, kernel_init=self.kernel_init, dtype=self.dtype, bias=True)
        make_dense = partial(nn.Dense, dtype=self.dtype, kernel_init=initializer(self.kernel_init))
        count = self.anchors.per_cell[0]
        y = nn.relu(make_conv(features.shape[-1], name="rpn")(features))
        result = {}
        for name, size in (("objectness", 1), ("anchor_offsets", 4)):
            head = prediction_head(count * size, 1, dtype=self.dtype, name=name)
            result[name] = head(y).reshape(len(x), -1, size).astype(jnp.float32)
        result["objectness"] = result["objectness"][..., 0]
        proposals, is_proposed = propose(
            jax.lax.stop_gradient(result["objectness"]),
            jax.lax.stop_gradient(result["anchor_offsets"]),
            self.anchors,
            (x.shape[1], x.shape[2]),
            self.proposals,
        )
        result |= {"proposals": proposals, "is_proposed": is_proposed}
        # [b, p, 5, 5, c]
        regions = jax.vmap(partial(roi_align, size=ROI_SIZE, stride=STRIDE))(features, proposals)
        y = regions.reshape(*regions.shape[:2], -1)
        for layer in ("dense1", "dense2"):
            y = nn.relu(make_dense(self.hidden, name=layer)(y))
        k, small = self.num_classes, Normal(0.01)
        result["logits"] = make_dense(1 + k, kernel_init=small, name="logits")(y)
        offsets = make_dense(4 * k, kernel_init=small, name="offsets")(y)
        result["offsets"] = offsets.reshape(*y.shape[:2], k, 4)
        if self.masks:
            align = partial(roi_align, size=MASK_SIZE // 2, stride=STRIDE)
            regions = jax.vmap(align)(features, proposals)
            y = regions.reshape(-1, *regions.shape[2:])
            filters = features.shape[-1] // 2
            y = nn.relu(make_conv(filters, name="mask_conv")(y))
            # A transposed 2x2 convolution of stride 2, whose squares do not overlap.
            y = make_dense(4 * filters, name="mask_double")(y).reshape(*y.shape[:3], 2, 2, filters)
            y = y.transpose(0, 1, 3, 2, 4, 5).reshape(len(y), MASK_SIZE, MASK_SIZE, filters)
            y = prediction_head(k, 1, dtype=self.dtype, name="masks")(nn.relu(y))
            result["masks"] = y.reshape(*proposals.shape[:2], *y.shape[1:])
        result = {
            name: value if value.dtype == jnp.bool_ else value.astype(jnp.float32)
            for name, value in result.items()
        }
        return (result, outputs) if stages else result


def propose(
    objectness: jax.Array,
    offsets: jax.Array,
    anchors: Anchors,
    image_shape: tuple[int, int],
    count: int,
) -> tuple[jax.Array, jax.Array]:
    """Return the proposals of a region proposal network.

    Args:
      objectness: float32 [b, a], logits of the anchors.
      offsets: float32 [b, a, 4].
      anchors: their shapes.
      image_shape: height and width of the images, pixels.
      count: number of proposals, p.

    Returns:
      float32 [b, p, 4] in pixels, inside the image and by falling score, and bool [b, p]: False
      marks rows that only pad.

    References:
      Ren et al. 2015, section 3.3, "Implementation details" (arXiv:1506.01497).

    Example:
      >>> anchors = Anchors(strides=(8,), sizes=((8.0,),))
      >>> scores = jnp.array([[0.0, 3.0, 1.0, 2.0]])
      >>> proposals, valid = propose(scores, jnp.zeros((1, 4, 4)), anchors, (16, 16), 5)
      >>> proposals[0, 0].tolist(), valid[0].tolist()
      ([8.0, 0.0, 16.0, 8.0], [True, True, True, True, False])
    """
    all_anchors = jnp.asarray(anchors.boxes(*image_shape))

    def of_image(objectness, offsets):
        scores, rows = jax.lax.top_k(objectness, min(NUM_CANDIDATES, len(all_anchors)))
        boxes = clip(decode(offsets[rows], all_anchors[rows]), *image_shape)
        kept = non_max_suppression(boxes, scores, threshold=PROPOSAL_THRESHOLD, max_outputs=count)
        return jnp.where((kept >= 0)[:, None], boxes[kept], 0.0), kept >= 0

    return jax.vmap(of_image)(objectness, offsets)


@dataclass(frozen=True)
class FasterRCNNLoss:
    """Loss of both stages of Faster R-CNN, and of masks where the network has them.

    The first stage has equation 1 of Ren et al. An anchor is an object from an overlap of 0.7, or
    if it overlaps an object most, and background below 0.3; the others do not count. The paper
    draws as many anchors of both kinds. Here all of them count, and the mean of each kind weighs
    half, which is the mean over such draws. The term of the boxes is smooth L1, a mean over the
    anchors of objects. Offsets of both stages are in units of `jaxcnn.boxes.VARIANCES`.

    The second stage has the loss of Fast R-CNN (Girshick 2015, arXiv:1504.08083, section 2.3). A
    proposal has the class of the object that it overlaps most, from an overlap of 0.5, and is
    background otherwise. Cross-entropy and smooth L1 are means over all proposals of an image,
    which are few, where the paper draws 64 of them, a quarter objects.

    The term of the masks is the mean binary cross-entropy of the pixels of the true class's mask,
    for the proposals of objects (He et al. 2017, section 3). The target is the object's mask in the
    proposal, resampled by RoIAlign.

    Labels are those of `SSDLoss`, and for masks `instances`, integers [b, h, w] with 0 for
    background and i + 1 for the object in row i. The metrics are the terms: `anchor_class_loss`,
    `anchor_box_loss`, `class_loss`, `box_loss` and `mask_loss`.

    Attributes:
      anchors: those of the network.
      box_weight: weight of both stages' terms of boxes.

    Raises:
      ArgumentError: in the constructor for an invalid value; while tracing, for other outputs or
        labels.

    Example:
      >>> loss = FasterRCNNLoss(Anchors(strides=(4,), sizes=((8.0,),)))
      >>> loss.box_weight
      1.0
    """

    anchors: Anchors = DIGIT_ANCHORS
    box_weight: float = 1.0

    def __post_init__(self):
        check_positive("box_weight", self.box_weight, example=1.0)

    def __call__(self, outputs: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the losses float32 [b], and the terms [b]."""
        names = ("objectness", "anchor_offsets", "proposals", "is_proposed", "logits", "offsets")
        check_output_names(outputs, names, "FasterRCNN")
        check_object_labels(batch)
        labels, image_shape = batch.labels, batch.inputs.shape[1:3]
        anchors = jnp.asarray(self.anchors.boxes(*image_shape))
        if outputs["objectness"].shape[1:] != anchors.shape[:1]:
            raise ArgumentError(
                f"the model gives {outputs['objectness'].shape[1:]} scores of anchors for an image "
                f"with {len(anchors)}; expected the same anchors. "
                "Write FasterRCNNLoss(model.anchors)."
            )
        boxes, classes = labels["boxes"], labels["classes"]
        proposals, is_proposed = outputs["proposals"], outputs["is_proposed"]
        first = jax.vmap(partial(_anchor_losses, anchors))(
            outputs["objectness"], outputs["anchor_offsets"], boxes, classes
        )
        second = jax.vmap(_proposal_losses)(
            proposals, is_proposed, outputs["logits"], outputs["offsets"], boxes, classes
        )
        terms = {"anchor_class_loss": first[0], "anchor_box_loss": first[1]}
        terms |= {"class_loss": second[0], "box_loss": second[1]}
        if "masks" in outputs:
            shape = getattr(labels.get("instances"), "shape", None)
            if shape != (len(batch.inputs), *image_shape):
                raise ArgumentError(
                    f"labels have instances of shape {shape}; expected "
                    f"{(len(batch.inputs), *image_shape)} for masks. "
                    "Write labels['instances'], i + 1 for the object in row i."
                )
            terms["mask_loss"] = jax.vmap(_mask_loss)(
                proposals, is_proposed, outputs["masks"], boxes, classes, labels["instances"]
            )
        weights = {"anchor_box_loss": self.box_weight, "box_loss": self.box_weight}
        losses = jnp.zeros(len(batch.inputs))
        for name, term in terms.items():
            losses += weights.get(name, 1.0) * term
        return losses, terms

    def check_labels(self, labels: Any, outputs: Any, name: str = "") -> None:
        """Check that the network has all classes of the labels (see `jaxcnn.losses`)."""
        check_object_classes(labels, outputs["logits"].shape[-1] - 1, name)


def _mean(values: jax.Array, counted: jax.Array) -> jax.Array:
    """Return the mean of the counted values, 0 without any."""
    number = jnp.maximum(counted.sum(), 1).astype(values.dtype)
    return jnp.where(counted, values, 0.0).sum() / number


def _anchor_losses(anchors, objectness, offsets, boxes, classes):
    """Return the losses of an image's anchors: of objectness, and of boxes."""
    index = match_anchors(anchors, boxes, classes >= 0, positive=0.7, negative=0.3)
    is_object, is_background = index >= 0, index == -1
    losses = optax.sigmoid_binary_cross_entropy(objectness, is_object.astype(objectness.dtype))
    class_loss = (_mean(losses, is_object) + _mean(losses, is_background)) / 2
    truth = encode(jnp.where(is_object[:, None], boxes[index], anchors), anchors)
    return class_loss, _mean(optax.huber_loss(offsets, truth).sum(-1), is_object)


def _match_proposals(proposals, is_proposed, boxes, classes):
    """Return the object that each proposal overlaps most, and whether it is an object."""
    overlaps = jnp.where((classes >= 0)[None], iou(proposals, boxes), -1.0)
    return overlaps.argmax(1), is_proposed & (overlaps.max(1) >= 0.5)


def _proposal_losses(proposals, is_proposed, logits, offsets, boxes, classes):
    """Return the losses of an image's proposals: of classes, and of boxes."""
    index, is_object = _match_proposals(proposals, is_proposed, boxes, classes)
    targets = jnp.where(is_object, classes[index] + 1, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    own = jnp.where(is_object, classes[index], 0)
    predicted = jnp.take_along_axis(offsets, own[:, None, None], axis=1)[:, 0]
    # A proposal that only pads has no size to encode with.
    unit = jnp.array([[0.0, 0.0, 1.0, 1.0]])
    anchors = jnp.where(is_object[:, None], proposals, unit)
    truth = encode(jnp.where(is_object[:, None], boxes[index], unit), anchors)
    distances = optax.huber_loss(predicted, truth).sum(-1)
    return _mean(losses, is_proposed), _mean(jnp.where(is_object, distances, 0.0), is_proposed)


def _mask_loss(proposals, is_proposed, masks, boxes, classes, instances):
    """Return the loss of the masks of an image's proposals."""
    index, is_object = _match_proposals(proposals, is_proposed, boxes, classes)
    numbers = jnp.arange(1, len(boxes) + 1, dtype=instances.dtype)
    objects = (instances[..., None] == numbers[None, None]).astype(jnp.float32)
    # [p, s, s, m], of which each proposal has one
    cropped = roi_align(objects, proposals, size=masks.shape[1], stride=1, samples=2)
    target = jnp.take_along_axis(cropped, index[:, None, None, None], axis=3)[..., 0] >= 0.5
    own = jnp.where(is_object, classes[index], 0)
    predicted = jnp.take_along_axis(masks, own[:, None, None, None], axis=3)[..., 0]
    losses = optax.sigmoid_binary_cross_entropy(predicted, target.astype(predicted.dtype))
    return _mean(losses.mean((1, 2)), is_object)


def rcnn_detections(
    outputs: dict[str, jax.Array],
    image_shape: tuple[int, int],
    *,
    max_outputs: int = 100,
    threshold: float = 0.5,
) -> Detections:
    """Return the objects that Faster R-CNN detects.

    Args:
      outputs: those of `FasterRCNN` for b images.
      image_shape: height and width of the images, pixels.
      max_outputs: objects of an image.
      threshold: greatest overlap of two objects of a class.

    Returns:
      `Detections` with a first axis of b. Their `sources` are rows of proposals.

    Example:
      >>> outputs = {"proposals": jnp.array([[[1.0, 2.0, 9.0, 10.0]]])}
      >>> outputs |= {"is_proposed": jnp.array([[True]]), "logits": jnp.array([[[0.0, 9.0, 0.0]]])}
      >>> outputs["offsets"] = jnp.zeros((1, 1, 2, 4))
      >>> found = rcnn_detections(outputs, (16, 16), max_outputs=1)
      >>> found.boxes.tolist(), found.classes.tolist()
      ([[[1.0, 2.0, 9.0, 10.0]]], [[0]])
    """
    check_output_names(outputs, ("proposals", "is_proposed", "logits", "offsets"), "FasterRCNN")
    image_shape = check_image_size(image_shape)
    return _rcnn_detections(outputs, image_shape, max_outputs, threshold)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _rcnn_detections(outputs, image_shape, max_outputs, threshold):
    def of_image(proposals, is_proposed, logits, offsets):
        p, k = offsets.shape[:2]
        scores = jnp.where(is_proposed[:, None], jax.nn.softmax(logits)[:, 1:], 0.0)
        boxes = decode(offsets.reshape(-1, 4), jnp.repeat(proposals, k, axis=0))
        return select_detections(
            boxes.reshape(p, k, 4),
            scores,
            image_shape,
            max_outputs=max_outputs,
            threshold=threshold,
        )

    names = ("proposals", "is_proposed", "logits", "offsets")
    return jax.vmap(of_image)(*(outputs[name] for name in names))


def rcnn_masks(
    outputs: dict[str, jax.Array], detections: Detections, image_shape: tuple[int, int]
) -> jax.Array:
    """Return the masks of the objects that Mask R-CNN detects.

    An object has the mask of its proposal and its class. The paper predicts masks again in the
    final boxes; here they are those of the proposals, which the loss trains.

    Args:
      outputs: those of `FasterRCNN` with `masks` for b images.
      detections: of `rcnn_detections`, m of each image.
      image_shape: height and width of the images, pixels.

    Returns:
      bool [b, m, h, w]; empty where there are fewer than m objects.

    Example:
      >>> outputs = {"proposals": jnp.array([[[0.0, 0.0, 1.0, 2.0]]])}
      >>> outputs["masks"] = jnp.full((1, 1, 14, 14, 1), 5.0)
      >>> index = jnp.zeros((1, 1), jnp.int32)
      >>> found = Detections(outputs["proposals"], jnp.ones((1, 1)), index, index)
      >>> rcnn_masks(outputs, found, (2, 2)).tolist()
      [[[[True, False], [True, False]]]]
    """
    check_output_names(outputs, ("proposals", "masks"), "FasterRCNN")
    image_shape = check_image_size(image_shape)
    return _rcnn_masks(outputs, detections, image_shape)


@partial(jax.jit, static_argnums=(2,))
def _rcnn_masks(outputs, detections, image_shape):
    def of_image(proposals, masks, classes, sources):
        is_object = sources >= 0
        own = jax.nn.sigmoid(masks)[sources, :, :, classes]
        pasted = paste_masks(own, proposals[sources], *image_shape)
        return pasted & is_object[:, None, None]

    pieces = outputs["proposals"], outputs["masks"], detections.classes, detections.sources
    return jax.vmap(of_image)(*pieces)
