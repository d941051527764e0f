"""Damage to the newest step on disk: each file in turn, a byte flipped at random, cut at random, emptied, or removed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.stress.options import Options, Trial, first
from experiments.stress.worker import same, state_at
from jaxcnn.checkpoint import CheckpointError, Checkpoints

SECONDS = 0.15
MEGABYTES = 1.0
RECORD = "files.json"
"""The record of a step's files. A step without one is judged by its values alone: its process may have died before it."""


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


def plan(options: Options) -> list[tuple[str, int]]:
    """Every trial, as its fault and number; flips go round the files."""
    files = len(_files(options))
    return [(fault, i) for fault in FAULTS for i in range(options.flips if fault == "byte flipped" else files)]


def trial(options: Options, fault: str, number: int) -> Trial:
    """Damage a fresh copy of two steps and restore from it."""
    folder, files = options.out / "damage" / "trial", _files(options)
    rng, name = np.random.default_rng([options.seed, list(FAULTS).index(fault), number]), files[number % len(files)]
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(options.out / "damage" / "good", folder)
    FAULTS[fault](folder / "2" / name, rng)
    said, step = restored(folder)
    named, harmless = f"({name} " in " ".join(said), name == RECORD and fault == "file removed"
    seen = {"file": name, "landed": True, "restored": step > 0, "detected": step != 2, "named": named}
    complaint = {
        f"{name}: {said or 'nothing can be restored'}": step < 0,
        f"{name}: step {step} was used": step != (2 if harmless else 1),
        f"{name} is not named in {said}": not harmless and not named,
        f"{name}: {len(said)} lines": len(said) != (0 if harmless else 1) or any("\n" in line for line in said),
    }
    return seen | {"broken": first(complaint)}


def restored(folder: Path) -> tuple[list[str], int]:
    """What was said on the way to the newest good state, and its step: -1 if there is none, -2 if it is not as saved."""
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger("jaxcnn.checkpoint")
    log.addHandler(listener)
    log.propagate = False
    try:
        with Checkpoints(folder) as saved:
            found = saved.restore(state_at(0, MEGABYTES))
    except CheckpointError as error:
        return [*said, str(error)], -1
    finally:
        log.removeHandler(listener)
        log.propagate = True
    return said, -1 if found is None else int(found.step) if same(found, MEGABYTES) else -2


def _files(options: Options) -> list[str]:
    """The files of the newest step, of two that are made where they are not there."""
    good = options.out / "damage" / "good"
    with Checkpoints(good) as saved:
        for step in {1, 2} - set(saved.steps()):
            saved.save(state_at(step, MEGABYTES))
    step = good / "2"
    return sorted(path.relative_to(step).as_posix() for path in step.rglob("*") if path.is_file())
