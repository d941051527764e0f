"""The step against plain NumPy, the order of examples, and runs that are stopped and go on."""

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import jaxcnn as jc
from jaxcnn import parallel
from jaxcnn.runs import model_and_optimizer
from jaxcnn.state import AUGMENT, DROPOUT, INIT, ORDER, fold_in, init_state
from jaxcnn.training import epoch_order, make_train_step

RECIPE = jc.Recipe(
    dataset="digits",
    model="resnet8",
    options={"width": 4},
    batch=64,
    steps=25,
    every=10,
    drops=(12, 20),
    seed=3,
    pad=1,
    flip=True,
)
KEYS = [
    "step",
    "rate",
    "train_loss",
    "train_error",
    "eval_loss",
    "eval_error",
    "eval_split",
    "grad_norm",
    "loss_std",
    "seconds",
    "images_per_second",
]
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def data():
    return jc.load_dataset("digits")


@pytest.fixture(scope="module")
def strategy():
    return jc.strategy("jit", devices=1)


def trained(recipe, data, strategy, **more) -> Any:
    model, tx = model_and_optimizer(
        recipe, 10
    )  # the same objects for every seed, so that they are compiled once
    return list(jc.train(model, tx, data, recipe, strategy=strategy, **more))


@pytest.fixture(scope="module")
def whole(data, strategy):
    return trained(RECIPE, data, strategy)


def same_bits(a, b):
    return all(
        jax.tree.leaves(
            jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b)
        )
    )


def untimed(rows):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def test_rows_come_every_so_many_steps_and_at_the_end(whole):
    assert [row["step"] for _, row in whole] == [10, 20, 25]
    assert all(list(row) == KEYS for _, row in whole)
    assert [row["rate"] for _, row in whole] == [0.1, 0.01, 0.001]
    assert all(row["images_per_second"] > 0 and row["seconds"] > 0 for _, row in whole)


def test_the_same_recipe_gives_the_same_bits(whole, data, strategy):
    again = trained(RECIPE, data, strategy)
    assert same_bits(whole[-1][0], again[-1][0])
    assert untimed(row for _, row in whole) == untimed(row for _, row in again)


def test_images_are_trained_on_as_they_are_unless_augmentation_is_asked_for(data, strategy):
    """Mirrored and shifted by up to half their width, digits are other digits or none."""
    recipe = jc.Recipe(dataset="digits", model="own", batch=64, steps=3, every=3)
    plain, off, mirrored = (
        next(
            jc.train(Linear(), optax.sgd(0.1), data, replace(recipe, **change), strategy=strategy)
        )[0]
        for change in ({}, {"pad": 0, "flip": False}, {"flip": True})
    )
    assert same_bits(plain.params, off.params)
    assert not same_bits(plain.params, mirrored.params)
    state = init_state(Linear(), optax.sgd(0.1), recipe, data)
    step = jax.jit(
        make_train_step(Linear(), optax.sgd(0.1))
    )  # the step alone has the same defaults
    for index in epoch_order(state.rng, 0, 3, 64, len(data.train.labels)):
        state = step(state, data.train, index)
    kernels = (one.params["Dense_0"]["kernel"] for one in (state, plain))
    np.testing.assert_allclose(*kernels, atol=1e-5)


@pytest.mark.parametrize("stop", [1, 7, 10, 13, 24])
def test_a_run_stopped_anywhere_goes_on_with_the_same_bits(whole, data, strategy, stop):
    first = trained(RECIPE, data, strategy, pause=lambda step: step == stop)
    kept = [row for _, row in first if row is not None]
    if stop in (10,):  # a row is due: it is handed out, and stopping is the caller's
        first, kept = first[:1], kept[:1]
    else:
        assert first[-1][1] is None
    assert int(first[-1][0].step) == stop
    rest = trained(RECIPE, data, strategy, resume=lambda like: first[-1][0])
    assert same_bits(whole[-1][0], rest[-1][0])
    assert untimed([*kept, *(row for _, row in rest)]) == untimed(row for _, row in whole)


def test_a_run_that_is_over_gives_its_state_and_no_row(whole, data, strategy):
    ((state, row),) = trained(RECIPE, data, strategy, resume=lambda like: whole[-1][0])
    assert row is None
    assert same_bits(state, whole[-1][0])


def test_seeds_differ(whole, data, strategy):
    other = trained(replace(RECIPE, seed=4), data, strategy)
    assert not same_bits(whole[-1][0].params, other[-1][0].params)


