"""Divergence is noticed within a bounded number of steps, recorded with its step, and costs the step nothing."""

import json
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcnn as jc
from jaxcnn import divergence, parallel, runs
from jaxcnn.metrics import zeros

pytestmark = pytest.mark.quick_compilation

CONFIG = jc.override(
    jc.ExperimentConfig(),
    dataset="digits",
    model="mlp",
    batch_size=64,
    num_steps=400,
    eval_every=400,
    learning_rate=1e-3,
    milestones=(),
    padding=0,
    flip=False,
    weight_decay=0.0,
)


@pytest.fixture(scope="module")
def data():
    return jc.load_dataset("digits")


def scanning():
    """As on an accelerator."""
    strategy = parallel.Strategy("jit", jax.devices()[:1])
    strategy.scans = True
    return strategy


DRIVERS = {"loop": partial(jc.strategy, "jit", devices=1), "scan": scanning}


def spoiled(tx, step, harm):
    """`tx` whose updates are changed by `harm` from `step` on."""

    def update(updates, state, params=None, **extra):
        new, inner = tx.update(updates, state[1], params, **extra)
        worse = jax.tree.map(lambda u: jnp.where(state[0] >= step, harm(u), u), new)
        return worse, (state[0] + 1, inner)

    return optax.GradientTransformationExtraArgs(
        lambda params: (jnp.int32(0), tx.init(params)), update
    )


def rows(tx, data, strategy, config=CONFIG):
    model = jc.create_model("mlp", 10)
    return [row for _, row in jc.train(model, tx, data, config.train, strategy=strategy) if row]


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRIVERS)
@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda u: u * jnp.nan, "nan"),  # the parameters first, then the loss
        (lambda u: u * jnp.inf, "nan"),
        (lambda u: -1e3 * u, "above 23"),  # uphill: finite, and far past its start
    ],
)
def test_it_is_noticed_within_a_bounded_number_of_steps(data, kind, harm, why, monkeypatch):
    monkeypatch.setattr(divergence, "CHECK_EVERY", 50)
    monkeypatch.setattr(parallel, "MAX_SCAN_STEPS", 50)
    first, *later = rows(spoiled(optax.sgd(1e-3), 120, harm), data, DRIVERS[kind]())
    assert 120 < first["step"] <= 120 + 50
    assert why in first["diverged"]
    assert [row["step"] for row in later] == [
        400
    ]  # whoever goes on is not told again before the next row


def test_the_bounds_are_those_that_are_promised():
    assert (divergence.CHECK_EVERY, parallel.MAX_SCAN_STEPS) == (250, 500)


def test_parameters_lost_at_the_last_step_are_seen_though_no_loss_is(data, monkeypatch):
    """Nothing is computed with them any more, and a test loss may hide it: a ReLU can turn NaN to 0."""
    monkeypatch.setattr(
        "jaxcnn.training.make_eval_step", lambda *a: lambda *b: jax.tree.map(jnp.ones_like, zeros())
    )
    (row,) = rows(
        spoiled(optax.sgd(1e-3), 39, lambda u: u * jnp.nan),
        data,
        DRIVERS["loop"](),
        jc.override(CONFIG, num_steps=40),
    )
    assert row["diverged"] == "the parameters ['head']['bias'] are not finite"
    assert np.isfinite([row["train_loss"], row["grad_norm"], row["eval_loss"]]).all()


def test_a_healthy_run_says_nothing_and_its_numbers_are_those_of_an_unwatched_one(
    data, monkeypatch
):
    looks = []

    def noticed(*args):
        looks.append(int(args[1].fetch(args[0].step)))
        return real(*args)

    real = divergence.find_divergence
    monkeypatch.setattr(divergence, "find_divergence", noticed)
    monkeypatch.setattr(divergence, "CHECK_EVERY", 50)
    short = jc.override(CONFIG, num_steps=120, eval_every=100)
    watched = rows(
        jc.create_optimizer(short.optimizer, short.train.num_steps), data, DRIVERS["loop"](), short
    )
    assert looks == [50]  # At step 100 the row is due, which is looked at itself.
    assert not any("diverged" in row for row in watched)
    monkeypatch.setattr(divergence, "CHECK_EVERY", 10**9)
    alone = rows(
        jc.create_optimizer(short.optimizer, short.train.num_steps), data, DRIVERS["loop"](), short
    )
    assert [row["eval_loss"] for row in watched] == [row["eval_loss"] for row in alone]


def test_it_is_a_result_with_its_step_and_the_study_goes_on(data, tmp_path):
    all_runs = {
        "wild": jc.override(CONFIG, learning_rate=1e30),
        "tame": jc.override(CONFIG, num_steps=2),
    }
    results = runs.sweep(all_runs, data, tmp_path, strategy=DRIVERS["loop"]())
    assert results is not None
    assert (results["wild"]["status"], results["wild"]["step"]) == (
        "diverged",
        250,
    )  # of the 400 of its row
    assert results["tame"]["status"] == "finished"
    for path in (*tmp_path.glob("*/*.json"), *tmp_path.glob("*/*.jsonl")):
        for text in (
            path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        ):
            json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("loss", "norm", "test", "why"),
    [
        (np.nan, 1.0, 1.0, "train_loss is nan"),
        (1.0, np.inf, 1.0, "grad_norm is inf"),
        (1.0, 1.0, np.nan, "eval_loss is nan"),
        (24.0, 1.0, 1.0, "above 23"),
        (22.0, 1.0, 99.0, None),
    ],
)
def test_divergence_is_no_number_or_far_beyond_guessing(loss, norm, test, why):
    said = divergence.reason(
        {"train_loss": loss, "grad_norm": norm, "eval_loss": test}, guess=math.log(10)
    )
    assert said is None if why is None else why in (said or "")


def test_a_diverged_run_is_repeated_with_the_same_bits(data, tmp_path, monkeypatch):
    """A later call gives the same state and row. If it does not diverge, the result is replaced."""
    model, config = jc.create_model("mlp", 10), jc.TrainConfig(num_steps=6, eval_every=2)
    tx = jc.create_optimizer(jc.OptimizerConfig("sgd", 0.1, milestones=()), 6)
    options: Any = {"run_dir": tmp_path, "strategy": parallel.strategy("jit", 1)}

    def ends():
        *_, (state, row) = jc.train(model, tx, data, config, **options)
        result = json.loads((tmp_path / "result.json").read_text())
        rows = [each["step"] for each in jc.read_metrics(tmp_path)]
        return state, row and row["step"], rows, result["status"]

    with monkeypatch.context() as patch:
        patch.setattr(divergence, "LOSS_FACTOR", 0.0)
        (state, *first), (again, *second) = ends(), ends()
    assert first == second == [2, [2], "diverged"]
    jax.tree.map(np.testing.assert_array_equal, state, again)
    assert ends()[1:] == (6, [2, 4, 6], "finished")
