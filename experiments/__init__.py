"""Experiments: a script is a figure or table of a paper, run as `python -m experiments.NAME`."""

import os
import signal
import sys

if sys.argv[:1] == ["-m"]:  # so while Python looks for the script's module, and at no other time
    # Before the script listens, and after, there is nothing to save: Ctrl-C ends it without a traceback out of some import.
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
