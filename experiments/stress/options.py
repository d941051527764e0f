"""Settings of all parts, their presets, and functions that the parts share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import experiments
import jaxcnn as jc

Part = Literal["kills", "signals", "damage"]
Trial = dict[str, Any]
"""Observations of a trial.

Under "broken" it has the first promise that was broken, None if all held.
"""
ROOT = Path(experiments.__file__).parent.parent
"""Folder of the repository, in which processes are started."""
TIMEOUT = 120.0
"""Seconds after which `wait_until` gives up."""


@dataclass(frozen=True)
class Options:
    """Every setting; `--preset` chooses the defaults."""

    preset: Literal["quick", "full"] = "quick"
    """quick: a few trials of each fault. full: as many as in experiments/results/faults."""
    parts: tuple[Part, ...] = ("kills", "signals", "damage")
    """Kinds of faults."""
    kills: int = 8
    """Trials of a process killed while it saves."""
    signals: int = 3
    """Trials of each of Ctrl-C, SIGTERM and Ctrl-C twice."""
    flips: int = 40
    """Bytes of a checkpoint to flip, one at a time."""
    megabytes: float = 14.0
    """Megabytes of the state that the killed process saves; 14 is ResNet-110 with momentum."""
    seed: int = 0
    """Seed of the moments, files and bytes."""
    out: Path = Path("runs/faults")
    """Folder for the table and the trials."""


PRESETS = {"quick": Options(), "full": Options(preset="full", kills=50, signals=20, flips=100)}


def check(options: Options) -> None:
    """Check the settings.

    Raises:
      ArgumentError: for an invalid one.
    """
    if not options.parts:
        raise jc.ArgumentError(
            "parts is empty; expected some of kills, signals, damage: write --parts kills"
        )
    for name in ("kills", "signals", "flips"):
        if getattr(options, name) < 1:
            raise jc.ArgumentError(
                f"{name} is {getattr(options, name)}; expected at least 1: write --{name} 3"
            )
    if not options.megabytes >= 0.1:
        raise jc.ArgumentError(
            f"megabytes is {options.megabytes}; expected at least 0.1: write --megabytes 14"
        )


def start_process(
    module: str, *args: str | Path, err: IO[str] | int, cache: Path | None = None
) -> subprocess.Popen[str]:
    """Start a process on one CPU device.

    It has a session of its own, so that Ctrl-C in this terminal does not reach it.

    Args:
      module: name below `experiments`.
      args: its command-line arguments.
      err: file of its stderr, or `subprocess.PIPE`; stdout is a pipe.
      cache: value of `$JAXCNN_CACHE`, unless None.
    """
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    env |= {"JAXCNN_CACHE": str(cache)} if cache else {}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-m", f"experiments.{module}", *map(str, args)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=err,
        text=True,
        start_new_session=True,
    )


def wait_until(
    condition: Callable[[], Any], process: subprocess.Popen[str], every: float = 0.0005
) -> bool:
    """Wait until a condition holds.

    Args:
      condition: called every `every` seconds.
      process: the wait ends when it ends, or after `TIMEOUT` seconds.
      every: seconds between two calls.

    Returns:
      False if the wait ended without it.
    """
    end = time.monotonic() + TIMEOUT
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            return bool(condition())
        time.sleep(every)
    return True


def first_failure(failures: Mapping[str, Any]) -> str | None:
    """Return the first key whose value is true, or None."""
    return next((message for message, is_true in failures.items() if is_true), None)
