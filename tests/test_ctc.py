"""CTC: the loss against all alignments, the decoders against plain Python and all labellings, and mistakes."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn.arguments import ArgumentError
from jaxcnn.ctc import beam_decode, collapse_path, frames_needed, greedy_decode
from jaxcnn.losses import Batch, CTCLoss
from jaxcnn.metrics import character_error_rate


def collapsed(path, blank):
    """Graves et al. 2006, section 3.1: merge repetitions, then remove blanks."""
    return tuple(key for key, _ in itertools.groupby(path) if key != blank)


def labelling_probabilities(probabilities, blank):
    """Sum over all paths of one example [t, k + 1]: labelling -> probability (equation 3)."""
    num_frames, num_outputs = probabilities.shape
    sums: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(num_outputs), repeat=num_frames):
        probability = math.prod(probabilities[frame, output] for frame, output in enumerate(path))
        key = collapsed(path, blank)
        sums[key] = sums.get(key, 0.0) + probability
    return sums


def brute_force(logits, label, blank):
    """Loss of one label and its gradient [t, k + 1], in float64 and in log space over all paths.

    The gradient of -log p is the softmax less the probability of each output given the label.
    """
    logits = np.asarray(logits, np.float64)
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    frames = np.arange(len(logits))
    paths = [
        path
        for path in itertools.product(range(logits.shape[1]), repeat=len(logits))
        if collapsed(path, blank) == label
    ]
    values = np.array([log_probs[frames, list(path)].sum() for path in paths])
    total = np.logaddexp.reduce(values)
    gradient = np.exp(log_probs)
    for path, value in zip(paths, values, strict=True):
        gradient[frames, list(path)] -= np.exp(value - total)
    return -total, gradient


def random_probabilities(rng, *shape):
    return rng.dirichlet(np.full(shape[-1], 0.7), shape[:-1])


def padded(sequences, length):
    rows = [[*sequence, *[-1] * (length - len(sequence))] for sequence in sequences]
    return np.array(rows, np.int32)


# ---------------------------------------------------------------- loss


@pytest.mark.parametrize(("blank", "outputs"), [(-1, 3), (0, 3), (1, 4)])
def test_the_loss_is_the_sum_over_all_alignments(blank, outputs):
    """Of every labelling that fits into the frames, repetitions and the empty one too."""
    rng = np.random.default_rng(0)
    number, frames, length = blank % outputs, 5, 4
    probabilities = random_probabilities(rng, frames, outputs)
    sums = labelling_probabilities(probabilities, number)
    assert sum(sums.values()) == pytest.approx(1)
    sequences = [sequence for sequence in sums if len(sequence) <= length]
    assert () in sequences
    assert any(len(set(sequence)) < len(sequence) for sequence in sequences)
    logits = jnp.asarray(np.log(probabilities) + rng.normal(size=(frames, 1)), jnp.float32)
    batch = Batch(None, jnp.asarray(padded(sequences, length)))
    losses, metrics = jax.jit(CTCLoss(blank))(jnp.tile(logits, (len(sequences), 1, 1)), batch)
    expected = [-math.log(sums[sequence]) for sequence in sequences]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    best = collapsed(probabilities.argmax(1), number)
    assert metrics["error"].tolist() == [sequence != best for sequence in sequences]


def test_the_gradient_is_that_of_the_sum_over_all_alignments():
    """Finite differences in float64 of the brute force, for a label with a repetition."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4, 3))
    label = (1, 1)

    def brute(values):
        shares = np.exp(values) / np.exp(values).sum(1, keepdims=True)
        return -math.log(labelling_probabilities(shares, 2)[label])

    def loss(values):
        return CTCLoss()(values[None], Batch(None, jnp.array([[1, 1, -1]])))[0].sum()

    gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(logits, jnp.float32)))
    for index in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[index] = 1e-5
        slope = (brute(logits + step) - brute(logits - step)) / 2e-5
        assert gradient[index] == pytest.approx(slope, abs=2e-4)


