"""Process that saves one state after another until it is killed.

    python -m experiments.stress.worker FOLDER MEGABYTES

It prints each step once its save runs in the background.
"""

from __future__ import annotations

import itertools
import sys
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxcnn.checkpoint import Checkpoints

LEAVES = 64
"""Number of arrays of a state's parameters."""


class State(NamedTuple):
    """State of a given size, with several leaves as a network's has."""

    step: np.ndarray
    """int32 []."""
    params: dict[str, np.ndarray]
    """Name -> float32 leaf."""


@lru_cache(maxsize=2)
def _noise(megabytes: float) -> np.ndarray:
    """Return the values that all states are multiples of, float32 [LEAVES, n]."""
    shape = (LEAVES, int(megabytes * 1e6 / 4 / LEAVES))
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def state_at(step: int, megabytes: float) -> State:
    """Return the state of a step: every value depends on the step."""
    values = _noise(megabytes) * np.float32(step + 1)
    params = {f"layer{i}": leaf for i, leaf in enumerate(values)}
    return State(np.array(step, np.int32), params)


def is_intact(state: State, megabytes: float) -> bool:
    """Check that a state is bit for bit that of its step."""
    expected = state_at(int(state.step), megabytes)
    return all(np.array_equal(state.params[name], leaf) for name, leaf in expected.params.items())


def main() -> None:
    """Resume from the newest state, then save and print steps."""
    folder, megabytes = sys.argv[1], float(sys.argv[2])
    with Checkpoints(folder) as checkpoints:
        state = checkpoints.restore(state_at(0, megabytes))
        if state is not None and not is_intact(state, megabytes):
            sys.exit("what was restored is not what was saved")
        for step in itertools.count(1 if state is None else int(state.step) + 1):
            checkpoints.save(state_at(step, megabytes))
            print(step, flush=True)


if __name__ == "__main__":
    main()
