"""Counting: every example exactly once, whatever n, the batch, the devices and the strategy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn.augment import normalize
from jaxcnn.parallel import padded_batches
from jaxcnn.state import init_state

BATCH = 32


@pytest.fixture(scope="module")
def run():
    """A model, a state of random weights, and images of random labels: about nine tenths are wrong."""
    data = jc.load_dataset("digits")
    model = jc.create_model("resnet8", 10, width=4)
    return (
        model,
        init_state(model, jc.create_optimizer(jc.OptimizerConfig()), jc.TrainConfig(), data),
        data,
    )


@pytest.fixture(scope="module")
def logits(run):
    """Logits of the training images by the model itself, in one batch."""
    model, state, data = run
    inputs = normalize(jnp.asarray(data.train.images[:100]), state.normalizer)
    return np.asarray(
        model.apply({"params": state.params, **state.model_state}, inputs, train=False)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "n", [1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH - 1, 3 * BATCH, 3 * BATCH + 1]
)
@pytest.mark.parametrize(("kind", "devices"), [("jit", 1), ("jit", 8), ("pmap", 8)])
def test_every_example_counts_once(run, logits, n, kind, devices):
    model, state, data = run
    split = jc.Split(data.train.images[:n], data.train.labels[:n])
    sums = jc.evaluate(model, state, split, batch_size=BATCH, strategy=jc.strategy(kind, devices))
    wrong = (logits[:n].argmax(1) != split.labels).sum()
    assert (int(sums.num_examples), int(sums.num_wrong)) == (n, wrong)
    shifted = logits[:n] - logits[:n].max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(n), split.labels]
    assert sums.mean_loss == pytest.approx(losses.mean(), rel=1e-5)


def test_a_split_of_one_wrong_example_is_all_wrong(run, logits):
    model, state, data = run
    split = jc.Split(data.train.images[:1], np.array([logits[0].argmin()], np.int32))
    assert jc.evaluate(model, state, split).error_percent == 100


@pytest.mark.parametrize("batch", [7, 100, 1000])
def test_predict_gives_the_logits_in_order(run, logits, batch):
    model, state, data = run
    mine = jc.predict(model, state, data.train.images[:100], batch_size=batch)
    np.testing.assert_allclose(mine, logits, atol=2e-6)


def test_filled_names_each_index_once():
    for n in range(1, 40):
        for batch in (1, 4, 7, 50):
            for devices in (1, 2, 8):
                rows = padded_batches(n, batch, devices)
                assert sorted(rows[rows >= 0]) == list(range(n))
                assert rows.shape[1] % devices == 0
                assert (rows.ravel()[:n] >= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "devices"), [("jit", 1), ("jit", 4), ("pmap", 4)])
def test_precise_statistics_are_those_of_all_images_at_once(run, kind, devices):
    """In the first layer, where nothing is normalised before, four batches average to the moments of the whole."""
    model, state, data = run
    exact = jc.recompute_batch_stats(
        model, state, data.train, 256, batch_size=64, strategy=jc.strategy(kind, devices)
    )
    inputs = normalize(jnp.asarray(data.train.images[:256]), state.normalizer)
    kernel = jnp.asarray(state.params["stem"]["kernel"])
    maps = jax.lax.conv_general_dilated(
        inputs, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    stats = exact.model_state["batch_stats"]["stem_norm"]
    np.testing.assert_allclose(stats["mean"], maps.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(stats["var"], maps.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "message"),
    [
        (10, "^n is 10; expected 64 .one batch. to 1437 images. Write n=1437.$"),
        (5000, "^n is 5000; expected 64 .one batch. to 1437 images. Write n=1437.$"),
    ],
)
def test_precise_refuses_what_it_cannot_average(run, n, message):
    model, state, data = run
    with pytest.raises(jc.ArgumentError, match=message):
        jc.recompute_batch_stats(model, state, data.train, n, batch_size=64)
    jc.recompute_batch_stats(model, state, data.train, 1437, batch_size=64)


def test_precise_refuses_a_batch_above_the_split_and_its_advice_works(run):
    model, state, data = run
    few = jc.Split(data.train.images[:43], data.train.labels[:43])
    strategy = jc.strategy("jit", 4)
    message = "^batch_size is 128; expected at most the split's 43 images. Write batch_size=40.$"
    with pytest.raises(jc.ArgumentError, match=message):
        jc.recompute_batch_stats(model, state, few, 43, strategy=strategy)
    jc.recompute_batch_stats(model, state, few, 43, batch_size=40, strategy=strategy)


def test_precise_refuses_a_model_without_bn(run):
    _, state, data = run
    with pytest.raises(jc.ArgumentError, match="LeNet5 has no BN to average"):
        jc.recompute_batch_stats(
            jc.create_model("lenet5", 10),
            state._replace(model_state={}),
            data.train,
            64,
            batch_size=64,
        )


def test_bad_images_are_refused_in_one_line(run):
    model, state, data = run
    for images in (data.train.images[:2] / 255, data.train.images[0]):
        with pytest.raises(jc.DataError, match=r"expected uint8 \[n, h, w, c\]") as error:
            jc.predict(model, state, images)
        assert "\n" not in str(error.value)
    with pytest.raises(jc.ArgumentError, match="empty"):
        jc.evaluate(model, state, data.validation)
