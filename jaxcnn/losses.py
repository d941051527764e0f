"""Losses: functions of a model's outputs and a batch that give a loss for each example.

A loss maps (outputs, batch) to losses and metrics. The losses are float32 [b, ...]: one for each
image, or for each pixel or value of it. The metrics are arrays of the same shape by name. Training
minimizes the mean of the losses. Rows and `evaluate` report the mean of the losses and of each
metric, with each example counted once. Metrics of type bool are reported in percent.

The losses here are frozen dataclasses. Equal ones share what is compiled for them. A loss is also
called with each auxiliary head that a model sows in "aux". A loss object must not change: what is
compiled for it would not. Nor may an example's loss depend on the others, because evaluation fills
the last batch.

Labels that only their values show to be invalid, such as a class that does not exist, cannot be
checked while tracing. A loss object with a method `check_labels(labels, outputs, name)` is
therefore called once with all labels of a split, before anything is compiled. `outputs` has the
shapes of the model's outputs for a batch, and `name` is that of the split, for the message.

Example:
  >>> def squared_distance(outputs, batch):
  ...     distance = jnp.linalg.norm(outputs - batch.labels, axis=-1)
  ...     return jnp.square(distance), {"distance": distance, "far": distance > 1}
  >>> batch = Batch(inputs=jnp.zeros((2, 8, 8, 1)), labels=jnp.zeros((2, 2)))
  >>> losses, metrics = compute_loss(squared_distance, jnp.array([[0.0, 3.0], [0.5, 0.0]]), batch)
  >>> losses.tolist(), metrics["far"].tolist()
  ([9.0, 0.25], [True, False])
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn._util import is_abstract
from jaxcnn.arguments import (
    ArgumentError,
    accepts,
    check_choice,
    check_integer,
    check_mapping,
    format_array,
    format_value,
)
from jaxcnn.ctc import collapse_path, frames_needed

RESERVED_METRICS = ("loss", "split")
"""Names that a metric cannot have, because a row has them already."""


class Batch(NamedTuple):
    """Examples that a loss compares the outputs with.

    Attributes:
      inputs: float32 [b, h, w, c]: images as the model gets them, normalized and augmented.
      labels: labels of these images, as in `jaxcnn.data.Split`: an array [b, ...] or a tree of
        them.
    """

    inputs: Any
    labels: Any


Loss = Callable[[Any, Batch], tuple[jax.Array, Mapping[str, jax.Array]]]
"""Function of outputs and batch that returns losses and metrics."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of softmax and class labels, in nats.

    Outputs are logits float32 [b, ..., num_classes], labels int32 [b, ...]. Its metric is `error`:
    whether the class of the largest logit is another than the label. Logits that are not numbers
    are errors.

    Labels may also be soft: shares of the classes, float32 [b, ..., num_classes] with a sum of 1.
    The loss is then the mean of the losses of all classes, weighted by the shares, with smoothing
    and class weights too. So a one-hot label has the loss of its integer. The error is against the
    class of the largest share.

    Attributes:
      label_smoothing: fraction of each label, in 0..1, that is spread equally over all classes
        (Szegedy et al. 2015, arXiv:1512.00567, section 7).
      class_weights: factors of the losses of each class's examples, or None. The mean is over the
        number of examples, not over the sum of their weights.

    Raises:
      ArgumentError: in the constructor, for an invalid value.

    Example:
      >>> batch = Batch(inputs=None, labels=jnp.array([0]))
      >>> losses, _ = CrossEntropy(class_weights=(2.0, 1.0))(jnp.zeros((1, 2)), batch)
      >>> round(float(losses[0] / math.log(2)), 5)
      2.0
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self):
        smoothing = _check_number("label_smoothing", self.label_smoothing, 0, 1, example=0.1)
        object.__setattr__(self, "label_smoothing", smoothing)
        if self.class_weights is None:
            return
        weights = self.class_weights
        if isinstance(weights, (np.ndarray, jax.Array)):
            weights = np.asarray(weights).tolist()
        if not isinstance(weights, (tuple, list)) or len(weights) < 2:
            raise ArgumentError(
                f"class_weights is {format_value(self.class_weights)}; "
                "expected a number for each class: write class_weights=(1.0, 2.0)"
            )
        weights = tuple(
            _check_number("class_weights", weight, 0, math.inf, example="(1.0, 2.0)")
            for weight in weights
        )
        if not any(weights):
            raise ArgumentError(
                "class_weights are all 0; expected one above 0: write class_weights=(1.0, 2.0)"
            )
        object.__setattr__(self, "class_weights", weights)

    def __call__(self, outputs: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the losses float32 [b, ...] and {"error": bool [b, ...]}."""
        labels = batch.labels
        _check_logits(outputs, labels)
        weights = self.class_weights
        if weights is not None and len(weights) != outputs.shape[-1]:
            raise ArgumentError(
                f"class_weights has {len(weights)} numbers and the model "
                f"{outputs.shape[-1]} outputs; expected one for each class"
            )
        if are_soft(labels):
            return self._soft_losses(outputs, labels), {"error": _is_wrong(outputs, labels)}
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        if self.label_smoothing:
            uniform = -jax.nn.log_softmax(outputs).mean(-1)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * uniform
        if weights is not None:
            losses = losses * jnp.asarray(weights, losses.dtype)[labels]
        return losses, {"error": _is_wrong(outputs, labels)}

    def _soft_losses(self, outputs: jax.Array, shares: jax.Array) -> jax.Array:
        """Return the mean loss of all classes, weighted by their shares."""
        of_class = -jax.nn.log_softmax(outputs)
        if self.label_smoothing:
            uniform = of_class.mean(-1, keepdims=True)
            of_class = (1 - self.label_smoothing) * of_class + self.label_smoothing * uniform
        shares = shares.astype(of_class.dtype)
        if self.class_weights is not None:
            weights = jnp.asarray(self.class_weights, of_class.dtype)
            shares = shares * weights.reshape((1,) * (shares.ndim - 1) + (-1,))
        return (shares * of_class).sum(-1)


@dataclass(frozen=True)
class SquaredError:
    """Half the squared distance of logits and one-hot labels.

    Outputs, labels and the metric are those of `CrossEntropy`. Soft labels take the place of the
    one-hot ones.

    References:
      Cohen et al. 2021, arXiv:2103.00065.
    """

    def __call__(self, outputs: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the losses float32 [b, ...] and {"error": bool [b, ...]}."""
        labels = batch.labels
        _check_logits(outputs, labels)
        if are_soft(labels):
            one_hot = labels.astype(outputs.dtype)
        else:
            one_hot = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
        losses = 0.5 * jnp.square(outputs - one_hot).sum(-1)
        return losses, {"error": _is_wrong(outputs, batch.labels)}


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Cross-entropy of each of several labels that an image can have together, in nats.

    Outputs are logits float32 [b, k]. Labels are [b, k] of any dtype, 0 or 1, or numbers between
    them, as augmentation that mixes images has them. Each label of each image counts as an example.
    Its metric is `error`: whether the logit's sign is wrong.

    Example:
      >>> batch = Batch(inputs=None, labels=jnp.array([[1, 0, 0]]))
      >>> losses, metrics = BinaryCrossEntropy()(jnp.array([[9.0, -9.0, 9.0]]), batch)
      >>> metrics["error"].tolist()
      [[False, False, True]]
    """

    def __call__(self, outputs: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the losses float32 [b, k] and {"error": bool [b, k]}."""
        check_single_output(outputs)
        shape = getattr(batch.labels, "shape", None)
        if shape is not None and len(shape) == 1:
            raise ArgumentError(
                "labels are a class of each image, [n]; loss 'binary-cross-entropy' expected 0 or "
                "1 for each of k labels, [n, k]. Write labels.astype('float32')[:, None] for one "
                "output, or loss='cross-entropy' with an output for each class."
            )
        if outputs.shape != shape:
            raise ArgumentError(
                f"the model gives {outputs.shape[1:]} for an image, and loss "
                f"'binary-cross-entropy' needs a logit for each label, {shape and shape[1:]}: "
                "build a classifier with as many outputs as an image has labels"
            )
        labels = batch.labels.astype(outputs.dtype)
        losses = optax.sigmoid_binary_cross_entropy(outputs, labels)
        is_right = ((outputs > 0) == (labels > 0.5)) & jnp.isfinite(outputs)
        return losses, {"error": ~is_right}

    def check_labels(self, labels: Any, outputs: Any, name: str = "") -> None:
        """Check that the labels are in 0..1.

        With others the loss has no minimum, and training would seem to go well.

        Args:
          labels: [n, k] of any dtype, not traced.
          outputs: the model's outputs for a batch, or their shapes.
          name: of the split, for the message.

        Raises:
          ArgumentError: a label is below 0, above 1 or NaN.
        """
        name, labels = f"{name} labels".strip(), np.asarray(labels)
        # The comparison is false for NaN.
        is_valid = (labels >= 0) & (labels <= 1)
        if not is_valid.all():
            place = tuple(np.argwhere(~is_valid)[0].tolist())
            raise ArgumentError(
                f"{name}[{place[0]}] have {labels[place]}; loss 'binary-cross-entropy' expected 0 "
                "or 1. Write (labels > 0).astype(np.uint8), or a loss of your own that leaves out "
                "unknown labels."
            )


@dataclass(frozen=True)
class Reconstruction:
    """Squared distance of the outputs and the inputs, for each value.

    Outputs and inputs are float32 [b, h, w, c]. Each value counts as an example. Its metric is
    `error`: whether the output is on the other side of 0 than the input. After normalization, 0 is
    the mean.
    """

    def __call__(self, outputs: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the losses float32 [b, h, w, c] and {"error": bool [b, h, w, c]}."""
        inputs = batch.inputs
        _check_batch_axis(outputs, inputs)
        if outputs.shape != inputs.shape:
            raise ArgumentError(
                f"the model gives {outputs.shape[1:]} for an image, and loss 'reconstruction' "
                f"compares with {inputs.shape[1:]}: build an autoencoder, say"
            )
        is_right = ((outputs > 0) == (inputs > 0)) & jnp.isfinite(outputs)
        return jnp.square(outputs - inputs), {"error": ~is_right}


@dataclass(frozen=True)
class ScaleInvariantError:
    """Squared error of log depth, less a share of the error in scale.

    With the difference d of predicted and true log depth, the loss of an image is equation 4 of
    Eigen et al. 2014: mean(d^2) - λ mean(d)^2, over the n pixels with a true depth. λ = 0 is the
    squared error of log depth. λ = 1 is their scale-invariant error (equations 1 to 3, with the
    factor 1 / n of equation 3): it does not change if a factor multiplies all depths. Then training
    does not determine the scale of the outputs.

    Outputs are log depth, float32 [b, h, w] or [b, h, w, 1]. Labels are depth, float32 [b, h, w],
    in any unit. Other floating dtypes are cast to float32. Pixels whose label is not a finite
    number above 0 have no true depth. An image without any has the loss 0.

    It is not in `LOSSES`, whose losses share the metric `error`. Its metrics are those of each
    image: `squared_log_error` (λ = 0) and `scale_invariant_error` (λ = 1).

    Attributes:
      scale_invariance: λ, in 0..1.

    Raises:
      ArgumentError: in the constructor, for an invalid value. When called, for outputs or labels of
        other shapes.

    References:
      Eigen, Puhrsch and Fergus 2014, arXiv:1406.2283, sections 3.2 and 3.3.

    Example:
      >>> batch = Batch(inputs=None, labels=jnp.array([[[1.0, 2.0]]]))
      >>> twice_as_far = jnp.log(jnp.array([[[2.0, 4.0]]]))
      >>> for scale_invariance in (0, 1):
      ...     losses, _ = ScaleInvariantError(scale_invariance)(twice_as_far, batch)
      ...     print(round(float(losses[0] / math.log(2) ** 2), 5))
      1.0
      0.0
    """

    scale_invariance: float = 0.5

    def __post_init__(self):
        value = _check_number("scale_invariance", self.scale_invariance, 0, 1, example=0.5)
        object.__setattr__(self, "scale_invariance", value)

    def __call__(self, outputs: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the losses float32 [b], and both errors [b]."""
        outputs, depth = _check_depth(outputs, batch.labels)
        valid = jnp.isfinite(depth) & (depth > 0)
        # The logarithm is taken of valid depths alone, because its gradient may be asked for.
        difference = outputs - jnp.log(jnp.where(valid, depth, 1.0))
        difference = jnp.where(valid, difference, 0.0)
        n = jnp.maximum(valid.sum((1, 2)), 1).astype(jnp.float32)
        mean = difference.sum((1, 2)) / n
        # Equal to mean(d^2) - mean(d)^2, whose terms would cancel where the scale is far off.
        centered = jnp.where(valid, difference - mean[:, None, None], 0.0)
        invariant = jnp.square(centered).sum((1, 2)) / n
        losses = invariant + (1 - self.scale_invariance) * jnp.square(mean)
        return losses, {
            "squared_log_error": invariant + jnp.square(mean),
            "scale_invariant_error": invariant,
        }


def _check_depth(outputs: Any, depth: Any) -> tuple[jax.Array, jax.Array]:
    """Return log depth and true depth, both float32 [b, h, w].

    Raises:
      ArgumentError: they are anything else.
    """
    if not are_soft(depth) or depth.ndim != 3:
        raise ArgumentError(
            f"labels are {_describe(depth)}; expected depths, float32 [b, h, w]. "
            "Write labels=depth.astype('float32')."
        )
    check_single_output(outputs)
    if outputs.shape not in (depth.shape, (*depth.shape, 1)):
        raise ArgumentError(
            f"the model gives {outputs.shape[1:]} for an image, and its depth is "
            f"{depth.shape[1:]}; expected one log depth for each pixel. "
            "Write jaxcnn.models.UNet(num_classes=1)."
        )
    # Neither the number of pixels nor sums over them fit in float16.
    return outputs.reshape(depth.shape).astype(jnp.float32), jnp.asarray(depth).astype(jnp.float32)


_MASKED = -1e4
"""Logit of an output that `CTCLoss` gets as -inf, relative to the greatest of the frame.

The probability is 0 in float32. optax's own logarithm of 0 is -1e5.
"""


@dataclass(frozen=True)
class CTCLoss:
    """Connectionist temporal classification: sequences without their positions, in nats.

    The loss is -log p(l | x), with the probability of equation 3 of Graves et al. 2006,
    "Connectionist temporal classification: labelling unsegmented sequence data with recurrent
    neural networks". It is the sum over all paths of one output a frame that
    `jaxcnn.ctc.collapse_path` maps to the sequence.

    Outputs are logits float32 [b, t, k + 1] for t frames, k classes and a blank. Labels are the
    classes of each sequence, int32 [b, m] with m <= t, padded with -1 at the end. The metric is
    `error`: whether the best path (section 3.2 of the paper) gives another sequence than the label.
    `jaxcnn.ctc` has the decoders.

    A sequence needs a frame for each class, and one for a blank between two equal ones. `train` and
    `evaluate` check that all have enough frames. Where labels are traced, as under `jax.jit`, a
    sequence without a path has a loss that is not a number.

    A logit of -inf masks an output, as if it were 10,000 below the greatest of its frame. So a
    sequence that needs it has a loss of about 10,000, and the logit has no gradient. The loss is
    not a number where a frame has nan, +inf or -inf alone.

    Attributes:
      blank: the output that is the blank. -1 is the last one, k, so that the classes are 0 to
        k - 1. With 0, the classes are 1 to k.

    Raises:
      ArgumentError: in the constructor, for an invalid value; when called, for other outputs or
        labels.

    Example:
      >>> batch = Batch(inputs=None, labels=jnp.array([[0, 1, -1]]))
      >>> probabilities = jnp.array([[[0.5, 0.25, 0.25]] * 3])
      >>> losses, metrics = CTCLoss()(jnp.log(probabilities), batch)
      >>> round(float(jnp.exp(-losses[0])), 5)  # of 001, 011, -01, 0-1 and 01-
      0.1875
      >>> metrics["error"].tolist()
      [True]
    """

    blank: int = -1

    def __post_init__(self):
        object.__setattr__(self, "blank", check_integer("blank", self.blank, -1))

    def __call__(self, outputs: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the losses float32 [b] and {"error": bool [b]}."""
        labels = batch.labels
        self.check_shapes(outputs, labels)
        if not is_abstract(labels):
            self.check_labels(labels, outputs)
        num_frames, num_outputs = outputs.shape[1:]
        blank = self.blank % num_outputs
        labels, logits = jnp.asarray(labels).astype(jnp.int32), outputs.astype(jnp.float32)
        is_padding = labels < 0
        greatest = logits.max(-1, keepdims=True)
        # optax multiplies log-probabilities by 0, so none may be infinite.
        is_masked = jnp.isneginf(logits) & jnp.isfinite(greatest)
        shifted = logits - jax.lax.stop_gradient(greatest)
        # In x64 mode, optax mixes its own float64 with the float32 of these arrays.
        with jax.numpy_dtype_promotion("standard"):
            losses = optax.ctc_loss(
                jnp.where(is_masked, _MASKED, shifted),
                jnp.zeros(logits.shape[:2], jnp.float32),
                # A class that exists: its emissions come after the end and do not count.
                jnp.where(is_padding, 0, labels),
                is_padding.astype(jnp.float32),
                blank_id=blank,
            ).astype(jnp.float32)
        is_class = (labels >= -1) & (labels < num_outputs) & (labels != blank)
        has_path = is_class.all(1) & (frames_needed(labels) <= num_frames)
        has_path &= ~(is_padding[:, :-1] & ~is_padding[:, 1:]).any(1)
        best = collapse_path(logits.argmax(-1), blank)[:, : labels.shape[1] + 1]
        labels = jnp.pad(labels, ((0, 0), (0, best.shape[1] - labels.shape[1])), constant_values=-1)
        # argmax returns class 0 for a frame of NaN.
        is_right = (best == labels).all(1) & jnp.isfinite(greatest).all((1, 2))
        return jnp.where(has_path, losses, jnp.nan), {"error": ~is_right}

    def check_shapes(self, outputs: Any, labels: Any) -> None:
        """Check that outputs and labels have the shapes and dtypes of sequences.

        Raises:
          ArgumentError: they have not.
        """
        check_single_output(outputs)
        shape, dtype = getattr(labels, "shape", ()), getattr(labels, "dtype", None)
        is_integer = dtype is not None and jnp.issubdtype(dtype, jnp.integer)
        if dtype is not None and len(shape) == 2 and not is_integer:
            raise ArgumentError(
                f"labels are {dtype}; expected sequences of classes, int32 [n, m]. "
                "Write labels.astype('int32'), with -1 for padding."
            )
        if not is_integer or len(shape) != 2 or 0 in shape:
            raise ArgumentError(
                f"labels are {_describe(labels)}; expected sequences of classes, int32 [n, m] with "
                "m > 0. Write np.array([[3, 1, -1]], np.int32), with -1 for padding."
            )
        _check_batch_axis(outputs, labels)
        if outputs.ndim != 3 or outputs.shape[2] < 2:
            raise ArgumentError(
                f"the model gives {outputs.shape[1:]} for an image; loss 'ctc' expected logits of "
                "(frames, num_classes + 1). Build a LineReader, say."
            )
        if self.blank >= outputs.shape[2]:
            raise ArgumentError(
                f"blank is {self.blank} and the model has {outputs.shape[2]} outputs; expected one "
                "of them. Write CTCLoss(blank=-1) for the last."
            )
        if shape[1] > outputs.shape[1]:
            raise ArgumentError(
                f"labels have {shape[1]} columns and the model gives {outputs.shape[1]} frames; "
                "expected at least a frame for each. Write labels[:, :m] if the others only pad, "
                "or use wider images."
            )

    def check_labels(self, labels: Any, outputs: Any, name: str = "") -> None:
        """Check that each sequence has a path through the frames.

        Args:
          labels: integers [n, m] that are not traced.
          outputs: logits [b, t, k + 1] or their shapes.
          name: of the split, for the message.

        Raises:
          ArgumentError: a sequence needs more frames, has padding before a class, or numbers that
            are no classes.
        """
        name, labels = f"{name} labels".strip(), np.asarray(labels)
        num_frames, num_outputs = outputs.shape[1:]
        blank = self.blank % num_outputs
        is_class = (labels >= -1) & (labels < num_outputs) & (labels != blank)
        if not is_class.all():
            row, column = np.argwhere(~is_class)[0]
            expected = f"0..{num_outputs - 2}" if blank == num_outputs - 1 else "a class"
            raise ArgumentError(
                f"{name}[{row}] have {labels[row, column]}; expected {expected}, or -1 for "
                f"padding, as output {blank} of {num_outputs} is the blank. Build the model with "
                "more outputs, or renumber the classes."
            )
        torn = ((labels[:, :-1] < 0) & (labels[:, 1:] >= 0)).any(1)
        if torn.any():
            row = int(torn.argmax())
            raise ArgumentError(
                f"{name}[{row}] are {format_value(labels[row].tolist())}; expected -1 only after "
                "the last class. Write the classes first."
            )
        needed = np.asarray(frames_needed(labels))
        if (needed > num_frames).any():
            row = int((needed > num_frames).argmax())
            raise ArgumentError(
                f"{name}[{row}] need {needed[row]} frames, with a blank between equal neighbors, "
                f"and the model gives {num_frames}; expected as many. Use wider images, or leave "
                "that one out."
            )


_OF_CLASSES = (CrossEntropy, SquaredError)
LOSSES: dict[str, type] = {
    "cross-entropy": CrossEntropy,
    "squared": SquaredError,
    "binary-cross-entropy": BinaryCrossEntropy,
    "reconstruction": Reconstruction,
    "ctc": CTCLoss,
}
"""Classes of losses by name."""
CLASS_LOSSES = tuple(name for name in LOSSES if issubclass(LOSSES[name], _OF_CLASSES))
"""Names of the losses that compare logits with class labels."""


def create_loss(name: str, /, **kwargs: Any) -> Loss:
    """Return the loss called `name`.

    Args:
      name: a key of `LOSSES`.
      kwargs: fields of its class, such as `label_smoothing=0.1`.

    Raises:
      ArgumentError: for an unknown name or field (the message has the nearest), or an invalid
        value.

    Example:
      >>> create_loss("cross-entropy", label_smoothing=0.1)
      CrossEntropy(label_smoothing=0.1, class_weights=None)
    """
    kind = LOSSES[check_choice("loss", name, LOSSES)]
    names = {field.name for field in dataclasses.fields(kind)}
    for field in kwargs:
        if not names:
            raise ArgumentError(f"loss {name!r} takes no {field}; leave it out")
        check_choice(f"field of loss {name!r}", field, names)
    return kind(**kwargs)


def as_loss(loss: str | Loss) -> Loss:
    """Return a loss as a function.

    Args:
      loss: a key of `LOSSES`, or a function (outputs, batch) -> (losses, metrics).

    Raises:
      ArgumentError: it is neither.

    Example:
      >>> as_loss("squared")
      SquaredError()
    """
    if isinstance(loss, str):
        return create_loss(loss)
    if isinstance(loss, type):
        raise ArgumentError(
            f"loss is the class {loss.__name__}; expected a loss. Write loss={loss.__name__}()."
        )
    if not callable(loss):
        names = ", ".join(map(repr, LOSSES))
        raise ArgumentError(
            f"loss is {format_value(loss)}; expected {names} or a function. "
            "Write loss=lambda outputs, batch: (losses, {})."
        )
    module, name = (getattr(loss, key, None) or "" for key in ("__module__", "__name__"))
    if module.split(".")[0] == "optax":
        raise ArgumentError(
            f"loss is optax.{name}, a function of outputs and labels; expected one of outputs and "
            f"batch. Write loss=lambda outputs, batch: (optax.{name}(outputs, batch.labels), {{}})."
        )
    if not accepts(loss, 2):
        raise ArgumentError(
            f"loss is {format_value(loss)}, which does not take two arguments; expected a function "
            "of outputs and batch. Write loss=lambda outputs, batch: (losses, {})."
        )
    return loss


def is_library_loss(loss: Loss) -> bool:
    """Return whether a loss is one of `LOSSES`, whose metrics are known."""
    return type(loss) in LOSSES.values()


def are_soft(labels: Any) -> bool:
    """Return whether labels are shares of classes in place of numbers of classes.

    Example:
      >>> are_soft(jnp.array([[0.5, 0.5]])), are_soft(jnp.array([1]))
      (True, False)
    """
    dtype = getattr(labels, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.floating))


def has_class_labels(loss: Loss) -> bool:
    """Return whether a loss compares logits with class labels, or masks of them."""
    return isinstance(loss, _OF_CLASSES)


def guess_loss(loss: Loss, num_classes: int) -> float | None:
    """Return the loss of guessing, or None where its scale is unknown.

    It is log(num_classes), times the largest class weight.

    Example:
      >>> guess_loss(CrossEntropy(class_weights=(1.0, 3.0)), 2) / math.log(2)
      3.0
    """
    if type(loss) not in (CrossEntropy, SquaredError):
        return None
    return math.log(num_classes) * max(getattr(loss, "class_weights", None) or (1.0,))


def loss_call(loss: Loss) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of a library loss, as records have them.

    Example:
      >>> loss_call(CrossEntropy(label_smoothing=0.1))
      ('cross-entropy', {'label_smoothing': 0.1})
    """
    name = next(name for name, kind in LOSSES.items() if kind is type(loss))
    values = {field: getattr(loss, field.name) for field in dataclasses.fields(type(loss))}  # type: ignore[arg-type]
    return name, {
        field.name: list(value) if isinstance(value, tuple) else value
        for field, value in values.items()
        if value != field.default
    }


def check_all_labels(loss: Loss, labels: Any, outputs: Any, name: str = "") -> None:
    """Check the values of labels, if the loss has a method for it.

    Args:
      loss: function of outputs and batch; its `check_labels(labels, outputs, name)` is called.
      labels: all labels of a split.
      outputs: the model's outputs for a batch, or their shapes.
      name: of the split, for the message.

    Raises:
      ArgumentError: the loss refuses the labels.

    Example:
      >>> labels = np.array([[3, -1]])
      >>> check_all_labels(CTCLoss(), labels, jax.ShapeDtypeStruct((1, 4, 5), "float32"))
    """
    check = getattr(loss, "check_labels", None)
    if check is not None:
        check(labels, outputs, name)


def check_class_numbers(loss: Loss, split: Any, outputs: Any, name: str = "") -> None:
    """Check that a loss of the user's own is finite for the largest class of a split.

    Fewer outputs than classes may be meant, such as an embedding. So the loss is computed for
    random outputs of two examples, of class 0 and of the largest. They are refused only if the
    second loss alone is not finite.

    Args:
      loss: function of outputs and batch.
      split: images and labels.
      outputs: the model's outputs for a batch, or their shapes.
      name: of the split, for the message.

    Raises:
      ArgumentError: the loss needs more outputs.

    Example:
      >>> def to_number(outputs, batch):
      ...     return jnp.square(outputs[:, 0] - batch.labels.astype("float32")), {}
      >>> split = Batch(np.zeros((2, 8, 8, 1)), np.array([0, 4], np.int32))
      >>> check_class_numbers(to_number, split, jax.ShapeDtypeStruct((2, 1), "float32"))
    """
    images, labels = split
    are_integers = isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.size
    if is_library_loss(loss) or not are_integers or not _is_array(outputs):
        return
    shape, largest = outputs.shape, int(labels.max())
    has_logits = len(shape) == labels.ndim + 1 and shape[1:-1] == labels.shape[1:]
    if not has_logits or not jnp.issubdtype(outputs.dtype, jnp.floating) or largest < shape[-1]:
        return
    classes = np.zeros((2, *labels.shape[1:]), labels.dtype)
    classes[1] = largest
    values = np.random.default_rng(0).normal(size=(2, *shape[1:]))
    inputs = jnp.zeros((2, *images.shape[1:]), jnp.float32)
    batch = Batch(inputs, jnp.asarray(classes))
    losses, _ = compute_loss(loss, jnp.asarray(values, outputs.dtype), batch)
    of_first, of_largest = (bool(np.isfinite(part).all()) for part in np.asarray(losses))
    if of_first and not of_largest:
        raise ArgumentError(
            f"the model gives {shape[-1]} outputs, for which the loss of class {largest} of the "
            f"{name or 'split'} labels is not finite; expected an output for each class. Build "
            f"the model with at least {largest + 1} outputs."
        )


def compute_loss(loss: Loss, outputs: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the losses and the metrics of a batch, checked.

    Args:
      loss: the loss.
      outputs: of the model.
      batch: the examples.

    Returns:
      Losses float32 [b, ...] and metrics of the same shape by name.

    Raises:
      ArgumentError: the loss returned anything else. Errors inside a loss of the user's are raised
        as they are, with a note of its arguments if they may be why.
    """
    try:
        result = loss(outputs, batch)
    except (AttributeError, TypeError) as error:
        if not is_library_loss(loss):
            error.add_note("A loss is called as loss(outputs, batch); labels are batch.labels.")
        raise
    if is_library_loss(loss):
        return result[0].astype(jnp.float32), dict(result[1])
    if not isinstance(result, tuple) or len(result) != 2:
        raise ArgumentError(
            f"the loss returned {_describe(result)}; expected a pair of losses and metrics. "
            "Write return losses, {}."
        )
    losses, metrics = result
    count = len(batch.inputs)
    if not _is_array(losses) or not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ArgumentError(
            f"the losses are {_describe(losses)}; expected an array of floating numbers, "
            f"one for each image: ({count},)"
        )
    if losses.shape[:1] != (count,):
        hint = "Leave out the mean over the batch." if not losses.shape else "Images come first."
        raise ArgumentError(
            f"the losses have shape {losses.shape} for {count} images; "
            f"expected ({count},) or ({count}, ...). {hint}"
        )
    if 0 in losses.shape:
        raise ArgumentError(
            f"the losses have shape {losses.shape}, no loss for an image; expected ({count},)"
        )
    check_mapping("metrics", metrics, "{'error': outputs.argmax(-1) != batch.labels}")
    for name, values in metrics.items():
        if not isinstance(name, str) or name in RESERVED_METRICS:
            raise ArgumentError(
                f"a metric is called {format_value(name)}; expected another name in text, as rows "
                "have the loss already"
            )
        if not _is_array(values) or values.shape != losses.shape:
            raise ArgumentError(
                f"metric {name!r} is {_describe(values)}; expected an array of the losses' shape, "
                f"{losses.shape}"
            )
        if not _is_counted(values.dtype):
            raise ArgumentError(
                f"metric {name!r} is of {values.dtype}; expected bool, integers or floats"
            )
        if name == "error" and values.dtype != jnp.bool_:
            raise ArgumentError(
                f"metric 'error' is of {values.dtype}; expected bool, whether an example is wrong. "
                "Give other metrics another name."
            )
    # The sums of a run are float32, whatever a loss computes in.
    return losses.astype(jnp.float32), dict(metrics)


def metric_dtypes(metrics: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the names of metrics and the dtypes of their sums, "int32" for bool ones."""
    return tuple(
        sorted(
            (name, "int32" if values.dtype == jnp.bool_ else "float32")
            for name, values in metrics.items()
        )
    )


def check_single_output(outputs: Any) -> None:
    """Check that `outputs` is one array of floating numbers.

    A shape with a dtype is accepted too.

    Raises:
      ArgumentError: for anything else.
    """
    if not hasattr(outputs, "dtype") or not hasattr(outputs, "shape"):
        length = f" of {len(outputs)}" if isinstance(outputs, (tuple, list, Mapping)) else ""
        raise ArgumentError(
            f"the model gives a {type(outputs).__name__}{length}; expected one array of outputs. "
            "Write jaxcnn.select_output(model, ...) for one of them, or a loss that takes all of "
            "them."
        )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ArgumentError(
            f"the model gives outputs of {outputs.dtype}; expected floating numbers, such as "
            "logits. Leave argmax and casts out of __call__."
        )


def _check_batch_axis(outputs: Any, target: Any) -> None:
    check_single_output(outputs)
    n = target.shape[0]
    if outputs.ndim < 2 or outputs.shape[0] != n:
        raise ArgumentError(
            f"the model gives outputs of shape {outputs.shape} for {n} images; expected the "
            f"images first, ({n}, ...). Keep the first axis of the images in __call__."
        )


def _check_logits(outputs: Any, labels: Any) -> None:
    """Check that outputs are logits for each label."""
    is_number = hasattr(labels, "shape") and jnp.issubdtype(labels.dtype, jnp.integer)
    if not is_number and not (are_soft(labels) and labels.ndim > 1):
        raise ArgumentError(
            f"labels are {_describe(labels)}; expected the numbers of classes, int32, or shares of "
            "the classes, float32 [b, num_classes]. "
            "Write a loss of your own for other labels: loss=lambda outputs, batch: (losses, {})."
        )
    _check_batch_axis(outputs, labels)
    if are_soft(labels):
        if outputs.shape == labels.shape:
            return
        raise ArgumentError(
            f"the model gives {outputs.shape[1:]} for an image, and its soft label "
            f"{labels.shape[1:]}; expected as many. "
            f"Build a model with {labels.shape[-1]} outputs."
        )
    if outputs.shape[:-1] == labels.shape:
        return
    shape = ", ".join([*map(str, labels.shape[1:]), "num_classes"])
    fix = "build 'unet', say" if labels.ndim == 3 else "build a classifier"
    raise ArgumentError(
        f"the model gives {outputs.shape[1:]} for an image, and its label needs logits of "
        f"({shape}): {fix}"
    )


def _is_wrong(logits: jax.Array, labels: jax.Array) -> jax.Array:
    labels = labels.argmax(-1) if are_soft(labels) else labels
    # argmax returns class 0 for a row of NaN, which would be correct for a tenth of the images.
    return ~((logits.argmax(-1) == labels) & jnp.isfinite(logits).all(-1))


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_counted(dtype: Any) -> bool:
    return dtype == jnp.bool_ or any(
        jnp.issubdtype(dtype, kind) for kind in (jnp.integer, jnp.floating)
    )


def _describe(value: Any) -> str:
    if isinstance(value, (tuple, list, Mapping)):
        return f"a {type(value).__name__} of {len(value)}"
    return format_array(value)


def _check_number(name: str, value: Any, low: float, high: float, *, example: Any) -> float:
    is_number = isinstance(value, (int, float, np.floating, np.integer))
    if not is_number or isinstance(value, bool) or not low <= value <= high or value == math.inf:
        bound = f"in {low}..{high}" if high < math.inf else f"of at least {low}"
        raise ArgumentError(
            f"{name} is {format_value(value)}; expected a finite number {bound}: "
            f"write {name}={example}"
        )
    return float(value)
