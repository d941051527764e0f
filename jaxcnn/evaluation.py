"""Evaluation of a state.

Every example counts exactly once, whatever the batch, the number of examples or the devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import cpu, metrics, parallel
from jaxcnn.arguments import ArgumentError, check_integer, format_array
from jaxcnn.augment import Normalizer, normalize
from jaxcnn.data import Dataset, Split, verify_images, verify_split
from jaxcnn.input_pipeline import InputPipeline, gather_batch, input_pipeline
from jaxcnn.losses import (
    Batch,
    Loss,
    are_soft,
    as_loss,
    check_all_labels,
    check_class_numbers,
    check_single_output,
    compute_loss,
    has_class_labels,
)
from jaxcnn.models.calling import (
    activation_bytes,
    batch_shapes,
    call,
    check_normalizer,
    check_once,
    check_outputs,
    foreign_variables_error,
    is_library_model,
    loss_metric_dtypes,
    verify_model,
)
from jaxcnn.models.norm import batch_moments, non_batch_norm_statistic
from jaxcnn.state import State, Variables, as_state, eval_state, image_shape_of

MAX_PIXELS = 500 * 64 * 64
"""Maximum number of pixels in a batch of evaluation.

That is 500 images of up to 64x64, or 40 of 224x224, of which more would not fit many memories.
"""


StateT = TypeVar("StateT", State, Variables)


def _outputs(model, state, inputs) -> Any:
    return call(model, {"params": state.params, **state.model_state}, inputs, train=False)


@parallel.cached_program
def make_eval_step(
    model: nn.Module,
    strategy: parallel.Strategy,
    loss: Loss,
    dtypes: tuple[tuple[str, str], ...],
    rewrite_for_cpu: bool = False,
) -> Callable[[Any, InputPipeline, int, int], metrics.Metrics]:
    """Return the function that computes a model's metrics.

    Args:
      model: the network.
      strategy: devices.
      loss: the loss.
      dtypes: of its metrics' sums, as `loss_metric_dtypes` returns them.
      rewrite_for_cpu: as in `Strategy.compile_steps`.

    Returns:
      `measure(state, pipeline, n, batch) -> Metrics` over n examples. `strategy` must have
      replicated the state.
    """

    def step(sums, fixed, index):
        state, split = fixed
        numbers, images, labels = gather_batch(split, index)
        inputs = normalize(images, state.normalizer)
        outputs = _outputs(model, state, inputs)
        losses, values = compute_loss(loss, outputs, Batch(inputs, labels))
        # Negative numbers fill the last batch.
        new = metrics.count(losses, values, numbers >= 0)
        return metrics.add(
            sums, jax.lax.psum(new, strategy.axis_name) if strategy.axis_name else new
        )

    run = strategy.compile_steps(step, rewrite_for_cpu)

    def measure(state, pipeline, n, batch_size):
        sums = strategy.replicate(metrics.zeros(dtypes))
        slim_state = state._replace(opt_state=(), metrics=())
        for chunk in pipeline.chunks(parallel.padded_batches(n, batch_size, len(strategy.devices))):
            sums = run(sums, (slim_state, pipeline.split), chunk)
        return strategy.fetch(sums)

    return measure


def with_axis_name(model: nn.Module, axis_name: str | None) -> nn.Module:
    """Return `model` for a batch that `jax.pmap` splits over `axis_name`.

    A field `axis_name` is set. Without one, `call` averages Flax's BatchNorm over the axis.
    """
    if axis_name is None or not hasattr(model, "axis_name"):
        return model
    return model.clone(axis_name=axis_name)


MAX_ACTIVATION_BYTES = 1 << 30
"""Maximum bytes of the activations of a batch of evaluation, at their peak.

