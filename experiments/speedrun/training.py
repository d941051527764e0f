"""Training of the speed run: loss, schedule, optimizer, lookahead, runs and image order.

The method is that of Jordan 2024 (arXiv:2404.00498), sections 3.1 and 3.4, with its numbers for
94%. The start, the step and the test of a run are each compiled once for all runs. On an
accelerator all steps are one program. The order of the images is one stream of shuffled passes over
all of them, split into batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import jaxcnn as jc
from experiments.speedrun.network import Net, average_logits, train_view, whitening_kernel
from experiments.speedrun.options import Options
from jaxcnn import augment, parallel
from jaxcnn.state import fold_in

START_RATE, PEAK_POSITION, END_RATE = 0.2, 0.23, 0.07
"""Corners of the schedule.

The rate rises from 20% to 100% over the first 23% of the steps and falls to 7%, both linearly.
"""
LOOKAHEAD_INTERVAL, LOOKAHEAD_DECAY = 5, 0.95**5
"""Steps between two updates of lookahead, and its decay.

The decay is the share of the slow parameters that an update keeps at the end.
"""
MAX_STEPS_AHEAD = 8
"""Largest number of steps that wait for their results.

The loop on a CPU starts no more. It then responds soon to a stop.
"""
INIT_STREAM, VIEW_STREAM = range(2)
"""Streams of randomness of a run."""


def num_steps(options: Options, n: int) -> int:
    """Return the updates of a run on n images.

    Example:
      >>> num_steps(Options(), 50_000)
      484
    """
    return math.ceil(options.epochs * n / options.batch_size)


def triangular_schedule(num_steps: int) -> optax.Schedule:
    """Return the schedule: a function from step to relative rate."""
    positions = jnp.array([0.0, PEAK_POSITION * num_steps, num_steps])
    rates = jnp.array([START_RATE, 1.0, END_RATE])
    return lambda step: jnp.interp(jnp.asarray(step, jnp.float32), positions, rates)


def parameter_groups(params: Any) -> Any:
    """Return a tree with the name of each parameter's group.

    The groups are "kernel", "bias" (BN's), "scale" (BN's) and "whitening" (that layer's bias).
    """

    def group(path, _):
        name = path[-1].key
        return "whitening" if name == "whitening_bias" else name

    return jax.tree_util.tree_map_with_path(group, params)


def make_optimizer(options: Options, n: int) -> optax.GradientTransformation:
    """Make Nesterov's momentum with a decay independent of a parameter's rate.

    Only the schedule multiplies the decay. BN's scales stay 1, and its biases have `bias_rate`
    times the learning rate. The whitening's bias is constant after `whitening_epochs`.

    Args:
      options: of the speed run.
      n: number of training images.
    """
    steps = num_steps(options, n)
    unit = options.batch_size / 1024 / (1 + 1 / (1 - options.momentum))
    schedule = triangular_schedule(steps)

    def momentum(scale: float = 1.0, end: float = math.inf) -> optax.GradientTransformation:
        def negative_rate(step):
            return jnp.where(jnp.asarray(step) < end, -jnp.asarray(schedule(step)), 0.0)

        return optax.chain(
            optax.scale(options.learning_rate * unit * scale),
            optax.add_decayed_weights(options.weight_decay * unit),
            optax.trace(options.momentum, nesterov=True),
            optax.scale_by_schedule(negative_rate),
        )

    groups: dict[Any, optax.GradientTransformation] = {
        "kernel": momentum(),
        "bias": momentum(options.bias_rate),
        "scale": optax.set_to_zero(),
        "whitening": momentum(end=options.whitening_epochs * n / options.batch_size),
    }
    return optax.partition(groups, parameter_groups)


def smoothed_cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Return the cross-entropy with smoothed labels.

    Args:
      logits: [b, num_classes].
      labels: integers [b].
      smoothing: share of a label that is spread over all classes.

    Returns:
      [b], nats.
    """
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, smoothing))


def lookahead(slow: Any, fast: Any, step: jax.Array, steps: int) -> tuple[Any, Any]:
    """Update the slow parameters in every fifth step.

    The fast ones are reset to them then. An update keeps the share 0.95^5 (step / steps)^3 of the
    slow parameters. At first that is 0, so that they follow the fast ones. At the end it is 77%.

    Args:
      slow: tree of parameters.
      fast: tree of parameters, of the same structure.
      step: number of steps taken, int32 [].
      steps: number of steps of the run.

    Returns:
      (slow, fast).
    """
    is_due = step % LOOKAHEAD_INTERVAL == 0
    keep = LOOKAHEAD_DECAY * (step.astype(jnp.float32) / steps) ** 3
    slow = jax.tree.map(lambda s, f: jnp.where(is_due, keep * s + (1 - keep) * f, s), slow, fast)
    return slow, jax.tree.map(lambda s, f: jnp.where(is_due, s, f), slow, fast)


