"""Sweeps of many runs in one folder.

The progress is that of all runs. All runs are checked before the first step.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn import multihost, parallel
from jaxcnn.arguments import check_callable, check_mapping, check_path
from jaxcnn.checkpoint import FolderInUseError, lock_folder
from jaxcnn.config import (
    ArgumentError,
    ExperimentConfig,
    format_value,
    override,
    verify_config,
)
from jaxcnn.data import Dataset
from jaxcnn.evaluation import is_library_model
from jaxcnn.losses import Loss
from jaxcnn.optim import check_stages, config_of, trainable_params
from jaxcnn.progress import Progress, SafeStream
from jaxcnn.provenance import are_equal_functions, model_facts, optimizer_facts
from jaxcnn.run_log import RunLog
from jaxcnn.runs.results import Result
from jaxcnn.runs.single import (
    Build,
    Measure,
    build_pieces,
    check_functions,
    check_pieces,
    num_parameters,
    run,
    subset_for,
    verify_data_of,
    with_loss,
)
from jaxcnn.tensorboard import check_tensorboard
from jaxcnn.training_checks import check_config

Pieces = tuple[Any, Any]
"""A model and an optimizer."""
LONG_WORK = 5e13
"""Parameters times pixels times images of a study that can take an hour on two CPU cores."""
LONG_SECONDS = 3600.0
"""Time from which on a study's first estimate is printed."""
ESTIMATE_STEPS, ESTIMATE_SECONDS = 20, 2.0
"""Minimum number of steps, and their time, that the first estimate is made from.

Steps may be computed after they are counted, so the first ones alone could seem too quick.
"""
COUNT_SECONDS = 5.0
"""Minimum time between looks at the runs that other processes finish."""
RESERVE_SECONDS = 60.0
"""Time to wait for another process that checks the same folders."""
_reserving = threading.Lock()


class _StudyProgress:
    """Progress of all runs, those that other processes finish among them.

    Args:
      progress: the bar, in the units of the costs.
      out: folder of the runs' folders.
      costs: of each run: that of a step, and the number of steps.
    """

    def __init__(self, progress: Progress, out: Path, costs: Mapping[str, tuple[float, int]]):
        self.progress, self.out, self.costs = progress, out, costs
        self.counted: set[str] = set()
        self.is_estimated = False
        self.last_count = -math.inf

    def count_finished(self) -> None:
        """Count the runs that have finished in other processes meanwhile."""
        now = time.monotonic()
        if not multihost.is_primary() or now - self.last_count < COUNT_SECONDS:
            return
        self.last_count = now
        for name in self.costs.keys() - self.counted:
            if (self.out / name / "result.json").exists():
                self.counted.add(name)
                self.progress.skip(math.prod(self.costs[name]))

    def estimate(self, seconds_per_unit: float) -> None:
        """Print the time that the missing runs take, once, if it is long."""
        if not self.is_estimated:
            self.is_estimated = True
            seconds = seconds_per_unit * (self.progress.total - self.progress.done)
            if seconds > LONG_SECONDS:
                count = len(self.costs) - len(self.counted)
                self.progress.write(
                    f"about {seconds / 3600:,.0f} h for {count} run{'s' * (count != 1)} "
                    "on this machine (first estimate)"
                )