def test_extreme_logits_have_a_finite_loss_and_gradient():
    logits = jnp.array([[[300.0, -300.0, 0.0], [-300.0, 0.0, 300.0], [0.0, 300.0, -300.0]]])
    labels = jnp.array([[0, 1, -1]])

    def loss(values):
        return CTCLoss()(values, Batch(None, labels))[0].sum()

    both = jax.jit(jax.value_and_grad(loss))
    for sign in (1, -1):
        value, gradient = both(sign * logits)
        expected, slopes = brute_force(sign * logits[0], (0, 1), 2)
        assert float(value) == pytest.approx(expected, rel=1e-6, abs=1e-6)
        # Neighbors of 600 in float32 differ by 6e-5, and so do logarithms of probabilities there.
        np.testing.assert_allclose(gradient[0], slopes, atol=6.2e-5)


@jax.jit
@jax.value_and_grad
def value_and_gradient(logits, labels):
    return CTCLoss()(logits, Batch(None, labels))[0].sum()


def loss_and_gradient(logits, label):
    logits = jnp.asarray(logits, jnp.float32)
    value, gradient = value_and_gradient(logits[None], jnp.array([label]))
    return float(value), gradient[0]


def test_outputs_with_logits_of_minus_infinity_are_masked():
    """The paths of the others are summed, also far from 0, and greedy readings are right."""
    masked = np.array([[0, -np.inf, 0], [0, 1, 0]])
    assert brute_force(masked, (0,), 2)[0] == pytest.approx(1.14598, abs=1e-5)
    wider = np.array([[2, -np.inf, -np.inf], [0.5, -np.inf, 1], [-np.inf, 1, 0.25], [0, 1, 3.0]])
    for logits, label in ((masked, (0,)), (wider, (0, 1)), (wider, (0, 0)), (wider + 1e3, (0, 1))):
        value, gradient = loss_and_gradient(logits, [*label, *[-1] * (2 - len(label))])
        expected, slopes = brute_force(logits, label, 2)
        assert value == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(gradient, slopes, atol=1e-5)
        assert (np.asarray(gradient)[np.isneginf(logits)] == 0).all()
    batch = Batch(None, jnp.array([[0, 1]]))
    _, metrics = jax.jit(CTCLoss())(jnp.asarray(wider[None], jnp.float32), batch)
    assert metrics["error"].tolist() == [False]


def test_a_sequence_that_needs_a_masked_output_has_a_great_loss():
    value, gradient = loss_and_gradient([[0, -np.inf, 0], [0, -np.inf, 0]], [1, -1])
    assert value == pytest.approx(1e4, rel=1e-3)
    assert (np.asarray(gradient)[:, 1] == 0).all()


@pytest.mark.parametrize("frame", [[0, np.nan, 0], [0, np.inf, 0], [-np.inf] * 3])
def test_a_frame_without_probabilities_has_a_loss_that_is_not_a_number(frame):
    logits = jnp.array([[frame, [0.0, 1, 0]], [[0.0, 1, 0], [0.0, 1, 0]]])
    losses, metrics = jax.jit(CTCLoss())(logits, Batch(None, jnp.array([[1], [1]])))
    assert np.isnan(losses).tolist() == metrics["error"].tolist() == [True, False]
    beams = beam_decode(logits, width=3)
    assert np.isnan(beams.log_probs).all(1).tolist() == [True, False]
    assert (beams.labels[0] == -1).all()
    assert beams.labels[1, 0].tolist() == [1, -1]


@pytest.mark.quick_compilation
def test_dtypes_and_values_are_those_of_32_bits_in_x64():
    """The promotion of dtypes is strict here."""
    rng = np.random.default_rng(10)
    logits = rng.normal(size=(2, 4, 3)).astype(np.float32)
    labels = np.array([[0, 1], [1, -1]], np.int32)

    def run():
        def loss(values):
            losses, metrics = CTCLoss()(values, Batch(None, jnp.asarray(labels)))
            return losses.sum(), (losses, metrics["error"])

        (_, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(logits))
        return *found, gradient, greedy_decode(logits), *beam_decode(logits, width=3)

    expected = run()
    with jax.enable_x64(True):
        found = run()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_loss_of_bfloat16_is_computed_in_float32():
    logits = jnp.array([[[1.0, 2.0], [0.5, -1.0], [3.0, 0.25]]])
    batch = Batch(None, jnp.array([[0]]))
    loss = jax.jit(CTCLoss())
    losses, _ = loss(logits.astype(jnp.bfloat16), batch)
    assert losses.dtype == jnp.float32
    # These numbers have the same value in both.
    np.testing.assert_allclose(losses, loss(logits, batch)[0], rtol=1e-6)


