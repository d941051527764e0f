"""Runs and sweeps of a model, an optimizer and a loss of the user's own, made by a function."""

import json

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import jaxcnn as jc
from jaxcnn import parallel, provenance, runs

DATA = jc.load_dataset("digits")
ONE = jc.strategy("jit", 1)
CONFIG = jc.ExperimentConfig(
    dataset="digits",
    model_kwargs={"hidden": 7},
    optimizer=jc.OptimizerConfig(learning_rate=0.01),
    train=jc.TrainConfig(num_steps=4, eval_every=2, batch_size=32),
)


class Net(nn.Module):
    """Two dense layers; the field is no mapping, so that JSON holds it."""

    num_classes: int
    hidden: int = 7

    @nn.compact
    def __call__(self, images, train=False):
        hidden = nn.relu(nn.Dense(self.hidden)(images.reshape(len(images), -1)))
        return nn.Dense(self.num_classes)(hidden)


class OtherNet(Net):
    """Another class of the same fields."""


def build(config, data):
    tx = optax.inject_hyperparams(optax.adam)(config.optimizer.learning_rate)
    return Net(data.num_classes, **config.model_kwargs), tx


def build_other(config, data):
    return OtherNet(data.num_classes, **config.model_kwargs), build(config, data)[1]


def build_sgd(config, data):
    return build(config, data)[0], optax.sgd(config.optimizer.learning_rate)


def margin(outputs, batch):
    """A loss with a metric of another name than the error."""
    right = outputs[np.arange(len(batch.labels)), batch.labels]
    losses = jax.numpy.maximum(0, 1 + outputs - right[:, None]).sum(-1) - 1
    return losses, {"wrong": outputs.argmax(-1) != batch.labels}


