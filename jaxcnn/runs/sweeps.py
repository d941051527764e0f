"""Sweeps of many runs in one folder.

The progress is that of all runs. All runs are checked before the first step.
"""

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


class _ProgressWatch:
    """Function of a run's steps that advances the progress of the sweep.

    The first step that it is called with is the one that the run starts from.
    """

    def __init__(self, progress: Progress, name: str, recipe: Recipe, weight: float, brief: bool):
        self.progress, self.name, self.recipe = progress, name, recipe
        self.weight, self.brief = weight, brief
        self.step: int | None = None

    def __call__(self, step: int, row: Mapping[str, Any] | None) -> None:
        position = f"{self.name}  step {step}/{self.recipe.train.num_steps}"
        if self.step is None:
            self.progress.skip(self.weight * step)
        else:
            self.progress.advance(self.weight * (step - self.step), position)
        self.step = step
        if row is not None and not self.brief:
            train_error = f"train error {row['train_error']:5.2f}%"
            eval_error = f"{row['eval_split']} error {row['eval_error']:5.2f}%"
            speed = f"{row['images_per_second']:,.0f} images/s"
            self.progress.write(f"{position}  {train_error}  {eval_error}  {speed}")

    def close(self) -> None:
        """Count the run as finished, also if it ended early."""
        self.progress.skip(self.weight * (self.recipe.train.num_steps - (self.step or 0)))


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
    """Run every recipe in a folder of its name, with progress.

    Every recipe and every folder is checked before the first step, so a mistake costs no training.
    `out` belongs to one sweep at a time.

    Args:
      runs: recipes by name.
      data: that of the recipes' data set.
      out: folder of the runs' folders.
      strategy: devices, all by default.
      stop: as in `run`.
      measure: as in `run`.
      brief: print no lines for rows, for many short runs.
      keep_every: as in `Checkpoints`. It keeps earlier states, for studies of how a run developed.

    Returns:
      Results by name, or None if the sweep was stopped.

    Raises:
      ArgumentError: a recipe cannot be trained on these data, or a folder has another run.
      DataError: the data are invalid.
      CheckpointError: another process runs a sweep in `out`. The message names it.
    """
    verify_dataset(data)
    strategy = parallel.check_strategy(strategy)
    shape = data.train.images.shape[1:]
    weights = _weights(runs, len(data.classes), shape)
    subsets = {recipe.max_train_examples: subset_for(recipe, data) for recipe in runs.values()}
    for name, recipe in runs.items():
        # A study may sort its runs into folders.
        for part in name.split("/"):
            file_name(part)
        check_config(recipe, subsets[recipe.max_train_examples], strategy)
    _check_equal_on_all_processes(runs, data)
    _check_memory(runs, weights)
    total = sum(weights[name] * recipe.train.num_steps for name, recipe in runs.items())
    results = {}
    with (
        _open_study(runs, Path(out), strategy, subsets),
        Progress(total, quiet=not multihost.is_primary()) as progress,
    ):
        for name, recipe in runs.items():
            watch = _ProgressWatch(progress, name, recipe, weights[name], brief)
            result = run(
                recipe,
                subsets[recipe.max_train_examples],
                Path(out, name),
                watch=watch,
                strategy=strategy,
                stop=stop,
                measure=measure,
                keep_every=keep_every,
            )
            if result is None:
                return None
            watch.close()
            results[name] = result
    return results


def _weights(runs: Mapping[str, Recipe], classes: int, shape: tuple[int, ...]) -> dict[str, int]:
    """Return `_weight` of every run.

    Runs that differ only in their seeds share it, because it takes a trace of the network.
    """
    kinds = {name: repr(replace(recipe, seed=0)) for name, recipe in runs.items()}
    weights = {}
    for name, kind in kinds.items():
        if kind not in weights:
            weights[kind] = _weight(runs[name], classes, shape)
    return {name: weights[kind] for name, kind in kinds.items()}


def _weight(recipe: Recipe, classes: int, shape: tuple[int, ...]) -> int:
    """Return the relative cost of a step, the number of parameters.

    The names of `recipe.stage_rates` are checked too.
    """
    model, tx = model_and_optimizer(recipe, classes)
    if recipe.optimizer.lr_multipliers:
        image = jax.ShapeDtypeStruct((1, *shape), np.float32)
        jax.eval_shape(tx.init, jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    return count_parameters(model, shape)


def _check_memory(runs: Mapping[str, Recipe], weights: Mapping[str, int]) -> None:
    """Check that the largest network fits into memory.

    Linux would end the process without a message instead.

    Raises:
      ArgumentError: it cannot fit.
    """
    name = max(weights, key=lambda name: weights[name])
    # Parameters in float32, their gradients and the updates.
    required, available = 12 * weights[name], machine_memory()
    if available is not None and required > available:
        raise ArgumentError(
            f"{name} has {weights[name]:,} parameters, "
            f"which take at least {required / 2**30:.0f} GiB to train; expected to fit "
            f"this machine's {available / 2**30:.0f} GiB. Write a smaller width"
        )


def machine_memory() -> int | None:
    """Return the bytes of memory of this machine or container.

    It is None if the system does not report them.
    """
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        # Without a limit, the content is "max".
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(Path(limit).read_text()))
    return min(sizes)


def _check_equal_on_all_processes(runs: Mapping[str, Recipe], data: Dataset) -> None:
    """Check that all processes have the same recipes and data.

    The losses would not show a difference.

    Raises:
      ArgumentError: they have different ones.
    """
    if not multihost.is_multihost():
        return
    digest = hashlib.sha256()
    for array in jax.tree.leaves(data._replace(name=(), classes=())):
        digest.update(np.ascontiguousarray(array).data)
    recipes = [(name, recipe.to_json()) for name, recipe in runs.items()]
    if not multihost.all_equal(f"{recipes} {digest.hexdigest()}"):
        raise ArgumentError(
            "the processes of this job have different options or data; "
            "start all with the same but --process-id"
        )


@contextlib.contextmanager
def _open_study(
    runs: Mapping[str, Recipe],
    out: Path,
    strategy: parallel.Strategy,
    subsets: Mapping[int | None, Dataset],
) -> Iterator[None]:
    """Lock a study's folder, and open the folders of its runs.

    The primary process does it, which alone has files.
    """
    with contextlib.ExitStack() as stack:

        def lock_and_open() -> None:
            stack.enter_context(lock_folder(out))
            for name, recipe in runs.items():
                open_run_dir(recipe, out / name, strategy, subsets[recipe.max_train_examples])

        multihost.broadcast_from_primary(lock_and_open)
        yield
