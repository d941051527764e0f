"""Studies: many runs, each in a folder of its own, that can be stopped at any moment and go on under the same command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn import parallel, report
from jaxcnn.checkpoint import Checkpoints
from jaxcnn.data import Dataset, subset
from jaxcnn.log import RunLog, read_rows, write_text
from jaxcnn.models import build, parameters
from jaxcnn.optim import optimizer
from jaxcnn.progress import Progress
from jaxcnn.recipe import Recipe, RecipeError
from jaxcnn.state import State
from jaxcnn.train import check, fit

DIVERGED = 10.0
"""A mean training loss this many times that of guessing, log(classes), is divergence, finite or not."""
Result = dict[str, Any]
Measure = Callable[[Any, State, Dataset], Mapping[str, Any]]
"""More columns for a row: a function of (model, state, data) giving plain numbers by name."""


def prepare(recipe: Recipe, classes: int) -> tuple[Any, Any]:
    """The recipe's model and optimiser. What is compiled for them serves every seed and rate."""
    return build(recipe.model, classes, **recipe.options), optimizer(recipe)


def cut(recipe: Recipe, data: Dataset) -> Dataset:
    """`data` with as many training images as the recipe says; every run of a study gets the same ones."""
    there = len(data.train.labels)
    if recipe.examples is None or recipe.examples == there:
        return data
    return subset(data, recipe.examples, seed=0)


def diverged(row: Mapping[str, Any], classes: int) -> str | None:
    """Why a row is that of a diverged run, or None: a loss or gradient that is no number, or a loss beyond sense."""
    for name in ("train_loss", "grad_norm", "test_loss"):
        if not math.isfinite(row[name]):
            return f"{name} is {row[name]}"
    limit = DIVERGED * math.log(classes)
    return f"train_loss is {row['train_loss']:.3g}, above {limit:.3g}" if row["train_loss"] > limit else None


def run(
    recipe: Recipe,
    data: Dataset,
    folder: str | Path,
    *,
    driver: parallel.Driver | None = None,
    stop: Callable[[], Any] = lambda: False,
    watch: Callable[[int, Mapping[str, Any] | None], None] = lambda step, row: None,
    measure: Measure = lambda model, state, data: {},
) -> Result | None:
    """Train one recipe in `folder`, from its last checkpoint if it has one; a run that is over is not run again.

    Args:
      recipe: the numbers; a folder that holds another recipe's run is refused.
      data: what `load(recipe.dataset, validation=recipe.validation)` gives; `recipe.examples` of its training images
        are used.
      folder: `config.json`, `env.json`, `metrics.jsonl`, `checkpoints/`, and `result.json` when the run is over.
      driver: where to run.
      stop: asked after every step; when it answers true the state is saved and None is returned.
      watch: called with the step, after every step, and with the row as well where there is one.
      measure: gives more columns of each row.

    Returns:
      The contents of `result.json`: `status` ("finished" or "diverged", then with `why`), `params`, the last row's
      figures and the run's `seconds`; or None when it was stopped.
    """
    driver = driver or parallel.driver()
    data, classes = cut(recipe, data), len(data.classes)
    model, tx = prepare(recipe, classes)
    log = claim(recipe, folder, driver)
    if (over := log.result()) is not None:
        return over
    with Checkpoints(Path(folder, "checkpoints")) as saved:

        def resume(like):
            state = saved.restore(like) or like
            watch(int(state.step), None)
            return state

        def pause(step):
            watch(step, None)
            return stop()

        why = None
        for state, row in fit(model, tx, data, recipe, resume=resume, driver=driver, pause=pause):
            if row is None:
                saved.save(state)
                if state.step < recipe.steps:
                    return None
                break
            why = diverged(row, classes)
            if why is None:
                row |= measure(model, state, data)
            log.write(**row)
            watch(int(state.step), row)
            if why:
                break
            saved.save(state, row["test_error"])
            if stop() and state.step < recipe.steps:
                return None
    return _finish(log, model, data, why)


def claim(recipe: Recipe, folder: str | Path, driver: parallel.Driver) -> RunLog:
    """The records of a run of `recipe` in `folder`; RecipeError if the folder is another recipe's or cannot be written."""
    return RunLog(folder, recipe, parallel.describe(driver) | {"dtype": recipe.options.get("dtype", "float32")})


def _finish(log, model, data, why) -> Result:
    rows = log.rows()
    result = {"status": "finished" if why is None else "diverged"} | ({"why": why} if why else {})
    result |= {"params": parameters(model, data.train.images.shape[1:])} | rows[-1]
    result |= {"seconds": math.fsum(row["seconds"] for row in rows)}
    return log.finish(**result)


class Run(NamedTuple):
    """A run that is over, as its folder tells it."""

    recipe: Recipe
    result: Result
    rows: list[Result]

    @property
    def divergence(self) -> str | None:
        """One sentence on how the run diverged, or None."""
        if self.result["status"] == "finished":
            return None
        return (
            f"{self.recipe.model} seed {self.recipe.seed} diverged at step {self.result['step']}: {self.result['why']}."
        )


