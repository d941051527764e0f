"""Random directions in the space of parameters, of each filter's own length."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from jaxcnn.recipe import ArgumentError


def random_direction(key: jax.Array, params: Any) -> Any:
    """A Gaussian direction, filter-normalised (Li et al. 2018, arXiv:1712.09913, section 4), so that networks compare.

    Each filter of it has the norm of that filter of `params`: d_ij |w_ij| / |d_ij|. A filter is what makes one output
    channel of a convolution, or one unit of a dense layer: the last axis counts them. Leaves of one axis or none (biases, and
    BN's scale and shift) have 0, as in the authors' code (`--xignore biasbn`). Two directions are drawn independently, and
    not made orthogonal; see `cosine`.

    Args:
      key: draws it; the same key, the same direction.
      params: a tree of float32, kernels [..., out].

    Returns:
      A tree like `params`, float32, on the host. One step along it changes every filter by its own norm.

    Raises:
      ArgumentError: if no leaf has two axes or more.

    Example:
      >>> params = {"kernel": np.float32([[3, 0], [4, 1]]), "bias": np.float32([1, 1])}
      >>> step = random_direction(jax.random.key(0), params)
      >>> np.linalg.norm(step["kernel"], axis=0).round(5).tolist(), step["bias"].tolist()
      ([5.0, 1.0], [0.0, 0.0])
    """
    leaves, tree = jax.tree.flatten(params)
    sizes = [np.size(leaf) if np.ndim(leaf) > 1 else 0 for leaf in leaves]
    if not any(sizes):
        raise ArgumentError("params holds no kernel; expected at least one array [..., out] of two axes or more")
    # One draw for all leaves: one compilation, and not one for every shape.
    drawn = np.split(np.asarray(jax.random.normal(key, (sum(sizes),), "float32"), np.float64), np.cumsum(sizes)[:-1])
    return tree.unflatten([_scaled(part, np.asarray(leaf)) for part, leaf in zip(drawn, leaves, strict=True)])


def _scaled(drawn: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The draw [size] in the shape of the weights, its filters of their filters' norms; zeros for a draw of nothing."""
    if not drawn.size:
        return np.zeros(weights.shape, np.float32)
    drawn, axes = drawn.reshape(weights.shape), tuple(range(weights.ndim - 1))
    norms = [np.sqrt(np.square(each, dtype=np.float64).sum(axes)) for each in (weights, drawn)]
    return (drawn * (norms[0] / norms[1])).astype(np.float32)


def cosine_similarity(one: Any, other: Any) -> float:
    """The cosine of the angle between two trees of one shape, taken as vectors.

    Of random ones with d entries it is about 1 / sqrt(d) in size: nearly orthogonal (the paper's section 4).

    Example:
      >>> cosine_similarity({"w": np.float32([3, 4])}, {"w": np.float32([0, 2])})
      0.8
    """
    return _dot(one, other) / math.sqrt(_dot(one, one) * _dot(other, other))


def _dot(one, other) -> float:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return math.fsum(float(np.vdot(np.float64(a), np.float64(b))) for a, b in pairs)
