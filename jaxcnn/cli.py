"""Command lines of scripts.

They need options, errors of one line, stop signals (`jaxcnn.shutdown`) and a compilation cache.
"""

from __future__ import annotations

import ast
import codecs
import contextlib
import contextvars
import difflib
import errno
import importlib
import io
import itertools
import math
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
import types
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax

from jaxcnn import multihost, option_help
from jaxcnn._util import to_one_line
from jaxcnn.arguments import check_path
from jaxcnn.checkpoint import CheckpointError
from jaxcnn.config import ArgumentError, check_choice, format_value
from jaxcnn.data import DataError
from jaxcnn.data.cache import cache_root
from jaxcnn.data.types import printable
from jaxcnn.option_help import SharedOptions as SharedOptions
from jaxcnn.option_help import option_values
from jaxcnn.progress import SafeStream
from jaxcnn.run_log import LogError
from jaxcnn.run_log import record_errors as record_errors
from jaxcnn.shutdown import GracefulShutdown as GracefulShutdown
from jaxcnn.weights import WeightsError

T = TypeVar("T")
EXIT_USAGE_ERROR = 2
"""Exit code of errors that the user can fix."""
_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.EIO),
    # A file where a folder is needed, and the reverse.
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
)
_COLUMNS = (40, 200)
"""Minimum and maximum columns of tyro's messages.

With one column, tyro's layout takes minutes.
"""
_flags: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar(
    "flags", default=types.MappingProxyType({})
)
"""Defaults of the options that `parse` has read, by name.

Messages about these options name the flag that the user types.
"""


def parse(
    presets: Mapping[str, T],
    args: Sequence[str] | None = None,
    description: str | None = None,
    shared: SharedOptions | None = None,
    implied: Mapping[str, str] | None = None,
) -> T:
    """Parse the options of the command line.

    Options are the fields of a dataclass. Their defaults are those of the preset that `--preset`
    names.

    Args:
      presets: instances by name; the first is the default. The dataclass has a field `preset`.
      args: arguments instead of `sys.argv[1:]`.
      description: docstring of the script, with its command. `--help` has its first line and its
        commands.
      shared: groups, descriptions and bounds of options; None has none.
      implied: option -> preset that it selects, where `--preset` is missing.

    Raises:
      ArgumentError: an option is invalid or empty, an integer is beyond its bounds, a number is not
        finite, or the folder `out` cannot be written. In `cli_errors` it becomes one line on stderr
        and exit code 2.
    """
    args = list(sys.argv[1:] if args is None else args)
    shared = shared or SharedOptions()
    _check_not_empty(args)
    args = _add_preset(args, implied or {})
    names = [value for flag, value in itertools.pairwise(args) if flag == "--preset"]
    names += [arg.partition("=")[2] for arg in args if arg.startswith("--preset=")]
    preset = names[-1] if names else next(iter(presets))
    default = presets[check_choice("--preset", preset, presets)]
    if {"-h", "--help"} & set(args):
        columns = shutil.get_terminal_size().columns
        text = option_help.format_help(presets, default, description, columns, shared, implied)
        print(text, end="")
        sys.exit(0)
    defaults = dict(option_values(default))
    _flags.set(defaults)
    # Help does not wait for it.
    import tyro

    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), _message_columns():
            options = tyro.cli(type(default), default=default, args=args)
    except SystemExit:
        raise ArgumentError(_tyro_error(stderr.getvalue())) from None
    _check_exclusive(args, options, shared.exclusive)
    for name, value in option_values(options):
        _check_bounds(name, value, defaults[name], shared.bounds)
        # What only draws has its own message for a folder that is missing.
        only_draws = getattr(options, "plot_only", False)
        if name == "out" and isinstance(value, Path) and not (only_draws and not value.exists()):
            check_output_folder(value)
    return options


