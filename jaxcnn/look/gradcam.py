"""Grad-CAM: where in an image a network finds the reasons for a class (Selvaraju et al. 2017, arXiv:1610.02391)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import parallel
from jaxcnn.augment import normalise
from jaxcnn.data import verify_images
from jaxcnn.models.layers import NUDGES
from jaxcnn.recipe import RecipeError, one_of
from jaxcnn.state import State, at_test


def stages(model: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The named stages of `model` for images of `shape` [h, w, c], and the shape of each for one image; nothing is computed.

    Example:
      >>> from jaxcnn import build
      >>> stages(build("resnet8", 10), (32, 32, 3))
      {'stem': (32, 32, 16), 'stage1': (32, 32, 16), 'stage2': (16, 16, 32), 'stage3': (8, 8, 64), 'pool': (64,)}
    """

    names: list[str] = []  # a dict would come back from tracing in the order of the alphabet

    def run(image):
        (_, seen), _ = model.init_with_output(jax.random.key(0), image, stages=True)
        names.extend(seen)
        return list(seen.values())

    made = jax.eval_shape(run, jax.ShapeDtypeStruct((1, *shape), "float32"))
    return {name: maps.shape[1:] for name, maps in zip(names, made, strict=True)}


def gradcam(
    model: nn.Module,
    state: State,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    stage: str | None = None,
    *,
    batch: int = 100,
) -> np.ndarray:
    """Heat maps, float32 [n, h, w] in 0..1: how much each place of `stage` speaks for a class, at the size of the images.

    With A [h', w', k] the maps of the stage and y the class's logit, the weight of map k is the mean over places of dy/dA_k,
    and the heat is the positive part of the weighted sum of maps (equations 1 and 2), divided by its largest value and enlarged
    bilinearly. Where nothing speaks for the class it is 0 everywhere.

    Args:
      model: a network that hands out `stages`.
      state: as `fit` yields it.
      images: uint8 [n, h, w, c].
      classes: int [n], the classes asked about; None asks for what is predicted.
      stage: the name of one whose output is maps; None is the last such one, which the paper found best.
      batch: images at a time.

    Raises:
      RecipeError: for a stage that the model lacks, or that is no longer a map; those there are are listed.
      DataError: for other images.

    Example:
      >>> from jaxcnn import Recipe, build, load, optimizer
      >>> from jaxcnn.state import start
      >>> data, model, recipe = load("digits"), build("resnet8", 10, width=4), Recipe(dataset="digits", model="resnet8")
      >>> heat = gradcam(model, start(model, optimizer(recipe), recipe, data), data.test.images[:3])
      >>> heat.shape, float(heat.max()) <= 1
      ((3, 8, 8), True)
    """
    verify_images("images", images, np.shape(state.norm.mean))
    stage = mapped(model, images.shape[1:], stage)
    asked = np.full(len(images), -1, np.int32) if classes is None else np.asarray(classes, np.int32)
    if asked.shape != (len(images),):
        raise RecipeError(f"classes has shape {asked.shape}; expected one class for each of the {len(images)} images")
    slim = at_test(state)._replace(opt=(), sums=())
    rows = parallel.filled(len(images), batch, 1)
    heat = [np.asarray(_heater(model, stage)(slim, images[index], asked[index])) for index in rows]
    return np.concatenate(heat)[: len(images)]


def mapped(model: nn.Module, shape: tuple[int, ...], stage: str | None) -> str:
    """`stage`, or the last one whose output is maps [h', w', k] of more than one place; RecipeError lists those."""
    maps = [name for name, found in stages(model, shape).items() if len(found) == 3 and found[0] * found[1] > 1]
    if not maps:
        raise RecipeError(f"{type(model).__name__} has no stage whose output is maps; Grad-CAM needs a convolution's")
    return one_of("stage", stage, maps) if stage is not None else maps[-1]


@parallel.compiled
def _heater(model, stage):
    def one(state, image, label):
        inputs = normalise(image, state.norm)[None]
        variables = {"params": state.params, **state.stats}
        _, seen = model.apply(variables, inputs, train=False, stages=True)

        def logit(nudge):
            outputs = model.apply({**variables, NUDGES: {stage: nudge}}, inputs, train=False)[0]
            return outputs[jnp.where(label < 0, outputs.argmax(), label)]

        maps = seen[stage][0].astype(jnp.float32)  # [h', w', k]
        slopes = jax.grad(logit)(jnp.zeros_like(seen[stage]))[0].astype(jnp.float32)
        return weighted(maps, slopes, image.shape[:2])

    return jax.jit(jax.vmap(one, (None, 0, 0)))


def weighted(maps: jax.Array, slopes: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Grad-CAM's equations 1 and 2 of one image: maps and the logit's gradient, [h', w', k] -> heat [h, w] in 0..1."""
    heat = jax.nn.relu((maps * slopes.mean((0, 1), keepdims=True)).sum(-1))
    heat = heat / jnp.maximum(heat.max(), jnp.finfo(heat.dtype).tiny)
    return jax.image.resize(heat, size, "linear")
