"""`train(run_dir=...)`: records, checkpoints and resuming of a loop of the user's own."""

import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
import pytest

import jaxcnn as jc
from jaxcnn import runs
from jaxcnn.models import MODELS, model_call
from jaxcnn.records import experiment_config

CONFIG = jc.TrainConfig(num_steps=6, batch_size=32, eval_every=2)
TX = jc.create_optimizer(jc.OptimizerConfig("momentum", learning_rate=0.05, milestones=(4,)))


@pytest.fixture(scope="module")
def data():
    return jc.load_dataset("digits", validation=20)


@pytest.fixture(scope="module")
def model():
    return jc.create_model("mlp", 10, hidden=(8,))


def train(*args: Any, **kwargs: Any) -> Iterator[Any]:
    return jc.train(*args, **kwargs)


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.slow
def test_records_are_those_of_the_loop(data, model, tmp_path):
    items = list(train(model, TX, data, CONFIG, run_dir=tmp_path))
    plain = list(train(model, TX, data, CONFIG))
    assert [row["step"] for _, row in items] == [2, 4, 6]
    assert all(equal(a, b) for (a, _), (b, _) in zip(items, plain, strict=True))
    timed = ("seconds", "images_per_second")
    recorded = [
        {k: v for k, v in row.items() if k not in timed} for row in jc.read_metrics(tmp_path)
    ]
    assert recorded == [{k: v for k, v in row.items() if k not in timed} for _, row in plain]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["step"]) == ("finished", 6)
    loaded = runs.load_trained_model(tmp_path, data=data)
    assert (loaded.config.model, dict(loaded.config.model_kwargs)) == ("mlp", {"hidden": [8]})
    assert loaded.config.train == CONFIG
    assert loaded.config.num_validation == 20
    assert equal(loaded.last, items[-1][0])


def test_a_loop_that_was_left_is_resumed_with_the_same_bits(data, model, tmp_path):
    for _, row in train(model, TX, data, CONFIG, run_dir=tmp_path):
        assert row["step"] == 2
        break
    resumed = list(train(model, TX, data, CONFIG, run_dir=tmp_path))
    assert [row["step"] for _, row in resumed] == [4, 6]
    assert equal(resumed[-1][0], list(train(model, TX, data, CONFIG))[-1][0])
    assert [row["step"] for row in jc.read_metrics(tmp_path)] == [2, 4, 6]


def test_a_pause_is_saved_and_resumed(data, model, tmp_path):
    *_, (state, row) = train(
        model, TX, data, CONFIG, run_dir=tmp_path, should_stop=lambda step: step == 3
    )
    assert (int(state.step), row) == (3, None)
    assert not (tmp_path / "result.json").exists()
    resumed = list(train(model, TX, data, CONFIG, run_dir=tmp_path))
    assert equal(resumed[-1][0], list(train(model, TX, data, CONFIG))[-1][0])


def test_a_finished_run_yields_its_last_state_and_row(data, model, tmp_path):
    first = list(train(model, TX, data, CONFIG, run_dir=tmp_path))[-1]
    [(state, row)] = train(model, TX, data, CONFIG, run_dir=tmp_path)
    assert equal(state, first[0])
    assert row == jc.read_metrics(tmp_path)[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": jc.override(CONFIG, seed=1)}, r"another config: seed \(0 there, 1 here\)"),
        (
            {"tx": optax.adam(1e-3)},
            r"another config: name \('momentum' there, 'scale_by_adam\(.*' here\);",
        ),
        (
            {"model": jc.create_model("mlp", 10, hidden=(9,))},
            r"model_kwargs \({'hidden': \[8\]} there, {'hidden': \[9\]} here\)",
        ),
    ],
)
def test_another_run_is_refused_when_train_is_called(data, model, tmp_path, change, message):
    next(train(model, TX, data, CONFIG, run_dir=tmp_path))
    arguments = {"model": model, "tx": TX, "data": data, "config": CONFIG} | change
    with pytest.raises(jc.ArgumentError, match=message) as error:
        train(**arguments, run_dir=tmp_path)
    assert "\n" not in str(error.value)
    list(train(model, TX, data, CONFIG, run_dir=tmp_path))  # No lock is left.


def test_run_dir_and_resume_exclude_each_other(data, model, tmp_path):
    with pytest.raises(jc.ArgumentError, match="Leave out resume"):
        train(model, TX, data, CONFIG, run_dir=tmp_path, resume=lambda state: None)
    assert not list(tmp_path.iterdir())


def test_a_run_that_diverges_ends_and_is_recorded(data, model, tmp_path):
    rows = [row for _, row in train(model, optax.sgd(1e30), data, CONFIG, run_dir=tmp_path)]
    assert "diverged" in rows[-1]
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "diverged"


@pytest.mark.slow
def test_an_own_optimizer_is_described(data, model, tmp_path):
    config = experiment_config(model, optax.sgd(0.5), data, CONFIG)
    assert config.optimizer.name == "identity() + scale(step_size=-0.5)"
    list(train(model, optax.sgd(0.5), data, CONFIG, run_dir=tmp_path))
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["optimizer"]["parts"][-1] == {"name": "scale", "step_size": -0.5}


@pytest.mark.parametrize("name", [*MODELS, "plain26", "resnet26", "preresnet26", "cifar-resnet50"])
def test_the_call_that_makes_a_model_is_found(name):
    model = jc.create_model(name, 7)
    call = model_call(model)
    assert call is not None
    assert call[1] == {}
    assert jc.create_model(call[0], 7) == model


def test_options_are_found_too():
    model = jc.create_model("cifar-preresnet110", 10, width=8, dtype="bfloat16")
    name, options = model_call(model) or ("", {})
    assert jc.create_model(name, 10, **options) == model
    assert options == {"width": 8, "dtype": "bfloat16"}
    assert model_call(__import__("flax.linen").linen.Dense(3)) is None
