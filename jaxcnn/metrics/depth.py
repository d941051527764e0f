"""Errors of predicted depths."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn._util import is_abstract
from jaxcnn.arguments import ArgumentError, format_array, format_value


class DepthErrors(NamedTuple):
    """Errors of predicted depths y, of true depths y*.

    All but `scale_invariant` are over all pixels together.

    Attributes:
      abs_rel: absolute relative error, the mean of |y - y*| / y*.
      rmse: root of the mean squared error, in the unit of the depths.
      rmse_log: root of the mean squared error of log depth.
      scale_invariant: root of the mean over images of the scale-invariant error of log depth (Eigen
        et al. 2014, arXiv:1406.2283, equation 3). No factor on all depths of an image changes it.
      delta1: share of pixels with max(y / y*, y* / y) < 1.25, in 0..1.
      delta2: the same for 1.25^2.
      delta3: the same for 1.25^3.
    """

    abs_rel: float
    rmse: float
    rmse_log: float
    scale_invariant: float
    delta1: float
    delta2: float
    delta3: float


def depth_errors(predicted: Any, depth: Any, *, median_scaling: bool = False) -> DepthErrors:
    """Return errors of predicted depths.

    They are those of Eigen et al. 2014 (arXiv:1406.2283), table 1.

    Args:
        predicted: depths y, float [n, h, w], above 0.
        depth: true depths y*, float [n, h, w]. Pixels whose depth is not a finite number above 0
            have no truth and are left out.
        median_scaling: first multiply the depths of each image by the ratio of the true and the
            predicted median (Zhou et al. 2017, arXiv:1704.07813, section 4.1).

    Returns:
        `DepthErrors`.

    Raises:
        ArgumentError: shapes or types are others, no pixel has a true depth, or a prediction of one
            that has is not a finite number above 0.

    Example:
        >>> errors = depth_errors(np.array([[[2.0, 4.0]]]), np.array([[[1.0, 2.0]]]))
        >>> errors.abs_rel, errors.delta1, errors.scale_invariant
        (1.0, 0.0, 0.0)
        >>> depth_errors(
        ...     np.array([[[2.0, 4.0]]]), np.array([[[1.0, 2.0]]]), median_scaling=True
        ... ).abs_rel
        0.0
    """
    arrays = {"predicted": predicted, "depth": depth}
    for name, values in arrays.items():
        is_array = isinstance(values, (np.ndarray, jax.Array)) and not is_abstract(values)
        if not is_array or values.ndim != 3 or not jnp.issubdtype(values.dtype, jnp.floating):
            found = format_array(values) if is_array else format_value(values)
            raise ArgumentError(
                f"{name} is {found}; expected depths, float [n, h, w]. "
                f"Write {name}=depth.astype('float32')."
            )
    if predicted.shape != depth.shape:
        raise ArgumentError(
            f"predicted is of shape {predicted.shape} and depth {depth.shape}; expected the same. "
            "Write predicted=np.exp(log_depth[..., 0])."
        )
    own, truth = (np.asarray(values).astype(np.float64) for values in arrays.values())
    valid = np.isfinite(truth) & (truth > 0)
    if not valid.any():
        raise ArgumentError(
            "depth has no pixel with a true depth; expected a finite number above 0 in at least "
            "one. Write depth=np.ones((1, 4, 4), 'float32')."
        )
    if not (np.isfinite(own[valid]) & (own[valid] > 0)).all():
        raise ArgumentError(
            "predicted has values that are not depths; expected finite numbers above 0. "
            "Write predicted=np.exp(log_depth)."
        )
    if median_scaling:
        factors = [
            np.median(truth[i][valid[i]]) / np.median(own[i][valid[i]]) if valid[i].any() else 1.0
            for i in range(len(own))
        ]
        own = own * np.reshape(factors, (-1, 1, 1))
    safe_own, safe_truth = np.where(valid, own, 1.0), np.where(valid, truth, 1.0)
    difference = np.log(safe_own) - np.log(safe_truth)
    counts = valid.sum((1, 2))
    means = difference.sum((1, 2)) / np.maximum(counts, 1)
    centered = np.where(valid, difference - means[:, None, None], 0.0)
    invariant = np.square(centered).sum((1, 2))[counts > 0] / counts[counts > 0]
    y, y_true = own[valid], truth[valid]
    ratio = np.maximum(y / y_true, y_true / y)
    return DepthErrors(
        abs_rel=float(np.mean(np.abs(y - y_true) / y_true)),
        rmse=float(np.sqrt(np.mean(np.square(y - y_true)))),
        rmse_log=float(np.sqrt(np.mean(np.square(difference[valid])))),
        scale_invariant=float(np.sqrt(invariant.mean())),
        delta1=float(np.mean(ratio < 1.25)),
        delta2=float(np.mean(ratio < 1.25**2)),
        delta3=float(np.mean(ratio < 1.25**3)),
    )
