"""Reading lines of digits: a convolutional network with CTC, decoded greedily and by beam search.

    python -m experiments.text                  digits, no download: 70 seconds on two cores
    python -m experiments.text --preset mnist   MNIST's digits: not yet measured

A line has one to eight digits of several sizes, with several gaps and heights. Half of the lines
are plain. In the others the digits are cut out of one photograph, on a background cut out of
another. Digits are darker than backgrounds. The text is known, and the places of the digits are
not used. A convolutional encoder gives the probabilities of the classes and of a blank for each
frame of 4 columns. CTC (Graves et al. 2006) sums them over all alignments. Training lines have
training digits and the upper halves of the photographs. Test lines have test digits and the lower
halves.

The measures are the character error rate, which is the edit distance divided by the number of
characters, and the share of lines with any error. Greedy decoding takes the best class of each
frame. Prefix beam search sums the alignments of each text, and keeps several texts.

Expected (3 seeds): a character error rate of 9.8 +- 3.2% by greedy decoding, and 31.0 +- 8.4% wrong
lines. Beam search of 32 prefixes has a character error rate that is 0.29 +- 0.22 points lower.

It writes OUT/table.md, OUT/table.csv, OUT/curves.csv, OUT/curves.png, OUT/lines.png,
OUT/probabilities.png and a folder for every run. The same command resumes a study that was stopped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn as jc
from experiments._common import (
    DeviceOptions,
    DtypeName,
    FigureOptions,
    SeedOptions,
    check_new_runs,
    first_converged,
    paired_sentence,
    restored_state,
    run_all,
    run_optimizer,
    run_study,
    sweep_options,
    write_results,
)
from experiments.scenes.lines import HEIGHT, MAX_LENGTH, WIDTH, compose_lines
from experiments.scenes.parts import load_objects, photographs, scene_data
from jaxcnn import cli, metrics, plots, runs, tables
from jaxcnn.ctc import beam_decode, frames_needed, greedy_decode
from jaxcnn.models.line_reader import LineReader
from jaxcnn.run_log import read_metrics
from jaxcnn.state import State

LONGEST_READING = 16
"""Most digits that beam search reads in a line."""
BATCH = 250
"""Lines of a batch of inference."""
Decoder = Callable[[Any], Any]
"""Function of logits [b, t, k + 1] that returns classes int32 [b, m], padded with -1."""


@dataclass(frozen=True)
class Options(SeedOptions, DeviceOptions, FigureOptions):
    """Every setting of the experiment; `--preset` chooses the defaults."""

    preset: Literal["quick", "mnist"] = "quick"
    """quick: lines of digits. mnist: lines of MNIST."""
    dataset: str = "digits"
    """Source of the lines' characters: digits, mnist or fashion_mnist."""
    lines: int = 4_000
    """Training lines; a fifth as many are test lines."""
    beam_widths: tuple[int, ...] = (2, 8, 32)
    """Prefixes that each beam search keeps; greedy decoding is always measured."""
    num_seeds: int = 3
    width: int = 12
    num_steps: int = 1_200
    batch_size: int = 16
    learning_rate: float = 3e-3
    """Learning rate of Adam, which falls to 0 as a cosine."""
    dtype: DtypeName = "float32"
    data_dir: Path | None = None
    out: Path = Path("runs/text")
    tensorboard: bool = False
    plot_only: bool = False


PRESETS = {
    "quick": Options(),
    "mnist": Options(
        preset="mnist",
        dataset="mnist",
        lines=20_000,
        width=24,
        num_steps=6_000,
        out=Path("runs/text-mnist"),
    ),
}


