"""What the detectors have in common: their residual backbone, and checks of outputs and labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.arguments import ArgumentError
from jaxcnn.losses import Batch
from jaxcnn.models.initializers import Normal
from jaxcnn.models.layers import conv, stage
from jaxcnn.models.norm import BatchNorm
from jaxcnn.models.resnet import Block, residual_stages


class Detector(nn.Module, kw_only=True):
    """Base class of networks that detect objects on maps of residual stages.

    Attributes:
      blocks: residual blocks of a stage.
      width: filters of the first stage.
      bn_group, bn_momentum, kernel_init, dtype, axis_name: as in `CifarResNet`.
    """

    blocks: int = 1
    width: int = 16
    bn_group: int = 0
    bn_momentum: float = 0.9
    kernel_init: str = "he"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def feature_maps(
        self, x: jax.Array, train: bool, strides: tuple[int, ...]
    ) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        """Return the maps of the residual stages, and the same by name.

        Call it once, in a compact method.

        Args:
          x: images, float32 [b, h, w, c].
          train: use and update the statistics of the batch.
          strides: of the stem, then of each stage.
        """
        make_norm = partial(
            BatchNorm, self.bn_group, self.axis_name, self.bn_momentum, dtype=self.dtype
        )
        make_conv = partial(conv, kernel_init=self.kernel_init, dtype=self.dtype)
        backbone = Backbone(strides, self.blocks, self.width, make_conv, make_norm, name="backbone")
        outputs: dict[str, jax.Array] = {}
        return backbone(x.astype(self.dtype), train, partial(stage, self, outputs)), outputs


class Backbone(nn.Module):
    """Residual stages of `CifarResNet`, with shortcut "A" and without a head.

    Attributes:
      strides: of the stem, then of the first block of each stage.
      blocks: number of blocks in a stage.
      width: filters of the stem and the first stage.
      conv: returns a convolution, as `jaxcnn.models.layers.conv` does.
      norm: returns a normalization.
    """

    strides: tuple[int, ...]
    blocks: int
    width: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, record: Callable[[str, jax.Array], jax.Array]
    ) -> list[jax.Array]:
        """Map [b, h, w, c] to the output of each stage (see `residual_stages`)."""
        x = self.conv(self.width, 3, self.strides[0], name="stem")(x)
        x = nn.relu(self.norm(name="stem_norm")(x, train))
        return residual_stages(
            x,
            train,
            strides=self.strides[1:],
            blocks=self.blocks,
            width=self.width,
            make_block=lambda filters, stride, dilation, name: Block(
                filters, stride, "A", self.conv, self.norm, dilation, name=name
            ),
            record=record,
        )


def prediction_head(filters: int, size: int, *, dtype: Any, name: str) -> nn.Conv:
    """Return a convolution that ends a detector, with biases and small weights.

    Its weights are drawn with a standard deviation of 0.01 (Girshick 2015, arXiv:1504.08083,
    section 2.3). A detector thus begins with even scores and unmoved boxes.

    Args:
      filters: number of output channels.
      size: odd height and width of the kernel; the output has the size of the input.
      dtype: of the computation.
      name: of the submodule.
    """
    return nn.Conv(
        filters,
        (size, size),
        padding=size // 2,
        dtype=dtype,
        kernel_init=Normal(0.01),
        name=name,
    )


def check_output_names(outputs: Any, names: tuple[str, ...], model: str) -> None:
    """Check that outputs are those of a detector.

    Args:
      outputs: of a network.
      names: keys that they must have.
      model: name of the detector's class, for the message.

    Raises:
      ArgumentError: they are no dict, or one of the names is missing.
    """
    if not isinstance(outputs, dict) or not set(names) <= set(outputs):
        found = ", ".join(outputs) if isinstance(outputs, dict) else type(outputs).__name__
        raise ArgumentError(
            f"the model's outputs are {found or 'an empty dict'}; expected {', '.join(names)}, as "
            f"{model} has. Use the outputs of {model}."
        )


def check_object_labels(batch: Batch) -> None:
    """Check that labels are boxes and classes of objects.

    Raises:
      ArgumentError: they are not.
    """
    labels, example = batch.labels, "Write labels={'boxes': boxes, 'classes': classes}"
    if not isinstance(labels, dict) or not {"boxes", "classes"} <= set(labels):
        names = f"the keys {', '.join(labels)}" if isinstance(labels, dict) else "no keys"
        raise ArgumentError(f"labels have {names}; expected boxes and classes. {example}.")
    boxes, classes = (tuple(labels[name].shape) for name in ("boxes", "classes"))
    if len(boxes) != 3 or boxes[-1] != 4 or classes != boxes[:2] or not boxes[1]:
        raise ArgumentError(
            f"labels have boxes of shape {boxes[1:]} and classes of shape {classes[1:]} for an "
            f"image; expected (m, 4) and (m,) with m > 0. {example}, classes -1 for padding."
        )
    if not jnp.issubdtype(labels["classes"].dtype, jnp.integer):
        raise ArgumentError(
            f"labels have classes of dtype {labels['classes'].dtype}; expected integers. "
            "Write classes.astype('int32')."
        )


def check_object_classes(labels: Any, num_classes: int, name: str = "") -> None:
    """Check that all classes of objects exist.

    Args:
      labels: of a split, with `classes` int32 [n, m]; -1 is padding.
      num_classes: number of classes, k.
      name: of the split, for the message.

    Raises:
      ArgumentError: a class is k or more, or below -1.
    """
    classes = np.asarray(labels["classes"])
    invalid = (classes < -1) | (classes >= num_classes)
    if invalid.any():
        row, column = np.argwhere(invalid)[0]
        raise ArgumentError(
            f"{name} labels['classes'][{row}] have {classes[row, column]}; expected "
            f"0..{num_classes - 1}, or -1 for padding. Build the model with "
            f"num_classes={int(classes.max()) + 1}, or renumber the classes.".strip()
        )
