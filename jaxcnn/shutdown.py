"""Stop signals: Ctrl-C, SIGTERM and SIGHUP end a run after its step, so that it can save."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Any, TypeVar

from jaxcnn import multihost

_STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
GRACE_SECONDS = 120.0
"""Seconds after SIGTERM or SIGHUP until the process is ended."""
_entered: list[GracefulShutdown] = []
"""Objects that handle this process's signals now."""
_loops: weakref.WeakSet[Generator[Any, None, None]] = weakref.WeakSet()
"""Generators to close at the end of the process."""
Loop = TypeVar("Loop", bound=Generator[Any, None, None])


class GracefulShutdown:
    """Flag that Ctrl-C, SIGTERM or SIGHUP sets.

    A run can thereby finish its step and save.

    A second Ctrl-C ends the process at once. In a notebook or another interactive interpreter it
    raises KeyboardInterrupt instead. A program that SIGTERM or SIGHUP has not ended after
    `GRACE_SECONDS` seconds is ended then. SIGHUP, which a closed terminal sends, stays ignored
    under `nohup`.

    If the job has several processes, a signal to one of them stops all. A line answers the first
    signal, and the second takes effect in the middle of a compilation too. Both need a thread of
    their own, because Python handles no signal until a compilation ends.

    Python handles signals only in the main thread. In another thread the flag stays unset.

    Args:
      signals: numbers of the signals that set the flag.

    Example:
      >>> with GracefulShutdown() as stop:
      ...     stop()
      False
    """

    def __init__(self, signals: Collection[int] = _STOP_SIGNALS):
        self._signals = signals
        # Two numbers, because a signal may come while the processes exchange theirs. The result of
        # the exchange must not overwrite it.
        self._received = 0
        self._agreed = 0
        self._interactive = _is_interactive()
        self._old_handlers: dict[Any, Any] | None = None

    def __call__(self) -> bool:
        """Check if a signal has come.

        All processes of a job must call it at the same point.
        """
        self._agreed = multihost.global_max(max(self._received, self._agreed))
        return self._agreed > 0

    @property
    def signal(self) -> int:
        """Number of the signal that has come to any process of the job, or 0."""
        return self._agreed or self._received

    def __enter__(self) -> GracefulShutdown:
        if threading.current_thread() is not threading.main_thread():
            return self
        numbers = [
            number
            for number in self._signals
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN
        ]
        self._old_handlers = {number: signal.signal(number, self._handle) for number in numbers}
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._old_wakeup_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        arguments = (reader, tuple(self._old_handlers), self._interactive)
        threading.Thread(target=_answer_signals, args=arguments, daemon=True).start()
        _entered.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._old_handlers is None:
            return
        _entered.remove(self)
        signal.set_wakeup_fd(self._old_wakeup_fd)
        os.close(self._writer)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.signal and number == signal.SIGINT and self._interactive:
            raise KeyboardInterrupt
        self._received = self._received or number

    @property
    def exit_code(self) -> int:
        """Exit code of the process.

        It is 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, else 0.
        """
        return 128 + self.signal if self.signal else 0


def _is_interactive() -> bool:
    """Check if a user types into this process.

    It is a notebook or `python -i`. Such a process must not be ended.
    """
    import builtins

    return hasattr(sys, "ps1") or bool(sys.flags.interactive) or hasattr(builtins, "get_ipython")


@contextlib.contextmanager
def interactive_interrupt() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C set a flag in a notebook, so that a step can be finished.

    A second Ctrl-C in the block raises KeyboardInterrupt. Scripts, threads, jobs of several
    processes and programs that handle Ctrl-C themselves keep what Ctrl-C does there.

    Yields:
      A function that checks if Ctrl-C has come.

    Example:
      >>> with interactive_interrupt() as is_interrupted:
      ...     is_interrupted()
      False
    """
    is_handled = bool(_entered) or signal.getsignal(signal.SIGINT) != signal.default_int_handler
    is_main = threading.current_thread() is threading.main_thread()
    if is_handled or not is_main or not _is_interactive() or multihost.is_multihost():
        yield lambda: False
        return
    with GracefulShutdown((signal.SIGINT,)) as stop:
        yield stop


def close_at_exit(loop: Loop) -> Loop:
    """Return a generator that is closed at the end of the process, unless that happened before.

    A script may end while it holds one that is not exhausted. Python would close it after it has
    cleared its modules, and the generator's clean-up would fail with a traceback.

    Example:
      >>> next(close_at_exit(number for number in (1, 2)))
      1
    """
    _loops.add(loop)
    return loop


@atexit.register
def _close_loops() -> None:
    for loop in list(_loops):
        # Another thread runs it.
        with contextlib.suppress(ValueError):
            loop.close()


def _answer_signals(reader: int, signals: tuple[int, ...], interactive: bool) -> None:
    """Answer signals until the other end of a pipe is closed.

    Args:
      reader: file descriptor of a pipe, through which a byte comes for each signal.
      signals: those that are answered. Others have handlers of the user's own.
      interactive: never end the process.
    """
    first = 0
    deadline = math.inf
    poll = select.poll()
    poll.register(reader)
    while True:
        seconds_left = deadline - time.monotonic()
        timeout = None if seconds_left == math.inf else 1000 * seconds_left + 1
        if seconds_left <= 0 or not poll.poll(timeout):
            _print_now(
                f"\nended {GRACE_SECONDS:g} s after signal {first}; "
                "the same command resumes from the last saved state\n"
            )
            os._exit(128 + first)
        if not (received := os.read(reader, 1)):
            break
        number = received[0]
        if number not in signals:
            continue
        if first and number == signal.SIGINT and not interactive:
            _print_now(
                "\nended at once; the same command resumes from the last state that was saved\n"
            )
            os._exit(128 + signal.SIGINT)
        if not first:
            first = number
            exception, end = "another interrupt raises KeyboardInterrupt", "Ctrl-C ends it at once"
            second = exception if interactive else end
            _print_now(f"\nstopping after this step; {second}\n")
        # The first SIGTERM or SIGHUP sets the deadline.
        if number != signal.SIGINT and not interactive and deadline == math.inf:
            first, deadline = number, time.monotonic() + GRACE_SECONDS
    os.close(reader)


def _print_now(text: str) -> None:
    """Write to stderr, also while Python's main thread is busy.

    If stderr is closed, the descriptor 2 may be any file, so nothing is written.
    """
    if sys.__stderr__ is not None:
        with contextlib.suppress(OSError):
            os.write(2, text.encode())
