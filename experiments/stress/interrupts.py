"""SIGTERM, Ctrl-C and Ctrl-C twice at random steps of `experiments.depth`.

Every third signal comes at a moment of a first compilation. The script writes every step that it
has done to a file. So "no step lost" means that it saved its last step, resumes with the next one,
and ends with the bits and rows of a run that was never stopped.

    python -m experiments.stress.interrupts FILE ...

is `python -m experiments.depth ...` that writes its steps to FILE.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments import depth
from experiments.stress.options import Options, Trial, first_failure, start_process, wait_until
from jaxcnn import runs
from jaxcnn.progress import Progress
from jaxcnn.run_log import write_text

SECONDS = 12.0
"""Duration of a trial, for the progress bar."""
FAULTS = {
    "Ctrl-C": (signal.SIGINT, 130),
    "SIGTERM": (signal.SIGTERM, 143),
    "Ctrl-C twice": (signal.SIGINT, 130),
}
"""Fault -> its signal and the expected exit code."""
STEPS, RUN = 240, "resnet8-seed0"
"""Number of steps and name of the study's run."""
STUDY = [
    "--depths",
    "8",
    "--families",
    "residual",
    "--width",
    "4",
    "--batch-size",
    "256",
    "--num-seeds",
    "1",
]
STUDY += ["--num-steps", str(STEPS), "--eval-every", "80", "--milestones", "120"]
"""Arguments of the study."""
AT_ONCE = 1.0
"""Most seconds from the second Ctrl-C to the end."""


def plan(options: Options) -> list[tuple[str, int]]:
    """Return the fault and the number of every trial."""
    return [(fault, number) for fault in FAULTS for number in range(options.signals)]


def trial(options: Options, fault: str, number: int) -> Trial:
    """Stop a study, inspect its state, and resume it."""
    home, is_cold, is_twice = options.out / "signals", number % 3 == 0, fault == "Ctrl-C twice"
    reference, folder = reference_run(home), home / "trial"
    cache = home / ("cold" if is_cold else "cache")
    rng = np.random.default_rng([options.seed, list(FAULTS).index(fault), number])
    for old in folder, home / "cold":
        shutil.rmtree(old, ignore_errors=True)
    with start_study(folder, cache) as process:
        _wait(process, folder, rng, 0.8 * reference["compiling"] if is_cold else 0.0)
        report = _stop(process, folder, FAULTS[fault][0], is_twice, rng)
    state, before = final_state(folder)[0], recorded_steps(folder)
    with start_study(folder, home / "cache") as process:
        last_message = last_line(process)
    is_same = equal_ends(final_state(folder), reference["end"])
    after = recorded_steps(folder)[len(before) :]
    saved = -1 if state is None else int(state.step)
    report |= {"restored": is_same, "compiling": is_cold and report["at"] == 0}
    if not is_twice:
        report |= {"saved": saved, "steps_lost": max([*before, 0]) - saved}
    if report["code"] == 0 and saved == STEPS:
        # The study was finished before the signal came: there was nothing to save.
        return report | {"landed": False, "broken": None}
    expected = FAULTS[fault][1]
    failures = {
        f"exit code {report['code']}, expected {expected}: {report['said']}": report["code"]
        != expected,
        f"the same command ends with {process.returncode}: {last_message}": process.returncode != 0,
        "it does not end as a run that never stopped": not is_same,
    }
    failures |= _end_failures(report) if is_twice else _step_failures(report, after)
    return report | {"broken": first_failure(failures)}


def _end_failures(report: Trial) -> dict[str, bool]:
    """Return the failures of a second Ctrl-C: message -> whether it holds."""
    return {f"it took {report['seconds']:.2f} s to end": report["seconds"] > AT_ONCE}


def _step_failures(report: Trial, after: list[int]) -> dict[str, bool]:
    """Return the failures of steps: message -> whether it holds.

    Args:
      report: of the trial.
      after: steps that the resumed study did.
    """
    saved = report["saved"]
    return {
        f"{report['steps_lost']} steps that were done are lost": report["steps_lost"] > 0,
        f"step {saved} is saved, {report['at']} was done when the signal came": saved
        < report["at"],
        f"it went on with {after[:2]} after {saved}": after != [*range(saved + 1, STEPS + 1)],
    }


def _wait(
    process: subprocess.Popen[str], folder: Path, rng: np.random.Generator, most: float
) -> None:
    """Wait until the script handles signals, and then for a random moment.

    Args:
      process: of the study.
      folder: of the study.
      rng: draws the moment.
      most: it is within so many seconds or, if this is 0, at a random step.
    """
    wait_until((folder / RUN / "config.json").exists, process)
    end = time.monotonic() + rng.uniform(0.0, most)
    step = 1 if most else rng.integers(1, STEPS - 10)

    def has_come() -> Any:
        return max([*recorded_steps(folder), 0]) >= step or (most and time.monotonic() > end)

    wait_until(has_come, process)


