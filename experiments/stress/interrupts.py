"""SIGTERM, Ctrl-C and Ctrl-C twice at random steps of `experiments.depth`, every third at a moment of a first compilation.

The script tells a file of every step (`teller`), so that no step lost means: it saved the last one that it did, it goes on
with the next, and it ends with the bits and rows of a run that was never stopped.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments.stress.options import Options, Trial, first, start, until
from jaxcnn.run_log import write_text

SECONDS = 12.0
FAULTS = {"Ctrl-C": (signal.SIGINT, 130), "SIGTERM": (signal.SIGTERM, 143), "Ctrl-C twice": (signal.SIGINT, 130)}
STEPS, RUN = 240, "resnet8-seed0"
STUDY = ["--depths", "8", "--families", "residual", "--width", "4", "--batch", "256", "--seeds", "1"]
STUDY += ["--steps", str(STEPS), "--every", "80", "--drops", "120"]
AT_ONCE = 1.0
"""Seconds that the end may take after the second Ctrl-C."""


def plan(options: Options) -> list[tuple[str, int]]:
    """Every trial, as its fault and number."""
    return [(fault, number) for fault in FAULTS for number in range(options.signals)]


def trial(options: Options, fault: str, number: int) -> Trial:
    """Stop a study, look at what it has left, and let the same command go on to the end."""
    home, cold, twice = options.out / "signals", number % 3 == 0, fault == "Ctrl-C twice"
    reference, folder, cache = unstopped(home), home / "trial", home / ("cold" if cold else "cache")
    rng = np.random.default_rng([options.seed, list(FAULTS).index(fault), number])
    for old in folder, home / "cold":
        shutil.rmtree(old, ignore_errors=True)
    with study(folder, cache) as process:
        _wait(process, folder, rng, 0.8 * reference["compiling"] if cold else 0.0)
        seen = _stop(process, folder, FAULTS[fault][0], twice, rng)
    left, before = ended(folder)[0], steps(folder)
    with study(folder, home / "cache") as process:
        again = said(process)
    good, after = alike(ended(folder), reference["end"]), steps(folder)[len(before) :]
    saved = -1 if left is None else int(left.step)
    seen |= {"restored": good, "compiling": cold and seen["at"] == 0}
    if not twice:
        seen |= {"saved": saved, "steps_lost": max([*before, 0]) - saved}
    if seen["code"] == 0 and saved == STEPS:  # it was over before the signal came: there was nothing to keep
        return seen | {"landed": False, "broken": None}
    complaint = {
        f"exit code {seen['code']}, expected {FAULTS[fault][1]}: {seen['said']}": seen["code"] != FAULTS[fault][1],
        f"the same command ends with {process.returncode}: {again}": process.returncode != 0,
        "it does not end as a run that never stopped": not good,
    }
    return seen | {"broken": first(complaint | (_hurry(seen) if twice else _care(seen, after)))}


def _hurry(seen: Trial) -> dict[str, bool]:
    """Complaints about a second Ctrl-C."""
    return {f"it took {seen['seconds']:.2f} s to end": seen["seconds"] > AT_ONCE}


def _care(seen: Trial, after: list[int]) -> dict[str, bool]:
    """Complaints about steps that were done, saved, and done after it went on."""
    saved = seen["saved"]
    return {
        f"{seen['steps_lost']} steps that were done are lost": seen["steps_lost"] > 0,
        f"step {saved} is saved, {seen['at']} was done when the signal came": saved < seen["at"],
        f"it went on with {after[:2]} after {saved}": after != [*range(saved + 1, STEPS + 1)],
    }


def _wait(process: subprocess.Popen[str], folder: Path, rng: np.random.Generator, most: float) -> None:
    """Wait until the script heeds signals, then a random part of `most` seconds or, if that is 0, for a random step."""
    until((folder / RUN / "config.json").exists, process)
    end = time.monotonic() + rng.uniform(0.0, most)
    step = 1 if most else rng.integers(1, STEPS - 10)
    until(lambda: max([*steps(folder), 0]) >= step or (most and time.monotonic() > end), process)


def _stop(process: subprocess.Popen[str], folder: Path, sign: int, twice: bool, rng: np.random.Generator) -> Trial:
    """Send the signal, and perhaps another soon after; what was seen of the end."""
    at = max([*steps(folder), 0])
    process.send_signal(sign)
    if twice:
        time.sleep(rng.uniform(0.0, 0.2))
    alive = process.poll() is None
    if twice:
        process.send_signal(sign)
    began = time.monotonic()
    words = said(process)
    return {"landed": alive, "at": at, "seconds": time.monotonic() - began, "code": process.returncode, "said": words}


def study(folder: Path, cache: Path, *more: str) -> subprocess.Popen[str]:
    """The script, with its steps told to a file beside its folder."""
    return start("stress.teller", told(folder), *STUDY, *more, "--out", folder, err=subprocess.PIPE, cache=cache)


def told(folder: Path) -> Path:
    """The file of a study's steps; it is deleted with the study."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "steps"


def steps(folder: Path) -> list[int]:
    """The steps that were told, each once: a step with a row is told twice."""
    file = folder / "steps"
    return [step for step, _ in groupby(map(int, file.read_text().split()))] if file.exists() else []


def said(process: subprocess.Popen[str]) -> str:
    """The last line of a process that ends."""
    words = process.communicate(timeout=300)[1].strip().splitlines()
    return words[-1] if words else ""


def ended(folder: Path) -> tuple[Any, Sequence[Any]]:
    """The last state and the rows, without their times; None for a state that is not there."""
    run = folder / RUN
    with jc.Checkpoints(run / "checkpoints") as saved:
        state = saved.restore(blank((run / "config.json").read_text()))
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in jc.read_metrics(run)]
    return state, rows


@lru_cache(maxsize=1)
def blank(config: str) -> jc.State:
    """The state at step 0 of a run, from its `config.json`."""
    recipe = jc.Recipe.from_json(config)
    model = jc.create_model(recipe.model, 10, **recipe.options)
    return jc.init_state(model, jc.create_optimizer(recipe), recipe, jc.load_dataset("digits"))


def alike(one: tuple[Any, Sequence[Any]], other: tuple[Any, Sequence[Any]]) -> bool:
    """Whether two runs ended with the same bits and the same rows."""
    if one[0] is None or other[0] is None or one[1] != other[1]:
        return False
    import jax

    return all(
        jax.tree.leaves(jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), one[0], other[0]))
    )


@lru_cache(maxsize=1)
def unstopped(home: Path) -> dict[str, Any]:
    """The end of a run that is never stopped, and the seconds of its compilation."""
    times = home / "times.json"
    if not times.exists():
        write_text(times, json.dumps({"compiling": _timed(home / "unstopped", home / "cache")}) + "\n")
    return json.loads(times.read_text()) | {"end": ended(home / "unstopped")}


def _timed(folder: Path, cache: Path) -> float:
    """A whole run: the seconds from where it heeds signals to its first step."""
    shutil.rmtree(folder, ignore_errors=True)
    with study(folder, cache) as process:
        until((folder / RUN / "config.json").exists, process)
        began = time.monotonic()
        until((folder / "steps").exists, process)
        compiling = time.monotonic() - began
        words = said(process)
    if process.returncode:
        raise RuntimeError(f"a run that nobody stopped ended with {process.returncode}: {words}")
    return compiling
