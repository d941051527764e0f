"""Runs of a search: they pause and resume to the bit, and are selected by the validation split."""

import math
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import jaxcnn as jc
from jaxcnn import runs, search
from jaxcnn.runs import evaluator

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def data():
    return jc.load_dataset("digits", validation=200)


def tiny(**changes):
    train = jc.TrainConfig(num_steps=9, batch_size=8, eval_every=1, eval_split="validation")
    kwargs = {"width": 2, "hidden": 4}
    optimizer = jc.OptimizerConfig(schedule="cosine", milestones=())
    config = jc.ExperimentConfig("digits", "convnet", kwargs, 200, optimizer=optimizer, train=train)
    return jc.override(config, max_train_examples=64, **changes)


def rows(folder):
    """A run's rows without times."""
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}
        for row in jc.read_metrics(folder)
    ]


@pytest.mark.slow
def test_a_run_that_pauses_at_each_rung_has_the_bits_of_one_that_does_not(data, tmp_path):
    config = tiny(learning_rate=0.05)
    runs.run(config, data, tmp_path / "whole")
    whole = rows(tmp_path / "whole")
    for step in (1, 3, 9):
        row = runs.train_until(config, data, tmp_path / "paused", step)
        assert row is not None
        assert row["step"] == step
        # It has paused, and did not train on.
        assert rows(tmp_path / "paused") == whole[:step]
    # The rate of each step is the cosine of nine steps, also around a pause.
    rates = [0.025 * (1 + math.cos(math.pi * step / 9)) for step in range(9)]
    assert [row["rate"] for row in whole] == pytest.approx(rates, rel=1e-5)
    states = [
        runs.load_trained_model(tmp_path / name, data=data).last for name in ("whole", "paused")
    ]
    for name in ("step", "params", "opt_state"):
        one, two = (jax.tree.leaves(getattr(state, name)) for state in states)
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_real_search_that_is_stopped_has_the_same_bits(data, tmp_path):
    configs = [tiny(learning_rate=rate) for rate in (1e-3, 0.05, 0.3)]
    expected = search.successive_halving(
        configs, runs.experiment_evaluator(data, tmp_path / "whole"), 9, min_steps=3
    )
    checks = 0

    def should_stop():
        nonlocal checks
        checks += 1
        return checks in stops

    stops, stopped = {2, 8, 14, 20}, 0
    while True:
        evaluate = runs.experiment_evaluator(data, tmp_path / "own", should_stop=should_stop)
        try:
            found = search.successive_halving(configs, evaluate, 9, min_steps=3)
            break
        except runs.SearchStopped:
            stopped += 1
    assert stopped >= 3
    assert repr(found) == repr(expected)
    for config in configs:
        name = runs.run_name(config)
        assert rows(tmp_path / "own" / name) == rows(tmp_path / "whole" / name)


@pytest.mark.slow
def test_a_run_that_diverges_is_nan_at_every_later_rung(data, tmp_path):
    config = tiny(learning_rate=1e30)
    evaluate = runs.experiment_evaluator(data, tmp_path)
    assert [math.isnan(evaluate(config, step)) for step in (3, 9, 9)] == [True] * 3
    (row,) = jc.read_metrics(tmp_path / runs.run_name(config))
    assert "diverged" in row


@pytest.mark.slow
def test_runs_of_a_builder_and_a_loss_of_your_own_pause_too(data, tmp_path):
    def build(config, data):
        model = jc.create_model("convnet", data.num_classes, width=2, hidden=4)
        return model, optax.sgd(config.optimizer.learning_rate)

    pieces: dict[str, Any] = {"build": build, "loss": jc.create_loss("squared")}
    runs.run(tiny(), data, tmp_path / "whole", **pieces)
    for step in (3, 3, 9):
        row = runs.train_until(tiny(), data, tmp_path / "paused", step, **pieces)
        assert row is not None
        assert row["step"] == step
    assert rows(tmp_path / "paused") == rows(tmp_path / "whole")
    # Another run is refused, also where nothing would be trained.
    with pytest.raises(jc.ArgumentError, match="paused holds a run of another config"):
        runs.train_until(tiny(learning_rate=0.2), data, tmp_path / "paused", 3, **pieces)
    with pytest.raises(jc.ArgumentError, match="paused holds"):
        runs.train_until(tiny(), data, tmp_path / "paused", 3)


