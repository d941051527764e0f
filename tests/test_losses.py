"""Losses against NumPy, and losses of a user's own in training, evaluation, records and the finder."""

import dataclasses
import functools
import json
import re
import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scripts import train_config

import jaxcnn as jc
from jaxcnn.evaluation import loss_fn
from jaxcnn.interpret.signal_propagation import gradient_norms
from jaxcnn.loss_landscape import evaluate_along, random_direction
from jaxcnn.losses import (
    LOSSES,
    Batch,
    BinaryCrossEntropy,
    CrossEntropy,
    CTCLoss,
    Reconstruction,
    SquaredError,
    as_loss,
    check_class_numbers,
    compute_loss,
    loss_call,
    metric_dtypes,
)
from jaxcnn.parallel import strategy
from jaxcnn.runs import load_trained_model, run, sweep

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(12, 5)).astype(np.float32) * 3
LABELS = RNG.integers(0, 5, 12).astype(np.int32)
ONE = strategy("jit", 1)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def values(loss, outputs, labels=None, inputs=None):
    losses, metrics = loss(jnp.asarray(outputs), Batch(inputs, labels))
    return np.asarray(losses), {name: np.asarray(value) for name, value in metrics.items()}


# ---------------------------------------------------------------- the library's, against NumPy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weights", [None, (1.0, 0.5, 2.0, 0.0, 3.0)])
@pytest.mark.parametrize("shape", [(12,), (2, 3, 2)])
def test_cross_entropy_is_that_of_a_smoothed_distribution(smoothing, weights, shape):
    """Label smoothing is the cross-entropy of (1 - s) one-hot + s / k (Szegedy et al. 2015, section 7)."""
    loss = CrossEntropy(label_smoothing=smoothing, class_weights=weights)
    target = (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5
    expected = -(target * log_softmax(LOGITS)).sum(-1)
    if weights is not None:
        expected *= np.array(weights)[LABELS]
    losses, metrics = values(loss, LOGITS.reshape(*shape, 5), jnp.asarray(LABELS.reshape(shape)))
    np.testing.assert_allclose(losses, expected.reshape(shape), rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(metrics["error"], (LOGITS.argmax(-1) != LABELS).reshape(shape))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weights", [None, (1.0, 0.5, 2.0, 0.0, 3.0)])
@pytest.mark.parametrize("shape", [(12,), (2, 3, 2)])
def test_a_soft_label_has_the_mean_loss_of_its_classes(smoothing, weights, shape):
    """It is linear in the shares, as mixup needs it (Zhang et al. 2017, section 2)."""
    loss = CrossEntropy(label_smoothing=smoothing, class_weights=weights)
    shares = RNG.dirichlet(np.ones(5), 12).astype(np.float32)
    of_class = np.stack(
        [
            -(((1 - smoothing) * np.eye(5)[k] + smoothing / 5) * log_softmax(LOGITS)).sum(-1)
            * (1 if weights is None else weights[k])
            for k in range(5)
        ],
        -1,
    )
    logits = LOGITS.reshape(*shape, 5)
    losses, metrics = values(loss, logits, jnp.asarray(shares.reshape(*shape, 5)))
    expected = (shares * of_class).sum(-1).reshape(shape)
    np.testing.assert_allclose(losses, expected, rtol=2e-6, atol=1e-6)
    wrong = LOGITS.argmax(-1) != shares.argmax(-1)
    np.testing.assert_array_equal(metrics["error"], wrong.reshape(shape))


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(),
        CrossEntropy(label_smoothing=0.3),
        CrossEntropy(0.3, (1.0, 0.5, 2.0, 0.0, 3.0)),
        SquaredError(),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_one_hot_label_has_the_loss_of_its_integer(loss, dtype):
    hard, soft = (
        values(loss, LOGITS, labels)
        for labels in (jnp.asarray(LABELS), jax.nn.one_hot(LABELS, 5, dtype=dtype))
    )
    np.testing.assert_allclose(soft[0], hard[0], rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(soft[1]["error"], hard[1]["error"])


def test_a_soft_squared_error_is_half_the_distance_to_the_shares():
    shares = RNG.dirichlet(np.ones(5), 12).astype(np.float32)
    losses, metrics = values(SquaredError(), LOGITS, jnp.asarray(shares))
    expected = 0.5 * ((LOGITS.astype(np.float64) - shares) ** 2).sum(-1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_array_equal(metrics["error"], LOGITS.argmax(-1) != shares.argmax(-1))


def test_soft_labels_with_logits_that_are_not_numbers_are_wrong():
    _, metrics = values(CrossEntropy(), [[np.nan, 0.0]], jnp.array([[1.0, 0.0]]))
    assert metrics["error"].tolist() == [True]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (jnp.ones((12, 4)) / 4, r"the model gives \(5,\) for an image, and its soft label \(4,\)"),
        (jnp.ones(12), r"labels are an array float32 \(12,\); expected the numbers of classes"),
        (jnp.ones((12, 5), bool), r"labels are an array bool"),
    ],
)
def test_soft_labels_that_do_not_fit_are_one_line(labels, says):
    with pytest.raises(jc.ArgumentError, match=says) as caught:
        values(CrossEntropy(), LOGITS, labels)
    assert "\n" not in str(caught.value)


def test_shares_of_the_data_that_do_not_fit_are_one_line():
    data = jc.load_dataset("digits")
    model = jc.create_model("mlp", 10)
    tx, config = optax.sgd(0.1), jc.TrainConfig(num_steps=1)
    shares = np.eye(10, dtype=np.float32)[data.train.labels]
    for labels, says in (
        (shares[:, :9], r"\(1437, 9\); expected \(1437, 10\), a share of each class"),
        (shares * 2, r"row 0 has no shares of the classes.*sum of 1"),
        (-shares, "row 0 has no shares"),
        (shares * np.float32(np.nan), "row 0 has no shares"),
    ):
        wrong = data._replace(train=data.train._replace(labels=labels))
        with pytest.raises(jc.DataError, match=says) as caught:
            jc.train(model, tx, wrong, config)
        assert "\n" not in str(caught.value)


def test_the_squared_error_is_half_the_distance_to_the_one_hot_label():
    losses, metrics = values(SquaredError(), LOGITS, jnp.asarray(LABELS))
    expected = 0.5 * ((LOGITS.astype(np.float64) - np.eye(5)[LABELS]) ** 2).sum(-1)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    np.testing.assert_array_equal(metrics["error"], LOGITS.argmax(-1) != LABELS)


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint8, bool])
def test_binary_cross_entropy_is_that_of_each_label(dtype):
    labels = RNG.integers(0, 2, LOGITS.shape).astype(dtype)
    losses, metrics = values(BinaryCrossEntropy(), LOGITS, jnp.asarray(labels))
    share = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    expected = -np.where(labels.astype(bool), np.log(share), np.log(1 - share))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_array_equal(metrics["error"], (LOGITS > 0) != labels.astype(bool))


