"""Data streamed from disk give the bits that data in memory give; masks and reconstructions are counted value by value."""

import ctypes
import math
import mmap
import os
import re
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import train_config

import jaxcnn as jc
from jaxcnn import metrics, parallel
from jaxcnn.data.types import assemble
from jaxcnn.input_pipeline import input_pipeline, prefetch, read_ahead
from jaxcnn.losses import Batch, Reconstruction
from jaxcnn.runs import model_and_optimizer, run
from jaxcnn.state import init_state
from jaxcnn.training import epoch_order
from jaxcnn.training_checks import _check_count

CONFIG = jc.override(
    jc.ExperimentConfig(),
    dataset="digits",
    model="convnet",
    model_kwargs={"batch_norm": True},
    batch_size=32,
    num_steps=20,
    eval_every=12,
    recompute_batch_stats=64,
    padding=1,
    flip=True,
)
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def data():
    return jc.subset(jc.load_dataset("digits"), 100, seed=0)


@pytest.fixture(scope="module")
def streamed(data, tmp_path_factory):
    def on_disk(split, path):
        np.save(path, split.images)
        return split._replace(images=np.load(path, mmap_mode="r"))

    folder = tmp_path_factory.mktemp("data")
    return data._replace(
        train=on_disk(data.train, folder / "train.npy"),
        test=on_disk(data.test, folder / "test.npy"),
    )


def fitted(data, strategy, config=CONFIG):
    config = jc.override(config, max_train_examples=len(data.train.labels))
    pairs = list(jc.train(*model_and_optimizer(config, 10), data, config.train, strategy=strategy))
    return pairs[-1][0], [
        {k: v for k, v in row.items() if k not in TIMES} for _, row in pairs if row
    ]


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "devices"), [("jit", 1), ("pmap", 2)])
def test_a_streamed_run_has_the_bits_of_one_in_memory(data, streamed, kind, devices):
    strategy = jc.strategy(kind, devices)
    assert input_pipeline(streamed.train, strategy).split is None
    (state, rows), (there, told) = fitted(data, strategy), fitted(streamed, strategy)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(there), strict=True)
    )
    assert rows == told
    assert "precise_eval_error" in rows[-1]


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_streamed_data_are_evaluated_and_predicted_like_others(data, streamed):
    model, tx = model_and_optimizer(CONFIG, 10)
    state = init_state(model, tx, CONFIG.train, data)
    np.testing.assert_array_equal(
        jc.predict(model, state, streamed.test.images[:70]),
        jc.predict(model, state, data.test.images[:70]),
    )
    assert jc.evaluate(model, state, streamed.test, batch_size=64) == jc.evaluate(
        model, state, data.test, batch_size=64
    )


def test_a_scan_is_given_no_more_than_it_can_hold(monkeypatch):
    monkeypatch.setattr(parallel.Strategy, "scans", True)
    strategy, order = parallel.Strategy("jit", jax.devices()[:1]), np.zeros((1000, 4), np.int32)
    assert [len(piece) for piece in strategy.chunks(order)] == [500, 500]
    size = parallel.MAX_CHUNK_BYTES // 4 // 300  # bytes of an example, so that 300 steps of 4 fit
    assert max(len(piece) for piece in strategy.chunks(order, size)) == 250
    assert {len(piece) for piece in strategy.chunks(order[:5], parallel.MAX_CHUNK_BYTES)} == {1}


def test_reading_ahead_stays_one_piece_ahead_and_passes_errors_on():
    made = []
    pieces = prefetch(lambda x: made.append(x) or 1 / x, [1, 2, 4, 0, 5])
    assert next(pieces) == 1
    assert len(made) <= 2  # the one in use and the next, which a thread may have begun
    assert [next(pieces), next(pieces)] == [0.5, 0.25]
    with pytest.raises(ZeroDivisionError):
        next(pieces)
    assert made[:4] == [1, 2, 4, 0]


class Dense(nn.Module):
    """One 3x3 convolution to `classes` channels: the least network whose output is an image."""

    num_classes: int = 3
    channels: int | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Conv(self.channels or self.num_classes, (3, 3), name="conv")(x)


def masks(n=40):
    """Images of noise around squares of two brightnesses, and what each pixel belongs to."""
    rng = np.random.default_rng(0)
    labels = np.zeros((n, 8, 8), np.int32)
    for mask, (y, x) in zip(labels, rng.integers(0, 5, (n, 2)), strict=True):
        mask[y : y + 3, x : x + 3] = rng.integers(1, 3)
    images = np.clip(labels * 100 + rng.normal(30, 5, labels.shape), 0, 255).astype(np.uint8)[
        ..., None
    ]
    return jc.Split(images, labels)


