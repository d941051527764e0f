"""Evaluation of `ExperimentConfig`s in a search, by runs that pause and resume.

`experiment_evaluator` is an `evaluate` of `jaxcnn.search`. Each config is one run of
`config.train.num_steps` steps, in a folder of its own, that pauses at the step and later resumes.
So a schedule of the learning rate is always that of the whole run, and the error at a step is a
point of the learning curve that the run would have without a pause. A schedule that ends at a rung
would have a rate of 0 there, and the same run could not continue to the next one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxcnn.arguments import (
    ArgumentError,
    check_callable,
    check_choice,
    check_integer,
    check_path,
    format_value,
)
from jaxcnn.config import ExperimentConfig, verify_config
from jaxcnn.data import Dataset
from jaxcnn.losses import Loss
from jaxcnn.run_log import RunLog, read_metrics
from jaxcnn.runs.single import (
    build_pieces,
    check_functions,
    run,
    subset_for,
    verify_data_of,
    with_loss,
)
from jaxcnn.search import Evaluate
from jaxcnn.state import state_shapes

Row = dict[str, Any]
_NOT_NUMBERS = ("eval_split", "diverged", "interrupted")
"""Keys of rows whose values are no numbers."""


class SearchStopped(Exception):
    """Stop of a search by its user.

    The same command resumes it.
    """


def run_name(config: ExperimentConfig) -> str:
    """Return a name for the run of a config.

    It ends with a digest of all fields.

    Example:
      >>> run_name(ExperimentConfig(model="convnet")).rpartition("-")[0]
      'convnet-momentum-lr0.1-seed0'
    """
    verify_config(config, ExperimentConfig)
    digest = hashlib.sha256(config.to_json().encode()).hexdigest()[:8]
    optimizer = config.optimizer
    return (
        f"{config.model}-{optimizer.name}-lr{optimizer.learning_rate:.3g}-"
        f"seed{config.train.seed}-{digest}"
    )


def train_until(
    config: ExperimentConfig,
    data: Dataset,
    folder: str | Path,
    num_steps: int,
    *,
    should_stop: Callable[[], Any] = lambda: False,
    on_step: Callable[[int, Mapping[str, Any] | None], None] = lambda step, row: None,
    **kwargs: Any,
) -> Row | None:
    """Train a run up to a step, and return its row there.

    The run is that of `config.train.num_steps` steps, with the schedule of so many steps. It
    pauses, and a later call with more steps resumes it from its checkpoint. Its rows have the bits
    of a run without a pause. A call for a step that the run has reached trains nothing.

    Args:
      config: the run's.
      data: as in `jaxcnn.runs.run`.
      folder: of the run.
      num_steps: a step that has a row: a multiple of `config.train.eval_every`, or the last step.
      should_stop: called after every step. When it returns true, the state is saved and training
        ends before the step.
      on_step: as in `jaxcnn.runs.run`.
      **kwargs: other arguments of `jaxcnn.runs.run`.

    Returns:
      The row. That of a run that has diverged is its last one, which has `diverged`, the reason.
      None if `should_stop` ended the training before.

    Raises:
      ArgumentError: an argument is invalid, or the folder has another run.
      FolderInUseError: another process trains there, or this one.

    Example:
      >>> import tempfile
      >>> from jaxcnn import TrainConfig, load_dataset
      >>> train = TrainConfig(num_steps=4, eval_every=2)
      >>> config = ExperimentConfig(dataset="digits", model="mlp", train=train)
      >>> data, folder = load_dataset("digits"), tempfile.mkdtemp()
      >>> [train_until(config, data, folder, step)["step"] for step in (2, 4, 2)]
      [2, 4, 2]
    """
    verify_config(config, ExperimentConfig)
    check_functions(should_stop=should_stop, on_step=on_step)
    last, every = config.train.num_steps, config.train.eval_every
    num_steps = check_integer("num_steps", num_steps, 1, last, example=last)
    if num_steps < last and (every is None or num_steps % every):
        raise ArgumentError(
            f"num_steps is {num_steps}, a step without a row, as eval_every is {every}; expected a "
            f"multiple of it. Write eval_every={num_steps}, or num_steps={last}."
        )
    folder, position = check_path("folder", folder), 0
    if num_steps < last and (folder / "metrics.jsonl").exists():
        _check_folder(folder, config, data, kwargs)
        if (row := _row_of(folder, num_steps)) is not None:
            return row

    def follow(step: int, row: Mapping[str, Any] | None) -> None:
        nonlocal position
        position = step
        on_step(step, row)

    def has_arrived() -> bool:
        return position >= num_steps or bool(should_stop())

    run(config, data, folder, should_stop=has_arrived, on_step=follow, **kwargs)
    return _row_of(folder, num_steps)


def _pieces(
    config: ExperimentConfig, data: Dataset, kwargs: Mapping[str, Any]
) -> tuple[ExperimentConfig, Dataset, Any, Any, Loss]:
    """Return the config, the data, the model, the optimizer and the loss that `run` trains with.

    Args:
      config: as in `run`.
      data: likewise.
      kwargs: other arguments of `run`.

    Raises:
      ArgumentError: an argument is invalid.
    """
    config, loss = with_loss(config, kwargs.get("loss"))
    verify_data_of(config, data)
    data = subset_for(config, data)
    return (config, data, *build_pieces(config, data, kwargs.get("build")), loss)


def _check_folder(
    folder: Path, config: ExperimentConfig, data: Dataset, kwargs: Mapping[str, Any]
) -> None:
    """Check that a folder holds the run of a config.

    Raises:
      ArgumentError: it holds another one.
    """
    config, data, model, tx, _ = _pieces(config, data, kwargs)
    build = kwargs.get("build")
    pieces = {} if build is None else {"model": model, "tx": tx, "build": build}
    RunLog.reserve(folder, config, data=data, **pieces)


def _row_of(folder: Path, num_steps: int) -> Row | None:
    """Return the row of a step, or of an earlier divergence, or None."""
    for row in read_metrics(folder):
        if row["step"] == num_steps or "diverged" in row:
            return row
    return None


def _metric_names(
    config: ExperimentConfig, data: Dataset, kwargs: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the keys of the numbers in the rows of a run; nothing is trained."""
    config, data, model, tx, loss = _pieces(config, data, kwargs)
    sums = state_shapes(model, tx, config.train, data, loss=loss).metrics.sums
    prefixes = ["eval_", "train_", *["precise_eval_"] * bool(config.train.recompute_batch_stats)]
    names = [f"{prefix}{name}" for prefix in prefixes for name in ("loss", *sums)]
    return (*names, "grad_norm", "loss_std", "rate", "seconds", "images_per_second")


