"""`Checkpoints`: the latest and the best state of a run, through Orbax; every save is read back before it is sealed."""

import contextlib
import logging
import shutil
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from jaxcnn.arguments import format_value
from jaxcnn.checkpoint.files import check_files, seal_files
from jaxcnn.checkpoint.folder import check_lock, close_at_exit, ending, lock_folder
from jaxcnn.checkpoint.manager import KeepBest, clear, manager
from jaxcnn.checkpoint.manifest import (
    CheckpointError,
    Damaged,
    Leaves,
    copied,
    digests,
    expected,
    few,
    line,
    opened,
    same_model,
    sealed,
    specs,
    step_of,
)
from jaxcnn.checkpoint.paths import check_writable_path, plain_alias
from jaxcnn.checkpoint.readback import same_bits

T = TypeVar("T")
log = logging.getLogger("jaxcnn.checkpoint")
PATIENCE = 1800.0
"""Seconds that a save may take, by a clock that nobody sets; Orbax's own limit is 600 by one that can be set back."""


class Checkpoints:
    """The two latest states of a run, so that there is one to fall back to, and the one with the lowest metric.

    Saves run in the background, and the folder belongs to this object until `close`, the end of its `with` block or of
    the process. Python 3.12 and later let no save finish at the end of the process: one still running is lost, with a
    line, and the step before it stays; so `close`. In a run of several processes only process 0 may make it.

    Args:
        folder: where the steps are kept, one numbered directory each; made if it is missing.
        keep_every: also keep every step that is a multiple of this, for those who look at how a run went; 0 keeps none.

    Raises:
        CheckpointError: the folder cannot be made or written; it is an address such as `gs://...`; or it is in use, by another
            process (the message has its host) or by an earlier object of this one, which is to be closed.

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

    def __init__(self, folder: str | Path, keep_every: int = 0):
        if type(keep_every) is not int or keep_every < 0:
            raise CheckpointError(
                f"keep_every is {format_value(keep_every)}; expected an integer of at least 0. Use keep_every=0"
            )
        self.folder = check_writable_path(folder).absolute()
        self._lock = lock_folder(self.folder)
        self._orbax: Any = None
        try:
            self._alias, remove = plain_alias(self.folder)
            self._remove_alias = weakref.finalize(self, remove)
            self._best = KeepBest()
            self._orbax = manager(self._alias, self._best, keep_every)
        except BaseException:
            self._lock.close()
            raise
        self._sealing: threading.Thread | None = None
        self._unsealed: Exception | None = None
        self._unreadable: int | None = None
        self._restored_one = False
        close_at_exit(self)
        for step in self.steps():
            try:
                self._best.note(step, self._manifest(step)["metric"])
            except Damaged:
                continue  # restore reports it, should it matter

    def save(self, state: Any, metric: float | None = None) -> None:
        """Start writing `state` in the background, once the previous save has ended; a good step is never rewritten.

        Args:
            state: a pytree of arrays whose `step`, an integer [], names the checkpoint. It is copied before this
                returns, so it may be donated or overwritten. A state of `pmap` is to be unreplicated first.
            metric: lower is better, and the best is kept; None, NaN and infinity are never the best.

        Raises:
            CheckpointError: the folder has a later step, as of a run begun again in it or of another model; or the
                previous save has failed (the disk is full, say) or could not be read back, or this one cannot begin; or
                the folder was deleted; or the state has no `step`, or leaves that are no arrays of numbers.
        """
        self.wait()
        step, leaves = step_of(state), copied(state)
        if metric is not None and not _is_number(metric):
            raise CheckpointError(
                f"metric is {format_value(metric)}; expected a number or None. Use metric=row['eval_error']"
            )
        try:
            if step in self.steps():
                self._read(step, leaves)
                return
        except Damaged as error:
            log.warning("checkpoint %s is damaged (%s): it is saved again", self.folder / str(step), error)
            self._set_aside([step])
        if (newest := max(self.steps(), default=step)) > step:
            raise CheckpointError(f"{self.folder} is at step {newest}, past {step}: restore it, or name another folder")
        self._write(step, leaves, self._best.note(step, metric))

    def restore(self, like: T, step: int | None = None) -> T | None:
        """The newest good step, or None where nothing was saved.

        Args:
            like: a pytree of arrays or `jax.ShapeDtypeStruct`s with the structure, shapes and dtypes of the state.
            step: one of `steps()`, to have that one or none.

        Returns:
            The state with numpy leaves, bit for bit as saved, for any number of devices. Each damaged step on the way
            to it is logged as a warning, with its folder and the reason.

        Raises:
            CheckpointError: the checkpoint is of another model, or there are steps and none of them is good, or not the one
                asked for.
        """
        expected(like)
        self.wait()
        there = self.steps()
        if step is not None and step not in there:
            raise CheckpointError(f"{self.folder} has no step {step}; write one of {few([str(s) for s in there])}")
        return self._first_good(there[::-1] if step is None else [step], like)

    def best(self, like: T) -> T | None:
        """The good step with the lowest metric, or None where no step has a metric; otherwise as `restore`."""
        expected(like)
        self.wait()
        return self._first_good(self._best.ranked(self.steps()), like)

    def steps(self) -> list[int]:
        """The steps on disk, oldest first, without the one that is being written; `CheckpointError` if the folder is gone."""
        try:
            return sorted(int(item.name) for item in self.folder.iterdir() if _is_step(item.name) and item.is_dir())
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read, put it back or repair it: {line(error)}") from None

    def wait(self) -> None:
        """Return once the running save is on disk; `CheckpointError` if it failed, or if the folder was deleted."""
        if self._orbax is None:
            raise CheckpointError(f"the checkpoints in {self.folder} are closed: make a new Checkpoints to go on")
        if self._sealing is not None:
            self._sealing.join(PATIENCE)
            if self._stuck():
                raise CheckpointError(
                    f"a save in {self.folder} has not ended within {PATIENCE:g} s; expected a disk that answers. "
                    "Repair the disk or name another folder"
                )
        try:
            self._orbax.wait_until_finished()
            unsealed, self._unsealed = self._unsealed, None
            if unsealed is not None:
                raise unsealed
        except Exception as error:
            raise self._failed(error) from error
        check_lock(self.folder, self._lock)

    def close(self) -> None:
        """Wait for the running save, then free the folder; `CheckpointError` if it failed. Twice is harmless."""
        if self._orbax is None:
            return
        try:
            self.wait()
        finally:
            if not self._stuck():  # Orbax would wait for it without end
                with contextlib.suppress(Exception):  # Orbax tells again what `wait` has told
                    self._orbax.close()
            self._orbax = None
            self._remove_alias()
            self._lock.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _stuck(self) -> bool:
        """Whether the last save is not over, after `wait`."""
        return self._sealing is not None and self._sealing.is_alive()

    def _write(self, step: int, leaves: Leaves, metric: float | None) -> None:
        from orbax.checkpoint import args

        items = args.Composite(state=args.StandardSave(leaves), manifest=args.JsonSave(sealed(step, metric, leaves)))
        try:
            self._orbax.save(step, args=items, force=True)
        except Exception as error:
            raise self._failed(error) from error
        self._sealing = threading.Thread(target=self._seal, args=(step, leaves), name="seal", daemon=True)
        self._sealing.start()

    def _seal(self, step: int, leaves: Leaves) -> None:
        """Read a committed step back, then record its files. Orbax's own hook comes before the last of them is written."""
        try:
            self._orbax.wait_until_finished()
        except Exception:  # raised in the caller's thread too, by `wait`
            return
        try:
            self._verify(step, leaves)
            seal_files(self.folder / str(step))
        except Exception as error:  # handed to the caller's thread, by `wait`
            # At the end of the process no thread can be started, so that nothing can be read. The step stays unsealed:
            # the digests of its leaves are checked when it is restored.
            if not ending.is_set():
                self._unsealed = error
                self._unreadable = None if isinstance(error, OSError) else step

    def _verify(self, step: int, leaves: Leaves) -> None:
        """Read a committed step back; Damaged if it is not what was saved.

        The first is restored, as `restore` does it. Of later ones every leaf is read and compared without Orbax's share
        of the work: verifying a ResNet-20 then adds a tenth to the processor time of its save, where restoring adds half.
        """
        self._manifest(step)
        if not (self._restored_one and same_bits(self._alias / str(step) / "state", leaves)):
            self._read(step, leaves)
            self._restored_one = True

    def _first_good(self, steps: list[int], like: T) -> T | None:
        damaged, leaves = [], expected(like)
        for step in steps:
            try:
                good = self._read(step, leaves)
            except Damaged as error:
                log.warning("checkpoint %s is damaged (%s): trying another", self.folder / str(step), error)
                damaged.append(step)
            else:
                # Only now: were all of them moved, the next start would find nothing and begin again without a word.
                self._set_aside(damaged)
                return jax.tree.unflatten(jax.tree.structure(like), [good[path] for path in leaves])
        if damaged:
            raise CheckpointError(f"all checkpoints in {self.folder} are damaged {damaged}: move it away to start anew")
        return None

    def _read(self, step: int, like: Leaves) -> Leaves:
        """The leaves of a step as saved, or `Damaged`, or `CheckpointError` if they are not those of `like`."""
        from orbax.checkpoint import args

        check_files(self.folder / str(step))
        manifest = self._manifest(step)
        same_model(self.folder / str(step), manifest["specs"], specs(like))
        empty = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in like.items()}
        found = digests(leaves := self._item(step, "state", args.StandardRestore(empty)))
        if found != manifest["digests"]:
            raise Damaged(f"{few([path for path in like if found.get(path) != manifest['digests'][path]])} differ")
        return leaves

    def _manifest(self, step: int) -> dict[str, Any]:
        from orbax.checkpoint import args

        return opened(self._item(step, "manifest", args.JsonRestore()), step)

    def _item(self, step: int, name: str, how: Any) -> Any:
        from orbax.checkpoint import args

        try:
            return self._orbax.restore(step, args=args.Composite(**{name: how}))[name]
        except Exception as error:  # of any kind: damaged bytes reach Orbax, TensorStore and json
            raise Damaged(line(error)) from error

    def _set_aside(self, steps: Sequence[int]) -> None:
        for step in steps:  # renamed, not deleted: what failed may be the reading, not the disk
            aside = self.folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            try:
                (self.folder / str(step)).rename(aside)
            except OSError as error:
                raise CheckpointError(f"{aside} cannot be made, free or repair the disk: {line(error)}") from None
        try:
            if steps:
                self._orbax.reload()
        except Exception as error:  # it reads a file of every step that no digest of ours need cover
            raise CheckpointError(
                f"{self.folder} cannot be read again, move it away to start anew: {line(error)}"
            ) from None

    def _failed(self, error: Exception) -> CheckpointError:
        check_lock(self.folder, self._lock)
        clear(self.folder)  # what it has written may be what fills the disk
        with contextlib.suppress(Exception):  # where no thread can be begun, at the end of the process
            self._orbax.reload()  # Orbax has already forgotten the steps that the failed save was to replace
        step, self._unreadable = self._unreadable, None
        if step is not None:
            self._best.note(step, None)
            self._set_aside([step])
            return CheckpointError(
                f"step {step} in {self.folder} was saved but cannot be read back: {line(error)}; it is now {step}.damaged. "
                "Repair the disk or name another folder"
            )
        return CheckpointError(f"a save in {self.folder} failed, free or repair the disk: {line(error)}")


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and (name == "0" or name[0] != "0")


def _is_number(value: Any) -> bool:
    try:
        return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iufb" and isinstance(float(value), float)
    except (TypeError, ValueError, OverflowError):
        return False
