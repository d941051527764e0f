"""Convolutional autoencoder, and two layers that double the size of maps.

Maps are doubled by nearest upsampling with a convolution, or by a transposed convolution.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.config import check_choice
from jaxcnn.models.convnet import check_divisible
from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import conv3x3, stage
from jaxcnn.models.mlp import activation

UPSAMPLINGS = ("upsample", "transpose")
"""Names of the layers that double the size of a map.

"upsample" takes the nearest pixels and a 3x3 convolution, "transpose" is a 2x2 transposed
convolution with stride 2.
"""


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Repeat every pixel of [b, h, w, c] four times, to [b, 2h, 2w, c]."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def upsampling_layer(filters: int, up: str, *, kernel_init: str, dtype: Any, name: str) -> Any:
    """Return a layer that doubles the size of maps.

    It maps [b, h, w, c] to [b, 2h, 2w, filters], with biases. Squares of 2x2 at stride 2 do not
    overlap, so a transposed convolution leaves no checkerboard pattern of its own (Odena et al.
    2016, doi:10.23915/distill.00003). Each of its outputs sees one pixel, so `kernel_init` counts
    fan_in as c, not 4 c.

    Args:
      filters: number of output channels.
      up: one of `UPSAMPLINGS`.
      kernel_init: a name in `initializers.INITS`.
      dtype: of activations.
      name: of the submodule.

    Raises:
      ArgumentError: for an unknown `up`.
    """
    if check_choice("up", up, UPSAMPLINGS) == "upsample":
        conv = conv3x3(filters, kernel_init=kernel_init, dtype=dtype, bias=True, name=name)
        return lambda x: conv(upsample_nearest(x))
    init = _single_pixel_init(initializer(kernel_init))
    return nn.ConvTranspose(
        filters, (2, 2), (2, 2), "VALID", dtype=dtype, kernel_init=init, name=name
    )


def _single_pixel_init(init: Any) -> Any:
    # The kernel is drawn as that of a dense layer from c inputs, then laid out as
    # [h, w, c, filters].
    def draw(key, shape, dtype=jnp.float32):
        h, w, c, filters = shape
        return (
            init(key, (c, h * w * filters), dtype).reshape(c, h, w, filters).transpose(1, 2, 0, 3)
        )

    return draw


class Autoencoder(nn.Module):
    """Convolutional autoencoder with a code of few numbers.

    Autoencoders are due to Hinton and Salakhutdinov 2006, the convolutional form to Masci et al.
    2011. The encoder has two 3x3 convolutions with stride 2 and `width` and 2 `width` filters, and
    a linear dense layer to the `code`. The decoder has a dense layer, two doublings and a 3x3
    convolution. Only the code passes from the encoder to the decoder. Information that does not
    fit into it is lost, and an image unlike those trained on is reconstructed wrongly. There are as
    many other forms as authors.

    Attributes:
      num_classes: an argument of every network in `create_model`; it has no effect here.
      width: filters of the first convolution.
      code: number of values in the code.
      up: the decoder's doubling layer, one of `UPSAMPLINGS`.
      activation: a name in `mlp.ACTIVATIONS`, after every layer but the code and the last.
      kernel_init: a name in `initializers.INITS`; None is the activation's own.
      dtype: of activations; parameters and the last layer are float32.
      axis_name: the mapped axis that splits the batch, set by the strategies. No layer here looks
        past one example.

    Raises:
      ArgumentError: when called, for an unknown name, or images whose height or width is not a
        multiple of 4.

    Example:
      >>> model = Autoencoder(num_classes=10)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> image, stages = model.apply(variables, jnp.zeros((1, 28, 28, 1)), stages=True)
      >>> list(stages), stages["code"].shape
      (['conv1', 'conv2', 'code', 'decode', 'up1', 'up2'], (1, 16))
      >>> image.shape
      (1, 28, 28, 1)
    """

    num_classes: int
    width: int = 16
    code: int = 16
    up: str = "upsample"
    activation: str = "relu"
    kernel_init: str | None = None
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Encode and decode normalized images, float32 [b, h, w, c].

        The result is float32 of the same shape and scale. With `stages`, return a dict of outputs
        too.
        """
        check_divisible(x, 2, "Autoencoder")
        act, default_init = activation(self.activation)
        init = self.kernel_init or default_init
        conv_kwargs: dict[str, Any] = {"kernel_init": init, "dtype": self.dtype}
        dense_kwargs = {"kernel_init": initializer(init), "dtype": self.dtype}
        channels, outputs = x.shape[-1], {}
        x = x.astype(self.dtype)
        for name, filters in (("conv1", self.width), ("conv2", 2 * self.width)):
            conv = conv3x3(filters, 2, bias=True, name=name, **conv_kwargs)
            x = stage(self, outputs, name, act(conv(x)))
        shape = x.shape[1:]
        code = nn.Dense(self.code, name="code", **dense_kwargs)(x.reshape(len(x), -1))
        code = stage(self, outputs, "code", code)
        x = act(nn.Dense(shape[0] * shape[1] * shape[2], name="decode", **dense_kwargs)(code))
        x = stage(self, outputs, "decode", x.reshape(len(x), *shape))
        for name in ("up1", "up2"):
            double = upsampling_layer(self.width, self.up, name=name, **conv_kwargs)
            x = stage(self, outputs, name, act(double(x)))
        x = x.astype(jnp.float32)
        head = conv3x3(channels, kernel_init=init, dtype=jnp.float32, bias=True, name="head")
        image = head(x)
        return (image, outputs) if stages else image