def untimed(rows):
    times = ("seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


@pytest.mark.slow
def test_a_built_run_has_the_rows_of_train(tmp_path):
    result = runs.run(CONFIG, DATA, tmp_path, build=build, strategy=ONE)
    assert result is not None
    # 64 * 7 + 7 and 7 * 10 + 10.
    assert result["params"] == 535
    assert (result["status"], result["step"]) == ("finished", 4)
    model, tx = build(CONFIG, DATA)
    expected = [row for _, row in jc.train(model, tx, DATA, CONFIG.train, strategy=ONE)]
    assert untimed(jc.read_metrics(tmp_path)) == untimed(expected)


def test_its_records_name_the_pieces_and_keep_the_numbers(tmp_path):
    runs.run(CONFIG, DATA, tmp_path, build=build, strategy=ONE)
    config = jc.ExperimentConfig.load(tmp_path)
    assert config.model == f"{__name__}.Net"
    assert config.model_kwargs == {"hidden": 7}
    assert config.optimizer.name != "momentum"
    assert config.optimizer.learning_rate == 0.01
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["model"] == {
        "class": f"{__name__}.Net",
        "fields": {"num_classes": 10, "hidden": 7},
    }
    names = {"model": CONFIG.model, "optimizer": CONFIG.optimizer.name}
    assert facts["build"] == names | {"function": f"{__name__}.build"}
    # The same command goes on, and a trained model is read with the same function.
    assert runs.run(CONFIG, DATA, tmp_path, build=build, strategy=ONE)
    trained = runs.load_trained_model(tmp_path, data=DATA, build=build)
    assert list(trained.states) == [0, 4]
    error = jc.evaluate(trained.model, trained.last, DATA.test, strategy=ONE).error_percent
    assert error == trained.rows[-1]["eval_error"]
    with pytest.raises(jc.ArgumentError, match=r"made by .*\.build; .* load_trained_model"):
        runs.load_trained_model(tmp_path, data=DATA)


@pytest.mark.parametrize(
    ("changes", "other", "says"),
    [
        (
            {},
            build_other,
            r"another run: model is \S+\.Net\(num_classes=10, hidden=7\) there and "
            r"\S+\.OtherNet\(num_classes=10, hidden=7\) here; write another run_dir",
        ),
        (
            {},
            build_sgd,
            r"another run: optimizer is adam\(\) .* there and .*scale\(.*\) here; write",
        ),
        ({}, None, r"another config: model \('resnet20' there, 'mlp' here\), model_kwargs \("),
        ({"learning_rate": 0.5}, build, r"another config: learning_rate \(0.01 there, 0.5 here\);"),
        (
            {"model_kwargs": {"hidden": 8}},
            build,
            r"another config: model_kwargs \({'hidden': 7} there, {'hidden': 8} here\);",
        ),
        ({"seed": 3}, build, r"another config: seed \(0 there, 3 here\);"),
    ],
)
def test_its_folder_refuses_other_pieces_before_a_step(tmp_path, changes, other, says):
    folder = tmp_path / "a"
    stopped = runs.run(CONFIG, DATA, folder, build=build, strategy=ONE, should_stop=lambda: True)
    assert stopped is None
    before = (folder / "run.json").read_bytes(), (folder / "config.json").read_bytes()
    config = jc.override(CONFIG, **changes)
    if other is None:
        config = jc.override(config, model="mlp", model_kwargs={})
    for refused in (
        lambda: runs.run(config, DATA, folder, build=other, strategy=ONE),
        lambda: runs.sweep({"a": config}, DATA, tmp_path, build=other, strategy=ONE),
    ):
        with pytest.raises(jc.ArgumentError, match=says) as error:
            refused()
        assert "\n" not in str(error.value)
    after = (folder / "run.json").read_bytes(), (folder / "config.json").read_bytes()
    assert after == before


def count_traces(monkeypatch, function):
    """The number of programs that `function` makes of training steps."""
    traces = []
    make = jc.make_train_step

    def counting(*args, **kwargs):
        step = make(*args, **kwargs)

        def counted(*inputs):
            traces.append(args[0])
            return step(*inputs)

        return counted

    monkeypatch.setattr("jaxcnn.training.make_train_step", counting)
    function()
    return len(traces)


@pytest.mark.slow
@pytest.mark.parametrize(("rates", "count"), [((0.01, 0.02, 0.05), 1), ((0.01,), 1)])
def test_a_sweep_over_rates_and_seeds_compiles_once(tmp_path, monkeypatch, rates, count):
    parallel.clear_program_cache()
    configs = {
        f"{rate:g}-seed{seed}": jc.override(CONFIG, learning_rate=rate, seed=seed)
        for rate in rates
        for seed in (0, 1)
    }
    sweep_kwargs = {"build": build, "strategy": ONE}
    sweep = lambda: runs.sweep(configs, DATA, tmp_path, **sweep_kwargs)  # noqa: E731
    assert count_traces(monkeypatch, sweep) == count
    finished = runs.finished_runs(tmp_path)
    assert {run.name: run.config.optimizer.learning_rate for run in finished} == {
        name: config.optimizer.learning_rate for name, config in configs.items()
    }
    # Each was trained at its own rate.
    for run in finished:
        rate = pytest.approx(run.config.optimizer.learning_rate, rel=1e-6)
        assert run.rows[-1]["rate"] == rate
    by_rate = [run for run in finished if run.config.optimizer.learning_rate == rates[0]]
    line = runs.aggregate_seeds(by_rate)
    assert line["seeds"] == 2
    assert line["eval_error"] == np.mean([run.result["eval_error"] for run in by_rate])


@pytest.mark.slow
def test_a_rate_that_is_no_state_is_not_shared(tmp_path, monkeypatch):
    """`optax.sgd(rate)` holds its rate in the program."""
    parallel.clear_program_cache()
    configs = {
        f"{rate:g}": jc.override(CONFIG, learning_rate=rate, num_steps=2) for rate in (0.01, 0.5)
    }
    sweep_kwargs = {"build": build_sgd, "strategy": ONE}
    sweep = lambda: runs.sweep(configs, DATA, tmp_path, **sweep_kwargs)  # noqa: E731
    assert count_traces(monkeypatch, sweep) == 2
    # Each is what it is alone.
    for name, config in configs.items():
        parallel.clear_program_cache()
        model, tx = build_sgd(config, DATA)
        expected = [row for _, row in jc.train(model, tx, DATA, config.train, strategy=ONE)]
        assert untimed(jc.read_metrics(tmp_path / name)) == untimed(expected)


def test_packed_runs_keep_the_rates(tmp_path):
    configs = {f"{r:g}": jc.override(CONFIG, learning_rate=r, num_steps=2) for r in (0.01, 0.02)}
    runs.sweep(configs, DATA, tmp_path / "out", build=build, strategy=ONE)
    runs.pack(tmp_path / "out", tmp_path / "packed")
    packed = runs.finished_runs(tmp_path / "packed")
    assert [(run.name, run.config.optimizer.learning_rate) for run in packed] == [
        ("0.01", 0.01),
        ("0.02", 0.02),
    ]


@pytest.mark.slow
def test_a_loss_of_ones_own_is_recorded_and_reported(tmp_path, capsys):
    results = runs.sweep({"a": CONFIG}, DATA, tmp_path, build=build, loss=margin, strategy=ONE)
    assert results is not None
    assert {"train_wrong", "eval_wrong"} <= set(results["a"])
    # Its constants follow the name.
    assert jc.ExperimentConfig.load(tmp_path / "a").loss.startswith(f"{__name__}.margin(")
    assert "a  step 4/4" in capsys.readouterr().err
    (run,) = runs.finished_runs(tmp_path)
    assert runs.aggregate_seeds([run], ("eval_wrong",))["eval_wrong"] == results["a"]["eval_wrong"]
    with pytest.raises(jc.ArgumentError, match="another config: loss"):
        runs.sweep({"a": CONFIG}, DATA, tmp_path, build=build, strategy=ONE)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (3, r"^build is 3; expected a function\. Write build=lambda config, data: \(model, tx\)"),
        (lambda config: None, "^build is .* which cannot be called with 2 arguments; expected a"),
        (
            lambda config, data: Net(10),
            r"^build returned Net\(.*; expected a model and an optimizer. Write return model, tx",
        ),
        (
            lambda config, data: (Net(10), optax.adam),
            "^tx is .*adam; expected an optax transformation",
        ),
        (
            lambda config, data: (lambda x: x, optax.sgd(0.1)),
            r"^model is of type function; expected a flax\.linen Module\. Write",
        ),
    ],
)
def test_a_wrong_builder_is_one_line_and_writes_nothing(tmp_path, wrong, says):
    for refused in (
        lambda: runs.run(CONFIG, DATA, tmp_path / "a", build=wrong, strategy=ONE),
        lambda: runs.sweep({"a": CONFIG}, DATA, tmp_path, build=wrong, strategy=ONE),
    ):
        with pytest.raises(jc.ArgumentError, match=says) as error:
            refused()
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def scaled(factor, array=None):
    def function(x):
        return x * factor if array is None else x * array

    return function


