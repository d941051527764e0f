"""One run in a folder of its own, that can be stopped at any moment and goes on under the same command."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxcnn import multihost, parallel
from jaxcnn.checkpoint import Checkpoints
from jaxcnn.data import Dataset, subset, verify_dataset
from jaxcnn.models import count_parameters, create_model
from jaxcnn.optim import create_optimizer
from jaxcnn.recipe import Recipe
from jaxcnn.run_log import RunLog
from jaxcnn.runs.results import Result
from jaxcnn.state import State
from jaxcnn.training import check_config, train

Measure = Callable[[Any, State, Dataset], Mapping[str, Any]]
"""More columns for a row: a function of (model, state, data) giving plain numbers by name."""


def model_and_optimizer(recipe: Recipe, classes: int) -> tuple[Any, Any]:
    """The recipe's model and optimiser. What is compiled for them serves every seed and rate."""
    return create_model(recipe.model, classes, **recipe.options), create_optimizer(recipe)


def subset_for(recipe: Recipe, data: Dataset) -> Dataset:
    """`data` with as many training images as the recipe says; every run of a study gets the same ones."""
    there = len(data.train.labels)
    if recipe.examples is None or recipe.examples == there:
        return data
    return subset(data, recipe.examples, seed=0)


def run(
    recipe: Recipe,
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
    """Train one recipe in `folder`, from its last checkpoint if it has one; a run that is over is not run again.

    Args:
      recipe: the numbers; a folder that holds the run of another recipe or on other data is refused.
      data: what `load(recipe.dataset, validation=recipe.validation)` gives; `recipe.examples` of its training images
        are used.
      folder: `config.json`, `run.json`, `env.json`, `metrics.jsonl`, `checkpoints/`, and `result.json` when the run is over.
      strategy: where to run.
      stop: asked after every step; when it answers true the state is saved and None is returned.
      watch: called with the step, after every step, and with the row as well where there is one.
      measure: gives more columns of each row.
      begin: given the state at step 0, returns the one to start from: `lambda state: with_variables(state, variables)`, say.
      keep_every: as in `Checkpoints`.

    Returns:
      The contents of `result.json`: `status` ("finished" or "diverged", then with `why`), `params`, the last row's
      figures and the run's `seconds`; or None when it was stopped.
    """
    verify_dataset(data)
    strategy = parallel.check_strategy(strategy)
    data = subset_for(recipe, data)
    check_config(recipe, data, strategy)  # before the folder is claimed
    model, tx = model_and_optimizer(recipe, len(data.classes))
    with _Records(recipe, folder, strategy, keep_every, data) as records:
        if records.over is not None:
            return records.over

        def resume(like):
            state = records.restore(like) or begin(like)
            watch(int(state.step), None)
            return state

        def pause(step):
            watch(step, None)
            return stop()

        why = None
        for state, row in train(model, tx, data, recipe, resume=resume, strategy=strategy, pause=pause):
            if row is None:
                records.save(state)
                if state.step < recipe.steps:
                    return None
                break
            why = row.get("diverged")
            if why is None:
                row |= measure(model, state, data)
            records.write(row)
            watch(int(state.step), row)
            if why:
                break
            records.save(state, row["eval_loss" if recipe.loss == "reconstruction" else "eval_error"])
            if stop() and state.step < recipe.steps:
                return None
        return records.finish(count_parameters(model, data.train.images.shape[1:]), why)


def open_run_dir(
    recipe: Recipe, folder: str | Path, strategy: parallel.Strategy, data: Dataset | None = None
) -> RunLog:
    """Return the records of a run of `recipe` on `data` in `folder`, as `RunLog`; ArgumentError if that is another run's."""
    facts = parallel.describe(strategy) | {"dtype": recipe.options.get("dtype", "float32")}
    return RunLog(folder, recipe, facts, data=data)


class _Records:
    """A run's folder as all processes of the job know it: the first reads and writes, the others are told."""

    def __init__(self, recipe: Recipe, folder: str | Path, strategy: parallel.Strategy, keep_every: int, data: Dataset):
        self.recipe, self.folder, self.strategy, self.keep_every = recipe, Path(folder), strategy, keep_every
        self.data = data
        self.log: Any = None
        self.saved: Any = None

    def __enter__(self) -> _Records:
        self.over = multihost.broadcast_from_primary(self._open)
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is None:
            multihost.broadcast_from_primary(self._close)
        else:
            self._close()

    def restore(self, like: State) -> State | None:
        return multihost.broadcast_arrays_from_primary(lambda: self.saved.restore(like), like)

    def save(self, state: State, metric: float | None = None) -> None:
        multihost.broadcast_from_primary(lambda: self.saved.save(state, metric))

    def write(self, row: Mapping[str, Any]) -> None:
        multihost.broadcast_from_primary(lambda: self.log.write(**row))

    def finish(self, params: int, why: str | None) -> Result:
        return multihost.broadcast_from_primary(lambda: self._finish(params, why))

    def _open(self):
        if Path(self.folder, "result.json").exists():
            return open_run_dir(self.recipe, self.folder, self.strategy, self.data).result()
        # Its lock comes first: of two processes that start in one folder, the second is to change nothing.
        self.saved = Checkpoints(self.folder / "checkpoints", self.keep_every)
        try:
            self.log = open_run_dir(self.recipe, self.folder, self.strategy, self.data)
        except BaseException:
            self._close()  # a notebook that goes on would find the folder in use by itself
            raise
        return None

    def _finish(self, params, why):
        self.saved.wait()  # a run whose last state cannot be read is not over: the same command makes it again
        return _finish(self.log, params, why)

    def _close(self):
        if self.saved is not None:
            self.saved.close()


def _finish(log: RunLog, params: int, why: str | None) -> Result:
    rows = log.rows()
    result = {"status": "finished" if why is None else "diverged"} | ({"why": why} if why else {})
    last = {name: value for name, value in rows[-1].items() if name != "diverged"}
    return log.finish(**result, params=params, **last | {"seconds": math.fsum(row["seconds"] for row in rows)})