def check_output_folder(folder: Path, flag: str = "--out", kind: str = "a folder") -> None:
    """Check that a folder can be created and written; create nothing.

    Args:
      folder: of a script's files.
      flag: option that names the folder or a file in it, for the message.
      kind: what the option expects, for the message.

    Raises:
      ArgumentError: the folder is a file or is in one, or it cannot be written.
    """
    name = flag.lstrip("-").replace("-", "_")
    # A name of too many bytes, for which nothing exists either.
    check_path(name, str(folder), example=shlex.quote("runs/new"))
    try:
        candidates = (folder, *folder.absolute().parents)
        existing = next(path for path in candidates if os.path.lexists(path))
        if not existing.is_dir():
            raise ArgumentError(f"{existing} is a file; write {flag} with {kind}")
        # Permissions alone do not tell: nobody can write in /proc.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        # There is room for no file, which is an error of its own.
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return
        raise ArgumentError(
            f"cannot write in {folder}: {error.strerror}; write {flag} with {kind} of yours"
        ) from None


def _check_not_empty(args: list[str]) -> None:
    """Check that no value is empty.

    As a path it would be the current folder.

    Raises:
      ArgumentError: a value is empty.
    """
    for previous, arg in itertools.pairwise(["", *args]):
        if arg.startswith("--"):
            flag, equals, value = arg.partition("=")
        else:
            flag, equals, value = previous, "=", arg
        if equals and not value.strip():
            name = flag if flag.startswith("-") else "an argument"
            raise ArgumentError(
                f"{name} is empty; expected a value. Leave it out, or write one after it"
            )


def given_flags(args: Sequence[str]) -> set[str]:
    """Return the flags on a command line, as `flag_name` writes them.

    Example:
      >>> sorted(given_flags(["--num_steps=3", "--out", "runs/a"]))
      ['--num-steps', '--out']
    """
    return {arg.partition("=")[0].replace("_", "-") for arg in args if arg.startswith("--")}


def _add_preset(args: list[str], implied: Mapping[str, str]) -> list[str]:
    """Return the arguments with the preset that an option selects, if they have none."""
    flags = given_flags(args)
    names = [name for option, name in implied.items() if flag_name(option) in flags]
    return ["--preset", names[0], *args] if names and "--preset" not in flags else args


def _check_exclusive(
    args: Sequence[str], options: Any, exclusive: Sequence[tuple[str, str]]
) -> None:
    """Check that no two exclusive options are there, and that the first has values.

    Raises:
      ArgumentError: both are there, or the first is without a value.
    """
    flags = given_flags(args)
    for name, other in exclusive:
        if flag_name(name) not in flags:
            continue
        if flag_name(other) in flags:
            raise ArgumentError(
                f"{flag_name(name)} and {flag_name(other)} are both there; expected one of them. "
                f"Leave out {flag_name(other)}"
            )
        if not getattr(options, name):
            raise ArgumentError(
                f"{name} is empty; expected a value. Write {flag_name(name)} 0 1, "
                f"or {flag_name(other)} 2"
            )


def _check_bounds(
    name: str, value: Any, default: Any, bounds: Mapping[str, tuple[int, int]]
) -> None:
    low, high = bounds.get(name.rpartition(".")[2], (-math.inf, math.inf))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        advice = _advice(name, default)
        if not math.isfinite(number):
            raise ArgumentError(f"{name} is {number}; expected a finite number. {advice}")
        if not low <= number <= high:
            kind = "a number" if isinstance(number, float) else "a whole number"
            raise ArgumentError(
                f"{name} is {format_value(number)}; expected {kind} of {low} to {high}. {advice}"
            )


def _advice(name: str, default: Any) -> str:
    """Return the advice to use the default."""
    if name == "seeds":
        return "Use --seeds 0 1 2, or --num-seeds 3"
    if default is None or default == ():
        return f"Leave out {flag_name(name)}, or write another"
    text = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"Use {flag_name(name)} {text}"


def flag_name(name: str) -> str:
    """Return the flag of an option.

    Example:
      >>> flag_name("keep_every")
      '--keep-every'
    """
    return "--" + name.replace("_", "-")


