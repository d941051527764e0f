"""What a network makes of images on the way: its maps, and the kernels that the image meets first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import parallel
from jaxcnn.augment import normalize
from jaxcnn.data import verify_images
from jaxcnn.interpret._jaxpr import Op, trace
from jaxcnn.interpret._outputs import called, outputs
from jaxcnn.interpret._outputs import stage_shapes as shapes
from jaxcnn.recipe import ArgumentError, check_choice
from jaxcnn.state import State, eval_state, image_shape_of


def feature_maps(
    model: nn.Module, state: State, images: np.ndarray, stages: Sequence[str] | None = None, *, batch: int = 100
) -> dict[str, np.ndarray]:
    """The maps of the stages, float32 [n, h', w', k] each, in the order asked for; after the activation, in test mode.

    Args:
      model: any network; of one that hands out no `stages`, those are its modules, called by their paths ("Block_2/Conv_1").
      state: as `train` yields it.
      images: uint8 [n, h, w, c], n > 0.
      stages: names of those whose output is maps (one place is enough); None is all of them, in the network's order.
      batch: images at a time.

    Raises:
      ArgumentError: for a stage that the model lacks, or that is no map; those there are are listed.
      DataError: for other images.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("resnet8", 10, width=4)
      >>> recipe = Recipe(dataset="digits", model="resnet8")
      >>> found = feature_maps(model, init_state(model, create_optimizer(recipe), recipe, data), data.test.images[:3])
      >>> {name: maps.shape for name, maps in found.items()}
      {'stem': (3, 8, 8, 4), 'stage1': (3, 8, 8, 4), 'stage2': (3, 4, 4, 8), 'stage3': (3, 2, 2, 16)}
    """
    verify_images("images", images, image_shape_of(model, state))
    there = maps_of(model, images.shape[1:])
    names = tuple(there) if stages is None else tuple(check_choice("stage", name, there) for name in stages)
    slim = eval_state(state)._replace(opt_state=(), metrics=())
    rows = parallel.padded_batches(len(images), batch, 1)
    parts = [jax.tree.map(np.asarray, _mapper(model, names)(slim, images[index])) for index in rows]
    return {
        name: np.concatenate(found)[: len(images)] for name, found in zip(names, zip(*parts, strict=True), strict=True)
    }


def maps_of(model: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The stages whose output is maps [h', w', k], be it of one place, in their order; ArgumentError where there is none.

    Example:
      >>> from jaxcnn import create_model
      >>> maps_of(create_model("lenet5", 10), (28, 28, 1))
      {'c1': (28, 28, 6), 'c3': (10, 10, 16), 'c5': (1, 1, 120)}
    """
    maps = {name: found for name, found in shapes(model, shape).items() if len(found) == 3}
    if not maps:
        raise ArgumentError(
            f"{type(model).__name__} has no {called(model)} whose output is maps; write a network with convolutions"
        )
    return maps


def staged(model: nn.Module, state: State, inputs: jax.Array) -> dict[str, jax.Array]:
    """Every stage's output for inputs [b, h, w, c] in test mode, for use while tracing."""
    return outputs(model, {"params": state.params, **state.model_state}, inputs)


@parallel.cached_program
def _mapper(model, names):
    def run(state, images):
        seen = staged(model, state, normalize(images, state.normalizer))
        return [seen[name].astype(jnp.float32) for name in names]

    return jax.jit(run)


def first_kernels(model: nn.Module, state: State) -> np.ndarray:
    """The kernel of the convolution that sees the image itself, float32 [h, w, c, k]; c is 1 to the image's channels.

    It is found by following the image through the model, whatever the layer is called: the first convolution of what was
    padded, cast or shifted at most, with an array of the parameters.

    Args:
      model: the network.
      state: as `train` yields it, or as `init_state` makes it.

    Raises:
      ArgumentError: if no convolution sees the image.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("resnet8", 10, width=4)
      >>> recipe = Recipe(dataset="digits", model="resnet8")
      >>> first_kernels(model, init_state(model, create_optimizer(recipe), recipe, data)).shape
      (3, 3, 1, 4)
    """
    names = _first_kernel(model, image_shape_of(model, state))
    found: Any = {"params": eval_state(state).params, **state.model_state}
    for name in names:
        found = found[name]
    return np.asarray(found, np.float32)


def _first_kernel(model: nn.Module, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Where that kernel stands in the variables."""
    traced = trace(model, shape)
    image, arrays = {traced.image}, dict(traced.variables)
    for op in traced.ops:
        from_image = any(value.id in image for value in op.ins)
        if op.name == "conv_general_dilated" and op.ins[0].id in image and op.ins[1].id in arrays:
            return arrays[op.ins[1].id]
        if from_image and op.name not in ("conv_general_dilated", "dot_general"):
            image |= {value.id for value in op.outs}
        elif not from_image and _same(op) and op.ins[0].id in arrays:
            arrays[op.outs[0].id] = arrays[op.ins[0].id]
    raise ArgumentError(
        f"{type(model).__name__} has no convolution that sees the image; write a network with convolutions"
    )


def _same(op: Op) -> bool:
    """A cast, say, of an array: the same numbers in the same shape."""
    return op.name in ("convert_element_type", "copy", "name") and op.ins[0].shape == op.outs[0].shape