def dense_data():
    split = masks()
    part = jc.Split(*(array[:30] for array in split)), jc.Split(*(array[30:] for array in split))
    return assemble("squares", *part, (8, 8, 1), ("ground", "grey", "white"))


DENSE = jc.override(
    jc.ExperimentConfig(),
    dataset="squares",
    model="own",
    batch_size=10,
    num_steps=120,
    eval_every=60,
    padding=0,
    flip=False,
    learning_rate=0.1,
    divide_std=True,
)


def is_cached(images, row):
    """Check that an image of a mapped file is in memory.

    `mincore` does not read anything. A read that may not wait would start to read ahead.
    """
    address = images.ctypes.data + row * images.strides[0]
    start = address - address % mmap.PAGESIZE
    size = address + images[:1].nbytes - start
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), pages)
    assert not failed
    return all(page & 1 for page in pages)


@pytest.mark.skipif(
    not hasattr(mmap.mmap, "madvise") or not hasattr(os, "posix_fadvise"),
    reason="needs madvise, and a way to drop a file from memory",
)
@pytest.mark.parametrize("view", ["whole", "part", "every third"])
def test_reading_ahead_brings_the_images_of_an_index_and_no_others(tmp_path, view):
    n, header = 120, 1000
    path = tmp_path / "images"
    images = np.memmap(path, np.uint8, "w+", header, (n, 100, 100, 1))
    images[:] = 1
    images.flush()
    del images
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    images = np.memmap(path, np.uint8, "r", header, (n, 100, 100, 1))
    part = {"whole": images, "part": images[20:], "every third": images[::3]}[view]
    rows = {"whole": [50, 90], "part": [30, 70], "every third": [17, 30]}[view]
    wanted = {"whole": (50, 90), "part": (50, 90), "every third": (51, 90)}[view]
    # Linux may keep pages that were written a moment ago.
    kept = {row for row in range(n) if is_cached(images, row)}
    if kept & set(wanted) or len(kept) > n / 2:
        pytest.skip("the file system keeps the file in memory")
    read_ahead(part, np.array(rows))
    deadline = time.monotonic() + 10
    while not all(is_cached(images, row) for row in wanted):
        assert time.monotonic() < deadline, "the images were not read"
        time.sleep(0.01)
    others = {row for row in range(n) if all(abs(row - other) > 1 for other in wanted)}
    assert not [row for row in others - kept if is_cached(images, row)]


def test_reading_ahead_leaves_what_is_no_array_of_whole_images_on_disk_alone(tmp_path):
    images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(10, 8, 8, 3))
    index = np.array([3, 7])
    for array in (np.array(images), images[:, ::2], images[::-1], images[:0], images[..., :1]):
        read_ahead(array, index if len(array) else index[:0])


@pytest.mark.quick_compilation
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_masks_are_learnt_and_counted_by_the_pixel(kind):
    data, strategy = dense_data(), jc.strategy(kind, 2)
    model, tx = Dense(), jc.create_optimizer(DENSE.optimizer, DENSE.train.num_steps)
    pairs = list(jc.train(model, tx, data, DENSE.train, strategy=strategy))
    state, row = pairs[-1]
    logits = jc.predict(model, state, data.test.images)
    assert logits.shape == (10, 8, 8, 3)
    wrong = (logits.argmax(-1) != data.test.labels).mean()
    assert row is not None
    assert row["eval_error"] == pytest.approx(100 * wrong)
    shifted = logits - logits.max(-1, keepdims=True)
    right = np.take_along_axis(shifted, data.test.labels[..., None], -1)[..., 0]
    assert row["eval_loss"] == pytest.approx(
        (np.log(np.exp(shifted).sum(-1)) - right).mean(), rel=1e-5
    )
    assert row["eval_error"] < 5 < 100 * (data.test.labels != 0).mean()


@pytest.mark.slow
def test_a_reconstruction_is_judged_against_the_normalised_image():
    config = jc.override(
        DENSE, loss="reconstruction", num_steps=40, eval_every=40, learning_rate=0.02, flip=True
    )
    data, model = dense_data(), Dense(channels=1)
    state, row = list(
        train_config(
            model,
            config,
            data,
            strategy=jc.strategy("jit", 1),
        )
    )[-1]
    assert row is not None
    inputs = (data.test.images / 255 - data.mean) / data.std
    outputs = jc.predict(model, state, data.test.images)
    assert row["eval_loss"] == pytest.approx(((outputs - inputs) ** 2).mean(), rel=1e-5)
    assert row["eval_error"] == pytest.approx(100 * ((outputs > 0) != (inputs > 0)).mean())
    assert row["eval_loss"] < 0.5 * (inputs**2).mean()