class _RunProgress:
    """Function of a run's steps that advances the progress of the sweep.

    The first step that it is called with is the one that the run starts from.
    """

    def __init__(self, study: _StudyProgress, name: str, quiet: bool):
        self.study, self.progress, self.name, self.quiet = study, study.progress, name, quiet
        self.weight, self.num_steps = study.costs[name]
        self.step: int | None = None
        self.first: tuple[int, float] | None = None

    def __call__(self, step: int, row: Mapping[str, Any] | None) -> None:
        position = f"{self.name}  step {step}/{self.num_steps}"
        if self.step is None:
            self.progress.skip(self.weight * step)
        else:
            self.progress.advance(self.weight * (step - self.step), position)
            self._measure(step)
        self.step = step
        self.study.count_finished()
        if row is not None and not self.quiet:
            parts = [position]
            for key, label in (("train_error", "train"), ("eval_error", row["eval_split"])):
                # A loss of the user's own may count no errors.
                if key in row:
                    parts.append(f"{label} error {row[key]:5.2f}%")
            parts.append(f"{row['images_per_second']:,.0f} images/s")
            self.progress.write("  ".join(parts))

    def _measure(self, step: int) -> None:
        """Measure the time of the steps after the first, which is compiled."""
        if self.first is None:
            self.first = step, time.monotonic()
            return
        steps, seconds = step - self.first[0], time.monotonic() - self.first[1]
        if steps >= ESTIMATE_STEPS and seconds >= ESTIMATE_SECONDS:
            self.study.estimate(seconds / (steps * self.weight))

    def close(self) -> None:
        """Count the run as finished, also if it ended early."""
        if self.name not in self.study.counted:
            self.study.counted.add(self.name)
            self.progress.skip(self.weight * (self.num_steps - (self.step or 0)))


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
    build: Build | None = None,
    loss: str | Loss | None = None,
    tensorboard: bool = False,
) -> dict[str, Result] | None:
    """Run every config in a folder of its name, with progress.

    Every config and every folder is checked before the first step, so a mistake costs no training.

    Several processes can share `out`, on several machines too (see `lock_folder` on NFS). Each of
    them takes the first run that no other process trains, until there is none. A run of a process
    that was killed is taken over. A process that finds only runs of others says whose they are, and
    ends: the results lack these runs. The same call later returns all.

    Args:
      runs: configs by name.
      data: that of the configs' data set.
      out: folder of the runs' folders.
      strategy: devices, all by default.
      should_stop: as in `run`.
      measure: as in `run`.
      quiet: print no lines for rows, for many short runs.
      keep_every: as in `Checkpoints`. It keeps earlier states, for studies of how a run developed.
      build: as in `run`. Runs whose optimizers differ only in their first state, such as by a rate
        of `optax.inject_hyperparams`, share what is compiled.
      loss: as in `run`.
      tensorboard: as in `RunLog`, for every run.

    Returns:
      Results by name, or None if the sweep was stopped.

    Raises:
      ArgumentError: there are no runs. Or a config cannot be trained on these data, or a folder has
        another run.
      DataError: the data are invalid.
      FolderInUseError: this process trains one of the runs already.

    Example:
      >>> import tempfile
      >>> import optax
      >>> from jaxcnn import TrainConfig, create_model, load_dataset
      >>> def build(config, data):
      ...     adam = optax.inject_hyperparams(optax.adam)(config.optimizer.learning_rate)
      ...     return create_model("mlp", data.num_classes), adam
      >>> base = ExperimentConfig(dataset="digits", train=TrainConfig(num_steps=2))
      >>> configs = {f"{r:g}": override(base, learning_rate=r) for r in (0.01, 0.1)}
      >>> results = sweep(configs, load_dataset("digits"), tempfile.mkdtemp(), build=build)
      >>> [result["rate"] for result in results.values()]
      [0.01, 0.1]
    """
    strategy = parallel.check_strategy(strategy)
    check_tensorboard(tensorboard)
    check_functions(should_stop=should_stop, measure=measure)
    out = check_path("out", out, example="'runs/my-study'")
    if not check_mapping("runs", runs, "{'a': config}"):
        raise ArgumentError(
            "runs is empty; expected at least one config by name. Write runs={'a': config}"
        )
    for config in runs.values():
        verify_config(config, ExperimentConfig)
    losses = {name: with_loss(config, loss) for name, config in runs.items()}
    runs = {name: config for name, (config, _) in losses.items()}
    for config in runs.values():
        verify_data_of(config, data)
    for name in runs:
        # A study may sort its runs into folders.
        for part in name.split("/"):
            _check_run_name(part)
    subsets = {config.max_train_examples: subset_for(config, data) for config in runs.values()}
    if build is not None:
        build = _share_updates(check_callable("build", build, _BUILD_EXAMPLE, num_args=2))
    pieces = {
        name: build_pieces(config, subsets[config.max_train_examples], build)
        for name, config in runs.items()
    }
    weights = _weights(runs, pieces, subsets, losses)
    for name, config in runs.items():
        subset, loss_function = subsets[config.max_train_examples], losses[name][1]
        check_config(config.train, subset, strategy, loss_function)
        check_pieces(*pieces[name], config, subset, strategy, loss_function)
    _check_equal_on_all_processes(runs, data, pieces if build is not None else {})
    _check_memory(runs, weights)
    _reserve_folders(runs, out, subsets, pieces, build)
    costs = {name: (weights[name], config.train.num_steps) for name, config in runs.items()}
    total, results = sum(map(math.prod, costs.values())), {}
    with Progress(total, quiet=not multihost.is_primary()) as progress:
        study = _StudyProgress(progress, out, costs)
        study.count_finished()
        _print_size(progress, runs, weights, study.counted, data.train.images.shape[1:])
        has_trained, owners = True, {}
        # Again, as other processes may have finished runs meanwhile, or have left some.
        while has_trained and len(results) < len(runs):
            has_trained, owners = False, {}
            for name in [name for name in runs if name not in results]:
                config = runs[name]
                run_progress = _RunProgress(study, name, quiet)
                try:
                    result = run(
                        config,
                        subsets[config.max_train_examples],
                        out / name,
                        on_step=run_progress,
                        strategy=strategy,
                        should_stop=should_stop,
                        measure=measure,
                        keep_every=keep_every,
                        tensorboard=tensorboard,
                        build=build,
                        loss=None if loss is None else losses[name][1],
                    )
                except FolderInUseError as error:
                    if error.by_this_process:
                        raise
                    owners[name] = error.owner
                    continue
                if result is None:
                    return None
                run_progress.close()
                results[name] = result
                has_trained = has_trained or run_progress.step is not None
    if owners and multihost.is_primary():
        print(_describe_owners(owners, len(runs)), file=SafeStream(sys.stderr), flush=True)
    return {name: results[name] for name in runs if name in results}