def _stop(
    process: subprocess.Popen[str],
    folder: Path,
    signal_number: int,
    is_twice: bool,
    rng: np.random.Generator,
) -> Trial:
    """Send the signal and observe the end of the process.

    With `is_twice` it is sent again after a random time.
    """
    at = max([*recorded_steps(folder), 0])
    process.send_signal(signal_number)
    if is_twice:
        time.sleep(rng.uniform(0.0, 0.2))
    alive = process.poll() is None
    if is_twice:
        process.send_signal(signal_number)
    start = time.monotonic()
    message = last_line(process)
    return {
        "landed": alive,
        "at": at,
        "seconds": time.monotonic() - start,
        "code": process.returncode,
        "said": message,
    }


def start_study(folder: Path, cache: Path, *args: str) -> subprocess.Popen[str]:
    """Start the script.

    Its steps are written to a file in its folder.

    Args:
      folder: of the study.
      cache: of compiled programs.
      args: more arguments than `STUDY`.
    """
    command = (steps_file(folder), *STUDY, *args, "--out", folder)
    return start_process("stress.interrupts", *command, err=subprocess.PIPE, cache=cache)


def steps_file(folder: Path) -> Path:
    """Return the file of a study's steps.

    It is in the study's folder, and so is deleted with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "steps"


def recorded_steps(folder: Path) -> list[int]:
    """Return the steps in a study's file, without repetitions.

    A step with a row is written twice.
    """
    file = folder / "steps"
    return (
        [step for step, _ in groupby(map(int, file.read_text().split()))] if file.exists() else []
    )


def last_line(process: subprocess.Popen[str]) -> str:
    """Return the last line of a process's stderr, once it has ended."""
    lines = process.communicate(timeout=300)[1].strip().splitlines()
    return lines[-1] if lines else ""


def final_state(folder: Path) -> tuple[Any, Sequence[Any]]:
    """Return the last state and the rows of a study's run.

    Returns:
      The state, None if there is none, and the rows without their times.
    """
    run = folder / RUN
    with jc.Checkpoints(run / "checkpoints") as checkpoints:
        state = checkpoints.restore(initial_state((run / "config.json").read_text()))
    rows = [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
        for row in jc.read_metrics(run)
    ]
    return state, rows


@lru_cache(maxsize=1)
def initial_state(text: str) -> jc.State:
    """Return the state at step 0, from the text of `config.json`."""
    config = jc.ExperimentConfig.from_json(text)
    model, tx = runs.model_and_optimizer(config, 10)
    return jc.init_state(model, tx, config.train, jc.load_dataset("digits"))


def equal_ends(a: tuple[Any, Sequence[Any]], b: tuple[Any, Sequence[Any]]) -> bool:
    """Check that two results of `final_state` have the same bits and rows."""
    if a[0] is None or b[0] is None or a[1] != b[1]:
        return False
    import jax

    def equal(x, y) -> bool:
        return x.dtype == y.dtype and np.array_equal(x, y)

    return all(jax.tree.leaves(jax.tree.map(equal, a[0], b[0])))


@lru_cache(maxsize=1)
def reference_run(home: Path) -> dict[str, Any]:
    """Return the results of a run that is never stopped.

    Returns:
      "end" -> its `final_state`, and "compiling" -> the seconds of its compilation.
    """
    times = home / "times.json"
    if not times.exists():
        seconds = _time_compilation(home / "unstopped", home / "cache")
        write_text(times, json.dumps({"compiling": seconds}) + "\n")
    return json.loads(times.read_text()) | {"end": final_state(home / "unstopped")}


def _time_compilation(folder: Path, cache: Path) -> float:
    """Make a whole run and measure the seconds of its compilation.

    They are from the moment at which it handles signals to its first step.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with start_study(folder, cache) as process:
        wait_until((folder / RUN / "config.json").exists, process)
        start = time.monotonic()
        wait_until((folder / "steps").exists, process)
        seconds = time.monotonic() - start
        message = last_line(process)
    if process.returncode:
        raise RuntimeError(f"a run that nobody stopped ended with {process.returncode}: {message}")
    return seconds


def main() -> int:
    """Run `experiments.depth`, and write every step that it reports to the file."""
    file, *args = sys.argv[1:]
    advance = Progress.advance

    def advance_and_record(self: Progress, units: float, position: str) -> None:
        with Path(file).open("a") as steps:
            steps.write(re.findall(r"step (\d+)/", position)[0] + "\n")
        advance(self, units, position)

    Progress.advance = advance_and_record
    return depth.main(args)


if __name__ == "__main__":
    sys.exit(main())
