"""One run in a folder of its own.

It can be stopped at any moment, and the same command resumes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxcnn import multihost, parallel
from jaxcnn.checkpoint import Checkpoints
from jaxcnn.config import ArgumentError, ExperimentConfig, verify_config
from jaxcnn.data import Dataset, subset, verify_dataset
from jaxcnn.models import count_parameters, create_model
from jaxcnn.optim import create_optimizer
from jaxcnn.run_log import RunLog
from jaxcnn.runs.results import Result
from jaxcnn.state import State
from jaxcnn.training import check_config, train

Measure = Callable[[Any, State, Dataset], Mapping[str, Any]]
"""Function of (model, state, data) that returns more columns of a row.

The columns are plain numbers by name.
"""


def model_and_optimizer(config: ExperimentConfig, classes: int) -> tuple[Any, Any]:
    """Return the config's model and optimizer.

    What is compiled for them serves every seed and rate.
    """
    model = create_model(config.model, classes, **config.model_kwargs)
    train = config.train
    return model, create_optimizer(config.optimizer, train.num_steps, seed=train.seed)


def subset_for(config: ExperimentConfig, data: Dataset) -> Dataset:
    """Return `data` with the config's number of training images.

    Every run of a study gets the same ones.
    """
    if config.max_train_examples is None or config.max_train_examples == len(data.train.labels):
        return data
    return subset(data, config.max_train_examples, seed=0)


def verify_data_of(config: ExperimentConfig, data: Dataset) -> None:
    """Check that the data are those that a config names.

    Raises:
      ArgumentError: they are of another name, or have another number of validation images.
      DataError: the data are invalid.
    """
    verify_config(config, ExperimentConfig)
    verify_dataset(data)
    if config.dataset != data.name:
        raise ArgumentError(
            f"dataset is {config.dataset!r}, but the data is {data.name!r}; "
            f"write dataset={data.name!r}"
        )
    num_validation = len(data.validation.labels)
    if config.num_validation != num_validation:
        raise ArgumentError(
            f"num_validation is {config.num_validation}, but the data holds out {num_validation}; "
            f"write load_dataset(..., validation={config.num_validation})"
        )


def run(
    config: ExperimentConfig,
    data: Dataset,
    folder: str | Path,
    *,
    strategy: parallel.Strategy | None = None,
    stop: Callable[[], Any] = lambda: False,
    watch: Callable[[int, Mapping[str, Any] | None], None] = lambda step, row: None,
    measure: Measure = lambda model, state, data: {},
    begin: Callable[[State], State] = lambda state: state,
    keep_every: int = 0,
) -> Result | None:
    """Train a config in a folder.

    A run resumes from its last checkpoint if it has one. A finished run is not repeated.

    Args:
      config: the run's. A folder with the run of another config, or on other data, is an error.
      data: that of `load_dataset(config.dataset, validation=config.num_validation)`.
        `config.max_train_examples` of its training images are used.
      folder: of `config.json`, `run.json`, `env.json`, `metrics.jsonl`, `checkpoints/`, and
        `result.json` once the run is finished.
      strategy: devices, all by default.
      stop: called after every step. When it returns true, the state is saved and training ends.
      watch: called with the step and None after every step, and with the step and the row after
        every row.
      measure: returns more columns of each row.
      begin: a function of the state at step 0 that returns the state to start from, such as
        `lambda state: with_variables(state, variables)`.
      keep_every: as in `Checkpoints`.

    Returns:
      The contents of `result.json`, or None if the run was stopped. They are `status` ("finished",
      or "diverged" with `why`), `params`, the last row's figures and the run's `seconds`.
    """
    strategy = parallel.check_strategy(strategy)
    # Mistakes come before anything is written in the folder.
    verify_data_of(config, data)
    data = subset_for(config, data)
    check_config(config.train, data, strategy)
    model, tx = model_and_optimizer(config, len(data.classes))
    with _SharedRecords(config, folder, strategy, keep_every, data) as records:
        if records.result is not None:
            return records.result

        def resume(initial):
            state = records.restore(initial) or begin(initial)
            watch(int(state.step), None)
            return state

        def pause(step):
            watch(step, None)
            return stop()

        reason = None
        for state, row in train(
            model, tx, data, config.train, resume=resume, strategy=strategy, pause=pause
        ):
            if row is None:
                records.save(state)
                if state.step < config.train.num_steps:
                    return None
                break
            reason = row.get("diverged")
            if reason is None:
                row |= measure(model, state, data)
            records.write(row)
            watch(int(state.step), row)
            if reason:
                break
            metric = "eval_loss" if config.train.loss == "reconstruction" else "eval_error"
            records.save(state, row[metric])
            if stop() and state.step < config.train.num_steps:
                return None
        num_params = count_parameters(model, data.train.images.shape[1:])
        return records.finish(num_params, reason)


def open_run_dir(
    config: ExperimentConfig,
    folder: str | Path,
    strategy: parallel.Strategy,
    data: Dataset | None = None,
) -> RunLog:
    """Return the `RunLog` of a run of `config` on `data`.

    Raises:
      ArgumentError: the folder has another run.
    """
    facts = parallel.describe(strategy) | {"dtype": config.model_kwargs.get("dtype", "float32")}
    return RunLog(folder, config, facts, data=data)


class _SharedRecords:
    """Records of a run for all processes of a job.

    The primary process reads and writes them, and broadcasts the results to the others.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        folder: str | Path,
        strategy: parallel.Strategy,
        keep_every: int,
        data: Dataset,
    ):
        self.config, self.folder, self.data = config, Path(folder), data
        self.strategy, self.keep_every = strategy, keep_every
        self.log: Any = None
        self.checkpoints: Any = None

    def __enter__(self) -> _SharedRecords:
        self.result = multihost.broadcast_from_primary(self._open)
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is None:
            multihost.broadcast_from_primary(self._close)
        # The other processes may not reach a broadcast after an error.
        else:
            self._close()

    def restore(self, initial: State) -> State | None:
        return multihost.broadcast_arrays_from_primary(
            lambda: self.checkpoints.restore(initial), initial
        )

    def save(self, state: State, metric: float | None = None) -> None:
        multihost.broadcast_from_primary(lambda: self.checkpoints.save(state, metric))

    def write(self, row: Mapping[str, Any]) -> None:
        multihost.broadcast_from_primary(lambda: self.log.write(**row))

    def finish(self, num_params: int, reason: str | None) -> Result:
        return multihost.broadcast_from_primary(lambda: self._finish(num_params, reason))

    def _open(self):
        if Path(self.folder, "result.json").exists():
            return open_run_dir(self.config, self.folder, self.strategy, self.data).result()
        # Its lock comes first: of two processes that start in a folder, the second changes nothing.
        self.checkpoints = Checkpoints(self.folder / "checkpoints", self.keep_every)
        try:
            self.log = open_run_dir(self.config, self.folder, self.strategy, self.data)
        except BaseException:
            # Else a notebook that continues would find the folder in use by itself.
            self._close()
            raise
        return None

    def _finish(self, num_params, reason):
        # A run whose last state cannot be read is not finished, and the same command repeats it.
        self.checkpoints.wait()
        return _write_result(self.log, num_params, reason)

    def _close(self):
        if self.checkpoints is not None:
            self.checkpoints.close()


def _write_result(log: RunLog, num_params: int, reason: str | None) -> Result:
    rows = log.rows()
    result: Result = {"status": "finished" if reason is None else "diverged"}
    if reason:
        result["why"] = reason
    last = {name: value for name, value in rows[-1].items() if name != "diverged"}
    last["seconds"] = math.fsum(row["seconds"] for row in rows)
    return log.finish(**result, params=num_params, **last)
