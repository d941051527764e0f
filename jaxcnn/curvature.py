"""Curvature of a loss at a point, by Hessian-vector products (the Hessian is never formed), and the gradient's noise.

A loss is a function `loss(params, *args) -> float32 []`. It is compiled once for each function object and set of shapes:
define it once, and let what changes from step to step (images, labels, other state) come in through `args`.
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


class RitzValues(NamedTuple):
    """What Lanczos has found of a spectrum."""

    values: np.ndarray
    """float64 [k], ascending: estimates of eigenvalues, the outermost the best."""
    bounds: np.ndarray
    """float64 [k]: within this distance of each there is an eigenvalue (up to float32's rounding)."""


class NoiseScale(NamedTuple):
    """The gradient's size and scatter, each estimated without bias, and their ratio (which is not without)."""

    scale: float
    """Examples: tr(Sigma) / |G|^2. Far smaller batches average too little, far larger ones are wasted."""
    squared_norm: float
    """|G|^2, of the gradient over all examples there could be; below zero where the noise drowns it."""
    trace: float
    """tr(Sigma): the variance of one example's gradient, summed over the parameters."""


def hessian_vector(loss: Loss, params: Any, vector: Any, *args: Any) -> Any:
    """The Hessian of `loss` at `params`, times `vector`: forward over reverse (Pearlmutter 1994), two or three gradients.

    Args:
      loss: `loss(params, *args) -> float32 []`, twice differentiable.
      params: a tree of float32.
      vector: a tree like `params`, as is the result.
      args: handed to `loss`.

    Example:
      >>> hessian_vector(lambda w: (w**3).sum(), np.float32([1, 2]), np.float32([1, 1])).tolist()
      [6.0, 12.0]
    """
    return jax.jvp(lambda at: jax.grad(loss)(at, *args), (params,), (vector,))[1]


@partial(jax.jit, static_argnums=0)
def _product(loss, params, flat, *args):
    unravel = ravel_pytree(params)[1]
    return ravel_pytree(hessian_vector(loss, params, unravel(flat), *args))[0]


def eigenvalues(loss: Loss, params: Any, *args: Any, key: jax.Array, iterations: int = 30) -> RitzValues:
    """Both ends of the Hessian's spectrum, by `iterations` steps of Lanczos (Golub & Van Loan, section 10.1).

    Args:
      loss, params, args: as in `hessian_vector`, d parameters in all.
      key: draws the start.
      iterations: products to spend. No more than d are made, nor any past an invariant subspace, which holds every
        eigenvalue that differs from the others; so fewer values may come back (and one nan where one is not finite).

    Raises:
      ArgumentError: for no iterations, no parameters, or parameters other than float32.

    Example:
      >>> loss = lambda w: (np.float32([-2, 1, 3]) * w * w / 2).sum()
      >>> eigenvalues(loss, np.zeros(3, np.float32), key=jax.random.key(0)).values.round(4).tolist()
      [-2.0, 1.0, 3.0]
    """
    *_, last = _lanczos(loss, params, args, key, check_integer("iterations", iterations, example=30))
    return last


def sharpness(
    loss: Loss, params: Any, *args: Any, key: jax.Array | None = None, tolerance: float = 1e-3, most: int = 100
) -> float:
    """The Hessian's largest eigenvalue, with its sign (Cohen et al. 2021, arXiv:2103.00065, section 2), by Lanczos.

    A more negative one does not count: gradient descent at rate r is unstable where the largest exceeds 2 / r.

    Args:
      loss, params, args: as in `hessian_vector`: `sharpness(loss, params, images, labels)`.
      key: draws the start; None is `jax.random.key(0)`, so that the same call has the same result.
      tolerance: stop once an eigenvalue lies within tolerance * |value| of the value. (Being a Rayleigh quotient, the
        value errs by about the square of that.)
      most: products to spend at most, tolerance met or not. The result is nan where one is not finite.

    Raises:
      ArgumentError: as `eigenvalues`, and for a tolerance not above 0.

    Example:
      >>> loss = lambda w, c: (c * w * w / 2).sum()
      >>> round(sharpness(loss, np.zeros(3, np.float32), np.float32([-9, 1, 3])), 4)
      3.0
    """
    tolerance = check_positive("tolerance", tolerance, example="1e-3")
    key, value = jax.random.key(0) if key is None else key, math.nan
    for ritz in _lanczos(loss, params, args, key, check_integer("most", most, example=100)):
        value = float(ritz.values[-1])
        if ritz.bounds[-1] <= tolerance * abs(value):
            break
    return value


def _lanczos(loss, params, args, key, most) -> Iterator[RitzValues]:
    """The Ritz values after 1, 2, ... products.

    The loop is Python's, around one compiled product: inside `lax.scan` or `while_loop`, XLA's CPU backend takes some
    40 times as long for a convolution's weight gradient. What is left to the host is small beside a product, and in
    float64 it keeps the basis orthogonal, without which copies of converged values come back (Paige 1972).
    """
    check_callable("loss", loss, "lambda params, *args: ...")
    key = check_random_key("key", key)
    size, rounding = _size(params), float(np.finfo(np.float32).eps)
    basis, alpha, beta = np.zeros((min(most, size), size)), [], []  # untouched rows cost no memory
    rest = np.asarray(jax.random.normal(key, (size,), "float32"), np.float64)
    for k in range(len(basis)):
        basis[k] = rest / np.linalg.norm(rest)
        rest = np.asarray(_product(loss, params, basis[k].astype(np.float32), *args), np.float64)
        if not np.isfinite(rest).all():
            yield RitzValues(np.array([np.nan]), np.array([np.nan]))
            return
        alpha.append(basis[k] @ rest)
        for _ in range(2):  # once leaves what rounding put in; twice is enough (Parlett 1998, section 6.9)
            rest = rest - (basis[: k + 1] @ rest) @ basis[: k + 1]
        beta.append(float(np.linalg.norm(rest)))
        values, vectors = np.linalg.eigh(np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1))
        yield RitzValues(values, beta[-1] * abs(vectors[-1]))
        if beta[-1] <= rounding * abs(values).max():  # invariant: what is left is the product's rounding
            return