def test_binary_logits_that_are_not_numbers_are_wrong():
    _, metrics = values(BinaryCrossEntropy(), [[np.nan, -9.0]], jnp.zeros((1, 2)))
    assert metrics["error"].tolist() == [[True, False]]


def test_a_reconstruction_compares_with_the_inputs():
    inputs, outputs = RNG.normal(size=(2, 3, 4, 4, 1)).astype(np.float32)
    losses, metrics = values(Reconstruction(), outputs, inputs=jnp.asarray(inputs))
    np.testing.assert_allclose(losses, (outputs - inputs) ** 2, rtol=1e-6)
    np.testing.assert_array_equal(metrics["error"], (outputs > 0) != (inputs > 0))


def test_the_gradient_of_smoothing_and_weights_is_that_of_a_finite_difference():
    loss = CrossEntropy(label_smoothing=0.2, class_weights=(1.0, 2.0, 3.0, 4.0, 5.0))

    def mean(logits):
        return loss(logits, Batch(None, jnp.asarray(LABELS)))[0].mean()

    direction = RNG.normal(size=LOGITS.shape).astype(np.float32)
    slope = float((jax.grad(mean)(jnp.asarray(LOGITS)) * direction).sum())
    step = 1e-2
    ends = [float(mean(jnp.asarray(LOGITS + sign * step * direction))) for sign in (1, -1)]
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3)


# ---------------------------------------------------------------- names, arguments, records


def test_each_name_makes_its_loss_and_a_loss_has_its_call():
    for name, kind in LOSSES.items():
        assert type(as_loss(name)) is kind
        assert loss_call(as_loss(name)) == (name, {})
        assert jc.create_loss(name) == as_loss(name)
    loss = jc.create_loss("cross-entropy", class_weights=np.array([1, 2]))
    name, kwargs = loss_call(loss)
    assert kwargs == {"class_weights": [1.0, 2.0]}
    assert jc.create_loss(name, **json.loads(json.dumps(kwargs))) == loss
    assert hash(jc.create_loss(name, **kwargs)) == hash(loss)


def test_every_library_loss_has_the_metric_that_states_expect():
    """`init_state` takes the metrics of these without tracing a model."""
    image = jnp.zeros((2, 4, 4, 1))
    outputs = {Reconstruction: image, BinaryCrossEntropy: jnp.zeros((2, 3))}
    outputs |= {CTCLoss: jnp.zeros((2, 4, 3))}
    labels = {BinaryCrossEntropy: jnp.zeros((2, 3)), CTCLoss: jnp.zeros((2, 2), jnp.int32)}
    for kind in LOSSES.values():
        batch = Batch(image, labels.get(kind, jnp.zeros(2, jnp.int32)))
        loss = functools.partial(compute_loss, kind())
        _, metrics = jax.eval_shape(loss, outputs.get(kind, jnp.zeros((2, 3))), batch)
        assert metric_dtypes(metrics) == (("error", "int32"),)


def own(outputs, batch):
    return outputs.sum(-1), {}


