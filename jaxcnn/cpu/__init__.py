"""Programs rewritten for an x86 CPU.

A program (a jaxpr) is read after tracing and evaluated with other operations instead of some:
oneDNN's fast convolutions, and gradients of max pooling that use all threads. Other packages import
from this one alone, not from its modules. `optimized` takes a function and returns one with the
same results up to rounding, so that no other package needs to know which operations are replaced.
`rewriting` has the general mechanism, `convolution` and `pooling` have the rules, and `onednn` has
the calls.

`parallel` uses it by default for long runs on an x86 CPU. A step of ResNet-20 took 0.56 of the time
of the plain program, and one of VGG-11 at 32x32 0.12: two cores of an Intel Xeon, 2026-11-22, in
`experiments/results/benchmark/tried.md`.

It is worth having only while the numbers are XLA's up to rounding. Three checks guard them:

- `onednn.proven` lists the geometries that are rewritten, and XLA keeps the others.
- `available` computes ten of them, near the limits of the list, in each process before the first
  is rewritten.
- `tests/cpu/test_rewriting_property.py` compares random programs, their gradients and second
  derivatives with XLA's.

`JAXCNN_PLAIN=1` turns it off.

A program is compiled with `OPTIONS`, within `without_persistent_cache`. `rewrite` applies any rule
that returns a `Replacement`, and `count_matches` counts where it applies. `crop_negative_padding`
replaces only what XLA for CPUs computes wrongly.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from jaxcnn.cpu import convolution, pooling
from jaxcnn.cpu.onednn import OPTIONS, available, without_persistent_cache
from jaxcnn.cpu.rewriting import Replacement, count_matches, rewrite

__all__ = [
    "OPTIONS",
    "Replacement",
    "available",
    "count_matches",
    "crop_negative_padding",
    "optimized",
    "rewrite",
    "without_persistent_cache",
]


def optimized(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with operations that are slow on a CPU replaced.

    The result is for `jax.jit`. Two-dimensional convolutions are oneDNN's where the geometry is
    `onednn.proven`, the same up to rounding (1e-5). Gradients of overlapping max pooling are sums
    over the windows of a pixel, the same to the bit. Apply it last, outside `jax.grad`, and only
    where `available()`. Compile the result within `without_persistent_cache()` if JAX's persistent
    compilation cache is on.

    Args:
      function: of any arrays.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxcnn.cpu import available, without_persistent_cache
      >>> x, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
      >>> layout = ("NHWC", "HWIO", "NHWC")
      >>> def f(x):
      ...     conv = jax.lax.conv_general_dilated
      ...     return conv(x, kernel, (1, 1), "SAME", dimension_numbers=layout).sum()
      >>> gradient = jax.grad(f)
      >>> with without_persistent_cache():
      ...     float(jax.jit(optimized(gradient) if available() else gradient)(x)[0, 0, 0, 0])
      16.0
    """
    return rewrite(
        function,
        lambda eqn: convolution.rule(eqn) or convolution.crop_rule(eqn) or pooling.rule(eqn),
        loop_rule=lambda eqn: (
            convolution.rule(eqn, min_channels=1) or convolution.crop_rule(eqn) or pooling.rule(eqn)
        ),
    )


def crop_negative_padding(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with negative padding of convolutions replaced by a crop.

    The results are the same by definition. XLA for CPUs of jaxlib 0.10 reads memory beyond the
    image for some of these convolutions, and their results are then arbitrary. Version 0.12 does
    not, and the function is returned as it is. Apply it outside `jax.grad`: a gradient with respect
    to images has negative padding if a convolution is padded by the size of its kernel or more.

    Args:
      function: of any arrays.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def f(x, kernel):
      ...     return jax.lax.conv_general_dilated(x, kernel, (1,), [(-1, 1)])
      >>> crop_negative_padding(f)(jnp.arange(4.0).reshape(1, 1, 4), jnp.ones((1, 1, 2))).tolist()
      [[[3.0, 5.0, 3.0]]]
    """
    return rewrite(function, convolution.crop_rule) if _reads_beyond_images() else function


def _reads_beyond_images() -> bool:
    return tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 12)
