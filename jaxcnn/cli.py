"""What every script's `main` needs: options from the command line, one-line errors, a polite stop, a compilation cache."""

from __future__ import annotations

import codecs
import contextlib
import contextvars
import dataclasses
import errno
import importlib
import io
import itertools
import math
import os
import re
import select
import shutil
import signal
import sys
import threading
import time
import traceback
import types
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax

from jaxcnn import multihost
from jaxcnn.checkpoint import CheckpointError
from jaxcnn.data import DataError
from jaxcnn.data.cache import cache_root
from jaxcnn.data.types import printable
from jaxcnn.progress import SafeStream
from jaxcnn.recipe import ArgumentError, check_choice, format_value
from jaxcnn.run_log import LogError
from jaxcnn.run_log import reading as reading
from jaxcnn.weights import WeightsError

T = TypeVar("T")
EXIT_USAGE_ERROR = 2
"""The exit code for what the user can mend."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_ASKING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE = 120.0
"""Seconds after SIGTERM or SIGHUP in which a program saves and ends; a program that has not is ended then."""
_COLUMNS = (40, 200)
"""The narrowest and widest help text: in one column tyro lays it out for minutes."""
_SEED = (0, 2**32 - 1)
_STEPS = (1, 10**8)
_COUNT = (1, 10**7)
BOUNDS: dict[str, tuple[int, int]] = {
    "animals": _COUNT,
    "batch": (1, 2**20),
    "batches": (1, 2**20),
    "bn_group": (0, 2**20),
    "code": (1, 2**16),
    "common": _STEPS,
    "depth": (1, 8),  # of a U-Net: it halves the image each time
    "depths": (8, 1202),  # 1202 is the deepest of He et al. 2015
    "devices": (1, 2**16),
    "directions": (1, 1000),
    "draw_seed": _SEED,
    "drops": _STEPS,
    "epochs": (0, 10**5),  # a fraction in some scripts
    "every": (1, 10**5),  # the order of the examples of so many steps is drawn at once
    "examples": _COUNT,
    "first": (0, 10**8),
    "first_steps": _STEPS,
    "flips": (0, 10**5),
    "held": _COUNT,
    "held_out": (0, 10**5),
    "hidden": (1, 2**16),
    "images": _COUNT,
    "keep_every": (0, 10**8),
    "kills": (0, 10**4),
    "megabytes": (0, 10**5),
    "memory": (1, 2**50),
    "most": (1, 10**6),
    "new": (0, 10**4),
    "num_processes": (1, 2**16),
    "pad": (0, 1024),
    "pictures": _COUNT,
    "points": (2, 1001),
    "precise_bn": (0, 10**7),
    "process_id": (0, 2**16),
    "resize": (1, 4096),
    "rounds": (1, 10**4),
    "runs": (1, 10**5),
    "scenes": (1, 10**6),
    "seconds": (0, 10**6),
    "seed": _SEED,
    "seeds": (1, 1000),
    "shared": (0, 10**4),
    "signals": (0, 10**4),
    "size": (1, 4096),
    "start_depths": (8, 1202),
    "states": (1, 10**4),
    "steps": _STEPS,
    "test_batch": (1, 2**20),
    "top": (1, 10**5),
    "translate": (0, 1024),
    "trial_steps": _STEPS,
    "tune_seeds": (1, 1000),
    "validation": (0, 10**7),
    "warmup_depth": (0, 10**5),
    "whitening_images": _COUNT,
    "width": (1, 2**14),
    "widths": (1, 2**14),
    "worst": (0, 10**4),
}
"""The least and greatest value of every integer option, of whichever script, by its name.

