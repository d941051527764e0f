"""Feature visualization: images that maximize the response of a channel.

The images are found by gradient ascent, which is known as activation maximization.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn import cpu, parallel
from jaxcnn.arguments import check_integer, check_mapping
from jaxcnn.augment import Normalizer, normalize
from jaxcnn.config import ArgumentError, check_choice, format_value
from jaxcnn.data import Dataset
from jaxcnn.interpret.activations import map_shapes, stage_outputs
from jaxcnn.state import State, Variables, as_state, eval_state, image_shape_of

NUM_STARTS = 64
"""Number of random images, of which the ascent starts from the best.

A single start is often not enough, since a ReLU gives a silent channel no gradient.
"""
ADAM = optax.adam(0.1)
"""Optimizer of pixels as logits (Kingma and Ba 2014, arXiv:1412.6980)."""
AIMS = ("mean", "centre")


def maximize_activation(
    model: nn.Module,
    state: State | Variables,
    channels: Mapping[str, Sequence[int]],
    *,
    num_steps: int = 64,
    aim: str = "mean",
    smooth: float = 3.0,
    jitter: int | None = None,
    seed: int = 0,
    normalizer: Normalizer | Dataset | None = None,
) -> dict[str, np.ndarray]:
    """Return images that maximize channels of some stages.

    Activation maximization (Erhan et al. 2009; Simonyan et al. 2013, arXiv:1312.6034). Adam
    maximizes the channel's response minus `smooth` times the total variation (Mahendran and Vedaldi
    2014, arXiv:1412.0035). The response is in units of its standard deviation over random images.
    Pixels are logistic functions of the optimized numbers.

    In each step the image is shifted by up to `jitter` pixels (Olah et al. 2017, "Feature
    Visualization"), so that the result is robust to small shifts. All images are optimized in one
    program, since compiling takes longer than optimizing.

    A channel that responds to none of the random images stays a smooth gray. The same seed gives
    the same images on one machine.

    Args:
      model: any network, as in `feature_maps`.
      state: as `train` yields it, or variables, as `load_weights` returns them.
      channels: indices of channels, by stages whose output is maps.
      num_steps: of Adam.
      aim: "mean" maximizes the mean of the channel's map, for the pattern that it responds to
        anywhere. "centre" maximizes its middle position, for a pattern within its receptive field.
      smooth: cost of one edge from black to white across the image, in standard deviations of the
        response. 0 gives noise that no photograph holds.
      jitter: in pixels; None is an eighth of the image's shorter side.
      seed: of the random images and the jitter.
      normalizer: for variables, a Dataset or a Normalizer with a mean image [h, w, c], whose shape
        the images have. A State has its own.

    Returns:
      For each stage float32 [k, h, w, c] in 0..1, an image for each of its k channels.

    Raises:
      ArgumentError: a stage, a channel or the aim is unknown, `channels` is no dict of lists, or a
        number is invalid.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("resnet8", 10, width=4)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> images = maximize_activation(model, state, {"stem": [0, 2], "stage1": [1]}, num_steps=2)
      >>> {stage: array.shape for stage, array in images.items()}
      {'stem': (2, 8, 8, 1), 'stage1': (1, 8, 8, 1)}
    """
    state = as_state(model, state, normalizer)
    h, w, c = image_shape_of(model, state)
    indices = _flat_channels(map_shapes(model, (h, w, c)), channels)
    check_choice("aim", aim, AIMS)
    num_steps = check_integer("num_steps", num_steps, 0, example=64)
    jitter = min(h, w) // 8 if jitter is None else check_integer("jitter", jitter, 0)
    smooth = _check_smooth(smooth)
    seed = check_integer("seed", seed, -(2**63), 2**63 - 1, example=0)
    test_state, key = eval_state(state)._replace(opt_state=(), metrics=()), jax.random.key(seed)
    # The margin leaves room for the shifts.
    starts = _pink_noise(
        jax.random.fold_in(key, 0), (NUM_STARTS, h + 2 * jitter, w + 2 * jitter, c)
    )
    begin, climb, to_pixels = _ascent(model, tuple(channels), aim, jitter)
    carry, spread = begin(test_state, starts, indices)
    # A loop of programs, not a program with a loop. On a CPU, gradients of convolutions are about
    # 40 times slower inside a loop.
    for step in range(1, num_steps + 1):
        settings = np.float32(smooth), jax.random.fold_in(key, step)
        carry = climb(test_state, carry, indices, spread, settings)
    bounds = np.cumsum([len(stage_channels) for stage_channels in channels.values()])[:-1]
    parts = np.split(np.asarray(to_pixels(carry)), bounds)
    return dict(zip(channels, parts, strict=True))


def _check_smooth(smooth: Any) -> float:
    try:
        number = math.nan if isinstance(smooth, str) else float(smooth)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ArgumentError(
            f"smooth is {format_value(smooth)}; expected a finite number. Write smooth=3.0."
        )
    return number


def _flat_channels(
    maps: Mapping[str, tuple[int, ...]], channels: Mapping[str, Sequence[int]]
) -> np.ndarray:
    """Return indices into the concatenated channels of all stages, int32 [k].

    Raises:
      ArgumentError: a stage or a channel does not exist, or there are no channels.
    """
    first = str(channels) if isinstance(channels, str) and channels in maps else next(iter(maps))
    check_mapping("channels", channels, f"{{{first!r}: [0]}}")
    indices, offset = [], 0
    for stage, stage_channels in channels.items():
        count = maps[check_choice("stage", stage, maps)][-1]
        is_list = isinstance(stage_channels, Sized) and isinstance(stage_channels, Iterable)
        if (
            not is_list
            or isinstance(stage_channels, str)
            or getattr(stage_channels, "ndim", 1) != 1
        ):
            raise ArgumentError(
                f"channels of {stage} are {format_value(stage_channels)}; expected a list of "
                f"numbers from 0 to {count - 1}. Write channels={{{stage!r}: [0]}}."
            )
        if not len(stage_channels) or not all(
            _is_index(channel, count) for channel in stage_channels
        ):
            raise ArgumentError(
                f"channels of {stage} are {format_value(list(stage_channels))}; "
                f"expected one or more of 0 to {count - 1}"
            )
        indices += [offset + channel for channel in stage_channels]
        offset += count
    if not indices:
        raise ArgumentError(
            f"no channels are asked for; write {{stage: [0, 1]}} with a stage of {', '.join(maps)}"
        )
    return np.asarray(indices, np.int32)


def _is_index(value: Any, count: int) -> bool:
    try:
        return not isinstance(value, (bool, np.bool_)) and 0 <= operator.index(value) < count
    except TypeError:
        return False


def _pink_noise(key: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    """Return random logits of pixels with the spectrum of photographs.

    Their shape is [n, h, w, c].

    The amplitude falls as 1 / frequency. The standard deviation over all values is 1.
    """
    white = np.asarray(jax.random.normal(key, shape))
    rows, columns = (np.fft.fftfreq(side) for side in shape[1:3])
    amplitude = 1 / np.maximum(np.hypot(rows[:, None], columns[None]), 1 / max(shape[1:3]))
    spectrum = np.fft.fft2(white, axes=(1, 2)) * amplitude[None, ..., None]
    noise = np.fft.ifft2(spectrum, axes=(1, 2)).real
    return (noise / noise.std()).astype(np.float32)


@parallel.cached_program
def _ascent(model, stages, aim, jitter) -> Any:
    """Return three programs: `begin`, `climb` and `to_pixels`.

    They choose the best starts, take one step for all channels, and return the pixels.
    """

    def responses(state, logits, shift):
        """Return the response of every channel to the crop at `shift`."""
        size = image_shape_of(model, state)
        image = jax.lax.dynamic_slice(jax.nn.sigmoid(logits), (shift[0], shift[1], 0), size)
        maps = stage_outputs(model, state, normalize(255 * image[None], state.normalizer))
        return jnp.concatenate(
            [_reduce_map(maps[stage][0].astype(jnp.float32), aim) for stage in stages]
        )

    def begin(state, starts, indices):
        middle = jnp.full(2, jitter)
        # [starts, k]
        scores = jax.vmap(responses, (None, 0, None))(state, starts, middle)[:, indices]
        spread = scores.std(0)
        best = starts[scores.argmax(0)]
        # A constant response has no unit; it is divided by 1.
        spread = jnp.where(spread > 0, spread, jnp.ones_like(spread))
        return (best, jax.vmap(ADAM.init)(best)), spread

    def objective(logits, state, channel, spread, smooth, key):
        shift = jax.random.randint(key, (2,), 0, 2 * jitter + 1)
        response = responses(state, logits, shift)[channel] / spread
        return response - smooth * normalized_total_variation(jax.nn.sigmoid(logits))

    def climb(state, carry, indices, spread, settings):
        smooth, key = settings

        def update(carry, channel, spread, key):
            logits, opt_state = carry
            gradient = jax.grad(objective)(logits, state, channel, spread, smooth, key)
            # Optax raises floats to the power of an integer count.
            with jax.numpy_dtype_promotion("standard"):
                change, opt_state = ADAM.update(-gradient, opt_state)
            return logits + change, opt_state

        keys = jax.random.split(key, len(indices))
        return jax.vmap(update)(carry, indices, spread, keys)

    def to_pixels(carry):
        logits = carry[0]
        h, w = logits.shape[1:3]
        return jax.nn.sigmoid(logits[:, jitter : h - jitter, jitter : w - jitter])

    begin, climb = cpu.crop_negative_padding(begin), cpu.crop_negative_padding(climb)
    return jax.jit(begin), jax.jit(climb), jax.jit(to_pixels)


def _reduce_map(maps: jax.Array, aim: str) -> jax.Array:
    """Return the response of each channel, [h', w', k] -> [k]."""
    if aim == "mean":
        return maps.mean((0, 1))
    return maps[maps.shape[0] // 2, maps.shape[1] // 2]


def normalized_total_variation(image: jax.Array) -> jax.Array:
    """Return the total variation of an image, per line of pixels.

    It is the sum of absolute differences down a column, averaged over columns and channels, plus
    the same along rows. So it counts edges, whatever the size: it is 1 for one straight edge from
    black to white across the image. The usual total variation is the sum over all pixels.

    Args:
      image: [h, w, c], in 0..1.

    Example:
      >>> normalized_total_variation(jnp.zeros((8, 8, 1)).at[3:].set(1)).item()
      1.0
    """
    down, right = jnp.abs(jnp.diff(image, axis=0)), jnp.abs(jnp.diff(image, axis=1))
    return down.sum(0).mean() + right.sum(1).mean()
