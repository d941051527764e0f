"""DCGAN: a generator and a discriminator of convolutions, trained against each other.

Radford, Metz and Chintala 2016, "Unsupervised representation learning with deep convolutional
generative adversarial networks" (arXiv:1511.06434), with the losses of Goodfellow et al. 2014,
"Generative adversarial networks" (arXiv:1406.2661).

Example:
  Both networks are one module, so `jaxcnn.train` trains them.

  >>> import jaxcnn as jc
  >>> data = jc.load_dataset("digits")
  >>> model = DCGAN(code=8, width=4)
  >>> optimizer = jc.OptimizerConfig(
  ...     "adam", learning_rate=2e-4, weight_decay=0.0, optimizer_kwargs={"b1": 0.5}
  ... )
  >>> config = jc.TrainConfig(
  ...     num_steps=2, batch_size=16, subtract_mean=PIXEL_RANGE, divide_std=PIXEL_RANGE
  ... )
  >>> tx = jc.create_optimizer(optimizer, config.num_steps)
  >>> for state, row in jc.train(model, tx, data, config, loss=NonSaturatingLoss()):
  ...     print(row["step"], row["train_generator_loss"] > 0)
  2 True
  >>> codes = jax.random.normal(jax.random.key(0), (5, model.code))
  >>> images = generate(model, state, codes)
  >>> images.shape, images.dtype
  ((5, 8, 8, 1), dtype('uint8'))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.arguments import ArgumentError, check_choice, check_image_shape, format_value
from jaxcnn.augment import Normalizer
from jaxcnn.losses import Batch
from jaxcnn.models.calling import call
from jaxcnn.models.convnet import check_divisible
from jaxcnn.models.initializers import Normal
from jaxcnn.models.layers import stage
from jaxcnn.models.norm import BatchNorm

PIXEL_RANGE = (0.5,)
"""Mean and standard deviation that map pixels to -1..1, the range of tanh.

