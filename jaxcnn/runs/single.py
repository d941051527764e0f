"""One run in a folder of its own.

It can be stopped at any moment, and the same command resumes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxcnn import parallel
from jaxcnn.config import ArgumentError, ExperimentConfig, verify_config
from jaxcnn.data import Dataset, subset, verify_dataset
from jaxcnn.losses import create_loss
from jaxcnn.models import count_parameters, create_model
from jaxcnn.optim import create_optimizer
from jaxcnn.records import RunRecords
from jaxcnn.runs.results import Result
from jaxcnn.state import State
from jaxcnn.training import check_config, train

Measure = Callable[[Any, State, Dataset], Mapping[str, Any]]
"""Function of (model, state, data) that returns more columns of a row.

The columns are plain numbers by name.
"""


def model_and_optimizer(config: ExperimentConfig, num_classes: int) -> tuple[Any, Any]:
    """Return the config's model and optimizer.

    What is compiled for them serves every seed and rate.
    """
    model = create_model(config.model, num_classes, **config.model_kwargs)
    train = config.train
    return model, create_optimizer(config.optimizer, train.num_steps, seed=train.seed)


def subset_for(config: ExperimentConfig, data: Dataset) -> Dataset:
    """Return `data` with the config's number of training images.

    Every run of a study gets the same ones.
    """
    if config.max_train_examples is None or config.max_train_examples == len(data.train.images):
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
    num_validation = len(data.validation.images)
    if config.num_validation != num_validation:
        can_be_held_out = config.num_validation < len(data.train.images) + num_validation
        raise ArgumentError(
            f"num_validation is {config.num_validation}, but the data holds out {num_validation}; "
            + (
                f"write load_dataset(..., validation={config.num_validation})"
                if can_be_held_out
                else f"write num_validation={num_validation}"
            )
        )


def run(
    config: ExperimentConfig,
    data: Dataset,
    folder: str | Path,
    *,
    strategy: parallel.Strategy | None = None,
    should_stop: Callable[[], Any] = lambda: False,
    on_step: Callable[[int, Mapping[str, Any] | None], None] = lambda step, row: None,
    measure: Measure = lambda model, state, data: {},
    prepare_state: Callable[[State], State] = lambda state: state,
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
      should_stop: called after every step. When it returns true, the state is saved and training
        ends.
      on_step: called with the step and None after every step, and with the step and the row after
        every row.
      measure: returns more columns of each row.
      prepare_state: a function of the state at step 0 that returns the state to start from, such as
        `lambda state: with_variables(state, variables)`.
      keep_every: as in `Checkpoints`.

    Returns:
      The contents of `result.json`, or None if the run was stopped. They are `status` ("finished",
      or "diverged" with `reason`), `params`, the last row's figures and the run's `seconds`.
    """
    strategy = parallel.check_strategy(strategy)
    # Mistakes come before anything is written in the folder.
    verify_data_of(config, data)
    data = subset_for(config, data)
    loss = create_loss(config.loss, **config.loss_kwargs)
    check_config(config.train, data, strategy, loss)
    model, tx = model_and_optimizer(config, data.num_classes)
    with RunRecords(config, folder, strategy, data, keep_every=keep_every) as records:
        if records.result is not None:
            return records.result

        def resume(initial):
            state = records.restore(initial) or prepare_state(initial)
            on_step(int(state.step), None)
            return state

        def after_step(step):
            on_step(step, None)
            return should_stop()

        reason = None
        for state, row in train(
            model,
            tx,
            data,
            config.train,
            loss=loss,
            resume=resume,
            strategy=strategy,
            should_stop=after_step,
        ):
            if row is None:
                records.save(state)
                if state.step < config.train.num_steps:
                    return None
                break
            reason = row.get("diverged")
            if reason is None:
                row |= measure(model, state, data)
            records.record(state, row)
            on_step(int(state.step), row)
            if reason:
                break
            if should_stop() and state.step < config.train.num_steps:
                return None
        num_params = count_parameters(model, data.train.images.shape[1:])
        return records.finish(num_params, reason)
