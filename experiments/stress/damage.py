"""Damage to the newest step on disk.

Each file in turn has a byte flipped at random, is cut at random, emptied, or removed.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.stress.options import Options, Trial, first_failure
from experiments.stress.worker import is_intact, state_at
from jaxcnn.checkpoint import CheckpointError, Checkpoints

SECONDS = 0.15
"""Duration of a trial, for the progress bar."""
MEGABYTES = 1.0
"""Size of the states."""
RECORD = "files.json"
"""File with the digests of a step's files.

A step without it is checked by its values alone, because its process may have ended before it was
written.
"""


def flip(file: Path, rng: np.random.Generator) -> None:
    """Change one byte."""
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= int(rng.integers(1, 256))
    file.write_bytes(content)


def cut(file: Path, rng: np.random.Generator) -> None:
    """Keep a random part of a file, never all of it."""
    file.write_bytes(file.read_bytes()[: rng.integers(file.stat().st_size)])


def empty(file: Path, rng: np.random.Generator) -> None:
    """Keep nothing of a file."""
    file.write_bytes(b"")


def remove(file: Path, rng: np.random.Generator) -> None:
    """Delete a file."""
    file.unlink()


FAULTS: dict[str, Callable[[Path, np.random.Generator], None]] = {
    "byte flipped": flip,
    "file cut": cut,
    "file emptied": empty,
    "file removed": remove,
}
"""Fault -> the function that does it."""


def plan(options: Options) -> list[tuple[str, int]]:
    """Return the fault and the number of every trial.

    Flips go through the files in turn, again and again.
    """
    num_files = len(_files(options))
    return [
        (fault, i)
        for fault in FAULTS
        for i in range(options.flips if fault == "byte flipped" else num_files)
    ]


def trial(options: Options, fault: str, number: int) -> Trial:
    """Damage a fresh copy of two steps and restore from it."""
    folder, files = options.out / "damage" / "trial", _files(options)
    rng = np.random.default_rng([options.seed, list(FAULTS).index(fault), number])
    name = files[number % len(files)]
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(options.out / "damage" / "good", folder)
    FAULTS[fault](folder / "2" / name, rng)
    messages, step = restore(folder)
    is_named = f"({name} " in " ".join(messages)
    # Without the record, the values are still the right ones.
    is_harmless = name == RECORD and fault == "file removed"
    report = {
        "file": name,
        "landed": True,
        "restored": step > 0,
        "detected": step != 2,
        "named": is_named,
    }
    has_two_lines = any("\n" in line for line in messages)
    failures = {
        f"{name}: {messages or 'nothing can be restored'}": step < 0,
        f"{name}: step {step} was used": step != (2 if is_harmless else 1),
        f"{name} is not named in {messages}": not is_harmless and not is_named,
        f"{name}: {len(messages)} lines": len(messages) != (0 if is_harmless else 1)
        or has_two_lines,
    }
    return report | {"broken": first_failure(failures)}


def restore(folder: Path) -> tuple[list[str], int]:
    """Restore the newest good state.

    Returns:
      Messages logged on the way, and the state's step. It is -1 if there is none, and -2 if it is
      not as saved.
    """
    messages: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: messages.append(record.getMessage())
    log = logging.getLogger("jaxcnn.checkpoint")
    log.addHandler(listener)
    log.propagate = False
    try:
        with Checkpoints(folder) as checkpoints:
            state = checkpoints.restore(state_at(0, MEGABYTES))
    except CheckpointError as error:
        return [*messages, str(error)], -1
    finally:
        log.removeHandler(listener)
        log.propagate = True
    if state is None:
        return messages, -1
    return messages, int(state.step) if is_intact(state, MEGABYTES) else -2


def _files(options: Options) -> list[str]:
    """Return the names of the newest step's files.

    There are two steps, which are saved if they are missing.
    """
    good = options.out / "damage" / "good"
    with Checkpoints(good) as checkpoints:
        for step in {1, 2} - set(checkpoints.steps()):
            checkpoints.save(state_at(step, MEGABYTES))
    step = good / "2"
    return sorted(path.relative_to(step).as_posix() for path in step.rglob("*") if path.is_file())
