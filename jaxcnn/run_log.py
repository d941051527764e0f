"""RunLog: a run's folder of records, enough to make it again: `config.json`, `run.json`, `env.json` and `metrics.jsonl`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn import provenance
from jaxcnn.arguments import check_integer, check_mapping, check_path
from jaxcnn.checkpoint._integrity import CheckpointError
from jaxcnn.checkpoint._lock import check_writable_path
from jaxcnn.data import Dataset, verify_dataset
from jaxcnn.models.calling import verify_model
from jaxcnn.optim import as_transformation
from jaxcnn.recipe import ArgumentError, Recipe, format_value, verify_recipe


class LogError(ValueError):
    """A record that cannot be written or read; one line."""


PACKAGES = ("jaxcnn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunLog:
    """The records of one run, appended to as it goes and continued when it is resumed.

    Args:
      folder: the run's; made if it is not there.
      recipe: written to `config.json`. A folder that holds another recipe's run is refused.
      facts: joins the packages' versions, the CPU, its cores and the library's commit in `env.json`: devices, precision. Where
        a run is continued under other facts, they are appended, so that `env.json` is a list in the order of use.
      model, tx, data: what `train` is given, to refuse a folder that holds the run of another model, optimizer or data set
        now. Without them that happens at the first row of `train` that is written.

    `run.json` holds what must stay the same when a run is resumed and no recipe says: digests of the data and of the
    arrays' shapes, JAX's settings that change numbers, and a model or an optimizer that is not the one that the recipe
    names. `config.json` then names what ran, and leaves out the recipe's numbers of an optimizer that did not run.

    Raises:
      ArgumentError: one line, when the folder cannot be written or is another run's (what differs is named); also by `write`.
      LogError: also one line, there and later: the disk is full, the folder gone, a file not what was written.

    It may be used in a `with` block, after which it writes no more: an object that an earlier cell of a notebook has left
    behind does not add rows to the run of a later one.

    Example:
      >>> import tempfile
      >>> log = RunLog(tempfile.mkdtemp(), Recipe())
      >>> log.write(step=1, train_loss=float("nan"))
      >>> log.rows()
      [{'step': 1, 'train_loss': None}]
    """

    def __init__(
        self,
        folder: str | Path,
        recipe: Recipe,
        facts: Mapping[str, Any] | None = None,
        *,
        model: Any = None,
        tx: Any = None,
        data: Dataset | None = None,
    ):
        verify_recipe(recipe)
        self.folder, self.recipe = check_path("folder", folder), recipe
        facts = {} if facts is None else _plain(check_mapping("facts", facts, "{'note': 'baseline'}"))
        if model is not None:
            verify_model(model)
        if tx is not None:
            tx = as_transformation(tx)
        if data is not None:
            verify_dataset(data)
        made_from: dict[str, Any] = {"jax": provenance.jax_settings()}
        if model is not None:
            made_from["model"] = provenance.model_facts(model, recipe, None if data is None else len(data.classes))
        if tx is not None:
            made_from["optimizer"] = provenance.optimizer_facts(tx, recipe)
        if data is not None:
            made_from["data"] = provenance.data_digest(data)
        _make(self.folder)
        self._claim(made_from)
        self._environment(facts)
        self.path = self.folder / "metrics.jsonl"
        self._closed = False
        self._mend()

    def write(self, *, step: int, **row: Any) -> None:
        """Append the row of `step`. Numbers that JSON lacks (nan, inf) become null.

        A row of `train` is refused (ArgumentError) where its run had another recipe, model, optimizer or data than
        the folder's.
        Rows of this step or later ones are dropped first: a run that died between a row and its checkpoint makes them again.
        """
        self._open()
        row = {"step": check_integer("step", step, 0)} | row
        origin = provenance.stored_facts(row)
        if origin is not None and origin is not self._origin:
            self._check(origin)
            self._origin = origin
        if self.last is not None and self.last >= row["step"]:
            before = [old for old in self.rows() if old["step"] < row["step"]]
            write_text(self.path, "".join(json.dumps(old) + "\n" for old in before))
        self.last = row["step"]
        line = json.dumps(_plain(row), allow_nan=False) + "\n"
        with _writing(self.path), open(self.path, "a", opener=_itself) as file:
            file.write(line)

    def rows(self) -> list[dict[str, Any]]:
        """Every whole row so far."""
        return read_metrics(self.folder)

    def finish(self, **result: Any) -> dict[str, Any]:
        """Write `result.json`, which marks the run as over, and return what it holds."""
        self._open()
        result = _plain(result)
        write_text(self.folder / "result.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
        return result

    def result(self) -> dict[str, Any] | None:
        """What `finish` wrote, or None while the run is not over."""
        path = self.folder / "result.json"
        return read_json(path) if os.path.lexists(path) else None

    def close(self) -> None:
        """Refuse further rows through this object; what is written can still be read. Twice is harmless."""
        self._closed = True

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self):
        if self._closed:
            raise LogError(f"the RunLog of {self.folder} is closed; expected an open one. Use a new RunLog to go on")

    def _mend(self):
        """Take away a last line that a killed run left unfinished, so that the next one starts on a line of its own."""
        rows = self.rows()
        self.last: int | None = rows[-1]["step"] if rows else None
        if self.path.exists():
            there = read_bytes(self.path)
            if not there.endswith(b"\n") or there.count(b"\n") > len(rows):
                write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def _claim(self, made_from):
        self._origin: Any = None
        path = self.folder / "run.json"
        self._run: dict[str, Any] = read_json(path) if path.exists() else {}
        if not provenance.are_valid_facts(self._run):
            raise LogError(f"{path} says not what a run was made from; put back what was there, or delete its folder")
        config = self.folder / "config.json"
        if config.exists():
            own = {"model", "options"} if self._run.get("model") else set()
            own |= set(provenance.OPTIMIZER_FIELDS) if self._run.get("optimizer") else set()
            mine = {name: value for name, value in asdict(self.recipe).items() if name not in own}
            if differing := _differing(asdict(Recipe.load(self.folder)), mine, "asked"):
                raise ArgumentError(
                    f"{self.folder} holds a run of another recipe: {differing}; write another --out, or delete that folder"
                )
        self._hold(made_from)
        if not config.exists() or self._run.get("model") or self._run.get("optimizer"):
            self._write_config()

    def _check(self, origin):
        """ArgumentError unless a row's run is the folder's."""
        if differing := _differing(asdict(self.recipe), origin["recipe"], "trained"):
            raise ArgumentError(
                f"the row is of another recipe than {self.folder}: {differing}; expected the same. "
                "Use RunLog(folder, recipe) with the recipe that fit is given."
            )
        self._hold({key: value for key, value in origin.items() if key not in ("recipe", "warm_start")})
        starts = self._run.get("warm_starts", [])
        if "warm_start" in origin and origin["warm_start"] not in starts:
            self._save(self._run | {"warm_starts": [*starts, origin["warm_start"]]})

    def _hold(self, facts):
        """Add what the run is made from to `run.json`; ArgumentError if that holds another run."""
        if differing := provenance.differences(self._run, facts, self.recipe):
            raise ArgumentError(
                f"{self.folder} holds another run: {'; '.join(differing)}; write another --out, or delete that folder"
            )
        self._save(_plain(facts) | self._run)

    def _save(self, run):
        if run == self._run:
            return
        before = [self._run.get(key) for key in ("model", "optimizer")]
        self._run = run
        write_text(self.folder / "run.json", json.dumps(run, indent=2, allow_nan=False) + "\n")
        if before != [run.get(key) for key in ("model", "optimizer")]:
            self._write_config()

    def _write_config(self):
        """The recipe, but of a model or an optimizer that is not its own what that is."""
        values = json.loads(self.recipe.to_json())
        model, tx = self._run.get("model"), self._run.get("optimizer")
        if model:
            values |= {"model": model["class"], "options": model["fields"]}
        if tx:
            values = {name: value for name, value in values.items() if name not in provenance.OPTIMIZER_FIELDS}
            values["optimizer"] = provenance.describe(tx, "optimizer")
        try:
            Recipe(**values)
        except ArgumentError:  # fields of a module that are too deep for a recipe; `run.json` has them
            values["options"] = {}
        write_text(self.folder / "config.json", json.dumps(values, indent=2, allow_nan=False) + "\n")

    def _environment(self, facts):
        path = self.folder / "env.json"
        now = {"python": platform.python_version(), "packages": _versions(), "machine": platform.machine()}
        now = _plain(now | provenance.machine_facts() | facts)
        before = read_json(path, list) if path.exists() else []
        if not before or before[-1] != now:
            write_text(path, json.dumps([*before, now], indent=2) + "\n")


def _differing(there: Mapping[str, Any], mine: Mapping[str, Any], word: str) -> str:
    return ", ".join(f"{k} ({there[k]!r} there, {mine[k]!r} {word})" for k in mine if there[k] != mine[k])


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a run folder; a last line that a killed run left unfinished is passed over. LogError for any other."""
    return read_lines(
        check_path("folder", folder, LogError) / "metrics.jsonl", "row of a run", _is_row, unfinished=True
    )


