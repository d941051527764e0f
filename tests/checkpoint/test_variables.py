"""A folder of checkpoints alone gives the variables of a run back, those that were evaluated."""

import json
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

import jaxcnn as jc
from jaxcnn.checkpoint import CheckpointError, Checkpoints
from jaxcnn.checkpoint import _variables as reading
from jaxcnn.optim import eval_leaves, with_ema
from jaxcnn.optim.transforms import eval_params, lookahead
from jaxcnn.state import eval_state

pytestmark = pytest.mark.quick_compilation


def data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 8, 8, 1), np.uint8)
    split = jc.Split(images, (np.arange(12) % 3).astype(np.int32))
    mean, std = np.full((8, 8, 1), 0.5, np.float32), np.ones(1, np.float32)
    return jc.Dataset(
        "own", split, jc.Split(images[:0], split.labels[:0]), split, (*"abc",), mean, std
    )


def model():
    return jc.create_model("convnet", 3, width=2, hidden=3, batch_norm=True)


def states(tx, num_steps=2, freeze=(), run_dir=None, **kwargs):
    config = jc.TrainConfig(num_steps, 4, eval_every=1, freeze=freeze, **kwargs)
    one = jc.strategy("jit", devices=1)
    return list(jc.train(model(), tx, data(), config, run_dir=run_dir, strategy=one))


def assert_equal(variables, expected):
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        other = dict(jax.tree_util.tree_leaves_with_path(expected))[path]
        assert isinstance(leaf, np.ndarray)
        assert leaf.dtype == other.dtype, path
        np.testing.assert_array_equal(leaf, other, str(path))


def variables_at(state):
    return {"params": eval_state(state).params, **state.model_state}


def by_path(tree):
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


OPTIMIZERS = {
    "momentum": lambda: jc.create_optimizer(jc.OptimizerConfig("momentum")),
    "lookahead": lambda: jc.create_optimizer(jc.OptimizerConfig("lookahead")),
    "schedule-free": lambda: jc.create_optimizer(jc.OptimizerConfig("schedule-free")),
    "optax schedule-free": lambda: optax.contrib.schedule_free_sgd(0.02, weight_decay=0.1),
    "two lookaheads": lambda: optax.chain(
        optax.clip(1.0),
        optax.partition(
            {"a": lookahead(optax.sgd(0.1, 0.9), 5, 0.5), "b": lookahead(optax.adam(0.1), 3, 0.5)},
            lambda params: {name: "a" if name == "head" else "b" for name in params},
        ),
    ),
    "a partition": lambda: optax.partition(
        {"a": optax.contrib.schedule_free_sgd(0.02), "b": optax.sgd(0.1)},
        lambda params: {name: "a" if name == "head" else "b" for name in params},
    ),
    "ema": lambda: with_ema(optax.adam(0.01), decay=0.5),
    "ema without an inner state": lambda: with_ema(optax.sgd(0.1), decay=0.5),
    "ema of several steps": lambda: optax.MultiSteps(
        with_ema(optax.inject_hyperparams(optax.adam)(0.01), decay=0.5), 2
    ),
    "sam aside": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=3),
    "several steps": lambda: optax.MultiSteps(lookahead(optax.sgd(0.1), 3, 0.5), 2),
}