MISTAKES = [
    (lambda: as_loss("squarred"), "did you mean 'squared'?"),
    (
        lambda: as_loss(CrossEntropy),  # type: ignore[arg-type]
        "loss is the class CrossEntropy.*CrossEntropy()",
    ),
    (
        lambda: as_loss(None),  # type: ignore[arg-type]
        "loss is None; expected .*or a function",
    ),
    (lambda: jc.create_loss("squared", label_smoothing=0.1), "takes no label_smoothing"),
    (lambda: jc.create_loss("cross-entropy", label_smoothin=0.1), "mean 'label_smoothing'"),
    (lambda: CrossEntropy(label_smoothing=1.5), "label_smoothing is 1.5; expected .*0..1"),
    (lambda: CrossEntropy(label_smoothing=True), "label_smoothing is True"),
    (
        lambda: CrossEntropy(class_weights=3.0),  # type: ignore[arg-type]
        "class_weights is 3.0; expected a number for each",
    ),
    (lambda: CrossEntropy(class_weights=(1.0, -1.0)), "class_weights is -1.0"),
    (lambda: CrossEntropy(class_weights=(1.0, np.inf)), "class_weights is inf"),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(jc.ArgumentError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


RETURNS = [
    (lambda o, b: o.mean(-1), "the loss returned an array float32 .*expected a pair"),
    (lambda o, b: (o.mean(), {}), r"losses have shape \(\) for .*Leave out the mean"),
    (lambda o, b: (o.sum(-1)[:1], {}), r"losses have shape \(1,\) for"),
    (lambda o, b: (b.labels, {}), "losses are an array int32"),
    (lambda o, b: (o.sum(-1), [1]), "metrics is .*expected values by name"),
    (lambda o, b: (o.sum(-1), {"loss": o.sum(-1)}), "a metric is called 'loss'"),
    (lambda o, b: (o.sum(-1), {"iou": 1.0}), "metric 'iou' is 1.0; expected an array"),
    (lambda o, b: (o.sum(-1), {"iou": o}), "metric 'iou' is an array .*losses' shape"),
    (
        lambda o, b: (o.sum(-1), {"z": o.sum(-1).astype(jnp.complex64)}),
        "metric 'z' is of complex64",
    ),
]


@pytest.mark.parametrize(("loss", "message"), RETURNS)
def test_what_a_loss_must_return_is_checked_when_train_is_called(loss, message):
    data, model = jc.load_dataset("digits"), jc.create_model("perceptron", 10)
    config = jc.TrainConfig(num_steps=2, batch_size=32)
    with pytest.raises(jc.ArgumentError, match=message) as error:
        jc.train(model, optax.sgd(0.1), data, config, loss=loss, strategy=ONE)
    assert "\n" not in str(error.value)


def test_an_error_inside_a_loss_stays_as_it_is():
    def broken(outputs, batch):
        raise LookupError("mine")

    data, model = jc.load_dataset("digits"), jc.create_model("perceptron", 10)
    with pytest.raises(LookupError, match="mine"):
        jc.train(model, optax.sgd(0.1), data, jc.TrainConfig(), loss=broken, strategy=ONE)


@pytest.mark.parametrize(
    "loss", [lambda outputs, labels: (outputs - labels) ** 2, lambda o, b: (o[:, b.label], {})]
)
def test_an_error_of_a_losss_arguments_has_a_note_of_them(loss):
    data, model = jc.load_dataset("digits"), jc.create_model("perceptron", 10)
    with pytest.raises((TypeError, AttributeError)) as error:
        jc.train(model, optax.sgd(0.1), data, jc.TrainConfig(), loss=loss, strategy=ONE)
    assert error.value.__notes__[0] == (
        "A loss is called as loss(outputs, batch); labels are batch.labels."
    )


# ---------------------------------------------------------------- training


class TwoHeads(nn.Module):
    """Class and mean brightness of an image."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Dense(24, name="hidden")(images.reshape(len(images), -1)))
        return {"class": nn.Dense(10, name="class")(x), "mean": nn.Dense(1, name="mean")(x)[:, 0]}


def two_heads(outputs, batch):
    distance = outputs["mean"] - batch.labels["mean"]
    entropy = optax.softmax_cross_entropy_with_integer_labels(
        outputs["class"], batch.labels["class"]
    )
    wrong = outputs["class"].argmax(-1) != batch.labels["class"]
    return entropy + jnp.square(distance), {"error": wrong, "distance": jnp.abs(distance)}


def with_brightness(split):
    means = (split.images.mean((1, 2, 3)) / 255).astype(np.float32)
    return jc.Split(split.images, {"class": split.labels, "mean": means})


@pytest.fixture(scope="module")
def pairs():
    data = jc.load_dataset("digits")
    return data._replace(
        train=with_brightness(data.train),
        validation=with_brightness(data.validation),
        test=with_brightness(data.test),
    )


CONFIG = jc.TrainConfig(num_steps=30, batch_size=64, eval_every=15)


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_outputs_and_labels_may_be_trees(pairs, tmp_path):
    """Two heads are trained, judged, stopped and resumed; a row has each metric, in percent if it is bool."""
    tx = optax.sgd(0.1, momentum=0.9)
    whole = list(jc.train(TwoHeads(), tx, pairs, CONFIG, loss=two_heads, strategy=ONE))
    state, row = whole[-1]
    assert row is not None
    outputs: Any = TwoHeads().apply(
        {"params": state.params},
        (pairs.test.images / np.float32(255) - pairs.mean),
    )
    labels = pairs.test.labels
    distance = np.asarray(outputs["mean"], np.float64) - labels["mean"]
    wrong = np.asarray(outputs["class"]).argmax(-1) != labels["class"]
    entropy = -log_softmax(outputs["class"])[np.arange(len(wrong)), labels["class"]]
    assert row["eval_error"] == pytest.approx(100 * wrong.mean())
    assert row["eval_distance"] == pytest.approx(np.abs(distance).mean(), rel=1e-4)
    assert row["eval_loss"] == pytest.approx((entropy + distance**2).mean(), rel=1e-4)
    assert row["eval_error"] < 20
    sums = jc.evaluate(TwoHeads(), state, pairs.test, loss=two_heads, strategy=ONE, batch_size=7)
    assert sums.means()["distance"] == pytest.approx(row["eval_distance"], rel=1e-5)
    assert sums.error_percent == row["eval_error"]

    options: Any = {"loss": two_heads, "strategy": ONE, "run_dir": tmp_path / "run"}
    first = jc.train(TwoHeads(), tx, pairs, CONFIG, **options)
    next(first)
    first.close()  # type: ignore[attr-defined]
    resumed, last = list(jc.train(TwoHeads(), tx, pairs, CONFIG, **options))[-1]
    assert last is not None
    jax.tree.map(np.testing.assert_array_equal, state, resumed)
    config = jc.ExperimentConfig.load(tmp_path / "run")
    assert config.loss.startswith(f"{__name__}.two_heads")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["eval_distance"] == row["eval_distance"]


def test_a_network_of_one_output_learns_a_regression(data):
    """The targets are linear in the pixels, so that a linear network has a loss of 0 at its best."""

    def targets(split):
        return (split.images.mean((1, 2, 3)) / 100).astype(np.float32)

    def squared(outputs, batch):
        return (outputs[:, 0] - batch.labels) ** 2, {}

    def every_pair(outputs, batch):
        return (outputs - batch.labels[None]) ** 2, {}  # As broadcasting has it.

    def of_pairs(use, model, pairs, config):
        tx = optax.adam(0.03) if use is jc.train else jc.OptimizerConfig()
        return use(model, tx, pairs, config, loss=every_pair)

    train, test = [(split.images, targets(split)) for split in (data.train, data.test)]
    pairs = jc.dataset(train, test)
    model = jc.create_model("mlp", 1, hidden=())
    config = jc.TrainConfig(num_steps=300, batch_size=64, eval_every=100)
    run: Any = jc.train(model, optax.adam(0.03), pairs, config, loss=squared, strategy=ONE)
    (_, row), *_, (state, last) = run
    assert last["eval_loss"] < 0.01 * np.var(test[1])
    assert last["train_loss"] < row["train_loss"]
    assert jc.predict(model, state, data.test.images).shape == (len(data.test.images), 1)
    message = r"losses have shape \(97, 97\), one for each pair .* Write outputs\[:, 0\]"
    for use in (jc.train, jc.lr_finder):
        with pytest.raises(jc.ArgumentError, match=message):
            list(of_pairs(use, model, pairs, config))
    with pytest.raises(jc.ArgumentError, match=message):
        jc.evaluate(model, state, pairs.test, loss=every_pair)
    message = r"gives 1 output and the data has 10 classes; .* Build the model with 10 outputs\.$"
    with pytest.raises(jc.ArgumentError, match=message):
        next(jc.train(model, optax.adam(0.03), data, config, strategy=ONE))


@pytest.mark.quick_compilation
def test_a_run_of_targets_gets_its_outputs_from_the_line_that_the_message_has(data, tmp_path):
    def targets(split):
        return split.images, (split.images.mean((1, 2, 3)) / 100).astype(np.float32)

    def squared(outputs, batch):
        return (outputs - batch.labels[:, None])[:, 0] ** 2, {}

    options: Any = {
        "loss": squared,
        "strategy": ONE,
        "data": jc.dataset(targets(data.train), targets(data.test)),
        "config": jc.ExperimentConfig("arrays", "mlp", train=jc.TrainConfig(num_steps=2)),
        "folder": tmp_path / "run",
    }
    with pytest.raises(jc.ArgumentError, match=r"have no classes") as caught:
        run(**options)
    (line,) = re.findall(r"Write build=(.*), for one output", str(caught.value))
    assert not (tmp_path / "run").exists()
    first: Any
    first, again = [run(**options, build=eval(line, {"jaxcnn": jc})) for _ in range(2)]
    assert first["status"] == "finished"
    assert first == again


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_a_loss_of_ones_own_is_the_same_on_eight_devices(pairs, kind):
    config = dataclasses.replace(CONFIG, num_steps=3, eval_every=3)
    tx = optax.sgd(0.1)
    (alone, row), *_ = jc.train(TwoHeads(), tx, pairs, config, loss=two_heads, strategy=ONE)
    (shared, other), *_ = jc.train(
        TwoHeads(), tx, pairs, config, loss=two_heads, strategy=strategy(kind)
    )
    assert row is not None
    assert other is not None
    for name in ("train_loss", "eval_loss", "eval_distance", "train_error"):
        assert other[name] == pytest.approx(row[name], rel=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        alone.params,
        shared.params,
    )


@pytest.mark.slow
def test_a_data_set_on_disk_streams_every_label(pairs, tmp_path):
    file = np.memmap(tmp_path / "images", np.uint8, "w+", shape=pairs.train.images.shape)
    file[:] = pairs.train.images
    streamed = pairs._replace(train=pairs.train._replace(images=file))
    config = dataclasses.replace(CONFIG, num_steps=4, eval_every=4)
    ends = [
        list(jc.train(TwoHeads(), optax.sgd(0.1), data, config, loss=two_heads, strategy=ONE))[-1]
        for data in (pairs, streamed)
    ]
    jax.tree.map(np.testing.assert_array_equal, ends[0][0].params, ends[1][0].params)


def test_splits_of_trees_keep_images_and_labels_together(pairs):
    held = jc.hold_out(pairs, 100, seed=0)
    small = jc.subset(held, 50, seed=0)
    for split in (held.train, held.validation, small.train):
        means = (split.images.mean((1, 2, 3)) / 255).astype(np.float32)
        np.testing.assert_array_equal(split.labels["mean"], means)
    assert len(small.train.labels["class"]) == 50


def test_a_loss_without_errors_has_none_in_its_rows(tmp_path):
    data = jc.load_dataset("digits")
    config = dataclasses.replace(CONFIG, num_steps=4, eval_every=2)

    def hinge(outputs, batch):
        right = jnp.take_along_axis(outputs, batch.labels[:, None], 1)
        return jnp.maximum(0, 1 + outputs - right).sum(-1), {}

    model = jc.create_model("perceptron", 10)
    tx = optax.sgd(0.01)
    state, row = list(
        jc.train(model, tx, data, config, loss=hinge, run_dir=tmp_path / "run", strategy=ONE)
    )[-1]
    assert row is not None
    assert not [name for name in row if name.endswith("error")]
    with pytest.raises(jc.ArgumentError, match="counts no errors; expected"):
        _ = state.metrics.error_percent
    sums = jc.evaluate(model, state, data.test, loss=hinge, strategy=ONE)
    assert sums.mean_loss == pytest.approx(row["eval_loss"], rel=1e-6)
    warm = jc.create_optimizer(jc.OptimizerConfig("sgd", warmup_lr=0.01), 4)
    with pytest.raises(jc.ArgumentError, match="warmup_lr waits for the training error"):
        jc.train(model, warm, data, config, loss=hinge, strategy=ONE)
    large = jc.train(model, tx, data, config, loss=lambda o, b: (1e6 + o.sum(-1), {}), strategy=ONE)
    assert "diverged" not in (next(large)[1] or {})  # the scale of a user's loss is unknown


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        ([0, 1, 0], "argmax(1)"),
        ([1, 1, 0], "binary-cross-entropy"),
        ([0, 0, 0], "binary-cross-entropy"),
        ([2, 1, -1], "ctc"),
        ([1, -1, 1], "ctc"),
    ],
)
def test_a_row_of_integers_for_each_image_is_told_its_loss(row, fix):
    data = jc.load_dataset("digits")
    labels = np.tile(np.array(row, np.int32), (len(data.train.labels), 1))
    data = data._replace(train=data.train._replace(labels=labels))
    with pytest.raises(jc.DataError) as error:
        jc.train(jc.create_model("mlp", 10), optax.sgd(0.1), data, CONFIG, strategy=ONE)
    advice = {"argmax(1)", "binary-cross-entropy", "ctc"}
    assert {each for each in advice if each in str(error.value)} == {fix}


@pytest.mark.slow
def test_multi_label_training_learns_each_label():
    data = jc.load_dataset("digits")

    def two_labels(split):
        labels = np.stack([split.labels % 2, split.labels > 4], 1).astype(np.int32)
        return jc.Split(split.images, labels)

    data = data._replace(
        train=two_labels(data.train),
        validation=two_labels(data.validation),
        test=two_labels(data.test),
        classes=("odd", "large"),
    )
    model, tx = jc.create_model("mlp", 2), optax.sgd(0.1, momentum=0.9)
    config = dataclasses.replace(CONFIG, num_steps=150, eval_every=150)
    options: Any = {"loss": "binary-cross-entropy", "strategy": ONE}
    state, row = list(jc.train(model, tx, data, config, **options))[-1]
    wrong = (jc.predict(model, state, data.test.images) > 0) != data.test.labels
    assert row is not None
    assert row["eval_error"] == pytest.approx(100 * wrong.mean())
    assert row["eval_error"] < 10
    with pytest.raises(jc.ArgumentError, match=r"gives \(10,\) for an image, .*each label, \(2,\)"):
        jc.train(jc.create_model("mlp", 10), tx, data, config, **options)
    with pytest.raises(jc.DataError, match="loss='binary-cross-entropy' for several labels"):
        jc.train(model, tx, data, config, strategy=ONE)


@pytest.mark.slow
def test_class_weights_move_errors_to_the_class_that_counts_less():
    data = jc.load_dataset("digits")
    binary = data._replace(
        train=data.train._replace(labels=(data.train.labels == 8).astype(np.int32)),
        test=data.test._replace(labels=(data.test.labels == 8).astype(np.int32)),
        classes=("other", "eight"),
    )
    config = jc.ExperimentConfig(
        dataset="digits",
        loss="cross-entropy",
        optimizer=jc.OptimizerConfig("momentum", learning_rate=0.1),
        train=dataclasses.replace(CONFIG, num_steps=60, eval_every=60),
    )
    missed = []
    for weights in ((1.0, 1.0), (1.0, 30.0)):
        weighted = jc.override(config, loss_kwargs={"class_weights": list(weights)})
        model = jc.create_model("perceptron", 2)
        state, _ = list(train_config(model, weighted, binary, strategy=ONE))[-1]
        predicted = jc.predict(model, state, binary.test.images).argmax(-1)
        missed.append(int(((predicted == 0) & (binary.test.labels == 1)).sum()))
    assert missed[1] < missed[0]
    three = jc.override(config, loss_kwargs={"class_weights": [1, 2, 3]})
    with pytest.raises(jc.ArgumentError, match="class_weights has 3 numbers and the data 2"):
        train_config(jc.create_model("perceptron", 2), three, binary, strategy=ONE)


def test_masks_among_several_labels_are_not_augmented(pairs):
    masks = np.zeros(pairs.train.images.shape[:3], np.int32)
    train = jc.Split(pairs.train.images, {**pairs.train.labels, "mask": masks})
    empty = pairs.validation._replace(labels=pairs.validation.labels | {"mask": masks[:0]})
    test = pairs.test._replace(labels=pairs.test.labels | {"mask": masks[: len(pairs.test.images)]})
    augment = jc.AugmentConfig(padding=1)
    config = dataclasses.replace(CONFIG, augment=augment)
    options: Any = {"loss": two_heads, "strategy": ONE}
    with pytest.raises(jc.ArgumentError, match="labels are masks"):
        jc.train(
            TwoHeads(),
            optax.sgd(0.1),
            pairs._replace(train=train, validation=empty, test=test),
            config,
            **options,
        )
    ordered = dataclasses.replace(CONFIG, order="sorted")
    with pytest.raises(jc.ArgumentError, match="order is 'sorted', but the labels are not"):
        jc.train(TwoHeads(), optax.sgd(0.1), pairs, ordered, **options)


LABEL_MISTAKES = [
    ({}, "train labels have no array"),
    ({"class": [1, 2]}, r"train labels\['class'\] are of type list"),
    ({"class": np.zeros(3, np.float32)}, r"train labels\['class'\] have shape \(3,\); expected"),
    (
        {"mean": np.zeros(1437, np.float64)},
        r"labels\['mean'\] are float64; .*'mean'\].astype\(np.float32",
    ),
    ({"name": np.array(["a"] * 1437)}, r"labels\['name'\] are <U1"),
    ({"mean": np.full(1437, np.nan, np.float32)}, "NaN or inf, the first in entry 0"),
]


@pytest.mark.parametrize(("labels", "message"), LABEL_MISTAKES)
def test_labels_that_are_not_arrays_of_numbers_are_refused(pairs, labels, message):
    data = pairs._replace(train=pairs.train._replace(labels=labels))
    with pytest.raises(jc.DataError, match=message):
        jc.train(TwoHeads(), optax.sgd(0.1), data, CONFIG, loss=two_heads, strategy=ONE)


@pytest.mark.slow
def test_a_state_for_another_loss_is_refused_by_the_step(pairs):
    tx = optax.sgd(0.1)
    model = TwoHeads()
    state = jc.init_state(model, tx, CONFIG, pairs)
    step = jax.jit(jc.make_train_step(model, tx, loss=two_heads))
    with pytest.raises(jc.ArgumentError, match=r"sums up error, and the loss has .*init_state"):
        step(state, pairs.train, jnp.arange(8))
    state = jc.init_state(model, tx, CONFIG, pairs, loss=two_heads)
    sums = step(state, pairs.train, jnp.arange(8)).metrics
    assert int(sums.num_examples) == 8
    assert sorted(sums.sums) == ["distance", "error"]


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_the_finder_landscape_and_gradients_take_the_loss(pairs):
    model, tx = TwoHeads(), optax.sgd(0.1)
    config = dataclasses.replace(CONFIG, num_steps=20)
    result = jc.lr_finder(
        model, jc.OptimizerConfig("sgd"), pairs, config, loss=two_heads, num_steps=30, strategy=ONE
    )
    assert result.suggested is not None
    assert result.limit is not None
    assert result.suggested < result.limit
    state = jc.init_state(model, tx, config, pairs, loss=two_heads)
    direction = random_direction(jax.random.key(0), state.params)
    line = evaluate_along(
        model, state, pairs.test, [direction], [[0.0]], loss=two_heads, strategy=ONE
    )
    sums = jc.evaluate(model, state, pairs.test, loss=two_heads, strategy=ONE)
    assert line.loss[0] == sums.mean_loss
    assert line.error_percent[0] == sums.error_percent
    norms = gradient_norms(
        model, state, pairs.test.images, pairs.test.labels, train=False, loss=two_heads
    )
    inputs = pairs.test.images / np.float32(255) - pairs.mean
    gradient = jax.grad(loss_fn(model, two_heads))(
        state.params, {}, jnp.asarray(inputs), jax.tree.map(jnp.asarray, pairs.test.labels)
    )
    expected = np.linalg.norm(gradient["hidden"]["kernel"])
    assert norms["hidden"] == pytest.approx(float(expected), rel=1e-4)


# ---------------------------------------------------------------- what a sceptic found


def entropy_times(outputs, batch, factor=1.0):
    losses, metrics = CrossEntropy()(outputs, batch)
    return factor * losses, metrics


@dataclasses.dataclass(frozen=True)
class Focal:
    factor: float = 1.0

    def __call__(self, outputs, batch):
        return entropy_times(outputs, batch, self.factor)


class Scaled(CrossEntropy):
    """A loss of the user's own that extends the library's."""

    def __call__(self, outputs, batch):
        return entropy_times(outputs, batch, 100.0)


def closed(factor):
    def loss(outputs, batch):
        return entropy_times(outputs, batch, factor)

    return loss


OTHERS = {
    "arguments": [functools.partial(entropy_times, factor=f) for f in (1.0, 2.0)],
    "closures": [closed(1.0), closed(2.0)],
    "fields": [Focal(1.0), Focal(2.0)],
    "functions": [lambda o, b: (o.sum(-1), {}), lambda o, b: (o.mean(-1), {})],
    "subclass": ["cross-entropy", Scaled()],
    "library": [CrossEntropy(0.1), CrossEntropy(0.2)],
}


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_refuses_a_run_with_another_loss(name, tmp_path):
    data, model, tx = jc.load_dataset("digits"), jc.create_model("perceptron", 10), optax.sgd(0.1)
    config = dataclasses.replace(CONFIG, num_steps=2, eval_every=2)
    first, second = OTHERS[name]
    for _ in range(2):
        list(jc.train(model, tx, data, config, loss=first, run_dir=tmp_path, strategy=ONE))
    with pytest.raises(jc.ArgumentError, match="loss"):
        list(jc.train(model, tx, data, config, loss=second, run_dir=tmp_path, strategy=ONE))


def test_a_run_logged_by_hand_records_a_loss_of_ones_own(tmp_path):
    data, model, tx = jc.load_dataset("digits"), jc.create_model("perceptron", 10), optax.sgd(0.1)
    config = dataclasses.replace(CONFIG, num_steps=2, eval_every=2)
    experiment = jc.ExperimentConfig(dataset="digits", train=config)
    for loss in ("squared", "squared", Focal()):
        log = jc.RunLog(tmp_path, experiment)
        rows = [row for _, row in jc.train(model, tx, data, config, loss=loss, strategy=ONE)]
        if loss == "squared":
            log.write(**rows[0])  # type: ignore[arg-type]
            assert json.loads((tmp_path / "run.json").read_text())["loss"] == ["squared", {}]
        else:
            with pytest.raises(jc.ArgumentError, match=r"loss is squared there and .*Focal"):
                log.write(**rows[0])  # type: ignore[arg-type]


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_weights_do_not_make_a_healthy_run_diverge():
    data, model = jc.load_dataset("digits"), jc.create_model("perceptron", 10)
    weighted = CrossEntropy(class_weights=(20.0,) * 10)
    config = dataclasses.replace(CONFIG, num_steps=4, eval_every=2)
    for loss in (weighted, Scaled()):
        rows = [row for _, row in jc.train(model, optax.sgd(0.01), data, config, loss=loss)]
        assert all("diverged" not in (row or {}) for row in rows)
    found = [
        jc.lr_finder(model, jc.OptimizerConfig("sgd"), data, config, num_steps=30, loss=loss)
        for loss in ("cross-entropy", weighted)
    ]
    assert all(result.suggested is not None for result in found)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_are_float32_whatever_a_loss_computes_in(dtype):
    def narrow(outputs, batch):
        return jnp.full(len(outputs), 1.0078125, dtype), {}

    data, model, tx = jc.load_dataset("digits"), jc.create_model("perceptron", 10), optax.sgd(0.1)
    config = dataclasses.replace(CONFIG, num_steps=2, eval_every=2)
    state, row = list(jc.train(model, tx, data, config, loss=narrow, strategy=ONE))[-1]
    assert row is not None
    assert row["eval_loss"] == row["train_loss"] == 1.0078125
    assert state.metrics.loss.dtype == np.float32


def test_an_error_is_bool():
    def counted(outputs, batch):
        return outputs.sum(-1), {"error": (outputs.argmax(-1) != batch.labels).astype(jnp.int32)}

    data, model = jc.load_dataset("digits"), jc.create_model("perceptron", 10)
    with pytest.raises(jc.ArgumentError, match="metric 'error' is of int32; expected bool"):
        jc.train(model, optax.sgd(0.1), data, CONFIG, loss=counted, strategy=ONE)


def relabeled(data, function):
    splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
    return data._replace(
        **{name: split._replace(labels=function(split.labels)) for name, split in splits.items()}
    )


def test_the_labels_of_all_splits_are_of_one_kind(pairs):
    for labels, message in (
        ({"class": pairs.test.labels["class"]}, r"test labels\['mean'\] are missing, .*float32"),
        (
            {**pairs.test.labels, "mean": pairs.test.labels["mean"] > 0},
            r"\['mean'\] are bool .*float32",
        ),
    ):
        data = pairs._replace(test=pairs.test._replace(labels=labels))
        with pytest.raises(jc.DataError, match=message):
            jc.train(TwoHeads(), optax.sgd(0.1), data, CONFIG, loss=two_heads, strategy=ONE)


NO_CLASSES = [
    lambda labels: labels > 4,
    lambda labels: labels.astype(np.uint8),
    lambda labels: np.zeros_like(labels),
    lambda labels: labels * 100 - 50,
]


@pytest.mark.parametrize("labels", NO_CLASSES)
def test_a_folder_takes_the_labels_that_a_loss_of_ones_own_takes(labels, tmp_path):
    def regression(outputs, batch):
        return jnp.square(outputs[:, 0] - batch.labels.astype(jnp.float32)), {}

    data = relabeled(jc.load_dataset("digits"), labels)._replace(classes=())
    config = dataclasses.replace(CONFIG, num_steps=2, eval_every=2)
    model, tx = jc.create_model("perceptron", 10), optax.sgd(1e-6)
    options: Any = {"loss": regression, "strategy": ONE, "run_dir": tmp_path}
    state, _ = list(jc.train(model, tx, data, config, **options))[-1]
    assert int(state.step) == 2


def test_a_run_with_own_metrics_is_loaded_with_its_loss(pairs, tmp_path):
    data = relabeled(pairs, lambda labels: labels["class"])

    def loss(outputs, batch):
        return outputs.sum(-1), {"size": jnp.abs(outputs).sum(-1)}

    model, tx = jc.create_model("mlp", 10), jc.create_optimizer(jc.OptimizerConfig("sgd"))
    config = dataclasses.replace(CONFIG, num_steps=2, eval_every=2)
    list(jc.train(model, tx, data, config, loss=loss, run_dir=tmp_path, strategy=ONE))
    with pytest.raises(jc.ArgumentError, match=r"a loss of your own.*load_trained_model\(folder"):
        load_trained_model(tmp_path)
    assert sorted(load_trained_model(tmp_path, loss=loss).states) == [0, 2]


def test_a_state_of_another_loss_starts_warm_or_is_refused_by_the_call(pairs):
    data = relabeled(pairs, lambda labels: labels["class"])
    model, tx = jc.create_model("perceptron", 10), optax.sgd(0.1)
    config = dataclasses.replace(CONFIG, num_steps=2, eval_every=2)
    old, _ = list(jc.train(model, tx, data, config, strategy=ONE))[-1]
    more = dataclasses.replace(config, num_steps=4)
    options: Any = {"loss": lambda o, b: (o.sum(-1), {}), "resume": lambda _: old, "strategy": ONE}
    with pytest.raises(jc.ArgumentError, match="sums up error, and the loss has no metrics"):
        jc.train(model, tx, data, more, **options)
    state, row = list(jc.train(model, tx, data, more, warm_start=True, **options))[-1]
    assert int(state.step) == 4
    assert "eval_error" not in (row or {})


class WithAux(nn.Module):
    """Sows a tree like its outputs."""

    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(len(images), -1)
        outputs = {"class": nn.Dense(10)(x), "mean": nn.Dense(1)(x)[:, 0]}
        if train:
            self.sow("aux", "early", outputs)
        return outputs


@pytest.mark.slow
def test_an_auxiliary_head_is_given_to_the_loss_as_a_whole(pairs):
    config = dataclasses.replace(CONFIG, num_steps=2, eval_every=2)
    _, row = list(jc.train(WithAux(), optax.sgd(0.1), pairs, config, loss=two_heads, strategy=ONE))[
        -1
    ]
    assert row is not None
    assert np.isfinite(row["train_loss"])


def test_a_sweep_checks_the_loss_of_every_config_first(tmp_path):
    data = jc.load_dataset("digits")
    config = jc.ExperimentConfig(
        dataset="digits",
        model="perceptron",
        train=dataclasses.replace(CONFIG, num_steps=2, eval_every=2),
    )
    wrong = jc.override(config, loss_kwargs={"class_weights": [1.0, 2.0]})
    for other, message in (
        (wrong, "class_weights has 2 numbers and the data 10 classes"),
        (jc.override(config, loss="sqared"), "did you mean 'squared'"),
        (jc.override(config, loss_kwargs={"smooth": 1}), "field of loss"),
    ):
        with pytest.raises(jc.ArgumentError, match=message):
            sweep({"a": config, "b": other}, data, tmp_path)
        assert not list(tmp_path.iterdir())
    multi = relabeled(data, lambda labels: np.eye(10, dtype=np.int32)[labels])
    binary = jc.override(config, loss="binary-cross-entropy")
    results = sweep({"a": binary}, multi, tmp_path, strategy=ONE)
    assert results is not None
    assert results["a"]["status"] == "finished"


SCEPTIC = [
    ({"loss": lambda o: o}, "does not take two arguments"),
    (
        {"loss": optax.l2_loss},
        r"loss is optax.l2_loss.*optax.l2_loss\(outputs, batch.labels\), {}\)",
    ),
    ({"loss": lambda o, b: (o[:, :0], {})}, "no loss for an image"),
    ({"loss": lambda o, b: (o.sum(-1), {"split": o.sum(-1)})}, "a metric is called 'split'"),
]


@pytest.mark.parametrize(("options", "message"), SCEPTIC)
def test_more_mistakes_are_one_line(options, message):
    data, model = jc.load_dataset("digits"), jc.create_model("perceptron", 10)
    with pytest.raises(jc.ArgumentError, match=message) as error:
        jc.train(model, optax.sgd(0.1), data, CONFIG, strategy=ONE, **options)
    assert "\n" not in str(error.value)


MORE_LABELS = [
    (None, "train labels are None; .*np.zeros"),
    ({"a": np.ma.masked_array(np.zeros(1437, np.float32), True)}, "masked array"),
    ({"a": np.zeros(1437, ">f4")}, "are >f4; expected bool, integers or floats"),
    (types.MappingProxyType({"a": np.zeros(1437, np.float32)}), "of type mappingproxy"),
]


@pytest.mark.parametrize(("labels", "message"), MORE_LABELS)
def test_more_labels_are_refused_in_one_line(pairs, labels, message):
    data = pairs._replace(train=pairs.train._replace(labels=labels))
    with pytest.raises(jc.DataError, match=message):
        jc.train(TwoHeads(), optax.sgd(0.1), data, CONFIG, loss=two_heads, strategy=ONE)


def test_binary_cross_entropy_of_a_tree_is_one_line(pairs):
    model, tx = jc.create_model("perceptron", 10), optax.sgd(0.1)
    with pytest.raises(jc.ArgumentError, match="'binary-cross-entropy' needs a logit for each"):
        jc.train(model, tx, pairs, CONFIG, loss="binary-cross-entropy", strategy=ONE)


def test_smoothing_and_weights_may_be_numpys():
    loss = CrossEntropy(np.float32(0.5), (np.float32(1), np.int64(2)))  # type: ignore[arg-type]
    assert loss == CrossEntropy(0.5, (1.0, 2.0))
    with pytest.raises(jc.ArgumentError, match="class_weights are all 0"):
        CrossEntropy(class_weights=(0.0, 0.0))


@dataclasses.dataclass(frozen=True)
class LogError:
    """A user's loss of positive numbers, which checks all labels by their values."""

    def __call__(self, outputs, batch):
        return jnp.square(outputs[:, 0] - jnp.log(batch.labels["size"])), {}

    def check_labels(self, labels, outputs, name):
        assert outputs.shape[1:] == (10,)
        if (labels["size"] <= 0).any():
            raise jc.ArgumentError(f"{name} sizes are not positive")


def test_a_users_loss_checks_the_values_of_all_labels_once():
    digits = jc.load_dataset("digits")
    sizes = np.ones(len(digits.train.images), np.float32)
    train = jc.Split(digits.train.images, {"size": sizes})
    bad = jc.Split(digits.train.images, {"size": sizes - 1})
    model, tx = jc.create_model("perceptron", 10), optax.sgd(0.1)
    config = dataclasses.replace(CONFIG, num_steps=1, eval_every=1)
    for splits, name in (((bad, train), "train"), ((train, bad), "test")):
        with pytest.raises(jc.ArgumentError, match=f"^{name} sizes are not positive"):
            jc.train(model, tx, jc.dataset(*splits), config, loss=LogError(), strategy=ONE)
    data = jc.dataset(train, train)
    *_, (state, _) = jc.train(model, tx, data, config, loss=LogError(), strategy=ONE)
    with pytest.raises(jc.ArgumentError, match="sizes are not positive"):
        jc.evaluate(model, state, bad, loss=LogError())


def focal(outputs, batch):
    chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), batch.labels[..., None], -1)[..., 0]
    return -jnp.square(1 - jnp.exp(chosen)) * chosen, {}


