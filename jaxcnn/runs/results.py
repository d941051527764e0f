"""Finished runs, read from their folders, and their statistics over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn import tables
from jaxcnn._util import to_one_line
from jaxcnn.arguments import check_path
from jaxcnn.config import ArgumentError, ExperimentConfig, as_dict, format_value
from jaxcnn.run_log import LogError, read_json, read_lines, read_metrics, write_text

Result = dict[str, Any]


class Run(NamedTuple):
    """A finished run, as its folder holds it.

    Attributes:
      config: contents of `config.json`.
      result: contents of `result.json`.
      rows: rows of `metrics.jsonl`.
      name: name of the run's folder.
    """

    config: ExperimentConfig
    result: Result
    rows: list[Result]
    name: str = ""

    @property
    def divergence(self) -> str | None:
        """A sentence on the divergence of the run, or None."""
        if self.result["status"] == "finished":
            return None
        return (
            f"{self.config.model} seed {self.config.train.seed} diverged at step "
            f"{self.result['step']}: {self.result['reason']}."
        )


def finished_runs(out: str | Path) -> list[Run]:
    """Return the finished runs of a folder, ordered by name.

    They are those in its subfolders, and those that were packed.

    Raises:
      ArgumentError: there are none.
      LogError: a record is damaged.
    """
    out = check_path("out", out, example="'runs/my-study'")
    packed_file = out / PACKED
    runs = dict(
        _unpack(packed_file, number, line)
        for number, line in enumerate(read_lines(packed_file, "run"), 1)
    )
    for folder in (path.parent for path in out.glob("*/result.json")):
        result = read_json(folder / "result.json")
        run = Run(ExperimentConfig.load(folder), result, read_metrics(folder), folder.name)
        runs[folder.name] = _check_run(folder, run)
    if not runs and (out / "result.json").is_file():
        raise ArgumentError(
            f"{to_one_line(out)} is the folder of one run; expected the folder that it is in. "
            f"Write {to_one_line(out.parent)}, or read the run with jaxcnn.read_metrics"
        )
    if not runs:
        raise ArgumentError(
            f"{to_one_line(out)} holds no finished run; expected a study's folder. Write another "
            "one (--out), or train first (leave out --plot-only)"
        )
    return [runs[name] for name in sorted(runs)]


def _check_run(location: Path | str, run: Run) -> Run:
    """Return the run.

    Raises:
      LogError: its result or rows have other types than those of a finished run.
    """
    kinds: dict[str, Any] = {"step": int, "params": int, "seconds": (int, float)}
    required = {"step": int, "reason": str} if run.result.get("status") == "diverged" else {}
    kinds = {name: kind for name, kind in kinds.items() if name in run.result} | required
    invalid = [name for name, kind in kinds.items() if not _is_valid(run.result.get(name), kind)]
    if run.result.get("status") not in ("finished", "diverged"):
        invalid.insert(0, "status")
    if invalid:
        values = ", ".join(
            f"{name} is {format_value(run.result.get(name), 40)}" for name in invalid
        )
        raise LogError(
            f"{location} holds no result of a run: {values}; delete that run, or train it again"
        )
    if not all(isinstance(row, dict) and _is_valid(row.get("step"), int) for row in run.rows):
        raise LogError(
            f"{location} holds no rows of a finished run; delete that run, or train it again"
        )
    return run


def _is_valid(value: Any, kind: Any) -> bool:
    is_kind = isinstance(value, kind) and not isinstance(value, bool)
    return is_kind and (isinstance(value, str) or value >= 0)


def _unpack(path: Path, number: int, line: dict[str, Any]) -> tuple[str, Run]:
    try:
        config = ExperimentConfig.from_dict(line["config"])
        run = Run(config, dict(line["result"]), list(line["rows"]), str(line["name"]))
        return run.name, _check_run(f"{path}, line {number},", run)
    except LogError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = to_one_line(error, 200)
        raise LogError(f"{path}, line {number}, is no run: {reason}; pack it again") from None


PACKED = "runs.jsonl"
"""Name of the file that `pack` writes."""


def pack(source: str | Path, target: str | Path) -> int:
    """Write the finished runs of a folder to one file.

    A study of hundreds of short runs thereby becomes one small file, `target`/runs.jsonl, which
    `finished_runs` reads. A line of it has a run's name, config, `run.json`, environment, result
    and rows, numbers with 6 digits. The config is complete, so that no later default changes it.
    Checkpoints are left out.

    Returns:
      The number of runs.

    Raises:
      ArgumentError: the source is not there or holds no finished run, or the target is a file or
        the source itself.
    """
    lines = []
    source = check_path("source", source, example="'runs/my-study'")
    target = check_path("target", target, example="'results/my-study'")
    for folder in sorted(path.parent for path in source.glob("*/result.json")):
        config = as_dict(ExperimentConfig.load(folder))
        kinds = {"env": list, "result": dict}
        if (folder / "run.json").exists():
            kinds["run"] = dict
        files = {name: read_json(folder / f"{name}.json", kind) for name, kind in kinds.items()}
        # The run had another optimizer, so the config's numbers were not used.
        run = files.get("run", {})
        if run.get("optimizer") and "build" not in run:
            config["optimizer"] = {"name": config["optimizer"]["name"]}
        line = {"name": folder.name, "config": config} | files | {"rows": read_metrics(folder)}
        lines.append(json.dumps(_round_floats(line), separators=(",", ":")) + "\n")
    if not lines:
        found = "holds no finished run" if source.is_dir() else "is no folder"
        is_run = (source / "result.json").exists()
        raise ArgumentError(
            f"{source} {'is one run' if is_run else found}; expected a folder of folders with "
            f"result.json. Write pack({str(source.parent) if is_run else 'runs/my-study'!r}, "
            "target)."
        )
    if target.exists() and (not target.is_dir() or target.samefile(source)):
        raise ArgumentError(
            f"target is {target}, which is {'the source' if target.is_dir() else 'a file'}; "
            "expected another folder, which is made if it is not there. "
            "Write pack('runs/my-study', 'results/my-study')."
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_text(target / PACKED, "".join(lines))
    except OSError as error:
        raise ArgumentError(
            f"target {target} cannot be written: {error.strerror}; expected a folder, or the name "
            "of one to make. Write pack('runs/my-study', 'results/my-study')."
        ) from None
    return len(lines)


def _round_floats(value: Any) -> Any:
    """Return the value with floats of 6 digits."""
    if isinstance(value, dict):
        return {key: _round_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_round_floats(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _check_runs(runs: Any) -> list[Run]:
    """Return runs as a list.

    Raises:
      ArgumentError: they are anything else.
    """
    # A run is a tuple itself.
    valid = isinstance(runs, (list, tuple)) and not isinstance(runs, Run)
    if not valid or not all(
        isinstance(run, Run)
        and isinstance(run.config, ExperimentConfig)
        and isinstance(run.result, dict)
        for run in runs
    ):
        raise ArgumentError(
            f"runs is {format_value(runs)}; expected a list of finished runs. "
            "Write runs=finished_runs('runs/my-study')."
        )
    return list(runs)


def eval_split(runs: Sequence[Run]) -> str | None:
    """Return the name of the split of the runs' `eval_*` figures.

    It is None for no runs.

    Raises:
      ArgumentError: some are of the test split and some of the validation split. They are not a
        sample of one quantity.
    """
    splits = sorted({run.config.train.eval_split for run in _check_runs(runs)})
    if len(splits) > 1:
        raise ArgumentError(
            f"the runs report {' and '.join(splits)}; expected one split. "
            "Use another folder (--out) for the other split."
        )
    return splits[0] if splits else None


def _check_figures(keys: Any, runs: Sequence[Run]) -> None:
    """Check that every run has the figures.

    Raises:
      ArgumentError: `keys` is no list of names, or a run has no such figure.
    """
    if not isinstance(keys, (tuple, list)) or not all(isinstance(key, str) for key in keys):
        raise ArgumentError(
            f"keys is {format_value(keys)}; expected names of figures. Write keys=('eval_error',)."
        )
    for run in runs:
        for key in ("seconds", *keys):
            value = run.result.get(key, "missing")
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not is_number:
                names = [name for name, number in run.result.items() if isinstance(number, float)]
                raise ArgumentError(
                    f"{key} of run {run.name} is {format_value(value)}; expected a number. "
                    f"Write keys of its result: {', '.join(names)}."
                )


def aggregate_seeds(
    runs: Sequence[Run], keys: Sequence[str] = ("train_error", "eval_error")
) -> dict[str, Any]:
    """Return a table's row of statistics over seeds.

    They are of the figures of the last row (errors in percent), over the seeds that did not
    diverge.

    Args:
      runs: that differ in their seeds.
      keys: figures.

    Returns:
      These columns, in this order:

      - `seeds`, their number.
      - `eval_split`, if a key is an `eval_*` figure.
      - For each key its mean, its `_std`, and its `_ci95`, the half width of the mean's 95%
        interval. A mean is None if a run's figure is None.
      - `seconds`, the mean over runs.

    Raises:
      ArgumentError: the `eval_*` figures are not all of the same split, or a run has no such
        figure.
    """
    converged = [run for run in _check_runs(runs) if run.divergence is None]
    results = [run.result for run in converged]
    _check_figures(keys, converged)
    line: dict[str, Any] = {"seeds": len(results)}
    if any(key.startswith("eval_") for key in keys):
        line["eval_split"] = eval_split(converged)
    for key in keys:
        values = [result[key] for result in results]
        # A non-finite figure is None in the record, and a mean must not leave it out.
        mean, std, ci95 = (None, None, None) if None in values else tables.seed_statistics(values)
        line |= {key: mean, f"{key}_std": std, f"{key}_ci95": ci95}
    seconds = tables.seed_statistics([result["seconds"] for result in results]).mean
    return line | {"seconds": seconds}
