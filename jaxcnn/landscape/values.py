"""The loss and the error at points around a state, one after another, with one compiled program."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxcnn import metrics, parallel
from jaxcnn.augment import normalise
from jaxcnn.data import Split, verify_split
from jaxcnn.evaluate import compared, counter
from jaxcnn.feed import examples, feed
from jaxcnn.recipe import RecipeError, one_of
from jaxcnn.state import State, at_test

STATISTICS = ("moving", "images")
"""What BN normalises by: the moving averages of the state, or at every point the moments of the images themselves."""


class Values(NamedTuple):
    """What was measured on a line or a plane; what is not measured yet is nan."""

    loss: np.ndarray
    """float64 [m] or [m, m'], of an image, in nats for the cross-entropy. A network may give inf or nan far out."""
    error: np.ndarray
    """float64 of the same shape: percent classified wrongly."""
    done: int
    """Points measured, counted along the last axis first."""


def along(
    model: nn.Module,
    state: State,
    split: Split,
    directions: Sequence[Any],
    steps: Sequence[Sequence[float] | np.ndarray],
    *,
    statistics: str = "moving",
    batch: int = 500,
    driver: parallel.Driver | None = None,
    loss: str = "cross-entropy",
    so_far: Values | None = None,
    watch: Callable[[Values], Any] = lambda values: None,
    stop: Callable[[], Any] = lambda: False,
) -> Values:
    """The loss of `split` at the parameters plus every combination of multiples of one direction or two.

    The network is as in test, by `evaluate`'s own program (0 steps away the numbers are its own). Each point is one more set of
    parameters, and only one is there at a time.

    Args:
      model, split, batch, driver, loss: as in `evaluate`.
      state: the centre. Its parameters that are meant for use (`jaxcnn.state.at_test`) are moved.
      directions: one tree or two, like the parameters.
      steps: of each direction the multiples, [m] or [m] and [m'].
      statistics: "moving" is BN by the state's moving averages, which do not move with the parameters: the authors' code
        does this. "images" is training mode on all of the split as one batch, whatever `batch` is: BN follows the parameters
        far from the state, but is not what a test sees (and dropout drops).
      so_far: what an earlier call with the same arguments had when it was stopped; it is gone on from.
      watch: called after every point with what there is; it must not keep the arrays, which change.
      stop: asked after every point; once it answers true, what there is is returned: `done` tells.

    Raises:
      RecipeError, DataError: as `evaluate`, for directions that do not fit the parameters, and for steps that are no finite
        numbers or not as many lists as directions.

    Example:
      >>> from jaxcnn import Recipe, build, load, optimizer
      >>> from jaxcnn.landscape import direction
      >>> from jaxcnn.state import start
      >>> data, model, recipe = load("digits"), build("mlp", 10), Recipe(model="mlp")
      >>> state = start(model, optimizer(recipe), recipe, data)
      >>> way = direction(jax.random.key(0), state.params)
      >>> along(model, state, data.test, [way], [[-1, 0, 1]]).loss.shape
      (3,)
    """
    driver, state = parallel.chosen(driver), at_test(state)
    one_of("statistics", statistics, STATISTICS)
    one_of("loss", loss, metrics.LOSSES)
    _fits(state.params, directions)
    multiples = _multiples(directions, steps)
    verify_split("split", split, getattr(model, "classes", None), np.shape(state.norm.mean))
    values = _begun(so_far, tuple(map(len, multiples)))
    measure = _measure(model, split, driver, loss, batch if statistics == "moving" else None)
    centre, ways = driver.replicate((state._replace(opt=(), sums=()), tuple(directions)))
    for place in itertools.islice(np.ndindex(values.loss.shape), values.done, None):
        at = np.array([part[i] for part, i in zip(multiples, place, strict=True)], np.float32)
        sums = measure(centre._replace(params=_moved(centre.params, ways, at)))
        values.loss[place], values.error[place] = sums.mean_loss, sums.error
        values = values._replace(done=values.done + 1)
        watch(values)
        if stop():
            break
    return values


@jax.jit
def _moved(params, directions, at):
    for i, way in enumerate(directions):
        params = jax.tree.map(lambda w, d, a=at[i]: w + a * d, params, way)
    return params


def _measure(model, split, driver, loss, batch) -> Callable[[Any], metrics.Sums]:
    """The sums of the split for a state on the devices; batch None is training mode, all images at once."""
    n, fed = len(split.labels), feed(split, driver)
    if batch is not None:
        count = counter(model, driver, loss, driver.tunes(split.images.size))
        return lambda state: count(state, fed, n, batch)
    driver.check(n)
    fold, order = _at_once(model, driver, loss), np.arange(n, dtype=np.int32)[None]

    def measure(state):
        (piece,) = fed.pieces(order)
        return driver.fetch(fold(driver.replicate(metrics.zeros()), (state, fed.fixed), piece))

    return measure


@parallel.compiled
def _at_once(model, driver, loss):
    given = {name: value for name, value in (("axis", driver.axis), ("bn_group", 0)) if hasattr(model, name)}
    whole = model.clone(**given)

    def step(sums, fixed, index):
        state, split = fixed
        numbers, images, labels = examples(split, index)
        inputs, rngs = normalise(images, state.norm), {"dropout": jax.random.PRNGKey(0)}
        variables = {"params": state.params, **state.stats}
        outputs, _ = whole.apply(variables, inputs, train=True, mutable=list(state.stats), rngs=rngs)
        outputs, target = compared(outputs, inputs, labels, loss)
        new = metrics.count(outputs, target, numbers >= 0, loss)
        return metrics.add(sums, jax.lax.psum(new, driver.axis) if driver.axis else new)

    return driver.fold(step)


def _fits(params: Any, directions: Sequence[Any]) -> None:
    if len(directions) not in (1, 2):
        raise RecipeError(f"there are {len(directions)} directions; expected one (a line) or two (a plane)")
    mine = jax.tree.map(np.shape, params, is_leaf=lambda x: hasattr(x, "shape"))
    for i, way in enumerate(directions):
        if jax.tree.map(np.shape, way, is_leaf=lambda x: hasattr(x, "shape")) != mine:
            raise RecipeError(f"directions[{i}] is not like the parameters; write direction(key, state.params)")


def _multiples(directions, steps) -> list[np.ndarray]:
    found = [np.asarray(part, np.float64) for part in steps]
    shapes = [part.shape for part in found]
    if len(found) != len(directions) or not all(
        part.ndim == 1 and part.size and np.isfinite(part).all() for part in found
    ):
        raise RecipeError(
            f"steps has shapes {shapes}; expected a list of finite numbers for each of {len(directions)} directions"
        )
    return found


def _begun(so_far: Values | None, shape: tuple[int, ...]) -> Values:
    if so_far is None:
        return Values(np.full(shape, np.nan), np.full(shape, np.nan), 0)
    if so_far.loss.shape != shape:
        raise RecipeError(
            f"so_far has shape {so_far.loss.shape} and steps ask for {shape}; give what the same steps left"
        )
    return so_far._replace(loss=so_far.loss.copy(), error=so_far.error.copy())
