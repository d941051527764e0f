"""Records of a run: its log and its checkpoints, opened, written and finished together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcnn import multihost, parallel
from jaxcnn.arguments import check_path
from jaxcnn.augment import Augmentation
from jaxcnn.checkpoint import Checkpoints, FolderInUseError
from jaxcnn.config import ExperimentConfig, OptimizerConfig, TrainConfig, verify_config
from jaxcnn.data import DATASETS, Dataset
from jaxcnn.losses import Loss, as_loss
from jaxcnn.models import model_call
from jaxcnn.optim import config_of
from jaxcnn.provenance import (
    augmentation_facts,
    describe,
    loss_facts,
    model_facts,
    optimizer_facts,
)
from jaxcnn.run_log import RunLog, read_json, write_text
from jaxcnn.state import State
from jaxcnn.tensorboard import check_tensorboard

CLASSES_FILE = "classes.json"
"""Names of classes, in the folder of a run on data that are not in `DATASETS`."""
SCALE_FILE = "resize.json"
"""Size, resizing and interpolation of images, in the folder of a run on an image folder."""


def write_classes(folder: Path, classes: Sequence[str]) -> None:
    """Write the names of classes, in the order of the model's outputs.

    Args:
      folder: of a run or a classifier.
      classes: their names.
    """
    text = json.dumps(list(classes), indent=2, ensure_ascii=False)
    write_text(folder / CLASSES_FILE, f"{text}\n")


def missing_run_message(folder: Path, kind: str, others: Iterable[Path]) -> str | None:
    """Return the error for a folder without a complete run, or None.

    It is None where the folder has no records, and there are no others.

    Args:
      folder: that was named.
      kind: what was expected there, "run" or "classifier".
      others: folders in it that have one.

    Example:
      >>> missing_run_message(Path("runs"), "run", [Path("runs/a")])
      'runs holds a run in a subfolder; write runs/a'
    """
    if (folder / "config.json").is_file():
        return (
            f"{folder} has the records of a run, but no checkpoints; "
            "train it again, or write another run's folder"
        )
    names = sorted({str(path) for path in others})
    if len(names) == 1:
        return f"{folder} holds a {kind} in a subfolder; write {names[0]}"
    if names:
        first = f"{', '.join(names[:4])}{', ...' * (len(names) > 4)}"
        return f"{folder} holds {len(names)} {kind}s; write one of them: {first}"
    return None


def experiment_config(
    model: Any,
    tx: Any,
    data: Dataset,
    config: TrainConfig,
    loss: str | Loss = "cross-entropy",
    augment: Augmentation | None = None,
) -> ExperimentConfig:
    """Return the config of a run of these pieces.

    A model, an optimizer or a loss that is not the library's has a description in place of a name.
    So has an augmentation that is a function.

    Args:
      model: as in `jaxcnn.train`.
      tx: as in `jaxcnn.train`.
      data: as in `jaxcnn.train`.
      config: as in `jaxcnn.train`.
      loss: as in `jaxcnn.train`.
      augment: as in `jaxcnn.train`.

    Example:
      >>> from jaxcnn import create_model, create_optimizer, load_dataset
      >>> model, tx = create_model("mlp", 10), create_optimizer(OptimizerConfig("adam"))
      >>> config = experiment_config(model, tx, load_dataset("digits"), TrainConfig())
      >>> config.dataset, config.model, config.optimizer.name
      ('digits', 'mlp', 'adam')
    """
    facts, made_from = model_facts(model), config_of(tx)
    name, kwargs = model_call(model) or (facts["class"], {})
    loss_name, loss_kwargs = loss_facts(as_loss(loss))
    optimizer = OptimizerConfig(describe(optimizer_facts(tx), "optimizer"))
    return ExperimentConfig(
        dataset=data.name,
        model=name,
        model_kwargs={key: value for key, value in facts["fields"].items() if key in kwargs},
        num_validation=len(data.validation.images),
        loss=loss_name,
        loss_kwargs=loss_kwargs,
        augmentation=augmentation_facts(augment),
        optimizer=optimizer if made_from is None else made_from[0],
        train=config,
    )


def _selection_metric(config: ExperimentConfig, row: Mapping[str, Any]) -> float:
    """Return the figure of a row by which the best checkpoint is chosen."""
    has_error = "eval_error" in row and config.loss != "reconstruction"
    return row["eval_error" if has_error else "eval_loss"]


def open_run_dir(
    config: ExperimentConfig,
    folder: str | Path,
    strategy: parallel.Strategy,
    data: Dataset | None = None,
    **pieces: Any,
) -> RunLog:
    """Return the `RunLog` of a run.

    Args:
      config: of the run.
      folder: of the run.
      strategy: its devices, which `env.json` has.
      data: its data.
      pieces: `model`, `tx`, `build`, `tensorboard`, `extend` and `run_facts`, as in `RunLog`.

    Raises:
      ArgumentError: the folder has another run.
    """
    verify_config(config, ExperimentConfig)
    dtype = config.model_kwargs.get("dtype", "float32")
    facts = parallel.describe(parallel.check_strategy(strategy)) | {"dtype": dtype}
    return RunLog(folder, config, facts, data=data, **pieces)


class RunRecords:
    """Records of a run for all processes of a job: its log and its checkpoints.

    The primary process reads and writes them, and broadcasts the results to the others. They are
    opened by `with`, which locks the folder.

    Args:
      config: of the run.
      folder: of the run.
      strategy: its devices.
      data: its data.
      model: if it may be another than the config's, as in `RunLog`.
      tx: likewise.
      build: likewise.
      keep_every: as in `Checkpoints`.
      reopen: open the checkpoints of a finished run too, which may get more steps.
      tensorboard: as in `RunLog`.
      run_facts: likewise.

    Raises:
      ArgumentError: in the constructor, which writes nothing, if `tensorboard` is not possible.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        folder: str | Path,
        strategy: parallel.Strategy,
        data: Dataset,
        *,
        model: Any = None,
        tx: Any = None,
        build: Callable[..., Any] | None = None,
        keep_every: int = 0,
        reopen: bool = False,
        tensorboard: bool = False,
        run_facts: Mapping[str, Any] | None = None,
    ):
        check_tensorboard(tensorboard)
        self.config, self.folder = config, check_path("folder", folder)
        self.strategy, self.keep_every = strategy, keep_every
        self.pieces = {"model": model, "tx": tx, "data": data, "build": build}
        self.tensorboard, self.run_facts = tensorboard, run_facts
        self.reopen = reopen
        self.log: Any = None
        self.checkpoints: Any = None

    def __enter__(self) -> RunRecords:
        # The folder's owner is no error of the primary process alone: all of them go on.
        result, owner = multihost.broadcast_from_primary(self._try_to_open)
        if owner is not None:
            raise FolderInUseError(*owner)
        self.result: dict[str, Any] | None = result
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is None:
            multihost.broadcast_from_primary(self._close)
        # The other processes may not reach a broadcast after an error.
        else:
            self._close()

    def last_row(self) -> dict[str, Any] | None:
        """Return the last row; None before the first."""
        rows = multihost.broadcast_from_primary(lambda: self.log.rows()[-1:])
        return rows[0] if rows else None

    def restore(self, initial: State) -> State | None:
        """Return the newest good state that was saved, or None."""
        return multihost.broadcast_arrays_from_primary(
            lambda: self.checkpoints.restore(initial), initial
        )

    def save(self, state: State, metric: float | None = None) -> None:
        """Save a state, with the figure by which the best one is chosen."""
        multihost.broadcast_from_primary(lambda: self.checkpoints.save(state, metric))

    def record(self, state: State, row: Mapping[str, Any]) -> None:
        """Append a row to the log, and save its state unless the run has diverged."""
        multihost.broadcast_from_primary(lambda: self.log.write(**row))
        if "diverged" not in row:
            self.save(state, _selection_metric(self.config, row))

    def finish(self, num_params: int, reason: str | None) -> dict[str, Any]:
        """Write `result.json`, once the last state can be read back.

        Args:
          num_params: parameters of the model.
          reason: why the run has diverged; None if it has not.
        """
        return multihost.broadcast_from_primary(lambda: self._finish(num_params, reason))

    def _try_to_open(self):
        """Return the result and None, or None and the arguments of the error of a lock."""
        try:
            return self._open(), None
        except FolderInUseError as error:
            return None, (str(error), error.owner, error.by_this_process)

    def _open(self):
        result = self.folder / "result.json"
        # Another process may read or train here. A finished run is only read.
        if result.exists() and not self.reopen:
            RunLog.reserve(self.folder, self.config, **self.pieces)
            return read_json(result)
        # Its lock comes first: of two processes that start in a folder, the second changes nothing.
        self.checkpoints = Checkpoints(self.folder / "checkpoints", self.keep_every)
        try:
            # Another process may have finished the run before it released the lock.
            self.log = self._open_log()
            self._describe_data()
            return self.log.result()
        except BaseException:
            # Else a notebook that continues would find the folder in use by itself.
            self._close()
            raise

    def _open_log(self):
        options: dict[str, Any] = self.pieces | {
            "tensorboard": self.tensorboard,
            "extend": self.reopen,
            "run_facts": self.run_facts,
        }
        return open_run_dir(self.config, self.folder, self.strategy, **options)

    def _describe_data(self):
        # The log has checked by a digest that a resumed run has the same ones.
        data: Any = self.pieces["data"]
        has_names = all(isinstance(name, str) for name in data.classes)
        if data.name not in DATASETS and has_names and not (self.folder / CLASSES_FILE).exists():
            write_classes(self.folder, data.classes)
        scale, shape = data.scale, data.train.images.shape[1:3]
        # Images that were cut further since are not those that the scale gives.
        if scale is None or shape != (scale.size, scale.size):
            return
        if not (self.folder / SCALE_FILE).exists():
            write_text(self.folder / SCALE_FILE, json.dumps(scale._asdict(), indent=2) + "\n")

    def _finish(self, num_params, reason):
        # A run whose last state cannot be read is not finished, and the same command repeats it.
        self.checkpoints.wait()
        return _write_result(self.log, num_params, reason)

    def _close(self):
        if self.log is not None:
            self.log.close()
        if self.checkpoints is not None:
            self.checkpoints.close()


def _write_result(log: RunLog, num_params: int, reason: str | None) -> dict[str, Any]:
    rows = log.rows()
    result: dict[str, Any] = {"status": "finished" if reason is None else "diverged"}
    if reason:
        result["reason"] = reason
    last = {name: value for name, value in rows[-1].items() if name != "diverged"}
    last["seconds"] = math.fsum(row["seconds"] for row in rows)
    return log.finish(**result, params=num_params, **last)