They are `subtract_mean` and `divide_std` of a `TrainConfig`.
"""
PLAYERS = ("generator", "discriminator")
"""Names of both networks."""
INIT_STD = 0.02
"""Standard deviation of all kernels at the start (section 4 of DCGAN)."""
SLOPE = 0.2
"""Slope of the leaky ReLU below 0 (section 4 of DCGAN)."""


def double_size(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return a 4x4 transposed convolution of stride 2, as a convolution and a rearrangement.

    The result is that of `jax.lax.conv_transpose` with padding "SAME". A pixel of each 2x2 square
    of it sees 2x2 pixels, so the four are channels of one 2x2 convolution (Shi et al. 2016,
    arXiv:1609.07009). XLA's gradient of `conv_transpose` with respect to the kernel is 25 times as
    slow on a CPU: 69 ms against 2.7 for 64 images of 7x7 pixels, from 64 channels to 32 (least of
    15 in turns, two cores of an AMD EPYC, jax 0.10.2, 2026-11-30).

    Args:
      x: [b, h, w, c].
      kernel: [4, 4, c, filters], of the dtype of `x`.

    Returns:
      [b, 2h, 2w, filters].

    Example:
      >>> pixel, kernel = jnp.ones((1, 1, 1, 1)), jnp.arange(16.0).reshape(4, 4, 1, 1)
      >>> double_size(pixel, kernel)[0, :, :, 0].tolist()
      [[10.0, 9.0], [6.0, 5.0]]
    """
    b, h, w, c = x.shape
    filters = kernel.shape[-1]
    # [row, its phase, column, its phase, c, filters]; a later pixel sees earlier values.
    phases = kernel.reshape(2, 2, 2, 2, c, filters)[:, ::-1, :, ::-1]
    phases = phases.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, c, 4 * filters)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = jax.lax.conv_general_dilated(
        x, phases, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = y.reshape(b, h + 1, w + 1, 2, 2, filters).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(b, 2 * h + 2, 2 * w + 2, filters)[:, 1:-1, 1:-1]


class TransposedConv(nn.Module):
    """4x4 transposed convolution of stride 2, with the parameters of `flax.linen.ConvTranspose`.

    Attributes:
      filters: number of output channels.
      use_bias: add a bias to each output channel.
      dtype: of the computation.
    """

    filters: int
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [b, h, w, c] to [b, 2h, 2w, filters]."""
        kernel = self.param("kernel", Normal(INIT_STD), (4, 4, x.shape[-1], self.filters))
        y = double_size(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.filters,))
        return y + bias.astype(self.dtype).reshape(1, 1, 1, -1)


class Generator(nn.Module):
    """DCGAN's generator: a dense layer and two transposed convolutions.

    The dense layer makes 2 `width` maps of a quarter of the image's height and width. Two 4x4
    transposed convolutions of stride 2 double them, to `width` maps and to the image. BN and ReLU
    follow each layer but the last, and tanh follows that (section 3 of the paper). The paper's has
    four transposed convolutions, for 64x64 pixels, and its figure 1 has kernels of 5x5. A kernel
    that is a multiple of the stride leaves no checkerboard pattern of its own (Odena et al. 2016,
    doi:10.23915/distill.00003).

    Attributes:
      shape: height, width and channels of an image; both sides are multiples of 4.
      width: filters of the first transposed convolution.
      bn_momentum, dtype, axis_name: as in `jaxcnn.models.norm.BatchNorm`.

    Raises:
      ArgumentError: when called, for another shape, or codes that are no rows.

    Example:
      >>> model = Generator((28, 28, 1))
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 64)))
      >>> images, stages = model.apply(variables, jnp.zeros((2, 64)), stages=True)
      >>> images.shape, stages["project"].shape, stages["up1"].shape
      ((2, 28, 28, 1), (2, 7, 7, 64), (2, 14, 14, 32))
    """

    shape: tuple[int, int, int]
    width: int = 32
    bn_momentum: float = 0.9
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map codes [b, z] to images, float32 [b, h, w, c] in -1..1.

        With `stages`, return a dict of outputs too.
        """
        h, w, channels = check_image_shape(self.shape)
        if h % 4 or w % 4:
            raise ArgumentError(
                f"Generator got shape {self.shape}, which it halves twice; expected a height and a "
                "width that are multiples of 4. Write shape=(28, 28, 1)."
            )
        if getattr(x, "ndim", 0) != 2:
            raise ArgumentError(
                f"codes are of shape {np.shape(x)}; expected [b, z], a row for each image. "
                "Write jax.random.normal(key, (b, z))."
            )
        outputs: dict[str, jax.Array] = {}
        norm = partial(BatchNorm, 0, self.axis_name, self.bn_momentum, dtype=self.dtype)
        options: dict[str, Any] = {"kernel_init": Normal(INIT_STD), "dtype": self.dtype}
        filters = 2 * self.width
        project = nn.Dense(h // 4 * (w // 4) * filters, False, name="project", **options)
        x = project(x.astype(self.dtype)).reshape(len(x), h // 4, w // 4, filters)
        x = stage(self, outputs, "project", nn.relu(norm(name="project_norm")(x, train)))
        double = partial(TransposedConv, dtype=self.dtype)
        x = double(self.width, use_bias=False, name="up1")(x)
        x = stage(self, outputs, "up1", nn.relu(norm(name="up1_norm")(x, train)))
        images = jnp.tanh(double(channels, name="up2")(x).astype(jnp.float32))
        return (images, outputs) if stages else images


class Discriminator(nn.Module):
    """DCGAN's discriminator: two convolutions of stride 2 and a dense layer.

    The 4x4 convolutions have `width` and 2 `width` filters. Leaky ReLU follows both, and BN comes
    before it in the second. The first has none (section 3 of the paper), so that it sees
    the pixels' own mean and scale.

    Attributes:
      width: filters of the first convolution.
      bn_momentum, dtype, axis_name: as in `jaxcnn.models.norm.BatchNorm`.

    Raises:
      ArgumentError: when called, for images whose height or width is not a multiple of 4.

    Example:
      >>> model = Discriminator()
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
      >>> logits, stages = model.apply(variables, jnp.zeros((2, 28, 28, 1)), stages=True)
      >>> logits.shape, stages["conv1"].shape, stages["conv2"].shape
      ((2,), (2, 14, 14, 32), (2, 7, 7, 64))
    """

    width: int = 32
    bn_momentum: float = 0.9
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, stages: bool = False) -> Any:
        """Map images [b, h, w, c] in -1..1 to logits, float32 [b].

        A positive logit is a judgment of "real". With `stages`, return a dict of outputs too.
        """
        check_divisible(x, 2, "Discriminator")
        outputs: dict[str, jax.Array] = {}
        options: dict[str, Any] = {"kernel_init": Normal(INIT_STD), "dtype": self.dtype}
        halve = partial(nn.Conv, kernel_size=(4, 4), strides=(2, 2), padding=(1, 1), **options)
        act = partial(nn.leaky_relu, negative_slope=SLOPE)
        x = stage(self, outputs, "conv1", act(halve(self.width, name="conv1")(x)))
        x = halve(2 * self.width, use_bias=False, name="conv2")(x)
        norm = BatchNorm(0, self.axis_name, self.bn_momentum, dtype=self.dtype, name="conv2_norm")
        x = stage(self, outputs, "conv2", act(norm(x, train)))
        head = nn.Dense(1, kernel_init=Normal(INIT_STD), name="head")
        logits = head(x.reshape(len(x), -1).astype(jnp.float32))[:, 0]
        return (logits, outputs) if stages else logits


class DCGAN(nn.Module):
    """Generator and discriminator as one module, for one optimizer and one training loop.

    Called with real images, it draws codes, generates as many images and judges both. The outputs
    are arranged so that the gradient of one sum of losses (`NonSaturatingLoss`) has both players'
    gradients. The discriminator is judged on generated images without a gradient to the generator.
    The generator is judged by a discriminator whose parameters have no gradient. So a step of any
    optimizer that treats parameters one by one, such as Adam, is one step of each player, from the
    same point. Algorithm 1 of Goodfellow et al. 2014 with k = 1 instead updates the generator after
    the discriminator, on other codes.

    BN has the moments of real and of generated images separately. Codes are N(0, 1) and come from
    the seed, the step and the place in the batch. The paper's are uniform in -1..1. In test mode
    a code comes from the pixels of the real image in its place (`hash_images`). So an image's
    outputs depend neither on the other images, nor on their order, nor on the devices.

    Images must be normalized by `PIXEL_RANGE`, to -1..1 as generated ones are.

    Attributes:
      code: z, the number of values of a code.
      width: filters of the first and last maps of both networks.
      bn_momentum, dtype, axis_name: as in `jaxcnn.models.norm.BatchNorm`.

    Raises:
      ArgumentError: when called, for images whose height or width is not a multiple of 4. In
        `jaxcnn.train` and `jaxcnn.evaluate`, for images that are normalized otherwise.

    Example:
      >>> model, images = DCGAN(code=8), jnp.zeros((4, 8, 8, 1))
      >>> outputs, variables = model.init_with_output(jax.random.key(0), images)
      >>> {name: logits.shape for name, logits in outputs.items()}
      {'real': (4,), 'fake': (4,), 'judged': (4,)}
      >>> sorted(variables["params"])
      ['discriminator', 'generator']
    """

    code: int = 64
    width: int = 32
    bn_momentum: float = 0.9
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.nowrap
    def generator(self, shape: tuple[int, int, int], **kwargs: Any) -> Generator:
        """Return the generator of images [h, w, c]."""
        return Generator(shape, self.width, self.bn_momentum, self.dtype, self.axis_name, **kwargs)

    @nn.nowrap
    def discriminator(self, **kwargs: Any) -> Discriminator:
        """Return the discriminator."""
        return Discriminator(self.width, self.bn_momentum, self.dtype, self.axis_name, **kwargs)

    @nn.nowrap
    def check_normalizer(self, normalizer: Normalizer) -> None:
        """Check that images are mapped to -1..1.

        Raises:
          ArgumentError: they are normalized otherwise.
        """
        if all(np.allclose(part, PIXEL_RANGE[0], rtol=0, atol=1e-6) for part in normalizer):
            return
        raise ArgumentError(
            f"{type(self).__name__} got images that are not normalized to -1..1; expected the "
            "range of its generated ones. Write jaxcnn.TrainConfig(subtract_mean=PIXEL_RANGE, "
            "divide_std=PIXEL_RANGE) with jaxcnn.models.dcgan.PIXEL_RANGE."
        )

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Map real images, float32 [b, h, w, c] in -1..1, to three arrays of logits [b].

        Returns:
          `real` of these images, `fake` of generated ones, for the discriminator's loss, and
          `judged`, the same numbers, for the generator's.
        """
        check_divisible(x, 2, "DCGAN")
        h, w, channels = x.shape[1:]
        generator = self.generator((h, w, channels), name="generator")
        discriminator = self.discriminator(name="discriminator")
        images = generator(self._draw_codes(x, train), train)
        real = discriminator(x, train)
        fake = discriminator(jax.lax.stop_gradient(images), train)
        judged = _judge(discriminator, images, train)
        return {"real": real, "fake": fake, "judged": judged}

    def _draw_codes(self, images: jax.Array, train: bool) -> jax.Array:
        if train:
            # A code belongs to a place in the whole batch, so that no layout of devices changes it.
            key, count = self.make_rng("dropout"), len(images)
            first = jax.lax.axis_index(self.axis_name) * count if self.axis_name else 0
            numbers = first + jnp.arange(count)
        else:
            # Evaluation has no axis, and batches of any size in any order.
            key, numbers = jax.random.PRNGKey(0), hash_images(images)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        return jax.vmap(lambda k: jax.random.normal(k, (self.code,)))(keys)


def hash_images(images: jax.Array) -> jax.Array:
    """Return a number for each image, from its pixels as whole numbers of 0..255.

    Rounding makes it independent of the last bits of normalization, which depend on the program.

    Args:
      images: float [b, h, w, c] in -1..1.

    Returns:
      uint32 [b], the sum over pixels of the pixel times an odd number of its place, modulo 2^32.

    Example:
      >>> images = jnp.array([0.0, 1.0, 0.0]).reshape(3, 1, 1, 1)
      >>> numbers = hash_images(images).tolist()
      >>> numbers[0] == numbers[2], numbers[0] == numbers[1]
      (True, False)
    """
    pixels = jnp.round(127.5 * (images.astype(jnp.float32) + 1)).astype(jnp.int32)
    pixels = pixels.reshape(len(images), -1).astype(jnp.uint32)
    # The places are mixed as in MurmurHash3, so that the sums of unlike images differ.
    weights = (jnp.arange(pixels.shape[1], dtype=jnp.uint32) + 1) * jnp.uint32(0x9E3779B1)
    weights = (weights ^ (weights >> 15)) * jnp.uint32(0x85EBCA6B)
    weights = weights ^ (weights >> 13) | jnp.uint32(1)
    return (pixels * weights[None]).sum(1, dtype=jnp.uint32)


def _judge(discriminator: Discriminator, images: jax.Array, train: bool) -> jax.Array:
    """Return logits without a gradient to the discriminator or new moving averages.

    The module is called at its own path, so that BN is frozen there if it is elsewhere.
    """
    before: dict[str, Any] = {}

    def view(variables: Any) -> Any:
        before.update(variables)
        return jax.lax.stop_gradient(variables)

    def restore(_: Any) -> dict[str, Any]:
        return {name: tree for name, tree in before.items() if name == "batch_stats"}

    judge = nn.map_variables(
        lambda module, x: module(x, train),
        ["params", "batch_stats"],
        view,
        restore,
        mutable=True,
        variables=False,
    )
    return judge(discriminator, images)


@dataclass(frozen=True)
class NonSaturatingLoss:
    """Losses of both players of a GAN, summed.

    The discriminator's is -log D(x) - log(1 - D(G(z))) for a real image x and a code z, with D the
    sigmoid of a logit (equation 1 of Goodfellow et al. 2014). The generator's is -log D(G(z)), the
    form of section 3 whose gradient does not vanish where the discriminator wins. At the
    equilibrium of equation 1 D is 1/2 and the first is log 4. Labels are ignored. The metrics are
    `discriminator_loss` and `generator_loss`, and `real_error` and `fake_error`, the share of real
    and of generated images that the discriminator takes for the other kind.

    Raises:
      ArgumentError: while tracing, for other outputs.

    Example:
      >>> zeros = jnp.zeros(2)
      >>> outputs = {"real": zeros, "fake": zeros, "judged": zeros}
      >>> batch = Batch(jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, int))
      >>> losses, metrics = NonSaturatingLoss()(outputs, batch)
      >>> round(float(metrics["discriminator_loss"][0] / jnp.log(4.0)), 4)
      1.0
    """

    def __call__(self, outputs: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the losses float32 [b], and the metrics [b]."""
        names = ("real", "fake", "judged")
        shape = batch.inputs.shape[:1]
        if not isinstance(outputs, dict) or any(
            getattr(outputs.get(name), "shape", None) != shape for name in names
        ):
            found = jax.tree.map(np.shape, outputs)
            raise ArgumentError(
                f"the model gives {format_value(found)}; expected logits [b] called "
                f"{', '.join(names)}. Use jaxcnn.models.dcgan.DCGAN."
            )
        discriminator = jax.nn.softplus(-outputs["real"]) + jax.nn.softplus(outputs["fake"])
        generator = jax.nn.softplus(-outputs["judged"])
        return discriminator + generator, {
            "discriminator_loss": discriminator,
            "generator_loss": generator,
            "real_error": outputs["real"] <= 0,
            "fake_error": outputs["fake"] > 0,
        }