def test_a_traced_sequence_without_a_path_has_a_loss_that_is_not_a_number():
    labels = jnp.array([[0, 1, 0], [0, 0, -1], [0, 0, 1], [2, -1, -1], [-1, 0, -1], [-2, -1, -1]])
    logits = jnp.zeros((len(labels), 3, 3))
    losses, metrics = jax.jit(CTCLoss())(logits, Batch(None, labels))
    assert np.isnan(losses).tolist() == [False, False, True, True, True, True]
    assert metrics["error"].all()


def test_logits_that_are_not_numbers_are_errors():
    logits = jnp.log(jnp.array([[[0.8, 0.2]], [[0.8, 0.2]]])).at[1].set(jnp.nan)
    _, metrics = jax.jit(CTCLoss())(logits, Batch(None, jnp.array([[0], [0]])))
    assert metrics["error"].tolist() == [False, True]


def test_repetitions_need_a_blank_between_them():
    labels = np.array([[1, 1, 1, -1], [1, 2, 1, 2], [-1, -1, -1, -1]])
    for array in (labels, jnp.asarray(labels)):
        assert frames_needed(array).tolist() == [5, 4, 0]


def test_paths_are_collapsed_as_itertools_groups_them():
    rng = np.random.default_rng(2)
    paths = rng.integers(0, 4, (200, 9))
    for blank in (0, 2, 3):
        expected = padded([collapsed(path, blank) for path in paths], 9)
        np.testing.assert_array_equal(collapse_path(paths, blank), expected)


# ---------------------------------------------------------------- decoders


def prefix_beam_search(probabilities, blank, width):
    """Hannun et al. 2014, algorithm 1, without a language model; dicts and products of floats."""
    beams = {(): (1.0, 0.0)}
    for frame in probabilities:
        new: dict[tuple[int, ...], list[float]] = {}
        for prefix, (ends_blank, ends_other) in beams.items():
            for output, probability in enumerate(frame):
                if output == blank:
                    new.setdefault(prefix, [0.0, 0.0])[0] += probability * (ends_blank + ends_other)
                    continue
                longer = new.setdefault((*prefix, output), [0.0, 0.0])
                if prefix and prefix[-1] == output:
                    longer[1] += probability * ends_blank
                    new.setdefault(prefix, [0.0, 0.0])[1] += probability * ends_other
                else:
                    longer[1] += probability * (ends_blank + ends_other)
        kept = sorted(new.items(), key=lambda item: -sum(item[1]))[:width]
        beams = {prefix: (pair[0], pair[1]) for prefix, pair in kept if sum(pair) > 0}
    return {prefix: sum(pair) for prefix, pair in beams.items()}


def sequence(row):
    return tuple(int(number) for number in row if number >= 0)


@pytest.mark.parametrize(("width", "blank"), [(1, -1), (2, 0), (4, 2), (16, -1)])
def test_beam_search_is_that_of_plain_python(width, blank):
    rng = np.random.default_rng(3)
    probabilities = random_probabilities(rng, 40, 7, 4)
    beams = beam_decode(jnp.log(probabilities), width=width, blank=blank)
    assert beams.labels.shape == (40, width, 7)
    for i in range(40):
        expected = prefix_beam_search(probabilities[i], blank % 4, width)
        found = {
            sequence(row): math.exp(value)
            for row, value in zip(beams.labels[i], beams.log_probs[i], strict=True)
        }
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=1e-4)


