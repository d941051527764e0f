"""Own flax.linen modules and own optax chains: what works works, and what does not is one line before anything is compiled."""

import os
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.nnx import bridge

import jaxcnn as jc
from jaxcnn import augment, parallel
from jaxcnn.data import channel_statistics
from jaxcnn.evaluation import resolve_batch_size
from jaxcnn.models.calling import call, init_variables
from jaxcnn.optim import current_learning_rate
from jaxcnn.parallel import hashable
from jaxcnn.state import eval_state, state_shapes

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (48, 4, 4, 1), dtype=np.uint8)
LABELS = (np.arange(48) % 4).astype(np.int32)
NONE = jc.Split(IMAGES[:0], LABELS[:0])
TEST = jc.Split(IMAGES[:21], LABELS[:21])
DATA = jc.Dataset(
    "mine", jc.Split(IMAGES, LABELS), NONE, TEST, ("a", "b", "c", "d"), *channel_statistics(IMAGES)
)
OPTIMIZER = jc.OptimizerConfig(milestones=())
CONFIG = jc.TrainConfig(batch_size=8, num_steps=4, eval_every=2)
IMAGE = jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.float32)


class Net(nn.Module):
    """A network whose every part is asked for by a field."""

    outputs: int = 4
    widths: Any = (6,)
    norm: bool = False
    dropout: float = 0.0
    momentum: float = 0.9
    axis_name: Any = None

    @nn.compact
    def __call__(self, x, train: bool):
        for width in self.widths:
            x = nn.Conv(width, (3, 3))(x)
        if self.norm:
            fields = {
                "use_running_average": not train,
                "momentum": self.momentum,
                "axis_name": self.axis_name,
            }
            x = nn.BatchNorm(**fields, name="stem_norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return nn.Dense(self.outputs, name="head")(x.reshape(len(x), -1))


class Changed(nn.Module):
    """`Net` whose outputs `change` makes something else of."""

    change: Any

    @nn.compact
    def __call__(self, x, train: bool):
        return self.change(Net()(x, train))


def fit(model, tx=None, config=CONFIG, devices=1, kind="jit") -> list[Any]:
    return list(
        jc.train(
            model,
            tx or jc.create_optimizer(OPTIMIZER),
            DATA,
            config,
            strategy=jc.strategy(kind, devices),
        )
    )


def started(model, tx=None, config=CONFIG):
    return jc.init_state(model, tx or jc.create_optimizer(OPTIMIZER), config, DATA)


@pytest.fixture
def uncompiled(monkeypatch):
    """No step is compiled within."""

    def refuse(*_):
        raise AssertionError("a step was made")

    monkeypatch.setattr("jaxcnn.parallel.Strategy.compile_steps", refuse)


def refused(call, *words):
    with pytest.raises(jc.ArgumentError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    for word in words:
        assert word in message
    return message


# Outputs that do not fit (A5, C6).

WRONG = {
    "fewer": (lambda: Net(3), "gives 3 outputs and the data has 4 classes"),
    "more": (lambda: Net(7), "gives 7 outputs and the data has 4 classes"),
    "integers": (lambda: Changed(lambda y: y.argmax(-1)), "outputs of int32"),
    "integer matrix": (lambda: Changed(lambda y: y.astype(jnp.int32)), "outputs of int32"),
    "two outputs": (lambda: Changed(lambda y: (y, y)), "a tuple of 2"),
    "a dict": (lambda: Changed(lambda y: {"logits": y}), "a dict of 1"),
    "nothing": (lambda: Changed(lambda y: None), "returns nothing"),
    "a number": (lambda: Changed(lambda y: y.mean()), "shape ()"),
    "no batch": (lambda: Changed(lambda y: y.mean(0)), "shape (4,)"),
    "batch last": (lambda: Changed(lambda y: y.T), "the images first"),
    "maps": (
        lambda: Changed(lambda y: y[:, None, None]),
        "its label needs logits of (num_classes)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("use", ["fit", "evaluate", "lr_range_test"])
def test_outputs_that_do_not_fit_are_one_line_before_compiling(kind, use, uncompiled):
    make, words = WRONG[kind]
    model = make()
    if use == "evaluate":
        if kind == "more":
            return  # a split may lack some of the classes
        words = "labels go up to 3, but the model gives 3 outputs" if kind == "fewer" else words
        refused(lambda: jc.evaluate(model, started(model), TEST), words)
    elif use == "fit":
        refused(lambda: fit(model), words)
    else:
        refused(
            lambda: jc.lr_finder(
                model, OPTIMIZER, DATA, CONFIG, num_steps=10, strategy=jc.strategy(devices=1)
            ),
            words,
        )


def test_the_range_test_refuses_other_classes_of_our_networks(uncompiled):
    refused(
        lambda: jc.lr_finder(jc.create_model("mlp", 5), OPTIMIZER, DATA, CONFIG, num_steps=10),
        "gives 5 outputs and the data has 4 classes",
    )


def test_outputs_that_change_in_training_are_seen(uncompiled):
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            y = Net()(x, train)
            return (y, y) if train else y

    refused(lambda: fit(Odd()), "a tuple of 2")


@pytest.mark.slow
def test_prediction_takes_two_outputs_and_other_ones():
    state = started(Net(7))
    assert jc.predict(Net(7), state, IMAGES).shape == (48, 7)
    two = Changed(lambda y: (y, y))
    outputs = jc.predict(two, started(two), IMAGES)
    assert isinstance(outputs, tuple)
    assert [array.shape for array in outputs] == [(48, 4), (48, 4)]


@pytest.mark.slow
def test_narrow_outputs_are_counted_in_float32():
    class Narrow(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(4, dtype=jnp.bfloat16)(x.reshape(len(x), -1))

    (_, row), *_ = fit(Narrow())
    assert np.isfinite(row["train_loss"])
    assert jc.predict(Narrow(), started(Narrow()), IMAGES).dtype == np.float32


# How modules are called (C6).


class Flagged(nn.Module):
    """A module with some flag; `seen` notes its values."""

    def mode(self, x, train):
        return Net(dropout=0.5, norm=True)(x, train)


class Training(Flagged):
    @nn.compact
    def __call__(self, x, *, training=False):
        return self.mode(x, training)


class Deterministic(Flagged):
    @nn.compact
    def __call__(self, x, deterministic):
        return self.mode(x, not deterministic)


class Field(Flagged):
    deterministic: bool = True

    @nn.compact
    def __call__(self, x):
        return self.mode(x, not self.deterministic)


class Train(Flagged):
    @nn.compact
    def __call__(self, x, train):
        return self.mode(x, train)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [Training(), Deterministic(), Field()], ids=["training", "deterministic", "field"]
)
def test_every_flag_gives_the_numbers_of_train(model):
    def figures(model):
        return [
            {k: v for k, v in row.items() if "seconds" not in k and "per_second" not in k}
            for _, row in fit(model)
        ]

    assert figures(model) == figures(Train())


@pytest.mark.slow
def test_a_model_without_a_flag_and_a_sequence_train():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x.reshape(len(x), -1))

    for model in (
        Plain(),
        nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(8), nn.relu, nn.Dense(4)]),
    ):
        states = fit(model)
        before, after = started(model).params, states[-1][0].params
        assert all(
            (a != b).any()
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
            if a.ndim > 1
        )
        assert jc.evaluate(model, states[-1][0], TEST).num_examples == 21


def test_streams_of_any_name_are_drawn_and_differ():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            streams = ("dropout", "noise", "paths")
            drawn = (
                jnp.stack([jax.random.normal(self.make_rng(name), (4,)) for name in streams])
                if train
                else jnp.zeros((3, 4))
            )
            return nn.Dense(4)(x.reshape(len(x), -1)) + drawn.sum(0)[None], drawn

    model = Noisy()
    variables = init_variables(model, jax.random.PRNGKey(0), IMAGE)
    keys = [jax.random.PRNGKey(key) for key in (1, 2)]
    one, two = (
        call(model, variables, jnp.zeros((2, 4, 4, 1)), train=True, key=key)[1] for key in keys
    )
    assert len(np.unique(np.concatenate([one, two]))) == 24


@pytest.mark.slow
def test_one_line_for_a_model_that_is_random_or_moves_in_test(uncompiled):
    class Random(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.Dropout(0.5, deterministic=False)(x.reshape(len(x), -1)))

    class Moving(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.BatchNorm(use_running_average=False)(x.reshape(len(x), -1)))

    refused(lambda: fit(Random()), "draws random numbers in test mode", "deterministic=not train")
    refused(
        lambda: fit(Moving()), "changes its variables in test mode", "use_running_average=not train"
    )


@pytest.mark.slow
def test_what_is_sown_is_no_state():
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            self.sow("penalties", "l2", (x**2).mean())
            self.sow("intermediates", "x", x)
            count = self.variable("counts", "steps", lambda: jnp.int32(0))
            if train:
                count.value += 1
            return nn.Dense(4)(x.reshape(len(x), -1))

    state = fit(Sowing())[-1][0]
    assert list(state.model_state) == ["counts"]
    assert int(state.model_state["counts"]["steps"]) == 4
    assert state.model_state["counts"]["steps"].dtype == np.int32
    found = state_shapes(Sowing(), jc.create_optimizer(OPTIMIZER), CONFIG, DATA)
    assert jax.tree.map(lambda x: x.shape, found) == jax.tree.map(np.shape, state)


def test_one_line_for_what_is_no_linen_module(uncompiled):
    class Theirs(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, x):
            return self.dense(x.reshape(len(x), -1))

    class Two(nn.Module):
        def __call__(self, x, mask, train):
            return x

    class Empty(nn.Module):
        def __call__(self, x, train):
            return x.reshape(len(x), -1)[:, :4]

    class Peeking(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            first = self.param("first", lambda _: x.mean(0))
            return nn.Dense(4)((x - first[None]).reshape(len(x), -1))

    tx, model = jc.create_optimizer(OPTIMIZER), Net()
    state = started(model)
    values: list[tuple[Any, str]] = [
        (Theirs(nnx.Rngs(0)), "flax.nnx.bridge.to_linen(Theirs, ...)"),
        (Theirs, "flax.nnx.bridge.to_linen(Theirs, ...)"),
        (Net, "Write Net(...)"),
        ("resnet20", "jaxcnn.create_model('resnet20', num_classes)"),
        (lambda x: x, "of type function"),
        (Two(), "mask"),
    ]
    for value, words in values:
        for use in (
            lambda value=value: next(jc.train(value, tx, DATA, CONFIG)),
            lambda value=value: jc.init_state(value, tx, CONFIG, DATA),
            lambda value=value: jc.evaluate(value, state, TEST),
            lambda value=value: jc.predict(value, state, IMAGES),
            lambda value=value: jc.lr_finder(value, OPTIMIZER, DATA, CONFIG),
        ):
            refused(use, words)
    refused(lambda: fit(Empty()), "has no parameters")
    refused(lambda: fit(Peeking()), "from the values of images")


@pytest.mark.slow
def test_an_nnx_module_trains_through_flax_s_bridge():
    class Theirs(nnx.Module):
        def __init__(self, width, rngs):
            self.dense = nnx.Linear(16, width, rngs=rngs)

        def __call__(self, x):
            return self.dense(x.reshape(len(x), -1))

    model = bridge.to_linen(Theirs, 4)
    state = fit(model)[-1][0]
    assert jc.evaluate(model, state, TEST).num_examples == 21


# Modules that cannot be hashed (C3).

FIELDS = {
    "list": [6, 5],
    "array": np.array([6, 5]),
    "nested": ([6], 5),
    "dict": {6: [1], 5: {"x": np.ones(2)}},
}


class Odd(nn.Module):
    widths: Any

    @nn.compact
    def __call__(self, x, train):
        for width in jax.tree.leaves(list(self.widths)):
            x = nn.Conv(int(width), (3, 3))(x)
        return nn.Dense(4)(x.reshape(len(x), -1))


@pytest.mark.slow
@pytest.mark.quick_compilation
@pytest.mark.parametrize("kind", FIELDS)
def test_modules_with_unhashable_fields_work(kind):
    model = Odd(FIELDS[kind])
    with pytest.raises(TypeError):
        hash(model)
    state, row = fit(model)[-1]
    plain = fit(Odd((6, 5)))[-1]
    assert row["eval_loss"] == plain[1]["eval_loss"]
    assert (
        jc.evaluate(model, state, TEST, strategy=jc.strategy(devices=1)).mean_loss
        == row["eval_loss"]
    )
    assert jc.predict(model, state, IMAGES).shape == (48, 4)


def test_their_programs_are_found_by_contents():
    assert hashable(Odd([1, 2])) == hashable(Odd([1, 2]))
    assert hashable(Odd([1, 2])) != hashable(Odd([2, 1]))
    assert hashable(Odd(np.arange(2))) != hashable(Odd(np.arange(2.0)))
    assert hashable(Odd({"a": 1, "b": 2})) != hashable(Odd({"b": 2, "a": 1}))
    strange = np.array([{}, {}], object)
    assert hashable(Odd(strange)) == hashable(Odd(strange)) != hashable(Odd(strange.copy()))


# Frozen stages and precise BN of flax's own layers (A6).


class Stem(nn.Module):
    late: bool = False

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(3, (3, 3))(x)
        return (
            nn.BatchNorm()(x, not train)
            if self.late
            else nn.BatchNorm(use_running_average=not train)(x)
        )


class Staged(nn.Module):
    late: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x, train):
        stem = nn.remat(Stem, static_argnums=(2,)) if self.remat else Stem
        x = nn.relu(stem(self.late, name="stem")(x, train))
        x = nn.BatchNorm(use_running_average=not train, name="stage1_norm")(x)
        return nn.Dense(4, name="head")(x.reshape(len(x), -1))


@pytest.mark.slow
@pytest.mark.parametrize(("late", "remat"), [(False, False), (True, False), (False, True)])
def test_a_frozen_stage_keeps_the_statistics_of_flax_s_bn(late, remat):
    config, model = jc.override(CONFIG, freeze=("stem",)), Staged(late, remat)
    before, after = started(model, config=config), fit(model, config=config)[-1][0]
    for part in ("params", "model_state"):
        old, new = (getattr(state, part) for state in (before, after))
        old, new = (tree["batch_stats"] if part == "model_state" else tree for tree in (old, new))
        jax.tree.map(np.testing.assert_array_equal, old["stem"], new["stem"])
    assert (
        before.model_state["batch_stats"]["stage1_norm"]["var"]
        != after.model_state["batch_stats"]["stage1_norm"]["var"]
    ).all()


@pytest.mark.slow
def test_a_frozen_stage_of_flax_s_bn_normalizes_by_its_moving_averages():
    """The whole network frozen but for its head has in training the outputs of test."""
    config = jc.override(CONFIG, freeze=("stem", "stage1"), num_steps=1, eval_every=1)
    model = Staged()
    state = started(model, config=config)
    moved = jax.tree.map(lambda x: x + np.float32(0.5), state.model_state)
    step = jc.make_train_step(
        model,
        jc.create_optimizer(OPTIMIZER),
        freeze=("stem", "stage1"),
    )
    one = jax.jit(step)(state._replace(model_state=moved), DATA.train, jnp.arange(21))
    tested = jc.evaluate(model, state._replace(model_state=moved), TEST)
    np.testing.assert_allclose(float(one.metrics.loss), float(tested.loss), rtol=1e-6)
    unfrozen = started(model)._replace(model_state=moved)
    step = jc.make_train_step(model, jc.create_optimizer(OPTIMIZER))
    free = jax.jit(step)(unfrozen, DATA.train, jnp.arange(21))
    assert abs(float(free.metrics.loss) / float(tested.loss) - 1) > 1e-3


@pytest.mark.slow
def test_a_frozen_stage_with_other_statistics_is_refused(uncompiled):
    class Centred(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            mean = self.variable("batch_stats", "centre", lambda: jnp.zeros(x.shape[1:]))
            if train:
                mean.value = x.mean(0)
            return nn.Dense(3)(x - mean.value[None])

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(4, name="head")(Centred(name="stem")(x, train).reshape(len(x), -1))

    config = jc.override(CONFIG, freeze=("stem",))
    refused(lambda: fit(Model(), config=config), "batch_stats.stem.centre is not of a BatchNorm")
    refused(
        lambda: jc.recompute_batch_stats(Model(), started(Model()), DATA.train, 16, batch_size=8),
        "batch_stats.stem.centre",
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_precise_bn_of_flax_s_bn_is_the_average_over_batches(kind):
    model, strategy = Net(norm=True), jc.strategy(kind, 2)
    state = fit(model)[-1][0]
    exact = jc.recompute_batch_stats(model, state, DATA.train, 24, batch_size=8, strategy=strategy)
    kernel, bias = (state.params["Conv_0"][name] for name in ("kernel", "bias"))
    inputs = augment.normalize(IMAGES[:24], state.normalizer)
    maps = np.asarray(
        jax.lax.conv_general_dilated(
            inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    maps = maps.astype(np.float64) + bias
    found = exact.model_state["batch_stats"]["stem_norm"]
    np.testing.assert_allclose(found["mean"], maps.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["var"], maps.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.slow
def test_precise_bn_of_a_config_works_with_flax_s_bn_and_refuses_none():
    config = jc.override(CONFIG, recompute_batch_stats=16)
    assert np.isfinite(fit(Net(norm=True), config=config)[-1][1]["precise_eval_loss"])
    refused(lambda: fit(Net(), config=config), "Net has no BN to average")


# Own optimizers (C5).


def labels(params):
    return {name: "head" if name == "head" else "rest" for name in params}


def injected(rate):
    return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)


TXS = {
    "two rates": (
        lambda: optax.partition({"head": injected(0.1), "rest": injected(0.2)}, labels),
        None,
    ),
    "one rate twice": (
        lambda: optax.partition({"head": injected(0.1), "rest": injected(0.1)}, labels),
        0.1,
    ),
    "rate in a chain": (lambda: optax.chain(optax.clip(1.0), injected(0.1)), 0.1),
    "MultiSteps": (lambda: optax.MultiSteps(optax.adam(1e-2), 2), None),
    "MultiSteps of a rate": (lambda: optax.MultiSteps(injected(0.1), 2), 0.1),
    "lbfgs": (lambda: optax.lbfgs(), None),
    "backtracking": (
        lambda: optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5)),
        None,
    ),
    "masked": (lambda: optax.masked(optax.adam(0.1), {"Conv_0": True, "head": False}), None),
    "ema": (lambda: optax.chain(optax.adam(0.1), optax.ema(0.9)), None),
    "schedule": (lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 4), 0.9), None),
}


@pytest.mark.slow
@pytest.mark.quick_compilation
@pytest.mark.parametrize("name", TXS)
def test_own_optimizers_train_and_their_states_come_back(name, tmp_path):
    make, rate = TXS[name]
    tx = make()
    run = jc.train(Net(), tx, DATA, CONFIG, strategy=jc.strategy(devices=1))
    (state, row), (last, _) = run
    assert row is not None
    assert row["rate"] == rate == current_learning_rate(state.opt_state)
    assert any(
        (a != b).any()
        for a, b in zip(
            jax.tree.leaves(started(Net()).params), jax.tree.leaves(last.params), strict=True
        )
    )
    with jc.Checkpoints(tmp_path / "run") as saved:
        saved.save(state)
        back = saved.restore(started(Net(), tx))
    assert back is not None
    jax.tree.map(np.testing.assert_array_equal, state, back)
    again = list(
        jc.train(Net(), tx, DATA, CONFIG, resume=lambda _: back, strategy=jc.strategy(devices=1))
    )
    jax.tree.map(np.testing.assert_array_equal, last, again[-1][0])


@pytest.mark.slow
def test_multisteps_is_one_step_on_the_averaged_gradient():
    model = Net()
    state, tx = (
        started(model, optax.MultiSteps(optax.sgd(0.1), 2)),
        optax.MultiSteps(optax.sgd(0.1), 2),
    )
    step = jax.jit(jc.make_train_step(model, tx))
    half = step(state, DATA.train, jnp.arange(8))
    jax.tree.map(np.testing.assert_array_equal, half.params, state.params)
    both = step(half, DATA.train, jnp.arange(8, 16))
    plain = started(model, optax.sgd(0.1))
    whole = jax.jit(jc.make_train_step(model, optax.sgd(0.1)))(plain, DATA.train, jnp.arange(16))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        both.params,
        whole.params,
    )


