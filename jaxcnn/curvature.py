"""Curvature of a loss at a point, and noise of its gradient.

Curvature is measured by Hessian-vector products, and the Hessian is never formed. A loss is a
function `loss(params, *args) -> float32 []`. It is compiled once for each function object and set
of shapes. Define it once, and pass what changes from step to step (images, labels, other state) in
`args`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxcnn import cpu
from jaxcnn._util import tree_size
from jaxcnn.arguments import (
    ArgumentError,
    check_callable,
    check_integer,
    check_positive,
    check_random_key,
    format_value,
    is_iterator,
)

Loss = Callable[..., jax.Array]
"""Function `loss(params, *args) -> float32 []`."""


class RitzValues(NamedTuple):
    """Estimates of a spectrum by Lanczos.

    Attributes:
      values: estimates of eigenvalues, float64 [k], ascending; the outermost are the best.
      bounds: error bounds, float64 [k]. Within this distance of each value there is an eigenvalue,
        up to float32's rounding.
    """

    values: np.ndarray
    bounds: np.ndarray


class NoiseScale(NamedTuple):
    """Size and scatter of the gradient, and their ratio.

    The first two are estimated without bias, the ratio is not.

    Attributes:
      scale: noise scale in examples, tr(Sigma) / |G|^2. Far smaller batches average too little, far
        larger ones are wasted.
      squared_norm: |G|^2, of the gradient's expectation over examples; below zero where noise
        dominates.
      trace: tr(Sigma), the variance of one example's gradient, summed over the parameters.
    """

    scale: float
    squared_norm: float
    trace: float


def hessian_vector(loss: Loss, params: Any, vector: Any, *args: Any) -> Any:
    """Return the Hessian of `loss` at `params`, times `vector`.

    It is computed forward over reverse (Pearlmutter 1994), at the cost of two or three gradients.

    Args:
      loss: `loss(params, *args) -> float32 []`, twice differentiable.
      params: a tree of float32.
      vector: a tree like `params`, as is the result.
      args: passed to `loss`.

    Raises:
      ArgumentError: `loss` returns anything but one number.

    Example:
      >>> hessian_vector(lambda w: (w**3).sum(), np.float32([1, 2]), np.float32([1, 1])).tolist()
      [6.0, 12.0]
    """
    check_callable("loss", loss, "lambda params, *args: ...")

    def checked_loss(point):
        value = loss(point, *args)
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ArgumentError(
                f"loss returns {jnp.result_type(value)}{list(jnp.shape(value))}; expected one "
                "number, "
                "float32[]. Return the mean over the examples."
            )
        return value

    return jax.jvp(jax.grad(checked_loss), (params,), (vector,))[1]


@partial(jax.jit, static_argnums=0)
def _product(loss, params, flat, *args):
    def product(params, flat, *args):
        unravel = ravel_pytree(params)[1]
        return ravel_pytree(hessian_vector(loss, params, unravel(flat), *args))[0]

    return cpu.crop_negative_padding(product)(params, flat, *args)


def eigenvalues(
    loss: Loss, params: Any, *args: Any, key: jax.Array, iterations: int = 30
) -> RitzValues:
    """Return both ends of the Hessian's spectrum by Lanczos.

    The method is that of Golub & Van Loan, section 10.1.

    Args:
      loss: as in `hessian_vector`.
      params: as in `hessian_vector`, d numbers in all.
      args: passed to `loss`.
      key: draws the start.
      iterations: number of Hessian-vector products. At most d are made, and none past an
        invariant subspace, which contains every distinct eigenvalue.

    Returns:
      `RitzValues`, fewer than `iterations` where fewer products are made. They are a single nan
      where a product is not finite.

    Raises:
      ArgumentError: for no iterations, no parameters, or parameters other than float32.

    Example:
      >>> loss = lambda w: (np.float32([-2, 1, 3]) * w * w / 2).sum()
      >>> eigenvalues(loss, np.zeros(3, np.float32), key=jax.random.key(0)).values.round(4).tolist()
      [-2.0, 1.0, 3.0]
    """
    *_, last = _lanczos(
        loss, params, args, key, check_integer("iterations", iterations, example=30)
    )
    return last


def sharpness(
    loss: Loss,
    params: Any,
    *args: Any,
    key: jax.Array | None = None,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
) -> float:
    """Return the Hessian's largest eigenvalue, with its sign, by Lanczos.

    It is the sharpness of Cohen et al. 2021 (arXiv:2103.00065, section 2). Eigenvalues that are
    more negative do not count: gradient descent at rate r is unstable where the largest exceeds
    2 / r.

    Args:
      loss: as in `hessian_vector`; an example is `sharpness(loss, params, images, labels)`.
      params: as in `hessian_vector`.
      args: passed to `loss`.
      key: draws the start; None is `jax.random.key(0)`, so that the same call has the same result.
      tolerance: stop once an eigenvalue lies within tolerance * |value| of the value. As the value
        is a Rayleigh quotient, its error is about the square of that.
      max_iterations: limit of Hessian-vector products, whether or not the tolerance is met.

    Returns:
      The eigenvalue, or nan where a product is not finite.

    Raises:
      ArgumentError: as `eigenvalues`, and for a tolerance not above 0.

    Example:
      >>> loss = lambda w, c: (c * w * w / 2).sum()
      >>> round(sharpness(loss, np.zeros(3, np.float32), np.float32([-9, 1, 3])), 4)
      3.0
    """
    tolerance = check_positive("tolerance", tolerance, example="1e-3")
    key, value = jax.random.key(0) if key is None else key, math.nan
    max_iterations = check_integer("max_iterations", max_iterations, example=100)
    for ritz in _lanczos(loss, params, args, key, max_iterations):
        value = float(ritz.values[-1])
        if ritz.bounds[-1] <= tolerance * abs(value):
            break
    return value


def _lanczos(loss, params, args, key, max_iterations) -> Iterator[RitzValues]:
    """Yield the Ritz values after 1, 2, ... products.

    The loop is Python's, around one compiled product. Inside `lax.scan` or `while_loop`, XLA's CPU
    backend takes some 40 times as long for a convolution's weight gradient. The host's part is
    small next to a product. It works in float64, which keeps the basis orthogonal. Without that,
    copies of converged values appear (Paige 1972).
    """
    check_callable("loss", loss, "lambda params, *args: ...")
    key = check_random_key("key", key)
    size, rounding = _count_values(params), float(np.finfo(np.float32).eps)
    # Rows that are never written cost no memory.
    basis, alpha, beta = np.zeros((min(max_iterations, size), size)), [], []
    residual = np.asarray(jax.random.normal(key, (size,), "float32"), np.float64)
    for k in range(len(basis)):
        basis[k] = residual / np.linalg.norm(residual)
        residual = np.asarray(
            _product(loss, params, basis[k].astype(np.float32), *args), np.float64
        )
        if not np.isfinite(residual).all():
            yield RitzValues(np.array([np.nan]), np.array([np.nan]))
            return
        alpha.append(basis[k] @ residual)
        # Once leaves what rounding put in; twice is enough (Parlett 1998, section 6.9).
        for _ in range(2):
            residual = residual - (basis[: k + 1] @ residual) @ basis[: k + 1]
        beta.append(float(np.linalg.norm(residual)))
        tridiagonal = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
        values, vectors = np.linalg.eigh(tridiagonal)
        yield RitzValues(values, beta[-1] * abs(vectors[-1]))
        # The subspace is invariant: the residual is the product's rounding.
        if beta[-1] <= rounding * abs(values).max():
            return


def noise_scale(
    gradient: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any]
) -> NoiseScale:
    """Return the simple noise scale, tr(Sigma) / |G|^2.

    It is that of McCandlish et al. 2018 (arXiv:1812.06162, section 2.2, eq. 2.9). The mean gradient
    of b examples has E|g|^2 = |G|^2 + tr(Sigma) / b. The batches have one b, all of them together
    another, and the two equations are solved (appendix A.1). Examples must be drawn independently,
    and the gradient must be a mean over them. Batch normalization by the batch's own statistics
    breaks that.

    Args:
      gradient: `gradient(params, batch) -> tree`, the mean over the batch; compiled once for each
        function object.
      params: first argument of `gradient`.
      batches: at least two trees of arrays [b, ...], b the same in all; b = 1 wastes nothing but
        time.

    Returns:
      `NoiseScale`. Where noise dominates, the estimate of |G|^2 may be negative. Then `scale` is
      inf.

    Raises:
      ArgumentError: for fewer than two batches, or batches of different sizes.

    Example:
      >>> batches = np.float32([[[1]], [[3]]])
      >>> noise_scale(lambda w, x: w - x.mean(0), np.zeros(1, np.float32), batches)
      NoiseScale(scale=0.666..., squared_norm=3.0, trace=2.0)
    """
    sizes, total, squares = [], np.zeros(()), 0.0
    check_callable("gradient", gradient, "jax.grad(loss)")
    _count_values(params)
    if not isinstance(batches, Iterable) or getattr(batches, "shape", None) == ():
        raise ArgumentError(
            f"batches is {format_value(batches)}; expected several. Write batches=[first, second]."
        )
    for batch in batches:
        sizes.append(_batch_size(batch))
        if sizes[0] != sizes[-1]:
            raise ArgumentError(
                f"batches hold {sizes[0]} and {sizes[-1]} examples; expected one size: drop the "
                "odd one"
            )
        flat = np.asarray(_gradient(gradient, params, batch), np.float64)
        total, squares = total + flat, squares + float(flat @ flat)
    if len(sizes) < 2:
        raise ArgumentError(
            f"batches holds {len(sizes)}; expected at least two: write smaller ones, down to one "
            "example"
        )
    # The mean of |g|^2 over batches, and |g|^2 of all of them together.
    n, small, large = len(sizes), squares / len(sizes), float(total @ total) / len(sizes) ** 2
    trace, squared_norm = sizes[0] * n / (n - 1) * (small - large), (n * large - small) / (n - 1)
    scale = math.inf if squared_norm <= 0 else trace / squared_norm
    return NoiseScale(scale, squared_norm, trace)


def _batch_size(batch) -> int:
    leaves = jax.tree.leaves(batch)
    are_arrays = [
        isinstance(leaf, (np.ndarray, jax.Array)) and leaf.ndim and _is_numeric(leaf.dtype)
        for leaf in leaves
    ]
    if not leaves or not all(are_arrays) or len({len(leaf) for leaf in leaves}) > 1:
        raise ArgumentError(
            f"a batch is {format_value(batch)}; expected arrays of numbers with the examples "
            "first, as many in each. Write batches=[(images[:8], labels[:8]), "
            "(images[8:16], labels[8:16])]."
        )
    return len(leaves[0])


@partial(jax.jit, static_argnums=0)
def _gradient(gradient, params, batch):
    def flat_gradient(params, batch):
        tree = gradient(params, batch)
        _count_values(tree, "the gradient")
        return ravel_pytree(tree)[0]

    return cpu.crop_negative_padding(flat_gradient)(params, batch)


def _is_numeric(dtype) -> bool:
    return dtype.isnative and any(jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_))


def _count_values(tree, name: str = "params") -> int:
    """Return the number of float32 values in `tree`.

    Raises:
      ArgumentError: where the tree has anything else.
    """
    leaves = jax.tree.leaves(tree, is_leaf=is_iterator)
    leaves = [leaf for leaf in leaves if getattr(leaf, "size", 1)]
    kinds = {_kind(leaf) for leaf in leaves}
    if kinds != {"float32"}:
        content = format_value(", ".join(sorted(kinds)) or "nothing").strip("'")
        raise ArgumentError(
            f"{name} holds {content}; expected float32 arrays alone: hand anything else over in "
            "args"
        )
    return tree_size(leaves)


def _kind(leaf) -> str:
    is_array = isinstance(leaf, (np.ndarray, np.generic, jax.Array))
    is_array = is_array and not isinstance(leaf, np.ma.MaskedArray)
    return str(leaf.dtype) if is_array else type(leaf).__name__
