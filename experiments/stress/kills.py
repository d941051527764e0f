"""kill -9 in the middle of asynchronous saves: one process after another in the same folder, each going on from the last."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments.stress.options import Options, Trial, first, start, until
from experiments.stress.worker import same, state_at
from jaxcnn.checkpoint import CheckpointError, Checkpoints

SECONDS = 4.0


def plan(options: Options) -> list[tuple[str, int]]:
    """Every trial, as its fault and number."""
    return [("kill -9", number) for number in range(options.kills)]


def trial(options: Options, fault: str, number: int) -> Trial:
    """Measure a save, kill in a random part of the next, and see what is left."""
    folder = options.out / "kills"
    rng = np.random.default_rng([options.seed, number])
    with (
        tempfile.TemporaryFile("w+") as err,
        start("stress.worker", folder, str(options.megabytes), err=err) as process,
    ):
        try:
            took = _measure(folder, process)
            began = until(lambda: unfinished(folder), process)
            time.sleep(part := rng.uniform(0, took))
        finally:
            process.kill()
        said, _ = process.communicate()
        err.seek(0)
        ended = err.read().strip().splitlines()[-1:]
    seen = look(folder, options.megabytes, [int(step) for step in said.split()])
    seen |= {"save_seconds": took, "after": part}
    complaint = {f"the process ended by itself: {ended}": not began or process.returncode != -9}
    return seen | {"broken": first(complaint) or seen["broken"]}


def unfinished(folder: Path) -> list[int]:
    """The steps whose save has begun and not ended, as Orbax's temporary folders tell."""
    return [int(item.name.partition(".")[0]) for item in folder.glob("*.orbax-checkpoint-tmp*")]


def _measure(folder: Path, process: subprocess.Popen[str]) -> float:
    """Seconds of the process's second save; the first is slower."""
    began = 0.0
    for _ in range(2):
        until(lambda: unfinished(folder), process)
        began = time.monotonic()
        until(lambda: not unfinished(folder), process)
    return time.monotonic() - began


def look(folder: Path, megabytes: float, told: list[int]) -> Trial:
    """What a killed process has left: first its unfinished save, before anything cleans it up, then the newest good state."""
    midway = unfinished(folder)
    begun = max([*told, *midway], default=0)
    try:
        with Checkpoints(folder) as saved:
            found = saved.restore(state_at(0, megabytes))
        why = None
    except CheckpointError as error:
        found, why = None, str(error)
    lost = begun - (0 if found is None else int(found.step))
    good = found is not None and same(found, megabytes)
    complaint = {
        f"nothing can be restored: {why}": found is None and begun > 1,
        "what was restored is not what was saved": found is not None and not good,
        f"{lost} saves are lost": lost > 1,
    }
    return {"landed": bool(midway), "restored": good, "saves_lost": lost, "begun": begun, "broken": first(complaint)}
