"""Before training: every depth, plain and residual, with and without BN.

`mean_squares` is the theory of signals without BN. It assumes wide layers, He's initialization,
and zeros around the maps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments._common import display_names
from experiments.signal_propagation import measure
from experiments.signal_propagation.measure import NetworkRows
from experiments.signal_propagation.options import Network, Options, load_data, untrained_configs
from jaxcnn import plots, runs, tables
from jaxcnn.augment import normalize
from jaxcnn.progress import Progress

GROWTH = float(np.sqrt(np.pi / (np.pi - 1)))
"""Growth of the gradient's norm per layer towards the first: 1.21.

It holds with BN over large batches, ReLU and no shortcuts (Yang et al. 2019, arXiv:1902.08129,
whose factor pi / (pi - 1) is that of its square).
"""
KINDS = ("plain, with BN", "residual, with BN", "plain, without BN", "residual, without BN")
"""Panels in their order: the values of `Network.kind`."""
DEPTH_COLORS = ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#000000")
"""Colors of lines, in the order of depths."""


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
    squares = mean_squares(inputs, _depth(config), "resnet" in config.model, samples=250)
    return np.sqrt(squares).tolist()


def draw(options: Options) -> list[dict[str, Any]]:
    """Write the figures `std`, `gradient` and `rank`, and the table.

    Returns:
      Rows of the common table.
    """
    folder = options.out / "start"
    networks = measure.read_all(folder)
    first_seed = min(head["net"]["seed"] for head, _ in networks.values())
    first_seeds = [item for item in networks.values() if item[0]["net"]["seed"] == first_seed]
    head = first_seeds[0][0]
    setting = f"Before training: {head['what']}, {head['request']['images']} images"
    for key, label in measure.QUANTITIES.items():
        title = display_names(setting)
        options.save(layer_panels(first_seeds, key, label, title), folder / key)
    table = [measure.table_row(head, rows) for head, rows in networks.values()]
    tables.write_table(
        folder, table, [*measure.column_notes(setting), *findings(list(networks.values()))]
    )
    return table


def layer_panels(networks: Sequence[NetworkRows], key: str, label: str, title: str) -> Any:
    """Return a quantity by layer, a panel for each kind of network.

    The kinds are plain and residual networks with and without BN. Each depth has a line.
    """
    depths = sorted({head["net"]["depth"] for head, _ in networks})
    panels = []
    for kind in KINDS:
        lines = []
        for head, rows in networks:
            network = Network(**head["net"])
            if network.kind != kind:
                continue
            x, name = [row["index"] for row in rows], f"{network.depth} layers"
            color = DEPTH_COLORS[depths.index(network.depth) % len(DEPTH_COLORS)]
            if key == "std" and head.get("theory"):
                style = {
                    "label": "wide layers, in theory",
                    "color": "0.6",
                    "dashed": True,
                    "width": 1.2,
                }
                # The theory lies behind the measurements.
                lines.insert(0, plots.Line(x, head["theory"], **style))
            lines.append(
                plots.Line(x, measure.nonzero_values(rows, key), label=name, color=color, width=1.6)
            )
        axes: dict[str, Any] = {"xlabel": "layer", "ylabel": label, "ylog": True}
        panels += [plots.Panel(kind, lines, **axes)] if lines else []
    return plots.panels(panels, columns=2, size=(5.0, 3.4), title=title)


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
    first_seed = min((head["net"]["seed"] for head, _ in networks), default=0)
    deepest = max((head["net"]["depth"] for head, _ in networks), default=0)
    for head, rows in networks:
        network = Network(**head["net"])
        if network.seed != first_seed or network.depth != deepest:
            continue
        first, last = rows[0], rows[-1]
        if network.batch_norm:
            growth = measure.gradient_growth(rows)
            sentences.append(
                f"{network.label} with BN: from the last convolution to the first the gradient's "
                f"norm grows {_format_ratio(first['gradient'], last['gradient'])}-fold, "
                f"{growth:.3f} a layer (wide plain networks, in theory: {GROWTH:.3f})."
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


def mean_squares(
    inputs: np.ndarray, depth: int, residual: bool, samples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Return the mean square of every convolution's response without BN.

    Kernels are N(0, 2 / fan_in), without biases. Over units, a response then has mean 0. At each
    place its mean square is 2 / 9 of the sum, over its window, of those below (He et al. 2015,
    arXiv:1502.01852, eq. 8). Places outside the map count as zeros.

    ReLU halves the mean square. A plain network therefore keeps it, except for the zeros, and the
    values are exact in the mean over kernels. A residual block adds a response to its input, and
    cuts off what is negative in the sum. The distribution of that sum is sampled in `samples`
    units at each place. Except for the zeros, the mean square grows 2.40-fold at every block.

    Args:
      inputs: float [n, h, w, c], normalized.
      depth: 6 n + 2.
      residual: whether there are shortcuts "A".
      samples: number of units that are sampled at each place.
      seed: of the samples.

    Returns:
      float64 [depth - 1], first layer first.

    Example:
      >>> ones = np.ones((1, 8, 8, 1))
      >>> plain, residual = (mean_squares(ones, 20, residual) for residual in (False, True))
      >>> len(plain), round(plain[0] * 9 * 64 / 2), bool(residual[6] > 4 * plain[6])
      (19, 484, True)
    """
    rng = np.random.default_rng(seed)
    # The stem's, [n, h, w].
    response = 2 * window_mean(np.square(np.asarray(inputs, np.float64)).mean(-1))
    squares = [response]
    x = _relu_samples(response, rng, samples)
    for stage, block in itertools.product(range(3), range((depth - 2) // 6)):
        stride = 2 if stage and not block else 1
        first_response = 2 * window_mean(np.square(x).mean(0))[:, ::stride, ::stride]
        second_response = window_mean(first_response)
        x = x[:, :, ::stride, ::stride]
        if stride == 2:
            # Half of the units are new, and shortcut "A" fills them with zeros.
            x[::2] = 0
        squares += [first_response, second_response]
        noise = np.sqrt(second_response) * rng.standard_normal((samples, *second_response.shape))
        x = np.maximum(x + noise, 0) if residual else _relu_samples(second_response, rng, samples)
    return np.array([maps.mean() for maps in squares])


def window_mean(squares: np.ndarray) -> np.ndarray:
    """Return the mean over each place's 3x3 window, zeros outside.

    Args:
      squares: float [n, h, w].

    Returns:
      float [n, h, w].

    Example:
      >>> window_mean(np.ones((1, 2, 2))).tolist() == np.full((1, 2, 2), 4 / 9).tolist()
      True
    """
    _, h, w = squares.shape
    padded = np.pad(squares, ((0, 0), (1, 1), (1, 1)))
    return np.mean([padded[:, i : i + h, j : j + w] for i, j in np.ndindex(3, 3)], axis=0)


def _relu_samples(response: np.ndarray, rng: np.random.Generator, samples: int) -> np.ndarray:
    """Return the ReLU of samples of N(0, response), [samples, n, h, w].

    They are scaled so that their mean square is exactly half of the response.
    """
    x = np.maximum(rng.standard_normal((samples, *response.shape)), 0)
    x = x / np.sqrt(2 * np.square(x).mean(0))
    return x * np.sqrt(response)