def compose_all(options: Options) -> jc.Dataset:
    """Return the data set of lines, the same for the same options."""
    digits = load_objects(options.dataset, options.data_dir)
    upper, lower = photographs()
    train = compose_lines(digits.train, options.lines, upper, 0)
    test = compose_lines(digits.test, options.lines // 5, lower, 1)
    return scene_data(dataset_name(options), train, test, digits.classes)


def dataset_name(options: Options) -> str:
    """Return the name of the data set of lines, also in configs."""
    return f"{options.dataset}-lines"


def configs(options: Options) -> dict[str, jc.ExperimentConfig]:
    """Return the study's runs: name -> config."""
    return {
        f"reader-seed{seed}": jc.ExperimentConfig(
            dataset=dataset_name(options),
            model="line_reader",
            loss="ctc",
            model_kwargs={"width": options.width, "dtype": options.dtype},
            optimizer=jc.OptimizerConfig(
                "adam", learning_rate=options.learning_rate, schedule="cosine"
            ),
            train=jc.TrainConfig(
                num_steps=options.num_steps,
                batch_size=options.batch_size,
                eval_every=-(-options.num_steps // 6),
                subtract_mean="channel",
                divide_std=True,
                seed=seed,
            ),
        )
        for seed in options.run_seeds()
    }


def build(config: jc.ExperimentConfig, data: jc.Dataset) -> tuple[Any, Any]:
    """Return the network and the optimizer of a run."""
    model = LineReader(data.num_classes, **config.model_kwargs)
    return model, run_optimizer(config)


def decoders(widths: Sequence[int]) -> dict[str, Decoder]:
    """Return the decoders by their name in the columns of rows.

    Args:
      widths: prefixes of each beam search.
    """

    def beam(width: int) -> Decoder:
        return lambda logits: beam_decode(logits, width=width, max_length=LONGEST_READING).labels[
            :, 0
        ]

    return {"greedy": greedy_decode} | {f"beam{width}": beam(width) for width in widths}


class Measure:
    """Function that measures the decoders on the test lines.

    Attributes:
      widths: prefixes of each beam search.
    """

    def __init__(self, widths: Sequence[int]):
        self.widths = tuple(widths)

    def __call__(self, model: Any, state: State, data: jc.Dataset) -> Mapping[str, float]:
        """Return error rates in percent, which are more columns of a row.

        They are `NAME_cer`, `NAME_line_error` and `NAME_line_error_N` of lines of N digits, for the
        name of each decoder.
        """
        logits, labels = jc.predict(model, state, data.test.images), data.test.labels
        lengths = (labels >= 0).sum(1)
        columns = {}
        for name, decode in decoders(self.widths).items():
            readings = np.asarray(decode(logits))
            columns[f"{name}_cer"] = 100 * metrics.character_error_rate(readings, labels)
            is_wrong = np.asarray(metrics.edit_distance(readings, labels)) > 0
            columns[f"{name}_line_error"] = 100 * float(is_wrong.mean())
            for length in np.unique(lengths):
                share = float(is_wrong[lengths == length].mean())
                columns[f"{name}_line_error_{length}"] = 100 * share
        return columns


# Figures


def trained_network(options: Options, data: jc.Dataset) -> tuple[Any, State] | None:
    """Return the network and the last state of the first run that did not diverge.

    It is None if all diverged, or without a checkpoint.
    """
    found = first_converged(configs(options), options.out)
    if found is None:
        return None
    name, config = found
    model, tx = build(config, data)
    state = restored_state(options.out / name, (model, tx), config.train, data, "ctc")
    return None if state is None else (model, state)


def as_text(classes: np.ndarray) -> str:
    """Return a padded sequence of classes as text.

    Example:
      >>> as_text(np.array([3, 0, -1])), as_text(np.array([-1]))
      ('30', 'nothing')
    """
    return "".join(str(number) for number in classes if number >= 0) or "nothing"


def write_lines(options: Options, logits: np.ndarray, data: jc.Dataset, columns: int = 4) -> None:
    """Write OUT/lines: test lines that one run reads right and wrong.

    Args:
      options: of the study.
      logits: float32 [n, t, k + 1] of all test lines.
      data: the lines.
      columns: lines to a row; there are three rows of right and two of wrong ones.
    """
    readings, labels = np.asarray(greedy_decode(logits)), data.test.labels
    is_wrong = np.asarray(metrics.edit_distance(readings, labels)) > 0
    strips = []
    for kind, index, rows in (
        ("right", np.flatnonzero(~is_wrong), 3),
        ("wrong", np.flatnonzero(is_wrong), 2),
    ):
        for start in range(0, min(len(index), rows * columns), columns):
            part = index[start : start + columns][: rows * columns - start]
            captions = [
                as_text(readings[i]) + (f", is {as_text(labels[i])}" if kind == "wrong" else "")
                for i in part
            ]
            images = list(data.test.images[part])
            strips.append(plots.Strip(images, kind, captions))
    note = "Below each line is its reading by greedy decoding. The first lines of each kind."
    figure = plots.mosaic(strips, title="Test lines and readings", note=note, side=0.6, gap=0.12)
    options.save(figure, options.out / "lines")


def write_probabilities(options: Options, logits: np.ndarray, data: jc.Dataset) -> None:
    """Write OUT/probabilities: those of the classes above one line.

    It is the first line with the most frames needed, so with repeated digits, that is read right.
    """
    readings, labels = np.asarray(greedy_decode(logits)), data.test.labels
    is_right = np.asarray(metrics.edit_distance(readings, labels)) == 0
    line = int(np.argmax(np.where(is_right, frames_needed(labels), -1)))
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(logits[line])))
    text = as_text(readings[line])
    figure = plots.frame_probabilities(
        data.test.images[line],
        probabilities,
        [*map(str, range(data.num_classes)), "blank"],
        title=f"Probabilities of each frame, read as {text}",
    )
    options.save(figure, options.out / "probabilities")


