"""Convolutions by oneDNN, which jaxlib for x86 CPUs contains.

jaxlib does not call them by itself.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn._util import PLAIN

VERSIONS = ("0.10.2", "0.12.0")
"""Prefixes of the jaxlib versions whose interpretation of a call is known.

Another version may interpret a call differently without an error.
"""
OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
"""Compiler options for programs with oneDNN calls.

XLA's default order runs many operations at once, but each call uses all threads.
"""
NHWC = (0, 3, 1, 2)
"""Axes of an array: batch, features and the two axes of space.

The same order holds for a kernel: output features, input features, space.
"""
DTYPES = ("float32", "bfloat16")
"""Dtypes that oneDNN convolves."""
BFLOAT16 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}
"""CPU flags that bfloat16 needs.

On a CPU without them oneDNN ends the process instead of raising an error.
"""
MIN_CHANNELS = 8
"""Input channels below which oneDNN may copy the image.

It copies it into another layout for AVX-512 and AMX.
"""
MIN_WIDTH = 5
"""Minimum height and width of the result of one channel.

Below it oneDNN copies in another way, with AVX-512.
"""


class Geometry(NamedTuple):
    """Geometry of a two-dimensional convolution of one group; pairs are (height, width).

    Attributes:
      channels: input channels.
      image: size of the image without padding.
      kernel: size of the kernel without dilation.
      padding: number of zeros before and after, for both axes.
      stride: stride of the windows.
      dilation: dilation of the kernel.
    """

    channels: int
    image: tuple[int, int]
    kernel: tuple[int, int]
    padding: Sequence[tuple[int, int]]
    stride: Sequence[int] = (1, 1)
    dilation: Sequence[int] = (1, 1)

    @property
    def reach(self) -> tuple[int, ...]:
        """Return the size of the dilated kernel."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def out(self) -> tuple[int, ...]:
        """Return the size of the result."""
        axes = zip(self.image, self.padding, self.reach, self.stride, strict=True)
        return tuple(
            (n + before + after - reach) // step + 1 for n, (before, after), reach, step in axes
        )


def proven(geometry: Geometry) -> bool:
    """Return whether oneDNN is known to compute this convolution correctly.

    This is a list of what is allowed. It covers the networks of this library and their gradients.
    All other convolutions are left to XLA. `tests/cpu/test_rewriting_property.py` compares random
    members with XLA. These are excluded:

    - One channel, unless it has no strides or dilation, the image is as large as the kernel and the
      result has `MIN_WIDTH` pixels or more in both axes. Otherwise oneDNN for AVX-512 may copy
      parts of rows next to each other. It then reads wrong rows and memory beyond the image
      (versions 3.7.3 and 3.12.3, those of both jaxlibs).
    - With strides, results one pixel wide of 1x1 kernels or of fewer channels than `MIN_CHANNELS`.
      The same copying is used for some of them.
    - Strides larger than the kernel, unless it is 1x1. oneDNN up to 3.13 reserves too little memory
      for them with AMX.
    - Padding as wide as the kernel or wider, negative padding, and strides together with dilation.
      No network needs them here.
    """
    channels, image, kernel, padding, stride, dilation = geometry
    reach, out = geometry.reach, geometry.out
    if min(channels, *image, *kernel, *out) < 1:
        return False
    edges = zip(padding, reach, strict=True)
    if any(not 0 <= edge < size for sides, size in edges for edge in sides):
        return False
    if channels == 1:
        covers_kernel = all(k <= n for k, n in zip(kernel, image, strict=True))
        is_large = covers_kernel and min(out) >= MIN_WIDTH
        return is_large and min(kernel) > 1 and tuple(stride) == tuple(dilation) == (1, 1)
    if tuple(stride) == (1, 1):
        return True
    is_1x1 = tuple(kernel) == (1, 1)
    is_dense = is_1x1 or all(step <= k for step, k in zip(stride, kernel, strict=True))
    is_wide = min(out) > 1 or (channels >= MIN_CHANNELS and not is_1x1)
    return is_dense and tuple(dilation) == (1, 1) and is_wide


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    out: jax.ShapeDtypeStruct,
    layout: Sequence[int],
    padding: Sequence[tuple[int, int]],
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
) -> jax.Array:
    """Correlate [b, h, w, c] with a kernel, as `jax.lax.conv_general_dilated` does.

    It may be called only where `available` returns True.

    Args:
      x: float32 or bfloat16 [b, h, w, c].
      kernel: of the same dtype.
      out: shape and dtype of the result, [b, h', w', features].
      layout: axes of the kernel's output features, input features, height and width, such as
        (3, 2, 0, 1) for [height, width, c, features].
      padding: number of zeros before and after, for both axes.
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
    backend_config = json.dumps({"onednn_conv_config": config})
    call = jax.ffi.ffi_call(
        "__onednn$convolution",
        out,
        custom_call_api_version=1,
        legacy_backend_config=backend_config,
    )
    return call(x, kernel)


def _axes(layout, first: str, second: str) -> dict[str, Any]:
    spatial = [str(axis) for axis in layout[2:]]
    return {first: str(layout[0]), second: str(layout[1]), "spatial_dims": spatial}


@cache
def available(dtype: str = "float32") -> bool:
    """Return whether `convolution` works on this CPU.

    It needs an x86 CPU, a known jaxlib, and correct results for `PROBES`. `JAXCNN_PLAIN` and XLA
    flags with "onednn" or "ynn" turn it off. For bfloat16 the CPU must have instructions of its
    own.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if os.environ.get(PLAIN) or "onednn" in flags or "ynn" in flags:
        return False
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    is_known = version("jaxlib").startswith(VERSIONS) and is_x86
    has_dtype = is_known and (dtype == "float32" or (_has_bfloat16() and available()))
    return has_dtype and _probes_are_correct(dtype)


