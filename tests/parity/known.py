"""Weights of PyTorch's networks that need not be stored: each array is made from its own name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PERIOD = 65_537  # numbers drawn for an array; prime, so that no two rows of a larger one are alike
SAMPLE = 200  # numbers stored of each stage


class Case(NamedTuple):
    """What an independent implementation made of `image` with the arrays of `shapes`; stages as [b, h, w, c] or [b, c]."""

    shapes: dict[str, tuple[int, ...]]
    gain: float
    image: tuple[int, ...]
    logits: np.ndarray
    stages: dict[str, tuple[tuple[int, ...], np.ndarray]]


def array(name: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """The array called `name`: kernels of variance gain / fan_in, variances and gains near 1, the rest small."""
    draw = np.random.default_rng(number(name))
    count = int(np.prod(shape))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        values = draw.uniform(0.5, 1.5, count)
    else:
        values = draw.standard_normal(min(count, PERIOD))
        values *= np.sqrt(gain / np.prod(shape[1:])) if len(shape) > 1 else 0.1
    return np.resize(values.astype(np.float32), shape)


def number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def image(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def sample(name: str, maps: Any) -> np.ndarray:
    """Some of the numbers of a stage [b, ...], always the same places."""
    flat = np.asarray(maps).ravel()
    return flat[np.random.default_rng(number(name)).integers(flat.size, size=SAMPLE)]


def state_dict(case: Case) -> dict[str, np.ndarray]:
    return {name: array(name, shape, case.gain) for name, shape in case.shapes.items()}


def store(file: Path, case: Case) -> None:
    about = {"shapes": case.shapes, "gain": case.gain, "image": case.image}
    about["stages"] = {name: shape for name, (shape, _) in case.stages.items()}
    values: Any = {f"stage_{name}": values for name, (_, values) in case.stages.items()}
    np.savez_compressed(file, about=json.dumps(about), logits=case.logits, **values)


def load(file: Path) -> Case:
    with np.load(file) as stored:
        about = json.loads(str(stored["about"]))
        stages = {
            name: (tuple(shape), stored[f"stage_{name}"]) for name, shape in about["stages"].items()
        }
        shapes = {name: tuple(shape) for name, shape in about["shapes"].items()}
        return Case(shapes, about["gain"], tuple(about["image"]), stored["logits"], stages)
