"""What a sweep says of its size and its hours before it is under way."""

import io
from types import SimpleNamespace

import pytest

import jaxcnn as jc
from experiments import depth
from jaxcnn import runs
from jaxcnn.progress import Progress
from jaxcnn.runs import sweeps

ONE = jc.strategy("jit", 1)
CONFIG = jc.ExperimentConfig(
    dataset="digits",
    model="mlp",
    model_kwargs={"hidden": [16]},
    optimizer=jc.OptimizerConfig(milestones=()),
    train=jc.TrainConfig(num_steps=30, eval_every=30, batch_size=32),
)


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=1000.0)
    fake = SimpleNamespace(monotonic=lambda: now.seconds)
    monkeypatch.setattr("jaxcnn.progress.time", fake)
    monkeypatch.setattr("jaxcnn.runs.sweeps.time", fake)
    return now


def study(tmp_path, costs):
    out = io.StringIO()
    total = sum(weight * steps for weight, steps in costs.values())
    return sweeps._StudyProgress(Progress(total, file=out), tmp_path, costs), out


def test_the_first_estimate_is_of_the_steps_after_the_compiled_one(tmp_path, clock):
    """Two networks, the second of twice the parameters, at 0.25 s a step of the first."""
    costs = {"a": (10.0, 64_000), "b": (20.0, 64_000)}
    progress, out = study(tmp_path, costs)
    run = sweeps._RunProgress(progress, "a", quiet=True)
    run(0, None)
    for step in range(1, 41):
        clock.seconds += 100 if step == 1 else 0.25
        run(step, None)
    lines = [line for line in out.getvalue().splitlines() if "estimate" in line]
    # The 21st step ends 20 steps after the first.
    hours = 0.25 * (3 * 64_000 - 21) / 3600
    assert f"{hours:.0f}" == "13"
    assert len(lines) == 1
    assert lines[0].endswith("about 13 h for 2 runs on this machine (first estimate)")


def test_steps_that_seem_to_take_no_time_are_waited_for(tmp_path, clock):
    """Where steps are computed after they are counted."""
    progress, out = study(tmp_path, {"a": (1.0, 10**6)})
    run = sweeps._RunProgress(progress, "a", quiet=True)
    for step in range(50):
        run(step, None)
    assert out.getvalue() == ""
    clock.seconds += 5
    run(50, None)
    assert "about 28 h for 1 run on" in out.getvalue()


def test_a_short_study_has_no_estimate(tmp_path, clock):
    progress, out = study(tmp_path, {"a": (1.0, 1000)})
    run = sweeps._RunProgress(progress, "a", quiet=True)
    for step in range(100):
        clock.seconds += 1
        run(step, None)
    assert progress.is_estimated
    assert "estimate" not in out.getvalue()


@pytest.mark.slow
def test_the_size_of_the_papers_study_is_said_before_it_starts(tmp_path):
    configs = depth.configs(depth.PRESETS["paper"])
    weights = {
        name: jc.count_parameters(
            jc.create_model(config.model, 10, **config.model_kwargs), (32, 32, 3)
        )
        for name, config in list(configs.items())[:8]
    }
    kinds = {name.split("-")[0]: weight for name, weight in weights.items()}
    weights = {name: kinds[name.split("-")[0]] for name in configs}
    out = io.StringIO()
    sweeps._print_size(Progress(1, file=out), configs, weights, (), (32, 32, 3))
    assert "40 runs, 2,560,000 steps, 328 million images" in out.getvalue()
    # What is finished is not to be trained.
    out = io.StringIO()
    finished = list(configs)[1:]
    sweeps._print_size(Progress(1, file=out), configs, weights, finished, (32, 32, 3))
    assert "1 run, 64,000 steps, 8 million images" in out.getvalue()
    out = io.StringIO()
    quick = depth.configs(depth.PRESETS["quick"])
    sweeps._print_size(Progress(1, file=out), quick, dict.fromkeys(quick, 214_402), (), (8, 8, 1))
    assert out.getvalue() == ""


@pytest.mark.slow
def test_a_sweep_says_both_where_it_is_long(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweeps, "LONG_WORK", 0)
    monkeypatch.setattr(sweeps, "LONG_SECONDS", 0)
    monkeypatch.setattr(sweeps, "ESTIMATE_SECONDS", 0)
    configs = {f"seed{seed}": jc.override(CONFIG, seed=seed) for seed in range(2)}
    data = jc.load_dataset("digits")
    assert runs.sweep(configs, data, tmp_path, strategy=ONE, quiet=True)
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("2 runs, 60 steps, 0 million images")
    estimates = [line for line in said if "(first estimate)" in line]
    assert len(estimates) == 1
    assert "about 0 h for 2 runs" in estimates[0]
