"""Progress of long work: a bar on a terminal, plain lines elsewhere.

Both show the rate or the fraction finished, and the remaining time.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, TextIO

from tqdm import tqdm


class SafeStream:
    """Text stream whose failures are ignored.

    A closed terminal or a full disk must not end a run.

    Args:
        stream: where to write. None, as Python's `sys.stderr` where that is closed, discards all.

    Example:
        >>> import io
        >>> closed = io.StringIO()
        >>> closed.close()
        >>> print("lost", file=SafeStream(closed), flush=True)
    """

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        """Write `text` if that is possible, and return its length."""
        # A closed file raises ValueError.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if that is possible."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.stream.flush()

    def isatty(self) -> bool:
        """Check if the stream is an open terminal."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return self.stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Bar(tqdm):
    """Bar by the monotonic clock.

    tqdm's own bar stops after the system's clock was set back, until that catches up.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._time = lambda: time.monotonic()
        self.start_t = self.last_print_t = self._time()


def format_duration(seconds: float) -> str:
    """Return a duration as mm:ss, as h:mm:ss, or from a day on in days and hours.

    Example:
      >>> format_duration(90), format_duration(7384), format_duration(310 * 3600)
      ('01:30', '2:03:04', '12 d 22 h')
    """
    whole = round(max(0.0, seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours >= 24:
        days, hours = divmod(round(whole / 3600), 24)
        return f"{days} d {hours} h"
    clock = f"{minutes:02d}:{whole % 60:02d}"
    return f"{hours}:{clock}" if hours else clock


class Progress:
    """Progress of work in any unit, such as steps times parameters.

    Args:
        total: units of the whole work.
        file: where to write; None is stderr. What cannot be written is lost, and the work
            continues.
        every: seconds between plain lines at least. Lines of `write` are always written.
        quiet: show nothing, as where another process of the job reports for all.

    Example:
        >>> import io
        >>> lines = io.StringIO()
        >>> with Progress(10, file=lines) as progress:
        ...     progress.advance(5, "half")
        ...     progress.write("at half")
        >>> lines.getvalue().startswith(" 50%")
        True
    """

    def __init__(
        self, total: float, file: TextIO | None = None, every: float = 15.0, quiet: bool = False
    ):
        self.file: Any = SafeStream(file or sys.stderr)
        self.total, self.done, self.skipped = total, 0.0, 0.0
        self.quiet = quiet
        self.every = every
        self.start_time, self.last_line_time = time.monotonic(), time.monotonic()
        self.num_advances, self.first_units = 0, 0.0
        self.bar = None
        if self.file.isatty() and not quiet:
            bar_format = "{percentage:3.0f}% |{bar}| {elapsed} elapsed{postfix}"
            self.bar = _Bar(
                total=total,
                file=self.file,
                bar_format=bar_format,
                dynamic_ncols=True,
                smoothing=0,
                miniters=0,
            )

    def advance(self, units: float, position: str) -> None:
        """Add finished units, and show the progress.

        Args:
            units: finished since the last call.
            position: text that describes where the work is.
        """
        self.done += units
        self.num_advances += 1
        # The first units take the time of compilation too, which the others do not.
        if self.num_advances == 1:
            self.first_units, self.first_time = units, time.monotonic()
        if self.bar is not None:
            position = f"{self.remaining_time()} left, {position}"
            self.bar.set_postfix_str(position, refresh=False)
            self.bar.update(units)
        elif time.monotonic() - self.last_line_time > self.every:
            self.write(position)

    def skip(self, units: float) -> None:
        """Add units that an earlier run finished.

        They do not count in the rate.
        """
        self.done += units
        self.skipped += units
        if self.bar is not None:
            self.bar.initial += units
            self.bar.update(units)

    def write(self, line: str) -> None:
        """Write a line that stays.

        It is above the bar, or has the fraction finished and the remaining time in front.
        """
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.write(line, file=self.file)
            return
        self.last_line_time = time.monotonic()
        percent = 100 * self.done / self.total
        print(
            f"{percent:3.0f}%  {self.remaining_time():>8} left  {line}", file=self.file, flush=True
        )

    def remaining_time(self) -> str:
        """Return the remaining time at the rate so far, as `format_duration` does.

        The first units, which a compilation precedes, do not count in the rate. It is "?" before
        that can be told: until 20 later calls of `advance`, or a hundredth of the work.
        """
        advanced = self.done - self.skipped
        elapsed = time.monotonic() - self.start_time
        if self.num_advances > 1:
            advanced -= self.first_units
            elapsed = time.monotonic() - self.first_time
        is_early = self.num_advances <= 20 and advanced < self.total / 100
        if advanced <= 0 or is_early:
            return "?"
        return format_duration((self.total - self.done) * elapsed / advanced)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.close()
