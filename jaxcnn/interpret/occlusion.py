"""Occlusion: what a class's logit loses when a part of the image is covered (Zeiler and Fergus 2013, arXiv:1311.2901)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import parallel
from jaxcnn.arguments import check_integer
from jaxcnn.augment import normalize
from jaxcnn.interpret._arguments import logits, prepare_arguments, run_in_batches
from jaxcnn.recipe import ArgumentError, format_value
from jaxcnn.state import State, image_shape_of


def occlusion(
    model: nn.Module,
    state: State,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    *,
    size: int | None = None,
    stride: int | None = None,
    fill: Any = None,
    batch: int | None = None,
) -> np.ndarray:
    """The fall of a class's logit under a square that covers each place, float32 [n, h, w]; negative where it rises.

    Squares stand in rows and columns, `stride` pixels apart, and stick out at the edges, so that where `stride` divides
    `size` each pixel is under (size / stride)^2 of them; its value is their mean. The paper (section 4.2) shows the
    probability; that of a confident network stays at 1 whatever is covered, and depends on the other classes' logits.

    Args:
      model: a classifier; nothing is differentiated.
      state: as `train` yields it.
      images: uint8 [n, h, w, c].
      classes: int [n], the classes asked about; None asks for what is predicted.
      size: of the square, in pixels; None is a quarter of the image's shorter side.
      stride: in pixels, at most `size`; None is half of `size`.
      fill: what the square holds, one number or [c], in 0..255; None is the colour of the mean image that the state
        subtracts (the paper's is grey).
      batch: covered images at a time; None is as many as `asking.PIXELS` allows.

    Raises:
      ArgumentError: for a size beyond the image, a stride beyond the size, another fill; for classes as in `gradcam`.
      DataError: for other images.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data, model, recipe = load_dataset("digits"), create_model("mlp", 10), Recipe(dataset="digits", model="mlp")
      >>> occlusion(model, init_state(model, create_optimizer(recipe), recipe, data), data.test.images[:3]).shape
      (3, 8, 8)
    """
    h, w, _ = image_shape_of(model, state)
    size = check_integer("size", max(1, min(h, w) // 4) if size is None else size, 1, min(h, w))
    stride = check_integer("stride", max(1, size // 2) if stride is None else stride, 1, size)
    colour = _colour(fill, state)
    labels = prepare_arguments(model, state, images, classes, batch)
    corners = _corners(h, w, size, stride)
    n, places = len(images), len(corners)
    which, more = np.repeat(np.arange(n), places), (np.repeat(labels, places), np.tile(corners, (n, 1)))
    program = _program(model, size)
    parts = run_in_batches(lambda state, *rest: program(state, colour, *rest), state, images, which, batch, *more)
    scores = np.concatenate([part for _, part in parts]).reshape(n, places)
    return _falls(scores[:, :1] - scores[:, 1:], corners[1:], size, (h, w))


def _colour(fill: Any, state: State) -> np.ndarray:
    """float32 [c], in 0..255."""
    mean = 255 * np.asarray(state.normalizer.mean, np.float32).mean((0, 1))
    if fill is None:
        return mean
    try:
        return np.broadcast_to(np.asarray(fill, np.float32), mean.shape)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"fill is {format_value(fill)}; expected one number in 0..255, or one for each channel"
        ) from None


def _corners(h: int, w: int, size: int, stride: int) -> np.ndarray:
    """int32 [p, 2]: the upper left corners of the squares, those at the edges partly outside; the first covers nothing.

    Example:
      >>> _corners(2, 4, 2, 2).tolist()
      [[2, 4], [0, 0], [0, 2]]
    """
    rows, columns = np.arange(stride - size, h, stride), np.arange(stride - size, w, stride)
    squares = [(y, x) for y in rows for x in columns]
    return np.array([(h, w), *squares], np.int32)


@parallel.cached_program
def _program(model, size):
    def one(state, colour, image, label, corner):
        rows, columns = (_under(corner[i], jnp.arange(image.shape[i]), size) for i in (0, 1))
        covered = jnp.where((rows[:, None] & columns[None])[..., None], colour, image.astype(jnp.float32))
        return logits(model, state, normalize(covered, state.normalizer)[None])[0, label]

    return jax.jit(jax.vmap(one, (None, None, 0, 0, 0)))


def _falls(falls: np.ndarray, corners: np.ndarray, size: int, shape: tuple[int, int]) -> np.ndarray:
    """The mean at each pixel of the falls [n, p] of the squares over it, float32 [n, h, w]."""
    y, x = (_under(corners[:, i], np.arange(shape[i]), size).astype(np.float64) for i in (0, 1))
    return (np.einsum("np,py,px->nyx", falls, y, x) / (y.T @ x)).astype(np.float32)


def _under(corner, at, size):
    """bool [p, m]: which of the places are under squares from the corners [p]; of one corner, bool [m]."""
    return (at >= corner[..., None]) & (at < corner[..., None] + size)