def test_a_wide_beam_finds_the_most_probable_labelling_of_all():
    """With as many prefixes as there are, the probabilities are those of all alignments."""
    rng = np.random.default_rng(4)
    frames, outputs = 5, 3
    probabilities = random_probabilities(rng, 20, frames, outputs)
    sums = [labelling_probabilities(example, 2) for example in probabilities]
    width = 1 + max(map(len, sums))
    beams = beam_decode(jnp.log(probabilities), width=width)
    greedy = greedy_decode(jnp.log(probabilities))
    differs = 0
    for i, of_example in enumerate(sums):
        ranked = sorted(of_example.items(), key=lambda item: -item[1])
        assert sequence(beams.labels[i, 0]) == ranked[0][0]
        np.testing.assert_allclose(
            np.exp(beams.log_probs[i, : len(ranked)]), [value for _, value in ranked], rtol=1e-4
        )
        # Not more prefixes than there are.
        assert np.isneginf(beams.log_probs[i, len(ranked) :]).all()
        assert (np.asarray(beams.labels[i, len(ranked) :]) == -1).all()
        differs += sequence(greedy[i]) != ranked[0][0]
    # The best path alone is another one for some.
    assert differs > 0


def test_the_best_beam_has_the_probability_of_the_loss():
    rng = np.random.default_rng(5)
    logits = jnp.asarray(rng.normal(size=(8, 6, 3)), jnp.float32)
    beams = beam_decode(logits, width=200)
    losses, _ = jax.jit(CTCLoss())(logits, Batch(None, beams.labels[:, 0]))
    np.testing.assert_allclose(losses, -beams.log_probs[:, 0], rtol=1e-4)


def test_impossible_outputs_are_never_read_twice():
    """Outputs of probability 0 fill the beam with prefixes that must not be counted."""
    rng = np.random.default_rng(6)
    probabilities = random_probabilities(rng, 30, 6, 4)
    probabilities[rng.random(probabilities.shape) < 0.5] = 0
    probabilities[..., 3] += 0.1
    probabilities /= probabilities.sum(-1, keepdims=True)
    beams = beam_decode(jnp.log(probabilities), width=12)
    for i in range(30):
        expected = prefix_beam_search(probabilities[i], 3, 12)
        alive = np.isfinite(beams.log_probs[i])
        found = [sequence(row) for row in np.asarray(beams.labels[i])[alive]]
        assert len(set(found)) == len(found)
        assert found == list(expected)


def test_a_limit_of_length_is_the_best_sequence_within_it():
    """No longer prefix is kept, and the others have the probabilities of all alignments."""
    rng = np.random.default_rng(7)
    probabilities = random_probabilities(rng, 10, 5, 3)
    beams = beam_decode(jnp.log(probabilities), width=60, max_length=2)
    assert beams.labels.shape == (10, 60, 2)
    for i, example in enumerate(probabilities):
        short = {
            key: value
            for key, value in labelling_probabilities(example, 2).items()
            if len(key) <= 2
        }
        best = max(short, key=lambda key: short[key])
        assert sequence(beams.labels[i, 0]) == best
        assert math.exp(beams.log_probs[i, 0]) == pytest.approx(short[best], rel=1e-4)


def test_greedy_decoding_is_the_collapsed_best_path():
    rng = np.random.default_rng(8)
    logits = rng.normal(size=(50, 8, 4)).astype(np.float32)
    for blank in (-1, 0, 2):
        expected = [collapsed(path, blank % 4) for path in logits.argmax(-1)]
        np.testing.assert_array_equal(greedy_decode(logits, blank=blank), padded(expected, 8))


def test_decoders_work_under_jit_and_vmap():
    logits = jnp.asarray(np.random.default_rng(9).normal(size=(2, 3, 5, 3)), jnp.float32)
    for decode in (greedy_decode, lambda x: beam_decode(x, width=3).labels):
        both = jax.jit(jax.vmap(decode))(logits)
        for part, one in zip(both, logits, strict=True):
            np.testing.assert_array_equal(part, decode(one))


# ---------------------------------------------------------------- mistakes

