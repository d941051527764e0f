"""Command-line values, main loops and progress that several scripts have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeVar

from jaxcnn import cli
from jaxcnn.progress import Progress

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


class StepProgress:
    """Callback of a run that reports its steps as progress.

    Attributes:
      progress: the bar, which other runs may share.
      steps: of the run.
      prefix: text in front of the step.
      step: the last reported step.
    """

    def __init__(self, progress: Progress, steps: int, prefix: str = ""):
        self.progress, self.steps, self.prefix = progress, steps, prefix
        self.step: int | None = None

    def __call__(self, step: int, row: Mapping[str, Any] | None) -> None:
        """Report a step.

        Args:
          step: the first is where the run starts from.
          row: of metrics, after some of the steps.
        """
        position = f"{self.prefix}step {step}/{self.steps}"
        if self.step is None:
            self.progress.skip(step)
        else:
            self.progress.advance(step - self.step, position)
        self.step = step
        if row is not None:
            errors = (
                f"train error {row['train_error']:5.2f}%  {row['eval_split']} error "
                f"{row['eval_error']:5.2f}%"
            )
            self.progress.write(f"{position}  {errors}  {row['images_per_second']:,.0f} images/s")
