"""One run: its start, its step, its test. Each is compiled once for all runs; on an accelerator all steps are one program."""

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
from experiments.speedrun import views
from experiments.speedrun.network import Net, whitening
from experiments.speedrun.options import Options
from experiments.speedrun.orders import ends, epochs, order
from experiments.speedrun.updates import lookahead, optimizer, smoothed, steps
from jaxcnn import augment, parallel
from jaxcnn.state import fold_in

AHEAD = 8
"""Steps that the loop on a CPU is ahead of their results at most, so that a stop is soon."""
WEIGHTS, VIEWS = range(2)
"""Streams of randomness of a run."""


class Carry(NamedTuple):
    """What a step changes."""

    step: Any
    """int32 []."""
    variables: Any
    """The network's parameters and BN's moving statistics, float32."""
    slow: Any
    """Their lookahead averages, which are tested."""
    opt: Any
    losses: Any
    """float32 [steps]: the mean loss of each step's batch."""


class Fixed(NamedTuple):
    """What a step only reads."""

    split: jc.Split
    norm: augment.Normalizer
    kernel: Any
    """The whitening's, float32 [2, 2, c, 8 c]."""
    key: Any


def make_begin(model: Net, tx: optax.GradientTransformation, options: Options, total: int) -> Callable[..., Any]:
    """`begin(key, images, norm) -> (Carry, kernel)`: the state at step 0, and the whitening of the uint8 `images`."""

    def begin(key, images, norm):
        kernel = whitening(augment.normalize(images[: options.whitening_images], norm))
        blank = jnp.zeros((1, *images.shape[1:]), jnp.float32)
        variables = dict(model.init(fold_in(key, WEIGHTS), blank, kernel))
        with jax.numpy_dtype_promotion("standard"):
            opt = tx.init(variables["params"])
        # A copy of its own for each: the memory of a carry is given away.
        slow = jax.tree.map(jnp.copy, variables)
        return Carry(jnp.int32(0), variables, slow, opt, jnp.zeros(total, jnp.float32)), kernel

    return begin


def make_step(model: Net, tx: optax.GradientTransformation, options: Options, n: int) -> parallel.Step:
    """`step(carry, fixed, index) -> carry`: gather, move and mirror, gradient, update, lookahead; index is int32 [batch]."""
    total = steps(options, n)

    def step(carry: Carry, fixed: Fixed, index: jax.Array) -> Carry:
        epoch = epochs(carry.step, options.batch, n)
        images, labels = (jnp.asarray(x)[index] for x in fixed.split)
        view = jax.vmap(views.training, (None, 0, 0, 0, None, None))
        images = view(fold_in(fixed.key, VIEWS), index, epoch, images, options.translate, options.flip)

        def loss(params):
            inputs = augment.normalize(images, fixed.norm)
            variables = carry.variables | {"params": params}
            logits, new = model.apply(variables, inputs, fixed.kernel, train=True, mutable=["batch_stats"])
            return smoothed(logits, labels, options.smoothing).mean(), new

        params = carry.variables["params"]
        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax's arithmetic mixes counts with rates
            updates, opt = tx.update(grads, carry.opt, params)
        variables = {"params": optax.apply_updates(params, updates), **new}
        slow, variables = lookahead(carry.slow, variables, carry.step + 1, total)
        return Carry(carry.step + 1, variables, slow, opt, carry.losses.at[carry.step].set(value))

    return step


def make_count(model: Net, options: Options) -> parallel.Step:
    """`count(right, (variables, fixed), index) -> right`: how many test images are right, int32 []; an index of -1 is none."""

    def count(right, fixed, index):
        variables, (split, norm, kernel, _) = fixed
        inputs = augment.normalize(jnp.asarray(split.images)[index], norm)

        def logits(x: jax.Array) -> Any:
            return model.apply(variables, x, kernel)

        guess = views.averaged(logits, inputs, options.views, options.flip).argmax(-1)
        return right + ((guess == split.labels[index]) & (index >= 0)).sum(dtype=jnp.int32)

    return count


class Run(NamedTuple):
    """What one run has shown; times in seconds, from images that lie on the device as bytes."""

    seconds: float
    """All of it: start, whitening, training and test."""
    train_seconds: float
    """Until the last update."""
    accuracy: float
    """Percent of the test images."""
    train_loss: list[float]
    """Mean smoothed loss of each epoch's batches, nats."""


def runner(
    options: Options, data: jc.Dataset, strategy: parallel.Strategy, stop: Callable[[], bool] = lambda: False
) -> Callable[..., Run | None]:
    """`run(seed, warm=False)`: train from scratch and test once; None if `stop` said so on the way.

    With `warm` every program is compiled and run at least once, and the numbers mean nothing.
    """
    n, total = len(data.train.labels), steps(options, len(data.train.labels))
    model = Net(len(data.classes), options.widths, jnp.dtype(options.dtype))
    tx = optimizer(options, n)
    norm = augment.make_normalizer(data.mean, data.std, subtract="channel", divide=bool(data.std.all()))
    train, test, norm = strategy.replicate((data.train, data.test, norm))
    begin = jax.jit(make_begin(model, tx, options, total), out_shardings=NamedSharding(strategy.mesh, PartitionSpec()))
    tuned = strategy.should_optimize(total * options.batch * math.prod(data.train.images.shape[1:]))
    fold, count = (
        strategy.compile_steps(make_step(model, tx, options, n), tuned),
        strategy.compile_steps(make_count(model, options), tuned),
    )
    tested = parallel.padded_batches(len(data.test.labels), options.test_batch, len(strategy.devices))
    shown = ends(total, options.batch, n)

    def run(seed: int, warm: bool = False) -> Run | None:
        began, key = time.perf_counter(), jax.random.PRNGKey(seed)
        carry, kernel = begin(key, train.images, norm)
        fixed = Fixed(train, norm, kernel, key)
        for i, piece in enumerate(pieces(strategy, order(seed, total, options.batch, n), warm)):
            if i and i % AHEAD == 0:
                jax.block_until_ready(carry)
            if stop():
                jax.block_until_ready(carry)  # steps under way at the process's end would crash it
                return None
            carry = fold(carry, fixed, piece)
        jax.block_until_ready(carry)
        trained, right = time.perf_counter(), strategy.replicate(np.int32(0))
        for piece in pieces(strategy, tested, warm):
            right = count(right, (carry.slow, fixed._replace(split=test)), piece)
        accuracy = 100 * int(strategy.fetch(right)) / len(data.test.labels)
        ended = time.perf_counter()
        losses = [float(part.mean()) for part in np.split(strategy.fetch(carry.losses), shown)]
        return Run(ended - began, trained - began, accuracy, losses)

    return run


def pieces(strategy: parallel.Strategy, order: np.ndarray, warm: bool) -> Any:
    """What is folded one after another; where it is but to warm up, one piece of each length."""
    found = strategy.chunks(order)
    return {len(piece): piece for piece in found}.values() if warm else found
