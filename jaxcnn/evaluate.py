"""Measuring a state: every example counted exactly once, whatever the batch, the number of examples or the devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import metrics, parallel
from jaxcnn.arguments import RecipeError, one_of, whole_number
from jaxcnn.augment import normalise
from jaxcnn.data import Split, verify_images, verify_split
from jaxcnn.feed import Feed, examples, feed
from jaxcnn.models.calling import call, check_outputs, foreign_variables, in_library, one_array, verify_model
from jaxcnn.models.calling import compared as compared
from jaxcnn.models.frozen import batch_moments, other_statistics
from jaxcnn.state import State, at_test, image_shape_of

T = TypeVar("T")
TESTED = 500 * 64 * 64
"""Pixels measured at a time at most: 500 images of up to 64x64, 40 of 224x224, whose maps would not fit many a memory."""


def _outputs(model, state, inputs) -> Any:
    return call(model, {"params": state.params, **state.stats}, inputs, train=False)


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


def mapped(model: nn.Module, axis: str | None) -> nn.Module:
    """`model` for an axis that `jax.pmap` splits the batch over; RecipeError if it has no field for it."""
    if axis is None:
        return model
    if hasattr(model, "axis"):
        return model.clone(axis=axis)
    raise RecipeError(
        f"{type(model).__name__} has no field `axis`, so under pmap its BN would see one device's share only; "
        "add the field and pass it to BN's axis_name, or write driver='jit'"
    )


def fitting(images: np.ndarray, batch: int | None = None) -> int:
    """Images to a batch: `batch`, or `TESTED` pixels and at most 500 images; RecipeError for what is no number of images.

    Example:
      >>> fitting(np.zeros((1, 32, 32, 3))), fitting(np.zeros((1, 224, 224, 3)))
      (500, 40)
    """
    if batch is None:
        return max(1, min(500, TESTED // (images.shape[1] * images.shape[2])))
    return whole_number("batch", batch, write=100)


_known: dict[Any, Any] = {}


def once(key: tuple[Any, ...], variables: Any, find: Callable[[], T]) -> T:
    """`find()`, remembered by `key` and the shapes of `variables`: tracing a network takes up to seconds."""
    leaves, tree = jax.tree.flatten(variables)
    whole = (parallel.hashable(key), tree, tuple((np.shape(leaf), str(leaf.dtype)) for leaf in leaves))
    if whole not in _known:
        value = find()
        if len(_known) >= 64:
            _known.clear()
        _known[whole] = value
    return _known[whole]


def _check_labels(model, state, split, loss) -> None:
    """RecipeError if the outputs of a model that is not the library's do not fit the labels."""
    variables, places = {"params": state.params, **state.stats}, (split.images.shape[1:], split.labels.shape[1:])

    def find():
        images = jax.ShapeDtypeStruct((97, *places[0]), np.float32)
        return check_outputs(model, variables, images, jax.ShapeDtypeStruct((97, *places[1]), np.int32), loss)[-1]

    width = once(("evaluate", model, places, loss), variables, find)
    if loss != "reconstruction" and (most := int(split.labels.max())) >= width:
        raise RecipeError(
            f"the labels go up to {most}, but the model gives {width} outputs; expected one for each class. Build the "
            f"model with at least {most + 1} outputs."
        )


