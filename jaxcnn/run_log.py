"""Records of a run in a folder: `config.json`, `run.json`, `env.json` and `metrics.jsonl`.

They are enough to repeat the run. TensorBoard's event files are an option.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import platform
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn import provenance
from jaxcnn._util import to_one_line, write_atomically
from jaxcnn.arguments import check_integer, check_mapping, check_path
from jaxcnn.checkpoint._integrity import CheckpointError
from jaxcnn.checkpoint._lock import check_writable_path
from jaxcnn.config import ArgumentError, ExperimentConfig, as_dict, format_value, verify_config
from jaxcnn.data import Dataset, verify_dataset
from jaxcnn.losses import CLASS_LOSSES
from jaxcnn.models.calling import verify_model
from jaxcnn.optim import as_transformation
from jaxcnn.tensorboard import EventFile, check_tensorboard


class LogError(ValueError):
    """A record that cannot be written or read.

    The message is one line.
    """


PACKAGES = ("jaxcnn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
"""Packages whose versions are in `env.json`."""


class RunLog:
    """Records of one run.

    Rows are appended to them, also after the run is resumed.

    `run.json` holds what must stay the same when a run is resumed, as far as no config has it:

    - digests of the data and of the arrays' shapes,
    - JAX's settings that change numbers,
    - a model or an optimizer other than that of the config,
    - digests of the user's own code (`jaxcnn.code_digest`).

    With such a model or optimizer, `config.json` has its name. It leaves out the config's numbers
    of an optimizer that was not used.

    In a `with` block, it writes nothing after the block. In a notebook, an object of an earlier
    cell then adds no rows to the run of a later one.

    Args:
      folder: of the run; created if it does not exist.
      config: written to `config.json`. A folder with the run of another config is an error.
      facts: such as devices and precision. `env.json` has them, the packages' versions, the CPU,
        its cores and the library's commit. If a run is resumed with other facts, they are appended,
        so `env.json` is a list in the order of use.
      model: as in `train`. A folder with the run of another model is an error at once. Without it,
        it is an error at the first row of `train` that is written.
      tx: the optimizer, likewise.
      data: the data set, likewise.
      build: the function that made `model` and `tx` from `config`, if one did. `config.json` then
        keeps the numbers that it got, and `run.json` its name and the config's names.
      tensorboard: write the rows' numbers to event files in `tensorboard/` of the folder too. This
        needs the extra: pip install 'jaxcnn[tensorboard]'. Earlier rows are written there as well.
      extend: accept a config with more `num_steps` than the folder's. `config.json` then has the
        new number, and `run.json` lists both. The run is no longer finished.
      run_facts: those of `jaxcnn.provenance.run_facts`. A folder with another run is then an error
        before anything is written.

    Raises:
      ArgumentError: the folder cannot be written, or has another run, whose differences are named.
        `write` raises it too.
      LogError: the disk is full, the folder is gone, or a file is not what was written. All methods
        raise it.

    Example:
      >>> import tempfile
      >>> log = RunLog(tempfile.mkdtemp(), ExperimentConfig())
      >>> log.write(step=1, train_loss=float("nan"))
      >>> log.rows()
      [{'step': 1, 'train_loss': None}]
    """

    def __init__(
        self,
        folder: str | Path,
        config: ExperimentConfig,
        facts: Mapping[str, Any] | None = None,
        *,
        model: Any = None,
        tx: Any = None,
        data: Dataset | None = None,
        build: Callable[..., Any] | None = None,
        tensorboard: bool = False,
        extend: bool = False,
        run_facts: Mapping[str, Any] | None = None,
    ):
        check_tensorboard(tensorboard)
        if run_facts is not None and not _are_run_facts(run_facts):
            raise ArgumentError(
                f"run_facts is {format_value(run_facts)}; expected what "
                "jaxcnn.provenance.run_facts returns. Leave it out."
            )
        example = "{'note': 'baseline'}"
        facts = _to_json({} if facts is None else check_mapping("facts", facts, example))
        own_facts = self._open(folder, config, model, tx, data, build)
        self._check_config(own_facts, extend, run_facts)
        self._append_environment(facts)
        self.path = self.folder / "metrics.jsonl"
        self._closed = False
        self._remove_unfinished_row()
        self._events: EventFile | None = None
        if tensorboard:
            path = self.folder / "tensorboard"
            with _write_errors(path):
                self._events = EventFile(path, self.rows())

    @classmethod
    def reserve(
        cls,
        folder: str | Path,
        config: ExperimentConfig,
        *,
        model: Any = None,
        tx: Any = None,
        data: Dataset | None = None,
        build: Callable[..., Any] | None = None,
    ) -> None:
        """Check that a folder is free for a run, or holds it.

        A folder without a run gets `config.json` and `run.json`. In another nothing is written, so
        a process may train there at the same time.

        Args:
          folder: as in `RunLog`, like the others.
          config: of the run.
          model: its model.
          tx: its optimizer.
          data: its data.
          build: the function that made `model` and `tx`.

        Raises:
          ArgumentError: the folder cannot be written, or has another run.
        """
        log = cls.__new__(cls)
        own_facts = log._open(folder, config, model, tx, data, build)
        log._check_config(own_facts, writes=not (log.folder / "config.json").exists())

    def _open(self, folder, config, model, tx, data, build) -> dict[str, Any]:
        """Check the arguments, create the folder and return the run's facts."""
        verify_config(config, ExperimentConfig)
        self.folder, self.config = check_path("folder", folder), config
        if model is not None:
            verify_model(model)
        if tx is not None:
            tx = as_transformation(tx)
        if data is not None:
            verify_dataset(data, are_classes=config.loss in CLASS_LOSSES)
        run_facts: dict[str, Any] = {"jax": provenance.jax_settings()}
        if model is not None:
            run_facts["model"] = provenance.model_facts(model)
        if tx is not None:
            run_facts["optimizer"] = provenance.optimizer_facts(tx)
        num_classes = getattr(model, "num_classes", 2) if data is None else data.num_classes
        run_facts = provenance.without_those_of(config, run_facts, num_classes)
        if code := provenance.code_facts(model=model, tx=tx):
            run_facts["code"] = code
        if data is not None:
            run_facts["data"] = provenance.data_digest(data)
        if build is not None:
            run_facts["build"] = {
                "function": provenance.describe_function(inspect.unwrap(build)),
                "model": config.model,
                "optimizer": config.optimizer.name,
            }
        _create_folder(self.folder)
        return run_facts

    def write(self, *, step: int, **row: Any) -> None:
        """Append the row of a step.

        Rows of this step or later ones are dropped first. A run that died between a row and its
        checkpoint computes them again. Numbers that JSON lacks (nan, inf) become null. The row of
        an interrupt of `train` is written only if it was due, so that the rows are those of a run
        that was never stopped.

        Args:
          step: of the row.
          row: its other columns.

        Raises:
          ArgumentError: it is a row of `train`, whose config, model, optimizer or data are not the
            folder's.
        """
        self._check_open()
        row = {"step": check_integer("step", step, 0)} | row
        facts = provenance.cached_run_facts(row)
        if facts is not None and facts is not self._row_facts:
            self._check_facts(facts)
            self._row_facts = facts
        if facts is not None and row.pop("interrupted", False) and not facts.get("is_due", True):
            return
        if self.last is not None and self.last >= row["step"]:
            earlier = [old for old in self.rows() if old["step"] < row["step"]]
            write_text(self.path, "".join(json.dumps(old) + "\n" for old in earlier))
            if self._events is not None:
                with _write_errors(self._events.folder):
                    self._events.synchronize(earlier)
        self.last = row["step"]
        row = _to_json(row)
        line = json.dumps(row, allow_nan=False) + "\n"
        with _write_errors(self.path), open(self.path, "a", opener=_open_without_links) as file:
            file.write(line)
        if self._events is not None:
            with _write_errors(self._events.path):
                self._events.append(row)

    def rows(self) -> list[dict[str, Any]]:
        """Return the complete rows."""
        return read_metrics(self.folder)

    def finish(self, **result: Any) -> dict[str, Any]:
        """Write `result.json`, which marks the run as finished.

        Returns:
          The contents of the file.
        """
        self._check_open()
        result = _to_json(result)
        text = json.dumps(result, indent=2, allow_nan=False) + "\n"
        write_text(self.folder / "result.json", text)
        return result

    def result(self) -> dict[str, Any] | None:
        """Return what `finish` wrote; None if the run is not finished."""
        path = self.folder / "result.json"
        return read_json(path) if os.path.lexists(path) else None

    def close(self) -> None:
        """Refuse further rows through this object.

        The records can still be read. A second call does nothing.
        """
        self._closed = True

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_open(self):
        if self._closed:
            raise LogError(
                f"the RunLog of {self.folder} is closed; expected an open one. "
                "Use a new RunLog to continue"
            )

    def _remove_unfinished_row(self):
        """Remove a last line that a killed run left unfinished.

        The next row thereby starts on a line of its own.
        """
        rows = self.rows()
        self.last: int | None = rows[-1]["step"] if rows else None
        if self.path.exists():
            content = read_bytes(self.path)
            if not content.endswith(b"\n") or content.count(b"\n") > len(rows):
                write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def _check_config(self, own_facts, extend=False, run_facts=None, writes=True):
        """Check `config.json` and `run.json`, and write what they lack.

        Raises:
          ArgumentError: they are of another run.
        """
        self._row_facts: Any = None
        path = self.folder / "run.json"
        self._run: dict[str, Any] = read_json(path) if path.exists() else {}
        if not provenance.are_valid_facts(self._run):
            raise LogError(
                f"{path} does not describe a run; expected the file that was written with it. "
                "Restore it, or delete its folder."
            )
        config = self.folder / "config.json"
        before = after = 0
        if config.exists():
            # `config.json` has other values in these fields than the config.
            replaced = {"model", "model_kwargs"} if self._run.get("model") else set()
            replaced |= {"optimizer"} if self._run.get("optimizer") else set()
            fields = as_dict(self.config, all_fields=True)
            recorded = ExperimentConfig.load(self.folder)
            if "build" in self._run:
                recorded, replaced = provenance.builder_config(recorded, self._run), set()
            recorded = as_dict(recorded, all_fields=True)
            expected = {name: value for name, value in fields.items() if name not in replaced}
            if extend:
                before, after = (values["train"]["num_steps"] for values in (recorded, expected))
                recorded["train"]["num_steps"] = max(before, after)
            if differences := _differences(recorded, expected, "here"):
                raise ArgumentError(
                    f"{self.folder} holds a run of another config: {differences}; "
                    "write another run_dir (--out), or delete that folder"
                )
        if run_facts is not None:
            self._check_facts(run_facts, writes=False)
        self._add_facts(own_facts, writes)
        if not writes:
            return
        if before < after:
            raised, change = self._run.get("num_steps", []), {"before": before, "after": after}
            if change not in raised:
                self._save_run(self._run | {"num_steps": [*raised, change]})
            (self.folder / "result.json").unlink(missing_ok=True)
            # Last, so that a process that dies in between repeats all of it.
            self._write_config()
        if not config.exists() or self._run.get("model") or self._run.get("optimizer"):
            self._write_config()

    def _check_facts(self, facts, writes=True):
        """Check that a row's run is the folder's.

        Raises:
          ArgumentError: it is not.
        """
        config, own = self.config, {key: facts[key] for key in ("train", "dataset")}
        expected = {"train": as_dict(config.train, all_fields=True), "dataset": config.dataset}
        if differences := _differences(expected, own, "trained"):
            raise ArgumentError(
                f"the row is of another config than {self.folder}: {differences}; "
                "expected the same. Use RunLog(folder, config) and train(..., config.train)."
            )
        names = ("model", "optimizer", "loss", "augmentation", "variables")
        names += ("code", "arrays", "data")
        fixed = {key: facts[key] for key in names if key in facts}
        fixed = provenance.without_those_of(config, fixed, facts["num_classes"])
        self._add_facts(fixed, writes)
        if not writes:
            return
        warm_starts = self._run.get("warm_starts", [])
        if "warm_start" in facts and facts["warm_start"] not in warm_starts:
            self._save_run(self._run | {"warm_starts": [*warm_starts, facts["warm_start"]]})

    def _add_facts(self, facts, writes=True):
        """Check facts, and add them to `run.json`.

        Raises:
          ArgumentError: the file is of another run.
        """
        if differences := provenance.differences(self._run, facts, self.config):
            raise ArgumentError(
                f"{self.folder} holds another run: {'; '.join(differences)}; "
                "write another run_dir (--out), or delete that folder"
            )
        run = _to_json(facts) | self._run
        # A log that was opened without a loss or an optimizer has no digest of it yet.
        if "code" in run:
            run["code"] = facts.get("code", {}) | run["code"]
        if writes:
            self._save_run(run)

    def _save_run(self, run):
        if run == self._run:
            return
        before = [self._run.get(key) for key in ("model", "optimizer")]
        self._run = run
        text = json.dumps(run, indent=2, allow_nan=False) + "\n"
        write_text(self.folder / "run.json", text)
        if before != [run.get(key) for key in ("model", "optimizer")]:
            self._write_config()

    def _write_config(self):
        """Write the config, with the model and optimizer of the run."""
        values = as_dict(self.config)
        model, tx = self._run.get("model"), self._run.get("optimizer")
        # A function that made the model and the optimizer got the config's numbers.
        is_built = "build" in self._run
        if model:
            fields = values["model_kwargs"] if is_built else model["fields"]
            values |= {"model": model["class"], "model_kwargs": fields}
        if tx:
            numbers = values["optimizer"] if is_built else {}
            values["optimizer"] = numbers | {"name": provenance.describe(tx, "optimizer")}
        try:
            ExperimentConfig.from_dict(values)
        # Fields of a module may be nested too deeply for a config. `run.json` has them.
        except ArgumentError:
            values["model_kwargs"] = {}
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
        write_text(self.folder / "config.json", text)

    def _append_environment(self, facts):
        path = self.folder / "env.json"
        environment = {
            "python": platform.python_version(),
            "packages": _versions(),
            "machine": platform.machine(),
        }
        environment = _to_json(environment | provenance.machine_facts() | facts)
        earlier = read_json(path, list) if path.exists() else []
        if not earlier or earlier[-1] != environment:
            write_text(path, json.dumps([*earlier, environment], indent=2) + "\n")


