"""The convolutional autoencoder, and the two ways of making maps larger again: upsampling and transposed convolution."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.models.convnet import divisible
from jaxcnn.models.initializers import initializer
from jaxcnn.models.layers import conv3x3, stage
from jaxcnn.models.mlp import activation
from jaxcnn.recipe import check_choice

UPS = ("upsample", "transpose")
"""How a map is doubled: its nearest pixels and a 3x3 convolution, or a 2x2 transposed convolution with stride 2."""


def nearest(x: jax.Array) -> jax.Array:
    """Every pixel four times, [b, h, w, c] -> [b, 2h, 2w, c]."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def doubled(filters: int, up: str, *, kernel_init: str, dtype: Any, name: str) -> Any:
    """A layer [b, h, w, c] -> [b, 2h, 2w, filters], with biases; `up` is one of `UPS`.

    Squares of 2x2 at stride 2 do not overlap, so a transposed convolution leaves no chequered pattern of its own (Odena et al.
    2016, doi:10.23915/distill.00003), and each of its outputs sees one pixel: `kernel_init` counts fan_in as c, not 4 c.

    Raises:
      ArgumentError: for an unknown `up`.
    """
    if check_choice("up", up, UPS) == "upsample":
        conv = conv3x3(filters, kernel_init=kernel_init, dtype=dtype, bias=True, name=name)
        return lambda x: conv(nearest(x))
    init = _of_one_pixel(initializer(kernel_init))
    return nn.ConvTranspose(filters, (2, 2), (2, 2), "VALID", dtype=dtype, kernel_init=init, name=name)


def _of_one_pixel(init: Any) -> Any:
    def draw(key, shape, dtype=jnp.float32):
        h, w, c, filters = shape
        return init(key, (c, h * w * filters), dtype).reshape(c, h, w, filters).transpose(1, 2, 0, 3)

    return draw


class Autoencoder(nn.Module):
    """Images through a code of few numbers and back (Hinton and Salakhutdinov 2006; convolutional: Masci et al. 2011).

    Two 3x3 convolutions with stride 2 and `width` and 2 `width` filters, a dense layer to the `code`, which is linear, a dense
    layer back, two doublings and a 3x3 convolution. Nothing but the code passes from the encoder to the decoder: what it
    cannot hold is lost, and an image unlike those trained on comes back wrong. There are as many other forms as authors.

    Attributes:
      classes: for the sake of `create_model`; the network has none.
      width: filters of the first convolution.
      code: numbers in the code.
      up: how the decoder doubles its maps, one of `UPS`.
      activation: a name in `mlp.ACTIVATIONS`, after every layer but the code and the last.
      kernel_init: a name in `initializers.INITS`; None is the activation's own.
      dtype: of activations; parameters and the last layer are float32.
      axis: the mapped axis that splits the batch, set by the strategies; no layer here looks past one example.

    Raises:
      ArgumentError: when called, for an unknown name, or images whose height or width is not a multiple of 4.

    Example:
      >>> model = Autoencoder(classes=10)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> image, stages = model.apply(variables, jnp.zeros((1, 28, 28, 1)), stages=True)
      >>> list(stages), stages["code"].shape
      (['conv1', 'conv2', 'code', 'decode', 'up1', 'up2'], (1, 16))
      >>> image.shape
      (1, 28, 28, 1)
    """

    classes: int
    width: int = 16
    code: int = 16
    up: str = "upsample"
    activation: str = "relu"
    kernel_init: str | None = None
    dtype: Any = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """float32 [b, h, w, c], normalised -> float32 of the same shape and scale; `stages` adds a dict of outputs."""
        divisible(x, 2, "Autoencoder")
        act, own = activation(self.activation)
        given: dict[str, Any] = {"kernel_init": self.kernel_init or own, "dtype": self.dtype}
        dense = {"kernel_init": initializer(given["kernel_init"]), "dtype": self.dtype}
        channels, seen = x.shape[-1], {}
        x = x.astype(self.dtype)
        for name, filters in (("conv1", self.width), ("conv2", 2 * self.width)):
            x = stage(self, seen, name, act(conv3x3(filters, 2, bias=True, name=name, **given)(x)))
        maps = x.shape[1:]
        code = nn.Dense(self.code, name="code", **dense)(x.reshape(len(x), -1))
        code = stage(self, seen, "code", code)
        x = act(nn.Dense(maps[0] * maps[1] * maps[2], name="decode", **dense)(code))
        x = stage(self, seen, "decode", x.reshape(len(x), *maps))
        for name in ("up1", "up2"):
            x = stage(self, seen, name, act(doubled(self.width, self.up, name=name, **given)(x)))
        x = x.astype(jnp.float32)
        image = conv3x3(channels, kernel_init=given["kernel_init"], dtype=jnp.float32, bias=True, name="head")(x)
        return (image, seen) if stages else image
