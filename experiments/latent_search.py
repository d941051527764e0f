"""Search for the code of an image by gradient descent, and the anomaly score of AnoGAN.

Schlegl et al. 2017, "Unsupervised anomaly detection with generative adversarial networks to guide
marker discovery" (arXiv:1703.05921). `experiments.anomaly` uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.arguments import ArgumentError
from jaxcnn.augment import normalize
from jaxcnn.models.dcgan import DCGAN, player_variables
from jaxcnn.state import State

WEIGHT = 0.1
"""Lambda, the share of the discrimination loss, as in the paper."""
NUM_STEPS = 200
"""Steps of the search; the paper has 500."""
BATCH = 100
"""Images that are searched for at a time."""
FEATURES = "conv2"
"""Stage of the discriminator whose output is compared."""


class Found(NamedTuple):
    """Codes of images, and how far the images that they generate are from them."""

    codes: Any
    """float32 [n, z]."""
    losses: Any
    """float32 [n], after the last step: the anomaly score."""
    history: Any
    """float32 [n, steps], before each step."""


def search_codes(
    generate: Callable[[jax.Array], jax.Array],
    features: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    starts: jax.Array,
    tx: optax.GradientTransformation,
    *,
    num_steps: int = NUM_STEPS,
    weight: float = WEIGHT,
) -> Found:
    """Search for the codes whose images are nearest to given ones, for use while tracing.

    Each image is searched for on its own, from its own start. The loss is that of the paper,
    (1 - weight) |x - G(z)|_1 + weight |f(x) - f(G(z))|_1, with sums over pixels and over features.

    Args:
      generate: G, from a code [z] to an image [h, w, c].
      features: f, from an image [h, w, c] to an array of any shape.
      images: x, float [n, h, w, c].
      starts: codes to start from, float [n, z].
      tx: optimizer of a code.
      num_steps: steps of each search.
      weight: lambda, in 0..1.

    Example:
      >>> def identity(x):
      ...     return x
      >>> image = jnp.full((1, 2), 3.0)
      >>> found = search_codes(
      ...     identity, identity, image, jnp.zeros((1, 2)), optax.sgd(0.5), num_steps=6
      ... )
      >>> found.codes.tolist(), found.losses.tolist()
      ([[3.0, 3.0]], [0.0])
    """

    def search(image, start):
        target = features(image)

        def loss_of(code):
            candidate = generate(code)
            residual = jnp.abs(image - candidate).sum()
            return (1 - weight) * residual + weight * jnp.abs(target - features(candidate)).sum()

        def step(carry, _):
            code, opt_state = carry
            loss, gradient = jax.value_and_grad(loss_of)(code)
            # Optax raises floats to the power of an integer count.
            with jax.numpy_dtype_promotion("standard"):
                update, opt_state = tx.update(gradient, opt_state, code)
            return (code + update, opt_state), loss

        (code, _), history = jax.lax.scan(step, (start, tx.init(start)), length=num_steps)
        return Found(code, loss_of(code), history)

    return jax.vmap(search)(images, starts)


def anomaly_scores(
    model: DCGAN,
    state: State,
    images: np.ndarray,
    *,
    seed: int = 0,
    num_steps: int = NUM_STEPS,
    learning_rate: float = 0.1,
) -> np.ndarray:
    """Return AnoGAN's anomaly score of each image.

    It is the loss of the best code that `search_codes` finds by Adam. Features are the
    discriminator's last maps. Both networks are in test mode.

    Args:
      model: the trained GAN.
      state: its state.
      images: uint8 [n, h, w, c].
      seed: of the codes that the searches start from, N(0, 1). They belong to an image's place.
      num_steps: steps of each search.
      learning_rate: of Adam.

    Returns:
      float32 [n], from 0; larger is stranger.

    Raises:
      ArgumentError: there are no images, or the state is not of a `DCGAN`.
    """
    if not len(images):
        raise ArgumentError(
            f"images are of shape {np.shape(images)}; expected at least one, [n, h, w, c]. "
            "Write images[:1] for the score of the first."
        )
    starts = np.random.default_rng(seed).normal(size=(len(images), model.code)).astype(np.float32)
    players = tuple(player_variables(state, name) for name in ("generator", "discriminator"))
    shape = np.shape(images)[1:]
    scores = []
    for i in range(0, len(images), BATCH):
        batch, codes = images[i : i + BATCH], starts[i : i + BATCH]
        n = len(batch)
        # The last batch is as large as the others, so that one program serves all.
        batch = np.concatenate([batch, np.repeat(batch[:1], BATCH - n, 0)])
        codes = np.concatenate([codes, np.repeat(codes[:1], BATCH - n, 0)])
        inputs = normalize(batch, state.normalizer)
        found = _search(model, shape, num_steps, learning_rate, players, inputs, codes)
        scores.append(np.asarray(found.losses)[:n])
    return np.concatenate(scores)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _search(model, shape, num_steps, learning_rate, players, images, starts):
    generator, discriminator = model.generator(shape), model.discriminator()

    def generate(code):
        return generator.apply(players[0], code[None])[0]

    def features(image):
        return discriminator.apply(players[1], image[None], stages=True)[1][FEATURES][0]

    tx = optax.adam(learning_rate)
    return search_codes(generate, features, images, starts, tx, num_steps=num_steps)