@pytest.mark.parametrize(
    ("changes", "channels", "said"),
    [
        ({"padding": 4}, None, "labels are masks.*write padding=0 and flip=False"),
        ({"flip": True}, None, "labels are masks.*write padding=0 and flip=False"),
        (
            {"loss": "reconstruction"},
            2,
            r"the model gives \(8, 8, 2\) for an image.*compares with \(8, 8, 1\)",
        ),
        ({"eval_every": 2**31 // 640 + 1}, None, "expected less than 2\\^31 .* Write eval_every="),
    ],
)
def test_what_does_not_fit_masks_is_refused(changes, channels, said):
    config = jc.override(DENSE, **changes)
    with pytest.raises(jc.ArgumentError, match=said):
        train_config(
            Dense(channels=channels),
            config,
            dense_data(),
            strategy=jc.strategy("jit", 1),
        )


@settings(max_examples=200)
@given(
    per_image=st.sampled_from([1, 10, 224 * 224 * 3, 512 * 512, 2**29]),
    sizes=st.tuples(*[st.sampled_from([4, 1_000, 50_000, 3_000_000])] * 2),
    batch_size=st.sampled_from([1, 4, 128]),
    eval_every=st.sampled_from([None, 1, 1_000, 64_000]),
    train_metrics=st.sampled_from(["running", "clean"]),
)
def test_a_row_of_too_many_answers_is_refused_until_the_advice_is_followed(
    per_image, sizes, batch_size, eval_every, train_metrics
):
    """Each sum of a row is below 2^31, and no message leads to a message about the same thing."""
    images = [np.broadcast_to(np.uint8(0), (n, 1, 1, 1)) for n in sizes]
    train, test = (jc.Split(array, array[:, 0, 0, 0]) for array in images)
    data = jc.load_dataset("digits")._replace(train=train, test=test)
    config = jc.TrainConfig(
        batch_size=batch_size, eval_every=eval_every, train_metrics=train_metrics
    )
    said = []
    while True:
        try:
            _check_count(config, data, (1, per_image))
        except jc.ArgumentError as error:
            (advice,) = re.findall(r"Write (.*?)(?:, or smaller images)?\.$", str(error))
        else:
            break
        assert advice not in said
        said.append(advice)
        if advice.startswith("data = "):
            data = eval(advice.removeprefix("data = "), {"data": data})
        else:
            name, value = advice.split("=")
            config = jc.override(config, **{name: eval(value)})
    batches = config.eval_every or math.ceil(len(data.train.images) / config.batch_size)
    counts = [batches * config.batch_size, len(data.test.images)]
    counts += [len(data.train.images)] * (config.train_metrics == "clean")
    assert per_image * max(counts) < 2**31
    # What fits from the start is not refused.
    before = [eval_every * batch_size if eval_every else sizes[0] + batch_size, sizes[1]]
    before += [sizes[0]] * (train_metrics == "clean")
    assert not said or per_image * max(before) >= 2**31


@pytest.mark.quick_compilation
@pytest.mark.parametrize(
    ("classes", "divide_std"), [((), False), (("good",), True), ((), (1 / 255,))]
)
def test_images_without_classes_are_reconstructed(data, classes, divide_std, tmp_path):
    """Targets of 0, as the message about labels of None has them. No first loss is a divergence, of images in 0..255 either."""
    parts = [(split.images[:32], np.zeros(32, np.float32)) for split in (data.train, data.test)]
    unlabeled = jc.dataset(parts[0], parts[1])._replace(classes=classes)
    train = jc.TrainConfig(num_steps=4, batch_size=8, eval_every=2, divide_std=divide_std)
    config = jc.ExperimentConfig(
        unlabeled.name, "autoencoder", loss="reconstruction", train=train,
        optimizer=jc.OptimizerConfig("adam", 0.01, milestones=()),
    )  # fmt: skip
    result = run(
        config,
        unlabeled,
        tmp_path,
        strategy=jc.strategy("jit", 1),
        build=lambda config, data: model_and_optimizer(config, 1),
    )
    assert result is not None
    assert result["status"] == "finished"

    def relabeled(split):
        return split._replace(labels=np.arange(32, dtype=np.int32))

    # A random subset, as there is nothing to balance; integers are no classes without names either.
    counts = unlabeled._replace(
        train=relabeled(unlabeled.train), test=relabeled(unlabeled.test), classes=()
    )
    assert len(jc.subset(counts, 10, seed=0).train.images) == 10


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "loss", "message"),
    [
        (
            "mlp",
            "masks",
            "cross-entropy",
            r"\(3,\) for an image, and its label needs .*build 'unet'",
        ),
        ("mlp", "labels", "reconstruction", r"\(10,\) for an image, .*build an autoencoder"),
        (
            "unet",
            "labels",
            "cross-entropy",
            r"its label needs logits of \(num_classes\): build a classifier",
        ),
        (
            "autoencoder",
            "labels",
            "squared",
            r"its label needs logits of \(num_classes\): build a classifier",
        ),
    ],
)
def test_a_network_of_the_library_for_other_targets_is_refused_when_train_is_called(
    name, data, loss, message
):
    """The call itself, not the first step: these networks are not traced where their kind fits."""
    data = dense_data() if data == "masks" else jc.load_dataset("digits")
    # 8x8 images can be halved three times, not the four of the default.
    model_kwargs = {"depth": 3} if name == "unet" else {}
    model = jc.create_model(name, data.num_classes, **model_kwargs)
    with pytest.raises(jc.ArgumentError, match=message):
        jc.train(
            model,
            jc.create_optimizer(DENSE.optimizer),
            data,
            DENSE.train,
            loss=loss,
            strategy=jc.strategy("jit", 1),
        )