@pytest.mark.slow
def test_labels_that_are_no_classes_pause_with_a_loss_of_your_own(tmp_path):
    """What may be trained may be asked for again: the loss of the call decides, not the config's."""
    images = np.random.default_rng(0).random((32, 4, 4, 1), np.float32)
    split = (images, images.mean((1, 2, 3)))
    data = jc.dataset(split, split, num_classes=2)
    train = jc.TrainConfig(num_steps=2, batch_size=8, eval_every=1)
    config = jc.ExperimentConfig(data.name, "mlp", train=train)

    def loss(outputs, batch):
        losses = (outputs[:, 0] - batch.labels) ** 2
        return losses, {"distance": losses}

    for step in (1, 1, 2):
        row = runs.train_until(config, data, tmp_path, step, loss=loss)
        assert row is not None
        assert row["step"] == step


def test_a_run_is_only_evaluated_where_it_has_a_row_of_the_validation_split(data, tmp_path):
    config = jc.override(tiny(), eval_every=2)
    with pytest.raises(
        jc.ArgumentError, match=r"num_steps is 3, .*eval_every is 2.*Write eval_every=3"
    ):
        runs.train_until(config, data, tmp_path / "a", 3)
    with pytest.raises(
        jc.ArgumentError, match=r"num_steps is 10; expected a whole number from 1 to 9"
    ):
        runs.train_until(config, data, tmp_path / "a", 10)
    evaluate = runs.experiment_evaluator(data, tmp_path)
    with pytest.raises(
        jc.ArgumentError, match=r"eval_split is 'test'; a search selects by the valid"
    ):
        evaluate(jc.override(config, eval_split="test"), 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"metric": "eval_eror"}, r"metric is 'eval_eror'; expected one of .*mean 'eval_error'\?"),
        ({"metric": "eval_heat", "loss": jc.create_loss("squared")}, "metric is 'eval_heat'; expect"),
        ({"metric": "precise_eval_error"}, "metric is 'precise_eval_error'; expected one of"),
        ({"name": lambda config: None}, "name returned None; expected the name of a folder"),
        ({"name": lambda config: "../../x"}, r"name returned '../../x'; expected .*Write return"),
        ({"name": lambda config: ".."}, "name returned '..'; expected"),
        ({"name": lambda config: "a/b"}, "name returned 'a/b'; expected"),
        ({"name": lambda config: ""}, "name returned ''; expected"),
        ({"name": lambda config: "x" * 256}, "name returned 'xxx.*; expected"),
    ],
)  # fmt: skip
def test_a_metric_or_a_name_that_is_wrong_is_refused_before_training(
    data, tmp_path, monkeypatch, kwargs, says
):
    monkeypatch.setattr("jaxcnn.runs.single.train", lambda *a, **k: pytest.fail("it trained"))
    evaluate = runs.experiment_evaluator(data, tmp_path / "out", **kwargs)
    with pytest.raises(jc.ArgumentError, match=says) as error:
        evaluate(tiny(), 3)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_metrics_that_are_known_before_training_are_those_of_the_rows(data, tmp_path):
    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            flat = images.reshape(len(images), -1)
            return nn.Dense(10)(nn.BatchNorm(use_running_average=not train)(flat))

    def build(config, data):
        return Normalized(), optax.sgd(config.optimizer.learning_rate)

    config = jc.override(tiny(), recompute_batch_stats=64, num_steps=2)
    runs.run(config, data, tmp_path / "a", build=build)
    row = jc.read_metrics(tmp_path / "a")[0]
    assert set(evaluator._metric_names(config, data, {"build": build})) == row.keys() - {
        "step",
        "eval_split",
    }
    evaluate = runs.experiment_evaluator(
        data, tmp_path, metric="precise_eval_loss", name=lambda config: "a", build=build
    )
    assert evaluate(config, 1) == row["precise_eval_loss"]


untyped = cast(Any, runs)
MISTAKES = [
    (lambda: untyped.experiment_evaluator(None, "a"), "data is None; expected a Dataset"),
    (lambda: untyped.experiment_evaluator(jc.load_dataset("digits"), "a", metric=[3]), r"metric is \[3\]; expected the key of a number"),
    (lambda: untyped.experiment_evaluator(jc.load_dataset("digits"), "a", metric="eval_split"), "metric is 'eval_split'; expected the key of a number"),
    (lambda: untyped.experiment_evaluator(jc.load_dataset("digits"), "a", name="x"), "name is 'x'; expected a function"),
    (lambda: untyped.run_name(3), "config is an int, 3; expected an ExperimentConfig"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "says"), MISTAKES)
def test_mistakes_are_one_line(call, says):
    with pytest.raises(jc.ArgumentError, match=says) as error:
        call()
    assert "\n" not in str(error.value)
