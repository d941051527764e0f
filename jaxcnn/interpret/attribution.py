"""Attribution: the share of each pixel in the logit of a class.

Integrated gradients and occlusion are defined here. `attribution` runs any method by its name and
returns one number in 0..1 for each pixel.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import cpu, parallel
from jaxcnn.arguments import check_integer
from jaxcnn.augment import Normalizer, normalize
from jaxcnn.config import ArgumentError, check_choice, format_value
from jaxcnn.data import Dataset
from jaxcnn.interpret._arguments import logits, prepare_arguments, run_in_batches
from jaxcnn.interpret.gradcam import gradcam, gradcam_plus_plus
from jaxcnn.interpret.guided_backprop import guided_backprop
from jaxcnn.state import State, Variables, as_state, image_shape_of

# ---------------------------------------------------------------- integrated gradients


def integrated_gradients(
    model: nn.Module,
    state: State | Variables,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    baseline: np.ndarray | None = None,
    *,
    num_steps: int = 32,
    batch_size: int | None = None,
    normalizer: Normalizer | Dataset | None = None,
) -> np.ndarray:
    """Return each value's contribution to a logit, float32 [n, h, w, c].

    Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365). The unit is that of the
    logit. The contribution is (x - x') times the mean gradient on the straight line from a baseline
    x' to the image x (equation 1). The sum over an image is logit(x) - logit(x') (completeness,
    proposition 1), up to the error of the integral, which falls with `num_steps`. Any network that
    can be differentiated will do.

    The default baseline is black, as the paper takes it for images. A pixel as dark as the baseline
    then contributes nothing. The mean image would not be neutral. For MNIST it is a blurred digit,
    and differences from it would appear in the result.

    Args:
      model: a classifier.
      state: as `train` yields it, or variables, as `load_weights` returns them.
      images: uint8 [n, h, w, c].
      classes: int [n], the classes to explain; None takes the predicted ones.
      baseline: [h, w, c] in 0..255; None is black.
      num_steps: points on the line, those of the midpoint rule.
      batch_size: gradients at a time; None is as many as `_arguments.PIXELS_PER_BATCH` allows.
      normalizer: constants of normalization for variables, as in `jaxcnn.state.as_state`. A State
        has its own.

    Raises:
      ArgumentError: the baseline is no array of numbers or has another shape, there is less than
        one step, or the classes are invalid (see `gradcam`).
      DataError: `images` do not have the shape or dtype that the state is for.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset, predict
      >>> from jaxcnn.state import init_state
      >>> data, model = load_dataset("digits"), create_model("mlp", 10)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> images = data.test.images[:1]
      >>> shares = integrated_gradients(model, state, images, np.array([3]))
      >>> rise = predict(model, state, images)[0, 3] - predict(model, state, 0 * images)[0, 3]
      >>> shares.shape, bool(abs(shares.sum() - rise) < 1e-3)
      ((1, 8, 8, 1), True)
    """
    check_integer("num_steps", num_steps)
    state = as_state(model, state, normalizer, images)
    shape = image_shape_of(model, state)
    start = np.zeros(shape, np.float32) if baseline is None else _baseline_array(baseline, shape)
    labels = prepare_arguments(model, state, images, classes, batch_size)
    image_index = np.repeat(np.arange(len(images)), num_steps)
    fractions = np.tile((np.arange(num_steps, dtype=np.float32) + 0.5) / num_steps, len(images))
    program, total = _path_gradients(model), np.zeros(images.shape, np.float64)
    parts = run_in_batches(
        lambda state, *arrays: program(state, start, *arrays),
        state,
        images,
        image_index,
        batch_size,
        labels[image_index],
        fractions,
    )
    for index, part in parts:
        # `add.at`, since an image occurs several times in a batch.
        np.add.at(total, image_index[index], part)
    return (total / num_steps).astype(np.float32)


def _baseline_array(baseline: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the baseline as float32 of `shape`."""
    try:
        start = np.asarray(baseline, np.float32)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"baseline is {format_value(baseline)}; expected an image of numbers in 0..255. "
            f"Write baseline=np.full({shape}, 128)."
        ) from None
    if start.shape != shape:
        raise ArgumentError(
            f"baseline has shape {start.shape}; expected that of one image, {shape}. "
            f"Write baseline=np.full({shape}, 128)."
        )
    return start


