"""Training.

`make_train_step` makes the step, a pure function. `train` runs it, and yields a state and a row at
every evaluation.
"""

from __future__ import annotations

import contextlib
import enum
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn import divergence, metrics, multihost, parallel, provenance
from jaxcnn._util import tree_size
from jaxcnn.arguments import check_callable, check_path, format_array, format_value
from jaxcnn.augment import (
    Augmentation,
    as_augmentation,
    augment_batch,
    needs_partner,
    normalize,
)
from jaxcnn.augment import augment as augment_image
from jaxcnn.config import ArgumentError, AugmentConfig, TrainConfig, check_freeze, verify_config
from jaxcnn.data import Dataset, Split
from jaxcnn.evaluation import (
    make_eval_step,
    recompute_batch_stats,
    resolve_batch_size,
    with_axis_name,
)
from jaxcnn.input_pipeline import InputPipeline, Paired, gather_batch, input_pipeline, paired
from jaxcnn.losses import (
    Batch,
    Loss,
    Reconstruction,
    as_loss,
    compute_loss,
    guess_loss,
)
from jaxcnn.models.calling import (
    call,
    sown_values,
    verify_model,
)
from jaxcnn.models.norm import frozen_batch_norm
from jaxcnn.optim import (
    as_transformation,
    current_learning_rate,
    trainable_params,
)
from jaxcnn.optim.transforms import in_any_stage, update_optimizer
from jaxcnn.progress import TrainProgress, should_show
from jaxcnn.records import RunRecords, experiment_config
from jaxcnn.resume import resume_state
from jaxcnn.shutdown import close_at_exit, interactive_interrupt
from jaxcnn.state import (
    AUGMENT,
    DROPOUT,
    ORDER,
    State,
    eval_state,
    fold_in,
    init_state,
    with_variables,
)
from jaxcnn.tensorboard import check_tensorboard
from jaxcnn.training_checks import (
    check_augment,
    check_config,
    check_model,
    check_optimizer,
    check_warmup,
)

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
      axis_name: the mapped axis that splits the batch (`jax.pmap`, `jax.shard_map`). None is one
        device or sharding. An axis adds the averages over devices and nothing else.

    Returns:
      `step(state, split, index) -> state`. `index` is int32 [b], the examples of the batch or of
      this device's part of it. Its values are not checked, and JAX takes the last example for one
      that is too large. With None for `split`, it is the pair of `index` and these examples
      (see `jaxcnn.input_pipeline`). If `augment` mixes examples, it is a `Paired` of two of them.
      Without `axis_name`, int32 [b] will do, and the partner is the example before.

    Raises:
      ArgumentError: an argument is invalid. While the step is traced, one of its own is.

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

    vary = partial(_vary, axis_name=axis_name) if axis_name else (lambda tree: tree)

    is_frozen = partial(in_any_stage, stages=freeze)

    def with_frozen(trained: Any, params: Any) -> Any:
        return {**params, **trained} if freeze else trained

    def step(state: State, split: Split | None, index: Any) -> State:
        _check_step_arguments(state, split, index)
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
            return average(jax.grad(mean_loss, has_aux=True)(vary(params))[0])

        # Line searches differentiate `value_fn`, and pass on arguments that they do not take
        # themselves. Each device's gradient of the averaged loss is that of its own part of the
        # batch. Line searches with such gradients diverge from each other, and one waits for the
        # others for ever. So the gradient is averaged too.
        @jax.custom_vjp
        def averaged_gradient(params):
            return params

        averaged_gradient.defvjp(
            lambda params: (params, None), lambda _, grads: (vary(average(grads)),)
        )
        shared = averaged_gradient if axis_name else (lambda params: params)

        def value_fn(params, error=None, grad_fn=None):
            return average(mean_loss(shared(vary(params)))[0])

        trained = trainable_params(state.params, freeze)
        (value, (main, outputs, stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(
            vary(trained)
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


def _check_step_arguments(state: Any, split: Any, index: Any) -> None:
    """Check the arguments of a step.

    Raises:
      ArgumentError: while tracing, if they are of other kinds, or an index is not int [b].
    """
    if not isinstance(state, State):
        raise ArgumentError(
            f"state is {_describe(state)}; expected a State. Write init_state(model, tx, config, "
            "data), or the state that the last step returned."
        )
    if split is not None and not isinstance(split, Split):
        raise ArgumentError(
            f"split is {_describe(split)}; expected a Split of images and labels. Write "
            "step(state, data.train, index)."
        )
    for each in index if isinstance(index, Paired) else (index,):
        # Without a split, of the numbers and the examples.
        is_pair = split is None and isinstance(each, tuple) and not isinstance(each, Split)
        array: Any = each[0] if is_pair and len(each) == 2 else each
        dtype = getattr(array, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or len(array.shape) != 1:
            pair = ", and the pair of it and its examples without a split" * (split is None)
            raise ArgumentError(
                f"index is {_describe(array)}; expected the numbers of the batch's examples, int32 "
                f"[b]{pair}. Write step(state, data.train, jnp.arange(32))."
            )


def _describe(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return format_array(value)
    return f"of type {type(value).__name__}"


def _vary(tree: Any, axis_name: str) -> Any:
    """Return arrays that JAX takes to differ along an axis, with the same values.

    By default `jax.shard_map` knows which arrays are the same on all devices, and its gradient with
    respect to these is the sum over devices. With respect to arrays that differ, it is that of each
    device's own loss, as it always is under `jax.pmap` and `jax.vmap`.
    """
    index = jax.lax.axis_index(axis_name)
    # A sum over devices has the type of an array that is the same on all of them.
    if jax.typeof(index) == jax.typeof(jax.lax.psum(index, axis_name)):
        return tree

    def vary(leaf):
        # It differs already.
        with contextlib.suppress(ValueError):
            return jax.lax.pcast(leaf, axis_name, to="varying")
        return leaf

    return jax.tree.map(vary, tree)


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

    Cross-entropies are in nats, errors in percent. A run that has diverged gets a row when that is
    seen, and not only when it is due. It is looked for every 250 steps (on accelerators, after
    every scan). The caller decides if the run continues.

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
      data: images and labels. The training part and the one for evaluation are moved whole to every
        device, as bytes. An `np.memmap` of images stays on disk, and is streamed.
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
        run resumed from that state continues in the middle of the epoch, with the same bits. What
        it returns at a step with a row is ignored, because there the caller can leave the loop.
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
            example = "lambda initial: state" if name == "resume" else "lambda step: step >= 90"
            check_callable(name, function, example, num_args=1)
    is_shown = should_show(progress) and multihost.is_primary()
    check_tensorboard(tensorboard)
    if tensorboard and run_dir is None:
        raise ArgumentError(
            "tensorboard is True, but run_dir is None; expected a folder for its files. "
            "Write run_dir='runs/a'."
        )
    if run_dir is not None:
        run_dir = check_path("run_dir", run_dir, example="'runs/a'")
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
    check_warmup(tx, state)
    check_optimizer(tx, state, config, strategy)
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
        loop = _train_loop(
            _Pieces(model, data, config, strategy, loss, augment),
            run,
            state,
            run_facts=run_facts,
            save=save,
            should_stop=should_stop,
            is_shown=is_shown,
        )
        if records is not None:
            loop = _saved(loop, records, config, stack.pop_all())
        return close_at_exit(loop)


def _saved(
    loop: Iterator[tuple[State, Row | None]],
    records: RunRecords,
    config: TrainConfig,
    stack: contextlib.ExitStack,
) -> Generator[tuple[State, Row | None], None, None]:
    """Yield the loop's states and rows, each saved before.

    - Without a row, the run was stopped or is finished already: its state is saved.
    - A row that is due is recorded with its state. One of an interrupt before it is not.
    - The last row is followed by the result, because the caller may leave the loop at once.
    - So is a row of divergence, which is recorded without its state. The run is thereby trained
      again by a later call, and its result replaced: on another machine it may not diverge.
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


class _Pieces(NamedTuple):
    """What a run is made of, besides its state."""

    model: nn.Module
    data: Dataset
    config: TrainConfig
    strategy: parallel.Strategy
    loss: Loss
    augment: Augmentation | None


class _End(enum.Enum):
    """Why steps ended."""

    ROW_IS_DUE = enum.auto()  # also early, for a run that has diverged
    STOPPED = enum.auto()  # by `should_stop`
    INTERRUPTED = enum.auto()  # by Ctrl-C in a notebook


def _train_loop(
    pieces: _Pieces,
    run: Callable[[State, Any, Any], State],
    state: State,
    *,
    run_facts: Mapping[str, Any],
    save: Callable[[State], None],
    should_stop: Callable[[int], Any] | None,
    is_shown: bool,
) -> Generator[tuple[State, Row | None], None, None]:
    """Take the steps of a run, and yield its states and rows.

    Args:
      pieces: of the run.
      run: the compiled steps of a chunk of batches.
      state: on the host, at the first step.
      run_facts: see `provenance.cache_run_facts`.
      save: called with the state of an interrupt before it is evaluated, which a second interrupt
        may end.
      should_stop: as in `train`.
      is_shown: show the progress.
    """
    config, strategy = pieces.config, pieces.strategy
    if state.step >= config.num_steps:
        yield state, None
        return
    train = input_pipeline(pieces.data.train, strategy)
    guess = _loss_of_guessing(pieces.loss, pieces.data, state)
    with TrainProgress(int(state.step), config.num_steps, quiet=not is_shown) as progress:
        take_steps = _steps_function(pieces, run, train, guess, should_stop, progress)
        make_row = _row_function(pieces, train)
        placed, has_diverged = strategy.replicate(state), False
        while state.step < config.num_steps:
            first, start_time = int(state.step), time.perf_counter()
            with interactive_interrupt() as is_interrupted:
                placed, end = take_steps(placed, state, not has_diverged, is_interrupted)
                state = strategy.fetch(placed)
                progress.wait()
                seconds = time.perf_counter() - start_time
                if end is _End.INTERRUPTED:
                    save(state)
                row = make_row(placed, state) if end is not _End.STOPPED else None
            progress.pause()
            if row is None:
                yield state, None
                return
            if end is _End.ROW_IS_DUE:
                reason = divergence.reason(row, guess)
                reason = reason or divergence.nonfinite_parameter(state.params)
                has_diverged = reason is not None
                row |= {"diverged": reason} if reason else {}
                # The sums of the next row start at 0.
                state = state._replace(metrics=jax.tree.map(np.zeros_like, state.metrics))
                placed = placed._replace(metrics=strategy.replicate(state.metrics))
            row["seconds"] = time.perf_counter() - start_time
            row["images_per_second"] = config.batch_size * (int(state.step) - first) / seconds
            facts = dict(run_facts)
            # An interrupt may also come during the evaluation of a row that is due.
            is_last = is_interrupted() and state.step < config.num_steps
            if is_last:
                row["interrupted"] = True
                facts["is_due"] = end is _End.ROW_IS_DUE
            provenance.cache_run_facts(row, facts)
            yield state, row
            if is_last:
                return


def _steps_function(
    pieces: _Pieces,
    run: Callable[[State, Any, Any], State],
    train: InputPipeline,
    guess: float | None,
    should_stop: Callable[[int], Any] | None,
    progress: TrainProgress,
) -> Callable[[State, State, bool, Callable[[], bool]], tuple[State, _End]]:
    """Return a function that takes steps until a row is due, or the run is stopped.

    Its arguments are the state on the devices, which it donates, the same on the host, whether
    divergence makes a row due at once, and a function that checks if Ctrl-C has come. Divergence
    does so once in a run. Later rows of one that continues come when they are due.
    """
    config, strategy = pieces.config, pieces.strategy
    batches = paired(train) if needs_partner(pieces.augment) else train
    order = _order_function(config, pieces.data)
    every = config.eval_every or math.ceil(len(pieces.data.train.images) / config.batch_size)

    def take_steps(placed, state, ends_if_diverged, is_interrupted):
        step = int(state.step)
        due = min(config.num_steps, (step // every + 1) * every)
        for chunk in batches.chunks(order(state.rng, step, due)):
            placed = run(placed, batches.split, chunk)
            step += len(jax.tree.leaves(chunk)[0])
            progress.advance(step)
            if should_stop is not None and should_stop(step) and step < due:
                return placed, _End.STOPPED
            if step == due:
                break
            is_checked = strategy.scans or step % divergence.CHECK_EVERY == 0
            if (
                ends_if_diverged
                and is_checked
                and divergence.find_divergence(placed, strategy, guess) is not None
            ):
                break
            if is_interrupted():
                return placed, _End.INTERRUPTED
        return placed, _End.ROW_IS_DUE

    return take_steps


def _row_function(pieces: _Pieces, train: InputPipeline) -> Callable[[State, State], Row]:
    """Return a function of the state, on the devices and on the host, that returns its row."""
    model, data, config, strategy, loss, _ = pieces
    eval_split = getattr(data, config.eval_split)
    evaluation = input_pipeline(eval_split, strategy)

    def make_row(placed: State, state: State) -> Row:
        sums = sorted(state.metrics.sums.items())
        dtypes = tuple((name, str(value.dtype)) for name, value in sums)

        def measure(placed, pipeline, split):
            rewrite = strategy.should_rewrite_for_cpu(split.images.size)
            count = make_eval_step(model, strategy, loss, dtypes, rewrite)
            batch_size = resolve_batch_size(split.images, None, model, state)
            return count(placed, pipeline, len(split.images), batch_size)

        evaluated = eval_state(state)
        if evaluated is not state:
            placed = strategy.replicate(evaluated)
        is_clean = config.train_metrics == "clean"
        train_metrics = measure(placed, train, data.train) if is_clean else state.metrics
        eval_metrics = measure(placed, evaluation, eval_split)
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
            exact_metrics = measure(strategy.replicate(exact), evaluation, eval_split)
            row |= {f"precise_eval_{name}": mean for name, mean in exact_metrics.means().items()}
        return row

    return make_row