The upper bounds lie beyond what anybody trains; past them a script would fill the memory, or count for hours before its first
line. Beside them a script refuses what it cannot use itself.
"""
_flags: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("flags", default=types.MappingProxyType({}))
"""The options that `parse` has read: name -> default. Messages about them name the flag that the user types."""


def parse(presets: Mapping[str, T], args: Sequence[str] | None = None, about: str | None = None) -> T:
    """Options from the command line: the fields of a dataclass, with the defaults of the preset that `--preset` names.

    Args:
      presets: name -> an instance; the first is the default. The dataclass has a field `preset`.
      args: instead of `sys.argv[1:]`.
      about: what `--help` says first.

    A mistake in them is one line on stderr and exit code 2. So are an empty value, an integer beyond `BOUNDS`, and a number
    that is not finite.
    """
    import tyro

    args = list(sys.argv[1:] if args is None else args)
    _not_empty(args)
    named = [b for a, b in itertools.pairwise(args) if a == "--preset"]
    named += [a.partition("=")[2] for a in args if a.startswith("--preset=")]
    default = presets[check_choice("preset", named[-1] if named else next(iter(presets)), presets)]
    _flags.set(dict(_fields(default)))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _columns():
            options = tyro.cli(type(default), default=default, args=args, description=about)
    except SystemExit as exit:
        if exit.code:
            raise ArgumentError(_line(said.getvalue())) from None
        raise
    for (name, value), (_, usual) in zip(_fields(options), _fields(default), strict=True):
        _check_bounds(name, value, usual)
    return options


def _not_empty(args: list[str]) -> None:
    """ArgumentError for an empty value: as a path it would be the current folder."""
    for before, arg in itertools.pairwise(["", *args]):
        flag, equals, value = arg.partition("=") if arg.startswith("--") else (before, "=", arg)
        if equals and not value.strip():
            what = flag if flag.startswith("-") else "an argument"
            raise ArgumentError(f"{what} is empty; expected a value. Leave it out, or write one after it")


def _fields(options: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options as (name, value), those within parts as `part.name`."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _check_bounds(name: str, value: Any, usual: Any) -> None:
    low, high = BOUNDS.get(name.rpartition(".")[2], (-math.inf, math.inf))
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, bool) or not isinstance(each, (int, float)):
            continue
        if not math.isfinite(each):
            raise ArgumentError(f"{name} is {each}; expected a finite number. {_use(name, usual)}")
        if not low <= each <= high:
            number = "a number" if isinstance(each, float) else "a whole number"
            raise ArgumentError(
                f"{name} is {format_value(each)}; expected {number} of {low} to {high}. {_use(name, usual)}"
            )


def _use(name: str, usual: Any) -> str:
    """What to write instead: the default."""
    if usual is None or usual == ():
        return f"Leave out {flag_name(name)}, or write another"
    return f"Use {flag_name(name)} {' '.join(map(str, usual)) if isinstance(usual, tuple) else usual}"


def flag_name(name: str) -> str:
    """The flag of an option.

    Example:
      >>> flag_name("keep_every")
      '--keep-every'
    """
    return "--" + name.replace("_", "-")


@contextlib.contextmanager
def _columns() -> Iterator[None]:
    """A width within `_COLUMNS` for what lays out text."""
    before = os.environ.get("COLUMNS")
    low, high = _COLUMNS
    os.environ["COLUMNS"] = str(min(max(shutil.get_terminal_size().columns, low), high))
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _line(box: str) -> str:
    """The words of tyro's framed error, on one line."""
    rows = [re.sub(r"[─-╿]|-{3,}|^[|+]|[|+]$", "", row.strip()).strip() for row in box.splitlines()[1:]]
    words = " ".join(row for row in rows if row)
    wrong = re.match(r"Error parsing --(\S+): .*?(int|float)\D*(?:base 10)?: '(.*?)'", words)
    if wrong:
        name, kind, value = wrong.groups()
        usual = _flags.get().get(name.replace("-", "_"))
        use = _use(name, usual)
        with contextlib.suppress(ValueError, OverflowError):  # 1e6, where 1000000 was meant
            use = f"Use --{name} {int(float(value))}" if float(value) == int(float(value)) else use
        return f"--{name} is {format_value(value)}; expected a {'whole ' if kind == 'int' else ''}number. {use}"
    words = re.sub(r"\s*Argument helptext:.*?(?=For full helptext|$)", ". ", words)
    return re.sub(r"[.\s]*For full helptext.*", "; --help lists the options", words)


def _flagged(message: str) -> str:
    """A message about an option, naming the flag instead of the field: `--keep-every is -1`, `write --batch 40`."""
    options = _flags.get()
    head = re.match(r"(\w+(?:\.\w+)*) (?:is|spans) ", message)
    if head and head[1] in options:
        message = flag_name(message)[: len(head[1]) + 2].replace("_", "-") + message[len(head[1]) :]

    def typed(found: re.Match[str]) -> str:
        return f"{found[1]}{flag_name(found[2])} {found[3]}" if found[2] in options else found[0]

    return re.sub(r"((?:write|Write|Use|use) )(\w+)=(\w[\w.-]*)(?![\w(\[=])", typed, message)


def _fail(message: str) -> NoReturn:
    """End with one line on stderr, whatever the message holds, and exit code 2."""
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(EXIT_USAGE_ERROR)


