"""Measuring a state: every example counted exactly once, whatever the batch, the number of examples or the devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import metrics, parallel
from jaxcnn.arguments import ArgumentError, check_choice, check_integer
from jaxcnn.augment import normalize
from jaxcnn.data import Split, verify_images, verify_split
from jaxcnn.input_pipeline import InputPipeline, gather_batch, input_pipeline
from jaxcnn.models.calling import (
    call,
    check_outputs,
    check_single_output,
    foreign_variables_error,
    is_library_model,
    verify_model,
)
from jaxcnn.models.calling import outputs_and_targets as outputs_and_targets
from jaxcnn.models.norm import batch_moments, non_batch_norm_statistic
from jaxcnn.state import State, eval_state, image_shape_of

T = TypeVar("T")
TESTED = 500 * 64 * 64
"""Pixels measured at a time at most: 500 images of up to 64x64, 40 of 224x224, whose maps would not fit many a memory."""


def _outputs(model, state, inputs) -> Any:
    return call(model, {"params": state.params, **state.model_state}, inputs, train=False)


@parallel.cached_program
def make_eval_step(
    model: nn.Module, strategy: parallel.Strategy, loss: str = "cross-entropy", tuned: bool = False
) -> Callable[[Any, InputPipeline, int, int], metrics.Metrics]:
    """`measure(state, fed, n, batch) -> Metrics` over n examples, for a state that `strategy` has replicated already."""

    def step(sums, fixed, index):
        state, split = fixed
        numbers, images, labels = gather_batch(split, index)
        inputs = normalize(images, state.normalizer)
        outputs, target = outputs_and_targets(_outputs(model, state, inputs), inputs, labels, loss)
        new = metrics.count(outputs, target, numbers >= 0, loss)
        return metrics.add(sums, jax.lax.psum(new, strategy.axis) if strategy.axis else new)

    fold = strategy.compile_steps(step, tuned)

    def measure(state, fed, n, batch):
        sums = strategy.replicate(metrics.zeros())
        slim = state._replace(opt_state=(), metrics=())
        for piece in fed.chunks(parallel.padded_batches(n, batch, len(strategy.devices))):
            sums = fold(sums, (slim, fed.split), piece)
        return strategy.fetch(sums)

    return measure


def with_axis_name(model: nn.Module, axis: str | None) -> nn.Module:
    """`model` for an axis that `jax.pmap` splits the batch over; ArgumentError if it has no field for it."""
    if axis is None:
        return model
    if hasattr(model, "axis"):
        return model.clone(axis=axis)
    raise ArgumentError(
        f"{type(model).__name__} has no field `axis`, so under pmap its BN would see one device's share only; "
        "add the field and pass it to BN's axis_name, or write strategy='jit'"
    )


def default_batch_size(images: np.ndarray, batch: int | None = None) -> int:
    """Images to a batch: `batch`, or `TESTED` pixels and at most 500 images; ArgumentError for what is no number of images.

    Example:
      >>> default_batch_size(np.zeros((1, 32, 32, 3))), default_batch_size(np.zeros((1, 224, 224, 3)))
      (500, 40)
    """
    if batch is None:
        return max(1, min(500, TESTED // (images.shape[1] * images.shape[2])))
    return check_integer("batch", batch, example=100)


_known: dict[Any, Any] = {}


def check_once(key: tuple[Any, ...], variables: Any, find: Callable[[], T]) -> T:
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
    """ArgumentError if the outputs of a model that is not the library's do not fit the labels."""
    variables, places = {"params": state.params, **state.model_state}, (split.images.shape[1:], split.labels.shape[1:])

    def find():
        images = jax.ShapeDtypeStruct((97, *places[0]), np.float32)
        return check_outputs(model, variables, images, jax.ShapeDtypeStruct((97, *places[1]), np.int32), loss)[-1]

    width = check_once(("evaluate", model, places, loss), variables, find)
    if loss != "reconstruction" and (most := int(split.labels.max())) >= width:
        raise ArgumentError(
            f"the labels go up to {most}, but the model gives {width} outputs; expected one for each class. Build the "
            f"model with at least {most + 1} outputs."
        )


