"""The signals of one state, layer by layer, and the file in which those of a network are kept."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import jaxcnn as jc
from jaxcnn.interpret.signal_propagation import effective_rank, gradient_norms, kernel_norms, map_responses, similarity
from jaxcnn.run_log import read_lines, write_text

Row = dict[str, Any]


def gradients(model: Any, state: jc.State, split: jc.Split, loss: str) -> list[Row]:
    """A row for every convolution with the norms of its kernel and of the loss's gradient by it, first layer first."""
    norms, kernels = gradient_norms(model, state, split.images, split.labels, loss=loss), kernel_norms(state.params)
    layers = [name for name in norms if shown(name)]
    rows = [{"layer": name, "gradient": norms[name], "kernel": kernels[name]} for name in layers]
    return [{"step": int(state.step), "index": i} | row for i, row in enumerate(rows, 1)]


def signals(model: Any, state: jc.State, split: jc.Split, loss: str, train: bool) -> list[Row]:
    """The rows of `gradients`, with the std, the effective rank and the mean cosine of the responses."""
    found = map_responses(_figures, model, state, split.images, train=train)
    return [row | found[row["layer"]] for row in gradients(model, state, split, loss)]


def _figures(response: np.ndarray) -> Row:
    std = float(response.std(dtype=np.float64))
    return {"std": std, "rank": effective_rank(response), "similarity": similarity(response)}


def shown(layer: str) -> bool:
    """The paper's figure 7 has the 3x3 convolutions: neither shortcuts nor the layer of logits."""
    return not layer.endswith(("project", "head"))


def keep(path: Path, asked: Row, about: Row, rows: list[Row]) -> None:
    """Write a file of JSON lines: what was asked and is known of the network, then the rows; what is not finite is null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"asked": asked} | about, *({key: _finite(value) for key, value in row.items()} for row in rows)]
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def kept(path: Path, asked: Row) -> bool:
    """Whether the file is there and answers what is asked."""
    return path.exists() and read(path)[0]["asked"] == asked


def read(path: Path) -> tuple[Row, list[Row]]:
    """What `keep` wrote: the head and the rows.

    Raises:
      ArgumentError: for a file of something else.
    """
    try:
        head, *rows = read_lines(path, "line of signals")
        if not head["asked"] or not all(row["index"] for row in rows):
            raise ValueError
        return head, rows
    except (ValueError, KeyError, TypeError) as error:
        raise jc.ArgumentError(f"{path} holds no signals; delete it, and give the command again ({error!r})") from None


def everything(folder: Path) -> dict[str, tuple[Row, list[Row]]]:
    """Name -> head and rows of every network measured in a folder, plain ones first, by depth.

    Raises:
      ArgumentError: if there is none.
    """
    found = {path.stem: read(path) for path in sorted(folder.glob("*.jsonl"))}
    if not found:
        raise jc.ArgumentError(f"{folder} holds no signals; leave out --plot-only")
    return dict(sorted(found.items(), key=lambda item: tuple(item[1][0]["net"].values())))