_BUILD_EXAMPLE = "lambda config, data: (model, tx)"


def _describe_owners(owners: Mapping[str, str], count: int) -> str:
    """Describe the runs that other processes train, on one line.

    Example:
      >>> _describe_owners({"a": "process 3 on x", "b": "process 4 on y"}, 5)
      '3 of 5 runs are finished; others are trained by a: process 3 on x, b: process 4 on y'
    """
    names = [f"{name}: {owner}" for name, owner in owners.items()]
    hidden = f" and {len(names) - _MAX_OWNERS} more" * (len(names) > _MAX_OWNERS)
    listed = ", ".join(names[:_MAX_OWNERS]) + hidden
    return f"{count - len(names)} of {count} runs are finished; others are trained by {listed}"


_MAX_OWNERS = 8
"""Maximum number of runs that a line lists."""


def _print_size(
    progress: Progress,
    runs: Mapping[str, ExperimentConfig],
    weights: Mapping[str, int],
    finished: Collection[str],
    shape: tuple[int, ...],
) -> None:
    """Print how much is to be trained, if that can take an hour."""
    images = {
        name: config.train.num_steps * config.train.batch_size
        for name, config in runs.items()
        if name not in finished
    }
    work = sum(weights[name] * math.prod(shape[:2]) * count for name, count in images.items())
    if work >= LONG_WORK:
        steps = sum(runs[name].train.num_steps for name in images)
        progress.write(
            f"{len(images)} run{'s' * (len(images) != 1)}, {steps:,} steps, "
            f"{sum(images.values()) / 1e6:,.0f} million images"
        )