class Carry(NamedTuple):
    """Values that a step changes."""

    step: Any
    """int32 []."""
    variables: Any
    """The network's parameters and BN's moving statistics, float32."""
    slow: Any
    """Their lookahead averages, which are tested."""
    opt_state: Any
    losses: Any
    """Mean loss of each step's batch, float32 [steps]."""


class Fixed(NamedTuple):
    """Values that a step only reads."""

    split: jc.Split
    normalizer: augment.Normalizer
    kernel: Any
    """The whitening's, float32 [2, 2, c, 8 c]."""
    key: Any


def make_begin(
    model: Net, tx: optax.GradientTransformation, options: Options, num_steps: int
) -> Callable[..., Any]:
    """Make the function that starts a run.

    `begin(key, images, normalizer) -> (Carry, kernel)` returns the state at step 0 and the
    whitening of the uint8 `images`.
    """

    def begin(key, images, normalizer):
        kernel = whitening_kernel(augment.normalize(images[: options.whitening_images], normalizer))
        blank = jnp.zeros((1, *images.shape[1:]), jnp.float32)
        variables = dict(model.init(fold_in(key, INIT_STREAM), blank, kernel))
        # Optax's arithmetic mixes counts with rates.
        with jax.numpy_dtype_promotion("standard"):
            opt_state = tx.init(variables["params"])
        # Two copies, because the memory of a carry is donated.
        slow = jax.tree.map(jnp.copy, variables)
        step, losses = jnp.int32(0), jnp.zeros(num_steps, jnp.float32)
        return Carry(step, variables, slow, opt_state, losses), kernel

    return begin


def make_step(
    model: Net, tx: optax.GradientTransformation, options: Options, n: int
) -> parallel.Step:
    """Make the training step `step(carry, fixed, index) -> carry`.

    It gathers the images of `index`, int32 [batch], shifts and mirrors them, computes the gradient,
    and updates the parameters and their lookahead averages.
    """
    steps = num_steps(options, n)

    def step(carry: Carry, fixed: Fixed, index: jax.Array) -> Carry:
        epoch = example_epochs(carry.step, options.batch_size, n)
        images, labels = (jnp.asarray(x)[index] for x in fixed.split)
        views = jax.vmap(train_view, (None, 0, 0, 0, None, None))
        view_key = fold_in(fixed.key, VIEW_STREAM)
        images = views(view_key, index, epoch, images, options.translate, options.flip)

        def loss(params):
            inputs = augment.normalize(images, fixed.normalizer)
            variables = carry.variables | {"params": params}
            logits, stats = model.apply(
                variables, inputs, fixed.kernel, train=True, mutable=["batch_stats"]
            )
            return smoothed_cross_entropy(logits, labels, options.smoothing).mean(), stats

        params = carry.variables["params"]
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        # Optax's arithmetic mixes counts with rates.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(grads, carry.opt_state, params)
        variables = {"params": optax.apply_updates(params, updates), **stats}
        slow, variables = lookahead(carry.slow, variables, carry.step + 1, steps)
        next_step = carry.step + 1
        losses = carry.losses.at[carry.step].set(value)
        return Carry(next_step, variables, slow, opt_state, losses)

    return step


def make_eval_step(model: Net, options: Options) -> parallel.Step:
    """Make the step that counts correct predictions.

    `count(correct, (variables, fixed), index) -> correct` adds the number of correct test images,
    int32 []. An index of -1 is no image.
    """

    def count(correct, fixed, index):
        variables, (split, normalizer, kernel, _) = fixed
        inputs = augment.normalize(jnp.asarray(split.images)[index], normalizer)

        def logits(x: jax.Array) -> Any:
            return model.apply(variables, x, kernel)

        predictions = average_logits(logits, inputs, options.views, options.flip).argmax(-1)
        is_correct = (predictions == split.labels[index]) & (index >= 0)
        return correct + is_correct.sum(dtype=jnp.int32)

    return count


class Run(NamedTuple):
    """Result of one run. Seconds start with images on the device as bytes."""

    seconds: float
    """Of all of it: start, whitening, training and test."""
    train_seconds: float
    """Until the last update."""
    accuracy: float
    """Percent of the test images."""
    train_loss: list[float]
    """Mean smoothed loss of each epoch's batches, nats."""


