"""What every method of attribution does alike: whether it can be asked, and images through a compiled program in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import numpy as np

from jaxcnn import parallel
from jaxcnn.arguments import check_integer
from jaxcnn.data import verify_images
from jaxcnn.evaluation import predict
from jaxcnn.models.calling import call
from jaxcnn.recipe import ArgumentError
from jaxcnn.state import State, eval_state, image_shape_of

PIXELS = 100 * 32 * 32
"""Of all images in a batch, where the caller does not say how many: 100 of 32x32, 2 of 224x224, whose activations in an
ImageNet network and their gradients take some 0.5 GB."""


def prepare_arguments(
    model: nn.Module, state: State, images: np.ndarray, classes: np.ndarray | None, batch: int | None = None
) -> np.ndarray:
    """The class that each image is asked about, int32 [n]: `classes`, or the predicted ones.

    Nothing is compiled before all of it is known to fit.

    Raises:
      DataError: for images that the state is not for.
      ArgumentError: for another number of classes, classes that there are not, or a model that gives no logits.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data, model, recipe = load_dataset("digits"), create_model("mlp", 10), Recipe(dataset="digits", model="mlp")
      >>> asked(model, init_state(model, create_optimizer(recipe), recipe, data), data.test.images[:2], np.array([3, 12]))
      Traceback (most recent call last):
      jaxcnn.arguments.ArgumentError: classes are 3 to 12; expected 0 to 9, of the model's 10 classes
    """
    verify_images("images", images, image_shape_of(model, state))
    if batch is not None:
        check_integer("batch", batch)
    count = _logits(model, state, images.shape[1:])
    if classes is None:
        return predict(model, state, images, batch=batch or default_batch_size(images)).argmax(1).astype(np.int32)
    labels = np.asarray(classes)
    if labels.shape != (len(images),):
        raise ArgumentError(
            f"classes has shape {labels.shape}; expected one class for each of the {len(images)} images"
        )
    if labels.dtype.kind not in "iu":
        raise ArgumentError(f"classes are {labels.dtype}; expected integers: write np.array([3, 5]), say")
    if labels.min() < 0 or labels.max() >= count:
        found = f"classes are {labels.min()} to {labels.max()}"
        raise ArgumentError(f"{found}; expected 0 to {count - 1}, of the model's {count} classes")
    return labels.astype(np.int32)


def _logits(model: nn.Module, state: State, shape: tuple[int, ...]) -> int:
    """How many there are for an image; ArgumentError for an autoencoder or a network of masks."""
    inputs = jax.ShapeDtypeStruct((1, *shape), "float32")
    slim = eval_state(state)._replace(opt_state=(), metrics=())
    found = jax.eval_shape(lambda state, x: logits(model, state, x), slim, inputs).shape[1:]
    if len(found) != 1:
        name = type(model).__name__
        raise ArgumentError(f"{name} gives {found} for an image, no logits; expected a classifier, such as 'resnet20'")
    return found[0]


def logits(model: nn.Module, state: State, inputs: jax.Array) -> jax.Array:
    """In test mode, of normalised images [b, h, w, c]: float32 [b, classes]."""
    return call(model, {"params": state.params, **state.model_state}, inputs, train=False)


def run_in_batches(
    program: Callable[..., jax.Array],
    state: State,
    images: np.ndarray,
    which: np.ndarray,
    batch: int | None,
    *more: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(i [b], `program`'s answers to them [b, ...]), for i = 0, 1, ... in their order, until all of `which` are answered.

    Example i is `images[which[i]]` with the i-th of every array in `more`; the last batch is filled up, and the filling
    not handed on. The program takes (state, images [b, h, w, c], the rest [b, ...]).

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data, model, recipe = load_dataset("digits"), create_model("mlp", 10), Recipe(dataset="digits", model="mlp")
      >>> state, which = init_state(model, create_optimizer(recipe), recipe, data), np.array([0, 0, 1])
      >>> found = batches(lambda state, images: images.max((1, 2, 3)), state, data.test.images, which, 2)
      >>> [(index.tolist(), answers.shape) for index, answers in found]
      [([0, 1], (2,)), ([2], (1,))]
    """
    slim = eval_state(state)._replace(opt_state=(), metrics=())
    for index in parallel.padded_batches(len(which), batch or default_batch_size(images), 1):
        answers = program(slim, images[which[index]], *(each[index] for each in more))
        real = index[index >= 0]
        yield real, np.asarray(answers)[: len(real)]


def default_batch_size(images: np.ndarray) -> int:
    """How many of images [n, h, w, c] to a batch: `PIXELS` in all, at most 100.

    Example:
      >>> [default_batch_size(np.zeros((1, side, side, 3))) for side in (32, 224, 8)]
      (100, 2, 100)
    """
    return min(100, max(1, PIXELS // (images.shape[1] * images.shape[2])))
