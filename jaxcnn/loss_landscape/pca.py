"""The plane that holds most of a path of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcnn.recipe import ArgumentError
from jaxcnn.state import State, eval_state

FLAT = 1e-12
"""A share of the variance below which a component is rounding."""


class PCAPlane(NamedTuple):
    """Two directions through the last state, and the path seen in them."""

    directions: tuple[Any, Any]
    """Trees like the parameters, float32, of length 1 and at right angles; the start lies where both are positive, or 0."""
    explained: np.ndarray
    """float64 [2]: the share of the path's variance that is along each."""
    path: np.ndarray
    """float64 [t, 2]: the states in the plane, in units of the Euclidean distance; the last is at (0, 0)."""


def pca_plane(states: Sequence[State]) -> PCAPlane:
    """The first two principal components of theta_i - theta_n (Li et al. 2018, arXiv:1712.09913, section 7.2).

    All parameters count, BN's scales and shifts too, but not BN's moving averages: what is evaluated in this plane has those
    of one state, or none of any (see `along`, `statistics`). The differences are centred before, as the authors' code does;
    the components are found from the t x t inner products.

    Args:
      states: at least three, of one network, the last of them the plane's origin.

    Raises:
      ArgumentError: for fewer, or states that all lie on one line, or on one point: then there is no plane.

    Example:
      >>> from jaxcnn import Recipe, create_model, load_dataset, create_optimizer
      >>> from jaxcnn.state import init_state
      >>> recipe = Recipe(model="mlp")
      >>> state = init_state(create_model("mlp", 10), create_optimizer(recipe), recipe, load_dataset("digits"))
      >>> def moved(x, y):
      ...     kernel = state.params["head"]["kernel"].copy()
      ...     kernel[0, :2] += np.float32([x, y])
      ...     return state._replace(params={**state.params, "head": {**state.params["head"], "kernel": kernel}})
      >>> plane = pca_plane([moved(4, 0), moved(2, 1), moved(1, 0), state])
      >>> float(plane.explained.sum().round(6)), float(np.hypot(*plane.path[0]).round(4))  # all of it, from 4 away
      (1.0, 4.0)
    """
    if len(states) < 3:
        raise ArgumentError(f"there are {len(states)} states; expected at least three, of which two steps make a plane")
    trees = [jax.tree.leaves(eval_state(state).params) for state in states]
    rows = [_differences(leaves) for leaves in zip(*trees, strict=True)]
    inner = np.sum([part @ part.T for part in rows], axis=0)  # [t, t]: all that is needed of millions of parameters
    t = len(states)
    centre = np.eye(t) - 1 / t
    variances, vectors = np.linalg.eigh(centre @ inner @ centre)
    variances, vectors = variances[:-3:-1], vectors[:, :-3:-1]
    total = np.trace(centre @ inner @ centre)
    if not variances[1] > FLAT * total:
        raise ArgumentError("the states lie on one line; expected a path that turns: give more of them")
    mix = centre @ vectors / np.sqrt(variances)  # [t, 2]: the directions as sums of differences
    mix *= np.where((inner @ mix)[0] < 0, -1, 1)
    tree = jax.tree.structure(states[-1].params)
    ways = [
        tree.unflatten(
            [(part.T @ mix[:, i]).reshape(leaf.shape).astype(np.float32) for part, leaf in _pairs(rows, trees)]
        )
        for i in range(2)
    ]
    return PCAPlane((ways[0], ways[1]), variances / total, inner @ mix)


def _pairs(rows, trees):
    return zip(rows, trees[-1], strict=True)


def _differences(leaves: Sequence[np.ndarray]) -> np.ndarray:
    """float64 [t, size]: one leaf of every state less that of the last."""
    stacked = np.stack([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
    return stacked - stacked[-1]
