"""Latest and best states of a run on disk, through Orbax.

Every save is read back before its files are recorded.
"""

import contextlib
import functools
import logging
import math
import operator
import shutil
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from jaxcnn.arguments import format_value
from jaxcnn.checkpoint._integrity import (
    CheckpointError,
    Damaged,
    Leaves,
    check_files,
    check_same_model,
    copy_leaves,
    describe_error,
    is_bitwise_equal,
    join_first,
    leaf_digests,
    leaf_specs,
    leaves_like,
    make_manifest,
    open_manifest,
    seal_files,
    step_of,
)
from jaxcnn.checkpoint._lock import (
    check_lock,
    check_writable_path,
    close_at_exit,
    interpreter_exiting,
    lock_folder,
    plain_alias,
)
from jaxcnn.checkpoint._variables import FIGURES, best_step, read_rows, shapes_of, variables_of

T = TypeVar("T")
log = logging.getLogger("jaxcnn.checkpoint")
SAVE_TIMEOUT = 1800.0
"""Seconds that a save may take, by a monotonic clock.

Orbax's own limit is 600, by a clock that can be set back.
"""


class Checkpoints:
    """Latest two states of a run, and the best one.

    The best has the lowest metric. The second latest is the fallback if the latest is damaged.
    Saves run in the background. The folder belongs to this object until `close`, the end of its
    `with` block or of the process.

    Python 3.12 and later let no save finish at the end of the process. A save that still runs then
    is lost, with a log line, and the step before it stays. So call `close`. In a run of several
    processes, only process 0 may create this object.

    Args:
        folder: where the steps are stored, in one numbered directory each; created if it is
            missing.
        keep_every: also keep every step that is a multiple of this, to inspect a run later; 0 keeps
            none.
        timeout: seconds to wait for another process that has the folder, such as one that reads it.

    Raises:
        CheckpointError: the folder cannot be created or written, it is an address such as
            `gs://...`, or it is in use. The message has the host of the other process, or says that
            an earlier object of this process must be closed.

    Example:
        >>> import tempfile, typing, numpy as np
        >>> class State(typing.NamedTuple):
        ...     step: np.ndarray  # int32 []
        ...     params: dict
        >>> state = State(np.int32(7), {"w": np.ones((3, 2), np.float32)})
        >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as saved:
        ...     saved.save(state, metric=0.25)
        ...     again = saved.restore(like=state)
        >>> int(again.step), again.params["w"].shape
        (7, (3, 2))
    """

    def __init__(self, folder: str | Path, keep_every: int = 0, timeout: float = 0.0):
        if type(keep_every) is not int or keep_every < 0:
            raise CheckpointError(
                f"keep_every is {format_value(keep_every)}; expected an integer of at least 0. Use "
                "keep_every=0"
            )
        if isinstance(timeout, bool) or not _is_number(timeout) or not 0 <= timeout < math.inf:
            raise CheckpointError(
                f"timeout is {format_value(timeout)}; expected a number of seconds of at least 0. "
                "Use timeout=60"
            )
        self.folder = check_writable_path(folder).absolute()
        if (self.folder / "config.json").is_file() and (self.folder / "checkpoints").is_dir():
            raise CheckpointError(
                f"{self.folder} is the folder of a run; expected that of its checkpoints. Write "
                f"Checkpoints({str(Path(folder, 'checkpoints'))!r})"
            )
        self._lock = lock_folder(self.folder, timeout)
        self._orbax: Any = None
        try:
            self._alias, remove = plain_alias(self.folder)
            self._remove_alias = weakref.finalize(self, remove)
            self._best = KeepBest()
            self._orbax = _create_manager(self._alias, self._best, keep_every)
        except BaseException:
            self._lock.close()
            raise
        # The thread that verifies the last save, its error, and the step that it could not read.
        self._sealing: threading.Thread | None = None
        self._unsealed: Exception | None = None
        self._unreadable: int | None = None
        self._restored_one = False
        close_at_exit(self)
        for step in self.steps():
            try:
                self._best.set(step, self._manifest(step)["metric"])
            except Damaged:
                # `restore` reports the damage, if the step is used.
                continue

    def save(self, state: Any, metric: float | None = None) -> None:
        """Start to write `state` in the background, after the previous save.

        A good step is never written again.

        Args:
            state: a pytree of arrays whose `step`, an integer [], names the checkpoint. It is
                copied before this returns, so it may be donated or overwritten. A state of `pmap`
                must be unreplicated first.
            metric: lower is better, and the best is kept; None, NaN and infinity are never the
                best.

        Raises:
            CheckpointError: the folder has a later step, as of a run that starts again in it, or of
                another model. Or the previous save failed (as on a full disk) or could not be read
                back, or this one cannot start. Or the folder was deleted. Or the state has no
                `step`, or has leaves that are not arrays of numbers.
        """
        self.wait()
        step, leaves = step_of(state), copy_leaves(state)
        if metric is not None and not _is_number(metric):
            raise CheckpointError(
                f"metric is {format_value(metric)}; expected a number or None. Use "
                "metric=row['eval_error']"
            )
        try:
            if step in self.steps():
                self._read(step, leaves)
                return
        except Damaged as error:
            log.warning(
                "checkpoint %s is damaged (%s): it is saved again", self.folder / str(step), error
            )
            self._set_aside([step])
        if (newest := max(self.steps(), default=step)) > step:
            raise CheckpointError(
                f"{self.folder} is at step {newest}, past {step}: restore it, or name another "
                "folder"
            )
        self._write(step, leaves, self._best.set(step, metric))

    def restore(self, like: T, step: int | None = None) -> T | None:
        """Restore the newest good step.

        Args:
            like: a pytree of arrays or `jax.ShapeDtypeStruct`s with the structure, shapes and
                dtypes of the state.
            step: one of `steps()`, to restore only that one.

        Returns:
            The state with NumPy leaves, bit for bit as saved, for any number of devices; None if
            nothing was saved. Each damaged step before it is logged as a warning, with its folder
            and the reason.

        Raises:
            CheckpointError: the checkpoint is of another model, or no step is good, or `step` is
                not.
        """
        leaves_like(like)
        self.wait()
        steps = self.steps()
        if step is not None and step not in steps:
            raise CheckpointError(
                f"{self.folder} has no step {step}; write one of "
                f"{join_first([str(s) for s in steps])}"
            )
        return self._first_good(steps[::-1] if step is None else [step], like)

    def best(self, like: T) -> T | None:
        """Restore the good step with the lowest metric.

        Arguments and errors are those of `restore`.

        Returns:
            The state, or None if no step has a metric.
        """
        leaves_like(like)
        self.wait()
        return self._first_good(self._best.rank(self.steps()), like)

    def variables(self, step: int | str = "best") -> dict[str, Any]:
        """Return a step's parameters and statistics, without model, optimizer, data or script.

        They are those at which the state is evaluated: the slow parameters of lookahead, and the
        average of schedule-free (`jaxcnn.optim.eval_params`). Nothing is renamed or written.

        Args:
            step: "best", "last", or one of `steps()`. "best" is the step of `best`, that of the
                lowest metric, and of equal ones the latest. `train` and `runs.run` save
                `eval_error` as the metric, or `eval_loss` if the loss counts no error or is
                "reconstruction". Without a metric, the rows of `metrics.jsonl` next to the folder
                decide: the lowest `eval_error`, then the lowest `eval_loss`, then the latest.
                "last" is the newest good step; damaged ones before it are logged.

        Returns:
            `{"params": ..., "batch_stats": ...}` and the model's other collections: nested dicts of
            NumPy arrays, bit for bit as saved.

        Raises:
            CheckpointError: there is no such step, or it is damaged. Or a row of `metrics.jsonl` is
                better than every step on disk. Or no step has a metric and there are no rows.

        Example:
            >>> import tempfile, jaxcnn as jc
            >>> data, model = jc.load_dataset("digits"), jc.create_model("mlp", 10)
            >>> tx, folder = jc.create_optimizer(jc.OptimizerConfig()), tempfile.mkdtemp()
            >>> for state, row in jc.train(model, tx, data, jc.TrainConfig(2), run_dir=folder):
            ...     pass
            >>> with Checkpoints(folder + "/checkpoints") as saved:
            ...     variables = saved.variables("best")
            >>> bool((variables["params"]["head"]["bias"] == state.params["head"]["bias"]).all())
            True
        """
        variables = variables_of(self.leaves(step))
        if not variables["params"]:
            raise CheckpointError(
                f"{self.folder} holds states without params; expected those of jaxcnn.train. "
                "Use restore(like=state)"
            )
        return variables

    def leaves(self, step: int | str = "best") -> Leaves:
        """Return all arrays of a step by their paths, such as `.params['head']['bias']`.

        Arguments and errors are those of `variables`.
        """
        self.wait()
        number = self.resolve_step(step)
        steps = [s for s in self.steps()[::-1] if s <= number] if step == "last" else [number]
        problems = []
        for number in steps:
            try:
                specs = self._manifest(number)["specs"]
                files = (self.folder / str(number)).rglob("*")
                num_bytes = sum(file.stat().st_size for file in files if file.is_file())
                return self._read(number, shapes_of(specs, num_bytes))  # pyright: ignore[reportArgumentType]
            except Damaged as error:
                problems.append(str(error))
                if len(steps) > 1:
                    folder = self.folder / str(number)
                    log.warning("checkpoint %s is damaged (%s): trying another", folder, error)
        others = [str(s) for s in self.steps() if s not in steps]
        advice = f"write one of {join_first(others)}" if others else "train again"
        raise CheckpointError(
            f"checkpoint {self.folder / str(steps[0])} is damaged ({problems[0]}); {advice}"
        )

    def resolve_step(self, step: int | str) -> int:
        """Return the number of a step that `variables` takes."""
        steps = self.steps()
        names = join_first([str(s) for s in steps], 8)
        if not steps:
            raise CheckpointError(
                f"{self.folder} has no steps; expected at least one. Write the folder of a run's "
                "checkpoints, or let it train on"
            )
        if isinstance(step, str) and step in ("best", "last"):
            return steps[-1] if step == "last" else self._best_step(steps, names)
        try:
            number = operator.index(step)  # pyright: ignore[reportArgumentType]
        except TypeError:
            number = -1
        if isinstance(step, (bool, np.bool_)) or number not in steps:
            raise CheckpointError(
                f"step is {format_value(step)}; expected 'best', 'last' or a step in "
                f"{self.folder}: write one of {names}"
            )
        return number

    def _best_step(self, steps: list[int], names: str) -> int:
        """Return the step with the lowest metric, checked against the rows of the run.

        Raises:
            CheckpointError: a row is better than every step, or nothing says which step is best.
        """
        rows = read_rows(self.folder.parent / "metrics.jsonl")
        ranked, figures = self._best.rank(steps), FIGURES
        if ranked:
            # The metric is one of the row's figures, or a number of the user's own.
            metric = self._best.metrics[ranked[0]]
            own = [row for row in rows if row["step"] == ranked[0]]
            figures = [name for row in own for name in FIGURES if row.get(name) == metric][:1]
        best = best_step(rows, figures)
        if best is None and not ranked:
            raise CheckpointError(
                f"no step in {self.folder} has a metric, and {self.folder.parent} no rows; "
                f"expected one of them to tell the best. Write step='last', or one of {names}"
            )
        if best is None:
            return ranked[0]
        number, figure = best
        value = {row["step"]: row[figure] for row in rows if figure in row}
        if ranked and value.get(ranked[0], math.inf) <= value[number]:
            return ranked[0]
        if number in steps and not ranked:
            return number
        every = math.gcd(*value)
        raise CheckpointError(
            f"{self.folder} has no good state of step {number}, whose {figure} {value[number]:g} "
            f"is the lowest; there are {names}: write one of them, or train with "
            f"keep_every={every or 1}"
        )

    def steps(self) -> list[int]:
        """Return the steps on disk, oldest first.

        The step that is being written is not among them.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        try:
            return sorted(
                int(item.name)
                for item in self.folder.iterdir()
                if _is_step(item.name) and item.is_dir()
            )
        except OSError as error:
            raise CheckpointError(
                f"{self.folder} cannot be read, put it back or repair it: {describe_error(error)}"
            ) from None

    def wait(self) -> None:
        """Wait until the running save is on disk.

        Raises:
            CheckpointError: the save failed, or the folder was deleted.
        """
        if self._orbax is None:
            raise CheckpointError(
                f"the checkpoints in {self.folder} are closed: make a new Checkpoints to continue"
            )
        if self._sealing is not None:
            self._sealing.join(SAVE_TIMEOUT)
            if self._is_stuck():
                raise CheckpointError(
                    f"a save in {self.folder} has not ended within {SAVE_TIMEOUT:g} s; "
                    "expected a disk that answers. Repair the disk or name another folder"
                )
        try:
            self._orbax.wait_until_finished()
            unsealed, self._unsealed = self._unsealed, None
            if unsealed is not None:
                raise unsealed
        except Exception as error:
            raise self._failure(error) from error
        check_lock(self.folder, self._lock)

    def close(self) -> None:
        """Wait for the running save, then unlock the folder.

        A second call does nothing.

        Raises:
            CheckpointError: the save failed.
        """
        if self._orbax is None:
            return
        try:
            self.wait()
        finally:
            # Orbax would wait for a stuck save without end.
            if not self._is_stuck():
                # Orbax raises again the error that `wait` has raised.
                with contextlib.suppress(Exception):
                    self._orbax.close()
            self._orbax = None
            self._remove_alias()
            self._lock.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _is_stuck(self) -> bool:
        """Check, after `wait`, if the last save still runs."""
        return self._sealing is not None and self._sealing.is_alive()

    def _write(self, step: int, leaves: Leaves, metric: float | None) -> None:
        from orbax.checkpoint import args

        items = args.Composite(
            state=args.StandardSave(leaves),
            manifest=args.JsonSave(make_manifest(step, metric, leaves)),
        )
        try:
            self._orbax.save(step, args=items, force=True)
        except Exception as error:
            raise self._failure(error) from error
        self._sealing = threading.Thread(
            target=self._seal, args=(step, leaves), name="seal", daemon=True
        )
        self._sealing.start()

    def _seal(self, step: int, leaves: Leaves) -> None:
        """Read a committed step back, then record its files.

        Orbax's own hook runs too early, before the last of the files is written.
        """
        try:
            self._orbax.wait_until_finished()
        # `wait` raises this error in the caller's thread too.
        except Exception:
            return
        try:
            self._verify(step, leaves)
            seal_files(self.folder / str(step))
        # `wait` raises this error in the caller's thread.
        except Exception as error:
            # At the end of the process no thread can be started, so that nothing can be read. The
            # step stays unsealed. The digests of its leaves are checked when it is restored.
            if not interpreter_exiting.is_set():
                self._unsealed = error
                self._unreadable = None if isinstance(error, OSError) else step

    def _verify(self, step: int, leaves: Leaves) -> None:
        """Read a committed step back.

        The first one is restored, as `restore` does it. Every leaf of later ones is read and
        compared without Orbax. For a ResNet-20, verification then adds a tenth to the processor
        time of a save, where restoring adds half.

        Raises:
            Damaged: the step differs from what was saved.
        """
        self._manifest(step)
        if not (self._restored_one and is_bitwise_equal(self._alias / str(step) / "state", leaves)):
            self._read(step, leaves)
            self._restored_one = True

    def _first_good(self, steps: list[int], like: T) -> T | None:
        """Restore the first good one of `steps`; return None for no steps."""
        damaged, leaves = [], leaves_like(like)
        for step in steps:
            try:
                saved = self._read(step, leaves)
            except Damaged as error:
                log.warning(
                    "checkpoint %s is damaged (%s): trying another", self.folder / str(step), error
                )
                damaged.append(step)
            else:
                # Only now. If all steps were moved, the next start would find nothing and would
                # train from scratch without a message.
                self._set_aside(damaged)
                return jax.tree.unflatten(
                    jax.tree.structure(like), [saved[path] for path in leaves]
                )
        if damaged:
            raise CheckpointError(
                f"all checkpoints in {self.folder} are damaged {damaged}: move it away to start "
                "from scratch"
            )
        return None

    def _read(self, step: int, like: Leaves) -> Leaves:
        """Return the leaves of a step as saved.

        Raises:
            Damaged: the step differs from what was saved.
            CheckpointError: its leaves are not those of `like`.
        """
        from orbax.checkpoint import args

        check_files(self.folder / str(step))
        manifest = self._manifest(step)
        check_same_model(self.folder / str(step), manifest["specs"], leaf_specs(like))
        empty = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in like.items()}
        leaves = self._item(step, "state", args.StandardRestore(empty))
        digests = leaf_digests(leaves)
        if digests != manifest["digests"]:
            changed = [path for path in like if digests.get(path) != manifest["digests"][path]]
            raise Damaged(f"{join_first(changed)} differ")
        return leaves

    def _manifest(self, step: int) -> dict[str, Any]:
        from orbax.checkpoint import args

        return open_manifest(self._item(step, "manifest", args.JsonRestore()), step)

    def _item(self, step: int, name: str, restore_args: Any) -> Any:
        """Restore an item of a step with Orbax.

        Raises:
            Damaged: that fails.
        """
        from orbax.checkpoint import args

        try:
            return self._orbax.restore(step, args=args.Composite(**{name: restore_args}))[name]
        # Of any type, since damaged bytes reach Orbax, TensorStore and json.
        except Exception as error:
            raise Damaged(describe_error(error)) from error

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Rename steps to `<step>.damaged`."""
        # Not deleted, since the reading may have failed, and not the disk.
        for step in steps:
            aside = self.folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            try:
                (self.folder / str(step)).rename(aside)
            except OSError as error:
                raise CheckpointError(
                    f"{aside} cannot be made, free or repair the disk: {describe_error(error)}"
                ) from None
        try:
            if steps:
                self._orbax.reload()
        # Orbax reads a file of every step that none of the digests covers.
        except Exception as error:
            raise CheckpointError(
                f"{self.folder} cannot be read again, move it away to start from scratch: "
                f"{describe_error(error)}"
            ) from None

    def _failure(self, error: Exception) -> CheckpointError:
        """Clean up after a failed save, and return the error to raise."""
        check_lock(self.folder, self._lock)
        # The unfinished files may be what fills the disk.
        _remove_unfinished(self.folder)
        # At the end of the process no thread can be started, and this fails.
        with contextlib.suppress(Exception):
            # Orbax has already dropped the steps that the failed save was to replace.
            self._orbax.reload()
        step, self._unreadable = self._unreadable, None
        if step is not None:
            self._best.set(step, None)
            self._set_aside([step])
            return CheckpointError(
                f"step {step} in {self.folder} was saved but cannot be read back: "
                f"{describe_error(error)}; it is now {step}.damaged. "
                "Repair the disk or name another folder"
            )
        return CheckpointError(
            f"a save in {self.folder} failed, free or repair the disk: {describe_error(error)}"
        )


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and (name == "0" or name[0] != "0")


