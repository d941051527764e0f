"""Progress of long work: a bar with a rate and the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, TextIO

from tqdm import tqdm


class Unfailing:
    """A text stream whose failures are ignored: a closed terminal or a full disk must not end a run.

    Args:
      stream: where to write; None, as Python's `sys.stderr` where that is closed, is nowhere.

    Example:
      >>> import io
      >>> closed = io.StringIO()
      >>> closed.close()
      >>> print("lost", file=Unfailing(closed), flush=True)
    """

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        """Write `text` if that is possible; returns its length."""
        with contextlib.suppress(OSError, ValueError, AttributeError):  # ValueError: the file is closed
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if that is possible."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is an open terminal."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return self.stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Bar(tqdm):
    """A bar by the monotonic clock: tqdm's own stops while the system's clock, set back, catches up."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._time = lambda: time.monotonic()
        self.start_t = self.last_print_t = self._time()


class Progress:
    """Progress over work measured in any unit, such as steps times parameters.

    Args:
      total: units of the whole work.
      file: where to write; stderr. What cannot be written is lost, and the work goes on.
      every: seconds between plain lines at most; rows are always written.
      quiet: show nothing, as where another process of the job speaks for all.

    Example:
      >>> import io
      >>> lines = io.StringIO()
      >>> with Progress(10, file=lines) as progress:
      ...     progress.advance(5, "half")
      ...     progress.say("at half")
      >>> lines.getvalue().startswith(" 50%")
      True
    """

    def __init__(self, total: float, file: TextIO | None = None, every: float = 15.0, quiet: bool = False):
        self.file: Any = Unfailing(file or sys.stderr)
        self.total, self.done, self.skipped = total, 0.0, 0.0
        self.quiet = quiet
        self.every, self.began, self.spoke = every, time.monotonic(), time.monotonic()
        self.bar = None
        if self.file.isatty() and not quiet:
            shape = "{percentage:3.0f}% |{bar}| {elapsed} elapsed, {remaining} left{postfix}"
            self.bar = _Bar(total=total, file=self.file, bar_format=shape, dynamic_ncols=True, smoothing=0, miniters=0)

    def advance(self, units: float, what: str) -> None:
        """`units` more are done; `what` says where the work is."""
        self.done += units
        if self.bar is not None:
            self.bar.set_postfix_str(what, refresh=False)
            self.bar.update(units)
        elif time.monotonic() - self.spoke > self.every:
            self.say(what)

    def skip(self, units: float) -> None:
        """`units` need not be done now: an earlier start did them. They do not count in the rate."""
        self.done += units
        self.skipped += units
        if self.bar is not None:
            self.bar.initial += units
            self.bar.update(units)

    def say(self, line: str) -> None:
        """One line that stays, above the bar or with the share done and the time left in front."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.write(line, file=self.file)
            return
        self.spoke = time.monotonic()
        print(f"{100 * self.done / self.total:3.0f}%  {self.left():>8} left  {line}", file=self.file, flush=True)

    def left(self) -> str:
        """The time left at the rate so far, as mm:ss or h:mm:ss."""
        fresh = self.done - self.skipped
        if fresh <= 0:
            return "?"
        return tqdm.format_interval((self.total - self.done) * (time.monotonic() - self.began) / fresh)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.close()
