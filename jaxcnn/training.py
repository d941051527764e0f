"""Training.

`make_train_step` makes the step, a pure function. `train` runs it, and yields a state and a row at
every evaluation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn import divergence, metrics, parallel, provenance
from jaxcnn.arguments import check_callable, check_choice, format_value
from jaxcnn.augment import AugmentConfig, augment, normalize
from jaxcnn.data import Dataset, Split, verify_dataset
from jaxcnn.evaluation import (
    check_once,
    default_batch_size,
    is_library_model,
    make_eval_step,
    recompute_batch_stats,
    with_axis_name,
)
from jaxcnn.input_pipeline import gather_batch, input_pipeline
from jaxcnn.models.calling import call, check_outputs, outputs_and_targets, verify_model
from jaxcnn.models.norm import frozen_batch_norm, non_batch_norm_statistic
from jaxcnn.optim import (
    as_transformation,
    current_learning_rate,
    frozen_stages,
    in_stage,
    stop_gradients,
)
from jaxcnn.recipe import ArgumentError, Recipe, verify_recipe
from jaxcnn.resume import resume_state
from jaxcnn.state import AUGMENT, DROPOUT, ORDER, State, eval_state, fold_in, init_state

Row = dict[str, Any]
AUX = 0.3
"""Weight of the loss of each auxiliary head.

