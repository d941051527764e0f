"""The step against plain NumPy, the order of examples, and runs that are stopped and go on."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from scripts import train_config

import jaxcnn as jc
from jaxcnn import parallel
from jaxcnn.optim.transforms import lookahead, select_extra_args
from jaxcnn.runs import model_and_optimizer
from jaxcnn.state import AUGMENT, DROPOUT, INIT, ORDER, fold_in, init_state
from jaxcnn.training import epoch_order, make_train_step

CONFIG = jc.override(
    jc.ExperimentConfig(),
    dataset="digits",
    model="resnet8",
    model_kwargs={"width": 4},
    batch_size=64,
    num_steps=25,
    eval_every=10,
    milestones=(12, 20),
    seed=3,
    padding=1,
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


def trained(config, data, strategy, **more) -> Any:
    model, tx = model_and_optimizer(
        config, 10
    )  # the same objects for every seed, so that they are compiled once
    return list(jc.train(model, tx, data, config.train, strategy=strategy, **more))


@pytest.fixture(scope="module")
def whole(data, strategy):
    return trained(CONFIG, data, strategy)


def same_bits(a, b):
    return all(
        jax.tree.leaves(
            jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b)
        )
    )


def untimed(rows):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@pytest.mark.slow
def test_rows_come_every_so_many_steps_and_at_the_end(whole):
    assert [row["step"] for _, row in whole] == [10, 20, 25]
    assert all(list(row) == KEYS for _, row in whole)
    assert [row["rate"] for _, row in whole] == [0.1, 0.01, 0.001]
    assert all(row["images_per_second"] > 0 and row["seconds"] > 0 for _, row in whole)


def test_the_same_config_gives_the_same_bits(whole, data, strategy):
    again = trained(CONFIG, data, strategy)
    assert same_bits(whole[-1][0], again[-1][0])
    assert untimed(row for _, row in whole) == untimed(row for _, row in again)


@pytest.mark.slow
def test_images_are_trained_on_as_they_are_unless_augmentation_is_asked_for(data, strategy):
    """Mirrored and shifted by up to half their width, digits are other digits or none."""
    config = jc.override(
        jc.ExperimentConfig(),
        dataset="digits",
        model="own",
        batch_size=64,
        num_steps=3,
        eval_every=3,
    )
    plain, off, mirrored = (
        next(
            jc.train(
                Linear(),
                optax.sgd(0.1),
                data,
                jc.override(config, **change).train,
                strategy=strategy,
            )
        )[0]
        for change in ({}, {"padding": 0, "flip": False}, {"flip": True})
    )
    assert same_bits(plain.params, off.params)
    assert not same_bits(plain.params, mirrored.params)
    state = init_state(Linear(), optax.sgd(0.1), config.train, data)
    step = jax.jit(
        make_train_step(Linear(), optax.sgd(0.1))
    )  # the step alone has the same defaults
    for index in epoch_order(state.rng, 0, 3, 64, len(data.train.labels)):
        state = step(state, data.train, index)
    kernels = (one.params["Dense_0"]["kernel"] for one in (state, plain))
    np.testing.assert_allclose(*kernels, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 7, 10, 13, 24])
def test_a_run_stopped_anywhere_goes_on_with_the_same_bits(whole, data, strategy, stop):
    first = trained(CONFIG, data, strategy, should_stop=lambda step: step == stop)
    kept = [row for _, row in first if row is not None]
    if stop in (10,):  # a row is due: it is handed out, and stopping is the caller's
        first, kept = first[:1], kept[:1]
    else:
        assert first[-1][1] is None
    assert int(first[-1][0].step) == stop
    rest = trained(CONFIG, data, strategy, resume=lambda like: first[-1][0])
    assert same_bits(whole[-1][0], rest[-1][0])
    assert untimed([*kept, *(row for _, row in rest)]) == untimed(row for _, row in whole)


def test_a_run_that_is_over_gives_its_state_and_no_row(whole, data, strategy):
    ((state, row),) = trained(CONFIG, data, strategy, resume=lambda like: whole[-1][0])
    assert row is None
    assert same_bits(state, whole[-1][0])


def test_seeds_differ(whole, data, strategy):
    other = trained(jc.override(CONFIG, seed=4), data, strategy)
    assert not same_bits(whole[-1][0].params, other[-1][0].params)


@pytest.mark.slow
def test_a_scanned_epoch_is_the_loop_to_rounding(whole, data):
    scanning = parallel.Strategy("jit", jax.devices()[:1])
    scanning.scans = True
    state = trained(jc.override(CONFIG, num_steps=10), data, scanning)[-1][0]
    gaps = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), state.params, whole[0][0].params)
    assert max(jax.tree.leaves(gaps)) < 1e-5


class Linear(nn.Module):
    """Softmax regression, whose gradient NumPy can have by hand; it counts its traces."""

    traces = 0

    @nn.compact
    def __call__(self, x, train=False):
        Linear.traces += 1
        return nn.Dense(10)(x.reshape(len(x), -1))


def by_hand(data, state, config, steps):
    """Heavy ball with L2 on softmax regression, in float64 NumPy: (kernel, bias, last gradient's norm)."""
    kernel = np.asarray(state.params["Dense_0"]["kernel"], np.float64)
    bias, speed, norm = np.zeros(10), [0.0, 0.0], 0.0
    inputs = (data.train.images / 255 - data.mean).reshape(len(data.train.labels), -1)
    for index in epoch_order(state.rng, 0, steps, config.train.batch_size, len(inputs)):
        x, y = inputs[index], np.eye(10)[data.train.labels[index]]
        logits = x @ kernel + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        grads = [x.T @ (p - y) / len(x), (p - y).mean(0)]
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        grads[0] = grads[0] + config.optimizer.weight_decay * kernel
        speed = [config.optimizer.momentum * v + g for v, g in zip(speed, grads, strict=True)]
        kernel, bias = (
            kernel - config.optimizer.learning_rate * speed[0],
            bias - config.optimizer.learning_rate * speed[1],
        )
    return kernel, bias, norm


def test_the_step_is_that_of_numpy(data):
    config = jc.override(
        jc.ExperimentConfig(),
        dataset="digits",
        batch_size=50,
        learning_rate=0.2,
        weight_decay=0.01,
        padding=0,
        flip=False,
    )
    model, tx = Linear(), jc.create_optimizer(config.optimizer, config.train.num_steps)
    state = begun = init_state(model, tx, config.train, data)
    step = jax.jit(make_train_step(model, tx))
    for count, index in enumerate(
        epoch_order(state.rng, 0, 40, 50, len(data.train.labels))
    ):  # past the first epoch
        before, state = state, step(state, data.train, index)
        assert int(state.step) == count + 1
    kernel, bias, norm = by_hand(data, begun, config, 40)
    np.testing.assert_allclose(state.params["Dense_0"]["kernel"], kernel, atol=2e-6)
    np.testing.assert_allclose(state.params["Dense_0"]["bias"], bias, atol=2e-6)
    assert float(state.metrics.grad_norm - before.metrics.grad_norm) / 50 == pytest.approx(
        norm, rel=1e-3
    )
    assert int(state.metrics.num_examples) == 40 * 50


def test_nothing_is_compiled_twice(data, strategy):
    config = jc.override(
        jc.ExperimentConfig(),
        dataset="digits",
        batch_size=64,
        num_steps=12,
        eval_every=4,
        padding=0,
    )
    model, tx = Linear(), jc.create_optimizer(config.optimizer, config.train.num_steps)
    parallel.clear_program_cache()  # were as many programs kept as may be, those of the first run would be dropped during it
    list(jc.train(model, tx, data, jc.override(config, num_steps=4).train, strategy=strategy))
    once = Linear.traces
    init_state(model, tx, config.train, data)
    initial = Linear.traces - once  # from Flax 0.12.12 on, a model is initialized on two inputs
    list(jc.train(model, tx, data, jc.override(config, seed=1).train, strategy=strategy))
    # The initializer's alone: three more rows and another seed share the programs.
    assert Linear.traces == once + 2 * initial


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
    config = jc.override(
        jc.ExperimentConfig(),
        dataset="digits",
        batch_size=64,
        num_steps=50,
        eval_every=20,
        padding=0,
        flip=False,
        order="sorted",
    )
    recording = Recording()
    list(
        train_config(
            Linear(),
            config,
            data,
            strategy=recording,
        )
    )
    flat, n = np.concatenate(recording.seen), len(data.train.labels)
    assert len(flat) == 50 * 64  # two epochs and more, which batches straddle
    for epoch in (flat[:n], flat[n : 2 * n]):
        assert sorted(epoch) == list(range(n))
        assert (np.diff(data.train.labels[epoch]) >= 0).all()
    assert (np.diff(data.train.labels[flat[2 * n :]]) >= 0).all()


def test_a_sorted_run_stopped_in_mid_epoch_goes_on_there(data):
    config = jc.override(
        jc.ExperimentConfig(),
        dataset="digits",
        batch_size=64,
        num_steps=25,
        eval_every=10,
        padding=0,
        flip=False,
        order="sorted",
    )
    whole, parts, model, tx = (
        Recording(),
        Recording(),
        Linear(),
        jc.create_optimizer(config.optimizer, config.train.num_steps),
    )
    end: Any = list(jc.train(model, tx, data, config.train, strategy=whole))[-1]
    half: Any = list(
        jc.train(model, tx, data, config.train, strategy=parts, should_stop=lambda step: step == 7)
    )[-1]
    rest: Any = list(
        jc.train(model, tx, data, config.train, strategy=parts, resume=lambda like: half[0])
    )[-1]
    np.testing.assert_array_equal(whole.seen, parts.seen)
    assert same_bits(end[0], rest[0])


def test_shuffled_is_not_sorted(data):
    config, recording = (
        jc.override(
            jc.ExperimentConfig(),
            dataset="digits",
            batch_size=64,
            num_steps=5,
            eval_every=5,
            padding=0,
            flip=False,
        ),
        Recording(),
    )
    list(
        train_config(
            Linear(),
            config,
            data,
            strategy=recording,
        )
    )
    labels = data.train.labels[np.concatenate(recording.seen)]
    assert 0.3 < (np.diff(labels) < 0).mean() < 0.6  # 0.45 for ten even classes


@pytest.mark.slow
@pytest.mark.parametrize("every", [5, 15])
def test_the_deviation_of_the_loss_is_that_of_the_rows_batches(data, strategy, every):
    config = jc.override(
        jc.ExperimentConfig(),
        dataset="digits",
        batch_size=32,
        num_steps=15,
        padding=0,
        flip=False,
        learning_rate=0.01,
        milestones=(),
    )
    model, tx = Linear(), jc.create_optimizer(config.optimizer, config.train.num_steps)
    single: Any = [
        row
        for _, row in jc.train(
            model, tx, data, jc.override(config, eval_every=1).train, strategy=strategy
        )
    ]
    rows: Any = [
        row
        for _, row in jc.train(
            model, tx, data, jc.override(config, eval_every=every).train, strategy=strategy
        )
    ]
    losses = np.array([row["train_loss"] for row in single]).reshape(-1, every)
    np.testing.assert_allclose([row["loss_std"] for row in rows], losses.std(axis=1), rtol=1e-3)
    np.testing.assert_allclose([row["train_loss"] for row in rows], losses.mean(axis=1), rtol=1e-5)
    assert losses.std(axis=1).min() > 0.01
    assert (
        max(row["loss_std"] for row in single) < 2e-3
    )  # one batch has none, but for the root of float32's 1e-7


@pytest.mark.slow
def test_the_deviation_of_the_loss_is_the_same_on_devices(data, strategy):
    config = jc.override(
        jc.ExperimentConfig(),
        dataset="digits",
        model="mlp",
        batch_size=32,
        num_steps=6,
        eval_every=6,
        padding=0,
        flip=False,
        learning_rate=0.01,
    )
    model, tx = (
        jc.create_model("mlp", 10, hidden=[]),
        jc.create_optimizer(config.optimizer, config.train.num_steps),
    )
    one: Any
    two: Any
    ((_, one),), ((_, two),) = (
        jc.train(model, tx, data, config.train, strategy=d)
        for d in (strategy, jc.strategy("pmap", 2))
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


@pytest.mark.slow
def test_any_optax_optimiser_will_do(data, strategy):
    model, config = Linear(), jc.override(CONFIG, num_steps=10)
    plain: Any
    ((_, plain),) = jc.train(model, optax.adam(1e-3), data, config.train, strategy=strategy)
    assert plain["rate"] is None
    injected = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
    reported: Any
    ((_, reported),) = jc.train(model, injected, data, config.train, strategy=strategy)
    assert reported["rate"] == 0.001
    assert reported["train_loss"] == plain["train_loss"]


@pytest.mark.slow
def test_clean_training_figures_are_those_of_evaluate(data, strategy):
    config = jc.override(CONFIG, train_metrics="clean")
    (state, row), *_ = trained(config, data, strategy)
    sums = jc.evaluate(
        jc.create_model(config.model, 10, width=4), state, data.train, strategy=strategy
    )
    assert (row["train_error"], row["train_loss"]) == (
        sums.error_percent,
        pytest.approx(sums.mean_loss, rel=1e-6),
    )


@pytest.mark.slow
def test_precise_statistics_are_reported_beside_the_moving_ones(data, strategy, whole):
    config = jc.override(CONFIG, num_steps=10, recompute_batch_stats=640)
    ((state, row),) = trained(config, data, strategy)
    exact = jc.recompute_batch_stats(
        jc.create_model(config.model, 10, width=4),
        state,
        data.train,
        640,
        batch_size=64,
        strategy=strategy,
    )
    sums = jc.evaluate(
        jc.create_model(config.model, 10, width=4), exact, data.test, strategy=strategy
    )
    assert (row["precise_eval_error"], row["precise_eval_loss"]) == (
        sums.error_percent,
        pytest.approx(sums.mean_loss, rel=1e-6),
    )
    assert row["eval_error"] == whole[0][1]["eval_error"]


@pytest.mark.slow
def test_validation_is_reported_when_asked(strategy):
    data = jc.load_dataset("digits", validation=300, seed=1)
    config = jc.override(CONFIG, num_steps=10, num_validation=300, eval_split="validation").train
    row: Any
    ((state, row),) = jc.train(Linear(), optax.sgd(0.1), data, config, strategy=strategy)
    sums = jc.evaluate(Linear(), state, data.validation, strategy=strategy)
    assert row["eval_error"] == sums.error_percent
    assert row["eval_loss"] == pytest.approx(sums.mean_loss, rel=1e-6)
    assert row["eval_split"] == "validation"
    assert not [key for key in row if "test" in key]


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_a_batch_that_devices_cannot_share_is_refused_before_compiling(data, kind):
    Linear.traces = 0
    with pytest.raises(
        jc.ArgumentError,
        match=r"batch_size is 60, which 8 devices cannot share equally; write batch_size=56 or 64",
    ) as e:
        jc.train(
            Linear(),
            optax.sgd(0.1),
            data,
            jc.override(jc.ExperimentConfig(), dataset="digits", batch_size=60).train,
            strategy=jc.strategy(kind),
        )
    assert "\n" not in str(e.value)
    assert Linear.traces == 0


def test_a_batch_larger_than_the_data_is_refused(data, strategy):
    with pytest.raises(
        jc.ArgumentError, match="batch_size is 2000, more than the 1437 training images"
    ):
        jc.train(
            Linear(),
            optax.sgd(0.1),
            data,
            jc.override(jc.ExperimentConfig(), dataset="digits", batch_size=2000).train,
            strategy=strategy,
        )


def test_pmap_refuses_a_model_that_cannot_average_over_devices(data):
    class Centered(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            mean = self.variable("batch_stats", "center", lambda: np.zeros(x.shape[1:], np.float32))
            if train and not self.is_initializing():
                mean.value = x.mean(0)
            return nn.Dense(10)((x - mean.value[None]).reshape(len(x), -1))

    with pytest.raises(jc.ArgumentError, match="Centered has no field `axis_name`"):
        jc.train(
            Centered(),
            optax.sgd(0.1),
            data,
            jc.override(jc.ExperimentConfig(), dataset="digits", batch_size=64).train,
            strategy=jc.strategy("pmap", 2),
        )


def test_an_empty_test_split_is_refused(data, strategy):
    empty = data._replace(test=data.validation)
    with pytest.raises(jc.ArgumentError, match="the test split is empty"):
        jc.train(Linear(), optax.sgd(0.1), empty, CONFIG.train, strategy=strategy)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": 3}, "model is of type int"),
    ({"model": jc.create_model("mlp", 7)}, "the model gives 7 outputs and the data has 10 classes"),
    ({"tx": "adam"}, "adam"),
    ({"tx": jc.OptimizerConfig()}, "OptimizerConfig"),
    ({"data": None}, "data"),
    ({"config": CONFIG}, r"config is an ExperimentConfig.*Use config\.train\."),
    ({"config": CONFIG.optimizer}, "config is an OptimizerConfig.*expected a TrainConfig"),
    ({"config": {"num_steps": 3}}, r"config is a dict.*Use jaxcnn\.TrainConfig\(\.\.\.\)"),
    ({"config": None}, "config is a NoneType"),
    ({"config": jc.TrainConfig(batch_size=2000)}, "batch_size is 2000"),
    ({"config": jc.TrainConfig(eval_split="validation")}, "the validation split is empty"),
    ({"config": jc.TrainConfig(recompute_batch_stats=3)}, "recompute_batch_stats is 3"),
    ({"config": jc.TrainConfig(divide_std=(0.5, 0.5))}, "divide_std"),
    ({"config": jc.TrainConfig(freeze=("stem",))}, "freeze has 'stem', of which the model has no"),
    ({"strategy": "jit"}, "strategy is 'jit'"),
    ({"resume": 3}, "resume is 3"),
    ({"resume": lambda like: like._replace(params={})}, "the state to resume has params"),
    ({"should_stop": True}, "should_stop is True"),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_a_wrong_argument_is_an_error_of_the_call_and_not_of_the_first_row(data, change, says):
    arguments: dict[str, Any] = {
        "model": jc.create_model("mlp", 10),
        "tx": optax.sgd(0.1),
        "data": data,
        "config": jc.TrainConfig(batch_size=64),
        "strategy": jc.strategy("jit", 1),
    }
    with pytest.raises(ValueError, match=says) as error:
        jc.train(**arguments | change)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_state_to_resume_is_asked_for_once_and_by_the_call(data, strategy):
    asked: list[Any] = []

    def resume(like):
        asked.append(like)

    rows = jc.train(
        jc.create_model("mlp", 10),
        optax.sgd(0.1),
        data,
        jc.TrainConfig(batch_size=64, num_steps=1),
        strategy=strategy,
        resume=resume,
    )
    assert len(asked) == 1
    assert [int(state.step) for state, _ in rows] == [1]
    assert len(asked) == 1


class Stages(nn.Module):
    """Two stages with BN, and a head."""

    @nn.compact
    def __call__(self, x, train=False):
        for name in ("stem", "stage1"):
            # The gradient of a bias before BN is rounding alone, which Adam would blow up.
            x = nn.Conv(4, (3, 3), use_bias=name == "stem", name=name)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.5, name=f"{name}_norm")(x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def library(name):
    config = jc.OptimizerConfig(
        name, learning_rate=0.02, weight_decay=0.1, decay_mask="all", milestones=()
    )
    return jc.create_optimizer(config)


OPTIMIZERS: dict[str, Any] = {
    "momentum": library("momentum"),
    "adamw": library("adamw"),
    "lookahead": library("lookahead"),
    "schedule-free": library("schedule-free"),
    "sam": library("sam"),
    "clipped": library("clipped"),
    "optax adam and decay": optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.02)),
    "optax adamw": optax.adamw(0.02, weight_decay=0.1),
    "optax lookahead": lookahead(optax.sgd(0.02, 0.9), 2, 0.5),
    "optax schedule-free": optax.contrib.schedule_free_sgd(0.02, weight_decay=0.1),
    "optax sam": select_extra_args(
        optax.contrib.sam(optax.sgd(0.02), optax.sgd(0.05), opaque_mode=True), "grad_fn"
    ),
    "optax clip": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.02, 0.9)),
}
FROZEN = ("stem", "stem_norm")