def test_a_scanned_epoch_is_the_loop_to_rounding(whole, data):
    scanning = parallel.Strategy("jit", jax.devices()[:1])
    scanning.scans = True
    state = trained(replace(RECIPE, steps=10), data, scanning)[-1][0]
    gaps = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), state.params, whole[0][0].params)
    assert max(jax.tree.leaves(gaps)) < 1e-5


class Linear(nn.Module):
    """Softmax regression, whose gradient NumPy can have by hand; it counts its traces."""

    traces = 0

    @nn.compact
    def __call__(self, x, train=False):
        Linear.traces += 1
        return nn.Dense(10)(x.reshape(len(x), -1))


def by_hand(data, state, recipe, steps):
    """Heavy ball with L2 on softmax regression, in float64 NumPy: (kernel, bias, last gradient's norm)."""
    kernel = np.asarray(state.params["Dense_0"]["kernel"], np.float64)
    bias, speed, norm = np.zeros(10), [0.0, 0.0], 0.0
    inputs = (data.train.images / 255 - data.mean).reshape(len(data.train.labels), -1)
    for index in epoch_order(state.rng, 0, steps, recipe.batch, len(inputs)):
        x, y = inputs[index], np.eye(10)[data.train.labels[index]]
        logits = x @ kernel + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        grads = [x.T @ (p - y) / len(x), (p - y).mean(0)]
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        grads[0] = grads[0] + recipe.decay * kernel
        speed = [recipe.momentum * v + g for v, g in zip(speed, grads, strict=True)]
        kernel, bias = kernel - recipe.lr * speed[0], bias - recipe.lr * speed[1]
    return kernel, bias, norm


def test_the_step_is_that_of_numpy(data):
    recipe = jc.Recipe(dataset="digits", batch=50, lr=0.2, decay=0.01, pad=0, flip=False)
    model, tx = Linear(), jc.create_optimizer(recipe)
    state = begun = init_state(model, tx, recipe, data)
    step = jax.jit(make_train_step(model, tx, pad=0, flip=False))
    for count, index in enumerate(
        epoch_order(state.rng, 0, 40, 50, len(data.train.labels))
    ):  # past the first epoch
        before, state = state, step(state, data.train, index)
        assert int(state.step) == count + 1
    kernel, bias, norm = by_hand(data, begun, recipe, 40)
    np.testing.assert_allclose(state.params["Dense_0"]["kernel"], kernel, atol=2e-6)
    np.testing.assert_allclose(state.params["Dense_0"]["bias"], bias, atol=2e-6)
    assert float(state.metrics.grad_norm - before.metrics.grad_norm) / 50 == pytest.approx(
        norm, rel=1e-3
    )
    assert int(state.metrics.num_examples) == 40 * 50


def test_nothing_is_compiled_twice(data, strategy):
    recipe = jc.Recipe(dataset="digits", batch=64, steps=12, every=4, pad=0)
    model, tx = Linear(), jc.create_optimizer(recipe)
    parallel.clear_program_cache()  # were as many programs kept as may be, those of the first run would be dropped during it
    list(jc.train(model, tx, data, replace(recipe, steps=4), strategy=strategy))
    once = Linear.traces
    list(jc.train(model, tx, data, replace(recipe, seed=1), strategy=strategy))
    assert (
        Linear.traces == once + 1
    )  # the initialiser's alone: three more rows and another seed share the programs


