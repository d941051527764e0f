"""Options, main loops, results and progress that several scripts have in common."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeVar

import jaxcnn as jc
from experiments._options import parse_options
from jaxcnn import cli, multihost, parallel, runs, tables
from jaxcnn.arguments import format_value
from jaxcnn.progress import Progress
from jaxcnn.state import State, init_state

StrategyName = Literal["auto", "pmap", "jit"]
"""Values of a script's `--strategy`."""
DtypeName = Literal["float32", "bfloat16"]
"""Values of a script's `--dtype`."""


FormatName = Literal["png", "svg", "pdf"]
"""Values of a script's `--format`."""


READ_TIMEOUT = 60.0
"""Seconds to wait for another process that reads the checkpoints of a finished run."""


@dataclass(frozen=True, kw_only=True)
class SeedOptions:
    """Options of a script that repeats its runs from several seeds."""

    seeds: tuple[int, ...] = ()
    """Seeds of the runs, such as 0 1 2; none is 0, 1, ... up to --num-seeds."""
    num_seeds: int = 1
    """Runs of each kind, from seeds 0, 1, ..."""

    def run_seeds(self) -> tuple[int, ...]:
        """Return the seeds of the runs.

        Raises:
          ArgumentError: there are none, or one is there twice.
        """
        if len(set(self.seeds)) < len(self.seeds):
            values = " ".join(map(str, self.seeds))
            unique = " ".join(map(str, dict.fromkeys(self.seeds)))
            raise jc.ArgumentError(
                f"seeds is {values}; expected each seed once: write --seeds {unique}"
            )
        if self.num_seeds < 1:
            raise jc.ArgumentError(
                f"num_seeds is {self.num_seeds}; expected at least 1: write --num-seeds 2"
            )
        return self.seeds or tuple(range(self.num_seeds))


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Options of a script that chooses its devices."""

    strategy: StrategyName = "auto"
    """Division of a batch over devices: jit shards, pmap maps, auto is jit."""
    devices: int | None = None
    """Number of devices of this machine to use, the first ones; None is all."""

    def make_strategy(self) -> parallel.Strategy:
        """Return the strategy of the options.

        Raises:
          ArgumentError: there are fewer devices.
        """
        return jc.strategy(self.strategy, self.devices)


@dataclass(frozen=True, kw_only=True)
class FigureOptions:
    """Options of a script that draws."""

    format: FormatName = "png"
    """File format of the figures."""

    def save(self, figure: Any, path: Path) -> None:
        """Write a figure.

        Args:
          figure: of matplotlib.
          path: of the file, without the suffix.
        """
        # The main command imports matplotlib (a third of a second) only when it draws.
        from jaxcnn import plots

        plots.save(figure, path.with_name(f"{path.name}.{self.format}"))


DISPLAY_NAMES = {"cifar100": "CIFAR-100", "cifar10": "CIFAR-10", "mnist": "MNIST", "svhn": "SVHN"}
DISPLAY_NAMES |= {"fashion_mnist": "Fashion-MNIST"}
"""Names of data sets in titles."""


def display_names(text: str) -> str:
    """Return a title with the names of data sets as their authors write them.

    Example:
      >>> display_names("plain-20 on cifar10"), display_names("fashion_mnist")
      ('plain-20 on CIFAR-10', 'Fashion-MNIST')
    """
    return re.sub(r"\w+", lambda word: DISPLAY_NAMES.get(word[0], word[0]), text)


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
      train: `train(options, stop)` returns False if the user stopped it, or other processes still
        train some of the runs. Skipped by `--plot-only`.
      draw: `draw(options)` reads what `options.out` holds.

    Returns:
      The process's exit code: 0, or that of the signal that stopped it.
    """
    with cli.cli_errors(), cli.GracefulShutdown() as stop:
        options = parse_options(presets, args, description=description)
        if not options.plot_only and not train(options, stop):
            print_hint(stop)
            return stop.exit_code
        with cli.record_errors(options.out):
            draw(options)
    return 0


def run_all(
    all_runs: Mapping[str, jc.ExperimentConfig],
    data: jc.Dataset,
    out: Path,
    study: Mapping[str, jc.ExperimentConfig] | None = None,
    **kwargs: Any,
) -> bool:
    """Train the missing runs, but for those that other processes train.

    Args:
      all_runs: as in `jaxcnn.runs.sweep`.
      data: likewise.
      out: likewise.
      study: all configs of the folder by name, if they are of several kinds.
      kwargs: as in `jaxcnn.runs.sweep`.

    Returns:
      True if all runs are finished. False if the user stopped it, or others still train some.

    Raises:
      ArgumentError: `out` holds runs of another experiment, or as in `jaxcnn.runs.sweep`.
    """
    check_own_folder(study or all_runs, out)
    results = runs.sweep(all_runs, data, out, **kwargs)
    return results is not None and len(results) == len(all_runs)


