"""Sweeps of many runs in one folder.

The progress is that of all runs. All runs are checked before the first step.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn import multihost, parallel
from jaxcnn.checkpoint import lock_folder
from jaxcnn.config import ArgumentError, ExperimentConfig, format_value, override
from jaxcnn.data import Dataset
from jaxcnn.losses import create_loss
from jaxcnn.models import count_parameters
from jaxcnn.optim import check_stages, trainable_params
from jaxcnn.progress import Progress
from jaxcnn.records import open_run_dir
from jaxcnn.runs.results import Result
from jaxcnn.runs.single import (
    Measure,
    model_and_optimizer,
    run,
    subset_for,
    verify_data_of,
)
from jaxcnn.tensorboard import check_tensorboard
from jaxcnn.training import check_config


class _RunProgress:
    """Function of a run's steps that advances the progress of the sweep.

    The first step that it is called with is the one that the run starts from.
    """

    def __init__(
        self, progress: Progress, name: str, config: ExperimentConfig, weight: float, quiet: bool
    ):
        self.progress, self.name, self.config = progress, name, config
        self.weight, self.quiet = weight, quiet
        self.step: int | None = None

    def __call__(self, step: int, row: Mapping[str, Any] | None) -> None:
        position = f"{self.name}  step {step}/{self.config.train.num_steps}"
        if self.step is None:
            self.progress.skip(self.weight * step)
        else:
            self.progress.advance(self.weight * (step - self.step), position)
        self.step = step
        if row is not None and not self.quiet:
            train_error = f"train error {row['train_error']:5.2f}%"
            eval_error = f"{row['eval_split']} error {row['eval_error']:5.2f}%"
            speed = f"{row['images_per_second']:,.0f} images/s"
            self.progress.write(f"{position}  {train_error}  {eval_error}  {speed}")

    def close(self) -> None:
        """Count the run as finished, also if it ended early."""
        self.progress.skip(self.weight * (self.config.train.num_steps - (self.step or 0)))


def sweep(
    runs: Mapping[str, ExperimentConfig],
    data: Dataset,
    out: str | Path,
    *,
    strategy: parallel.Strategy | None = None,
    should_stop: Callable[[], Any] = lambda: False,
    measure: Measure = lambda model, state, data: {},
    quiet: bool = False,
    keep_every: int = 0,
    tensorboard: bool = False,
) -> dict[str, Result] | None:
    """Run every config in a folder of its name, with progress.

    Every config and every folder is checked before the first step, so a mistake costs no training.
    `out` belongs to one sweep at a time.

    Args:
      runs: configs by name.
      data: that of the configs' data set.
      out: folder of the runs' folders.
      strategy: devices, all by default.
      should_stop: as in `run`.
      measure: as in `run`.
      quiet: print no lines for rows, for many short runs.
      keep_every: as in `Checkpoints`. It keeps earlier states, for studies of how a run developed.
      tensorboard: as in `RunLog`, for every run.

    Returns:
      Results by name, or None if the sweep was stopped.

    Raises:
      ArgumentError: a config cannot be trained on these data, or a folder has another run.
      DataError: the data are invalid.
      CheckpointError: another process runs a sweep in `out`. The message names it.
    """
    strategy = parallel.check_strategy(strategy)
    check_tensorboard(tensorboard)
    for config in runs.values():
        verify_data_of(config, data)
    shape = data.train.images.shape[1:]
    weights = _weights(runs, data.num_classes, shape)
    subsets = {config.max_train_examples: subset_for(config, data) for config in runs.values()}
    for name, config in runs.items():
        # A study may sort its runs into folders.
        for part in name.split("/"):
            _check_run_name(part)
        loss = create_loss(config.loss, **config.loss_kwargs)
        check_config(config.train, subsets[config.max_train_examples], strategy, loss)
    _check_equal_on_all_processes(runs, data)
    _check_memory(runs, weights)
    total = sum(weights[name] * config.train.num_steps for name, config in runs.items())
    results = {}
    with (
        _open_study(runs, Path(out), strategy, subsets),
        Progress(total, quiet=not multihost.is_primary()) as progress,
    ):
        for name, config in runs.items():
            run_progress = _RunProgress(progress, name, config, weights[name], quiet)
            result = run(
                config,
                subsets[config.max_train_examples],
                Path(out, name),
                on_step=run_progress,
                strategy=strategy,
                should_stop=should_stop,
                measure=measure,
                keep_every=keep_every,
                tensorboard=tensorboard,
            )
            if result is None:
                return None
            run_progress.close()
            results[name] = result
    return results


def _check_run_name(name: str) -> str:
    """Return `name`, which must be valid for a run's folder.

    Raises:
      ArgumentError: it is not.

    Example:
      >>> _check_run_name("resnet20-seed0")
      'resnet20-seed0'
    """
    is_text = isinstance(name, str) and name.isprintable() and not set(name) & set("/\\")
    # Bytes are counted, because file systems allow up to 255 of them.
    if not is_text or name[:1] in ("", ".", "~") or len(name.encode()) > 200:
        raise ArgumentError(
            f"run name is {format_value(name)}; "
            "expected a plain name for a folder: write 'resnet20-seed0', say"
        )
    return name


def _weights(
    runs: Mapping[str, ExperimentConfig], num_classes: int, shape: tuple[int, ...]
) -> dict[str, int]:
    """Return `_weight` of every run.

    Runs that differ only in their seeds share it, because it takes a trace of the network.
    """
    kinds = {name: repr(override(config, seed=0)) for name, config in runs.items()}
    weights = {}
    for name, kind in kinds.items():
        if kind not in weights:
            weights[kind] = _weight(runs[name], num_classes, shape)
    return {name: weights[kind] for name, kind in kinds.items()}


def _weight(config: ExperimentConfig, num_classes: int, shape: tuple[int, ...]) -> int:
    """Return the relative cost of a step, the number of parameters.

    The names of `lr_multipliers` and `freeze` are checked too.
    """
    model, tx = model_and_optimizer(config, num_classes)
    freeze = config.train.freeze
    if config.optimizer.lr_multipliers or freeze:
        image = jax.ShapeDtypeStruct((1, *shape), np.float32)
        params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
        check_stages("freeze", params, freeze)
        jax.eval_shape(tx.init, trainable_params(params, freeze))
    return count_parameters(model, shape)


def _check_memory(runs: Mapping[str, ExperimentConfig], weights: Mapping[str, int]) -> None:
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


def _check_equal_on_all_processes(runs: Mapping[str, ExperimentConfig], data: Dataset) -> None:
    """Check that all processes have the same configs and data.

    The losses would not show a difference.

    Raises:
      ArgumentError: they have different ones.
    """
    if not multihost.is_multihost():
        return
    digest = hashlib.sha256()
    for array in jax.tree.leaves(data._replace(name=(), classes=())):
        digest.update(np.ascontiguousarray(array).data)
    configs = [(name, config.to_json()) for name, config in runs.items()]
    if not multihost.all_equal(f"{configs} {digest.hexdigest()}"):
        raise ArgumentError(
            "the processes of this job have different options or data; "
            "start all with the same but --process-id"
        )


@contextlib.contextmanager
def _open_study(
    runs: Mapping[str, ExperimentConfig],
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
            for name, config in runs.items():
                open_run_dir(config, out / name, strategy, subsets[config.max_train_examples])

        multihost.broadcast_from_primary(lock_and_open)
        yield