def stepped(data, tx, freeze, steps=5) -> Any:
    """The states before and after a few steps."""
    config = jc.TrainConfig(batch_size=32, freeze=freeze)
    before = state = init_state(Stages(), tx, config, data)
    step = jax.jit(make_train_step(Stages(), tx, freeze=freeze))
    for index in epoch_order(state.rng, 0, steps, 32, len(data.train.labels)):
        state = step(state, data.train, index)
    return before, jax.tree.map(np.asarray, state)


@pytest.mark.slow
@pytest.mark.quick_compilation
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_and_their_statistics_keep_their_bits(data, name):
    before, after = stepped(data, OPTIMIZERS[name], ("stem",))
    assert set(before.params) == {"stem", "stem_norm", "stage1", "stage1_norm", "head"}
    for stage in before.params:
        same = same_bits(before.params[stage], after.params[stage])
        assert same == (stage in FROZEN), stage
    for stage, old in before.model_state["batch_stats"].items():
        same = same_bits(old, after.model_state["batch_stats"][stage])
        assert same == (stage in FROZEN), stage
    shapes = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(after)]
    assert any("opt_state" in path for path in shapes)
    assert not any("opt_state" in path and "stem" in path for path in shapes)


def zeroed(tx):
    """What freezes with Optax alone: updates of zero, and `tx` does not see the frozen."""

    def labels(params):
        return {name: "frozen" if name in FROZEN else "trained" for name in params}

    return optax.multi_transform({"trained": tx, "frozen": optax.set_to_zero()}, labels)


