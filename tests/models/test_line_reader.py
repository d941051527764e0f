"""The reader of lines: its counts by hand, its frames, training with CTC, and mistakes before compilation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn.arguments import ArgumentError
from jaxcnn.ctc import greedy_decode
from jaxcnn.losses import Batch, CTCLoss
from jaxcnn.metrics import character_error_rate
from jaxcnn.models.layers import NUDGES
from jaxcnn.models.line_reader import LineReader

pytestmark = pytest.mark.usefixtures("one_device")
CLASSES = 3
ONE = jc.strategy("jit", devices=1)


def shapes_of(model, shape, **kwargs):
    image = jax.ShapeDtypeStruct((2, *shape), "float32")
    result, variables = jax.eval_shape(
        lambda key, x: model.init_with_output(key, x, **kwargs), jax.random.key(0), image
    )
    return result, variables


@pytest.mark.parametrize(
    ("kwargs", "rows", "channels"),
    [({}, 32, 3), ({"width": 4, "convolutions": 2, "context": 5, "depth": 3}, 21, 1)],
)
def test_the_parameters_are_those_of_a_count_by_hand(kwargs, rows, channels):
    model = LineReader(10, **kwargs)
    w, n, k, depth = model.width, model.convolutions, model.context, model.depth
    filters, inputs, expected = (w, 2 * w, 4 * w, 4 * w), channels, 0
    for f in filters:
        # Kernels, then scales and offsets of BN.
        expected += 9 * inputs * f + 9 * f * f * (n - 1) + 2 * n * f
        inputs = f
    left = math.ceil(rows / 16)
    expected += left * 4 * w * 8 * w + 2 * 8 * w
    expected += depth * (k * (8 * w) ** 2 + 2 * 8 * w)
    expected += 8 * w * 11 + 11
    _, variables = shapes_of(model, (rows, 40, channels))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == expected
    if not kwargs:
        assert f"{expected:,} parameters" in (LineReader.__doc__ or "")


@pytest.mark.parametrize(("height", "width"), [(32, 128), (17, 30), (5, 3)])
def test_a_frame_is_four_columns(height, width):
    model = LineReader(CLASSES, width=2)
    (logits, stages), _ = shapes_of(model, (height, width, 1), stages=True)
    frames = math.ceil(width / 4)
    assert (logits.shape, logits.dtype) == ((2, frames, CLASSES + 1), jnp.float32)
    h, w, expected = height, width, {}
    for number, (rows, columns) in enumerate(((2, 2), (2, 2), (2, 1), (2, 1)), 1):
        h, w = math.ceil(h / rows), math.ceil(w / columns)
        expected[f"stage{number}"] = (2, h, w, 2 * min(2 ** (number - 1), 4))
    expected |= dict.fromkeys(("frames", "context1", "context2"), (2, 1, frames, 16))
    assert {name: value.shape for name, value in stages.items()} == expected


def test_outputs_are_float32_also_of_half_the_precision():
    (logits, stages), _ = shapes_of(
        LineReader(2, width=2, dtype="bfloat16"), (16, 8, 1), stages=True
    )
    assert (logits.dtype, stages["frames"].dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.quick_compilation
def test_a_nudge_of_a_stage_reaches_all_after_it():
    """Grad-CAM differentiates with respect to it."""
    model = LineReader(CLASSES, width=2)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 1)), jnp.float32)
    variables = dict(model.init(jax.random.key(0), image))

    @jax.jit
    def maps(change):
        return model.apply(variables | {NUDGES: {"stage2": change}}, image, stages=True)

    (logits, before), (changed, after) = maps(jnp.float32(0)), maps(jnp.float32(0.5))
    np.testing.assert_array_equal(after["stage1"], before["stage1"])
    np.testing.assert_allclose(after["stage2"], before["stage2"] + 0.5, rtol=1e-6)
    for name in ("stage3", "stage4", "frames", "context1", "context2"):
        assert float(abs(after[name] - before[name]).max()) > 1e-4, name
    assert float(abs(changed - logits).max()) > 1e-4


# ---------------------------------------------------------------- training


def bars(n, seed=0):
    """Lines of one to three bars, each of one of three heights."""
    rng = np.random.default_rng(seed)
    images = np.zeros((n, 16, 48, 1), np.uint8)
    labels = np.full((n, 3), -1, np.int32)
    for i in range(n):
        for j in range(int(rng.integers(1, 4))):
            labels[i, j] = rng.integers(0, CLASSES)
            column = 16 * j + int(rng.integers(3, 8))
            images[i, : 4 * (labels[i, j] + 1), column : column + 5] = 255
    return images, labels


@pytest.fixture(scope="module")
def data():
    return jc.dataset(bars(256), bars(64, 1), num_classes=CLASSES)


def loss_of_text(outputs, batch):
    return CTCLoss()(outputs, Batch(batch.inputs, batch.labels["text"]))


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize("labels_are", ["array", "dict"])
def test_it_learns_to_read_lines(data, labels_are):
    """Trained, evaluated and predicted with labels that are sequences, or a dict of them."""
    loss = "ctc"
    if labels_are == "dict":
        loss = loss_of_text
        parts = {name: getattr(data, name) for name in ("train", "test", "validation")}
        data = data._replace(
            **{name: jc.Split(part.images, {"text": part.labels}) for name, part in parts.items()}
        )
    model = LineReader(CLASSES, width=4)
    tx = jc.create_optimizer(jc.OptimizerConfig("adam", learning_rate=0.01))
    config = jc.TrainConfig(num_steps=200, batch_size=32, eval_every=100)
    *_, (state, row) = jc.train(model, tx, data, config, loss=loss, strategy=ONE)
    assert row is not None
    assert row["eval_error"] < 10
    labels = data.test.labels["text"] if labels_are == "dict" else data.test.labels
    readings = np.asarray(greedy_decode(jc.predict(model, state, data.test.images)))
    padded = np.pad(labels, ((0, 0), (0, readings.shape[1] - labels.shape[1])), constant_values=-1)
    wrong = 100 * (readings != padded).any(1).mean()
    totals = jc.evaluate(model, state, data.test, loss=loss, strategy=ONE)
    assert totals.error_percent == pytest.approx(wrong)
    assert row["eval_error"] == pytest.approx(wrong)
    assert character_error_rate(readings, labels) < 0.1


def changed(data, split, **entries):
    part = getattr(data, split)
    labels = part.labels.copy()
    for row, values in entries.items():
        labels[int(row[1:])] = values
    return data._replace(**{split: jc.Split(part.images, labels)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda data: changed(data, "train", _7=[0, 0, 0]),
            r"train labels\[7\] need 5 frames, with a blank between equal .* gives 4; .*wider",
        ),
        (
            lambda data: changed(data, "test", _2=[1, 1, 1]),
            r"test labels\[2\] need 5 frames",
        ),
        (lambda data: changed(data, "train", _0=[-1, 1, 2]), r"train labels\[0\] are \[-1, 1, 2\]"),
        (
            lambda data: changed(data, "test", _1=[3, 1, 2]),
            r"test labels\[1\] have 3; expected 0..2",
        ),
    ],
)
def test_lines_that_no_path_fits_are_refused_before_compilation(data, change, says, monkeypatch):
    """Images of 16 columns have 4 frames."""
    narrow = data._replace(
        **{
            name: jc.Split(part.images[:, :, :16], np.where(part.labels < 0, -1, [0, 1, 2]))
            for name in ("train", "test", "validation")
            for part in [getattr(data, name)]
        },
        mean=data.mean[:, :16],
    )
    narrow = narrow._replace(
        **{
            name: jc.Split(part.images, part.labels.astype(np.int32))
            for name in ("train", "test", "validation")
            for part in [getattr(narrow, name)]
        }
    )
    broken = change(narrow)
    monkeypatch.setattr("jaxcnn.training.make_train_step", lambda *a, **k: pytest.fail("compiled"))
    model = LineReader(CLASSES, width=2)
    tx = jc.create_optimizer(jc.OptimizerConfig("adam"))
    config = jc.TrainConfig(num_steps=1, batch_size=8)
    with pytest.raises(ArgumentError, match=says) as error:
        jc.train(model, tx, broken, config, loss="ctc", strategy=ONE)
    assert "\n" not in str(error.value)
    if "test labels" in says:
        state = jc.init_state(model, tx, config, narrow, loss="ctc")
        with pytest.raises(ArgumentError, match=says.removeprefix("test ")):
            jc.evaluate(model, state, broken.test, loss="ctc", strategy=ONE)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"context": 4}, "context is 4; expected an odd number of frames"),
        ({"context": 0}, "context is 0"),
        ({"depth": -1}, "depth is -1"),
        ({"width": 0}, "width is 0"),
        ({"convolutions": 0}, "convolutions is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
    ],
)
def test_invalid_fields_are_one_line(kwargs, says):
    with pytest.raises(ArgumentError, match=says) as error:
        shapes_of(LineReader(**{"num_classes": 2, **kwargs}), (16, 16, 1))
    assert "\n" not in str(error.value)


def test_a_classifier_is_refused(data):
    model, tx = jc.create_model("mlp", CLASSES), jc.create_optimizer(jc.OptimizerConfig("adam"))
    with pytest.raises(ArgumentError, match=r"loss 'ctc' expected logits of \(frames, num_cl"):
        jc.train(model, tx, data, jc.TrainConfig(num_steps=1, batch_size=8), loss="ctc")


def test_sequences_without_their_loss_are_told_of_it(data):
    model, tx = (
        LineReader(num_classes=CLASSES, width=2),
        jc.create_optimizer(jc.OptimizerConfig("adam")),
    )
    config = jc.TrainConfig(num_steps=1, batch_size=8)
    with pytest.raises(ValueError, match="write loss='ctc' if they are sequences") as error:
        jc.train(model, tx, data, config, loss="cross-entropy")
    assert "argmax" not in str(error.value)
    state = jc.init_state(model, tx, config, data, loss="ctc")
    with pytest.raises(ValueError, match="write loss='ctc' if they are sequences"):
        jc.evaluate(model, state, data.test)
