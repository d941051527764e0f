"""Measuring a state: every example counted exactly once, whatever the batch, the number of examples or the devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import metrics, parallel
from jaxcnn.augment import normalise
from jaxcnn.data import Split, verify_images, verify_split
from jaxcnn.feed import Feed, examples, feed
from jaxcnn.recipe import RecipeError, one_of
from jaxcnn.state import State, at_test


def _outputs(model, state, inputs) -> Any:
    return model.apply({"params": state.params, **state.stats}, inputs, train=False)


@parallel.compiled
def counter(
    model: nn.Module, driver: parallel.Driver, loss: str = "cross-entropy", tuned: bool = False
) -> Callable[[Any, Feed, int, int], metrics.Sums]:
    """`measure(state, fed, n, batch) -> Sums` over n examples, for a state that `driver` has replicated already."""

    def step(sums, fixed, index):
        state, split = fixed
        numbers, images, labels = examples(split, index)
        inputs = normalise(images, state.norm)
        outputs, target = compared(_outputs(model, state, inputs), inputs, labels, loss)
        new = metrics.count(outputs, target, numbers >= 0, loss)
        return metrics.add(sums, jax.lax.psum(new, driver.axis) if driver.axis else new)

    fold = driver.fold(step, tuned)

    def measure(state, fed, n, batch):
        sums = driver.replicate(metrics.zeros())
        slim = state._replace(opt=(), sums=())
        for piece in fed.pieces(parallel.filled(n, batch, len(driver.devices))):
            sums = fold(sums, (slim, fed.fixed), piece)
        return driver.fetch(sums)

    return measure


def compared(outputs: jax.Array, inputs: jax.Array, labels: jax.Array, loss: str) -> tuple[jax.Array, jax.Array]:
    """The outputs and what `loss` compares them with; RecipeError, while tracing, if their shapes do not fit."""
    target = metrics.target(loss, inputs, labels)
    if why := metrics.mismatch(loss, outputs.shape, target.shape):
        raise RecipeError(why)
    return outputs, target


def evaluate(
    model: nn.Module,
    state: State,
    split: Split,
    *,
    batch: int = 500,
    driver: parallel.Driver | None = None,
    loss: str = "cross-entropy",
) -> metrics.Sums:
    """The sums of `split` under `state`, in test mode: one view of each image, each image once.

    Args:
      model: the network.
      state: as `fit` yields it.
      split: uint8 images [n, h, w, c] and int32 labels [n], or masks [n, h, w].
      batch: images at a time; it changes speed and memory only.
      driver: where to run; all devices by default.
      loss: what is summed, a name in `jaxcnn.metrics.LOSSES`.

    Raises:
      RecipeError, DataError: for an unknown loss, no images, or arrays of another shape or type.

    Example:
      >>> from jaxcnn import Recipe, build, load, optimizer
      >>> from jaxcnn.state import start
      >>> data, recipe = load("digits"), Recipe(model="plain8")
      >>> model = build("plain8", 10)
      >>> int(evaluate(model, start(model, optimizer(recipe), recipe, data), data.test).n)
      360
    """
    driver = driver or parallel.driver()
    one_of("loss", loss, metrics.LOSSES)
    classes, shape = getattr(model, "classes", None), np.shape(state.norm.mean)
    verify_split("split", split, classes, shape, may_be_empty=True)
    if not len(split.labels):
        raise RecipeError("the split to evaluate is empty; expected at least one image")
    measure = counter(model, driver, loss, driver.tunes(split.images.size))
    return measure(driver.replicate(at_test(state)), feed(split, driver), len(split.labels), batch)


@parallel.compiled
def objective(model: nn.Module, loss: str = "cross-entropy") -> Callable[..., jax.Array]:
    """`objective(params, stats, inputs, labels) -> float32 []`: the mean loss in training mode, a function to differentiate.

    The same arguments give the same function object, so that what is compiled for it is found again.

    Args:
      model: the network; BN normalises by the inputs' own moments.
      loss: a name in `jaxcnn.metrics.LOSSES`.

    Example:
      >>> from jaxcnn import Recipe, build, load, optimizer, sharpness
      >>> from jaxcnn.state import start
      >>> data, model, recipe = load("digits"), build("mlp", 10), Recipe(model="mlp")
      >>> state = start(model, optimizer(recipe), recipe, data)
      >>> inputs = normalise(data.train.images[:100], state.norm)
      >>> sharpness(objective(model), state.params, state.stats, inputs, data.train.labels[:100]) > 0
      True
    """
    one_of("loss", loss, metrics.LOSSES)

    def mean(params, stats, inputs, labels):
        rngs = {"dropout": jax.random.PRNGKey(0)}
        logits, _ = model.apply({"params": params, **stats}, inputs, train=True, mutable=list(stats), rngs=rngs)
        return metrics.LOSSES[loss](logits, labels).mean()

    return mean


@parallel.compiled
def _predictor(model):
    return jax.jit(lambda state, images: _outputs(model, state, normalise(images, state.norm)))


def predict(model: nn.Module, state: State, images: np.ndarray, *, batch: int = 500) -> np.ndarray:
    """What the model gives, such as logits float32 [n, classes], for uint8 images [n, h, w, c], n > 0, in test mode.

    Raises:
      DataError: for other arrays.
    """
    verify_images("images", images, np.shape(state.norm.mean))
    slim = at_test(state)._replace(opt=(), sums=())
    rows = parallel.filled(len(images), batch, 1)
    logits = [np.asarray(_predictor(model)(slim, images[index])) for index in rows]
    return np.concatenate(logits)[: len(images)]


@parallel.compiled
def _moments(model, driver):
    batchwise = model.clone(bn_momentum=0.0, axis=driver.axis)  # the new moving average is the batch's own

    def step(carry, fixed, index):
        state, split = fixed
        inputs = normalise(examples(split, index)[1], state.norm)
        rngs = {"dropout": state.key}
        variables = {"params": state.params, **state.stats}
        _, new = batchwise.apply(variables, inputs, train=True, mutable=list(state.stats), rngs=rngs)
        total, batches = carry
        # Mean squares average over batches as means do; variances do not.
        squares = _spreads(new, lambda mean, var: var + jnp.square(mean))
        return jax.tree.map(jnp.add, total, squares), batches + 1

    return driver.fold(step)


def _spreads(stats: Any, spread: Callable[[Any, Any], Any]) -> Any:
    """`stats` with `spread(mean, var)` for the variance of every layer."""
    if not isinstance(stats, Mapping):
        return stats
    if set(stats) == {"mean", "var"}:
        return {"mean": stats["mean"], "var": spread(stats["mean"], stats["var"])}
    return {name: _spreads(part, spread) for name, part in stats.items()}


def precise(
    model: nn.Module, state: State, split: Split, n: int, *, batch: int = 128, driver: parallel.Driver | None = None
) -> State:
    """`state` with BN's moving averages replaced by exact averages over the first `n` images of `split`.

    The authors' released networks were tested so ("precise BN"); images are not augmented. Whole batches are used:
    the last n mod batch images are left out.

    Raises:
      RecipeError: for a model without BN, or n smaller than a batch or larger than the split.
    """
    driver = driver or parallel.driver()
    if not (hasattr(model, "bn_momentum") and state.stats):
        raise RecipeError(f"precise_bn is set, but {type(model).__name__} has no BN to average; write precise_bn=0")
    if not batch <= n <= len(split.labels):
        raise RecipeError(f"precise_bn is {n}; expected {batch} (one batch) to {len(split.labels)} images, or 0")
    state = at_test(state)
    slim = driver.replicate(state._replace(opt=(), sums=()))
    total = driver.replicate((jax.tree.map(np.zeros_like, state.stats), np.int32(0)))
    fold, order = _moments(model, driver), np.arange(n // batch * batch, dtype=np.int32).reshape(-1, batch)
    fed = feed(split, driver)
    for piece in fed.pieces(order):
        total = fold(total, (slim, fed.fixed), piece)
    summed, batches = driver.fetch(total)
    averages = jax.tree.map(lambda x: x / np.float32(batches), summed)
    return state._replace(stats=_spreads(averages, lambda mean, square: square - np.square(mean)))