@contextlib.contextmanager
def _message_columns() -> Iterator[None]:
    """Set a number of columns within `_COLUMNS`, for layouts of text."""
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


def _tyro_error(box: str) -> str:
    """Return the text of tyro's framed error, on one line."""
    frame = r"[─-╿]|-{3,}|^[|+]|[|+]$"
    rows = [re.sub(frame, "", row.strip()).strip() for row in box.splitlines()[1:]]
    text = " ".join(row for row in rows if row)
    match = re.match(r"Error parsing --(\S+): .*?(int|float)\D*(?:base 10)?: '(.*?)'", text)
    if match:
        name, kind, value = match.groups()
        advice = _advice(name, _flags.get().get(name.replace("-", "_")))
        # Such as 1e6 for 1000000.
        with contextlib.suppress(ValueError, OverflowError):
            if float(value) == int(float(value)):
                advice = f"Use --{name} {int(float(value))}"
        article = "whole " if kind == "int" else ""
        return f"--{name} is {format_value(value)}; expected a {article}number. {advice}"
    match = re.match(r"Error parsing --(\S+): Could not find valid parse .*?: (\[.*?\])", text)
    if match:
        name, values = match.groups()
        default = _flags.get().get(name.replace("-", "_"))
        kind = re.search(rf"--{name} \[?(INT|FLOAT)\b", text)
        kinds = {"INT": "whole numbers", "FLOAT": "numbers"}
        expected = kinds[kind[1]] if kind else "other values"
        words = " ".join(re.findall(r"'(.*?)'", values)) or values
        return f"--{name} is {words}; expected {expected}. {_advice(name, default)}"
    match = re.match(r"Unrecognized options: ([^-\s,][^,\s]*)", text)
    if match:
        word = format_value(match[1])
        return f"{word} belongs to no option; options start with --. --help lists the options"
    match = re.match(
        r"invalid choice '(.*?)' for argument '(--\S+)'\. Expected one of (\(.*?\))", text
    )
    if match:
        value, flag, choices = match.groups()
        try:
            check_choice(flag, value, re.findall(r"'(.*?)'", choices))
        except ArgumentError as error:
            return str(error)
    match = re.match(r"Unrecognized options: (--?[^,\s]+)", text)
    if match:
        flag = match[1].partition("=")[0]
        names = [flag_name(name)[2:] for name in _flags.get()]
        nearest = difflib.get_close_matches(flag.lstrip("-"), names, n=1)
        hint = f"did you mean --{nearest[0]}? " if nearest else ""
        return f"{flag} is no option of this script; {hint}--help lists the options"
    choices = r"Expected one of \((.*?),?\)"
    text = re.sub(choices, lambda match: "Expected one of " + match[1].replace("'", ""), text)
    text = re.sub(r"\s*Argument helptext:.*?(?=For full helptext|$)", ". ", text)
    return re.sub(r"[.\s]*For full helptext.*", "; --help lists the options", text)


def _name_flags(message: str) -> str:
    """Replace the names of fields and Python's values in a message by flags.

    So it has `--keep-every is -1`, `write --batch-size 40` and `write --milestones 150 225`.
    """
    options = _flags.get()
    subject = re.match(r"(\w+(?:\.\w+)*) (is|spans) (\([^()]*\))?", message)
    if subject and subject[1] in options:
        name, verb, value = subject.groups()
        rest = message[subject.end() :]
        if value is not None:
            value = _command_line_text(value) or "empty"
        message = f"{flag_name(name)} {verb} {value or ''}{rest}"

    def to_flag(match: re.Match[str]) -> str:
        verb, name, value = match.groups()
        if name not in options:
            return match[0]
        flag = flag_name(name)
        if value in ("True", "False"):
            return verb + (flag if value == "True" else f"--no-{flag[2:]}")
        default = options[name]
        # The default suits the preset, where a config's example may not.
        if value.startswith("(") and isinstance(default, tuple) and default:
            return f"{verb}{flag} {' '.join(map(str, default))}"
        return f"{verb}{flag} {_command_line_text(value)}"

    value_pattern = r"""'[^']*'|"[^"]*"|\([^()]*\)|\w[\w.-]*(?![\w(\[=])"""
    return re.sub(rf"(\b(?:write|Write|Use|use|and|or) )(\w+)=({value_pattern})", to_flag, message)


