"""Rates by stage, frozen stages, and runs that start from other variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn as jc
from jaxcnn import runs
from jaxcnn.optim import eval_params
from jaxcnn.runs import model_and_optimizer
from jaxcnn.state import init_state, with_variables
from jaxcnn.training import make_train_step, step_kwargs

CONFIG = jc.ExperimentConfig(
    dataset="digits",
    model="convnet",
    model_kwargs={"batch_norm": True},
    optimizer=jc.OptimizerConfig(learning_rate=0.05),
    train=jc.TrainConfig(batch_size=32, num_steps=6),
)
INDEX = np.arange(32, dtype=np.int32)
FROZEN = ("conv1", "conv1_norm", "dense")


@pytest.fixture(scope="module")
def data():
    return jc.load_dataset("digits")


def stepped(data, config, steps=1):
    """(the state at step 0, the state after), by a bare jitted step."""
    model, tx = model_and_optimizer(config, 10)
    state = before = init_state(model, tx, config.train, data)
    step = jax.jit(make_train_step(model, tx, **step_kwargs(config.train)))
    for _ in range(steps):
        state = step(state, data.train, INDEX)
    return before, jax.tree.map(np.asarray, state)


def moves(before, after):
    return jax.tree.map(lambda a, b: b - a, before.params, after.params)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", ["momentum", "adam", "schedule-free", "lookahead", "sam", "muon"]
)
def test_frozen_stages_stay_and_the_others_go_on(data, optimizer):
    config = jc.override(
        CONFIG,
        optimizer=optimizer,
        learning_rate=0.01,
        freeze=("conv1", "dense"),
        weight_decay=0.1,
        decay_mask="all",
    )
    before, after = stepped(data, config, steps=6)
    judged = eval_params(after.opt_state, after.params)
    for name, part in before.params.items():
        pairs = list(
            zip(*map(jax.tree.leaves, (part, after.params[name], judged[name])), strict=True)
        )
        assert all(np.array_equal(a, b) for a, b, _ in pairs) == (name in FROZEN), name
        # Schedule-free recovers what it is judged at by a division.
        assert all(np.allclose(a, c, rtol=1e-6, atol=0) for a, _, c in pairs) == (name in FROZEN), (
            name
        )
    stats = before.model_state["batch_stats"], after.model_state["batch_stats"]
    for name in stats[0]:
        same = all(
            np.array_equal(a, b)
            for a, b in zip(*map(jax.tree.leaves, (s[name] for s in stats)), strict=True)
        )
        assert same == (name in FROZEN), name


@pytest.mark.slow
def test_a_rate_scales_the_step_of_its_stage_alone(data):
    before, whole = stepped(data, CONFIG)
    _, scaled = stepped(data, jc.override(CONFIG, lr_multipliers={"conv2": 0.25, "head": 2}))
    for name, part in moves(before, whole).items():
        factor = {"conv2": 0.25, "conv2_norm": 0.25, "head": 2}.get(name, 1)
        jax.tree.map(
            lambda a, b, f=factor: np.testing.assert_allclose(b, f * a, rtol=1e-4, atol=2e-7),
            part,
            moves(before, scaled)[name],
        )


@pytest.mark.slow
def test_what_lies_before_the_last_frozen_stage_is_not_differentiated(data):
    """The gradients of the frozen stages' convolutions are not computed at all."""

    def convolutions(config) -> int:
        model, tx = model_and_optimizer(config, 10)
        state = init_state(model, tx, config.train, data)
        step = jax.jit(make_train_step(model, tx, **step_kwargs(config.train)))
        return str(step.lower(state, data.train, INDEX).compile().as_text()).count(" convolution(")

    whole, first, both = (
        convolutions(jc.override(CONFIG, freeze=stages))
        for stages in ((), ("conv1",), ("conv1", "conv2"))
    )
    forward = 2
    assert whole == forward + 3  # both kernels' gradients, and one with respect to a map
    assert first == forward + 1
    assert both == forward


@pytest.mark.slow
def test_a_frozen_networks_answer_in_training_is_that_in_test(data):
    config = jc.override(CONFIG, freeze=("conv1", "conv2", "dense"))
    model, _ = model_and_optimizer(config, 10)
    before, after = stepped(data, config)
    tested = jc.evaluate(
        model, before, jc.Split(data.train.images[:32], data.train.labels[:32]), batch_size=32
    )
    assert float(after.metrics.loss) == pytest.approx(float(tested.loss), rel=1e-5)
    assert not np.array_equal(before.params["head"]["kernel"], after.params["head"]["kernel"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"freeze": ("stage9",)},
            r"'stage9', of which the model has no parameters; expected some of conv1, conv2, dense, head",
        ),
        (
            {"lr_multipliers": {"conv1": 0.5}, "optimizer": "schedule-free"},
            "schedule-free averages its steps, so expected one rate for all",
        ),
    ],
)
def test_rates_that_cannot_be_are_refused_before_a_step(data, changes, said, tmp_path):
    with pytest.raises(jc.ArgumentError, match=said):
        runs.sweep({"good": CONFIG, "bad": jc.override(CONFIG, **changes)}, data, tmp_path)
    assert not (tmp_path / "good").exists()


@pytest.mark.slow
def test_a_run_starts_from_the_variables_it_is_given_and_goes_on_from_its_own(data, tmp_path):
    other = jc.override(CONFIG, seed=7)
    model, tx = model_and_optimizer(other, 10)
    theirs = init_state(model, tx, other.train, data)
    asked = []

    def prepare(state):
        asked.append(int(state.step))
        return with_variables(state, {"params": theirs.params, **theirs.model_state})

    config = jc.override(CONFIG, freeze=("conv1", "conv2", "dense"), eval_every=3)
    stops = iter([False] * 3 + [True] * 100)
    assert (
        runs.run(config, data, tmp_path, prepare_state=prepare, should_stop=lambda: next(stops))
        is None
    )
    assert runs.run(config, data, tmp_path, prepare_state=prepare)
    assert asked == [0]
    with jc.Checkpoints(tmp_path / "checkpoints") as saved:
        model, tx = model_and_optimizer(config, 10)
        state = saved.restore(init_state(model, tx, config.train, data))
    assert state is not None
    np.testing.assert_array_equal(state.params["conv2"]["kernel"], theirs.params["conv2"]["kernel"])


def test_variables_of_another_network_are_refused(data):
    model, tx = model_and_optimizer(CONFIG, 10)
    state = init_state(model, tx, CONFIG.train, data)
    with pytest.raises(
        jc.ArgumentError,
        match=r"2 of the variables do not fit the model; the first, \['params'\]\['head'\]\['bias'\], is \(5,\)",
    ):
        with_variables(
            state,
            {
                "params": state.params
                | {"head": {"kernel": jnp.ones((32, 5)), "bias": jnp.ones(5)}},
                **state.model_state,
            },
        )
    tx = jc.create_optimizer(jc.OptimizerConfig("lookahead", learning_rate=0.05))
    with pytest.raises(jc.ArgumentError, match="keeps parameters of its own"):
        with_variables(init_state(model, tx, CONFIG.train, data), {})
