"""Training: one pure step, written once, and `train`, which runs it and hands out a state and a row at every pause."""

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
from jaxcnn.optim import as_transformation, current_learning_rate, frozen_stages, in_stage, stop_gradients
from jaxcnn.recipe import ArgumentError, Recipe, verify_recipe
from jaxcnn.resume import resumed
from jaxcnn.state import AUGMENT, DROPOUT, ORDER, State, eval_state, fold_in, init_state

Row = dict[str, Any]
AUX = 0.3
"""Weight of the loss of each auxiliary head, what a network sows in "aux" (Szegedy et al. 2014, arXiv:1409.4842, section 5)."""


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation | optax.MultiSteps,
    *,
    loss: str = "cross-entropy",
    freeze: tuple[str, ...] = (),
    axis: str | None = None,
    **view: Any,
) -> Callable[[State, Split | None, Any], State]:
    """One step of training as a pure function: gather, normalise, augment, gradient, update, count.

    Args:
      model: the network; under an `axis` it needs a field `axis` if it has state such as BN's.
      tx: the optimiser; extra arguments `value` (the loss), `error` (0..1), `grad_fn` (params, any -> the gradient on the
        same batch), `grad` and `value_fn` (params -> the loss on the same batch) are passed to those that take them.
      loss: what is minimised, a name in `jaxcnn.metrics.LOSSES`.
      freeze: stages whose parameters bring no gradient and whose BN works as in test; that they take no step is `tx`'s.
      view: the augmentation: fields of `jaxcnn.augment.View`, named as in `Recipe`.
      axis: the mapped axis that splits the batch (`jax.pmap`); None on one device or under sharding. It adds the
        averages over devices and nothing else.

    Returns:
      `step(state, split, index) -> state`, with `index` int32 [b] the examples of (this device's part of) the batch; or,
      with None for `split`, the pair of `index` and these examples (`jaxcnn.input_pipeline`).
      A view of an example is drawn from (seed, step, example), so no layout changes it.

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
        raise ArgumentError(f"axis is {format_value(axis)}; expected a name or None. Write axis='batch'.")
    model = with_axis_name(model, axis)
    averaged = (lambda tree: jax.lax.pmean(tree, axis)) if axis else (lambda tree: tree)
    summed = (lambda tree: jax.lax.psum(tree, axis)) if axis else (lambda tree: tree)

    drawn = AugmentConfig(**view)

    def holds(name: str) -> bool:
        return any(in_stage(name, each) for each in freeze)

    def step(state: State, split: Split | None, index: Any) -> State:
        numbers, images, labels = gather_batch(split, index)  # [b], [b, h, w, c], [b] or [b, h, w]
        key = fold_in(state.rng, AUGMENT, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        inputs = normalize(images, state.normalizer)
        inputs = jax.vmap(augment, (0, 0, None, None))(keys, inputs, state.normalizer, drawn)

        def mean_loss(params):
            drawn_from = fold_in(state.rng, DROPOUT, state.step)
            variables = {"params": stop_gradients(params, freeze), **state.model_state}
            with frozen_batch_norm(holds):
                outputs, new = call(
                    model, variables, inputs, train=True, mutable=[*state.model_state, "aux"], key=drawn_from
                )
            outputs, target = outputs_and_targets(outputs, inputs, labels, loss)
            aux = sum(metrics.LOSSES[loss](each, target).mean() for each in jax.tree.leaves(new.get("aux", {})))
            stats = {name: new[name] for name in state.model_state}
            main = metrics.LOSSES[loss](outputs, target).mean()
            return main + AUX * aux, (main, outputs, target, stats)

        def again(params, _):  # for methods that look at a second point
            return averaged(jax.grad(mean_loss, has_aux=True)(params)[0])

        def value_fn(params, error=None, grad_fn=None):  # for line searches, which hand on what they do not know
            return averaged(mean_loss(params)[0])

        (value, (main, outputs, target, stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        value, main, grads = averaged((value, main, grads))
        new = summed(metrics.count(outputs, target, jnp.ones(len(inputs), bool), loss))
        size = new.num_examples.astype(jnp.float32)
        error = new.num_wrong.astype(jnp.float32) / size
        with jax.numpy_dtype_promotion("standard"):  # optax's arithmetic mixes counts with rates
            asked = {"value": value, "error": error, "grad_fn": again, "grad": grads, "value_fn": value_fn}
            updates, opt = tx.update(grads, state.opt_state, state.params, **asked)
            params = optax.apply_updates(state.params, updates)
        return state._replace(
            step=state.step + 1,
            params=params,
            model_state=_as_before(state.model_state, stats),
            opt_state=_as_before(state.opt_state, opt),
            metrics=metrics.add(
                state.metrics, new._replace(grad_norm=size * optax.tree.norm(grads), squared_loss=size * main**2)
            ),
        )

    return step


def _as_before(old: Any, new: Any) -> Any:
    """`new` in the dtypes of `old`: with JAX_ENABLE_X64, arithmetic on counts and rates gives wider ones."""
    if jax.tree.structure(old) != jax.tree.structure(new):
        return new
    return jax.tree.map(lambda a, b: b if a.dtype == b.dtype else b.astype(a.dtype), old, new)


def epoch_order(key: jax.Array, first: int, last: int, batch: int, n: int, shuffle: bool = True) -> np.ndarray:
    """The examples of steps `first` to `last`, int32 [last - first, batch].

    Examples come as one endless stream of seeded permutations of all n, cut into batches: each is seen once an epoch, no
    remainder is dropped, and a step's batch depends on the seed and the step alone. Without `shuffle` they count up.
    """

    def one_pass(epoch):
        return np.asarray(jax.random.permutation(fold_in(key, ORDER, epoch), n) if shuffle else np.arange(n), np.int32)

    begin, end = first * batch, last * batch
    epochs = range(begin // n, math.ceil(end / n))
    passes = [one_pass(epoch) for epoch in epochs]
    flat = np.concatenate(passes)[begin - epochs[0] * n :][: end - begin]
    return flat.reshape(last - first, batch)


@parallel.cached_program
def _trainer(model, tx, how, strategy, tuned):
    return strategy.compile_steps(make_train_step(model, tx, **dict(how), axis=strategy.axis), tuned)


def step_kwargs(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says to `make_train_step`."""
    view = {name: getattr(recipe, name) for name in AugmentConfig._fields}
    return view | {"loss": recipe.loss, "freeze": frozen_stages(recipe.stage_rates)}