def test_each_example_comes_once_an_epoch_and_batches_run_on():
    key, n, batch = jax.random.PRNGKey(5), 50, 8
    flat = epoch_order(
        key, 0, 25, batch, n
    ).ravel()  # 200 examples: four epochs, which batches straddle
    for epoch in range(4):
        assert sorted(flat[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert not np.array_equal(flat[:n], flat[n : 2 * n])
    np.testing.assert_array_equal(
        epoch_order(key, 0, 25, batch, n)[9:17], epoch_order(key, 9, 17, batch, n)
    )
    assert not np.array_equal(
        epoch_order(jax.random.PRNGKey(6), 0, 5, batch, n), epoch_order(key, 0, 5, batch, n)
    )


class Recording(parallel.Strategy):
    """Keeps the batches that it is given, of training alone: evaluation's are larger."""

    def __init__(self):
        super().__init__("jit", jax.devices()[:1])
        self.seen: list[Any] = []

    def chunks(self, order):
        for piece in super().chunks(order):
            self.seen += [piece[0]] if piece.shape[1] == 64 else []
            yield piece


def test_sorted_batches_go_through_the_labels_in_order(data):
    recipe = jc.Recipe(
        dataset="digits", batch=64, steps=50, every=20, pad=0, flip=False, order="sorted"
    )
    recording = Recording()
    list(jc.train(Linear(), jc.create_optimizer(recipe), data, recipe, strategy=recording))
    flat, n = np.concatenate(recording.seen), len(data.train.labels)
    assert len(flat) == 50 * 64  # two epochs and more, which batches straddle
    for epoch in (flat[:n], flat[n : 2 * n]):
        assert sorted(epoch) == list(range(n))
        assert (np.diff(data.train.labels[epoch]) >= 0).all()
    assert (np.diff(data.train.labels[flat[2 * n :]]) >= 0).all()


def test_a_sorted_run_stopped_in_mid_epoch_goes_on_there(data):
    recipe = jc.Recipe(
        dataset="digits", batch=64, steps=25, every=10, pad=0, flip=False, order="sorted"
    )
    whole, parts, model, tx = Recording(), Recording(), Linear(), jc.create_optimizer(recipe)
    end: Any = list(jc.train(model, tx, data, recipe, strategy=whole))[-1]
    half: Any = list(
        jc.train(model, tx, data, recipe, strategy=parts, pause=lambda step: step == 7)
    )[-1]
    rest: Any = list(
        jc.train(model, tx, data, recipe, strategy=parts, resume=lambda like: half[0])
    )[-1]
    np.testing.assert_array_equal(whole.seen, parts.seen)
    assert same_bits(end[0], rest[0])


def test_shuffled_is_not_sorted(data):
    recipe, recording = (
        jc.Recipe(dataset="digits", batch=64, steps=5, every=5, pad=0, flip=False),
        Recording(),
    )
    list(jc.train(Linear(), jc.create_optimizer(recipe), data, recipe, strategy=recording))
    labels = data.train.labels[np.concatenate(recording.seen)]
    assert 0.3 < (np.diff(labels) < 0).mean() < 0.6  # 0.45 for ten even classes


@pytest.mark.parametrize("every", [5, 15])
def test_the_deviation_of_the_loss_is_that_of_the_rows_batches(data, strategy, every):
    recipe = jc.Recipe(dataset="digits", batch=32, steps=15, pad=0, flip=False, lr=0.01, drops=())
    model, tx = Linear(), jc.create_optimizer(recipe)
    single: Any = [
        row for _, row in jc.train(model, tx, data, replace(recipe, every=1), strategy=strategy)
    ]
    rows: Any = [
        row for _, row in jc.train(model, tx, data, replace(recipe, every=every), strategy=strategy)
    ]
    losses = np.array([row["train_loss"] for row in single]).reshape(-1, every)
    np.testing.assert_allclose([row["loss_std"] for row in rows], losses.std(axis=1), rtol=1e-3)
    np.testing.assert_allclose([row["train_loss"] for row in rows], losses.mean(axis=1), rtol=1e-5)
    assert losses.std(axis=1).min() > 0.01
    assert (
        max(row["loss_std"] for row in single) < 2e-3
    )  # one batch has none, but for the root of float32's 1e-7


def test_the_deviation_of_the_loss_is_the_same_on_devices(data, strategy):
    recipe = jc.Recipe(
        dataset="digits", model="mlp", batch=32, steps=6, every=6, pad=0, flip=False, lr=0.01
    )
    model, tx = jc.create_model("mlp", 10, hidden=[]), jc.create_optimizer(recipe)
    one: Any
    two: Any
    ((_, one),), ((_, two),) = (
        jc.train(model, tx, data, recipe, strategy=d) for d in (strategy, jc.strategy("pmap", 2))
    )
    assert two["loss_std"] == pytest.approx(one["loss_std"], rel=1e-3)


def test_streams_are_separate():
    keys = [
        fold_in(jax.random.PRNGKey(s), which, at)
        for s in range(3)
        for which in range(4)
        for at in range(5)
    ]
    assert len({tuple(np.asarray(key).tolist()) for key in keys}) == len(keys)
    assert {INIT, ORDER, AUGMENT, DROPOUT} == set(range(4))


def test_any_optax_optimiser_will_do(data, strategy):
    model, recipe = jc.create_model("plain8", 10, width=4), replace(RECIPE, steps=10)
    plain: Any
    ((_, plain),) = jc.train(model, optax.adam(1e-3), data, recipe, strategy=strategy)
    assert plain["rate"] is None
    injected = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
    told: Any
    ((_, told),) = jc.train(model, injected, data, recipe, strategy=strategy)
    assert told["rate"] == 0.001
    assert told["train_loss"] == plain["train_loss"]


def test_clean_training_figures_are_those_of_evaluate(data, strategy):
    recipe = replace(RECIPE, train_error="clean")
    (state, row), *_ = trained(recipe, data, strategy)
    sums = jc.evaluate(
        jc.create_model(recipe.model, 10, width=4), state, data.train, strategy=strategy
    )
    assert (row["train_error"], row["train_loss"]) == (
        sums.error_percent,
        pytest.approx(sums.mean_loss, rel=1e-6),
    )


def test_precise_statistics_are_reported_beside_the_moving_ones(data, strategy, whole):
    recipe = replace(RECIPE, steps=10, precise_bn=640)
    ((state, row),) = trained(recipe, data, strategy)
    exact = jc.recompute_batch_stats(
        jc.create_model(recipe.model, 10, width=4),
        state,
        data.train,
        640,
        batch=64,
        strategy=strategy,
    )
    sums = jc.evaluate(
        jc.create_model(recipe.model, 10, width=4), exact, data.test, strategy=strategy
    )
    assert (row["precise_eval_error"], row["precise_eval_loss"]) == (
        sums.error_percent,
        pytest.approx(sums.mean_loss, rel=1e-6),
    )
    assert row["eval_error"] == whole[0][1]["eval_error"]


def test_validation_is_reported_when_asked(strategy):
    data = jc.load_dataset("digits", validation=300, seed=1)
    recipe = replace(RECIPE, steps=10, validation=300, report="validation")
    ((state, row),) = trained(recipe, data, strategy)
    sums = jc.evaluate(
        jc.create_model(recipe.model, 10, width=4), state, data.validation, strategy=strategy
    )
    assert row["eval_error"] == sums.error_percent
    assert row["eval_loss"] == pytest.approx(sums.mean_loss, rel=1e-6)
    assert row["eval_split"] == "validation"
    assert not [key for key in row if "test" in key]


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_a_batch_that_devices_cannot_share_is_refused_before_compiling(data, kind):
    Linear.traces = 0
    with pytest.raises(
        jc.ArgumentError,
        match=r"batch is 60, which 8 devices cannot share equally; write batch=56 or 64",
    ) as e:
        next(
            jc.train(
                Linear(),
                optax.sgd(0.1),
                data,
                jc.Recipe(dataset="digits", batch=60),
                strategy=jc.strategy(kind),
            )
        )
    assert "\n" not in str(e.value)
    assert Linear.traces == 0


def test_a_batch_larger_than_the_data_is_refused(data, strategy):
    with pytest.raises(jc.ArgumentError, match="batch is 2000, more than the 1437 training images"):
        next(
            jc.train(
                Linear(),
                optax.sgd(0.1),
                data,
                jc.Recipe(dataset="digits", batch=2000),
                strategy=strategy,
            )
        )


def test_pmap_refuses_a_model_that_cannot_average_over_devices(data):
    with pytest.raises(jc.ArgumentError, match="Linear has no field `axis`"):
        next(
            jc.train(
                Linear(),
                optax.sgd(0.1),
                data,
                jc.Recipe(dataset="digits", batch=64),
                strategy=jc.strategy("pmap", 2),
            )
        )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"validation": 5}, "validation is 5, but the data holds out 0"),
        ({"dataset": "mnist"}, "dataset is 'mnist', but the data is 'digits'"),
        (
            {"examples": 100},
            r"^examples is 100, but the data has 1437 training images; write subset\(data, 100, seed=0\)$",
        ),
    ],
)
def test_a_recipe_of_other_data_is_refused(data, strategy, change, says):
    with pytest.raises(jc.ArgumentError, match=says):
        next(jc.train(Linear(), optax.sgd(0.1), data, replace(RECIPE, **change), strategy=strategy))


def test_an_empty_test_split_is_refused(data, strategy):
    empty = data._replace(test=data.validation)
    with pytest.raises(jc.ArgumentError, match="the test split is empty"):
        next(jc.train(Linear(), optax.sgd(0.1), empty, RECIPE, strategy=strategy))
