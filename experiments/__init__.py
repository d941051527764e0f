"""Experiments: a script is a figure or table of a paper, run as `python -m experiments.NAME`."""

import os
import signal
import sys
from pathlib import Path

HUGE = "glibc.malloc.hugetlb=1"
"""Asks Linux for memory in pages of 2 MiB. XLA takes a step's memory anew each time: on a CPU half of a step of ResNet-20
can pass in the 82,000 page faults of that; in large pages there are some 300."""


def _pages() -> str:
    """When Linux gives large pages: of "always", "madvise" and "never" one is in brackets."""
    try:
        return Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return ""


if sys.argv[:1] == ["-m"]:  # so while Python looks for the script's module, and at no other time
    # Before the script listens, and after, there is nothing to save: Ctrl-C ends it without a traceback out of some import.
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    if "[madvise]" in _pages() and "GLIBC_TUNABLES" not in os.environ:
        # The C library reads this when a process starts, so this one starts again.
        os.environ["GLIBC_TUNABLES"] = HUGE
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