def _numbers(recipe, data) -> Callable[[Any, int, int], np.ndarray]:
    """`order` for this recipe's order and data: (key, first, last) -> the examples of those steps."""
    labels, n = data.train.labels, len(data.train.labels)
    if recipe.order == "shuffled":
        return lambda key, first, last: epoch_order(key, first, last, recipe.batch, n)
    by_label = np.argsort(labels, kind="stable").astype(np.int32)
    return lambda key, first, last: by_label[epoch_order(key, first, last, recipe.batch, n, shuffle=False)]


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
    """Train, yielding `(state, row)` every `recipe.every` steps; the loop, and what to do in it, is the caller's.

    Args:
      model: a flax.linen Module called with images and, if it takes one, a flag: `train`, `training`, `is_training`, or
        `deterministic`, which is their opposite.
      tx: any optax transformation, or `optax.MultiSteps`; `jaxcnn.create_optimizer(recipe)` is the recipe's.
      data: images and labels; the training part is moved whole to every device, as bytes.
      recipe: the numbers. The rows of one recipe have the same bits on one machine with the same number of usable cores and
        the same versions of Python's packages; elsewhere they are equal to rounding.
      resume: given the state at step 0, returns the state to go on from, or None; `Checkpoints.restore` fits. A state that was
        trained with another rate, seed or normaliser than the recipe's is refused; more `steps` than it had are fine.
      warm_start: take such a state, with its step, parameters, statistics and the optimiser's moments, and continue with the
        recipe's rate, seed and normaliser; `RunLog` records what changed.
      strategy: where to run: `jaxcnn.strategy("pmap")`, say; by default "jit" over all devices.
      pause: called with the step number after every step (on accelerators, after every scan). When it answers true
        before a row is due, `(state, None)` is yielded and fit ends; a run resumed from that state continues in
        the middle of the epoch, with the bits it would have had. A run that is over already yields its state, and no row.

    Yields:
      The state as numpy arrays on the host, and its row: `step, rate, train_loss, train_error, eval_loss, eval_error,
      eval_split, grad_norm, loss_std, seconds, images_per_second` (cross-entropies in nats, errors in percent; the training
      figures are running means over the row's augmented batches, unless `recipe.train_error` is "clean"; `eval_split` is
      `recipe.report`, the name of the split that the `eval_*` figures are of; `loss_std` is over the row's batches).
      With `recipe.precise_bn` also `precise_eval_loss, precise_eval_error`. A run that has diverged (`jaxcnn.divergence`) gets
      a row at once, not only when it is due, whose `diverged` says why; whether to go on is the caller's to say.

    Raises:
      ArgumentError: before anything is compiled, for a batch that does not divide by the devices or exceeds the data, or
        a model whose outputs do not fit the labels.
    """
    strategy = parallel.check_strategy(strategy)
    verify_model(model)
    verify_recipe(recipe)
    check_config(recipe, data, strategy)
    tx = as_transformation(tx)
    for name, given in (("resume", resume), ("pause", pause)):
        if given is not None:
            check_callable(name, given, "checkpoints.restore" if name == "resume" else "stop")
    state = init_state(model, tx, recipe, data)
    check_model(model, state, data, recipe, strategy)
    made_from = provenance.made_from(model, tx, recipe, data, state.params, state.opt_state)
    if resume is not None and (found := resume(state)) is not None:
        state, changes = resumed(found, state, recipe, data, warm_start)
        if changes:
            made_from["warm_start"] = {"step": int(state.step), "changed": changes}
    # What is compiled depends on the update alone: optimisers that only start in another state share it.
    tuned = strategy.should_optimize(recipe.steps * recipe.batch * math.prod(data.train.images.shape[1:]))
    run = _trainer(model, tx._replace(init=init_state), tuple(step_kwargs(recipe).items()), strategy, tuned)
    placed, train = strategy.replicate(state), input_pipeline(data.train, strategy)
    test = input_pipeline(getattr(data, recipe.report), strategy)
    step, numbers = int(state.step), _numbers(recipe, data)
    sane, classes = True, len(data.classes)
    every = recipe.every or math.ceil(len(data.train.labels) / recipe.batch)
    if step >= recipe.steps:
        yield state, None
    while step < recipe.steps:
        began, first = time.perf_counter(), step
        due = min(recipe.steps, (step // every + 1) * every)
        for piece in train.chunks(numbers(state.rng, step, due)):
            placed, step = run(placed, train.split, piece), step + len(jax.tree.leaves(piece)[0])
            if pause is not None and pause(step) and step < due:
                yield strategy.fetch(placed), None
                return
            if (
                sane
                and (strategy.scans or step % divergence.CHECK_EVERY == 0)
                and divergence.find_divergence(placed, strategy, classes)
            ):
                break  # its row is made now
        state = strategy.fetch(placed)
        rate = recipe.batch * (step - first) / (time.perf_counter() - began)
        row = _row(model, placed, state, train, test, data, recipe, strategy)
        why = divergence.reason(row, classes) or divergence.nonfinite_parameter(state.params)
        sane, row = why is None, row | ({"diverged": why} if why else {})
        state = state._replace(metrics=jax.tree.map(np.zeros_like, state.metrics))
        placed = placed._replace(metrics=strategy.replicate(state.metrics))
        row |= {"seconds": time.perf_counter() - began, "images_per_second": rate}
        provenance.note(row, made_from)
        yield state, row


def check_config(recipe: Recipe, data: Dataset, strategy: parallel.Strategy) -> None:
    """ArgumentError if `recipe` cannot be trained on `data` with `strategy`, DataError if nothing can; nothing is compiled."""
    verify_dataset(data)
    n = len(data.train.labels)
    strategy.check(recipe.batch)
    if recipe.batch > n:
        raise ArgumentError(f"batch is {recipe.batch}, more than the {n} training images; write batch={min(128, n)}")
    held = len(data.validation.labels)
    if recipe.validation != held:
        raise ArgumentError(
            f"validation is {recipe.validation}, but the data holds out {held}; "
            f"write load_dataset(..., validation={recipe.validation})"
        )
    if recipe.examples not in (None, n):
        raise ArgumentError(
            f"examples is {recipe.examples}, but the data has {n} training images; write subset(data, {recipe.examples})"
        )
    _check_dense(recipe, data)
    if recipe.dataset != data.name:
        raise ArgumentError(
            f"dataset is {recipe.dataset!r}, but the data is {data.name!r}; write dataset={data.name!r}"
        )
    if not len(getattr(data, recipe.report).labels):
        raise ArgumentError(f"the {recipe.report} split is empty; expected at least one image")
    if recipe.precise_bn and not recipe.batch <= recipe.precise_bn <= n:
        raise ArgumentError(
            f"precise_bn is {recipe.precise_bn}; expected {recipe.batch} (one batch) to {n} images, or 0"
        )
    if recipe.std is True and not data.std.all():
        raise ArgumentError("std is True, but a channel of the training images never changes; write std=False")


def check_model(model: nn.Module, state: State, data: Dataset, recipe: Recipe, strategy: parallel.Strategy) -> None:
    """ArgumentError if the outputs of `model` do not fit the data in training or in test; nothing is compiled."""
    count = len(data.classes)
    if getattr(model, "classes", count) != count:
        raise ArgumentError(f"the model has {model.classes} classes and the data {count}; build it with as many")  # pyright: ignore[reportAttributeAccessIssue]
    if is_library_model(model):
        return  # each is tested to give what its fields say; tracing a deep one takes seconds
    variables, held = {"params": state.params, **state.model_state}, frozen_stages(recipe.stage_rates)
    local = recipe.batch // (len(strategy.devices) if strategy.axis else 1)
    places = data.train.images.shape[1:], data.train.labels.shape[1:]

    def holds(name: str) -> bool:
        return any(in_stage(name, each) for each in held)

    def look() -> str | None:
        found = set()
        for train, n, axis in ((False, 97 + (count == 97), None), (True, local, strategy.axis)):
            images, labels = (
                jax.ShapeDtypeStruct((n, *places[0]), jnp.float32),
                jax.ShapeDtypeStruct((n, *places[1]), jnp.int32),
            )
            with frozen_batch_norm(holds, found):
                network = with_axis_name(model, axis)
                check_outputs(network, variables, images, labels, recipe.loss, count, train=train, axis=axis)
        return non_batch_norm_statistic(state.model_state, found, holds)

    if other := check_once(("fit", model, held, local, places, recipe.loss, count, strategy.axis), variables, look):
        raise ArgumentError(
            f"stage_rates freezes {', '.join(held)}, but {other} is not of a BatchNorm, and would go on moving; expected "
            "flax.linen.BatchNorm or a subclass there. Write a rate above 0."
        )


def _check_dense(recipe, data) -> None:
    """What holds where an answer belongs to each pixel: an image's changes must be its mask's, and counts must fit int32."""
    images, labels = data.train
    if recipe.loss != "reconstruction" and labels.ndim == 3 and (recipe.pad or recipe.flip or recipe.crop != "shift"):
        raise ArgumentError(
            "labels are masks, which augmentation would leave where they are; write pad=0 and flip=False"
        )
    answers = math.prod(images.shape[1:] if recipe.loss == "reconstruction" else labels.shape[1:])
    most = max(recipe.batch * (recipe.every or 0), len(labels) + recipe.batch, len(getattr(data, recipe.report).labels))
    if answers * most >= 2**31:
        fewer = max(1, 2**31 // answers // recipe.batch // 2)
        raise ArgumentError(
            f"a row would count {answers} answers of {most} images, more than 2^31; write every={fewer}"
        )


def _row(model, placed, state, train, test, data, recipe, strategy) -> Row:
    def measure(placed, fed, split):
        count = make_eval_step(model, strategy, recipe.loss, strategy.should_optimize(split.images.size))
        return count(placed, fed, len(split.labels), default_batch_size(split.images))

    held = getattr(data, recipe.report)
    judged = eval_state(state)
    if judged is not state:
        placed = strategy.replicate(judged)
    sums = measure(placed, train, data.train) if recipe.train_error == "clean" else state.metrics
    tested = measure(placed, test, held)
    row = {
        "step": int(state.step),
        "rate": current_learning_rate(state.opt_state),
        "train_loss": sums.mean_loss,
        "train_error": sums.error_percent,
        "eval_loss": tested.mean_loss,
        "eval_error": tested.error_percent,
        "eval_split": recipe.report,
        "grad_norm": state.metrics.mean_grad_norm,
        "loss_std": state.metrics.loss_std,
    }
    if recipe.precise_bn:
        exact = recompute_batch_stats(
            model, state, data.train, recipe.precise_bn, batch=recipe.batch, strategy=strategy
        )
        tested = measure(strategy.replicate(exact), test, held)
        row |= {"precise_eval_loss": tested.mean_loss, "precise_eval_error": tested.error_percent}
    return row
