"""Measurement of signals by layer, its files and its table rows."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxcnn as jc
from experiments.signal_propagation import no_batch_norm
from experiments.signal_propagation.options import (
    Network,
    Options,
    load_data,
    parse_network,
    run_configs,
)
from jaxcnn import runs
from jaxcnn.interpret.signal_propagation import (
    effective_rank,
    gradient_norms,
    kernel_norms,
    map_responses,
    similarity,
)
from jaxcnn.run_log import read_json, read_lines, write_text

Row = dict[str, Any]
NetworkRows = tuple[Row, list[Row]]
"""Head of a network's file, and the rows of its layers."""
QUANTITIES = {
    "std": "std of responses",
    "gradient": "gradient norm (L2)",
    "rank": "effective rank",
}
"""Key of a row -> label of the axis."""


def layer_gradients(model: Any, state: jc.State, split: jc.Split, loss: str) -> list[Row]:
    """Return the gradient's and kernel's norm of each convolution.

    The gradient is that of the loss by the kernel. There is a row for each 3x3 convolution, first
    layer first.
    """
    norms = gradient_norms(model, state, split.images, split.labels, loss=loss)
    kernels = kernel_norms(state.params)
    layers = [name for name in norms if is_plotted_layer(name)]
    rows = [{"layer": name, "gradient": norms[name], "kernel": kernels[name]} for name in layers]
    return [{"step": int(state.step), "index": i} | row for i, row in enumerate(rows, 1)]


def layer_signals(
    model: Any, state: jc.State, split: jc.Split, loss: str, train: bool
) -> list[Row]:
    """Return `layer_gradients` with statistics of the responses.

    They are the std, the effective rank and the mean cosine.
    """
    statistics = map_responses(_response_statistics, model, state, split.images, train=train)
    return [row | statistics[row["layer"]] for row in layer_gradients(model, state, split, loss)]


def _response_statistics(response: np.ndarray) -> Row:
    std = float(response.std(dtype=np.float64))
    return {"std": std, "rank": effective_rank(response), "similarity": similarity(response)}


def is_plotted_layer(layer: str) -> bool:
    """Return whether a layer is in the paper's figure 7.

    These are the 3x3 convolutions: neither shortcuts nor the layer of logits.
    """
    return not layer.endswith(("project", "head"))