Heads are what a network sows in "aux" (Szegedy et al. 2014, arXiv:1409.4842, section 5).
"""


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation | optax.MultiSteps,
    *,
    loss: str = "cross-entropy",
    freeze: tuple[str, ...] = (),
    axis: str | None = None,
    **augment_kwargs: Any,
) -> Callable[[State, Split | None, Any], State]:
    """Return the training step, a pure function.

    A step gathers the batch, normalizes and augments it, computes the gradient, updates the
    parameters and counts. The augmentation of an example is drawn from (seed, step, example), so no
    layout changes it.

    Args:
      model: the network. Under an `axis` it needs a field `axis` if it has state such as BN's.
      tx: the optimizer. Its `update` receives those of these extra arguments that it takes. They
        are `value` (the loss), `error` (0..1), `grad`, `value_fn` and `grad_fn`. `value_fn` returns
        the loss of params on the same batch. `grad_fn` returns the gradient of (params, any) there.
      loss: a name in `jaxcnn.metrics.LOSSES`.
      freeze: stages without a gradient, whose BN works as in test mode. It is `tx` that takes no
        step for them.
      axis: the mapped axis that splits the batch (`jax.pmap`). None is one device or sharding. An
        axis adds the averages over devices and nothing else.
      augment_kwargs: fields of `jaxcnn.augment.AugmentConfig`, named as in `Recipe`.

    Returns:
      `step(state, split, index) -> state`. `index` is int32 [b], the examples of the batch or of
      this device's part of it. With None for `split`, it is the pair of `index` and these examples
      (see `jaxcnn.input_pipeline`).

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> data, recipe = load_dataset("digits"), Recipe(model="plain8")
      >>> model, tx = create_model("plain8", 10), create_optimizer(recipe)
      >>> state = init_state(model, tx, recipe, data)
      >>> step = jax.jit(make_train_step(model, tx, pad=1))
      >>> int(step(state, data.train, jnp.arange(32)).step)
      1
    """
    tx = as_transformation(tx)
    verify_model(model)
    check_choice("loss", loss, metrics.LOSSES)
    if axis is not None and not isinstance(axis, str):
        raise ArgumentError(
            f"axis is {format_value(axis)}; expected a name or None. Write axis='batch'."
        )
    is_sequence = isinstance(freeze, (tuple, list))
    if not is_sequence or not all(isinstance(stage, str) for stage in freeze):
        raise ArgumentError(
            f"freeze is {format_value(freeze)}; expected names of stages in a tuple. "
            "Write freeze=('stem',)."
        )
    model = with_axis_name(model, axis)
    average = (lambda tree: jax.lax.pmean(tree, axis)) if axis else (lambda tree: tree)
    add_up = (lambda tree: jax.lax.psum(tree, axis)) if axis else (lambda tree: tree)

    config = AugmentConfig(**augment_kwargs)

    def is_frozen(name: str) -> bool:
        return any(in_stage(name, stage) for stage in freeze)

    def step(state: State, split: Split | None, index: Any) -> State:
        # [b], [b, h, w, c], [b] or [b, h, w]
        numbers, images, labels = gather_batch(split, index)
        augment_key = fold_in(state.rng, AUGMENT, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(augment_key, numbers)
        inputs = normalize(images, state.normalizer)
        inputs = jax.vmap(augment, (0, 0, None, None))(keys, inputs, state.normalizer, config)

        def mean_loss(params):
            key = fold_in(state.rng, DROPOUT, state.step)
            variables = {"params": stop_gradients(params, freeze), **state.model_state}
            mutable = [*state.model_state, "aux"]
            with frozen_batch_norm(is_frozen):
                outputs, collections = call(
                    model, variables, inputs, train=True, mutable=mutable, key=key
                )
            outputs, target = outputs_and_targets(outputs, inputs, labels, loss)
            heads = jax.tree.leaves(collections.get("aux", {}))
            aux = sum(metrics.LOSSES[loss](head, target).mean() for head in heads)
            stats = {name: collections[name] for name in state.model_state}
            main = metrics.LOSSES[loss](outputs, target).mean()
            return main + AUX * aux, (main, outputs, target, stats)

        # For methods that look at a second point.
        def grad_fn(params, _):
            return average(jax.grad(mean_loss, has_aux=True)(params)[0])

        # Line searches pass on extra arguments that they do not take themselves.
        def value_fn(params, error=None, grad_fn=None):
            return average(mean_loss(params)[0])

        (value, (main, outputs, target, stats)), grads = jax.value_and_grad(
            mean_loss, has_aux=True
        )(state.params)
        value, main, grads = average((value, main, grads))
        sums = add_up(metrics.count(outputs, target, jnp.ones(len(inputs), bool), loss))
        size = sums.num_examples.astype(jnp.float32)
        error = sums.num_wrong.astype(jnp.float32) / size
        # Optax's arithmetic mixes counts with rates.
        with jax.numpy_dtype_promotion("standard"):
            extra_args = {
                "value": value,
                "error": error,
                "grad_fn": grad_fn,
                "grad": grads,
                "value_fn": value_fn,
            }
            updates, opt_state = tx.update(grads, state.opt_state, state.params, **extra_args)
            params = optax.apply_updates(state.params, updates)
        sums = sums._replace(grad_norm=size * optax.tree.norm(grads), squared_loss=size * main**2)
        return state._replace(
            step=state.step + 1,
            params=params,
            model_state=_with_dtypes_of(state.model_state, stats),
            opt_state=_with_dtypes_of(state.opt_state, opt_state),
            metrics=metrics.add(state.metrics, sums),
        )

    return step


def _with_dtypes_of(old: Any, new: Any) -> Any:
    """Return `new` in the dtypes of `old`.

    With JAX_ENABLE_X64, arithmetic on counts and rates gives wider ones.
    """
    if jax.tree.structure(old) != jax.tree.structure(new):
        return new
    return jax.tree.map(lambda a, b: b if a.dtype == b.dtype else b.astype(a.dtype), old, new)


def epoch_order(
    key: jax.Array, first: int, last: int, batch: int, n: int, shuffle: bool = True
) -> np.ndarray:
    """Return the examples of the steps from `first` to before `last`.

    Examples are an endless stream of seeded permutations of all n, cut into batches. Each occurs
    once in an epoch, and no remainder is dropped. A step's batch depends only on the seed and the
    step.

    Args:
      key: the run's.
      first: the first step.
      last: the step after the last one.
      batch: examples in a batch.
      n: number of examples.
      shuffle: permute the examples; else they are in ascending order.

    Returns:
      int32 [last - first, batch].
    """

    def epoch_examples(epoch):
        order = jax.random.permutation(fold_in(key, ORDER, epoch), n) if shuffle else np.arange(n)
        return np.asarray(order, np.int32)

    begin, end = first * batch, last * batch
    epochs = range(begin // n, math.ceil(end / n))
    flat = np.concatenate([epoch_examples(epoch) for epoch in epochs])
    flat = flat[begin - epochs[0] * n :][: end - begin]
    return flat.reshape(last - first, batch)


@parallel.cached_program
def _trainer(model, tx, step_items, strategy, optimize):
    step = make_train_step(model, tx, **dict(step_items), axis=strategy.axis)
    return strategy.compile_steps(step, optimize)


def step_kwargs(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's keyword arguments of `make_train_step`."""
    augment_kwargs = {name: getattr(recipe, name) for name in AugmentConfig._fields}
    return augment_kwargs | {"loss": recipe.loss, "freeze": frozen_stages(recipe.stage_rates)}