def evaluate(
    model: nn.Module,
    state: State,
    split: Split,
    *,
    batch: int | None = None,
    strategy: parallel.Strategy | None = None,
    loss: str = "cross-entropy",
) -> metrics.Metrics:
    """The sums of `split` under `state`, in test mode: one view of each image, each image once.

    Args:
      model: the network.
      state: as `train` yields it.
      split: uint8 images [n, h, w, c] and int32 labels [n], or masks [n, h, w].
      batch: images at a time, by default `default_batch_size(images)`; it changes speed and memory only.
      strategy: where to run; all devices by default.
      loss: what is summed, a name in `jaxcnn.metrics.LOSSES`.

    Raises:
      ArgumentError, DataError: for an unknown loss, no images, or arrays of another shape or type.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> data, recipe = load_dataset("digits"), Recipe(model="plain8")
      >>> model = create_model("plain8", 10)
      >>> int(evaluate(model, init_state(model, create_optimizer(recipe), recipe, data), data.test).num_examples)
      360
    """
    strategy = parallel.check_strategy(strategy)
    shape = image_shape_of(model, state)
    check_choice("loss", loss, metrics.LOSSES)
    classes = getattr(model, "classes", None)
    verify_split("split", split, classes, shape, may_be_empty=True)
    if not len(split.labels):
        raise ArgumentError("the split to evaluate is empty; expected at least one image")
    batch, judged = default_batch_size(split.images, batch), eval_state(state)
    if not is_library_model(model):
        _check_labels(model, judged, split, loss)
    measure = make_eval_step(model, strategy, loss, strategy.should_optimize(split.images.size))
    return measure(strategy.replicate(judged), input_pipeline(split, strategy), len(split.labels), batch)


@parallel.cached_program
def loss_fn(model: nn.Module, loss: str = "cross-entropy") -> Callable[..., jax.Array]:
    """Return `loss(params, model_state, inputs, labels) -> float32 []`, the mean loss in training mode.

    The same arguments give the same function object, so that what is compiled for it is found again.

    Args:
      model: the network; BN normalises by the inputs' own moments.
      loss: a name in `jaxcnn.metrics.LOSSES`.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer, sharpness
      >>> from jaxcnn.state import init_state
      >>> data, model, recipe = load_dataset("digits"), create_model("mlp", 10), Recipe(model="mlp")
      >>> state = init_state(model, create_optimizer(recipe), recipe, data)
      >>> inputs = normalize(data.train.images[:100], state.normalizer)
      >>> sharpness(loss_fn(model), state.params, state.model_state, inputs, data.train.labels[:100]) > 0
      True
    """
    verify_model(model)
    check_choice("loss", loss, metrics.LOSSES)

    def mean(params, stats, inputs, labels):
        variables, key = {"params": params, **stats}, jax.random.PRNGKey(0)
        outputs, _ = call(model, variables, inputs, train=True, mutable=[*stats, "aux"], key=key)
        outputs, target = outputs_and_targets(outputs, inputs, labels, loss)
        return metrics.LOSSES[loss](outputs, target).mean()

    return mean


@parallel.cached_program
def _predictor(model):
    def outputs(state, images):
        found = _outputs(model, state, normalize(images, state.normalizer))
        check_single_output(found)
        return found

    return jax.jit(outputs)


def predict(model: nn.Module, state: State, images: np.ndarray, *, batch: int | None = None) -> np.ndarray:
    """What the model gives, such as logits float32 [n, classes], for uint8 images [n, h, w, c], n > 0, in test mode.

    Args:
      batch: images at a time, by default `default_batch_size(images)`; it changes speed and memory only.

    Raises:
      DataError: for other arrays.
      ArgumentError: for what is no model or no state, or a model that does not give one array.
    """
    verify_images("images", images, image_shape_of(model, state))
    slim = eval_state(state)._replace(opt_state=(), metrics=())
    rows = parallel.padded_batches(len(images), default_batch_size(images, batch), 1)
    logits = [np.asarray(_predictor(model)(slim, images[index])) for index in rows]
    return np.concatenate(logits)[: len(images)]