def _check_folder_name(name: Any) -> str:
    try:
        # A path of several names, or "..", may be outside the folder of all runs.
        is_valid = name == check_path("name", name).name != ".."
    except ArgumentError:
        is_valid = False
    if not is_valid:
        raise ArgumentError(
            f"name returned {format_value(name)}; expected the name of a folder, without a path. "
            "Write return run_name(config)."
        )
    return name


def _check_eval_split(config: ExperimentConfig) -> None:
    verify_config(config, ExperimentConfig)
    if config.train.eval_split != "validation":
        raise ArgumentError(
            f"eval_split is {config.train.eval_split!r}; a search selects by the validation "
            "split. Write eval_split='validation'."
        )


def _number(row: Row, metric: str) -> float:
    """Return the metric of a row; nan where training has diverged."""
    if "diverged" in row:
        return math.nan
    # Its loss may be another one than that of the config that was checked before training.
    check_choice("metric", metric, (key for key in row if key not in _NOT_NUMBERS))
    return math.nan if row[metric] is None else float(row[metric])


def experiment_evaluator(
    data: Dataset,
    out: str | Path,
    *,
    metric: str = "eval_error",
    name: Callable[[ExperimentConfig], str] = run_name,
    should_stop: Callable[[], Any] = lambda: False,
    **kwargs: Any,
) -> Evaluate[ExperimentConfig]:
    """Return an `evaluate` that trains each config in its own folder.

    `train_until` trains. So a search can be stopped at any moment, and the same search then
    continues with the same results. Searches that share configs share their runs.

    Args:
      data: as in `jaxcnn.runs.run`, with a validation split.
      out: folder of the runs' folders.
      metric: key of a number in a row, which is better when low.
      name: function of a config that returns the name of its folder in `out`, without a path.
      should_stop: called after every step. When it returns true, the search ends.
      **kwargs: other arguments of `train_until`.

    Returns:
      `evaluate(config, num_steps)`. It returns nan for a run that has diverged. It raises
      `SearchStopped` when `should_stop` has ended the training.

    Raises:
      ArgumentError: an argument is invalid. When called, also for a config that is evaluated on the
        test split, by which nothing may be selected.

    Example:
      >>> import tempfile
      >>> from jaxcnn import TrainConfig, load_dataset, override, search
      >>> data = load_dataset("digits", validation=300)
      >>> train = TrainConfig(num_steps=6, eval_every=2, eval_split="validation")
      >>> config = ExperimentConfig("digits", "mlp", num_validation=300, train=train)
      >>> configs = [override(config, learning_rate=rate) for rate in (0.001, 0.01, 0.1)]
      >>> evaluate = experiment_evaluator(data, tempfile.mkdtemp())
      >>> evaluations = search.successive_halving(configs, evaluate, 6, min_steps=2)
      >>> [(each.index, each.num_steps) for each in evaluations]
      [(0, 2), (1, 2), (2, 2), (2, 6)]
    """
    if not isinstance(data, Dataset):
        raise ArgumentError(
            f"data is {format_value(data)}; expected a Dataset. Write jaxcnn.load_dataset(...)."
        )
    out = check_path("out", out)
    if not isinstance(metric, str) or metric in _NOT_NUMBERS:
        raise ArgumentError(
            f"metric is {format_value(metric)}; expected the key of a number in a row. "
            "Write metric='eval_error'."
        )
    check_callable("name", name, "run_name", num_args=1)
    check_callable("should_stop", should_stop, "stop", num_args=0)
    # What `measure` adds to a row is known only after training.
    is_checked = "measure" in kwargs

    def evaluate(config: ExperimentConfig, num_steps: int) -> float:
        nonlocal is_checked
        _check_eval_split(config)
        if not is_checked:
            check_choice("metric", metric, _metric_names(config, data, kwargs))
            is_checked = True
        folder = out / _check_folder_name(name(config))
        row = train_until(config, data, folder, num_steps, should_stop=should_stop, **kwargs)
        if row is None:
            raise SearchStopped(f"{folder} was stopped before step {num_steps}")
        return _number(row, metric)

    return evaluate
