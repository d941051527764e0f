"""Experiments: each script makes a figure or table of a paper.

A script is run as `python -m experiments.NAME`.

Under `python -m` this package prepares the process before JAX is imported, and may restart it: see
`_prepare_process`. Any other import of it does nothing.
"""

import contextlib
import gc
import os
import signal
import sys

MALLOC_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"
)
"""Settings of the C library: pages of 2 MiB where Linux has them, and freed memory is kept.

XLA frees a step's memory after each step and allocates it again for the next. On a CPU half of a
step of ResNet-20 can be spent in the 82,000 page faults of that. Large pages have some 300, and
memory that was kept has none. That costs up to as much memory again.
"""
GC_THRESHOLDS = 50_000, 20, 20
"""Arguments of `gc.set_threshold`. The first is the number of new objects at which it collects.

Imports and tracing make many objects, and nearly all of them stay. With Python's own thresholds
(700 objects in 3.11, 2,000 in 3.13) the first step comes 6 to 8% later:
`experiments/results/benchmark/tried.md`.
"""
MIN_ADDRESS_SPACE = 3 << 30
"""Bytes of address space that a script needs besides its threads.

With less, XLA ends without a message.
"""
THREAD_ADDRESS_SPACE = 64 << 20
"""Bytes of address space for each processor's threads."""


def _refuse(line: str) -> None:
    """End as `jaxcnn.cli.cli_errors` does, which cannot be imported yet."""
    with contextlib.suppress(OSError, AttributeError):
        print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(2)


def _open_streams() -> None:
    """Put /dev/null in place of a closed stdin, stdout or stderr.

    Otherwise the next file to be opened would take its number.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is the one of this stream.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            # Open for as long as the process lasts.
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def _check_memory() -> None:
    """Check that `ulimit -v` and `ulimit -d` leave enough memory.

    With too little, XLA may end without a message. Below the least that a script needs, the
    process ends. Above it, a warning is printed.
    """
    try:
        import resource
    except ImportError:
        return
    required = MIN_ADDRESS_SPACE + THREAD_ADDRESS_SPACE * (os.cpu_count() or 1)
    for letter, kind in (("v", resource.RLIMIT_AS), ("d", resource.RLIMIT_DATA)):
        limit = resource.getrlimit(kind)[0]
        if limit == resource.RLIM_INFINITY:
            continue
        fact = f"memory is limited to {limit / 2**30:.1f} GiB (ulimit -{letter})"
        if limit < required:
            _refuse(
                f"{fact}; expected at least {required / 2**30:.1f} GiB. "
                f"Use ulimit -{letter} unlimited"
            )
        # Once, by the process that stays after the restart below.
        if os.environ.get("GLIBC_TUNABLES") == MALLOC_TUNABLES:
            with contextlib.suppress(OSError):
                print(
                    f"warning: {fact}; a run that needs more aborts without a message",
                    file=sys.stderr,
                )


def _prepare_process() -> None:
    """Prepare the process of a script, before JAX is imported.

    On Linux it restarts with `MALLOC_TUNABLES`, unless the user sets GLIBC_TUNABLES.
    """
    # There is nothing to save before the script handles signals, nor after. Ctrl-C then ends it
    # without a traceback out of some import.
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    gc.set_threshold(*GC_THRESHOLDS)
    _open_streams()
    _check_memory()
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        # The C library reads this when a process starts, so this one starts again.
        os.environ["GLIBC_TUNABLES"] = MALLOC_TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    try:
        import jax

        if "MPLBACKEND" in os.environ:
            # The variable is read here.
            import matplotlib  # noqa: F401
    except ValueError as error:
        # An environment variable such as JAX_ENABLE_X64 or MPLBACKEND has an invalid value.
        _refuse(
            f"{' '.join(str(error).split())}. "
            "Use another value of that environment variable, or unset it"
        )
    if os.environ.get("GLIBC_TUNABLES") == MALLOC_TUNABLES:
        # Steps on a CPU run in Python's own thread: what other threads free goes back to Linux
        # in any case.
        jax.config.update("jax_cpu_enable_async_dispatch", False)


# The first word is "-m" only while `python -m` looks for its module.
# See "Surprises" in CONTRIBUTING.md.
if sys.argv[:1] == ["-m"]:
    _prepare_process()