@contextlib.contextmanager
def cli_errors() -> Iterator[None]:
    """Turn the errors a user can mend into one line on stderr and exit code 2; others keep their traceback.

    Within it, characters that the terminal lacks are replaced, and a stderr that cannot be written ends nothing.
    """
    token = _flags.set({})
    with _streams(), multihost.abort_all_on_error():
        try:
            yield
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a pipe whose reader has gone can be answered
        except (ArgumentError, DataError, CheckpointError, LogError, WeightsError, multihost.MultihostError) as error:
            _fail(_flagged(str(error)))
        except BrokenPipeError:  # as of `| head`
            with contextlib.suppress(OSError, ValueError):  # so that the interpreter's own flush finds no fault
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(128 + signal.SIGPIPE)
        except OSError as error:
            if error.errno not in _DISK:
                raise
            if not error.filename and _stdout_fails():
                _fail(
                    f"standard output cannot be written ({error.strerror}); expected a pipe or file with room. Use another"
                )
            what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            _fail(f"{what}; mend that, or write --out with another folder")
        except Exception as error:
            if (reason := _memory(error) or _devices(error)) is None:
                raise
            _fail(reason)
        finally:
            _flags.reset(token)


def _stdout_fails() -> bool:
    """Whether what was printed cannot be written; a full disk there is not that of `--out`."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    except (AttributeError, ValueError):
        pass
    return False


def _memory(error: Exception) -> str | None:
    """A line for an error of too little memory, on the host or a device; None for others."""
    text = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not (
        isinstance(error, jax.errors.JaxRuntimeError)
        and any(words in text for words in ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "bad_alloc"))
    ):
        return None
    names = [name for name in ("width", "batch", "hidden", "size", "images") if name in _flags.get()]
    smaller = " or ".join(f"a smaller {flag_name(name)}" for name in names[:3]) or "a smaller network or batch"
    return f"out of memory ({text[:150] or type(error).__name__}); expected work that fits. Write {smaller}"


def _devices(error: Exception) -> str | None:
    """A line for an error of JAX's search for devices; None for others."""
    files = [Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)]
    if not isinstance(error, (RuntimeError, AssertionError)) or "xla_bridge.py" not in files[-3:]:
        return None
    reason = " ".join(str(error).split())[:150] or "no device of that kind was found"
    named = os.environ.get("JAX_PLATFORMS")
    if named:
        return (
            f"JAX_PLATFORMS is {named!r} ({reason}); expected a kind of device of this machine. Use JAX_PLATFORMS=cpu"
        )
    return f"JAX finds no device ({reason}); expected a working CPU, GPU or TPU. Use JAX_PLATFORMS=cpu"


