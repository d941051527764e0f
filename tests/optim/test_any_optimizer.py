"""Any optax transformation trains, or is refused in one line; the table of `jaxcnn.optim` is what is tested."""

import doctest
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import jaxcnn as jc
import jaxcnn.optim
from jaxcnn.optim import current_learning_rate
from jaxcnn.state import eval_state, init_state

pytestmark = pytest.mark.quick_compilation

MODEL = jc.create_model("mlp", 10)
CONFIG = jc.TrainConfig(num_steps=4, eval_every=2, batch_size=32)
train: Any = jc.train
inject = optax.inject_hyperparams
TEXT = jaxcnn.optim.__doc__ or ""
TABLE = re.findall(r"^\| (.+?) \| `(.+)` \| (.+) \|$", TEXT, re.M)


@pytest.fixture(scope="module")
def data():
    return jc.subset(jc.load_dataset("digits"), 256, seed=0)


@pytest.fixture(scope="module")
def names():
    """What the example above the table defines."""
    scope: dict[str, Any] = {}
    for example in doctest.DocTestParser().get_examples(TEXT):
        exec(example.source, scope)
    return scope


def test_every_line_of_the_table_is_read():
    lines = [line for line in TEXT.splitlines() if line.startswith("|")]
    assert len(TABLE) == len(lines) - 2 > 15


@pytest.mark.slow
@pytest.mark.parametrize(("task", "code", "rate"), TABLE, ids=[task for task, *_ in TABLE])
def test_what_the_table_says_trains_and_has_its_rate_in_rows(
    task, code, rate, names, data, one, tmp_path
):
    tx = eval(code, names)
    begun = init_state(MODEL, tx, CONFIG, data)
    # Stopped and resumed, through the folder.
    stop = {"should_stop": lambda step: step == 3}
    list(train(MODEL, tx, data, CONFIG, strategy=one, run_dir=tmp_path, **stop))
    *_, (state, row) = train(MODEL, tx, data, CONFIG, strategy=one, run_dir=tmp_path)
    assert repr(row["rate"]) == rate
    assert jc.read_metrics(tmp_path)[-1]["rate"] == row["rate"]
    assert np.isfinite(row["train_loss"])
    assert "diverged" not in row
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), begun.params, state.params)
    assert max(jax.tree.leaves(moved)) > 0
    if "set_to_zero" in code:
        assert max(jax.tree.leaves({**moved, "head": 0})) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_lbfgs_fits_the_images_it_sees_whole(kind, data):
    """With all images in the batch it is a deterministic descent: each step lowers the loss, fast."""
    config = jc.TrainConfig(num_steps=15, eval_every=1, batch_size=256)
    tx = optax.lbfgs()
    strategy = jc.strategy(kind, 2)
    losses = [row["train_loss"] for _, row in train(MODEL, tx, data, config, strategy=strategy)]
    assert all(b < a for a, b in itertools.pairwise(losses))
    assert losses[-1] < 0.02 < 2.3 < losses[0]


@pytest.mark.slow
def test_sam_is_evaluated_where_it_has_not_stepped_aside(data, one):
    """Of two steps, the first goes aside by 0.5 times the gradient, and only the second descends."""
    tx = contrib.sam(optax.sgd(0.1), optax.sgd(0.5))
    config = jc.override(CONFIG, eval_every=1)
    states = [state for state, _ in train(MODEL, tx, data, config, strategy=one)]
    begun = init_state(MODEL, tx, CONFIG, data)
    assert_equal(eval_state(states[0]).params, begun.params)
    with pytest.raises(AssertionError):
        assert_equal(states[0].params, begun.params)
    assert_equal(eval_state(states[1]).params, states[1].params)
    assert_equal(eval_state(states[2]).params, states[1].params)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_plateau_lowers_the_rate_in_the_rows(data, one):
    # No loss is better by 90%.
    plateau = contrib.reduce_on_plateau(0.5, patience=1, rtol=0.9)
    tx = optax.chain(inject(optax.sgd)(1e-3), plateau)
    config = jc.override(CONFIG, num_steps=6, eval_every=1)
    rates = [row["rate"] for _, row in train(MODEL, tx, data, config, strategy=one)]
    assert rates[0] == 1e-3
    assert rates[-1] < 1e-3
    assert all(rate in {1e-3 / 2**k for k in range(6)} for rate in rates)


def labels(params):
    return {name: "a" if name == "head" else "b" for name in params}


