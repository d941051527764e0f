"""`tuned`: a function as it is fastest on an x86 CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxcnn.programs import convolution, pooling
from jaxcnn.programs.replacing import found, replaced


def tuned(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, of any arrays, with operations that are slow on a CPU done otherwise; for `jax.jit`.

    Two-dimensional convolutions are oneDNN's where the geometry is `onednn.proven`, the same up to rounding (1e-5); gradients
    of overlapping max pooling are sums over the windows of a pixel, the same to the bit. Take it last, outside `jax.grad`.
    Only where `available()`; compile it within `unkept()` if JAX's persistent compilation cache is on.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxcnn.programs import available, unkept
      >>> x, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
      >>> f = lambda x: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> gradient = jax.grad(lambda x: f(x).sum())
      >>> with unkept():  # XLA cannot write oneDNN's convolutions to JAX's cache of programs
      ...     float(jax.jit(tuned(gradient) if available() else gradient)(x)[0, 0, 0, 0])
      16.0
    """
    return replaced(
        function,
        lambda eqn: convolution.rule(eqn) or convolution.cropping(eqn) or pooling.rule(eqn),
        looped=lambda eqn: convolution.rule(eqn, narrow=1) or convolution.cropping(eqn) or pooling.rule(eqn),
    )


def negative(program: Any) -> bool:
    """Tell whether a program (a jaxpr) has convolutions with negative padding, which XLA for CPUs may compute wrongly.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> f = lambda x, padding: jax.lax.conv_general_dilated(x, jnp.ones((1, 1, 2)), (1,), [padding])
      >>> [negative(jax.make_jaxpr(lambda x, p=p: f(x, p))(jnp.ones((1, 1, 9)))) for p in [(0, 1), (-1, 1)]]
      [False, True]
    """
    return found(program, convolution.cropping) > 0


def nonnegative(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with each convolution's negative padding done as a crop, which is the same and which XLA computes right."""
    return replaced(function, convolution.cropping)