WITH_FROZEN = ("momentum", "lookahead", "schedule-free", "ema", "a partition", "several steps")
"""No average, and one of each kind and each wrapper: a frozen parameter has no leaf in any of them."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "freeze"),
    [(name, ()) for name in OPTIMIZERS] + [(name, ("conv1",)) for name in WITH_FROZEN],
)
def test_the_variables_are_those_that_are_evaluated(name, freeze, tmp_path):
    """Bit for bit those of `eval_state`, which knows the optimizer; the folder knows names alone."""
    # Two updates, of two steps where gradients are accumulated: the average of one is what it
    # averages.
    num_steps = 4 if "several steps" in name else 2
    state, _ = states(OPTIMIZERS[name](), num_steps, freeze=freeze)[-1]
    with Checkpoints(tmp_path) as saved:
        saved.save(state, 1.0)
    with Checkpoints(tmp_path) as saved:
        variables = saved.variables("last")
    assert_equal(variables, variables_at(state))
    is_average = eval_params(state.opt_state, state.params) is not state.params
    assert is_average == (name != "momentum")
    pairs = zip(*map(jax.tree.leaves, (variables["params"], state.params)), strict=True)
    assert any(not np.array_equal(*pair) for pair in pairs) == is_average


def test_leaves_give_the_parameters_of_an_average():
    """Against the equations: x = (y - (1 - b1) z) / b1 of Defazio et al., and lookahead's slow ones."""
    y, z, b1 = np.array([1.0, 2.0], "f4"), np.array([3.0, 5.0], "f4"), np.float32(0.9)
    leaves = {"[1].z['a']": z, "[1].b1": b1, "[1].weight_sum": np.float32(1)}
    params = {"['a']": y, "['b']": y}
    result = eval_leaves(leaves, params)
    np.testing.assert_allclose(result["['a']"], (y - 0.1 * z) / 0.9, rtol=1e-6)
    assert result["['b']"] is y
    # A method of somebody's own with fields of these names is no average.
    own = {".slow['a']": z, ".z['a']": z, ".b1": b1}
    assert eval_leaves(own, params) == params
    # An average within another one is the outer one's own business.
    inner = {f".inner{path}": leaf for path, leaf in leaves.items()}
    outer = {".slow['a']": z + 1, ".inner.steps_since_sync": np.int32(0)} | inner
    np.testing.assert_array_equal(eval_leaves(outer, params)["['a']"], z + 1)


class Errors:
    """Errors that a run has by construction, whatever its network learns."""

    def __init__(self, *errors):
        self.errors = errors

    def save(self, folder, keep_every=0, log=True):
        all_states = [state for state, _ in states(optax.sgd(0.1), len(self.errors))]
        with Checkpoints(folder / "checkpoints", keep_every) as saved:
            for state, error in zip(all_states, self.errors, strict=True):
                if log:
                    line = {"step": int(state.step), "eval_error": error, "eval_loss": error / 50}
                    with (folder / "metrics.jsonl").open("a") as file:
                        file.write(json.dumps(line) + "\n")
                saved.save(state, error)
        return {int(state.step): variables_at(state) for state in all_states}


@pytest.mark.slow
def test_the_best_step_is_kept_though_later_ones_are_worse(tmp_path):
    expected = Errors(60.0, 20.0, 20.0, 50.0, 70.0, 80.0).save(tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.steps() == [3, 5, 6]
        assert_equal(saved.variables(), expected[3])  # of equal ones the later
        assert_equal(saved.variables("best"), expected[3])
        assert_equal(saved.variables("last"), expected[6])
        assert_equal(saved.variables(5), expected[5])
        assert_equal(saved.variables(int(np.int64(5))), expected[5])
        for step in (4, -1, True, "bets", None, 5.0, "5"):
            with pytest.raises(CheckpointError, match="expected 'best', 'last' or a step") as error:
                saved.variables(step)  # pyright: ignore[reportArgumentType]
            assert "write one of 3, 5, 6" in str(error.value)
            assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_best_row_without_its_state_is_one_line(tmp_path):
    Errors(60.0, 20.0, 50.0, 30.0).save(tmp_path, keep_every=1)
    folder = tmp_path / "checkpoints"
    (folder / "2").rename(tmp_path / "elsewhere")
    with Checkpoints(folder) as saved:
        words = "no good state of step 2, whose eval_error 20 is the lowest; there are 1, 3, 4"
        with pytest.raises(CheckpointError, match=words) as error:
            saved.variables("best")
        assert "keep_every=1" in str(error.value)
        assert "\n" not in str(error.value)
        assert saved.variables(4)["params"]
    # Without rows the states alone tell: the best of those that are there.
    (tmp_path / "metrics.jsonl").unlink()
    with Checkpoints(folder) as saved:
        assert saved.resolve_step("best") == 4


def test_rows_tell_the_best_of_states_without_a_metric(tmp_path):
    all_states = [state for state, _ in states(optax.sgd(0.1), 3)]
    with Checkpoints(tmp_path / "checkpoints", keep_every=1) as saved:
        with pytest.raises(CheckpointError, match="has no steps"):
            saved.variables()
        for state in all_states:
            saved.save(state)
        saved.wait()
        with pytest.raises(CheckpointError, match=r"has a metric, .* no rows; .*step='last'"):
            saved.variables()
        for rows, best in (
            ([(1, 10.0, 0.1), (2, 5.0, 0.9), (3, 10.0, 0.1)], 2),
            ([(1, 10.0, 0.1), (2, 10.0, 0.2), (3, 10.0, 0.3)], 1),  # the loss decides
            ([(1, 10.0, 0.1), (2, 10.0, 0.1), (3, 11.0, 0.0)], 2),  # the later
            ([(1, None, 0.3), (2, None, 0.2), (3, None, 0.1)], 3),
        ):
            lines = [
                json.dumps({"step": s, "eval_error": e, "eval_loss": loss}) for s, e, loss in rows
            ]
            # A row of the user's own has no figure.
            lines.append(json.dumps({"step": 4, "note": "mine"}))
            (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, "[1", ""]))
            assert saved.resolve_step("best") == best
            assert_equal(saved.variables(), variables_at(all_states[best - 1]))


