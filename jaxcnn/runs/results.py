"""Runs that are over, read back from their folders, and their figures over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn import tables
from jaxcnn.provenance import OPTIMIZER_FIELDS
from jaxcnn.recipe import ArgumentError, Recipe, format_value
from jaxcnn.run_log import LogError, read_json, read_lines, read_metrics, write_text

Result = dict[str, Any]


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


def finished_runs(out: str | Path) -> list[Run]:
    """The runs of `out` that are over, in the order of their names: those in its folders, and those that were packed.

    Raises:
      ArgumentError: if there is none.
    """
    packed = Path(out, PACKED)
    found = dict(_unpacked(packed, number, line) for number, line in enumerate(read_lines(packed, "run"), 1))
    for folder in (path.parent for path in Path(out).glob("*/result.json")):
        result = read_json(folder / "result.json")
        found[folder.name] = _whole(folder, Run(Recipe.load(folder), result, read_metrics(folder)))
    if not found:
        raise ArgumentError(
            f"{out} holds no run that is over; write --out with a study's folder, or leave out --plot-only"
        )
    return [found[name] for name in sorted(found)]


def _whole(where: Path | str, run: Run) -> Run:
    """Return the run, or raise LogError where its result or rows are of another kind than a run leaves."""
    kinds: dict[str, Any] = {"step": int, "params": int, "seconds": (int, float)}
    needed = {"step": int, "why": str} if run.result.get("status") == "diverged" else {}
    kinds = {name: kind for name, kind in kinds.items() if name in run.result} | needed
    wrong = [name for name, kind in kinds.items() if not _is(run.result.get(name), kind)]
    if run.result.get("status") not in ("finished", "diverged"):
        wrong.insert(0, "status")
    if wrong:
        found = ", ".join(f"{name} is {format_value(run.result.get(name), 40)}" for name in wrong)
        raise LogError(f"{where} holds no result of a run: {found}; delete that run, or train it again")
    if not all(isinstance(row, dict) and _is(row.get("step"), int) for row in run.rows):
        raise LogError(f"{where} holds no rows of a run that is over; delete that run, or train it again")
    return run


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and (isinstance(value, str) or value >= 0)


def _unpacked(path: Path, number: int, told: dict[str, Any]) -> tuple[str, Run]:
    try:
        recipe = Recipe(**(_LEFT_OUT | told["recipe"]))
        run = Run(recipe, dict(told["result"]), list(told["rows"]))
        return str(told["name"]), _whole(f"{path}, line {number},", run)
    except LogError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise LogError(
            f"{path}, line {number}, is no run: {' '.join(str(error).split())[:200]}; pack it again"
        ) from None


PACKED = "runs.jsonl"
_LEFT_OUT = {"pad": 4, "flip": True}
"""Values that older files leave out, which hold only what a recipe changed from the defaults of their day."""


def pack(source: str | Path, target: str | Path) -> int:
    """Write the runs of `source` that are over to `target`/runs.jsonl, one line each, for `finished_runs`; returns how many.

    A study of hundreds of short runs is so kept in one small file: of each its name, recipe, `run.json`, environment, result
    and rows, numbers with 6 digits. The recipe is whole, so that no later default changes it. Checkpoints are left behind.
    """
    lines = []
    for folder in sorted(path.parent for path in Path(source).glob("*/result.json")):
        recipe = asdict(Recipe.load(folder))
        kinds = {"env": list, "result": dict} | ({"run": dict} if (folder / "run.json").exists() else {})
        files = {name: read_json(folder / f"{name}.json", kind) for name, kind in kinds.items()}
        if files.get("run", {}).get("optimizer"):  # the recipe's numbers did not run
            recipe = {name: value for name, value in recipe.items() if name not in OPTIMIZER_FIELDS[1:]}
        line = {"name": folder.name, "recipe": recipe} | files | {"rows": read_metrics(folder)}
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


def eval_split(runs: Sequence[Run]) -> str | None:
    """Return the name of the split that the `eval_*` figures of `runs` are of; None for no runs.

    Raises:
      ArgumentError: if some are of the test split and some of the validation split: they are no sample of one quantity.
    """
    splits = sorted({run.recipe.report for run in runs})
    if len(splits) > 1:
        raise ArgumentError(
            f"the runs report {' and '.join(splits)}; expected one split. Use another --out for the other split."
        )
    return splits[0] if splits else None


def aggregate_seeds(runs: Sequence[Run], keys: Sequence[str] = ("train_error", "eval_error")) -> dict[str, Any]:
    """Columns of a table: figures of the last row (errors in percent), over the seeds that did not diverge.

    `seeds`, then `eval_split` if one of `keys` is an `eval_*` figure, then for each of `keys` the mean, its `_std` and its
    `_ci95` (half width of the mean's 95% interval), then the mean `seconds` of a run. A mean is None where a run's figure is.

    Raises:
      ArgumentError: if the `eval_*` figures are not all of the same split.
    """
    trained = [run for run in runs if run.divergence is None]
    good = [run.result for run in trained]
    line: dict[str, Any] = {"seeds": len(good)}
    if any(key.startswith("eval_") for key in keys):
        line["eval_split"] = eval_split(trained)
    for key in keys:
        values = [result[key] for result in good]
        # A figure that was no number is None in the record, and no mean leaves it out.
        mean, std, ci95 = (None, None, None) if None in values else tables.seed_statistics(values)
        line |= {key: mean, f"{key}_std": std, f"{key}_ci95": ci95}
    return line | {"seconds": tables.seed_statistics([result["seconds"] for result in good]).mean}
