"""What excites a channel most, found by ascent: activation maximisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn import parallel
from jaxcnn.augment import normalize
from jaxcnn.interpret.activations import maps_of, staged
from jaxcnn.recipe import ArgumentError, check_choice, format_value
from jaxcnn.state import State, eval_state, image_shape_of

STARTS = 64
"""Random images of which the ascent begins at the best. ReLU gives a silent channel no slope: one start is often not enough."""
ADAM = optax.adam(0.1)
"""For pixels as logits (Kingma and Ba 2014, arXiv:1412.6980)."""
AIMS = ("mean", "centre")


def maximize_activation(
    model: nn.Module,
    state: State,
    channels: Mapping[str, Sequence[int]],
    *,
    steps: int = 64,
    aim: str = "mean",
    smooth: float = 3.0,
    jitter: int | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Images that channels of some stages answer most strongly: for each stage float32 [k, h, w, c] in 0..1, k its channels.

    Activation maximisation (Erhan et al. 2009; Simonyan et al. 2013, arXiv:1312.6034): Adam climbs the channel's response, in
    units of its standard deviation over random images, minus `smooth` times the total variation (Mahendran and Vedaldi 2014,
    arXiv:1412.0035), over pixels as logistic functions of free numbers. In each step the image is moved by up to `jitter`
    pixels (Olah et al. 2017, "Feature Visualization"), so that what comes out bears a small shift. All climb together in one
    program: compiling takes longer than climbing.

    A channel that none of the random images wakes stays a smooth grey. The same seed gives the same images on one machine.

    Args:
      model: any network, as in `feature_maps`.
      state: as `train` yields it.
      channels: stages whose output is maps, and of each the numbers of some channels.
      steps: of Adam.
      aim: "mean" of the channel's map, for the pattern it likes anywhere, or "centre", the one place in the middle, for what
        lies within its receptive field.
      smooth: how many standard deviations of the response one edge from black to white across the image costs; 0 gives noise
        that no photograph holds.
      jitter: in pixels; None is an eighth of the image's shorter side.
      seed: of the random images and the jitter.

    Raises:
      ArgumentError: for an unknown stage, aim or channel.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("resnet8", 10, width=4)
      >>> recipe = Recipe(dataset="digits", model="resnet8")
      >>> state = init_state(model, create_optimizer(recipe), recipe, data)
      >>> found = maximize_activation(model, state, {"stem": [0, 2], "stage1": [1]}, steps=2)
      >>> {stage: images.shape for stage, images in found.items()}
      {'stem': (2, 8, 8, 1), 'stage1': (1, 8, 8, 1)}
    """
    h, w, c = image_shape_of(model, state)
    asked = _numbers(maps_of(model, (h, w, c)), channels)
    check_choice("aim", aim, AIMS)
    jitter = min(h, w) // 8 if jitter is None else jitter
    slim, key = eval_state(state)._replace(opt_state=(), metrics=()), jax.random.key(seed)
    free = _noise(jax.random.fold_in(key, 0), (STARTS, h + 2 * jitter, w + 2 * jitter, c))
    begin, climb, made = _ascent(model, tuple(channels), aim, jitter)
    carry, spread = begin(slim, free, asked)
    # A loop of programs, not one with a loop in it: on a CPU, gradients of convolutions are some 40 times slower there.
    for step in range(1, steps + 1):
        settings = np.float32(smooth), jax.random.fold_in(key, step)
        carry = climb(slim, carry, asked, spread, settings)
    parts = np.split(np.asarray(made(carry)), np.cumsum([len(some) for some in channels.values()])[:-1])
    return dict(zip(channels, parts, strict=True))