@pytest.mark.parametrize(
    ("tx", "rate"),
    [
        (optax.partition({"a": inject(optax.sgd)(0.1), "b": inject(optax.sgd)(0.1)}, labels), 0.1),
        (optax.partition({"a": inject(optax.sgd)(0.1), "b": inject(optax.sgd)(0.2)}, labels), None),
        (optax.partition({"a": inject(optax.sgd)(0.1), "b": optax.sgd(0.2)}, labels), None),
        (optax.partition({"a": inject(optax.sgd)(0.1), "b": optax.set_to_zero()}, labels), 0.1),
        (inject(contrib.muon)(0.1), 0.1),
    ],
)
def test_a_rate_of_parts_is_one_that_all_of_them_have(tx, rate, data):
    state = init_state(MODEL, tx, CONFIG, data)
    assert current_learning_rate(state.opt_state) == rate


def test_what_is_missing_at_first_is_zeros(data, one):
    tx = optax.chain(optax.sgd(0.1), optax.monitor({"norm": lambda u: optax.tree.norm(u)}))
    state = init_state(MODEL, tx, CONFIG, data)
    assert float(state.opt_state[1].measurements["norm"]) == 0
    *_, (state, _) = train(MODEL, tx, data, CONFIG, strategy=one)
    assert float(state.opt_state[1].measurements["norm"]) > 0


def own(update, init=lambda params: ()):
    return optax.GradientTransformationExtraArgs(init, update)


def descend(grads, state, params=None, **extra):
    return jax.tree.map(lambda grad: -0.1 * grad, grads), state


@pytest.mark.parametrize(
    "tx",
    [
        optax.GradientTransformation(
            lambda params: (), lambda updates, state, params=None: descend(updates, state)
        ),
        own(lambda g, s, p, *, value, grad: descend(grad, s)),
        own(descend, lambda params: 0),
        own(lambda g, s, p=None, **extra: (descend(g, s)[0], 1), lambda params: 0),
    ],
    ids=["two functions", "extra arguments", "a number", "a constant"],
)
def test_a_transformation_of_ones_own_is_sgd(tx, data, one):
    *_, (state, row) = train(MODEL, tx, data, CONFIG, strategy=one)
    *_, (other, _) = train(MODEL, optax.sgd(0.1), data, CONFIG, strategy=one)
    assert_equal(state.params, other.params)
    assert row["rate"] is None


def fails(*args, **kwargs):
    raise KeyError("a name")


REFUSED = {
    "another argument": (
        own(lambda g, s, p=None, *, obj_fn: (g, s)),
        r"tx\.update fails with TypeError: .*obj_fn.*; expected one that needs no more than value",
    ),
    "a text": (own(descend, lambda params: "x"), r"tx\.init fails with TypeError: .*str"),
    "init fails": (own(descend, fails), r"tx\.init fails with KeyError: 'a name'; expected"),
    "update fails": (own(fails), r"tx\.update fails with KeyError: 'a name'; expected"),
    "updates of another shape": (
        own(lambda g, s, p=None, **extra: (jax.tree.map(lambda x: x[:1], g), s)),
        r"update of shape \(1,\) for the parameter \['head'\]\['bias'\] of shape \(10,\)",
    ),
    "a state that grows": (
        own(lambda g, s, p=None, **extra: (g, jnp.tile(s, 2)), lambda params: jnp.zeros(1)),
        r"changes its state at the top from shape \(1,\) to \(2,\)",
    ),
    "a mask as a schedule": (
        inject(optax.adamw)(0.1, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
        r"tx injects mask, .* Write optax\.inject_hyperparams\(\.\.\., static_args='mask'\)",
    ),
    "an axis that is not there": (
        own(lambda g, s, p=None, **extra: (jax.lax.pmean(g, "elsewhere"), s)),
        r"tx\.update fails with NameError: .*elsewhere",
    ),
    "noise with a typed key": (
        optax.noisy_sgd(0.1, key=0),
        r"typed random key; .* write jaxcnn\.optim\.transforms\.add_noise\(",
    ),
    "without its call": (optax.adam, r"tx is the function adam; .* Write adam\(1e-3\)"),
}


@pytest.mark.parametrize("kind", ["jit", "pmap"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_one_line_before_anything_is_compiled(
    name, kind, data, tmp_path, monkeypatch
):
    tx, message = REFUSED[name]
    folder = tmp_path / "run"
    with pytest.raises(jc.ArgumentError, match=message) as error:
        train(MODEL, tx, data, CONFIG, strategy=jc.strategy(kind, 2), run_dir=folder)
    assert "\n" not in str(error.value)
    assert not folder.exists()


def test_a_bare_step_says_it_too(data):
    state = init_state(MODEL, optax.sgd(0.1), CONFIG, data)
    step = jax.jit(jc.make_train_step(MODEL, own(fails)))
    with pytest.raises(jc.ArgumentError, match=r"tx\.update fails with KeyError"):
        step(state, data.train, jnp.arange(32))