def check_own_folder(all_runs: Mapping[str, jc.ExperimentConfig], out: Path) -> None:
    """Check before training that a folder holds no runs of another experiment.

    Those have names and data of another kind. Numbers in both may differ, such as the depth or the
    class that is held out.

    Args:
      all_runs: the new configs by name.
      out: folder of the study.

    Raises:
      ArgumentError: it does. The message has the run.
    """
    names = {_without_digits(name) for name in all_runs}
    datasets = {_without_digits(config.dataset) for config in all_runs.values()}
    for path in sorted(out.glob("*/config.json")):
        name, dataset = path.parent.name, jc.ExperimentConfig.load(path.parent).dataset
        if _without_digits(name) not in names and _without_digits(dataset) not in datasets:
            raise jc.ArgumentError(
                f"{out} has a run of another experiment, {name!r} on {dataset!r}; expected those "
                f"of this one, such as {next(iter(all_runs))!r}. Write --out with another folder."
            )


def _without_digits(text: str) -> str:
    return re.sub(r"\d+", "", text)


def sweep_options(options: Any, stop: cli.GracefulShutdown) -> dict[str, Any]:
    """Return the arguments of `run_all` that are options of a script.

    Args:
      options: with `make_strategy` and `tensorboard`.
      stop: returns true if the user stopped it.
    """
    return {
        "strategy": options.make_strategy(),
        "tensorboard": options.tensorboard,
        "should_stop": stop,
    }


def run_optimizer(config: jc.ExperimentConfig) -> Any:
    """Return the optimizer of a run."""
    train = config.train
    return jc.create_optimizer(config.optimizer, train.num_steps, seed=train.seed)


def restored_state(
    folder: Path,
    network: tuple[Any, Any],
    train: jc.TrainConfig,
    data: jc.Dataset,
    loss: Any = "cross-entropy",
) -> State | None:
    """Return the last state of a run; None without a checkpoint.

    Args:
      folder: of the run.
      network: its network and its optimizer.
      train: of its config.
      data: that it was trained on.
      loss: that it was trained with; a name, or a function.
    """
    like = init_state(*network, train, data, loss=loss)
    with jc.Checkpoints(folder / "checkpoints", timeout=READ_TIMEOUT) as checkpoints:
        return checkpoints.restore(like)


def first_converged(
    all_runs: Mapping[str, jc.ExperimentConfig], out: Path
) -> tuple[str, jc.ExperimentConfig] | None:
    """Return name and config of the first finished run that did not diverge; None without one."""
    converged = {run.name for run in runs.finished_runs(out) if run.divergence is None}
    return next((item for item in all_runs.items() if item[0] in converged), None)


def check_each_once(option: str, values: Sequence[str], noun: str, advice: str) -> None:
    """Check the values of an option that names what is compared.

    Args:
      option: without dashes.
      values: of the option.
      noun: what a value names.
      advice: values that are right.

    Raises:
      ArgumentError: there are none, or one is there twice.
    """
    if len(set(values)) < len(values) or not values:
        raise jc.ArgumentError(
            f"--{option} is {' '.join(values) or 'empty'}; expected each {noun} once, and at least "
            f"one: write --{option} {advice}"
        )


def grouped_runs(
    out: Path,
    names: Iterable[str],
    name_of: Callable[[runs.Run], str | None] = lambda run: run.name.split("-seed")[0],
) -> dict[str, list[runs.Run]]:
    """Return the finished runs of each row of a table, in the order of the rows.

    Args:
      out: folder of the study.
      names: of rows. Those without a run are left out.
      name_of: returns a run's row, or None.

    Raises:
      ArgumentError: a run is of no row, or the rows cannot be compared (`check_same_settings`).
    """
    groups: dict[str, list[runs.Run]] = {name: [] for name in names}
    for run in runs.finished_runs(out):
        name = name_of(run)
        if name not in groups:
            raise jc.ArgumentError(
                f"{out} has a run called {run.name!r}; expected those of {', '.join(groups)}. "
                "Write --out with a folder of this experiment."
            )
        groups[name].append(run)
    groups = {name: group for name, group in groups.items() if group}
    check_same_settings(groups, out)
    return groups


def check_same_settings(groups: Mapping[str, list[runs.Run]], out: Path) -> None:
    """Check that the runs of a table differ only in what the table compares.

    Runs of one row differ only in their seeds. All runs have the same data, number of steps and
    batch size, which are those of the text below the table.

    Args:
      groups: runs of each row, by its name.
      out: folder of the study, for the message.

    Raises:
      ArgumentError: they differ in more. The message has the setting, its values and the runs.
    """
    first = next(run for group in groups.values() for run in group)
    for group in groups.values():
        for run in group:
            # The first run of the row too, whose other settings may be its own.
            for other, fields in ((first, _TABLE_SETTINGS), (group[0], None)):
                ours, theirs = (_settings(item.config, fields) for item in (run, other))
                _check_equal(out, (other.name, theirs), (run.name, ours))


