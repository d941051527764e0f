"""Resuming: a state goes on under the numbers that it carries, so these must be the recipe's, or become them on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxcnn import augment
from jaxcnn.data import Dataset
from jaxcnn.optim import RateState
from jaxcnn.recipe import ArgumentError, Recipe
from jaxcnn.state import State

Change = tuple[Any, Any]


def resumed(
    found: State, fresh: State, recipe: Recipe, data: Dataset, warm_start: bool
) -> tuple[State, dict[str, Change]]:
    """Return the state to continue from, and what a warm start changed in it: name -> (before, now).

    A state carries its rate (where the optimiser keeps it as state), its seed and its normaliser, and training uses these and
    not the recipe's. Step, parameters, statistics and the optimiser's moments are always those of `found`.

    Args:
      found: the state to continue from.
      fresh: the recipe's at step 0.
      recipe, data: as `train` takes them; they word the message.
      warm_start: whether differing numbers become the recipe's.

    Raises:
      ArgumentError: without `warm_start`, where they differ; also for the state of another model or optimiser.
    """
    _same_arrays(found, fresh)
    changes: dict[str, Change] = {}
    for (name, old), (_, new) in zip(_carried(found.opt_state), _carried(fresh.opt_state), strict=True):
        if not np.allclose(np.float32(old), np.float32(new), rtol=1e-6, atol=0, equal_nan=True):
            changes[name] = _number(old), _number(new)
    if not np.array_equal(found.rng, fresh.rng):
        changes["seed"] = _seed(found.rng), recipe.seed
    if not all(
        np.allclose(old, new, rtol=1e-5, atol=1e-6) for old, new in zip(found.normalizer, fresh.normalizer, strict=True)
    ):
        changes["mean"] = _normaliser(found.normalizer, data, recipe), _normaliser(fresh.normalizer, data, recipe)
    if changes and not warm_start:
        told = ", ".join(
            f"{name} is {old} in the state and {new} in the recipe" for name, (old, new) in changes.items()
        )
        raise ArgumentError(
            f"the state to resume was trained otherwise: {told}; expected the same. "
            "Use the state's numbers in the recipe, or warm_start=True to continue with the recipe's."
        )
    if not changes:
        return found, {}
    opt = jax.tree.map(_with_carried, found.opt_state, fresh.opt_state, is_leaf=_carries)
    return found._replace(opt_state=opt, rng=fresh.rng, normalizer=fresh.normalizer), changes


def _same_arrays(found: State, fresh: State) -> None:
    for what in ("params", "model_state", "opt_state"):
        old, new = (_shapes(getattr(state, what)) for state in (found, fresh))
        if old != new:
            name = next(iter(sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))))
            raise ArgumentError(
                f"the state to resume has {what}{name} of shape {old.get(name, 'none')}; expected {new.get(name, 'none')}. "
                "Use the model and the optimizer that the state was trained with."
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _carries(node: Any) -> bool:
    """Whether a node of an optimiser's state holds numbers that its constructor was given."""
    return isinstance(node, RateState) or (hasattr(node, "hyperparams") and hasattr(node, "inner_state"))


def _constants(node: Any) -> dict[str, Any]:
    """These numbers; those that a schedule makes anew at each step are not among them."""
    if isinstance(node, RateState):
        return {"lr": node.lr}
    scheduled = getattr(node, "hyperparams_states", {})
    return {name: value for name, value in node.hyperparams.items() if name not in scheduled}


def _carried(opt: Any) -> Iterator[tuple[str, Any]]:
    for node in filter(_carries, jax.tree.leaves(opt, is_leaf=_carries)):
        yield from sorted(_constants(node).items())
        yield from _carried(tuple(part for part in node if part is not node))


def _with_carried(old: Any, new: Any) -> Any:
    """A node of the old state with the new one's numbers, at any depth."""
    if not _carries(old):
        return old
    parts = [jax.tree.map(_with_carried, a, b, is_leaf=_carries) for a, b in zip(old, new, strict=True)]
    old = type(old)(*parts)
    if isinstance(old, RateState):
        return old._replace(lr=new.lr)
    return old._replace(hyperparams={**old.hyperparams, **_constants(new)})


def _number(value: Any) -> Any:
    array = np.asarray(value)
    return float(f"{array.item():.6g}") if array.ndim == 0 and array.dtype.kind == "f" else array.tolist()


def _seed(key: Any) -> Any:
    """The seed that a key was made of, or the key itself where that is another kind of key."""
    words = np.asarray(key).ravel().tolist()
    return words[1] if len(words) == 2 and words[0] == 0 else words


def _normaliser(norm: augment.Normalizer, data: Dataset, recipe: Recipe) -> str:
    """A normaliser in the recipe's words where it is this recipe's or a named one of this data, with its averages."""
    average, spread = (f"{float(np.mean(array)):.4g}" for array in norm)
    names = ["pixel", "channel", "none"] + ["imagenet"] * (np.shape(norm.mean)[-1] == 3)
    for subtract, divide in [
        (recipe.mean, recipe.std),
        *((name, divide) for name in names for divide in (False, True)),
    ]:
        other = augment.make_normalizer(data.mean, data.std, subtract=subtract, divide=divide)
        if all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(norm, other, strict=True)):
            return f"{subtract!r}{f' with std {divide!r}' if divide else ''} ({average} on average)"
    return f"of other data or constants (mean {average} and std {spread} on average)"