def _command_line_text(value: str) -> str:
    """Return a value of Python as words of a command line.

    Example:
      >>> _command_line_text("(32000, 48000)"), _command_line_text("'adam'")
      ('32000 48000', 'adam')
    """
    if value[0] not in "('\"":
        return value
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    words = parsed if isinstance(parsed, tuple) else (parsed,)
    return " ".join(shlex.quote(str(word)) for word in words)


def _fail(message: str) -> NoReturn:
    """Print a message on one line of stderr, and exit (2)."""
    print(f"error: {printable(to_one_line(message))}", file=sys.stderr)
    sys.exit(EXIT_USAGE_ERROR)


@contextlib.contextmanager
def cli_errors() -> Iterator[None]:
    """Print errors that the user can fix, and exit with code 2.

    They become one line on stderr. Others keep their traceback. Inside the block, characters that
    the terminal lacks are replaced, and a stderr that cannot be written is no error.
    """
    token = _flags.set({})
    with _safe_streams(), multihost.abort_all_on_error():
        try:
            yield
            # Flushed here, where the error of a pipe without a reader can be handled.
            if sys.stdout is not None:
                sys.stdout.flush()
        except (
            ArgumentError,
            DataError,
            CheckpointError,
            LogError,
            WeightsError,
            multihost.MultihostError,
        ) as error:
            _fail(_name_flags(str(error)))
        # Such as that of `| head`.
        except BrokenPipeError:
            # Else the interpreter's own flush would fail again.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(128 + signal.SIGPIPE)
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            if not error.filename and _stdout_fails():
                _fail(
                    f"standard output cannot be written ({error.strerror}); "
                    "expected a pipe or file with room. Use another"
                )
            fault = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            _fail(f"{fault}; fix that, or write --out with another folder")
        except Exception as error:
            if (reason := _memory_message(error) or _device_message(error)) is None:
                raise
            _fail(reason)
        finally:
            _flags.reset(token)


def _stdout_fails() -> bool:
    """Check if stdout cannot be written.

    A full disk there is not that of `--out`.
    """
    try:
        sys.stdout.flush()
    except OSError:
        return True
    except (AttributeError, ValueError):
        pass
    return False


def _memory_message(error: Exception) -> str | None:
    """Return a message for an error of too little memory.

    The memory is the host's or a device's. The message is None for other errors.
    """
    text = to_one_line(error)
    phrases = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "bad_alloc")
    is_device_error = isinstance(error, jax.errors.JaxRuntimeError) and any(
        phrase in text for phrase in phrases
    )
    if not isinstance(error, MemoryError) and not is_device_error:
        return None
    options = _flags.get()
    names = [
        name
        for name in ("width", "batch_size", "batch", "hidden", "size", "images")
        if name in options
    ]
    advice = " or ".join(f"a smaller {flag_name(name)}" for name in names[:3])
    advice = advice or "a smaller network or batch"
    return (
        f"out of memory ({text[:150] or type(error).__name__}); "
        f"expected work that fits. Write {advice}"
    )


def _device_message(error: Exception) -> str | None:
    """Return a message for an error of JAX's search for devices.

    It is None for other errors.
    """
    files = [Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)]
    is_runtime_error = isinstance(error, (RuntimeError, AssertionError))
    if not is_runtime_error or "xla_bridge.py" not in files[-3:]:
        return None
    reason = to_one_line(error, 150) or "no device of that kind was found"
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return (
            f"JAX_PLATFORMS is {platforms!r} ({reason}); "
            "expected a kind of device of this machine. Use JAX_PLATFORMS=cpu"
        )
    return (
        f"JAX finds no device ({reason}); expected a working CPU, GPU or TPU. Use JAX_PLATFORMS=cpu"
    )