def check_new_runs(all_runs: Mapping[str, jc.ExperimentConfig], out: Path) -> None:
    """Check before training that runs can be in one table with those of a folder.

    Args:
      all_runs: the new configs by name. A name ends in "-seed" and the seed.
      out: folder of the study. Its runs of the same names are left to `jaxcnn.runs.sweep`.

    Raises:
      ArgumentError: they cannot, as in `check_same_settings`.
    """
    folders = sorted(path.parent for path in out.glob("*/config.json"))
    for folder in folders:
        if folder.name in all_runs:
            continue
        recorded = jc.ExperimentConfig.load(folder)
        for name, config in all_runs.items():
            is_same_row = name.split("-seed")[0] == folder.name.split("-seed")[0]
            fields = None if is_same_row else _TABLE_SETTINGS
            ours, theirs = (
                {
                    setting: value
                    for setting, value in _settings(item, fields).items()
                    # Records describe a model and a loss of the script's own.
                    if setting.split(".")[0] not in ("model", "loss", "loss_kwargs")
                }
                for item in (config, recorded)
            )
            _check_equal(out, (folder.name, theirs), (name, ours))


def _check_equal(out, first, second):
    (name, values), (other_name, other_values) = first, second
    for setting in sorted(values.keys() | other_values.keys()):
        value, other = values.get(setting), other_values.get(setting)
        if value != other:
            raise jc.ArgumentError(
                f"{out} has runs of several settings: {setting} is {format_value(value)} in "
                f"{name!r} and {format_value(other)} in {other_name!r}; expected one value. Write "
                "--out with another folder for the other settings."
            )


_TABLE_SETTINGS = ("dataset", "max_train_examples", "train.num_steps", "train.batch_size")


def _settings(config: jc.ExperimentConfig, fields: tuple[str, ...] | None) -> dict[str, Any]:
    """Return the named fields of a config by their path; None is all but the seed."""
    values = {}
    todo: dict[str, Any] = json.loads(config.to_json())
    while todo:
        name, value = todo.popitem()
        if isinstance(value, dict):
            todo |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            values[name] = value
    if fields is None:
        values.pop("train.seed")
        return values
    return {name: values[name] for name in fields}


def measured_rows(run: runs.Run) -> list[dict[str, Any]]:
    """Return the rows of a run that have its measures.

    The row of a step at which training diverged has none.
    """
    return [row for row in run.rows if "diverged" not in row]


def divergence_notes(all_runs: Iterable[runs.Run]) -> list[str]:
    """Return a sentence for each run that diverged."""
    return [f"{run.name}: {run.divergence}" for run in all_runs if run.divergence is not None]


def seed_pairs(
    first: Iterable[runs.Run], second: Iterable[runs.Run], key: str
) -> list[tuple[Any, Any]]:
    """Return the results of two groups of runs from the same seeds, without diverged runs.

    A measure that is not a number is None in the record.
    """
    one, other = (
        {run.config.train.seed: run.result[key] for run in group if run.divergence is None}
        for group in (first, second)
    )
    return [(one[seed], other[seed]) for seed in one if seed in other]


def paired_sentence(
    subject: str, changes: Sequence[float], unit: str = " points", digits: int = 1
) -> str:
    """Return a sentence on changes that are paired by seed; empty without two.

    Example:
      >>> paired_sentence("skips change the error", [1.0, 2.0, 3.0])
      ' Paired by seed, skips change the error by +2.0 +- 2.5 points.'
    """
    change = tables.seed_statistics(changes)
    if change.ci95 is None:
        return ""
    return (
        f" Paired by seed, {subject} by {change.mean:+.{digits}f} +- "
        f"{change.ci95:.{digits}f}{unit}."
    )


def write_results(
    options: Any,
    table: list[dict[str, Any]],
    notes: list[str],
    all_runs: Iterable[runs.Run],
    figure: Any,
) -> str:
    """Write OUT/table, OUT/curves.csv and OUT/curves.

    Args:
      options: with `out`, `format` and `save`.
      table: rows.
      notes: paragraphs below the table.
      all_runs: whose rows are in curves.csv.
      figure: OUT/curves; None for none.

    Returns:
      What was written, as text to print.
    """
    out = options.out
    tables.write_table(out, table, notes)
    tables.write_curves(out, {run.name: run.rows for run in all_runs})
    if figure is None:
        return f"wrote {out}/table.md, table.csv and curves.csv"
    options.save(figure, out / "curves")
    return f"wrote {out}/table.md, table.csv, curves.csv and curves.{options.format}"


def run_parts(parts: Mapping[str, ModuleType], options: Any, stop: Any) -> bool:
    """Run each part's `run(options, stop)`, which returns True when it is complete.

    Returns:
      False if the user stopped a part, or other processes still train runs of it. The parts after
      it are not run.
    """
    for name, part in parts.items():
        print(f"== {name}", file=sys.stderr)
        if not part.run(options, stop):
            print_hint(stop)
            return False
    return True


def print_hint(stop: Callable[[], Any]) -> None:
    """Print how to complete a study that was stopped, or that others still train.

    Args:
      stop: returns true if the user stopped it.
    """
    # All processes call it, which may exchange their signals.
    is_stopped = stop()
    if not multihost.is_primary():
        return
    if is_stopped:
        print("stopped and saved; the same command resumes from here", file=sys.stderr)
    else:
        print(
            "other processes train the remaining runs; the same command later trains what is "
            "missing and draws, and with --plot-only it draws what is finished",
            file=sys.stderr,
        )


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