def _is_row(row: dict[str, Any]) -> bool:
    return type(row.get("step")) is int and row["step"] >= 0


def read_lines(
    path: Path,
    what: str = "record",
    right: Callable[[dict[str, Any]], bool] = lambda line: True,
    *,
    unfinished: bool = False,
) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines, none if it is missing.

    Args:
      path: of the file.
      what: a line is called in a message.
      right: whether an object is one.
      unfinished: pass over a last line that is none, as a killed process leaves it.

    Raises:
      LogError: the file cannot be read, or another line is no such object.
    """
    if not os.path.lexists(path):
        return []
    if not (text := read_bytes(path)):
        return []
    lines, found = text.removesuffix(b"\n").split(b"\n"), []
    for number, line in enumerate(lines, 1):
        try:
            value = _parsed(line, dict)
            if not right(value):
                raise ValueError(f"expected a {what}")
            found.append(value)
        except (ValueError, RecursionError) as error:
            if number < len(lines) or not unfinished:
                raise LogError(f"{path}, line {number}, is no {what}: {_line(error)}; delete that line") from None
    return found


def read_json(path: Path, kind: type = dict) -> Any:
    """What a file of JSON holds; LogError if that is none, or of another kind."""
    try:
        return _parsed(read_bytes(path), kind)
    except (ValueError, RecursionError) as error:
        if isinstance(error, LogError):
            raise
        raise LogError(
            f"{path} cannot be read: {_line(error)}; put back what was there, or delete its folder"
        ) from None


LARGEST_FILE = 1 << 30
"""Bytes of the largest record that is read. A row of a run has some 300."""
LARGEST = 1e100
"""A number above this was not measured: float32 ends at 3.4e38."""


def read_bytes(path: Path) -> bytes:
    """Return what a record holds; LogError unless it is a regular file of at most `LARGEST_FILE` bytes.

    A pipe would be waited for, and a device has no end.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise OSError("it is a folder, a pipe or a device, expected a file")
            if status.st_size > LARGEST_FILE:
                raise OSError(f"it has {status.st_size} bytes, expected at most {LARGEST_FILE}")
            return file.read()
    except OSError as error:
        raise LogError(
            f"{path} cannot be read: {_line(error)}; put back what was there, or delete its folder"
        ) from None


