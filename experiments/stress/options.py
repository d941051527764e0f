"""The settings of all parts, their presets, and what a trial is."""

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
"""What was seen, and what the fault was to do and did not under "broken", None if all was well."""
ROOT = Path(experiments.__file__).parent.parent
PATIENCE = 120.0
"""Seconds after which what has not come will not."""


@dataclass(frozen=True)
class Options:
    """Every setting; `--preset` chooses the defaults."""

    preset: Literal["quick", "full"] = "quick"
    """quick: a few trials of each fault. full: as many as in experiments/results/faults."""
    parts: tuple[Part, ...] = ("kills", "signals", "damage")
    kills: int = 8
    signals: int = 3
    """Of each: Ctrl-C, SIGTERM, and Ctrl-C twice."""
    flips: int = 40
    megabytes: float = 14.0
    """Of the state that the killed process saves: those of ResNet-110 with momentum."""
    seed: int = 0
    """Of the moments, files and bytes."""
    out: Path = Path("runs/faults")


PRESETS = {"quick": Options(), "full": Options(preset="full", kills=50, signals=20, flips=100)}


def check(options: Options) -> None:
    """ArgumentError for a setting that cannot be meant."""
    if not options.parts:
        raise jc.ArgumentError("parts is empty; expected some of kills, signals, damage: write --parts kills")
    for name in ("kills", "signals", "flips"):
        if getattr(options, name) < 1:
            raise jc.ArgumentError(f"{name} is {getattr(options, name)}; expected at least 1: write --{name} 3")
    if not options.megabytes >= 0.1:
        raise jc.ArgumentError(f"megabytes is {options.megabytes}; expected at least 0.1: write --megabytes 14")


def start(module: str, *args: str | Path, err: IO[str] | int, cache: Path | None = None) -> subprocess.Popen[str]:
    """A fresh process on one CPU device, out of reach of this terminal's Ctrl-C."""
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    env |= {"JAXCNN_CACHE": str(cache)} if cache else {}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-m", f"experiments.{module}", *map(str, args)]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=err, text=True, start_new_session=True
    )


def until(happens: Callable[[], Any], process: subprocess.Popen[str], every: float = 0.0005) -> bool:
    """Wait until something happens; False if the process has ended, or all patience, without it."""
    end = time.monotonic() + PATIENCE
    while not happens():
        if process.poll() is not None or time.monotonic() > end:
            return bool(happens())
        time.sleep(every)
    return True


def first(faults: Mapping[str, Any]) -> str | None:
    """The first of several complaints that is true."""
    return next((said for said, true in faults.items() if true), None)
