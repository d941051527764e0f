"""kill -9 in the middle of asynchronous saves.

One process after another saves in the same folder, and each resumes from the state that the last
one has left.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments.stress.options import Options, Trial, first_failure, start_process, wait_until
from experiments.stress.worker import is_intact, state_at
from jaxcnn.checkpoint import CheckpointError, Checkpoints

SECONDS = 4.0
"""Duration of a trial, for the progress bar."""


def plan(options: Options) -> list[tuple[str, int]]:
    """Return the fault and the number of every trial."""
    return [("kill -9", number) for number in range(options.kills)]


def trial(options: Options, fault: str, number: int) -> Trial:
    """Kill the process at a random moment of a save.

    An earlier save is measured for that. Then the folder is inspected.
    """
    folder = options.out / "kills"
    rng = np.random.default_rng([options.seed, number])
    with (
        tempfile.TemporaryFile("w+") as err,
        start_process("stress.worker", folder, str(options.megabytes), err=err) as process,
    ):
        try:
            save_seconds = _measure(folder, process)
            is_saving = wait_until(lambda: unfinished(folder), process)
            time.sleep(delay := rng.uniform(0, save_seconds))
        finally:
            process.kill()
        output, _ = process.communicate()
        err.seek(0)
        last_lines = err.read().strip().splitlines()[-1:]
    report = inspect_folder(folder, options.megabytes, [int(step) for step in output.split()])
    report |= {"save_seconds": save_seconds, "after": delay}
    failures = {
        f"the process ended by itself: {last_lines}": not is_saving or process.returncode != -9
    }
    return report | {"broken": first_failure(failures) or report["broken"]}


def unfinished(folder: Path) -> list[int]:
    """Return the steps whose save has started and not ended.

    Orbax has a temporary folder for each of them.
    """
    return [int(item.name.partition(".")[0]) for item in folder.glob("*.orbax-checkpoint-tmp*")]


def _measure(folder: Path, process: subprocess.Popen[str]) -> float:
    """Return the seconds of the process's second save; the first is slower."""
    start = 0.0
    for _ in range(2):
        wait_until(lambda: unfinished(folder), process)
        start = time.monotonic()
        wait_until(lambda: not unfinished(folder), process)
    return time.monotonic() - start


def inspect_folder(folder: Path, megabytes: float, printed: list[int]) -> Trial:
    """Return the observations of a folder that a killed process has left.

    Args:
      folder: of the checkpoints.
      megabytes: of a state.
      printed: steps that the process printed.
    """
    # Before the folder is opened, which removes unfinished saves.
    midway = unfinished(folder)
    begun = max([*printed, *midway], default=0)
    try:
        with Checkpoints(folder) as checkpoints:
            state = checkpoints.restore(state_at(0, megabytes))
        reason = None
    except CheckpointError as error:
        state, reason = None, str(error)
    lost = begun - (0 if state is None else int(state.step))
    intact = state is not None and is_intact(state, megabytes)
    failures = {
        # The first save may be the one that was killed.
        f"nothing can be restored: {reason}": state is None and begun > 1,
        "what was restored is not what was saved": state is not None and not intact,
        f"{lost} saves are lost": lost > 1,
    }
    return {
        "landed": bool(midway),
        "restored": intact,
        "saves_lost": lost,
        "begun": begun,
        "broken": first_failure(failures),
    }
