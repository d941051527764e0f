"""`Checkpoints`: the latest and the best state of a run, through Orbax."""

import logging
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from jaxcnn.checkpoint.folder import close_at_exit, hush, own
from jaxcnn.checkpoint.manifest import (
    CheckpointError,
    Damaged,
    Leaves,
    digests,
    few,
    flat,
    line,
    opened,
    same_model,
    sealed,
    specs,
)

T = TypeVar("T")
log = logging.getLogger("jaxcnn.checkpoint")


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
        self._lock = own(self.folder)
        self._best = _KeepBest()
        self._orbax: Any = _manager(self.folder, self._best)
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
                previous save has failed (the disk is full, say), or this one cannot begin.
        """
        self.wait()
        if np.shape(state.step):
            raise CheckpointError(f"state.step has shape {np.shape(state.step)}, expected []: unreplicate the state")
        step, leaves = int(state.step), {path: np.array(leaf) for path, leaf in flat(state).items()}
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

        items = args.Composite(state=args.StandardSave(leaves), manifest=args.JsonSave(sealed(step, metric, leaves)))
        try:
            self._orbax.save(step, args=items, force=True)
        except Exception as error:
            raise self._failed(error) from error

    def _first_good(self, steps: list[int], like: T) -> T | None:
        damaged, leaves = [], flat(like)
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

    def _set_aside(self, steps: Iterable[int]) -> None:
        for step in steps:  # renamed, not deleted: what failed may be the reading, not the disk
            aside = self.folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
        self._orbax.reload()

    def _failed(self, error: Exception) -> CheckpointError:
        self._orbax.reload()  # Orbax has already forgotten the steps that the failed save was to replace
        return CheckpointError(f"a save in {self.folder} failed, free or repair the disk: {line(error)}")


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


def _manager(folder: Path, best: _KeepBest) -> Any:
    import orbax.checkpoint as ocp  # not above: it makes `import jaxcnn` a quarter slower

    hush()
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