_ASCII = {"±": "+/-", "×": "x", "−": "-", "–": "-", "—": "-", "…": "...", "≤": "<="}
_ASCII |= {"≥": ">=", "→": "->", "’": "'", "─": "-", "│": "|", "█": "#"}


def _replace_with_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks.

    It is a handler for `codecs.register_error`.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    # Corners of boxes become +, other characters ?.
    text = "".join(_ASCII.get(c, "+" if "─" <= c <= "╿" else "?") for c in missing)
    return text, error.end


codecs.register_error("jaxcnn", _replace_with_ascii)


@contextlib.contextmanager
def _safe_streams() -> Iterator[None]:
    """Replace characters that stdout and stderr lack, and ignore faults of stderr."""
    error_handlers = {}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            error_handlers[stream] = stream.errors
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="jaxcnn")
    stderr, sys.stderr = sys.stderr, SafeStream(sys.stderr)
    try:
        yield
    finally:
        sys.stderr = stderr
        for stream, handler in error_handlers.items():
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors=handler)


def enable_compilation_cache(folder: str | Path | None = None) -> None:
    """Store compiled programs in a folder.

    A second start is then quick. JAX's own settings have precedence. Damaged programs are removed
    when JAX first reads one, with a warning, and are compiled again. Without a home directory or
    another folder, nothing is stored.

    Args:
      folder: by default `programs` in `$JAXCNN_CACHE` or `~/.cache/jaxcnn`.
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
    # Small programs are stored too. Some thirty of them initialize a network, 5 s of compilation.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    warnings.showwarning = _CacheWarnings(folder, warnings.showwarning)


class _CacheWarnings:
    """Function that shows warnings, with limits for JAX's cache.

    It shows one warning of each kind about the cache. It also removes damaged programs.
    """

    def __init__(self, folder: Path, show: Any):
        self.folder, self.show, self.shown_kinds = folder, show, set()

    def __call__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        match = re.match(r"Error (read|writ)ing persistent compilation cache entry", str(message))
        if match is None:
            return self.show(message, *args, **kwargs)
        kind = match[1]
        if kind in self.shown_kinds:
            return None
        self.shown_kinds.add(kind)
        reason = to_one_line(str(message).partition("': ")[2], 150)
        if kind == "writ":
            line = f"compiled programs cannot be kept in {self.folder} ({reason})"
        else:
            count = remove_damaged_programs(self.folder)
            line = (
                f"compiled programs in {self.folder} are damaged, "
                f"and made again: {count} ({reason})"
            )
        print(f"warning: {line}", file=sys.stderr)


def remove_damaged_programs(folder: str | Path) -> int:
    """Remove incomplete programs from JAX's cache.

    A full disk or a kill leaves them.

    Args:
      folder: of the cache.

    Returns:
      The number of removed programs.
    """
    count = 0
    for path in Path(folder).glob("*-cache"):
        try:
            is_complete = path.is_file() and _is_complete_archive(path.read_bytes())
        except OSError:
            continue
        if not is_complete:
            with contextlib.suppress(OSError):
                path.unlink()
                count += 1
    return count


def _is_complete_archive(content: bytes) -> bool:
    """Check if bytes are a complete archive of zlib or Zstandard.

    JAX writes either.
    """
    if content[:4] != b"\x28\xb5\x2f\xfd":
        try:
            decompressor = zlib.decompressobj()
            decompressor.decompress(content)
        except zlib.error:
            return False
        return decompressor.eof
    try:
        # JAX uses it if it is installed.
        zstandard: Any = importlib.import_module("zstandard")
    except ImportError:
        return False
    try:
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        decompressor.decompress(content)
    except zstandard.ZstdError:
        return False
    return decompressor.eof