def parity(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch.labels % 2), {}


@pytest.mark.quick_compilation
def test_an_own_loss_that_is_not_finite_for_a_class_is_refused_before_training():
    data, tx = jc.load_dataset("digits"), optax.sgd(0.1)
    small, config = jc.create_model("perceptron", 7), jc.TrainConfig(num_steps=1, batch_size=8)
    message = "gives 7 outputs.*class 9 of the train labels.*at least 10 outputs"
    with pytest.raises(jc.ArgumentError, match=message):
        next(jc.train(small, tx, data, config, loss=focal, strategy=ONE))
    state = jc.init_state(small, tx, config, data, loss=focal)
    with pytest.raises(jc.ArgumentError, match="class 9 of the split labels"):
        jc.evaluate(small, state, data.test, loss=focal, strategy=ONE)
    # All of these are right: enough outputs, labels mapped to fewer, and classes without images.
    few = data._replace(
        train=data.train.take(data.train.labels < 7), test=data.test.take(data.test.labels < 7)
    )
    for num_outputs, loss, part in ((10, focal, data), (2, parity, data), (7, focal, few)):
        model = jc.create_model("perceptron", num_outputs)
        for _, row in jc.train(model, tx, part, config, loss=loss, strategy=ONE):
            assert row is not None
            assert np.isfinite(row["train_loss"])


def test_the_classes_of_masks_are_checked_for_an_own_loss_too():
    masks = np.full((2, 4, 4), 3, np.int32)
    split = jc.Split(np.zeros((2, 4, 4, 1), np.uint8), masks)
    enough, few = (jax.ShapeDtypeStruct((2, 4, 4, n), np.float32) for n in (4, 3))
    check_class_numbers(focal, split, enough)
    with pytest.raises(jc.ArgumentError, match="class 3 of the split labels"):
        check_class_numbers(focal, split, few)


def test_binary_labels_of_any_axes_are_in_0_to_1():
    check = BinaryCrossEntropy().check_labels
    labels = np.zeros((4, 3, 2), np.float32)
    for good in (labels, labels + 0.5, labels.astype(bool), labels[..., 0]):
        check(good, None, "train")
    for bad in (-1, 255, np.nan):
        labels[2, 1, 0] = bad
        for part in (labels, labels[..., 0], labels[:, 1]):
            with pytest.raises(jc.ArgumentError, match=rf"^train labels\[2\] have {bad}"):
                check(part, None, "train")
