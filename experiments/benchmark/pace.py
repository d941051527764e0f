"""Seconds of k steps: of `train`, of the bare jitted step, and of the part of a step that makes its inputs.

Each function here gives `run(k) -> seconds`. The first call compiles, and is not to be counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn as jc
from experiments.benchmark.networks import Job
from jaxcnn.augment import AugmentConfig, augment, normalize
from jaxcnn.input_pipeline import gather_batch, input_pipeline
from jaxcnn.state import AUGMENT, State, fold_in, init_state
from jaxcnn.training import make_train_step, step_kwargs

EPOCH = 391
"""Steps of one measurement at most: those between two rows of CIFAR-10."""
Run = Callable[[int], float]


def fitted(job: Job, steps: int) -> Run:
    """The library's own loop: seconds of the steps to the next row, by that row's rate.

    A row's clock covers what `train` does in the steps: the order of examples, every call, the watch for divergence, and
    bringing the state to the host at the end; not the test that comes after. The run is as long as by default and is left
    in the middle: a short one may be compiled otherwise.
    """
    recipe = replace(job.recipe, every=steps)
    rows = jc.train(job.model, job.tx, job.data, recipe, strategy=job.strategy)

    def run(k: int) -> float:
        assert k == steps, "fit's rows are of as many steps as were said at its start"
        row = next(rows)[1] or {}
        return recipe.batch * k / row["images_per_second"]

    return run


def whole_step(job: Job) -> Any:
    """The step that `train` trains with."""
    return make_train_step(job.model, job.tx, **step_kwargs(job.recipe), axis=job.strategy.axis)


def tuned(job: Job) -> bool:
    """Whether `train` has this step compiled by `jaxcnn.cpu`."""
    return job.strategy.should_optimize(
        job.recipe.steps * job.recipe.batch * math.prod(job.data.train.images.shape[1:])
    )


def initial(job: Job) -> State:
    """The state at step 0, on the host."""
    return init_state(job.model, job.tx, job.recipe, job.data)


def bare(job: Job) -> Run:
    """The same step on the same batch again and again, with nothing around it; waited for at the end."""
    return folded(job, whole_step(job), initial(job), tuned(job))


def inputs(job: Job) -> Run:
    """A step's inputs alone: bytes gathered, made floats, cropped and flipped as in training, then summed and thrown away.

    It is timed as a program of its own, because the difference of two steps, one on ready inputs, is smaller than their
    noise. The sum keeps the compiler from leaving the work out. Inside the whole step some of it may overlap or be
    fused with the first layer, so this is rather too much than too little.
    """
    step, state = input_step(job), initial(job)
    return folded(job, step, (jnp.int32(0), state.normalizer, jnp.float32(0)))


def input_step(job: Job) -> Any:
    """((steps taken, `jaxcnn.augment.Norm`, sum), split, index) -> the same one step on; the sum is of all inputs so far."""
    view = AugmentConfig(**{name: getattr(job.recipe, name) for name in AugmentConfig._fields})
    key = initial(job).rng

    def step(carry: Any, split: Any, index: Any) -> Any:
        number, norm, total = carry
        numbers, images, _ = gather_batch(split, index)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(fold_in(key, AUGMENT, number), numbers)
        made = jax.vmap(augment, (0, 0, None, None))(keys, normalize(images, norm), norm, view)
        part = made.sum()
        if job.strategy.axis:
            part = jax.lax.psum(part, job.strategy.axis)
        return number + 1, norm, total + part

    return step


def folded(job: Job, step: Any, carry: Any, tuned: bool = False) -> Run:
    """Seconds of k steps on one batch of examples drawn at random, of which the last result is waited for."""
    strategy, n = job.strategy, len(job.data.train.labels)
    run, held, train = (
        strategy.compile_steps(step, tuned),
        [strategy.replicate(carry)],
        input_pipeline(job.data.train, strategy),
    )
    index = np.random.default_rng(0).permutation(n)[: job.recipe.batch].astype(np.int32)

    def timed(k: int) -> float:
        pieces = list(train.chunks(np.repeat(index[None], k, 0)))
        began = time.perf_counter()
        for piece in pieces:
            held[0] = run(held[0], train.split, piece)
        jax.block_until_ready(held[0])
        return time.perf_counter() - began

    return timed


def suited(step: float, seconds: float) -> int:
    """How many steps of `step` seconds take about so many seconds: 1 to `EPOCH`.

    Example:
      >>> suited(0.3, 1.0), suited(5.0, 1.0)
      (3, 1)
    """
    return min(EPOCH, max(1, round(seconds / step)))


def alternate(
    works: Mapping[str, Run],
    steps: int,
    rounds: int,
    settle: Mapping[str, Run] | None = None,
    each: Callable[[], bool] = lambda: False,
) -> dict[str, list[float]] | None:
    """Every work once in every round, in turns, after a first round that is not counted.

    Args:
      works: name -> what is timed.
      steps: of each call.
      rounds: how many.
      settle: name -> what is called for one step just before, and not counted: what another work has left behind in caches and
        threads is then not held against the next.
      each: called after every round; None is returned once it answers true.

    Returns:
      name -> seconds of each round.

    Example:
      >>> alternate({"a": lambda k: 2.0 * k, "b": lambda k: 1.0}, steps=3, rounds=2)
      {'a': [6.0, 6.0], 'b': [1.0, 1.0]}
    """
    took: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, run in works.items():
            if settle and turn:
                settle[name](1)
            seconds = run(steps)
            if turn:
                took[name].append(seconds)
        if each():
            return None
    return took