LOGITS = jnp.zeros((2, 4, 3))
LABELS = jnp.array([[0, 1], [1, -1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CTCLoss(blank=-2), "blank is -2; expected a whole number of at least -1"),
        (lambda: CTCLoss(blank=1.5), "blank is 1.5"),  # type: ignore[arg-type]
        (lambda: CTCLoss(3)(LOGITS, Batch(None, LABELS)), "blank is 3 and the model has 3 outputs"),
        (lambda: CTCLoss()(LOGITS, Batch(None, LABELS[0])), r"labels are an array int32 \(2,\)"),
        (lambda: CTCLoss()(LOGITS, Batch(None, {"a": LABELS})), "labels are a dict of 1; expected"),
        (
            lambda: CTCLoss()(LOGITS, Batch(None, LABELS.astype("float32"))),
            "float32.*expected sequences",
        ),
        (
            lambda: CTCLoss()(LOGITS, Batch(None, LABELS.astype("float32"))),
            r"^labels are float32; .*Write labels.astype\('int32'\)",
        ),
        (lambda: jc.create_loss("CTC"), "did you mean 'ctc'"),
        (
            lambda: character_error_rate(beam_decode(LOGITS).labels, LABELS),
            r"predicted is an array int32 \(2, 8, 4\); .*Write predicted=beams.labels\[:, 0\]",
        ),
        (
            lambda: character_error_rate(beam_decode(LOGITS), LABELS),
            r"Write predicted=beams.labels\[:, 0\]",
        ),
        (lambda: CTCLoss()(LOGITS[:, 0], Batch(None, LABELS)), r"the model gives \(3,\) for an"),
        (lambda: CTCLoss()(LOGITS[:1], Batch(None, LABELS)), r"outputs of shape \(1, 4, 3\) for 2"),
        (
            lambda: jax.eval_shape(CTCLoss(), LOGITS[:, :1], Batch(None, LABELS)),
            "labels have 2 columns and the model gives 1 frames",
        ),
        (
            lambda: CTCLoss()(LOGITS[:, :2], Batch(None, jnp.array([[0, 1], [1, 1]]))),
            r"labels\[1\] need 3 frames, with a blank between .* and the model gives 2",
        ),
        (
            lambda: CTCLoss()(LOGITS, Batch(None, jnp.array([[0, 1], [-1, 1]]))),
            r"labels\[1\] are \[-1, 1\]; expected -1 only after the last",
        ),
        (
            lambda: CTCLoss()(LOGITS, Batch(None, jnp.array([[0, 2], [1, 1]]))),
            r"labels\[0\] have 2; expected 0..1, or -1 for padding, as output 2 of 3 is the blank",
        ),
        (lambda: frames_needed(LABELS.astype(float)), "labels is an array float32 .*integers"),
        (lambda: frames_needed([[1, -1]]), r"labels is \[\[1, -1\]\]; expected integers"),
        (
            lambda: collapse_path(np.array([[0.9, 0.2, 1.7]]), 9),
            r"path is an array float64 \(1, 3\); .*Write path=logits.argmax\(-1\)",
        ),
        (lambda: collapse_path(LABELS[0], 2), r"path is .* \(2,\); .*Write path\[None\]"),
        (lambda: collapse_path(LABELS, -1), "blank is -1; expected a whole number of at least 0"),
        (lambda: greedy_decode(LOGITS[0]), r"logits is an array float32 \(4, 3\); expected"),
        (lambda: greedy_decode(LOGITS.astype(int)), "logits is an array int"),
        (lambda: greedy_decode([[1.0]]), r"logits is \[\[1.0\]\]; expected floating numbers"),
        (
            lambda: greedy_decode(LOGITS, blank=3),
            "blank is 3; expected a whole number from -1 to 2",
        ),
        (lambda: beam_decode(LOGITS, width=0), "width is 0"),
        (lambda: beam_decode(LOGITS, max_length=0), "max_length is 0"),
        (lambda: beam_decode(LOGITS[..., :1]), r"logits is an array float32 \(2, 4, 1\)"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(ArgumentError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_name_of_the_loss():
    assert jc.create_loss("ctc", blank=0) == CTCLoss(0)
    assert hash(CTCLoss()) == hash(CTCLoss(-1))