def _are_run_facts(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and value.keys() >= {"train", "dataset", "num_classes"}
        and isinstance(value["train"], Mapping)
        and isinstance(value["num_classes"], int)
        and provenance.are_valid_facts(value)
    )


def _differences(recorded: Mapping[str, Any], expected: Mapping[str, Any], verb: str) -> str:
    """Describe fields of `expected`, at every depth, with another value in `recorded`.

    Another optimizer has other numbers, which are left out.
    """
    if recorded.get("name") != expected.get("name"):
        expected = {"name": expected["name"]}
    return ", ".join(
        _differences(recorded[name], expected[name], verb)
        if name in ("optimizer", "train", "augment")
        else f"{name} ({recorded.get(name)!r} there, {expected[name]!r} {verb})"
        for name in expected
        if recorded.get(name) != expected[name]
    )


# ---------------------------------------------------------------- reading


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a run's folder.

    A last line that a killed run left unfinished is skipped. A folder without rows yet has none.

    Raises:
      LogError: there is no such folder, the file cannot be read, or another line is not a row.
    """
    path = check_path("folder", folder, LogError)
    if not os.path.isdir(path):
        problem = "is no folder" if os.path.lexists(path) else "does not exist"
        raise LogError(
            f"{path} {problem}; expected a run's folder. Write one, "
            "such as runs/depth/plain20-seed0."
        )
    if not (path / "metrics.jsonl").exists():
        runs = sorted(str(file.parent) for file in path.glob("*/metrics.jsonl"))
        if runs:
            raise LogError(
                f"{path} is the folder of {len(runs)} runs; expected that of one. Write {runs[0]}."
            )
    return read_lines(path / "metrics.jsonl", "row of a run", _is_row, skip_unfinished=True)


def _is_row(row: dict[str, Any]) -> bool:
    return type(row.get("step")) is int and row["step"] >= 0


def read_lines(
    path: Path,
    description: str = "record",
    is_valid: Callable[[dict[str, Any]], bool] = lambda line: True,
    *,
    skip_unfinished: bool = False,
) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines.

    There are none if the file is missing.

    Args:
      path: of the file.
      description: of a line, for messages.
      is_valid: function that checks an object.
      skip_unfinished: skip an invalid last line, as a killed process leaves it.

    Raises:
      LogError: the file cannot be read, or another line is invalid.
    """
    if not os.path.lexists(path):
        return []
    if not (text := read_bytes(path)):
        return []
    lines, values = text.removesuffix(b"\n").split(b"\n"), []
    for number, line in enumerate(lines, 1):
        try:
            value = _parse(line, dict)
            if not is_valid(value):
                raise ValueError(f"expected a {description}")
            values.append(value)
        except (ValueError, RecursionError) as error:
            if number < len(lines) or not skip_unfinished:
                raise LogError(
                    f"{path}, line {number}, is no {description}: {to_one_line(error, 300)}; "
                    "delete that line"
                ) from None
    return values


