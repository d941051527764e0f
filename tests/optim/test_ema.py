"""The moving average of the parameters: against NumPy, and where it is evaluated."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcnn as jc
from jaxcnn.checkpoint import Checkpoints
from jaxcnn.config import OptimizerConfig, as_dict
from jaxcnn.optim import eval_params, with_ema
from jaxcnn.optim.transforms import lookahead
from jaxcnn.state import eval_state, init_state, with_variables

MODEL = jc.create_model("mlp", 10, hidden=(8,))
CONFIG = jc.TrainConfig(num_steps=6, eval_every=2, batch_size=16)
train: Any = jc.train


def named(**changes):
    config = OptimizerConfig("momentum", learning_rate=0.1, weight_decay=0.0)
    return jc.create_optimizer(jc.override(config, **changes))


def leaves_close(a, b, **tolerance: Any):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance)


def bits_equal(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# ------------------------------------------------------------------ the average


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999, 0.99999])
@pytest.mark.parametrize("debias", [True, False])
def test_the_average_is_the_weighted_mean_of_where_it_went(decay, debias):
    """The closed form in float64: weights (1 - d) d^(t - i), and what they lack of 1 is the start's, or is divided out."""
    rng = np.random.default_rng(0)
    moves = rng.normal(size=(40, 3)).astype(np.float32)
    tx = with_ema(optax.identity(), decay, debias)
    params = jnp.asarray(rng.normal(size=3), jnp.float32)
    state, went = tx.init(params), [np.asarray(params, np.float64)]
    np.testing.assert_array_equal(eval_params(state, params), params)
    for t, move in enumerate(moves, 1):
        updates, state = tx.update(jnp.asarray(move), state, params)
        params = optax.apply_updates(params, updates)
        went.append(np.asarray(params, np.float64))
        weights = (1 - decay) * decay ** np.arange(t - 1, -1, -1.0)
        mean = weights @ np.stack(went[1:])
        expected = mean / (1 - decay**t) if debias else mean + decay**t * went[0]
        np.testing.assert_allclose(eval_params(state, params), expected, rtol=0, atol=2e-6)


def test_it_is_optax_ema_of_the_parameters():
    tx, ema = with_ema(optax.sgd(0.3), 0.8), optax.ema(0.8, debias=True)
    params = {"w": jnp.arange(4.0)}
    state, ema_state = tx.init(params), ema.init(params)
    for _ in range(10):
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        params = optax.apply_updates(params, updates)
        with jax.numpy_dtype_promotion("standard"):
            average, ema_state = ema.update(params, ema_state)
        leaves_close(eval_params(state, params), average, rtol=0, atol=1e-6)


def test_a_narrow_parameter_has_a_wide_average():
    """In bfloat16, 1 + 0.001 (2 - 1) is 1, for ever."""
    tx = with_ema(optax.identity(), 0.999, debias=False)
    params = jnp.ones(3, jnp.bfloat16)
    state = tx.init(params)
    for _ in range(200):
        _, state = tx.update(jnp.zeros(3, jnp.bfloat16), state, 2 * params)
    average = eval_params(state, params)
    assert average.dtype == jnp.bfloat16
    np.testing.assert_allclose(average.astype(np.float32), 2 - 0.999**200, atol=4e-3)


# ------------------------------------------------------------------ training


