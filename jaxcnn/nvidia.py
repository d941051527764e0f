"""Compiler options for NVIDIA GPUs.

`parallel` adds them to the programs of "jit" on such a GPU, and to nothing else. No GPU has been
measured yet: whether they help is for `experiments.measure_gpu` to say.

XLA launches a step's kernels from the host, unless it has recorded them as a CUDA graph ("command
buffer"). A step of a small network has hundreds of kernels of a few microseconds each, about as
long as a launch takes, so launches limit it. XLA records fusions, matrix products and some custom
calls by default, but no convolutions. They cut the rest into pieces of fewer than
`xla_gpu_graph_min_graph_size` (5) operations, which are not recorded either. `options` adds
convolutions to the list. PyTorch's `torch.compile(mode="reduce-overhead")` records them too.

These settings are XLA's defaults in jaxlib 0.10, 0.11 and 0.12, and stay:

- `xla_gpu_autotune_level` is 4: each convolution runs with the fastest of cuDNN's algorithms, of
  those with right results. JAX stores the choices in the folder of its compilation cache.
- The layout of convolutions is NHWC from Hopper on. On older GPUs it is NHWC for bfloat16, and
  NCHW for float32, for which XLA adds transpositions.
- Products of float32 are in TF32. `jax_default_matmul_precision` "highest" makes them float32.
- `xla_gpu_enable_latency_hiding_scheduler` is off. It overlaps communication, which one GPU does
  not have.
- `xla_gpu_experimental_enable_conv_fusion` (cuDNN's fusions) and `WHILE` command buffers (the scan
  itself as a graph) are off, and not proven.

Algorithms are chosen by their times, and some of cuDNN's add in any order. The same bits in two
processes need XLA_FLAGS=--xla_gpu_exclude_nondeterministic_ops=true, which XLA refuses for max
pooling, and a common folder of the compilation cache.

References:
  https://github.com/openxla/xla/blob/main/docs/command_buffer_tutorial.md (categories, defaults,
  minimum size); https://github.com/openxla/xla/pull/34572 (convolutions are not recorded by
  default, as not all of them can be on AMD GPUs); https://openxla.org/xla/determinism;
  https://openxla.org/xla/persisted_autotuning; the layouts are those of
  xla/service/gpu/transforms/layout_assignment.cc. Defaults were read from `CompileOptions` of
  jaxlib 0.10.2, 0.11.2 and 0.12.0.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxcnn._util import PLAIN

log = logging.getLogger(__name__)
OPTION = "xla_gpu_enable_command_buffer"
"""Name of the option: the operations that XLA records as CUDA graphs."""
COMMANDS = (
    "FUSION",
    "CUBLAS",
    "CUBLASLT",
    "CUDNN",
    "CUSTOM_CALL",
    "CONDITIONAL",
    "DYNAMIC_SLICE_FUSION",
    "CONVOLUTION",
)
"""XLA's default in jaxlib 0.10 and 0.11, and convolutions.

An option of one program is the whole list: only XLA_FLAGS takes "+CONVOLUTION".
"""
NEWER_COMMANDS = ("COLLECTIVES_KERNEL",)
"""Commands that jaxlib 0.12 has by default, and older ones do not know."""
TRIAL_SHAPE = (8, 8, 8, 16)
"""Shape [b, h, w, c] of the images of the trial."""
TRIAL_STEPS = 2


def is_nvidia(device: Any) -> bool:
    """Check if a device of JAX is a GPU of NVIDIA, rather than of AMD."""
    return device.platform == "gpu" and "cuda" in device.client.platform_version.lower()


def is_left_to_user() -> bool:
    """Check if the user turned the options off, or has flags about command buffers or graphs."""
    flags = os.environ.get("XLA_FLAGS", "")
    has_flags = "command_buffer" in flags or "xla_gpu_graph" in flags
    return bool(os.environ.get(PLAIN)) or has_flags


@lru_cache(maxsize=16)
def options(device: Any) -> dict[str, str] | None:
    """Return compiler options for programs on an NVIDIA GPU, or None.

    There are none where XLA_FLAGS has flags of its own about command buffers or graphs, with
    `JAXCNN_PLAIN=1`, or where this jaxlib or this GPU fails the trial: gradients of a convolution
    in a scan, compared with their known values.

    Args:
      device: on which the trial runs.

    Example:
      >>> chosen = options(jax.devices()[0])
      >>> chosen is None or OPTION in chosen
      True
    """
    if is_left_to_user():
        return None
    for commands in ((*COMMANDS, *NEWER_COMMANDS), COMMANDS):
        candidate = {OPTION: ",".join(commands)}
        if _passes_trial(candidate, device):
            return candidate
    log.warning("%s: convolutions are not recorded in CUDA graphs, as a trial failed", device)
    return None


def _passes_trial(candidate: dict[str, str], device: Any) -> bool:
    """Check that a scan over convolutions compiles with the options, and is right."""
    b, h, w, c = TRIAL_SHAPE
    images, kernel = np.ones(TRIAL_SHAPE, np.float32), np.ones((3, 3, c, c), np.float32)
    try:
        program = jax.jit(_trial, compiler_options=candidate)
        # The user's default device may be another, and transfers of the user's may be forbidden.
        with jax.default_device(device), jax.transfer_guard("allow"):
            # Twice, because a graph is recorded in the first run and replayed in the next.
            results = [jax.device_get(program(images, kernel)) for _ in range(2)]
    # An option that is unknown, or an operation that cannot be recorded.
    except Exception as error:
        log.debug("%s: %s", candidate, error)
        return False
    # Of ones, all results are numbers of terms: how many pixels a window has, and the reverse.
    rows, columns = (np.r_[2, np.full(n - 2, 3), 2] for n in (h, w))
    windows = np.broadcast_to(np.outer(rows, columns)[None, :, :, None], TRIAL_SHAPE)
    shifts = np.outer(np.array([h - 1, h, h - 1]), np.array([w - 1, w, w - 1]))
    taps = np.broadcast_to(shifts[:, :, None, None], (3, 3, c, c))
    scales = np.arange(1, TRIAL_STEPS + 1).reshape(-1, 1, 1, 1, 1)
    expected = (scales * c * windows, c * windows[None] + 0 * scales, scales * b * taps)
    return all(
        np.array_equal(array, values)
        for result in results
        for array, values in zip(result, expected, strict=True)
    )


def _trial(images: Any, kernel: Any) -> Any:
    """Return a convolution and its gradients, each with a first axis of `TRIAL_STEPS` steps.

    The images of a step depend on the one before, so that no convolution leaves the loop.
    """

    def convolve(x, k):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=layout)

    def step(x, _):
        y, gradients = jax.vjp(convolve, x, kernel)
        return x + images, (y, *gradients(jax.numpy.ones_like(y)))

    return jax.lax.scan(step, images, None, length=TRIAL_STEPS)[1]