def read_json(path: Path, kind: type = dict) -> Any:
    """Return the contents of a JSON file.

    Args:
      path: of the file.
      kind: type of the contents, such as dict or list.

    Raises:
      LogError: the file cannot be read, or has another type.
    """
    try:
        return _parse(read_bytes(path), kind)
    except (ValueError, RecursionError) as error:
        if isinstance(error, LogError):
            raise
        raise LogError(
            f"{path} cannot be read: {to_one_line(error, 300)}; "
            "put back what was there, or delete its folder"
        ) from None


MAX_FILE_BYTES = 1 << 30
"""Maximum bytes of a record.

A row of a run has some 300.
"""
MAX_NUMBER = 1e100
"""Bound of valid numbers in a record. Float32 ends at 3.4e38."""


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a record.

    Raises:
      LogError: it is not a regular file of at most `MAX_FILE_BYTES` bytes, or cannot be read.
    """
    try:
        # A pipe would block without O_NONBLOCK, and a device may have no end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError("it is a folder, a pipe or a device, expected a file")
            if status.st_size > MAX_FILE_BYTES:
                raise OSError(f"it has {status.st_size} bytes, expected at most {MAX_FILE_BYTES}")
            return file.read()
    except OSError as error:
        raise LogError(
            f"{path} cannot be read: {to_one_line(error, 300)}; "
            "put back what was there, or delete its folder"
        ) from None


def _parse(text: bytes, kind: type) -> Any:
    """Parse JSON of a type.

    Raises:
      ValueError: it has another type, or numbers or text that no record has.
    """
    value = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    if not isinstance(value, kind):
        raise ValueError(f"expected {kind.__name__}, found {type(value).__name__}")
    _check_plausible(value)
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _check_plausible(value: Any) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _check_plausible(name)
            _check_plausible(item)
    elif isinstance(value, list):
        for item in value:
            _check_plausible(item)
    elif isinstance(value, (int, float)) and not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise ValueError(f"a number is above {MAX_NUMBER:g}")
    elif isinstance(value, str) and any(
        unicodedata.category(letter) in ("Cc", "Cs") for letter in value.replace("\n", "")
    ):
        raise ValueError("text has control characters")


@contextlib.contextmanager
def record_errors(folder: str | Path) -> Iterator[None]:
    """Raise a LogError for errors of code that uses records.

    Anybody may have changed the files. If a name is missing from them, or a text replaces a number,
    the code that uses them fails anywhere.

    Args:
      folder: of the records, for the message.

    Example:
      >>> with record_errors("runs/a"):
      ...     {"train_error": 3.0}["eval_error"]
      Traceback (most recent call last):
      jaxcnn.run_log.LogError: runs/a holds records that cannot be used: KeyError 'eval_error'; ...
    """
    try:
        yield
    except (ArgumentError, LogError):
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        # The library's own errors already have a message of one line.
        if type(error).__module__.startswith("jaxcnn"):
            raise
        raise LogError(
            f"{folder} holds records that cannot be used: "
            f"{type(error).__name__} {to_one_line(error, 300)}; "
            "expected those that this command writes. "
            "Delete the folder of the damaged run, or write another run_dir (--out)"
        ) from error


# ---------------------------------------------------------------- writing


def write_text(path: Path, text: str) -> None:
    """Write a file atomically.

    Raises:
      LogError: it cannot be written.
    """
    with _write_errors(path):
        write_atomically(path, text.encode("utf-8"))


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Raise a LogError for a record that cannot be written."""
    try:
        yield
    except OSError as error:
        raise LogError(
            f"cannot write {path}: {error.strerror}; "
            "fix that and give the same command: it resumes from the last checkpoint"
        ) from error


def _open_without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _create_folder(folder: Path):
    try:
        check_writable_path(folder)
    except CheckpointError as error:
        raise ArgumentError(str(error)) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Its name is random, so that nobody can have put a link there.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArgumentError(
            f"cannot write in {folder}: {error.strerror}; write another run_dir (--out)"
        ) from None


def _versions() -> dict[str, str | None]:
    def version_or_none(name):
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {name: version_or_none(name) for name in PACKAGES}


def _to_json(value: Any) -> Any:
    """Return a form of a value that JSON can hold.

    Arrays become lists, paths become text, and non-finite numbers become None.

    Raises:
      ArgumentError: it is any other value.
    """
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    is_array = isinstance(value, (np.generic, np.ndarray, jax.Array))
    if is_array and getattr(value.dtype, "kind", "") in tuple("fiubV"):
        return _to_json(np.asarray(value).tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    raise ArgumentError(
        f"a record holds {format_value(value)}; expected numbers, texts, None, or lists of them. "
        "Write float(loss)."
    )
