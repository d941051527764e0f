"""Orbax as `Checkpoints` needs it: alone in its process, two latest and the best kept, quiet about failures."""

import functools
import logging
import math
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax


def manager(folder: Path, best: "KeepBest", keep_every: int) -> Any:
    """An Orbax manager of the steps in `folder`; it keeps the two latest, the best, and multiples of `keep_every` (0: none)."""
    import orbax.checkpoint as ocp  # not above: it makes `import jaxcnn` a quarter slower

    hush()
    # Orbax's own clean-up runs in the background, and may outlast the lock that makes it safe.
    clear(folder)
    me = jax.process_index()  # alone: by default Orbax waits for every process of the run
    policies = ocp.checkpoint_managers
    kept = [policies.LatestN(2), best, *([policies.EveryNSteps(keep_every)] if keep_every else [])]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        create=False,
        lightweight_initialize=True,
        # Where a folder cannot be made in the background, Orbax's other threads wait for it, and so does the process's end.
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix="jaxcnn"
        ),
    )
    return ocp.CheckpointManager(folder, options=options)


def clear(folder: Path) -> None:
    """Delete what a save that failed or was killed has left of its step."""
    for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(unfinished, ignore_errors=True)


class KeepBest:
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


@functools.cache
def hush() -> None:
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
    message = record.getMessage()
    return "orbax" not in record.pathname and not any(word in message for word in ("tensorstore", "OCDBT", "orbax"))
