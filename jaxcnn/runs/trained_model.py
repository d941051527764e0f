"""A run as a trained model: its config, data, network and states."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn.checkpoint import Checkpoints
from jaxcnn.config import ArgumentError, ExperimentConfig
from jaxcnn.data import Dataset, load_dataset
from jaxcnn.run_log import read_metrics
from jaxcnn.runs.single import model_and_optimizer, subset_for
from jaxcnn.state import State, init_state, state_shapes

Rows = list[dict[str, Any]]


class TrainedModel(NamedTuple):
    """A run with states on disk, as `load_trained_model` reads it."""

    folder: Path
    config: ExperimentConfig
    data: Dataset
    """Data set that the run used."""
    model: Any
    states: dict[int, State]
    """States by step, in ascending order.

    The first is the start, step 0. It is computed again from the seed, with the same bits. The
    others are from checkpoints.
    """
    rows: Rows
    """Rows of `metrics.jsonl`."""

    @property
    def first(self) -> State:
        """State before the first step."""
        return self.states[0]

    @property
    def last(self) -> State:
        """The newest state."""
        return next(reversed(self.states.values()))


def load_trained_model(
    folder: str | Path,
    *,
    data: Dataset | None = None,
    data_dir: str | Path | None = None,
    path: bool = False,
) -> TrainedModel:
    """Load the run in a folder, with its start and newest checkpoint.

    Args:
      folder: of a run, with `config.json` and `checkpoints`. The run need not be finished, but no
        process may train there now.
      data: that it was trained on. None loads `config.dataset` from `data_dir` (see
        `jaxcnn.load_dataset`).
      data_dir: folder that is searched for data first.
      path: load all checkpoints, oldest first, and not only the newest.

    Raises:
      ArgumentError: the folder has no run, or a run without checkpoints. The message names runs in
        its subfolders.
      DataError: there are no data.
      CheckpointError: there is no good checkpoint, or another process trains there.

    Example:
      >>> import tempfile
      >>> from jaxcnn import runs
      >>> from jaxcnn import TrainConfig
      >>> train = TrainConfig(num_steps=2)
      >>> config = ExperimentConfig(dataset="digits", model="mlp", train=train)
      >>> folder = tempfile.mkdtemp()
      >>> result = runs.run(config, load_dataset("digits"), folder)
      >>> run = load_trained_model(folder)
      >>> run.config.model, list(run.states), run.data.classes[-1]
      ('mlp', [0, 2], '9')
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / "checkpoints").is_dir():
        raise ArgumentError(_missing_run_message(folder))
    config = ExperimentConfig.load(folder)
    if data is None:
        data = load_dataset(config.dataset, data_dir, validation=config.num_validation)
    data = subset_for(config, data)
    model, tx = model_and_optimizer(config, data.num_classes)
    # Shapes are compared first: a stranger's config may have a network that no memory can hold.
    like = state_shapes(model, tx, config.train, data)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        steps = checkpoints.steps() if path else [None]
        restored = [checkpoints.restore(like, step) for step in steps]
    states = {0: init_state(model, tx, config.train, data)} if any(restored) else {}
    for state in filter(None, restored):
        states[int(state.step)] = state
    if not set(states) - {0}:
        raise ArgumentError(
            f"{folder} has no checkpoint of a step yet; "
            "let it train on, or write another run's folder"
        )
    return TrainedModel(folder, config, data, model, states, read_metrics(folder))


def _missing_run_message(folder: Path) -> str:
    """Return the error for a folder without a run that has checkpoints."""
    if (folder / "config.json").is_file():
        return (
            f"{folder} has the records of a run, but no checkpoints; "
            "train it again, or write another run's folder"
        )
    runs = sorted(str(path.parent.parent) for path in folder.glob("*/checkpoints/lock"))
    if runs:
        names = f"{', '.join(runs[:4])}{', ...' * (len(runs) > 4)}"
        return f"{folder} holds {len(runs)} runs; write one of them: {names}"
    return (
        f"{folder} holds no run; write a run's folder, with config.json and checkpoints, "
        "such as runs/depth/resnet20-seed0"
    )