def _numbers(maps: Mapping[str, tuple[int, ...]], channels: Mapping[str, Sequence[int]]) -> np.ndarray:
    """The channels asked for, counted on from stage to stage, int32 [k]; ArgumentError for a stage or channel that is not."""
    numbers, before = [], 0
    for stage, some in channels.items():
        count = maps[check_choice("stage", stage, maps)][-1]
        if not len(some) or not all(0 <= channel < count for channel in some):
            raise ArgumentError(
                f"channels of {stage} are {format_value(list(some))}; expected one or more of 0 to {count - 1}"
            )
        numbers += [before + channel for channel in some]
        before += count
    if not numbers:
        raise ArgumentError(f"no channels are asked for; write {{stage: [0, 1]}} with a stage of {', '.join(maps)}")
    return np.asarray(numbers, np.int32)


def _noise(key: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    """Random logits of pixels [n, h, w, c] whose spectrum falls as that of photographs does: amplitude as 1 / frequency."""
    white = np.asarray(jax.random.normal(key, shape))
    high, wide = (np.fft.fftfreq(side) for side in shape[1:3])
    fall = 1 / np.maximum(np.hypot(high[:, None], wide[None]), 1 / max(shape[1:3]))
    noise = np.fft.ifft2(np.fft.fft2(white, axes=(1, 2)) * fall[None, ..., None], axes=(1, 2)).real
    return (noise / noise.std()).astype(np.float32)


@parallel.cached_program
def _ascent(model, stages, aim, jitter) -> Any:
    """The best of some starts, one step for all channels, and what the pixels are in the end."""

    def responses(state, logits, shift):
        """Of every channel of all the stages, to the crop of [h, w, c] at `shift`."""
        size = image_shape_of(model, state)
        image = jax.lax.dynamic_slice(jax.nn.sigmoid(logits), (shift[0], shift[1], 0), size)
        seen = staged(model, state, normalize(255 * image[None], state.normalizer))
        return jnp.concatenate([_aimed(seen[stage][0].astype(jnp.float32), aim) for stage in stages])

    def begin(state, free, asked):
        middle = jnp.full(2, jitter)
        found = jax.vmap(responses, (None, 0, None))(state, free, middle)[:, asked]  # [starts, k]
        spread = found.std(0)
        best = free[found.argmax(0)]
        return (best, jax.vmap(ADAM.init)(best)), jnp.where(spread > 0, spread, jnp.ones_like(spread))

    def worth(logits, state, channel, spread, smooth, key):
        shift = jax.random.randint(key, (2,), 0, 2 * jitter + 1)
        return responses(state, logits, shift)[channel] / spread - smooth * variation(jax.nn.sigmoid(logits))

    def climb(state, carry, asked, spread, settings):
        smooth, key = settings

        def one(carry, channel, spread, key):
            logits, memory = carry
            slope = jax.grad(worth)(logits, state, channel, spread, smooth, key)
            with jax.numpy_dtype_promotion("standard"):  # Optax raises numbers to the power of a count
                change, memory = ADAM.update(-slope, memory)
            return logits + change, memory

        keys = jax.random.split(key, len(asked))
        return jax.vmap(one)(carry, asked, spread, keys)

    def made(carry):
        logits = carry[0]
        return jax.nn.sigmoid(logits[:, jitter : logits.shape[1] - jitter, jitter : logits.shape[2] - jitter])

    return jax.jit(begin), jax.jit(climb), jax.jit(made)


def _aimed(maps: jax.Array, aim: str) -> jax.Array:
    """[h', w', k] -> [k]."""
    return maps.mean((0, 1)) if aim == "mean" else maps[maps.shape[0] // 2, maps.shape[1] // 2]


def variation(image: jax.Array) -> jax.Array:
    """The total variation of [h, w, c] in edges: 1 for one straight edge from black to white across a square.

    Example:
      >>> variation(jnp.zeros((8, 8, 1)).at[3:].set(1)).item()
      1.0
    """
    down, right = jnp.abs(jnp.diff(image, axis=0)), jnp.abs(jnp.diff(image, axis=1))
    return down.sum(0).mean() + right.sum(1).mean()
