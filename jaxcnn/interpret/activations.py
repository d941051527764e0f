"""Activations of a network: feature maps, first kernels and top activations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import cpu, parallel
from jaxcnn.arguments import check_integer
from jaxcnn.augment import Normalizer, normalize
from jaxcnn.config import ArgumentError, check_choice, format_value
from jaxcnn.data import Dataset, verify_images
from jaxcnn.interpret._jaxpr import Op, trace
from jaxcnn.interpret._outputs import output_kind, outputs, stage_shapes
from jaxcnn.state import State, Variables, as_state, eval_state, image_shape_of

# ---------------------------------------------------------------- feature maps


def feature_maps(
    model: nn.Module,
    state: State | Variables,
    images: np.ndarray,
    stages: Sequence[str] | None = None,
    *,
    batch_size: int = 100,
    normalizer: Normalizer | Dataset | None = None,
) -> dict[str, np.ndarray]:
    """Return the maps of the stages, float32 [n, h', w', k] each.

    The dict has the order of `stages`. Maps are taken after the activation, in test mode.

    Args:
      model: any network. For one without named stages, those are its modules by their paths, such
        as "Block_2/Conv_1".
      state: as `train` yields it, or variables, as `load_weights` returns them.
      images: uint8 [n, h, w, c], n > 0.
      stages: names of stages whose output is maps (one position is enough). None is all of them, in
        the network's order.
      batch_size: images at a time.
      normalizer: constants of normalization for variables, as in `jaxcnn.state.as_state`. A State
        has its own.

    Raises:
      ArgumentError: the model lacks a stage, or its output is no map; the valid ones are listed.
        Also where `stages` is no list, or `batch_size` not a whole number above 0.
      DataError: `images` do not have the shape or dtype that the state is for.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("resnet8", 10, width=4)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> maps = feature_maps(model, state, data.test.images[:3])
      >>> maps["stem"].shape, maps["stage1"].shape, maps["stage2"].shape, maps["stage3"].shape
      ((3, 8, 8, 4), (3, 8, 8, 4), (3, 4, 4, 8), (3, 2, 2, 16))
    """
    batch_size = check_integer("batch_size", batch_size, example=100)
    state = as_state(model, state, normalizer, images)
    verify_images("images", images, image_shape_of(model, state))
    names = _check_stages(stages, map_shapes(model, images.shape[1:]))
    test_state = eval_state(state)._replace(opt_state=(), metrics=())
    rows = parallel.padded_batches(len(images), batch_size, 1)
    program = _maps_program(model, names)
    parts = [jax.tree.map(np.asarray, program(test_state, images[index])) for index in rows]
    return {
        name: np.concatenate(maps)[: len(images)]
        for name, maps in zip(names, zip(*parts, strict=True), strict=True)
    }


def _check_stages(
    stages: Sequence[str] | None, maps: dict[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """Return the valid names of stages, all of them for None."""
    if stages is None:
        return tuple(maps)
    if isinstance(stages, str) or not isinstance(stages, Iterable):
        example = [stages] if isinstance(stages, str) and stages in maps else list(maps)[:1]
        raise ArgumentError(
            f"stages is {format_value(stages)}; expected a list of names. Write stages={example}."
        )
    return tuple(check_choice("stage", name, maps) for name in stages)


def map_shapes(model: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes (h', w', k) of the stages with maps.

    They are in the network's order.

    Maps of a single position are included.

    Raises:
      ArgumentError: there is no such stage.

    Example:
      >>> from jaxcnn import create_model
      >>> map_shapes(create_model("lenet5", 10), (28, 28, 1))
      {'c1': (28, 28, 6), 'c3': (10, 10, 16), 'c5': (1, 1, 120)}
    """
    maps = {
        name: output_shape
        for name, output_shape in stage_shapes(model, shape).items()
        if len(output_shape) == 3
    }
    if not maps:
        raise ArgumentError(
            f"{type(model).__name__} has no {output_kind(model)} whose output is maps; "
            "write a network with convolutions"
        )
    return maps


def stage_outputs(model: nn.Module, state: State, inputs: jax.Array) -> dict[str, jax.Array]:
    """Return every stage's output in test mode, for use while tracing.

    Args:
      model: any network.
      state: provides `params` and `model_state`.
      inputs: normalized images [b, h, w, c].
    """
    return outputs(model, {"params": state.params, **state.model_state}, inputs)


@parallel.cached_program
def _maps_program(model, names):
    def run(state, images):
        stages = stage_outputs(model, state, normalize(images, state.normalizer))
        return [stages[name].astype(jnp.float32) for name in names]

    return jax.jit(cpu.crop_negative_padding(run))


# ---------------------------------------------------------------- top activations


class TopActivations(NamedTuple):
    """The n images with the strongest responses, for each of k channels.

    They are sorted, strongest first.

    Attributes:
      images: indices of the images, int32 [k, n].
      places: row and column of the maximum, int32 [k, n, 2].
      responses: maximum of the response over the map, float32 [k, n].
    """

    images: np.ndarray
    places: np.ndarray
    responses: np.ndarray


