"""A state is resumed under the config's rate, seed and normalizer: others are refused, or replaced on purpose."""

import json
import math
from typing import Any

import jax
import numpy as np
import optax
import pytest
from scripts import train_config

import jaxcnn as jc
from jaxcnn.state import init_state

CONFIG = jc.override(
    jc.ExperimentConfig(),
    dataset="digits",
    model="mlp",
    model_kwargs={"hidden": [4]},
    batch_size=64,
    num_steps=4,
    eval_every=2,
    learning_rate=0.05,
    milestones=(),
)
MODEL = jc.create_model("mlp", 10, hidden=[4])


@pytest.fixture(scope="module")
def data():
    return jc.load_dataset("digits")


@pytest.fixture(scope="module")
def strategy():
    return jc.strategy("jit", devices=1)


@pytest.fixture(scope="module")
def half(data, strategy):
    """The state after two of four steps."""
    return next(
        train_config(
            MODEL,
            CONFIG,
            data,
            strategy=strategy,
        )
    )[0]


def bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"learning_rate": 0.0005, "num_steps": 8},
            "learning_rate is 0.05 in the state and 0.0005 in the run",
        ),
        ({"seed": 3}, "seed is 0 in the state and 3 in the run"),
        (
            {"subtract_mean": (0.5,), "divide_std": (0.25,)},
            "subtract_mean is 'pixel' (0.3055 on average) in the state and (0.5,) with std (0.25,) "
            "(0.5",
        ),
        (
            {"subtract_mean": "none"},
            "subtract_mean is 'pixel' (0.3055 on average) in the state and 'none' (0 on average) "
            "in the run",
        ),
        (
            {"divide_std": True, "subtract_mean": "channel"},
            "subtract_mean is 'pixel' (0.3055 on average) in the state and 'channel' with std True "
            "(0.3055",
        ),
    ],
)
def test_a_state_of_other_numbers_is_refused_with_both_values(
    data, strategy, half, change, says, monkeypatch
):
    config = jc.override(CONFIG, **change)
    monkeypatch.setattr("jaxcnn.training._trainer", lambda *a: pytest.fail("it compiled"))
    with pytest.raises(jc.ArgumentError) as error:
        train_config(
            MODEL,
            config,
            data,
            strategy=strategy,
            resume=lambda like: half,
        )
    assert says in str(error.value)
    assert "warm_start=True" in str(error.value)
    assert "\n" not in str(error.value)


def test_all_that_differs_is_named_at_once(data, strategy, half):
    config = jc.override(CONFIG, learning_rate=0.1, seed=3, subtract_mean="none")
    with pytest.raises(
        jc.ArgumentError, match=r"learning_rate is 0.05 .*, seed is 0 .*, subtract_mean is 'pixel' "
    ):
        train_config(
            MODEL,
            config,
            data,
            strategy=strategy,
            resume=lambda like: half,
        )


def test_data_of_another_mean_are_refused(data, strategy, half):
    other = data._replace(mean=data.mean / 2)
    with pytest.raises(
        jc.ArgumentError,
        match=r"subtract_mean is of other data .*\(mean 0.3055 .* and 'pixel' \(0.1527 on average\)",
    ):
        train_config(
            MODEL,
            CONFIG,
            other,
            strategy=strategy,
            resume=lambda like: half,
        )


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_more_steps_and_another_end_of_the_schedule_are_fine(data, strategy, schedule):
    """The rate falls with the steps; what the schedule multiplies is what must be the config's."""
    config = jc.override(CONFIG, schedule=schedule)
    middle = next(
        train_config(
            MODEL,
            config,
            data,
            strategy=strategy,
        )
    )[0]
    longer = jc.override(config, num_steps=6)
    rest = list(
        train_config(
            MODEL,
            longer,
            data,
            strategy=strategy,
            resume=lambda like: middle,
        )
    )
    assert [row["step"] for _, row in rest if row] == [4, 6]


