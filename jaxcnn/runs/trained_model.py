"""A run that is over as a network that can be looked at: its recipe, data, model and the states that it kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn.checkpoint import Checkpoints
from jaxcnn.data import Dataset, load_dataset
from jaxcnn.recipe import ArgumentError, Recipe
from jaxcnn.run_log import read_metrics
from jaxcnn.runs.single import model_and_optimizer, subset_for
from jaxcnn.state import State, init_state, state_shapes

Rows = list[dict[str, Any]]


class TrainedModel(NamedTuple):
    """A run with states on disk, as `load_trained_model` reads it."""

    folder: Path
    recipe: Recipe
    data: Dataset
    """As the run saw it."""
    model: Any
    states: dict[int, State]
    """By step, in their order: the start (step 0, made anew from the seed, with the same bits) and what was asked for."""
    rows: Rows
    """Of `metrics.jsonl`."""

    @property
    def first(self) -> State:
        """Before the first step."""
        return self.states[0]

    @property
    def last(self) -> State:
        """The newest."""
        return next(reversed(self.states.values()))


def load_trained_model(
    folder: str | Path, *, data: Dataset | None = None, data_dir: str | Path | None = None, path: bool = False
) -> TrainedModel:
    """The run in `folder`, at its start and its newest checkpoint, or, with `path`, at every one that it kept.

    Args:
      folder: a run's, which holds `config.json` and `checkpoints`; the run need not be over, but must not be under way.
      data: what it was trained on; None loads `recipe.dataset` from `data_dir` (see `jaxcnn.load_dataset`).
      data_dir: where to look for data first.
      path: read all states, oldest first, and not only the newest.

    Raises:
      ArgumentError: if the folder holds no run, or one without checkpoints; the runs in folders below are named.
      DataError, CheckpointError: no data, or no good checkpoint, or another process trains there.

    Example:
      >>> import tempfile
      >>> from jaxcnn import runs
      >>> recipe = Recipe(dataset="digits", model="mlp", steps=2, drops=(), flip=False, pad=0)
      >>> folder = tempfile.mkdtemp()
      >>> result = runs.run(recipe, load_dataset("digits"), folder)
      >>> run = load_trained_model(folder)
      >>> run.recipe.model, list(run.states), run.data.classes[-1]
      ('mlp', [0, 2], '9')
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / "checkpoints").is_dir():
        raise ArgumentError(_missing(folder))
    recipe = Recipe.load(folder)
    if data is None:
        data = load_dataset(recipe.dataset, data_dir, validation=recipe.validation)
    data = subset_for(recipe, data)
    model, tx = model_and_optimizer(recipe, len(data.classes))
    # Compared by shapes first: a recipe of a stranger's may ask for a network that no memory holds.
    like = state_shapes(model, tx, recipe, data)
    with Checkpoints(folder / "checkpoints") as saved:
        found = [saved.restore(like, step) for step in (saved.steps() if path else [None])]
    states = {0: init_state(model, tx, recipe, data)} if any(found) else {}
    for state in filter(None, found):
        states[int(state.step)] = state
    if not set(states) - {0}:
        raise ArgumentError(f"{folder} has no checkpoint of a step yet; let it train on, or write another run's folder")
    return TrainedModel(folder, recipe, data, model, states, read_metrics(folder))


def _missing(folder: Path) -> str:
    """What to write instead of a folder that holds no run with checkpoints."""
    if (folder / "config.json").is_file():
        return f"{folder} has the records of a run, but no checkpoints; train it again, or write another run's folder"
    runs = sorted(str(path.parent.parent) for path in folder.glob("*/checkpoints/lock"))
    if runs:
        return f"{folder} holds {len(runs)} runs; write one of them: {', '.join(runs[:4])}{', ...' * (len(runs) > 4)}"
    return f"{folder} holds no run; write a run's folder, with config.json and checkpoints, such as runs/depth/resnet20-seed0"