@pytest.mark.slow
def test_damage_is_one_line_and_the_last_good_one_is_found(tmp_path, caplog):
    expected = Errors(60.0, 50.0, 20.0).save(tmp_path, keep_every=1)
    folder = tmp_path / "checkpoints"
    file = max(
        (p for p in (folder / "3").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with Checkpoints(folder) as saved:
        for step in ("best", 3):
            with pytest.raises(CheckpointError, match=r"3 is damaged .*; write one of 1, 2"):
                saved.variables(step)
        assert_equal(saved.variables("last"), expected[2])
        assert "3 is damaged" in caplog.text
        assert saved.steps() == [1, 2, 3]  # nothing is renamed


@pytest.mark.slow
def test_a_fresh_process_opens_the_folder_alone(tmp_path):
    """Neither the model nor the optimizer is imported there."""
    rows = states(OPTIMIZERS["lookahead"](), 3, run_dir=tmp_path / "run")
    best = min(
        (row["eval_error"], -row["step"], i) for i, (_, row) in enumerate(rows) if row is not None
    )
    best = rows[best[2]][0]
    code = (
        "import sys, numpy as np; from jaxcnn import Checkpoints\n"
        "with Checkpoints(sys.argv[1]) as saved:\n"
        "    np.savez(sys.argv[2], **saved.variables('best')['params']['head'])"
    )
    out = tmp_path / "out.npz"
    subprocess.run([sys.executable, "-c", code, tmp_path / "run/checkpoints", out], check=True)
    with np.load(out) as arrays:
        for name, leaf in eval_state(best).params["head"].items():
            np.testing.assert_array_equal(arrays[name], leaf)


def test_a_strangers_manifest_takes_no_memory_and_runs_no_code():
    big = {".params['a']": "float32[1000000, 1000000]"}
    with pytest.raises(
        reading.Damaged, match="announces 4000000000000 bytes, and the files have 99"
    ):
        reading.shapes_of(big, 99)
    for spec in ("float32", "float32[x]", "what[3]", "float32[-1]", "object[2]" * 2, 3):
        with pytest.raises(reading.Damaged):
            reading.shapes_of({".a": spec}, 99)  # pyright: ignore[reportArgumentType]
    assert reading.shapes_of({"a": "bfloat16[]"}, 99)["a"].dtype == jax.numpy.bfloat16
    for path in ("[__import__('os')]", "['a'", "[" * 9999, "[['a']]", "['a'](1)", "[{}]"):
        with pytest.raises(reading.Damaged):
            reading.tree_of({f".params{path}" if path[0] == "[" else path: 1}, ".params")
    with pytest.raises(reading.Damaged, match="inside of another"):
        reading.tree_of({".params['a']": 1, ".params['a']['b']": 2}, ".params")
    names = {"a": {"it's": np.ones(2), 'a "b" ]': np.zeros(1)}}
    leaves = {f".params{path}": leaf for path, leaf in by_path(names).items()}
    assert_equal(reading.tree_of(leaves, ".params"), names)


def test_states_without_parameters_are_one_line(tmp_path):
    class Counter(NamedTuple):
        step: Any
        total: Any

    with Checkpoints(tmp_path) as saved:
        saved.save(Counter(np.int32(1), np.float32(2)), 1.0)
        saved.wait()
        with pytest.raises(CheckpointError, match="states without params"):
            saved.variables()