def finished(out: str | Path) -> list[Run]:
    """The runs of `out` that are over, in the order of their names: those in its folders, and those that were packed.

    Raises:
      RecipeError: if there is none.
    """
    packed = Path(out, PACKED)
    lines = [json.loads(line) for line in packed.read_text().splitlines()] if packed.exists() else []
    found = {line["name"]: Run(Recipe(**line["recipe"]), line["result"], line["rows"]) for line in lines}
    for folder in (path.parent for path in Path(out).glob("*/result.json")):
        result = json.loads((folder / "result.json").read_text())
        found[folder.name] = Run(Recipe.load(folder), result, read_rows(folder))
    if not found:
        raise RecipeError(
            f"{out} holds no run that is over; write --out with a study's folder, or leave out --plot-only"
        )
    return [found[name] for name in sorted(found)]


PACKED = "runs.jsonl"


def pack(source: str | Path, target: str | Path) -> int:
    """Write the runs of `source` that are over to `target`/runs.jsonl, one line each, for `finished`; returns how many.

    A study of hundreds of short runs is so kept in one small file: of each its name, what its recipe changes from the defaults,
    its environment, result and rows, numbers with 6 digits. Checkpoints are left behind.
    """
    default, lines = asdict(Recipe()), []
    for folder in sorted(path.parent for path in Path(source).glob("*/result.json")):
        recipe = {k: v for k, v in asdict(Recipe.load(folder)).items() if v != default[k]}
        files = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("env", "result")}
        line = {"name": folder.name, "recipe": recipe} | files | {"rows": read_rows(folder)}
        lines.append(json.dumps(_short(line), separators=(",", ":")) + "\n")
    Path(target).mkdir(parents=True, exist_ok=True)
    write_text(Path(target, PACKED), "".join(lines))
    return len(lines)


def _short(value: Any) -> Any:
    """The same with floats of 6 digits."""
    if isinstance(value, dict):
        return {key: _short(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_short(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def over_seeds(runs: Sequence[Run], keys: Sequence[str] = ("train_error", "test_error")) -> dict[str, Any]:
    """Columns of a table: figures of the last row (errors in percent), over the seeds that did not diverge.

    `seeds`, then for each of `keys` the mean, its `_std` and its `_ci95` (half width of the mean's 95% interval), then the mean
    `seconds` of a run.
    """
    good = [run.result for run in runs if run.divergence is None]
    line: dict[str, Any] = {"seeds": len(good)}
    for key in keys:
        mean, std, ci95 = report.summarise([result[key] for result in good])
        line |= {key: mean, f"{key}_std": std, f"{key}_ci95": ci95}
    return line | {"seconds": report.summarise([result["seconds"] for result in good]).mean}


class _Watch:
    """Turns the steps of one run into progress of the whole; the first step told is where the run starts from."""

    def __init__(self, progress: Progress, name: str, recipe: Recipe, weight: float, brief: bool):
        self.progress, self.name, self.recipe, self.weight, self.brief = progress, name, recipe, weight, brief
        self.step: int | None = None

    def __call__(self, step: int, row: Mapping[str, Any] | None) -> None:
        where = f"{self.name}  step {step}/{self.recipe.steps}"
        if self.step is None:
            self.progress.skip(self.weight * step)
        else:
            self.progress.advance(self.weight * (step - self.step), where)
        self.step = step
        if row is not None and not self.brief:
            errors = "  ".join(f"{part} error {row[f'{part}_error']:5.2f}%" for part in ("train", "test"))
            self.progress.say(f"{where}  {errors}  {row['images_per_second']:,.0f} images/s")

    def close(self) -> None:
        """The run is over, wherever it ended."""
        self.progress.skip(self.weight * (self.recipe.steps - (self.step or 0)))


def sweep(
    runs: Mapping[str, Recipe],
    data: Dataset,
    out: str | Path,
    *,
    driver: parallel.Driver | None = None,
    stop: Callable[[], Any] = lambda: False,
    measure: Measure = lambda model, state, data: {},
    brief: bool = False,
) -> dict[str, Result] | None:
    """Run every recipe in the folder of its name under `out`, showing progress; None when stopped on the way.

    Every recipe is checked and every folder claimed before the first step: a mistake costs no training. With `brief` the
    progress of many short runs is not interrupted by a line for each of their rows.
    """
    driver = driver or parallel.driver()
    shape = data.train.images.shape[1:]
    weights = {name: parameters(prepare(recipe, len(data.classes))[0], shape) for name, recipe in runs.items()}
    for recipe in runs.values():
        check(recipe, cut(recipe, data), driver)
    for name, recipe in runs.items():
        claim(recipe, Path(out, name), driver)
    results = {}
    with Progress(sum(weights[name] * recipe.steps for name, recipe in runs.items())) as progress:
        for name, recipe in runs.items():
            watch = _Watch(progress, name, recipe, weights[name], brief)
            result = run(recipe, data, Path(out, name), driver=driver, stop=stop, watch=watch, measure=measure)
            if result is None:
                return None
            watch.close()
            results[name] = result
    return results
