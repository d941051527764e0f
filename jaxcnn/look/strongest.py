"""The images of a data set that excite a channel most, and where in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import parallel
from jaxcnn.augment import normalise
from jaxcnn.data import verify_images
from jaxcnn.look.features import maps_of, staged
from jaxcnn.recipe import RecipeError, one_of, shown
from jaxcnn.state import State, at_test, image_shape_of


class Strongest(NamedTuple):
    """For each of k channels the n images that excite it most, from the strongest."""

    images: np.ndarray
    """int32 [k, n]: which."""
    places: np.ndarray
    """int32 [k, n, 2]: the row and the column of the map where the response is greatest."""
    responses: np.ndarray
    """float32 [k, n]: that greatest response."""


def strongest(
    model: nn.Module, state: State, images: np.ndarray, n: int, stages: Sequence[str] | None = None, *, batch: int = 100
) -> dict[str, Strongest]:
    """For each channel of each stage the `n` images with the greatest response anywhere in their map, and where that is.

    Of equal responses the earlier image counts, and the place that is first by rows. Zeiler and Fergus 2013 (arXiv:1311.2901)
    show such images; `patch` cuts out what the place sees.

    Args:
      model: any network, as in `feature_maps`.
      state: as `fit` yields it.
      images: uint8 [m, h, w, c].
      n: 1 to m.
      stages: names of those whose output is maps; None is all of them.
      batch: images at a time.

    Raises:
      RecipeError: for an unknown stage, or n beyond the images.
      DataError: for other images.

    Example:
      >>> from jaxcnn import Recipe, build, load, optimizer
      >>> from jaxcnn.state import start
      >>> data, model, recipe = load("digits"), build("resnet8", 10, width=4), Recipe(dataset="digits", model="resnet8")
      >>> found = strongest(model, start(model, optimizer(recipe), recipe, data), data.test.images[:50], 3)["stage2"]
      >>> found.images.shape, found.places.shape, bool((found.responses[:, 0] >= found.responses[:, 1]).all())
      ((8, 3), (8, 3, 2), True)
    """
    verify_images("images", images, image_shape_of(model, state))
    maps = maps_of(model, images.shape[1:])
    names = tuple(maps) if stages is None else tuple(one_of("stage", name, maps) for name in stages)
    if type(n) is not int or not 1 <= n <= len(images):
        raise RecipeError(f"n is {shown(n)}; expected a whole number from 1 to {len(images)}, the images given")
    slim = at_test(state)._replace(opt=(), sums=())
    rows = parallel.filled(len(images), batch, 1)
    parts = [jax.tree.map(np.asarray, _peaks(model, names)(slim, images[index])) for index in rows]
    peaks = jax.tree.map(lambda *found: np.concatenate(found)[: len(images)].T, *parts)  # [k, m] each
    return {name: _best(*peak, n=n, wide=maps[name][1]) for name, peak in zip(names, peaks, strict=True)}


def _best(values: np.ndarray, places: np.ndarray, *, n: int, wide: int) -> Strongest:
    """Of the greatest response of each image, [k, m], and of where it is in a map of rows so wide."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :n]
    places = np.take_along_axis(places, order, axis=1)
    where = np.stack(np.divmod(places, wide), -1).astype(np.int32)
    return Strongest(order.astype(np.int32), where, np.take_along_axis(values, order, axis=1))


@parallel.compiled
def _peaks(model, names):
    def run(state, images):
        seen = staged(model, state, normalise(images, state.norm))
        flat = [seen[name].astype(jnp.float32).reshape(len(images), -1, seen[name].shape[-1]) for name in names]
        return [(maps.max(1), maps.argmax(1)) for maps in flat]

    return jax.jit(run)
