"""What every script's `main` needs: options from the command line, one-line errors, a polite stop, a compilation cache."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from jaxcnn import hosts
from jaxcnn.checkpoint import CheckpointError
from jaxcnn.data import DataError
from jaxcnn.data.types import printable
from jaxcnn.log import LogError
from jaxcnn.log import reading as reading
from jaxcnn.recipe import RecipeError, one_of
from jaxcnn.weights import WeightsError

T = TypeVar("T")
MISTAKE = 2
"""The exit code for what the user can mend."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_ASKING = (signal.SIGINT, signal.SIGTERM)


def parse(presets: Mapping[str, T], args: Sequence[str] | None = None, about: str | None = None) -> T:
    """Options from the command line: the fields of a dataclass, with the defaults of the preset that `--preset` names.

    Args:
      presets: name -> an instance; the first is the default. The dataclass has a field `preset`.
      args: instead of `sys.argv[1:]`.
      about: what `--help` says first.

    A mistake in them is one line on stderr and exit code 2.
    """
    import tyro

    args = list(sys.argv[1:] if args is None else args)
    named = [b for a, b in itertools.pairwise(args) if a == "--preset"]
    named += [a.partition("=")[2] for a in args if a.startswith("--preset=")]
    default = presets[one_of("preset", named[-1] if named else next(iter(presets)), presets)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(type(default), default=default, args=args, description=about)
    except SystemExit as exit:
        if exit.code:
            raise RecipeError(_line(said.getvalue())) from None
        raise


def _line(box: str) -> str:
    """The words of tyro's framed error, on one line."""
    rows = [re.sub(r"[─-╿]", "", row).strip() for row in box.splitlines()[1:]]
    words = " ".join(row for row in rows if row)
    return re.sub(r"[.\s]*For full helptext.*", "; --help lists the options", words)


@contextlib.contextmanager
def friendly() -> Iterator[None]:
    """Turn the errors a user can mend into one line on stderr and exit code 2; others keep their traceback."""
    with hosts.together():
        try:
            yield
        except (RecipeError, DataError, CheckpointError, LogError, WeightsError, hosts.HostError) as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            sys.exit(MISTAKE)
        except OSError as error:
            if error.errno not in _DISK:
                raise
            what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            print(f"error: {what}; mend that, or write --out with another folder", file=sys.stderr)
            sys.exit(MISTAKE)


class Stop:
    """Asks a run to stop when Ctrl-C or SIGTERM comes, so that it can finish its step and save; a second Ctrl-C ends it.

    Where the job has several processes, a signal to one of them stops all. The first signal is answered by a line, and the
    second obeyed, in the middle of a compilation too: a thread listens, for Python itself hears nothing until that is over.

    Example:
      >>> with Stop() as stop:
      ...     stop()
      False
    """

    def __init__(self):
        self.signal = 0

    def __call__(self) -> bool:
        """Whether somebody has asked. In a job of several processes all must ask this at the same point."""
        self.signal = hosts.most(self.signal)
        return self.signal > 0

    def __enter__(self) -> Stop:
        self._before = {s: signal.signal(s, self._ask) for s in _ASKING}
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._woken = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=_listen, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        signal.set_wakeup_fd(self._woken)
        os.close(self._writer)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        self.signal = self.signal or number

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, 0 if nothing came."""
        return 128 + self.signal if self.signal else 0


def _listen(reader: int) -> None:
    """Answer the signals of which a byte comes through the pipe `reader`, until its other end is closed."""
    asked = False
    while number := os.read(reader, 1):
        if number[0] not in _ASKING:
            continue
        if asked and number[0] == signal.SIGINT:
            os.write(2, b"\nended at once; the same command goes on from the last state that was saved\n")
            os._exit(128 + signal.SIGINT)
        if not asked:
            os.write(2, b"\nstopping after this step; Ctrl-C ends it at once\n")
        asked = True
    os.close(reader)


def cache_programs(folder: str | Path | None = None) -> None:
    """Keep compiled programs in a user cache folder, so that a second start is quick; JAX's own settings win.

    Args:
      folder: by default `$JAXCNN_CACHE` or `~/.cache/jaxcnn`, then `programs`.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = os.environ.get("JAXCNN_CACHE") or Path(base, "jaxcnn")
    jax.config.update("jax_compilation_cache_dir", str(folder or Path(root, "programs")))
    # The small ones too: a network's first weights are drawn by some thirty of them, 5 s of compiling.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
