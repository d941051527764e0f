"""A convolutional network that reads lines of text, trained by CTC.

Shi et al. 2015, "An end-to-end trainable neural network for image-based sequence recognition and
its application to scene text recognition" (arXiv:1507.05717), without its recurrent layers.

Example:
  Lines of two classes of stripes. Real ones need more images and steps, and a wider network.

  >>> import numpy as np
  >>> import jaxcnn as jc
  >>> from jaxcnn.ctc import greedy_decode
  >>> from jaxcnn.metrics import edit_distance
  >>> labels = np.array([[0, 1], [1, -1], [1, 0], [0, -1]] * 8, np.int32)  # -1 is padding
  >>> images = np.zeros((32, 16, 32, 1), np.uint8)
  >>> images[:, 4:12, 4:8] = np.where(labels[:, 0] > 0, 255, 90).reshape(-1, 1, 1, 1)
  >>> data = jc.dataset((images, labels), (images[:4], labels[:4]), num_classes=2)
  >>> model = LineReader(num_classes=2, width=2)
  >>> tx = jc.create_optimizer(jc.OptimizerConfig("adam", learning_rate=0.01))
  >>> config = jc.TrainConfig(num_steps=2, batch_size=8)
  >>> for state, row in jc.train(model, tx, data, config, loss="ctc"):
  ...     print(row["step"], row["eval_split"], 0 <= row["eval_error"] <= 100)
  2 test True
  >>> logits = jc.predict(model, state, data.test.images)
  >>> logits.shape
  (4, 8, 3)
  >>> edit_distance(greedy_decode(logits), data.test.labels).shape
  (4,)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.arguments import ArgumentError, check_integer
from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import stage
from jaxcnn.models.norm import BatchNorm

STRIDES = ((2, 2), (2, 2), (2, 1), (2, 1))
"""Strides of the stages, in rows and columns."""


class LineReader(nn.Module):
    """CRNN without recurrence: logits of characters for each frame of a line.

    Four convolutional stages halve the rows each, and the columns twice. So a frame is 4 columns of
    the image, as in table 1 of the paper. A convolution over all remaining rows makes one vector of
    each frame. Convolutions over `context` frames then take the place of the paper's two
    bidirectional LSTMs, and a linear layer gives the logits. The last output is CTC's blank.

    It differs from the paper's network in more. Convolutions of stride 2 take the place of its max
    pooling. Every convolution is followed by BN, and each stage has `convolutions` of them. Images
    may have any size and any number of channels. The paper's are gray, and 32 pixels high. Its
    filters are 64, 128, 256 and 512.

    With the defaults, 10 classes and RGB images of 32 rows it has 177,563 parameters.

    Attributes:
      num_classes: number of classes of characters, k. The blank is one more.
      width: filters of the first stage; the others have 2, 4 and 4 times as many, and frames 8
        times as many.
      convolutions: 3x3 convolutions of each stage.
      context: frames that each convolution over frames sees, an odd number.
      depth: number of convolutions over frames.
      bn_group, bn_momentum, kernel_init, dtype, axis_name: as in `CifarResNet`.

    Raises:
      ArgumentError: when called, for an invalid value.

    Example:
      >>> image = jax.ShapeDtypeStruct((1, 32, 128, 3), "float32")
      >>> init = partial(LineReader(num_classes=10).init_with_output, stages=True)
      >>> (logits, stages), _ = jax.eval_shape(init, jax.random.key(0), image)
      >>> logits.shape
      (1, 32, 11)
      >>> {name: value.shape[1:] for name, value in stages.items()}["stage4"]
      (2, 32, 64)
    """

    num_classes: int
    width: int = 16
    convolutions: int = 1
    context: int = 3
    depth: int = 2
    bn_group: int = 0
    bn_momentum: float = 0.9
    kernel_init: str = "he"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map float32 [b, h, w, c] to float32 logits [b, ceil(w / 4), k + 1].

        With `stages`, return a dict of outputs too: `stage1` to `stage4` [b, h', w', c'], `frames`
        and `context1`, ... [b, 1, w / 4, c'].
        """
        self._check_fields()
        outputs: dict[str, jax.Array] = {}
        record = partial(stage, self, outputs)
        x = x.astype(self.dtype)
        for number, strides in enumerate(STRIDES, 1):
            filters = self.width * min(2 ** (number - 1), 4)
            for layer in range(1, self.convolutions + 1):
                name = f"stage{number}_conv{layer}"
                x = self._conv(x, filters, (3, 3), strides if layer == 1 else (1, 1), name, train)
            x = record(f"stage{number}", x)
        x = self._conv(x, 8 * self.width, (x.shape[1], 1), (1, 1), "frames", train, rows=0)
        x = record("frames", x)
        for number in range(1, self.depth + 1):
            name = f"context{number}"
            x = record(name, self._conv(x, x.shape[-1], (1, self.context), (1, 1), name, train))
        head = nn.Dense(
            self.num_classes + 1, kernel_init=initializer(self.kernel_init), name="head"
        )
        logits = head(x[:, 0].astype(jnp.float32))
        return (logits, outputs) if stages else logits

    def _conv(
        self,
        x: jax.Array,
        filters: int,
        size: tuple[int, int],
        strides: tuple[int, int],
        name: str,
        train: bool,
        rows: int | None = None,
    ) -> jax.Array:
        """Apply a convolution, BN and ReLU.

        Args:
          x: [b, h, w, c].
          filters: number of output channels.
          size: rows and columns of the kernel.
          strides: likewise.
          name: of the convolution.
          train: the mode.
          rows: padding above and below; None keeps the rows at stride 1. Columns are always kept.
        """
        border = (size[0] - 1) // 2 if rows is None else rows
        column_border = (size[1] - 1) // 2
        x = nn.Conv(
            filters,
            size,
            strides,
            ((border, border), (column_border, column_border)),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=initializer(self.kernel_init),
            name=name,
        )(x)
        norm = BatchNorm(
            self.bn_group, self.axis_name, self.bn_momentum, dtype=self.dtype, name=f"{name}_norm"
        )
        return nn.relu(norm(x, train))

    def _check_fields(self) -> None:
        for name in ("num_classes", "width", "convolutions"):
            check_integer(name, getattr(self, name))
        check_integer("depth", self.depth, 0, example=2)
        if check_integer("context", self.context, example=3) % 2 == 0:
            raise ArgumentError(
                f"context is {self.context}; expected an odd number of frames. Write context=3."
            )
