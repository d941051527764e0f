"""Integrated gradients: a class's logit, shared out among the pixels (Sundararajan et al. 2017, arXiv:1703.01365)."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np

from jaxcnn import parallel
from jaxcnn.arguments import check_integer
from jaxcnn.augment import normalize
from jaxcnn.interpret._arguments import logits, prepare_arguments, run_in_batches
from jaxcnn.recipe import ArgumentError
from jaxcnn.state import State, image_shape_of


def integrated_gradients(
    model: nn.Module,
    state: State,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    baseline: np.ndarray | None = None,
    *,
    steps: int = 32,
    batch: int | None = None,
) -> np.ndarray:
    """What each value of an image adds to the logit of a class, float32 [n, h, w, c], in the logit's unit.

    That is (x - x') times the mean of the gradient on the straight line from a baseline x' to the image x (equation 1). The sum
    over an image is logit(x) - logit(x') (completeness, proposition 1), up to the error of the integral: `steps` tell how good
    it is. Any network that can be differentiated will do.

    The baseline is black unless another is given, as the paper takes it for images. What is as dark as the baseline is then
    given nothing. The mean image would be no neutral one: of MNIST it is a blurred digit, and the differences from it would
    tell of that as well.

    Args:
      model: a classifier.
      state: as `train` yields it.
      images: uint8 [n, h, w, c].
      classes: int [n], the classes asked about; None asks for what is predicted.
      baseline: [h, w, c] in 0..255; None is black.
      steps: places on the line, those of the midpoint rule.
      batch: gradients at a time; None is as many as `asking.PIXELS` allows.

    Raises:
      ArgumentError: for a baseline of another shape, or fewer than one step; for classes as in `gradcam`.
      DataError: for other images.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer, predict
      >>> from jaxcnn.state import init_state
      >>> data, model, recipe = load_dataset("digits"), create_model("mlp", 10), Recipe(dataset="digits", model="mlp")
      >>> state, images = init_state(model, create_optimizer(recipe), recipe, data), data.test.images[:1]
      >>> shares = integrated_gradients(model, state, images, np.array([3]))
      >>> rise = predict(model, state, images)[0, 3] - predict(model, state, 0 * images)[0, 3]
      >>> shares.shape, bool(abs(shares.sum() - rise) < 1e-3)
      ((1, 8, 8, 1), True)
    """
    check_integer("steps", steps)
    first = np.zeros(image_shape_of(model, state), np.float32) if baseline is None else np.asarray(baseline, np.float32)
    if first.shape != image_shape_of(model, state):
        raise ArgumentError(
            f"baseline has shape {first.shape}; expected that of one image, {np.shape(state.normalizer.mean)}"
        )
    labels = prepare_arguments(model, state, images, classes, batch)
    which = np.repeat(np.arange(len(images)), steps)
    places = np.tile((np.arange(steps, dtype=np.float32) + 0.5) / steps, len(images))
    program, total = _slopes(model), np.zeros(images.shape, np.float64)
    parts = run_in_batches(
        lambda state, *rest: program(state, first, *rest), state, images, which, batch, labels[which], places
    )
    for index, part in parts:
        np.add.at(total, which[index], part)
    return (total / steps).astype(np.float32)


@parallel.cached_program
def _slopes(model):
    def one(state, baseline, image, label, place):
        first, last = normalize(baseline, state.normalizer), normalize(image, state.normalizer)

        def logit(inputs):
            return logits(model, state, inputs[None])[0, label]

        return (last - first) * jax.grad(logit)(first + place * (last - first))

    return jax.jit(jax.vmap(one, (None, None, 0, 0, 0)))