@pytest.mark.slow
def test_lbfgs_lowers_the_loss_of_its_batch():
    model, tx = Net(), optax.lbfgs()
    step, state = jax.jit(jc.make_train_step(model, tx)), started(Net(), optax.lbfgs())
    losses = []
    for _ in range(6):
        state = step(state, DATA.train, jnp.arange(16))
        losses.append(float(state.metrics.loss))
        state = state._replace(metrics=jax.tree.map(jnp.zeros_like, state.metrics))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]


def test_one_line_for_what_is_no_transformation(uncompiled):
    values: list[tuple[Any, str]] = [
        (optax.adam, "the function adam"),
        (optax.MultiSteps, "the function MultiSteps"),
        ("adam", "tx is 'adam'"),
        (0.1, "of type float"),
        (optax.add_noise(0.1, 0.5, jax.random.key(0)), "typed random key"),
    ]
    for tx, words in values:
        refused(lambda tx=tx: fit(Net(), tx), words)
        refused(lambda tx=tx: started(Net(), tx), words)
        if "typed" not in words:
            refused(lambda tx=tx: jc.make_train_step(Net(), tx), words)


# States, exports, names, batches (C4, C12, C15).


@pytest.mark.slow
def test_evaluation_wants_constants_too_and_export_takes_a_state(tmp_path):
    model = Net(norm=True)
    state = fit(model)[-1][0]
    variables: Any = {"params": state.params, **state.model_state}
    for use in (
        lambda: jc.evaluate(model, variables, TEST),
        lambda: jc.predict(model, variables, IMAGES),
        lambda: jc.recompute_batch_stats(model, variables, DATA.train, 16, batch_size=8),
    ):
        refused(use, "state is a dict of variables", "Write normalizer=data")
    refused(
        lambda: jc.with_variables(variables, variables),
        "state is a dict of variables",
        "with_variables(init_state(",
    )
    wrong: Any = DATA
    refused(lambda: jc.evaluate(model, wrong, TEST), "of type Dataset")
    for name, given in (("state", state), ("variables", variables)):
        jc.export_weights(model, given, tmp_path / name)
    assert (tmp_path / "state").read_bytes() == (tmp_path / "variables").read_bytes()
    for given in (state.params, 3):
        with pytest.raises(jc.WeightsError, match="expected a State, or the collections"):
            jc.export_weights(model, given, tmp_path / "none")
    jax.tree.map(
        np.testing.assert_array_equal, jc.with_variables(started(model), state).params, state.params
    )


