"""`tuned`: a function as it is fastest on an x86 CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxcnn.cpu import convolution, pooling
from jaxcnn.cpu.rewriting import rewrite


def optimized(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, of any arrays, with operations that are slow on a CPU done otherwise; for `jax.jit`.

    Two-dimensional convolutions are oneDNN's where the geometry is `onednn.proven`, the same up to rounding (1e-5); gradients
    of overlapping max pooling are sums over the windows of a pixel, the same to the bit. Take it last, outside `jax.grad`.
    Only where `available()`; compile it within `without_persistent_cache()` if JAX's persistent compilation cache is on.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxcnn.cpu import available, without_persistent_cache
      >>> x, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
      >>> f = lambda x: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> gradient = jax.grad(lambda x: f(x).sum())
      >>> with without_persistent_cache():  # XLA cannot write oneDNN's convolutions to JAX's cache of programs
      ...     float(jax.jit(optimized(gradient) if available() else gradient)(x)[0, 0, 0, 0])
      16.0
    """
    return rewrite(
        function,
        lambda eqn: convolution.rule(eqn) or pooling.rule(eqn),
        looped=lambda eqn: convolution.rule(eqn, narrow=1) or pooling.rule(eqn),
    )