@pytest.mark.slow
@pytest.mark.quick_compilation
@pytest.mark.parametrize(
    "name",
    ["optax adam and decay", "optax adamw", "optax clip", "optax schedule-free", "optax sam"],
)
def test_freezing_is_what_updates_of_zero_and_fixed_statistics_make(data, name):
    """The reference is written out: a network whose stem is a constant, in a loop of plain Optax."""
    tx = OPTIMIZERS[name]
    before, after = stepped(data, tx, ("stem",))
    params = before.params
    stats = before.model_state["batch_stats"]
    reference = zeroed(tx)
    opt_state = reference.init(params)

    def loss(params, images, labels, stats):
        frozen = nn.Conv(4, (3, 3)).apply({"params": params["stem"]}, images)
        norm = nn.BatchNorm(use_running_average=True, momentum=0.5)
        variables = {"params": params["stem_norm"], "batch_stats": stats["stem_norm"]}
        x = nn.relu(norm.apply(variables, frozen))  # type: ignore[reportArgumentType]
        x = nn.Conv(4, (3, 3), use_bias=False).apply({"params": params["stage1"]}, x)
        norm = nn.BatchNorm(use_running_average=False, momentum=0.5)
        variables = {"params": params["stage1_norm"], "batch_stats": stats["stage1_norm"]}
        x, new = norm.apply(variables, x, mutable=["batch_stats"])  # type: ignore[reportArgumentType]
        logits: Any = nn.Dense(10).apply({"params": params["head"]}, nn.relu(x).mean((1, 2)))  # type: ignore[reportAttributeAccessIssue]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), stats | {"stage1_norm": new["batch_stats"]}

    @jax.jit
    def step(params, stats, opt_state, images, labels):
        def grad_fn(params, _):
            # `multi_transform` hides the frozen parameters from what it wraps.
            whole = {n: old if n in FROZEN else params[n] for n, old in fixed.items()}
            grads = jax.grad(loss, has_aux=True)(whole, images, labels, stats)[0]
            return {n: params[n] if n in FROZEN else g for n, g in grads.items()}

        fixed = params
        grads, stats_after = jax.grad(loss, has_aux=True)(params, images, labels, stats)
        with jax.numpy_dtype_promotion("standard"):
            more = {"grad_fn": grad_fn} if "sam" in name else {}
            updates, opt_state = reference.update(grads, opt_state, params, **more)
            return optax.apply_updates(params, updates), stats_after, opt_state

    for index in epoch_order(before.rng, 0, 5, 32, len(data.train.labels)):
        images = (data.train.images[index] / 255 - data.mean).astype(np.float32)
        params, stats, opt_state = step(params, stats, opt_state, images, data.train.labels[index])
    for expected, got in ((params, after.params), (stats, after.model_state["batch_stats"])):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5), expected, got
        )
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), before.params["stage1"], after.params["stage1"]
    )
    assert max(jax.tree.leaves(moved)) > 1e-3
