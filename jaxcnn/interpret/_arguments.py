"""Shared steps of the attribution methods: checks of arguments, and batches.

Every method checks its arguments here before anything is compiled. It then sends its images through
one compiled program, batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import numpy as np

from jaxcnn import parallel
from jaxcnn.arguments import check_integer
from jaxcnn.config import ArgumentError, format_value
from jaxcnn.data import verify_images
from jaxcnn.evaluation import predict
from jaxcnn.losses import check_single_output
from jaxcnn.models.calling import call
from jaxcnn.state import State, eval_state, image_shape_of

PIXELS_PER_BATCH = 100 * 32 * 32
"""Default number of pixels in a batch, summed over its images.

That is 100 images of 32x32, or 2 of 224x224. The activations of 2 such images in an ImageNet
network and their gradients take about 0.5 GB.
"""


def prepare_arguments(
    model: nn.Module,
    state: State,
    images: np.ndarray,
    classes: np.ndarray | None,
    batch_size: int | None = None,
) -> np.ndarray:
    """Return the class to explain for each image, int32 [n].

    That is `classes`, or the predicted classes for None. All arguments are checked before anything
    is compiled.

    Raises:
      DataError: `images` do not have the shape or dtype that the state is for.
      ArgumentError: the number of classes is not that of the images, a class does not exist, or
        the model does not return logits.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data, model = load_dataset("digits"), create_model("mlp", 10)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> images = data.test.images[:2]
      >>> prepare_arguments(model, state, images, np.array([3, 12]))  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      jaxcnn.arguments.ArgumentError: classes are 3 to 12; ...
    """
    verify_images("images", images, image_shape_of(model, state))
    if batch_size is not None:
        check_integer("batch_size", batch_size)
    count = _num_logits(model, state, images.shape[1:])
    if classes is None:
        outputs = predict(model, state, images, batch_size=batch_size or default_batch_size(images))
        return outputs.argmax(1).astype(np.int32)
    try:
        labels = np.asarray(classes)
    # A list of lists of different lengths.
    except ValueError:
        raise ArgumentError(
            f"classes is {format_value(classes)}; expected one class for each of the {len(images)} "
            "images. Write np.array([3, 5]), say."
        ) from None
    if labels.shape != (len(images),):
        raise ArgumentError(
            f"classes has shape {labels.shape}; expected one class for each of the {len(images)} "
            "images"
        )
    if labels.dtype.kind not in "iu":
        raise ArgumentError(
            f"classes are {labels.dtype}; expected integers: write np.array([3, 5]), say"
        )
    if labels.min() < 0 or labels.max() >= count:
        raise ArgumentError(
            f"classes are {labels.min()} to {labels.max()}; expected 0 to {count - 1}, of the "
            f"model's {count} classes"
        )
    return labels.astype(np.int32)


def _num_logits(model: nn.Module, state: State, shape: tuple[int, ...]) -> int:
    """Return the number of logits for one image [h, w, c].

    Raises:
      ArgumentError: the output is no vector, as of an autoencoder or a segmentation network.
    """
    inputs = jax.ShapeDtypeStruct((1, *shape), "float32")
    test_state = eval_state(state)._replace(opt_state=(), metrics=())
    output = jax.eval_shape(lambda state, x: logits(model, state, x), test_state, inputs)
    check_single_output(output)
    output_shape = output.shape[1:]
    if len(output_shape) != 1:
        name = type(model).__name__
        raise ArgumentError(
            f"{name} gives {output_shape} for an image, no logits; expected a classifier, such as "
            "'resnet20'"
        )
    return output_shape[0]


def logits(model: nn.Module, state: State, inputs: jax.Array) -> jax.Array:
    """Return the logits in test mode, float32 [b, num_classes].

    Args:
      model: a classifier.
      state: provides `params` and `model_state`.
      inputs: normalized images [b, h, w, c].
    """
    return call(model, {"params": state.params, **state.model_state}, inputs, train=False)


def run_in_batches(
    program: Callable[..., jax.Array],
    state: State,
    images: np.ndarray,
    image_index: np.ndarray,
    batch_size: int | None,
    *extras: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (i [b], outputs of `program` for these examples [b, ...]).

    Example i is `images[image_index[i]]` with the i-th entry of every array in `extras`. The
    indices i = 0, 1, ... come in order until all of `image_index` is covered. The last batch is
    padded, and the outputs for the padding are dropped.

    Args:
      program: a function of (state, images [b, h, w, c], *extras [b, ...]).
      state: reduced to what test mode needs before it is passed to `program`.
      images: uint8 [n, h, w, c].
      image_index: int [m], an image for each example.
      batch_size: examples at a time; None is `default_batch_size`.
      *extras: arrays [m, ...].

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data, model = load_dataset("digits"), create_model("mlp", 10)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> brightest, index = lambda state, images: images.max((1, 2, 3)), np.array([0, 0, 1])
      >>> batches = run_in_batches(brightest, state, data.test.images, index, 2)
      >>> [(i.tolist(), outputs.shape) for i, outputs in batches]
      [([0, 1], (2,)), ([2], (1,))]
    """
    test_state = eval_state(state)._replace(opt_state=(), metrics=())
    batch_size = batch_size or default_batch_size(images)
    for padded in parallel.padded_batches(len(image_index), batch_size, 1):
        outputs = program(
            test_state, images[image_index[padded]], *(extra[padded] for extra in extras)
        )
        index = padded[padded >= 0]
        yield index, np.asarray(outputs)[: len(index)]


def default_batch_size(images: np.ndarray) -> int:
    """Return the number of images [n, h, w, c] in a batch.

    A batch has at most `PIXELS_PER_BATCH` pixels and at most 100 images, but at least one.

    Example:
      >>> [default_batch_size(np.zeros((1, side, side, 3))) for side in (32, 224, 8)]
      [100, 2, 100]
    """
    return min(100, max(1, PIXELS_PER_BATCH // (images.shape[1] * images.shape[2])))
