"""Grad-CAM: where in an image a network finds the reasons for a class (Selvaraju et al. 2017, arXiv:1610.02391); Grad-CAM++."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import parallel
from jaxcnn.augment import normalize
from jaxcnn.interpret._arguments import prepare_arguments, run_in_batches
from jaxcnn.interpret._outputs import called, nudged, outputs, stage_shapes
from jaxcnn.recipe import ArgumentError, check_choice
from jaxcnn.state import State, image_shape_of

Weigh = Callable[[jax.Array, jax.Array], jax.Array]
"""(maps, slopes of the class's logit), both float32 [h', w', k] -> the weight of each map, float32 [k]."""


def gradcam(
    model: nn.Module,
    state: State,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    stage: str | None = None,
    *,
    batch: int | None = None,
) -> np.ndarray:
    """Heat maps, float32 [n, h, w] in 0..1: how much each place of `stage` speaks for a class, at the size of the images.

    With A [h', w', k] the maps of the stage and y the class's logit, the weight of map k is the mean over places of dy/dA_k,
    and the heat is the positive part of the weighted sum of maps (equations 1 and 2), divided by its largest value and enlarged
    bilinearly. Where nothing speaks for the class it is 0 everywhere. The maps fill the whole image, as in the paper: where a
    network does not pad, as LeNet-5, what the outer places see lies further in (see `jaxcnn.interpret.receptive_field`).

    Args:
      model: any classifier; one that hands out no `stages` is asked by the paths of its modules, such as "Block_2/Conv_1".
      state: as `train` yields it.
      images: uint8 [n, h, w, c].
      classes: int [n], the classes asked about; None asks for what is predicted.
      stage: the name of one whose output is maps; None is the last such one, which the paper found best.
      batch: images at a time; None is as many as `asking.PIXELS` allows.

    Raises:
      ArgumentError: for a stage that the model lacks, or that is no longer a map; those there are are listed. For classes that
        there are not, or not one for each image.
      DataError: for other images.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("resnet8", 10, width=4)
      >>> recipe = Recipe(dataset="digits", model="resnet8")
      >>> heat = gradcam(model, init_state(model, create_optimizer(recipe), recipe, data), data.test.images[:3])
      >>> heat.shape, float(heat.max()) <= 1
      ((3, 8, 8), True)
    """
    return _heat(mean_slope, model, state, images, classes, stage, batch)


def gradcam_plus_plus(
    model: nn.Module,
    state: State,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    stage: str | None = None,
    *,
    batch: int | None = None,
) -> np.ndarray:
    """Grad-CAM++ (Chattopadhay et al. 2018, arXiv:1710.11063): as `gradcam`, but for what weighs the maps.

    The weight of map k is the sum over places of alpha relu(dY/dA_k) (equation 5) for Y = exp(y), of which the second and third
    derivatives are powers of the first where y is piecewise linear in A; that is equation 19's alpha (see `plus`). It finds all
    of several objects of a class, and the whole of one, where a mean over places lets the largest win. Arguments, result and
    errors are those of `gradcam`.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data, model, recipe = load_dataset("digits"), create_model("convnet", 10), Recipe(dataset="digits", model="convnet")
      >>> state = init_state(model, create_optimizer(recipe), recipe, data)
      >>> gradcam_plus_plus(model, state, data.test.images[:3], stage="conv1").shape
      (3, 8, 8)
    """
    return _heat(plus, model, state, images, classes, stage, batch)


def _heat(weigh, model, state, images, classes, stage, batch) -> np.ndarray:
    stage = mapped(model, image_shape_of(model, state), stage)
    labels = prepare_arguments(model, state, images, classes, batch)
    found = run_in_batches(_heater(model, stage, weigh), state, images, np.arange(len(images)), batch, labels)
    return np.concatenate([heat for _, heat in found])


def mapped(model: nn.Module, shape: tuple[int, ...], stage: str | None) -> str:
    """`stage`, or the last one whose output is maps [h', w', k] of more than one place; ArgumentError lists those."""
    maps = [name for name, found in stage_shapes(model, shape).items() if len(found) == 3 and found[0] * found[1] > 1]
    if not maps:
        raise ArgumentError(
            f"{type(model).__name__} has no {called(model)} whose output is maps; Grad-CAM needs a convolution's"
        )
    return check_choice("stage", stage, maps) if stage is not None else maps[-1]


@parallel.cached_program
def _heater(model, stage, weigh):
    def one(state, image, label):
        inputs = normalize(image, state.normalizer)[None]
        variables = {"params": state.params, **state.model_state}
        seen = outputs(model, variables, inputs)

        def logit(nudge):
            return nudged(model, variables, inputs, stage, nudge)[0, label]

        maps = seen[stage][0].astype(jnp.float32)  # [h', w', k]
        slopes = jax.grad(logit)(jnp.zeros_like(seen[stage]))[0].astype(jnp.float32)
        return weighted(maps, weigh(maps, slopes), image.shape[:2])

    return jax.jit(jax.vmap(one, (None, 0, 0)))


def mean_slope(maps: jax.Array, slopes: jax.Array) -> jax.Array:
    """Grad-CAM's equation 1: the mean over places of the slopes."""
    return slopes.mean((0, 1))


def plus(maps: jax.Array, slopes: jax.Array) -> jax.Array:
    """Grad-CAM++'s: the sum over places of alpha relu(g), with alpha = g^2 / (2 g^2 + g^3 sum A) (equation 19), g the slopes.

    g^2 cancels, which leaves no 0 / 0. The factor exp(y) of relu(dY/dA) is left out, since heat is divided by its largest
    value. After a ReLU the denominator is at least 2 wherever g > 0, which alone counts. Where maps are negative, as after
    tanh, it may be 0 or less; the equation means nothing there, and alpha is taken as 0.

    Example:
      >>> plus(jnp.full((1, 2, 1), 0.5), jnp.array([[[2.0], [-1.0]]])).tolist()
      [0.5]
    """
    below = 2 + slopes * maps.sum((0, 1), keepdims=True)
    alpha = jnp.where(below > 0, 1 / jnp.where(below > 0, below, 1), 0)
    return (alpha * jax.nn.relu(slopes)).sum((0, 1))


def weighted(maps: jax.Array, weights: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Grad-CAM's equation 2 of one image: maps [h', w', k] and their weights [k] -> heat [h, w] in 0..1."""
    heat = jax.nn.relu((maps * weights[None, None]).sum(-1))
    heat = heat / jnp.maximum(heat.max(), jnp.finfo(heat.dtype).tiny)
    return jax.image.resize(heat, size, "linear")