def test_a_warm_start_takes_the_configs_numbers_and_keeps_the_rest(data, strategy, half, tmp_path):
    config = jc.override(CONFIG, learning_rate=0.0005, seed=3, subtract_mean="none", num_steps=6)
    tx, log = (
        jc.create_optimizer(config.optimizer, config.train.num_steps),
        jc.RunLog(tmp_path, config),
    )
    how: dict[str, Any] = {"strategy": strategy, "resume": lambda like: half, "warm_start": True}
    stopped, _ = next(jc.train(MODEL, tx, data, config.train, should_stop=lambda step: True, **how))
    assert int(stopped.step) == 3
    rows = []
    ends = []
    for state, row in jc.train(MODEL, tx, data, config.train, **how):
        assert row is not None
        ends.append(bits(state))
        rows.append(row)
        log.write(**row)
    assert [(row["step"], row["rate"]) for row in rows] == [(4, 0.0005), (6, 0.0005)]
    fresh = init_state(MODEL, tx, config.train, data)
    assert bits((stopped.rng, stopped.normalizer)) == bits((fresh.rng, fresh.normalizer))
    changed = {"learning_rate": [0.05, 0.0005], "seed": [0, 3]}
    (record,) = json.loads((tmp_path / "run.json").read_text())["warm_starts"]
    assert record["step"] == 2
    assert record["changed"].items() >= changed.items()
    assert record["changed"]["subtract_mean"][1] == "'none' (0 on average)"
    # What it made is the config's own now, and goes on exactly, whether or not it is started so
    # again.
    for warm in (False, True):
        how = {"strategy": strategy, "resume": lambda like: stopped, "warm_start": warm}
        *_, (again, _) = jc.train(MODEL, tx, data, config.train, **how)
        assert bits(again) == ends[-1]


@pytest.mark.quick_compilation
def test_a_warm_start_goes_on_with_larger_images(data, strategy):
    """The parameters of a convolutional network fit images of any size; the mean image does not."""

    def enlarged(split):
        return jc.Split(split.images.repeat(2, 1).repeat(2, 2), split.labels)

    splits = [enlarged(split) for split in (data.train, data.test)]
    large = jc.dataset(splits[0], splits[1], num_classes=data.num_classes)
    model, config = jc.create_model("resnet8", 10, width=2), jc.TrainConfig(num_steps=2)
    tx = jc.create_optimizer(jc.OptimizerConfig(milestones=()), 4)
    *_, (state, _) = jc.train(model, tx, data, config, strategy=strategy)
    more = jc.override(config, num_steps=3)
    how: dict[str, Any] = {"strategy": strategy, "resume": lambda initial: state}
    with pytest.raises(
        jc.ArgumentError, match=r"subtract_mean is of other data .* warm_start=True"
    ):
        jc.train(model, tx, large, more, **how)
    *_, (after, row) = jc.train(model, tx, large, more, warm_start=True, **how)
    assert row is not None
    assert math.isfinite(row["eval_loss"])
    np.testing.assert_array_equal(after.normalizer.mean, large.mean)


def test_a_warm_start_from_the_configs_own_state_changes_nothing(data, strategy, half):
    tx = jc.create_optimizer(CONFIG.optimizer, CONFIG.train.num_steps)
    ends = []
    for warm in (False, True):
        *_, (state, _) = jc.train(
            MODEL,
            tx,
            data,
            CONFIG.train,
            strategy=strategy,
            resume=lambda like: half,
            warm_start=warm,
        )
        ends.append(bits(state))
    assert ends[0] == ends[1]


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_injected_rate_is_compared_and_a_scheduled_one_is_not(data, strategy, wrapped):
    def made(rate):
        tx = optax.inject_hyperparams(optax.sgd)(rate)
        return optax.chain(optax.clip(1.0), tx) if wrapped else tx

    before = init_state(MODEL, made(0.05), CONFIG.train, data)
    with pytest.raises(
        jc.ArgumentError, match=r"learning_rate is 0.05 in the state and 0.0005 in the run"
    ):
        jc.train(
            MODEL, made(0.0005), data, CONFIG.train, strategy=strategy, resume=lambda like: before
        )
    _, row = next(
        jc.train(
            MODEL,
            made(0.0005),
            data,
            CONFIG.train,
            strategy=strategy,
            resume=lambda like: before,
            warm_start=True,
        )
    )
    assert row is not None
    assert row["rate"] == 0.0005

    def falling(rate):
        return made(optax.exponential_decay(rate, 1, 0.5))

    middle = next(jc.train(MODEL, falling(0.05), data, CONFIG.train, strategy=strategy))[0]
    _, row = next(
        jc.train(
            MODEL, falling(0.05), data, CONFIG.train, strategy=strategy, resume=lambda like: middle
        )
    )
    assert row is not None
    assert row["rate"] == 0.05 / 8


def test_the_state_of_another_model_or_optimizer_is_one_line(data, strategy, half):
    for tx, says in (
        (optax.adam(0.1), r"has opt.*expected"),
        (jc.create_optimizer(jc.override(CONFIG, optimizer="adam").optimizer), "has opt"),
    ):
        with pytest.raises(jc.ArgumentError, match=f"the state to resume {says}") as error:
            jc.train(MODEL, tx, data, CONFIG.train, strategy=strategy, resume=lambda like: half)
        assert "\n" not in str(error.value)
    wide = jc.create_model("mlp", 10, hidden=[5])
    with pytest.raises(jc.ArgumentError, match=r"has params.*of shape \(.*4.*expected \(.*5"):
        train_config(
            wide,
            CONFIG,
            data,
            strategy=strategy,
            resume=lambda like: half,
        )
