"""Grad-CAM and Grad-CAM++: the image regions that speak for a class.

Selvaraju et al. 2017 (arXiv:1610.02391) and Chattopadhay et al. 2018 (arXiv:1710.11063).
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import cpu, parallel
from jaxcnn.augment import Normalizer, normalize
from jaxcnn.config import ArgumentError, check_choice
from jaxcnn.data import Dataset
from jaxcnn.interpret._arguments import prepare_arguments, run_in_batches
from jaxcnn.interpret._outputs import output_kind, outputs, perturbed_output, stage_shapes
from jaxcnn.state import State, Variables, as_state, image_shape_of

WeightFunction = Callable[[jax.Array, jax.Array], jax.Array]
"""A function of (maps, gradients) that returns weights, float32 [k].

Maps and gradients of the class's logit are float32 [h', w', k].
"""


def gradcam(
    model: nn.Module,
    state: State | Variables,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    stage: str | None = None,
    *,
    batch_size: int | None = None,
    normalizer: Normalizer | Dataset | None = None,
) -> np.ndarray:
    """Return heat maps of the evidence for a class.

    They are float32 [n, h, w] in 0..1.

    A [h', w', k] are the maps of the stage, and y is the class's logit. The weight of map k is the
    mean over positions of dy/dA_k. The heat is the positive part of the weighted sum of maps
    (equations 1 and 2). It is divided by its largest value and enlarged bilinearly to the size of
    the images. Where nothing speaks for the class it is 0 everywhere.

    The maps fill the whole image, as in the paper. In a network without padding, such as LeNet-5,
    the outer positions see pixels that lie further in (see `jaxcnn.interpret.receptive_field`).

    Args:
      model: any classifier. For one without named stages, `stage` is the path of a module, such as
        "Block_2/Conv_1".
      state: as `train` yields it, or variables, as `load_weights` returns them.
      images: uint8 [n, h, w, c].
      classes: int [n], the classes to explain; None takes the predicted ones.
      stage: name of a stage whose output is maps. None is the last such one, which the paper found
        best.
      batch_size: images at a time; None is as many as `_arguments.PIXELS_PER_BATCH` allows.
      normalizer: constants of normalization for variables, as in `jaxcnn.state.as_state`. A State
        has its own.

    Raises:
      ArgumentError: the model lacks the stage, or its output is no map; the valid ones are listed.
        Also where a class does not exist, or there is not one for each image.
      DataError: `images` do not have the shape or dtype that the state is for.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("resnet8", 10, width=4)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> heat = gradcam(model, state, data.test.images[:3])
      >>> heat.shape, float(heat.max()) <= 1
      ((3, 8, 8), True)
    """
    state = as_state(model, state, normalizer, images)
    return _heatmaps(gradcam_weights, model, state, images, classes, stage, batch_size)


def gradcam_plus_plus(
    model: nn.Module,
    state: State | Variables,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    stage: str | None = None,
    *,
    batch_size: int | None = None,
    normalizer: Normalizer | Dataset | None = None,
) -> np.ndarray:
    """Return Grad-CAM++ heat maps, float32 [n, h, w] in 0..1.

    Chattopadhay et al. 2018 (arXiv:1710.11063). It differs from `gradcam` in the weights of the
    maps. The weight of map k is the sum over positions of alpha relu(dY/dA_k) (equation 5), for
    Y = exp(y). Its second and third derivatives are powers of the first where y is piecewise linear
    in A. That gives the alpha of equation 19 (see `gradcam_plus_plus_weights`).

    The method finds all of several objects of a class, and the whole of one. A mean over positions
    lets the largest win. Arguments, result and errors are those of `gradcam`.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data, model = load_dataset("digits"), create_model("convnet", 10)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> gradcam_plus_plus(model, state, data.test.images[:3], stage="conv1").shape
      (3, 8, 8)
    """
    state = as_state(model, state, normalizer, images)
    return _heatmaps(gradcam_plus_plus_weights, model, state, images, classes, stage, batch_size)


def _heatmaps(weight_function, model, state, images, classes, stage, batch_size) -> np.ndarray:
    stage = check_stage(model, image_shape_of(model, state), stage)
    labels = prepare_arguments(model, state, images, classes, batch_size)
    program = _heatmap_program(model, stage, weight_function)
    parts = run_in_batches(program, state, images, np.arange(len(images)), batch_size, labels)
    return np.concatenate([heat for _, heat in parts])


def check_stage(model: nn.Module, shape: tuple[int, ...], stage: str | None) -> str:
    """Return `stage`, or the last stage whose output is maps.

    Maps [h', w', k] of a single position are left out.

    Raises:
      ArgumentError: the stage is none of these; they are listed.
    """
    maps = [
        name
        for name, output_shape in stage_shapes(model, shape).items()
        if len(output_shape) == 3 and output_shape[0] * output_shape[1] > 1
    ]
    if not maps:
        raise ArgumentError(
            f"{type(model).__name__} has no {output_kind(model)} whose output is maps; Grad-CAM "
            "needs a convolution's"
        )
    return check_choice("stage", stage, maps) if stage is not None else maps[-1]


@parallel.cached_program
def _heatmap_program(model, stage, weight_function):
    def heatmap(state, image, label):
        inputs = normalize(image, state.normalizer)[None]
        variables = {"params": state.params, **state.model_state}
        output = outputs(model, variables, inputs)[stage]

        # The gradient by the stage's output is the gradient by a perturbation added to it, at 0.
        def logit(perturbation):
            return perturbed_output(model, variables, inputs, stage, perturbation)[0, label]

        maps = output[0].astype(jnp.float32)  # [h', w', k]
        gradients = jax.grad(logit)(jnp.zeros_like(output))[0].astype(jnp.float32)
        return weighted_heatmap(maps, weight_function(maps, gradients), image.shape[:2])

    return jax.jit(cpu.crop_negative_padding(jax.vmap(heatmap, (None, 0, 0))))


def gradcam_weights(maps: jax.Array, gradients: jax.Array) -> jax.Array:
    """Return Grad-CAM's weights (equation 1), the mean gradient of each map."""
    return gradients.mean((0, 1))


