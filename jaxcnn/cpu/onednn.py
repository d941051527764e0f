"""Convolutions by oneDNN, which jaxlib for x86 CPUs has within it and does not call by itself."""

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

VERSIONS = ("0.10.2", "0.12.0")
"""Of jaxlib, beginnings: those whose reading of a call is known. Another would not refuse a call that it reads otherwise."""
PLAIN = "JAXCNN_PLAIN"
"""Environment variable: set it, and programs are left as JAX compiles them."""
OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
"""Compiler options for programs of such calls. XLA would order operations to run many at once; each call has all threads."""
NHWC = (0, 3, 1, 2)
"""Where an array has its batch, its features and its two axes of space; of a kernel: output features, input features, space."""
DTYPES = ("float32", "bfloat16")
BFLOAT16 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}
"""CPU flags that bfloat16 needs: on a CPU without them oneDNN ends the process instead of raising an error."""
FEW = 8
"""Input channels below which oneDNN may copy the image into another layout first, for AVX-512 and AMX."""
NARROW = 5
"""Least width of the result of one channel: below it oneDNN copies in another way, with AVX-512."""


class Geometry(NamedTuple):
    """Sizes of a two-dimensional convolution of one group; pairs are (height, width)."""

    channels: int
    """Input channels."""
    image: tuple[int, int]
    """Size of the image without padding."""
    kernel: tuple[int, int]
    """Size of the kernel without dilation."""
    padding: Sequence[tuple[int, int]]
    """Zeros before and after, for both axes."""
    stride: Sequence[int] = (1, 1)
    """Of the windows."""
    dilation: Sequence[int] = (1, 1)
    """Of the kernel."""

    @property
    def reach(self) -> tuple[int, ...]:
        """Size of the dilated kernel."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def out(self) -> tuple[int, ...]:
        """Size of the result."""
        axes = zip(self.image, self.padding, self.reach, self.stride, strict=True)
        return tuple(
            (n + before + after - reach) // step + 1 for n, (before, after), reach, step in axes
        )


def proven(geometry: Geometry) -> bool:
    """Tell whether oneDNN is known to compute this convolution correctly.

    This is a list of what is allowed. It covers the networks of this library and their gradients; the rest is left to XLA.
    `tests/test_programs_property.py` compares random members with XLA. What is excluded, and why:

    - one channel, unless it has no strides or dilation, the image is as large as the kernel and the result has `NARROW` pixels
      or more in both axes: otherwise oneDNN for AVX-512 may copy parts of rows next to each other, and then it reads wrong
      rows and memory beyond the image (versions 3.7.3 and 3.12.3, those of both jaxlibs);
    - with strides, results one pixel wide of 1x1 kernels or of fewer channels than `FEW`: the same copying is used for some;
    - strides larger than the kernel, unless it is 1x1: oneDNN up to 3.13 reserves too little memory for them with AMX;
    - padding as wide as the kernel or wider, negative padding, and strides together with dilation: no network needs them here.
    """
    channels, image, kernel, padding, stride, dilation = geometry
    reach, out = geometry.reach, geometry.out
    edges = zip(padding, reach, strict=True)
    if min(channels, *image, *kernel, *out) < 1 or any(
        not 0 <= edge < size for sides, size in edges for edge in sides
    ):
        return False
    if channels == 1:
        within = all(k <= n for k, n in zip(kernel, image, strict=True)) and min(out) >= NARROW
        return within and min(kernel) > 1 and tuple(stride) == tuple(dilation) == (1, 1)
    if tuple(stride) == (1, 1):
        return True
    point = tuple(kernel) == (1, 1)
    steps = point or all(step <= k for step, k in zip(stride, kernel, strict=True))
    return steps and tuple(dilation) == (1, 1) and (min(out) > 1 or (channels >= FEW and not point))


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
    call = jax.ffi.ffi_call(
        "__onednn$convolution", out, custom_call_api_version=1, legacy_backend_config=said
    )
    return call(x, kernel)


def _axes(layout, first: str, second: str) -> dict[str, Any]:
    return {
        first: str(layout[0]),
        second: str(layout[1]),
        "spatial_dims": [str(axis) for axis in layout[2:]],
    }


@cache
def available(dtype: str = "float32") -> bool:
    """Tell whether `convolution` works on this CPU: x86, a known jaxlib, correct results, no user who wants it otherwise.

    For bfloat16 the CPU must have instructions of its own.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if os.environ.get(PLAIN) or "onednn" in flags or "ynn" in flags:
        return False
    known = version("jaxlib").startswith(VERSIONS) and platform.machine().lower() in (
        "x86_64",
        "amd64",
    )
    return known and (dtype == "float32" or (_has_bfloat16() and available())) and _right(dtype)


