"""Progress of long work: a bar on a terminal and in a notebook, plain lines elsewhere.

All show the rate or the fraction finished, and the remaining time.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib.util
import math
import sys
import time
import warnings
from typing import Any, TextIO

from jaxcnn.arguments import ArgumentError, format_value

QUEUE = 32
"""Maximum number of programs that XLA has started on a device and not finished.

It is the same for CPUs, GPUs and TPUs (`max_inflight_computations` in XLA's clients). So many steps
are counted before the first of them is computed.
"""


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


@functools.cache
def _bar_class() -> type:
    """Return the class of bars on a terminal. tqdm is imported where one is shown."""
    from tqdm import tqdm

    class Bar(tqdm):
        """Bar by the monotonic clock.

        tqdm's own bar stops after the system's clock was set back, until that catches up.
        """

        def __init__(self, **options: Any):
            super().__init__(**options)
            self._time = lambda: time.monotonic()
            self.start_t = self.last_print_t = self._time()

    return Bar


def format_duration(seconds: float) -> str:
    """Return a duration as mm:ss, h:mm:ss, or from a day on as days, hours and minutes.

    Example:
      >>> format_duration(150), format_duration(7200), format_duration(98_400)
      ('02:30', '2:00:00', '1d 03:20')
    """
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}:{minutes:02}"
    clock = f"{minutes:02}:{seconds:02}"
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
        options = {
            "total": total,
            "bar_format": "{percentage:3.0f}% |{bar}| {elapsed} elapsed{postfix}",
            "smoothing": 0,
            "miniters": 0,
        }
        self.in_notebook = file is None and in_notebook()
        self.bar: Any = None
        if not quiet:
            self.bar = _make_bar(None if self.in_notebook else self.file, options, leave=True)

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
            position = f"{self._time_left()}, {position}"
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
            # A notebook shows the bar apart from the cell's lines.
            self.bar.write(line, file=sys.stdout if self.in_notebook else self.file)
            return
        self.last_line_time = time.monotonic()
        percent = 100 * self.done / self.total
        print(f"{percent:3.0f}%  {self._time_left():>13}  {line}", file=self.file, flush=True)

    def remaining_time(self) -> str | None:
        """Return the remaining time at the rate so far, as `format_duration` does.

        The first units, which a compilation precedes, do not count in the rate. It is None before
        there is a rate: until 20 later calls of `advance`, or a hundredth of the work.
        """
        if self.done >= self.total:
            return format_duration(0)
        if self.num_advances < 2:
            return None
        advanced = self.done - self.skipped - self.first_units
        elapsed = time.monotonic() - self.first_time
        is_early = self.num_advances <= 20 and advanced < self.total / 100
        if advanced <= 0 or is_early:
            return None
        return format_duration((self.total - self.done) * elapsed / advanced)

    def _time_left(self) -> str:
        remaining = self.remaining_time()
        return "estimating" if remaining is None else f"{remaining} left"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.close()


class TrainProgress:
    """Progress of one run: "compiling", then steps, their rate and the remaining time.

    It is a bar of tqdm on a terminal and in a notebook, and plain lines elsewhere. There is no rate
    before some steps after the first, which includes the compilation. From the second row on, the
    rate includes the evaluations.

    Args:
        first: the step that the run starts from.
        num_steps: steps of the whole run.
        file: where to write; None is stderr.
        every: seconds between plain lines at least.
        quiet: show nothing.

    Example:
        >>> import io
        >>> lines = io.StringIO()
        >>> with TrainProgress(0, 10, file=lines, every=0) as progress:
        ...     progress.advance(1)
        >>> lines.getvalue().splitlines()
        ['0/10 steps, compiling', '1/10 steps']
    """

    def __init__(
        self,
        first: int,
        num_steps: int,
        *,
        file: TextIO | None = None,
        every: float = 15.0,
        quiet: bool = False,
    ):
        self.step, self.num_steps, self.every = first, num_steps, every
        self.file: Any = SafeStream(file or sys.stderr)
        self.quiet = quiet
        self.rate: float | None = None
        # Steps and times: of the first call, of the first call with a full queue, of the first row.
        self._first: tuple[int, float] | None = None
        self._full: tuple[int, float] | None = None
        self._row: tuple[int, float] | None = None
        # Calls since the last step that is known to be computed.
        self._num_calls = 0
        self.last_line_time = -math.inf
        options = {
            "total": num_steps,
            "initial": first,
            "bar_format": "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} steps{postfix}",
            "miniters": 0,
        }
        self.bar: Any = None
        if not quiet:
            is_default = file is None and in_notebook()
            self.bar = _make_bar(None if is_default else self.file, options, leave=False)
        self._show("compiling")

    def advance(self, step: int) -> None:
        """Show a step that is finished, or that XLA has in its queue."""
        if self.quiet:
            return
        is_first = self._first is None
        previous, self.step = self.step, step
        self._first = self._first or self._now()
        self._num_calls += 1
        # With a full queue a call takes as long as a step.
        if self._num_calls > QUEUE and self._full is None:
            self._full = self._now()
        elif self._full is not None and self._row is None:
            self._measure(self._full)
        text = ""
        if self.rate is not None:
            left = format_duration((self.num_steps - step) / self.rate)
            text = f"{_format_rate(self.rate)}, {left} left"
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - previous)
        if self.bar is None or is_first:
            self._show(text)

    def wait(self) -> None:
        """Count that all steps are computed, and none is in XLA's queue."""
        self._num_calls, self._full = 0, None
        if self._row is None and self._first is not None:
            self._measure(self._first)

    def _now(self) -> tuple[int, float]:
        return self.step, time.monotonic()

    def _measure(self, origin: tuple[int, float]) -> None:
        """Set the rate to that of the steps since a step and time."""
        step, seconds = self.step - origin[0], time.monotonic() - origin[1]
        if step > 0 and seconds > 0:
            self.rate = step / seconds

    def pause(self) -> None:
        """Remove the bar from the terminal, so that the caller's lines have one of their own.

        It is called after the evaluation of each row. The next step shows the bar again.
        """
        # From the end of the first evaluation, which is compiled, so that it does not count.
        if self._row is None:
            self._row = self._now()
        else:
            self._measure(self._row)
        if self.bar is not None and isinstance(self.bar, _bar_class()):
            self.bar.clear()

    def close(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _show(self, text: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=True)
        elif not self.quiet and time.monotonic() - self.last_line_time >= self.every:
            self.last_line_time = time.monotonic()
            line = f"{self.step}/{self.num_steps} steps"
            print(", ".join(filter(None, (line, text))), file=self.file, flush=True)

    def __enter__(self) -> TrainProgress:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def _format_rate(rate: float) -> str:
    return f"{rate:.3g} steps/s" if rate >= 1 else f"{1 / rate:.3g} s/step"


def in_notebook() -> bool:
    """Check if this process is the kernel of a notebook."""
    get_ipython = getattr(builtins, "get_ipython", None)
    return get_ipython is not None and getattr(get_ipython(), "kernel", None) is not None


def _make_bar(file: SafeStream | None, options: dict[str, Any], *, leave: bool) -> Any:
    """Return a bar of tqdm, or None where lines are shown.

    In a notebook it is a widget. Without ipywidgets it is a line of text that replaces itself.

    Args:
      file: where the bar is; None is the output of a notebook's cell.
      options: of the bar.
      leave: keep a terminal's bar when it is closed.
    """
    if file is None:
        if (bar := _widget_bar(options)) is not None:
            return bar
        line = _DisplayedLine()
        return _bar_class()(file=line, leave=True, ncols=79, **options)
    if not file.isatty():
        return None
    return _bar_class()(file=file, leave=leave, dynamic_ncols=True, **options)


class _DisplayedLine:
    """Stream that shows the last line written to it, as an output of the notebook's cell.

    The streams of a cell cannot replace a line between other lines.
    """

    encoding = "utf-8"

    def __init__(self):
        self._line = ""
        self._handle: Any = None

    def write(self, text: str) -> int:
        """Show the text in place of the one before; blank text is ignored."""
        line = text.strip("\r\n").rstrip()
        if line.strip() and line != self._line:
            self._line = line
            with contextlib.suppress(ImportError):
                self._display({"text/plain": line})
        return len(text)

    def _display(self, content: dict[str, str]) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def flush(self) -> None:
        """Do nothing: every line is shown at once."""


def _widget_bar(options: dict[str, Any]) -> Any:
    """Return tqdm's bar for notebooks, or None where widgets are missing."""
    if importlib.util.find_spec("ipywidgets") is None:
        return None
    # Old widgets warn, and tqdm raises ImportError for those that it cannot use.
    with warnings.catch_warnings(), contextlib.suppress(ImportError):
        warnings.simplefilter("ignore")
        from tqdm.notebook import tqdm as bar

        return bar(**options)
    return None


def should_show(progress: bool | None) -> bool:
    """Check if a run's progress is shown: in a notebook and on a terminal, or as chosen.

    Raises:
      ArgumentError: `progress` is not None, True or False.

    Example:
      >>> should_show(True)
      True
    """
    if progress is None:
        return in_notebook() or SafeStream(sys.stderr).isatty()
    if not isinstance(progress, bool):
        raise ArgumentError(
            f"progress is {format_value(progress)}; expected True, False or None. "
            "Write progress=False."
        )
    return progress
