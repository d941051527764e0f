"""Training.

`make_train_step` makes the step, a pure function. `train` runs it, and yields a state and a row at
every evaluation.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn import divergence, metrics, multihost, parallel, provenance
from jaxcnn._util import tree_size
from jaxcnn.arguments import check_callable, format_value
from jaxcnn.augment import (
    Augmentation,
    as_augmentation,
    augment_batch,
    augmented_shapes,
    needs_partner,
    normalize,
)
from jaxcnn.augment import augment as augment_image
from jaxcnn.config import ArgumentError, AugmentConfig, TrainConfig, check_freeze, verify_config
from jaxcnn.data import Dataset, Split, verify_dataset
from jaxcnn.data.types import label_arrays, place_names
from jaxcnn.evaluation import (
    check_norms,
    is_library_model,
    make_eval_step,
    recompute_batch_stats,
    resolve_batch_size,
    with_axis_name,
)
from jaxcnn.input_pipeline import Paired, gather_batch, input_pipeline, paired
from jaxcnn.losses import (
    Batch,
    Loss,
    Reconstruction,
    are_soft,
    as_loss,
    check_all_labels,
    check_class_numbers,
    compute_loss,
    guess_loss,
    has_class_labels,
    is_library_loss,
)
from jaxcnn.models import IMAGE_NETWORKS, Autoencoder
from jaxcnn.models.calling import (
    batch_shapes,
    call,
    check_normalizer,
    check_once,
    check_outputs,
    sown_values,
    verify_model,
)
from jaxcnn.models.norm import batch_moments, frozen_batch_norm, non_batch_norm_statistic
from jaxcnn.optim import (
    as_transformation,
    config_of,
    current_learning_rate,
    in_stage,
    trainable_params,
)
from jaxcnn.optim.transforms import check_update, update_optimizer
from jaxcnn.progress import TrainProgress, should_show
from jaxcnn.records import RunRecords, experiment_config
from jaxcnn.resume import resume_state
from jaxcnn.shutdown import interactive_interrupt
from jaxcnn.state import (
    AUGMENT,
    DROPOUT,
    ORDER,
    State,
    eval_state,
    fold_in,
    init_state,
    normalizer_of,
    with_variables,
)
from jaxcnn.tensorboard import check_tensorboard

Row = dict[str, Any]
AUX = 0.3
"""Weight of the loss of each auxiliary head, unless the network has its own `aux_weight`.

