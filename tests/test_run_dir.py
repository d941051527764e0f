"""`train(run_dir=...)`: records, checkpoints and resuming of a loop of the user's own."""

import json
import os
import subprocess
import sys
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

pytestmark = pytest.mark.quick_compilation

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


def test_a_loop_with_a_name_has_the_folder_until_it_is_closed(data, model, tmp_path):
    """As in the cell of a notebook that is run twice."""
    loop: Any = train(model, TX, data, CONFIG, run_dir=tmp_path)
    assert next(loop)[1]["step"] == 2
    expected = r"which is this process: .* Call close\(\) .* what jaxcnn\.train returned"
    with pytest.raises(jc.CheckpointError, match=expected) as error:
        train(model, TX, data, CONFIG, run_dir=tmp_path)
    assert "\n" not in str(error.value)
    loop.close()
    loop = train(model, TX, data, CONFIG, run_dir=tmp_path)
    assert next(loop)[1]["step"] == 4
    loop.close()


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


def drawn(model, data, seed):
    """Variables of another seed."""
    state = jc.init_state(model, TX, jc.override(CONFIG, seed=seed), data)
    return {"params": state.params, **state.model_state}


def test_training_starts_from_variables(data, model):
    """A rate of 0 leaves them as they are."""
    variables = drawn(model, data, 7)
    state, _ = next(train(model, optax.sgd(0.0), data, CONFIG, variables=variables))
    assert equal(state.params, variables["params"])
    state, _ = next(train(model, TX, data, CONFIG, variables=variables))
    resumed = train(model, TX, data, CONFIG, resume=lambda s: jc.with_variables(s, variables))
    assert equal(state, next(resumed)[0])
    averaged = jc.with_ema(optax.sgd(0.0), decay=0.5, debias=False)
    state, _ = next(train(model, averaged, data, CONFIG, variables=variables))
    assert equal(state.opt_state.average, variables["params"])


def test_a_folder_keeps_the_variables_that_it_started_from(data, model, tmp_path):
    variables, others = drawn(model, data, 7), drawn(model, data, 8)
    for _ in train(model, TX, data, CONFIG, variables=variables, run_dir=tmp_path / "a"):
        break
    digest = json.loads((tmp_path / "a/run.json").read_text())["variables"]
    for other in (others, None):
        with pytest.raises(jc.ArgumentError, match=f"starts from are .* digest {digest} there and"):
            train(model, TX, data, CONFIG, variables=other, run_dir=tmp_path / "a")
    # A State will do, as the same variables.
    state = jc.with_variables(jc.init_state(model, TX, CONFIG, data), variables)
    items = list(train(model, TX, data, CONFIG, variables=state, run_dir=tmp_path / "a"))
    whole = list(train(model, TX, data, CONFIG, variables=variables))
    assert equal(items[-1][0], whole[-1][0])
    # Nor does a run of initialized ones take others.
    for _ in train(model, TX, data, CONFIG, run_dir=tmp_path / "b"):
        break
    with pytest.raises(jc.ArgumentError, match="starts from are none there and variables with"):
        train(model, TX, data, CONFIG, variables=variables, run_dir=tmp_path / "b")
    # Records of versions without the option have none.
    record = json.loads((tmp_path / "b/run.json").read_text())
    del record["variables"]
    (tmp_path / "b/run.json").write_text(json.dumps(record))
    with pytest.raises(jc.ArgumentError, match="starts from are none there"):
        train(model, TX, data, CONFIG, variables=variables, run_dir=tmp_path / "b")
    assert [row["step"] for _, row in train(model, TX, data, CONFIG, run_dir=tmp_path / "b")] == [
        4,
        6,
    ]


def test_more_steps_of_another_run_change_nothing(data, model, tmp_path):
    """The refusal comes before the folder gets the new number of steps."""
    variables, others = drawn(model, data, 7), drawn(model, data, 8)
    list(train(model, TX, data, CONFIG, variables=variables, run_dir=tmp_path))
    names = ("config.json", "run.json", "result.json")
    before = [(tmp_path / name).read_text() for name in names]
    longer = jc.override(CONFIG, num_steps=8)
    with pytest.raises(jc.ArgumentError, match="variables that training starts from"):
        train(model, TX, data, longer, variables=others, run_dir=tmp_path)
    assert [(tmp_path / name).read_text() for name in names] == before
    resumed = train(model, TX, data, longer, variables=variables, run_dir=tmp_path)
    assert [row["step"] for _, row in resumed] == [8]
    assert json.loads((tmp_path / "run.json").read_text())["num_steps"] == [
        {"before": 6, "after": 8}
    ]


def test_variables_of_another_model_are_one_line(data, model):
    wider = drawn(jc.create_model("mlp", 10, hidden=(9,)), data, 0)
    with pytest.raises(jc.ArgumentError, match="of the variables do not fit the model"):
        train(model, TX, data, CONFIG, variables=wider)
    lookahead = jc.create_optimizer(jc.OptimizerConfig("lookahead"))
    with pytest.raises(jc.ArgumentError, match="keeps parameters of its own"):
        train(model, lookahead, data, CONFIG, variables=drawn(model, data, 0))


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


UNFINISHED = """
import sys
import optax
import jaxcnn as jc

data, config = jc.load_dataset("digits"), jc.TrainConfig(num_steps=3, eval_every=1)
runs = [
    jc.train(jc.create_model("mlp", 10), optax.sgd(0.1), data, config, run_dir=run_dir)
    for run_dir in (sys.argv[1], None)
]
print([next(run)[1]["step"] for run in runs])
"""


@pytest.mark.slow
def test_a_script_may_end_in_the_middle_of_a_run(tmp_path, quick_environment):
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", UNFINISHED, str(tmp_path / "run")],
        env={**os.environ, **quick_environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("[1, 1]\n", "", 0)
    assert [row["step"] for row in jc.read_metrics(tmp_path / "run")] == [1]
    with jc.Checkpoints(tmp_path / "run/checkpoints") as saved:
        assert saved.steps() == [1]