@pytest.mark.slow
def test_a_classifier_is_refused_masks_and_an_image_network_labels():
    with pytest.raises(
        jc.ArgumentError,
        match=r"the model gives \(3,\) for an image, and its label needs logits of \(8, 8, num_classes\): build 'unet'",
    ):
        train_config(
            jc.create_model("mlp", 3),
            DENSE,
            dense_data(),
            strategy=jc.strategy("jit", 1),
        )
    data, config = jc.load_dataset("digits"), jc.override(DENSE, dataset="digits")
    with pytest.raises(
        jc.ArgumentError, match=r"its label needs logits of \(num_classes\): build a classifier"
    ):
        train_config(
            Dense(10),
            config,
            data,
            strategy=jc.strategy("jit", 1),
        )


class WithAux(nn.Module):
    """A linear classifier that sows a second one's logits in training."""

    num_classes: int = 10
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        if train or self.is_initializing():
            logits = nn.Dense(self.num_classes, name="aux1")(x)
            if not self.is_initializing():
                self.sow("aux", "aux1_logits", logits)
        return nn.Dense(self.num_classes, name="head")(x)


@pytest.mark.slow
def test_an_auxiliary_head_adds_its_loss_with_the_papers_weight(data):
    config = jc.override(
        CONFIG,
        optimizer="sgd",
        weight_decay=0.0,
        learning_rate=1.0,
        padding=0,
        flip=False,
        num_steps=1,
        eval_every=1,
        recompute_batch_stats=0,
        max_train_examples=100,
    )
    model = WithAux()
    tx = jc.create_optimizer(config.optimizer, config.train.num_steps)
    begin = init_state(model, tx, config.train, data)
    assert set(begin.params) == {"aux1", "head"}
    assert begin.model_state == {}
    state, row = next(jc.train(model, tx, data, config.train, strategy=jc.strategy("jit", 1)))
    index = epoch_order(jnp.asarray(begin.rng), 0, 1, 32, 100)[0]
    x = (data.train.images[index] / 255 - data.mean).reshape(32, -1)
    for name, weight in (("head", 1.0), ("aux1", 0.3)):
        before, after = begin.params[name], state.params[name]
        logits = x @ before["kernel"] + before["bias"]
        share = (
            np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            - np.eye(10)[data.train.labels[index]]
        )
        np.testing.assert_allclose(
            after["kernel"], before["kernel"] - weight * x.T @ share / 32, rtol=0, atol=1e-5
        )
        if name == "head":  # the loss in the row is the head's own
            own = -np.log(
                (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[
                    np.arange(32), data.train.labels[index]
                ]
            )
            assert row is not None
            assert row["train_loss"] == pytest.approx(own.mean(), rel=1e-5)


def test_the_sign_that_counts_is_the_normalised_values():
    outputs = jnp.array([[[[0.5], [-0.5], [math.nan], [-1.0]]]])
    images = jnp.array([[[[0.1], [0.1], [0.1], [-3.0]]]])
    judged = Reconstruction()(outputs, Batch(images, None))
    sums = metrics.count(*judged, jnp.array([True]))
    assert (int(sums.num_examples), int(sums.num_wrong)) == (4, 2)