def numpy_logits(params, data):
    """The outputs of the small network, in NumPy."""
    x = (data.test.images / 255 - data.mean).reshape(len(data.test.images), -1)
    first, second = params["hidden1"], params["head"]
    return np.tanh(x @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_rows_evaluate_and_predict_use_the_average_and_training_does_not(data, one, tmp_path):
    plain = list(train(MODEL, named(), data, jc.override(CONFIG, eval_every=1), strategy=one))
    config = jc.override(CONFIG, eval_every=1)
    seen = list(
        train(MODEL, named(ema_decay=0.7), data, config, strategy=one, run_dir=tmp_path / "run")
    )
    # What is trained, and what the training figures are of, is the same to the bit.
    for (state, row), (other, other_row) in zip(plain, seen, strict=True):
        assert bits_equal(state.params, other.params)
        assert row["train_loss"] == other_row["train_loss"]
        assert row["rate"] == other_row["rate"] == 0.1
    weights = 0.3 * 0.7 ** np.arange(5, -1, -1.0) / (1 - 0.7**6)
    went = [state.params for state, _ in plain]
    average = jax.tree.map(lambda *w: np.tensordot(weights, np.stack(w), 1), *went)
    state, row = seen[-1]
    leaves_close(eval_state(state).params, average, rtol=0, atol=1e-6)
    logits = numpy_logits(average, data)
    np.testing.assert_allclose(jc.predict(MODEL, state, data.test.images), logits, atol=2e-5)
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(logits)), data.test.labels]
    assert row["eval_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert jc.evaluate(MODEL, state, data.test).mean_loss == pytest.approx(losses.mean(), rel=1e-5)
    # The raw parameters would give another figure.
    assert abs(plain[-1][1]["eval_loss"] - row["eval_loss"]) > 1e-3
    # The best checkpoint is that of the average's best row.
    errors = {row["step"]: row["eval_error"] for _, row in seen}
    with Checkpoints(tmp_path / "run" / "checkpoints") as saved:
        best = saved.best(init_state(MODEL, named(ema_decay=0.7), config, data))
    assert best is not None
    assert errors[int(best.step)] == min(errors.values())


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_export_writes_the_average(data, one, tmp_path):
    network, file = jc.create_model("plain8", 10, width=2), tmp_path / "w.safetensors"
    config = jc.override(CONFIG, num_steps=2)
    *_, (state, _) = train(network, with_ema(optax.sgd(0.1), 0.5), data, config, strategy=one)
    jc.export_weights(network, state, file)
    loaded: Any = jc.load_weights(network, file, (8, 8, 1))
    assert bits_equal(loaded["params"], eval_state(state).params)
    assert not bits_equal(loaded["params"], state.params)


@pytest.mark.quick_compilation
@pytest.mark.parametrize(
    "make",
    [
        lambda: named(ema_decay=0.7),
        lambda: with_ema(optax.adam(0.01), 0.7, debias=False),
        lambda: optax.MultiSteps(with_ema(optax.adam(0.01), 0.7), 2),
    ],
    ids=["named", "biased", "accumulated"],
)
def test_a_resumed_run_has_the_same_bits(make, data, one, tmp_path):
    options = {"strategy": one, "run_dir": tmp_path / "b"}
    *_, (whole, _) = train(MODEL, make(), data, CONFIG, strategy=one, run_dir=tmp_path / "a")
    list(train(MODEL, make(), data, CONFIG, should_stop=lambda step: step == 3, **options))
    *_, (resumed, _) = train(MODEL, make(), data, CONFIG, **options)
    assert bits_equal(whole, resumed)
    rows = [jc.read_metrics(tmp_path / name) for name in "ab"]
    assert [row["eval_loss"] for row in rows[0]] == [row["eval_loss"] for row in rows[1]]


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_eight_devices_have_the_average_of_one(kind, data, one):
    tx = named(ema_decay=0.7)
    *_, (a, _) = train(MODEL, tx, data, CONFIG, strategy=one)
    *_, (b, _) = train(MODEL, tx, data, CONFIG, strategy=jc.strategy(kind, 8))
    leaves_close(eval_state(a).params, eval_state(b).params, rtol=0, atol=1e-6)
    assert not bits_equal(eval_state(a).params, a.params)


def test_accumulated_steps_count_once(data, one):
    """Two batches make an update, and the average is of the three updates of six batches."""
    config = jc.override(CONFIG, eval_every=1)
    tx = optax.MultiSteps(with_ema(optax.sgd(0.1), 0.7), 2)
    states = [state for state, _ in train(MODEL, tx, data, config, strategy=one)]
    went = [states[i].params for i in (1, 3, 5)]
    weights = 0.3 * 0.7 ** np.arange(2, -1, -1.0) / (1 - 0.7**3)
    average = jax.tree.map(lambda *w: np.tensordot(weights, np.stack(w), 1), *went)
    leaves_close(eval_state(states[-1]).params, average, rtol=0, atol=1e-6)


def test_frozen_stages_have_no_average_and_are_evaluated_as_they_are(data, one):
    config = jc.override(CONFIG, freeze=("hidden1",))
    *_, (state, row) = train(MODEL, named(ema_decay=0.7), data, config, strategy=one)
    params = eval_state(state).params
    assert params["hidden1"] is state.params["hidden1"]
    assert not bits_equal(params["head"], state.params["head"])
    assert row["eval_loss"] == pytest.approx(jc.evaluate(MODEL, state, data.test).mean_loss)


@pytest.mark.quick_compilation
def test_a_part_of_the_parameters_can_have_an_average(data, one):
    labels = lambda params: {name: name for name in params}  # noqa: E731
    tx = optax.partition({"hidden1": with_ema(optax.sgd(0.1), 0.7), "head": optax.sgd(0.1)}, labels)
    *_, (state, _) = train(MODEL, tx, data, CONFIG, strategy=one)
    *_, (whole, _) = train(MODEL, named(momentum=0.0, ema_decay=0.7), data, CONFIG, strategy=one)
    params = eval_state(state).params
    leaves_close(params["hidden1"], eval_state(whole).params["hidden1"], rtol=0, atol=1e-6)
    assert bits_equal(params["head"], state.params["head"])


# ------------------------------------------------------------------ the start of a run


def part_of_the_head(tx):
    """A transformation of the head alone, in whose state the other layers are masked."""
    return optax.partition(
        {"head": tx, "rest": optax.sgd(0.1)},
        lambda params: {name: "head" if name == "head" else "rest" for name in params},
    )


@pytest.mark.parametrize(
    "tx",
    [
        with_ema(optax.adam(0.1)),
        named(ema_decay=0.9),
        optax.contrib.prodigy(1.0),
        part_of_the_head(with_ema(optax.sgd(0.1), debias=False)),
        part_of_the_head(optax.contrib.prodigy(1.0)),
    ],
)
def test_a_run_that_starts_from_other_variables_averages_from_there(tx, data):
    config = jc.override(CONFIG, freeze=("hidden1",))
    state = init_state(MODEL, tx, config, data)
    other = init_state(MODEL, tx, jc.override(config, seed=1), data)
    started = with_variables(state, other)
    # The state is the one that the optimizer would have made of these parameters.
    assert bits_equal(started.opt_state, other.opt_state)
    assert bits_equal(eval_state(started).params, other.params)


def test_other_variables_are_refused_while_sam_is_aside(data, one):
    """Its cache would still be evaluated."""
    tx = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05))
    other = init_state(MODEL, tx, jc.override(CONFIG, seed=1), data)
    begun = with_variables(init_state(MODEL, tx, CONFIG, data), other)
    assert bits_equal(eval_state(begun).params, other.params)
    config = jc.override(CONFIG, num_steps=1, eval_every=1)
    *_, (state, _) = train(MODEL, tx, data, config, strategy=one)
    with pytest.raises(jc.ArgumentError, match="keeps parameters of its own"):
        with_variables(state, other)


