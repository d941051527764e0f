"""Before training: every depth, plain and residual, with and without BN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments.signal_propagation import figures, measure, theory
from experiments.signal_propagation.options import Network, Options, load_data, untrained_configs
from jaxcnn import plots, runs, tables
from jaxcnn.augment import normalize
from jaxcnn.progress import Progress


def check(options: Options) -> None:
    """Check that the networks exist.

    Raises:
      ArgumentError: a network is invalid.
    """
    if not options.start_depths:
        raise jc.ArgumentError("start-depths is empty; write --start-depths 20 56")
    dataset = load_data(options.dataset, options.data_dir, 0)
    for config in untrained_configs(options).values():
        jc.create_model(config.model, dataset.num_classes, **config.model_kwargs)


def run(options: Options, stop: Any) -> bool:
    """Measure every network that has no file yet.

    Returns:
      False if it was stopped on the way.
    """
    dataset, configs = load_data(options.dataset, options.data_dir, 0), untrained_configs(options)
    with Progress(sum(_depth(config) for config in configs.values())) as progress:
        for name, config in configs.items():
            request = {"config": config.to_json(), "images": options.images}
            file = options.out / "start" / f"{name}.jsonl"
            if not measure.is_measured(file, request):
                split = jc.Split(*(array[: options.images] for array in dataset.train))
                model, tx = runs.model_and_optimizer(config, dataset.num_classes)
                state = jc.init_state(model, tx, config.train, dataset)
                head = measure.network_head(config) | {
                    "theory": _theoretical_std(config, state, split.images)
                }
                measure.write_rows(
                    file,
                    request,
                    head,
                    measure.layer_signals(model, state, split, config.loss, train=True),
                )
            progress.advance(_depth(config), f"start: {name}")
            if stop():
                return False
    return True


def _depth(config: jc.ExperimentConfig) -> int:
    return int("".join(filter(str.isdigit, config.model)))


def _theoretical_std(
    config: jc.ExperimentConfig, state: jc.State, images: np.ndarray
) -> list[float] | None:
    """Return the std of every response in wide layers without BN.

    With BN it is 1, and the result is None.
    """
    if config.model_kwargs["batch_norm"]:
        return None
    inputs = np.asarray(normalize(images[:16], state.normalizer))
    squares = theory.mean_squares(inputs, _depth(config), "resnet" in config.model, samples=250)
    return np.sqrt(squares).tolist()


def draw(options: Options) -> list[dict[str, Any]]:
    """Write `std.png`, `gradient.png`, `rank.png` and the table.

    Returns:
      Rows of the common table.
    """
    folder = options.out / "start"
    networks = measure.read_all(folder)
    first_seeds = [item for item in networks.values() if item[0]["net"]["seed"] == 0]
    head = first_seeds[0][0]
    setting = f"Before training: {head['what']}, {head['request']['images']} images"
    for key, label in figures.QUANTITIES.items():
        plots.save(figures.layer_panels(first_seeds, key, label, setting), folder / f"{key}.png")
    table = [figures.table_row(head, rows) for head, rows in networks.values()]
    tables.write_table(
        folder, table, [*figures.column_notes(setting), *findings(list(networks.values()))]
    )
    return table


def findings(networks: list[tuple[measure.Row, list[measure.Row]]]) -> list[str]:
    """Return sentences that compare the measurements with theory."""
    sentences = []
    distances = [
        abs(row["std"] - 1)
        for head, rows in networks
        if head["net"]["batch_norm"]
        for row in rows
        if row["std"]
    ]
    if distances:
        sentences.append(
            "With BN every response has std 1: the largest distance from it is "
            f"{max(distances):.1g}."
        )
    for head, rows in networks:
        network = Network(**head["net"])
        if network.seed or network.depth != max(head["net"]["depth"] for head, _ in networks):
            continue
        first, last = rows[0], rows[-1]
        if network.batch_norm:
            growth = figures.gradient_growth(rows)
            sentences.append(
                f"{network.label} with BN: from the last convolution to the first the gradient's "
                f"norm grows {_format_ratio(first['gradient'], last['gradient'])}-fold, "
                f"{growth:.3f} a layer (wide plain networks, in theory: {theory.GROWTH:.3f})."
                if growth
                else f"{network.label} with BN: its gradient is not finite."
            )
        else:
            sentences.append(
                f"{network.label} without BN: the std of responses goes from "
                f"{_format_number(first['std'])} to {_format_number(last['std'])} (wide layers, in "
                f"theory: {head['theory'][0]:.2g} to {head['theory'][-1]:.2g}), and the mean "
                "cosine of two images' responses ends at "
                f"{_format_number(last['similarity'], '.4f')}."
            )
    return sentences


def _format_number(value: float | None, form: str = ".2g") -> str:
    return "no finite number" if value is None else format(value, form)


def _format_ratio(numerator: float | None, denominator: float | None) -> str:
    return (
        f"{numerator / denominator:.3g}"
        if numerator and denominator and math.isfinite(numerator / denominator)
        else "?"
    )