def evaluate(
    model: nn.Module,
    state: State,
    split: Split,
    *,
    batch: int | None = None,
    driver: parallel.Driver | None = None,
    loss: str = "cross-entropy",
) -> metrics.Sums:
    """The sums of `split` under `state`, in test mode: one view of each image, each image once.

    Args:
      model: the network.
      state: as `fit` yields it.
      split: uint8 images [n, h, w, c] and int32 labels [n], or masks [n, h, w].
      batch: images at a time, by default `fitting(images)`; it changes speed and memory only.
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
    driver = parallel.chosen(driver)
    shape = image_shape_of(model, state)
    one_of("loss", loss, metrics.LOSSES)
    classes = getattr(model, "classes", None)
    verify_split("split", split, classes, shape, may_be_empty=True)
    if not len(split.labels):
        raise RecipeError("the split to evaluate is empty; expected at least one image")
    batch, judged = fitting(split.images, batch), at_test(state)
    if not in_library(model):
        _check_labels(model, judged, split, loss)
    measure = counter(model, driver, loss, driver.tunes(split.images.size))
    return measure(driver.replicate(judged), feed(split, driver), len(split.labels), batch)


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
    verify_model(model)
    one_of("loss", loss, metrics.LOSSES)

    def mean(params, stats, inputs, labels):
        variables, key = {"params": params, **stats}, jax.random.PRNGKey(0)
        outputs, _ = call(model, variables, inputs, train=True, mutable=[*stats, "aux"], key=key)
        outputs, target = compared(outputs, inputs, labels, loss)
        return metrics.LOSSES[loss](outputs, target).mean()

    return mean


@parallel.compiled
def _predictor(model):
    def outputs(state, images):
        found = _outputs(model, state, normalise(images, state.norm))
        one_array(found)
        return found

    return jax.jit(outputs)


def predict(model: nn.Module, state: State, images: np.ndarray, *, batch: int | None = None) -> np.ndarray:
    """What the model gives, such as logits float32 [n, classes], for uint8 images [n, h, w, c], n > 0, in test mode.

    Args:
      batch: images at a time, by default `fitting(images)`; it changes speed and memory only.

    Raises:
      DataError: for other arrays.
      RecipeError: for what is no model or no state, or a model that does not give one array.
    """
    verify_images("images", images, image_shape_of(model, state))
    slim = at_test(state)._replace(opt=(), sums=())
    rows = parallel.filled(len(images), fitting(images, batch), 1)
    logits = [np.asarray(_predictor(model)(slim, images[index])) for index in rows]
    return np.concatenate(logits)[: len(images)]


@parallel.compiled
def _moments(model, driver):
    fields: dict[str, Any] = {"bn_momentum": 0.0} if hasattr(model, "bn_momentum") else {}
    batchwise = mapped(model, driver.axis).clone(**fields)

    def step(carry, fixed, index):
        state, split = fixed
        inputs = normalise(examples(split, index)[1], state.norm)
        variables = {"params": state.params, **state.stats}
        with batch_moments():
            _, new = call(batchwise, variables, inputs, train=True, mutable=[*state.stats, "aux"], key=state.key)
        total, batches = carry
        if jax.tree.map(jnp.shape, new["batch_stats"]) != jax.tree.map(jnp.shape, total):
            raise foreign_variables(model, "batch_stats differ")
        # Mean squares average over batches as means do; variances do not.
        squares = _spreads(new["batch_stats"], lambda mean, var: var + jnp.square(mean))
        return jax.tree.map(jnp.add, total, squares), batches + 1

    return driver.fold(step)


def _spreads(stats: Any, spread: Callable[[Any, Any], Any]) -> Any:
    """`stats` with `spread(mean, var)` for the variance of every layer."""
    if set(stats) == {"mean", "var"}:
        return {"mean": stats["mean"], "var": spread(stats["mean"], stats["var"])}
    return {name: _spreads(part, spread) for name, part in stats.items()}


def _check_norms(model, state, shape) -> None:
    """RecipeError unless every statistic of the model is of a BN, so that its average over batches means something."""
    name, stats = type(model).__name__, {key: state.stats[key] for key in ("batch_stats",) if key in state.stats}
    if not jax.tree.leaves(stats):
        raise RecipeError(f"precise_bn is set, but {name} has no BN to average; write precise_bn=0")
    if in_library(model):
        return
    found: set[tuple[str, ...]] = set()

    def run(variables, inputs):
        with batch_moments(found):
            return call(model, variables, inputs, train=True, mutable=[*state.stats, "aux"], key=jax.random.PRNGKey(0))

    jax.eval_shape(run, {"params": state.params, **state.stats}, jax.ShapeDtypeStruct(shape, np.float32))
    if other := other_statistics(stats, found, lambda _: True):
        raise RecipeError(
            f"precise_bn is set, but {other} of {name} is not of a BatchNorm; expected none other. Write precise_bn=0."
        )


def precise(
    model: nn.Module, state: State, split: Split, n: int, *, batch: int = 128, driver: parallel.Driver | None = None
) -> State:
    """`state` with BN's moving averages replaced by exact averages over the first `n` images of `split`.

    The authors' released networks were tested so ("precise BN"); images are not augmented. Whole batches are used:
    the last n mod batch images are left out.

    Raises:
      RecipeError: for a model without BN, a batch that the devices cannot share, or n smaller than a batch or larger than the
        split.
    """
    driver = parallel.chosen(driver)
    verify_split("split", split, getattr(model, "classes", None), image_shape_of(model, state))
    batch, n = whole_number("batch", batch, write=128), whole_number("n", n, write=5000)
    driver.check(batch)
    _check_norms(model, state, (batch, *split.images.shape[1:]))
    if not batch <= n <= len(split.labels):
        raise RecipeError(f"precise_bn is {n}; expected {batch} (one batch) to {len(split.labels)} images, or 0")
    state = at_test(state)
    slim = driver.replicate(state._replace(opt=(), sums=()))
    total = driver.replicate((jax.tree.map(np.zeros_like, dict(state.stats["batch_stats"])), np.int32(0)))
    fold, order = _moments(model, driver), np.arange(n // batch * batch, dtype=np.int32).reshape(-1, batch)
    fed = feed(split, driver)
    for piece in fed.pieces(order):
        total = fold(total, (slim, fed.fixed), piece)
    summed, batches = driver.fetch(total)
    averages = jax.tree.map(lambda x: x / np.float32(batches), summed)
    exact = _spreads(averages, lambda mean, square: square - np.square(mean))
    return state._replace(stats={**state.stats, "batch_stats": exact})
