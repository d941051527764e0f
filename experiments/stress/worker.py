"""`python -m experiments.stress.worker FOLDER MEGABYTES`: save one state after another until killed, telling each."""

from __future__ import annotations

import itertools
import sys
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxcnn.checkpoint import Checkpoints

LEAVES = 64


class State(NamedTuple):
    """Float32 leaves that make up the size, as a network's do."""

    step: np.ndarray
    params: dict[str, np.ndarray]


@lru_cache(maxsize=2)
def _noise(megabytes: float) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((LEAVES, int(megabytes * 1e6 / 4 / LEAVES)), np.float32)


def state_at(step: int, megabytes: float) -> State:
    """The state that belongs to a step: every value depends on it."""
    values = _noise(megabytes) * np.float32(step + 1)
    return State(np.array(step, np.int32), {f"layer{i}": leaf for i, leaf in enumerate(values)})


def same(found: State, megabytes: float) -> bool:
    """Whether a state is bit for bit that of its step."""
    right = state_at(int(found.step), megabytes)
    return all(np.array_equal(found.params[name], leaf) for name, leaf in right.params.items())


def main() -> None:
    """Go on from what the folder holds; each step is told once its save runs in the background."""
    folder, megabytes = sys.argv[1], float(sys.argv[2])
    with Checkpoints(folder) as saved:
        found = saved.restore(state_at(0, megabytes))
        if found is not None and not same(found, megabytes):
            sys.exit("what was restored is not what was saved")
        for step in itertools.count(1 if found is None else int(found.step) + 1):
            saved.save(state_at(step, megabytes))
            print(step, flush=True)


if __name__ == "__main__":
    main()