A compiled program takes up to about twice as much, as it keeps some of them longer.
"""


def resolve_batch_size(
    images: np.ndarray,
    batch_size: int | None = None,
    model: nn.Module | None = None,
    state: State | None = None,
) -> int:
    """Return `batch_size`, or the default number of images in a batch.

    The default is at most `MAX_PIXELS` pixels and at most 500 images. With a model, its activations
    are at most `MAX_ACTIVATION_BYTES` as well.

    Args:
      images: [n, h, w, c].
      batch_size: as a caller wrote it; None is the default.
      model: the network that sees the images.
      state: its state.

    Raises:
      ArgumentError: `batch_size` is neither an integer of at least 1 nor None.

    Example:
      >>> resolve_batch_size(np.zeros((1, 32, 32, 3)))
      500
      >>> resolve_batch_size(np.zeros((1, 224, 224, 3)))
      40
    """
    if batch_size is None:
        num_pixels = images.shape[1] * images.shape[2]
        default = max(1, min(500, MAX_PIXELS // num_pixels))
        if model is None or state is None:
            return default
        # A layer's output has as many channels as a kernel, at most for every pixel. So most
        # networks need not be traced: three such arrays, as around a shortcut, are small enough.
        channels = [
            max(np.shape(leaf)[-2:]) for leaf in jax.tree.leaves(state.params) if np.ndim(leaf) > 1
        ]
        bound = 3 * 4 * num_pixels * max(channels, default=1)
        if default * bound <= MAX_ACTIVATION_BYTES:
            return default
        variables = {"params": state.params, **state.model_state}
        shape = images.shape[1:]
        num_bytes = check_once(
            ("activations", model, shape),
            variables,
            lambda: activation_bytes(model, variables, shape),
        )
        return max(1, min(default, MAX_ACTIVATION_BYTES // max(1, num_bytes)))
    return check_integer("batch_size", batch_size, example=100)


def _check_labels(model, state, split, loss) -> None:
    """Check that the outputs of a model fit the labels.

    Raises:
      ArgumentError: they do not.
    """
    variables = {"params": state.params, **state.model_state}
    # A batch of 97 differs from the usual numbers of outputs.
    images, labels = batch_shapes(split, 97)

    def trace() -> Any:
        return check_outputs(model, variables, images, labels, loss)[0]

    outputs = check_once(("evaluate", model, images, labels, loss), variables, trace)
    check_all_labels(loss, split.labels, outputs)
    check_class_numbers(loss, split, outputs)
    if not has_class_labels(loss):
        return
    num_outputs = outputs.shape[-1]
    if are_soft(split.labels):
        return
    if (largest := int(split.labels.max())) >= num_outputs:
        raise ArgumentError(
            f"the labels go up to {largest}, but the model gives {num_outputs} outputs; "
            "expected one for each class. Build the "
            f"model with at least {largest + 1} outputs."
        )


def evaluate(
    model: nn.Module,
    state: State | Variables,
    split: Split,
    *,
    batch_size: int | None = None,
    strategy: parallel.Strategy | None = None,
    loss: str | Loss = "cross-entropy",
    normalizer: Normalizer | Dataset | None = None,
) -> metrics.Metrics:
    """Return the metrics of `state` on `split`, in test mode.

    Images are not augmented, and each counts once.

    Args:
      model: the network.
      state: as `train` yields it, or variables, as `load_weights` returns them.
      split: uint8 images [n, h, w, c] and the labels that the loss compares with. They are int32
        [n] or masks [n, h, w] of classes, shares of the classes, float32 [n, num_classes], or any
        tree of arrays for a loss of the user's own.
      batch_size: images in a batch. None is as many as `resolve_batch_size` allows. It changes
        only speed and memory.
      strategy: devices, all by default.
      loss: a name in `jaxcnn.LOSSES`, or a function (see `jaxcnn.losses`).
      normalizer: constants of normalization for variables, as in `jaxcnn.state.as_state`. A State
        has its own.

    Raises:
      ArgumentError: the loss is unknown, the outputs do not fit the labels, or there are no images.
      DataError: the arrays have another shape or type.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> from jaxcnn.state import init_state
      >>> data, tx, config = load_dataset("digits"), optax.sgd(0.1), TrainConfig()
      >>> model = create_model("plain8", 10)
      >>> state = init_state(model, tx, config, data)
      >>> int(evaluate(model, state, data.test).num_examples)
      360
    """
    strategy = parallel.check_strategy(strategy)
    state = as_state(model, state, normalizer, getattr(split, "images", None))
    shape = image_shape_of(model, state)
    loss = as_loss(loss)
    is_classifier = has_class_labels(loss)
    num_classes = getattr(model, "num_classes", None) if is_classifier else None
    verify_split("split", split, num_classes, shape, may_be_empty=True, are_classes=is_classifier)
    if not len(split.images):
        raise ArgumentError("the split to evaluate is empty; expected at least one image")
    if batch_size is not None:
        batch_size = resolve_batch_size(split.images, batch_size)
    check_normalizer(model, state.normalizer)
    state = eval_state(state)
    if not is_library_model(model) or not is_classifier:
        _check_labels(model, state, split, loss)
    dtypes = metrics_of(model, state, split, loss)
    batch_size = resolve_batch_size(split.images, batch_size, model, state)
    rewrite_for_cpu = strategy.should_rewrite_for_cpu(split.images.size)
    measure = make_eval_step(model, strategy, loss, dtypes, rewrite_for_cpu)
    placed, pipeline = strategy.replicate(state), input_pipeline(split, strategy)
    return measure(placed, pipeline, len(split.images), batch_size)


def metrics_of(
    model: nn.Module, state: State, split: Split, loss: Loss
) -> tuple[tuple[str, str], ...]:
    """Return the names and dtypes of a loss's metrics, as `metrics.zeros` takes them."""
    return loss_metric_dtypes(model, {"params": state.params, **state.model_state}, split, loss)