@parallel.cached_program
def _moments(model, strategy):
    fields: dict[str, Any] = {"bn_momentum": 0.0} if hasattr(model, "bn_momentum") else {}
    batchwise = with_axis_name(model, strategy.axis).clone(**fields)

    def step(carry, fixed, index):
        state, split = fixed
        inputs = normalize(gather_batch(split, index)[1], state.normalizer)
        variables = {"params": state.params, **state.model_state}
        with batch_moments():
            _, new = call(batchwise, variables, inputs, train=True, mutable=[*state.model_state, "aux"], key=state.rng)
        total, batches = carry
        if jax.tree.map(jnp.shape, new["batch_stats"]) != jax.tree.map(jnp.shape, total):
            raise foreign_variables_error(model, "batch_stats differ")
        # Mean squares average over batches as means do; variances do not.
        squares = _spreads(new["batch_stats"], lambda mean, var: var + jnp.square(mean))
        return jax.tree.map(jnp.add, total, squares), batches + 1

    return strategy.compile_steps(step)


def _spreads(stats: Any, spread: Callable[[Any, Any], Any]) -> Any:
    """`stats` with `spread(mean, var)` for the variance of every layer."""
    if set(stats) == {"mean", "var"}:
        return {"mean": stats["mean"], "var": spread(stats["mean"], stats["var"])}
    return {name: _spreads(part, spread) for name, part in stats.items()}


def _check_norms(model, state, shape) -> None:
    """ArgumentError unless every statistic of the model is of a BN, so that its average over batches means something."""
    name, stats = (
        type(model).__name__,
        {key: state.model_state[key] for key in ("batch_stats",) if key in state.model_state},
    )
    if not jax.tree.leaves(stats):
        raise ArgumentError(f"precise_bn is set, but {name} has no BN to average; write precise_bn=0")
    if is_library_model(model):
        return
    found: set[tuple[str, ...]] = set()

    def run(variables, inputs):
        with batch_moments(found):
            return call(
                model, variables, inputs, train=True, mutable=[*state.model_state, "aux"], key=jax.random.PRNGKey(0)
            )

    jax.eval_shape(run, {"params": state.params, **state.model_state}, jax.ShapeDtypeStruct(shape, np.float32))
    if other := non_batch_norm_statistic(stats, found, lambda _: True):
        raise ArgumentError(
            f"precise_bn is set, but {other} of {name} is not of a BatchNorm; expected none other. Write precise_bn=0."
        )


def recompute_batch_stats(
    model: nn.Module, state: State, split: Split, n: int, *, batch: int = 128, strategy: parallel.Strategy | None = None
) -> State:
    """`state` with BN's moving averages replaced by exact averages over the first `n` images of `split`.

    The authors' released networks were tested so ("precise BN"); images are not augmented. Whole batches are used:
    the last n mod batch images are left out.

    Raises:
      ArgumentError: for a model without BN, a batch that the devices cannot share, or n smaller than a batch or larger than
        the split.
    """
    strategy = parallel.check_strategy(strategy)
    verify_split("split", split, getattr(model, "classes", None), image_shape_of(model, state))
    batch, n = check_integer("batch", batch, example=128), check_integer("n", n, example=5000)
    strategy.check(batch)
    _check_norms(model, state, (batch, *split.images.shape[1:]))
    if not batch <= n <= len(split.labels):
        raise ArgumentError(f"precise_bn is {n}; expected {batch} (one batch) to {len(split.labels)} images, or 0")
    state = eval_state(state)
    slim = strategy.replicate(state._replace(opt_state=(), metrics=()))
    total = strategy.replicate((jax.tree.map(np.zeros_like, dict(state.model_state["batch_stats"])), np.int32(0)))
    fold, order = _moments(model, strategy), np.arange(n // batch * batch, dtype=np.int32).reshape(-1, batch)
    fed = input_pipeline(split, strategy)
    for piece in fed.chunks(order):
        total = fold(total, (slim, fed.split), piece)
    summed, batches = strategy.fetch(total)
    averages = jax.tree.map(lambda x: x / np.float32(batches), summed)
    exact = _spreads(averages, lambda mean, square: square - np.square(mean))
    return state._replace(model_state={**state.model_state, "batch_stats": exact})