def _order_function(recipe, data) -> Callable[[Any, int, int], np.ndarray]:
    """Return `order(key, first, last)`, the examples of these steps.

    They are in the recipe's order of the training images.
    """
    labels, n = data.train.labels, len(data.train.labels)
    if recipe.order == "shuffled":
        return lambda key, first, last: epoch_order(key, first, last, recipe.batch, n)
    by_label = np.argsort(labels, kind="stable").astype(np.int32)
    return lambda key, first, last: by_label[
        epoch_order(key, first, last, recipe.batch, n, shuffle=False)
    ]


def train(
    model: nn.Module,
    tx: optax.GradientTransformation | optax.MultiSteps,
    data: Dataset,
    recipe: Recipe,
    *,
    resume: Callable[[State], State | None] | None = None,
    warm_start: bool = False,
    strategy: parallel.Strategy | None = None,
    pause: Callable[[int], Any] | None = None,
) -> Iterator[tuple[State, Row | None]]:
    """Train, and yield `(state, row)` every `recipe.every` steps.

    The loop, and what is done in it, is the caller's.

    The rows of a recipe have the same bits on one machine. This needs the same number of usable
    cores and the same versions of Python's packages. Elsewhere they are equal to rounding.

    A row has these keys:

    - `step`, and `rate`, the learning rate.
    - `train_loss` and `train_error`: running means over the row's augmented batches, or with
      `recipe.train_error` "clean" those of a pass in test mode.
    - `eval_loss`, `eval_error` and `eval_split`, the name of their split (`recipe.report`).
    - `grad_norm`, and `loss_std` over the row's batches.
    - `seconds` and `images_per_second`.
    - With `recipe.precise_bn`, `precise_eval_loss` and `precise_eval_error`.
    - With a run that has diverged (`jaxcnn.divergence`), `diverged`, the reason.

    Cross-entropies are in nats, errors in percent. A run that has diverged gets a row at once, not
    only when it is due. The caller decides if it continues.

    Args:
      model: a flax.linen Module called with images and, if it takes one, a flag: `train`,
        `training`, `is_training`, or its opposite, `deterministic`.
      tx: any optax transformation, or `optax.MultiSteps`. `jaxcnn.create_optimizer(recipe)` is the
        recipe's.
      data: images and labels. The training part is moved whole to every device, as bytes.
      recipe: the numbers.
      resume: a function of the state at step 0. It returns the state to resume, or None, as
        `Checkpoints.restore` does. A state that was trained with another rate, seed or normalizer
        than the recipe's is an error. More `steps` than it was trained with are allowed.
      warm_start: allow such a state, with its step, parameters, statistics and the optimizer's
        moments. Training continues with the recipe's rate, seed and normalizer, and `RunLog`
        records the changes.
      strategy: devices, such as `jaxcnn.strategy("pmap")`; by default "jit" over all devices.
      pause: called with the step number after every step (on accelerators, after every scan). When
        it returns true before a row is due, `(state, None)` is yielded and training ends. A run
        resumed from that state continues in the middle of the epoch, with the same bits.

    Yields:
      The state as NumPy arrays on the host, and its row. A run that is already finished yields its
      state, and None for the row.

    Raises:
      ArgumentError: before anything is compiled. Such as a batch that does not divide by the
        devices or exceeds the data, or a model whose outputs do not fit the labels.
    """
    strategy = parallel.check_strategy(strategy)
    verify_model(model)
    verify_recipe(recipe)
    check_config(recipe, data, strategy)
    tx = as_transformation(tx)
    for name, function in (("resume", resume), ("pause", pause)):
        if function is not None:
            example = "checkpoints.restore" if name == "resume" else "stop"
            check_callable(name, function, example, num_args=1)
    state = init_state(model, tx, recipe, data)
    check_model(model, state, data, recipe, strategy)
    run_facts = provenance.run_facts(model, tx, recipe, data, state.params, state.opt_state)
    if resume is not None and (restored := resume(state)) is not None:
        if not isinstance(restored, State):
            raise ArgumentError(
                f"resume returned {format_value(restored)}; expected a State, or None to start at "
                "step 0. Write resume=checkpoints.restore."
            )
        state, changes = resume_state(restored, state, recipe, data, warm_start)
        if changes:
            run_facts["warm_start"] = {"step": int(state.step), "changed": changes}
    num_values = recipe.steps * recipe.batch * math.prod(data.train.images.shape[1:])
    optimize = strategy.should_optimize(num_values)
    # What is compiled depends on the update alone, so `init` is left out of the key of the cache.
    # Optimizers that only start in another state share a program.
    update_only = tx._replace(init=init_state)
    run = _trainer(model, update_only, tuple(step_kwargs(recipe).items()), strategy, optimize)
    placed, train = strategy.replicate(state), input_pipeline(data.train, strategy)
    test = input_pipeline(getattr(data, recipe.report), strategy)
    step, order = int(state.step), _order_function(recipe, data)
    has_diverged, num_classes = False, len(data.classes)
    every = recipe.every or math.ceil(len(data.train.labels) / recipe.batch)
    if step >= recipe.steps:
        yield state, None
    while step < recipe.steps:
        start_time, first = time.perf_counter(), step
        due = min(recipe.steps, (step // every + 1) * every)
        for chunk in train.chunks(order(state.rng, step, due)):
            placed = run(placed, train.split, chunk)
            step += len(jax.tree.leaves(chunk)[0])
            if pause is not None and pause(step) and step < due:
                yield strategy.fetch(placed), None
                return
            is_checked = strategy.scans or step % divergence.CHECK_EVERY == 0
            # The row of a divergence is due now. There is one such row, then the usual ones.
            if (
                not has_diverged
                and is_checked
                and divergence.find_divergence(placed, strategy, num_classes)
            ):
                break
        state = strategy.fetch(placed)
        images_per_second = recipe.batch * (step - first) / (time.perf_counter() - start_time)
        row = _metrics_row(model, placed, state, train, test, data, recipe, strategy)
        reason = divergence.reason(row, num_classes) or divergence.nonfinite_parameter(state.params)
        has_diverged, row = reason is not None, row | ({"diverged": reason} if reason else {})
        state = state._replace(metrics=jax.tree.map(np.zeros_like, state.metrics))
        placed = placed._replace(metrics=strategy.replicate(state.metrics))
        row |= {
            "seconds": time.perf_counter() - start_time,
            "images_per_second": images_per_second,
        }
        provenance.store_facts(row, run_facts)
        yield state, row


def check_config(recipe: Recipe, data: Dataset, strategy: parallel.Strategy) -> None:
    """Check that `recipe` can be trained on `data` with `strategy`.

    Nothing is compiled.

    Raises:
      ArgumentError: the recipe does not fit the data or the devices.
      DataError: the data are invalid.
    """
    verify_dataset(data)
    n = len(data.train.labels)
    strategy.check(recipe.batch)
    if recipe.batch > n:
        raise ArgumentError(
            f"batch is {recipe.batch}, more than the {n} training images; write batch={min(128, n)}"
        )
    num_validation = len(data.validation.labels)
    if recipe.validation != num_validation:
        can_be_held_out = recipe.validation < n + num_validation
        raise ArgumentError(
            f"validation is {recipe.validation}, but the data holds out {num_validation}; "
            + (
                f"write load_dataset(..., validation={recipe.validation})"
                if can_be_held_out
                else f"write validation={num_validation}"
            )
        )
    if recipe.examples not in (None, n):
        raise ArgumentError(
            f"examples is {recipe.examples}, but the data has {n} training images; "
            + (
                f"write subset(data, {recipe.examples}, seed=0)"
                if recipe.examples < n
                else f"write examples={n}"
            )
        )
    _check_counts_and_masks(recipe, data)
    if recipe.dataset != data.name:
        raise ArgumentError(
            f"dataset is {recipe.dataset!r}, but the data is {data.name!r}; "
            f"write dataset={data.name!r}"
        )
    if not len(getattr(data, recipe.report).labels):
        raise ArgumentError(f"the {recipe.report} split is empty; expected at least one image")
    if recipe.precise_bn and not recipe.batch <= recipe.precise_bn <= n:
        raise ArgumentError(
            f"precise_bn is {recipe.precise_bn}; "
            f"expected {recipe.batch} (one batch) to {n} images, or 0"
        )
    if recipe.std is True and not data.std.all():
        raise ArgumentError(
            "std is True, but a channel of the training images never changes; write std=False"
        )


def check_model(
    model: nn.Module, state: State, data: Dataset, recipe: Recipe, strategy: parallel.Strategy
) -> None:
    """Check that the outputs of `model` fit the data.

    Training and test mode are both checked. Nothing is compiled.

    Raises:
      ArgumentError: they do not, or `recipe.stage_rates` freezes statistics that are not of a BN.
    """
    num_classes = len(data.classes)
    if getattr(model, "classes", num_classes) != num_classes:
        raise ArgumentError(
            f"the model has {model.classes} classes "  # pyright: ignore[reportAttributeAccessIssue]
            f"and the data {num_classes}; build it with as many"
        )
    # The library's models are tested to return what their fields say, and tracing takes seconds.
    if is_library_model(model):
        return
    variables = {"params": state.params, **state.model_state}
    frozen = frozen_stages(recipe.stage_rates)
    local_batch = recipe.batch // (len(strategy.devices) if strategy.axis else 1)
    shapes = data.train.images.shape[1:], data.train.labels.shape[1:]

    def is_frozen(name: str) -> bool:
        return any(in_stage(name, stage) for stage in frozen)

    def trace() -> str | None:
        norms = set()
        # The batch of test mode is a size that is not the number of classes.
        for train, n, axis in (
            (False, 97 + (num_classes == 97), None),
            (True, local_batch, strategy.axis),
        ):
            images = jax.ShapeDtypeStruct((n, *shapes[0]), jnp.float32)
            labels = jax.ShapeDtypeStruct((n, *shapes[1]), jnp.int32)
            with frozen_batch_norm(is_frozen, norms):
                network = with_axis_name(model, axis)
                check_outputs(
                    network,
                    variables,
                    images,
                    labels,
                    recipe.loss,
                    num_classes,
                    train=train,
                    axis=axis,
                )
        return non_batch_norm_statistic(state.model_state, norms, is_frozen)

    key = ("fit", model, frozen, local_batch, shapes, recipe.loss, num_classes, strategy.axis)
    if statistic := check_once(key, variables, trace):
        raise ArgumentError(
            f"stage_rates freezes {', '.join(frozen)}, but {statistic} is not of a BatchNorm, "
            "and would go on moving; expected flax.linen.BatchNorm or a subclass there. "
            "Write a rate above 0."
        )


def _check_counts_and_masks(recipe, data) -> None:
    """Check what holds where each pixel has a label or a target.

    Changes of an image would have to be those of its mask, and counts must fit into int32.
    """
    images, labels = data.train
    has_masks = recipe.loss != "reconstruction" and labels.ndim == 3
    if has_masks and (recipe.pad or recipe.flip or recipe.crop != "shift"):
        raise ArgumentError(
            "labels are masks, which augmentation would leave where they are; "
            "write pad=0 and flip=False"
        )
    shape = images.shape[1:] if recipe.loss == "reconstruction" else labels.shape[1:]
    per_image = math.prod(shape)
    max_images = max(
        recipe.batch * (recipe.every or 0),
        len(labels) + recipe.batch,
        len(getattr(data, recipe.report).labels),
    )
    if per_image * max_images >= 2**31:
        every = max(1, 2**31 // per_image // recipe.batch // 2)
        raise ArgumentError(
            f"a row would count {per_image} answers of {max_images} images, more than 2^31; "
            f"write every={every}"
        )


def _metrics_row(model, placed, state, train, test, data, recipe, strategy) -> Row:
    def measure(placed, pipeline, split):
        optimize = strategy.should_optimize(split.images.size)
        count = make_eval_step(model, strategy, recipe.loss, optimize)
        return count(placed, pipeline, len(split.labels), default_batch_size(split.images))

    eval_split = getattr(data, recipe.report)
    evaluated = eval_state(state)
    if evaluated is not state:
        placed = strategy.replicate(evaluated)
    is_clean = recipe.train_error == "clean"
    train_metrics = measure(placed, train, data.train) if is_clean else state.metrics
    eval_metrics = measure(placed, test, eval_split)
    row = {
        "step": int(state.step),
        "rate": current_learning_rate(state.opt_state),
        "train_loss": train_metrics.mean_loss,
        "train_error": train_metrics.error_percent,
        "eval_loss": eval_metrics.mean_loss,
        "eval_error": eval_metrics.error_percent,
        "eval_split": recipe.report,
        "grad_norm": state.metrics.mean_grad_norm,
        "loss_std": state.metrics.loss_std,
    }
    if recipe.precise_bn:
        exact = recompute_batch_stats(
            model, state, data.train, recipe.precise_bn, batch=recipe.batch, strategy=strategy
        )
        exact_metrics = measure(strategy.replicate(exact), test, eval_split)
        row |= {
            "precise_eval_loss": exact_metrics.mean_loss,
            "precise_eval_error": exact_metrics.error_percent,
        }
    return row
