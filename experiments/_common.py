"""Command-line values and main loops that several scripts have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeVar

from jaxcnn import cli

StrategyName = Literal["auto", "pmap", "jit"]
"""Values of a script's `--strategy`."""
DtypeName = Literal["float32", "bfloat16"]
"""Values of a script's `--dtype`."""


class StudyOptions(Protocol):
    """Options that `run_study` reads."""

    @property
    def out(self) -> Path:
        """Folder of the study."""
        ...

    @property
    def plot_only(self) -> bool:
        """True to draw from the runs in `out` and train nothing."""
        ...


OptionsT = TypeVar("OptionsT", bound=StudyOptions)


def run_study(
    presets: Mapping[str, OptionsT],
    args: list[str] | None,
    description: str | None,
    train: Callable[[OptionsT, cli.GracefulShutdown], bool],
    draw: Callable[[OptionsT], None],
) -> int:
    """Train the missing runs, then draw tables and figures.

    Args:
      presets: name -> the options with that preset's defaults; the first is the default.
      args: command-line arguments instead of `sys.argv[1:]`.
      description: text at the head of `--help`.
      train: `train(options, stop)` returns False if the user stopped it. Skipped by `--plot-only`.
      draw: `draw(options)` reads what `options.out` holds.

    Returns:
      The process's exit code: 0, or that of the signal that stopped it.
    """
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = cli.parse(presets, args, description=description)
        if not options.plot_only and not train(options, stop):
            print_resume_hint()
            return stop.exit_code
        with cli.record_errors(options.out):
            draw(options)
    return 0


def run_parts(parts: Mapping[str, ModuleType], options: Any, stop: Any) -> bool:
    """Run each part's `run(options, stop)`, which returns True when it is complete.

    Returns:
      False if the user stopped a part; the parts after it are not run.
    """
    for name, part in parts.items():
        print(f"== {name}", file=sys.stderr)
        if not part.run(options, stop):
            print_resume_hint()
            return False
    return True


def print_resume_hint() -> None:
    """Print how to resume a study that was stopped and saved."""
    print("stopped and saved; the same command resumes from here", file=sys.stderr)
