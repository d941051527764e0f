"""The images of a data set that excite a channel most, and where in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import parallel
from jaxcnn.augment import normalize
from jaxcnn.data import verify_images
from jaxcnn.interpret.activations import maps_of, staged
from jaxcnn.recipe import ArgumentError, check_choice, format_value
from jaxcnn.state import State, eval_state, image_shape_of


class TopActivations(NamedTuple):
    """For each of k channels the n images that excite it most, from the strongest."""

    images: np.ndarray
    """int32 [k, n]: which."""
    places: np.ndarray
    """int32 [k, n, 2]: the row and the column of the map where the response is greatest."""
    responses: np.ndarray
    """float32 [k, n]: that greatest response."""


def top_activations(
    model: nn.Module, state: State, images: np.ndarray, n: int, stages: Sequence[str] | None = None, *, batch: int = 100
) -> dict[str, TopActivations]:
    """For each channel of each stage the `n` images with the greatest response anywhere in their map, and where that is.

    Of equal responses the earlier image counts, and the place that is first by rows. Zeiler and Fergus 2013 (arXiv:1311.2901)
    show such images; `patch` cuts out what the place sees.

    Args:
      model: any network, as in `feature_maps`.
      state: as `train` yields it.
      images: uint8 [m, h, w, c].
      n: 1 to m.
      stages: names of those whose output is maps; None is all of them.
      batch: images at a time.

    Raises:
      ArgumentError: for an unknown stage, or n beyond the images.
      DataError: for other images.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data = load_dataset("digits")
      >>> model = create_model("resnet8", 10, width=4)
      >>> recipe = Recipe(dataset="digits", model="resnet8")
      >>> state = init_state(model, create_optimizer(recipe), recipe, data)
      >>> found = top_activations(model, state, data.test.images[:50], 3)["stage2"]
      >>> found.images.shape, found.places.shape, bool((found.responses[:, 0] >= found.responses[:, 1]).all())
      ((8, 3), (8, 3, 2), True)
    """
    verify_images("images", images, image_shape_of(model, state))
    maps = maps_of(model, images.shape[1:])
    names = tuple(maps) if stages is None else tuple(check_choice("stage", name, maps) for name in stages)
    if type(n) is not int or not 1 <= n <= len(images):
        raise ArgumentError(
            f"n is {format_value(n)}; expected a whole number from 1 to {len(images)}, the images given"
        )
    slim = eval_state(state)._replace(opt_state=(), metrics=())
    rows = parallel.padded_batches(len(images), batch, 1)
    parts = [jax.tree.map(np.asarray, _peaks(model, names)(slim, images[index])) for index in rows]
    peaks = jax.tree.map(lambda *found: np.concatenate(found)[: len(images)].T, *parts)  # [k, m] each
    return {name: _best(*peak, n=n, wide=maps[name][1]) for name, peak in zip(names, peaks, strict=True)}


def _best(values: np.ndarray, places: np.ndarray, *, n: int, wide: int) -> TopActivations:
    """Of the greatest response of each image, [k, m], and of where it is in a map of rows so wide."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :n]
    places = np.take_along_axis(places, order, axis=1)
    where = np.stack(np.divmod(places, wide), -1).astype(np.int32)
    return TopActivations(order.astype(np.int32), where, np.take_along_axis(values, order, axis=1))


@parallel.cached_program
def _peaks(model, names):
    def run(state, images):
        seen = staged(model, state, normalize(images, state.normalizer))
        flat = [seen[name].astype(jnp.float32).reshape(len(images), -1, seen[name].shape[-1]) for name in names]
        return [(maps.max(1), maps.argmax(1)) for maps in flat]

    return jax.jit(run)
