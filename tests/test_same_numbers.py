"""The same numbers: bit for bit in fresh processes, however often they are stopped; to rounding on any devices."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from scripts import train_config

import jaxcnn as jc
from jaxcnn import runs
from jaxcnn.state import init_state

# Everything random at once: crops, flips, dropout, the order of the examples; and BN, whose
# averages are state too.
CONFIG = jc.override(
    jc.ExperimentConfig(),
    dataset="digits",
    model="convnet",
    model_kwargs={"width": 4, "hidden": 16, "dropout": 0.5, "batch_norm": True},
    batch_size=64,
    num_steps=60,
    eval_every=23,  # a row's 23 steps are about an epoch's
    milestones=(40,),
    padding=1,
    flip=True,
)
SCRIPT = """
import sys
import jaxcnn as jc
from jaxcnn import cli, runs
cli.enable_compilation_cache()
source, out, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
config, seen = jc.ExperimentConfig.load(source), []
over = runs.run(
    config, jc.load_dataset("digits"), out, should_stop=lambda: seen[-1] >= last, on_step=lambda step, row: seen.append(step)
)
print(seen[0], seen[-1], over is not None)
"""


def run(source, out, last=1000):
    """The run in a fresh process, until after step `last`: the steps at which it began and ended, and whether it is over."""
    command = [sys.executable, "-c", SCRIPT, str(source), str(out), str(last)]
    env = {**os.environ, "XLA_FLAGS": ""}
    said = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert said.returncode == 0, said.stderr
    return said.stdout.split()


def ended(folder):
    """The last state's bytes, and the rows without their times."""
    data, model = (
        jc.load_dataset("digits"),
        jc.create_model(CONFIG.model, 10, **CONFIG.model_kwargs),
    )
    with jc.Checkpoints(folder / "checkpoints") as saved:
        state = saved.restore(
            init_state(
                model,
                jc.create_optimizer(CONFIG.optimizer, CONFIG.train.num_steps),
                CONFIG.train,
                data,
            )
        )
    assert state is not None
    rows = [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
        for row in jc.read_metrics(folder)
    ]
    return [leaf.tobytes() for leaf in jax.tree.leaves(state)], rows


@pytest.mark.slow
def test_the_same_bits_twice_and_after_two_stops_in_fresh_processes(tmp_path):
    Path(tmp_path, "config.json").write_text(CONFIG.to_json())
    stops = [9, 50]  # before the first row, and between two rows after the rate has dropped
    for name in ("once", "twice"):
        assert run(tmp_path, tmp_path / name) == ["0", "60", "True"]
    begun = 0
    for step in stops:
        assert run(tmp_path, tmp_path / "stopped", step) == [str(begun), str(step), "False"]
        begun = step
    assert run(tmp_path, tmp_path / "stopped") == [str(begun), "60", "True"]
    once, twice, stopped = (ended(tmp_path / name) for name in ("once", "twice", "stopped"))
    assert once == twice
    assert once == stopped
    assert [row["step"] for row in once[1]] == [23, 46, 60]


@cache
def trained(strategy, **changes):
    """The state after 5 steps."""
    config, data = (
        jc.override(CONFIG, num_steps=5, milestones=(), eval_every=5, **changes),
        jc.load_dataset("digits"),
    )
    model = jc.create_model(config.model, 10, **config.model_kwargs)
    ((state, _),) = train_config(
        model,
        config,
        data,
        strategy=strategy,
    )
    return state


def gap(a, b):
    return max(
        float(np.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


@pytest.mark.quick_compilation
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "devices"), [("jit", 2), ("jit", 8), ("pmap", 1), ("pmap", 4), ("pmap", 8)]
)
def test_crops_flips_and_dropout_are_the_same_on_any_devices(kind, devices):
    """Another mask or crop of one of the 320 images would show: another seed of dropout alone moves the parameters far."""
    alone, other = trained(jc.strategy("jit", 1)), trained(jc.strategy(kind, devices))
    assert gap(other.params, alone.params) < 1e-6
    assert gap(other.model_state, alone.model_state) < 1e-6
    assert gap(trained(jc.strategy("jit", 1), seed=1).params, alone.params) > 1e-2


@pytest.mark.quick_compilation
@pytest.mark.slow
def test_a_run_moves_from_eight_devices_to_one_and_back(tmp_path):
    """Stopped twice and continued on other devices, it has the rows of a run that stayed on one."""
    data, config = (
        jc.load_dataset("digits"),
        jc.override(CONFIG, num_steps=6, eval_every=3, milestones=()),
    )
    whole = runs.run(config, data, tmp_path / "whole", strategy=jc.strategy("jit", 1))
    for last, strategy in (
        (2, jc.strategy("pmap", 8)),
        (4, jc.strategy("jit", 1)),
        (99, jc.strategy("jit", 8)),
    ):
        seen: list[int] = []
        result = runs.run(
            config,
            data,
            tmp_path / "moved",
            strategy=strategy,
            should_stop=lambda last=last, seen=seen: seen[-1] >= last,
            on_step=lambda step, row, seen=seen: seen.append(step),
        )
        assert seen[-1] == min(last, 6)
    assert whole is not None
    assert result is not None
    for mine, theirs in zip(
        *map(jc.read_metrics, (tmp_path / "moved", tmp_path / "whole")), strict=True
    ):
        for name in ("train_loss", "train_error", "eval_loss", "eval_error", "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5), name
