"""Edit distance of sequences, and the character error rate of a reader."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn._util import is_abstract
from jaxcnn.arguments import ArgumentError, format_array


def edit_distance(predicted: Any, labels: Any) -> jax.Array:
    """Return the edit distances of pairs of sequences.

    It is the least number of insertions, deletions and substitutions that make one of the other
    (Levenshtein 1966).

    Args:
        predicted: integers [b, n], padded with -1 at the end.
        labels: integers [b, m], padded likewise.

    Returns:
        int32 [b].

    Raises:
        ArgumentError: they are no such arrays, of one b. Padding before a number is noticed where
            the arrays are not traced.

    Example:
        >>> edit_distance(np.array([[1, 2, 3], [4, -1, -1]]), np.array([[1, 3], [4, 4]])).tolist()
        [1, 1]
    """
    predicted = _check_sequences("predicted", predicted)
    labels = _check_sequences("labels", labels)
    if len(predicted) != len(labels):
        raise ArgumentError(
            f"predicted has {len(predicted)} sequences and labels {len(labels)}; expected as many. "
            f"Write predicted[:{len(labels)}] for those of the labels."
        )
    return _edit_distances(predicted, labels)


@jax.jit
def _edit_distances(predicted: jax.Array, labels: jax.Array) -> jax.Array:
    return jax.vmap(_edit_distance)(predicted, labels)


def _edit_distance(predicted: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the distance of one pair, by a row of the table for each number of `predicted`."""
    columns = jnp.arange(len(labels) + 1, dtype=jnp.int32)

    def step(row: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        differs = (labels != number).astype(jnp.int32)
        best = jnp.minimum(row[1:] + 1, row[:-1] + differs)
        best = jnp.concatenate([row[:1] + 1, best])
        # Insertions cost one a column: the least of best[i] + (j - i) over all i up to j.
        new = jax.lax.cummin(best - columns) + columns
        return jnp.where(number >= 0, new, row), None

    row, _ = jax.lax.scan(step, columns, predicted)
    return row[(labels >= 0).sum()]


def character_error_rate(predicted: Any, labels: Any) -> float:
    """Return the edit distances of all sequences, divided by the number of characters.

    Args:
        predicted: integers [b, n], padded with -1 at the end.
        labels: integers [b, m], padded likewise, of at least one character.

    Returns:
        A number from 0. It is above 1 where more characters are inserted than there are.

    Raises:
        ArgumentError: as for `edit_distance`, or the labels have no character, or an array is
            traced, as under `jax.jit`.

    Example:
        >>> labels = np.array([[1, 2, 3], [4, -1, -1]])
        >>> character_error_rate(np.array([[1, 3], [4, -1]]), labels)
        0.25

        Of `beam_decode`, take the first sequence of each example, the most probable one:

        >>> from jaxcnn.ctc import beam_decode
        >>> logits = jax.nn.one_hot(jnp.array([[1, 2], [0, 2]]), 3)  # 2 is the blank
        >>> beams = beam_decode(logits, width=2)
        >>> character_error_rate(beams.labels[:, 0], np.array([[1], [1]]))
        0.5
    """
    distances = edit_distance(predicted, labels)
    if is_abstract(distances) or is_abstract(labels):
        raise ArgumentError(
            "predicted or labels are traced, as under jax.jit; expected arrays with numbers. Write "
            "edit_distance(predicted, labels) under jax.jit, and the division outside of it."
        )
    count = int((np.asarray(labels) >= 0).sum())
    if not count:
        raise ArgumentError(
            "labels have no character; expected at least one. Write labels=np.array([[3, 1, -1]])."
        )
    return int(distances.sum()) / count


def _check_sequences(name: str, values: Any) -> jax.Array:
    """Return padded sequences as int32 [b, n].

    Raises:
        ArgumentError: they are anything else.
    """
    shape, dtype = getattr(values, "shape", ()), getattr(values, "dtype", None)
    is_integer = dtype is not None and jnp.issubdtype(dtype, jnp.integer)
    if not is_integer or len(shape) != 2 or 0 in shape:
        # Those of `beam_decode` have an axis of several sequences for each example.
        example = "np.array([[3, 1, -1]])"
        if hasattr(values, "labels") or (is_integer and len(shape) == 3):
            example = "beams.labels[:, 0], the most probable sequences"
        raise ArgumentError(
            f"{name} is {format_array(values)}; expected integers [b, n], -1 for padding. "
            f"Write {name}={example}."
        )
    if not is_abstract(values):
        array = np.asarray(values)
        is_torn = ((array[:, :-1] < 0) & (array[:, 1:] >= 0)).any(1)
        if array.min() < -1 or is_torn.any():
            raise ArgumentError(
                f"{name} has padding before a number, or numbers below -1; expected sequences of "
                f"numbers from 0, then -1. Write {name}=np.array([[3, 1, -1]])."
            )
        # A number of 64 bits would become negative.
        if array.max() >= 2**31:
            raise ArgumentError(
                f"{name} goes up to {array.max()}; expected less than 2**31. Number the classes "
                "from 0."
            )
    return jnp.asarray(values).astype(jnp.int32)
