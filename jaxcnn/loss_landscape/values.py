"""The loss and the error at points around a state, one after another, with one compiled program."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxcnn import metrics, parallel
from jaxcnn.augment import normalize
from jaxcnn.data import Split, verify_split
from jaxcnn.evaluation import make_eval_step, outputs_and_targets
from jaxcnn.input_pipeline import gather_batch, input_pipeline
from jaxcnn.recipe import ArgumentError, check_choice
from jaxcnn.state import State, eval_state

STATISTICS = ("moving", "images")
"""What BN normalises by: the moving averages of the state, or at every point the moments of the images themselves."""


class LandscapeValues(NamedTuple):
    """What was measured on a line or a plane; what is not measured yet is nan."""

    loss: np.ndarray
    """float64 [m] or [m, m'], of an image, in nats for the cross-entropy. A network may give inf or nan far out."""
    error_percent: np.ndarray
    """float64 of the same shape: percent classified wrongly."""
    done: int
    """Points measured, counted along the last axis first."""


def evaluate_along(
    model: nn.Module,
    state: State,
    split: Split,
    directions: Sequence[Any],
    steps: Sequence[Sequence[float] | np.ndarray],
    *,
    statistics: str = "moving",
    batch: int = 500,
    strategy: parallel.Strategy | None = None,
    loss: str = "cross-entropy",
    so_far: LandscapeValues | None = None,
    watch: Callable[[LandscapeValues], Any] = lambda values: None,
    stop: Callable[[], Any] = lambda: False,
) -> LandscapeValues:
    """The loss of `split` at the parameters plus every combination of multiples of one direction or two.

    The network is as in test, by `evaluate`'s own program (0 steps away the numbers are its own). Each point is one more set of
    parameters, and only one is there at a time.

    Args:
      model, split, batch, strategy, loss: as in `evaluate`.
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
      ArgumentError, DataError: as `evaluate`, for directions that do not fit the parameters, and for steps that are no finite
        numbers or not as many lists as directions.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.loss_landscape import random_direction
      >>> from jaxcnn.state import init_state
      >>> data, model, recipe = load_dataset("digits"), create_model("mlp", 10), Recipe(model="mlp")
      >>> state = init_state(model, create_optimizer(recipe), recipe, data)
      >>> way = random_direction(jax.random.key(0), state.params)
      >>> evaluate_along(model, state, data.test, [way], [[-1, 0, 1]]).loss.shape
      (3,)
    """
    strategy, state = parallel.check_strategy(strategy), eval_state(state)
    check_choice("statistics", statistics, STATISTICS)
    check_choice("loss", loss, metrics.LOSSES)
    _fits(state.params, directions)
    multiples = _multiples(directions, steps)
    verify_split("split", split, getattr(model, "classes", None), np.shape(state.normalizer.mean))
    values = _begun(so_far, tuple(map(len, multiples)))
    measure = _measure(model, split, strategy, loss, batch if statistics == "moving" else None)
    centre, ways = strategy.replicate((state._replace(opt_state=(), metrics=()), tuple(directions)))
    for place in itertools.islice(np.ndindex(values.loss.shape), values.done, None):
        at = np.array([part[i] for part, i in zip(multiples, place, strict=True)], np.float32)
        sums = measure(centre._replace(params=_moved(centre.params, ways, at)))
        values.loss[place], values.error_percent[place] = sums.mean_loss, sums.error_percent
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


def _measure(model, split, strategy, loss, batch) -> Callable[[Any], metrics.Metrics]:
    """The sums of the split for a state on the devices; batch None is training mode, all images at once."""
    n, fed = len(split.labels), input_pipeline(split, strategy)
    if batch is not None:
        count = make_eval_step(model, strategy, loss, strategy.should_optimize(split.images.size))
        return lambda state: count(state, fed, n, batch)
    strategy.check(n)
    fold, order = _at_once(model, strategy, loss), np.arange(n, dtype=np.int32)[None]

    def measure(state):
        (piece,) = fed.chunks(order)
        return strategy.fetch(fold(strategy.replicate(metrics.zeros()), (state, fed.split), piece))

    return measure


@parallel.cached_program
def _at_once(model, strategy, loss):
    given = {name: value for name, value in (("axis", strategy.axis), ("bn_group", 0)) if hasattr(model, name)}
    whole = model.clone(**given)

    def step(sums, fixed, index):
        state, split = fixed
        numbers, images, labels = gather_batch(split, index)
        inputs, rngs = normalize(images, state.normalizer), {"dropout": jax.random.PRNGKey(0)}
        variables = {"params": state.params, **state.model_state}
        outputs, _ = whole.apply(variables, inputs, train=True, mutable=list(state.model_state), rngs=rngs)
        outputs, target = outputs_and_targets(outputs, inputs, labels, loss)
        new = metrics.count(outputs, target, numbers >= 0, loss)
        return metrics.add(sums, jax.lax.psum(new, strategy.axis) if strategy.axis else new)

    return strategy.compile_steps(step)


def _fits(params: Any, directions: Sequence[Any]) -> None:
    if len(directions) not in (1, 2):
        raise ArgumentError(f"there are {len(directions)} directions; expected one (a line) or two (a plane)")
    mine = jax.tree.map(np.shape, params, is_leaf=lambda x: hasattr(x, "shape"))
    for i, way in enumerate(directions):
        if jax.tree.map(np.shape, way, is_leaf=lambda x: hasattr(x, "shape")) != mine:
            raise ArgumentError(f"directions[{i}] is not like the parameters; write direction(key, state.params)")


def _multiples(directions, steps) -> list[np.ndarray]:
    found = [np.asarray(part, np.float64) for part in steps]
    shapes = [part.shape for part in found]
    if len(found) != len(directions) or not all(
        part.ndim == 1 and part.size and np.isfinite(part).all() for part in found
    ):
        raise ArgumentError(
            f"steps has shapes {shapes}; expected a list of finite numbers for each of {len(directions)} directions"
        )
    return found


def _begun(so_far: LandscapeValues | None, shape: tuple[int, ...]) -> LandscapeValues:
    if so_far is None:
        return LandscapeValues(np.full(shape, np.nan), np.full(shape, np.nan), 0)
    if so_far.loss.shape != shape:
        raise ArgumentError(
            f"so_far has shape {so_far.loss.shape} and steps ask for {shape}; give what the same steps left"
        )
    return so_far._replace(loss=so_far.loss.copy(), error_percent=so_far.error_percent.copy())
