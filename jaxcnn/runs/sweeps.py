"""`sweep`: many runs under one folder, checked before the first step, with the progress of the whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn import multihost, parallel
from jaxcnn.checkpoint import lock_folder
from jaxcnn.data import Dataset, verify_dataset
from jaxcnn.models import count_parameters
from jaxcnn.progress import Progress
from jaxcnn.recipe import ArgumentError, Recipe, file_name
from jaxcnn.runs.results import Result
from jaxcnn.runs.single import Measure, model_and_optimizer, open_run_dir, run, subset_for
from jaxcnn.training import check_config


class _Watch:
    """Turns the steps of one run into progress of the whole; the first step told is where the run starts from."""

    def __init__(self, progress: Progress, name: str, recipe: Recipe, weight: float, brief: bool):
        self.progress, self.name, self.recipe, self.weight, self.brief = progress, name, recipe, weight, brief
        self.step: int | None = None

    def __call__(self, step: int, row: Mapping[str, Any] | None) -> None:
        where = f"{self.name}  step {step}/{self.recipe.steps}"
        if self.step is None:
            self.progress.skip(self.weight * step)
        else:
            self.progress.advance(self.weight * (step - self.step), where)
        self.step = step
        if row is not None and not self.brief:
            errors = f"train error {row['train_error']:5.2f}%  {row['eval_split']} error {row['eval_error']:5.2f}%"
            self.progress.write(f"{where}  {errors}  {row['images_per_second']:,.0f} images/s")

    def close(self) -> None:
        """The run is over, wherever it ended."""
        self.progress.skip(self.weight * (self.recipe.steps - (self.step or 0)))


def sweep(
    runs: Mapping[str, Recipe],
    data: Dataset,
    out: str | Path,
    *,
    strategy: parallel.Strategy | None = None,
    stop: Callable[[], Any] = lambda: False,
    measure: Measure = lambda model, state, data: {},
    brief: bool = False,
    keep_every: int = 0,
) -> dict[str, Result] | None:
    """Run every recipe in the folder of its name under `out`, showing progress; None when stopped on the way.

    Every recipe is checked and every folder claimed before the first step: a mistake costs no training. `out` belongs to one
    sweep at a time. With `brief` the progress of many short runs is not interrupted by a line for each of their rows.
    `keep_every` is as in `Checkpoints`: states on the way that are kept, for those who look at how a run went.

    Raises:
      ArgumentError, DataError: a recipe cannot be trained, on this data, or a folder holds the run of another.
      CheckpointError: another process, which is named, runs a sweep in `out`.
    """
    verify_dataset(data)
    strategy = parallel.check_strategy(strategy)
    shape = data.train.images.shape[1:]
    weights = _weights(runs, len(data.classes), shape)
    parts = {recipe.examples: subset_for(recipe, data) for recipe in runs.values()}
    for name, recipe in runs.items():
        for part in name.split("/"):  # a study may sort its runs into folders
            file_name(part)
        check_config(recipe, parts[recipe.examples], strategy)
    _same_everywhere(runs, data)
    _check_memory(runs, weights)
    total = sum(weights[name] * recipe.steps for name, recipe in runs.items())
    results = {}
    with _owned(runs, Path(out), strategy, parts), Progress(total, quiet=not multihost.is_primary()) as progress:
        for name, recipe in runs.items():
            watch = _Watch(progress, name, recipe, weights[name], brief)
            how: dict[str, Any] = {"strategy": strategy, "stop": stop, "measure": measure, "keep_every": keep_every}
            result = run(recipe, parts[recipe.examples], Path(out, name), watch=watch, **how)
            if result is None:
                return None
            watch.close()
            results[name] = result
    return results


def _weights(runs: Mapping[str, Recipe], classes: int, shape: tuple[int, ...]) -> dict[str, int]:
    """`_weight` of every run; seeds share one, since each takes a trace of the network."""
    kinds = {name: repr(replace(recipe, seed=0)) for name, recipe in runs.items()}
    weights = {}
    for name, kind in kinds.items():
        if kind not in weights:
            weights[kind] = _weight(runs[name], classes, shape)
    return {name: weights[kind] for name, kind in kinds.items()}


def _weight(recipe: Recipe, classes: int, shape: tuple[int, ...]) -> int:
    """What a step costs beside those of other runs: the parameters; their names are checked on the way."""
    model, tx = model_and_optimizer(recipe, classes)
    if recipe.stage_rates:
        image = jax.ShapeDtypeStruct((1, *shape), np.float32)
        jax.eval_shape(tx.init, jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    return count_parameters(model, shape)


def _check_memory(runs: Mapping[str, Recipe], weights: Mapping[str, int]) -> None:
    """ArgumentError for a network that cannot fit: Linux would end the process without a word instead."""
    name = max(weights, key=lambda name: weights[name])
    needed, there = 12 * weights[name], machine_memory()  # float32 parameters, their gradients and the updates
    if there is not None and needed > there:
        raise ArgumentError(
            f"{name} has {weights[name]:,} parameters, which take at least {needed / 2**30:.0f} GiB to train; expected to fit "
            f"this machine's {there / 2**30:.0f} GiB. Write a smaller width"
        )


def machine_memory() -> int | None:
    """The bytes of memory that this machine, or the container of this process, has; None where the system does not say."""
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            sizes.append(int(Path(limit).read_text()))
    return min(sizes)


def _same_everywhere(runs: Mapping[str, Recipe], data: Dataset) -> None:
    """ArgumentError if the processes of the job are about to compute different things, which no loss would tell."""
    if not multihost.is_multihost():
        return
    arrays = hashlib.sha256()
    for array in jax.tree.leaves(data._replace(name=(), classes=())):
        arrays.update(np.ascontiguousarray(array).data)
    if not multihost.all_equal(f"{[(name, recipe.to_json()) for name, recipe in runs.items()]} {arrays.hexdigest()}"):
        raise ArgumentError(
            "the processes of this job have different options or data; start all with the same but --process-id"
        )


@contextlib.contextmanager
def _owned(
    runs: Mapping[str, Recipe], out: Path, strategy: parallel.Strategy, parts: Mapping[int | None, Dataset]
) -> Iterator[None]:
    """The lock on a study's folder, and its runs' folders claimed, by the process that has files."""
    with contextlib.ExitStack() as held:

        def take() -> None:
            held.enter_context(lock_folder(out))
            for name, recipe in runs.items():
                open_run_dir(recipe, out / name, strategy, parts[recipe.examples])

        multihost.broadcast_from_primary(take)
        yield
