"""Edit distance and character error rate against a plain dynamic program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn.arguments import ArgumentError
from jaxcnn.metrics import character_error_rate, edit_distance

PAIRS, LENGTH = 12, 7


def levenshtein(a, b):
    """Wagner and Fischer 1974: the table of distances of all prefixes."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            if not i or not j:
                table[i][j] = i + j
                continue
            substituted = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, substituted)
    return table[-1][-1]


def padded(sequences, length=LENGTH):
    return np.array([[*row, *[-1] * (length - len(row))] for row in sequences], np.int32)


SEQUENCES = st.lists(st.lists(st.integers(0, 3), max_size=LENGTH), min_size=PAIRS, max_size=PAIRS)


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(SEQUENCES, SEQUENCES)
def test_it_is_that_of_the_plain_dynamic_program(predicted, labels):
    distances = [levenshtein(a, b) for a, b in zip(predicted, labels, strict=True)]
    # More padding on one side changes nothing.
    arrays = padded(predicted, LENGTH + 2), padded(labels)
    assert edit_distance(*arrays).tolist() == distances
    assert edit_distance(*arrays[::-1]).tolist() == distances
    count = sum(map(len, labels))
    if count:
        assert character_error_rate(*arrays) == pytest.approx(sum(distances) / count)


def test_known_words():
    words = ["kitten", "sitting", "flaw", "lawn", ""]
    numbers = padded([[ord(letter) for letter in word] for word in words])
    assert edit_distance(numbers[[0, 2, 4]], numbers[[1, 3, 0]]).tolist() == [3, 2, 6]


def test_it_works_under_jit():
    pairs = padded([[1, 2], [3]]), padded([[2], [3]])
    assert jax.jit(edit_distance)(*pairs).tolist() == [1, 0]
    assert edit_distance(*map(jnp.asarray, pairs)).dtype == jnp.int32


def test_dtypes_are_those_of_32_bits_in_x64():
    predicted, labels = padded([[1, 2], [3]]), padded([[2], [3]]).astype(np.int64)
    with jax.enable_x64(True):
        distances = edit_distance(jnp.asarray(predicted), jnp.asarray(labels))
        assert (distances.dtype, distances.tolist()) == (jnp.int32, [1, 0])
        assert character_error_rate(predicted, labels) == 0.5


@pytest.mark.parametrize("traced", [0, 1])
def test_a_rate_of_traced_sequences_is_one_line(traced):
    pairs = [padded([[1]]), padded([[1]])]

    def rate(values):
        both = [values if i == traced else pair for i, pair in enumerate(pairs)]
        return character_error_rate(both[0], both[1])

    with pytest.raises(ArgumentError, match=r"predicted or labels are traced.*edit_dist") as error:
        jax.jit(rate)(pairs[0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("predicted", "labels", "message"),
    [
        ([[1, 2]], padded([[1]]), r"predicted is \[\[1, 2\]\]; expected integers \[b, n\]"),
        (padded([[1]]), padded([[1]])[0], r"labels is an array int32 \(7,\)"),
        (padded([[1]]) * 1.0, padded([[1]]), "predicted is an array float64"),
        (padded([[1]]), padded([[1], [2]]), "predicted has 1 sequences and labels 2"),
        (np.array([[-1, 2]]), padded([[1]]), "predicted has padding before a number"),
        (np.array([[2, -3]]), padded([[1]]), "predicted has padding .* or numbers below -1"),
        (np.array([[2**31]]), padded([[1]]), "predicted goes up to 2147483648"),
        (padded([[1]]), padded([[]]), "labels have no character"),
    ],
)
def test_mistakes_are_one_line(predicted, labels, message):
    with pytest.raises(ArgumentError, match=message) as error:
        character_error_rate(predicted, labels)
    assert "\n" not in str(error.value)