Heads are what a network sows in "aux" (Szegedy et al. 2014, arXiv:1409.4842, section 5).
"""


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation | optax.MultiSteps,
    *,
    loss: str | Loss = "cross-entropy",
    freeze: tuple[str, ...] = (),
    augment: AugmentConfig | Augmentation = AugmentConfig(),  # noqa: B008
    axis_name: str | None = None,
) -> Callable[[State, Split | None, Any], State]:
    """Return the training step, a pure function.

    A step gathers the batch, normalizes and augments it, computes the gradient, updates the
    parameters and counts. The augmentation of an example is drawn from (seed, step, example), so no
    layout changes it.

    Args:
      model: the network. With an `axis_name` it needs a field for it if it has state other than
        that of flax's BN.
      tx: the optimizer. Its `update` receives those of these extra arguments that it takes. They
        are `value` (the loss), `error` (0..1, or None if the loss counts none), `grad`, `value_fn`
        and `grad_fn`. `value_fn` returns the loss of params on the same batch. `grad_fn` returns
        the gradient of (params, any) there.
      loss: a name in `jaxcnn.LOSSES`, or a function (outputs, batch) -> (losses, metrics). See
        `jaxcnn.losses`. Under `axis_name` it gets this device's part of the batch.
      freeze: stages whose parameters do not change, and whose BN works as in test mode. `tx` gets
        the other parameters only.
      augment: the distribution of crops and flips, or a function of one example, (rng, image,
        target) -> (image, target). See `jaxcnn.augment`. `rng` comes from the seed, the step and
        the example. One that mixes examples is called with (rng, image, target, other_image,
        other_target).
      axis_name: the mapped axis that splits the batch (`jax.pmap`). None is one device or sharding.
        An axis adds the averages over devices and nothing else.

    Returns:
      `step(state, split, index) -> state`. `index` is int32 [b], the examples of the batch or of
      this device's part of it. With None for `split`, it is the pair of `index` and these examples
      (see `jaxcnn.input_pipeline`). If `augment` mixes examples, it is a `Paired` of two of them.
      Without `axis_name`, int32 [b] will do, and the partner is the example before.

    Raises:
      ArgumentError: an argument is invalid.

    Example:
      >>> from jaxcnn import create_model, load_dataset
      >>> data, model, tx = load_dataset("digits"), create_model("plain8", 10), optax.sgd(0.1)
      >>> state = init_state(model, tx, TrainConfig(), data)
      >>> step = jax.jit(make_train_step(model, tx, augment=AugmentConfig(padding=1)))
      >>> int(step(state, data.train, jnp.arange(32)).step)
      1
    """
    tx = as_transformation(tx)
    verify_model(model)
    loss_function = as_loss(loss)
    if axis_name is not None and not isinstance(axis_name, str):
        raise ArgumentError(
            f"axis_name is {format_value(axis_name)}; expected a name or None. "
            "Write axis_name='batch'."
        )
    check_freeze(freeze)
    augment = as_augmentation(augment)
    is_paired = needs_partner(augment)
    model = with_axis_name(model, axis_name)
    average = (lambda tree: jax.lax.pmean(tree, axis_name)) if axis_name else (lambda tree: tree)
    add_up = (lambda tree: jax.lax.psum(tree, axis_name)) if axis_name else (lambda tree: tree)

    # Each device's gradient of an averaged loss is that of its own part of the batch. Line searches
    # with such gradients part, and one waits for the others for ever.
    @jax.custom_vjp
    def averaged_gradient(params):
        return params

    averaged_gradient.defvjp(lambda params: (params, None), lambda _, grads: (average(grads),))
    shared = averaged_gradient if axis_name else (lambda params: params)

    is_frozen = partial(_is_in_any, freeze)

    def with_frozen(trained: Any, params: Any) -> Any:
        return {**params, **trained} if freeze else trained

    def step(state: State, split: Split | None, index: Any) -> State:
        if is_paired:
            index, partner = _with_partner(index, axis_name)
        # [b], [b, h, w, c], [b] or [b, h, w]
        numbers, images, labels = gather_batch(split, index)
        augment_key = fold_in(state.rng, AUGMENT, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(augment_key, numbers)
        inputs = normalize(images, state.normalizer)
        if isinstance(augment, AugmentConfig):
            inputs = jax.vmap(augment_image, (0, 0, None, None))(
                keys, inputs, state.normalizer, augment
            )
        else:
            others = ()
            if is_paired:
                _, other_images, other_labels = gather_batch(split, partner)
                others = normalize(other_images, state.normalizer), other_labels
            inputs, labels = augment_batch(augment, keys, inputs, labels, *others)
        batch = Batch(inputs, labels)

        def mean_loss(params):
            key = fold_in(state.rng, DROPOUT, state.step)
            variables = {"params": with_frozen(params, state.params), **state.model_state}
            mutable = [*state.model_state, "aux"]
            frozen = frozen_batch_norm(is_frozen) if freeze else contextlib.nullcontext()
            with frozen:
                outputs, collections = call(
                    model,
                    variables,
                    inputs,
                    train=True,
                    mutable=mutable,
                    key=key,
                    axis_name=axis_name,
                )
            heads = sown_values(collections.get("aux", {}))
            aux = sum(compute_loss(loss_function, head, batch)[0].mean() for head in heads)
            stats = {name: collections[name] for name in state.model_state}
            main = compute_loss(loss_function, outputs, batch)[0].mean()
            return main + getattr(model, "aux_weight", AUX) * aux, (main, outputs, stats)

        # For methods that look at a second point.
        def grad_fn(params, _):
            return average(jax.grad(mean_loss, has_aux=True)(params)[0])

        # Line searches pass on extra arguments that they do not take themselves.
        def value_fn(params, error=None, grad_fn=None):
            return average(mean_loss(shared(params))[0])

        trained = trainable_params(state.params, freeze)
        (value, (main, outputs, stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(
            trained
        )
        value, main, grads = average((value, main, grads))
        losses, values = compute_loss(loss_function, outputs, batch)
        sums = add_up(metrics.count(losses, values, jnp.ones(len(inputs), bool)))
        _check_metrics(state.metrics, sums)
        size = sums.num_examples.astype(jnp.float32)
        num_wrong = sums.sums.get("error")
        error = None if num_wrong is None else num_wrong.astype(jnp.float32) / size
        # Optax's arithmetic mixes counts with rates.
        with jax.numpy_dtype_promotion("standard"):
            extra_args = {
                "value": value,
                "error": error,
                "grad_fn": grad_fn,
                "grad": grads,
                "value_fn": value_fn,
            }
            updates, opt_state = update_optimizer(tx, grads, state.opt_state, trained, **extra_args)
            params = with_frozen(optax.apply_updates(trained, updates), state.params)
        sums = sums._replace(
            grad_norm=size * optax.tree.norm(grads), squared_batch_loss=size * main**2
        )
        return state._replace(
            step=state.step + 1,
            params=params,
            model_state=_with_dtypes_of(state.model_state, stats),
            opt_state=_with_dtypes_of(state.opt_state, opt_state),
            metrics=metrics.add(state.metrics, sums),
        )

    return step


def _with_partner(index: Any, axis_name: str | None) -> Paired:
    """Return the index of a batch and that of its partners.

    Raises:
      ArgumentError: while tracing, if it has no partners and is a device's part of the batch.
    """
    if isinstance(index, Paired):
        return index
    if axis_name is None:
        return Paired(index, jax.tree.map(lambda array: jnp.roll(array, 1, axis=0), index))
    raise ArgumentError(
        "augment mixes examples, and the step has only those of one device; expected their "
        "partners too. Write jaxcnn.input_pipeline.pair(index) before the batch is split."
    )


def _check_metrics(old: metrics.Metrics, new: metrics.Metrics) -> None:
    """Check that a state sums up the metrics of this loss.

    Raises:
      ArgumentError: while tracing, if it does not.
    """
    if old.sums.keys() != new.sums.keys():
        counted, needed = (", ".join(sums) or "no metrics" for sums in (old.sums, new.sums))
        raise ArgumentError(
            f"the state sums up {counted}, and the loss has {needed}; expected the same. "
            "Write init_state(model, tx, config, data, loss=loss)."
        )


def _with_dtypes_of(old: Any, new: Any) -> Any:
    """Return `new` in the dtypes of `old`.

    With JAX_ENABLE_X64, arithmetic on counts and rates gives wider ones.
    """
    if jax.tree.structure(old) != jax.tree.structure(new):
        return new
    # The new leaves of an optimizer may be numbers of Python.
    return jax.tree.map(
        lambda a, b: b if getattr(b, "dtype", None) == a.dtype else jnp.asarray(b).astype(a.dtype),
        old,
        new,
    )


def epoch_order(
    key: jax.Array, first: int, last: int, batch_size: int, n: int, shuffle: bool = True
) -> np.ndarray:
    """Return the examples of the steps from `first` to before `last`.

    Examples are an endless stream of seeded permutations of all n, cut into batches. Each occurs
    once in an epoch, and no remainder is dropped. A step's batch depends only on the seed and the
    step.

    Args:
      key: the run's.
      first: the first step.
      last: the step after the last one.
      batch_size: examples in a batch.
      n: number of examples.
      shuffle: permute the examples; else they are in ascending order.

    Returns:
      int32 [last - first, batch].
    """

    def epoch_examples(epoch):
        order = jax.random.permutation(fold_in(key, ORDER, epoch), n) if shuffle else np.arange(n)
        return np.asarray(order, np.int32)

    begin, end = first * batch_size, last * batch_size
    epochs = range(begin // n, math.ceil(end / n))
    flat = np.concatenate([epoch_examples(epoch) for epoch in epochs])
    flat = flat[begin - epochs[0] * n :][: end - begin]
    return flat.reshape(last - first, batch_size)


@parallel.cached_program
def _trainer(model, tx, step_items, strategy, rewrite_for_cpu):
    step = make_train_step(model, tx, **dict(step_items), axis_name=strategy.axis_name)
    return strategy.compile_steps(step, rewrite_for_cpu)


def step_kwargs(config: TrainConfig, augment: Augmentation | None = None) -> dict[str, Any]:
    """Return the config's keyword arguments of `make_train_step`.

    `augment` takes the place of the config's.
    """
    return {"freeze": config.freeze, "augment": config.augment if augment is None else augment}


def _order_function(config, data) -> Callable[[Any, int, int], np.ndarray]:
    """Return `order(key, first, last)`, the examples of these steps.

    They are in the config's order of the training images.
    """
    labels, n = data.train.labels, len(data.train.images)
    if config.order == "shuffled":
        return lambda key, first, last: epoch_order(key, first, last, config.batch_size, n)
    by_label = np.argsort(labels, kind="stable").astype(np.int32)
    return lambda key, first, last: by_label[
        epoch_order(key, first, last, config.batch_size, n, shuffle=False)
    ]


def train(
    model: nn.Module,
    tx: optax.GradientTransformation | optax.MultiSteps,
    data: Dataset,
    config: TrainConfig,
    *,
    loss: str | Loss = "cross-entropy",
    augment: Augmentation | None = None,
    variables: Mapping[str, Any] | State | None = None,
    run_dir: str | Path | None = None,
    resume: Callable[[State], State | None] | None = None,
    warm_start: bool = False,
    strategy: parallel.Strategy | None = None,
    should_stop: Callable[[int], Any] | None = None,
    progress: bool | None = None,
    tensorboard: bool = False,
) -> Iterator[tuple[State, Row | None]]:
    """Train, and yield `(state, row)` every `config.eval_every` steps.

    The loop, and what is done in it, is the caller's.

    The rows of a run have the same bits on one machine. This needs the same number of usable
    cores and the same versions of Python's packages. Elsewhere they are equal to rounding.

    A row has these keys:

    - `step`, and `rate`, the learning rate, or None where the optimizer's state does not have it.
    - `train_loss` and `train_error`: running means over the row's augmented batches, or with
      `config.train_metrics` "clean" those of a pass in test mode.
    - `eval_loss`, `eval_error` and `eval_split`, the name of their split (`config.eval_split`).
    - For a loss of the user's own, `train_` and `eval_` with the names of its metrics in place of
      the errors.
    - `grad_norm`, and `loss_std` over the row's batches.
    - `seconds` and `images_per_second`.
    - With `config.recompute_batch_stats`, `precise_eval_loss` and `precise_eval_error`.
    - With a run that has diverged (`jaxcnn.divergence`), `diverged`, the reason.
    - After Ctrl-C in a notebook, `interrupted`, True.

    Cross-entropies are in nats, errors in percent. A run that has diverged gets a row at once, not
    only when it is due. The caller decides if it continues.

    In a notebook, Ctrl-C (or "interrupt the kernel") ends the training after the current step. Its
    state and a row of it are yielded, and are the last. A run resumed from that state has the bits
    of one that was never stopped, so the row is not written unless it was due. A second Ctrl-C
    raises KeyboardInterrupt, as the first does in a script.

    Args:
      model: a flax.linen Module called with images and, if it takes one, a flag: `train`,
        `training`, `is_training`, or its opposite, `deterministic`. What it sows in "aux" is
        trained on as auxiliary outputs, whose losses have the weight 0.3, or the model's
        `aux_weight`. Other sown values are dropped, so a term of the loss is an output. Its random
        streams may have any names.
      tx: any optax transformation, or `optax.MultiSteps`. `jaxcnn.create_optimizer` makes those of
        `jaxcnn.OPTIMIZERS`.
      data: images and labels. The training part is moved whole to every device, as bytes.
      config: the numbers.
      loss: a name in `jaxcnn.LOSSES`, or a function (outputs, batch) -> (losses, metrics). See
        `jaxcnn.losses`. `config.augment` changes the images alone, not labels such as boxes.
      augment: a function of one example, in place of `config.augment`: (rng, image, target) ->
        (image, target). See `jaxcnn.augment`. If it makes labels soft, `train_error` is against the
        class of the largest share. It must not change, as what is compiled for it would not.
      variables: parameters and statistics to start from, such as those of `jaxcnn.load_weights`, in
        place of initialized ones (`with_variables`). `run.json` has a digest of them.
      run_dir: folder of the run's records and checkpoints (`RunLog`, `Checkpoints`), from which it
        resumes. Rows and states are saved before they are yielded. More `num_steps` than the
        folder's are allowed, and `run.json` lists both numbers. The last two states stay, and the
        best (`Checkpoints.variables("best")`): that of the lowest `eval_error`, or of the lowest
        `eval_loss` if the loss counts no error or is "reconstruction". None saves nothing.
      resume: a function of the state at step 0. It returns the state to resume, or None, as
        `Checkpoints.restore` does. A state that was trained with another rate, seed or normalizer
        than the config's is an error. More `num_steps` than it was trained with are allowed.
      warm_start: allow such a state from `resume`, with its step, parameters, statistics and the
        optimizer's moments. Training continues with the new rate, seed and normalizer, and a
        `RunLog` of the caller's records the changes.
      strategy: devices, such as `jaxcnn.strategy("pmap")`; by default "jit" over all devices.
      should_stop: called with the step number after every step (on accelerators, after every scan).
        When it returns true before a row is due, `(state, None)` is yielded and training ends. A
        run resumed from that state continues in the middle of the epoch, with the same bits.
      progress: show steps, their rate and the remaining time on stderr, or in a notebook as a bar.
        None does so in a notebook and on a terminal.
      tensorboard: write the rows to event files in `tensorboard/` of `run_dir` too (`RunLog`).

    Yields:
      The state as NumPy arrays on the host, and its row. A run that is already finished yields its
      state once: with its last row if there is a `run_dir`, and with None otherwise. With
      `run_dir`, a run that has diverged ends with that row. A later call trains it again from the
      last saved state, and replaces its result.

    Raises:
      ArgumentError: before a step is compiled. Such as a batch that does not divide by the
        devices or exceeds the data, or a model whose outputs do not fit the labels.
    """
    strategy = parallel.check_strategy(strategy)
    verify_model(model)
    verify_config(config, TrainConfig)
    loss = as_loss(loss)
    check_config(config, data, strategy, loss)
    check_augment(augment, config, data, loss)
    tx = as_transformation(tx)
    for name, function in (("resume", resume), ("should_stop", should_stop)):
        if function is not None:
            example = "checkpoints.restore" if name == "resume" else "stop"
            check_callable(name, function, example, num_args=1)
    is_shown = should_show(progress) and multihost.is_primary()
    check_tensorboard(tensorboard)
    if tensorboard and run_dir is None:
        raise ArgumentError(
            "tensorboard is True, but run_dir is None; expected a folder for its files. "
            "Write run_dir='runs/a'."
        )
    if run_dir is not None and resume is not None:
        raise ArgumentError(
            "resume and run_dir are both there; expected one of them, as a run resumes from its "
            "run_dir. Leave out resume."
        )
    if warm_start and resume is None:
        raise ArgumentError(
            "warm_start is True, but resume is None; expected the state to start from. Write "
            "resume=lambda initial: state."
        )
    state = init_state(model, tx, config, data, loss=loss)
    if variables is not None:
        state = with_variables(state, variables)
    check_model(model, state, data, config, strategy, loss, augment)
    _check_warmup(tx, state)
    _check_optimizer(tx, state, config, strategy)
    run_facts = provenance.run_facts(
        model, tx, config, data, state.params, state.opt_state, loss=loss, augment=augment
    )
    run_facts["variables"] = None if variables is None else provenance.variables_digest(variables)
    with contextlib.ExitStack() as stack:
        records = None
        if run_dir is not None:
            experiment = experiment_config(model, tx, data, config, loss, augment)
            records = RunRecords(
                experiment,
                run_dir,
                strategy,
                data,
                model=model,
                tx=tx,
                reopen=True,
                tensorboard=tensorboard,
                run_facts=run_facts,
            )
            resume = stack.enter_context(records).restore
        if resume is not None and (restored := resume(state)) is not None:
            if not isinstance(restored, State):
                raise ArgumentError(
                    f"resume returned {format_value(restored)}; expected a State, or None to start "
                    "at step 0. Write resume=checkpoints.restore."
                )
            state, changes = resume_state(restored, state, config, data, warm_start)
            if changes:
                run_facts["warm_start"] = {"step": int(state.step), "changed": changes}
        num_values = config.num_steps * config.batch_size * math.prod(data.train.images.shape[1:])
        rewrite = strategy.should_rewrite_for_cpu(num_values)
        # What is compiled depends on the update alone, so `init` is left out of the key of the
        # cache. Optimizers that only start in another state share a program. See "Surprises" in
        # CONTRIBUTING.md.
        update_only = tx._replace(init=init_state)
        options = tuple((step_kwargs(config, augment) | {"loss": loss}).items())
        run = _trainer(model, update_only, options, strategy, rewrite)
        save = (lambda state: None) if records is None else records.save
        pieces = (model, run, state, data, config, strategy, loss)
        loop = _train_loop(
            *pieces, should_stop, run_facts, save, is_shown, is_paired=needs_partner(augment)
        )
        return loop if records is None else _saved(loop, records, config, stack.pop_all())


def _saved(
    loop: Iterator[tuple[State, Row | None]],
    records: RunRecords,
    config: TrainConfig,
    stack: contextlib.ExitStack,
) -> Iterator[tuple[State, Row | None]]:
    """Yield the loop's states and rows, each saved before.

    The last row is followed by the result, because the caller may leave the loop at once. A run
    that has diverged has no state after it, so that it is trained again, and its result replaced:
    on another machine it may not diverge.
    """
    is_finished = records.result is not None and records.result["status"] == "finished"
    with stack:
        for state, row in loop:
            is_last = state.step >= config.num_steps
            if row is None:
                row = records.last_row() if is_last else None
                records.save(state)
            # The row of an interrupt between two rows is not one of the run.
            elif _is_due(state, row):
                records.record(state, {k: v for k, v in row.items() if k != "interrupted"})
            reason = row.get("diverged") if row else None
            if not is_finished and (is_last or reason):
                records.finish(tree_size(state.params), reason)
            yield state, row
            if reason:
                return


def _loss_of_guessing(loss: Loss, data: Dataset, state: State) -> float | None:
    """Return the loss of guessing, as `divergence.reason` takes it.

    For a reconstruction it is that of the output 0: the mean square of the normalized images. It is
    at least 1, as a network's first outputs are of that size whatever the images are divided by.
    """
    if not isinstance(loss, Reconstruction):
        return guess_loss(loss, data.num_classes)
    mean, std = state.normalizer
    squares = np.square(data.std) + np.square(data.mean - np.asarray(mean))
    return max(1.0, float(np.mean(squares / np.square(np.asarray(std)))))


def _is_due(state: State, row: Row) -> bool:
    """Check if a row of `train` is one of the run, and not only that of an interrupt.

    The sums of a state start again after a row that was due.
    """
    return "interrupted" not in row or not int(state.metrics.num_examples)


def _train_loop(
    model,
    run,
    state,
    data,
    config,
    strategy,
    loss,
    should_stop,
    run_facts,
    save,
    is_shown,
    is_paired,
) -> Iterator[tuple[State, Row | None]]:
    placed, train = strategy.replicate(state), input_pipeline(data.train, strategy)
    batches = paired(train) if is_paired else train
    test = input_pipeline(getattr(data, config.eval_split), strategy)
    step, order = int(state.step), _order_function(config, data)
    has_diverged, guess = False, _loss_of_guessing(loss, data, state)
    every = config.eval_every or math.ceil(len(data.train.images) / config.batch_size)
    if step >= config.num_steps:
        yield state, None
        return
    with TrainProgress(step, config.num_steps, quiet=not is_shown) as progress:
        while step < config.num_steps:
            start_time, first = time.perf_counter(), step
            due = min(config.num_steps, (step // every + 1) * every)
            with interactive_interrupt() as is_interrupted:
                has_stopped = is_complete = False
                for chunk in batches.chunks(order(state.rng, step, due)):
                    placed = run(placed, batches.split, chunk)
                    step += len(jax.tree.leaves(chunk)[0])
                    progress.advance(step)
                    has_stopped = should_stop is not None and should_stop(step) and step < due
                    is_checked = strategy.scans or step % divergence.CHECK_EVERY == 0
                    # The row of a divergence is due now. There is one such row, then the usual
                    # ones.
                    is_complete = step == due or (
                        not has_diverged
                        and is_checked
                        and divergence.find_divergence(placed, strategy, guess) is not None
                    )
                    if has_stopped or is_complete or is_interrupted():
                        break
                state = strategy.fetch(placed)
                progress.wait()
                seconds, row = time.perf_counter() - start_time, None
                # Saved before it is evaluated, which a second interrupt may end.
                if not has_stopped and not is_complete:
                    save(state)
                if not has_stopped:
                    row = _metrics_row(
                        model, placed, state, train, test, data, config, strategy, loss
                    )
            progress.pause()
            if row is None:
                yield state, None
                return
            if is_complete:
                reason = divergence.reason(row, guess)
                reason = reason or divergence.nonfinite_parameter(state.params)
                has_diverged, row = (
                    reason is not None,
                    row | ({"diverged": reason} if reason else {}),
                )
                state = state._replace(metrics=jax.tree.map(np.zeros_like, state.metrics))
                placed = placed._replace(metrics=strategy.replicate(state.metrics))
            row |= {
                "seconds": time.perf_counter() - start_time,
                "images_per_second": config.batch_size * (step - first) / seconds,
            }
            is_last = is_interrupted() and step < config.num_steps
            row |= {"interrupted": True} if is_last else {}
            provenance.cache_run_facts(
                row, run_facts | {"is_due": is_complete} if is_last else run_facts
            )
            yield state, row
            if is_last:
                return


def check_config(
    config: TrainConfig,
    data: Dataset,
    strategy: parallel.Strategy,
    loss: str | Loss = "cross-entropy",
) -> None:
    """Check that `config` can be trained on `data` with `strategy` and `loss`.

    Nothing is compiled.

    Raises:
      ArgumentError: the config does not fit the data or the devices.
      DataError: the data are invalid.
    """
    loss = as_loss(loss)
    verify_dataset(data, are_classes=has_class_labels(loss))
    n = len(data.train.images)
    strategy.check(config.batch_size)
    if config.batch_size > n:
        count = len(strategy.devices)
        fitting = min(128, n) // count * count
        raise ArgumentError(
            f"batch_size is {config.batch_size}, more than the {n} training images; "
            + (f"write batch_size={fitting}" if fitting else f"use {n} devices at most")
        )
    _check_masks(config, data, loss)
    if isinstance(loss, Reconstruction):
        _check_count(config, data, data.train.images.shape)
    elif has_class_labels(loss):
        labels = data.train.labels
        _check_count(config, data, labels.shape[:1] if are_soft(labels) else labels.shape)
    weights = getattr(loss, "class_weights", None)
    if weights is not None and is_library_loss(loss) and len(weights) != data.num_classes:
        raise ArgumentError(
            f"class_weights has {len(weights)} numbers and the data {data.num_classes} classes; "
            "expected one for each class"
        )
    if config.order == "sorted" and not _have_one_class_each(data.train.labels):
        raise ArgumentError(
            "order is 'sorted', but the labels are not a class for each image; "
            "write order='shuffled'"
        )
    if not len(getattr(data, config.eval_split).images):
        others = [name for name in ("validation", "test") if len(getattr(data, name).images)]
        fix = f"eval_split={others[0]!r}" if others else "data = jaxcnn.hold_out(data, n, seed=0)"
        fix += "" if others else " and eval_split='validation'"
        raise ArgumentError(
            f"the {config.eval_split} split is empty; expected at least one image. Write {fix}."
        )
    # Constants of another number of channels are an error.
    jax.eval_shape(partial(normalizer_of, config, data))
    if config.recompute_batch_stats and not config.batch_size <= config.recompute_batch_stats <= n:
        raise ArgumentError(
            f"recompute_batch_stats is {config.recompute_batch_stats}; "
            f"expected {config.batch_size} (one batch) to {n} images, or 0"
        )
    if config.divide_std is True and not data.std.all():
        raise ArgumentError(
            "divide_std is True, but a channel of the training images never changes; "
            "write divide_std=False"
        )


def check_augment(
    augment: Any, config: TrainConfig, data: Dataset, loss: str | Loss = "cross-entropy"
) -> None:
    """Check that an augmentation can take the place of the config's.

    Its result for an example of the data is traced. Nothing is compiled.

    Raises:
      ArgumentError: it is no function of an example, changes a shape or a dtype, or the config has
        an augmentation of its own.
    """
    if augment is None:
        return
    if isinstance(augment, AugmentConfig):
        raise ArgumentError(
            "augment is an AugmentConfig; expected a function, or None. Write "
            "augment=jaxcnn.augment.from_config(...), or jaxcnn.override(config, augment=...)."
        )
    as_augmentation(augment)
    if config.augment != AugmentConfig():
        raise ArgumentError(
            f"augment is a function, and the config has {config.augment}; expected one of them. "
            "Write augment=jaxcnn.augment.chain(jaxcnn.augment.from_config(config.augment), "
            "function), and leave augment out of the config."
        )
    if needs_partner(augment) and config.batch_size < 2:
        raise ArgumentError(
            "batch_size is 1, and augment mixes the examples of a batch; expected at least 2. "
            "Write batch_size=128."
        )
    _, targets = augmented_shapes(augment, data.train, config.batch_size)
    labels = data.train.labels
    if not has_class_labels(as_loss(loss)) or not are_soft(targets):
        return
    num_outputs = targets.shape[-1]
    if targets.ndim != labels.ndim + (not are_soft(labels)) or num_outputs != data.num_classes:
        raise ArgumentError(
            f"augment returns shares of {num_outputs} classes, and the data has "
            f"{data.num_classes}; expected as many. Write num_classes=data.num_classes."
        )


def _have_one_class_each(labels: Any) -> bool:
    return isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu"


def _check_warmup(tx: Any, state: State) -> None:
    """Check that a warm-up by the training error has one.

    Raises:
      ArgumentError: it has none.
    """
    made_from = config_of(tx)
    is_waiting = made_from is not None and made_from[0].warmup_lr is not None
    if is_waiting and "error" not in state.metrics.sums:
        raise ArgumentError(
            "warmup_lr waits for the training error, which the loss does not count; expected a "
            "bool metric 'error'. Write warmup_lr=None."
        )


def _check_optimizer(
    tx: optax.GradientTransformationExtraArgs,
    state: State,
    config: TrainConfig,
    strategy: parallel.Strategy,
) -> None:
    """Check that an optimizer of the user's own works, before anything is compiled.

    Raises:
      ArgumentError: its update fails, or what it returns does not fit.
    """
    if config_of(tx) is not None:
        return
    params = trainable_params(state.params, config.freeze)
    key = ("update", tx.update, config.freeze, strategy.axis_name)
    check = partial(check_update, tx, state.opt_state, params, strategy.axis_name)
    check_once(key, (state.opt_state, params), check)


def check_model(
    model: nn.Module,
    state: State,
    data: Dataset,
    config: TrainConfig,
    strategy: parallel.Strategy,
    loss: str | Loss = "cross-entropy",
    augment: Augmentation | None = None,
) -> None:
    """Check that the outputs of `model` fit the data and the loss.

    Training and test mode are both checked. Nothing is compiled.

    Raises:
      ArgumentError: they do not, the model refuses the normalization, `config.freeze` freezes
        statistics that are not of a BN, or under pmap there are such statistics that the model does
        not average.
    """
    loss = as_loss(loss)
    # The model may read the constants, and the state may be one of shapes.
    if hasattr(model, "check_normalizer"):
        check_normalizer(model, normalizer_of(config, data))
    is_classifier, num_classes = has_class_labels(loss), data.num_classes
    count = getattr(model, "num_classes", num_classes)
    if is_classifier and count != num_classes:
        raise ArgumentError(
            f"the model gives {count} output{'s' * (count != 1)} and the data has {num_classes} "
            f"classes; expected as many. Build the model with {num_classes} outputs."
        )
    if config.recompute_batch_stats:
        check_norms(model, state, (config.batch_size, *data.train.images.shape[1:]))
    if has_known_outputs(model, data, loss):
        return
    variables = {"params": state.params, **state.model_state}
    frozen, is_frozen = config.freeze, partial(_is_in_any, config.freeze)
    local_batch = config.batch_size // (len(strategy.devices) if strategy.axis_name else 1)

    def trace() -> tuple[str | None, str | None, tuple[int, ...], Any]:
        norms, frozen_norms, losses, outputs = set(), set(), None, None
        # The batch of test mode is a size that is not the number of classes.
        for train, n, axis in (
            (False, 97 + (num_classes == 97), None),
            (True, local_batch, strategy.axis_name),
        ):
            images, labels = batch_shapes(data.train, n)
            if train and augment is not None:
                images, labels = augmented_shapes(augment, data.train, n)
            with frozen_batch_norm(is_frozen, frozen_norms), batch_moments(norms):
                network = with_axis_name(model, axis)
                outputs, losses, _ = check_outputs(
                    network,
                    variables,
                    images,
                    labels,
                    loss,
                    num_classes,
                    train=train,
                    axis_name=axis,
                )
        frozen_statistic = non_batch_norm_statistic(state.model_state, frozen_norms, is_frozen)
        statistic = non_batch_norm_statistic(state.model_state, norms, lambda _: True)
        return frozen_statistic, statistic, np.shape(losses), outputs

    shapes = batch_shapes(data.train, 1)
    key = ("fit", model, frozen, local_batch, shapes, loss, num_classes, strategy.axis_name)
    key += () if augment is None else (augment,)
    frozen_statistic, statistic, losses_shape, outputs = check_once(key, variables, trace)
    _check_count(config, data, losses_shape)
    for name in ("train", config.eval_split):
        check_all_labels(loss, getattr(data, name).labels, outputs, name)
        # An augmentation may give the training images other labels.
        if augment is None or name != "train":
            check_class_numbers(loss, getattr(data, name), outputs, name)
    if statistic and strategy.axis_name and not hasattr(model, "axis_name"):
        raise ArgumentError(
            f"{type(model).__name__} has no field `axis_name`, and {statistic} is not of a "
            "BatchNorm, so under pmap it would be of one device's share only; add the field and "
            "average over that axis, or write strategy=jaxcnn.strategy('jit')"
        )
    if frozen_statistic:
        raise ArgumentError(
            f"freeze has {', '.join(frozen)}, but {frozen_statistic} is not of a BatchNorm, "
            "and would keep moving; expected flax.linen.BatchNorm or a subclass there. "
            "Leave the stage out of freeze."
        )


def _is_in_any(stages: tuple[str, ...], name: str) -> bool:
    return any(in_stage(name, stage) for stage in stages)


def has_known_outputs(model: nn.Module, data: Dataset, loss: Loss) -> bool:
    """Check if the outputs of a library model are known to fit the data and the loss.

    The library's models are tested to return what their fields say, and tracing takes seconds. What
    remains is an answer for each image where the data has one for each pixel, or vice versa.

    Args:
      model: of the library or of the user.
      data: images and labels.
      loss: function of outputs and batch.
    """
    if not is_library_model(model) or getattr(loss, "class_weights", None) is not None:
        return False
    if isinstance(loss, Reconstruction):
        return isinstance(model, Autoencoder)
    if not has_class_labels(loss):
        return False
    has_masks = data.train.labels.ndim > 1 and not are_soft(data.train.labels)
    return isinstance(model, IMAGE_NETWORKS) == has_masks


def _check_masks(config, data, loss) -> None:
    """Check that images whose labels are pixels or places are not moved.

    Changes of an image would have to be those of its mask or its boxes.
    """
    images, labels = data.train
    has_masks = not isinstance(loss, Reconstruction) and any(
        array.shape[:3] == images.shape[:3] for _, array in label_arrays(labels)
    )
    places = place_names(labels)
    augment = config.augment
    moves = augment.padding or augment.flip or augment.crop != "pad"
    if moves and (has_masks or places):
        kind = f"have {places[0]}" if places else "are masks"
        raise ArgumentError(
            f"labels {kind}, which augmentation would leave where they are; "
            "write padding=0 and flip=False, or augment= a function that moves both"
        )


def _check_count(config, data, losses: tuple[int, ...]) -> None:
    """Check that the number of losses in a row fits into int32.

    Args:
      config: of the run.
      data: images and labels.
      losses: shape [b, ...] of the losses of b images.
    """
    per_image, name = math.prod(losses[1:]), config.eval_split
    # So many images fit.
    limit = (2**31 - 1) // max(per_image, 1)
    num_train, num_eval = len(data.train.images), len(getattr(data, name).images)
    batches = config.eval_every or math.ceil(num_train / config.batch_size)
    if num_eval > limit:
        count, fix = num_eval, f"data = data._replace({name}=data.{name}.take(slice({limit})))"
    elif config.train_metrics == "clean" and num_train > limit:
        count, fix = num_train, "train_metrics='running'"
    elif batches * config.batch_size > limit:
        count, every = batches * config.batch_size, limit // config.batch_size
        fix = f"eval_every={every}" if every else f"batch_size={limit}, or smaller images"
    else:
        return
    raise ArgumentError(
        f"a row would count {per_image} answers for each of {count} images; expected less than "
        f"2^31 in all. Write {fix}."
    )


def _metrics_row(model, placed, state, train, test, data, config, strategy, loss) -> Row:
    dtypes = tuple((name, str(value.dtype)) for name, value in sorted(state.metrics.sums.items()))

    def measure(placed, pipeline, split):
        rewrite = strategy.should_rewrite_for_cpu(split.images.size)
        count = make_eval_step(model, strategy, loss, dtypes, rewrite)
        batch_size = resolve_batch_size(split.images, None, model, state)
        return count(placed, pipeline, len(split.images), batch_size)

    eval_split = getattr(data, config.eval_split)
    evaluated = eval_state(state)
    if evaluated is not state:
        placed = strategy.replicate(evaluated)
    is_clean = config.train_metrics == "clean"
    train_metrics = measure(placed, train, data.train) if is_clean else state.metrics
    eval_metrics = measure(placed, test, eval_split)
    row = {
        "step": int(state.step),
        "rate": current_learning_rate(state.opt_state),
        **{f"train_{name}": mean for name, mean in train_metrics.means().items()},
        **{f"eval_{name}": mean for name, mean in eval_metrics.means().items()},
        "eval_split": config.eval_split,
        "grad_norm": state.metrics.mean_grad_norm,
        "loss_std": state.metrics.loss_std,
    }
    if config.recompute_batch_stats:
        exact = recompute_batch_stats(
            model,
            state,
            data.train,
            config.recompute_batch_stats,
            batch_size=config.batch_size,
            strategy=strategy,
        )
        exact_metrics = measure(strategy.replicate(exact), test, eval_split)
        row |= {f"precise_eval_{name}": mean for name, mean in exact_metrics.means().items()}
    return row