def test_later_other_variables_are_refused(data, one):
    *_, (state, _) = train(MODEL, named(ema_decay=0.7), data, CONFIG, strategy=one)
    with pytest.raises(jc.ArgumentError, match="keeps parameters of its own"):
        with_variables(state, state)


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("decay", "debias", "says"),
    [
        (0, True, "decay is 0; expected a number above 0 and below 1"),
        (1.0, True, "decay is 1.0; expected"),
        (True, True, "decay is True; expected"),
        ("0.9", True, "decay is '0.9'; expected"),
        (float("nan"), True, "decay is nan; expected"),
        (0.9, 1, "debias is 1; expected True or False"),
    ],
)
def test_wrong_arguments_are_one_line(decay, debias, says):
    with pytest.raises(jc.ArgumentError, match=says):
        with_ema(optax.sgd(0.1), decay, debias)
    with pytest.raises(jc.ArgumentError, match="tx is the function adam"):
        with_ema(optax.adam)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "tx",
    [
        lambda: with_ema(lookahead(optax.sgd(0.1), 5, 0.5)),
        lambda: lookahead(with_ema(optax.sgd(0.1)), 5, 0.5),
        lambda: with_ema(optax.contrib.schedule_free(optax.sgd(0.1), 0.1)),
        lambda: with_ema(with_ema(optax.sgd(0.1))),
        lambda: with_ema(optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05))),
    ],
)
def test_an_average_of_an_average_is_refused(tx, data):
    with pytest.raises(jc.ArgumentError, match="both are evaluated at parameters of their own"):
        init_state(MODEL, tx(), CONFIG, data)


@pytest.mark.parametrize("name", ["lookahead", "schedule-free"])
def test_by_name_too(name):
    with pytest.raises(jc.ArgumentError, match=f"ema_decay is 0.9, but {name} is evaluated at"):
        jc.create_optimizer(OptimizerConfig(name, ema_decay=0.9))


@pytest.mark.parametrize("value", [-0.1, 1.0, True, "0.9"])
def test_a_decay_out_of_bounds_is_refused(value):
    with pytest.raises(jc.ArgumentError, match="ema_decay is"):
        OptimizerConfig(ema_decay=value)


# ------------------------------------------------------------------ records


@pytest.mark.quick_compilation
def test_records_without_an_average_are_what_they_were(data, one, tmp_path):
    config = jc.ExperimentConfig(dataset="digits", model="mlp", train=CONFIG)
    assert "ema_decay" not in config.to_json()
    assert "ema_decay" not in json.dumps(as_dict(config))
    averaged = jc.override(config, ema_decay=0.99)
    assert json.loads(averaged.to_json())["optimizer"]["ema_decay"] == 0.99
    for each in (config, averaged):
        assert jc.ExperimentConfig.from_json(each.to_json()) == each
    jc.RunLog(tmp_path / "a", config)
    assert "ema_decay" not in "".join(p.read_text() for p in (tmp_path / "a").glob("*.json"))


@pytest.mark.quick_compilation
@pytest.mark.parametrize("values", [(0.0, 0.99), (0.99, 0.0), (0.9, 0.99)])
def test_a_folder_refuses_another_average(values, data, one, tmp_path):
    for folder, model in (("named", "mlp"), ("own", "another name")):
        old, new = (
            jc.ExperimentConfig(
                dataset="digits",
                model=model,
                optimizer=OptimizerConfig(ema_decay=value),
                train=CONFIG,
            )
            for value in values
        )
        jc.RunLog(tmp_path / folder, old)
        with pytest.raises(
            jc.ArgumentError, match=rf"ema_decay \({values[0]} there, {values[1]} here\)"
        ):
            jc.RunLog(tmp_path / folder, new)
    options = {"run_dir": tmp_path / "run", "strategy": one}
    first, second = (named(ema_decay=value) for value in values)
    next(iter(train(MODEL, first, data, CONFIG, **options)))
    with pytest.raises(jc.ArgumentError, match="ema_decay"):
        train(MODEL, second, data, CONFIG, **options)