def player_variables(state: Any, player: str) -> dict[str, Any]:
    """Return the variables of one player of a `DCGAN`.

    Args:
      state: a `jaxcnn.State` of a `DCGAN`. `jaxcnn.state.as_state` makes one of variables.
      player: "generator" or "discriminator".

    Raises:
      ArgumentError: the state is not of a `DCGAN`, or there is no such player.
    """
    check_choice("player", player, PLAYERS)
    if isinstance(state, Mapping):
        raise ArgumentError(
            "state is a dict of variables, which has no size of images; expected a State. "
            "Write jaxcnn.state.as_state(model, variables, normalizer=data)."
        )
    params = getattr(state, "params", None)
    if not isinstance(params, dict) or player not in params:
        found = ", ".join(map(str, params)) if isinstance(params, dict) else format_value(state)
        raise ArgumentError(
            f"the state has {found} and no {format_value(player)}; expected that of a DCGAN. "
            "Write what jaxcnn.train yields for a jaxcnn.models.dcgan.DCGAN."
        )
    return {"params": params[player]} | {
        name: tree[player] for name, tree in state.model_state.items() if player in tree
    }


def generate(model: DCGAN, state: Any, codes: Any) -> np.ndarray:
    """Return the images that a trained generator makes of codes.

    Args:
      model: the module that was trained.
      state: its `jaxcnn.State`. `jaxcnn.state.as_state` makes one of variables.
      codes: float [n, z].

    Returns:
      uint8 [n, h, w, c].

    Raises:
      ArgumentError: an argument is of another kind, the state is of another model, or codes have
        another number of values or values that are not finite.
    """
    if not isinstance(model, DCGAN):
        raise ArgumentError(
            f"model is {format_value(model)}; expected a DCGAN. Write jaxcnn.models.dcgan.DCGAN()."
        )
    variables = player_variables(state, "generator")
    is_array = isinstance(codes, (np.ndarray, jax.Array))
    is_array = is_array and jnp.issubdtype(codes.dtype, jnp.floating)
    if not is_array or codes.ndim != 2 or codes.shape[1] != model.code or not len(codes):
        found = f"{codes.dtype} {codes.shape}" if hasattr(codes, "dtype") else format_value(codes)
        raise ArgumentError(
            f"codes are {found}; expected floats [n, {model.code}], n > 0. "
            f"Write jax.random.normal(key, (n, {model.code}))."
        )
    if not np.isfinite(np.asarray(codes, np.float32)).all():
        raise ArgumentError(
            "codes have values that are not finite; expected finite ones. "
            f"Write jax.random.normal(key, (n, {model.code}))."
        )
    shape = check_image_shape(np.shape(state.normalizer.mean))
    images = _generate(model.generator(shape), variables, jnp.asarray(codes, jnp.float32))
    return np.asarray(images)


@partial(jax.jit, static_argnums=0)
def _generate(generator, variables, codes):
    images = call(generator, variables, codes, train=False)
    return jnp.round(255 * (images + 1) / 2).astype(jnp.uint8)