def _has_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Return whether oneDNN has bfloat16 on this CPU, by the CPU's flags.

    A call without support would abort the process.
    """
    if any(name in os.environ for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")):
        return False
    try:
        lines = Path(cpuinfo).read_text().splitlines()
    except OSError:
        return False
    return set(next((line.split() for line in lines if line.startswith("flags")), ())) >= BFLOAT16


PROBES = (
    # Probes that differ in each field of a call.
    (2, Geometry(5, (9, 7), (3, 2), ((2, 0), (1, 0)), (2, 1)), 4),
    (2, Geometry(5, (9, 7), (3, 2), ((2, 0), (1, 1)), (1, 1), (1, 2)), 4),
    # One channel, a narrow result.
    (3, Geometry(1, (12, 9), (5, 5), ((0, 0), (0, 0))), 6),
    # Few channels with strides.
    (2, Geometry(3, (16, 9), (7, 7), ((3, 3), (3, 3)), (2, 2)), 8),
    (2, Geometry(3, (16, 4), (3, 3), ((1, 1), (0, 1)), (1, 2)), 8),
    # An image smaller than the kernel.
    (2, Geometry(17, (2, 2), (3, 3), ((1, 1), (1, 1))), 9),
    # The same with strides, the result one pixel.
    (3, Geometry(9, (9, 9), (11, 11), ((2, 2), (2, 2)), (4, 4)), 7),
    # Strides larger than the kernel.
    (2, Geometry(24, (8, 7), (1, 1), ((0, 0), (0, 0)), (2, 2)), 12),
    # One column.
    (4, Geometry(8, (6, 1), (3, 1), ((2, 2), (0, 0))), 1),
    # A weight gradient: a large kernel.
    (1, Geometry(5, (16, 24), (8, 8), ((2, 2), (3, 3)), (1, 1), (2, 3)), 8),
)
"""Convolutions near the limits of `proven` that `available` computes.

Each is (batch, geometry, output features).
"""


def _probes_are_correct(dtype: str) -> bool:
    """Return whether the convolutions of `PROBES` are correct, twice.

    Memory beyond an image would have different numbers each time.
    """
    rng = np.random.default_rng(0)
    calls, operands = [], []
    for batch, geometry, features in PROBES:
        image_shape = (batch, *geometry.image, geometry.channels)
        shapes = image_shape, (*geometry.kernel, geometry.channels, features)
        # Arrays of NumPy: those of JAX have no values while a program is traced.
        operands.append([rng.normal(size=shape).astype(jnp.dtype(dtype)) for shape in shapes])
        calls.append((geometry, jax.ShapeDtypeStruct((batch, *geometry.out, features), dtype)))

    def run(operands):
        return [
            convolution(
                x, kernel, out, (3, 2, 0, 1), geometry.padding, geometry.stride, geometry.dilation
            )
            for (geometry, out), (x, kernel) in zip(calls, operands, strict=True)
        ]

    # Whatever fails here, XLA's convolutions still work.
    try:
        with without_persistent_cache(), jax.ensure_compile_time_eval():
            program = jax.jit(run, compiler_options=OPTIONS)
            runs = [jax.device_get(program(operands)) for _ in range(2)]
    except Exception:
        return False
    expected = [
        _reference(geometry, x, kernel)
        for (geometry, _), (x, kernel) in zip(calls, operands, strict=True)
    ]
    tolerance = 1e-5 if dtype == "float32" else 2**-7
    return all(
        np.allclose(np.float64(a), b, rtol=0, atol=tolerance * np.abs(b).max())
        for results in runs
        for a, b in zip(results, expected, strict=True)
    )


def _reference(geometry: Geometry, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return the same convolution by NumPy, in float64."""
    (down, across), (rows, columns) = geometry.stride, geometry.out
    x_padded = np.pad(x.astype(np.float64), ((0, 0), *geometry.padding, (0, 0)))
    weights = kernel.astype(np.float64)
    total = np.zeros((len(x), rows, columns, kernel.shape[3]))
    for i, j in np.ndindex(*geometry.kernel):
        top, left = i * geometry.dilation[0], j * geometry.dilation[1]
        bottom, right = top + (rows - 1) * down + 1, left + (columns - 1) * across + 1
        view = x_padded[:, top:bottom:down, left:right:across]
        total += view @ weights[i, j]
    return total


@contextlib.contextmanager
def without_persistent_cache() -> Iterator[None]:
    """Write no compiled program to JAX's persistent cache within this context.

    jaxlib cannot serialize calls of oneDNN. The setting belongs to the process. While several
    threads are within, the first saves it and the last restores it.
    """
    global _thread_count, _saved_setting
    name = "jax_persistent_cache_min_compile_time_secs"
    with _lock:
        if not _thread_count:
            _saved_setting = jax.config.values[name]
            jax.config.update(name, math.inf)
        _thread_count += 1
    try:
        yield
    finally:
        with _lock:
            _thread_count -= 1
            if not _thread_count:
                jax.config.update(name, _saved_setting)


_lock = threading.Lock()
_thread_count = 0
"""Number of threads within `without_persistent_cache`."""
_saved_setting: Any = None
"""Setting of the process before the first of them."""
