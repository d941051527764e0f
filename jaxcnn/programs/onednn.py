"""Convolutions by oneDNN, which jaxlib for x86 CPUs has within it and does not call by itself."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

VERSIONS = ("0.10.2", "0.12.0")
"""Of jaxlib, beginnings: those whose reading of a call is known. Another would not refuse a call that it reads otherwise."""
PLAIN = "JAXCNN_PLAIN"
"""Environment variable: set it, and programs are left as JAX compiles them."""
OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
"""Compiler options for programs of such calls. XLA would order operations to run many at once; each call has all threads."""
NHWC = (0, 3, 1, 2)
"""Where an array has its batch, its features and its two axes of space; of a kernel: output features, input features, space."""
DTYPES = ("float32", "bfloat16")


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    out: jax.ShapeDtypeStruct,
    layout: Sequence[int],
    padding: Sequence[tuple[int, int]],
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
) -> jax.Array:
    """Correlate [b, h, w, c] with a kernel, as `jax.lax.conv_general_dilated` does; only where `available` says so.

    Args:
      x: float32 or bfloat16 [b, h, w, c].
      kernel: of the same dtype, its axes as `layout` says: (output features, input features, height, width).
      out: shape and dtype of the result, [b, h', w', features].
      layout: such as (3, 2, 0, 1) for [height, width, c, features].
      padding: zeros before and after, for both axes.
      stride: of the windows.
      dilation: of the kernel.
    """
    config = {
        "dims": "4",
        "feature_groups": "1",
        "input": {"data": _axes(NHWC, "batch_dim", "feature_dim")},
        "kernel": {"filter": _axes(layout, "output_feature_dim", "input_feature_dim")},
        "output": {"data": _axes(NHWC, "batch_dim", "feature_dim")},
        "window": {
            "pad_left": [str(before) for before, _ in padding],
            "pad_right": [str(after) for _, after in padding],
            "strides": [str(step) for step in stride],
            "window_dilations": [str(step) for step in dilation],
        },
    }
    said = json.dumps({"onednn_conv_config": config})
    call = jax.ffi.ffi_call("__onednn$convolution", out, custom_call_api_version=1, legacy_backend_config=said)
    return call(x, kernel)


def _axes(layout, first: str, second: str) -> dict[str, Any]:
    return {first: str(layout[0]), second: str(layout[1]), "spatial_dims": [str(axis) for axis in layout[2:]]}


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether `convolution` works on this CPU: x86, a known jaxlib, the right result, no user who wants it otherwise."""
    flags = os.environ.get("XLA_FLAGS", "")
    if os.environ.get(PLAIN) or "onednn" in flags or "ynn" in flags:
        return False
    known = version("jaxlib").startswith(VERSIONS) and platform.machine().lower() in ("x86_64", "amd64")
    return known and _right()


def _right() -> bool:
    """Whether one small convolution is that of JAX, of strides and paddings that tell every field of a call apart."""
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), "float32") for shape in ((2, 9, 7, 5), (3, 2, 5, 4)))
    window = {"padding": ((2, 0), (1, 1)), "stride": (2, 1), "dilation": (1, 2)}
    out = jax.ShapeDtypeStruct((2, 5, 7, 4), jnp.float32)
    try:
        with unkept():
            run = jax.jit(partial(convolution, out=out, layout=(3, 2, 0, 1), **window), compiler_options=OPTIONS)
            got = run(x, kernel)
    except Exception:
        return False
    layouts = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(x, kernel, (2, 1), ((2, 0), (1, 1)), None, (1, 2), layouts)
    return bool(np.allclose(got, expected, atol=1e-5))


@contextlib.contextmanager
def unkept() -> Iterator[None]:
    """Within it, nothing that is compiled is written to JAX's persistent cache: jaxlib cannot serialise calls of oneDNN."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)