def make_runner(
    options: Options,
    data: jc.Dataset,
    strategy: parallel.Strategy,
    should_stop: Callable[[], bool] = lambda: False,
) -> Callable[..., Run | None]:
    """Make the function `run(seed, warm_up=False)` that trains from scratch and tests once.

    With `warm_up` every program is compiled and executed at least once, and the result is
    meaningless.

    Args:
      options: of the speed run.
      data: whole on the device.
      strategy: of one device.
      should_stop: called before each step, or before each scan of steps. Once it is true, `run`
        returns None.
    """
    n = len(data.train.labels)
    steps = num_steps(options, n)
    model = Net(data.num_classes, options.widths, jnp.dtype(options.dtype))
    tx = make_optimizer(options, n)
    normalizer = augment.make_normalizer(
        data.mean, data.std, subtract="channel", divide=bool(data.std.all())
    )
    train, test, normalizer = strategy.replicate((data.train, data.test, normalizer))
    replicated = NamedSharding(strategy.mesh, PartitionSpec())
    begin = jax.jit(make_begin(model, tx, options, steps), out_shardings=replicated)
    num_values = steps * options.batch_size * math.prod(data.train.images.shape[1:])
    rewrite_for_cpu = strategy.should_rewrite_for_cpu(num_values)
    train_steps = strategy.compile_steps(make_step(model, tx, options, n), rewrite_for_cpu)
    eval_steps = strategy.compile_steps(make_eval_step(model, options), rewrite_for_cpu)
    test_batches = parallel.padded_batches(
        len(data.test.labels), options.test_batch, len(strategy.devices)
    )
    epoch_ends = epoch_end_steps(steps, options.batch_size, n)

    def run(seed: int, warm_up: bool = False) -> Run | None:
        start, key = time.perf_counter(), jax.random.PRNGKey(seed)
        carry, kernel = begin(key, train.images, normalizer)
        fixed = Fixed(train, normalizer, kernel, key)
        order = batch_indices(seed, steps, options.batch_size, n)
        for i, chunk in enumerate(program_chunks(strategy, order, warm_up)):
            if i and i % MAX_STEPS_AHEAD == 0:
                jax.block_until_ready(carry)
            if should_stop():
                # Steps that still run at the process's end would crash it.
                jax.block_until_ready(carry)
                return None
            carry = train_steps(carry, fixed, chunk)
        jax.block_until_ready(carry)
        trained, correct = time.perf_counter(), strategy.replicate(np.int32(0))
        for chunk in program_chunks(strategy, test_batches, warm_up):
            correct = eval_steps(correct, (carry.slow, fixed._replace(split=test)), chunk)
        accuracy = 100 * int(strategy.fetch(correct)) / len(data.test.labels)
        end = time.perf_counter()
        epoch_losses = np.split(strategy.fetch(carry.losses), epoch_ends)
        losses = [float(epoch.mean()) for epoch in epoch_losses]
        return Run(end - start, trained - start, accuracy, losses)

    return run


def program_chunks(strategy: parallel.Strategy, order: np.ndarray, warm_up: bool) -> Any:
    """Return the chunks of an order, one for each program call.

    In a warm-up there is one chunk of each length, because each length is a program of its own.
    """
    chunks = strategy.chunks(order)
    return {len(chunk): chunk for chunk in chunks}.values() if warm_up else chunks


def batch_indices(seed: int, num_steps: int, batch_size: int, n: int) -> np.ndarray:
    """Return the images of every step, int32 [steps, batch].

    Each image occurs once an epoch, and no remainder is dropped. NumPy computes it, which needs no
    device and so does not wait for one.

    Args:
      seed: of the shuffles.
      num_steps: number of steps.
      batch_size: images a step.
      n: number of images.

    Example:
      >>> sorted(batch_indices(0, 3, 2, 6).ravel().tolist())
      [0, 1, 2, 3, 4, 5]
    """
    passes = np.tile(np.arange(n, dtype=np.int32), (math.ceil(num_steps * batch_size / n), 1))
    stream = np.random.default_rng(seed).permuted(passes, axis=1).ravel()
    return stream[: num_steps * batch_size].reshape(num_steps, batch_size)


def example_epochs(step: jax.Array, batch_size: int, n: int) -> jax.Array:
    """Return the epoch of each image of a step's batch, int32 [batch].

    A batch may contain the end of one epoch and the start of the next.

    Example:
      >>> example_epochs(jnp.int32(2), 4, 10).tolist()
      [0, 0, 1, 1]
    """
    return (step * batch_size + jnp.arange(batch_size)) // n


def epoch_end_steps(num_steps: int, batch_size: int, n: int) -> list[int]:
    """Return the steps at which epochs end, without the last one.

    `np.split` splits the losses there.

    Example:
      >>> epoch_end_steps(10, 2, 8)
      [4, 8]
    """
    epochs = math.ceil(num_steps * batch_size / n)
    ends = (math.ceil(epoch * n / batch_size) for epoch in range(1, epochs))
    return [step for step in ends if step < num_steps]