def _has_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether oneDNN has bfloat16 on this CPU: by its flags, for a call without support aborts the process."""
    if any(name in os.environ for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")):
        return False
    try:
        lines = Path(cpuinfo).read_text().splitlines()
    except OSError:
        return False
    return set(next((line.split() for line in lines if line.startswith("flags")), ())) >= BFLOAT16


PROBES = (
    # batch, geometry, output features
    (
        2,
        Geometry(5, (9, 7), (3, 2), ((2, 0), (1, 0)), (2, 1)),
        4,
    ),  # tells the fields of a call apart
    (2, Geometry(5, (9, 7), (3, 2), ((2, 0), (1, 1)), (1, 1), (1, 2)), 4),
    (3, Geometry(1, (12, 9), (5, 5), ((0, 0), (0, 0))), 6),  # one channel, a narrow result
    (2, Geometry(3, (16, 9), (7, 7), ((3, 3), (3, 3)), (2, 2)), 8),  # few channels with strides
    (2, Geometry(3, (16, 4), (3, 3), ((1, 1), (0, 1)), (1, 2)), 8),
    (2, Geometry(17, (2, 2), (3, 3), ((1, 1), (1, 1))), 9),  # an image smaller than the kernel
    (
        3,
        Geometry(9, (9, 9), (11, 11), ((2, 2), (2, 2)), (4, 4)),
        7,
    ),  # the same with strides, the result one pixel
    (
        2,
        Geometry(24, (8, 7), (1, 1), ((0, 0), (0, 0)), (2, 2)),
        12,
    ),  # strides larger than the kernel
    (4, Geometry(8, (6, 1), (3, 1), ((2, 2), (0, 0))), 1),  # one column
    (
        1,
        Geometry(5, (16, 24), (8, 8), ((2, 2), (3, 3)), (1, 1), (2, 3)),
        8,
    ),  # a weight gradient: a large kernel
)
"""Convolutions near the limits of `proven` that `available` tries."""


def _right(dtype: str) -> bool:
    """Whether the convolutions of `PROBES` are right, twice: memory beyond an image would be other numbers each time."""
    rng = np.random.default_rng(0)
    calls, given = [], []
    for batch, geometry, features in PROBES:
        shapes = (
            (batch, *geometry.image, geometry.channels),
            (*geometry.kernel, geometry.channels, features),
        )
        given.append([np.asarray(jnp.asarray(rng.normal(size=shape), dtype)) for shape in shapes])
        calls.append((geometry, jax.ShapeDtypeStruct((batch, *geometry.out, features), dtype)))

    def run(given):
        return [
            convolution(
                x, kernel, out, (3, 2, 0, 1), geometry.padding, geometry.stride, geometry.dilation
            )
            for (geometry, out), (x, kernel) in zip(calls, given, strict=True)
        ]

    try:
        with without_persistent_cache(), jax.ensure_compile_time_eval():
            program = jax.jit(run, compiler_options=OPTIONS)
            got = [jax.device_get(program(given)) for _ in range(2)]
    except Exception:
        return False
    expected = [
        _reference(geometry, *each) for (geometry, _), each in zip(calls, given, strict=True)
    ]
    tolerance = 1e-5 if dtype == "float32" else 2**-7
    return all(
        np.allclose(np.float64(a), b, rtol=0, atol=tolerance * np.abs(b).max())
        for results in got
        for a, b in zip(results, expected, strict=True)
    )


def _reference(geometry: Geometry, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The same convolution in NumPy, in float64."""
    (down, across), (rows, columns) = geometry.stride, geometry.out
    padded, weights = (
        np.pad(x.astype(np.float64), ((0, 0), *geometry.padding, (0, 0))),
        kernel.astype(np.float64),
    )
    total = np.zeros((len(x), rows, columns, kernel.shape[3]))
    for i, j in np.ndindex(*geometry.kernel):
        top, left = i * geometry.dilation[0], j * geometry.dilation[1]
        view = padded[
            :,
            top : top + (rows - 1) * down + 1 : down,
            left : left + (columns - 1) * across + 1 : across,
        ]
        total += view @ weights[i, j]
    return total


@contextlib.contextmanager
def without_persistent_cache() -> Iterator[None]:
    """Within it, nothing that is compiled is written to JAX's persistent cache: jaxlib cannot serialise calls of oneDNN.

    The setting belongs to the process: while several threads are within, the first saves it and the last restores it.
    """
    global _within, _before
    name = "jax_persistent_cache_min_compile_time_secs"
    with _entering:
        if not _within:
            _before = jax.config.values[name]
            jax.config.update(name, math.inf)
        _within += 1
    try:
        yield
    finally:
        with _entering:
            _within -= 1
            if not _within:
                jax.config.update(name, _before)


_entering = threading.Lock()
_within = 0
"""How many threads are within `without_persistent_cache`."""
_before: Any = None
"""The setting before the first of them."""