def gradcam_plus_plus_weights(maps: jax.Array, gradients: jax.Array) -> jax.Array:
    """Return the weights of Grad-CAM++, the sum over positions of alpha relu(g).

    g are the gradients, and alpha = g^2 / (2 g^2 + g^3 sum A) (equation 19). g^2 cancels, which
    leaves no 0 / 0. The factor exp(y) of relu(dY/dA) is left out, since heat is divided by its
    largest value.

    After a ReLU the denominator is at least 2 wherever g > 0, and only these positions count. Where
    maps are negative, as after tanh, it may be 0 or less. The equation has no meaning there, and
    alpha is set to 0.

    Example:
      >>> maps, gradients = jnp.full((1, 2, 1), 0.5), jnp.array([[[2.0], [-1.0]]])
      >>> gradcam_plus_plus_weights(maps, gradients).tolist()
      [0.5]
    """
    denominator = 2 + gradients * maps.sum((0, 1), keepdims=True)
    # The inner `where` keeps a division by 0 out of both branches.
    alpha = jnp.where(denominator > 0, 1 / jnp.where(denominator > 0, denominator, 1), 0)
    return (alpha * jax.nn.relu(gradients)).sum((0, 1))


def weighted_heatmap(maps: jax.Array, weights: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Return Grad-CAM's equation 2 for one image, heat [h, w] in 0..1.

    Args:
      maps: [h', w', k].
      weights: [k].
      size: (h, w).
    """
    heat = jax.nn.relu((maps * weights[None, None]).sum(-1))
    heat = heat / jnp.maximum(heat.max(), jnp.finfo(heat.dtype).tiny)
    return jax.image.resize(heat, size, "linear")