def top_activations(
    model: nn.Module,
    state: State | Variables,
    images: np.ndarray,
    n: int,
    stages: Sequence[str] | None = None,
    *,
    batch_size: int = 100,
    normalizer: Normalizer | Dataset | None = None,
) -> dict[str, TopActivations]:
    """Return the `n` images with the greatest response, for each channel.

    The result has all channels of each stage.

    The response of an image is the maximum over the channel's map, whose position is returned too.
    Of equal responses the earlier image counts, and the position that is first by rows. Zeiler and
    Fergus 2013 (arXiv:1311.2901) show such images. `receptive_patch` cuts out the pixels that the
    position sees.

    Args:
      model: any network, as in `feature_maps`.
      state: as `train` yields it, or variables, as `load_weights` returns them.
      images: uint8 [m, h, w, c].
      n: 1 to m.
      stages: names of stages whose output is maps; None is all of them.
      batch_size: images at a time.
      normalizer: constants of normalization for variables, as in `jaxcnn.state.as_state`. A State
        has its own.

    Raises:
      ArgumentError: a stage is unknown, n exceeds the number of images, `stages` is no list, or
        `batch_size` is not a whole number above 0.
      DataError: `images` do not have the shape or dtype that the state is for.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("resnet8", 10, width=4)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> top = top_activations(model, state, data.test.images[:50], 3)["stage2"]
      >>> top.images.shape, top.places.shape
      ((8, 3), (8, 3, 2))
      >>> bool((top.responses[:, 0] >= top.responses[:, 1]).all())
      True
    """
    batch_size = check_integer("batch_size", batch_size, example=100)
    state = as_state(model, state, normalizer, images)
    verify_images("images", images, image_shape_of(model, state))
    maps = map_shapes(model, images.shape[1:])
    names = _check_stages(stages, maps)
    if type(n) is not int or not 1 <= n <= len(images):
        raise ArgumentError(
            f"n is {format_value(n)}; expected a whole number from 1 to {len(images)}, the images "
            "given"
        )
    test_state = eval_state(state)._replace(opt_state=(), metrics=())
    rows = parallel.padded_batches(len(images), batch_size, 1)
    program = _peaks_program(model, names)
    parts = [jax.tree.map(np.asarray, program(test_state, images[index])) for index in rows]
    # [k, m] each.
    peaks = jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(images)].T, *parts)
    return {
        name: _select_top(*peak, n=n, width=maps[name][1])
        for name, peak in zip(names, peaks, strict=True)
    }


def _select_top(values: np.ndarray, positions: np.ndarray, *, n: int, width: int) -> TopActivations:
    """Return the `n` greatest values of each channel.

    Args:
      values: the greatest response of each image, [k, m].
      positions: its index in the flattened map, [k, m].
      n: number of images.
      width: of the map.
    """
    order = np.argsort(-values, axis=1, kind="stable")[:, :n]
    positions = np.take_along_axis(positions, order, axis=1)
    places = np.stack(np.divmod(positions, width), -1).astype(np.int32)
    return TopActivations(order.astype(np.int32), places, np.take_along_axis(values, order, axis=1))


@parallel.cached_program
def _peaks_program(model, names):
    def run(state, images):
        stages = stage_outputs(model, state, normalize(images, state.normalizer))
        flat_maps = [
            stages[name].astype(jnp.float32).reshape(len(images), -1, stages[name].shape[-1])
            for name in names
        ]
        return [(maps.max(1), maps.argmax(1)) for maps in flat_maps]

    return jax.jit(cpu.crop_negative_padding(run))


# ---------------------------------------------------------------- first kernels


def first_kernels(
    model: nn.Module,
    state: State | Variables,
    *,
    normalizer: Normalizer | Dataset | None = None,
) -> np.ndarray:
    """Return the kernel of the first convolution, float32 [h, w, c, k].

    c is 1 to the image's channels. The layer is found by following the image through the model, so
    that its name does not matter. It is the first convolution of the image with an array of the
    parameters. Before it the image may only be padded, cast or shifted.

    Args:
      model: the network.
      state: as `train` yields it or `init_state` makes it, or variables.
      normalizer: a Dataset or a Normalizer with a mean image, for variables. Only the shape of the
        images is used. A State has its own.

    Raises:
      ArgumentError: no convolution sees the image.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("resnet8", 10, width=4)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> first_kernels(model, init_state(model, tx, config, data)).shape
      (3, 3, 1, 4)
    """
    state = as_state(model, state, normalizer)
    names = _first_kernel_path(model, image_shape_of(model, state))
    node: Any = {"params": eval_state(state).params, **state.model_state}
    for name in names:
        node = node[name]
    return np.asarray(node, np.float32)


def _first_kernel_path(model: nn.Module, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the path of that kernel in the variables."""
    traced = trace(model, shape)
    image_ids, arrays = {traced.image}, dict(traced.variables)
    for op in traced.ops:
        from_image = any(value.id in image_ids for value in op.ins)
        is_convolution = op.name == "conv_general_dilated"
        if is_convolution and op.ins[0].id in image_ids and op.ins[1].id in arrays:
            return arrays[op.ins[1].id]
        if from_image and op.name not in ("conv_general_dilated", "dot_general"):
            image_ids |= {value.id for value in op.outs}
        elif not from_image and _is_copy(op) and op.ins[0].id in arrays:
            arrays[op.outs[0].id] = arrays[op.ins[0].id]
    raise ArgumentError(
        f"{type(model).__name__} has no convolution that sees the image; write a network with "
        "convolutions"
    )


def _is_copy(op: Op) -> bool:
    """Return whether the result has the same numbers and shape.

    A cast is an example.
    """
    is_copying = op.name in ("convert_element_type", "copy", "name")
    return is_copying and op.ins[0].shape == op.outs[0].shape
