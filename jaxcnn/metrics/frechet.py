"""Frechet distance of the features of two sets of images."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from jaxcnn._util import is_abstract
from jaxcnn.arguments import ArgumentError, format_array, format_value


def frechet_distance(features_a: Any, features_b: Any) -> float:
    """Compute the Frechet distance of two sets of features, as Gaussians.

    It is |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) with the means and the unbiased
    covariances of the sets. With the features of an Inception network it is known as FID. The value
    depends on the network and, since covariances are estimated, on the numbers of samples: compare
    only values of the same ones.

    No square root of a matrix is computed. The last trace is the sum of the singular values of
    R_a R_b^T, where R^T R are the covariances and R comes from the centered features by a QR
    decomposition. So it is accurate for singular covariances too.

    Args:
        features_a: numbers [n, d], n > 1, a row for each sample.
        features_b: numbers [m, d], m > 1.

    Returns:
        The squared distance, at least 0, in the squared unit of the features.

    Raises:
        ArgumentError: there are too few samples, the widths differ, features are no finite
            numbers or are traced, or the distance is above the greatest float.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(100, 3))
        >>> round(frechet_distance(features, features + np.array([[1.0, 2.0, 0.0]])), 6)
        5.0

    References:
        Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local Nash
        equilibrium" (arXiv:1706.08500), equation 6.
    """
    a = _to_features("features_a", features_a)
    b = _to_features("features_b", features_b)
    if a.shape[1] != b.shape[1]:
        raise ArgumentError(
            f"features_a have {a.shape[1]} columns and features_b {b.shape[1]}; expected as many. "
            "Use one layer of one network for both."
        )
    # Squares of large numbers overflow. A power of two changes no digit.
    exponent = math.frexp(max(float(np.abs(x).max()) for x in (a, b)))[1]
    a, b = np.ldexp(a, -exponent), np.ldexp(b, -exponent)
    root_a, root_b = (
        np.asarray(np.linalg.qr(x - x.mean(0, keepdims=True), mode="r")) / math.sqrt(len(x) - 1)
        for x in (a, b)
    )
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    between = np.square(a.mean(0) - b.mean(0)).sum()
    distance = between + np.square(root_a).sum() + np.square(root_b).sum() - 2 * overlap
    try:
        return math.ldexp(max(float(distance), 0.0), 2 * exponent)
    except OverflowError:
        raise ArgumentError(
            f"features are of the size of 2^{exponent}, so that the distance is above the greatest "
            "float; expected smaller ones. Divide both by one number."
        ) from None


def _to_features(name: str, values: Any) -> np.ndarray:
    """Return features of samples, float64 [n, d].

    Raises:
        ArgumentError: they are anything else, or of fewer than two samples.
    """
    is_array = isinstance(values, (np.ndarray, jax.Array)) and values.dtype != object
    # Of bfloat16, which is not NumPy's own type, the kind is "V". Types of keys have none.
    kind = getattr(values.dtype, "kind", "") if is_array else ""
    is_numeric = is_array and (kind in tuple("iuf") or values.dtype.name == "bfloat16")
    advice = "Write a row of numbers for each image, such as the outputs of a network's layer."
    if is_array and is_abstract(values):
        raise ArgumentError(
            f"{name} is traced, an array {values.dtype} {values.shape} without numbers; expected "
            "numbers. Call this outside jax.jit."
        )
    if (
        not is_numeric
        or isinstance(values, np.ma.MaskedArray)
        or values.ndim != 2
        or 0 in values.shape[1:]
    ):
        found = format_array(values) if is_array else format_value(values)
        raise ArgumentError(f"{name} is {found}; expected numbers [n, d]. {advice}")
    if len(values) < 2:
        raise ArgumentError(
            f"{name} has {len(values)} samples; expected at least 2, and many more than the "
            f"{values.shape[1]} columns. {advice}"
        )
    array = np.asarray(values).astype(np.float64)
    if not np.isfinite(array).all():
        raise ArgumentError(
            f"{name} has values that are not finite; expected finite ones. {advice}"
        )
    return array