def noise_scale(gradient: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any]) -> NoiseScale:
    """The simple noise scale, tr(Sigma) / |G|^2 (McCandlish et al. 2018, arXiv:1812.06162, section 2.2, eq. 2.9).

    The mean gradient of b examples has E|g|^2 = |G|^2 + tr(Sigma) / b. Each batch by itself is one b, all of them
    together another, and the two equations are solved (appendix A.1). That takes examples drawn independently and a
    gradient that is a mean over them: batch normalisation by the batch's own statistics breaks it.

    Args:
      gradient: `gradient(params, batch) -> tree`, the mean over the batch; compiled once for each function object.
      params: what `gradient` takes.
      batches: at least two trees of arrays [b, ...], b the same in all; b = 1 wastes nothing but time.

    Returns:
      `NoiseScale`. Where noise dominates, the estimate of |G|^2 may come out negative; then `scale` is inf.

    Raises:
      ArgumentError: for fewer than two batches, or batches of different sizes.

    Example:
      >>> noise_scale(lambda w, x: w - x.mean(0), np.zeros(1, np.float32), np.float32([[[1]], [[3]]]))
      NoiseScale(scale=0.666..., squared_norm=3.0, trace=2.0)
    """
    sizes, total, squares = [], np.zeros(()), 0.0
    check_callable("gradient", gradient, "jax.grad(loss)")
    _size(params)
    if not isinstance(batches, Iterable) or getattr(batches, "shape", None) == ():
        raise ArgumentError(f"batches is {format_value(batches)}; expected several. Write batches=[first, second].")
    for batch in batches:
        sizes.append(_examples(batch))
        if sizes[0] != sizes[-1]:
            raise ArgumentError(
                f"batches hold {sizes[0]} and {sizes[-1]} examples; expected one size: drop the odd one"
            )
        flat = np.asarray(_gradient(gradient, params, batch), np.float64)
        total, squares = total + flat, squares + float(flat @ flat)
    if len(sizes) < 2:
        raise ArgumentError(
            f"batches holds {len(sizes)}; expected at least two: write smaller ones, down to one example"
        )
    n, small, large = len(sizes), squares / len(sizes), float(total @ total) / len(sizes) ** 2
    trace, squared = sizes[0] * n / (n - 1) * (small - large), (n * large - small) / (n - 1)
    return NoiseScale(math.inf if squared <= 0 else trace / squared, squared, trace)


def _examples(batch) -> int:
    leaves = jax.tree.leaves(batch)
    plain = [isinstance(leaf, (np.ndarray, jax.Array)) and leaf.ndim and _is_numeric(leaf.dtype) for leaf in leaves]
    if not leaves or not all(plain) or len({len(leaf) for leaf in leaves}) > 1:
        raise ArgumentError(
            f"a batch is {format_value(batch)}; expected arrays of numbers with the examples first, as many in each. "
            "Write batches=[(images[:8], labels[:8]), (images[8:16], labels[8:16])]."
        )
    return len(leaves[0])


@partial(jax.jit, static_argnums=0)
def _gradient(gradient, params, batch):
    found = gradient(params, batch)
    _size(found, "the gradient")
    return ravel_pytree(found)[0]


def _is_numeric(dtype) -> bool:
    return dtype.isnative and any(jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_))


def _size(tree, what: str = "params") -> int:
    """The number of float32 values in `tree`; ArgumentError where anything else is in it."""
    leaves = [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_iterator) if getattr(leaf, "size", 1)]
    kinds = {_kind(leaf) for leaf in leaves}
    if kinds != {"float32"}:
        held = format_value(", ".join(sorted(kinds)) or "nothing").strip("'")
        raise ArgumentError(f"{what} holds {held}; expected float32 arrays alone: hand anything else over in args")
    return sum(leaf.size for leaf in leaves)


def _kind(leaf) -> str:
    plain = isinstance(leaf, (np.ndarray, np.generic, jax.Array)) and not isinstance(leaf, np.ma.MaskedArray)
    return str(leaf.dtype) if plain else type(leaf).__name__