def test_equal_functions_are_those_of_equal_code_and_values():
    a = np.arange(3)
    same = [
        (scaled(2.0), scaled(2.0)),
        (scaled(1, a), scaled(1, a.copy())),
        (optax.adam(0.1).update, optax.adam(0.1).update),
        (
            optax.inject_hyperparams(optax.adam)(0.1).update,
            optax.inject_hyperparams(optax.adam)(0.3).update,
        ),
        (
            optax.chain(optax.clip(1.0), optax.scale(-0.1)).update,
            optax.chain(optax.clip(1.0), optax.scale(-0.1)).update,
        ),
    ]
    for one, other in same:
        assert provenance.are_equal_functions(one, other)
    different = [
        (scaled(2.0), scaled(2)),
        (scaled(0.0), scaled(-0.0)),
        (scaled(1, a), scaled(1, a + 1)),
        (scaled(1, a), scaled(1, a.astype(np.float32))),
        (lambda x: x + 1, lambda x: x + 2),
        (optax.adam(0.1).update, optax.adam(0.2).update),
        (optax.adam(0.1, b1=0.8).update, optax.adam(0.1).update),
        (
            optax.inject_hyperparams(optax.adam, static_args="b1")(0.1, b1=0.8).update,
            optax.inject_hyperparams(optax.adam, static_args="b1")(0.1, b1=0.9).update,
        ),
        (
            optax.chain(optax.clip(1.0), optax.scale(-0.1)).update,
            optax.chain(optax.clip(2.0), optax.scale(-0.1)).update,
        ),
        tuple(optax.sgd(optax.cosine_decay_schedule(0.1, steps)).update for steps in (8, 9)),
        (object(), object()),
    ]
    for one, other in different:
        assert not provenance.are_equal_functions(one, other)