@parallel.cached_program
def _path_gradients(model):
    def path_gradient(state, baseline, image, label, fraction):
        first, last = normalize(baseline, state.normalizer), normalize(image, state.normalizer)

        def logit(inputs):
            return logits(model, state, inputs[None])[0, label]

        return (last - first) * jax.grad(logit)(first + fraction * (last - first))

    return jax.jit(cpu.crop_negative_padding(jax.vmap(path_gradient, (None, None, 0, 0, 0))))


# ---------------------------------------------------------------- occlusion


def occlusion(
    model: nn.Module,
    state: State | Variables,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    *,
    size: int | None = None,
    stride: int | None = None,
    fill: Any = None,
    batch_size: int | None = None,
    normalizer: Normalizer | Dataset | None = None,
) -> np.ndarray:
    """Return the fall of a logit under a covering square.

    The result is float32 [n, h, w].

    Occlusion (Zeiler and Fergus 2013, arXiv:1311.2901). A value is negative where the logit rises.
    Squares stand in rows and columns, `stride` pixels apart, and extend past the edges. Where
    `stride` divides `size`, each pixel is under (size / stride)^2 of them, and its value is their
    mean. The paper (section 4.2) shows the probability. That of a confident network stays at 1
    whatever is covered, and it depends on the logits of other classes.

    Args:
      model: a classifier; nothing is differentiated.
      state: as `train` yields it, or variables, as `load_weights` returns them.
      images: uint8 [n, h, w, c].
      classes: int [n], the classes to explain; None takes the predicted ones.
      size: side of the square, in pixels; None is a quarter of the image's shorter side.
      stride: in pixels, at most `size`; None is half of `size`.
      fill: the square's color, one number or [c], in 0..255. None is the mean color of the image
        that the state subtracts (the paper's is gray).
      batch_size: covered images at a time; None is as many as `_arguments.PIXELS_PER_BATCH` allows.
      normalizer: constants of normalization for variables, as in `jaxcnn.state.as_state`. A State
        has its own.

    Raises:
      ArgumentError: the size exceeds the image, the stride exceeds the size, `fill` is no color,
        or the classes are invalid (see `gradcam`).
      DataError: `images` do not have the shape or dtype that the state is for.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data, model = load_dataset("digits"), create_model("mlp", 10)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> occlusion(model, state, data.test.images[:3]).shape
      (3, 8, 8)
    """
    state = as_state(model, state, normalizer, images)
    h, w, _ = image_shape_of(model, state)
    size = check_integer("size", max(1, min(h, w) // 4) if size is None else size, 1, min(h, w))
    stride = check_integer("stride", max(1, size // 2) if stride is None else stride, 1, size)
    color = _fill_color(fill, state)
    labels = prepare_arguments(model, state, images, classes, batch_size)
    corners = _square_corners(h, w, size, stride)
    n, num_squares = len(images), len(corners)
    image_index = np.repeat(np.arange(n), num_squares)
    program = _occluded_logits(model, size)
    parts = run_in_batches(
        lambda state, *arrays: program(state, color, *arrays),
        state,
        images,
        image_index,
        batch_size,
        np.repeat(labels, num_squares),
        np.tile(corners, (n, 1)),
    )
    scores = np.concatenate([part for _, part in parts]).reshape(n, num_squares)
    return _mean_over_squares(scores[:, :1] - scores[:, 1:], corners[1:], size, (h, w))


def _fill_color(fill: Any, state: State) -> np.ndarray:
    """Return the color of the square, float32 [c], in 0..255."""
    mean = 255 * np.asarray(state.normalizer.mean, np.float32).mean((0, 1))
    if fill is None:
        return mean
    try:
        return np.broadcast_to(np.asarray(fill, np.float32), mean.shape)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"fill is {format_value(fill)}; expected one number in 0..255, or one for each channel"
        ) from None


def _square_corners(h: int, w: int, size: int, stride: int) -> np.ndarray:
    """Return the upper left corners of the squares, int32 [p, 2].

    The first square lies outside the image and covers nothing. Squares at the edges are partly
    outside.

    Example:
      >>> _square_corners(2, 4, 2, 2).tolist()
      [[2, 4], [0, 0], [0, 2]]
    """
    rows, columns = np.arange(stride - size, h, stride), np.arange(stride - size, w, stride)
    squares = [(y, x) for y in rows for x in columns]
    return np.array([(h, w), *squares], np.int32)


@parallel.cached_program
def _occluded_logits(model, size):
    def occluded_logit(state, color, image, label, corner):
        rows, columns = (_is_covered(corner[i], jnp.arange(image.shape[i]), size) for i in (0, 1))
        mask = (rows[:, None] & columns[None])[..., None]
        occluded = jnp.where(mask, color, image.astype(jnp.float32))
        return logits(model, state, normalize(occluded, state.normalizer)[None])[0, label]

    return jax.jit(cpu.crop_negative_padding(jax.vmap(occluded_logit, (None, None, 0, 0, 0))))


def _mean_over_squares(
    falls: np.ndarray, corners: np.ndarray, size: int, shape: tuple[int, int]
) -> np.ndarray:
    """Return the mean fall at each pixel, float32 [n, h, w].

    The mean is over the squares that cover the pixel.

    Args:
      falls: [n, p], of each square.
      corners: int [p, 2].
      size: side of the squares, in pixels.
      shape: (h, w).
    """
    y, x = (
        _is_covered(corners[:, i], np.arange(shape[i]), size).astype(np.float64) for i in (0, 1)
    )
    return (np.einsum("np,py,px->nyx", falls, y, x) / (y.T @ x)).astype(np.float32)


def _is_covered(corner, positions, size):
    """Return which positions [m] the squares cover, bool [p, m].

    The squares begin at `corner` [p].

    For a single corner it is bool [m].
    """
    return (positions >= corner[..., None]) & (positions < corner[..., None] + size)


# ---------------------------------------------------------------- any method by name

ATTRIBUTION_METHODS: dict[str, Callable[..., np.ndarray]] = {
    "gradcam": gradcam,
    "gradcam_plus_plus": gradcam_plus_plus,
    "guided_backprop": guided_backprop,
    "integrated_gradients": integrated_gradients,
    "occlusion": occlusion,
}
"""Attribution methods by name.

A method maps (model, state, images, classes, options) to float32 [n, h, w], or to [n, h, w, c] with
a number for each value of the image.
"""


def attribution(
    method: str,
    model: nn.Module,
    state: State | Variables,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    **options: Any,
) -> np.ndarray:
    """Return each pixel's evidence for a class, float32 [n, h, w].

    The largest value of each image is 1, unless all are 0. Only evidence for the class is shown:

    - Grad-CAM, Grad-CAM++ and occlusion: the positive part.
    - Integrated gradients: the positive part of the sum over channels, which is the pixel's share.
    - Guided backpropagation: the largest absolute value among the channels (Simonyan et al. 2013,
      arXiv:1312.6034, section 3.1). The sign of a guided gradient only says whether to brighten or
      to darken.

    Args:
      method: a name in `ATTRIBUTION_METHODS`.
      model: as in `gradcam`.
      state: as in `gradcam`.
      images: as in `gradcam`.
      classes: as in `gradcam`.
      **options: the method's own, such as `stage`, `num_steps` or `size`, and `normalizer`.

    Raises:
      ArgumentError: the method is unknown, has no such option, or raises it itself.
      DataError: `images` do not have the shape or dtype that the state is for.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data, model = load_dataset("digits"), create_model("convnet", 10)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> images = data.test.images[:3]
      >>> heat = attribution("integrated_gradients", model, state, images, num_steps=8)
      >>> heat.shape, heat.max((1, 2)).tolist()
      ((3, 8, 8), [1.0, 1.0, 1.0])
    """
    function = ATTRIBUTION_METHODS[check_choice("method", method, ATTRIBUTION_METHODS)]
    # The first four are model, state, images and classes.
    valid_options = list(inspect.signature(function).parameters)[4:]
    for name in options:
        check_choice(f"option of {method}", name, valid_options)
    values = function(model, state, images, classes, **options)
    if values.ndim == 4:
        values = np.abs(values).max(-1) if method == "guided_backprop" else values.sum(-1)
    return scale_to_unit(values)


def scale_to_unit(values: np.ndarray) -> np.ndarray:
    """Return the positive part, each image divided by its maximum.

    `values` are [n, h, w].

    An image without a positive value is 0 everywhere.

    Example:
      >>> scale_to_unit(np.float32([[[-1, 4], [2, 0]], [[-1, -1], [-1, -1]]])).tolist()
      [[[0.0, 1.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    """
    positive = np.maximum(values, 0)
    maximum = positive.max((1, 2), keepdims=True)
    return np.divide(positive, maximum, out=np.zeros_like(positive), where=maximum > 0)