@parallel.cached_program
def loss_fn(model: nn.Module, loss: str | Loss = "cross-entropy") -> Callable[..., jax.Array]:
    """Return the function of the mean loss in training mode.

    The same arguments give the same function object, as long as the library caches it, so what is
    compiled for it is used again.

    Args:
      model: the network. BN normalizes by the inputs' own moments.
      loss: a name in `jaxcnn.LOSSES`, or a function.

    Returns:
      `loss(params, model_state, inputs, labels) -> float32 []`, of images that are normalized.

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset, sharpness
      >>> from jaxcnn.state import init_state
      >>> data, model = load_dataset("digits"), create_model("mlp", 10)
      >>> tx, config = optax.sgd(0.1), TrainConfig()
      >>> state = init_state(model, tx, config, data)
      >>> inputs = normalize(data.train.images[:100], state.normalizer)
      >>> variables = state.params, state.model_state
      >>> sharpness(loss_fn(model), *variables, inputs, data.train.labels[:100]) > 0
      True
    """
    verify_model(model)
    function = as_loss(loss)

    def mean(params, stats, inputs, labels):
        if not jnp.issubdtype(jnp.result_type(inputs), jnp.floating):
            raise ArgumentError(
                f"inputs are {format_array(inputs)}; expected normalized images, float32 [b, h, w, "
                "c]. Write jaxcnn.augment.normalize(images, state.normalizer)."
            )
        variables, key = {"params": params, **stats}, jax.random.PRNGKey(0)
        mutable = [*stats, "aux"]
        outputs, _ = call(model, variables, inputs, train=True, mutable=mutable, key=key)
        return compute_loss(function, outputs, Batch(inputs, labels))[0].mean()

    return mean


@parallel.cached_program
def _predictor(model):
    def outputs(state, images):
        return jax.tree.map(_widened, _outputs(model, state, normalize(images, state.normalizer)))

    return jax.jit(cpu.crop_negative_padding(outputs))