def write_rows(path: Path, request: Row, head: Row, rows: list[Row]) -> None:
    """Write a file of JSON lines: the head, then the rows.

    Args:
      path: of the file.
      request: what was measured, and how.
      head: facts on the network.
      rows: of its layers; a value that is not finite becomes null.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"request": request} | head,
        *({key: _finite(value) for key, value in row.items()} for row in rows),
    ]
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_measured(path: Path, request: Row) -> bool:
    """Return whether the file exists and answers the request."""
    return path.exists() and read_rows(path)[0]["request"] == request


def read_rows(path: Path) -> tuple[Row, list[Row]]:
    """Return the head and the rows of a file of `write_rows`.

    Raises:
      ArgumentError: the file holds something else.
    """
    try:
        head, *rows = read_lines(path, "line of signals")
        if not head["request"] or not all(row["index"] for row in rows):
            raise ValueError
        return head, rows
    except (ValueError, KeyError, TypeError) as error:
        raise jc.ArgumentError(
            f"{path} holds no signals; delete it, and give the command again ({error!r})"
        ) from None


def read_all(folder: Path) -> dict[str, tuple[Row, list[Row]]]:
    """Return name -> head and rows of every network in a folder.

    Plain networks come first, then by depth.

    Raises:
      ArgumentError: there is none.
    """
    networks = {path.stem: read_rows(path) for path in sorted(folder.glob("*.jsonl"))}
    if not networks:
        raise jc.ArgumentError(f"{folder} holds no signals; leave out --plot-only")
    return dict(sorted(networks.items(), key=lambda item: tuple(item[1][0]["net"].values())))


MeasureState = Callable[[Any, jc.State, jc.Split, str], list[Row]]
"""Function of (model, state, split, loss) that returns rows."""


def check_runs(options: Options) -> None:
    """Check that there are runs, and that their counterparts can be trained.

    Raises:
      ArgumentError: there are none, or they cannot.
    """
    run_configs(options)
    if options.counterparts:
        no_batch_norm.check(options)


def measure_runs(
    options: Options, stop: Any, part: str, measure_state: MeasureState, path: bool
) -> bool:
    """Train the missing runs without BN, then measure every run.

    Args:
      options: of the script.
      stop: called after each run; True ends the work.
      part: name of the folder in OUT.
      measure_state: returns the rows of a state.
      path: whether to measure all saved states, not only the first and the last.

    Returns:
      False if it was stopped on the way.
    """
    if options.counterparts and not no_batch_norm.run(options, stop):
        return False
    for folder in [*run_configs(options), *no_batch_norm.finished_folders(options)]:
        config = jc.ExperimentConfig.load(folder)
        steps = sorted(
            int(step.name) for step in (folder / "checkpoints").iterdir() if step.name.isdigit()
        )
        request = {
            "config": config.to_json(),
            "steps": steps,
            "images": options.images,
            "mode": options.mode,
        }
        request |= {"states": options.states} if path else {}
        # A run and its counterpart without BN have one folder name.
        suffix = "" if config.model_kwargs.get("batch_norm", True) else "-without"
        file = options.out / part / f"{folder.name}{suffix}.jsonl"
        if is_measured(file, request):
            continue
        print(f"{part}: {file.stem}", file=sys.stderr)
        model, states, split = _load_states(options, folder, config, bool(steps), path)
        spaced = evenly_spaced(states, options.states)
        measured = [
            row for state in spaced for row in measure_state(model, state, split, config.loss)
        ]
        write_rows(file, request, network_head(config, folder), measured)
        if stop():
            return False
    return True


def evenly_spaced(states: list[Any], max_count: int) -> list[Any]:
    """Return at most `max_count` states, evenly spaced.

    The first and the last are among them.

    Example:
      >>> evenly_spaced(list(range(13)), 7), evenly_spaced([0, 1], 7)
      ([0, 2, 4, 6, 8, 10, 12], [0, 1])
    """
    count = min(len(states), max_count)
    return [states[round(i * (len(states) - 1) / max(1, count - 1))] for i in range(count)]


def _load_states(
    options: Options, folder: Path, config: jc.ExperimentConfig, states: bool, path: bool
) -> tuple[Any, list[jc.State], jc.Split]:
    """Return model, states and images of a run.

    A run that diverged before its first checkpoint has only its start.
    """
    data = runs.subset_for(
        config, load_data(config.dataset, options.data_dir, config.num_validation)
    )
    split = jc.Split(*(array[: options.images] for array in data.train))
    if not states:
        model, tx = runs.model_and_optimizer(config, data.num_classes)
        return model, [jc.init_state(model, tx, config.train, data)], split
    run = runs.load_trained_model(folder, data=data, path=path)
    return run.model, list(run.states.values()), split


def network_head(config: jc.ExperimentConfig, folder: Path | None = None) -> Row:
    """Return the facts on a network, the first line of its file."""
    network = parse_network(config)
    width = config.model_kwargs.get("width", 16)
    head: Row = {
        "net": network._asdict() if network else {},
        "what": f"{config.dataset}, width {width}",
    }
    if folder is None:
        return head
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    diverged = result["step"] if result.get("status") == "diverged" else None
    head["what"] += f", {config.train.num_steps} steps of {config.train.batch_size} images"
    head |= {key: result.get(key) for key in ("eval_error", "eval_split")}
    return head | {"rate": config.optimizer.learning_rate, "diverged": diverged}


def table_row(head: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """Return a row of the table: a network's first and last convolution."""
    network, first, last = Network(**head["net"]), rows[0], rows[-1]
    row: dict[str, Any] = {
        "network": network.label,
        "bn": "yes" if network.batch_norm else "no",
        "seed": network.seed,
    }
    row |= {"step": first["step"], "rate": head.get("rate")}
    for key in ("std", "gradient"):
        row |= {f"{key}_first": first[key], f"{key}_last": last[key]}
    both_nonzero = first["gradient"] and last["gradient"]
    row |= {
        "gradient_ratio": first["gradient"] / last["gradient"] if both_nonzero else None,
        "a_layer": gradient_growth(rows),
    }
    row |= {
        "rank_first": first["rank"],
        "rank_last": last["rank"],
        "cosine_last": last["similarity"],
    }
    row |= {key: head.get(key) for key in ("eval_error", "eval_split")}
    return row | {"diverged_at": head.get("diverged")}


def column_notes(setting: str) -> list[str]:
    """Return the explanation of the table's columns."""
    return [
        f"{setting}. First and last are 3x3 convolutions. std: of the response, after BN and "
        "before ReLU or addition, over images, places and channels; gradient: Euclidean norm of "
        "the training loss's gradient by the kernel, BN in training mode; ratio: first by last, "
        "and its geometric mean a layer; rank: the effective rank of the responses to the images "
        "(at most their number), not centred; cosine: the mean over pairs of images, 1 where all "
        "responses point the same way; error in percent."
    ]


def gradient_growth(rows: Sequence[Row]) -> float | None:
    """Return the growth of the gradient's norm per layer.

    It is the geometric mean of the factor from a convolution to the one before it.
    """
    first, last = rows[0]["gradient"], rows[-1]["gradient"]
    return (first / last) ** (1 / (len(rows) - 1)) if first and last and len(rows) > 1 else None


def nonzero_values(rows: Sequence[Row], key: str) -> list[float | None]:
    """Return a quantity by layer for a logarithmic axis.

    A value of 0 becomes None, a gap.
    """
    return [row[key] or None for row in rows]
