"""Experiments: a script is a figure or table of a paper, run as `python -m experiments.NAME`."""

import contextlib
import os
import signal
import sys

KEPT = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"
"""Has the C library take memory in pages of 2 MiB, where Linux gives them, and keep what is freed.

XLA frees a step's memory after each step and takes it anew for the next: on a CPU half of a step of ResNet-20 can pass in the
82,000 page faults of that. In large pages there are some 300, and none in memory that was kept, which costs up to as much
memory again."""


LEAST = 3 << 30
"""Bytes of address space that a script needs beside what its processors' threads take; XLA ends without a word below that."""
THREADS = 64 << 20
"""Bytes of address space for each processor's threads."""


def _refuse(line: str) -> None:
    """End as `jaxcnn.cli.cli_errors` does, which cannot be imported yet."""
    with contextlib.suppress(OSError, AttributeError):
        print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(2)


def _open_streams() -> None:
    """Put /dev/null in place of a closed stdin, stdout or stderr: the next file to be opened would take its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for as long as the process lasts


def _check_memory() -> None:
    """Say so where `ulimit -v` or `ulimit -d` leaves too little, or so little that XLA may end without a word."""
    try:
        import resource
    except ImportError:
        return
    needed = LEAST + THREADS * (os.cpu_count() or 1)
    for letter, kind in (("v", resource.RLIMIT_AS), ("d", resource.RLIMIT_DATA)):
        limit = resource.getrlimit(kind)[0]
        if limit == resource.RLIM_INFINITY:
            continue
        what = f"memory is limited to {limit / 2**30:.1f} GiB (ulimit -{letter})"
        if limit < needed:
            _refuse(f"{what}; expected at least {needed / 2**30:.1f} GiB. Use ulimit -{letter} unlimited")
        if os.environ.get("GLIBC_TUNABLES") == KEPT:  # once, by the process that stays
            with contextlib.suppress(OSError):
                print(f"warning: {what}; a run that needs more aborts without a message", file=sys.stderr)


if sys.argv[:1] == ["-m"]:
    # Before the script listens, and after, there is nothing to save: Ctrl-C ends it without a traceback out of some import.
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    _open_streams()
    _check_memory()
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        # The C library reads this when a process starts, so this one starts again.
        os.environ["GLIBC_TUNABLES"] = KEPT
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    try:
        import jax

        if "MPLBACKEND" in os.environ:
            import matplotlib  # noqa: F401 - the variable is read here
    except ValueError as wrong:  # of a variable such as JAX_ENABLE_X64 or MPLBACKEND
        _refuse(f"{' '.join(str(wrong).split())}. Use another value of that environment variable, or unset it")
    if os.environ.get("GLIBC_TUNABLES") == KEPT:
        # Steps on a CPU in Python's own thread, for what other threads free goes back to Linux in any case.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