def train(options: Options, stop: cli.GracefulShutdown) -> bool:
    """Train the missing runs and draw readings; return False if some are not finished."""
    widths = options.beam_widths
    if len(set(widths)) < len(widths):
        raise jc.ArgumentError(
            f"--beam-widths is {' '.join(map(str, widths))}; expected each width once: write "
            f"--beam-widths {' '.join(map(str, dict.fromkeys(widths)))}"
        )
    all_runs = configs(options)
    check_new_runs(all_runs, options.out)
    check_widths(options)
    cli.enable_compilation_cache()
    data = compose_all(options)
    sweep_kwargs = sweep_options(options, stop) | {"measure": Measure(widths), "build": build}
    if not run_all(all_runs, data, options.out, **sweep_kwargs):
        return False
    # Another process may have trained some of the runs.
    check_widths(options)
    trained = trained_network(options, data)
    if trained is not None:
        logits = jc.predict(*trained, data.test.images)
        write_lines(options, logits, data)
        write_probabilities(options, logits, data)
    return True


def check_widths(options: Options) -> None:
    """Check that the study's rows so far have figures of all beam searches.

    A decoder is measured when a row is written, and not again.

    Raises:
      ArgumentError: they lack some, because they were written with other `--beam-widths`.
    """
    by_run: dict[str, list[set[int]]] = {}
    for name in configs(options):
        folder = options.out / name
        # Paths that no folder can have are errors of the run itself.
        rows = read_metrics(folder) if os.path.isdir(folder) else []
        by_run[name] = [beam_widths(row) for row in rows if "diverged" not in row]
    asked = set(options.beam_widths)
    common = {name: set.intersection(*found) for name, found in by_run.items() if found}
    lacking = {name: asked - widths for name, widths in common.items() if asked - widths}
    if lacking:
        shared, missing = set.intersection(*common.values()), set.union(*lacking.values())
        advice = f"--beam-widths {' '.join(map(str, sorted(shared)))}, or " if shared else ""
        raise jc.ArgumentError(
            f"rows of {', '.join(lacking)} in {options.out} lack a beam search of "
            f"{', '.join(map(str, sorted(missing)))}; expected all of --beam-widths. Write "
            f"{advice}--out with another folder."
        )


def beam_widths(row: Mapping[str, Any]) -> set[int]:
    """Return the widths of the beam searches that a row or a result has figures of.

    Example:
      >>> beam_widths({"greedy_cer": 9.0, "beam8_cer": 8.0})
      {8}
    """
    names = [key.removeprefix("beam").removesuffix("_cer") for key in row if key.endswith("_cer")]
    return {int(name) for name in names if name.isdecimal()}


def draw(options: Options) -> None:
    """Write the table and the curves of the finished runs in `options.out`.

    Raises:
      ArgumentError: the folder has runs of another experiment, or all runs diverged.
    """
    out, all_runs = options.out, runs.finished_runs(options.out)
    names = measured_decoders(all_runs)
    divergences = [run.divergence for run in all_runs if run.divergence is not None]
    if len(divergences) == len(all_runs):
        raise jc.ArgumentError(
            f"{divergences[0]} So did every run; write another --out and a smaller --learning-rate"
        )
    if not names:
        raise jc.ArgumentError(
            f"{out} has no run with a character error rate; expected those of this experiment. "
            "Write --out with a folder of this experiment."
        )
    quantities = ("cer", "line_error", *(f"line_error_{n}" for n in range(1, MAX_LENGTH + 1)))
    table = [
        {"decoder": title}
        | runs.aggregate_seeds(of_decoder(all_runs, name, quantities), quantities)
        for name, title in names.items()
    ]
    config = all_runs[0].config
    protocol = (
        f"{config.dataset}, {config.train.num_steps} steps of {config.train.batch_size} lines of "
        f"{HEIGHT}x{WIDTH}. On the test lines at the last step, in percent: the character error "
        "rate (cer), the lines with any error (line_error), and those of lines with each number of "
        "digits (line_error_1, ...). All decoders read the same logits."
    )
    protocol += paired_changes(all_runs, names) + left_out(all_runs, names)
    figure = curves(all_runs, names)
    written = write_results(options, table, [protocol, *divergences], all_runs, figure)
    print(f"{tables.compact_markdown(table)}\n{written}")


