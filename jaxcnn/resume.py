"""Checks and changes of a state that is resumed.

A state carries numbers that training uses: its rate, seed and normalizer. They must be
those of the run, or a warm start makes them so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxcnn import augment
from jaxcnn._util import leaf_shapes
from jaxcnn.config import ArgumentError, TrainConfig
from jaxcnn.data import Dataset
from jaxcnn.optim import RateState
from jaxcnn.state import State

Change = tuple[Any, Any]


def resume_state(
    restored: State, initial: State, config: TrainConfig, data: Dataset, warm_start: bool
) -> tuple[State, dict[str, Change]]:
    """Return the state to resume, and the changes of a warm start.

    A state carries its rate (if the optimizer keeps it as state), its seed and its normalizer.
    Training uses these, not the config's. Step, parameters, statistics and the optimizer's moments
    are always those of `restored`.

    Args:
      restored: the state to resume.
      initial: the run's state at step 0.
      config: as in `train`, for the message.
      data: as in `train`, for the message.
      warm_start: replace numbers that differ by those of `initial`.

    Returns:
      The state, and (before, after) of each changed number by its name.

    Raises:
      ArgumentError: numbers differ without `warm_start`, or the state is of another model or
        optimizer.
    """
    _check_shapes(restored, initial)
    if leaf_shapes(restored.metrics) != leaf_shapes(initial.metrics):
        if not warm_start:
            raise ArgumentError(
                f"the state to resume sums up {_metric_names(restored)}, and the loss has "
                f"{_metric_names(initial)}; expected those of one loss. "
                "Use the loss that the state was trained with, or warm_start=True."
            )
        restored = restored._replace(metrics=initial.metrics)
    changes: dict[str, Change] = {}
    for (name, old), (_, new) in zip(
        _carried_numbers(restored.opt_state), _carried_numbers(initial.opt_state), strict=True
    ):
        if not np.allclose(np.float32(old), np.float32(new), rtol=1e-6, atol=0, equal_nan=True):
            changes[name] = _number(old), _number(new)
    if not np.array_equal(restored.rng, initial.rng):
        changes["seed"] = _seed(restored.rng), config.seed
    if not _are_close(restored.normalizer, initial.normalizer):
        changes["subtract_mean"] = (
            _describe_normalizer(restored.normalizer, data, config),
            _describe_normalizer(initial.normalizer, data, config),
        )
    if changes and not warm_start:
        differences = ", ".join(
            f"{name} is {old} in the state and {new} in the run"
            for name, (old, new) in changes.items()
        )
        raise ArgumentError(
            f"the state to resume was trained otherwise: {differences}; expected the same. "
            "Use the state's numbers, or warm_start=True to continue with the new ones."
        )
    if not changes:
        return restored, {}
    opt_state = jax.tree.map(
        _with_constants, restored.opt_state, initial.opt_state, is_leaf=_has_constants
    )
    state = restored._replace(opt_state=opt_state, rng=initial.rng, normalizer=initial.normalizer)
    return state, changes


def _check_shapes(restored: State, initial: State) -> None:
    for part in ("params", "model_state", "opt_state"):
        old, new = (leaf_shapes(getattr(state, part)) for state in (restored, initial))
        if old != new:
            name = min(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
            raise ArgumentError(
                f"the state to resume has {part}{name} of shape {old.get(name, 'none')}; "
                f"expected {new.get(name, 'none')}. "
                "Use the model and the optimizer that the state was trained with."
            )


def _metric_names(state: State) -> str:
    return ", ".join(sorted(state.metrics.sums)) or "no metrics"


def _has_constants(node: Any) -> bool:
    """Check if an optimizer state's node has arguments of its constructor."""
    is_injected = hasattr(node, "hyperparams") and hasattr(node, "inner_state")
    return isinstance(node, RateState) or is_injected


def _constants(node: Any) -> dict[str, Any]:
    """Return the constructor's arguments in a node.

    Those that a schedule computes at each step are left out.
    """
    if isinstance(node, RateState):
        return {"learning_rate": node.lr}
    scheduled = getattr(node, "hyperparams_states", {})
    return {name: value for name, value in node.hyperparams.items() if name not in scheduled}


def _carried_numbers(opt_state: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and values of an optimizer state's constants, at any depth."""
    for node in filter(_has_constants, jax.tree.leaves(opt_state, is_leaf=_has_constants)):
        yield from sorted(_constants(node).items())
        yield from _carried_numbers(tuple(part for part in node if part is not node))


def _with_constants(old: Any, new: Any) -> Any:
    """Return the old node with the constants of the new one.

    Nodes within nodes are replaced too.
    """
    if not _has_constants(old):
        return old
    parts = [
        jax.tree.map(_with_constants, a, b, is_leaf=_has_constants)
        for a, b in zip(old, new, strict=True)
    ]
    old = type(old)(*parts)
    if isinstance(old, RateState):
        return old._replace(lr=new.lr)
    return old._replace(hyperparams={**old.hyperparams, **_constants(new)})


def _number(value: Any) -> Any:
    array = np.asarray(value)
    is_float = array.ndim == 0 and array.dtype.kind == "f"
    return float(f"{array.item():.6g}") if is_float else array.tolist()


def _seed(key: Any) -> Any:
    """Return the seed of a key, or all words of another key."""
    words = np.asarray(key).ravel().tolist()
    return words[1] if len(words) == 2 and words[0] == 0 else words


def _are_close(normalizer: augment.Normalizer, other: augment.Normalizer) -> bool:
    """Check if two normalizers are equal up to rounding.

    Those of images of another size have other shapes.
    """
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(normalizer, other, strict=True)]
    try:
        return all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)
    # Their shapes do not go together.
    except ValueError:
        return False


def _describe_normalizer(normalizer: augment.Normalizer, data: Dataset, config: TrainConfig) -> str:
    """Describe a normalizer by its averages and its name, if any.

    Names are the config's and those of this data set's constants.
    """
    mean, std = (f"{float(np.mean(array)):.4g}" for array in normalizer)
    names = ["pixel", "channel", "none"]
    names += ["imagenet"] * (np.shape(normalizer.mean)[-1] == 3)
    for subtract, divide in [
        (config.subtract_mean, config.divide_std),
        *((name, divide) for name in names for divide in (False, True)),
    ]:
        candidate = augment.make_normalizer(data.mean, data.std, subtract=subtract, divide=divide)
        if _are_close(normalizer, candidate):
            suffix = f" with std {divide!r}" if divide else ""
            return f"{subtract!r}{suffix} ({mean} on average)"
    return f"of other data or constants (mean {mean} and std {std} on average)"