def _widened(leaf: Any) -> Any:
    """Return floating numbers as float32; NumPy has no bfloat16."""
    return leaf.astype(np.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _check_outputs_of_images(model, state, shape) -> None:
    """Check that each output array has an entry for each image, whatever the batch.

    Raises:
      ArgumentError: one has not, or a single output is of integers.
    """

    def trace() -> tuple[Any, Any]:
        few, many = (jax.ShapeDtypeStruct((n, *shape), np.uint8) for n in (2, 3))
        program = _predictor(model)
        return jax.eval_shape(program, state, few), jax.eval_shape(program, state, many)

    variables = {"params": state.params, **state.model_state}
    few, many = check_once(("predict", model, tuple(shape)), variables, trace)
    if isinstance(few, jax.ShapeDtypeStruct):
        check_single_output(few)
    pairs = zip(jax.tree_util.tree_leaves_with_path(few), jax.tree.leaves(many), strict=True)
    for (path, a), b in pairs:
        if a.shape[:1] == (2,) and b.shape == (3, *a.shape[1:]):
            continue
        raise ArgumentError(
            f"output{jax.tree_util.keystr(path)} of {type(model).__name__} has shape {a.shape} for "
            f"2 images and {b.shape} for 3; expected the images first, and the rest alike. Write "
            "jaxcnn.select_output(model, ...) to predict another output."
        )


def predict(
    model: nn.Module,
    state: State | Variables,
    images: np.ndarray,
    *,
    batch_size: int | None = None,
    normalizer: Normalizer | Dataset | None = None,
) -> Any:
    """Return the model's outputs in test mode, such as logits.

    Args:
      model: the network. It may have several outputs, in a tuple, dict, NamedTuple or dataclass.
      state: as `train` yields it, or variables, as `load_weights` returns them.
      images: uint8 [n, h, w, c], n > 0.
      batch_size: images in a batch. None is as many as `resolve_batch_size` allows. It changes
        only speed and memory.
      normalizer: constants of normalization for variables, as in `jaxcnn.state.as_state`. A State
        has its own.

    Returns:
      float32 [n, num_classes] for a classifier. For several outputs the same tree, with arrays
      [n, ...] of NumPy.

    Raises:
      DataError: `images` are other arrays.
      ArgumentError: `model` is not a model, `state` is not a state, or an output has no entry for
        each image.
    """
    state = as_state(model, state, normalizer, images)
    verify_images("images", images, image_shape_of(model, state))
    slim_state = eval_state(state)._replace(opt_state=(), metrics=())
    batch_size = resolve_batch_size(images, batch_size, model, slim_state)
    batches = parallel.padded_batches(len(images), batch_size, 1)
    if not is_library_model(model):
        _check_outputs_of_images(model, slim_state, images.shape[1:])
    outputs = [
        jax.tree.map(np.asarray, _predictor(model)(slim_state, images[index])) for index in batches
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(images)], *outputs)


@parallel.cached_program
def _moments(model, strategy):
    # At momentum 0 the library's BN takes the batch's own moments.
    fields: dict[str, Any] = {"bn_momentum": 0.0} if hasattr(model, "bn_momentum") else {}
    batchwise = with_axis_name(model, strategy.axis_name).clone(**fields)

    def step(carry, fixed, index):
        state, split = fixed
        inputs = normalize(gather_batch(split, index)[1], state.normalizer)
        variables = {"params": state.params, **state.model_state}
        mutable = [*state.model_state, "aux"]
        with batch_moments():
            _, new = call(
                batchwise,
                variables,
                inputs,
                train=True,
                mutable=mutable,
                key=state.rng,
                axis_name=strategy.axis_name,
            )
        total, num_batches = carry
        if jax.tree.map(jnp.shape, new["batch_stats"]) != jax.tree.map(jnp.shape, total):
            raise foreign_variables_error(model, "batch_stats differ")
        # Mean squares average over batches as means do; variances do not.
        mean_squares = _map_variances(new["batch_stats"], lambda mean, var: var + jnp.square(mean))
        return jax.tree.map(jnp.add, total, mean_squares), num_batches + 1

    return strategy.compile_steps(step)


def _map_variances(stats: Any, function: Callable[[Any, Any], Any]) -> Any:
    """Replace the variance of every BN layer by `function(mean, var)`."""
    if set(stats) == {"mean", "var"}:
        return {"mean": stats["mean"], "var": function(stats["mean"], stats["var"])}
    return {name: _map_variances(subtree, function) for name, subtree in stats.items()}