@pytest.mark.slow
def test_an_exported_state_is_the_one_that_is_judged(tmp_path):
    tx = jc.create_optimizer(jc.override(OPTIMIZER, name="lookahead"))
    state = fit(Net(), tx)[-1][0]
    slow = eval_state(state)
    jc.export_weights(Net(), state, tmp_path / "a")
    jc.export_weights(Net(), {"params": slow.params}, tmp_path / "b")
    jc.export_weights(Net(), {"params": state.params}, tmp_path / "c")
    assert (
        (tmp_path / "a").read_bytes()
        == (tmp_path / "b").read_bytes()
        != (tmp_path / "c").read_bytes()
    )


@pytest.mark.slow
def test_a_network_has_the_name_it_is_given():
    class Around(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(4, name="head")(
                jc.create_model("plain8", 5, width=2, name="backbone")(x, train)
            )

    assert set(started(Around()).params) == {"backbone", "head"}
    for name in (3, "", "a/b"):
        refused(lambda name=name: jc.create_model("plain8", 5, name=name), "expected a text")


def test_batches_of_large_images_are_small():
    sides = [
        resolve_batch_size(np.empty((1, side, side, 3), np.uint8))
        for side in (8, 32, 64, 224, 4000)
    ]
    assert sides == [500, 500, 500, 40, 1]
    state = started(Net())
    for batch in (0, -1, 2.5, "x", True):
        use: Any = batch
        refused(
            lambda use=use: jc.predict(Net(), state, IMAGES, batch_size=use),
            "batch_size is",
            "Write batch_size=",
        )
        refused(
            lambda use=use: jc.evaluate(Net(), state, TEST, batch_size=use),
            "batch_size is",
            "Write batch_size=",
        )


def test_evaluation_and_prediction_take_the_default_batch(monkeypatch):
    asked = []
    filled = parallel.padded_batches
    monkeypatch.setattr(sys.modules["jaxcnn.evaluation"], "MAX_PIXELS", 5 * 16)
    monkeypatch.setattr(
        parallel,
        "padded_batches",
        lambda n, batch, devices: asked.append(batch) or filled(n, batch, devices),
    )
    state = started(Net())
    jc.evaluate(Net(), state, TEST, strategy=jc.strategy(devices=1))
    jc.predict(Net(), state, IMAGES)
    assert asked == [5, 5]


WIDE = """
import sys, jax, numpy as np, optax, jaxcnn as jc
import flax.linen as nn
assert jax.config.jax_enable_x64
class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(10)(nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1)))
data, strategy = jc.load_dataset("digits"), jc.strategy(devices=1)
optimizer = jc.OptimizerConfig(milestones=())
config = jc.TrainConfig(batch_size=8, num_steps=2, eval_every=1, augment=jc.AugmentConfig(crop="resized", min_area=0.5))
def dtypes(state):
    return {jax.tree_util.keystr(path): str(leaf.dtype) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
mlp = jc.create_model("mlp", 10, hidden=[4])
runs = [(name, mlp, jc.create_optimizer(jc.override(optimizer, name=name))) for name in sys.argv[2:]]
runs += [("own", Net(), optax.chain(optax.adam(0.1), optax.ema(0.9)))]
runs += [("injected", Net(), optax.inject_hyperparams(optax.adamw)(learning_rate=0.1))]
for name, model, tx in runs:
    first = jc.init_state(model, tx, config, data)
    assert not [path for path, kind in dtypes(first).items() if kind == "float64"], name
    for state, _ in jc.train(model, tx, data, config, strategy=strategy):
        assert dtypes(state) == dtypes(first), (name, dtypes(state), dtypes(first))
    with jc.Checkpoints(sys.argv[1] + "/" + name) as saved:
        saved.save(state)
        back = saved.restore(first)
    jax.tree.map(np.testing.assert_array_equal, state, back)
print("kept")
"""


@pytest.mark.slow
def test_states_keep_their_dtypes_in_x64(tmp_path, quick_environment):
    names = ["noisy", "schedule-free", "muon"]
    env = os.environ | {"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "standard"}
    env |= quick_environment  # dtypes are of the program, not of its code
    done = subprocess.run(
        [sys.executable, "-c", WIDE, str(tmp_path), *names],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip() == "kept", done.stderr[-2000:]
