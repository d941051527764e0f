"""Training: one pure step, written once, and `fit`, which runs it and hands out a state and a row at every pause."""

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
from jaxcnn.arguments import function, one_of, shown
from jaxcnn.augment import View, augment, normalise
from jaxcnn.data import Dataset, Split, verify
from jaxcnn.evaluate import counter, fitting, mapped, once, precise
from jaxcnn.feed import examples, feed
from jaxcnn.models.calling import call, check_outputs, compared, in_library, verify_model
from jaxcnn.models.frozen import norms_held, other_statistics
from jaxcnn.optim import belongs, frozen, held, rate_of, transformation
from jaxcnn.recipe import Recipe, RecipeError, verify_recipe
from jaxcnn.resume import resumed
from jaxcnn.state import AUGMENT, DROPOUT, ORDER, State, at_test, start, stream

Row = dict[str, Any]
AUX = 0.3
"""Weight of the loss of each auxiliary head, what a network sows in "aux" (Szegedy et al. 2014, arXiv:1409.4842, section 5)."""


def make_step(
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
      with None for `split`, the pair of `index` and these examples (`jaxcnn.feed`).
      A view of an example is drawn from (seed, step, example), so no layout changes it.

    Example:
      >>> from jaxcnn import Recipe, build, load, optimizer
      >>> data, recipe = load("digits"), Recipe(model="plain8")
      >>> model, tx = build("plain8", 10), optimizer(recipe)
      >>> state = start(model, tx, recipe, data)
      >>> step = jax.jit(make_step(model, tx, pad=1))
      >>> int(step(state, data.train, jnp.arange(32)).step)
      1
    """
    tx = transformation(tx)
    verify_model(model)
    one_of("loss", loss, metrics.LOSSES)
    if axis is not None and not isinstance(axis, str):
        raise RecipeError(f"axis is {shown(axis)}; expected a name or None. Write axis='batch'.")
    model = mapped(model, axis)
    averaged = (lambda tree: jax.lax.pmean(tree, axis)) if axis else (lambda tree: tree)
    summed = (lambda tree: jax.lax.psum(tree, axis)) if axis else (lambda tree: tree)

    drawn = View(**view)

    def holds(name: str) -> bool:
        return any(belongs(name, each) for each in freeze)

    def step(state: State, split: Split | None, index: Any) -> State:
        numbers, images, labels = examples(split, index)  # [b], [b, h, w, c], [b] or [b, h, w]
        key = stream(state.key, AUGMENT, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        inputs = normalise(images, state.norm)
        inputs = jax.vmap(augment, (0, 0, None, None))(keys, inputs, state.norm, drawn)

        def mean_loss(params):
            drawn_from = stream(state.key, DROPOUT, state.step)
            variables = {"params": held(params, freeze), **state.stats}
            with norms_held(holds):
                outputs, new = call(model, variables, inputs, train=True, mutable=[*state.stats, "aux"], key=drawn_from)
            outputs, target = compared(outputs, inputs, labels, loss)
            aux = sum(metrics.LOSSES[loss](each, target).mean() for each in jax.tree.leaves(new.get("aux", {})))
            stats = {name: new[name] for name in state.stats}
            main = metrics.LOSSES[loss](outputs, target).mean()
            return main + AUX * aux, (main, outputs, target, stats)

        def again(params, _):  # for methods that look at a second point
            return averaged(jax.grad(mean_loss, has_aux=True)(params)[0])

        def value_fn(params, error=None, grad_fn=None):  # for line searches, which hand on what they do not know
            return averaged(mean_loss(params)[0])

        (value, (main, outputs, target, stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        value, main, grads = averaged((value, main, grads))
        new = summed(metrics.count(outputs, target, jnp.ones(len(inputs), bool), loss))
        size = new.n.astype(jnp.float32)
        error = new.wrong.astype(jnp.float32) / size
        with jax.numpy_dtype_promotion("standard"):  # optax's arithmetic mixes counts with rates
            asked = {"value": value, "error": error, "grad_fn": again, "grad": grads, "value_fn": value_fn}
            updates, opt = tx.update(grads, state.opt, state.params, **asked)
            params = optax.apply_updates(state.params, updates)
        return state._replace(
            step=state.step + 1,
            params=params,
            stats=_as_before(state.stats, stats),
            opt=_as_before(state.opt, opt),
            sums=metrics.add(state.sums, new._replace(norm=size * optax.tree.norm(grads), square=size * main**2)),
        )

    return step


def _as_before(old: Any, new: Any) -> Any:
    """`new` in the dtypes of `old`: with JAX_ENABLE_X64, arithmetic on counts and rates gives wider ones."""
    if jax.tree.structure(old) != jax.tree.structure(new):
        return new
    return jax.tree.map(lambda a, b: b if a.dtype == b.dtype else b.astype(a.dtype), old, new)


def order(key: jax.Array, first: int, last: int, batch: int, n: int, shuffle: bool = True) -> np.ndarray:
    """The examples of steps `first` to `last`, int32 [last - first, batch].

    Examples come as one endless stream of seeded permutations of all n, cut into batches: each is seen once an epoch, no
    remainder is dropped, and a step's batch depends on the seed and the step alone. Without `shuffle` they count up.
    """

    def one_pass(epoch):
        return np.asarray(jax.random.permutation(stream(key, ORDER, epoch), n) if shuffle else np.arange(n), np.int32)

    begin, end = first * batch, last * batch
    epochs = range(begin // n, math.ceil(end / n))
    passes = [one_pass(epoch) for epoch in epochs]
    flat = np.concatenate(passes)[begin - epochs[0] * n :][: end - begin]
    return flat.reshape(last - first, batch)


@parallel.compiled
def _trainer(model, tx, how, driver, tuned):
    return driver.fold(make_step(model, tx, **dict(how), axis=driver.axis), tuned)


def step_options(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says to `make_step`."""
    view = {name: getattr(recipe, name) for name in View._fields}
    return view | {"loss": recipe.loss, "freeze": frozen(recipe.stage_rates)}


def _numbers(recipe, data) -> Callable[[Any, int, int], np.ndarray]:
    """`order` for this recipe's order and data: (key, first, last) -> the examples of those steps."""
    labels, n = data.train.labels, len(data.train.labels)
    if recipe.order == "shuffled":
        return lambda key, first, last: order(key, first, last, recipe.batch, n)
    by_label = np.argsort(labels, kind="stable").astype(np.int32)
    return lambda key, first, last: by_label[order(key, first, last, recipe.batch, n, shuffle=False)]


def fit(
    model: nn.Module,
    tx: optax.GradientTransformation | optax.MultiSteps,
    data: Dataset,
    recipe: Recipe,
    *,
    resume: Callable[[State], State | None] | None = None,
    warm_start: bool = False,
    driver: parallel.Driver | None = None,
    pause: Callable[[int], Any] | None = None,
) -> Iterator[tuple[State, Row | None]]:
    """Train, yielding `(state, row)` every `recipe.every` steps; the loop, and what to do in it, is the caller's.

    Args:
      model: a flax.linen Module called with images and, if it takes one, a flag: `train`, `training`, `is_training`, or
        `deterministic`, which is their opposite.
      tx: any optax transformation, or `optax.MultiSteps`; `jaxcnn.optimizer(recipe)` is the recipe's.
      data: images and labels; the training part is moved whole to every device, as bytes.
      recipe: the numbers. The rows of one recipe have the same bits on one machine with the same number of usable cores and
        the same versions of Python's packages; elsewhere they are equal to rounding.
      resume: given the state at step 0, returns the state to go on from, or None; `Checkpoints.restore` fits. A state that was
        trained with another rate, seed or normaliser than the recipe's is refused; more `steps` than it had are fine.
      warm_start: take such a state, with its step, parameters, statistics and the optimiser's moments, and continue with the
        recipe's rate, seed and normaliser; `RunLog` records what changed.
      driver: where to run: `jaxcnn.driver("pmap")`, say; by default "jit" over all devices.
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
      RecipeError: before anything is compiled, for a batch that does not divide by the devices or exceeds the data, or
        a model whose outputs do not fit the labels.
    """
    driver = parallel.chosen(driver)
    verify_model(model)
    verify_recipe(recipe)
    check(recipe, data, driver)
    tx = transformation(tx)
    for name, given in (("resume", resume), ("pause", pause)):
        if given is not None:
            function(name, given, "checkpoints.restore" if name == "resume" else "stop")
    state = start(model, tx, recipe, data)
    check_model(model, state, data, recipe, driver)
    made_from = provenance.made_from(model, tx, recipe, data, state.params, state.opt)
    if resume is not None and (found := resume(state)) is not None:
        state, changes = resumed(found, state, recipe, data, warm_start)
        if changes:
            made_from["warm_start"] = {"step": int(state.step), "changed": changes}
    # What is compiled depends on the update alone: optimisers that only start in another state share it.
    tuned = driver.tunes(recipe.steps * recipe.batch * math.prod(data.train.images.shape[1:]))
    run = _trainer(model, tx._replace(init=start), tuple(step_options(recipe).items()), driver, tuned)
    placed, train = driver.replicate(state), feed(data.train, driver)
    test = feed(getattr(data, recipe.report), driver)
    step, numbers = int(state.step), _numbers(recipe, data)
    sane, classes = True, len(data.classes)
    every = recipe.every or math.ceil(len(data.train.labels) / recipe.batch)
    if step >= recipe.steps:
        yield state, None
    while step < recipe.steps:
        began, first = time.perf_counter(), step
        due = min(recipe.steps, (step // every + 1) * every)
        for piece in train.pieces(numbers(state.key, step, due)):
            placed, step = run(placed, train.fixed, piece), step + len(jax.tree.leaves(piece)[0])
            if pause is not None and pause(step) and step < due:
                yield driver.fetch(placed), None
                return
            if sane and (driver.scans or step % divergence.EVERY == 0) and divergence.noticed(placed, driver, classes):
                break  # its row is made now
        state = driver.fetch(placed)
        rate = recipe.batch * (step - first) / (time.perf_counter() - began)
        row = _row(model, placed, state, train, test, data, recipe, driver)
        why = divergence.reason(row, classes) or divergence.infinite(state.params)
        sane, row = why is None, row | ({"diverged": why} if why else {})
        state = state._replace(sums=jax.tree.map(np.zeros_like, state.sums))
        placed = placed._replace(sums=driver.replicate(state.sums))
        row |= {"seconds": time.perf_counter() - began, "images_per_second": rate}
        provenance.note(row, made_from)
        yield state, row


def check(recipe: Recipe, data: Dataset, driver: parallel.Driver) -> None:
    """RecipeError if `recipe` cannot be trained on `data` with `driver`, DataError if nothing can; nothing is compiled."""
    verify(data)
    n = len(data.train.labels)
    driver.check(recipe.batch)
    if recipe.batch > n:
        raise RecipeError(f"batch is {recipe.batch}, more than the {n} training images; write batch={min(128, n)}")
    held = len(data.validation.labels)
    if recipe.validation != held:
        raise RecipeError(
            f"validation is {recipe.validation}, but the data holds out {held}; write load(..., validation={recipe.validation})"
        )
    if recipe.examples not in (None, n):
        raise RecipeError(
            f"examples is {recipe.examples}, but the data has {n} training images; write subset(data, {recipe.examples})"
        )
    _check_dense(recipe, data)
    if recipe.dataset != data.name:
        raise RecipeError(f"dataset is {recipe.dataset!r}, but the data is {data.name!r}; write dataset={data.name!r}")
    if not len(getattr(data, recipe.report).labels):
        raise RecipeError(f"the {recipe.report} split is empty; expected at least one image")
    if recipe.precise_bn and not recipe.batch <= recipe.precise_bn <= n:
        raise RecipeError(f"precise_bn is {recipe.precise_bn}; expected {recipe.batch} (one batch) to {n} images, or 0")
    if recipe.std is True and not data.std.all():
        raise RecipeError("std is True, but a channel of the training images never changes; write std=False")


def check_model(model: nn.Module, state: State, data: Dataset, recipe: Recipe, driver: parallel.Driver) -> None:
    """RecipeError if the outputs of `model` do not fit the data in training or in test; nothing is compiled."""
    count = len(data.classes)
    if getattr(model, "classes", count) != count:
        raise RecipeError(f"the model has {model.classes} classes and the data {count}; build it with as many")  # pyright: ignore[reportAttributeAccessIssue]
    if in_library(model):
        return  # each is tested to give what its fields say; tracing a deep one takes seconds
    variables, held = {"params": state.params, **state.stats}, frozen(recipe.stage_rates)
    local = recipe.batch // (len(driver.devices) if driver.axis else 1)
    places = data.train.images.shape[1:], data.train.labels.shape[1:]

    def holds(name: str) -> bool:
        return any(belongs(name, each) for each in held)

    def look() -> str | None:
        found = set()
        for train, n, axis in ((False, 97 + (count == 97), None), (True, local, driver.axis)):
            images, labels = (
                jax.ShapeDtypeStruct((n, *places[0]), jnp.float32),
                jax.ShapeDtypeStruct((n, *places[1]), jnp.int32),
            )
            with norms_held(holds, found):
                network = mapped(model, axis)
                check_outputs(network, variables, images, labels, recipe.loss, count, train=train, axis=axis)
        return other_statistics(state.stats, found, holds)

    if other := once(("fit", model, held, local, places, recipe.loss, count, driver.axis), variables, look):
        raise RecipeError(
            f"stage_rates freezes {', '.join(held)}, but {other} is not of a BatchNorm, and would go on moving; expected "
            "flax.linen.BatchNorm or a subclass there. Write a rate above 0."
        )


def _check_dense(recipe, data) -> None:
    """What holds where an answer belongs to each pixel: an image's changes must be its mask's, and counts must fit int32."""
    images, labels = data.train
    if recipe.loss != "reconstruction" and labels.ndim == 3 and (recipe.pad or recipe.flip or recipe.crop != "shift"):
        raise RecipeError("labels are masks, which augmentation would leave where they are; write pad=0 and flip=False")
    answers = math.prod(images.shape[1:] if recipe.loss == "reconstruction" else labels.shape[1:])
    most = max(recipe.batch * (recipe.every or 0), len(labels) + recipe.batch, len(getattr(data, recipe.report).labels))
    if answers * most >= 2**31:
        fewer = max(1, 2**31 // answers // recipe.batch // 2)
        raise RecipeError(f"a row would count {answers} answers of {most} images, more than 2^31; write every={fewer}")


def _row(model, placed, state, train, test, data, recipe, driver) -> Row:
    def measure(placed, fed, split):
        count = counter(model, driver, recipe.loss, driver.tunes(split.images.size))
        return count(placed, fed, len(split.labels), fitting(split.images))

    held = getattr(data, recipe.report)
    judged = at_test(state)
    if judged is not state:
        placed = driver.replicate(judged)
    sums = measure(placed, train, data.train) if recipe.train_error == "clean" else state.sums
    tested = measure(placed, test, held)
    row = {
        "step": int(state.step),
        "rate": rate_of(state.opt),
        "train_loss": sums.mean_loss,
        "train_error": sums.error,
        "eval_loss": tested.mean_loss,
        "eval_error": tested.error,
        "eval_split": recipe.report,
        "grad_norm": state.sums.mean_norm,
        "loss_std": state.sums.loss_std,
    }
    if recipe.precise_bn:
        exact = precise(model, state, data.train, recipe.precise_bn, batch=recipe.batch, driver=driver)
        tested = measure(driver.replicate(exact), test, held)
        row |= {"precise_eval_loss": tested.mean_loss, "precise_eval_error": tested.error}
    return row