def _share_updates(build: Build) -> Build:
    """Return `build` with one `update` for all optimizers that update alike.

    A compiled step belongs to the update, which most functions of Optax make anew at each call.
    """
    updates: list[Any] = []

    @functools.wraps(build)
    def build_sharing(config: ExperimentConfig, data: Dataset) -> Pieces:
        model, tx = build_pieces(config, data, build)
        # Those of `create_optimizer` share theirs.
        if config_of(tx) is not None:
            return model, tx
        for update in updates:
            if are_equal_functions(update, tx.update):
                return model, tx._replace(update=update)
        updates.append(tx.update)
        return model, tx

    return build_sharing


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
    runs: Mapping[str, ExperimentConfig],
    pieces: Mapping[str, Pieces],
    subsets: Mapping[int | None, Dataset],
    losses: Mapping[str, tuple[ExperimentConfig, Loss]],
) -> dict[str, int]:
    """Return `_weight` of every run.

    Runs that differ only in their seeds share it, because it takes a trace of the network.
    """
    kinds = {name: repr(override(config, seed=0)) for name, config in runs.items()}
    weights = {}
    for name, kind in kinds.items():
        if kind not in weights:
            data = subsets[runs[name].max_train_examples]
            weights[kind] = _weight(runs[name], *pieces[name], data, losses[name][1])
    return {name: weights[kind] for name, kind in kinds.items()}


def _weight(config: ExperimentConfig, model: Any, tx: Any, data: Dataset, loss: Loss) -> int:
    """Return the relative cost of a step, the number of parameters.

    The names of `lr_multipliers` and `freeze` are checked too.
    """
    freeze, shape = config.train.freeze, data.train.images.shape[1:]
    if is_library_model(model) and (config.optimizer.lr_multipliers or freeze):
        image = jax.ShapeDtypeStruct((1, *shape), np.float32)
        params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
        check_stages("freeze", params, freeze)
        jax.eval_shape(tx.init, trainable_params(params, freeze))
    return num_parameters(model, tx, config, data, loss)


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


def _check_equal_on_all_processes(
    runs: Mapping[str, ExperimentConfig], data: Dataset, pieces: Mapping[str, Pieces]
) -> None:
    """Check that all processes have the same configs, data and pieces of the user's own.

    The losses would not show a difference.

    Raises:
      ArgumentError: they have different ones.
    """
    if not multihost.is_multihost():
        return
    digest = hashlib.sha256()
    for array in jax.tree.leaves(data._replace(name=(), classes=(), scale=None)):
        digest.update(np.ascontiguousarray(array).data)
    configs = [(name, config.to_json()) for name, config in runs.items()]
    facts = [(model_facts(model), optimizer_facts(tx)) for model, tx in pieces.values()]
    if not multihost.all_equal(f"{configs} {facts} {digest.hexdigest()}"):
        raise ArgumentError(
            "the processes of this job have different options or data; "
            "start all with the same, apart from process_id"
        )


def _reserve_folders(
    runs: Mapping[str, ExperimentConfig],
    out: Path,
    subsets: Mapping[int | None, Dataset],
    pieces: Mapping[str, Pieces],
    build: Build | None,
) -> None:
    """Check the folders of the runs, and write the configs of those that are new.

    The primary process does it, which alone has files. A lock on `out` makes others wait that start
    at the same time: of two with other configs, the second is refused before it trains.
    """

    def reserve() -> None:
        with _reserving, lock_folder(out, RESERVE_SECONDS):
            for name, config in runs.items():
                data, own = subsets[config.max_train_examples], {}
                if build is not None:
                    own = {"model": pieces[name][0], "tx": pieces[name][1], "build": build}
                RunLog.reserve(out / name, config, data=data, **own)

    multihost.broadcast_from_primary(reserve)
