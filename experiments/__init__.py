"""Experiments: a script is a figure or table of a paper, run as `python -m experiments.NAME`."""

import os
import signal
import sys

KEPT = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"
"""Has the C library take memory in pages of 2 MiB, where Linux gives them, and keep what is freed.

XLA frees a step's memory after each step and takes it anew for the next: on a CPU half of a step of ResNet-20 can pass in the
82,000 page faults of that. In large pages there are some 300, and none in memory that was kept, which costs up to as much
memory again."""


if sys.argv[:1] == ["-m"]:  # so while Python looks for the script's module, and at no other time
    # Before the script listens, and after, there is nothing to save: Ctrl-C ends it without a traceback out of some import.
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        # The C library reads this when a process starts, so this one starts again.
        os.environ["GLIBC_TUNABLES"] = KEPT
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if os.environ.get("GLIBC_TUNABLES") == KEPT:
        import jax

        # Steps on a CPU in Python's own thread, for what other threads free goes back to Linux in any case.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
