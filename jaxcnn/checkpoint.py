"""Training states on disk: saved in the background, verified on the way back, one owner per folder.

Orbax commits a step atomically, but it restores a flipped byte without a word. So each step also carries a manifest,
committed with the arrays: the type, the shape and the SHA-256 of every leaf, sealed by a digest of its own. What comes
back is bit for bit what was saved; a step that is not is named, set aside as `<step>.damaged`, and another is used.
"""

import fcntl
import functools
import hashlib
import json
import logging
import math
import os
import shutil
import sys
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")
Leaves = dict[str, Any]  # path in the state, such as `.params['w']` -> array
log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A folder that cannot be used, a save that failed, a checkpoint of another model, or none left that is good.

    The message is one line: what was wrong, what was expected, what to do.
    """


class _Damaged(Exception):
    """A step is not what was saved; another one may be."""


class Checkpoints:
    """The two latest states of a run, so that there is one to fall back to, and the one with the lowest metric.

    Saves run in the background, and the folder belongs to this object until `close`, the end of its `with` block or of
    the process. In a run of several processes only process 0 may make it.

    Args:
        folder: where the steps are kept, one numbered directory each; made if it is missing.

    Raises:
        CheckpointError: the folder cannot be made or written, or another process (the message has its pid) uses it.

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

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).absolute()
        self._lock = _own(self.folder)
        self._best = _KeepBest()
        self._orbax: Any = _manager(self.folder, self._best)
        _close_at_exit(self)
        for step in self.steps():
            try:
                self._best.note(step, self._manifest(step)["metric"])
            except _Damaged:
                continue  # restore reports it, should it matter

    def save(self, state: Any, metric: float | None = None) -> None:
        """Start writing `state` in the background, once the previous save has ended; a good step is never rewritten.

        Args:
            state: a pytree of arrays whose `step`, an integer [], names the checkpoint. It is copied before this
                returns, so it may be donated or overwritten. A state of `pmap` is to be unreplicated first.
            metric: lower is better, and the best is kept; None, NaN and infinity are never the best.

        Raises:
            CheckpointError: the folder has a later step, as of a run begun again in it or of another model; or the
                previous save has failed (the disk is full, say), or this one cannot begin.
        """
        self.wait()
        if np.shape(state.step):
            raise CheckpointError(f"state.step has shape {np.shape(state.step)}, expected []: unreplicate the state")
        step, leaves = int(state.step), {path: np.array(leaf) for path, leaf in _flat(state).items()}
        try:
            if step in self.steps():
                self._read(step, leaves)
                return
        except _Damaged as error:
            log.warning("checkpoint %s is damaged (%s): it is saved again", self.folder / str(step), error)
            self._set_aside([step])
        if (newest := max(self.steps(), default=step)) > step:
            raise CheckpointError(f"{self.folder} is at step {newest}, past {step}: restore it, or name another folder")
        self._write(step, leaves, self._best.note(step, metric))

    def restore(self, like: T) -> T | None:
        """The newest good step, or None where nothing was saved.

        Args:
            like: a pytree of arrays or `jax.ShapeDtypeStruct`s with the structure, shapes and dtypes of the state.

        Returns:
            The state with numpy leaves, bit for bit as saved, for any number of devices. Each damaged step on the way
            to it is logged as a warning, with its folder and the reason.

        Raises:
            CheckpointError: the checkpoint is of another model, or there are steps and none of them is good.
        """
        self.wait()
        return self._first_good(self.steps()[::-1], like)

    def best(self, like: T) -> T | None:
        """The good step with the lowest metric, or None where no step has a metric; otherwise as `restore`."""
        self.wait()
        return self._first_good(self._best.ranked(self.steps()), like)

    def steps(self) -> list[int]:
        """The steps on disk, oldest first, without the one that is being written."""
        return sorted(int(item.name) for item in self.folder.iterdir() if item.name.isdecimal() and item.is_dir())

    def wait(self) -> None:
        """Return once the running save is on disk; `CheckpointError` if it failed."""
        if self._orbax is None:
            raise CheckpointError(f"the checkpoints in {self.folder} are closed: make a new Checkpoints to go on")
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Wait for the running save, then free the folder; `CheckpointError` if it failed. Twice is harmless."""
        if self._orbax is None:
            return
        try:
            self.wait()
        finally:
            self._orbax.close()
            self._orbax = None
            self._lock.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, step: int, leaves: Leaves, metric: float | None) -> None:
        from orbax.checkpoint import args

        body = {"step": step, "metric": metric, "specs": _specs(leaves), "digests": _digests(leaves)}
        manifest = body | {"seal": _seal(body)}
        items = args.Composite(state=args.StandardSave(leaves), manifest=args.JsonSave(manifest))
        try:
            self._orbax.save(step, args=items, force=True)
        except Exception as error:
            raise self._failed(error) from error

    def _first_good(self, steps: list[int], like: T) -> T | None:
        damaged, leaves = [], _flat(like)
        for step in steps:
            try:
                good = self._read(step, leaves)
            except _Damaged as error:
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
        """The leaves of a step as saved, or `_Damaged`, or `CheckpointError` if they are not those of `like`."""
        from orbax.checkpoint import args

        manifest = self._manifest(step)
        _same_model(self.folder / str(step), manifest["specs"], _specs(like))
        empty = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in like.items()}
        found = _digests(leaves := self._item(step, "state", args.StandardRestore(empty)))
        if found != manifest["digests"]:
            raise _Damaged(f"{_few([path for path in like if found.get(path) != manifest['digests'][path]])} differ")
        return leaves

    def _manifest(self, step: int) -> dict[str, Any]:
        from orbax.checkpoint import args

        manifest = self._item(step, "manifest", args.JsonRestore())
        seal = manifest.pop("seal", None) if isinstance(manifest, dict) else None
        if seal is None or seal != _seal(manifest) or manifest["step"] != step:
            raise _Damaged("its manifest is not what was saved")
        return manifest

    def _item(self, step: int, name: str, how: Any) -> Any:
        from orbax.checkpoint import args

        try:
            return self._orbax.restore(step, args=args.Composite(**{name: how}))[name]
        except Exception as error:  # of any kind: damaged bytes reach Orbax, TensorStore and json
            raise _Damaged(_line(error)) from error

    def _set_aside(self, steps: Iterable[int]) -> None:
        for step in steps:  # renamed, not deleted: what failed may be the reading, not the disk
            aside = self.folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
        self._orbax.reload()

    def _failed(self, error: Exception) -> CheckpointError:
        self._orbax.reload()  # Orbax has already forgotten the steps that the failed save was to replace
        return CheckpointError(f"a save in {self.folder} failed, free or repair the disk: {_line(error)}")


class _KeepBest:
    """Keeps the step with the lowest metric, as an Orbax preservation policy.

    Orbax's own `BestN` takes the metrics from a file that no digest covers, and one bad byte in it keeps the folder
    from opening at all; these come from the manifest.
    """

    def __init__(self):
        self.metrics: dict[int, float] = {}

    def note(self, step: int, metric: float | None) -> float | None:
        """Remember a metric, unless it is no number, and return it as a float."""
        self.metrics.pop(step, None)
        if metric is not None and math.isfinite(metric):
            self.metrics[step] = float(metric)
        return self.metrics.get(step)

    def ranked(self, steps: Iterable[int]) -> list[int]:
        """Those of `steps` that have a metric, best first; of equals the newest."""
        return sorted(self.metrics.keys() & steps, key=lambda step: (self.metrics[step], -step))

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """For each checkpoint, whether to keep it."""
        best = self.ranked([checkpoint.step for checkpoint in checkpoints])[:1]
        return [checkpoint.step in best for checkpoint in checkpoints]


def _close_at_exit(saved: Checkpoints) -> None:
    """A save still running when the interpreter ends is lost, or hangs: its thread pools end before `atexit` runs."""
    reference = weakref.ref(saved)

    def close() -> None:
        try:
            if (alive := reference()) is not None:
                alive.close()
        except CheckpointError as error:
            log.error("%s", error)

    # Private, but the only hook that precedes the end of the pools: the last to register, so after Orbax, is run first.
    getattr(threading, "_register_atexit", lambda _: None)(close)


def _manager(folder: Path, best: _KeepBest) -> Any:
    import orbax.checkpoint as ocp  # not above: it makes `import jaxcnn` a quarter slower

    _hush()
    # Orbax's own clean-up runs in the background, and may outlast the lock that makes it safe.
    for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    me = jax.process_index()  # alone: by default Orbax waits for every process of the run
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy([ocp.checkpoint_managers.LatestN(2), best]),
        create=False,
        lightweight_initialize=True,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix="jaxcnn"
        ),
    )
    return ocp.CheckpointManager(folder, options=options)


@functools.cache
def _hush() -> None:
    """Drop what Orbax prints of a failure beside raising it, since it is told here in one line.

    That is a log entry with a traceback, and one more for every leaf still under way: the first to fail closes the
    event loop under the others.
    """
    for name in "absl", "asyncio":
        logging.getLogger(name).addFilter(_not_orbax)
    hook = sys.unraisablehook

    def without_closed_loop(failure: Any) -> None:
        if str(failure.exc_value) != "Event loop is closed":
            hook(failure)

    sys.unraisablehook = without_closed_loop


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname and "tensorstore" not in record.getMessage()


def _own(folder: Path) -> IO[str]:
    """A file that holds the lock on `folder` while it is open, so that the lock ends with the process in any case."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a+")  # noqa: SIM115 - it stays open
    except OSError as error:
        raise CheckpointError(f"{folder} cannot keep checkpoints, name another folder: {_line(error)}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        with lock:
            owner = f"in use by process {lock.read()}" if isinstance(error, BlockingIOError) else _line(error)
        raise CheckpointError(f"{folder} cannot be locked, wait or name another folder: {owner}") from None
    lock.truncate(0)
    print(os.getpid(), end="", file=lock, flush=True)
    return lock


def _flat(tree: Any) -> Leaves:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _specs(leaves: Leaves) -> dict[str, str]:
    return {path: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in leaves.items()}


def _digests(leaves: Leaves) -> dict[str, str]:
    """Of the type, the shape and the bytes of each leaf."""
    specs = _specs(leaves)
    return {path: hashlib.sha256(specs[path].encode() + leaf.tobytes()).hexdigest() for path, leaf in leaves.items()}


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _same_model(step: Path, found: dict[str, str], expected: dict[str, str]) -> None:
    paths = [path for path in expected | found if found.get(path) != expected.get(path)]
    if paths:
        each = [f"{path} is {found.get(path, 'missing')}, expected {expected.get(path, 'none')}" for path in paths]
        raise CheckpointError(f"{step} is of another model, build that one or name another folder: {_few(each)}")


def _few(items: list[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