def measured_decoders(all_runs: Sequence[runs.Run]) -> dict[str, str]:
    """Return the titles of the decoders that all runs have figures of, by their names.

    Runs that diverged have no figures, and are left out.
    """
    results = [run.result for run in all_runs if run.divergence is None]
    is_greedy = bool(results) and all("greedy_cer" in result for result in results)
    beams = set.intersection(*map(beam_widths, results)) if results else set()
    titles = {"greedy": "greedy"} if is_greedy else {}
    return titles | {f"beam{width}": f"beam search of {width}" for width in sorted(beams)}


def left_out(all_runs: Sequence[runs.Run], names: Mapping[str, str]) -> str:
    """Return a sentence on the beam searches that only some of the runs have figures of."""
    widths = set[int]().union(*(beam_widths(run.result) for run in all_runs))
    missing = [str(width) for width in sorted(widths) if f"beam{width}" not in names]
    if not missing:
        return ""
    return f" Left out, as some runs lack it: beam search of {', '.join(missing)}."


def of_decoder(
    all_runs: Sequence[runs.Run], name: str, quantities: Sequence[str]
) -> list[runs.Run]:
    """Return runs whose results have a decoder's figures without its name; None for missing ones.

    A small study may have no test line of some length.
    """
    return [
        run._replace(
            result=run.result | {key: run.result.get(f"{name}_{key}") for key in quantities}
        )
        for run in all_runs
    ]


def paired_changes(all_runs: Sequence[runs.Run], names: Mapping[str, str]) -> str:
    """Return sentences on what each beam search gains over greedy decoding, paired by seed.

    Runs that diverged are left out.
    """
    text, all_runs = "", [run for run in all_runs if run.divergence is None]
    for name in [name for name in names if name != "greedy" and "greedy" in names]:
        for key, title in (("cer", "character error rate"), ("line_error", "share of wrong lines")):
            pairs = [(run.result[f"{name}_{key}"], run.result[f"greedy_{key}"]) for run in all_runs]
            if any(None in pair for pair in pairs):
                continue
            changes = [beam - greedy for beam, greedy in pairs]
            text += paired_sentence(f"{names[name]} changes the {title}", changes, digits=2)
    return text


def curves(all_runs: Sequence[runs.Run], names: Mapping[str, str]) -> Any:
    """Return the figure of error rates by step, and of wrong lines by their length."""
    all_runs = [run for run in all_runs if run.divergence is None]
    # All decoders would cover each other.
    shown = {name: names[name] for name in (next(iter(names)), list(names)[-1])}
    rows = [run.rows for run in all_runs]
    by_step = [
        # Rows before a stop may have fewer decoders.
        plots.band(
            [[row for row in part if f"{name}_cer" in row] for part in rows],
            "step",
            f"{name}_cer",
            label=title,
            dashed=i > 0,
        )
        for i, (name, title) in enumerate(shown.items())
    ]
    lengths = list(range(1, MAX_LENGTH + 1))
    by_length = []
    for i, (name, title) in enumerate(shown.items()):
        values = [[run.result.get(f"{name}_line_error_{n}") for run in all_runs] for n in lengths]
        known = [[value for value in part if value is not None] or [np.nan] for part in values]
        mean, low, high = ([float(f(part)) for part in known] for f in (np.mean, min, max))
        by_length.append(
            plots.Line(lengths, mean, low, high, label=title, dashed=i > 0, marker="o")
        )
    panels = [
        plots.Panel(
            "by step", by_step, xlabel="step", ylabel="character error rate (%)", ylog=True
        ),
        plots.Panel("by length", by_length, xlabel="digits of the line", ylabel="wrong lines (%)"),
    ]
    title = "Errors on test lines: mean and range of seeds"
    return plots.panels(panels, title=title, share="none", size=(5.2, 3.9))


def main(args: list[str] | None = None) -> int:
    """Train the missing runs, then draw; return the exit code."""
    return run_study(PRESETS, args, __doc__, train, draw)


if __name__ == "__main__":
    sys.exit(main())
