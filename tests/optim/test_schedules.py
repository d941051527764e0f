"""Each schedule against its formula in NumPy, and the rates that a run reports."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcnn as jc
from jaxcnn.config import OptimizerConfig
from jaxcnn.optim import SCHEDULES, create_optimizer, current_learning_rate, scale_by_scheduled_rate

ONE = {"kernel": jnp.float32(1)}
AT = np.arange(140)  # of 140 steps: cycles of 20, 40 and 80; a warm-up of 14; a peak at 42


def half_cosine(share):
    return (1 + np.cos(np.pi * share)) / 2


def constant(t):
    return np.ones(len(t))


def step(t):
    return 0.5 ** ((t >= 30) + 1.0 * (t >= 90))


def exponential(t):
    return np.exp(np.log(0.01) * t / 140)


def cosine(t):
    return half_cosine(t / 140)


def one_cycle(t):
    """Up from 1/25 to 1 over the first 30%, then down to 1/250,000, both along half a cosine."""
    up, down = half_cosine(t / 42), half_cosine((t - 42) / 98)
    return np.where(t < 42, 1 + (1 / 25 - 1) * up, 4e-6 + (1 - 4e-6) * down)


def restarts(t):
    """Loshchilov and Hutter 2017, eq. 5, with T_0 = 20 and T_mult = 2."""
    begin, length = (
        np.select([t < 20, t < 60], [0, 20], 60),
        np.select([t < 20, t < 60], [20, 40], 80),
    )
    return half_cosine((t - begin) / length)


def warmup(t):
    return np.minimum(t / 14, 1)


FORMULAS = {"constant": constant, "step": step, "exponential": exponential, "cosine": cosine}
FORMULAS |= {"one-cycle": one_cycle, "restarts": restarts, "warmup": warmup, "plateau": constant}


def config_of(schedule: str, **changes: Any) -> OptimizerConfig:
    config = OptimizerConfig(
        "sgd",
        schedule=schedule,
        weight_decay=0.0,
        learning_rate=0.2,
        milestones=(30, 90),
        gamma=0.5,
    )
    return jc.override(config, **changes)


def rates(config: OptimizerConfig, values=None, num_steps=140) -> np.ndarray:
    """The rates at which the config steps, as its updates show them and as its state reports them."""
    tx = create_optimizer(config, num_steps)
    state, taken = tx.init(ONE), []
    update: Any = jax.jit(lambda state, value: tx.update(ONE, state, ONE, value=value))
    for value in np.ones(num_steps) if values is None else values:
        with jax.numpy_dtype_promotion("standard"):  # as make_step does
            updates, state = update(state, jnp.float32(value))
        taken.append(-float(updates["kernel"]))
        assert current_learning_rate(state) == pytest.approx(taken[-1], rel=1e-6, abs=1e-12)
    return np.array(taken)


def test_every_schedule_is_compared():
    assert set(FORMULAS) == set(SCHEDULES)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FORMULAS if name != "plateau"])
def test_a_schedule_is_its_formula_at_every_step(name):
    np.testing.assert_allclose(
        rates(config_of(name)), 0.2 * FORMULAS[name](AT), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(
    ("name", "begin", "middle", "last"),
    [
        ("constant", 1, 1, 1),
        ("step", 1, 0.5, 0.25),
        ("exponential", 1, 0.1, 0.01),
        ("cosine", 1, 0.5, 0),
        ("one-cycle", 0.04, None, 4e-6),
        ("restarts", 1, None, 0),
        ("warmup", 0, 1, 1),
        ("plateau", 1, 1, 1),
    ],
)
def test_where_a_schedule_begins_and_ends(name, begin, middle, last):
    factor = SCHEDULES[name](config_of(name), 140)
    with jax.numpy_dtype_promotion("standard"):
        found = [np.asarray(factor(jnp.float32(t))).item() for t in (0, 70, 140)]
    for share, expected in zip(found, (begin, middle, last), strict=True):
        assert expected is None or share == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_one_cycle_has_its_peak_at_thirty_percent():
    taken = rates(config_of("one-cycle"))
    assert taken.argmax() == 42
    assert taken.max() == pytest.approx(0.2, rel=1e-6)
    assert (np.diff(taken[:43]) > 0).all()
    assert (np.diff(taken[42:]) < 0).all()


def test_restarts_are_three_cycles_each_twice_as_long():
    taken = rates(config_of("restarts"))
    begins = [0, *(np.flatnonzero(np.diff(taken) > 0) + 1)]
    assert np.diff([*begins, 140]).tolist() == [20, 40, 80]
    np.testing.assert_allclose(taken[begins], 0.2, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 11])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_shortest_runs_have_a_rate_too(name, steps):
    taken = rates(config_of(name, milestones=(1,)), num_steps=steps)
    assert np.isfinite(taken).all()
    assert (taken >= 0).all()
    assert taken.max() > 0 or (name, steps) == ("warmup", 1)  # whose only rate is its first


# Plateau: of 80 steps, windows are 2 steps long. The first mean is the best so far; the third that
# is no better lowers.


def test_on_a_plateau_the_rate_falls_after_three_windows_again_and_again():
    taken = rates(config_of("plateau"), np.full(80, 1.7), num_steps=80)
    falls = np.flatnonzero(np.diff(taken) < 0) + 1
    assert falls.tolist() == list(
        range(7, 80, 6)
    )  # the last step of windows 4, 7, ..., whose mean it completes
    np.testing.assert_allclose(
        taken[[0, *falls]], 0.2 * 0.5 ** np.arange(len(falls) + 1), rtol=1e-6
    )


def test_while_the_loss_falls_the_rate_stays():
    np.testing.assert_allclose(
        rates(config_of("plateau"), 0.99 ** np.arange(80), num_steps=80), 0.2, rtol=1e-6
    )


def test_a_fall_of_less_than_a_thousandth_is_a_plateau():
    slow, quick = (
        rates(config_of("plateau"), (1 - fall) ** np.arange(80), num_steps=80)
        for fall in (1e-4, 1e-3)
    )
    assert slow[-1] < 0.2 / 100
    np.testing.assert_allclose(quick, 0.2, rtol=1e-6)


def test_one_good_window_starts_the_count_again():
    losses = np.repeat(
        [2.0, 2, 2, 1, 1, 1, 1, 1], 2
    )  # means of windows: two without a better one, then a better one
    taken = rates(config_of("plateau"), losses, num_steps=80)
    assert (np.flatnonzero(np.diff(taken)) + 1).tolist() == [13]


def test_a_plateau_that_lowers_by_nothing_is_constant():
    np.testing.assert_allclose(rates(config_of("plateau", gamma=1), np.ones(20)), 0.2, rtol=1e-6)


def test_a_plateau_lowers_the_rate_of_any_schedule():
    lowering = optax.contrib.reduce_on_plateau(0.5, patience=1, rtol=1e-3)
    tx = scale_by_scheduled_rate(optax.sgd, 0.2, lambda t: 1 / (1 + t), plateau=lowering)
    state, taken = tx.init(ONE), []
    updates: Any
    for _ in range(4):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(ONE, state, ONE, value=jnp.float32(1))
        taken.append(-float(updates["kernel"]))
    np.testing.assert_allclose(taken, 0.2 * np.array([1, 0.5 / 2, 0.25 / 3, 0.125 / 4]), rtol=1e-6)


# In a run.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "cosine", "warmup", "one-cycle"])
def test_the_rows_of_a_run_report_the_rate_of_their_last_step(name):
    data = jc.load_dataset("digits")
    config = jc.TrainConfig(batch_size=32, num_steps=20, eval_every=4)
    tx = create_optimizer(config_of(name, milestones=(6, 12)), config.num_steps)
    model, strategy = jc.create_model("mlp", 10, hidden=[]), jc.strategy("jit", devices=1)
    rows = [row for _, row in jc.train(model, tx, data, config, strategy=strategy)]
    t = np.array([3, 7, 11, 15, 19])
    expected = {
        "step": 0.5 ** ((t >= 6) + 1.0 * (t >= 12)),
        "cosine": half_cosine(t / 20),
        "warmup": np.ones(5),
        "one-cycle": np.where(
            t < 6, 1 - 0.96 * half_cosine(t / 6), 4e-6 + (1 - 4e-6) * half_cosine((t - 6) / 14)
        ),
    }[name]
    np.testing.assert_allclose([row["rate"] for row in rows if row], 0.2 * expected, rtol=1e-5)


def test_the_rate_before_the_first_step_is_the_schedules():
    for name, formula in FORMULAS.items():
        state = create_optimizer(config_of(name), 140).init(ONE)
        assert current_learning_rate(state) == pytest.approx(0.2 * formula(AT[:1])[0], rel=1e-6)