def _is_number(value: Any) -> bool:
    try:
        return (
            np.ndim(value) == 0
            and np.asarray(value).dtype.kind in "iufb"
            and isinstance(float(value), float)
        )
    except (TypeError, ValueError, OverflowError):
        return False


# Orbax as `Checkpoints` needs it.


class KeepBest:
    """Orbax preservation policy that keeps the step with the lowest metric.

    Orbax's own `BestN` reads the metrics from a file that no digest covers, and one bad byte in it
    makes the whole folder unreadable. These metrics come from the manifest.
    """

    def __init__(self):
        self.metrics: dict[int, float] = {}

    def set(self, step: int, metric: float | None) -> float | None:
        """Store the metric of a step, and return it as a float.

        None, NaN and infinity are not stored, and None is returned.
        """
        self.metrics.pop(step, None)
        if metric is not None and math.isfinite(metric):
            self.metrics[step] = float(metric)
        return self.metrics.get(step)

    def rank(self, steps: Iterable[int]) -> list[int]:
        """Return those of `steps` that have a metric, best first.

        Of equal metrics, the newest step comes first.
        """
        return sorted(self.metrics.keys() & steps, key=lambda step: (self.metrics[step], -step))

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Return, for each checkpoint, if it is to be kept."""
        best = self.rank([checkpoint.step for checkpoint in checkpoints])[:1]
        return [checkpoint.step in best for checkpoint in checkpoints]


def _create_manager(folder: Path, best: KeepBest, keep_every: int) -> Any:
    """Create an Orbax manager of the steps in `folder`.

    It keeps the two latest, the best, and multiples of `keep_every` (0: none).
    """
    # Imported here, since it makes `import jaxcnn` a quarter slower.
    import orbax.checkpoint as ocp

    _silence_orbax()
    # Orbax's own clean-up runs in the background, and may outlast the lock that makes it safe.
    _remove_unfinished(folder)
    # By default, Orbax waits for every process of the run. Here it works in this one alone.
    process = jax.process_index()
    policies = ocp.checkpoint_managers
    preserved = [
        policies.LatestN(2),
        best,
        *([policies.EveryNSteps(keep_every)] if keep_every else []),
    ]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(preserved),
        create=False,
        lightweight_initialize=True,
        # If a folder cannot be created in the background, Orbax's other threads wait for it, and
        # so does the end of the process.
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=process, active_processes={process}, barrier_sync_key_prefix="jaxcnn"
        ),
    )
    return ocp.CheckpointManager(folder, options=options)


def _remove_unfinished(folder: Path) -> None:
    """Delete the files of saves that failed or were killed."""
    for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(unfinished, ignore_errors=True)


@functools.cache
def _silence_orbax() -> None:
    """Suppress what Orbax prints of a failure, since one line reports it.

    That is a log entry with a traceback, and one for every unfinished leaf. The first failure
    closes the event loop of the others.
    """
    for name in "absl", "asyncio":
        logging.getLogger(name).addFilter(_is_not_orbax)
    # See "Surprises" in CONTRIBUTING.md.
    hook = sys.unraisablehook

    def without_closed_loop(failure: Any) -> None:
        # TensorStore's threads name no object. The `__del__` of a user's class does.
        if failure.object is not None or str(failure.exc_value) != "Event loop is closed":
            hook(failure)

    sys.unraisablehook = without_closed_loop


def _is_not_orbax(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "orbax" not in record.pathname and not any(
        word in message for word in ("tensorstore", "OCDBT", "orbax")
    )