def _parsed(text: bytes, kind: type) -> Any:
    """Return JSON of one kind; ValueError for that of another, and for numbers and text that no record has."""
    found = json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    if not isinstance(found, kind):
        raise ValueError(f"expected {kind.__name__}, found {type(found).__name__}")
    _plausible(found)
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _plausible(value: Any) -> None:
    if isinstance(value, dict):
        for name, part in value.items():
            _plausible(name)
            _plausible(part)
    elif isinstance(value, list):
        for part in value:
            _plausible(part)
    elif isinstance(value, (int, float)) and not -LARGEST <= value <= LARGEST:
        raise ValueError(f"a number is above {LARGEST:g}")
    elif isinstance(value, str) and any(
        unicodedata.category(letter) in ("Cc", "Cs") for letter in value.replace("\n", "")
    ):
        raise ValueError("text has control characters")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """Turn what goes wrong in code that draws from the records in `folder` into a LogError of one line.

    Records are files that anybody can have changed: where a name is missing from them, or a text stands for a number, the
    code that uses them fails anywhere.

    Example:
      >>> with reading("runs/a"):
      ...     {"train_error": 3.0}["eval_error"]
      Traceback (most recent call last):
      jaxcnn.run_log.LogError: runs/a holds records that cannot be used: KeyError 'eval_error'; ...
    """
    try:
        yield
    except (ArgumentError, LogError):
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        if type(error).__module__.startswith("jaxcnn"):
            raise
        raise LogError(
            f"{folder} holds records that cannot be used: {type(error).__name__} {_line(error)}; expected those that this "
            "command writes. Delete the folder of the damaged run, or write another --out"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with _writing(path):
        part.unlink(missing_ok=True)  # a link there would lead the text elsewhere
        with open(part, "x", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What keeps a record from being written, as one line."""
    try:
        yield
    except OSError as error:
        raise LogError(
            f"cannot write {path}: {error.strerror}; mend that and give the same command: it goes on from the last checkpoint"
        ) from error


def _itself(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _make(folder: Path):
    try:
        check_writable_path(folder)
    except CheckpointError as error:
        raise ArgumentError(str(error)) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # of a name that nobody can have laid a link under
            pass
    except OSError as error:
        raise ArgumentError(f"cannot write in {folder}: {error.strerror}; write --out with a folder of yours") from None


def _versions() -> dict[str, str | None]:
    def of(name):
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {name: of(name) for name in PACKAGES}


def _plain(value: Any) -> Any:
    """What JSON holds of a value: arrays as lists, paths as texts, non-finite numbers as None; ArgumentError for the rest."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.generic, np.ndarray, jax.Array)) and getattr(value.dtype, "kind", "") in tuple("fiubV"):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    raise ArgumentError(
        f"a record holds {format_value(value)}; expected numbers, texts, None, or lists of them. Write float(loss)."
    )