_PLAIN = {"±": "+/-", "×": "x", "−": "-", "–": "-", "—": "-", "…": "...", "≤": "<=", "≥": ">="}
_PLAIN |= {"→": "->", "’": "'", "─": "-", "│": "|", "█": "#"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks: a handler for `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    # The corners of a box are + where they are drawn at all.
    return "".join(_PLAIN.get(c, "+" if "─" <= c <= "╿" else "?") for c in missing), error.end


codecs.register_error("jaxcnn", _plain)


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Within it no character is beyond stdout and stderr, and nothing that is wrong with stderr is an error."""
    before = {}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            before[stream] = stream.errors
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="jaxcnn")
    stderr, sys.stderr = sys.stderr, SafeStream(sys.stderr)
    try:
        yield
    finally:
        sys.stderr = stderr
        for stream, errors in before.items():
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors=errors)


class GracefulShutdown:
    """Asks a run to stop when Ctrl-C, SIGTERM or SIGHUP comes, so that it can finish its step and save.

    A second Ctrl-C ends the process at once; in a notebook or another interactive interpreter it raises KeyboardInterrupt
    instead. A program that SIGTERM or SIGHUP has not ended after `GRACE` seconds is ended then. SIGHUP, which a closed
    terminal sends, stays ignored under `nohup`.

    Where the job has several processes, a signal to one of them stops all. The first signal is answered by a line, and the
    second obeyed, in the middle of a compilation too: a thread listens, for Python itself hears nothing until that is over.
    In another thread than the main one, where Python handles no signals, none is listened for.

    Example:
      >>> with GracefulShutdown() as stop:
      ...     stop()
      False
    """

    def __init__(self):
        self.signal = 0
        self._interactive = _interactive()
        self._before: dict[Any, Any] | None = None

    def __call__(self) -> bool:
        """Whether somebody has asked. In a job of several processes all must ask this at the same point."""
        self.signal = multihost.global_max(self.signal)
        return self.signal > 0

    def __enter__(self) -> GracefulShutdown:
        if threading.current_thread() is not threading.main_thread():
            return self
        asking = [s for s in _ASKING if s == signal.SIGINT or signal.getsignal(s) is not signal.SIG_IGN]
        self._before = {s: signal.signal(s, self._ask) for s in asking}
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._woken = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=_listen, args=(reader, self._interactive), daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._before is None:
            return
        signal.set_wakeup_fd(self._woken)
        os.close(self._writer)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.signal and number == signal.SIGINT and self._interactive:
            raise KeyboardInterrupt
        self.signal = self.signal or number

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 0 if nothing came."""
        return 128 + self.signal if self.signal else 0


def _interactive() -> bool:
    """Whether somebody types into this very process, which is then not to be ended: a notebook, `python -i`."""
    import builtins

    return hasattr(sys, "ps1") or bool(sys.flags.interactive) or hasattr(builtins, "get_ipython")


def _listen(reader: int, interactive: bool) -> None:
    """Answer the signals of which a byte comes through the pipe `reader`, until its other end is closed."""
    asked = 0
    until = math.inf
    poll = select.poll()
    poll.register(reader)
    while True:
        left = until - time.monotonic()
        if left <= 0 or not poll.poll(None if left == math.inf else 1000 * left + 1):
            _tell(f"\nended {GRACE:g} s after signal {asked}; the same command goes on from the last saved state\n")
            os._exit(128 + asked)
        if not (number := os.read(reader, 1)):
            break
        if number[0] not in _ASKING:
            continue
        if asked and number[0] == signal.SIGINT and not interactive:
            _tell("\nended at once; the same command goes on from the last state that was saved\n")
            os._exit(128 + signal.SIGINT)
        if not asked:
            asked = number[0]
            second = "another interrupt raises KeyboardInterrupt" if interactive else "Ctrl-C ends it at once"
            _tell(f"\nstopping after this step; {second}\n")
        if number[0] != signal.SIGINT and not interactive:
            asked, until = (asked, until) if until < math.inf else (number[0], time.monotonic() + GRACE)
    os.close(reader)


def _tell(text: str) -> None:
    """Write to stderr while Python's main thread may be busy; not where stderr is closed and 2 may be any file."""
    if sys.__stderr__ is not None:
        with contextlib.suppress(OSError):
            os.write(2, text.encode())


def enable_compilation_cache(folder: str | Path | None = None) -> None:
    """Keep compiled programs in a user cache folder, so that a second start is quick; JAX's own settings win.

    Programs that were written in part are removed when JAX first comes upon one, with one line, and compiled again. Where
    there is no home directory and no other folder is named, nothing is kept.

    Args:
      folder: by default `$JAXCNN_CACHE` or `~/.cache/jaxcnn`, then `programs`.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    if folder is None:
        try:
            folder = cache_root() / "programs"
        except DataError:
            return
    folder = Path(folder).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The small ones too: a network's first weights are drawn by some thirty of them, 5 s of compiling.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    warnings.showwarning = _OneWarning(folder, warnings.showwarning)


class _OneWarning:
    """Shows warnings as before, but of JAX's about its cache one only; damaged programs are removed then."""

    def __init__(self, folder: Path, before: Any):
        self.folder, self.before, self.told = folder, before, set()

    def __call__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        found = re.match(r"Error (read|writ)ing persistent compilation cache entry", str(message))
        if found is None:
            return self.before(message, *args, **kwargs)
        if found[1] in self.told:
            return None
        self.told.add(found[1])
        reason = " ".join(str(message).partition("': ")[2].split())[:150]
        if found[1] == "writ":
            line = f"compiled programs cannot be kept in {self.folder} ({reason})"
        else:
            count = remove_damaged_programs(self.folder)
            line = f"compiled programs in {self.folder} are damaged, and made again: {count} ({reason})"
        print(f"warning: {line}", file=sys.stderr)


def remove_damaged_programs(folder: str | Path) -> int:
    """Remove the programs that JAX's cache `folder` holds in part, as a full disk or a kill leaves them; returns how many."""
    count = 0
    for path in Path(folder).glob("*-cache"):
        try:
            whole = path.is_file() and _unpacks(path.read_bytes())
        except OSError:
            continue
        if not whole:
            with contextlib.suppress(OSError):
                path.unlink()
                count += 1
    return count


def _unpacks(packed: bytes) -> bool:
    """Whether bytes are a whole archive of zlib or Zstandard, whichever JAX has written."""
    if packed[:4] != b"\x28\xb5\x2f\xfd":
        try:
            unpacking = zlib.decompressobj()
            unpacking.decompress(packed)
        except zlib.error:
            return False
        return unpacking.eof
    try:
        zstandard: Any = importlib.import_module("zstandard")  # JAX's choice where it is installed
    except ImportError:
        return False
    try:
        unpacking = zstandard.ZstdDecompressor().decompressobj()
        unpacking.decompress(packed)
    except zstandard.ZstdError:
        return False
    return unpacking.eof