def check_norms(model: nn.Module, state: Any, shape: tuple[int, ...]) -> None:
    """Check that every statistic of the model is of a BN.

    The average of another statistic over batches may be meaningless.

    Args:
      model: of the library or of the user.
      state: its state, or the shapes of it.
      shape: of a batch of images.

    Raises:
      ArgumentError: there is another statistic, or no BN.
    """
    name = type(model).__name__
    stats = {key: state.model_state[key] for key in ("batch_stats",) if key in state.model_state}
    if not jax.tree.leaves(stats):
        raise ArgumentError(
            f"{name} has no BN to average; expected a model with BN. "
            "Leave this out, or write recompute_batch_stats=0 in a TrainConfig."
        )
    if is_library_model(model):
        return
    norms: set[tuple[str, ...]] = set()

    def run(variables, inputs):
        mutable, key = [*state.model_state, "aux"], jax.random.PRNGKey(0)
        with batch_moments(norms):
            return call(model, variables, inputs, train=True, mutable=mutable, key=key)

    variables = {"params": state.params, **state.model_state}
    jax.eval_shape(run, variables, jax.ShapeDtypeStruct(shape, np.float32))
    if statistic := non_batch_norm_statistic(stats, norms, lambda _: True):
        raise ArgumentError(
            f"{statistic} of {name} is not of a BatchNorm; expected none other. "
            "Leave this out, or write recompute_batch_stats=0 in a TrainConfig."
        )


def recompute_batch_stats(
    model: nn.Module,
    state: StateT,
    split: Split,
    n: int,
    *,
    batch_size: int = 128,
    strategy: parallel.Strategy | None = None,
    normalizer: Normalizer | Dataset | None = None,
) -> StateT:
    """Return `state` with exact averages of BN's batch statistics ("precise BN").

    They replace the running averages. The authors' released networks were tested so. The averages
    are over the first `n` images of `split`, which are not augmented. Only whole batches are used,
    so the last n mod batch images are left out.

    Args:
      model: the network.
      state: as `train` yields it, or variables. The result is of the same kind.
      split: uint8 images [n, h, w, c] and their labels.
      n: number of images.
      batch_size: images in a batch.
      strategy: devices, all by default.
      normalizer: constants of normalization for variables, as in `jaxcnn.state.as_state`. A State
        has its own.

    Raises:
      ArgumentError: the model has no BN, the devices cannot share a batch equally, a batch is
        larger than the split, or n is smaller than a batch or larger than the split.
    """
    strategy = parallel.check_strategy(strategy)
    if not isinstance(state, State):
        exact = recompute_batch_stats(
            model,
            as_state(model, state, normalizer, getattr(split, "images", None)),
            split,
            n,
            batch_size=batch_size,
            strategy=strategy,
        )
        return type(state)({"params": exact.params, **exact.model_state})  # type: ignore[call-arg]
    state = as_state(model, state, normalizer)
    verify_split("split", split, None, image_shape_of(model, state), are_classes=False)
    batch_size = check_integer("batch_size", batch_size, example=128)
    n = check_integer("n", n, example=5000)
    strategy.check(batch_size)
    check_norms(model, state, (batch_size, *split.images.shape[1:]))
    num_images, num_devices = len(split.images), len(strategy.devices)
    if batch_size > num_images:
        # The advice is a batch that the devices can share.
        largest = num_images // num_devices * num_devices
        advice = (
            f"Write batch_size={largest}."
            if largest
            else "Write strategy=jaxcnn.strategy('jit', 1)."
        )
        raise ArgumentError(
            f"batch_size is {batch_size}; "
            f"expected at most the split's {num_images} images. {advice}"
        )
    if not batch_size <= n <= num_images:
        raise ArgumentError(
            f"n is {n}; expected {batch_size} (one batch) to {num_images} images. "
            f"Write n={num_images}."
        )
    state = eval_state(state)
    slim_state = strategy.replicate(state._replace(opt_state=(), metrics=()))
    zeros = jax.tree.map(np.zeros_like, dict(state.model_state["batch_stats"]))
    carry = strategy.replicate((zeros, np.int32(0)))
    run = _moments(model, strategy)
    order = np.arange(n // batch_size * batch_size, dtype=np.int32).reshape(-1, batch_size)
    pipeline = input_pipeline(split, strategy)
    for chunk in pipeline.chunks(order):
        carry = run(carry, (slim_state, pipeline.split), chunk)
    total, num_batches = strategy.fetch(carry)
    averages = jax.tree.map(lambda x: x / np.float32(num_batches), total)
    exact = _map_variances(averages, lambda mean, square: square - np.square(mean))
    return state._replace(model_state={**state.model_state, "batch_stats": exact})
